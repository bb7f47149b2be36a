//! The blocking view of a pool.

use std::borrow::Cow;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "r2d2")]
use r2d2::ManageConnection;

use crate::base::error::{BoxError, Error};
use crate::base::holder::Holder;
use crate::base::runtime::{block, park_on};
use crate::kinds::for_each_kind;
#[cfg(feature = "r2d2")]
use crate::kinds::r2d2::R2d2;
use crate::lifecycle::acquire::{Acquirer, BlockingGuard};
use crate::lifecycle::application::Hold;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::close::pool::HookRun;
use crate::lifecycle::close::report::{CloseReport, Closing, Reason};
use crate::lifecycle::health::HealthReport;
use crate::lifecycle::kind::KindConfig;
use crate::lifecycle::lease::{Claim, Lease};
use crate::lifecycle::registry::Registry;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::PoolStatus;
#[cfg(feature = "r2d2")]
use crate::pool::blocking::Checkout;
use crate::pool::blocking::Events;
use crate::pool::builder::{Builder, Facade};
use crate::pool::global;
use crate::pool::resource_pool::{ResourcePool as AsyncPool, WarmUp};
use crate::pool::verbs::synchronous_verbs;

/// [`resource_pool::ResourcePool`](crate::ResourcePool) for threads: another view of the same
/// core, so both see the same resources.
///
/// ```no_run
/// # #[cfg(feature = "redis")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use resource_pool::{blocking::ResourcePool, redis::Commands};
///
/// let pool = ResourcePool::global();
/// let () = pool.redis()?.set("signal:AAPL", "long")?;
/// println!("{}", pool.health_check()?);
/// println!("{}", pool.close_all()?);
/// # Ok(()) }
/// # #[cfg(not(feature = "redis"))]
/// # fn main() {}
/// ```
#[derive(Clone)]
pub struct ResourcePool(AsyncPool);

