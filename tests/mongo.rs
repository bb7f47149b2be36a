//! MongoDB on both facades, against real servers.

#![cfg(feature = "mongodb")]
#![allow(missing_docs)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use common::{Log, stopped, unhurried, until_async};
use futures_util::StreamExt;
use mongodb::bson::{Bson, Document, doc};
use mongodb::error::ErrorKind;
#[cfg(feature = "metrics")]
use parking_lot::Mutex;
#[cfg(feature = "metrics")]
use resource_pool::Measure;
use resource_pool::config::{MongoConfig, Options};
use resource_pool::{
    Counters, Error, Health, HealthEntry, Lease, Mongo, Phase, ResourcePool, State, Usage, Work, blocking,
};
use services::{BlackHole, Kind, Proxy, Service, shared};

/// The limit for any expected change. A busy machine needs less.
const SOON: Duration = Duration::from_secs(20);
/// The longest wait of an acquire, by default.
const ACQUIRE: Duration = Duration::from_secs(5);
/// The limit for a close without a failure. It is less than the default limit of the drain.
const DRAIN: Duration = Duration::from_secs(8);

/// A configuration with this application name, which the server lists for each connection.
fn config(app: &str) -> MongoConfig {
    MongoConfig::uri(shared(Kind::Mongo).url()).app_name(app).min_pool_size(2)
}

fn pool(config: MongoConfig) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).resource(config).options(unhurried()).build().expect("a pool")
}

/// A pool with the limits that the guide promises.
fn hurried(config: MongoConfig) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).resource(config).build().expect("a pool")
}

fn blocking_pool(config: MongoConfig) -> blocking::ResourcePool {
    pool(config).into()
}

/// The number of the server's connections from the client of this name, probes included.
fn connections(app: &str) -> usize {
    let clients = shared(Kind::Mongo).mongo().unwrap().clients().unwrap();
    clients.iter().filter(|client| client.app_name.split(' ').next() == Some(app)).count()
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < SOON, "not within {SOON:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
    started.elapsed()
}

fn closed(app: &str) -> Duration {
    eventually(&format!("no connection of {app} is left"), || connections(app) == 0)
}

fn bars(client: &mongodb::Client, test: &str) -> mongodb::Collection<Document> {
    client.database("quantaxis").collection(test)
}

fn sync_bars(client: &mongodb::sync::Client, test: &str) -> mongodb::sync::Collection<Document> {
    client.database("quantaxis").collection(test)
}

fn usage(pool: &ResourcePool) -> Usage {
    pool.status().resource("mongo").unwrap().usage
}

fn is_shutdown(error: &mongodb::error::Error) -> bool {
    matches!(*error.kind, ErrorKind::Shutdown)
}

