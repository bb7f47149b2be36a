//! [`TempFolder`], the resource that has the temporary files and folders, and its configuration.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::base::error::Failure;
use crate::base::run_folder::RunFolder;
use crate::base::runtime::apart;
use crate::kinds::files::turns::Turns;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::link::Link;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::Usage;

/// The folder of this process for temporary files and folders, which [`temp_dir`](crate::ResourcePool::temp_dir) and
/// [`temp_file`](crate::ResourcePool::temp_file) make in it. Nobody but this user can enter it. Closing removes it with
/// all that is left in it.
///
/// SIGKILL, `abort`, `_exit` and a second signal leave it behind. The next process of this user that makes a temporary
/// file in the same place removes it then. A process that still runs keeps its folder, be it in another container, since
/// it has a lock on the folder. No link is followed, and a folder stays in which a file system is mounted. A forked child
/// removes nothing of its parent's.
///
/// The pool makes one with these defaults as it is first asked for a temporary file. Register another one before that,
/// as [`TempFolder::NAME`], to set them:
///
/// ```no_run
/// # fn main() -> Result<(), resource_pool::Error> {
/// use resource_pool::{TempFolder, blocking::ResourcePool};
///
/// let pool = ResourcePool::global();
/// pool.register(TempFolder::NAME, TempFolder::new().below("/var/tmp").prefix("bars-"))?;
/// let scratch = pool.temp_dir()?;
/// println!("{}", scratch.path().display());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TempFolder {
    below: Option<PathBuf>,
    prefix: OsString,
}

impl TempFolder {
    /// The name of the resource.
    pub const NAME: &'static str = "temp";

    /// A folder below the one that `TMPDIR` names, or else `/tmp`, on Windows below the user's own.
    pub fn new() -> Self {
        TempFolder::default()
    }

    /// Sets the folder below which it is made, which has to be there.
    pub fn below(mut self, below: impl Into<PathBuf>) -> Self {
        self.below = Some(below.into());
        self
    }

    /// Sets how the names of files and folders begin. Defaults to nothing.
    pub fn prefix(mut self, prefix: impl Into<OsString>) -> Self {
        self.prefix = prefix.into();
        self
    }
}

/// The open folder of this process, the handle of [`TempFolder`].
#[derive(Clone)]
pub struct TempRoot(Arc<RootState>);

struct RootState {
    folder: RunFolder,
    prefix: OsString,
    /// How many guards are out.
    guards: AtomicUsize,
    /// The calls to the file system, which may hang.
    turns: Turns,
}

