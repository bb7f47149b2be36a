//! The configuration of a Milvus: its fields, their defaults, their environment variables, and the checks.

use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use crate::base::error::Error;
use crate::base::millis;
use crate::base::secret::{Secret, SecretFile};
use crate::base::setters::setters;
use crate::kinds::milvus::resource::MilvusResource;
use crate::kinds::rest::{self, limit_setters, one_secret};
use crate::lifecycle::kind::KindConfig;
use crate::net::base_url::BaseUrl;
use crate::net::parts::{Field, Names};
use crate::net::tls::TlsOptions;

/// Where the server is unless the configuration says otherwise.
pub(super) const LOCAL: &str = "http://localhost:19530";

/// A Milvus; `[milvus]` or `[named.milvus.NAME]` in TOML.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct MilvusConfig {
    /// The server's URL, which `/v1/vector` is below. A login in it is the token. Defaults to none, which is
    /// `http://localhost:19530`. Environment: `MILVUS_URL`.
    pub url: Option<Secret>,
    /// The token: a user and a password as `user:password`, or a key. Defaults to none. Environment: `MILVUS_TOKEN`.
    pub token: Option<Secret>,
    /// The file that has the token, instead of `token`. It is read again at every connect and
    /// [`refresh`](crate::ResourcePool::refresh). Defaults to none. Environment: `MILVUS_TOKEN_FILE`.
    pub token_file: Option<SecretFile>,
    /// The database. Defaults to none, which is the server's default one. Environment: `MILVUS_DATABASE`.
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

impl Default for MilvusConfig {
    fn default() -> Self {
        MilvusConfig {
            url: None,
            token: None,
            token_file: None,
            database: String::new(),
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

impl MilvusConfig {
    /// The defaults, at this URL.
    pub fn url(url: impl Into<Secret>) -> Self {
        MilvusConfig { url: Some(url.into()), ..MilvusConfig::default() }
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

    /// The path that all collections are asked for by, below the URL.
    pub(super) fn collections(&self) -> String {
        match &*self.database {
            "" => "v1/vector/collections".to_owned(),
            database => format!("v1/vector/collections?dbName={}", utf8_percent_encode(database, NON_ALPHANUMERIC)),
        }
    }
}

impl MilvusConfig {
    limit_setters! {}

    setters! {
        text {
            /// Sets the database.
            database: String,
        }
        optional {
            /// Sets the token.
            token: Secret,
        }
    }
}

impl KindConfig for MilvusConfig {
    const KIND: &'static str = "milvus";
    const IS_OURS: bool = true;
    type Resource = MilvusResource;

    const NAMES: Names = Names {
        url: ("url", &["MILVUS_URL"]),
        parts: [("", &[]), ("", &[]), ("", &[]), ("token", &["MILVUS_TOKEN"]), ("", &[])],
        plain: &["http"],
        tls: ["", "", "", "", ""],
    };

    // A URL with a path names no database, so that `database` is no part of it.
    const MORE: &[Field] = &[("database", &["MILVUS_DATABASE"])];

    one_secret!(url, token, token_file);

    fn set_more(&mut self, _database: &str, _: &str, text: &str) -> Result<(), Error> {
        text.clone_into(&mut self.database);
        Ok(())
    }

    /// Moves the login out of the URL.
    fn take_apart(&mut self, key: &str) -> Result<(), Error> {
        let Some(text) = &self.url else { return Ok(()) };
        let BaseUrl { url, user, password } = BaseUrl::new(key, text, &mut self.tls)?;
        self.url = Some(url);
        let password = password.as_ref().map(Secret::expose);
        let token = match (user, password) {
            (None, None) => return Ok(()),
            (None, Some(token)) => token.to_owned(),
            (Some(_), None) => return Err(Error::config(key, "has a user without a password")),
            (Some(user), Some(password)) => format!("{user}:{password}"),
        };
        self.token = Some(token.into());
        Ok(())
    }

    fn check(&mut self, name: &str) -> Result<(), Error> {
        rest::check(self, name)
    }

    fn resource(&self, name: &str) -> Result<MilvusResource, Error> {
        Ok(MilvusResource::new(self.settled(name)?))
    }
}
