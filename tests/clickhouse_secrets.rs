//! Checks that a ClickHouse password shows nowhere, for each way to enter it. The test has a binary of its own, because
//! it reads the log of the whole process.

#![cfg(feature = "clickhouse")]
#![allow(missing_docs)]

mod common;

use std::error::Error as StdError;

use clickhouse::Client;
use common::Log;
use resource_pool::config::ClickHouseConfig;
use resource_pool::{ResourcePool, blocking};
use services::{Kind, Service};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clickhouse_password_shows_nowhere() {
    let log = Log::start();
    let server = Service::start(Kind::ClickHouse).unwrap();
    let mut parts = ClickHouseConfig::default();
    parts.host = "127.0.0.1".to_owned();
    parts.port = server.port();
    parts.user = server.user().to_owned();
    parts.password = Some(server.password().into());
    parts.database = server.database().to_owned();
    let mut nowhere = parts.clone();
    nowhere.database = "nowhere".to_owned();
    let mut wrong = parts.clone();
    wrong.user = "nobody".to_owned();
    let builder = || ResourcePool::builder().environment([("", ""); 0]);
    let port = server.port().to_string();
    let toml = server.dir().join("pool.toml");
    std::fs::write(&toml, format!("[clickhouse]\nurl = {:?}\n", server.url())).unwrap();
    let pools = [
        builder().resource(ClickHouseConfig::url(server.url())).build(),
        builder().resource(parts.clone()).build(),
        builder().resource(nowhere).build(),
        builder().resource(wrong).build(),
        builder().config_file(&toml).build(),
        ResourcePool::builder().environment([("CLICKHOUSE_URL", server.url())]).build(),
        ResourcePool::builder()
            .environment([
                ("CLICKHOUSE_HOST", "127.0.0.1"),
                ("CLICKHOUSE_PORT", &port),
                ("CLICKHOUSE_USER", server.user()),
                ("CLICKHOUSE_PASSWORD", server.password()),
            ])
            .build(),
    ];
    let mut shown = vec![format!("{parts:?}")];
    let mut connected = 0;
    for pool in pools {
        let pool = pool.unwrap();
        for (_, result) in pool.warm_up(["clickhouse"]).await {
            shown.extend(result.err().iter().flat_map(told));
        }
        match pool.clickhouse().await {
            Ok(lease) => {
                connected += 1;
                let client = Client::clone(&lease);
                shown.push(format!("{lease:?} {client:?}"));
                shown.push(client.query("SELEKT").execute().await.unwrap_err().to_string());
                let blocking = blocking::ResourcePool::from(pool.clone());
                let threads = blocking.clickhouse().unwrap();
                shown.push(format!("{:?}", *threads));
                shown.extend(told(&threads.execute("SELEKT").unwrap_err()));
                server.kill().unwrap();
                shown.extend(told(&threads.execute("SELECT 1").unwrap_err()));
                server.restart().unwrap();
            }
            Err(error) => shown.extend(told(&error)),
        }
        shown.push(format!("{pool:?} {:?} {}", pool.status(), pool.status()));
        shown.push(format!("{:?}", pool.health_check().await));
        let report = pool.close_all().await;
        shown.push(format!("{report} {report:?}"));
    }
    assert_eq!(connected, 5);
    shown.push(log.text());
    let encoded = server.url().split([':', '@']).nth(2).unwrap();
    for text in &shown {
        assert!(!text.contains(server.password()), "{text}");
        assert!(!text.contains(encoded), "{text}");
    }
    let log = shown.last().unwrap();
    assert!(log.contains("TRACE") && log.contains("connected") && log.contains("warming up"), "{log}");
}

fn told(error: &resource_pool::Error) -> Vec<String> {
    let mut told = vec![format!("{error} {error:?} {error:#?}")];
    let mut cause = error.source();
    while let Some(error) = cause {
        told.push(format!("{error} {error:?}"));
        cause = error.source();
    }
    told
}
