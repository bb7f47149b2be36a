//! The metrics of pools, as the exporter for Prometheus renders them, and the files that name them.

#![cfg(all(feature = "metrics", feature = "redis", feature = "rabbitmq"))]
#![allow(missing_docs)]

mod common;
#[path = "common/scripted.rs"]
mod scripted;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, OnceLock};
use std::thread;
use std::time::Duration;

use common::{Plain, Telling, Within, unhurried, until, until_async};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;
use redis::{AsyncCommands, Commands};
use resource_pool::config::{RabbitMqConfig, RedisConfig};
use resource_pool::metrics::Metrics;
use resource_pool::rabbitmq::{Consume, Message, Queue};
use resource_pool::{Error, Failure, Link, Resource, ResourcePool, Usage, blocking};
use scripted::{Does, Scripted, Verb};
use services::{Kind, Service};

/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(30);
const MONITORING: &str = include_str!("../docs/monitoring.md");
const ALERTS: &str = include_str!("../docs/monitoring/alerts.yml");
const DASHBOARD: &str = include_str!("../docs/monitoring/grafana.json");
const NAMES: &str = include_str!("../src/seen/metrics/names.rs");

/// The exporter of this process. The tests share it, so each has resources of names of its own.
fn exporter() -> &'static PrometheusHandle {
    static EXPORTER: OnceLock<PrometheusHandle> = OnceLock::new();
    EXPORTER
        .get_or_init(|| PrometheusBuilder::new().set_buckets(&Metrics::BUCKETS).unwrap().install_recorder().unwrap())
}

fn scrape(metrics: &Metrics) -> Scrape {
    metrics.observe();
    Scrape::of(&exporter().render())
}

/// The samples of one scrape.
struct Scrape {
    /// The type of each metric.
    types: BTreeMap<String, String>,
    /// The name, the labels and the value of each sample.
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
    text: String,
}

impl Scrape {
    fn of(text: &str) -> Scrape {
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            // No value of a label has a comma in these tests.
            let labels = labels.trim_end_matches('}').split(',').filter_map(|label| label.split_once('='));
            let labels = labels.map(|(label, value)| (label.to_owned(), value.trim_matches('"').to_owned()));
            (name.to_owned(), labels.collect(), value.parse().unwrap())
        });
        Scrape {
            types: types.map(|(name, sort)| (name.to_owned(), sort.to_owned())).collect(),
            samples: samples.collect(),
            text: text.to_owned(),
        }
    }

    /// The sum of the samples of this name that have these labels. `None` if there are none.
    fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |of: &BTreeMap<String, String>| {
            labels.iter().all(|(label, value)| of.get(*label).is_some_and(|has| has == value))
        };
        let mut found = self.samples.iter().filter(|sample| sample.0 == name && has(&sample.1)).peekable();
        found.peek()?;
        Some(found.map(|sample| sample.2).sum())
    }

    /// The same for one resource.
    fn of_pool(&self, pool: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.get(name, &[labels, &[("db_client_connection_pool_name", pool)]].concat())
    }

    /// The names that a query may use: a histogram has three.
    fn queried(&self) -> BTreeSet<String> {
        let of = |(name, sort): (&String, &String)| match sort.as_str() {
            "histogram" => ["_bucket", "_sum", "_count"].iter().map(|end| format!("{name}{end}")).collect(),
            _ => vec![name.clone()],
        };
        self.types.iter().flat_map(of).collect()
    }
}

fn pool_of(name: &str, config: RedisConfig) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).options(unhurried()).named(name, config).build().unwrap()
}

