//! Bulk writers, which collect rows, send many at a time, and give back those that are not stored.
//!
//! A user adds rows to a `BulkWriter`. Its `BulkState` sends them once a limit is reached, and when the drain begins.
//!
//! `buffer` is an async lock, which is held while rows are sent. So a writer has one bulk in flight, and the user waits:
//! that is the back-pressure. `limits` may be locked under `buffer`, for a copy. `open` is locked alone. Nothing is
//! awaited under `limits` and `open`.
//!
//! Rows are sent by a task of the pool's runtime, which goes on if the user's future drops. Another task of the writer
//! keeps the time while there are rows. Both end with the requests that closing cuts, or with the runtime.
//!
//! A drain sets `is_closing` before it lists the writers and takes their `buffer`. So it sends a row that was added before
//! that, and `add` sends each later row at once. No row is left in between.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex as SyncMutex;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use crate::base::error::{BoxError, Error, Failure};
use crate::base::process::ForkGuarded;
use crate::base::runtime::within;
use crate::kinds::elastic::delivery::{Delivered, deliver};
use crate::kinds::elastic::errors::refused;
use crate::kinds::elastic::row::{BulkOutcome, BulkRow, ReturnedRow};
use crate::kinds::elastic::session::ElasticSession;
use crate::lifecycle::busy::Busy;
use crate::lifecycle::link::Link;
use crate::lifecycle::work::Work;

/// Collects rows for one index, and sends many at a time.
///
/// Rows are sent once there are [`bulk_rows`](crate::config::ElasticConfig::bulk_rows) of them, or
/// [`bulk_bytes`](crate::config::ElasticConfig::bulk_bytes), or the first is
/// [`bulk_period`](crate::config::ElasticConfig::bulk_period) old, and as the drain of a close begins. One bulk is in
/// flight at a time, and [`add`](BulkWriter::add) waits for it meanwhile. So a writer never holds more than that.
///
/// Each row is stored or given back, with the server's reason: [`flush`](BulkWriter::flush) has the outcome. Rows that
/// the server answers by 429 are sent again first, at most
/// [`max_repeats`](crate::config::ElasticConfig::max_repeats) times. Rows count as [`Work::Row`] until then.
///
/// A bulk whose answer is lost is sent once more if the option [`repeat`](crate::config::Options::repeat) is
/// `idempotent`, and each of its rows has an id of its own and may take the place of another one. Otherwise its rows are
/// given back.
///
/// Dropping it gives up the rows that are not sent yet, and logs how many.
#[must_use = "its last rows are not sent until a flush"]
pub struct BulkWriter {
    state: ForkGuarded<Arc<BulkState>>,
}

/// The state of a writer, which its tasks share.
struct BulkState {
    session: Arc<ElasticSession>,
    index: String,
    /// The word for a bulk in errors and events.
    action: Arc<str>,
    limits: SyncMutex<BulkLimits>,
    buffer: Mutex<BulkBuffer>,
}

#[derive(Clone, Copy)]
struct BulkLimits {
    max_rows: usize,
    max_bytes: usize,
    period: Duration,
}

/// The rows that are not sent yet, and the outcome of those that were.
struct BulkBuffer {
    rows: Vec<BulkRow>,
    /// The size of `rows`.
    bytes: usize,
    /// When the first of `rows` came.
    since: Option<Instant>,
    /// Counts `rows` as work.
    busy: Busy,
    /// Whether a task keeps the time.
    is_timed: bool,
    stored: usize,
    returned: Vec<ReturnedRow>,
    /// The size of the rows in `returned`.
    returned_bytes: usize,
}

