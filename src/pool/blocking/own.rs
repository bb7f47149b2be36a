//! The verbs of the blocking facade for systems of the program's own: child processes, files, temporary files, models.

#[cfg(feature = "files")]
use std::time::Duration;
use std::time::Instant;

use crate::base::error::Error;
#[cfg(feature = "files")]
use crate::base::runtime::park_on;
#[cfg(feature = "files")]
use crate::kinds::files::{FileWriter, OpenFile, TempDir, TempFile, TempRoot};
use crate::kinds::model::{Model, ModelLoader};
#[cfg(feature = "processes")]
use crate::kinds::processes::{Child, ChildProcess};
use crate::lifecycle::acquire::BlockingGuard;
use crate::lifecycle::lease::{Claim, Lease};
use crate::pool::blocking::ResourcePool;
#[cfg(feature = "processes")]
use crate::pool::own::child_of;
use crate::pool::own::model_of;
#[cfg(feature = "files")]
use crate::pool::own::{file_of, temp_of};

impl ResourcePool {
    /// Starts a child process, unless it was started before, and leases it. Closing ends the process with all that it
    /// has started.
    ///
    /// # Errors
    /// Those of [the async method](crate::ResourcePool::child), and [`Error::InAsyncContext`] if it would have to wait on
    /// a current-thread runtime.
    #[cfg(feature = "processes")]
    #[track_caller]
    pub fn child(&self, name: &str, child: impl Into<ChildProcess>) -> Result<Lease<Child>, Error> {
        Lease::acquire(self.acquirer(), &child_of(self.registry(), name, child.into())?, Claim::shared())
    }

    /// Opens a file, unless it was opened before, and leases its writer. Closing writes what is in the buffer, and syncs
    /// the file.
    ///
    /// # Errors
    /// Those of [the async method](crate::ResourcePool::file), and [`Error::InAsyncContext`] if it would have to wait on
    /// a current-thread runtime.
    #[cfg(feature = "files")]
    #[track_caller]
    pub fn file(&self, name: &str, file: impl Into<OpenFile>) -> Result<Lease<FileWriter>, Error> {
        Lease::acquire(self.acquirer(), &file_of(self.registry(), name, file.into())?, Claim::shared())
    }

    /// Makes a temporary folder, which is removed when the guard drops or the pool closes.
    ///
    /// # Errors
    /// Those of [the async method](crate::ResourcePool::temp_dir), and [`Error::InAsyncContext`] if it would have to wait
    /// on a current-thread runtime.
    #[cfg(feature = "files")]
    #[track_caller]
    pub fn temp_dir(&self) -> Result<TempDir, Error> {
        self.temp(TempDir::make)
    }

    /// Makes a temporary file, which is removed when the guard drops or the pool closes.
    ///
    /// # Errors
    /// Those of [`temp_dir`](Self::temp_dir).
    #[cfg(feature = "files")]
    #[track_caller]
    pub fn temp_file(&self) -> Result<TempFile, Error> {
        self.temp(TempFile::make)
    }

    /// Makes a temporary thing, which takes no longer than an acquire may.
    #[cfg(feature = "files")]
    #[track_caller]
    fn temp<T, M: Future<Output = Result<T, Error>>>(
        &self,
        make: impl FnOnce(Lease<TempRoot>, Duration) -> M,
    ) -> Result<T, Error> {
        let began = Instant::now();
        let lease = Lease::acquire(self.acquirer(), &temp_of(self.registry())?, Claim::shared())?;
        park_on(make(lease, self.acquirer().left_of(began).timeout()))
    }

    /// Loads a model or another large object, unless it was loaded before, and gives a guard of it.
    ///
    /// # Errors
    /// Those of [the async method](crate::ResourcePool::model), and [`Error::InAsyncContext`] if it would have to wait on
    /// a current-thread runtime.
    #[track_caller]
    pub fn model<T: Send + Sync + 'static>(
        &self,
        name: &str,
        loader: impl Into<ModelLoader<T>>,
    ) -> Result<Model<T>, Error> {
        let (slot, began) = (model_of(self.registry(), name, loader.into())?, Instant::now());
        loop {
            let lease = Lease::acquire(&self.acquirer().left_of(began), &slot, Claim::shared())?;
            // If a reconnect has closed it since, the next one is leased. A close for good is an error of that acquire.
            if let Some(model) = Model::of(lease) {
                return Ok(model);
            }
        }
    }
}
