//! The four backends together in one pool, and the global pool.

#![cfg(all(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
#![allow(missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Plain, Stopwatch, unhurried, until_async};
use redis::AsyncCommands;
use resource_pool::config::{ClickHouseConfig, MongoConfig, RabbitMqConfig, RedisConfig};
use resource_pool::{Error, Failure, Health, HealthReport, Lease, Link, Resource, ResourcePool, State, blocking};
use services::{Kind, Proxy, Service};

const KINDS: [Kind; 4] = [Kind::Mongo, Kind::RabbitMq, Kind::ClickHouse, Kind::Redis];
const NAMES: [&str; 4] = ["mongo", "rabbitmq", "clickhouse", "redis"];
/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(10);

fn pool(servers: &[Service]) -> ResourcePool {
    ResourcePool::builder()
        .environment([("", ""); 0])
        .resource(MongoConfig::uri(servers[0].url()))
        .resource(RabbitMqConfig::url(servers[1].url()))
        .resource(ClickHouseConfig::url(servers[2].url()))
        .resource(RedisConfig::url(servers[3].url()))
        .build()
        .unwrap()
}

fn is_send_and_static<T: Send + 'static>() {}

#[test]
fn pool_guards_are_send_and_static() {
    is_send_and_static::<Lease<mongodb::Client>>();
    is_send_and_static::<Lease<mongodb::sync::Client>>();
    is_send_and_static::<Lease<resource_pool::RabbitMq>>();
    is_send_and_static::<Lease<blocking::RabbitMq>>();
    is_send_and_static::<Lease<clickhouse::Client>>();
    is_send_and_static::<Lease<blocking::ClickHouse>>();
    is_send_and_static::<Lease<resource_pool::Redis>>();
    is_send_and_static::<blocking::Redis>();
    is_send_and_static::<resource_pool::Scoped<Lease<mongodb::Client>>>();
    is_send_and_static::<blocking::Scoped<blocking::Redis>>();
}

