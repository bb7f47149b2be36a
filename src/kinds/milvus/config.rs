//! The configuration of a Milvus: its fields, their defaults, their environment variables, and the checks.

use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Url;
use serde::Deserialize;

use crate::base::error::Error;
use crate::base::millis;
use crate::base::secret::{Secret, SecretFile};
use crate::base::setters::setters;
use crate::kinds::milvus::resource::MilvusResource;
use crate::lifecycle::kind::KindConfig;
use crate::lifecycle::requests::RequestSettings;
use crate::net::base_url::BaseUrl;
use crate::net::checks::Checks;
use crate::net::parts::{Field, Names, Part};
use crate::net::tls::{RequestTls, TlsOptions};

/// Where the server is unless the configuration says otherwise.
const LOCAL: &str = "http://localhost:19530";

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

    /// Scheme, host and port of the server. The path may have a secret in it.
    pub(super) fn server(&self) -> String {
        self.base().map_or_else(String::new, |base| base.origin().ascii_serialization())
    }

    /// The path that all collections are asked for by, below the URL.
    pub(super) fn collections(&self) -> String {
        match &*self.database {
            "" => "v1/vector/collections".to_owned(),
            database => format!("v1/vector/collections?dbName={}", utf8_percent_encode(database, NON_ALPHANUMERIC)),
        }
    }

    fn base(&self) -> Option<Url> {
        Url::parse(self.url.as_ref().map_or(LOCAL, |url| url.expose().trim())).ok()
    }

    /// The settings of the client, for the resource of this name. This reads the files of TLS.
    pub(super) fn settings(&self, name: &str) -> Result<RequestSettings, Error> {
        self.settings_with(name, RequestTls::new(name, self.tls.as_ref())?)
    }

    fn settings_with(&self, name: &str, tls: RequestTls) -> Result<RequestSettings, Error> {
        let mut settings = RequestSettings::new(tls);
        settings.base = self.base();
        settings.connect_timeout = self.connect_timeout;
        settings.read_timeout = self.read_timeout;
        settings.max_requests = self.max_requests;
        settings.max_idle = self.max_idle;
        settings.idle_timeout = self.idle_timeout;
        settings.keepalive = self.keepalive;
        settings.max_body = self.max_body;
        settings.login(&format!("{name}.token"), "", self.token.as_ref())?;
        let by_file = self.token_file.as_ref().map(SecretFile::recent).unwrap_or_default();
        settings.secrets.extend(by_file);
        // The server may tell the password alone.
        let passwords = settings.secrets.iter().filter_map(|token| token.expose().split_once(':'));
        let passwords: Vec<Secret> = passwords.map(|(_user, password)| password.into()).collect();
        settings.secrets.extend(passwords);
        Ok(settings)
    }
}

impl MilvusConfig {
    setters! {
        plain {
            /// Sets the limit for opening a connection.
            connect_timeout: Duration,
            /// Sets how long the server may be silent.
            read_timeout: Duration,
            /// Sets the most requests at a time.
            max_requests: usize,
            /// Sets the most idle connections that are kept.
            max_idle: usize,
            /// Sets the time after which an idle connection is closed.
            idle_timeout: Duration,
            /// Sets the time without traffic after which TCP keepalive begins.
            keepalive: Duration,
            /// Sets the most bytes of an answer.
            max_body: usize,
        }
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

    fn url_mut(&mut self) -> &mut Option<Secret> {
        &mut self.url
    }

    fn tls_mut(&mut self) -> &mut Option<TlsOptions> {
        &mut self.tls
    }

    fn has_login(&self) -> bool {
        self.token.is_some() || self.token_file.is_some()
    }

    fn forget_login(&mut self) {
        self.token = None;
    }

    fn forget_password(&mut self) -> bool {
        self.token.take().is_some()
    }

    fn password_file(&self) -> Option<&SecretFile> {
        self.token_file.as_ref()
    }

    fn set_password_file(&mut self, file: Option<SecretFile>) {
        self.token_file = file;
    }

    /// Sets the token, which alone has a variable.
    fn set(&mut self, _: Part, _: &str, text: &str) -> Result<(), Error> {
        self.token = Some(text.into());
        Ok(())
    }

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

    fn switch_tls(&mut self, on: bool) {
        self.url = self.url.as_ref().map(|url| BaseUrl::with_tls(url, on));
    }

    fn check(&mut self, name: &str) -> Result<(), Error> {
        let checks = Checks(name);
        checks.counts(&[("max_requests", self.max_requests), ("max_body", self.max_body)])?;
        checks.limits(&[("connect_timeout_ms", self.connect_timeout), ("read_timeout_ms", self.read_timeout)])?;
        checks.keepalive(self.keepalive)?;
        // This check reads the files of TLS, and says more about a bad one than a connect does.
        let tls = match &self.tls {
            Some(tls) => RequestTls::new(name, Some(tls))?,
            None => RequestTls::trusting_nobody(name)?,
        };
        self.settings_with(name, tls).map(drop)
    }

    fn resource(&self, name: &str) -> Result<MilvusResource, Error> {
        Ok(MilvusResource::new(self.settled(name)?))
    }
}
