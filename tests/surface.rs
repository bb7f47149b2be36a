//! Uses every name that users see, on both facades, against the real servers.

#![cfg(all(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
#![allow(missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use resource_pool::clickhouse::Row;
use resource_pool::config::{ClickHouseConfig, MongoConfig, Options, RabbitMqConfig, RedisConfig};
use resource_pool::mongodb::bson::{Document, doc};
use resource_pool::rabbitmq::{Consume, Exchange, Message, Queue};
use resource_pool::redis::{AsyncCommands, Commands};
use resource_pool::{
    Builder, ClickHouse, Error, Failure, Health, Lease, Link, Mongo, Phase, RabbitMq, Redis, Resource, ResourcePool,
    Rows, State, blocking,
};
use services::{Kind, shared};

struct Feed;

impl Resource for Feed {
    type Handle = &'static str;
    async fn connect(&self, _: &Link) -> Result<&'static str, Failure> {
        Ok("feed")
    }
    async fn ping(&self, _: &&'static str) -> Result<(), Failure> {
        Ok(())
    }
    async fn close(&self, _: &'static str) -> Result<(), Failure> {
        Ok(())
    }
    fn phase(&self) -> Phase {
        Phase::Redis
    }
}

#[derive(Debug, PartialEq, Row, serde::Serialize, serde::Deserialize)]
struct Number {
    number: u64,
}

const NAMES: [&str; 4] = ["mongo", "rabbitmq", "clickhouse", "redis"];
/// The limit for a health check or an acquire of something ready, also on a busy machine.
const SOON: Duration = Duration::from_secs(8);
/// The limit for connecting, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn mongo() -> MongoConfig {
    MongoConfig::uri(shared(Kind::Mongo).url())
}
fn rabbitmq() -> RabbitMqConfig {
    RabbitMqConfig::url(shared(Kind::RabbitMq).url())
}
fn clickhouse() -> ClickHouseConfig {
    ClickHouseConfig::url(shared(Kind::ClickHouse).url())
}
fn redis() -> RedisConfig {
    RedisConfig::url(shared(Kind::Redis).url())
}

fn configured<P>(builder: Builder<P>) -> Builder<P> {
    let mut options = Options::default();
    // A server may take long on a busy machine.
    (options.acquire_timeout, options.connect_timeout, options.retry.budget) = (PATIENCE, PATIENCE / 3, PATIENCE);
    (options.health.each, options.health.all, options.health.slow) = (SOON, SOON, SOON);
    builder
        .environment([("", ""); 0])
        .options(options)
        .resource(mongo())
        .resource(rabbitmq())
        .resource(clickhouse())
        .resource(redis())
        .named("research", mongo().app_name("research"))
        .named("orders", rabbitmq().connection_name("orders"))
        .named("factors", clickhouse())
        .named("locks", redis().client_name("locks"))
}

