//! RabbitMQ on both facades, against real servers.
//!
//! `rough` has the only lock. A test holds it for as long as it kills or freezes that broker.

#![cfg(feature = "rabbitmq")]
#![allow(missing_docs)]

mod common;

use std::collections::HashSet;
use std::error::Error as _;
use std::future::poll_fn;
use std::ops::Deref;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake};
use std::thread;
use std::time::{Duration, Instant};

use common::{Stopwatch, Within, until, until_async};
use futures_core::Stream as _;
use lapin::options::{
    BasicConsumeOptions, BasicNackOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Confirmation, ConnectionProperties, ExchangeKind};
use resource_pool::config::{Options, RabbitMqConfig};
use resource_pool::rabbitmq::{Consume, Consumer, Exchange, Message, Published, Queue};
use resource_pool::{Error, Health, Outcome, RabbitMq, ResourcePool, State, Work, blocking};
use services::{BlackHole, Kind, Proxy, Service, shared};

/// The limit for a frozen broker to show as an error.
const FROZEN: Duration = Duration::from_secs(5);
/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// The broker of all tests that do it no harm.
fn server() -> &'static Service {
    shared(Kind::RabbitMq)
}

fn pool_of(config: RabbitMqConfig) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).resource(config).build().expect("a pool")
}

fn pool(server: &Service) -> ResourcePool {
    pool_of(RabbitMqConfig::url(server.url()))
}

/// A pool whose health does not depend on how fast a broker answers.
fn patient_pool(config: RabbitMqConfig, mut options: Options) -> ResourcePool {
    (options.health.each, options.health.all, options.health.slow) = (SOON, SOON, SOON);
    ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().expect("a pool")
}

