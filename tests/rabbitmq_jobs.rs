//! RabbitMQ as workers use it: properties of queues and messages.

#![cfg(feature = "rabbitmq")]
#![allow(missing_docs)]

mod common;

use std::thread;
use std::time::Duration;

use common::{eventually, until_async};
use lapin::types::{AMQPValue, FieldTable};
use resource_pool::config::RabbitMqConfig;
use resource_pool::rabbitmq::{Delivery, Exchange, Message, Queue};
use resource_pool::{Error, RabbitMq, ResourcePool, blocking};
use services::{Kind, Proxy, Service, shared};

/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// The broker of all tests that do it no harm.
fn server() -> &'static Service {
    shared(Kind::RabbitMq)
}

fn pool_at(url: &str) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).resource(RabbitMqConfig::url(url)).build().expect("a pool")
}

fn generation(pool: &ResourcePool) -> u64 {
    pool.status().resource("rabbitmq").unwrap().generation
}

async fn publish(rabbit: &RabbitMq, queue: &str, count: usize) {
    let batch = rabbit.publish_batch((0..count).map(|n| Message::new("", queue, n.to_string()))).await.unwrap();
    assert!(batch.all_confirmed(), "{batch}");
}

/// The next message of a queue.
async fn get(rabbit: &RabbitMq, queue: &str) -> Delivery {
    eventually(SOON, async || rabbit.get(queue).await.unwrap()).await
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(delivery.data()).into_owned()
}

fn header<'a>(delivery: &'a Delivery, name: &str) -> Option<&'a AMQPValue> {
    delivery.properties().headers().as_ref()?.inner().get(name)
}

