//! The guards of temporary files and folders.
//!
//! A guard that drops gives its file to a thread, which removes it. Closing removes all that is left.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::{NamedTempFile, PersistError};

use crate::base::error::{BoxError, Error, TimeoutError};
use crate::base::process::ForkGuarded;
use crate::base::run_folder::gone;
use crate::base::runtime::{thread, timer};
use crate::kinds::files::temp_folder::TempRoot;
use crate::lifecycle::lease::Lease;

/// A temporary folder. It is removed with all that is in it when this drops, on a thread of its own, or when the pool
/// closes.
#[must_use = "the folder is removed when this drops"]
pub struct TempDir {
    kept: Kept<tempfile::TempDir>,
}

/// A temporary file, which has a name and is open. It is removed when this drops, on a thread of its own, or when the
/// pool closes. [`file`](Self::file) can be read and written.
#[must_use = "the file is removed when this drops"]
pub struct TempFile {
    kept: Kept<NamedTempFile>,
}

/// A temporary thing, with the lease of the folder that it is in.
struct Kept<T: Send + 'static> {
    /// `None` once it is removed or kept. A forked child leaves it alone.
    thing: ForkGuarded<Option<T>>,
    lease: Lease<TempRoot>,
}

impl TempDir {
    /// Makes a folder in the leased one.
    pub(crate) async fn make(lease: Lease<TempRoot>, limit: Duration) -> Result<Self, Error> {
        Ok(TempDir { kept: Kept::make(lease, "make a temporary folder", limit, TempRoot::make_dir).await? })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.kept.thing().path()
    }

    /// Removes the folder with all that is in it. It blocks.
    ///
    /// # Errors
    /// [`Error::Operation`] if it cannot be removed, and [`Error::Forked`].
    pub fn close(mut self) -> Result<(), Error> {
        let folder = self.kept.take()?;
        self.kept.told("remove a temporary folder", gone(folder.close()))
    }
}

impl TempFile {
    /// Makes a file in the leased folder.
    pub(crate) async fn make(lease: Lease<TempRoot>, limit: Duration) -> Result<Self, Error> {
        Ok(TempFile { kept: Kept::make(lease, "make a temporary file", limit, TempRoot::make_file).await? })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.kept.thing().path()
    }

    /// The open file.
    pub fn file(&self) -> &File {
        self.kept.thing().as_file()
    }

    /// Moves the file to this path, in the place of a file that is there, and keeps it. Both must be on the same file
    /// system, which [`below`](crate::TempFolder::below) sets. It blocks.
    ///
    /// # Errors
    /// [`Error::Operation`] if it cannot be moved; the file is removed then. [`Error::Forked`].
    pub fn persist(mut self, path: impl AsRef<Path>) -> Result<File, Error> {
        let kept = self.kept.take()?.persist(path).map_err(|PersistError { error, .. }| error);
        self.kept.told("keep a temporary file", kept)
    }

    /// Removes the file. It blocks.
    ///
    /// # Errors
    /// [`Error::Operation`] if it cannot be removed, and [`Error::Forked`].
    pub fn close(mut self) -> Result<(), Error> {
        let file = self.kept.take()?;
        self.kept.told("remove a temporary file", gone(file.close()))
    }
}

impl<T: Send + 'static> Kept<T> {
    /// Makes a thing on a thread that may block. One that is made too late is removed.
    async fn make(
        lease: Lease<TempRoot>,
        action: &'static str,
        limit: Duration,
        make: fn(&TempRoot) -> io::Result<T>,
    ) -> Result<Self, Error> {
        let (activity, root, began) = (Arc::clone(Lease::activity(&lease)), TempRoot::clone(&lease), Instant::now());
        let made = root.apart(move || match make(&lease) {
            Ok(made) => Ok(Kept { thing: ForkGuarded::new(Some(made)), lease }),
            Err(error) => Err(failed(&lease, action, error)),
        });
        tokio::select! {
            biased; // One that is there counts, even if the limit has passed in the same moment.
            made = made => made.unwrap_or_else(|failure| {
                let (resource, action) = (Arc::clone(&activity.name), action.to_owned());
                Err(Error::Operation { resource, action, source: failure.into_source().into() })
            }),
            () = timer(limit) => {
                let (name, endpoint) = (&activity.name, &activity.endpoint);
                Err(Error::Timeout(Arc::new(TimeoutError::new(name, endpoint, "the file system", began.elapsed()))))
            }
        }
    }

    fn thing(&self) -> &T {
        self.thing.as_ref().unwrap_or_else(|| unreachable!("nobody has a guard that is used up"))
    }

    fn take(&mut self) -> Result<T, Error> {
        ForkGuarded::check(&self.thing)?;
        let thing = self.thing.take().unwrap_or_else(|| unreachable!("nobody has a guard that is used up"));
        self.lease.forget();
        Ok(thing)
    }

    fn told<R>(&self, action: &str, done: io::Result<R>) -> Result<R, Error> {
        done.map_err(|error| failed(&self.lease, action, error))
    }
}

fn failed(lease: &Lease<TempRoot>, action: &str, error: io::Error) -> Error {
    let (resource, action) = (Arc::from(Lease::resource(lease)), action.to_owned());
    Error::Operation { resource, action, source: BoxError::from(error).into() }
}

impl<T: Send + 'static> Drop for Kept<T> {
    fn drop(&mut self) {
        if !ForkGuarded::is_current(&self.thing) {
            return;
        }
        if let Some(thing) = self.thing.take() {
            self.lease.forget();
            // Without a thread it is removed here.
            if let Ok(removes) = thread(drop::<T>) {
                let _ = removes.send(thing);
            }
        }
    }
}

impl AsRef<Path> for TempDir {
    fn as_ref(&self) -> &Path {
        self.path()
    }
}

impl AsRef<Path> for TempFile {
    fn as_ref(&self) -> &Path {
        self.path()
    }
}

impl fmt::Debug for TempDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TempDir").field(&self.path()).finish()
    }
}

impl fmt::Debug for TempFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TempFile").field(&self.path()).finish()
    }
}
