//! Bulk writers, which collect rows, send many at a time, and give back those that are not stored.
//!
//! A user adds rows to a `BulkWriter`. Its `BulkState` sends them once a limit is reached, and when the drain begins.
//!
//! `turn` is an async lock, which is held while rows are sent. So a writer has one bulk in flight, and the user waits: that
//! is the back-pressure. `buffer` and `open` are locked for a look only, and alone.
//!
//! Rows are sent by a task of the pool's runtime, which has the `turn` and goes on if the user's future drops. Another task
//! of the writer keeps the time while there are rows. Both end with the requests that closing cuts, or with the runtime. A
//! `RowDelivery` then gives back the rows that it has.
//!
//! A writer that drops has such a task send the rows that are left. The last who holds its `BulkState` tells of the rows
//! that nobody can take any more.
//!
//! A drain sets `is_closing` before it lists the writers and takes their `turn`. So it sends a row that was added before
//! that, and `add` sends each later row at once. No row is left in between.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex as SyncMutex;
use serde::Serialize;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep_until;

use crate::base::error::{BoxError, Error, Failure, FirstFew};
use crate::base::process::ForkGuarded;
use crate::base::runtime::within;
use crate::kinds::elastic::buffer::{BulkBuffer, BulkLimits};
use crate::kinds::elastic::delivery::RowDelivery;
use crate::kinds::elastic::errors::refused;
use crate::kinds::elastic::row::{BulkOutcome, BulkRow, RowProblem};
use crate::kinds::elastic::session::ElasticSession;
use crate::lifecycle::link::Link;
use crate::lifecycle::work::Work;

/// Collects rows for one index, and sends many at a time.
///
/// Rows are sent once there are [`bulk_rows`](crate::config::ElasticConfig::bulk_rows) of them, or
/// [`bulk_bytes`](crate::config::ElasticConfig::bulk_bytes), or the first is
/// [`bulk_period`](crate::config::ElasticConfig::bulk_period) old, and as the drain of a close begins. One bulk is in
/// flight at a time, and [`add`](BulkWriter::add) waits for it meanwhile. So a writer never holds more than that.
///
/// Each row is stored or given back, with the server's reason: [`flush`](BulkWriter::flush) has the outcome, also after
/// the pool has closed. Rows that the server answers by 429 are sent again first, at most
/// [`max_repeats`](crate::config::ElasticConfig::max_repeats) times. Rows count as [`Work::Row`] until then.
///
/// A bulk whose answer is lost is sent once more if the option [`repeat`](crate::config::Options::repeat) is
/// `idempotent`, and each of its rows has an id of its own and may take the place of another one. Otherwise its rows are
/// given back.
///
/// Dropping it sends the rows that it has, on the pool's runtime, and closing waits for that within the drain. Nobody can
/// take the rows that are then not stored, and those that were given back before. An event
/// [`What::Warned`](crate::What::Warned) and a line in the log tell their number and the first reason.
#[must_use = "its last rows are sent late, and without an outcome, unless there is a flush"]
pub struct BulkWriter {
    state: ForkGuarded<Arc<BulkState>>,
}

/// The state of a writer, which its tasks share.
struct BulkState {
    session: Arc<ElasticSession>,
    index: String,
    /// The word for a bulk in errors and events.
    action: Arc<str>,
    turn: Arc<Mutex<()>>,
    buffer: SyncMutex<BulkBuffer>,
}

/// The right to send the rows of a writer.
type BulkTurn = OwnedMutexGuard<()>;

impl BulkWriter {
    pub(super) fn new(session: &Arc<ElasticSession>, index: &str) -> Self {
        let config = &session.config;
        let limits =
            BulkLimits { max_rows: config.bulk_rows, max_bytes: config.bulk_bytes, period: config.bulk_period };
        let busy = session.requests.link().not_yet_busy(Work::Row);
        let state = Arc::new(BulkState {
            session: Arc::clone(session),
            index: index.to_owned(),
            action: format!("a bulk into {index:?}").into(),
            turn: Arc::default(),
            buffer: SyncMutex::new(BulkBuffer::new(limits, busy)),
        });
        // In a forked child a thread of the parent may hold the lock for ever.
        if session.requests.link().check_process().is_ok() {
            session.writers.add(&state);
        }
        BulkWriter { state: ForkGuarded::new(state) }
    }

    pub(super) fn session(&self) -> Arc<ElasticSession> {
        Arc::clone(&self.state.session)
    }

