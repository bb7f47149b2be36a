//! Measures a RabbitMQ connection's memory, and the cost of its frame size. The driver has two buffers of 32 frames.

use std::fs;
use std::time::Instant;

use lapin::Connection;
use lapin::options::{BasicAckOptions, BasicGetOptions, QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use resource_pool::config::RabbitMqConfig;
use resource_pool::rabbitmq::{Message, Queue};
use resource_pool::{Lease, RabbitMq, ResourcePool, lapin};
use services::Kind;
use tokio::runtime::Runtime;

use crate::child;
use crate::drivers::{self, Urls};
use crate::duel::{Duel, Unit};
use crate::session::Session;

/// The default, which is the broker's limit, and smaller sizes down to the least that AMQP allows.
const SIZES: [u32; 6] = [0, 4096, 8192, 16384, 32768, 65536];

const LARGE: usize = 64 << 10;

pub(crate) fn run(session: &Session) {
    memory(session);
    throughput(session);
}

fn name(frame_max: u32) -> String {
    if frame_max == RabbitMqConfig::default().frame_max {
        OURS.to_owned()
    } else {
        format!("{OURS}, frame_max {frame_max}")
    }
}

const OURS: &str = "resource_pool";

fn config(url: &str, frame_max: u32) -> RabbitMqConfig {
    let mut config = RabbitMqConfig::url(url);
    config.frame_max = frame_max;
    config
}

/// Measures each in a process of its own. Otherwise the next would use again the memory that one gives back.
fn memory(session: &Session) {
    let urls = Urls::of(session);
    let child = |role: String| {
        let urls = &urls;
        move || child::run(&role, urls)[0]
    };
    for (id, what, role, sizes, must) in [
        ("frame_idle", "resident memory per RabbitMQ connection, ready and idle", "idle frames", &SIZES[..1], 1.0),
        ("frame_memory", "resident memory per RabbitMQ connection after 6 MiB each way", "frames", &SIZES[..], 9.0),
    ] {
        let mut duel = Duel::new(id, what, Unit::Mebibytes);
        duel = duel.contestant("lapin's default", child(format!("{role} of the driver")));
        for frame_max in if session.is_smoke() { &sizes[..1] } else { sizes } {
            duel = duel.contestant(name(*frame_max), child(format!("{role} of {frame_max}")));
        }
        duel.at_most(OURS, must, None).run(session);
    }
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
        duel.times_faster_than(OURS, &name(8192), 0.95, 1.0).run(session);
    }
    assert!(runtime.block_on(pool.close_all()).all_closed());
}

async fn emptied(rabbit: &Lease<RabbitMq>, queue: &str) {
    let channel = rabbit.channel().await.expect("a channel");
    channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await.expect("purged");
}

/// The number of connections that share one measurement.
const CONNECTIONS: usize = 10;

/// Stands for the bare driver with its defaults.
pub(crate) const DRIVER: u32 = u32::MAX;

/// The memory of each of many connections, in mebibytes, with traffic on it or without.
pub(crate) fn connections<const FRAME_MAX: u32, const BUSY: bool>(urls: Urls) -> Vec<f64> {
    Runtime::new().expect("a runtime").block_on(async {
        let builder = ResourcePool::builder().environment([("", ""); 0]);
        let pool = builder.resource(RabbitMqConfig::url(&*urls.rabbitmq)).build().expect("a pool");
        let (mut bare, mut leases, mut before) = (Vec::new(), Vec::new(), 0.0);
        // Some memory is needed once, for any number of connections. The first connection brings it about, so it does
        // not count.
        for index in 0..=CONNECTIONS {
            if FRAME_MAX == DRIVER {
                bare.push(bare_traffic(&urls.rabbitmq, BUSY).await);
            } else {
                let lease = pool.rabbitmq_with(&index.to_string(), config(&urls.rabbitmq, FRAME_MAX)).await;
                let lease = lease.expect("rabbitmq");
                if BUSY {
                    traffic(&lease).await;
                }
                leases.push(lease);
            }
            if index == 0 {
                before = resident();
            }
        }
        let each = (resident() - before) / CONNECTIONS as f64;
        for connection in bare {
            connection.close(200, "OK".into()).await.expect("a goodbye");
        }
        drop(leases);
        assert!(pool.close_all().await.all_closed());
        vec![each.max(0.0)]
    })
}

/// The messages are more than the buffers of the largest frames can hold, so the traffic uses all of them.
const ROUNDS: usize = 96;

async fn traffic(rabbit: &RabbitMq) {
    let queue = rabbit.declare_queue(Queue::temporary()).await.expect("declared");
    for _ in 0..ROUNDS {
        let message = Message::new("", queue.name(), vec![7; LARGE]).transient();
        assert!(rabbit.publish(message).await.expect("an answer").is_confirmed());
        rabbit.get(queue.name()).await.expect("an answer").expect("a message").ack().await.expect("settled");
    }
}

async fn bare_traffic(url: &str, busy: bool) -> Connection {
    let connection = drivers::rabbitmq(url).await;
    if !busy {
        return connection;
    }
    let channel = drivers::channel(&connection).await;
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare("".into(), exclusive, FieldTable::default()).await.expect("declared");
    for _ in 0..ROUNDS {
        drivers::publish(&channel, queue.name().as_str(), &[7; LARGE]).await;
        let got = channel.basic_get(queue.name().clone(), BasicGetOptions::default()).await.expect("an answer");
        got.expect("a message").acker.ack(BasicAckOptions::default()).await.expect("settled");
    }
    connection
}

/// The resident memory of this process, in mebibytes.
fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("a process knows its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("resident memory");
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kibibytes / 1024.0
}
