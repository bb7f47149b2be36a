//! The limits of closing.

use std::time::Duration;

use serde::Deserialize;

use crate::base::millis;
use crate::base::setters::setters;
use crate::lifecycle::close::phase::Phase;

/// How long after the deadline the watchdog waits for a close that is about to tell its report. Comes on top of the
/// close budget, as [`worst_case`](CloseOptions::worst_case) tells.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(1);

/// The limits of closing. [`worst_case`](CloseOptions::worst_case) tells their sum.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct CloseOptions {
    /// The limit of the whole close. Defaults to 25 s, below the 30 s that orchestrators grant.
    #[serde(rename = "deadline_ms", with = "millis")]
    pub deadline: Duration,
    /// How long after a signal closing begins. Readiness fails at once, so that a load balancer has this time to stop
    /// sending requests. A second signal ends it early. It is part of the deadline. Defaults to none.
    /// Environment: `RESOURCE_POOL_CLOSE_DELAY_MS`.
    #[serde(rename = "delay_ms", with = "millis")]
    pub delay: Duration,
    /// How long work in progress is waited for. Defaults to 10 s.
    #[serde(rename = "drain_ms", with = "millis")]
    pub drain: Duration,
    /// How long a lease that is merely held is waited for. The lease must have been taken, or used by an operation that
    /// ended, within this time before closing began. Otherwise it is not waited for. Defaults to 1 s.
    #[serde(rename = "held_ms", with = "millis")]
    pub held: Duration,
    /// The limit of one step. Defaults to 5 s.
    #[serde(rename = "step_ms", with = "millis")]
    pub step: Duration,
    /// The limit of one step of the phases tasks and databases. Defaults to 10 s.
    #[serde(rename = "long_step_ms", with = "millis")]
    pub long_step: Duration,
    /// The time that each later phase is sure to get, however long an earlier one takes, including the cutting of
    /// streams that hang. Defaults to 500 ms.
    #[serde(rename = "floor_ms", with = "millis")]
    pub floor: Duration,
    /// Whether closing may write to the standard error. After 1 s it writes one line that tells what it waits for. On a
    /// terminal it writes another after 2, 4, 8 and 16 s. At the end of the process it writes the report, unless all is
    /// closed. Defaults to `true`.
    pub stderr: bool,
}

impl Default for CloseOptions {
    fn default() -> Self {
        CloseOptions {
            deadline: Duration::from_secs(25),
            delay: Duration::ZERO,
            drain: Duration::from_secs(10),
            held: Duration::from_secs(1),
            step: Duration::from_secs(5),
            long_step: Duration::from_secs(10),
            floor: Duration::from_millis(500),
            stderr: true,
        }
    }
}

impl CloseOptions {
    setters! {
        plain {
            /// Sets the limit of the whole close.
            deadline: Duration,
            /// Sets how long after a signal closing begins.
            delay: Duration,
            /// Sets how long work in progress is waited for.
            drain: Duration,
            /// Sets how long a lease that is merely held is waited for.
            held: Duration,
            /// Sets the limit of one step.
            step: Duration,
            /// Sets the limit of one step of the phases tasks and databases.
            long_step: Duration,
            /// Sets the time that each later phase is sure to get.
            floor: Duration,
            /// Sets whether closing may write to the standard error.
            stderr: bool,
        }
    }
}

impl CloseOptions {
    /// The longest that closing can take, by which to size a grace period. It is the deadline, and the second after
    /// which the watchdog ends a process.
    pub fn worst_case(&self) -> Duration {
        self.deadline.saturating_add(WATCHDOG)
    }

    pub(crate) fn budget(&self, phase: Phase) -> Duration {
        match phase {
            Phase::Tasks | Phase::Databases => self.long_step,
            _ => self.step,
        }
    }

    /// The part of the time left that is kept for this many later levels.
    pub(crate) fn reserve(&self, left: Duration, levels: usize) -> Duration {
        let levels = u32::try_from(levels).unwrap_or(u32::MAX);
        // If there is too little for all, each level gets the same.
        let fair = left.checked_div(levels.saturating_add(1)).unwrap_or_default();
        self.floor.min(fair).saturating_mul(levels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_much_to_write_has_longer_to_close() {
        let options = CloseOptions::default();
        for phase in [Phase::Tasks, Phase::Databases] {
            assert_eq!(options.budget(phase), options.long_step, "{phase:?}");
        }
        for phase in [Phase::RabbitMq, Phase::Redis, Phase::VectorStores] {
            assert_eq!(options.budget(phase), options.step, "{phase:?}");
        }
    }
}
