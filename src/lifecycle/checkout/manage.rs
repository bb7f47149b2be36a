//! What the checkouts have of a driver.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::base::error::{Failure, panic_message};
use crate::base::runtime::{park_until, timer};

/// A driver whose connections have one user at a time each: how they are opened, tested and closed. Its calls may panic,
/// which is a failure.
///
/// What it does runs on the pool's runtime, but for [`is_valid`](Manage::is_valid), which is polled by whoever checks out,
/// within the context of that runtime.
pub trait Manage: Send + Sync + 'static {
    /// A connection.
    type Connection: Send + 'static;

    /// Whether its calls block their thread, and are over as they are polled first.
    #[doc(hidden)]
    const BLOCKS: bool = false;

    /// Opens one. It is given up after `connect_timeout`.
    ///
    /// # Errors
    /// A [`Failure::permanent`] ends the first connect, and each connect after a loss, at once.
    fn connect(&self) -> impl Future<Output = Result<Self::Connection, Failure>> + Send;

    /// Whether the server answers on this connection. An unfit one is closed, and another one taken.
    ///
    /// # Errors
    /// What a failure [proves](Failure::refused) counts where the prober asks.
    fn is_valid(&self, connection: &mut Self::Connection) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Whether a connection that comes back is to be closed instead of handed out again. Does no I/O. By default none is.
    fn has_broken(&self, _connection: &mut Self::Connection) -> bool {
        false
    }

    /// Takes leave of the server, for at most `connect_timeout`. Drops the connection by default.
    fn close(&self, connection: Self::Connection) -> impl Future<Output = ()> + Send {
        async { drop(connection) }
    }
}

/// Awaits the driver's code. A panic is a failure too.
pub(super) async fn caught<T>(call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let mut call = pin!(call);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(context))) {
        Ok(poll) => poll,
        Err(panic) => Poll::Ready(Err(Failure::transient(format!("it panicked: {}", panic_message(&*panic))))),
    })
    .await
}

/// Awaits the driver's code for so long; where it blocks, for as long as that takes.
pub(super) async fn limited<M: Manage, T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    if M::BLOCKS {
        return caught(call).await;
    }
    tokio::select! {
        biased; // An answer that is there counts.
        answer = caught(call) => answer,
        () = timer(limit) => Err(Failure::transient(format!("no answer within {limit:.1?}"))),
    }
}

/// What the future answers until then; blocks this thread for it where the driver's code would.
pub(super) async fn until<M: Manage, F: Future + Unpin>(future: F, end: Instant) -> Option<F::Output> {
    if M::BLOCKS {
        return park_until(future, end);
    }
    tokio::select! {
        biased; // An answer that is there counts.
        answer = future => Some(answer),
        () = timer(end.saturating_duration_since(Instant::now())) => None,
    }
}
