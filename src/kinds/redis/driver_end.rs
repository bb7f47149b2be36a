//! [`DriverEnd`], by which a command learns that the driver of its connection has ended.
//!
//! The driver's crate passes a command to the connection's task by a channel. A command that is put there at the very
//! moment in which the task ends is dropped by nobody as long as somebody could send another one, so its answer would
//! never come. The command itself is somebody who could.
//!
//! A command notes itself at the notice of its thread, so that commands of several threads do not wait for each other.
//! Orderings: `has_ended` is stored before the notices are given, and a command loads it after it has noted itself. So
//! each command either sees it or is noticed. There is no lock here but those of the notices.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use redis::RedisResult;
use tokio::sync::Notify;

use crate::base::sync::thread_number;

/// The number of notices: as many as there are threads that can usefully send at once.
const NOTICES: usize = 16;

/// A notice on a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Notice(Notify);

/// Whether the driver of a connection has ended.
#[derive(Default)]
pub(super) struct DriverEnd {
    has_ended: AtomicBool,
    notices: [Notice; NOTICES],
}

/// Tells of the driver's end as it drops.
pub(super) struct DriverLife(pub(super) Arc<DriverEnd>);

impl Drop for DriverLife {
    fn drop(&mut self) {
        self.0.has_ended.store(true, Ordering::SeqCst);
        self.0.notices.iter().for_each(|notice| notice.0.notify_waiters());
    }
}

impl DriverEnd {
    /// Awaits the answer to a command. If the driver ends without one, the answer is that the connection has ended.
    pub(super) async fn answer<T>(&self, answer: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        let ended = || Err(io::Error::new(io::ErrorKind::BrokenPipe, "the connection has ended").into());
        let mut end = pin!(self.notices[thread_number() % NOTICES].0.notified());
        if self.has_ended.load(Ordering::SeqCst) {
            return ended();
        }
        let mut answer = pin!(answer);
        std::future::poll_fn(|context| {
            if let Poll::Ready(answer) = answer.as_mut().poll(context) {
                return Poll::Ready(answer);
            }
            match end.as_mut().poll(context) {
                // The driver may have answered just before its end.
                Poll::Ready(()) => Poll::Ready(match answer.as_mut().poll(context) {
                    Poll::Ready(answer) => answer,
                    Poll::Pending => ended(),
                }),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn an_answer_that_never_comes_ends_with_the_driver() {
        let end = Arc::<DriverEnd>::default();
        let life = DriverLife(Arc::clone(&end));
        let mut context = Context::from_waker(Waker::noop());
        let mut stuck = pin!(end.answer(pending::<RedisResult<()>>()));
        assert!(stuck.as_mut().poll(&mut context).is_pending());
        let mut early = pin!(end.answer(pending::<RedisResult<()>>()));
        drop(life);
        let is_over = |polled| matches!(polled, Poll::Ready(Err(error)) if redis::RedisError::is_io_error(&error));
        assert!(is_over(stuck.poll(&mut context)));
        assert!(is_over(early.as_mut().poll(&mut context)));
        assert!(is_over(pin!(end.answer(ready(Ok(())))).poll(&mut context)), "it is not sent any more");
    }

    #[test]
    fn an_answer_that_came_counts() {
        let end = Arc::<DriverEnd>::default();
        let mut answer = pin!(end.answer(ready(Ok(7))));
        assert!(matches!(answer.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(7))));
    }
}
