//! The configuration of a MySQL: its fields, their defaults, their environment variables, and the checks.

use std::borrow::Cow;
use std::time::Duration;

use serde::Deserialize;
use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};
use sqlx::{ConnectOptions as _, MySql, MySqlConnection};

use crate::base::attribute;
use crate::base::error::{Error, Failure};
use crate::base::millis;
use crate::base::secret::{Secret, SecretFile};
use crate::base::setters::setters;
use crate::kinds::mysql::MySqlResource;
use crate::kinds::sql::{Hooked, OnConnect, Pooling, SHARED_SCHEMES, SqlConfig, pooling};
use crate::lifecycle::kind::KindConfig;
use crate::net::checks::Checks;
use crate::net::parts::{Names, Part};
use crate::net::tls::{Tls, TlsOptions};
use crate::net::url::{ParsedUrl, host, host_port, port};

/// The names of the modes of TLS. The driver's others could let TLS fall away, or check less than all.
const PLAIN: [&str; 1] = ["DISABLED"];
const SECURED: [&str; 3] = ["REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY"];
const SCHEMES: [&str; 2] = ["mysql", "mariadb"];

/// How to reach a MySQL or a MariaDB; `[mysql]` or `[named.mysql.NAME]` in TOML. The options of its connections have
/// SQLAlchemy's names.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct MySqlConfig {
    /// `mysql://user:password@host:port/database`, instead of the parts; `mariadb://` is the same. A part that the URL
    /// does not name keeps its own field, but the port is 3306. Parameters: `ssl-mode`, where `REQUIRED`, `VERIFY_CA`
    /// and `VERIFY_IDENTITY` all check the server's certificate and name, and `DISABLED` is plain; `ssl-ca`, `ssl-cert`
    /// and `ssl-key`. Environment: `MYSQL_URL`, and `DATABASE_URL` where it has this scheme.
    pub url: Option<Secret>,
    /// Defaults to `localhost`. Environment: `MYSQL_HOST`.
    pub host: String,
    /// Defaults to 3306. Environment: `MYSQL_PORT`.
    pub port: u16,
    /// Defaults to `root`. Environment: `MYSQL_USER`.
    pub user: String,
    /// Defaults to none. Environment: `MYSQL_PASSWORD`.
    pub password: Option<Secret>,
    /// The file that has the password, instead of `password`. It is read again at every connect. Defaults to none.
    /// Environment: `MYSQL_PASSWORD_FILE`.
    pub password_file: Option<SecretFile>,
    /// The database that statements mean. Defaults to an empty text, which selects none. Environment: `MYSQL_DATABASE`.
    pub database: String,
    /// The number of connections that are kept once they are open. Defaults to 5, as in SQLAlchemy.
    pub pool_size: u32,
    /// The number of further connections that may be open while they are wanted. Defaults to 10, as in SQLAlchemy.
    pub max_overflow: u32,
    /// How long a checkout waits for a connection, at most the pool's acquire timeout. Defaults to 30 s, as in
    /// SQLAlchemy.
    #[serde(rename = "pool_timeout_ms", with = "millis")]
    pub pool_timeout: Duration,
    /// The longest time that a connection is used, less up to a tenth; zero is for ever. Defaults to 30 min.
    #[serde(rename = "pool_recycle_ms", with = "millis")]
    pub pool_recycle: Duration,
    /// Whether a connection is tested as it is checked out, unless it was checked out within the last 500 ms. Defaults
    /// to `true`.
    pub pre_ping: bool,
    /// An idle connection beyond `pool_size` is closed after this time. Defaults to 10 s.
    #[serde(rename = "overflow_timeout_ms", with = "millis")]
    pub overflow_timeout: Duration,
    /// An idle connection that was neither checked out nor tested within this time is tested in the background, and
    /// replaced if it is broken. Defaults to zero, which is never.
    #[serde(rename = "test_idle_after_ms", with = "millis")]
    pub test_idle_after: Duration,
    /// The TLS options. Defaults to none: plain, unless the URL's `ssl-mode` asks for TLS. Environment: `MYSQL_TLS`,
    /// `MYSQL_TLS_CA_FILE`, `MYSQL_TLS_CERT_FILE`, `MYSQL_TLS_KEY_FILE`.
    pub tls: Option<TlsOptions>,
    /// A hook that runs on each connection once it is open. It can be set only in code. Defaults to nothing.
    #[serde(skip)]
    pub on_connect: Option<OnConnect<MySql>>,
}

