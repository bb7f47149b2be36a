//! Leasing a ready resource allocates nothing.

#![cfg(all(feature = "mongodb", feature = "clickhouse", feature = "redis"))]
#![allow(missing_docs)]

use std::fmt::Debug;
use std::hint::black_box;

use allocation_counter::measure;
use futures_util::FutureExt;
use resource_pool::config::{ClickHouseConfig, MongoConfig, RedisConfig};
use resource_pool::{ResourcePool, blocking};
use services::{Kind, shared};

const TIMES: usize = 1000;

/// The number of allocations of this thread for so many leases.
fn allocated<T, E: Debug>(lease: impl Fn() -> Result<T, E>) -> u64 {
    measure(|| (0..TIMES).for_each(|_| drop(black_box(lease().expect("ready"))))).count_total
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_of_what_is_ready_allocates_nothing() {
    let pool = ResourcePool::builder()
        .environment([("", ""); 0])
        .resource(RedisConfig::url(shared(Kind::Redis).url()))
        .resource(MongoConfig::uri(shared(Kind::Mongo).url()))
        .resource(ClickHouseConfig::url(shared(Kind::ClickHouse).url()))
        .build()
        .unwrap();
    let threads = blocking::ResourcePool::from(pool.clone());
    // The first lease of a thread makes room for all that follow.
    drop((pool.mongo().await.unwrap(), pool.clickhouse().await.unwrap(), pool.redis().await.unwrap()));
    drop(threads.mongo().unwrap());
    assert_eq!(allocated(|| pool.mongo().now_or_never().expect("ready")), 0);
    assert_eq!(allocated(|| pool.clickhouse().now_or_never().expect("ready")), 0);
    assert_eq!(allocated(|| pool.redis().now_or_never().expect("ready")), 0);
    assert_eq!(allocated(|| threads.mongo()), 0);
    // The control allocates, and the allocations are counted.
    assert_eq!(allocated(|| Ok::<_, ()>(Box::new(1))), TIMES as u64);
    assert!(pool.close_all().await.all_closed());
}
