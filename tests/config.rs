//! Configuration: code over environment over TOML over defaults, and what is wrong with it.

#![cfg(all(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
#![allow(missing_docs)]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use resource_pool::config::{CONFIG_FILE, ClickHouseConfig, ExitStatus, Options, RedisConfig};
use resource_pool::{Builder, Error, ResourcePool};

fn toml(name: &str, text: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.toml", std::process::id()));
    fs::write(&path, text).unwrap();
    path
}

fn builder<const N: usize>(environment: [(&str, &str); N]) -> Builder<ResourcePool> {
    ResourcePool::builder().environment(environment)
}

fn endpoint(pool: &ResourcePool, name: &str) -> String {
    pool.status().resource(name).unwrap().endpoint.to_string()
}

/// The key that an unusable configuration is told by.
fn wrong(builder: Builder<ResourcePool>) -> (String, String) {
    match builder.build() {
        Err(Error::Config { key, problem }) => (key, problem),
        other => panic!("{other:?}"),
    }
}

#[test]
fn config_defaults_are_localhost() {
    let pool = builder([]).build().unwrap();
    assert_eq!(endpoint(&pool, "redis"), "redis://localhost:6379/0");
    for (name, part) in [("mongo", "localhost:27017"), ("rabbitmq", "localhost:5672"), ("clickhouse", "localhost:8123")]
    {
        assert!(endpoint(&pool, name).contains(part), "{}", endpoint(&pool, name));
    }
    assert_eq!(pool.worst_case(), Duration::from_secs(26));
}

#[test]
fn config_code_over_environment_over_toml() {
    let file = toml(
        "layers",
        "[pool]\nacquire_timeout_ms = 700\n[pool.close]\ndeadline_ms = 9000\n\
         [redis]\nhost = 'from-toml'\nport = 7001\n[clickhouse]\nhost = 'from-toml'\n\
         [named.redis.research]\nurl = 'redis://research:1/2'\n",
    );
    let file = file.to_str().unwrap();
    let pool = builder([(CONFIG_FILE, file), ("REDIS_PORT", "7002"), ("CLICKHOUSE_HOST", "from-env")])
        .resource(ClickHouseConfig::url("http://from-code:8123"))
        .build()
        .unwrap();
    assert_eq!(endpoint(&pool, "redis"), "redis://from-toml:7002/0", "port from the environment, host from TOML");
    assert_eq!(endpoint(&pool, "research"), "redis://research:1/2");
    assert!(endpoint(&pool, "clickhouse").contains("from-code"), "{}", endpoint(&pool, "clickhouse"));
    assert_eq!(pool.worst_case(), Duration::from_secs(10));
    let overridden = builder([(CONFIG_FILE, file), ("RESOURCE_POOL_CLOSE_DEADLINE_MS", "3000")]).build().unwrap();
    assert_eq!(overridden.worst_case(), Duration::from_secs(4));
    let mut options = Options::default();
    options.close.deadline = Duration::from_secs(1);
    options.exit_status = ExitStatus::Zero;
    assert_eq!(builder([(CONFIG_FILE, file)]).options(options).build().unwrap().worst_case(), Duration::from_secs(2));
}

#[test]
fn config_reads_both_families_of_names() {
    let pool = builder([
        ("MONGODB_URI", "mongodb://mongo-uri:1"),
        ("MONGODB", "unused"),
        ("AMQP_URL", "amqp://amqp-url:2"),
        ("CLICKHOUSE_URL", "http://clickhouse-url:3"),
        ("REDIS_URL", "redis://redis-url:4/5"),
    ])
    .build()
    .unwrap();
    for (name, part) in [
        ("mongo", "mongo-uri:1"),
        ("rabbitmq", "amqp-url:2"),
        ("clickhouse", "clickhouse-url:3"),
        ("redis", "redis-url:4/5"),
    ] {
        assert!(endpoint(&pool, name).contains(part), "{}", endpoint(&pool, name));
    }
    let pool = builder([
        ("MONGODB", "mongo-host"),
        ("QAPUBSUB_IP", "amqp-ip"),
        ("QAPUBSUB_PORT", "6672"),
        ("CLICKHOUSE_IP", "clickhouse-ip"),
        ("REDIS_IP", "redis-ip"),
    ])
    .build()
    .unwrap();
    for (name, part) in [
        ("mongo", "mongo-host"),
        ("rabbitmq", "amqp-ip:6672"),
        ("clickhouse", "clickhouse-ip"),
        ("redis", "redis-ip:6379"),
    ] {
        assert!(endpoint(&pool, name).contains(part), "{}", endpoint(&pool, name));
    }
    let pool = builder([("RABBITMQ_HOST", "rabbit"), ("QAPUBSUB_IP", "pubsub")]).build().unwrap();
    assert!(endpoint(&pool, "rabbitmq").contains("rabbit:5672"), "{}", endpoint(&pool, "rabbitmq"));
}

#[test]
fn config_names_the_key_that_is_wrong() {
    for (text, key) in [
        ("[redis]\npoolsize = 3", "redis.poolsize"),
        ("[redis]\nport = 'secret'", "redis.port"),
        ("[redis]\nport = 70000", "redis.port"),
        ("[redis]\npassword = 70000", "redis.password"),
        ("[pool.retry]\nattempts = -1", "pool.retry.attempts"),
        ("[pool.retries]", "pool.retries"),
        ("[named.redis.a]\nhots = ''", "named.redis.a.hots"),
        ("[named.kafka.a]", "named.kafka"),
        ("[redis", "TOML, line 1"),
        ("[pool]\nexit_status = 'one'", "pool.exit_status"),
    ] {
        let (found, problem) = wrong(builder([]).config_file(toml("wrong", text)));
        assert_eq!(found, key, "{problem}");
        assert!(!problem.contains("secret") && !problem.contains("70000"), "{problem}");
    }
    for (name, value) in [("REDIS_PORT", "six"), ("REDIS_DB", ""), ("RESOURCE_POOL_ACQUIRE_TIMEOUT_MS", "-1")] {
        if value.is_empty() {
            builder([(name, value)]).build().expect("an empty variable counts as not set");
        } else {
            assert_eq!(wrong(builder([(name, value)])).0, name);
        }
    }
    assert_eq!(wrong(builder([(CONFIG_FILE, "/nonexistent.toml")])).0, CONFIG_FILE);
    assert_eq!(wrong(builder([]).resource(RedisConfig::url("redis://h/x"))).0, "redis.url");
    assert_eq!(wrong(builder([]).named("far", RedisConfig::url("ftp://h"))).0, "far.url");
}

#[tokio::test]
async fn config_of_a_name_cannot_change() {
    let pool = builder([]).named("far", RedisConfig::url("redis://127.0.0.1:1/0")).build().unwrap();
    let quickly = pool.within(Duration::from_millis(50));
    let other = quickly.redis_with("far", RedisConfig::url("redis://127.0.0.1:2/0")).await.unwrap_err();
    assert!(matches!(other, Error::NameTaken { .. }), "{other}");
    let same = quickly.redis_with("far", RedisConfig::url("redis://127.0.0.1:1/0")).await.unwrap_err();
    assert!(matches!(same, Error::Connect(_) | Error::Timeout(_)), "{same}");
    assert!(matches!(quickly.mongo_named("far").await, Err(Error::NameTaken { .. })));
    let unknown = quickly.redis_named("fra").await.unwrap_err();
    assert!(matches!(unknown, Error::UnknownName { .. }) && unknown.to_string().contains("far"), "{unknown}");
}
