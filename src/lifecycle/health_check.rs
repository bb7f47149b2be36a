//! Health checks: a true round trip to each resource, in parallel, bounded and cached.
//!
//! A registry calls [`HealthCheck::report`]. At most one check of a pool is under way. It runs in a task on the
//! prober's runtime, so it goes on when a caller gives up. Callers that come meanwhile wait for its report. Each round
//! trip has a task of its own, so a slow one delays no other.
//!
//! `cache` is the only lock of this file, and it is never held across an await. The lock of the close state may be
//! taken under it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::base::error::{Error, Proof};
use crate::base::runtime::{self, within};
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::condition::{Condition, Progress};
use crate::lifecycle::context::Context;
use crate::lifecycle::event::What;
use crate::lifecycle::health::{Criticality, Health, HealthEntry, HealthOptions, HealthReport, NodeHealth};
use crate::lifecycle::probe::answer;
use crate::lifecycle::spans::{self, TaskSpan};
use crate::lifecycle::status::State;

/// The last report, and the check that is under way.
#[derive(Default)]
struct Cache {
    last: Option<Arc<HealthReport>>,
    running: Option<RunningCheck>,
}

/// Receives the report of the check that is under way.
type RunningCheck = watch::Receiver<Option<Arc<HealthReport>>>;

/// The health checks of a pool, of which at most one is under way.
#[derive(Default)]
pub(crate) struct HealthCheck {
    cache: Mutex<Cache>,
}

/// A resource that the check finds in the pool.
pub(crate) struct Found {
    pub(crate) name: Arc<str>,
    /// The resource, or why it could not be made.
    pub(crate) slot: Result<Arc<dyn AnySlot>, Error>,
    /// Whether a caller has asked for a resource that could not be made.
    pub(crate) was_asked_for: bool,
}

impl HealthCheck {
    /// A report that is not older than the cache allows. The check goes on if the caller gives up, and all callers that
    /// ask meanwhile get its report.
    pub(crate) async fn report(
        self: Arc<Self>,
        context: &Arc<Context>,
        find: impl FnOnce() -> Vec<Found> + Send + 'static,
    ) -> Result<Arc<HealthReport>, Error> {
        let mut running = self.running(context, find)?;
        let report = match &mut running {
            Ok(report) => return Ok(Arc::clone(report)),
            Err(running) => running.wait_for(Option::is_some).await.ok().and_then(|report| report.clone()),
        };
        report.ok_or_else(|| Error::Panicked { what: "the health check".to_owned(), message: "see the log".to_owned() })
    }

    /// The last report if it is fresh, or else the check that is under way. Begins a check if there is none.
    fn running(
        self: &Arc<Self>,
        context: &Arc<Context>,
        find: impl FnOnce() -> Vec<Found> + Send + 'static,
    ) -> Result<Result<Arc<HealthReport>, RunningCheck>, Error> {
        // Taken before the lock, since a subscriber is users' code.
        let caller = TaskSpan::current();
        let mut cache = self.cache.lock();
        let is_fresh = |report: &&Arc<HealthReport>| {
            report.at.elapsed() < context.options.health.cache
                && report.closing == context.close.is_closing()
                && report.lowered == context.close.is_lowered()
        };
        if let Some(report) = cache.last.as_ref().filter(is_fresh) {
            return Ok(Ok(Arc::clone(report)));
        }
        match &cache.running {
            // A check whose task has ended without a report counts as none. Its sender is gone.
            Some(running) if running.has_changed().is_ok() => Ok(Err(running.clone())),
            _ => {
                let no_threads = |error| Error::no_threads(&Arc::from("health check"), error);
                let prober = runtime::background().map_err(no_threads)?;
                let (sender, running) = watch::channel(None);
                cache.running = Some(running.clone());
                let (me, context) = (Arc::clone(self), Arc::clone(context));
                prober.spawn(async move {
                    let span = caller.in_scope(spans::health_check);
                    drop(caller);
                    let report = Arc::new(check(find, &context, &span).await);
                    span.reported(&report);
                    drop(span);
                    let mut cache = me.cache.lock();
                    cache.last = Some(Arc::clone(&report));
                    cache.running = None;
                    // The wakers of those who wait are code of users.
                    drop(cache);
                    sender.send_replace(Some(report));
                });
                Ok(Err(running))
            }
        }
    }
}

