//! No output has the password in it, however it was configured.

#![cfg(all(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
#![allow(missing_docs)]

mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use common::{Log, Unreachable};
use resource_pool::config::{ClickHouseConfig, MongoConfig, Options, RabbitMqConfig, RedisConfig, Secret};
use resource_pool::{Builder, ResourcePool, What};
use services::{Kind, Service};

/// The secret as it is, and as a URL has it.
const SECRETS: [&str; 2] = ["p4ss@:/%word", "p4ss%40%3A%2F%25word"];

/// The log of the process.
fn log() -> &'static Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    LOG.get_or_init(Log::start)
}

/// Every text that a pool can be made to say.
async fn all_that_it_says(pool: &ResourcePool) -> String {
    let mut said = format!("{pool:?}");
    let mut say = |text: String| said.push_str(&text);
    let quickly = pool.within(Duration::from_secs(3));
    for result in [
        quickly.mongo().await.map(|lease| format!("{lease:?}")),
        quickly.rabbitmq().await.map(|lease| format!("{lease:?} {:?}", *lease)),
        quickly.clickhouse().await.map(|lease| format!("{lease:?} {:?}", *lease)),
        quickly.redis().await.map(|lease| format!("{lease:?} {:?}", *lease)),
    ] {
        match result {
            Ok(text) => say(text),
            Err(error) => {
                say(format!("{error} {error:?} {error:#?}"));
                let mut source = std::error::Error::source(&error);
                while let Some(cause) = source {
                    say(format!("{cause} {cause:?}"));
                    source = cause.source();
                }
            }
        }
    }
    for (name, result) in pool.warm_up(["mongo", "rabbitmq", "clickhouse", "redis"]).await {
        say(format!("{name} {result:?}"));
    }
    let health = pool.health_check().await;
    say(format!("{health} {health:?}"));
    let status = pool.status();
    say(format!("{status} {status:?} {:?}", pool.holders()));
    let report = pool.close_all_within(Duration::from_secs(6)).await;
    say(format!("{report} {report:?}"));
    said
}

