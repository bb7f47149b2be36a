//! The search for leaks. One task per pool on the prober's runtime scans the resources, so a checkout needs no timer,
//! and an unwatched lease costs nothing.
//!
//! A registry starts the task before its first connection. The task ends once the pool is gone.
//! A scan copies the holders under the lock of one shard after another, and holds no lock while it tells events.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::base::holder::Holder;
use crate::base::runtime;
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::event::What;
use crate::lifecycle::leak::{LeakOptions, Threshold};

/// All holders of a resource if more than `threshold` leases and checkouts are out. Otherwise none.
pub(crate) fn more_than(threshold: usize, slot: &dyn AnySlot) -> Vec<Holder> {
    let holders = slot.holders();
    let is_exceeded = check(slot, Threshold::Held(threshold), &holders);
    if is_exceeded { holders } else { Vec::new() }
}

/// Looks for leaks until the pool is gone.
pub(crate) fn watch(options: LeakOptions, slots: impl Fn() -> Option<Vec<Arc<dyn AnySlot>>> + Send + 'static) {
    let Some(interval) = options.interval() else { return };
    match runtime::background() {
        Ok(prober) => drop(prober.spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                let Some(slots) = slots() else { return };
                for slot in slots {
                    scan(&*slot, &options);
                }
            }
        })),
        Err(error) => tracing::error!(%error, "not looking for leaks"),
    }
}

/// Tells new suspects, and checks the configured threshold and all thresholds that were exceeded before.
fn scan(slot: &dyn AnySlot, options: &LeakOptions) {
    let leaks = slot.leaks();
    for holder in slot.suspect(options.age) {
        leaks.total.fetch_add(1, Ordering::Relaxed);
        slot.activity().tell(holder.generation, What::Leak { holder });
    }
    let mut thresholds = leaks.exceeded.lock().clone();
    thresholds.extend(options.count.map(Threshold::Watched));
    if !thresholds.is_empty() {
        let holders = slot.holders();
        for threshold in thresholds {
            check(slot, threshold, &holders);
        }
    }
}

fn check(slot: &dyn AnySlot, threshold: Threshold, holders: &[Holder]) -> bool {
    slot.leaks().check(slot.activity(), slot.condition().generation, threshold, holders)
}
