//! Waiting for a connection, until one is handed over, the deadline passes, or the checkouts refuse.
//!
//! The queue calls `get` and `regain`, on threads and in tasks. A [`Waiting`] is the wait of one user.
//! Invariant: a waiter is listed in the core until it has its answer. Answers are given under the lock of the core, so
//! a waiter that is not listed has one. A connection that was given to a wait that drops goes back.
//! Order of locks: the lock of the core, then the waiter's cell. No call of a driver runs under them, and wakers are
//! woken and dropped outside of them.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use crate::base::clock::Moment;
use crate::base::error::{BoxError, Failure, Source};
use crate::lifecycle::checkout::core::Core;
use crate::lifecycle::checkout::entry::{PooledConnection, Rejected};
use crate::lifecycle::checkout::manage::{Manage, limited, until};
use crate::lifecycle::checkout::state::Borrowed;
use crate::lifecycle::checkout::waiter::{QueuedWaiter, Refusal, WaitAnswer};

/// The wait of one user, by thread or by task. If it drops, a connection that was given to it goes back.
pub(crate) struct Waiting<'a, M: Manage> {
    core: &'a Arc<Core<M>>,
    waiter: Arc<QueuedWaiter<M>>,
    is_over: bool,
    /// The prober's ping that was in flight as this began. `None` if there was none.
    ping: Option<Ping>,
}

/// A ping over a borrowed connection. The user who has waited longest is given the connection after it.
struct Ping {
    until: Instant,
    /// Whether this user would have had that connection at once. If so, the ping is waited for like a test that has
    /// begun, even past the deadline.
    is_ours: bool,
}

/// How a wait ended without a connection.
pub(super) enum Ended {
    Refused(Refusal),
    TimedOut(Option<Source>),
}

impl<M: Manage> Core<M> {
    /// Takes a free connection for a user who may not wait. If the prober has borrowed one that was free, this waits
    /// for the ping. `None` if none was free.
    pub(super) async fn regain(self: &Arc<Self>, deadline: Instant) -> Option<Result<Box<PooledConnection<M>>, Ended>> {
        let (waiting, end) = self.inherit(deadline)?;
        let counted = CountedWait::begin(self);
        let got = self.inherited(waiting, end).await?;
        Some(counted.end(got))
    }

    /// Does the same for a user who only tries. Its wait does not count.
    pub(super) async fn try_regain(self: &Arc<Self>) -> Option<Result<Box<PooledConnection<M>>, Ended>> {
        let (waiting, end) = self.inherit(Instant::now())?;
        self.inherited(waiting, end).await
    }

    async fn inherited(
        self: &Arc<Self>,
        mut waiting: Waiting<'_, M>,
        end: Instant,
    ) -> Option<Result<Box<PooledConnection<M>>, Ended>> {
        let answer = match until::<M, _>(&mut waiting, end).await {
            Some(answer) => Ok(answer),
            None => waiting.give_up(),
        };
        Some(match answer {
            Ok(Ok(entry)) => match self.fit(entry).await {
                Ok(fit) => Ok(fit),
                Err(unfit) => {
                    self.close_unfit(unfit);
                    return None;
                }
            },
            Ok(Err(refusal)) => Err(Ended::Refused(refusal)),
            Err(cause) => Err(Ended::TimedOut(cause)),
        })
    }

    /// Takes an idle connection, and tests it if it needs that. If the prober has borrowed one that was free, this waits
    /// for the ping. `None` if none is idle, or none has passed its test by the deadline.
    pub(super) async fn try_take(
        self: &Arc<Self>,
        deadline: Instant,
    ) -> Option<Result<Box<PooledConnection<M>>, Ended>> {
        loop {
            match self.pop_idle() {
                Ok(Some(entry)) => match self.fit(entry).await {
                    Ok(fit) => return Some(Ok(fit)),
                    Err(unfit) => self.close_unfit(unfit),
                },
                Ok(None) => return self.try_regain().await,
                Err(refusal) => return Some(Err(Ended::Refused(refusal))),
            }
            if Instant::now() >= deadline {
                return None;
            }
        }
    }