fn unique(what: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("surface_{what}_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Whether one of the holders is on this line of this file.
fn on_line(holders: &[resource_pool::Holder], resource: &str, line: u32) -> bool {
    holders.iter().any(|one| &*one.resource == resource && one.site.file() == file!() && one.site.line() == line)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn surface_async() {
    let pool: ResourcePool = configured(ResourcePool::builder()).build().unwrap();
    let pool = &pool;
    for (name, result) in pool.warm_up(NAMES).await {
        result.unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    // Acquires, uses, and lists the holders.
    let mongo_lease: Lease<mongodb::Client> = pool.mongo().await.unwrap();
    let line = line!() - 1;
    assert!(on_line(&pool.holders(), "mongo", line), "{:?}", pool.holders());
    let database = mongo_lease.database(&unique("async"));
    database.collection("bars").insert_one(doc! { "code": "AAPL" }).await.unwrap();
    assert_eq!(database.collection::<Document>("bars").count_documents(doc! {}).await.unwrap(), 1);
    database.drop().await.unwrap();

    let rabbit: Lease<RabbitMq> = pool.rabbitmq().await.unwrap();
    let line = line!() - 1;
    assert!(on_line(&pool.holders(), "rabbitmq", line));
    let exchange = unique("bars");
    rabbit.declare_exchange(Exchange::fanout(exchange.as_str()).auto_delete()).await.unwrap();
    let queue = rabbit.declare_queue(Queue::temporary()).await.unwrap();
    rabbit.bind(queue.name(), &exchange, "").await.unwrap();
    assert!(rabbit.publish(Message::new(exchange.as_str(), "", "one")).await.unwrap().is_confirmed());
    let batch = rabbit.publish_batch((0..10).map(|_| Message::new(exchange.as_str(), "", "more"))).await.unwrap();
    assert!(batch.all_confirmed());
    let first = rabbit.get(queue.name()).await.unwrap().unwrap();
    assert_eq!(first.data(), b"one");
    first.ack().await.unwrap();
    let mut consumer = rabbit.consume(Consume::from(queue.name()).prefetch(2)).await.unwrap();
    for _ in 0..10 {
        consumer.next().await.unwrap().unwrap().ack().await.unwrap();
    }
    drop(consumer);
    let channel = rabbit.channel().await.unwrap();
    let line = line!() - 1;
    assert!(pool.holders().iter().any(|one| one.exclusive && one.site.line() == line), "{:?}", pool.holders());
    assert!(channel.status().connected());
    drop(channel);

    let clickhouse_lease: Lease<clickhouse::Client> = pool.clickhouse().await.unwrap();
    let line = line!() - 1;
    assert!(on_line(&pool.holders(), "clickhouse", line));
    let number: u64 = clickhouse_lease.query("SELECT toUInt64(42)").fetch_one().await.unwrap();
    assert_eq!(clickhouse_lease.query_rows::<u64>("SELECT toUInt64(42)").await.unwrap(), [number]);
    let mut rows: Rows<u64> = clickhouse_lease.query_iter("SELECT toUInt64(42)").await.unwrap();
    assert_eq!(rows.next().await.unwrap().unwrap(), number);
    assert_eq!(number, 42);

    let mut redis_lease: Lease<Redis> = pool.redis().await.unwrap();
    let line = line!() - 1;
    assert!(on_line(&pool.holders(), "redis", line));
    let key = unique("key");
    let () = redis_lease.set_ex(&key, 7, 60).await.unwrap();
    assert_eq!(redis_lease.exclusive().await.unwrap().get_del::<_, i64>(&key).await.unwrap(), 7);

    // Named resources, resources configured by the caller, and another timeout.
    drop(pool.mongo_named("research").await.unwrap());
    drop(pool.rabbitmq_named("orders").await.unwrap());
    drop(pool.clickhouse_named("factors").await.unwrap());
    drop(pool.redis_named("locks").await.unwrap());
    drop(pool.mongo_with("live", mongo()).await.unwrap());
    drop(pool.rabbitmq_with("ticks", rabbitmq()).await.unwrap());
    drop(pool.clickhouse_with("scratch", clickhouse()).await.unwrap());
    drop(pool.redis_with("cache", redis()).await.unwrap());
    drop(pool.within(SOON).mongo().await.unwrap());

    // Private instances.
    for report in [
        Mongo::scoped(mongo()).await.unwrap().close().await,
        RabbitMq::scoped(rabbitmq()).await.unwrap().close().await,
        ClickHouse::scoped(clickhouse()).await.unwrap().close().await,
        Redis::scoped(redis()).await.unwrap().close().await,
    ] {
        assert!(report.all_closed(), "{report}");
    }

    // Health and status.
    assert_eq!(pool.health_check().await.readiness(), Health::Pass);
    assert!(pool.is_healthy("mongo").await);
    assert_eq!(pool.status().resource("mongo").unwrap().state, State::Ready);
    assert!(pool.check_leak(5).is_empty());

    // Changes at run time.
    pool.warm_up_all().await.unwrap();
    pool.refresh("redis").await.unwrap();
    pool.resize("redis", 7).unwrap();
    assert_eq!(pool.status().resource("redis").unwrap().usage.max, Some(7));
    for name in ["mongo", "rabbitmq", "clickhouse"] {
        let error = pool.refresh(name).await.unwrap_err();
        assert!(matches!(error, Error::Operation { .. }) && error.to_string().contains("`reconnect`"), "{error}");
        assert!(matches!(pool.resize(name, 7), Err(Error::Operation { .. })));
    }
    assert!(pool.unregister("cache").await.unwrap().all_closed());
    assert!(matches!(pool.refresh("cache").await, Err(Error::UnknownName { .. })));

    // Kinds, hooks and clients of the user's own.
    pool.register("feed", Feed).unwrap();
    assert_eq!(*pool.get::<Feed>("feed").await.unwrap(), "feed");
    pool.depends_on("feed", "redis").unwrap();
    let ran = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&ran);
    pool.on_close("hook", Phase::Files, move || {
        counter.fetch_add(1, Ordering::SeqCst);
        Ok(())
    })
    .unwrap();
    let client = Arc::new(());
    let counter = Arc::clone(&ran);
    let close = move |_: Arc<()>| {
        counter.fetch_add(1, Ordering::SeqCst);
        Ok(())
    };
    pool.adopt("own", &client, Phase::Databases, close).unwrap();

    // Closes one resource, and then all.
    assert!(pool.close("locks").await.unwrap().all_closed());
    assert!(matches!(pool.redis_named("locks").await, Err(Error::Closed { .. })));
    pool.reconnect("locks").await.unwrap();
    assert!(!pool.is_closing());
    let closing = pool.closing();
    drop((mongo_lease, rabbit, clickhouse_lease, redis_lease));
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    assert!(closing.is_set() && pool.is_closing());
    assert_eq!(ran.load(Ordering::SeqCst), 2);
    let steps: Vec<_> = report.steps.iter().map(|step| &*step.name).collect();
    let at = |name: &str| steps.iter().position(|step| *step == name).unwrap();
    assert!(at("rabbitmq") < at("feed") && at("feed") < at("redis") && at("redis") < at("clickhouse"), "{report}");
    assert!(at("clickhouse") < at("mongo") && at("mongo") < at("hook"), "{report}");
    pool.reopen().unwrap();
    drop(pool.redis().await.unwrap());
    assert!(pool.close_all_within(SOON).await.all_closed());
}

#[test]
fn surface_blocking() {
    let pool: blocking::ResourcePool = configured(blocking::ResourcePool::builder()).build().unwrap();
    for (name, result) in pool.warm_up(NAMES).unwrap() {
        result.unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    let mongo_lease: Lease<mongodb::sync::Client> = pool.mongo().unwrap();
    let line = line!() - 1;
    assert!(on_line(&pool.holders(), "mongo", line), "{:?}", pool.holders());
    let database = mongo_lease.database(&unique("blocking"));
    database.collection("bars").insert_one(doc! { "code": "AAPL" }).run().unwrap();
    assert_eq!(database.collection::<Document>("bars").count_documents(doc! {}).run().unwrap(), 1);
    database.drop().run().unwrap();

    let rabbit: Lease<blocking::RabbitMq> = pool.rabbitmq().unwrap();
    let line = line!() - 1;
    assert!(on_line(&pool.holders(), "rabbitmq", line));
    let exchange = unique("bars");
    rabbit.declare_exchange(Exchange::fanout(exchange.as_str()).auto_delete()).unwrap();
    let queue = rabbit.declare_queue(Queue::temporary()).unwrap();
    rabbit.bind(queue.name(), &exchange, "").unwrap();
    assert!(rabbit.publish(Message::new(exchange.as_str(), "", "one")).unwrap().is_confirmed());
    assert!(
        rabbit.publish_batch((0..10).map(|_| Message::new(exchange.as_str(), "", "more"))).unwrap().all_confirmed()
    );
    rabbit.get(queue.name()).unwrap().unwrap().ack().unwrap();
    let mut consumer = rabbit.consume(Consume::from(queue.name()).prefetch(2)).unwrap();
    for _ in 0..10 {
        consumer.next().unwrap().unwrap().ack().unwrap();
    }
    drop(consumer);
    let channel = rabbit.channel().unwrap();
    let line = line!() - 1;
    assert!(pool.holders().iter().any(|one| one.exclusive && one.site.line() == line), "{:?}", pool.holders());
    drop(channel);

    let clickhouse_lease: Lease<blocking::ClickHouse> = pool.clickhouse().unwrap();
    let line = line!() - 1;
    assert!(on_line(&pool.holders(), "clickhouse", line));
    let table = unique("numbers");
    clickhouse_lease.execute(format!("CREATE TABLE {table} (number UInt64) ENGINE = Memory").as_str()).unwrap();
    clickhouse_lease.insert_rows(&table, (0..3).map(|number| Number { number })).unwrap();
    let rows: Vec<Number> =
        clickhouse_lease.query_rows(format!("SELECT number FROM {table} ORDER BY number").as_str()).unwrap();
    assert_eq!(rows.last(), Some(&Number { number: 2 }));
    clickhouse_lease.execute(format!("DROP TABLE {table}").as_str()).unwrap();

    let mut connection: blocking::Redis = pool.redis().unwrap();
    let line = line!() - 1;
    assert!(on_line(&pool.holders(), "redis", line));
    let key = unique("key");
    let () = connection.set_ex(&key, 7, 60).unwrap();
    assert_eq!(connection.get_del::<_, i64>(&key).unwrap(), 7);

    drop(pool.mongo_named("research").unwrap());
    drop(pool.rabbitmq_named("orders").unwrap());
    drop(pool.clickhouse_named("factors").unwrap());
    drop(pool.redis_named("locks").unwrap());
    drop(pool.mongo_with("live", mongo()).unwrap());
    drop(pool.rabbitmq_with("ticks", rabbitmq()).unwrap());
    drop(pool.clickhouse_with("scratch", clickhouse()).unwrap());
    drop(pool.redis_with("cache", redis()).unwrap());
    drop(pool.within(SOON).mongo().unwrap());

    for report in [
        blocking::Mongo::scoped(mongo()).unwrap().close().unwrap(),
        blocking::RabbitMq::scoped(rabbitmq()).unwrap().close().unwrap(),
        blocking::ClickHouse::scoped(clickhouse()).unwrap().close().unwrap(),
        blocking::Redis::scoped(redis()).unwrap().close().unwrap(),
    ] {
        assert!(report.all_closed(), "{report}");
    }

    assert_eq!(pool.health_check().unwrap().readiness(), Health::Pass);
    assert!(pool.is_healthy("mongo").unwrap());
    assert_eq!(pool.status().resource("mongo").unwrap().state, State::Ready);
    assert!(pool.check_leak(5).is_empty());

    pool.warm_up_all().unwrap();
    pool.refresh("redis").unwrap();
    pool.resize("redis", 7).unwrap();
    assert_eq!(pool.status().resource("redis").unwrap().usage.max, Some(7));
    assert!(matches!(pool.refresh("mongo"), Err(Error::Operation { .. })));
    assert!(pool.unregister("cache").unwrap().all_closed());
    assert!(matches!(pool.resize("cache", 7), Err(Error::UnknownName { .. })));

    pool.register("feed", Feed).unwrap();
    assert_eq!(*pool.get::<Feed>("feed").unwrap(), "feed");
    pool.depends_on("feed", "redis").unwrap();
    pool.on_close("hook", Phase::Files, || Ok(())).unwrap();
    let client = Arc::new(());
    pool.adopt("own", &client, Phase::Databases, |_| Ok(())).unwrap();

    assert!(pool.close("locks").unwrap().all_closed());
    assert!(matches!(pool.redis_named("locks"), Err(Error::Closed { .. })));
    pool.reconnect("locks").unwrap();
    assert!(!pool.is_closing());
    let closing = pool.closing();
    drop((mongo_lease, rabbit, clickhouse_lease, connection));
    let report = pool.close_all().unwrap();
    assert!(report.all_closed() && closing.is_set() && pool.is_closing(), "{report}");
    pool.reopen().unwrap();
    drop(pool.redis().unwrap());
    assert!(pool.close_all_within(SOON).unwrap().all_closed());
}

/// The global pool, and the short names.
#[test]
fn surface_global() {
    configured(ResourcePool::builder()).install().unwrap();
    assert!(matches!(ResourcePool::builder().install(), Err(Error::AlreadyInstalled)));
    drop(blocking::mongo().unwrap());
    drop(blocking::rabbitmq().unwrap());
    drop(blocking::clickhouse().unwrap());
    drop(blocking::redis().unwrap());
    let answer = resource_pool::run(async {
        drop(resource_pool::mongo().await.unwrap());
        drop(resource_pool::rabbitmq().await.unwrap());
        drop(resource_pool::clickhouse().await.unwrap());
        let mut redis = resource_pool::redis().await.unwrap();
        let _: String = resource_pool::redis::cmd("PING").query_async(&mut redis).await.unwrap();
        42
    });
    assert_eq!(answer.unwrap(), 42);
    assert!(matches!(blocking::redis(), Err(Error::Closed { .. })), "run has closed it");
    ResourcePool::global().reopen().unwrap();
    let after = resource_pool::run(async {
        drop(resource_pool::redis().await.unwrap());
        let report = ResourcePool::global().close_all().await;
        // Closing everything does not end the runtime of the task that asked for it.
        tokio::time::sleep(Duration::from_millis(10)).await;
        report.all_closed()
    });
    assert!(after.unwrap());
    ResourcePool::global().reopen().unwrap();
    let answer = blocking::run(|| blocking::redis().map(|mut redis| redis::cmd("PING").query::<String>(&mut redis)));
    assert_eq!(answer.unwrap().unwrap().unwrap(), "PONG");
    assert!(ResourcePool::global().is_closing());
}