fn builder() -> Builder<ResourcePool> {
    let mut options = Options::default();
    options.retry.attempts = 1;
    ResourcePool::builder().environment([("", ""); 0]).options(options)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_appear_nowhere() {
    log();
    let encoded = SECRETS[1];
    let servers = Service::start_all(&[Kind::Mongo, Kind::RabbitMq, Kind::ClickHouse, Kind::Redis]).unwrap();
    let ports: Vec<u16> = servers.iter().map(Service::port).collect();
    // Servers that refuse the login, and ports where nobody listens.
    for ports in [ports, vec![1, 1, 1, 1]] {
        let [mongo, rabbitmq, clickhouse, redis] = ports[..] else { panic!() };
        let urls = [
            (
                "MONGODB_URI",
                format!("mongodb://user:{encoded}@127.0.0.1:{mongo}/?authSource=admin&directConnection=true"),
            ),
            ("AMQP_URL", format!("amqp://user:{encoded}@127.0.0.1:{rabbitmq}")),
            ("CLICKHOUSE_URL", format!("http://user:{encoded}@127.0.0.1:{clickhouse}/default")),
            ("REDIS_URL", format!("redis://default:{encoded}@127.0.0.1:{redis}/0")),
        ];
        let by_code = builder()
            .resource(MongoConfig::uri(urls[0].1.as_str()))
            .resource(RabbitMqConfig::url(urls[1].1.as_str()))
            .resource(ClickHouseConfig::url(urls[2].1.as_str()))
            .resource(RedisConfig::url(urls[3].1.as_str()));
        let by_environment = builder().environment(urls.clone());
        let parts = [
            ("MONGODB_HOST", "127.0.0.1".to_owned()),
            ("MONGODB_PORT", mongo.to_string()),
            ("MONGODB_USER", "user".to_owned()),
            ("MONGODB_PASSWORD", SECRETS[0].to_owned()),
            ("QAPUBSUB_IP", "127.0.0.1".to_owned()),
            ("QAPUBSUB_PORT", rabbitmq.to_string()),
            ("QAPUBSUB_USER", "user".to_owned()),
            ("QAPUBSUB_PWD", SECRETS[0].to_owned()),
            ("CLICKHOUSE_HOST", "127.0.0.1".to_owned()),
            ("CLICKHOUSE_PORT", clickhouse.to_string()),
            ("CLICKHOUSE_PASSWORD", SECRETS[0].to_owned()),
            ("REDIS_HOST", "127.0.0.1".to_owned()),
            ("REDIS_PORT", redis.to_string()),
            ("REDIS_PASSWORD", SECRETS[0].to_owned()),
        ];
        let by_parts = builder().environment(parts);
        let text = format!(
            "[mongo]\nuri = '{}'\n[rabbitmq]\nurl = '{}'\n[clickhouse]\nhost = '127.0.0.1'\nport = {clickhouse}\npassword = '{}'\n\
             [redis]\nhost = '127.0.0.1'\nport = {redis}\npassword = '{}'\n",
            urls[0].1, urls[1].1, SECRETS[0], SECRETS[0]
        );
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("secrets-{}.toml", std::process::id()));
        fs::write(&path, text).unwrap();
        let by_toml = builder().config_file(&path);
        for builder in [by_code, by_environment, by_parts, by_toml] {
            assert_none(&format!("{builder:?}"));
            let pool = builder.build().unwrap();
            assert_none(&all_that_it_says(&pool).await);
        }
        fs::remove_file(path).unwrap();
    }
    assert_none(&format!("{:?}", Secret::from(SECRETS[0])));
    // An error does not repeat malformed input either.
    for url in [
        format!("mongodb//user:{encoded}@h"),
        format!("amqp://user:{encoded}@"),
        format!("redis://u:{}@h:x", SECRETS[0]),
    ] {
        for builder in [
            builder().resource(MongoConfig::uri(url.as_str())),
            builder().resource(RabbitMqConfig::url(url.as_str())),
            builder().resource(ClickHouseConfig::url(url.as_str())),
            builder().resource(RedisConfig::url(url.as_str())),
        ] {
            let error = builder.build().unwrap_err();
            assert_none(&format!("{error} {error:?}"));
        }
    }
    let log = log().text();
    assert!(log.contains("resource_pool: connecting failed"), "the log is what it should be");
    assert_none(&log);
}

/// `src/net/endpoint.rs` has the table of all shapes.
#[tokio::test]
async fn the_endpoint_of_a_users_own_resource_shows_no_login() {
    log();
    for endpoint in [
        "lines://user:4711-word@host:7/x",
        "lines://user:pa#4711-word@host:7/x",
        "lines://user:12/4711-word@host:7/x",
        "lines://host:7/x?password=4711-word",
        "user:4711-word@host:7",
    ] {
        let pool = builder().build().unwrap();
        let mut events = pool.events();
        pool.register("lines", Unreachable(endpoint)).unwrap();
        let error = pool.get::<Unreachable>("lines").await.unwrap_err();
        let health = pool.health_check().await;
        let (status, report) = (pool.status(), pool.close_all().await);
        let mut said = format!("{error} {error:?} {health} {health:?} {status} {status:?} {report} {report:?}");
        loop {
            let event = events.next().await.expect("the pool lives");
            said.push_str(&format!("{event:?}"));
            if matches!(event.what, What::Closed { .. }) {
                break;
            }
        }
        assert!(said.contains("nobody is there") && !said.contains("4711-word"), "{endpoint}: {said}");
        #[cfg(feature = "r2d2")]
        {
            let client = redis::Client::open("redis://host").unwrap();
            let adapter = format!("{:?}", resource_pool::R2d2::new(client).endpoint(endpoint));
            assert!(!adapter.contains("4711-word"), "{adapter}");
        }
    }
    let log = log().text();
    assert!(log.contains("nobody is there") && !log.contains("4711-word"), "{log}");
}

#[track_caller]
fn assert_none(text: &str) {
    for secret in SECRETS {
        if let Some(at) = text.find(secret) {
            let start = (0..=at.saturating_sub(300)).rev().find(|start| text.is_char_boundary(*start)).unwrap_or(0);
            panic!("a password in: {}", &text[start..text.len().min(at + 100)]);
        }
    }
}
