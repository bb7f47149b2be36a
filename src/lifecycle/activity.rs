//! The activity of a resource: its work in flight, its events, and the notices that wake its waiters.
//!
//! Leases, links and `Busy` guards report here. A life tells its changes here. The drain waits in [`Activity::until`]
//! until the work has ended.
//!
//! Invariant: either a release sees `draining` and wakes the drain, or the drain sees the release. For work, the fences
//! in `end` and `set_draining` give this. For leases, the lock of a shard does.
//!
//! Order of locks: the lock of a life may be held in `keep` and `set_draining`. The observers' ring and `books` are
//! taken under it, and nothing is locked under these two. `tell`, `note`, `kept` and `changed` run wakers or loggers,
//! which are user code, so their callers hold no lock.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
#[cfg(feature = "metrics")]
use std::time::Instant;
use std::time::{Duration, SystemTime};

use crate::base::clock::Moment;
use crate::base::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use crate::base::sync::{Mutex, Notify, thread_number, until};
use crate::lifecycle::event::{Event, What};
#[cfg(feature = "metrics")]
use crate::lifecycle::measured::{Measure, Measured};
use crate::lifecycle::observers::Observers;
use crate::lifecycle::spans::Traced;
use crate::lifecycle::work::{ByWork, Work};

/// The part of a resource that its leases, links and pieces of work share. It does not depend on the resource's type.
pub(crate) struct Activity {
    pub(crate) name: Arc<str>,
    pub(crate) endpoint: Arc<str>,
    /// The name of its kind. `None` for a registered resource and for the work of `run`.
    pub(crate) kind: Option<&'static str>,
    /// Its attributes in traces.
    pub(crate) traced: Traced,
    pub(crate) counters: WorkCounters,
    /// Whether a release has to wake the drain.
    draining: AtomicBool,
    /// Notified on each change of state and, while draining, on each release.
    changed: Notify,
    observers: Arc<Observers>,
}

impl Activity {
    pub(crate) fn new(
        name: &str,
        kind: Option<&'static str>,
        endpoint: String,
        observers: &Arc<Observers>,
    ) -> Arc<Self> {
        let traced = Traced::new(Arc::from(name), None, &endpoint, false);
        Activity::of(traced, kind, endpoint, observers)
    }

    /// The activity of a resource that traces know by these attributes.
    pub(crate) fn of(
        traced: Traced,
        kind: Option<&'static str>,
        endpoint: String,
        observers: &Arc<Observers>,
    ) -> Arc<Self> {
        Arc::new(Activity {
            name: Arc::clone(&traced.name),
            endpoint: Arc::from(endpoint),
            kind,
            traced,
            counters: WorkCounters::default(),
            draining: AtomicBool::new(false),
            changed: Notify::new(),
            observers: Arc::clone(observers),
        })
    }

    /// Tells the log and the observers of an event. A logger is user code, so the caller holds no lock.
    pub(crate) fn tell(&self, generation: u64, what: What) {
        self.observers.tell(self.event(generation, what));
    }

    /// Tells the observers alone of an event, which is made only if there are any. The caller holds no lock.
    pub(crate) fn note(&self, generation: impl FnOnce() -> u64, what: impl FnOnce() -> What) {
        if self.observers.are_there() {
            self.observers.keep(self.event(generation(), what()));
            self.observers.wake();
        }
    }

    /// Keeps an event for the observers, under the lock of a life. [`changed`](Activity::changed) or
    /// [`kept`](Activity::kept) wakes them once the lock is free.
    pub(crate) fn keep(&self, generation: u64, what: impl FnOnce() -> What) {
        if self.observers.are_there() {
            self.observers.keep(self.event(generation, what()));
        }
    }

    /// Wakes the observers to read a [kept](Activity::keep) event. The caller holds no lock.
    pub(crate) fn kept(&self) {
        self.observers.wake();
    }

    fn event(&self, generation: u64, what: What) -> Event {
        Event {
            at: SystemTime::now(),
            resource: Some(Arc::clone(&self.name)),
            kind: self.kind,
            system: self.traced.software(),
            endpoint: Arc::clone(&self.endpoint),
            node: None,
            generation,
            what,
        }
    }

    /// The present moment, if there is a meter to tell how long something takes from now on.
    #[cfg(feature = "metrics")]
    #[inline]
    pub(crate) fn metered(&self) -> Option<Instant> {
        self.observers.meter().map(|_| Instant::now())
    }

    /// Tells the meter of something that has ended, and how long it took.
    #[cfg(feature = "metrics")]
    pub(crate) fn measure(&self, took: Duration, measure: Measure, count: usize, is_done: bool) {
        if let Some(meter) = self.observers.meter() {
            let Activity { name, endpoint, kind, .. } = self;
            meter.tell(&Measured {
                resource: name,
                kind: *kind,
                system: self.traced.software(),
                endpoint,
                measure,
                count,
                took,
                is_done,
            });
        }
    }

    /// Counts work as ended, and wakes the drain. Returns whether the report of a close counts it.
    pub(crate) fn end(&self, shard: WorkShard, work: Work, count: usize, is_done: bool) -> bool {
        let counted = self.counters.end(shard, work, count, is_done);
        // Pairs with the fence in `set_draining`. Either this thread sees `draining` and wakes the drain, or the drain
        // sees the count that `counters.end` has left.
        fence(Ordering::SeqCst);
        self.released();
        counted
    }

