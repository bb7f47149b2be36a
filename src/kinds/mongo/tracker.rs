//! The connections in the driver's pools, by the driver's events: those in use, the operations that wait for one, and
//! the operations that wait in vain.
//!
//! The driver calls `ConnectionTracker::see` for each event. For a checkout it does so within the task that polls the
//! operation, so `OURS` and `CHECKED_OUT` belong to that operation. `MongoResource` reads the counts for usage, pings
//! and closing.
//!
//! Every operation with a connection counts as work of the resource, unless it is the pool's own. If an operation was
//! cut off, the driver checks its connection in all the same, and closes the connection right after that. So the meter
//! is told of an operation a moment after its end. The driver also keeps operations that were dropped in its queue. The
//! task of a `Nudger` clears them away, and tells the meter, until the handle closes.
//!
//! The lock of `seen` is the only one here, and nothing is awaited under it. The connection that an event replaces is
//! dropped after it. Ending an operation locks the counters of `Activity` under it, and wakes a drain that waits.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mongodb::Client;
use mongodb::bson::doc;
use mongodb::event::cmap::{
    CmapEvent, ConnectionCheckedInEvent, ConnectionClosedReason, PoolClearedEvent, PoolClosedEvent,
};
use mongodb::options::{SelectionCriteria, ServerAddress};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

use crate::lifecycle::busy::Busy;
use crate::lifecycle::link::Link;
use crate::lifecycle::status::{ClosedCounts, Counters, Usage};
use crate::lifecycle::work::Work;

tokio::task_local! {
    /// Set once the operation that this task polls has got its connection.
    pub(super) static CHECKED_OUT: Cell<bool>;
    /// Marks the operation that this task polls as the pool's own, which counts as no work.
    pub(super) static OURS: ();
}

/// Follows the driver's pools, and counts each operation as work of the resource.
pub(super) struct ConnectionTracker {
    pub(super) link: Link,
    seen: Mutex<PoolsSeen>,
    /// Notified when an operation begins to wait that the nudger does not know of yet.
    begun: Notify,
    /// Notified when an operation has ended of which the meter is not told yet.
    ended: Notify,
}

#[derive(Default)]
struct PoolsSeen {
    pools: HashMap<ServerAddress, ServerPool>,
    /// How many operations have ever got a connection, without the pool's own.
    operations: u64,
    /// Whether the nudger knows that an operation waits.
    is_watched: bool,
    /// How many connections have ever been opened, and closed again.
    opened: u64,
    closed: ClosedCounts,
}

/// The driver's pool of connections to one server.
#[derive(Default)]
struct ServerPool {
    connections: HashMap<u32, ConnectionState>,
    idle: usize,
    /// The moment since which some connection has been idle. `None` if none is idle.
    idle_since: Option<Instant>,
    /// The moments at which the waiting operations began to wait, in the order of the driver's queue.
    waiting: VecDeque<Instant>,
}

enum ConnectionState {
    Opening,
    Idle {
        /// Whether a drain has counted its last operation as finished.
        finished: bool,
        /// Its last operation, if the meter is not told of it yet.
        untold: Option<EndedOperation>,
    },
    InUse {
        /// `None` if the operation is the pool's own.
        operation: Option<Busy>,
    },
}

/// An operation whose connection is checked in, and may be closed because the operation was cut off.
struct EndedOperation {
    at: Instant,
    /// Tells the meter whether the operation was done.
    tell: Box<dyn FnOnce(bool) + Send>,
}

impl ConnectionState {
    /// A connection without an operation of which the meter is not told.
    const FREE: ConnectionState = ConnectionState::Idle { finished: false, untold: None };
}

/// The time after which an operation counts as done if its connection was not closed. The driver tells of a check-in
/// and of the close that follows it in one call, so the close comes later only if the system stops the thread there.
///
/// The driver closes a connection as stale, if its pool was cleared meanwhile, before it looks whether its operation is
/// still under way. So an operation that is given up after that counts as done. No event tells it from an answered one.
const SETTLED: Duration = Duration::from_millis(50);
/// The time after which an operation that waits beside an idle connection counts as stalled. The driver does not say
/// that a waiting operation was dropped, but it serves its queue at once when a connection is idle. So an operation
/// that still waits after this time was dropped, or stands behind one that was. Part of the promise that the queue is
/// clear within a second.
const STALLED: Duration = Duration::from_millis(50);
/// The tolerance between the driver's clock and this one, for the moment at which an operation begins to wait.
const SKEW: Duration = Duration::from_millis(10);
/// The pause between two rounds of pings. Part of the same promise.
const ROUND: Duration = Duration::from_millis(100);
/// The most pings in one round.
const PINGS: usize = 100;
/// The most pings in flight at once. With a longer queue than this the driver is left to itself.
const ALL_PINGS: usize = 2000;

