//! What a resource may tell its pool, and ask it.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::base::error::{BoxError, Error, OneLine, Source};
use crate::base::holder::Holder;
use crate::base::process::Process;
use crate::base::repeat::Repeat;
#[cfg(feature = "checkouts")]
use crate::base::retry::Retry;
use crate::lifecycle::activity::Activity;
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::busy::Busy;
use crate::lifecycle::condition::Condition;
use crate::lifecycle::event::What;
use crate::lifecycle::status::State;
use crate::lifecycle::work::Work;

/// The link of a resource to its pool. Cheap to clone.
#[derive(Clone)]
pub struct Link {
    pub(crate) activity: Arc<Activity>,
    pub(crate) slot: Weak<dyn AnySlot>,
    /// The attempt to connect that it was made for.
    pub(crate) attempt: u64,
    /// How long that attempt may take.
    pub(crate) limit: Duration,
    pub(crate) acquire_timeout: Duration,
    pub(crate) process: &'static Process,
    pub(crate) repeat: Repeat,
    /// How what it opens of its own is retried.
    #[cfg(feature = "checkouts")]
    pub(crate) retry: Retry,
    /// How long a connection of those may take to open.
    #[cfg(feature = "checkouts")]
    pub(crate) connect_timeout: Duration,
    /// How long an operation waits for a connection that is lost: as long as one connect may take,
    /// which is less than the acquire timeout, so that the wait ends with the failure's own error.
    pub(crate) patience: Duration,
}

impl Link {
    /// The resource's name in the pool.
    pub fn name(&self) -> &Arc<str> {
        &self.activity.name
    }

    /// Where it is, without credentials.
    pub fn endpoint(&self) -> &Arc<str> {
        &self.activity.endpoint
    }

    /// How long the attempt to connect may take that it was made for.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// How long an acquire may wait.
    pub fn acquire_timeout(&self) -> Duration {
        self.acquire_timeout
    }

    /// Who holds a lease or a checkout of it.
    pub fn holders(&self) -> Vec<Holder> {
        self.slot.upgrade().map_or_else(Vec::new, |slot| slot.holders())
    }

    /// The connection is lost: readiness falls, and the pool brings it back by
    /// [`recover`](crate::Resource::recover). Says nothing about a generation that is not current, nor
    /// about a connection that closing overtook while it was made.
    pub fn lost(&self, generation: u64, cause: impl Into<BoxError>) {
        if let Some(slot) = self.slot.upgrade() {
            slot.lost(Some(self.attempt), generation, Source::from(cause.into()));
        }
    }

    /// Tells how far [`connect`](crate::Resource::connect) or [`recover`](crate::Resource::recover) has come, in words such as "512 of
    /// 1000 declared". The attempt's limit, `connect_timeout`, begins anew with each call, so that work of many steps has
    /// it for each of them. Health checks and timeouts say it until the attempt ends. Says nothing outside of the
    /// attempt that the link was made for.
    pub fn progress(&self, told: impl Into<Arc<str>>) {
        if let Some(slot) = self.slot.upgrade() {
            slot.progress(self.attempt, told.into());
        }
    }

    /// Tells observers what has happened, if there are any.
    pub(crate) fn note(&self, what: impl FnOnce() -> What) {
        self.activity.note(|| self.made(), what);
    }

    /// Tells the log and observers what has happened.
    pub(crate) fn tell(&self, what: What) {
        self.activity.tell(self.made(), what);
    }

    /// How often the resource has been connected.
    fn made(&self) -> u64 {
        self.slot.upgrade().map_or(0, |slot| slot.condition().generation)
    }

    /// Whether this still is the process that the resource lives in. What it shares with the server is its parent's in a
    /// forked child, and may not be touched there.
    ///
    /// # Errors
    /// [`Error::Forked`].
    #[inline]
    pub fn check_process(&self) -> Result<(), Error> {
        self.process.check()
    }

    /// How the resource is; `None` once its pool is gone.
    pub fn state(&self) -> Option<State> {
        self.slot.upgrade().map(|slot| slot.condition().state)
    }

    /// What is repeated where the connection is lost.
    pub fn repeat(&self) -> Repeat {
        self.repeat
    }

