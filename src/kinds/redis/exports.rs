//! The names of Redis that users see.

/// Those at the crate's root.
pub(crate) mod root {
    pub use ::redis;

    pub use crate::kinds::redis::{Exclusive, PubSub, Redis, RedisResource};
}

/// Those in `resource_pool::blocking`.
pub(crate) mod threads {
    pub use crate::kinds::redis::blocking::{Lent, Redis, Subscription};
}
