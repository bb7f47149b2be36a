//! The tools that adapters of servers share. They know no pool.

#[cfg(any(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
pub(crate) mod checks;
#[cfg(any(feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
pub(crate) mod count;
pub(crate) mod kill_switch;
pub(crate) mod parts;
pub(crate) mod tls;
pub(crate) mod url;
