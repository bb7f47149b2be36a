//! The core of the checkouts: the free connections, the waiters, and the jobs to begin next. It has no runtime and no
//! lease table, so that loom can model it.
//!
//! [`Checkouts`](crate::lifecycle::checkout::Checkouts), the queue, the loans of the prober and the jobs call it.
//! Invariant: no waiter is queued while a connection lies idle, and each job counts from the decision to begin it until
//! it is over, or its epoch is.
//! Order of locks: `state`, then the cell of a waiter. No call of [`Manage`] runs under them. Wakers are woken, jobs
//! started, and connections and old failures dropped outside of them as well.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock::Moment;
use crate::base::error::{Error, Source, panic_message};
use crate::base::retry::Retry;
use crate::base::runtime::LONGEST;
use crate::base::sync::{Mutex, MutexGuard};
use crate::lifecycle::checkout::entry::{PooledConnection, Rejected};
use crate::lifecycle::checkout::manage::{Manage, limited};
use crate::lifecycle::checkout::state::{CloseCause, QueueState};
use crate::lifecycle::checkout::waiter::{Refusal, wake};

/// The connections of one resource, and the waiters for them.
pub(crate) struct Core<M: Manage> {
    pub(super) resource: Arc<str>,
    pub(super) manager: M,
    pub(super) limits: Limits,
    pub(super) retry: Retry,
    /// The longest time that an opening, a test or a disconnect may take, unless the driver blocks.
    pub(super) limit: Duration,
    /// Starts the jobs without waiting for them. It is not called under the lock.
    start: Box<Start<M>>,
    pub(super) state: Mutex<QueueState<M>>,
}

type Start<M> = dyn Fn(&Arc<Core<M>>, JobsBegun) + Send + Sync;

/// The limits of the checkouts: how many connections there may be, and for how long.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// The most connections, at least 1. The prober's own is not counted. `Checkouts::resize` changes it later.
    pub max: usize,
    /// How many idle connections are kept, from the start and after a loss. At most `max`.
    pub min_idle: usize,
    /// How many idle connections stay open once they are open, however long they are idle.
    pub kept: usize,
    /// The time after which an idle connection beyond those is closed. Zero means never.
    pub idle_timeout: Duration,
    /// The longest time that a connection is used, less up to a tenth of it. Zero means for ever.
    pub max_lifetime: Duration,
    /// A connection that was checked out within this time is checked out again without a test. Zero tests it each time.
    pub test_after: Duration,
    /// An idle connection that was neither checked out nor tested within this time is tested in the background, one
    /// connection at a time, and replaced if it is broken. The last idle one is not tested while there may be no more
    /// connections. Zero means never.
    pub test_idle_after: Duration,
}

impl Default for Limits {
    /// At most 10 connections. They are closed after 60 s of idleness, replaced after 30 min, and tested unless they
    /// were checked out within the last 500 ms. Idle ones are not tested in the background.
    fn default() -> Self {
        Limits {
            max: 10,
            min_idle: 0,
            kept: 0,
            idle_timeout: Duration::from_secs(60),
            max_lifetime: Duration::from_secs(1800),
            test_after: Duration::from_millis(500),
            test_idle_after: Duration::ZERO,
        }
    }
}

impl Limits {
    /// The pause between two searches for connections that are idle for too long, worn, or to be tested. `None` if
    /// there is no such limit.
    pub(super) fn interval(&self) -> Option<Duration> {
        let limits = [self.idle_timeout, self.max_lifetime, self.test_idle_after];
        let shortest = limits.into_iter().filter(|limit| !limit.is_zero()).min()?;
        Some((shortest / 8).clamp(Duration::from_millis(10), Duration::from_secs(10)))
    }
}

/// The numbers of jobs that count as begun. The jobs are to be started outside of the lock.
#[must_use = "they are waited for"]
pub(crate) struct JobsBegun {
    pub(super) openings: usize,
    pub(super) epoch: u64,
    /// The pause before the openings.
    pub(super) pause: Duration,
    pub(super) disconnects: usize,
}

/// How many disconnects may run, or hang, at a time. As many connections as `max` may queue for one. Beyond that none
/// are opened.
const MAX_DISCONNECTS: usize = 8;

