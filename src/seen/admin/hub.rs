//! [`Hub`], which follows a pool and tells all streams the same.
//!
//! Three tasks of the hub run on the admin's thread. One reads the events, one tells the status, and one checks the
//! health. The streams of any runtime receive the same bytes, so that a further reader costs no further serialising.
//! Locks: `recent` is held while an event is remembered and told, so that a stream that begins has each event once.
//! `health` and `told` are held for a copy. The lock of the channel may be taken under `recent`, no other.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use axum::body::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, broadcast};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::Events;
use crate::HealthReport;
use crate::Holder;
use crate::PoolStatus;
use crate::ResourcePool;
use crate::What;
use crate::base::sync::until;
use crate::seen::admin::answer::{self, Denial};
use crate::seen::admin::aside::Aside;
use crate::seen::admin::holders;
use crate::seen::admin::limits::{AdminLimits, FRAMES, LAST_WORDS, SOON, STREAMED_HOLDERS, TICK, UNWATCHED};
use crate::seen::admin::recent::{Recent, Told, message};
use crate::seen::admin::views::{StatusView, TickView};

/// The knowledge that an admin has of its pool, and those who listen.
pub(super) struct Hub {
    pub(super) pool: ResourcePool,
    /// The status asks each resource for its usage, which is a user's code.
    usage: Aside,
    recent: Mutex<Recent>,
    health: Mutex<Option<Arc<HealthReport>>>,
    messages: broadcast::Sender<Told>,
    most_streams: usize,
    streams: AtomicUsize,
    /// Wakes those who wait until a stream begins or ends.
    streams_changed: Notify,
    /// Wakes the task that tells the status, since a state has changed.
    changed: Notify,
    /// Whether the close report was told to all streams that read.
    told: Mutex<bool>,
    told_changed: Condvar,
    /// Tells the listener that the pool has closed and the streams have ended.
    pub(super) is_over: CancellationToken,
}

impl Hub {
    pub(super) fn new(pool: &ResourcePool, limits: &AdminLimits) -> Arc<Self> {
        Arc::new(Hub {
            pool: pool.clone(),
            usage: Aside::new("the usage of a resource", limits.patience),
            recent: Mutex::new(Recent::new(Instant::now())),
            health: Mutex::default(),
            messages: broadcast::channel(FRAMES).0,
            most_streams: limits.streams,
            streams: AtomicUsize::new(0),
            streams_changed: Notify::new(),
            changed: Notify::new(),
            told: Mutex::new(false),
            told_changed: Condvar::new(),
            is_over: CancellationToken::new(),
        })
    }

    /// Has the end of the process wait for the last words of the streams, as it waits for the pool's listeners.
    pub(super) fn delay_the_end(self: &Arc<Self>) {
        // The pool keeps its listeners for ever, so that a listener must not keep the pool.
        let hub = Arc::downgrade(self);
        self.pool.on_report(move |_| {
            if let Some(hub) = hub.upgrade() {
                hub.wait_told();
            }
        });
    }

    /// Reads the events until there are none any more.
    pub(super) async fn follow(self: Arc<Self>, mut events: Events) {
        while let Some(event) = events.next().await {
            let (mut begins, mut ends) = (false, false);
            match &event.what {
                What::Closing { .. } => begins = event.resource.is_none(),
                What::Closed { .. } => ends = true,
                What::StateChanged { .. } => self.changed.notify_one(),
                _ => {}
            }
            if begins {
                *self.told.lock() = false;
            }
            {
                let mut recent = self.recent.lock();
                for told in recent.hear(event, Instant::now()) {
                    // `send` fails if nobody listens.
                    let _ = self.messages.send(told);
                }
            }
            if ends {
                self.last_words().await;
            }
        }
    }

    /// Waits until the streams have taken the close report. A stream whose reader stalls is not waited for.
    async fn last_words(&self) {
        let ended = until(&self.streams_changed, || (self.streams() == 0).then_some(()));
        // The listener's streams run on this thread, too. Each has written as much as its reader took when this task runs
        // again.
        let _stalled = tokio::time::timeout(LAST_WORDS, ended).await;
        *self.told.lock() = true;
        self.told_changed.notify_all();
        self.is_over.cancel();
    }

    /// Blocks the closer's thread until the streams have told the report.
    fn wait_told(&self) {
        let limit = Instant::now() + 2 * LAST_WORDS;
        let mut told = self.told.lock();
        while !*told {
            if self.told_changed.wait_until(&mut told, limit).timed_out() {
                return;
            }
        }
    }

