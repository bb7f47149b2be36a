//! The verbs of the async facade for systems of the program's own: child processes, files, temporary files, models.

use std::future::Future;
use std::sync::Arc;
#[cfg(feature = "files")]
use std::time::Duration;
use std::time::Instant;

use crate::base::error::Error;
#[cfg(feature = "files")]
use crate::kinds::files::{FileWriter, OpenFile, TempDir, TempFile, TempFolder, TempRoot};
use crate::kinds::model::{Model, ModelLoader};
#[cfg(feature = "processes")]
use crate::kinds::processes::{Child, ChildProcess};
use crate::lifecycle::acquire::Acquirer;
use crate::lifecycle::lease::{Claim, Lease};
use crate::lifecycle::registry::Registry;
use crate::lifecycle::slot::Slot;
use crate::pool::resource_pool::ResourcePool;

impl ResourcePool {
    /// Starts a child process, unless it was started before, and leases it. A second call needs the same command and
    /// settings. Closing ends the process with all that it has started. [`close`](Self::close) does so before that,
    /// [`reconnect`](Self::reconnect) kills it and starts it again, and [`unregister`](Self::unregister) frees its name.
    ///
    /// # Errors
    /// [`Error::Connect`] if it could not be started; [`Error::NameTaken`] for another command, or another resource;
    /// [`Error::Timeout`], [`Error::Closing`] and [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Dropping the future stops only the waiting.
    ///
    /// ```no_run
    /// # async fn doc(pool: resource_pool::ResourcePool) -> Result<(), resource_pool::Error> {
    /// use std::process::Command;
    ///
    /// let feeder = pool.child("feeder", Command::new("feeder")).await?;
    /// println!("{:?}", feeder.wait().await?);
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "processes")]
    #[track_caller]
    pub fn child<C: Into<ChildProcess>>(
        &self,
        name: &str,
        child: C,
    ) -> impl Future<Output = Result<Lease<Child>, Error>> + Send + use<C> {
        self.acquirer().acquire(child_of(self.registry(), name, child.into()), Claim::shared())
    }

    /// Opens a file, unless it was opened before, and leases its writer. A path alone is
    /// [appended](OpenFile::append) to. A second call needs the same path and settings. Closing writes what is in the
    /// buffer, and syncs the file. [`reconnect`](Self::reconnect) writes what is in the buffer.
    ///
    /// # Errors
    /// [`Error::Connect`] if it could not be opened, or written as it was reconnected; [`Error::NameTaken`] for another
    /// path, or another resource; [`Error::Timeout`], [`Error::Closing`] and [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Dropping the future stops only the waiting.
    #[cfg(feature = "files")]
    #[track_caller]
    pub fn file<F: Into<OpenFile>>(
        &self,
        name: &str,
        file: F,
    ) -> impl Future<Output = Result<Lease<FileWriter>, Error>> + Send + use<F> {
        self.acquirer().acquire(file_of(self.registry(), name, file.into()), Claim::shared())
    }

    /// Makes a temporary folder, which is removed when the guard drops or the pool closes. [`TempFolder`] says where it
    /// is.
    ///
    /// # Errors
    /// [`Error::Connect`] if the folder of this process could not be made, [`Error::Operation`] if this one could not;
    /// [`Error::Timeout`] also if the file system hangs; [`Error::Closing`] and [`Error::Closed`].
    ///
    /// # Cancel safety
    /// A folder that is made meanwhile is removed.
    #[cfg(feature = "files")]
    #[track_caller]
    pub fn temp_dir(&self) -> impl Future<Output = Result<TempDir, Error>> + Send + use<> {
        self.acquirer().temp(TempDir::make)
    }

    /// Makes a temporary file, which is removed when the guard drops or the pool closes. [`TempFolder`] says where it
    /// is.
    ///
    /// # Errors
    /// Those of [`temp_dir`](Self::temp_dir).
    ///
    /// # Cancel safety
    /// A file that is made meanwhile is removed.
    #[cfg(feature = "files")]
    #[track_caller]
    pub fn temp_file(&self) -> impl Future<Output = Result<TempFile, Error>> + Send + use<> {
        self.acquirer().temp(TempFile::make)
    }

    /// Loads a model or another large object, unless it was loaded before, and gives a guard of it. It is loaded once for
    /// all who ask meanwhile, by the closure of the first. It is unloaded in its phase, or by [`close`](Self::close), as
    /// the last guard has dropped.
    ///
    /// A caller waits for as long as its acquire timeout: `pool.within(limit).model(…)` waits longer.
    ///
    /// # Errors
    /// [`Error::Connect`] if it could not be loaded; [`Error::NameTaken`] for another type, or another resource;
    /// [`Error::Timeout`], [`Error::Closing`] and [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Dropping the future stops only the waiting.
    #[track_caller]
    pub fn model<T: Send + Sync + 'static, L: Into<ModelLoader<T>>>(
        &self,
        name: &str,
        loader: L,
    ) -> impl Future<Output = Result<Model<T>, Error>> + Send + use<T, L> {
        let (slot, claim) = (model_of(self.registry(), name, loader.into()), Claim::shared());
        let acquirer = self.acquirer().clone();
        let mut lease = acquirer.acquire(slot.as_ref().map_err(Error::clone), claim);
        async move {
            let began = Instant::now();
            loop {
                if let Some(model) = Model::of(lease.await?) {
                    return Ok(model);
                }
                // A reconnect has closed it since. A close for good is an error of the next acquire.
                lease = acquirer.left_of(began).acquire(slot.as_ref().map_err(Error::clone), claim);
            }
        }
    }
}

