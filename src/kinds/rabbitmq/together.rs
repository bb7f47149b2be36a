//! Requests in flight side by side, in one task.

use std::future::{Future, poll_fn};
use std::task::Poll;

/// Runs all of them at once, until all have ended or one has failed.
pub(super) async fn together<E>(all: impl Iterator<Item: Future<Output = Result<(), E>>>) -> Result<(), E> {
    let mut all: Vec<_> = all.map(Box::pin).collect();
    poll_fn(|cx| {
        let mut outcome = Ok(());
        all.retain_mut(|one| match one.as_mut().poll(cx) {
            Poll::Ready(Err(failure)) => {
                outcome = Err(failure);
                false
            }
            ended => ended.is_pending(),
        });
        if outcome.is_err() || all.is_empty() { Poll::Ready(outcome) } else { Poll::Pending }
    })
    .await
}
