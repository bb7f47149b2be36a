//! A subscribed connection for async code.

use std::fmt;
use std::ops::{Deref, DerefMut};
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
    /// When the server refuses it, or the connection is lost.
    ///
    /// # Cancel safety
    /// The subscription may still begin.
    pub async fn subscribe(&mut self, channels: impl ToRedisArgs) -> RedisResult<()> {
        self.pubsub.subscribe(channels).await.map_err(|error| self.session.unsent(error))
    }

    /// Ends the subscription to a channel, or to several.
    ///
    /// # Errors
    /// When the server refuses it, or the connection is lost.
    ///
    /// # Cancel safety
    /// The subscription may still end.
    pub async fn unsubscribe(&mut self, channels: impl ToRedisArgs) -> RedisResult<()> {
        self.pubsub.unsubscribe(channels).await.map_err(|error| self.session.unsent(error))
    }

    /// Subscribes to a pattern, or to several.
    ///
    /// # Errors
    /// When the server refuses it, or the connection is lost.
    ///
    /// # Cancel safety
    /// The subscription may still begin.
    pub async fn psubscribe(&mut self, patterns: impl ToRedisArgs) -> RedisResult<()> {
        self.pubsub.psubscribe(patterns).await.map_err(|error| self.session.unsent(error))
    }

    /// Ends the subscription to a pattern, or to several.
    ///
    /// # Errors
    /// When the server refuses it, or the connection is lost.
    ///
    /// # Cancel safety
    /// The subscription may still end.
    pub async fn punsubscribe(&mut self, patterns: impl ToRedisArgs) -> RedisResult<()> {
        self.pubsub.punsubscribe(patterns).await.map_err(|error| self.session.unsent(error))
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
