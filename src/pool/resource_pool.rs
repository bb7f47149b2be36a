//! The async facade.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use crate::base::error::{BoxError, Error, WarmUpError};
use crate::base::holder::Holder;
use crate::kinds::for_each_kind;
use crate::lifecycle::acquire::{Acquirer, TaskGuard};
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::application::Hold;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::close::pool::HookRun;
use crate::lifecycle::close::report::CloseReport;
use crate::lifecycle::close::report::Closing;
use crate::lifecycle::close::report::Reason;
use crate::lifecycle::health::HealthReport;
use crate::lifecycle::kind::KindConfig;
use crate::lifecycle::lease::{Claim, Lease};
use crate::lifecycle::observers::Events;
use crate::lifecycle::registry::Registry;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::PoolStatus;
use crate::pool::builder::{Builder, Facade};
use crate::pool::global;
use crate::pool::verbs::synchronous_verbs;

/// All resources of a program, by name. They are created on first use, leased, checked, and closed in order.
///
/// A clone is another handle to the same pool, and [`blocking::ResourcePool`](crate::pool::blocking) another view of
/// it. A pool of one's own closes when its last handle drops. The [global](ResourcePool::global) one closes when the
/// process ends.
///
/// ```no_run
/// # #[cfg(feature = "redis")]
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use resource_pool::{ResourcePool, redis::AsyncCommands};
///
/// let pool = ResourcePool::global();
/// let mut redis = pool.redis().await?.clone();
/// let () = redis.set("signal:AAPL", "long").await?;
/// println!("{}", pool.health_check().await);
/// println!("{}", pool.close_all().await);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct ResourcePool {
    acquirer: Acquirer,
}

/// The name of each resource to warm up, and whether it is ready.
pub type WarmUp = Vec<(String, Result<(), Error>)>;

