//! PostgreSQL: its user, its server side, and every way to end it.

#![allow(missing_docs)]

use services::{Kind, Service, shared};
use std::time::{Duration, Instant};

#[test]
fn a_user_connects_and_the_server_side_shows_it() {
    let server = shared(Kind::Postgres);
    assert!(server.version().unwrap().starts_with(|digit: char| digit.is_ascii_digit()));
    assert_eq!(server.postgres().unwrap().query("SELECT 1, 'two'").unwrap(), "1|two");
    assert_eq!(server.postgres().unwrap().query("SELECT current_database()").unwrap(), server.database());
    assert!(server.postgres().unwrap().query("SELECT nonsense").unwrap_err().to_string().contains("nonsense"));
}

#[test]
fn it_is_frozen_with_all_its_processes_and_keeps_what_was_written_when_it_is_killed() {
    let server = Service::start(Kind::Postgres).unwrap();
    let view = server.postgres().unwrap();
    view.query("CREATE TABLE bars AS SELECT 42 AS close").unwrap();
    server.freeze().unwrap();
    let began = Instant::now();
    assert!(view.query("SELECT 1").is_err() && began.elapsed() >= Duration::from_secs(4), "{:?}", began.elapsed());
    server.thaw().unwrap();
    server.await_ready(Duration::from_secs(20)).unwrap();
    server.restart().unwrap();
    assert_eq!(view.query("SELECT close FROM bars").unwrap(), "42");
    server.stop().unwrap();
    assert!(!server.is_running());
    server.restart().unwrap();
    assert_eq!(view.query("SELECT close FROM bars").unwrap(), "42");
}
