//! One user's place among those who wait, and the answer that is given there.

use std::sync::Arc;
use std::task::Waker;

use crate::base::error::Error;
use crate::base::sync::Mutex;
use crate::lifecycle::checkout::entry::PooledConnection;
use crate::lifecycle::checkout::manage::Manage;

/// Where somebody waits for a connection.
pub(super) struct Waiter<M: Manage>(pub(super) Mutex<Cell<M>>);

pub(super) struct Cell<M: Manage> {
    pub(super) answer: Option<Answer<M>>,
    pub(super) waker: Option<Waker>,
}

pub(crate) type Answer<M> = Result<Box<PooledConnection<M>>, Refusal>;

/// Why whoever waits is given none.
#[derive(Debug, Clone)]
pub(crate) enum Refusal {
    Because(Error),
    /// The resource knows.
    AskAnew,
    /// It is not free after all, and there is no waiting here until one is.
    MayNotWait,
}

impl<M: Manage> Waiter<M> {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Waiter(Mutex::new(Cell { answer: None, waker: None })))
    }

    #[must_use = "it is to be woken outside of locks"]
    pub(super) fn answer(&self, answer: Answer<M>) -> Option<Waker> {
        let mut cell = self.0.lock();
        cell.answer = Some(answer);
        cell.waker.take()
    }
}

#[inline]
pub(super) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
