//! [`Busy`], a guard that counts work in flight.

use std::fmt;
use std::sync::Arc;

use crate::lifecycle::activity::Activity;
use crate::lifecycle::work::Work;

/// A guard that counts pieces of [`Work`] while they are in flight.
#[must_use = "the work counts as given up when this drops"]
pub struct Busy {
    activity: Arc<Activity>,
    work: Work,
    count: usize,
}

impl Busy {
    pub(crate) fn new(activity: &Arc<Activity>, work: Work) -> Self {
        let mut busy = Busy { activity: Arc::clone(activity), work, count: 0 };
        busy.add(1);
        busy
    }

    /// A guard that counts nothing yet.
    pub(crate) fn none(activity: &Arc<Activity>, work: Work) -> Self {
        Busy { activity: Arc::clone(activity), work, count: 0 }
    }

    /// Counts `count` more pieces.
    pub fn add(&mut self, count: usize) {
        self.activity.counters.begin(self.work, count);
        self.count += count;
    }

    /// Counts the work as done. If the guard drops without this call, the work counts as given up: it was cut off or
    /// cancelled. The report of a close counts done work and given-up work apart.
    pub fn done(mut self) {
        self.finish(true);
    }

    /// Counts the work as done or as given up, and counts nothing from then on. Returns whether the report of a close
    /// counts it.
    pub fn finish(&mut self, is_done: bool) -> bool {
        self.activity.end(self.work, std::mem::take(&mut self.count), is_done)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.count > 0 {
            self.finish(false);
        }
    }
}

impl fmt::Debug for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Busy").field("work", &self.work).field("count", &self.count).finish()
    }
}
