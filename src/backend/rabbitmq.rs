//! RabbitMQ: one connection, channels pooled on it, confirms awaited, topology that comes back.
//!
//! How it is used (the blocking facade has the same verbs, without `await`, and `consume` is an iterator):
//!
//! ```no_run
//! use resource_pool::ResourcePool;
//! use resource_pool::rabbitmq::{Consume, Exchange, Message, Queue};
//!
//! # async fn bars() -> Result<(), resource_pool::Error> {
//! let rabbit = ResourcePool::global().rabbitmq().await?;
//! rabbit.declare_exchange(Exchange::fanout("realtime_day_AAPL")).await?;
//! let queue = rabbit.declare_queue(Queue::temporary()).await?;
//! rabbit.bind(queue.name(), "realtime_day_AAPL", "").await?;
//!
//! let bars = (0..1000).map(|bar| Message::new("realtime_day_AAPL", "", format!("{{\"bar\":{bar}}}")));
//! let batch = rabbit.publish_batch(bars).await?;
//! assert_eq!(batch.confirmed(), 1000);
//!
//! let mut consumer = rabbit.consume(Consume::from(queue.name()).prefetch(200)).await?;
//! while let Some(delivery) = consumer.next().await {
//!     let delivery = delivery?;
//!     println!("{}", String::from_utf8_lossy(delivery.data()));
//!     delivery.ack().await?;
//! }
//! # Ok(()) }
//! ```
//!
//! The connection's stream is our own and stands under a kill switch; every await of the driver
//! is raced with that switch and a limit, since the driver's futures may never resolve. Recovery
//! is ours too: a new connection, the recorded topology replayed, the consumers subscribed again.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_core::Stream;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions,
    BasicQosOptions, ConfirmSelectOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::types::{FieldTable, ShortString};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{AsyncTcpStream, BasicProperties, Confirmation, ConnectionProperties, ErrorKind, Event, ExchangeKind};
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Sleep;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::subscriber::{DefaultGuard, NoSubscriber};

use crate::blocking;
use crate::close::Phase;
use crate::config::{BackendConfig, Environment, ParsedUrl, ResourceConfig, Secret, host_port, millis};
use crate::error::{BoxError, Error, Failure, Source, TimeoutError, redacted};
use crate::lease::{Claim, Lease, Provide};
use crate::probe::{KillSwitch, Killable};
use crate::resource::{Busy, Link, Resource, Work};
use crate::runtime::{self, within};
use crate::scoped::{self, Scoped};
use crate::slot::Slot;
use crate::status::Usage;

/// How to reach a RabbitMQ; `[rabbitmq]` or `[named.rabbitmq.NAME]` in TOML.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RabbitMqConfig {
    /// `amqp://user:password@host:port/vhost`, instead of the parts; an empty path is the virtual
    /// host `/`, as in `…/%2f`. May end in `?heartbeat=10&frame_max=32768&channel_max=2047`.
    /// Environment: `AMQP_URL`.
    pub url: Option<Secret>,
    /// Defaults to `localhost`. Environment: `RABBITMQ_HOST`, `QAPUBSUB_IP`.
    pub host: String,
    /// Defaults to 5672. Environment: `RABBITMQ_PORT`, `QAPUBSUB_PORT`.
    pub port: u16,
    /// Defaults to `guest`, RabbitMQ's own (QUANTAXIS's is `admin`). Environment: `RABBITMQ_USER`, `QAPUBSUB_USER`.
    pub user: String,
    /// Defaults to `guest`, RabbitMQ's own (QUANTAXIS's is `admin`). Environment: `RABBITMQ_PASSWORD`, `QAPUBSUB_PWD`.
    pub password: Secret,
    /// The virtual host. Defaults to `/`. Environment: `RABBITMQ_VHOST`.
    pub vhost: String,
    /// What RabbitMQ's management shows. Defaults to `resource-pool`; the prober's connection
    /// has ` probe` added.
    pub connection_name: String,
    /// The interval of heartbeats, in whole seconds. Defaults to 10 s; the lower one of ours and
    /// the broker's counts.
    #[serde(rename = "heartbeat_ms", with = "millis")]
    pub heartbeat: Duration,
    /// The largest frame in bytes, from 4096. Defaults to 32768. The driver's two buffers take 64
    /// times as much: 2 MiB per connection, and 8 MiB with the broker's own 131072.
    pub frame_max: u32,
    /// The most channels on the connection, consumers' included. Defaults to 2047, the broker's own limit.
    pub channel_max: u16,
    /// The most channels checked out at a time: by [`channel`](RabbitMq::channel), and for as long
    /// as they take by the other verbs but [`consume`](RabbitMq::consume). Defaults to 64. A
    /// checkout waits at most the pool's acquire timeout.
    pub max_channels: usize,
    /// How many deliveries a consumer may have in hand, unless it says so itself. Defaults to 100.
    pub prefetch: u16,
    /// How many messages of a batch may be unconfirmed at a time. Defaults to 1024.
    pub confirm_window: usize,
    /// How long the broker may take to confirm a message. Defaults to 10 s.
    #[serde(rename = "confirm_timeout_ms", with = "millis")]
    pub confirm_timeout: Duration,
    /// How long the broker may take to answer anything else. Defaults to 10 s.
    #[serde(rename = "operation_timeout_ms", with = "millis")]
    pub operation_timeout: Duration,
}

impl Default for RabbitMqConfig {
    fn default() -> Self {
        RabbitMqConfig {
            url: None,
            host: "localhost".to_owned(),
            port: 5672,
            user: "guest".to_owned(),
            password: "guest".into(),
            vhost: "/".to_owned(),
            connection_name: "resource-pool".to_owned(),
            heartbeat: Duration::from_secs(10),
            frame_max: 32768,
            channel_max: 2047,
            max_channels: 64,
            prefetch: 100,
            confirm_window: 1024,
            confirm_timeout: Duration::from_secs(10),
            operation_timeout: Duration::from_secs(10),
        }
    }
}

impl RabbitMqConfig {
    /// The defaults, at this URL.
    pub fn url(url: impl Into<Secret>) -> Self {
        RabbitMqConfig { url: Some(url.into()), ..RabbitMqConfig::default() }
    }

    /// Sets what RabbitMQ's management shows.
    pub fn connection_name(mut self, name: impl Into<String>) -> Self {
        self.connection_name = name.into();
        self
    }

    /// Sets the most channels checked out at a time.
    pub fn max_channels(mut self, max_channels: usize) -> Self {
        self.max_channels = max_channels;
        self
    }

    /// Sets how many deliveries a consumer may have in hand.
    pub fn prefetch(mut self, prefetch: u16) -> Self {
        self.prefetch = prefetch;
        self
    }

    /// Sets how long the broker may take to confirm a message.
    pub fn confirm_timeout(mut self, limit: Duration) -> Self {
        self.confirm_timeout = limit;
        self
    }

    /// Sets how long the broker may take to answer anything else.
    pub fn operation_timeout(mut self, limit: Duration) -> Self {
        self.operation_timeout = limit;
        self
    }

    fn merge_url(&mut self, key: &str, url: &Secret) -> Result<(), Error> {
        let url = ParsedUrl::new(key, url, &["amqp"])?;
        self.host = url.host().to_owned();
        self.port = url.url().port().unwrap_or(5672);
        if let Some(user) = url.user(key)? {
            self.user = user;
        }
        if let Some(password) = url.password(key)? {
            self.password = password;
        }
        self.vhost = Some(url.path(key)?).filter(|vhost| !vhost.is_empty()).unwrap_or_else(|| "/".to_owned());
        for (name, value) in url.url().query_pairs() {
            let bad = || Error::config(key, format!("has a parameter `{name}` that is not a number in range"));
            match &*name {
                "heartbeat" => self.heartbeat = Duration::from_secs(value.parse::<u16>().map_err(|_| bad())?.into()),
                "frame_max" => self.frame_max = value.parse().map_err(|_| bad())?,
                "channel_max" => self.channel_max = value.parse().map_err(|_| bad())?,
                _ => {
                    return Err(Error::config(
                        key,
                        format!("has the unknown parameter `{name}`; known are heartbeat, frame_max, channel_max"),
                    ));
                }
            }
        }
        Ok(())
    }

    fn check(&self, name: &str) -> Result<(), Error> {
        let fail = |key: &str, problem: &str| Err(Error::config(format!("{name}.{key}"), problem));
        match self {
            Self { heartbeat, .. } if !(1..=u64::from(u16::MAX)).contains(&heartbeat.as_secs()) => {
                fail("heartbeat_ms", "must be from 1 s to 65535 s")
            }
            Self { frame_max: 0..4096, .. } => fail("frame_max", "must be at least 4096"),
            Self { channel_max: 0, .. } => fail("channel_max", "must be at least 1"),
            Self { prefetch: 0, .. } => fail("prefetch", "must be at least 1, or the broker would send without bound"),
            Self { confirm_window: 0, .. } => fail("confirm_window", "must be at least 1"),
            Self { max_channels: 0, .. } => fail("max_channels", "must be at least 1"),
            Self { max_channels, channel_max, .. } if *max_channels > usize::from(*channel_max) => {
                fail("max_channels", "is more than channel_max")
            }
            Self { vhost, .. } if vhost.len() > 255 => fail("vhost", "is longer than 255 bytes"),
            _ => Ok(()),
        }
    }

    fn secrets(&self) -> Vec<&str> {
        vec![self.password.expose()]
    }

    /// Built from parts, as the driver's parser loses IPv6 addresses and takes `/` for the vhost "".
    fn uri(&self, frame_max: u32) -> AMQPUri {
        let userinfo = AMQPUserInfo { username: self.user.clone(), password: self.password.expose().to_owned() };
        AMQPUri {
            scheme: AMQPScheme::AMQP,
            authority: AMQPAuthority { userinfo, host: self.host.clone(), port: self.port },
            vhost: self.vhost.clone(),
            query: AMQPQueryString {
                frame_max: Some(frame_max),
                channel_max: Some(self.channel_max),
                heartbeat: Some(u16::try_from(self.heartbeat.as_secs()).unwrap_or(u16::MAX)),
                ..AMQPQueryString::default()
            },
        }
    }
}

impl BackendConfig for RabbitMqConfig {
    const KIND: &'static str = "rabbitmq";
    type Resource = RabbitMqResource;

