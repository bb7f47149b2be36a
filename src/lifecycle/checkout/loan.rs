//! The prober's own way to a connection: it borrows one that lies idle, or has room for a new one.
//!
//! Where users have all there may be, a driver that does not block is asked over a connection of the prober's own, which is
//! kept from then on. One that blocks is not asked at all, since its users would be lost to a mere lack of room.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock::Moment;
use crate::base::error::Failure;
use crate::lifecycle::checkout::core::Core;
use crate::lifecycle::checkout::entry::Entry;
use crate::lifecycle::checkout::manage::{Manage, caught};
use crate::lifecycle::checkout::state::{Borrowed, State};
use crate::lifecycle::checkout::waiter::wake;

/// For so long a ping of the prober's keeps another connection from being opened. Where the server does not answer, nobody
/// who waits loses more than that.
const PING: Duration = Duration::from_millis(250);

/// A connection that the prober has, or room for one.
pub(crate) struct Loan<M: Manage> {
    core: Arc<Core<M>>,
    entry: Option<Box<Entry<M>>>,
    /// How many there were as it was lent.
    ends: u64,
    /// Whether it is the prober's own, and so not counted.
    is_spare: bool,
    /// Whether a failure of a new one proves the server's silence: what is borrowed has failed as well, or users have none.
    proves: bool,
    is_fit: bool,
}

impl<M: Manage> Core<M> {
    /// The prober's own connection, the one that was idle for longest, or room for a new one.
    pub(super) fn loan(self: &Arc<Self>, patience: Duration) -> Result<Loan<M>, Failure> {
        let now = Instant::now();
        let mut state = self.state.lock();
        if let Some(entry) = state.spare.take_if(|entry| !entry.is_worn(Moment::coarse())) {
            return Ok(self.spare(&state, Some(entry)));
        }
        if !state.idle.is_empty() {
            let entry = state.idle.remove(0);
            state.borrowed = Some(Borrowed { until: now + PING, is_free: self.is_free(&entry, Moment::coarse()) });
            return Ok(self.lend(&mut state, Some(entry), true));
        }
        let has_room = self.room(&state) > 0;
        if M::BLOCKS && !has_room {
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
        if !has_room {
            let worn = state.spare.take();
            state.leaving.extend(worn);
            return Ok(self.spare(&state, None));
        }
        let users_have_none = state.open == state.lent;
        Ok(self.lend(&mut state, None, users_have_none))
    }

    /// The prober's own, or one that is yet to be opened.
    fn spare(self: &Arc<Self>, state: &State<M>, entry: Option<Box<Entry<M>>>) -> Loan<M> {
        Loan { core: Arc::clone(self), entry, ends: state.ends, is_spare: true, proves: false, is_fit: false }
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
        Loan { core: Arc::clone(self), entry, ends: state.ends, is_spare: false, proves, is_fit: false }
    }
}

impl<M: Manage> Loan<M> {
    pub(crate) fn resource(&self) -> &Arc<str> {
        &self.core.resource
    }

    /// Nobody could ask over it.
    pub(crate) fn give_back(mut self) {
        self.is_fit = self.entry.is_some();
    }

    /// Whether the server answers. A connection that is borrowed may have ended for a reason of its own, so where it does not
    /// answer a new one is asked, which takes its place.
    pub(crate) async fn ask(mut self) -> Result<(), Failure> {
        let core = Arc::clone(&self.core);
        if let Some(entry) = &mut self.entry {
            if caught(core.manager.is_valid(&mut entry.connection)).await.is_ok() {
                self.is_fit = true;
                return Ok(());
            }
            self.part()?;
        }
        let opened = caught(core.manager.connect()).await;
        if let Err(late) = self.take(opened)? {
            core.say_goodbye(late).await;
            return Err(too_late());
        }
        let Some(entry) = &mut self.entry else { return Err(too_late()) };
        let answer = caught(core.manager.is_valid(&mut entry.connection)).await;
        self.is_fit = answer.is_ok();
        answer.map_err(|failure| self.told(failure))
    }

    /// Has what is borrowed closed. There is room for a new one, unless another connection has come since.
    fn part(&mut self) -> Result<(), Failure> {
        let mut state = self.core.state.lock();
        let is_late = self.ends != state.ends;
        let woken = if is_late { None } else { state.let_down() };
        state.leaving.extend(self.entry.take());
        self.core.settle(state);
        wake(woken);
        if is_late { Err(too_late()) } else { Ok(()) }
    }

    /// Takes the new one. One that is nobody's comes back.
    fn take(&mut self, opened: Result<M::Connection, Failure>) -> Result<Result<(), M::Connection>, Failure> {
        let mut state = self.core.state.lock();
        let is_late = self.ends != state.ends;
        match opened {
            Ok(late) if is_late => Ok(Err(late)),
            Ok(connection) => {
                self.entry = Some(self.core.entry(&mut state, connection));
                Ok(Ok(()))
            }
            Err(failure) => {
                if !is_late {
                    self.core.set_back(&mut state);
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
        let is_present = self.ends == state.ends;
        let is_useful = is_present && self.is_fit && !state.is_closed;
        let counts = is_present && !self.is_spare;
        state.lent -= usize::from(counts);
        let woken = match self.entry.take() {
            Some(entry) if is_useful && self.is_spare => {
                state.spare = Some(entry);
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
        let let_down = if is_present { state.let_down() } else { None };
        core.settle(state);
        wake(woken);
        wake(let_down);
    }
}
