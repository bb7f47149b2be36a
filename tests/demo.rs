//! Runs the demo as a user does, against real servers, and compares it with a reference in another language.

#![cfg(all(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mongodb::bson::{Document, doc};
use mongodb::sync::{Client, Collection};
use redis::Commands;
use serde_json::Value;
use services::{ClickHouseBridge, Kind, Service, shared};

const BARS: u64 = 12_154;
const CSV: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/stocks.csv");

#[test]
fn demo_async_matches_the_reference_and_a_second_run_changes_nothing() {
    let desk = Desk::shared("again");
    let first = desk.run(&["--keep"]);
    assert_complete(&first);
    assert_matches(&first, &reference(CSV));

    let (mongo, mut redis) = (desk.mongo(), desk.redis());
    let bar = mongo.find_one(doc! { "code": "AAPL", "date": "2000-03-01" }).run().unwrap().unwrap();
    // Midnight in Asia/Shanghai is 16:00 of the day before in UTC.
    assert_eq!(bar.get_f64("date_stamp").unwrap(), 951_840_000.0);
    assert_eq!(bar.get_f64("vol").unwrap(), 9_616_100.0);
    for code in ["AAPL", "FB", "GOOG", "IBM", "MSFT"] {
        let left: i64 = redis.ttl(desk.name(&format!("signal:{code}"))).unwrap();
        assert!((200..=300).contains(&left), "{code} expires in {left} s");
    }

    let second = desk.run(&[]);
    assert_eq!(first, second);
}

#[test]
fn demo_blocking_gives_the_same_numbers_to_the_last_digit() {
    let desk = Desk::shared("threads");
    let numbers = desk.run(&["--blocking", "--keep"]);
    assert_complete(&numbers);
    assert_matches(&numbers, &reference(CSV));
    assert_eq!(numbers, desk.run(&["--stored"]));
}

#[test]
fn demo_on_todays_clickhouse_gives_the_same_numbers() {
    let mut desk = Desk::shared("today");
    desk.servers[2] = ClickHouseBridge::shared();
    for facade in [&["--keep"][..], &["--blocking"]] {
        let numbers = desk.run(facade);
        assert_complete(&numbers);
        assert_matches(&numbers, &reference(CSV));
    }
}

#[test]
fn demo_a_bar_changed_in_mongodb_changes_trades_and_returns() {
    let desk = Desk::shared("mongo");
    let before = desk.run(&["--keep"]);
    let changed = changed("IBM", &["2013-03-01", "2009-06-15"]);
    for date in ["2013-03-01", "2009-06-15"] {
        let double = doc! { "$mul": { "adj_close": 2.0 } };
        let done = desk.mongo().update_one(doc! { "code": "IBM", "date": date }, double).run().unwrap();
        assert_eq!(done.modified_count, 1);
    }
    for facade in [&["--stored", "--keep"][..], &["--stored", "--keep", "--blocking"]] {
        let after = desk.run(facade);
        let expected = reference(&changed);
        for value in ["trades", "open", "total_return", "buy_and_hold", "max_drawdown", "signal"] {
            assert_close(&after["tickers"]["IBM"][value], &expected["IBM"][value], value);
        }
        assert_ne!(after["tickers"]["IBM"]["buy_and_hold"], before["tickers"]["IBM"]["buy_and_hold"]);
        assert_ne!(after["tickers"]["IBM"]["total_return"], before["tickers"]["IBM"]["total_return"]);
        // ClickHouse computes the volatility, and its data has not changed.
        assert_eq!(after["tickers"]["IBM"]["volatility"], before["tickers"]["IBM"]["volatility"]);
        assert_eq!(after["tickers"]["MSFT"], before["tickers"]["MSFT"]);
        assert_eq!(after["rows"], before["rows"]);
    }
    desk.run(&["--stored"]);
}

