//! Redis on both facades, against real servers.

#![cfg(feature = "redis")]
#![allow(missing_docs)]

use std::time::{Duration, Instant};

use redis::{AsyncCommands, Commands};
use resource_pool::config::RedisConfig;
use resource_pool::{Error, Health, ResourcePool, State, blocking};
use services::{Kind, Service};

fn pool(redis: &Service) -> ResourcePool {
    ResourcePool::builder()
        .environment([("", ""); 0])
        .resource(RedisConfig::url(redis.url()).pool_size(4))
        .build()
        .expect("a pool")
}

fn blocking_pool(redis: &Service) -> blocking::ResourcePool {
    pool(redis).into()
}

#[tokio::test]
async fn redis_async_connects_leases_and_closes() {
    let server = Service::start(Kind::Redis).unwrap();
    let before = server.established().unwrap();
    let pool = pool(&server);
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
    assert_eq!(server.established().unwrap(), before);
}

#[test]
fn redis_blocking_checks_out_and_returns() {
    let server = Service::start(Kind::Redis).unwrap();
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
}

#[tokio::test]
async fn redis_frozen_server_ends_calls_in_flight() {
    let server = Service::start(Kind::Redis).unwrap();
    let pool = pool(&server);
    let mut redis = pool.redis().await.unwrap();
    let () = redis.set("key", 1).await.unwrap();
    server.freeze().unwrap();
    let started = Instant::now();
    let answer: redis::RedisResult<i64> = redis.get("key").await;
    assert!(answer.is_err());
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    server.thaw().unwrap();
    let back = Instant::now();
    while redis.get::<_, i64>("key").await.is_err() {
        assert!(back.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(pool.status().resource("redis").unwrap().generation, 2);
}
