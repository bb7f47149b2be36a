//! Redis: one multiplexed connection for async code, connections checked out one by one for threads.
//!
//! All streams are our own and stand under one kill switch per generation, so a frozen server
//! ends every call in flight, blocking ones too, without any limit on slow commands.

use std::fmt;
use std::io;
use std::io::Write;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, IntoConnectionInfo, Pipeline, RedisConnectionInfo, RedisError,
    RedisFuture, RedisResult, Value,
};
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::AbortHandle;

use crate::backend::count::{Counted, none};
use crate::checkout::{Checkouts, Limits};
use crate::close::Phase;
use crate::config::{BackendConfig, Environment, ParsedUrl, ResourceConfig, Secret, host_port, millis};
use crate::error::{Error, Failure, redacted};
use crate::exit::{Ours, Process};
use crate::lease::{Claim, Lease, Provide, QuotaId};
use crate::probe::{Guarded, KillSwitch};
use crate::repeat::Repeat;
use crate::resource::{Busy, Link, Resource, Work};
use crate::runtime::{deadline, within};
use crate::scoped::{self, Scoped};
use crate::slot::BoxFuture;
use crate::status::Usage;
use crate::tls::{self, Blocking, Stream, Tls, TlsOptions};
use crate::wait::Quota;

/// Plain, and over TLS.
const SCHEMES: [&str; 2] = ["redis", "rediss"];

/// How to reach a Redis; `[redis]` or `[named.redis.NAME]` in TOML.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RedisConfig {
    /// `redis://user:password@host:port/db`, instead of the parts; `rediss://` over TLS. Environment: `REDIS_URL`.
    pub url: Option<Secret>,
    /// Defaults to `localhost`. Environment: `REDIS_HOST`, `REDIS_IP`.
    pub host: String,
    /// Defaults to 6379. Environment: `REDIS_PORT`.
    pub port: u16,
    /// Defaults to none, which is Redis's user `default`. Environment: `REDIS_USER`.
    pub user: Option<String>,
    /// Defaults to none. Environment: `REDIS_PASSWORD`.
    pub password: Option<Secret>,
    /// The database's number. Defaults to 0. Environment: `REDIS_DB`.
    pub db: i64,
    /// What `CLIENT LIST` shows. Defaults to `resource-pool`.
    pub client_name: String,
    /// The most connections for threads. Defaults to 50, as in QUANTAXIS.
    pub pool_size: u32,
    /// How many idle connections are kept for threads. Defaults to 0.
    pub min_idle: u32,
    /// The most exclusive connections for async code. Defaults to 50.
    pub exclusive_size: usize,
    /// After how long an idle connection for threads is closed. Defaults to 60 s.
    #[serde(rename = "idle_timeout_ms", with = "millis")]
    pub idle_timeout: Duration,
    /// The longest that a connection for threads is used, less up to a tenth. Defaults to 30 min.
    #[serde(rename = "max_lifetime_ms", with = "millis")]
    pub max_lifetime: Duration,
    /// A connection that was checked out within this time is checked out again without a test. Defaults to 500 ms.
    #[serde(rename = "test_after_ms", with = "millis")]
    pub test_after: Duration,
    /// How long the test may take. Defaults to 500 ms.
    #[serde(rename = "test_limit_ms", with = "millis")]
    pub test_limit: Duration,
    /// How long opening one connection may take, all steps together. Defaults to 2 s.
    #[serde(rename = "connect_timeout_ms", with = "millis")]
    pub connect_timeout: Duration,
    /// After how long without traffic TCP keepalive begins. Defaults to 60 s.
    #[serde(rename = "keepalive_ms", with = "millis")]
    pub keepalive: Duration,
    /// How to speak TLS. Defaults to none: plain, unless the URL is a `rediss://`. Environment: `REDIS_TLS`,
    /// `REDIS_TLS_CA_FILE`, `REDIS_TLS_CERT_FILE`, `REDIS_TLS_KEY_FILE`, `REDIS_TLS_SERVER_NAME`.
    pub tls: Option<TlsOptions>,
}

