//! ClickHouse: the driver's own client over connections of ours.
//!
//! The connector opens every socket on the pool's runtime, without Nagle's delay, and puts it
//! under a kill switch that is replaced when the connection comes back, so one client goes on
//! through losses. It follows the answers on the wire as far as it takes to tell a connection in
//! use from an idle one, which the driver does not say.

mod inserter;

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::clickhouse::error::Error as DriverError;
use ::clickhouse::{Client, Compression};
use hyper::Uri;
use hyper::body::Body;
use hyper_util::client::legacy::connect::{Connected as Metadata, Connection};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::RwLock;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

pub use self::inserter::Inserter;
pub(crate) use self::inserter::Inserters;
use crate::backend::count::{Counted, none};
use crate::blocking;
use crate::close::Phase;
use crate::config::{
    BackendConfig, Checks, Guard, Names, ParsedUrl, Part, ResourceConfig, Secret, host, host_port, millis, port,
};
use crate::error::{BoxError, Chain, Error, Failure, TimeoutError, redacted};
use crate::lease::{Claim, Lease, Provide};
use crate::probe::KillSwitch;
use crate::resource::{Busy, Link, Resource, Work};
use crate::runtime;
use crate::scoped::{self, Scoped};
use crate::slot::BoxFuture;
use crate::status::Usage;
use crate::tls::{self, Stream as OwnStream, Tls, TlsOptions};

/// Plain, and over TLS.
const SCHEMES: [&str; 2] = ["http", "https"];
const HTTP_PORT: u16 = 8123;
const HTTPS_PORT: u16 = 8443;
/// The standard ports of the native protocol, plain and over TLS.
const NATIVE_PORTS: [u16; 2] = [9000, 9440];
const USE_HTTP: &str = "speaks ClickHouse's native protocol; use the HTTP port, 8123 by default";

/// How to reach a ClickHouse over HTTP; `[clickhouse]` or `[named.clickhouse.NAME]` in TOML.
///
/// The settings go along with every query and insert. A user who may not change settings
/// (`readonly = 1`) needs all of them off: each size 0 and `settings` empty.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ClickHouseConfig {
    /// `http://user:password@host:port/database?setting=value`, instead of the parts; what it does
    /// not name stays as the parts say. `?user=`, `?password=` and `?database=` are understood too. `https://` over
    /// TLS, at port 8443 unless it names one.
    /// Environment: `CLICKHOUSE_URL`.
    pub url: Option<Secret>,
    /// Defaults to `localhost`. Environment: `CLICKHOUSE_HOST`, `CLICKHOUSE_IP`.
    pub host: String,
    /// The HTTP port. Defaults to 8123; the native protocol's 9000 is refused.
    /// Environment: `CLICKHOUSE_PORT`.
    pub port: u16,
    /// Defaults to `default`. Environment: `CLICKHOUSE_USER`.
    pub user: String,
    /// Defaults to none. Environment: `CLICKHOUSE_PASSWORD`.
    pub password: Option<Secret>,
    /// Defaults to `default`, which every server has; QUANTAXIS's `quantaxis` has to be created
    /// first, and a server answers nothing in a database that it lacks.
    /// Environment: `CLICKHOUSE_DATABASE`.
    pub database: String,
    /// The server's threads for one query. Defaults to 4, as in QUANTAXIS; 0 leaves it to the server.
    pub max_threads: u32,
    /// Rows in a block of a result. Defaults to 65,536, as in QUANTAXIS; 0 leaves it to the server.
    pub max_block_size: u64,
    /// Rows in a block of an insert, sent as `max_insert_block_size`. Defaults to 1,048,576, the
    /// server's own default; 0 leaves it to the server.
    pub insert_block_size: u64,
    /// Any further settings, such as `max_execution_time`. Defaults to none.
    pub settings: BTreeMap<String, String>,
    /// Whether results and inserts travel in LZ4. Defaults to `true`.
    pub compression: bool,
    /// Whether rows are checked against the table's types, which needs a server of 21.11 or later.
    /// Defaults to none: on where the server can.
    pub validation: Option<bool>,
    /// The most connections; a query beyond that waits for one, at most the acquire timeout.
    /// Defaults to 100, the number of queries that a server runs at once by its own default.
    pub max_connections: usize,
    /// The most idle connections that are kept. Defaults to 16.
    pub max_idle: usize,
    /// After how long an idle connection is closed; below the server's `keep_alive_timeout` (3 s on
    /// old servers), so that no query meets a connection that is just being closed. Defaults to 2 s.
    #[serde(rename = "idle_timeout_ms", with = "millis")]
    pub idle_timeout: Duration,
    /// How long opening one connection may take. Defaults to 2 s.
    #[serde(rename = "connect_timeout_ms", with = "millis")]
    pub connect_timeout: Duration,
    /// After how long without traffic TCP keepalive begins, in whole seconds from 1 to 32,767. Defaults to 60 s.
    #[serde(rename = "keepalive_ms", with = "millis")]
    pub keepalive: Duration,
    /// How to speak TLS. Defaults to none: plain, unless the URL is an `https://`. Environment: `CLICKHOUSE_TLS`,
    /// `CLICKHOUSE_TLS_CA_FILE`, `CLICKHOUSE_TLS_CERT_FILE`, `CLICKHOUSE_TLS_KEY_FILE`, `CLICKHOUSE_TLS_SERVER_NAME`.
    pub tls: Option<TlsOptions>,
    /// How long closing may take to flush one [`Inserter`]. Defaults to 5 s.
    #[serde(rename = "flush_timeout_ms", with = "millis")]
    pub flush_timeout: Duration,
}

