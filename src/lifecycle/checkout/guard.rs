//! The guard of an exclusive checkout, which its user holds.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
#[cfg(feature = "metrics")]
use std::time::Instant;

#[cfg(feature = "r2d2")]
use r2d2::ManageConnection;

use crate::base::error::Error;
#[cfg(feature = "metrics")]
use crate::lifecycle::activity::Activity;
#[cfg(feature = "r2d2")]
use crate::lifecycle::checkout::adapted::Adapted;
use crate::lifecycle::checkout::checkouts::Checkouts;
use crate::lifecycle::checkout::manage::Manage;
use crate::lifecycle::checkout::queue::Taken;
use crate::lifecycle::lease::Lease;
#[cfg(feature = "metrics")]
use crate::lifecycle::measured::Measure;

/// A connection in the hands of its only user. It derefs to the connection. The connection goes back when this drops.
/// If the driver says that it is broken, a task or a thread of the pool closes it instead.
#[must_use = "the connection goes back when this drops"]
pub struct Checkout<M: Manage> {
    taken: Taken<M>,
    #[cfg(feature = "metrics")]
    _use: UseTimer,
    /// Lists this checkout among the holders.
    pub(crate) lease: Lease<Checkouts<M>>,
}

impl<M: Manage> Checkout<M> {
    /// Takes a connection that is free now and needs no test. `None` if there is none.
    #[inline]
    pub(crate) fn now(lease: Lease<Checkouts<M>>) -> Option<Self> {
        let entry = lease.core.try_get()?;
        Some(Checkout::of(Taken::new(&lease.core, entry, lease.link.process), lease))
    }

    #[inline]
    fn of(taken: Taken<M>, lease: Lease<Checkouts<M>>) -> Self {
        Checkout {
            #[cfg(feature = "metrics")]
            _use: UseTimer::start(Lease::activity(&lease)),
            taken,
            lease,
        }
    }

    /// Closes the connection instead of giving it back, because its user knows that it is of no more use. Its place is
    /// free at once. A task or a thread of the pool disconnects it. In a forked child the connection is left alone.
    pub fn discard(mut self) {
        self.taken.discard();
    }

    /// Takes the connection out of the pool. Its place is free at once, so the server may have one connection more than
    /// there may be here.
    ///
    /// The caller owns the connection from then on. The pool neither counts, tests nor closes it, and closing does not
    /// wait for it: to end a connection that somebody has taken over on purpose would surprise more than to leave it
    /// open. It ends when it drops. Parts of the pool that the driver itself has put into it stay there. So a kill
    /// switch still cuts it, and a socket on the pool's runtime ends with that.
    ///
    /// # Errors
    /// [`Error::Forked`] in a forked child, whose parent has the connection.
    pub fn detach(mut self) -> Result<M::Connection, Error> {
        self.taken.detach()
    }

    /// The checkouts that this one belongs to.
    pub fn checkouts(&self) -> &Checkouts<M> {
        &self.lease
    }
}

#[cfg(feature = "r2d2")]
impl<M: ManageConnection> Checkout<Adapted<M>> {
    /// Lends the connection to a closure, and gives it back after that. Only this thread can free a connection that it
    /// has lent to a closure. A wait for it on this thread is therefore [`Error::Deadlock`](crate::Error::Deadlock) at
    /// once, instead of a timeout later.
    pub fn lend<T>(mut self, run: impl FnOnce(&mut M::Connection) -> T) -> T {
        let _lending = self.lease.quota.lend();
        run(&mut self)
    }
}

/// The time for which a checkout is out. The pool's meter is told as this drops. It holds nothing if there is no meter,
/// and the box has it cost a checkout little then.
#[cfg(feature = "metrics")]
struct UseTimer(Option<Box<(Instant, Arc<Activity>)>>);

#[cfg(feature = "metrics")]
impl UseTimer {
    #[inline]
    fn start(activity: &Arc<Activity>) -> Self {
        UseTimer(activity.metered().map(|began| Box::new((began, Arc::clone(activity)))))
    }
}

#[cfg(feature = "metrics")]
impl Drop for UseTimer {
    #[inline]
    fn drop(&mut self) {
        if let Some((began, activity)) = self.0.take().map(|timed| *timed) {
            activity.measure(began.elapsed(), Measure::Checkout, 1, true);
        }
    }
}

impl<M: Manage> fmt::Debug for Checkout<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkout").field("lease", &self.lease).finish_non_exhaustive()
    }
}

impl<M: Manage> Deref for Checkout<M> {
    type Target = M::Connection;
    fn deref(&self) -> &M::Connection {
        match &self.taken.entry {
            Some(entry) => &entry.connection,
            None => unreachable!("only its drop takes it"),
        }
    }
}

impl<M: Manage> DerefMut for Checkout<M> {
    fn deref_mut(&mut self) -> &mut M::Connection {
        match &mut self.taken.entry {
            Some(entry) => &mut entry.connection,
            None => unreachable!("only its drop takes it"),
        }
    }
}

impl<M: Manage> Taken<M> {
    /// Puts the connection under this lease. `None` if the resource was lost, or closed and connected anew, since it
    /// was taken.
    pub(crate) fn under(self, lease: Lease<Checkouts<M>>) -> Option<Checkout<M>> {
        let epoch = self.entry.as_ref().map(|entry| entry.epoch);
        let mut state = self.core.state.lock();
        let is_present = Arc::ptr_eq(&self.core, &lease.core) && epoch == Some(state.epoch);
        state.acquires += u64::from(is_present);
        drop(state);
        is_present.then(|| Checkout::of(self, lease))
    }
}
