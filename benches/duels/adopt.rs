//! Times spawned tasks in programs that differ in one line: `#[resource_pool::main]` or `#[tokio::main]`.
//!
//! Each measurement is a process of its own, since a process has one `main`. The process runs the same number of
//! operations in 1, 16, 64 and 256 tasks, and prints the nanoseconds of each operation.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::env;
use std::time::Instant;

use deadpool_redis::redis::cmd;
use futures_util::future::join_all;
use resource_pool::ResourcePool;
use services::Kind;
use tokio::runtime::Runtime;

use crate::child;
use crate::drivers::Urls;
use crate::duel::{Duel, Unit};
use crate::operations::{Operation, bare, operation, ours, prepare};
use crate::session::Session;

const TASKS: [usize; 4] = [1, 16, 64, 256];
/// The variable with the number of operations.
const COUNT: &str = "RESOURCE_POOL_BENCH_COUNT";

/// The variable with the kind of server.
const KIND: &str = "RESOURCE_POOL_BENCH_KIND";

/// The kind of server that this process is to use.
fn of() -> Kind {
    let name = env::var(KIND).expect("a kind");
    Kind::ALL.into_iter().find(|kind| kind.url_variable() == name).expect("a known kind")
}

/// The figures of a program whose `main` has the attribute of the pool.
pub(crate) fn attribute(_: Urls) -> Vec<f64> {
    #[resource_pool::main]
    async fn program() -> Vec<f64> {
        in_tasks(of_pool(of()).await).await
    }
    program()
}

/// The figures of the same program on a runtime of its own.
pub(crate) fn elsewhere(_: Urls) -> Vec<f64> {
    #[tokio::main]
    async fn program() -> Vec<f64> {
        in_tasks(of_pool(of()).await).await
    }
    program()
}

/// The figures of the bare driver.
pub(crate) fn driver(urls: Urls) -> Vec<f64> {
    #[tokio::main]
    async fn program(urls: Urls) -> Vec<f64> {
        let operation = match of() {
            Kind::Mongo => bare::find_one(&urls.mongo).await,
            Kind::Redis => bare::get(&urls.redis).await,
            Kind::ClickHouse => bare::select(&urls.clickhouse).await,
            _ => bare::publish(&urls.rabbitmq).await,
        };
        in_tasks(operation).await
    }
    program(urls)
}

/// The figures of deadpool's pool for Redis.
pub(crate) fn deadpool(urls: Urls) -> Vec<f64> {
    #[tokio::main]
    async fn program(urls: Urls) -> Vec<f64> {
        let config = deadpool_redis::Config::from_url(urls.redis);
        let pool = config.create_pool(Some(deadpool_redis::Runtime::Tokio1)).expect("a pool");
        let get = operation(move || {
            let pool = pool.clone();
            async move {
                let mut connection = pool.get().await.expect("a connection");
                let price: String = cmd("GET").arg("price").query_async(&mut connection).await.expect("a price");
                assert_eq!(price, "101.25");
            }
        });
        in_tasks(get).await
    }
    program(urls)
}

async fn of_pool(of: Kind) -> Operation {
    let pool = ResourcePool::global().clone();
    match of {
        Kind::Mongo => ours::find_one(pool).await,
        Kind::Redis => ours::get(pool).await,
        Kind::ClickHouse => ours::select(pool).await,
        _ => ours::publish(pool).await,
    }
}

/// How many connections are opened at once before the clock runs. An HTTP server closes those that its queue has no
/// room for.
const AT_ONCE: usize = 16;

/// The nanoseconds that an operation takes, for each number of tasks.
async fn in_tasks(operation: Operation) -> Vec<f64> {
    let count: usize = env::var(COUNT).expect("a number of operations").parse().expect("a number");
    let mut figures = Vec::new();
    for tasks in TASKS {
        for width in (1..=tasks).step_by(AT_ONCE).chain([tasks]) {
            join_all((0..width).map(|_| operation())).await;
        }
        let each = (count / tasks).max(1);
        let before = Instant::now();
        let running: Vec<_> = (0..tasks)
            .map(|_| {
                let operation = operation.clone();
                tokio::spawn(async move {
                    for _ in 0..each {
                        operation().await;
                    }
                })
            })
            .collect();
        for task in running {
            task.await.expect("a task that ends");
        }
        figures.push(before.elapsed().as_nanos() as f64 / (each * tasks) as f64);
    }
    figures
}

pub(crate) fn run(session: &Session) {
    let urls = Urls::of(session);
    let [mongo, rabbitmq, redis] = [Kind::Mongo, Kind::RabbitMq, Kind::Redis].map(|kind| session.server(kind));
    Runtime::new().expect("a runtime").block_on(prepare(&mongo, &rabbitmq, &redis));
    for (of, id, what, count) in [
        (Kind::Redis, "redis", "Redis GET", 20_000),
        (Kind::Mongo, "mongodb", "MongoDB find_one", 10_000),
        (Kind::ClickHouse, "clickhouse", "ClickHouse SELECT 1", 2_000),
        (Kind::RabbitMq, "rabbitmq", "AMQP publish and confirm", 10_000),
    ] {
        duels(session, &urls, of, id, what, session.times(count));
    }
}

/// A row for each number of tasks. The rows tell of the same processes.
fn duels(session: &Session, urls: &Urls, of: Kind, id: &str, what: &str, count: usize) {
    let mut programs =
        vec![(OURS, "tasks under the attribute"), (DRIVER, "tasks of the driver"), (ELSEWHERE, "tasks elsewhere")];
    if of == Kind::Redis {
        programs.push(("deadpool-redis, #[tokio::main]", "tasks of deadpool"));
    }
    let later: Vec<_> = programs.iter().map(|_| RefCell::new([const { VecDeque::new() }; 3])).collect();
    let count = count.to_string();
    for (place, tasks) in TASKS.into_iter().enumerate() {
        let id: &'static str = Box::leak(format!("adopt_{id}_{tasks}").into_boxed_str());
        let mut duel = Duel::new(id, format!("{what}, in {tasks} spawned tasks"), Unit::Nanoseconds);
        for ((name, role), later) in programs.iter().zip(&later) {
            let count = count.as_str();
            duel = duel.contestant(*name, move || {
                if place > 0 {
                    return later.borrow_mut()[place - 1].pop_front().expect("as many rounds");
                }
                let figures = child::run_with(role, urls, &[(COUNT, count), (KIND, of.url_variable())]);
                for (later, figure) in later.borrow_mut().iter_mut().zip(&figures[1..]) {
                    later.push_back(*figure);
                }
                figures[0]
            });
        }
        duel.times_faster_than(OURS, DRIVER, 0.95, 1.0)
            .because("a lease for each operation, its count for closing, and what the kill switch and the limits need")
            .note("The programs differ in the attribute of `main`. Elsewhere means `#[tokio::main]`.")
            .run(session);
    }
}

const OURS: &str = "resource_pool, #[resource_pool::main]";
const DRIVER: &str = "the driver, #[tokio::main]";
const ELSEWHERE: &str = "resource_pool, #[tokio::main]";
