//! The configuration of a Chroma: its fields, their defaults, their environment variables, and the checks.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;

use crate::base::error::Error;
use crate::base::millis;
use crate::base::secret::{Secret, SecretFile};
use crate::base::setters::setters;
use crate::kinds::chroma::handle::segment;
use crate::kinds::chroma::resource::ChromaResource;
use crate::lifecycle::kind::KindConfig;
use crate::lifecycle::requests::RequestSettings;
use crate::net::base_url::BaseUrl;
use crate::net::checks::Checks;
use crate::net::parts::{Field, Names, Part};
use crate::net::tls::{RequestTls, TlsOptions};

/// Where the server is unless the configuration says otherwise.
const LOCAL: &str = "http://localhost:8000";

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

    /// Scheme, host and port of the server. The path may have a secret in it.
    pub(super) fn server(&self) -> String {
        self.base().map_or_else(String::new, |base| base.origin().ascii_serialization())
    }

    /// The path of the tenant's database, below the URL.
    pub(super) fn path(&self) -> String {
        // The checks have refused names that have no segment.
        let [tenant, database] = [&self.tenant, &self.database].map(|name| segment(name).unwrap_or_default());
        format!("api/v2/tenants/{tenant}/databases/{database}")
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
        let cloud = self.token.iter().map(|token| ("X-Chroma-Token".to_owned(), token.clone()));
        settings.headers(name, &BTreeMap::from_iter(cloud))?;
        let by_file = self.token_file.as_ref().map(SecretFile::recent).unwrap_or_default();
        settings.secrets.extend(by_file);
        Ok(settings)
    }
}

impl ChromaConfig {
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

    fn switch_tls(&mut self, on: bool) {
        self.url = self.url.as_ref().map(|url| BaseUrl::with_tls(url, on));
    }

    fn check(&mut self, name: &str) -> Result<(), Error> {
        let checks = Checks(name);
        checks.counts(&[("max_requests", self.max_requests), ("max_body", self.max_body)])?;
        checks.limits(&[("connect_timeout_ms", self.connect_timeout), ("read_timeout_ms", self.read_timeout)])?;
        checks.keepalive(self.keepalive)?;
        for (field, text) in [("tenant", &self.tenant), ("database", &self.database)] {
            if let Err(problem) = segment(text) {
                return checks.fail(field, problem);
            }
        }
        // This check reads the files of TLS, and says more about a bad one than a connect does.
        let tls = match &self.tls {
            Some(tls) => RequestTls::new(name, Some(tls))?,
            None => RequestTls::trusting_nobody(name)?,
        };
        self.settings_with(name, tls).map(drop)
    }

    fn resource(&self, name: &str) -> Result<ChromaResource, Error> {
        Ok(ChromaResource::new(self.settled(name)?))
    }
}
