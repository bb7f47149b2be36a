//! The configuration of a PostgreSQL: its fields, their defaults, their environment variables, and the checks.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions as _, PgConnection, Postgres};

use crate::base::attribute;
use crate::base::error::{Error, Failure};
use crate::base::millis;
use crate::base::secret::{Secret, SecretFile};
use crate::base::setters::setters;
use crate::kinds::postgres::PostgresResource;
use crate::kinds::postgres::hosts::{LastServer, PostgresServer, PostgresTarget, split};
use crate::kinds::sql::{Hooked, OnConnect, Pooling, SHARED_SCHEMES, SqlConfig, pooling};
use crate::lifecycle::kind::KindConfig;
use crate::net::checks::Checks;
use crate::net::parts::{Names, Part};
use crate::net::tls::{Tls, TlsOptions};
use crate::net::url::{ParsedUrl, host, port};

const SCHEMES: [&str; 2] = ["postgres", "postgresql"];

/// How to reach a PostgreSQL; `[postgres]` or `[named.postgres.NAME]` in TOML. The options of its connections have
/// SQLAlchemy's names.
#[derive(Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PostgresConfig {
    /// `postgres://user:password@host:port/database`, instead of the parts. A part that the URL does not name keeps its
    /// own field, but the port is 5432. There may be several hosts, as in `h1:5432,h2`. Parameters: `sslmode`, where
    /// `require`, `verify-ca` and `verify-full` all check the server's certificate and name, and `disable` is plain;
    /// `sslrootcert`, `sslcert`, `sslkey`; `target_session_attrs` for `target`; and `application_name`. Environment: `POSTGRES_URL`, and `DATABASE_URL` where it has this scheme.
    pub url: Option<Secret>,
    /// Defaults to `localhost`. Environment: `POSTGRES_HOST`.
    pub host: String,
    /// Defaults to 5432. Environment: `POSTGRES_PORT`.
    pub port: u16,
    /// Further servers of the same cluster, each `host` or `host:port`. A connection is opened to the one that fits
    /// `target`. Defaults to none.
    pub hosts: Vec<String>,
    /// The role of the servers that connections are opened to. Defaults to any if there is one server, and to the primary
    /// if there are several.
    pub target: Option<PostgresTarget>,
    /// Defaults to `postgres`. Environment: `POSTGRES_USER`.
    pub user: String,
    /// Defaults to none. Environment: `POSTGRES_PASSWORD`.
    pub password: Option<Secret>,
    /// The file that has the password, instead of `password`. It is read again at every connect. Defaults to none.
    /// Environment: `POSTGRES_PASSWORD_FILE`.
    pub password_file: Option<SecretFile>,
    /// Defaults to `postgres`. Environment: `POSTGRES_DB`, `POSTGRES_DATABASE`.
    pub database: String,
    /// The name that `pg_stat_activity` shows. Defaults to `resource-pool`.
    pub application_name: String,
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
    /// The TLS options. Defaults to none: plain, unless the URL's `sslmode` asks for TLS. Environment: `POSTGRES_TLS`,
    /// `POSTGRES_TLS_CA_FILE`, `POSTGRES_TLS_CERT_FILE`, `POSTGRES_TLS_KEY_FILE`.
    pub tls: Option<TlsOptions>,
    /// A hook that runs on each connection once it is open. It can be set only in code. Defaults to nothing.
    #[serde(skip)]
    pub on_connect: Option<OnConnect<Postgres>>,
    #[serde(skip)]
    pub(super) last: LastServer,
}

impl fmt::Debug for PostgresConfig {
    /// Leaves out what is no option.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PostgresConfig {
            url,
            host,
            port,
            hosts,
            target,
            user,
            password,
            password_file,
            database,
            application_name,
            pool_size,
            max_overflow,
            pool_timeout,
            pool_recycle,
            pre_ping,
            overflow_timeout,
            test_idle_after,
            tls,
            on_connect,
            last: _,
        } = self;
        f.debug_struct("PostgresConfig")
            .field("url", url)
            .field("host", host)
            .field("port", port)
            .field("hosts", hosts)
            .field("target", target)
            .field("user", user)
            .field("password", password)
            .field("password_file", password_file)
            .field("database", database)
            .field("application_name", application_name)
            .field("pool_size", pool_size)
            .field("max_overflow", max_overflow)
            .field("pool_timeout", pool_timeout)
            .field("pool_recycle", pool_recycle)
            .field("pre_ping", pre_ping)
            .field("overflow_timeout", overflow_timeout)
            .field("test_idle_after", test_idle_after)
            .field("tls", tls)
            .field("on_connect", on_connect)
            .finish()
    }
}

