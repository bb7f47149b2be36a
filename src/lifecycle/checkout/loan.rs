//! The prober's own way to a connection: it borrows one that lies idle, or has room for a new one.
//!
//! Of a driver that does not block the prober has one of its own, its spare, which is opened with the first. That it cannot
//! be had proves nothing, for the server may have no room for it, or let it wait. A connection that was open and does not answer
//! is proof, and so is a new one after that. Nobody is asked for want of room alone, since users would be cut for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock::Moment;
use crate::base::error::{Failure, Proof};
use crate::base::runtime::LONGEST;
use crate::lifecycle::checkout::core::Core;
use crate::lifecycle::checkout::entry::PooledConnection;
use crate::lifecycle::checkout::manage::{Manage, caught, limited};
use crate::lifecycle::checkout::state::{Borrowed, NextSpare, State};
use crate::lifecycle::checkout::waiter::wake;

/// For so long a ping of the prober's keeps another connection from being opened. Where the server does not answer, nobody
/// who waits loses more than that.
const PING: Duration = Duration::from_millis(250);

/// A connection that the prober has, or room for one.
pub(crate) struct Loan<M: Manage> {
    core: Arc<Core<M>>,
    entry: Option<Box<PooledConnection<M>>>,
    /// The epoch in which it was lent.
    epoch: u64,
    /// Whether it is the prober's own, and so not counted.
    is_spare: bool,
    /// Whether a failure of a new one proves the server's silence: what is borrowed has failed as well, or users have none.
    proves: bool,
    /// Whether it was open before, so that its silence is the server's.
    is_open: bool,
    is_fit: bool,
}

impl<M: Manage> Core<M> {
    /// The prober's own connection, the one that was idle for longest, or room for a new one.
    pub(super) fn loan(self: &Arc<Self>, patience: Duration) -> Result<Loan<M>, Failure> {
        let now = Instant::now();
        let mut state = self.state.lock();
        if let Some(entry) = state.spare.take() {
            return Ok(self.spare(&state, Some(entry)));
        }
        if !state.idle.is_empty() {
            let entry = state.idle.remove(0);
            state.borrowed = Some(Borrowed { until: now + PING, is_free: self.is_free(&entry, Moment::coarse()) });
            return Ok(self.lend(&mut state, Some(entry), true));
        }
        let users_have_none = state.open == state.lent;
        let has_room = self.room(&state) > 0;
        let may_ask = if M::BLOCKS { has_room } else { users_have_none || state.is_silent };
        if !may_ask {
            // Openings ask the server, too.
            return Err(match state.unanswered.map(|since| now.saturating_duration_since(since)) {
                Some(silent) if M::BLOCKS && silent >= patience => {
                    Failure::transient(format!("a connection that is being opened has had no answer for {silent:.1?}"))
                }
                _ => Failure::unasked("all connections are in use"),
            });
        }
        if state.pausing.is_some_and(|until| now < until) && !state.is_silent {
            return Err(Failure::unasked("none could be opened just now"));
        }
        let proves = users_have_none || state.is_silent;
        match has_room {
            true => Ok(self.lend(&mut state, None, proves)),
            false => Ok(self.spare(&state, None)),
        }
    }

    /// The prober's own, or room for it.
    fn spare(self: &Arc<Self>, state: &State<M>, entry: Option<Box<PooledConnection<M>>>) -> Loan<M> {
        let is_open = entry.is_some();
        Loan { core: Arc::clone(self), entry, epoch: state.epoch, is_spare: true, proves: true, is_open, is_fit: false }
    }

    /// Opens the prober's own if there is none that may stay, and one may be opened now. That it is not to be had is nobody's business.
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

    /// Keeps the prober's own. One that is nobody's comes back.
    fn take_spare(self: &Arc<Self>, connection: M::Connection, epoch: u64) -> Result<(), M::Connection> {
        let mut state = self.state.lock();
        if epoch != state.epoch || state.is_closed || state.next_spare == NextSpare::Never {
            return Err(connection);
        }
        let entry = self.entry(&mut state, connection);
        let replaced = state.spare.replace(entry);
        state.next_spare = NextSpare::Now;
        state.leaving.extend(replaced);
        self.settle(state);
        Ok(())
    }

