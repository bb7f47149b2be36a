//! RabbitMQ as workers use it: properties of queues and messages, attempts, and many acknowledgements at once.

#![cfg(feature = "rabbitmq")]
#![allow(missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use common::{Within, eventually, until_async};
use lapin::types::{AMQPValue, FieldTable};
use resource_pool::config::RabbitMqConfig;
use resource_pool::rabbitmq::{Consume, Consumer, Delivery, Exchange, Message, Queue};
use resource_pool::{Error, RabbitMq, ResourcePool, Work, blocking};
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

/// How many deliveries are in hand.
fn in_hand(pool: &ResourcePool) -> usize {
    let work = pool.status().resource("rabbitmq").unwrap().work.clone();
    work.into_iter().find_map(|(work, count)| (work == Work::Delivery).then_some(count)).unwrap_or(0)
}

async fn publish(rabbit: &RabbitMq, queue: &str, count: usize) {
    let batch = rabbit.publish_batch((0..count).map(|n| Message::new("", queue, n.to_string()))).await.unwrap();
    assert!(batch.all_confirmed(), "{batch}");
}

async fn next(consumer: &mut Consumer) -> Delivery {
    consumer.next().within(SOON).await.unwrap().unwrap()
}

async fn take(consumer: &mut Consumer, count: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    while all.len() < count {
        all.push(next(consumer).await);
    }
    all
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_attempts_are_as_many_as_the_broker_tells() {
    let pool = pool_at(server().url());
    let rabbit = pool.rabbitmq().await.unwrap();
    for queue in ["counted", "uncounted"] {
        let dead = format!("{queue}.dead");
        rabbit.declare_queue(Queue::new(&dead)).await.unwrap();
        let spec = Queue::new(queue).dead_letter("", Some(&dead));
        rabbit.declare_queue(if queue == "counted" { spec.quorum() } else { spec }).await.unwrap();
        publish(&rabbit, queue, 1).await;
        let told = if queue == "counted" { [Some(1), Some(2), Some(3)] } else { [Some(1), None, None] };
        for attempts in told {
            let delivery = get(&rabbit, queue).await;
            assert_eq!(delivery.attempts(), attempts, "{queue}");
            delivery.requeue().await.unwrap();
        }
        get(&rabbit, queue).await.nack().await.unwrap();
        // The broker counts the rejection, and a queue that is not a quorum queue does not count on.
        let delivery = get(&rabbit, &dead).await;
        assert_eq!(delivery.attempts(), Some(2), "{queue}");
        delivery.requeue().await.unwrap();
        let threads = blocking::ResourcePool::from(pool.clone()).rabbitmq().unwrap();
        let attempts = thread::spawn(move || {
            let delivery = threads.get(&dead).unwrap().unwrap();
            let attempts = delivery.attempts();
            delivery.ack().unwrap();
            attempts
        });
        assert_eq!(attempts.join().unwrap(), None, "{queue}");
    }
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_one_acknowledgement_settles_many() {
    let server = server();
    let proxy = Proxy::start(server.port()).unwrap();
    let pool = pool_at(&proxy.url(server));
    let rabbit = pool.rabbitmq().await.unwrap();
    rabbit.declare_queue(Queue::new("many")).await.unwrap();
    publish(&rabbit, "many", 10).await;
    let mut consumer = rabbit.consume(Consume::from("many").prefetch(10)).await.unwrap();
    let mut all = take(&mut consumer, 10).await;
    assert_eq!(in_hand(&pool), 10);
    let later = all.split_off(7);
    all.pop().unwrap().ack_all_before().await.unwrap();
    assert_eq!(in_hand(&pool), 3, "those that are covered count no longer");
    let acks = || proxy.frames().iter().filter(|frame| frame.name == "Basic.Ack" && frame.from_client).count();
    assert_eq!(acks(), 1);
    // Those that are covered are settled. The broker would end the channel if one were settled again.
    drop(all.pop());
    all.pop().unwrap().ack().await.unwrap();
    all.pop().unwrap().ack_all_before().await.unwrap();
    for refused in [all.pop().unwrap().nack().await, all.pop().unwrap().requeue().await] {
        let Err(error @ Error::Operation { .. }) = refused else { panic!("{refused:?}") };
        assert!(error.to_string().contains("acknowledged with a later delivery"), "{error}");
    }
    drop(all);
    assert_eq!(acks(), 1);
    drop(later);
    let mut again: Vec<_> = take(&mut consumer, 3).await.iter().map(text).collect();
    again.sort();
    assert_eq!(again, ["7", "8", "9"]);
    until_async(SOON, async || in_hand(&pool) == 0).await;
    assert_eq!(generation(&pool), 1);

    // On a channel that a fetched message has for itself, there is nothing before it.
    drop(consumer);
    get(&rabbit, "many").await.ack_all_before().await.unwrap();
    let threads = blocking::ResourcePool::from(pool.clone()).rabbitmq().unwrap();
    let in_thread = thread::spawn(move || {
        let mut consumer = threads.consume("many").unwrap();
        let mut two: Vec<_> = (0..2).map(|_| consumer.next().unwrap().unwrap()).collect();
        two.pop().unwrap().ack_all_before().unwrap();
        two.pop().unwrap().ack().unwrap();
        consumer.next_within(Duration::from_millis(50)).unwrap().is_none()
    });
    assert!(in_thread.join().unwrap());
    rabbit.delete_queue("many").await.unwrap();
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
}

/// The answers to some deliveries are under way when all before another one are acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_acknowledgement_of_many_meets_others() {
    const COUNT: usize = 300;
    let pool = pool_at(server().url());
    let rabbit = pool.rabbitmq().await.unwrap();
    rabbit.declare_queue(Queue::new("met")).await.unwrap();
    publish(&rabbit, "met", COUNT).await;
    let mut consumer = rabbit.consume(Consume::from("met").prefetch(10)).await.unwrap();
    let (mut seen, mut given_back) = (BTreeSet::new(), BTreeSet::new());
    while seen.len() < COUNT || !given_back.is_empty() {
        let first = next(&mut consumer).await;
        let mut others = Vec::new();
        while let Ok(Some(delivery)) = tokio::time::timeout(Duration::from_millis(5), consumer.next()).await {
            others.push(delivery.unwrap());
            if others.len() == 9 {
                break;
            }
        }
        for delivery in others.iter().chain([&first]) {
            seen.insert(text(delivery));
            given_back.remove(&text(delivery));
        }
        let Some(last) = others.pop() else {
            first.ack().await.unwrap();
            continue;
        };
        if !first.redelivered() {
            given_back.insert(text(&first));
            drop(first);
        }
        let acking = others.pop().map(|delivery| tokio::spawn(delivery.ack()));
        last.ack_all_before().await.unwrap();
        if let Some(acking) = acking {
            acking.await.unwrap().unwrap();
        }
    }
    assert_eq!(generation(&pool), 1);
    drop(consumer);
    until_async(SOON, async || in_hand(&pool) == 0).await;
    assert!(rabbit.get("met").await.unwrap().is_none(), "each was acknowledged");
    rabbit.delete_queue("met").await.unwrap();
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
}

/// A delivery of a lost connection acknowledges nothing of the next one, although the tags are the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_acknowledgement_of_many_stays_on_its_connection() {
    let server = server();
    let proxy = Proxy::start(server.port()).unwrap();
    let pool = pool_at(&proxy.url(server));
    let rabbit = pool.rabbitmq().await.unwrap();
    rabbit.declare_queue(Queue::new("stays")).await.unwrap();
    publish(&rabbit, "stays", 5).await;
    let mut consumer = rabbit.consume(Consume::from("stays").prefetch(5)).await.unwrap();
    let mut old = take(&mut consumer, 5).await;
    proxy.cut();
    let mut new = take(&mut consumer, 5).await;
    assert!(new.iter().all(Delivery::redelivered));
    assert_eq!((generation(&pool), in_hand(&pool)), (2, 10));
    let lost = old.pop().unwrap().ack_all_before().await.unwrap_err();
    assert!(matches!(lost, Error::Lost { .. }), "{lost}");
    assert_eq!(in_hand(&pool), 5, "those of the lost connection are given up");
    drop(old);
    let unacked = || {
        let queues = server.rabbitmq().unwrap().queues(server.database()).unwrap();
        queues.iter().find(|queue| queue.name == "stays").map(|queue| (queue.ready, queue.unacked))
    };
    assert_eq!(unacked(), Some((0, 5)));
    new.pop().unwrap().ack_all_before().await.unwrap();
    until_async(SOON, async || unacked() == Some((0, 0))).await;
    rabbit.delete_queue("stays").await.unwrap();
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
}
