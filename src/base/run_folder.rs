//! [`RunFolder`], a folder of this process for things that a hard end may leave behind, and the sweep of such folders.
//!
//! All folders of a user are in one parent, `resource-pool-UID`, which nobody else can enter. The name of a folder has
//! the number of its process and the moment at which that began, and the process holds a lock on the folder. The kernel
//! ends the lock with the process. A sweep removes a folder once no such process runs and nobody has the lock: the lock
//! tells of processes in other containers, whose numbers mean nothing here, and the number tells of a folder that was
//! just made and is not locked yet.
//! A sweep removes links, and follows none. A forked child shares the locks of its parent, and removes nothing of it.
//! A folder that has the note of a child process stays for as long as that runs, so that each later process is told.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::base::process::ForkGuarded;
use crate::base::process_table::{began, boot, is_running};

/// The file with the note of a child process.
const NOTE: &str = "child";
/// The words for how far an attempt has come that makes a folder.
pub(crate) const SWEEPING: &str = "removing what earlier processes have left";
/// How many names are tried, since a name may be taken by a folder that a sweep had to leave.
const NAMES: u32 = 1000;

/// A folder of this process. It is removed by [`remove`](RunFolder::remove), or else by the sweep of a later process.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    /// The open folder, which is locked.
    lock: ForkGuarded<File>,
}

/// A child process that an earlier process has left behind, and that still runs.
#[derive(Debug, PartialEq)]
pub(crate) struct LeftBehind {
    pub(crate) id: u32,
    began: u64,
    /// The boot of the machine that `began` counts from.
    boot: String,
    /// The name of its resource.
    pub(crate) resource: String,
    /// The file of the program that had started it.
    owner: PathBuf,
}

impl RunFolder {
    /// Makes a folder of this process below this one, and sweeps those that earlier processes have left there. Returns
    /// the child processes of earlier runs of this program that still run. It blocks.
    ///
    /// # Errors
    /// When no folder can be made, or the parent is not this user's alone.
    pub(crate) fn new(below: &Path) -> io::Result<(Self, Vec<LeftBehind>)> {
        // The program may change its own folder meanwhile.
        let parent = parent(&std::path::absolute(below)?)?;
        let mut left = sweep(&parent)?;
        let me = std::env::current_exe().unwrap_or_default();
        left.retain(|child| child.owner == me);
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (id, began) = (std::process::id(), began(std::process::id()).unwrap_or(0));
        for _ in 0..NAMES {
            // Relaxed, because only the uniqueness of the number counts.
            let path = parent.join(format!("{id}-{began}-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
            match fs::create_dir(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                created => created?,
            }
            if let Some(lock) = locked(&path)?
                && same(&path, &lock)
            {
                return Ok((RunFolder { path, lock: ForkGuarded::new(lock) }, left));
            }
        }
        Err(io::Error::other(format!("no name is free in {}", parent.display())))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the folder is still there, and no other one in its place.
    pub(crate) fn is_there(&self) -> bool {
        same(&self.path, &self.lock)
    }

    /// Notes a child process of this program, for the sweeps of later processes. It blocks.
    pub(crate) fn note(&self, id: u32, resource: &str) -> io::Result<()> {
        let owner = std::env::current_exe().unwrap_or_default();
        let note = LeftBehind { id, began: began(id).unwrap_or(0), boot: boot(), resource: resource.to_owned(), owner };
        fs::write(self.path.join(NOTE), note.text())
    }

    /// Removes the folder with all that is in it. One that is gone already is no error, and a forked child removes
    /// nothing. It blocks.
    pub(crate) fn remove(&self) -> io::Result<()> {
        if !ForkGuarded::is_current(&self.lock) {
            return Ok(());
        }
        gone(fs::remove_dir_all(&self.path))
    }
}

impl LeftBehind {
    fn text(&self) -> String {
        let LeftBehind { id, began, boot, resource, owner } = self;
        format!("{id}\n{began}\n{boot}\n{resource}\n{}", owner.display())
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.splitn(5, '\n');
        let mut line = || lines.next();
        let (id, began) = (line()?.parse().ok()?, line()?.parse().ok()?);
        let (boot, resource, owner) = (line()?.to_owned(), line()?.to_owned(), PathBuf::from(line()?));
        Some(LeftBehind { id, began, boot, resource, owner })
    }

    fn runs(&self) -> bool {
        self.boot == boot() && is_running(self.id, self.began)
    }
}

/// Removes the folders of processes that are gone. Returns the child processes that still run. A folder that cannot be
/// removed is left to the next sweep.
fn sweep(parent: &Path) -> io::Result<Vec<LeftBehind>> {
    let mut left = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let path = entry.path();
        // The type is that of the entry itself, so a link is none of them.
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || !is_left(&entry.file_name()) {
            continue;
        }
        let Ok(Some(_lock)) = locked(&path) else { continue };
        let note = fs::read_to_string(path.join(NOTE)).ok().and_then(|text| LeftBehind::parse(&text));
        match note.filter(LeftBehind::runs) {
            Some(child) => left.push(child),
            None => match gone(fs::remove_dir_all(&path)) {
                Ok(()) => tracing::info!(folder = %path.display(), "removed what an earlier process has left"),
                Err(error) => tracing::warn!(folder = %path.display(), %error, "an earlier process has left this"),
            },
        }
    }
    Ok(left)
}

/// Whether this is the name of a folder whose process does not run.
fn is_left(name: &OsStr) -> bool {
    let mut parts = name.to_str().unwrap_or_default().split('-');
    let (Some(id), Some(began), Some(number), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    match (id.parse(), began.parse(), number.parse::<u32>()) {
        (Ok(id), Ok(began), Ok(_)) => !is_running(id, began),
        _ => false,
    }
}

/// The parent of all folders of this user. It is made if it is not there.
#[cfg(unix)]
fn parent(below: &Path) -> io::Result<PathBuf> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};

    let user = nix::unistd::Uid::effective().as_raw();
    let parent = below.join(format!("resource-pool-{user}"));
    match fs::DirBuilder::new().mode(0o700).create(&parent) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        created => created?,
    }
    let found = fs::symlink_metadata(&parent)?;
    if !found.is_dir() || found.uid() != user || found.mode() & 0o077 != 0 {
        let problem = format!("{} is not a folder that only this user may enter", parent.display());
        return Err(io::Error::new(ErrorKind::PermissionDenied, problem));
    }
    Ok(parent)
}

