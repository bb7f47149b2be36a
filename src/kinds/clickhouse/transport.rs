//! The connections of one client: where they are opened, counted and cut.
//!
//! hyper's client asks the `Connector` for each new connection. A task on the transport's runtime opens the socket,
//! without Nagle's delay, under a kill switch. The switch is replaced when the connection comes back, so one client
//! goes on through losses. `ClickHouseResource` cuts, restores and ends a transport.
//!
//! The lock of `switch` is the only one here. It is held for no more than a look at the switch, and for the cut, and
//! nothing is awaited under it. A cut asks the pool for its cause under the lock, by `Link::why_cut`.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::clickhouse::{Client, Compression};
use hyper::Uri;
use hyper::body::Body;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::base::error::{BoxError, Error, TimeoutError};
use crate::base::future::BoxFuture;
use crate::kinds::clickhouse::cancel::Cancel;
use crate::kinds::clickhouse::config::ClickHouseConfig;
use crate::kinds::clickhouse::statement::StatementEffect;
use crate::kinds::clickhouse::stream::TrafficStream;
use crate::lifecycle::link::Link;
use crate::net::count::Counted;
use crate::net::kill_switch::KillSwitch;
use crate::net::tls::{Stream, Tls};

/// The queries that a transport carries.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Purpose {
    /// The users' queries.
    Traffic,
    /// The pool's own queries, which no drain waits for.
    Probe,
}

/// The connections of one client, which it opens, counts and cuts.
pub(super) struct Transport {
    config: Arc<ClickHouseConfig>,
    tls: Tls,
    pub(super) link: Link,
    runtime: Handle,
    pub(super) purpose: Purpose,
    pub(super) cancel: Option<Cancel>,
    /// Cuts every stream of the current generation. `None` once closed.
    switch: RwLock<Option<KillSwitch>>,
    permits: Arc<Semaphore>,
    pub(super) waiting: watch::Sender<usize>,
    pub(super) open: watch::Sender<usize>,
    pub(super) busy: watch::Sender<usize>,
    /// Notified whenever the server has begun to answer.
    pub(super) answered: Notify,
}

impl Transport {
    pub(super) fn new(
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

    pub(super) fn client(self: &Arc<Self>, settings: &BTreeMap<String, String>) -> Client {
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

    pub(super) fn http<B: Body<Data: Send> + Send>(self: &Arc<Self>) -> HttpClient<B> {
        hyper_util::client::legacy::Client::builder(OnRuntime(self.runtime.clone()))
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(self.config.idle_timeout)
            .pool_max_idle_per_host(self.config.max_idle)
            .build(Connector(Arc::clone(self)))
    }

    pub(super) fn cut(&self) {
        if let Some(switch) = &*self.switch.read() {
            switch.cut_because(self.link.why_cut());
        }
    }

    /// Lets connections be opened again after a cut.
    pub(super) fn restore(&self) {
        if let Some(switch) = &mut *self.switch.write() {
            *switch = KillSwitch::new();
        }
    }

    /// Cuts all connections, and lets none be opened again.
    pub(super) fn end(&self) {
        if let Some(switch) = self.switch.write().take() {
            switch.cut_because(self.link.why_cut());
        }
    }

    async fn open(self: Arc<Self>) -> io::Result<TokioIo<TrafficStream>> {
        let switch = self.live_switch().await?;
        let opening = async { Ok::<_, io::Error>((self.permit().await?, self.dial(&switch).await?)) };
        let (permit, stream) = tokio::select! {
            opened = opening => opened?,
            () = switch.wait() => return Err(self.unavailable()),
        };
        Ok(TokioIo::new(TrafficStream::new(stream, self, permit)))
    }

    /// Waits until there may be one more connection. Meanwhile the HTTP client takes a connection that becomes free, if
    /// that comes first.
    async fn permit(&self) -> io::Result<OwnedSemaphorePermit> {
        let waiting = Counted::new(&self.waiting);
        let limit = self.link.acquire_timeout();
        let permit = tokio::time::timeout(limit, Arc::clone(&self.permits).acquire_owned()).await;
        drop(waiting);
        match permit {
            Ok(permit) => permit.map_err(|_closed| self.unavailable()),
            Err(_elapsed) => {
                let waiting_for = format!("one of {} connections", self.config.max_connections);
                let timeout = TimeoutError::new(self.link.name(), self.link.endpoint(), waiting_for, limit);
                let holders = self.link.holders();
                let timeout = Error::Timeout(Arc::new(TimeoutError { holders, ..timeout }));
                Err(io::Error::new(io::ErrorKind::TimedOut, timeout))
            }
        }
    }

    async fn dial(&self, switch: &KillSwitch) -> io::Result<Stream> {
        let ClickHouseConfig { host, port, connect_timeout, keepalive, .. } = &*self.config;
        let connecting = self.tls.dial(host, *port, *keepalive, switch);
        let opened = match tokio::time::timeout(*connect_timeout, connecting).await {
            Ok(opened) => opened,
            Err(_elapsed) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {connect_timeout:?}")))
            }
        };
        opened.map_err(|error| self.broken(StatementEffect::Reads, false, error))
    }

    /// The switch of the current generation. Waits while the connection is being brought back.
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
        self.broken(
            StatementEffect::Reads,
            false,
            io::Error::new(io::ErrorKind::ConnectionAborted, "lost while connecting"),
        )
    }

    /// The error of a broken connection, for the user whose statement it carried or was to carry.
    pub(super) fn broken(&self, effect: StatementEffect, is_sent: bool, cause: io::Error) -> io::Error {
        let (kind, resource) = (cause.kind(), Arc::clone(self.link.name()));
        let error = match (self.purpose, effect) {
            (Purpose::Probe, _) => return cause,
            (Purpose::Traffic, StatementEffect::Changes) if is_sent => {
                self.link.outcome_unknown("a statement", Arc::new(cause))
            }
            _ if !self.is_open() => Error::Closed { resource },
            _ => Error::Lost { resource, endpoint: Arc::clone(self.link.endpoint()), source: Arc::new(cause) },
        };
        io::Error::new(kind, error)
    }

    /// How long the server may be silent. `None` without a limit, and for the pool's own queries, which have other ones.
    pub(super) fn silence(&self) -> Option<Duration> {
        Some(self.config.operation_timeout).filter(|limit| !limit.is_zero() && self.purpose == Purpose::Traffic)
    }

    /// The error of a statement for which the server was silent for longer than the operation timeout.
    pub(super) fn late(&self, effect: StatementEffect, is_sent: bool) -> io::Error {
        let (name, endpoint) = (self.link.name(), self.link.endpoint());
        let waiting_for = "the server's answer to a statement";
        let timeout = TimeoutError::new(name, endpoint, waiting_for, self.config.operation_timeout);
        let timeout = Error::Timeout(Arc::new(timeout));
        let error = match effect {
            StatementEffect::Changes if is_sent => self.link.outcome_unknown("a statement", Arc::new(timeout)),
            _ => timeout,
        };
        io::Error::new(io::ErrorKind::TimedOut, error)
    }
}

/// Runs the HTTP client's tasks on the transport's runtime, whichever runtime calls.
#[derive(Clone)]
struct OnRuntime(Handle);

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for OnRuntime {
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

pub(super) type HttpClient<B> = hyper_util::client::legacy::Client<Connector, B>;

/// Opens connections for the HTTP client.
#[derive(Clone)]
pub(super) struct Connector(Arc<Transport>);

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<TrafficStream>;
    type Error = BoxError;
    type Future = BoxFuture<Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        // A `JoinSet`, because dropping it aborts the task in it.
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
