//! The queue in which users wait for a connection, and the connection that one of them got.

use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;

use crate::base::error::{Error, Source};
use crate::base::process::Process;
use crate::base::runtime::{block, deadline, inside, park_on};
use crate::lifecycle::checkout::core::Core;
use crate::lifecycle::checkout::entry::PooledConnection;
use crate::lifecycle::checkout::manage::Manage;
use crate::lifecycle::checkout::waiter::Refusal;
use crate::lifecycle::checkout::waiting::Ended;
use crate::lifecycle::lease::Claim;
use crate::lifecycle::link::Link;
use crate::lifecycle::wait::{Quota, Wait};

/// A connection that was taken out. It goes back when this drops.
pub(crate) struct Taken<M: Manage> {
    pub(super) core: Arc<Core<M>>,
    pub(super) entry: Option<Box<PooledConnection<M>>>,
    pub(super) process: &'static Process,
}

impl<M: Manage> Taken<M> {
    #[inline]
    pub(super) fn new(core: &Arc<Core<M>>, entry: Box<PooledConnection<M>>, process: &'static Process) -> Self {
        Taken { core: Arc::clone(core), entry: Some(entry), process }
    }

    /// Has the connection closed. In a forked child the drop leaves it alone.
    pub(super) fn discard(&mut self) {
        if let Some(entry) = self.entry.take_if(|_| self.process.is_current()) {
            self.core.close_discarded(entry);
        }
    }

    /// The connection, which no longer belongs to the core.
    pub(super) fn detach(&mut self) -> Result<M::Connection, Error> {
        self.process.check()?;
        match self.entry.take() {
            Some(entry) => Ok(self.core.detach(*entry)),
            None => unreachable!("only its drop takes it"),
        }
    }
}

impl<M: Manage> Drop for Taken<M> {
    fn drop(&mut self) {
        let Some(entry) = self.entry.take() else { return };
        if self.process.is_current() {
            self.core.put(entry);
        } else {
            // A deliberate leak: in a forked child the connection is the parent's, and the driver's drop would end it.
            std::mem::forget(entry);
        }
    }
}

/// The place to wait for a connection. A user who waits in it holds no lease.
pub(crate) struct CheckoutQueue<M: Manage> {
    pub(super) core: Arc<Core<M>>,
    pub(super) quota: Arc<Quota>,
    pub(super) link: Link,
    pub(super) runtime: Handle,
}

impl<M: Manage> CheckoutQueue<M> {
    /// Waits for a connection, if this thread may block. The claim is that of the waiting user. `None` means that the
    /// resource can tell why there is none, so that it has to be acquired anew.
    ///
    /// # Errors
    /// [`Error::Timeout`] with the holders, and the reason why none could be opened; the reason why there are none at
    /// all; [`Error::Deadlock`]; [`Error::InAsyncContext`].
    pub(crate) fn take_blocking(self, claim: Claim, deadline: Instant) -> Result<Option<Taken<M>>, Error> {
        let wait = self.quota.wait(claim)?;
        let got = match block(&self.core.resource, || park_on(self.core.get(deadline))) {
            Ok(got) => got,
            Err(may_not_wait) => park_on(self.core.regain(deadline)).ok_or(may_not_wait)?,
        };
        self.taken(got, wait)
    }

    /// Waits for a connection in a task, and otherwise does the same.
    ///
    /// # Cancel safety
    /// A user who stops waiting leaves the queue. A connection that it was given meanwhile goes back.
    pub(crate) async fn take(self, claim: Claim, deadline: Instant) -> Result<Option<Taken<M>>, Error> {
        let wait = self.quota.wait(claim)?;
        let got = inside(&self.runtime, self.core.get(deadline)).await;
        self.taken(got, wait)
    }

    /// Takes an idle connection on a thread, without a wait for other users. A thread that may not block gets only one
    /// that needs no test. `None` if there is none.
    ///
    /// # Errors
    /// The reason why there are none at all.
    pub(crate) fn try_take_blocking(self) -> Result<Option<Taken<M>>, Error> {
        let end = deadline(self.link.connect_timeout);
        let got = block(&self.core.resource, || park_on(self.core.try_take(end)))
            .unwrap_or_else(|_may_not_block| park_on(self.core.try_regain()));
        self.tried(got)
    }

    /// Takes an idle connection in a task, and otherwise does the same.
    ///
    /// # Cancel safety
    /// A connection that is being tested is closed.
    pub(crate) async fn try_take(self) -> Result<Option<Taken<M>>, Error> {
        let end = deadline(self.link.connect_timeout);
        let got = inside(&self.runtime, self.core.try_take(end)).await;
        self.tried(got)
    }

    fn tried(&self, got: Option<Result<Box<PooledConnection<M>>, Ended>>) -> Result<Option<Taken<M>>, Error> {
        match got {
            Some(Ok(entry)) => Ok(Some(Taken::new(&self.core, entry, self.link.process))),
            Some(Err(Ended::Refused(Refusal::Because(error)))) => Err(error),
            Some(Err(_)) | None => Ok(None),
        }
    }

    fn taken(&self, got: Result<Box<PooledConnection<M>>, Ended>, wait: Wait) -> Result<Option<Taken<M>>, Error> {
        match got {
            Ok(entry) => Ok(Some(Taken::new(&self.core, entry, self.link.process))),
            Err(Ended::Refused(Refusal::AskAnew)) => Ok(None),
            Err(Ended::Refused(Refusal::Because(error))) => Err(error),
            Err(Ended::Refused(Refusal::MayNotWait)) => {
                Err(Error::InAsyncContext { resource: Arc::clone(&self.core.resource) })
            }
            Err(Ended::TimedOut(cause)) => {
                let trouble = || self.link.failure().map(|error| Arc::new(error) as Source);
                Err(wait.timed_out("", None, cause.or_else(trouble)))
            }
        }
    }
}