#[test]
fn demo_a_bar_changed_in_clickhouse_changes_volatility() {
    let desk = Desk::shared("clickhouse");
    let before = desk.run(&["--keep"]);
    let changed = changed("GOOG", &["2010-06-15"]);
    let table = desk.name("stock_day");
    let double = "code, date, open, high, low, close, adj_close * 2, vol, amount";
    desk.clickhouse(&format!(
        "INSERT INTO {table} SELECT {double} FROM {table} FINAL WHERE code = 'GOOG' AND date = '2010-06-15'"
    ));
    for facade in [&["--stored", "--keep"][..], &["--stored", "--blocking"]] {
        let after = desk.run(facade);
        let of_goog = |numbers: &Value| numbers["tickers"]["GOOG"]["volatility"].clone();
        assert_close(&of_goog(&after), &reference(&changed)["GOOG"]["volatility"], "volatility");
        assert_ne!(of_goog(&after)["2010"], of_goog(&before)["2010"]);
        assert_eq!(of_goog(&after)["2011"], of_goog(&before)["2011"]);
        assert_eq!(after["tickers"]["GOOG"]["total_return"], before["tickers"]["GOOG"]["total_return"]);
        assert_eq!(after["rows"], before["rows"]);
    }
}

#[test]
fn demo_a_bar_that_is_missing_fails_the_run() {
    let desk = Desk::shared("missing");
    desk.run(&["--keep"]);
    assert_eq!(desk.mongo().delete_one(doc! { "code": "MSFT", "date": "2005-03-01" }).run().unwrap().deleted_count, 1);
    for facade in [&["--keep", "--stored"][..], &["--stored", "--blocking"]] {
        let ended = desk.end(facade);
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stdout.contains("12153 published, 12153 confirmed, 12153 consumed"), "{ended:?}");
        assert!(ended.stderr.contains("error: of 12154 bars, not all came through"), "{ended:?}");
    }
}

#[test]
fn demo_a_prefix_keeps_to_its_own() {
    let (mine, other) = (Desk::shared("mine"), Desk::shared("other"));
    other.run(&["--keep"]);
    mine.run(&[]);
    mine.assert_no_exchange();
    assert_eq!(mine.left(), Left { documents: 0, has_table: false, signals: 0 });
    assert_eq!(other.left(), Left { documents: BARS, has_table: true, signals: 5 });
    other.run(&["--blocking"]);
    assert_eq!(other.left(), Left { documents: 0, has_table: false, signals: 0 });
}

#[test]
fn demo_prints_what_it_did() {
    let desk = Desk::shared("text");
    let ended = desk.end(&[]);
    assert!(ended.status.success(), "{ended:?}");
    for part in [
        "12154 in MongoDB, 12154 in ClickHouse; 5 signals in Redis",
        "12154 published, 12154 confirmed, 12154 consumed",
        "Price: adjusted close",
        "the NEXT bar",
        "0.1 %",
        "Asia/Shanghai",
        "Annualised volatility",
        "health",
        "closed in",
    ] {
        assert!(ended.stdout.contains(part), "no {part:?} in {ended:?}");
    }
    for name in ["mongo", "rabbitmq", "clickhouse", "redis"] {
        assert!(ended.stdout.lines().any(|line| line.starts_with(name) && line.contains("pass")), "{ended:?}");
        assert!(
            ended.stdout.lines().any(|line| line.trim().starts_with(name) && line.ends_with("closed")),
            "{ended:?}"
        );
    }
}

