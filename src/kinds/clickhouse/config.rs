//! The configuration of a ClickHouse: its fields, their names in the environment, and the fields that a URL fills.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::base::error::Error;
use crate::base::millis;
use crate::base::secret::{Secret, SecretFile};
use crate::base::setters::setters;
use crate::kinds::clickhouse::resource::ClickHouseResource;
use crate::lifecycle::kind::KindConfig;
use crate::net::checks::Checks;
use crate::net::parts::{Names, Part};
use crate::net::tls::{Tls, TlsOptions};
use crate::net::url::{ParsedUrl, host, host_port, port};

/// The schemes of a URL: plain, and over TLS.
const SCHEMES: [&str; 2] = ["http", "https"];
pub(super) const HTTP_PORT: u16 = 8123;
const HTTPS_PORT: u16 = 8443;
/// The standard ports of the native protocol, plain and over TLS.
const NATIVE_PORTS: [u16; 2] = [9000, 9440];
pub(super) const USE_HTTP: &str = "speaks ClickHouse's native protocol; use the HTTP port, 8123 by default";

/// How to reach a ClickHouse over HTTP; `[clickhouse]` or `[named.clickhouse.NAME]` in TOML.
///
/// The settings go along with every query and insert. Some users may not change them (`readonly = 1`, constraints). The
/// three fields from `max_threads` on are then left to the server, unless one differs from its default. In that case
/// connecting fails, and the error names the settings to leave out.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ClickHouseConfig {
    /// `http://user:password@host:port/database?setting=value`, instead of the parts. A part that the URL does not name
    /// keeps the value of its field. `?user=`, `?password=` and `?database=` are understood too. `https://` uses TLS,
    /// at port 8443 unless the URL names one. `http://` without a port uses 8123. Environment: `CLICKHOUSE_URL`.
    pub url: Option<Secret>,
    /// Defaults to `localhost`. Environment: `CLICKHOUSE_HOST`, `CLICKHOUSE_IP`.
    pub host: String,
    /// The HTTP port. Defaults to 8123. The native ports 9000 and 9440 are refused. Environment: `CLICKHOUSE_PORT`.
    pub port: u16,
    /// Defaults to `default`. Environment: `CLICKHOUSE_USER`.
    pub user: String,
    /// Defaults to none. Environment: `CLICKHOUSE_PASSWORD`.
    pub password: Option<Secret>,
    /// The file that has the password, instead of `password`. It is read again at every connect. Defaults to none.
    /// Environment: `CLICKHOUSE_PASSWORD_FILE`.
    pub password_file: Option<SecretFile>,
    /// Defaults to `default`, which every server has. QUANTAXIS's `quantaxis` has to be created first, because a server
    /// answers nothing in a database that it lacks. Environment: `CLICKHOUSE_DATABASE`.
    pub database: String,
    /// The server's threads for one query. Defaults to 4, as in QUANTAXIS; 0 leaves it to the server.
    pub max_threads: u32,
    /// Rows in a block of a result. Defaults to 65,536, as in QUANTAXIS; 0 leaves it to the server.
    pub max_block_size: u64,
    /// Rows in a block of an insert, sent as `max_insert_block_size`. Defaults to 1,048,576, the
    /// server's own default; 0 leaves it to the server.
    pub insert_block_size: u64,
    /// Whether a query that only reads is cancelled at the server, by `KILL QUERY`, if its future or iterator is
    /// dropped before the answer begins. Once the answer has begun the server notices by itself. Each such query has a
    /// `query_id`. A query that brings its own `query_id` along is not cancelled. Defaults to `true`.
    pub cancel_dropped: bool,
    /// Any further settings, such as `max_execution_time`. Defaults to none.
    pub settings: BTreeMap<String, String>,
    /// Whether results and inserts travel in LZ4. Defaults to `true`.
    pub compression: bool,
    /// Whether rows are checked against the table's types, which needs a server of 21.11 or later. Defaults to none:
    /// they are checked where the server can.
    pub validation: Option<bool>,
    /// The most connections. A query beyond that waits for one, at most the acquire timeout. Defaults to 100, the
    /// number of queries that a server runs at once by its own default.
    pub max_connections: usize,
    /// The most idle connections that are kept. Defaults to 16.
    pub max_idle: usize,
    /// The time after which an idle connection is closed. It is below the server's `keep_alive_timeout` (3 s on old
    /// servers), so that no query meets a connection that is just being closed. Defaults to 2 s.
    #[serde(rename = "idle_timeout_ms", with = "millis")]
    pub idle_timeout: Duration,
    /// The limit for opening one connection. Defaults to 2 s.
    #[serde(rename = "connect_timeout_ms", with = "millis")]
    pub connect_timeout: Duration,
    /// The time without traffic after which TCP keepalive begins, in whole seconds from 1 to 32,767. Defaults to 60 s.
    #[serde(rename = "keepalive_ms", with = "millis")]
    pub keepalive: Duration,
    /// The options of TLS. Defaults to none: plain, unless the URL is an `https://`. Environment: `CLICKHOUSE_TLS`,
    /// `CLICKHOUSE_TLS_CA_FILE`, `CLICKHOUSE_TLS_CERT_FILE`, `CLICKHOUSE_TLS_KEY_FILE`, `CLICKHOUSE_TLS_SERVER_NAME`.
    pub tls: Option<TlsOptions>,
    /// The limit for closing to flush one [`Inserter`](crate::Inserter). Defaults to 5 s.
    #[serde(rename = "flush_timeout_ms", with = "millis")]
    pub flush_timeout: Duration,
    /// How long the server may be silent while a query or an insert waits for it: until its answer begins, between two
    /// parts of the answer, and while it takes no part of the request. Defaults to zero, which is no limit. The time
    /// that the caller takes, to write rows or to read them, does not count.
    #[serde(rename = "operation_timeout_ms", with = "millis")]
    pub operation_timeout: Duration,
}

