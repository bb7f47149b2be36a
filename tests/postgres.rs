//! PostgreSQL against the real server.

#![cfg(feature = "postgres")]
#![allow(missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Stopwatch, unhurried, until};
use futures_util::{FutureExt as _, StreamExt as _};
use resource_pool::config::{Options, PostgresConfig};
use resource_pool::{Error, Health, Postgres, ResourcePool, State, Usage, What, blocking};
use services::{Kind, Service, shared};
use sqlx::{Connection as _, Row};

/// A guard against hanging.
const SOON: Duration = Duration::from_secs(20);
/// The limit for a call to a server that stopped answering.
const FROZEN: Duration = Duration::from_secs(5);

fn pool_of(config: PostgresConfig, options: Options) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().unwrap()
}

fn pool(server: &Service) -> ResourcePool {
    pool_of(PostgresConfig::url(server.url()), unhurried())
}

fn sized(server: &Service, pool_size: u32, max_overflow: u32) -> ResourcePool {
    pool_of(PostgresConfig::url(server.url()).pool_size(pool_size).max_overflow(max_overflow), unhurried())
}

async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, future).await.expect("it hangs")
}

/// Waits for a condition without blocking the other tasks.
async fn until_async(holds: impl FnMut() -> bool + Send + 'static) {
    tokio::task::spawn_blocking(|| until(SOON, holds)).await.unwrap();
}

async fn pid(postgres: &mut Postgres) -> i32 {
    sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(postgres).await.unwrap()
}

fn usage(pool: &ResourcePool) -> Usage {
    pool.status().resource("postgres").unwrap().usage
}

/// The pool's error behind the driver's.
fn behind(error: &sqlx::Error) -> &Error {
    Error::behind(error).unwrap_or_else(|| panic!("{error}"))
}

/// Waits until the statement runs on a connection.
async fn until_it_runs(pool: &ResourcePool, statement: &'static str) {
    let runs = async || sqlx::query(statement).execute(&mut pool.postgres().await.ok()?).await.ok();
    within(SOON, async { while runs().await.is_none() {} }).await;
}

/// Creates a table for this test alone.
async fn table(pool: &ResourcePool, name: &str) {
    let mut postgres = pool.postgres().await.unwrap();
    let sql = format!("CREATE TABLE {name} (code text, close float8)");
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut postgres).await.unwrap();
}

async fn count(pool: &ResourcePool, table: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut pool.postgres().await.unwrap()).await.unwrap()
}

