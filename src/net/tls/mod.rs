//! TLS: its options, which are the same for every kind, and the streams and checks that kinds use. The client is rustls
//! on ring.

#[cfg(feature = "streams")]
mod blocking;
#[cfg(feature = "tls")]
mod client;
mod hello;
mod options;
#[cfg(feature = "requests")]
mod requests;
#[cfg(all(feature = "tls", feature = "streams"))]
mod secured;
#[cfg(feature = "streams")]
mod stream;

#[cfg(feature = "streams")]
pub use crate::net::tls::blocking::Blocking;
pub use crate::net::tls::hello::or_wanted;
pub use crate::net::tls::options::TlsOptions;
#[cfg(feature = "requests")]
pub use crate::net::tls::requests::RequestTls;
#[cfg(feature = "streams")]
pub use crate::net::tls::stream::{Stream, Tls};

use std::error::Error as StdError;
use std::io;
use std::path::Path;

use crate::base::error::{Error, Failure};

/// The error of a build without TLS, for a key that asks for TLS.
pub fn missing(key: &str) -> Error {
    Error::config(key, "needs TLS: enable the feature `tls` of resource-pool")
}

/// Whether this error of a stream that [`Tls`] opened is one of TLS that no further attempt mends.
pub fn is_permanent(error: &(dyn StdError + 'static)) -> bool {
    #[cfg(feature = "tls")]
    return client::is_permanent(error);
    #[cfg(not(feature = "tls"))]
    {
        let _nothing_in_it_is_of_tls = error;
        false
    }
}

/// The failure, with the remedy, for an error of a driver's own client. `None` if TLS is not what failed. The driver's
/// client has to be rustls.
pub fn failure(error: &io::Error) -> Option<Failure> {
    #[cfg(feature = "tls")]
    return client::explained(error).map(|error| {
        let permanent = error.permanent;
        Failure::transient(error).with_permanent(permanent)
    });
    #[cfg(not(feature = "tls"))]
    {
        let _nothing_in_it_is_of_tls = error;
        None
    }
}

/// Checks that a driver can use the files that it reads by itself. The driver's own errors say less about them. Without
/// the feature `tls` nothing is checked.
///
/// # Errors
/// [`Error::Config`] of this key.
pub fn check(key: &str, ca_file: Option<&Path>, cert_file: Option<&Path>) -> Result<(), Error> {
    #[cfg(feature = "tls")]
    client::check(key, ca_file, cert_file)?;
    let _without_tls = (key, ca_file, cert_file);
    Ok(())
}