/// A name that no other test uses.
fn unique(what: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("test-{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_async_publishes_gets_consumes_and_closes() {
    let pool = patient_pool(RabbitMqConfig::url(server().url()), Options::default());
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

    let batch =
        (0..2000).map(|n| Message::new(&exchange, if n % 10 == 3 { "nobody" } else { "stock.IBM.day" }, n.to_string()));
    let batch = rabbit.publish_batch(batch).await.unwrap();
    assert_eq!((batch.confirmed(), batch.unknown(), batch.results().len()), (1800, 0, 2000));
    for (n, result) in batch.results().iter().enumerate() {
        assert_eq!(matches!(result, Ok(Published::Returned { code: 312, .. })), n % 10 == 3, "{n}: {result:?}");
    }

    let mut consumer = rabbit.consume(Consume::from(queue.name()).prefetch(50)).await.unwrap();
    for n in (0..2000).filter(|n| n % 10 != 3) {
        let delivery = consumer.next().within(SOON).await.unwrap().unwrap();
        assert_eq!(delivery.data(), n.to_string().as_bytes());
        delivery.ack().await.unwrap();
    }
    assert_eq!(pool.health_check().await.entry("rabbitmq").unwrap().health, Health::Pass);
    let started = Stopwatch::start();
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    assert!(started.took() < Duration::from_secs(3), "{report}");
    assert!(consumer.next().within(SOON).await.is_none());
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

    let batch =
        rabbit.publish_batch((0..1000).map(|n| Message::new(&exchange, "", n.to_string()).transient())).unwrap();
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

/// A broker that one test at a time may kill and freeze. The next test gets it in order again.
fn rough() -> Rough {
    static BROKER: OnceLock<(Mutex<()>, Service)> = OnceLock::new();
    let (turn, server) = BROKER.get_or_init(|| (Mutex::new(()), Service::start(Kind::RabbitMq).expect("a RabbitMQ")));
    let turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
    Rough { server, _turn: turn }
}

struct Rough {
    server: &'static Service,
    _turn: MutexGuard<'static, ()>,
}

impl Deref for Rough {
    type Target = Service;
    fn deref(&self) -> &Service {
        self.server
    }
}

impl Drop for Rough {
    fn drop(&mut self) {
        if self.server.is_running() {
            self.server.thaw().unwrap();
        } else {
            self.server.restart().unwrap();
        }
    }
}

/// A connection of the driver with its own defaults.
async fn bare(server: &Service) -> lapin::Connection {
    lapin::Connection::connect(server.url(), ConnectionProperties::default()).await.unwrap()
}

async fn consume_one(consumer: &mut Consumer, wanted: &str) {
    loop {
        let delivery = consumer.next().within(SOON).await.unwrap().unwrap();
        let found = delivery.data() == wanted.as_bytes();
        // A delivery that was in hand when the broker was killed may have been cut, so its ack may fail.
        let _ = delivery.ack().await;
        if found {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_killed_and_restarted_under_the_same_guard_and_consumer() {
    let server = rough();
    let pool = pool(&server);
    let rabbit = pool.rabbitmq().await.unwrap();
    let blocking = blocking::ResourcePool::from(pool.clone());
    let guard = blocking.rabbitmq().unwrap();
    let (exchange, durable) = (unique("bars"), unique("durable"));
    // Except for the durable queue, none of this survives the restart.
    rabbit.declare_exchange(Exchange::fanout(&exchange).transient()).await.unwrap();
    let temporary = rabbit.declare_queue(Queue::temporary()).await.unwrap();
    rabbit.bind(temporary.name(), &exchange, "").await.unwrap();
    rabbit.declare_queue(Queue::new(&durable)).await.unwrap();
    rabbit.bind(&durable, &exchange, "").await.unwrap();
    let first_name = rabbit.current_name(temporary.name());
    let mut consumer = rabbit.consume(temporary.name()).await.unwrap();
    let mut thread_consumer = guard.consume(durable.as_str()).unwrap();
    let in_thread = thread::spawn(move || {
        let mut seen = HashSet::new();
        while !seen.contains("after") {
            let delivery = thread_consumer.next().unwrap().unwrap();
            seen.insert(String::from_utf8_lossy(delivery.data()).into_owned());
            let _ = delivery.ack();
        }
        seen
    });
    assert!(rabbit.publish(Message::new(&exchange, "", "before")).await.unwrap().is_confirmed());
    consume_one(&mut consumer, "before").await;

    server.kill().unwrap();
    let killed = Stopwatch::start();
    let error = rabbit.publish(Message::new(&exchange, "", "meanwhile")).await.unwrap_err();
    assert!(error.is_transient() || matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    assert!(killed.took() < FROZEN, "{:?}", killed.took());
    let again = Stopwatch::start();
    assert!(guard.publish(Message::new(&exchange, "", "meanwhile")).is_err());
    assert!(again.took() < FROZEN, "{:?}", again.took());
    server.restart().unwrap();
    let back = Instant::now();
    let publish = async || {
        rabbit.publish(Message::new(&exchange, "", "after")).await.is_ok_and(|published| published.is_confirmed())
    };
    until_async(SOON, publish).await;
    println!("rabbitmq: the guard works again {:?} after the restart", back.elapsed());
    consume_one(&mut consumer, "after").await;
    println!("rabbitmq: the consumer works again {:?} after the restart", back.elapsed());
    assert!(guard.publish(Message::new(&exchange, "", "and on")).unwrap().is_confirmed());
    assert!(in_thread.join().unwrap().contains("before"));
    assert_ne!(rabbit.current_name(temporary.name()), first_name, "the broker has named it anew");
    assert_eq!(pool.status().resource("rabbitmq").unwrap().generation, 2);
    assert!(pool.close_all().await.all_closed());
}

fn argument(name: &str, value: &str) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert(name.into(), AMQPValue::LongString(value.into()));
    arguments
}

/// A consumer that reads a stream from its beginning.
fn from_the_first(stream: &str) -> Consume {
    Consume::from(stream).arguments(argument("x-stream-offset", "first")).prefetch(10)
}

/// A stream filled with numbers. The pool under test has not declared it.
async fn filled_stream(server: &Service, count: usize) -> String {
    let stream = unique("stream");
    let pool = pool(server);
    let rabbit = pool.rabbitmq().await.unwrap();
    rabbit.declare_queue(Queue::new(&stream).arguments(argument("x-queue-type", "stream"))).await.unwrap();
    let filled = rabbit.publish_batch((0..count).map(|n| Message::new("", &stream, n.to_string()))).await.unwrap();
    assert!(filled.all_confirmed(), "{filled}");
    stream
}

async fn next_number(consumer: &mut Consumer) -> (usize, resource_pool::rabbitmq::Delivery) {
    let delivery = consumer.next().within(SOON).await.unwrap().unwrap();
    (String::from_utf8_lossy(delivery.data()).parse().unwrap(), delivery)
}

/// A stream only accepts acknowledgements. Anything else ends the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_stream_deliveries_end_no_connection() {
    let server = server();
    let stream = filled_stream(server, 100).await;
    let bare = bare(server).await;
    let channel = bare.create_channel().await.unwrap();
    channel.basic_qos(10, BasicQosOptions::default()).await.unwrap();
    let first = argument("x-stream-offset", "first");
    let consuming = channel.basic_consume(stream.as_str().into(), "".into(), BasicConsumeOptions::default(), first);
    let mut consumer = consuming.await.unwrap();
    let delivery = poll_fn(|cx| pin!(&mut consumer).poll_next(cx)).within(SOON).await.unwrap().unwrap();
    delivery.nack(BasicNackOptions::default()).await.unwrap();
    until_async(SOON, async || !bare.status().connected()).await;

    let pool = pool(server);
    let rabbit = pool.rabbitmq().await.unwrap();
    let threads = blocking::ResourcePool::from(pool.clone()).rabbitmq().unwrap();
    let only_acks = |error: Error| {
        assert!(matches!(&error, Error::Operation { .. }), "{error}");
        assert!(error.source().unwrap().to_string().contains("acknowledgements alone"), "{error:?}");
    };
    // Each way of not acknowledging a delivery has the consumer read it again.
    let mut consumer = rabbit.consume(from_the_first(&stream)).await.unwrap();
    for number in 0..10 {
        let (found, delivery) = next_number(&mut consumer).await;
        assert_eq!(found, number);
        drop(delivery);
        let (found, delivery) = next_number(&mut consumer).await;
        assert_eq!(found, number);
        only_acks(delivery.nack().await.unwrap_err());
        let (found, delivery) = next_number(&mut consumer).await;
        assert_eq!(found, number);
        only_acks(delivery.requeue().await.unwrap_err());
        let (found, delivery) = next_number(&mut consumer).await;
        assert_eq!(found, number);
        delivery.ack().await.unwrap();
    }
    // Acknowledged in another order, an earlier delivery is not forgotten.
    let (_, tenth) = next_number(&mut consumer).await;
    let (_, eleventh) = next_number(&mut consumer).await;
    eleventh.ack().await.unwrap();
    drop(tenth);
    let (found, tenth) = next_number(&mut consumer).await;
    assert_eq!(found, 10);
    // A delivery in hand can still be acknowledged after its consumer is dropped.
    drop(consumer);
    tenth.ack().await.unwrap();

    let mut consumer = threads.consume(from_the_first(&stream)).unwrap();
    let delivery = consumer.next_within(SOON).unwrap().unwrap();
    only_acks(delivery.nack().unwrap_err());
    let delivery = consumer.next_within(SOON).unwrap().unwrap();
    only_acks(delivery.requeue().unwrap_err());
    drop(consumer.next_within(SOON).unwrap().unwrap());
    drop(consumer);

    // A `get` from a stream that this pool declared fails. That ends no connection either.
    rabbit.declare_queue(Queue::new(&stream).arguments(argument("x-queue-type", "stream"))).await.unwrap();
    assert!(matches!(rabbit.get(&stream).await, Err(Error::Operation { .. })));
    assert!(matches!(threads.get(&stream), Err(Error::Operation { .. })));
    // A message that was moved out of a stream still has its header. It goes back like any other.
    let classic = unique("classic");
    rabbit.declare_queue(Queue::new(&classic).arguments(argument("x-queue-type", "classic"))).await.unwrap();
    let mut moved = FieldTable::default();
    moved.insert("x-stream-offset".into(), AMQPValue::LongLongInt(7));
    let moved = Message::new("", &classic, "0").properties(BasicProperties::default().with_headers(moved));
    assert!(rabbit.publish(moved).await.unwrap().is_confirmed());
    let mut consumer = rabbit.consume(classic.as_str()).await.unwrap();
    next_number(&mut consumer).await.1.requeue().await.unwrap();
    next_number(&mut consumer).await.1.nack().await.unwrap();

    assert_eq!(generation(&pool), 1);
    rabbit.delete_queue(&classic).await.unwrap();
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_stream_is_read_on_after_what_was_acknowledged() {
    let server = server();
    let stream = filled_stream(server, 1000).await;
    let proxy = Proxy::start(server.port()).unwrap();
    let pool = pool_of(RabbitMqConfig::url(proxy.url(server)));
    let rabbit = pool.rabbitmq().await.unwrap();
    let mut consumer = rabbit.consume(from_the_first(&stream)).await.unwrap();
    let mut acked = 0;
    for generation_wanted in 1..4 {
        for _ in 0..100 {
            let (found, delivery) = next_number(&mut consumer).await;
            assert_eq!(found, acked, "none is missing, and none comes again");
            delivery.ack().await.unwrap();
            acked += 1;
        }
        // The deliveries in hand come again.
        let in_hand = [next_number(&mut consumer).await, next_number(&mut consumer).await];
        assert_eq!(in_hand.each_ref().map(|(found, _)| *found), [acked, acked + 1]);
        assert_eq!(generation(&pool), generation_wanted);
        proxy.cut();
        until_async(SOON, async || generation(&pool) > generation_wanted).await;
    }
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
}

/// Declares so many queues, and returns their names.
async fn declare_many(rabbit: &RabbitMq, count: usize, queue: impl Fn(String) -> Queue) -> Vec<String> {
    let names: Vec<_> = (0..count).map(|_| unique("many")).collect();
    let mut declaring = tokio::task::JoinSet::new();
    for some in names.chunks(count.div_ceil(32)) {
        let (rabbit, some) = (rabbit.clone(), some.iter().cloned().map(&queue).collect::<Vec<_>>());
        declaring.spawn(async move {
            for queue in some {
                rabbit.declare_queue(queue).await.unwrap();
            }
        });
    }
    declaring.join_all().await;
    names
}

/// The replay of declarations has a limit for each answer, and none for all of them together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_topology_of_any_size_comes_back() {
    let server = Service::start(Kind::RabbitMq).unwrap();
    let comes_back = async |proxy: &Proxy, pool: &ResourcePool, limit: Duration| {
        let (cut, before) = (Stopwatch::start(), generation(pool));
        proxy.cut();
        until_async(limit, async || {
            let status = pool.status();
            let status = status.resource("rabbitmq").unwrap();
            status.generation > before && status.state == State::Ready
        })
        .await;
        assert_eq!(generation(pool), before + 1);
        cut.took()
    };
    let start = async || {
        let proxy = Proxy::start(server.port()).unwrap().unrecorded();
        let pool = pool_of(RabbitMqConfig::url(proxy.url(&server)));
        let rabbit = pool.rabbitmq().await.unwrap();
        (proxy, pool, rabbit)
    };

    let (proxy, pool, rabbit) = start().await;
    let names = declare_many(&rabbit, 1000, Queue::new).await;
    let took = comes_back(&proxy, &pool, Duration::from_secs(20)).await;
    println!("rabbitmq: 1,000 durable queues are back after {took:?}");
    assert!(took <= Duration::from_secs(2), "{took:?}");

    // A waiting caller's error and the health report tell the progress meanwhile.
    proxy.delay(50);
    let telling = async || {
        let health = pool.health_check().await;
        health.entry("rabbitmq").unwrap().error.clone().filter(|error| error.contains(" of 1000 declared"))
    };
    let back = comes_back(&proxy, &pool, Duration::from_secs(60));
    let (took, told) = tokio::join!(back, common::eventually(Duration::from_secs(60), telling));
    println!("rabbitmq: 1,000 durable queues are back after {took:?} at 100 ms of round trip; {told}");
    assert!(took > Duration::from_secs(2), "one attempt's limit was enough: {took:?}");
    proxy.delay(0);
    assert!(rabbit.publish(Message::new("", &names[999], "x")).await.unwrap().is_confirmed());
    assert!(pool.close_all().await.all_closed());

    let (proxy, pool, rabbit) = start().await;
    let names = declare_many(&rabbit, 600, |name| Queue::new(name).transient().exclusive()).await;
    let took = comes_back(&proxy, &pool, Duration::from_secs(60)).await;
    println!("rabbitmq: 600 exclusive queues are back after {took:?}");
    for name in &names {
        assert!(rabbit.publish(Message::new("", name, "x").transient()).await.unwrap().is_confirmed());
    }
    assert!(pool.close_all().await.all_closed());

    let (proxy, pool, rabbit) = start().await;
    rabbit.declare_exchange(Exchange::fanout("all").transient()).await.unwrap();
    let names = declare_many(&rabbit, 10_000, Queue::new).await;
    for name in &names[..100] {
        rabbit.bind(name, "all", "").await.unwrap();
    }
    let took = comes_back(&proxy, &pool, Duration::from_secs(300)).await;
    println!("rabbitmq: 10,000 durable queues, 100 of them bound, are back after {took:?}");
    assert!(pool.close_all().await.all_closed());
}

/// A table of so many bytes and a few more.
fn table(bytes: usize) -> FieldTable {
    let mut table = FieldTable::default();
    table.insert("x-filled".into(), AMQPValue::LongString("x".repeat(bytes).into()));
    table
}

fn with_headers(queue: &str, bytes: usize) -> Message {
    Message::new("", queue, "body").properties(BasicProperties::default().with_headers(table(bytes)))
}

fn generation(pool: &ResourcePool) -> u64 {
    pool.status().resource("rabbitmq").unwrap().generation
}

/// Publishes headers as large as the broker allows, from another client.
async fn publish_as_a_stranger(server: &Service, queue: &str, bytes: usize) {
    // With a broker without a limit, the driver's default is 256 GiB. So the URL sets one.
    let url = format!("{}?frame_max=1048576", server.url());
    let bare = lapin::Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
    let channel = bare.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let properties = BasicProperties::default().with_headers(table(bytes));
    let publish = channel.basic_publish("".into(), queue.into(), BasicPublishOptions::default(), b"body", properties);
    publish.await.unwrap().await.unwrap();
    bare.close(200, "OK".into()).await.unwrap();
}

/// AMQP splits only bodies into frames, so headers have to fit into one frame.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_headers_as_large_as_the_broker_allows_pass_both_ways() {
    let server = server();
    let pool = pool(server);
    let rabbit = pool.rabbitmq().await.unwrap();
    let threads = blocking::ResourcePool::from(pool.clone()).rabbitmq().unwrap();
    let got = rabbit.declare_queue(Queue::temporary()).await.unwrap().name().to_owned();
    let consumed = rabbit.declare_queue(Queue::temporary()).await.unwrap().name().to_owned();
    let mut consumer = rabbit.consume(consumed.as_str()).await.unwrap();
    for bytes in [9_000, 60_000, 120_000] {
        let sent = table(bytes);
        for queue in [&got, &consumed] {
            publish_as_a_stranger(server, queue, bytes).await;
            assert!(rabbit.publish(with_headers(queue, bytes)).await.unwrap().is_confirmed());
            assert!(threads.publish(with_headers(queue, bytes)).unwrap().is_confirmed());
            assert!(rabbit.publish_batch([with_headers(queue, bytes)]).await.unwrap().all_confirmed());
        }
        for _ in 0..2 {
            let delivery = rabbit.get(&got).await.unwrap().unwrap();
            assert_eq!(delivery.properties().headers().as_ref(), Some(&sent));
            delivery.ack().await.unwrap();
            let delivery = threads.get(&got).unwrap().unwrap();
            assert_eq!(delivery.properties().headers().as_ref(), Some(&sent));
            delivery.ack().unwrap();
        }
        for _ in 0..4 {
            let delivery = consumer.next().within(SOON).await.unwrap().unwrap();
            assert_eq!(delivery.properties().headers().as_ref(), Some(&sent));
            delivery.ack().await.unwrap();
        }
    }
    assert_eq!(generation(&pool), 1);
    assert!(pool.close_all().await.all_closed());

    // If the user chooses smaller frames, the driver ends the connection over the same message.
    let mut config = RabbitMqConfig::url(server.url());
    config.frame_max = 8192;
    let pool = pool_of(config);
    let rabbit = pool.rabbitmq().await.unwrap();
    let queue = rabbit.declare_queue(Queue::new(unique("queue"))).await.unwrap().name().to_owned();
    publish_as_a_stranger(server, &queue, 9_000).await;
    assert!(rabbit.get(&queue).within(SOON).await.is_err());
    until_async(SOON, async || generation(&pool) == 2).await;
    rabbit.delete_queue(&queue).await.unwrap();
}

/// The bare driver's connection ends over each of these messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_what_does_not_fit_into_a_frame_is_not_sent() {
    let server = server();
    let bare = bare(server).await;
    let channel = bare.create_channel().await.unwrap();
    let declared = channel.queue_declare("".into(), QueueDeclareOptions::default(), table(131_072)).within(SOON).await;
    assert!(declared.is_err() && !bare.status().connected(), "the bare driver's connection goes on: {declared:?}");

    for (frame_max, limit, fits) in [(0, 131_072, 130_000), (8192, 8192, 7_000)] {
        let mut config = RabbitMqConfig::url(server.url());
        config.frame_max = frame_max;
        let pool = pool_of(config);
        let rabbit = pool.rabbitmq().await.unwrap();
        let threads = blocking::ResourcePool::from(pool.clone()).rabbitmq().unwrap();
        let refused = |error: Error| {
            let said = error.to_string() + &error.source().unwrap().to_string();
            assert!(matches!(error, Error::Operation { .. }), "{said}");
            let size = said.split_once("a frame of ").unwrap().1.split(' ').next().unwrap().parse::<usize>().unwrap();
            assert!(size > limit && size < limit + 600 && said.contains(&format!("may have {limit}")), "{said}");
        };
        let (queue, exchange) = (unique("queue"), unique("exchange"));
        rabbit.declare_queue(Queue::new(&queue).arguments(table(fits))).await.unwrap();
        rabbit.declare_exchange(Exchange::fanout(&exchange).arguments(table(fits))).await.unwrap();
        rabbit.bind_with(&queue, &exchange, "", table(fits)).await.unwrap();
        drop(rabbit.consume(Consume::from(&*queue).arguments(table(fits))).await.unwrap());
        assert!(rabbit.publish(with_headers(&queue, fits)).await.unwrap().is_confirmed());

        let (queue, exchange) = (queue.as_str(), exchange.as_str());
        refused(rabbit.publish(with_headers(queue, limit)).await.unwrap_err());
        refused(threads.publish(with_headers(queue, limit)).unwrap_err());
        refused(rabbit.declare_queue(Queue::temporary().arguments(table(limit))).await.unwrap_err());
        refused(threads.declare_queue(Queue::temporary().arguments(table(limit))).unwrap_err());
        refused(rabbit.declare_exchange(Exchange::fanout("x").arguments(table(limit))).await.unwrap_err());
        refused(rabbit.bind_with(queue, exchange, "", table(limit)).await.unwrap_err());
        refused(rabbit.consume(Consume::from(queue).arguments(table(limit))).await.unwrap_err());
        // The other messages of the batch are sent.
        let batch = [with_headers(queue, 10), with_headers(queue, limit), with_headers(queue, 10)];
        let results = rabbit.publish_batch(batch).await.unwrap().into_results();
        let [first, second, third] = results.try_into().unwrap();
        assert!(first.unwrap().is_confirmed() && third.unwrap().is_confirmed());
        refused(second.unwrap_err());
        // The driver would panic over a name that is too long.
        let long = Exchange::new("x", ExchangeKind::Custom("x".repeat(256)));
        assert!(matches!(rabbit.declare_exchange(long).await, Err(Error::Operation { .. })));

        // The limit is exact. With one byte more the message is not sent.
        let envelope = (1..).find(|less| rabbit_fits(&rabbit, queue, limit - less)).unwrap();
        assert!(!rabbit_fits(&rabbit, queue, limit - envelope + 1));
        assert_eq!(generation(&pool), 1);
        rabbit.delete_queue(queue).await.unwrap();
        rabbit.delete_exchange(exchange).await.unwrap();
        assert!(pool.close_all().await.all_closed());
    }
}

fn rabbit_fits(rabbit: &RabbitMq, queue: &str, bytes: usize) -> bool {
    let publish = rabbit.publish(with_headers(queue, bytes));
    let published = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(publish));
    published.inspect_err(|error| assert!(matches!(error, Error::Operation { .. }), "{error}")).is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_frames_of_a_broker_that_allows_larger_ones_are_as_large() {
    // The test changes this broker's limit and reads its log, so the broker is its own.
    let server = Service::start(Kind::RabbitMq).unwrap();
    let allow = |frame_max: usize| {
        server.rabbitmq().unwrap().eval(&format!("application:set_env(rabbit, frame_max, {frame_max})")).unwrap()
    };
    for allowed in [300_000, 0] {
        allow(allowed);
        let pool = pool(&server);
        let rabbit = pool.rabbitmq().await.unwrap();
        let queue = rabbit.declare_queue(Queue::temporary()).await.unwrap().name().to_owned();
        publish_as_a_stranger(&server, &queue, 280_000).await;
        assert!(rabbit.publish(with_headers(&queue, 280_000)).await.unwrap().is_confirmed());
        for _ in 0..2 {
            let delivery = rabbit.get(&queue).await.unwrap().unwrap();
            assert_eq!(delivery.properties().headers().as_ref(), Some(&table(280_000)));
            delivery.ack().await.unwrap();
        }
        assert_eq!(generation(&pool), 1);
        assert!(pool.close_all().await.all_closed());
        allow(131_072);
    }
    let unclean = server.rabbitmq().unwrap().unclean_closes().unwrap();
    assert!(unclean.is_empty(), "{unclean:?}");
}

/// A publish of the bare driver waits for its confirm, or for the driver's recovery, as long as that takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_publish_cut_off_says_that_its_outcome_is_unknown() {
    let server = rough();
    let queue = unique("queue");
    let proxy = Proxy::start(server.port()).unwrap();
    let mut config = RabbitMqConfig::url(proxy.url(&server));
    config.confirm_window = 1024;
    let pool = pool_of(config);
    let rabbit = pool.rabbitmq().await.unwrap();
    rabbit.declare_queue(Queue::new(&queue)).await.unwrap();
    assert!(rabbit.publish(Message::new("", &queue, "one")).await.unwrap().is_confirmed());
    // The publish is in flight when its connection is cut.
    proxy.freeze();
    let publishing = RabbitMq::clone(&rabbit);
    let in_flight = Message::new("", &queue, "two");
    let publish = tokio::spawn(async move { publishing.publish(in_flight).await });
    let published =
        |frames: Vec<services::AmqpFrame>| frames.iter().filter(|frame| frame.name == "Basic.Publish").count();
    until_async(SOON, async || !pool.status().resource("rabbitmq").unwrap().work.is_empty()).await;
    proxy.cut();
    proxy.thaw();
    let error = publish.within(SOON).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    assert!(!error.is_transient());
    until_async(SOON, async || rabbit.publish(Message::new("", &queue, "three")).await.is_ok()).await;
    assert!(published(proxy.frames()) <= 3, "what was cut off is not sent again");

    // A batch stops there, and reports the outcome of each message.
    proxy.freeze();
    let publishing = RabbitMq::clone(&rabbit);
    let (name, count) = (queue.clone(), 3000);
    let batch = tokio::spawn(async move {
        publishing.publish_batch((0..count).map(|n| Message::new("", &name, n.to_string()))).await
    });
    let unconfirmed = || pool.status().resource("rabbitmq").unwrap().work.contains(&(Work::Confirm, 1024));
    until_async(SOON, async || unconfirmed()).await;
    proxy.cut();
    proxy.thaw();
    let batch = batch.within(SOON).await.unwrap().unwrap();
    assert_eq!((batch.results().len(), batch.confirmed(), batch.unknown()), (3000, 0, 1024));
    assert!(batch.to_string().starts_with("0 of 3000 confirmed; "), "{batch}");
    assert!(matches!(&batch.results()[2999], Err(Error::Operation { action, .. }) if action.contains("not sent")));
}

/// The bare driver's recovery keeps a publish waiting as long as the outage lasts, and goes on after everything is
/// dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_recovery_keeps_nobody_waiting_and_leaves_no_zombie() {
    let server = rough();
    let (proxy, bares) = (Proxy::start(server.port()).unwrap(), Proxy::start(server.port()).unwrap());
    let pool = pool_of(RabbitMqConfig::url(proxy.url(&server)));
    let rabbit = pool.rabbitmq().await.unwrap();
    let often = |backoff: backon::ExponentialBuilder| {
        backoff.with_min_delay(Duration::from_millis(100)).with_max_delay(Duration::from_millis(500)).with_max_times(60)
    };
    let recovering = ConnectionProperties::default().enable_auto_recover().configure_backoff(often);
    let bare = lapin::Connection::connect(&bares.url(&server), recovering).await.unwrap();
    let channel = bare.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    assert!(rabbit.publish(Message::new("", "nobody", "x").optional()).await.unwrap().is_confirmed());

    [&proxy, &bares].into_iter().for_each(Proxy::freeze);
    let options = BasicPublishOptions::default();
    let confirm =
        channel.basic_publish("".into(), "nobody".into(), options, b"x", BasicProperties::default()).await.unwrap();
    let publishing = RabbitMq::clone(&rabbit);
    let publish = tokio::spawn(async move { publishing.publish(Message::new("", "nobody", "x").optional()).await });
    until_async(SOON, async || !pool.status().resource("rabbitmq").unwrap().work.is_empty()).await;
    server.kill().unwrap();
    for proxy in [&proxy, &bares] {
        proxy.cut();
        proxy.thaw();
    }
    let cut = Instant::now();
    let error = publish.within(SOON).await.unwrap().unwrap_err();
    let ours = cut.elapsed();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    let waited = tokio::time::timeout(ours * 2 + Duration::from_secs(2), confirm).await;
    assert!(waited.is_err(), "the bare driver answered: {waited:?}");

    pool.close_all().await;
    drop((channel, bare));
    let accepted = proxy.accepted();
    let opened = || bares.frames().into_iter().filter(|frame| frame.name == "Connection.OpenOk").count();
    let before = opened();
    server.restart().unwrap();
    until_async(SOON, async || opened() > before).await;
    assert_eq!((opened() - before, bares.open()), (1, 1), "a zombie of the bare driver's");
    assert_eq!((proxy.accepted(), proxy.open()), (accepted, 0), "none of ours, in all the time that it took");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_frozen_during_operations() {
    let server = rough();
    let pool = pool(&server);
    let rabbit = pool.rabbitmq().await.unwrap();
    let queue = unique("queue");
    rabbit.declare_queue(Queue::new(&queue)).await.unwrap();
    let channel = rabbit.channel().await.unwrap();
    let control = bare(&server).await;
    let bare_channel = control.create_channel().await.unwrap();
    let blocking = blocking::ResourcePool::from(pool.clone());
    let guard = blocking.rabbitmq().unwrap();
    server.freeze().unwrap();
    let started = Stopwatch::start();
    // The control is the bare driver. It calls a publish without confirms a success, and its request waits.
    let options = BasicPublishOptions::default();
    let said = bare_channel
        .basic_publish("".into(), queue.as_str().into(), options, b"lost", BasicProperties::default())
        .await;
    assert_eq!(said.unwrap().await.unwrap(), Confirmation::NotRequested);
    let bare_request = tokio::spawn(async move { bare_channel.basic_qos(1, BasicQosOptions::default()).await });

    let name = queue.clone();
    let clock = started.clone();
    let in_thread = thread::spawn(move || (guard.get(&name).map(drop), clock.took()));
    let (publish, get, raw) = tokio::join!(
        rabbit.publish(Message::new("", &queue, "one")),
        rabbit.get(&queue),
        channel.run(async |channel| channel.basic_qos(1, BasicQosOptions::default()).await),
    );
    println!("rabbitmq: frozen shows after {:?}", started.took());
    assert!(started.took() < FROZEN, "{:?}", started.took());
    assert!(matches!(publish, Err(Error::OutcomeUnknown { .. } | Error::Lost { .. })), "{publish:?}");
    assert!(matches!(get, Err(Error::Lost { .. })), "{get:?}");
    assert!(raw.is_err(), "{raw:?}");
    let native = channel.basic_qos(1, BasicQosOptions::default()).within(SOON).await;
    assert!(native.is_err(), "also through the driver's own handle");
    let (got, after) = in_thread.join().unwrap();
    assert!(got.is_err() && after < FROZEN, "{got:?} {after:?}");
    // New calls on both facades fail as well, with the cause.
    let fresh = Stopwatch::start();
    let error = rabbit.publish(Message::new("", &queue, "two")).await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. } | Error::Connect(_)), "{error}");
    assert!(fresh.took() < FROZEN, "{:?}", fresh.took());
    let fresh = Stopwatch::start();
    assert!(blocking.rabbitmq().and_then(|rabbit| rabbit.get(&queue).map(drop)).is_err());
    assert!(fresh.took() < FROZEN, "{:?}", fresh.took());
    until_async(SOON, async || started.took() > FROZEN).await;
    assert!(!bare_request.is_finished(), "the bare driver still waits after {FROZEN:?}");
    bare_request.abort();

    server.thaw().unwrap();
    until_async(SOON, async || rabbit.publish(Message::new("", &queue, "three")).await.is_ok()).await;
    assert!(rabbit.get(&queue).await.unwrap().is_some());
    assert!(!channel.status().connected(), "a raw channel dies with its connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_frozen_at_health() {
    let server = rough();
    let pool = pool(&server);
    let _rabbit = pool.rabbitmq().await.unwrap();
    assert_eq!(pool.health_check().await.entry("rabbitmq").unwrap().health, Health::Pass);
    server.freeze().unwrap();
    let froze = Instant::now();
    // The last report is valid for a second.
    let report = common::eventually(SOON, async || {
        let started = Stopwatch::start();
        let report = pool.health_check().await;
        assert!(started.took() < Duration::from_millis(800), "{:?}", started.took());
        (report.at > froze).then_some(report)
    })
    .await;
    assert_eq!(report.entry("rabbitmq").unwrap().health, Health::Fail, "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_frozen_at_close() {
    let server = rough();
    let pool = pool(&server);
    let rabbit = pool.rabbitmq().await.unwrap();
    let queue = unique("queue");
    rabbit.declare_queue(Queue::new(&queue)).await.unwrap();
    let mut consumer = rabbit.consume(queue.as_str()).await.unwrap();
    let control = bare(&server).await;
    server.freeze().unwrap();
    let publishing = RabbitMq::clone(&rabbit);
    let in_flight = tokio::spawn(async move { publishing.publish(Message::new("", queue, "one")).await });
    until_async(SOON, async || !pool.status().resource("rabbitmq").unwrap().work.is_empty()).await;
    let bare_close = tokio::spawn(async move { control.close(200, "OK".into()).await });
    let started = Stopwatch::start();
    let report = pool.close_all_within(Duration::from_secs(8)).await;
    println!("{report}");
    assert!(started.took() < Duration::from_secs(9), "{:?}", started.took());
    assert!(matches!(report.step("rabbitmq").unwrap().outcome, Outcome::Failed(_) | Outcome::Forced), "{report}");
    assert!(in_flight.within(SOON).await.unwrap().is_err());
    assert!(consumer.next().within(SOON).await.is_none());
    assert!(!bare_close.is_finished(), "the bare driver's close still waits");
    bare_close.abort();
}

/// Nothing else ends the connection here, because no probe notices that the broker is frozen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_that_does_not_answer_a_goodbye() {
    let server = rough();
    let mut options = Options::default();
    options.probe.enabled = false;
    let config = RabbitMqConfig::url(server.url()).disconnect_timeout(Duration::from_millis(700));
    let pool = patient_pool(config, options);
    drop(pool.rabbitmq().await.unwrap());
    server.freeze().unwrap();
    let report = pool.close_all().await;
    let outcome = report.step("rabbitmq").unwrap().outcome.to_string();
    assert_eq!(outcome, "failed: the broker did not answer the goodbye within 700ms", "{report}");
}

