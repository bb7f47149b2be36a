//! RabbitMQ as workers use it: properties of queues and messages, attempts, many acknowledgements at once, and jobs.

#![cfg(feature = "rabbitmq")]
#![allow(missing_docs)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::pin::pin;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use common::{Within, eventually, until_async};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use lapin::uri::AMQPUri;
use parking_lot::Mutex;
use resource_pool::config::RabbitMqConfig;
use resource_pool::rabbitmq::{Consume, Consumer, Delivery, Exchange, Message, Queue};
use resource_pool::{Error, RabbitMq, ResourcePool, What, Work, blocking};
use services::{Kind, Proxy, Service, shared};
use tokio::sync::Semaphore;

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
    until_async(SOON, async || acks() == 1).await;
    // The deliveries before the acknowledged one are settled. The broker would end the channel if one were settled again.
    drop(all.pop());
    all.pop().unwrap().ack().await.unwrap();
    all.pop().unwrap().ack_all_before().await.unwrap();
    for refused in [all.pop().unwrap().nack().await, all.pop().unwrap().requeue().await] {
        let Err(error @ Error::Operation { .. }) = refused else { panic!("{refused:?}") };
        assert!(error.to_string().contains("acknowledged with a later delivery"), "{error}");
    }
    drop((all, later));
    let mut again: Vec<_> = take(&mut consumer, 3).await.iter().map(text).collect();
    assert_eq!(acks(), 1, "all that came before these is written");
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
    let lost = old.pop().unwrap().ack().await.unwrap_err();
    assert!(matches!(lost, Error::Lost { .. }), "{lost}");
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

/// Polls a future once, and drops it unless it has ended.
async fn begin<T>(future: impl Future<Output = T>) {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let _ = future.as_mut().poll(cx);
        Poll::Ready(())
    })
    .await;
}

/// An acknowledgement of many that was given up leaves no delivery in hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_acknowledgement_that_is_given_up_is_written() {
    let server = server();
    let proxy = Proxy::start(server.port()).unwrap();
    let pool = pool_at(&proxy.url(server));
    let rabbit = pool.rabbitmq().await.unwrap();
    rabbit.declare_queue(Queue::new("given-up")).await.unwrap();
    let mut consumer = rabbit.consume(Consume::from("given-up").prefetch(100)).await.unwrap();
    let unacked = || {
        let queues = server.rabbitmq().unwrap().queues(server.database()).unwrap();
        queues.iter().find(|queue| queue.name == "given-up").map(|queue| (queue.ready, queue.unacked))
    };
    publish(&rabbit, "given-up", 100).await;
    let mut all = take(&mut consumer, 100).await;
    let (first, last) = (all.remove(0), all.pop().unwrap());
    begin(async { tokio::join!(first.ack(), last.ack_all_before()) }).await;
    until_async(SOON, async || unacked() == Some((0, 0)) && in_hand(&pool) == 0).await;
    for covered in all {
        covered.ack().await.unwrap();
    }

    // It also leaves no trace: one answer settles the later ones.
    let acks = || proxy.frames().iter().filter(|frame| frame.name == "Basic.Ack" && frame.from_client).count();
    publish(&rabbit, "given-up", 5).await;
    let mut all = take(&mut consumer, 5).await;
    let before = acks();
    begin(all.remove(0).ack()).await;
    until_async(SOON, async || acks() == before + 1 && in_hand(&pool) == 4).await;
    all.pop().unwrap().ack_all_before().await.unwrap();
    until_async(SOON, async || unacked() == Some((0, 0))).await;
    assert_eq!(acks(), before + 2);
    rabbit.delete_queue("given-up").await.unwrap();
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
}

/// A queue whose failed jobs go to `<queue>.dead`.
async fn declare_jobs(rabbit: &RabbitMq, queue: &str, is_quorum: bool) {
    let dead = format!("{queue}.dead");
    rabbit.declare_queue(Queue::new(&dead)).await.unwrap();
    let spec = Queue::new(queue).dead_letter("", Some(&dead));
    rabbit.declare_queue(if is_quorum { spec.quorum() } else { spec }).await.unwrap();
}