    fn apply(&mut self, environment: &Environment) -> Result<(), Error> {
        const HOST: &[&str] = &["RABBITMQ_HOST", "QAPUBSUB_IP"];
        if environment.first(HOST).is_some() {
            self.url = None;
        }
        environment.optional(&["AMQP_URL"], &mut self.url);
        environment.text(HOST, &mut self.host);
        environment.number(&["RABBITMQ_PORT", "QAPUBSUB_PORT"], &mut self.port)?;
        environment.text(&["RABBITMQ_USER", "QAPUBSUB_USER"], &mut self.user);
        environment.text(&["RABBITMQ_PASSWORD", "QAPUBSUB_PWD"], &mut self.password);
        environment.text(&["RABBITMQ_VHOST"], &mut self.vhost);
        Ok(())
    }

    fn of(config: &ResourceConfig) -> Option<&Self> {
        #[allow(irrefutable_let_patterns, reason = "it is the only kind where no other feature is on")]
        if let ResourceConfig::RabbitMq(config) = config { Some(config) } else { None }
    }

    fn resource(&self, name: &str) -> Result<RabbitMqResource, Error> {
        let mut config = self.clone();
        if let Some(url) = config.url.take() {
            config.merge_url(&format!("{name}.url"), &url)?;
        }
        config.check(name)?;
        Ok(RabbitMqResource { config: Arc::new(config) })
    }
}

/// A RabbitMQ in the pool.
#[derive(Debug)]
pub struct RabbitMqResource {
    config: Arc<RabbitMqConfig>,
}

impl Resource for RabbitMqResource {
    type Handle = RabbitMq;

    async fn connect(&self, link: &Link) -> Result<RabbitMq, Failure> {
        let inner = Arc::new(Inner {
            config: Arc::clone(&self.config),
            link: link.clone(),
            runtime: Handle::current(),
            current: RwLock::new(None),
            topology: Mutex::default(),
            probe: tokio::sync::Mutex::new(None),
            intake: CancellationToken::new(),
            consumers: watch::Sender::new(0),
            probes: watch::Sender::new(0),
            closed: Arc::default(),
        });
        inner.open_generation().await?;
        Ok(RabbitMq::over(inner))
    }

    async fn recover(&self, _: &Link, lost: RabbitMq) -> Result<RabbitMq, Failure> {
        let old = lost.inner.current.write().take();
        if let Some(old) = old {
            old.switch.cut();
        }
        lost.inner.open_generation().await?;
        Ok(lost)
    }

    async fn ping(&self, rabbit: &RabbitMq) -> Result<(), Failure> {
        let mut place = rabbit.inner.probe.lock().await;
        // Taken out while in use, so that a ping given up takes its connection with it.
        let probe = match place.take() {
            Some(probe) => probe,
            None => Probe::open(&self.config, Counted::new(&rabbit.inner.probes)).await?,
        };
        let answer = probe.round_trip().await;
        answer.map_err(|error| Failure::transient(redacted(error, &self.config.secrets())))?;
        *place = Some(probe);
        Ok(())
    }

    async fn close(&self, rabbit: RabbitMq) -> Result<(), Failure> {
        let inner = &rabbit.inner;
        inner.closed.store(true, Ordering::SeqCst);
        inner.intake.cancel();
        let generation = inner.current.read().clone();
        let goodbye = match &generation {
            Some(generation) => generation.close().await,
            None => Ok(()),
        };
        drop(inner.probe.lock().await.take());
        // Its goodbye takes a moment, and is not waited for much longer.
        let mut probes = inner.probes.subscribe();
        let _ = within(LINGER * 3, probes.wait_for(|probes| *probes == 0)).await;
        inner.current.write().take();
        goodbye
    }

    fn cut(&self, rabbit: &RabbitMq) {
        if let Some(generation) = &*rabbit.inner.current.read() {
            generation.switch.cut();
        }
    }

    async fn stop_intake(&self, rabbit: &RabbitMq) {
        rabbit.inner.intake.cancel();
        // Fails only if the counter is gone, and with it the consumers.
        let _ = rabbit.inner.consumers.subscribe().wait_for(|consumers| *consumers == 0).await;
    }

    fn endpoint(&self) -> String {
        let vhost = percent_encoding::utf8_percent_encode(&self.config.vhost, percent_encoding::NON_ALPHANUMERIC);
        format!("amqp://{}/{vhost}", host_port(&self.config.host, self.config.port))
    }

    fn phase(&self) -> Phase {
        Phase::RabbitMq
    }

    fn usage(&self, rabbit: &RabbitMq) -> Usage {
        let max = self.config.max_channels;
        let mut usage = Usage { max: Some(max), ..Usage::default() };
        if let Some(generation) = &*rabbit.inner.current.read() {
            let idle = generation.idle.lock().len();
            let in_use = max.saturating_sub(generation.permits.available_permits());
            usage.in_use = Some(in_use);
            usage.idle = Some(idle);
            usage.open = Some(in_use + idle);
            usage.waiting = Some(generation.waiting.load(Ordering::Relaxed));
        }
        usage
    }
}

/// A RabbitMQ for async code: one connection, shared. Cheap to clone.
///
/// The verbs take a channel of the pool for as long as they run, so no two share one. Exchanges,
/// queues and bindings declared through them are declared again after a loss, and consumers go
/// on; what is done on a raw [`channel`](RabbitMq::channel) is not remembered.
///
/// While the broker is short of memory or disk it blocks connections that publish. All verbs
/// then wait, and time out with an error that says so; acknowledgements wait too.
#[derive(Clone)]
pub struct RabbitMq {
    inner: Arc<Inner>,
    threads: blocking::RabbitMq,
}

pub(crate) struct Inner {
    config: Arc<RabbitMqConfig>,
    pub(crate) link: Link,
    pub(crate) runtime: Handle,
    current: RwLock<Option<Arc<Generation>>>,
    topology: Mutex<Topology>,
    probe: tokio::sync::Mutex<Option<Probe>>,
    /// Cancelled when consuming ends.
    intake: CancellationToken,
    consumers: watch::Sender<usize>,
    probes: watch::Sender<usize>,
    closed: Arc<AtomicBool>,
}

impl Provide<blocking::RabbitMq> for RabbitMq {
    fn provide(&self) -> &blocking::RabbitMq {
        &self.threads
    }
}

impl RabbitMq {
    pub(crate) fn over(inner: Arc<Inner>) -> Self {
        RabbitMq { threads: blocking::RabbitMq::new(Arc::clone(&inner)), inner }
    }

    /// A RabbitMQ of one's own, which closes when the guard drops.
    ///
    /// # Errors
    /// Those of [`ResourcePool::rabbitmq`](crate::ResourcePool::rabbitmq).
    ///
    /// # Cancel safety
    /// Dropping the future closes what was begun.
    #[track_caller]
    pub fn scoped(config: RabbitMqConfig) -> impl Future<Output = Result<Scoped<Lease<RabbitMq>>, Error>> + Send {
        let claim = Claim::shared();
        async move {
            let pool = scoped::pool(config.into())?;
            let lease = pool.acquire(pool.registry().rabbitmq()?, claim).await?;
            Ok(Scoped::new(lease, pool))
        }
    }

    /// A channel of one's own, for whatever the other verbs do not do; derefs to
    /// [`lapin::Channel`]. It is opened for the caller and closed when it drops, since nobody can
    /// tell what was done to it. It dies with its connection, and nothing done on it is replayed.
    ///
    /// # Errors
    /// [`Error::Timeout`], with the holders, if all [`max_channels`](RabbitMqConfig::max_channels)
    /// are out for longer than the acquire timeout; those of the other verbs.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    #[track_caller]
    pub fn channel(&self) -> impl Future<Output = Result<Channel, Error>> + Send {
        let claim = Claim::shared();
        async move { Ok(Channel { pooled: self.inner.check_out(claim, Use::Raw).await? }) }
    }

    /// Declares an exchange, now and after every reconnect.
    ///
    /// # Errors
    /// [`Error::Operation`] if it exists with other properties or may not be declared;
    /// [`Error::Lost`], [`Error::Timeout`], [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Once begun it may happen all the same, but is not replayed then.
    #[track_caller]
    pub fn declare_exchange(&self, exchange: Exchange) -> impl Future<Output = Result<(), Error>> + Send {
        let claim = Claim::shared();
        async move {
            let mut pooled = self.inner.check_out(claim, Use::Verb).await?;
            pooled.guard.declare_exchange(&exchange).await?;
            if !exchange.options.passive {
                self.inner.topology.lock().exchange(exchange);
            }
            Ok(())
        }
    }

    /// Declares a queue, now and after every reconnect. If the broker names it, it has another
    /// name after each, but the verbs go on knowing it by the first.
    ///
    /// # Errors
    /// As [`declare_exchange`](RabbitMq::declare_exchange).
    ///
    /// # Cancel safety
    /// Once begun it may happen all the same, but is not replayed then.
    #[track_caller]
    pub fn declare_queue(&self, queue: Queue) -> impl Future<Output = Result<DeclaredQueue, Error>> + Send {
        let claim = Claim::shared();
        async move {
            let mut pooled = self.inner.check_out(claim, Use::Verb).await?;
            let declared = pooled.guard.declare_queue(&queue).await?;
            let name = declared.name().to_string();
            if !queue.options.passive {
                self.inner.topology.lock().queue(queue, &name);
            }
            Ok(DeclaredQueue { name, messages: declared.message_count(), consumers: declared.consumer_count() })
        }
    }

    /// Binds a queue to an exchange, now and after every reconnect.
    ///
    /// # Errors
    /// [`Error::Operation`] if one of them does not exist; [`Error::Lost`], [`Error::Timeout`],
    /// [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Once begun it may happen all the same, but is not replayed then.
    #[track_caller]
    pub fn bind(
        &self,
        queue: &str,
        exchange: &str,
        routing_key: &str,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        self.bind_with(queue, exchange, routing_key, FieldTable::default())
    }

