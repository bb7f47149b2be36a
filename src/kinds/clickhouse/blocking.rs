//! ClickHouse for threads: each verb polls the async verb of the same name on its own thread. Connections, and the
//! reading of rows, are tasks of the pool's runtime.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::clickhouse::inserter::Quantities;
use ::clickhouse::{Client, Row, RowOwned, RowRead, RowWrite};

use crate::base::error::Error;
use crate::base::runtime;
use crate::kinds::clickhouse::inserter::Inserter as AsyncInserter;
use crate::kinds::clickhouse::rows::Rows as AsyncRows;
pub use crate::kinds::clickhouse::statement::Statement;
use crate::kinds::clickhouse::verbs::ClickHouseSession;

/// A ClickHouse for threads. Cheap to clone; every call waits for its answer.
///
/// A statement is SQL text, in which `?` stands for a bound value (`??` for the character) and
/// `?fields` for the row's columns, or a query with its values bound:
/// `clickhouse.client().query("SELECT ?fields FROM stock_day WHERE code = ?").bind("AAPL")`.
///
/// ```no_run
/// # fn main() -> Result<(), resource_pool::Error> {
/// use resource_pool::blocking::ResourcePool;
///
/// let clickhouse = ResourcePool::global().clickhouse()?;
/// let closes: Vec<f32> = clickhouse.query_rows("SELECT close FROM stock_day LIMIT 10")?;
/// # let _ = closes;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct ClickHouse {
    session: Arc<ClickHouseSession>,
}

impl ClickHouse {
    pub(super) fn new(session: Arc<ClickHouseSession>) -> Self {
        ClickHouse { session }
    }

    /// All rows of a result.
    ///
    /// # Errors
    /// [`Error::Operation`] with the server's answer; [`Error::Lost`] if the connection broke
    /// or could not be made, [`Error::OutcomeUnknown`] if it broke and this may change something;
    /// [`Error::Timeout`]; [`Error::Closed`]; [`Error::InAsyncContext`] on a current-thread runtime.
    pub fn query_rows<T: RowOwned + RowRead + Send>(&self, statement: impl Statement) -> Result<Vec<T>, Error> {
        wait(&self.session, self.session.query_rows(statement.query(self.client())))
    }

    /// The rows of a result as they arrive, so that a large one need not fit into memory. From now on they are read,
    /// and deserialized, on the pool's runtime, at most five batches ahead of the caller. A batch has 1,024 rows, or
    /// fewer once they took 256 KiB of the answer. Dropping the iterator gives up the rest. Closing ends it with an
    /// error where the thread is slower than the drain.
    ///
    /// # Errors
    /// [`Error::Operation`] for a statement that cannot be sent. A later error comes as an item, as in
    /// [`query_rows`](Self::query_rows), and ends the iterator.
    pub fn query_iter<T: RowOwned + RowRead + Send>(&self, statement: impl Statement) -> Result<Rows<T>, Error> {
        Ok(Rows { rows: wait(&self.session, self.session.rows(statement.query(self.client())))? })
    }

    /// Inserts rows in one `INSERT` and tells how many. Rows are sent as they come, 64 and more at a time. If it fails,
    /// each block of [`insert_block_size`](crate::config::ClickHouseConfig::insert_block_size) of them is in the table
    /// as a whole, or not at all.
    ///
    /// # Errors
    /// As [`query_rows`](Self::query_rows).
    pub fn insert_rows<T: RowOwned + RowWrite>(
        &self,
        table: &str,
        rows: impl IntoIterator<Item = T>,
    ) -> Result<u64, Error> {
        wait(&self.session, self.session.insert_rows(table, rows))
    }

    /// Runs a statement that answers nothing.
    ///
    /// # Errors
    /// As [`query_rows`](Self::query_rows).
    pub fn execute(&self, statement: impl Statement) -> Result<(), Error> {
        wait(&self.session, self.session.execute(statement.query(self.client())))
    }

