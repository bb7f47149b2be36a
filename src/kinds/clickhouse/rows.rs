//! The rows of a result as they arrive.
//!
//! The verbs `query_rows` and `query_iter` begin a result by `ClickHouseSession::rows`. A task on the pool's runtime reads the
//! rows and hands them over in batches. A thread that reads by itself is woken for each piece that arrives, which costs
//! more than the rows.
//!
//! The task ends with the answer, or when its `Rows` drop. There is no lock here. The user's own code that deserializes
//! a row runs in the task. In a forked child the rows are the parent's, and none is handed out.

use std::fmt;
use std::future::poll_fn;
use std::mem;
use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::vec;

use ::clickhouse::error::Error as DriverError;
use ::clickhouse::query::{Query, RowCursor};
use ::clickhouse::{RowOwned, RowRead};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::base::error::Error;
use crate::base::process::ForkGuarded;
use crate::kinds::clickhouse::errors::advised;
use crate::kinds::clickhouse::statement::{StatementEffect, names_format};
use crate::kinds::clickhouse::verbs::ClickHouseSession;

/// The most rows of a batch.
const BATCH: usize = 1024;

/// A batch ends early once it took this many bytes of the answer, uncompressed.
const BATCH_BYTES: u64 = 256 * 1024;

/// The most batches that wait for the caller, beside the one in the caller's hands and the one that is being made.
const WAITING: usize = 3;

/// The rows of a result, as they arrive, from [`query_iter`](crate::Lease::query_iter). Dropping them gives up the
/// rest.
#[must_use = "the rest of the answer is given up once this drops"]
pub struct Rows<T> {
    batch: vec::IntoIter<T>,
    /// The part that is still to come. `None` after the end.
    rest: Option<ForkGuarded<Rest<T>>>,
    pub(super) session: Arc<ClickHouseSession>,
}

/// The part of a result that is still to come.
struct Rest<T> {
    batches: mpsc::Receiver<Vec<T>>,
    /// The task that reads, which answers how the reading ended.
    reader: JoinHandle<Result<(), Error>>,
    effect: StatementEffect,
}

impl<T> Rows<T> {
    /// The next row; `None` after the last one, and after an error.
    ///
    /// # Errors
    /// Those of [`query_rows`](crate::Lease::query_rows). [`Error::Closed`] or [`Error::OutcomeUnknown`] also if
    /// closing did not wait any longer for the reader.
    ///
    /// # Cancel safety
    /// Cancel-safe: no row is lost.
    pub async fn next(&mut self) -> Option<Result<T, Error>> {
        loop {
            if let Some(row) = self.at_hand() {
                return Some(Ok(row));
            }
            match self.more().await {
                Ok(true) => {}
                end => return end.err().map(Err),
            }
        }
    }

    /// A row that has arrived already.
    #[inline]
    pub(super) fn at_hand(&mut self) -> Option<T> {
        // The rows of a forked child are its parent's.
        if self.session.link.check_process().is_ok() { self.batch.next() } else { None }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.rest.is_none()
    }

    pub(super) fn end(&mut self) {
        self.rest = None;
    }

    /// Waits until more rows are at hand. Answers `false` at the end.
    pub(super) async fn more(&mut self) -> Result<bool, Error> {
        let Some(rest) = &mut self.rest else { return Ok(false) };
        if let Err(forked) = self.session.link.check_process() {
            self.end();
            return Err(forked);
        }
        if let Some(batch) = rest.batches.recv().await {
            self.batch = batch.into_iter();
            return Ok(true);
        }
        let (end, effect) = ((&mut rest.reader).await, rest.effect);
        self.end();
        match end {
            Ok(end) => end.map(|()| false),
            Err(stopped) if stopped.is_panic() => resume_unwind(stopped.into_panic()),
            Err(runtime_ended) => {
                let link = &self.session.link;
                Err(match effect {
                    StatementEffect::Reads => Error::closed(link.name()),
                    StatementEffect::Changes => link.outcome_unknown("query", Arc::new(runtime_ended)),
                })
            }
        }
    }

    /// All rows that are still to come.
    pub(super) async fn all(mut self) -> Result<Vec<T>, Error> {
        let mut all = Vec::new();
        while self.more().await? {
            all.extend(mem::take(&mut self.batch));
        }
        Ok(all)
    }
}

impl<T> fmt::Debug for Rows<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("ended", &self.has_ended()).finish_non_exhaustive()
    }
}

impl ClickHouseSession {
    /// Begins to read the rows of this query. Must be polled in the context of a runtime.
    pub(super) async fn rows<T: RowOwned + RowRead + Send>(self: &Arc<Self>, query: Query) -> Result<Rows<T>, Error> {
        let text = query.sql_display().to_string();
        let (effect, names_format) = (StatementEffect::of(&text), names_format(&text));
        self.link.ready().await?;
        let cursor = query.fetch().map_err(|error| self.failed("query", effect, error))?;
        let (sender, batches) = mpsc::channel(WAITING);
        let session = Arc::clone(self);
        let failed = move |error: DriverError| {
            let is_garbled = match &error {
                DriverError::BadResponse(text) => !text.contains("Code: "),
                error => !matches!(error, DriverError::Network(_)),
            };
            let error = session.failed("query", effect, error);
            if names_format && is_garbled { advised(error, FORMAT) } else { error }
        };
        let reader = self.runtime.spawn(read(cursor, failed, sender));
        let rest = Some(ForkGuarded::new(Rest { batches, reader, effect }));
        Ok(Rows { batch: Vec::new().into_iter(), rest, session: Arc::clone(self) })
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

/// The rows that have arrived, at least one unless this is the end.
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

const FORMAT: &str = "leave out FORMAT, as rows come in a format of the driver's own; \
                      `client().query(..).fetch_bytes(..)` has any other";
