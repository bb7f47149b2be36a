//! The spans of pools of real servers, as a subscriber of the process sees them.

#![cfg(all(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
#![allow(missing_docs)]

mod common;
#[path = "common/recorder.rs"]
mod recorder;

use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use common::{Within, unhurried, until, until_async};
use recorder::{Recorder, SeenSpan};
use redis::{AsyncCommands, Commands};
use resource_pool::config::{ClickHouseConfig, MongoConfig, Options, RabbitMqConfig, RedisConfig};
use resource_pool::rabbitmq::{Message, Queue};
use resource_pool::{Error, Health, Phase, ResourcePool, State, blocking};
use services::{Kind, Service, shared};
use tracing::{Instrument, Span, info_span};

/// A guard against hanging.
const SOON: Duration = Duration::from_secs(30);

/// The recorder of the process.
fn recorder() -> &'static Recorder {
    static RECORDER: OnceLock<Recorder> = OnceLock::new();
    RECORDER.get_or_init(|| {
        let recorder = Recorder::default();
        tracing::subscriber::set_global_default(recorder.subscriber()).expect("the first subscriber");
        recorder
    })
}

/// The span of a test that calls the pool, with its place among all spans.
fn caller() -> (Span, usize) {
    let recorder = recorder();
    let span = info_span!("caller");
    let place = recorder.place(&span);
    (span, place)
}

/// Waits until the caller's span has ended, and with it all below. Returns the tree of those.
async fn ended(place: usize) -> String {
    until_async(SOON, async || recorder().spans()[place].is_closed).await;
    recorder().tree(place)
}

fn options() -> Options {
    let mut options = unhurried();
    (options.health.each, options.health.all, options.health.slow) = (SOON, SOON, SOON);
    options.health.cache = Duration::ZERO;
    options
}

fn pool_of(name: &str, config: RedisConfig, options: Options) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).options(options).named(name, config).build().unwrap()
}

/// Checks the attributes by which a span names its resource.
#[track_caller]
fn is_of(span: &SeenSpan, name: &str, server: &Service) {
    assert_eq!(span.attribute("db.client.connection.pool.name"), name, "{span:?}");
    assert_eq!(span.attribute("server.address"), server.host(), "{span:?}");
    assert_eq!(span.attribute("server.port"), server.port().to_string(), "{span:?}");
}

#[track_caller]
fn is_well(span: &SeenSpan) {
    let told = ["otel.status_code", "otel.status_description", "error.type"].map(|name| span.attribute(name));
    assert_eq!(told, [""; 3], "{span:?}");
}

#[track_caller]
fn has_failed(span: &SeenSpan, code: &str) {
    assert_eq!((span.attribute("otel.status_code"), span.attribute("error.type")), ("ERROR", code), "{span:?}");
    assert!(!span.attribute("otel.status_description").is_empty(), "{span:?}");
}