impl Default for MySqlConfig {
    fn default() -> Self {
        MySqlConfig {
            url: None,
            host: "localhost".to_owned(),
            port: 3306,
            user: "root".to_owned(),
            password: None,
            password_file: None,
            database: String::new(),
            pool_size: 5,
            max_overflow: 10,
            pool_timeout: Duration::from_secs(30),
            pool_recycle: Duration::from_secs(1800),
            pre_ping: true,
            overflow_timeout: Duration::from_secs(10),
            test_idle_after: Duration::ZERO,
            tls: None,
            on_connect: None,
        }
    }
}

impl MySqlConfig {
    /// The defaults, at this URL.
    pub fn url(url: impl Into<Secret>) -> Self {
        MySqlConfig { url: Some(url.into()), ..MySqlConfig::default() }
    }

    /// Sets the number of connections that are kept once they are open.
    pub fn pool_size(mut self, pool_size: u32) -> Self {
        self.pool_size = pool_size;
        self
    }

    /// Sets the number of further connections that may be open while they are wanted.
    pub fn max_overflow(mut self, max_overflow: u32) -> Self {
        self.max_overflow = max_overflow;
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

    /// Sets a hook that runs on each new connection, those of `raw_pool()` and those after a loss included, such as one
    /// that sets its time zone. It must end within `connect_timeout`. If it fails or panics, the connection is closed,
    /// and the error of connecting names the hook.
    ///
    /// ```
    /// use resource_pool::config::MySqlConfig;
    ///
    /// let config = MySqlConfig::url("mysql://desk@localhost/quant")
    ///     .on_connect(|connection| Box::pin(async move {
    ///         resource_pool::sqlx::query("SET time_zone = '+08:00'").execute(connection).await?;
    ///         Ok(())
    ///     }));
    /// ```
    pub fn on_connect(
        mut self,
        run: impl for<'a> Fn(&'a mut MySqlConnection) -> Hooked<'a> + Send + Sync + 'static,
    ) -> Self {
        self.on_connect = Some(OnConnect::new(run));
        self
    }

    fn take_parameter(&mut self, key: &str, name: &str, value: &str) -> Result<(), Error> {
        let file = || Some(value.into());
        match name {
            "ssl-mode" | "sslmode" if is_mode(&PLAIN, value) => {}
            "ssl-mode" | "sslmode" if is_mode(&SECURED, value) => drop(self.tls.get_or_insert_default()),
            "ssl-mode" | "sslmode" => {
                let problem = "has an ssl-mode under which TLS could fall away in silence; expected `DISABLED`, or \
                               `REQUIRED`, `VERIFY_CA` or `VERIFY_IDENTITY`, which all check the server's certificate \
                               and name";
                return Err(Error::config(key, problem));
            }
            "ssl-ca" => self.tls.get_or_insert_default().ca_file = file(),
            "ssl-cert" => self.tls.get_or_insert_default().cert_file = file(),
            "ssl-key" => self.tls.get_or_insert_default().key_file = file(),
            _ => {
                let known = "ssl-mode, ssl-ca, ssl-cert, ssl-key";
                return Err(Error::config(key, format!("has the unknown parameter `{name}`; there are {known}")));
            }
        }
        Ok(())
    }
}

/// Whether a URL names one of these modes of TLS.
fn is_mode(modes: &[&str], value: &str) -> bool {
    modes.iter().any(|mode| mode.eq_ignore_ascii_case(value))
}

impl MySqlConfig {
    setters! {
        plain {
            /// Sets after how much idleness a connection is tested in the background. Zero switches that off.
            test_idle_after: Duration,
            /// Sets the port.
            port: u16,
            /// Sets how long a checkout waits for a connection.
            pool_timeout: Duration,
            /// Sets the longest time that a connection is used. Zero is for ever.
            pool_recycle: Duration,
            /// Sets whether a connection is tested as it is checked out.
            pre_ping: bool,
            /// Sets the time after which an idle connection beyond `pool_size` is closed.
            overflow_timeout: Duration,
        }
        text {
            /// Sets the host.
            host: String,
            /// Sets the user.
            user: String,
            /// Sets the database.
            database: String,
        }
        optional {
            /// Sets the password.
            password: Secret,
        }
    }
}