    /// Tells the status once a second, and soon after a change, as long as somebody listens.
    pub(super) async fn tell(self: Arc<Self>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                // The pause lets one message tell several changes.
                () = self.changed.notified() => tokio::time::sleep(SOON).await,
            }
            if self.streams() > 0
                && let Ok(json) = self.tick().await
            {
                let _ = self.messages.send(Told { bytes: message("status", None, &json), is_last: false });
            }
        }
    }

    /// Checks the health, more often while somebody listens. The events of the checks have the latencies.
    pub(super) async fn check(self: Arc<Self>) {
        loop {
            let report = self.pool.health_check().await;
            self.recent.lock().keep_only(|name| report.entry(name).is_some());
            *self.health.lock() = Some(Arc::new(report));
            let pause = if self.streams() > 0 { TICK } else { UNWATCHED };
            let begins = self.streams_changed.notified();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // A first stream ends the pause before its time.
                () = begins, if pause > TICK => tokio::time::sleep(SOON).await,
            }
        }
    }

    /// The status of the pool.
    ///
    /// # Errors
    /// A resource does not tell its usage in time.
    pub(super) async fn pool_status(&self) -> Result<PoolStatus, Denial> {
        let pool = self.pool.clone();
        self.usage.call(move || pool.status()).await
    }

    /// The message of each second, for all streams.
    ///
    /// # Errors
    /// The status cannot be had.
    async fn tick(&self) -> Result<String, Denial> {
        let (status, holders) = (self.pool_status().await?, self.holders());
        let health = self.health.lock().clone();
        let (latency, clock_ms, left_out) = {
            let mut recent = self.recent.lock();
            (recent.new_latency(), recent.clock(Instant::now()), recent.left_out())
        };
        let status = StatusView::new(self.pool.is_closing(), &status, health.as_deref());
        answer::text(&TickView { status, holders: &holders, latency: &latency, clock_ms, left_out })
    }

    /// The holders that a stream tells.
    fn holders(&self) -> Vec<Holder> {
        holders::first(self.pool.holders(), STREAMED_HOLDERS)
    }

    /// The first message of a stream, and those that follow it.
    ///
    /// # Errors
    /// The status cannot be had.
    pub(super) async fn snapshot(&self) -> Result<(Told, broadcast::Receiver<Told>), Denial> {
        let known = self.health.lock().clone();
        let health = match known {
            Some(health) => health,
            None => Arc::new(self.pool.health_check().await),
        };
        let (status, holders) = (self.pool_status().await?, self.holders());
        let status = answer::text(&StatusView::new(self.pool.is_closing(), &status, Some(&health)))?;
        let holders = answer::text(&holders)?;
        let (messages, events, latency, clock, (close, is_last)) = {
            let mut recent = self.recent.lock();
            if !self.pool.is_closing() {
                recent.forget_close();
            }
            // The lock is held over all of it, so that each event is either in the snapshot or among the messages.
            let (events, clock) = (recent.events(usize::MAX), recent.clock(Instant::now()));
            (self.messages.subscribe(), events, recent.latency(), clock, recent.close())
        };
        let (events, latency) = (events.join(","), answer::text(&latency)?);
        let json = format!(
            r#"{{"status":{status},"holders":{holders},"events":[{events}],"latency":{latency},"clock_ms":{clock}}}"#
        );
        let mut bytes = message("snapshot", None, &json).to_vec();
        close.iter().for_each(|told| bytes.extend_from_slice(told));
        Ok((Told { bytes: Bytes::from(bytes), is_last }, messages))
    }

    /// The last events as a list of JSON, at most so many.
    pub(super) fn events(&self, last: usize) -> String {
        let events = self.recent.lock().events(last);
        format!("[{}]", events.join(","))
    }

    fn streams(&self) -> usize {
        self.streams.load(Ordering::SeqCst)
    }

    /// A seat for one more stream. `None` if all are taken.
    pub(super) fn seat(self: &Arc<Self>) -> Option<Seat> {
        let more = |streams| (streams < self.most_streams).then_some(streams + 1);
        self.streams.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok()?;
        self.streams_changed.notify_waiters();
        Some(Seat(Arc::clone(self)))
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("streams", &self.streams()).finish_non_exhaustive()
    }
}

/// The place of an open stream, which is free again once this drops.
pub(super) struct Seat(Arc<Hub>);

impl Seat {
    pub(super) fn hub(&self) -> &Hub {
        &self.0
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::SeqCst);
        self.0.streams_changed.notify_waiters();
    }
}
