//! A private ClickHouse: started, frozen, killed, restarted.

use services::{Kind, Service};
use std::time::Instant;

#[test]
fn lives_freezes_dies_and_comes_back() {
    let began = Instant::now();
    let clickhouse = Service::start(Kind::ClickHouse).unwrap();
    println!("ClickHouse ready after {:?}", began.elapsed());
    let view = clickhouse.clickhouse().unwrap();
    println!("version {}", view.query("SELECT version()").unwrap());
    view.query("CREATE TABLE kept (n Int32) ENGINE = MergeTree ORDER BY n").unwrap();
    view.query("INSERT INTO kept VALUES (42)").unwrap();
    assert_eq!(view.running().unwrap(), [""; 0]);
    assert_ne!(view.native_port().unwrap(), clickhouse.port());
    assert!(view.query("SELEKT").is_err());

    clickhouse.freeze().unwrap();
    let held = std::net::TcpStream::connect((clickhouse.host(), clickhouse.port())).unwrap();
    assert!(clickhouse.established().unwrap() >= 1, "the kernel goes on accepting");
    drop(held);
    clickhouse.thaw().unwrap();
    assert_eq!(view.query("SELECT n FROM kept").unwrap(), "42\n");

    let (port, pid) = (clickhouse.port(), clickhouse.pid());
    clickhouse.kill().unwrap();
    assert!(view.query("SELECT 1").is_err());
    clickhouse.restart().unwrap();
    assert_eq!(clickhouse.port(), port);
    assert_ne!(clickhouse.pid(), pid);
    assert_eq!(view.query("SELECT n FROM kept").unwrap(), "42\n");
}
