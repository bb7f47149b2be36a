//! What the pool keeps of a Redis, and all that is made of it.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::RwLock;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult, Value};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::base::error::{BoxError, Error, Failure, Source, Worded};
use crate::base::future::BoxFuture;
use crate::base::holder::QuotaId;
use crate::base::process::Ours;
use crate::base::repeat::Repeat;
use crate::base::runtime::within;
use crate::kinds::redis::commands::{Effect, not_shared, reads, silenced, unsafe_twice};
use crate::kinds::redis::config::{RedisConfig, SCHEMES};
use crate::kinds::redis::connection::{Connection, open, open_stream, taken_in};
use crate::kinds::redis::demotion::{Demotion, is_replica};
use crate::kinds::redis::errors::{Answer, is_readonly, refused};
use crate::kinds::redis::exclusive::{Exclusive, Place};
use crate::kinds::redis::pubsub::PubSub;
use crate::kinds::redis::wire::Manager;
use crate::lifecycle::busy::Busy;
use crate::lifecycle::checkout::{Checkouts, Limits};
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::condition::Condition;
use crate::lifecycle::lease::{Claim, Lease, Provide};
use crate::lifecycle::link::Link;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::{State, Usage};
use crate::lifecycle::wait::Quota;
use crate::lifecycle::work::Work;
use crate::net::count::none;
use crate::net::kill_switch::KillSwitch;
use crate::net::tls::{self, Tls};
use crate::net::url::host_port;

/// A Redis in the pool.
#[derive(Debug)]
pub struct RedisResource {
    pub(super) config: Arc<RedisConfig>,
    pub(super) tls: Tls,
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
        let tell = move |error| config.told(error);
        let session = Arc::new_cyclic(|session| Session {
            this: Weak::clone(session),
            config: Arc::clone(&self.config),
            tls: self.tls.clone(),
            link: link.clone(),
            runtime: Handle::current(),
            switch: RwLock::default(),
            shared: RwLock::new(None),
            demotion: Demotion::default(),
            probe: tokio::sync::Mutex::new(None),
            is_closed: AtomicBool::new(false),
            drivers: watch::Sender::new(0),
            exclusives: Arc::new(Semaphore::new(self.config.exclusive_size)),
            exclusive_quota: Quota::new(link, self.config.exclusive_size, "exclusive connections", "exclusive_size"),
            threads: Checkouts::new(link, Arc::new(Manager(Weak::clone(session))), limits, quota, tell),
        });
        if let Err(failure) = session.open_shared().await {
            let RedisConfig { host, port, .. } = &*self.config;
            let failure = self.tls.or_wanted(failure, host, *port, "use rediss://").await;
            let is_foreign = |error: &RedisError| error.kind() == ErrorKind::Parse;
            if !failure.source.downcast_ref().is_some_and(is_foreign) {
                return Err(failure);
            }
            let text = format!("what answers there is no Redis ({failure}): mend host and port");
            return Err(Failure::permanent(Worded::new(text, failure.source)));
        }
        Ok(Redis { session })
    }

    async fn recover(&self, _: &Link, lost: &Redis) -> Result<bool, Failure> {
        lost.session.open_shared().await.inspect_err(|failure| {
            if failure.permanent {
                lost.session.threads.give_up();
            }
        })?;
        Ok(true)
    }

    async fn ping(&self, redis: &Redis) -> Result<(), Failure> {
        let session = &redis.session;
        let mut probe = session.probe.lock().await;
        if session.is_closed.load(Ordering::Acquire) {
            return Err(Failure::unasked("it is closed"));
        }
        // Taken out while in use, so that a ping given up takes its connection with it.
        if let Some(mut own) = probe.take() {
            let answer = ask(session, &mut own.connection).await;
            // That this connection has ended says nothing about the others.
            if !answer.as_ref().is_err_and(RedisError::is_io_error) {
                *probe = Some(own);
                return session.judged(answer);
            }
        }
        match session.in_time(Connection::open(session, &KillSwitch::new())).await {
            Ok(mut own) => {
                let answer = ask(session, &mut own.connection).await;
                *probe = Some(own);
                session.judged(answer)
            }
            // Nor does it that there is no room for one more.
            Err(error) => {
                drop(probe);
                match session.live_shared() {
                    Some(mut shared) => session.judged(ask(session, &mut shared.connection).await),
                    None => Err(Failure::unasked(session.config.told(error))),
                }
            }
        }
    }

    async fn close(&self, redis: Redis) -> Result<(), Failure> {
        redis.session.threads.close().await;
        redis.session.shared.write().take();
        // Before the lock, so that a ping which comes after it opens nothing any more.
        redis.session.is_closed.store(true, Ordering::Release);
        redis.session.probe.lock().await.take();
        // What is still out ends here; the drain has waited for it.
        redis.session.switch.read().cut_because(redis.session.link.why_cut());
        // Their tasks drop what was cut, a moment later; what a forgotten runtime keeps from that is not waited for.
        let _ = within(LINGER, none(&redis.session.drivers)).await;
        Ok(())
    }

    fn cut(&self, redis: &Redis) {
        // In this order, so that nobody is given one that is cut.
        redis.session.threads.refuse();
        redis.session.switch.read().cut_because(redis.session.link.why_cut());
    }

    fn endpoint(&self) -> String {
        let scheme = SCHEMES[usize::from(self.config.tls.is_some())];
        format!("{scheme}://{}/{}", host_port(&self.config.host, self.config.port), self.config.db)
    }

    fn phase(&self) -> Phase {
        Phase::Redis
    }

    fn usage(&self, redis: &Redis) -> Usage {
        redis.session.threads.usage()
    }
}

