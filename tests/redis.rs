//! Redis on both facades, against real servers.

#![cfg(feature = "redis")]
#![allow(missing_docs)]

mod common;

use std::collections::HashSet;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Stopwatch, Within, until, until_async};
use futures_util::StreamExt;
use redis::{AsyncCommands, Commands, ConnectionLike, ExistenceCheck, SetExpiry, SetOptions};
use resource_pool::config::{Options, RedisConfig};
use resource_pool::{Error, Health, Outcome, Redis, ResourcePool, State, blocking};
use services::{BlackHole, Kind, Proxy, Service};

/// The limit for a frozen server to show as an error.
const FROZEN: Duration = Duration::from_secs(5);

/// A guard against hanging.
const SOON: Duration = Duration::from_secs(20);

fn start() -> Service {
    Service::start(Kind::Redis).expect("a Redis")
}

fn config(server: &Service) -> RedisConfig {
    RedisConfig::url(server.url()).pool_size(4)
}

fn pool_of(config: RedisConfig) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).resource(config).build().expect("a pool")
}

/// A pool whose health does not depend on how fast a server answers.
fn patient_pool(config: RedisConfig) -> ResourcePool {
    let mut options = Options::default();
    (options.health.each, options.health.all, options.health.slow) = (SOON, SOON, SOON);
    ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().expect("a pool")
}

/// Waits until no client is connected. The kernel ends the server's side a moment after ours.
fn is_left(server: &Service) {
    until(SOON, || server.established().unwrap() == 0);
}

fn pool(server: &Service) -> ResourcePool {
    pool_of(config(server))
}