#[derive(Debug, PartialEq, sqlx::FromRow)]
struct Bar {
    code: String,
    close: f64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_run_on_a_guard_and_its_connection_is_used_again() {
    let pool = pool(shared(Kind::Postgres));
    table(&pool, "bars_used").await;
    let mut postgres = pool.postgres().await.unwrap();
    let insert = sqlx::query("INSERT INTO bars_used VALUES ($1, $2), ($3, $4)");
    let inserted = insert.bind("000001").bind(10.5).bind("000002").bind(20.25).execute(&mut postgres).await.unwrap();
    assert_eq!(inserted.rows_affected(), 2);
    let select = "SELECT code, close FROM bars_used ORDER BY code";
    let bars: Vec<Bar> = sqlx::query_as(select).fetch_all(&mut postgres).await.unwrap();
    assert_eq!(bars[1], Bar { code: "000002".to_owned(), close: 20.25 });
    let one: f64 = sqlx::query_scalar("SELECT close FROM bars_used WHERE code = $1")
        .bind("000001")
        .fetch_one(&mut postgres)
        .await
        .unwrap();
    assert_eq!(one, 10.5);
    let none = sqlx::query("SELECT 1 FROM bars_used WHERE code = ''").fetch_optional(&mut postgres).await.unwrap();
    assert!(none.is_none());
    let wrong = sqlx::query("SELECT nonsense").fetch_one(&mut postgres).await.unwrap_err();
    assert!(wrong.as_database_error().is_some_and(|said| said.code().as_deref() == Some("42703")), "{wrong}");
    let first = pid(&mut postgres).await;
    drop(postgres);
    assert_eq!(pid(&mut pool.postgres().await.unwrap()).await, first);
    assert_eq!(within(SOON, pool.health_check()).await.entry("postgres").unwrap().health, Health::Pass);
    let report = within(SOON, pool.close_all()).await;
    assert!(report.all_closed() && report.step("postgres").is_some(), "{report}");
    assert!(matches!(pool.postgres().await, Err(Error::Closed { .. })));
}

/// `.sqlx` has the table's types, so the macro is checked at compile time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_macro_runs_on_a_guard_and_in_a_transaction() {
    let pool = pool(shared(Kind::Postgres));
    table(&pool, "bars_by_macro").await;
    let mut postgres = pool.postgres().await.unwrap();
    sqlx::query("INSERT INTO bars_by_macro VALUES ('a', 1), ('b', 2)").execute(&mut postgres).await.unwrap();
    let above =
        |limit: f64| sqlx::query!(r#"SELECT code AS "code!", close FROM bars_by_macro WHERE close > $1"#, limit);
    let bar = above(1.0).fetch_one(&mut postgres).await.unwrap();
    assert_eq!((bar.code.as_str(), bar.close), ("b", Some(2.0)));
    let mut transaction = postgres.begin().await.unwrap();
    assert_eq!(above(0.0).fetch_all(&mut transaction).await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkout_that_is_out_for_too_long_is_suspected() {
    let mut options = unhurried();
    options.leaks.age = Duration::from_millis(50);
    let pool = pool_of(PostgresConfig::url(shared(Kind::Postgres).url()), options);
    let held = pool.postgres().await.unwrap();
    let line = line!() - 1;
    let suspected = pool.clone();
    until_async(move || suspected.status().resource("postgres").unwrap().leaks == 1).await;
    let holder = pool.holders().into_iter().find(|holder| holder.suspected).unwrap();
    assert_eq!((holder.site.file(), holder.site.line()), (file!(), line));
    drop(held);
    assert_eq!(pool.status().resource("postgres").unwrap().leaks, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_rolls_back_unless_it_is_committed() {
    let pool = pool(shared(Kind::Postgres));
    table(&pool, "bars_in_transactions").await;
    let insert = "INSERT INTO bars_in_transactions VALUES ('a', 1)";
    let mut postgres = pool.postgres().await.unwrap();
    let mut kept = postgres.begin().await.unwrap();
    sqlx::query(insert).execute(&mut kept).await.unwrap();
    let mut undone = kept.begin_nested().await.unwrap();
    sqlx::query(insert).execute(&mut undone).await.unwrap();
    undone.rollback().await.unwrap();
    kept.commit().await.unwrap();
    let mut dropped = postgres.begin().await.unwrap();
    sqlx::query(insert).execute(&mut dropped).await.unwrap();
    drop(dropped);
    // The transaction is rolled back before this query runs.
    let seen: i64 =
        sqlx::query_scalar("SELECT count(*) FROM bars_in_transactions").fetch_one(&mut postgres).await.unwrap();
    assert_eq!(seen, 1);
    let mut dropped = postgres.begin().await.unwrap();
    sqlx::query(insert).execute(&mut dropped).await.unwrap();
    drop(dropped);
    drop(postgres);
    // No lock of the dropped transaction is left for another connection to wait for.
    let mut other = within(SOON, pool.postgres()).await.unwrap();
    within(SOON, sqlx::query("LOCK TABLE bars_in_transactions").execute(&mut other.begin().await.unwrap()))
        .await
        .unwrap();
    drop(other);
    assert_eq!(count(&pool, "bars_in_transactions").await, 1);
}

/// After a dropped `BEGIN` it is unknown whether the transaction has begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_done_in_a_transaction_that_nobody_knows_of() {
    let server = Service::start(Kind::Postgres).unwrap();
    let pool = pool(&server);
    table(&pool, "bars").await;
    let insert = "INSERT INTO bars VALUES ('a', 1)";
    let mut postgres = pool.postgres().await.unwrap();
    server.freeze().unwrap();
    assert!(postgres.begin().now_or_never().is_none());
    server.thaw().unwrap();
    let refused = sqlx::query(insert).execute(&mut postgres).await.unwrap_err();
    assert!(matches!(behind(&refused), Error::Operation { .. }), "{refused}");
    drop(postgres);
    let mut postgres = pool.postgres().await.unwrap();
    let mut outer = postgres.begin().await.unwrap();
    sqlx::query(insert).execute(&mut outer).await.unwrap();
    server.freeze().unwrap();
    assert!(outer.begin_nested().now_or_never().is_none());
    server.thaw().unwrap();
    assert!(sqlx::query(insert).execute(&mut outer).await.is_err());
    assert!(outer.commit().await.is_err());
    drop(postgres);
    assert_eq!(count(&pool, "bars").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_was_aborted_is_not_told_to_be_committed() {
    let pool = pool(shared(Kind::Postgres));
    table(&pool, "bars_aborted").await;
    let insert = "INSERT INTO bars_aborted VALUES ('a', 1)";
    let mut postgres = pool.postgres().await.unwrap();
    let mut aborted = postgres.begin().await.unwrap();
    sqlx::query(insert).execute(&mut aborted).await.unwrap();
    assert!(sqlx::query("SELECT nonsense").execute(&mut aborted).await.is_err());
    let error = aborted.commit().await.unwrap_err();
    assert!(behind(&error).to_string().contains("rolled back"), "{error}");
    // A transaction that went back to its savepoint is not aborted.
    let mut kept = postgres.begin().await.unwrap();
    sqlx::query(insert).execute(&mut kept).await.unwrap();
    let mut undone = kept.begin_nested().await.unwrap();
    assert!(sqlx::query("SELECT nonsense").execute(&mut undone).await.is_err());
    undone.rollback().await.unwrap();
    kept.commit().await.unwrap();
    assert_eq!(count(&pool, "bars_aborted").await, 1);
}

/// The transaction drops as in a function that returns an error in its middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_drops_is_rolled_back_at_once_and_its_connection_is_used_again() {
    let server = shared(Kind::Postgres);
    let pool = sized(server, 1, 0);
    table(&pool, "bars_dropped").await;
    let insert = "INSERT INTO bars_dropped VALUES ('a', 1)";
    let old = pid(&mut within(SOON, pool.postgres()).await.unwrap()).await;
    for is_aborted in [false, true] {
        let mut postgres = within(SOON, pool.postgres()).await.unwrap();
        let mut transaction = postgres.begin().await.unwrap();
        sqlx::query(insert).execute(&mut transaction).await.unwrap();
        let mut nested = transaction.begin_nested().await.unwrap();
        sqlx::query(insert).execute(&mut nested).await.unwrap();
        if is_aborted {
            assert!(sqlx::query("SELECT nonsense").execute(&mut nested).await.is_err());
        }
        drop(nested);
        drop(transaction);
        drop(postgres);
        // The rollback does not wait for the next caller.
        let state = format!("SELECT state FROM pg_stat_activity WHERE pid = {old}");
        until_async(move || server.postgres().unwrap().query(&state).unwrap() == "idle").await;
        assert_eq!(pid(&mut within(SOON, pool.postgres()).await.unwrap()).await, old, "aborted: {is_aborted}");
    }
    assert_eq!(count(&pool, "bars_dropped").await, 0);
    assert!(pool.holders().is_empty() && within(SOON, pool.close_all()).await.all_closed());
}

/// The server's last words may come after the commit of what was sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_ended_by_the_server_leaves_the_outcome_unknown() {
    let server = Service::start(Kind::Postgres).unwrap();
    let pool = pool(&server);
    table(&pool, "bars_ended").await;
    for (statement, is_unknown) in
        [("SELECT pg_sleep(600)", false), ("INSERT INTO bars_ended SELECT 'a', 1 FROM pg_sleep(600)", true)]
    {
        let running = tokio::spawn({
            let pool = pool.clone();
            async move { sqlx::query(statement).execute(&mut pool.postgres().await.unwrap()).await }
        });
        let view = server.postgres().unwrap();
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' \
                   AND pid <> pg_backend_pid()";
        within(SOON, async {
            while view.query(end).unwrap() == "0" {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let error = within(SOON, running).await.unwrap().unwrap_err();
        assert_eq!(matches!(behind(&error), Error::OutcomeUnknown { .. }), is_unknown, "{error}");
        assert_eq!(matches!(behind(&error), Error::Lost { .. }), !is_unknown, "{error}");
        assert!(behind(&error).to_string().contains("terminating connection"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_in_another_state_is_not_handed_out_again() {
    let pool = sized(shared(Kind::Postgres), 1, 0);
    for statement in [
        "SET application_name TO 'another'",
        "BEGIN",
        "LISTEN ticks",
        "CREATE TEMP TABLE t (a int)",
        "SELECT 1; BEGIN",
        "SELECT pg_advisory_lock(7)",
    ] {
        let mut postgres = within(SOON, pool.postgres()).await.unwrap();
        let old = pid(&mut postgres).await;
        sqlx::raw_sql(statement).execute(&mut postgres).await.unwrap();
        drop(postgres);
        assert_ne!(pid(&mut within(SOON, pool.postgres()).await.unwrap()).await, old, "{statement}");
    }
    // A call that is dropped. Its answer may still come.
    let mut postgres = within(SOON, pool.postgres()).await.unwrap();
    let old = pid(&mut postgres).await;
    let sleep = sqlx::query("SELECT pg_sleep(600)").execute(&mut postgres);
    assert!(tokio::time::timeout(Duration::from_millis(50), sleep).await.is_err());
    drop(postgres);
    let mut postgres = within(SOON, pool.postgres()).await.unwrap();
    assert_ne!(pid(&mut postgres).await, old);
    // The raw connection. The pool does not know its state.
    let old = pid(&mut postgres).await;
    postgres.raw().ping().await.unwrap();
    drop(postgres);
    assert_ne!(pid(&mut within(SOON, pool.postgres()).await.unwrap()).await, old);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_tells_size_checked_out_overflow_idle_and_waiting() {
    let server = Service::start(Kind::Postgres).unwrap();
    let mut config = PostgresConfig::url(server.url()).pool_size(2).max_overflow(1);
    config.overflow_timeout = Duration::from_millis(100);
    let mut options = unhurried();
    options.acquire_timeout = SOON;
    let pool = pool_of(config, options);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(pool.postgres().await.unwrap());
    }
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { pool.postgres().await.map(drop) }
    });
    let full = pool.clone();
    until_async(move || usage(&full).waiting == Some(1)).await;
    let Usage { max, open, in_use, idle, overflow, .. } = usage(&pool);
    assert_eq!([max, open, in_use, idle, overflow], [3, 3, 3, 0, 1].map(Some));
    let timeout = pool.within(Duration::from_millis(50)).postgres().await.unwrap_err();
    let Error::Timeout(error) = &timeout else { panic!("{timeout}") };
    assert_eq!((error.holders.len(), error.holders[0].site.file()), (3, file!()), "{timeout}");
    drop(held);
    within(SOON, waiting).await.unwrap().unwrap();
    // The open connections go down to the size that is kept.
    until_async(move || usage(&pool).open == Some(2)).await;
    // The server also has the prober's own.
    until_async(move || server.postgres().unwrap().connections().unwrap().len() <= 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_freezes_ends_what_is_in_flight_and_blocks_nobody() {
    let server = Service::start(Kind::Postgres).unwrap();
    let config = PostgresConfig::url(server.url()).pool_size(4).max_overflow(0);
    let pool = pool_of(config, Options::default());
    table(&pool, "bars").await;
    let insert = "INSERT INTO bars VALUES ('a', 1)";
    let (mut reads, mut writes) = (pool.postgres().await.unwrap(), pool.postgres().await.unwrap());
    let (mut undone, mut commits) = (pool.postgres().await.unwrap(), pool.postgres().await.unwrap());
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
    assert!(stopwatch.took() < FROZEN && report.step("postgres").is_some(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_frozen_as_it_is_connected_to_fails_in_time() {
    let server = Service::start(Kind::Postgres).unwrap();
    let pool = pool_of(PostgresConfig::url(server.url()), Options::default());
    server.freeze().unwrap();
    let stopwatch = Stopwatch::start();
    let error = within(SOON, pool.postgres()).await.unwrap_err();
    assert!(error.to_string().contains("no answer within"), "{error}");
    assert!(stopwatch.took() < 2 * FROZEN, "{:?}", stopwatch.took());
    server.thaw().unwrap();
    let back = async { while pool.postgres().await.is_err() {} };
    within(SOON, back).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_is_come_back_to() {
    let server = Service::start(Kind::Postgres).unwrap();
    let pool = pool(&server);
    let mut held = pool.postgres().await.unwrap();
    table(&pool, "bars").await;
    server.kill().unwrap();
    let error = within(SOON, sqlx::query("INSERT INTO bars VALUES ('a', 1)").execute(&mut held)).await.unwrap_err();
    assert!(matches!(behind(&error), Error::OutcomeUnknown { .. }), "{error}");
    drop(held);
    server.restart().unwrap();
    until_it_runs(&pool, "INSERT INTO bars VALUES ('b', 2)").await;
    assert!(count(&pool, "bars").await >= 1);
    // A connection that ends by itself is replaced, and nothing else is lost.
    let generation = pool.status().resource("postgres").unwrap().generation;
    server
        .postgres()
        .unwrap()
        .query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename <> 'postgres'")
        .unwrap();
    until_it_runs(&pool, "SELECT 1").await;
    assert_eq!(pool.status().resource("postgres").unwrap().generation, generation);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_room_is_waited_for_and_nobody_is_lost() {
    let server = Service::start(Kind::Postgres).unwrap();
    let limit = |count| server.postgres().unwrap().room_for(Some(count)).unwrap();
    limit(0);
    let mut options = unhurried();
    (options.retry.budget, options.acquire_timeout) = (Duration::from_secs(1), Duration::from_secs(3));
    let pool = pool_of(PostgresConfig::url(server.url()).pool_size(3).max_overflow(0), options);
    let error = within(SOON, pool.postgres()).await.unwrap_err();
    let Error::Connect(connect) = &error else { panic!("{error}") };
    assert!(!connect.permanent && error.to_string().contains("too many connections"), "{error}");
    limit(3);
    let mut held = Vec::new();
    let all = async {
        while held.len() < 3 {
            // The prober's connection gives its slot to a user.
            held.extend(pool.postgres().await);
        }
    };
    within(SOON, all).await;
    for postgres in &mut held {
        assert!(sqlx::query("SELECT 1").execute(postgres).await.is_ok());
    }
    let generation = pool.status().resource("postgres").unwrap().generation;
    assert_eq!((generation, pool.status().resource("postgres").unwrap().state), (1, State::Ready));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_attempt_mends_is_told_at_once_and_no_secret_is_shown() {
    let server = shared(Kind::Postgres);
    let refused = async |url: &str| {
        let pool = pool_of(PostgresConfig::url(url), unhurried());
        let error = pool.postgres().await.unwrap_err();
        let Error::Connect(connect) = &error else { panic!("{error}") };
        assert!(connect.permanent && connect.attempts == 1, "{error}");
        format!("{error} {error:?}")
    };
    let (start, end) = server.url().rsplit_once('@').unwrap();
    let mistyped = format!("{}:mistyped@{end}", start.rsplit_once(':').unwrap().0);
    let told = refused(&mistyped).await;
    assert!(told.contains("password authentication failed") && !told.contains("mistyped"), "{told}");
    let elsewhere = format!("{}/nowhere", server.url().rsplit_once('/').unwrap().0);
    assert!(refused(&elsewhere).await.contains("nowhere"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_made_ready_by_a_hook_and_known_by_name() {
    let server = shared(Kind::Postgres);
    let config = PostgresConfig::url(server.url()).application_name("desk 7").on_connect(|connection| {
        Box::pin(async move {
            sqlx::query("SET TIME ZONE 'Asia/Shanghai'").execute(connection).await?;
            Ok(())
        })
    });
    let pool = pool_of(config, unhurried());
    let mut postgres = pool.postgres().await.unwrap();
    let row = sqlx::query("SELECT current_setting('TimeZone'), current_setting('application_name')")
        .fetch_one(&mut postgres)
        .await
        .unwrap();
    assert_eq!((row.get::<String, _>(0), row.get::<String, _>(1)), ("Asia/Shanghai".to_owned(), "desk 7".to_owned()));
    let broken = PostgresConfig::url(server.url()).on_connect(|connection| {
        Box::pin(async move {
            sqlx::query("SELECT nonsense").execute(connection).await?;
            Ok(())
        })
    });
    let mut options = unhurried();
    options.retry.budget = Duration::from_secs(1);
    let error = pool_of(broken, options).postgres().await.unwrap_err();
    assert!(error.to_string().contains("nonsense"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_of_the_drivers_own_is_closed_with_the_resource() {
    let server = Service::start(Kind::Postgres).unwrap();
    let pool = pool(&server);
    let raw = pool.postgres().await.unwrap().raw_pool();
    let one: i32 = sqlx::query_scalar("SELECT 1").fetch_one(&raw).await.unwrap();
    assert_eq!(one, 1);
    let report = within(SOON, pool.close_all()).await;
    assert!(report.all_closed() && raw.is_closed(), "{report}");
    assert_eq!(server.await_established(0, SOON).unwrap(), 0);
}

/// A server that was full has left the prober without a connection of its own. Its death is found all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_after_it_was_full_is_lost() {
    let server = Service::start(Kind::Postgres).unwrap();
    let pool = sized(&server, 4, 0);
    let mut postgres = pool.postgres().await.unwrap();
    let (view, mut events) = (server.postgres().unwrap(), pool.events());
    view.room_for(Some(0)).unwrap();
    // The prober sends no SQL.
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'resource-pool' \
               AND query = ''";
    within(SOON, async {
        while view.query(end).unwrap() == "0" {
            tokio::task::yield_now().await;
        }
        let is_full = |what: &What| matches!(what, What::ProbeFailed { message, .. } if message.contains("too many"));
        while !is_full(&events.next().await.unwrap().what) {}
    })
    .await;
    server.kill().unwrap();
    // Nobody has a connection any more over which the prober could ask.
    within(SOON, sqlx::query("SELECT 1").execute(&mut postgres)).await.unwrap_err();
    drop(postgres);
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { while pool.postgres().await.is_err() {} }
    });
    let is_lost = || pool.status().resource("postgres").unwrap().state != State::Ready;
    within(SOON, async {
        while !is_lost() {
            tokio::task::yield_now().await
        }
    })
    .await;
    waiting.abort();
}

/// The error of the query that nobody read to its end answers the `BEGIN`, which the server has done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_begin_behind_a_stream_that_failed_leaves_no_transaction_open() {
    let pool = sized(shared(Kind::Postgres), 1, 0);
    let mut postgres = pool.postgres().await.unwrap();
    let first = pid(&mut postgres).await;
    let mut rows = sqlx::query("SELECT 1 / (3 - n) FROM generate_series(1, 5) n").fetch(&mut postgres);
    within(SOON, rows.next()).await.unwrap().unwrap();
    drop(rows);
    within(SOON, postgres.begin()).await.map(drop).unwrap_err();
    let refused = within(SOON, sqlx::query("SELECT 1").execute(&mut postgres)).await.unwrap_err();
    assert!(refused.to_string().contains("acquire another one"), "{refused}");
    drop(postgres);
    assert_ne!(pid(&mut within(SOON, pool.postgres()).await.unwrap()).await, first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_detached_outlives_the_resource_but_not_the_pool() {
    let server = Service::start(Kind::Postgres).unwrap();
    let pool = sized(&server, 1, 0);
    let mut postgres = pool.postgres().await.unwrap();
    let first = pid(&mut postgres).await;
    let mut detached = postgres.detach().unwrap();
    let second = pid(&mut pool.postgres().await.unwrap()).await;
    assert_ne!(first, second, "its place is free");
    assert!(within(SOON, pool.close("postgres")).await.unwrap().all_closed());
    let still: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut detached).await.unwrap();
    assert_eq!(still, first);
    assert!(within(SOON, pool.close_all()).await.all_closed());
    // The runtime that it lives on ends in the background.
    let ended = async { while sqlx::query("SELECT 1").execute(&mut detached).await.is_ok() {} };
    within(SOON, ended).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_replaces_connections_while_a_transaction_goes_on() {
    let server = Service::start(Kind::Postgres).unwrap();
    let pool = sized(&server, 2, 0);
    table(&pool, "refreshed").await;
    let mut held = pool.postgres().await.unwrap();
    let first = pid(&mut held).await;
    let mut transaction = held.begin().await.unwrap();
    pool.refresh("postgres").await.unwrap();
    sqlx::query("INSERT INTO refreshed VALUES ('000001', 1.0)").execute(&mut transaction).await.unwrap();
    transaction.commit().await.unwrap();
    drop(held);
    for _ in 0..2 {
        assert_ne!(pid(&mut pool.postgres().await.unwrap()).await, first);
    }
    assert_eq!(count(&pool, "refreshed").await, 1);
    assert_eq!(usage(&pool).counters.closed.map(|closed| closed.lost), Some(0));
    assert!(within(SOON, pool.close_all()).await.all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_keeps_the_connections_unless_only_room_is_missing() {
    let server = Service::start(Kind::Postgres).unwrap();
    let fails = Arc::new(AtomicBool::new(false));
    let hook_fails = Arc::clone(&fails);
    let config = PostgresConfig::url(server.url()).pool_size(1).max_overflow(0).on_connect(move |connection| {
        let sql = if hook_fails.load(Ordering::SeqCst) { "SELECT no_such_function()" } else { "SELECT 1" };
        Box::pin(async move { sqlx::query(sql).execute(connection).await.map(drop) })
    });
    let mut options = unhurried();
    options.probe.enabled = false;
    let pool = pool_of(config, options);
    let first = pid(&mut pool.postgres().await.unwrap()).await;
    fails.store(true, Ordering::SeqCst);
    let error = within(SOON, pool.refresh("postgres")).await.unwrap_err();
    assert!(error.to_string().contains("no_such_function"), "{error}");
    fails.store(false, Ordering::SeqCst);
    assert_eq!(pid(&mut pool.postgres().await.unwrap()).await, first);

    // The prober's own connection makes room, so that a user keeps the old one until the new one is there.
    let has_both = async {
        while server.postgres().unwrap().connections().unwrap().len() != 2 {
            tokio::task::yield_now().await;
        }
    };
    within(SOON, has_both).await;
    let limit = |count| server.postgres().unwrap().room_for(Some(count)).unwrap();
    limit(2);
    within(SOON, pool.refresh("postgres")).await.unwrap();
    let closed = usage(&pool).counters.closed.unwrap();
    assert_eq!((closed.refreshed, closed.surplus), (1, 1), "{closed:?}");
    let second = pid(&mut pool.postgres().await.unwrap()).await;
    assert_ne!(second, first);

    // The others make room where there is no other one.
    limit(1);
    within(SOON, pool.refresh("postgres")).await.unwrap();
    assert_ne!(pid(&mut within(SOON, pool.postgres()).await.unwrap()).await, second);
    assert!(within(SOON, pool.close_all()).await.all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_that_the_server_ends_is_replaced_before_a_user_gets_it() {
    let server = Service::start(Kind::Postgres).unwrap();
    let mut config = PostgresConfig::url(server.url()).pool_size(3).max_overflow(0);
    (config.pre_ping, config.test_idle_after) = (false, Duration::from_millis(200));
    let pool = pool_of(config, unhurried());
    let (mut held, mut idle) = (pool.postgres().await.unwrap(), pool.postgres().await.unwrap());
    let ended = pid(&mut idle).await;
    drop(idle);
    let () = sqlx::query("SELECT pg_terminate_backend($1)").bind(ended).execute(&mut held).await.map(drop).unwrap();
    let asked = pool.clone();
    until_async(move || usage(&asked).counters.closed.is_some_and(|closed| closed.broken == 1)).await;
    let asked = pool.clone();
    until_async(move || usage(&asked).idle == Some(1)).await;
    assert_ne!(pid(&mut pool.postgres().await.unwrap()).await, ended);
    assert_eq!(pool.status().resource("postgres").unwrap().generation, 1);
    drop(held);
    assert!(within(SOON, pool.close_all()).await.all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_discarded_ends_with_its_transaction() {
    let server = Service::start(Kind::Postgres).unwrap();
    let pool = sized(&server, 1, 0);
    table(&pool, "discarded").await;
    let mut postgres = pool.postgres().await.unwrap();
    let first = pid(&mut postgres).await;
    sqlx::query("BEGIN").execute(&mut postgres).await.unwrap();
    sqlx::query("INSERT INTO discarded VALUES ('000001', 1.0)").execute(&mut postgres).await.unwrap();
    postgres.discard();
    assert_ne!(pid(&mut pool.postgres().await.unwrap()).await, first);
    assert_eq!(count(&pool, "discarded").await, 0);
    assert_eq!(usage(&pool).counters.closed.map(|closed| closed.discarded), Some(1));
}

#[test]
fn threads_wait_for_what_is_done_with_a_connection() {
    let server = shared(Kind::Postgres);
    let builder = blocking::ResourcePool::builder().environment([("", ""); 0]).options(unhurried());
    let pool = builder.resource(PostgresConfig::url(server.url())).build().unwrap();
    let mut postgres = pool.postgres().unwrap();
    let sum: i32 = postgres
        .wait(async |postgres| sqlx::query_scalar("SELECT 1 + $1").bind(41).fetch_one(postgres).await)
        .unwrap()
        .unwrap();
    assert_eq!(sum, 42);
    let holder = pool.holders().into_iter().find(|holder| holder.exclusive).unwrap();
    assert_eq!((holder.site.file(), &*holder.resource), (file!(), "postgres"));
    drop(postgres);
    assert!(pool.close_all().unwrap().all_closed());
}

/// Any kind with an adapter for r2d2 can be used as it is.
#[cfg(feature = "r2d2")]
#[test]
fn threads_check_connections_out_of_an_adapter_for_r2d2() {
    use r2d2_postgres::PostgresConnectionManager as Manager;
    use r2d2_postgres::postgres::NoTls;

    let server = shared(Kind::Postgres);
    let builder = blocking::ResourcePool::builder().environment([("", ""); 0]).options(unhurried());
    let pool = builder.build().unwrap();
    let manager = Manager::new(server.url().parse().unwrap(), NoTls);
    pool.register("orders", resource_pool::R2d2::new(manager).max_size(2)).unwrap();
    let mut connection = pool.check_out::<Manager<NoTls>>("orders").unwrap();
    let sum: i32 = connection.query_one("SELECT 1 + $1::int4", &[&41]).unwrap().get(0);
    assert_eq!(sum, 42);
    drop(connection);
    assert!(pool.close_all().unwrap().all_closed());
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
    let pool = pool(shared(Kind::Postgres));
    let mut postgres = pool.postgres().await.unwrap();
    let create = "CREATE TABLE days (code text, day text, close float8, PRIMARY KEY (code, day))";
    sqlx::query(create).execute(&mut postgres).await.unwrap();
    let columns: (Vec<_>, (Vec<_>, Vec<_>)) =
        bars.iter().cloned().map(|(code, day, close)| (code, (day, close))).unzip();
    let insert = sqlx::query("INSERT INTO days SELECT * FROM UNNEST($1::text[], $2::text[], $3::float8[])");
    let (codes, (days, closes)) = columns;
    let inserted = insert.bind(codes).bind(days).bind(closes).execute(&mut postgres).await.unwrap();
    assert_eq!(inserted.rows_affected(), bars.len() as u64);
    let select = r#"SELECT code, day, close FROM days ORDER BY code COLLATE "C", day COLLATE "C""#;
    let read: Vec<(String, String, f64)> = sqlx::query_as(select).fetch_all(&mut postgres).await.unwrap();
    assert_eq!(read, bars);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_begins_a_transaction_is_read_for_what_else_it_does() {
    let pool = sized(shared(Kind::Postgres), 1, 0);
    let mut postgres = within(SOON, pool.postgres()).await.unwrap();
    let first = pid(&mut postgres).await;
    postgres.begin_with("BEGIN READ ONLY").await.unwrap().commit().await.unwrap();
    // A server that refuses to begin has begun none.
    assert!(postgres.begin_with("BEGIN ISOLATION LEVEL NONSENSE").await.is_err());
    assert_eq!(pid(&mut postgres).await, first);
    drop(postgres);
    let mut postgres = within(SOON, pool.postgres()).await.unwrap();
    assert_eq!(pid(&mut postgres).await, first, "nothing of it stays");
    let begins = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY; BEGIN";
    postgres.begin_with(begins).await.unwrap().commit().await.unwrap();
    drop(postgres);
    assert_ne!(pid(&mut within(SOON, pool.postgres()).await.unwrap()).await, first);
}

/// The statement answers its row before it is committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_of_a_statement_whose_commit_fails_is_not_told() {
    let pool = sized(shared(Kind::Postgres), 1, 0);
    let mut postgres = within(SOON, pool.postgres()).await.unwrap();
    let create = "CREATE TABLE codes_told (code text PRIMARY KEY); CREATE TABLE ticks_told (code text REFERENCES \
                  codes_told DEFERRABLE INITIALLY DEFERRED)";
    sqlx::raw_sql(create).execute(&mut postgres).await.unwrap();
    let insert = "INSERT INTO ticks_told VALUES ('a') RETURNING code";
    let error = sqlx::query(insert).fetch_one(&mut postgres).await.unwrap_err();
    assert!(error.as_database_error().is_some_and(|said| said.is_foreign_key_violation()), "{error}");
    let mut transaction = postgres.begin().await.unwrap();
    sqlx::query(insert).fetch_one(&mut transaction).await.unwrap();
    assert!(transaction.commit().await.is_err());
    drop(postgres);
    assert_eq!(count(&pool, "ticks_told").await, 0);
}

#[test]
fn keys_variables_and_urls_are_read_and_named() {
    let settled = |variables: &[(&str, &str)]| {
        let builder = ResourcePool::builder().environment(variables.iter().copied());
        let pool = builder.build().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(pool.within(Duration::from_millis(1)).postgres()).unwrap_err()
    };
    let key = |variables: &[(&str, &str)]| match settled(variables) {
        Error::Config { key, problem } => format!("{key}: {problem}"),
        other => panic!("{other}"),
    };
    assert!(key(&[("POSTGRES_URL", "mysql://localhost/x")]).starts_with("POSTGRES_URL: has the scheme"));
    assert!(key(&[("POSTGRES_URL", "postgres://localhost/x?sslmode=prefer")]).contains("fall away in silence"));
    assert!(key(&[("POSTGRES_URL", "postgres://localhost/x?pool=1")]).contains("unknown parameter `pool`"));
    assert!(key(&[("POSTGRES_PORT", "none")]).starts_with("POSTGRES_PORT"));
    let told = settled(&[("DATABASE_URL", "postgres://desk:secret@localhost:1/quant?application_name=a")]).to_string();
    assert!(told.contains("postgres://localhost:1/quant") && !told.contains("secret"), "{told}");
}