#[test]
fn demo_ctrl_c_in_the_middle_closes_and_leaves_nothing() {
    let servers = Service::start_all(&Kind::ALL).unwrap();
    let before: Vec<_> = servers.iter().map(|server| server.established().unwrap()).collect();
    for facade in [&[][..], &["--blocking"]] {
        let desk = Desk { servers: servers.iter().collect(), prefix: format!("stopped{}", facade.len()) };
        // The demo takes half a minute if nobody ends it.
        let mut child = desk.command(&[&["--pace", "100"], facade].concat()).spawn().unwrap();
        let mut redis = desk.redis();
        wait_for("the first signal", || {
            assert!(child.try_wait().unwrap().is_none(), "it has ended");
            !redis.keys::<_, Vec<String>>(desk.name("signal:*")).unwrap().is_empty()
        });
        drop(redis);

        let started = Instant::now();
        interrupt(&child);
        let ended = Ended::of(child);
        // A shell shows this as 130.
        assert_eq!(ended.status.signal(), Some(2), "{ended:?}");
        // That is long before the demo would end by itself.
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
        assert!(ended.stdout.contains("closed in") && ended.stdout.contains("signal 2"), "{ended:?}");
        for name in ["mongo", "rabbitmq", "clickhouse", "redis"] {
            let closed = |line: &str| line.trim().starts_with(name) && line.ends_with("closed");
            assert!(ended.stdout.lines().any(closed), "{name} in {ended:?}");
        }
        for (server, before) in desk.servers.iter().zip(&before) {
            let now = server.await_established(*before, Duration::from_secs(20)).unwrap();
            assert_eq!(now, *before, "connections to {}", server.kind());
        }
        assert!(!servers[1].log().unwrap().contains("client unexpectedly closed"));
        desk.assert_no_exchange();
        assert_eq!(desk.left(), Left { documents: 0, has_table: false, signals: 0 });
    }
}

#[test]
fn demo_without_a_server_fails_and_says_why() {
    for facade in [&[][..], &["--blocking"]] {
        let mut command = Command::new(example("quant_strategy"));
        command.args(facade).env("MONGODB_URI", "mongodb://127.0.0.1:1").env("CLICKHOUSE_URL", "http://127.0.0.1:1");
        let ended = Ended::of(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains("error: ") && ended.stderr.contains("127.0.0.1:1"), "{ended:?}");
    }
}

// Helpers of the tests.

/// The servers, and a prefix for one test's names on them.
struct Desk<'a> {
    servers: Vec<&'a Service>,
    prefix: String,
}

impl Desk<'_> {
    fn shared(name: &str) -> Desk<'static> {
        Desk { servers: Kind::ALL.map(shared).to_vec(), prefix: format!("demo{}{name}", std::process::id()) }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(example("quant_strategy"));
        for server in &self.servers {
            command.env(server.kind().url_variable(), server.url());
        }
        command.args(["--prefix", &self.prefix]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn end(&self, arguments: &[&str]) -> Ended {
        // Each demo keeps a machine busy, so several at once would only be slower.
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        Ended::of(self.command(arguments).spawn().unwrap())
    }

    fn run(&self, arguments: &[&str]) -> Value {
        let ended = self.end(&[&["--json"], arguments].concat());
        assert!(ended.status.success(), "{ended:?}");
        serde_json::from_str(&ended.stdout).unwrap()
    }

    fn name(&self, name: &str) -> String {
        format!("{}_{name}", self.prefix)
    }

    fn mongo(&self) -> Collection<Document> {
        self.bars(&Client::with_uri_str(self.servers[0].url()).unwrap())
    }

    fn bars(&self, mongo: &Client) -> Collection<Document> {
        mongo.database(&self.name("quant_strategy")).collection("stock_day")
    }

    fn clickhouse(&self, sql: &str) -> String {
        self.servers[2].clickhouse().unwrap().query(sql).unwrap()
    }

    fn redis(&self) -> redis::Connection {
        redis::Client::open(self.servers[3].url()).unwrap().get_connection().unwrap()
    }

    /// The exchanges go with their queues, and the queues go a moment after the connection.
    fn assert_no_exchange(&self) {
        let broker = self.servers[1];
        let left = || broker.rabbitmq().unwrap().ctl(&["-p", broker.database(), "list_exchanges", "name"]).unwrap();
        wait_for("the exchanges to go", || !left().contains(&self.prefix));
    }

    /// The data with this prefix that is in the stores now.
    fn left(&self) -> Left {
        let table = self.clickhouse(&format!("EXISTS TABLE {}", self.name("stock_day")));
        let signals: Vec<String> = self.redis().keys(self.name("signal:*")).unwrap();
        let mongo = Client::with_uri_str(self.servers[0].url()).unwrap();
        let documents = self.bars(&mongo).count_documents(doc! {}).run().unwrap();
        // Without the shutdown, one of the client's sockets would outlive it by ten seconds.
        mongo.shutdown().run();
        Left { documents, has_table: table.trim() == "1", signals: signals.len() }
    }
}

