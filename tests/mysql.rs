//! MySQL's kind against a real MariaDB.

#![cfg(feature = "mysql")]
#![allow(missing_docs)]

mod common;

use std::time::Duration;

use common::{Stopwatch, unhurried, until};
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use resource_pool::config::{MySqlConfig, Options};
use resource_pool::{Error, Health, MySql, MySqlTransaction, ResourcePool, State, Usage, blocking};
use services::{Kind, Service, shared};
use sqlx::{Connection as _, Row};

/// A guard against hanging.
const SOON: Duration = Duration::from_secs(20);
/// The limit for a call to a server that stopped answering.
const FROZEN: Duration = Duration::from_secs(5);

fn pool_of(config: MySqlConfig, options: Options) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().unwrap()
}

fn pool(server: &Service) -> ResourcePool {
    pool_of(MySqlConfig::url(server.url()), unhurried())
}

fn sized(server: &Service, pool_size: u32, max_overflow: u32) -> ResourcePool {
    pool_of(MySqlConfig::url(server.url()).pool_size(pool_size).max_overflow(max_overflow), unhurried())
}

async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, future).await.expect("it hangs")
}

/// Waits for a condition without blocking the other tasks.
async fn until_async(holds: impl FnMut() -> bool + Send + 'static) {
    tokio::task::spawn_blocking(|| until(SOON, holds)).await.unwrap();
}

async fn pid(mysql: &mut MySql) -> u64 {
    sqlx::query_scalar("SELECT connection_id()").fetch_one(mysql).await.unwrap()
}

fn usage(pool: &ResourcePool) -> Usage {
    pool.status().resource("mysql").unwrap().usage
}

/// The pool's error behind the driver's.
fn behind(error: &sqlx::Error) -> &Error {
    Error::behind(error).unwrap_or_else(|| panic!("{error}"))
}

/// Waits until the statement runs on a connection.
async fn until_it_runs(pool: &ResourcePool, statement: &'static str) {
    let runs = async || sqlx::query(statement).execute(&mut pool.mysql().await.ok()?).await.ok();
    within(SOON, async { while runs().await.is_none() {} }).await;
}

/// Creates a table for this test alone.
async fn table(pool: &ResourcePool, name: &str) {
    let mut mysql = pool.mysql().await.unwrap();
    let sql = format!("CREATE TABLE {name} (code varchar(20), close double)");
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut mysql).await.unwrap();
}

async fn count(pool: &ResourcePool, table: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut pool.mysql().await.unwrap()).await.unwrap()
}

