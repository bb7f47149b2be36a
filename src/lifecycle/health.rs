//! Health: a true round trip on each resource, in parallel, bounded and cached.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::base::error::{Error, OneLine, Proof};
use crate::base::millis;
use crate::base::runtime::{self, within};
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::life::{Condition, Progress};
use crate::lifecycle::probe::answer;
use crate::lifecycle::registry::Registry;
use crate::lifecycle::status::State;

/// How health is checked.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct HealthOptions {
    /// How long one resource's round trip may take. Defaults to 500 ms.
    #[serde(rename = "each_ms", with = "millis")]
    pub each: Duration,
    /// How long the whole check may take. Defaults to 800 ms, below the 1 s of a kubelet's probe.
    #[serde(rename = "all_ms", with = "millis")]
    pub all: Duration,
    /// How long a report is answered again. Defaults to 1 s.
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

/// A verdict, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Health {
    /// It answered.
    Pass,
    /// Nothing is known: it was never used, or it could not be asked. This does not make the whole unhealthy.
    Unknown,
    /// It answered slowly, or that this user may not ask; or it failed and is optional.
    Warn,
    /// It did not answer, or it answered that it cannot serve.
    Fail,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Health::Pass => "pass",
            Health::Unknown => "unknown",
            Health::Warn => "warn",
            Health::Fail => "fail",
        })
    }
}

/// Whether the whole depends on a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Criticality {
    /// Its failure fails the whole.
    Required,
    /// Its failure only warns.
    Optional,
}

/// One resource's health.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HealthEntry {
    /// The resource's name.
    pub name: Arc<str>,
    /// The verdict.
    pub health: Health,
    /// How long the round trip took, if it was answered.
    pub latency: Option<Duration>,
    /// The state of its life.
    pub state: State,
    /// How long it has been in that state.
    pub since: Duration,
    /// The generation of its connection, which goes up each time it is made; zero before the first.
    pub generation: u64,
    /// Why it is not [`Health::Pass`], without credentials.
    pub error: Option<String>,
    /// Whether the whole depends on it.
    pub criticality: Criticality,
}

/// The health of a whole pool.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HealthReport {
    /// The verdict on the whole: the worst of the entries, where [`Health::Unknown`] counts as
    /// pass and what is optional only warns.
    pub health: Health,
    /// Every resource, by name.
    pub entries: Vec<HealthEntry>,
    /// When it was checked.
    pub at: Instant,
    /// How long the check took.
    pub took: Duration,
    /// Whether the pool is closing, which fails readiness but not liveness.
    pub closing: bool,
}

impl HealthReport {
    pub(crate) fn failed(error: &Error) -> Self {
        let entry = HealthEntry {
            name: Arc::from("health check"),
            health: Health::Fail,
            latency: None,
            state: State::Broken,
            since: Duration::ZERO,
            generation: 0,
            error: Some(error.to_string()),
            criticality: Criticality::Required,
        };
        let (at, took) = (Instant::now(), Duration::ZERO);
        HealthReport { health: Health::Fail, entries: vec![entry], at, took, closing: false }
    }

    /// Whether the whole passes or only warns.
    pub fn is_healthy(&self) -> bool {
        self.health != Health::Fail
    }

    /// Liveness: whether this process should go on. Never includes a dependency, so a database
    /// that is down restarts nobody.
    pub fn liveness(&self) -> Health {
        Health::Pass
    }

    /// Readiness: whether work should be sent here. Fails as soon as closing starts.
    pub fn readiness(&self) -> Health {
        if self.closing { Health::Fail } else { self.health }
    }

    /// Start-up: passes once every required resource that was asked for has been connected. What is
    /// lost after that is for [`readiness`](Self::readiness) to tell.
    pub fn startup(&self) -> Health {
        let pending = |entry: &HealthEntry| {
            entry.criticality == Criticality::Required
                && entry.generation == 0
                && matches!(entry.state, State::Connecting | State::Broken)
        };
        if self.entries.iter().any(pending) { Health::Fail } else { Health::Pass }
    }