    /// Sets after how many rows it sends, at least 1. Defaults to that of the configuration.
    pub fn with_max_rows(self, max_rows: usize) -> Self {
        self.limited(|limits| limits.max_rows = max_rows.max(1))
    }

    /// Sets after how many bytes of documents it sends. Defaults to that of the configuration.
    pub fn with_max_bytes(self, max_bytes: usize) -> Self {
        self.limited(|limits| limits.max_bytes = max_bytes.max(1))
    }

    /// Sets how long after the first row it sends. Defaults to that of the configuration.
    pub fn with_period(self, period: Duration) -> Self {
        self.limited(|limits| limits.period = period)
    }

    fn limited(self, change: impl FnOnce(&mut BulkLimits)) -> Self {
        // In a forked child a thread of the parent may hold the lock for ever.
        if ForkGuarded::is_current(&self.state) {
            change(&mut self.state.buffer.lock().limits);
        }
        self
    }

    /// Takes a document, which replaces the one of this id. Without an id the server makes one, and a bulk with such a row
    /// is not sent again once its answer is lost. It waits while a bulk is in flight, and if this row makes one full, until
    /// that is answered.
    ///
    /// # Errors
    /// The row is not taken: [`Error::Operation`] for a document that is no JSON object, for a name that cannot be one of
    /// an index, and while as many rows as a bulk may have were given back and not been taken by
    /// [`flush`](BulkWriter::flush); [`Error::Closed`], [`Error::Forked`]. The problems of rows that were taken are in the
    /// outcome.
    ///
    /// # Cancel safety
    /// A row is taken as a whole or not at all. One that was taken is sent even if the future drops.
    pub async fn add<T: Serialize + ?Sized>(&mut self, id: impl Into<Option<&str>>, document: &T) -> Result<(), Error> {
        self.put(BulkRow::new(id.into(), document, false)).await
    }

    /// Takes a document as [`add`](BulkWriter::add) does, which the server refuses by 409 if it has one of this id. A bulk
    /// with such a row is not sent again once its answer is lost, because a 409 would then tell nothing.
    ///
    /// # Errors
    /// Those of [`add`](BulkWriter::add).
    ///
    /// # Cancel safety
    /// As [`add`](BulkWriter::add).
    pub async fn create<T: Serialize + ?Sized>(
        &mut self,
        id: impl Into<Option<&str>>,
        document: &T,
    ) -> Result<(), Error> {
        self.put(BulkRow::new(id.into(), document, true)).await
    }

    /// Takes a row that was given back.
    ///
    /// # Errors
    /// Those of [`add`](BulkWriter::add).
    ///
    /// # Cancel safety
    /// As [`add`](BulkWriter::add).
    pub async fn add_again(&mut self, row: BulkRow) -> Result<(), Error> {
        self.put(Ok(row)).await
    }

    /// Sends the rows that there are, and gives the outcome of all rows since the last flush. After the pool has closed it
    /// gives the outcome of those that closing has sent, and gives back the rest.
    ///
    /// # Errors
    /// [`Error::Forked`]. All other problems are those of rows.
    ///
    /// # Cancel safety
    /// Cancel-safe: the rows are sent, and the next flush gives their outcome.
    pub async fn flush(&mut self) -> Result<BulkOutcome, Error> {
        let state = &*self.state;
        let link = state.session.requests.link();
        link.check_process()?;
        let turn = state.turn().await;
        state.send(turn).await;
        Ok(state.buffer.lock().take_outcome(link.name(), &state.action))
    }

    async fn put(&mut self, row: Result<BulkRow, BoxError>) -> Result<(), Error> {
        let state = &*self.state;
        let (session, link) = (&state.session, state.session.requests.link());
        link.check_process()?;
        let row = row.map_err(|error| refused(link, &state.action, error))?;
        session.path(&state.action, &[&state.index])?;
        let turn = state.turn().await;
        // Fails once the resource is closed.
        session.requests.raw_client()?;
        let taken = state.buffer.lock().take(row);
        let is_full = taken.map_err(|problem| refused(link, &state.action, problem))?;
        if is_full || session.writers.is_closing() {
            state.send(turn).await;
        } else if state.buffer.lock().begin_timing() {
            session.requests.runtime().spawn(keep_time(Arc::downgrade(state)));
        }
        Ok(())
    }
}

impl Drop for BulkWriter {
    fn drop(&mut self) {
        // A forked child must not touch its parent's runtime.
        if !ForkGuarded::is_current(&self.state) || !self.state.buffer.lock().has_unsent() {
            return;
        }
        let state = Arc::clone(&self.state);
        self.state.session.requests.runtime().spawn(async move {
            let turn = state.turn().await;
            state.deliver(turn).await;
        });
    }
}