impl<M: Manage> Core<M> {
    pub(crate) fn new(
        resource: Arc<str>,
        manager: M,
        limits: Limits,
        retry: Retry,
        limit: Duration,
        start: impl Fn(&Arc<Self>, JobsBegun) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let max = limits.max.max(1);
        let limits = Limits { max, min_idle: limits.min_idle.min(max), ..limits };
        let (start, state) = (Box::new(start), Mutex::new(QueueState::new(max)));
        Arc::new(Core { resource, manager, limits, retry, limit, start, state })
    }

    /// Takes an idle connection that needs no test. `None` if there is none on top.
    #[inline]
    pub(super) fn try_get(self: &Arc<Self>) -> Option<Box<PooledConnection<M>>> {
        let now = Moment::coarse();
        let mut state = self.state.lock();
        let mut entry = state.idle.pop_if(|entry| self.is_free(entry, now))?;
        state.succeed();
        state.acquires += 1;
        if state.idle.len() < self.limits.min_idle {
            self.settle(state);
        }
        entry.checked_out = Some(now);
        Some(entry)
    }

    /// Wraps a connection that has just been opened, and sets its lifetime.
    pub(super) fn entry(&self, state: &mut QueueState<M>, connection: M::Connection) -> Box<PooledConnection<M>> {
        state.opened += 1;
        // Lifetimes are spread, so that connections do not all end at once. 61 has no divisor in common with 100, so
        // that neighbours are far apart.
        let spread = (state.opened % 100 * 61 % 100) as f64 / 1000.0;
        let lifetime = match self.limits.max_lifetime {
            Duration::ZERO => Duration::MAX,
            longest => longest.min(LONGEST).mul_f64(1.0 - spread),
        };
        let (opened, epoch) = (Moment::coarse(), state.epoch);
        Box::new(PooledConnection { connection, checked_out: None, opened, lifetime, idle: None, tested: None, epoch })
    }

    /// Takes a connection back. It is closed if it is broken, of an older epoch, or one more than there may be.
    #[inline]
    pub(crate) fn put(self: &Arc<Self>, mut entry: Box<PooledConnection<M>>) {
        let is_broken = self.is_broken(&mut entry);
        let mut state = self.state.lock();
        if is_broken || entry.epoch != state.epoch || state.open > state.max {
            state.open -= 1;
            state.part_with(entry, if is_broken { CloseCause::Broken } else { CloseCause::Surplus });
            return self.settle(state);
        }
        entry.idle = None;
        let woken = state.hand_over(entry, true);
        drop(state);
        wake(woken);
    }

    /// Closes a connection instead of taking it back.
    pub(super) fn close_discarded(self: &Arc<Self>, entry: Box<PooledConnection<M>>) {
        let mut state = self.state.lock();
        state.open -= 1;
        state.part_with(entry, CloseCause::Discarded);
        self.settle(state);
    }

    /// Takes the connection out of its entry, which frees its place.
    pub(super) fn detach(self: &Arc<Self>, entry: PooledConnection<M>) -> M::Connection {
        let mut state = self.state.lock();
        state.open -= 1;
        state.detached += 1;
        self.settle(state);
        entry.connection
    }

    /// Lets go of the lock, and starts the jobs that are due.
    pub(super) fn settle(self: &Arc<Self>, mut state: MutexGuard<'_, QueueState<M>>) {
        let begun = self.demand(&mut state);
        drop(state);
        (self.start)(self, begun);
    }

    /// Has an unfit connection closed. Returns the failure that the new one replaces.
    #[must_use = "it is to be dropped outside of the lock"]
    pub(super) fn discard(&self, state: &mut QueueState<M>, Rejected { entry, cause }: Rejected<M>) -> Option<Source> {
        if cause.is_some() && entry.is_fresh(Moment::coarse()) {
            self.set_back(state);
        }
        state.open -= 1;
        let is_worn = cause.is_none() && entry.is_worn(Moment::coarse());
        state.part_with(entry, if is_worn { CloseCause::Lifetime } else { CloseCause::Broken });
        cause.and_then(|cause| state.failure.replace(cause))
    }

