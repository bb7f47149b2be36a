//! Inserters whose rows closing flushes.
//!
//! A user writes rows to an `Inserter`. When the drain begins, `Inserters::flush` inserts the rows of all inserters of
//! a client.
//!
//! `begun` is an async lock, which is held while the driver is awaited. So a user's call and a flush take turns. The
//! user's own code that serializes a row runs under it. `limits` may be locked under `begun`, for a copy. `open` is
//! locked alone. Nothing is awaited under `limits` and `open`.
//!
//! A flush sets `is_closing` before it lists the inserters and takes their `begun`. So the flush inserts a row that was
//! written before that, and `write` inserts each later row at once. No row is left in between.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ::clickhouse::error::Error as DriverError;
use ::clickhouse::inserter::{Inserter as DriverInserter, Quantities};
use ::clickhouse::{Row, RowWrite};
use parking_lot::Mutex as SyncMutex;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::base::error::{Error, Failure};
use crate::base::future::BoxFuture;
use crate::base::process::ForkGuarded;
use crate::base::runtime::within;
use crate::kinds::clickhouse::errors::failed;
use crate::kinds::clickhouse::statement::StatementEffect;
use crate::kinds::clickhouse::verbs::{ClickHouseSession, inside};
use crate::lifecycle::busy::Busy;
use crate::lifecycle::link::Link;
use crate::lifecycle::work::Work;

/// Collects rows and inserts many at a time. It is the driver's own inserter, except that closing flushes its rows when
/// the drain begins, even if its owner is idle.
///
/// Like the driver's it does nothing by itself: [`commit`](Inserter::commit) ends the current `INSERT` once a limit is
/// reached, and there is none by default. While closing drains, every row written is inserted at once. Rows count as
/// [`Work::Row`] until the server has them. The report of a close tells how many were flushed and how many were not.
///
/// Dropping it aborts the current `INSERT`. Its rows are not stored then, except for the blocks that the server has
/// written by that time. The same happens if a future of its methods is dropped while the server is awaited, and after
/// an error of any of them. After an error it begins anew.
#[must_use = "its rows are not inserted until a commit"]
pub struct Inserter<T: Row> {
    shared: ForkGuarded<Arc<InserterState<T>>>,
}

struct InserterState<T: Row> {
    session: Arc<ClickHouseSession>,
    table: String,
    limits: SyncMutex<FlushLimits>,
    /// The current `INSERT`. `None` before its first row.
    begun: Mutex<Option<OpenInsert<T>>>,
}

/// An `INSERT`. It is taken out of `begun` while the driver has it, so that one that fails or is given up half-way
/// leaves nothing.
struct OpenInsert<T> {
    inserter: DriverInserter<T>,
    /// Counts its rows as work.
    rows: Busy,
}

#[derive(Clone, Copy, Default)]
struct FlushLimits {
    max_rows: Option<u64>,
    max_bytes: Option<u64>,
    period: Option<Duration>,
}

impl<T: Row + 'static> Inserter<T> {
    pub(super) fn new(session: &Arc<ClickHouseSession>, table: &str) -> Self {
        let shared = Arc::new(InserterState {
            session: Arc::clone(session),
            table: table.to_owned(),
            limits: SyncMutex::default(),
            begun: Mutex::new(None),
        });
        session.inserters.add(&shared);
        Inserter { shared: ForkGuarded::new(shared) }
    }

    pub(super) fn session(&self) -> Arc<ClickHouseSession> {
        Arc::clone(&self.shared.session)
    }

    /// Sets after how many rows a commit inserts. Defaults to no limit.
    pub fn with_max_rows(self, max_rows: u64) -> Self {
        self.shared.limits.lock().max_rows = Some(max_rows);
        self
    }

    /// Sets after how many bytes, before compression, a commit inserts. Defaults to no limit.
    pub fn with_max_bytes(self, max_bytes: u64) -> Self {
        self.shared.limits.lock().max_bytes = Some(max_bytes);
        self
    }

    /// Sets how long after the first row a commit inserts. Defaults to no limit.
    pub fn with_period(self, period: Duration) -> Self {
        self.shared.limits.lock().period = Some(period);
        self
    }

    /// Takes a row. A commit that reaches a limit inserts it, or closing does. If closing drains already, it is
    /// inserted at once.
    ///
    /// # Errors
    /// [`Error::Operation`] for a row that does not fit; [`Error::Lost`], [`Error::Timeout`],
    /// [`Error::Closed`] if no connection can be had; those of [`commit`](Inserter::commit).
    ///
    /// # Cancel safety
    /// Not cancel-safe: see [`Inserter`].
    pub async fn write(&mut self, row: &T::Value<'_>) -> Result<(), Error>
    where
        T: RowWrite,
    {
        let shared = &*self.shared;
        shared.session.link.check_process()?;
        let writing = async {
            let mut place = shared.begun.lock().await;
            let mut begun = match place.take() {
                Some(begun) => begun,
                None => shared.begin().await?,
            };
            begun.inserter.write(row).await.map_err(|error| shared.failed(error))?;
            begun.rows.add(1);
            *place = Some(begun);
            if shared.session.inserters.is_closing() {
                shared.commit(&mut place, true).await?;
            }
            Ok(())
        };
        inside(&shared.session.runtime, writing).await
    }

    /// Inserts the rows that there are if a limit is reached, and tells how much was inserted.
    ///
    /// # Errors
    /// [`Error::Operation`] with the server's answer; [`Error::OutcomeUnknown`] if the
    /// connection is lost before the server has answered. The rows are gone then; they are not sent again.
    ///
    /// # Cancel safety
    /// Not cancel-safe: see [`Inserter`].
    pub async fn commit(&mut self) -> Result<Quantities, Error> {
        self.shared.insert(false).await
    }

    /// Inserts the rows that there are, and tells how much was inserted.
    ///
    /// # Errors
    /// As [`commit`](Inserter::commit).
    ///
    /// # Cancel safety
    /// Not cancel-safe: see [`Inserter`].
    pub async fn force_commit(&mut self) -> Result<Quantities, Error> {
        self.shared.insert(true).await
    }

    /// Inserts the rows that there are, tells how much was inserted, and ends the inserter.
    ///
    /// # Errors
    /// As [`commit`](Inserter::commit).
    ///
    /// # Cancel safety
    /// Not cancel-safe: see [`Inserter`].
    pub async fn end(mut self) -> Result<Quantities, Error> {
        self.force_commit().await
    }
}