    fn pop_idle(self: &Arc<Self>) -> Result<Option<Box<PooledConnection<M>>>, Refusal> {
        let mut state = self.state.lock();
        if let Some(refusal) = &state.refused {
            return Err(refusal.clone());
        }
        let entry = state.idle.pop();
        self.settle(state);
        Ok(entry)
    }

    /// Begins the wait for the borrowed connection, and tells until when to wait. A free connection that has come back
    /// meanwhile is the answer at once.
    fn inherit(self: &Arc<Self>, deadline: Instant) -> Option<(Waiting<'_, M>, Instant)> {
        let waiter = QueuedWaiter::new();
        let mut state = self.state.lock();
        let end = if let Some(entry) = state.idle.pop_if(|entry| self.is_free(entry, Moment::coarse())) {
            waiter.0.lock().answer = Some(Ok(entry));
            deadline
        } else {
            let borrowed = state.borrowed.filter(|borrowed| borrowed.is_free && state.has_no_queue())?;
            state.heir = Some(Arc::clone(&waiter));
            deadline.max(borrowed.until)
        };
        self.settle(state);
        Some((Waiting { core: self, waiter, is_over: false, ping: None }, end))
    }

    /// Waits until a connection is free, the deadline passes, or the checkouts refuse. A test that has begun is waited
    /// for.
    pub(super) async fn get(self: &Arc<Self>, deadline: Instant) -> Result<Box<PooledConnection<M>>, Ended> {
        let counted = CountedWait::begin(self);
        counted.end(self.get_fit(deadline).await)
    }

    async fn get_fit(self: &Arc<Self>, deadline: Instant) -> Result<Box<PooledConnection<M>>, Ended> {
        let mut unfit = None;
        loop {
            let mut waiting = self.wait(unfit.take());
            let early = match waiting.ping.take() {
                Some(Ping { until: end, is_ours }) => {
                    let end = if is_ours { end } else { end.min(deadline) };
                    let answer = until::<M, _>(&mut waiting, end).await;
                    if answer.is_none() {
                        // The ping takes too long, so another connection may be opened from here on.
                        self.settle(self.state.lock());
                    }
                    answer
                }
                None => None,
            };
            let answer = match early {
                None => until::<M, _>(&mut waiting, deadline).await,
                early => early,
            };
            let answer = match answer {
                Some(answer) => answer,
                None => waiting.give_up().map_err(Ended::TimedOut)?,
            };
            match self.fit(answer.map_err(Ended::Refused)?).await {
                Ok(fit) => return Ok(fit),
                Err(bad) if Instant::now() < deadline => unfit = Some(bad),
                Err(bad) => {
                    let cause = bad.cause.clone();
                    self.close_unfit(bad);
                    return Err(Ended::TimedOut(cause));
                }
            }
        }
    }

    /// Tests a connection if it needs that, and marks it as checked out. A connection is closed if nobody awaits its
    /// test any more.
    async fn fit(self: &Arc<Self>, entry: Box<PooledConnection<M>>) -> Result<Box<PooledConnection<M>>, Rejected<M>> {
        let now = Moment::coarse();
        if entry.checked_out.is_some() && entry.is_worn(now) {
            return Err(Rejected { entry, cause: None });
        }
        let mut entry = match self.needs_test(&entry, now) {
            true => self.tested(entry).await?,
            false => entry,
        };
        if entry.checked_out.replace(now).is_none() {
            self.state.lock().succeed();
        }
        Ok(entry)
    }

    async fn tested(
        self: &Arc<Self>,
        entry: Box<PooledConnection<M>>,
    ) -> Result<Box<PooledConnection<M>>, Rejected<M>> {
        let mut testing = Testing { core: self, entry: Some(entry) };
        let answer = limited::<M, _>(self.limit, testing.ask()).await;
        let Some(entry) = testing.entry.take() else { unreachable!("only its drop takes it") };
        match answer {
            Ok(()) => Ok(entry),
            Err(Failure { source, .. }) => Err(Rejected { entry, cause: Some(source.into()) }),
        }
    }