fn blocking_pool(server: &Service) -> blocking::ResourcePool {
    pool(server).into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_async_connects_leases_and_closes() {
    let server = start();
    let pool = patient_pool(config(&server));
    assert_eq!(pool.status().resource("redis").unwrap().state, State::Idle);
    let mut redis = pool.redis().await.unwrap();
    let () = redis.set("key", 41).await.unwrap();
    assert_eq!(redis.incr::<_, _, i64>("key", 1).await.unwrap(), 42);
    let (a, b): (i64, i64) =
        redis::pipe().atomic().incr("key", 1).incr("key", 1).query_async(&mut redis).await.unwrap();
    assert_eq!((a, b), (43, 44));
    assert_eq!(pool.health_check().await.entry("redis").unwrap().health, Health::Pass);
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    assert_eq!(report.step("redis").unwrap().held.len(), 1);
    assert!(redis.get::<_, i64>("key").await.is_err());
    assert!(matches!(pool.redis().await, Err(Error::Closed { .. })));
    is_left(&server);
}

#[test]
fn redis_blocking_checks_out_and_returns() {
    let server = start();
    let pool = blocking_pool(&server);
    let mut redis = pool.redis().unwrap();
    let () = redis.set("key", 41).unwrap();
    assert_eq!(redis.incr::<_, _, i64>("key", 1).unwrap(), 42);
    let (a,): (i64,) = redis::pipe().atomic().incr("key", 1).query(&mut redis).unwrap();
    assert_eq!(a, 43);
    assert_eq!(pool.holders().len(), 1);
    assert!(pool.holders()[0].exclusive);
    drop(redis);
    assert_eq!(pool.holders().len(), 0);
    assert!(pool.close_all().unwrap().all_closed());
    is_left(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_sets_with_every_option_and_pipelines() {
    let server = start();
    let pool = pool(&server);
    let mut redis = pool.redis().await.unwrap();
    let with = |options: SetOptions| options;
    let () = redis.set_options("ex", 1, with(SetOptions::default().with_expiration(SetExpiry::EX(300)))).await.unwrap();
    let () =
        redis.set_options("px", 1, with(SetOptions::default().with_expiration(SetExpiry::PX(9000)))).await.unwrap();
    assert!((299..=300).contains(&redis.ttl::<_, i64>("ex").await.unwrap()));
    assert!((1..=9000).contains(&redis.pttl::<_, i64>("px").await.unwrap()));
    let nx = SetOptions::default().conditional_set(ExistenceCheck::NX);
    let xx = SetOptions::default().conditional_set(ExistenceCheck::XX);
    assert_eq!(redis.set_options::<_, _, Option<String>>("ex", 2, nx).await.unwrap(), None);
    assert_eq!(redis.set_options::<_, _, Option<String>>("none", 2, xx).await.unwrap(), None);
    assert_eq!(redis.get::<_, i64>("ex").await.unwrap(), 1);
    let many: Vec<i64> = {
        let mut pipe = redis::pipe();
        for n in 0..1000 {
            pipe.incr("n", n);
        }
        pipe.query_async(&mut redis).await.unwrap()
    };
    assert_eq!(many.last(), Some(&499_500));

    // A transaction that is refused half-way leaves the connection usable, on both facades.
    let refused: redis::RedisResult<()> =
        redis::pipe().atomic().set("a", 1).cmd("NOSUCHCOMMAND").query_async(&mut redis).await;
    assert!(refused.is_err());
    assert_eq!(redis.get::<_, i64>("ex").await.unwrap(), 1);
    let blocking = blocking::ResourcePool::from(pool);
    let mut redis = blocking.redis().unwrap();
    let refused: redis::RedisResult<()> = redis::pipe().atomic().set("a", 1).cmd("NOSUCHCOMMAND").query(&mut redis);
    assert!(refused.is_err());
    assert_eq!(redis.get::<_, i64>("ex").unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_publishes_and_subscribes() {
    let server = start();
    let pool = pool(&server);
    let mut redis = pool.redis().await.unwrap();
    let mut pubsub = redis.pubsub().await.unwrap();
    pubsub.subscribe("ticks").await.unwrap();
    assert_eq!(redis.publish::<_, _, i64>("ticks", "one").await.unwrap(), 1);
    let message = pubsub.on_message().next().within(SOON).await.unwrap();
    assert_eq!(message.get_payload::<String>().unwrap(), "one");
    drop(pubsub);

    let blocking = blocking::ResourcePool::from(pool.clone());
    let listener = thread::spawn(move || {
        let mut redis = blocking.redis().unwrap();
        let mut messages = redis.subscribe(&["ticks", "bars"]).unwrap();
        messages.next().unwrap().unwrap().get_payload::<String>().unwrap()
    });
    until_async(SOON, async || redis.publish::<_, _, i64>("bars", "two").await.unwrap() > 0).await;
    assert_eq!(listener.join().unwrap(), "two");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_exclusive_runs_watch_and_multi() {
    let server = start();
    let pool = pool(&server);
    let shared = pool.redis().await.unwrap();
    let mut own = shared.exclusive().await.unwrap();
    let () = redis::cmd("WATCH").arg("stock").query_async(&mut own).await.unwrap();
    let () = redis::cmd("MULTI").query_async(&mut own).await.unwrap();
    let _: String = redis::cmd("INCR").arg("stock").query_async(&mut own).await.unwrap();
    let done: (i64,) = redis::cmd("EXEC").query_async(&mut own).await.unwrap();
    assert_eq!(done, (1,));
    // A command that would change the connection for all others is refused, and the error names the remedy.
    let mut shared = shared;
    for command in ["MULTI", "SELECT", "WATCH", "SUBSCRIBE"] {
        let refused = redis::cmd(command).arg("1").query_async::<()>(&mut shared).await.unwrap_err();
        assert!(refused.to_string().contains("exclusive()"), "{refused}");
    }
}

/// A connection that comes back in a changed state is not handed out again.
#[test]
fn redis_returned_in_another_state_is_closed() {
    let server = start();
    let pool: blocking::ResourcePool = pool_of(config(&server).pool_size(1)).into();
    let id = |redis: &mut blocking::Redis| redis::cmd("CLIENT").arg("ID").query::<i64>(redis).unwrap();
    let mut seen = HashSet::new();
    for command in [&["MULTI"][..], &["WATCH", "key"], &["SELECT", "3"], &["CLIENT", "REPLY", "ON"]] {
        let mut redis = pool.redis().unwrap();
        assert!(seen.insert(id(&mut redis)));
        let mut cmd = redis::cmd(command[0]);
        cmd.arg(&command[1..]).exec(&mut redis).unwrap();
    }
    let mut redis = pool.redis().unwrap();
    assert!(seen.insert(id(&mut redis)));
    redis.req_packed_command(b"SELECT 3\r\n").unwrap();
    drop(redis);
    let mut redis = pool.redis().unwrap();
    assert!(seen.insert(id(&mut redis)), "a command as Redis also takes it, which the pool does not read");
    let clean = id(&mut redis);
    redis::cmd("WATCH").arg("key").exec(&mut redis).unwrap();
    redis::cmd("UNWATCH").exec(&mut redis).unwrap();
    drop(redis);
    assert_eq!(id(&mut pool.redis().unwrap()), clean, "what is left clean is used again");
}

#[test]
fn redis_left_by_a_panic_between_commands_is_in_order() {
    let server = start();
    let pool: blocking::ResourcePool = pool_of(config(&server).pool_size(1)).into();
    let panicking = pool.clone();
    let panicked = thread::spawn(move || {
        let mut redis = panicking.redis().unwrap();
        redis.set::<_, _, ()>("key", 7).unwrap();
        panic!("as the test asked");
    });
    assert!(panicked.join().is_err());
    assert_eq!(pool.redis().unwrap().get::<_, i64>("key").unwrap(), 7);
    assert!(pool.holders().is_empty());
}

#[test]
fn redis_blocking_acquire_may_wait_for_ever() {
    let server = start();
    let pool: blocking::ResourcePool = pool_of(config(&server)).into();
    pool.within(Duration::MAX).redis().unwrap().set::<_, _, ()>("key", 7).unwrap();
}

#[test]
fn redis_exhausted_pool_names_the_holder() {
    let server = start();
    let pool: blocking::ResourcePool = patient_pool(config(&server).pool_size(1)).into();
    let _held = pool.redis().unwrap();
    let line = line!() - 1;
    let started = Stopwatch::start();
    let error = pool.within(Duration::from_millis(300)).redis().unwrap_err();
    assert!(started.took() < Duration::from_millis(900), "{:?}", started.took());
    assert!(matches!(error, Error::Timeout(_)), "{error}");
    assert!(error.to_string().contains(&format!("tests/redis.rs:{line}")), "{error}");
    // Health takes no connection of the users.
    assert_eq!(pool.health_check().unwrap().entry("redis").unwrap().health, Health::Pass);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_frozen_during_a_command() {
    let server = start();
    let pool = pool(&server);
    let mut redis = pool.redis().await.unwrap();
    let blocking = blocking::ResourcePool::from(pool.clone());
    let mut connection = blocking.redis().unwrap();
    let () = redis.set("key", 1).await.unwrap();
    server.freeze().unwrap();
    let (started, frozen) = (Stopwatch::start(), Instant::now());
    let in_thread = started.clone();
    let thread = thread::spawn(move || (connection.get::<_, i64>("key"), in_thread.took()));
    // The bare driver does not notice.
    let bare = redis::Client::open(server.url()).unwrap();
    let control = thread::spawn(move || {
        let mut bare = bare.get_connection_with_timeout(Duration::from_secs(9)).is_ok();
        bare |= frozen.elapsed() > FROZEN;
        bare
    });
    assert!(redis.get::<_, i64>("key").await.is_err());
    assert!(started.took() < FROZEN, "{:?}", started.took());
    let (answer, after) = thread.join().unwrap();
    assert!(answer.is_err() && after < FROZEN, "{after:?}");
    // New calls on both facades fail as well, with the cause.
    let lost = pool.redis().await.unwrap_err();
    assert!(matches!(lost, Error::Lost { .. } | Error::Connect(_)), "{lost}");
    assert!(blocking.redis().is_err());
    assert!(started.took() < FROZEN + Duration::from_secs(2), "{:?}", started.took());
    assert!(control.join().unwrap(), "the bare driver is still waiting after {FROZEN:?}");
    server.thaw().unwrap();
    until_async(SOON, async || redis.get::<_, i64>("key").await.is_ok()).await;
    assert!(pool.status().resource("redis").unwrap().generation >= 2);
    assert_eq!(blocking.redis().unwrap().get::<_, i64>("key").unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_frozen_at_connect() {
    let server = start();
    server.freeze().unwrap();
    let pool = pool(&server);
    let started = Stopwatch::start();
    let error = pool.redis().await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(started.took() < FROZEN + Duration::from_millis(200), "{:?}", started.took());
    server.thaw().unwrap();
    let mut redis = common::eventually(SOON, async || pool.redis().await.ok()).await;
    let () = redis.set("key", 1).await.unwrap();
}

#[test]
fn redis_blocking_frozen_at_connect_health_and_close() {
    let server = start();
    server.freeze().unwrap();
    let pool = blocking_pool(&server);
    let started = Stopwatch::start();
    let error = pool.redis().unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(started.took() < FROZEN + Duration::from_millis(200), "{:?}", started.took());
    server.thaw().unwrap();
    until(SOON, || pool.redis().is_ok());
    server.freeze().unwrap();
    let started = Stopwatch::start();
    assert_eq!(pool.health_check().unwrap().entry("redis").unwrap().health, Health::Fail);
    assert!(started.took() < Duration::from_millis(800), "{:?}", started.took());
    let mut held = pool.redis();
    let in_flight =
        thread::spawn(move || held.as_mut().map(|redis| redis.get::<_, i64>("key").is_err()).unwrap_or(true));
    let started = Stopwatch::start();
    let report = pool.close_all_within(Duration::from_secs(8)).unwrap();
    assert!(started.took() < Duration::from_secs(9), "{:?}", started.took());
    // The step fails if the checkout was lost in the drain. If its test had failed before, there was nothing to drain.
    assert!(matches!(report.step("redis").unwrap().outcome, Outcome::Closed | Outcome::Failed(_)), "{report}");
    assert!(in_flight.join().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_frozen_at_health() {
    let server = start();
    let pool = pool(&server);
    let _redis = pool.redis().await.unwrap();
    server.freeze().unwrap();
    let started = Stopwatch::start();
    let report = pool.health_check().await;
    assert!(started.took() < Duration::from_millis(800), "{:?}", started.took());
    assert_eq!(report.entry("redis").unwrap().health, Health::Fail, "{report}");
    assert!(!report.is_healthy());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_frozen_at_close() {
    let server = start();
    let pool = pool(&server);
    let mut redis = pool.redis().await.unwrap();
    server.freeze().unwrap();
    let in_flight = tokio::spawn(async move { redis.get::<_, i64>("key").await });
    until_async(SOON, async || !pool.status().resource("redis").unwrap().work.is_empty()).await;
    let started = Stopwatch::start();
    let report = pool.close_all_within(Duration::from_secs(8)).await;
    assert!(started.took() < Duration::from_secs(9), "{:?}", started.took());
    assert!(matches!(report.step("redis").unwrap().outcome, Outcome::Failed(_)), "{report}");
    assert!(in_flight.await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_slow_but_living_commands_are_not_cut() {
    let server = start();
    let pool = pool(&server);
    let blocking = blocking::ResourcePool::from(pool.clone());
    let thread = thread::spawn(move || {
        let started = Instant::now();
        let nothing: Option<(String, String)> = blocking.redis().unwrap().blpop("never", 8.0).unwrap();
        (nothing, started.elapsed())
    });
    let mut redis = pool.redis().await.unwrap();
    let started = Instant::now();
    let nothing: Option<(String, String)> = redis.blpop("never", 8.0).await.unwrap();
    assert!(nothing.is_none() && started.elapsed() >= Duration::from_secs(8));
    let (nothing, took) = thread.join().unwrap();
    assert!(nothing.is_none() && took >= Duration::from_secs(8));
    assert_eq!(pool.status().resource("redis").unwrap().generation, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_killed_and_restarted_under_the_same_guard() {
    let server = start();
    let pool = pool(&server);
    let mut redis = pool.redis().await.unwrap();
    let () = redis.set("key", 1).await.unwrap();
    server.kill().unwrap();
    assert!(redis.get::<_, i64>("key").await.is_err());
    server.restart().unwrap();
    let back = Instant::now();
    until_async(SOON, async || redis.set::<_, _, ()>("key", 2).await.is_ok()).await;
    println!("redis: async guard works again {:?} after the restart", back.elapsed());
    let blocking = blocking::ResourcePool::from(pool);
    until(SOON, || blocking.redis().is_ok_and(|mut redis| redis.get::<_, i64>("key").is_ok()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_close_leaves_no_guard_working() {
    let server = start();
    let pool = pool(&server);
    let lease = pool.redis().await.unwrap();
    let mut clone = Redis::clone(&lease);
    let mut own = lease.exclusive().await.unwrap();
    let blocking = blocking::ResourcePool::from(pool.clone());
    let mut connection = blocking.redis().unwrap();
    let waiting = thread::spawn(move || connection.blpop::<_, Option<(String, String)>>("never", 0.0));
    until(SOON, || server_has_blocked_client(&server));
    let report = pool.close_all_within(Duration::from_secs(7)).await;
    assert_eq!(report.step("redis").unwrap().held.iter().filter(|holder| holder.exclusive).count(), 2, "{report}");
    assert!(clone.get::<_, i64>("key").await.is_err());
    assert!(own.get::<_, i64>("key").await.is_err());
    assert!(waiting.join().unwrap().is_err());
    is_left(&server);
}

fn server_has_blocked_client(server: &Service) -> bool {
    let mut bare = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let info: String = redis::cmd("INFO").arg("clients").query(&mut bare).unwrap();
    info.contains("blocked_clients:1")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_scoped_closes_by_drop_by_question_mark_and_by_panic() {
    let server = start();
    let scoped = Redis::scoped(config(&server)).await.unwrap();
    let mut redis = Redis::clone(&scoped);
    let () = redis.set("key", 1).await.unwrap();
    let report = scoped.close().await;
    assert!(report.all_closed(), "{report}");
    is_left(&server);

    async fn fails(server: &Service) -> Result<(), Box<dyn std::error::Error>> {
        let scoped = Redis::scoped(config(server)).await?;
        let mut redis = Redis::clone(&scoped);
        Ok(redis::cmd("NOSUCHCOMMAND").query_async::<()>(&mut redis).await?)
    }
    assert!(fails(&server).await.is_err());
    is_left(&server);

    let url = config(&server);
    let panicked = thread::spawn(move || {
        let mut scoped = blocking::Redis::scoped(url).unwrap();
        let () = scoped.set("key", 1).unwrap();
        panic!("as the test asked");
    });
    assert!(panicked.join().is_err());
    is_left(&server);

    // The guard drops outside of any runtime.
    let scoped = Redis::scoped(config(&server)).await.unwrap();
    thread::spawn(move || drop(scoped)).join().unwrap();
    is_left(&server);
}

#[test]
fn redis_cold_rush_connects_once() {
    let server = start();
    let pool = pool(&server);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (done, refused) = (&AtomicUsize::new(0), &AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..100 {
            let blocking = blocking::ResourcePool::from(pool.clone());
            scope.spawn(move || {
                for _ in 0..10 {
                    let incremented = blocking.redis().map(|mut redis| redis.incr::<_, _, i64>("n", 1));
                    let counter = if matches!(incremented, Ok(Ok(_))) { done } else { refused };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        runtime.block_on(async {
            let tasks: Vec<_> = (0..100)
                .map(|_| {
                    let pool = pool.clone();
                    tokio::spawn(async move {
                        let mut redis = pool.redis().await.unwrap();
                        for _ in 0..10 {
                            let _: i64 = redis.incr("n", 1).await.unwrap();
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
                done.fetch_add(10, Ordering::Relaxed);
            }
        });
    });
    assert_eq!((done.load(Ordering::Relaxed), refused.load(Ordering::Relaxed)), (2000, 0));
    assert_eq!(pool.status().resource("redis").unwrap().generation, 1);
    // The shared connection, the prober's, and at most as many as threads may have.
    assert!(server.established().unwrap() <= 2 + 4, "{}", server.established().unwrap());
    let report = runtime.block_on(pool.close_all());
    assert!(report.all_closed(), "{report}");
    is_left(&server);
}

#[test]
fn redis_closes_under_load() {
    let server = start();
    let pool = blocking_pool(&server);
    drop(pool.redis().unwrap());
    thread::scope(|scope| {
        for _ in 0..8 {
            let pool = pool.clone();
            scope.spawn(move || {
                let error = loop {
                    match pool.redis() {
                        Ok(mut redis) => {
                            if redis.incr::<_, _, i64>("n", 1).is_err() {
                                continue;
                            }
                        }
                        Err(error) => break error,
                    }
                };
                assert!(error.is_closed() || matches!(error, Error::Timeout(_)), "{error}");
            });
        }
        let worked = || {
            let mut bare = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
            bare.get::<_, Option<i64>>("n").unwrap() > Some(100)
        };
        until(SOON, worked);
        let report = pool.close_all_within(Duration::from_secs(7)).unwrap();
        assert!(matches!(report.step("redis").unwrap().outcome, Outcome::Closed), "{report}");
    });
    is_left(&server);
}

#[test]
fn redis_guard_outlives_the_runtime_it_came_from() {
    let server = start();
    let pool = pool(&server);
    let first = tokio::runtime::Runtime::new().unwrap();
    let mut redis = first.block_on(pool.redis()).unwrap();
    drop(first);
    let second = tokio::runtime::Builder::new_current_thread().build().unwrap();
    second.block_on(async {
        let () = redis.set("key", 1).await.unwrap();
        let mut own = redis.exclusive().await.unwrap();
        assert_eq!(own.get::<_, i64>("key").await.unwrap(), 1);
    });
}

#[test]
fn redis_blocking_acquire_waits_only_where_it_may() {
    let server = start();
    let several = tokio::runtime::Runtime::new().unwrap();
    let single = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // On a worker it waits by `block_in_place`, and in `spawn_blocking` of either runtime it just waits.
    several.block_on(async {
        let pool = blocking_pool(&server);
        tokio::spawn(async move { pool.redis().unwrap().set::<_, _, ()>("key", 1).unwrap() }).await.unwrap();
    });
    for runtime in [&several, &single] {
        let pool = blocking_pool(&server);
        let used = runtime.spawn_blocking(move || pool.redis().unwrap().get::<_, i64>("key").unwrap());
        assert_eq!(runtime.block_on(used).unwrap(), 1);
    }
    // On a current-thread runtime it cannot wait, but it gets a ready connection.
    let pool = blocking_pool(&server);
    let refused = single.block_on(async { pool.redis().map(drop) });
    assert!(matches!(refused, Err(Error::InAsyncContext { .. })), "{refused:?}");
    drop(pool.redis().unwrap());
    single.block_on(async { pool.redis().map(drop) }).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_bad_input_is_a_clear_error_in_time() {
    let server = start();
    let secret = "s3cr3t@:/%";
    let options = || {
        let mut options = Options::default();
        options.retry.attempts = 1;
        options
    };
    let with = |config: RedisConfig| {
        ResourcePool::builder().environment([("", ""); 0]).options(options()).resource(config).build()
    };
    for url in
        ["redis//", "http://localhost", "redis://", "redis://localhost/notanumber", "redis://localhost/0?db=3", ""]
    {
        assert!(matches!(with(RedisConfig::url(url)), Err(Error::Config { .. })), "{url}");
    }
    let mut wrong = RedisConfig::url(server.url());
    wrong.url = Some(format!("redis://default:s3cr3t%40%3A%2F%25@127.0.0.1:{}/0", server.port()).into());
    let unresolvable = RedisConfig::url("redis://no-such-host.invalid:6379/0");
    let refused = RedisConfig::url("redis://127.0.0.1:1/0");
    let black_hole = BlackHole::start().unwrap();
    let silent = RedisConfig::url(format!("redis://127.0.0.1:{}/0", black_hole.port()));
    for (config, permanent) in [(wrong, true), (unresolvable, false), (refused, false), (silent, false)] {
        let pool = with(config).unwrap();
        let started = Stopwatch::start();
        let error = pool.redis().await.unwrap_err();
        assert!(started.took() < FROZEN, "{:?} {error}", started.took());
        assert!(matches!(&error, Error::Connect(connect) if connect.permanent == permanent), "{error:?}");
        for text in [format!("{error}"), format!("{error:?}"), format!("{pool:?}"), format!("{:?}", pool.status())] {
            assert!(!text.contains(secret) && !text.contains("s3cr3t"), "{text}");
        }
        // The pool still works.
        let mut redis = pool.redis_with("other", config_of(&server)).await.unwrap();
        let () = redis.set("key", 1).await.unwrap();
    }
}

fn config_of(server: &Service) -> RedisConfig {
    config(server)
}

/// One limit applies to all steps together: TCP, the login and the connection's name.
#[test]
fn redis_connect_timeout_is_one_for_all_steps() {
    let server = start();
    let proxy = Proxy::start(server.port()).unwrap();
    let mut options = Options::default();
    options.probe.enabled = false;
    let mut config = RedisConfig::url(proxy.url(&server));
    config.connect_timeout = Duration::from_millis(800);
    // An idle connection is handed out without a test, however long it has been idle.
    config.test_after = Duration::MAX;
    let build = || {
        let builder = blocking::ResourcePool::builder().environment([("", ""); 0]).options(options.clone());
        builder.resource(config.clone()).build().unwrap()
    };
    let pool = build();
    drop(pool.redis().unwrap());
    // Each answer comes within the limit, but all of them together do not.
    proxy.throttle(100);
    let first = pool.redis().unwrap();
    let error = pool.within(Duration::from_secs(3)).redis().map(drop).unwrap_err();
    assert!(matches!(error, Error::Timeout(_)) && error.to_string().contains("no answer within"), "{error}");
    let error = build().redis().map(drop).unwrap_err();
    assert!(error.to_string().contains("no answer within 800ms"), "{error}");
    drop(first);
    proxy.throttle(0);
    pool.redis().unwrap();
}

// Traps of the drivers, each with the bare driver as control.

#[test]
fn redis_trap_stock_manager_has_no_read_timeout() {
    let server = start();
    let bare = r2d2::Pool::builder()
        .max_size(1)
        .connection_timeout(Duration::from_secs(1))
        .build(redis::Client::open(server.url()).unwrap())
        .unwrap();
    let pool: blocking::ResourcePool = pool_of(config(&server).pool_size(1)).into();
    drop(pool.redis().unwrap());
    // After this idle time the pool no longer skips its test.
    let idle = Instant::now();
    until(SOON, || idle.elapsed() > Duration::from_millis(600));
    server.freeze().unwrap();
    let (started, frozen) = (Stopwatch::start(), Instant::now());
    let control = thread::spawn(move || bare.get().is_err());
    assert!(pool.within(Duration::from_secs(1)).redis().is_err());
    assert!(started.took() < Duration::from_secs(2), "{:?}", started.took());
    until(SOON, || frozen.elapsed() > Duration::from_secs(3));
    assert!(!control.is_finished(), "the stock manager was to answer after 1 s");
    server.thaw().unwrap();
    control.join().unwrap();
}

#[test]
fn redis_trap_min_idle_defaults_to_max() {
    let server = start();
    let bare = r2d2::Pool::builder().max_size(20).build(redis::Client::open(server.url()).unwrap()).unwrap();
    until(SOON, || server.established().unwrap() == 20);
    drop(bare);
    is_left(&server);
    let pool: blocking::ResourcePool = pool_of(config(&server).pool_size(20)).into();
    drop(pool.redis().unwrap());
    // The shared connection, the prober's, and the one that was asked for.
    assert!(server.established().unwrap() <= 3, "{}", server.established().unwrap());
}

#[test]
fn redis_trap_connections_outlive_their_lifetime() {
    let server = start();
    let lifetime = Duration::from_millis(300);
    let bare = r2d2::Pool::builder()
        .max_size(1)
        .max_lifetime(Some(lifetime))
        .build(redis::Client::open(server.url()).unwrap())
        .unwrap();
    let mut short = config(&server).pool_size(1);
    short.max_lifetime = lifetime;
    let pool: blocking::ResourcePool = pool_of(short).into();
    let id = |connection: &mut dyn FnMut() -> i64| connection();
    let ours = || redis::cmd("CLIENT").arg("ID").query::<i64>(&mut pool.redis().unwrap()).unwrap();
    let theirs = || redis::cmd("CLIENT").arg("ID").query::<i64>(&mut *bare.get().unwrap()).unwrap();
    let (first, control) = (id(&mut { ours }), id(&mut { theirs }));
    let started = Instant::now();
    until(SOON, || started.elapsed() > lifetime * 2);
    assert_eq!(theirs(), control, "r2d2's reaper comes every 30 s");
    assert_ne!(ours(), first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_trap_manager_fails_the_first_call_after_a_loss() {
    let server = start();
    let mut bare = redis::Client::open(server.url()).unwrap().get_connection_manager().await.unwrap();
    let pool = pool(&server);
    let mut redis = pool.redis().await.unwrap();
    let () = bare.set("key", 1).await.unwrap();
    let () = redis.set("key", 1).await.unwrap();
    server.kill().unwrap();
    server.restart().unwrap();
    // The pool reconnected by itself while the connection was idle.
    until_async(SOON, async || pool.status().resource("redis").unwrap().generation == 2).await;
    assert!(bare.set::<_, _, ()>("key", 2).await.is_err());
    redis.set::<_, _, ()>("key", 2).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_trap_manager_does_not_reconnect_on_timeouts() {
    let server = start();
    let mut bare = redis::Client::open(server.url()).unwrap().get_connection_manager().await.unwrap();
    let pool = pool(&server);
    let mut redis = pool.redis().await.unwrap();
    let mut id = redis::cmd("CLIENT");
    id.arg("ID");
    let before: (i64, i64) = (id.query_async(&mut bare).await.unwrap(), id.query_async(&mut redis).await.unwrap());
    server.freeze().unwrap();
    assert!(bare.get::<_, i64>("key").await.unwrap_err().is_timeout());
    assert!(redis.get::<_, i64>("key").await.is_err());
    server.thaw().unwrap();
    until_async(SOON, async || redis.ping::<()>().await.is_ok()).await;
    until_async(SOON, async || bare.ping::<()>().await.is_ok()).await;
    let after: (i64, i64) = (id.query_async(&mut bare).await.unwrap(), id.query_async(&mut redis).await.unwrap());
    assert_eq!(after.0, before.0, "the manager kept the connection that timed out");
    assert_ne!(after.1, before.1);
}

#[test]
fn redis_trap_manager_reconnects_on_the_callers_runtime() {
    let server = start();
    let first = tokio::runtime::Runtime::new().unwrap();
    let second = tokio::runtime::Runtime::new().unwrap();
    let third = tokio::runtime::Runtime::new().unwrap();
    let client = redis::Client::open(server.url()).unwrap();
    let mut bare = first.block_on(client.get_connection_manager()).unwrap();
    let pool = pool(&server);
    let mut redis = first.block_on(pool.redis()).unwrap();
    server.kill().unwrap();
    server.restart().unwrap();
    second.block_on(async {
        until_async(SOON, async || bare.set::<_, _, ()>("key", 1).await.is_ok()).await;
        until_async(SOON, async || redis.set::<_, _, ()>("key", 1).await.is_ok()).await;
    });
    drop(second);
    third.block_on(async {
        assert!(bare.get::<_, i64>("key").await.is_err());
        assert_eq!(redis.get::<_, i64>("key").await.unwrap(), 1);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_trap_manager_gives_up_late() {
    let refused = "redis://127.0.0.1:1/0";
    let (clock, started) = (Stopwatch::start(), Instant::now());
    assert!(pool_of(RedisConfig::url(refused)).redis().await.is_err());
    assert!(clock.took() < Duration::from_secs(1), "{:?}", clock.took());
    let ours = started.elapsed();
    let started = Instant::now();
    let manager = redis::Client::open(refused).unwrap();
    let control = tokio::time::timeout(ours * 2, manager.get_connection_manager()).await;
    assert!(control.is_err(), "the stock manager was to be trying still after {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_trap_blocking_command_stalls_a_multiplexed_connection() {
    let server = start();
    let settings = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    let bare = redis::Client::open(server.url()).unwrap();
    let bare = bare.get_multiplexed_async_connection_with_config(&settings).await.unwrap();
    let push = || server.redis().unwrap().command(&["LPUSH", "late", "x"]).unwrap();
    let blocks = async |mut one: redis::aio::MultiplexedConnection| one.blpop::<_, (String, String)>("late", 0.0).await;
    let (blocking, mut other) = (tokio::spawn(blocks(bare.clone())), bare);
    until(SOON, || server_has_blocked_client(&server));
    let mut control = tokio::spawn(async move { other.ping::<()>().await });
    assert!(tokio::time::timeout(Duration::from_secs(1), &mut control).await.is_err(), "the bare driver's is answered");
    push();
    control.within(SOON).await.unwrap().unwrap();
    blocking.within(SOON).await.unwrap().unwrap();

    let pool = pool(&server);
    let mut redis = pool.redis().await.unwrap();
    let mut other = Redis::clone(&redis);
    let blocking = tokio::spawn(async move { redis.blpop::<_, (String, String)>("late", 0.0).await });
    until(SOON, || server_has_blocked_client(&server));
    let () = other.ping().within(SOON).await.unwrap();
    assert!(!blocking.is_finished(), "it waits beside");
    push();
    blocking.within(SOON).await.unwrap().unwrap();
}

#[test]
fn redis_blocking_checkouts_are_served_in_order() {
    const THREADS: usize = 16;
    const ROUNDS: usize = 300;
    let server = start();
    let pool: blocking::ResourcePool = pool_of(config(&server).pool_size(2)).into();
    drop((pool.redis().unwrap(), pool.redis().unwrap()));
    let start = Barrier::new(THREADS);
    let served = AtomicUsize::new(0);
    let waits = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    let wait = || {
                        let (asked, before) = (Instant::now(), served.load(Ordering::SeqCst));
                        let mut redis = pool.redis().unwrap();
                        let waited = (served.fetch_add(1, Ordering::SeqCst) - before, asked.elapsed());
                        let _: i64 = redis.incr("n", 1).unwrap();
                        waited
                    };
                    (0..ROUNDS).map(|_| wait()).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    // Leaves out the rounds before all threads had begun, and those after some had ended.
    let mut waits: Vec<_> = waits.iter().flat_map(|waits| &waits[ROUNDS / 10..ROUNDS * 9 / 10]).copied().collect();
    waits.sort_unstable();
    let at = |percent: usize| waits[waits.len() * percent / 100];
    let (median, late, last) = (at(50), at(99), waits[waits.len() - 1]);
    println!("waits, in others served before and in time: p50 {median:?}, p99 {late:?}, p100 {last:?}");
    // Waits are counted in checkouts of others, because other programs take time too.
    assert!(late.0 <= median.0 * 3, "p50 {median:?}, p99 {late:?}");
    assert!(last.0 < THREADS * ROUNDS / 4, "starved: {last:?}");
    assert_eq!(pool.status().resource("redis").unwrap().usage.open, Some(2));
}

/// The cause was lost after the first caller had seen it, and later callers got an error without one.
#[test]
fn redis_blocking_timeout_always_has_its_cause() {
    let server = start();
    let proxy = Proxy::start(server.port()).unwrap();
    let mut options = Options::default();
    options.probe.enabled = false;
    let mut config = RedisConfig::url(proxy.url(&server));
    config.connect_timeout = Duration::from_millis(300);
    let builder = blocking::ResourcePool::builder().environment([("", ""); 0]).options(options);
    let pool = builder.resource(config).build().unwrap();
    let _first = pool.redis().unwrap();
    proxy.throttle(100);
    thread::scope(|scope| {
        let asking = [1000, 1400, 1800, 2200].map(|limit| {
            let pool = pool.within(Duration::from_millis(limit));
            scope.spawn(move || pool.redis().map(drop).unwrap_err())
        });
        for asked in asking {
            let error = asked.join().unwrap();
            let source = std::error::Error::source(&error).expect("a cause").downcast_ref::<redis::RedisError>();
            assert!(source.is_some_and(|source| source.to_string().contains("no answer within")), "{error}");
        }
    });
    proxy.throttle(0);
    pool.redis().unwrap();
}

#[test]
fn redis_blocking_waits_end_as_the_connection_is_lost_or_closed() {
    let server = start();
    let mut options = Options::default();
    options.close.drain = Duration::from_millis(300);
    let builder = blocking::ResourcePool::builder().environment([("", ""); 0]).options(options);
    let pool = builder.resource(config(&server).pool_size(1)).build().unwrap();
    let waiting = || {
        let held = pool.redis().unwrap();
        let patient = pool.within(Duration::from_secs(60));
        let waiting = thread::spawn(move || patient.redis().map(drop).unwrap_err());
        until(SOON, || pool.status().resource("redis").unwrap().usage.waiting == Some(1));
        (held, waiting)
    };
    let (held, lost) = waiting();
    let killed = Stopwatch::start();
    server.kill().unwrap();
    let error = lost.join().unwrap();
    assert!(killed.took() < Duration::from_millis(400), "{:?}", killed.took());
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    drop(held);
    server.restart().unwrap();
    until(SOON, || pool.redis().is_ok());
    let (held, closed) = waiting();
    let report = pool.close("redis").unwrap();
    let error = closed.join().unwrap();
    assert!(error.is_closed(), "{error}");
    let held_then = &report.step("redis").unwrap().held;
    assert_eq!(held_then.iter().filter(|holder| holder.exclusive).count(), 1, "{report}");
    drop(held);
}

/// After an outage, connections that could not be opened are tried again soon, and not after a backoff that has
/// doubled.
#[test]
fn redis_blocking_connections_are_back_soon_after_a_long_outage() {
    let server = start();
    let mut config = config(&server).pool_size(2);
    (config.connect_timeout, config.test_limit) = (Duration::from_millis(200), Duration::from_millis(200));
    config.test_after = Duration::ZERO;
    let pool = blocking::ResourcePool::from(pool_of(config));
    let warm: Vec<_> = (0..2).map(|_| pool.redis().unwrap()).collect();
    drop(warm);
    server.freeze().unwrap();
    let frozen = Stopwatch::start();
    let asking: Vec<_> = (0..2)
        .map(|_| {
            thread::spawn({
                let pool = pool.clone();
                move || pool.within(Duration::from_secs(60)).redis().map(drop).unwrap_err()
            })
        })
        .collect();
    for thread in asking {
        let error = thread.join().unwrap();
        assert!(matches!(error, Error::Lost { .. } | Error::Connect(_)), "whoever waits gets the cause: {error}");
    }
    assert!(frozen.took() < FROZEN, "{:?}", frozen.took());
    // That time is as long as six attempts with doubling pauses.
    thread::sleep(Duration::from_secs(3));
    server.thaw().unwrap();
    until(SOON, || pool.status().resource("redis").unwrap().state == State::Ready);
    let back = Stopwatch::start();
    pool.redis().unwrap();
    assert!(back.took() < Duration::from_secs(2), "{:?}", back.took());
}
