//! The configuration of a Redis: its fields, their defaults, their environment variables, and the checks.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use socket2::SockAddr;

use crate::base::error::Error;
use crate::base::holder::QuotaId;
use crate::base::millis;
use crate::base::millis::number;
use crate::base::secret::{Secret, SecretFile};
use crate::base::setters::setters;
use crate::kinds::redis::on_connect;
use crate::kinds::redis::resource::RedisResource;
use crate::kinds::redis::socket_url::SocketUrl;
use crate::lifecycle::kind::KindConfig;
use crate::net::checks::Checks;
use crate::net::parts::{Names, Part};
use crate::net::tls::{Tls, TlsOptions};
use crate::net::url::{ParsedUrl, host, host_port, port};

/// The URL schemes: plain, and over TLS.
const SCHEMES: [&str; 2] = ["redis", "rediss"];

const NO_TLS: &str = "a socket does not leave the machine and has no TLS: take the options out, or use rediss://";

/// How to reach a Redis; `[redis]` or `[named.redis.NAME]` in TOML.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RedisConfig {
    /// `redis://user:password@host:port/db`, instead of the parts. A part that the URL does not name keeps its own
    /// field, except the port, which is 6379 then. `rediss://` uses TLS. For a Unix socket it is
    /// `unix:///run/redis.sock?db=0&user=…&pass=…`, or the same with `redis+unix://`. Environment: `REDIS_URL`.
    pub url: Option<Secret>,
    /// Defaults to `localhost`. Environment: `REDIS_HOST`, `REDIS_IP`.
    pub host: String,
    /// Defaults to 6379. Environment: `REDIS_PORT`.
    pub port: u16,
    /// Defaults to none, which is Redis's user `default`. Environment: `REDIS_USER`.
    pub user: Option<String>,
    /// Defaults to none. Environment: `REDIS_PASSWORD`.
    pub password: Option<Secret>,
    /// The file that has the password, instead of `password`. It is read again at every connect. Defaults to none.
    /// Environment: `REDIS_PASSWORD_FILE`.
    pub password_file: Option<SecretFile>,
    /// The database's number. Defaults to 0. Environment: `REDIS_DB`.
    pub db: i64,
    /// The name that `CLIENT LIST` shows. Defaults to `resource-pool`.
    pub client_name: String,
    /// The most connections for threads. Defaults to 50, as in QUANTAXIS.
    pub pool_size: u32,
    /// How many idle connections are kept for threads. Defaults to 0.
    pub min_idle: u32,
    /// The most exclusive connections for async code. Defaults to 50.
    pub exclusive_size: usize,
    /// An idle connection for threads is closed after this time. Defaults to 60 s.
    #[serde(rename = "idle_timeout_ms", with = "millis")]
    pub idle_timeout: Duration,
    /// The longest time that a connection for threads is used, less up to a tenth. Defaults to 30 min.
    #[serde(rename = "max_lifetime_ms", with = "millis")]
    pub max_lifetime: Duration,
    /// A connection that was checked out within this time is checked out again without a test. Defaults to 500 ms.
    #[serde(rename = "test_after_ms", with = "millis")]
    pub test_after: Duration,
    /// An idle connection for threads that was neither checked out nor tested within this time is tested in the
    /// background, and replaced if it is broken. Defaults to zero, which is never.
    #[serde(rename = "test_idle_after_ms", with = "millis")]
    pub test_idle_after: Duration,
    /// How long the test may take. Defaults to 500 ms.
    #[serde(rename = "test_limit_ms", with = "millis")]
    pub test_limit: Duration,
    /// How long opening one connection may take, all steps together. Defaults to 2 s.
    #[serde(rename = "connect_timeout_ms", with = "millis")]
    pub connect_timeout: Duration,
    /// TCP keepalive begins after this time without traffic, in whole seconds from 1 to 32,767. Defaults to 60 s.
    #[serde(rename = "keepalive_ms", with = "millis")]
    pub keepalive: Duration,
    /// The TLS options. Defaults to none: plain, unless the URL is a `rediss://`. Environment: `REDIS_TLS`,
    /// `REDIS_TLS_CA_FILE`, `REDIS_TLS_CERT_FILE`, `REDIS_TLS_KEY_FILE`, `REDIS_TLS_SERVER_NAME`.
    pub tls: Option<TlsOptions>,
    /// The path of the Unix socket that the server listens on. Host, port and keepalive do not count then, and there is
    /// no TLS. Defaults to none. A host in the environment, or one in a URL, takes it away.
    pub socket: Option<PathBuf>,
    /// How long the server may take to answer a command or a pipeline, from sending it. Defaults to zero, which is no
    /// limit. Commands that wait by themselves (`BLPOP`, `XREAD BLOCK`, `WAIT`, …), messages of subscriptions, and
    /// closing have no such limit.
    #[serde(rename = "operation_timeout_ms", with = "millis")]
    pub operation_timeout: Duration,
    /// Commands that the pool sends on each new connection, each as its words. Each word is a [`Secret`], because any of
    /// them may be one. Errors show the command's name, also the second word of `ACL`, `CLIENT`, `CONFIG`, `DEBUG`,
    /// `FUNCTION`, `MODULE` and `SCRIPT`, and no other word. Defaults to none.
    pub on_connect: Vec<Vec<Secret>>,
}

