//! The options and the reports of health checks.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::base::error::{Error, OneLine};
#[cfg(feature = "serde")]
use crate::base::json;
use crate::base::millis;
use crate::base::setters::setters;
use crate::lifecycle::status::State;

/// The options of health checks.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct HealthOptions {
    /// How long one resource's round trip may take. Defaults to 500 ms.
    #[serde(rename = "each_ms", with = "millis")]
    pub each: Duration,
    /// How long the whole check may take. Defaults to 800 ms, below the 1 s of a kubelet's probe.
    #[serde(rename = "all_ms", with = "millis")]
    pub all: Duration,
    /// How long a report is returned again without a new check. Defaults to 1 s.
    #[serde(rename = "cache_ms", with = "millis")]
    pub cache: Duration,
    /// A round trip longer than this is [`Health::Warn`]. Defaults to 250 ms.
    #[serde(rename = "slow_ms", with = "millis")]
    pub slow: Duration,
    /// The names of resources whose failure only warns. Defaults to none.
    pub optional: Vec<String>,
}

impl Default for HealthOptions {
    fn default() -> Self {
        HealthOptions {
            each: Duration::from_millis(500),
            all: Duration::from_millis(800),
            cache: Duration::from_secs(1),
            slow: Duration::from_millis(250),
            optional: Vec::new(),
        }
    }
}

impl HealthOptions {
    setters! {
        plain {
            /// Sets how long one resource's round trip may take.
            each: Duration,
            /// Sets how long the whole check may take.
            all: Duration,
            /// Sets how long a report is returned again without a new check.
            cache: Duration,
            /// Sets the time beyond which a round trip is [`Health::Warn`].
            slow: Duration,
        }
    }

    /// Sets the names of resources whose failure only warns.
    pub fn optional<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.optional = names.into_iter().map(Into::into).collect();
        self
    }
}

/// The verdicts, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Health {
    /// The resource answered.
    Pass,
    /// Nothing is known of the resource: it was never used, or could not be asked. This does not make the pool
    /// unhealthy.
    Unknown,
    /// It answered slowly, that this user may not ask, or that it is degraded; or it is closing. The pool warns if an optional
    /// resource failed.
    Warn,
    /// It did not answer, it answered that it cannot serve, its connection failed, or it is closed.
    Fail,
}

impl Health {
    /// The word for it, as in `pass`.
    pub fn code(self) -> &'static str {
        match self {
            Health::Pass => "pass",
            Health::Unknown => "unknown",
            Health::Warn => "warn",
            Health::Fail => "fail",
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.code())
    }
}

/// Whether the health of the pool depends on a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Criticality {
    /// Its failure fails the pool.
    Required,
    /// Its failure only warns.
    Optional,
}

/// One resource's health.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct HealthEntry {
    /// The resource's name.
    pub name: Arc<str>,
    /// The verdict.
    pub health: Health,
    /// How long the round trip took. `None` unless it succeeded.
    #[cfg_attr(feature = "serde", serde(rename = "latency_ms", serialize_with = "json::some_millis"))]
    pub latency: Option<Duration>,
    /// The state of its life.
    pub state: State,
    /// How long it has been in that state.
    #[cfg_attr(feature = "serde", serde(rename = "since_ms", serialize_with = "json::millis"))]
    pub since: Duration,
    /// The generation of its connection. It goes up with each new connection, and is zero before the first.
    pub generation: u64,
    /// Why it is not [`Health::Pass`], without credentials.
    #[cfg_attr(feature = "serde", serde(rename = "message", serialize_with = "json::some_line"))]
    pub error: Option<String>,
    /// Whether the health of the pool depends on it.
    pub criticality: Criticality,
    /// The servers of the resource. Empty if the resource could not be made.
    pub nodes: Vec<NodeHealth>,
}

/// The health of one server of a resource.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct NodeHealth {
    /// Where the server is, without credentials.
    pub endpoint: Arc<str>,
    /// The verdict.
    pub health: Health,
}

