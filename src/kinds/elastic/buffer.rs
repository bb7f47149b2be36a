//! The rows of a bulk writer, from the moment that it takes them until its owner takes their outcome.
//!
//! A `BulkState` keeps a [`BulkBuffer`] under a lock that is held for a look only. A `RowDelivery` takes all rows out, and
//! puts the outcome of each back in. So a row is in the buffer, in one delivery, or counted as stored.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::kinds::elastic::row::{BulkOutcome, BulkRow, ReturnedRow, RowProblem};
use crate::lifecycle::busy::Busy;

/// The limits at which a writer sends.
#[derive(Clone, Copy)]
pub(super) struct BulkLimits {
    pub(super) max_rows: usize,
    pub(super) max_bytes: usize,
    pub(super) period: Duration,
}

impl BulkLimits {
    fn are_reached(self, rows: usize, bytes: usize) -> bool {
        rows >= self.max_rows || bytes >= self.max_bytes
    }
}

/// The rows that are not sent yet, and the outcome of those that were.
pub(super) struct BulkBuffer {
    pub(super) limits: BulkLimits,
    rows: Vec<BulkRow>,
    /// The size of `rows`.
    bytes: usize,
    /// When the first of `rows` came.
    since: Option<Instant>,
    /// Counts `rows` as work.
    busy: Busy,
    /// The number of rows that a delivery has.
    in_flight: usize,
    /// Set while a task keeps the time.
    is_timed: bool,
    stored: usize,
    returned: Vec<ReturnedRow>,
    /// The size of the rows in `returned`.
    returned_bytes: usize,
}

impl BulkBuffer {
    /// `busy` counts nothing yet.
    pub(super) fn new(limits: BulkLimits, busy: Busy) -> Self {
        BulkBuffer {
            limits,
            rows: Vec::new(),
            bytes: 0,
            since: None,
            busy,
            in_flight: 0,
            is_timed: false,
            stored: 0,
            returned: Vec::new(),
            returned_bytes: 0,
        }
    }

    /// Takes a row, and tells whether a limit is reached.
    ///
    /// # Errors
    /// A whole bulk of rows was given back, and nobody has taken them.
    pub(super) fn take(&mut self, row: BulkRow) -> Result<bool, String> {
        if let Some(last) = self.returned.last()
            && self.limits.are_reached(self.returned.len(), self.returned_bytes)
        {
            let count = self.returned.len();
            return Err(format!(
                "{count} rows were given back, the last because {}; take them by a flush first",
                last.problem
            ));
        }
        self.since.get_or_insert_with(Instant::now);
        self.bytes += row.size();
        self.rows.push(row);
        self.busy.add(1);
        Ok(self.limits.are_reached(self.rows.len(), self.bytes))
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.rows.is_empty()
    }

    /// `true` if the caller has to begin the task that keeps the time.
    pub(super) fn begin_timing(&mut self) -> bool {
        !std::mem::replace(&mut self.is_timed, true)
    }

    /// When the rows are to be sent, or looked at again at the latest. `None` if there are none, and then the task that keeps
    /// the time ends.
    pub(super) fn due(&mut self, latest: Instant) -> Option<Instant> {
        let Some(since) = self.since else {
            self.is_timed = false;
            return None;
        };
        // A period may be too long for a point in time.
        Some(since.checked_add(self.limits.period).map_or(latest, |due| due.min(latest)))
    }

    /// Takes all rows out for a delivery, with the guard that counts them. `None` if there are none.
    pub(super) fn begin(&mut self) -> Option<(Vec<BulkRow>, Busy)> {
        if self.rows.is_empty() {
            return None;
        }
        let rows = std::mem::take(&mut self.rows);
        (self.bytes, self.since) = (0, None);
        self.in_flight += rows.len();
        let busy = self.busy.split(rows.len());
        Some((rows, busy))
    }

    /// Notes the outcome of rows of a delivery.
    pub(super) fn settle(&mut self, stored: usize, returned: Vec<ReturnedRow>) {
        self.in_flight = self.in_flight.saturating_sub(stored + returned.len());
        self.stored += stored;
        self.give_back(returned);
    }

    /// Gives back the rows that are not sent yet. The caller drops the guard that counts them, once the lock is free.
    pub(super) fn give_up(&mut self, problem: &RowProblem) -> Option<Busy> {
        let (rows, busy) = self.begin()?;
        self.settle(0, rows.into_iter().map(|row| ReturnedRow { row, problem: problem.clone() }).collect());
        Some(busy)
    }

    fn give_back(&mut self, returned: Vec<ReturnedRow>) {
        self.returned_bytes += returned.iter().map(|returned| returned.row.size()).sum::<usize>();
        self.returned.extend(returned);
    }

    /// The outcome of all rows since it was last taken.
    pub(super) fn take_outcome(&mut self, resource: &Arc<str>, action: &Arc<str>) -> BulkOutcome {
        self.returned_bytes = 0;
        BulkOutcome {
            stored: std::mem::take(&mut self.stored),
            returned: std::mem::take(&mut self.returned),
            resource: Arc::clone(resource),
            action: Arc::clone(action),
        }
    }

    /// How many rows have no outcome yet.
    pub(super) fn open(&self) -> usize {
        self.rows.len() + self.in_flight
    }

    /// How many rows were given back and not taken, and the first of them.
    pub(super) fn returned(&self) -> Option<(usize, &ReturnedRow)> {
        Some((self.returned.len(), self.returned.first()?))
    }
}
