//! Acquiring a lease or a checkout, for both facades. A ready resource gives its lease at once. Otherwise the acquire
//! waits until the resource is connected.

use std::borrow::Borrow;
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
#[cfg(feature = "checkouts")]
use std::time::Instant;

use crate::base::error::Error;
use crate::base::future::BoxFuture;
#[cfg(feature = "checkouts")]
use crate::base::holder::QuotaId;
use crate::base::runtime::block_on;
#[cfg(feature = "checkouts")]
use crate::base::runtime::deadline;
use crate::lifecycle::any_slot::AnySlot;
#[cfg(feature = "checkouts")]
use crate::lifecycle::checkout::{Checkout, Checkouts, Manage};
#[cfg(feature = "checkouts")]
use crate::lifecycle::condition::Condition;
use crate::lifecycle::lease::{Claim, Lease, LeaseAs};
use crate::lifecycle::registry::PoolHandle;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::slot::Slot;
#[cfg(feature = "checkouts")]
use crate::lifecycle::status::State;

/// A pool, and how long an acquire from it waits.
#[derive(Clone)]
pub(crate) struct Acquirer {
    pub(crate) handle: Arc<PoolHandle>,
    timeout: Duration,
}

impl Acquirer {
    pub(crate) fn new(handle: Arc<PoolHandle>) -> Self {
        let timeout = handle.0.context.options.acquire_timeout;
        Acquirer { handle, timeout }
    }

    /// How long an acquire waits.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(crate) fn within(&self, timeout: Duration) -> Self {
        Acquirer { handle: Arc::clone(&self.handle), timeout }
    }

    /// Leases at once if the resource is ready. Otherwise connecting begins when the future is polled.
    #[inline]
    pub(crate) fn acquire<R: Resource, T: ?Sized + 'static>(
        &self,
        slot: Result<impl Borrow<Arc<Slot<R>>>, Error>,
        claim: Claim,
    ) -> Acquire<Lease<T>>
    where
        R::Handle: LeaseAs<T>,
    {
        let slot = match slot {
            Ok(slot) => slot,
            Err(error) => return Acquire::Failed(ready(error)),
        };
        match slot.borrow().lease(claim) {
            Ok(Some(lease)) => Acquire::Leased(ready(lease)),
            Ok(None) => self.connect(slot.borrow(), claim),
            Err(error) => Acquire::Failed(ready(error)),
        }
    }

    // Inlined, it would give the future of a wait room on the stack of each lease.
    #[cold]
    #[inline(never)]
    fn connect<R: Resource, T: ?Sized + 'static>(&self, slot: &Arc<Slot<R>>, claim: Claim) -> Acquire<Lease<T>>
    where
        R::Handle: LeaseAs<T>,
    {
        let (pool, slot) = (self.clone(), Arc::clone(slot));
        Acquire::Waiting(Box::pin(async move {
            pool.handle.0.before_connecting(&*slot)?;
            slot.acquire(claim, pool.timeout).await
        }))
    }

    #[cold]
    fn wait<R: Resource, T: ?Sized + 'static>(&self, slot: &Arc<Slot<R>>, claim: Claim) -> Result<Lease<T>, Error>
    where
        R::Handle: LeaseAs<T>,
    {
        self.handle.0.before_connecting(&**slot)?;
        let runtime = self.handle.0.context.runtime.handle(slot.name())?;
        block_on(slot.name(), &runtime, slot.acquire(claim, self.timeout))?
    }

    /// Checks out a connection, and blocks the thread until it has one.
    #[cfg(feature = "checkouts")]
    pub(crate) fn check_out_blocking<R: Resource, M: Manage>(
        &self,
        slot: &Arc<Slot<R>>,
        quota: QuotaId,
        claim: Claim,
    ) -> Result<Checkout<M>, Error>
    where
        R::Handle: LeaseAs<Checkouts<M>>,
    {
        let claim = claim.blocking();
        let held = quota.claim(claim);
        if let Some(lease) = slot.lease(held)?
            && let Some(checkout) = Checkout::now(lease)
        {
            return Ok(checkout);
        }
        let deadline = deadline(self.timeout);
        let in_time = || self.within(deadline.saturating_duration_since(Instant::now()));
        loop {
            // The lease ends with this statement, so a caller that waits holds nothing.
            let queue = Lease::<Checkouts<M>>::acquire(&in_time(), slot, claim)?.queue();
            if let Some(taken) = queue.take_blocking(claim, deadline)?
                && let Some(checkout) = taken.under(Lease::acquire(&in_time(), slot, held)?)
            {
                return Ok(checkout);
            }
        }
    }

    /// Checks out a connection that is idle. Neither connects, opens nor waits for another user.
    #[cfg(feature = "checkouts")]
    pub(crate) fn try_check_out_blocking<R: Resource, M: Manage>(
        &self,
        slot: &Arc<Slot<R>>,
        quota: QuotaId,
        claim: Claim,
    ) -> Result<Option<Checkout<M>>, Error>
    where
        R::Handle: LeaseAs<Checkouts<M>>,
    {
        let Some(lease) = slot.lease(quota.claim(claim.blocking()))? else { return not_ready(&**slot) };
        let taken = Checkouts::queue(&lease).try_take_blocking()?;
        Ok(taken.and_then(|taken| taken.under(lease)))
    }

    /// Checks out a connection for a task. The wait takes at most the acquire timeout, or `limit` if that is less.
    #[cfg(feature = "checkouts")]
    pub(crate) fn check_out<R: Resource, M: Manage, G: From<Checkout<M>> + Send + 'static>(
        &self,
        slot: Result<impl Borrow<Arc<Slot<R>>>, Error>,
        quota: impl FnOnce(&R) -> QuotaId,
        limit: impl FnOnce(&R) -> Option<Duration>,
        claim: Claim,
    ) -> Acquire<G>
    where
        R::Handle: LeaseAs<Checkouts<M>>,
    {
        let slot = match slot {
            Ok(slot) => slot,
            Err(error) => return Acquire::Failed(ready(error)),
        };
        let slot = slot.borrow();
        let quota = quota(slot.resource());
        match slot.lease(quota.claim(claim)) {
            Ok(lease) => {
                if let Some(checkout) = lease.and_then(Checkout::now) {
                    return Acquire::Leased(ready(checkout.into()));
                }
                let (pool, slot) = (self.clone(), Arc::clone(slot));
                let limit = limit(slot.resource()).map_or(self.timeout, |limit| limit.min(self.timeout));
                Acquire::Waiting(Box::pin(async move {
                    pool.handle.0.before_connecting(&*slot)?;
                    wait_for_one(slot, quota, claim, limit).await.map(G::from)
                }))
            }
            Err(error) => Acquire::Failed(ready(error)),
        }
    }
}

