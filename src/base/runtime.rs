//! The runtimes: one for the drivers, owned by the pool, and one for the prober. Also the ways to block a thread on a
//! future.
//!
//! Slots, kinds, checkouts and closing call it.
//! Threads: each runtime has its workers, and [`thread`] starts one for code that blocks. If threads run out, tokio
//! panics or waits for ever, so that [`build`] tries for threads first and fails with an error.
//! Invariant: a runtime is handed out only once all its workers run. The prober's runtime never ends, so that its
//! timers can be polled anywhere.
//! Order of locks: `owned`, then `started`, which belongs to one build. `held` is taken by the threads of one build
//! alone.

use std::convert::Infallible;
use std::future::Future;
#[cfg(any(feature = "checkouts", feature = "requests"))]
use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use once_cell::sync::OnceCell;
use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};
use tokio::sync::oneshot;
use tokio::time::Sleep;
use tokio::time::error::Elapsed;

use crate::base::error::{Error, Failure, panic_message};
use crate::base::process::{Process, Room, Singleton};

/// The runtime on which all driver tasks of a pool live, so that a client outlives the runtime of its caller.
#[derive(Debug)]
pub(crate) struct DriverRuntime {
    /// The runtime that the pool was given. `None` if it has one of its own.
    adopted: Option<Handle>,
    /// The pool's own runtime. `None` until it is first needed, and after the end.
    owned: Mutex<Option<Runtime>>,
    /// The number of threads of the pool's own runtime. `None` for as many as there are cores, but at least two.
    workers: Option<usize>,
}

impl DriverRuntime {
    pub(crate) fn new(adopted: Option<Handle>, workers: Option<usize>) -> Self {
        DriverRuntime { adopted, owned: Mutex::new(None), workers }
    }

    /// The handle of the runtime, which starts on first use.
    ///
    /// # Errors
    /// [`Error::Connect`] of the resource that needs it, if the process can have no more threads.
    pub(crate) fn handle(&self, resource: &Arc<str>) -> Result<Handle, Error> {
        if let Some(handle) = &self.adopted {
            return Ok(handle.clone());
        }
        let mut owned = self.owned.lock();
        if let Some(runtime) = &*owned {
            return Ok(runtime.handle().clone());
        }
        let of_machine = || std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
        let workers = self.workers.unwrap_or_else(of_machine);
        let runtime = build("resource-pool-io", workers).map_err(|error| Error::no_threads(resource, error))?;
        Ok(owned.insert(runtime).handle().clone())
    }

    /// The handle, if the runtime has started and has not ended.
    pub(crate) fn current(&self) -> Option<Handle> {
        match &self.adopted {
            Some(adopted) => Some(adopted.clone()).filter(|adopted| !has_ended(adopted)),
            None => self.owned.lock().as_ref().map(|runtime| runtime.handle().clone()),
        }
    }

    /// Ends the runtime with all that still runs on it, without waiting. An adopted runtime is not the pool's to end.
    pub(crate) fn end(&self) {
        let owned = self.owned.lock().take();
        if let Some(runtime) = owned {
            runtime.shutdown_background();
        }
    }
}

impl Drop for DriverRuntime {
    // A runtime's own drop blocks, and panics inside async code.
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether this runtime is shut down. Waiting on such a runtime would panic.
fn has_ended(runtime: &Handle) -> bool {
    // A running runtime has no time to finish this task. One that has ended refuses the task at once.
    let task = runtime.spawn(std::future::pending::<()>());
    let refused = task.is_finished();
    task.abort();
    refused
}

static BACKGROUND: Singleton<OnceCell<Runtime>> = Singleton::new(Room::Background);

/// The prober's runtime, one per process. [`Resource::ping`](crate::Resource::ping) runs on it, so that user code that
/// hogs the workers does not delay probes.
///
/// # Errors
/// When the process can have no more threads.
pub fn background() -> io::Result<&'static Handle> {
    // Two workers, so that a ping that blocks its thread does not stop the clock for the others.
    BACKGROUND.of(Process::current()).get_or_try_init(|| build("resource-pool-probe", 2)).map(Runtime::handle)
}