    /// Begins to wait for a connection, which comes untested. A user who was given an unfit one goes first.
    pub(crate) fn wait(self: &Arc<Self>, unfit: Option<Rejected<M>>) -> Waiting<'_, M> {
        let waiter = QueuedWaiter::new();
        let mut state = self.state.lock();
        let ping = state.borrowed.map(|Borrowed { until, .. }| Ping { until, is_ours: state.has_no_queue() });
        let again = unfit.is_some();
        let mut replaced = unfit.and_then(|unfit| self.discard(&mut state, unfit));
        if let Some(refusal) = &state.refused {
            waiter.0.lock().answer = Some(Err(refusal.clone()));
        } else if let Some(entry) = state.idle.pop() {
            waiter.0.lock().answer = Some(Ok(entry));
        } else if again {
            state.waiters.push_front(Arc::clone(&waiter));
        } else {
            if state.opening == 0 {
                // An earlier failure does not explain this wait.
                replaced = replaced.or(state.failure.take());
            }
            state.waiters.push_back(Arc::clone(&waiter));
        }
        self.settle(state);
        drop(replaced);
        Waiting { core: self, waiter, is_over: false, ping }
    }
}

/// A wait of a user. It counts when this drops, because a user may also stop waiting.
struct CountedWait<'a, M: Manage> {
    core: &'a Core<M>,
    began: Instant,
    is_timeout: bool,
}

impl<'a, M: Manage> CountedWait<'a, M> {
    fn begin(core: &'a Core<M>) -> Self {
        CountedWait { core, began: Instant::now(), is_timeout: false }
    }

    fn end<T>(mut self, got: Result<T, Ended>) -> Result<T, Ended> {
        self.is_timeout = matches!(got, Err(Ended::TimedOut(_)));
        got
    }
}

impl<M: Manage> Drop for CountedWait<'_, M> {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        let waits = &mut self.core.state.lock().waits;
        waits.count += 1;
        waits.time += took;
        waits.timeouts += u64::from(self.is_timeout);
    }
}

/// A connection that is being tested. It is closed if this drops.
struct Testing<'a, M: Manage> {
    core: &'a Arc<Core<M>>,
    entry: Option<Box<PooledConnection<M>>>,
}

impl<M: Manage> Testing<'_, M> {
    async fn ask(&mut self) -> Result<(), Failure> {
        match &mut self.entry {
            Some(entry) => self.core.manager.is_valid(&mut entry.connection).await,
            None => Ok(()),
        }
    }
}

impl<M: Manage> Drop for Testing<'_, M> {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            self.core.close_unfit(Rejected { entry, cause: None });
        }
    }
}

impl<M: Manage> Waiting<'_, M> {
    /// Stops waiting. Returns the answer that came meanwhile, or else the reason why none came.
    fn give_up(&mut self) -> Result<WaitAnswer<M>, Option<Source>> {
        self.is_over = true;
        let mut state = self.core.state.lock();
        let is_me = |one: &Arc<QueuedWaiter<M>>| Arc::ptr_eq(one, &self.waiter);
        let place = state.waiters.iter().position(is_me);
        let left = place.and_then(|place| state.waiters.remove(place)).or_else(|| state.heir.take_if(|one| is_me(one)));
        if left.is_some() {
            let (leaving, max) = (state.leaving.len(), state.max);
            let hang =
                || BoxError::from(format!("{leaving} connections wait to be closed, for the driver's goodbyes hang"));
            return Err(state.failure.clone().or_else(|| (leaving > max).then(|| hang().into())));
        }
        drop(state);
        // Answers are given under the lock, as a waiter leaves the queue, so the answer is there by now.
        self.waiter.0.lock().answer.take().ok_or(None)
    }
}

impl<M: Manage> Future for Waiting<'_, M> {
    type Output = WaitAnswer<M>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<WaitAnswer<M>> {
        let mut cell = self.waiter.0.lock();
        let Some(answer) = cell.answer.take() else {
            let is_same = cell.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker()));
            let replaced = if is_same { None } else { cell.waker.replace(context.waker().clone()) };
            drop(cell);
            drop(replaced);
            return Poll::Pending;
        };
        drop(cell);
        self.is_over = true;
        Poll::Ready(answer)
    }
}

impl<M: Manage> Drop for Waiting<'_, M> {
    fn drop(&mut self) {
        if !self.is_over
            && let Ok(Ok(entry)) = self.give_up()
        {
            self.core.put(entry);
        }
    }
}