/// While the broker is short of memory, the driver writes nothing on a connection that has published.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_blocked_by_a_memory_alarm() {
    let server = rough();
    let limit = Duration::from_secs(1);
    let config = RabbitMqConfig::url(server.url()).confirm_timeout(limit).operation_timeout(limit);
    let pool = patient_pool(config, Options::default());
    let rabbit = pool.rabbitmq().await.unwrap();
    let queue = unique("queue");
    rabbit.declare_queue(Queue::new(&queue)).await.unwrap();
    assert!(rabbit.publish(Message::new("", &queue, "one")).await.unwrap().is_confirmed());
    let control = bare(&server).await;
    let bare_channel = control.create_channel().await.unwrap();
    server.rabbitmq().unwrap().memory_alarm(true).unwrap();

    let publish = bare_channel.basic_publish(
        "".into(),
        queue.as_str().into(),
        BasicPublishOptions::default(),
        b"bare",
        BasicProperties::default(),
    );
    drop(publish.await);
    until_async(SOON, async || control.status().blocked()).await;
    let bare_close = tokio::spawn(async move { control.close(200, "OK".into()).await });

    // The broker may take the first unconfirmed message later. The pool does not send the messages after it.
    let first = rabbit.publish(Message::new("", &queue, "two")).await.unwrap_err();
    assert!(matches!(first, Error::OutcomeUnknown { .. }), "{first}");
    assert!(first.to_string().contains("blocked by the broker"), "{first}");
    let second = rabbit.publish(Message::new("", &queue, "three")).await.unwrap_err();
    assert!(matches!(second, Error::Timeout(_)), "{second}");
    assert!(second.to_string().contains("blocked by the broker"), "{second}");
    let blocking = blocking::ResourcePool::from(pool.clone());
    let third = blocking.rabbitmq().unwrap().publish(Message::new("", &queue, "three")).unwrap_err();
    assert!(third.to_string().contains("blocked by the broker"), "{third}");
    assert_eq!(pool.health_check().await.entry("rabbitmq").unwrap().health, Health::Pass, "it answers");

    server.rabbitmq().unwrap().memory_alarm(false).unwrap();
    until_async(SOON, async || rabbit.publish(Message::new("", &queue, "four")).await.is_ok()).await;
    assert_eq!(pool.status().resource("rabbitmq").unwrap().generation, 1, "the connection was never lost");
    assert!(
        bare_close.within(SOON).await.unwrap().is_ok(),
        "and the bare driver's close had waited for the alarm's end"
    );

    server.rabbitmq().unwrap().memory_alarm(true).unwrap();
    assert!(rabbit.publish(Message::new("", &queue, "five")).await.is_err());
    let started = Stopwatch::start();
    let report = pool.close_all().await;
    println!("{report}");
    assert!(started.took() < Duration::from_secs(7), "{:?}", started.took());
    server.rabbitmq().unwrap().memory_alarm(false).unwrap();
    assert!(!report.all_closed(), "nothing could be said to the broker: {report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_idle_consumer_survives() {
    let pool = pool(server());
    let rabbit = pool.rabbitmq().await.unwrap();
    let queue = rabbit.declare_queue(Queue::temporary()).await.unwrap();
    let mut consumer = rabbit.consume(queue.name()).await.unwrap();
    let guard = blocking::ResourcePool::from(pool.clone()).rabbitmq().unwrap();
    let in_thread = thread::spawn(move || {
        let queue = guard.declare_queue(Queue::temporary()).unwrap();
        guard.consume(queue.name()).unwrap().next_within(Duration::from_secs(8)).unwrap().is_none()
    });
    let idle = tokio::time::timeout(Duration::from_secs(8), consumer.next()).await;
    assert!(idle.is_err(), "nothing came, neither a message nor an error");
    assert!(in_thread.join().unwrap());
    assert!(rabbit.publish(Message::new("", queue.name(), "at last")).await.unwrap().is_confirmed());
    consume_one(&mut consumer, "at last").await;
    assert_eq!(pool.status().resource("rabbitmq").unwrap().generation, 1);
}