impl Default for ClickHouseConfig {
    fn default() -> Self {
        ClickHouseConfig {
            url: None,
            host: "localhost".to_owned(),
            port: HTTP_PORT,
            user: "default".to_owned(),
            password: None,
            database: "default".to_owned(),
            max_threads: 4,
            max_block_size: 65_536,
            insert_block_size: 1_048_576,
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
        }
    }
}

impl ClickHouseConfig {
    /// The defaults, at this URL.
    pub fn url(url: impl Into<Secret>) -> Self {
        ClickHouseConfig { url: Some(url.into()), ..ClickHouseConfig::default() }
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

    /// Scheme, host and port.
    fn base_url(&self) -> String {
        let scheme = SCHEMES[usize::from(self.tls.is_some())];
        format!("{scheme}://{}/", host_port(&self.host, self.port))
    }

    fn secrets(&self) -> Vec<&str> {
        self.password.iter().map(Secret::expose).collect()
    }

    /// What goes along with every query; a setting by name wins over a field.
    fn effective_settings(&self) -> BTreeMap<String, String> {
        let fields = [
            ("max_threads", u64::from(self.max_threads)),
            ("max_block_size", self.max_block_size),
            ("max_insert_block_size", self.insert_block_size),
        ];
        let fields = fields.into_iter().filter(|(_, value)| *value > 0);
        let mut settings: BTreeMap<_, _> = fields.map(|(name, value)| (name.to_owned(), value.to_string())).collect();
        settings.extend(self.settings.clone());
        settings
    }
}

/// A URL's parser forgets a port that is its scheme's default.
fn names_port(url: &str, port: u16) -> bool {
    let authority = url.split("://").nth(1).unwrap_or_default();
    authority.split(['/', '?', '#']).next().is_some_and(|authority| authority.ends_with(&format!(":{port}")))
}

impl BackendConfig for ClickHouseConfig {
    const KIND: &'static str = "clickhouse";
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
        tls: [
            "CLICKHOUSE_TLS",
            "CLICKHOUSE_TLS_CA_FILE",
            "CLICKHOUSE_TLS_CERT_FILE",
            "CLICKHOUSE_TLS_KEY_FILE",
            "CLICKHOUSE_TLS_SERVER_NAME",
        ],
    };

    fn of(config: &ResourceConfig) -> Option<&Self> {
        #[allow(irrefutable_let_patterns, reason = "it is the only kind where no other feature is on")]
        if let ResourceConfig::ClickHouse(config) = config { Some(config) } else { None }
    }

    fn url_mut(&mut self) -> &mut Option<Secret> {
        &mut self.url
    }

    fn tls_mut(&mut self) -> &mut Option<TlsOptions> {
        &mut self.tls
    }

