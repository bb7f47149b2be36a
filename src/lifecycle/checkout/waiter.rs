//! The entry of one user among the waiters, and the answer that this user is given.

use std::sync::Arc;
use std::task::Waker;

use crate::base::error::Error;
use crate::base::sync::Mutex;
use crate::lifecycle::checkout::entry::PooledConnection;
use crate::lifecycle::checkout::manage::Manage;

/// The entry of one user who waits for a connection.
pub(super) struct QueuedWaiter<M: Manage>(pub(super) Mutex<Cell<M>>);

pub(super) struct Cell<M: Manage> {
    pub(super) answer: Option<WaitAnswer<M>>,
    pub(super) waker: Option<Waker>,
}

pub(crate) type WaitAnswer<M> = Result<Box<PooledConnection<M>>, Refusal>;

/// The reason why a waiter is given no connection.
#[derive(Debug, Clone)]
pub(crate) enum Refusal {
    Because(Error),
    /// The resource knows the reason, so the user has to acquire it anew.
    AskAnew,
    /// The borrowed connection does not come, and this user may not wait for another one.
    MayNotWait,
}

impl<M: Manage> QueuedWaiter<M> {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(QueuedWaiter(Mutex::new(Cell { answer: None, waker: None })))
    }

    #[must_use = "it is to be woken outside of locks"]
    pub(super) fn answer(&self, answer: WaitAnswer<M>) -> Option<Waker> {
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
