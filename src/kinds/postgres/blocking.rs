//! PostgreSQL for threads, which block on the driver's futures.

use std::fmt;
use std::sync::Arc;

use sqlx::PgConnection;
use tokio::runtime::Handle;

use crate::base::error::Error;
use crate::base::runtime::block_on;
use crate::kinds::postgres::Postgres as Guard;
use crate::kinds::postgres::resource::PostgresResource;
use crate::lifecycle::acquire::{Acquirer, BlockingGuard, TaskGuard};
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::lease::Claim;
use crate::lifecycle::slot::Slot;

/// A connection of one's own for a thread, until it drops.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use resource_pool::{blocking::ResourcePool, sqlx};
///
/// let mut postgres = ResourcePool::global().postgres()?;
/// let close: f64 =
///     postgres.wait(async |postgres| sqlx::query_scalar("SELECT close FROM bars").fetch_one(postgres).await)??;
/// # Ok(()) }
/// ```
#[must_use = "the connection goes back when this drops"]
pub struct Postgres {
    guard: Guard,
    name: Arc<str>,
    runtime: Handle,
}

impl Postgres {
    /// Runs an async closure on the connection, and blocks this thread until it ends.
    ///
    /// # Errors
    /// [`Error::InAsyncContext`] on a thread that polls a current-thread runtime.
    pub fn wait<T>(&mut self, run: impl AsyncFnOnce(&mut Guard) -> T) -> Result<T, Error> {
        block_on(&self.name, &self.runtime, run(&mut self.guard))
    }

    /// Closes the connection instead of giving it back, as [the one for tasks](crate::Postgres::discard).
    pub fn discard(self) {
        self.guard.discard();
    }

    /// Takes the connection out of the pool, as [the one for tasks](crate::Postgres::detach).
    ///
    /// # Errors
    /// [`Error::Forked`] in a forked child, whose parent has the connection.
    pub fn detach(self) -> Result<PgConnection, Error> {
        self.guard.detach()
    }
}

impl BlockingGuard<PostgresResource> for Postgres {
    fn acquire(pool: &Acquirer, slot: &Arc<Slot<PostgresResource>>, claim: Claim) -> Result<Self, Error> {
        let (name, runtime) = (Arc::clone(slot.name()), pool.handle.0.context.runtime.handle(slot.name())?);
        let acquiring = <Guard as TaskGuard<PostgresResource>>::acquiring(pool, Ok(slot), claim.blocking());
        let guard = block_on(&name, &runtime, acquiring)??;
        Ok(Postgres { guard, name, runtime })
    }
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.guard.fmt(f)
    }
}
