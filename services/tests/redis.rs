//! A private Redis: started, frozen, killed, restarted.

use services::{Kind, Service};
use std::time::{Duration, Instant};

/// Longer than a busy machine takes for anything here.
const SOON: Duration = Duration::from_secs(20);

/// Waits until the server lists so many clients. It notices an ended connection of the view's only after a while.
fn await_clients(expected: usize, count: impl Fn() -> usize) {
    let began = Instant::now();
    while count() != expected {
        assert!(began.elapsed() < SOON, "{} clients, not {expected}", count());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn lives_freezes_dies_and_comes_back() {
    let began = Instant::now();
    let redis = Service::start(Kind::Redis).unwrap();
    println!("Redis ready after {:?}", began.elapsed());
    let view = redis.redis().unwrap();
    assert_eq!(view.command(&["PING"]).unwrap(), "PONG");
    assert_eq!(view.command(&["SET", "key", "value"]).unwrap(), "OK");
    await_clients(0, || view.clients().unwrap().len());
    assert_eq!(redis.await_established(0, SOON).unwrap(), 0);
    let held = std::net::TcpStream::connect((redis.host(), redis.port())).unwrap();
    assert_eq!(redis.await_established(1, SOON).unwrap(), 1);
    await_clients(1, || view.clients().unwrap().len());
    drop(held);

    redis.freeze().unwrap();
    assert!(view.command(&["PING"]).is_err(), "a frozen server must not answer");
    redis.thaw().unwrap();
    assert_eq!(view.command(&["PING"]).unwrap(), "PONG");

    let (port, pid) = (redis.port(), redis.pid());
    redis.kill().unwrap();
    assert!(view.command(&["PING"]).is_err());
    assert_eq!(redis.pid(), None);
    redis.restart().unwrap();
    assert_eq!(redis.port(), port);
    assert_ne!(redis.pid(), pid);
    assert_eq!(view.command(&["GET", "key"]).unwrap(), "value");

    redis.stop().unwrap();
    let dir = redis.dir().to_path_buf();
    assert!(dir.exists());
    drop(redis);
    assert!(!dir.exists());
}

/// `fail_over_to` hands over to a server that has just become a replica, and back.
#[test]
fn hands_over_to_a_replica_and_back_at_once() {
    let [first, second] = [(); 2].map(|()| Service::start(Kind::Redis).unwrap());
    let role = |server: &Service| server.redis().unwrap().command(&["ROLE"]).unwrap();
    for _ in 0..5 {
        second.redis().unwrap().follow(&first).unwrap();
        for (from, to) in [(&first, &second), (&second, &first)] {
            from.redis().unwrap().fail_over_to(to).unwrap();
            assert!(role(to).contains("master") && role(from).contains("slave"));
        }
        second.redis().unwrap().promote().unwrap();
    }
}