/// A Redis that is killed and comes back, as its metrics tell it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_and_the_return_are_told() {
    const NAME: &str = "cache";
    let server = Service::start(Kind::Redis).unwrap();
    exporter();
    let pool = pool_of(NAME, RedisConfig::url(server.url()));
    let metrics = Metrics::install(&pool).unwrap();
    let first = scrape(&metrics);
    assert!(!first.text.contains(&format!("\"{NAME}\"")), "it was never used: {}", first.text);

    let redis = pool.redis_named(NAME).await.unwrap();
    let () = redis.clone().set("key", 1).await.unwrap();
    let address = [("server_address", server.host()), ("server_port", &*server.port().to_string())];
    let of_redis = [&address[..], &[("db_system_name", "redis")]].concat();
    let ready = [&of_redis[..], &[("state", "ready")]].concat();
    until(SOON, || {
        let now = scrape(&metrics);
        now.of_pool(NAME, "resource_pool_connects", &of_redis) == Some(1.0)
            && now.of_pool(NAME, "resource_pool_reconnects", &of_redis) == Some(0.0)
            && now.of_pool(NAME, "resource_pool_state", &ready) == Some(1.0)
            && now.of_pool(NAME, "resource_pool_node_up", &address) == Some(1.0)
            && now.of_pool(NAME, "resource_pool_leases", &[]) >= Some(1.0)
            && now.of_pool(NAME, "db_client_operation_duration_count", &of_redis) >= Some(1.0)
            && now.of_pool(NAME, "db_client_connection_create_time_count", &[]) == Some(1.0)
            && now.get("process_unix_file_descriptor_count", &[]) > Some(5.0)
    });

    server.kill().unwrap();
    until(SOON, || {
        let now = scrape(&metrics);
        now.of_pool(NAME, "resource_pool_losses", &[("error_type", "connection_closed")]) >= Some(1.0)
            && now.of_pool(NAME, "resource_pool_state", &ready) == Some(0.0)
            && now.of_pool(NAME, "resource_pool_node_up", &address) == Some(0.0)
            && now.of_pool(NAME, "resource_pool_connect_failures", &[("error_type", "connection_refused")]) > Some(0.0)
    });
    server.restart().unwrap();
    until_async(SOON, async || {
        // A killed Redis may have lost its data, but it answers.
        let answer: Result<Option<i64>, _> = redis.clone().get("key").await;
        let now = scrape(&metrics);
        answer.is_ok()
            && now.of_pool(NAME, "resource_pool_reconnects", &[]) >= Some(1.0)
            && now.of_pool(NAME, "resource_pool_state", &ready) == Some(1.0)
    })
    .await;

    // A frozen server is lost by another cause.
    server.freeze().unwrap();
    until(SOON, || {
        let now = scrape(&metrics);
        now.of_pool(NAME, "resource_pool_losses", &[("error_type", "no_answer")]) >= Some(1.0)
            && now.of_pool(NAME, "resource_pool_probe_failures", &[]) >= Some(3.0)
    });
    server.thaw().unwrap();

    drop(redis);
    assert!(pool.close_all().within(SOON).await.all_closed());
    until(SOON, || {
        let now = scrape(&metrics);
        now.of_pool(NAME, "resource_pool_state", &[("state", "closed")]) == Some(1.0)
            && now.get("resource_pool_close_steps", &[("outcome", "closed")]) >= Some(1.0)
            && now.get("resource_pool_close_duration_count", &[]) >= Some(1.0)
    });
    let closed = scrape(&metrics);
    assert!(!closed.text.contains(server.password()), "{}", closed.text);
    assert_eq!(closed.of_pool(NAME, "resource_pool_leases", &[]), Some(0.0), "{}", closed.text);
}

