//! Acquire and drop of what is ready: a shared lease, beside the pools that everyone uses.
//!
//! The peers hand out a connection that does nothing; the lease is of a real Redis and a real
//! MongoDB, with its call site, time and count, since without them it would be no lease.

#![allow(missing_docs, reason = "the harness makes functions of its own")]

use std::convert::Infallible;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::FutureExt;
use resource_pool::config::{MongoConfig, RedisConfig};
use resource_pool::{ResourcePool, blocking};
use services::{Kind, Service};

struct Nothing;

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

fn acquire_and_drop(criterion: &mut Criterion) {
    let servers = Service::start_all(&[Kind::Redis, Kind::Mongo]).expect("servers");
    let pool = ResourcePool::builder()
        .environment([("", ""); 0])
        .resource(RedisConfig::url(servers[0].url()))
        .resource(MongoConfig::uri(servers[1].url()))
        .build()
        .expect("a pool");
    let threads = blocking::ResourcePool::from(pool.clone());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    drop(runtime.block_on(pool.redis()).expect("redis"));
    drop(threads.mongo().expect("mongo"));
    let r2d2 = r2d2::Pool::builder().max_size(16).build(Nothing).expect("r2d2");
    let deadpool = deadpool::managed::Pool::<Nothing>::builder(Nothing).max_size(16).build().expect("deadpool");

    let mut group = criterion.benchmark_group("acquire and drop");
    group.bench_function("resource_pool, blocking", |bencher| {
        bencher.iter(|| black_box(threads.mongo().expect("ready")))
    });
    group.bench_function("r2d2", |bencher| bencher.iter(|| black_box(r2d2.get().expect("ready"))));
    group.bench_function("resource_pool, async", |bencher| {
        bencher.iter(|| black_box(pool.redis().now_or_never().expect("ready").expect("ready")));
    });
    group.bench_function("deadpool", |bencher| {
        bencher.iter(|| black_box(deadpool.get().now_or_never().expect("ready").expect("ready")));
    });
    group.finish();
    assert!(runtime.block_on(pool.close_all()).all_closed());
}

criterion_group!(benches, acquire_and_drop);
criterion_main!(benches);
