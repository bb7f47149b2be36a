//! The guard of one connection, which has one user at a time.
//!
//! If the guard drops after a transaction was dropped, it spawns a task on the pool's runtime that sends the rollback.
//! That task owns the checkout, so the connection is not handed out before. This file has no locks.

use std::any::type_name;
use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use sqlx::{Pool, SqlSafeStr};

use crate::base::error::Error;
use crate::base::runtime::within;
use crate::kinds::sql::connection::LentConnection;
use crate::kinds::sql::driver::SqlDriver;
use crate::kinds::sql::kind::{Companion as _, SqlConfig as _, SqlKind};
use crate::kinds::sql::resource::SqlResource;
use crate::kinds::sql::transaction::SqlTransaction;
use crate::lifecycle::acquire::{Acquire, Acquirer, TaskGuard};
use crate::lifecycle::checkout::Checkout;
use crate::lifecycle::lease::Claim;
use crate::lifecycle::slot::Slot;

/// A connection of one's own, until it drops. `&mut` of it is an [`Executor`](sqlx::Executor), so that
/// [`query`](sqlx::query()), [`query_as`](sqlx::query_as()) and the macros work on it. Each kind over sqlx has a name of
/// its own for it.
///
/// Every call ends within the probe's limits if the server has stopped answering. The error then leads to the crate's
/// own by [`Error::behind`]. It is [`Error::Lost`] if the statement only reads or is undone with its transaction, and
/// [`Error::OutcomeUnknown`] if it may have changed something.
///
/// A transaction that was dropped is rolled back before its connection is handed out again. A connection that is left
/// in another state than it came in is closed instead: amid an answer, after `SET`, `BEGIN` or another statement that
/// changes the session, and after [`raw`](SqlGuard::raw).
#[must_use = "the connection goes back when this drops"]
pub struct SqlGuard<D: SqlKind> {
    /// `None` only while the guard drops.
    checkout: Option<Checkout<SqlDriver<D>>>,
}

impl<D: SqlKind> SqlGuard<D> {
    /// The connection, for one call.
    pub(super) fn lent(&mut self) -> LentConnection<'_, D> {
        match &mut self.checkout {
            Some(checkout) => checkout.lent(),
            None => unreachable!("only its drop takes it"),
        }
    }

    /// Begins a transaction, which is rolled back unless it is [committed](SqlTransaction::commit).
    ///
    /// # Errors
    /// The errors of the server and of any statement.
    ///
    /// # Cancel safety
    /// A dropped future may have begun a transaction, so the next statement is refused and the connection closes.
    pub async fn begin(&mut self) -> sqlx::Result<SqlTransaction<'_, D>> {
        SqlTransaction::begin(self.lent(), None).await
    }

    /// Begins a transaction by a statement such as `BEGIN IMMEDIATE` or `START TRANSACTION READ ONLY`. After a statement
    /// that does more than that, the connection is closed instead of handed out again.
    ///
    /// # Errors
    /// As [`begin`](Self::begin), and the driver's own if the statement begins no transaction.
    ///
    /// # Cancel safety
    /// As [`begin`](Self::begin).
    pub async fn begin_with(&mut self, statement: impl SqlSafeStr) -> sqlx::Result<SqlTransaction<'_, D>> {
        SqlTransaction::begin(self.lent(), Some(statement.into_sql_str())).await
    }

    /// The driver's own connection, for uses that the guard does not offer. Calls on it have only the driver's limits,
    /// and the connection is closed instead of handed out again.
    pub fn raw(&mut self) -> &mut D::Connection {
        let LentConnection { driver, line } = self.lent();
        line.altered = true;
        driver
    }

    /// Closes the connection instead of giving it back, because its user knows that it is of no more use. Its place is
    /// free at once. The server rolls back a transaction that is open.
    pub fn discard(mut self) {
        if let Some(checkout) = self.checkout.take() {
            checkout.discard();
        }
    }

    /// Takes the connection out of the pool, in the state that it is in. Its place is free at once, so the server may
    /// have one connection more than there may be here.
    ///
    /// The caller owns the connection from then on. It has only the driver's limits, and neither a loss nor
    /// [`close`](crate::ResourcePool::close) ends it. Its socket stays on the pool's runtime. So its calls fail once
    /// the whole pool is closed, unless the pool runs on a runtime of the program's. A file has no socket.
    ///
    /// # Errors
    /// [`Error::Forked`] in a forked child, whose parent has the connection.
    pub fn detach(mut self) -> Result<D::Connection, Error> {
        match self.checkout.take() {
            Some(checkout) => checkout.detach().map(|connection| {
                connection.companion().leave();
                connection.driver
            }),
            None => unreachable!("only its drop takes it"),
        }
    }

    /// A pool of the driver's own to the same server, for libraries that require one. The first call makes it. It has
    /// as many connections as there may be here, in addition to those, and it closes with the resource. It has only its
    /// own limits. If the server stops answering, its queries hang for ever, and closing waits for them until its
    /// step's limit. With a password file, its new connections use the password of the last connection that was opened
    /// here.
    pub fn raw_pool(&self) -> Pool<D> {
        match &self.checkout {
            Some(checkout) => checkout.checkouts().manager().raw_pool.get(),
            None => unreachable!("only its drop takes it"),
        }
    }
}

impl<D: SqlKind> From<Checkout<SqlDriver<D>>> for SqlGuard<D> {
    fn from(checkout: Checkout<SqlDriver<D>>) -> Self {
        SqlGuard { checkout: Some(checkout) }
    }
}

impl<D: SqlKind> TaskGuard<SqlResource<D>> for SqlGuard<D> {
    type Acquiring = Acquire<SqlGuard<D>>;

    fn acquiring(
        pool: &Acquirer,
        slot: Result<impl Borrow<Arc<Slot<SqlResource<D>>>>, Error>,
        claim: Claim,
    ) -> Acquire<SqlGuard<D>> {
        let limit = |resource: &SqlResource<D>| Some(resource.config.pooling().pool_timeout);
        pool.check_out(slot, |resource| resource.quota, limit, claim)
    }
}

impl<D: SqlKind> Drop for SqlGuard<D> {
    /// Rolls back a transaction that was dropped before, since it may hold locks. The connection stays checked out
    /// until that is done.
    fn drop(&mut self) {
        let Some(mut checkout) = self.checkout.take().filter(|checkout| checkout.lacks_rollback()) else { return };
        // In a forked child the pool's runtime does not run.
        if checkout.line.link.check_process().is_ok() {
            let runtime = checkout.checkouts().manager().runtime.clone();
            runtime.spawn(async move {
                // If the rollback fails, the connection is unfit and closes, which rolls back as well.
                let limit = checkout.line.link.connect_timeout;
                let _unfit = within(limit, checkout.roll_back()).await;
            });
        }
    }
}

impl<D: SqlKind> fmt::Debug for SqlGuard<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple(short_name::<D>()).field(&self.checkout).finish()
    }
}

/// The name of a database's type, which is also the name that its guard has for users.
pub(super) fn short_name<D>() -> &'static str {
    type_name::<D>().rsplit("::").next().unwrap_or_default()
}