    /// [`bind`](RabbitMq::bind) with arguments, as headers exchanges need them.
    ///
    /// # Errors
    /// As [`bind`](RabbitMq::bind).
    ///
    /// # Cancel safety
    /// As [`bind`](RabbitMq::bind).
    #[track_caller]
    pub fn bind_with(
        &self,
        queue: &str,
        exchange: &str,
        routing_key: &str,
        arguments: FieldTable,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        let claim = Claim::shared();
        let binding = Binding {
            queue: queue.to_owned(),
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
            arguments,
        };
        async move {
            let mut pooled = self.inner.check_out(claim, Use::Verb).await?;
            pooled.guard.bind(&binding, &self.inner.current_name(&binding.queue)).await?;
            self.inner.topology.lock().binding(binding);
            Ok(())
        }
    }

    /// Deletes a queue, and forgets it and its bindings.
    ///
    /// # Errors
    /// [`Error::Operation`] if it may not be deleted; [`Error::Lost`], [`Error::Timeout`], [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Once begun it may happen all the same.
    #[track_caller]
    pub fn delete_queue(&self, queue: &str) -> impl Future<Output = Result<(), Error>> + Send {
        let claim = Claim::shared();
        let queue = queue.to_owned();
        async move {
            let mut pooled = self.inner.check_out(claim, Use::Verb).await?;
            let name = self.inner.current_name(&queue);
            self.inner.topology.lock().forget_queue(&queue);
            pooled.guard.delete_queue(&name).await
        }
    }

    /// Deletes an exchange, and forgets it and its bindings.
    ///
    /// # Errors
    /// [`Error::Operation`] if it may not be deleted; [`Error::Lost`], [`Error::Timeout`], [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Once begun it may happen all the same.
    #[track_caller]
    pub fn delete_exchange(&self, exchange: &str) -> impl Future<Output = Result<(), Error>> + Send {
        let claim = Claim::shared();
        let exchange = exchange.to_owned();
        async move {
            let mut pooled = self.inner.check_out(claim, Use::Verb).await?;
            self.inner.topology.lock().forget_exchange(&exchange);
            pooled.guard.delete_exchange(&exchange).await
        }
    }

    /// The present name of a queue that the broker named; other names are answered as they are.
    pub fn current_name(&self, queue: &str) -> String {
        self.inner.current_name(queue)
    }

    /// Publishes a message and waits for the broker's confirm. A message that reaches no queue
    /// comes back as [`Published::Returned`], unless it is [optional](Message::optional).
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] if the connection or the answer is lost after it was sent: it is
    /// never sent again by itself, so there is no silent duplicate. [`Error::Operation`] if the
    /// broker refuses it, as for an exchange that does not exist. [`Error::Timeout`] if the broker
    /// blocks publishers, or no channel is free; then it was not sent. [`Error::Lost`],
    /// [`Error::Closed`]: not sent either.
    ///
    /// # Cancel safety
    /// Once begun it may be published all the same.
    #[track_caller]
    pub fn publish(&self, message: Message) -> impl Future<Output = Result<Published, Error>> + Send {
        let claim = Claim::shared();
        async move {
            let mut pooled = self.inner.check_out(claim, Use::Verb).await?;
            let mut results = pooled.guard.publish(&self.inner, vec![message]).await?;
            // One message, one result.
            results.pop().unwrap_or_else(|| Err(self.inner.closed_error()))
        }
    }

    /// Publishes messages in their order, many unconfirmed at a time
    /// ([`confirm_window`](RabbitMqConfig::confirm_window)), and tells the outcome of each.
    ///
    /// It stops at the first loss or timeout; what was not sent by then has an error that says so.
    ///
    /// # Errors
    /// Those of [`publish`](RabbitMq::publish) if nothing could be sent.
    ///
    /// # Cancel safety
    /// Those begun may be published all the same.
    #[track_caller]
    pub fn publish_batch<I>(&self, messages: I) -> impl Future<Output = Result<Batch, Error>> + Send
    where
        I: IntoIterator<Item = Message>,
        I::IntoIter: Send,
    {
        let claim = Claim::shared();
        let mut messages = messages.into_iter();
        async move {
            let mut pooled = self.inner.check_out(claim, Use::Verb).await?;
            let mut results = Vec::new();
            loop {
                let chunk: Vec<_> = messages.by_ref().take(self.inner.config.confirm_window).collect();
                if chunk.is_empty() {
                    return Ok(Batch { results });
                }
                match pooled.guard.publish(&self.inner, chunk).await {
                    Ok(chunk) => results.extend(chunk),
                    Err(error) if results.is_empty() => return Err(error),
                    Err(error) => results.push(Err(error)),
                }
                if !pooled.guard.fit {
                    let why = results.iter().rev().find_map(|result| result.as_ref().err()).cloned();
                    let why = why.unwrap_or_else(|| self.inner.closed_error());
                    let unsent = || self.inner.operation("publishing (it was not sent)", why.clone());
                    results.extend(messages.map(|_| Err(unsent())));
                    return Ok(Batch { results });
                }
            }
        }
    }

    /// Fetches one message, if there is one. It keeps a channel until it is acknowledged.
    ///
    /// # Errors
    /// [`Error::Operation`] if there is no such queue; [`Error::Lost`], [`Error::Timeout`], [`Error::Closed`].
    ///
    /// # Cancel safety
    /// A message that was under way goes back to its queue.
    #[track_caller]
    pub fn get(&self, queue: &str) -> impl Future<Output = Result<Option<Delivery>, Error>> + Send {
        let claim = Claim::shared();
        let queue = queue.to_owned();
        async move {
            let mut pooled = self.inner.check_out(claim, Use::Verb).await?;
            let queue = self.inner.current_name(&queue);
            let Some(message) = pooled.guard.get(&queue).await? else { return Ok(None) };
            // Until the message is settled.
            pooled.guard.fit = false;
            let generation = Arc::clone(&pooled.guard.generation);
            let mut delivery = Delivery::new(message.delivery, generation, Keeps::Checkout(pooled));
            delivery.hand_out(&self.inner.link);
            Ok(Some(delivery))
        }
    }

    /// Consumes a queue. The stream goes on after a reconnect, without a sign; messages that were
    /// in hand then are delivered again. It ends when closing begins, after an error, and when
    /// the broker cancels it.
    ///
    /// # Errors
    /// [`Error::Operation`] if there is no such queue, or it is consumed exclusively;
    /// [`Error::Lost`], [`Error::Timeout`], [`Error::Closing`], [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Cancel-safe.
    #[track_caller]
    pub fn consume(&self, what: impl Into<Consume>) -> impl Future<Output = Result<Consumer, Error>> + Send {
        let claim = Claim::shared();
        let mut what = what.into();
        async move {
            let inner = &self.inner;
            if inner.intake.is_cancelled() && !inner.closed.load(Ordering::SeqCst) {
                return Err(Error::Closing { resource: Arc::clone(inner.link.name()) });
            }
            what.prefetch.get_or_insert(inner.config.prefetch);
            let (lease, generation) = inner.lease(claim).await?;
            let first = inner.subscribe(&generation, &what).await?;
            let cancel = inner.intake.child_token();
            let (sender, deliveries) = mpsc::unbounded_channel();
            let counted = Counted::new(&inner.consumers);
            inner.runtime.spawn(
                Pump { inner: Arc::clone(inner), what, sender, cancel: cancel.clone(), _counted: counted }.run(first),
            );
            Ok(Consumer {
                deliveries,
                link: inner.link.clone(),
                cancelled: cancel.clone(),
                _cancel: cancel.drop_guard(),
                _lease: lease,
            })
        }
    }
}

impl fmt::Debug for RabbitMq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMq").field("resource", self.inner.link.name()).finish_non_exhaustive()
    }
}

/// What a channel is checked out for.
#[derive(Clone, Copy, PartialEq)]
enum Use {
    /// By the caller, who may do anything to it.
    Raw,
    /// By one of our verbs; it has confirms on.
    Verb,
}