/// A Redis for async code. Cheap to clone; implements [`redis::aio::ConnectionLike`], so every
/// command and pipeline of the `redis` crate works on it.
///
/// Commands share one connection, which comes back by itself after a loss, as
/// [`Repeat`] says. One that was under way then fails: [`Error::behind`] the driver's error is [`Error::OutcomeUnknown`] if
/// it may have changed something, else [`Error::Lost`]. Commands that would block the others (`BLPOP`,
/// `XREAD BLOCK`, …) run on a connection of their own. Commands that would change the connection
/// for the others (`SELECT`, a bare `MULTI`, `WATCH`, `SUBSCRIBE`, …), and `WAIT`, which is about
/// the writes of its own connection, are refused: use
/// [`exclusive`](Redis::exclusive) or [`pubsub`](Redis::pubsub).
///
/// # Cancel safety
/// Dropping a command's future leaves the connection in order; the command may still run. A blocking one that is dropped, as
/// `BLPOP`, may take its item with it.
#[derive(Clone)]
pub struct Redis {
    session: Arc<Session>,
}

pub(super) struct Session {
    pub(super) this: Weak<Session>,
    pub(super) config: Arc<RedisConfig>,
    pub(super) tls: Tls,
    pub(super) link: Link,
    pub(super) runtime: Handle,
    /// Cuts every stream of the current generation.
    pub(super) switch: RwLock<KillSwitch>,
    pub(super) shared: RwLock<Option<Shared>>,
    pub(super) demotion: Demotion,
    pub(super) probe: tokio::sync::Mutex<Option<Connection>>,
    is_closed: AtomicBool,
    /// Of async connections, until their sockets are gone.
    pub(super) drivers: watch::Sender<usize>,
    exclusives: Arc<Semaphore>,
    exclusive_quota: Arc<Quota>,
    pub(super) threads: Checkouts<Manager>,
}

/// The connection that commands share.
#[derive(Clone)]
pub(super) struct Shared {
    connection: MultiplexedConnection,
    /// Another one has taken its place, so that its end is no loss.
    pub(super) retired: CancellationToken,
    pub(super) driver: AbortHandle,
}

impl Provide<Checkouts<Manager>> for Redis {
    fn provide(&self) -> &Checkouts<Manager> {
        &self.session.threads
    }
}

