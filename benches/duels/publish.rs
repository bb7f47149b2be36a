//! Many messages with confirms: through the pool, one confirm awaited per message, and all confirms awaited at the end.

use std::time::Instant;

use futures_util::future::join_all;
use lapin::options::{BasicPublishOptions, QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel};
use resource_pool::config::RabbitMqConfig;
use resource_pool::rabbitmq::Message;
use resource_pool::{RabbitMq, ResourcePool, lapin};
use services::Kind;
use tokio::runtime::Runtime;

use crate::drivers;
use crate::duel::{Duel, Unit};
use crate::session::Session;

const QUEUE: &str = "publish";
const SIZE: usize = 200;

pub(crate) fn run(session: &Session) {
    let server = session.server(Kind::RabbitMq);
    let runtime = Runtime::new().expect("a runtime");
    let pool = ResourcePool::builder()
        .environment([("", ""); 0])
        .resource(RabbitMqConfig::url(server.url()))
        .build()
        .expect("a pool");
    let rabbit = runtime.block_on(pool.rabbitmq()).expect("rabbitmq");
    let mut narrow = RabbitMqConfig::url(server.url());
    narrow.confirm_window = 512;
    let narrow = runtime.block_on(pool.rabbitmq_with("narrow", narrow)).expect("rabbitmq");
    let connection = runtime.block_on(drivers::rabbitmq(server.url()));
    let channel = runtime.block_on(drivers::channel(&connection));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    runtime.block_on(channel.queue_declare(QUEUE.into(), durable, FieldTable::default())).expect("declared");
    let count = session.times(100_000);
    let single = session.times(2_000);
    for (id, what, persistent) in [
        ("publish_transient", "100,000 transient AMQP messages of 200 B, confirmed", false),
        ("publish_persistent", "100,000 persistent AMQP messages of 200 B, confirmed", true),
    ] {
        // Each contestant leaves the queue empty for the next.
        let emptied = |run: &mut dyn FnMut() -> f64| {
            let per_message = run();
            let purge = channel.queue_purge(QUEUE.into(), QueuePurgeOptions::default());
            runtime.block_on(purge).expect("purged");
            per_message
        };
        let publish_batch = |rabbit: &RabbitMq| {
            let messages = (0..count).map(|_| {
                let message = Message::new("", QUEUE, [7; SIZE]);
                if persistent { message } else { message.transient() }
            });
            let before = Instant::now();
            let batch = runtime.block_on(rabbit.publish_batch(messages)).expect("sent");
            let took = before.elapsed();
            assert!(batch.all_confirmed(), "{batch}");
            took.as_nanos() as f64 / count as f64
        };
        let one_by_one = || {
            let before = Instant::now();
            runtime.block_on(async {
                for _ in 0..single {
                    publish(&channel, persistent).await;
                }
            });
            before.elapsed().as_nanos() as f64 / single as f64
        };
        let joined = || {
            let before = Instant::now();
            let confirmed = join_all((0..count).map(|_| publish(&channel, persistent)));
            runtime.block_on(confirmed);
            before.elapsed().as_nanos() as f64 / count as f64
        };
        let mut duel = Duel::new(id, what, Unit::Nanoseconds)
            .contestant("resource_pool, publish_batch", || emptied(&mut || publish_batch(&rabbit)))
            .contestant("resource_pool, confirm_window 512", || emptied(&mut || publish_batch(&narrow)))
            .contestant("lapin, one by one", || emptied(&mut { one_by_one }))
            .contestant("lapin, all joined", || emptied(&mut { joined }));
        if !persistent {
            duel = duel.times_faster_than("resource_pool, publish_batch", "lapin, one by one", 5.0, 7.0).because(
                "the broker takes longer for a message the longer its queue is: one by one it grows to 2,000 only",
            );
        }
        duel.times_faster_than("resource_pool, publish_batch", "lapin, all joined", 0.95, 1.0)
            .because("4,096 messages are unconfirmed at a time and not all: the broker writes fewer to its disk at once")
            .note("One by one only 2,000 of them. The pool's messages are made within the clock, the driver's are constant.")
            .run(session);
    }
    runtime.block_on(drivers::close(channel, connection));
    drop((rabbit, narrow));
    assert!(runtime.block_on(pool.close_all()).all_closed());
}

async fn publish(channel: &Channel, persistent: bool) {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let properties = BasicProperties::default().with_delivery_mode(if persistent { 2 } else { 1 });
    let sent = channel.basic_publish("".into(), QUEUE.into(), options, &[7; SIZE], properties).await;
    assert!(sent.expect("sent").await.expect("an answer").is_ack());
}
