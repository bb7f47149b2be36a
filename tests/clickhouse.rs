//! ClickHouse on both facades. Most tests run against a real old server and, through a bridge, against today's engine,
//! which can show more of the driver.

#![cfg(feature = "clickhouse")]
#![allow(missing_docs)]

mod common;

use std::any::Any;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clickhouse::{Client, Row};
use common::{Within, eventually, stopped, unhurried, until, until_async};
use futures_util::FutureExt;
use resource_pool::config::{ClickHouseConfig, Options};
use resource_pool::{
    ClickHouse, ClickHouseResource, Error, Health, Lease, Outcome, ResourcePool, State, Work, blocking,
};
use serde::{Deserialize, Deserializer, Serialize};
use services::{BlackHole, ClickHouseBridge, Kind, Service};

/// The limit for a frozen server to show as an error.
const FROZEN: Duration = Duration::from_secs(5);
/// The limit for any expected change. A busy machine needs less.
const SOON: Duration = Duration::from_secs(20);
/// A query of eight seconds, one second for each row.
const SLOW: &str = "SELECT sleep(1) FROM numbers(8) SETTINGS max_block_size = 1";
/// A query that outlasts every test.
const ENDLESS: &str = "SELECT sleep(1) FROM numbers(60) SETTINGS max_block_size = 1";
const TABLE: &str =
    "CREATE TABLE bars (code String, day UInt32, close Float64) ENGINE = MergeTree ORDER BY (code, day)";

/// The tests that do not run on today's engine through the bridge, by name, and why. They run against the old server
/// alone. All others run against both.
const NOT_THROUGH_THE_BRIDGE: &[(&str, &str)] = &[
    ("clickhouse_native_port_is_refused_with_the_remedy", "it has no native port"),
    ("clickhouse_old_server_needs_validation_off", "it is not old"),
    ("clickhouse_trap_nagle_delays_one_row_inserts", "its own answers take longer than the delay that is measured"),
];

enum Server {
    Old(Service),
    Today(ClickHouseBridge),
}

impl Deref for Server {
    type Target = Service;
    fn deref(&self) -> &Service {
        match self {
            Server::Old(service) => service,
            Server::Today(bridge) => bridge,
        }
    }
}

impl Server {
    fn sql(&self, sql: &str) -> String {
        self.clickhouse().unwrap().query(sql).unwrap().trim().to_owned()
    }

    fn count(&self) -> u64 {
        self.sql("SELECT count() FROM bars").parse().unwrap()
    }
}

fn old() -> Server {
    Server::Old(Service::start(Kind::ClickHouse).expect("a ClickHouse"))
}

fn today() -> Server {
    Server::Today(ClickHouseBridge::start().expect("today's ClickHouse"))
}

/// The same test against both servers.
macro_rules! both {
    ($($case:ident: $old:ident, $today:ident;)*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $old() {
            $case(&old()).await;
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $today() {
            $case(&today()).await;
        }
    )* };
}

both! {
    connects_leases_and_closes: clickhouse_async_connects_leases_and_closes, clickhouse_bridge_async_connects_leases_and_closes;
    works_for_threads: clickhouse_blocking_queries_inserts_and_executes, clickhouse_bridge_blocking_queries_inserts_and_executes;
    works_for_tasks: clickhouse_async_queries_inserts_and_executes, clickhouse_bridge_async_queries_inserts_and_executes;
    inserts_in_bulk_and_streams: clickhouse_inserts_100_000_rows_and_streams_them, clickhouse_bridge_inserts_100_000_rows_and_streams_them;
    reads_ahead: clickhouse_reads_ahead_of_a_thread_but_not_far, clickhouse_bridge_reads_ahead_of_a_thread_but_not_far;
    reads_ahead_of_a_task: clickhouse_reads_ahead_of_a_task, clickhouse_bridge_reads_ahead_of_a_task;
    settings_arrive: clickhouse_settings_arrive, clickhouse_bridge_settings_arrive;
    compresses: clickhouse_compresses_inserts, clickhouse_bridge_compresses_inserts_and_results;
    names: clickhouse_named_and_with, clickhouse_bridge_named_and_with;
    scoped: clickhouse_scoped_closes_by_drop_by_question_mark_and_by_panic, clickhouse_bridge_scoped_closes_by_drop_by_question_mark_and_by_panic;
    cold_rush: clickhouse_cold_rush_connects_once, clickhouse_bridge_cold_rush_connects_once;
    closes_under_load: clickhouse_closes_under_load, clickhouse_bridge_closes_under_load;
    drain_waits: clickhouse_drain_waits_for_queries_and_inserts, clickhouse_bridge_drain_waits_for_queries_and_inserts;
    closed_for_clones: clickhouse_close_leaves_no_clone_working, clickhouse_bridge_close_leaves_no_clone_working;
    killed: clickhouse_killed_and_restarted_under_the_same_guard, clickhouse_bridge_killed_and_restarted_under_the_same_guard;
    frozen_during_calls: clickhouse_frozen_during_calls, clickhouse_bridge_frozen_during_calls;
    cut_verbs: clickhouse_cut_verbs_tell_what_may_have_happened, clickhouse_bridge_cut_verbs_tell_what_may_have_happened;
    frozen_at_connect: clickhouse_frozen_at_connect, clickhouse_bridge_frozen_at_connect;
    frozen_at_health: clickhouse_frozen_at_health, clickhouse_bridge_frozen_at_health;
    frozen_at_close: clickhouse_frozen_at_close, clickhouse_bridge_frozen_at_close;
    slow_but_living: clickhouse_slow_but_living_queries_are_not_cut, clickhouse_bridge_slow_but_living_queries_are_not_cut;
    bad_input: clickhouse_bad_input_is_a_clear_error_in_time, clickhouse_bridge_bad_input_is_a_clear_error_in_time;
    errors: clickhouse_server_errors_name_their_cause, clickhouse_bridge_server_errors_name_their_cause;
    trap_credentials: clickhouse_trap_credentials_in_the_url_are_ignored, clickhouse_bridge_trap_credentials_in_the_url_are_ignored;
    trap_unended_insert: clickhouse_trap_insert_not_ended_is_aborted, clickhouse_bridge_trap_insert_not_ended_is_aborted;
    trap_unbounded: clickhouse_trap_pool_is_unbounded, clickhouse_bridge_trap_pool_is_unbounded;
    guard_outlives: clickhouse_guard_outlives_the_runtime_it_came_from, clickhouse_bridge_guard_outlives_the_runtime_it_came_from;
    waits_where_it_may: clickhouse_blocking_acquire_waits_only_where_it_may, clickhouse_bridge_blocking_acquire_waits_only_where_it_may;
    trap_panics: clickhouse_trap_panics_outside_a_runtime, clickhouse_bridge_trap_panics_outside_a_runtime;
    trap_idle_sockets: clickhouse_trap_idle_sockets_are_never_reaped, clickhouse_bridge_trap_idle_sockets_are_never_reaped;
}

#[test]
fn clickhouse_bridge_list_is_complete() {
    let alone: Vec<_> = include_str!("clickhouse.rs")
        .lines()
        .filter_map(|line| line.trim_start_matches("async ").strip_prefix("fn clickhouse_")?.split('(').next())
        .map(|name| format!("clickhouse_{name}"))
        .collect();
    let listed: Vec<_> = NOT_THROUGH_THE_BRIDGE.iter().map(|(name, _)| (*name).to_owned()).collect();
    let without_server = ["clickhouse_bridge_list_is_complete", "clickhouse_trap_no_connect_timeout"];
    for name in &alone {
        assert!(
            listed.contains(name) || without_server.contains(&name.as_str()),
            "{name} runs against one server only"
        );
    }
    assert!(listed.iter().all(|name| alone.contains(name)), "{listed:?}");
}

fn config(server: &Service) -> ClickHouseConfig {
    ClickHouseConfig::url(server.url())
}

fn pool_of(config: ClickHouseConfig) -> ResourcePool {
    let builder = ResourcePool::builder().environment([("", ""); 0]).options(unhurried());
    builder.resource(config).build().expect("a pool")
}

/// A pool with the limits that the guide promises.
fn hurried(server: &Service) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).resource(config(server)).build().expect("a pool")
}

fn pool(server: &Service) -> ResourcePool {
    pool_of(config(server))
}

/// The bare driver, used as its documentation shows.
fn bare(server: &Service) -> Client {
    Client::default()
        .with_url(format!("http://127.0.0.1:{}", server.port()))
        .with_user(server.user())
        .with_password(server.password())
        .with_database(server.database())
        .with_validation(false)
}

#[derive(Debug, Clone, PartialEq, Row, Serialize, Deserialize)]
struct Bar {
    code: String,
    day: u32,
    close: f64,
}