/// Checkouts have levels, totals and times, and the totals go on while nobody scrapes, over a close and a reconnect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkouts_are_counted_and_timed() {
    const NAME: &str = "locks";
    let server = Service::start(Kind::Redis).unwrap();
    exporter();
    let pool = pool_of(NAME, RedisConfig::url(server.url()).pool_size(1));
    let metrics = Metrics::install(&pool).unwrap();
    let threads: blocking::ResourcePool = pool.clone().into();
    let work = move |times: u64| {
        let threads = threads.clone();
        tokio::task::spawn_blocking(move || {
            for _ in 0..times {
                let () = threads.redis_named(NAME).unwrap().set("key", 1).unwrap();
            }
        })
    };
    work(10).within(SOON).await.unwrap();
    until(SOON, || scrape(&metrics).of_pool(NAME, "db_client_connection_use_time_count", &[]) == Some(10.0));
    let now = scrape(&metrics);
    assert_eq!(now.of_pool(NAME, "resource_pool_acquires", &[]), Some(10.0), "{}", now.text);
    assert_eq!(now.of_pool(NAME, "db_client_connection_max", &[]), Some(1.0), "{}", now.text);
    let count = |now: &Scrape, state| {
        now.of_pool(NAME, "db_client_connection_count", &[("db_client_connection_state", state)]).unwrap()
    };
    assert_eq!((count(&now, "idle"), count(&now, "used")), (1.0, 0.0), "{}", now.text);
    let totals = |now: &Scrape| {
        ["opened", "closed"].map(|total| now.of_pool(NAME, &format!("resource_pool_connections_{total}"), &[]).unwrap())
    };
    let [before, closed_before] = totals(&now);
    assert!(before >= 1.0, "{}", now.text);
    work(5).within(SOON).await.unwrap();
    assert!(pool.close(NAME).await.unwrap().all_closed());
    pool.reconnect(NAME).within(SOON).await.unwrap();
    work(20).within(SOON).await.unwrap();
    let now = scrape(&metrics);
    let [opened, closed] = totals(&now);
    assert!(opened > before && closed > closed_before, "{}", now.text);
    assert_eq!(now.of_pool(NAME, "resource_pool_acquires", &[]), Some(35.0), "{}", now.text);

    // One waits for the other's connection, and gives up.
    let waits = || scrape(&metrics).of_pool(NAME, "db_client_connection_wait_time_count", &[]).unwrap_or_default();
    let waits_before = waits();
    let patient: blocking::ResourcePool = pool.clone().into();
    let hurried: blocking::ResourcePool = pool.within(Duration::from_millis(50)).into();
    let waiting = tokio::task::spawn_blocking(move || {
        let _held = patient.redis_named(NAME).unwrap();
        hurried.redis_named(NAME).map(drop)
    });
    assert!(matches!(waiting.within(SOON).await.unwrap(), Err(Error::Timeout(_))));
    until(SOON, || {
        scrape(&metrics).of_pool(NAME, "db_client_connection_timeouts", &[]) == Some(1.0) && waits() > waits_before
    });
    assert!(scrape(&metrics).of_pool(NAME, "db_client_connection_wait_time_sum", &[]) > Some(0.0));
    assert!(pool.close_all().within(SOON).await.all_closed());
}

/// The usage of a resource that has opened so many connections for its handle.
fn opened(connections: u64) -> Usage {
    let mut usage = Usage::default();
    usage.counters.opened = Some(connections);
    usage
}

/// A total counts each life of a resource, and each resource of a name, once, however seldom the pool is scraped.
#[tokio::test]
async fn totals_go_on_over_closes_losses_and_resources() {
    const NAME: &str = "opening";
    exporter();
    let pool = ResourcePool::builder().environment([("", ""); 0]).options(unhurried()).build().unwrap();
    let metrics = Metrics::install(&pool).unwrap();
    let scraped = || scrape(&metrics).of_pool(NAME, "resource_pool_connections_opened", &[]);
    let counted = || pool.status().resource(NAME).unwrap().usage.counters.opened;
    pool.register(NAME, Telling::new(|| opened(3))).unwrap();
    assert_eq!((counted(), scraped()), (None, None), "it was never connected");
    drop(pool.get::<Telling>(NAME).await.unwrap());
    assert_eq!((counted(), scraped()), (Some(3), Some(3.0)));

    assert!(pool.close(NAME).await.unwrap().all_closed());
    assert_eq!(counted(), Some(3), "a close takes nothing away");
    pool.reconnect(NAME).await.unwrap();
    drop(pool.get::<Telling>(NAME).await.unwrap());
    assert_eq!((counted(), scraped()), (Some(6), Some(6.0)));

    // It cannot be brought back in place, so the next handle is another one.
    pool.reconnect(NAME).await.unwrap();
    assert_eq!((counted(), scraped()), (Some(9), Some(9.0)));

    for connections in [9, 20] {
        let before = scraped().unwrap();
        assert!(pool.unregister(NAME).await.unwrap().all_closed());
        pool.register(NAME, Telling::new(move || opened(connections))).unwrap();
        drop(pool.get::<Telling>(NAME).await.unwrap());
        assert_eq!((counted(), scraped()), (Some(connections), Some(before + connections as f64)));
    }
}

