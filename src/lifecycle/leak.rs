//! Leaks: what is held for longer, or by more, than was expected.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;

use crate::base::holder::Holder;
use crate::base::millis;
use crate::base::runtime;
use crate::lifecycle::activity::Activity;
use crate::lifecycle::event::What;

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

/// More than this many of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Threshold {
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

/// A suspect came back. Noted by the prober, since a drop may happen where nothing can be logged.
pub(crate) fn came_back(activity: Arc<Activity>, holder: Holder) {
    if let Ok(prober) = runtime::background() {
        prober.spawn(async move { activity.tell(holder.generation, What::LeakReturned { holder }) });
    }
}