    fn guard(&self) -> Guard {
        let mut config = self.clone();
        match config.take_apart("") {
            Ok(()) => Guard { tls: config.tls.is_some(), login: config.user != "default" || config.password.is_some() },
            Err(_told_where_it_is_used) => Guard::default(),
        }
    }

    fn forget_login(&mut self) {
        (self.user, self.password) = ("default".to_owned(), None);
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
        let scheme = url.url().scheme();
        if !SCHEMES.contains(&scheme) {
            return Err(Error::config(key, format!("{scheme}:// {USE_HTTP}, as in http://host:8123/database")));
        }
        TlsOptions::agree(&mut self.tls, key, scheme, SCHEMES)?;
        self.host = url.host().to_owned();
        // The port that a URL's parser takes for the scheme's default, and ours.
        let (hidden, default) = if self.tls.is_some() { (443, HTTPS_PORT) } else { (80, HTTP_PORT) };
        self.port = url.url().port().unwrap_or(if names_port(text.expose(), hidden) { hidden } else { default });
        if NATIVE_PORTS.contains(&self.port) {
            return Err(Error::config(key, format!("port {} {USE_HTTP}", self.port)));
        }
        if let Some(user) = url.user(key)? {
            self.user = user;
        }
        self.password = url.password(key)?.or(self.password.take());
        let path = url.path(key)?;
        let mut database = Some(path).filter(|path| !path.is_empty());
        for (name, value) in url.url().query_pairs() {
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

    fn settled(&self, name: &str) -> Result<Self, Error> {
        let mut config = self.clone();
        config.take_apart(&format!("{name}.url"))?;
        let checks = Checks(name);
        checks.place(&mut config.host, config.port)?;
        if NATIVE_PORTS.contains(&config.port) {
            return checks.fail("port", format_args!("{} {USE_HTTP}", config.port));
        }
        if config.database.is_empty() {
            return checks.fail("database", "is empty");
        }
        let password = config.password.as_ref().map_or("", Secret::expose);
        for (field, text) in [("user", &*config.user), ("password", password)] {
            if text.trim() != text || !text.chars().all(|c| (' '..='~').contains(&c)) {
                let problem =
                    "is sent in an HTTP header, so it must be of ASCII letters, digits, signs and inner spaces";
                return checks.fail(field, problem);
            }
        }
        checks.counts(&[("max_connections", config.max_connections)])?;
        checks.limits(&[("connect_timeout_ms", config.connect_timeout), ("flush_timeout_ms", config.flush_timeout)])?;
        checks.keepalive(config.keepalive)?;
        Ok(config)
    }

    fn resource(&self, name: &str) -> Result<ClickHouseResource, Error> {
        let config = self.settled(name)?;
        let tls = Tls::new(name, config.tls.as_ref(), &config.host)?;
        Ok(ClickHouseResource { config: Arc::new(config), tls })
    }
}

/// A ClickHouse of one's own: [`ClickHouse::scoped`]. The guards of a pool deref to
/// [`clickhouse::Client`](Client).
///
/// A query or insert in progress counts as work, through whichever clone of the client: from its
/// first byte until the answer is complete or given up. Closing waits for it, within the drain; so
/// whoever fills an `Insert`, or an inserter of the driver's own, ends it when
/// [`closing`](crate::ResourcePool::closing) tells. One that is not ended is aborted, by the
/// driver as well as by closing, and its rows are not stored. An [`Inserter`] closing flushes.
#[derive(Debug)]
pub enum ClickHouse {}

impl ClickHouse {
    /// A ClickHouse of one's own, which closes when the guard drops.
    ///
    /// # Errors
    /// Those of [`ResourcePool::clickhouse`](crate::ResourcePool::clickhouse).
    ///
    /// # Cancel safety
    /// Dropping the future closes what was begun.
    #[track_caller]
    pub fn scoped(config: ClickHouseConfig) -> impl Future<Output = Result<Scoped<Lease<Client>>, Error>> + Send {
        let claim = Claim::shared();
        async move {
            let pool = scoped::pool(config.into())?;
            let lease = pool.acquire(pool.registry().clickhouse(), claim).await?;
            Ok(Scoped::new(lease, pool))
        }
    }
}

/// A ClickHouse in the pool.
#[derive(Debug)]
pub struct ClickHouseResource {
    config: Arc<ClickHouseConfig>,
    tls: Tls,
}

impl Resource for ClickHouseResource {
    type Handle = Connected;

    async fn connect(&self, link: &Link) -> Result<Connected, Failure> {
        let version = match self.prove(link).await {
            Ok(version) => version,
            Err(failure) => {
                let ClickHouseConfig { host, port, .. } = &*self.config;
                return Err(self.tls.or_wanted(failure, host, *port, "use https://").await);
            }
        };
        let validation = self.config.validation.unwrap_or(version >= KNOWS_NAMES_AND_TYPES);
        let traffic = self.transport(link, Handle::current(), Purpose::Traffic);
        let probe = self.transport(link, runtime::prober()?.clone(), Purpose::Probe);
        let client = traffic.client(&self.config.effective_settings()).with_validation(validation);
        let inserters = Inserters::new(client.clone(), link.clone(), Handle::current(), Arc::clone(&self.config));
        Ok(Connected(Arc::new(Inner {
            threads: blocking::ClickHouse::new(Arc::clone(&inserters)),
            inserters,
            pings: probe.client(&BTreeMap::new()),
            raw_pings: probe.http(),
            ping_uri: format!("{}ping", self.config.base_url()).parse().map_err(Failure::permanent)?,
            client,
            traffic,
            probe,
        })))
    }

    async fn recover(&self, link: &Link, lost: &Connected) -> Result<bool, Failure> {
        // Users wait until the server has proved itself: what they sent before could hang.
        self.prove(link).await?;
        lost.0.traffic.restore();
        Ok(true)
    }

    async fn ping(&self, connected: &Connected) -> Result<(), Failure> {
        let Inner { pings, raw_pings, ping_uri, traffic, .. } = &*connected.0;
        // A server with more work than it can take is slow to take this; an answer to somebody
        // else, or to what needs no query, proves as well that it lives.
        let answered = traffic.answered.notified();
        tokio::pin!(answered);
        answered.as_mut().enable();
        let life = async {
            tokio::time::sleep(PATIENCE).await;
            tokio::select! {
                () = answered => {}
                Ok(_) = raw_pings.get(ping_uri.clone()) => {}
            }
        };
        tokio::select! {
            biased;
            answer = pings.query("SELECT 1").execute() => answer.or_else(|error| self.survives(error)),
            () = life => Ok(()),
        }
    }

    async fn flush(&self, connected: &Connected) -> Result<(), Failure> {
        connected.0.inserters.flush().await
    }

    async fn close(&self, connected: Connected) -> Result<(), Failure> {
        let Inner { traffic, probe, .. } = &*connected.0;
        // What is still out ends here; the drain has waited for it.
        traffic.end();
        probe.end();
        let gone = async { tokio::join!(none(&traffic.open), none(&probe.open)) };
        match runtime::within(LINGER, gone).await {
            Ok(_) => Ok(()),
            Err(_elapsed) => {
                let left = *traffic.open.borrow() + *probe.open.borrow();
                Err(Failure::transient(format!("{left} connections are held by calls that nobody polls any more")))
            }
        }
    }

    fn cut(&self, connected: &Connected) {
        connected.0.traffic.cut();
    }

    fn endpoint(&self) -> String {
        format!("{}{}", self.config.base_url(), self.config.database)
    }

    fn phase(&self) -> Phase {
        Phase::ClickHouse
    }

    fn usage(&self, connected: &Connected) -> Usage {
        let Transport { open, busy, waiting, .. } = &*connected.0.traffic;
        let (open, busy) = (*open.borrow(), *busy.borrow());
        Usage {
            max: Some(self.config.max_connections),
            open: Some(open),
            in_use: Some(busy),
            idle: Some(open.saturating_sub(busy)),
            waiting: Some(*waiting.borrow()),
            ..Usage::default()
        }
    }
}

/// The first version that knows both `RowBinaryWithNamesAndTypes` and the setting by which the
/// driver asks for a table's columns.
const KNOWS_NAMES_AND_TYPES: (u32, u32) = (21, 11);

/// How long closing waits for connections that were cut, which takes microseconds.
const LINGER: Duration = Duration::from_secs(1);

/// How long a ping waits before it looks at what else the server answers.
const PATIENCE: Duration = Duration::from_millis(300);

/// The server's codes for having too much to do: too many queries at once, memory used up.
const OVERLOADED: [&str; 2] = ["202", "241"];

/// The server's codes for what trying again cannot mend: a wrong user, password, address or
/// database, no access, an unknown setting, a setting that this user may not change.
const PERMANENT: [&str; 11] = ["516", "192", "193", "194", "195", "81", "497", "291", "115", "164", "452"];

impl ClickHouseResource {
    fn transport(&self, link: &Link, runtime: Handle, purpose: Purpose) -> Arc<Transport> {
        Transport::new(&self.config, &self.tls, link, runtime, purpose)
    }

    /// Asks the server for its version, with all that queries will carry, over a connection that
    /// ends with this.
    async fn prove(&self, link: &Link) -> Result<(u32, u32), Failure> {
        let transport = self.transport(link, Handle::current(), Purpose::Probe);
        let client = transport.client(&self.config.effective_settings()).with_validation(false);
        let version: String =
            client.query("SELECT version()").fetch_one().await.map_err(|error| self.failure(error))?;
        let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
        Ok((parts.next().unwrap_or(0), parts.next().unwrap_or(0)))
    }

    /// A server that refuses for having too much to do is neither frozen nor gone.
    fn survives(&self, error: DriverError) -> Result<(), Failure> {
        if has_code(&error, &OVERLOADED) { Ok(()) } else { Err(self.failure(error)) }
    }

    fn failure(&self, error: DriverError) -> Failure {
        let is_native = error.to_string().contains("is for clickhouse-client program");
        let is_useless = matches!(error, DriverError::InvalidParams(_) | DriverError::Unsupported(_));
        let is_permanent = is_useless || has_code(&error, &PERMANENT) || tls::is_permanent(&error);
        let source = withheld(error, &self.config.secrets());
        if is_native {
            Failure::permanent(format!("port {} {USE_HTTP} ({})", self.config.port, Chain(&*source)))
        } else if is_permanent {
            Failure::permanent(source)
        } else {
            Failure::transient(source)
        }
    }
}

/// Whether the server answered one of these codes, as in `Code: 62. DB::Exception: …`; old ones
/// write a comma.
fn has_code(error: &DriverError, codes: &[&str]) -> bool {
    let DriverError::BadResponse(text) = error else { return false };
    let code = text.split("Code: ").nth(1).and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
    code.is_some_and(|code| codes.contains(&code))
}

/// The driver's error, or a note in its place if the server's words in it have a password.
fn withheld(error: DriverError, secrets: &[&str]) -> BoxError {
    let told = matches!(error, DriverError::BadResponse(_) | DriverError::Custom(_) | DriverError::Other(_));
    redacted(error, told, secrets)
}

/// What a statement does, which tells what a lost connection means for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Effect {
    Reads,
    Changes,
}

/// The driver's error as ours.
pub(crate) fn failed(
    link: &Link,
    config: &ClickHouseConfig,
    action: &str,
    effect: Effect,
    error: DriverError,
) -> Error {
    if let Some(ours) = Error::behind(&error) {
        return ours.clone();
    }
    let resource = Arc::clone(link.name());
    let (is_lost, was_sent) = match &error {
        DriverError::Network(cause) => (true, !is_connect(&**cause)),
        DriverError::TimedOut => (true, true),
        _ => (false, true),
    };
    let source = withheld(error, &config.secrets()).into();
    let action = action.to_owned();
    match (is_lost, was_sent, effect) {
        (false, ..) => Error::Operation { resource, action, source },
        (true, true, Effect::Changes) => Error::OutcomeUnknown { resource, action, source },
        (true, ..) => Error::Lost { resource, endpoint: Arc::clone(link.endpoint()), source },
    }
}

/// Whether no connection was made, so that nothing can have been sent.
fn is_connect(mut cause: &(dyn StdError + 'static)) -> bool {
    loop {
        if let Some(error) = cause.downcast_ref::<hyper_util::client::legacy::Error>() {
            return error.is_connect();
        }
        match cause.source() {
            Some(next) => cause = next,
            None => return false,
        }
    }
}

/// What a slot holds of a ClickHouse; leased as a client of either facade.
#[derive(Clone)]
pub struct Connected(Arc<Inner>);

struct Inner {
    client: Client,
    threads: blocking::ClickHouse,
    inserters: Arc<Inserters>,
    pings: Client,
    /// For pings that need no query.
    raw_pings: HttpClient<String>,
    ping_uri: Uri,
    traffic: Arc<Transport>,
    probe: Arc<Transport>,
}

impl Connected {
    /// The driver's client.
    pub fn client(&self) -> &Client {
        &self.0.client
    }
}

impl Provide<Client> for Connected {
    fn provide(&self) -> &Client {
        &self.0.client
    }
}

impl Provide<blocking::ClickHouse> for Connected {
    fn provide(&self) -> &blocking::ClickHouse {
        &self.0.threads
    }
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connected").field(&self.0.client).finish()
    }
}

/// Whose queries a transport carries.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Purpose {
    Traffic,
    /// Ours, which no drain waits for.
    Probe,
}

