//! Acquire and drop of a shared lease that is ready, beside the pools that users know.
//!
//! The peers hand out a connection that does nothing. Our lease is of a real server and records its call site, time and
//! count, because a lease always does.

use std::hint::black_box;
use std::time::Duration;

use futures_util::FutureExt;
use resource_pool::config::{ClickHouseConfig, MongoConfig, Options, RedisConfig};
use resource_pool::{ResourcePool, blocking};
use services::Kind;
use tokio::runtime::Runtime;
use tracing_subscriber::filter::LevelFilter;

use crate::duel::{Duel, Unit};
use crate::peers::{self, CONNECTIONS, Nothing};
use crate::session::{Session, cpu, cpu_of_tasks, cpu_of_threads};

pub(crate) fn run(session: &Session) {
    let (redis, mongo) = (session.server(Kind::Redis), session.server(Kind::Mongo));
    let clickhouse = session.server(Kind::ClickHouse);
    let pool = ResourcePool::builder()
        .environment([("", ""); 0])
        .resource(RedisConfig::url(redis.url()))
        .resource(MongoConfig::uri(mongo.url()))
        .resource(ClickHouseConfig::url(clickhouse.url()))
        .build()
        .expect("a pool");
    let runtime = Runtime::new().expect("a runtime");
    let warm = pool.warm_up(["redis", "mongo", "clickhouse"]);
    assert!(runtime.block_on(warm).iter().all(|(_, outcome)| outcome.is_ok()));
    ready(session, &pool, &runtime);
    watched(session, &runtime, redis.url());
    assert!(runtime.block_on(pool.close_all()).all_closed());
}

fn ready(session: &Session, pool: &ResourcePool, runtime: &Runtime) {
    let count = session.times(50_000);
    let threads = blocking::ResourcePool::from(pool.clone());
    let r2d2 = peers::r2d2(CONNECTIONS, CONNECTIONS, Nothing::default());
    let deadpool = peers::deadpool(CONNECTIONS, Nothing::default());
    let bb8 = peers::bb8(runtime, CONNECTIONS, Nothing::default());
    let mobc = peers::mobc(CONNECTIONS, Nothing::default());
    let thread = || drop(black_box(threads.mongo().expect("ready")));
    let mongo = || async { drop(black_box(pool.mongo().await.expect("ready"))) };
    let clickhouse = || async { drop(black_box(pool.clickhouse().await.expect("ready"))) };
    let redis = || async { drop(black_box(pool.redis().await.expect("ready"))) };
    let r2d2 = || drop(black_box(r2d2.get().expect("ready")));
    let deadpool = || async { drop(black_box(deadpool.get().await.expect("ready"))) };
    let bb8 = || async { drop(black_box(bb8.get().await.expect("ready"))) };
    let mobc = || async { drop(black_box(mobc.get().await.expect("ready"))) };

    let mut duel = Duel::new("lease", "a shared lease, acquired and dropped", Unit::CpuNanoseconds)
        .contestant("resource_pool, threads", || cpu(count, thread))
        .contestant("resource_pool, MongoDB", || cpu_of_tasks(1, count, mongo))
        .contestant("resource_pool, ClickHouse", || cpu_of_tasks(1, count, clickhouse))
        .contestant("resource_pool, Redis", || cpu_of_tasks(1, count, redis))
        .contestant("r2d2, threads", || cpu(count, r2d2))
        .contestant("deadpool", || cpu_of_tasks(1, count, deadpool))
        .contestant("bb8", || cpu_of_tasks(1, count, bb8))
        .contestant("mobc", || cpu_of_tasks(1, (count / 5).max(1), mobc))
        .at_most("resource_pool, threads", 40.0, 20.0)
        .times_faster_than_all("resource_pool, threads", 3.0, 6.0);
    for ours in ["resource_pool, MongoDB", "resource_pool, ClickHouse", "resource_pool, Redis"] {
        duel = duel.at_most(ours, 55.0, 30.0).times_faster_than_all(ours, 3.0, 6.0);
    }
    duel.run(session);

    let what = "a shared lease for threads, by 1, 2, 4 and 16 of them at once";
    Duel::new("lease_threads", what, Unit::CpuNanoseconds)
        .crowds("resource_pool", |crowd| cpu_of_threads(crowd, count / crowd, thread))
        .crowds("r2d2", |crowd| cpu_of_threads(crowd, count / crowd, r2d2))
        .at_most_times("resource_pool, 2", "resource_pool, 1", 1.3, 1.05)
        .run(session);

    let what = "a shared lease for tasks, by 1, 2, 4 and 16 of them at once, each on a thread of its own";
    Duel::new("lease_tasks", what, Unit::CpuNanoseconds)
        .crowds("resource_pool", |crowd| cpu_of_tasks(crowd, count / crowd, redis))
        .crowds("deadpool", |crowd| cpu_of_tasks(crowd, count / crowd, deadpool))
        .crowds("bb8", |crowd| cpu_of_tasks(crowd, count / crowd, bb8))
        .crowds("mobc", |crowd| cpu_of_tasks(crowd, (count / crowd / 5).max(1), mobc))
        .at_most_times("resource_pool, 2", "resource_pool, 1", 1.3, 1.05)
        .run(session);
}

/// Compares leases with and without the probe and the leak detection.
fn watched(session: &Session, runtime: &Runtime, url: &str) {
    let count = session.times(100_000);
    let options = |probed: bool, tracked: bool, leases_too: bool| {
        let mut options = Options::default();
        options.probe.enabled = probed;
        options.leaks.age = if tracked { options.leaks.age } else { Duration::ZERO };
        options.leaks.shared = leases_too;
        options
    };
    let pool = |options: Options| {
        let builder = ResourcePool::builder().environment([("", ""); 0]).options(options);
        let pool = builder.resource(RedisConfig::url(url)).build().expect("a pool");
        drop(runtime.block_on(pool.redis()).expect("redis"));
        pool
    };
    let unwatched = pool(options(false, false, false));
    let probed = pool(options(true, false, false));
    let tracked = pool(options(false, true, false));
    let all = pool(options(true, true, false));
    let leases = pool(options(true, true, true));
    let lease = |pool: &ResourcePool| {
        cpu(count, || drop(black_box(pool.redis().now_or_never().expect("ready").expect("ready"))))
    };
    let traced = |pool: &ResourcePool| {
        let subscriber = tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_writer(std::io::sink);
        tracing::subscriber::with_default(subscriber.finish(), || lease(pool))
    };
    let (all_on, leases_too) = ("resource_pool, all three", "resource_pool, all three, and leases too");
    Duel::new("lease_watched", "a shared lease for tasks, looked after in several ways", Unit::CpuNanoseconds)
        .contestant("resource_pool, nothing on", || lease(&unwatched))
        .contestant("resource_pool, probes", || lease(&probed))
        .contestant("resource_pool, leak tracking", || lease(&tracked))
        .contestant("resource_pool, a tracing subscriber", || traced(&unwatched))
        .contestant(all_on, || traced(&all))
        .contestant(leases_too, || traced(&leases))
        .adds_at_most(all_on, "resource_pool, nothing on", 5.0, 0.0)
        .adds_at_most(leases_too, "resource_pool, nothing on", 5.0, 0.0)
        .because("each lease is written down with its task or thread, which is why this is off unless asked for")
        .note("Leak tracking watches checkouts; with `leaks.shared` it watches leases too.")
        .run(session);
    for pool in [unwatched, probed, tracked, all, leases] {
        assert!(runtime.block_on(pool.close_all()).all_closed());
    }
}
