//! TLS: its options, the same for every backend, and what backends do with them. The client made of them is rustls on ring.

#[cfg(feature = "tls")]
#[cfg_attr(
    not(any(feature = "rabbitmq", feature = "clickhouse", feature = "redis")),
    allow(dead_code, reason = "MongoDB's driver has a client of its own")
)]
pub(crate) mod client;
#[cfg(any(feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
mod stream;

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[cfg(feature = "redis")]
pub(crate) use self::stream::Blocking;
#[cfg(any(feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
pub(crate) use self::stream::{Stream, Tls};
use crate::base::environment::Environment;
use crate::base::error::{Error, Failure, Worded};
use crate::base::runtime::within;

/// How to speak TLS; the table `tls` of a backend in TOML, as `[redis.tls]`, or `[named.redis.NAME.tls]`.
///
/// A backend speaks TLS if its URL's scheme says so (`rediss`, `amqps`, `https`, `mongodb+srv`, `mongodb` with
/// `?tls=true`) or if it has these options, be they all left at their defaults. The server's certificate and the name
/// in it are always checked. All files are PEM, and are read once, when the pool is built.
///
/// ```
/// use resource_pool::config::TlsOptions;
///
/// let tls = TlsOptions::default().ca_file("/etc/desk/ca.pem").cert_file("/etc/desk/strategy.pem");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TlsOptions {
    /// The certificates of the authorities that may have signed the server's. Defaults to none: those that the
    /// machine trusts or, for MongoDB, Mozilla's list.
    pub ca_file: Option<PathBuf>,
    /// The certificate that is shown to a server that asks for one, with what lies between it and its authority.
    /// Defaults to none.
    pub cert_file: Option<PathBuf>,
    /// The certificate's private key, not encrypted. Defaults to none: it is in `cert_file` too, where MongoDB's
    /// driver wants it always.
    pub key_file: Option<PathBuf>,
    /// The name that the server's certificate is to have. Defaults to none: the host. Not for MongoDB, whose driver
    /// checks the host's.
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

    /// The environment's variables for the switch and the fields, in their order. Any of the fields' switches TLS on.
    pub(crate) fn apply(tls: &mut Option<Self>, environment: &Environment, names: [&str; 5]) -> Result<(), Error> {
        let [switch, fields @ ..] = names;
        let said = environment.switch(switch)?;
        let on = said.unwrap_or(tls.is_some() || environment.first(&fields)?.is_some());
        let mut options = tls.take().unwrap_or_default();
        let [ca_file, cert_file, key_file, server_name] = fields;
        environment.optional(&[ca_file], &mut options.ca_file)?;
        environment.optional(&[cert_file], &mut options.cert_file)?;
        environment.optional(&[key_file], &mut options.key_file)?;
        environment.optional(&[server_name], &mut options.server_name)?;
        *tls = on.then_some(options);
        Ok(())
    }
}

/// The failure of a client that speaks no TLS, or that this is what the port wants.
pub(crate) async fn or_wanted(failure: Failure, host: &str, port: u16, remedy: &str) -> Failure {
    match !failure.permanent && speaks_tls(host, port).await {
        true => {
            let text = format!("this port speaks TLS: {remedy} ({failure})");
            Failure::permanent(Worded::new(text, failure.source))
        }
        false => failure,
    }
}

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

/// Whether a server answers a TLS client there.
async fn speaks_tls(host: &str, port: u16) -> bool {
    const LIMIT: Duration = Duration::from_millis(500);
    /// A `ClientHello` in its record: TLS 1.2, a random, no session, two ciphers, no compression, and as extensions
    /// two groups and three kinds of signature, without which OpenSSL hangs up.
    const HELLO: [&[u8]; 4] = [
        &[22, 3, 1, 0, 71, 1, 0, 0, 67, 3, 3],
        &[0x5A; 32],
        &[0, 0, 4, 0xC0, 0x2B, 0xC0, 0x2F, 1, 0],
        &[0, 22, 0, 10, 0, 6, 0, 4, 0, 29, 0, 23, 0, 13, 0, 8, 0, 6, 4, 3, 8, 4, 4, 1],
    ];
    let answer = async {
        let mut stream = TcpStream::connect((host, port)).await?;
        stream.write_all(&HELLO.concat()).await?;
        let mut record = [0; 2];
        stream.read_exact(&mut record).await?;
        std::io::Result::Ok(record)
    };
    // An alert or a handshake message.
    matches!(within(LIMIT, answer).await, Ok(Ok([21 | 22, 3])))
}
