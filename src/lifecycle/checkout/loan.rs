//! Loans: the prober's way to a connection. It uses its own, borrows an idle one, or has room for a new one.
//!
//! If the driver does not block, the prober has a connection of its own, the spare, which is opened with the first one.
//! A spare that cannot be had proves nothing, because the server may have no room for it, or let it wait. An open
//! connection that does not answer is proof, and so is a new one after that. If there is only no room, the server is
//! not asked, because users would be cut for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock::Moment;
use crate::base::error::{Failure, Proof};
use crate::base::runtime::LONGEST;
use crate::lifecycle::checkout::core::Core;
use crate::lifecycle::checkout::entry::PooledConnection;
use crate::lifecycle::checkout::manage::{Manage, caught, limited};
use crate::lifecycle::checkout::state::{Borrowed, CloseCause, NextSpare, QueueState};
use crate::lifecycle::checkout::waiter::wake;

/// How long a ping over a borrowed connection keeps another one from being opened. If the server does not answer, no
/// waiter loses more than this.
const PING: Duration = Duration::from_millis(250);

/// A connection that the prober has, or the room for one.
pub(crate) struct Loan<M: Manage> {
    core: Arc<Core<M>>,
    entry: Option<Box<PooledConnection<M>>>,
    /// The epoch in which it was lent. In a later epoch the loan comes too late.
    epoch: u64,
    /// Whether it is the prober's own, and so not counted.
    is_spare: bool,
    /// Whether the failure of a new connection proves the server's silence. It does if the borrowed one has failed as
    /// well, or users have none.
    proves: bool,
    /// Whether the connection was open before, so that its silence is the server's.
    is_open: bool,
    /// Whether the connection may be used again after the loan.
    is_fit: bool,
    /// Nobody has asked over it, so that it tells nothing.
    is_unasked: bool,
    /// Whether it is the one that users reckon with.
    is_expected: bool,
    /// Whether the connection goes on being idle, however often it is lent like this. Such a loan tells nothing about
    /// the server.
    stays_idle: bool,
    /// Since when a connection that failed was idle, which the one in its place goes on with.
    idle_since: Option<Moment>,
}

impl<M: Manage> Core<M> {
    /// Lends the prober's own connection, the one that was idle for longest, or the room for a new one. An opening of a
    /// driver that blocks proves the server's silence if it has had no answer for `patience`.
    pub(super) fn loan(self: &Arc<Self>, patience: Duration) -> Result<Loan<M>, Failure> {
        let now = Instant::now();
        let mut state = self.state.lock();
        if let Some(entry) = state.spare.take() {
            return Ok(self.spare(&state, Some(entry)));
        }
        if !state.idle.is_empty() {
            let entry = state.idle.remove(0);
            return Ok(self.lend_idle(&mut state, entry));
        }
        let users_have_none = state.open == state.lent;
        let has_room = self.room(&state) > 0;
        let may_ask = if M::BLOCKS { has_room } else { users_have_none || state.is_silent };
        if !may_ask {
            // Openings in flight ask the server too, so that their silence counts.
            return Err(match state.unanswered.map(|since| now.saturating_duration_since(since)) {
                Some(silent) if M::BLOCKS && silent >= patience => {
                    Failure::transient(format!("a connection that is being opened has had no answer for {silent:.1?}"))
                }
                _ => Failure::unasked("all connections are in use"),
            });
        }
        if state.pausing.is_some_and(|until| now < until) && !state.is_silent {
            // The opening has asked in the prober's place. Its silence counts once, and only where users have nothing that
            // may still answer.
            return Err(match state.unheard.take().filter(|_| users_have_none) {
                Some(silence) => Failure::transient(silence),
                None => Failure::unasked("none could be opened just now"),
            });
        }
        let proves = users_have_none || state.is_silent;
        match has_room {
            true => Ok(self.lend(&mut state, None, proves)),
            false => Ok(self.spare(&state, None)),
        }
    }

    /// Lends an idle connection that is to be tested in the background by now. `None` if there is none. The last idle
    /// one is kept for users while no other one could be opened for them.
    pub(super) fn lend_untested(self: &Arc<Self>, now: Moment) -> Option<Loan<M>> {
        let after = self.limits.test_idle_after;
        if after.is_zero() {
            return None;
        }
        let mut state = self.state.lock();
        if state.idle.len() == 1 && self.room(&state) == 0 {
            return None;
        }
        let place = state.idle.iter().position(|entry| entry.unproven_for(now) >= after)?;
        let entry = state.idle.remove(place);
        let mut loan = self.lend_idle(&mut state, entry);
        loan.stays_idle = true;
        Some(loan)
    }