    /// The entry of this name.
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

/// The last report, and the check that is under way.
#[derive(Default)]
pub(crate) struct Cache {
    last: Option<Arc<HealthReport>>,
    running: Option<watch::Receiver<Option<Arc<HealthReport>>>>,
}

/// A report not older than the cache allows. The check runs on the prober's runtime, whoever asks
/// and however long they wait; all who ask meanwhile get its report.
pub(crate) async fn check(registry: &Arc<Registry>) -> Result<Arc<HealthReport>, Error> {
    let mut running = {
        let mut cache = registry.health.lock();
        let fresh = cache.last.as_ref().filter(|report| {
            report.at.elapsed() < registry.context.options.health.cache
                && report.closing == registry.context.close.is_closing()
        });
        if let Some(report) = fresh {
            return Ok(Arc::clone(report));
        }
        match &cache.running {
            // One whose task has ended without a report counts as none.
            Some(running) if running.has_changed().is_ok() => running.clone(),
            _ => {
                let no_threads = |error| Error::no_threads(&Arc::from("health check"), error);
                let prober = runtime::prober().map_err(no_threads)?;
                let (sender, running) = watch::channel(None);
                cache.running = Some(running.clone());
                let registry = Arc::clone(registry);
                prober.spawn(async move {
                    let report = Arc::new(probe_all(&registry, &registry.context.options.health).await);
                    let mut cache = registry.health.lock();
                    cache.last = Some(Arc::clone(&report));
                    cache.running = None;
                    sender.send_replace(Some(report));
                });
                running
            }
        }
    };
    let report = running.wait_for(Option::is_some).await.ok().and_then(|report| report.clone());
    report.ok_or_else(|| Error::Panicked { what: "the health check".to_owned(), message: "see the log".to_owned() })
}

async fn probe_all(registry: &Registry, options: &HealthOptions) -> HealthReport {
    let at = Instant::now();
    let mut entries = Vec::new();
    let mut checks = JoinSet::new();
    for (name, slot) in registry.configured() {
        let criticality = if options.optional.iter().any(|optional| **optional == *name) {
            Criticality::Optional
        } else {
            Criticality::Required
        };
        match slot {
            Ok(slot) => {
                entries.push(before(&slot, criticality, options.all));
                let index = entries.len() - 1;
                if let Some(check) = round_trip(slot, entries[index].clone(), options) {
                    checks.spawn(async move { (index, check.await) });
                }
            }
            Err(error) => entries.push(HealthEntry {
                // What nobody has asked for is as unused as what nobody has connected.
                health: if registry.was_asked_in_vain(&name) { Health::Fail } else { Health::Unknown },
                state: if registry.was_asked_in_vain(&name) { State::Broken } else { State::Idle },
                name,
                latency: None,
                since: Duration::ZERO,
                generation: 0,
                error: Some(error.to_string()),
                criticality,
            }),
        }
    }
    let collect = async {
        while let Some(checked) = checks.join_next().await {
            if let Ok((index, entry)) = checked {
                entries[index] = entry;
            }
        }
    };
    let _what_is_left_stays_failed = within(options.all.saturating_sub(at.elapsed()), collect).await;
    let health = entries
        .iter()
        .map(|entry| match (entry.health, entry.criticality) {
            (Health::Unknown, _) => Health::Pass,
            (Health::Fail, Criticality::Optional) => Health::Warn,
            (health, _) => health,
        })
        .max()
        .unwrap_or(Health::Pass);
    HealthReport { health, entries, at, took: at.elapsed(), closing: registry.context.close.is_closing() }
}

/// What is known without a round trip; for a ready one, what it is unless its check comes back.
fn before(slot: &Arc<dyn AnySlot>, criticality: Criticality, limit: Duration) -> HealthEntry {
    let Condition { state, since, generation, failure, progress, .. } = slot.condition();
    let (health, error) = match state {
        State::Idle => (Health::Unknown, None),
        State::Connecting if failure.is_none() => (Health::Unknown, None),
        State::Ready => (Health::Fail, Some(format!("no answer within {limit:?}"))),
        State::Draining => (Health::Warn, Some("closing".to_owned())),
        State::Closed => (Health::Fail, Some("closed".to_owned())),
        State::Connecting | State::Broken => {
            // Nobody may be acquiring what is reported as failed: then this is who has it tried again.
            drop(Arc::clone(slot).wait_ready());
            let far = progress.map_or_else(String::new, |Progress { told, .. }| format!("; connecting: {told}"));
            (Health::Fail, failure.map(|failure| format!("{failure}{far}")))
        }
    };
    HealthEntry { name: Arc::clone(slot.name()), health, latency: None, state, since, generation, error, criticality }
}

fn round_trip(
    slot: Arc<dyn AnySlot>,
    mut entry: HealthEntry,
    options: &HealthOptions,
) -> Option<impl Future<Output = HealthEntry> + Send + use<>> {
    let (each, slow) = (options.each, options.slow);
    if entry.state != State::Ready {
        return None;
    }
    Some(async move {
        let started = Instant::now();
        // None where it was closed since it was looked at.
        let Some(ping) = slot.ping() else { return entry };
        let answer = answer(ping, each).await;
        let latency = started.elapsed();
        match answer {
            Ok(()) => {
                let is_slow = latency > slow;
                entry.health = if is_slow { Health::Warn } else { Health::Pass };
                entry.error = is_slow.then(|| format!("slow: over {slow:?}"));
                entry.latency = Some(latency);
            }
            Err(failure) => {
                entry.health = match failure.proof() {
                    Proof::Silent | Proof::Refused => Health::Fail,
                    Proof::Limited => Health::Warn,
                    Proof::Unasked => Health::Unknown,
                };
                entry.error = Some(failure.to_string());
            }
        }
        entry
    })
}
