//! [`Link`], by which a resource tells its pool about itself, and asks it.

use std::borrow::Cow;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::base::error::{BoxError, Error, OneLine, Source};
use crate::base::holder::Holder;
use crate::base::process::Process;
use crate::base::repeat::Repeat;
#[cfg(feature = "checkouts")]
use crate::base::retry::Retry;
use crate::base::runtime::within;
use crate::lifecycle::activity::Activity;
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::busy::Busy;
use crate::lifecycle::condition::Condition;
use crate::lifecycle::event::What;
use crate::lifecycle::spans::OperationSpan;
use crate::lifecycle::status::State;
use crate::lifecycle::work::Work;

/// The shortest time between two words that tell that an attempt goes on.
const TELLS: Duration = Duration::from_millis(10);
/// The least time that an attempt has after such a word, however short its limit is. It has room for the next one.
pub(crate) const TOLD: Duration = Duration::from_millis(20);

/// The link of a resource to its pool. Cheap to clone.
#[derive(Clone)]
pub struct Link {
    pub(crate) activity: Arc<Activity>,
    pub(crate) slot: Weak<dyn AnySlot>,
    /// The attempt to connect that this link was made for.
    pub(crate) attempt: u64,
    /// How long that attempt may take.
    pub(crate) limit: Duration,
    pub(crate) acquire_timeout: Duration,
    pub(crate) process: &'static Process,
    pub(crate) repeat: Repeat,
    /// How the resource retries the opening of connections of its own.
    #[cfg(feature = "checkouts")]
    pub(crate) retry: Retry,
    /// How long the opening of such a connection may take.
    #[cfg(feature = "checkouts")]
    pub(crate) connect_timeout: Duration,
    /// How long an operation waits for a lost connection: as long as one connect may take, or the acquire timeout if
    /// that is less. By default the former is less, so that the wait ends with the failure's own error.
    pub(crate) patience: Duration,
}

impl Link {
    /// The resource's name in the pool.
    pub fn name(&self) -> &Arc<str> {
        &self.activity.name
    }

    /// The endpoint of the resource, without credentials.
    pub fn endpoint(&self) -> &Arc<str> {
        &self.activity.endpoint
    }

    /// How long the attempt to connect that this link was made for may take.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// How long an acquire may wait.
    pub fn acquire_timeout(&self) -> Duration {
        self.acquire_timeout
    }

    /// The holders of its leases and checkouts.
    pub fn holders(&self) -> Vec<Holder> {
        self.slot.upgrade().map_or_else(Vec::new, |slot| slot.holders())
    }

    /// Tells that the connection is lost. Readiness falls, and the pool brings the connection back by
    /// [`recover`](crate::Resource::recover). The pool ignores an outdated generation, and a connection that
    /// closing superseded while it was made.
    pub fn lost(&self, generation: u64, cause: impl Into<BoxError>) {
        if let Some(slot) = self.slot.upgrade() {
            slot.lost(Some(self.attempt), generation, Source::from(cause.into()));
        }
    }

    /// Tells how far [`connect`](crate::Resource::connect) or [`recover`](crate::Resource::recover) has come, in words
    /// such as "512 of 1000 declared". The attempt's limit, `connect_timeout`, begins anew with each call, so work of
    /// many steps has this time for each step. Health checks and timeouts show the words until the attempt ends. A call
    /// outside of the attempt that the link was made for does nothing.
    pub fn progress(&self, told: impl Into<Arc<str>>) {
        if let Some(slot) = self.slot.upgrade() {
            slot.progress(self.attempt, told.into());
        }
    }

    /// Awaits a future, and tells `progress` meanwhile. So the attempt goes on for as long as the future takes.
    pub(crate) async fn going_on<F: Future>(&self, progress: &'static str, future: F) -> F::Output {
        let mut future = pin!(future);
        loop {
            self.progress(progress);
            if let Ok(done) = within((self.limit / 2).max(TELLS), &mut future).await {
                return done;
            }
        }
    }

    /// Whether the resource or its pool is being closed, or the pool's readiness is lowered, since it closes next.
    pub(crate) fn is_closing(&self) -> bool {
        self.slot.upgrade().is_none_or(|slot| slot.is_closing())
    }

    /// Has the close of the pool wait until the answer drops, for as long as it may take. `None` once the pool is gone.
    pub(crate) fn delay_closing(&self) -> Option<Box<dyn Send>> {
        Some(self.slot.upgrade()?.delay_closing())
    }

    /// Tells the observers of an event, which is made only if there are any.
    pub(crate) fn note(&self, what: impl FnOnce() -> What) {
        self.activity.note(|| self.made(), what);
    }

    /// Tells the log and the observers of an event.
    pub(crate) fn tell(&self, what: What) {
        self.activity.tell(self.made(), what);
    }

