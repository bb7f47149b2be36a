//! ClickHouse: the driver's own client over connections of ours.
//!
//! The connector opens every socket on the pool's runtime, without Nagle's delay, and puts it
//! under a kill switch that is replaced when the connection comes back, so one client goes on
//! through losses.

pub(crate) mod blocking;
mod cancel;
mod config;
mod errors;
mod inserter;
mod statement;
mod stream;

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::clickhouse::error::Error as DriverError;
use ::clickhouse::{Client, Compression};
use hyper::Uri;
use hyper::body::Body;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use self::cancel::Cancel;
pub use self::config::ClickHouseConfig;
use self::errors::{UNCHANGEABLE, failure, has_code, is_foreign, is_unreachable};
pub use self::inserter::Inserter;
pub(crate) use self::inserter::Inserters;
use self::statement::Effect;
use self::stream::Stream;
use crate::base::error::{BoxError, Error, Failure, TimeoutError};
use crate::base::future::BoxFuture;
use crate::base::runtime::{self, within};
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::lease::Provide;
use crate::lifecycle::link::Link;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::Usage;
use crate::net::count::{Counted, none};
use crate::net::kill_switch::KillSwitch;
use crate::net::tls::{Stream as OwnStream, Tls};

/// A ClickHouse of one's own: [`ClickHouse::scoped`]. The guards of a pool deref to
/// [`clickhouse::Client`](Client).
///
/// A query or insert in progress counts as work, through whichever clone of the client: from its
/// first byte until the answer is complete or given up. Closing waits for it, within the drain; so
/// whoever fills an `Insert`, or an inserter of the driver's own, ends it when
/// [`closing`](crate::ResourcePool::closing) tells. One that is not ended is aborted, by the
/// driver as well as by closing, and its rows are not stored, but for the blocks that the server has
/// written by then. An [`Inserter`] closing flushes.
#[derive(Debug)]
pub enum ClickHouse {}

/// A ClickHouse in the pool.
#[derive(Debug)]
pub struct ClickHouseResource {
    config: Arc<ClickHouseConfig>,
    tls: Tls,
}

impl ClickHouseResource {
    fn new(config: ClickHouseConfig, tls: Tls) -> Self {
        ClickHouseResource { config: Arc::new(config), tls }
    }
}

impl Resource for ClickHouseResource {
    type Handle = Connected;

    async fn connect(&self, link: &Link) -> Result<Connected, Failure> {
        let (settings, version) = match self.introduce(link).await {
            Ok(proved) => proved,
            Err(failure) => {
                let ClickHouseConfig { host, port, .. } = &*self.config;
                return Err(self.tls.or_wanted(failure, host, *port, "use https://").await);
            }
        };
        let validation = self.config.validation.unwrap_or(version >= KNOWS_NAMES_AND_TYPES);
        let prober = runtime::prober()?;
        let probe = self.transport(link, prober.clone(), Purpose::Probe, None);
        let pings = probe.client(&BTreeMap::new());
        let cancel = self.config.cancel_dropped.then(|| Cancel::start(pings.clone(), prober));
        let traffic = self.transport(link, Handle::current(), Purpose::Traffic, cancel);
        let client = traffic.client(&settings).with_validation(validation);
        let inserters = Inserters::new(client.clone(), link.clone(), Handle::current(), Arc::clone(&self.config));
        let ping_url = format!("{}ping", self.config.base_url());
        Ok(Connected(Arc::new(Inner {
            threads: blocking::ClickHouse::new(Arc::clone(&inserters)),
            inserters,
            settings,
            pings,
            raw_pings: probe.http(),
            shared_pings: client.clone().with_url(&ping_url),
            ping_uri: ping_url.parse().map_err(Failure::permanent)?,
            client,
            traffic,
            probe,
        })))
    }

    async fn recover(&self, link: &Link, lost: &Connected) -> Result<bool, Failure> {
        // Users wait until the server has proved itself: what they sent before could hang.
        self.prove(link, &lost.0.settings).await.map_err(|error| {
            // While a server restarts, something else may answer in its place.
            let is_foreign = is_foreign(&error);
            let failure = failure(&self.config, error, &lost.0.settings);
            Failure { permanent: failure.permanent && !is_foreign, ..failure }
        })?;
        lost.0.traffic.restore();
        Ok(true)
    }

    async fn ping(&self, connected: &Connected) -> Result<(), Failure> {
        let Inner { pings, .. } = &*connected.0;
        // A server with more work than it can take is slow to take a query.
        let life = async {
            tokio::time::sleep(PATIENCE).await;
            self.probe(connected).await
        };
        tokio::select! {
            biased;
            answer = pings.query("SELECT 1").execute() => match answer {
                // It may be that there was only no room for one more connection.
                Err(DriverError::Network(_)) => self.probe(connected).await,
                answer => answer.map_err(|error| failure(&self.config, error, &BTreeMap::new())),
            },
            Ok(()) = life => Ok(()),
        }
    }