/// A bar whose `close` fits into the table only if it is true.
#[derive(Row, Serialize)]
struct Misfit {
    code: String,
    day: u32,
    #[serde(serialize_with = "only_what_fits")]
    close: bool,
}

fn only_what_fits<S: serde::Serializer>(fits: &bool, to: S) -> Result<S::Ok, S::Error> {
    if *fits { to.serialize_f64(0.0) } else { Err(serde::ser::Error::custom("it does not fit")) }
}

fn bar(day: u32) -> Bar {
    Bar { code: "AAPL".to_owned(), day, close: f64::from(day) / 4.0 }
}

async fn insert(client: &Client, days: impl IntoIterator<Item = u32>) -> clickhouse::error::Result<()> {
    let mut insert = client.insert::<Bar>("bars").await?;
    for day in days {
        insert.write(&bar(day)).await?;
    }
    insert.end().await
}

/// Runs a blocking call on a thread outside of the test's runtime.
async fn on_thread<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    thread::spawn(move || drop(sender.send(call())));
    receiver.await.expect("the thread panicked")
}

async fn connects_leases_and_closes(server: &Server) {
    let before = server.established().unwrap();
    let pool = pool(server);
    assert_eq!(pool.status().resource("clickhouse").unwrap().state, State::Idle);
    let clickhouse = pool.clickhouse().await.unwrap();
    clickhouse.query(TABLE).execute().await.unwrap();
    insert(&clickhouse, 0..10).await.unwrap();
    let bars: Vec<Bar> =
        clickhouse.query("SELECT ?fields FROM bars WHERE day >= ? ORDER BY day").bind(8).fetch_all().await.unwrap();
    assert_eq!(bars, [bar(8), bar(9)]);
    let again = pool.clickhouse().await.unwrap();
    assert_eq!((pool.holders().len(), Lease::generation(&again)), (2, 1));
    assert!(pool.holders()[0].site.file().ends_with("clickhouse.rs"));
    drop(again);
    assert_eq!(pool.health_check().await.entry("clickhouse").unwrap().health, Health::Pass);
    let usage = || pool.status().resource("clickhouse").unwrap().usage;
    until_async(SOON, async || usage().in_use == Some(0) && usage().open == usage().idle).await;
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    assert_eq!(report.step("clickhouse").unwrap().held.len(), 1);
    assert!(clickhouse.query("SELECT 1").execute().await.is_err());
    assert!(matches!(pool.clickhouse().await, Err(Error::Closed { .. })));
    assert_eq!(server.await_established(before, SOON).unwrap(), before);
    pool.reopen().unwrap();
    assert_eq!(
        pool.clickhouse().await.unwrap().query("SELECT count() FROM bars").fetch_one::<u64>().await.unwrap(),
        10
    );
    assert!(clickhouse.query("SELECT 1").execute().await.is_err(), "a guard of the closed generation stays closed");
}

async fn works_for_threads(server: &Server) {
    let before = server.established().unwrap();
    let pool = blocking::ResourcePool::from(pool(server));
    let used = pool.clone();
    on_thread(move || {
        let clickhouse = used.clickhouse().unwrap();
        clickhouse.execute(TABLE).unwrap();
        assert_eq!(clickhouse.insert_rows("bars", (0..10).map(bar)).unwrap(), 10);
        assert_eq!(clickhouse.insert_rows("bars", std::iter::empty::<Bar>()).unwrap(), 0);
        let bound = clickhouse.client().query("SELECT ?fields FROM bars WHERE day >= ? ORDER BY day").bind(8);
        assert_eq!(clickhouse.query_rows::<Bar>(bound).unwrap(), [bar(8), bar(9)]);
        let days = clickhouse.query_iter::<u32>("SELECT day FROM bars ORDER BY day").unwrap();
        assert_eq!(days.collect::<Result<Vec<_>, _>>().unwrap(), (0..10).collect::<Vec<_>>());
        // The error names the row that does not fit. The rows before it are not stored either.
        let misfits = [true, false].map(|close| Misfit { code: "AAPL".to_owned(), day: 1, close });
        let misfit = clickhouse.insert_rows("bars", misfits).unwrap_err();
        assert!(misfit.to_string().contains("it does not fit"), "{misfit}");
        let report = used.close_all().unwrap();
        assert!(report.all_closed(), "{report}");
        let refused = clickhouse.query_rows::<u8>("SELECT 1").unwrap_err();
        assert!(matches!(refused, Error::Closed { .. }), "{refused}");
        assert!(clickhouse.insert_rows("bars", [bar(1)]).is_err());
        assert!(matches!(used.clickhouse(), Err(Error::Closed { .. })));
    })
    .await;
    assert_eq!(server.await_established(before, SOON).unwrap(), before);
    assert_eq!(server.count(), 10);
}

async fn works_for_tasks(server: &Server) {
    let before = server.established().unwrap();
    let pool = pool(server);
    let clickhouse = pool.clickhouse().await.unwrap();
    // All of these futures are `Send`, so they run in a spawned task.
    let task = tokio::spawn(async move {
        clickhouse.execute(TABLE).await.unwrap();
        assert_eq!(clickhouse.insert_rows("bars", (0..10).map(bar)).await.unwrap(), 10);
        assert_eq!(clickhouse.insert_rows("bars", std::iter::empty::<Bar>()).await.unwrap(), 0);
        let bound = clickhouse.query("SELECT ?fields FROM bars WHERE day >= ? ORDER BY day").bind(8);
        assert_eq!(clickhouse.query_rows::<Bar>(bound).await.unwrap(), [bar(8), bar(9)]);
        let mut days = clickhouse.query_iter::<u32>("SELECT day FROM bars ORDER BY day").await.unwrap();
        for day in 0..10 {
            assert_eq!(days.next().await.unwrap().unwrap(), day);
        }
        assert!(days.next().await.is_none() && days.next().await.is_none());
        // The error names the row that does not fit. The rows before it are not stored either.
        let misfits = [true, false].map(|close| Misfit { code: "AAPL".to_owned(), day: 1, close });
        let misfit = clickhouse.insert_rows("bars", misfits).await.unwrap_err();
        assert!(misfit.to_string().contains("it does not fit"), "{misfit}");
        // Errors are the pool's. They have the driver's error as their source and say what to do about it.
        let unknown = clickhouse.execute("SELECT nothing").await.unwrap_err();
        let cause = std::error::Error::source(&unknown).unwrap();
        assert!(matches!(cause.downcast_ref(), Some(clickhouse::error::Error::BadResponse(_))), "{cause:?}");
        let unbound = clickhouse.query_rows::<u8>("SELECT ?").await.unwrap_err();
        assert!(matches!(&unbound, Error::Operation { .. }), "{unbound}");
        assert!(unbound.to_string().contains("bind a value"), "{unbound}");
        clickhouse
    });
    let clickhouse = task.await.unwrap();
    // The rows' iterator is user code, and it runs on the user's runtime.
    server.sql("TRUNCATE TABLE bars");
    let here = tokio::runtime::Handle::current().id();
    let rows = (0..130).map(|day| {
        assert_eq!(tokio::runtime::Handle::current().id(), here);
        bar(day)
    });
    assert_eq!(clickhouse.insert_rows("bars", rows).await.unwrap(), 130);
    assert_eq!(server.sql("SELECT uniqExact(day) FROM bars"), "130");
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    let refused = clickhouse.query_rows::<u8>("SELECT 1").await.unwrap_err();
    assert!(matches!(refused, Error::Closed { .. }), "{refused}");
    assert!(matches!(clickhouse.query_iter::<u8>("SELECT 1").await, Err(Error::Closed { .. })));
    assert!(matches!(clickhouse.insert_rows("bars", [bar(1)]).await, Err(Error::Closed { .. })));
    assert!(matches!(clickhouse.execute("SELECT 1").await, Err(Error::Closed { .. })));
    assert_eq!(server.await_established(before, SOON).unwrap(), before);
    assert_eq!(server.count(), 130);
}

