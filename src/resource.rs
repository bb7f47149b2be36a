//! The one extension point: what a backend must be able to do.

use std::fmt;
use std::future::{Future, ready};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::activity::Activity;
use crate::close::Phase;
use crate::error::{BoxError, Error, Failure, Source};
use crate::lease::Holder;
#[cfg(feature = "redis")]
use crate::lease::{Claim, Lease, Provide};
use crate::slot::AnySlot;
#[cfg(feature = "redis")]
use crate::slot::Slot;
#[cfg(feature = "redis")]
use crate::status::State;
use crate::status::Usage;

/// A kind of resource: three verbs, and what else a backend may say about itself.
///
/// The built-in backends implement it too, so a registered resource gets the same life: connected
/// once for all who ask, retried, probed, reconnected, drained and closed in its phase.
///
/// All futures are awaited on the pool's runtime with a limit of their own and may be dropped
/// when that passes, so they must be cancel-safe. They must not block the thread; `ping` runs
/// on the prober's one thread.
///
/// ```
/// use resource_pool::{Failure, Link, Resource, ResourcePool};
///
/// struct Model(&'static str);
/// impl Resource for Model {
///     type Handle = std::sync::Arc<Vec<f64>>;
///     async fn connect(&self, _: &Link) -> Result<Self::Handle, Failure> {
///         Ok(std::sync::Arc::new(vec![0.1, 0.9]))
///     }
///     async fn ping(&self, weights: &Self::Handle) -> Result<(), Failure> {
///         if weights.is_empty() { Err(Failure::transient("no weights")) } else { Ok(()) }
///     }
///     async fn close(&self, _: Self::Handle) -> Result<(), Failure> {
///         Ok(())
///     }
/// }
///
/// # fn main() -> Result<(), resource_pool::Error> {
/// let pool = resource_pool::blocking::ResourcePool::builder().build()?;
/// pool.register("momentum", Model("momentum.bin"))?;
/// assert_eq!(pool.get::<Model>("momentum")?.len(), 2);
/// # Ok(()) }
/// ```
pub trait Resource: Send + Sync + Sized + 'static {
    /// What a lease derefs to. A clone refers to the same connection.
    type Handle: Clone + Send + Sync + 'static;

    /// Makes the connection and proves that it works.
    fn connect(&self, link: &Link) -> impl Future<Output = Result<Self::Handle, Failure>> + Send;

    /// A cheap round trip that proves the server answers.
    fn ping(&self, handle: &Self::Handle) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Says goodbye. Clones that users kept must answer errors afterwards.
    fn close(&self, handle: Self::Handle) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Brings a lost connection back in place, so that leases taken before go on; tried again until
    /// it succeeds. Answers whether it can: unless this is overridden it cannot, and the pool says
    /// goodbye to what is lost (within 500 ms) and connects anew, so that leases taken from then on
    /// have the new handle.
    fn recover(&self, link: &Link, lost: &Self::Handle) -> impl Future<Output = Result<bool, Failure>> + Send {
        let _ = (link, lost);
        ready(Ok(false))
    }

    /// Cuts the streams at once, as `close` would not come back. By default there are none to cut.
    fn cut(&self, handle: &Self::Handle) {
        let _ = handle;
    }

    /// Stops taking work in, as closing begins: consumers are cancelled here.
    fn stop_intake(&self, handle: &Self::Handle) -> impl Future<Output = ()> + Send {
        let _ = handle;
        ready(())
    }

    /// Finishes what is buffered, in the drain: inserters are flushed here.
    fn flush(&self, handle: &Self::Handle) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = handle;
        ready(Ok(()))
    }

    /// Where it is, without credentials, for errors and reports. Defaults to nothing.
    fn endpoint(&self) -> String {
        String::new()
    }

    /// When it closes. Defaults to [`Phase::Models`].
    fn phase(&self) -> Phase {
        Phase::Models
    }

    /// How full it is, as far as the driver lets us measure. By default nothing is known.
    fn usage(&self, handle: &Self::Handle) -> Usage {
        let _ = handle;
        Usage::default()
    }
}

