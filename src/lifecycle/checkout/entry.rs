//! A connection among those that are checked out one by one, and its age.

use std::time::Duration;

use crate::base::clock::Moment;
use crate::base::error::Source;
use crate::lifecycle::checkout::manage::Manage;

/// What fails its first test this soon counts as not opened: a server that takes connections and then drops them is not
/// to be asked without a pause. What is older has ended for a reason of its own.
pub(super) const YOUNG: Duration = Duration::from_secs(1);

/// A connection that is open, with what is known of it.
pub(crate) struct PooledConnection<M: Manage> {
    pub(super) connection: M::Connection,
    /// When it was last.
    pub(super) checked_out: Option<Moment>,
    pub(super) opened: Moment,
    /// How long it may be used.
    pub(super) lifetime: Duration,
    /// When it was first seen lying idle.
    pub(super) idle: Option<Moment>,
    /// The epoch in which it was opened.
    pub(super) epoch: u64,
}

impl<M: Manage> PooledConnection<M> {
    #[inline]
    pub(super) fn is_worn(&self, now: Moment) -> bool {
        now.since(self.opened) >= self.lifetime
    }

    /// Whether it was opened in vain, if it is unfit.
    pub(super) fn is_fresh(&self, now: Moment) -> bool {
        self.checked_out.is_none() && now.since(self.opened) < YOUNG
    }
}

/// One that is not to be used, and what its test said.
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
