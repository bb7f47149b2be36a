//! SQLite's kind on real files.

#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use common::{Stopwatch, unhurried, until};
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use resource_pool::config::{Options, SqliteConfig};
use resource_pool::{ConnectError, Error, Health, ResourcePool, Sqlite, State, Usage, blocking};
use sqlx::Connection as _;

/// A guard against hanging.
const SOON: Duration = Duration::from_secs(20);
/// How long a statement waits for a lock that a test gives up by itself.
const LOCKED: Duration = Duration::from_secs(60);
/// The limit for a statement that is cut, and for closing over it.
const CUT: Duration = Duration::from_secs(5);
/// A statement that only reads, and never ends by itself.
const ENDLESS: &str =
    "SELECT (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n) AS c";

/// A path in a fresh folder of this test's own.
fn path(test: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("sqlite-{}-{test}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder.join("bars.sqlite")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

fn config(path: &Path) -> SqliteConfig {
    SqliteConfig::file(path).create(true)
}

fn pool_of(config: SqliteConfig, options: Options) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().unwrap()
}

/// A pool over a new file with the table `bars`.
async fn pool(config: SqliteConfig) -> ResourcePool {
    let pool = pool_of(config, unhurried());
    let create = "CREATE TABLE bars (code text, close real)";
    sqlx::query(create).execute(&mut pool.sqlite().await.unwrap()).await.unwrap();
    pool
}

async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, future).await.expect("it hangs")
}

/// Waits for a condition without blocking the other tasks.
async fn until_async(holds: impl FnMut() -> bool + Send + 'static) {
    tokio::task::spawn_blocking(|| until(SOON, holds)).await.unwrap();
}

fn usage(pool: &ResourcePool) -> Usage {
    pool.status().resource("sqlite").unwrap().usage
}

/// The pool's error behind the driver's.
fn behind(error: &sqlx::Error) -> &Error {
    Error::behind(error).unwrap_or_else(|| panic!("{error}"))
}

const INSERT: &str = "INSERT INTO bars VALUES ('a', 1)";

async fn insert(sqlite: &mut Sqlite) -> sqlx::Result<()> {
    sqlx::query(INSERT).execute(sqlite).await.map(drop)
}

async fn count(sqlite: &mut Sqlite) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM bars").fetch_one(sqlite).await.unwrap()
}

/// The options by which each connection has a number.
fn numbered(config: SqliteConfig) -> SqliteConfig {
    static NEXT: AtomicI64 = AtomicI64::new(0);
    config.on_connect(|connection| {
        Box::pin(async move {
            sqlx::raw_sql("CREATE TEMP TABLE me (number int)").execute(&mut *connection).await?;
            let number = NEXT.fetch_add(1, Ordering::SeqCst);
            sqlx::query("INSERT INTO me VALUES (?)").bind(number).execute(connection).await.map(drop)
        })
    })
}

async fn number(sqlite: &mut Sqlite) -> i64 {
    sqlx::query_scalar("SELECT number FROM me").fetch_one(sqlite).await.unwrap()
}