impl Redis {
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
            let open = |session: Arc<Session>, switch| async move { Connection::open(&session, &switch).await };
            let (own, place) = redis.open_own(redis.session.exclusive_quota.claim(claim), open).await?;
            Ok(Exclusive { own, session: redis.session, _place: place })
        }
    }

    /// A connection for subscribing to channels and patterns; counted as an exclusive one. To listen is no work: closing
    /// does not wait for it, and ends its messages.
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
            let open = |session: Arc<Session>, switch| async move {
                redis::aio::PubSub::new(&taken_in(), open_stream(&session, &switch).await?).await
            };
            let (pubsub, place) = redis.open_own(redis.session.exclusive_quota.idle_claim(claim), open).await?;
            Ok(PubSub { pubsub, session: redis.session, _place: place })
        }
    }

    /// An exclusive connection, and its place among them.
    async fn open_own<T: Send + 'static, F: Future<Output = RedisResult<T>> + Send + 'static>(
        &self,
        claim: Claim,
        open: impl FnOnce(Arc<Session>, KillSwitch) -> F,
    ) -> RedisResult<(Ours<T>, Ours<Place>)> {
        let place = self.place(claim).await?;
        let (session, switch) = (Arc::clone(&self.session), self.session.switch.read().clone());
        let opening = open(Arc::clone(&session), switch);
        // The place goes along, so that it is not free while an opening that nobody waits for goes on.
        let opening = self.session.runtime.spawn(async move { (session.in_time(opening).await, place) });
        let Ok((own, place)) = opening.await else { return Err(self.session.closed()) };
        Ok((Ours::new(own.map_err(|error| self.session.unsent(error))?), Ours::new(place)))
    }

    /// A place among the exclusive connections, once the server can be reached.
    async fn place(&self, claim: Claim) -> RedisResult<Place> {
        self.session.link.process.check().map_err(refused)?;
        let permit = self.permit(claim).await?;
        self.session.link.ready().await.map_err(refused)?;
        let lease = self.session.link.lease::<RedisResource, Redis>(claim).ok_or_else(|| self.session.closed())?;
        Ok(Place { _permit: permit, _lease: lease })
    }

    async fn permit(&self, claim: Claim) -> RedisResult<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.session.exclusives).try_acquire_owned() {
            return Ok(permit);
        }
        let wait = self.session.exclusive_quota.wait(claim).map_err(refused)?;
        let waiting = Arc::clone(&self.session.exclusives).acquire_owned();
        let limit = self.session.link.acquire_timeout();
        let timed = self.session.runtime.spawn(async move { tokio::time::timeout(limit, waiting).await });
        match timed.await {
            Ok(Ok(Ok(permit))) => Ok(permit),
            Ok(Err(_elapsed)) => Err(refused(Error::Timeout(Arc::new(wait.timed_out(None))))),
            _ => Err(self.session.closed()),
        }
    }

    /// The shared connection, after waiting while it is being brought back.
    async fn shared(&self) -> RedisResult<Shared> {
        self.session.link.process.check().map_err(refused)?;
        if let Some(shared) = self.session.live_shared() {
            return Ok(shared);
        }
        self.session.link.ready().await.map_err(refused)?;
        self.session.live_shared().ok_or_else(|| self.session.closed())
    }

    /// Sends over the shared connection; once more where the answer is lost, all of this only reads, and the policy
    /// says so.
    async fn send<'a, T: Answer, C: Iterator<Item = &'a Cmd>, F: Future<Output = RedisResult<T>>>(
        &self,
        commands: impl Fn() -> C,
        send: impl Fn(MultiplexedConnection) -> F,
    ) -> RedisResult<T> {
        let link = &self.session.link;
        let mut again = link.repeat == Repeat::Idempotent && commands().all(reads);
        loop {
            let generation = again.then(|| link.generation());
            let Shared { connection, retired, .. } = self.shared().await?;
            let busy = link.busy(Work::Operation);
            match (send(connection).await, generation) {
                (Err(error), Some(generation)) if error.is_io_error() => {
                    // The end of one that is retired says nothing about the one in its place.
                    if !retired.is_cancelled() {
                        link.lost(generation, error);
                    }
                }
                (answer, _) => return self.session.answered(busy, answer, || unsafe_twice(commands())),
            }
            drop(busy);
            again = false;
            // Or the connection that is just being cut would be asked again.
            link.ready().await.map_err(refused)?;
        }
    }
}

