//! The frames of RabbitMQ's connection, seen by a recording proxy.

#![cfg(feature = "rabbitmq")]
#![allow(missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use common::{Within, until_async};
use resource_pool::config::{Options, RabbitMqConfig};
use resource_pool::rabbitmq::{Consume, Exchange, Message, Queue};
use resource_pool::{Outcome, ResourcePool, Work};
use services::{AmqpFrame, Kind, Proxy, Service};

/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// A health check that ends while the prober still connects leaves no trace in the broker's log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_probe_that_is_given_up_ends_in_order() {
    let server = Service::start(Kind::RabbitMq).unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    let mut options = Options::default();
    options.probe.enabled = false;
    options.health.each = Duration::from_millis(50);
    let config = RabbitMqConfig::url(proxy.url(&server));
    let pool = ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().unwrap();
    drop(pool.rabbitmq().await.unwrap());
    proxy.throttle(1000);
    assert!(!pool.is_healthy("rabbitmq").await, "there was time to connect");
    let begun = |frame: &AmqpFrame| frame.connection == 1 && frame.name == "Connection.Start";
    assert!(proxy.await_frame(SOON, begun).is_some());
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    until_async(SOON, async || proxy.open() == 0).await;
    let ends = proxy.frames().into_iter().filter(|frame| frame.name == "Connection.CloseOk").count();
    assert_eq!(ends, 2, "both connections said goodbye");
    assert_eq!(server.rabbitmq().unwrap().unclean_closes().unwrap(), [""; 0]);
}

/// Closes with five unacknowledged deliveries, a thousand outstanding confirms, and channels that the user holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_closes_on_the_wire_in_order() {
    let server = Service::start(Kind::RabbitMq).unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    let mut options = Options::default();
    options.close.drain = Duration::from_secs(3);
    let config = RabbitMqConfig::url(proxy.url(&server));
    let pool = ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().unwrap();
    let rabbit = pool.rabbitmq().await.unwrap();
    rabbit.declare_exchange(Exchange::fanout("orders")).await.unwrap();
    rabbit.declare_queue(Queue::new("orders")).await.unwrap();
    rabbit.bind("orders", "orders", "").await.unwrap();
    rabbit.declare_queue(Queue::new("work")).await.unwrap();
    assert!(
        rabbit.publish_batch((0..5).map(|n| Message::new("", "work", n.to_string()))).await.unwrap().all_confirmed()
    );

    let mut consumer = rabbit.consume(Consume::from("work").prefetch(5)).await.unwrap();
    let mut in_hand = Vec::new();
    for _ in 0..5 {
        in_hand.push(consumer.next().within(SOON).await.unwrap().unwrap());
    }
    let held = [rabbit.channel().await.unwrap(), rabbit.channel().await.unwrap()];

    let orders = (0..1000).map(|n| Message::new("orders", "", n.to_string()));
    let publishing = Arc::clone(&Arc::new(pool.clone()));
    proxy.freeze();
    let batch = tokio::spawn(async move { publishing.rabbitmq().await.unwrap().publish_batch(orders).await });
    let work = || pool.status().resource("rabbitmq").unwrap().work.clone();
    until_async(SOON, async || work().contains(&(Work::Confirm, 1000)) && work().contains(&(Work::Delivery, 5))).await;

    let closing = pool.clone();
    let close = tokio::spawn(async move { closing.close_all().await });
    pool.closing().wait().within(SOON).await;
    proxy.thaw();
    assert!(consumer.next().within(SOON).await.is_none(), "closing ends the stream");
    for delivery in in_hand {
        delivery.ack().within(SOON).await.unwrap();
    }
    let batch = batch.within(SOON).await.unwrap().unwrap();
    assert_eq!((batch.confirmed(), batch.unknown()), (1000, 0));
    let report = close.within(SOON).await.unwrap();
    let step = report.step("rabbitmq").unwrap();
    assert_eq!(step.outcome, Outcome::Closed, "{report}");
    assert_eq!(step.held.iter().filter(|holder| holder.exclusive).count(), 2, "{report}");
    assert!(step.unfinished.is_empty(), "{report}");

    let frames = proxy.frames();
    let connection = |name: &str| frames.iter().find(|frame| frame.name == name).unwrap().connection;
    let (main, consumers) = (connection("Basic.Publish"), connection("Basic.Consume"));
    assert_ne!(main, consumers, "publishing and consuming have a connection each");
    for (number, channels) in [(main, 3), (consumers, 1)] {
        let ours: Vec<&AmqpFrame> = frames.iter().filter(|frame| frame.connection == number).collect();
        let at = |name: &str, from_client: bool| -> Vec<usize> {
            let seen = |frame: &AmqpFrame| frame.name == name && frame.from_client == from_client;
            (0..ours.len()).filter(|index| seen(ours[*index])).collect()
        };
        let first = |name: &str| at(name, true).first().copied().unwrap_or_else(|| panic!("no {name}"));
        let last = |name: &str, from_client: bool| {
            at(name, from_client).last().copied().unwrap_or_else(|| panic!("no {name}"))
        };
        let opened: BTreeSet<u16> = at("Channel.Open", true).into_iter().map(|index| ours[index].channel).collect();
        let closed: BTreeSet<u16> = at("Channel.Close", true).into_iter().map(|index| ours[index].channel).collect();
        assert_eq!(opened, closed, "every channel that was opened is closed");
        assert!(opened.len() >= channels, "the consumer's; a publisher's and two of the user's: {opened:?}");
        assert_eq!(at("Channel.Close", true).len(), at("Channel.CloseOk", false).len());
        if number == consumers {
            assert_eq!(at("Basic.Cancel", true).len(), 1);
            assert_eq!(at("Basic.Ack", true).len(), 5);
            assert!(first("Basic.Cancel") < first("Basic.Ack"), "cancel, then acks");
            assert!(last("Basic.Ack", true) < first("Channel.Close"), "acks, then channels");
        } else {
            assert!(last("Basic.Ack", false) < first("Channel.Close"), "confirms, then channels");
        }
        assert!(last("Channel.CloseOk", false) < first("Connection.Close"), "channels, then the connection");
        assert!(first("Connection.Close") > last("Channel.Close", true));
        let after = ours[first("Connection.Close")..].iter().map(|frame| frame.name.as_str()).collect::<Vec<_>>();
        assert_eq!(after, ["Connection.Close", "Connection.CloseOk"]);
    }
    assert!(!frames.iter().any(|frame| frame.redelivered));

    until_async(SOON, async || proxy.open() == 0).await;
    let queues = server.rabbitmq().unwrap().queues(server.database()).unwrap();
    let counts = |name: &str| {
        queues.iter().find(|queue| queue.name == name).map(|queue| (queue.ready, queue.unacked, queue.consumers))
    };
    assert_eq!((counts("work"), counts("orders")), (Some((0, 0, 0)), Some((1000, 0, 0))));
    assert_eq!(server.rabbitmq().unwrap().unclean_closes().unwrap(), [""; 0]);
    assert!(held.iter().all(|channel| !channel.status().connected()));
}
