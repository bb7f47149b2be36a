//! The prober's own way to a connection: it borrows one that lies idle, or has room for a new one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use r2d2::ManageConnection;

use crate::base::clock::Moment;
use crate::base::error::Failure;
use crate::lifecycle::checkout::core::{Core, caught};
use crate::lifecycle::checkout::entry::Entry;
use crate::lifecycle::checkout::state::{Borrowed, State};
use crate::lifecycle::checkout::waiter::wake;

/// For so long a ping of the prober's keeps another connection from being opened. Where the server does not answer, nobody
/// who waits loses more than that.
const PING: Duration = Duration::from_millis(250);

/// A connection that the prober has, or room for one.
pub(crate) struct Loan<M: ManageConnection> {
    core: Arc<Core<M>>,
    entry: Option<Box<Entry<M>>>,
    /// How many there were as it was lent.
    ends: u64,
    /// Whether a failure of a new one proves the server's silence: what is borrowed has failed as well, or users have none.
    proves: bool,
    is_fit: bool,
}

impl<M: ManageConnection> Core<M> {
    /// The connection that was idle for longest, or room for a new one.
    pub(super) fn loan(self: &Arc<Self>, patience: Duration) -> Result<Loan<M>, Failure> {
        let now = Instant::now();
        let mut state = self.state.lock();
        if !state.idle.is_empty() {
            let entry = state.idle.remove(0);
            state.borrowed = Some(Borrowed { until: now + PING, is_free: self.is_free(&entry, Moment::coarse()) });
            return Ok(self.lend(&mut state, Some(entry), true));
        }
        if self.room(&state) == 0 {
            // Openings ask the server, too.
            return Err(match state.unanswered.map(|since| now.saturating_duration_since(since)) {
                Some(silent) if silent >= patience => {
                    Failure::transient(format!("a connection that is being opened has had no answer for {silent:.1?}"))
                }
                _ => Failure::unasked("all connections are in use"),
            });
        }
        if state.pausing.is_some_and(|until| now < until) {
            return Err(Failure::unasked("none could be opened just now"));
        }
        let users_have_none = state.open == state.lent;
        Ok(self.lend(&mut state, None, users_have_none))
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

    pub(super) fn lend(self: &Arc<Self>, state: &mut State<M>, entry: Option<Box<Entry<M>>>, proves: bool) -> Loan<M> {
        state.lent += 1;
        state.open += usize::from(entry.is_none());
        Loan { core: Arc::clone(self), entry, ends: state.ends, proves, is_fit: false }
    }
}

impl<M: ManageConnection> Loan<M> {
    pub(crate) fn resource(&self) -> &Arc<str> {
        &self.core.resource
    }

    /// Nobody could ask over it.
    pub(crate) fn give_back(mut self) {
        self.is_fit = self.entry.is_some();
    }

    /// Whether the server answers. A connection that is borrowed may have ended for a reason of its own, so where it does not
    /// answer a new one is asked, which takes its place.
    pub(crate) fn ask(mut self, tell: impl Fn(M::Error) -> Failure) -> Result<(), Failure> {
        let core = Arc::clone(&self.core);
        if let Some(entry) = &mut self.entry {
            if caught(&tell, || core.manager.is_valid(&mut entry.connection)).is_ok() {
                self.is_fit = true;
                return Ok(());
            }
            let mut state = core.state.lock();
            let is_late = self.ends != state.ends;
            let woken = if is_late { None } else { state.let_down() };
            state.leaving.extend(self.entry.take());
            core.settle(state);
            wake(woken);
            if is_late {
                return Err(too_late());
            }
        }
        let opened = caught(&tell, || core.manager.connect());
        let mut state = core.state.lock();
        let connection = match opened {
            Ok(connection) => connection,
            Err(failure) => {
                if self.ends == state.ends {
                    core.set_back(&mut state);
                }
                return Err(self.told(failure));
            }
        };
        if self.ends != state.ends {
            drop(state);
            core.say_goodbye(connection);
            return Err(too_late());
        }
        let entry = self.entry.insert(core.entry(&mut state, connection));
        drop(state);
        let answer = caught(&tell, || core.manager.is_valid(&mut entry.connection));
        self.is_fit = answer.is_ok();
        answer.map_err(|failure| self.told(failure))
    }

    /// What it proves that a new connection cannot be had.
    fn told(&self, failure: Failure) -> Failure {
        if self.proves { failure } else { Failure::unasked(failure.source) }
    }
}

fn too_late() -> Failure {
    Failure::unasked("there is another connection by now, or none any more")
}

impl<M: ManageConnection> Drop for Loan<M> {
    fn drop(&mut self) {
        let core = Arc::clone(&self.core);
        let mut state = core.state.lock();
        let is_present = self.ends == state.ends;
        let is_useful = is_present && self.is_fit && !state.is_closed;
        if is_present {
            state.lent -= 1;
        }
        let woken = match self.entry.take() {
            // After a loss users may have all that there may be still.
            Some(entry) if is_useful && state.open <= core.limits.max => state.hand_over(entry, false),
            entry => {
                state.open -= usize::from(is_present);
                state.leaving.extend(entry);
                None
            }
        };
        let let_down = if is_present { state.let_down() } else { None };
        core.settle(state);
        wake(woken);
        wake(let_down);
    }
}
