//! Counts how often a lease allocates memory. This is a bench of its own, because counting would slow down the others.

#[allow(dead_code, reason = "the duels use all of it")]
#[path = "duels/duel.rs"]
mod duel;
#[allow(dead_code, reason = "the duels use all of it")]
#[path = "duels/peers.rs"]
mod peers;
#[allow(dead_code, reason = "the duels use all of it")]
#[path = "duels/session.rs"]
mod session;

use std::hint::black_box;

use allocation_counter::measure;
use duel::{Duel, Unit};
use futures_util::FutureExt;
use peers::{CONNECTIONS, Nothing};
use resource_pool::config::{ClickHouseConfig, MongoConfig, RedisConfig};
use resource_pool::{ResourcePool, blocking};
use services::Kind;
use session::Session;
use tokio::runtime::{Builder, Runtime};

fn main() {
    // Its place in the table is behind all duels.
    Session::from_args(std::env::args().skip(1)).part(1000, "allocations", "Allocations", run);
}

fn run(session: &Session) {
    let (redis, mongo) = (session.server(Kind::Redis), session.server(Kind::Mongo));
    let clickhouse = session.server(Kind::ClickHouse);
    let pool = ResourcePool::builder()
        .environment([("", ""); 0])
        .resource(RedisConfig::url(redis.url()))
        .resource(MongoConfig::uri(mongo.url()))
        .resource(ClickHouseConfig::url(clickhouse.url()))
        .build()
        .expect("a pool");
    let threads = blocking::ResourcePool::from(pool.clone());
    let r2d2 = peers::r2d2(CONNECTIONS, CONNECTIONS, Nothing::default());
    let count = session.times(10_000);
    let runtime = &Builder::new_current_thread().enable_all().build().expect("a runtime");
    let deadpool = peers::deadpool(CONNECTIONS, Nothing::default());
    let bb8 = peers::bb8(runtime, CONNECTIONS, Nothing::default());
    let mobc = peers::mobc(CONNECTIONS, Nothing::default());
    Duel::new(
        "allocations",
        "how often memory is allocated for a shared lease or a checkout, acquired and dropped",
        Unit::Count,
    )
    .contestant("resource_pool, threads", || for_threads(count, || drop(black_box(threads.mongo()))))
    .contestant("resource_pool, MongoDB", || for_tasks(runtime, count, || pool.mongo()))
    .contestant("resource_pool, ClickHouse", || for_tasks(runtime, count, || pool.clickhouse()))
    .contestant("resource_pool, Redis", || for_tasks(runtime, count, || pool.redis()))
    .contestant("resource_pool, a checkout of Redis", || for_threads(count, || drop(black_box(threads.redis()))))
    .contestant("r2d2", || for_threads(count, || drop(black_box(r2d2.get()))))
    .contestant("deadpool", || for_tasks(runtime, count, || deadpool.get()))
    .contestant("bb8", || for_tasks(runtime, count, || bb8.get()))
    .contestant("mobc", || for_tasks(runtime, count, || mobc.get()))
    .at_most("resource_pool, threads", 0.0, None)
    .at_most("resource_pool, MongoDB", 0.0, None)
    .at_most("resource_pool, ClickHouse", 0.0, None)
    .at_most("resource_pool, Redis", 0.0, None)
    .run(session);
    assert!(runtime.block_on(pool.close_all()).all_closed());
}

fn for_threads(count: usize, run: impl Fn()) -> f64 {
    run();
    measure(|| (0..count).for_each(|_| run())).count_total as f64 / count as f64
}

fn for_tasks<T, E: std::fmt::Debug, F: Future<Output = Result<T, E>>>(
    runtime: &Runtime,
    count: usize,
    get: impl Fn() -> F,
) -> f64 {
    runtime.block_on(async {
        drop(get().await.expect("connected"));
        let mut allocated = 0;
        for _ in 0..count {
            // Some pools take a connection back in a task of their own. The yield lets that task run.
            tokio::task::yield_now().await;
            let run = || drop(black_box(get().now_or_never().expect("ready").expect("ready")));
            allocated += measure(run).count_total;
        }
        allocated as f64 / count as f64
    })
}