    pub(super) fn close_unfit(self: &Arc<Self>, unfit: Rejected<M>) {
        let mut state = self.state.lock();
        let replaced = self.discard(&mut state, unfit);
        self.settle(state);
        drop(replaced);
    }

    /// Counts an opening that led to nothing, and pauses the next one.
    pub(super) fn set_back(&self, state: &mut QueueState<M>) {
        state.setbacks = state.setbacks.saturating_add(1);
        self.pause(state);
    }

    /// Has the next opening follow after a pause, with no other beside it.
    pub(super) fn pause(&self, state: &mut QueueState<M>) {
        state.open_concurrency = 1;
        state.pausing = Some(Instant::now() + self.retry.pause(state.setbacks).min(LONGEST));
    }

    pub(super) fn is_free(&self, entry: &PooledConnection<M>, now: Moment) -> bool {
        !entry.is_worn(now) && !self.needs_test(entry, now)
    }

    pub(super) fn needs_test(&self, entry: &PooledConnection<M>, now: Moment) -> bool {
        now.since(entry.checked_out.unwrap_or(entry.opened)) >= self.limits.test_after
    }

    pub(super) fn is_broken(&self, entry: &mut PooledConnection<M>) -> bool {
        catch_unwind(AssertUnwindSafe(|| self.manager.has_broken(&mut entry.connection))).unwrap_or(true)
    }

    /// The number of connections that waiters or `min_idle` have use for.
    pub(super) fn wanted(&self, state: &QueueState<M>) -> usize {
        if state.refused.is_some() || state.suspended {
            return 0;
        }
        let coming = state.borrowed.is_some_and(|borrowed| Instant::now() < borrowed.until);
        let waiting = state.waiters.len().saturating_sub(usize::from(coming));
        waiting.max(self.limits.min_idle.saturating_sub(state.idle.len() + state.lent))
    }

    /// How many more connections may be opened.
    pub(super) fn room(&self, state: &QueueState<M>) -> usize {
        if state.leaving.len() > state.max {
            return 0;
        }
        state.max.saturating_sub(state.open + state.opening)
    }

    /// The jobs to be begun now. They count as begun from here on.
    pub(super) fn demand(&self, state: &mut QueueState<M>) -> JobsBegun {
        let openings =
            self.wanted(state).min(state.open_concurrency).saturating_sub(state.opening).min(self.room(state));
        state.opening += openings;
        let pause = match state.pausing {
            Some(until) if openings > 0 => until.saturating_duration_since(Instant::now()),
            _ => Duration::ZERO,
        };
        let disconnects = state.leaving.len().min(MAX_DISCONNECTS.saturating_sub(state.parting));
        state.parting += disconnects;
        JobsBegun { openings, epoch: state.epoch, pause, disconnects }
    }

    /// Answers all waiters with this refusal, and all users from now on.
    pub(crate) fn refuse(self: &Arc<Self>, refusal: Refusal, for_good: bool) {
        let mut state = self.state.lock();
        let mut replaced = None;
        if !state.is_closed {
            replaced = state.refused.replace(refusal.clone());
            state.is_closed = for_good;
        }
        self.answer_all(state, &refusal);
        drop(replaced);
    }

    /// Has the users who wait for the resource to come back acquire it anew. Does nothing if it has come back
    /// meanwhile.
    pub(super) fn give_up(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if state.suspended {
            let replaced = state.refused.replace(Refusal::AskAnew);
            self.answer_all(state, &Refusal::AskAnew);
            drop(replaced);
        }
    }

    pub(super) fn answer_all(self: &Arc<Self>, mut state: MutexGuard<'_, QueueState<M>>, refusal: &Refusal) {
        state.suspended = false;
        let waiters = state.heir.take().into_iter().chain(std::mem::take(&mut state.waiters));
        let woken: Vec<_> = waiters.map(|waiter| waiter.answer(Err(refusal.clone()))).collect();
        let cause = match refusal {
            Refusal::Because(Error::Closing { .. } | Error::Closed { .. }) => CloseCause::Closing,
            _ => CloseCause::Lost,
        };
        // The heir has its answer, so that this wakes nobody.
        let _none = state.end(cause);
        self.settle(state);
        woken.into_iter().for_each(wake);
    }

