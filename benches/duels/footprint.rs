//! Measures the memory, threads and file descriptors of an idle pool.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs;
use std::thread;
use std::time::Duration;

use resource_pool::blocking::ResourcePool;
use resource_pool::config::MongoConfig;
use tokio::runtime::Runtime;

use crate::child;
use crate::drivers::{self, Urls};
use crate::duel::{Duel, Unit};
use crate::session::Session;

/// The wait until an idle pool has everything open. The probes' connections come half a second after the others.
pub(crate) const SETTLED: Duration = Duration::from_secs(2);

/// The figures of a program without a runtime of its own, where the global pool has its four backends ready.
pub(crate) fn idle_pool(_: Urls) -> Vec<f64> {
    let pool = ResourcePool::global();
    for (name, ready) in pool.warm_up(["mongo", "rabbitmq", "clickhouse", "redis"]).expect("not in a task") {
        ready.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    thread::sleep(SETTLED);
    let figures = figures().to_vec();
    assert!(pool.close_all().expect("a report").all_closed());
    figures
}

/// The figures of a program with the four drivers on one runtime. Their sizes are configured like the pool's.
pub(crate) fn idle_drivers(urls: Urls) -> Vec<f64> {
    let runtime = Runtime::new().expect("a runtime");
    let connected = runtime.block_on(async {
        tokio::join!(
            drivers::mongo(&urls.mongo),
            drivers::rabbitmq(&urls.rabbitmq),
            drivers::clickhouse_connected(&urls.clickhouse),
            drivers::redis(&urls.redis),
        )
    });
    thread::sleep(SETTLED);
    let figures = figures().to_vec();
    drop(connected);
    figures
}

/// The figures of this process now: its own memory in MiB, the pages of the program's file in MiB, threads, and file
/// descriptors.
pub(crate) fn figures() -> [f64; 4] {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
        line.split_whitespace().next().and_then(|number| number.parse::<f64>().ok()).expect("a number")
    };
    // The reading itself takes one descriptor.
    let descriptors = fs::read_dir("/proc/self/fd").expect("Linux").count() - 1;
    [field("RssAnon:") / 1024.0, field("RssFile:") / 1024.0, field("Threads:"), descriptors as f64]
}

pub(crate) fn run(session: &Session) {
    let urls = Urls::of(session);
    let mongo = MongoConfig::default();
    let alike = Urls {
        mongo: format!("{}&minPoolSize={}", urls.mongo, mongo.min_pool_size),
        // The broker's own frame size. Its buffers are zeroed memory that nothing has touched.
        rabbitmq: format!("{}?frame_max=131072", urls.rabbitmq),
        clickhouse: urls.clickhouse.clone(),
        redis: urls.redis.clone(),
    };
    let note = format!(
        "Each in a process of its own. The drivers are configured like the pool where that is about sizes: MongoDB keeps \
         {} connections, RabbitMQ's buffers are made for the broker's frames. What the pool has more is what probes, \
         closes and catches signals.",
        mongo.min_pool_size
    );
    // The four rows tell of the same processes.
    let later = [const { RefCell::new([VecDeque::new(), VecDeque::new()]) }; 3];
    let measure = |contestant: usize, role, urls| {
        let figures = child::run(role, urls);
        for (later, figure) in later.iter().zip(&figures[1..]) {
            later.borrow_mut()[contestant].push_back(*figure);
        }
        figures[0]
    };
    Duel::new("footprint_memory", "memory of its own, four backends ready and idle", Unit::Mebibytes)
        .contestant("resource_pool", || measure(0, "idle pool", &urls))
        .contestant("the four drivers", || measure(1, "idle drivers", &alike))
        .adds_at_most("resource_pool", "the four drivers", 2.0, 0.0)
        .note(&note)
        .run(session);
    let rows = [
        ("footprint_code", "pages of the program's file that the same have touched", Unit::Mebibytes, None),
        ("footprint_threads", "threads of the same", Unit::Count, Some(6.0)),
        ("footprint_descriptors", "file descriptors of the same", Unit::Count, Some(10.0)),
    ];
    for ((id, what, unit, must), later) in rows.into_iter().zip(later) {
        let [mut ours, mut theirs] = later.into_inner();
        let duel = Duel::new(id, what, unit)
            .contestant("resource_pool", || ours.pop_front().expect("as many rounds"))
            .contestant("the four drivers", || theirs.pop_front().expect("as many rounds"))
            .note(&note);
        // Pages of code belong to the page cache. Their number also depends on where the linker put the used code.
        let duel = match must {
            Some(must) => duel.adds_at_most("resource_pool", "the four drivers", must, 0.0),
            None => duel,
        };
        duel.run(session);
    }
}