impl Default for ClickHouseConfig {
    fn default() -> Self {
        ClickHouseConfig {
            url: None,
            host: "localhost".to_owned(),
            port: HTTP_PORT,
            user: "default".to_owned(),
            password: None,
            password_file: None,
            database: "default".to_owned(),
            max_threads: 4,
            max_block_size: 65_536,
            insert_block_size: 1_048_576,
            cancel_dropped: true,
            settings: BTreeMap::new(),
            compression: true,
            validation: None,
            max_connections: 100,
            max_idle: 16,
            idle_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(2),
            keepalive: Duration::from_secs(60),
            tls: None,
            flush_timeout: Duration::from_secs(5),
            operation_timeout: Duration::ZERO,
        }
    }
}

impl ClickHouseConfig {
    /// The defaults, at this URL.
    pub fn url(url: impl Into<Secret>) -> Self {
        ClickHouseConfig { url: Some(url.into()), ..ClickHouseConfig::default() }
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

    /// Sets the database.
    pub fn database(mut self, database: impl Into<String>) -> Self {
        self.database = database.into();
        self
    }

    /// Sets the most connections.
    pub fn max_connections(mut self, max_connections: usize) -> Self {
        self.max_connections = max_connections;
        self
    }

    /// Adds a setting that goes along with every query and insert.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.insert(name.into(), value.into());
        self
    }

    /// Sets how long the server may be silent while a query or an insert waits for it. Zero is no limit.
    ///
    /// When the limit passes, the connection is closed. The error is
    /// [`Error::OutcomeUnknown`](crate::Error::OutcomeUnknown) for a statement that may have changed something, else
    /// [`Error::Timeout`](crate::Error::Timeout). A query that only reads is cancelled at the server, as a dropped one
    /// is. Nothing is sent again.
    pub fn operation_timeout(mut self, limit: Duration) -> Self {
        self.operation_timeout = limit;
        self
    }

    /// Scheme, host and port.
    pub(super) fn base_url(&self) -> String {
        let scheme = SCHEMES[usize::from(self.tls.is_some())];
        format!("{scheme}://{}/", host_port(&self.host, self.port))
    }

    /// The passwords that no error may show.
    pub(super) fn secrets(&self) -> Vec<Secret> {
        let by_file = self.password_file.as_ref().map(SecretFile::recent).unwrap_or_default();
        self.password.clone().into_iter().chain(by_file).collect()
    }

