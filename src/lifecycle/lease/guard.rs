//! Guards: what holds a resource, and how an acquire asks for one.

use std::fmt;
use std::ops::Deref;
use std::panic::Location;
use std::sync::Arc;

use crate::base::holder::QuotaId;
use crate::lifecycle::activity::Activity;

/// A resource in use. Derefs to the handle; dropping it does no I/O and needs no runtime.
///
/// It may be held for the life of a strategy: one that is merely held delays closing by at most
/// [`held`](crate::pool::config::CloseOptions::held). A lease is tied to the generation that it was
/// taken from; the built-in backends come back under it after a loss.
#[must_use = "the lease ends when this drops"]
pub struct Lease<H: ?Sized> {
    /// Gone only while it drops.
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

    /// The handle of which this is leased, if it is a `W`: more than its users see of a kind whose leases are the driver's own
    /// type. Exempt from semantic versioning, as [`adapter`](crate::adapter) is.
    pub fn whole<W: 'static>(this: &Self) -> Option<&W> {
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

/// What a lease of `T` has of the table.
pub(super) trait ErasedLease<T: ?Sized>: Send + Sync {
    fn handle(&self) -> &T;
    /// All of what the backend's slot holds.
    fn whole(&self) -> &dyn std::any::Any;
    fn generation(&self) -> u64;
    fn activity(&self) -> &Arc<Activity>;
    fn release(self: Box<Self>);
}

/// How an acquire wants its guard to be known: by which line, as what, and whether its thread blocks.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    pub(crate) site: &'static Location<'static>,
    /// What an exclusive one is a checkout of.
    pub(crate) quota: Option<QuotaId>,
    /// The thread that claims is blocked until it gets its answer.
    pub(crate) blocks: bool,
}

impl Claim {
    /// A shared lease, known by the line that calls this.
    #[track_caller]
    pub fn shared() -> Self {
        Claim { site: Location::caller(), quota: None, blocks: false }
    }

    /// The line.
    pub fn site(&self) -> &'static Location<'static> {
        self.site
    }

    /// The same for a caller whose thread is blocked meanwhile.
    pub fn blocking(self) -> Self {
        Claim { blocks: true, ..self }
    }
}

/// Turns a resource's handle into what is leased of it. Every handle provides itself.
pub trait LeaseAs<T: ?Sized> {
    /// The part that is leased.
    fn lease_as(&self) -> &T;
}

impl<T> LeaseAs<T> for T {
    fn lease_as(&self) -> &T {
        self
    }
}