impl Inner {
    /// Connects, declares again what was declared before, and puts the new connection in place.
    async fn open_generation(self: &Arc<Self>) -> Result<(), Failure> {
        let config = &self.config;
        let dialled = dial(config, &config.connection_name, config.frame_max).await?;
        let mut events = Box::pin(dialled.connection.events_listener());
        let generation = Arc::new(Generation {
            number: self.link.generation(),
            config: Arc::clone(config),
            link: self.link.clone(),
            runtime: self.runtime.clone(),
            intake: self.intake.clone(),
            closed: Arc::clone(&self.closed),
            permits: Arc::new(Semaphore::new(config.max_channels)),
            open: Mutex::default(),
            next_key: AtomicU64::new(0),
            idle: Mutex::default(),
            blocked: watch::Sender::new(None),
            waiting: AtomicUsize::new(0),
            switch: dialled.switch.clone(),
            gone: dialled.gone.clone(),
            connection: dialled.connect(),
        });
        let cut = CutOnDrop::new(&generation.switch);
        let watched = Arc::downgrade(&generation);
        let switch = generation.switch.clone();
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    event = poll_fn(|cx| events.as_mut().poll_next(cx)) => event,
                    () = switch.wait() => return,
                };
                let (Some(event), Some(generation)) = (event, watched.upgrade()) else { return };
                if !generation.see(event) {
                    return;
                }
            }
        });
        self.replay(&generation).await?;
        cut.disarm();
        *self.current.write() = Some(generation);
        Ok(())
    }

    /// Declares everything again. What the broker refuses is left out and logged: it must not keep
    /// the rest from working.
    async fn replay(&self, generation: &Arc<Generation>) -> Result<(), Failure> {
        let topology = self.topology.lock().clone();
        if topology.is_empty() {
            return Ok(());
        }
        for exchange in topology.exchanges.values() {
            self.again(generation, Declaration::Exchange(exchange)).await?;
        }
        for (known, queue) in &topology.queues {
            if let Some(declared) = self.again(generation, Declaration::Queue(&queue.spec)).await? {
                self.topology.lock().rename(known, declared.name().as_str());
            }
        }
        for binding in &topology.bindings {
            self.again(generation, Declaration::Binding(binding, &self.current_name(&binding.queue))).await?;
        }
        Ok(())
    }

    async fn again(
        &self,
        generation: &Arc<Generation>,
        what: Declaration<'_>,
    ) -> Result<Option<lapin::Queue>, Failure> {
        let mut tries = 0;
        loop {
            let mut guard = ChannelGuard::open(generation).await?;
            let error = match what.make(&mut guard).await {
                Ok(declared) => return Ok(declared),
                Err(error) => error,
            };
            tries += 1;
            match error {
                error if !generation.is_alive() => return Err(Failure::transient(error)),
                error if is_locked(&error) && tries < LOCKED_TRIES => tokio::time::sleep(LOCKED_PAUSE).await,
                Error::Operation { .. } => {
                    tracing::warn!(resource = %self.link.name(), %error, "not declared again");
                    return Ok(None);
                }
                error => return Err(Failure::transient(error)),
            }
        }
    }

    fn current_name(&self, queue: &str) -> String {
        self.topology.lock().queues.get(queue).map_or_else(|| queue.to_owned(), |queue| queue.name.clone())
    }

    /// A lease with the connection behind it, waiting while that is being brought back.
    async fn lease(&self, claim: Claim) -> Result<(Lease<RabbitMq>, Arc<Generation>), Error> {
        let deadline = Instant::now() + self.link.acquire_timeout();
        let mut reported = false;
        loop {
            if self.closed.load(Ordering::SeqCst) {
                return Err(self.closed_error());
            }
            let slot =
                self.link.slot.upgrade().and_then(|slot| slot.as_any().downcast::<Slot<RabbitMqResource>>().ok());
            let slot = slot.ok_or_else(|| self.closed_error())?;
            let lease = slot.acquire::<RabbitMq>(claim, deadline.saturating_duration_since(Instant::now())).await?;
            match self.alive() {
                Some(generation) => return Ok((lease, generation)),
                // What is being closed is not brought back.
                None if reported => return Err(self.lost("the connection is gone")),
                None => {
                    reported = true;
                    self.link.lost(Lease::generation(&lease), "the connection is gone");
                }
            }
        }
    }

    fn alive(&self) -> Option<Arc<Generation>> {
        self.current.read().clone().filter(|generation| generation.is_alive())
    }

    async fn check_out(&self, claim: Claim, what: Use) -> Result<Pooled, Error> {
        let (lease, generation) = self.lease(claim).await?;
        let permit = generation.permit().await?;
        drop(lease);
        // Only now is it held, and by whom.
        let (lease, _) = self.lease(claim.exclusive()).await?;
        let guard = match what {
            Use::Raw => ChannelGuard::open(&generation).await?,
            Use::Verb => match generation.idle_channel() {
                Some((key, channel)) => ChannelGuard { channel, key, generation, fit: true, shared: true },
                None => ChannelGuard::open(&generation).await?.confirming().await?,
            },
        };
        Ok(Pooled { guard, _permit: permit, _lease: lease })
    }

    /// A channel of its own for a consumer, subscribed.
    async fn subscribe(&self, generation: &Arc<Generation>, what: &Consume) -> Result<Subscription, Error> {
        let queue = self.current_name(&what.queue);
        let action = format!("consuming {queue:?}");
        let name = short(&self.link, &action, &queue)?;
        let tag = short(&self.link, &action, &what.tag)?;
        let mut guard = ChannelGuard::open(generation).await?;
        let channel = guard.channel.clone();
        let prefetch = what.prefetch.unwrap_or(self.config.prefetch);
        guard.ask(&action, channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let options = BasicConsumeOptions { exclusive: what.exclusive, ..BasicConsumeOptions::default() };
        let consumer = guard.ask(&action, channel.basic_consume(name, tag, options, what.arguments.clone())).await?;
        Ok(Subscription { consumer, channel: Arc::new(guard) })
    }

    fn closed_error(&self) -> Error {
        Error::Closed { resource: Arc::clone(self.link.name()) }
    }

    fn lost(&self, source: impl Into<BoxError>) -> Error {
        lost(&self.link, source)
    }

    fn operation(&self, action: &str, source: impl Into<BoxError>) -> Error {
        operation(&self.link, action, source)
    }
}

/// One connection, with the channels that are open on it.
pub(crate) struct Generation {
    number: u64,
    config: Arc<RabbitMqConfig>,
    link: Link,
    runtime: Handle,
    /// Cancelled when consuming ends, since closing has begun.
    intake: CancellationToken,
    closed: Arc<AtomicBool>,
    connection: lapin::Connection,
    switch: KillSwitch,
    /// Cancelled when the driver's thread and socket are gone.
    gone: CancellationToken,
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Every open channel, whoever has it: closing closes them all. Keyed by a number of ours, as
    /// the driver uses a closed channel's again.
    open: Mutex<BTreeMap<u64, lapin::Channel>>,
    next_key: AtomicU64,
    idle: Mutex<Vec<(u64, lapin::Channel)>>,
    /// Why the broker takes no messages, while it does not.
    blocked: watch::Sender<Option<String>>,
}

impl Generation {
    fn is_alive(&self) -> bool {
        !self.switch.is_cut() && self.connection.status().connected()
    }

    /// Whether to go on watching.
    fn see(&self, event: Event) -> bool {
        match event {
            Event::ConnectionBlocked(reason) => {
                tracing::warn!(resource = %self.link.name(), %reason, "blocked by the broker");
                self.blocked.send_replace(Some(reason));
            }
            Event::ConnectionUnblocked => {
                self.blocked.send_replace(None);
            }
            // A channel's error comes by here as well.
            Event::Error(error) if !self.connection.status().connected() => {
                self.link.lost(self.number, redacted(error, &self.config.secrets()));
                return false;
            }
            _ => {}
        }
        true
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, Error> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Ok(permit);
        }
        let limit = self.link.acquire_timeout();
        let timer = self.timer(limit);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        tokio::select! {
            biased;
            () = self.switch.wait() => Err(self.was_cut()),
            permit = Arc::clone(&self.permits).acquire_owned() => permit.map_err(|_| self.was_cut()),
            () = timer => Err(self.timeout(format!("one of {} channels", self.config.max_channels), limit)),
        }
    }

    /// One that the verbs share, if any is idle.
    fn idle_channel(&self) -> Option<(u64, lapin::Channel)> {
        loop {
            let (key, channel) = self.idle.lock().pop()?;
            if channel.status().connected() {
                return Some((key, channel));
            }
            self.open.lock().remove(&key);
        }
    }

    /// The driver's answer, or why there is none: its futures may never resolve.
    async fn answer<T>(&self, action: &str, future: impl Future<Output = lapin::Result<T>>) -> Result<T, Error> {
        self.within(self.config.operation_timeout, action, future)
            .await
            .map_err(|trouble| trouble.into_error(self, action))
    }

    async fn within<T>(
        &self,
        limit: Duration,
        action: &str,
        future: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, Trouble> {
        let timer = self.timer(limit);
        tokio::select! {
            biased;
            answer = future => answer.map_err(Trouble::Driver),
            () = self.switch.wait() => Err(Trouble::Cut),
            () = timer => Err(Trouble::Late(self.timeout(format!("the broker's answer to {action}"), limit))),
        }
    }

    /// Waits while the broker blocks us; what would be sent then is written who knows when.
    async fn unblocked(&self) -> Result<(), Error> {
        if self.blocked.borrow().is_none() {
            return Ok(());
        }
        let limit = self.config.operation_timeout;
        let timer = self.timer(limit);
        let mut blocked = self.blocked.subscribe();
        tokio::select! {
            biased;
            () = self.switch.wait() => Err(self.was_cut()),
            _ = blocked.wait_for(Option::is_none) => Ok(()),
            () = timer => Err(self.timeout("the broker to take requests again", limit)),
        }
    }

    /// A timer that any executor may poll, of the one runtime that never ends: polling one of a
    /// runtime that has ended panics.
    fn timer(&self, limit: Duration) -> Sleep {
        let _context = runtime::prober().unwrap_or(&self.runtime).enter();
        tokio::time::sleep(limit)
    }

    fn timeout(&self, waiting_for: impl Into<String>, waited: Duration) -> Error {
        let mut waiting_for = waiting_for.into();
        if let Some(reason) = &*self.blocked.borrow() {
            waiting_for.push_str(&format!("; the connection is blocked by the broker ({reason})"));
        }
        Error::Timeout(Arc::new(TimeoutError {
            resource: Arc::clone(self.link.name()),
            endpoint: Arc::clone(self.link.endpoint()),
            waiting_for,
            waited,
            holders: self.link.holders().into_iter().filter(|holder| holder.exclusive).collect(),
            source: None,
        }))
    }

    fn was_cut(&self) -> Error {
        match self.closed.load(Ordering::SeqCst) {
            true => Error::Closed { resource: Arc::clone(self.link.name()) },
            false => lost(&self.link, "the connection was cut: the broker stopped answering"),
        }
    }

    /// Closes a channel in the background. Once closing has begun it is closed with all others.
    fn discard(self: &Arc<Self>, key: u64, channel: lapin::Channel) {
        if !self.is_alive() || !channel.status().connected() {
            self.open.lock().remove(&key);
            return;
        }
        if self.intake.is_cancelled() {
            return;
        }
        let me = Arc::clone(self);
        self.runtime.spawn(async move {
            // One that is closed already needs no goodbye.
            let _ = me.answer("closing a channel", channel.close(200, "OK".into())).await;
            me.open.lock().remove(&key);
        });
    }

    /// Every channel, then the connection; then nothing of it is left.
    async fn close(&self) -> Result<(), Failure> {
        let _cut = CutOnDrop::new(&self.switch);
        if !self.is_alive() {
            return Err(Failure::transient("the connection was lost before it could be closed"));
        }
        self.idle.lock().clear();
        let channels: Vec<_> = std::mem::take(&mut *self.open.lock()).into_values().collect();
        let mut closing: Vec<_> = channels.iter().map(|channel| Box::pin(channel.close(200, "OK".into()))).collect();
        let every_channel = poll_fn(|cx| {
            // One that is closed already needs no goodbye.
            closing.retain_mut(|closing| closing.as_mut().poll(cx).is_pending());
            if closing.is_empty() { Poll::Ready(Ok(())) } else { Poll::Pending }
        });
        self.answer("closing every channel", every_channel).await?;
        self.answer("closing the connection", self.connection.close(200, "OK".into())).await?;
        self.switch.cut();
        let timer = self.timer(LINGER);
        tokio::select! {
            () = self.gone.cancelled() => {}
            () = timer => {}
        }
        Ok(())
    }
}

/// How long closing waits for the driver's thread and socket to go, which takes microseconds.
const LINGER: Duration = Duration::from_millis(500);