impl Default for PostgresConfig {
    fn default() -> Self {
        PostgresConfig {
            url: None,
            host: "localhost".to_owned(),
            port: 5432,
            hosts: Vec::new(),
            target: None,
            user: "postgres".to_owned(),
            password: None,
            password_file: None,
            database: "postgres".to_owned(),
            application_name: "resource-pool".to_owned(),
            pool_size: 5,
            max_overflow: 10,
            pool_timeout: Duration::from_secs(30),
            pool_recycle: Duration::from_secs(1800),
            pre_ping: true,
            overflow_timeout: Duration::from_secs(10),
            test_idle_after: Duration::ZERO,
            tls: None,
            on_connect: None,
            last: LastServer::default(),
        }
    }
}

impl PostgresConfig {
    /// The defaults, at this URL.
    pub fn url(url: impl Into<Secret>) -> Self {
        PostgresConfig { url: Some(url.into()), ..PostgresConfig::default() }
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

    /// Sets the name that `pg_stat_activity` shows.
    pub fn application_name(mut self, name: impl Into<String>) -> Self {
        self.application_name = name.into();
        self
    }

    /// Sets a hook that runs on each new connection, those of `raw_pool()` and those after a loss included, such as one
    /// that sets its time zone. It must end within `connect_timeout`. If it fails or panics, the connection is closed,
    /// and the error of connecting names the hook.
    ///
    /// ```
    /// use resource_pool::config::PostgresConfig;
    ///
    /// let config = PostgresConfig::url("postgres://desk@localhost/quant")
    ///     .on_connect(|connection| Box::pin(async move {
    ///         resource_pool::sqlx::query("SET TIME ZONE 'UTC'").execute(connection).await?;
    ///         Ok(())
    ///     }));
    /// ```
    pub fn on_connect(
        mut self,
        run: impl for<'a> Fn(&'a mut PgConnection) -> Hooked<'a> + Send + Sync + 'static,
    ) -> Self {
        self.on_connect = Some(OnConnect::new(run));
        self
    }

    fn take_parameter(&mut self, key: &str, name: &str, value: &str) -> Result<(), Error> {
        let file = || Some(value.into());
        match (name, value) {
            ("sslmode", "disable") => {}
            ("sslmode", "require" | "verify-ca" | "verify-full") => drop(self.tls.get_or_insert_default()),
            ("sslmode", _) => {
                let problem = "has an sslmode under which TLS could fall away in silence; expected `disable`, or `require`, \
                               `verify-ca` or `verify-full`, which all check the server's certificate and name";
                return Err(Error::config(key, problem));
            }
            ("sslrootcert", _) => self.tls.get_or_insert_default().ca_file = file(),
            ("sslcert", _) => self.tls.get_or_insert_default().cert_file = file(),
            ("sslkey", _) => self.tls.get_or_insert_default().key_file = file(),
            ("application_name", _) => value.clone_into(&mut self.application_name),
            ("target_session_attrs", _) => {
                let problem = "has a target_session_attrs that is none of any, primary, standby and prefer-standby";
                self.target = Some(PostgresTarget::named(value).ok_or_else(|| Error::config(key, problem))?);
            }
            _ => {
                let known = "sslmode, sslrootcert, sslcert, sslkey, application_name, target_session_attrs";
                return Err(Error::config(key, format!("has the unknown parameter `{name}`; there are {known}")));
            }
        }
        Ok(())
    }
}

impl PostgresConfig {
    /// Sets the further servers of the same cluster.
    pub fn hosts<H: Into<String>>(mut self, hosts: impl IntoIterator<Item = H>) -> Self {
        self.hosts = hosts.into_iter().map(Into::into).collect();
        self
    }

    /// The servers, of which `host` is the first. One that cannot be parsed was refused before.
    pub(super) fn servers(&self) -> Vec<PostgresServer> {
        let first = PostgresServer { host: self.host.clone(), port: self.port };
        let further = self.hosts.iter().filter_map(|text| PostgresServer::parse("", text).ok());
        [first].into_iter().chain(further).collect()
    }

    pub(super) fn sought(&self) -> PostgresTarget {
        let is_alone = self.hosts.is_empty();
        self.target.unwrap_or(if is_alone { PostgresTarget::Any } else { PostgresTarget::Primary })
    }

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
            /// Sets the role of the servers that connections are opened to.
            target: PostgresTarget,
        }
    }
}

