//! Redis for threads. Each user has a connection of its own.

use std::fmt;
use std::sync::Arc;

use redis::{ConnectionLike, Msg, RedisResult, ToRedisArgs, Value};

use crate::base::error::Error;
use crate::kinds::redis::blocking_connection::{BlockingConnection, Manager};
use crate::kinds::redis::commands::{note_refusal, operation_packed};
use crate::kinds::redis::errors::Reply;
use crate::kinds::redis::resource::RedisResource;
use crate::lifecycle::acquire::{Acquirer, BlockingGuard};
use crate::lifecycle::busy::Busy;
use crate::lifecycle::checkout::{Adapted, Checkout};
use crate::lifecycle::lease::{Claim, Lease};
use crate::lifecycle::slot::Slot;
use crate::lifecycle::work::Work;

/// A connection of one's own, until it drops. Implements [`redis::ConnectionLike`], so every command and pipeline of
/// the `redis` crate works on it, blocking ones and `WATCH`/`MULTI` too, but not `CLIENT REPLY OFF` or `SKIP`.
///
/// A connection that is left in another state than it came in (in `MULTI` or `WATCH`, in another database, subscribed,
/// or with a command cut short) is closed instead of handed out again.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use resource_pool::{blocking::ResourcePool, redis::Commands};
///
/// let mut redis = ResourcePool::global().redis()?;
/// let () = redis.set_ex("signal:AAPL", "long", 300)?;
/// drop(redis); // the connection goes back
/// # Ok(()) }
/// ```
pub struct Redis {
    connection: Checkout<Adapted<Manager>>,
}

impl Redis {
    /// Lends the connection to a closure, and takes it back afterwards. Only this thread can free a lent connection. A
    /// wait for it on this thread therefore fails at once with [`Error::Deadlock`], not later by timeout. Example:
    /// `pool.redis()?.lend(|redis| redis.incr("trades", 1))`.
    pub fn lend<T>(mut self, run: impl FnOnce(&mut Lent<'_>) -> T) -> T {
        let _lending = self.connection.lease.quota.lend();
        run(&mut Lent(&mut self))
    }

    /// Closes the connection instead of giving it back, because its user knows that it is of no more use. Its place is
    /// free at once.
    pub fn discard(self) {
        self.connection.discard();
    }

    /// Subscribes to a channel, or to several. The messages come from the iterator, which ends with an error when the
    /// connection is lost or closed. Listening is no work, so closing does not wait for it.
    ///
    /// # Errors
    /// When the command cannot be sent.
    #[track_caller]
    pub fn subscribe(&mut self, channels: impl ToRedisArgs) -> RedisResult<Subscription<'_>> {
        self.listen(redis::cmd("SUBSCRIBE").arg(channels))
    }

    /// Subscribes to a pattern, or to several.
    ///
    /// # Errors
    /// When the command cannot be sent.
    #[track_caller]
    pub fn psubscribe(&mut self, patterns: impl ToRedisArgs) -> RedisResult<Subscription<'_>> {
        self.listen(redis::cmd("PSUBSCRIBE").arg(patterns))
    }

    /// Runs a call, and counts it as an operation that closing waits for.
    fn run<T: Reply>(
        &mut self,
        packed: &[u8],
        call: impl FnOnce(&mut BlockingConnection) -> RedisResult<T>,
    ) -> RedisResult<T> {
        match operation_packed(&self.connection.lease.link, packed) {
            None => self.counted(packed, call),
            Some(operation) => {
                let answer = operation.run_blocking(|| self.counted(packed, call));
                note_refusal(&operation, &answer);
                answer
            }
        }
    }

    fn counted<T: Reply>(
        &mut self,
        packed: &[u8],
        call: impl FnOnce(&mut BlockingConnection) -> RedisResult<T>,
    ) -> RedisResult<T> {
        if let Some(gone) = self.connection.gone() {
            return Err(gone);
        }
        let busy = Busy::new(Lease::activity(&self.connection.lease), Work::Operation);
        match self.connection.in_limit(packed, call) {
            Some(answer) => self.connection.answered(busy, answer, packed),
            None => Err(self.connection.late(packed)),
        }
    }

    /// Subscribes, and exchanges the lease for one that closing does not wait for.
    #[track_caller]
    fn listen(&mut self, command: &redis::Cmd) -> RedisResult<Subscription<'_>> {
        self.connection.subscribe(command).map_err(|error| self.connection.unsent(error))?;
        if let Some(lease) = self.connection.idle_lease(Claim::shared()) {
            self.connection.lease = lease;
        }
        Ok(Subscription { redis: self, ended: false })
    }
}