/// Whether the four have this health. A build with further kinds has further entries.
fn all_of_them(report: &HealthReport, health: Health) -> bool {
    report.entries.iter().filter(|entry| NAMES.contains(&&*entry.name)).all(|entry| entry.health == health)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pool_all_four_frozen_health_answers_in_time_and_closing_is_bounded() {
    let servers = Service::start_all(&KINDS).unwrap();
    let before: Vec<_> = servers.iter().map(|server| server.established().unwrap()).collect();
    let pool = pool(&servers);
    assert_eq!(pool.health_check().await.health, Health::Pass, "never used is no failure");
    assert!(pool.health_check().await.entries.iter().all(|entry| entry.health == Health::Unknown));
    for (name, result) in pool.warm_up(NAMES).await {
        result.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    until_async(SOON, async || all_of_them(&pool.health_check().await, Health::Pass)).await;
    println!("{}", pool.health_check().await);
    servers.iter().for_each(|server| server.freeze().unwrap());
    let frozen = Stopwatch::start();
    until_async(SOON, async || {
        let watch = Stopwatch::start();
        let report = pool.health_check().await;
        assert!(watch.took() < Duration::from_millis(850), "{:?}\n{report}", watch.took());
        all_of_them(&report, Health::Fail)
    })
    .await;
    assert!(frozen.took() < Duration::from_secs(3), "{:?}", frozen.took());
    until_async(SOON, async || NAMES.iter().all(|name| pool.status().resource(name).unwrap().state != State::Ready))
        .await;
    assert!(frozen.took() < Duration::from_secs(6), "{:?}", frozen.took());
    servers.iter().for_each(|server| server.thaw().unwrap());
    let thawed = Instant::now();
    until_async(SOON, async || all_of_them(&pool.health_check().await, Health::Pass)).await;
    println!("all healthy {:?} after the thaw", thawed.elapsed());

    servers.iter().for_each(|server| server.freeze().unwrap());
    let watch = Stopwatch::start();
    let report = pool.close_all_within(Duration::from_secs(8)).await;
    assert!(watch.took() < Duration::from_secs(9), "{:?}\n{report}", watch.took());
    assert_eq!(report.steps.len(), 4, "{report}");
    println!("{report}");
    servers.iter().for_each(|server| server.thaw().unwrap());
    let left = async || servers.iter().zip(&before).all(|(server, before)| server.established().unwrap() <= *before);
    until_async(SOON, left).await;
}

/// A connection that was lost before closing began has nothing more to end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pool_warm_up_of_all_connects_what_is_set_and_names_what_is_not_ready() {
    let server = Service::start(Kind::Redis).unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let gone = |db: u8| RedisConfig::url(format!("redis://127.0.0.1:{nobody}/{db}"));
    let builder = || {
        let mut options = unhurried();
        options.retry.attempts = 1;
        let builder = ResourcePool::builder().environment([("REDIS_URL", server.url())]);
        builder.options(options)
    };
    let pool = builder().build().unwrap();
    pool.register("plain", Plain).unwrap();
    pool.warm_up_all().await.unwrap();
    let state = |name: &str| pool.status().resource(name).unwrap().state;
    assert_eq!(["redis", "plain", "mongo"].map(state), [State::Ready, State::Ready, State::Idle]);
    assert!(pool.close_all().await.all_closed());

    let pool = builder().named("quotes", gone(0)).named("orders", gone(1)).build().unwrap();
    let error = pool.warm_up_all().await.unwrap_err();
    let Error::WarmUp(failed) = &error else { panic!("{error}") };
    let names: Vec<_> = failed.failed.iter().map(|(name, error)| (name.as_str(), error.is_transient())).collect();
    assert_eq!((names, failed.of), (vec![("orders", true), ("quotes", true)], 3));
    let text = error.to_string();
    assert!(text.starts_with("2 of 3 resources are not ready, orders, quotes; orders: no connection to"), "{text}");
    assert_eq!(pool.status().resource("redis").unwrap().state, State::Ready, "the others are ready all the same");
    let threads = blocking::ResourcePool::from(pool.clone());
    let same = tokio::task::spawn_blocking(move || threads.warm_up_all().unwrap_err()).await.unwrap();
    assert!(matches!(same, Error::WarmUp(_)) && error.is_transient());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pool_name_that_is_unregistered_is_free_and_its_leases_are_closed() {
    let server = Service::start(Kind::Redis).unwrap();
    let before = server.established().unwrap();
    let builder = ResourcePool::builder().environment([("REDIS_URL", server.url())]);
    let pool = builder.options(unhurried()).build().unwrap();
    let config = || RedisConfig::url(server.url());
    let lease = pool.redis_with("cache", config()).await.unwrap();
    let mut kept = lease.clone();
    let other = pool.redis_with("cache", config().pool_size(1)).await;
    assert!(matches!(other, Err(Error::NameTaken { .. })));
    let report = pool.unregister("cache").await.unwrap();
    assert!(report.all_closed() && report.step("cache").is_some(), "{report}");
    assert_eq!(server.await_established(before, SOON).unwrap(), before);
    assert!(matches!(pool.reconnect("cache").await, Err(Error::UnknownName { .. })));
    assert!(matches!(pool.unregister("cache").await, Err(Error::UnknownName { .. })));
    assert!(pool.status().resource("cache").is_none());

    let mut new = pool.redis_with("cache", config().pool_size(1)).await.unwrap().clone();
    let () = new.set("unregistered", 1).await.unwrap();
    let error = kept.get::<_, i64>("unregistered").await.unwrap_err();
    assert!(Error::behind(&error).is_some_and(Error::is_closed), "{error}");
    drop(lease);

    // A configured resource stays.
    let mut redis = pool.redis().await.unwrap().clone();
    let error = pool.unregister("redis").await.unwrap_err();
    assert!(error.to_string().contains("it is in the configuration"), "{error}");
    assert_eq!(redis.get::<_, i64>("unregistered").await.unwrap(), 1);

    // A resource that was never connected goes too, with its order of closing.
    for name in ["first", "second"] {
        pool.register(name, Plain).unwrap();
    }
    pool.depends_on("first", "second").unwrap();
    assert!(matches!(pool.depends_on("second", "first"), Err(Error::Order(_))));
    let threads = blocking::ResourcePool::from(pool.clone());
    tokio::task::spawn_blocking(move || threads.unregister("second").unwrap()).await.unwrap();
    pool.register("second", Plain).unwrap();
    pool.depends_on("second", "first").unwrap();
    assert!(pool.close_all().await.all_closed());
    pool.unregister("second").await.unwrap();
    assert!(pool.status().resource("second").is_none());
}

/// The pool does not connect again what the program has closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pool_warm_up_of_all_leaves_out_what_was_closed() {
    let pool = ResourcePool::builder().environment([("", ""); 0]).options(unhurried()).build().unwrap();
    for name in ["closed", "used"] {
        pool.register(name, Plain).unwrap();
    }
    pool.warm_up_all().await.unwrap();
    pool.close("closed").await.unwrap();
    pool.warm_up_all().await.unwrap();
    let state = |name| pool.status().resource(name).unwrap().state;
    assert_eq!((state("closed"), state("used")), (State::Closed, State::Ready));
    assert!(pool.close_all().await.all_closed());
    pool.warm_up_all().await.unwrap_err();
}

/// Nothing is connected that the pool no longer knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pool_resource_that_is_reconnected_as_it_is_unregistered_is_closed() {
    struct Counted(Arc<AtomicUsize>);
    impl Resource for Counted {
        type Handle = ();
        async fn connect(&self, _: &Link) -> Result<(), Failure> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
        async fn ping(&self, (): &()) -> Result<(), Failure> {
            Ok(())
        }
        async fn close(&self, (): ()) -> Result<(), Failure> {
            self.0.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }
    }
    let mut options = unhurried();
    options.close.held = Duration::ZERO;
    let pool = ResourcePool::builder().environment([("", ""); 0]).options(options).build().unwrap();
    let open = Arc::new(AtomicUsize::new(0));
    for _ in 0..20 {
        pool.register("counted", Counted(Arc::clone(&open))).unwrap();
        drop(pool.get::<Counted>("counted").await.unwrap());
        let again = pool.clone();
        let reconnecting = tokio::spawn(async move {
            loop {
                if let Err(Error::UnknownName { .. }) = again.reconnect("counted").await {
                    return;
                }
                tokio::task::yield_now().await;
            }
        });
        pool.unregister("counted").await.unwrap();
        reconnecting.await.unwrap();
        until_async(SOON, async || open.load(Ordering::SeqCst) == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pool_all_four_lost_before_closing() {
    let servers = Service::start_all(&KINDS).unwrap();
    let pool = pool(&servers);
    for (name, result) in pool.warm_up(NAMES).await {
        result.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    servers.iter().for_each(|server| server.kill().unwrap());
    let is_lost = || pool.status().resources.iter().all(|one| one.state != State::Ready);
    until_async(SOON, async || is_lost()).await;
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
}

/// Each server takes every connection and ends it as soon as it is ready. Without pauses between the generations, Redis
/// alone would see more than thirty a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pool_server_that_hangs_up_is_not_stormed() {
    let servers = Service::start_all(&KINDS).unwrap();
    let proxies: Vec<_> = servers.iter().map(|server| Proxy::start(server.port()).unwrap()).collect();
    let urls: Vec<_> = servers.iter().zip(&proxies).map(|(server, proxy)| proxy.url(server)).collect();
    let pool = ResourcePool::builder()
        .environment([("", ""); 0])
        .resource(MongoConfig::uri(urls[0].replacen("replicaSet=rs0", "directConnection=true", 1)))
        .resource(RabbitMqConfig::url(&*urls[1]))
        .resource(ClickHouseConfig::url(&*urls[2]))
        .resource(RedisConfig::url(&*urls[3]))
        .build()
        .unwrap();
    for (name, result) in pool.warm_up(NAMES).await {
        result.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let generation = |name: &str| pool.status().resource(name).unwrap().generation;
    let began = Instant::now();
    let lasts = Duration::from_secs(8);
    until_async(lasts * 2, async || {
        for (name, proxy) in NAMES.iter().zip(&proxies) {
            if pool.status().resource(name).unwrap().state == State::Ready {
                proxy.cut();
            }
        }
        began.elapsed() >= lasts
    })
    .await;
    // The pauses are 100, 200, 400 and 800 ms, and then one second each.
    let most = 6 + began.elapsed().as_secs();
    for name in NAMES {
        assert!(generation(name) <= most, "{name}: {} generations in {:?}", generation(name), began.elapsed());
    }
    // These two notice the end of a connection at once.
    for name in ["rabbitmq", "redis"] {
        assert!(generation(name) >= 4, "{name}: {}", generation(name));
        let known = async || {
            let report = pool.health_check().await;
            report.entry(name).is_some_and(|entry| entry.health == Health::Pass)
        };
        until_async(SOON, known).await;
    }
    assert!(pool.close_all().await.all_closed());
}

#[test]
fn pool_blocking_frozen_at_connect_at_health_and_at_close() {
    let servers = Service::start_all(&KINDS).unwrap();
    let pool = blocking::ResourcePool::from(pool(&servers));
    servers.iter().for_each(|server| server.freeze().unwrap());
    std::thread::scope(|scope| {
        type Acquire = fn(&blocking::ResourcePool) -> Result<(), Error>;
        let acquire: [Acquire; 4] = [
            |pool| pool.mongo().map(drop),
            |pool| pool.rabbitmq().map(drop),
            |pool| pool.clickhouse().map(drop),
            |pool| pool.redis().map(drop),
        ];
        for (name, acquire) in NAMES.into_iter().zip(acquire) {
            let pool = &pool;
            scope.spawn(move || {
                let watch = Stopwatch::start();
                let error = acquire(pool).expect_err(name);
                assert!(error.is_transient(), "{name}: {error}");
                assert!(watch.took() < Duration::from_millis(5500), "{name}: {:?}", watch.took());
            });
        }
    });
    servers.iter().for_each(|server| server.thaw().unwrap());
    common::until(SOON, || pool.warm_up(NAMES).unwrap().into_iter().all(|(_, result)| result.is_ok()));
    servers.iter().for_each(|server| server.freeze().unwrap());
    let watch = Stopwatch::start();
    let report = pool.health_check().unwrap();
    assert!(watch.took() < Duration::from_millis(850), "{:?}", watch.took());
    assert!(all_of_them(&report, Health::Fail), "{report}");
    let watch = Stopwatch::start();
    let report = pool.close_all_within(Duration::from_secs(8)).unwrap();
    assert!(watch.took() < Duration::from_secs(9), "{:?}\n{report}", watch.took());
    assert_eq!(report.steps.len(), 4, "{report}");
}

#[test]
fn pool_close_all_under_load_leaves_nothing() {
    let servers = Service::start_all(&KINDS).unwrap();
    let before: Vec<_> = servers.iter().map(|server| server.established().unwrap()).collect();
    let pool = pool(&servers);
    let threads = blocking::ResourcePool::from(pool.clone());
    threads
        .warm_up(NAMES)
        .unwrap()
        .into_iter()
        .for_each(|(name, result)| result.unwrap_or_else(|e| panic!("{name}: {e}")));
    let closing = threads.closing();
    // Between two of these operations the thread has nothing in progress. The drain may end there, so the next acquire
    // may be refused.
    let work = || -> Result<(), Error> {
        let ping = mongodb::bson::doc! { "ping": 1 };
        threads.mongo()?.database("admin").run_command(ping).run().unwrap();
        redis::cmd("PING").exec(&mut threads.redis()?).unwrap();
        threads.clickhouse()?.execute("SELECT 1")
    };
    let worked = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !closing.is_set() {
                    match work() {
                        Ok(()) => drop(worked.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => assert!(error.is_closed() && closing.is_set(), "{error}"),
                    }
                }
            });
        }
        common::until(SOON, || worked.load(Ordering::Relaxed) >= 20);
        let report = threads.close_all().unwrap();
        assert!(report.all_closed(), "{report}");
        let names: Vec<_> = report.steps.iter().map(|step| &*step.name).collect();
        assert_eq!(names, ["rabbitmq", "redis", "clickhouse", "mongo"], "{report}");
    });
    common::until(SOON, || {
        servers.iter().zip(&before).all(|(server, before)| server.established().unwrap() <= *before)
    });
}

