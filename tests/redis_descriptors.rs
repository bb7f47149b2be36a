//! Redis where the process must be alone: it has no descriptor left.

#![cfg(all(feature = "redis", target_os = "linux"))]
#![allow(missing_docs)]

mod common;

use std::fs::File;
use std::process::{self, Command};
use std::thread;
use std::time::{Duration, Instant};

use common::{until, until_async};
use redis::{AsyncCommands, Commands};
use resource_pool::config::RedisConfig;
use resource_pool::{Health, ResourcePool, blocking};
use services::{Kind, Service};

/// A guard against hanging.
const SOON: Duration = Duration::from_secs(20);

/// By then a server that does not answer would have been cut, for it takes 3.7 s.
const LONG: Duration = Duration::from_millis(4500);

/// The prober's connection is gone, and this process cannot open another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_without_descriptors_cuts_nothing() {
    let server = Service::start(Kind::Redis).unwrap();
    let pool =
        ResourcePool::builder().environment([("", ""); 0]).resource(RedisConfig::url(server.url())).build().unwrap();
    let mut redis = pool.redis().await.unwrap();
    let () = redis.set("key", 1).await.unwrap();
    let shared: i64 = redis.client_id().await.unwrap();
    let threads = blocking::ResourcePool::from(pool.clone());
    let popping = thread::spawn(move || threads.redis().unwrap().blpop::<_, Option<(String, String)>>("never", 7.0));
    until_async(SOON, async || !pool.status().resource("redis").unwrap().work.is_empty()).await;
    let mut admin = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let prober = |admin: &mut redis::Connection| {
        let list: String = redis::cmd("CLIENT").arg("LIST").query(admin).unwrap();
        let pings = list.lines().filter(|line| line.contains("name=resource-pool") && line.contains("cmd=ping"));
        let mut ids = pings.filter_map(|line| line.strip_prefix("id=")?.split(' ').next()?.parse::<i64>().ok());
        ids.find(|id| *id != shared)
    };
    until_async(SOON, async || prober(&mut admin).is_some()).await;
    let killed = prober(&mut admin).unwrap().to_string();

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
    redis::cmd("CLIENT").arg("KILL").arg("ID").arg(killed).exec(&mut admin).unwrap();
    // What the prober's connection had is taken before the prober asks for it.
    until(SOON, || fill() == 1);
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
