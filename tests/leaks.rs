//! Leaks: holders that keep something for longer than expected, or more of it.

#![cfg(all(feature = "mongodb", feature = "rabbitmq", feature = "redis"))]
#![allow(missing_docs)]

mod common;

use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

use common::{Log, Plain, until};
use parking_lot::Mutex;
use resource_pool::config::{LeakOptions, MongoConfig, Options, RabbitMqConfig, RedisConfig};
use resource_pool::{Holder, Phase, ResourcePool, ResourceStatus, blocking};
use services::{Kind, Service, shared};

/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(10);
/// The age from which a holder counts as a suspect.
const AGE: Duration = Duration::from_millis(100);

static LOG: LazyLock<Log> = LazyLock::new(Log::start);

/// How often this was logged, at this level, about this line of this file.
fn logged(level: &str, what: &str, line: u32) -> usize {
    let site = format!("tests/leaks.rs:{line}:");
    let is_it = |text: &&str| text.contains(level) && text.contains(what) && text.contains(&site);
    LOG.text().lines().filter(is_it).count()
}

fn warned(line: u32) -> usize {
    logged("WARN", "held for longer than expected", line)
}

fn noted(line: u32) -> usize {
    logged("INFO", "came back after all", line)
}

fn options(change: impl FnOnce(&mut LeakOptions)) -> Options {
    LazyLock::force(&LOG);
    let mut options = Options::default();
    options.leaks.age = AGE;
    change(&mut options.leaks);
    options
}

fn pool(change: impl FnOnce(&mut LeakOptions)) -> ResourcePool {
    ResourcePool::builder()
        .environment([("", ""); 0])
        .options(options(change))
        .resource(MongoConfig::uri(shared(Kind::Mongo).url()))
        .resource(RabbitMqConfig::url(shared(Kind::RabbitMq).url()))
        .resource(RedisConfig::url(shared(Kind::Redis).url()))
        .build()
        .unwrap()
}

fn status(pool: &ResourcePool, name: &str) -> ResourceStatus {
    pool.status().resource(name).unwrap().clone()
}