/// The longest limit. A longer one could not be added to a point in time, and this one is as good.
pub(crate) const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// The point in time at which this limit has passed.
pub(crate) fn deadline(limit: Duration) -> Instant {
    Instant::now() + limit.min(LONGEST)
}

/// A timer that any executor may poll. It belongs to the one runtime that never ends, because polling a timer of a
/// runtime that has ended panics. If the prober's runtime cannot be had, it belongs to the runtime whose context this
/// is called in.
pub fn timer(limit: Duration) -> Sleep {
    let _context = background().ok().map(Handle::enter);
    tokio::time::sleep(limit.min(LONGEST))
}

/// [`tokio::time::timeout`] that works on whichever thread first calls it.
pub(crate) async fn within<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    tokio::time::timeout(limit, future).await
}

/// Whether this thread is polling a task or `block_on` future, where blocking would stall others.
///
/// `Handle::try_current` also answers inside `spawn_blocking`, where blocking is legal. Only a polled future has a
/// cooperation budget that runs out, and that tells the two apart. A future within `tokio::task::unconstrained` has no
/// budget, so there it is not known.
pub(crate) fn is_polling() -> bool {
    if Handle::try_current().is_err() {
        return false;
    }
    let mut context = Context::from_waker(Waker::noop());
    (0..1024).any(|_| pin!(tokio::task::coop::consume_budget()).poll(&mut context).is_pending())
}

/// Builds a runtime all of whose workers run. If threads run out, tokio panics, or goes on with fewer workers than it
/// counts on, and the tasks of the missing ones wait for ever.
fn build(name: &str, workers: usize) -> io::Result<Runtime> {
    let started = Arc::new((parking_lot::Mutex::new(0), parking_lot::Condvar::new()));
    spare_threads(workers)?;
    let count = Arc::clone(&started);
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(workers).thread_name(name).enable_all().on_thread_start(move || {
        *count.0.lock() += 1;
        count.1.notify_all();
    });
    let runtime = catch_unwind(AssertUnwindSafe(|| builder.build()))
        .unwrap_or_else(|payload| Err(io::Error::other(panic_message(&*payload))))?;
    let mut running = started.0.lock();
    let until = Instant::now() + STARTED;
    while *running < workers {
        if started.1.wait_until(&mut running, until).timed_out() {
            runtime.shutdown_background();
            return Err(io::Error::other("a worker did not start"));
        }
    }
    drop(running);
    Ok(runtime)
}

/// How long the workers of a runtime may take to start. It lets an acquire that gets no threads fail within a second.
const STARTED: Duration = Duration::from_millis(900);

/// Checks that so many threads can be had now, before tokio is asked, which would panic.
fn spare_threads(count: usize) -> io::Result<()> {
    let (hold, held) = mpsc::channel::<Infallible>();
    let held = Arc::new(Mutex::new(held));
    let (ran, running) = mpsc::channel();
    let spare: io::Result<Vec<_>> = (0..count)
        .map(|_| {
            let (held, ran) = (Arc::clone(&held), ran.clone());
            std::thread::Builder::new().spawn(move || {
                let _ = ran.send(());
                let _ = held.lock().recv();
            })
        })
        .collect();
    drop(ran);
    // All threads run side by side, as tokio's will. The allocator keeps address space for each thread that runs, and
    // takes it now.
    if spare.is_ok() {
        running.iter().take(count).for_each(drop);
    }
    drop(hold);
    // The threads must be gone, or one of tokio's own might be one too many.
    for thread in spare? {
        let _ = thread.join();
    }
    Ok(())
}

/// Starts a thread that calls `call` with the value that it is sent. It is for code that blocks. If threads run out,
/// tokio panics, or leaves such code to a thread that may never be free.
///
/// # Errors
/// When the process can have no more threads.
pub(crate) fn thread<T: Send + 'static>(call: impl FnOnce(T) + Send + 'static) -> io::Result<mpsc::Sender<T>> {
    let (sender, sent) = mpsc::channel();
    std::thread::Builder::new().name("resource-pool-blocking".to_owned()).spawn(move || {
        if let Ok(sent) = sent.recv() {
            call(sent);
        }
    })?;
    Ok(sender)
}

