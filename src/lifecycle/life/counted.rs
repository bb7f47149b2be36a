//! [`HandleCounts`], the counts of a life's connections, which go on from handle to handle.
//!
//! A resource counts for one handle. The life keeps the most that each handle has told, so that the counters of
//! [`Usage`](crate::lifecycle::status::Usage) never fall.

use super::{Life, LifeState};
use crate::lifecycle::status::Counters;

/// The counts of the connections of all handles of a life.
#[derive(Default)]
pub(super) struct HandleCounts {
    /// The number of handles that are gone. An answer of a handle names the turn of that handle.
    turn: u64,
    /// The most that the present handle has told.
    present: Counters,
    /// The most that the handle before it has told, whose answer may come late.
    last: Counters,
    /// The sum of all handles before those.
    earlier: Counters,
}

impl HandleCounts {
    fn total(&self) -> Counters {
        self.earlier.plus(self.last).plus(self.present)
    }

    fn end_turn(&mut self) {
        self.turn += 1;
        self.earlier = self.earlier.plus(self.last);
        self.last = std::mem::take(&mut self.present);
    }
}

impl<H: Clone + Send + Sync + 'static> Life<H> {
    /// The handle, and its turn for [`count`](Life::count).
    pub(crate) fn handle_in_turn(&self) -> (Option<H>, u64) {
        let inner = self.inner.lock();
        (inner.handle.clone(), inner.counted.turn)
    }

    /// The counts of all handles, as far as the handles have told.
    pub(crate) fn counted(&self) -> Counters {
        self.inner.lock().counted.total()
    }

    /// Notes what the handle of this turn tells, and returns the counts of all handles. A handle may tell until the one
    /// after it is gone too.
    pub(crate) fn count(&self, turn: u64, told: Counters) -> Counters {
        let counted = &mut self.inner.lock().counted;
        if turn == counted.turn {
            counted.present = counted.present.most(told);
        } else if turn + 1 == counted.turn {
            counted.last = counted.last.most(told);
        }
        counted.total()
    }
}

impl<H> LifeState<H> {
    /// Takes the handle out, and ends its turn.
    pub(super) fn take_handle(&mut self) -> Option<H> {
        let handle = self.handle.take();
        if handle.is_some() {
            self.counted.end_turn();
        }
        handle
    }
}
