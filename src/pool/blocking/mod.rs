//! The facade for plain threads: the same pool, the same names, no await.
//!
//! A lease of a ready resource never waits, so it never fails for want of a place to block. One
//! that has to wait does so on plain threads, in `spawn_blocking`, and on a multi-thread runtime's
//! workers (by `block_in_place`); on a current-thread runtime it answers
//! [`Error::InAsyncContext`](crate::Error::InAsyncContext).

mod resource_pool;
mod scoped;

#[cfg(feature = "clickhouse")]
pub use crate::kinds::clickhouse::blocking::{ClickHouse, Inserter, Rows, Statement};
#[cfg(feature = "mongodb")]
pub use crate::kinds::mongo::blocking::Mongo;
#[cfg(feature = "rabbitmq")]
pub use crate::kinds::rabbitmq::blocking as rabbitmq;
#[cfg(feature = "rabbitmq")]
pub use crate::kinds::rabbitmq::blocking::RabbitMq;
#[cfg(feature = "redis")]
pub use crate::kinds::redis::blocking::{Lent, Redis, Subscription};
#[cfg(feature = "r2d2")]
pub use crate::lifecycle::checkout::Checkout;
pub use crate::pool::global::run_blocking as run;
pub use resource_pool::ResourcePool;
pub use scoped::Scoped;

macro_rules! short {
    ($feature:literal, $verb:ident, $guard:ty) => {
        #[doc = concat!("Short for `ResourcePool::global().", stringify!($verb), "()`.")]
        ///
        /// # Errors
        /// Those of [`ResourcePool`]'s verb of this name.
        #[cfg(feature = $feature)]
        #[track_caller]
        pub fn $verb() -> Result<$guard, crate::base::error::Error> {
            ResourcePool::global().$verb()
        }
    };
}

short!("mongodb", mongo, crate::lifecycle::lease::Lease<mongodb::sync::Client>);
short!("rabbitmq", rabbitmq, crate::lifecycle::lease::Lease<RabbitMq>);
short!("clickhouse", clickhouse, crate::lifecycle::lease::Lease<ClickHouse>);
short!("redis", redis, Redis);
