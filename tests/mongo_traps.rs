//! MongoDB killed or frozen, and the traps of its driver. Each test has the bare driver as its control.

#![cfg(feature = "mongodb")]
#![allow(missing_docs)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::{Within, eventually, stopped, unhurried, until, until_async};
use futures_util::TryStreamExt;
use mongodb::Client;
use mongodb::bson::{Document, doc};
use mongodb::event::EventHandler;
use mongodb::event::cmap::CmapEvent;
use mongodb::options::ClientOptions;
use resource_pool::config::{MongoConfig, Options};
use resource_pool::{Error, Health, Lease, Outcome, ResourcePool, State, Work, blocking};
use services::{Kind, Proxy, Service};

/// The limit for a frozen server to show as an error.
const FROZEN: Duration = Duration::from_secs(5);
/// The limit for a health check: the 800 ms that it has by default, and some time for a busy machine.
const HEALTH: Duration = Duration::from_millis(850);
/// The limit for any expected change. A busy machine needs less.
const PATIENCE: Duration = Duration::from_secs(20);
/// The limit for a close without a failure. It is less than the default limit of the drain.
const DRAIN: Duration = Duration::from_secs(8);

fn start() -> Service {
    Service::start(Kind::Mongo).expect("a MongoDB")
}

fn config(server: &Service) -> MongoConfig {
    MongoConfig::uri(server.url()).min_pool_size(2)
}

fn pool_of(config: MongoConfig) -> ResourcePool {
    pool_with(config, |_| {})
}

fn pool_with(config: MongoConfig, set: impl FnOnce(&mut Options)) -> ResourcePool {
    let mut options = unhurried();
    set(&mut options);
    ResourcePool::builder().environment([("", ""); 0]).resource(config).options(options).build().expect("a pool")
}

fn pool(server: &Service) -> ResourcePool {
    pool_of(config(server))
}

fn blocking_pool(server: &Service) -> blocking::ResourcePool {
    pool(server).into()
}

fn state(pool: &ResourcePool) -> State {
    pool.status().resource("mongo").unwrap().state
}

fn in_use(pool: &ResourcePool) -> Option<usize> {
    pool.status().resource("mongo").unwrap().usage.in_use
}

fn bars(client: &Client) -> mongodb::Collection<Document> {
    client.database("quantaxis").collection("stock_day")
}

fn sync_bars(client: &mongodb::sync::Client) -> mongodb::sync::Collection<Document> {
    client.database("quantaxis").collection("stock_day")
}

/// A query on which the server works for so long.
fn slow(millis: u32) -> Document {
    doc! { "$where": format!("sleep({millis}) || true") }
}

/// The driver with its own defaults.
async fn bare(server: &Service) -> Client {
    let client = Client::with_uri_str(server.url()).await.unwrap();
    client.list_database_names().await.unwrap();
    client
}

fn timed<T>(run: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    (run(), started.elapsed())
}