impl Default for RedisConfig {
    fn default() -> Self {
        RedisConfig {
            url: None,
            host: "localhost".to_owned(),
            port: 6379,
            user: None,
            password: None,
            db: 0,
            client_name: "resource-pool".to_owned(),
            pool_size: 50,
            min_idle: 0,
            exclusive_size: 50,
            idle_timeout: Duration::from_secs(60),
            max_lifetime: Duration::from_secs(1800),
            test_after: Duration::from_millis(500),
            test_limit: Duration::from_millis(500),
            connect_timeout: Duration::from_secs(2),
            keepalive: Duration::from_secs(60),
            tls: None,
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

    /// Speaks TLS.
    pub fn tls(mut self, tls: TlsOptions) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets what `CLIENT LIST` shows.
    pub fn client_name(mut self, name: impl Into<String>) -> Self {
        self.client_name = name.into();
        self
    }
}

impl BackendConfig for RedisConfig {
    const KIND: &'static str = "redis";
    type Resource = RedisResource;

    fn apply(&mut self, environment: &Environment) -> Result<(), Error> {
        const HOST: &[&str] = &["REDIS_HOST", "REDIS_IP"];
        if environment.first(HOST)?.is_some() {
            self.url = None;
        }
        environment.optional(&["REDIS_URL"], &mut self.url)?;
        environment.text(HOST, &mut self.host)?;
        environment.number(&["REDIS_PORT"], &mut self.port)?;
        environment.optional(&["REDIS_USER"], &mut self.user)?;
        environment.optional(&["REDIS_PASSWORD"], &mut self.password)?;
        environment.number(&["REDIS_DB"], &mut self.db)?;
        const TLS: [&str; 5] =
            ["REDIS_TLS", "REDIS_TLS_CA_FILE", "REDIS_TLS_CERT_FILE", "REDIS_TLS_KEY_FILE", "REDIS_TLS_SERVER_NAME"];
        TlsOptions::apply(&mut self.tls, environment, TLS)
    }

    fn of(config: &ResourceConfig) -> Option<&Self> {
        #[allow(irrefutable_let_patterns, reason = "it is the only kind where no other feature is on")]
        if let ResourceConfig::Redis(config) = config { Some(config) } else { None }
    }

    fn resource(&self, name: &str) -> Result<RedisResource, Error> {
        let mut config = self.clone();
        if let Some(url) = config.url.take() {
            let key = format!("{name}.url");
            let url = ParsedUrl::new(&key, &url, &SCHEMES)?;
            TlsOptions::agree(&mut config.tls, &key, url.url().scheme(), SCHEMES)?;
            config.host = url.host().to_owned();
            config.port = url.url().port().unwrap_or(6379);
            config.user = url.user(&key)?;
            config.password = url.password(&key)?;
            let db = url.path(&key)?;
            if let Some((name, _)) = url.url().query_pairs().next() {
                return Err(Error::config(&key, format!("has the unknown parameter `{name}`; there are none")));
            }
            if !db.is_empty() {
                config.db = db.parse().map_err(|_| Error::config(&key, "ends in a database that is not a number"))?;
            }
        }
        if config.pool_size == 0 || config.exclusive_size == 0 {
            return Err(Error::config(format!("{name}.pool_size"), "must be at least 1, as must exclusive_size"));
        }
        if config.min_idle > config.pool_size {
            return Err(Error::config(format!("{name}.min_idle"), "is more than pool_size"));
        }
        let tls = Tls::new(name, config.tls.as_ref(), &config.host)?;
        Ok(RedisResource { config: Arc::new(config), tls, quota: QuotaId::new() })
    }
}

/// A Redis in the pool.
#[derive(Debug)]
pub struct RedisResource {
    config: Arc<RedisConfig>,
    tls: Tls,
    /// Of which the connections for threads are.
    pub(crate) quota: QuotaId,
}

impl Resource for RedisResource {
    type Handle = Redis;

    async fn connect(&self, link: &Link) -> Result<Redis, Failure> {
        let limits = Limits {
            max: self.config.pool_size as usize,
            min_idle: self.config.min_idle as usize,
            idle_timeout: self.config.idle_timeout,
            max_lifetime: self.config.max_lifetime,
            test_after: self.config.test_after,
        };
        let quota = Quota::of(self.quota, link, limits.max, "connections", "pool_size");
        let config = Arc::clone(&self.config);
        let tell = move |error| redacted(error, true, &config.secrets());
        let inner = Arc::new_cyclic(|inner| Inner {
            config: Arc::clone(&self.config),
            tls: self.tls.clone(),
            link: link.clone(),
            runtime: Handle::current(),
            switch: RwLock::default(),
            shared: RwLock::new(None),
            probe: tokio::sync::Mutex::new(None),
            drivers: watch::Sender::new(0),
            exclusives: Arc::new(Semaphore::new(self.config.exclusive_size)),
            exclusive_quota: Quota::new(link, self.config.exclusive_size, "exclusive connections", "exclusive_size"),
            threads: Checkouts::new(link, Arc::new(Manager(Weak::clone(inner))), limits, quota, tell),
        });
        if let Err(failure) = inner.open_shared().await {
            let RedisConfig { host, port, .. } = &*self.config;
            return Err(self.tls.or_wanted(failure, host, *port, "use rediss://").await);
        }
        Ok(Redis { inner })
    }

    async fn recover(&self, _: &Link, lost: &Redis) -> Result<bool, Failure> {
        lost.inner.open_shared().await?;
        Ok(true)
    }

    async fn ping(&self, redis: &Redis) -> Result<(), Failure> {
        let mut probe = redis.inner.probe.lock().await;
        // Taken out while in use, so that a ping given up takes its connection with it.
        let mut own = match probe.take() {
            Some(own) => own,
            None => redis.inner.in_time(Own::open(&redis.inner, &KillSwitch::new())).await?,
        };
        redis::cmd("PING").query_async::<()>(&mut own.connection).await?;
        *probe = Some(own);
        Ok(())
    }

    async fn close(&self, redis: Redis) -> Result<(), Failure> {
        drop(redis.inner.threads.close());
        redis.inner.shared.write().take();
        redis.inner.probe.lock().await.take();
        // What is still out ends here; the drain has waited for it.
        redis.inner.switch.read().cut();
        // Their tasks drop what was cut, a moment later; what a forgotten runtime keeps from that is not waited for.
        let _ = within(LINGER, none(&redis.inner.drivers)).await;
        Ok(())
    }

    fn cut(&self, redis: &Redis) {
        redis.inner.switch.read().cut();
        drop(redis.inner.threads.refuse());
    }

    fn endpoint(&self) -> String {
        let scheme = SCHEMES[usize::from(self.config.tls.is_some())];
        format!("{scheme}://{}/{}", host_port(&self.config.host, self.config.port), self.config.db)
    }

    fn phase(&self) -> Phase {
        Phase::Redis
    }

    fn usage(&self, redis: &Redis) -> Usage {
        redis.inner.threads.usage()
    }
}

/// A Redis for async code. Cheap to clone; implements [`redis::aio::ConnectionLike`], so every
/// command and pipeline of the `redis` crate works on it.
///
/// Commands share one connection, which comes back by itself after a loss, as
/// [`Repeat`] says. One that was under way then fails; if it may have changed something,
/// [`Error::behind`] the driver's error is [`Error::OutcomeUnknown`]. Commands that would block the others (`BLPOP`,
/// `XREAD BLOCK`, …) run on a connection of their own. Commands that would change the connection
/// for the others (`SELECT`, a bare `MULTI`, `WATCH`, `SUBSCRIBE`, …), and `WAIT`, which is about
/// the writes of its own connection, are refused: use
/// [`exclusive`](Redis::exclusive) or [`pubsub`](Redis::pubsub).
///
/// # Cancel safety
/// Dropping a command's future leaves the connection in order; the command may still run.
#[derive(Clone)]
pub struct Redis {
    inner: Arc<Inner>,
}

struct Inner {
    config: Arc<RedisConfig>,
    tls: Tls,
    link: Link,
    runtime: Handle,
    /// Cuts every stream of the current generation.
    switch: RwLock<KillSwitch>,
    shared: RwLock<Option<MultiplexedConnection>>,
    probe: tokio::sync::Mutex<Option<Own>>,
    /// Of async connections, until their sockets are gone.
    drivers: watch::Sender<usize>,
    exclusives: Arc<Semaphore>,
    exclusive_quota: Arc<Quota>,
    threads: Checkouts<Manager>,
}

impl Provide<Checkouts<Manager>> for Redis {
    fn provide(&self) -> &Checkouts<Manager> {
        &self.inner.threads
    }
}

impl Redis {
    /// A Redis of one's own, which closes when the guard drops.
    ///
    /// # Errors
    /// Those of [`ResourcePool::redis`](crate::ResourcePool::redis).
    ///
    /// # Cancel safety
    /// Dropping the future closes what was begun.
    #[track_caller]
    pub fn scoped(config: RedisConfig) -> impl Future<Output = Result<Scoped<Lease<Redis>>, Error>> + Send {
        let claim = Claim::shared();
        async move {
            let pool = scoped::pool(config.into())?;
            let lease = pool.acquire(pool.registry().redis(), claim).await?;
            Ok(Scoped::new(lease, pool))
        }
    }

    /// A connection of one's own, for `WATCH`/`MULTI`, `SELECT` and blocking commands. At most
    /// [`exclusive_size`](RedisConfig::exclusive_size) at a time; closed when it drops.
    ///
    /// # Errors
    /// When no connection can be made, or none is free within the acquire timeout.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    #[track_caller]
    pub fn exclusive(&self) -> impl Future<Output = RedisResult<Exclusive>> + Send + use<> {
        let (redis, claim) = (self.clone(), Claim::shared());
        async move {
            let open = |inner: Arc<Inner>, switch| async move { Own::open(&inner, &switch).await };
            let (own, place) = redis.open_own(claim, open).await?;
            Ok(Exclusive { own, link: redis.inner.link.clone(), _place: place })
        }
    }

    /// A connection for subscribing to channels and patterns; counted as an exclusive one.
    ///
    /// # Errors
    /// As [`exclusive`](Redis::exclusive).
    ///
    /// # Cancel safety
    /// Cancel-safe.
    #[track_caller]
    pub fn pubsub(&self) -> impl Future<Output = RedisResult<PubSub>> + Send + use<> {
        let (redis, claim) = (self.clone(), Claim::shared());
        async move {
            let open = |inner: Arc<Inner>, switch| async move {
                let (info, stream) = open_stream(&inner, &switch).await?;
                redis::aio::PubSub::new(info.redis_settings(), stream).await
            };
            let (pubsub, place) = redis.open_own(claim, open).await?;
            Ok(PubSub { pubsub, _place: place })
        }
    }

    /// An exclusive connection, and its place among them.
    async fn open_own<T: Send + 'static, F: Future<Output = RedisResult<T>> + Send + 'static>(
        &self,
        claim: Claim,
        open: impl FnOnce(Arc<Inner>, KillSwitch) -> F,
    ) -> RedisResult<(Ours<T>, Ours<Place>)> {
        let place = self.place(claim).await?;
        let (inner, switch) = (Arc::clone(&self.inner), self.inner.switch.read().clone());
        let opening = open(Arc::clone(&inner), switch);
        let opening = self.inner.runtime.spawn(async move { inner.in_time(opening).await });
        let own = opening.await.unwrap_or_else(|_the_runtime_ended| Err(self.inner.closed()))?;
        Ok((Ours::new(own), Ours::new(place)))
    }

    /// A place among the exclusive connections, once the server can be reached.
    async fn place(&self, claim: Claim) -> RedisResult<Place> {
        self.inner.link.process.check().map_err(refused)?;
        let permit = self.permit(claim).await?;
        self.inner.link.ready().await.map_err(refused)?;
        let claim = self.inner.exclusive_quota.claim(claim);
        let lease = self.inner.link.lease::<RedisResource, Redis>(claim).ok_or_else(|| self.inner.closed())?;
        Ok(Place { _permit: permit, _lease: lease })
    }

    async fn permit(&self, claim: Claim) -> RedisResult<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.inner.exclusives).try_acquire_owned() {
            return Ok(permit);
        }
        let wait = self.inner.exclusive_quota.wait(claim).map_err(refused)?;
        let waiting = Arc::clone(&self.inner.exclusives).acquire_owned();
        let limit = self.inner.link.acquire_timeout();
        let timed = self.inner.runtime.spawn(async move { tokio::time::timeout(limit, waiting).await });
        match timed.await {
            Ok(Ok(Ok(permit))) => Ok(permit),
            Ok(Err(_elapsed)) => Err(refused(Error::Timeout(Arc::new(wait.timed_out(None))))),
            _ => Err(self.inner.closed()),
        }
    }

