//! The verbs of ClickHouse, written once: tasks await them through a lease, and threads wait for them.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;

use ::clickhouse::error::Error as DriverError;
use ::clickhouse::query::Query;
use ::clickhouse::{Client, Row, RowOwned, RowRead, RowWrite};
use tokio::runtime::Handle;

use crate::base::error::Error;
use crate::base::repeat::Repeat;
use crate::kinds::clickhouse::config::ClickHouseConfig;
use crate::kinds::clickhouse::errors::{advised, failed};
use crate::kinds::clickhouse::handle::Connected;
use crate::kinds::clickhouse::inserter::{Inserter, Inserters};
use crate::kinds::clickhouse::rows::Rows;
use crate::kinds::clickhouse::statement::{Statement, StatementEffect};
use crate::lifecycle::lease::Lease;
use crate::lifecycle::link::Link;

/// A connected ClickHouse as its verbs need it. The driver spawns tasks where it is called. So callers poll these
/// futures in the context of a runtime: by [`inside`], or in `block_on`.
pub(crate) struct ClickHouseSession {
    pub(super) client: Client,
    pub(super) link: Link,
    pub(super) runtime: Handle,
    pub(super) config: Arc<ClickHouseConfig>,
    pub(super) inserters: Inserters,
}

impl ClickHouseSession {
    pub(super) async fn query_rows<T: RowOwned + RowRead + Send>(
        self: &Arc<Self>,
        query: Query,
    ) -> Result<Vec<T>, Error> {
        let rows = async || self.rows(query.clone()).await?.all().await;
        match rows().await {
            Err(Error::Lost { .. }) if self.repeats(StatementEffect::of(&query.sql_display().to_string())) => {
                self.link.repeated("a query");
                rows().await
            }
            rows => rows,
        }
    }

    pub(super) async fn insert_rows<T: RowOwned + RowWrite>(
        &self,
        table: &str,
        rows: impl IntoIterator<Item = T>,
    ) -> Result<u64, Error> {
        let failed = |error| self.failed("insert", StatementEffect::Changes, error);
        let begin = async {
            self.link.ready().await?;
            self.client.insert::<T>(table).await.map_err(failed)
        };
        let mut insert = inside(&self.runtime, begin).await?;
        let (mut rows, mut written) = (rows.into_iter(), 0);
        loop {
            // The iterator is the user's code, and has to find the user's own runtime.
            let some: Vec<T> = rows.by_ref().take(AT_ONCE).collect();
            let write = async {
                for row in &some {
                    insert.write(row).await?;
                }
                Ok(())
            };
            if let Err(error) = inside(&self.runtime, write).await {
                // Where the server has answered already, the driver tells the reason only at the end.
                let is_told_at_the_end = matches!(error, DriverError::Network(_));
                let why = if is_told_at_the_end { inside(&self.runtime, insert.end()).await.err() } else { None };
                return Err(failed(why.unwrap_or(error)));
            }
            written += some.len() as u64;
            if some.len() < AT_ONCE {
                break;
            }
        }
        inside(&self.runtime, insert.end()).await.map_err(failed)?;
        Ok(written)
    }

    pub(super) async fn execute(&self, query: Query) -> Result<(), Error> {
        self.link.ready().await?;
        query.execute().await.map_err(|error| self.failed("execute", StatementEffect::Changes, error))
    }

    pub(super) fn failed(&self, action: &str, effect: StatementEffect, error: DriverError) -> Error {
        let is_unbound = matches!(&error, DriverError::InvalidParams(cause) if cause.to_string().contains("unbound"));
        let error = failed(&self.link, &self.config, action, effect, error);
        if is_unbound { advised(error, BIND) } else { error }
    }

    /// Whether a statement with this effect is sent once more after its answer was lost.
    fn repeats(&self, effect: StatementEffect) -> bool {
        effect == StatementEffect::Reads && self.link.repeat() == Repeat::Idempotent
    }
}

/// The number of rows that an insert takes off its iterator before it enters the runtime, which costs as much as a few
/// rows.
const AT_ONCE: usize = 64;

const BIND: &str = "bind a value for each `?`; `??` stands for the character, in a string literal too";

