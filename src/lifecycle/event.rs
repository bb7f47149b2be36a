//! What happens to the resources of a pool, as values.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::base::error::{DeadlockError, Error, FirstFew, TimeoutError, Waiter};
use crate::base::holder::Holder;
#[cfg(feature = "serde")]
use crate::base::json;
use crate::lifecycle::close::report::{CloseReport, Reason, StepReport};
use crate::lifecycle::health::HealthEntry;
use crate::lifecycle::status::State;

/// Something that happened to a resource, or to the pool as a whole.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Event {
    /// When.
    #[cfg_attr(feature = "serde", serde(rename = "at_ms", serialize_with = "json::time"))]
    pub at: SystemTime,
    /// The resource's name; `None` of the pool as a whole.
    pub resource: Option<Arc<str>>,
    /// The resource's kind, as in `redis`; `None` where it is of a kind of the user's own.
    pub kind: Option<&'static str>,
    /// Where the resource is, without credentials; empty where that is not known.
    pub endpoint: Arc<str>,
    /// Which of several servers it happened at; `None` where there is one, or the driver does not tell.
    pub node: Option<Arc<str>>,
    /// How often the resource had been connected by then.
    pub generation: u64,
    /// What happened.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub what: What,
}

/// What happened. A warm lease is no event.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(tag = "what", rename_all = "snake_case"))]
#[non_exhaustive]
pub enum What {
    /// The state of the resource's life changed.
    StateChanged {
        /// The state before.
        from: State,
        /// The state now.
        to: State,
        /// How long it was in the state before.
        #[cfg_attr(feature = "serde", serde(rename = "after_ms", serialize_with = "json::millis"))]
        after: Duration,
    },
    /// Connecting begins, of the first attempt or of one to bring back what was lost.
    Connecting,
    /// An attempt to connect failed, and another follows.
    AttemptFailed {
        /// Why.
        error: Error,
        /// The pause before the next attempt.
        #[cfg_attr(feature = "serde", serde(rename = "pause_ms", serialize_with = "json::millis"))]
        pause: Duration,
    },
    /// Connecting is given up. The next acquire tries again.
    ConnectFailed {
        /// Why.
        error: Error,
    },
    /// It is connected, as a new generation.
    Connected {
        /// How long the attempt took.
        #[cfg_attr(feature = "serde", serde(rename = "took_ms", serialize_with = "json::millis"))]
        took: Duration,
    },
    /// The connection was lost, or a reconnect was asked for. The pool brings it back, unless it is closing.
    Lost {
        /// Why.
        error: Error,
        /// How many generations in a row were lost young; a pause follows where there were any.
        died_young: u32,
    },
    /// A probe was not answered, or not as it should.
    ProbeFailed {
        /// How many in a row were not answered at all.
        strikes: u32,
        /// Why.
        message: String,
    },
    /// Somebody no longer waits: it came, the limit did, or they gave up.
    Waited {
        /// For what.
        waiting_for: String,
        /// How long.
        #[cfg_attr(feature = "serde", serde(rename = "waited_ms", serialize_with = "json::millis"))]
        waited: Duration,
    },
    /// A wait reached its limit, and its error was answered.
    TimedOut {
        /// Which, and who held what it waited for.
        error: Arc<TimeoutError>,
    },
    /// A wait was refused that could never end.
    Deadlocked {
        /// Which.
        error: Arc<DeadlockError>,
    },
    /// Some who wait hold what the others wait for. They go on only if somebody else frees one of these.
    Cycle {
        /// All of them.
        waiters: Vec<Waiter>,
    },
    /// The pool tries once more what was lost on its way and does no harm twice.
    Repeated {
        /// What.
        action: String,
    },
    /// Something was sent that changes something, and no answer tells whether the server took it.
    OutcomeUnknown {
        /// Which.
        error: Error,
    },
    /// Something is wrong, and the resource goes on: a broker blocks it, a consumer ended, rows were not flushed.
    Warned {
        /// What.
        message: String,
        /// Why, if that is known.
        error: Option<String>,
    },
    /// A checkout, or a lease that is watched, is held for longer than expected.
    Leak {
        /// Who holds it.
        holder: Holder,
    },
    /// What was suspected to leak came back after all.
    LeakReturned {
        /// Who held it.
        holder: Holder,
    },
    /// More are held than expected.
    Crowded {
        /// How many.
        held: usize,
        /// How many were expected at most.
        allowed: usize,
        /// Who holds them.
        holders: Vec<Holder>,
    },
    /// No more are held than expected again.
    Uncrowded {
        /// How many.
        held: usize,
        /// How many were expected at most.
        allowed: usize,
    },
    /// A health check came to a verdict on the resource.
    Checked {
        /// The verdict.
        entry: HealthEntry,
    },
    /// Closing begins.
    Closing {
        /// Why.
        #[cfg_attr(feature = "serde", serde(flatten))]
        reason: Reason,
    },
    /// A step of closing ended. The event names the resource or hook.
    StepEnded {
        /// How.
        step: StepReport,
    },
    /// Closing ended.
    Closed {
        /// How each step ended.
        report: Arc<CloseReport>,
    },
}

