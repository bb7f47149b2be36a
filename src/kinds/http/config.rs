//! The configuration of a client of HTTP: its fields, their defaults, their environment variables, and the checks.

use std::collections::BTreeMap;
use std::time::Duration;

use http::header::HeaderValue;
use reqwest::Url;
use serde::Deserialize;

use crate::base::error::Error;
use crate::base::millis;
use crate::base::secret::{Secret, SecretFile};
use crate::base::setters::setters;
use crate::kinds::http::resource::HttpResource;
use crate::lifecycle::kind::KindConfig;
use crate::lifecycle::requests::RequestSettings;
use crate::net::base_url::{BaseUrl, HTTP_SCHEMES};
use crate::net::checks::Checks;
use crate::net::parts::{Names, Part};
use crate::net::tls::{RequestTls, TlsOptions};
use crate::net::url::ParsedUrl;

/// A client of HTTP; `[http]` or `[named.http.NAME]` in TOML.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct HttpConfig {
    /// The URL that the paths of requests are below: `https://user:password@host:port/path`. A login in it takes the
    /// place of the fields. Defaults to none, so that every request needs a whole URL. Environment: `HTTPCLIENT_URL`.
    pub url: Option<Secret>,
    /// The user, for a login by `Basic`. Defaults to none. Environment: `HTTPCLIENT_USER`.
    pub user: String,
    /// The user's password, or a token (`Bearer`) if there is no user. Defaults to none. Environment:
    /// `HTTPCLIENT_PASSWORD`.
    pub password: Option<Secret>,
    /// The file that has the password or the token, instead of `password`. It is read again at every connect and
    /// [`refresh`](crate::ResourcePool::refresh). Defaults to none. Environment: `HTTPCLIENT_PASSWORD_FILE`.
    pub password_file: Option<SecretFile>,
    /// The headers that go along with every request. Their values count as secrets. If there are any, or a login, the
    /// client sends to the server of `url` alone, and follows no redirect to another one. Defaults to none.
    pub headers: BTreeMap<String, Secret>,
    /// The header `User-Agent`. Defaults to `resource-pool`.
    pub user_agent: String,
    /// The limit for opening a connection, with DNS and TLS. Defaults to 5 s.
    #[serde(rename = "connect_timeout_ms", with = "millis")]
    pub connect_timeout: Duration,
    /// How long the server may be silent, at least 1 ms: until its answer begins, and between two parts of the answer.
    /// Until then the time to connect and to send the request counts too. The time that the caller takes does not count.
    /// Defaults to 30 s.
    #[serde(rename = "read_timeout_ms", with = "millis")]
    pub read_timeout: Duration,
    /// The most requests at a time, bodies of answers included. A request beyond that waits, at most the acquire
    /// timeout. Defaults to 100.
    pub max_requests: usize,
    /// The most idle connections that are kept for each server. Defaults to 16.
    pub max_idle: usize,
    /// The time after which an idle connection is closed. Defaults to 60 s.
    #[serde(rename = "idle_timeout_ms", with = "millis")]
    pub idle_timeout: Duration,
    /// The time without traffic after which TCP keepalive begins, in whole seconds from 1 to 32,767. Defaults to 60 s.
    #[serde(rename = "keepalive_ms", with = "millis")]
    pub keepalive: Duration,
    /// The most redirects that are followed. An answer that asks for one more is an error. With 0 it is the answer.
    /// Defaults to 10.
    pub max_redirects: usize,
    /// The most bytes of a body that is read as a whole. One that is read in parts has no limit. Defaults to 64 MiB.
    pub max_body: usize,
    /// The proxy, as in `http://user:password@host:port`. Defaults to none.
    pub proxy: Option<Secret>,
    /// Whether the proxies of the environment are used: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`. Defaults
    /// to `false`.
    pub environment_proxies: bool,
    /// The URL that tells the server's health, or a path below `url`. It is asked by HEAD, or by GET if the server takes
    /// no HEAD. Connecting and health checks ask it, and the prober does, as it does with other kinds. Defaults to none:
    /// nothing is asked, and health is unknown.
    pub health_url: Option<Secret>,
    /// The options of TLS. Defaults to none: an `https://` trusts the authorities that the machine trusts. Environment:
    /// `HTTPCLIENT_TLS`, `HTTPCLIENT_TLS_CA_FILE`, `HTTPCLIENT_TLS_CERT_FILE`, `HTTPCLIENT_TLS_KEY_FILE`.
    pub tls: Option<TlsOptions>,
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig {
            url: None,
            user: String::new(),
            password: None,
            password_file: None,
            headers: BTreeMap::new(),
            user_agent: "resource-pool".to_owned(),
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(30),
            max_requests: 100,
            max_idle: 16,
            idle_timeout: Duration::from_secs(60),
            keepalive: Duration::from_secs(60),
            max_redirects: 10,
            max_body: 64 * 1024 * 1024,
            proxy: None,
            environment_proxies: false,
            health_url: None,
            tls: None,
        }
    }
}

