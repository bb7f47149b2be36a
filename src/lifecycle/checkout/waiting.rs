//! Waiting for a connection: until one is given, the time is up, or there is none to wait for.

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
use crate::lifecycle::checkout::waiter::{Answer, Refusal, Waiter};

/// A user's wait, by thread or by task. A connection that was given to one that drops goes back.
pub(crate) struct Waiting<'a, M: Manage> {
    core: &'a Arc<Core<M>>,
    waiter: Arc<Waiter<M>>,
    is_over: bool,
    /// The prober's, if there was one as this began.
    ping: Option<Ping>,
}

/// A ping over the connection that whoever has waited longest is given after it.
struct Ping {
    until: Instant,
    /// Whether whoever waits would have had that connection at once. A test that has begun is waited for.
    is_ours: bool,
}

/// How a wait ended without a connection.
pub(super) enum Ended {
    Refused(Refusal),
    TimedOut(Option<Source>),
}

impl<M: Manage> Core<M> {
    /// One that is free, for a user who may not wait. If it was free until the prober borrowed it, that ping is waited for.
    /// None where it was not.
    pub(super) async fn regain(self: &Arc<Self>, deadline: Instant) -> Option<Result<Box<PooledConnection<M>>, Ended>> {
        let (mut waiting, end) = self.inherit(deadline)?;
        let answer = match until::<M, _>(&mut waiting, end).await {
            Some(answer) => Ok(answer),
            None => waiting.give_up(),
        };
        match answer {
            Ok(Ok(entry)) => match self.fit(entry).await {
                Ok(fit) => Some(Ok(fit)),
                Err(unfit) => {
                    self.close_unfit(unfit);
                    None
                }
            },
            Ok(Err(refusal)) => Some(Err(Ended::Refused(refusal))),
            Err(cause) => Some(Err(Ended::TimedOut(cause))),
        }
    }

    /// The wait for what the prober has borrowed, and until when that is; what has come back meanwhile is there at once.
    fn inherit(self: &Arc<Self>, deadline: Instant) -> Option<(Waiting<'_, M>, Instant)> {
        let waiter = Waiter::new();
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

    /// Waits until one is free, the time is up, or there is none to wait for. A test that has begun is waited for.
    pub(super) async fn get(self: &Arc<Self>, deadline: Instant) -> Result<Box<PooledConnection<M>>, Ended> {
        let mut unfit = None;
        loop {
            let mut waiting = self.wait(unfit.take());
            let early = match waiting.ping.take() {
                Some(Ping { until: end, is_ours }) => {
                    let end = if is_ours { end } else { end.min(deadline) };
                    let answer = until::<M, _>(&mut waiting, end).await;
                    if answer.is_none() {
                        // It takes too long to be reckoned with.
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

    /// Whether it can be used. One whose test nobody awaits any more is closed.
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

    /// Waits for one, untested. Whoever was given one that is unfit goes first.
    pub(crate) fn wait(self: &Arc<Self>, unfit: Option<Rejected<M>>) -> Waiting<'_, M> {
        let waiter = Waiter::new();
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
                // What failed before anybody waited explains nothing.
                replaced = replaced.or(state.failure.take());
            }
            state.waiters.push_back(Arc::clone(&waiter));
        }
        self.settle(state);
        drop(replaced);
        Waiting { core: self, waiter, is_over: false, ping }
    }
}

/// A connection that is being tested, and is closed where that is given up.
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
    /// Stops waiting: what was given meanwhile, or else why there was none.
    fn give_up(&mut self) -> Result<Answer<M>, Option<Source>> {
        self.is_over = true;
        let mut state = self.core.state.lock();
        let is_me = |one: &Arc<Waiter<M>>| Arc::ptr_eq(one, &self.waiter);
        let place = state.waiters.iter().position(is_me);
        let left = place.and_then(|place| state.waiters.remove(place)).or_else(|| state.heir.take_if(|one| is_me(one)));
        if left.is_some() {
            let (leaving, max) = (state.leaving.len(), self.core.limits.max);
            let hang =
                || BoxError::from(format!("{leaving} connections wait to be closed, for the driver's goodbyes hang"));
            return Err(state.failure.clone().or_else(|| (leaving > max).then(|| hang().into())));
        }
        drop(state);
        // Answers are given under the lock, as one leaves the queue.
        self.waiter.0.lock().answer.take().ok_or(None)
    }
}

impl<M: Manage> Future for Waiting<'_, M> {
    type Output = Answer<M>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer<M>> {
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
