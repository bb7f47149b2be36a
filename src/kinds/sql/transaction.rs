//! A transaction that is rolled back unless it is committed.

use std::fmt;

use sqlx::{Connection as _, SqlStr, Transaction};

use crate::kinds::sql::connection::{LentConnection, Line};
use crate::kinds::sql::effect::SqlEffect;
use crate::kinds::sql::guard::short_name;
use crate::kinds::sql::kind::{Aborted, Companion as _, SqlKind};

/// A transaction, or a savepoint within one. `&mut` of it is an [`Executor`](sqlx::Executor), like `&mut` of its
/// [guard](crate::SqlGuard). A transaction that drops is rolled back before the next statement on the connection, or
/// when the connection goes back.
#[must_use = "it rolls back when this drops"]
pub struct SqlTransaction<'a, D: SqlKind> {
    /// `None` only while the transaction ends.
    transaction: Option<Transaction<'a, D>>,
    /// The state of the connection beside the driver.
    line: &'a mut Line<D>,
    /// Whether this is a savepoint.
    is_nested: bool,
}

impl<'a, D: SqlKind> SqlTransaction<'a, D> {
    /// Begins a transaction by this statement, or a savepoint if one is open.
    pub(super) async fn begin(
        LentConnection { driver, line }: LentConnection<'a, D>,
        statement: Option<SqlStr>,
    ) -> sqlx::Result<Self> {
        line.refuse_if_undone("beginning a savepoint")?;
        let is_nested = line.depth > 0;
        let is_plain = statement.as_ref().is_none_or(|statement| D::effect(statement.as_str()) == SqlEffect::Begins);
        // A statement of another sort may do anything before it begins the transaction.
        let effect = if is_plain { SqlEffect::Reads } else { SqlEffect::Escapes };
        // An answer that nobody read, or a rollback that is to be sent first, may be what is refused.
        let is_clean = !line.reply_pending && !line.rolls_back;
        let call = line.begin("begin", effect, is_nested)?;
        // If this future is dropped or fails, the driver does not know whether the transaction has begun, and would
        // roll back the one around it.
        line.lost_track = true;
        let begun = match statement {
            Some(statement) => call.answered(line, driver.begin_with(statement)).await,
            None => call.answered(line, driver.begin()).await,
        };
        // A server that refuses to begin has begun none.
        let is_refused = |error: &sqlx::Error| error.as_database_error().is_some() && !D::is_last(error);
        let is_harmless = |error: &sqlx::Error| !is_nested && is_plain && is_clean && is_refused(error);
        line.lost_track = begun.as_ref().is_err_and(|error| !is_harmless(error));
        line.aborted &= is_nested;
        let begun = begun?;
        line.depth += 1;
        if !is_nested {
            line.committed_unseen = false;
            line.companion.begun();
        }
        Ok(SqlTransaction { transaction: Some(begun), line, is_nested })
    }

    /// The driver's transaction, which the caller ends.
    fn take(&mut self) -> Option<Transaction<'a, D>> {
        let transaction = self.transaction.take()?;
        self.line.depth = self.line.depth.saturating_sub(1);
        Some(transaction)
    }

    /// The connection, for one call.
    pub(super) fn lent(&mut self) -> LentConnection<'_, D> {
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
        self.line.note_undone();
        let Some(transaction) = self.take() else { return Ok(()) };
        if self.line.aborted {
            if !self.line.lost_track
                && let Err(error) = undone(transaction, self.line).await
                // A server that refuses the rollback has undone the transaction already.
                && error.as_database_error().is_none()
            {
                return Err(error);
            }
            let why = "an earlier statement of it failed, which aborted it: it is rolled back";
            return Err(self.line.refused("committing a transaction", why));
        }
        let effect = if self.is_nested { SqlEffect::Changes } else { SqlEffect::Commits };
        let call = self.line.begin("commit", effect, true)?;
        let answer = call.answered(self.line, transaction.commit()).await;
        if answer.is_err() {
            queued(self.line);
        }
        answer
    }

    /// Rolls back, and waits until that is done.
    ///
    /// # Errors
    /// The errors of the server and of any statement. The transaction is rolled back all the same. An error also says so if
    /// a statement of it, such as MySQL's `CREATE TABLE`, has committed what came before.
    ///
    /// # Cancel safety
    /// The transaction is rolled back even if the future is dropped.
    pub async fn rollback(mut self) -> sqlx::Result<()> {
        self.line.note_undone();
        let is_undone = self.line.depth > 0 && self.line.companion.is_undone();
        let Some(transaction) = self.take().filter(|_| !is_undone) else { return Ok(()) };
        undone(transaction, self.line).await?;
        if !self.line.committed_unseen {
            return Ok(());
        }
        let why = "a statement of it, such as CREATE TABLE, commits the transaction: what came before it and behind it \
                   may stay";
        Err(self.line.refused("rolling a transaction back", why))
    }

    /// Begins a savepoint.
    ///
    /// # Errors
    /// The errors of the server and of any statement.
    pub async fn begin_nested(&mut self) -> sqlx::Result<SqlTransaction<'_, D>> {
        SqlTransaction::begin(self.lent(), None).await
    }
}

/// Sends the rollback, and waits until it is done.
async fn undone<D: SqlKind>(transaction: Transaction<'_, D>, line: &mut Line<D>) -> sqlx::Result<()> {
    let call = line.begin("rollback", SqlEffect::Reads, false)?;
    let answer = call.answered(line, transaction.rollback()).await;
    match &answer {
        // A savepoint that is still there proves that the transaction around it is as well.
        Ok(()) => line.aborted = false,
        Err(_) => queued(line),
    }
    answer
}

/// Accounts for a rollback that the driver sends with the next call.
fn queued<D: SqlKind>(line: &mut Line<D>) {
    line.rolls_back = true;
    // The savepoint may be gone with the whole transaction. The next call would get the error of that.
    let may_be_gone = line.aborted && line.depth > 0 && D::ABORTED == Aborted::ByGuard;
    line.lost_track |= may_be_gone;
    line.aborted &= may_be_gone;
}

impl<D: SqlKind> Drop for SqlTransaction<'_, D> {
    fn drop(&mut self) {
        self.line.note_undone();
        if self.take().is_some() {
            queued(self.line);
        }
    }
}

impl<D: SqlKind> fmt::Debug for SqlTransaction<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{}Transaction", short_name::<D>());
        f.debug_struct(&name).field("is_nested", &self.is_nested).finish_non_exhaustive()
    }
}
