//! [`Interrupt`], by which a statement of SQLite ends that nobody waits for any more, or that takes too long.
//!
//! SQLite runs each connection's statements on a thread of the driver's, and asks a progress handler every few
//! instructions whether to go on. The handler reads the state here, which the guard's task writes.
//! Orderings: all are relaxed, since each value stands for itself, and the driver's channels order a call against the
//! one before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use once_cell::sync::OnceCell;

use crate::base::error::{Error, TimeoutError};
use crate::kinds::sql::Companion;
use crate::kinds::sqlite::file::FileId;
use crate::lifecycle::link::Link;
use crate::net::kill_switch::KillSwitch;

/// Stands for no call in [`Signals::due`].
const NEVER: u64 = u64::MAX;

/// Ends the statements of one connection.
#[derive(Debug)]
pub struct Interrupt {
    pub(super) signals: Arc<Signals>,
    /// The file that the connection has open, and the generation of the connection.
    pub(super) file: OnceCell<(FileId, u64)>,
}

/// The state that the progress handler reads.
#[derive(Debug)]
pub(super) struct Signals {
    switch: KillSwitch,
    /// The longest time of a statement. Zero is for ever.
    limit: Duration,
    opened: Instant,
    /// The time at which the call in flight is over, in microseconds after `opened`.
    due: AtomicU64,
    is_late: AtomicBool,
    is_stopped: AtomicBool,
    is_left: AtomicBool,
}

impl Signals {
    /// Whether the statement may go on.
    pub(super) fn goes_on(&self) -> bool {
        if self.is_left.load(Relaxed) {
            return true;
        }
        if self.is_stopped.load(Relaxed) || self.switch.is_cut() {
            return false;
        }
        let due = self.due.load(Relaxed);
        let is_late = due != NEVER && micros(self.opened.elapsed()) >= due;
        if is_late {
            self.is_late.store(true, Relaxed);
        }
        !is_late
    }
}

impl Companion for Interrupt {
    fn new(switch: &KillSwitch, limit: Duration) -> Self {
        let (due, [is_late, is_stopped, is_left]) = (AtomicU64::new(NEVER), [(); 3].map(|()| AtomicBool::new(false)));
        let (switch, opened) = (switch.clone(), Instant::now());
        let signals = Arc::new(Signals { switch, limit, opened, due, is_late, is_stopped, is_left });
        Interrupt { signals, file: OnceCell::new() }
    }

    fn begin(&self) {
        let Signals { limit, opened, due, is_late, .. } = &*self.signals;
        if !limit.is_zero() {
            is_late.store(false, Relaxed);
            due.store(micros(opened.elapsed() + *limit).min(NEVER - 1), Relaxed);
        }
    }

    fn end(&self) {
        self.signals.due.store(NEVER, Relaxed);
    }

    fn stop(&self) {
        self.signals.is_stopped.store(true, Relaxed);
    }

    fn is_stopped(&self) -> bool {
        self.signals.is_stopped.load(Relaxed)
    }

    fn leave(&self) {
        self.signals.is_left.store(true, Relaxed);
    }

    fn cause(&self, link: &Link, error: &sqlx::Error) -> Option<Error> {
        const INTERRUPTED: i32 = 9;
        let Signals { switch, limit, is_late, .. } = &*self.signals;
        if super::errors::code(error) != Some(INTERRUPTED) {
            return None;
        }
        if switch.is_cut() {
            return Some(switch.cause().cloned().unwrap_or_else(|| link.why_cut()));
        }
        // The statement has left nothing behind, since SQLite undoes one that is interrupted.
        let late = || TimeoutError::new(link.name(), link.endpoint(), "a statement", *limit);
        is_late.load(Relaxed).then(|| link.told(Error::Timeout(Arc::new(late()))))
    }
}

impl Drop for Interrupt {
    /// Ends what still runs on a connection that was given up before it was handed out.
    fn drop(&mut self) {
        self.stop();
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(NEVER)
}