/// Where the connections of one client are opened, counted and cut.
struct Transport {
    config: Arc<ClickHouseConfig>,
    tls: Tls,
    link: Link,
    runtime: Handle,
    purpose: Purpose,
    /// Cuts every stream of the current generation; none once closed.
    switch: RwLock<Option<KillSwitch>>,
    permits: Arc<Semaphore>,
    waiting: watch::Sender<usize>,
    open: watch::Sender<usize>,
    busy: watch::Sender<usize>,
    /// Told whenever the server has begun to answer.
    answered: Notify,
}

impl Transport {
    fn new(config: &Arc<ClickHouseConfig>, tls: &Tls, link: &Link, runtime: Handle, purpose: Purpose) -> Arc<Self> {
        Arc::new(Transport {
            config: Arc::clone(config),
            tls: tls.clone(),
            link: link.clone(),
            runtime,
            purpose,
            switch: RwLock::new(Some(KillSwitch::new())),
            permits: Arc::new(Semaphore::new(config.max_connections)),
            waiting: watch::Sender::default(),
            open: watch::Sender::default(),
            busy: watch::Sender::default(),
            answered: Notify::new(),
        })
    }

    fn client(self: &Arc<Self>, settings: &BTreeMap<String, String>) -> Client {
        let config = &self.config;
        let mut client = Client::with_http_client(self.http())
            .with_url(config.base_url())
            .with_user(&config.user)
            .with_database(&config.database)
            .with_compression(if config.compression { Compression::Lz4 } else { Compression::None });
        if let Some(password) = &config.password {
            client = client.with_password(password.expose());
        }
        settings.iter().fold(client, |client, (name, value)| client.with_setting(name, value))
    }