#[derive(Debug, PartialEq, sqlx::FromRow)]
struct Bar {
    code: String,
    close: f64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_run_on_a_guard_and_its_connection_is_used_again() {
    let pool = pool(shared(Kind::MySql));
    table(&pool, "bars_used").await;
    let mut mysql = pool.mysql().await.unwrap();
    let insert = sqlx::query("INSERT INTO bars_used VALUES (?, ?), (?, ?)");
    let inserted = insert.bind("000001").bind(10.5).bind("000002").bind(20.25).execute(&mut mysql).await.unwrap();
    assert_eq!(inserted.rows_affected(), 2);
    let select = "SELECT code, close FROM bars_used ORDER BY code";
    let bars: Vec<Bar> = sqlx::query_as(select).fetch_all(&mut mysql).await.unwrap();
    assert_eq!(bars[1], Bar { code: "000002".to_owned(), close: 20.25 });
    let one: f64 = sqlx::query_scalar("SELECT close FROM bars_used WHERE code = ?")
        .bind("000001")
        .fetch_one(&mut mysql)
        .await
        .unwrap();
    assert_eq!(one, 10.5);
    let none = sqlx::query("SELECT 1 FROM bars_used WHERE code = ''").fetch_optional(&mut mysql).await.unwrap();
    assert!(none.is_none());
    let wrong = sqlx::query("SELECT nonsense").fetch_one(&mut mysql).await.unwrap_err();
    assert!(wrong.as_database_error().is_some_and(|said| said.code().as_deref() == Some("42S22")), "{wrong}");
    let first = pid(&mut mysql).await;
    drop(mysql);
    assert_eq!(pid(&mut pool.mysql().await.unwrap()).await, first);
    assert_eq!(within(SOON, pool.health_check()).await.entry("mysql").unwrap().health, Health::Pass);
    let report = within(SOON, pool.close_all()).await;
    assert!(report.all_closed() && report.step("mysql").is_some(), "{report}");
    assert!(matches!(pool.mysql().await, Err(Error::Closed { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkout_that_is_out_for_too_long_is_suspected() {
    let mut options = unhurried();
    options.leaks.age = Duration::from_millis(50);
    let pool = pool_of(MySqlConfig::url(shared(Kind::MySql).url()), options);
    let held = pool.mysql().await.unwrap();
    let line = line!() - 1;
    let suspected = pool.clone();
    until_async(move || suspected.status().resource("mysql").unwrap().leaks == 1).await;
    let holder = pool.holders().into_iter().find(|holder| holder.suspected).unwrap();
    assert_eq!((holder.site.file(), holder.site.line()), (file!(), line));
    drop(held);
    assert_eq!(pool.status().resource("mysql").unwrap().leaks, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_rolls_back_unless_it_is_committed() {
    let pool = pool(shared(Kind::MySql));
    table(&pool, "bars_in_transactions").await;
    let insert = "INSERT INTO bars_in_transactions VALUES ('a', 1)";
    let mut mysql = pool.mysql().await.unwrap();
    let mut kept = mysql.begin().await.unwrap();
    sqlx::query(insert).execute(&mut kept).await.unwrap();
    let mut undone = kept.begin_nested().await.unwrap();
    sqlx::query(insert).execute(&mut undone).await.unwrap();
    undone.rollback().await.unwrap();
    kept.commit().await.unwrap();
    let mut dropped = mysql.begin().await.unwrap();
    sqlx::query(insert).execute(&mut dropped).await.unwrap();
    drop(dropped);
    // The transaction is rolled back before this query runs.
    let seen: i64 =
        sqlx::query_scalar("SELECT count(*) FROM bars_in_transactions").fetch_one(&mut mysql).await.unwrap();
    assert_eq!(seen, 1);
    let mut dropped = mysql.begin().await.unwrap();
    sqlx::query(insert).execute(&mut dropped).await.unwrap();
    drop(dropped);
    drop(mysql);
    // No lock of the dropped transaction is left for another connection to wait for.
    let mut other = within(SOON, pool.mysql()).await.unwrap();
    within(SOON, sqlx::query("ALTER TABLE bars_in_transactions COMMENT 'x'").execute(&mut other)).await.unwrap();
    drop(other);
    assert_eq!(count(&pool, "bars_in_transactions").await, 1);
}

/// After a dropped `BEGIN` it is unknown whether the transaction has begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_done_in_a_transaction_that_nobody_knows_of() {
    let server = Service::start(Kind::MySql).unwrap();
    let pool = pool(&server);
    table(&pool, "bars").await;
    let insert = "INSERT INTO bars VALUES ('a', 1)";
    let mut mysql = pool.mysql().await.unwrap();
    server.freeze().unwrap();
    assert!(mysql.begin().now_or_never().is_none());
    server.thaw().unwrap();
    let refused = sqlx::query(insert).execute(&mut mysql).await.unwrap_err();
    assert!(matches!(behind(&refused), Error::Operation { .. }), "{refused}");
    drop(mysql);
    let mut mysql = pool.mysql().await.unwrap();
    let mut outer = mysql.begin().await.unwrap();
    sqlx::query(insert).execute(&mut outer).await.unwrap();
    server.freeze().unwrap();
    assert!(outer.begin_nested().now_or_never().is_none());
    server.thaw().unwrap();
    assert!(sqlx::query(insert).execute(&mut outer).await.is_err());
    assert!(outer.commit().await.is_err());
    drop(mysql);
    assert_eq!(count(&pool, "bars").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_tells_size_checked_out_overflow_idle_and_waiting() {
    let server = Service::start(Kind::MySql).unwrap();
    let mut config = MySqlConfig::url(server.url()).pool_size(2).max_overflow(1);
    config.overflow_timeout = Duration::from_millis(100);
    let mut options = unhurried();
    options.acquire_timeout = SOON;
    let pool = pool_of(config, options);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(pool.mysql().await.unwrap());
    }
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { pool.mysql().await.map(drop) }
    });
    let full = pool.clone();
    until_async(move || usage(&full).waiting == Some(1)).await;
    let Usage { max, open, in_use, idle, overflow, .. } = usage(&pool);
    assert_eq!([max, open, in_use, idle, overflow], [3, 3, 3, 0, 1].map(Some));
    let timeout = pool.within(Duration::from_millis(50)).mysql().await.unwrap_err();
    let Error::Timeout(error) = &timeout else { panic!("{timeout}") };
    assert_eq!((error.holders.len(), error.holders[0].site.file()), (3, file!()), "{timeout}");
    drop(held);
    within(SOON, waiting).await.unwrap().unwrap();
    // The open connections go down to the size that is kept.
    until_async(move || usage(&pool).open == Some(2)).await;
    // The server also has the prober's own.
    until_async(move || server.mysql().unwrap().connections().unwrap().len() <= 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_freezes_ends_what_is_in_flight_and_blocks_nobody() {
    let server = Service::start(Kind::MySql).unwrap();
    let config = MySqlConfig::url(server.url()).pool_size(4).max_overflow(0);
    let pool = pool_of(config, Options::default());
    table(&pool, "bars").await;
    let insert = "INSERT INTO bars VALUES ('a', 1)";
    let (mut reads, mut writes) = (pool.mysql().await.unwrap(), pool.mysql().await.unwrap());
    let (mut undone, mut commits) = (pool.mysql().await.unwrap(), pool.mysql().await.unwrap());
    let mut in_transaction = undone.begin().await.unwrap();
    let mut commit = commits.begin().await.unwrap();
    sqlx::query(insert).execute(&mut commit).await.unwrap();
    server.freeze().unwrap();
    let stopwatch = Stopwatch::start();
    let (read, written, lost, unknown) = within(SOON, async {
        tokio::join!(
            async { sqlx::query("SELECT 1").fetch_all(&mut reads).await.unwrap_err() },
            async { sqlx::query(insert).execute(&mut writes).await.unwrap_err() },
            async { sqlx::query(insert).execute(&mut in_transaction).await.unwrap_err() },
            async { commit.commit().await.unwrap_err() },
        )
    })
    .await;
    let took = stopwatch.took();
    assert!(matches!(behind(&read), Error::Lost { .. }), "{read}");
    assert!(matches!(behind(&written), Error::OutcomeUnknown { .. }), "{written}");
    assert!(matches!(behind(&lost), Error::Lost { .. }), "{lost}");
    assert!(matches!(behind(&unknown), Error::OutcomeUnknown { .. }), "{unknown}");
    assert!(took < FROZEN, "{took:?}");
    // None of these drops waits for the server.
    let stopwatch = Stopwatch::start();
    drop(in_transaction);
    drop((reads, writes, undone, commits));
    assert!(stopwatch.took() < Duration::from_millis(100), "{:?}", stopwatch.took());
    server.thaw().unwrap();
    until_it_runs(&pool, "SELECT 1").await;
    let stopwatch = Stopwatch::start();
    server.freeze().unwrap();
    let report = within(SOON, pool.close_all_within(Duration::from_secs(2))).await;
    assert!(stopwatch.took() < FROZEN && report.step("mysql").is_some(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_frozen_as_it_is_connected_to_fails_in_time() {
    let server = Service::start(Kind::MySql).unwrap();
    let pool = pool_of(MySqlConfig::url(server.url()), Options::default());
    server.freeze().unwrap();
    let stopwatch = Stopwatch::start();
    let error = within(SOON, pool.mysql()).await.unwrap_err();
    assert!(error.to_string().contains("no answer within"), "{error}");
    assert!(stopwatch.took() < 2 * FROZEN, "{:?}", stopwatch.took());
    server.thaw().unwrap();
    let back = async { while pool.mysql().await.is_err() {} };
    within(SOON, back).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_is_come_back_to() {
    let server = Service::start(Kind::MySql).unwrap();
    let pool = pool(&server);
    let mut held = pool.mysql().await.unwrap();
    table(&pool, "bars").await;
    server.kill().unwrap();
    let error = within(SOON, sqlx::query("INSERT INTO bars VALUES ('a', 1)").execute(&mut held)).await.unwrap_err();
    assert!(matches!(behind(&error), Error::OutcomeUnknown { .. }), "{error}");
    drop(held);
    server.restart().unwrap();
    until_it_runs(&pool, "INSERT INTO bars VALUES ('b', 2)").await;
    assert!(count(&pool, "bars").await >= 1);
    // A connection that ends by itself is replaced, and nothing else is lost.
    let generation = pool.status().resource("mysql").unwrap().generation;
    let view = server.mysql().unwrap();
    for (connection, _) in view.connections().unwrap() {
        view.end(connection).unwrap();
    }
    until_it_runs(&pool, "SELECT 1").await;
    assert_eq!(pool.status().resource("mysql").unwrap().generation, generation);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_room_is_waited_for_and_nobody_is_lost() {
    let server = Service::start(Kind::MySql).unwrap();
    let limit = |count| server.mysql().unwrap().room_for(Some(count)).unwrap();
    limit(0);
    let mut options = unhurried();
    (options.retry.budget, options.acquire_timeout) = (Duration::from_secs(1), Duration::from_secs(3));
    let pool = pool_of(MySqlConfig::url(server.url()).pool_size(3).max_overflow(0), options);
    let error = within(SOON, pool.mysql()).await.unwrap_err();
    let Error::Connect(connect) = &error else { panic!("{error}") };
    assert!(!connect.permanent && error.to_string().contains("max_user_connections"), "{error}");
    limit(3);
    let mut held = Vec::new();
    let all = async {
        while held.len() < 3 {
            // The prober's connection gives its slot to a user.
            held.extend(pool.mysql().await);
        }
    };
    within(SOON, all).await;
    for mysql in &mut held {
        assert!(sqlx::query("SELECT 1").execute(mysql).await.is_ok());
    }
    let generation = pool.status().resource("mysql").unwrap().generation;
    assert_eq!((generation, pool.status().resource("mysql").unwrap().state), (1, State::Ready));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_of_the_drivers_own_is_closed_with_the_resource() {
    let server = Service::start(Kind::MySql).unwrap();
    let pool = pool(&server);
    let raw = pool.mysql().await.unwrap().raw_pool();
    let one: i64 = sqlx::query_scalar("SELECT 1").fetch_one(&raw).await.unwrap();
    assert_eq!(one, 1);
    let report = within(SOON, pool.close_all()).await;
    assert!(report.all_closed() && raw.is_closed(), "{report}");
    assert_eq!(server.await_established(0, SOON).unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_detached_outlives_the_resource_but_not_the_pool() {
    let server = Service::start(Kind::MySql).unwrap();
    let pool = sized(&server, 1, 0);
    let mut mysql = pool.mysql().await.unwrap();
    let first = pid(&mut mysql).await;
    let mut detached = mysql.detach().unwrap();
    let second = pid(&mut pool.mysql().await.unwrap()).await;
    assert_ne!(first, second, "its place is free");
    assert!(within(SOON, pool.close("mysql")).await.unwrap().all_closed());
    let still: u64 = sqlx::query_scalar("SELECT connection_id()").fetch_one(&mut detached).await.unwrap();
    assert_eq!(still, first);
    assert!(within(SOON, pool.close_all()).await.all_closed());
    // The runtime that it lives on ends in the background.
    let ended = async { while sqlx::query("SELECT 1").execute(&mut detached).await.is_ok() {} };
    within(SOON, ended).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_replaces_connections_while_a_transaction_goes_on() {
    let server = Service::start(Kind::MySql).unwrap();
    let pool = sized(&server, 2, 0);
    table(&pool, "refreshed").await;
    let mut held = pool.mysql().await.unwrap();
    let first = pid(&mut held).await;
    let mut transaction = held.begin().await.unwrap();
    pool.refresh("mysql").await.unwrap();
    sqlx::query("INSERT INTO refreshed VALUES ('000001', 1.0)").execute(&mut transaction).await.unwrap();
    transaction.commit().await.unwrap();
    drop(held);
    for _ in 0..2 {
        assert_ne!(pid(&mut pool.mysql().await.unwrap()).await, first);
    }
    assert_eq!(count(&pool, "refreshed").await, 1);
    assert_eq!(usage(&pool).counters.closed.map(|closed| closed.lost), Some(0));
    assert!(within(SOON, pool.close_all()).await.all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_discarded_ends_with_its_transaction() {
    let server = Service::start(Kind::MySql).unwrap();
    let pool = sized(&server, 1, 0);
    table(&pool, "discarded").await;
    let mut mysql = pool.mysql().await.unwrap();
    let first = pid(&mut mysql).await;
    sqlx::query("BEGIN").execute(&mut mysql).await.unwrap();
    sqlx::query("INSERT INTO discarded VALUES ('000001', 1.0)").execute(&mut mysql).await.unwrap();
    mysql.discard();
    assert_ne!(pid(&mut pool.mysql().await.unwrap()).await, first);
    assert_eq!(count(&pool, "discarded").await, 0);
    assert_eq!(usage(&pool).counters.closed.map(|closed| closed.discarded), Some(1));
}

#[test]
fn threads_wait_for_what_is_done_with_a_connection() {
    let server = shared(Kind::MySql);
    let builder = blocking::ResourcePool::builder().environment([("", ""); 0]).options(unhurried());
    let pool = builder.resource(MySqlConfig::url(server.url())).build().unwrap();
    let mut mysql = pool.mysql().unwrap();
    let sum: i64 = mysql
        .wait(async |mysql| sqlx::query_scalar("SELECT 1 + ?").bind(41_i64).fetch_one(mysql).await)
        .unwrap()
        .unwrap();
    assert_eq!(sum, 42);
    let holder = pool.holders().into_iter().find(|holder| holder.exclusive).unwrap();
    assert_eq!((holder.site.file(), &*holder.resource), (file!(), "mysql"));
    drop(mysql);
    assert!(pool.close_all().unwrap().all_closed());
}

/// The transaction drops as in a function that returns an error in its middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_drops_is_rolled_back_at_once_and_its_connection_is_used_again() {
    let server = Service::start(Kind::MySql).unwrap();
    let pool = sized(&server, 1, 0);
    table(&pool, "bars").await;
    let insert = "INSERT INTO bars VALUES ('a', 1)";
    let mut mysql = within(SOON, pool.mysql()).await.unwrap();
    let old = pid(&mut mysql).await;
    let mut transaction = mysql.begin().await.unwrap();
    sqlx::query(insert).execute(&mut transaction).await.unwrap();
    let mut nested = transaction.begin_nested().await.unwrap();
    sqlx::query(insert).execute(&mut nested).await.unwrap();
    drop(nested);
    drop(transaction);
    drop(mysql);
    // The rollback does not wait for the next caller.
    let open = "SELECT count(*) FROM information_schema.innodb_trx";
    let view = server.mysql().unwrap();
    within(SOON, async {
        while view.query(open).unwrap() != "0" {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(pid(&mut within(SOON, pool.mysql()).await.unwrap()).await, old);
    assert_eq!(count(&pool, "bars").await, 0);
    assert!(pool.holders().is_empty() && within(SOON, pool.close_all()).await.all_closed());
}

/// InnoDB ends a deadlock by undoing one of the transactions as a whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_a_deadlock_undid_takes_no_statement_and_is_not_told_to_be_committed() {
    let pool = pool(shared(Kind::MySql));
    table(&pool, "deadlocked").await;
    let mut mysql = pool.mysql().await.unwrap();
    sqlx::query("ALTER TABLE deadlocked ADD PRIMARY KEY (code)").execute(&mut mysql).await.unwrap();
    sqlx::query("INSERT INTO deadlocked VALUES ('a', 0), ('b', 0)").execute(&mut mysql).await.unwrap();
    let mut other = pool.mysql().await.unwrap();
    let raise = |code: &'static str| sqlx::query("UPDATE deadlocked SET close = close + 1 WHERE code = ?").bind(code);
    let (mut one, mut two) = (mysql.begin().await.unwrap(), other.begin().await.unwrap());
    raise("a").execute(&mut one).await.unwrap();
    raise("b").execute(&mut two).await.unwrap();
    let (first, second) = within(SOON, async {
        tokio::join!(raise("b").execute(&mut one), async {
            // The loser gives the winner the row.
            raise("a").execute(&mut two).await
        })
    })
    .await;
    assert!(first.is_err() != second.is_err(), "{first:?} {second:?}");
    let (mut lost, won) = if first.is_err() { (one, two) } else { (two, one) };
    let refused = raise("a").execute(&mut lost).await.unwrap_err();
    assert!(behind(&refused).to_string().contains("undid all of it"), "{refused}");
    let error = lost.commit().await.unwrap_err();
    assert!(behind(&error).to_string().contains("rolled back"), "{error}");
    won.commit().await.unwrap();
    // Both guards can begin another one.
    for guard in [&mut mysql, &mut other] {
        let mut again = guard.begin().await.unwrap();
        raise("a").execute(&mut again).await.unwrap();
        again.commit().await.unwrap();
    }
    let total: f64 = sqlx::query_scalar("SELECT sum(close) FROM deadlocked").fetch_one(&mut mysql).await.unwrap();
    assert_eq!(total, 4.0);
    // Any other error undoes its own statement alone.
    let mut kept = mysql.begin().await.unwrap();
    raise("a").execute(&mut kept).await.unwrap();
    assert!(sqlx::query("SELECT nonsense").execute(&mut kept).await.is_err());
    kept.commit().await.unwrap();
    let total: f64 = sqlx::query_scalar("SELECT sum(close) FROM deadlocked").fetch_one(&mut mysql).await.unwrap();
    assert_eq!(total, 5.0);
}

/// The server tells by its number alone that it has undone the transaction, or may have. `SIGNAL` answers such a number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_may_be_undone_as_a_whole_is_not_told_to_be_committed() {
    let pool = sized(shared(Kind::MySql), 1, 0);
    table(&pool, "undone").await;
    let insert = "INSERT INTO undone VALUES ('a', 1)";
    for number in [1020, 1205, 1206, 1213, 1614] {
        let mut mysql = within(SOON, pool.mysql()).await.unwrap();
        let mut transaction = mysql.begin().await.unwrap();
        sqlx::query(insert).execute(&mut transaction).await.unwrap();
        undoes(&mut transaction, number).await;
        let refused = sqlx::query(insert).execute(&mut transaction).await.unwrap_err();
        assert!(behind(&refused).to_string().contains("undid all of it"), "{number}: {refused}");
        assert!(transaction.begin_nested().await.is_err(), "{number}");
        let error = transaction.commit().await.unwrap_err();
        assert!(behind(&error).to_string().contains("rolled back"), "{number}: {error}");
        // A savepoint that drops does not bring the transaction back.
        let mut transaction = mysql.begin().await.unwrap();
        sqlx::query(insert).execute(&mut transaction).await.unwrap();
        let mut nested = transaction.begin_nested().await.unwrap();
        undoes(&mut nested, number).await;
        drop(nested);
        let refused = sqlx::query(insert).execute(&mut transaction).await.unwrap_err();
        assert!(behind(&refused).to_string().contains("undid all of it"), "{number}: {refused}");
        let error = transaction.commit().await.unwrap_err();
        assert!(behind(&error).to_string().contains("rolled back"), "{number}: {error}");
        drop(mysql);
        assert_eq!(count(&pool, "undone").await, 0, "{number}");
    }
}

/// Has the server answer this number.
async fn undoes(transaction: &mut MySqlTransaction<'_>, number: u16) {
    let signal = format!("SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {number}");
    let error = sqlx::raw_sql(sqlx::AssertSqlSafe(signal)).execute(transaction).await.unwrap_err();
    assert!(error.as_database_error().is_some(), "{error}");
}

/// A statement that answers a row, and an error instead of the second one.
async fn half_wrong(pool: &ResourcePool, name: &str) -> String {
    let mut mysql = pool.mysql().await.unwrap();
    let fill = format!(
        "CREATE TABLE {name} (code varchar(20)); INSERT INTO {name} VALUES ('a'), ('b'); CREATE TABLE {name}_twice (code \
         varchar(20)); INSERT INTO {name}_twice VALUES ('a'), ('b'), ('b')"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(fill)).execute(&mut mysql).await.unwrap();
    format!("SELECT (SELECT code FROM {name}_twice AS twice WHERE twice.code = {name}.code) FROM {name}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_behind_the_first_row_is_told_to_who_asked_for_one_row() {
    let pool = sized(shared(Kind::MySql), 1, 0);
    let wrong = half_wrong(&pool, "half_wrong").await;
    let mut mysql = within(SOON, pool.mysql()).await.unwrap();
    let error = sqlx::query(sqlx::AssertSqlSafe(wrong)).fetch_one(&mut mysql).await.unwrap_err();
    assert!(error.as_database_error().is_some_and(|said| said.message().contains("more than 1 row")), "{error}");
    let first = pid(&mut mysql).await;
    drop(mysql);
    assert_eq!(pid(&mut pool.mysql().await.unwrap()).await, first);
}

/// The commit is not sent, since the driver first finds the error that an earlier answer has left behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_fails_leaves_no_transaction_open() {
    let server = Service::start(Kind::MySql).unwrap();
    let pool = sized(&server, 1, 0);
    table(&pool, "bars").await;
    let wrong = half_wrong(&pool, "half_wrong").await;
    let mut mysql = within(SOON, pool.mysql()).await.unwrap();
    let mut transaction = mysql.begin().await.unwrap();
    sqlx::query("INSERT INTO bars VALUES ('a', 1)").execute(&mut transaction).await.unwrap();
    let mut rows = sqlx::query(sqlx::AssertSqlSafe(wrong)).fetch(&mut transaction);
    assert!(rows.try_next().await.unwrap().is_some());
    drop(rows);
    let error = transaction.commit().await.unwrap_err();
    assert!(error.as_database_error().is_some(), "{error}");
    drop(mysql);
    let view = server.mysql().unwrap();
    within(SOON, async {
        while view.query("SELECT count(*) FROM information_schema.innodb_trx").unwrap() != "0" {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(count(&pool, "bars").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_begins_a_transaction_is_read_for_what_else_it_does() {
    let pool = sized(shared(Kind::MySql), 1, 0);
    let mut mysql = within(SOON, pool.mysql()).await.unwrap();
    let first = pid(&mut mysql).await;
    mysql.begin_with("START TRANSACTION READ ONLY").await.unwrap().commit().await.unwrap();
    drop(mysql);
    let mut mysql = within(SOON, pool.mysql()).await.unwrap();
    assert_eq!(pid(&mut mysql).await, first, "nothing of it stays");
    mysql.begin_with("SET SESSION TRANSACTION READ ONLY; BEGIN").await.unwrap().commit().await.unwrap();
    drop(mysql);
    assert_ne!(pid(&mut within(SOON, pool.mysql()).await.unwrap()).await, first);
}

/// A number by which the server tells that it could not read a statement, or not write the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_on_which_the_server_could_not_read_or_write_is_not_used_again() {
    let pool = sized(shared(Kind::MySql), 1, 0);
    for number in 1153..=1161 {
        let mut mysql = within(SOON, pool.mysql()).await.unwrap();
        let first = pid(&mut mysql).await;
        undoes(&mut mysql.begin().await.unwrap(), number).await;
        let refused = sqlx::query("SELECT 1").execute(&mut mysql).await.unwrap_err();
        assert!(behind(&refused).to_string().contains("acquire another one"), "{number}: {refused}");
        drop(mysql);
        assert_ne!(pid(&mut within(SOON, pool.mysql()).await.unwrap()).await, first, "{number}");
    }
}

/// The server may end the connection after that answer, so the connection is not used again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_is_too_large_is_told_as_that() {
    let pool = sized(shared(Kind::MySql), 1, 0);
    let mut mysql = within(SOON, pool.mysql()).await.unwrap();
    let first = pid(&mut mysql).await;
    let limit: u64 =
        sqlx::query_scalar("SELECT CAST(@@max_allowed_packet AS UNSIGNED)").fetch_one(&mut mysql).await.unwrap();
    let large = "x".repeat(usize::try_from(limit).unwrap() + 1);
    let error = within(SOON, sqlx::query("SELECT length(?)").bind(large).execute(&mut mysql)).await.unwrap_err();
    assert!(error.as_database_error().is_some_and(|said| said.message().contains("max_allowed_packet")), "{error}");
    let refused = sqlx::query("SELECT 1").execute(&mut mysql).await.unwrap_err();
    assert!(behind(&refused).to_string().contains("acquire another one"), "{refused}");
    drop(mysql);
    assert_ne!(pid(&mut within(SOON, pool.mysql()).await.unwrap()).await, first);
}

/// Rows that were written before a statement on the schema stay, and rows after it may stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_on_the_schema_leaves_the_outcome_of_its_transaction_unknown() {
    let server = Service::start(Kind::MySql).unwrap();
    let pool = sized(&server, 1, 0);
    table(&pool, "bars").await;
    let insert = "INSERT INTO bars VALUES ('a', 1)";
    let mut mysql = pool.mysql().await.unwrap();
    let first = pid(&mut mysql).await;
    let mut transaction = mysql.begin().await.unwrap();
    sqlx::query(insert).execute(&mut transaction).await.unwrap();
    sqlx::query("CREATE TABLE other (code text)").execute(&mut transaction).await.unwrap();
    server.kill().unwrap();
    let error = within(SOON, sqlx::query(insert).execute(&mut transaction)).await.unwrap_err();
    assert!(matches!(behind(&error), Error::OutcomeUnknown { .. }), "{error}");
    drop(transaction);
    drop(mysql);
    server.restart().unwrap();
    until_it_runs(&pool, "SELECT 1").await;
    assert_eq!(count(&pool, "bars").await, 1, "the server has committed the first row");
    // The connection is not handed out again after that.
    let mut mysql = pool.mysql().await.unwrap();
    let second = pid(&mut mysql).await;
    let mut transaction = mysql.begin().await.unwrap();
    sqlx::query("DROP TABLE other").execute(&mut transaction).await.unwrap();
    transaction.commit().await.unwrap();
    drop(mysql);
    let third = pid(&mut within(SOON, pool.mysql()).await.unwrap()).await;
    assert!(second != third, "{first} {second} {third}");
}

/// The server's last words may come after the commit of what was sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_ended_by_the_server_leaves_the_outcome_unknown() {
    let server = Service::start(Kind::MySql).unwrap();
    let pool = pool(&server);
    table(&pool, "bars").await;
    for (statement, is_unknown) in [("SELECT sleep(600)", false), ("INSERT INTO bars SELECT 'a', sleep(600)", true)] {
        let running = tokio::spawn({
            let pool = pool.clone();
            async move { sqlx::query(statement).execute(&mut pool.mysql().await.unwrap()).await }
        });
        let view = server.mysql().unwrap();
        let busy = "SELECT id FROM information_schema.processlist WHERE state = 'User sleep'";
        let id = within(SOON, async {
            loop {
                match view.query(busy).unwrap().parse() {
                    Ok(id) => break id,
                    Err(_nobody) => tokio::task::yield_now().await,
                }
            }
        })
        .await;
        view.end(id).unwrap();
        let error = within(SOON, running).await.unwrap().unwrap_err();
        assert_eq!(matches!(behind(&error), Error::OutcomeUnknown { .. }), is_unknown, "{error}");
        assert_eq!(matches!(behind(&error), Error::Lost { .. }), !is_unknown, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_in_another_state_is_not_handed_out_again() {
    let pool = sized(shared(Kind::MySql), 1, 0);
    for statement in [
        "SET time_zone = '+08:00'",
        "BEGIN",
        "SET @a = 1",
        "CREATE TEMPORARY TABLE t (a int)",
        "SELECT 1; BEGIN",
        "SELECT GET_LOCK('desk', 1)",
        "SELECT @b := 1",
        "/*!40101 SET sql_mode = '' */",
    ] {
        let mut mysql = within(SOON, pool.mysql()).await.unwrap();
        let old = pid(&mut mysql).await;
        sqlx::raw_sql(statement).execute(&mut mysql).await.unwrap();
        drop(mysql);
        assert_ne!(pid(&mut within(SOON, pool.mysql()).await.unwrap()).await, old, "{statement}");
    }
    // A call that is dropped. Its answer may still come, so nothing more is sent.
    let mut mysql = within(SOON, pool.mysql()).await.unwrap();
    let old = pid(&mut mysql).await;
    let sleep = sqlx::query("SELECT sleep(600)").execute(&mut mysql);
    assert!(tokio::time::timeout(Duration::from_millis(50), sleep).await.is_err());
    let refused = sqlx::query("SELECT 1").execute(&mut mysql).await.unwrap_err();
    assert!(behind(&refused).to_string().contains("acquire another one"), "{refused}");
    drop(mysql);
    let mut mysql = within(SOON, pool.mysql()).await.unwrap();
    assert_ne!(pid(&mut mysql).await, old);
    // The raw connection. The pool does not know its state.
    let old = pid(&mut mysql).await;
    mysql.raw().ping().await.unwrap();
    drop(mysql);
    assert_ne!(pid(&mut within(SOON, pool.mysql()).await.unwrap()).await, old);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_drops_between_two_rows_lets_the_guard_go_on() {
    let pool = sized(shared(Kind::MySql), 1, 0);
    let mut mysql = pool.mysql().await.unwrap();
    let mut rows = sqlx::query_scalar::<_, i64>("SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3").fetch(&mut mysql);
    assert_eq!(rows.try_next().await.unwrap(), Some(1));
    drop(rows);
    let old = pid(&mut mysql).await;
    drop(mysql);
    assert_eq!(pid(&mut pool.mysql().await.unwrap()).await, old);
}

/// The driver still waits for an end behind the result, and the next call would wait for it in vain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_drops_behind_a_result_hangs_nobody() {
    let server = shared(Kind::MySql);
    let pool = sized(server, 1, 0);
    table(&pool, "behind_a_result").await;
    let mut mysql = pool.mysql().await.unwrap();
    let first = pid(&mut mysql).await;
    let mut steps = sqlx::raw_sql("INSERT INTO behind_a_result VALUES ('a', 1)").fetch_many(&mut mysql);
    assert!(matches!(within(SOON, steps.next()).await, Some(Ok(sqlx::Either::Left(_)))));
    drop(steps);
    let refused = within(SOON, sqlx::query("SELECT 1").execute(&mut mysql)).await.unwrap_err();
    assert!(refused.to_string().contains("acquire another one"), "{refused}");
    drop(mysql);
    assert_ne!(pid(&mut within(SOON, pool.mysql()).await.unwrap()).await, first);
    assert_eq!(count(&pool, "behind_a_result").await, 1);
}

/// MySQL commits before it creates a table, and each statement behind that by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_tells_what_a_statement_on_the_schema_has_committed() {
    let pool = pool(shared(Kind::MySql));
    table(&pool, "half_undone").await;
    let mut mysql = pool.mysql().await.unwrap();
    let mut transaction = mysql.begin().await.unwrap();
    sqlx::query("INSERT INTO half_undone VALUES ('a', 1)").execute(&mut transaction).await.unwrap();
    sqlx::query("CREATE TABLE half_undone_too (a int)").execute(&mut transaction).await.unwrap();
    sqlx::query("INSERT INTO half_undone VALUES ('b', 2)").execute(&mut transaction).await.unwrap();
    let told = within(SOON, transaction.rollback()).await.unwrap_err();
    assert!(behind(&told).to_string().contains("commits the transaction"), "{told}");
    assert_eq!(count(&pool, "half_undone").await, 2);
    // The next transaction is another one.
    let mut mysql = pool.mysql().await.unwrap();
    let mut transaction = mysql.begin().await.unwrap();
    sqlx::query("INSERT INTO half_undone VALUES ('c', 3)").execute(&mut transaction).await.unwrap();
    within(SOON, transaction.rollback()).await.unwrap();
    assert_eq!(count(&pool, "half_undone").await, 2);
    sqlx::query("DROP TABLE half_undone_too").execute(&mut mysql).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_attempt_mends_is_told_at_once_and_no_secret_is_shown() {
    let server = shared(Kind::MySql);
    let refused = async |url: &str| {
        let pool = pool_of(MySqlConfig::url(url), unhurried());
        let error = pool.mysql().await.unwrap_err();
        let Error::Connect(connect) = &error else { panic!("{error}") };
        assert!(connect.permanent && connect.attempts == 1, "{error}");
        format!("{error} {error:?}")
    };
    let (start, end) = server.url().rsplit_once('@').unwrap();
    let mistyped = format!("{}:mistyped@{end}", start.rsplit_once(':').unwrap().0);
    let told = refused(&mistyped).await;
    assert!(told.contains("Access denied") && !told.contains("mistyped"), "{told}");
    // The user has rights on its own database alone, so the server does not tell whether another one is there.
    let elsewhere = format!("{}/nowhere", server.url().rsplit_once('/').unwrap().0);
    assert!(refused(&elsewhere).await.contains("nowhere"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_made_ready_by_a_hook() {
    let server = shared(Kind::MySql);
    let config = MySqlConfig::url(server.url()).on_connect(|connection| {
        Box::pin(async move {
            sqlx::query("SET time_zone = '+08:00'").execute(connection).await?;
            Ok(())
        })
    });
    let pool = pool_of(config, unhurried());
    let mut mysql = pool.mysql().await.unwrap();
    let row = sqlx::query("SELECT @@time_zone, database()").fetch_one(&mut mysql).await.unwrap();
    assert_eq!((row.get::<String, _>(0).as_str(), row.get::<String, _>(1).as_str()), ("+08:00", server.database()));
    drop(mysql);
    let raw = pool.mysql().await.unwrap().raw_pool();
    let zone: String = sqlx::query_scalar("SELECT @@time_zone").fetch_one(&raw).await.unwrap();
    assert_eq!(zone, "+08:00");
    let broken = MySqlConfig::url(server.url()).on_connect(|connection| {
        Box::pin(async move {
            sqlx::query("SELECT nonsense").execute(connection).await?;
            Ok(())
        })
    });
    let mut options = unhurried();
    options.retry.budget = Duration::from_secs(1);
    let error = pool_of(broken, options).mysql().await.unwrap_err();
    assert!(error.to_string().contains("nonsense"), "{error}");
}

/// Inserts the demo's bars and reads them back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bars_go_in_and_come_out_as_they_were() {
    let bars = include_str!("../examples/data/stocks.csv").lines().skip(1).map(|line| {
        let fields: Vec<_> = line.split(',').collect();
        (fields[0].to_owned(), fields[1].to_owned(), fields[5].parse::<f64>().unwrap())
    });
    let mut bars: Vec<_> = bars.collect();
    bars.sort_by(|one, other| (&one.0, &one.1).cmp(&(&other.0, &other.1)));
    let pool = pool(shared(Kind::MySql));
    let mut mysql = pool.mysql().await.unwrap();
    let create = "CREATE TABLE days (code varchar(8), day varchar(10), close double, PRIMARY KEY (code, day))";
    sqlx::query(create).execute(&mut mysql).await.unwrap();
    let mut transaction = mysql.begin().await.unwrap();
    for some in bars.chunks(1000) {
        let mut insert = sqlx::QueryBuilder::new("INSERT INTO days ");
        insert.push_values(some, |mut row, (code, day, close)| {
            row.push_bind(code).push_bind(day).push_bind(close);
        });
        let inserted = insert.build().execute(&mut transaction).await.unwrap();
        assert_eq!(inserted.rows_affected(), some.len() as u64);
    }
    transaction.commit().await.unwrap();
    let select = "SELECT code, day, close FROM days ORDER BY code, day";
    let read: Vec<(String, String, f64)> = sqlx::query_as(select).fetch_all(&mut mysql).await.unwrap();
    assert_eq!(read, bars);
}

#[test]
fn keys_variables_and_urls_are_read_and_named() {
    let settled = |variables: &[(&str, &str)]| {
        let builder = ResourcePool::builder().environment(variables.iter().copied());
        let pool = builder.build().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(pool.within(Duration::from_millis(1)).mysql()).unwrap_err()
    };
    let key = |variables: &[(&str, &str)]| match settled(variables) {
        Error::Config { key, problem } => format!("{key}: {problem}"),
        other => panic!("{other}"),
    };
    assert!(key(&[("MYSQL_URL", "postgres://localhost/x")]).starts_with("MYSQL_URL: has the scheme"));
    assert!(key(&[("MYSQL_URL", "mysql://localhost/x?ssl-mode=PREFERRED")]).contains("fall away in silence"));
    assert!(key(&[("MYSQL_URL", "mysql://localhost/x?pool=1")]).contains("unknown parameter `pool`"));
    assert!(key(&[("MYSQL_PORT", "none")]).starts_with("MYSQL_PORT"));
    let told = key(&[("DATABASE_URL", "oracle://desk:secret@localhost/quant")]);
    assert!(told.starts_with("DATABASE_URL: has a scheme that no kind reads") && told.contains("`mariadb:`"), "{told}");
    assert!(!told.contains("secret"), "{told}");
    // Where the kind has its place from elsewhere, the URL is somebody else's.
    let parts = [("DATABASE_URL", "oracle://localhost/quant"), ("MYSQL_HOST", "localhost"), ("MYSQL_PORT", "1")];
    assert!(settled(&parts).to_string().contains("mysql://localhost:1"));
    assert!(key(&[parts[0], parts[2]]).starts_with("DATABASE_URL: has a scheme"));
    #[cfg(not(feature = "sqlite"))]
    assert!(key(&[("DATABASE_URL", "sqlite:x")]).contains("needs the feature `sqlite`"));
    let told = settled(&[("DATABASE_URL", "mariadb://desk:secret@localhost:1/quant?ssl-mode=disabled")]).to_string();
    assert!(told.contains("mysql://localhost:1/quant") && !told.contains("secret"), "{told}");
}
