//! The counts of a life's connections, which go on from handle to handle.
//!
//! A resource counts for one handle. The life keeps the counts of the handles before, so that the counters of
//! [`Usage`](crate::lifecycle::status::Usage) never fall.

use super::{Life, LifeState};
use crate::lifecycle::status::Counters;

impl<H: Clone + Send + Sync + 'static> Life<H> {
    /// The handle, and the counts of the connections of all handles before it.
    pub(crate) fn handle_and_counted(&self) -> (Option<H>, Counters) {
        let inner = self.inner.lock();
        (inner.handle.clone(), inner.counted)
    }
}

impl<H> LifeState<H> {
    /// Takes the handle out. `counters` are the counts of its connections and of those before, or `None` if they are
    /// not known.
    pub(super) fn take_handle(&mut self, counters: Option<Counters>) -> Option<H> {
        self.counted = counters.unwrap_or(self.counted);
        self.handle.take()
    }
}
