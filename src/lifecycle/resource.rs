//! The one extension point: what a backend must be able to do.

use std::future::{Future, ready};

use crate::base::error::Failure;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::link::Link;
use crate::lifecycle::status::Usage;

/// A kind of resource: three verbs, and what else a backend may say about itself.
///
/// The built-in backends implement it too, so a registered resource gets the same life: connected
/// once for all who ask, retried, probed, reconnected, drained and closed in its phase.
///
/// All futures are awaited on the pool's runtime, and those of `ping` and `probe` on the prober's, with a limit of their own. They
/// may be dropped when that passes, so they must be cancel-safe, and they must not block the thread.
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
    /// What a lease derefs to. A clone refers to the same connection; it is made under a lock, so that it must neither
    /// block nor use the pool.
    type Handle: Clone + Send + Sync + 'static;

    /// Makes the connection and proves that it works.
    fn connect(&self, link: &Link) -> impl Future<Output = Result<Self::Handle, Failure>> + Send;

    /// A cheap round trip that proves the server answers and serves this user. Health is made of it.
    fn ping(&self, handle: &Self::Handle) -> impl Future<Output = Result<(), Failure>> + Send;

    /// How the prober asks whether the server lives, twice a second by default. Defaults to [`ping`](Self::ping); a
    /// backend overrides it where a ping costs what users pay for, such as their quota.
    fn probe(&self, handle: &Self::Handle) -> impl Future<Output = Result<(), Failure>> + Send {
        self.ping(handle)
    }

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

    /// Whether a connect that is given up goes on all the same, as calls do that block. An attempt at it then lasts as long
    /// as the acquire that asked for it waits, if that is longer than
    /// [`connect_timeout`](crate::lifecycle::options::Options::connect_timeout). Defaults to `false`.
    fn connects_uncut(&self) -> bool {
        false
    }

    /// Where it is, without credentials, for errors and reports. Defaults to nothing.
    fn endpoint(&self) -> String {
        String::new()
    }

    /// When it closes. Defaults to [`Phase::Models`].
    fn phase(&self) -> Phase {
        Phase::Models
    }

    /// How full it is, as far as the driver lets us measure. By default nothing is known. Asked on the thread that asks for
    /// the pool's status, so it must not block; closing waits half a second for it.
    fn usage(&self, handle: &Self::Handle) -> Usage {
        let _ = handle;
        Usage::default()
    }
}