#[derive(Debug, PartialEq)]
struct Left {
    documents: u64,
    has_table: bool,
    signals: usize,
}

#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn of(mut child: Child) -> Self {
        let stderr = child.stderr.take().map(|mut pipe| {
            thread::spawn(move || {
                let mut text = String::new();
                pipe.read_to_string(&mut text).unwrap();
                text
            })
        });
        let mut stdout = String::new();
        child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        let stderr = stderr.map(|reader| reader.join().unwrap()).unwrap_or_default();
        Ended { status: child.wait().unwrap(), stdout, stderr }
    }
}

/// The path of an example. Cargo builds the examples with the tests, beside them.
fn example(name: &str) -> PathBuf {
    let tests = env::current_exe().unwrap();
    let example = tests.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(example.exists(), "`cargo test --test` builds no examples; run `cargo build --examples`");
    example
}

fn interrupt(child: &Child) {
    assert!(Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap().success());
}

fn wait_for(what: &str, mut come: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !come() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The output of the reference script for these bars.
fn reference(csv: impl AsRef<Path>) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/moving_average.py");
    let output = Command::new("python3").arg(script).arg(csv.as_ref()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A copy of the bars in which some adjusted closes are doubled.
fn changed(code: &str, dates: &[&str]) -> PathBuf {
    let double = |line: &str| {
        let (rest, adj_close) = line.rsplit_once(',').unwrap();
        let of_these = dates.iter().any(|date| line.starts_with(&format!("{code},{date},")));
        if of_these { format!("{rest},{}\n", 2.0 * adj_close.parse::<f64>().unwrap()) } else { format!("{line}\n") }
    };
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("changed-{code}.csv"));
    fs::write(&path, fs::read_to_string(CSV).unwrap().lines().map(double).collect::<String>()).unwrap();
    path
}

fn assert_complete(numbers: &Value) {
    let counts = |of: &str| serde_json::from_value::<BTreeMap<String, u64>>(numbers[of].clone()).unwrap();
    let all = |names: [&str; 3], counts: [u64; 3]| BTreeMap::from_iter(names.map(String::from).into_iter().zip(counts));
    assert_eq!(counts("rows"), all(["mongodb", "clickhouse", "redis"], [BARS, BARS, 5]));
    assert_eq!(counts("messages"), all(["published", "confirmed", "consumed"], [BARS; 3]));
}

fn assert_matches(numbers: &Value, reference: &Value) {
    assert_eq!(reference.as_object().unwrap().len(), 5);
    assert_eq!(numbers["tickers"].as_object().unwrap().len(), 5);
    for (code, expected) in reference.as_object().unwrap() {
        assert_close(&numbers["tickers"][code], expected, code);
    }
}

/// Compares the values. Numbers that were computed in another order may differ in their last digits.
fn assert_close(found: &Value, expected: &Value, what: &str) {
    match expected {
        Value::Object(parts) => {
            assert!(!parts.is_empty(), "{what}");
            for (name, part) in parts {
                assert_close(&found[name], part, &format!("{what} {name}"));
            }
        }
        Value::Number(number) if number.is_f64() => {
            let (found, expected) = (found.as_f64().unwrap(), number.as_f64().unwrap());
            assert!((found - expected).abs() <= 1e-9 * expected.abs(), "{what}: {found}, should be {expected}");
        }
        _ => assert_eq!(found, expected, "{what}"),
    }
}
