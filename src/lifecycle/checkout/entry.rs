//! A connection among those that are checked out one by one, and its age.

use std::time::Duration;

use crate::base::clock::Moment;
use crate::base::error::Source;
use crate::lifecycle::checkout::manage::Manage;

/// A connection that fails its first test this soon counts as not opened. A server that takes connections and then
/// drops them must not be asked without a pause. An older connection has ended for a reason of its own.
pub(super) const YOUNG: Duration = Duration::from_secs(1);

/// An open connection, with the times that its fitness depends on.
pub(crate) struct PooledConnection<M: Manage> {
    pub(super) connection: M::Connection,
    /// When it was last checked out. `None` if it never was.
    pub(super) checked_out: Option<Moment>,
    pub(super) opened: Moment,
    /// How long it may be used.
    pub(super) lifetime: Duration,
    /// When it was first seen lying idle. `None` if it was not seen so since it came back.
    pub(super) idle: Option<Moment>,
    /// When it last passed a test while nobody used it. `None` if it has passed none.
    pub(super) tested: Option<Moment>,
    /// The epoch in which it was opened.
    pub(super) epoch: u64,
}

impl<M: Manage> PooledConnection<M> {
    #[inline]
    pub(super) fn is_worn(&self, now: Moment) -> bool {
        now.since(self.opened) >= self.lifetime
    }

    /// How long it has been neither opened, checked out nor tested.
    pub(super) fn unproven_for(&self, now: Moment) -> Duration {
        let proofs = [Some(self.opened), self.checked_out, self.tested];
        proofs.into_iter().flatten().map(|proof| now.since(proof)).min().unwrap_or_default()
    }

    /// Whether it was opened in vain, in case it is unfit.
    pub(super) fn is_fresh(&self, now: Moment) -> bool {
        self.checked_out.is_none() && now.since(self.opened) < YOUNG
    }
}

/// A connection that is not to be used. The cause is the failure of its test, and `None` if that has not failed.
pub(crate) struct Rejected<M: Manage> {
    pub(super) entry: Box<PooledConnection<M>>,
    pub(super) cause: Option<Source>,
}

#[cfg(model)]
impl<M: Manage> PooledConnection<M> {
    pub(crate) fn spoil(&mut self, spoil: impl FnOnce(&mut M::Connection)) {
        spoil(&mut self.connection);
    }
}