#[test]
fn mongo_guards_are_send_and_static() {
    fn check<T: Send + Sync + 'static>() {}
    check::<Lease<mongodb::Client>>();
    check::<Lease<mongodb::sync::Client>>();
    check::<resource_pool::Scoped<Lease<mongodb::Client>>>();
    check::<blocking::Scoped<Lease<mongodb::sync::Client>>>();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_async_connects_is_used_and_reused_and_closes() {
    let app = "async-use";
    let pool = pool(config(app));
    assert_eq!(pool.status().resource("mongo").unwrap().state, State::Idle);
    assert_eq!(connections(app), 0);
    let mongo = pool.mongo().await.unwrap();
    let bars = bars(&mongo, app);
    bars.insert_one(doc! { "code": "000001", "close": 9.5 }).await.unwrap();
    let again = pool.mongo().await.unwrap();
    assert_eq!(Lease::generation(&again), 1);
    let found = again.database("quantaxis").collection::<Document>(app).find_one(doc! { "code": "000001" }).await;
    assert_eq!(found.unwrap().unwrap().get_f64("close").unwrap(), 9.5);
    bars.drop().await.unwrap();
    assert_eq!(pool.health_check().await.entry("mongo").unwrap().health, Health::Pass);
    assert!(pool.is_healthy("mongo").await);
    let lines: Vec<_> = pool.holders().iter().map(|holder| (holder.site.file(), holder.exclusive)).collect();
    assert_eq!(lines, [(file!(), false); 2]);

    let clone = mongo.clone();
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    assert_eq!(report.step("mongo").unwrap().held.len(), 2);
    println!("closed in {:?}, gone from the server {:?} later", report.step("mongo").unwrap().took, closed(app));
    assert!(is_shutdown(&mongo.list_database_names().await.unwrap_err()));
    assert!(is_shutdown(&clone.list_database_names().await.unwrap_err()));
    assert!(matches!(pool.mongo().await, Err(Error::Closed { .. })));
    assert_eq!(connections(app), 0);
}

#[test]
fn mongo_blocking_connects_is_used_and_reused_and_closes() {
    let app = "blocking-use";
    let pool = blocking_pool(config(app));
    let mongo = pool.mongo().unwrap();
    let bars = sync_bars(&mongo, app);
    bars.insert_one(doc! { "code": "000001", "close": 9.5 }).run().unwrap();
    let again = pool.mongo().unwrap();
    assert_eq!(sync_bars(&again, app).count_documents(doc! {}).run().unwrap(), 1);
    bars.drop().run().unwrap();
    assert!(pool.is_healthy("mongo").unwrap());
    let clone = mongo.clone();
    let report = pool.close_all().unwrap();
    assert!(report.all_closed(), "{report}");
    closed(app);
    assert!(is_shutdown(&mongo.list_database_names().run().unwrap_err()));
    assert!(is_shutdown(&clone.list_database_names().run().unwrap_err()));
    assert!(matches!(pool.mongo(), Err(Error::Closed { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_both_facades_lease_one_client() {
    let app = "both-facades";
    let pool = pool(config(app).min_pool_size(0).max_pool_size(1));
    let threads = blocking::ResourcePool::from(pool.clone());
    let mongo = pool.mongo().await.unwrap();
    bars(&mongo, app).insert_one(doc! { "code": "IBM" }).await.unwrap();
    let count = tokio::task::spawn_blocking(move || {
        let mongo = threads.mongo().unwrap();
        sync_bars(&mongo, app).count_documents(doc! {}).run().unwrap()
    });
    assert_eq!(count.await.unwrap(), 1);
    bars(&mongo, app).drop().await.unwrap();
    assert_eq!(usage(&pool).open, Some(1));
    assert_eq!(pool.status().resource("mongo").unwrap().generation, 1);
    assert!(pool.close_all().await.all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_named_instances_have_clients_of_their_own() {
    let pool = ResourcePool::builder()
        .environment([("", ""); 0])
        .resource(config("named-default"))
        .named("research", config("named-research"))
        .build()
        .unwrap();
    let default = pool.mongo().await.unwrap();
    let research = pool.mongo_named("research").await.unwrap();
    let brought = pool.mongo_with("archive", config("named-archive")).await.unwrap();
    for (client, app) in [(&default, "named-default"), (&research, "named-research"), (&brought, "named-archive")] {
        client.list_database_names().await.unwrap();
        assert!(connections(app) > 0);
    }
    assert!(matches!(pool.mongo_named("nobody").await, Err(Error::UnknownName { .. })));
    let other = pool.mongo_with("archive", config("named-other")).await;
    assert!(matches!(other, Err(Error::NameTaken { .. })), "{other:?}");
    assert!(pool.close("research").await.unwrap().all_closed());
    closed("named-research");
    assert!(research.list_database_names().await.is_err());
    default.list_database_names().await.unwrap();

    // A closed resource comes back with a client of its own when it is reconnected.
    pool.reconnect("research").await.unwrap();
    pool.mongo_named("research").await.unwrap().list_database_names().await.unwrap();
    assert!(pool.close_all().await.all_closed());
    closed("named-default");
    closed("named-archive");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_async_scoped_closes_however_it_ends() {
    async fn by_question_mark(app: &str) -> Result<(), Box<dyn std::error::Error>> {
        let mongo = Mongo::scoped(config(app)).await?;
        mongo.database("quantaxis").run_command(doc! { "noSuchCommand": 1 }).await?;
        Ok(())
    }
    let mongo = Mongo::scoped(config("async-scoped")).await.unwrap();
    mongo.list_database_names().await.unwrap();
    assert!(connections("async-scoped") > 0);
    let clone = mongo.clone();
    let report = mongo.close().await;
    assert!(report.all_closed(), "{report}");
    closed("async-scoped");
    assert!(is_shutdown(&clone.list_database_names().await.unwrap_err()));

    assert!(by_question_mark("async-scoped-error").await.is_err());
    closed("async-scoped-error");

    let panicking = tokio::spawn(async {
        let _mongo = Mongo::scoped(config("async-scoped-panic")).await.unwrap();
        panic!("on purpose");
    });
    assert!(panicking.await.unwrap_err().is_panic());
    closed("async-scoped-panic");

    let mongo = Mongo::scoped(config("async-scoped-outside")).await.unwrap();
    thread::spawn(move || drop(mongo)).join().unwrap();
    closed("async-scoped-outside");
}

#[test]
fn mongo_blocking_scoped_closes_however_it_ends() {
    fn by_question_mark(app: &str) -> Result<(), Box<dyn std::error::Error>> {
        let mongo = blocking::Mongo::scoped(config(app))?;
        mongo.database("quantaxis").run_command(doc! { "noSuchCommand": 1 }).run()?;
        Ok(())
    }
    let mongo = blocking::Mongo::scoped(config("blocking-scoped")).unwrap();
    mongo.list_database_names().run().unwrap();
    assert!(mongo.close().unwrap().all_closed());
    closed("blocking-scoped");

    assert!(by_question_mark("blocking-scoped-error").is_err());
    closed("blocking-scoped-error");

    let panicking = catch_unwind(|| {
        let _mongo = blocking::Mongo::scoped(config("blocking-scoped-panic")).unwrap();
        panic!("on purpose");
    });
    assert!(panicking.is_err());
    closed("blocking-scoped-panic");
}

/// The threads and tasks go on working while the pool closes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_100_threads_and_100_tasks_share_one_client_and_a_close() {
    let app = "crowd";
    let pool = pool(config(app).min_pool_size(0).max_pool_size(10));
    let threads_pool = blocking::ResourcePool::from(pool.clone());
    let start = Arc::new(Barrier::new(101));
    let threads: Vec<_> = (0..100)
        .map(|_| {
            let (pool, start) = (threads_pool.clone(), Arc::clone(&start));
            thread::spawn(move || {
                start.wait();
                let mongo = pool.mongo().unwrap();
                for _ in 0..10 {
                    sync_bars(&mongo, app).count_documents(doc! {}).run().unwrap();
                }
                move || while sync_bars(&mongo, app).count_documents(doc! {}).run().is_ok() {}
            })
        })
        .collect();
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let mongo = pool.mongo().await.unwrap();
                for _ in 0..10 {
                    bars(&mongo, app).count_documents(doc! {}).await.unwrap();
                }
                mongo
            })
        })
        .collect();
    tokio::task::spawn_blocking(move || start.wait()).await.unwrap();
    let endless: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    for task in tasks {
        drop(task.await.unwrap());
    }
    let status = pool.status().resource("mongo").unwrap().clone();
    assert_eq!(status.generation, 1);
    assert_eq!(status.usage.open, Some(10));
    // The client's pool, two monitors, and the probe's pool and monitor.
    let sockets = connections(app);
    assert!((12..=15).contains(&sockets), "{sockets}");

    let load: Vec<_> = endless.into_iter().map(thread::spawn).collect();
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    println!("closed under load: drained {:?}, closed {:?}", report.drained, report.step("mongo").unwrap().took);
    closed(app);
    for thread in load {
        thread.join().expect("an error, not a panic");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_transactions_commit_and_abort() {
    let app = "transactions";
    let pool = pool(config(app));
    let mongo = pool.mongo().await.unwrap();
    let bars = bars(&mongo, app);
    mongo.database("quantaxis").create_collection(app).await.unwrap();
    let mut session = mongo.start_session().await.unwrap();

    session.start_transaction().await.unwrap();
    bars.insert_one(doc! { "code": "kept" }).session(&mut session).await.unwrap();
    assert_eq!(bars.count_documents(doc! {}).await.unwrap(), 0);
    session.commit_transaction().await.unwrap();
    assert_eq!(bars.count_documents(doc! {}).await.unwrap(), 1);

    session.start_transaction().await.unwrap();
    bars.insert_one(doc! { "code": "taken back" }).session(&mut session).await.unwrap();
    session.abort_transaction().await.unwrap();
    assert_eq!(bars.count_documents(doc! {}).await.unwrap(), 1);
    bars.drop().await.unwrap();
    assert!(pool.close_all().await.all_closed());
}

#[test]
fn mongo_blocking_transactions_commit_and_abort() {
    let app = "blocking-transactions";
    let pool = blocking_pool(config(app));
    let mongo = pool.mongo().unwrap();
    let bars = sync_bars(&mongo, app);
    mongo.database("quantaxis").create_collection(app).run().unwrap();
    let mut session = mongo.start_session().run().unwrap();
    session.start_transaction().run().unwrap();
    bars.insert_one(doc! { "code": "kept" }).session(&mut session).run().unwrap();
    session.commit_transaction().run().unwrap();
    session.start_transaction().run().unwrap();
    bars.insert_one(doc! { "code": "taken back" }).session(&mut session).run().unwrap();
    session.abort_transaction().run().unwrap();
    assert_eq!(bars.count_documents(doc! {}).run().unwrap(), 1);
    bars.drop().run().unwrap();
    assert!(pool.close_all().unwrap().all_closed());
}

/// With the bare driver, the transaction stays open on the server for a minute, with its locks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_close_aborts_an_open_transaction() {
    let app = "open-transaction";
    let watcher = pool(config("open-transaction-watcher"));
    let watching = watcher.mongo().await.unwrap();
    let open = async || {
        let idle = [
            doc! { "$currentOp": { "idleSessions": true } },
            doc! { "$match": { "type": "idleSession", "appName": app } },
        ];
        let mut cursor = watching.database("admin").aggregate(idle).await.unwrap();
        let mut count = 0;
        while cursor.advance().await.unwrap() {
            count += 1;
        }
        count
    };
    watching.database("quantaxis").create_collection(app).await.unwrap();

    let bare_options = {
        let mut options = mongodb::options::ClientOptions::parse(shared(Kind::Mongo).url()).await.unwrap();
        options.app_name = Some(app.to_owned());
        options
    };
    let bare = mongodb::Client::with_options(bare_options).unwrap();
    let mut session = bare.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    bars(&bare, app).insert_one(doc! { "code": "IBM" }).session(&mut session).await.unwrap();
    let id = session.id().get("id").cloned().unwrap();
    bare.shutdown().immediate(true).await;
    assert_eq!(open().await, 1, "the control: it outlives the bare driver's shutdown");
    watching.database("admin").run_command(doc! { "killSessions": [{ "id": id }] }).await.unwrap();
    assert_eq!(open().await, 0);

    let pool = pool(config(app));
    let mongo = pool.mongo().await.unwrap();
    let mut session = mongo.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    bars(&mongo, app).insert_one(doc! { "code": "IBM" }).session(&mut session).await.unwrap();
    assert_eq!(open().await, 1);
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    assert_eq!(open().await, 0);
    assert!(session.commit_transaction().await.is_err());
    drop(session);
    assert_eq!(bars(&watching, app).count_documents(doc! {}).await.unwrap(), 0);
    bars(&watching, app).drop().await.unwrap();
    assert!(watcher.close_all().await.all_closed());
    closed(app);
}

/// The bare driver's `shutdown` waits for a cursor without limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_close_does_not_wait_for_a_cursor() {
    let app = "held-cursor";
    let pool = pool(config(app));
    let mongo = pool.mongo().await.unwrap();
    let rows: Vec<_> = (0..300).map(|n| doc! { "n": n }).collect();
    bars(&mongo, app).insert_many(rows).await.unwrap();

    let bare = mongodb::Client::with_uri_str(shared(Kind::Mongo).url()).await.unwrap();
    let mut held = bars(&bare, app).find(doc! {}).batch_size(10).await.unwrap();
    assert!(held.advance().await.unwrap());
    let hung = tokio::time::timeout(Duration::from_secs(1), bare.clone().shutdown().into_future()).await;
    assert!(hung.is_err(), "the control: the bare driver waits for the cursor");
    drop(held);

    let mut cursor = bars(&mongo, app).find(doc! {}).batch_size(10).await.unwrap();
    assert!(cursor.advance().await.unwrap());
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    assert!(report.took < DRAIN, "{report}");
    let mut ended = Ok(true);
    while let Ok(true) = ended {
        ended = cursor.advance().await;
    }
    assert!(ended.is_err(), "the rows that were not fetched are not to be had");
    closed(app);
}

/// When closing stops the intake, nothing is open. A later step of an earlier phase begins a transaction, and closing
/// ends it nevertheless.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_close_finds_what_was_begun_while_closing() {
    let app = "late-transaction";
    let pool = pool(config(app));
    let mongo = mongodb::Client::clone(&*pool.mongo().await.unwrap());
    let bars = bars(&mongo, app);
    bars.insert_one(doc! { "n": 0 }).await.unwrap();
    let (runtime, (begun, session)) = (tokio::runtime::Handle::current(), std::sync::mpsc::channel());
    let begin = move || {
        let beginning = async {
            let mut session = mongo.start_session().await?;
            session.start_transaction().await?;
            bars.insert_one(doc! { "n": 1 }).session(&mut session).await?;
            Ok::<_, mongodb::error::Error>(session)
        };
        Ok(begun.send(runtime.block_on(beginning)?).map_err(|_| "nobody wants it")?)
    };
    pool.on_close("late", Phase::Tasks, begin).unwrap();
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    // An operation counts until its connection is back, a moment after its answer.
    assert!(report.step("mongo").unwrap().finished.contains(&(Work::Transaction, 1)), "{report}");
    drop(session.recv().unwrap());
    closed(app);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_usage_tells_open_in_use_idle_and_waiting() {
    let app = "usage";
    let pool = pool(config(app).min_pool_size(0).max_pool_size(2));
    let mongo = pool.mongo().await.unwrap();
    let bars = bars(&mongo, app);
    bars.insert_one(doc! { "n": 1 }).await.unwrap();
    let slow = || {
        let bars = bars.clone();
        tokio::spawn(async move { bars.find_one(doc! { "$where": "sleep(1500) || true" }).await })
    };
    let running: Vec<_> = (0..5).map(|_| slow()).collect();
    let is = |in_use: usize, idle: usize, waiting: usize| {
        let Usage { max, open, in_use: used, idle: unused, waiting: queue, .. } = usage(&pool);
        [max, open, used, unused, queue] == [Some(2), Some(2), Some(in_use), Some(idle), Some(waiting)]
    };
    eventually("two at work, three waiting", || is(2, 0, 3));
    let abandoned = slow();
    eventually("two at work, four waiting", || is(2, 0, 4));
    abandoned.abort();
    let work = pool.status().resource("mongo").unwrap().work.clone();
    assert_eq!(work, [(Work::Operation, 2)]);
    assert!(pool.is_healthy("mongo").await, "a ping does not queue behind them");
    for operation in running {
        assert!(operation.await.unwrap().unwrap().is_some());
    }
    eventually("all idle, and the abandoned one forgotten", || is(0, 2, 0));
    let Counters { opened, closed, acquires, waits, .. } = usage(&pool).counters;
    assert_eq!((opened, closed.map(|closed| closed.total())), (Some(2), Some(0)));
    assert!(acquires >= Some(6) && waits.is_none(), "the driver does not tell which of {acquires:?} waited");
    bars.drop().await.unwrap();
    assert!(pool.close_all().await.all_closed());
}

/// The driver checks the connection of an operation that was cut off in like any other.
#[cfg(feature = "metrics")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_operations_are_measured_as_done_or_as_cut_off() {
    let server = Service::start(Kind::Mongo).unwrap();
    let pool = pool(MongoConfig::uri(server.url()).min_pool_size(0));
    let measured = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&measured);
    pool.on_measured(move |measured| told.lock().push((measured.measure, measured.is_done, measured.took))).unwrap();
    let count = |is_done: bool| {
        let measured = measured.lock();
        measured.iter().filter(|one| one.0 == Measure::Work(Work::Operation) && one.1 == is_done).count()
    };
    let all_told = || usage(&pool).counters.acquires == Some((count(true) + count(false)) as u64);
    let mongo = pool.mongo().await.unwrap();
    let bars = bars(&mongo, "measured");
    bars.insert_one(doc! { "n": 1 }).await.unwrap();
    let slow = |millis: u32| {
        let (bars, query) = (bars.clone(), format!("sleep({millis}) || true"));
        tokio::spawn(async move { bars.find_one(doc! { "$where": query }).await })
    };
    bars.find_one(doc! { "no": { "$no_such_operator": 1 } }).await.unwrap_err();
    assert!(slow(100).await.unwrap().unwrap().is_some());
    eventually("each is told", all_told);
    assert_eq!(count(false), 0, "an error of the server is an answer");
    let longest = measured.lock().iter().map(|one| one.2).max().unwrap();
    assert!(longest >= Duration::from_millis(100), "{longest:?}");

    // The caller gives up.
    let dropped = slow(60_000);
    eventually("it is under way", || usage(&pool).in_use == Some(1));
    dropped.abort();
    eventually("it is told as cut off", || count(false) == 1 && all_told());

    // The connection is lost.
    let (lost, done) = (slow(60_000), count(true));
    eventually("it is under way", || usage(&pool).in_use == Some(1));
    server.kill().unwrap();
    lost.await.unwrap().unwrap_err();
    eventually("it is told as cut off", || count(false) >= 2);
    assert_eq!(count(true), done);
    drop(pool.close_all().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_close_waits_for_an_operation_under_way() {
    let app = "drained";
    let pool = pool(config(app));
    let mongo = pool.mongo().await.unwrap();
    bars(&mongo, app).insert_one(doc! { "n": 1 }).await.unwrap();
    let bars = bars(&mongo, app);
    let asked = Instant::now();
    let operation = tokio::spawn(async move { bars.find_one(doc! { "$where": "sleep(2000) || true" }).await });
    eventually("it is under way", || usage(&pool).in_use == Some(1));
    let report = pool.close_all().await;
    assert!(asked.elapsed() >= Duration::from_secs(2), "closing has not waited for the operation: {report}");
    assert!(report.all_closed(), "{report}");
    assert!(operation.await.unwrap().unwrap().is_some(), "it got its answer");
}

/// The change stream would wait for ever otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_close_ends_an_idle_change_stream() {
    let app = "change-stream";
    let pool = pool(config(app));
    let mongo = pool.mongo().await.unwrap();
    bars(&mongo, app).insert_one(doc! { "n": 1 }).await.unwrap();
    let mut changes = bars(&mongo, app).watch().await.unwrap();
    let consumer = tokio::spawn(async move { changes.next().await });
    eventually("it waits for a change", || usage(&pool).in_use == Some(1));
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    assert!(report.took < DRAIN, "{report}");
    let end = consumer.await.unwrap();
    println!("closed in {:?}; the consumer: {end:?}", report.took);
    assert!(matches!(end, None | Some(Err(_))));
    closed(app);
}

/// Operations that outlast the drain are ended on the server, so that closing need not wait for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_close_ends_an_operation_that_outlives_the_drain() {
    let app = "undrained";
    let mut options = unhurried();
    options.close.drain = Duration::from_millis(300);
    // The only connection is in use, so the driver has none for that command.
    let config = config(app).min_pool_size(0).max_pool_size(1);
    let pool = ResourcePool::builder().environment([("", ""); 0]).resource(config).options(options).build().unwrap();
    let mongo = pool.mongo().await.unwrap();
    bars(&mongo, app).insert_one(doc! { "n": 1 }).await.unwrap();
    let slow = bars(&mongo, app);
    let operation = tokio::spawn(async move { slow.find_one(doc! { "$where": "sleep(60000) || true" }).await });
    eventually("it is under way", || usage(&pool).in_use == Some(1));
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    assert_eq!(report.step("mongo").unwrap().unfinished, [(Work::Operation, 1)]);
    assert!(report.took < SOON, "{report}");
    let error = operation.await.unwrap().unwrap_err();
    println!("closed in {:?}; the operation: {error}", report.took);
    closed(app);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_bad_input_is_the_right_error_in_time() {
    let hole = BlackHole::start().unwrap();
    let vacant = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let server = shared(Kind::Mongo);
    let wrong = server.url().replacen(":p%40", ":wrong%40", 1);
    assert_ne!(wrong, server.url());
    let pool = hurried(config("bad-input"));
    let cases = [
        ("malformed", "mongodb://nobody:p@ss@host:port/".to_owned()),
        ("scheme", "postgres://localhost/".to_owned()),
        ("option", "mongodb://localhost/?maxPoolSize=many".to_owned()),
        ("wrong-password", wrong),
        ("refused", format!("mongodb://127.0.0.1:{vacant}/")),
        ("black-hole", format!("mongodb://127.0.0.1:{}/", hole.port())),
        ("unknown-host", "mongodb://no-such-host.invalid/".to_owned()),
    ];
    for (name, uri) in cases {
        let (result, took) = stopped(pool.mongo_with(name, MongoConfig::uri(uri))).await;
        let error = result.unwrap_err();
        println!("{name}: {took:.1?}: {error}");
        assert!(took < ACQUIRE + Duration::from_millis(500), "{name}: {took:?}");
        match name {
            "malformed" | "scheme" | "option" => {
                assert!(matches!(&error, Error::Config { key, .. } if *key == format!("{name}.uri")), "{error}");
            }
            "wrong-password" => {
                assert!(matches!(&error, Error::Connect(inner) if inner.permanent && inner.attempts == 1), "{error}");
                assert!(!error.is_transient());
            }
            _ => assert!(matches!(error, Error::Connect(_) | Error::Timeout(_)) && error.is_transient(), "{error}"),
        }
        // A busy server may not answer within the promised limits.
        until_async(SOON, async || pool.mongo().await.is_ok()).await;
        pool.mongo().await.unwrap().list_database_names().await.unwrap();
    }
    assert!(pool.close_all().await.all_closed());
    assert!(matches!(pool.mongo().await, Err(Error::Closed { .. })));
}

/// Makes the server fail these commands from clients of this name with an error. `mode` is a number of times,
/// `"alwaysOn"` or `"off"`.
async fn answer(server: &Service, app: &str, command: &str, code: i32, mode: impl Into<Bson>) {
    let mode = mode.into();
    let which = doc! { "failCommands": [command], "errorCode": code, "appName": app };
    let fail = doc! { "configureFailPoint": "failCommand", "mode": mode, "data": which };
    let client = mongodb::Client::with_uri_str(server.url()).await.unwrap();
    client.database("admin").run_command(fail).await.unwrap();
    client.shutdown().immediate(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_connecting_gives_up_at_once_on_what_no_attempt_mends() {
    let server = shared(Kind::Mongo);
    let set = "replicaSet=rs0";
    assert!(server.url().contains(set));
    let at = |port: u16| format!("mongodb://127.0.0.1:{port}/");
    let wrong = server.url().replacen(set, "replicaSet=wrong", 1);
    let [redis, http, amqp] = [Kind::Redis, Kind::ClickHouse, Kind::RabbitMq].map(|kind| shared(kind).port());
    let control = Instant::now();
    drop(pool(MongoConfig::uri(server.url())).mongo().await.unwrap());
    let control = control.elapsed();
    for (name, uri, told) in [
        ("set", wrong.clone(), "belongs to the replica set \"rs0\", and none to \"wrong\""),
        ("direct", format!("{wrong}&directConnection=true"), "belongs to the replica set \"rs0\""),
        ("source", server.url().replacen("authSource=admin", "authSource=quantaxis", 1), "Authentication failed"),
        ("user", server.url().replacen("mongodb://", "mongodb://no", 1), "Authentication failed"),
        ("redis", at(redis), "a Redis answers there instead of MongoDB"),
        ("http", at(http), "HTTP answers there instead of MongoDB"),
        ("amqp", at(amqp), "AMQP answers there instead of MongoDB"),
    ] {
        let pool = pool(MongoConfig::uri(uri));
        let started = Instant::now();
        let error = pool.mongo().await.unwrap_err();
        let took = started.elapsed();
        println!("{name}: {took:.1?}, beside {control:.1?} where all is well: {error}");
        assert!(error.to_string().contains(told), "{name}: {error}");
        assert!(matches!(&error, Error::Connect(inner) if inner.permanent && inner.attempts == 1), "{name}: {error}");
        assert!(took < control + Duration::from_secs(2), "{name}: {took:?}, {control:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_connecting_goes_on_while_the_server_is_not_ready() {
    let server = Service::start(Kind::Mongo).unwrap();
    // The login fails with the error InterruptedAtShutdown.
    answer(&server, "resource-pool", "saslContinue", 11600, doc! { "times": 2 }).await;
    let pool = pool(MongoConfig::uri(server.url()));
    drop(pool.mongo().await.unwrap());
    assert!(pool.close_all().await.all_closed());

    // There is no primary for a while.
    let admin = mongodb::Client::with_uri_str(server.url()).await.unwrap().database("admin");
    admin.run_command(doc! { "replSetStepDown": 9, "force": true }).await.unwrap();
    let pool = hurried(MongoConfig::uri(server.url()));
    let (result, took) = stopped(pool.mongo()).await;
    let error = result.unwrap_err();
    println!("{took:.1?}: {error}");
    assert!(error.is_transient() && error.to_string().contains("Type: RsSecondary"), "{error}");
    assert!(took < ACQUIRE + Duration::from_millis(500), "{took:?}");
    until_async(2 * SOON, async || pool.mongo().await.is_ok()).await;
    assert!(pool.close_all().await.all_closed());
}

/// An operation on each facade that takes longer than the time after which a silent server is lost.
fn at_work(pool: &ResourcePool, mongo: &mongodb::Client) -> [tokio::task::JoinHandle<bool>; 2] {
    let query = doc! { "$where": "sleep(6000) || true" };
    let (bars, asking) = (bars(mongo, "at_work"), query.clone());
    let threads = blocking::ResourcePool::from(pool.clone());
    let blocking = move || sync_bars(&threads.mongo().unwrap(), "at_work").find_one(query).run().unwrap().is_some();
    [tokio::spawn(async move { bars.find_one(asking).await.unwrap().is_some() }), tokio::task::spawn_blocking(blocking)]
}

fn uncached() -> Options {
    let mut options = unhurried();
    options.health.cache = Duration::ZERO;
    options
}

async fn health(pool: &ResourcePool) -> HealthEntry {
    pool.health_check().await.entry("mongo").unwrap().clone()
}

/// Checks that the health report says this while the work goes on, and that nothing is lost.
async fn nothing_is_cut(pool: &ResourcePool, work: [tokio::task::JoinHandle<bool>; 2], expected: Health, told: &str) {
    let started = Instant::now();
    loop {
        let entry = health(pool).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        if work.iter().any(tokio::task::JoinHandle::is_finished) {
            break;
        }
        assert_eq!(entry.health, expected, "{entry:?}");
        assert!(entry.error.unwrap_or_default().contains(told), "of {told}");
    }
    println!("{expected}, {told:?} for {:?}", started.elapsed());
    assert!(started.elapsed() > Duration::from_secs(4), "long enough for all strikes");
    for work in work {
        assert!(work.await.unwrap());
    }
    let status = pool.status().resource("mongo").unwrap().clone();
    assert_eq!((status.state, status.generation), (State::Ready, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_pings_that_are_answered_with_an_error_cut_nothing() {
    let server = Service::start(Kind::Mongo).unwrap();
    let config = MongoConfig::uri(server.url()).min_pool_size(2);
    let pool = ResourcePool::builder().environment([("", ""); 0]).resource(config).options(uncached()).build().unwrap();
    let mongo = pool.mongo().await.unwrap();
    bars(&mongo, "at_work").insert_one(doc! { "n": 1 }).await.unwrap();
    for (code, expected, told) in [
        (13, Health::Warn, "Unauthorized"),
        (91, Health::Fail, "ShutdownInProgress"),
        (1, Health::Fail, "Error code 1"),
    ] {
        answer(&server, "resource-pool probe", "ping", code, "alwaysOn").await;
        until_async(SOON, async || health(&pool).await.error.is_some_and(|error| error.contains(told))).await;
        let work = at_work(&pool, &mongo);
        nothing_is_cut(&pool, work, expected, told).await;
    }
    answer(&server, "resource-pool probe", "ping", 1, "off").await;
    until_async(SOON, async || health(&pool).await.health == Health::Pass).await;

    // The set has no primary, and the pings ask for one.
    let admin = mongodb::Client::with_uri_str(server.url()).await.unwrap().database("admin");
    let work = at_work(&pool, &mongo);
    eventually("both are at work", || usage(&pool).in_use == Some(2));
    admin.run_command(doc! { "replSetStepDown": 9, "force": true }).await.unwrap();
    let is_told = |entry: HealthEntry| entry.health == Health::Fail && entry.error.unwrap().contains("RsSecondary");
    until_async(SOON, async || is_told(health(&pool).await)).await;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(5) {
        let entry = health(&pool).await;
        assert!(is_told(entry.clone()), "{entry:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for work in work {
        // The server may end running operations as it steps down.
        drop(work.await);
    }
    assert_eq!(pool.status().resource("mongo").unwrap().generation, 1);
    until_async(SOON, async || health(&pool).await.health == Health::Pass).await;
    assert!(pool.close_all().await.all_closed());
}

/// The probe's client opens its connections with the first ping. The server has no room for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_pings_for_which_the_server_has_no_room_cut_nothing() {
    let server = Service::start(Kind::Mongo).unwrap();
    for busy in [false, true] {
        let proxy = Proxy::start(server.port()).unwrap();
        let url = proxy.url(&server).replacen("replicaSet=rs0", "directConnection=true", 1);
        let mut options = uncached();
        options.probe.interval = Duration::from_secs(1);
        let config = MongoConfig::uri(url.clone()).min_pool_size(0).max_pool_size(if busy { 2 } else { 3 });
        let pool =
            ResourcePool::builder().environment([("", ""); 0]).resource(config).options(options).build().unwrap();
        let mongo = pool.mongo().await.unwrap();
        bars(&mongo, "at_work").insert_one(doc! { "n": 1 }).await.unwrap();
        // Each of the three operations opens a connection. The third connection is then idle.
        let both = at_work(&pool, &mongo);
        if !busy {
            let brief = bars(&mongo, "at_work");
            brief.find_one(doc! { "$where": "sleep(100) || true" }).await.unwrap();
        }
        eventually("all are at work", || usage(&pool).in_use == Some(2) && usage(&pool).open == usage(&pool).max);
        proxy.refuse().unwrap();
        let accepted = proxy.accepted();
        let bare = mongodb::Client::with_uri_str(format!("{url}&serverSelectionTimeoutMS=500")).await.unwrap();
        assert!(bare.list_database_names().await.is_err(), "the control: there is no room");
        let expected = if busy { (Health::Unknown, "Connection refused") } else { (Health::Pass, "") };
        nothing_is_cut(&pool, both, expected.0, expected.1).await;
        assert_eq!(proxy.accepted(), accepted, "none was opened meanwhile");
        // There is room again.
        proxy.open_up().unwrap();
        until_async(SOON, async || {
            assert_eq!(health(&pool).await.health, Health::Pass);
            proxy.accepted() > accepted
        })
        .await;
        assert!(pool.close_all().await.all_closed());
    }
}

/// The test runs in a process of its own, because the limit is the process's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_pings_without_a_descriptor_cut_nothing() {
    const URL: &str = "RESOURCE_POOL_TEST_MONGO_WITHOUT_DESCRIPTORS";
    let Ok(url) = std::env::var(URL) else {
        let server = Service::start(Kind::Mongo).unwrap();
        let mut alone = Command::new(std::env::current_exe().unwrap());
        alone.args(["--exact", "mongo_pings_without_a_descriptor_cut_nothing"]).env(URL, server.url());
        let alone = alone.output().unwrap();
        println!("{}{}", String::from_utf8_lossy(&alone.stdout), String::from_utf8_lossy(&alone.stderr));
        assert!(alone.status.success());
        return;
    };
    let mut options = uncached();
    options.probe.interval = Duration::from_secs(1);
    let config = MongoConfig::uri(url).min_pool_size(0).max_pool_size(3);
    let pool = ResourcePool::builder().environment([("", ""); 0]).resource(config).options(options).build().unwrap();
    let mongo = pool.mongo().await.unwrap();
    bars(&mongo, "at_work").insert_one(doc! { "n": 1 }).await.unwrap();
    let work = at_work(&pool, &mongo);
    bars(&mongo, "at_work").find_one(doc! { "$where": "sleep(100) || true" }).await.unwrap();
    eventually("all are at work", || usage(&pool).in_use == Some(2) && usage(&pool).open == Some(3));
    let taken = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let highest = taken.filter_map(|fd| fd.file_name().to_str()?.parse::<u32>().ok()).max().unwrap();
    let limit = format!("--nofile={highest}");
    let limited = Command::new("prlimit").args(["--pid", &std::process::id().to_string(), &limit]).status();
    assert!(limited.unwrap().success());
    // The files are leaked so that they keep all descriptors of this process, which ends with the test.
    while std::fs::File::open("/dev/null").map(std::mem::forget).is_ok() {}
    nothing_is_cut(&pool, work, Health::Pass, "").await;
    assert!(pool.close_all().await.all_closed());
}

#[test]
fn mongo_blocking_bad_input_is_the_right_error() {
    let vacant = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let pool = blocking_pool(config("blocking-bad-input"));
    let malformed = pool.mongo_with("malformed", MongoConfig::uri("mongodb://"));
    assert!(matches!(malformed, Err(Error::Config { .. })), "{malformed:?}");
    let wrong = shared(Kind::Mongo).url().replacen("replicaSet=rs0", "replicaSet=wrong", 1);
    let wrong = pool.mongo_with("wrong", MongoConfig::uri(wrong)).unwrap_err();
    assert!(!wrong.is_transient() && wrong.to_string().contains("rs0"), "{wrong}");
    let refused = pool.mongo_with("refused", MongoConfig::uri(format!("mongodb://127.0.0.1:{vacant}/")));
    assert!(matches!(refused, Err(Error::Connect(_))), "{refused:?}");
    pool.mongo().unwrap().list_database_names().run().unwrap();
    assert!(pool.close_all().unwrap().all_closed());
}

#[tokio::test]
async fn mongo_current_thread_runtime_refuses_to_block() {
    let pool = blocking_pool(config("current-thread"));
    assert!(matches!(pool.mongo(), Err(Error::InAsyncContext { .. })));
    let _async_works = pool.as_async().mongo().await.unwrap();
    let _ready_never_fails = pool.mongo().unwrap();
    let panic = catch_unwind(AssertUnwindSafe(|| _ready_never_fails.list_database_names().run()));
    assert!(panic.is_err(), "documented: the driver's blocking calls panic in async code");
    assert!(pool.as_async().close_all().await.all_closed());
}

#[test]
fn mongo_client_outlives_the_runtime_that_acquired_it() {
    let pool = pool(config("two-runtimes"));
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mongo = runtime().block_on(pool.mongo()).unwrap();
    runtime().block_on(mongo.list_database_names().into_future()).unwrap();
    assert!(runtime().block_on(pool.close_all()).all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_password_is_shown_nowhere() {
    let log = Log::start();
    let server = shared(Kind::Mongo);
    let encoded = "p%40ss%3Aw%2Frd%252F";
    assert!(server.url().contains(encoded), "{}", server.url());
    let mut parts = MongoConfig::default();
    parts.host = server.host().to_owned();
    parts.port = server.port();
    parts.user = Some(server.user().to_owned());
    parts.password = Some(server.password().into());
    let toml = format!("[mongo]\nuri = {:?}\n", server.url());
    let file = std::env::temp_dir().join(format!("resource-pool-mongo-{}.toml", std::process::id()));
    std::fs::write(&file, toml).unwrap();
    let none = || ResourcePool::builder().environment([("", ""); 0]);
    let pools = [
        none().resource(config("secret")).build().unwrap(),
        none().resource(parts).build().unwrap(),
        none().config_file(&file).build().unwrap(),
        ResourcePool::builder().environment([("MONGODB_URI", server.url())]).build().unwrap(),
        ResourcePool::builder()
            .environment([
                ("MONGODB", server.host()),
                ("MONGODBPORT", &server.port().to_string()),
                ("MONGODB_USER", server.user()),
                ("MONGODB_PASSWORD", server.password()),
            ])
            .build()
            .unwrap(),
    ];
    std::fs::remove_file(&file).unwrap();
    let mut shown = String::new();
    for pool in pools {
        assert!(pool.warm_up(["mongo"]).await.iter().all(|(_, result)| result.is_ok()));
        let mongo = pool.mongo().await.unwrap();
        mongo.list_database_names().await.unwrap();
        shown += &format!("{mongo:?} {:?} {} ", pool, pool.status());
        shown += &format!("{:?} {:?} ", pool.health_check().await, pool.holders());
        shown += &pool.close_all().await.to_string();
    }
    let odd = [
        "mongodb://u:s3cret@pw@h/",
        "mongodb://u:s3cret",
        "mongodb://u:s3cret/",
        "mongodb://u:s3cret/pw@h/",
        "mongodb://u:s3cret?pw@h/",
        "mongodb://u:s3cret#x@h:y/",
    ];
    for uri in odd {
        let config = MongoConfig::uri(uri);
        shown += &format!("{config:?} {config:#?}");
        let error = none().resource(config).build().unwrap_err();
        shown += &format!("{error} {error:?}");
    }
    let wrong = server.url().replacen(":p%40", ":s3cret%40", 1);
    let error = pool(MongoConfig::uri(wrong)).mongo().await.unwrap_err();
    shown += &format!("{error} {error:?} {:?}", std::error::Error::source(&error).map(ToString::to_string));
    let logged = log.text();
    assert!(logged.contains("warming up") && logged.contains("connected"), "{logged}");
    shown += &logged;
    println!("{shown}");
    for secret in [server.password(), encoded, "s3cret"] {
        assert_eq!(shown.matches(secret).count(), 0, "{secret}");
    }
}

/// The driver itself reads the URI. A seed that is down does not matter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_replica_set_uri_with_several_hosts() {
    let server = shared(Kind::Mongo);
    let vacant = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let hosts = format!("@127.0.0.1:{vacant},127.0.0.1:{}/", server.port());
    let uri = server.url().replacen(&format!("@127.0.0.1:{}/", server.port()), &hosts, 1);
    assert!(uri.contains(','), "{uri}");
    let pool = pool(MongoConfig::uri(uri).app_name("several-hosts"));
    let mongo = pool.mongo().await.unwrap();
    mongo.list_database_names().await.unwrap();
    let endpoint = format!("mongodb://{}quantaxis", &hosts[1..]);
    assert_eq!(*pool.status().resource("mongo").unwrap().endpoint, *endpoint);
    assert!(pool.close_all().await.all_closed());
    closed("several-hosts");
}

#[test]
fn mongo_configuration_comes_from_each_of_its_sources() {
    let endpoint = |pool: &ResourcePool| pool.status().resource("mongo").unwrap().endpoint.to_string();
    let from = |variables: &[(&str, &str)]| {
        let pool = ResourcePool::builder().environment(variables.iter().copied()).build().unwrap();
        endpoint(&pool)
    };
    assert_eq!(from(&[]), "mongodb://localhost:27017/quantaxis");
    assert_eq!(from(&[("MONGODB", "db1")]), "mongodb://db1:27017/quantaxis");
    assert_eq!(from(&[("MONGODB", "mongodb://db2:5/bars")]), "mongodb://db2:5/bars");
    assert_eq!(from(&[("MONGODB", "db1"), ("MONGODBPORT", "6")]), "mongodb://db1:6/quantaxis");
    assert_eq!(from(&[("MONGODB", "db1"), ("MONGODB_HOST", "::1")]), "mongodb://[::1]:27017/quantaxis");
    assert_eq!(from(&[("MONGODB_HOST", "db3"), ("MONGODB_PORT", "7"), ("MONGODB_DATABASE", "d")]), "mongodb://db3:7/d");
    assert_eq!(
        from(&[("MONGODB_HOST", "db3"), ("MONGODB_URI", "mongodb://u:p@db4/")]),
        "mongodb://db4:27017/quantaxis"
    );
    let refused = |uri: &str| {
        let error = ResourcePool::builder().environment([("", ""); 0]).resource(MongoConfig::uri(uri)).build();
        error.unwrap_err().to_string()
    };
    assert!(refused("mongodb://h/?maxPoolSize=many").contains("maxpoolsize"), "the driver's words are kept");
    assert!(refused("mongodb://u:p@ss@h/").contains("user, password, host or port that cannot be used"));
    // A URI with several hosts, which no URL parser accepts.
    assert_eq!(
        endpoint(&pool(MongoConfig::uri("mongodb://u:p@a:1,b:2,[::1]:3/bars?replicaSet=rs0"))),
        "mongodb://a:1,b:2,[::1]:3/bars"
    );
    for (variables, wrong) in [([("MONGODB_PORT", "x")], "MONGODB_PORT"), ([("MONGODBPORT", "99999")], "MONGODBPORT")] {
        // The resource that would use the variable fails when it is asked for.
        let pool = ResourcePool::builder().environment(variables).build().unwrap();
        let error = blocking::ResourcePool::from(pool).mongo().unwrap_err();
        assert!(matches!(&error, Error::Config { key, .. } if key == wrong), "{error}");
    }
    for (config, wrong) in [
        (MongoConfig::uri("mongodb://h/?minPoolSize=9&maxPoolSize=3"), "mongo.min_pool_size"),
        (MongoConfig::default().max_pool_size(0), "mongo.max_pool_size"),
        (MongoConfig::uri("mongodb://h/?socketTimeoutMS=5"), "mongo.uri"),
        (MongoConfig::uri("mongodb+srv://h:1/"), "mongo.uri"),
    ] {
        let error = ResourcePool::builder().environment([("", ""); 0]).resource(config).build().unwrap_err();
        assert!(matches!(&error, Error::Config { key, .. } if key == wrong), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_uri_and_driver_options_win_over_the_defaults() {
    let url = shared(Kind::Mongo).url();
    let by_uri = pool(MongoConfig::uri(format!("{url}&maxPoolSize=3&appName=by-uri")));
    drop(by_uri.mongo().await.unwrap());
    assert_eq!(usage(&by_uri).max, Some(3));
    assert!(connections("by-uri") > 0);
    assert!(by_uri.close_all().await.all_closed());

    let mut options = mongodb::options::ClientOptions::parse(url).await.unwrap();
    options.max_pool_size = Some(7);
    options.app_name = Some("by-options".to_owned());
    let (sender, mut events) = tokio::sync::mpsc::channel(100);
    options.command_event_handler = Some(sender.into());
    let (sender, mut pool_events) = tokio::sync::mpsc::channel(1000);
    options.cmap_event_handler = Some(sender.into());
    let by_options = pool(MongoConfig::options(options));
    drop(by_options.mongo().await.unwrap());
    assert_eq!(usage(&by_options).max, Some(7));
    assert!(events.recv().await.is_some(), "handlers of the user's are called");
    assert!(pool_events.recv().await.is_some(), "beside the pool's own");
    assert!(by_options.close_all().await.all_closed());
    closed("by-options");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongo_never_used_is_unknown_and_the_whole_healthy() {
    let pool = pool(config("never-used"));
    let report = pool.health_check().await;
    assert_eq!(report.entry("mongo").unwrap().health, Health::Unknown);
    assert!(report.is_healthy());
    assert_eq!(connections("never-used"), 0);
}
