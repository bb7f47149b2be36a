//! The child's load when it ends: it only holds leases (`idle`), it works until it is told to stop (`busy`), or it
//! holds everything and never gives it back (`held`).
//!
//! Each worker has a sign, an atomic that it sets after its first success. The child ends only once all signs are set.

use std::sync::atomic::Ordering;
use std::time::Duration;

#[cfg(feature = "clickhouse")]
use clickhouse::Row;
#[cfg(feature = "mongodb")]
use mongodb::bson::doc;
#[cfg(feature = "rabbitmq")]
use resource_pool::rabbitmq::{Consume, Message, Queue};
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
use resource_pool::sqlx;
use resource_pool::{ResourcePool, blocking};
#[cfg(feature = "clickhouse")]
use serde::Serialize;

use super::{Begun, keep};

#[cfg(feature = "clickhouse")]
#[derive(Row, Serialize)]
struct Tick {
    number: u64,
}

/// Whether the test uses this backend. It uses all that are built unless `ONLY` names one.
fn uses(name: &str) -> bool {
    std::env::var("ONLY").map_or(true, |only| only == name)
}

pub(crate) fn until_closing() {
    let closing = blocking::ResourcePool::global().closing();
    while !closing.is_set() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn threads(load: &str) {
    let begun = Begun::default();
    let pool = blocking::ResourcePool::global();
    let is_held = load == "held";
    let is_busy = load == "busy";
    #[cfg(feature = "mongodb")]
    if uses("mongo") {
        let mongo = pool.mongo().expect("mongo");
        let ticks = mongo.database("quantaxis").collection("exits");
        if load != "idle" {
            ticks.insert_one(doc! { "of": "all" }).run().expect("a collection");
            let mut session = mongo.start_session().run().expect("a session");
            session.start_transaction().run().expect("a transaction");
            ticks.insert_one(doc! { "in": "a transaction" }).session(&mut session).run().expect("an insert");
            keep(session);
        }
        if is_busy {
            let sign = begun.sign();
            std::thread::spawn(move || {
                while ticks.insert_one(doc! { "of": "a thread" }).run().is_ok() && !pool.is_closing() {
                    sign.store(true, Ordering::SeqCst);
                }
            });
        }
        keep(mongo);
    }
    #[cfg(feature = "rabbitmq")]
    if uses("rabbitmq") {
        let rabbit = pool.rabbitmq().expect("rabbitmq");
        if load != "idle" {
            let queue = rabbit.declare_queue(Queue::temporary()).expect("a queue").name().to_owned();
            let _ = rabbit.publish_batch((0..3).map(|_| Message::new("", &queue, "in hand"))).expect("confirmed");
            let mut consumer = rabbit.consume(Consume::from(&queue).prefetch(3)).expect("a consumer");
            let in_hand: Vec<_> = consumer.by_ref().take(3).map(|delivery| delivery.expect("a delivery")).collect();
            if is_held {
                keep((in_hand, consumer, rabbit.channel().expect("a channel")));
            } else {
                std::thread::spawn(move || {
                    until_closing();
                    for delivery in in_hand {
                        settled(delivery.ack());
                    }
                    drop(consumer);
                });
            }
        }
        if is_busy {
            let (sign, rabbit) = (begun.sign(), rabbit.clone());
            std::thread::spawn(move || {
                while rabbit.publish(Message::new("amq.fanout", "", "tick").optional()).is_ok() && !pool.is_closing() {
                    sign.store(true, Ordering::SeqCst);
                }
            });
        }
        keep(rabbit);
    }
    #[cfg(feature = "clickhouse")]
    if uses("clickhouse") {
        let clickhouse = pool.clickhouse().expect("clickhouse");
        clickhouse.execute(TABLE).expect("a table");
        if is_busy {
            let (sign, clickhouse) = (begun.sign(), clickhouse.clone());
            std::thread::spawn(move || {
                let rows = (0..2).map(|number| {
                    sign.store(true, Ordering::SeqCst);
                    if number == 1 {
                        until_closing();
                    }
                    Tick { number }
                });
                settled(clickhouse.insert_rows("exits", rows));
            });
            let (sign, clickhouse) = (begun.sign(), pool.clickhouse().expect("clickhouse").clone());
            std::thread::spawn(move || {
                while clickhouse.query_rows::<u8>("SELECT 1").is_ok() && !pool.is_closing() {
                    sign.store(true, Ordering::SeqCst);
                }
            });
        }
        keep(clickhouse);
    }
    #[cfg(feature = "redis")]
    if uses("redis") {
        let mut redis = pool.redis().expect("redis");
        redis::cmd("PING").exec(&mut redis).expect("ping");
        if is_held {
            keep(redis);
        } else {
            // The drain would wait for a checkout, because a checkout is work.
            drop(redis);
        }
        if is_busy {
            let sign = begun.sign();
            std::thread::spawn(move || {
                while pool.redis().is_ok_and(|mut redis| redis::cmd("INCR").arg("exits").exec(&mut redis).is_ok())
                    && !pool.is_closing()
                {
                    sign.store(true, Ordering::SeqCst);
                }
            });
        }
    }
    #[cfg(feature = "postgres")]
    if uses("postgres") {
        let mut postgres = pool.postgres().expect("postgres");
        postgres.wait(async |postgres| table(postgres).await).expect("a thread");
        if is_held {
            // A thread's guard lends its connection only for the time of a wait.
            keep(postgres);
        } else {
            // The drain would wait for a checkout, because a checkout is work.
            drop(postgres);
        }
        if is_busy {
            let sign = begun.sign();
            std::thread::spawn(move || {
                let once = |mut postgres: blocking::Postgres| postgres.wait(async |postgres| insert(postgres).await);
                while pool.postgres().and_then(once).is_ok_and(|inserted| inserted.is_ok()) && !pool.is_closing() {
                    sign.store(true, Ordering::SeqCst);
                }
            });
        }
    }
    #[cfg(feature = "mysql")]
    if uses("mysql") {
        let mut mysql = pool.mysql().expect("mysql");
        mysql.wait(async |mysql| mysql_table(mysql).await).expect("a thread");
        if is_held {
            // A thread's guard lends its connection only for the time of a wait.
            keep(mysql);
        } else {
            // The drain would wait for a checkout, because a checkout is work.
            drop(mysql);
        }
        if is_busy {
            let sign = begun.sign();
            std::thread::spawn(move || {
                let once = |mut mysql: blocking::MySql| mysql.wait(async |mysql| mysql_insert(mysql).await);
                while pool.mysql().and_then(once).is_ok_and(|inserted| inserted.is_ok()) && !pool.is_closing() {
                    sign.store(true, Ordering::SeqCst);
                }
            });
        }
    }
    #[cfg(feature = "sqlite")]
    if uses("sqlite") {
        let mut sqlite = pool.sqlite().expect("sqlite");
        sqlite.wait(async |sqlite| sqlite_table(sqlite).await).expect("a thread");
        if is_held {
            keep(sqlite);
        } else {
            // The drain would wait for a checkout, because a checkout is work.
            drop(sqlite);
        }
        if is_busy {
            let sign = begun.sign();
            std::thread::spawn(move || {
                let once = |mut sqlite: blocking::Sqlite| sqlite.wait(async |sqlite| sqlite_insert(sqlite).await);
                while pool.sqlite().and_then(once).is_ok_and(|inserted| inserted.is_ok()) && !pool.is_closing() {
                    sign.store(true, Ordering::SeqCst);
                }
            });
        }
    }
    let _ = (is_held, is_busy, pool);
    while !begun.are_all() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) async fn tasks(load: &str) {
    let begun = Begun::default();
    let pool = ResourcePool::global();
    let is_held = load == "held";
    let is_busy = load == "busy";
    #[cfg(feature = "mongodb")]
    if uses("mongo") {
        let mongo = pool.mongo().await.expect("mongo");
        let ticks = mongo.database("quantaxis").collection("exits");
        if load != "idle" {
            ticks.insert_one(doc! { "of": "all" }).await.expect("a collection");
            let mut session = mongo.start_session().await.expect("a session");
            session.start_transaction().await.expect("a transaction");
            ticks.insert_one(doc! { "in": "a transaction" }).session(&mut session).await.expect("an insert");
            keep(session);
        }
        if is_busy {
            let sign = begun.sign();
            tokio::spawn(async move {
                while ticks.insert_one(doc! { "of": "a task" }).await.is_ok() && !pool.is_closing() {
                    sign.store(true, Ordering::SeqCst);
                }
            });
        }
        keep(mongo);
    }
    #[cfg(feature = "rabbitmq")]
    if uses("rabbitmq") {
        let rabbit = pool.rabbitmq().await.expect("rabbitmq");
        if load != "idle" {
            let queue = rabbit.declare_queue(Queue::temporary()).await.expect("a queue").name().to_owned();
            let _ = rabbit.publish_batch((0..3).map(|_| Message::new("", &queue, "in hand"))).await.expect("confirmed");
            let mut consumer = rabbit.consume(Consume::from(&queue).prefetch(3)).await.expect("a consumer");
            let mut in_hand = Vec::new();
            while in_hand.len() < 3 {
                in_hand.push(consumer.next().await.expect("one more").expect("a delivery"));
            }
            if is_held {
                keep((in_hand, consumer, rabbit.channel().await.expect("a channel")));
            } else {
                tokio::spawn(async move {
                    pool.closing().wait().await;
                    for delivery in in_hand {
                        settled(delivery.ack().await);
                    }
                    drop(consumer);
                });
            }
        }
        if is_busy {
            let (sign, rabbit) = (begun.sign(), rabbit.clone());
            tokio::spawn(async move {
                while rabbit.publish(Message::new("amq.fanout", "", "tick").optional()).await.is_ok()
                    && !pool.is_closing()
                {
                    sign.store(true, Ordering::SeqCst);
                }
            });
        }
        keep(rabbit);
    }
    #[cfg(feature = "clickhouse")]
    if uses("clickhouse") {
        let clickhouse = pool.clickhouse().await.expect("clickhouse");
        clickhouse.query(TABLE).execute().await.expect("a table");
        if load != "idle" {
            let mut insert = clickhouse.insert::<Tick>("exits").await.expect("an insert");
            insert.write(&Tick { number: 1 }).await.expect("a row");
            if is_held {
                keep(insert);
            } else {
                tokio::spawn(async move {
                    pool.closing().wait().await;
                    settled(insert.end().await);
                });
            }
        }
        if is_busy {
            let (sign, clickhouse) = (begun.sign(), clickhouse.clone());
            tokio::spawn(async move {
                while clickhouse.query("SELECT 1").fetch_one::<u8>().await.is_ok() && !pool.is_closing() {
                    sign.store(true, Ordering::SeqCst);
                }
            });
        }
        keep(clickhouse);
    }
    #[cfg(feature = "redis")]
    if uses("redis") {
        let redis = pool.redis().await.expect("redis");
        if is_held {
            keep(redis.exclusive().await.expect("a connection"));
        }
        if is_busy {
            let (sign, mut redis) = (begun.sign(), redis.clone());
            tokio::spawn(async move {
                while redis::cmd("INCR").arg("exits").exec_async(&mut redis).await.is_ok() && !pool.is_closing() {
                    sign.store(true, Ordering::SeqCst);
                }
            });
        }
        keep(redis);
    }
    #[cfg(feature = "postgres")]
    if uses("postgres") {
        let mut postgres = pool.postgres().await.expect("postgres");
        table(&mut postgres).await;
        if is_held {
            // The transaction borrows its connection, and both are kept until the process ends. So the connection is
            // leaked.
            let postgres: &'static mut _ = Box::leak(Box::new(postgres));
            let mut transaction = postgres.begin().await.expect("a transaction");
            insert(&mut transaction).await.expect("a row");
            keep(transaction);
        } else {
            drop(postgres);
        }
        if is_busy {
            let sign = begun.sign();
            tokio::spawn(async move {
                while let Ok(mut postgres) = pool.postgres().await
                    && insert(&mut postgres).await.is_ok()
                    && !pool.is_closing()
                {
                    sign.store(true, Ordering::SeqCst);
                }
            });
        }
    }
    #[cfg(feature = "mysql")]
    if uses("mysql") {
        let mut mysql = pool.mysql().await.expect("mysql");
        mysql_table(&mut mysql).await;
        if is_held {
            // The transaction borrows its connection, and both are kept until the process ends. So the connection is
            // leaked.
            let mysql: &'static mut _ = Box::leak(Box::new(mysql));
            let mut transaction = mysql.begin().await.expect("a transaction");
            mysql_insert(&mut transaction).await.expect("a row");
            keep(transaction);
        } else {
            drop(mysql);
        }
        if is_busy {
            let sign = begun.sign();
            tokio::spawn(async move {
                while let Ok(mut mysql) = pool.mysql().await
                    && mysql_insert(&mut mysql).await.is_ok()
                    && !pool.is_closing()
                {
                    sign.store(true, Ordering::SeqCst);
                }
            });
        }
    }
    #[cfg(feature = "sqlite")]
    if uses("sqlite") {
        let mut sqlite = pool.sqlite().await.expect("sqlite");
        sqlite_table(&mut sqlite).await;
        if is_held {
            // A transaction would keep the log of changes beside the file, and the close would warn of that.
            keep(sqlite);
        } else {
            drop(sqlite);
        }
        if is_busy {
            let sign = begun.sign();
            tokio::spawn(async move {
                while let Ok(mut sqlite) = pool.sqlite().await
                    && sqlite_insert(&mut sqlite).await.is_ok()
                    && !pool.is_closing()
                {
                    sign.store(true, Ordering::SeqCst);
                }
            });
        }
    }
    let _ = (is_held, is_busy, pool);
    while !begun.are_all() {
        tokio::task::yield_now().await;
    }
}

/// Creates the table for the rows, unless another task has.
#[cfg(feature = "postgres")]
async fn table(postgres: &mut resource_pool::Postgres) {
    // Two who create it at once fail in several ways, so they do it one after the other. Both statements are one
    // transaction, whose end gives the lock back.
    let create = "SELECT pg_advisory_xact_lock(1); CREATE TABLE IF NOT EXISTS exits (number int)";
    sqlx::raw_sql(create).execute(&mut *postgres).await.expect("a table");
}

#[cfg(feature = "postgres")]
async fn insert<'c>(postgres: impl sqlx::PgExecutor<'c>) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO exits VALUES (1)").execute(postgres).await.map(drop)
}

