//! ClickHouse for threads: the driver's client, driven on the pool's runtime.

use std::fmt;
use std::future::poll_fn;
use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use std::vec;

use ::clickhouse::error::Error as DriverError;
use ::clickhouse::inserter::Quantities;
use ::clickhouse::query::{Query, RowCursor};
use ::clickhouse::{Client, Row, RowOwned, RowRead, RowWrite};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::base::error::{Chain, Error, Worded};
use crate::base::process::Ours;
use crate::base::runtime;
use crate::kinds::clickhouse::errors::failed;
use crate::kinds::clickhouse::inserter::{self as tasks, Inserters};
pub use crate::kinds::clickhouse::statement::Statement;
use crate::kinds::clickhouse::statement::{Effect, names_format};

/// A ClickHouse for threads. Cheap to clone; every call waits for its answer.
///
/// A statement is SQL text, in which `?` stands for a bound value (`??` for the character) and
/// `?fields` for the row's columns, or a query with its values bound:
/// `clickhouse.client().query("SELECT ?fields FROM stock_day WHERE code = ?").bind("AAPL")`.
#[derive(Clone)]
pub struct ClickHouse {
    inserters: Arc<Inserters>,
}

impl ClickHouse {
    pub(crate) fn new(inserters: Arc<Inserters>) -> Self {
        ClickHouse { inserters }
    }

    /// All rows of a result.
    ///
    /// # Errors
    /// [`Error::Operation`] with what the server answered; [`Error::Lost`] if the connection broke
    /// or could not be made, [`Error::OutcomeUnknown`] if it broke and this may change something;
    /// [`Error::Timeout`]; [`Error::Closed`]; [`Error::InAsyncContext`] on a current-thread runtime.
    pub fn query_rows<T: RowOwned + RowRead + Send>(&self, statement: impl Statement) -> Result<Vec<T>, Error> {
        let query = statement.query(self.client());
        let rows = || self.rows(query.clone())?.collect();
        match rows() {
            Err(Error::Lost { .. }) if self.inserters.repeats(Effect::of(&query.sql_display().to_string())) => rows(),
            rows => rows,
        }
    }

    /// The rows of a result as they arrive, so that a large one need not fit into memory. They are read, and
    /// deserialized, on the pool's runtime from now on, ahead of whoever asks by at most five batches: of 1,024 rows
    /// each, or of fewer once those took 256 KiB of the answer. Dropping the iterator gives up the rest; closing ends
    /// it with an error where the thread is slower than the drain.
    ///
    /// # Errors
    /// [`Error::Operation`] for a statement that cannot be sent; what goes wrong later comes as an
    /// item, as in [`query_rows`](Self::query_rows), and ends the iterator.
    pub fn query_iter<T: RowOwned + RowRead + Send>(&self, statement: impl Statement) -> Result<Rows<T>, Error> {
        self.rows(statement.query(self.client()))
    }

    fn rows<T: RowOwned + RowRead + Send>(&self, query: Query) -> Result<Rows<T>, Error> {
        let text = query.sql_display().to_string();
        let (effect, names_format) = (Effect::of(&text), names_format(&text));
        let cursor = self.wait("query", effect, async { query.fetch() })?;
        let (sender, batches) = mpsc::channel(WAITING);
        let clickhouse = self.clone();
        let failed = move |error: DriverError| {
            let is_garbled = match &error {
                DriverError::BadResponse(text) => !text.contains("Code: "),
                error => !matches!(error, DriverError::Network(_)),
            };
            let error = clickhouse.failed("query", effect, error);
            if names_format && is_garbled { advised(error, FORMAT) } else { error }
        };
        let reader = self.inserters.runtime.spawn(read(cursor, failed, sender));
        Ok(Rows {
            batch: Vec::new().into_iter(),
            rest: Some(Ours::new(Rest { batches, reader, effect })),
            clickhouse: self.clone(),
        })
    }

