//! The configuration of an Elasticsearch: its fields, their defaults, their environment variables, and the checks.

use std::borrow::Cow;
use std::io;
use std::time::Duration;

use serde::Deserialize;

use crate::base::attribute;
use crate::base::error::Error;
use crate::base::millis;
use crate::base::secret::{Secret, SecretFile};
use crate::base::setters::setters;
use crate::kinds::elastic::resource::ElasticResource;
use crate::kinds::rest::{self, basic_user, limit_setters, user_and_password};
use crate::lifecycle::kind::KindConfig;
use crate::net::base_url::BaseUrl;
use crate::net::checks::Checks;
use crate::net::parts::{Field, Names};
use crate::net::tls::TlsOptions;

/// Where the server is unless the configuration says otherwise, plain and over TLS.
pub(super) const LOCAL: [&str; 2] = ["http://localhost:9200", "https://localhost:9200"];

/// How often refused rows are repeated at most.
const MOST_REPEATS: u32 = 10;

/// An Elasticsearch, or what is compatible with it; `[elastic]` or `[named.elastic.NAME]` in TOML.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ElasticConfig {
    /// The URL of the server: `https://user:password@host:port/path`. A login in it takes the place of the fields.
    /// Defaults to none, which is `http://localhost:9200`. Environment: `ELASTIC_URL`.
    pub url: Option<Secret>,
    /// The user. Defaults to none. Environment: `ELASTIC_USER`.
    pub user: String,
    /// The user's password. Defaults to none. Environment: `ELASTIC_PASSWORD`.
    pub password: Option<Secret>,
    /// The file that has the password, instead of `password`. It is read again at every connect and
    /// [`refresh`](crate::ResourcePool::refresh). Defaults to none. Environment: `ELASTIC_PASSWORD_FILE`.
    pub password_file: Option<SecretFile>,
    /// The API key, as the server tells it in base64, instead of a login. Defaults to none. Environment:
    /// `ELASTIC_API_KEY`.
    pub api_key: Option<Secret>,
    /// The file that has the API key, instead of `api_key`. It is read as `password_file` is. Defaults to none.
    /// Environment: `ELASTIC_API_KEY_FILE`, which `ELASTIC_API_KEY` takes the place of.
    pub api_key_file: Option<SecretFile>,
    /// The limit for opening a connection, with DNS and TLS. Defaults to 5 s.
    #[serde(rename = "connect_timeout_ms", with = "millis")]
    pub connect_timeout: Duration,
    /// How long the server may be silent, at least 1 ms: until its answer begins, and between two parts of it. Defaults
    /// to 30 s.
    #[serde(rename = "read_timeout_ms", with = "millis")]
    pub read_timeout: Duration,
    /// The limit of a whole request, from sending it until its answer has ended, with the time that the caller takes to
    /// read that. Zero is none. Defaults to 0.
    #[serde(rename = "operation_timeout_ms", with = "millis")]
    pub operation_timeout: Duration,
    /// The most requests at a time. One beyond that waits, at most the acquire timeout. Defaults to 32.
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
    /// The most rows that a bulk writer holds before it sends them. Defaults to 1,000.
    pub bulk_rows: usize,
    /// The most bytes of documents that a bulk writer holds before it sends them. A larger document is sent as soon as it
    /// comes. Defaults to 5 MiB.
    pub bulk_bytes: usize,
    /// The longest that a bulk writer holds a row before it sends it. Defaults to 1 s.
    #[serde(rename = "bulk_period_ms", with = "millis")]
    pub bulk_period: Duration,
    /// How often rows are sent again that the server answered by 429, from 0 to 10. Defaults to 3.
    pub max_repeats: u32,
    /// The longest that a bulk waits for these repeats in all. The first waits 250 ms and each further one twice as
    /// long, unless the server says by `Retry-After` how long to wait. Defaults to 20 s.
    #[serde(rename = "max_repeat_wait_ms", with = "millis")]
    pub max_repeat_wait: Duration,
    /// How long closing may take to flush one bulk writer, at least 1 ms. Defaults to 5 s.
    #[serde(rename = "flush_timeout_ms", with = "millis")]
    pub flush_timeout: Duration,
    /// The most hits of a page of a scroll, unless its body has a `size`. Defaults to 1,000.
    pub scroll_size: usize,
    /// How long the server keeps a scroll between two pages, at least 1 ms. Defaults to 60 s.
    #[serde(rename = "scroll_keep_ms", with = "millis")]
    pub scroll_keep: Duration,
    /// The proxy, as in `http://user:password@host:port`. Defaults to none.
    pub proxy: Option<Secret>,
    /// Whether the proxies of the environment are used: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`. Defaults
    /// to `false`.
    pub environment_proxies: bool,
    /// The options of TLS. Defaults to none: an `https://` trusts the authorities that the machine trusts. Environment:
    /// `ELASTIC_TLS`, `ELASTIC_TLS_CA_FILE`, `ELASTIC_TLS_CERT_FILE`, `ELASTIC_TLS_KEY_FILE`.
    pub tls: Option<TlsOptions>,
}

