//! A Redis that answers with errors, has no room, or becomes a replica. The pool cuts no connection of its users.

#![cfg(feature = "redis")]
#![allow(missing_docs)]

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::{Stopwatch, Within, eventually, until, until_async};
use futures_util::StreamExt;
use futures_util::future::join_all;
use redis::{AsyncCommands, Commands, RedisResult};
use resource_pool::config::{Options, RedisConfig, Repeat};
use resource_pool::{Error, Health, Outcome, Redis, ResourcePool, blocking};
use services::{Kind, Proxy, Service};

/// A guard against hanging.
const SOON: Duration = Duration::from_secs(20);

/// The limit for a frozen server to show as an error, and for a failover to be over.
const NOTICED: Duration = Duration::from_secs(5);

/// The pool cuts a server that does not answer after 3.7 s, so by then it would have.
const LONG: Duration = Duration::from_millis(4500);

fn start() -> Service {
    Service::start(Kind::Redis).expect("a Redis")
}

/// A slow answer of a busy server must not count as bad health here.
fn patient() -> Options {
    let mut options = Options::default();
    (options.health.each, options.health.all, options.health.slow) = (SOON, SOON, SOON);
    options
}

fn pool_of(config: RedisConfig) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).options(patient()).resource(config).build().expect("a pool")
}

fn pool(server: &Service) -> ResourcePool {
    pool_of(RedisConfig::url(server.url()).pool_size(4))
}

/// A configuration with a user that has these rights.
fn as_user(server: &Service, rights: &[&str]) -> RedisConfig {
    let words = [&["ACL", "SETUSER", "watcher", "on", ">pw", "~*", "&*"][..], rights].concat();
    server.redis().unwrap().command(&words).unwrap();
    RedisConfig::url(format!("redis://watcher:pw@127.0.0.1:{}/0", server.port())).pool_size(4)
}

/// A connection that is open before the fault.
fn admin(server: &Service) -> redis::Connection {
    redis::Client::open(server.url()).unwrap().get_connection().unwrap()
}

fn id(redis: &mut impl redis::ConnectionLike) -> i64 {
    redis::cmd("CLIENT").arg("ID").query(redis).unwrap()
}

fn generation(pool: &ResourcePool) -> u64 {
    pool.status().resource("redis").unwrap().generation
}

/// The number of clients that wait for the answer to this command, or had it last.
fn running(server: &Service, command: &str) -> usize {
    server.redis().unwrap().clients().unwrap().iter().filter(|client| client.command == command).count()
}

type Popped = RedisResult<Option<(String, String)>>;

/// Blocks in BLPOP on both facades, for longer than the pool would leave a frozen server uncut.
struct Workers {
    task: tokio::task::JoinHandle<Popped>,
    thread: JoinHandle<Popped>,
}

impl Workers {
    async fn begin(server: &Service, pool: &ResourcePool) -> Self {
        const PATIENCE: f64 = 7.0;
        let mut redis = Redis::clone(&*pool.redis().await.unwrap());
        let threads = blocking::ResourcePool::from(pool.clone());
        let workers = Workers {
            task: tokio::spawn(async move { redis.blpop("never", PATIENCE).await }),
            thread: thread::spawn(move || threads.redis().unwrap().blpop("never", PATIENCE)),
        };
        until_async(SOON, async || running(server, "blpop") == 2).await;
        workers
    }

    async fn end(self) {
        assert_eq!(self.task.await.unwrap().unwrap(), None);
        assert_eq!(tokio::task::spawn_blocking(|| self.thread.join().unwrap()).await.unwrap().unwrap(), None);
    }
}