/// Why the driver's answer did not come.
enum Trouble {
    Driver(lapin::Error),
    Cut,
    Late(Error),
}

impl Trouble {
    fn into_error(self, generation: &Generation, action: &str) -> Error {
        match self {
            Trouble::Cut => generation.was_cut(),
            Trouble::Late(error) => error,
            Trouble::Driver(error) => {
                let gone = !generation.is_alive();
                let source = redacted(error, &generation.config.secrets());
                match gone {
                    true if generation.closed.load(Ordering::SeqCst) => generation.was_cut(),
                    true => lost(&generation.link, source),
                    false => operation(&generation.link, action, source),
                }
            }
        }
    }
}

fn lost(link: &Link, source: impl Into<BoxError>) -> Error {
    Error::Lost {
        resource: Arc::clone(link.name()),
        endpoint: Arc::clone(link.endpoint()),
        source: Source::from(source.into()),
    }
}

fn operation(link: &Link, action: &str, source: impl Into<BoxError>) -> Error {
    Error::Operation {
        resource: Arc::clone(link.name()),
        action: action.to_owned(),
        source: Source::from(source.into()),
    }
}

/// A name as AMQP has it; the driver panics where it is too long.
fn short(link: &Link, action: &str, text: &str) -> Result<ShortString, Error> {
    ShortString::try_new(text).map_err(|error| operation(link, action, error))
}

/// Counts a caller that waits for a channel.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is declared again after a reconnect.
enum Declaration<'a> {
    Exchange(&'a Exchange),
    Queue(&'a Queue),
    Binding(&'a Binding, &'a str),
}

impl Declaration<'_> {
    async fn make(&self, guard: &mut ChannelGuard) -> Result<Option<lapin::Queue>, Error> {
        match self {
            Declaration::Exchange(exchange) => guard.declare_exchange(exchange).await.map(|()| None),
            Declaration::Queue(queue) => guard.declare_queue(queue).await.map(Some),
            Declaration::Binding(binding, queue) => guard.bind(binding, queue).await.map(|()| None),
        }
    }
}

/// How often, and after what pause, an exclusive queue or consumer is tried again: the broker may
/// not have noticed yet that the connection which had it is gone.
const LOCKED_TRIES: usize = 15;
const LOCKED_PAUSE: Duration = Duration::from_millis(100);

/// Whether somebody else has it for himself.
fn is_locked(error: &Error) -> bool {
    let Error::Operation { source, .. } = error else { return false };
    matches!(
        source.downcast_ref::<lapin::Error>().map(lapin::Error::kind),
        Some(ErrorKind::ProtocolError(error))
            if matches!(error.kind(), AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED | AMQPSoftError::ACCESSREFUSED))
    )
}

/// A checked-out channel.
pub(crate) struct Pooled {
    guard: ChannelGuard,
    _permit: OwnedSemaphorePermit,
    _lease: Lease<RabbitMq>,
}

/// A channel that nobody else uses. Goes back to the idle ones or closes when it drops.
struct ChannelGuard {
    channel: lapin::Channel,
    key: u64,
    generation: Arc<Generation>,
    /// Nothing on it is half done.
    fit: bool,
    /// It is one of those that the verbs share.
    shared: bool,
}

impl ChannelGuard {
    async fn open(generation: &Arc<Generation>) -> Result<Self, Error> {
        generation.unblocked().await?;
        let channel = generation.answer("opening a channel", generation.connection.create_channel()).await?;
        let key = generation.next_key.fetch_add(1, Ordering::Relaxed);
        generation.open.lock().insert(key, channel.clone());
        Ok(ChannelGuard { channel, key, generation: Arc::clone(generation), fit: true, shared: false })
    }

    /// The same as one that the verbs share: all of them have confirms on.
    async fn confirming(mut self) -> Result<Self, Error> {
        let channel = self.channel.clone();
        self.ask("switching confirms on", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        self.shared = true;
        Ok(self)
    }

    /// Runs one request; a channel on which it fails or is given up is not used again.
    async fn ask<T>(&mut self, action: &str, request: impl Future<Output = lapin::Result<T>>) -> Result<T, Error> {
        self.fit = false;
        self.generation.unblocked().await?;
        let answer = self.generation.answer(action, request).await?;
        self.fit = true;
        Ok(answer)
    }

    async fn declare_exchange(&mut self, exchange: &Exchange) -> Result<(), Error> {
        let action = format!("declaring the exchange {:?}", exchange.name);
        let name = short(&self.generation.link, &action, &exchange.name)?;
        let channel = self.channel.clone();
        self.ask(
            &action,
            channel.exchange_declare(name, exchange.kind.clone(), exchange.options, exchange.arguments.clone()),
        )
        .await
    }

    async fn declare_queue(&mut self, queue: &Queue) -> Result<lapin::Queue, Error> {
        let action = format!("declaring the queue {:?}", queue.name);
        let name = short(&self.generation.link, &action, &queue.name)?;
        let channel = self.channel.clone();
        self.ask(&action, channel.queue_declare(name, queue.options, queue.arguments.clone())).await
    }

    async fn bind(&mut self, binding: &Binding, queue: &str) -> Result<(), Error> {
        let action = format!("binding {queue:?} to {:?}", binding.exchange);
        let link = self.generation.link.clone();
        let (queue, exchange) = (short(&link, &action, queue)?, short(&link, &action, &binding.exchange)?);
        let key = short(&link, &action, &binding.routing_key)?;
        let channel = self.channel.clone();
        self.ask(
            &action,
            channel.queue_bind(queue, exchange, key, QueueBindOptions::default(), binding.arguments.clone()),
        )
        .await
    }

    async fn delete_queue(&mut self, queue: &str) -> Result<(), Error> {
        let action = format!("deleting the queue {queue:?}");
        let name = short(&self.generation.link, &action, queue)?;
        let channel = self.channel.clone();
        self.ask(&action, channel.queue_delete(name, QueueDeleteOptions::default())).await.map(drop)
    }

    async fn delete_exchange(&mut self, exchange: &str) -> Result<(), Error> {
        let action = format!("deleting the exchange {exchange:?}");
        let name = short(&self.generation.link, &action, exchange)?;
        let channel = self.channel.clone();
        self.ask(&action, channel.exchange_delete(name, ExchangeDeleteOptions::default())).await
    }

    async fn get(&mut self, queue: &str) -> Result<Option<lapin::message::BasicGetMessage>, Error> {
        let action = format!("fetching from {queue:?}");
        let name = short(&self.generation.link, &action, queue)?;
        let channel = self.channel.clone();
        self.ask(&action, channel.basic_get(name, BasicGetOptions::default())).await
    }

    /// Publishes these, all unconfirmed at once, and waits for what becomes of each.
    ///
    /// An error means that none was sent.
    async fn publish(
        &mut self,
        inner: &Inner,
        mut messages: Vec<Message>,
    ) -> Result<Vec<Result<Published, Error>>, Error> {
        let generation = Arc::clone(&self.generation);
        let link = &generation.link;
        let mut addressed = Vec::with_capacity(messages.len());
        for message in &mut messages {
            let action = message.action();
            if message.exchange.is_empty() {
                message.routing_key = inner.current_name(&message.routing_key);
            }
            addressed.push((short(link, &action, &message.exchange)?, short(link, &action, &message.routing_key)?));
        }
        generation.unblocked().await?;
        if !generation.is_alive() {
            return Err(generation.was_cut());
        }
        self.fit = false;
        let mut sent = Vec::with_capacity(messages.len());
        for (message, (exchange, key)) in messages.iter().zip(addressed) {
            let channel = &self.channel;
            let confirm = async move {
                let options = BasicPublishOptions { mandatory: message.mandatory, ..BasicPublishOptions::default() };
                channel.basic_publish(exchange, key, options, &message.payload, message.properties.clone()).await?.await
            };
            let mut confirm = Confirm::Pending { answer: Box::pin(confirm), _busy: link.busy(Work::Confirm) };
            // The first poll queues its frames, so they leave in this order without waiting.
            poll_fn(|cx| {
                confirm.advance(cx);
                Poll::Ready(())
            })
            .await;
            sent.push(confirm);
        }
        let mut trouble = None;
        for confirm in &mut sent {
            let awaited = poll_fn(|cx| confirm.poll(cx));
            let result = generation.within(generation.config.confirm_timeout, "a publish", awaited).await;
            if let Err(late) = result {
                trouble = Some(late);
                break;
            }
        }
        let why = trouble.map(|trouble| self.why_unknown(trouble));
        for confirm in &mut sent {
            // What was answered meanwhile is known.
            confirm.advance(&mut Context::from_waker(Waker::noop()));
        }
        self.fit = why.is_none();
        let single = messages.len() == 1;
        let answers = sent.into_iter().map(Confirm::into_answer).collect();
        Ok(attribute(&messages, answers, |message| match &why {
            Some(Unknown::Refused(source)) if single => Error::Operation {
                resource: Arc::clone(link.name()),
                action: message.action(),
                source: Arc::clone(source),
            },
            Some(Unknown::Refused(source) | Unknown::NoAnswer(source)) => Error::OutcomeUnknown {
                resource: Arc::clone(link.name()),
                action: message.action(),
                source: Arc::clone(source),
            },
            None => generation.was_cut(),
        }))
    }

    fn why_unknown(&self, trouble: Trouble) -> Unknown {
        let refused = matches!(&trouble, Trouble::Driver(error) if error.is_amqp_error()) && self.generation.is_alive();
        let source: Source = match trouble {
            Trouble::Driver(error) if refused => Source::from(redacted(error, &self.generation.config.secrets())),
            trouble => Arc::new(trouble.into_error(&self.generation, "awaiting the confirm")),
        };
        if refused { Unknown::Refused(source) } else { Unknown::NoAnswer(source) }
    }
}

impl Drop for ChannelGuard {
    fn drop(&mut self) {
        let channel = self.channel.clone();
        if self.shared && self.fit && self.generation.is_alive() && channel.status().connected() {
            self.generation.idle.lock().push((self.key, channel));
        } else {
            self.generation.discard(self.key, channel);
        }
    }
}

/// Why there is no confirm.
enum Unknown {
    /// The broker closed the channel over a message.
    Refused(Source),
    NoAnswer(Source),
}

/// A publish whose answer is awaited, or there.
enum Confirm<'a> {
    Pending { answer: Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send + 'a>>, _busy: Busy },
    Done(Box<lapin::Result<Confirmation>>),
}

impl Confirm<'_> {
    fn advance(&mut self, cx: &mut Context<'_>) {
        if let Confirm::Pending { answer, .. } = self
            && let Poll::Ready(answer) = answer.as_mut().poll(cx)
        {
            *self = Confirm::Done(Box::new(answer));
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<lapin::Result<()>> {
        self.advance(cx);
        match self {
            Confirm::Pending { .. } => Poll::Pending,
            Confirm::Done(answer) => Poll::Ready(answer.as_ref().as_ref().map(drop).map_err(Clone::clone)),
        }
    }

    fn into_answer(self) -> Option<Confirmation> {
        match self {
            Confirm::Done(answer) => answer.ok(),
            Confirm::Pending { .. } => None,
        }
    }
}

/// Tells whose each returned message is. The driver attaches returns to confirms in the order in
/// which both happen to come, which is right only where one message is unconfirmed at a time.
fn attribute(
    messages: &[Message],
    answers: Vec<Option<Confirmation>>,
    unknown: impl Fn(&Message) -> Error,
) -> Vec<Result<Published, Error>> {
    let mut returned = Vec::new();
    let mut results = Vec::with_capacity(messages.len());
    for (message, answer) in messages.iter().zip(answers) {
        results.push(match answer {
            Some(Confirmation::Nack(back)) => {
                returned.extend(back);
                Ok(Published::Nacked)
            }
            Some(Confirmation::Ack(back)) => {
                returned.extend(back);
                Ok(Published::Confirmed)
            }
            // Confirms are always on.
            Some(Confirmation::NotRequested) | None => Err(unknown(message)),
        });
    }
    for back in returned {
        let fits = |index: &usize| {
            let message = &messages[*index];
            message.mandatory
                && matches!(results[*index], Ok(Published::Confirmed))
                && back.routing_key.as_str() == message.routing_key
                && back.exchange.as_str() == message.exchange
                && back.data == message.payload
        };
        let exact = |index: &usize| messages[*index].properties == back.properties;
        let all = || (0..messages.len()).filter(fits);
        if let Some(index) = all().find(exact).or_else(|| all().next()) {
            results[index] = Ok(Published::Returned { code: back.reply_code, reason: back.reply_text.to_string() });
        }
    }
    results
}

/// A raw channel of one's own; derefs to [`lapin::Channel`]. Closed in the background when it drops.
pub struct Channel {
    pooled: Pooled,
}

impl Channel {
    /// Runs driver calls on the channel, ending them when the connection is cut or closed: by
    /// itself the driver's future may never resolve then.
    ///
    /// # Errors
    /// [`Error::Operation`] with the driver's error; [`Error::Lost`], [`Error::Closed`]. Unlike
    /// the other verbs it has no limit while the broker answers.
    ///
    /// # Cancel safety
    /// That of the driver's calls.
    pub async fn run<T>(&self, calls: impl AsyncFnOnce(&lapin::Channel) -> lapin::Result<T>) -> Result<T, Error> {
        let generation = &self.pooled.guard.generation;
        let calls = calls(&self.pooled.guard.channel);
        let answer = tokio::select! {
            biased;
            answer = calls => answer.map_err(Trouble::Driver),
            () = generation.switch.wait() => Err(Trouble::Cut),
        };
        answer.map_err(|trouble| trouble.into_error(generation, "on a raw channel"))
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.pooled.guard.generation.runtime
    }

    pub(crate) fn resource(&self) -> &Arc<str> {
        self.pooled.guard.generation.link.name()
    }
}

impl Deref for Channel {
    type Target = lapin::Channel;
    fn deref(&self) -> &lapin::Channel {
        &self.pooled.guard.channel
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("id", &self.pooled.guard.channel.id()).finish_non_exhaustive()
    }
}

/// A message to publish.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    exchange: String,
    routing_key: String,
    payload: Vec<u8>,
    properties: BasicProperties,
    mandatory: bool,
}

impl Message {
    /// A persistent, mandatory message. The exchange `""` routes to the queue named by the key.
    pub fn new(exchange: impl Into<String>, routing_key: impl Into<String>, payload: impl Into<Vec<u8>>) -> Self {
        Message {
            exchange: exchange.into(),
            routing_key: routing_key.into(),
            payload: payload.into(),
            properties: BasicProperties::default().with_delivery_mode(PERSISTENT),
            mandatory: true,
        }
    }

