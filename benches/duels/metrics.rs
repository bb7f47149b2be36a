//! Times the operations of a pool whose metrics are on beside those of a pool without metrics.

use std::hint::black_box;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use resource_pool::metrics::Metrics;
use resource_pool::{ResourcePool, blocking};
use services::Kind;
use tokio::runtime::Runtime;

use crate::drivers::Urls;
use crate::duel::{Duel, Unit};
use crate::operations::{Operation, ours, prepare, repeated};
use crate::session::{Session, cpu};

const WITHOUT: &str = "resource_pool";
const WITH: &str = "resource_pool, metrics";
/// The share of the speed without metrics that is left with them.
const LEFT: f64 = 0.97;

pub(crate) fn run(session: &Session) {
    let (mongo, rabbitmq, redis) =
        (session.server(Kind::Mongo), session.server(Kind::RabbitMq), session.server(Kind::Redis));
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(prepare(&mongo, &rabbitmq, &redis));
    let urls = Urls::of(session);
    let builder = PrometheusBuilder::new().set_buckets(&Metrics::BUCKETS).expect("bounds");
    let recorder = builder.install_recorder().expect("the only recorder of this process");
    let [without, with] = [(); 2].map(|()| ours::pool(&urls, Some(&runtime)));
    Metrics::install(&with).expect("the first of its pool");
    let pools = Pools { without, with, recorder, runtime };
    pools.duel(session, "metrics_mongodb", "MongoDB find_one", ours::find_one);
    pools.duel(session, "metrics_redis", "Redis GET", ours::get);
    pools.duel(session, "metrics_clickhouse", "ClickHouse SELECT 1", ours::select);
    pools.duel(session, "metrics_rabbitmq", "AMQP publish and confirm", ours::publish);
    pools.threads(session);
    let Pools { without, with, runtime, .. } = pools;
    for pool in [without, with] {
        assert!(runtime.block_on(pool.close_all()).all_closed());
    }
}

struct Pools {
    without: ResourcePool,
    with: ResourcePool,
    recorder: PrometheusHandle,
    /// The runtime of both pools.
    runtime: Runtime,
}

impl Pools {
    fn duel<F: Future<Output = Operation>>(
        &self,
        session: &Session,
        id: &'static str,
        what: &str,
        operation: impl Fn(ResourcePool) -> F,
    ) {
        let count = session.times(1000);
        let operations = [&self.without, &self.with].map(|pool| self.runtime.block_on(operation(pool.clone())));
        let [without, with] = operations.map(|operation| {
            move || {
                // The recorder keeps each value until it is asked. A program is scraped, so the keeping is bounded.
                self.recorder.run_upkeep();
                let repeated = self.runtime.spawn(repeated(operation.clone(), count));
                self.runtime.block_on(repeated).expect("a task that ends")
            }
        });
        Duel::new(id, what, Unit::Nanoseconds)
            .contestant(WITHOUT, without)
            .contestant(WITH, with)
            .times_faster_than(WITH, WITHOUT, LEFT, 1.0)
            .run(session);
    }

    /// Times a lease and a checkout by a thread, which take no round trip. A checkout is measured, and a lease is not.
    fn threads(&self, session: &Session) {
        let count = session.times(50_000);
        let pools = [&self.without, &self.with].map(|pool| blocking::ResourcePool::from(pool.clone()));
        let [lease_without, lease_with] =
            pools.each_ref().map(|pool| move || cpu(count, || drop(black_box(pool.mongo().expect("ready")))));
        Duel::new("metrics_lease", "a shared lease, acquired and dropped", Unit::CpuNanoseconds)
            .contestant(WITHOUT, lease_without)
            .contestant(WITH, lease_with)
            .times_faster_than(WITH, WITHOUT, LEFT, 1.0)
            .run(session);
        let [checkout_without, checkout_with] = pools.each_ref().map(|pool| {
            move || {
                self.recorder.run_upkeep();
                cpu(count, || drop(black_box(pool.redis().expect("ready"))))
            }
        });
        Duel::new("metrics_checkout", "a connection to Redis checked out and given back", Unit::CpuNanoseconds)
            .contestant(WITHOUT, checkout_without)
            .contestant(WITH, checkout_with)
            .times_faster_than(WITH, WITHOUT, LEFT, 1.0)
            .run(session);
    }
}