fn suspects(pool: &ResourcePool) -> Vec<Holder> {
    pool.holders().into_iter().filter(|holder| holder.suspected).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaked_checkouts_are_told_once_each_with_their_lines_and_when_they_come_back() {
    let pool = pool(|_| {});
    let threads = blocking::ResourcePool::from(pool.clone());
    let (redis, rabbit) = (pool.redis().await.unwrap(), pool.rabbitmq().await.unwrap());
    let rabbit_threads = threads.rabbitmq().unwrap();

    let leaker = thread::Builder::new().name("leaker".to_owned());
    let held = leaker.spawn(move || (threads.redis().unwrap(), line!())).unwrap().join().unwrap();
    let exclusive = (redis.exclusive().await.unwrap(), line!());
    let pubsub = (redis.pubsub().await.unwrap(), line!());
    let channel = (rabbit.channel().await.unwrap(), line!());
    let for_threads = (rabbit_threads.channel().unwrap(), line!());
    let lines = [held.1, exclusive.1, pubsub.1, channel.1, for_threads.1];

    until(SOON, || suspects(&pool).len() == 5);
    until(SOON, || lines.iter().all(|line| warned(*line) == 1));
    assert_eq!((status(&pool, "redis").leaks, status(&pool, "rabbitmq").leaks), (3, 2));
    assert_eq!((status(&pool, "redis").leaks_total, status(&pool, "rabbitmq").leaks_total), (3, 2));
    for (holder, line) in suspects(&pool).iter().zip(lines) {
        assert_eq!(holder.site.line(), line, "the oldest first: {holder}");
        assert!(holder.held >= AGE && holder.exclusive && holder.backtrace.is_none(), "{holder:?}");
        assert!(holder.to_string().contains("a leak?"), "{holder}");
    }
    let holder = suspects(&pool).remove(0);
    assert_eq!(holder.owner.as_ref().unwrap().to_string(), "thread \"leaker\"");
    assert!(LOG.text().lines().any(|text| text.contains("WARN") && text.contains("owner=thread \"leaker\"")));

    // Shared leases are not watched by default. The checkout below becomes a suspect after all others have been looked
    // at again, so each of them has had one warning at most.
    let later = redis.exclusive().await.unwrap();
    until(SOON, || suspects(&pool).len() == 6);
    assert!(lines.iter().all(|line| warned(*line) == 1), "{}", LOG.text());
    assert!(pool.holders().iter().any(|holder| !holder.exclusive && holder.held > AGE && !holder.suspected));

    drop((held.0, exclusive.0, pubsub.0, channel.0, for_threads.0, later));
    until(SOON, || lines.iter().all(|line| noted(*line) == 1));
    assert_eq!((status(&pool, "redis").leaks, status(&pool, "rabbitmq").leaks), (0, 0));
    assert_eq!((status(&pool, "redis").leaks_total, status(&pool, "rabbitmq").leaks_total), (4, 2));
    drop((redis, rabbit, rabbit_threads));
    assert!(pool.close_all().await.all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaked_shared_leases_are_watched_if_asked_for() {
    let unwatched = pool(|_| {});
    unwatched.register("fake", Plain).unwrap();
    let watched = pool(|leaks| leaks.shared = true);
    watched.register("fake", Plain).unwrap();
    let mine = (unwatched.get::<Plain>("fake").await.unwrap(), line!());
    let theirs = (watched.get::<Plain>("fake").await.unwrap(), line!());
    until(SOON, || warned(theirs.1) == 1);
    assert_eq!((status(&watched, "fake").leaks, status(&unwatched, "fake").leaks), (1, 0));
    assert!(suspects(&watched)[0].owner.is_some());
    assert!(unwatched.holders()[0].owner.is_none(), "nothing is recorded of what is not watched");
    assert_eq!(warned(mine.1), 0);
    drop((mine.0, theirs.0));
    until(SOON, || noted(theirs.1) == 1);
    assert_eq!(noted(mine.1), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaked_checkout_shows_its_backtrace_where_that_is_on() {
    let pool = pool(|leaks| leaks.backtrace = true);
    let redis = pool.redis().await.unwrap();
    let own = (redis.exclusive().await.unwrap(), line!());
    drop(redis);
    until(SOON, || warned(own.1) == 1);
    let holder = suspects(&pool).remove(0);
    let here = "leaked_checkout_shows_its_backtrace_where_that_is_on";
    assert!(holder.backtrace.as_ref().unwrap().to_string().contains(here));
    assert_eq!(holder.to_string().lines().count(), 1, "{holder}");
    assert!(format!("{holder:#}").contains(here), "{holder:#}");
    let warning = LOG.text().split("held for longer than expected").skip(1).any(|text| text.contains(here));
    assert!(warning, "in the warning too");
    let report = pool.close_all_within(Duration::from_secs(3)).await;
    let shown = report.to_string();
    assert!(report.step("redis").unwrap().held[0].suspected, "{report}");
    assert!(shown.contains("a leak?") && shown.contains(here), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaks_by_count_are_told_once_until_they_come_back() {
    let pool = pool(|leaks| {
        leaks.age = Duration::ZERO;
        leaks.count = Some(1);
    });
    pool.register("few", Plain).unwrap();
    // The option sets one threshold for checkouts.
    let redis = pool.redis().await.unwrap();
    let one = redis.exclusive().await.unwrap();
    let two = (redis.exclusive().await.unwrap(), line!());
    let crowds = |level, allowed: usize, line| logged(level, &format!("allowed={allowed} holders="), line);
    until(SOON, || crowds("WARN", 1, two.1) == 1);
    assert_eq!((status(&pool, "redis").leaks, suspects(&pool).len()), (1, 0));
    let back = || LOG.text().matches("back under the limit resource=redis held=1 allowed=1").count();
    assert_eq!(back(), 0);
    drop(two.0);
    until(SOON, || back() == 1);
    assert_eq!((status(&pool, "redis").leaks, status(&pool, "redis").leaks_total), (0, 1));
    assert_eq!(crowds("WARN", 1, two.1), 1);

    // A call has a threshold of its own, for everything that is out.
    let mut leases = Vec::new();
    for _ in 0..6 {
        leases.push(pool.get::<Plain>("few").await.unwrap());
    }
    let line = line!() - 2;
    assert!(pool.check_leak(6).is_empty());
    for _ in 0..3 {
        let holders = pool.check_leak(5);
        assert_eq!(holders.len(), 6);
        assert!(holders.iter().all(|holder| &*holder.resource == "few" && holder.site.line() == line));
    }
    assert_eq!((crowds("WARN", 5, line), status(&pool, "few").leaks), (1, 1));
    leases.pop();
    until(SOON, || LOG.text().contains("back under the limit resource=few held=5 allowed=5"));
    assert_eq!(status(&pool, "few").leaks, 0);
    leases.push(pool.get::<Plain>("few").await.unwrap());
    assert_eq!(pool.check_leak(5).len(), 6);
    assert_eq!((crowds("WARN", 5, line), status(&pool, "few").leaks_total), (2, 2), "a new one is told anew");
    drop((one, redis, leases));
}

#[test]
fn adopted_client_that_is_gone_leaves_its_name_and_nothing_else() {
    let pool = blocking::ResourcePool::builder().environment([("", ""); 0]).build().unwrap();
    pool.register("fake", Plain).unwrap();
    let first = Arc::new("first");
    let closed = Arc::new(Mutex::new(Vec::new()));
    let close = |closed: &Arc<Mutex<Vec<&'static str>>>| {
        let closed = Arc::clone(closed);
        move |client: Arc<&'static str>| {
            closed.lock().push(*client);
            Ok(())
        }
    };
    pool.adopt("own", &first, Phase::Telemetry, close(&closed)).unwrap();
    drop(first);
    let second = Arc::new("second");
    pool.adopt("own", &second, Phase::Tasks, close(&closed)).unwrap();
    // The closure of what is gone is gone too. It is dropped on another thread, since it may be anybody's.
    until(SOON, || Arc::strong_count(&closed) == 2);
    pool.depends_on("own", "fake").expect("by the phase of the second");
    let report = pool.close_all().unwrap();
    assert_eq!(*closed.lock(), ["second"]);
    assert_eq!((report.steps.len(), report.step("own").unwrap().phase), (1, Phase::Tasks), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adopted_clients_of_the_drivers_are_closed_if_alive_and_forgotten_if_dropped() {
    let servers = Service::start_all(&[Kind::Mongo, Kind::Redis]).unwrap();
    let (mongo, redis) = (&servers[0], &servers[1]);
    let before = [mongo.established().unwrap(), redis.established().unwrap()];
    let pool = ResourcePool::builder().environment([("", ""); 0]).build().unwrap();

    let runtime = tokio::runtime::Handle::current();
    let adopt_mongo = async |name| {
        let mut options = mongodb::options::ClientOptions::parse(mongo.url()).await.unwrap();
        // With this heartbeat the monitor's last connection ends a second after the client.
        options.heartbeat_freq = Some(Duration::from_secs(1));
        let client = Arc::new(mongodb::Client::with_options(options).unwrap());
        client.list_database_names().await.unwrap();
        let runtime = runtime.clone();
        let close = move |client: Arc<mongodb::Client>| {
            runtime.block_on(mongodb::Client::clone(&client).shutdown().into_future());
            Ok(())
        };
        pool.adopt(name, &client, Phase::Databases, close).unwrap();
        client
    };
    let adopt_redis = |name| {
        let connection = redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
        let client = Arc::new(Mutex::new(Some(connection)));
        let close = |client: Arc<Mutex<Option<redis::Connection>>>| {
            client.lock().take();
            Ok(())
        };
        pool.adopt(name, &client, Phase::Redis, close).unwrap();
        client
    };
    let alive = (adopt_mongo("mongo alive").await, adopt_redis("redis alive"));
    let gone = (adopt_mongo("mongo gone").await, adopt_redis("redis gone"));
    assert!(mongo.established().unwrap() > before[0] && redis.established().unwrap() > before[1]);
    drop(gone);
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    let steps: Vec<_> = report.steps.iter().map(|step| &*step.name).collect();
    assert_eq!(steps, ["redis alive", "mongo alive"], "{report}");
    assert!(alive.0.list_database_names().await.is_err());
    assert!(alive.1.lock().is_none());
    until(SOON, || mongo.established().unwrap() <= before[0] && redis.established().unwrap() <= before[1]);
}
