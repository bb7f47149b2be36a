//! The configuration of a Chroma: its fields, their defaults, their environment variables, and the checks.

use std::time::Duration;

use serde::Deserialize;

use crate::base::error::Error;
use crate::base::millis;
use crate::base::secret::{Secret, SecretFile};
use crate::base::setters::setters;
use crate::kinds::chroma::handle::segment;
use crate::kinds::chroma::resource::ChromaResource;
use crate::kinds::rest::{self, limit_setters, one_secret};
use crate::lifecycle::kind::KindConfig;
use crate::net::base_url::BaseUrl;
use crate::net::checks::Checks;
use crate::net::parts::{Field, Names};
use crate::net::tls::TlsOptions;

/// Where the server is unless the configuration says otherwise.
pub(super) const LOCAL: &str = "http://localhost:8000";

/// A Chroma, or rather the database of a tenant there; `[chroma]` or `[named.chroma.NAME]` in TOML.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ChromaConfig {
    /// The server's URL, which `/api/v2` is below. A password in it is the token. Defaults to none, which is
    /// `http://localhost:8000`. Environment: `CHROMA_URL`.
    pub url: Option<Secret>,
    /// The token. It goes along as `X-Chroma-Token`, which Chroma Cloud asks for, and as `Authorization: Bearer`, which
    /// proxies before a server of one's own do. Defaults to none. Environment: `CHROMA_TOKEN`.
    pub token: Option<Secret>,
    /// The file that has the token, instead of `token`. It is read again at every connect and
    /// [`refresh`](crate::ResourcePool::refresh). Defaults to none. Environment: `CHROMA_TOKEN_FILE`.
    pub token_file: Option<SecretFile>,
    /// The tenant. Defaults to `default_tenant`. Environment: `CHROMA_TENANT`.
    pub tenant: String,
    /// The tenant's database. Defaults to `default_database`. Environment: `CHROMA_DATABASE`.
    pub database: String,
    /// The limit for opening a connection, with DNS and TLS. Defaults to 5 s.
    #[serde(rename = "connect_timeout_ms", with = "millis")]
    pub connect_timeout: Duration,
    /// How long the server may be silent, at least 1 ms: until its answer begins, and between two parts of it. Until then
    /// the time to connect and to send the request counts too. Defaults to 30 s.
    #[serde(rename = "read_timeout_ms", with = "millis")]
    pub read_timeout: Duration,
    /// The limit of a whole request, from sending it until its answer has ended, with the time that the caller takes to
    /// read that. Zero is none. Defaults to 0.
    #[serde(rename = "operation_timeout_ms", with = "millis")]
    pub operation_timeout: Duration,
    /// The most requests at a time. One beyond that waits, at most the acquire timeout. Defaults to 100.
    pub max_requests: usize,
    /// The most idle connections that are kept. Defaults to 16.
    pub max_idle: usize,
    /// The time after which an idle connection is closed. Defaults to 60 s.
    #[serde(rename = "idle_timeout_ms", with = "millis")]
    pub idle_timeout: Duration,
    /// The time without traffic after which TCP keepalive begins, in whole seconds from 1 to 32,767. Defaults to 60 s.
    #[serde(rename = "keepalive_ms", with = "millis")]
    pub keepalive: Duration,
    /// The most bytes of an answer. Defaults to 64 MiB.
    pub max_body: usize,
    /// The options of TLS. Defaults to none: an `https://` trusts the authorities that the machine trusts.
    pub tls: Option<TlsOptions>,
}

impl Default for ChromaConfig {
    fn default() -> Self {
        ChromaConfig {
            url: None,
            token: None,
            token_file: None,
            tenant: "default_tenant".to_owned(),
            database: "default_database".to_owned(),
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(30),
            operation_timeout: Duration::ZERO,
            max_requests: 100,
            max_idle: 16,
            idle_timeout: Duration::from_secs(60),
            keepalive: Duration::from_secs(60),
            max_body: 64 * 1024 * 1024,
            tls: None,
        }
    }
}

impl ChromaConfig {
    /// The defaults, at this URL.
    pub fn url(url: impl Into<Secret>) -> Self {
        ChromaConfig { url: Some(url.into()), ..ChromaConfig::default() }
    }

    /// Sets the file that has the token.
    pub fn token_file(mut self, file: impl Into<SecretFile>) -> Self {
        self.token_file = Some(file.into());
        self
    }

    /// Sets the options of TLS.
    pub fn tls(mut self, tls: TlsOptions) -> Self {
        self.tls = Some(tls);
        self
    }

    /// The path of the tenant's database, below the URL.
    pub(super) fn path(&self) -> String {
        // The checks have refused names that have no segment.
        let [tenant, database] = [&self.tenant, &self.database].map(|name| segment(name).unwrap_or_default());
        format!("api/v2/tenants/{tenant}/databases/{database}")
    }
}

impl ChromaConfig {
    limit_setters! {}

    setters! {
        text {
            /// Sets the tenant.
            tenant: String,
            /// Sets the tenant's database.
            database: String,
        }
        optional {
            /// Sets the token.
            token: Secret,
        }
    }
}

impl KindConfig for ChromaConfig {
    const KIND: &'static str = "chroma";
    const IS_OURS: bool = true;
    type Resource = ChromaResource;

    const NAMES: Names = Names {
        url: ("url", &["CHROMA_URL"]),
        parts: [("", &[]), ("", &[]), ("", &[]), ("token", &["CHROMA_TOKEN"]), ("", &[])],
        plain: &["http"],
        tls: ["", "", "", "", ""],
    };

    // A URL with a path names no database, so that `database` is no part of it.
    const MORE: &[Field] = &[("tenant", &["CHROMA_TENANT"]), ("database", &["CHROMA_DATABASE"])];

    one_secret!(url, token, token_file);

    fn set_more(&mut self, field: &str, _: &str, text: &str) -> Result<(), Error> {
        let place = if field == "tenant" { &mut self.tenant } else { &mut self.database };
        text.clone_into(place);
        Ok(())
    }

    /// Moves the token out of the URL.
    fn take_apart(&mut self, key: &str) -> Result<(), Error> {
        let Some(text) = &self.url else { return Ok(()) };
        let BaseUrl { url, user, password } = BaseUrl::new(key, text, &mut self.tls)?;
        if user.is_some() {
            return Err(Error::config(key, "has a user, but a token has none; it may be the password alone"));
        }
        self.url = Some(url);
        self.token = password.or(self.token.take());
        Ok(())
    }

    fn check(&mut self, name: &str) -> Result<(), Error> {
        for (field, text) in [("tenant", &self.tenant), ("database", &self.database)] {
            if let Err(problem) = segment(text) {
                return Checks(name).fail(field, problem);
            }
        }
        rest::check(self, name)
    }

    fn resource(&self, name: &str) -> Result<ChromaResource, Error> {
        Ok(ChromaResource::new(self.settled(name)?))
    }
}
