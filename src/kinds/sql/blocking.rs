//! Databases for threads, which block on the driver's futures.

use std::fmt;
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::base::error::Error;
use crate::base::runtime::block_on;
use crate::kinds::sql::guard::SqlGuard as Guard;
use crate::kinds::sql::kind::SqlKind;
use crate::kinds::sql::resource::SqlResource;
use crate::lifecycle::acquire::{Acquirer, BlockingGuard, TaskGuard};
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::lease::Claim;
use crate::lifecycle::slot::Slot;

/// A connection of one's own for a thread, until it drops. Each kind over sqlx has a name of its own for it.
#[must_use = "the connection goes back when this drops"]
pub struct SqlGuard<D: SqlKind> {
    guard: Guard<D>,
    name: Arc<str>,
    runtime: Handle,
}

impl<D: SqlKind> SqlGuard<D> {
    /// Runs an async closure on the connection, and blocks this thread until it ends.
    ///
    /// # Errors
    /// [`Error::InAsyncContext`] on a thread that polls a current-thread runtime.
    pub fn wait<T>(&mut self, run: impl AsyncFnOnce(&mut Guard<D>) -> T) -> Result<T, Error> {
        block_on(&self.name, &self.runtime, run(&mut self.guard))
    }

    /// Closes the connection instead of giving it back, as [the one for tasks](crate::SqlGuard::discard).
    pub fn discard(self) {
        self.guard.discard();
    }

    /// Takes the connection out of the pool, as [the one for tasks](crate::SqlGuard::detach).
    ///
    /// # Errors
    /// [`Error::Forked`] in a forked child, whose parent has the connection.
    pub fn detach(self) -> Result<D::Connection, Error> {
        self.guard.detach()
    }
}

impl<D: SqlKind> BlockingGuard<SqlResource<D>> for SqlGuard<D> {
    fn acquire(pool: &Acquirer, slot: &Arc<Slot<SqlResource<D>>>, claim: Claim) -> Result<Self, Error> {
        let (name, runtime) = (Arc::clone(slot.name()), pool.handle.0.context.runtime.handle(slot.name())?);
        let acquiring = <Guard<D> as TaskGuard<SqlResource<D>>>::acquiring(pool, Ok(slot), claim.blocking());
        let guard = block_on(&name, &runtime, acquiring)??;
        Ok(SqlGuard { guard, name, runtime })
    }
}

impl<D: SqlKind> fmt::Debug for SqlGuard<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.guard.fmt(f)
    }
}