async fn inserts_in_bulk_and_streams(server: &Server) {
    const ROWS: u32 = 100_000;
    let sum: u64 = (0..u64::from(ROWS)).sum();
    server.sql(TABLE);
    let pool = pool(server);
    let clickhouse = pool.clickhouse().await.unwrap();
    let started = Instant::now();
    insert(&clickhouse, 0..ROWS).await.unwrap();
    let inserted = started.elapsed();
    assert_eq!(server.sql("SELECT count(), sum(day) FROM bars"), format!("{ROWS}\t{sum}"));
    let started = Instant::now();
    let mut cursor = clickhouse.query("SELECT ?fields FROM bars ORDER BY day").fetch::<Bar>().unwrap();
    let (mut rows, mut days) = (0, 0);
    while let Some(bar) = cursor.next().await.unwrap() {
        rows += 1;
        days += u64::from(bar.day);
    }
    println!("clickhouse: {ROWS} rows inserted in {inserted:?}, streamed in {:?}", started.elapsed());
    assert_eq!((rows, days), (ROWS, sum));

    server.sql("TRUNCATE TABLE bars");
    let started = Instant::now();
    assert_eq!(clickhouse.insert_rows("bars", (0..ROWS).map(bar)).await.unwrap(), u64::from(ROWS));
    let inserted = started.elapsed();
    let started = Instant::now();
    let mut rows = clickhouse.query_iter::<Bar>("SELECT ?fields FROM bars ORDER BY day").await.unwrap();
    for day in 0..ROWS {
        assert_eq!(rows.next().await.unwrap().unwrap(), bar(day));
    }
    assert!(rows.next().await.is_none());
    println!("clickhouse: {ROWS} rows by the pool's verbs in {inserted:?}, streamed in {:?}", started.elapsed());
    assert_eq!(clickhouse.query_rows::<Bar>("SELECT ?fields FROM bars").await.unwrap().len(), ROWS as usize);

    let blocking = blocking::ResourcePool::from(pool);
    on_thread(move || {
        let clickhouse = blocking.clickhouse().unwrap();
        let started = Instant::now();
        assert_eq!(clickhouse.insert_rows("bars", (0..ROWS).map(bar)).unwrap(), u64::from(ROWS));
        let inserted = started.elapsed();
        let started = Instant::now();
        let mut rows = clickhouse.query_iter::<Bar>("SELECT ?fields FROM bars ORDER BY day").unwrap();
        assert_eq!(rows.by_ref().map(|bar| u64::from(bar.unwrap().day)).sum::<u64>(), 2 * sum);
        assert!(rows.next().is_none());
        println!(
            "clickhouse: {ROWS} rows from a thread in {inserted:?}, {} streamed in {:?}",
            2 * ROWS,
            started.elapsed()
        );
        // Dropping an iterator half-way leaves nothing behind.
        let mut rows = clickhouse.query_iter::<u64>("SELECT number FROM system.numbers").unwrap();
        assert_eq!(rows.nth(1000).unwrap().unwrap(), 1000);
        drop(rows);
        until(SOON, || blocking.status().resource("clickhouse").unwrap().work.is_empty());
        assert_eq!(clickhouse.query_rows::<u8>("SELECT 1").unwrap(), [1]);
    })
    .await;
}

/// Rows for threads are read on the pool's runtime. An error or a panic there reaches the thread that asks for the row.
async fn reads_ahead(server: &Server) {
    /// The number of rows read from each server.
    static READ: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
    const BATCH: usize = 1024;

    #[derive(Debug, Row, Deserialize)]
    struct Counted {
        #[serde(deserialize_with = "count")]
        server: u8,
        number: u64,
    }

    fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
        let server = u8::deserialize(deserializer)?;
        READ[usize::from(server)].fetch_add(1, Ordering::SeqCst);
        Ok(server)
    }

    let number = usize::from(matches!(server, Server::Today(_)));
    let blocking = blocking::ResourcePool::from(pool(server));
    let whole = blocking::ResourcePool::from(pool_of(config(server).setting("wait_end_of_query", "1")));
    on_thread(move || {
        let clickhouse = blocking.clickhouse().unwrap();
        let endless = format!("SELECT toUInt8({number}) AS server, number FROM system.numbers");
        let mut rows = clickhouse.query_iter::<Counted>(&endless).unwrap();
        let first = rows.next().unwrap().unwrap();
        assert_eq!((usize::from(first.server), first.number), (number, 0));
        // The limit is more than the pool can hold in hand.
        until(SOON, || READ[number].load(Ordering::SeqCst) > BATCH);
        for _ in 0..20 {
            assert_eq!(clickhouse.query_rows::<u8>("SELECT 1").unwrap(), [1]);
        }
        let read = READ[number].load(Ordering::SeqCst);
        assert!(read <= 5 * BATCH, "{read} read for one row");
        assert!((1..100_000).eq(rows.by_ref().take(99_999).map(|row| row.unwrap().number)));
        drop(rows);

        let message = |panic: Box<dyn Any + Send>| panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let query = "SELECT number FROM numbers(10)";
        let mut rows = clickhouse.query_iter::<Broken>(query).unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(|| rows.by_ref().map(|row| row.unwrap().number).sum::<u64>()));
        assert_eq!(message(panicked.unwrap_err()).unwrap(), "no third row");
        assert!(rows.next().is_none(), "it ends after a panic");

        // Rows that came before an error come before it here, too. With an old server, the driver takes this error for
        // the end.
        let failing = "SELECT throwIf(number = 5000000) FROM numbers(6000000) SETTINGS max_threads = 1";
        let mut last = None;
        let mut rows = clickhouse.query_iter::<u8>(failing).unwrap();
        let came = rows.by_ref().map_while(|row| row.map_err(|error| last = Some(error)).ok()).count();
        assert!((1..5_000_000).contains(&came) && last.is_some() == (number == 1), "{came}, then {last:?}");
        assert!(rows.next().is_none(), "it ends after an error");
        let error = whole.clickhouse().unwrap().query_rows::<u8>(failing).unwrap_err();
        assert!(matches!(error, Error::Operation { .. }), "{error}");
    })
    .await;
}

/// A row whose deserializer panics at the third row.
#[derive(Debug, Row, Deserialize)]
struct Broken {
    #[serde(deserialize_with = "panics")]
    number: u64,
}

fn panics<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match u64::deserialize(deserializer)? {
        3 => panic!("no third row"),
        number => Ok(number),
    }
}

/// Rows for tasks are read in the same way. A wait for one can be dropped.
async fn reads_ahead_of_a_task(server: &Server) {
    let pool = pool(server);
    let clickhouse = pool.clickhouse().await.unwrap();
    let mut rows = clickhouse.query_iter::<u64>("SELECT number FROM numbers(300000)").await.unwrap();
    let (mut came, mut given_up) = (Vec::new(), 0);
    let end = loop {
        match rows.next().now_or_never() {
            Some(Some(row)) => came.push(row.unwrap()),
            Some(None) => break rows.next().await,
            None => {
                given_up += 1;
                tokio::task::yield_now().await;
            }
        }
    };
    assert!(end.is_none() && given_up > 0, "{end:?} after {given_up}");
    assert!((0..300_000).eq(came), "a row is lost, or came twice");

    // An iterator that is dropped half-way leaves nothing behind, and neither does one that nobody has polled.
    let mut rows = clickhouse.query_iter::<u64>("SELECT number FROM system.numbers").await.unwrap();
    assert_eq!(rows.next().await.unwrap().unwrap(), 0);
    drop(rows);
    drop(clickhouse.query_iter::<u64>("SELECT number FROM system.numbers").await.unwrap());
    let slow = clickhouse.query_rows::<u8>(ENDLESS);
    assert!(tokio::time::timeout(Duration::from_millis(50), slow).await.is_err());
    until_async(SOON, async || pool.status().resource("clickhouse").unwrap().work.is_empty()).await;

    let mut rows = clickhouse.query_iter::<Broken>("SELECT number FROM numbers(10)").await.unwrap();
    let sum = async {
        let mut sum = 0;
        while let Some(row) = rows.next().await {
            sum += row.unwrap().number;
        }
        sum
    };
    let panicked = AssertUnwindSafe(sum).catch_unwind().await.unwrap_err();
    assert_eq!(panicked.downcast_ref(), Some(&"no third row"));
    assert!(rows.next().await.is_none(), "it ends after a panic");

    let failing = "SELECT throwIf(number = 5000000) FROM numbers(6000000) SETTINGS max_threads = 1";
    let mut rows = clickhouse.query_iter::<u8>(failing).await.unwrap();
    let (mut came, mut last) = (0, None);
    while let Some(row) = rows.next().await {
        came += usize::from(row.is_ok());
        last = row.err();
    }
    // With an old server, the driver takes this error for the end.
    let is_told = matches!(server, Server::Today(_));
    assert!((1..5_000_000).contains(&came) && last.is_some() == is_told, "{came}, then {last:?}");
    assert!(rows.next().await.is_none(), "it ends after an error");
}

