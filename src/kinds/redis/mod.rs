//! Redis: one multiplexed connection for async code, connections checked out one by one for threads.
//!
//! The crate opens all streams itself, and puts them under one kill switch per generation. A frozen server therefore
//! ends every call in flight, blocking calls included, without any limit on slow commands.

pub(crate) mod blocking;
mod blocking_connection;
mod client;
mod command_senders;
mod commands;
mod config;
mod connection;
mod demotion;
mod driver_end;
mod errors;
mod exclusive;
pub(crate) mod exports;
mod greeting;
mod on_connect;
mod packed;
mod prober;
mod pubsub;
mod refresh;
mod resource;
mod session;
mod socket_url;

pub use self::client::Redis;
pub use self::config::RedisConfig;
pub use self::exclusive::Exclusive;
pub use self::pubsub::PubSub;
pub use self::resource::RedisResource;