    /// Sets whether releases wake the tasks that wait in [`until`](Activity::until).
    pub(crate) fn set_draining(&self, draining: bool) {
        if draining {
            self.counters.begin_drain();
        }
        self.draining.store(draining, Ordering::Relaxed);
        // Pairs with the fence in `end`. The fence orders the relaxed store before the drain's first look at the
        // counts.
        fence(Ordering::SeqCst);
    }

    #[inline]
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Wakes the drain after the end of a lease or a piece of work. The caller has ended it under a lock that the drain
    /// takes too, or before a fence, so the drain misses none.
    pub(crate) fn released(&self) {
        if self.is_draining() {
            self.changed();
        }
    }

    /// Wakes the waiting tasks and the observers after a change of state. The caller holds no lock.
    pub(crate) fn changed(&self) {
        self.changed.notify_waiters();
        self.observers.wake();
    }

    /// Waits until `answer` is `Some`. It is asked anew after each change of state and, while draining, after each
    /// release.
    pub(crate) async fn until<T>(&self, answer: impl FnMut() -> Option<T>) -> T {
        until(&self.changed, answer).await
    }
}

/// The counts of a resource's work: of the work in flight, and of the last drain's by how it ended.
///
/// Work ends in the shard that it began in. So no shard counts less than its work in flight, and a look that goes from
/// shard to shard misses only work that began after it.
#[derive(Default)]
pub(crate) struct WorkCounters {
    shards: [WorkInFlight; SHARDS],
    is_draining: AtomicBool,
    books: Mutex<Books>,
}

/// The number of shards: as many as there are threads that can usefully work at once. A model has 1 and so fewer
/// interleavings, because each shard counts by itself.
const SHARDS: usize = if cfg!(model) { 1 } else { 16 };

/// The work in flight that some of the threads began. Every operation writes here, so it has cache lines of its own.
/// Otherwise operations of several threads would wait for each other, and leases for them.
#[derive(Default)]
#[repr(align(128))]
struct WorkInFlight {
    now: ByWork<AtomicUsize>,
    /// When work last ended, in [`millis`](Moment::millis). Zero if none has.
    last_ended: AtomicU64,
}

/// The shard that a piece of work began in.
#[derive(Clone, Copy)]
pub(crate) struct WorkShard(usize);

impl WorkShard {
    /// The shard of this thread.
    pub(crate) fn here() -> Self {
        WorkShard(thread_number() % SHARDS)
    }
}

/// The counts of a drain's work, by how it ended.
#[derive(Default)]
struct Books {
    finished: ByWork<usize>,
    given_up: ByWork<usize>,
    unfinished: ByWork<usize>,
}

impl WorkCounters {
    pub(crate) fn begin(&self, shard: WorkShard, work: Work, count: usize) {
        self.shards[shard.0].now[work].fetch_add(count, Ordering::Relaxed);
    }

    fn end(&self, shard: WorkShard, work: Work, count: usize, is_done: bool) -> bool {
        let shard = &self.shards[shard.0];
        shard.last_ended.store(Moment::coarse().millis(), Ordering::Relaxed);
        // `Release` pairs with the `Acquire` in `now`, so that the drain sees all that the ended work did.
        let end = || shard.now[work].fetch_sub(count, Ordering::Release);
        if !self.is_draining.load(Ordering::Relaxed) {
            end();
            return false;
        }
        let mut books = self.books.lock();
        // Under the lock, so that `end_drain` counts this either as unfinished or as ended, and not as both.
        end();
        let counts = self.is_draining.load(Ordering::Relaxed);
        if counts {
            let ended = if is_done { &mut books.finished } else { &mut books.given_up };
            ended[work] += count;
        }
        counts
    }

    /// Whether work ended at most `time` before the moment `before`, or after that moment.
    pub(crate) fn ended_within(&self, time: Duration, before: Moment) -> bool {
        let last = self.shards.iter().map(|shard| shard.last_ended.load(Ordering::Relaxed)).max().unwrap_or_default();
        last > 0 && u128::from(before.millis().saturating_sub(last)) <= time.as_millis()
    }

    pub(crate) fn add_finished(&self, work: Work, count: usize) {
        self.books.lock().finished[work] += count;
    }

    /// Moves one count from finished to given up, since that work was cut off after all.
    pub(crate) fn was_cut_off(&self, work: Work) {
        let mut books = self.books.lock();
        if let Some(others) = books.finished[work].checked_sub(1) {
            books.finished[work] = others;
            books.given_up[work] += 1;
        }
    }

    fn begin_drain(&self) {
        *self.books.lock() = Books::default();
        self.is_draining.store(true, Ordering::Relaxed);
    }

    /// Ends the counts of the drain. Work that is still in flight counts as unfinished, however it ends later.
    pub(crate) fn end_drain(&self) {
        let mut books = self.books.lock();
        self.is_draining.store(false, Ordering::Relaxed);
        books.unfinished = self.in_flight();
    }

    /// The counts of the work in flight, by kind. A kind with none is left out.
    pub(crate) fn now(&self) -> Vec<(Work, usize)> {
        self.in_flight().counts(|count| *count)
    }

    fn in_flight(&self) -> ByWork<usize> {
        let mut counts = ByWork::default();
        for shard in &self.shards {
            shard.now.add_to(&mut counts, |now| now.load(Ordering::Acquire));
        }
        counts
    }

    pub(crate) fn finished(&self) -> Vec<(Work, usize)> {
        self.books.lock().finished.counts(|count| *count)
    }

    pub(crate) fn given_up(&self) -> Vec<(Work, usize)> {
        self.books.lock().given_up.counts(|count| *count)
    }

    pub(crate) fn unfinished(&self) -> Vec<(Work, usize)> {
        self.books.lock().unfinished.counts(|count| *count)
    }
}