impl HealthEntry {
    /// The entry of a resource that could not be made, so there is nothing to ask.
    pub(crate) fn failed(name: Arc<str>, error: &Error) -> Self {
        HealthEntry {
            name,
            health: Health::Fail,
            latency: None,
            state: State::Broken,
            since: Duration::ZERO,
            generation: 0,
            error: Some(error.to_string()),
            criticality: Criticality::Required,
            nodes: Vec::new(),
        }
    }
}

/// The health of a whole pool.
///
/// ```no_run
/// # async fn example() {
/// use resource_pool::{Health, ResourcePool};
///
/// let report = ResourcePool::global().health_check().await;
/// for entry in &report.entries {
///     if entry.health == Health::Fail {
///         println!("{} is {}", entry.name, entry.state);
///     }
/// }
/// println!("ready: {}", report.readiness());
/// # }
/// ```
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct HealthReport {
    /// The verdict on the pool: the worst of the entries. Here [`Health::Unknown`] counts as pass, and an optional
    /// resource only warns.
    pub health: Health,
    /// Every resource, by name.
    pub entries: Vec<HealthEntry>,
    /// When it was checked.
    #[cfg_attr(feature = "serde", serde(rename = "at_ms", serialize_with = "json::instant"))]
    pub at: Instant,
    /// How long the check took.
    #[cfg_attr(feature = "serde", serde(rename = "took_ms", serialize_with = "json::millis"))]
    pub took: Duration,
    /// Whether the pool is closing, which fails readiness but not liveness.
    pub closing: bool,
    /// Whether readiness was [lowered](crate::ResourcePool::lower_readiness), by the application or by a signal.
    pub lowered: bool,
}

impl HealthReport {
    pub(crate) fn failed(error: &Error) -> Self {
        let entry = HealthEntry::failed(Arc::from("health check"), error);
        let (at, took) = (Instant::now(), Duration::ZERO);
        HealthReport { health: Health::Fail, entries: vec![entry], at, took, closing: false, lowered: false }
    }

    /// Whether the pool passes or only warns.
    pub fn is_healthy(&self) -> bool {
        self.health != Health::Fail
    }

    /// Liveness: whether this process should go on. It never depends on a resource, so a database that is down does not
    /// restart the process.
    pub fn liveness(&self) -> Health {
        Health::Pass
    }

    /// Readiness: whether work should be sent to this process. It fails as soon as closing starts, or as readiness is
    /// lowered.
    pub fn readiness(&self) -> Health {
        if self.closing || self.lowered { Health::Fail } else { self.health }
    }

    /// Start-up: passes once every required resource that was asked for has been connected. A later loss shows only in
    /// [`readiness`](Self::readiness).
    pub fn startup(&self) -> Health {
        let pending = |entry: &HealthEntry| {
            entry.criticality == Criticality::Required
                && entry.generation == 0
                && matches!(entry.state, State::Connecting | State::Broken)
        };
        if self.entries.iter().any(pending) { Health::Fail } else { Health::Pass }
    }

    /// The entry of the resource with this name.
    pub fn entry(&self, name: &str) -> Option<&HealthEntry> {
        self.entries.iter().find(|entry| &*entry.name == name)
    }
}

impl fmt::Display for HealthReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<14} {:<8} {:>10}  {:<10} error", "resource", "health", "latency", "state")?;
        for entry in &self.entries {
            let latency = entry.latency.map_or_else(|| "-".to_owned(), |latency| format!("{latency:.1?}"));
            let error = OneLine(entry.error.as_deref().unwrap_or(""));
            writeln!(f, "{:<14} {:<8} {latency:>10}  {:<10} {error}", entry.name, entry.health, entry.state)?;
        }
        write!(f, "{:<14} {:<8} {:>10}", "all", self.health, format!("{:.1?}", self.took))
    }
}