#[cfg(feature = "mysql")]
async fn mysql_table(mysql: &mut resource_pool::MySql) {
    // The server itself has one create it after the other.
    sqlx::raw_sql("CREATE TABLE IF NOT EXISTS exits (number int)").execute(mysql).await.expect("a table");
}

#[cfg(feature = "mysql")]
async fn mysql_insert<'c>(mysql: impl sqlx::MySqlExecutor<'c>) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO exits VALUES (1)").execute(mysql).await.map(drop)
}

#[cfg(feature = "sqlite")]
async fn sqlite_table(sqlite: &mut resource_pool::Sqlite) {
    sqlx::raw_sql("CREATE TABLE IF NOT EXISTS exits (number int)").execute(sqlite).await.expect("a table");
}

#[cfg(feature = "sqlite")]
async fn sqlite_insert<'c>(sqlite: impl sqlx::SqliteExecutor<'c>) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO exits VALUES (1)").execute(sqlite).await.map(drop)
}

#[cfg(feature = "clickhouse")]
const TABLE: &str = "CREATE TABLE IF NOT EXISTS exits (number UInt64) ENGINE = MergeTree ORDER BY number";

/// Work that began before closing must end well in the drain.
#[cfg(any(feature = "rabbitmq", feature = "clickhouse"))]
fn settled<T, E: std::fmt::Debug>(ended: Result<T, E>) {
    if let Err(error) = ended {
        eprintln!("TROUBLE {error:?}");
    }
}
