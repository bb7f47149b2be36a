//! The configuration of a file of SQLite: its fields, their defaults, their environment variables, and the checks.

use std::fmt;
use std::path::{Path, PathBuf, absolute};
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::Deserialize;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{ConnectOptions as _, Sqlite, SqliteConnection};

use crate::base::attribute;
use crate::base::error::{Error, Failure};
use crate::base::millis;
use crate::base::secret::Secret;
use crate::base::setters::setters;
use crate::kinds::sql::{Hooked, OnConnect, Pooling, SHARED_SCHEMES, SqlConfig, pooling};
use crate::kinds::sqlite::SqliteResource;
use crate::kinds::sqlite::threads::DiskThreads;
use crate::lifecycle::kind::KindConfig;
use crate::net::checks::Checks;
use crate::net::parts::{Names, Part};
use crate::net::tls::TlsOptions;

const SCHEMES: [&str; 1] = ["sqlite"];
/// The signs of a path that are not encoded in its URL.
const IN_PATHS: AsciiSet = NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'-').remove(b'_');

/// Where a file of SQLite is; `[sqlite]` or `[named.sqlite.NAME]` in TOML. The options of its connections have
/// SQLAlchemy's names.
#[derive(Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SqliteConfig {
    /// `sqlite:data.sqlite` or `sqlite:///var/lib/desk/data.sqlite`, instead of `file`. Parameter: `mode`, which is `rw`,
    /// `rwc` for `create`, or `ro` for `read_only`. Environment: `SQLITE_URL`, and `DATABASE_URL` where it has this
    /// scheme.
    pub url: Option<Secret>,
    /// The path of the file. Defaults to `database.sqlite` in the working directory. Environment: `SQLITE_FILE`.
    pub file: PathBuf,
    /// Whether a file that is not there is made. Its folder must be there. Defaults to `false`.
    pub create: bool,
    /// Whether statements can only read. Defaults to `false`.
    pub read_only: bool,
    /// Whether the file is put into WAL mode, in which readers and the writer do not wait for each other. `false` leaves
    /// its mode as it is. Defaults to `true`.
    pub wal: bool,
    /// How long a statement waits for another connection that writes. It cannot be ended meanwhile. Defaults to 5 s.
    #[serde(rename = "busy_timeout_ms", with = "millis")]
    pub busy_timeout: Duration,
    /// The longest time that a statement may run, the reading of its rows included. Zero is for ever. Defaults to zero.
    #[serde(rename = "operation_timeout_ms", with = "millis")]
    pub operation_timeout: Duration,
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
    /// A hook that runs on each connection once it is open. It can be set only in code. Defaults to nothing.
    #[serde(skip)]
    pub on_connect: Option<OnConnect<Sqlite>>,
    /// A file has no TLS.
    #[serde(skip)]
    tls: Option<TlsOptions>,
    /// The threads that have calls into the file.
    #[serde(skip)]
    pub(super) threads: DiskThreads,
}

impl Default for SqliteConfig {
    fn default() -> Self {
        SqliteConfig {
            url: None,
            file: "database.sqlite".into(),
            create: false,
            read_only: false,
            wal: true,
            busy_timeout: Duration::from_secs(5),
            operation_timeout: Duration::ZERO,
            pool_size: 5,
            max_overflow: 10,
            pool_timeout: Duration::from_secs(30),
            pool_recycle: Duration::from_secs(1800),
            pre_ping: true,
            overflow_timeout: Duration::from_secs(10),
            test_idle_after: Duration::ZERO,
            on_connect: None,
            tls: None,
            threads: DiskThreads::default(),
        }
    }
}

impl fmt::Debug for SqliteConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteConfig")
            .field("url", &self.url)
            .field("file", &self.file)
            .field("create", &self.create)
            .field("read_only", &self.read_only)
            .field("wal", &self.wal)
            .field("busy_timeout", &self.busy_timeout)
            .field("operation_timeout", &self.operation_timeout)
            .field("pool_size", &self.pool_size)
            .field("max_overflow", &self.max_overflow)
            .field("pool_timeout", &self.pool_timeout)
            .field("pool_recycle", &self.pool_recycle)
            .field("pre_ping", &self.pre_ping)
            .field("overflow_timeout", &self.overflow_timeout)
            .field("test_idle_after", &self.test_idle_after)
            .field("on_connect", &self.on_connect)
            .finish()
    }
}

