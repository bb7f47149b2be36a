//! The handle of a Redis for async code. Its commands share one connection.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use redis::aio::ConnectionLike;
use redis::{Cmd, Pipeline, RedisFuture, RedisResult, Value};

use crate::base::repeat::Repeat;
use crate::kinds::redis::blocking_connection::Manager;
use crate::kinds::redis::command_senders::CommandSender;
use crate::kinds::redis::commands::{
    CommandEffect, first_name, in_span, not_shared, operation, reads, silenced, unsafe_twice,
};
use crate::kinds::redis::connection::{RedisConnection, open_stream, taken_in};
use crate::kinds::redis::errors::{Reply, refused};
use crate::kinds::redis::exclusive::Exclusive;
use crate::kinds::redis::pubsub::PubSub;
use crate::kinds::redis::session::RedisSession;
use crate::lifecycle::checkout::{Adapted, Checkouts};
use crate::lifecycle::lease::{Claim, Lease, LeaseAs};
use crate::lifecycle::work::Work;

/// A Redis for async code. Cheap to clone; implements [`redis::aio::ConnectionLike`], so every command and pipeline of
/// the `redis` crate works on it.
///
/// Commands share one connection. After a loss the pool brings it back, and [`Repeat`] says which commands then wait or
/// are sent again. A command that was in flight fails. [`Error::behind`](crate::Error::behind) the driver's error is
/// [`Error::OutcomeUnknown`](crate::Error::OutcomeUnknown) if the command may have changed something, else
/// [`Error::Lost`](crate::Error::Lost). Commands that would block the others (`BLPOP`, `XREAD BLOCK`, …) run on a
/// connection of their own. Two groups are refused: commands that would change the connection for the others (`SELECT`,
/// a bare `MULTI`, `WATCH`, `SUBSCRIBE`, …), and `WAIT`, which is about the writes of its own connection. Use
/// [`exclusive`](Redis::exclusive) or [`pubsub`](Redis::pubsub) for them. Neither takes `CLIENT REPLY OFF` or `SKIP`.
///
/// # Cancel safety
/// Dropping a command's future leaves the connection in order; the command may still run. A blocking command that is
/// dropped, such as `BLPOP`, may take its item with it.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use resource_pool::{ResourcePool, redis::AsyncCommands};
///
/// let mut redis = ResourcePool::global().redis().await?.clone();
/// let () = redis.set_ex("signal:AAPL", "long", 300).await?;
/// let order: Option<(String, String)> = redis.blpop("orders", 1.0).await?; // on a connection of its own
/// # let _ = order;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Redis {
    pub(super) session: Arc<RedisSession>,
}

impl LeaseAs<Checkouts<Adapted<Manager>>> for Redis {
    fn lease_as(&self) -> &Checkouts<Adapted<Manager>> {
        &self.session.threads
    }
}

impl Redis {
    /// A connection of one's own, for `WATCH`/`MULTI`, `SELECT` and blocking commands. At most
    /// [`exclusive_size`](crate::config::RedisConfig::exclusive_size) are open at a time. Each closes when it drops.
    ///
    /// # Errors
    /// When no connection can be made, or none is free within the acquire timeout.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    #[track_caller]
    pub fn exclusive(&self) -> impl Future<Output = RedisResult<Exclusive>> + Send + use<> {
        let (session, claim) = (Arc::clone(&self.session), Claim::shared());
        async move {
            let open =
                |session: Arc<RedisSession>, switch| async move { RedisConnection::open(&session, &switch).await };
            let (own, place) = session.open_own(session.exclusive_quota.claim(claim), open).await?;
            Ok(Exclusive { own, session, _place: place })
        }
    }

    /// A connection for subscribing to channels and patterns. It counts as an exclusive one. Listening is no work, so
    /// closing does not wait for it and ends its messages.
    ///
    /// # Errors
    /// As [`exclusive`](Redis::exclusive).
    ///
    /// # Cancel safety
    /// Cancel-safe.
    #[track_caller]
    pub fn pubsub(&self) -> impl Future<Output = RedisResult<PubSub>> + Send + use<> {
        let (session, claim) = (Arc::clone(&self.session), Claim::shared());
        async move {
            let open = |session: Arc<RedisSession>, switch| async move {
                redis::aio::PubSub::new(&taken_in(), open_stream(&session, &switch).await?).await
            };
            let (pubsub, place) = session.open_own(session.exclusive_quota.idle_claim(claim), open).await?;
            Ok(PubSub { pubsub, session, _place: place })
        }
    }

