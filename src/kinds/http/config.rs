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
use crate::kinds::rest::{self, RestKind as _, basic_user, limit_setters, user_and_password};
use crate::lifecycle::kind::KindConfig;
use crate::net::base_url::{BaseUrl, HTTP_SCHEMES};
use crate::net::checks::Checks;
use crate::net::parts::Names;
use crate::net::tls::TlsOptions;
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
    /// The headers that go along with every request. Their values count as secrets. If there are any, or a login, there
    /// must be a `url`: the client sends to its server alone, and follows no redirect to another one. A URL of the
    /// environment takes the place of them too, since they belong to the other server. Defaults to none.
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
    /// The limit of a whole request, from sending it until its answer has ended, with the time that the caller takes to
    /// read that. Zero is none. Defaults to 0.
    #[serde(rename = "operation_timeout_ms", with = "millis")]
    pub operation_timeout: Duration,
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
            operation_timeout: Duration::ZERO,
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
}

impl HttpConfig {
    limit_setters! {}

    setters! {
        plain {
            /// Sets the most redirects that are followed.
            max_redirects: usize,
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

    user_and_password!();

    fn has_login(&self) -> bool {
        !self.user.is_empty() || self.password.is_some() || self.password_file.is_some() || !self.headers.is_empty()
    }

    fn forget_login(&mut self) {
        (self.user, self.password) = (String::new(), None);
        self.headers.clear();
    }

    fn switch_tls(&mut self, on: bool) {
        self.url = self.url.as_ref().map(|url| BaseUrl::with_tls(url, on));
    }

    fn check(&mut self, name: &str) -> Result<(), Error> {
        let checks = Checks(name);
        basic_user(name, &self.user)?;
        if HeaderValue::from_str(&self.user_agent).is_err() {
            return checks.fail("user_agent", "cannot stand in an HTTP header: it must be printable ASCII");
        }
        if self.url.is_none() && self.has_login() {
            return checks.fail("url", "is not set, but a login or headers are, which go to its server alone");
        }
        match self.health_url.as_ref().map(|url| url.expose().trim()) {
            Some(url) if is_whole(url) => {
                let key = format!("{name}.health_url");
                ParsedUrl::new(&key, &url.into(), &HTTP_SCHEMES)?;
                let is_elsewhere = |base: Url| Url::parse(url).is_ok_and(|url| url.origin() != base.origin());
                if self.has_login() && self.base().is_some_and(is_elsewhere) {
                    return Err(Error::config(
                        key,
                        "is of another server than `url`, which alone gets the login and the headers",
                    ));
                }
            }
            Some(_) if self.url.is_none() => return checks.fail("health_url", "is a path, but there is no `url`"),
            _ => {}
        }
        rest::check(self, name)
    }

    fn resource(&self, name: &str) -> Result<HttpResource, Error> {
        Ok(HttpResource::new(self.settled(name)?))
    }
}

/// Whether this is a whole URL, and no path with one in its query.
fn is_whole(text: &str) -> bool {
    let is_scheme = |scheme: &str| scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    text.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme))
}