    /// How often the resource has been connected.
    fn made(&self) -> u64 {
        self.slot.upgrade().map_or(0, |slot| slot.condition().generation)
    }

    /// Checks that this is still the process that the resource lives in. In a forked child its sockets are the
    /// parent's, and must not be touched.
    ///
    /// # Errors
    /// [`Error::Forked`].
    #[inline]
    pub fn check_process(&self) -> Result<(), Error> {
        self.process.check()
    }

    /// The state of the resource. `None` once its pool is gone.
    pub fn state(&self) -> Option<State> {
        self.slot.upgrade().map(|slot| slot.condition().state)
    }

    /// Which operations are repeated when the connection is lost.
    pub fn repeat(&self) -> Repeat {
        self.repeat
    }

    /// How long [`ready`](Link::ready) waits.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Tells observers of a wait that has ended well. A [`Wait`](crate::adapter::Wait) does this by itself.
    pub fn waited(&self, waiting_for: impl FnOnce() -> String, since: Instant) {
        self.note(|| What::Waited { waiting_for: waiting_for(), waited: since.elapsed() });
    }

    /// Passes on an error that a caller is about to get. If it is a timeout, observers are told of it.
    pub fn told(&self, error: Error) -> Error {
        if let Error::Timeout(timeout) = &error {
            self.note(|| What::TimedOut { error: Arc::clone(timeout) });
        }
        error
    }

    /// Tells the log and observers that something is wrong while the resource goes on.
    pub fn warn(&self, message: impl Into<String>, error: Option<&dyn fmt::Display>) {
        let (message, error) = (message.into(), error.map(|error| OneLine(error).to_string()));
        self.tell(What::Warned { message, error });
    }

    /// Makes the error of an operation that was sent, changes something, and has no answer. Observers are told of it.
    pub fn outcome_unknown(&self, action: impl Into<String>, source: Source) -> Error {
        let error = Error::OutcomeUnknown { resource: Arc::clone(self.name()), action: action.into(), source };
        self.note(|| What::OutcomeUnknown { error: error.clone() });
        error
    }

    /// Tells observers that `action` is sent once more.
    pub fn repeated(&self, action: &str) {
        self.note(|| What::Repeated { action: action.to_owned() });
    }

    /// Why the connection is cut now, for [`KillSwitch::cut_because`](crate::KillSwitch::cut_because). It is the loss,
    /// or else that the resource is closed.
    pub fn why_cut(&self) -> Error {
        let failure = self.slot.upgrade().and_then(|slot| slot.condition().failure);
        failure.unwrap_or_else(|| Error::closed(self.name()))
    }

    /// The present generation, or the next one while that is being connected.
    pub fn generation(&self) -> u64 {
        self.slot.upgrade().map_or(0, |slot| slot.generation_or_next())
    }

    /// Counts a piece of work that closing waits for, until the guard is [done](Busy::done) or drops.
    pub fn busy(&self, work: Work) -> Busy {
        Busy::new(&self.activity, work)
    }

    /// A guard for such work that counts nothing until some is [added](Busy::add).
    pub fn not_yet_busy(&self, work: Work) -> Busy {
        Busy::none(&self.activity, work)
    }

    /// The span of an operation that begins now, below the caller's. `None`, at the cost of a look, unless the option
    /// [`trace_operations`](crate::config::Options::trace_operations) is on. The name is the command's or the verb's,
    /// and has nothing of what it was given.
    #[inline]
    pub fn operation(&self, name: impl FnOnce() -> Cow<'static, str>) -> Option<OperationSpan> {
        self.activity.traced.operation(name)
    }

    /// Counts a piece of work as cut off by closing, although it was [done](Busy::done) before.
    pub fn was_cut_off(&self, work: Work) {
        self.activity.counters.was_cut_off(work);
    }

    /// Counts work that closing ended in good order without waiting for it: transactions that it aborted, cursors that
    /// it closed.
    pub fn ended(&self, work: Work, count: usize) {
        self.activity.counters.add_finished(work, count);
    }

    /// Why the connection is lost. `None` while it is not.
    pub fn failure(&self) -> Option<Error> {
        let condition = self.slot.upgrade()?.condition();
        condition.failure.filter(|_| matches!(condition.state, State::Broken | State::Connecting))
    }

    /// Waits while the connection is being brought back, unless operations [never](Repeat::Never) wait for that.
    ///
    /// # Errors
    /// Why the connection is lost, or could not be made again, once the [patience](Link::patience) is over: as much
    /// time as one connect may take, or the acquire timeout if that is less. [`Error::Closing`], [`Error::Closed`] and
    /// [`Error::Forked`].
    ///
    /// # Cancel safety
    /// Cancelling it cancels nothing else.
    pub async fn ready(&self) -> Result<(), Error> {
        self.ready_within(self.patience).await
    }

    /// Waits like [`ready`](Link::ready), but for at most `limit`.
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
