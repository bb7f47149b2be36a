//! TLS: its options, the same for every kind, and what kinds do with them. The client made of them is rustls on ring.

#[cfg(feature = "streams")]
mod blocking;
#[cfg(feature = "tls")]
pub(crate) mod client;
mod hello;
mod options;
#[cfg(all(feature = "tls", feature = "streams"))]
mod secured;
#[cfg(feature = "streams")]
mod stream;

#[cfg(feature = "streams")]
pub(crate) use crate::net::tls::blocking::Blocking;
pub(crate) use crate::net::tls::hello::or_wanted;
pub use crate::net::tls::options::TlsOptions;
#[cfg(feature = "streams")]
pub use crate::net::tls::stream::{Stream, Tls};

use crate::base::error::Error;

/// What a build without TLS says to whoever asks for it.
pub(crate) fn missing(key: &str) -> Error {
    Error::config(key, "needs TLS, which this build has not: build resource-pool with its feature `tls`")
}

/// Whether this is an error of TLS that no further attempt mends.
pub(crate) fn is_permanent(error: &(dyn std::error::Error + 'static)) -> bool {
    #[cfg(feature = "tls")]
    return client::is_permanent(error);
    #[cfg(not(feature = "tls"))]
    {
        let _nothing_in_it_is_of_tls = error;
        false
    }
}
