//! The connection of RabbitMQ's consumers, beside the one of everything else.

#![cfg(feature = "rabbitmq")]
#![allow(missing_docs)]

mod common;

use std::time::Duration;

use common::{Within, until_async};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use resource_pool::config::{Options, RabbitMqConfig};
use resource_pool::rabbitmq::{Consume, Consumer, Message, Queue};
use resource_pool::{Health, ResourcePool};
use services::{Kind, Proxy, Service};

/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn pool_of(config: RabbitMqConfig) -> ResourcePool {
    let mut options = Options::default();
    // A slow answer of a busy broker must not count as bad health here.
    (options.health.each, options.health.all, options.health.slow) = (SOON, SOON, SOON);
    ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().expect("a pool")
}

fn generation(pool: &ResourcePool) -> u64 {
    pool.status().resource("rabbitmq").unwrap().generation
}

/// The names that the pool's connections gave themselves.
fn names(server: &Service) -> Vec<String> {
    let all = server.rabbitmq().unwrap().connections().unwrap();
    let mut names: Vec<_> = all.into_iter().map(|connection| connection.client_name).collect();
    names.sort();
    names
}

async fn ack_next(consumer: &mut Consumer, expected: &str) {
    let delivery = consumer.next().within(SOON).await.unwrap().unwrap();
    assert_eq!(delivery.data(), expected.as_bytes());
    delivery.ack().within(SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_consumers_go_on_while_publishers_are_blocked() {
    let server = Service::start(Kind::RabbitMq).unwrap();
    let limit = Duration::from_secs(1);
    let pool = pool_of(RabbitMqConfig::url(server.url()).confirm_timeout(limit).operation_timeout(limit));
    let rabbit = pool.rabbitmq().await.unwrap();
    assert_eq!(pool.health_check().await.entry("rabbitmq").unwrap().health, Health::Pass);
    rabbit.declare_queue(Queue::new("queue")).await.unwrap();
    assert!(
        rabbit.publish_batch((0..9).map(|n| Message::new("", "queue", n.to_string()))).await.unwrap().all_confirmed()
    );
    assert_eq!(names(&server), ["resource-pool", "resource-pool probe"], "no consumer needs one yet");
    let mut consumer = rabbit.consume(Consume::from("queue").prefetch(1)).await.unwrap();
    let mut second = rabbit.consume(Consume::from("queue").prefetch(1)).await.unwrap();
    assert_eq!(names(&server), ["resource-pool", "resource-pool consumers", "resource-pool probe"]);
    ack_next(&mut consumer, "0").await;
    ack_next(&mut second, "1").await;

    server.rabbitmq().unwrap().memory_alarm(true).unwrap();
    let blocked = rabbit.publish(Message::new("", "queue", "late")).await.unwrap_err();
    assert!(blocked.to_string().contains("blocked by the broker"), "{blocked}");
    for message in ["2", "4", "5", "6", "7"] {
        ack_next(&mut consumer, message).await;
    }
    // Another consumer can begin, too.
    let third = rabbit.consume("queue").within(SOON).await.unwrap();
    drop(third);
    server.rabbitmq().unwrap().memory_alarm(false).unwrap();
    until_async(SOON, async || rabbit.publish(Message::new("", "nobody", "x").optional()).await.is_ok()).await;
    assert_eq!(generation(&pool), 1);
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    until_async(SOON, async || names(&server).is_empty()).await;
    assert_eq!(server.rabbitmq().unwrap().unclean_closes().unwrap(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_consumers_without_room_share_the_connection() {
    let server = Service::start(Kind::RabbitMq).unwrap();
    let view = server.rabbitmq().unwrap();
    for words in [
        &["add_vhost", "full"][..],
        &["add_user", "full", "secret"],
        &["set_permissions", "-p", "full", "full", ".*", ".*", ".*"],
        &["set_vhost_limits", "-p", "full", r#"{"max-connections": 2}"#],
    ] {
        view.ctl(words).unwrap();
    }
    let pool = pool_of(RabbitMqConfig::url(format!("amqp://full:secret@{}:{}/full", server.host(), server.port())));
    let rabbit = pool.rabbitmq().await.unwrap();
    // The second connection is the prober's.
    until_async(SOON, async || pool.health_check().await.is_healthy() && names(&server).len() == 2).await;
    rabbit.declare_queue(Queue::new("queue")).await.unwrap();
    let mut consumer = rabbit.consume("queue").await.unwrap();
    assert!(rabbit.publish(Message::new("", "queue", "one")).await.unwrap().is_confirmed());
    ack_next(&mut consumer, "one").await;
    let warned = async || {
        let report = pool.health_check().await;
        let entry = report.entry("rabbitmq").unwrap();
        let why = entry.error.as_ref().map(ToString::to_string).unwrap_or_default();
        (entry.health, why.contains("share the connection of publishers") && why.contains("limit (2) is reached"))
    };
    until_async(SOON, async || warned().await == (Health::Warn, true)).await;

    // Once there is room, a further consumer has them on their own, and the warning is over.
    view.ctl(&["clear_vhost_limits", "-p", "full"]).unwrap();
    until_async(SOON * 2, async || {
        drop(rabbit.consume("queue").await.unwrap());
        names(&server).iter().any(|name| name == "resource-pool consumers")
    })
    .await;
    until_async(SOON, async || warned().await.0 == Health::Pass).await;
    assert!(rabbit.publish(Message::new("", "queue", "two")).await.unwrap().is_confirmed());
    ack_next(&mut consumer, "two").await;
    assert_eq!(generation(&pool), 1);
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
}

/// A queue that belongs to one connection is consumed on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_exclusive_queues_are_consumed_where_they_are() {
    let server = Service::start(Kind::RabbitMq).unwrap();
    let pool = pool_of(RabbitMqConfig::url(server.url()));
    let rabbit = pool.rabbitmq().await.unwrap();
    let known = rabbit.declare_queue(Queue::temporary()).await.unwrap();
    let mut consumer = rabbit.consume(known.name()).await.unwrap();
    assert!(rabbit.publish(Message::new("", known.name(), "one")).await.unwrap().is_confirmed());
    ack_next(&mut consumer, "one").await;
    assert!(!names(&server).iter().any(|name| name == "resource-pool consumers"));

    let channel = rabbit.channel().await.unwrap();
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let declare =
        async |channel: &lapin::Channel| channel.queue_declare("raw".into(), exclusive, FieldTable::default()).await;
    channel.run(declare).await.unwrap();
    let mut consumer = rabbit.consume("raw").await.unwrap();
    assert!(rabbit.publish(Message::new("", "raw", "two")).await.unwrap().is_confirmed());
    ack_next(&mut consumer, "two").await;
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
}

/// The loss of the consumers' connection is a loss of the resource, which brings both back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_consumers_come_back_after_their_own_connection() {
    let server = Service::start(Kind::RabbitMq).unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    let pool = pool_of(RabbitMqConfig::url(proxy.url(&server)));
    let rabbit = pool.rabbitmq().await.unwrap();
    rabbit.declare_queue(Queue::new("queue")).await.unwrap();
    let mut consumer = rabbit.consume("queue").await.unwrap();
    for round in 1..4 {
        assert_eq!(generation(&pool), round);
        let message = round.to_string();
        assert!(rabbit.publish(Message::new("", "queue", message.as_str())).await.unwrap().is_confirmed());
        ack_next(&mut consumer, &message).await;
        let all = server.rabbitmq().unwrap().connections().unwrap();
        let own = all.iter().find(|connection| connection.client_name == "resource-pool consumers").unwrap();
        let port = own.name.split_whitespace().next().and_then(|end| end.rsplit(':').next()).unwrap();
        proxy.cut_from(&[port.parse().unwrap()]);
        until_async(SOON, async || generation(&pool) == round + 1).await;
        until_async(SOON, async || names(&server).iter().any(|name| name == "resource-pool consumers")).await;
    }
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    until_async(SOON, async || proxy.open() == 0).await;
}

/// A consumer that the broker refuses is not tried on the connection of publishers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_refused_exclusive_consumer_stays_off_the_publishers() {
    let server = Service::start(Kind::RabbitMq).unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    let (pool, other) = (pool_of(RabbitMqConfig::url(proxy.url(&server))), pool_of(RabbitMqConfig::url(server.url())));
    let (rabbit, stranger) = (pool.rabbitmq().await.unwrap(), other.rabbitmq().await.unwrap());
    rabbit.declare_queue(Queue::new("taken")).await.unwrap();
    let _taken = stranger.consume(Consume::from("taken").exclusive()).await.unwrap();
    let refused = rabbit.consume(Consume::from("taken").exclusive()).await.unwrap_err();
    assert!(refused.to_string().contains("ACCESS_REFUSED"), "{refused}");
    let tries = proxy.frames().iter().filter(|frame| frame.name == "Basic.Consume" && frame.from_client).count();
    assert_eq!(tries, 1);
    for pool in [pool, other] {
        let report = pool.close_all().await;
        assert!(report.all_closed(), "{report}");
    }
}

/// A queue that deletes itself may go after the replay has declared it. It is declared again, with its bindings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_consumer_finds_a_queue_that_goes_after_the_replay() {
    const BINDINGS: usize = 3000;
    let server = Service::start(Kind::RabbitMq).unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    let (pool, other) = (pool_of(RabbitMqConfig::url(proxy.url(&server))), pool_of(RabbitMqConfig::url(server.url())));
    let (rabbit, stranger) = (pool.rabbitmq().await.unwrap(), other.rabbitmq().await.unwrap());
    rabbit.declare_queue(Queue::new("goes").auto_delete()).await.unwrap();
    rabbit.bind("goes", "amq.topic", "news").await.unwrap();
    let mut consumer = rabbit.consume("goes").await.unwrap();
    // The replay takes its time for these, after it has declared the queues.
    rabbit.declare_queue(Queue::new("bound")).await.unwrap();
    for n in 0..BINDINGS {
        rabbit.bind("bound", "amq.topic", &n.to_string()).await.unwrap();
    }
    let declared = || proxy.frames().iter().filter(|frame| frame.name == "Queue.DeclareOk").count();
    assert_eq!(declared(), 2);
    proxy.cut();
    until_async(SOON, async || declared() == 4).await;
    stranger.delete_queue("goes").await.unwrap();
    assert_eq!(generation(&pool), 1, "the replay goes on");
    let publish = async || stranger.publish(Message::new("amq.topic", "news", "new")).await.unwrap().is_confirmed();
    until_async(SOON, publish).await;
    ack_next(&mut consumer, "new").await;
    for pool in [pool, other] {
        let report = pool.close_all().await;
        assert!(report.all_closed(), "{report}");
    }
}
