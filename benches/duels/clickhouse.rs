//! ClickHouse: many rows in and out, and one row at a time, beside the `clickhouse` crate by itself.
//!
//! Both clients speak LZ4, allow the server as many threads, and write the same rows into tables that only keep them in
//! memory. So the clients' work shows and not the server's. The crate by itself does not check the rows' types, because
//! the server of this duel knows no formats with types. The pool does not check them there either.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::hint::black_box;
use std::time::Instant;

use clickhouse::{Client, Row};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use resource_pool::config::ClickHouseConfig;
use resource_pool::{ResourcePool, blocking};
use serde::{Deserialize, Serialize};
use services::Kind;
use tokio::runtime::Runtime;

use crate::drivers;
use crate::duel::{Duel, Unit};
use crate::session::{Session, milliseconds};

const TABLE: &str = "CREATE TABLE bars (code String, date UInt32, open Float64, high Float64, low Float64, \
                     close Float64, volume Float64, amount Float64) ENGINE = Memory";

#[derive(Debug, Row, Serialize, Deserialize)]
struct Bar {
    code: String,
    date: u32,
    open: f64,
    high: f64,
    low: f64,
    close: f64,
    volume: f64,
    amount: f64,
}

fn bar(number: usize) -> Bar {
    let close = 100.0 + (number % 1000) as f64 / 100.0;
    Bar {
        code: format!("{:06}", number / 5000),
        date: (number % 5000) as u32,
        open: close - 0.5,
        high: close + 1.0,
        low: close - 1.0,
        close,
        volume: (number * 7 % 100_000) as f64,
        amount: (number * 11 % 1_000_000) as f64,
    }
}

/// A client with TCP_NODELAY, as a user of the crate sets it up who knows about the delay.
fn undelayed() -> Client {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::with_http_client(hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector))
}

async fn insert(client: Client, bars: usize) {
    let mut insert = client.insert::<Bar>("bars").await.expect("an insert");
    for number in 0..bars {
        insert.write(&bar(number)).await.expect("a row");
    }
    insert.end().await.expect("all rows");
}

async fn select(client: Client, bars: usize) {
    let mut cursor = client.query("SELECT ?fields FROM bars").fetch::<Bar>().expect("a cursor");
    let mut count = 0;
    while let Some(bar) = cursor.next().await.expect("a row") {
        black_box(bar);
        count += 1;
    }
    assert_eq!(count, bars);
}

/// Recreates the table with so many bars in it.
async fn fill(client: Client, bars: usize) {
    for statement in ["DROP TABLE IF EXISTS bars", TABLE] {
        client.query(statement).execute().await.expect("a table");
    }
    if bars > 0 {
        insert(client, bars).await;
    }
}

fn in_task(runtime: &Runtime, work: impl Future<Output = ()> + Send + 'static) -> f64 {
    milliseconds(|| runtime.block_on(runtime.spawn(work)).expect("no panic"))
}

/// The time that each of so many inserts of one row takes, in milliseconds, least first. The inserts run in `block_on`,
/// as `main` of most programs does.
fn one_by_one(runtime: &Runtime, client: &Client, count: usize) -> Vec<f64> {
    runtime.block_on(fill(client.clone(), 0));
    runtime.block_on(async {
        let mut took = Vec::with_capacity(count);
        for _ in 0..count {
            let started = Instant::now();
            insert(client.clone(), 1).await;
            took.push(started.elapsed().as_secs_f64() * 1e3);
        }
        took.sort_unstable_by(f64::total_cmp);
        took
    })
}

fn mean(took: &[f64]) -> f64 {
    took.iter().sum::<f64>() / took.len() as f64
}

fn p99(took: &[f64]) -> f64 {
    took[(took.len() * 99).div_ceil(100) - 1]
}