impl TempRoot {
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.folder.path()
    }

    /// Runs code on a thread of its own, once the calls before it have come back.
    pub(crate) async fn apart<T: Send + 'static>(
        &self,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        self.0.turns.apart(run).await
    }

    /// Whether the folder is still there, and no other one in its place.
    async fn is_there(&self) -> Result<bool, Failure> {
        let root = self.clone();
        Ok(self.apart(move || root.0.folder.is_there()).await??)
    }

    /// Makes a folder in it. It blocks.
    pub(super) fn make_dir(&self) -> io::Result<tempfile::TempDir> {
        let made = self.builder().tempdir_in(self.path())?;
        self.0.guards.fetch_add(1, Ordering::Relaxed);
        Ok(made)
    }

    /// Makes a file in it. It blocks.
    pub(super) fn make_file(&self) -> io::Result<tempfile::NamedTempFile> {
        let made = self.builder().tempfile_in(self.path())?;
        self.0.guards.fetch_add(1, Ordering::Relaxed);
        Ok(made)
    }

    fn builder(&self) -> tempfile::Builder<'_, 'static> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(&self.0.prefix);
        builder
    }

    /// Notes that a guard is gone.
    pub(super) fn forget(&self) {
        self.0.guards.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Resource for TempFolder {
    type Handle = TempRoot;

    async fn connect(&self, link: &Link) -> Result<TempRoot, Failure> {
        let below = self.below.clone().unwrap_or_else(std::env::temp_dir);
        // Those who start child processes are told of those that were left behind.
        let made = apart(move || RunFolder::new(&below, |_child| ()));
        let folder = link.going_on("making the folder", made).await?.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound => Failure::permanent(error),
            _ => error.into(),
        })?;
        let (prefix, guards, turns) = (self.prefix.clone(), AtomicUsize::new(0), Turns::default());
        Ok(TempRoot(Arc::new(RootState { folder, prefix, guards, turns })))
    }

    async fn ping(&self, root: &TempRoot) -> Result<(), Failure> {
        if root.is_there().await? { Ok(()) } else { Err(removed()) }
    }

    /// Somebody may have removed the folder. A disk that is slow, or cannot tell, has not.
    async fn probe(&self, root: &TempRoot) -> Result<(), Failure> {
        // While a call hangs, each further one would too.
        if root.0.turns.is_taken() {
            return Ok(());
        }
        match root.is_there().await {
            Ok(false) => Err(removed()),
            Ok(true) | Err(_) => Ok(()),
        }
    }

    /// A folder that is still there stays with all that is in it, since guards have it.
    async fn recover(&self, _: &Link, root: &TempRoot) -> Result<bool, Failure> {
        root.is_there().await
    }

    async fn close(&self, root: TempRoot) -> Result<(), Failure> {
        Ok(apart(move || root.0.folder.remove()).await??)
    }

    fn endpoint(&self) -> String {
        self.below.clone().unwrap_or_else(std::env::temp_dir).display().to_string()
    }

    fn phase(&self) -> Phase {
        Phase::TempFiles
    }

    fn usage(&self, root: &TempRoot) -> Usage {
        let mut usage = Usage::default();
        let guards = root.0.guards.load(Ordering::Relaxed);
        (usage.open, usage.in_use) = (Some(guards), Some(guards));
        usage
    }
}

fn removed() -> Failure {
    Failure::transient("somebody has removed the folder of temporary files")
}

impl fmt::Debug for TempRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TempRoot").field(&self.path()).finish()
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::base::runtime::within;

    #[tokio::test]
    async fn only_a_folder_that_is_gone_is_a_loss() {
        let place = std::env::temp_dir().join(format!("temp-folder-{}", std::process::id()));
        fs::create_dir_all(&place).unwrap();
        let folder = RunFolder::new(&place, |_| ()).unwrap();
        let (prefix, guards, turns) = (OsString::new(), AtomicUsize::new(0), Turns::default());
        let root = TempRoot(Arc::new(RootState { folder, prefix, guards, turns }));
        let temp = TempFolder::new();
        temp.ping(&root).await.unwrap();
        temp.probe(&root).await.unwrap();

        // A file system that hangs is seen by health alone.
        let ((release, held), hanging) = (mpsc::channel::<()>(), root.clone());
        let hanging = tokio::spawn(async move { hanging.apart(move || held.recv()).await });
        while !root.0.turns.is_taken() {
            tokio::task::yield_now().await;
        }
        temp.probe(&root).await.unwrap();
        assert!(within(Duration::from_millis(20), temp.ping(&root)).await.is_err());
        drop(release);
        assert!(hanging.await.unwrap().unwrap().is_err());

        // So is one that cannot tell.
        let (parent, away) = (root.path().parent().unwrap(), place.join("away"));
        fs::rename(parent, &away).unwrap();
        fs::write(parent, "text").unwrap();
        temp.probe(&root).await.unwrap();
        assert!(temp.ping(&root).await.is_err() && root.is_there().await.is_err());
        fs::remove_file(parent).unwrap();
        fs::rename(&away, parent).unwrap();
        assert!(root.is_there().await.unwrap());

        fs::remove_dir_all(root.path()).unwrap();
        assert!(temp.probe(&root).await.is_err() && !root.is_there().await.unwrap());
        fs::remove_dir_all(place).unwrap();
    }
}
