//! The compatible engine in the place of Elasticsearch: its server side, and every way to end it.

#![allow(missing_docs)]

use services::{Kind, Service, shared};
use std::time::{Duration, Instant};

#[test]
fn it_answers_as_opensearch_does() {
    let server = shared(Kind::Elastic);
    assert_eq!(server.version().unwrap(), "3.8.0", "the version that osmem 0.1.6 claims");
    assert!(server.elastic().unwrap().get("/_cluster/health").unwrap().contains("\"status\":\"green\""));
    assert!(server.elastic().unwrap().get("/nothing/_count").is_err());
    assert!(server.redis().is_err());
}

#[test]
fn it_is_frozen_killed_and_restarted_on_the_same_port() {
    let server = Service::start(Kind::Elastic).unwrap();
    let (view, port) = (server.elastic().unwrap(), server.port());
    server.freeze().unwrap();
    let began = Instant::now();
    assert!(view.get("/").is_err() && began.elapsed() >= Duration::from_secs(4), "{:?}", began.elapsed());
    server.thaw().unwrap();
    server.await_ready(Duration::from_secs(20)).unwrap();
    server.kill().unwrap();
    assert!(!server.is_running() && view.get("/").is_err());
    server.restart().unwrap();
    assert_eq!(server.port(), port);
    view.get("/").unwrap();
    server.stop().unwrap();
    assert!(!server.is_running());
}
