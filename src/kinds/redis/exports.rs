//! The public names of the Redis kind.

/// The names at the crate's root.
pub(crate) mod root {
    pub use ::redis;

    pub use crate::kinds::redis::{Exclusive, PubSub, Redis, RedisResource};
}

/// The names in `resource_pool::blocking`.
pub(crate) mod threads {
    pub use crate::kinds::redis::blocking::{Lent, Redis, Subscription};
}