    pub(crate) fn closed(&self) -> Refusal {
        Refusal::Because(Error::closed(&self.resource))
    }

    /// Sets the most connections from now on. Of those that are too many, idle ones are closed now, the longest idle
    /// first, and the others as they come back. The pool's own `note` runs under the lock.
    pub(super) fn resize_with(self: &Arc<Self>, max: usize, note: impl FnOnce()) {
        let mut state = self.state.lock();
        note();
        state.max = max.max(1);
        let surplus = state.open.saturating_sub(state.max).min(state.idle.len());
        let gone: Vec<_> = state.idle.drain(..surplus).collect();
        state.open -= surplus;
        for entry in gone {
            state.part_with(entry, CloseCause::Surplus);
        }
        self.settle(state);
    }

    /// Replaces all present connections, on demand.
    pub(super) fn retire(self: &Arc<Self>) {
        let mut state = self.state.lock();
        let woken = state.end(CloseCause::Refreshed);
        self.settle(state);
        wake(woken);
    }

    /// Ends all connections, and opens none until `accept`. Waiters go on waiting.
    pub(super) fn suspend(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.suspended = !state.is_closed;
        let woken = state.end(CloseCause::Lost);
        self.settle(state);
        wake(woken);
    }

    pub(super) fn is_suspended(&self) -> bool {
        self.state.lock().suspended
    }

    /// Serves users from here on, for the first time or again.
    pub(crate) fn accept(self: &Arc<Self>) {
        let mut state = self.state.lock();
        let mut replaced = None;
        if !state.is_closed {
            replaced = state.refused.take();
            state.suspended = false;
            state.open_concurrency = 1;
            state.succeed();
        }
        self.settle(state);
        drop(replaced);
    }

    pub(super) fn has_disconnected(&self) -> bool {
        let state = self.state.lock();
        state.leaving.len() + state.parting == 0
    }

    /// Closes connections that have been idle for too long, or are worn.
    pub(super) fn reap(self: &Arc<Self>, now: Moment) {
        let Limits { idle_timeout, min_idle, kept, .. } = self.limits;
        let mut state = self.state.lock();
        let mut spare = if idle_timeout.is_zero() { 0 } else { state.idle.len().saturating_sub(min_idle.max(kept)) };
        let gone: Vec<_> = state
            .idle
            .extract_if(.., |entry| {
                let is_late = now.since(*entry.idle.get_or_insert(now)) >= idle_timeout && spare > 0;
                if is_late {
                    spare -= 1;
                }
                is_late || entry.is_worn(now)
            })
            .collect();
        state.open -= gone.len();
        for entry in gone {
            let cause = if entry.is_worn(now) { CloseCause::Lifetime } else { CloseCause::Idle };
            state.part_with(entry, cause);
        }
        self.settle(state);
    }

    /// Drops these connections. A panic of the driver is logged, and goes no further.
    pub(super) fn let_go(&self, gone: VecDeque<Box<PooledConnection<M>>>) {
        for entry in gone {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(entry))) {
                let message = panic_message(&*panic);
                tracing::warn!(resource = %self.resource, message, "the driver panicked as a connection was dropped");
            }
        }
    }

    /// Closes a connection with the driver's code. A panic of the driver is logged, and goes no further.
    pub(super) async fn disconnect(&self, connection: M::Connection) {
        let closing = async {
            self.manager.close(connection).await;
            Ok(())
        };
        if let Err(failure) = limited::<M, ()>(self.limit, closing).await {
            tracing::warn!(resource = %self.resource, error = %failure, "the driver failed to close a connection");
        }
    }
}

#[cfg(model)]
impl<M: Manage> Core<M> {
    /// Asserts the state that holds once nobody waits and no connection is out.
    pub(crate) fn check_idle(&self) {
        let state = self.state.lock();
        assert_eq!((state.waiters.len(), state.opening), (0, 0), "waiting, being opened");
        assert_eq!(state.open, state.idle.len(), "open and lost");
        assert_eq!((state.leaving.len(), state.parting), (0, 0), "not disconnected");
        assert!(state.open <= state.max);
    }
}

#[cfg(all(test, not(model)))]
mod tests;
