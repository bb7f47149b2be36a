//! The four backends, and what r2d2 has adapters for. Each is one file that implements [`Resource`](crate::Resource).

#[cfg(feature = "clickhouse")]
pub(crate) mod clickhouse;
#[cfg(any(feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
mod count;
#[cfg(feature = "mongodb")]
pub(crate) mod mongo;
#[cfg(feature = "r2d2")]
pub(crate) mod r2d2;
#[cfg(feature = "rabbitmq")]
pub(crate) mod rabbitmq;
#[cfg(feature = "redis")]
pub(crate) mod redis;