    /// Lends an idle connection. Users reckon with it, unless they reckon with another one that is lent.
    fn lend_idle(self: &Arc<Self>, state: &mut QueueState<M>, entry: Box<PooledConnection<M>>) -> Loan<M> {
        let is_expected = state.borrowed.is_none();
        if is_expected {
            let is_free = self.is_free(&entry, Moment::coarse());
            state.borrowed = Some(Borrowed { until: Instant::now() + PING, is_free });
        }
        let mut loan = self.lend(state, Some(entry), true);
        loan.is_expected = is_expected;
        loan
    }

    /// A loan of the prober's own connection, or of the room for it.
    fn spare(self: &Arc<Self>, state: &QueueState<M>, entry: Option<Box<PooledConnection<M>>>) -> Loan<M> {
        let is_open = entry.is_some();
        Loan {
            core: Arc::clone(self),
            entry,
            epoch: state.epoch,
            is_spare: true,
            proves: true,
            is_open,
            is_fit: false,
            is_unasked: false,
            is_expected: false,
            stays_idle: false,
            idle_since: None,
        }
    }

    /// Opens the prober's own connection, unless there is one that may stay, or none may be opened now. A failure is
    /// ignored, because it proves nothing.
    pub(super) async fn open_spare(self: Arc<Self>) {
        let Some(epoch) = self.begin_spare() else { return };
        let opened = limited::<M, _>(self.limit, async { self.manager.connect().await }).await;
        if let Ok(connection) = opened
            && let Err(late) = self.take_spare(connection, epoch)
        {
            self.disconnect(late).await;
        }
    }

    fn begin_spare(&self) -> Option<u64> {
        let mut state = self.state.lock();
        let now = Instant::now();
        let is_due = match state.next_spare {
            NextSpare::Now => true,
            NextSpare::From(from) => from <= now,
            NextSpare::Never => false,
        };
        let is_there = !state.is_closed && !state.suspended && state.refused.is_none();
        let is_fresh = state.spare.as_ref().is_some_and(|entry| !entry.is_worn(Moment::coarse()));
        if !is_due || !is_there || state.is_silent || is_fresh {
            return None;
        }
        let pause = self.limit.saturating_add(self.retry.cap).min(LONGEST);
        state.next_spare = NextSpare::From(now + pause);
        Some(state.epoch)
    }

    /// Keeps the prober's own connection. Returns it if it came too late.
    fn take_spare(self: &Arc<Self>, connection: M::Connection, epoch: u64) -> Result<(), M::Connection> {
        let mut state = self.state.lock();
        if epoch != state.epoch || state.is_closed || state.next_spare == NextSpare::Never {
            return Err(connection);
        }
        let entry = self.entry(&mut state, connection);
        if let Some(worn) = state.spare.replace(entry) {
            state.part_with(worn, CloseCause::Lifetime);
        }
        state.next_spare = NextSpare::Now;
        self.settle(state);
        Ok(())
    }

    /// Lends the room for the first connection of a new epoch.
    pub(super) fn first(self: &Arc<Self>) -> Loan<M> {
        let mut state = self.state.lock();
        // A connection of an earlier attempt comes too late from here on.
        let woken = state.end(CloseCause::Lost);
        let loan = self.lend(&mut state, None, true);
        self.settle(state);
        wake(woken);
        loan
    }

    pub(super) fn lend(
        self: &Arc<Self>,
        state: &mut QueueState<M>,
        entry: Option<Box<PooledConnection<M>>>,
        proves: bool,
    ) -> Loan<M> {
        state.lent += 1;
        state.open += usize::from(entry.is_none());
        let is_open = entry.is_some();
        Loan {
            core: Arc::clone(self),
            entry,
            epoch: state.epoch,
            is_spare: false,
            proves,
            is_open,
            is_fit: false,
            is_unasked: false,
            is_expected: false,
            stays_idle: false,
            idle_since: None,
        }
    }
}

impl<M: Manage> Loan<M> {
    pub(crate) fn resource(&self) -> &Arc<str> {
        &self.core.resource
    }

    /// Gives the connection back without having asked over it.
    pub(crate) fn give_back(mut self) {
        (self.is_fit, self.is_unasked) = (self.entry.is_some(), true);
    }

