//! Events for threads.

use std::sync::Arc;
use std::time::Duration;

use crate::base::error::Error;
use crate::base::runtime::{block, deadline, park_on, park_until};
use crate::lifecycle::event::Event;
use crate::lifecycle::observers;

/// [`resource_pool::Events`](crate::Events) for threads: an iterator that blocks for the next event.
///
/// ```no_run
/// use resource_pool::blocking::ResourcePool;
///
/// std::thread::spawn(|| {
///     for event in ResourcePool::global().events().flatten() {
///         println!("{event:?}");
///     }
/// });
/// ```
#[derive(Debug)]
pub struct Events {
    events: observers::Events,
    /// Whether the iterator has ended.
    is_over: bool,
}

impl Events {
    /// Waits for the next event. Returns `Ok(None)` if none happens within this time.
    ///
    /// # Errors
    /// [`Error::Closed`] once the pool, its leases and its links are gone; [`Error::InAsyncContext`] on a
    /// current-thread runtime.
    pub fn next_within(&mut self, limit: Duration) -> Result<Option<Event>, Error> {
        let until = deadline(limit);
        match wait(|| park_until(Box::pin(self.events.next()), until))? {
            Some(None) => Err(Error::closed(&Arc::from("the pool"))),
            in_time => Ok(in_time.flatten()),
        }
    }

    /// The next event, if it has happened already.
    pub fn try_next(&mut self) -> Option<Event> {
        self.events.try_next()
    }

    /// The number of events that this subscription has missed so far, because it was read too slowly.
    pub fn missed(&self) -> u64 {
        self.events.missed()
    }
}

/// The iterator ends once the pool, its leases and its links are gone, and after an [`Error::InAsyncContext`] on a
/// current-thread runtime.
impl Iterator for Events {
    type Item = Result<Event, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let next = wait(|| park_on(self.events.next())).transpose();
        self.is_over = !matches!(next, Some(Ok(_)));
        next
    }
}

impl From<observers::Events> for Events {
    fn from(events: observers::Events) -> Self {
        Events { events, is_over: false }
    }
}

fn wait<T>(wait: impl FnOnce() -> T) -> Result<T, Error> {
    block(&Arc::from("the pool"), wait)
}