    /// The shared connection, after waiting while it is being brought back.
    async fn shared(&self) -> RedisResult<MultiplexedConnection> {
        self.inner.link.process.check().map_err(refused)?;
        if let Some(connection) = self.inner.live_shared() {
            return Ok(connection);
        }
        self.inner.link.ready().await.map_err(refused)?;
        self.inner.live_shared().ok_or_else(|| self.inner.closed())
    }

    /// Sends over the shared connection; once more where the answer is lost, all of this only reads, and the policy
    /// says so.
    async fn send<'a, T, C: Iterator<Item = &'a Cmd>, F: Future<Output = RedisResult<T>>>(
        &self,
        commands: impl Fn() -> C,
        send: impl Fn(MultiplexedConnection) -> F,
    ) -> RedisResult<T> {
        let link = &self.inner.link;
        let mut again = link.repeat == Repeat::Idempotent && commands().all(reads);
        loop {
            let generation = again.then(|| link.generation());
            let shared = self.shared().await?;
            let busy = link.busy(Work::Operation);
            let answer = send(shared).await;
            match (answered(busy, answer, || unsafe_twice(commands())), generation) {
                (Err(error), Some(generation)) if error.is_io_error() => link.lost(generation, error),
                (answer, _) => return answer,
            }
            again = false;
            // Or the connection that is just being cut would be asked again.
            link.ready().await.map_err(refused)?;
        }
    }
}