/// Waits until the health report says this. Then checks that it stays so for longer than the pool would leave a silent
/// server uncut.
async fn stays(pool: &ResourcePool, health: Health, words: &str) {
    let as_told = async || {
        let report = pool.health_check().await;
        let entry = report.entry("redis").unwrap().clone();
        (entry.health == health && entry.error.unwrap_or_default().contains(words)).then_some(entry.latency)
    };
    eventually(SOON, as_told).await;
    let began = Instant::now();
    while began.elapsed() < LONG {
        let report = pool.health_check().await;
        assert!(as_told().await.is_some(), "{report}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(generation(pool), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_may_not_ping_is_warned_of_and_not_cut() {
    let server = start();
    let mut config = as_user(&server, &["+@all", "-ping"]);
    config.test_after = Duration::ZERO;
    let pool = pool_of(config);
    let workers = Workers::begin(&server, &pool).await;
    let threads = blocking::ResourcePool::from(pool.clone());
    let checked_out = move || {
        let mut redis = threads.redis().unwrap();
        id(&mut redis)
    };
    let first = checked_out();
    stays(&pool, Health::Warn, "NOPERM ").await;
    let () = pool.redis().await.unwrap().set("key", 1).await.unwrap();
    assert_eq!(checked_out(), first, "an error is an answer to the test of a checkout");
    workers.end().await;
    assert_eq!(generation(&pool), 1);
    assert!(pool.close_all().await.all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_script_is_told_and_nothing_is_cut() {
    let server = start();
    let pool = pool(&server);
    let workers = Workers::begin(&server, &pool).await;
    server.redis().unwrap().command(&["CONFIG", "SET", "busy-reply-threshold", "100"]).unwrap();
    let (mut runner, mut killer) = (admin(&server), admin(&server));
    let running = thread::spawn(move || redis::cmd("EVAL").arg("while true do end").arg(0).exec(&mut runner));
    stays(&pool, Health::Fail, "BUSY").await;
    redis::cmd("SCRIPT").arg("KILL").exec(&mut killer).unwrap();
    assert!(running.join().unwrap().is_err());
    workers.end().await;
    let () = pool.redis().await.unwrap().set("key", 1).await.unwrap();
    assert_eq!(generation(&pool), 1);
}

/// Makes the server load its data for so long. It answers meanwhile.
fn load(server: &Service, seconds: u64) -> JoinHandle<RedisResult<()>> {
    const KEYS: u64 = 100;
    let mut admin = admin(server);
    for key in 0..KEYS {
        let () = admin.set(format!("load:{key}"), vec![b'x'; 2000]).unwrap();
    }
    let delay = seconds * 1_000_000 / KEYS;
    for (option, value) in [
        ("rdbcompression", "no".to_owned()),
        ("loading-process-events-interval-bytes", "1024".to_owned()),
        ("key-load-delay", delay.to_string()),
    ] {
        redis::cmd("CONFIG").arg("SET").arg(option).arg(value).exec(&mut admin).unwrap();
    }
    thread::spawn(move || redis::cmd("DEBUG").arg("RELOAD").exec(&mut admin))
}

fn is_loading(server: &Service) -> bool {
    let bare = redis::Client::open(server.url()).unwrap().get_connection();
    bare.and_then(|mut bare| bare.get::<_, Option<String>>("key")).is_err_and(|error| error.code() == Some("LOADING"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loading_server_is_told_and_nothing_is_cut() {
    let server = start();
    let pool = pool(&server);
    let workers = Workers::begin(&server, &pool).await;
    let loading = load(&server, 6);
    stays(&pool, Health::Fail, "LOADING Redis is loading the dataset").await;
    loading.join().unwrap().unwrap();
    workers.end().await;
    let () = pool.redis().await.unwrap().set("key", 1).await.unwrap();
    assert_eq!(generation(&pool), 1);
}

/// The pool tries again until the budget ends, so it gets a server that has loaded its data by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loading_server_is_waited_for_while_connecting() {
    let server = start();
    let loading = load(&server, 8);
    until(SOON, || is_loading(&server));
    let (first, second) = (pool(&server), pool(&server));
    let threads = blocking::ResourcePool::from(second.clone());
    let on_thread = tokio::task::spawn_blocking(move || threads.redis().map(drop).unwrap_err());
    for error in [first.redis().await.map(drop).unwrap_err(), on_thread.await.unwrap()] {
        assert!(error.to_string().contains("LOADING Redis is loading the dataset"), "{error}");
        let Error::Connect(connect) = &error else { panic!("{error}") };
        assert!(!connect.permanent && connect.elapsed > Duration::from_secs(2), "{error:?}");
    }
    until(SOON, || loading.is_finished());
    let again = load(&server, 2);
    until(SOON, || is_loading(&server));
    // The time that a busy server takes does not matter here.
    let mut options = patient();
    (options.retry.budget, options.acquire_timeout) = (SOON, SOON);
    let builder = ResourcePool::builder().environment([("", ""); 0]).options(options);
    let third = builder.resource(RedisConfig::url(server.url())).build().unwrap();
    let () = third.redis().await.unwrap().set("key", 1).await.unwrap();
    assert_eq!(generation(&third), 1);
    again.join().unwrap().unwrap();
    loading.join().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_without_its_master_is_told_and_nothing_is_cut() {
    let server = start();
    let mut config = RedisConfig::url(server.url()).pool_size(4);
    config.test_after = Duration::ZERO;
    let pool = pool_of(config);
    let mut redis = pool.redis().await.unwrap();
    let threads = blocking::ResourcePool::from(pool.clone());
    let checked_out = move || id(&mut threads.redis().unwrap());
    let first = checked_out();
    let shared = redis.client_id::<i64>().await.unwrap();
    for words in [&["CONFIG", "SET", "replica-serve-stale-data", "no"][..], &["REPLICAOF", "127.0.0.1", "1"]] {
        server.redis().unwrap().command(words).unwrap();
    }
    stays(&pool, Health::Fail, "MASTERDOWN Link with MASTER is down").await;
    assert_eq!((checked_out(), redis.client_id::<i64>().await.unwrap()), (first, shared));
    server.redis().unwrap().command(&["REPLICAOF", "NO", "ONE"]).unwrap();
    let () = redis.set("key", 1).await.unwrap();
    assert_eq!(generation(&pool), 1);
}

/// The prober's connection is gone, and the server accepts no other one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_is_asked_over_the_shared_connection() {
    let server = start();
    let pool = pool(&server);
    let workers = Workers::begin(&server, &pool).await;
    let mut admin = admin(&server);
    let mine = id(&mut admin).to_string();
    // The prober's connection: its last command is a ping, and nothing else uses it.
    let probers = |admin: &mut redis::Connection| -> Vec<String> {
        let list: String = redis::cmd("CLIENT").arg("LIST").query(admin).unwrap();
        let ours = list.lines().filter(|line| line.contains("name=resource-pool") && line.contains("cmd=ping"));
        ours.filter_map(|line| Some(line.strip_prefix("id=")?.split(' ').next()?.to_owned())).collect()
    };
    until(SOON, || !probers(&mut admin).is_empty());
    redis::cmd("CONFIG").arg("SET").arg("maxclients").arg(1).exec(&mut admin).unwrap();
    for prober in probers(&mut admin) {
        assert_ne!(prober, mine);
        let shared = pool.redis().await.unwrap().client_id::<i64>().await.unwrap().to_string();
        if prober != shared {
            redis::cmd("CLIENT").arg("KILL").arg("ID").arg(&prober).exec(&mut admin).unwrap();
        }
    }
    let full = redis::Client::open(server.url()).unwrap().get_connection();
    assert!(full.is_err(), "the server is full");
    stays(&pool, Health::Pass, "").await;
    let () = pool.redis().await.unwrap().set("key", 1).await.unwrap();
    // A caller that asks for an exclusive connection gets the server's own error, which is transient.
    let refused = pool.redis().await.unwrap().exclusive().await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("max number of clients"), "{refused}");
    let other = pool_of(RedisConfig::url(server.url()));
    let error = other.redis().await.map(drop).unwrap_err();
    assert!(matches!(&error, Error::Connect(connect) if !connect.permanent), "{error:?}");
    let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<redis::RedisError>());
    assert!(source.is_some(), "the driver's own error: {error:?}");
    assert!(error.to_string().contains("max number of clients"), "{error}");
    workers.end().await;
    assert_eq!(generation(&pool), 1);
}

/// The full server counts as no failure. But a server that is silent on the shared connection too is lost in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_is_noticed_though_no_connection_can_be_opened() {
    let server = start();
    let proxy = Proxy::start(server.port()).unwrap();
    let pool = pool_of(RedisConfig::url(proxy.url(&server)));
    let mut redis = pool.redis().await.unwrap();
    until_async(SOON, async || pool.health_check().await.entry("redis").unwrap().health == Health::Pass).await;
    let () = redis.set("key", 0).await.unwrap();
    proxy.refuse().unwrap();
    for client in server.redis().unwrap().clients().unwrap() {
        if client.command == "ping" {
            server.redis().unwrap().command(&["CLIENT", "KILL", "ID", &client.id.to_string()]).unwrap();
        }
    }
    stays(&pool, Health::Pass, "").await;
    let () = redis.set("key", 1).await.unwrap();
    proxy.freeze();
    let began = Stopwatch::start();
    let error = redis.get::<_, i64>("key").within(SOON).await.unwrap_err();
    assert!(began.took() < NOTICED, "{:?}", began.took());
    assert!(matches!(Error::behind(&error), Some(Error::Lost { .. } | Error::Connect(_))), "{error}");
}

/// The kill switch of a lost connection is thrown before its loss is reported. A check that falls between the two, or
/// during whose ping the loss comes, tells of it too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_at_the_moment_of_the_loss_fails() {
    let server = start();
    let proxy = Proxy::start(server.port()).unwrap();
    for _ in 0..50 {
        let pool = pool_of(RedisConfig::url(proxy.url(&server)));
        let mut redis = pool.redis().within(SOON).await.unwrap();
        proxy.refuse().unwrap();
        proxy.cut();
        assert!(redis.get::<_, Option<i64>>("key").within(SOON).await.is_err());
        let report = pool.health_check().within(2 * SOON).await;
        assert_eq!(report.entry("redis").unwrap().health, Health::Fail, "{report}");
        proxy.open_up().unwrap();
    }
}

// A failover behind one address.

struct Address {
    old: Service,
    new: Service,
    proxy: Proxy,
}

impl Address {
    fn start() -> Self {
        let (old, new) = (start(), start());
        let proxy = Proxy::start(old.port()).unwrap();
        Address { old, new, proxy }
    }

    fn pool(&self) -> ResourcePool {
        pool_of(RedisConfig::url(self.proxy.url(&self.old)).pool_size(8))
    }

    fn demote(&self) {
        self.old.redis().unwrap().command(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
    }

    fn fail_over(&self) {
        self.proxy.lead_to(self.new.port());
    }
}

fn is_readonly(error: &redis::RedisError) -> bool {
    error.code() == Some("READONLY")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demoted_server_is_left_for_its_successor() {
    let address = Address::start();
    let pool = address.pool();
    let redis = Redis::clone(&*pool.redis().await.unwrap());
    let mut one = redis.clone();
    let () = one.set("key", "old").await.unwrap();
    address.demote();
    let first = Stopwatch::start();
    assert!(is_readonly(&one.set::<_, _, ()>("key", 1).await.unwrap_err()));
    until_async(SOON, async || pool.health_check().await.entry("redis").unwrap().health == Health::Warn).await;
    address.fail_over();
    // Either server answers the commands in flight while the connection is retired.
    let mut reads = 0;
    until_async(SOON, async || {
        let many = (0..50).map(|_| redis.clone()).map(async |mut redis| redis.get::<_, Option<String>>("key").await);
        let (written, read) = tokio::join!(one.set::<_, _, ()>("mark", "new"), join_all(many));
        for answer in read {
            answer.expect("no read is lost");
            reads += 1;
        }
        assert!(written.is_ok() || is_readonly(&written.as_ref().unwrap_err().clone()), "{written:?}");
        written.is_ok()
    })
    .await;
    assert!(first.took() < NOTICED, "{:?}", first.took());
    assert!(reads > 0);
    assert_eq!(address.new.redis().unwrap().command(&["GET", "mark"]).unwrap(), "new");
    until_async(SOON, async || pool.health_check().await.entry("redis").unwrap().health == Health::Pass).await;
    assert_eq!(generation(&pool), 1, "nothing was lost");
    // Nobody uses the old server any more, so it may end.
    until(SOON, || address.old.established().unwrap() == 0);
    address.old.kill().unwrap();
    let () = one.set("mark", "newer").await.unwrap();
    assert_eq!(generation(&pool), 1);
    assert!(pool.close_all().await.all_closed());
}

/// The pool no longer probes the old server. So the retired connection itself limits the wait for its answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_retired_connection_owes_is_an_error_in_time() {
    let address = Address::start();
    let pool = address.pool();
    let mut redis = Redis::clone(&*pool.redis().await.unwrap());
    let () = redis.set("key", "old").await.unwrap();
    address.demote();
    // The frozen successor answers only once the old server owes an answer.
    address.new.freeze().unwrap();
    address.fail_over();
    assert!(is_readonly(&redis.set::<_, _, ()>("key", 1).await.unwrap_err()));
    address.old.freeze().unwrap();
    let mut waiting = redis.clone();
    let owed = tokio::spawn(async move { waiting.get::<_, String>("key").await });
    until_async(SOON, async || !pool.status().resource("redis").unwrap().work.is_empty()).await;
    address.new.thaw().unwrap();
    let began = Stopwatch::start();
    let error = owed.within(SOON).await.unwrap().unwrap_err();
    assert!(matches!(lost(&error), Error::Lost { .. }), "{error}");
    assert!(began.took() < NOTICED + Duration::from_secs(1), "{:?}", began.took());
    let () = redis.set("key", "new").await.unwrap();
    assert_eq!(generation(&pool), 1);
}

/// Waits until the shared connection no longer leads to the old server, which answers nothing there.
async fn is_retired(redis: &Redis) {
    until_async(SOON, async || {
        let mut redis = redis.clone();
        let asked = redis.get::<_, Option<String>>("key");
        tokio::time::timeout(Duration::from_millis(100), asked).await.is_ok_and(|answer| answer.is_ok())
    })
    .await;
}

/// A slow command is waited for as long as the server answers others, as on a connection that is not retired.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_on_a_retired_connection_is_waited_for() {
    for freezes in [false, true] {
        let address = Address::start();
        let pool = address.pool();
        let redis = Redis::clone(&*pool.redis().await.unwrap());
        let mut other = redis.exclusive().await.unwrap();
        until_async(SOON, async || pool.health_check().await.entry("redis").unwrap().health == Health::Pass).await;
        let old = address.old.redis().unwrap();
        old.command(&["CLIENT", "PAUSE", "60000", "WRITE"]).unwrap();
        let mut waiting = redis.clone();
        let held = tokio::spawn(async move { waiting.set::<_, _, ()>("key", 1).await });
        until(SOON, || old.command(&["INFO", "clients"]).unwrap().contains("blocked_clients:1"));
        address.demote();
        address.fail_over();
        assert!(is_readonly(&other.set::<_, _, ()>("key", 1).await.unwrap_err()));
        is_retired(&redis).await;
        tokio::time::sleep(LONG + Duration::from_secs(1)).await;
        assert!(!held.is_finished(), "it is held at a server that answers");
        let began = Instant::now();
        if freezes {
            address.old.freeze().unwrap();
        } else {
            old.command(&["CLIENT", "UNPAUSE"]).unwrap();
        }
        let error = held.within(SOON).await.unwrap().unwrap_err();
        if freezes {
            assert!(matches!(lost(&error), Error::OutcomeUnknown { .. }), "{error}");
            assert!(began.elapsed() < NOTICED, "{:?}", began.elapsed());
        } else {
            assert!(is_readonly(&error), "{error}");
        }
        assert_eq!(generation(&pool), 1);
    }
}

/// With `Repeat::Idempotent`, a read whose retired connection ends is sent again to the successor. The successor is not
/// cut for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_on_a_retired_connection_is_repeated_on_its_successor() {
    let address = Address::start();
    let mut options = Options::default();
    options.repeat = Repeat::Idempotent;
    let config = RedisConfig::url(address.proxy.url(&address.old));
    let pool = ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().unwrap();
    let redis = Redis::clone(&*pool.redis().await.unwrap());
    let () = redis.clone().set("key", "old").await.unwrap();
    address.new.redis().unwrap().command(&["SET", "key", "new"]).unwrap();
    address.demote();
    address.new.freeze().unwrap();
    address.fail_over();
    assert!(is_readonly(&redis.clone().set::<_, _, ()>("key", 1).await.unwrap_err()));
    address.old.freeze().unwrap();
    let mut waiting = redis.clone();
    let owed = tokio::spawn(async move { waiting.get::<_, String>("key").await });
    until_async(SOON, async || !pool.status().resource("redis").unwrap().work.is_empty()).await;
    address.new.thaw().unwrap();
    is_retired(&redis).await;
    assert!(!owed.is_finished());
    address.old.kill().unwrap();
    assert_eq!(owed.within(SOON).await.unwrap().unwrap(), "new");
    let () = redis.clone().set("key", "newer").await.unwrap();
    assert_eq!(generation(&pool), 1);
}

#[test]
fn a_demoted_server_is_left_for_its_successor_by_threads() {
    let address = Address::start();
    let pool = blocking::ResourcePool::from(address.pool());
    // Several idle connections, each to the old server.
    let idle: Vec<_> = (0..6).map(|_| pool.redis().unwrap()).collect();
    drop(idle);
    let mut held = pool.redis().unwrap();
    let known = id(&mut held);
    address.demote();
    let first = Stopwatch::start();
    assert!(is_readonly(&held.set::<_, _, ()>("key", 1).unwrap_err()));
    address.fail_over();
    drop(held);
    let mut refused = 0;
    let write = || {
        let answer = pool.redis().unwrap().set::<_, _, ()>("mark", "new");
        refused += usize::from(answer.is_err());
        answer.is_ok()
    };
    until(SOON, write);
    assert!(first.took() < NOTICED, "{:?}", first.took());
    println!("{refused} refused, {:?}", first.took());
    assert_eq!(address.new.redis().unwrap().command(&["GET", "mark"]).unwrap(), "new");
    // None of the old connections is left.
    let mut all: Vec<_> = (0..8).map(|_| pool.redis().unwrap()).collect();
    for redis in &mut all {
        let () = redis.set("mark", 2).unwrap();
    }
    let old = address.old.redis().unwrap().clients().unwrap();
    assert!(!old.iter().any(|client| client.id == u64::try_from(known).unwrap()), "{old:?}");
    drop(all);
    assert!(pool.close_all().unwrap().all_closed());
}

/// The application may want a replica. It can read there, and the error of a write says why it fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_on_purpose_is_redialled_at_most_once_a_second() {
    let address = Address::start();
    address.demote();
    let pool = address.pool();
    let mut redis = pool.redis().await.unwrap();
    let threads = blocking::ResourcePool::from(pool.clone());
    drop(tokio::task::spawn_blocking(move || threads.redis().unwrap()).await.unwrap());
    until_async(SOON, async || pool.health_check().await.entry("redis").unwrap().health == Health::Pass).await;
    let before = address.proxy.accepted();
    let began = Instant::now();
    let threads = blocking::ResourcePool::from(pool.clone());
    let writer = thread::spawn(move || {
        while began.elapsed() < LONG {
            assert!(is_readonly(&threads.redis().unwrap().set::<_, _, ()>("key", 1).unwrap_err()));
        }
    });
    while began.elapsed() < LONG {
        assert!(is_readonly(&redis.set::<_, _, ()>("key", 1).await.unwrap_err()));
        assert_eq!(redis.get::<_, Option<i64>>("key").await.unwrap(), None);
    }
    tokio::task::spawn_blocking(|| writer.join().unwrap()).await.unwrap();
    let redialled = address.proxy.accepted() - before;
    let seconds = began.elapsed().as_secs_f64().ceil() as usize;
    assert!((1..=seconds).contains(&redialled), "{redialled} in {:?}", began.elapsed());
    let report = pool.health_check().await;
    let entry = report.entry("redis").unwrap();
    assert!(entry.health == Health::Warn && entry.error.as_deref().unwrap().contains("replica"), "{report}");
    assert_eq!(generation(&pool), 1);
}

