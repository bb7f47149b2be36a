//! Times one operation after the other over each backend, in the place where the driver's tasks run and elsewhere.
//!
//! Every contestant awaits the same operation, once through the pool and once through the bare driver. The driver was
//! connected on the runtime that awaits it.

use std::fs;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use mongodb::bson::{Document, doc};
use resource_pool::config::{ClickHouseConfig, MongoConfig, RabbitMqConfig, RedisConfig};
use resource_pool::rabbitmq::Message;
use resource_pool::{Failure, Link, Resource, ResourcePool, blocking};
use resource_pool::{clickhouse, lapin, mongodb, redis};
use services::{Kind, Service};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::drivers::{self, Urls};
use crate::duel::{Duel, Rounds, Unit};
use crate::session::{Session, clock};

/// Starts the operation once with each call.
pub(crate) type Operation = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

pub(crate) fn operation<F: Future<Output = ()> + Send + 'static>(
    run: impl Fn() -> F + Send + Sync + 'static,
) -> Operation {
    Arc::new(move || Box::pin(run()))
}

const QUEUE: &str = "operations";

pub(crate) fn run(session: &Session) {
    let server = |kind| session.server(kind);
    let (mongo, rabbitmq, clickhouse, redis) =
        (server(Kind::Mongo), server(Kind::RabbitMq), server(Kind::ClickHouse), server(Kind::Redis));
    let home = Runtime::new().expect("a runtime");
    home.block_on(prepare(&mongo, &rabbitmq, &redis));
    let urls = Urls::of(session);
    let pools = Pools { own: ours::pool(&urls, None), adopted: ours::pool(&urls, Some(&home)), home };
    pools.duel(session, ["op_mongodb", "op_mongodb_pauses"], "MongoDB find_one", ours::find_one, || {
        bare::find_one(mongo.url())
    });
    pools.duel(session, ["op_redis", "op_redis_pauses"], "Redis GET", ours::get, || bare::get(redis.url()));
    pools.duel(session, ["op_clickhouse", "op_clickhouse_pauses"], "ClickHouse SELECT 1", ours::select, || {
        bare::select(clickhouse.url())
    });
    pools.duel(session, ["op_rabbitmq", "op_rabbitmq_pauses"], "AMQP publish and confirm", ours::publish, || {
        bare::publish(rabbitmq.url())
    });
    let threads = blocking::ResourcePool::from(pools.own.clone());
    let sync = mongodb::sync::Client::with_uri_str(mongo.url()).expect("a client");
    let count = session.times(1000);
    let find_one = |client: &mongodb::sync::Client| {
        let bars = client.database("operations").collection::<Document>("bars");
        assert!(bars.find_one(doc! { "_id": 1 }).run().expect("an answer").is_some());
    };
    Duel::new("op_mongodb_blocking", "MongoDB find_one for threads", Unit::Nanoseconds)
        .contestant("resource_pool", || clock(count, || find_one(&threads.mongo().expect("ready"))))
        .contestant("mongodb::sync", || clock(count, || find_one(&sync)))
        .times_faster_than("resource_pool", "mongodb::sync", 0.95, 1.0)
        .because(IN_PLACE)
        .run(session);
    let Pools { own, adopted, home } = pools;
    assert!(home.block_on(adopted.close_all()).all_closed());
    assert!(home.block_on(own.close_all()).all_closed());
}

/// Creates the data that the operations ask for.
pub(crate) async fn prepare(mongo: &Service, rabbitmq: &Service, redis: &Service) {
    let client = drivers::mongo(mongo.url()).await;
    let bars = client.database("operations").collection::<Document>("bars");
    let bar = doc! { "code": "AAPL", "close": 101.25 };
    bars.replace_one(doc! { "_id": 1 }, bar).upsert(true).await.expect("inserted");
    client.shutdown().await;
    let mut connection = drivers::redis(redis.url()).await;
    redis::cmd("SET").arg("price").arg("101.25").exec_async(&mut connection).await.expect("set");
    let connection = drivers::rabbitmq(rabbitmq.url()).await;
    let channel = drivers::channel(&connection).await;
    let mut short = FieldTable::default();
    short.insert("x-max-length".into(), 100.into());
    channel.queue_declare(QUEUE.into(), QueueDeclareOptions::default(), short).await.expect("declared");
    drivers::close(channel, connection).await;
}

struct Pools {
    own: ResourcePool,
    adopted: ResourcePool,
    /// The runtime of the bare drivers and of the pool that adopted it.
    home: Runtime,
}