impl BlockingGuard<RedisResource> for Redis {
    fn acquire(pool: &Acquirer, slot: &Arc<Slot<RedisResource>>, claim: Claim) -> Result<Self, Error> {
        Ok(Redis { connection: pool.check_out_blocking(slot, slot.resource().quota, claim)? })
    }
}

/// A connection [lent](Redis::lend) to a closure. The closure can use it like its own, but cannot give it away.
#[derive(Debug)]
pub struct Lent<'a>(&'a mut Redis);

impl Lent<'_> {
    /// As [`Redis::subscribe`].
    ///
    /// # Errors
    /// When the command cannot be sent.
    #[track_caller]
    pub fn subscribe(&mut self, channels: impl ToRedisArgs) -> RedisResult<Subscription<'_>> {
        self.0.subscribe(channels)
    }

    /// As [`Redis::psubscribe`].
    ///
    /// # Errors
    /// When the command cannot be sent.
    #[track_caller]
    pub fn psubscribe(&mut self, patterns: impl ToRedisArgs) -> RedisResult<Subscription<'_>> {
        self.0.psubscribe(patterns)
    }
}

impl ConnectionLike for Redis {
    fn req_packed_command(&mut self, cmd: &[u8]) -> RedisResult<Value> {
        self.run(cmd, |connection| connection.req_packed_command(cmd))
    }

    fn req_packed_commands(&mut self, cmd: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        self.run(cmd, |connection| connection.req_packed_commands(cmd, offset, count))
    }

    fn get_db(&self) -> i64 {
        self.connection.get_db()
    }

    fn check_connection(&mut self) -> bool {
        self.connection.check_connection()
    }

    fn is_open(&self) -> bool {
        ConnectionLike::is_open(&*self.connection)
    }
}

impl ConnectionLike for Lent<'_> {
    fn req_packed_command(&mut self, cmd: &[u8]) -> RedisResult<Value> {
        self.0.req_packed_command(cmd)
    }

    fn req_packed_commands(&mut self, cmd: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        self.0.req_packed_commands(cmd, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.0.get_db()
    }

    fn check_connection(&mut self) -> bool {
        self.0.check_connection()
    }

    fn is_open(&self) -> bool {
        ConnectionLike::is_open(&*self.0)
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("lease", &self.connection.lease).finish_non_exhaustive()
    }
}

/// The messages of a subscription. Blocks for the next one; ends after an error.
#[derive(Debug)]
pub struct Subscription<'a> {
    redis: &'a mut Redis,
    ended: bool,
}

impl Iterator for Subscription<'_> {
    type Item = RedisResult<Msg>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            match self.redis.connection.receive() {
                // The confirmations of SUBSCRIBE are no messages.
                Ok(value) => match value.extract_error().map(Msg::from_owned_value) {
                    Ok(Some(message)) => return Some(Ok(message)),
                    Ok(None) => {}
                    Err(refused) => {
                        self.ended = true;
                        return Some(Err(refused));
                    }
                },
                Err(error) => {
                    self.ended = true;
                    return Some(Err(self.redis.connection.unsent(error)));
                }
            }
        }
        None
    }
}