impl Session {
    /// Opens one connection, whatever steps that takes, within the limit.
    pub(super) async fn in_time<T>(&self, opening: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        let limit = self.config.connect_timeout;
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}"));
        within(limit, opening).await.unwrap_or_else(|_elapsed| Err(late().into()))
    }

    /// Opens the shared connection of a new generation.
    async fn open_shared(&self) -> Result<(), Failure> {
        // The cut one stays in place until there is a connection to put under the new one.
        let switch = KillSwitch::new();
        let (connection, driver) = self.in_time(open(self, &switch)).await.map_err(|error| {
            let permanent = matches!(error.kind(), ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig)
                || matches!(error.code(), Some("NOAUTH" | "NOPERM" | "DENIED"))
                || tls::is_permanent(&error);
            let is_silent = error.is_io_error();
            let source = self.config.told(error);
            match (permanent, is_silent) {
                (true, _) => Failure::permanent(source),
                (_, true) => Failure::transient(source),
                _ => Failure::refused(source),
            }
        })?;
        *self.shared.write() = Some(self.drive(connection, driver, &switch));
        *self.switch.write() = switch;
        self.demotion.is_suspected.store(false, Ordering::Relaxed);
        self.threads.accept();
        Ok(())
    }

    /// Has the connection's driver run. Its end is a loss of the generation, unless the connection is retired by then.
    pub(super) fn drive(
        &self,
        connection: MultiplexedConnection,
        driver: BoxFuture<()>,
        switch: &KillSwitch,
    ) -> Shared {
        let retired = CancellationToken::new();
        let (link, switch, is_retired) = (self.link.clone(), switch.clone(), retired.clone());
        let generation = link.generation();
        let driver = tokio::spawn(async move {
            tokio::select! {
                () = driver => {
                    if !is_retired.is_cancelled() {
                        // First, so that nothing is asked of it from the moment in which it counts as lost.
                        switch.cut();
                        link.lost(generation, "the server closed the connection");
                    }
                }
                () = switch.wait() => {}
            }
        });
        Shared { connection, retired, driver: driver.abort_handle() }
    }

    fn live_shared(&self) -> Option<Shared> {
        if self.switch.read().is_cut() {
            return None;
        }
        self.shared.read().clone()
    }

    /// What the answer to a PING proves, or that there was none.
    fn judged(&self, answer: RedisResult<()>) -> Result<(), Failure> {
        let Err(error) = answer else {
            return match self.demotion.is_suspected.load(Ordering::Relaxed) {
                true => Err(Failure::limited(
                    "it is a replica, which answered READONLY to a command that changes something",
                )),
                false => Ok(()),
            };
        };
        let (is_silent, is_limited) = (error.is_io_error(), error.code() == Some("NOPERM"));
        let told = self.config.told(error);
        Err(match (is_silent, is_limited) {
            (true, _) => Failure::transient(told),
            (_, true) => Failure::limited(told),
            _ => Failure::refused(told),
        })
    }

    /// An answer ends the operation, be it an error of the server's. Without one it is given up: it is lost, or, where it
    /// changes something, nobody knows whether it ran.
    pub(super) fn answered<T: Answer>(
        &self,
        busy: Busy,
        answer: RedisResult<T>,
        unsafe_twice: impl FnOnce() -> Option<String>,
    ) -> RedisResult<T> {
        let error = match answer {
            Err(error) if error.is_io_error() => error,
            answer => {
                if is_readonly(&answer) {
                    self.look_for_master();
                }
                busy.done();
                return answer;
            }
        };
        // Before anything was sent.
        if let Some(Error::Forked) = Error::behind(&error) {
            return Err(error);
        }
        let lost = self.lost(error);
        Err(refused(match (unsafe_twice(), lost) {
            (Some(action), lost) => {
                let resource = Arc::clone(self.link.name());
                Error::OutcomeUnknown { resource, action, source: Arc::new(lost) }
            }
            (None, lost) => lost,
        }))
    }

    /// The error of a call that no harm comes of, as the connection went under it.
    fn lost(&self, error: impl Into<BoxError>) -> Error {
        let error = error.into();
        // The first is what the kill switch was thrown for.
        let source = match Error::behind(&*error).cloned().or_else(|| self.link.trouble()) {
            Some(known @ (Error::Lost { .. } | Error::Closing { .. } | Error::Closed { .. })) => return known,
            Some(known) => Arc::new(known) as Source,
            None => error.into(),
        };
        let (resource, endpoint) = (Arc::clone(self.link.name()), Arc::clone(self.link.endpoint()));
        Error::Lost { resource, endpoint, source }
    }

    /// The error of a call that found its connection gone, so that nothing was sent.
    pub(super) fn gone(&self, error: impl Into<BoxError>) -> Error {
        let resource = || Arc::clone(self.link.name());
        match self.link.slot.upgrade().map(|slot| slot.condition()) {
            None | Some(Condition { state: State::Closed, .. }) => Error::Closed { resource: resource() },
            Some(Condition { state: State::Draining, .. }) => Error::Closing { resource: resource() },
            Some(_) => self.lost(error),
        }
    }

    /// The driver's error of a call before which the connection went.
    pub(super) fn unsent(&self, error: RedisError) -> RedisError {
        if error.is_io_error() && Error::behind(&error).is_none() { refused(self.gone(error)) } else { error }
    }

    fn closed(&self) -> RedisError {
        refused(Error::Closed { resource: Arc::clone(self.link.name()) })
    }
}

/// The prober's question. Where there was a `READONLY`, whether it is a replica's is asked too.
async fn ask(session: &Session, connection: &mut MultiplexedConnection) -> RedisResult<()> {
    let answer = redis::cmd("PING").query_async::<()>(connection).await;
    if answer.is_ok() && session.demotion.is_suspected.load(Ordering::Relaxed) {
        let is_replica = is_replica(connection).await?;
        session.demotion.is_suspected.store(is_replica, Ordering::Relaxed);
    }
    answer
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("resource", self.session.link.name()).finish_non_exhaustive()
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
                Effect::Silences => Err(silenced()),
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
                    Effect::Silences => return Err(silenced()),
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
        self.session.config.db
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

/// How long closing waits for the drivers' tasks and sockets to go, which takes microseconds.
const LINGER: Duration = Duration::from_millis(500);