impl Acquirer {
    /// The acquirer for the rest of a wait that began then.
    pub(super) fn left_of(&self, began: Instant) -> Acquirer {
        self.within(self.timeout().saturating_sub(began.elapsed()))
    }

    /// Makes a temporary thing, which takes no longer than an acquire may.
    #[cfg(feature = "files")]
    #[track_caller]
    fn temp<T, M: Future<Output = Result<T, Error>> + Send, F: FnOnce(Lease<TempRoot>, Duration) -> M + Send>(
        &self,
        make: F,
    ) -> impl Future<Output = Result<T, Error>> + Send + use<T, M, F> {
        let (limit, lease) = (self.timeout(), self.acquire(temp_of(&self.handle.0), Claim::shared()));
        async move {
            let began = Instant::now();
            make(lease.await?, limit.saturating_sub(began.elapsed())).await
        }
    }
}

/// The resource of a child process.
#[cfg(feature = "processes")]
pub(super) fn child_of(registry: &Registry, name: &str, child: ChildProcess) -> Result<Arc<Slot<ChildProcess>>, Error> {
    registry.made_of(name, "child", child, ChildProcess::is_same)
}

/// The resource of an open file.
#[cfg(feature = "files")]
pub(super) fn file_of(registry: &Registry, name: &str, file: OpenFile) -> Result<Arc<Slot<OpenFile>>, Error> {
    registry.made_of(name, "file", file, OpenFile::eq)
}

/// The resource that has the temporary files. Another one may have been registered.
#[cfg(feature = "files")]
pub(super) fn temp_of(registry: &Registry) -> Result<Arc<Slot<TempFolder>>, Error> {
    registry.made_of(TempFolder::NAME, "temp", TempFolder::new(), |_, _| true)
}

/// The resource of a model. Closures cannot be compared, so the first one counts.
pub(super) fn model_of<T: Send + Sync + 'static>(
    registry: &Registry,
    name: &str,
    loader: ModelLoader<T>,
) -> Result<Arc<Slot<ModelLoader<T>>>, Error> {
    registry.made_of(name, "model", loader, |_, _| true)
}

#[cfg(all(test, feature = "files"))]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::base::runtime::park_on;
    use crate::lifecycle::acquire::BlockingGuard;
    use crate::lifecycle::status::State;
    use crate::pool::blocking;

    #[test]
    fn a_file_system_that_hangs_keeps_one_thread_and_no_caller() {
        let pool = blocking::ResourcePool::builder().environment([("", ""); 0]).build().unwrap();
        drop(pool.temp_dir().unwrap());
        let tasks = pool.as_async();
        let lease: Lease<TempRoot> =
            Lease::acquire(tasks.acquirer(), &temp_of(tasks.registry()).unwrap(), Claim::shared()).unwrap();
        let ((begin, begun), (release, held)) = (mpsc::channel(), mpsc::channel::<()>());
        let hangs = move || {
            begin.send(()).unwrap();
            held.recv().unwrap_err();
        };
        let hanging = thread::spawn(move || park_on(lease.apart(hangs)).unwrap());
        begun.recv().unwrap();
        let impatient = pool.within(Duration::from_millis(20));
        for late in [impatient.temp_dir().unwrap_err(), impatient.temp_file().unwrap_err()] {
            assert!(matches!(&late, Error::Timeout(timeout) if timeout.waiting_for.contains("file system")), "{late}");
        }
        let late = park_on(tasks.within(Duration::from_millis(20)).temp_dir()).unwrap_err();
        assert!(matches!(late, Error::Timeout(_)), "{late}");
        drop(release);
        hanging.join().unwrap();
        assert!(pool.temp_file().unwrap().path().exists());
        let status = pool.status();
        let temp = status.resource(TempFolder::NAME).unwrap();
        assert_eq!((temp.state, temp.generation), (State::Ready, 1));
        assert!(pool.close_all().unwrap().all_closed());
    }
}