/// Why a message was dead-lettered first.
fn first_death(delivery: &Delivery) -> String {
    let Some(AMQPValue::LongString(reason)) = header(delivery, "x-first-death-reason") else { panic!("{delivery:?}") };
    reason.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_queues_do_what_their_properties_say() {
    let pool = pool_at(server().url());
    let rabbit = pool.rabbitmq().await.unwrap();
    rabbit.declare_queue(Queue::new("limited.dead")).await.unwrap();
    let short =
        Queue::new("limited").dead_letter("", Some("limited.dead")).max_length(2).ttl(Duration::from_millis(50));
    rabbit.declare_queue(short.clone()).await.unwrap();
    publish(&rabbit, "limited", 3).await;
    for (expected, reason) in [("0", "maxlen"), ("1", "expired"), ("2", "expired")] {
        let delivery = get(&rabbit, "limited.dead").await;
        assert_eq!((text(&delivery).as_str(), first_death(&delivery).as_str()), (expected, reason));
        delivery.ack().await.unwrap();
    }

    // Without a key here, dead messages keep their own.
    rabbit.declare_exchange(Exchange::direct("waiting.dead")).await.unwrap();
    rabbit.declare_queue(Queue::new("waiting").dead_letter("waiting.dead", None)).await.unwrap();
    rabbit.bind("limited.dead", "waiting.dead", "waiting").await.unwrap();
    let late = Message::new("", "waiting", "late").expiration(Duration::from_millis(1));
    assert!(rabbit.publish(late).await.unwrap().is_confirmed());
    let delivery = get(&rabbit, "limited.dead").await;
    assert_eq!((text(&delivery).as_str(), first_death(&delivery).as_str()), ("late", "expired"));
    assert_eq!((delivery.exchange(), delivery.routing_key()), ("waiting.dead", "waiting"));
    delivery.ack().await.unwrap();

    rabbit.declare_queue(Queue::new("urgent").priority(5)).await.unwrap();
    for priority in [0, 5, 3] {
        let message = Message::new("", "urgent", priority.to_string()).priority(priority);
        assert!(rabbit.publish(message).await.unwrap().is_confirmed());
    }
    for expected in ["5", "3", "0"] {
        let delivery = get(&rabbit, "urgent").await;
        assert_eq!(text(&delivery), expected);
        delivery.ack().await.unwrap();
    }

    // A queue that exists with other properties is an error, which says how and what to do.
    let threads = blocking::ResourcePool::from(pool.clone()).rabbitmq().unwrap();
    for conflict in [
        rabbit.declare_queue(short.clone().ttl(Duration::from_secs(1))).await.unwrap_err(),
        thread::spawn(move || threads.declare_queue(short.ttl(Duration::from_secs(1)))).join().unwrap().unwrap_err(),
        rabbit.declare_exchange(Exchange::fanout("waiting.dead")).await.unwrap_err(),
    ] {
        let conflict = conflict.to_string();
        assert!(conflict.contains("inequivalent arg '"), "{conflict}");
        assert!(conflict.contains("declare it with those, or delete it first"), "{conflict}");
    }
    let impossible = rabbit.declare_queue(Queue::new("q").quorum().transient()).await.unwrap_err().to_string();
    assert!(impossible.contains("non-durable") && !impossible.contains("delete it first"), "{impossible}");

    // Further arguments leave the others as they are.
    let mut further = FieldTable::default();
    further.insert("x-expires".into(), AMQPValue::LongLongInt(60_000));
    let both = Queue::new("both").max_length(1).arguments(further.clone());
    assert_eq!(both, Queue::new("both").arguments(further).max_length(1));
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_messages_arrive_with_their_properties() {
    let pool = pool_at(server().url());
    let rabbit = pool.rabbitmq().await.unwrap();
    let queue = rabbit.declare_queue(Queue::temporary()).await.unwrap();
    let message = Message::new("", queue.name(), "{}")
        .content_type("application/json")
        .correlation("order-7")
        .reply_to("answers")
        .id("message-1")
        .priority(4)
        .expiration(Duration::from_secs(60))
        .header("strategy", "momentum")
        .header("symbol", String::from("AAPL"))
        .header("live", true)
        .header("lots", 3)
        .header("shares", -4_000_000_000_i64)
        .header("size", 5_u32)
        .header("price", 10.5)
        .header("raw", AMQPValue::ShortInt(6));
    assert!(rabbit.publish(message).await.unwrap().is_confirmed());
    let delivery = get(&rabbit, queue.name()).await;
    let properties = delivery.properties();
    let short = |text: &Option<lapin::types::ShortString>| text.as_ref().unwrap().to_string();
    assert_eq!(short(properties.content_type()), "application/json");
    assert_eq!(short(properties.correlation_id()), "order-7");
    assert_eq!(short(properties.reply_to()), "answers");
    assert_eq!(short(properties.message_id()), "message-1");
    assert_eq!(short(properties.expiration()), "60000");
    assert_eq!((*properties.priority(), *properties.delivery_mode()), (Some(4), Some(2)));
    for (name, value) in [
        ("strategy", AMQPValue::LongString("momentum".into())),
        ("symbol", AMQPValue::LongString("AAPL".into())),
        ("live", AMQPValue::Boolean(true)),
        ("lots", AMQPValue::LongInt(3)),
        ("shares", AMQPValue::LongLongInt(-4_000_000_000)),
        ("size", AMQPValue::LongLongInt(5)),
        ("price", AMQPValue::Double(10.5)),
        ("raw", AMQPValue::ShortInt(6)),
    ] {
        assert_eq!(header(&delivery, name), Some(&value), "{name}");
    }
    delivery.ack().await.unwrap();

    // A text that is too long is an error of the publish, and harms no other message.
    let long = "x".repeat(256);
    let batch = [
        Message::new("", queue.name(), "0").content_type(&long),
        Message::new("", queue.name(), "1").header(&long, 1),
        Message::new("", queue.name(), "2").correlation(&long[1..]),
    ];
    let batch = rabbit.publish_batch(batch).await.unwrap();
    assert_eq!(batch.confirmed(), 1, "{batch}");
    for (result, what) in batch.results().iter().zip(["the content type", "the name of a header"]) {
        let Err(error @ Error::Operation { .. }) = result else { panic!("{result:?}") };
        assert!(error.to_string().ends_with(&format!("{what} has 256 bytes, and may have 255")), "{error}");
    }
    assert_eq!(text(&get(&rabbit, queue.name()).await), "2");
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
}

/// The queue is gone when the connection comes back, and is declared again as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_properties_of_a_queue_come_back_with_it() {
    let server = server();
    let proxy = Proxy::start(server.port()).unwrap();
    let (pool, other) = (pool_at(&proxy.url(server)), pool_at(server.url()));
    let (rabbit, stranger) = (pool.rabbitmq().await.unwrap(), other.rabbitmq().await.unwrap());
    let queue = Queue::new("comes-back").quorum().dead_letter("", Some("comes-back.dead")).max_length(7);
    rabbit.declare_queue(queue.clone()).await.unwrap();
    stranger.delete_queue("comes-back").await.unwrap();
    proxy.cut();
    until_async(SOON, async || generation(&pool) == 2).await;
    let declared = async || stranger.declare_queue(Queue::new("comes-back").passive()).await.is_ok();
    until_async(SOON, declared).await;
    stranger.declare_queue(queue.clone()).await.unwrap();
    assert!(stranger.declare_queue(queue.max_length(8)).await.unwrap_err().to_string().contains("x-max-length"));
    stranger.delete_queue("comes-back").await.unwrap();
}
