//! One process-wide pool through which a program reaches MongoDB, RabbitMQ, ClickHouse and Redis.

// Without a backend there are only registered resources, which need less.
#![cfg_attr(
    not(any(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis")),
    allow(dead_code, unreachable_code, unused_mut)
)]
// How deep the auto traits are looked into, for the documentation: the drivers' types nest deeper than usual.
#![recursion_limit = "256"]

mod activity;
mod backend;
pub mod blocking;
mod builder;
#[cfg(feature = "r2d2")]
mod checkout;
mod clock;
mod close;
pub mod config;
mod error;
mod exit;
mod global;
mod health;
mod leak;
mod lease;
mod life;
#[cfg(model)]
#[doc(hidden)]
pub mod model;
mod owner;
mod pool;
mod probe;
mod registry;
mod repeat;
mod resource;
mod retry;
mod runtime;
mod scoped;
mod slot;
mod status;
mod sync;
mod tls;
mod user_ping;
mod verbs;
#[cfg(any(feature = "rabbitmq", feature = "r2d2"))]
mod wait;

#[cfg(feature = "clickhouse")]
pub use backend::clickhouse::{ClickHouse, ClickHouseResource, Inserter};
#[cfg(feature = "mongodb")]
pub use backend::mongo::{Mongo, MongoResource};
#[cfg(feature = "r2d2")]
pub use backend::r2d2::{Connections, R2d2};
#[cfg(feature = "rabbitmq")]
pub use backend::rabbitmq::{RabbitMq, RabbitMqResource};
#[cfg(feature = "redis")]
pub use backend::redis::{Exclusive, PubSub, Redis, RedisResource};
pub use builder::Builder;
pub use close::{CloseReport, Closing, Outcome, Phase, Reason, StepReport};
pub use error::{BoxError, ConnectError, DeadlockError, Error, Failure, Source, TimeoutError, Waiter};
#[cfg(feature = "clickhouse")]
pub use global::clickhouse;
#[cfg(feature = "mongodb")]
pub use global::mongo;
#[cfg(feature = "rabbitmq")]
pub use global::rabbitmq;
#[cfg(feature = "redis")]
pub use global::redis;
pub use global::run;
pub use health::{Criticality, Health, HealthEntry, HealthReport};
pub use lease::{Holder, Lease};
pub use owner::Owner;
pub use pool::{ResourcePool, WarmUp};
pub use probe::{Guarded, KillSwitch, Killable};
pub use resource::{Busy, Link, Resource, Work};
pub use scoped::Scoped;
pub use status::{PoolStatus, ResourceStatus, State, Usage};

#[cfg(feature = "clickhouse")]
pub use ::clickhouse;
#[cfg(feature = "rabbitmq")]
pub use ::lapin;
#[cfg(feature = "mongodb")]
pub use ::mongodb;
#[cfg(feature = "r2d2")]
pub use ::r2d2;
#[cfg(feature = "redis")]
pub use ::redis;

/// What the verbs of [`RabbitMq`] take and give.
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq {
    pub use crate::backend::rabbitmq::{
        Batch, Channel, Consume, Consumer, DeclaredQueue, Delivery, Exchange, Message, Published, Queue,
    };
}

/// The Rust in the guide and in the README compiles.
#[cfg(all(doctest, feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
mod documents {
    #[doc = include_str!("../RESOURCE_MANAGER.md")]
    mod guide {}
    #[doc = include_str!("../README.md")]
    mod readme {}
}
