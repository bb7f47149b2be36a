//! ClickHouse for threads: the driver's client, driven on the pool's runtime.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;

use ::clickhouse::error::Error as DriverError;
use ::clickhouse::query::{Query, RowCursor};
use ::clickhouse::{Client, RowOwned, RowRead, RowWrite};
use tokio::runtime::Handle;

use crate::backend::clickhouse::{Caused, ClickHouseConfig};
use crate::blocking::Scoped;
use crate::config::Secret;
use crate::error::Error;
use crate::lease::Lease;
use crate::resource::Link;
use crate::{runtime, scoped};

/// A ClickHouse for threads. Cheap to clone; every call waits for its answer.
///
/// A statement is SQL text, in which `?` stands for a bound value (`??` for the character) and
/// `?fields` for the row's columns, or a query with its values bound:
/// `clickhouse.client().query("SELECT ?fields FROM stock_day WHERE code = ?").bind("AAPL")`.
#[derive(Clone)]
pub struct ClickHouse {
    client: Client,
    link: Link,
    runtime: Handle,
    password: Option<Secret>,
}

impl ClickHouse {
    pub(crate) fn new(client: Client, link: Link, runtime: Handle, config: &ClickHouseConfig) -> Self {
        ClickHouse { client, link, runtime, password: config.password.clone() }
    }

    /// A ClickHouse of one's own, which closes when the guard drops.
    ///
    /// # Errors
    /// Those of [`ResourcePool::clickhouse`](crate::blocking::ResourcePool::clickhouse).
    #[track_caller]
    pub fn scoped(config: ClickHouseConfig) -> Result<Scoped<Lease<ClickHouse>>, Error> {
        let pool = super::ResourcePool::from(scoped::pool(config.into())?);
        Ok(Scoped::new(pool.clickhouse()?, pool))
    }

    /// All rows of a result.
    ///
    /// # Errors
    /// [`Error::Operation`] with what the server answered; [`Error::Lost`] if the connection broke
    /// or could not be made; [`Error::Closed`]; [`Error::InAsyncContext`] on a current-thread
    /// runtime.
    pub fn query_rows<T: RowOwned + RowRead>(&self, statement: impl Statement) -> Result<Vec<T>, Error> {
        self.wait("query", statement.query(&self.client).fetch_all())
    }

    /// The rows of a result as they arrive, so that a large one need not fit into memory. Dropping
    /// the iterator gives up the rest.
    ///
    /// # Errors
    /// [`Error::Operation`] for a statement that cannot be sent; what goes wrong later comes as an
    /// item, as in [`query_rows`](Self::query_rows), and ends the iterator.
    pub fn query_iter<T: RowOwned + RowRead>(&self, statement: impl Statement) -> Result<Rows<T>, Error> {
        let cursor = {
            let _context = self.runtime.enter();
            statement.query(&self.client).fetch().map_err(|error| self.failed("query", error))?
        };
        Ok(Rows { cursor: Some(cursor), clickhouse: self.clone() })
    }

    /// Inserts rows in one `INSERT` and tells how many; all or, if it fails, none of a block of
    /// [`insert_block_size`](ClickHouseConfig::insert_block_size). Rows are sent as they come.
    ///
    /// # Errors
    /// As [`query_rows`](Self::query_rows). After a loss it is not known what arrived.
    pub fn insert_rows<T: RowOwned + RowWrite>(
        &self,
        table: &str,
        rows: impl IntoIterator<Item = T>,
    ) -> Result<u64, Error> {
        self.wait("insert", async {
            let mut insert = self.client.insert::<T>(table).await?;
            let mut written = 0;
            for row in rows {
                insert.write(&row).await?;
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
        self.wait("execute", statement.query(&self.client).execute())
    }

    /// The driver's client, to build queries with bound values, and for async code.
    pub fn client(&self) -> &Client {
        &self.client
    }

    fn wait<T>(&self, action: &str, future: impl Future<Output = Result<T, DriverError>>) -> Result<T, Error> {
        runtime::block_on(self.link.name(), &self.runtime, future)?.map_err(|error| self.failed(action, error))
    }

    fn failed(&self, action: &str, error: DriverError) -> Error {
        if let Some(ours) = ours(&error) {
            return ours.clone();
        }
        let resource = Arc::clone(self.link.name());
        let is_lost = matches!(error, DriverError::Network(_));
        let secrets: Vec<_> = self.password.iter().map(Secret::expose).collect();
        let source = Caused(error).redacted(&secrets).into();
        if is_lost {
            Error::Lost { resource, endpoint: Arc::clone(self.link.endpoint()), source }
        } else {
            Error::Operation { resource, action: action.to_owned(), source }
        }
    }
}

/// The pool's own error, where that is why no connection could be had.
fn ours(error: &DriverError) -> Option<&Error> {
    let mut cause = error.source();
    while let Some(error) = cause {
        // An io::Error is not the cause of what is in it.
        if let Some(ours) =
            error.downcast_ref::<io::Error>().and_then(io::Error::get_ref).and_then(|inner| inner.downcast_ref())
        {
            return Some(ours);
        }
        cause = error.source();
    }
    None
}

impl fmt::Debug for ClickHouse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClickHouse").field("client", &self.client).finish_non_exhaustive()
    }
}

/// What can be sent: SQL text, or a [`Query`] with its values bound.
pub trait Statement: sealed::Sealed {
    #[doc(hidden)]
    fn query(self, client: &Client) -> Query;
}

impl Statement for &str {
    fn query(self, client: &Client) -> Query {
        client.query(self)
    }
}

impl Statement for &String {
    fn query(self, client: &Client) -> Query {
        client.query(self)
    }
}

impl Statement for Query {
    fn query(self, _: &Client) -> Query {
        self
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for &str {}
    impl Sealed for &String {}
    impl Sealed for ::clickhouse::query::Query {}
}

/// The rows of a result, as they arrive. Blocks for the next one; ends after an error.
#[must_use = "nothing is read until the rows are asked for"]
pub struct Rows<T> {
    cursor: Option<RowCursor<T>>,
    clickhouse: ClickHouse,
}

impl<T: RowOwned + RowRead> Iterator for Rows<T> {
    type Item = Result<T, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.clickhouse.wait("query", self.cursor.as_mut()?.next());
        if !matches!(next, Ok(Some(_))) {
            self.cursor = None;
        }
        next.transpose()
    }
}

impl<T> fmt::Debug for Rows<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("ended", &self.cursor.is_none()).finish_non_exhaustive()
    }
}