    /// Costs nothing of the user's quota.
    async fn probe(&self, connected: &Connected) -> Result<(), Failure> {
        let Inner { raw_pings, ping_uri, shared_pings, traffic, .. } = &*connected.0;
        // An answer to somebody else proves as well that the server lives.
        let answered = traffic.answered.notified();
        tokio::pin!(answered);
        answered.as_mut().enable();
        let asked = async {
            let Err(error) = ask(raw_pings, ping_uri).await else { return Ok(()) };
            let error = DriverError::from(error);
            let count = |count: &watch::Sender<usize>| *count.borrow();
            if count(&traffic.open) > count(&traffic.busy) {
                // Without room for one more connection, an idle one of the users' will do. In a task of its own it is
                // read to its end, and can be used again.
                let _answered_or_not = tokio::spawn(within(PATIENCE, shared_pings.query("SELECT 1").execute())).await;
            }
            match (count(&traffic.busy) > 0, is_unreachable(&error)) {
                // A server or proxy that is full hangs up, while users still wait for their answers.
                (true, false) => return Err(Failure::unasked(error)),
                (true, true) => tokio::time::sleep(PATIENCE).await,
                (false, _) => {}
            }
            Err(Failure::transient(error))
        };
        tokio::select! {
            biased;
            // First, since the question's own answer may be an error although this one has come.
            () = answered => Ok(()),
            answer = asked => answer,
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

/// How long a ping waits for what else the server answers.
const PATIENCE: Duration = Duration::from_millis(300);

impl ClickHouseResource {
    fn transport(&self, link: &Link, runtime: Handle, purpose: Purpose, cancel: Option<Cancel>) -> Arc<Transport> {
        Transport::new(&self.config, &self.tls, link, runtime, purpose, cancel)
    }

    /// Finds out which settings this user may send, and the server's version.
    async fn introduce(&self, link: &Link) -> Result<(BTreeMap<String, String>, (u32, u32)), Failure> {
        let all = self.config.effective_settings();
        let chosen = self.config.chosen_settings();
        match self.prove(link, &all).await {
            Err(error) if has_code(&error, &UNCHANGEABLE) && chosen.len() < all.len() => {
                let version = self.prove(link, &chosen).await.map_err(|error| failure(&self.config, error, &chosen))?;
                tracing::info!(resource = %link.name(), "the server's own sizes hold, as this user may not change them");
                Ok((chosen, version))
            }
            Ok(version) => Ok((all, version)),
            Err(error) => Err(failure(&self.config, error, &all)),
        }
    }

    /// Asks the server for its version, with all that queries will carry, over a connection that
    /// ends with this.
    async fn prove(&self, link: &Link, settings: &BTreeMap<String, String>) -> Result<(u32, u32), DriverError> {
        let transport = self.transport(link, Handle::current(), Purpose::Probe, None);
        let client = transport.client(settings).with_validation(false);
        let version: String = client.query("SELECT version()").fetch_one().await?;
        let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
        Ok((parts.next().unwrap_or(0), parts.next().unwrap_or(0)))
    }
}

/// Asks whether the server lives, which any answer to this proves. It is read to its end, so that the connection can be
/// used again.
async fn ask(client: &HttpClient<String>, uri: &Uri) -> Result<(), hyper_util::client::legacy::Error> {
    let mut body = client.get(uri.clone()).await?.into_body();
    let rest =
        async { while poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.is_some_and(|frame| frame.is_ok()) {} };
    let _what_does_not_end_is_closed = within(PATIENCE, rest).await;
    Ok(())
}

/// What a slot holds of a ClickHouse; leased as a client of either facade.
#[derive(Clone)]
pub struct Connected(Arc<Inner>);

struct Inner {
    client: Client,
    threads: blocking::ClickHouse,
    inserters: Arc<Inserters>,
    /// What goes along with every query.
    settings: BTreeMap<String, String>,
    pings: Client,
    /// For pings that need no query.
    raw_pings: HttpClient<String>,
    ping_uri: Uri,
    /// For pings over the users' connections. The server need not like what it is asked there.
    shared_pings: Client,
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
    cancel: Option<Cancel>,
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
    fn new(
        config: &Arc<ClickHouseConfig>,
        tls: &Tls,
        link: &Link,
        runtime: Handle,
        purpose: Purpose,
        cancel: Option<Cancel>,
    ) -> Arc<Self> {
        Arc::new(Transport {
            config: Arc::clone(config),
            tls: tls.clone(),
            link: link.clone(),
            runtime,
            purpose,
            cancel,
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
        Ok(TokioIo::new(Stream::new(stream, self, permit)))
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
        let opened = match tokio::time::timeout(*connect_timeout, connecting).await {
            Ok(opened) => opened,
            Err(_elapsed) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {connect_timeout:?}")))
            }
        };
        opened.map_err(|error| self.broken(Effect::Reads, false, error))
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
        self.broken(Effect::Reads, false, io::Error::new(io::ErrorKind::ConnectionAborted, "lost while connecting"))
    }

    /// What a broken connection means to the user whose statement it was to carry, or carried.
    fn broken(&self, effect: Effect, is_sent: bool, cause: io::Error) -> io::Error {
        let (kind, resource) = (cause.kind(), Arc::clone(self.link.name()));
        let error = match (self.purpose, effect) {
            (Purpose::Probe, _) => return cause,
            (Purpose::Traffic, Effect::Changes) if is_sent => {
                Error::OutcomeUnknown { resource, action: "a statement".to_owned(), source: Arc::new(cause) }
            }
            _ if !self.is_open() => Error::Closed { resource },
            _ => Error::Lost { resource, endpoint: Arc::clone(self.link.endpoint()), source: Arc::new(cause) },
        };
        io::Error::new(kind, error)
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