impl ResourcePool {
    /// The process-wide pool, configured from environment and TOML unless one was [installed](Builder::install). It
    /// never panics: if the configuration is unusable, acquiring answers the error.
    pub fn global() -> &'static ResourcePool {
        global::pool()
    }

    /// A builder for a pool of one's own, or for the global one.
    pub fn builder() -> Builder<ResourcePool> {
        Builder::new()
    }

    /// A lease of a registered resource.
    ///
    /// # Errors
    /// [`Error::UnknownName`], [`Error::NameTaken`] if the name belongs to another type, and those of connecting a
    /// [`register`](Self::register)ed resource.
    ///
    /// # Cancel safety
    /// Dropping the future stops only the waiting.
    #[track_caller]
    pub fn get<'a, R: Resource>(
        &'a self,
        name: &'a str,
    ) -> impl Future<Output = Result<Lease<R::Handle>, Error>> + Send + use<'a, R> {
        self.acquirer.acquire(self.registry().get::<R>(name), Claim::shared())
    }

    /// A lease of the default resource of a kind of one's own, which [`kind`](Builder::kind) made known to the
    /// [`Builder`].
    ///
    /// # Errors
    /// [`Error::UnknownName`] if the builder does not know the kind, [`Error::Config`], [`Error::Connect`],
    /// [`Error::Timeout`], [`Error::Lost`], [`Error::Closing`] and [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Dropping the future stops only the waiting.
    #[track_caller]
    pub fn kind<C: KindConfig>(
        &self,
    ) -> impl Future<Output = Result<Lease<<C::Resource as Resource>::Handle>, Error>> + Send + use<'_, C> {
        self.acquirer.acquire(self.registry().named::<C>(C::KIND), Claim::shared())
    }

    /// A lease of a further configured instance of such a kind.
    ///
    /// # Errors
    /// [`Error::NameTaken`] for a name of another kind, and those of [`kind`](Self::kind). Cancel-safe in the same way.
    #[track_caller]
    pub fn kind_named<'a, C: KindConfig>(
        &'a self,
        name: &'a str,
    ) -> impl Future<Output = Result<Lease<<C::Resource as Resource>::Handle>, Error>> + Send + use<'a, C> {
        self.acquirer.acquire(self.registry().named::<C>(name), Claim::shared())
    }

    /// A lease of an instance that brings its configuration along. The builder need not know its kind.
    ///
    /// # Errors
    /// [`Error::NameTaken`] if the name is known with another configuration, [`Error::Config`], and those of
    /// connecting. Cancel-safe in the same way.
    #[track_caller]
    pub fn kind_with<'a, C: KindConfig>(
        &'a self,
        name: &'a str,
        config: C,
    ) -> impl Future<Output = Result<Lease<<C::Resource as Resource>::Handle>, Error>> + Send + use<'a, C> {
        self.acquirer.acquire(self.registry().with(name, config), Claim::shared())
    }

    /// Connects these resources in parallel, and logs the effective configuration, redacted. Returns a result for each.
    ///
    /// # Cancel safety
    /// Dropping the future stops only the waiting.
    pub async fn warm_up<'a>(&self, names: impl IntoIterator<Item = &'a str> + Send) -> WarmUp {
        let connecting: Vec<_> = names
            .into_iter()
            .map(|name| {
                let config = self.registry().effective_config(name).unwrap_or_default();
                tracing::info!(resource = %name, %config, "warming up");
                // All futures are made before the first is awaited, so the resources connect in parallel.
                let slot = self.registry().slot(name);
                let armed = slot.and_then(|slot| self.registry().before_connecting(&*slot).map(|()| slot));
                (name.to_owned(), armed.map(AnySlot::wait_ready))
            })
            .collect();
        let mut results = Vec::new();
        for (name, connecting) in connecting {
            let result = match connecting {
                Ok(connecting) => connecting.await,
                Err(error) => Err(error),
            };
            results.push((name, result));
        }
        results
    }

    /// Connects all resources of the program in parallel, as [`warm_up`](Self::warm_up) does. These are the ones that
    /// code, TOML or the environment sets, those that were registered, and those that were used before. A kind of which
    /// nothing is set is left out, because the program may not use it. So is a resource that was closed by
    /// [`close`](Self::close).
    ///
    /// # Errors
    /// [`Error::WarmUp`], which names every resource that is not ready, with its error. The others are ready all the
    /// same. [`Error::Config`] if the configuration as a whole cannot be used, and [`Error::Forked`].
    ///
    /// # Cancel safety
    /// Dropping the future stops only the waiting.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), resource_pool::Error> {
    /// resource_pool::ResourcePool::global().warm_up_all().await?;
    /// # Ok(()) }
    /// ```
    pub async fn warm_up_all(&self) -> Result<(), Error> {
        let names = self.registry().names_in_use()?;
        let results = self.warm_up(names.iter().map(String::as_str)).await;
        let failed: Vec<_> = results.into_iter().filter_map(|(name, ready)| Some((name, ready.err()?))).collect();
        match failed.is_empty() {
            true => Ok(()),
            false => Err(Error::WarmUp(Arc::new(WarmUpError::new(failed, names.len())))),
        }
    }

    /// Makes a true round trip to each ready resource, in parallel. By default, it takes at most 500 ms for each and
    /// 800 ms in all, and returns its result again for 1 s. It takes no exclusive slot, except one of an `R2d2`.
    ///
    /// # Cancel safety
    /// Cancel-safe: the check goes on, and the next caller gets its result.
    pub async fn health_check(&self) -> HealthReport {
        self.registry().health_report().await
    }

    /// Whether this resource answers; `false` for one that is unknown or was never used.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn is_healthy(&self, name: &str) -> bool {
        self.registry().is_healthy(name).await
    }

    /// Closes one resource: stops leasing, drains, and disconnects. The others go on.
    ///
    /// # Errors
    /// [`Error::UnknownName`].
    ///
    /// # Cancel safety
    /// A cancelled caller does not cancel the close.
    pub async fn close(&self, name: &str) -> Result<CloseReport, Error> {
        Ok(CloseReport::clone(&*self.registry().close_one(name).await?))
    }

    /// Closes one resource as [`close`](Self::close) does, and forgets it. Its name is free from then on, for
    /// [`register`](Self::register) or a `*_with` call, and `depends_on` no longer knows it. Leases that are still out
    /// answer as after a close, and go on to do so when the name has another resource.
    ///
    /// This is for resources that were added at run time, by [`register`](Self::register), a `*_with` call or
    /// [`kind_with`](Self::kind_with). A resource that code, TOML or the environment configures belongs to the
    /// configuration, which does not change. So it stays, and so do the default resources.
    ///
    /// # Errors
    /// [`Error::UnknownName`]; [`Error::Operation`] for a configured resource; [`Error::Closing`] in a step or listener
    /// of this same close, which would wait for itself.
    ///
    /// # Cancel safety
    /// A cancelled caller cancels neither the close nor the forgetting.
    pub async fn unregister(&self, name: &str) -> Result<CloseReport, Error> {
        Ok(CloseReport::clone(&*self.registry().unregister(name).await?))
    }

    /// Begins a new generation of a closed or broken resource, or of one that works.
    ///
    /// # Errors
    /// Those of acquiring; [`Error::Closed`] after `close_all`, which only
    /// [`reopen`](Self::reopen) undoes.
    ///
    /// # Cancel safety
    /// A cancelled caller does not cancel the reconnect.
    pub async fn reconnect(&self, name: &str) -> Result<(), Error> {
        self.registry().reconnect(name).await
    }

    /// Replaces the connections of a resource while it goes on, such as after its address leads to another server. Once
    /// a new connection is open, idle ones are closed, those in use are closed as they come back, and callers get new
    /// ones. No call in flight fails.
    ///
    /// Redis, PostgreSQL, MySQL, SQLite, an [`R2d2`](crate::R2d2) and kinds of one's own with
    /// [`refresh`](Resource::refresh) can do this. Async Redis sends calls from now on over a new connection, and the
    /// old one closes after its last answer; its exclusive connections stay until they drop. A resource that is not
    /// connected has nothing to replace. MongoDB, RabbitMQ and ClickHouse cannot do it: a
    /// [`reconnect`](Self::reconnect) replaces their connections, and ends the calls in flight.
    ///
    /// # Errors
    /// [`Error::UnknownName`]; [`Error::Operation`] if the kind cannot do this, or no new connection could be made;
    /// [`Error::Timeout`] after `connect_timeout`; [`Error::Closing`] and [`Error::Closed`]. The old connections then
    /// go on.
    ///
    /// # Cancel safety
    /// A cancelled caller does not cancel the refresh.
    pub async fn refresh(&self, name: &str) -> Result<(), Error> {
        self.registry().slot(name)?.refresh().await
    }

    /// Closes everything, within the configured deadline. All callers get the same report.
    ///
    /// # Cancel safety
    /// A cancelled caller does not cancel the close.
    pub async fn close_all(&self) -> CloseReport {
        self.registry().close_all(Reason::Requested, None).await
    }

    /// [`close_all`](Self::close_all) with another deadline.
    ///
    /// # Cancel safety
    /// A cancelled caller does not cancel the close.
    pub async fn close_all_within(&self, deadline: Duration) -> CloseReport {
        self.registry().close_all(Reason::Requested, Some(deadline)).await
    }

    synchronous_verbs!();

    #[inline]
    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.acquirer.handle.0
    }

    #[inline]
    pub(crate) fn acquirer(&self) -> &Acquirer {
        &self.acquirer
    }
}

