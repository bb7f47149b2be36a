//! A transaction that is rolled back unless it is committed.

use std::fmt;

use sqlx::{Connection as _, Postgres, Transaction};

use crate::kinds::postgres::connection::{LentConnection, Line};
use crate::kinds::postgres::effect::SqlEffect;
use crate::kinds::postgres::executor::runs_on_its_connection;

/// A transaction, or a savepoint within one. `&mut` of it is an [`Executor`](sqlx::Executor), like `&mut` of its
/// [guard](crate::Postgres). A transaction that drops is rolled back before the next statement on the connection, or
/// when the connection goes back.
#[must_use = "it rolls back when this drops"]
pub struct PostgresTransaction<'a> {
    /// `None` only while the transaction ends.
    transaction: Option<Transaction<'a, Postgres>>,
    /// The state of the connection beside the driver.
    line: &'a mut Line,
    /// Whether this is a savepoint.
    is_nested: bool,
}

impl<'a> PostgresTransaction<'a> {
    /// Begins a transaction, or a savepoint if one is open.
    pub(super) async fn begin(LentConnection { driver, line }: LentConnection<'a>) -> sqlx::Result<Self> {
        let is_nested = driver.is_in_transaction();
        let call = line.begin("begin", SqlEffect::Reads, is_nested)?;
        // If this future is dropped or fails, the driver does not know whether the transaction has begun, and would
        // roll back the one around it.
        line.lost_track = true;
        let begun = call.answered(line, driver.begin()).await;
        line.lost_track = begun.is_err();
        line.aborted &= is_nested;
        let begun = begun?;
        Ok(PostgresTransaction { transaction: Some(begun), line, is_nested })
    }

    /// The connection, for one call.
    pub(super) fn lent(&mut self) -> LentConnection<'_> {
        match &mut self.transaction {
            Some(transaction) => LentConnection { driver: transaction, line: self.line },
            None => unreachable!("only what consumes it takes it"),
        }
    }

    /// Commits.
    ///
    /// # Errors
    /// The errors of the server. One that leads to [`Error::OutcomeUnknown`](crate::Error::OutcomeUnknown) says that
    /// the transaction may be committed. If an earlier statement failed, this call rolls back and says so in the
    /// error.
    ///
    /// # Cancel safety
    /// If the future is dropped, it is not known whether the transaction is committed.
    pub async fn commit(mut self) -> sqlx::Result<()> {
        let Some(transaction) = self.transaction.take() else { return Ok(()) };
        if self.line.aborted && !self.line.lost_track {
            undone(transaction, self.line).await?;
            let why = "an earlier statement of it failed, which aborted it: it is rolled back";
            return Err(self.line.refused("committing a transaction", why));
        }
        let effect = if self.is_nested { SqlEffect::Changes } else { SqlEffect::Commits };
        let call = self.line.begin("commit", effect, true)?;
        call.answered(self.line, transaction.commit()).await
    }

    /// Rolls back, and waits until that is done.
    ///
    /// # Errors
    /// The errors of the server and of any statement. The transaction is rolled back all the same.
    pub async fn rollback(mut self) -> sqlx::Result<()> {
        let Some(transaction) = self.transaction.take() else { return Ok(()) };
        undone(transaction, self.line).await
    }

    /// Begins a savepoint.
    ///
    /// # Errors
    /// The errors of the server and of any statement.
    pub async fn begin_nested(&mut self) -> sqlx::Result<PostgresTransaction<'_>> {
        PostgresTransaction::begin(self.lent()).await
    }
}

/// Sends the rollback, and waits until it is done.
async fn undone(transaction: Transaction<'_, Postgres>, line: &mut Line) -> sqlx::Result<()> {
    let call = line.begin("rollback", SqlEffect::Reads, true)?;
    let answer = call.answered(line, transaction.rollback()).await;
    line.aborted &= answer.is_err();
    answer
}

runs_on_its_connection!(PostgresTransaction<'_>);

impl Drop for PostgresTransaction<'_> {
    fn drop(&mut self) {
        if self.transaction.is_some() {
            self.line.rolls_back = true;
            self.line.aborted = false;
        }
    }
}

impl fmt::Debug for PostgresTransaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresTransaction").field("is_nested", &self.is_nested).finish_non_exhaustive()
    }
}
