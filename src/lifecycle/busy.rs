//! A guard that counts work.

use std::fmt;
use std::sync::Arc;

use crate::lifecycle::activity::Activity;
use crate::lifecycle::work::Work;

/// Counts pieces of [`Work`] while they go on.
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

    /// One that counts nothing yet.
    pub(crate) fn none(activity: &Arc<Activity>, work: Work) -> Self {
        Busy { activity: Arc::clone(activity), work, count: 0 }
    }

    /// Counts so many more.
    pub fn add(&mut self, count: usize) {
        self.activity.counters.begin(self.work, count);
        self.count += count;
    }

    /// It came to its end, which the report of a close counts apart from what is given up: cut
    /// off, cancelled, or dropped without this.
    pub fn done(mut self) {
        self.end(true);
    }

    /// Ends what is counted as done, or as given up, and counts nothing from then on. Answers whether a report counts it.
    pub fn end(&mut self, is_done: bool) -> bool {
        self.activity.end(self.work, std::mem::take(&mut self.count), is_done)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.count > 0 {
            self.end(false);
        }
    }
}

impl fmt::Debug for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Busy").field("work", &self.work).field("count", &self.count).finish()
    }
}