impl SqliteConfig {
    /// The defaults, at this URL.
    pub fn url(url: impl Into<Secret>) -> Self {
        SqliteConfig { url: Some(url.into()), ..SqliteConfig::default() }
    }

    /// The defaults, with this file.
    ///
    /// ```
    /// use resource_pool::config::SqliteConfig;
    ///
    /// let config = SqliteConfig::file("/var/lib/desk/orders.sqlite").create(true);
    /// ```
    pub fn file(file: impl Into<PathBuf>) -> Self {
        SqliteConfig { file: file.into(), ..SqliteConfig::default() }
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

    /// Sets a hook that runs on each new connection, those of `raw_pool()` and those after a loss included, such as one
    /// that sets the size of its cache. It must end within `connect_timeout`. If it fails or panics, the connection is closed,
    /// and the error of connecting names the hook.
    ///
    /// ```
    /// use resource_pool::config::SqliteConfig;
    ///
    /// let config = SqliteConfig::file("orders.sqlite")
    ///     .on_connect(|connection| Box::pin(async move {
    ///         resource_pool::sqlx::query("PRAGMA cache_size = -64000").execute(connection).await?;
    ///         Ok(())
    ///     }));
    /// ```
    pub fn on_connect(
        mut self,
        run: impl for<'a> Fn(&'a mut SqliteConnection) -> Hooked<'a> + Send + Sync + 'static,
    ) -> Self {
        self.on_connect = Some(OnConnect::new(run));
        self
    }

    fn take_parameter(&mut self, key: &str, name: &str, value: &str) -> Result<(), Error> {
        match (name, value) {
            ("mode", "rw") => (self.create, self.read_only) = (false, false),
            ("mode", "rwc") => (self.create, self.read_only) = (true, false),
            ("mode", "ro") => (self.create, self.read_only) = (false, true),
            ("mode", "memory") => return Err(Error::config(key, IN_MEMORY)),
            ("mode", _) => return Err(Error::config(key, "has an unknown mode; expected `rw`, `rwc` or `ro`")),
            _ => return Err(Error::config(key, format!("has the unknown parameter `{name}`; there is mode"))),
        }
        Ok(())
    }
}

const IN_MEMORY: &str = "names a database in memory, of which each connection would have another one; name a file, such \
                         as one in a folder that is removed at the end";

impl SqliteConfig {
    setters! {
        plain {
            /// Sets whether a file that is not there is made.
            create: bool,
            /// Sets whether statements can only read.
            read_only: bool,
            /// Sets whether the file is put into WAL mode.
            wal: bool,
            /// Sets how long a statement waits for another connection that writes.
            busy_timeout: Duration,
            /// Sets the longest time that a statement may run. Zero is for ever.
            operation_timeout: Duration,
            /// Sets after how much idleness a connection is tested in the background. Zero switches that off.
            test_idle_after: Duration,
            /// Sets how long a checkout waits for a connection.
            pool_timeout: Duration,
            /// Sets the longest time that a connection is used. Zero is for ever.
            pool_recycle: Duration,
            /// Sets whether a connection is tested as it is checked out.
            pre_ping: bool,
            /// Sets the time after which an idle connection beyond `pool_size` is closed.
            overflow_timeout: Duration,
        }
    }
}

impl SqlConfig<Sqlite> for SqliteConfig {
    /// The options that sqlx opens the file with. Its own settings of the session stay: foreign keys are checked.
    fn options(&self) -> SqliteConnectOptions {
        let options = SqliteConnectOptions::new()
            .filename(&self.file)
            .create_if_missing(self.create && !self.read_only)
            .read_only(self.read_only)
            .busy_timeout(self.busy_timeout)
            // Statements may contain secrets.
            .disable_statement_logging();
        match self.wal && !self.read_only {
            true => options.journal_mode(SqliteJournalMode::Wal),
            false => options,
        }
    }