async fn settings_arrive(server: &Server) {
    const ASK: &str = "SELECT name, value FROM system.settings WHERE name IN \
        ('max_threads', 'max_block_size', 'max_insert_block_size', 'max_execution_time') ORDER BY name";
    let mut config = config(server).setting("max_execution_time", "77");
    config.max_threads = 3;
    config.insert_block_size = 4096;
    let url = format!("{}?max_block_size=1234", server.url());
    let mut with_url = config.clone();
    with_url.url = Some(url.into());
    let expected = |block: &str| {
        [
            ("max_block_size", block),
            ("max_execution_time", "77"),
            ("max_insert_block_size", "4096"),
            ("max_threads", "3"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
    };
    for (config, block) in [(config, "65536"), (with_url, "1234")] {
        let pool = pool_of(config);
        let settings: Vec<(String, String)> = pool.clickhouse().await.unwrap().query(ASK).fetch_all().await.unwrap();
        assert_eq!(settings, expected(block));
        let blocking = blocking::ResourcePool::from(pool);
        let settings: Vec<(String, String)> =
            on_thread(move || blocking.clickhouse().unwrap().query_rows(ASK)).await.unwrap();
        assert_eq!(settings, expected(block));
    }
    // A setting that the server does not know fails the connect at once.
    let error = pool_of(self::config(server).setting("no_such_setting", "1")).clickhouse().await.unwrap_err();
    assert!(matches!(&error, Error::Connect(connect) if connect.permanent), "{error}");
    assert!(error.to_string().contains("no_such_setting"), "{error}");
}

async fn compresses(server: &Server) {
    const ROWS: u32 = 20_000;
    server.sql(TABLE);
    let mut sent = Vec::new();
    for compression in [false, true] {
        let meter = Meter::start(server.port());
        let url = server.url().replace(&format!(":{}/", server.port()), &format!(":{}/", meter.port));
        let mut config = ClickHouseConfig::url(url);
        config.compression = compression;
        let pool = pool_of(config);
        let clickhouse = pool.clickhouse().await.unwrap();
        insert(&clickhouse, 0..ROWS).await.unwrap();
        let rows = clickhouse.query("SELECT ?fields FROM bars").fetch_all::<Bar>().await.unwrap();
        assert_eq!(rows.len() as u32 % ROWS, 0);
        sent.push((
            meter.up.load(Ordering::SeqCst),
            meter.down.load(Ordering::SeqCst) / (rows.len() as u64 / u64::from(ROWS)),
        ));
        assert!(pool.close_all().await.step("clickhouse").unwrap().outcome == Outcome::Closed);
    }
    println!("clickhouse: bytes up and down, plain and LZ4: {sent:?}");
    assert!(sent[1].0 < sent[0].0 * 3 / 4, "{sent:?}");
    if matches!(server, Server::Today(_)) {
        assert!(sent[1].1 < sent[0].1 * 3 / 4, "{sent:?}");
    }
    assert_eq!(server.count(), 2 * u64::from(ROWS));
}

/// A proxy that counts bytes.
struct Meter {
    port: u16,
    up: Arc<AtomicU64>,
    down: Arc<AtomicU64>,
}

impl Meter {
    fn start(target: u16) -> Meter {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let meter = Meter { port: listener.local_addr().unwrap().port(), up: Arc::default(), down: Arc::default() };
        let (up, down) = (Arc::clone(&meter.up), Arc::clone(&meter.down));
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let server = TcpStream::connect(("127.0.0.1", target)).unwrap();
                forward(client.try_clone().unwrap(), server.try_clone().unwrap(), Arc::clone(&up));
                forward(server, client, Arc::clone(&down));
            }
        });
        meter
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, passed: Arc<AtomicU64>) {
    thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while let Ok(size @ 1..) = from.read(&mut buffer) {
            passed.fetch_add(size as u64, Ordering::SeqCst);
            if to.write_all(&buffer[..size]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}

async fn names(server: &Server) {
    let pool = ResourcePool::builder()
        .environment([("", ""); 0])
        .resource(config(server))
        .named("research", config(server).setting("max_execution_time", "5"))
        .build()
        .unwrap();
    let ask = "SELECT value FROM system.settings WHERE name = 'max_execution_time'";
    let value = async |client: &Client| client.query(ask).fetch_one::<String>().await.unwrap();
    assert_eq!(value(&*pool.clickhouse().await.unwrap()).await, "0");
    assert_eq!(value(&*pool.clickhouse_named("research").await.unwrap()).await, "5");
    let six = config(server).setting("max_execution_time", "6");
    assert_eq!(value(&*pool.clickhouse_with("six", six.clone()).await.unwrap()).await, "6");
    assert_eq!(value(&*pool.clickhouse_with("six", six).await.unwrap()).await, "6");
    let other = pool.clickhouse_with("six", config(server)).await.unwrap_err();
    assert!(matches!(other, Error::NameTaken { .. }), "{other}");
    assert!(matches!(pool.clickhouse_named("nobody").await, Err(Error::UnknownName { .. })));
    assert!(pool.get::<ClickHouseResource>("research").await.is_ok());
    let blocking = blocking::ResourcePool::from(pool.clone());
    let values =
        on_thread(move || blocking.clickhouse_named("research").unwrap().query_rows::<String>(ask).unwrap()).await;
    assert_eq!(values, ["5"]);
    assert!(pool.close("research").await.unwrap().all_closed());
    assert!(matches!(pool.clickhouse_named("research").await, Err(Error::Closed { .. })));
    assert_eq!(value(&*pool.clickhouse().await.unwrap()).await, "0");
    pool.reconnect("research").await.unwrap();
    assert_eq!(value(&*pool.clickhouse_named("research").await.unwrap()).await, "5");
}

async fn scoped(server: &Server) {
    let before = server.established().unwrap();
    let back = || assert_eq!(server.await_established(before, SOON).unwrap(), before);
    let guard = ClickHouse::scoped(config(server)).await.unwrap();
    guard.query("SELECT 1").execute().await.unwrap();
    let report = guard.close().await;
    assert!(report.all_closed(), "{report}");
    back();

    async fn fails(server: &Service) -> Result<(), Box<dyn std::error::Error>> {
        let guard = ClickHouse::scoped(config(server)).await?;
        Ok(guard.query("SELEKT").execute().await?)
    }
    assert!(fails(server).await.is_err());
    back();

    fn fails_blocking(config: ClickHouseConfig) -> Result<(), Error> {
        let guard = blocking::ClickHouse::scoped(config)?;
        guard.execute("SELECT 1")?;
        guard.execute("SELEKT")
    }
    let settings = config(server);
    let error = on_thread(move || fails_blocking(settings)).await.unwrap_err();
    assert!(matches!(error, Error::Operation { .. }), "{error}");
    back();

    let settings = config(server);
    let panicked = thread::spawn(move || {
        let guard = blocking::ClickHouse::scoped(settings).unwrap();
        guard.execute("SELECT 1").unwrap();
        panic!("as the test asked");
    });
    assert!(panicked.join().is_err());
    back();

    // The guard drops outside of any runtime.
    let guard = ClickHouse::scoped(config(server)).await.unwrap();
    guard.query("SELECT 1").execute().await.unwrap();
    thread::spawn(move || drop(guard)).join().unwrap();
    back();
}

async fn cold_rush(server: &Server) {
    let before = server.established().unwrap();
    let mut options = Options::default();
    // Two callers share each connection, on a machine that does other work too.
    options.acquire_timeout = Duration::from_secs(60);
    let pool =
        ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config(server)).build().unwrap();
    let done = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..100)
        .map(|_| {
            let (pool, done) = (blocking::ResourcePool::from(pool.clone()), Arc::clone(&done));
            thread::spawn(move || {
                let clickhouse = pool.clickhouse().unwrap();
                for n in 0..10 {
                    assert_eq!(clickhouse.query_rows::<u8>(&format!("SELECT toUInt8({n})")).unwrap(), [n]);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let (pool, done) = (pool.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                let clickhouse = pool.clickhouse().await.unwrap();
                for n in 0..10 {
                    let answer = clickhouse.query("SELECT toUInt8(?)").bind(n).fetch_one::<u8>().await;
                    assert_eq!(answer.unwrap(), n);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    until_async(Duration::from_secs(60), async || threads.iter().all(thread::JoinHandle::is_finished)).await;
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(done.load(Ordering::Relaxed), 2000);
    assert_eq!(pool.status().resource("clickhouse").unwrap().generation, 1);
    // At the end at most the idle connections and the prober's are left.
    until_async(SOON, async || server.established().unwrap() - before <= 16 + 1).await;
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    assert_eq!(server.await_established(before, SOON).unwrap(), before);
}

async fn closes_under_load(server: &Server) {
    let before = server.established().unwrap();
    let mut options = unhurried();
    // A ready resource is leased until the drain is over, so the drain takes as long as it may.
    options.close.drain = Duration::from_secs(2);
    let pool =
        ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config(server)).build().unwrap();
    drop(pool.clickhouse().await.unwrap());
    let done = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (pool, done) = (blocking::ResourcePool::from(pool.clone()), Arc::clone(&done));
            thread::spawn(move || {
                loop {
                    match pool.clickhouse() {
                        Ok(clickhouse) => {
                            done.fetch_add(usize::from(clickhouse.execute("SELECT 1").is_ok()), Ordering::Relaxed)
                        }
                        Err(error) => break error,
                    };
                }
            })
        })
        .collect();
    until_async(SOON, async || done.load(Ordering::Relaxed) > 100).await;
    let report = pool.close_all().await;
    assert_eq!(report.step("clickhouse").unwrap().outcome, Outcome::Closed, "{report}");
    for thread in threads {
        let error = on_thread(move || thread.join().unwrap()).await;
        assert!(error.is_closed(), "{error}");
    }
    assert_eq!(server.await_established(before, SOON).unwrap(), before);
}

async fn drain_waits(server: &Server) {
    server.sql(TABLE);
    let pool = pool(server);
    let clickhouse = Client::clone(&*pool.clickhouse().await.unwrap());
    let busy = || {
        let status = pool.status();
        let clickhouse = status.resource("clickhouse").unwrap();
        clickhouse.work.iter().find(|(work, _)| *work == Work::Operation).map_or(0, |(_, count)| *count)
    };
    assert_eq!(busy(), 0);
    // A query and an insert through the native client. Its lease has been dropped.
    let asked = Instant::now();
    let query = tokio::spawn({
        let query = clickhouse.query("SELECT sleep(1) FROM numbers(3) SETTINGS max_block_size = 1");
        async move { query.fetch_all::<u8>().await }
    });
    let mut rows = clickhouse.insert::<Bar>("bars").await.unwrap();
    rows.write(&bar(1)).await.unwrap();
    until_async(SOON, async || busy() == 2).await;
    assert_eq!(pool.status().resource("clickhouse").unwrap().usage.in_use, Some(2));
    let closing = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close_all().await }
    });
    pool.closing().wait().await;
    rows.write(&bar(2)).await.unwrap();
    rows.end().await.unwrap();
    let report = closing.await.unwrap();
    assert!(asked.elapsed() >= Duration::from_secs(3), "closing has not waited for the query: {report}");
    let answer = query.await.unwrap();
    assert_eq!(answer.unwrap_or_else(|error| panic!("{error:?}\n{report}")).len(), 3);
    assert!(report.all_closed(), "{report}");
    assert_eq!(server.count(), 2);
}

async fn closed_for_clones(server: &Server) {
    server.sql(TABLE);
    let before = server.established().unwrap();
    let pool = pool(server);
    let clickhouse = Client::clone(&*pool.clickhouse().await.unwrap());
    let blocking = blocking::ResourcePool::from(pool.clone());
    let threads = on_thread(move || blocking::ClickHouse::clone(&blocking.clickhouse().unwrap())).await;
    let mut rows = clickhouse.insert::<Bar>("bars").await.unwrap();
    rows.write(&bar(1)).await.unwrap();
    let in_flight = tokio::spawn(clickhouse.query(ENDLESS).execute());
    // A result that is not read further, so that nothing polls its socket.
    let mut unread = clickhouse.query("SELECT number FROM system.numbers").fetch::<u64>().unwrap();
    assert_eq!(unread.next().await.unwrap(), Some(0));
    until_async(SOON, async || pool.status().resource("clickhouse").unwrap().usage.in_use == Some(3)).await;
    // None of the three ends by itself. The drain waits as long as it may, and then the pool cuts them.
    let limit = Duration::from_secs(4);
    let (report, took) = stopped(pool.close_all_within(limit)).await;
    assert!(took < limit + Duration::from_secs(1), "{report}");
    let step = report.step("clickhouse").unwrap();
    assert_eq!(step.unfinished, [(Work::Operation, 3)], "{report}");
    assert!(matches!(step.outcome, Outcome::Closed | Outcome::Forced), "{report}");
    assert!(in_flight.within(SOON).await.unwrap().is_err());
    assert!(rows.end().within(SOON).await.is_err());
    while let Ok(number) = unread.next().within(SOON).await {
        assert!(number.is_some(), "it was to end in an error");
    }
    assert!(clickhouse.query("SELECT 1").execute().within(SOON).await.is_err());
    let refused = on_thread(move || threads.execute("SELECT 1")).within(SOON).await.unwrap_err();
    assert!(matches!(refused, Error::Closed { .. }), "{refused}");
    assert_eq!(server.await_established(before, SOON).unwrap(), before);
    assert_eq!(server.count(), 0);
}

async fn killed(server: &Server) {
    let pool = hurried(server);
    let clickhouse = pool.clickhouse().await.unwrap();
    let blocking = blocking::ResourcePool::from(pool.clone());
    let threads = on_thread(move || blocking.clickhouse().unwrap()).await;
    let in_flight = tokio::spawn(clickhouse.query(ENDLESS).execute());
    until_async(SOON, async || pool.status().resource("clickhouse").unwrap().usage.in_use == Some(1)).await;
    server.kill().unwrap();
    assert!(in_flight.within(SOON).await.unwrap().is_err());
    assert!(clickhouse.query("SELECT 1").execute().within(SOON).await.is_err());
    until_async(SOON, async || pool.status().resource("clickhouse").unwrap().state != State::Ready).await;
    assert!(!pool.is_healthy("clickhouse").await);
    server.restart().unwrap();
    let back = Instant::now();
    until_async(SOON, async || clickhouse.query("SELECT 1").execute().await.is_ok()).await;
    println!("clickhouse: the same guard works again {:?} after the restart", back.elapsed());
    on_thread(move || threads.execute("SELECT 1")).await.unwrap();
    assert_eq!(Lease::generation(&pool.clickhouse().await.unwrap()), 2);
}

async fn frozen_during_calls(server: &Server) {
    server.sql(TABLE);
    let pool = hurried(server);
    let clickhouse = pool.clickhouse().await.unwrap();
    let blocking = blocking::ResourcePool::from(pool.clone());
    let lease = blocking.clone();
    let threads = on_thread(move || blocking::ClickHouse::clone(&lease.clickhouse().unwrap())).await;
    let mut rows = clickhouse.insert::<Bar>("bars").await.unwrap();
    rows.write(&bar(1)).await.unwrap();
    let mut in_flight = vec![tokio::spawn(fails(clickhouse.query(ENDLESS).execute()))];
    let thread = threads.clone();
    in_flight.push(tokio::spawn(fails(on_thread(move || thread.execute(ENDLESS)))));
    until_async(SOON, async || pool.status().resource("clickhouse").unwrap().usage.in_use == Some(3)).await;
    server.freeze().unwrap();
    // The bare driver does not notice.
    let control = tokio::spawn(bare(server).query("SELECT 1").execute());
    let fresh = Client::clone(&clickhouse);
    in_flight.push(tokio::spawn(fails(async move { fresh.query("SELECT 1").execute().await })));
    in_flight.push(tokio::spawn(fails(async move { rows.end().await })));
    let thread = threads.clone();
    in_flight.push(tokio::spawn(fails(on_thread(move || thread.query_rows::<u8>("SELECT 1")))));
    let thread = threads.clone();
    in_flight.push(tokio::spawn(fails(on_thread(move || thread.insert_rows("bars", [bar(1)])))));
    let (calls, took) = stopped(futures_util::future::join_all(in_flight)).await;
    println!("clickhouse: a frozen server ended every call after {took:?}");
    assert!(calls.into_iter().all(|failed| failed.unwrap()));
    assert!(took < FROZEN, "{took:?}");
    // New calls on both facades fail as well.
    let lost = pool.clickhouse().await.unwrap_err();
    assert!(lost.is_transient(), "{lost}");
    let (again, took) = stopped(clickhouse.query("SELECT 1").execute()).await;
    assert!(again.is_err() && took < FROZEN, "{took:?}");
    let thread = threads.clone();
    let (again, took) = stopped(on_thread(move || thread.execute("SELECT 1"))).await;
    let lost = again.unwrap_err();
    assert!(lost.is_transient() && took < FROZEN, "{lost}, {took:?}");
    assert!(!control.is_finished(), "the bare driver was to be waiting still");
    server.thaw().unwrap();
    until_async(SOON, async || clickhouse.query("SELECT 1").execute().await.is_ok()).await;
    on_thread(move || threads.execute("SELECT 1")).await.unwrap();
    assert!(pool.status().resource("clickhouse").unwrap().generation >= 2);
}

async fn fails<T, E>(call: impl Future<Output = Result<T, E>>) -> bool {
    call.await.is_err()
}

/// A verb that is cut returns the pool's error, which says whether the call may be repeated.
async fn cut_verbs(server: &Server) {
    server.sql(TABLE);
    let pool = hurried(server);
    let clickhouse = Arc::new(pool.clickhouse().await.unwrap());
    let mut rows = clickhouse.query_iter::<u64>("SELECT number FROM system.numbers").await.unwrap();
    assert_eq!(rows.next().await.unwrap().unwrap(), 0);
    let (query, execute, insert) = (Arc::clone(&clickhouse), Arc::clone(&clickhouse), Arc::clone(&clickhouse));
    let query = tokio::spawn(async move { query.query_rows::<u8>(ENDLESS).await.map(drop) });
    let execute = tokio::spawn(async move { execute.execute(ENDLESS).await });
    // The insert's rows never end. Before the first row, the driver may ask for the table's types, which is only a
    // read.
    let written = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&written);
    let bars = (0..).map(bar).inspect(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let insert = tokio::spawn(async move { insert.insert_rows("bars", bars).await.map(drop) });
    let in_use = || pool.status().resource("clickhouse").unwrap().usage.in_use;
    until_async(SOON, async || in_use() == Some(4) && written.load(Ordering::Relaxed) > 100_000).await;
    server.freeze().unwrap();
    let read = tokio::spawn(async move {
        loop {
            if let Err(error) = rows.next().await.expect("an error before its end") {
                assert!(rows.next().await.is_none(), "it ends after an error");
                return Err(error);
            }
        }
    });
    let (errors, took) = stopped(async {
        let read: tokio::task::JoinHandle<Result<(), Error>> = read;
        let mut errors = Vec::new();
        for call in [query, execute, read, insert] {
            errors.push(call.await.unwrap().unwrap_err());
        }
        errors
    })
    .await;
    assert!(took < FROZEN, "{took:?}");
    for (index, error) in errors.iter().enumerate() {
        let is_as_told = match Error::behind(error) {
            Some(Error::Lost { .. }) => index < 3,
            Some(Error::OutcomeUnknown { .. }) => index == 3,
            _ => false,
        };
        assert!(is_as_told, "{index}: {error}");
    }
    // New calls fail too, and work again under the same lease after the thaw.
    let (lost, took) = stopped(clickhouse.execute("SELECT 1")).await;
    let lost = lost.unwrap_err();
    assert!(lost.is_transient() && took < FROZEN, "{lost}, {took:?}");
    server.thaw().unwrap();
    until_async(SOON, async || clickhouse.execute("SELECT 1").await.is_ok()).await;
    assert_eq!(clickhouse.query_rows::<u8>("SELECT 1").await.unwrap(), [1]);
}

async fn frozen_at_connect(server: &Server) {
    server.freeze().unwrap();
    let control = tokio::spawn(bare(server).query("SELECT 1").execute());
    let pool = hurried(server);
    let blocking = blocking::ResourcePool::from(hurried(server));
    let thread = tokio::spawn(on_thread(move || blocking.clickhouse().map(drop)));
    let both = async { [pool.clickhouse().await.map(drop), thread.await.unwrap()] };
    let (both, took) = stopped(both).await;
    for failed in both {
        assert!(failed.unwrap_err().is_transient());
    }
    assert!(took < FROZEN + Duration::from_millis(200), "{took:?}");
    assert!(!control.is_finished(), "the bare driver was to be waiting still");
    server.thaw().unwrap();
    let clickhouse = eventually(SOON, async || pool.clickhouse().await.ok()).await;
    clickhouse.query("SELECT 1").execute().await.unwrap();
}

async fn frozen_at_health(server: &Server) {
    let pool = pool(server);
    let _lease = pool.clickhouse().await.unwrap();
    server.freeze().unwrap();
    let (report, took) = stopped(pool.health_check()).await;
    assert!(took < Duration::from_millis(800), "{took:?}");
    assert_eq!(report.entry("clickhouse").unwrap().health, Health::Fail, "{report}");
    let blocking = blocking::ResourcePool::from(pool);
    assert!(!on_thread(move || blocking.is_healthy("clickhouse")).await.unwrap());
    server.thaw().unwrap();
}

async fn frozen_at_close(server: &Server) {
    let before = server.established().unwrap();
    let pool = pool(server);
    let clickhouse = Client::clone(&*pool.clickhouse().await.unwrap());
    let in_flight = tokio::spawn(clickhouse.query(ENDLESS).execute());
    until_async(SOON, async || pool.status().resource("clickhouse").unwrap().usage.in_use == Some(1)).await;
    server.freeze().unwrap();
    let limit = Duration::from_secs(8);
    let (report, took) = stopped(pool.close_all_within(limit)).await;
    assert!(took < limit + Duration::from_secs(1), "{took:?}");
    assert!(matches!(report.step("clickhouse").unwrap().outcome, Outcome::Failed(_)), "{report}");
    assert!(in_flight.within(SOON).await.unwrap().is_err());
    println!("clickhouse: closed a frozen server after {took:?}");

    // A pool without work closes at once, from threads too.
    server.thaw().unwrap();
    let idle = blocking::ResourcePool::from(pool_of(config(server)));
    let pool = idle.clone();
    on_thread(move || drop(pool.clickhouse().unwrap())).await;
    server.freeze().unwrap();
    let started = Instant::now();
    let report = on_thread(move || idle.close_all().unwrap()).await;
    assert!(report.all_closed(), "{report}");
    // A disconnect that a frozen server leaves unanswered would take longer.
    assert!(started.elapsed() < FROZEN, "{:?}", started.elapsed());
    server.thaw().unwrap();
    assert_eq!(server.await_established(before, SOON).unwrap(), before);
}

async fn slow_but_living(server: &Server) {
    let pool = pool(server);
    let blocking = blocking::ResourcePool::from(pool.clone());
    let started = Instant::now();
    let thread =
        tokio::spawn(on_thread(move || blocking.clickhouse().unwrap().query_rows::<u8>(SLOW).map(|rows| rows.len())));
    let rows = pool.clickhouse().await.unwrap().query(SLOW).fetch_all::<u8>().await.unwrap();
    assert_eq!((rows.len(), thread.await.unwrap().unwrap()), (8, 8));
    assert!(started.elapsed() >= Duration::from_secs(8), "{:?}", started.elapsed());
    assert_eq!(pool.status().resource("clickhouse").unwrap().generation, 1);
}

async fn bad_input(server: &Server) {
    let with = |config: ClickHouseConfig| {
        let mut options = Options::default();
        options.retry.attempts = 1;
        ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build()
    };
    let malformed = ["", "http//", "http://", "ftp://localhost", "http://localhost:99999/", "http://u:%ff@localhost/"];
    let native =
        ["clickhouse://localhost:9000/", "tcp://localhost:9000/", "http://localhost:9000/", "http://localhost:9440/"];
    for url in malformed.iter().chain(&native) {
        let error = with(ClickHouseConfig::url(*url)).unwrap_err();
        assert!(matches!(&error, Error::Config { key, .. } if key == "clickhouse.url"), "{url}: {error}");
        assert!(!native.contains(url) || error.to_string().contains("8123"), "{url}: {error}");
    }
    let two = ClickHouseConfig::url("http://localhost/one?database=two");
    assert!(matches!(with(two), Err(Error::Config { .. })));

    let at = |port: u16, path: &str| {
        ClickHouseConfig::url(format!("http://quant:s3cr3t%40%3A%2F%25@127.0.0.1:{port}/{path}"))
    };
    let mut no_database = config(server);
    no_database.url = Some(server.url().replace(&format!("/{}", server.database()), "/nowhere").into());
    let black_hole = BlackHole::start().unwrap();
    let bad = [
        ("wrong password", at(server.port(), server.database()), true),
        ("no such database", no_database, true),
        ("unknown host", ClickHouseConfig::url("http://no-such-host.invalid:8123/"), false),
        ("refused", at(1, ""), false),
        ("black hole", at(black_hole.port(), ""), false),
    ];
    for (what, config, permanent) in bad {
        let pool = with(config).unwrap();
        let (acquired, took) = stopped(pool.clickhouse()).await;
        let error = acquired.unwrap_err();
        println!("clickhouse: {what}, after {took:?}: {error}");
        assert!(took < FROZEN, "{what}: {took:?}");
        assert!(matches!(&error, Error::Connect(connect) if connect.permanent == permanent), "{what}: {error:?}");
        for text in [error.to_string(), format!("{error:?}"), format!("{pool:?}"), format!("{:?}", pool.status())] {
            assert!(!text.contains("s3cr3t"), "{text}");
        }
        // The pool still works.
        let clickhouse = pool.clickhouse_with("other", self::config(server)).await.unwrap();
        clickhouse.query("SELECT 1").execute().await.unwrap();
    }
}

async fn errors(server: &Server) {
    let pool = pool(server);
    let blocking = blocking::ResourcePool::from(pool.clone());
    let (unknown, halfway) = on_thread(move || {
        let clickhouse = blocking.clickhouse().unwrap();
        let halfway = clickhouse
            .query_iter::<u8>("SELECT throwIf(number = 200000) FROM numbers(300000) SETTINGS max_block_size = 1000")
            .unwrap()
            .collect::<Result<Vec<_>, _>>();
        (clickhouse.execute("SELECT nothing").unwrap_err(), halfway.unwrap_err())
    })
    .await;
    assert!(matches!(unknown, Error::Operation { .. }), "{unknown}");
    assert!(unknown.to_string().contains("Code: 47"), "{unknown}");
    assert!(matches!(halfway, Error::Operation { .. } | Error::Lost { .. }), "{halfway}");
    // The driver's error is the source.
    let cause = std::error::Error::source(&unknown).unwrap();
    assert!(matches!(cause.downcast_ref(), Some(clickhouse::error::Error::BadResponse(_))), "{cause:?}");

    #[derive(Debug, Row, Deserialize)]
    struct Wrong {
        #[allow(dead_code)]
        n: String,
    }
    // With validation, the error names the wrong type.
    if matches!(server, Server::Today(_)) {
        let clickhouse = pool.clickhouse().await.unwrap();
        let error = clickhouse.query("SELECT toUInt8(1) AS n").fetch_one::<Wrong>().await.unwrap_err();
        assert!(matches!(error, clickhouse::error::Error::SchemaMismatch(_)), "{error:?}");
        let mut off = config(server);
        off.validation = Some(false);
        let pool = pool_of(off);
        let error = pool.clickhouse().await.unwrap().query("SELECT toUInt8(1) AS n").fetch_one::<Wrong>().await;
        assert!(!matches!(error, Err(clickhouse::error::Error::SchemaMismatch(_))), "{error:?}");
    }
}

async fn guard_outlives(server: &Server) {
    // The thread is outside of this test's runtime.
    thread::scope(|scope| scope.spawn(|| guard_outlives_on_a_thread(server)).join()).unwrap();
}

fn guard_outlives_on_a_thread(server: &Server) {
    let pool = pool(server);
    // The connection would not make progress if it lived on this runtime, because nothing drives it.
    let first = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let control = bare(server);
    let clickhouse = first.block_on(async {
        control.query("SELECT 1").execute().await.unwrap();
        let clickhouse = pool.clickhouse().await.unwrap();
        clickhouse.query("SELECT 1").execute().await.unwrap();
        clickhouse
    });
    let second = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let once = async |client: &Client, limit| tokio::time::timeout(limit, client.query("SELECT 1").execute()).await;
    let hangs = second.block_on(once(&control, Duration::from_secs(2)));
    assert!(hangs.is_err(), "the bare driver's connection was to hang with its runtime: {hangs:?}");
    second.block_on(once(&clickhouse, SOON)).unwrap().unwrap();
    drop(first);
    second.block_on(once(&clickhouse, SOON)).unwrap().unwrap();
}

async fn waits_where_it_may(server: &Server) {
    // The thread is outside of this test's runtime.
    thread::scope(|scope| scope.spawn(|| waits_where_it_may_on_a_thread(server)).join()).unwrap();
}

fn waits_where_it_may_on_a_thread(server: &Server) {
    let several = tokio::runtime::Runtime::new().unwrap();
    let single = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let fresh = || blocking::ResourcePool::from(pool(server));
    // On a worker it waits by `block_in_place`, and in `spawn_blocking` of either runtime it just waits.
    let pool = fresh();
    let on_worker = several.spawn(async move { pool.clickhouse().unwrap().query_rows::<u8>("SELECT 1").unwrap() });
    assert_eq!(several.block_on(on_worker).unwrap(), [1]);
    for runtime in [&several, &single] {
        let pool = fresh();
        let used = runtime.spawn_blocking(move || pool.clickhouse().unwrap().query_rows::<u8>("SELECT 1").unwrap());
        assert_eq!(runtime.block_on(used).unwrap(), [1]);
    }
    // On a current-thread runtime it cannot wait. It gets a ready lease, but a query would have to wait.
    let pool = fresh();
    let refused = single.block_on(async { pool.clickhouse().map(drop) });
    assert!(matches!(refused, Err(Error::InAsyncContext { .. })), "{refused:?}");
    drop(pool.clickhouse().unwrap());
    let clickhouse = single.block_on(async { pool.clickhouse() }).unwrap();
    let refused = single.block_on(async { clickhouse.execute("SELECT 1") });
    assert!(matches!(refused, Err(Error::InAsyncContext { .. })), "{refused:?}");
    clickhouse.execute("SELECT 1").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clickhouse_native_port_is_refused_with_the_remedy() {
    let server = old();
    let native = server.clickhouse().unwrap().native_port().unwrap();
    let pool =
        pool_of(ClickHouseConfig::url(server.url().replace(&format!(":{}/", server.port()), &format!(":{native}/"))));
    let error = pool.clickhouse().await.unwrap_err();
    assert!(matches!(&error, Error::Connect(connect) if connect.permanent && connect.attempts == 1), "{error:?}");
    assert!(error.to_string().contains("use the HTTP port, 8123 by default"), "{error}");
}

/// The driver's validation fails on a server of before 2019. The pool asks for the server's version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clickhouse_old_server_needs_validation_off() {
    let server = old();
    let control = bare(&server).with_validation(true).query("SELECT toUInt8(1)").fetch_one::<u8>().await.unwrap_err();
    assert!(control.to_string().contains("Code: 73"), "{control}");
    let clickhouse = pool(&server);
    assert_eq!(clickhouse.clickhouse().await.unwrap().query("SELECT toUInt8(1)").fetch_one::<u8>().await.unwrap(), 1);
}

// Traps of the driver, each with the bare driver as control.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clickhouse_trap_nagle_delays_one_row_inserts() {
    const INSERTS: u32 = 150;
    let server = old();
    server.sql("CREATE TABLE bars (code String, day UInt32, close Float64) ENGINE = Memory");
    let pool = pool(&server);
    let ours = Client::clone(&*pool.clickhouse().await.unwrap());
    // The number of inserts that waited for the other side's delayed acknowledgement of 40 ms.
    let stalled = async |client: &Client| {
        insert(client, 0..1).await.unwrap();
        let mut stalled = 0;
        for day in 0..INSERTS {
            let started = Instant::now();
            insert(client, day..=day).await.unwrap();
            stalled += u32::from(started.elapsed() > Duration::from_millis(30));
        }
        stalled
    };
    let bare = bare(&server);
    let (mut ours_fewest, mut bare_stalled) = (u32::MAX, 0);
    // On a busy machine few of the driver's inserts stall, and any client has some that do. But a client with that delay
    // has no round without one.
    for _ in 0..60 {
        ours_fewest = ours_fewest.min(stalled(&ours).await);
        bare_stalled += stalled(&bare).await;
        if bare_stalled >= 10 && ours_fewest == 0 {
            break;
        }
    }
    println!(
        "clickhouse: one-row inserts that stalled: {ours_fewest} at best, with the bare driver {bare_stalled} in all"
    );
    assert!(bare_stalled >= 10 && ours_fewest == 0, "{ours_fewest} {bare_stalled}");
}

