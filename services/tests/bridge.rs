//! Today's ClickHouse engine behind the bridge.

use services::{ClickHouseBridge, Kind};
use std::time::Instant;

#[test]
fn it_answers_dies_and_comes_back() {
    ClickHouseBridge::install().unwrap();
    let began = Instant::now();
    let bridge = ClickHouseBridge::start().unwrap();
    println!("the bridge is ready after {:?}", began.elapsed());
    assert_eq!(bridge.kind(), Kind::ClickHouse);
    let view = bridge.clickhouse().unwrap();
    let version = view.query("SELECT version()").unwrap();
    println!("version {version}");
    assert!(version.starts_with("26."));
    view.query("CREATE TABLE kept (n Int32) ENGINE = MergeTree ORDER BY n").unwrap();
    view.query("INSERT INTO kept VALUES (42)").unwrap();
    let error = view.query("SELECT * FROM nothing").unwrap_err().to_string();
    assert!(error.contains("404") && error.contains("UNKNOWN_TABLE"), "{error}");

    bridge.kill().unwrap();
    assert!(view.query("SELECT 1").is_err());
    bridge.restart().unwrap();
    assert_eq!(view.query("SELECT n FROM kept").unwrap(), "42\n");
    assert!(bridge.log().unwrap().contains("UNKNOWN_TABLE"));
}