impl Inner {
    /// Opens one connection, whatever steps that takes, within the limit.
    async fn in_time<T>(&self, opening: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        let limit = self.config.connect_timeout;
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}"));
        within(limit, opening).await.unwrap_or_else(|_elapsed| Err(late().into()))
    }

    /// Opens the shared connection of a new generation.
    async fn open_shared(self: &Arc<Self>) -> Result<(), Failure> {
        // The cut one stays in place until there is a connection to put under the new one.
        let switch = KillSwitch::new();
        let (connection, driver) = self.in_time(open(self, &switch)).await.map_err(|error| {
            let permanent =
                matches!(error.kind(), redis::ErrorKind::AuthenticationFailed | redis::ErrorKind::InvalidClientConfig);
            // What it says of a refused login are its own words.
            let told = !permanent && error.kind() != redis::ErrorKind::Io;
            let permanent = permanent || tls::is_permanent(&error);
            let source = redacted(error, told, &self.config.secrets());
            if permanent { Failure::permanent(source) } else { Failure::transient(source) }
        })?;
        let link = self.link.clone();
        let generation = link.generation();
        let under = switch.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = driver => {
                    // First, so that nothing is asked of it from the moment in which it counts as lost.
                    switch.cut();
                    link.lost(generation, "the server closed the connection");
                }
                () = switch.wait() => {}
            }
        });
        *self.shared.write() = Some(connection);
        *self.switch.write() = under;
        self.threads.accept();
        Ok(())
    }

    fn live_shared(&self) -> Option<MultiplexedConnection> {
        if self.switch.read().is_cut() {
            return None;
        }
        self.shared.read().clone()
    }

    fn closed(&self) -> RedisError {
        refused(Error::Closed { resource: Arc::clone(self.link.name()) })
    }
}