async fn trap_credentials(server: &Server) {
    let control = Client::default().with_url(server.url()).with_validation(false);
    let refused = control.query("SELECT currentDatabase()").fetch_one::<String>().await;
    // A server without the driver's default user refuses. Another one uses its own default database.
    assert_ne!(refused.ok(), Some(server.database().to_owned()));
    let by_path = config(server);
    let base = format!("http://127.0.0.1:{}/", server.port());
    let query: String = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs([("user", server.user()), ("password", server.password()), ("database", server.database())])
        .finish();
    let by_query = ClickHouseConfig::url(format!("{base}?{query}"));
    let mut by_parts = ClickHouseConfig::default();
    by_parts.host = "127.0.0.1".to_owned();
    by_parts.port = server.port();
    by_parts.user = server.user().to_owned();
    by_parts.password = Some(server.password().into());
    by_parts.database = server.database().to_owned();
    let mut by_both = by_parts.clone();
    by_both.url = Some(base.into());
    for config in [by_path, by_query, by_parts, by_both] {
        let shown = format!("{config:?}");
        let pool = pool_of(config);
        let clickhouse = pool.clickhouse().await.unwrap();
        assert_eq!(
            clickhouse.query("SELECT currentDatabase()").fetch_one::<String>().await.unwrap(),
            server.database()
        );
        assert!(!shown.contains(server.password()), "{shown}");
    }
    let port = server.port().to_string();
    let environment = [
        ("CLICKHOUSE_IP", "127.0.0.1"),
        ("CLICKHOUSE_PORT", &port),
        ("CLICKHOUSE_USER", server.user()),
        ("CLICKHOUSE_PASSWORD", server.password()),
        ("CLICKHOUSE_DATABASE", server.database()),
    ];
    for environment in [&environment[..], &[("CLICKHOUSE_URL", server.url())]] {
        let pool = ResourcePool::builder().environment(environment.iter().copied()).build().unwrap();
        let clickhouse = pool.clickhouse().await.unwrap();
        assert_eq!(
            clickhouse.query("SELECT currentDatabase()").fetch_one::<String>().await.unwrap(),
            server.database()
        );
    }
}

