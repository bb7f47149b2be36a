//! A private instance of a resource, which closes when its guard drops.

use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::base::error::Error;
use crate::kinds::for_each_kind;
use crate::lifecycle::acquire::TaskGuard;
use crate::lifecycle::close::report::CloseReport;
use crate::lifecycle::lease::Claim;
use crate::pool::config::ResourceConfig;
use crate::pool::resource_pool::ResourcePool;

/// A resource of one's own, which derefs to its lease. Dropping it closes the instance in the background, without
/// blocking and without a runtime. The process's exit waits for that.
///
/// Made by `Mongo::scoped`, `RabbitMq::scoped`, `ClickHouse::scoped`, `Redis::scoped`, `Postgres::scoped`,
/// `MySql::scoped` and `Sqlite::scoped`.
///
/// ```no_run
/// # #[cfg(feature = "redis")]
/// # async fn example() -> Result<(), resource_pool::Error> {
/// use resource_pool::{Redis, config::RedisConfig};
///
/// let scratch = Redis::scoped(RedisConfig::url("redis://localhost/3")).await?;
/// let mut redis = scratch.clone();
/// # let _ = &mut redis;
/// println!("{}", scratch.close().await);
/// # Ok(()) }
/// ```
#[must_use = "the instance closes when this drops"]
pub struct Scoped<G> {
    // This field comes first, so it drops before the pool, and the drain has nothing to wait for.
    lease: G,
    pub(crate) pool: ResourcePool,
}

impl<G> Scoped<G> {
    pub(crate) fn new(lease: G, pool: ResourcePool) -> Self {
        Scoped { lease, pool }
    }

    /// Closes now, and returns the report.
    ///
    /// # Cancel safety
    /// Dropping the future stops only the waiting: closing goes on.
    pub async fn close(self) -> CloseReport {
        let Scoped { lease, pool } = self;
        drop(lease);
        pool.close_all().await
    }
}

/// The pool behind a scoped instance. It has one resource, and handles no signals.
pub(crate) fn pool(config: ResourceConfig) -> Result<ResourcePool, Error> {
    ResourcePool::builder().environment([("", ""); 0]).resource(config).build()
}

impl<G> Deref for Scoped<G> {
    type Target = G;
    fn deref(&self) -> &G {
        &self.lease
    }
}

impl<G> DerefMut for Scoped<G> {
    fn deref_mut(&mut self) -> &mut G {
        &mut self.lease
    }
}

impl<G: fmt::Debug> fmt::Debug for Scoped<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Scoped").field(&self.lease).finish()
    }
}

macro_rules! scoped {
    ($($feature:literal $what:literal $kind:ident $named:ident $with:ident $type:ident $config:ident $resource:ident $task:ty, $thread:ty, $task_guard:literal $guard:literal;)*) => {
        $(
            #[cfg(feature = $feature)]
            impl crate::kinds::$kind::$type {
                #[doc = concat!("A ", $what, " of one's own, which closes when the guard drops.")]
                ///
                /// # Errors
                #[doc = concat!("Those of [`ResourcePool::", stringify!($kind), "`].")]
                ///
                /// # Cancel safety
                /// Dropping the future closes the instance that was begun.
                #[track_caller]
                pub fn scoped(
                    config: crate::kinds::$kind::$config,
                ) -> impl Future<Output = Result<Scoped<$task>, Error>> + Send {
                    let claim = Claim::shared();
                    async move {
                        let pool = pool(config.into())?;
                        let slot = pool.registry().$kind();
                        let lease = <$task as TaskGuard<crate::kinds::$kind::$resource>>::acquiring(pool.acquirer(), slot, claim).await?;
                        Ok(Scoped::new(lease, pool))
                    }
                }
            }
        )*
    };
}
for_each_kind!(scoped);
