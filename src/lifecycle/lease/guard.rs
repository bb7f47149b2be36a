//! [`Lease`], the guard that holds a resource, and [`Claim`], by which an acquire asks for one.

use std::fmt;
use std::ops::Deref;
use std::panic::Location;
use std::sync::Arc;

use crate::base::holder::QuotaId;
use crate::lifecycle::activity::Activity;

/// A resource in use. It derefs to the handle. Dropping it does no I/O and needs no runtime.
///
/// It may be held as long as the program runs. A lease that is merely held delays closing by at most
/// [`held`](crate::pool::config::CloseOptions::held). A lease is tied to the generation that it was taken from. After a
/// loss, the built-in backends bring the connection back under it.
///
/// ```no_run
/// # #[cfg(feature = "mongodb")]
/// # async fn example() -> Result<(), resource_pool::Error> {
/// use resource_pool::{Lease, ResourcePool, mongodb::Client};
///
/// struct Strategy {
///     // A lease may be kept. It costs nothing while it is idle.
///     mongo: Lease<Client>,
/// }
///
/// let strategy = Strategy { mongo: ResourcePool::global().mongo().await? };
/// println!("{} in generation {}", Lease::resource(&strategy.mongo), Lease::generation(&strategy.mongo));
/// # Ok(()) }
/// ```
#[must_use = "the lease ends when this drops"]
pub struct Lease<H: ?Sized> {
    /// `None` only while the lease drops.
    pub(super) held: Option<Box<dyn ErasedLease<H>>>,
}

impl<H: ?Sized> Lease<H> {
    /// The name of the resource.
    pub fn resource(this: &Self) -> &str {
        &this.held().activity().name
    }

    /// The generation that this lease was taken from.
    pub fn generation(this: &Self) -> u64 {
        this.held().generation()
    }

    fn held(&self) -> &dyn ErasedLease<H> {
        self.held.as_deref().unwrap_or_else(|| unreachable!("nobody has a lease that drops"))
    }

    pub(crate) fn activity(this: &Self) -> &Arc<Activity> {
        this.held().activity()
    }

    /// The whole handle behind this lease, if its type is `W`. Some kinds lease only a part of a handle, such as the
    /// driver's client. Exempt from semantic versioning, as [`adapter`](crate::adapter) is.
    pub fn handle_as<W: 'static>(this: &Self) -> Option<&W> {
        this.held().whole().downcast_ref()
    }
}

impl<H: ?Sized> Deref for Lease<H> {
    type Target = H;
    fn deref(&self) -> &H {
        self.held().handle()
    }
}

impl<H: ?Sized> Drop for Lease<H> {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            held.release();
        }
    }
}

impl<H: ?Sized> fmt::Debug for Lease<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("resource", &Lease::resource(self))
            .field("generation", &Lease::generation(self))
            .finish_non_exhaustive()
    }
}

/// A lease of `T`, without the type of the handle that it comes from.
pub(super) trait ErasedLease<T: ?Sized>: Send + Sync {
    fn handle(&self) -> &T;
    /// The whole handle.
    fn whole(&self) -> &dyn std::any::Any;
    fn generation(&self) -> u64;
    fn activity(&self) -> &Arc<Activity>;
    fn release(self: Box<Self>);
}

/// The description of a guard that an acquire asks for: the line of code, the quota, and whether the thread blocks.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    pub(crate) site: &'static Location<'static>,
    /// The quota of an exclusive checkout. `None` for a shared lease.
    pub(crate) quota: Option<QuotaId>,
    /// Whether the claiming thread is blocked until it gets its answer.
    pub(crate) blocks: bool,
}

impl Claim {
    /// The claim for a shared lease, with the line that calls this.
    #[track_caller]
    pub fn shared() -> Self {
        Claim { site: Location::caller(), quota: None, blocks: false }
    }

    /// The line of code that acquires.
    pub fn site(&self) -> &'static Location<'static> {
        self.site
    }

    /// The same claim for a caller whose thread is blocked meanwhile.
    pub fn blocking(self) -> Self {
        Claim { blocks: true, ..self }
    }
}

/// A handle that can be leased as a `T`. Every handle can be leased as itself.
pub trait LeaseAs<T: ?Sized> {
    /// The part of the handle that is leased.
    fn lease_as(&self) -> &T;
}

impl<T> LeaseAs<T> for T {
    fn lease_as(&self) -> &T {
        self
    }
}
