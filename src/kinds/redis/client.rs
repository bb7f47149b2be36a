//! A Redis for async code, whose commands share one connection.

use std::fmt;
use std::sync::Arc;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Pipeline, RedisFuture, RedisResult, Value};
use tokio::sync::OwnedSemaphorePermit;

use crate::base::error::Error;
use crate::base::process::Ours;
use crate::base::repeat::Repeat;
use crate::kinds::redis::commands::{Effect, not_shared, reads, silenced, unsafe_twice};
use crate::kinds::redis::connection::{Connection, open_stream, taken_in};
use crate::kinds::redis::errors::{Answer, refused};
use crate::kinds::redis::exclusive::{Exclusive, Place};
use crate::kinds::redis::pubsub::PubSub;
use crate::kinds::redis::resource::RedisResource;
use crate::kinds::redis::session::{Session, Shared};
use crate::kinds::redis::wire::Manager;
use crate::lifecycle::checkout::Checkouts;
use crate::lifecycle::lease::{Claim, Lease, Provide};
use crate::lifecycle::work::Work;
use crate::net::kill_switch::KillSwitch;

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
    pub(super) session: Arc<Session>,
}

impl Provide<Checkouts<Manager>> for Redis {
    fn provide(&self) -> &Checkouts<Manager> {
        &self.session.threads
    }
}

impl Redis {
    /// A connection of one's own, for `WATCH`/`MULTI`, `SELECT` and blocking commands. At most
    /// [`exclusive_size`](crate::config::RedisConfig::exclusive_size) at a time; closed when it drops.
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