    /// The future of these commands, in a span of theirs if the pool traces operations.
    fn traced<'a, T: Reply + 'a, C: Iterator<Item = &'a Cmd>>(
        &self,
        commands: impl Fn() -> C,
        sent: impl Future<Output = RedisResult<T>> + Send + 'a,
    ) -> RedisFuture<'a, T> {
        match operation(&self.session.link, commands) {
            None => Box::pin(sent),
            Some(operation) => Box::pin(in_span(operation, sent)),
        }
    }

    async fn command(&self, cmd: &Cmd) -> RedisResult<Value> {
        match CommandEffect::of(cmd) {
            CommandEffect::None => {
                let send = |mut sender: CommandSender| async move {
                    let CommandSender { connection, shared, .. } = &mut sender;
                    let answer = shared.end.answer(connection.send_packed_command(cmd)).await;
                    (sender, answer)
                };
                self.send(|| [cmd].into_iter(), send).await
            }
            CommandEffect::Blocks => self.exclusive().await?.command(cmd).await,
            CommandEffect::Changes(name) => Err(not_shared(&name)),
            CommandEffect::Silences => Err(silenced()),
        }
    }

    async fn pipeline(&self, pipeline: &Pipeline, offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        let mut blocks = false;
        for cmd in pipeline.cmd_iter() {
            match CommandEffect::of(cmd) {
                CommandEffect::None => {}
                CommandEffect::Blocks => blocks = true,
                CommandEffect::Changes(name) => return Err(not_shared(&name)),
                CommandEffect::Silences => return Err(silenced()),
            }
        }
        if blocks {
            return self.exclusive().await?.pipeline(pipeline, offset, count).await;
        }
        let send = |mut sender: CommandSender| async move {
            let CommandSender { connection, shared, .. } = &mut sender;
            let answer = shared.end.answer(connection.send_packed_commands(pipeline, offset, count)).await;
            (sender, answer)
        };
        self.send(|| pipeline.cmd_iter(), send).await
    }

    /// A sender of the shared connection. Waits while that is being brought back.
    async fn sender(&self) -> RedisResult<CommandSender> {
        let link = &self.session.link;
        link.check_process().map_err(refused)?;
        if let Some(sender) = self.session.senders.take() {
            return Ok(sender);
        }
        let shared = match self.session.live_shared() {
            Some(shared) => shared,
            None => {
                link.ready().await.map_err(refused)?;
                self.session.live_shared().ok_or_else(|| self.session.closed())?
            }
        };
        let (connection, busy) = (shared.connection.clone(), link.not_yet_busy(Work::Operation));
        Ok(CommandSender { connection, shared, busy })
    }

    /// Sends over the shared connection. Sends once more if the reply is lost, all commands only read, and the policy
    /// allows it.
    async fn send<'a, T: Reply, C: Iterator<Item = &'a Cmd>, F: Future<Output = (CommandSender, RedisResult<T>)>>(
        &self,
        commands: impl Fn() -> C,
        send: impl Fn(CommandSender) -> F,
    ) -> RedisResult<T> {
        let link = &self.session.link;
        let mut again = link.repeat() == Repeat::Idempotent && commands().all(reads);
        loop {
            let mut sender = self.sender().await?;
            sender.busy.add(1);
            let Some((mut sender, answer)) = self.session.in_limit(pin!(send(sender)), || false).await else {
                return Err(self.session.late(&first_name(commands()), unsafe_twice(commands())));
            };
            match answer {
                Err(error) if again && error.is_io_error() => {
                    // The end of a retired connection says nothing about the connection that replaced it.
                    if !sender.shared.is_retired() {
                        link.lost(sender.shared.generation, error);
                    }
                }
                answer => {
                    let answer = self.session.answered(&mut sender.busy, answer, || unsafe_twice(commands()));
                    if sender.busy.is_over() {
                        self.session.senders.put(sender);
                    }
                    return answer;
                }
            }
            // A retired connection ends once nobody has it.
            drop(sender);
            again = false;
            // Without this wait the second attempt would use the connection that is just being cut.
            link.ready().await.map_err(refused)?;
            link.repeated("reading");
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
        self.traced(|| [cmd].into_iter(), self.command(cmd))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.traced(|| pipeline.cmd_iter(), self.pipeline(pipeline, offset, count))
    }

    fn get_db(&self) -> i64 {
        self.session.config.db
    }
}

impl ConnectionLike for Lease<Redis> {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        self.traced(|| [cmd].into_iter(), self.command(cmd))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.traced(|| pipeline.cmd_iter(), self.pipeline(pipeline, offset, count))
    }

    fn get_db(&self) -> i64 {
        Redis::get_db(self)
    }
}