impl Default for RedisConfig {
    fn default() -> Self {
        RedisConfig {
            url: None,
            host: "localhost".to_owned(),
            port: 6379,
            user: None,
            password: None,
            password_file: None,
            db: 0,
            client_name: "resource-pool".to_owned(),
            pool_size: 50,
            min_idle: 0,
            exclusive_size: 50,
            idle_timeout: Duration::from_secs(60),
            max_lifetime: Duration::from_secs(1800),
            test_after: Duration::from_millis(500),
            test_idle_after: Duration::ZERO,
            test_limit: Duration::from_millis(500),
            connect_timeout: Duration::from_secs(2),
            keepalive: Duration::from_secs(60),
            tls: None,
            socket: None,
            operation_timeout: Duration::ZERO,
            on_connect: Vec::new(),
        }
    }
}

impl RedisConfig {
    /// The defaults, at this URL.
    pub fn url(url: impl Into<Secret>) -> Self {
        RedisConfig { url: Some(url.into()), ..RedisConfig::default() }
    }

    /// Sets the most connections for threads.
    pub fn pool_size(mut self, pool_size: u32) -> Self {
        self.pool_size = pool_size;
        self
    }

    /// Sets the file that has the password, which is read again at every connect.
    pub fn password_file(mut self, file: impl Into<SecretFile>) -> Self {
        self.password_file = Some(file.into());
        self
    }

    /// Speaks TLS.
    pub fn tls(mut self, tls: TlsOptions) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets the name that `CLIENT LIST` shows.
    pub fn client_name(mut self, name: impl Into<String>) -> Self {
        self.client_name = name.into();
        self
    }