#[derive(Debug, PartialEq, sqlx::FromRow)]
struct Bar {
    code: String,
    close: f64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_run_on_a_guard_and_its_connection_is_used_again() {
    let path = path("used");
    let pool = pool(numbered(config(&path))).await;
    let mut sqlite = pool.sqlite().await.unwrap();
    let insert = sqlx::query("INSERT INTO bars VALUES (?, ?), (?, ?)");
    let inserted = insert.bind("000001").bind(10.5).bind("000002").bind(20.25).execute(&mut sqlite).await.unwrap();
    assert_eq!(inserted.rows_affected(), 2);
    let bars: Vec<Bar> =
        sqlx::query_as("SELECT code, close FROM bars ORDER BY code").fetch_all(&mut sqlite).await.unwrap();
    assert_eq!(bars[1], Bar { code: "000002".to_owned(), close: 20.25 });
    let none = sqlx::query("SELECT 1 FROM bars WHERE code = ''").fetch_optional(&mut sqlite).await.unwrap();
    assert!(none.is_none());
    let wrong = sqlx::query("SELECT nonsense").fetch_one(&mut sqlite).await.unwrap_err();
    assert!(wrong.to_string().contains("nonsense"), "{wrong}");
    let first = number(&mut sqlite).await;
    drop(sqlite);
    assert_eq!(number(&mut pool.sqlite().await.unwrap()).await, first);
    assert_eq!(within(SOON, pool.health_check()).await.entry("sqlite").unwrap().health, Health::Pass);
    let report = within(SOON, pool.close_all()).await;
    assert!(report.all_closed() && report.step("sqlite").is_some(), "{report}");
    assert!(matches!(pool.sqlite().await, Err(Error::Closed { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_leaves_no_log_of_changes_beside_the_file() {
    let path = path("closed");
    let pool = pool(config(&path)).await;
    insert(&mut pool.sqlite().await.unwrap()).await.unwrap();
    // A process that is killed now leaves these files.
    let crashed = self::path("crashed");
    assert!(fs::metadata(beside(&path, "-wal")).unwrap().len() > 0, "the control: the change is in the log");
    for suffix in ["", "-wal"] {
        fs::copy(beside(&path, suffix), beside(&crashed, suffix)).unwrap();
    }
    assert!(within(SOON, pool.close_all()).await.all_closed());
    assert!(!beside(&path, "-wal").exists() && !beside(&path, "-shm").exists());
    let mut driver = sqlx::SqliteConnection::connect(&format!("sqlite:{}?mode=ro", path.display())).await.unwrap();
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM bars").fetch_one(&mut driver).await.unwrap();
    assert_eq!(rows, 1);
    driver.close().await.unwrap();
    // The next pool moves what the crash has left into the file.
    let next = pool_of(SqliteConfig::file(&crashed), unhurried());
    assert_eq!(count(&mut next.sqlite().await.unwrap()).await, 1);
    assert!(within(SOON, next.close_all()).await.all_closed());
    assert!(!beside(&crashed, "-wal").exists());
}

/// A connection that was detached keeps the log from being removed with the last connection of the pool.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_detached_goes_on_and_the_log_is_emptied_all_the_same() {
    let path = path("detached");
    let pool = pool(numbered(config(&path).pool_size(1).max_overflow(0))).await;
    let mut sqlite = pool.sqlite().await.unwrap();
    let first = number(&mut sqlite).await;
    insert(&mut sqlite).await.unwrap();
    let mut detached = sqlite.detach().unwrap();
    assert_ne!(number(&mut pool.sqlite().await.unwrap()).await, first, "its place is free");
    assert!(within(SOON, pool.close_all()).await.all_closed());
    assert_eq!(fs::metadata(beside(&path, "-wal")).unwrap().len(), 0);
    // The switch of the pool ends no statement of it.
    let long = "SELECT count(*) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 100000) \
                SELECT i FROM n)";
    let counted: i64 = sqlx::query_scalar(long).fetch_one(&mut detached).await.unwrap();
    assert_eq!(counted, 100_000);
    detached.close().await.unwrap();
    assert!(!beside(&path, "-wal").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_read_while_one_writes_and_another_writer_waits_for_its_limit() {
    let pool = pool(config(&path("writers")).busy_timeout(Duration::from_millis(200))).await;
    let (mut writer, mut other) = (pool.sqlite().await.unwrap(), pool.sqlite().await.unwrap());
    let mut transaction = writer.begin_with("BEGIN IMMEDIATE").await.unwrap();
    sqlx::query(INSERT).execute(&mut transaction).await.unwrap();
    let mut readers = Vec::new();
    for _ in 0..3 {
        readers.push(pool.sqlite().await.unwrap());
    }
    for reader in &mut readers {
        assert_eq!(count(reader).await, 0, "it sees the file as it was");
    }
    let refused = insert(&mut other).await.unwrap_err();
    let code = refused.as_database_error().and_then(|said| said.code()).unwrap_or_default().into_owned();
    assert_eq!(code, "5", "{refused}");
    transaction.commit().await.unwrap();
    insert(&mut other).await.unwrap();
    assert_eq!(count(&mut readers[0]).await, 2);
    assert_eq!(pool.status().resource("sqlite").unwrap().generation, 1, "nothing was lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_rolls_back_unless_it_is_committed_and_its_connection_is_used_again() {
    let pool = pool(numbered(config(&path("transactions")).pool_size(1).max_overflow(0))).await;
    let mut sqlite = pool.sqlite().await.unwrap();
    let first = number(&mut sqlite).await;
    let mut kept = sqlite.begin().await.unwrap();
    sqlx::query(INSERT).execute(&mut kept).await.unwrap();
    let mut undone = kept.begin_nested().await.unwrap();
    sqlx::query(INSERT).execute(&mut undone).await.unwrap();
    undone.rollback().await.unwrap();
    kept.commit().await.unwrap();
    let mut dropped = sqlite.begin().await.unwrap();
    sqlx::query(INSERT).execute(&mut dropped).await.unwrap();
    drop(dropped);
    assert_eq!(count(&mut sqlite).await, 1, "the transaction is rolled back before this query runs");
    let mut dropped = sqlite.begin().await.unwrap();
    sqlx::query(INSERT).execute(&mut dropped).await.unwrap();
    drop(dropped);
    drop(sqlite);
    let mut sqlite = within(SOON, pool.sqlite()).await.unwrap();
    assert_eq!((count(&mut sqlite).await, number(&mut sqlite).await), (1, first));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_ends_when_its_time_is_up_and_its_connection_goes_on() {
    let limit = Duration::from_millis(300);
    let pool = pool(numbered(config(&path("late")).pool_size(1).max_overflow(0).operation_timeout(limit))).await;
    let mut sqlite = pool.sqlite().await.unwrap();
    let first = number(&mut sqlite).await;
    let stopwatch = Stopwatch::start();
    let late = within(SOON, sqlx::query(ENDLESS).fetch_all(&mut sqlite)).await.unwrap_err();
    let took = stopwatch.took();
    assert!(matches!(behind(&late), Error::Timeout(timeout) if timeout.waited == limit), "{late}");
    assert!(took < CUT, "{took:?}");
    // Its own statement alone is undone.
    insert(&mut sqlite).await.unwrap();
    let late = sqlx::query(
        "INSERT INTO bars SELECT 'b', (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n)",
    );
    let late = within(SOON, late.execute(&mut sqlite)).await.unwrap_err();
    assert!(matches!(behind(&late), Error::Timeout(_)), "{late}");
    assert_eq!((count(&mut sqlite).await, number(&mut sqlite).await), (1, first));
    // SQLite undoes the whole transaction around it, and no statement slips out of that.
    let mut transaction = sqlite.begin().await.unwrap();
    sqlx::query(INSERT).execute(&mut transaction).await.unwrap();
    let late = "INSERT INTO bars SELECT 'b', (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n)";
    assert!(within(SOON, sqlx::query(late).execute(&mut transaction)).await.is_err());
    let refused = sqlx::query(INSERT).execute(&mut transaction).await.unwrap_err();
    assert!(behind(&refused).to_string().contains("acquire another one"), "{refused}");
    assert!(transaction.commit().await.is_err());
    drop(sqlite);
    assert_eq!(count(&mut within(SOON, pool.sqlite()).await.unwrap()).await, 1);
    assert_eq!(pool.status().resource("sqlite").unwrap().generation, 1);
}

/// The statements that undo the whole transaction, each of which fails but for the last.
const UNDOES: [&str; 3] =
    ["INSERT OR ROLLBACK INTO bars VALUES ('a', 2)", "INSERT INTO bars VALUES ('refused', 2)", "ROLLBACK"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_sqlite_undid_takes_no_statement_and_is_not_told_to_be_committed() {
    let pool = pool(config(&path("undone"))).await;
    let mut sqlite = pool.sqlite().await.unwrap();
    let create = "CREATE UNIQUE INDEX codes ON bars (code); CREATE TRIGGER refuses BEFORE INSERT ON bars WHEN NEW.code = \
                  'refused' BEGIN SELECT RAISE(ROLLBACK, 'refused'); END";
    sqlx::raw_sql(create).execute(&mut sqlite).await.unwrap();
    drop(sqlite);
    for (number, undoes) in UNDOES.into_iter().enumerate() {
        for is_nested in [false, true] {
            let mut sqlite = pool.sqlite().await.unwrap();
            let mut transaction = sqlite.begin().await.unwrap();
            sqlx::query(INSERT).execute(&mut transaction).await.unwrap();
            if is_nested {
                let mut nested = transaction.begin_nested().await.unwrap();
                let undone = sqlx::query(undoes).execute(&mut nested).await;
                assert_eq!(undone.is_err(), number < 2, "{undoes}");
            } else {
                let undone = sqlx::query(undoes).execute(&mut transaction).await;
                assert_eq!(undone.is_err(), number < 2, "{undoes}");
            }
            let refused = sqlx::query(INSERT).execute(&mut transaction).await.unwrap_err();
            assert!(behind(&refused).to_string().contains("undid all of it"), "{undoes}: {refused}");
            assert!(transaction.begin_nested().await.is_err(), "{undoes}");
            let error = transaction.commit().await.unwrap_err();
            assert!(behind(&error).to_string().contains("rolled back"), "{undoes}: {error}");
            drop(sqlite);
            let mut sqlite = within(SOON, pool.sqlite()).await.unwrap();
            assert_eq!(count(&mut sqlite).await, 0, "{undoes}");
            let mut transaction = sqlite.begin().await.unwrap();
            let _undone = sqlx::query(undoes).execute(&mut transaction).await;
            if number > 0 {
                transaction.rollback().await.unwrap();
            }
        }
    }
    // An error that undoes its own statement alone leaves the transaction as it is.
    let mut sqlite = pool.sqlite().await.unwrap();
    let mut transaction = sqlite.begin().await.unwrap();
    sqlx::query(INSERT).execute(&mut transaction).await.unwrap();
    assert!(sqlx::query(INSERT).execute(&mut transaction).await.is_err());
    transaction.commit().await.unwrap();
    assert_eq!(count(&mut sqlite).await, 1);
}

/// The statement answers its row before it is committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_of_a_statement_whose_commit_fails_is_not_told() {
    let pool = pool(config(&path("returning"))).await;
    let mut sqlite = pool.sqlite().await.unwrap();
    let create = "CREATE TABLE codes (code text PRIMARY KEY); CREATE TABLE ticks (code text REFERENCES codes DEFERRABLE \
                  INITIALLY DEFERRED)";
    sqlx::raw_sql(create).execute(&mut sqlite).await.unwrap();
    drop(sqlite);
    let mut sqlite = pool.sqlite().await.unwrap();
    let insert = "INSERT INTO ticks VALUES ('a') RETURNING code";
    assert!(sqlx::query(insert).fetch_one(&mut sqlite).await.is_err());
    assert!(sqlx::query(insert).fetch_optional(&mut sqlite).await.is_err());
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM ticks").fetch_one(&mut sqlite).await.unwrap();
    assert_eq!(rows, 0);
    // A commit that fails leaves nothing open.
    let mut transaction = sqlite.begin().await.unwrap();
    sqlx::query(insert).fetch_one(&mut transaction).await.unwrap();
    assert!(transaction.commit().await.is_err());
    insert_code(&mut sqlite).await;
    sqlx::query(insert).fetch_one(&mut sqlite).await.unwrap();
}

async fn insert_code(sqlite: &mut Sqlite) {
    sqlx::query("INSERT INTO codes VALUES ('a')").execute(sqlite).await.unwrap();
}

/// A statement that only reads ends behind the row that was asked for, however it begins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_row_of_an_endless_answer_is_enough() {
    let pool = pool(config(&path("endless"))).await;
    let mut sqlite = pool.sqlite().await.unwrap();
    const ENDLESS: &str = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n) SELECT i FROM n";
    let one: i64 = within(SOON, sqlx::query_scalar(ENDLESS).fetch_one(&mut sqlite)).await.unwrap();
    // A stream that drops between two rows ends at the next one.
    let mut rows = sqlx::query(ENDLESS).fetch(&mut sqlite);
    within(SOON, rows.next()).await.unwrap().unwrap();
    drop(rows);
    assert_eq!((one, within(SOON, count(&mut sqlite)).await), (1, 0));
}

/// Without WAL a writer keeps readers out as well. The ping does not wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_is_held_for_long_is_no_loss() {
    let mut options = unhurried();
    (options.probe.interval, options.probe.strikes) = (Duration::from_millis(10), 2);
    (options.health.each, options.health.all, options.health.cache) = (SOON, SOON, Duration::ZERO);
    let path = path("locked");
    let patient = || config(&path).wal(false).busy_timeout(LOCKED);
    drop(pool(patient()).await.close_all().await);
    let pool = pool_of(patient().pool_size(2).max_overflow(0), options);
    let (mut writer, mut other) = (pool.sqlite().await.unwrap(), pool.sqlite().await.unwrap());
    let mut transaction = writer.begin_with("BEGIN EXCLUSIVE").await.unwrap();
    sqlx::query(INSERT).execute(&mut transaction).await.unwrap();
    // A reader does wait. A ping that did would fail, as would those of the prober, which has one at a time.
    let reader = tokio::spawn(async move { count(&mut other).await });
    for _ in 0..5 {
        assert_eq!(within(SOON, pool.health_check()).await.entry("sqlite").unwrap().health, Health::Pass);
    }
    assert!(!reader.is_finished());
    transaction.commit().await.unwrap();
    assert_eq!(within(SOON, reader).await.unwrap(), 1);
    assert_eq!(pool.status().resource("sqlite").unwrap().generation, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_begin_that_is_refused_leaves_the_guard_as_it_was() {
    let pool = pool(config(&path("refused")).busy_timeout(Duration::from_millis(50))).await;
    let (mut writer, mut other) = (pool.sqlite().await.unwrap(), pool.sqlite().await.unwrap());
    let transaction = writer.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let refused = other.begin_with("BEGIN IMMEDIATE").await.unwrap_err();
    assert!(refused.as_database_error().is_some(), "{refused}");
    assert_eq!(count(&mut other).await, 0);
    transaction.rollback().await.unwrap();
    other.begin_with("BEGIN IMMEDIATE").await.unwrap().commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_statements_of_which_one_is_late_leave_the_outcome_unknown() {
    let limit = Duration::from_millis(300);
    let pool = pool(config(&path("several")).operation_timeout(limit)).await;
    let mut sqlite = pool.sqlite().await.unwrap();
    let several = format!("{INSERT}; {ENDLESS}");
    let late = within(SOON, sqlx::raw_sql(sqlx::AssertSqlSafe(several)).execute(&mut sqlite)).await.unwrap_err();
    assert!(matches!(behind(&late), Error::OutcomeUnknown { .. }), "{late}");
    drop(sqlite);
    assert_eq!(count(&mut pool.sqlite().await.unwrap()).await, 1, "the first statement is done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_limits_are_no_limits() {
    let mut config = config(&path("longest")).operation_timeout(Duration::MAX);
    (config.pool_timeout, config.pool_recycle) = (Duration::MAX, Duration::MAX);
    let pool = pool(config).await;
    let mut sqlite = pool.sqlite().await.unwrap();
    insert(&mut sqlite).await.unwrap();
    let raw = sqlite.raw_pool();
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM bars").fetch_one(&raw).await.unwrap();
    assert_eq!(rows, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_is_dropped_ends_and_gives_its_locks_back() {
    let pool = pool(numbered(config(&path("dropped")).pool_size(1).max_overflow(0))).await;
    let mut sqlite = pool.sqlite().await.unwrap();
    let first = number(&mut sqlite).await;
    let mut transaction = sqlite.begin_with("BEGIN IMMEDIATE").await.unwrap();
    sqlx::query(INSERT).execute(&mut transaction).await.unwrap();
    let endless = sqlx::query(ENDLESS).fetch_all(&mut transaction);
    assert!(tokio::time::timeout(Duration::from_millis(50), endless).await.is_err());
    let refused = sqlx::query("SELECT 1").execute(&mut transaction).await.unwrap_err();
    assert!(behind(&refused).to_string().contains("acquire another one"), "{refused}");
    drop(transaction);
    drop(sqlite);
    let mut sqlite = within(CUT, pool.sqlite()).await.unwrap();
    within(CUT, insert(&mut sqlite)).await.unwrap();
    assert_eq!(count(&mut sqlite).await, 1);
    assert_ne!(number(&mut sqlite).await, first);
}

/// A statement that answers a row, and is at work on the second one for ever.
const HALF_ENDLESS: &str = "SELECT 1 UNION ALL SELECT (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) \
                            SELECT count(*) FROM n)";

/// SQLite works ahead of the reader, so it goes on with a statement whose stream drops until its next row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_whose_stream_drops_ends_with_the_guard_or_the_time_of_the_next_call() {
    let path = path("dropped_stream");
    let single = config(&path).pool_size(1).max_overflow(0);
    let pool = pool(numbered(single.clone())).await;
    let mut sqlite = pool.sqlite().await.unwrap();
    let first = number(&mut sqlite).await;
    let mut transaction = sqlite.begin_with("BEGIN IMMEDIATE").await.unwrap();
    sqlx::query(INSERT).execute(&mut transaction).await.unwrap();
    let mut rows = sqlx::query_scalar::<_, i64>(HALF_ENDLESS).fetch(&mut transaction);
    assert_eq!(within(SOON, rows.try_next()).await.unwrap(), Some(1));
    drop(rows);
    drop(transaction);
    drop(sqlite);
    // Its locks are given back.
    let mut sqlite = within(SOON, pool.sqlite()).await.unwrap();
    within(SOON, insert(&mut sqlite)).await.unwrap();
    assert_eq!(count(&mut sqlite).await, 1);
    assert_ne!(number(&mut sqlite).await, first);
    drop(sqlite);
    assert!(within(SOON, pool.close_all()).await.all_closed());
    // The next call waits for it, and ends it as its own time is up.
    let pool = pool_of(numbered(single.operation_timeout(Duration::from_millis(300))), unhurried());
    let mut sqlite = pool.sqlite().await.unwrap();
    let first = number(&mut sqlite).await;
    let mut rows = sqlx::query_scalar::<_, i64>(HALF_ENDLESS).fetch(&mut sqlite);
    assert_eq!(within(SOON, rows.try_next()).await.unwrap(), Some(1));
    drop(rows);
    within(SOON, insert(&mut sqlite)).await.unwrap();
    assert_eq!((count(&mut sqlite).await, number(&mut sqlite).await), (2, first));
}

/// The time of the stream's statement is up before the long statement begins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_of_a_stream_that_dropped_ends_no_statement_of_the_driver() {
    let pool = pool_of(config(&path("raw_behind")).operation_timeout(Duration::from_millis(1)), unhurried());
    let mut sqlite = pool.sqlite().await.unwrap();
    let mut rows = sqlx::query_scalar::<_, i64>("SELECT 1 UNION ALL SELECT 2").fetch(&mut sqlite);
    assert_eq!(rows.try_next().await.unwrap(), Some(1));
    drop(rows);
    let long = "SELECT count(*) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 100000) \
                SELECT i FROM n)";
    let counted: i64 = sqlx::query_scalar(long).fetch_one(sqlite.raw()).await.unwrap();
    assert_eq!(counted, 100_000);
}

/// The threads wait for a lock, as they would for a disk that hangs. Both pools have the same count of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_that_hang_keep_connections_from_being_opened_and_cut_none() {
    let mut options = unhurried();
    (options.probe.interval, options.probe.limit, options.probe.strikes) = (Duration::from_millis(10), SOON, 2);
    (options.health.each, options.health.all, options.health.cache) = (SOON, SOON, Duration::ZERO);
    let config = config(&path("hanging")).busy_timeout(LOCKED);
    let pool = pool_of(config.clone(), options);
    let mut writer = pool.sqlite().await.unwrap();
    sqlx::query("CREATE TABLE bars (code text, close real)").execute(&mut writer).await.unwrap();
    let transaction = writer.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let healthy = pool.clone();
    let is_healthy = async move || within(SOON, healthy.health_check()).await.entry("sqlite").unwrap().health;
    within(SOON, async { while is_healthy().await != Health::Pass {} }).await;
    let mut hurried = unhurried();
    hurried.connect_timeout = Duration::from_millis(50);
    (hurried.retry.budget, hurried.circuit) = (Duration::from_millis(200), Duration::from_millis(1));
    (hurried.retry.base, hurried.retry.cap) = (Duration::from_millis(1), Duration::from_millis(1));
    let hanging = config.on_connect(|connection| {
        Box::pin(async move { sqlx::raw_sql("BEGIN IMMEDIATE; COMMIT").execute(connection).await.map(drop) })
    });
    let hanging = pool_of(hanging, hurried);
    // A thread that ends by itself may be among them at first. The same error may be told several times.
    let refused = async {
        let mut refused: Vec<Arc<ConnectError>> = Vec::new();
        while refused.len() < 5 {
            let Err(Error::Connect(error)) = hanging.sqlite().await else { panic!("it connected") };
            if !error.to_string().contains("threads still have calls into the file") {
                refused.clear();
            } else if !refused.iter().any(|known| Arc::ptr_eq(known, &error)) {
                refused.push(error);
            }
        }
    };
    within(SOON, refused).await;
    for _ in 0..5 {
        assert_eq!(is_healthy().await, Health::Pass);
    }
    let status = pool.status();
    let status = status.resource("sqlite").unwrap();
    assert_eq!((status.state, status.generation), (State::Ready, 1));
    // They end with the lock.
    transaction.rollback().await.unwrap();
    within(SOON, async { while hanging.sqlite().await.is_err() {} }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_ends_a_statement_that_would_not_end() {
    let path = path("cut");
    let pool = pool(config(&path)).await;
    insert(&mut pool.sqlite().await.unwrap()).await.unwrap();
    let running = tokio::spawn({
        let pool = pool.clone();
        async move {
            let mut sqlite = pool.sqlite().await.unwrap();
            sqlx::query(ENDLESS).fetch_all(&mut sqlite).await.map(drop)
        }
    });
    let busy = pool.clone();
    until_async(move || usage(&busy).in_use == Some(1)).await;
    let stopwatch = Stopwatch::start();
    let report = within(SOON, pool.close_all_within(Duration::from_secs(2))).await;
    assert!(stopwatch.took() < CUT && report.step("sqlite").is_some(), "{report}");
    let ended = within(CUT, running).await.unwrap().unwrap_err();
    assert!(matches!(behind(&ended), Error::Closed { .. } | Error::Closing { .. }), "{ended}");
    let log = beside(&path, "-wal");
    until_async(move || !log.exists()).await;
}

/// SQLite undoes the statement. Its answer that says so may come later than the cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_is_cut_is_undone_and_may_be_of_unknown_outcome() {
    let path = path("cut_change");
    let pool = pool(config(&path)).await;
    let change = "INSERT INTO bars SELECT 'a', (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT \
                  count(*) FROM n)";
    let running = tokio::spawn({
        let pool = pool.clone();
        async move {
            let mut sqlite = pool.sqlite().await.unwrap();
            sqlx::query(change).execute(&mut sqlite).await.map(drop)
        }
    });
    let busy = pool.clone();
    until_async(move || usage(&busy).in_use == Some(1)).await;
    within(SOON, pool.close_all_within(Duration::from_secs(2))).await;
    let ended = within(SOON, running).await.unwrap().unwrap_err();
    let cause = behind(&ended);
    assert!(matches!(cause, Error::OutcomeUnknown { .. } | Error::Closed { .. } | Error::Closing { .. }), "{ended}");
    let next = pool_of(config(&path), unhurried());
    assert_eq!(count(&mut next.sqlite().await.unwrap()).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_file_at_the_path_is_noticed_and_connected_to() {
    let (path, other) = (path("replaced"), path("replacing"));
    let pool = pool(config(&path)).await;
    insert(&mut pool.sqlite().await.unwrap()).await.unwrap();
    let replacing = self::pool(config(&other)).await;
    for _ in 0..2 {
        insert(&mut replacing.sqlite().await.unwrap()).await.unwrap();
    }
    assert!(replacing.close_all().await.all_closed());
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(beside(&path, suffix));
    }
    fs::rename(&other, &path).unwrap();
    let noticed = pool.clone();
    until_async(move || noticed.status().resource("sqlite").unwrap().generation > 1).await;
    let back = async {
        loop {
            if let Ok(mut sqlite) = pool.sqlite().await
                && count(&mut sqlite).await == 2
            {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    within(SOON, back).await;
    assert_eq!(pool.status().resource("sqlite").unwrap().state, State::Ready);
    assert_eq!(within(SOON, pool.health_check()).await.entry("sqlite").unwrap().health, Health::Pass);
    assert!(within(SOON, pool.close_all()).await.all_closed());
}

/// The open connection waits for a lock on the first file, while another file takes its place.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_replaced_as_it_is_opened_is_noticed() {
    let (path, other) = (path("opening"), path("replacing_the_opened"));
    for path in [&path, &other] {
        let made = self::pool(config(path)).await;
        if path == &other {
            insert(&mut made.sqlite().await.unwrap()).await.unwrap();
        }
        assert!(made.close_all().await.all_closed());
    }
    let path = path.canonicalize().unwrap();
    let mut holder = sqlx::SqliteConnection::connect(&format!("sqlite:{}", path.display())).await.unwrap();
    let lock = "PRAGMA locking_mode = EXCLUSIVE; SELECT count(*) FROM bars";
    sqlx::raw_sql(lock).execute(&mut holder).await.unwrap();
    let descriptors = |path: &Path| {
        let all = fs::read_dir("/proc/self/fd").unwrap();
        all.filter(|fd| fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|to| to == path)).count()
    };
    assert_eq!(descriptors(&path), 1);
    // Its mode is read as it is opened, which waits for the lock.
    let pool = pool_of(config(&path).busy_timeout(SOON), unhurried());
    let counting = tokio::spawn(async move {
        let mut sqlite = pool.sqlite().await.unwrap();
        (count(&mut sqlite).await, pool)
    });
    let opened = path.clone();
    until_async(move || descriptors(&opened) > 1).await;
    fs::rename(&other, &path).unwrap();
    holder.close().await.unwrap();
    let (rows, pool) = within(SOON, counting).await.unwrap();
    assert_eq!(rows, 1, "it is the file that is there now");
    assert!(within(SOON, pool.close_all()).await.all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_makes_no_file() {
    let path = path("removed");
    let mut holder = sqlx::SqliteConnection::connect(&format!("sqlite:{}?mode=rwc", path.display())).await.unwrap();
    let fill = "PRAGMA journal_mode = WAL; CREATE TABLE bars (code text, close real)";
    sqlx::raw_sql(fill).execute(&mut holder).await.unwrap();
    let mut options = unhurried();
    options.probe.enabled = false;
    let pool = pool_of(config(&path), options);
    assert_eq!(count(&mut pool.sqlite().await.unwrap()).await, 0);
    fs::remove_file(&path).unwrap();
    within(SOON, pool.close_all()).await;
    assert!(beside(&path, "-wal").exists(), "the control: there is a log");
    assert!(!path.exists());
    holder.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_in_another_state_is_not_handed_out_again() {
    let path = path("states");
    let pool = pool(numbered(config(&path).pool_size(1).max_overflow(0))).await;
    let attach = format!("ATTACH '{}' AS other", beside(&path, ".other").display());
    for statement in ["PRAGMA foreign_keys = OFF", "BEGIN", "CREATE TEMP TABLE t (a int)", "SELECT 1; BEGIN", &*attach]
    {
        let mut sqlite = within(SOON, pool.sqlite()).await.unwrap();
        let old = number(&mut sqlite).await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut sqlite).await.unwrap();
        drop(sqlite);
        assert_ne!(number(&mut within(SOON, pool.sqlite()).await.unwrap()).await, old, "{statement}");
    }
    // The raw connection. The pool does not know its state.
    let mut sqlite = within(SOON, pool.sqlite()).await.unwrap();
    let old = number(&mut sqlite).await;
    sqlite.raw().ping().await.unwrap();
    drop(sqlite);
    let mut sqlite = within(SOON, pool.sqlite()).await.unwrap();
    let old_too = number(&mut sqlite).await;
    assert_ne!(old_too, old);
    // A stream that drops between two rows leaves nothing behind for the guard itself.
    let mut rows = sqlx::query_scalar::<_, i64>("SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3").fetch(&mut sqlite);
    assert_eq!(rows.try_next().await.unwrap(), Some(1));
    drop(rows);
    assert_eq!(number(&mut sqlite).await, old_too);
    // A transaction whose beginning was dropped, while another connection writes.
    let mut writer = sqlx::SqliteConnection::connect(&format!("sqlite:{}", path.display())).await.unwrap();
    let writing = writer.begin_with("BEGIN IMMEDIATE").await.unwrap();
    assert!(sqlite.begin_with("BEGIN IMMEDIATE").now_or_never().is_none());
    writing.rollback().await.unwrap();
    assert!(insert(&mut sqlite).await.is_err());
    drop(sqlite);
    assert_eq!(count(&mut within(SOON, pool.sqlite()).await.unwrap()).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_tells_size_checked_out_overflow_idle_and_waiting() {
    let mut config = config(&path("status")).pool_size(2).max_overflow(1);
    config.overflow_timeout = Duration::from_millis(100);
    let mut options = unhurried();
    options.acquire_timeout = SOON;
    let pool = pool_of(config, options);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(pool.sqlite().await.unwrap());
    }
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { pool.sqlite().await.map(drop) }
    });
    let full = pool.clone();
    until_async(move || usage(&full).waiting == Some(1)).await;
    let Usage { max, open, in_use, idle, overflow, .. } = usage(&pool);
    assert_eq!([max, open, in_use, idle, overflow], [3, 3, 3, 0, 1].map(Some));
    let timeout = pool.within(Duration::from_millis(50)).sqlite().await.unwrap_err();
    let Error::Timeout(error) = &timeout else { panic!("{timeout}") };
    assert_eq!((error.holders.len(), error.holders[0].site.file()), (3, file!()), "{timeout}");
    drop(held);
    within(SOON, waiting).await.unwrap().unwrap();
    until_async(move || usage(&pool).open == Some(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_attempt_mends_is_told_at_once() {
    let path = path("wrong");
    let refused = async |config: SqliteConfig| {
        let error = pool_of(config, unhurried()).sqlite().await.unwrap_err();
        let Error::Connect(connect) = &error else { panic!("{error}") };
        assert!(connect.permanent && connect.attempts == 1, "{error}");
        error.to_string()
    };
    let told = refused(SqliteConfig::file(&path)).await;
    assert!(told.contains("sqlite.create") && told.contains("bars.sqlite"), "{told}");
    assert!(refused(config(&path.join("no/folder"))).await.contains("its folder must be there"));
    fs::write(&path, "this is some text, which no database begins with\n".repeat(100)).unwrap();
    let told = refused(SqliteConfig::file(&path)).await;
    assert!(told.contains("is no database"), "{told}");
    // A resource that only reads changes nothing.
    let path = self::path("only");
    assert!(pool(config(&path)).await.close_all().await.all_closed());
    let pool = pool_of(SqliteConfig::url(format!("sqlite://{}?mode=ro", path.display())), unhurried());
    let error = insert(&mut pool.sqlite().await.unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("readonly"), "{error}");
    assert!(pool.close_all().await.all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_of_the_drivers_own_is_closed_with_the_resource() {
    let pool = pool(config(&path("raw"))).await;
    let raw = pool.sqlite().await.unwrap().raw_pool();
    let one: i64 = sqlx::query_scalar("SELECT 1").fetch_one(&raw).await.unwrap();
    assert_eq!(one, 1);
    let report = within(SOON, pool.close_all()).await;
    assert!(report.all_closed() && raw.is_closed(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_replaces_connections_while_a_transaction_goes_on() {
    let pool = pool(numbered(config(&path("refreshed")).pool_size(2).max_overflow(0))).await;
    let mut held = pool.sqlite().await.unwrap();
    let first = number(&mut held).await;
    let mut transaction = held.begin().await.unwrap();
    pool.refresh("sqlite").await.unwrap();
    sqlx::query(INSERT).execute(&mut transaction).await.unwrap();
    transaction.commit().await.unwrap();
    drop(held);
    let mut next = pool.sqlite().await.unwrap();
    assert_eq!(count(&mut next).await, 1);
    assert_ne!(number(&mut next).await, first);
    next.discard();
    let counted = pool.clone();
    until_async(move || {
        usage(&counted).counters.closed.is_some_and(|closed| (closed.lost, closed.discarded) == (0, 1))
    })
    .await;
    assert!(within(SOON, pool.close_all()).await.all_closed());
}

#[test]
fn threads_wait_for_what_is_done_with_a_connection() {
    let builder = blocking::ResourcePool::builder().environment([("", ""); 0]).options(unhurried());
    let pool = builder.resource(config(&path("threads"))).build().unwrap();
    let mut sqlite = pool.sqlite().unwrap();
    let sum: i64 = sqlite
        .wait(async |sqlite| sqlx::query_scalar("SELECT 1 + ?").bind(41).fetch_one(sqlite).await)
        .unwrap()
        .unwrap();
    assert_eq!(sum, 42);
    let holder = pool.holders().into_iter().find(|holder| holder.exclusive).unwrap();
    assert_eq!((holder.site.file(), &*holder.resource), (file!(), "sqlite"));
    drop(sqlite);
    assert!(pool.close_all().unwrap().all_closed());
}

/// Inserts the demo's bars and reads them back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bars_go_in_and_come_out_as_they_were() {
    let bars = include_str!("../examples/data/stocks.csv").lines().skip(1).map(|line| {
        let fields: Vec<_> = line.split(',').collect();
        (fields[0].to_owned(), fields[5].parse::<f64>().unwrap())
    });
    let bars: Vec<(String, f64)> = bars.collect();
    let pool = pool(config(&path("bars"))).await;
    let mut sqlite = pool.sqlite().await.unwrap();
    let mut transaction = sqlite.begin_with("BEGIN IMMEDIATE").await.unwrap();
    for (code, close) in &bars {
        sqlx::query("INSERT INTO bars VALUES (?, ?)").bind(code).bind(close).execute(&mut transaction).await.unwrap();
    }
    transaction.commit().await.unwrap();
    let read: Vec<(String, f64)> =
        sqlx::query_as("SELECT code, close FROM bars ORDER BY rowid").fetch_all(&mut sqlite).await.unwrap();
    assert_eq!(read, bars);
    drop(sqlite);
    assert!(within(SOON, pool.close_all()).await.all_closed());
}

#[test]
fn keys_variables_and_urls_are_read_and_named() {
    let settled = |variables: &[(&str, &str)]| {
        let pool = ResourcePool::builder().environment(variables.iter().copied()).build().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(pool.within(Duration::from_secs(10)).sqlite()).unwrap_err()
    };
    let key = |variables: &[(&str, &str)]| match settled(variables) {
        Error::Config { key, problem } => format!("{key}: {problem}"),
        other => panic!("{other}"),
    };
    assert!(key(&[("SQLITE_URL", "postgres://localhost/x")]).starts_with("SQLITE_URL: is no URL of SQLite"));
    assert!(key(&[("SQLITE_URL", "sqlite:x?mode=rwx")]).contains("`rwc`"));
    assert!(key(&[("SQLITE_URL", "sqlite:x?cache=shared")]).contains("unknown parameter `cache`"));
    assert!(key(&[("SQLITE_URL", "sqlite::memory:")]).contains("in memory"));
    assert!(key(&[("DATABASE_URL", "/var/lib/secret")]).starts_with("DATABASE_URL: has a scheme that no kind reads"));
    assert!(!key(&[("DATABASE_URL", "/var/lib/secret")]).contains("secret"));
    assert!(key(&[("SQLITE_FILE", "file:x")]).starts_with("SQLITE_FILE: must be a path"));
    let told = settled(&[("DATABASE_URL", "sqlite:///no/such%20folder/x.sqlite")]).to_string();
    assert!(told.contains("/no/such folder/x.sqlite"), "{told}");
    let wrong = |config: SqliteConfig| {
        let built = ResourcePool::builder().environment([("", ""); 0]).resource(config).build();
        built.unwrap_err().to_string()
    };
    assert!(wrong(SqliteConfig::file("x").create(true).read_only(true)).contains("sqlite.create"));
    assert!(wrong(SqliteConfig::file("x").busy_timeout(Duration::MAX)).contains("sqlite.busy_timeout_ms"));
}
