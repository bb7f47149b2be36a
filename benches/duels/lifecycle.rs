//! Times connecting, starting cold and closing, beside the drivers by themselves.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use mongodb::bson::{Document, doc};
use redis::{Commands, ConnectionLike};
use resource_pool::config::{ClickHouseConfig, MongoConfig, Options, RabbitMqConfig, RedisConfig};
use resource_pool::rabbitmq::{Message, Queue};
use resource_pool::{Builder, Error, ResourcePool, blocking};
use services::Proxy;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::child;
use crate::drivers::{self, Urls};
use crate::duel::{Duel, Unit};
use crate::session::{Session, clock, milliseconds};

pub(crate) fn run(session: &Session) {
    each_time(session);
    cold(session);
    at_once(session);
    close(session);
}

fn builder(urls: &Urls) -> Builder<ResourcePool> {
    ResourcePool::builder()
        .environment([("", ""); 0])
        .resource(MongoConfig::uri(&*urls.mongo))
        .resource(RabbitMqConfig::url(&*urls.rabbitmq))
        .resource(ClickHouseConfig::url(&*urls.clickhouse))
        .resource(RedisConfig::url(&*urls.redis))
}

fn pool(urls: &Urls) -> ResourcePool {
    builder(urls).build().expect("a pool")
}

async fn all_four(pool: &ResourcePool) -> Result<(), Error> {
    tokio::try_join!(pool.mongo(), pool.rabbitmq(), pool.clickhouse(), pool.redis()).map(drop)
}

/// A new client for each operation, against the drivers' advice, beside one client of the pool. For threads.
fn each_time(session: &Session) {
    const QUEUE: &str = "each time";
    let urls = Urls::of(session);
    let runtime = Runtime::new().expect("a runtime");
    let pool = blocking::ResourcePool::from(pool(&urls));
    let message = [b'x'; 200];

    let wanted = doc! { "_id": 1 };
    let bars = |client: &mongodb::sync::Client| client.database("duels").collection::<Document>("connecting");
    let known = bars(&pool.mongo().expect("mongo"));
    known.delete_many(doc! {}).run().expect("none");
    known.insert_one(doc! { "_id": 1, "close": 2.5 }).run().expect("one");
    let find = |client: &mongodb::sync::Client| {
        assert!(black_box(bars(client).find_one(wanted.clone()).run().expect("an answer")).is_some());
    };
    let count = session.times(20).max(2);
    let client = mongodb::sync::Client::with_uri_str(&urls.mongo).expect("a client");
    versus("connect_mongo", "MongoDB find_one: a client each time, and pooled")
        .contestant("a client each time", || {
            clock(count, || {
                let client = mongodb::sync::Client::with_uri_str(&urls.mongo).expect("a client");
                find(&client);
                client.shutdown().run();
            })
        })
        .contestant("one client", || clock(count, || find(&client)))
        .contestant("resource_pool", || clock(count, || find(&pool.mongo().expect("ready"))))
        .times_faster_than("resource_pool", "a client each time", 1.0, QUANTAXIS)
        .run(session);
    client.shutdown().run();

    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), 1000.into());
    let rabbitmq = pool.rabbitmq().expect("rabbitmq");
    rabbitmq.declare_queue(Queue::new(QUEUE).transient().arguments(arguments)).expect("a queue");
    let connection = runtime.block_on(drivers::rabbitmq(&urls.rabbitmq));
    let channel = runtime.block_on(drivers::channel(&connection));
    versus("connect_rabbitmq", "RabbitMQ publish and confirm: a connection each time, and pooled")
        .contestant("a client each time", || {
            clock(count, || {
                runtime.block_on(async {
                    let connection = drivers::rabbitmq(&urls.rabbitmq).await;
                    let channel = drivers::channel(&connection).await;
                    drivers::publish(&channel, QUEUE, &message).await;
                    drivers::close(channel, connection).await;
                });
            })
        })
        .contestant("one client", || clock(count, || runtime.block_on(drivers::publish(&channel, QUEUE, &message))))
        .contestant("resource_pool", || {
            clock(count, || {
                let message = Message::new("", QUEUE, message).transient();
                assert!(pool.rabbitmq().expect("ready").publish(message).expect("an answer").is_confirmed());
            })
        })
        .times_faster_than("resource_pool", "a client each time", 1.0, QUANTAXIS)
        .run(session);
    runtime.block_on(drivers::close(channel, connection));
    rabbitmq.delete_queue(QUEUE).expect("gone");

    let count = session.times(100).max(2);
    let client = runtime.block_on(drivers::clickhouse_connected(&urls.clickhouse));
    versus("connect_clickhouse", "ClickHouse SELECT 1: a client each time, and pooled")
        .contestant("a client each time", || {
            clock(count, || drop(runtime.block_on(drivers::clickhouse_connected(&urls.clickhouse))))
        })
        .contestant("one client", || {
            clock(count, || runtime.block_on(client.query("SELECT 1").execute()).expect("an answer"))
        })
        .contestant("resource_pool", || {
            clock(count, || pool.clickhouse().expect("ready").execute("SELECT 1").expect("an answer"))
        })
        .times_faster_than("resource_pool", "a client each time", 1.0, QUANTAXIS)
        .because(
            "one client of the crate gains as little: HTTP has no login of its own, so a client each time costs one more \
             handshake of TCP, which the loopback makes cheap beside the query",
        )
        .run(session);

    pool.redis().expect("redis").set::<_, _, ()>("connecting", "16 bytes of text").expect("set");
    let get = |connection: &mut dyn ConnectionLike| {
        black_box(redis::cmd("GET").arg("connecting").query::<String>(connection).expect("an answer"));
    };
    let client = redis::Client::open(&*urls.redis).expect("a client");
    let mut connection = client.get_connection().expect("a connection");
    versus("connect_redis", "Redis GET: a connection each time, and pooled")
        .contestant("a client each time", || {
            clock(count, || {
                let client = redis::Client::open(&*urls.redis).expect("a client");
                get(&mut client.get_connection().expect("a connection"));
            })
        })
        .contestant("one client", || clock(count, || get(&mut connection)))
        .contestant("resource_pool", || clock(count, || get(&mut pool.redis().expect("ready"))))
        .times_faster_than("resource_pool", "a client each time", 1.0, QUANTAXIS)
        .run(session);

    drop(rabbitmq);
    assert!(pool.close_all().expect("a report").all_closed());
}

