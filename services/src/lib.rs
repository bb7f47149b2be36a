//! Real private servers for tests, benches and the demo. A test can start them in parallel, kill, freeze, and stop
//! them, and restart them on the same port.
//!
//! A [`Service`] is one server in a folder of its own below `target/services/`. It is protected by a user name and a
//! password full of characters that an URL must escape. It dies with the process that started it, and its folder is
//! removed with it.
//!
//! ```no_run
//! # fn main() -> Result<(), services::Error> {
//! use services::{Kind, Service};
//! let redis = Service::start(Kind::Redis)?;
//! println!("{}", redis.url());
//! redis.freeze()?; // SIGSTOP
//! redis.thaw()?;
//! redis.kill()?; // SIGKILL
//! redis.restart()?; // same port, same data
//! # Ok(()) }
//! ```
//!
//! Tests that do not harm the server use [`shared`] instead.

mod address;
mod amqp;
mod black_hole;
mod bridge;
mod chroma;
mod clickhouse;
mod descriptors;
mod elastic;
mod error;
mod folder;
mod install;
mod kind;
mod milvus;
mod mongo;
mod mysql;
mod nobody;
mod pgvector;
mod port;
mod postgres;
mod process;
mod prometheus;
mod proxy;
mod rabbitmq;
mod redis;
mod server;
mod service;
mod shared;
mod tls;
mod web;

pub use amqp::AmqpFrame;
pub use black_hole::BlackHole;
pub use bridge::ClickHouseBridge;
pub use clickhouse::View as ClickHouseView;
pub use descriptors::NoDescriptors;
pub use elastic::View as ElasticView;
pub use error::Error;
pub use install::install;
pub use kind::Kind;
pub use mongo::{Client as MongoClient, View as MongoView};
pub use mysql::View as MySqlView;
pub use pgvector::PgVector;
pub use postgres::View as PostgresView;
pub use prometheus::{Prometheus, promtool};
pub use proxy::{Client, End, Proxy};
pub use rabbitmq::{Connection as AmqpConnection, Queue as AmqpQueue, View as RabbitMqView};
pub use redis::{Client as RedisClient, Connection as RedisConnection, View as RedisView};
pub use service::Service;
pub use shared::shared;
pub use tls::Tls;
