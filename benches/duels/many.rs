//! Measures pools of 1 to 1,000 named resources of mixed kinds. Each measurement is a process of its own.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::env;
use std::hint::black_box;
use std::thread;
use std::time::Instant;

use resource_pool::Health;
use resource_pool::blocking::ResourcePool;
use resource_pool::config::{ClickHouseConfig, MongoConfig, RabbitMqConfig, RedisConfig, ResourceConfig};

use crate::child;
use crate::drivers::Urls;
use crate::duel::{Duel, Unit};
use crate::footprint::{SETTLED, figures};
use crate::session::{Session, clock};

/// The numbers of resources. Each is ten times the one before.
const SIZES: [usize; 4] = [1, 10, 100, 1000];
/// The variable with the number of resources.
const COUNT: &str = "RESOURCE_POOL_BENCH_COUNT";
/// How many are connected at once. The servers share the cores with the pool, and each connect has a limit.
const AT_ONCE: usize = 20;

/// The figures of a pool with so many resources: its own memory in MiB, threads, file descriptors, the milliseconds of
/// a health check, the nanoseconds of a status, and the milliseconds of a close.
pub(crate) fn pool(urls: Urls) -> Vec<f64> {
    let count: usize = env::var(COUNT).expect("a number of resources").parse().expect("a number");
    let names: Vec<_> = (0..count).map(|number| format!("resource-{number}")).collect();
    let mut builder = ResourcePool::builder().environment([("", ""); 0]);
    for (number, name) in names.iter().enumerate() {
        let config: ResourceConfig = match number % 4 {
            0 => RedisConfig::url(&*urls.redis).into(),
            1 => ClickHouseConfig::url(&*urls.clickhouse).into(),
            2 => MongoConfig::uri(&*urls.mongo).into(),
            _ => RabbitMqConfig::url(&*urls.rabbitmq).into(),
        };
        builder = builder.named(name, config);
    }
    let pool = builder.build().expect("a pool");
    for names in names.chunks(AT_ONCE) {
        for (name, ready) in pool.warm_up(names.iter().map(String::as_str)).expect("not in a task") {
            ready.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
    thread::sleep(SETTLED);
    let [memory, _, threads, descriptors] = figures();
    let before = Instant::now();
    let health = pool.health_check().expect("a report");
    let checked = before.elapsed().as_secs_f64() * 1e3;
    // An entry that was not asked in time says so.
    let health_of = |name: &String| health.entry(name).expect("an entry").health;
    assert!(names.iter().map(health_of).all(|health| health != Health::Fail), "{health}");
    let status = clock(10, || assert!(black_box(pool.status()).resources.len() >= count));
    let before = Instant::now();
    let report = pool.close_all().expect("a report");
    let closed = before.elapsed().as_secs_f64() * 1e3;
    assert!(report.all_closed() && report.steps.len() == count, "{report}");
    vec![memory, threads, descriptors, checked, status, closed]
}

pub(crate) fn run(session: &Session) {
    let urls = Urls::of(session);
    let sizes = if session.is_smoke() { &SIZES[..3] } else { &SIZES[..] };
    let name = |size: usize| format!("resource_pool, {size}");
    let later: Vec<_> = sizes.iter().map(|_| RefCell::new([const { VecDeque::new() }; 5])).collect();
    let rows = [
        ("many_memory", "memory of its own with so many resources, mixed of four kinds", Unit::Mebibytes),
        ("many_threads", "threads of the same", Unit::Count),
        ("many_descriptors", "file descriptors of the same", Unit::Count),
        ("many_health", "a health check of the same", Unit::Milliseconds),
        ("many_status", "the status of the same", Unit::Nanoseconds),
        ("many_close", "closing all of the same", Unit::Milliseconds),
    ];
    for (row, (id, what, unit)) in rows.into_iter().enumerate() {
        let mut duel = Duel::new(id, what, unit);
        for (size, later) in sizes.iter().zip(&later) {
            let urls = &urls;
            duel = duel.contestant(name(*size), move || {
                if row > 0 {
                    return later.borrow_mut()[row - 1].pop_front().expect("as many rounds");
                }
                let figures = child::run_with("many resources", urls, &[(COUNT, &size.to_string())]);
                for (later, figure) in later.borrow_mut().iter_mut().zip(&figures[1..]) {
                    later.push_back(*figure);
                }
                figures[0]
            });
        }
        // One resource is of one kind, so that it is no measure for the others.
        for (less, more) in sizes[1..].iter().zip(&sizes[2..]) {
            duel = duel.at_most_times(&name(*more), &name(*less), 10.0, None);
        }
        if id == "many_health" {
            duel = sizes.iter().fold(duel, |duel, size| duel.at_most(&name(*size), 800.0, None));
        }
        duel.note("A quarter each are MongoDB, RabbitMQ, ClickHouse and Redis, all ready and idle. The servers share the cores.")
            .run(session);
    }
}
