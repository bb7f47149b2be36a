//! The way from `Closed` back to `Idle`, which a retired resource no longer takes.

use crate::base::sync::MutexGuard;
use crate::lifecycle::life::{Life, LifeState};
use crate::lifecycle::status::State;

impl<H: Clone + Send + Sync + 'static> Life<H> {
    /// Returns to `Idle`, if closed.
    pub(crate) fn reopen(&self) {
        let inner = self.inner.lock();
        if inner.state == State::Closed {
            self.reset(inner);
        }
    }

    pub(super) fn reset(&self, mut inner: MutexGuard<'_, LifeState<H>>) {
        if inner.is_retired {
            return;
        }
        inner.recovering = false;
        inner.died_young = 0;
        inner.leasing_ended_outside = false;
        inner.leasing_ended = false;
        inner.forget_failure();
        inner.set(State::Idle);
        self.activity.set_draining(false);
        let _told = self.changed(inner, ());
    }

    /// Stays closed from now on. Returns `false` if it is connected, or about to be, as after a reconnect.
    pub(crate) fn retire(&self) -> bool {
        let mut inner = self.inner.lock();
        if inner.state == State::Idle {
            inner.set(State::Closed);
        }
        inner.is_retired = inner.state == State::Closed;
        let is_retired = inner.is_retired;
        let _told = self.changed(inner, ());
        is_retired
    }
}