async fn delete_jobs(rabbit: &RabbitMq, queue: &str) {
    for name in [queue.to_owned(), format!("{queue}.dead"), format!("{queue}.retry")] {
        rabbit.delete_queue(&name).await.unwrap();
    }
}

/// Every attempt that a handler has seen, in order: the message, and which attempt it was.
type Seen = Arc<Mutex<Vec<(String, Option<u32>)>>>;

/// Fails, panics or succeeds as the message says.
async fn obey(job: &Delivery, seen: &Seen) -> Result<(), String> {
    let said = text(job);
    seen.lock().push((said.clone(), job.attempts()));
    tokio::task::yield_now().await;
    match said.as_str() {
        "fails" => Err("it says so".to_owned()),
        "fails once" if job.attempts() == Some(1) => Err("the first time".to_owned()),
        "panics" => panic!("it says so"),
        _ => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_jobs_are_retried_and_dead_lettered() {
    let other = pool_at(server().url());
    let keeper = other.rabbitmq().await.unwrap();
    for (queue, is_quorum) in [("retried", false), ("retried-quorum", true)] {
        let (pool, seen) = (pool_at(server().url()), Seen::default());
        let rabbit = pool.rabbitmq().await.unwrap();
        declare_jobs(&rabbit, queue, is_quorum).await;
        let exchange = format!("{queue}.topic");
        rabbit.declare_exchange(Exchange::topic(&exchange).auto_delete()).await.unwrap();
        rabbit.bind(queue, &exchange, "job.#").await.unwrap();
        let user = AMQPUri::from_str(server().url()).unwrap().authority.userinfo.username;
        // The exchange has nothing bound for this further key. The default exchange, to which a retry is published, would.
        let mut copies = FieldArray::default();
        copies.push(AMQPValue::LongString(format!("{queue}.dead").into()));
        for said in ["is done", "fails", "panics", "fails once"] {
            let properties = BasicProperties::default().with_user_id(user.as_str().into()).with_delivery_mode(2);
            let message = Message::new(&exchange, "job.new", said).properties(properties);
            let message = message.id(said).header("kept", 7).expiration(Duration::from_secs(60));
            let message = if said == "fails once" {
                message.header("CC", AMQPValue::FieldArray(copies.clone()))
            } else {
                message
            };
            assert!(rabbit.publish(message).await.unwrap().is_confirmed());
        }
        let what = Consume::from(queue).prefetch(8).attempts(3, Duration::from_millis(50));
        let (consumer, seeing) = (rabbit.consume(what).await.unwrap(), Arc::clone(&seen));
        let jobs = tokio::spawn(consumer.for_each_concurrent(4, async move |job: &Delivery| {
            assert_eq!((job.exchange(), job.routing_key()), (exchange.as_str(), "job.new"), "also when it comes back");
            assert_eq!(header(job, "kept"), Some(&AMQPValue::LongInt(7)));
            assert_eq!(job.properties().message_id().as_ref().unwrap().as_str(), text(job));
            obey(job, &seeing).await
        }));
        let mut dead = BTreeSet::new();
        while dead.len() < 2 {
            let delivery = get(&keeper, &format!("{queue}.dead")).await;
            assert_eq!((first_death(&delivery).as_str(), delivery.attempts()), ("expired", Some(4)), "{delivery:?}");
            assert_eq!((delivery.exchange(), delivery.routing_key()), ("", &*format!("{queue}.dead")));
            assert!(dead.insert(text(&delivery)), "{dead:?}");
            delivery.ack().await.unwrap();
        }
        assert_eq!(dead, ["fails", "panics"].map(str::to_owned).into());
        until_async(SOON, async || seen.lock().len() == 9).await;
        let report = pool.close_all().await;
        assert!(report.all_closed(), "{report}");
        let handled = jobs.within(SOON).await.unwrap().unwrap();
        assert_eq!(handled.to_string(), "2 done, 5 retried, 2 dead-lettered, 0 given back");
        for said in ["fails", "panics", "fails once", "is done"] {
            let attempts: Vec<_> = seen.lock().iter().filter(|(seen, _)| seen == said).map(|(_, of)| *of).collect();
            let expected: &[_] = match said {
                "is done" => &[Some(1)],
                "fails once" => &[Some(1), Some(2)],
                _ => &[Some(1), Some(2), Some(3)],
            };
            assert_eq!(attempts, expected, "{said}");
        }
        delete_jobs(&keeper, queue).await;
    }
}

/// Whatever could lose a message is refused before the first job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_jobs_that_could_be_lost_do_not_begin() {
    let pool = pool_at(server().url());
    let rabbit = pool.rabbitmq().await.unwrap();
    let pause = Duration::from_millis(50);
    let jobs = async |what: Consume, most: usize| {
        let consumer = rabbit.consume(what).await.unwrap();
        consumer.for_each_concurrent(most, async |_: &Delivery| Ok::<_, String>(())).await
    };
    let refused = async |what: Consume, most: usize, why: &str| {
        let error = jobs(what, most).within(SOON).await.unwrap_err();
        assert!(matches!(error, Error::Operation { .. }) && error.to_string().contains(why), "{error}");
    };
    let goes_on = async |what: Consume, most: usize| {
        assert!(tokio::time::timeout(Duration::from_millis(300), jobs(what, most)).await.is_err());
    };
    rabbit.declare_queue(Queue::new("careless")).await.unwrap();
    refused("careless".into(), 1, "`Queue::dead_letter`, or say `Consume::dead_lettered`").await;
    goes_on(Consume::from("careless").dead_lettered(), 1).await;

    declare_jobs(&rabbit, "careful", false).await;
    refused(Consume::from("careful").prefetch(3), 4, "need a prefetch of 4, and it is 3").await;
    goes_on(Consume::from("careful").prefetch(3).attempts(2, pause), 3).await;
    eventually(SOON, async || rabbit.declare_queue(Queue::new("careful.retry").passive()).await.ok()).await;
    refused(Consume::from("careful").attempts(2, pause * 2), 1, "declare it with those, or delete it first").await;
    delete_jobs(&rabbit, "careful").await;

    for (exchange, key) in [("nowhere", None), ("", Some("nowhere"))] {
        let queue = format!("careless-{}", exchange.len());
        rabbit.declare_queue(Queue::new(&queue).dead_letter(exchange, key)).await.unwrap();
        refused(queue.as_str().into(), 1, "NOT_FOUND").await;
        rabbit.delete_queue(&queue).await.unwrap();
    }
    rabbit.declare_queue(Queue::new("careless-loop").dead_letter("", None)).await.unwrap();
    refused("careless-loop".into(), 1, "would come back for ever").await;
    rabbit.delete_queue("careless-loop").await.unwrap();
    let named = rabbit.declare_queue(Queue::temporary().dead_letter("amq.topic", None)).await.unwrap();
    refused(Consume::from(named.name()).attempts(2, pause), 1, "name it").await;
    let mut stream = FieldTable::default();
    stream.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    rabbit.declare_queue(Queue::new("careless-stream").arguments(stream)).await.unwrap();
    refused("careless-stream".into(), 1, "use `next`").await;
    for queue in ["careless", "careless-stream"] {
        rabbit.delete_queue(queue).await.unwrap();
    }
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
}

/// Closing waits for the jobs in progress, and gives the others back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_jobs_in_progress_are_waited_for() {
    let (pool, other) = (pool_at(server().url()), pool_at(server().url()));
    let rabbit = pool.rabbitmq().await.unwrap();
    declare_jobs(&rabbit, "drained", false).await;
    publish(&rabbit, "drained", 9).await;
    let consumer = rabbit.consume(Consume::from("drained").prefetch(9)).await.unwrap();
    let (gate, at_work) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (entered, passing) = (Arc::clone(&at_work), Arc::clone(&gate));
    let jobs = tokio::spawn(consumer.for_each_concurrent(3, async move |_: &Delivery| {
        entered.fetch_add(1, Ordering::SeqCst);
        passing.acquire().await.unwrap().forget();
        Ok::<_, String>(())
    }));
    until_async(SOON, async || at_work.load(Ordering::SeqCst) == 3).await;
    gate.add_permits(1);
    until_async(SOON, async || at_work.load(Ordering::SeqCst) == 4).await;
    assert_eq!(in_hand(&pool), 3);
    let closing = pool.clone();
    let close = tokio::spawn(async move { closing.close_all().await });
    pool.closing().wait().within(SOON).await;
    let ready = || {
        let queues = server().rabbitmq().unwrap().queues(server().database()).unwrap();
        queues.iter().find(|queue| queue.name == "drained").map(|queue| (queue.ready, queue.unacked))
    };
    until_async(SOON, async || ready() == Some((5, 3))).await;
    assert!(!jobs.is_finished() && !close.is_finished(), "closing waits");
    gate.add_permits(3);
    let report = close.within(SOON).await.unwrap();
    assert!(report.all_closed(), "{report}");
    assert!(report.step("rabbitmq").unwrap().unfinished.is_empty(), "{report}");
    assert_eq!(
        jobs.within(SOON).await.unwrap().unwrap().to_string(),
        "4 done, 0 retried, 0 dead-lettered, 0 given back"
    );
    assert_eq!((at_work.load(Ordering::SeqCst), ready()), (4, Some((5, 0))), "no further job began");

    // A future that is dropped gives its jobs back.
    let rabbit = other.rabbitmq().await.unwrap();
    let consumer = rabbit.consume(Consume::from("drained").dead_lettered()).await.unwrap();
    let jobs = tokio::spawn(
        consumer.for_each_concurrent(5, async |_: &Delivery| std::future::pending::<Result<(), String>>().await),
    );
    until_async(SOON, async || in_hand(&other) == 5).await;
    jobs.abort();
    until_async(SOON, async || ready() == Some((5, 0))).await;
    for queue in ["drained", "drained.dead"] {
        rabbit.delete_queue(queue).await.unwrap();
    }
    let report = other.close_all().await;
    assert!(report.all_closed(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_jobs_survive_lost_connections() {
    const COUNT: usize = 600;
    let server = server();
    let proxy = Proxy::start(server.port()).unwrap().unrecorded();
    let (pool, other) = (pool_at(&proxy.url(server)), pool_at(server.url()));
    let (rabbit, keeper) = (pool.rabbitmq().await.unwrap(), other.rabbitmq().await.unwrap());
    declare_jobs(&rabbit, "survives", true).await;
    publish(&keeper, "survives", COUNT).await;
    let done = Arc::new(Mutex::new(BTreeMap::<String, u64>::new()));
    let what = Consume::from("survives").prefetch(10).attempts(1000, Duration::from_millis(20));
    let (consumer, counting) = (rabbit.consume(what).await.unwrap(), Arc::clone(&done));
    let jobs = tokio::spawn(consumer.for_each_concurrent(10, async move |job: &Delivery| {
        // The job works for a while, so that each loss of the connection meets some in progress.
        tokio::time::sleep(Duration::from_millis(2)).await;
        let said = text(job);
        // Each third message fails when it is new.
        if said.len().is_multiple_of(3) && job.attempts() == Some(1) {
            return Err("not yet");
        }
        *counting.lock().entry(said).or_default() += 1;
        Ok(())
    }));
    for share in 1..4 {
        until_async(SOON, async || done.lock().len() >= COUNT * share / 5).await;
        proxy.cut();
    }
    until_async(SOON, async || done.lock().len() == COUNT).await;
    assert!(generation(&pool) > 1);
    let empty = async |queue: &str| keeper.declare_queue(Queue::new(queue).passive()).await.unwrap().messages() == 0;
    until_async(SOON, async || empty("survives").await && empty("survives.retry").await && in_hand(&pool) == 0).await;
    assert!(empty("survives.dead").await);
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    let handled = jobs.within(SOON).await.unwrap().unwrap();
    println!("rabbitmq: {handled}");
    assert!(handled.done >= COUNT as u64 - handled.given_back && handled.dead_lettered == 0, "{handled}");
    delete_jobs(&keeper, "survives").await;
}

/// A job goes back and comes again while its retry queue is full. A retry queue that is gone is declared again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_job_that_the_retry_queue_does_not_take_goes_back() {
    let (pool, other) = (pool_at(server().url()), pool_at(server().url()));
    let (rabbit, keeper) = (pool.rabbitmq().await.unwrap(), other.rabbitmq().await.unwrap());
    declare_jobs(&rabbit, "untaken", false).await;
    let (what, seen) = (Consume::from("untaken").attempts(2, Duration::from_millis(50)), Seen::default());
    let (consumer, seeing) = (rabbit.consume(what).await.unwrap(), Arc::clone(&seen));
    let retry_queue = async || keeper.declare_queue(Queue::new("untaken.retry").passive()).await.is_ok();
    // The second failure waits until the queue is gone. A copy that a queue takes as it is deleted would be gone too.
    let gone = Arc::new(Semaphore::new(0));
    let waiting = Arc::clone(&gone);
    let handler = async move |job: &Delivery| {
        let outcome = obey(job, &seeing).await;
        if seeing.lock().len() > 1 {
            assert!(waiting.acquire().await.is_err());
        }
        outcome
    };
    let jobs = tokio::spawn(consumer.for_each_concurrent(1, handler));
    until_async(SOON, retry_queue).await;
    keeper.delete_queue("untaken.retry").await.unwrap();
    let mut rejects = FieldTable::default();
    rejects.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let full = Queue::new("untaken.retry").max_length(0).arguments(rejects);
    keeper.declare_queue(full).await.unwrap();
    assert!(keeper.publish(Message::new("", "untaken", "fails")).await.unwrap().is_confirmed());
    until_async(SOON, async || seen.lock().len() == 2).await;
    assert_eq!(seen.lock()[1].1, None, "the broker does not count");
    keeper.delete_queue("untaken.retry").await.unwrap();
    gone.close();
    let dead = get(&keeper, "untaken.dead").await;
    assert_eq!(text(&dead), "fails");
    dead.ack().await.unwrap();
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    let handled = jobs.within(SOON).await.unwrap().unwrap();
    assert_eq!((handled.done, handled.retried, handled.dead_lettered), (0, 1, 1), "{handled}");
    assert!(handled.given_back >= 1, "{handled}");
    delete_jobs(&keeper, "untaken").await;
}

/// A job that came back from the retry queue is dead-lettered by the key with which it was published first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_retried_jobs_are_dead_lettered_by_their_first_key() {
    let (pool, other) = (pool_at(server().url()), pool_at(server().url()));
    let (rabbit, keeper) = (pool.rabbitmq().await.unwrap(), other.rabbitmq().await.unwrap());
    for exchange in ["keyless.dlx", "keyless.in"] {
        rabbit.declare_exchange(Exchange::topic(exchange)).await.unwrap();
    }
    rabbit.declare_queue(Queue::new("keyless.dead")).await.unwrap();
    rabbit.bind("keyless.dead", "keyless.dlx", "job.#").await.unwrap();
    rabbit.declare_queue(Queue::new("keyless").dead_letter("keyless.dlx", None)).await.unwrap();
    rabbit.bind("keyless", "keyless.in", "job.#").await.unwrap();
    assert!(rabbit.publish(Message::new("keyless.in", "job.new", "fails").id("7")).await.unwrap().is_confirmed());
    let pause = Duration::from_millis(50);
    let (consumer, seen) =
        (rabbit.consume(Consume::from("keyless").attempts(3, pause)).await.unwrap(), Seen::default());
    let seeing = Arc::clone(&seen);
    let jobs = tokio::spawn(consumer.for_each_concurrent(1, async move |job: &Delivery| obey(job, &seeing).await));
    let dead = get(&keeper, "keyless.dead").await;
    assert_eq!((dead.exchange(), dead.routing_key(), dead.attempts()), ("keyless.dlx", "job.new", Some(4)));
    assert_eq!(dead.properties().message_id().as_ref().unwrap().as_str(), "7");

    // A dead job that is moved back begins anew, and so does one that claims to have been retried.
    let moved = Message::new("", "keyless", "fails").properties(dead.properties().clone());
    assert!(keeper.publish(moved).await.unwrap().is_confirmed());
    dead.ack().await.unwrap();
    until_async(SOON, async || seen.lock().len() == 6).await;

    // Nothing is bound for this key, so the job is kept.
    assert!(keeper.publish(Message::new("", "keyless", "fails")).await.unwrap().is_confirmed());
    until_async(SOON, async || seen.lock().len() >= 11).await;
    keeper.bind("keyless.dead", "keyless.dlx", "keyless").await.unwrap();
    for _ in 0..2 {
        get(&keeper, "keyless.dead").await.ack().await.unwrap();
    }
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    let handled = jobs.within(SOON).await.unwrap().unwrap();
    assert_eq!((handled.done, handled.retried, handled.dead_lettered), (0, 6, 3), "{handled}");
    delete_jobs(&keeper, "keyless").await;
    for exchange in ["keyless.dlx", "keyless.in"] {
        keeper.delete_exchange(exchange).await.unwrap();
    }
}

/// Handles jobs that always fail, until one is dead, and closes the pool. Returns the counts.
async fn fail_until_one_is_dead(pool: &ResourcePool, keeper: &RabbitMq, queue: &str, attempts: u32) -> String {
    let what = Consume::from(queue).attempts(attempts, Duration::from_millis(50));
    let consumer = pool.rabbitmq().await.unwrap().consume(what).await.unwrap();
    let jobs = tokio::spawn(consumer.for_each_concurrent(1, async |_: &Delivery| Err::<(), _>("always")));
    get(keeper, &format!("{queue}.dead")).await.ack().await.unwrap();
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    jobs.within(SOON).await.unwrap().unwrap().to_string()
}

/// Only the copies that come back from the queue's own retry queue count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_jobs_from_elsewhere_have_all_their_attempts() {
    let (pool, other) = (pool_at(server().url()), pool_at(server().url()));
    let (rabbit, keeper) = (pool.rabbitmq().await.unwrap(), other.rabbitmq().await.unwrap());
    declare_jobs(&rabbit, "elsewhere", false).await;
    let forwarded = Message::new("", "elsewhere", "fails").header("x-retries", 7);
    assert!(rabbit.publish(forwarded).await.unwrap().is_confirmed());
    let handled = fail_until_one_is_dead(&pool, &keeper, "elsewhere", 2).await;
    assert_eq!(handled, "0 done, 1 retried, 1 dead-lettered, 0 given back");
    delete_jobs(&keeper, "elsewhere").await;
}