impl ResourcePool {
    /// The process-wide pool; the same one as the async facade's.
    pub fn global() -> &'static ResourcePool {
        global::blocking_pool()
    }

    /// A builder for a pool of one's own, or for the global one.
    pub fn builder() -> Builder<ResourcePool> {
        Builder::new()
    }

    /// Checks a connection out of a registered [`R2d2`](crate::R2d2). If the connection has to be tested, this thread
    /// waits for that.
    ///
    /// # Errors
    /// Those of [`get`](Self::get); [`Error::Timeout`], with the holders and why none could be opened, if none is free
    /// within the acquire timeout; [`Error::Deadlock`] at once, if this thread has [lent](super::Checkout::lend) them
    /// all to closures that it runs; [`Error::InAsyncContext`] if it would have to wait on a current-thread runtime.
    #[cfg(feature = "r2d2")]
    #[track_caller]
    pub fn check_out<M>(&self, name: &str) -> Result<Checkout<M>, Error>
    where
        M: ManageConnection<Error: Send + Sync>,
    {
        let slot = self.registry().get::<R2d2<M>>(name)?;
        self.acquirer().check_out_blocking(&slot, slot.resource().quota, Claim::shared())
    }

    /// Checks out a connection of a registered [`R2d2`](crate::R2d2) if one is idle, and answers `None` otherwise. It
    /// neither connects the resource, opens a connection nor waits for another user, so it suits work that can be left
    /// out. [`min_idle`](crate::R2d2::min_idle) and [`check_out`](Self::check_out) have connections opened. A
    /// connection that was not checked out lately is tested, and this thread waits for that; on a current-thread
    /// runtime it gets none that has to be tested.
    ///
    /// # Errors
    /// [`Error::UnknownName`], [`Error::NameTaken`], [`Error::Lost`] while a lost connection is not back,
    /// [`Error::Connect`] after a connect that failed, [`Error::Closing`] and [`Error::Closed`].
    #[cfg(feature = "r2d2")]
    #[track_caller]
    pub fn try_check_out<M>(&self, name: &str) -> Result<Option<Checkout<M>>, Error>
    where
        M: ManageConnection<Error: Send + Sync>,
    {
        let slot = self.registry().get::<R2d2<M>>(name)?;
        self.acquirer().try_check_out_blocking(&slot, slot.resource().quota, Claim::shared())
    }

    /// A lease of a registered resource.
    ///
    /// # Errors
    /// [`Error::UnknownName`], [`Error::NameTaken`] if the name belongs to another type, and those of connecting.
    #[track_caller]
    pub fn get<R: Resource>(&self, name: &str) -> Result<Lease<R::Handle>, Error> {
        Lease::acquire(self.acquirer(), &self.registry().get::<R>(name)?, Claim::shared())
    }

    /// A lease of the default resource of a kind of one's own, which [`kind`](Builder::kind) made known to the
    /// [`Builder`].
    ///
    /// # Errors
    /// Those of [the async method](crate::ResourcePool::kind), and [`Error::InAsyncContext`] if it would have to wait
    /// on a current-thread runtime.
    #[track_caller]
    pub fn kind<C: KindConfig>(&self) -> Result<Lease<<C::Resource as Resource>::Handle>, Error> {
        self.kind_named::<C>(C::KIND)
    }

    /// A lease of a further configured instance of such a kind.
    ///
    /// # Errors
    /// [`Error::NameTaken`] for a name of another kind, and those of [`kind`](Self::kind).
    #[track_caller]
    pub fn kind_named<C: KindConfig>(&self, name: &str) -> Result<Lease<<C::Resource as Resource>::Handle>, Error> {
        Lease::acquire(self.acquirer(), &self.registry().named::<C>(name)?, Claim::shared())
    }

    /// A lease of an instance that brings its configuration along. The builder need not know its kind.
    ///
    /// # Errors
    /// [`Error::NameTaken`] if the name is known with another configuration, and those of [`kind`](Self::kind).
    #[track_caller]
    pub fn kind_with<C: KindConfig>(
        &self,
        name: &str,
        config: C,
    ) -> Result<Lease<<C::Resource as Resource>::Handle>, Error> {
        Lease::acquire(self.acquirer(), &self.registry().with(name, config)?, Claim::shared())
    }

    /// Connects these resources in parallel, and logs the effective configuration, redacted. Returns a result for each.
    ///
    /// # Errors
    /// [`Error::InAsyncContext`] on a current-thread runtime.
    pub fn warm_up<'a>(&self, names: impl IntoIterator<Item = &'a str> + Send) -> Result<WarmUp, Error> {
        self.wait(self.0.warm_up(names))
    }

    /// Connects all resources of the program in parallel. [The async method](crate::ResourcePool::warm_up_all) says which
    /// ones these are.
    ///
    /// # Errors
    /// Those of [the async method](crate::ResourcePool::warm_up_all), and [`Error::InAsyncContext`] on a current-thread
    /// runtime.
    pub fn warm_up_all(&self) -> Result<(), Error> {
        self.wait(self.0.warm_up_all())?
    }

    /// Makes a true round trip to each ready resource, in parallel. By default, it takes at most 500 ms for each and
    /// 800 ms in all, and returns its result again for 1 s. It takes no exclusive slot, except one of an `R2d2`.
    ///
    /// # Errors
    /// [`Error::InAsyncContext`] on a current-thread runtime.
    pub fn health_check(&self) -> Result<HealthReport, Error> {
        self.wait(self.0.health_check())
    }

    /// Whether this resource answers; `false` for one that is unknown or was never used.
    ///
    /// # Errors
    /// [`Error::InAsyncContext`] on a current-thread runtime.
    pub fn is_healthy(&self, name: &str) -> Result<bool, Error> {
        self.wait(self.0.is_healthy(name))
    }

    /// Closes one resource: stops leasing, drains, and disconnects. The others go on.
    ///
    /// # Errors
    /// [`Error::UnknownName`]; [`Error::InAsyncContext`] on a current-thread runtime.
    pub fn close(&self, name: &str) -> Result<CloseReport, Error> {
        self.wait(self.0.close(name))?
    }

    /// Closes one resource that was added at run time, and forgets it. Its name is free from then on. Leases that are
    /// still out answer as after a close. [The async method](crate::ResourcePool::unregister) tells the details.
    ///
    /// # Errors
    /// Those of [the async method](crate::ResourcePool::unregister), and [`Error::InAsyncContext`] on a current-thread
    /// runtime.
    pub fn unregister(&self, name: &str) -> Result<CloseReport, Error> {
        self.wait(self.0.unregister(name))?
    }

    /// Begins a new generation of a closed or broken resource, or of one that works.
    ///
    /// # Errors
    /// Those of acquiring; [`Error::Closed`] after `close_all`, which only
    /// [`reopen`](Self::reopen) undoes.
    pub fn reconnect(&self, name: &str) -> Result<(), Error> {
        self.wait(self.0.reconnect(name))?
    }

    /// Replaces the connections of a resource while it goes on. Idle connections are closed, those in use are closed as
    /// they come back, and from now on callers get new ones. No call in flight fails. [The async
    /// method](crate::ResourcePool::refresh) says which kinds can do this.
    ///
    /// # Errors
    /// Those of [the async method](crate::ResourcePool::refresh), and [`Error::InAsyncContext`] on a current-thread
    /// runtime.
    pub fn refresh(&self, name: &str) -> Result<(), Error> {
        self.wait(self.0.refresh(name))?
    }

    /// Closes everything, within the configured deadline. All callers get the same report.
    ///
    /// # Errors
    /// [`Error::InAsyncContext`] on a current-thread runtime, and [`Error::Closing`] in a step or listener of this same
    /// close, which would wait for itself. Closing goes on all the same. [`Error::Forked`].
    pub fn close_all(&self) -> Result<CloseReport, Error> {
        self.close_within(None)
    }

    /// [`close_all`](Self::close_all) with another deadline.
    ///
    /// # Errors
    /// As [`close_all`](Self::close_all).
    pub fn close_all_within(&self, deadline: Duration) -> Result<CloseReport, Error> {
        self.close_within(Some(deadline))
    }

    fn close_within(&self, deadline: Option<Duration>) -> Result<CloseReport, Error> {
        let run = self.registry().start_closing(Reason::Requested, deadline)?;
        Ok(CloseReport::clone(&*self.wait(run.wait())?))
    }

    /// The async view of the same pool.
    pub fn as_async(&self) -> AsyncPool {
        self.0.clone()
    }

    synchronous_verbs!();

    #[inline]
    pub(super) fn registry(&self) -> &Arc<Registry> {
        self.0.registry()
    }

    #[inline]
    pub(super) fn acquirer(&self) -> &Acquirer {
        self.0.acquirer()
    }

    /// Blocks on a future that needs no runtime of the caller.
    fn wait<F: Future>(&self, future: F) -> Result<F::Output, Error> {
        block(&Arc::from("the pool"), || park_on(future))
    }
}

