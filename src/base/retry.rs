//! How often and how long connecting is tried.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use serde::Deserialize;

use crate::base::millis;
use crate::base::setters::setters;

/// Jittered exponential backoff inside a budget.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Retry {
    /// How many attempts one connect makes. Defaults to 3. A server that answers that it cannot serve yet, as while it
    /// loads its data, is asked again until the budget ends.
    pub attempts: usize,
    /// The pause after the first failed attempt, at least 1 ms. Defaults to 100 ms, and doubles each time. Each pause
    /// is shortened at random, to between half of it and all of it.
    #[serde(rename = "base_ms", with = "millis")]
    pub base: Duration,
    /// The longest pause, at least 1 ms. Defaults to 1 s.
    #[serde(rename = "cap_ms", with = "millis")]
    pub cap: Duration,
    /// The longest that one connect may take with all its attempts. An attempt is not begun if too little of that time
    /// is left for it. Defaults to 4.5 s.
    #[serde(rename = "budget_ms", with = "millis")]
    pub budget: Duration,
    /// How long a lost resource is reconnected in the background. After that it is left to the next acquire. Defaults
    /// to one hour.
    #[serde(rename = "recovery_ms", with = "millis")]
    pub recovery: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Retry {
            attempts: 3,
            base: Duration::from_millis(100),
            cap: Duration::from_secs(1),
            budget: Duration::from_millis(4500),
            recovery: Duration::from_secs(3600),
        }
    }
}

impl Retry {
    setters! {
        plain {
            /// Sets how many attempts one connect makes.
            attempts: usize,
            /// Sets the pause after the first failed attempt.
            base: Duration,
            /// Sets the longest pause.
            cap: Duration,
            /// Sets the longest that one connect may take with all its attempts.
            budget: Duration,
            /// Sets how long a lost resource is reconnected in the background.
            recovery: Duration,
        }
    }
}

impl Retry {
    /// The pause after so many generations in a row that were lost younger than [`cap`](Retry::cap). It grows as the
    /// pauses between attempts do, but without jitter, so that there soon is at most one connect in each `cap`.
    pub(crate) fn pause_after(&self, died_young: u32) -> Duration {
        match died_young.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => self.base.saturating_mul(2_u32.saturating_pow(doublings)).min(self.cap),
        }
    }

    /// The pauses between the attempts, and how long the attempts may take in all. A recovery makes as many attempts as
    /// its budget holds.
    pub(crate) fn effort(&self, recovering: bool) -> (ExponentialBackoff, Duration) {
        // The jitter adds up to as much again to a pause, so that each is halved here.
        let (base, cap) = (self.base.min(self.cap) / 2, self.cap / 2);
        let backoff = ExponentialBuilder::new().with_min_delay(base).with_max_delay(cap).with_jitter();
        match recovering {
            true => (backoff.without_max_times().build(), self.recovery),
            false => (backoff.with_max_times(self.attempts.saturating_sub(1)).build(), self.budget),
        }
    }

    /// The pause after this many failures in a row.
    #[cfg(feature = "checkouts")]
    pub(crate) fn pause(&self, failures: u32) -> Duration {
        // The pause has reached its cap by then, however long that is.
        let before = failures.saturating_sub(1).min(64) as usize;
        self.effort(true).0.nth(before).unwrap_or(self.cap)
    }
}
