//! The threads that closing is sure to have.
//!
//! [`arm`] starts two threads before the first connection, because no thread can be relied on to start while a process
//! exits. [`hand_over`] gives closes to the one, and [`on_some_thread`] gives steps to the other.
//! Threads: each job gets a thread of its own if one can be had. Otherwise it runs on the closer's thread and, where
//! there is none, on the caller's.
//! Invariant: no job is lost, and each runs once.
//! Locks: only the one in [`on_thread`], which is held to take the job out. The job runs outside of it.

use std::convert::Infallible;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use once_cell::sync::OnceCell;
use tokio::sync::oneshot;

use crate::base::process::{Process, Room, Singleton};
use crate::base::runtime::within;
use crate::base::sync::Mutex;
use crate::lifecycle::context::Context;

/// Runs a job on a thread of its own, or on the closer's if none can be had.
pub(crate) fn hand_over(job: ClosingJob) {
    match Closer::of_process() {
        Ok(closer) => Closer::give(&closer.jobs, job),
        Err(error) => {
            tracing::error!(%error, "closing without a thread of its own");
            job();
        }
    }
}

pub(crate) type ClosingJob = Box<dyn FnOnce() + Send>;

static CLOSER: Singleton<OnceCell<Closer>> = Singleton::new(Room::Closer);

/// The threads that closing is sure to have, as the senders to them.
pub(crate) struct Closer {
    /// Takes closes. Each of them gets a thread of its own if one can be had.
    jobs: Sender<ClosingJob>,
    /// Takes the steps that got no thread of their own. They run one after the other.
    pub(crate) steps: Sender<ClosingJob>,
}

impl Closer {
    pub(crate) fn of_process() -> io::Result<&'static Closer> {
        CLOSER.of(Process::current()).get_or_try_init(|| {
            let (jobs, steps) = (Closer::start("resource-pool-closer")?, Closer::start("resource-pool-steps")?);
            Ok(Closer { jobs, steps })
        })
    }

    /// Starts a thread that gives each job a thread of its own, or else runs the job itself.
    fn start(name: &str) -> io::Result<Sender<ClosingJob>> {
        let (sender, jobs) = std::sync::mpsc::channel::<ClosingJob>();
        let serve = move || {
            for job in jobs {
                if let Err(job) = on_thread("resource-pool-close".to_owned(), job) {
                    job();
                }
            }
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(serve)?;
        Ok(sender)
    }

    pub(crate) fn give(to: &Sender<ClosingJob>, job: ClosingJob) {
        // The receiving thread is to live as long as the process. The job runs here if it does not.
        if let Err(unsent) = to.send(job) {
            (unsent.0)();
        }
    }
}

/// Runs a job on a thread of its own. Returns the job if none can be had.
pub(crate) fn on_thread(name: String, job: ClosingJob) -> Result<(), ClosingJob> {
    let kept = Arc::new(Mutex::new(Some(job)));
    let own = Arc::clone(&kept);
    let run = move || {
        let job = own.lock().take();
        if let Some(job) = job {
            job();
        }
    };
    let Err(error) = std::thread::Builder::new().name(name).spawn(run) else { return Ok(()) };
    tracing::debug!(%error, "no thread can be had");
    let job = kept.lock().take();
    job.map_or(Ok(()), Err)
}

/// Starts the closer's threads, before there is anything to close.
///
/// # Errors
/// When the process can have no more threads.
pub(crate) fn arm() -> io::Result<()> {
    Closer::of_process().map(drop)
}

/// Runs code that may block, or drop anything, on another thread in the context of the pool's runtime. Waits for it at
/// most this long.
pub(crate) async fn aside<T: Send + 'static>(
    context: &Context,
    limit: Duration,
    run: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, ended) = oneshot::channel();
    let runtime = context.runtime.current();
    let run = move || {
        let _context = runtime.as_ref().map(tokio::runtime::Handle::enter);
        // Nobody waits any more once the limit has passed.
        let _ = sender.send(run());
    };
    on_some_thread("resource-pool-close".to_owned(), Box::new(run));
    within(limit, ended).await.ok()?.ok()
}

/// Drops values of users, such as the closures of adopted clients that are gone, on another thread. The drop may block, and
/// its panic does not stop the others. The answer is disconnected once all have dropped. Nobody has to wait for that.
pub(crate) fn drop_aside<T: Send + 'static>(values: Vec<T>) -> oneshot::Receiver<Infallible> {
    let (dropping, dropped) = oneshot::channel();
    if values.is_empty() {
        return dropped;
    }
    let drop_all = move || {
        for value in values {
            if catch_unwind(AssertUnwindSafe(|| drop(value))).is_err() {
                tracing::error!("a value of the program panicked as the pool dropped it");
            }
        }
        drop(dropping);
    };
    on_some_thread("resource-pool-drops".to_owned(), Box::new(drop_all));
    dropped
}

/// Runs a job on a thread of its own, or on the closer's thread for steps if none can be had.
pub(crate) fn on_some_thread(name: String, job: ClosingJob) {
    if let Err(job) = on_thread(name, job) {
        match Closer::of_process() {
            Ok(closer) => Closer::give(&closer.steps, job),
            Err(error) => {
                tracing::error!(%error, "a closing step's thread could not be started");
                job();
            }
        }
    }
}