/// A resource that has opened three connections until it is closed, and none after that.
#[derive(Default)]
struct Emptied(AtomicBool);

impl Resource for Emptied {
    type Handle = ();

    async fn connect(&self, _: &Link) -> Result<(), Failure> {
        self.0.store(false, Ordering::SeqCst);
        Ok(())
    }

    async fn ping(&self, (): &()) -> Result<(), Failure> {
        Ok(())
    }

    async fn close(&self, (): ()) -> Result<(), Failure> {
        self.0.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn usage(&self, (): &()) -> Usage {
        opened(if self.0.load(Ordering::SeqCst) { 0 } else { 3 })
    }
}

#[tokio::test]
async fn no_total_falls_if_the_usage_of_a_closed_resource_does() {
    const NAME: &str = "emptied";
    exporter();
    let pool = ResourcePool::builder().environment([("", ""); 0]).options(unhurried()).build().unwrap();
    let metrics = Metrics::install(&pool).unwrap();
    let scraped = || scrape(&metrics).of_pool(NAME, "resource_pool_connections_opened", &[]);
    let counted = || pool.status().resource(NAME).unwrap().usage.counters.opened;
    pool.register(NAME, Emptied::default()).unwrap();
    for opened in [3, 6] {
        pool.reconnect(NAME).await.unwrap();
        drop(pool.get::<Emptied>(NAME).await.unwrap());
        assert_eq!((counted(), scraped()), (Some(opened), Some(opened as f64)));
        let report = pool.close(NAME).await.unwrap();
        assert_eq!(report.status.resource(NAME).unwrap().usage.counters.opened, Some(opened), "{report}");
        assert_eq!((counted(), scraped()), (Some(opened), Some(opened as f64)));
    }
}

/// The first scrape reads its status before the name is registered anew, and ends after the second one.
#[tokio::test]
async fn scrapes_side_by_side_count_nothing_twice() {
    const NAME: &str = "waiting";
    exporter();
    let pool = ResourcePool::builder().environment([("", ""); 0]).options(unhurried()).build().unwrap();
    let metrics = Metrics::install(&pool).unwrap();
    let scraped = || scrape(&metrics).of_pool(NAME, "resource_pool_connections_opened", &[]);
    // The next usage waits twice at the barrier, if there is one.
    let waits = Arc::<Mutex<Option<Arc<Barrier>>>>::default();
    let next = Arc::clone(&waits);
    let usage = move || {
        let barrier = next.lock().take();
        barrier.iter().for_each(|barrier| {
            barrier.wait();
            barrier.wait();
        });
        opened(3)
    };
    pool.register(NAME, Telling::new(usage)).unwrap();
    drop(pool.get::<Telling>(NAME).await.unwrap());
    assert_eq!(scraped(), Some(3.0));

    let barrier = Arc::new(Barrier::new(2));
    *waits.lock() = Some(Arc::clone(&barrier));
    let first = thread::spawn({
        let metrics = metrics.clone();
        move || metrics.observe()
    });
    barrier.wait();
    assert!(pool.unregister(NAME).await.unwrap().all_closed());
    pool.register(NAME, Telling::new(|| opened(3))).unwrap();
    drop(pool.get::<Telling>(NAME).await.unwrap());
    assert_eq!(scraped(), Some(6.0));
    barrier.wait();
    first.join().unwrap();
    assert_eq!(scraped(), Some(6.0));
}

/// However many names there are, the number of series is bounded, and no resource is left out.
#[tokio::test]
async fn a_thousand_names_have_bounded_series() {
    exporter();
    let mut options = unhurried();
    // A thread counts the events, however late it runs.
    options.events = 100_000;
    let pool = ResourcePool::builder().environment([("", ""); 0]).options(options).build().unwrap();
    let metrics = Metrics::install(&pool).unwrap();
    for name in 0..1_000 {
        pool.register(&format!("many-{name}"), Plain).unwrap();
        if name % 100 == 0 {
            metrics.observe();
        }
    }
    for name in 0..1_000 {
        drop(pool.get::<Plain>(&format!("many-{name}")).await.unwrap());
    }
    let of_many = |now: &Scrape, name: &str, labels: &[(&str, &str)]| {
        let mine = now.samples.iter().filter(|sample| {
            let pool = sample.1.get("db_client_connection_pool_name");
            sample.0 == name
                && pool.is_some_and(|pool| pool.starts_with("many-") || pool == "other")
                && labels.iter().all(|(label, value)| sample.1.get(*label).is_some_and(|has| has == value))
        });
        mine.map(|sample| sample.2).collect::<Vec<_>>()
    };
    until(SOON, || of_many(&scrape(&metrics), "resource_pool_connects", &[]).iter().sum::<f64>() >= 1_000.0);
    let now = scrape(&metrics);
    let connects = of_many(&now, "resource_pool_connects", &[]);
    assert!(connects.len() <= Metrics::MAX_RESOURCES + 1, "{} series", connects.len());
    assert_eq!(connects.iter().sum::<f64>(), 1_000.0);
    let ready = of_many(&now, "resource_pool_state", &[("state", "ready")]);
    assert!(ready.len() <= Metrics::MAX_RESOURCES + 1, "{} series", ready.len());
    assert_eq!(ready.iter().sum::<f64>(), 1_000.0);

    // A resource that is gone leaves no level behind.
    for name in 0..1_000 {
        assert!(pool.unregister(&format!("many-{name}")).await.unwrap().all_closed());
    }
    let gone = of_many(&scrape(&metrics), "resource_pool_state", &[]);
    assert_eq!(gone.iter().sum::<f64>(), 0.0);
}

#[tokio::test]
async fn a_pool_has_metrics_once() {
    exporter();
    let pool = ResourcePool::builder().environment([("", ""); 0]).build().unwrap();
    let first = Metrics::install(&pool).unwrap();
    let second = Metrics::install(&pool);
    assert!(matches!(&second, Err(Error::Config { .. })), "{second:?}");
    first.observe();
}

/// The process has one recorder for a forked child too, which does not touch it.
#[cfg(target_os = "linux")]
#[test]
fn a_forked_child_observes_nothing() {
    use std::os::unix::process::ExitStatusExt;
    if let Some(status) = common::alone("a_forked_child_observes_nothing") {
        assert!(status.success(), "{status:?}, {:?}", status.signal());
        return;
    }
    exporter();
    let pool = ResourcePool::builder().environment([("", ""); 0]).build().unwrap();
    let metrics = Metrics::install(&pool).unwrap();
    match fork::fork().unwrap() {
        fork::Fork::Child => {
            metrics.observe();
            std::process::abort();
        }
        fork::Fork::Parent(child) => {
            until(SOON, || {
                let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
                state.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z') || state.is_empty()
            });
            metrics.observe();
        }
    }
}

/// Every metric of the page is scraped, every scraped one is on the page, and the alerts and the dashboard use scraped
/// ones alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_the_alerts_and_the_dashboard_name_what_is_scraped() {
    let (redis, rabbit) = (Service::start(Kind::Redis).unwrap(), Service::start(Kind::RabbitMq).unwrap());
    exporter();
    let mut options = unhurried();
    options.retry.attempts = 1;
    let pool = ResourcePool::builder()
        .environment([("", ""); 0])
        .options(options)
        .named("page-redis", RedisConfig::url(redis.url()))
        .named("page-rabbit", RabbitMqConfig::url(rabbit.url()))
        .build()
        .unwrap();
    let metrics = Metrics::install(&pool).unwrap();
    let scripted = Scripted::default();
    scripted.script.set(Verb::Connect, Does::Fail);
    pool.register("page-script", scripted.clone()).unwrap();
    pool.get::<Scripted>("page-script").await.unwrap_err();
    scripted.script.clear();
    pool.reconnect("page-script").await.unwrap();
    pool.reconnect("page-script").await.unwrap();
    let threads: blocking::ResourcePool = pool.clone().into();
    let set = move || threads.redis_named("page-redis").unwrap().set("key", 1).unwrap();
    let () = tokio::task::spawn_blocking(set).await.unwrap();
    pool.health_check().await;