    /// Replaces the properties: persistence, too, is one of them (`with_delivery_mode(2)`).
    pub fn properties(mut self, properties: BasicProperties) -> Self {
        self.properties = properties;
        self
    }

    /// Does not outlive a restart of the broker; several times faster on durable queues.
    pub fn transient(mut self) -> Self {
        self.properties = self.properties.with_delivery_mode(TRANSIENT);
        self
    }

    /// May reach no queue at all without that being told.
    pub fn optional(mut self) -> Self {
        self.mandatory = false;
        self
    }

    fn action(&self) -> String {
        format!("publishing to {:?} with the key {:?}", self.exchange, self.routing_key)
    }
}

const TRANSIENT: u8 = 1;
const PERSISTENT: u8 = 2;

/// What became of a published message.
#[must_use = "a message that was returned or refused has reached nobody"]
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Published {
    /// The broker has it: in every queue it was routed to, and on disk where both are durable.
    Confirmed,
    /// It reached no queue: nothing is bound for it.
    Returned {
        /// The broker's code; 312 is "no route".
        code: u16,
        /// The broker's reason.
        reason: String,
    },
    /// The broker could not take it: an internal error, or a queue that is full and rejects.
    Nacked,
}

impl Published {
    /// Whether the broker has it.
    pub fn is_confirmed(&self) -> bool {
        *self == Published::Confirmed
    }
}

/// What became of each message of a batch, in their order.
#[must_use = "messages that were returned or refused have reached nobody"]
#[derive(Debug, Clone)]
pub struct Batch {
    results: Vec<Result<Published, Error>>,
}

impl Batch {
    /// How many the broker has.
    pub fn confirmed(&self) -> usize {
        self.results.iter().flatten().filter(|published| published.is_confirmed()).count()
    }

    /// Whether the broker has all of them.
    pub fn all_confirmed(&self) -> bool {
        self.confirmed() == self.results.len()
    }

    /// How many have an unknown outcome.
    pub fn unknown(&self) -> usize {
        self.results.iter().filter(|result| matches!(result, Err(Error::OutcomeUnknown { .. }))).count()
    }

    /// A result for each message.
    pub fn results(&self) -> &[Result<Published, Error>] {
        &self.results
    }

    /// The results themselves.
    pub fn into_results(self) -> Vec<Result<Published, Error>> {
        self.results
    }
}

/// An exchange to declare. Durable unless made [transient](Exchange::transient).
#[derive(Debug, Clone, PartialEq)]
pub struct Exchange {
    name: String,
    kind: ExchangeKind,
    options: ExchangeDeclareOptions,
    arguments: FieldTable,
}

impl Exchange {
    /// An exchange of any kind.
    pub fn new(name: impl Into<String>, kind: ExchangeKind) -> Self {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        Exchange { name: name.into(), kind, options, arguments: FieldTable::default() }
    }

    /// Every bound queue gets every message.
    pub fn fanout(name: impl Into<String>) -> Self {
        Exchange::new(name, ExchangeKind::Fanout)
    }

    /// Queues get the messages whose key is theirs.
    pub fn direct(name: impl Into<String>) -> Self {
        Exchange::new(name, ExchangeKind::Direct)
    }

    /// Queues get the messages whose key matches their pattern, as in `stock.*.day` or `stock.#`.
    pub fn topic(name: impl Into<String>) -> Self {
        Exchange::new(name, ExchangeKind::Topic)
    }

    /// Gone after a restart of the broker.
    pub fn transient(mut self) -> Self {
        self.options.durable = false;
        self
    }

    /// Gone with its last binding.
    pub fn auto_delete(mut self) -> Self {
        self.options.auto_delete = true;
        self
    }

    /// Only checks that it exists; not replayed.
    pub fn passive(mut self) -> Self {
        self.options.passive = true;
        self
    }

    /// Sets further arguments, such as `alternate-exchange`.
    pub fn arguments(mut self, arguments: FieldTable) -> Self {
        self.arguments = arguments;
        self
    }
}

/// A queue to declare. Durable unless made [transient](Queue::transient).
#[derive(Debug, Clone, PartialEq)]
pub struct Queue {
    name: String,
    options: QueueDeclareOptions,
    arguments: FieldTable,
}

impl Queue {
    /// A queue of this name.
    pub fn new(name: impl Into<String>) -> Self {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        Queue { name: name.into(), options, arguments: FieldTable::default() }
    }

    /// A queue that the broker names, for this connection alone, gone with its last consumer.
    pub fn temporary() -> Self {
        Queue::new("").transient().exclusive().auto_delete()
    }

    /// Gone after a restart of the broker.
    pub fn transient(mut self) -> Self {
        self.options.durable = false;
        self
    }

    /// For this connection alone, and gone with it.
    pub fn exclusive(mut self) -> Self {
        self.options.exclusive = true;
        self
    }

    /// Gone with its last consumer. Then it is not declared again either.
    pub fn auto_delete(mut self) -> Self {
        self.options.auto_delete = true;
        self
    }

    /// Only checks that it exists; not replayed.
    pub fn passive(mut self) -> Self {
        self.options.passive = true;
        self
    }

    /// Sets further arguments, such as `x-max-length`.
    pub fn arguments(mut self, arguments: FieldTable) -> Self {
        self.arguments = arguments;
        self
    }
}

/// A queue as the broker declared it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredQueue {
    name: String,
    messages: u32,
    consumers: u32,
}

impl DeclaredQueue {
    /// The name by which the verbs know it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many messages were ready in it.
    pub fn messages(&self) -> u32 {
        self.messages
    }

    /// How many consumers it had.
    pub fn consumers(&self) -> u32 {
        self.consumers
    }
}

/// What to consume, and how. A queue's name alone will do.
#[derive(Debug, Clone, PartialEq)]
pub struct Consume {
    queue: String,
    tag: String,
    prefetch: Option<u16>,
    exclusive: bool,
    arguments: FieldTable,
}

