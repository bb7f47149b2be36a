//! The blocking view of a pool.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;
#[cfg(feature = "r2d2")]
use std::time::Instant;

#[cfg(feature = "r2d2")]
use r2d2::ManageConnection;

use crate::base::error::{BoxError, Error};
use crate::base::holder::Holder;
#[cfg(feature = "r2d2")]
use crate::base::holder::QuotaId;
#[cfg(feature = "r2d2")]
use crate::base::runtime::deadline;
use crate::base::runtime::{block, block_on, park_on};
#[cfg(feature = "clickhouse")]
use crate::kinds::clickhouse::ClickHouseConfig;
#[cfg(feature = "mongodb")]
use crate::kinds::mongo::MongoConfig;
#[cfg(feature = "r2d2")]
use crate::kinds::r2d2::R2d2;
#[cfg(feature = "rabbitmq")]
use crate::kinds::rabbitmq::RabbitMqConfig;
#[cfg(feature = "redis")]
use crate::kinds::redis::{RedisConfig, RedisResource};
use crate::lifecycle::any_slot::AnySlot;
#[cfg(feature = "r2d2")]
use crate::lifecycle::checkout::{Checkout, Checkouts};
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::close::report::CloseReport;
use crate::lifecycle::close::report::Closing;
use crate::lifecycle::close::report::Reason;
use crate::lifecycle::health::HealthReport;
use crate::lifecycle::lease::{Claim, Lease, Provide};
use crate::lifecycle::registry::{PoolHandle, Registry};
use crate::lifecycle::resource::Resource;
use crate::lifecycle::slot::Slot;
use crate::lifecycle::status::PoolStatus;
use crate::pool::builder::{Builder, Facade};
use crate::pool::global;
use crate::pool::resource_pool::{ResourcePool as AsyncPool, WarmUp};
use crate::pool::verbs::synchronous_verbs;

/// [`resource_pool::ResourcePool`](crate::ResourcePool) for threads: another view of the same
/// core, so both see the same resources.
#[derive(Clone)]
pub struct ResourcePool {
    handle: Arc<PoolHandle>,
    acquire_timeout: Duration,
}

/// The verbs of a backend whose guard is a shared lease.
macro_rules! acquire {
    ($feature:literal, $what:literal, $handle:ty, $config:ident, $default:ident, $named:ident, $with:ident) => {
        #[doc = concat!("A lease of ", $what, ". The first call connects and pings; later ones cost nanoseconds.")]
        ///
        /// # Errors
        /// Those of the async facade, and [`Error::InAsyncContext`] if it would have to wait on a
        /// current-thread runtime.
        #[cfg(feature = $feature)]
        #[track_caller]
        #[inline]
        pub fn $default(&self) -> Result<Lease<$handle>, Error> {
            self.acquire(self.registry().$default()?, Claim::shared())
        }

        #[doc = concat!("A lease of a further configured instance of ", $what, ".")]
        ///
        /// # Errors
        /// [`Error::UnknownName`], [`Error::NameTaken`], and those of the default one.
        #[cfg(feature = $feature)]
        #[track_caller]
        pub fn $named(&self, name: &str) -> Result<Lease<$handle>, Error> {
            self.acquire(&self.registry().named::<$config>(name)?, Claim::shared())
        }

        #[doc = concat!("A lease of an instance of ", $what, " that brings its configuration along.")]
        ///
        /// # Errors
        /// [`Error::NameTaken`] if the name is known with another configuration, and those of the
        /// default one.
        #[cfg(feature = $feature)]
        #[track_caller]
        pub fn $with(&self, name: &str, config: $config) -> Result<Lease<$handle>, Error> {
            self.acquire(&self.registry().with(name, config)?, Claim::shared())
        }
    };
}