/// Why a resource that is not ready gives no checkout at once. `None` if it was not connected yet, or is just being
/// connected.
#[cfg(feature = "checkouts")]
fn not_ready<T>(slot: &dyn AnySlot) -> Result<Option<T>, Error> {
    let Condition { state, failure, .. } = slot.condition();
    match state {
        State::Draining => Err(Error::closing(slot.name())),
        State::Closed => Err(Error::closed(slot.name())),
        State::Idle | State::Connecting | State::Ready | State::Broken => failure.map_or(Ok(None), Err),
    }
}

/// Checks out a connection for a task once one is free. Connects the resource first if necessary.
#[cfg(feature = "checkouts")]
async fn wait_for_one<R: Resource, M: Manage>(
    slot: Arc<Slot<R>>,
    quota: QuotaId,
    claim: Claim,
    limit: Duration,
) -> Result<Checkout<M>, Error>
where
    R::Handle: LeaseAs<Checkouts<M>>,
{
    let deadline = deadline(limit);
    let left = || deadline.saturating_duration_since(Instant::now());
    loop {
        // The lease ends with this statement, so a caller that waits holds nothing.
        let queue = slot.acquire::<Checkouts<M>>(claim, left()).await?.queue();
        if let Some(taken) = queue.take(claim, deadline).await?
            && let Some(checkout) = taken.under(slot.acquire(quota.claim(claim), left()).await?)
        {
            return Ok(checkout);
        }
    }
}