impl RedisConfig {
    fn secrets(&self) -> Vec<&str> {
        self.password.iter().map(Secret::expose).collect()
    }

    fn info(&self) -> RedisResult<redis::ConnectionInfo> {
        let mut settings = RedisConnectionInfo::default().set_db(self.db).set_skip_set_lib_name();
        if let Some(user) = &self.user {
            settings = settings.set_username(user.as_str());
        }
        if let Some(password) = &self.password {
            settings = settings.set_password(password.expose());
        }
        Ok(ConnectionAddr::Tcp(self.host.clone(), self.port).into_connection_info()?.set_redis_settings(settings))
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("resource", self.inner.link.name()).finish_non_exhaustive()
    }
}

impl ConnectionLike for Redis {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            match Effect::of(cmd) {
                Effect::None => {
                    let send = |mut shared: MultiplexedConnection| async move { shared.send_packed_command(cmd).await };
                    self.send(|| [cmd].into_iter(), send).await
                }
                Effect::Blocks => self.exclusive().await?.req_packed_command(cmd).await,
                Effect::Changes(name) => Err(not_shared(&name)),
            }
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let mut blocks = false;
            for cmd in pipeline.cmd_iter() {
                match Effect::of(cmd) {
                    Effect::None => {}
                    Effect::Blocks => blocks = true,
                    Effect::Changes(name) => return Err(not_shared(&name)),
                }
            }
            if blocks {
                self.exclusive().await?.req_packed_commands(pipeline, offset, count).await
            } else {
                let send = |mut shared: MultiplexedConnection| async move {
                    shared.send_packed_commands(pipeline, offset, count).await
                };
                self.send(|| pipeline.cmd_iter(), send).await
            }
        })
    }

    fn get_db(&self) -> i64 {
        self.inner.config.db
    }
}

impl ConnectionLike for Lease<Redis> {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        let mut redis = Redis::clone(self);
        Box::pin(async move { redis.req_packed_command(cmd).await })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        let mut redis = Redis::clone(self);
        Box::pin(async move { redis.req_packed_commands(pipeline, offset, count).await })
    }

    fn get_db(&self) -> i64 {
        Redis::get_db(self)
    }
}

/// An async connection of one's own. Every command is allowed; it is closed when it drops.
pub struct Exclusive {
    own: Ours<Own>,
    link: Link,
    _place: Ours<Place>,
}

impl ConnectionLike for Exclusive {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            self.link.process.check().map_err(refused)?;
            let busy = self.link.busy(Work::Operation);
            let answer = self.own.connection.req_packed_command(cmd).await;
            answered(busy, answer, || unsafe_twice([cmd]))
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            self.link.process.check().map_err(refused)?;
            let busy = self.link.busy(Work::Operation);
            let answer = self.own.connection.req_packed_commands(pipeline, offset, count).await;
            answered(busy, answer, || unsafe_twice(pipeline.cmd_iter()))
        })
    }

    fn get_db(&self) -> i64 {
        self.own.connection.get_db()
    }
}

impl fmt::Debug for Exclusive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exclusive").field("resource", self.link.name()).finish_non_exhaustive()
    }
}

/// A connection that is subscribed; derefs to [`redis::aio::PubSub`].
pub struct PubSub {
    pubsub: Ours<redis::aio::PubSub>,
    _place: Ours<Place>,
}

impl Deref for PubSub {
    type Target = redis::aio::PubSub;
    fn deref(&self) -> &Self::Target {
        &self.pubsub
    }
}

impl DerefMut for PubSub {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.pubsub
    }
}

impl fmt::Debug for PubSub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PubSub").finish_non_exhaustive()
    }
}

/// A place among the exclusive connections, and in the books.
struct Place {
    _permit: OwnedSemaphorePermit,
    _lease: Lease<Redis>,
}

/// How long closing waits for the drivers' tasks and sockets to go, which takes microseconds.
const LINGER: Duration = Duration::from_millis(500);

/// A connection with a driver task that ends with it.
struct Own {
    connection: MultiplexedConnection,
    driver: AbortHandle,
}