    /// Room for the first of all.
    pub(super) fn first(self: &Arc<Self>) -> Loan<M> {
        let mut state = self.state.lock();
        // What an earlier attempt brings is too late.
        let woken = state.end();
        let loan = self.lend(&mut state, None, true);
        self.settle(state);
        wake(woken);
        loan
    }

    pub(super) fn lend(
        self: &Arc<Self>,
        state: &mut State<M>,
        entry: Option<Box<PooledConnection<M>>>,
        proves: bool,
    ) -> Loan<M> {
        state.lent += 1;
        state.open += usize::from(entry.is_none());
        let is_open = entry.is_some();
        Loan { core: Arc::clone(self), entry, epoch: state.epoch, is_spare: false, proves, is_open, is_fit: false }
    }
}

impl<M: Manage> Loan<M> {
    pub(crate) fn resource(&self) -> &Arc<str> {
        &self.core.resource
    }

    /// Nobody could ask over it.
    pub(crate) fn give_back(mut self) {
        (self.is_fit, self.is_open) = (self.entry.is_some(), false);
    }

    /// Whether the server answers. A connection that is borrowed may have ended for a reason of its own, so where it does not
    /// answer a new one is asked, which takes its place.
    pub(crate) async fn ask(mut self) -> Result<(), Failure> {
        let core = Arc::clone(&self.core);
        if let Some(entry) = &mut self.entry {
            let answer = caught(core.manager.is_valid(&mut entry.connection)).await;
            let Err(failure) = answer else {
                self.is_fit = true;
                return Ok(());
            };
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

    /// Has what is borrowed closed. There is room for a new one, unless another connection has come since.
    fn part(&mut self, failure: &Failure) -> Result<(), Failure> {
        let mut state = self.core.state.lock();
        self.is_open = false;
        let is_late = self.epoch != state.epoch;
        let woken = if is_late || self.is_spare { None } else { state.let_down() };
        if !is_late {
            state.is_silent = failure.proof() == Proof::Silent;
        }
        state.leaving.extend(self.entry.take());
        self.core.settle(state);
        wake(woken);
        if is_late { Err(too_late()) } else { Ok(()) }
    }

    /// Takes the new one. One that is nobody's comes back.
    fn take(&mut self, opened: Result<M::Connection, Failure>) -> Result<Result<(), M::Connection>, Failure> {
        let mut state = self.core.state.lock();
        let is_late = self.epoch != state.epoch;
        match opened {
            Ok(late) if is_late => Ok(Err(late)),
            Ok(connection) => {
                self.entry = Some(self.core.entry(&mut state, connection));
                Ok(Ok(()))
            }
            Err(failure) => {
                if !is_late && !self.is_spare {
                    self.core.set_back(&mut state);
                }
                if !is_late && failure.proof() != Proof::Silent {
                    state.is_silent = false;
                    // Users have theirs, and the server is there.
                    self.proves &= !self.is_spare;
                }
                Err(self.told(failure))
            }
        }
    }

    /// What it proves that a new connection cannot be had.
    fn told(&self, failure: Failure) -> Failure {
        if self.proves { failure } else { Failure::unasked(failure.source) }
    }
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
        if is_present && (self.is_fit || self.is_open) {
            // One that was given up has not answered.
            state.is_silent = !self.is_fit;
        }
        let woken = match self.entry.take() {
            Some(entry) if is_useful && self.is_spare => {
                let replaced = state.spare.replace(entry);
                state.leaving.extend(replaced);
                None
            }
            // After a loss users may have all that there may be still.
            Some(entry) if is_useful && state.open <= core.limits.max => state.hand_over(entry, false),
            entry => {
                state.open -= usize::from(counts);
                state.leaving.extend(entry);
                None
            }
        };
        let let_down = if is_present && !self.is_spare { state.let_down() } else { None };
        core.settle(state);
        wake(woken);
        wake(let_down);
    }
}

#[cfg(all(test, not(model)))]
mod tests;