impl Default for ElasticConfig {
    fn default() -> Self {
        ElasticConfig {
            url: None,
            user: String::new(),
            password: None,
            password_file: None,
            api_key: None,
            api_key_file: None,
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(30),
            operation_timeout: Duration::ZERO,
            max_requests: 32,
            max_idle: 16,
            idle_timeout: Duration::from_secs(60),
            keepalive: Duration::from_secs(60),
            max_body: 64 * 1024 * 1024,
            bulk_rows: 1000,
            bulk_bytes: 5 * 1024 * 1024,
            bulk_period: Duration::from_secs(1),
            max_repeats: 3,
            max_repeat_wait: Duration::from_secs(20),
            flush_timeout: Duration::from_secs(5),
            scroll_size: 1000,
            scroll_keep: Duration::from_secs(60),
            proxy: None,
            environment_proxies: false,
            tls: None,
        }
    }
}

impl ElasticConfig {
    /// The defaults, at this URL.
    pub fn url(url: impl Into<Secret>) -> Self {
        ElasticConfig { url: Some(url.into()), ..ElasticConfig::default() }
    }

    /// Sets the file that has the password.
    pub fn password_file(mut self, file: impl Into<SecretFile>) -> Self {
        self.password_file = Some(file.into());
        self
    }

    /// Sets the file that has the API key.
    pub fn api_key_file(mut self, file: impl Into<SecretFile>) -> Self {
        self.api_key_file = Some(file.into());
        self
    }

    /// Sets the options of TLS.
    pub fn tls(mut self, tls: TlsOptions) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Reads the API key's file, if there is one, and sets the key.
    fn read_api_key(&mut self, name: &str) -> Result<(), Error> {
        let Some(file) = self.api_key_file.clone() else { return Ok(()) };
        let key = format!("{name}.api_key_file");
        if self.api_key.is_some() {
            return Err(Error::config(key, "is set beside `api_key`: leave out one of them"));
        }
        self.api_key = Some(file.read().map_err(|error| Error::config(key, error))?);
        Ok(())
    }
}

impl ElasticConfig {
    limit_setters! {}

    setters! {
        plain {
            /// Sets the most rows that a bulk writer holds before it sends them.
            bulk_rows: usize,
            /// Sets the most bytes of documents that a bulk writer holds before it sends them.
            bulk_bytes: usize,
            /// Sets the longest that a bulk writer holds a row before it sends it.
            bulk_period: Duration,
            /// Sets how often rows are sent again that the server answered by 429.
            max_repeats: u32,
            /// Sets the longest that a bulk waits for these repeats in all.
            max_repeat_wait: Duration,
            /// Sets how long closing may take to flush one bulk writer.
            flush_timeout: Duration,
            /// Sets the most hits of a page of a scroll.
            scroll_size: usize,
            /// Sets how long the server keeps a scroll between two pages.
            scroll_keep: Duration,
            /// Sets whether the proxies of the environment are used.
            environment_proxies: bool,
        }
        text {
            /// Sets the user.
            user: String,
        }
        optional {
            /// Sets the password.
            password: Secret,
            /// Sets the API key.
            api_key: Secret,
            /// Sets the proxy.
            proxy: Secret,
        }
    }
}