impl Own {
    async fn open(inner: &Inner, switch: &KillSwitch) -> RedisResult<Self> {
        let (connection, driver) = open(inner, switch).await?;
        Ok(Own { connection, driver: tokio::spawn(driver).abort_handle() })
    }
}

impl Drop for Own {
    // The driver of an unanswered blocking command would live on without this.
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn open(inner: &Inner, switch: &KillSwitch) -> RedisResult<(MultiplexedConnection, BoxFuture<()>)> {
    let counted = Counted::new(&inner.drivers);
    let (info, stream) = open_stream(inner, switch).await?;
    // Slow commands are no reason to give up; frozen servers are what the kill switch is for.
    let settings = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
    let (mut connection, driver) =
        MultiplexedConnection::new_with_config(info.redis_settings(), stream, settings).await?;
    let mut driver: BoxFuture<()> = Box::pin(async move {
        let _counted = counted;
        driver.await;
    });
    let mut name = redis::cmd("CLIENT");
    name.arg("SETNAME").arg(&inner.config.client_name);
    tokio::select! {
        named = name.query_async::<()>(&mut connection) => named?,
        () = &mut driver => return Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
    }
    Ok((connection, driver))
}

async fn open_stream(inner: &Inner, switch: &KillSwitch) -> RedisResult<(redis::ConnectionInfo, Stream)> {
    let RedisConfig { host, port, keepalive, .. } = &*inner.config;
    Ok((inner.config.info()?, inner.tls.dial(host, *port, *keepalive, switch).await?))
}

/// What a command does to a connection that others share.
enum Effect {
    None,
    Blocks,
    Changes(String),
}

impl Effect {
    fn of(cmd: &Cmd) -> Self {
        let mut args = cmd.args_iter().filter_map(|arg| match arg {
            redis::Arg::Simple(bytes) => Some(bytes),
            _ => None,
        });
        let Some(name) = args.next() else { return Effect::None };
        let name = name.to_ascii_uppercase();
        match name.as_slice() {
            b"BLPOP" | b"BRPOP" | b"BRPOPLPUSH" | b"BLMOVE" | b"BLMPOP" | b"BZPOPMIN" | b"BZPOPMAX" | b"BZMPOP" => {
                Effect::Blocks
            }
            b"XREAD" | b"XREADGROUP" if args.any(|arg| arg.eq_ignore_ascii_case(b"BLOCK")) => Effect::Blocks,
            b"MULTI" | b"EXEC" | b"DISCARD" | b"WATCH" | b"UNWATCH" | b"SELECT" | b"AUTH" | b"HELLO" | b"RESET"
            | b"QUIT" | b"MONITOR" | b"SUBSCRIBE" | b"PSUBSCRIBE" | b"SSUBSCRIBE" | b"UNSUBSCRIBE"
            | b"PUNSUBSCRIBE" | b"SUNSUBSCRIBE" | b"READONLY" | b"READWRITE" | b"ASKING" | b"WAIT" | b"WAITAOF" => {
                Effect::Changes(String::from_utf8_lossy(&name).into_owned())
            }
            b"CLIENT" if !args.next().is_some_and(is_harmless) => Effect::Changes("this CLIENT command".to_owned()),
            _ => Effect::None,
        }
    }
}

/// Whether CLIENT with this subcommand leaves the connection as it is.
fn is_harmless(subcommand: &[u8]) -> bool {
    const HARMLESS: [&[u8]; 6] = [b"LIST", b"ID", b"INFO", b"SETNAME", b"GETNAME", b"KILL"];
    HARMLESS.iter().any(|known| subcommand.eq_ignore_ascii_case(known))
}

/// An answer ends the operation, be it an error of the server's. Without one it is given up, and
/// whether a command ran that changes something is unknown.
pub(crate) fn answered<T>(
    busy: Busy,
    answer: RedisResult<T>,
    unsafe_twice: impl FnOnce() -> Option<String>,
) -> RedisResult<T> {
    let error = match answer {
        Err(error) if error.is_io_error() => error,
        answer => {
            busy.done();
            return answer;
        }
    };
    let resource = Arc::clone(busy.resource());
    Err(match unsafe_twice() {
        Some(action) if Error::behind(&error).is_none() => {
            refused(Error::OutcomeUnknown { resource, action, source: Arc::new(error) })
        }
        _ => error,
    })
}

/// The commands that only read, which do no harm twice.
const READS: &str = "\
    BITCOUNT BITFIELD_RO BITPOS DBSIZE DUMP ECHO EVALSHA_RO EVAL_RO EXISTS EXPIRETIME FCALL_RO GEODIST GEOHASH \
    GEOPOS GEORADIUSBYMEMBER_RO GEORADIUS_RO GEOSEARCH GET GETBIT GETRANGE HEXISTS HGET HGETALL HKEYS HLEN \
    HMGET HRANDFIELD HSCAN HSTRLEN HVALS INFO KEYS LCS LINDEX LLEN LPOS LRANGE MGET PEXPIRETIME PING PTTL \
    RANDOMKEY SCAN SCARD SDIFF SINTER SINTERCARD SISMEMBER SMEMBERS SMISMEMBER SORT_RO SRANDMEMBER SSCAN \
    STRLEN SUBSTR SUNION TIME TTL TYPE XLEN XPENDING XRANGE XREAD XREVRANGE ZCARD ZCOUNT ZDIFF ZINTER \
    ZINTERCARD ZLEXCOUNT ZMSCORE ZRANDMEMBER ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANK ZREVRANGE ZREVRANGEBYLEX \
    ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE ZUNION";

fn is_read(name: &[u8]) -> bool {
    READS.split_ascii_whitespace().any(|read| name.eq_ignore_ascii_case(read.as_bytes()))
}

fn name(cmd: &Cmd) -> &[u8] {
    match cmd.args_iter().next() {
        Some(redis::Arg::Simple(name)) => name,
        _ => b"",
    }
}

fn reads(cmd: &Cmd) -> bool {
    is_read(name(cmd))
}

/// The name of the first command that changes something.
fn unsafe_twice<'a>(commands: impl IntoIterator<Item = &'a Cmd>) -> Option<String> {
    let mut names = commands.into_iter().map(name);
    names.find(|name| !is_read(name)).map(|name| String::from_utf8_lossy(name).into_owned())
}

