//! RabbitMQ on both facades, against real servers.

#![cfg(feature = "rabbitmq")]
#![allow(missing_docs)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Within, until, until_async};
use lapin::options::{BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Confirmation, ConnectionProperties};
use resource_pool::config::{Options, RabbitMqConfig};
use resource_pool::rabbitmq::{Consume, Exchange, Message, Published, Queue};
use resource_pool::{Error, Health, Outcome, RabbitMq, ResourcePool, State, Work, blocking};
use services::{BlackHole, Kind, Proxy, Service, shared};

/// A frozen broker must show as an error within this.
const FROZEN: Duration = Duration::from_secs(5);

/// The broker of all tests that do it no harm.
fn server() -> &'static Service {
    shared(Kind::RabbitMq)
}

/// One to kill and freeze.
fn own_server() -> Service {
    Service::start(Kind::RabbitMq).expect("a RabbitMQ")
}

fn pool_of(config: RabbitMqConfig) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).resource(config).build().expect("a pool")
}

fn pool(server: &Service) -> ResourcePool {
    pool_of(RabbitMqConfig::url(server.url()))
}

/// A name that no other test uses.
fn unique(what: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("test-{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_async_publishes_gets_consumes_and_closes() {
    let pool = pool(server());
    assert_eq!(pool.status().resource("rabbitmq").unwrap().state, State::Idle);
    let rabbit = pool.rabbitmq().await.unwrap();
    let exchange = unique("bars");
    rabbit.declare_exchange(Exchange::topic(&exchange).transient().auto_delete()).await.unwrap();
    let queue = rabbit.declare_queue(Queue::temporary()).await.unwrap();
    rabbit.bind(queue.name(), &exchange, "stock.*.day").await.unwrap();

    let published = rabbit.publish(Message::new(&exchange, "stock.AAPL.day", "one")).await.unwrap();
    assert_eq!(published, Published::Confirmed);
    let lost = rabbit.publish(Message::new(&exchange, "nobody", "two")).await.unwrap();
    assert!(matches!(lost, Published::Returned { code: 312, .. }), "{lost:?}");
    let ignored = rabbit.publish(Message::new(&exchange, "nobody", "two").optional()).await.unwrap();
    assert!(ignored.is_confirmed());

    let delivery = rabbit.get(queue.name()).await.unwrap().unwrap();
    assert_eq!((delivery.data(), delivery.routing_key()), (&b"one"[..], "stock.AAPL.day"));
    assert_eq!((delivery.exchange(), delivery.redelivered()), (exchange.as_str(), false));
    assert_eq!(pool.holders().iter().filter(|holder| holder.exclusive).count(), 1);
    delivery.requeue().await.unwrap();
    let delivery = rabbit.get(queue.name()).await.unwrap().unwrap();
    assert!(delivery.redelivered());
    delivery.ack().await.unwrap();
    assert!(rabbit.get(queue.name()).await.unwrap().is_none());

    let batch = (0..2000).map(|n| Message::new(&exchange, if n % 10 == 3 { "nobody" } else { "stock.IBM.day" }, n.to_string()));
    let batch = rabbit.publish_batch(batch).await.unwrap();
    assert_eq!((batch.confirmed(), batch.unknown(), batch.results().len()), (1800, 0, 2000));
    for (n, result) in batch.results().iter().enumerate() {
        assert_eq!(matches!(result, Ok(Published::Returned { code: 312, .. })), n % 10 == 3, "{n}: {result:?}");
    }

    let mut consumer = rabbit.consume(Consume::from(queue.name()).prefetch(50)).await.unwrap();
    for n in (0..2000).filter(|n| n % 10 != 3) {
        let delivery = consumer.next().within(FROZEN).await.unwrap().unwrap();
        assert_eq!(delivery.data(), n.to_string().as_bytes());
        delivery.ack().await.unwrap();
    }
    assert_eq!(pool.health_check().await.entry("rabbitmq").unwrap().health, Health::Pass);
    let started = Instant::now();
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    assert!(started.elapsed() < Duration::from_secs(3), "{report}");
    assert!(consumer.next().within(FROZEN).await.is_none());
    let closed = rabbit.publish(Message::new(&exchange, "", "late")).await.unwrap_err();
    assert!(closed.is_closed(), "{closed}");
    assert!(matches!(pool.rabbitmq().await, Err(Error::Closed { .. })));
}

#[test]
fn rabbitmq_blocking_publishes_gets_consumes_and_closes() {
    let pool = blocking::ResourcePool::from(pool(server()));
    let rabbit = pool.rabbitmq().unwrap();
    let exchange = unique("bars");
    rabbit.declare_exchange(Exchange::fanout(&exchange).auto_delete()).unwrap();
    let queue = rabbit.declare_queue(Queue::temporary()).unwrap();
    rabbit.bind(queue.name(), &exchange, "").unwrap();
    assert!(rabbit.publish(Message::new(&exchange, "", "first")).unwrap().is_confirmed());
    let delivery = rabbit.get(queue.name()).unwrap().unwrap();
    assert_eq!(delivery.data(), b"first");
    delivery.nack().unwrap();

    let batch = rabbit.publish_batch((0..1000).map(|n| Message::new(&exchange, "", n.to_string()).transient())).unwrap();
    assert!(batch.all_confirmed(), "{batch:?}");
    let mut consumer = rabbit.consume(queue.name()).unwrap();
    for n in 0..1000 {
        let delivery = consumer.next().unwrap().unwrap();
        assert_eq!(delivery.data(), n.to_string().as_bytes());
        delivery.ack().unwrap();
    }
    assert!(consumer.next_within(Duration::from_millis(50)).unwrap().is_none());
    let channel = rabbit.channel().unwrap();
    let line = line!() - 1;
    let holder = pool.holders().into_iter().find(|holder| holder.exclusive).unwrap();
    assert_eq!((holder.site.file(), holder.site.line()), ("tests/rabbitmq.rs", line));
    channel.run(async |channel| channel.tx_select().await).unwrap();
    drop(channel);

    let waiting = thread::spawn(move || consumer.next().is_none());
    let report = pool.close_all().unwrap();
    assert!(report.all_closed(), "{report}");
    assert!(waiting.join().unwrap());
    assert!(rabbit.publish(Message::new(&exchange, "", "late")).unwrap_err().is_closed());
}