    /// Connects to the Unix socket of this path instead of a host.
    ///
    /// ```
    /// use resource_pool::config::RedisConfig;
    ///
    /// let config = RedisConfig::default().socket("/run/redis/redis.sock");
    /// ```
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.socket = Some(path.into());
        self
    }

    /// Sets how long the server may take to answer a command or a pipeline. Zero is no limit.
    ///
    /// When the limit passes, [`Error::behind`](crate::Error::behind) the driver's error is
    /// [`Error::OutcomeUnknown`](crate::Error::OutcomeUnknown) if a command may have changed something, else
    /// [`Error::Timeout`](crate::Error::Timeout). Nothing is sent again. Async connections go on, and pass over the late
    /// answer. A thread's connection takes no further command, and is closed when it comes back.
    pub fn operation_timeout(mut self, limit: Duration) -> Self {
        self.operation_timeout = limit;
        self
    }

    /// Adds a command that the pool sends on each new connection: the shared one, exclusive ones, those of
    /// subscriptions, threads and the prober, and all that come after a loss. It goes out with the login, so it costs no
    /// round trip and is part of `connect_timeout`. If the server answers an error, connecting fails with that, and the
    /// error names the command.
    ///
    /// Commands that have an option of their own (`SELECT`, `AUTH`), that wait, or after which a connection no longer
    /// takes commands (`MULTI`, `SUBSCRIBE`, …) are refused.
    ///
    /// ```
    /// use resource_pool::config::RedisConfig;
    ///
    /// let config = RedisConfig::url("redis://cache").on_connect(["CLIENT", "NO-EVICT", "ON"]);
    /// ```
    pub fn on_connect(mut self, command: impl IntoIterator<Item: Into<String>>) -> Self {
        self.on_connect.push(command.into_iter().map(|word| word.into().into()).collect());
        self
    }

    /// Where the server is, for errors and reports. Without credentials.
    pub(super) fn endpoint(&self) -> String {
        match &self.socket {
            Some(path) if self.db == 0 => format!("unix://{}", path.display()),
            Some(path) => format!("unix://{}?db={}", path.display(), self.db),
            None => {
                let scheme = SCHEMES[usize::from(self.tls.is_some())];
                format!("{scheme}://{}/{}", host_port(&self.host, self.port), self.db)
            }
        }
    }
}

impl RedisConfig {
    setters! {
        plain {
            /// Sets the port.
            port: u16,
            /// Sets the database's number.
            db: i64,
            /// Sets how many idle connections are kept for threads.
            min_idle: u32,
            /// Sets the most exclusive connections for async code.
            exclusive_size: usize,
            /// Sets the time after which an idle connection for threads is closed.
            idle_timeout: Duration,
            /// Sets the longest time that a connection for threads is used.
            max_lifetime: Duration,
            /// Sets the time within which a connection is checked out again without a test.
            test_after: Duration,
            /// Sets how long the test may take.
            test_limit: Duration,
            /// Sets after how much idleness a connection is tested in the background. Zero switches that off.
            test_idle_after: Duration,
            /// Sets how long opening one connection may take.
            connect_timeout: Duration,
            /// Sets the time without traffic after which TCP keepalive begins.
            keepalive: Duration,
        }
        text {
            /// Sets the host.
            host: String,
        }
        optional {
            /// Sets the user.
            user: String,
            /// Sets the password.
            password: Secret,
        }
    }
}

impl KindConfig for RedisConfig {
    const KIND: &'static str = "redis";
    const IS_OURS: bool = true;
    type Resource = RedisResource;

    const NAMES: Names = Names {
        url: ("url", &["REDIS_URL"]),
        parts: [
            ("host", &["REDIS_HOST", "REDIS_IP"]),
            ("port", &["REDIS_PORT"]),
            ("user", &["REDIS_USER"]),
            ("password", &["REDIS_PASSWORD"]),
            ("db", &["REDIS_DB"]),
        ],
        plain: &["redis", "unix", "redis+unix"],
        tls: ["REDIS_TLS", "REDIS_TLS_CA_FILE", "REDIS_TLS_CERT_FILE", "REDIS_TLS_KEY_FILE", "REDIS_TLS_SERVER_NAME"],
    };

    fn url_mut(&mut self) -> &mut Option<Secret> {
        &mut self.url
    }

    fn tls_mut(&mut self) -> &mut Option<TlsOptions> {
        &mut self.tls
    }

    fn has_login(&self) -> bool {
        self.password.is_some() || self.password_file.is_some()
    }

