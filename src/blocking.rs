//! The facade for plain threads: the same pool, the same names, no await.
//!
//! A lease of a ready resource never waits, so it never fails for want of a place to block. One
//! that has to wait does so on plain threads, in `spawn_blocking`, and on a multi-thread runtime's
//! workers (by `block_in_place`); on a current-thread runtime it answers
//! [`Error::InAsyncContext`](crate::Error::InAsyncContext).

#[cfg(feature = "clickhouse")]
mod clickhouse;
#[cfg(feature = "mongodb")]
mod mongo;
mod pool;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
#[cfg(feature = "redis")]
mod redis;
mod scoped;

#[cfg(feature = "r2d2")]
pub use crate::checkout::Checkout;
pub use crate::global::run_blocking as run;
#[cfg(feature = "clickhouse")]
pub use clickhouse::{ClickHouse, Inserter, Rows, Statement};
#[cfg(feature = "mongodb")]
pub use mongo::Mongo;
pub use pool::ResourcePool;
#[cfg(feature = "rabbitmq")]
pub use rabbitmq::RabbitMq;
#[cfg(feature = "redis")]
pub use redis::{Lent, Redis, Subscription};
pub use scoped::Scoped;

macro_rules! short {
    ($feature:literal, $verb:ident, $guard:ty) => {
        #[doc = concat!("Short for `ResourcePool::global().", stringify!($verb), "()`.")]
        ///
        /// # Errors
        /// Those of [`ResourcePool`]'s verb of this name.
        #[cfg(feature = $feature)]
        #[track_caller]
        pub fn $verb() -> Result<$guard, crate::Error> {
            ResourcePool::global().$verb()
        }
    };
}

short!("mongodb", mongo, crate::Lease<mongodb::sync::Client>);
short!("rabbitmq", rabbitmq, crate::Lease<RabbitMq>);
short!("clickhouse", clickhouse, crate::Lease<ClickHouse>);
short!("redis", redis, Redis);
