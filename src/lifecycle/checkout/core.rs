//! The core of the checkouts: what is free, who waits, and what is begun next, without runtime and books, so that loom
//! can model it. One lock guards all of it; drivers, wakers and threads run outside of it.

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
use crate::lifecycle::checkout::state::State;
use crate::lifecycle::checkout::waiter::{Refusal, wake};

/// The connections of one resource, and who waits for them.
pub(crate) struct Core<M: Manage> {
    pub(super) resource: Arc<str>,
    pub(super) manager: M,
    pub(super) limits: Limits,
    pub(super) retry: Retry,
    /// How long an opening, a test or a goodbye may take, where the driver does not block.
    pub(super) limit: Duration,
    /// Has the jobs carried out, without waiting for them, and not under the lock.
    start: Box<Start<M>>,
    pub(super) state: Mutex<State<M>>,
}

type Start<M> = dyn Fn(&Arc<Core<M>>, Begun) + Send + Sync;

/// How many connections there may be, and for how long.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// The most, at least 1, beside the prober's own.
    pub max: usize,
    /// How many idle ones are kept, from the start and after a loss; at most `max`.
    pub min_idle: usize,
    /// How many idle ones stay, however long they are idle, once they are open.
    pub kept: usize,
    /// After how long an idle one beyond those is closed; zero is never.
    pub idle_timeout: Duration,
    /// The longest that one is used, less up to a tenth; zero is for ever.
    pub max_lifetime: Duration,
    /// Within which time one that was checked out is checked out again without a test; zero tests it each time.
    pub test_after: Duration,
}

impl Default for Limits {
    /// At most 10, closed after 60 s of idleness, replaced after 30 min, tested unless checked out within the last 500 ms.
    fn default() -> Self {
        Limits {
            max: 10,
            min_idle: 0,
            kept: 0,
            idle_timeout: Duration::from_secs(60),
            max_lifetime: Duration::from_secs(1800),
            test_after: Duration::from_millis(500),
        }
    }
}

impl Limits {
    /// The pause between two looks for what is idle for too long, or worn.
    pub(super) fn interval(&self) -> Option<Duration> {
        let limits = [self.idle_timeout, self.max_lifetime];
        let shortest = limits.into_iter().filter(|limit| !limit.is_zero()).min()?;
        Some((shortest / 8).clamp(Duration::from_millis(10), Duration::from_secs(10)))
    }
}

/// So many jobs, which count as begun. They are to be carried out outside of the lock.
#[must_use = "they are waited for"]
pub(crate) struct Begun {
    pub(super) openings: usize,
    pub(super) epoch: u64,
    /// Before the openings.
    pub(super) pause: Duration,
    pub(super) disconnects: usize,
}

/// How many goodbyes may be said, or hang, at a time. As many connections as there may be wait for that; beyond those none
/// are opened.
const MAX_DISCONNECTS: usize = 8;

impl<M: Manage> Core<M> {
    pub(crate) fn new(
        resource: Arc<str>,
        manager: M,
        limits: Limits,
        retry: Retry,
        limit: Duration,
        start: impl Fn(&Arc<Self>, Begun) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let max = limits.max.max(1);
        let limits = Limits { max, min_idle: limits.min_idle.min(max), ..limits };
        let (start, state) = (Box::new(start), Mutex::new(State::new()));
        Arc::new(Core { resource, manager, limits, retry, limit, start, state })
    }

    /// One that lies idle and needs no test.
    #[inline]
    pub(super) fn try_get(self: &Arc<Self>) -> Option<Box<PooledConnection<M>>> {
        let now = Moment::coarse();
        let mut state = self.state.lock();
        let mut entry = state.idle.pop_if(|entry| self.is_free(entry, now))?;
        state.succeed();
        if state.idle.len() < self.limits.min_idle {
            self.settle(state);
        }
        entry.checked_out = Some(now);
        Some(entry)
    }

    /// One that has just been opened.
    pub(super) fn entry(&self, state: &mut State<M>, connection: M::Connection) -> Box<PooledConnection<M>> {
        state.opened += 1;
        // Not all of them at once; 61 has no divisor in common with 100, so that neighbours are far apart.
        let spread = (state.opened % 100 * 61 % 100) as f64 / 1000.0;
        let lifetime = match self.limits.max_lifetime {
            Duration::ZERO => Duration::MAX,
            longest => longest.min(LONGEST).mul_f64(1.0 - spread),
        };
        let (opened, epoch) = (Moment::coarse(), state.epoch);
        Box::new(PooledConnection { connection, checked_out: None, opened, lifetime, idle: None, epoch })
    }

    /// Takes one back.
    #[inline]
    pub(crate) fn put(self: &Arc<Self>, mut entry: Box<PooledConnection<M>>) {
        let is_broken = self.is_broken(&mut entry);
        let mut state = self.state.lock();
        if is_broken || entry.epoch != state.epoch {
            state.open -= 1;
            state.leaving.push_back(entry);
            return self.settle(state);
        }
        let woken = state.hand_over(entry, true);
        drop(state);
        wake(woken);
    }