impl BulkWriter {
    pub(super) fn new(session: &Arc<ElasticSession>, index: &str) -> Self {
        let config = &session.config;
        let limits =
            BulkLimits { max_rows: config.bulk_rows, max_bytes: config.bulk_bytes, period: config.bulk_period };
        let state = Arc::new(BulkState {
            session: Arc::clone(session),
            index: index.to_owned(),
            action: format!("a bulk into {index:?}").into(),
            limits: SyncMutex::new(limits),
            buffer: Mutex::new(BulkBuffer {
                rows: Vec::new(),
                bytes: 0,
                since: None,
                busy: session.requests.link().not_yet_busy(Work::Row),
                is_timed: false,
                stored: 0,
                returned: Vec::new(),
                returned_bytes: 0,
            }),
        });
        session.writers.add(&state);
        BulkWriter { state: ForkGuarded::new(state) }
    }

    pub(super) fn session(&self) -> Arc<ElasticSession> {
        Arc::clone(&self.state.session)
    }

    /// Sets after how many rows it sends, at least 1. Defaults to that of the configuration.
    pub fn with_max_rows(self, max_rows: usize) -> Self {
        self.state.limits.lock().max_rows = max_rows.max(1);
        self
    }

    /// Sets after how many bytes of documents it sends. Defaults to that of the configuration.
    pub fn with_max_bytes(self, max_bytes: usize) -> Self {
        self.state.limits.lock().max_bytes = max_bytes.max(1);
        self
    }

    /// Sets how long after the first row it sends. Defaults to that of the configuration.
    pub fn with_period(self, period: Duration) -> Self {
        self.state.limits.lock().period = period;
        self
    }

    /// Takes a document, which replaces the one of this id. Without an id the server makes one, and a bulk with such a row
    /// is never sent twice. It waits while a bulk is in flight, and if this row makes one full, until that is answered.
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
    /// with such a row is never sent twice.
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

    /// Sends the rows that there are, and gives the outcome of all rows since the last flush.
    ///
    /// # Errors
    /// [`Error::Closed`] and [`Error::Forked`]. All other problems are those of rows.
    ///
    /// # Cancel safety
    /// Cancel-safe: the rows are sent, and the next flush gives their outcome.
    pub async fn flush(&mut self) -> Result<BulkOutcome, Error> {
        let state = &*self.state;
        state.session.requests.link().check_process()?;
        state.send().await?;
        Ok(state.buffer.lock().await.take_outcome(state))
    }

    async fn put(&mut self, row: Result<BulkRow, BoxError>) -> Result<(), Error> {
        let state = &*self.state;
        let (session, link) = (&state.session, state.session.requests.link());
        link.check_process()?;
        let row = row.map_err(|error| refused(link, &state.action, error))?;
        session.path(&state.action, &[&state.index])?;
        // Fails once the resource is closed.
        session.requests.raw_client()?;
        let mut buffer = state.buffer.lock().await;
        let BulkLimits { max_rows, max_bytes, .. } = *state.limits.lock();
        if let Some(last) = buffer.returned.last()
            && (buffer.returned.len() >= max_rows || buffer.returned_bytes >= max_bytes)
        {
            let text = format!(
                "{} rows were given back, the last because {}; take them by a flush first",
                buffer.returned.len(),
                last.problem
            );
            return Err(refused(link, &state.action, text));
        }
        buffer.take(row);
        let is_full = buffer.rows.len() >= max_rows || buffer.bytes >= max_bytes;
        if is_full || session.writers.is_closing() {
            drop(buffer);
            return state.send().await;
        }
        if !std::mem::replace(&mut buffer.is_timed, true) {
            session.requests.runtime().spawn(keep_time(Arc::downgrade(state)));
        }
        Ok(())
    }
}