    /// Asks whether the server answers. A borrowed connection may have ended for a reason of its own. If it does not
    /// answer, a new one is asked, which takes its place.
    pub(crate) async fn ask(mut self) -> Result<(), Failure> {
        let core = Arc::clone(&self.core);
        if let Some(entry) = &mut self.entry {
            let answer = caught(core.manager.is_valid(&mut entry.connection)).await;
            let Err(failure) = answer else {
                self.is_fit = true;
                return Ok(());
            };
            if self.is_spare && is_answer(failure.proof()) {
                // The server answers on it that it cannot serve, or that this user may not ask.
                self.is_fit = true;
                return Err(failure);
            }
            self.part(&failure)?;
            if self.is_spare {
                return Err(Failure::unasked(failure.source));
            }
        }
        let opened = caught(async { core.manager.connect().await }).await;
        if let Err(late) = self.take(opened)? {
            core.disconnect(late).await;
            return Err(too_late());
        }
        let Some(entry) = &mut self.entry else { return Err(too_late()) };
        let answer = caught(core.manager.is_valid(&mut entry.connection)).await;
        self.is_fit = answer.is_ok();
        answer.map_err(|failure| self.told(failure))
    }

    /// Has the connection that failed closed, which makes room for a new one. Fails if another connection has come
    /// since.
    fn part(&mut self, failure: &Failure) -> Result<(), Failure> {
        // Outside of the lock: to judge a failure runs code of the driver's errors.
        let proof = failure.proof();
        let mut state = self.core.state.lock();
        self.is_open = false;
        let is_late = self.epoch != state.epoch;
        let is_expected = std::mem::take(&mut self.is_expected);
        let woken = if is_expected && !is_late { state.let_down() } else { None };
        if !is_late && proof != Proof::Unasked && !self.stays_idle {
            state.is_silent = proof == Proof::Silent;
        }
        if let Some(failed) = self.entry.take() {
            self.idle_since = failed.idle;
            state.part_with(failed, CloseCause::Broken);
        }
        self.core.settle(state);
        wake(woken);
        if is_late { Err(too_late()) } else { Ok(()) }
    }

    /// Takes the new connection. Returns it if it came too late.
    fn take(&mut self, opened: Result<M::Connection, Failure>) -> Result<Result<(), M::Connection>, Failure> {
        // Outside of the lock, as above.
        let is_answer = opened.as_ref().is_err_and(|failure| is_answer(failure.proof()));
        let mut state = self.core.state.lock();
        let is_late = self.epoch != state.epoch;
        match opened {
            Ok(late) if is_late => Ok(Err(late)),
            Ok(connection) => {
                state.unheard = None;
                let mut entry = self.core.entry(&mut state, connection);
                entry.idle = self.idle_since;
                self.entry = Some(entry);
                Ok(Ok(()))
            }
            Err(failure) => {
                if !is_late && !self.is_spare {
                    self.core.set_back(&mut state);
                }
                if !is_late && is_answer {
                    state.is_silent = false;
                    // Users have their connections, and the server answers.
                    self.proves &= !self.is_spare;
                }
                Err(self.told(failure))
            }
        }
    }

    /// The failure of a new connection, reduced to [`Failure::unasked`] unless it proves something about the server.
    fn told(&self, failure: Failure) -> Failure {
        if self.proves { failure } else { Failure::unasked(failure.source) }
    }
}

/// Whether a failure is an answer of the server's.
fn is_answer(proof: Proof) -> bool {
    matches!(proof, Proof::Refused | Proof::Limited)
}

fn too_late() -> Failure {
    Failure::unasked("there is another connection by now, or none any more")
}

impl<M: Manage> Drop for Loan<M> {
    fn drop(&mut self) {
        let core = Arc::clone(&self.core);
        let mut state = core.state.lock();
        let is_present = self.epoch == state.epoch;
        let is_useful = is_present && self.is_fit && !state.is_closed;
        let counts = is_present && !self.is_spare;
        state.lent -= usize::from(counts);
        if is_present && !self.is_unasked && !self.stays_idle && (self.is_fit || self.is_open) {
            // A connection whose ping was given up has not answered.
            state.is_silent = !self.is_fit;
        }
        if let Some(entry) = &mut self.entry
            && self.is_fit
            && !self.is_unasked
        {
            entry.tested = Some(Moment::coarse());
            entry.idle = entry.idle.filter(|_| self.stays_idle);
        }
        let woken = match self.entry.take() {
            Some(entry) if is_useful && self.is_spare => {
                if let Some(other) = state.spare.replace(entry) {
                    state.part_with(other, CloseCause::Surplus);
                }
                None
            }
            // After a loss, users may still have as many connections as there may be.
            Some(entry) if is_useful && state.open <= state.max => state.hand_over(entry, false),
            entry => {
                state.open -= usize::from(counts);
                if let Some(entry) = entry {
                    state.part_with(entry, if is_useful { CloseCause::Surplus } else { CloseCause::Broken });
                }
                None
            }
        };
        let let_down = if is_present && self.is_expected { state.let_down() } else { None };
        core.settle(state);
        wake(woken);
        wake(let_down);
    }
}

#[cfg(all(test, not(model)))]
mod tests;