impl HttpConfig {
    /// The defaults, below this URL.
    pub fn url(url: impl Into<Secret>) -> Self {
        HttpConfig { url: Some(url.into()), ..HttpConfig::default() }
    }

    /// Adds a header that goes along with every request. Its value counts as a secret.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Secret>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// Sets the file that has the password or the token.
    pub fn password_file(mut self, file: impl Into<SecretFile>) -> Self {
        self.password_file = Some(file.into());
        self
    }

    /// Sets the options of TLS.
    pub fn tls(mut self, tls: TlsOptions) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Scheme, host and port of `url`. Its path may have a secret in it.
    pub(super) fn server(&self) -> String {
        self.base().map_or_else(String::new, |base| base.origin().ascii_serialization())
    }

    fn base(&self) -> Option<Url> {
        self.url.as_ref().and_then(|url| Url::parse(url.expose().trim()).ok())
    }

    /// The settings of the client, for the resource of this name. This reads the files of TLS.
    pub(super) fn settings(&self, name: &str) -> Result<RequestSettings, Error> {
        self.settings_with(name, RequestTls::new(name, self.tls.as_ref())?)
    }

    fn settings_with(&self, name: &str, tls: RequestTls) -> Result<RequestSettings, Error> {
        let mut settings = RequestSettings::new(tls);
        settings.base = self.base();
        settings.user_agent.clone_from(&self.user_agent);
        settings.connect_timeout = self.connect_timeout;
        settings.read_timeout = self.read_timeout;
        settings.max_requests = self.max_requests;
        settings.max_idle = self.max_idle;
        settings.idle_timeout = self.idle_timeout;
        settings.keepalive = self.keepalive;
        settings.max_redirects = self.max_redirects;
        settings.max_body = self.max_body;
        settings.proxy.clone_from(&self.proxy);
        settings.environment_proxies = self.environment_proxies;
        settings.login(&format!("{name}.password"), &self.user, self.password.as_ref())?;
        settings.headers(name, &self.headers)?;
        let by_file = self.password_file.as_ref().map(SecretFile::recent).unwrap_or_default();
        settings.secrets.extend(by_file);
        Ok(settings)
    }
}

impl HttpConfig {
    setters! {
        plain {
            /// Sets the limit for opening a connection.
            connect_timeout: Duration,
            /// Sets how long the server may be silent.
            read_timeout: Duration,
            /// Sets the most requests at a time.
            max_requests: usize,
            /// Sets the most idle connections that are kept for each server.
            max_idle: usize,
            /// Sets the time after which an idle connection is closed.
            idle_timeout: Duration,
            /// Sets the time without traffic after which TCP keepalive begins.
            keepalive: Duration,
            /// Sets the most redirects that are followed.
            max_redirects: usize,
            /// Sets the most bytes of a body that is read as a whole.
            max_body: usize,
            /// Sets whether the proxies of the environment are used.
            environment_proxies: bool,
        }
        text {
            /// Sets the user.
            user: String,
            /// Sets the header `User-Agent`.
            user_agent: String,
        }
        optional {
            /// Sets the password, or the token if there is no user.
            password: Secret,
            /// Sets the proxy.
            proxy: Secret,
            /// Sets the URL or path that tells the server's health.
            health_url: Secret,
        }
    }
}

