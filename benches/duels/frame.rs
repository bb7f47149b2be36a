//! What a RabbitMQ connection takes of memory, and what its frames' size costs: the driver has two buffers of 32 frames.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use lapin::options::{BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::options::{QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use resource_pool::config::RabbitMqConfig;
use resource_pool::rabbitmq::{Message, Queue};
use resource_pool::{Lease, RabbitMq, ResourcePool, lapin};
use services::Kind;
use tokio::runtime::Runtime;

use crate::duel::{Duel, Unit};
use crate::session::Session;

/// From the least that AMQP allows to the broker's own.
const SIZES: [u32; 6] = [4096, 8192, 16384, 32768, 65536, 131_072];

const LARGE: usize = 64 << 10;

pub(crate) fn run(session: &Session) {
    memory(session);
    throughput(session);
}

fn name(frame_max: u32) -> String {
    format!("resource_pool, frame_max {frame_max}")
}

fn ours() -> String {
    name(RabbitMqConfig::default().frame_max)
}

fn config(url: &str, frame_max: u32) -> RabbitMqConfig {
    let mut config = RabbitMqConfig::url(url);
    config.frame_max = frame_max;
    config
}

/// In a process of its own each, since what one gives back the next would use again.
fn memory(session: &Session) {
    let server = session.server(Kind::RabbitMq);
    let connections = if session.is_smoke() { 2 } else { 20 };
    let child = |frame_max: u32| {
        let mut child = Command::new(std::env::current_exe().expect("this program"));
        child.env(CHILD, format!("{connections} {frame_max}")).env(URL, server.url()).stderr(Stdio::inherit());
        let output = child.output().expect("a child");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
    };
    let mut duel =
        Duel::new("frame_memory", "resident memory per RabbitMQ connection after 6 MiB each way", Unit::Mebibytes)
            .rounds(5)
            .contestant("lapin's default", || child(0));
    for frame_max in SIZES {
        duel = duel.contestant(name(frame_max), move || child(frame_max));
    }
    duel.at_most(&ours(), 1.0, None).run(session);
}

fn throughput(session: &Session) {
    let server = session.server(Kind::RabbitMq);
    let runtime = Runtime::new().expect("a runtime");
    let pool = ResourcePool::builder()
        .environment([("", ""); 0])
        .resource(RabbitMqConfig::url(server.url()))
        .build()
        .expect("a pool");
    for (id, what, size, count) in [
        ("frame_small", "AMQP messages of 200 B published in batches, by the size of frames", 200, 10_000),
        ("frame_large", "AMQP messages of 64 KiB published in batches, by the size of frames", LARGE, 300),
    ] {
        let count = session.times(count);
        let mut duel = Duel::new(id, what, Unit::Nanoseconds);
        for frame_max in SIZES {
            let name_of_it = format!("{frame_max}");
            let rabbit = pool.rabbitmq_with(&name_of_it, config(server.url(), frame_max));
            let rabbit = runtime.block_on(rabbit).expect("rabbitmq");
            let queue = runtime.block_on(rabbit.declare_queue(Queue::temporary())).expect("declared").name().to_owned();
            let (runtime, rabbit) = (&runtime, rabbit);
            duel = duel.contestant(name(frame_max), move || {
                let messages = (0..count).map(|_| Message::new("", &queue, vec![7; size]).transient());
                let before = Instant::now();
                let batch = runtime.block_on(rabbit.publish_batch(messages)).expect("sent");
                let took = before.elapsed();
                assert!(batch.all_confirmed(), "{batch}");
                runtime.block_on(emptied(&rabbit, &queue));
                took.as_nanos() as f64 / count as f64
            });
        }
        duel.times_faster_than(&ours(), &name(131_072), 0.95, 1.0)
            .because("64 KiB are nine frames instead of one: who publishes much of that size sets `frame_max`")
            .run(session);
    }
    assert!(runtime.block_on(pool.close_all()).all_closed());
}

async fn emptied(rabbit: &Lease<RabbitMq>, queue: &str) {
    let channel = rabbit.channel().await.expect("a channel");
    channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await.expect("purged");
}

const CHILD: &str = "RESOURCE_POOL_BENCH_FRAME";
const URL: &str = "RESOURCE_POOL_BENCH_FRAME_URL";

/// Whether this process is to tell what so many connections take, and has.
pub(crate) fn child() -> bool {
    let Ok(wanted) = std::env::var(CHILD) else { return false };
    let (connections, frame_max) = wanted.split_once(' ').expect("two numbers");
    let (connections, frame_max) = (connections.parse().expect("a number"), frame_max.parse().expect("a number"));
    let url = std::env::var(URL).expect("a URL");
    let runtime = Runtime::new().expect("a runtime");
    println!("{}", runtime.block_on(measured(&url, connections, frame_max)));
    true
}

/// Mebibytes per connection; of the pool, or with a `frame_max` of 0 of the bare driver.
async fn measured(url: &str, connections: usize, frame_max: u32) -> f64 {
    let pool =
        ResourcePool::builder().environment([("", ""); 0]).resource(RabbitMqConfig::url(url)).build().expect("a pool");
    let (mut bare, mut leases, mut before) = (Vec::new(), Vec::new(), 0.0);
    // What the first one brings about is there once, whatever the number of them.
    for index in 0..=connections {
        if frame_max == 0 {
            bare.push(bare_traffic(url).await);
        } else {
            let lease = pool.rabbitmq_with(&index.to_string(), config(url, frame_max)).await.expect("rabbitmq");
            traffic(&lease).await;
            leases.push(lease);
        }
        if index == 0 {
            before = resident();
        }
    }
    let each = (resident() - before) / connections as f64;
    for connection in bare {
        connection.close(200, "OK".into()).await.expect("closed");
    }
    drop(leases);
    assert!(pool.close_all().await.all_closed());
    each.max(0.0)
}

/// More than fits into the buffers of the largest frames, so that all of them have been in use.
const ROUNDS: usize = 96;

async fn traffic(rabbit: &RabbitMq) {
    let queue = rabbit.declare_queue(Queue::temporary()).await.expect("declared");
    for _ in 0..ROUNDS {
        let message = Message::new("", queue.name(), vec![7; LARGE]).transient();
        assert!(rabbit.publish(message).await.expect("an answer").is_confirmed());
        rabbit.get(queue.name()).await.expect("an answer").expect("a message").ack().await.expect("settled");
    }
}

async fn bare_traffic(url: &str) -> Connection {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("a connection");
    let channel = connection.create_channel().await.expect("a channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare("".into(), exclusive, FieldTable::default()).await.expect("declared");
    for _ in 0..ROUNDS {
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let sent = channel.basic_publish("".into(), queue.name().clone(), options, &[7; LARGE], properties).await;
        assert!(sent.expect("sent").await.expect("an answer").is_ack());
        let got = channel.basic_get(queue.name().clone(), BasicGetOptions::default()).await.expect("an answer");
        got.expect("a message").acker.ack(BasicAckOptions::default()).await.expect("settled");
    }
    connection
}

/// Of this process, in mebibytes.
fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("a process knows its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("resident memory");
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kibibytes / 1024.0
}
