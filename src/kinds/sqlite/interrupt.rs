//! [`Interrupt`], by which a statement of SQLite ends that nobody waits for any more, or that takes too long.
//!
//! SQLite runs each connection's statements on a thread of the driver's, and asks a progress handler every few
//! instructions whether to go on. The handler reads the state here, which the guard's task writes. A second handler notes
//! here when SQLite rolls back, which the driver does not notice.
//! Locks: one, which is held only to keep or drop the count of the thread.
//! Orderings: all are relaxed, since each value stands for itself, and the driver's channels order a call against the
//! one before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use once_cell::sync::OnceCell;
use parking_lot::Mutex;
use sqlx::sqlite::LockedSqliteHandle;

use crate::base::error::{Error, TimeoutError};
use crate::kinds::sql::Companion;
use crate::kinds::sqlite::file::FileId;
use crate::kinds::sqlite::threads::CountedThread;
use crate::lifecycle::link::Link;
use crate::net::kill_switch::KillSwitch;

/// Stands for no call in [`Signals::due`].
const NEVER: u64 = u64::MAX;

/// Ends the statements of one connection.
#[derive(Debug)]
pub struct Interrupt {
    signals: Arc<Signals>,
    opened: OnceCell<Opened>,
}

/// The file that a connection has open.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: FileId,
    /// The generation of the connection.
    pub(super) generation: u64,
    /// Counts the connection as one that is wanted.
    _awaited: CountedThread,
}

/// The state that SQLite's handlers read and write. They keep it until the driver's thread closes the file.
#[derive(Debug)]
struct Signals {
    switch: KillSwitch,
    /// The longest time of a statement. Zero is for ever.
    limit: Duration,
    opened: Instant,
    /// The time at which the call in flight is over, in microseconds after `opened`.
    due: AtomicU64,
    is_late: AtomicBool,
    is_stopped: AtomicBool,
    is_left: AtomicBool,
    /// Whether SQLite has rolled back since the last transaction was begun.
    is_rolled_back: AtomicBool,
    /// Counts the driver's thread, until it closes the file or the connection is its user's.
    running: Mutex<Option<CountedThread>>,
}

/// How many instructions of SQLite's machine pass between two questions whether a statement may go on. They take some
/// ten microseconds.
const INSTRUCTIONS: i32 = 1000;

impl Interrupt {
    /// Sets the handlers of this connection, which has this file open.
    pub(super) fn attach(
        &self,
        handle: &mut LockedSqliteHandle<'_>,
        file: FileId,
        generation: u64,
        awaited: CountedThread,
    ) {
        let signals = Arc::clone(&self.signals);
        handle.set_progress_handler(INSTRUCTIONS, move || signals.goes_on());
        let signals = Arc::clone(&self.signals);
        handle.set_rollback_hook(move || signals.is_rolled_back.store(true, Relaxed));
        let _nobody_else_sets_it = self.opened.set(Opened { file, generation, _awaited: awaited });
    }

    /// Keeps the count of the driver's thread.
    pub(super) fn keep_thread(&self, running: CountedThread) {
        *self.signals.running.lock() = Some(running);
    }

    /// The count of the driver's thread, for a task that waits for its end.
    pub(super) fn take_thread(&self) -> Option<CountedThread> {
        self.signals.running.lock().take()
    }

    /// The file that the connection has open.
    pub(super) fn opened(&self) -> Option<&Opened> {
        self.opened.get()
    }
}

impl Signals {
    /// Whether the statement may go on.
    fn goes_on(&self) -> bool {
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
        let signals = Signals {
            switch: switch.clone(),
            limit,
            opened: Instant::now(),
            due: AtomicU64::new(NEVER),
            is_late: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
            is_left: AtomicBool::new(false),
            is_rolled_back: AtomicBool::new(false),
            running: Mutex::new(None),
        };
        Interrupt { signals: Arc::new(signals), opened: OnceCell::new() }
    }

    fn begin(&self) {
        let Signals { limit, opened, due, is_late, .. } = &*self.signals;
        if !limit.is_zero() {
            is_late.store(false, Relaxed);
            due.store(micros(opened.elapsed().saturating_add(*limit)).min(NEVER - 1), Relaxed);
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

    fn begun(&self) {
        self.signals.is_rolled_back.store(false, Relaxed);
    }

    fn is_undone(&self) -> bool {
        self.signals.is_rolled_back.load(Relaxed)
    }

    fn leave(&self) {
        self.signals.is_left.store(true, Relaxed);
        drop(self.take_thread());
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
        // A single statement has left nothing behind, since SQLite undoes one that is interrupted.
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