macro_rules! verbs {
    ($($feature:literal $what:literal $kind:ident $named:ident $with:ident $type:ident $config:ident $resource:ident $task:ty, $thread:ty, $task_guard:literal $guard:literal;)*) => {
        impl ResourcePool {
            $(
                #[doc = concat!($guard, ". The first call connects and pings.")]
                /// From then on a lease takes nanoseconds, and a connection of one's own is handed out as soon as one
                /// is free.
                ///
                /// # Errors
                /// Those of [the async method](crate::ResourcePool), and [`Error::InAsyncContext`] if it would have to
                /// wait on a current-thread runtime. For a connection of one's own also [`Error::Timeout`], with the
                /// holders, if none is free within the acquire timeout, and [`Error::Deadlock`] at once, if this thread
                /// has lent them all to closures that it runs.
                #[cfg(feature = $feature)]
                #[track_caller]
                #[inline]
                pub fn $kind(&self) -> Result<$thread, Error> {
                    <$thread>::acquire(self.acquirer(), self.registry().$kind()?, Claim::shared())
                }

                #[doc = concat!($guard, ", of a further configured instance.")]
                ///
                /// # Errors
                /// [`Error::UnknownName`], [`Error::NameTaken`] for a name of another kind, and those of the default
                /// one.
                #[cfg(feature = $feature)]
                #[track_caller]
                pub fn $named(&self, name: &str) -> Result<$thread, Error> {
                    let slot = self.registry().named::<crate::kinds::$kind::$config>(name)?;
                    <$thread>::acquire(self.acquirer(), &slot, Claim::shared())
                }

                #[doc = concat!($guard, ", of an instance that brings its configuration along.")]
                ///
                /// # Errors
                /// [`Error::NameTaken`] if the name is known with another configuration, and those of the default one.
                #[cfg(feature = $feature)]
                #[track_caller]
                pub fn $with(&self, name: &str, config: crate::kinds::$kind::$config) -> Result<$thread, Error> {
                    let slot = self.registry().with(name, config)?;
                    <$thread>::acquire(self.acquirer(), &slot, Claim::shared())
                }
            )*
        }
    };
}
for_each_kind!(verbs);

impl From<AsyncPool> for ResourcePool {
    fn from(pool: AsyncPool) -> Self {
        ResourcePool(pool)
    }
}

impl Facade for ResourcePool {
    fn over(acquirer: Acquirer) -> Self {
        ResourcePool(AsyncPool::over(acquirer))
    }

    fn global() -> &'static Self {
        ResourcePool::global()
    }
}

impl fmt::Debug for ResourcePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