/// On a shared channel, the bare driver may report the wrong one of two messages as returned.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_returned_messages_go_to_their_own_publisher() {
    const EACH: usize = 500;
    let pool = pool(server());
    let rabbit = pool.rabbitmq().await.unwrap();
    let queue = rabbit.declare_queue(Queue::temporary()).await.unwrap().name().to_owned();
    let publish = async |routable: bool| {
        let key = if routable { &queue } else { "nobody" };
        rabbit.publish(Message::new("", key, "x")).await.unwrap().is_confirmed()
    };
    let publisher = async |seed: usize| {
        let mut wrong = 0;
        for n in 0..EACH / 8 {
            let routable = (n + seed).is_multiple_of(2);
            wrong += usize::from(publish(routable).await != routable);
        }
        wrong
    };
    let wrong = futures_util::future::join_all((0..8).map(&publisher)).await;
    assert_eq!(wrong.iter().sum::<usize>(), 0);

    let control = bare(server()).await;
    let channel = control.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let mut wrong = 0;
    for _ in 0..20 {
        let confirms = (0..EACH).map(async |n| {
            let routable = n % 2 == 0;
            let key = if routable { queue.as_str() } else { "nobody" };
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let confirm =
                channel.basic_publish("".into(), key.into(), options, b"x", BasicProperties::default()).await?.await?;
            Ok::<_, lapin::Error>(matches!(confirm, Confirmation::Ack(None)) != routable)
        });
        let told = futures_util::future::join_all(confirms).await;
        wrong += told.into_iter().filter(|wrong| *wrong.as_ref().unwrap()).count();
        if wrong > 0 {
            break;
        }
    }
    assert!(wrong > 0, "the bare driver got all right");
    println!("control: the bare driver told {wrong} publishers wrongly");
}

