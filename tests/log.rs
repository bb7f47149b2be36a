//! With the feature `log`, the pool's lines reach a logger of the crate `log`, for programs without `tracing`.

#![cfg(feature = "log")]
#![allow(missing_docs)]

use parking_lot::Mutex;
use resource_pool::blocking::ResourcePool;

/// Keeps each line with its level and target.
struct Lines(Mutex<Vec<String>>);

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().push(format!("{} {} {}", record.level(), record.target(), record.args()));
    }

    fn flush(&self) {}
}

static LINES: Lines = Lines(Mutex::new(Vec::new()));

#[test]
fn the_pools_lines_reach_a_logger() {
    log::set_logger(&LINES).unwrap();
    log::set_max_level(log::LevelFilter::Error);
    let pool = ResourcePool::builder().environment([("", ""); 0]).build().unwrap();
    let thread = pool.spawn_thread("unlucky", |_| panic!("as the test asked")).unwrap();
    assert!(thread.join().is_err());
    assert!(pool.close_all().unwrap().all_closed());
    let lines = LINES.0.lock();
    let told = |line: &String| {
        line.starts_with("ERROR resource_pool")
            && line.contains("a background task panicked")
            && line.contains("unlucky")
    };
    assert_eq!(lines.iter().filter(|line| told(line)).count(), 1, "{lines:?}");
}