    let broker = pool.rabbitmq_named("page-rabbit").await.unwrap();
    broker.declare_queue(Queue::new("page")).await.unwrap();
    assert!(broker.publish(Message::new("", "page", "one")).await.unwrap().is_confirmed());
    assert!(broker.publish(Message::new("", "page", "two")).await.unwrap().is_confirmed());
    let mut consumer = broker.consume(Consume::from("page")).await.unwrap();
    consumer.next().within(SOON).await.unwrap().unwrap().ack().await.unwrap();
    // Work in flight is a level.
    let delivery = consumer.next().within(SOON).await.unwrap().unwrap();
    let work = scrape(&metrics).of_pool("page-rabbit", "resource_pool_work", &[("work", "delivery")]);
    assert_eq!(work, Some(1.0));
    delivery.ack().await.unwrap();
    drop((consumer, broker));
    pool.close_all().within(SOON).await;
    until(SOON, || scrape(&metrics).get("resource_pool_close_duration_count", &[]) >= Some(1.0));

    let now = scrape(&metrics);
    for server in [&redis, &rabbit] {
        assert!(!now.text.contains(server.password()), "{}", now.text);
    }
    let underscored = |name: &str| name.replace('.', "_");
    let declared: BTreeSet<String> = NAMES
        .lines()
        .filter(|line| line.contains(": describe_"))
        .map(|line| underscored(line.split('"').nth(1).unwrap()))
        .collect();
    let scraped: BTreeSet<String> = now.types.keys().cloned().collect();
    assert_eq!(declared, scraped);
    let rows = MONITORING.lines().filter_map(|line| line.strip_prefix("| `"));
    let table: Vec<Vec<&str>> = rows.map(|row| row.split('|').map(str::trim).collect()).collect();
    let named = |row: &[&str]| underscored(row[0].trim_matches('`'));
    let told: BTreeSet<String> = table.iter().map(|row| named(row)).collect();
    assert_eq!(told, scraped);
    for row in &table {
        assert_eq!(now.types[&named(row)], row[1].trim_matches('`'), "{row:?}");
        let labels: BTreeSet<String> = row[3].split('`').skip(1).step_by(2).map(underscored).collect();
        let resource = ["db_client_connection_pool_name", "db_system_name", "server_address", "server_port"];
        let found: BTreeSet<String> = now
            .samples
            .iter()
            .filter(|sample| sample.0.starts_with(&named(row)))
            .filter(|sample| {
                let name = sample.0.trim_start_matches(&named(row));
                ["", "_bucket", "_sum", "_count"].contains(&name)
            })
            .flat_map(|sample| sample.1.keys().cloned())
            .filter(|label| label != "le" && !resource.contains(&label.as_str()))
            .collect();
        assert!(found.is_subset(&labels), "{row:?} has the labels {found:?}");
    }

    let queried = now.queried();
    for (file, text) in [("alerts.yml", ALERTS), ("grafana.json", DASHBOARD), ("monitoring.md", MONITORING)] {
        let words: BTreeSet<&str> = text
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .filter(|word| {
                ["db_client_", "messaging_", "resource_pool_", "process_unix_"]
                    .iter()
                    .any(|start| word.starts_with(start))
            })
            // These are labels.
            .filter(|word| {
                !["pool_name", "connection_state", "messaging_system", "operation_name"]
                    .iter()
                    .any(|end| word.ends_with(end))
            })
            .collect();
        let unknown: Vec<_> = words.iter().filter(|word| !queried.contains(**word)).collect();
        assert!(words.len() > 5 && unknown.is_empty(), "{file} uses {unknown:?}");
    }
}