/// The parts of a batch overlap. The driver may report a return with the confirm of a later part.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_a_batch_tells_which_of_its_messages_came_back() {
    for window in [1, 2, 3, 8, 20, 64] {
        let mut config = RabbitMqConfig::url(server().url());
        config.confirm_window = window;
        let pool = pool_of(config);
        let rabbit = pool.rabbitmq().await.unwrap();
        let queue = rabbit.declare_queue(Queue::temporary()).await.unwrap().name().to_owned();
        let is_routable = |n: usize| !(n % 7 == 3 || n % 100 > 60);
        let batch = (0..1000).map(|n| {
            // The pool keeps as many messages in memory as the window allows, and no more.
            let work = pool.status().resource("rabbitmq").unwrap().work.clone();
            let unconfirmed: usize =
                work.iter().filter(|(work, _)| *work == Work::Confirm).map(|(_, count)| count).sum();
            assert!(unconfirmed < window, "{unconfirmed} of a window of {window} as {n} is taken");
            let message = Message::new("", if is_routable(n) { &queue } else { "nobody" }, (n % 10).to_string());
            // A persistent message is confirmed later than a transient one.
            if n % 3 == 0 { message } else { message.transient() }
        });
        let batch = rabbit.publish_batch(batch).await.unwrap();
        assert_eq!(batch.results().len(), 1000);
        for (n, result) in batch.results().iter().enumerate() {
            let came_back = matches!(result, Ok(Published::Returned { code: 312, .. }));
            assert_ne!(came_back, is_routable(n), "{n} of a window of {window}: {result:?}");
        }
        let lost = rabbit.publish_batch((0..100).map(|_| Message::new("", "nobody", "same"))).await.unwrap();
        assert!(lost.results().iter().all(|result| matches!(result, Ok(Published::Returned { .. }))), "{lost}");
        assert_eq!(rabbit.publish_batch([]).await.unwrap().results().len(), 0);
        assert!(pool.close_all().await.all_closed());
    }
}