    fn http<B: Body<Data: Send> + Send>(self: &Arc<Self>) -> HttpClient<B> {
        hyper_util::client::legacy::Client::builder(OnRuntime(self.runtime.clone()))
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(self.config.idle_timeout)
            .pool_max_idle_per_host(self.config.max_idle)
            .build(Connector(Arc::clone(self)))
    }

    fn cut(&self) {
        if let Some(switch) = &*self.switch.read() {
            switch.cut_because(self.link.why_cut());
        }
    }

    /// Opens connections again after a cut.
    fn restore(&self) {
        if let Some(switch) = &mut *self.switch.write() {
            *switch = KillSwitch::new();
        }
    }

    /// Cuts for good.
    fn end(&self) {
        if let Some(switch) = self.switch.write().take() {
            switch.cut_because(self.link.why_cut());
        }
    }

    async fn open(self: Arc<Self>) -> io::Result<TokioIo<Stream>> {
        let switch = self.live_switch().await?;
        let opening = async { Ok::<_, io::Error>((self.permit().await?, self.dial(&switch).await?)) };
        let (permit, stream) = tokio::select! {
            opened = opening => opened?,
            () = switch.wait() => return Err(self.unavailable()),
        };
        let open = Counted::new(&self.open);
        Ok(TokioIo::new(Stream { stream, transport: self, exchange: None, _open: open, _permit: permit }))
    }