/// The speed-up that QUANTAXIS's documentation claims for pooling.
const QUANTAXIS: f64 = 6.0;

fn versus<'a>(id: &'static str, what: &'static str) -> Duel<'a> {
    Duel::new(id, what, Unit::Nanoseconds)
}

/// The time that the four kinds of the global pool take from its first use, in a fresh process.
pub(crate) fn cold_pool(_: Urls) -> Vec<f64> {
    let runtime = Runtime::new().expect("a runtime");
    let ready = milliseconds(|| runtime.block_on(all_four(ResourcePool::global())).expect("all four"));
    assert!(runtime.block_on(ResourcePool::global().close_all()).all_closed());
    vec![ready]
}

/// The time of each driver in milliseconds, one after another in one process.
pub(crate) fn cold_drivers(urls: Urls) -> Vec<f64> {
    let runtime = Runtime::new().expect("a runtime");
    vec![
        milliseconds(|| drop(runtime.block_on(drivers::mongo(&urls.mongo)))),
        milliseconds(|| drop(runtime.block_on(drivers::rabbitmq(&urls.rabbitmq)))),
        milliseconds(|| drop(runtime.block_on(drivers::clickhouse_connected(&urls.clickhouse)))),
        milliseconds(|| drop(runtime.block_on(drivers::redis(&urls.redis)))),
    ]
}

fn cold(session: &Session) {
    let urls = Urls::of(session);
    Duel::new("cold_start", "from the first use of the global pool to all four ready", Unit::Milliseconds)
        .contestant("resource_pool, all four", || child::run("cold pool", &urls)[0])
        .contestant("the slowest driver", || child::run("cold drivers", &urls).into_iter().fold(0.0, f64::max))
        .adds_at_most("resource_pool, all four", "the slowest driver", 10.0, 0.0)
        .note("Each in a fresh process; the four drivers one after another, the slowest of which counts.")
        .run(session);
}

