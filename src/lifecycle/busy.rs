//! [`Busy`], a guard that counts work in flight.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;
#[cfg(feature = "metrics")]
use std::time::Instant;

use crate::lifecycle::activity::{Activity, WorkShard};
#[cfg(feature = "metrics")]
use crate::lifecycle::measured::Measure;
use crate::lifecycle::work::Work;

/// The call that tells the meter whether work that has ended was done.
type TellMeter = Box<dyn FnOnce(bool) + Send>;

/// A guard that counts pieces of [`Work`] while they are in flight.
#[must_use = "the work counts as given up when this drops"]
pub struct Busy {
    activity: Arc<Activity>,
    work: Work,
    count: usize,
    shard: WorkShard,
    /// When the first piece began, if the pool measures.
    #[cfg(feature = "metrics")]
    began: Option<Instant>,
}

impl Busy {
    pub(crate) fn new(activity: &Arc<Activity>, work: Work) -> Self {
        let mut busy = Busy::none(activity, work);
        busy.add(1);
        busy
    }

    /// A guard that counts nothing yet.
    pub(crate) fn none(activity: &Arc<Activity>, work: Work) -> Self {
        Busy {
            activity: Arc::clone(activity),
            work,
            count: 0,
            shard: WorkShard::here(),
            #[cfg(feature = "metrics")]
            began: None,
        }
    }

    /// Counts `count` more pieces.
    pub fn add(&mut self, count: usize) {
        if self.is_over() {
            self.shard = WorkShard::here();
            #[cfg(feature = "metrics")]
            {
                self.began = self.activity.metered();
            }
        }
        self.activity.counters.begin(self.shard, self.work, count);
        self.count += count;
    }

    /// Takes `count` of its pieces, or all if it has fewer, into a guard of their own, because they end otherwise than
    /// the rest.
    pub fn split(&mut self, count: usize) -> Busy {
        let count = count.min(self.count);
        self.count -= count;
        Busy {
            activity: Arc::clone(&self.activity),
            work: self.work,
            count,
            shard: self.shard,
            #[cfg(feature = "metrics")]
            began: self.began,
        }
    }

    /// Counts the work as done. If the guard drops without this call, the work counts as given up: it was cut off or
    /// cancelled. The report of a close counts done work and given-up work apart.
    pub fn done(mut self) {
        self.finish(true);
    }

    /// Whether it counts nothing, or nothing any more.
    pub(crate) fn is_over(&self) -> bool {
        self.count == 0
    }

    /// Counts the work as done or as given up, and counts nothing from then on. Returns whether the report of a close
    /// counts it.
    pub fn finish(&mut self, is_done: bool) -> bool {
        let (counted, _took) = self.end(is_done);
        // The meter is code of users, and closing does not wait for it.
        #[cfg(feature = "metrics")]
        if let Some((took, count)) = _took {
            self.activity.measure(took, Measure::Work(self.work), count, is_done);
        }
        counted
    }

    /// Counts the work as done, for a kind that learns only a moment later whether the work was cut off. Returns
    /// whether the report of a close counts it, and the call that then tells the listener of `on_measured` whether the
    /// work was done. If the call drops, the listener never hears of the work. It is `None` if the pool does not measure.
    pub(crate) fn finish_untold(&mut self) -> (bool, Option<TellMeter>) {
        let (counted, _took) = self.end(true);
        #[cfg(feature = "metrics")]
        if let Some((took, count)) = _took {
            let (activity, measure) = (Arc::clone(&self.activity), Measure::Work(self.work));
            return (counted, Some(Box::new(move |is_done| activity.measure(took, measure, count, is_done))));
        }
        (counted, None)
    }

    /// Ends the work. Returns whether the report of a close counts it and, if the pool measures, how long it took and
    /// how many pieces it was.
    #[inline]
    fn end(&mut self, is_done: bool) -> (bool, Option<(Duration, usize)>) {
        let count = std::mem::take(&mut self.count);
        let counted = self.activity.end(self.shard, self.work, count, is_done);
        #[cfg(feature = "metrics")]
        return (counted, self.began.take().filter(|_| count > 0).map(|began| (began.elapsed(), count)));
        #[cfg(not(feature = "metrics"))]
        (counted, None)
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

#[cfg(all(test, not(model)))]
mod tests {
    use std::thread;

    use super::*;
    use crate::base::clock::Moment;

    /// More threads than there are shards begin the work, and this one ends it.
    #[test]
    fn work_ends_where_it_began() {
        let activity = Activity::new("name", None, String::new(), &Arc::default());
        let begin = || thread::scope(|scope| scope.spawn(|| Busy::new(&activity, Work::Operation)).join().unwrap());
        let mut begun: Vec<Busy> = (0..20).map(|_| begin()).collect();
        assert_eq!(activity.counters.now(), [(Work::Operation, 20)]);
        begun.drain(..7).for_each(Busy::done);
        assert_eq!(activity.counters.now(), [(Work::Operation, 13)]);
        assert!(activity.counters.ended_within(Duration::from_secs(60), Moment::now()));
        drop(begun);
        assert_eq!(activity.counters.now(), []);
    }

    #[test]
    fn a_part_ends_otherwise_than_the_rest() {
        let activity = Activity::new("name", None, String::new(), &Arc::default());
        let mut rows = Busy::none(&activity, Work::Row);
        rows.add(5);
        let stored = rows.split(3);
        assert_eq!((stored.count, rows.count, rows.split(9).count), (3, 2, 2));
        assert_eq!(activity.counters.now(), [(Work::Row, 3)], "the nine were two, which have dropped");
        stored.done();
        assert_eq!(activity.counters.now(), []);
    }
}