impl<T: Row> InserterState<T> {
    /// Begins an `INSERT` once there is a connection. Without one the row could not be sent, and the driver's inserter
    /// would not know that.
    async fn begin(&self) -> Result<OpenInsert<T>, Error> {
        self.session.link.ready().await?;
        let FlushLimits { max_rows, max_bytes, period } = *self.limits.lock();
        let inserter = self.session.client.inserter::<T>(&self.table).with_period(period);
        let inserter =
            inserter.with_max_rows(max_rows.unwrap_or(u64::MAX)).with_max_bytes(max_bytes.unwrap_or(u64::MAX));
        Ok(OpenInsert { inserter, rows: self.session.link.not_yet_busy(Work::Row) })
    }

    async fn insert(&self, force: bool) -> Result<Quantities, Error> {
        self.session.link.check_process()?;
        let inserting = async {
            let mut place = self.begun.lock().await;
            self.commit(&mut place, force || self.session.inserters.is_closing()).await
        };
        inside(&self.session.runtime, inserting).await
    }

    async fn commit(&self, place: &mut Option<OpenInsert<T>>, force: bool) -> Result<Quantities, Error> {
        let Some(mut begun) = place.take() else { return Ok(Quantities::ZERO) };
        let inserted = if force { begun.inserter.force_commit().await } else { begun.inserter.commit().await };
        let inserted = inserted.map_err(|error| self.failed(error))?;
        if inserted.rows > 0 {
            begun.rows.done();
        } else {
            *place = Some(begun);
        }
        Ok(inserted)
    }

    fn failed(&self, error: DriverError) -> Error {
        let action = format!("inserting into {:?}", self.table);
        failed(&self.session.link, &self.session.config, &action, StatementEffect::Changes, error)
    }
}

impl<T: Row> fmt::Debug for Inserter<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inserter").field("table", &self.shared.table).finish_non_exhaustive()
    }
}

/// The inserters of one ClickHouse.
#[derive(Default)]
pub(super) struct Inserters {
    open: SyncMutex<Vec<Weak<dyn Flush>>>,
    /// Set when the drain begins. From then on every row is inserted at once.
    is_closing: AtomicBool,
}

impl Inserters {
    fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::SeqCst)
    }

    fn add<T: Row + 'static>(&self, inserter: &Arc<InserterState<T>>) {
        let mut open = self.open.lock();
        open.retain(|inserter| inserter.strong_count() > 0);
        let inserter: Weak<InserterState<T>> = Arc::downgrade(inserter);
        open.push(inserter);
    }

    /// Inserts the rows of each inserter, all at once and each within its limit.
    pub(super) async fn flush(&self, link: &Link, limit: Duration) -> Result<(), Failure> {
        // This comes before the inserters are listed, so that no row is missed in between.
        self.is_closing.store(true, Ordering::SeqCst);
        let open: Vec<_> = self.open.lock().iter().filter_map(Weak::upgrade).collect();
        let mut flushing = JoinSet::new();
        for inserter in open {
            flushing.spawn(async move {
                let table = inserter.table().to_owned();
                match within(limit, inserter.flush()).await {
                    Ok(flushed) => flushed.map_err(Failure::transient),
                    Err(_elapsed) => {
                        Err(Failure::transient(format!("the rows for {table:?} were not inserted within {limit:?}")))
                    }
                }
            });
        }
        let mut outcome = Ok(());
        while let Some(flushed) = flushing.join_next().await {
            let flushed = flushed.unwrap_or_else(|error| Err(Failure::transient(error)));
            if let Err(error) = &flushed {
                link.warn("rows were not flushed", Some(error));
            }
            outcome = outcome.and(flushed);
        }
        outcome
    }
}

/// An inserter of any row type.
trait Flush: Send + Sync {
    fn table(&self) -> &str;
    fn flush(self: Arc<Self>) -> BoxFuture<Result<(), Error>>;
}

impl<T: Row + 'static> Flush for InserterState<T> {
    fn table(&self) -> &str {
        &self.table
    }

    fn flush(self: Arc<Self>) -> BoxFuture<Result<(), Error>> {
        Box::pin(async move { self.insert(true).await.map(drop) })
    }
}
