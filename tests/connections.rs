//! Checks the number of connections and descriptors that each kind needs against the guide's table.

#![cfg(any(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
#![allow(missing_docs)]

mod common;

use std::time::Duration;

use common::until_async;
use resource_pool::ResourcePool;
use resource_pool::config::ResourceConfig;
use services::{Kind, Service};

/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(15);

fn pool(config: impl Into<ResourceConfig>) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).resource(config).build().expect("a pool")
}

/// The number of this process's descriptors that are TCP sockets, and the number of the others.
fn descriptors() -> (usize, usize) {
    let tcp = std::fs::read_to_string("/proc/self/net/tcp").expect("/proc");
    let inodes: Vec<_> = tcp.lines().filter_map(|line| line.split_whitespace().nth(9)).collect();
    let open = std::fs::read_dir("/proc/self/fd").expect("/proc").flatten();
    let targets = open.filter_map(|fd| std::fs::read_link(fd.path()).ok()).map(|to| to.to_string_lossy().into_owned());
    let is_tcp = |to: &String| {
        to.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')).is_some_and(|inode| inodes.contains(&inode))
    };
    let (sockets, others): (Vec<_>, Vec<_>) = targets.partition(is_tcp);
    (sockets.len(), others.len())
}

/// Waits until the server has so many connections, in so many descriptors of this process.
async fn has(server: &Service, what: &str, connections: usize, sockets: usize) {
    let now = || (server.established().expect("its connections"), descriptors().0);
    let mut seen = now();
    let started = std::time::Instant::now();
    while seen != (connections, sockets) && started.elapsed() < SOON {
        tokio::time::sleep(Duration::from_millis(5)).await;
        seen = now();
    }
    assert_eq!(seen, (connections, sockets), "{:?}: {what}", server.kind());
}

async fn ends(server: &Service, pool: &ResourcePool) {
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    has(server, "closed", 0, 0).await;
}

#[cfg(feature = "mongodb")]
async fn mongodb() {
    use mongodb::bson::{Document, doc};

    let server = Service::start(Kind::Mongo).unwrap();
    let pool = pool(resource_pool::config::MongoConfig::uri(server.url()));
    let mongo = pool.mongo().await.unwrap();
    has(&server, "two monitors, ten ready ones, and the prober's two", 14, 14).await;
    let numbers = mongo.database("counted").collection::<Document>("numbers");
    numbers.insert_one(doc! {"n": 1}).await.unwrap();
    let slow: Vec<_> = (0..13)
        .map(|_| {
            let numbers = numbers.clone();
            tokio::spawn(async move { numbers.find_one(doc! {"$where": "sleep(4000) || true"}).await.map(drop) })
        })
        .collect();
    has(&server, "three operations more than were ready", 17, 17).await;
    for slow in slow {
        slow.await.unwrap().unwrap();
    }
    ends(&server, &pool).await;
}

#[cfg(feature = "rabbitmq")]
async fn rabbitmq() {
    let server = Service::start(Kind::RabbitMq).unwrap();
    let pool = pool(resource_pool::config::RabbitMqConfig::url(server.url()));
    let rabbit = pool.rabbitmq().await.unwrap();
    has(&server, "the resource's and the prober's", 2, 2).await;
    let channels = futures_util::future::join_all((0..20).map(|_| rabbit.channel())).await;
    assert!(channels.iter().all(Result::is_ok));
    has(&server, "twenty channels on them", 2, 2).await;
    drop(channels);
    rabbit.declare_queue(resource_pool::rabbitmq::Queue::new("consumed")).await.unwrap();
    let consumers = [rabbit.consume("consumed").await.unwrap(), rabbit.consume("consumed").await.unwrap()];
    has(&server, "the consumers' beside them", 3, 3).await;
    drop(consumers);
    ends(&server, &pool).await;
}

#[cfg(feature = "clickhouse")]
async fn clickhouse() {
    let server = Service::start(Kind::ClickHouse).unwrap();
    let pool = pool(resource_pool::config::ClickHouseConfig::url(server.url()));
    let clickhouse = pool.clickhouse().await.unwrap();
    has(&server, "the prober's", 1, 1).await;
    let slow: Vec<_> = (0..5)
        .map(|_| {
            let query = clickhouse.query("SELECT sleep(3)");
            tokio::spawn(query.execute())
        })
        .collect();
    has(&server, "five queries beside it", 6, 6).await;
    for slow in slow {
        slow.await.unwrap().unwrap();
    }
    has(&server, "idle again", 1, 1).await;
    ends(&server, &pool).await;
}

#[cfg(feature = "redis")]
async fn redis() {
    let server = Service::start(Kind::Redis).unwrap();
    let pool = pool(resource_pool::config::RedisConfig::url(server.url()));
    let redis = pool.redis().await.unwrap();
    has(&server, "the shared one and the prober's", 2, 2).await;
    let own = [redis.exclusive().await.unwrap(), redis.exclusive().await.unwrap()];
    has(&server, "two exclusive ones beside them", 4, 4).await;
    drop(own);
    has(&server, "given back", 2, 2).await;
    let threads = resource_pool::blocking::ResourcePool::from(pool.clone());
    let three = move || [threads.redis().unwrap(), threads.redis().unwrap(), threads.redis().unwrap()];
    let held = tokio::task::spawn_blocking(three).await.unwrap();
    has(&server, "three checkouts of threads", 5, 8).await;
    tokio::task::spawn_blocking(move || drop(held)).await.unwrap();
    has(&server, "idle again", 5, 8).await;
    ends(&server, &pool).await;
}

/// The kinds run one after the other, because the descriptors belong to the whole process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_and_descriptors_are_as_many_as_the_guide_says() {
    // The first pool starts the prober's runtime, which the process keeps.
    let bare = descriptors().1;
    pool_of_its_own(bare + 8).await;
    pool_of_its_own(bare + 8).await;
    #[cfg(feature = "mongodb")]
    mongodb().await;
    #[cfg(feature = "rabbitmq")]
    rabbitmq().await;
    #[cfg(feature = "clickhouse")]
    clickhouse().await;
    #[cfg(feature = "redis")]
    redis().await;
}

/// The number of a pool's descriptors besides its connections.
async fn pool_of_its_own(most: usize) {
    struct Nothing;
    impl resource_pool::Resource for Nothing {
        type Handle = ();
        async fn connect(&self, _: &resource_pool::Link) -> Result<(), resource_pool::Failure> {
            Ok(())
        }
        async fn ping(&self, _: &()) -> Result<(), resource_pool::Failure> {
            Ok(())
        }
        async fn close(&self, _: ()) -> Result<(), resource_pool::Failure> {
            Ok(())
        }
    }
    let pool = ResourcePool::builder().environment([("", ""); 0]).build().expect("a pool");
    pool.register("nothing", Nothing).expect("the name is free");
    drop(pool.get::<Nothing>("nothing").await.expect("it connects"));
    until_async(SOON, async || pool.is_healthy("nothing").await).await;
    let (_, open) = descriptors();
    println!("a pool has {open} of {most}");
    assert!(open <= most, "{open} descriptors, of at most {most}");
    assert!(pool.close_all().await.all_closed());
}