macro_rules! verbs {
    ($($feature:literal $what:literal $kind:ident $named:ident $with:ident $type:ident $config:ident $resource:ident $task:ty, $thread:ty, $task_guard:literal $guard:literal;)*) => {
        impl ResourcePool {
            $(
                #[doc = concat!($task_guard, ". The first call connects and pings; a later lease costs nanoseconds.")]
                ///
                /// A ready resource is leased by the call, and held from then on. Connecting begins when the future is
                /// polled.
                ///
                /// # Errors
                /// [`Error::Connect`] if no connection could be made, [`Error::Timeout`] after the acquire
                /// timeout, [`Error::Config`] for an unusable configuration, [`Error::Lost`] while a lost
                /// connection is not back, [`Error::Closing`] and [`Error::Closed`].
                ///
                /// # Cancel safety
                /// Dropping the future stops only the waiting, neither the connecting nor other callers.
                #[cfg(feature = $feature)]
                #[track_caller]
                #[inline]
                pub fn $kind(&self) -> impl Future<Output = Result<$task, Error>> + Send + use<'_> {
                    <$task as TaskGuard<crate::kinds::$kind::$resource>>::acquiring(&self.acquirer, self.registry().$kind(), Claim::shared())
                }

                #[doc = concat!($task_guard, ", of a further configured instance.")]
                ///
                /// # Errors
                /// [`Error::UnknownName`], [`Error::NameTaken`] for a name of another kind, and those of the
                /// default one. Cancel-safe in the same way.
                #[cfg(feature = $feature)]
                #[track_caller]
                pub fn $named<'a>(
                    &'a self,
                    name: &'a str,
                ) -> impl Future<Output = Result<$task, Error>> + Send + use<'a> {
                    let slot = self.registry().named::<crate::kinds::$kind::$config>(name);
                    <$task as TaskGuard<crate::kinds::$kind::$resource>>::acquiring(&self.acquirer, slot, Claim::shared())
                }

                #[doc = concat!($task_guard, ", of an instance that brings its configuration along.")]
                ///
                /// # Errors
                /// [`Error::NameTaken`] if the name is known with another configuration, and those of the
                /// default one. Cancel-safe in the same way.
                #[cfg(feature = $feature)]
                #[track_caller]
                pub fn $with<'a>(
                    &'a self,
                    name: &'a str,
                    config: crate::kinds::$kind::$config,
                ) -> impl Future<Output = Result<$task, Error>> + Send + use<'a> {
                    let slot = self.registry().with(name, config);
                    <$task as TaskGuard<crate::kinds::$kind::$resource>>::acquiring(&self.acquirer, slot, Claim::shared())
                }
            )*
        }
    };
}
for_each_kind!(verbs);

impl Facade for ResourcePool {
    fn over(acquirer: Acquirer) -> Self {
        ResourcePool { acquirer }
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