impl Drop for BulkWriter {
    fn drop(&mut self) {
        if !ForkGuarded::is_current(&self.state) {
            return;
        }
        // A lock that is held is that of a bulk in flight, which has all rows.
        if let Ok(buffer) = self.state.buffer.try_lock() {
            let (rows, returned) = (buffer.rows.len(), buffer.returned.len());
            if rows + returned > 0 {
                let resource = self.state.session.requests.link().name();
                tracing::warn!(%resource, index = self.state.index, rows, returned, "a bulk writer was dropped with rows");
            }
        }
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
        let due = {
            let Some(state) = writer.upgrade() else { return };
            let mut buffer = state.buffer.lock().await;
            let Some(since) = buffer.since else {
                buffer.is_timed = false;
                return;
            };
            // A period may be too long for a point in time.
            let due = since.checked_add(state.limits.lock().period);
            if due.is_some_and(|due| due <= Instant::now()) {
                state.deliver(&mut buffer).await;
                continue;
            }
            due
        };
        let glance = Instant::now() + GLANCE;
        sleep_until(due.map_or(glance, |due| due.min(glance)).into()).await;
    }
}

impl BulkState {
    /// Sends the rows that there are, in a task that goes on if this future drops.
    async fn send(self: &Arc<Self>) -> Result<(), Error> {
        let state = Arc::clone(self);
        let sending = self.session.requests.runtime().spawn(async move {
            let mut buffer = state.buffer.lock().await;
            state.deliver(&mut buffer).await;
        });
        sending.await.map_err(|_runtime_has_ended| Error::closed(self.session.requests.link().name()))
    }

    async fn deliver(&self, buffer: &mut BulkBuffer) {
        if buffer.rows.is_empty() {
            return;
        }
        let rows = std::mem::take(&mut buffer.rows);
        (buffer.bytes, buffer.since) = (0, None);
        let fresh = self.session.requests.link().not_yet_busy(Work::Row);
        let mut busy = std::mem::replace(&mut buffer.busy, fresh);
        let Delivered { stored, returned } = deliver(&self.session, &self.index, &self.action, rows).await;
        busy.split(stored).done();
        buffer.stored += stored;
        buffer.returned_bytes += returned.iter().map(|returned| returned.row.size()).sum::<usize>();
        buffer.returned.extend(returned);
    }

    /// Sends the rows that there are, and fails if rows were given back, which the writer's owner can still take.
    async fn flush(self: Arc<Self>) -> Result<(), Failure> {
        self.send().await.map_err(Failure::transient)?;
        let buffer = self.buffer.lock().await;
        let Some(first) = buffer.returned.first() else { return Ok(()) };
        let (count, index) = (buffer.returned.len(), &self.index);
        let text = format!("{count} rows for {index:?} were given back, the first because {}", first.problem);
        Err(Failure::transient(text))
    }
}

impl BulkBuffer {
    fn take(&mut self, row: BulkRow) {
        self.since.get_or_insert_with(Instant::now);
        self.bytes += row.size();
        self.rows.push(row);
        self.busy.add(1);
    }

    fn take_outcome(&mut self, state: &BulkState) -> BulkOutcome {
        self.returned_bytes = 0;
        BulkOutcome {
            stored: std::mem::take(&mut self.stored),
            returned: std::mem::take(&mut self.returned),
            resource: Arc::clone(state.session.requests.link().name()),
            action: Arc::clone(&state.action),
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

    /// Sends the rows of each writer, all at once and each within its limit.
    pub(super) async fn flush(&self, link: &Link, limit: Duration) -> Result<(), Failure> {
        // This comes before the writers are listed, so that no row is missed in between.
        self.is_closing.store(true, Ordering::SeqCst);
        let open: Vec<_> = self.open.lock().iter().filter_map(Weak::upgrade).collect();
        let mut flushing = JoinSet::new();
        for writer in open {
            flushing.spawn(async move {
                let index = writer.index.clone();
                let late =
                    |_| Err(Failure::transient(format!("the rows for {index:?} were not sent within {limit:?}")));
                within(limit, writer.flush()).await.unwrap_or_else(late)
            });
        }
        let mut outcome = Ok(());
        while let Some(flushed) = flushing.join_next().await {
            let flushed = flushed.unwrap_or_else(|error| Err(Failure::transient(error)));
            if let Err(error) = &flushed {
                link.warn("rows were not stored", Some(error));
            }
            outcome = outcome.and(flushed);
        }
        outcome
    }
}