/// Many tests of one process share the global pool. Each has a runtime of its own that ends with it.
mod global {
    use super::*;

    fn install() -> &'static ResourcePool {
        static INSTALLED: std::sync::OnceLock<()> = std::sync::OnceLock::new();
        INSTALLED.get_or_init(|| {
            ResourcePool::builder()
                .environment([("", ""); 0])
                .resource(RedisConfig::url(services::shared(Kind::Redis).url()))
                .signals(false)
                .install()
                .unwrap();
        });
        ResourcePool::global()
    }

    async fn uses_the_global_pool(name: &str) {
        let key = format!("global:{}:{name}", std::process::id());
        let mut redis = install().redis().await.unwrap();
        let () = redis.set_ex(&key, name, 60).await.unwrap();
        assert_eq!(redis.get::<_, String>(&key).await.unwrap(), name);
        let () = redis.del(&key).await.unwrap();
        assert_eq!(install().status().resource("redis").unwrap().generation, 1);
        assert!(ResourcePool::builder().install().is_err());
    }

    #[test]
    fn pool_global_outlives_the_runtimes_of_its_users() {
        std::thread::scope(|scope| {
            for thread in 0..5 {
                scope.spawn(move || {
                    for round in 0..10 {
                        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                        runtime.block_on(uses_the_global_pool(&format!("{thread}.{round}")));
                    }
                });
            }
        });
    }

    #[test]
    fn pool_both_facades_see_the_same() {
        install();
        let _held = blocking::redis().unwrap();
        let line = line!() - 1;
        let seen = |holders: Vec<resource_pool::Holder>| {
            holders.iter().any(|holder| holder.site.line() == line && holder.site.file() == file!())
        };
        assert!(seen(ResourcePool::global().holders()));
        assert!(seen(blocking::ResourcePool::global().holders()));
    }
}
