//! [`OnConnect`], the hook that runs on each new connection.

use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use sqlx::Database;

use crate::base::error::Error;
use crate::kinds::sql::errors::ours;

type ConnectHook<D> = dyn for<'a> Fn(&'a mut <D as Database>::Connection) -> Hooked<'a> + Send + Sync;
/// The future of a hook, boxed.
pub(crate) type Hooked<'a> = Pin<Box<dyn Future<Output = sqlx::Result<()>> + Send + 'a>>;

/// A hook that runs on each new connection. Two hooks are equal if they are clones of one.
pub struct OnConnect<D: Database>(Arc<ConnectHook<D>>);

impl<D: Database> OnConnect<D> {
    pub(crate) fn new(run: impl for<'a> Fn(&'a mut D::Connection) -> Hooked<'a> + Send + Sync + 'static) -> Self {
        OnConnect(Arc::new(run))
    }

    /// Runs the hook on a new connection. A panic in it is an error.
    pub(super) async fn run(&self, connection: &mut D::Connection) -> sqlx::Result<()> {
        let mut run = pin!(async { (self.0)(connection).await });
        poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| run.as_mut().poll(context))) {
            Ok(poll) => poll,
            Err(panic) => Poll::Ready(Err(ours(Error::of_hook_that_panicked(&*panic)))),
        })
        .await
    }
}

impl<D: Database> Clone for OnConnect<D> {
    fn clone(&self) -> Self {
        OnConnect(Arc::clone(&self.0))
    }
}

impl<D: Database> PartialEq for OnConnect<D> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<D: Database> fmt::Debug for OnConnect<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnConnect")
    }
}