    /// An inserter into this table. Closing flushes its rows.
    pub fn inserter<T: Row + 'static>(&self, table: &str) -> Inserter<T> {
        Inserter { inserter: AsyncInserter::new(&self.session, table) }
    }

    /// The driver's client, to build queries with bound values, and for async code.
    pub fn client(&self) -> &Client {
        &self.session.client
    }
}

impl fmt::Debug for ClickHouse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClickHouse").field("client", self.client()).finish_non_exhaustive()
    }
}

fn wait<T>(session: &ClickHouseSession, future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let ClickHouseSession { link, runtime, .. } = session;
    link.check_process()?;
    runtime::block_on(link.name(), runtime, future)?
}

/// The rows of a result, as they arrive. Blocks for the next one; ends after an error.
#[must_use = "the rest of the answer is given up once this drops"]
pub struct Rows<T> {
    rows: AsyncRows<T>,
}

impl<T> Iterator for Rows<T> {
    type Item = Result<T, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            // Waiting is expensive, so it is done once for a batch of rows.
            if let Some(row) = self.rows.at_hand() {
                return Some(Ok(row));
            }
            if self.rows.has_ended() {
                return None;
            }
            let session = Arc::clone(&self.rows.session);
            match wait(&session, self.rows.more()) {
                Ok(true) => {}
                end => {
                    self.rows.end();
                    return end.err().map(Err);
                }
            }
        }
    }
}

impl<T> fmt::Debug for Rows<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rows.fmt(f)
    }
}

/// Collects rows and inserts many at a time; closing flushes the rows that it has. Everything that is said of the
/// [async one](crate::Inserter) holds here as well. On a current-thread runtime each call answers
/// [`Error::InAsyncContext`].
#[must_use = "its rows are not inserted until a commit"]
pub struct Inserter<T: Row> {
    inserter: AsyncInserter<T>,
}

impl<T: Row + 'static> Inserter<T> {
    /// Sets after how many rows a commit inserts. Defaults to no limit.
    pub fn with_max_rows(self, max_rows: u64) -> Self {
        Inserter { inserter: self.inserter.with_max_rows(max_rows) }
    }

    /// Sets after how many bytes, before compression, a commit inserts. Defaults to no limit.
    pub fn with_max_bytes(self, max_bytes: u64) -> Self {
        Inserter { inserter: self.inserter.with_max_bytes(max_bytes) }
    }

    /// Sets how long after the first row a commit inserts. Defaults to no limit.
    pub fn with_period(self, period: Duration) -> Self {
        Inserter { inserter: self.inserter.with_period(period) }
    }

    /// Takes a row.
    ///
    /// # Errors
    /// Those of the [async one](crate::Inserter::write).
    pub fn write(&mut self, row: &T::Value<'_>) -> Result<(), Error>
    where
        T: RowWrite,
    {
        self.wait(async |inserter| inserter.write(row).await)
    }

    /// Inserts the rows that there are if a limit is reached, and tells how much was inserted.
    ///
    /// # Errors
    /// Those of the [async one](crate::Inserter::commit).
    pub fn commit(&mut self) -> Result<Quantities, Error> {
        self.wait(async |inserter| inserter.commit().await)
    }

    /// Inserts the rows that there are, and tells how much was inserted.
    ///
    /// # Errors
    /// As [`commit`](Inserter::commit).
    pub fn force_commit(&mut self) -> Result<Quantities, Error> {
        self.wait(async |inserter| inserter.force_commit().await)
    }

    /// Inserts the rows that there are, tells how much was inserted, and ends the inserter.
    ///
    /// # Errors
    /// As [`commit`](Inserter::commit).
    pub fn end(mut self) -> Result<Quantities, Error> {
        self.force_commit()
    }

    fn wait<R>(&mut self, call: impl AsyncFnOnce(&mut AsyncInserter<T>) -> Result<R, Error>) -> Result<R, Error> {
        wait(&self.inserter.session(), call(&mut self.inserter))
    }
}

impl<T: Row> fmt::Debug for Inserter<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inserter.fmt(f)
    }
}
