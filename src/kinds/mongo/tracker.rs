//! ConnectionTracker in the driver's connection pools, by their events: what is in use, who waits, and who waits in vain.
//!
//! The driver keeps operations that were dropped in its queue, and a `Nudger` clears them away. All events of a client
//! are seen under the one lock of `seen`, and what an event frees is dropped after it.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mongodb::Client;
use mongodb::bson::doc;
use mongodb::event::cmap::{CmapEvent, ConnectionClosedReason, PoolClearedEvent, PoolClosedEvent};
use mongodb::options::{SelectionCriteria, ServerAddress};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

use crate::lifecycle::busy::Busy;
use crate::lifecycle::link::Link;
use crate::lifecycle::status::Usage;
use crate::lifecycle::work::Work;

tokio::task_local! {
    /// Set when the operation that this task polls has got its connection.
    pub(super) static CHECKED_OUT: Cell<bool>;
    /// The operation that this task polls is the pool's own, which is nobody's work.
    pub(super) static OURS: ();
}

/// ConnectionTracker in the driver's pools. Counts each operation as work of the resource.
pub(super) struct ConnectionTracker {
    pub(super) link: Link,
    seen: Mutex<Seen>,
    /// Somebody waits, and the nudger does not know yet.
    begun: Notify,
}

#[derive(Default)]
struct Seen {
    pools: HashMap<ServerAddress, Pool>,
    /// How many there ever were.
    operations: u64,
    /// The nudger knows that somebody waits.
    is_watched: bool,
}

/// The driver's pool of connections to one server.
#[derive(Default)]
struct Pool {
    connections: HashMap<u32, Connection>,
    idle: usize,
    /// Since when some connection has been idle, if one is.
    idle_since: Option<Instant>,
    /// When those began to wait that wait for a connection, in this order, which is the order of the driver's queue.
    waiting: VecDeque<Instant>,
}

enum Connection {
    Opening,
    Idle {
        /// Its last operation is in the books of a drain as finished.
        finished: bool,
    },
    InUse {
        /// None if it is the pool's own.
        operation: Option<Busy>,
    },
}

/// The driver does not say that a waiter was dropped. It serves the queue at once when a connection is idle, so that
/// one that still waits after this has been dropped, or stands behind such. Part of the promise that the queue is clear
/// within a second.
const STALLED: Duration = Duration::from_millis(50);
/// How far apart the driver's clock and ours may be as an operation begins to wait.
const SKEW: Duration = Duration::from_millis(10);
/// The pause between two rounds of pings, which is part of the same promise.
const ROUND: Duration = Duration::from_millis(100);
/// The most pings of one round.
const PINGS: usize = 100;
/// The most pings that are under way at once. Behind longer queues than this the driver is left to itself.
const ALL_PINGS: usize = 2000;

impl Pool {
    fn put(&mut self, id: u32, connection: Option<Connection>) -> Option<Connection> {
        let is_idle = |connection: &Option<Connection>| matches!(connection, Some(Connection::Idle { .. }));
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
        // Only a pool with an idle connection is asked, and that is small.
        self.connections.values().filter(|one| matches!(one, Connection::Opening)).count()
    }

    /// Removes the waiter that has waited for so long. Answers how many began to wait before it.
    fn leave(&mut self, waited: Duration) -> usize {
        let now = Instant::now();
        let began = now.checked_sub(waited).unwrap_or(now);
        let before = self.waiting.partition_point(|one| *one + SKEW < began);
        if self.waiting.get(before).is_some_and(|one| *one < began + SKEW) {
            self.waiting.remove(before);
        }
        before
    }

    /// The waiter that has waited for so long has been served, so all before it have left the queue: they were dropped,
    /// or wait for a connection that is being opened for them.
    fn served(&mut self, waited: Duration) {
        let before = self.leave(waited);
        if before > 0 {
            self.waiting.drain(..before.saturating_sub(self.opening()));
        }
    }

