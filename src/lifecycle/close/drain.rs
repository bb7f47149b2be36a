//! The drain: work in progress comes to its end.
//!
//! A close calls [`drain`] once for all its resources, and each step calls [`drain_again`] for its own.
//! Tasks: flushes run on the pool's runtime, beside each other. Those that reach the limit are aborted.
//! Invariant: no wait here is longer than its limit.
//! Locks: none is held here. An [`Activity`] wakes the waits, which then look at its counters anew.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::base::clock::Moment;
use crate::base::runtime::within;
use crate::lifecycle::activity::Activity;
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::context::Context;
use crate::lifecycle::lease::Held;

/// Whether a resource has no work in progress and no checkouts.
pub(crate) fn is_idle(slot: &dyn AnySlot) -> bool {
    slot.activity().counters.now().is_empty() && !slot.is_held(Held::Checkouts)
}

/// Waits for work in progress. Handles that are merely held are waited for only for a moment, and only if they were
/// used lately.
pub(crate) async fn drain(
    context: &Arc<Context>,
    slots: &[Arc<dyn AnySlot>],
    active: &[Arc<Activity>],
    begun: Moment,
    limit: Duration,
) {
    let held = context.options.close.held;
    let flushed = in_parallel(context, limit, slots.iter().cloned().map(AnySlot::flush));
    let idle = |activity: &Arc<Activity>| {
        let slot = slots.iter().find(|slot| Arc::ptr_eq(slot.activity(), activity));
        slot.map_or_else(|| activity.counters.now().is_empty(), |slot| is_idle(&**slot))
    };
    let worked = async {
        // Work that ends at one resource may go on at another that was idle before, so all are looked at again.
        while let Some(activity) = active.iter().find(|activity| !idle(activity)) {
            activity.until(|| idle(activity).then_some(())).await;
        }
    };
    let released = async {
        for slot in slots {
            let worked_lately = slot.activity().counters.ended_within(held, begun);
            let lately = if worked_lately { Held::Any } else { Held::TakenWithin(held, begun) };
            slot.activity().until(|| (!slot.is_held(lately)).then_some(())).await;
        }
    };
    let all = async { tokio::join!(flushed, worked, within(held, released)) };
    let _what_is_left_is_reported_per_step = within(limit, all).await;
}

/// Waits for work that the closing code of earlier phases has begun at this resource.
pub(crate) async fn drain_again(context: &Arc<Context>, slot: &Arc<dyn AnySlot>, limit: Duration) {
    if is_idle(&**slot) {
        return;
    }
    let flushed = in_parallel(context, limit, std::iter::once(Arc::clone(slot).flush()));
    let idle = slot.activity().until(|| is_idle(&**slot).then_some(()));
    let _what_is_left_is_reported = within(limit, async { tokio::join!(flushed, idle) }).await;
}

/// Runs these futures on the pool's runtime, all at once, for at most this long.
pub(crate) async fn in_parallel<F>(context: &Context, limit: Duration, futures: impl Iterator<Item = F>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let Some(runtime) = context.runtime.current() else { return };
    let mut running = JoinSet::new();
    for future in futures {
        running.spawn_on(future, &runtime);
    }
    let all = async {
        while let Some(ended) = running.join_next().await {
            if let Err(error) = ended {
                tracing::warn!(%error, "while closing");
            }
        }
    };
    if within(limit, all).await.is_err() {
        tracing::debug!(?limit, "not all stopped in time");
    }
}