impl fmt::Debug for BulkWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BulkWriter").field("index", &self.state.index).finish_non_exhaustive()
    }
}

/// The time after which `keep_time` looks whether its writer is still there, however long its period is.
const GLANCE: Duration = Duration::from_secs(5);

/// Sends the rows of a writer once the first is old enough, as long as there are some.
async fn keep_time(writer: Weak<BulkState>) {
    loop {
        let glance = Instant::now() + GLANCE;
        let due = {
            let Some(state) = writer.upgrade() else { return };
            let due = state.buffer.lock().due(glance);
            let Some(due) = due else { return };
            if due <= Instant::now() {
                let turn = state.turn().await;
                state.deliver(turn).await;
                continue;
            }
            due
        };
        sleep_until(due.into()).await;
    }
}

impl BulkState {
    /// Waits while a bulk is in flight.
    async fn turn(&self) -> BulkTurn {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// Sends the rows that there are, in a task that goes on if this future drops.
    async fn send(self: &Arc<Self>, turn: BulkTurn) {
        let state = Arc::clone(self);
        let sending: JoinHandle<()> = self.session.requests.runtime().spawn(async move { state.deliver(turn).await });
        if sending.await.is_err() {
            // The runtime has ended, so rows that it has not begun to send never will be.
            let problem = RowProblem::Failed(Error::closed(self.session.requests.link().name()));
            let given_up = self.buffer.lock().give_up(&problem);
            drop(given_up);
        }
    }

    async fn deliver(&self, _turn: BulkTurn) {
        let begun = self.buffer.lock().begin();
        if let Some(begun) = begun {
            RowDelivery::new(&self.session, &self.index, &self.action, &self.buffer, begun).run().await;
        }
    }

    /// Sends the rows that there are, within this limit. Returns the problem of those that are not stored, which the
    /// writer's owner can still take.
    async fn flush(self: Arc<Self>, limit: Duration) -> Option<String> {
        let sending = async {
            let turn = self.turn().await;
            self.send(turn).await;
        };
        let is_late = within(limit, sending).await.is_err();
        let index = &self.index;
        let buffer = self.buffer.lock();
        let late = is_late.then(|| format!("{} rows for {index:?} were not sent within {limit:?}", buffer.open()));
        let returned = buffer.returned().map(|(count, first)| {
            format!("{count} rows for {index:?} were given back, the first because {}", first.problem)
        });
        let problems: Vec<_> = late.into_iter().chain(returned).collect();
        (!problems.is_empty()).then(|| problems.join("; "))
    }
}

/// Tells of the rows that nobody can take any more.
impl Drop for BulkState {
    fn drop(&mut self) {
        let link = self.session.requests.link();
        let buffer = self.buffer.get_mut();
        let closed = RowProblem::Failed(Error::closed(link.name()));
        drop(buffer.give_up(&closed));
        if let Some((count, first)) = buffer.returned() {
            let index = &self.index;
            let message =
                format!("a bulk writer was dropped, and {count} rows for {index:?} are not known to be stored");
            link.warn(message, Some(&first.problem));
        }
    }
}

/// The bulk writers of one Elasticsearch.
#[derive(Default)]
pub(super) struct BulkWriters {
    open: SyncMutex<Vec<Weak<BulkState>>>,
    /// Set when the drain begins. From then on every row is sent at once.
    is_closing: AtomicBool,
}

impl BulkWriters {
    fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::SeqCst)
    }

    fn add(&self, writer: &Arc<BulkState>) {
        let mut open = self.open.lock();
        open.retain(|writer| writer.strong_count() > 0);
        open.push(Arc::downgrade(writer));
    }

    /// Sends the rows of each writer, all at once and each within its limit. Fails if some are not stored.
    pub(super) async fn flush(&self, link: &Link, limit: Duration) -> Result<(), Failure> {
        // This comes before the writers are listed, so that no row is missed in between.
        self.is_closing.store(true, Ordering::SeqCst);
        let open: Vec<_> = self.open.lock().iter().filter_map(Weak::upgrade).collect();
        let mut flushing: JoinSet<_> = open.into_iter().map(|writer| writer.flush(limit)).collect();
        let mut problems = Vec::new();
        while let Some(flushed) = flushing.join_next().await {
            problems.extend(flushed.unwrap_or_else(|error| Some(error.to_string())));
        }
        for problem in &problems {
            link.warn("rows were not stored", Some(problem));
        }
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Failure::transient(FirstFew(&problems, "; ").to_string())),
        }
    }
}