impl KindConfig for HttpConfig {
    const KIND: &'static str = "http";
    const SYSTEM: (&'static str, &'static str) = ("network.protocol.name", "http");
    const IS_OURS: bool = true;
    type Resource = HttpResource;

    // Not `HTTP_…`, because a CGI server sets such variables to what a request says.
    const NAMES: Names = Names {
        url: ("url", &["HTTPCLIENT_URL"]),
        parts: [
            ("", &[]),
            ("", &[]),
            ("user", &["HTTPCLIENT_USER"]),
            ("password", &["HTTPCLIENT_PASSWORD"]),
            ("", &[]),
        ],
        plain: &["http"],
        tls: ["HTTPCLIENT_TLS", "HTTPCLIENT_TLS_CA_FILE", "HTTPCLIENT_TLS_CERT_FILE", "HTTPCLIENT_TLS_KEY_FILE", ""],
    };

    fn url_mut(&mut self) -> &mut Option<Secret> {
        &mut self.url
    }

    fn tls_mut(&mut self) -> &mut Option<TlsOptions> {
        &mut self.tls
    }

    fn has_login(&self) -> bool {
        !self.user.is_empty() || self.password.is_some() || self.password_file.is_some()
    }

    fn forget_login(&mut self) {
        (self.user, self.password) = (String::new(), None);
    }

    fn forget_password(&mut self) -> bool {
        self.password.take().is_some()
    }

    fn password_file(&self) -> Option<&SecretFile> {
        self.password_file.as_ref()
    }

    fn set_password_file(&mut self, file: Option<SecretFile>) {
        self.password_file = file;
    }

    fn set(&mut self, part: Part, _: &str, text: &str) -> Result<(), Error> {
        match part {
            Part::User => text.clone_into(&mut self.user),
            Part::Password => self.password = Some(text.into()),
            // They have no variables.
            Part::Host | Part::Port | Part::Place => {}
        }
        Ok(())
    }

    /// Moves the login out of the URL.
    fn take_apart(&mut self, key: &str) -> Result<(), Error> {
        let Some(text) = &self.url else { return Ok(()) };
        let BaseUrl { url, user, password } = BaseUrl::new(key, text, &mut self.tls)?;
        self.url = Some(url);
        if let Some(user) = user {
            self.user = user;
        }
        self.password = password.or(self.password.take());
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
        if self.user.contains(':') || self.user.contains(char::is_control) {
            return checks.fail("user", "has a colon or a control character, which a login by `Basic` cannot have");
        }
        if HeaderValue::from_str(&self.user_agent).is_err() {
            return checks.fail("user_agent", "cannot stand in an HTTP header: it must be printable ASCII");
        }
        if let Some(proxy) = &self.proxy {
            ParsedUrl::new(&format!("{name}.proxy"), proxy, &HTTP_SCHEMES)?;
        }
        match self.health_url.as_ref().map(|url| url.expose().trim()) {
            Some(url) if url.contains("://") => {
                ParsedUrl::new(&format!("{name}.health_url"), &url.into(), &HTTP_SCHEMES)?;
            }
            Some(_) if self.url.is_none() => return checks.fail("health_url", "is a path, but there is no `url`"),
            _ => {}
        }
        // This check reads the files of TLS, and says more about a bad one than a connect does.
        let tls = match &self.tls {
            Some(tls) => RequestTls::new(name, Some(tls))?,
            None => RequestTls::trusting_nobody(name)?,
        };
        self.settings_with(name, tls).map(drop)
    }

    fn resource(&self, name: &str) -> Result<HttpResource, Error> {
        Ok(HttpResource::new(self.settled(name)?))
    }
}