impl Pools {
    fn duel<O: Future<Output = Operation>, B: Future<Output = Operation>>(
        &self,
        session: &Session,
        [id, pauses_id]: [&'static str; 2],
        what: &'static str,
        ours: impl Fn(ResourcePool) -> O,
        bare: impl Fn() -> B,
    ) {
        self.own.register(id, Whereabouts).expect("a name of its own");
        let place = Handle::clone(&*self.home.block_on(self.own.get::<Whereabouts>(id)).expect("a handle"));
        let single = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let own = self.home.block_on(ours(self.own.clone()));
        let adopted = self.home.block_on(ours(self.adopted.clone()));
        let (bare, alone) = (self.home.block_on(bare()), single.block_on(bare()));
        let count = session.times(1000);
        let spawned = |place: &Handle, operation: &Operation| {
            let repeated = place.spawn(repeated(Arc::clone(operation), count));
            self.home.block_on(repeated).expect("a task that ends")
        };
        let runs: [(&str, &dyn Fn() -> f64); 8] = [
            ("resource_pool, in a task on its runtime", &|| spawned(&place, &own)),
            ("resource_pool, in a task on an adopted runtime", &|| spawned(self.home.handle(), &adopted)),
            ("the driver, in a task", &|| spawned(self.home.handle(), &bare)),
            ("resource_pool, in a task elsewhere", &|| spawned(self.home.handle(), &own)),
            ("resource_pool, in block_on", &|| self.home.block_on(repeated(Arc::clone(&own), count))),
            ("the driver, in block_on", &|| self.home.block_on(repeated(Arc::clone(&bare), count))),
            ("resource_pool, in block_on of one thread", &|| single.block_on(repeated(Arc::clone(&own), count))),
            ("the driver, in block_on of one thread", &|| single.block_on(repeated(Arc::clone(&alone), count))),
        ];
        let rounds: Vec<_> = runs.iter().map(|_| Rounds::new()).collect();
        let mut duel = Duel::new(id, what, Unit::Nanoseconds);
        for ((name, run), rounds) in runs.iter().zip(&rounds) {
            let measured = || {
                let before = pauses();
                let clock = run();
                (clock, (pauses() - before) / (count + 1) as f64)
            };
            duel = duel.contestant(*name, move || rounds.keep(measured(), |(clock, _)| *clock));
        }
        duel.times_faster_than("resource_pool, in a task on its runtime", "the driver, in a task", 0.95, 1.0)
            .because(IN_PLACE)
            .times_faster_than("resource_pool, in a task on an adopted runtime", "the driver, in a task", 0.95, 1.0)
            .because(IN_PLACE)
            .times_faster_than("resource_pool, in a task elsewhere", "the driver, in a task", 0.6, 0.9)
            .because(ELSEWHERE)
            .times_faster_than("resource_pool, in block_on", "the driver, in block_on", 0.6, 0.9)
            .times_faster_than(
                "resource_pool, in block_on of one thread",
                "the driver, in block_on of one thread",
                0.6,
                0.9,
            )
            .because(ELSEWHERE)
            .run(session);
        let what = format!("how often a thread of the process waits for another, or for the server, in one {what}");
        let mut duel = Duel::new(pauses_id, what, Unit::Count);
        for ((name, _), rounds) in runs.iter().zip(&rounds) {
            duel = duel.contestant(*name, rounds.again(|(_, pauses)| *pauses));
        }
        duel.run(session);
    }
}

/// How often the threads of this process have gone to sleep so far.
fn pauses() -> f64 {
    let threads = fs::read_dir("/proc/self/task").expect("a process knows its threads");
    let status = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("status")).ok());
    let pauses = status.filter_map(|status| {
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse::<f64>().ok()
    });
    pauses.sum()
}

/// The work of the pool beyond the driver's, where it wakes no thread that the driver would not wake.
const IN_PLACE: &str =
    "a lease for each operation, its count for closing, and what the kill switch and the limits need";

/// The reason why a pool is slower outside of its own threads.
const ELSEWHERE: &str = "the driver's tasks are on the pool's threads: a command wakes one of them, and its answer one of the \
                         caller's (the next row counts that). Adopted (`builder().runtime`), they are on the caller's own";

/// The nanoseconds that one operation takes, over so many.
pub(crate) async fn repeated(operation: Operation, count: usize) -> f64 {
    operation().await;
    let before = Instant::now();
    for _ in 0..count {
        operation().await;
    }
    before.elapsed().as_nanos() as f64 / count as f64
}

