//! Counts the instructions of the paths that every use of a pool goes through, warm. Callgrind counts them, so the
//! machine's other work does not change the result.
//!
//! `cargo xtask hot` compares the counts with `instructions.json` beside this file.

#![allow(missing_docs, reason = "the harness makes items of its own")]

use std::hint::black_box;

use futures_util::FutureExt;
use gungraun::{LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use resource_pool::config::RedisConfig;
use resource_pool::{RedisResource, ResourcePool, blocking};
use services::{Kind, Service};

/// A pool with a ready Redis. Each path below has run on it once.
struct Warm {
    threads: blocking::ResourcePool,
    tasks: ResourcePool,
    times: usize,
    _server: Service,
}

impl Warm {
    fn new(times: usize) -> Self {
        let server = Service::start(Kind::Redis).expect("a server");
        let builder = blocking::ResourcePool::builder().environment([("", ""); 0]);
        let threads = builder.resource(RedisConfig::url(server.url())).build().expect("a pool");
        drop(threads.redis().expect("redis"));
        let warm = Warm { tasks: threads.as_async(), threads, times, _server: server };
        warm.lease_for_a_task();
        warm.lease_by_name();
        warm.checkout();
        warm
    }

    fn lease_for_a_task(&self) {
        drop(black_box(self.tasks.redis().now_or_never().expect("ready").expect("redis")));
    }

    fn lease_by_name(&self) {
        drop(black_box(self.threads.get::<RedisResource>("redis").expect("redis")));
    }

    fn checkout(&self) {
        drop(black_box(self.threads.redis().expect("redis")));
    }
}

// A benchmark returns its argument, so that the drop is outside of the count.

#[library_benchmark]
#[bench::warm(args = (1000), setup = Warm::new)]
fn lease_for_a_task(warm: Warm) -> Warm {
    (0..warm.times).for_each(|_| warm.lease_for_a_task());
    warm
}

#[library_benchmark]
#[bench::warm(args = (1000), setup = Warm::new)]
fn lease_by_name(warm: Warm) -> Warm {
    (0..warm.times).for_each(|_| warm.lease_by_name());
    warm
}

#[library_benchmark]
#[bench::warm(args = (1000), setup = Warm::new)]
fn checkout(warm: Warm) -> Warm {
    (0..warm.times).for_each(|_| warm.checkout());
    warm
}

library_benchmark_group!(name = hot, benchmarks = [lease_for_a_task, lease_by_name, checkout]);
main!(
    // The harness clears the environment, and the test server is found by `PATH`.
    config = LibraryBenchmarkConfig::default().pass_through_env("PATH"),
    library_benchmark_groups = hot
);
