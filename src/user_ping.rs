//! Pings of users' own kinds. Their code may block, so each ping has a thread of its own, and the prober's threads are
//! left to the clock and to the built-in kinds.

use std::convert::Infallible;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use crate::error::Failure;
use crate::slot::BoxFuture;

/// The pings of one resource that run now.
#[derive(Default)]
pub(crate) struct UserPings(Arc<AtomicUsize>);

/// One for the prober and one for the health check. A ping that never comes back keeps its thread, so there are no more.
const MOST: usize = 2;

impl UserPings {
    /// The same ping on a thread of its own. Dropping it ends a ping that waits, but not one that blocks.
    pub(crate) fn on_own_thread(&self, ping: BoxFuture<Result<(), Failure>>) -> BoxFuture<Result<(), Failure>> {
        let more = |running| (running < MOST).then_some(running + 1);
        if self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            let problem = format!("{MOST} earlier pings have not come back; a ping must not block its thread");
            return Box::pin(async { Err(Failure::transient(problem)) });
        }
        let turn = Turn(Arc::clone(&self.0));
        Box::pin(async move {
            let (_waits, given_up) = oneshot::channel::<Infallible>();
            let call = spawn_blocking(move || {
                let _turn = turn;
                Handle::current().block_on(async {
                    tokio::select! {
                        answer = ping => answer,
                        _ = given_up => Err(Failure::unasked("nobody waits for this ping")),
                    }
                })
            });
            match call.await {
                Ok(answer) => answer,
                Err(join) if join.is_panic() => resume_unwind(join.into_panic()),
                Err(_) => Err(Failure::unasked("the prober has ended")),
            }
        })
    }
}

/// Counts as running until it drops.
struct Turn(Arc<AtomicUsize>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