/// Checks that no span of the process has the server's password.
#[track_caller]
fn tells_no_secret(server: &Service) {
    let said = format!("{:?}", recorder().spans());
    let encoded = server.url().split_once("://").unwrap().1.split(['@', ':']).nth(1).unwrap().to_owned();
    for secret in [server.password(), &encoded] {
        assert!(secret.len() > 3 && !said.contains(secret), "a span has the password");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_acquire_waits_and_connects_below_its_caller() {
    let server = shared(Kind::Redis);
    let pool = pool_of("first", RedisConfig::url(server.url()), options());
    let (span, place) = caller();
    drop(pool.redis_named("first").instrument(span).await.unwrap());
    assert_eq!(ended(place).await, "wait(connect())");
    let (wait, connect) = (recorder().the(place, "wait"), recorder().the(place, "connect"));
    for span in [&wait, &connect] {
        is_of(span, "first", server);
        is_well(span);
        assert_eq!((span.attribute("db.system.name"), span.attribute("messaging.system")), ("redis", ""));
    }
    assert_eq!((wait.attribute("otel.kind"), connect.attribute("otel.kind")), ("internal", "client"));
    assert_eq!(wait.attribute("resource_pool.waiting_for"), "connecting");
    assert_eq!(connect.attribute("resource_pool.attempt"), "1");

    // A lease of a resource that is ready makes none, nor do operations by default.
    let (span, place) = caller();
    async {
        let mut redis = pool.redis_named("first").await.unwrap().clone();
        let () = redis.set("first", 1).await.unwrap();
    }
    .instrument(span)
    .await;
    assert_eq!(ended(place).await, "");
    tells_no_secret(server);
    assert!(pool.close_all().await.all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_that_fail_say_why_and_have_no_password() {
    let server = Service::start(Kind::Redis).unwrap();
    let encoded = server.url().split_once("://").unwrap().1.split(['@', ':']).nth(1).unwrap();
    let wrong = pool_of("wrong", RedisConfig::url(server.url().replace(encoded, "wr0ng-p4ss")), options());
    let (span, place) = caller();
    let refused = wrong.redis_named("wrong").instrument(span).await.unwrap_err();
    assert_eq!(ended(place).await, "wait(connect())");
    let (wait, connect) = (recorder().the(place, "wait"), recorder().the(place, "connect"));
    has_failed(&wait, "connect");
    has_failed(&connect, "connect");
    assert_eq!(wait.attribute("otel.status_description"), refused.to_string());

    server.kill().unwrap();
    let mut options = options();
    options.retry.attempts = 2;
    let gone = pool_of("gone", RedisConfig::url(server.url()), options);
    let (span, place) = caller();
    gone.redis_named("gone").instrument(span).await.unwrap_err();
    assert_eq!(ended(place).await, "wait(connect() connect())");
    let attempts = recorder().of("gone", "connect");
    assert_eq!(attempts.iter().map(|span| span.attribute("resource_pool.attempt")).collect::<Vec<_>>(), ["1", "2"]);
    attempts.iter().for_each(|span| has_failed(span, "connect"));
    tells_no_secret(&server);
    assert!(!format!("{:?}", recorder().spans()).contains("wr0ng-p4ss"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_for_a_connection_is_below_its_caller_and_ends_in_an_error() {
    let server = shared(Kind::Redis);
    let mut options = options();
    options.acquire_timeout = Duration::from_millis(100);
    let pool = pool_of("crowd", RedisConfig::url(server.url()).exclusive_size(1), options);
    let redis = pool.within(SOON).redis_named("crowd").await.unwrap().clone();
    let held = redis.exclusive().await.unwrap();
    let (span, place) = caller();
    let late = redis.exclusive().instrument(span).await.unwrap_err();
    assert!(matches!(Error::behind(&late), Some(Error::Timeout(_))), "{late}");
    assert_eq!(ended(place).await, "wait()");
    let wait = recorder().the(place, "wait");
    is_of(&wait, "crowd", server);
    has_failed(&wait, "timeout");
    assert_eq!(wait.attribute("resource_pool.waiting_for"), "one of 1 exclusive connections");
    drop(held);
    drop(redis);
    assert!(pool.close_all().await.all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_is_made_good_below_nobody() {
    let server = Service::start(Kind::Redis).unwrap();
    let pool = pool_of("mended", RedisConfig::url(server.url()), options());
    drop(pool.redis_named("mended").await.unwrap());
    let state = || pool.status().resource("mended").unwrap().state;
    let before = recorder().of("mended", "connect").len();
    server.kill().unwrap();
    // At least one attempt fails while nobody listens.
    until_async(SOON, async || {
        recorder().of("mended", "connect").iter().any(|span| span.is_closed && span.parent.is_none())
    })
    .await;
    server.restart().unwrap();
    until_async(SOON, async || {
        state() == State::Ready && recorder().of("mended", "connect").iter().all(|span| span.is_closed)
    })
    .await;
    let attempts = recorder().of("mended", "connect").split_off(before);
    let (last, failed) = attempts.split_last().unwrap();
    is_well(last);
    failed.iter().for_each(|span| has_failed(span, "connect"));
    assert!(!failed.is_empty() && attempts.iter().all(|span| span.parent.is_none()), "{attempts:#?}");

    // A caller who asks for it is the parent.
    let (span, place) = caller();
    pool.reconnect("mended").instrument(span).await.unwrap();
    let tree = ended(place).await;
    assert!(tree.contains("connect()"), "{tree}");
    assert_eq!(recorder().the(place, "connect").parent, Some(place));
    tells_no_secret(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_without_an_answer_is_told() {
    let server = Service::start(Kind::Redis).unwrap();
    let mut options = options();
    (options.probe.interval, options.probe.limit) = (Duration::from_millis(50), Duration::from_millis(200));
    let pool = pool_of("frozen", RedisConfig::url(server.url()), options);
    drop(pool.redis_named("frozen").await.unwrap());
    server.freeze().unwrap();
    until_async(SOON, async || recorder().of("frozen", "probe_failed").len() >= 3).await;
    server.thaw().unwrap();
    for probe in recorder().of("frozen", "probe_failed").iter().take(3) {
        has_failed(probe, "silent");
        is_of(probe, "frozen", &server);
        let took: f64 = probe.attribute("resource_pool.took_ms").parse().unwrap();
        assert!(probe.parent.is_none() && probe.is_closed && took >= 200.0, "{probe:?}");
        assert!(probe.attribute("resource_pool.strikes").parse::<u32>().unwrap() >= 1, "{probe:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_health_check_has_a_round_trip_for_each_resource() {
    let server = Service::start(Kind::Redis).unwrap();
    let mut options = options();
    options.probe.enabled = false;
    options.health.each = Duration::from_secs(3);
    let pool = ResourcePool::builder()
        .environment([("", ""); 0])
        .options(options)
        .named("asked", RedisConfig::url(server.url()))
        .named("idle", RedisConfig::url(server.url()))
        .build()
        .unwrap();
    drop(pool.redis_named("asked").await.unwrap());
    let (span, place) = caller();
    assert_eq!(pool.health_check().instrument(span).await.entry("asked").unwrap().health, Health::Pass);
    assert_eq!(ended(place).await, "health_check(round_trip())");
    let (check, trip) = (recorder().the(place, "health_check"), recorder().the(place, "round_trip"));
    for span in [&check, &trip] {
        is_well(span);
        assert_eq!(span.attribute("resource_pool.health"), "pass");
    }
    is_of(&trip, "asked", &server);

    server.freeze().unwrap();
    let (span, place) = caller();
    assert_eq!(pool.health_check().instrument(span).await.health, Health::Fail);
    server.thaw().unwrap();
    assert_eq!(ended(place).await, "health_check(round_trip())");
    for name in ["health_check", "round_trip"] {
        let span = recorder().the(place, name);
        has_failed(&span, "fail");
        assert_eq!(span.attribute("resource_pool.health"), "fail");
    }
    assert_eq!(recorder().the(place, "health_check").attribute("otel.status_description"), "asked");
    tells_no_secret(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_has_its_drain_and_each_step() {
    let (redis, rabbit) = (shared(Kind::Redis), shared(Kind::RabbitMq));
    let pool = ResourcePool::builder()
        .environment([("", ""); 0])
        .options(options())
        .named("ledger", RedisConfig::url(redis.url()))
        .named("cache", RedisConfig::url(redis.url()))
        .named("orders", RabbitMqConfig::url(rabbit.url()))
        .build()
        .unwrap();
    drop(pool.redis_named("ledger").await.unwrap());
    drop(pool.redis_named("cache").await.unwrap());
    drop(pool.rabbitmq_named("orders").await.unwrap());
    pool.on_close("archive", Phase::Files, || Err("the disk is full".into())).unwrap();

    let (span, place) = caller();
    pool.close("cache").instrument(span).await.unwrap();
    assert_eq!(ended(place).await, "close(close_step() drain())");
    let close = recorder().the(place, "close");
    is_of(&close, "cache", redis);
    is_well(&close);

    let (span, place) = caller();
    let report = pool.close_all().instrument(span).await;
    assert_eq!(ended(place).await, "close(close_step() close_step() close_step() drain())");
    is_well(&recorder().the(place, "drain"));
    let close = recorder().the(place, "close");
    has_failed(&close, "failed");
    assert_eq!(close.attribute("resource_pool.reason"), "requested");
    assert_eq!(close.attribute("otel.status_description"), "archive: failed: the disk is full");
    let steps: Vec<_> = recorder().below(place).into_iter().filter(|span| span.name == "close_step").collect();
    for step in &report.steps {
        let of_it = |span: &&SeenSpan| span.attribute("resource_pool.step") == &*step.name;
        let span = steps.iter().find(of_it).unwrap_or_else(|| panic!("no span of {}", step.name));
        assert_eq!(span.attribute("resource_pool.phase"), step.phase.to_string());
        match &*step.name {
            "archive" => has_failed(span, "failed"),
            "orders" => {
                is_of(span, "orders", rabbit);
                is_well(span);
                let system = ["messaging.system", "db.system.name"].map(|name| span.attribute(name));
                assert_eq!(system, ["rabbitmq", ""]);
            }
            name => {
                is_of(span, name, redis);
                is_well(span);
            }
        }
    }
    tells_no_secret(redis);
    tells_no_secret(rabbit);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_have_spans_if_they_are_asked_for() {
    let server = shared(Kind::Redis);
    let pool = pool_of("traced", RedisConfig::url(server.url()), options().trace_operations(true));
    let mut redis = pool.redis_named("traced").await.unwrap().clone();
    let (span, place) = caller();
    async {
        let _: Option<i64> = redis.get("traced:none").await.unwrap();
        let () = redis.set("traced:text", "no-number-7411").await.unwrap();
        redis.incr::<_, _, i64>("traced:text", 1).await.unwrap_err();
        let () = redis::pipe().get("a").get("b").ignore().query_async(&mut redis).await.unwrap();
        // On a connection of its own, and yet one operation.
        let none: Option<(String, String)> = redis.blpop("traced:none", 0.01).await.unwrap();
        assert_eq!(none, None);
    }
    .instrument(span)
    .await;
    assert_eq!(ended(place).await, ["operation()"; 5].join(" "));
    let spans = recorder().below(place);
    let names: Vec<_> = spans.iter().map(|span| span.attribute("otel.name")).collect();
    assert_eq!(names, ["GET", "SET", "INCRBY", "PIPELINE", "BLPOP"]);
    for span in &spans {
        is_of(span, "traced", server);
        assert_eq!(span.attribute("db.operation.name"), span.attribute("otel.name"));
        assert_eq!(span.attribute("otel.kind"), "client");
        let size = if span.attribute("otel.name") == "PIPELINE" { "2" } else { "" };
        assert_eq!(span.attribute("db.operation.batch.size"), size);
        match span.attribute("otel.name") {
            "INCRBY" => assert_eq!(span.attribute("error.type"), "ERR", "{span:?}"),
            _ => is_well(span),
        }
    }
    let said = format!("{spans:?}");
    assert!(!said.contains("7411") && !said.contains("traced:"), "{said}");

    // A thread's connection has the same.
    let (span, place) = caller();
    let threads: blocking::ResourcePool = pool.clone().into();
    let thread = thread::spawn(move || {
        let _entered = span.entered();
        let mut redis = threads.redis_named("traced").unwrap();
        let _: Option<i64> = redis.get("traced:none").unwrap();
    });
    until(SOON, || thread.is_finished());
    thread.join().unwrap();
    let tree = ended(place).await;
    assert!(tree.starts_with("operation()"), "{tree}");
    assert_eq!(recorder().the(place, "operation").attribute("otel.name"), "GET");
    drop(redis);
    assert!(pool.close_all().await.all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishing_and_queries_are_below_their_callers() {
    let (rabbit, clickhouse) = (shared(Kind::RabbitMq), shared(Kind::ClickHouse));
    let pool = ResourcePool::builder()
        .environment([("", ""); 0])
        .options(options().trace_operations(true))
        .named("bus", RabbitMqConfig::url(rabbit.url()))
        .named("ticks", ClickHouseConfig::url(clickhouse.url()))
        .build()
        .unwrap();
    let bus = pool.rabbitmq_named("bus").await.unwrap();
    let ticks = pool.clickhouse_named("ticks").await.unwrap();
    let queue = format!("traces-{}", std::process::id());
    bus.declare_queue(Queue::new(&*queue)).await.unwrap();
    let (span, place) = caller();
    async {
        assert!(bus.publish(Message::new("", &*queue, "payload-7411")).await.unwrap().is_confirmed());
        let batch = bus.publish_batch((0..3).map(|_| Message::new("", &*queue, "payload-7411"))).await.unwrap();
        assert!(batch.all_confirmed());
        bus.publish(Message::new("no-such-exchange", "key", "payload-7411")).await.unwrap_err();
    }
    .instrument(span)
    .await;
    assert_eq!(ended(place).await, ["operation()"; 3].join(" "));
    let spans = recorder().below(place);
    for span in &spans {
        is_of(span, "bus", rabbit);
        let told = ["messaging.system", "messaging.operation.name", "messaging.operation.type", "otel.kind"];
        assert_eq!(told.map(|name| span.attribute(name)), ["rabbitmq", "publish", "send", "producer"]);
        assert_eq!(span.attribute("db.operation.name"), "");
    }
    let to: Vec<_> = spans.iter().map(|span| span.attribute("messaging.destination.name")).collect();
    assert_eq!(to, [&*queue, "", "no-such-exchange:key"]);
    is_well(&spans[0]);
    is_well(&spans[1]);
    assert_eq!(spans[2].attribute("error.type"), "operation", "{spans:#?}");
    assert!(!format!("{spans:?}").contains("7411"));
    bus.delete_queue(&queue).await.unwrap();

    // The driver makes this one by itself.
    let (span, place) = caller();
    ticks.query("SELECT 1").execute().instrument(span).await.unwrap();
    let tree = ended(place).await;
    assert!(tree.starts_with("clickhouse.query("), "{tree}");
    drop((bus, ticks));
    assert!(pool.close_all().await.all_closed());
    tells_no_secret(rabbit);
    tells_no_secret(clickhouse);
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_are_below_their_callers() {
    use resource_pool::config::PostgresConfig;

    let server = shared(Kind::Postgres);
    let pool = ResourcePool::builder()
        .environment([("", ""); 0])
        .options(options().trace_operations(true))
        .named("books", PostgresConfig::url(server.url()))
        .build()
        .unwrap();
    let mut books = pool.postgres_named("books").await.unwrap();
    let (span, place) = caller();
    async {
        let one: i32 = sqlx::query_scalar("SELECT 7411").fetch_one(&mut books).await.unwrap();
        assert_eq!(one, 7411);
        sqlx::query("SELECT no_such_column_7411").execute(&mut books).await.unwrap_err();
    }
    .instrument(span)
    .await;
    drop(books);
    assert_eq!(ended(place).await, "operation() operation()");
    let spans = recorder().below(place);
    for span in &spans {
        is_of(span, "books", server);
        assert_eq!((span.attribute("otel.name"), span.attribute("db.system.name")), ("query", "postgresql"));
    }
    is_well(&spans[0]);
    assert_eq!(spans[1].attribute("error.type"), "42703", "{spans:#?}");
    assert!(!format!("{spans:?}").contains("7411"));
    assert!(pool.close_all().await.all_closed());
    tells_no_secret(server);
}

/// A driver that kept the span in its own tasks would keep the caller's open for as long as the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connect_ends_while_its_connection_lives() {
    let [mongo, rabbit, clickhouse, redis] = [Kind::Mongo, Kind::RabbitMq, Kind::ClickHouse, Kind::Redis].map(shared);
    let builder = ResourcePool::builder()
        .environment([("", ""); 0])
        .options(options())
        .named("lives-mongo", MongoConfig::uri(mongo.url()))
        .named("lives-rabbitmq", RabbitMqConfig::url(rabbit.url()))
        .named("lives-clickhouse", ClickHouseConfig::url(clickhouse.url()))
        .named("lives-redis", RedisConfig::url(redis.url()));
    #[cfg(feature = "postgres")]
    let builder =
        builder.named("lives-postgres", resource_pool::config::PostgresConfig::url(shared(Kind::Postgres).url()));
    let pool = builder.build().unwrap();
    let names: Vec<String> = pool.status().resources.iter().map(|resource| resource.name.to_string()).collect();
    let names: Vec<_> = names.iter().filter(|name| name.starts_with("lives-")).collect();
    assert!(names.len() >= 4, "{names:?}");
    for name in names {
        let (span, place) = caller();
        pool.warm_up([name.as_str()]).instrument(span).within(SOON).await;
        let tree = ended(place).await;
        assert!(tree.starts_with("wait(connect("), "{name}: {tree}");
        is_well(&recorder().the(place, "connect"));
        assert_eq!(pool.status().resource(name).unwrap().state, State::Ready);
    }
    for server in [mongo, rabbit, clickhouse, redis] {
        tells_no_secret(server);
    }
    assert!(pool.close_all().await.all_closed());
}

/// An id of one subscriber means nothing to another one, and a span that is entered under the wrong one panics.
#[test]
fn a_subscriber_of_the_callers_thread_sees_what_it_asked_for() {
    let server = shared(Kind::Redis);
    recorder();
    let pool: blocking::ResourcePool = pool_of("apart", RedisConfig::url(server.url()), options()).into();
    let apart = Recorder::default();
    let place = tracing::subscriber::with_default(apart.subscriber(), || {
        let span = info_span!("caller");
        let place = apart.place(&span);
        span.in_scope(|| {
            drop(pool.redis_named("apart").unwrap());
            pool.health_check().unwrap();
            assert!(pool.close_all().unwrap().all_closed());
        });
        place
    });
    until(SOON, || apart.spans()[place].is_closed);
    let tree = apart.tree(place);
    assert!(tree.starts_with("close(close_step() drain()) health_check(round_trip()) wait("), "{tree}");
    assert_eq!(apart.of("apart", "connect").len(), 1, "{tree}");
    assert!(["connect", "close_step"].iter().all(|name| recorder().of("apart", name).is_empty()));
}