/// Many tasks ask a cold pool at once.
fn at_once(session: &Session) {
    let (urls, proxies) = Urls::counted(session);
    let runtime = Runtime::new().expect("a runtime");
    let (one, many) = (1, session.times(1000).max(100));
    let connections = RefCell::new([const { VecDeque::new() }; 2]);
    let ask = |contestant: usize, tasks: usize| {
        let before = accepted(&proxies);
        let mut options = Options::default();
        // The duel counts only the connections that tasks ask for. The probes' connections and those that MongoDB's
        // driver keeps are others.
        options.probe.enabled = false;
        let pool = builder(&urls).resource(MongoConfig::uri(&*urls.mongo).min_pool_size(0)).options(options);
        let pool = pool.build().expect("a pool");
        let took = milliseconds(|| {
            runtime.block_on(async {
                let mut asking = JoinSet::new();
                for _ in 0..tasks {
                    let pool = pool.clone();
                    asking.spawn(async move { all_four(&pool).await.expect("all four") });
                }
                assert_eq!(asking.join_all().await.len(), tasks);
            });
        });
        let opened = settled(|| accepted(&proxies)) - before;
        connections.borrow_mut()[contestant].push_back(opened as f64);
        assert!(runtime.block_on(pool.close_all()).all_closed());
        took
    };
    Duel::new("cold_at_once", "tasks that each ask a cold pool for all four, until all have them", Unit::Milliseconds)
        .contestant("resource_pool, 1,000 tasks", || ask(0, many))
        .contestant("resource_pool, one task", || ask(1, one))
        .run(session);
    let [mut of_many, mut of_one] = connections.into_inner();
    Duel::new("cold_connections", "connections that the same caused", Unit::Count)
        .contestant("resource_pool, 1,000 tasks", || of_many.pop_front().expect("as many rounds"))
        .contestant("resource_pool, one task", || of_one.pop_front().expect("as many rounds"))
        .at_most_times("resource_pool, 1,000 tasks", "resource_pool, one task", 1.0, None)
        .note("MongoDB's driver opens three for one client: for operations, for its monitor, for round-trip times.")
        .run(session);
}

/// The number of connections that the servers have accepted so far.
fn accepted(proxies: &[Proxy]) -> usize {
    proxies.iter().map(Proxy::accepted).sum()
}

/// The count, once it has not changed for a while.
fn settled(count: impl Fn() -> usize) -> usize {
    loop {
        let now = count();
        thread::sleep(Duration::from_millis(100));
        if count() == now {
            return now;
        }
    }
}

/// The probes' connections come half a second after the others. They are open by then.
const PROBED: Duration = Duration::from_secs(1);
/// The time that the work in flight takes.
const BUSY: Duration = Duration::from_millis(100);
/// Closing begins in the middle of that work.
const BEGUN: Duration = Duration::from_millis(40);

fn close(session: &Session) {
    let urls = Urls::of(session);
    // The drivers keep as many connections as the pool does.
    let mongo = format!("{}&minPoolSize={}", urls.mongo, MongoConfig::default().min_pool_size);
    let alike = Urls { mongo, ..urls.clone() };
    let runtime = Runtime::new().expect("a runtime");
    let ours = |busy: bool| {
        runtime.block_on(async {
            let pool = pool(&urls);
            all_four(&pool).await.expect("all four");
            tokio::time::sleep(PROBED).await;
            let work = if busy { at_work(&pool).await } else { JoinSet::new() };
            let started = Instant::now();
            let report = pool.close_all().await;
            let took = started.elapsed();
            assert!(report.all_closed(), "{report}");
            work.join_all().await;
            took.as_secs_f64() * 1e3
        })
    };
    let theirs = |busy: bool| {
        runtime.block_on(async {
            let drivers = Drivers::connect(&alike).await;
            tokio::time::sleep(PROBED).await;
            let work = if busy { drivers.at_work(&alike).await } else { JoinSet::new() };
            let started = Instant::now();
            work.join_all().await;
            drivers.close().await;
            started.elapsed().as_secs_f64() * 1e3
        })
    };
    let note = "Each backend is alone in its phase, so the sum over the phases is that of the drivers' closes, one after \
                another; the pool closes its probes' connections as well.";
    Duel::new("close_idle", "close_all, four backends ready and idle", Unit::Milliseconds)
        .contestant("resource_pool", || ours(false))
        .contestant("the four drivers", || theirs(false))
        .adds_at_most("resource_pool", "the four drivers", 5.0, 0.0)
        .because(EXTRA)
        .note(note)
        .run(session);
    Duel::new("close_busy", "the same while each is at work: an operation, a delivery in hand", Unit::Milliseconds)
        .contestant("resource_pool", || ours(true))
        .contestant("the four drivers", || theirs(true))
        .adds_at_most("resource_pool", "the four drivers", 5.0, 0.0)
        .note(note)
        .run(session);
}

const EXTRA: &str = "three steps more than the drivers' own: MongoDB is asked what it has open, the probes' connections are \
                     said goodbye to, and each of the four closes runs on a thread that is started for it";

