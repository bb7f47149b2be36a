//! Pings of users' own kinds. Their code may block, so each ping has a thread of its own, and the prober's threads are
//! left to the clock and to the built-in kinds.

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

/// The pings of one resource that run now.
#[derive(Default)]
pub(crate) struct UserPings {
    /// Those of the present generation.
    present: Mutex<Arc<AtomicUsize>>,
    /// All, those that hang on what is lost included.
    all: Arc<AtomicUsize>,
}

/// One for the prober and one for the health check. A ping that never comes back keeps its thread, so there are no more.
const MOST: usize = 2;
/// So many threads may hang on generations that are lost, as [`MOST`] on each.
const MOST_OF_ALL: usize = 4 * MOST;

impl UserPings {
    /// Pings that hang on what was lost prove nothing about what has come in its place.
    pub(crate) fn begin_generation(&self) {
        *self.present.lock() = Arc::default();
    }

    /// The same ping on a thread of its own. Dropping it ends a ping that waits, but not one that blocks.
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
                // Before the answer, which may have the next ping begin.
                drop((turn, of_all));
                // Nobody may wait for it any more.
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

/// Counts as running until it drops.
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
