//! The kinds of resources that come with the crate: a folder for each, which implements [`Resource`](crate::Resource).

#[cfg(feature = "clickhouse")]
pub(crate) mod clickhouse;
#[cfg(feature = "mongodb")]
pub(crate) mod mongo;
#[cfg(feature = "r2d2")]
pub(crate) mod r2d2;
#[cfg(feature = "rabbitmq")]
pub(crate) mod rabbitmq;
#[cfg(feature = "redis")]
pub(crate) mod redis;
