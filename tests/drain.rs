//! The drain on real servers: the work that closing finishes, gives up and leaves unfinished, and the time until which
//! the pool still leases.

#![cfg(all(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
#![allow(missing_docs)]

mod common;
#[path = "common/scripted.rs"]
mod scripted;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use clickhouse::Row;
use common::{Stopwatch, Within, until, until_async};
use futures_util::StreamExt;
use mongodb::bson::{Document, doc};
use redis::{AsyncCommands, Commands};
use resource_pool::config::{ClickHouseConfig, MongoConfig, Options, RabbitMqConfig, RedisConfig};
use resource_pool::rabbitmq::{Consume, Message, Queue};
use resource_pool::{CloseReport, Error, Outcome, Phase, ResourcePool, State, StepReport, Work, blocking};
use scripted::Scripted;
use serde::{Deserialize, Serialize};
use services::{Kind, Proxy, Service, shared};

/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(10);
const ALL: [&str; 4] = ["clickhouse", "mongo", "rabbitmq", "redis"];

/// A pool over these servers or proxies. It connects to none of them yet.
fn pool_of(urls: &[(Kind, &str)], change: impl FnOnce(&mut Options)) -> ResourcePool {
    let mut options = Options::default();
    change(&mut options);
    let builder = ResourcePool::builder().environment([("", ""); 0]).options(options);
    let builder = urls.iter().fold(builder, |builder, (kind, url)| match kind {
        Kind::Mongo => builder.resource(MongoConfig::uri(*url).min_pool_size(1)),
        Kind::RabbitMq => builder.resource(RabbitMqConfig::url(*url)),
        Kind::ClickHouse => builder.resource(ClickHouseConfig::url(*url)),
        Kind::Redis => builder.resource(RedisConfig::url(*url)),
        other => panic!("{other} has tests of its own"),
    });
    builder.build().unwrap()
}

fn pool(server: &Service) -> ResourcePool {
    pool_of(&[(server.kind(), server.url())], |_| {})
}

fn all_shared() -> ResourcePool {
    let kinds = [Kind::Mongo, Kind::RabbitMq, Kind::ClickHouse, Kind::Redis];
    let urls: Vec<_> = kinds.into_iter().map(|kind| (kind, shared(kind).url())).collect();
    pool_of(&urls, |_| {})
}

/// Begins to close, and returns once every resource drains.
async fn closing(pool: &ResourcePool) -> tokio::task::JoinHandle<CloseReport> {
    let closing = pool.clone();
    let closed = tokio::spawn(async move { closing.close_all().await });
    pool.closing().wait().within(SOON).await;
    until_async(SOON, async || pool.status().resources.iter().all(|one| one.state != State::Ready)).await;
    closed
}

async fn on_thread<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(call).await.unwrap()
}

fn work(pool: &ResourcePool, name: &str, work: Work) -> usize {
    let status = pool.status();
    let going_on = &status.resource(name).unwrap().work;
    going_on.iter().find(|(kind, _)| *kind == work).map_or(0, |(_, count)| *count)
}