impl ServerPool {
    fn put(&mut self, id: u32, connection: Option<ConnectionState>) -> Option<ConnectionState> {
        let is_idle = |connection: &Option<ConnectionState>| matches!(connection, Some(ConnectionState::Idle { .. }));
        self.idle += usize::from(is_idle(&connection));
        let before = match connection {
            Some(connection) => self.connections.insert(id, connection),
            None => self.connections.remove(&id),
        };
        self.idle -= usize::from(is_idle(&before));
        match (self.idle, self.idle_since) {
            (0, _) => self.idle_since = None,
            (_, None) => self.idle_since = Some(Instant::now()),
            _ => {}
        }
        before
    }

    fn opening(&self) -> usize {
        // This looks at every connection. It is asked only for the usage, while a connection is idle, and when an
        // operation overtakes others.
        self.connections.values().filter(|one| matches!(one, ConnectionState::Opening)).count()
    }

    /// Removes the operation that has waited for this time. Answers how many began to wait before it.
    fn leave(&mut self, waited: Duration) -> usize {
        let now = Instant::now();
        let began = now.checked_sub(waited).unwrap_or(now);
        let before = self.waiting.partition_point(|one| *one + SKEW < began);
        if self.waiting.get(before).is_some_and(|one| *one < began + SKEW) {
            self.waiting.remove(before);
        }
        before
    }

    /// Notes that the operation that has waited for this time was served. So all operations before it have left the
    /// queue: they were dropped, or wait for a connection that is being opened for them.
    fn served(&mut self, waited: Duration) {
        let before = self.leave(waited);
        if before > 0 {
            self.waiting.drain(..before.saturating_sub(self.opening()));
        }
    }

    /// How many operations wait although a connection is idle.
    fn stalled(&self) -> usize {
        if self.waiting.is_empty() || self.idle_since.is_none_or(|since| since.elapsed() < STALLED) {
            return 0;
        }
        let waiting = self.waiting.iter().take_while(|since| since.elapsed() >= STALLED).count();
        waiting.saturating_sub(self.opening())
    }
}

impl ConnectionTracker {
    pub(super) fn new(link: Link) -> Self {
        ConnectionTracker { link, seen: Mutex::default(), begun: Notify::new(), ended: Notify::new() }
    }

