//! Exclusive connections for async code, and the permits that limit their number.
//!
//! `Redis::exclusive` and `Redis::pubsub` call `RedisSession::open_own`. It first takes a permit of the semaphore
//! `exclusives`, then waits for readiness, then opens the connection. The wait for a permit and the opening run as
//! tasks on the pool's runtime, so the caller may be polled elsewhere.
//!
//! Invariant: a permit is released only after its connection drops or its opening has ended. The opening task therefore
//! owns the `ExclusivePlace` until it returns both. No lock is held across these steps.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use redis::aio::ConnectionLike;
use redis::{Cmd, Pipeline, RedisFuture, RedisResult, Value};
use tokio::sync::OwnedSemaphorePermit;

use crate::base::process::ForkGuarded;
use crate::kinds::redis::client::Redis;
use crate::kinds::redis::commands::{first_name, in_span, operation, silenced, silences, unsafe_twice, waits};
use crate::kinds::redis::connection::RedisConnection;
use crate::kinds::redis::errors::{ended, refused};
use crate::kinds::redis::resource::RedisResource;
use crate::kinds::redis::session::RedisSession;
use crate::lifecycle::lease::{Claim, Lease};
use crate::lifecycle::work::Work;
use crate::net::kill_switch::KillSwitch;

/// An async connection of one's own. It takes all commands but `CLIENT REPLY OFF` and `SKIP`, and closes when it drops.
pub struct Exclusive {
    pub(super) own: ForkGuarded<RedisConnection>,
    pub(super) session: Arc<RedisSession>,
    pub(super) _place: ForkGuarded<ExclusivePlace>,
}

impl Exclusive {
    /// Checks whether these commands can be sent.
    fn check<'a>(&self, commands: impl IntoIterator<Item = &'a Cmd>) -> RedisResult<()> {
        self.session.link.check_process().map_err(refused)?;
        if commands.into_iter().any(silences) {
            return Err(silenced());
        }
        if self.own.is_gone() { Err(refused(self.session.gone(ended(&self.own.switch)))) } else { Ok(()) }
    }

    pub(super) async fn command(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        self.check([cmd])?;
        let mut busy = self.session.link.busy(Work::Operation);
        let RedisConnection { connection, end, .. } = &mut *self.own;
        let mut answer = pin!(end.answer(connection.req_packed_command(cmd)));
        match self.session.in_limit(answer.as_mut(), || waits([cmd])).await {
            Some(answer) => self.session.answered(&mut busy, answer, || unsafe_twice([cmd])),
            None => Err(self.session.late(&first_name([cmd]), unsafe_twice([cmd]))),
        }
    }

    pub(super) async fn pipeline(
        &mut self,
        pipeline: &Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        self.check(pipeline.cmd_iter())?;
        let mut busy = self.session.link.busy(Work::Operation);
        let RedisConnection { connection, end, .. } = &mut *self.own;
        let mut answer = pin!(end.answer(connection.req_packed_commands(pipeline, offset, count)));
        match self.session.in_limit(answer.as_mut(), || waits(pipeline.cmd_iter())).await {
            Some(answer) => self.session.answered(&mut busy, answer, || unsafe_twice(pipeline.cmd_iter())),
            None => Err(self.session.late(&first_name(pipeline.cmd_iter()), unsafe_twice(pipeline.cmd_iter()))),
        }
    }
}

impl ConnectionLike for Exclusive {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match operation(&self.session.link, || [cmd].into_iter()) {
            None => Box::pin(self.command(cmd)),
            Some(operation) => Box::pin(in_span(operation, self.command(cmd))),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match operation(&self.session.link, || pipeline.cmd_iter()) {
            None => Box::pin(self.pipeline(pipeline, offset, count)),
            Some(operation) => Box::pin(in_span(operation, self.pipeline(pipeline, offset, count))),
        }
    }

    fn get_db(&self) -> i64 {
        self.session.config.db
    }
}

impl fmt::Debug for Exclusive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exclusive").field("resource", self.session.link.name()).finish_non_exhaustive()
    }
}

/// One permit for an exclusive connection, and the lease that lists its holder.
pub(super) struct ExclusivePlace {
    _permit: OwnedSemaphorePermit,
    _lease: Lease<Redis>,
}

impl RedisSession {
    /// Waits for a permit, opens an exclusive connection, and returns both.
    pub(super) async fn open_own<T: Send + 'static, F: Future<Output = RedisResult<T>> + Send + 'static>(
        self: &Arc<Self>,
        claim: Claim,
        open: impl FnOnce(Arc<RedisSession>, KillSwitch) -> F,
    ) -> RedisResult<(ForkGuarded<T>, ForkGuarded<ExclusivePlace>)> {
        let place = ExclusivePlace::take(self, claim).await?;
        let (session, switch) = (Arc::clone(self), self.switch.read().clone());
        let opening = open(Arc::clone(&session), switch);
        // The task owns the place. If the caller stops waiting, the permit stays taken until the opening has ended.
        let opening = self.runtime.spawn(async move { (session.in_time(opening).await, place) });
        let Ok((own, place)) = opening.await else { return Err(self.closed()) };
        Ok((ForkGuarded::new(own.map_err(|error| self.unsent(error))?), ForkGuarded::new(place)))
    }
}

impl ExclusivePlace {
    /// Waits for a permit, and then until the server can be reached.
    async fn take(session: &RedisSession, claim: Claim) -> RedisResult<Self> {
        session.link.check_process().map_err(refused)?;
        let permit = ExclusivePlace::permit(session, claim).await?;
        session.link.ready().await.map_err(refused)?;
        let lease = session.link.lease::<RedisResource, Redis>(claim).ok_or_else(|| session.closed())?;
        Ok(ExclusivePlace { _permit: permit, _lease: lease })
    }

    /// Takes a permit. Waits up to the acquire timeout if none is free.
    async fn permit(session: &RedisSession, claim: Claim) -> RedisResult<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&session.exclusives).try_acquire_owned() {
            return Ok(permit);
        }
        let wait = session.exclusive_quota.wait(claim).map_err(refused)?;
        let waiting = Arc::clone(&session.exclusives).acquire_owned();
        let limit = session.link.acquire_timeout();
        let timed = session.runtime.spawn(async move { tokio::time::timeout(limit, waiting).await });
        match timed.await {
            Ok(Ok(Ok(permit))) => Ok(permit),
            Ok(Err(_elapsed)) => Err(refused(wait.timed_out("", None, None))),
            _ => Err(session.closed()),
        }
    }
}