    /// How many wait although a connection is idle.
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
        ConnectionTracker { link, seen: Mutex::default(), begun: Notify::new() }
    }

    pub(super) fn see(&self, event: &CmapEvent) {
        let mut seen = self.seen.lock();
        let Seen { pools, operations, is_watched } = &mut *seen;
        let is_ours = || OURS.try_with(|()| ()).is_ok();
        let before = match event {
            CmapEvent::PoolCreated(event) => {
                pools.entry(event.address.clone()).or_default();
                None
            }
            CmapEvent::ConnectionCreated(event) => {
                let pool = pools.get_mut(&event.address);
                pool.and_then(|pool| pool.put(event.connection_id, Some(Connection::Opening)))
            }
            CmapEvent::ConnectionReady(event) => {
                let idle = Connection::Idle { finished: false };
                pools.get_mut(&event.address).and_then(|pool| pool.put(event.connection_id, Some(idle)))
            }
            CmapEvent::ConnectionClosed(event) => {
                let closed = pools.get_mut(&event.address).and_then(|pool| pool.put(event.connection_id, None));
                let cut = matches!(event.reason, ConnectionClosedReason::Error | ConnectionClosedReason::Dropped);
                // The driver hands back first, and then closes, a connection that was cut off.
                if cut && matches!(closed, Some(Connection::Idle { finished: true })) {
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
                    pool.put(event.connection_id, Some(Connection::InUse { operation }))
                })
            }
            CmapEvent::ConnectionCheckedIn(event) => pools.get_mut(&event.address).and_then(|pool| {
                let finished = match pool.connections.get_mut(&event.connection_id)? {
                    Connection::InUse { operation: Some(operation) } => operation.end(true),
                    _ => false,
                };
                pool.put(event.connection_id, Some(Connection::Idle { finished }))
            }),
            CmapEvent::PoolCleared(PoolClearedEvent { address, .. })
            | CmapEvent::PoolClosed(PoolClosedEvent { address, .. }) => {
                // All who waited were answered, and those who were dropped are forgotten.
                if let Some(pool) = pools.get_mut(address) {
                    pool.waiting.clear();
                }
                None
            }
            _ => None,
        };
        drop(seen);
        drop(before);
    }

    pub(super) fn usage(&self) -> Usage {
        let seen = self.seen.lock();
        let (mut open, mut idle, mut in_use, mut waiting) = (0, 0, 0, 0);
        for pool in seen.pools.values() {
            open += pool.connections.len();
            idle += pool.idle;
            in_use += pool.connections.values().filter(|one| matches!(one, Connection::InUse { .. })).count();
            waiting += pool.waiting.len() - pool.stalled();
        }
        Usage { open: Some(open), in_use: Some(in_use), idle: Some(idle), waiting: Some(waiting), ..Usage::default() }
    }

    pub(super) fn in_use(&self) -> usize {
        self.usage().in_use.unwrap_or_default()
    }

    /// How many operations there have been, if none is under way.
    pub(super) fn operations_if_quiet(&self) -> Option<u64> {
        let seen = self.seen.lock();
        let mut connections = seen.pools.values().flat_map(|pool| pool.connections.values());
        let busy = connections.any(|connection| matches!(connection, Connection::InUse { .. }));
        (!busy).then_some(seen.operations)
    }

    /// Waits until no connection is in use and nobody waits for one.
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

    /// How many were dropped, or stand behind such, so that they wait although a connection is idle.
    pub(super) fn stalled(&self) -> usize {
        self.seen.lock().pools.values().map(Pool::stalled).sum()
    }

    /// The servers with a queue that has stalled, and by how many; `None` if nobody waits any more.
    fn watch(&self) -> Option<Vec<(ServerAddress, usize)>> {
        let mut seen = self.seen.lock();
        seen.is_watched = seen.pools.values().any(|pool| !pool.waiting.is_empty());
        let stalled =
            seen.pools.iter().map(|(address, pool)| (address, pool.stalled())).filter(|(_, stalled)| *stalled > 0);
        seen.is_watched.then(|| stalled.map(|(address, stalled)| (address.clone(), stalled)).collect())
    }
}

/// Clears the driver's queue of operations that were dropped.
///
/// The driver looks at the first in its queue each time somebody asks for a connection or hands one back, and else
/// every 500 ms. Where the first one was dropped nothing comes of it, so that each dropped one costs those behind it
/// such a time. A ping asks, and hands back.
pub(super) struct Nudger(AbortHandle);

impl Nudger {
    pub(super) fn start(tracker: &Arc<ConnectionTracker>, client: &Client) -> Self {
        Nudger(tokio::spawn(nudge(Arc::clone(tracker), client.clone())).abort_handle())
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

async fn nudge(tracker: Arc<ConnectionTracker>, client: Client) {
    // A ping is never given up, as that would leave one more in the queue.
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
                // One more than those who wait, for the first to be served begins to serve the rest.
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