async fn timed_async<F: IntoFuture>(future: F) -> (F::Output, Duration) {
    let started = Instant::now();
    (future.await, started.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn mongo_killed_and_restarted_works_again_under_the_same_guard() {
    let server = start();
    let pool = pool(&server);
    let mongo = pool.mongo().await.unwrap();
    let clone = mongo.clone();
    bars(&mongo).insert_one(doc! { "code": "IBM" }).await.unwrap();
    server.kill().unwrap();
    until_async(PATIENCE, async || matches!(state(&pool), State::Broken | State::Connecting)).await;
    assert!(matches!(pool.mongo().await, Err(Error::Lost { .. } | Error::Connect(_))));
    let (failed, took) = stopped(bars(&mongo).find_one(doc! {}).into_future()).await;
    println!("while it is down, after {took:?}: {}", failed.unwrap_err());
    assert!(took < FROZEN);
    // Once an attempt to recover has failed, the error tells that attempt's cause.
    until_async(PATIENCE, async || {
        let error = pool.status().resource("mongo").unwrap().error.as_ref().map(ToString::to_string);
        error.is_some_and(|error| error.contains("after 1 attempt") && error.contains("Connection refused"))
    })
    .await;
    server.restart().unwrap();
    let back = Instant::now();
    let found = eventually(PATIENCE, async || bars(&mongo).find_one(doc! {}).await.ok()).await;
    println!("the same guard works {:?} after the server is up", back.elapsed());
    assert_eq!(found.unwrap().get_str("code").unwrap(), "IBM");
    assert_eq!(bars(&clone).count_documents(doc! {}).await.unwrap(), 1);
    until_async(PATIENCE, async || state(&pool) == State::Ready).await;
    println!("ready again {:?} after the server is up", back.elapsed());
    let again = pool.mongo().await.unwrap();
    assert!(Lease::generation(&again) > 1);
    assert_eq!(bars(&again).count_documents(doc! {}).await.unwrap(), 1);
    assert!(pool.close_all().await.all_closed());
    assert_eq!(server.await_established(0, PATIENCE).unwrap(), 0);
}

#[test]
fn mongo_blocking_killed_and_restarted_works_again_under_the_same_guard() {
    let server = start();
    let pool = blocking_pool(&server);
    let mongo = pool.mongo().unwrap();
    sync_bars(&mongo).insert_one(doc! { "code": "IBM" }).run().unwrap();
    server.kill().unwrap();
    let (failed, took) = timed(|| sync_bars(&mongo).find_one(doc! {}).run());
    assert!(failed.is_err() && took < PATIENCE, "{took:?}");
    server.restart().unwrap();
    let back = Instant::now();
    until(PATIENCE, || sync_bars(&mongo).count_documents(doc! {}).run().is_ok_and(|count| count == 1));
    println!("the same guard works {:?} after the server is up", back.elapsed());
    // The driver may recover before the pool. Until the resource is ready, its close would report a loss.
    until(PATIENCE, || pool.status().resource("mongo").unwrap().state == State::Ready);
    assert!(pool.close_all().unwrap().all_closed());
    assert_eq!(server.await_established(0, PATIENCE).unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn mongo_frozen_at_connect() {
    let server = start();
    server.freeze().unwrap();
    let client = Client::with_uri_str(server.url()).await.unwrap();
    let hung = tokio::time::timeout(2 * FROZEN, client.list_database_names().into_future()).await;
    assert!(hung.is_err(), "the control: the bare driver is still at it");

    let pool = ResourcePool::builder().environment([("", ""); 0]).resource(config(&server)).build().unwrap();
    let (failed, took) = stopped(pool.mongo()).await;
    println!("async, after {took:?}: {}", failed.as_ref().unwrap_err());
    assert!(matches!(failed, Err(Error::Connect(_) | Error::Timeout(_))));
    assert!(took < FROZEN + Duration::from_millis(500), "{took:?}");
    let limit = Duration::from_secs(3);
    let threads = blocking::ResourcePool::from(pool.clone()).within(limit);
    let acquiring = tokio::task::spawn_blocking(move || threads.mongo().map(drop));
    let (failed, took) = stopped(acquiring).await;
    assert!(failed.unwrap().is_err() && took < limit + Duration::from_secs(2), "{took:?}");

    server.thaw().unwrap();
    eventually(PATIENCE, async || pool.mongo().await.ok()).await.list_database_names().await.unwrap();
    assert!(pool.close_all().await.all_closed());
    client.shutdown().await;
    assert_eq!(server.await_established(0, PATIENCE).unwrap(), 0);
}

/// In-flight and new operations: reads, which the driver tries again, and writes, which it does not.
#[tokio::test(flavor = "multi_thread")]
async fn mongo_frozen_during_an_operation() {
    let server = start();
    let bare = bare(&server).await;
    let pool = pool(&server);
    let mongo = pool.mongo().await.unwrap();
    bars(&mongo).insert_one(doc! { "code": "IBM" }).await.unwrap();
    let sync = {
        let threads = blocking::ResourcePool::from(pool.clone());
        tokio::task::spawn_blocking(move || threads.mongo().unwrap()).await.unwrap()
    };
    let (reading, bare_reading) = (bars(&mongo), bars(&bare));
    let in_flight = tokio::spawn(async move { reading.find_one(slow(300_000)).await });
    let control = tokio::spawn(async move { bare_reading.find_one(slow(300_000)).await });
    until_async(PATIENCE, async || in_use(&pool) == Some(1)).await;

    server.freeze().unwrap();
    let frozen = Instant::now();
    let clone = sync.clone();
    let setting = move || sync_bars(&clone).update_many(doc! {}, doc! { "$set": { "n": 1 } }).run().map(drop);
    let writing = tokio::task::spawn_blocking(move || timed(setting).1);
    let adding = move || sync_bars(&sync).insert_one(doc! { "code": "GOOG" }).run().map(drop);
    let inserting = tokio::task::spawn_blocking(move || timed(adding).1);
    let all = async {
        let (found, took) = timed_async(bars(&mongo).find_one(doc! {})).await;
        println!("new read, after {took:?}: {}", found.unwrap_err());
        let error = in_flight.await.unwrap().unwrap_err();
        println!("in flight, after {:?}: {error}", frozen.elapsed());
        for (what, thread) in [("insert", inserting), ("update_many", writing)] {
            println!("blocking {what}, after {:?}", thread.await.unwrap());
        }
    };
    let ((), took) = stopped(all).await;
    assert!(took < FROZEN, "{took:?}");
    until_async(PATIENCE, async || state(&pool) != State::Ready).await;
    println!("known as lost after {:?}", frozen.elapsed());
    assert!(!control.is_finished(), "the control: the bare driver has noticed nothing");
    control.abort();

    server.thaw().unwrap();
    let back = Instant::now();
    eventually(PATIENCE, async || bars(&mongo).find_one(doc! {}).await.ok()).await;
    println!("the same guard works {:?} after the thaw", back.elapsed());
    until_async(PATIENCE, async || state(&pool) == State::Ready).await;
    assert!(pool.close_all().await.all_closed());
}

#[tokio::test(flavor = "multi_thread")]
async fn mongo_frozen_at_health() {
    let server = start();
    let pool = pool(&server);
    let threads = blocking::ResourcePool::from(pool.clone());
    drop(pool.mongo().await.unwrap());
    until_async(PATIENCE, async || pool.health_check().await.entry("mongo").unwrap().health == Health::Pass).await;
    server.freeze().unwrap();
    // The first answers may be the cached report of before.
    until_async(PATIENCE, async || {
        let (report, took) = stopped(pool.health_check()).await;
        assert!(took < HEALTH, "{took:?}");
        report.entry("mongo").unwrap().health == Health::Fail
    })
    .await;
    let asking = tokio::task::spawn_blocking(move || threads.is_healthy("mongo"));
    let (healthy, took) = stopped(asking).await;
    assert!(!healthy.unwrap().unwrap() && took < HEALTH, "{took:?}");
    server.thaw().unwrap();
    until_async(PATIENCE, async || pool.is_healthy("mongo").await).await;
    assert!(pool.close_all().await.all_closed());
}

#[tokio::test(flavor = "multi_thread")]
async fn mongo_frozen_at_close_while_idle() {
    let server = start();
    let bare = bare(&server).await;
    let pool = pool(&server);
    let mongo = pool.mongo().await.unwrap();
    mongo.list_database_names().await.unwrap();
    server.freeze().unwrap();
    let control = tokio::spawn(async move { bare.shutdown().await });
    let (report, took) = timed_async(pool.close_all()).await;
    println!("{report}");
    assert!(took < PATIENCE, "{took:?}");
    // The drain may have ended before the pool noticed the loss.
    let outcome = &report.step("mongo").unwrap().outcome;
    assert!(matches!(outcome, Outcome::Closed | Outcome::Failed(_)), "{report}");
    assert!(!control.is_finished(), "the control: the bare driver waits for its session's end");
    control.abort();
    assert!(mongo.list_database_names().await.is_err());
    server.thaw().unwrap();
    drop(mongo);
}

/// The driver's `shutdown` ends the monitor that would have ended the operation. So neither of them ever ends.
#[tokio::test(flavor = "multi_thread")]
async fn mongo_trap_shutdown_hangs_with_an_operation_in_flight_on_a_frozen_server() {
    let server = start();
    let url = format!("{}&heartbeatFrequencyMS=1000&connectTimeoutMS=1000", server.url());
    let bare = Client::with_uri_str(url).await.unwrap();
    bars(&bare).insert_one(doc! { "code": "IBM" }).await.unwrap();
    let pool = pool(&server);
    let mongo = pool.mongo().await.unwrap();
    let (reading, bare_reading) = (bars(&mongo), bars(&bare));
    let operation = tokio::spawn(async move { reading.find_one(slow(300_000)).await });
    let control = tokio::spawn(async move { bare_reading.find_one(slow(300_000)).await });
    until_async(PATIENCE, async || in_use(&pool) == Some(1)).await;

    server.freeze().unwrap();
    let control_shutdown = tokio::spawn(async move { bare.shutdown().immediate(true).await });
    let (report, took) = timed_async(pool.close_all()).await;
    println!("{report}");
    assert!(took < PATIENCE, "{took:?}");
    assert!(matches!(&report.step("mongo").unwrap().outcome, Outcome::Failed(why) if why.contains("lost")), "{report}");
    let error = operation.within(PATIENCE).await.unwrap().unwrap_err();
    println!("the operation: {error}");
    let hung = tokio::time::timeout(Duration::from_secs(2), control_shutdown).await;
    assert!(hung.is_err() && !control.is_finished(), "the control: both hang in the bare driver");
    control.abort();
    assert!(mongo.list_database_names().await.is_err());
}

/// Each operation that ends lets the next one begin, so `shutdown` always finds one to wait for.
#[tokio::test(flavor = "multi_thread")]
async fn mongo_trap_shutdown_never_returns_while_operations_keep_coming() {
    fn load(client: &mongodb::sync::Client, threads: usize) -> Vec<JoinHandle<()>> {
        let ask = |client: mongodb::sync::Client| while sync_bars(&client).find_one(slow(20)).run().is_ok() {};
        (0..threads).map(|_| client.clone()).map(|client| thread::spawn(move || ask(client))).collect()
    }
    let server = start();
    let runtime = tokio::runtime::Handle::current();
    let bare = bare(&server).await;
    bars(&bare).insert_one(doc! { "code": "IBM" }).await.unwrap();
    let asking = load(&mongodb::sync::Client::from(bare.clone()), 8);
    until_async(PATIENCE, async || server.established().unwrap() >= 8).await;
    let control = tokio::time::timeout(Duration::from_secs(4), bare.shutdown().immediate(true).into_future()).await;
    assert!(control.is_err(), "the control: the bare driver waits on");
    assert!(asking.iter().any(|thread| !thread.is_finished()), "and serves on");

    // Once all connections are in use, and once most of them are idle.
    for (max, threads) in [(4, 16), (100, 3)] {
        let brief = |options: &mut Options| options.close.drain = Duration::from_millis(200);
        let pool = pool_with(MongoConfig::uri(server.url()).max_pool_size(max), brief);
        let threads = {
            let view = blocking::ResourcePool::from(pool.clone());
            runtime.spawn_blocking(move || load(&view.mongo().unwrap(), threads)).await.unwrap()
        };
        until_async(PATIENCE, async || in_use(&pool) > Some(0)).await;
        let report = pool.close_all().await;
        println!("{report}");
        assert!(report.all_closed() && report.took < PATIENCE, "{report}");
        let joining = runtime.spawn_blocking(|| threads.into_iter().all(|thread| thread.join().is_ok()));
        assert!(joining.within(PATIENCE).await.unwrap(), "an error for each, no panic");
    }
    server.kill().unwrap();
}

/// A thread that never stops asking does not keep a frozen server's client from closing.
#[test]
fn mongo_frozen_at_close_under_blocking_load() {
    let server = start();
    let pool = blocking::ResourcePool::from(pool_of(config(&server).min_pool_size(8).max_pool_size(8)));
    let usage = |pool: &blocking::ResourcePool| pool.status().resource("mongo").unwrap().usage;
    drop(pool.mongo().unwrap());
    // Waits until no connection is opening. The documentation of `Mongo` has the limits of that case.
    until(PATIENCE, || usage(&pool).idle == Some(8));
    let over = Arc::new(AtomicBool::new(false));
    let load: Vec<JoinHandle<()>> = (0..8)
        .map(|_| {
            let (mongo, over) = (pool.mongo().unwrap(), Arc::clone(&over));
            thread::spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    let _either_way = sync_bars(&mongo).count_documents(doc! {}).run();
                }
            })
        })
        .collect();
    until(PATIENCE, || usage(&pool).in_use > Some(0));
    server.freeze().unwrap();
    let (report, took) = timed(|| pool.close_all().unwrap());
    println!("{report}");
    assert!(took < 2 * PATIENCE, "{took:?}");
    assert!(matches!(&report.step("mongo").unwrap().outcome, Outcome::Failed(why) if why.contains("lost")), "{report}");
    over.store(true, Ordering::SeqCst);
    for thread in load {
        thread.join().expect("errors, no panic");
    }
}

/// Dropping the bare client leaves the socket of its round-trip monitor open until the next heartbeat.
#[tokio::test(flavor = "multi_thread")]
async fn mongo_trap_a_monitors_socket_outlives_the_client() {
    let server = start();
    let bare = bare(&server).await;
    until_async(PATIENCE, async || server.established().unwrap() >= 3).await;
    drop(bare);
    let left = server.await_established(0, Duration::from_secs(2)).unwrap();
    assert_eq!(left, 1, "the control: one is left of the bare driver's");
    assert_eq!(server.await_established(0, PATIENCE).unwrap(), 0);

    let pool = pool(&server);
    let mongo = pool.mongo().await.unwrap();
    until_async(PATIENCE, async || server.established().unwrap() >= 4).await;
    let clone = mongo.clone();
    assert!(pool.close_all().await.all_closed());
    let left = server.await_established(0, Duration::from_secs(2)).unwrap();
    assert_eq!(left, 0, "although {clone:?} and {mongo:?} live");

    // An attempt to connect that fails leaves no socket either.
    let wrong = server.url().replacen(":p%40", ":wrong%40", 1);
    let failing = ResourcePool::builder().environment([("", ""); 0]).resource(MongoConfig::uri(wrong)).build().unwrap();
    assert!(failing.mongo().await.is_err());
    assert_eq!(server.await_established(0, PATIENCE).unwrap(), 0);
}

/// The driver parses the option, and then ignores it.
#[tokio::test(flavor = "multi_thread")]
async fn mongo_trap_wait_queue_timeout_is_ignored() {
    let server = start();
    let url = format!("{}&maxPoolSize=1&waitQueueTimeoutMS=100", server.url());
    let checkouts = Arc::new(AtomicUsize::new(0));
    let mut options = ClientOptions::parse(&url).await.unwrap();
    let counting = Arc::clone(&checkouts);
    options.cmap_event_handler = Some(EventHandler::callback(move |event| {
        if matches!(event, CmapEvent::ConnectionCheckedOut(_)) {
            counting.fetch_add(1, Ordering::SeqCst);
        }
    }));
    let bare = Client::with_options(options).unwrap();
    bars(&bare).insert_one(doc! { "code": "IBM" }).await.unwrap();
    let reading = bars(&bare);
    let hog = tokio::spawn(async move { reading.find_one(slow(2000)).await });
    until_async(PATIENCE, async || checkouts.load(Ordering::SeqCst) == 2).await;
    let (waited, took) = timed_async(bars(&bare).find_one(doc! {})).await;
    assert!(waited.is_ok() && took > Duration::from_secs(1), "the control: it waited {took:?}, and got its turn");
    hog.await.unwrap().unwrap();
    bare.shutdown().await;

    // So the pool refuses the option, and its error says what to do instead.
    let refused = ResourcePool::builder().environment([("", ""); 0]).resource(MongoConfig::uri(url)).build();
    let error = refused.unwrap_err();
    assert!(error.to_string().contains("waitQueueTimeoutMS"), "{error}");
    // That works: a caller that gives up is gone, and its place in the queue too.
    let one = config(&server).min_pool_size(0).max_pool_size(1);
    let pool = pool_of(one);
    let mongo = pool.mongo().await.unwrap();
    let reading = bars(&mongo);
    let hog = tokio::spawn(async move { reading.find_one(slow(1500)).await });
    until_async(PATIENCE, async || in_use(&pool) == Some(1)).await;
    let bars_in_turn = bars(&mongo);
    let limited = tokio::time::timeout(Duration::from_millis(100), bars_in_turn.find_one(doc! {}).into_future());
    assert!(limited.await.is_err());
    assert!(pool.is_healthy("mongo").await, "a ping does not queue behind it");
    hog.await.unwrap().unwrap();
    bars(&mongo).find_one(doc! {}).await.unwrap();
    assert!(pool.close_all().await.all_closed());
}

/// Puts all connections of the client to work. Then begins so many operations and gives them up.
async fn overload(
    server: &Service,
    client: &Client,
    connections: usize,
    given_up: usize,
) -> Vec<tokio::task::JoinHandle<()>> {
    let watching = bare(server).await.database("admin");
    let at_work = async || {
        let queries = doc! { "ns": "quantaxis.stock_day", "op": "query" };
        let all = watching.aggregate([doc! { "$currentOp": {} }, doc! { "$match": queries }]).await.unwrap();
        all.try_collect::<Vec<_>>().await.unwrap().len()
    };
    // The connections open one after the other, and this gives them time for it.
    let busy = 1000 + 100 * connections as u32;
    let ask = |query: Document| {
        let bars = bars(client);
        async move { bars.find_one(query).await.map(drop) }
    };
    let working: Vec<_> =
        (0..connections).map(|_| ask(slow(busy))).map(|asking| tokio::spawn(async { asking.await.unwrap() })).collect();
    until_async(PATIENCE, async || at_work().await == connections).await;
    let asking = (0..given_up).map(|_| tokio::time::timeout(Duration::from_millis(100), ask(doc! {})));
    for asked in futures_util::future::join_all(asking).await {
        assert!(asked.is_err(), "all connections are in use");
    }
    working
}

/// The driver keeps dropped operations in its queue. It removes one each time somebody asks for a connection or hands
/// one back, and otherwise every 500 ms.
#[tokio::test(flavor = "multi_thread")]
async fn mongo_trap_operations_that_were_given_up_hold_up_later_ones() {
    let server = start();
    let bare = Client::with_uri_str(format!("{}&maxPoolSize=1", server.url())).await.unwrap();
    bars(&bare).insert_one(doc! { "code": "IBM" }).await.unwrap();
    for working in overload(&server, &bare, 1, 20).await {
        working.await.unwrap();
    }
    let (control, limit) = (bars(&bare), Duration::from_secs(3));
    let late = tokio::time::timeout(limit, control.find_one(doc! {}).into_future()).await;
    assert!(late.is_err(), "the control: its only connection is idle, and the bare driver serves nobody for {limit:?}");

    for (max, given_up) in [(20, 100), (1, 30), (20, 1)] {
        let pool = pool_of(MongoConfig::uri(server.url()).min_pool_size(0).max_pool_size(max));
        let mongo = pool.mongo().await.unwrap();
        let threads = blocking::ResourcePool::from(pool.clone());
        let usage = || pool.status().resource("mongo").unwrap().usage;
        // The control is the same without an overload.
        let all_at_once = async || {
            let asking: Vec<_> = (0..15).map(|_| bars(&mongo)).collect();
            let asking = asking.iter().map(|bars| timed_async(bars.find_one(doc! {})));
            let answers = futures_util::future::join_all(asking).await.into_iter();
            answers.map(|(found, took)| found.map(|_| took)).collect::<Result<Vec<_>, _>>().unwrap()
        };
        let control = all_at_once().await.into_iter().max().unwrap();
        for working in overload(&server, &mongo, max as usize, given_up).await {
            working.await.unwrap();
        }
        let over = Instant::now();
        let blocking = tokio::task::spawn_blocking(move || {
            timed(|| sync_bars(&threads.mongo().unwrap()).find_one(doc! {}).run().map(drop))
        });
        let allowed = control + Duration::from_secs(1);
        for took in all_at_once().await {
            assert!(took < allowed, "{took:?} of {allowed:?}");
        }
        let (found, took) = blocking.await.unwrap();
        assert!(found.is_ok() && took < allowed, "{took:?} of {allowed:?}");
        println!("{given_up} given up of {max}: the next 15 answered after {:?}", over.elapsed());
        until_async(PATIENCE, async || usage().waiting == Some(0)).await;
        until_async(PATIENCE, async || pool.health_check().await.entry("mongo").unwrap().health == Health::Pass).await;
        let finished = pool.close_all().await;
        assert!(finished.all_closed(), "{finished}");
    }
}

/// Closing sends its last commands over the same queue.
#[tokio::test(flavor = "multi_thread")]
async fn mongo_closes_while_operations_that_were_given_up_are_in_the_queue() {
    let server = start();
    let one = MongoConfig::uri(server.url()).min_pool_size(0).max_pool_size(1);
    let pool = pool_of(one);
    let mongo = pool.mongo().await.unwrap();
    bars(&mongo).insert_one(doc! { "code": "IBM" }).await.unwrap();
    let working = overload(&server, &mongo, 1, 50).await;
    let (report, took) = timed_async(pool.close_all()).await;
    println!("{report}");
    assert!(report.all_closed() && took < DRAIN, "{report}");
    assert_eq!(report.step("mongo").unwrap().finished, [(Work::Operation, working.len())], "pings are nobody's work");
    for working in working {
        working.await.unwrap();
    }
    assert_eq!(server.await_established(0, PATIENCE).unwrap(), 0);
}

/// The queue is so long that clearing it takes the pool a while.
#[tokio::test(flavor = "multi_thread")]
async fn mongo_health_warns_while_operations_that_were_given_up_are_cleared() {
    let server = start();
    let one = MongoConfig::uri(server.url()).min_pool_size(0).max_pool_size(1);
    let pool = pool_with(one, |options| options.health.cache = Duration::ZERO);
    let mongo = pool.mongo().await.unwrap();
    bars(&mongo).insert_one(doc! { "code": "IBM" }).await.unwrap();
    let working = overload(&server, &mongo, 1, 500).await;
    let health = async || pool.health_check().await.entry("mongo").unwrap().clone();
    let entry = eventually(PATIENCE, async || Some(health().await).filter(|entry| entry.health == Health::Warn)).await;
    let usage = pool.status().resource("mongo").unwrap().usage;
    println!("{entry:?} {usage:?}");
    assert!(entry.error.unwrap().contains("given up"));
    assert_eq!(usage.waiting, Some(0), "who gave up does not wait");
    until_async(PATIENCE, async || health().await.health == Health::Pass).await;
    assert!(bars(&mongo).find_one(doc! {}).await.unwrap().is_some());
    for working in working {
        working.await.unwrap();
    }
    assert_eq!(pool.status().resource("mongo").unwrap().generation, 1);
    assert!(pool.close_all().await.all_closed());
}

/// The driver panics in an operation that waits for an opening connection when the driver's runtime ends.
#[test]
fn mongo_trap_a_hung_establishing_panics_when_its_runtime_dies() {
    let server = start();
    let ready = |client: &mongodb::sync::Client| client.list_database_names().run().unwrap();
    let options = ["maxPoolSize=10", "heartbeatFrequencyMS=60000", "connectTimeoutMS=60000"].join("&");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let created = Arc::new(AtomicUsize::new(0));
    let bare = runtime.block_on(async {
        let mut options = ClientOptions::parse(format!("{}&{options}", server.url())).await.unwrap();
        let counting = Arc::clone(&created);
        options.cmap_event_handler = Some(EventHandler::callback(move |event| {
            if matches!(event, CmapEvent::ConnectionCreated(_)) {
                counting.fetch_add(1, Ordering::SeqCst);
            }
        }));
        Client::with_options(options).unwrap()
    });
    let bare = mongodb::sync::Client::from(bare);
    ready(&bare);
    let pool = blocking_pool(&server);
    let mongo = pool.mongo().unwrap();
    ready(&mongo);

    server.freeze().unwrap();
    // The first operation takes the one open connection. The others have to open theirs.
    let ask = |client: &mongodb::sync::Client| -> Vec<JoinHandle<bool>> {
        (0..4)
            .map(|_| {
                let client = client.clone();
                thread::spawn(move || {
                    catch_unwind(AssertUnwindSafe(|| client.list_database_names().run().is_err())).is_err()
                })
            })
            .collect()
    };
    let before = created.load(Ordering::SeqCst);
    let (controls, ours) = (ask(&bare), ask(&mongo));
    // The bare driver opens two connections at a time.
    until(PATIENCE, || created.load(Ordering::SeqCst) >= before + 2);
    runtime.shutdown_background();
    let panicked = controls.into_iter().map(|thread| thread.join().unwrap()).filter(|it| *it).count();
    assert!(panicked > 0, "the control: the bare driver panics in its users' threads");

    let (report, took) = timed(|| pool.close_all().unwrap());
    println!("{report}");
    assert!(took < PATIENCE, "{took:?}");
    for thread in ours {
        assert!(!thread.join().unwrap(), "an error, not a panic");
    }
}

/// A slow server is not taken for a frozen one.
#[tokio::test(flavor = "multi_thread")]
async fn mongo_slow_operations_survive_on_both_facades() {
    let server = start();
    let pool = pool(&server);
    let mongo = pool.mongo().await.unwrap();
    bars(&mongo).insert_one(doc! { "code": "IBM" }).await.unwrap();
    let threads = blocking::ResourcePool::from(pool.clone());
    let blocking =
        thread::spawn(move || timed(|| sync_bars(&threads.mongo().unwrap()).find_one(slow(8000)).run().unwrap()));
    let (found, took) = timed_async(bars(&mongo).find_one(slow(8000))).await;
    assert!(found.unwrap().is_some() && took > Duration::from_secs(8), "{took:?}");
    let (found, took) = blocking.join().unwrap();
    assert!(found.is_some() && took > Duration::from_secs(8), "{took:?}");
    assert_eq!(pool.status().resource("mongo").unwrap().generation, 1, "never taken for lost");
    assert!(pool.close_all().await.all_closed());
}

/// A change stream without events is not cut.
#[tokio::test(flavor = "multi_thread")]
async fn mongo_an_idle_change_stream_survives() {
    let server = start();
    let pool = pool(&server);
    let mongo = pool.mongo().await.unwrap();
    bars(&mongo).insert_one(doc! { "code": "IBM" }).await.unwrap();
    let mut changes = bars(&mongo).watch().await.unwrap();
    let idle =
        tokio::time::timeout(Duration::from_secs(8), async { while changes.next_if_any().await.unwrap().is_none() {} });
    assert!(idle.await.is_err(), "nothing has changed");
    bars(&mongo).insert_one(doc! { "code": "GOOG" }).await.unwrap();
    let change = eventually(PATIENCE, async || changes.next_if_any().await.unwrap()).await;
    assert_eq!(change.full_document.unwrap().get_str("code").unwrap(), "GOOG");
    assert_eq!(pool.status().resource("mongo").unwrap().generation, 1);
    drop(changes);
    assert!(pool.close_all().await.all_closed());
}

/// A network path drops everything without ending the connection.
#[tokio::test(flavor = "multi_thread")]
async fn mongo_a_path_gone_dark_surfaces_and_heals() {
    let server = start();
    let proxy = Proxy::start(server.port()).unwrap();
    let url = proxy.url(&server).replacen("replicaSet=rs0", "directConnection=true", 1);
    let pool = pool_of(MongoConfig::uri(url).min_pool_size(2));
    let mongo = pool.mongo().await.unwrap();
    bars(&mongo).insert_one(doc! { "code": "IBM" }).await.unwrap();
    proxy.freeze();
    let (failed, took) = stopped(bars(&mongo).find_one(doc! {}).into_future()).await;
    assert!(failed.is_err() && took < FROZEN, "{took:?}");
    proxy.thaw();
    eventually(PATIENCE, async || bars(&mongo).find_one(doc! {}).await.ok()).await;
    until_async(PATIENCE, async || state(&pool) == State::Ready).await;
    assert!(pool.close_all().await.all_closed());
}
