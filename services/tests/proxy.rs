//! The proxy in front of a Redis: cut, frozen, slowed down. And the black hole.

use services::{BlackHole, Kind, Proxy, shared};
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Longer than a busy machine takes for anything here.
const SOON: Duration = Duration::from_secs(20);

fn ask(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    stream.write_all(b"PING\r\n")?;
    hear(stream)
}

fn hear(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut answer = vec![0; 64];
    let count = stream.read(&mut answer)?;
    answer.truncate(count);
    Ok(answer)
}

/// Asks, and nothing comes.
fn assert_silent(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    assert_eq!(ask(stream).unwrap_err().kind(), ErrorKind::WouldBlock);
    stream.set_read_timeout(Some(SOON)).unwrap();
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

#[test]
fn it_forwards_freezes_thaws_and_cuts() {
    let redis = shared(Kind::Redis);
    let proxy = Proxy::start(redis.port()).unwrap();
    let mut client = connect(proxy.port());
    assert!(ask(&mut client).unwrap().starts_with(b"-NOAUTH"));
    assert_eq!((proxy.accepted(), proxy.open()), (1, 1));

    proxy.freeze();
    assert_silent(&mut client);
    let mut late = connect(proxy.port());
    assert_silent(&mut late);
    proxy.thaw();
    assert!(!hear(&mut client).unwrap().is_empty(), "what was held up comes through");
    assert!(!hear(&mut late).unwrap().is_empty());

    proxy.freeze();
    proxy.cut();
    assert_eq!(hear(&mut client).unwrap_err().kind(), ErrorKind::ConnectionReset);
    proxy.thaw();
    assert!(ask(&mut connect(proxy.port())).is_ok());
    assert_eq!(proxy.accepted(), 3);

    let mut last = connect(proxy.port());
    assert!(ask(&mut last).is_ok());
    drop(proxy);
    assert_eq!(hear(&mut last).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn it_closes_when_either_side_does() {
    let redis = shared(Kind::Redis);
    let proxy = Proxy::start(redis.port()).unwrap();
    let mut client = connect(proxy.port());
    client.write_all(b"QUIT\r\n").unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"+OK\r\n");
    drop(client);
    let end = Instant::now() + SOON;
    while proxy.open() > 0 {
        assert!(Instant::now() < end, "the connection is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn it_can_be_slow() {
    let redis = shared(Kind::Redis);
    let proxy = Proxy::start(redis.port()).unwrap();
    proxy.throttle(1000);
    let mut client = connect(proxy.port());
    let began = Instant::now();
    client.write_all(&[b'\n'; 500]).unwrap();
    assert!(ask(&mut client).unwrap().starts_with(b"-NOAUTH"));
    assert!(began.elapsed() > Duration::from_millis(400));
}

#[test]
fn a_black_hole_lets_nobody_in() {
    let hole = BlackHole::start().unwrap();
    let address = ([127, 0, 0, 1], hole.port()).into();
    let error = TcpStream::connect_timeout(&address, Duration::from_millis(1500)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

#[test]
fn it_refuses_and_is_a_black_hole_and_opens_up() {
    let redis = shared(Kind::Redis);
    let proxy = Proxy::start(redis.port()).unwrap();
    let mut client = connect(proxy.port());
    assert!(ask(&mut client).is_ok());

    proxy.refuse().unwrap();
    let refused = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert!(ask(&mut client).is_ok(), "what is open stays open");
    proxy.open_up().unwrap();
    assert!(ask(&mut connect(proxy.port())).is_ok());

    for times in 1..=2 {
        proxy.black_hole().unwrap();
        assert_silent(&mut client);
        let address = ([127, 0, 0, 1], proxy.port()).into();
        let silent = TcpStream::connect_timeout(&address, Duration::from_millis(300)).unwrap_err();
        assert_eq!(silent.kind(), ErrorKind::TimedOut);
        proxy.open_up().unwrap();
        assert!(!hear(&mut client).unwrap().is_empty(), "what was held up comes through");
        assert!(ask(&mut connect(proxy.port())).is_ok());
        assert_eq!(proxy.accepted(), 2 + times, "what filled the queue was no client");
    }
    proxy.black_hole().unwrap();
    drop(proxy);
}