#[test]
fn rabbitmq_cold_rush_connects_once() {
    let proxy = Proxy::start(server().port()).unwrap();
    // The probe would open a connection and channels of its own, more of them the slower the broker is.
    let mut options = Options::default();
    options.probe.enabled = false;
    let config = RabbitMqConfig::url(proxy.url(server())).max_channels(32);
    let pool = ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().unwrap();
    let queue = unique("rush");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let confirmed = &AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..100 {
            let (pool, queue) = (blocking::ResourcePool::from(pool.clone()), &queue);
            scope.spawn(move || {
                for _ in 0..10 {
                    let rabbit = pool.within(SOON).rabbitmq().unwrap();
                    let published = rabbit.publish(Message::new("", queue, "x").transient().optional()).unwrap();
                    confirmed.fetch_add(usize::from(published.is_confirmed()), Ordering::Relaxed);
                }
            });
        }
        runtime.block_on(async {
            let tasks = (0..100).map(|_| {
                let (pool, queue) = (pool.clone(), queue.clone());
                tokio::spawn(async move {
                    let rabbit = pool.within(SOON).rabbitmq().await.unwrap();
                    let batch =
                        rabbit.publish_batch((0..10).map(|_| Message::new("", &queue, "x").transient().optional()));
                    batch.await.unwrap().confirmed()
                })
            });
            for task in tasks.collect::<Vec<_>>() {
                confirmed.fetch_add(task.await.unwrap(), Ordering::Relaxed);
            }
        });
    });
    assert_eq!(confirmed.load(Ordering::Relaxed), 2000);
    assert_eq!(pool.status().resource("rabbitmq").unwrap().generation, 1);
    let frames = proxy.frames();
    assert_eq!(proxy.accepted(), 1, "one connection for all");
    let opened = frames.iter().filter(|frame| frame.name == "Channel.Open").count();
    assert!(opened <= 32, "{opened} channels");
    // The same again, closed under load.
    let done = thread::scope(|scope| {
        for _ in 0..20 {
            let (pool, queue) = (blocking::ResourcePool::from(pool.clone()), &queue);
            scope.spawn(move || {
                while pool.rabbitmq().and_then(|rabbit| rabbit.publish(Message::new("", queue, "x").optional())).is_ok()
                {
                }
            });
        }
        runtime.block_on(pool.close_all())
    });
    assert!(done.all_closed(), "{done}");
    until(SOON, || proxy.open() == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_exhausted_channels_name_the_holder() {
    let options = {
        let mut options = Options::default();
        options.acquire_timeout = Duration::from_millis(300);
        options
    };
    let pool = patient_pool(RabbitMqConfig::url(server().url()).max_channels(1), options);
    let rabbit = pool.within(SOON).rabbitmq().await.unwrap();
    let held = rabbit.channel().await.unwrap();
    let line = line!() - 1;
    let started = Stopwatch::start();
    let error = rabbit.publish(Message::new("", "nobody", "x")).await.unwrap_err();
    assert!(started.took() < Duration::from_millis(900), "{:?}", started.took());
    assert!(matches!(error, Error::Timeout(_)), "{error}");
    assert!(error.to_string().contains(&format!("tests/rabbitmq.rs:{line}")), "{error}");
    assert_eq!(pool.health_check().await.entry("rabbitmq").unwrap().health, Health::Pass, "health takes no channel");
    drop(held);
    // The slot is free once the broker has closed the channel.
    until_async(SOON, async || rabbit.publish(Message::new("", "nobody", "x").optional()).await.is_ok()).await;
    assert_eq!(pool.status().resource("rabbitmq").unwrap().usage.max, Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_errors_of_the_broker_spoil_only_their_channel() {
    let pool = pool(server());
    let rabbit = pool.rabbitmq().await.unwrap();
    let queue = unique("queue");
    rabbit.declare_queue(Queue::new(&queue).transient().auto_delete()).await.unwrap();
    let other = rabbit.declare_queue(Queue::new(&queue)).await.unwrap_err();
    assert!(matches!(other, Error::Operation { .. }) && other.to_string().contains("PRECONDITION_FAILED"), "{other}");
    let missing = rabbit.publish(Message::new("no such exchange", "", "x")).await.unwrap_err();
    assert!(matches!(missing, Error::Operation { .. }) && missing.to_string().contains("NOT_FOUND"), "{missing}");
    let nowhere = rabbit.consume("no such queue").await.unwrap_err();
    assert!(nowhere.to_string().contains("NOT_FOUND"), "{nowhere}");
    assert!(rabbit.get("no such queue").await.is_err());
    assert!(rabbit.bind(&queue, "no such exchange", "").await.is_err());
    let long = rabbit.publish(Message::new("", "k".repeat(256), "x")).await.unwrap_err();
    assert!(matches!(long, Error::Operation { .. }), "{long}");
    // A consumer gets an error when its queue is deleted.
    let mut consumer = rabbit.consume(queue.as_str()).await.unwrap();
    rabbit.delete_queue(&queue).await.unwrap();
    let end = consumer.next().within(SOON).await.unwrap().unwrap_err();
    assert!(end.to_string().contains("cancelled"), "{end}");
    assert!(consumer.next().within(SOON).await.is_none());
    assert_eq!(pool.status().resource("rabbitmq").unwrap().generation, 1, "the connection was never lost");
    assert!(rabbit.publish(Message::new("", "nobody", "x").optional()).await.unwrap().is_confirmed());
    assert!(pool.close_all().await.all_closed());
}

/// The error of a server may name the user, but never the password, even if the password is the same word or a part of
/// it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_error_that_names_the_user_is_told() {
    let server = server();
    let (vhost, exchange) = (server.database(), unique("exchange"));
    let pool = pool(server);
    pool.rabbitmq().await.unwrap().declare_exchange(Exchange::fanout(&exchange).transient()).await.unwrap();
    let view = server.rabbitmq().unwrap();
    for (user, password, is_told) in
        [("guest", "guest", true), ("a-guest", "guest", true), ("guest-b", "exchange", false), ("c", "refused", false)]
    {
        view.ctl(&["add_user", user, password]).or_else(|_| view.ctl(&["change_password", user, password])).unwrap();
        view.ctl(&["set_permissions", "--vhost", vhost, user, "^$", "^$", "^$"]).unwrap();
        let mut config = RabbitMqConfig::default();
        (config.host, config.port) = ("127.0.0.1".to_owned(), server.port());
        (config.user, config.password, config.vhost) = (user.to_owned(), password.into(), vhost.to_owned());
        let pool = pool_of(config);
        let rabbit = pool.rabbitmq().await.unwrap();
        let error = rabbit.publish(Message::new(&exchange, "", "x")).await.unwrap_err();
        let said = format!("{error} {error:?}");
        assert_eq!(said.contains(&format!("refused for user '{user}'")), is_told, "{said}");
        assert_eq!(said.contains("withheld"), !is_told, "{said}");
        assert_eq!(rabbit.publish_batch([Message::new(&exchange, "", "x")]).await.unwrap().unknown(), 0);
        assert!(pool.close_all().await.all_closed());
    }
}

/// A delete that the broker refuses changes nothing. The exchange and the queue are declared again after a loss.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_forgets_only_what_was_deleted() {
    let server = Service::start(Kind::RabbitMq).unwrap();
    let view = server.rabbitmq().unwrap();
    let pool = pool(&server);
    let rabbit = pool.rabbitmq().await.unwrap();
    // The connection's end removes both, unless the pool declares them again.
    rabbit.declare_exchange(Exchange::fanout("kept").transient().auto_delete()).await.unwrap();
    rabbit.declare_queue(Queue::new("kept").transient().exclusive()).await.unwrap();
    rabbit.bind("kept", "kept", "").await.unwrap();
    rabbit.declare_queue(Queue::new("deleted").transient().exclusive()).await.unwrap();
    view.rights(false).unwrap();
    // A channel caches the rights that it has looked up. This error ends the channel.
    rabbit.get("no such queue").await.map(drop).unwrap_err();
    let is_refused = |answer: Result<(), Error>| {
        let error = answer.unwrap_err();
        assert!(matches!(error, Error::Operation { .. }) && error.to_string().contains("ACCESS_REFUSED"), "{error}");
    };
    is_refused(rabbit.delete_exchange("kept").await);
    is_refused(rabbit.delete_queue("kept").await);
    view.rights(true).unwrap();
    rabbit.delete_queue("deleted").await.unwrap();
    pool.reconnect("rabbitmq").await.unwrap();
    assert!(rabbit.publish(Message::new("kept", "", "x")).await.unwrap().is_confirmed());
    until_async(SOON, async || rabbit.get("kept").await.unwrap().is_some()).await;
    assert!(rabbit.get("deleted").await.unwrap_err().to_string().contains("NOT_FOUND"));
    assert!(pool.close_all().await.all_closed());
}

/// The report of a batch tells a refused message from those that may have been taken and from those that cannot have
/// been.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_refused_message_of_a_batch_is_told_apart() {
    let pool = pool(server());
    let rabbit = pool.rabbitmq().await.unwrap();
    type Refused = fn(&str) -> Message;
    let refused: [(&str, Refused); 3] = [
        ("NOT_FOUND", |_| Message::new("missing", "", "x")),
        ("user_id property set to 'somebody'", |queue| {
            Message::new("", queue, "x").properties(BasicProperties::default().with_user_id("somebody".into()))
        }),
        ("invalid expiration 'someday'", |queue| {
            Message::new("", queue, "x").properties(BasicProperties::default().with_expiration("someday".into()))
        }),
    ];
    // The broker may refuse a message while other messages of its part are still being sent. The driver may then send
    // the rest on a channel that has ended, and lose the connection by that. So other publishers use another
    // connection.
    for ((why, refused), sends_long) in refused.into_iter().flat_map(|refused| [(refused, false), (refused, true)]) {
        let mut config = RabbitMqConfig::url(server().url());
        config.confirm_window = if sends_long { 60_000 } else { config.confirm_window };
        let publishing = pool_of(config);
        let queue = rabbit.declare_queue(Queue::new(unique("queue"))).await.unwrap().name().to_owned();
        let (before, count) = (500, 20_000);
        let messages = (0..count).map(|n| match n {
            n if n == before => refused(&queue),
            n => Message::new("", &queue, n.to_string()),
        });
        let batch = publishing.rabbitmq().await.unwrap().publish_batch(messages).await.unwrap();
        assert_eq!(batch.results().len(), count);
        let (taken, rest) = batch.results().split_at(before);
        for result in taken {
            let may_be = matches!(result, Ok(Published::Confirmed) | Err(Error::OutcomeUnknown { .. }));
            assert!(may_be, "{result:?}");
        }
        let said = |result: &Result<Published, Error>| match result {
            Err(error @ Error::Operation { action, .. }) => (action.clone(), format!("{error} {error:?}")),
            other => panic!("{other:?}"),
        };
        let (action, error) = said(&rest[0]);
        assert!(error.contains(why) && !action.contains("(it was not"), "{error}");
        for result in &rest[1..] {
            let (action, error) = said(result);
            assert!(action.contains("(it was not taken)") || action.contains("(it was not sent)"), "{error}");
        }
        // The messages in the queue are of the first part, and all confirmed ones are there.
        let mut found = 0;
        while let Some(delivery) = rabbit.get(&queue).await.unwrap() {
            let number: usize = String::from_utf8_lossy(delivery.data()).parse().unwrap();
            assert!(number < before, "{number} was taken after all");
            delivery.ack().await.unwrap();
            found += 1;
        }
        assert!((batch.confirmed()..=batch.confirmed() + batch.unknown()).contains(&found), "{found}: {batch}");
        rabbit.delete_queue(&queue).await.unwrap();
    }
    // With two messages that the broker cannot take, the driver does not know which one was refused.
    let queue = rabbit.declare_queue(Queue::temporary()).await.unwrap().name().to_owned();
    let missing = || Message::new("missing", "", "x");
    let two = [missing(), Message::new("", &queue, "x"), missing()];
    let publishing = pool_of(RabbitMqConfig::url(server().url()));
    assert_eq!(publishing.rabbitmq().await.unwrap().publish_batch(two).await.unwrap().unknown(), 3);
    assert_eq!(generation(&pool), 1);
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
}

