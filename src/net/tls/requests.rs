//! TLS for a client of HTTP requests, which opens its connections itself and checks the host of each URL.

use std::fmt;

#[cfg(feature = "tls")]
use std::sync::Arc;

#[cfg(feature = "tls")]
use rustls::{ClientConfig, RootCertStore};

use crate::base::error::Error;
use crate::net::tls::options::TlsOptions;

/// How the connections of a client of HTTP requests are secured: by rustls on ring, whatever the process has for a
/// default. Without the feature `tls` they are all plain.
#[derive(Clone)]
pub struct RequestTls {
    #[cfg(feature = "tls")]
    config: Arc<ClientConfig>,
}

impl RequestTls {
    /// Reads the files of these options, which blocks the thread. Without options the authorities are those that the
    /// machine trusts. `name` is the resource's, for messages.
    ///
    /// # Errors
    /// [`Error::Config`] for a file that cannot be used, for a `server_name`, and for options in a build without the
    /// feature `tls`.
    pub fn new(name: &str, options: Option<&TlsOptions>) -> Result<Self, Error> {
        let key = format!("{name}.tls");
        if options.is_some_and(|options| options.server_name.is_some()) {
            let problem = "cannot be set: the name to check is the host of each URL";
            return Err(Error::config(format!("{key}.server_name"), problem));
        }
        #[cfg(not(feature = "tls"))]
        return if options.is_some() { Err(crate::net::tls::missing(&key)) } else { Ok(RequestTls {}) };
        #[cfg(feature = "tls")]
        crate::net::tls::client::of_any_host(&key, options).map(|config| RequestTls { config })
    }

    /// Trusts no authority, for settings that are only checked. It reads nothing.
    ///
    /// # Errors
    /// Those of [`new`](Self::new), of which none is to be expected.
    pub fn trusting_nobody(name: &str) -> Result<Self, Error> {
        #[cfg(not(feature = "tls"))]
        return RequestTls::new(name, None);
        #[cfg(feature = "tls")]
        crate::net::tls::client::without_files(&format!("{name}.tls"), RootCertStore::empty())
            .map(|config| RequestTls { config })
    }

    /// Hands the configuration to a client.
    pub(crate) fn apply(&self, builder: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
        #[cfg(feature = "tls")]
        return builder.tls_backend_preconfigured(ClientConfig::clone(&self.config));
        #[cfg(not(feature = "tls"))]
        builder
    }
}

impl fmt::Debug for RequestTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestTls").finish_non_exhaustive()
    }
}