    /// Waits until there may be one more connection. Meanwhile the HTTP client takes one that
    /// becomes free, if that comes first.
    async fn permit(&self) -> io::Result<OwnedSemaphorePermit> {
        let waiting = Counted::new(&self.waiting);
        let limit = self.link.acquire_timeout();
        let permit = tokio::time::timeout(limit, Arc::clone(&self.permits).acquire_owned()).await;
        drop(waiting);
        match permit {
            Ok(permit) => permit.map_err(|_closed| self.unavailable()),
            Err(_elapsed) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                Error::Timeout(Arc::new(TimeoutError {
                    resource: Arc::clone(self.link.name()),
                    endpoint: Arc::clone(self.link.endpoint()),
                    waiting_for: format!("one of {} connections", self.config.max_connections),
                    waited: limit,
                    holders: self.link.holders(),
                    cycle: Vec::new(),
                    source: None,
                })),
            )),
        }
    }

    async fn dial(&self, switch: &KillSwitch) -> io::Result<OwnStream> {
        let ClickHouseConfig { host, port, connect_timeout, keepalive, .. } = &*self.config;
        let connecting = self.tls.dial(host, *port, *keepalive, switch);
        tokio::time::timeout(*connect_timeout, connecting).await.map_err(|_elapsed| {
            io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {connect_timeout:?}"))
        })?
    }

    /// The switch of the current generation, after waiting while it is being brought back.
    async fn live_switch(&self) -> io::Result<KillSwitch> {
        if let Some(switch) = self.live() {
            return Ok(switch);
        }
        if self.is_open() {
            self.link.ready().await.map_err(|error| io::Error::new(io::ErrorKind::NotConnected, error))?;
        }
        self.live().ok_or_else(|| self.unavailable())
    }

    fn live(&self) -> Option<KillSwitch> {
        self.switch.read().clone().filter(|switch| !switch.is_cut())
    }

    fn is_open(&self) -> bool {
        self.switch.read().is_some()
    }

    fn unavailable(&self) -> io::Error {
        if self.is_open() {
            io::Error::new(io::ErrorKind::ConnectionAborted, "lost while connecting")
        } else {
            io::Error::new(io::ErrorKind::NotConnected, Error::Closed { resource: Arc::clone(self.link.name()) })
        }
    }
}