/// The window limits a batch's messages in memory by number and by bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_window_of_a_batch_is_bounded_in_bytes() {
    let server = server();
    let proxy = Proxy::start(server.port()).unwrap().unrecorded();
    for (bytes, headers, in_window, limit) in
        [(1 << 20, 0, 15, None), (0, 100_000, 167, None), (5 << 20, 0, 1, Some(1 << 20))]
    {
        let mut config = RabbitMqConfig::url(proxy.url(server));
        config.confirm_window_bytes = limit.unwrap_or(config.confirm_window_bytes);
        let pool = pool_of(config);
        let rabbit = pool.rabbitmq().await.unwrap();
        let queue = rabbit.declare_queue(Queue::temporary()).await.unwrap().name().to_owned();
        proxy.freeze();
        let (taken, count) = (Arc::new(AtomicUsize::new(0)), in_window * 2 + 2);
        let batch = tokio::spawn({
            let (rabbit, taken, queue) = (RabbitMq::clone(&rabbit), Arc::clone(&taken), queue.clone());
            async move {
                let messages = (0..count).map(|_| {
                    taken.fetch_add(1, Ordering::SeqCst);
                    let properties = match headers {
                        0 => BasicProperties::default(),
                        headers => BasicProperties::default().with_headers(table(headers)),
                    };
                    Message::new("", &queue, vec![7; bytes]).properties(properties)
                });
                rabbit.publish_batch(messages).await
            }
        });
        let work = || pool.status().resource("rabbitmq").unwrap().work.clone();
        until_async(SOON, async || work() == [(Work::Confirm, in_window)]).await;
        assert_eq!(taken.load(Ordering::SeqCst), in_window + 1, "one is looked at");
        proxy.thaw();
        let batch = batch.within(SOON).await.unwrap().unwrap();
        assert!(batch.all_confirmed() && batch.results().len() == count, "{batch}");
        assert!(pool.close_all().await.all_closed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_dropped_deliveries_and_consumers_give_back() {
    let pool = pool(server());
    let rabbit = pool.rabbitmq().await.unwrap();
    let queue = unique("queue");
    rabbit.declare_queue(Queue::new(&queue).exclusive().transient()).await.unwrap();
    assert!(
        rabbit.publish_batch((0..20).map(|n| Message::new("", &queue, n.to_string()))).await.unwrap().all_confirmed()
    );
    let mut consumer = rabbit.consume(Consume::from(queue.as_str()).prefetch(10)).await.unwrap();
    let kept = consumer.next().within(SOON).await.unwrap().unwrap();
    let dropped = consumer.next().within(SOON).await.unwrap().unwrap();
    assert_eq!((kept.data(), dropped.data()), (&b"0"[..], &b"1"[..]));
    drop((dropped, consumer));
    // A delivery can be acknowledged after its consumer is gone.
    kept.ack().await.unwrap();
    let mut seen = HashSet::new();
    while seen.len() < 19 {
        if let Some(delivery) = rabbit.get(&queue).await.unwrap() {
            seen.insert(String::from_utf8(delivery.data().to_vec()).unwrap());
            delivery.ack().await.unwrap();
        }
    }
    assert!(!seen.contains("0") && seen.contains("1"), "{seen:?}");
    assert!(pool.status().resource("rabbitmq").unwrap().work.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_publish_given_up_leaves_the_pool_in_order() {
    let pool = pool_of(RabbitMqConfig::url(server().url()).max_channels(2));
    let rabbit = pool.rabbitmq().await.unwrap();
    let queue = rabbit.declare_queue(Queue::temporary()).await.unwrap().name().to_owned();
    for nanos in (0..200).map(|n| n * 5000) {
        let publish = rabbit.publish(Message::new("", if nanos % 2 == 0 { &queue } else { "nobody" }, "x"));
        let _ = tokio::time::timeout(Duration::from_nanos(nanos), publish).await;
    }
    for _ in 0..20 {
        assert!(rabbit.publish(Message::new("", &queue, "x")).await.unwrap().is_confirmed());
        assert!(!rabbit.publish(Message::new("", "nobody", "x")).await.unwrap().is_confirmed());
    }
    assert!(pool.holders().iter().all(|holder| !holder.exclusive));
    assert!(pool.close_all().await.all_closed());
}

/// The driver's parser turns an IPv6 address into localhost, and a trailing slash into the virtual host "".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_urls_mean_what_they_say() {
    let parsed: lapin::uri::AMQPUri = "amqp://[::1]:5672".parse().unwrap();
    assert_eq!(parsed.authority.host, "localhost", "the bare driver drops IPv6 addresses");
    let endpoint =
        |url: &str| pool_of(RabbitMqConfig::url(url)).status().resource("rabbitmq").unwrap().endpoint.to_string();
    assert_eq!(endpoint("amqp://[::1]:5672"), "amqp://[::1]:5672/%2F");
    assert_eq!(endpoint("amqp://host"), "amqp://host:5672/%2F");
    assert_eq!(endpoint("amqp://host/%2f"), "amqp://host:5672/%2F");
    assert_eq!(endpoint("amqp://host:1/research"), "amqp://host:1/research");

    let (root, _) = server().url().rsplit_once('/').unwrap();
    let url = format!("{root}/");
    let refused = lapin::Connection::connect(&url, ConnectionProperties::default()).await.unwrap_err();
    println!("control: {refused}");
    let rabbit = pool_of(RabbitMqConfig::url(&url)).rabbitmq().await.unwrap();
    assert!(rabbit.get("nobody").await.unwrap_err().to_string().contains("in vhost '/'"));

    for url in ["amqp://host?frame_max=1", "amqp://host?nonsense=1", "amqp://host?heartbeat=0", "host:5672"] {
        let refused = ResourcePool::builder().environment([("", ""); 0]).resource(RabbitMqConfig::url(url)).build();
        let refused = match refused {
            Ok(pool) => pool.rabbitmq().await.unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(refused, Error::Config { .. }), "{url}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_refusals_are_told_apart() {
    let fails = async |config: RabbitMqConfig| {
        let started = Stopwatch::start();
        let error = pool_of(config).within(Duration::from_secs(3)).rabbitmq().await.unwrap_err();
        (error, started.took())
    };
    let parts = || {
        let mut config = RabbitMqConfig::default();
        config.host = server().host().to_owned();
        config.port = server().port();
        config.user = server().user().to_owned();
        config.password = server().password().into();
        config.vhost = server().database().to_owned();
        config
    };
    assert!(pool_of(parts()).rabbitmq().await.is_ok(), "from parts");
    let mut password = parts();
    password.password = "secret-of-ours".into();
    let (error, took) = fails(password).await;
    assert!(matches!(&error, Error::Connect(error) if error.permanent && error.attempts == 1), "{error}");
    assert!(
        took < Duration::from_secs(2) && !format!("{error} {error:?}").contains("secret-of-ours"),
        "{error} {took:?}"
    );
    let mut vhost = parts();
    vhost.vhost = "nowhere".to_owned();
    let (error, _) = fails(vhost).await;
    assert!(matches!(&error, Error::Connect(error) if error.permanent), "{error}");
    let hole = BlackHole::start().unwrap();
    let mut config = parts();
    config.port = hole.port();
    let (error, took) = fails(config).await;
    assert!(error.is_transient() && took < Duration::from_secs(4), "{error} {took:?}");
    let mut config = parts();
    config.host = "no-such-host.invalid".to_owned();
    let (error, _) = fails(config).await;
    assert!(error.is_transient(), "{error}");
    let mut config = parts();
    config.port = 1;
    let (error, _) = fails(config).await;
    assert!(error.is_transient() && error.to_string().contains("refused"), "{error}");
}

/// A minimal executor without tokio.
fn park_on<F: Future>(future: F) -> F::Output {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(thread::current())).into();
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// The bare driver's futures never resolve once the runtime that it was made on is gone.
#[test]
fn rabbitmq_works_from_a_second_runtime_after_the_first_is_gone() {
    let new = || tokio::runtime::Runtime::new().unwrap();
    let pool = pool(server());
    let first = new();
    let (rabbit, control) = first.block_on(async { (pool.rabbitmq().await.unwrap(), bare(server()).await) });
    drop(first);
    let second = new();
    second.block_on(async {
        assert!(rabbit.publish(Message::new("", "nobody", "x").optional()).await.unwrap().is_confirmed());
        let waited = tokio::time::timeout(Duration::from_secs(2), control.create_channel()).await;
        assert!(waited.is_err(), "the bare driver answered: {waited:?}");
        assert!(control.status().connected(), "and says that it is connected");
    });
    // On no runtime at all, and on a thread of a runtime that may not block.
    let published = park_on(rabbit.publish(Message::new("", "nobody", "x").optional()));
    assert!(published.unwrap().is_confirmed());
    let guard = blocking::ResourcePool::from(pool.clone()).rabbitmq().unwrap();
    assert!(guard.publish(Message::new("", "nobody", "x").optional()).unwrap().is_confirmed());
    second.block_on(async {
        let guard = guard.clone();
        let published = tokio::task::spawn_blocking(move || guard.publish(Message::new("", "nobody", "x").optional()));
        assert!(published.await.unwrap().unwrap().is_confirmed());
    });
    let current = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    current.block_on(async {
        let refused = guard.publish(Message::new("", "nobody", "x")).unwrap_err();
        assert!(matches!(refused, Error::InAsyncContext { .. }), "{refused}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_scoped_closes_by_drop_by_question_mark_and_by_panic() {
    let proxy = Proxy::start(server().port()).unwrap();
    let config = || RabbitMqConfig::url(proxy.url(server()));
    let scoped = RabbitMq::scoped(config()).await.unwrap();
    assert!(scoped.publish(Message::new("", "nobody", "x").optional()).await.unwrap().is_confirmed());
    let report = scoped.close().await;
    assert!(report.all_closed(), "{report}");
    until_async(SOON, async || proxy.open() == 0).await;

    async fn fails(config: RabbitMqConfig) -> Result<(), Error> {
        let scoped = RabbitMq::scoped(config).await?;
        scoped.get("no such queue").await.map(drop)
    }
    assert!(fails(config()).await.is_err());
    until_async(SOON, async || proxy.open() == 0).await;

    let within = config();
    let panicked = thread::spawn(move || {
        let scoped = blocking::RabbitMq::scoped(within).unwrap();
        assert!(scoped.publish(Message::new("", "nobody", "x").optional()).unwrap().is_confirmed());
        panic!("as the test asked");
    });
    assert!(panicked.join().is_err());
    until_async(SOON, async || proxy.open() == 0).await;

    // The guards drop outside of any runtime.
    let scoped = RabbitMq::scoped(config()).await.unwrap();
    thread::spawn(move || drop(scoped)).join().unwrap();
    until_async(SOON, async || proxy.open() == 0).await;
    let report = blocking::RabbitMq::scoped(config());
    let report = thread::spawn(move || report.unwrap().close()).join().unwrap().unwrap();
    assert!(report.all_closed(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_named_and_closed_one_by_one() {
    let proxy = Proxy::start(server().port()).unwrap();
    let config = RabbitMqConfig::url(proxy.url(server())).connection_name("research");
    let pool = ResourcePool::builder().environment([("", ""); 0]).named("research", config.clone()).build().unwrap();
    let rabbit = pool.rabbitmq_named("research").await.unwrap();
    let clone = RabbitMq::clone(&rabbit);
    let raw = rabbit.channel().await.unwrap();
    assert!(matches!(pool.rabbitmq_with("research", config.prefetch(7)).await, Err(Error::NameTaken { .. })));
    drop(raw);
    assert!(pool.close("research").await.unwrap().all_closed());
    // A clone that is kept holds no socket.
    until_async(SOON, async || proxy.open() == 0).await;
    let error = clone.publish(Message::new("", "nobody", "x")).await.unwrap_err();
    assert!(matches!(error, Error::Closed { .. }), "{error}");
    assert!(clone.consume("nobody").await.unwrap_err().is_closed());
    assert!(clone.channel().await.unwrap_err().is_closed());
    pool.reconnect("research").await.unwrap();
    assert!(clone.publish(Message::new("", "nobody", "x")).await.unwrap_err().is_closed(), "closed stays closed");
    let again = pool.rabbitmq_named("research").await.unwrap();
    assert!(again.publish(Message::new("", "nobody", "x").optional()).await.unwrap().is_confirmed());
}
