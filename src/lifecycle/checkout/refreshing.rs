//! The replacement of all connections while users have them.
//!
//! A new connection is opened and tested first, so that users keep theirs if the server cannot be reached. Invariant: at
//! most one such opening is in flight, because it holds `Checkouts::refreshing` until it ends, even if its caller has
//! given up. The lock of the core is taken after that.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{OwnedMutexGuard, oneshot};

use crate::base::error::{Error, Failure};
use crate::base::runtime::{park_on, thread, timer};
use crate::lifecycle::checkout::checkouts::Checkouts;
use crate::lifecycle::checkout::core::Core;
use crate::lifecycle::checkout::manage::{Manage, limited};
use crate::lifecycle::checkout::state::CloseCause;
use crate::lifecycle::checkout::waiter::wake;

impl<M: Manage> Checkouts<M> {
    /// Replaces all connections once a new one is open and has passed its test. Idle ones are closed then, and others as
    /// they come back. If the server has no room for the new one, the prober's own connection is closed first. The
    /// others are replaced all the same if there is still no room. Only PostgreSQL and MySQL can tell that.
    ///
    /// # Errors
    /// The driver's failure. It replaces none.
    ///
    /// # Cancel safety
    /// The connection that is being opened is closed, and none is replaced.
    pub async fn refresh(&self) -> Result<(), Failure> {
        let Ok(turn) = Arc::clone(&self.refreshing).try_lock_owned() else {
            return Err(Failure::transient("another refresh is under way"));
        };
        let epoch = self.core.state.lock().epoch;
        let opened = match M::BLOCKS {
            true => open_on_thread(self.core(), turn).await,
            false => {
                let _turn = turn;
                self.core.open_proven().await
            }
        };
        match opened {
            Ok(new) => self.core.renew(Some(new), epoch),
            Err(failure) if failure.is_full => self.core.renew(None, epoch),
            Err(failure) => return Err(failure),
        }
        Ok(())
    }
}

/// Opens and tests a connection on a thread that may hang. A connection that comes too late is closed there.
async fn open_on_thread<M: Manage>(core: Arc<Core<M>>, turn: OwnedMutexGuard<()>) -> Result<M::Connection, Failure> {
    let (name, runtime) = (Arc::clone(&core.resource), Handle::current());
    let (answer, answered) = oneshot::channel();
    let call = move |core: Arc<Core<M>>| {
        let _context = runtime.enter();
        let opened = park_on(core.open_proven());
        drop(turn);
        if let Err(Ok(late)) = answer.send(opened) {
            park_on(core.disconnect(late));
        }
    };
    let thread = thread(call).map_err(|error| Failure::unasked(Error::no_threads(&name, error)))?;
    drop(thread.send(core));
    answered.await?
}

impl<M: Manage> Core<M> {
    /// Opens a connection, and tests it. If the server has no room for it, the prober's own connection goes first.
    async fn open_proven(self: &Arc<Self>) -> Result<M::Connection, Failure> {
        match self.open_tested().await {
            Err(failure) if failure.is_full && self.close_spare() => {
                // The server takes a moment to free the place.
                timer(self.retry.pause(1)).await;
                self.open_tested().await
            }
            opened => opened,
        }
    }

    /// Closes the prober's own connection. Returns whether there was one.
    fn close_spare(self: &Arc<Self>) -> bool {
        let mut state = self.state.lock();
        let was_there = state.spare.is_some();
        state.forgo_spare();
        self.settle(state);
        was_there
    }

    async fn open_tested(&self) -> Result<M::Connection, Failure> {
        let mut new = limited::<M, _>(self.limit, async { self.manager.connect().await }).await?;
        let tested = limited::<M, _>(self.limit, async { self.manager.is_valid(&mut new).await }).await;
        match tested {
            Ok(()) => Ok(new),
            Err(failure) => {
                self.disconnect(new).await;
                Err(failure)
            }
        }
    }

    /// Ends this epoch. The next one begins with this connection, if there is room for it. If the epoch has ended
    /// meanwhile, its connections are replaced already, and this one is closed.
    pub(super) fn renew(self: &Arc<Self>, new: Option<M::Connection>, epoch: u64) {
        let mut state = self.state.lock();
        let is_served = epoch == state.epoch && !state.is_closed && !state.suspended && state.refused.is_none();
        let let_down = if is_served { state.end(CloseCause::Refreshed) } else { None };
        let mut woken = None;
        if let Some(new) = new {
            let entry = self.entry(&mut state, new);
            if is_served && state.open < state.max {
                state.open += 1;
                woken = state.hand_over(entry, true);
            } else {
                state.part_with(entry, CloseCause::Surplus);
            }
        }
        self.settle(state);
        wake(let_down);
        wake(woken);
    }
}