impl<T: Into<String>> From<T> for Consume {
    fn from(queue: T) -> Self {
        Consume {
            queue: queue.into(),
            tag: String::new(),
            prefetch: None,
            exclusive: false,
            arguments: FieldTable::default(),
        }
    }
}

impl Consume {
    /// Sets how many deliveries may be in hand, at least 1. Defaults to [`prefetch`](RabbitMqConfig::prefetch).
    pub fn prefetch(mut self, prefetch: u16) -> Self {
        self.prefetch = Some(prefetch.max(1));
        self
    }

    /// Sets the consumer's tag. By default the broker makes one up.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tag = tag.into();
        self
    }

    /// Lets nobody else consume the queue.
    pub fn exclusive(mut self) -> Self {
        self.exclusive = true;
        self
    }

    /// Sets further arguments, such as `x-priority`.
    pub fn arguments(mut self, arguments: FieldTable) -> Self {
        self.arguments = arguments;
        self
    }
}

#[derive(Clone)]
struct Binding {
    queue: String,
    exchange: String,
    routing_key: String,
    arguments: FieldTable,
}

impl Binding {
    fn is_same(&self, other: &Binding) -> bool {
        (&self.queue, &self.exchange, &self.routing_key, &self.arguments)
            == (&other.queue, &other.exchange, &other.routing_key, &other.arguments)
    }
}

/// What is declared again after a reconnect.
#[derive(Clone, Default)]
struct Topology {
    exchanges: BTreeMap<String, Exchange>,
    /// By the name that the caller knows.
    queues: BTreeMap<String, KnownQueue>,
    bindings: Vec<Binding>,
}

#[derive(Clone)]
struct KnownQueue {
    spec: Queue,
    /// Its present name.
    name: String,
    consumers: usize,
}

impl Topology {
    fn is_empty(&self) -> bool {
        self.exchanges.is_empty() && self.queues.is_empty() && self.bindings.is_empty()
    }

    fn exchange(&mut self, exchange: Exchange) {
        self.exchanges.insert(exchange.name.clone(), exchange);
    }

    fn queue(&mut self, spec: Queue, name: &str) {
        match self.queues.get_mut(name) {
            Some(known) => known.spec = spec,
            None => drop(self.queues.insert(name.to_owned(), KnownQueue { spec, name: name.to_owned(), consumers: 0 })),
        }
    }

    fn binding(&mut self, binding: Binding) {
        if !self.bindings.iter().any(|known| known.is_same(&binding)) {
            self.bindings.push(binding);
        }
    }

    fn rename(&mut self, known: &str, name: &str) {
        if let Some(queue) = self.queues.get_mut(known) {
            queue.name = name.to_owned();
        }
    }

    fn forget_queue(&mut self, queue: &str) {
        self.queues.remove(queue);
        self.forget_bindings(|binding| binding.queue == queue);
    }

    fn forget_exchange(&mut self, exchange: &str) {
        self.exchanges.remove(exchange);
        self.forget_bindings(|binding| binding.exchange == exchange);
    }

    /// With its last binding an auto-delete exchange is gone too.
    fn forget_bindings(&mut self, gone: impl Fn(&Binding) -> bool) {
        let (gone, left): (Vec<_>, Vec<_>) = std::mem::take(&mut self.bindings).into_iter().partition(gone);
        self.bindings = left;
        for Binding { exchange, .. } in gone {
            let bound = self.bindings.iter().any(|binding| binding.exchange == exchange);
            if !bound && self.exchanges.get(&exchange).is_some_and(|exchange| exchange.options.auto_delete) {
                self.exchanges.remove(&exchange);
            }
        }
    }

    fn consumer_came(&mut self, queue: &str) {
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.consumers += 1;
        }
    }

    /// With its last consumer an auto-delete queue is gone.
    fn consumer_went(&mut self, queue: &str) {
        let Some(known) = self.queues.get_mut(queue) else { return };
        known.consumers = known.consumers.saturating_sub(1);
        if known.consumers == 0 && known.spec.options.auto_delete {
            self.forget_queue(queue);
        }
    }
}

/// A consumer: a stream of deliveries. Cancelled when it drops; what it has not handed out by
/// then goes back to its queue, and deliveries in hand can still be acknowledged.
pub struct Consumer {
    deliveries: mpsc::UnboundedReceiver<Result<Delivery, Error>>,
    link: Link,
    cancelled: CancellationToken,
    _cancel: DropGuard,
    _lease: Lease<RabbitMq>,
}

impl Consumer {
    /// The next delivery; `None` when consuming has ended.
    ///
    /// # Errors
    /// Why it ended: [`Error::Operation`] if the queue is gone or the broker closed the channel,
    /// [`Error::Connect`] if reconnecting was refused.
    ///
    /// # Cancel safety
    /// Cancel-safe: no delivery is lost.
    pub async fn next(&mut self) -> Option<Result<Delivery, Error>> {
        poll_fn(|cx| self.poll_delivery(cx)).await
    }

    pub(crate) fn poll_delivery(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Delivery, Error>>> {
        loop {
            let next = ready!(self.deliveries.poll_recv(cx));
            match next {
                // What was not handed out goes back.
                Some(Ok(_)) if self.cancelled.is_cancelled() => {}
                // It cannot be acknowledged any more, and comes again.
                Some(Ok(delivery)) if !delivery.generation.is_alive() => {}
                Some(Ok(mut delivery)) => {
                    delivery.hand_out(&self.link);
                    return Poll::Ready(Some(Ok(delivery)));
                }
                end => return Poll::Ready(end),
            }
        }
    }

    pub(crate) fn resource(&self) -> &Arc<str> {
        self.link.name()
    }
}

impl Stream for Consumer {
    type Item = Result<Delivery, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_delivery(cx)
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("resource", self.link.name()).finish_non_exhaustive()
    }
}

struct Subscription {
    consumer: lapin::Consumer,
    /// Open until the last delivery is settled.
    channel: Arc<ChannelGuard>,
}

/// How a subscription ended.
enum End {
    Cancelled,
    Lost,
    Failed(Error),
}

/// Counts what closing waits for.
struct Counted(watch::Sender<usize>);

impl Counted {
    fn new(counter: &watch::Sender<usize>) -> Self {
        counter.send_modify(|count| *count += 1);
        Counted(counter.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Hands a consumer's deliveries on, over all generations.
struct Pump {
    inner: Arc<Inner>,
    what: Consume,
    sender: mpsc::UnboundedSender<Result<Delivery, Error>>,
    cancel: CancellationToken,
    _counted: Counted,
}

impl Pump {
    async fn run(self, first: Subscription) {
        self.inner.topology.lock().consumer_came(&self.what.queue);
        let mut subscription = Some(first);
        while let Some(current) = subscription.take() {
            match self.forward(current).await {
                End::Cancelled => {}
                End::Lost => subscription = self.subscribe_again().await,
                End::Failed(error) => self.fail(error),
            }
        }
        // A connection that is lost while closing takes its queues along anyway.
        if !self.inner.closed.load(Ordering::SeqCst) {
            self.inner.topology.lock().consumer_went(&self.what.queue);
        }
    }

    async fn forward(&self, subscription: Subscription) -> End {
        let Subscription { mut consumer, channel } = subscription;
        let generation = Arc::clone(&channel.generation);
        loop {
            let next = tokio::select! {
                biased;
                () = self.cancel.cancelled() => {
                    self.unsubscribe(consumer, &channel).await;
                    return End::Cancelled;
                }
                () = generation.switch.wait() => return End::Lost,
                next = poll_fn(|cx| Pin::new(&mut consumer).poll_next(cx)) => next,
            };
            match next {
                Some(Ok(message)) => {
                    let delivery =
                        Delivery::new(message, Arc::clone(&generation), Keeps::Consumer(Arc::clone(&channel)));
                    // Refused only when the consumer is gone, and then it goes back.
                    drop(self.sender.send(Ok(delivery)));
                }
                _ if !generation.is_alive() => return End::Lost,
                Some(Err(error)) => {
                    return End::Failed(
                        Trouble::Driver(error).into_error(&generation, &format!("consuming {:?}", self.what.queue)),
                    );
                }
                None => {
                    let source =
                        "the broker cancelled the consumer; its queue was deleted, or has moved to another node";
                    return End::Failed(self.inner.operation(&format!("consuming {:?}", self.what.queue), source));
                }
            }
        }
    }

    /// Cancels, and gives back what has come but was not handed out.
    async fn unsubscribe(&self, mut consumer: lapin::Consumer, channel: &Arc<ChannelGuard>) {
        let generation = &channel.generation;
        let cancelling = channel.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        if let Err(error) = generation.answer("cancelling a consumer", cancelling).await {
            tracing::debug!(resource = %self.inner.link.name(), %error, "a consumer was not cancelled");
            return;
        }
        let mut nobody = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(Ok(message))) = Pin::new(&mut consumer).poll_next(&mut nobody) {
            drop(Delivery::new(message, Arc::clone(generation), Keeps::Consumer(Arc::clone(channel))));
        }
    }

    /// A subscription on the next connection; `None` if there is none to come.
    async fn subscribe_again(&self) -> Option<Subscription> {
        let again = async {
            let mut tries = 0;
            loop {
                let error = match self.try_again().await {
                    Ok(subscription) => return Some(subscription),
                    Err(error) => error,
                };
                match &error {
                    error if error.is_closed() => return None,
                    error if is_locked(error) && tries < LOCKED_TRIES => tries += 1,
                    Error::Operation { .. } => {
                        self.fail(error);
                        return None;
                    }
                    Error::Connect(connect) if connect.permanent => {
                        self.fail(error);
                        return None;
                    }
                    _ => {}
                }
                tokio::time::sleep(LOCKED_PAUSE).await;
            }
        };
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => None,
            subscription = again => subscription,
        }
    }

    async fn try_again(&self) -> Result<Subscription, Error> {
        let (_lease, generation) = self.inner.lease(Claim::shared()).await?;
        self.inner.subscribe(&generation, &self.what).await
    }

    fn fail(&self, error: Error) {
        tracing::warn!(resource = %self.inner.link.name(), %error, "a consumer has ended");
        // Refused only when the consumer is gone.
        drop(self.sender.send(Err(error)));
    }
}

/// What a delivery keeps open until it is settled.
enum Keeps {
    Consumer(#[allow(dead_code, reason = "held for its drop")] Arc<ChannelGuard>),
    Checkout(Pooled),
}

impl Keeps {
    /// A channel of the pool may be used again.
    fn settled(&mut self) {
        if let Keeps::Checkout(pooled) = self {
            pooled.guard.fit = true;
        }
    }
}

/// A message in hand. Dropping it gives it back to its queue, as [`requeue`](Delivery::requeue)
/// does. Closing waits for it.
#[must_use = "a delivery that drops goes back to its queue"]
pub struct Delivery {
    message: lapin::message::Delivery,
    generation: Arc<Generation>,
    keeps: Option<(Keeps, Option<Busy>)>,
}

impl Delivery {
    fn new(message: lapin::message::Delivery, generation: Arc<Generation>, keeps: Keeps) -> Self {
        Delivery { message, generation, keeps: Some((keeps, None)) }
    }

