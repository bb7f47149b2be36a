//! [`Manage`], the calls that the checkouts make to a driver, and how they are awaited.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::base::error::{Failure, panic_message};
use crate::base::runtime::{park_until, timer};

/// A driver whose connections have one user at a time each: how they are opened, tested and closed. A panic in one of
/// its calls counts as a failure.
///
/// Its calls run on the pool's runtime. The exception is [`is_valid`](Manage::is_valid), which the user who checks out
/// polls within the context of that runtime.
pub trait Manage: Send + Sync + 'static {
    /// A connection.
    type Connection: Send + 'static;

    /// Whether its calls block their thread, and are over when they are polled for the first time.
    #[doc(hidden)]
    const BLOCKS: bool = false;

    /// Opens a connection. It is given up after `connect_timeout`.
    ///
    /// # Errors
    /// A [`Failure::permanent`] ends the first connect, and each connect after a loss, at once.
    fn connect(&self) -> impl Future<Output = Result<Self::Connection, Failure>> + Send;

    /// Checks whether the server answers on this connection. An unfit connection is closed, and another one is taken.
    ///
    /// # Errors
    /// If the prober asks, the kind of the failure counts as proof about the server, as with [`Failure::refused`].
    fn is_valid(&self, connection: &mut Self::Connection) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Whether a connection that comes back is to be closed instead of handed out again. Does no I/O. The default is
    /// `false`.
    fn has_broken(&self, _connection: &mut Self::Connection) -> bool {
        false
    }

    /// Disconnects from the server, which may take at most `connect_timeout`. The default drops the connection.
    fn close(&self, connection: Self::Connection) -> impl Future<Output = ()> + Send {
        async { drop(connection) }
    }
}

/// Awaits the driver's code, and turns a panic into a failure.
pub(super) async fn caught<T>(call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let mut call = pin!(call);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(context))) {
        Ok(poll) => poll,
        Err(panic) => Poll::Ready(Err(Failure::transient(format!("it panicked: {}", panic_message(&*panic))))),
    })
    .await
}

/// Awaits the driver's code within a limit. Code that blocks takes as long as it takes.
pub(super) async fn limited<M: Manage, T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    if M::BLOCKS {
        return caught(call).await;
    }
    tokio::select! {
        biased; // An answer that is there counts, even if the limit has passed as well.
        answer = caught(call) => answer,
        () = timer(limit) => Err(Failure::transient(format!("no answer within {limit:.1?}"))),
    }
}

/// Awaits the future until `end`. `None` if it is not done by then. Blocks this thread if the driver's code would.
pub(super) async fn until<M: Manage, F: Future + Unpin>(future: F, end: Instant) -> Option<F::Output> {
    if M::BLOCKS {
        return park_until(future, end);
    }
    tokio::select! {
        biased; // An answer that is there counts, even if the limit has passed as well.
        answer = future => Some(answer),
        () = timer(end.saturating_duration_since(Instant::now())) => None,
    }
}
