//! The prober's questions. They use a connection of their own, or the shared one if no further connection can be
//! opened.
//!
//! The prober and the health checks call `ping`. The lock of `probe` lets one ping at a time use the connection, and it
//! is held while that connection is asked. A ping takes the connection out of `probe`, so a ping that is cancelled
//! drops its connection. Closing stores `is_closed` before it takes this lock, so no ping opens a connection
//! afterwards.

use std::sync::atomic::Ordering;

use redis::aio::MultiplexedConnection;
use redis::{RedisError, RedisResult};

use crate::base::error::Failure;
use crate::kinds::redis::connection::RedisConnection;
use crate::kinds::redis::demotion::is_replica;
use crate::kinds::redis::session::RedisSession;
use crate::net::kill_switch::KillSwitch;

/// Sends a `PING`. After a `READONLY` it also asks whether the server is a replica. Relaxed suffices for that flag,
/// because it publishes no other data.
async fn ask(session: &RedisSession, connection: &mut MultiplexedConnection) -> RedisResult<()> {
    let answer = redis::cmd("PING").query_async::<()>(connection).await;
    if answer.is_ok() && session.demotion.is_suspected.load(Ordering::Relaxed) {
        let is_replica = is_replica(connection).await?;
        session.demotion.is_suspected.store(is_replica, Ordering::Relaxed);
    }
    answer
}

impl RedisSession {
    /// Asks the server for a sign of life. The lock lets one ping at a time use the prober's connection.
    pub(super) async fn ping(&self) -> Result<(), Failure> {
        let mut probe = self.probe.lock().await;
        if self.is_closed.load(Ordering::Acquire) {
            return Err(Failure::unasked("it is closed"));
        }
        // The connection is taken out while in use, so a cancelled ping drops it.
        if let Some(mut own) = probe.take() {
            let answer = ask(self, &mut own.connection).await;
            // The end of this connection says nothing about the others.
            if !answer.as_ref().is_err_and(RedisError::is_io_error) {
                *probe = Some(own);
                return self.judged(answer);
            }
        }
        match self.in_time(RedisConnection::open(self, &KillSwitch::new())).await {
            Ok(mut own) => {
                let answer = ask(self, &mut own.connection).await;
                *probe = Some(own);
                self.judged(answer)
            }
            // A server without room for one more connection says nothing about the other connections either.
            Err(error) => {
                drop(probe);
                match self.live_shared() {
                    Some(shared) => self.judged(ask(self, &mut shared.connection.clone()).await),
                    // The shared connection has ended too, though its loss may not be reported yet.
                    None => Err(Failure::transient(self.config.told(error))),
                }
            }
        }
    }

    /// Turns the reply to a `PING`, or its absence, into the result of the ping.
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
}