    fn pooling(&self) -> Pooling {
        pooling!(self)
    }

    fn on_connect(&self) -> Option<&OnConnect<Sqlite>> {
        self.on_connect.as_ref()
    }

    fn operation_timeout(&self) -> Duration {
        self.operation_timeout
    }

    fn connect_failure(&self, error: sqlx::Error) -> Failure {
        self.judge(error)
    }

    fn failure(&self, error: sqlx::Error) -> Failure {
        self.judge(error)
    }

    fn endpoint(&self) -> String {
        format!("sqlite://{}", utf8_percent_encode(&self.file.to_string_lossy(), &IN_PATHS))
    }
}

impl KindConfig for SqliteConfig {
    const KIND: &'static str = "sqlite";
    const SYSTEM: (&'static str, &'static str) = (attribute::DATABASE_SYSTEM, "sqlite");
    const IS_OURS: bool = true;
    const SHARED_BY: &'static [&'static str] = &SCHEMES;
    const SHARED_SCHEMES: &'static [(&'static str, &'static str, bool)] = &SHARED_SCHEMES;
    type Resource = SqliteResource;

    const NAMES: Names = Names {
        url: ("url", &["SQLITE_URL", "DATABASE_URL"]),
        parts: [("", &[]), ("", &[]), ("", &[]), ("", &[]), ("file", &["SQLITE_FILE", "DB_NAME"])],
        plain: &["sqlite"],
        tls: ["", "", "", "", ""],
    };

    fn url_mut(&mut self) -> &mut Option<Secret> {
        &mut self.url
    }

    fn tls_mut(&mut self) -> &mut Option<TlsOptions> {
        &mut self.tls
    }

    fn has_login(&self) -> bool {
        false
    }

    fn forget_login(&mut self) {}

    fn set(&mut self, part: Part, key: &str, text: &str) -> Result<(), Error> {
        match part {
            Part::Place => self.file = text.into(),
            _ => return Err(Error::config(key, "is of no use to a file")),
        }
        Ok(())
    }

    fn take_apart(&mut self, key: &str) -> Result<(), Error> {
        let Some(url) = self.url.take() else { return Ok(()) };
        let parts = url.expose().trim().split_once(':');
        let Some((_, rest)) = parts.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("sqlite")) else {
            return Err(Error::config(key, "is no URL of SQLite; expected `sqlite:` and the path of a file"));
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = percent_decode_str(path.strip_prefix("//").unwrap_or(path)).decode_utf8();
        self.file = match path {
            Ok(path) => path.into_owned().into(),
            Err(_) => return Err(Error::config(key, "is not UTF-8 once percent-decoded")),
        };
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            self.take_parameter(key, &name, &value)?;
        }
        Ok(())
    }

    fn check(&mut self, name: &str) -> Result<(), Error> {
        let checks = Checks(name);
        checks.counts(&[("pool_size", self.pool_size as usize), ("max_overflow", self.pooling().max())])?;
        checks.limits(&[("pool_timeout_ms", self.pool_timeout)])?;
        if i32::try_from(self.busy_timeout.as_millis()).is_err() {
            return checks.fail("busy_timeout_ms", "must be at most 2147483647");
        }
        if self.create && self.read_only {
            return checks.fail("create", "is of no use beside read_only: leave out one of them");
        }
        match self.file.to_str() {
            None | Some("") => checks.fail("file", "must be a path in UTF-8"),
            Some(path) if path.contains('\0') => checks.fail("file", "must not have a zero in it"),
            Some(":memory:") => checks.fail("file", IN_MEMORY),
            // SQLite would take it for a URL of its own.
            Some(path) if path.starts_with("file:") => checks.fail("file", "must be a path instead of a URL"),
            Some(path) => {
                // The file stays the same if the working directory changes.
                let whole = absolute(Path::new(path));
                self.file = whole.or_else(|error| checks.fail("file", format_args!("cannot be found: {error}")))?;
                Ok(())
            }
        }
    }

    fn resource(&self, name: &str) -> Result<SqliteResource, Error> {
        Ok(SqliteResource::new(self.settled(name)?))
    }
}
