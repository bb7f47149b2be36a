//! [`Resource`], the one extension point: the verbs that a backend has to implement.

use std::future::{Future, ready};

use crate::base::error::Failure;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::link::Link;
use crate::lifecycle::status::Usage;

/// A kind of resource: three verbs, and further facts that a backend may give.
///
/// The built-in backends implement it too, so a registered resource gets the same life. It is connected once for all
/// callers, retried, probed, reconnected, drained and closed in its phase.
///
/// The pool awaits all futures on its runtime, and those of `ping` and `probe` on the prober's, each with a limit of
/// its own. A future may be dropped when its limit passes, so it must be cancel-safe. It must not block the thread.
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
    /// The type that a lease derefs to. A clone refers to the same connection. It is made under a lock, so the clone
    /// must neither block nor use the pool.
    type Handle: Clone + Send + Sync + 'static;

    /// Makes the connection and proves that it works.
    fn connect(&self, link: &Link) -> impl Future<Output = Result<Self::Handle, Failure>> + Send;

    /// A cheap round trip that proves that the server answers and serves this user. Health checks use it.
    fn ping(&self, handle: &Self::Handle) -> impl Future<Output = Result<(), Failure>> + Send;

    /// The prober's question whether the server is alive, twice a second by default. Defaults to [`ping`](Self::ping).
    /// A backend overrides it if a ping costs something that users pay for, such as their quota.
    fn probe(&self, handle: &Self::Handle) -> impl Future<Output = Result<(), Failure>> + Send {
        self.ping(handle)
    }

    /// Disconnects in good order. Clones that users kept must return errors afterwards.
    fn close(&self, handle: Self::Handle) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Brings a lost connection back in place, so that leases taken before go on. The pool tries again until it
    /// succeeds. Returns whether the backend can do this. By default it cannot. The pool then disconnects the lost
    /// handle (within 500 ms) and connects anew, so that leases taken from then on have the new handle.
    fn recover(&self, link: &Link, lost: &Self::Handle) -> impl Future<Output = Result<bool, Failure>> + Send {
        let _ = (link, lost);
        ready(Ok(false))
    }

    /// Replaces the connections while the resource goes on. Idle ones are closed, those in use are closed as they come
    /// back, and users get new ones. No user's call may fail by it. Returns whether the backend can do this. By default
    /// it cannot, and [`ResourcePool::refresh`](crate::ResourcePool::refresh) answers an error. It may take
    /// [`connect_timeout`](crate::lifecycle::options::Options::connect_timeout).
    fn refresh(&self, handle: &Self::Handle) -> impl Future<Output = Result<bool, Failure>> + Send {
        let _ = handle;
        ready(Ok(false))
    }

    /// Sets the most connections from now on, at least 1, and returns whether the backend can do this. By default it
    /// cannot. Surplus connections are closed once they are idle, and callers who wait get the new ones. This runs on
    /// the thread that asks for it, so it must not block.
    fn resize(&self, handle: &Self::Handle, max: usize) -> bool {
        let _ = (handle, max);
        false
    }

    /// Cuts the streams at once, after a loss, or when `close` would not come back. By default there are none to cut.
    fn cut(&self, handle: &Self::Handle) {
        let _ = handle;
    }

    /// Stops the intake of work, as closing begins. Consumers are cancelled here.
    fn stop_intake(&self, handle: &Self::Handle) -> impl Future<Output = ()> + Send {
        let _ = handle;
        ready(())
    }

    /// Finishes buffered work, in the drain. Inserters are flushed here.
    fn flush(&self, handle: &Self::Handle) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = handle;
        ready(Ok(()))
    }

    /// Whether a connect that is given up goes on all the same, as a blocking call does. An attempt then lasts as long
    /// as the acquire that asked for it waits, if that is longer than
    /// [`connect_timeout`](crate::lifecycle::options::Options::connect_timeout). Defaults to `false`.
    fn connects_uncut(&self) -> bool {
        false
    }

    /// The endpoint, without credentials, for errors and reports, as in `lines://host:7/x`. Defaults to an empty one.
    ///
    /// The pool leaves out a login all the same, and all that follows `?`, `#`, `;` or `=`. A URL that can be read in
    /// two ways, as `lines://user:pa/ss@host`, keeps its scheme alone. A text that is no URL is left out if it has
    /// `@`, `=` or `://` in it. `%40` counts as `@`.
    fn endpoint(&self) -> String {
        String::new()
    }

    /// The phase in which it closes. Defaults to [`Phase::Models`].
    fn phase(&self) -> Phase {
        Phase::Models
    }

    /// How full it is, as far as the driver can tell. By default nothing is known. This runs on the thread that asks
    /// for the pool's status, so it must not block. Closing waits for it at most half a second as it begins, and as
    /// long at the end if time is left.
    ///
    /// Its counters count for this handle, from zero. The pool adds those of the handles before, and keeps the larger of
    /// each, so that none falls. It asks a lost handle once more on a thread of its own, for which nothing waits. While
    /// that hangs, or if no thread can be had, no lost handle is asked, and counts that it has not told before are left
    /// out.
    fn usage(&self, handle: &Self::Handle) -> Usage {
        let _ = handle;
        Usage::default()
    }
}
