//! Waiting for a connection: until one is given, the time is up, or there is none to wait for.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use r2d2::ManageConnection;

use crate::base::clock::Moment;
use crate::base::error::{BoxError, Source};
use crate::base::runtime::park_until;
use crate::lifecycle::checkout::core::Core;
use crate::lifecycle::checkout::entry::{Entry, Unfit};
use crate::lifecycle::checkout::state::Borrowed;
use crate::lifecycle::checkout::waiter::{Answer, Refusal, Waiter};

/// A user's wait, by thread or by task. A connection that was given to one that drops goes back.
pub(crate) struct Waiting<'a, M: ManageConnection> {
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

impl<M: ManageConnection> Core<M> {
    /// One that is free, for a user who may not wait. If it was free until the prober borrowed it, that ping is waited for.
    /// None where it was not.
    pub(super) fn regain(self: &Arc<Self>, deadline: Instant) -> Option<Result<Box<Entry<M>>, Ended>> {
        let waiter = Waiter::new();
        let mut state = self.state.lock();
        let until = if let Some(entry) = state.idle.pop_if(|entry| self.is_free(entry, Moment::coarse())) {
            // It has come back meanwhile.
            waiter.0.lock().answer = Some(Ok(entry));
            deadline
        } else {
            let borrowed = state.borrowed.filter(|borrowed| borrowed.is_free && state.has_no_queue())?;
            state.heir = Some(Arc::clone(&waiter));
            deadline.max(borrowed.until)
        };
        self.settle(state);
        let mut waiting = Waiting { core: self, waiter, is_over: false, ping: None };
        let answer = match park_until(&mut waiting, until) {
            Some(answer) => Ok(answer),
            None => waiting.give_up(),
        };
        match answer {
            Ok(Ok(entry)) => match self.fit(entry) {
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

    /// Waits until one is free, the time is up, or there is none to wait for. A test that has begun is waited for.
    pub(super) fn get(self: &Arc<Self>, deadline: Instant) -> Result<Box<Entry<M>>, Ended> {
        let mut unfit = None;
        loop {
            let mut waiting = self.wait(unfit.take());
            let early = match waiting.ping.take() {
                Some(Ping { until, is_ours }) => {
                    let answer = park_until(&mut waiting, if is_ours { until } else { until.min(deadline) });
                    if answer.is_none() {
                        // It takes too long to be reckoned with.
                        self.settle(self.state.lock());
                    }
                    answer
                }
                None => None,
            };
            let answer = match early.or_else(|| park_until(&mut waiting, deadline)) {
                Some(answer) => answer,
                None => waiting.give_up().map_err(Ended::TimedOut)?,
            };
            match self.fit(answer.map_err(Ended::Refused)?) {
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

    /// Waits for one, untested. Whoever was given one that is unfit goes first.
    pub(crate) fn wait(self: &Arc<Self>, unfit: Option<Unfit<M>>) -> Waiting<'_, M> {
        let waiter = Waiter::new();
        let mut state = self.state.lock();
        let ping = state.borrowed.map(|Borrowed { until, .. }| Ping { until, is_ours: state.has_no_queue() });
        let again = unfit.is_some();
        let replaced = unfit.and_then(|unfit| self.discard(&mut state, unfit));
        if let Some(refusal) = &state.refused {
            waiter.0.lock().answer = Some(Err(refusal.clone()));
        } else if let Some(entry) = state.idle.pop() {
            waiter.0.lock().answer = Some(Ok(entry));
        } else if again {
            state.waiters.push_front(Arc::clone(&waiter));
        } else {
            if state.opening == 0 {
                // What failed before anybody waited explains nothing.
                state.failure = None;
            }
            state.waiters.push_back(Arc::clone(&waiter));
        }
        self.settle(state);
        drop(replaced);
        Waiting { core: self, waiter, is_over: false, ping }
    }
}

impl<M: ManageConnection> Waiting<'_, M> {
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

impl<M: ManageConnection> Future for Waiting<'_, M> {
    type Output = Answer<M>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer<M>> {
        let mut cell = self.waiter.0.lock();
        let Some(answer) = cell.answer.take() else {
            cell.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        drop(cell);
        self.is_over = true;
        Poll::Ready(answer)
    }
}

impl<M: ManageConnection> Drop for Waiting<'_, M> {
    fn drop(&mut self) {
        if !self.is_over
            && let Ok(Ok(entry)) = self.give_up()
        {
            self.core.put(entry);
        }
    }
}