    fn forget_login(&mut self) {
        (self.user, self.password) = (None, None);
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

    fn set(&mut self, part: Part, key: &str, text: &str) -> Result<(), Error> {
        match part {
            Part::Host => {
                host(key, text)?.clone_into(&mut self.host);
                self.socket = None;
            }
            Part::Port => self.port = port(key, text)?,
            Part::User => self.user = Some(text.to_owned()),
            Part::Password => self.password = Some(text.into()),
            Part::Place => self.db = number(key, text, "the number of a database")?,
        }
        Ok(())
    }

    fn take_apart(&mut self, key: &str) -> Result<(), Error> {
        let Some(url) = self.url.take() else { return Ok(()) };
        if let Some(SocketUrl { path, db, user, password }) = SocketUrl::parse(key, &url)? {
            if self.tls.is_some() {
                return Err(Error::config(key, format!("is a Unix socket, but there are options for TLS; {NO_TLS}")));
            }
            self.socket = Some(path);
            self.db = db.unwrap_or(self.db);
            self.user = user.or(self.user.take());
            self.password = password.or(self.password.take());
            return Ok(());
        }
        self.socket = None;
        let url = ParsedUrl::new(key, &url, &SCHEMES)?;
        TlsOptions::agree(&mut self.tls, key, url.scheme(), SCHEMES)?;
        self.host = url.host().to_owned();
        self.port = url.port().unwrap_or(6379);
        self.user = url.user(key)?.or(self.user.take());
        self.password = url.password(key)?.or(self.password.take());
        let db = url.path(key)?;
        if let Some((name, _)) = url.parameters().next() {
            return Err(Error::config(key, format!("has the unknown parameter `{name}`; there are none")));
        }
        if !db.is_empty() {
            self.db = db.parse().map_err(|_| Error::config(key, "ends in a database that is not a number"))?;
        }
        Ok(())
    }

    fn check(&mut self, name: &str) -> Result<(), Error> {
        let checks = Checks(name);
        checks.place(&mut self.host, self.port)?;
        let Self { pool_size, min_idle, exclusive_size, client_name, .. } = self;
        checks.counts(&[("pool_size", *pool_size as usize), ("exclusive_size", *exclusive_size)])?;
        checks.limits(&[
            ("max_lifetime_ms", self.max_lifetime),
            ("test_limit_ms", self.test_limit),
            ("connect_timeout_ms", self.connect_timeout),
        ])?;
        checks.keepalive(self.keepalive)?;
        if let Some(path) = &self.socket {
            if self.tls.is_some() {
                return checks.fail("socket", format_args!("is set, but there are options for TLS; {NO_TLS}"));
            }
            let path = path.as_os_str();
            // A URL may have a password in it, and reports show the path.
            if path.to_string_lossy().contains("://") {
                return checks.fail("socket", "must be a path, but has `://` in it: for a URL, set `url` instead");
            }
            if path.is_empty() || path.as_encoded_bytes().contains(&0) || SockAddr::unix(path).is_err() {
                return checks
                    .fail("socket", "must be a path of 1 to about 100 bytes: the system takes no longer ones");
            }
        }
        for (index, command) in self.on_connect.iter().enumerate() {
            if let Some(problem) = on_connect::problem(command) {
                return checks.fail(&format!("on_connect[{index}]"), problem);
            }
        }
        if min_idle > pool_size {
            return checks.fail("min_idle", "is more than pool_size");
        }
        if self.db < 0 {
            return checks.fail("db", "must be at least 0");
        }
        if !client_name.chars().all(|c| c.is_ascii_graphic()) {
            return checks.fail("client_name", "must be printable ASCII without spaces");
        }
        if self.user.is_some() && self.password.is_none() {
            let problem = "is without a password, so the driver would not send it: set a password; a user with `nopass` takes any";
            return checks.fail("user", problem);
        }
        Ok(())
    }

    fn resource(&self, name: &str) -> Result<RedisResource, Error> {
        let config = self.settled(name)?;
        let tls = Tls::new(name, config.tls.as_ref(), &config.host)?;
        Ok(RedisResource { config: Arc::new(config), tls, quota: QuotaId::new() })
    }
}