impl KindConfig for ElasticConfig {
    const KIND: &'static str = "elastic";
    const SYSTEM: (&'static str, &'static str) = (attribute::DATABASE_SYSTEM, "elasticsearch");
    const IS_OURS: bool = true;
    type Resource = ElasticResource;

    const NAMES: Names = Names {
        url: ("url", &["ELASTIC_URL"]),
        parts: [("", &[]), ("", &[]), ("user", &["ELASTIC_USER"]), ("password", &["ELASTIC_PASSWORD"]), ("", &[])],
        plain: &["http"],
        tls: ["ELASTIC_TLS", "ELASTIC_TLS_CA_FILE", "ELASTIC_TLS_CERT_FILE", "ELASTIC_TLS_KEY_FILE", ""],
    };

    const MORE: &[Field] = &[("api_key_file", &["ELASTIC_API_KEY_FILE"]), ("api_key", &["ELASTIC_API_KEY"])];

    user_and_password!();

    fn has_login(&self) -> bool {
        let has_password = self.password.is_some() || self.password_file.is_some();
        !self.user.is_empty() || has_password || self.api_key.is_some() || self.api_key_file.is_some()
    }

    fn forget_login(&mut self) {
        (self.user, self.password) = (String::new(), None);
        (self.api_key, self.api_key_file) = (None, None);
    }

    fn set_more(&mut self, field: &str, _: &str, text: &str) -> Result<(), Error> {
        // Each takes the place of the other one, which TOML may have.
        (self.api_key, self.api_key_file) = match field {
            "api_key" => (Some(text.into()), None),
            _ => (None, Some(text.into())),
        };
        Ok(())
    }

    fn switch_tls(&mut self, on: bool) {
        let [plain, _] = LOCAL;
        self.url = Some(BaseUrl::with_tls(&self.url.take().unwrap_or_else(|| plain.into()), on));
    }

    fn check(&mut self, name: &str) -> Result<(), Error> {
        let checks = Checks(name);
        checks.counts(&[
            ("bulk_rows", self.bulk_rows),
            ("bulk_bytes", self.bulk_bytes),
            ("scroll_size", self.scroll_size),
        ])?;
        checks.limits(&[
            ("bulk_period_ms", self.bulk_period),
            ("flush_timeout_ms", self.flush_timeout),
            ("scroll_keep_ms", self.scroll_keep),
        ])?;
        if self.max_repeats > MOST_REPEATS {
            return checks.fail("max_repeats", format_args!("must be from 0 to {MOST_REPEATS}"));
        }
        basic_user(name, &self.user)?;
        rest::check(self, name)
    }

    fn settled(&self, name: &str) -> Result<Self, Error> {
        let mut config = self.clone();
        config.take_apart(&format!("{name}.url"))?;
        config.read_password(name)?;
        config.read_api_key(name)?;
        config.check(name)?;
        Ok(config)
    }

    /// The configuration with the secrets that their files have now. The files are read on a thread that may block.
    async fn current(&self) -> io::Result<Cow<'_, Self>> {
        if self.password_file.is_none() && self.api_key_file.is_none() {
            return Ok(Cow::Borrowed(self));
        }
        let mut config = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            if let Some(file) = &config.password_file {
                config.password = Some(file.read_again()?);
            }
            if let Some(file) = &config.api_key_file {
                config.api_key = Some(file.read_again()?);
            }
            Ok(Cow::Owned(config))
        });
        read.await.map_err(io::Error::other)?
    }

    fn resource(&self, name: &str) -> Result<ElasticResource, Error> {
        Ok(ElasticResource::new(self.settled(name)?))
    }
}
