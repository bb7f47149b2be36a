//! The options of a pool as a whole.

use std::time::Duration;

use serde::Deserialize;

use crate::base::environment::Environment;
use crate::base::error::Error;
use crate::base::millis::{self, number};
use crate::base::origins::Origins;
use crate::base::repeat::Repeat;
use crate::base::retry::Retry;
use crate::base::setters::setters;
use crate::lifecycle::close::options::CloseOptions;
use crate::lifecycle::health::HealthOptions;
use crate::lifecycle::leak::LeakOptions;
use crate::lifecycle::observers::KEPT;
use crate::lifecycle::probe::ProbeOptions;

/// The options of the pool as a whole. `[pool]` in TOML.
///
/// ```
/// use std::time::Duration;
/// use resource_pool::config::Options;
///
/// let mut options = Options::default().acquire_timeout(Duration::from_secs(3));
/// options.close.deadline = Duration::from_secs(9);
/// options.health.optional = vec!["clickhouse".into()];
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Options {
    /// How long an acquire waits, connecting included. Defaults to 5 s.
    /// Environment: `RESOURCE_POOL_ACQUIRE_TIMEOUT_MS`.
    #[serde(rename = "acquire_timeout_ms", with = "millis")]
    pub acquire_timeout: Duration,
    /// How long one attempt to connect may take. An attempt that tells how far it has come
    /// ([`Link::progress`](crate::Link::progress)) has this time for each step. Defaults to 2 s.
    #[serde(rename = "connect_timeout_ms", with = "millis")]
    pub connect_timeout: Duration,
    /// How long acquires get the error of a failed connect before another is tried. Defaults to 500 ms.
    #[serde(rename = "circuit_ms", with = "millis")]
    pub circuit: Duration,
    /// How connecting is retried.
    pub retry: Retry,
    /// Which of its operations the pool itself repeats when a connection is lost. Defaults to [`Repeat::Unsent`].
    pub repeat: Repeat,
    /// How ready resources are watched.
    pub probe: ProbeOptions,
    /// How health is checked.
    pub health: HealthOptions,
    /// When a lease or checkout is suspected to leak.
    pub leaks: LeakOptions,
    /// The limits of closing. Environment: `RESOURCE_POOL_CLOSE_DEADLINE_MS`.
    pub close: CloseOptions,
    /// How many unread [events](crate::Events) are kept before a subscription misses the oldest, from 1 to 1,048,576.
    /// Defaults to 1,024.
    pub events: usize,
    /// Whether each operation has a span in traces, besides connecting, waiting, health and closing. Defaults to `false`.
    pub trace_operations: bool,
    /// The number of threads of the pool's own runtime, from 1 to 1,024. Defaults to the number of cores, and to 2 on a
    /// single core. Environment: `RESOURCE_POOL_WORKER_THREADS`.
    pub worker_threads: Option<usize>,
    /// Whether SIGINT, SIGTERM and SIGHUP close the global pool before they end the process.
    /// Defaults to `true`.
    pub signals: bool,
    /// How the process exits after a signal. Defaults to [`ExitStatus::Signal`].
    pub exit_status: ExitStatus,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            acquire_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
            circuit: Duration::from_millis(500),
            retry: Retry::default(),
            repeat: Repeat::default(),
            probe: ProbeOptions::default(),
            health: HealthOptions::default(),
            leaks: LeakOptions::default(),
            close: CloseOptions::default(),
            events: KEPT,
            trace_operations: false,
            worker_threads: None,
            signals: true,
            exit_status: ExitStatus::default(),
        }
    }
}

impl Options {
    setters! {
        plain {
            /// Sets how long an acquire waits, connecting included.
            acquire_timeout: Duration,
            /// Sets how long one attempt to connect may take.
            connect_timeout: Duration,
            /// Sets how long acquires get the error of a failed connect before another is tried.
            circuit: Duration,
            /// Sets how connecting is retried.
            retry: Retry,
            /// Sets which of its operations the pool itself repeats when a connection is lost.
            repeat: Repeat,
            /// Sets how ready resources are watched.
            probe: ProbeOptions,
            /// Sets how health is checked.
            health: HealthOptions,
            /// Sets when a lease or checkout is suspected to leak.
            leaks: LeakOptions,
            /// Sets the limits of closing.
            close: CloseOptions,
            /// Sets how many unread events are kept.
            events: usize,
            /// Sets whether each operation has a span in traces.
            trace_operations: bool,
            /// Sets whether SIGINT, SIGTERM and SIGHUP close the global pool.
            signals: bool,
            /// Sets how the process exits after a signal.
            exit_status: ExitStatus,
        }
        optional {
            /// Sets the number of threads of the pool's own runtime.
            worker_threads: usize,
        }
    }
}

