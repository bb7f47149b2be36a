//! The guard of one connection, which has one user at a time.
//!
//! If the guard drops after a transaction was dropped, it spawns a task on the pool's runtime that sends the rollback.
//! That task owns the checkout, so the connection is not handed out before. This file has no locks.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use sqlx::{PgConnection, PgPool};

use crate::base::error::Error;
use crate::base::runtime::within;
use crate::kinds::postgres::connection::LentConnection;
use crate::kinds::postgres::driver::Driver;
use crate::kinds::postgres::executor::runs_on_its_connection;
use crate::kinds::postgres::resource::PostgresResource;
use crate::kinds::postgres::transaction::PostgresTransaction;
use crate::lifecycle::acquire::{Acquire, Acquirer, TaskGuard};
use crate::lifecycle::checkout::Checkout;
use crate::lifecycle::lease::Claim;
use crate::lifecycle::slot::Slot;

/// A connection of one's own, until it drops. `&mut` of it is an [`Executor`](sqlx::Executor), so that
/// [`query`](sqlx::query()), [`query_as`](sqlx::query_as()) and the macros work on it.
///
/// Every call ends within the probe's limits if the server has stopped answering. The error then leads to the crate's
/// own by [`Error::behind`]. It is [`Error::Lost`] if the statement only reads or is undone with its transaction, and
/// [`Error::OutcomeUnknown`] if it may have changed something.
///
/// A transaction that was dropped is rolled back before its connection is handed out again. A connection that is left
/// in another state than it came in is closed instead: amid an answer, after `SET`, `BEGIN` or another statement that
/// changes the session, and after [`raw`](Postgres::raw).
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use resource_pool::{ResourcePool, sqlx};
///
/// let mut postgres = ResourcePool::global().postgres().await?;
/// let close: f64 = sqlx::query_scalar("SELECT close FROM bars WHERE code = $1")
///     .bind("000001")
///     .fetch_one(&mut postgres)
///     .await?;
/// # Ok(()) }
/// ```
#[must_use = "the connection goes back when this drops"]
pub struct Postgres {
    /// `None` only while the guard drops.
    checkout: Option<Checkout<Driver>>,
}

impl Postgres {
    /// The connection, for one call.
    fn lent(&mut self) -> LentConnection<'_> {
        match &mut self.checkout {
            Some(checkout) => checkout.lent(),
            None => unreachable!("only its drop takes it"),
        }
    }

    /// Begins a transaction, which is rolled back unless it is [committed](PostgresTransaction::commit).
    ///
    /// # Errors
    /// The errors of the server and of any statement.
    ///
    /// # Cancel safety
    /// A dropped future may have begun a transaction, so the next statement is refused and the connection closes.
    pub async fn begin(&mut self) -> sqlx::Result<PostgresTransaction<'_>> {
        PostgresTransaction::begin(self.lent()).await
    }

    /// The driver's own connection, for uses that the guard does not offer. Calls on it have only the driver's limits,
    /// and the connection is closed instead of handed out again.
    pub fn raw(&mut self) -> &mut PgConnection {
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
    /// the whole pool is closed, unless the pool runs on a runtime of the program's.
    ///
    /// # Errors
    /// [`Error::Forked`] in a forked child, whose parent has the connection.
    pub fn detach(mut self) -> Result<PgConnection, Error> {
        match self.checkout.take() {
            Some(checkout) => checkout.detach().map(|connection| connection.driver),
            None => unreachable!("only its drop takes it"),
        }
    }

    /// A pool of the driver's own to the same server, for libraries that require one. The first call makes it. It has
    /// as many connections as there may be here, in addition to those, and it closes with the resource. It has only its
    /// own limits. If the server stops answering, its queries hang for ever, and closing waits for them until its
    /// step's limit. With a password file, its new connections use the password of the last connection that was opened
    /// here.
    pub fn raw_pool(&self) -> PgPool {
        match &self.checkout {
            Some(checkout) => checkout.checkouts().manager().raw_pool.get(),
            None => unreachable!("only its drop takes it"),
        }
    }
}

runs_on_its_connection!(Postgres);

impl From<Checkout<Driver>> for Postgres {
    fn from(checkout: Checkout<Driver>) -> Self {
        Postgres { checkout: Some(checkout) }
    }
}

impl TaskGuard<PostgresResource> for Postgres {
    type Acquiring = Acquire<Postgres>;

    fn acquiring(
        pool: &Acquirer,
        slot: Result<impl Borrow<Arc<Slot<PostgresResource>>>, Error>,
        claim: Claim,
    ) -> Acquire<Postgres> {
        let limit = |resource: &PostgresResource| Some(resource.config.pool_timeout);
        pool.check_out(slot, |resource| resource.quota, limit, claim)
    }
}

impl Drop for Postgres {
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

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Postgres").field(&self.checkout).finish()
    }
}