    pub(super) fn see(&self, event: &CmapEvent) {
        let mut seen = self.seen.lock();
        let PoolsSeen { pools, operations, is_watched, opened, closed: counts } = &mut *seen;
        let is_ours = || OURS.try_with(|()| ()).is_ok();
        let before = match event {
            CmapEvent::PoolCreated(event) => {
                pools.entry(event.address.clone()).or_default();
                None
            }
            CmapEvent::ConnectionCreated(event) => {
                let pool = pools.get_mut(&event.address);
                pool.and_then(|pool| pool.put(event.connection_id, Some(ConnectionState::Opening)))
            }
            CmapEvent::ConnectionReady(event) => {
                *opened += 1;
                let free = Some(ConnectionState::FREE);
                pools.get_mut(&event.address).and_then(|pool| pool.put(event.connection_id, free))
            }
            CmapEvent::ConnectionClosed(event) => {
                let closed = pools.get_mut(&event.address).and_then(|pool| pool.put(event.connection_id, None));
                // A connection that was still being opened does not count as opened either.
                if closed.as_ref().is_some_and(|state| !matches!(state, ConnectionState::Opening)) {
                    *match event.reason {
                        ConnectionClosedReason::Idle => &mut counts.idle,
                        ConnectionClosedReason::Stale => &mut counts.lost,
                        ConnectionClosedReason::PoolClosed => &mut counts.closing,
                        _ => &mut counts.broken,
                    } += 1;
                }
                // The driver checks a connection in before it closes it, also one that was cut off.
                if is_cut(&event.reason) && matches!(closed, Some(ConnectionState::Idle { finished: true, .. })) {
                    self.link.was_cut_off(Work::Operation);
                }
                closed
            }
            CmapEvent::ConnectionCheckoutStarted(event) => {
                if let (Some(pool), false) = (pools.get_mut(&event.address), is_ours()) {
                    pool.waiting.push_back(Instant::now());
                    if !std::mem::replace(is_watched, true) {
                        self.begun.notify_one();
                    }
                }
                None
            }
            CmapEvent::ConnectionCheckoutFailed(event) => {
                if let (Some(pool), false) = (pools.get_mut(&event.address), is_ours()) {
                    pool.leave(event.duration);
                }
                None
            }
            CmapEvent::ConnectionCheckedOut(event) => {
                let _only_while_closing = CHECKED_OUT.try_with(|checked_out| checked_out.set(true));
                let operation = (!is_ours()).then(|| self.link.busy(Work::Operation));
                *operations += u64::from(operation.is_some());
                pools.get_mut(&event.address).and_then(|pool| {
                    pool.served(event.duration);
                    pool.put(event.connection_id, Some(ConnectionState::InUse { operation }))
                })
            }
            CmapEvent::ConnectionCheckedIn(event) => pools.get_mut(&event.address).and_then(|pool| {
                pool.connections.get(&event.connection_id)?;
                pool.put(event.connection_id, Some(ConnectionState::FREE))
            }),
            CmapEvent::PoolCleared(PoolClearedEvent { address, .. })
            | CmapEvent::PoolClosed(PoolClosedEvent { address, .. }) => {
                // The driver has answered all waiting operations, and has forgotten the dropped ones.
                if let Some(pool) = pools.get_mut(address) {
                    pool.waiting.clear();
                }
                None
            }
            _ => None,
        };
        drop(seen);
        // The end of an operation runs code of users, so the lock is free by now.
        match (event, before) {
            (
                CmapEvent::ConnectionCheckedIn(event),
                Some(ConnectionState::InUse { operation: Some(mut operation) }),
            ) => {
                let (finished, tell) = operation.finish_untold();
                if finished || tell.is_some() {
                    self.ended(event, finished, tell.map(|tell| EndedOperation { at: Instant::now(), tell }));
                }
            }
            (event, Some(ConnectionState::Idle { untold: Some(ended), .. })) => {
                let cut = matches!(event, CmapEvent::ConnectionClosed(event) if is_cut(&event.reason));
                (ended.tell)(!cut);
            }
            (_, before) => drop(before),
        }
    }

    /// Notes whether the report of a close counts the operation of this connection as done, and that the meter is still
    /// to be told of it.
    fn ended(&self, event: &ConnectionCheckedInEvent, is_finished: bool, ended: Option<EndedOperation>) {
        let mut seen = self.seen.lock();
        let pool = seen.pools.get_mut(&event.address);
        if let Some(ConnectionState::Idle { finished, untold }) =
            pool.and_then(|pool| pool.connections.get_mut(&event.connection_id))
        {
            (*finished, *untold) = (is_finished, ended);
            self.ended.notify_one();
        }
    }

    /// Tells the meter of the operations that count as done by now. Returns whether there are others.
    fn settle(&self) -> bool {
        let (mut settled, mut is_left) = (Vec::new(), false);
        let mut seen = self.seen.lock();
        for connection in seen.pools.values_mut().flat_map(|pool| pool.connections.values_mut()) {
            if let ConnectionState::Idle { untold, .. } = connection {
                settled.extend(untold.take_if(|ended| ended.at.elapsed() >= SETTLED));
                is_left |= untold.is_some();
            }
        }
        drop(seen);
        // The meter is code of users.
        settled.into_iter().for_each(|ended| (ended.tell)(true));
        is_left
    }

    pub(super) fn usage(&self) -> Usage {
        let seen = self.seen.lock();
        let (mut open, mut idle, mut in_use, mut waiting, mut opening) = (0, 0, 0, 0, 0);
        for pool in seen.pools.values() {
            open += pool.connections.len();
            idle += pool.idle;
            in_use += pool.connections.values().filter(|one| matches!(one, ConnectionState::InUse { .. })).count();
            waiting += pool.waiting.len() - pool.stalled();
            opening += pool.opening();
        }
        let (opened, closed, acquires) = (Some(seen.opened), Some(seen.closed), Some(seen.operations));
        Usage {
            open: Some(open),
            in_use: Some(in_use),
            idle: Some(idle),
            waiting: Some(waiting),
            opening: Some(opening),
            counters: Counters { opened, closed, acquires, ..Counters::default() },
            ..Usage::default()
        }
    }

