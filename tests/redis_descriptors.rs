//! Tests of Redis that need the process for themselves. They count its threads, or leave it no descriptor.

#![cfg(all(feature = "redis", target_os = "linux"))]
#![allow(missing_docs)]

mod common;

use std::fs::File;
use std::process::{self, Command};
use std::thread;
use std::time::{Duration, Instant};

use common::{threads, until, until_async};
use redis::{AsyncCommands, Commands};
use resource_pool::config::{Options, RedisConfig};
use resource_pool::{Health, ResourcePool, blocking};
use services::{Kind, Service};
use tokio::sync::Mutex;

/// A guard against hanging.
const SOON: Duration = Duration::from_secs(20);

/// The pool cuts a server that does not answer after 3.7 s, so by then it would have.
const LONG: Duration = Duration::from_millis(4500);

/// Held by the test that runs, because each needs the whole process.
static ALONE: Mutex<()> = Mutex::const_new(());

fn pool(server: &Service) -> ResourcePool {
    let mut options = Options::default();
    // A slow answer of a busy server must not count as bad health here.
    (options.health.each, options.health.all, options.health.slow) = (SOON, SOON, SOON);
    let builder = ResourcePool::builder().environment([("", ""); 0]).options(options);
    builder.resource(RedisConfig::url(server.url())).build().unwrap()
}

/// The control is r2d2 on the bare driver, where each pool has three threads.
#[test]
fn no_pool_has_threads_of_its_own_for_connections() {
    let _alone = ALONE.blocking_lock();
    let server = Service::start(Kind::Redis).unwrap();
    let workers = || threads().into_iter().filter(|name| name.contains("r2d2")).count();
    let bare: Vec<_> = (0..4)
        .map(|_| r2d2::Pool::builder().max_size(1).build(redis::Client::open(server.url()).unwrap()).unwrap())
        .collect();
    // A thread has its name once it runs.
    until(SOON, || workers() == 12);
    let pools: Vec<_> = (0..4).map(|_| blocking::ResourcePool::from(pool(&server))).collect();
    pools.iter().for_each(|pool| drop(pool.redis().unwrap()));
    assert_eq!(workers(), 12, "ours has none of its own");
    drop(bare);
}

/// The prober's connection is gone, and this process cannot open another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_without_descriptors_cuts_nothing() {
    let _alone = ALONE.lock().await;
    let server = Service::start(Kind::Redis).unwrap();
    let pool = pool(&server);
    let mut redis = pool.redis().await.unwrap();
    let () = redis.set("key", 1).await.unwrap();
    let shared: i64 = redis.client_id().await.unwrap();
    let threads = blocking::ResourcePool::from(pool.clone());
    let popping = thread::spawn(move || threads.redis().unwrap().blpop::<_, Option<(String, String)>>("never", 7.0));
    // Until then the last command of that connection is a ping, too.
    until(SOON, || server.redis().unwrap().clients().unwrap().iter().any(|client| client.command == "blpop"));
    let mut admin = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let prober = |admin: &mut redis::Connection| {
        let list: String = redis::cmd("CLIENT").arg("LIST").query(admin).unwrap();
        let pings = list.lines().filter(|line| line.contains("name=resource-pool") && line.contains("cmd=ping"));
        let mut ids = pings.filter_map(|line| line.strip_prefix("id=")?.split(' ').next()?.parse::<i64>().ok());
        ids.find(|id| *id != shared)
    };
    until(SOON, || prober(&mut admin).is_some());

    let (me, room) = (process::id().to_string(), 200);
    let limited = Command::new("prlimit").args(["--pid", &me, &format!("--nofile={room}:")]).status().unwrap();
    assert!(limited.success());
    let mut files = Vec::new();
    let mut fill = || {
        let before = files.len();
        files.extend(std::iter::from_fn(|| File::open("/dev/null").ok()).take(room));
        files.len() - before
    };
    assert!(fill() > 0);
    let passes = async || pool.health_check().await.entry("redis").unwrap().health == Health::Pass;
    // The test has to take the freed descriptor before the prober opens a connection with it.
    let mut is_taken = false;
    while !is_taken {
        let killed = prober(&mut admin).unwrap();
        redis::cmd("CLIENT").arg("KILL").arg("ID").arg(killed).exec(&mut admin).unwrap();
        until(SOON, || {
            is_taken = fill() > 0;
            is_taken || prober(&mut admin).is_some_and(|other| other != killed)
        });
    }
    until_async(SOON, passes).await;
    let began = Instant::now();
    while began.elapsed() < LONG {
        assert!(passes().await, "{}", pool.health_check().await);
        assert_eq!(redis.get::<_, i64>("key").await.unwrap(), 1);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!((prober(&mut admin), fill()), (None, 0), "there was to be no other one all the time");
    drop(files);
    assert_eq!(tokio::task::spawn_blocking(|| popping.join().unwrap()).await.unwrap().unwrap(), None);
    assert_eq!(pool.status().resource("redis").unwrap().generation, 1);
    assert!(pool.close_all().await.all_closed());
}