    /// Inserts rows in one `INSERT` and tells how many. Rows are sent as they come; if it fails, each block of
    /// [`insert_block_size`](crate::config::ClickHouseConfig::insert_block_size) of them is in the table as a whole, or not at all.
    ///
    /// # Errors
    /// As [`query_rows`](Self::query_rows).
    pub fn insert_rows<T: RowOwned + RowWrite>(
        &self,
        table: &str,
        rows: impl IntoIterator<Item = T>,
    ) -> Result<u64, Error> {
        self.wait("insert", Effect::Changes, async {
            let mut insert = self.client().insert::<T>(table).await?;
            let mut written = 0;
            for row in rows {
                match insert.write(&row).await {
                    Ok(()) => {}
                    // Where the server has answered already, the driver tells why at the end only.
                    Err(error @ DriverError::Network(_)) => return Err(insert.end().await.err().unwrap_or(error)),
                    Err(error) => return Err(error),
                }
                written += 1;
            }
            insert.end().await?;
            Ok(written)
        })
    }

    /// Runs a statement that answers nothing.
    ///
    /// # Errors
    /// As [`query_rows`](Self::query_rows).
    pub fn execute(&self, statement: impl Statement) -> Result<(), Error> {
        self.wait("execute", Effect::Changes, statement.query(self.client()).execute())
    }

    /// An inserter into this table whose rows closing flushes.
    pub fn inserter<T: Row + 'static>(&self, table: &str) -> Inserter<T> {
        Inserter { inserter: tasks::Inserter::new(&self.inserters, table) }
    }

    /// The driver's client, to build queries with bound values, and for async code.
    pub fn client(&self) -> &Client {
        &self.inserters.client
    }

    fn wait<T>(
        &self,
        action: &str,
        effect: Effect,
        future: impl Future<Output = Result<T, DriverError>>,
    ) -> Result<T, Error> {
        self.block_on(async {
            self.inserters.link.ready().await?;
            future.await.map_err(|error| self.failed(action, effect, error))
        })
    }

    fn block_on<T>(&self, future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let Inserters { link, runtime, .. } = &*self.inserters;
        link.process.check()?;
        runtime::block_on(link.name(), runtime, future)?
    }

    fn failed(&self, action: &str, effect: Effect, error: DriverError) -> Error {
        let Inserters { link, config, .. } = &*self.inserters;
        let is_unbound = matches!(&error, DriverError::InvalidParams(cause) if cause.to_string().contains("unbound"));
        let error = failed(link, config, action, effect, error);
        if is_unbound { advised(error, BIND) } else { error }
    }
}

impl fmt::Debug for ClickHouse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClickHouse").field("client", self.client()).finish_non_exhaustive()
    }
}

/// How many rows are handed over at once.
const BATCH: usize = 1024;

/// Fewer are once they took this many bytes of the answer, uncompressed.
const BATCH_BYTES: u64 = 256 * 1024;

/// How many batches wait for the thread, beside the one in its hands and the one that is made.
const WAITING: usize = 3;

/// The rows of a result, as they arrive. Blocks for the next one; ends after an error.
#[must_use = "the rest of the answer is given up once this drops"]
pub struct Rows<T> {
    batch: vec::IntoIter<T>,
    /// None after its end.
    rest: Option<Ours<Rest<T>>>,
    clickhouse: ClickHouse,
}

impl<T> Iterator for Rows<T> {
    type Item = Result<T, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            // What is here in a forked child is its parent's.
            if self.clickhouse.inserters.link.process.is_current()
                && let Some(row) = self.batch.next()
            {
                return Some(Ok(row));
            }
            let mut rest = self.rest.take()?;
            let next = rest.next(self.clickhouse.inserters.link.name());
            match self.clickhouse.block_on(next) {
                Ok(Some(batch)) => (self.batch, self.rest) = (batch.into_iter(), Some(rest)),
                end => return end.err().map(Err),
            }
        }
    }
}

impl<T> fmt::Debug for Rows<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("ended", &self.rest.is_none()).finish_non_exhaustive()
    }
}

/// What is still to come, read where the connections live: a thread that reads by itself is woken for each
/// piece that arrives.
struct Rest<T> {
    batches: mpsc::Receiver<Vec<T>>,
    /// How the reading ended.
    reader: JoinHandle<Result<(), Error>>,
    effect: Effect,
}

