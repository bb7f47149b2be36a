//! The subscriptions to a pool's events, and the events that they have not read yet.
//!
//! Activities and lives keep events here, and [`Events`] reads them. The ring is not a broadcast channel, because
//! events are put into it under the lock of a life, whose order they keep. Under that lock neither a waker may run nor
//! an event drop, since an event may hold a user's error.
//!
//! `SharedRing::ring` is the only lock. It may be taken under the lock of a life, and nothing is locked under it. Wakers
//! run, and events drop, once it is free. In a forked child nobody takes it, since it may be held for ever. The count
//! of subscriptions only tells whether to make an event, so its ordering is relaxed.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
#[cfg(feature = "metrics")]
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::base::process::Process;
use crate::base::sync::{Notify, until};
use crate::lifecycle::event::Event;
#[cfg(feature = "metrics")]
use crate::lifecycle::measured::Meter;

/// How many unread events are kept by default.
pub(crate) const KEPT: usize = 1024;

/// The subscriptions to a pool's events. Telling them never waits.
pub(crate) struct Observers {
    shared: Arc<SharedRing>,
    /// The listener that is told how long work takes.
    #[cfg(feature = "metrics")]
    meter: OnceLock<Meter>,
}

/// The state that subscriptions share with their pool.
struct SharedRing {
    kept: usize,
    process: &'static Process,
    subscriptions: AtomicUsize,
    /// Taken under the lock of a life, so nothing else is locked under it.
    ring: Mutex<Ring>,
    happened: Notify,
}

#[derive(Default)]
struct Ring {
    /// The number of the first event in it.
    first: u64,
    events: VecDeque<Event>,
    /// Events that had no room any more. They drop once no lock is held.
    evicted: Vec<Event>,
    /// Whether the pool is gone, so that no more events come.
    is_over: bool,
}

impl Default for Observers {
    fn default() -> Self {
        Observers::new(KEPT)
    }
}

impl Observers {
    /// Keeps up to `kept` unread events. A slower subscription misses the oldest.
    pub(crate) fn new(kept: usize) -> Self {
        let shared = Arc::new(SharedRing {
            kept,
            process: Process::current(),
            subscriptions: AtomicUsize::new(0),
            ring: Mutex::default(),
            happened: Notify::new(),
        });
        Observers {
            shared,
            #[cfg(feature = "metrics")]
            meter: OnceLock::new(),
        }
    }

    pub(crate) fn subscribe(&self) -> Events {
        let shared = Arc::clone(&self.shared);
        shared.subscriptions.fetch_add(1, Ordering::Relaxed);
        let next = match shared.ring() {
            Some(ring) => ring.lock().end(),
            None => 0,
        };
        Events { shared, next, missed: 0 }
    }

    /// Sets the meter. Returns whether there was none before, since a pool has one at most.
    #[cfg(feature = "metrics")]
    pub(crate) fn set_meter(&self, meter: Meter) -> bool {
        self.meter.set(meter).is_ok()
    }

    /// The meter, if there is one. A forked child has none, because a lock of the listener may be held there for ever.
    #[cfg(feature = "metrics")]
    #[inline]
    pub(crate) fn meter(&self) -> Option<&Meter> {
        self.meter.get().filter(|_| self.shared.process.is_current())
    }

    /// Whether there are subscriptions to tell.
    pub(crate) fn are_there(&self) -> bool {
        self.shared.subscriptions.load(Ordering::Relaxed) > 0 && self.shared.process.is_current()
    }

    /// Tells the log and the subscriptions. A logger is user code, so the caller holds no lock.
    pub(crate) fn tell(&self, event: Event) {
        event.log();
        self.keep(event);
        self.wake();
    }

    /// Keeps an event for each subscription. The caller [wakes](Observers::wake) the readers later, once no lock is
    /// held.
    pub(crate) fn keep(&self, event: Event) {
        if self.are_there() {
            let mut ring = self.shared.ring.lock();
            if ring.events.len() >= self.shared.kept {
                ring.first += 1;
                let oldest = ring.events.pop_front();
                ring.evicted.extend(oldest);
            }
            ring.events.push_back(event);
        }
    }

    /// Wakes the readers that wait for events, and drops evicted events. A panic of either ends here.
    pub(crate) fn wake(&self) {
        if self.are_there() {
            let evicted = std::mem::take(&mut self.shared.ring.lock().evicted);
            let _theirs = catch_unwind(AssertUnwindSafe(|| drop(evicted)));
            let _theirs = catch_unwind(AssertUnwindSafe(|| self.shared.happened.notify_waiters()));
        }
    }
}

impl Drop for Observers {
    fn drop(&mut self) {
        if let Some(ring) = self.shared.ring() {
            ring.lock().is_over = true;
            self.shared.happened.notify_waiters();
        }
    }
}

impl SharedRing {
    fn ring(&self) -> Option<&Mutex<Ring>> {
        self.process.is_current().then_some(&self.ring)
    }
}

impl Ring {
    /// The number of the next event.
    fn end(&self) -> u64 {
        self.first + self.events.len() as u64
    }
}

/// A subscription to the events of a pool's resources, from the call of [`events()`](crate::ResourcePool::events) on.
/// It needs no runtime of the pool.
///
/// The pool never waits for a reader. It keeps as many unread events as the option
/// [`events`](crate::config::Options::events) says, 1,024 by default. A slower reader misses the oldest, and is told
/// how many. In a forked child there are no events.
///
/// ```no_run
/// use resource_pool::{ResourcePool, What};
///
/// # async fn watch() {
/// let mut events = ResourcePool::global().events();
/// while let Some(event) = events.next().await {
///     if let What::Lost { error, .. } = event.what {
///         eprintln!("generation {} is gone: {error}", event.generation);
///     }
/// }
/// # }
/// ```
pub struct Events {
    shared: Arc<SharedRing>,
    next: u64,
    missed: u64,
}

impl Events {
    /// The next event. `None` once the pool, its leases and its links are gone.
    ///
    /// # Cancel safety
    /// Cancel-safe: no event is lost.
    pub async fn next(&mut self) -> Option<Event> {
        let shared = Arc::clone(&self.shared);
        until(&shared.happened, || self.take()).await
    }

    /// The next event, if it has happened already.
    pub fn try_next(&mut self) -> Option<Event> {
        self.take().flatten()
    }

    /// How many events this subscription has missed so far, because it was read too slowly.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// `None` if there is none yet, and `Some(None)` if there will be none any more.
    fn take(&mut self) -> Option<Option<Event>> {
        let Some(ring) = self.shared.ring() else { return Some(None) };
        let ring = ring.lock();
        self.missed += ring.first.saturating_sub(self.next);
        self.next = self.next.max(ring.first);
        let place = usize::try_from(self.next - ring.first).unwrap_or(usize::MAX);
        match ring.events.get(place).cloned() {
            Some(event) => {
                self.next += 1;
                Some(Some(event))
            }
            None => ring.is_over.then_some(None),
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // This was the last subscription, so no reader is left for the kept events. They drop once the lock is free.
        if self.shared.subscriptions.fetch_sub(1, Ordering::Relaxed) == 1
            && let Some(ring) = self.shared.ring()
        {
            let mut ring = ring.lock();
            let unread = (std::mem::take(&mut ring.events), std::mem::take(&mut ring.evicted));
            ring.first += unread.0.len() as u64;
            drop(ring);
            drop(unread);
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("next", &self.next).field("missed", &self.missed).finish_non_exhaustive()
    }
}
