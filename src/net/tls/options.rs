//! The options of TLS, the same for every kind.

use std::path::PathBuf;

use serde::Deserialize;

use crate::base::environment::Environment;
use crate::base::error::Error;

/// How to speak TLS. In TOML it is the table `tls` of a backend, as `[redis.tls]`, or `[named.redis.NAME.tls]`.
///
/// A backend speaks TLS if its URL's scheme says so (`rediss`, `amqps`, `https`, `mongodb+srv`, `mongodb` with
/// `?tls=true`) or if it has these options, even if all are left at their defaults. The server's certificate and the
/// name in it are always checked. All files are PEM. The pool reads them as it is built, and again at every connect.
///
/// ```
/// use resource_pool::config::TlsOptions;
///
/// let tls = TlsOptions::default().ca_file("/etc/desk/ca.pem").cert_file("/etc/desk/strategy.pem");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TlsOptions {
    /// The certificates of the authorities that may have signed the server's. Defaults to none: those that the
    /// machine trusts or, for MongoDB, Mozilla's list.
    pub ca_file: Option<PathBuf>,
    /// The certificate that is shown to a server that asks for one, with the certificates between it and its authority.
    /// Defaults to none.
    pub cert_file: Option<PathBuf>,
    /// The certificate's private key, not encrypted. Without it the key is in `cert_file`, too. MongoDB's driver
    /// always wants it there.
    pub key_file: Option<PathBuf>,
    /// The name that the server's certificate is to have. Without it that is the host. Not for MongoDB,
    /// PostgreSQL, MySQL, Elasticsearch, HTTP, LLM, Chroma and Milvus, whose drivers check the host's name.
    pub server_name: Option<String>,
}

impl TlsOptions {
    /// Sets where the authorities' certificates are.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into());
        self
    }

    /// Sets where the certificate is that is shown to the server.
    pub fn cert_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.cert_file = Some(path.into());
        self
    }

    /// Sets where the private key is.
    pub fn key_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.key_file = Some(path.into());
        self
    }

    /// Sets the name that the server's certificate is to have.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Applies the environment's variables for the switch and the fields, in their order. A variable of any field
    /// switches TLS on.
    pub(crate) fn apply(tls: &mut Option<Self>, environment: &Environment, names: &[String; 5]) -> Result<(), Error> {
        let [switch, fields @ ..] = names;
        let said = environment.switch(switch)?;
        let on = said.unwrap_or(tls.is_some() || environment.first(fields)?.is_some());
        let mut options = tls.take().unwrap_or_default();
        let [ca_file, cert_file, key_file, server_name] = fields;
        environment.optional(ca_file, &mut options.ca_file)?;
        environment.optional(cert_file, &mut options.cert_file)?;
        environment.optional(key_file, &mut options.key_file)?;
        environment.optional(server_name, &mut options.server_name)?;
        *tls = on.then_some(options);
        Ok(())
    }

    /// Takes over whether a URL's scheme is the plain or the secure one. Exempt from semantic versioning, as
    /// [`adapter`](crate::adapter) is.
    ///
    /// # Errors
    /// [`Error::Config`] of this key, if the scheme is the plain one and there are options for TLS.
    pub fn agree(tls: &mut Option<Self>, key: &str, scheme: &str, [plain, secure]: [&str; 2]) -> Result<(), Error> {
        if scheme == secure {
            tls.get_or_insert_default();
        } else if tls.is_some() {
            return Err(Error::config(
                key,
                format!("is a plain {plain}://, but there are options for TLS; use {secure}://"),
            ));
        }
        Ok(())
    }
}
