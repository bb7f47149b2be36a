//! Leaks: leases and checkouts that are held for longer, or in larger numbers, than expected.
//!
//! `leak_scan` looks for them, and a suspected lease that drops calls [`came_back`].
//!
//! `Leaks::exceeded` is the only lock. It is free again before an event is told, since a logger is user code.
//! `Leaks::total` only counts, so its ordering is relaxed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;

use crate::base::holder::Holder;
use crate::base::millis;
use crate::base::runtime;
use crate::base::setters::setters;
use crate::lifecycle::activity::Activity;
use crate::lifecycle::event::What;

/// When a lease or checkout is suspected to leak. `[pool.leaks]` in TOML. The pool warns of each suspect once, and
/// notes when it comes back.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LeakOptions {
    /// How long a checkout may be out. Defaults to 60 s. Zero means no limit.
    #[serde(rename = "age_ms", with = "millis")]
    pub age: Duration,
    /// How many checkouts of one resource may be out. Defaults to no limit.
    pub count: Option<usize>,
    /// Whether shared leases are watched like checkouts. Defaults to `false`, since they may be held as long as the
    /// program runs.
    pub shared: bool,
    /// Whether each acquire of a watched lease or checkout captures a backtrace. Defaults to `false`, since each takes
    /// microseconds.
    pub backtrace: bool,
}

impl Default for LeakOptions {
    fn default() -> Self {
        LeakOptions { age: Duration::from_secs(60), count: None, shared: false, backtrace: false }
    }
}

impl LeakOptions {
    setters! {
        plain {
            /// Sets how long a checkout may be out. Zero means no limit.
            age: Duration,
            /// Sets whether shared leases are watched like checkouts.
            shared: bool,
            /// Sets whether each acquire of a watched lease or checkout captures a backtrace.
            backtrace: bool,
        }
    }

    /// Sets how many checkouts of one resource may be out.
    pub fn count(mut self, count: usize) -> Self {
        self.count = Some(count);
        self
    }
}

impl LeakOptions {
    /// The pause between two scans. `None` if there is nothing to look for.
    pub(crate) fn interval(&self) -> Option<Duration> {
        let by_age = (!self.age.is_zero()).then(|| self.age / 8);
        let by_count = self.count.map(|_| Duration::from_secs(1));
        let interval = by_age.into_iter().chain(by_count).min()?;
        Some(interval.clamp(Duration::from_millis(10), Duration::from_secs(5)))
    }
}

/// The thresholds that one resource has exceeded, and how often it was suspected.
#[derive(Default)]
pub(crate) struct Leaks {
    pub(crate) exceeded: Mutex<BTreeSet<Threshold>>,
    pub(crate) total: AtomicUsize,
}

/// A number of leases and checkouts. It is exceeded if more of them are out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Threshold {
    /// All leases and checkouts.
    Held(usize),
    /// The holders of checkouts, and of leases if [`shared`](LeakOptions::shared) is on.
    Watched(usize),
}

impl Leaks {
    /// How many thresholds are exceeded now.
    pub(crate) fn exceeded(&self) -> usize {
        self.exceeded.lock().len()
    }

    /// How many suspicions there have been.
    pub(crate) fn total(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// Whether `threshold` is exceeded. Tells an event when that begins and when it ends.
    pub(crate) fn check(&self, activity: &Activity, generation: u64, threshold: Threshold, holders: &[Holder]) -> bool {
        let (Threshold::Held(allowed) | Threshold::Watched(allowed)) = threshold;
        let held = holders.iter().filter(|one| matches!(threshold, Threshold::Held(_)) || one.is_watched()).count();
        let is_exceeded = held > allowed;
        let mut exceeded = self.exceeded.lock();
        let is_news = if is_exceeded { exceeded.insert(threshold) } else { exceeded.remove(&threshold) };
        drop(exceeded);
        match (is_exceeded, is_news) {
            (true, true) => {
                self.total.fetch_add(1, Ordering::Relaxed);
                activity.tell(generation, What::Crowded { held, allowed, holders: holders.to_vec() });
            }
            (false, true) => activity.tell(generation, What::Uncrowded { held, allowed }),
            _ => {}
        }
        is_exceeded
    }
}

/// Notes that a suspect came back. A task on the prober's runtime does this, since a drop may happen where nothing can
/// be logged.
pub(crate) fn came_back(activity: Arc<Activity>, holder: Holder) {
    if let Ok(prober) = runtime::background() {
        prober.spawn(async move { activity.tell(holder.generation, What::LeakReturned { holder }) });
    }
}