/// A kind whose handle is the runtime that it connects on, which is the pool's.
struct Whereabouts;

impl Resource for Whereabouts {
    type Handle = Handle;

    async fn connect(&self, _: &Link) -> Result<Handle, Failure> {
        Ok(Handle::current())
    }

    async fn ping(&self, _: &Handle) -> Result<(), Failure> {
        Ok(())
    }

    async fn close(&self, _: Handle) -> Result<(), Failure> {
        Ok(())
    }
}

/// Operations that take a lease each time and use it once.
pub(crate) mod ours {
    use super::*;

    /// A pool of the four backends, on a runtime of its own or on this one.
    pub(crate) fn pool(urls: &Urls, runtime: Option<&Runtime>) -> ResourcePool {
        let builder = ResourcePool::builder()
            .environment([("", ""); 0])
            .resource(MongoConfig::uri(&urls.mongo))
            .resource(RabbitMqConfig::url(&urls.rabbitmq))
            .resource(ClickHouseConfig::url(&urls.clickhouse))
            .resource(RedisConfig::url(&urls.redis));
        let adopting = runtime.into_iter().fold(builder, |builder, runtime| builder.runtime(runtime.handle().clone()));
        adopting.build().expect("a pool")
    }

    pub(crate) async fn find_one(pool: ResourcePool) -> Operation {
        drop(pool.mongo().await.expect("mongodb"));
        operation(move || {
            let pool = pool.clone();
            async move { super::find_one(&pool.mongo().await.expect("ready")).await }
        })
    }

    pub(crate) async fn get(pool: ResourcePool) -> Operation {
        drop(pool.redis().await.expect("redis"));
        operation(move || {
            let pool = pool.clone();
            async move { super::get(&mut pool.redis().await.expect("ready")).await }
        })
    }

    pub(crate) async fn select(pool: ResourcePool) -> Operation {
        drop(pool.clickhouse().await.expect("clickhouse"));
        operation(move || {
            let pool = pool.clone();
            async move { super::select(&pool.clickhouse().await.expect("ready")).await }
        })
    }

    pub(crate) async fn publish(pool: ResourcePool) -> Operation {
        drop(pool.rabbitmq().await.expect("rabbitmq"));
        operation(move || {
            let pool = pool.clone();
            async move {
                let message = Message::new("", QUEUE, [7; 200]).transient();
                let published = pool.rabbitmq().await.expect("ready").publish(message).await;
                assert!(published.expect("an answer").is_confirmed());
            }
        })
    }
}

/// Operations on each driver as its documentation shows.
pub(crate) mod bare {
    use super::*;

    pub(crate) async fn find_one(url: &str) -> Operation {
        let client = drivers::mongo(url).await;
        operation(move || {
            let client = client.clone();
            async move { super::find_one(&client).await }
        })
    }

    pub(crate) async fn get(url: &str) -> Operation {
        let connection = drivers::redis(url).await;
        operation(move || {
            let mut connection = connection.clone();
            async move { super::get(&mut connection).await }
        })
    }

    pub(crate) async fn select(url: &str) -> Operation {
        let client = drivers::clickhouse_connected(url).await;
        operation(move || {
            let client = client.clone();
            async move { super::select(&client).await }
        })
    }

    pub(crate) async fn publish(url: &str) -> Operation {
        let connection = Arc::new(drivers::rabbitmq(url).await);
        let channel = drivers::channel(&connection).await;
        operation(move || {
            let (channel, _connection) = (channel.clone(), Arc::clone(&connection));
            async move {
                let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
                let properties = BasicProperties::default().with_delivery_mode(1);
                let sent = channel.basic_publish("".into(), QUEUE.into(), options, &[7; 200], properties).await;
                let confirmed = sent.expect("sent").await.expect("an answer");
                assert!(confirmed.is_ack() && confirmed.take_message().is_none());
            }
        })
    }
}

async fn find_one(client: &mongodb::Client) {
    let bars = client.database("operations").collection::<Document>("bars");
    assert!(bars.find_one(doc! { "_id": 1 }).await.expect("an answer").is_some());
}

async fn get(connection: &mut impl redis::aio::ConnectionLike) {
    let price: String = redis::cmd("GET").arg("price").query_async(connection).await.expect("a price");
    assert_eq!(price, "101.25");
}

async fn select(client: &clickhouse::Client) {
    assert_eq!(client.query("SELECT 1").fetch_one::<u8>().await.expect("an answer"), 1);
}