    /// The settings that go along with every query. An entry of `settings` wins over a field.
    pub(super) fn effective_settings(&self) -> BTreeMap<String, String> {
        self.settings_where(|value, _| value > 0)
    }

    /// The settings that the configuration asks for, without those that are only defaults.
    pub(super) fn chosen_settings(&self) -> BTreeMap<String, String> {
        self.settings_where(|value, default| value > 0 && value != default)
    }

    fn settings_where(&self, is_sent: impl Fn(u64, u64) -> bool) -> BTreeMap<String, String> {
        let fields = |config: &Self| [u64::from(config.max_threads), config.max_block_size, config.insert_block_size];
        let values = fields(self).into_iter().zip(fields(&ClickHouseConfig::default()));
        let sent = FIELD_SETTINGS.iter().zip(values).filter(|(_, (value, default))| is_sent(*value, *default));
        let mut settings: BTreeMap<_, _> =
            sent.map(|((_, name), (value, _))| ((*name).to_owned(), value.to_string())).collect();
        settings.extend(self.settings.clone());
        settings
    }

    /// Tells the user where each of these settings comes from, and how it is left out.
    pub(super) fn without(&self, settings: &BTreeMap<String, String>) -> String {
        let field = |name: &str| FIELD_SETTINGS.iter().find(|(_, setting)| *setting == name);
        let of = |name: &String| match field(name) {
            Some((field, _)) if !self.settings.contains_key(name) => format!("`{field}` to 0"),
            _ => format!("`settings` without {name}"),
        };
        settings.keys().map(of).collect::<Vec<_>>().join(", ")
    }
}

impl ClickHouseConfig {
    setters! {
        plain {
            /// Sets the HTTP port.
            port: u16,
            /// Sets the server's threads for one query. 0 leaves it to the server.
            max_threads: u32,
            /// Sets the rows in a block of a result. 0 leaves it to the server.
            max_block_size: u64,
            /// Sets the rows in a block of an insert. 0 leaves it to the server.
            insert_block_size: u64,
            /// Sets whether a dropped query that only reads is cancelled at the server.
            cancel_dropped: bool,
            /// Sets whether results and inserts travel in LZ4.
            compression: bool,
            /// Sets the most idle connections that are kept.
            max_idle: usize,
            /// Sets the time after which an idle connection is closed.
            idle_timeout: Duration,
            /// Sets the limit for opening one connection.
            connect_timeout: Duration,
            /// Sets the time without traffic after which TCP keepalive begins.
            keepalive: Duration,
            /// Sets the limit for closing to flush one [`Inserter`](crate::Inserter).
            flush_timeout: Duration,
        }
        text {
            /// Sets the host.
            host: String,
            /// Sets the user.
            user: String,
        }
        optional {
            /// Sets the password.
            password: Secret,
            /// Sets whether rows are checked against the table's types.
            validation: bool,
        }
    }
}

/// The fields that are sent as settings, each with the name of its setting.
const FIELD_SETTINGS: [(&str, &str); 3] = [
    ("max_threads", "max_threads"),
    ("max_block_size", "max_block_size"),
    ("insert_block_size", "max_insert_block_size"),
];

/// Whether the URL names this port. A URL's parser forgets a port that is its scheme's default.
fn names_port(url: &str, port: u16) -> bool {
    let authority = url.split("://").nth(1).unwrap_or_default();
    authority.split(['/', '?', '#']).next().is_some_and(|authority| authority.ends_with(&format!(":{port}")))
}

impl KindConfig for ClickHouseConfig {
    const KIND: &'static str = "clickhouse";
    const IS_OURS: bool = true;
    type Resource = ClickHouseResource;

    const NAMES: Names = Names {
        url: ("url", &["CLICKHOUSE_URL"]),
        parts: [
            ("host", &["CLICKHOUSE_HOST", "CLICKHOUSE_IP"]),
            ("port", &["CLICKHOUSE_PORT"]),
            ("user", &["CLICKHOUSE_USER"]),
            ("password", &["CLICKHOUSE_PASSWORD"]),
            ("database", &["CLICKHOUSE_DATABASE"]),
        ],
        plain: &["http"],
        tls: [
            "CLICKHOUSE_TLS",
            "CLICKHOUSE_TLS_CA_FILE",
            "CLICKHOUSE_TLS_CERT_FILE",
            "CLICKHOUSE_TLS_KEY_FILE",
            "CLICKHOUSE_TLS_SERVER_NAME",
        ],
    };

