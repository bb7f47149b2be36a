//! [`Child`], the handle of a child process.

use std::fmt;
use std::future::Future;
use std::process::{ChildStderr, ChildStdin, ChildStdout, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::base::error::{Error, TimeoutError};
use crate::base::process::ForkGuarded;
use crate::base::run_folder::RunFolder;
use crate::base::runtime::{block, deadline, park_on, park_until};
use crate::kinds::processes::run::ChildRun;
use crate::lifecycle::link::Link;

/// A child process of this program, which the pool ends as it closes. Dropping the lease leaves the process alone.
///
/// If the process is [started again](crate::ChildProcess::restart), this goes on as the handle of the new one.
#[derive(Clone)]
pub struct Child(pub(super) Arc<ForkGuarded<ChildState>>);

/// The state that all handles of a child process share.
pub(super) struct ChildState {
    run: Mutex<PresentRun>,
    /// The folder with the note of the process, for later processes. `None` if it could not be made.
    pub(super) folder: Option<Arc<RunFolder>>,
    pub(super) link: Link,
}

struct PresentRun {
    run: Arc<ChildRun>,
    /// Whether the child process is closed, so that no further run may begin.
    is_closed: bool,
}

impl Child {
    pub(super) fn new(run: Arc<ChildRun>, folder: Option<Arc<RunFolder>>, link: Link) -> Self {
        let state = ChildState { run: Mutex::new(PresentRun { run, is_closed: false }), folder, link };
        Child(Arc::new(ForkGuarded::new(state)))
    }

    /// The present run.
    pub(super) fn run(&self) -> Arc<ChildRun> {
        Arc::clone(&self.0.run.lock().run)
    }

    /// Begins another run. Answers whether it may.
    pub(super) fn begin(&self, run: &Arc<ChildRun>) -> bool {
        let mut present = self.0.run.lock();
        if !present.is_closed {
            present.run = Arc::clone(run);
        }
        !present.is_closed
    }

    /// The last run, after which no other can begin.
    pub(super) fn last_run(&self) -> Arc<ChildRun> {
        let mut present = self.0.run.lock();
        present.is_closed = true;
        Arc::clone(&present.run)
    }

    /// The number of the process. `None` once it has ended.
    ///
    /// # Errors
    /// [`Error::Forked`].
    pub fn id(&self) -> Result<Option<u32>, Error> {
        ForkGuarded::check(&self.0)?;
        let run = self.run();
        Ok(run.end().is_none().then_some(run.id))
    }

    /// How the process has ended. `None` while it runs, and where that is not known, because this program ignores SIGCHLD
    /// or has asked for the status itself.
    ///
    /// # Errors
    /// [`Error::Forked`].
    pub fn exit_status(&self) -> Result<Option<ExitStatus>, Error> {
        ForkGuarded::check(&self.0)?;
        Ok(self.run().end().and_then(|ended| ended.0))
    }

    /// Waits until the process has ended. Returns its status, if that is known.
    ///
    /// # Errors
    /// [`Error::Forked`].
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub fn wait(&self) -> impl Future<Output = Result<Option<ExitStatus>, Error>> + Send + use<> {
        let checked = ForkGuarded::check(&self.0).map(|()| self.run());
        async move { Ok(checked?.ended().await.0) }
    }

    /// Waits like [`wait`](Self::wait), and blocks this thread for as long as the process runs.
    ///
    /// # Errors
    /// [`Error::Forked`], and [`Error::InAsyncContext`] on a current-thread runtime.
    pub fn wait_blocking(&self) -> Result<Option<ExitStatus>, Error> {
        block(self.0.link.name(), || park_on(self.wait()))?
    }

    /// Waits like [`wait_blocking`](Self::wait_blocking), but no longer than this.
    ///
    /// # Errors
    /// Those of [`wait_blocking`](Self::wait_blocking), and [`Error::Timeout`] if the process still runs then.
    pub fn wait_blocking_within(&self, limit: Duration) -> Result<Option<ExitStatus>, Error> {
        let link = &self.0.link;
        block(link.name(), || park_until(Box::pin(self.wait()), deadline(limit)))?.unwrap_or_else(|| {
            let timeout = TimeoutError::new(link.name(), link.endpoint(), "the end of the process", limit);
            Err(Error::Timeout(Arc::new(timeout)))
        })
    }

    /// The pipe to the standard input, for the first who asks. `None` unless the command asked for a pipe.
    ///
    /// # Errors
    /// [`Error::Forked`].
    pub fn take_stdin(&self) -> Result<Option<ChildStdin>, Error> {
        ForkGuarded::check(&self.0)?;
        Ok(self.run().stdin.lock().take())
    }

    /// The pipe from the standard output, for the first who asks. `None` unless the command asked for a pipe.
    ///
    /// # Errors
    /// [`Error::Forked`].
    pub fn take_stdout(&self) -> Result<Option<ChildStdout>, Error> {
        ForkGuarded::check(&self.0)?;
        Ok(self.run().stdout.lock().take())
    }

    /// The pipe from the standard error, for the first who asks. `None` unless the command asked for a pipe.
    ///
    /// # Errors
    /// [`Error::Forked`].
    pub fn take_stderr(&self) -> Result<Option<ChildStderr>, Error> {
        ForkGuarded::check(&self.0)?;
        Ok(self.run().stderr.lock().take())
    }
}

// Nothing of the run is shown, because a lock in it may be held by a thread that a forked child does not have.
impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Child").finish_non_exhaustive()
    }
}