/// The headers of a retry do not fit into the frame beside those of the message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_job_whose_copy_is_too_large_is_dead_lettered() {
    let config = RabbitMqConfig::url(server().url()).frame_max(8192);
    let pool = ResourcePool::builder().environment([("", ""); 0]).resource(config).build().expect("a pool");
    let other = pool_at(server().url());
    let (rabbit, keeper) = (pool.rabbitmq().await.unwrap(), other.rabbitmq().await.unwrap());
    declare_jobs(&rabbit, "too-large", false).await;
    let mut bytes = 8192;
    loop {
        let message = Message::new("", "too-large", "fails").header("large", "x".repeat(bytes));
        match rabbit.publish(message).await {
            Ok(published) => break assert!(published.is_confirmed()),
            Err(error) => assert!(matches!(error, Error::Operation { .. }), "{error}"),
        }
        bytes -= 16;
    }
    let handled = fail_until_one_is_dead(&pool, &keeper, "too-large", 9).await;
    assert_eq!(handled, "0 done, 0 retried, 1 dead-lettered, 0 given back");
    delete_jobs(&keeper, "too-large").await;
}

/// A handler may panic before it has a future.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_handler_that_panics_at_once_fails() {
    let (pool, other) = (pool_at(server().url()), pool_at(server().url()));
    let (rabbit, keeper) = (pool.rabbitmq().await.unwrap(), other.rabbitmq().await.unwrap());
    declare_jobs(&rabbit, "at-once", false).await;
    publish(&rabbit, "at-once", 2).await;
    let consumer = rabbit.consume("at-once").await.unwrap();
    let jobs = tokio::spawn(consumer.for_each_concurrent(1, |job: &Delivery| {
        assert_ne!(job.data(), b"0", "it says so");
        async { Ok::<_, String>(()) }
    }));
    let dead = get(&keeper, "at-once.dead").await;
    assert_eq!(text(&dead), "0");
    dead.ack().await.unwrap();
    until_async(SOON, async || in_hand(&pool) == 0).await;
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    let handled = jobs.within(SOON).await.unwrap().unwrap();
    assert_eq!(handled.to_string(), "1 done, 0 retried, 1 dead-lettered, 0 given back");
    for queue in ["at-once", "at-once.dead"] {
        keeper.delete_queue(queue).await.unwrap();
    }
}

