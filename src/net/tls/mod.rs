//! TLS: its options, the same for every kind, and what kinds do with them. The client made of them is rustls on ring.

#[cfg(feature = "redis")]
mod blocking;
#[cfg(feature = "tls")]
#[cfg_attr(
    not(any(feature = "rabbitmq", feature = "clickhouse", feature = "redis")),
    allow(dead_code, reason = "MongoDB's driver has a client of its own")
)]
pub(crate) mod client;
mod hello;
mod options;
#[cfg(all(feature = "tls", any(feature = "rabbitmq", feature = "clickhouse", feature = "redis")))]
mod secured;
#[cfg(any(feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
mod stream;

#[cfg(feature = "redis")]
pub(crate) use crate::net::tls::blocking::Blocking;
#[cfg(feature = "mongodb")]
pub(crate) use crate::net::tls::hello::or_wanted;
pub use crate::net::tls::options::TlsOptions;
#[cfg(any(feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
pub(crate) use crate::net::tls::stream::{Stream, Tls};

#[cfg(any(feature = "mongodb", not(feature = "tls")))]
use crate::base::error::Error;

/// What a build without TLS says to whoever asks for it.
#[cfg(any(feature = "mongodb", not(feature = "tls")))]
pub(crate) fn missing(key: &str) -> Error {
    Error::config(key, "needs TLS, which this build has not: build resource-pool with its feature `tls`")
}

/// Whether this is an error of TLS that no further attempt mends.
#[cfg(any(feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
pub(crate) fn is_permanent(error: &(dyn std::error::Error + 'static)) -> bool {
    #[cfg(feature = "tls")]
    return client::is_permanent(error);
    #[cfg(not(feature = "tls"))]
    {
        let _nothing_in_it_is_of_tls = error;
        false
    }
}