/// The parent of all folders. The temporary folder is the user's own there.
#[cfg(not(unix))]
fn parent(below: &Path) -> io::Result<PathBuf> {
    let parent = below.join("resource-pool");
    fs::create_dir_all(&parent)?;
    Ok(parent)
}

/// The lock on this folder. `None` if somebody else has it, or the folder is gone.
fn locked(path: &Path) -> io::Result<Option<File>> {
    let lock = match opened(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Opens the folder itself, since those who clean up `/tmp` leave locked folders alone.
#[cfg(unix)]
fn opened(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)
}

/// Opens a file in the folder, since a folder cannot be locked there.
#[cfg(not(unix))]
fn opened(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(false).open(path.join("lock"))
}

/// Whether the open folder still is at this path.
#[cfg(unix)]
fn same(path: &Path, lock: &File) -> bool {
    use std::os::unix::fs::MetadataExt;

    match (fs::symlink_metadata(path), lock.metadata()) {
        (Ok(there), Ok(open)) => (there.dev(), there.ino()) == (open.dev(), open.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn same(path: &Path, _: &File) -> bool {
    path.is_dir()
}

/// The result of a removal. One of something that is gone already has succeeded.
pub(crate) fn gone(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A folder of the test's own, which is empty.
    fn place(name: &str) -> PathBuf {
        let place = std::env::temp_dir().join(format!("run-folder-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&place);
        fs::create_dir(&place).unwrap();
        place
    }

    /// A number that no process has: it is above the kernel's limit.
    const NOBODY: u32 = 1 << 30;

    #[test]
    fn only_folders_of_processes_that_are_gone_are_swept() {
        let place = place("swept");
        let (mine, left) = RunFolder::new(&place).unwrap();
        assert!(left.is_empty() && mine.is_there());
        let parent = mine.path().parent().unwrap().to_owned();
        let (gone, held, other) =
            (parent.join(format!("{NOBODY}-1-0")), parent.join(format!("{NOBODY}-1-1")), parent.join("notes"));
        for folder in [&gone, &held, &other] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("file"), "text").unwrap();
        }
        // A process in another container has a lock, and no number here.
        let lock = locked(&held).unwrap().unwrap();
        let began = began(std::process::id()).unwrap();
        let unlocked = parent.join(format!("{}-{began}-77", std::process::id()));
        fs::create_dir(&unlocked).unwrap();
        let (second, _) = RunFolder::new(&place).unwrap();
        assert!(!gone.exists(), "nobody has it");
        for folder in [&held, &other, &unlocked, &mine.path, &second.path] {
            assert!(folder.exists(), "{folder:?}");
        }
        drop(lock);
        let (third, _) = RunFolder::new(&place).unwrap();
        assert!(!held.exists());
        for folder in [mine, second, third] {
            folder.remove().unwrap();
            assert!(!folder.is_there());
            folder.remove().unwrap();
        }
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn no_link_is_followed() {
        let (place, outside) = (place("links"), place("outside"));
        fs::write(outside.join("precious"), "text").unwrap();
        let (mine, _) = RunFolder::new(&place).unwrap();
        let parent = mine.path().parent().unwrap().to_owned();
        // The one link stands in the place of a folder, the other one is in a folder that is swept.
        symlink(&outside, parent.join(format!("{NOBODY}-1-0"))).unwrap();
        let gone = parent.join(format!("{NOBODY}-2-0"));
        fs::create_dir(&gone).unwrap();
        symlink(&outside, gone.join("link")).unwrap();
        RunFolder::new(&place).unwrap();
        assert!(!gone.exists() && outside.join("precious").exists());
        // A parent that is a link, or that others may enter, is refused.
        let (second, third) = (self::place("parent"), self::place("open"));
        symlink(&outside, second.join(parent.file_name().unwrap())).unwrap();
        fs::create_dir(third.join(parent.file_name().unwrap())).unwrap();
        for place in [&second, &third] {
            let error = RunFolder::new(place).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        }
        for place in [place, outside, second, third] {
            fs::remove_dir_all(place).unwrap();
        }
    }

    #[test]
    fn a_child_process_that_still_runs_is_told_each_time() {
        let place = place("told");
        let (mine, _) = RunFolder::new(&place).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let left = mine.path().with_file_name(format!("{NOBODY}-1-0"));
        fs::create_dir(&left).unwrap();
        mine.note(child.id(), "feeder").unwrap();
        fs::rename(mine.path().join(NOTE), left.join(NOTE)).unwrap();
        for _ in 0..2 {
            let (_, told) = RunFolder::new(&place).unwrap();
            assert_eq!(
                told.iter().map(|told| (told.id, &*told.resource)).collect::<Vec<_>>(),
                [(child.id(), "feeder")]
            );
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let (_, told) = RunFolder::new(&place).unwrap();
        assert!(told.is_empty() && !left.exists());
        fs::remove_dir_all(place).unwrap();
    }
}