/// The end of a consumer waits for the handlers, and is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_jobs_end_with_the_consumers_error() {
    let pool = pool_at(server().url());
    let rabbit = pool.rabbitmq().await.unwrap();
    declare_jobs(&rabbit, "ends", false).await;
    publish(&rabbit, "ends", 1).await;
    let consumer = rabbit.consume("ends").await.unwrap();
    let gate = Arc::new(Semaphore::new(0));
    let passing = Arc::clone(&gate);
    let mut jobs = tokio::spawn(consumer.for_each_concurrent(2, async move |_: &Delivery| {
        passing.acquire().await.unwrap().forget();
        Ok::<_, String>(())
    }));
    until_async(SOON, async || in_hand(&pool) == 1).await;
    rabbit.delete_queue("ends").await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut jobs).await.is_err(), "it waits for the handler");
    gate.add_permits(1);
    let error = jobs.within(SOON).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Operation { .. }) && error.to_string().contains("its queue was deleted"), "{error}");
    rabbit.delete_queue("ends.dead").await.unwrap();
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
}

#[test]
fn rabbitmq_jobs_on_threads() {
    const MOST: usize = 3;
    let pool = blocking::ResourcePool::from(pool_at(server().url()));
    let other = blocking::ResourcePool::from(pool_at(server().url()));
    let (rabbit, keeper) = (pool.rabbitmq().unwrap(), other.rabbitmq().unwrap());
    let mut events = pool.events();
    rabbit.declare_queue(Queue::new("threads.dead")).unwrap();
    rabbit.declare_queue(Queue::new("threads").dead_letter("", Some("threads.dead"))).unwrap();
    let said = ["fails", "panics", "fails once"].into_iter().chain(["is done"; 20]);
    assert!(rabbit.publish_batch(said.map(|said| Message::new("", "threads", said))).unwrap().all_confirmed());
    let consumer = rabbit.consume(Consume::from("threads").attempts(2, Duration::from_millis(50))).unwrap();
    let together = Barrier::new(MOST);
    let (first, at_once, most) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let (handled, report) = thread::scope(|scope| {
        let jobs = scope.spawn(|| {
            consumer.for_each_concurrent(MOST, |job| {
                most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                if first.fetch_add(1, Ordering::SeqCst) < MOST {
                    together.wait();
                }
                at_once.fetch_sub(1, Ordering::SeqCst);
                match job.data() {
                    b"fails" => Err("it says so"),
                    b"fails once" if job.attempts() == Some(1) => Err("the first time"),
                    b"panics" => panic!("it says so"),
                    _ => Ok(()),
                }
            })
        });
        let dead = || (0..).find_map(|_| keeper.get("threads.dead").unwrap()).unwrap().ack().unwrap();
        dead();
        dead();
        common::until(SOON, || first.load(Ordering::SeqCst) == 26);
        let report = pool.close_all().unwrap();
        (jobs.join().unwrap().unwrap(), report)
    });
    assert!(report.all_closed(), "{report}");
    assert_eq!(handled.to_string(), "21 done, 3 retried, 2 dead-lettered, 0 given back");
    assert_eq!(most.load(Ordering::SeqCst), MOST);
    let mut failures = BTreeMap::<String, u64>::new();
    while let Some(event) = events.try_next() {
        if let What::Warned { message, error } = event.what
            && message.starts_with("a job of \"threads\" failed")
        {
            *failures.entry(error.unwrap_or_default()).or_default() += 1;
        }
    }
    let failures: Vec<_> = failures.iter().map(|(why, count)| (why.as_str(), *count)).collect();
    assert_eq!(failures, [("it says so", 2), ("its handler panicked: it says so", 2), ("the first time", 1)]);
    for queue in ["threads", "threads.dead", "threads.retry"] {
        keeper.delete_queue(queue).unwrap();
    }
}