// Connecting.

/// An opening without a waiter keeps its slot until it ends. So there are never more connections than allowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_opening_keeps_its_place() {
    let server = start();
    let proxy = Proxy::start(server.port()).unwrap();
    let mut config = RedisConfig::url(proxy.url(&server));
    (config.exclusive_size, config.connect_timeout) = (1, SOON);
    let mut options = Options::default();
    options.probe.enabled = false;
    options.acquire_timeout = Duration::from_secs(1);
    let pool = ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().unwrap();
    let redis = Redis::clone(&*eventually(SOON, async || pool.redis().await.ok()).await);
    proxy.freeze();
    let before = proxy.accepted();
    let first = tokio::spawn(redis.exclusive());
    until(SOON, || proxy.accepted() > before);
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let error = redis.exclusive().await.map(drop).unwrap_err();
    assert!(matches!(Error::behind(&error), Some(Error::Timeout(_))), "{error}");
    assert!(error.to_string().contains("exclusive connections"), "{error}");
    proxy.thaw();
    until_async(SOON, async || redis.exclusive().await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_attempt_mends_is_permanent_at_the_first() {
    let server = start();
    let port = server.port();
    let login = server.url().strip_suffix("/0").unwrap().to_owned();
    let no_select = as_user(&server, &["+@all", "-select"]);
    let other_db = |mut config: RedisConfig| {
        config.url = Some(format!("redis://watcher:pw@127.0.0.1:{port}/3").into());
        config
    };
    let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
    let web = foreign.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in foreign.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    for (config, words) in [
        (RedisConfig::url(format!("redis://watcher:wrong@127.0.0.1:{port}/0")), "authentication failed"),
        (RedisConfig::url(format!("redis://nobody:pw@127.0.0.1:{port}/0")), "authentication failed"),
        (RedisConfig::url(format!("redis://127.0.0.1:{port}/0")), "NOAUTH"),
        (RedisConfig::url(format!("{login}/99")), "DB index is out of range"),
        (other_db(no_select), "no permissions"),
        (RedisConfig::url(format!("redis://127.0.0.1:{web}/0")), "that is not Redis"),
    ] {
        let error = pool_of(config.clone()).redis().await.map(drop).unwrap_err();
        let on_thread = move || blocking::ResourcePool::from(pool_of(config)).redis().map(drop).unwrap_err();
        for error in [error, tokio::task::spawn_blocking(on_thread).await.unwrap()] {
            let Error::Connect(connect) = &error else { panic!("{error}") };
            assert!(connect.permanent && connect.attempts == 1, "{error:?}");
            assert!(error.to_string().contains(words), "{error}");
            assert!(!error.to_string().contains("wrong@"), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn niceties_are_not_musts() {
    let server = start();
    let pool = pool_of(as_user(&server, &["+@all", "-client", "-ping", "-hello"]));
    let mut redis = pool.redis().await.unwrap();
    let () = redis.set("key", 1).await.unwrap();
    let () = redis.exclusive().await.unwrap().set("key", 2).await.unwrap();
    let mut pubsub = redis.pubsub().await.unwrap();
    pubsub.subscribe("ticks").await.unwrap();
    let threads = blocking::ResourcePool::from(pool.clone());
    let got = move || threads.redis().unwrap().get::<_, i64>("key").unwrap();
    assert_eq!(tokio::task::spawn_blocking(got).await.unwrap(), 2);
}

// The errors after a cut.

fn lost(error: &redis::RedisError) -> &Error {
    Error::behind(error).unwrap_or_else(|| panic!("nothing of ours is behind {error}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_cut_call_leads_to_why() {
    let server = start();
    let pool = pool(&server);
    let redis = Redis::clone(&*pool.redis().await.unwrap());
    let mut exclusive = redis.exclusive().await.unwrap();
    let () = exclusive.set("key", 1).await.unwrap();
    let (mut reading, mut writing) = (redis.exclusive().await.unwrap(), redis.exclusive().await.unwrap());
    let mut pubsub = redis.pubsub().await.unwrap();
    pubsub.subscribe("ticks").await.unwrap();
    let threads = blocking::ResourcePool::from(pool.clone());
    let (mut held, mut listening, mut popping) = tokio::task::spawn_blocking(move || {
        let mut held = threads.redis().unwrap();
        let () = held.set("key", 1).unwrap();
        (held, threads.redis().unwrap(), threads.redis().unwrap())
    })
    .await
    .unwrap();
    server.freeze().unwrap();
    let listener = thread::spawn(move || listening.subscribe("ticks").unwrap().next().unwrap().unwrap_err());
    let popper = thread::spawn(move || {
        let first = popping.blpop::<_, Option<(String, String)>>("never", 0.0).unwrap_err();
        (first, popping.get::<_, i64>("key").unwrap_err())
    });
    let (mut get, mut set) = (redis.clone(), redis.clone());
    let began = Stopwatch::start();
    let (got, was_set, read, written) = tokio::join!(
        get.get::<_, i64>("key"),
        set.set::<_, _, ()>("key", 2),
        reading.get::<_, i64>("key"),
        writing.incr::<_, _, i64>("key", 1),
    );
    assert!(began.took() < NOTICED, "{:?}", began.took());
    let told = |error: &redis::RedisError| {
        let text = lost(error).to_string();
        assert!(text.contains("redis") && text.contains("no answer to a ping"), "{text}");
    };
    for error in [got.unwrap_err(), read.unwrap_err()] {
        assert!(matches!(lost(&error), Error::Lost { .. }), "{error}");
        told(&error);
    }
    for error in [was_set.unwrap_err(), written.unwrap_err()] {
        assert!(matches!(lost(&error), Error::OutcomeUnknown { .. }), "{error}");
        told(&error);
    }
    // Nothing is sent over a connection that was cut while idle, whatever the command is.
    let idle = exclusive.incr::<_, _, i64>("key", 1).await.unwrap_err();
    assert!(matches!(lost(&idle), Error::Lost { .. }), "{idle}");
    let unsubscribed = pubsub.subscribe("bars").await.unwrap_err();
    assert!(matches!(lost(&unsubscribed), Error::Lost { .. }), "{unsubscribed}");
    assert!(pubsub.on_message().next().within(SOON).await.is_none());
    let error = tokio::task::spawn_blocking(move || held.incr::<_, _, i64>("key", 1).unwrap_err()).await.unwrap();
    assert!(matches!(lost(&error), Error::Lost { .. }) && !error.to_string().contains("cut short"), "{error}");
    let error = listener.join().unwrap();
    assert!(matches!(lost(&error), Error::Lost { .. }), "{error}");
    let (popped, after) = popper.join().unwrap();
    assert!(matches!(lost(&popped), Error::OutcomeUnknown { .. }), "{popped}");
    assert!(matches!(lost(&after), Error::Lost { .. }), "{after}");
    server.thaw().unwrap();
    // After the close, the held connections report that.
    let mut own = eventually(SOON, async || redis.exclusive().await.ok()).await;
    pool.close_all().await;
    let closed = own.get::<_, i64>("key").await.unwrap_err();
    assert!(lost(&closed).is_closed(), "{closed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_closing_cuts_is_of_unknown_outcome_unless_it_reads() {
    let server = start();
    let mut options = Options::default();
    options.close.drain = Duration::from_millis(300);
    let builder = ResourcePool::builder().environment([("", ""); 0]).options(options);
    let pool = builder.resource(RedisConfig::url(server.url())).build().unwrap();
    let redis = Redis::clone(&*pool.redis().await.unwrap());
    let mut wait = redis::cmd("XREAD");
    wait.arg("BLOCK").arg(0).arg("STREAMS").arg("ticks").arg("$");
    let (mut popping, mut reading) = (redis.clone(), redis.clone());
    let popping = tokio::spawn(async move { popping.blpop::<_, Option<(String, String)>>("never", 0.0).await });
    let read = wait.clone();
    let reading = tokio::spawn(async move { read.query_async::<redis::Value>(&mut reading).await });
    let threads = [blocking::ResourcePool::from(pool.clone()), blocking::ResourcePool::from(pool.clone())];
    let [pops, reads] =
        threads.map(|threads| move |cmd: redis::Cmd| cmd.query::<redis::Value>(&mut threads.redis().unwrap()));
    let mut pop = redis::cmd("BLPOP");
    pop.arg("never").arg(0);
    let (pops, reads) = (thread::spawn(move || pops(pop)), thread::spawn(move || reads(wait)));
    until_async(SOON, async || running(&server, "blpop") + running(&server, "xread") == 4).await;
    pool.close_all().await;
    let popped = [popping.await.unwrap().unwrap_err(), pops.join().unwrap().unwrap_err()];
    let read = [reading.await.unwrap().unwrap_err(), reads.join().unwrap().unwrap_err()];
    for error in &popped {
        assert!(matches!(lost(error), Error::OutcomeUnknown { .. }), "{error}");
    }
    for error in &read {
        assert!(matches!(lost(error), Error::Lost { .. } | Error::Closing { .. } | Error::Closed { .. }), "{error}");
    }
}

// Further tests.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_reply_off_is_refused_instead_of_waited_for() {
    let server = start();
    let pool = pool(&server);
    let mut redis = pool.redis().await.unwrap();
    let mut own = redis.exclusive().await.unwrap();
    let threads = blocking::ResourcePool::from(pool.clone());
    for mode in ["OFF", "skip"] {
        let mut silence = redis::cmd("client");
        silence.arg("Reply").arg(mode);
        let mut pipeline = redis::pipe();
        pipeline.cmd("CLIENT").arg("REPLY").arg(mode).get("key");
        let errors = [
            silence.query_async::<()>(&mut redis).within(SOON).await.unwrap_err(),
            pipeline.query_async::<()>(&mut redis).within(SOON).await.unwrap_err(),
            silence.query_async::<()>(&mut own).within(SOON).await.unwrap_err(),
            pipeline.query_async::<()>(&mut own).within(SOON).await.unwrap_err(),
        ];
        let threads = threads.clone();
        let on_thread = move || {
            let mut redis = threads.redis().unwrap();
            let errors = [silence.exec(&mut redis).unwrap_err(), pipeline.exec(&mut redis).unwrap_err()];
            // The pool sent nothing, so the connection still works.
            let () = redis.set("key", 1).unwrap();
            errors
        };
        let more = tokio::task::spawn_blocking(on_thread).within(SOON).await.unwrap();
        for error in errors.iter().chain(&more) {
            assert!(error.to_string().contains("ignore()"), "{error}");
        }
    }
    let () = redis::cmd("CLIENT").arg("REPLY").arg("ON").query_async(&mut own).await.unwrap();
    assert_eq!(own.get::<_, i64>("key").await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_is_too_large_is_refused_in_the_servers_words() {
    let server = start();
    server.redis().unwrap().command(&["CONFIG", "SET", "proto-max-bulk-len", "1mb"]).unwrap();
    let pool = pool(&server);
    let mut redis = pool.redis().await.unwrap();
    let value = vec![b'x'; 64 << 20];
    let error = redis.set::<_, _, ()>("key", &value).within(SOON).await.unwrap_err();
    assert!(error.to_string().contains("Protocol error: invalid bulk length"), "{error}");
    // That was the shared connection, so all its users lost it.
    until_async(SOON, async || generation(&pool) == 2 && pool.redis().await.is_ok()).await;
    let mut own = redis.exclusive().await.unwrap();
    let error = own.set::<_, _, ()>("key", &value).within(SOON).await.unwrap_err();
    assert!(error.to_string().contains("Protocol error: invalid bulk length"), "{error}");
    let threads = blocking::ResourcePool::from(pool.clone());
    let on_thread = move || threads.redis().unwrap().set::<_, _, ()>("key", &value).unwrap_err();
    let error = tokio::task::spawn_blocking(on_thread).within(SOON).await.unwrap();
    assert!(error.to_string().contains("Protocol error: invalid bulk length"), "{error}");
}

/// A subscription is no work, so the drain does not wait for it. The control is a checkout, which the drain waits for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_subscription_does_not_delay_closing() {
    let server = start();
    let build = || {
        let mut options = Options::default();
        options.close.drain = Duration::from_secs(3);
        let builder = ResourcePool::builder().environment([("", ""); 0]).options(options);
        builder.resource(RedisConfig::url(server.url())).build().unwrap()
    };
    let control = build();
    let exclusive = control.redis().await.unwrap().exclusive().await.unwrap();
    let report = control.close_all().await;
    assert!(report.took > Duration::from_millis(2900), "{report}");
    drop(exclusive);

    let pool = build();
    let mut pubsub = pool.redis().await.unwrap().pubsub().await.unwrap();
    pubsub.subscribe("ticks").await.unwrap();
    let listener = tokio::spawn(async move { pubsub.on_message().next().await.is_none() });
    let threads = blocking::ResourcePool::from(pool.clone());
    let on_thread =
        thread::spawn(move || threads.redis().unwrap().subscribe("ticks").unwrap().next().unwrap().unwrap_err());
    until_async(SOON, async || running(&server, "subscribe") == 2).await;
    assert_eq!(pool.holders().iter().filter(|holder| holder.exclusive).count(), 2, "it counts as one all the same");
    let closing = Stopwatch::start();
    let report = pool.close_all().await;
    // The drain does not even wait as long as for a lease that was used lately.
    assert!(closing.took() < Duration::from_secs(1), "{report}");
    assert!(matches!(report.step("redis").unwrap().outcome, Outcome::Closed), "{report}");
    assert!(listener.within(SOON).await.unwrap());
    let error = tokio::task::spawn_blocking(|| on_thread.join().unwrap()).within(SOON).await.unwrap();
    assert!(lost(&error).is_closed(), "{error}");
}
