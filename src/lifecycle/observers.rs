//! Who watches what happens to the resources of a pool, and what they have not been told yet.

use std::fmt;
use std::sync::Arc;

use once_cell::sync::OnceCell;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::broadcast::{Receiver, Sender};

use crate::base::process::Process;
use crate::base::sync::{Notify, until};
use crate::lifecycle::event::Event;

/// How many events a subscription holds back unless the options say otherwise.
pub(crate) const KEPT: usize = 1024;

/// The subscriptions to a pool's events. They cost nothing until there is one, and telling them never waits.
pub(crate) struct Observers {
    kept: usize,
    process: &'static Process,
    /// Nobody waits in the channel itself, so that an event can be put into it in the order of a lock that is held: a
    /// waker is anybody's code.
    events: OnceCell<Sender<Event>>,
    happened: Arc<Notify>,
}

impl Default for Observers {
    fn default() -> Self {
        Observers::new(KEPT)
    }
}

impl Observers {
    /// Each subscription holds back so many events, or the next larger power of two, before it misses the oldest.
    pub(crate) fn new(kept: usize) -> Self {
        Observers { kept, process: Process::current(), events: OnceCell::new(), happened: Arc::new(Notify::new()) }
    }

    pub(crate) fn subscribe(&self) -> Events {
        let events = self.events.get_or_init(|| Sender::new(self.kept));
        Events { events: events.subscribe(), happened: Arc::clone(&self.happened), missed: 0 }
    }

    /// Whether anybody is to be told. In a forked child the lock of the channel may be held for ever.
    pub(crate) fn are_there(&self) -> bool {
        self.events.get().is_some_and(|events| events.receiver_count() > 0) && self.process.is_current()
    }

    /// Tells the log too. A logger is anybody's code, so no lock may be held.
    pub(crate) fn tell(&self, event: Event) {
        event.log();
        self.keep(event);
        self.wake();
    }

    /// Keeps it for each subscription. Whoever waits for one is to be woken once no lock is held.
    pub(crate) fn keep(&self, event: Event) {
        if self.are_there()
            && let Some(events) = self.events.get()
        {
            // An error says that the last subscription has just been dropped.
            let _nobody = events.send(event);
        }
    }

    /// Wakes those who wait for what was kept.
    pub(crate) fn wake(&self) {
        if self.are_there() {
            self.happened.notify_waiters();
        }
    }
}

impl Drop for Observers {
    fn drop(&mut self) {
        drop(self.events.take());
        self.happened.notify_waiters();
    }
}

/// A subscription to what happens to the resources of a pool: everything from
/// [`events()`](crate::ResourcePool::events) on. It needs no runtime of the pool's.
///
/// Nothing waits for whoever reads it. It holds back as many events as the option
/// [`events`](crate::config::Options::events) says, 1,024 by default; whoever is slower misses the oldest and is told how
/// many.
///
/// ```no_run
/// use resource_pool::{ResourcePool, What};
///
/// # async fn watch() {
/// let mut events = ResourcePool::global().events();
/// while let Some(event) = events.next().await {
///     if let What::Lost { error, .. } = event.what {
///         eprintln!("generation {} is gone: {error}", event.generation);
///     }
/// }
/// # }
/// ```
pub struct Events {
    events: Receiver<Event>,
    happened: Arc<Notify>,
    missed: u64,
}

impl Events {
    /// The next event; `None` once the pool, its leases and its links are gone.
    ///
    /// # Cancel safety
    /// Cancel-safe: no event is lost.
    pub async fn next(&mut self) -> Option<Event> {
        let happened = Arc::clone(&self.happened);
        let next = || match self.take() {
            Ok(event) => Some(Some(event)),
            Err(TryRecvError::Empty) => None,
            Err(_the_pool_is_gone) => Some(None),
        };
        until(&happened, next).await
    }

    /// The next event, if it has happened already.
    pub fn try_next(&mut self) -> Option<Event> {
        self.take().ok()
    }

    /// How many events this subscription has missed so far, since it was read too slowly.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    fn take(&mut self) -> Result<Event, TryRecvError> {
        loop {
            match self.events.try_recv() {
                Err(TryRecvError::Lagged(missed)) => self.missed += missed,
                taken => return taken,
            }
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Events { events, missed, .. } = self;
        f.debug_struct("Events").field("waiting", &events.len()).field("missed", missed).finish()
    }
}
