//! Pings of users' own kinds. Their code may block, so each ping has a thread of its own. The prober's threads are left
//! to the clock and to the built-in kinds.
//!
//! A slot calls [`UserPings::on_own_thread`] for each ping. A ping that blocks for ever keeps its thread, so the pings
//! in flight are limited: those of a generation, and those of all generations.
//!
//! `present` is the only lock, and no user code runs under it. The atomics only count pings, so their ordering is
//! relaxed.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::base::error::{Error, Failure};
use crate::base::future::BoxFuture;
use crate::base::runtime::thread;

/// The numbers of pings of one resource in flight.
#[derive(Default)]
pub(crate) struct UserPings {
    /// The pings of the present generation.
    present: Mutex<Arc<AtomicUsize>>,
    /// All pings, including those that hang on a lost generation.
    all: Arc<AtomicUsize>,
}

/// The most pings of one generation: one for the prober and one for the health check. A ping that never comes back
/// keeps its thread, so there are no more.
const MOST: usize = 2;
/// The most pings of all generations. Up to [`MOST`] threads may hang on each generation that is lost.
const MOST_OF_ALL: usize = 4 * MOST;

impl UserPings {
    /// Begins to count anew. Pings that hang on a lost generation prove nothing about the one in its place.
    pub(crate) fn begin_generation(&self) {
        *self.present.lock() = Arc::default();
    }

    /// Runs a ping on a thread of its own. Dropping the future ends a ping that waits, but not one that blocks.
    pub(crate) fn on_own_thread(
        &self,
        resource: &Arc<str>,
        ping: BoxFuture<Result<(), Failure>>,
    ) -> BoxFuture<Result<(), Failure>> {
        let Some(of_all) = Turn::begin(&self.all, MOST_OF_ALL) else {
            let problem =
                format!("{MOST_OF_ALL} pings of lost connections have not come back; none is sent until one does");
            return Box::pin(async { Err(Failure::unasked(problem)) });
        };
        let Some(turn) = Turn::begin(&self.present.lock(), MOST) else {
            let problem = format!("{MOST} earlier pings have not come back; a ping must not block its thread");
            return Box::pin(async { Err(Failure::transient(problem)) });
        };
        let resource = Arc::clone(resource);
        Box::pin(async move {
            let (_waits, given_up) = oneshot::channel::<Infallible>();
            let (answer, answered) = oneshot::channel();
            let runtime = Handle::current();
            let call = move |ping| {
                let asked = async {
                    tokio::select! {
                        answer = ping => answer,
                        _ = given_up => Err(Failure::unasked("nobody waits for this ping")),
                    }
                };
                let asked = catch_unwind(AssertUnwindSafe(|| runtime.block_on(asked)));
                // Dropped before the answer is sent, since the answer may begin the next ping.
                drop((turn, of_all));
                // The send fails if the caller no longer waits.
                let _ = answer.send(asked);
            };
            match thread(call) {
                Ok(thread) => drop(thread.send(ping)),
                Err(error) => return Err(Failure::unasked(Error::no_threads(&resource, error))),
            }
            match answered.await {
                Ok(Ok(answer)) => answer,
                Ok(Err(panic)) => resume_unwind(panic),
                Err(_) => Err(Failure::unasked("its thread has ended")),
            }
        })
    }
}

/// Counts a ping as in flight until it drops.
struct Turn(Arc<AtomicUsize>);

impl Turn {
    fn begin(running: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let more = |running| (running < most).then_some(running + 1);
        running.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Turn(Arc::clone(running)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