/// ClickHouse's verbs, besides those of the client that the lease derefs to. They answer the pool's errors instead of
/// the driver's, and repeat requests as [`Repeat`](crate::config::Repeat) says. They work on any runtime.
///
/// A statement is SQL text, or a query with its values bound. In SQL text `?` stands for a bound value (`??` for the
/// character) and `?fields` for the row's columns.
///
/// ```no_run
/// use resource_pool::clickhouse::{self, Row};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Row, Serialize, Deserialize)]
/// struct Day { code: String, close: f64 }
///
/// async fn copy() -> Result<(), resource_pool::Error> {
///     let clickhouse = resource_pool::clickhouse().await?;
///     let query = clickhouse.query("SELECT ?fields FROM stock_day WHERE code = ?").bind("AAPL");
///     let days: Vec<Day> = clickhouse.query_rows(query).await?;
///     clickhouse.insert_rows("stock_day_of_apple", days).await?;
///     // One that is too large for memory.
///     let mut days = clickhouse.query_iter::<Day>("SELECT ?fields FROM stock_day").await?;
///     while let Some(day) = days.next().await {
///         println!("{}", day?.close);
///     }
///     clickhouse.execute("TRUNCATE TABLE stock_day_of_apple").await
/// }
/// ```
///
/// Each verb answers [`Error::Operation`] if this client is not of the pool's own kind.
impl Lease<Client> {
    /// All rows of a result.
    ///
    /// # Errors
    /// [`Error::Operation`] with the server's answer; [`Error::Lost`] if the connection broke or could not be made,
    /// [`Error::OutcomeUnknown`] if it broke and this may change something; [`Error::Timeout`]; [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Cancelling gives up the query, and the rows that have come. A query that only reads is cancelled at the server
    /// too ([`cancel_dropped`](crate::config::ClickHouseConfig::cancel_dropped)). Any other may go on there.
    pub async fn query_rows<T: RowOwned + RowRead + Send>(&self, statement: impl Statement) -> Result<Vec<T>, Error> {
        let (session, query) = (self.session("query")?, statement.query(self));
        inside(&session.runtime, session.query_rows(query)).await
    }

    /// The rows of a result as they arrive, so that a large one need not fit into memory. From now on they are read,
    /// and deserialized, on the pool's runtime, at most five batches ahead of the caller. A batch has 1,024 rows, or
    /// fewer once they took 256 KiB of the answer. Dropping them gives up the rest. Closing ends them with an error
    /// where their reader is slower than the drain.
    ///
    /// # Errors
    /// [`Error::Operation`] for a statement that cannot be sent, [`Error::Lost`] while a lost connection is not back,
    /// [`Error::Closing`] and [`Error::Closed`]. A later error comes instead of a row, as in
    /// [`query_rows`](Lease::query_rows), and ends them.
    ///
    /// # Cancel safety
    /// Cancel-safe: it waits for the connection only, and sends nothing before that.
    pub async fn query_iter<T: RowOwned + RowRead + Send>(&self, statement: impl Statement) -> Result<Rows<T>, Error> {
        let (session, query) = (self.session("query")?, statement.query(self));
        inside(&session.runtime, session.rows(query)).await
    }

    /// Inserts rows in one `INSERT` and tells how many. Rows are sent as they come, 64 and more at a time. If it fails,
    /// each block of [`insert_block_size`](crate::config::ClickHouseConfig::insert_block_size) of them is in the table
    /// as a whole, or not at all.
    ///
    /// # Errors
    /// As [`query_rows`](Lease::query_rows).
    ///
    /// # Cancel safety
    /// Not cancel-safe: cancelling aborts the `INSERT`, as an error does.
    pub async fn insert_rows<T: RowOwned + RowWrite>(
        &self,
        table: &str,
        rows: impl IntoIterator<Item = T>,
    ) -> Result<u64, Error> {
        self.session("insert")?.insert_rows(table, rows).await
    }

    /// Runs a statement that answers nothing.
    ///
    /// # Errors
    /// As [`query_rows`](Lease::query_rows).
    ///
    /// # Cancel safety
    /// Not cancel-safe: the statement may go on at the server.
    pub async fn execute(&self, statement: impl Statement) -> Result<(), Error> {
        let (session, query) = (self.session("execute")?, statement.query(self));
        inside(&session.runtime, session.execute(query)).await
    }

    /// An inserter into this table. Closing flushes its rows. The driver's own `Client::inserter` has the same
    /// name. Closing aborts that inserter unless the caller has ended it.
    ///
    /// # Errors
    /// [`Error::Operation`] if this client is not of the pool's own kind.
    pub fn inserter<T: Row + 'static>(&self, table: &str) -> Result<Inserter<T>, Error> {
        Ok(Inserter::new(self.session(format_args!("an inserter into {table:?}"))?, table))
    }

    fn session(&self, action: impl fmt::Display) -> Result<&Arc<ClickHouseSession>, Error> {
        match Lease::handle_as::<Connected>(self) {
            Some(connected) => Ok(&connected.0.session),
            None => Err(Error::Operation {
                resource: Lease::resource(self).into(),
                action: action.to_string(),
                source: Arc::new(io::Error::other("it is a client of a kind of one's own")),
            }),
        }
    }
}

/// Polls this future in the context of this runtime, on whichever executor.
pub(super) async fn inside<F: Future>(runtime: &Handle, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let _context = runtime.enter();
        future.as_mut().poll(cx)
    })
    .await
}