    /// Begins what is to be begun now.
    pub(super) fn settle(self: &Arc<Self>, mut state: MutexGuard<'_, State<M>>) {
        let begun = self.demand(&mut state);
        drop(state);
        (self.start)(self, begun);
    }

    /// Has an unfit connection closed.
    #[must_use = "it is to be dropped outside of the lock"]
    pub(super) fn discard(&self, state: &mut State<M>, Rejected { entry, cause }: Rejected<M>) -> Option<Source> {
        if cause.is_some() && entry.is_fresh(Moment::coarse()) {
            self.set_back(state);
        }
        state.open -= 1;
        state.leaving.push_back(entry);
        cause.and_then(|cause| state.failure.replace(cause))
    }

    pub(super) fn close_unfit(self: &Arc<Self>, unfit: Rejected<M>) {
        let mut state = self.state.lock();
        let replaced = self.discard(&mut state, unfit);
        self.settle(state);
        drop(replaced);
    }

    /// An opening led to nothing.
    pub(super) fn set_back(&self, state: &mut State<M>) {
        state.setbacks = state.setbacks.saturating_add(1);
        self.pause(state);
    }

    /// The next opening follows after a pause.
    pub(super) fn pause(&self, state: &mut State<M>) {
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

    /// The number of connections that somebody would have use for.
    pub(super) fn wanted(&self, state: &State<M>) -> usize {
        if state.refused.is_some() || state.suspended {
            return 0;
        }
        let coming = state.borrowed.is_some_and(|borrowed| Instant::now() < borrowed.until);
        let waiting = state.waiters.len().saturating_sub(usize::from(coming));
        waiting.max(self.limits.min_idle.saturating_sub(state.idle.len() + state.lent))
    }

    /// How many more may be opened.
    pub(super) fn room(&self, state: &State<M>) -> usize {
        if state.leaving.len() > self.limits.max {
            return 0;
        }
        self.limits.max.saturating_sub(state.open + state.opening)
    }

    /// The jobs to be begun now, which count as begun from here on.
    pub(super) fn demand(&self, state: &mut State<M>) -> Begun {
        let openings =
            self.wanted(state).min(state.open_concurrency).saturating_sub(state.opening).min(self.room(state));
        state.opening += openings;
        let pause = match state.pausing {
            Some(until) if openings > 0 => until.saturating_duration_since(Instant::now()),
            _ => Duration::ZERO,
        };
        let disconnects = state.leaving.len().min(MAX_DISCONNECTS.saturating_sub(state.parting));
        state.parting += disconnects;
        Begun { openings, epoch: state.epoch, pause, disconnects }
    }

    /// Answers whoever waits with this, and everybody from now on.
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

    /// Whoever waits for the resource to come back asks it from here on. Nobody may where it has come back meanwhile.
    pub(super) fn give_up(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if state.suspended {
            let replaced = state.refused.replace(Refusal::AskAnew);
            self.answer_all(state, &Refusal::AskAnew);
            drop(replaced);
        }
    }

    pub(super) fn answer_all(self: &Arc<Self>, mut state: MutexGuard<'_, State<M>>, refusal: &Refusal) {
        state.suspended = false;
        let waiters = state.heir.take().into_iter().chain(std::mem::take(&mut state.waiters));
        let woken: Vec<_> = waiters.map(|waiter| waiter.answer(Err(refusal.clone()))).collect();
        // Nobody waits for what is borrowed any more.
        let _none = state.end();
        self.settle(state);
        woken.into_iter().for_each(wake);
    }

    pub(crate) fn closed(&self) -> Refusal {
        Refusal::Because(Error::closed(&self.resource))
    }

    /// Replaces those that there are, on demand.
    pub(super) fn retire(self: &Arc<Self>) {
        let mut state = self.state.lock();
        let woken = state.end();
        self.settle(state);
        wake(woken);
    }

    /// There are none until these are accepted again. Whoever waits goes on waiting.
    pub(super) fn suspend(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.suspended = !state.is_closed;
        let woken = state.end();
        self.settle(state);
        wake(woken);
    }

    pub(super) fn is_suspended(&self) -> bool {
        self.state.lock().suspended
    }

    /// There are some, or some again.
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

    /// Closes what is idle for too long, or worn.
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
        state.leaving.extend(gone);
        self.settle(state);
    }

    /// Drops these. A panic there is nobody's.
    pub(super) fn let_go(&self, gone: VecDeque<Box<PooledConnection<M>>>) {
        for entry in gone {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(entry))) {
                let message = panic_message(&*panic);
                tracing::warn!(resource = %self.resource, message, "the driver panicked as a connection was dropped");
            }
        }
    }

    /// Closes one, as the driver does. A panic there is nobody's.
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
    /// What holds once nobody waits and nothing is out.
    pub(crate) fn check_idle(&self) {
        let state = self.state.lock();
        assert_eq!((state.waiters.len(), state.opening), (0, 0), "waiting, being opened");
        assert_eq!(state.open, state.idle.len(), "open and lost");
        assert_eq!((state.leaving.len(), state.parting), (0, 0), "not disconnected");
        assert!(state.open <= self.limits.max);
    }
}

#[cfg(all(test, not(model)))]
mod tests;
