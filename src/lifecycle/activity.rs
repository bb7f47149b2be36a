//! What goes on at a resource: the work that closing waits for, and who is told when it ends.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use crate::base::clock::Moment;
use crate::base::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use crate::base::sync::{Mutex, Notify, until};
use crate::lifecycle::event::{Event, What};
use crate::lifecycle::observers::Observers;
use crate::lifecycle::work::{ByWork, Work};

/// What leases, links and pieces of work know of their resource, whatever its type.
pub(crate) struct Activity {
    pub(crate) name: Arc<str>,
    pub(crate) endpoint: Arc<str>,
    /// The name of its kind, unless that is the user's own.
    kind: Option<&'static str>,
    pub(crate) counters: WorkCounters,
    draining: AtomicBool,
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
        Arc::new(Activity {
            name: Arc::from(name),
            endpoint: Arc::from(endpoint),
            kind,
            counters: WorkCounters::default(),
            draining: AtomicBool::new(false),
            changed: Notify::new(),
            observers: Arc::clone(observers),
        })
    }

    /// Something has happened that is in the log too. No lock may be held.
    pub(crate) fn tell(&self, generation: u64, what: What) {
        self.observers.tell(self.event(generation, what));
    }

    /// Something has happened that is for observers alone, and made only if there are any.
    pub(crate) fn note(&self, generation: impl FnOnce() -> u64, what: impl FnOnce() -> What) {
        if self.observers.are_there() {
            self.observers.keep(self.event(generation(), what()));
            self.observers.wake();
        }
    }

    /// The state has changed, under a lock. Observers learn of it by [`changed`](Activity::changed), or
    /// [`kept`](Activity::kept).
    pub(crate) fn keep(&self, generation: u64, what: impl FnOnce() -> What) {
        if self.observers.are_there() {
            self.observers.keep(self.event(generation, what()));
        }
    }

    /// What was [kept](Activity::keep) is told now, as no lock is held.
    pub(crate) fn kept(&self) {
        self.observers.wake();
    }

    fn event(&self, generation: u64, what: What) -> Event {
        Event {
            at: SystemTime::now(),
            resource: Some(Arc::clone(&self.name)),
            kind: self.kind,
            endpoint: Arc::clone(&self.endpoint),
            node: None,
            generation,
            what,
        }
    }

    /// Work has ended. Whether it was counted for the close's report.
    pub(crate) fn end(&self, work: Work, count: usize, is_done: bool) -> bool {
        let counted = self.counters.end(work, count, is_done);
        // Pairs with the fence in `set_draining`: either this sees that somebody drains and wakes the drain, or the drain
        // sees the count that this left.
        fence(Ordering::SeqCst);
        self.released();
        counted
    }

    /// From now on releases wake whoever waits in [`until`](Activity::until).
    pub(crate) fn set_draining(&self, draining: bool) {
        if draining {
            self.counters.begin_drain();
        }
        self.draining.store(draining, Ordering::Relaxed);
        // Pairs with the fence in `end`.
        fence(Ordering::SeqCst);
    }

    #[inline]
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// A lease or a piece of work has ended; whoever drains wants to know. What was released is
    /// released by a lock that whoever drains takes too, or before a fence.
    pub(crate) fn released(&self) {
        if self.is_draining() {
            self.changed();
        }
    }

    /// The state has changed.
    pub(crate) fn changed(&self) {
        self.changed.notify_waiters();
        self.observers.wake();
    }

    /// Waits until there is an answer, asking anew after each change of state and, while
    /// draining, after each release.
    pub(crate) async fn until<T>(&self, answer: impl FnMut() -> Option<T>) -> T {
        until(&self.changed, answer).await
    }
}

/// The work of one resource: what goes on, and how that of the last drain ended. On cache lines of its own: what every
/// operation writes would slow down every lease, which reads what is beside it.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct WorkCounters {
    now: ByWork<AtomicUsize>,
    /// When work last ended, in [`millis`](Moment::millis).
    last_ended: AtomicU64,
    is_draining: AtomicBool,
    books: Mutex<Books>,
}

/// How the work of a drain ended, by kind.
#[derive(Default)]
struct Books {
    finished: ByWork<usize>,
    given_up: ByWork<usize>,
    unfinished: ByWork<usize>,
}

impl WorkCounters {
    pub(crate) fn begin(&self, work: Work, count: usize) {
        self.now[work].fetch_add(count, Ordering::Relaxed);
    }

    fn end(&self, work: Work, count: usize, is_done: bool) -> bool {
        self.last_ended.store(Moment::coarse().millis(), Ordering::Relaxed);
        let end = || self.now[work].fetch_sub(count, Ordering::Release);
        if !self.is_draining.load(Ordering::Relaxed) {
            end();
            return false;
        }
        let mut books = self.books.lock();
        // Under the lock, so that it is either unfinished or has ended, and not both.
        end();
        let counts = self.is_draining.load(Ordering::Relaxed);
        if counts {
            let ended = if is_done { &mut books.finished } else { &mut books.given_up };
            ended[work] += count;
        }
        counts
    }

    /// Whether work ended within this time before this moment, or since.
    pub(crate) fn ended_within(&self, time: Duration, before: Moment) -> bool {
        let last = self.last_ended.load(Ordering::Relaxed);
        last > 0 && u128::from(before.millis().saturating_sub(last)) <= time.as_millis()
    }

    pub(crate) fn add_finished(&self, work: Work, count: usize) {
        self.books.lock().finished[work] += count;
    }

    /// Moves one from finished to given up: it was cut off after all.
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

    /// What still goes on is unfinished, however it will end.
    pub(crate) fn end_drain(&self) {
        let mut books = self.books.lock();
        self.is_draining.store(false, Ordering::Relaxed);
        books.unfinished = self.now.map(|now| now.load(Ordering::Acquire));
    }

    /// What is going on now, by kind, without what is not.
    pub(crate) fn now(&self) -> Vec<(Work, usize)> {
        self.now.counts(|now| now.load(Ordering::Acquire))
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
