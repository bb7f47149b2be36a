//! Acquire and drop of what is ready: a shared lease, beside the pools that everyone uses.
//!
//! The peers hand out a connection that does nothing; the lease is of a real Redis and a real
//! MongoDB, with its call site, time and count, since without them it would be no lease.

use std::convert::Infallible;
use std::hint::black_box;

use futures_util::FutureExt;
use resource_pool::config::{MongoConfig, RedisConfig};
use resource_pool::{ResourcePool, blocking};
use services::Kind;

use crate::duel::{Duel, Unit};
use crate::session::{Session, cpu, cpu_of_threads};

pub(crate) struct Nothing;

impl r2d2::ManageConnection for Nothing {
    type Connection = ();
    type Error = Infallible;

    fn connect(&self) -> Result<(), Infallible> {
        Ok(())
    }

    fn is_valid(&self, (): &mut ()) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, (): &mut ()) -> bool {
        false
    }
}

impl deadpool::managed::Manager for Nothing {
    type Type = ();
    type Error = Infallible;

    async fn create(&self) -> Result<(), Infallible> {
        Ok(())
    }

    async fn recycle(
        &self,
        (): &mut (),
        _: &deadpool::managed::Metrics,
    ) -> deadpool::managed::RecycleResult<Infallible> {
        Ok(())
    }
}

pub(crate) fn run(session: &Session) {
    let (redis, mongo) = (session.server(Kind::Redis), session.server(Kind::Mongo));
    let pool = ResourcePool::builder()
        .environment([("", ""); 0])
        .resource(RedisConfig::url(redis.url()))
        .resource(MongoConfig::uri(mongo.url()))
        .build()
        .expect("a pool");
    let threads = blocking::ResourcePool::from(pool.clone());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    drop(runtime.block_on(pool.redis()).expect("redis"));
    drop(threads.mongo().expect("mongo"));
    let r2d2 = r2d2::Pool::builder().max_size(16).build(Nothing).expect("r2d2");
    let deadpool = deadpool::managed::Pool::<Nothing>::builder(Nothing).max_size(16).build().expect("deadpool");
    let count = session.times(100_000);
    Duel::new("lease_blocking", "a shared lease for threads, acquired and dropped", Unit::CpuNanoseconds)
        .contestant("resource_pool", || cpu(count, || drop(black_box(threads.mongo().expect("ready")))))
        .contestant("r2d2", || cpu(count, || drop(black_box(r2d2.get().expect("ready")))))
        .at_most("resource_pool", 40.0, 20.0)
        .times_faster_than_all("resource_pool", 3.0, 6.0)
        .run(session);
    Duel::new("lease_async", "a shared lease for tasks, acquired and dropped", Unit::CpuNanoseconds)
        .contestant("resource_pool", || {
            cpu(count, || drop(black_box(pool.redis().now_or_never().expect("ready").expect("ready"))))
        })
        .contestant("deadpool", || {
            cpu(count, || drop(black_box(deadpool.get().now_or_never().expect("ready").expect("ready"))))
        })
        .at_most("resource_pool", 55.0, 30.0)
        .times_faster_than_all("resource_pool", 3.0, 6.0)
        .run(session);
    let mut duel =
        Duel::new("lease_threads", "the same from several threads at once, each as often", Unit::CpuNanoseconds);
    for number in [1, 2, 4, 16] {
        let lease = || drop(black_box(threads.mongo().expect("ready")));
        duel = duel.contestant(format!("resource_pool, {number}"), move || cpu_of_threads(number, count, lease));
    }
    for number in [1, 2] {
        let get = || drop(black_box(r2d2.get().expect("ready")));
        duel = duel.contestant(format!("r2d2, {number}"), move || cpu_of_threads(number, count, get));
    }
    duel.at_most_times("resource_pool, 2", "resource_pool, 1", 1.3, 1.05).run(session);
    assert!(runtime.block_on(pool.close_all()).all_closed());
}