pub(crate) fn run(session: &Session) {
    let server = session.server(Kind::ClickHouse);
    let runtime = Runtime::new().expect("a runtime");
    let builder = || ResourcePool::builder().environment([("", ""); 0]).resource(ClickHouseConfig::url(server.url()));
    let adopting = builder().runtime(runtime.handle().clone()).build().expect("a pool");
    let owning = blocking::ResourcePool::from(builder().build().expect("a pool"));
    let ours = Client::clone(&runtime.block_on(adopting.clickhouse()).expect("clickhouse"));
    let threads = owning.clickhouse().expect("clickhouse");
    let theirs = drivers::clickhouse(server.url(), Client::default())
        .with_setting("max_threads", ClickHouseConfig::default().max_threads.to_string());
    let empty = || runtime.block_on(fill(theirs.clone(), 0));

    let bars = session.times(1_000_000);
    Duel::new("clickhouse_insert", "1,000,000 bars inserted", Unit::Milliseconds)
        .contestant("resource_pool, a task", || {
            empty();
            in_task(&runtime, insert(ours.clone(), bars))
        })
        .contestant("clickhouse, a task", || {
            empty();
            in_task(&runtime, insert(theirs.clone(), bars))
        })
        .contestant("resource_pool, a thread", || {
            empty();
            milliseconds(|| assert_eq!(threads.insert_rows("bars", (0..bars).map(bar)).expect("all rows"), bars as u64))
        })
        .contestant("clickhouse, block_on", || {
            empty();
            milliseconds(|| runtime.block_on(insert(theirs.clone(), bars)))
        })
        .times_faster_than("resource_pool, a task", "clickhouse, a task", 0.95, 1.0)
        .times_faster_than("resource_pool, a thread", "clickhouse, block_on", 0.95, 1.0)
        .run(session);

    runtime.block_on(fill(theirs.clone(), bars));
    Duel::new("clickhouse_select", "1,000,000 bars read as they arrive", Unit::Milliseconds)
        .contestant("resource_pool, a task", || in_task(&runtime, select(ours.clone(), bars)))
        .contestant("clickhouse, a task", || in_task(&runtime, select(theirs.clone(), bars)))
        .contestant("resource_pool, a thread", || {
            milliseconds(|| {
                let rows = threads.query_iter::<Bar>("SELECT ?fields FROM bars").expect("rows");
                let mut count = 0;
                for bar in rows {
                    black_box(bar.expect("a row"));
                    count += 1;
                }
                assert_eq!(count, bars);
            })
        })
        .contestant("clickhouse, block_on", || milliseconds(|| runtime.block_on(select(theirs.clone(), bars))))
        .times_faster_than("resource_pool, a task", "clickhouse, a task", 0.95, 1.0)
        .times_faster_than("resource_pool, a thread", "clickhouse, block_on", 0.95, 1.0)
        .run(session);

    // With 200 samples, the slowest hundredth is more than one sample.
    let count = if session.is_smoke() { 20 } else { 200 };
    let undelayed = drivers::clickhouse(server.url(), undelayed());
    // Both rows tell of the same inserts.
    let tails = RefCell::new(BTreeMap::new());
    let clients = [("resource_pool", &ours), ("clickhouse", &theirs), ("clickhouse, TCP_NODELAY", &undelayed)];
    let mut means = Duel::new("clickhouse_row_mean", "one row inserted, the mean of 200", Unit::Milliseconds);
    for (name, client) in clients {
        let (runtime, tails) = (&runtime, &tails);
        means = means.contestant(name, move || {
            let took = one_by_one(runtime, client, count);
            tails.borrow_mut().entry(name).or_insert_with(VecDeque::new).push_back(p99(&took));
            mean(&took)
        });
    }
    means.times_faster_than("resource_pool", "clickhouse", 10.0, 30.0).run(session);
    let mut tail = Duel::new("clickhouse_row_p99", "the 99th percentile of the same", Unit::Milliseconds);
    for (name, _) in clients {
        let mut tails = tails.borrow_mut().remove(name).expect("measured above").into_iter();
        tail = tail.contestant(name, move || tails.next().expect("as many rounds"));
    }
    // A stall takes 40 ms. It waits for an acknowledgement that the system delays by that time.
    tail.at_most("resource_pool", 20.0, 5.0).run(session);

    drop(threads);
    assert!(owning.close_all().expect("a report").all_closed());
    assert!(runtime.block_on(adopting.close_all()).all_closed());
}
