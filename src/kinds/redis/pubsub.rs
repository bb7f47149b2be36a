//! A subscribed connection for async code.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::sync::Arc;

use redis::{RedisResult, ToRedisArgs};

use crate::base::process::ForkGuarded;
use crate::kinds::redis::exclusive::ExclusivePlace;
use crate::kinds::redis::session::RedisSession;

/// A subscribed connection; derefs to [`redis::aio::PubSub`]. Its messages end when the connection is lost.
pub struct PubSub {
    pub(super) pubsub: ForkGuarded<redis::aio::PubSub>,
    pub(super) session: Arc<RedisSession>,
    pub(super) _place: ForkGuarded<ExclusivePlace>,
}

/// The driver's methods, with one difference: [`Error::behind`](crate::Error::behind) an error is the reason why the
/// connection is gone.
impl PubSub {
    /// Subscribes to a channel, or to several.
    ///
    /// # Errors
    /// When the server refuses it, the connection is lost, or the operation timeout passes.
    ///
    /// # Cancel safety
    /// The subscription may still begin.
    pub async fn subscribe(&mut self, channels: impl ToRedisArgs) -> RedisResult<()> {
        confirmed(&self.session, "SUBSCRIBE", self.pubsub.subscribe(channels)).await
    }

    /// Ends the subscription to a channel, or to several.
    ///
    /// # Errors
    /// When the server refuses it, the connection is lost, or the operation timeout passes.
    ///
    /// # Cancel safety
    /// The subscription may still end.
    pub async fn unsubscribe(&mut self, channels: impl ToRedisArgs) -> RedisResult<()> {
        confirmed(&self.session, "UNSUBSCRIBE", self.pubsub.unsubscribe(channels)).await
    }

    /// Subscribes to a pattern, or to several.
    ///
    /// # Errors
    /// When the server refuses it, the connection is lost, or the operation timeout passes.
    ///
    /// # Cancel safety
    /// The subscription may still begin.
    pub async fn psubscribe(&mut self, patterns: impl ToRedisArgs) -> RedisResult<()> {
        confirmed(&self.session, "PSUBSCRIBE", self.pubsub.psubscribe(patterns)).await
    }

    /// Ends the subscription to a pattern, or to several.
    ///
    /// # Errors
    /// When the server refuses it, the connection is lost, or the operation timeout passes.
    ///
    /// # Cancel safety
    /// The subscription may still end.
    pub async fn punsubscribe(&mut self, patterns: impl ToRedisArgs) -> RedisResult<()> {
        confirmed(&self.session, "PUNSUBSCRIBE", self.pubsub.punsubscribe(patterns)).await
    }
}

/// Awaits the server's confirmation.
async fn confirmed(
    session: &RedisSession,
    command: &str,
    answer: impl Future<Output = RedisResult<()>>,
) -> RedisResult<()> {
    match session.in_limit(pin!(answer), || false).await {
        Some(answer) => answer.map_err(|error| session.unsent(error)),
        None => Err(session.late(command, None)),
    }
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