/// What logs are filtered by: the crate, however its modules are called.
const TARGET: &str = "resource_pool";

impl Event {
    /// One of the pool as a whole, or of a resource or hook of which no more than the name is known.
    pub(crate) fn of_pool(resource: Option<Arc<str>>, what: What) -> Self {
        let (at, endpoint) = (SystemTime::now(), Arc::from(""));
        Event { at, resource, kind: None, endpoint, node: None, generation: 0, what }
    }

    /// The line in the log, if there is one for it.
    pub(crate) fn log(&self) {
        let resource = self.resource.as_deref().map(tracing::field::display);
        let Event { endpoint, generation, .. } = self;
        match &self.what {
            What::Connecting => tracing::info!(target: TARGET, resource, %endpoint, "connecting"),
            What::AttemptFailed { error, pause } => {
                tracing::debug!(target: TARGET, resource, %error, ?pause, "connecting again");
            }
            What::ConnectFailed { error } => tracing::warn!(target: TARGET, resource, %error, "connecting failed"),
            What::Connected { .. } => {
                let connected = if *generation == 1 { "connected" } else { "reconnected" };
                tracing::info!(target: TARGET, resource, %endpoint, generation, "{connected}");
            }
            What::Lost { error, died_young } => {
                tracing::warn!(target: TARGET, resource, generation, died_young, %error, "lost")
            }
            What::ProbeFailed { strikes, message } => {
                tracing::debug!(target: TARGET, resource, strikes, error = %message, "probe failed");
            }
            What::Warned { message, error } => {
                let error = error.as_ref().map(tracing::field::display);
                tracing::warn!(target: TARGET, resource, %endpoint, error, "{message}");
            }
            What::Cycle { waiters } => {
                let waiters = FirstFew(waiters, "; ");
                tracing::warn!(target: TARGET, resource, %waiters, "a deadlock, unless somebody else frees one of these");
            }
            What::Leak { holder: Holder { site, held, owner, backtrace, .. } } => {
                let owner = owner.as_ref().map(tracing::field::display);
                let backtrace = backtrace.as_ref().map(tracing::field::display);
                tracing::warn!(target: TARGET, resource, %site, ?held, owner, backtrace, "held for longer than expected: a leak?");
            }
            What::LeakReturned { holder: Holder { site, held, .. } } => {
                tracing::info!(target: TARGET, resource, %site, ?held, "came back after all");
            }
            What::Crowded { held, allowed, holders } => {
                let holders = FirstFew(holders, ", ");
                tracing::warn!(target: TARGET, resource, held, allowed, %holders, "more held than expected: a leak?");
            }
            What::Uncrowded { held, allowed } => {
                tracing::info!(target: TARGET, resource, held, allowed, "no more held than expected again");
            }
            What::StepEnded { step: StepReport { outcome, .. } } => {
                tracing::info!(target: TARGET, resource, %outcome, "closed")
            }
            What::Closed { report } => {
                let (reason, took) = (report.reason, report.took);
                match report.all_closed() {
                    true => tracing::info!(target: TARGET, %reason, ?took, "closed"),
                    false => tracing::warn!(target: TARGET, %reason, %report, "closed with trouble"),
                }
            }
            What::Closing { reason } => tracing::info!(target: TARGET, resource, %reason, "closing"),
            What::StateChanged { .. }
            | What::Waited { .. }
            | What::TimedOut { .. }
            | What::Deadlocked { .. }
            | What::Repeated { .. }
            | What::OutcomeUnknown { .. }
            | What::Checked { .. } => {}
        }
    }
}