/// Runs what the HTTP client needs where the pool says, whichever runtime calls.
#[derive(Clone)]
struct OnRuntime(Handle);

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for OnRuntime {
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

type HttpClient<B> = hyper_util::client::legacy::Client<Connector, B>;

/// Opens connections for the HTTP client.
#[derive(Clone)]
struct Connector(Arc<Transport>);

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = BoxError;
    type Future = BoxFuture<Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        // A set, because dropping it aborts what is in it.
        let mut opening = JoinSet::new();
        opening.spawn_on(Arc::clone(&self.0).open(), &self.0.runtime);
        let transport = Arc::clone(&self.0);
        Box::pin(async move {
            match opening.join_next().await {
                Some(Ok(opened)) => Ok(opened?),
                _the_runtime_ended => Err(transport.unavailable().into()),
            }
        })
    }
}

/// A connection, which knows whether an answer is outstanding.
struct Stream {
    stream: OwnStream,
    transport: Arc<Transport>,
    exchange: Option<Exchange>,
    _open: Counted,
    _permit: OwnedSemaphorePermit,
}

impl Stream {
    fn sent(&mut self) {
        self.asked_for_more();
        if self.exchange.is_none() && self.transport.purpose == Purpose::Traffic {
            self.exchange = Some(Exchange {
                answer: Answer::default(),
                is_over: false,
                busy: self.transport.link.busy(Work::Operation),
                _counted: Counted::new(&self.transport.busy),
            });
        }
    }

    fn received(&mut self, bytes: &[u8]) {
        let Some(exchange) = &mut self.exchange else { return };
        let was_begun = exchange.answer.is_begun();
        exchange.is_over |= match exchange.answer {
            Answer::UntilClosed => bytes.is_empty(),
            _ => exchange.answer.ends_in(bytes),
        };
        if !was_begun && exchange.answer.is_begun() {
            self.transport.answered.notify_waiters();
        }
    }