impl<T> Rest<T> {
    async fn next(&mut self, name: &Arc<str>) -> Result<Option<Vec<T>>, Error> {
        if let Some(batch) = self.batches.recv().await {
            return Ok(Some(batch));
        }
        match (&mut self.reader).await {
            Ok(end) => end.map(|()| None),
            Err(stopped) if stopped.is_panic() => resume_unwind(stopped.into_panic()),
            Err(runtime_ended) => {
                let resource = Arc::clone(name);
                Err(match self.effect {
                    Effect::Reads => Error::Closed { resource },
                    Effect::Changes => {
                        Error::OutcomeUnknown { resource, action: "query".to_owned(), source: Arc::new(runtime_ended) }
                    }
                })
            }
        }
    }
}

async fn read<T: RowOwned + RowRead>(
    mut cursor: RowCursor<T>,
    failed: impl Fn(DriverError) -> Error,
    batches: mpsc::Sender<Vec<T>>,
) -> Result<(), Error> {
    let all = async {
        loop {
            let (batch, end) = batch(&mut cursor).await;
            if !batch.is_empty() && batches.send(batch).await.is_err() {
                return Ok(());
            }
            if let Some(end) = end {
                return end.map_err(failed);
            }
        }
    };
    tokio::select! {
        end = all => end,
        () = batches.closed() => Ok(()),
    }
}

/// What has arrived, at least one row unless this is the end.
async fn batch<T: RowOwned + RowRead>(cursor: &mut RowCursor<T>) -> (Vec<T>, Option<Result<(), DriverError>>) {
    let mut batch = Vec::new();
    let before = cursor.decoded_bytes();
    let end = poll_fn(|cx| {
        while batch.is_empty() || batch.len() < BATCH && cursor.decoded_bytes() - before < BATCH_BYTES {
            match pin!(cursor.next()).poll(cx) {
                Poll::Ready(Ok(Some(row))) => batch.push(row),
                Poll::Ready(end) => return Poll::Ready(Some(end.map(drop))),
                Poll::Pending if batch.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(None)
    });
    let end = end.await;
    (batch, end)
}

const BIND: &str = "bind a value for each `?`; `??` stands for the character, in a string literal too";
const FORMAT: &str = "leave out FORMAT, as rows come in a format of the driver's own; \
                      `client().query(..).fetch_bytes(..)` has any other";

/// The error with what to do about it.
fn advised(error: Error, remedy: &str) -> Error {
    match error {
        Error::Operation { resource, action, source } => {
            let source = Arc::new(Worded::new(format!("{}; {remedy}", Chain(&*source)), source));
            Error::Operation { resource, action, source }
        }
        error => error,
    }
}

/// Collects rows and inserts many at a time; closing flushes what it has. What is said of the
/// [async one](crate::Inserter) holds here as well; on a current-thread runtime each
/// call answers [`Error::InAsyncContext`].
#[must_use = "its rows are not inserted until a commit"]
pub struct Inserter<T: Row> {
    inserter: tasks::Inserter<T>,
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

    /// Inserts what there is if a limit is reached, and tells what was inserted.
    ///
    /// # Errors
    /// Those of the [async one](crate::Inserter::commit).
    pub fn commit(&mut self) -> Result<Quantities, Error> {
        self.wait(async |inserter| inserter.commit().await)
    }

    /// Inserts what there is, and tells how much that was.
    ///
    /// # Errors
    /// As [`commit`](Inserter::commit).
    pub fn force_commit(&mut self) -> Result<Quantities, Error> {
        self.wait(async |inserter| inserter.force_commit().await)
    }

    /// The same, and ends the inserter.
    ///
    /// # Errors
    /// As [`commit`](Inserter::commit).
    pub fn end(mut self) -> Result<Quantities, Error> {
        self.force_commit()
    }

    fn wait<R>(&mut self, call: impl AsyncFnOnce(&mut tasks::Inserter<T>) -> Result<R, Error>) -> Result<R, Error> {
        let Inserters { link, runtime, .. } = &*self.inserter.inserters();
        runtime::block_on(link.name(), runtime, call(&mut self.inserter))?
    }
}

impl<T: Row> fmt::Debug for Inserter<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inserter.fmt(f)
    }
}
