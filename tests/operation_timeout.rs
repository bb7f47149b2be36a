//! The operation timeout of Redis, ClickHouse and RabbitMQ, against servers that are slow or frozen.

#![cfg(any(feature = "redis", feature = "clickhouse", feature = "rabbitmq"))]
#![allow(missing_docs)]

mod common;

use std::error::Error as StdError;
use std::thread;
use std::time::{Duration, Instant};

use common::{Stopwatch, Within, unhurried, until_async};
use resource_pool::config::{Options, Repeat, ResourceConfig};
use resource_pool::{Error, ResourcePool, State, blocking};
use services::{Kind, Service};

/// A guard against hanging.
const SOON: Duration = Duration::from_secs(30);

/// Options under which no prober cuts anything, so that only the operation timeout ends a call.
fn unprobed() -> Options {
    let mut options = unhurried();
    options.probe.enabled = false;
    options
}

fn pool_with(config: impl Into<ResourceConfig>, options: Options) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().expect("a pool")
}

fn pool_of(config: impl Into<ResourceConfig>) -> ResourcePool {
    pool_with(config, unprobed())
}

/// Checks that the error is a timeout, which says what it waited for.
#[track_caller]
fn is_timeout(error: &(dyn StdError + 'static), waited_for: &str) {
    let is_so =
        matches!(Error::behind(error), Some(Error::Timeout(timeout)) if timeout.waiting_for.contains(waited_for));
    assert!(is_so, "{error}: {error:?}");
}

/// Checks that the error says that nobody knows whether this was done, because of a timeout.
#[track_caller]
fn is_unknown(error: &(dyn StdError + 'static), what: &str) {
    let is_so = matches!(Error::behind(error), Some(Error::OutcomeUnknown { action, .. }) if action.contains(what));
    assert!(is_so && error.to_string().contains("waited"), "{error}: {error:?}");
}

/// Checks that the connection was never lost.
#[track_caller]
fn lives(pool: &ResourcePool, name: &str) {
    let status = pool.status();
    let status = status.resource(name).unwrap();
    assert_eq!((status.state, status.generation), (State::Ready, 1), "{status:?}");
}

#[cfg(feature = "redis")]
mod on_redis {
    use futures_util::StreamExt;
    use redis::{AsyncCommands, Commands};
    use resource_pool::config::RedisConfig;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    fn config(server: &Service) -> RedisConfig {
        RedisConfig::url(server.url()).pool_size(4).operation_timeout(LIMIT)
    }

    /// A server that is slow for one command: every call of either facade ends in time, with the error that fits, and
    /// the connections go on.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn redis_late_answers_are_passed_over_in_order() {
        let server = Service::start(Kind::Redis).unwrap();
        let mut options = unprobed();
        options.repeat = Repeat::Idempotent;
        let pool = pool_with(config(&server), options);
        let mut redis = pool.redis().await.unwrap();
        let () = redis::pipe().set("a", "of a").set("b", "of b").query_async(&mut redis).await.unwrap();
        let (mut own, mut pubsub) = (redis.exclusive().await.unwrap(), redis.pubsub().await.unwrap());
        let threads = blocking::ResourcePool::from(pool.clone());
        let [mut reading, mut writing] = [threads.redis().unwrap(), threads.redis().unwrap()];

        let mut slow = server.redis().unwrap().connect(SOON).unwrap();
        let sleep = thread::spawn(move || slow.command(&["DEBUG", "SLEEP", "6"]).unwrap());
        // The server sleeps from the moment at which a call has to wait.
        until_async(SOON, async || redis.get::<_, String>("a").await.is_err()).await;
        let started = Stopwatch::start();
        let read = thread::spawn(move || (reading.get::<_, String>("a").unwrap_err(), reading));
        let write = thread::spawn(move || writing.set::<_, _, ()>("a", "other").unwrap_err());
        let mut pipeline = redis::pipe();
        pipeline.get("a").incr("n", 1);
        let (mut first, mut second, mut third) = (redis.clone(), redis.clone(), redis.clone());
        let (get, set, both, on_own, subscribed) = tokio::join!(
            first.get::<_, String>("a"),
            second.set::<_, _, ()>("c", "of c"),
            pipeline.query_async::<(String, i64)>(&mut third),
            own.get::<_, String>("a"),
            pubsub.subscribe("ticks"),
        );
        assert!(started.took() < LIMIT * 3, "{:?}", started.took());
        is_timeout(&get.unwrap_err(), "answer to GET");
        is_unknown(&set.unwrap_err(), "SET");
        is_unknown(&both.unwrap_err(), "INCR");
        is_timeout(&on_own.unwrap_err(), "answer to GET");
        is_timeout(&subscribed.unwrap_err(), "SUBSCRIBE");
        let (read, mut reading) = read.join().unwrap();
        is_timeout(&read, "answer to GET");
        is_unknown(&write.join().unwrap(), "SET");
        sleep.join().unwrap();

        // Each answer belongs to its own command.
        assert_eq!(redis.get::<_, String>("b").await.unwrap(), "of b");
        assert_eq!(own.get::<_, String>("b").await.unwrap(), "of b");
        let after = reading.get::<_, String>("b").unwrap_err();
        assert!(after.to_string().contains("cut short"), "{after}");
        drop(reading);
        assert_eq!(threads.redis().unwrap().get::<_, String>("b").unwrap(), "of b");
        assert_eq!(redis.get::<_, String>("c").await.unwrap(), "of c", "it was done, as its error said it might");
        assert_eq!(redis.get::<_, i64>("n").await.unwrap(), 1, "nothing was sent twice");
        let () = pubsub.subscribe("more").await.unwrap();
        let () = redis.publish("ticks", "one").await.unwrap();
        let message = pubsub.on_message().next().within(SOON).await.unwrap();
        assert_eq!(message.get_channel_name(), "ticks", "the subscription began late");
        lives(&pool, "redis");
        let report = pool.close_all().await;
        assert!(report.all_closed(), "{report}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn redis_frozen_server_is_an_error_at_the_limit() {
        let server = Service::start(Kind::Redis).unwrap();
        let pool = pool_of(config(&server));
        let mut redis = pool.redis().await.unwrap();
        let () = redis.set("key", 1).await.unwrap();
        let threads = blocking::ResourcePool::from(pool.clone());
        let mut held = threads.redis().unwrap();
        server.freeze().unwrap();
        let (started, began) = (Stopwatch::start(), Instant::now());
        let thread = thread::spawn(move || held.get::<_, i64>("key").unwrap_err());
        is_timeout(&redis.get::<_, i64>("key").await.unwrap_err(), "answer to GET");
        is_timeout(&thread.join().unwrap(), "answer to GET");
        assert!(
            began.elapsed() >= LIMIT && started.took() < LIMIT * 3,
            "{:?} and {:?}",
            began.elapsed(),
            started.took()
        );
        server.thaw().unwrap();
        until_async(SOON, async || redis.get::<_, i64>("key").await.is_ok()).await;
        lives(&pool, "redis");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn redis_commands_that_wait_by_themselves_have_no_limit() {
        let server = Service::start(Kind::Redis).unwrap();
        let pool = pool_of(config(&server));
        let waits = LIMIT * 2;
        let (seconds, millis) = (waits.as_secs_f64(), waits.as_millis().to_string());
        let threads = blocking::ResourcePool::from(pool.clone());
        let (in_threads, of_thread) = (threads.clone(), millis.clone());
        let thread = thread::spawn(move || {
            let mut redis = in_threads.redis().unwrap();
            let nothing: Option<(String, String)> = redis.blpop("never", seconds).unwrap();
            let stream = redis::cmd("xread").arg(&["COUNT", "1", "BLOCK", &of_thread, "STREAMS", "s", "$"]).to_owned();
            let none: redis::Value = stream.query(&mut redis).unwrap();
            let _replicas: i64 = redis::cmd("WAIT").arg(&["1", &of_thread]).query(&mut redis).unwrap();
            let mut pipeline = redis::pipe();
            pipeline.get("key").cmd("BRPOP").arg("never").arg(seconds);
            let _both: (redis::Value, redis::Value) = pipeline.query(&mut redis).unwrap();
            (nothing, none)
        });
        let mut redis = pool.redis().await.unwrap();
        let mut pubsub = redis.pubsub().await.unwrap();
        pubsub.subscribe("ticks").await.unwrap();
        let started = Instant::now();
        assert_eq!(redis.blpop::<_, Option<(String, String)>>("never", seconds).await.unwrap(), None);
        let none: redis::Value =
            redis::cmd("XREAD").arg(&["BLOCK", &millis, "STREAMS", "s", "$"]).query_async(&mut redis).await.unwrap();
        assert_eq!(none, redis::Value::Nil);
        let mut own = redis.exclusive().await.unwrap();
        let replicas: i64 = redis::cmd("WAIT").arg(&["1", &millis]).query_async(&mut own).await.unwrap();
        assert!(replicas == 0 && started.elapsed() >= waits * 3, "{:?}", started.elapsed());
        // The subscription has been silent all the time.
        let () = redis.publish("ticks", "one").await.unwrap();
        assert!(pubsub.on_message().next().within(SOON).await.is_some());
        assert_eq!(thread.join().unwrap(), (None, redis::Value::Nil));
        lives(&pool, "redis");
    }
}

#[cfg(feature = "clickhouse")]
mod on_clickhouse {
    use clickhouse::Row;
    use resource_pool::config::ClickHouseConfig;
    use serde::{Deserialize, Serialize};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(2);
    /// A query whose answer begins after a minute. The server can cancel it each second.
    const ENDLESS: &str = "SELECT count() FROM (SELECT sleep(1) FROM numbers(60) SETTINGS max_block_size = 1)";

    #[derive(Debug, PartialEq, Row, Serialize, Deserialize)]
    struct Number {
        number: u64,
    }

    fn pool(server: &Service) -> ResourcePool {
        pool_of(ClickHouseConfig::url(server.url()).operation_timeout(LIMIT))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn clickhouse_slow_query_is_a_timeout_and_is_cancelled() {
        let server = Service::start(Kind::ClickHouse).unwrap();
        let pool = pool(&server);
        let clickhouse = pool.clickhouse().await.unwrap();
        let threads = blocking::ResourcePool::from(pool.clone());
        let started = Stopwatch::start();
        let thread = thread::spawn(move || threads.clickhouse().unwrap().query_rows::<u64>(ENDLESS).unwrap_err());
        let (verb, driver, rows, sleep) = tokio::join!(
            clickhouse.query_rows::<u64>(ENDLESS),
            clickhouse.query(ENDLESS).fetch_one::<u64>(),
            async { clickhouse.query_iter::<u64>(ENDLESS).await.unwrap().next().await.unwrap() },
            clickhouse.query_rows::<u8>("SELECT sleep(3)"),
        );
        assert!(started.took() < LIMIT * 3, "{:?}", started.took());
        for error in [verb.unwrap_err(), rows.unwrap_err(), sleep.unwrap_err(), thread.join().unwrap()] {
            assert!(matches!(error, Error::Timeout(_)) && error.is_transient(), "{error}");
        }
        is_timeout(&driver.unwrap_err(), "answer to a statement");
        until_async(SOON, async || server.clickhouse().unwrap().running().unwrap().is_empty()).await;

        let error = clickhouse.execute("CREATE TABLE slow ENGINE = Memory AS SELECT sleep(3) AS s").await.unwrap_err();
        is_unknown(&error, "statement");
        assert_eq!(clickhouse.query_rows::<u8>("SELECT 1").await.unwrap(), [1]);
        lives(&pool, "clickhouse");
        let report = pool.close_all().await;
        assert!(report.all_closed(), "{report}");
    }

    /// The caller's own time does not count, however it spends it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn clickhouse_slow_caller_has_no_limit() {
        const ROWS: u64 = 3_000_000;
        let server = Service::start(Kind::ClickHouse).unwrap();
        let pool = pool(&server);
        let clickhouse = pool.clickhouse().await.unwrap();
        clickhouse.execute("CREATE TABLE n (number UInt64) ENGINE = MergeTree ORDER BY number").await.unwrap();
        let read = async {
            let mut rows = clickhouse.query_iter::<u64>(&format!("SELECT number FROM numbers({ROWS})")).await.unwrap();
            assert_eq!(rows.next().await.unwrap().unwrap(), 0);
            tokio::time::sleep(LIMIT * 2).await;
            for number in 1..ROWS {
                assert_eq!(rows.next().await.unwrap().unwrap(), number);
            }
            assert!(rows.next().await.is_none());
        };
        let write = async {
            let mut insert = clickhouse.insert::<Number>("n").await.unwrap();
            insert.write(&Number { number: 1 }).await.unwrap();
            until_async(SOON, async || !pool.status().resource("clickhouse").unwrap().work.is_empty()).await;
            tokio::time::sleep(LIMIT * 2).await;
            for number in 2..=ROWS {
                insert.write(&Number { number }).await.unwrap();
            }
            tokio::time::sleep(LIMIT * 2).await;
            insert.end().await.unwrap();
        };
        tokio::join!(read, write);
        assert_eq!(clickhouse.query_rows::<u64>("SELECT count() FROM n").await.unwrap(), [ROWS]);
        lives(&pool, "clickhouse");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn clickhouse_frozen_server_is_an_error_at_the_limit() {
        let server = Service::start(Kind::ClickHouse).unwrap();
        let pool = pool(&server);
        let clickhouse = pool.clickhouse().await.unwrap();
        clickhouse.execute("CREATE TABLE n (number UInt64) ENGINE = MergeTree ORDER BY number").await.unwrap();
        server.freeze().unwrap();
        let (started, began) = (Stopwatch::start(), Instant::now());
        let (read, insert, large) = tokio::join!(
            clickhouse.query_rows::<u8>("SELECT 1"),
            clickhouse.insert_rows("n", [Number { number: 1 }]),
            // More than the sockets hold, so that its writing waits too.
            clickhouse.insert_rows(
                "n",
                (0..5_000_000).map(|number| Number { number: u64::wrapping_mul(number, 0x9E37_79B9_7F4A_7C15) })
            ),
        );
        assert!(
            began.elapsed() >= LIMIT && started.took() < LIMIT * 4,
            "{:?} and {:?}",
            began.elapsed(),
            started.took()
        );
        is_timeout(&read.unwrap_err(), "answer to a statement");
        is_unknown(&insert.unwrap_err(), "statement");
        assert!(matches!(large, Err(Error::OutcomeUnknown { .. })), "{large:?}");
        server.thaw().unwrap();
        until_async(SOON, async || clickhouse.query_rows::<u8>("SELECT 1").await.is_ok()).await;
        lives(&pool, "clickhouse");
    }
}

#[cfg(feature = "rabbitmq")]
mod on_rabbitmq {
    use resource_pool::config::RabbitMqConfig;
    use resource_pool::rabbitmq::{Message, Queue};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(2);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn rabbitmq_frozen_broker_is_an_error_at_the_limit() {
        let server = Service::start(Kind::RabbitMq).unwrap();
        let pool = pool_of(RabbitMqConfig::url(server.url()).confirm_timeout(LIMIT).operation_timeout(LIMIT));
        let rabbit = pool.rabbitmq().await.unwrap();
        rabbit.declare_queue(Queue::new("ticks")).await.unwrap();
        let mut consumer = rabbit.consume("ticks").await.unwrap();
        // A consumer waits for as long as no message comes.
        assert!(tokio::time::timeout(LIMIT * 2, consumer.next()).await.is_err());
        // This leaves an open channel behind, on which the next message is sent at once.
        assert!(rabbit.publish(Message::new("", "ticks", "one")).await.unwrap().is_confirmed());
        consumer.next().within(SOON).await.unwrap().unwrap().ack().await.unwrap();
        let threads = blocking::ResourcePool::from(pool.clone());
        let held = threads.rabbitmq().unwrap();
        server.freeze().unwrap();
        let (started, began) = (Stopwatch::start(), Instant::now());
        let unknown = rabbit.publish(Message::new("", "ticks", "two")).await.unwrap_err();
        is_unknown(&unknown, "publish");
        let thread = thread::spawn(move || {
            let published = held.publish(Message::new("", "ticks", "three")).unwrap_err();
            (published, held.declare_queue(Queue::new("of threads")).unwrap_err())
        });
        is_timeout(&rabbit.declare_queue(Queue::new("more")).await.unwrap_err(), "the broker's answer");
        let (published, declared) = thread.join().unwrap();
        // These had no channel yet, so nothing was sent.
        is_timeout(&published, "the broker's answer to opening a channel");
        is_timeout(&declared, "the broker's answer");
        assert!(
            began.elapsed() >= LIMIT && started.took() < LIMIT * 5,
            "{:?} and {:?}",
            began.elapsed(),
            started.took()
        );
        server.thaw().unwrap();
        until_async(SOON, async || rabbit.declare_queue(Queue::new("more")).await.is_ok()).await;
        let two = consumer.next().within(SOON).await.unwrap().unwrap();
        assert_eq!(two.data(), b"two", "it was taken, as its error said it might");
        two.ack().await.unwrap();
        lives(&pool, "rabbitmq");
    }
}