impl ResourcePool {
    /// The process-wide pool; the same one as the async facade's.
    pub fn global() -> &'static ResourcePool {
        global::blocking_pool()
    }

    /// A builder for a pool of one's own, or for the global one.
    pub fn builder() -> Builder<ResourcePool> {
        Builder::new()
    }

    acquire!("mongodb", "MongoDB", mongodb::sync::Client, MongoConfig, mongo, mongo_named, mongo_with);
    acquire!("rabbitmq", "RabbitMQ", super::RabbitMq, RabbitMqConfig, rabbitmq, rabbitmq_named, rabbitmq_with);
    acquire!(
        "clickhouse",
        "ClickHouse",
        super::ClickHouse,
        ClickHouseConfig,
        clickhouse,
        clickhouse_named,
        clickhouse_with
    );

    /// A Redis connection of one's own.
    ///
    /// # Errors
    /// Those of the async facade; [`Error::Timeout`], with the holders, if none is free within
    /// the acquire timeout; [`Error::Deadlock`] at once, if this thread has [lent](super::Redis::lend)
    /// them all to closures that it runs; [`Error::InAsyncContext`] if it would have to wait on a
    /// current-thread runtime.
    #[cfg(feature = "redis")]
    #[track_caller]
    pub fn redis(&self) -> Result<super::Redis, Error> {
        self.check_out_redis(self.registry().redis()?, Claim::shared())
    }

    /// A connection to a further configured Redis.
    ///
    /// # Errors
    /// [`Error::UnknownName`], [`Error::NameTaken`], and those of [`redis`](Self::redis).
    #[cfg(feature = "redis")]
    #[track_caller]
    pub fn redis_named(&self, name: &str) -> Result<super::Redis, Error> {
        self.check_out_redis(&self.registry().named::<RedisConfig>(name)?, Claim::shared())
    }

    /// A connection to a Redis that brings its configuration along.
    ///
    /// # Errors
    /// [`Error::NameTaken`] if the name is known with another configuration, and those of
    /// [`redis`](Self::redis).
    #[cfg(feature = "redis")]
    #[track_caller]
    pub fn redis_with(&self, name: &str, config: RedisConfig) -> Result<super::Redis, Error> {
        self.check_out_redis(&self.registry().with(name, config)?, Claim::shared())
    }

    #[cfg(feature = "redis")]
    fn check_out_redis(&self, slot: &Arc<Slot<RedisResource>>, claim: Claim) -> Result<super::Redis, Error> {
        self.check_out_of(slot, slot.resource().quota, claim).map(super::Redis::new)
    }

    /// Checks a connection out of a registered [`R2d2`](crate::R2d2). Where it has to be tested, this thread waits for that.
    ///
    /// # Errors
    /// Those of [`get`](Self::get); [`Error::Timeout`], with the holders and why none could be opened, if none is free
    /// within the acquire timeout; [`Error::Deadlock`] at once, if this thread has [lent](super::Checkout::lend) them all
    /// to closures that it runs; [`Error::InAsyncContext`] if it would have to wait on a current-thread runtime.
    #[cfg(feature = "r2d2")]
    #[track_caller]
    pub fn check_out<M>(&self, name: &str) -> Result<super::Checkout<M>, Error>
    where
        M: ManageConnection<Error: Send + Sync>,
    {
        let slot = self.registry().get::<R2d2<M>>(name)?;
        self.check_out_of(&slot, slot.resource().quota, Claim::shared())
    }

    #[cfg(feature = "r2d2")]
    fn check_out_of<R: Resource, M: ManageConnection>(
        &self,
        slot: &Arc<Slot<R>>,
        quota: QuotaId,
        claim: Claim,
    ) -> Result<Checkout<M>, Error>
    where
        R::Handle: Provide<Checkouts<M>>,
    {
        let claim = claim.blocking();
        let held = quota.claim(claim);
        if let Some(lease) = slot.lease(held)?
            && let Some(checkout) = Checkout::now(lease)
        {
            return Ok(checkout);
        }
        let deadline = deadline(self.acquire_timeout);
        let in_time = || self.within(deadline.saturating_duration_since(Instant::now()));
        loop {
            // Whoever waits holds nothing.
            let queue = in_time().acquire::<_, Checkouts<M>>(slot, claim)?.queue();
            if let Some(taken) = queue.take(claim, deadline)?
                && let Some(checkout) = taken.under(in_time().acquire(slot, held)?)
            {
                return Ok(checkout);
            }
        }
    }

    /// A lease of a registered resource.
    ///
    /// # Errors
    /// [`Error::UnknownName`], [`Error::NameTaken`] if the name is of another type, and those of
    /// connecting.
    #[track_caller]
    pub fn get<R: Resource>(&self, name: &str) -> Result<Lease<R::Handle>, Error> {
        self.acquire(&self.registry().get::<R>(name)?, Claim::shared())
    }

    /// Connects these in parallel and logs the effective configuration, redacted. A result for each.
    ///
    /// # Errors
    /// [`Error::InAsyncContext`] on a current-thread runtime.
    pub fn warm_up<'a>(&self, names: impl IntoIterator<Item = &'a str> + Send) -> Result<WarmUp, Error> {
        self.wait(self.as_async().warm_up(names))
    }

    /// A true round trip on every resource, in parallel: at most 500 ms each and 800 ms in all,
    /// answered again for 1 s. Takes no exclusive slot.
    ///
    /// # Errors
    /// [`Error::InAsyncContext`] on a current-thread runtime.
    pub fn health_check(&self) -> Result<HealthReport, Error> {
        self.wait(self.registry().health_report())
    }

    /// Whether this resource answers; `false` for one that is unknown or was never used.
    ///
    /// # Errors
    /// [`Error::InAsyncContext`] on a current-thread runtime.
    pub fn is_healthy(&self, name: &str) -> Result<bool, Error> {
        self.wait(self.registry().is_healthy(name))
    }

    /// Closes one resource: intake, drain, goodbye. The others go on.
    ///
    /// # Errors
    /// [`Error::UnknownName`]; [`Error::InAsyncContext`] on a current-thread runtime.
    pub fn close(&self, name: &str) -> Result<CloseReport, Error> {
        Ok(CloseReport::clone(&*self.wait(self.registry().close_one(name))??))
    }

    /// Begins a new generation of a closed or broken resource, or of one that works.
    ///
    /// # Errors
    /// Those of acquiring; [`Error::Closed`] after `close_all`, which only
    /// [`reopen`](Self::reopen) undoes.
    pub fn reconnect(&self, name: &str) -> Result<(), Error> {
        self.wait(self.registry().reconnect(name))?
    }

    /// Closes everything, within the configured deadline. All who call get the same report.
    ///
    /// # Errors
    /// [`Error::InAsyncContext`] on a current-thread runtime, and [`Error::Closing`] in a step or
    /// listener of this same close, which would wait for itself; closing goes on all the same.
    /// [`Error::Forked`].
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
        let course = self.registry().start_closing(Reason::Requested, deadline)?;
        Ok(CloseReport::clone(&*self.wait(course.wait())?))
    }

    /// The async view of the same pool.
    pub fn as_async(&self) -> AsyncPool {
        AsyncPool::over(Arc::clone(&self.handle)).within(self.acquire_timeout)
    }

    synchronous_verbs!();

    fn registry(&self) -> &Arc<Registry> {
        &self.handle.0
    }

    #[inline]
    fn acquire<R: Resource, T: ?Sized + 'static>(&self, slot: &Arc<Slot<R>>, claim: Claim) -> Result<Lease<T>, Error>
    where
        R::Handle: Provide<T>,
    {
        match slot.lease(claim)? {
            Some(lease) => Ok(lease),
            None => self.connect(slot, claim),
        }
    }

    #[cold]
    fn connect<R: Resource, T: ?Sized + 'static>(&self, slot: &Arc<Slot<R>>, claim: Claim) -> Result<Lease<T>, Error>
    where
        R::Handle: Provide<T>,
    {
        self.registry().before_connecting(&**slot)?;
        let runtime = self.registry().context.runtime.handle(slot.name())?;
        block_on(slot.name(), &runtime, slot.acquire(claim, self.acquire_timeout))?
    }

    /// Waits for what needs no runtime of the caller's.
    fn wait<F: Future>(&self, future: F) -> Result<F::Output, Error> {
        block(&Arc::from("the pool"), || park_on(future))
    }
}

impl From<AsyncPool> for ResourcePool {
    fn from(pool: AsyncPool) -> Self {
        ResourcePool::over(pool.handle)
    }
}

impl Facade for ResourcePool {
    fn over(handle: Arc<PoolHandle>) -> Self {
        let acquire_timeout = handle.0.context.options.acquire_timeout;
        ResourcePool { handle, acquire_timeout }
    }

    fn global() -> &'static Self {
        ResourcePool::global()
    }
}

impl fmt::Debug for ResourcePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.registry().fmt(f)
    }
}