async fn trap_unended_insert(server: &Server) {
    server.sql(TABLE);
    // The driver aborts an insert that is not ended, through the pool too. But the pool counts it as work until it is
    // gone. So a drain waits for a caller that means to end it. `insert_rows` always ends its own insert.
    let control = bare(server);
    let mut rows = control.insert::<Bar>("bars").await.unwrap();
    rows.write(&bar(1)).await.unwrap();
    drop(rows);
    let pool = pool(server);
    let clickhouse = pool.clickhouse().await.unwrap();
    let mut rows = clickhouse.insert::<Bar>("bars").await.unwrap();
    rows.write(&bar(1)).await.unwrap();
    let busy = || pool.status().resource("clickhouse").unwrap().usage.in_use == Some(1);
    until_async(SOON, async || busy()).await;
    drop(rows);
    until_async(SOON, async || !busy()).await;
    let blocking = blocking::ResourcePool::from(pool.clone());
    on_thread(move || blocking.clickhouse().unwrap().insert_rows("bars", [bar(2)])).await.unwrap();
    assert_eq!(server.sql("SELECT day FROM bars"), "2");
}

async fn trap_unbounded(server: &Server) {
    const CALLS: usize = 30;
    let all_at_once = |client: &Client, sql: &str| -> Vec<_> {
        (0..CALLS).map(|_| tokio::spawn(client.query(sql).execute())).collect()
    };
    // The control: the bare driver opens a connection for each. The server refuses a longer sleep.
    let calls = all_at_once(&bare(server), "SELECT sleep(3)");
    until_async(SOON, async || server.established().unwrap() >= CALLS).await;
    for call in calls {
        call.await.unwrap().unwrap();
    }
    until_async(Duration::from_secs(40), async || server.established().unwrap() == 0).await;
    let pool = pool_of(config(server).max_connections(4));
    let clickhouse = pool.clickhouse().await.unwrap();
    let usage = || pool.status().resource("clickhouse").unwrap().usage;
    let calls = all_at_once(&clickhouse, "SELECT sleep(0.2)");
    while !calls.iter().all(tokio::task::JoinHandle::is_finished) {
        // The prober's connection does not count as the users'.
        assert!(usage().open <= Some(4), "{:?}", usage());
        assert!(server.established().unwrap() < CALLS / 2);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(usage().max, Some(4));

    // A caller that gets no connection within the acquire timeout learns the reason of its wait.
    let mut options = Options::default();
    options.acquire_timeout = Duration::from_millis(500);
    let one = config(server).max_connections(1);
    let pool = ResourcePool::builder().environment([("", ""); 0]).options(options).resource(one).build().unwrap();
    let blocking = blocking::ResourcePool::from(pool);
    let error = on_thread(move || {
        let clickhouse = blocking.clickhouse().unwrap();
        let mut rows = clickhouse.query_iter::<u64>("SELECT number FROM system.numbers").unwrap();
        assert_eq!(rows.next().unwrap().unwrap(), 0);
        let error = clickhouse.execute("SELECT 1").unwrap_err();
        drop(rows);
        until(SOON, || clickhouse.execute("SELECT 1").is_ok());
        error
    })
    .await;
    assert!(matches!(error, Error::Timeout(_)), "{error}");
    assert!(
        error.to_string().contains("one of 1 connections") && error.to_string().contains("clickhouse.rs"),
        "{error}"
    );
}

async fn trap_idle_sockets(server: &Server) {
    let before = server.established().unwrap();
    // The server closes nothing itself, so the driver's own timeout of 2 s has no effect.
    let meter = Meter::start(server.port());
    let never_closes = NeverCloses::start();
    let control = Client::default().with_url(format!("http://127.0.0.1:{}", never_closes.port)).with_validation(false);
    control.query("SELECT 1").execute().await.unwrap();
    let mut config = config(server);
    config.idle_timeout = Duration::from_millis(300);
    let pool = pool_of(config);
    let clickhouse = pool.clickhouse().await.unwrap();
    let five = async |client: &Client| {
        let calls: Vec<_> = (0..5).map(|_| tokio::spawn(client.query("SELECT sleep(0.1)").execute())).collect();
        for call in calls {
            call.await.unwrap().unwrap();
        }
    };
    five(&clickhouse).await;
    let used = Instant::now();
    until_async(SOON, async || pool.status().resource("clickhouse").unwrap().usage.open == Some(0)).await;
    println!("clickhouse: idle connections were closed after {:?}", used.elapsed());
    // Only the prober's connection is left.
    until_async(SOON, async || server.established().unwrap() - before <= 1).await;
    let waited = Instant::now();
    until_async(SOON, async || waited.elapsed() > Duration::from_secs(3)).await;
    assert_eq!(never_closes.open.load(Ordering::SeqCst), 1, "the bare driver was to keep its connection");
    drop(meter);
}

/// A server that answers every request with an empty body, and never closes a connection.
struct NeverCloses {
    port: u16,
    open: Arc<AtomicUsize>,
}

impl NeverCloses {
    fn start() -> NeverCloses {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = NeverCloses { port: listener.local_addr().unwrap().port(), open: Arc::default() };
        let open = Arc::clone(&server.open);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (mut client, open) = (client.unwrap(), Arc::clone(&open));
                thread::spawn(move || {
                    open.fetch_add(1, Ordering::SeqCst);
                    let mut buffer = [0; 4096];
                    while let Ok(1..) = client.read(&mut buffer) {
                        client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
                    }
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        server
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clickhouse_trap_no_connect_timeout() {
    let black_hole = BlackHole::start().unwrap();
    let url = format!("http://127.0.0.1:{}/", black_hole.port());
    let limit = Duration::from_millis(700);
    let mut config = ClickHouseConfig::url(&*url);
    config.connect_timeout = limit;
    let mut options = Options::default();
    options.retry.attempts = 1;
    let pool = ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().unwrap();
    let control =
        tokio::spawn(tokio::time::timeout(limit * 4, Client::default().with_url(url).query("SELECT 1").execute()));
    let (acquired, took) = stopped(pool.clickhouse()).await;
    let error = acquired.unwrap_err();
    assert!(took < 2 * limit, "{took:?}");
    assert!(error.to_string().contains("no answer within 700ms"), "{error}");
    assert!(control.await.unwrap().is_err(), "the bare driver was to be waiting still");
}

async fn trap_panics(server: &Server) {
    // The thread is outside of this test's runtime.
    thread::scope(|scope| scope.spawn(|| trap_panics_on_a_thread(server)).join()).unwrap();
}

fn trap_panics_on_a_thread(server: &Server) {
    let control = bare(server);
    let panicked = catch_unwind(std::panic::AssertUnwindSafe(|| {
        futures_util::FutureExt::now_or_never(control.query("SELECT 1").execute())
    }));
    assert!(panicked.is_err(), "the bare driver was to panic");
    let tasks = pool(server);
    let pool = blocking::ResourcePool::from(tasks.clone());
    let clickhouse = pool.clickhouse().unwrap();
    clickhouse.execute(TABLE).unwrap();
    assert_eq!(clickhouse.insert_rows("bars", (0..3).map(bar)).unwrap(), 3);
    assert_eq!(clickhouse.query_rows::<u32>("SELECT day FROM bars ORDER BY day").unwrap(), [0, 1, 2]);
    // A runtime without a timer or I/O.
    let plain = tokio::runtime::Builder::new_current_thread().build().unwrap();
    plain.block_on(async {
        let clickhouse = tasks.clickhouse().await.unwrap();
        assert_eq!(clickhouse.insert_rows("bars", (3..5).map(bar)).await.unwrap(), 2);
        assert_eq!(clickhouse.query_rows::<u32>("SELECT day FROM bars ORDER BY day").await.unwrap(), [0, 1, 2, 3, 4]);
        clickhouse.execute("TRUNCATE TABLE bars").await.unwrap();
    });
}