/// Starts work at each of the four that goes on for [`BUSY`]. Most of that time is left when this returns.
async fn at_work(pool: &ResourcePool) -> JoinSet<()> {
    let mut work = JoinSet::new();
    let mongo = pool.mongo().await.expect("ready");
    let wait = slow(&mongo).await;
    let rabbitmq = pool.rabbitmq().await.expect("ready");
    let queue = rabbitmq.declare_queue(Queue::temporary()).await.expect("a queue");
    assert!(rabbitmq.publish(Message::new("", queue.name(), "a bar")).await.expect("an answer").is_confirmed());
    let mut consumer = rabbitmq.consume(queue.name()).await.expect("a consumer");
    let delivery = consumer.next().await.expect("a delivery").expect("a delivery");
    let clickhouse = pool.clickhouse().await.expect("ready");
    let redis = pool.redis().await.expect("ready");
    let mut waiting = redis.exclusive().await.expect("a connection");
    work.spawn(async move { drop(mongo.database("admin").run_command(wait).await.expect("an answer")) });
    work.spawn(async move { clickhouse.query(SLOW_QUERY).execute().await.expect("an answer") });
    work.spawn(async move { slow_command().exec_async(&mut waiting).await.expect("an answer") });
    work.spawn(async move {
        tokio::time::sleep(BUSY).await;
        delivery.ack().await.expect("taken back");
        drop(consumer);
    });
    tokio::time::sleep(BEGUN).await;
    work
}

const SLOW_QUERY: &str = "SELECT sleep(0.1)";

fn slow_command() -> redis::Cmd {
    let mut command = redis::cmd("BLPOP");
    command.arg("no such list").arg(BUSY.as_secs_f64());
    command
}

/// The monitors' command. The server answers it when something changes, or after this long.
async fn slow(client: &mongodb::Client) -> Document {
    let hello = client.database("admin").run_command(doc! { "hello": 1 }).await.expect("an answer");
    let version = hello.get_document("topologyVersion").expect("a version").clone();
    doc! { "hello": 1, "topologyVersion": version, "maxAwaitTimeMS": BUSY.as_millis() as i64 }
}

/// The four drivers by themselves.
struct Drivers {
    mongo: mongodb::Client,
    rabbitmq: lapin::Connection,
    clickhouse: clickhouse::Client,
    redis: redis::aio::MultiplexedConnection,
}

impl Drivers {
    async fn connect(urls: &Urls) -> Self {
        let (mongo, rabbitmq, clickhouse, redis) = tokio::join!(
            drivers::mongo(&urls.mongo),
            drivers::rabbitmq(&urls.rabbitmq),
            drivers::clickhouse_connected(&urls.clickhouse),
            drivers::redis(&urls.redis),
        );
        Drivers { mongo, rabbitmq, clickhouse, redis }
    }

    /// Like the function [`at_work`].
    async fn at_work(&self, urls: &Urls) -> JoinSet<()> {
        let mut work = JoinSet::new();
        let (mongo, clickhouse) = (self.mongo.clone(), self.clickhouse.clone());
        let wait = slow(&mongo).await;
        let channel = self.rabbitmq.create_channel().await.expect("a channel");
        let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("".into(), exclusive, FieldTable::default()).await.expect("a queue");
        drivers::publish(&drivers::channel(&self.rabbitmq).await, queue.name().as_str(), b"a bar").await;
        let consuming = channel.basic_consume(
            queue.name().clone(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let mut consumer = consuming.await.expect("a consumer");
        let delivery = consumer.next().await.expect("a delivery").expect("a delivery");
        let mut waiting = drivers::redis(&urls.redis).await;
        work.spawn(async move { drop(mongo.database("admin").run_command(wait).await.expect("an answer")) });
        work.spawn(async move { clickhouse.query(SLOW_QUERY).execute().await.expect("an answer") });
        work.spawn(async move { slow_command().exec_async(&mut waiting).await.expect("an answer") });
        work.spawn(async move {
            tokio::time::sleep(BUSY).await;
            delivery.ack(BasicAckOptions::default()).await.expect("taken back");
            drop(consumer);
        });
        tokio::time::sleep(BEGUN).await;
        work
    }

    /// Closes in the order of the pool's phases.
    async fn close(self) {
        self.rabbitmq.close(200, "OK".into()).await.expect("a goodbye");
        drop(self.redis);
        drop(self.clickhouse);
        self.mongo.shutdown().immediate(true).await;
    }
}