    /// How long [`ready`](Link::ready) waits.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Tells observers of a wait that has ended well, which a [`Wait`](crate::adapter::Wait) does by itself.
    pub fn waited(&self, waiting_for: impl FnOnce() -> String, since: Instant) {
        self.note(|| What::Waited { waiting_for: waiting_for(), waited: since.elapsed() });
    }

    /// An error that is about to be answered. If it is that of a wait that reached its limit, observers are told.
    pub fn told(&self, error: Error) -> Error {
        if let Error::Timeout(timeout) = &error {
            self.note(|| What::TimedOut { error: Arc::clone(timeout) });
        }
        error
    }

    /// Something is wrong, and goes on: for the log, and observers.
    pub fn warn(&self, message: impl Into<String>, error: Option<&dyn fmt::Display>) {
        let (message, error) = (message.into(), error.map(|error| OneLine(error).to_string()));
        self.tell(What::Warned { message, error });
    }

    /// The error of what was sent, changes something, and has no answer, told to observers.
    pub fn outcome_unknown(&self, action: impl Into<String>, source: Source) -> Error {
        let error = Error::OutcomeUnknown { resource: Arc::clone(self.name()), action: action.into(), source };
        self.note(|| What::OutcomeUnknown { error: error.clone() });
        error
    }

    /// Tells observers that this is sent once more.
    pub fn repeated(&self, action: &str) {
        self.note(|| What::Repeated { action: action.to_owned() });
    }

    /// Why the connection is cut now, for [`KillSwitch::cut_because`](crate::KillSwitch::cut_because): the loss, or
    /// that the resource is closed.
    pub fn why_cut(&self) -> Error {
        let failure = self.slot.upgrade().and_then(|slot| slot.condition().failure);
        failure.unwrap_or_else(|| Error::closed(self.name()))
    }

    /// The generation now in use; the one being connected, while that goes on.
    pub fn generation(&self) -> u64 {
        self.slot.upgrade().map_or(0, |slot| slot.generation_or_next())
    }

    /// Counts a piece of work that closing must wait for, until the guard says that it is
    /// [done](Busy::done), or drops.
    pub fn busy(&self, work: Work) -> Busy {
        Busy::new(&self.activity, work)
    }

    /// The same, which counts nothing until something is [added](Busy::add).
    pub fn not_yet_busy(&self, work: Work) -> Busy {
        Busy::none(&self.activity, work)
    }

    /// Counts what closing cut off though it was [done](Busy::done) before.
    pub fn was_cut_off(&self, work: Work) {
        self.activity.counters.was_cut_off(work);
    }

    /// Counts what closing ended in good order though nobody waited for it: transactions that it
    /// aborted, cursors that it closed.
    pub fn ended(&self, work: Work, count: usize) {
        self.activity.counters.add_finished(work, count);
    }

    /// Why the connection is gone, while it is.
    pub fn failure(&self) -> Option<Error> {
        let condition = self.slot.upgrade()?.condition();
        condition.failure.filter(|_| matches!(condition.state, State::Broken | State::Connecting))
    }

    /// Waits while the connection is being brought back, unless operations are
    /// [never](Repeat::Never) to wait for that.
    ///
    /// # Errors
    /// Why the connection is lost, or could not be made again, once as much time has passed as one
    /// connect may take, or the acquire timeout if that is less; [`Error::Closing`],
    /// [`Error::Closed`], [`Error::Forked`].
    ///
    /// # Cancel safety
    /// Cancelling it cancels nothing else.
    pub async fn ready(&self) -> Result<(), Error> {
        self.ready_within(self.patience).await
    }

    /// The same, for so long.
    ///
    /// # Errors
    /// As [`ready`](Link::ready).
    ///
    /// # Cancel safety
    /// Cancelling it cancels nothing else.
    pub async fn ready_within(&self, limit: Duration) -> Result<(), Error> {
        self.process.check()?;
        let Some(slot) = self.slot.upgrade() else {
            return Err(Error::closed(&self.activity.name));
        };
        match slot.condition() {
            Condition { state: State::Ready, .. } => Ok(()),
            Condition { state: State::Connecting | State::Broken, failure: Some(error), .. }
                if self.repeat == Repeat::Never =>
            {
                Err(error)
            }
            _ => slot.wait_back(limit).await,
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Link").field(&self.activity.name).finish()
    }
}
