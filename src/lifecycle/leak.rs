//! Leaks: what is held for longer, or by more, than was expected.
//!
//! One scan per pool on the prober's runtime looks for them, so that a checkout costs no timer,
//! and what is not watched costs nothing.

use std::collections::BTreeSet;
use std::sync::Weak;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;

use crate::base::error::Few;
use crate::base::holder::Holder;
use crate::base::millis;
use crate::base::runtime;
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::registry::Registry;

/// What is suspected to leak; `[pool.leaks]` in TOML. Each suspect is warned of once, and noted
/// when it comes back.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LeakOptions {
    /// How long a checkout may be out. Defaults to 60 s; zero is without limit.
    #[serde(rename = "age_ms", with = "millis")]
    pub age: Duration,
    /// How many checkouts of one resource may be out. Defaults to no limit.
    pub count: Option<usize>,
    /// Whether shared leases are watched like checkouts. Defaults to `false`, as they may be held
    /// for life.
    pub shared: bool,
    /// Whether what is watched is acquired with a backtrace. Defaults to `false`, as each takes
    /// microseconds.
    pub backtrace: bool,
}

impl Default for LeakOptions {
    fn default() -> Self {
        LeakOptions { age: Duration::from_secs(60), count: None, shared: false, backtrace: false }
    }
}

impl LeakOptions {
    /// The pause between two scans, if there is anything to look for.
    fn interval(&self) -> Option<Duration> {
        let by_age = (!self.age.is_zero()).then(|| self.age / 8);
        let by_count = self.count.map(|_| Duration::from_secs(1));
        let interval = by_age.into_iter().chain(by_count).min()?;
        Some(interval.clamp(Duration::from_millis(10), Duration::from_secs(5)))
    }
}

/// The thresholds that one resource has exceeded, and how often it was suspected.
#[derive(Default)]
pub(crate) struct Leaks {
    exceeded: Mutex<BTreeSet<Threshold>>,
    total: AtomicUsize,
}

/// More than this many of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Threshold {
    /// Leases and checkouts.
    Held(usize),
    /// What is watched.
    Watched(usize),
}

impl Leaks {
    /// How many thresholds are exceeded now.
    pub(crate) fn exceeded(&self) -> usize {
        self.exceeded.lock().len()
    }

    /// How many suspicions there ever were.
    pub(crate) fn total(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// Whether it is exceeded; told when that begins and when it ends.
    fn check(&self, resource: &str, threshold: Threshold, holders: &[Holder]) -> bool {
        let (Threshold::Held(allowed) | Threshold::Watched(allowed)) = threshold;
        let held = holders.iter().filter(|one| matches!(threshold, Threshold::Held(_)) || one.is_watched()).count();
        let is_exceeded = held > allowed;
        let mut exceeded = self.exceeded.lock();
        let is_news = if is_exceeded { exceeded.insert(threshold) } else { exceeded.remove(&threshold) };
        drop(exceeded);
        match (is_exceeded, is_news) {
            (true, true) => {
                self.total.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(resource, held, allowed, holders = %Few(holders, ", "), "more held than expected: a leak?");
            }
            (false, true) => tracing::info!(resource, held, allowed, "no more held than expected again"),
            _ => {}
        }
        is_exceeded
    }
}

/// Every holder of a resource of which more than this many leases and checkouts are out.
pub(crate) fn more_than(threshold: usize, slot: &dyn AnySlot) -> Vec<Holder> {
    let holders = slot.holders();
    let is_exceeded = slot.leaks().check(slot.name(), Threshold::Held(threshold), &holders);
    if is_exceeded { holders } else { Vec::new() }
}

/// Looks for leaks until the pool is gone.
pub(crate) fn watch(registry: Weak<Registry>, options: LeakOptions) {
    let Some(interval) = options.interval() else { return };
    match runtime::prober() {
        Ok(prober) => drop(prober.spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                let Some(registry) = registry.upgrade() else { return };
                for slot in registry.slots() {
                    scan(&*slot, &options);
                }
            }
        })),
        Err(error) => tracing::error!(%error, "not looking for leaks"),
    }
}

fn scan(slot: &dyn AnySlot, options: &LeakOptions) {
    let (resource, leaks) = (&**slot.name(), slot.leaks());
    for suspect in slot.suspect(options.age) {
        leaks.total.fetch_add(1, Ordering::Relaxed);
        let Holder { site, held, owner, backtrace, .. } = suspect;
        let (owner, backtrace) = (owner.map(tracing::field::display), backtrace.map(tracing::field::display));
        tracing::warn!(resource, %site, ?held, owner, backtrace, "held for longer than expected: a leak?");
    }
    let mut thresholds = leaks.exceeded.lock().clone();
    thresholds.extend(options.count.map(Threshold::Watched));
    if !thresholds.is_empty() {
        let holders = slot.holders();
        for threshold in thresholds {
            leaks.check(resource, threshold, &holders);
        }
    }
}

/// A suspect came back. Noted by the prober, since a drop may happen where nothing can be logged.
pub(crate) fn came_back(suspect: Holder) {
    if let Ok(prober) = runtime::prober() {
        prober.spawn(async move {
            let Holder { resource, site, held, .. } = suspect;
            tracing::info!(%resource, %site, ?held, "came back after all");
        });
    }
}