/// Checks every resource that `find` finds, within the limit of the whole check.
async fn check(find: impl FnOnce() -> Vec<Found>, context: &Context, span: &TaskSpan) -> HealthReport {
    let (at, options) = (Instant::now(), &context.options.health);
    // A resource that is not asked has no span.
    let (mut entries, mut slots, mut asked) = (Vec::new(), Vec::new(), Vec::new());
    let mut checks = JoinSet::new();
    for Found { name, slot, was_asked_for } in find() {
        let criticality = if options.optional.iter().any(|optional| **optional == *name) {
            Criticality::Optional
        } else {
            Criticality::Required
        };
        match slot {
            Ok(slot) => {
                entries.push(before(&slot, criticality, options.all));
                slots.push(Some(Arc::clone(&slot)));
                let index = entries.len() - 1;
                let traced = Arc::clone(slot.activity());
                asked.push(round_trip(slot, entries[index].clone(), options).map(|check| {
                    checks.spawn(async move { (index, check.await) });
                    span.in_scope(|| traced.traced.round_trip())
                }));
            }
            Err(error) => {
                let failed = HealthEntry { criticality, ..HealthEntry::failed(name, &error) };
                slots.push(None);
                asked.push(None);
                entries.push(match was_asked_for {
                    true => failed,
                    // Nobody has asked for this resource, so it counts as unused, like one that was never connected.
                    false => HealthEntry { health: Health::Unknown, state: State::Idle, ..failed },
                });
            }
        }
    }
    let collect = async {
        while let Some(checked) = checks.join_next().await {
            if let Ok((index, entry)) = checked {
                entries[index] = entry;
                if let Some(span) = asked[index].take() {
                    span.checked(&entries[index]);
                }
            }
        }
    };
    let _what_is_left_stays_failed = within(options.all.saturating_sub(at.elapsed()), collect).await;
    for (entry, span) in entries.iter().zip(asked) {
        span.iter().for_each(|span| span.checked(entry));
    }
    for (entry, slot) in entries.iter().zip(slots) {
        let checked = || What::Checked { entry: entry.clone() };
        match slot {
            Some(slot) => slot.activity().note(|| entry.generation, checked),
            None => context.note(&entry.name, checked),
        }
    }
    let health = entries
        .iter()
        .map(|entry| match (entry.health, entry.criticality) {
            (Health::Unknown, _) => Health::Pass,
            (Health::Fail, Criticality::Optional) => Health::Warn,
            (health, _) => health,
        })
        .max()
        .unwrap_or(Health::Pass);
    let (closing, lowered) = (context.close.is_closing(), context.close.is_lowered());
    HealthReport { health, entries, at, took: at.elapsed(), closing, lowered }
}

/// The entry of a resource without a round trip. A ready resource keeps it if its round trip does not end in time.
fn before(slot: &Arc<dyn AnySlot>, criticality: Criticality, limit: Duration) -> HealthEntry {
    let Condition { state, since, generation, failure, progress, .. } = slot.condition();
    let (health, error) = match state {
        State::Idle => (Health::Unknown, None),
        State::Connecting if failure.is_none() => (Health::Unknown, None),
        State::Ready => (Health::Fail, Some(format!("no answer within {limit:?}"))),
        State::Draining => (Health::Warn, Some("closing".to_owned())),
        State::Closed => (Health::Fail, Some("closed".to_owned())),
        State::Connecting | State::Broken => {
            // Maybe no caller acquires this resource, so the health check has it tried again. The attempt goes on
            // without the future.
            Arc::clone(slot).try_again();
            let far = progress.map_or_else(String::new, |Progress { told, .. }| format!("; connecting: {told}"));
            (Health::Fail, failure.map(|failure| format!("{failure}{far}")))
        }
    };
    let nodes = vec![NodeHealth { endpoint: Arc::clone(&slot.activity().endpoint), health }];
    let (name, latency) = (Arc::clone(slot.name()), None);
    HealthEntry { name, health, latency, state, since, generation, error, criticality, nodes }
}

/// The round trip to a ready resource, which completes its entry. `None` if the resource is not ready.
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
        // `None` if the resource was closed in the meantime.
        let Some(ping) = Arc::clone(&slot).ping() else { return entry };
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
                // The connection may have been lost, or closed, while it was asked.
                let now = before(&slot, entry.criticality, each);
                if now.state != State::Ready {
                    return now;
                }
                entry.health = match failure.proof() {
                    Proof::Silent | Proof::Refused => Health::Fail,
                    Proof::Limited => Health::Warn,
                    Proof::Unasked => Health::Unknown,
                };
                entry.error = Some(failure.to_string());
            }
        }
        for node in &mut entry.nodes {
            node.health = entry.health;
        }
        entry
    })
}
