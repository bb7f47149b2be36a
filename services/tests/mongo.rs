//! A private MongoDB: started, frozen, killed, restarted.

use services::{Kind, MongoView, Service};
use std::time::{Duration, Instant};

#[test]
fn lives_freezes_dies_and_comes_back() {
    let began = Instant::now();
    let mongo = Service::start(Kind::Mongo).unwrap();
    println!("MongoDB ready after {:?}", began.elapsed());
    let view = mongo.mongo().unwrap();
    assert_eq!(view.clients().unwrap(), []);
    assert_eq!(settled(&view), 0);

    mongo.freeze().unwrap();
    assert!(view.connections().is_err(), "a frozen server must not answer");
    mongo.thaw().unwrap();
    assert_eq!(settled(&view), 0);

    let (port, pid) = (mongo.port(), mongo.pid());
    mongo.kill().unwrap();
    assert!(view.connections().is_err());
    let began = Instant::now();
    mongo.restart().unwrap();
    println!("MongoDB ready again after {:?}", began.elapsed());
    assert_eq!(mongo.port(), port);
    assert_ne!(mongo.pid(), pid);
    // The log-in shows that the user, who was made at the first start, is still there.
    assert_eq!(settled(&view), 0);
}

/// The server notices the end of our last connection a moment later.
fn settled(view: &MongoView<'_>) -> usize {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let count = view.connections().unwrap();
        if count == 0 || Instant::now() > end {
            return count;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
