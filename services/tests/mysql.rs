//! MariaDB: its user, its server side, and every way to end it.

#![allow(missing_docs)]

use services::{Kind, Service, shared};
use std::time::{Duration, Instant};

#[test]
fn a_user_connects_and_the_server_side_shows_it() {
    let server = shared(Kind::MySql);
    assert!(server.version().unwrap().contains("MariaDB"));
    assert_eq!(server.mysql().unwrap().query("SELECT 1, 'two'").unwrap(), "1\ttwo");
    assert_eq!(server.mysql().unwrap().query("SELECT database()").unwrap(), server.database());
    assert!(server.mysql().unwrap().query("SELECT nonsense").unwrap_err().to_string().contains("nonsense"));
    assert_eq!(server.mysql().unwrap().connections().unwrap(), []);
}

#[test]
fn it_is_frozen_with_all_its_threads_and_keeps_what_was_written_when_it_is_killed() {
    let server = Service::start(Kind::MySql).unwrap();
    let view = server.mysql().unwrap();
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

#[test]
fn its_user_has_as_much_room_as_it_is_given() {
    let server = Service::start(Kind::MySql).unwrap();
    let view = server.mysql().unwrap();
    let connects = || server.await_ready(Duration::ZERO);
    view.room_for(Some(0)).unwrap();
    assert!(connects().unwrap_err().to_string().contains("max_user_connections"));
    view.room_for(None).unwrap();
    connects().unwrap();
    view.may_log_in(false).unwrap();
    assert!(connects().unwrap_err().to_string().contains("locked"));
    view.may_log_in(true).unwrap();
    connects().unwrap();
}
