//! A private instance that closes when its guard drops.

use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::base::error::Error;
#[cfg(feature = "clickhouse")]
use crate::kinds::clickhouse::{ClickHouse, ClickHouseConfig};
#[cfg(feature = "mongodb")]
use crate::kinds::mongo::{Mongo, MongoConfig};
#[cfg(feature = "rabbitmq")]
use crate::kinds::rabbitmq::{RabbitMq, RabbitMqConfig};
#[cfg(feature = "redis")]
use crate::kinds::redis::{Redis, RedisConfig};
use crate::lifecycle::close::report::CloseReport;
use crate::pool::config::ResourceConfig;
use crate::pool::resource_pool::ResourcePool;

/// A resource of one's own, which derefs to its lease. Dropping it closes the instance in the
/// background, without blocking and without a runtime; the process's exit waits for that.
///
/// Made by `Mongo::scoped`, `RabbitMq::scoped`, `ClickHouse::scoped` and `Redis::scoped`.
#[must_use = "the instance closes when this drops"]
pub struct Scoped<G> {
    // Dropped before the pool, so that the drain has nothing to wait for.
    lease: G,
    pub(crate) pool: ResourcePool,
}

impl<G> Scoped<G> {
    pub(crate) fn new(lease: G, pool: ResourcePool) -> Self {
        Scoped { lease, pool }
    }

    /// Closes now and tells how that went.
    ///
    /// # Cancel safety
    /// Dropping the future stops only the waiting: closing goes on.
    pub async fn close(self) -> CloseReport {
        let Scoped { lease, pool } = self;
        drop(lease);
        pool.close_all().await
    }
}

/// The pool behind a scoped instance: one resource, no signals.
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
    ($feature:literal $what:literal $kind:ident $config:ident $verb:ident $guard:ty) => {
        #[cfg(feature = $feature)]
        impl $kind {
            #[doc = concat!("A ", $what, " of one's own, which closes when the guard drops.")]
            ///
            /// # Errors
            #[doc = concat!("Those of [`ResourcePool::", stringify!($verb), "`].")]
            ///
            /// # Cancel safety
            /// Dropping the future closes what was begun.
            #[track_caller]
            pub fn scoped(config: $config) -> impl Future<Output = Result<Scoped<$guard>, Error>> + Send {
                let claim = crate::lifecycle::lease::Claim::shared();
                async move {
                    let pool = pool(config.into())?;
                    let lease = pool.acquire(pool.registry().$verb(), claim).await?;
                    Ok(Scoped::new(lease, pool))
                }
            }
        }
    };
}

scoped!("mongodb" "MongoDB" Mongo MongoConfig mongo crate::lifecycle::lease::Lease<mongodb::Client>);
scoped!("rabbitmq" "RabbitMQ" RabbitMq RabbitMqConfig rabbitmq crate::lifecycle::lease::Lease<RabbitMq>);
scoped!("clickhouse" "ClickHouse" ClickHouse ClickHouseConfig clickhouse crate::lifecycle::lease::Lease<clickhouse::Client>);
scoped!("redis" "Redis" Redis RedisConfig redis crate::lifecycle::lease::Lease<Redis>);
