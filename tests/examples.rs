//! Runs each example as a user does, with its servers and without.

#![cfg(all(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
#![allow(missing_docs)]

use std::env;
use std::path::Path;
use std::process::{Command, Output};

use mongodb::bson::doc;
use services::{Kind, shared};

#[test]
fn example_mongodb_scoped() {
    assert_works("mongodb_scoped", &["\"close\": 9.21", "[\"stock_day\"]", "closed in"]);
}

#[test]
fn example_mongodb_manual() {
    assert_works("mongodb_manual", &["is connected", "has 2 stocks", "does not come back", "healthy again: true"]);
}

#[test]
fn example_mongodb_async() {
    assert_works("mongodb_async", &["000001: [1.0, 2.0, 3.0]", "600000: [1.0, 2.0, 3.0]"]);
}

#[test]
fn example_rabbitmq() {
    assert_works(
        "rabbitmq",
        &["has 3 messages", "fetched  {\"code\":\"000001\",\"date\":\"2024-01-01\"}", "\"2024-01-03\""],
    );
}

#[test]
fn example_clickhouse() {
    assert_works("clickhouse", &["ClickHouse ", "1000 rows inserted", "date: 19998, order_book_id: \"000001.XSHE\""]);
}

#[test]
fn example_redis() {
    assert_works("redis", &["PONG", "price: 9.21", "prices: [9.21, 10.38, 6.62]", "still there: false"]);
}

#[test]
fn example_resource_pool() {
    assert_works("resource_pool", &["unknown", "pass", "PONG", "is held by", "closed in"]);
}

#[test]
fn example_convenience() {
    assert_works("convenience", &["MongoDB ", "ClickHouse ", "PONG", "rabbitmq"]);
}

#[test]
fn example_strategy() {
    assert_works("strategy", &["3 bars", "action: \"BUY\", price: 9.11"]);
}

#[test]
fn example_says_which_server_is_missing() {
    for (name, server) in [
        ("mongodb_scoped", "mongo"),
        ("mongodb_manual", "mongo"),
        ("mongodb_async", "mongo"),
        ("rabbitmq", "rabbitmq"),
        ("clickhouse", "clickhouse"),
        ("redis", "redis"),
        ("resource_pool", "mongo"),
        ("convenience", "mongo"),
        ("strategy", "mongo"),
    ] {
        let nowhere = |kind: Kind| match kind {
            Kind::Mongo => "mongodb://127.0.0.1:1",
            Kind::RabbitMq => "amqp://127.0.0.1:1",
            Kind::ClickHouse => "http://127.0.0.1:1",
            Kind::Redis => "redis://127.0.0.1:1",
            Kind::Elastic => "http://127.0.0.1:1",
            Kind::Postgres => "postgres://127.0.0.1:1",
            Kind::MySql => "mysql://127.0.0.1:1",
            Kind::Chroma | Kind::Milvus => "http://127.0.0.1:1",
        };
        let output = run(name, nowhere);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        assert!(said.starts_with(&format!("Error: {server}: ")) && said.contains("127.0.0.1:1"), "{name}: {said}");
    }
}

fn assert_works(name: &str, prints: &[&str]) {
    let output = run(name, |kind| shared(kind).url());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{name}: {said}{}", String::from_utf8_lossy(&output.stderr));
    for part in prints {
        assert!(said.contains(part), "{name} does not say {part:?} but {said}");
    }
    assert_nothing_is_left();
}

/// Waits until nothing is left. Other examples may run at the moment, but not for long.
fn assert_nothing_is_left() {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while let Some(left) = left() {
        assert!(std::time::Instant::now() < end, "{left} was left");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn left() -> Option<String> {
    let mongo = mongodb::sync::Client::with_uri_str(shared(Kind::Mongo).url()).unwrap();
    let databases =
        mongo.list_database_names().filter(doc! { "name": { "$regex": "^resource_pool_example" } }).run().unwrap();
    let tables = shared(Kind::ClickHouse).clickhouse().unwrap().query("SHOW TABLES LIKE '%example%'").unwrap();
    let mut redis = redis::Client::open(shared(Kind::Redis).url()).unwrap().get_connection().unwrap();
    let keys: Vec<String> = redis::Commands::keys(&mut redis, "resource_pool_example*").unwrap();
    databases.into_iter().chain(tables.lines().map(String::from)).chain(keys).next()
}

fn run(name: &str, url: impl Fn(Kind) -> &'static str) -> Output {
    let tests = env::current_exe().unwrap();
    // Cargo builds the examples with the tests, beside them.
    let example = tests.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(example.exists(), "`cargo test --test` builds no examples; run `cargo build --examples`");
    let mut command = Command::new(example);
    for (variable, kind) in [
        ("MONGODB_URI", Kind::Mongo),
        ("AMQP_URL", Kind::RabbitMq),
        ("CLICKHOUSE_URL", Kind::ClickHouse),
        ("REDIS_URL", Kind::Redis),
    ] {
        command.env(variable, url(kind));
    }
    command.env("RUST_BACKTRACE", "0").output().unwrap()
}
