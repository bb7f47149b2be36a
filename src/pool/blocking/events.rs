//! Events for threads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::error::Error;
use crate::base::runtime::{LONGEST, block, park_on, park_until};
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
pub struct Events(observers::Events);

impl Events {
    /// The next event, if it happens within this time; `Ok(None)` if none does, or if the pool is gone.
    ///
    /// # Errors
    /// [`Error::InAsyncContext`] on a current-thread runtime.
    pub fn next_within(&mut self, limit: Duration) -> Result<Option<Event>, Error> {
        let until = Instant::now() + limit.min(LONGEST);
        wait(|| park_until(Box::pin(self.0.next()), until).flatten())
    }

    /// The next event, if it has happened already.
    pub fn try_next(&mut self) -> Option<Event> {
        self.0.try_next()
    }

    /// How many events this subscription has missed so far, since it was read too slowly.
    pub fn missed(&self) -> u64 {
        self.0.missed()
    }
}

/// Ends once the pool, its leases and its links are gone. An [`Error::InAsyncContext`] on a current-thread runtime.
impl Iterator for Events {
    type Item = Result<Event, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        wait(|| park_on(self.0.next())).transpose()
    }
}

impl From<observers::Events> for Events {
    fn from(events: observers::Events) -> Self {
        Events(events)
    }
}

fn wait<T>(wait: impl FnOnce() -> T) -> Result<T, Error> {
    block(&Arc::from("the pool"), wait)
}