#[cfg(feature = "checkouts")]
impl<M: Manage> Checkouts<M> {
    /// Checks out a connection for a task. A user's own kind, whose resource is `R`, makes a verb of it.
    ///
    /// # Errors
    /// [`Error::Timeout`] if no connection is free within the acquire timeout. It names the holders, and why none could
    /// be opened. [`Error::Lost`] while a lost connection is not back. [`Error::Connect`], [`Error::Closing`] and
    /// [`Error::Closed`]. The last is also the error if the handle of `R` [is not leased as](LeaseAs) these checkouts.
    /// If a connection is being tested at the timeout, the call waits for the test for at most `connect_timeout`.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the queue. A connection that is being tested for it is closed.
    pub fn check_out<R: Resource>(
        &self,
        claim: Claim,
    ) -> impl Future<Output = Result<Checkout<M>, Error>> + Send + use<R, M>
    where
        R::Handle: LeaseAs<Checkouts<M>>,
    {
        let (slot, quota, core) = (self.link.slot::<R>(), self.quota.id(), self.core());
        let (limit, closed) = (self.link.acquire_timeout(), Error::closed(self.link.name()));
        async move {
            let Some(slot) = slot else { return Err(closed) };
            let now = slot.lease(quota.claim(claim))?.and_then(Checkout::now);
            let checkout = match now {
                Some(checkout) => checkout,
                None => wait_for_one(slot, quota, claim, limit).await?,
            };
            if Arc::ptr_eq(&checkout.checkouts().core(), &core) { Ok(checkout) } else { Err(closed) }
        }
    }
}

#[cfg(feature = "checkouts")]
impl<M: Manage> Checkouts<M> {
    /// Checks out a connection for a task if one is idle, and answers `None` otherwise. It neither opens a connection
    /// nor waits for another user. It waits only for the test of a connection that was not checked out lately, and for
    /// a ping that the prober sends over the connection; both end within `connect_timeout`.
    ///
    /// # Errors
    /// Those of [`check_out`](Self::check_out), without [`Error::Timeout`].
    ///
    /// # Cancel safety
    /// A connection that is being tested is closed.
    pub fn try_check_out<R: Resource>(
        &self,
        claim: Claim,
    ) -> impl Future<Output = Result<Option<Checkout<M>>, Error>> + Send + use<R, M>
    where
        R::Handle: LeaseAs<Checkouts<M>>,
    {
        let (slot, quota, core) = (self.link.slot::<R>(), self.quota.id(), self.core());
        let closed = Error::closed(self.link.name());
        async move {
            let Some(slot) = slot else { return Err(closed) };
            let Some(lease) = slot.lease(quota.claim(claim))? else { return not_ready(&*slot) };
            let taken = Checkouts::queue(&lease).try_take().await?;
            match taken.and_then(|taken| taken.under(lease)) {
                Some(checkout) if !Arc::ptr_eq(&checkout.checkouts().core(), &core) => Err(closed),
                checkout => Ok(checkout),
            }
        }
    }
}

/// The future of an acquire. It has the guard at once, or waits for it. The wait is boxed to keep this small.
pub(crate) enum Acquire<G> {
    /// The guard has a variant of its own, since a `Result` would be copied with the size of the larger error.
    Leased(Ready<G>),
    Failed(Ready<Error>),
    Waiting(BoxFuture<Result<G, Error>>),
}

impl<G> Future for Acquire<G> {
    type Output = Result<G, Error>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Acquire::Leased(guard) => Pin::new(guard).poll(cx).map(Ok),
            Acquire::Failed(error) => Pin::new(error).poll(cx).map(Err),
            Acquire::Waiting(waiting) => waiting.as_mut().poll(cx),
        }
    }
}

/// A guard for tasks.
pub(crate) trait TaskGuard<R: Resource>: Sized {
    type Acquiring: Future<Output = Result<Self, Error>> + Send;

    /// Acquires a ready resource within this call. Otherwise connecting begins when the future is polled.
    fn acquiring(pool: &Acquirer, slot: Result<impl Borrow<Arc<Slot<R>>>, Error>, claim: Claim) -> Self::Acquiring;
}

impl<R: Resource, T: ?Sized + 'static> TaskGuard<R> for Lease<T>
where
    R::Handle: LeaseAs<T>,
{
    type Acquiring = Acquire<Lease<T>>;

    #[inline]
    fn acquiring(pool: &Acquirer, slot: Result<impl Borrow<Arc<Slot<R>>>, Error>, claim: Claim) -> Acquire<Lease<T>> {
        pool.acquire(slot, claim)
    }
}

/// A guard for threads. An acquire blocks its thread.
pub(crate) trait BlockingGuard<R: Resource>: Sized {
    fn acquire(pool: &Acquirer, slot: &Arc<Slot<R>>, claim: Claim) -> Result<Self, Error>;
}

impl<R: Resource, T: ?Sized + 'static> BlockingGuard<R> for Lease<T>
where
    R::Handle: LeaseAs<T>,
{
    #[inline]
    fn acquire(pool: &Acquirer, slot: &Arc<Slot<R>>, claim: Claim) -> Result<Self, Error> {
        match slot.lease(claim)? {
            Some(lease) => Ok(lease),
            None => pool.wait(slot, claim),
        }
    }
}
