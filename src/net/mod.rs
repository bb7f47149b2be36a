//! The tools that adapters of servers share. They know no pool.

#[cfg(any(feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
pub(crate) mod count;
pub(crate) mod tls;
pub(crate) mod url;