/// What a resource may tell its pool, and ask it. Cheap to clone.
#[derive(Clone)]
pub struct Link {
    pub(crate) activity: Arc<Activity>,
    pub(crate) slot: Weak<dyn AnySlot>,
    pub(crate) acquire_timeout: Duration,
}

impl Link {
    /// The resource's name in the pool.
    pub fn name(&self) -> &Arc<str> {
        &self.activity.name
    }

    /// Where it is, without credentials.
    pub fn endpoint(&self) -> &Arc<str> {
        &self.activity.endpoint
    }

    /// How long an acquire may wait.
    pub fn acquire_timeout(&self) -> Duration {
        self.acquire_timeout
    }

    /// Who holds a lease or a checkout of it.
    pub fn holders(&self) -> Vec<Holder> {
        self.slot.upgrade().map_or_else(Vec::new, |slot| slot.holders())
    }

    /// The connection is lost: readiness falls, and the pool brings it back by
    /// [`recover`](Resource::recover). Says nothing about a generation that is not current.
    pub fn lost(&self, generation: u64, cause: impl Into<BoxError>) {
        if let Some(slot) = self.slot.upgrade() {
            slot.lost(generation, Source::from(cause.into()));
        }
    }

    /// The generation now in use; the one being connected, while that goes on.
    pub fn generation(&self) -> u64 {
        self.slot.upgrade().map_or(0, |slot| slot.generation_or_next())
    }

    /// Counts a piece of work that closing must wait for, until the guard drops.
    pub fn busy(&self, work: Work) -> Busy {
        Busy::new(&self.activity, work)
    }

    /// A lease for what a backend hands out itself.
    #[cfg(feature = "redis")]
    pub(crate) fn lease<R: Resource, T: ?Sized + 'static>(&self, claim: Claim) -> Option<Lease<T>>
    where
        R::Handle: Provide<T>,
    {
        self.slot.upgrade()?.as_any().downcast::<Slot<R>>().ok()?.lease(claim)
    }

    /// Why the connection is gone, while it is.
    #[cfg(feature = "redis")]
    pub(crate) fn trouble(&self) -> Option<Error> {
        let condition = self.slot.upgrade()?.condition();
        condition.failure.filter(|_| matches!(condition.state, State::Broken | State::Connecting))
    }

    /// Waits while the connection is being brought back. Answers at once when it is ready, when
    /// the last attempt failed, and when it is closed.
    ///
    /// # Errors
    /// The failed attempt's error, [`Error::Closed`], or a timeout after the acquire timeout.
    ///
    /// # Cancel safety
    /// Cancelling it cancels nothing else.
    pub async fn ready(&self) -> Result<(), Error> {
        match self.slot.upgrade() {
            Some(slot) => slot.wait_ready().await,
            None => Err(Error::Closed { resource: Arc::clone(&self.activity.name) }),
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Link").field(&self.activity.name).finish()
    }
}

/// Work that closing waits for, as opposed to a handle that is merely held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Work {
    /// A command or query that has been sent and not answered.
    Operation,
    /// A message delivered and not yet acknowledged.
    Delivery,
    /// A message published and not yet confirmed.
    Confirm,
    /// Rows buffered and not yet inserted.
    Insert,
    /// A future or closure given to `run`.
    Main,
}

impl Work {
    pub(crate) const ALL: [Work; 5] = [Work::Operation, Work::Delivery, Work::Confirm, Work::Insert, Work::Main];

    /// The plural, for reports.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Work::Operation => "operations",
            Work::Delivery => "deliveries",
            Work::Confirm => "confirms",
            Work::Insert => "inserts",
            Work::Main => "main",
        }
    }
}

/// Counts one piece of [`Work`] while it lives.
#[must_use = "the work counts as done when this drops"]
pub struct Busy {
    activity: Arc<Activity>,
    work: Work,
}

impl Busy {
    pub(crate) fn new(activity: &Arc<Activity>, work: Work) -> Self {
        activity.begin(work);
        Busy { activity: Arc::clone(activity), work }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.activity.end(self.work);
    }
}

impl fmt::Debug for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Busy").field(&self.work).finish()
    }
}