/// Runs code that blocks on a thread of its own, or on this one if no thread can be had.
///
/// # Errors
/// The code panicked.
///
/// # Cancel safety
/// The code goes on if the future is dropped.
pub(crate) async fn apart<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    let run = move || {
        let ran = catch_unwind(AssertUnwindSafe(run));
        ran.map_err(|payload| Failure::permanent(format!("it panicked: {}", panic_message(&*payload))))
    };
    let (end, ended) = oneshot::channel();
    let call = |run: Box<dyn FnOnce() + Send>| run();
    let Ok(thread) = thread(call) else { return run() };
    // Nobody waits any more if the future was dropped.
    let _runs = thread.send(Box::new(move || drop(end.send(run()))));
    ended.await.unwrap_or_else(|_no_answer| Err(Failure::transient("its thread has ended")))
}

/// Blocks this thread until the future is done. The future must not need a runtime's context.
pub(crate) fn park_on<F: Future>(future: F) -> F::Output {
    let waker = unparker();
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Blocks this thread until the future is done. `None` once the deadline has passed.
pub(crate) fn park_until<F: Future + Unpin>(mut future: F, deadline: Instant) -> Option<F::Output> {
    let waker = unparker();
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = pin!(&mut future).poll(&mut context) {
            return Some(output);
        }
        let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        std::thread::park_timeout(left);
    }
}

fn unparker() -> Waker {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    Arc::new(Unpark(std::thread::current())).into()
}

/// Blocks this thread on a future that runs on the pool's runtime. In [`Resource::connect`](crate::Resource::connect)
/// that runtime is [`Handle::current`]. Call it on plain threads, in `spawn_blocking`, or on workers of a multi-thread
/// runtime.
///
/// # Errors
/// [`Error::InAsyncContext`] on a thread that polls a current-thread runtime.
pub fn block_on<F: Future>(resource: &Arc<str>, runtime: &Handle, future: F) -> Result<F::Output, Error> {
    block(resource, || {
        let _context = runtime.enter();
        park_on(future)
    })
}

/// Polls the future within this runtime's context, on any executor.
#[cfg(any(feature = "checkouts", feature = "requests"))]
pub(crate) async fn inside<F: Future>(runtime: &Handle, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|context| {
        let _context = runtime.enter();
        future.as_mut().poll(context)
    })
    .await
}

/// Blocks this thread where that is legal: on plain threads, in `spawn_blocking`, and on a
/// multi-thread runtime's workers, whose other tasks then move.
///
/// # Errors
/// [`Error::InAsyncContext`] on a thread that polls a current-thread runtime.
pub(crate) fn block<T>(resource: &Arc<str>, wait: impl FnOnce() -> T) -> Result<T, Error> {
    if !is_polling() {
        return Ok(wait());
    }
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => Ok(tokio::task::block_in_place(wait)),
        _ => Err(Error::InAsyncContext { resource: Arc::clone(resource) }),
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Builder;

    use super::is_polling;

    /// `is_polling` relies on tokio's budget. A tokio that changes the budget fails here.
    #[test]
    fn only_a_thread_that_polls_a_future_is_polling() {
        assert!(!is_polling(), "a plain thread");
        for runtime in [Builder::new_current_thread().build(), Builder::new_multi_thread().worker_threads(1).build()] {
            let runtime = runtime.unwrap();
            let entered = runtime.enter();
            assert!(!is_polling(), "a plain thread in the context of a runtime");
            drop(entered);
            runtime.block_on(async {
                assert!(is_polling(), "`block_on`");
                assert!(tokio::spawn(async { is_polling() }).await.unwrap(), "a task");
                assert!(!tokio::task::spawn_blocking(is_polling).await.unwrap(), "`spawn_blocking`");
                assert!(is_polling(), "`block_on`, asked again");
            });
        }
    }
}
