//! Chroma: its heartbeat, and every way to end it.

#![allow(missing_docs)]

use services::{Kind, Service};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// The answer to a request without a body.
fn ask(server: &Service, line: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((server.host(), server.port()))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(stream, "{line} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn it_answers_freezes_dies_and_comes_back() {
    let server = Service::start(Kind::Chroma).unwrap();
    let count = "GET /api/v2/tenants/default_tenant/databases/default_database/collections_count";
    assert!(ask(&server, count).unwrap().ends_with("\r\n\r\n0"));
    server.freeze().unwrap();
    assert!(ask(&server, count).is_err());
    server.thaw().unwrap();
    server.await_ready(Duration::from_secs(20)).unwrap();
    server.kill().unwrap();
    assert!(ask(&server, count).is_err() && !server.is_running());
    server.restart().unwrap();
    assert!(ask(&server, count).unwrap().ends_with("\r\n\r\n0"));
    server.stop().unwrap();
    assert!(!server.is_running());
}