impl Options {
    /// Applies the variables of the environment, and notes where each value is from.
    pub(crate) fn apply(&mut self, environment: &Environment, origins: &mut Origins) -> Result<(), Error> {
        let workers = "RESOURCE_POOL_WORKER_THREADS";
        if let Some(text) = environment.get(workers)? {
            self.worker_threads = Some(number(workers, &text, "a number of threads")?);
            origins.variable("pool.worker_threads".to_owned(), workers);
        }
        for (variable, key, value) in [
            ("RESOURCE_POOL_ACQUIRE_TIMEOUT_MS", "pool.acquire_timeout_ms", &mut self.acquire_timeout),
            ("RESOURCE_POOL_CLOSE_DELAY_MS", "pool.close.delay_ms", &mut self.close.delay),
            ("RESOURCE_POOL_CLOSE_DEADLINE_MS", "pool.close.deadline_ms", &mut self.close.deadline),
        ] {
            if environment.get(variable)?.is_some() {
                environment.millis(variable, value)?;
                origins.variable(key.to_owned(), variable);
            }
        }
        Ok(())
    }

    /// Checks that attempts and probes are made at all, have the time to succeed, and pause before the next one.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let Options { retry, probe, health, .. } = self;
        let probes = probe.enabled;
        for (key, is_zero) in [
            ("pool.connect_timeout_ms", self.connect_timeout.is_zero()),
            ("pool.retry.attempts", retry.attempts == 0),
            ("pool.retry.budget_ms", retry.budget.is_zero()),
            ("pool.health.each_ms", health.each.is_zero()),
            ("pool.health.all_ms", health.all.is_zero()),
            ("pool.retry.base_ms", retry.base.is_zero()),
            ("pool.retry.cap_ms", retry.cap.is_zero()),
            ("pool.probe.interval_ms", probes && probe.interval.is_zero()),
            ("pool.probe.limit_ms", probes && probe.limit.is_zero()),
            ("pool.probe.strikes", probes && probe.strikes == 0),
        ] {
            if is_zero {
                return Err(Error::config(key, "must be at least 1"));
            }
        }
        if !self.close.delay.is_zero() && self.close.delay >= self.close.deadline {
            return Err(Error::config("pool.close.delay_ms", "must be less than `deadline_ms`, which it is part of"));
        }
        if !(1..=MOST_EVENTS).contains(&self.events) {
            return Err(Error::config("pool.events", format!("must be from 1 to {MOST_EVENTS}")));
        }
        if self.worker_threads.is_some_and(|number| !(1..=MOST_THREADS).contains(&number)) {
            return Err(Error::config("pool.worker_threads", format!("must be from 1 to {MOST_THREADS}")));
        }
        Ok(())
    }
}

/// The most threads of a runtime. More than that is a mistake, such as a number of milliseconds.
const MOST_THREADS: usize = 1024;

/// The most unread events that may be kept. Each takes some hundred bytes.
const MOST_EVENTS: usize = 1 << 20;

/// How a process that a signal ended exits, after closing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ExitStatus {
    /// By the same signal, as if it had not been caught. A shell sees 130, 143 or 129. Process 1 of a namespace, which
    /// signals cannot end, exits with 128 plus the signal's number.
    #[default]
    Signal,
    /// With 0.
    Zero,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Options;
    use crate::lifecycle::probe::ProbeOptions;

    /// A frozen server is an error within 5 s, for calls in flight and for those that wait to connect. These are the limits that
    /// add up to that.
    #[test]
    fn the_defaults_keep_the_promise_of_five_seconds() {
        const PROMISE: Duration = Duration::from_secs(5);
        let noticed = ProbeOptions::default().silence();
        assert_eq!(noticed, Duration::from_millis(3700));
        let options = Options::default();
        assert!(noticed < PROMISE && options.retry.budget < PROMISE && options.acquire_timeout <= PROMISE);
        // One attempt to connect, and the pause after it, leave time for another.
        assert!(options.connect_timeout * 2 + options.retry.base < PROMISE);
    }
}