    /// From now on closing waits for it.
    fn hand_out(&mut self, link: &Link) {
        if let Some((_, busy)) = &mut self.keeps {
            *busy = Some(link.busy(Work::Delivery));
        }
    }

    /// The payload.
    pub fn data(&self) -> &[u8] {
        &self.message.data
    }

    /// The exchange it was published to.
    pub fn exchange(&self) -> &str {
        self.message.exchange.as_str()
    }

    /// The key it was published with.
    pub fn routing_key(&self) -> &str {
        self.message.routing_key.as_str()
    }

    /// Whether it was delivered before, to anybody.
    pub fn redelivered(&self) -> bool {
        self.message.redelivered
    }

    /// Its properties and headers.
    pub fn properties(&self) -> &BasicProperties {
        &self.message.properties
    }

    /// Done with it. AMQP does not answer to this: it is done when it is written.
    ///
    /// # Errors
    /// [`Error::Lost`] if its connection is gone, with which it cannot be acknowledged any more:
    /// it is delivered again. [`Error::Timeout`], [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Once begun it is acknowledged all the same.
    pub async fn ack(self) -> Result<(), Error> {
        let acker = self.message.acker.clone();
        self.settle("acknowledging a delivery", acker.ack(BasicAckOptions::default())).await
    }

    /// Gives it back to its queue, to be delivered again to anybody.
    ///
    /// # Errors
    /// As [`ack`](Delivery::ack).
    ///
    /// # Cancel safety
    /// Once begun it is given back all the same.
    pub async fn requeue(self) -> Result<(), Error> {
        let acker = self.message.acker.clone();
        self.settle("giving a delivery back", acker.nack(BasicNackOptions { requeue: true, multiple: false })).await
    }

    /// Rejects it: it goes to the queue's dead-letter exchange, or away if there is none.
    ///
    /// # Errors
    /// As [`ack`](Delivery::ack).
    ///
    /// # Cancel safety
    /// Once begun it is rejected all the same.
    pub async fn nack(self) -> Result<(), Error> {
        let acker = self.message.acker.clone();
        self.settle("rejecting a delivery", acker.nack(BasicNackOptions { requeue: false, multiple: false })).await
    }

    async fn settle(mut self, action: &str, answer: impl Future<Output = lapin::Result<bool>>) -> Result<(), Error> {
        match self.generation.answer(action, answer).await? {
            true => {
                if let Some((keeps, _)) = &mut self.keeps {
                    keeps.settled();
                }
                Ok(())
            }
            false if self.generation.closed.load(Ordering::SeqCst) => Err(self.generation.was_cut()),
            false => Err(lost(&self.generation.link, "its connection or channel is gone, so it is delivered again")),
        }
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.generation.runtime
    }

    pub(crate) fn resource(&self) -> &Arc<str> {
        self.generation.link.name()
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let acker = &self.message.acker;
        if !acker.usable() || !self.generation.is_alive() {
            return;
        }
        let (acker, mut keeps, generation) = (acker.clone(), self.keeps.take(), Arc::clone(&self.generation));
        self.generation.runtime.spawn(async move {
            let back = acker.nack(BasicNackOptions { requeue: true, multiple: false });
            let back = generation.answer("giving a delivery back", back).await;
            // Where that fails, closing the channel gives it back.
            if let (Ok(true), Some((keeps, _))) = (back, &mut keeps) {
                keeps.settled();
            }
        });
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("exchange", &self.exchange())
            .field("routing_key", &self.routing_key())
            .field("redelivered", &self.redelivered())
            .field("bytes", &self.data().len())
            .finish_non_exhaustive()
    }
}

/// The prober's own connection, on its own runtime, with a channel kept open. Says goodbye in the
/// background when it drops: a ping may be given up at any time.
struct Probe {
    config: Arc<RabbitMqConfig>,
    channel: lapin::Channel,
    runtime: Handle,
    goodbye: Option<Goodbye>,
}

struct Goodbye {
    connection: lapin::Connection,
    switch: KillSwitch,
    gone: CancellationToken,
    _counted: Counted,
}

impl Probe {
    async fn open(config: &Arc<RabbitMqConfig>, counted: Counted) -> Result<Self, Failure> {
        let dialled = dial(config, &format!("{} probe", config.connection_name), PROBE_FRAME_MAX).await?;
        let (switch, gone) = (dialled.switch.clone(), dialled.gone.clone());
        let cut = CutOnDrop::new(&switch);
        let connection = dialled.connect();
        let opened = connection.create_channel().await;
        let channel = opened.map_err(|error| Failure::transient(redacted(error, &config.secrets())))?;
        cut.disarm();
        let goodbye = Some(Goodbye { connection, switch, gone, _counted: counted });
        Ok(Probe { config: Arc::clone(config), channel, runtime: Handle::current(), goodbye })
    }

    /// Goes to the broker's channel process and back, and needs no permission.
    async fn round_trip(&self) -> lapin::Result<()> {
        self.channel.basic_qos(1, BasicQosOptions::default()).await
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let Some(goodbye) = self.goodbye.take() else { return };
        let (config, channel) = (Arc::clone(&self.config), self.channel.clone());
        self.runtime.spawn(async move {
            let cut = CutOnDrop::new(&goodbye.switch);
            let said = async {
                channel.close(200, "OK".into()).await?;
                goodbye.connection.close(200, "OK".into()).await
            };
            let said = within(LINGER, said).await;
            tracing::trace!(host = %config.host, ?said, "the prober's connection is closed");
            drop(cut);
            // It is gone in microseconds; if not, there is nothing more to be done about it.
            let _ = within(LINGER, goodbye.gone.cancelled()).await;
        });
    }
}

/// The least that AMQP allows: probes are small.
const PROBE_FRAME_MAX: u32 = 4096;

/// A new connection, cut again unless it is taken.
struct Dialled {
    connection: lapin::Connection,
    switch: KillSwitch,
    gone: CancellationToken,
    cut: CutOnDrop,
}

impl Dialled {
    fn connect(self) -> lapin::Connection {
        self.cut.disarm();
        self.connection
    }
}

/// Throws the switch when it drops, unless disarmed: a connect that is given up must not leave
/// its thread and its socket.
struct CutOnDrop(Option<KillSwitch>);

impl CutOnDrop {
    fn new(switch: &KillSwitch) -> Self {
        CutOnDrop(Some(switch.clone()))
    }

    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        if let Some(switch) = &self.0 {
            switch.cut();
        }
    }
}

/// Connects on the current runtime.
async fn dial(config: &RabbitMqConfig, name: &str, frame_max: u32) -> Result<Dialled, Failure> {
    let switch = KillSwitch::new();
    let cut = CutOnDrop::new(&switch);
    let gone = CancellationToken::new();
    let tokio = Tokio::default().with_handle(Handle::current());
    let kit = RuntimeParts::new(tokio.clone(), OwnStreams(tokio));
    // Owned by the driver's thread, whose end drops it after the socket.
    let ended = gone.clone().drop_guard();
    let (under, host, port) = (switch.clone(), config.host.clone(), config.port);
    let connect = async move |_: AMQPUri, _: Runtime<Kit>| {
        let _owned = &ended;
        quieten_this_thread();
        tokio::select! {
            opened = open_stream(&host, port) => Ok(AsyncTcpStream::Plain(under.guard(opened?).compat())),
            () = under.wait() => Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()),
        }
    };
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let connecting = lapin::Connection::connector(config.uri(frame_max), Runtime::new(kit), connect, properties);
    let connection = connecting.await.map_err(|error| {
        let permanent = is_permanent(&error);
        let source = redacted(error, &config.secrets());
        if permanent { Failure::permanent(source) } else { Failure::transient(source) }
    })?;
    Ok(Dialled { connection, switch, gone, cut })
}

/// The driver's thread would log the password, byte by byte, at TRACE. What matters of what it
/// says we log ourselves.
fn quieten_this_thread() {
    thread_local! {
        static QUIET: RefCell<Option<DefaultGuard>> = const { RefCell::new(None) };
    }
    QUIET.with(|quiet| {
        quiet.borrow_mut().get_or_insert_with(|| tracing::subscriber::set_default(NoSubscriber::default()));
    });
}

async fn open_stream(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A wrong user, password or virtual host. A virtual host that is full may have room later.
fn is_permanent(error: &lapin::Error) -> bool {
    match error.kind() {
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => true,
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => !error.get_message().as_str().contains("limit"),
            _ => false,
        },
        ErrorKind::AuthProviderError(_) | ErrorKind::InvalidProtocolVersion(_) => true,
        _ => false,
    }
}

type Kit = RuntimeParts<Tokio, OwnStreams>;

/// Tokio's reactor, except that streams stand under a kill switch.
#[derive(Debug, Clone)]
struct OwnStreams(Tokio);

impl Reactor for OwnStreams {
    type TcpStream = Compat<Killable<TcpStream>>;
    type Sleep = <Tokio as Reactor>::Sleep;

    #[allow(refining_impl_trait, reason = "never used by the driver, so that any stream will do")]
    fn register<H: Read + Write + Send + 'static>(&self, _: H) -> io::Result<Self::TcpStream> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    #[allow(clippy::manual_async_fn, reason = "an async fn would borrow self")]
    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        async move { Ok(KillSwitch::new().guard(TcpStream::connect(address).await?).compat()) }
    }
}
