//! The events of a pool's resources, as values.

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
    /// When it happened.
    #[cfg_attr(feature = "serde", serde(rename = "at_ms", serialize_with = "json::time"))]
    pub at: SystemTime,
    /// The name of the resource or hook. `None` for the pool as a whole.
    pub resource: Option<Arc<str>>,
    /// The name of the resource's kind, as in `redis`. `None` for a registered resource, and if only the name is known.
    pub kind: Option<&'static str>,
    /// The name that OpenTelemetry has for the server's software, as in `postgresql`. `None` if `kind` is.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub system: Option<&'static str>,
    /// Where the resource is, without credentials. Empty if that is not known.
    pub endpoint: Arc<str>,
    /// The server that it happened at, if there are several. `None` if there is one, or the driver does not tell.
    pub node: Option<Arc<str>>,
    /// How often the resource had been connected by then.
    pub generation: u64,
    /// The kind of event, with its details.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub what: What,
}

/// The kind of an event, with its details. A lease of a ready resource is no event.
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
        /// How long the resource was in the state before.
        #[cfg_attr(feature = "serde", serde(rename = "after_ms", serialize_with = "json::millis"))]
        after: Duration,
    },
    /// Connecting begins, for the first time or to bring back a lost connection.
    Connecting,
    /// An attempt to connect failed, and another follows.
    AttemptFailed {
        /// Why the attempt failed.
        error: Error,
        /// The pause before the next attempt.
        #[cfg_attr(feature = "serde", serde(rename = "pause_ms", serialize_with = "json::millis"))]
        pause: Duration,
    },
    /// The pool gives up connecting. The next acquire tries again.
    ConnectFailed {
        /// Why the last attempt failed.
        error: Error,
    },
    /// The resource is connected, as a new generation.
    Connected {
        /// How long the attempt took.
        #[cfg_attr(feature = "serde", serde(rename = "took_ms", serialize_with = "json::millis"))]
        took: Duration,
    },
    /// The connection was lost, or a reconnect was asked for. The pool brings it back, unless it is closing.
    Lost {
        /// The reason.
        error: Error,
        /// How many generations in a row were lost soon after they were made. If it is not 0, the pool pauses first.
        died_young: u32,
    },
    /// A probe got no answer, or not the answer that it should.
    ProbeFailed {
        /// How many probes in a row got no answer at all.
        strikes: u32,
        /// Why it failed.
        message: String,
    },
    /// A wait ended: it succeeded, it reached its limit, or it was given up.
    Waited {
        /// The object of the wait, as in `connecting`.
        waiting_for: String,
        /// How long the wait took.
        #[cfg_attr(feature = "serde", serde(rename = "waited_ms", serialize_with = "json::millis"))]
        waited: Duration,
    },
    /// A wait reached its limit, and the caller got its error.
    TimedOut {
        /// The error, with the wait and the holders.
        error: Arc<TimeoutError>,
    },
    /// A wait was refused, since it could never end.
    Deadlocked {
        /// The error, with the wait and the holders.
        error: Arc<DeadlockError>,
    },
    /// Some waiting callers hold the checkouts that the others wait for. They go on only if another caller frees one.
    Cycle {
        /// All callers of the cycle.
        waiters: Vec<Waiter>,
    },
    /// The pool repeats an operation that was lost with its connection and does no harm twice.
    Repeated {
        /// The operation.
        action: String,
    },
    /// An operation that changes something was sent, and no answer tells whether the server carried it out.
    OutcomeUnknown {
        /// The error, which names the operation.
        error: Error,
    },
    /// Something is wrong, but the resource goes on: a broker blocks it, a consumer ended, or rows were not flushed.
    Warned {
        /// The problem.
        message: String,
        /// The cause, if that is known.
        error: Option<String>,
    },
    /// A checkout or a watched lease is held for longer than expected.
    Leak {
        /// Its holder.
        holder: Holder,
    },
    /// A checkout or lease that was suspected to leak came back after all.
    LeakReturned {
        /// Its last holder.
        holder: Holder,
    },
    /// More leases or checkouts are held than expected.
    Crowded {
        /// How many are held.
        held: usize,
        /// How many were expected at most.
        allowed: usize,
        /// The holders.
        holders: Vec<Holder>,
    },
    /// The number of held leases or checkouts is back within the expected limit.
    Uncrowded {
        /// How many are held.
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
        /// The reason.
        #[cfg_attr(feature = "serde", serde(flatten))]
        reason: Reason,
    },
    /// A step of closing ended. The event names the resource or hook.
    StepEnded {
        /// The step, and how it ended.
        step: StepReport,
    },
    /// Closing ended.
    Closed {
        /// The report, with how each step ended.
        report: Arc<CloseReport>,
    },
}

/// The target that logs are filtered by: the crate, so that a filter does not depend on the names of modules.
const TARGET: &str = "resource_pool";

impl Event {
    /// An event of the pool as a whole, or of a resource or hook of which only the name is known.
    pub(crate) fn of_pool(resource: Option<Arc<str>>, what: What) -> Self {
        let (at, endpoint) = (SystemTime::now(), Arc::from(""));
        Event { at, resource, kind: None, system: None, endpoint, node: None, generation: 0, what }
    }

    /// Writes the event's line to the log, if it has one.
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
                tracing::warn!(target: TARGET, resource, %site, ?held, owner, backtrace, "held for longer than expected, possibly a leak");
            }
            What::LeakReturned { holder: Holder { site, held, .. } } => {
                tracing::info!(target: TARGET, resource, %site, ?held, "came back after all");
            }
            What::Crowded { held, allowed, holders } => {
                let holders = FirstFew(holders, ", ");
                tracing::warn!(target: TARGET, resource, held, allowed, %holders, "more is held than allowed, possibly a leak");
            }
            What::Uncrowded { held, allowed } => {
                tracing::info!(target: TARGET, resource, held, allowed, "back under the limit");
            }
            What::StepEnded { step: StepReport { outcome, .. } } => {
                tracing::info!(target: TARGET, resource, %outcome, "closed")
            }
            What::Closed { report } => {
                let (reason, took) = (report.reason, report.took);
                match report.all_closed() {
                    true => tracing::info!(target: TARGET, %reason, ?took, "closed"),
                    false => tracing::warn!(target: TARGET, %reason, %report, "closed, with errors"),
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
