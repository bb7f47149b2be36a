//! RabbitMQ: a connection with pooled channels, one more for consumers, awaited confirms, and a topology that is declared again after a loss.
//!
//! An example follows. The blocking facade has the same verbs, without `await`, and its `consume` is an iterator.
//!
//! ```no_run
//! use resource_pool::ResourcePool;
//! use resource_pool::rabbitmq::{Consume, Exchange, Message, Queue};
//!
//! # async fn bars() -> Result<(), resource_pool::Error> {
//! let rabbit = ResourcePool::global().rabbitmq().await?;
//! rabbit.declare_exchange(Exchange::fanout("realtime_day_AAPL")).await?;
//! let queue = rabbit.declare_queue(Queue::temporary()).await?;
//! rabbit.bind(queue.name(), "realtime_day_AAPL", "").await?;
//!
//! let bars = (0..1000).map(|bar| Message::new("realtime_day_AAPL", "", format!("{{\"bar\":{bar}}}")));
//! let batch = rabbit.publish_batch(bars).await?;
//! assert_eq!(batch.confirmed(), 1000);
//!
//! let mut consumer = rabbit.consume(Consume::from(queue.name()).prefetch(200)).await?;
//! while let Some(delivery) = consumer.next().await {
//!     let delivery = delivery?;
//!     println!("{}", String::from_utf8_lossy(delivery.data()));
//!     delivery.ack().await?;
//! }
//! # Ok(()) }
//! ```
//!
//! The connection's stream is this crate's own and is under a kill switch. Every await of the driver is raced with that
//! switch and a limit, because the driver's futures may never resolve. This crate also recovers by itself: it makes a
//! new connection, replays the recorded topology, and subscribes the consumers again.

pub mod blocking;
mod channel;
mod channels;
mod config;
mod consumer;
mod consumer_task;
mod consuming;
mod declare;
mod delivery;
mod dial;
mod errors;
pub(crate) mod exports;
mod frame;
mod generation;
mod in_flight;
mod in_hand;
mod job_slots;
mod jobs;
mod message;
mod parts;
mod prober;
mod replay;
mod resource;
mod session;
mod stream;
mod together;
mod topology;
mod verbs;

pub use self::channel::Channel;
pub use self::config::RabbitMqConfig;
pub use self::consumer::{Consume, Consumer};
pub use self::declare::{DeclaredQueue, Exchange, Queue};
pub use self::delivery::Delivery;
pub use self::jobs::Handled;
pub use self::message::{Batch, HeaderValue, Message, Published};
pub use self::resource::RabbitMqResource;
pub use self::verbs::RabbitMq;