/// The same of packed commands.
pub(crate) fn unsafe_twice_packed(packed: &[u8]) -> Option<String> {
    let mut found = None;
    each_command(packed, |name, _| {
        if !is_read(name) {
            found.get_or_insert_with(|| String::from_utf8_lossy(name).into_owned());
        }
    });
    found
}

fn not_shared(name: &str) -> RedisError {
    let problem = format!(
        "{name} would change the connection that others share; use `exclusive()`, or `pubsub()` for subscriptions"
    );
    io::Error::new(io::ErrorKind::InvalidInput, problem).into()
}

/// Our error, where a signature asks for the driver's.
fn refused(error: Error) -> RedisError {
    let kind = match &error {
        Error::Timeout(_) => io::ErrorKind::TimedOut,
        Error::Lost { .. } | Error::OutcomeUnknown { .. } => io::ErrorKind::ConnectionAborted,
        _ => io::ErrorKind::NotConnected,
    };
    io::Error::new(kind, error).into()
}

/// Opens and tests the connections for threads.
pub(crate) struct Manager(Weak<Inner>);

impl r2d2::ManageConnection for Manager {
    type Connection = Wire;
    type Error = RedisError;

    fn connect(&self) -> RedisResult<Wire> {
        match self.0.upgrade() {
            Some(inner) => {
                let switch = inner.switch.read().clone();
                Wire::connect(&inner.config, &inner.tls, switch)
            }
            None => Err(io::Error::new(io::ErrorKind::NotConnected, "closed").into()),
        }
    }

    fn is_valid(&self, wire: &mut Wire) -> RedisResult<()> {
        let end = deadline(wire.config.test_limit);
        wire.limited(end, |wire| redis::cmd("PING").exec(wire))
    }

    fn has_broken(&self, wire: &mut Wire) -> bool {
        wire.is_spent()
    }
}

/// A blocking connection over a stream of our own, which the kill switch can cut while a thread
/// waits on it; the `redis` crate's own does not show its socket.
pub(crate) struct Wire {
    config: Arc<RedisConfig>,
    stream: Blocking,
    parser: redis::Parser,
    switch: KillSwitch,
    process: &'static Process,
    _guarded: Guarded,
    session: Session,
    /// A command was begun and has not been answered in full.
    midway: bool,
}

/// What commands have done to the connection.
#[derive(Debug, Default, PartialEq)]
struct Session {
    in_multi: bool,
    watching: bool,
    other_db: bool,
    /// In a mode that nothing but a new connection leaves for sure.
    altered: bool,
}

impl Wire {
    fn connect(config: &Arc<RedisConfig>, tls: &Tls, switch: KillSwitch) -> RedisResult<Self> {
        let RedisConfig { host, port, keepalive, connect_timeout, .. } = &**config;
        let end = deadline(*connect_timeout);
        let (stream, guarded) = tls.dial_blocking(host, *port, *keepalive, &switch, end)?;
        let mut wire = Wire {
            config: Arc::clone(config),
            stream,
            parser: redis::Parser::new(),
            switch,
            process: Process::current(),
            _guarded: guarded,
            session: Session::default(),
            midway: false,
        };
        wire.limited(end, Wire::greet)?;
        Ok(wire)
    }

