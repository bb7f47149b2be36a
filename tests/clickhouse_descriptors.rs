//! ClickHouse in a process without free descriptors. The test has a process of its own for that.

#![cfg(feature = "clickhouse")]
#![allow(missing_docs)]

mod common;

use std::fs::File;
use std::process::Command;
use std::time::{Duration, Instant};

use common::until_async;
use resource_pool::config::ClickHouseConfig;
use resource_pool::{ResourcePool, State};
use services::{Kind, Service};

/// The prober needs a new connection and cannot open one. The users' calls go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_without_descriptors_loses_no_clickhouse() {
    let server = Service::start(Kind::ClickHouse).expect("a ClickHouse");
    let mut config = ClickHouseConfig::url(server.url());
    // The prober's own connection does not outlive one probe.
    config.idle_timeout = Duration::from_millis(1);
    let pool = ResourcePool::builder().environment([("", ""); 0]).resource(config).build().unwrap();
    let clickhouse = pool.clickhouse().await.unwrap();
    let slow = tokio::spawn(clickhouse.query("SELECT sleep(1) FROM numbers(5) SETTINGS max_block_size = 1").execute());
    let status = || pool.status().resource("clickhouse").unwrap().clone();
    until_async(Duration::from_secs(10), async || status().usage.in_use == Some(1)).await;
    let limit = Command::new("prlimit").args(["--nofile=64:64", "--pid"]).arg(std::process::id().to_string()).status();
    assert!(limit.unwrap().success());
    let taken: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    assert!(File::open("/dev/null").is_err(), "there are descriptors left");
    let begun = Instant::now();
    until_async(Duration::from_secs(10), async || begun.elapsed() > Duration::from_secs(3)).await;
    assert_eq!((status().state, status().generation), (State::Ready, 1));
    slow.await.unwrap().unwrap();
    drop(taken);
    clickhouse.query("SELECT 1").execute().await.unwrap();
    assert_eq!((status().state, status().generation), (State::Ready, 1));
}