fn unique(what: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("drain_{what}_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn books(step: &StepReport) -> [&[(Work, usize)]; 3] {
    [&step.finished, &step.given_up, &step.unfinished]
}

// RabbitMQ

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_counts_deliveries_settled_given_back_and_left() {
    let server = shared(Kind::RabbitMq);
    let pool = pool_of(&[(Kind::RabbitMq, server.url())], |options| options.close.drain = Duration::from_secs(8));
    let rabbit = pool.rabbitmq().await.unwrap();
    let queue = unique("queue");
    rabbit.declare_queue(Queue::new(&queue)).await.unwrap();
    assert!(rabbit.publish_batch((0..20).map(|n| Message::new("", &queue, vec![n]))).await.unwrap().all_confirmed());

    // The client receives ten deliveries and the test takes five of them. The other five go back.
    let mut consumer = rabbit.consume(Consume::from(queue.as_str()).prefetch(5)).await.unwrap();
    let blocking = blocking::ResourcePool::from(pool.clone()).rabbitmq().unwrap();
    let mut for_threads = blocking.consume(Consume::from(queue.as_str()).prefetch(5)).unwrap();
    let mut in_hand = Vec::new();
    for _ in 0..4 {
        in_hand.push(consumer.next().within(SOON).await.unwrap().unwrap());
    }
    let (on_a_thread, mut for_threads) = on_thread(move || (for_threads.next().unwrap().unwrap(), for_threads)).await;
    assert_eq!(work(&pool, "rabbitmq", Work::Delivery), 5);
    let of = |queue: &str| {
        let queues = server.rabbitmq().unwrap().queues(server.database()).unwrap();
        let queue = queues.into_iter().find(|one| one.name == queue).unwrap();
        (queue.ready, queue.unacked, queue.consumers)
    };
    until(SOON, || of(&queue) == (10, 10, 2));

    let closed = closing(&pool).await;
    until(SOON, || of(&queue).2 == 0);
    assert!(consumer.next().within(SOON).await.is_none() && on_thread(move || for_threads.next().is_none()).await);
    // A delivery that was prefetched and never handed out goes back. The report does not count it.
    until(SOON, || of(&queue) == (15, 5, 0));
    in_hand.pop().unwrap().ack().await.unwrap();
    in_hand.pop().unwrap().nack().await.unwrap();
    on_thread(move || on_a_thread.ack().unwrap()).await;
    drop(in_hand.pop().unwrap());
    let report = closed.within(SOON * 2).await.unwrap();
    drop(in_hand);
    println!("{report}");
    let step = report.step("rabbitmq").unwrap();
    assert_eq!(step.outcome, Outcome::Closed);
    assert_eq!(books(step), [&[(Work::Delivery, 3)][..], &[(Work::Delivery, 1)], &[(Work::Delivery, 1)]]);
    let table = report.to_string();
    for line in ["finished: 3 deliveries settled", "given up: 1 delivery given back", "unfinished: 1 delivery\n"] {
        assert!(table.contains(line), "{line}: {table}");
    }
    until(SOON, || of(&queue) == (17, 0, 0));
    server.rabbitmq().unwrap().ctl(&["delete_queue", "-p", server.database(), &queue]).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_tells_confirms_that_came_from_those_that_did_not() {
    let server = shared(Kind::RabbitMq);
    let proxy = Proxy::start(server.port()).unwrap();
    for comes in [true, false] {
        let pool = pool_of(&[(Kind::RabbitMq, &proxy.url(server))], |_| {});
        let rabbit = pool.rabbitmq().await.unwrap();
        let blocking = blocking::ResourcePool::from(pool.clone()).rabbitmq().unwrap();
        assert!(rabbit.publish(Message::new("", "nobody", "first").optional()).await.unwrap().is_confirmed());
        proxy.freeze();
        let message = || Message::new("", "nobody", "x").optional();
        let batch = tokio::spawn({
            let rabbit = resource_pool::RabbitMq::clone(&rabbit);
            async move { rabbit.publish_batch((0..50).map(|_| message())).await }
        });
        until_async(SOON, async || work(&pool, "rabbitmq", Work::Confirm) == 50).await;
        let closed = closing(&pool).await;
        if comes {
            proxy.thaw();
        } else {
            proxy.cut();
        }
        let batch = batch.within(SOON).await.unwrap().unwrap();
        let report = closed.within(SOON).await.unwrap();
        println!("{report}");
        let step = report.step("rabbitmq").unwrap();
        if comes {
            assert_eq!((batch.confirmed(), step.outcome.clone()), (50, Outcome::Closed));
            assert_eq!(books(step), [&[(Work::Confirm, 50)][..], &[], &[]]);
        } else {
            assert_eq!(batch.unknown(), 50);
            assert!(matches!(&step.outcome, Outcome::Failed(why) if why.contains("lost")), "{report}");
            assert_eq!(books(step), [&[][..], &[(Work::Confirm, 50)], &[]]);
            proxy.thaw();
        }
        let refused = on_thread(move || blocking.publish(Message::new("", "nobody", "late"))).await.unwrap_err();
        assert!(refused.is_closed(), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_of_a_blocked_broker_says_what_it_left() {
    let server = Service::start(Kind::RabbitMq).unwrap();
    let pool = pool_of(&[(Kind::RabbitMq, server.url())], |options| options.close.drain = Duration::from_secs(2));
    let rabbit = pool.rabbitmq().await.unwrap();
    assert!(rabbit.publish(Message::new("", "nobody", "first").optional()).await.unwrap().is_confirmed());
    server.rabbitmq().unwrap().memory_alarm(true).unwrap();
    let publish = tokio::spawn({
        let rabbit = resource_pool::RabbitMq::clone(&rabbit);
        async move { rabbit.publish(Message::new("", "nobody", "x").optional()).await }
    });
    until_async(SOON, async || work(&pool, "rabbitmq", Work::Confirm) == 1).await;
    let report = closing(&pool).await.within(Duration::from_secs(20)).await.unwrap();
    println!("{report}");
    let step = report.step("rabbitmq").unwrap();
    assert!(matches!(step.outcome, Outcome::Failed(_) | Outcome::Forced), "{report}");
    assert_eq!(books(step), [&[][..], &[], &[(Work::Confirm, 1)]]);
    let unknown = publish.within(SOON).await.unwrap().unwrap_err();
    assert!(matches!(unknown, Error::OutcomeUnknown { .. }), "{unknown}");
    server.rabbitmq().unwrap().memory_alarm(false).unwrap();
}

// ClickHouse

#[derive(Debug, Clone, PartialEq, Row, Serialize, Deserialize)]
struct Bar {
    code: String,
    day: u32,
}

fn bar(day: u32) -> Bar {
    Bar { code: "IBM".to_owned(), day }
}

fn table(server: &Service) -> String {
    let table = unique("bars");
    let create = format!("CREATE TABLE {table} (code String, day UInt32) ENGINE = MergeTree ORDER BY day");
    server.clickhouse().unwrap().query(&create).unwrap();
    table
}

fn count(server: &Service, table: &str) -> usize {
    server.clickhouse().unwrap().query(&format!("SELECT count() FROM {table}")).unwrap().trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inserter_commits_at_its_limits_and_begins_anew_after_an_error() {
    let server = shared(Kind::ClickHouse);
    let table = table(server);
    let pool = pool(server);
    let clickhouse = pool.clickhouse().await.unwrap();
    let mut bars = clickhouse.inserter::<Bar>(&table).unwrap().with_max_rows(5);
    let mut committed = Vec::new();
    for day in 0..12 {
        bars.write(&bar(day)).await.unwrap();
        committed.extend(Some(bars.commit().await.unwrap().rows).filter(|rows| *rows > 0));
    }
    assert_eq!((committed, work(&pool, "clickhouse", Work::Row)), (vec![5, 5], 2));
    assert_eq!(bars.force_commit().await.unwrap().rows, 2);
    assert_eq!(work(&pool, "clickhouse", Work::Row), 0);
    assert_eq!(bars.end().await.unwrap().rows, 0);

    let blocking = blocking::ResourcePool::from(pool.clone());
    let name = table.clone();
    on_thread(move || {
        let mut bars = blocking.clickhouse().unwrap().inserter::<Bar>(&name).with_max_bytes(1);
        bars.write(&bar(12)).unwrap();
        assert_eq!(bars.commit().unwrap().rows, 1);
        let mut bars = bars.with_max_bytes(1 << 20).with_period(Duration::from_secs(3600));
        bars.write(&bar(13)).unwrap();
        assert_eq!(bars.commit().unwrap().rows, 0);
        assert_eq!(bars.end().unwrap().rows, 1);
    })
    .await;
    assert_eq!(count(server, &table), 14);

    let mut nowhere = clickhouse.inserter::<Bar>("no_such_table").unwrap();
    let refused = async |nowhere: &mut resource_pool::Inserter<Bar>| {
        nowhere.write(&bar(1)).await?;
        nowhere.force_commit().await
    };
    for _ in 0..2 {
        let error = refused(&mut nowhere).await.unwrap_err();
        assert!(matches!(&error, Error::Operation { .. }), "{error}");
        assert_eq!(work(&pool, "clickhouse", Work::Row), 0);
    }
    assert!(pool.close_all().await.all_closed());
    server.clickhouse().unwrap().query(&format!("DROP TABLE {table}")).unwrap();
}

/// The row of day 2 does not serialize.
#[derive(Row)]
struct Picky {
    code: String,
    day: u32,
}

impl Serialize for Picky {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.day == 2 {
            return Err(serde::ser::Error::custom("as the test asked"));
        }
        Bar { code: self.code.clone(), day: self.day }.serialize(serializer)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inserter_gives_up_what_was_written_before_a_row_that_does_not_fit() {
    let server = shared(Kind::ClickHouse);
    let table = table(server);
    let pool = pool(server);
    let mut bars = pool.clickhouse().await.unwrap().inserter::<Picky>(&table).unwrap();
    let picky = |day| Picky { code: "IBM".to_owned(), day };
    for day in 0..2 {
        bars.write(&picky(day)).await.unwrap();
    }
    assert_eq!(work(&pool, "clickhouse", Work::Row), 2);
    let error = bars.write(&picky(2)).await.unwrap_err();
    assert!(matches!(&error, Error::Operation { .. }), "{error}");
    assert_eq!(work(&pool, "clickhouse", Work::Row), 0);
    bars.write(&picky(3)).await.unwrap();
    assert_eq!(bars.force_commit().await.unwrap().rows, 1);
    assert_eq!(count(server, &table), 1);
    assert!(pool.close_all().await.all_closed());
    server.clickhouse().unwrap().query(&format!("DROP TABLE {table}")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inserter_made_in_the_drain_inserts_at_once() {
    let server = shared(Kind::ClickHouse);
    let table = table(server);
    let pool = pool_of(&[(Kind::ClickHouse, server.url())], |options| options.close.drain = SOON * 2);
    let clickhouse = pool.clickhouse().await.unwrap();
    let other = Scripted::default();
    pool.register("other", other.clone()).unwrap();
    drop(pool.get::<Scripted>("other").await.unwrap());
    let drain_goes_on = other.script.link().unwrap().busy(Work::Operation);
    let mut before = clickhouse.inserter::<Bar>(&table).unwrap();
    before.write(&bar(0)).await.unwrap();
    let closing = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close_all().await }
    });
    // The pool reports that it is closing before the drain begins. The drain begins by flushing the rows that are
    // there.
    until_async(SOON, async || count(server, &table) == 1).await;
    let mut bars = clickhouse.inserter::<Bar>(&table).unwrap();
    bars.write(&bar(1)).await.unwrap();
    assert_eq!(count(server, &table), 2);
    drain_goes_on.done();
    let report = closing.await.unwrap();
    assert!(report.all_closed(), "{report}");
    server.clickhouse().unwrap().query(&format!("DROP TABLE {table}")).unwrap();
}

/// The owners of some inserters are idle, and others go on writing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_flushes_inserters() {
    let server = shared(Kind::ClickHouse);
    let (idle, busy) = (table(server), table(server));
    let pool = pool(server);
    let clickhouse = pool.clickhouse().await.unwrap();
    let mut bars = clickhouse.inserter::<Bar>(&idle).unwrap().with_max_rows(1000);
    for day in 0..7 {
        bars.write(&bar(day)).await.unwrap();
    }
    let blocking = blocking::ResourcePool::from(pool.clone());
    let name = idle.clone();
    let threads = on_thread(move || {
        let mut bars = blocking.clickhouse().unwrap().inserter::<Bar>(&name);
        (7..10).for_each(|day| bars.write(&bar(day)).unwrap());
        bars
    })
    .await;
    drop(clickhouse);
    assert_eq!((work(&pool, "clickhouse", Work::Row), count(server, &idle)), (10, 0));

    let written = Arc::new(AtomicUsize::new(0));
    let writer = thread::spawn({
        let (pool, busy, written) = (blocking::ResourcePool::from(pool.clone()), busy.clone(), Arc::clone(&written));
        move || {
            let mut bars = pool.clickhouse().unwrap().inserter::<Bar>(&busy).with_max_rows(100);
            loop {
                let day = written.load(Ordering::Relaxed);
                if let Err(error) = bars.write(&bar(day as u32)).and_then(|()| bars.commit().map(drop)) {
                    return error;
                }
                written.store(day + 1, Ordering::Relaxed);
            }
        }
    });
    until(SOON, || written.load(Ordering::Relaxed) > 250);
    let report = pool.close_all().within(Duration::from_secs(20)).await;
    println!("{report}");
    let step = report.step("clickhouse").unwrap();
    assert_eq!(step.outcome, Outcome::Closed, "{report}");
    let rows = step.finished.iter().find(|(work, _)| *work == Work::Row).unwrap().1;
    assert!(rows >= 10, "{report}");
    assert!(report.to_string().contains(&format!("finished: {rows} rows inserted")), "{report}");
    assert_eq!(count(server, &idle), 10);
    let ended = on_thread(move || writer.join().unwrap()).await;
    let (there, written) = (count(server, &busy), written.load(Ordering::Relaxed));
    match ended {
        // The writer's last row was in flight when the drain ended.
        Error::OutcomeUnknown { .. } => assert!((written..=written + 1).contains(&there), "{there} of {written}"),
        error => assert!(error.is_closed() && there == written, "{there} of {written}: {error}"),
    }
    let error = bars.write(&bar(1)).await.and(bars.commit().await.map(drop)).unwrap_err();
    assert!(error.is_closed(), "{error}");
    drop(threads);
    for table in [idle, busy] {
        server.clickhouse().unwrap().query(&format!("DROP TABLE {table}")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_tells_of_rows_that_it_could_not_flush() {
    let server = Service::start(Kind::ClickHouse).unwrap();
    // The server refuses the rows.
    let gone = table(&server);
    let pool = pool(&server);
    let mut bars = pool.clickhouse().await.unwrap().inserter::<Bar>(&gone).unwrap();
    for day in 0..3 {
        bars.write(&bar(day)).await.unwrap();
    }
    server.clickhouse().unwrap().query(&format!("DROP TABLE {gone}")).unwrap();
    let report = pool.close_all().within(SOON).await;
    println!("{report}");
    let step = report.step("clickhouse").unwrap();
    assert!(matches!(&step.outcome, Outcome::Failed(why) if why.contains(&gone)), "{report}");
    assert_eq!(step.given_up, [(Work::Row, 3)]);
    assert!(report.to_string().contains("given up: 3 rows not known to be inserted"), "{report}");

    // The server never answers.
    let table = table(&server);
    let proxy = Proxy::start(server.port()).unwrap();
    let mut config = ClickHouseConfig::url(proxy.url(&server));
    config.flush_timeout = Duration::from_millis(500);
    let pool = ResourcePool::builder().environment([("", ""); 0]).resource(config).build().unwrap();
    let mut bars = pool.clickhouse().await.unwrap().inserter::<Bar>(&table).unwrap();
    bars.write(&bar(1)).await.unwrap();
    proxy.freeze();
    let report = pool.close_all().within(SOON).await;
    println!("{report}");
    let step = report.step("clickhouse").unwrap();
    assert!(matches!(&step.outcome, Outcome::Failed(why) if why.contains("500ms")), "{report}");
    assert!(step.given_up.contains(&(Work::Row, 1)), "{report}");
}

// MongoDB

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_counts_operations_and_what_it_aborts_on_the_server() {
    let server = shared(Kind::Mongo);
    let name = unique("bars");
    let watcher = pool(server);
    let watching = watcher.mongo().await.unwrap().database("quantaxis").collection::<Document>(&name);
    watching.insert_many((0..500).map(|day| doc! { "day": day })).await.unwrap();
    let pool = pool(server);
    let mongo = pool.mongo().await.unwrap();
    let bars = mongo.database("quantaxis").collection::<Document>(&name);

    // Two transactions, one of each facade, and a change stream that waits on the server.
    let mut session = mongo.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    bars.insert_one(doc! { "day": -1 }).session(&mut session).await.unwrap();
    let threads = blocking::ResourcePool::from(pool.clone());
    let of_threads = name.clone();
    let blocking_session = on_thread(move || {
        let mongo = threads.mongo().unwrap();
        let mut session = mongo.start_session().run().unwrap();
        session.start_transaction().run().unwrap();
        let bars = mongo.database("quantaxis").collection::<Document>(&of_threads);
        bars.insert_one(doc! { "day": -2 }).session(&mut session).run().unwrap();
        session
    })
    .await;
    let mut changes = mongo.database("quantaxis").collection::<Document>("nothing_changes").watch().await.unwrap();
    let changes = tokio::spawn(async move { changes.next().await.is_none_or(|change| change.is_err()) });
    let slow = doc! { "$where": "sleep(1500) || true", "day": 7 };
    let answered = tokio::spawn({
        let (bars, slow) = (bars.clone(), slow.clone());
        async move { bars.find_one(slow).await }
    });
    let dropped = tokio::spawn({
        let bars = bars.clone();
        async move { bars.find_one(slow).await }
    });
    until_async(SOON, async || work(&pool, "mongo", Work::Operation) == 3).await;

    let closed = closing(&pool).await;
    dropped.abort();
    assert!(changes.within(SOON).await.unwrap(), "ended in the intake");
    assert!(answered.within(SOON).await.unwrap().unwrap().is_some());
    let report = closed.within(SOON).await.unwrap();
    println!("{report}");
    let step = report.step("mongo").unwrap();
    assert_eq!(step.outcome, Outcome::Closed, "{report}");
    // The server also answers the command that ends the change stream, and any command that the driver tries
    // afterwards.
    assert!(matches!(step.finished[0], (Work::Operation, 2..)), "{report}");
    assert_eq!(step.finished[1..], [(Work::Transaction, 2), (Work::Cursor, 1)], "{report}");
    assert_eq!(books(step)[1..], [&[(Work::Operation, 1)][..], &[]], "{report}");
    drop((session, mongo));
    on_thread(move || drop(blocking_session)).await;
    assert_eq!(watching.count_documents(doc! { "day": { "$lt": 0 } }).await.unwrap(), 0, "both were aborted");
    watching.drop().await.unwrap();
}

// Redis

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_waits_for_pipelines_and_blocking_commands() {
    let server = shared(Kind::Redis);
    let proxy = Proxy::start(server.port()).unwrap();
    let pool = pool_of(&[(Kind::Redis, &proxy.url(server))], |options| options.close.drain = Duration::from_secs(6));
    let [first, second, never] = ["first", "second", "never"].map(unique);
    let mut redis = pool.redis().await.unwrap();
    let mut blocks = pool.redis().await.unwrap();
    let key = first.clone();
    let popped = tokio::spawn(async move { blocks.blpop::<_, (String, String)>(key, 0.0).await });
    let threads = blocking::ResourcePool::from(pool.clone());
    let key = second.clone();
    let on_a_thread = thread::spawn(move || threads.redis().unwrap().blpop::<_, (String, String)>(key, 0.0));
    let threads = blocking::ResourcePool::from(pool.clone());
    let left = thread::spawn(move || threads.redis().unwrap().blpop::<_, (String, String)>(never, 0.0));
    until_async(SOON, async || {
        let blocked = |client: &&services::RedisClient| client.command.eq_ignore_ascii_case("blpop");
        server.redis().unwrap().clients().unwrap().iter().filter(blocked).count() == 3
    })
    .await;
    proxy.freeze();
    let mut pipelined = redis::pipe();
    for n in 0..100 {
        pipelined.incr(key_of(&first), n).ignore();
    }
    let pipeline = tokio::spawn(async move { pipelined.query_async::<()>(&mut redis).await });
    until_async(SOON, async || work(&pool, "redis", Work::Operation) == 4).await;

    let closed = closing(&pool).await;
    proxy.thaw();
    pipeline.within(SOON).await.unwrap().unwrap();
    for key in [&first, &second] {
        server.redis().unwrap().command(&["RPUSH", key, "one"]).unwrap();
    }
    assert_eq!(popped.within(SOON).await.unwrap().unwrap().1, "one");
    assert_eq!(on_thread(move || on_a_thread.join().unwrap()).await.unwrap().1, "one");
    let report = closed.within(2 * SOON).await.unwrap();
    println!("{report}");
    let step = report.step("redis").unwrap();
    assert_eq!(step.outcome, Outcome::Closed, "{report}");
    assert_eq!(books(step), [&[(Work::Operation, 3)][..], &[], &[(Work::Operation, 1)]], "{report}");
    assert_eq!(step.held.len(), 1, "{report}");
    let cut = on_thread(move || left.join().unwrap()).await.unwrap_err();
    assert!(matches!(Error::behind(&cut), Some(Error::OutcomeUnknown { .. })), "{cut}");
    server.redis().unwrap().command(&["DEL", &key_of(&first)]).unwrap();
}

fn key_of(name: &str) -> String {
    format!("{name}_count")
}

// All four

/// A connection that is lost in the drain is reported in the same way for every driver.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_in_the_drain_is_failed_on_every_backend() {
    let kinds = [Kind::Mongo, Kind::RabbitMq, Kind::ClickHouse, Kind::Redis];
    let servers = Service::start_all(&kinds).unwrap();
    let urls: Vec<_> = servers.iter().map(|server| (server.kind(), server.url())).collect();
    let pool = pool_of(&urls, |options| options.close.held = Duration::from_secs(8));
    // The held leases make the drain last until every loss is noticed.
    let held = (
        pool.mongo().await.unwrap(),
        pool.rabbitmq().await.unwrap(),
        pool.clickhouse().await.unwrap(),
        pool.redis().await.unwrap(),
    );
    let closed = closing(&pool).await;
    for server in &servers {
        server.kill().unwrap();
    }
    let report = closed.within(Duration::from_secs(25)).await.unwrap();
    println!("{report}");
    for name in ALL {
        let step = report.step(name).unwrap();
        assert!(matches!(&step.outcome, Outcome::Failed(why) if why.contains("connection lost")), "{name}: {report}");
    }
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_leases_delay_closing_by_a_second() {
    let pool = all_shared();
    let held = (
        pool.mongo().await.unwrap(),
        pool.rabbitmq().await.unwrap(),
        pool.clickhouse().await.unwrap(),
        pool.redis().await.unwrap(),
    );
    let watch = Stopwatch::start();
    let report = pool.close_all().await;
    println!("{report}");
    assert!(report.all_closed(), "{report}");
    assert!(report.drained >= Duration::from_millis(900), "{report}");
    // The drain waits a second for the leases. The disconnects take the rest.
    assert!(watch.took() < Duration::from_secs(2), "{:?}: {report}", watch.took());
    assert_eq!(report.steps.iter().map(|step| step.held.len()).sum::<usize>(), 4);
    drop(held);
}

/// Loops that stop at `closing()` see no error. Other loops can lease until the drain ends, and then get an error that
/// says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loops_end_without_an_error_and_leasing_goes_on_until_the_drain_ends() {
    let pool = all_shared();
    for (name, connected) in pool.warm_up(ALL).await {
        connected.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let begun = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..2)
        .map(|_| {
            let (pool, begun) = (pool.clone(), Arc::clone(&begun));
            tokio::spawn(async move {
                let closing = pool.closing();
                while !closing.is_set() {
                    every_backend(&pool).await.expect("no error while the loop goes on");
                    begun.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let (pool, begun) = (blocking::ResourcePool::from(pool.clone()), Arc::clone(&begun));
            thread::spawn(move || {
                let closing = pool.closing();
                while !closing.is_set() {
                    every_backend_on_a_thread(&pool).expect("no error while the loop goes on");
                    begun.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    until(Duration::from_secs(30), || begun.load(Ordering::Relaxed) > 20);

    // Work that keeps the drain going, and a step that runs before those of the backends.
    let key = unique("gate");
    let mut redis = pool.redis().await.unwrap();
    let gate = key.clone();
    let drain_goes_on = tokio::spawn(async move { redis.blpop::<_, (String, String)>(gate, 0.0).await });
    until_async(SOON, async || {
        let clients = shared(Kind::Redis).redis().unwrap().clients().unwrap();
        clients.iter().any(|client| client.command.eq_ignore_ascii_case("blpop"))
    })
    .await;
    let (drained, go_on) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (told, waits) = (Arc::clone(&drained), Arc::clone(&go_on));
    pool.on_close("look", Phase::Tasks, move || {
        told.store(true, Ordering::SeqCst);
        until(SOON, || waits.load(Ordering::SeqCst));
        Ok(())
    })
    .unwrap();
    let closed = closing(&pool).await;
    for task in tasks {
        task.within(SOON).await.unwrap();
    }
    on_thread(move || threads.into_iter().for_each(|thread| thread.join().unwrap())).await;
    every_backend(&pool).await.expect("leases in the drain");
    let blocking = blocking::ResourcePool::from(pool.clone());
    on_thread({
        let blocking = blocking.clone();
        move || every_backend_on_a_thread(&blocking).expect("leases in the drain")
    })
    .await;
    assert!(!drained.load(Ordering::SeqCst));

    shared(Kind::Redis).redis().unwrap().command(&["RPUSH", &key, "open"]).unwrap();
    drain_goes_on.within(SOON).await.unwrap().unwrap();
    until_async(SOON, async || drained.load(Ordering::SeqCst)).await;
    let refused = [
        pool.mongo().await.map(drop),
        pool.rabbitmq().await.map(drop),
        pool.clickhouse().await.map(drop),
        pool.redis().await.map(drop),
    ];
    assert!(refused.iter().all(|refused| matches!(refused, Err(Error::Closing { .. }))), "{refused:?}");
    let refused = on_thread(move || {
        [
            blocking.mongo().map(drop),
            blocking.rabbitmq().map(drop),
            blocking.clickhouse().map(drop),
            blocking.redis().map(drop),
        ]
    })
    .await;
    assert!(refused.iter().all(|refused| matches!(refused, Err(Error::Closing { .. }))), "{refused:?}");
    go_on.store(true, Ordering::SeqCst);
    let report = closed.within(SOON).await.unwrap();
    assert!(report.all_closed(), "{report}");
    assert!(report.steps.iter().all(|step| step.given_up.is_empty() && step.unfinished.is_empty()), "{report}");
}

/// Closing code makes a task's last writes, on both facades, after leasing has stopped for all others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_code_uses_every_backend_until_its_own_phase() {
    let pool = all_shared();
    for (name, connected) in pool.warm_up(ALL).await {
        connected.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let done = Arc::new(AtomicUsize::new(0));
    let (told, inside) = (Arc::clone(&done), pool.clone());
    let last_writes = move || {
        let outside = inside.clone();
        let refused = thread::spawn(move || outside.is_closing()).join().expect("it looks");
        assert!(refused);
        every_backend_on_a_thread(&blocking::ResourcePool::from(inside.clone()))?;
        told.fetch_add(1, Ordering::SeqCst);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(every_backend(&inside))?;
        told.fetch_add(1, Ordering::SeqCst);
        Ok(())
    };
    pool.on_close("last writes", Phase::Tasks, last_writes).unwrap();
    let (told, inside) = (Arc::clone(&done), blocking::ResourcePool::from(pool.clone()));
    let too_late = move || {
        let closed = |refused: Result<(), Error>| usize::from(refused.is_err_and(|error| error.is_closed()));
        let refused = [
            closed(inside.rabbitmq().map(drop)),
            closed(inside.redis().map(drop)),
            closed(inside.clickhouse().map(drop)),
        ];
        told.fetch_add(refused.iter().sum(), Ordering::SeqCst);
        inside.mongo()?.database("admin").run_command(doc! { "ping": 1 }).run()?;
        Ok(())
    };
    // With this dependency, ClickHouse closes before MongoDB, and only MongoDB is left for the step "too late".
    pool.depends_on("clickhouse", "mongo").unwrap();
    pool.on_close("too late", Phase::Databases, too_late).unwrap();
    pool.depends_on("too late", "mongo").unwrap();
    let report = pool.close_all().within(Duration::from_secs(30)).await;
    assert!(report.all_closed(), "{report}");
    assert_eq!(done.load(Ordering::SeqCst), 2 + 3, "{report}");
    assert!(report.steps.iter().all(|step| step.given_up.is_empty() && step.unfinished.is_empty()), "{report}");
}

async fn every_backend(pool: &ResourcePool) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    pool.mongo().await?.database("admin").run_command(doc! { "ping": 1 }).await?;
    assert!(pool.rabbitmq().await?.publish(Message::new("", "nobody", "x").optional()).await?.is_confirmed());
    pool.clickhouse().await?.query("SELECT 1").execute().await?;
    let mut redis = pool.redis().await?;
    Ok(redis.ping().await?)
}

fn every_backend_on_a_thread(pool: &blocking::ResourcePool) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    pool.mongo()?.database("admin").run_command(doc! { "ping": 1 }).run()?;
    assert!(pool.rabbitmq()?.publish(Message::new("", "nobody", "x").optional())?.is_confirmed());
    pool.clickhouse()?.execute("SELECT 1")?;
    Ok(pool.redis()?.ping()?)
}