    fn greet(&mut self) -> RedisResult<()> {
        let config = Arc::clone(&self.config);
        if let Some(password) = &config.password {
            let mut auth = redis::cmd("AUTH");
            auth.arg(config.user.iter().collect::<Vec<_>>()).arg(password.expose());
            auth.exec(self)?;
        }
        if config.db != 0 {
            redis::cmd("SELECT").arg(config.db).exec(self)?;
        }
        redis::cmd("CLIENT").arg("SETNAME").arg(&config.client_name).exec(self)?;
        self.session = Session::default();
        Ok(())
    }

    /// Whether it must not be handed out again.
    fn is_spent(&self) -> bool {
        self.midway || self.switch.is_cut() || self.session != Session::default()
    }

    fn limited(&mut self, end: Instant, run: impl FnOnce(&mut Self) -> RedisResult<()>) -> RedisResult<()> {
        self.stream.end_by(Some(end))?;
        run(self)?;
        Ok(self.stream.end_by(None)?)
    }

    fn send(&mut self, packed: &[u8]) -> RedisResult<()> {
        self.process.check().map_err(refused)?;
        if self.midway || self.switch.is_cut() {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "an earlier command on this connection was cut short",
            )
            .into());
        }
        each_command(packed, |name, first| self.session.observe(name, first, self.config.db));
        self.midway = true;
        self.stream.write_all(packed)?;
        Ok(self.stream.flush()?)
    }

    /// The next message, be it a reply or a push.
    pub(crate) fn receive(&mut self) -> RedisResult<Value> {
        // A forked child would read the parent's replies.
        self.process.check().map_err(refused)?;
        self.parser.parse_value(&mut self.stream)
    }

    fn reply(&mut self) -> RedisResult<Value> {
        loop {
            match self.receive()? {
                Value::Push { .. } => {}
                value => return Ok(value),
            }
        }
    }

    /// Sends a command whose replies are read one by one; the connection is not handed out again.
    pub(crate) fn subscribe(&mut self, command: &Cmd) -> RedisResult<()> {
        self.send(&command.get_packed_command())?;
        self.session.altered = true;
        Ok(())
    }
}

impl redis::ConnectionLike for Wire {
    fn req_packed_command(&mut self, packed: &[u8]) -> RedisResult<Value> {
        self.send(packed)?;
        let value = self.reply()?;
        self.midway = false;
        Ok(value)
    }

    fn req_packed_commands(&mut self, packed: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        self.send(packed)?;
        let mut refused = None;
        let mut values = Vec::with_capacity(count);
        // Every reply is read, whatever one of them says, so that none is left for the next command.
        for index in 0..offset + count {
            match self.reply()? {
                value if index >= offset => values.push(value),
                value => refused = refused.or(value.extract_error().err()),
            }
        }
        self.midway = false;
        refused.map_or(Ok(values), Err)
    }

    fn get_db(&self) -> i64 {
        self.config.db
    }

    fn check_connection(&mut self) -> bool {
        redis::cmd("PING").exec(self).is_ok()
    }

    fn is_open(&self) -> bool {
        !self.midway && !self.switch.is_cut()
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("session", &self.session).finish_non_exhaustive()
    }
}

impl Session {
    fn observe(&mut self, name: &[u8], first: Option<&[u8]>, home: i64) {
        match name.to_ascii_uppercase().as_slice() {
            b"MULTI" => self.in_multi = true,
            b"WATCH" => self.watching = true,
            b"EXEC" | b"DISCARD" => (self.in_multi, self.watching) = (false, false),
            b"UNWATCH" => self.watching = false,
            b"SELECT" => self.other_db = first != Some(home.to_string().as_bytes()),
            b"CLIENT" => self.altered |= !first.is_some_and(is_harmless),
            b"AUTH" | b"HELLO" | b"RESET" | b"QUIT" | b"MONITOR" | b"SUBSCRIBE" | b"PSUBSCRIBE" | b"SSUBSCRIBE"
            | b"READONLY" | b"ASKING" => self.altered = true,
            _ => {}
        }
    }
}

/// Shows each command of a packed pipeline: its name and its first argument.
fn each_command(mut packed: &[u8], mut see: impl FnMut(&[u8], Option<&[u8]>)) {
    while let Some(arguments) = header(&mut packed, b'*') {
        let mut first_two = [None; 2];
        for index in 0..arguments {
            let Some(length) = header(&mut packed, b'$').filter(|length| length + 2 <= packed.len()) else { return };
            if let Some(place) = first_two.get_mut(index) {
                *place = Some(&packed[..length]);
            }
            packed = &packed[length + 2..];
        }
        if let [Some(name), first] = first_two {
            see(name, first);
        }
    }
}

/// Takes a line such as `*3` or `$5` off the front.
fn header(packed: &mut &[u8], mark: u8) -> Option<usize> {
    let end = packed.windows(2).position(|two| two == b"\r\n")?;
    let number = std::str::from_utf8(packed[..end].strip_prefix(&[mark])?).ok()?.parse().ok()?;
    *packed = &packed[end + 2..];
    Some(number)
}