impl SqlConfig<Postgres> for PostgresConfig {
    /// The options that sqlx connects with. From the environment sqlx takes `PGOPTIONS` and, where no file is given,
    /// the files of TLS.
    fn options(&self) -> PgConnectOptions {
        let server = self.last.of(self.servers());
        let options = PgConnectOptions::new_without_pgpass()
            .host(&server.host)
            .port(server.port)
            .username(&self.user)
            .password(self.password.as_ref().map_or("", Secret::expose))
            .database(&self.database)
            .application_name(&self.application_name)
            // Statements may contain secrets, such as `ALTER ROLE … PASSWORD`.
            .disable_statement_logging();
        let Some(tls) = &self.tls else { return options.ssl_mode(PgSslMode::Disable) };
        let mut options = options.ssl_mode(PgSslMode::VerifyFull);
        if let Some(ca_file) = &tls.ca_file {
            options = options.ssl_root_cert(ca_file);
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

    fn on_connect(&self) -> Option<&OnConnect<Postgres>> {
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
        let servers: Vec<_> = self.servers().iter().map(ToString::to_string).collect();
        format!("postgres://{}/{database}", servers.join(","))
    }
}

impl KindConfig for PostgresConfig {
    const KIND: &'static str = "postgres";
    const SYSTEM: (&'static str, &'static str) = (attribute::DATABASE_SYSTEM, "postgresql");
    const IS_OURS: bool = true;
    const SHARED_BY: &'static [&'static str] = &SCHEMES;
    const SHARED_SCHEMES: &'static [(&'static str, &'static str, bool)] = &SHARED_SCHEMES;
    type Resource = PostgresResource;

    const NAMES: Names = Names {
        url: ("url", &["POSTGRES_URL", "DATABASE_URL"]),
        parts: [
            ("host", &["POSTGRES_HOST", "DB_HOST"]),
            ("port", &["POSTGRES_PORT", "DB_PORT"]),
            ("user", &["POSTGRES_USER", "DB_USERNAME"]),
            ("password", &["POSTGRES_PASSWORD", "DB_PASSWORD"]),
            ("database", &["POSTGRES_DB", "POSTGRES_DATABASE", "DB_NAME"]),
        ],
        plain: &["sslmode=disable"],
        tls: ["POSTGRES_TLS", "POSTGRES_TLS_CA_FILE", "POSTGRES_TLS_CERT_FILE", "POSTGRES_TLS_KEY_FILE", ""],
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
        (self.user, self.password) = (PostgresConfig::default().user, None);
        // They are of another cluster than the URL that takes the place of all this.
        self.hosts.clear();
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
                // They are of another cluster.
                self.hosts.clear();
            }
            Part::Port => self.port = port(key, text)?,
            Part::User => text.clone_into(&mut self.user),
            Part::Password => self.password = Some(text.into()),
            Part::Place => text.clone_into(&mut self.database),
        }
        Ok(())
    }

    fn take_apart(&mut self, key: &str) -> Result<(), Error> {
        let Some(url) = self.url.take() else { return Ok(()) };
        let (url, further) = split(url.expose());
        let url = ParsedUrl::new(key, &url.into(), &SCHEMES)?;
        if !further.is_empty() {
            self.hosts = further;
        }
        self.host = url.host().to_owned();
        self.port = url.port().unwrap_or(5432);
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
        if self.tls.is_some() && url.parameters().any(|pair| pair == ("sslmode".into(), "disable".into())) {
            return Err(Error::config(key, "says sslmode=disable, but there are options for TLS"));
        }
        Ok(())
    }

    fn check(&mut self, name: &str) -> Result<(), Error> {
        let checks = Checks(name);
        checks.place(&mut self.host, self.port)?;
        for text in &self.hosts {
            PostgresServer::parse(&format!("{name}.hosts"), text)?;
        }
        checks.counts(&[("pool_size", self.pool_size as usize), ("max_overflow", self.pooling().max())])?;
        let texts = [("user", &self.user), ("database", &self.database), ("application_name", &self.application_name)];
        for (field, text) in texts {
            if text.is_empty() || text.contains('\0') {
                return checks.fail(field, "must have at least one character, none of them zero");
            }
        }
        checks.limits(&[("pool_timeout_ms", self.pool_timeout)])?;
        if self.tls.as_ref().is_some_and(|tls| tls.server_name.is_some()) {
            return checks.fail("tls.server_name", "cannot be set: the driver checks the host's name");
        }
        // This check reports more about a bad file than the driver, which reads the files itself.
        Tls::new(name, self.tls.as_ref(), &self.host).map(drop)
    }

    fn resource(&self, name: &str) -> Result<PostgresResource, Error> {
        // A copy of the configuration may seek another role, and so another server.
        Ok(PostgresResource::new(PostgresConfig { last: LastServer::default(), ..self.settled(name)? }))
    }
}