    /// The HTTP client has handed on all it had, and only then asks for more.
    fn asked_for_more(&mut self) {
        if self.exchange.as_ref().is_some_and(|exchange| exchange.is_over) {
            self.exchange = None;
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.asked_for_more();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.received(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.sent();
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.sent();
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connection for Stream {
    fn connected(&self) -> Metadata {
        Metadata::new()
    }
}

/// A request sent and not yet answered in full.
struct Exchange {
    answer: Answer,
    /// The answer is there in full, though perhaps not yet with whoever waits for it.
    is_over: bool,
    busy: Busy,
    _counted: Counted,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.busy.end(self.is_over);
    }
}

/// How far an HTTP/1.1 answer has come.
enum Answer {
    /// The head, or a line of a chunked body, as far as it is there.
    Head(Vec<u8>),
    Body(u64),
    ChunkSize(Vec<u8>),
    /// A chunk with its line end.
    Chunk(u64),
    Trailer(Vec<u8>),
    UntilClosed,
}

impl Default for Answer {
    fn default() -> Self {
        Answer::Head(Vec::new())
    }
}

impl Answer {
    /// Whether its head is there.
    fn is_begun(&self) -> bool {
        !matches!(self, Answer::Head(_))
    }

    /// Whether it ends in these bytes.
    fn ends_in(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match self {
                Answer::Head(head) => {
                    let Some(head) = taken_until(head, &mut bytes, b"\r\n\r\n") else { return false };
                    *self = Answer::after(&String::from_utf8_lossy(&head));
                    if matches!(self, Answer::Body(0)) {
                        return true;
                    }
                }
                Answer::ChunkSize(line) => {
                    let Some(line) = taken_until(line, &mut bytes, b"\r\n") else { return false };
                    let line = String::from_utf8_lossy(&line);
                    let digits = line.split([';', '\r']).next().unwrap_or_default().trim();
                    *self = match u64::from_str_radix(digits, 16) {
                        Ok(0) => Answer::Trailer(Vec::new()),
                        Ok(size) => Answer::Chunk(size.saturating_add(2)),
                        Err(_) => Answer::UntilClosed,
                    };
                }
                Answer::Trailer(line) => {
                    let Some(line) = taken_until(line, &mut bytes, b"\r\n") else { return false };
                    if line == b"\r\n" {
                        return true;
                    }
                }
                Answer::Body(left) | Answer::Chunk(left) => {
                    let step = (*left).min(bytes.len() as u64);
                    *left -= step;
                    bytes = &bytes[usize::try_from(step).unwrap_or(bytes.len())..];
                    match self {
                        Answer::Body(0) => return true,
                        Answer::Chunk(0) => *self = Answer::ChunkSize(Vec::new()),
                        _ => {}
                    }
                }
                Answer::UntilClosed => return false,
            }
        }
        false
    }

    /// What follows this head.
    fn after(head: &str) -> Self {
        let status = head.split(' ').nth(1).unwrap_or_default();
        if status.starts_with('1') {
            return Answer::default();
        }
        let field = |name: &str| {
            let mut fields = head.lines().filter_map(|line| line.split_once(':'));
            fields.find_map(|(key, value)| {
                key.trim().eq_ignore_ascii_case(name).then(|| value.trim().to_ascii_lowercase())
            })
        };
        match (field("transfer-encoding"), field("content-length").map(|length| length.parse())) {
            _ if status == "204" || status == "304" => Answer::Body(0),
            (Some(coding), _) if coding.ends_with("chunked") => Answer::ChunkSize(Vec::new()),
            (None, Some(Ok(length))) => Answer::Body(length),
            _ => Answer::UntilClosed,
        }
    }
}

/// Moves bytes over until the mark is complete, and then hands out what came before it and it.
fn taken_until(taken: &mut Vec<u8>, bytes: &mut &[u8], mark: &[u8]) -> Option<Vec<u8>> {
    /// More than any server sends in front of an answer; what is longer is not looked at.
    const LONGEST: usize = 1 << 20;
    while let Some((first, rest)) = bytes.split_first() {
        if taken.len() < LONGEST {
            taken.push(*first);
        }
        *bytes = rest;
        if taken.ends_with(mark) {
            return Some(std::mem::take(taken));
        }
    }
    None
}