impl SqlConfig<MySql> for MySqlConfig {
    /// The options that sqlx connects with. Its own settings of the session stay: the time zone is UTC, and `||` joins
    /// texts.
    fn options(&self) -> MySqlConnectOptions {
        let mut options = MySqlConnectOptions::new()
            .host(&self.host)
            .port(self.port)
            .username(&self.user)
            // Statements may contain secrets, such as `SET PASSWORD`.
            .disable_statement_logging();
        if let Some(password) = &self.password {
            options = options.password(password.expose());
        }
        if !self.database.is_empty() {
            options = options.database(&self.database);
        }
        let Some(tls) = &self.tls else { return options.ssl_mode(MySqlSslMode::Disabled) };
        let mut options = options.ssl_mode(MySqlSslMode::VerifyIdentity);
        if let Some(ca_file) = &tls.ca_file {
            options = options.ssl_ca(ca_file);
        }
        if let Some(cert_file) = &tls.cert_file {
            options = options.ssl_client_cert(cert_file);
            options = options.ssl_client_key(tls.key_file.as_ref().unwrap_or(cert_file));
        }
        options
    }

    fn pooling(&self) -> Pooling {
        pooling!(self)
    }

    fn on_connect(&self) -> Option<&OnConnect<MySql>> {
        self.on_connect.as_ref()
    }

    fn connect_failure(&self, error: sqlx::Error) -> Failure {
        self.judge_connect(error)
    }

    fn failure(&self, error: sqlx::Error) -> Failure {
        self.judge(error)
    }

    fn endpoint(&self) -> String {
        let database = percent_encoding::utf8_percent_encode(&self.database, percent_encoding::NON_ALPHANUMERIC);
        format!("mysql://{}/{database}", host_port(&self.host, self.port))
    }
}

impl KindConfig for MySqlConfig {
    const KIND: &'static str = "mysql";
    const SYSTEM: (&'static str, &'static str) = (attribute::DATABASE_SYSTEM, "mysql");
    const IS_OURS: bool = true;
    const SHARED_BY: &'static [&'static str] = &SCHEMES;
    const SHARED_SCHEMES: &'static [(&'static str, &'static str, bool)] = &SHARED_SCHEMES;
    type Resource = MySqlResource;

    const NAMES: Names = Names {
        url: ("url", &["MYSQL_URL", "DATABASE_URL"]),
        parts: [
            ("host", &["MYSQL_HOST", "DB_HOST"]),
            ("port", &["MYSQL_PORT", "DB_PORT"]),
            ("user", &["MYSQL_USER", "DB_USERNAME"]),
            ("password", &["MYSQL_PASSWORD", "DB_PASSWORD"]),
            ("database", &["MYSQL_DATABASE", "DB_NAME"]),
        ],
        plain: &["ssl-mode=DISABLED", "ssl-mode=disabled", "sslmode=DISABLED", "sslmode=disabled"],
        tls: ["MYSQL_TLS", "MYSQL_TLS_CA_FILE", "MYSQL_TLS_CERT_FILE", "MYSQL_TLS_KEY_FILE", ""],
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
        (self.user, self.password) = (MySqlConfig::default().user, None);
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
        let Some(url) = self.url.take() else { return Ok(()) };
        let url = ParsedUrl::new(key, &url, &SCHEMES)?;
        self.host = url.host().to_owned();
        self.port = url.port().unwrap_or(3306);
        if let Some(user) = url.user(key)? {
            self.user = user;
        }
        self.password = url.password(key)?.or(self.password.take());
        let database = url.path(key)?;
        if !database.is_empty() {
            self.database = database;
        }
        for (name, value) in url.parameters() {
            self.take_parameter(key, &name, &value)?;
        }
        let is_plain = |(name, value): (Cow<'_, str>, Cow<'_, str>)| {
            matches!(&*name, "ssl-mode" | "sslmode") && is_mode(&PLAIN, &value)
        };
        if self.tls.is_some() && url.parameters().any(is_plain) {
            return Err(Error::config(key, "says ssl-mode=DISABLED, but there are options for TLS"));
        }
        Ok(())
    }

    fn check(&mut self, name: &str) -> Result<(), Error> {
        let checks = Checks(name);
        checks.place(&mut self.host, self.port)?;
        checks.counts(&[("pool_size", self.pool_size as usize), ("max_overflow", self.pooling().max())])?;
        if self.user.is_empty() {
            return checks.fail("user", "must have at least one character");
        }
        for (field, text) in [("user", &self.user), ("database", &self.database)] {
            if text.contains('\0') {
                return checks.fail(field, "must not have a zero in it");
            }
        }
        checks.limits(&[("pool_timeout_ms", self.pool_timeout)])?;
        if self.tls.as_ref().is_some_and(|tls| tls.server_name.is_some()) {
            return checks.fail("tls.server_name", "cannot be set: the driver checks the host's name");
        }
        // This check reports more about a bad file than the driver, which reads the files itself.
        Tls::new(name, self.tls.as_ref(), &self.host).map(drop)
    }

    fn resource(&self, name: &str) -> Result<MySqlResource, Error> {
        Ok(MySqlResource::new(self.settled(name)?))
    }
}