    fn url_mut(&mut self) -> &mut Option<Secret> {
        &mut self.url
    }

    fn tls_mut(&mut self) -> &mut Option<TlsOptions> {
        &mut self.tls
    }

    fn has_login(&self) -> bool {
        self.user != "default" || self.password.is_some() || self.password_file.is_some()
    }

    fn forget_login(&mut self) {
        (self.user, self.password) = ("default".to_owned(), None);
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
            Part::Host => host(key, text)?.clone_into(&mut self.host),
            Part::Port => self.port = port(key, text)?,
            Part::User => text.clone_into(&mut self.user),
            Part::Password => self.password = Some(text.into()),
            Part::Place => text.clone_into(&mut self.database),
        }
        Ok(())
    }

    fn take_apart(&mut self, key: &str) -> Result<(), Error> {
        let Some(text) = self.url.take() else { return Ok(()) };
        let url = ParsedUrl::new(key, &text, &["http", "https", "clickhouse", "tcp"])?;
        let scheme = url.scheme();
        if !SCHEMES.contains(&scheme) {
            return Err(Error::config(key, format!("{scheme}:// {USE_HTTP}, as in http://host:8123/database")));
        }
        TlsOptions::agree(&mut self.tls, key, scheme, SCHEMES)?;
        self.host = url.host().to_owned();
        // The port that the URL's parser hides as the scheme's default, and the default port of this crate.
        let (hidden, default) = if self.tls.is_some() { (443, HTTPS_PORT) } else { (80, HTTP_PORT) };
        self.port = url.port().unwrap_or(if names_port(text.expose(), hidden) { hidden } else { default });
        if NATIVE_PORTS.contains(&self.port) {
            return Err(Error::config(key, format!("port {} {USE_HTTP}", self.port)));
        }
        if let Some(user) = url.user(key)? {
            self.user = user;
        }
        self.password = url.password(key)?.or(self.password.take());
        let path = url.path(key)?;
        let mut database = Some(path).filter(|path| !path.is_empty());
        for (name, value) in url.parameters() {
            match &*name {
                "user" => self.user = value.into_owned(),
                "password" => self.password = Some(value.into_owned().into()),
                "database" if database.as_ref().is_some_and(|path| *path != value) => {
                    return Err(Error::config(key, "names two databases, in its path and in ?database="));
                }
                "database" => database = Some(value.into_owned()),
                _ => drop(self.settings.insert(name.into_owned(), value.into_owned())),
            }
        }
        if let Some(database) = database {
            self.database = database;
        }
        Ok(())
    }

    fn check(&mut self, name: &str) -> Result<(), Error> {
        let checks = Checks(name);
        checks.place(&mut self.host, self.port)?;
        if NATIVE_PORTS.contains(&self.port) {
            return checks.fail("port", format_args!("{} {USE_HTTP}", self.port));
        }
        if self.database.is_empty() {
            return checks.fail("database", "is empty");
        }
        let password = self.password.as_ref().map_or("", Secret::expose);
        for (field, text) in [("user", &*self.user), ("password", password)] {
            if text.trim() != text || !text.chars().all(|c| (' '..='~').contains(&c)) {
                let problem = "is sent in an HTTP header, so it must be printable ASCII without spaces at either end";
                return checks.fail(field, problem);
            }
        }
        checks.counts(&[("max_connections", self.max_connections)])?;
        checks.limits(&[("connect_timeout_ms", self.connect_timeout), ("flush_timeout_ms", self.flush_timeout)])?;
        checks.keepalive(self.keepalive)
    }

    fn resource(&self, name: &str) -> Result<ClickHouseResource, Error> {
        let config = self.settled(name)?;
        let tls = Tls::new(name, config.tls.as_ref(), &config.host)?;
        Ok(ClickHouseResource::new(config, tls))
    }
}