    pub(super) fn in_use(&self) -> usize {
        self.usage().in_use.unwrap_or_default()
    }

    /// How many operations there have been. `None` if one is in flight.
    pub(super) fn operations_if_quiet(&self) -> Option<u64> {
        let seen = self.seen.lock();
        let mut connections = seen.pools.values().flat_map(|pool| pool.connections.values());
        let busy = connections.any(|connection| matches!(connection, ConnectionState::InUse { .. }));
        (!busy).then_some(seen.operations)
    }

    /// Waits until no connection is in use and no operation waits for one.
    pub(super) async fn quiet(&self) {
        while !matches!(self.usage(), Usage { in_use: Some(0), waiting: Some(0), .. }) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until a connection is idle.
    pub(super) async fn has_idle(&self) {
        while self.usage().idle == Some(0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// How many operations wait although a connection is idle, because they or others before them were dropped.
    pub(super) fn stalled(&self) -> usize {
        self.seen.lock().pools.values().map(ServerPool::stalled).sum()
    }

    /// The servers whose queue has stalled, each with the number of stalled operations. `None` if no operation waits
    /// any more.
    fn watch(&self) -> Option<Vec<(ServerAddress, usize)>> {
        let mut seen = self.seen.lock();
        seen.is_watched = seen.pools.values().any(|pool| !pool.waiting.is_empty());
        let stalled =
            seen.pools.iter().map(|(address, pool)| (address, pool.stalled())).filter(|(_, stalled)| *stalled > 0);
        seen.is_watched.then(|| stalled.map(|(address, stalled)| (address.clone(), stalled)).collect())
    }
}

/// Whether the driver closes a connection for this reason because its operation was cut off.
fn is_cut(reason: &ConnectionClosedReason) -> bool {
    matches!(reason, ConnectionClosedReason::Error | ConnectionClosedReason::Dropped)
}

/// Clears the driver's queue of operations that were dropped, and tells the meter of those that have ended.
///
/// The driver looks at the first operation in its queue each time an operation asks for a connection or hands one back,
/// and otherwise every 500 ms. If the first operation was dropped, that look serves nobody. So each dropped operation
/// delays those behind it by up to 500 ms. A ping asks for a connection and hands it back, which makes the driver look
/// twice.
pub(super) struct Nudger(AbortHandle);

impl Nudger {
    pub(super) fn start(tracker: &Arc<ConnectionTracker>, client: &Client) -> Self {
        let (nudging, settling) = (nudge(Arc::clone(tracker), client.clone()), settle(Arc::clone(tracker)));
        Nudger(tokio::spawn(async move { tokio::join!(nudging, settling) }).abort_handle())
    }

    pub(super) fn end(&self) {
        self.0.abort();
    }
}

impl Drop for Nudger {
    fn drop(&mut self) {
        self.end();
    }
}

/// Tells the meter of operations that are done, until the handle closes.
async fn settle(tracker: Arc<ConnectionTracker>) {
    loop {
        tracker.ended.notified().await;
        while tracker.settle() {
            tokio::time::sleep(SETTLED).await;
        }
    }
}

async fn nudge(tracker: Arc<ConnectionTracker>, client: Client) {
    // A ping is never given up, because it would stay in the queue as one more dropped operation.
    let mut pings = JoinSet::new();
    loop {
        tracker.begun.notified().await;
        let mut pause = STALLED;
        loop {
            tokio::time::sleep(pause).await;
            while pings.try_join_next().is_some() {}
            let Some(stalled) = tracker.watch() else { break };
            pause = if stalled.is_empty() { STALLED } else { ROUND };
            for (address, stalled) in stalled {
                tracing::debug!(resource = %tracker.link.name(), %address, stalled, "clearing the driver's queue");
                // One ping more than there are stalled operations, because the first ping to be served begins to serve
                // the rest.
                let count = (stalled + 1).min(PINGS).min(ALL_PINGS.saturating_sub(pings.len()));
                for _ in 0..count {
                    let (admin, address) = (client.database("admin"), address.clone());
                    let there = SelectionCriteria::Predicate(Arc::new(move |server| *server.address() == address));
                    let ping = async move { admin.run_command(doc! { "ping": 1 }).selection_criteria(there).await };
                    pings.spawn(OURS.scope((), ping));
                }
            }
        }
    }
}
