//! The programs in `examples/` that run until they are told to end, beside real servers that are killed, frozen and
//! restarted.

#![cfg(all(
    feature = "macros",
    feature = "mongodb",
    feature = "rabbitmq",
    feature = "clickhouse",
    feature = "redis",
    feature = "tower"
))]
#![allow(missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use common::until;
use mongodb::bson::{Document, doc};
use resource_pool::blocking::RabbitMq;
use resource_pool::config::RabbitMqConfig;
use resource_pool::rabbitmq::Message;
use services::{Kind, Service};

/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(60);
const SIGTERM: i32 = 15;

/// A running example.
struct Program {
    child: Child,
    lines: Receiver<String>,
}

impl Program {
    fn start(name: &str, variables: &[(&str, &str)]) -> Program {
        let tests = env::current_exe().unwrap();
        // Cargo builds the examples with the tests, beside them.
        let example = tests.parent().and_then(Path::parent).unwrap().join("examples").join(name);
        assert!(example.exists(), "`cargo test --test` builds no examples; run `cargo build --examples`");
        let mut command = Command::new(example);
        command.envs(variables.iter().copied()).env("RUST_BACKTRACE", "0");
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok()));
        Program { child, lines }
    }

    /// The rest of the next line that begins like this.
    fn hear(&self, beginning: &str) -> String {
        let began = Instant::now();
        loop {
            let left = SOON.saturating_sub(began.elapsed());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|error| panic!("no {beginning:?}: {error}"));
            if let Some(rest) = line.strip_prefix(beginning) {
                return rest.to_owned();
            }
        }
    }

    fn terminate(&self) {
        assert!(Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap().success());
    }

    fn end(mut self) -> ExitStatus {
        until(SOON, || self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It has ended, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(kinds: &[Kind]) -> Vec<Service> {
    Service::start_all(kinds).unwrap()
}

/// The broker's view of a queue.
fn queue(rabbitmq: &Service, name: &str) -> Option<services::AmqpQueue> {
    let queues = rabbitmq.rabbitmq().ok()?.queues(rabbitmq.database()).ok()?;
    queues.into_iter().find(|queue| queue.name == name)
}

/// One request over a connection of its own. `None` if no answer came.
fn request(address: SocketAddr, head: &str, body: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(SOON)).unwrap();
    let length = body.len();
    let head = format!("{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n");
    stream.write_all(format!("{head}content-length: {length}\r\n\r\n{body}").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
}

#[test]
fn the_web_service_answers_every_request_that_it_has_read() {
    let servers = start(&[Kind::Redis]);
    let redis = &servers[0];
    let delay = Duration::from_secs(1);
    let variables = [
        ("REDIS_URL", redis.url()),
        ("LISTEN", "127.0.0.1:0"),
        ("RESOURCE_POOL_CLOSE_DELAY_MS", "1000"),
        ("RESOURCE_POOL_CLOSE_DEADLINE_MS", "9000"),
    ];
    let web = Program::start("web", &variables);
    let address: SocketAddr = web.hear("listening on ").parse().unwrap();
    let get = |path: &str| request(address, &format!("GET {path}"), "").map(|(status, _)| status);
    assert_eq!((get("/livez"), get("/readyz"), get("/startupz")), (Some(200), Some(200), Some(200)));
    assert_eq!(request(address, "PUT /prices/000001", "9.21").unwrap().0, 204);
    assert_eq!(request(address, "GET /prices/000001", "").unwrap(), (200, "9.21".to_owned()));
    assert_eq!((get("/prices/600000"), get("/nowhere"), get("/health/livez")), (Some(404), Some(404), Some(200)));
    assert_eq!(request(address, "POST /readyz", "").unwrap().0, 405);
    assert_eq!(request(address, "HEAD /readyz", "").unwrap(), (200, String::new()));

    // A frozen server fails readiness, and not liveness.
    redis.freeze().unwrap();
    until(SOON, || get("/readyz") == Some(503));
    assert_eq!(get("/livez"), Some(200));
    redis.thaw().unwrap();
    until(SOON, || get("/readyz") == Some(200));

    let (is_over, answered, unanswered) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    // A connection that is refused, or reset before its head was read, is no failed request.
                    match get("/prices/000001") {
                        Some(200) => drop(answered.fetch_add(1, Ordering::SeqCst)),
                        Some(status) => panic!("an answer of {status}"),
                        None => drop(unanswered.fetch_add(1, Ordering::SeqCst)),
                    }
                }
            });
        }
        until(SOON, || answered.load(Ordering::SeqCst) > 100);
        let gets = || -> usize {
            let stats = redis.redis().unwrap().command(&["INFO", "commandstats"]).unwrap();
            let line = stats.lines().find(|line| line.starts_with("cmdstat_get:calls=")).unwrap();
            line["cmdstat_get:calls=".len()..].split(',').next().unwrap().parse().unwrap()
        };
        let (gets_before, answered_before) = (gets(), answered.load(Ordering::SeqCst));
        web.terminate();
        let since = Instant::now();
        until(SOON, || get("/readyz") == Some(503));
        let lowered = since.elapsed();
        // The promise is 100 ms. A busy machine takes its time for a request, which the control beside it shows.
        let control = Instant::now();
        assert_eq!(get("/livez"), Some(200));
        assert!(lowered < Duration::from_millis(100) + 8 * control.elapsed(), "readiness fell after {lowered:?}");
        assert_eq!(unanswered.load(Ordering::SeqCst), 0, "it serves through the delay");
        let ended = web.end();
        let took = since.elapsed();
        is_over.store(true, Ordering::SeqCst);
        assert_eq!(ended.signal(), Some(SIGTERM));
        assert!(took >= delay && took < Duration::from_millis(9000 + 1000 + 3000), "it ended after {took:?}");
        // Each GET at Redis stands for a request whose head the service has read.
        let begun = gets() - gets_before;
        until(SOON, || answered.load(Ordering::SeqCst) - answered_before + 8 >= begun);
    });
    let total = answered.load(Ordering::SeqCst);
    println!("{total} requests answered, {} refused after the end", unanswered.load(Ordering::SeqCst));
}

#[test]
fn the_collector_loses_no_tick() {
    let servers = start(&[Kind::RabbitMq, Kind::ClickHouse, Kind::Redis]);
    let [rabbitmq, clickhouse, redis] = &servers[..] else { unreachable!() };
    let variables = [("AMQP_URL", rabbitmq.url()), ("CLICKHOUSE_URL", clickhouse.url()), ("REDIS_URL", redis.url())];
    let collector = Program::start("collector", &variables);
    collector.hear("collecting");
    let broker = RabbitMq::scoped(RabbitMqConfig::url(rabbitmq.url())).unwrap();
    let tick = |number: u32| {
        let code = format!("00000{}", number % 3);
        let tick = format!(r#"{{"code":"{code}","at":{},"price":{number},"volume":100}}"#, 1000 + number * 10);
        assert!(broker.publish(Message::new("ticks", code, tick)).unwrap().is_confirmed());
    };
    let count = |clickhouse: &Service| -> Option<usize> {
        clickhouse.clickhouse().ok()?.query("SELECT uniqExact(code, at) FROM ticks").ok()?.trim().parse().ok()
    };
    (0..300).for_each(tick);
    until(SOON, || count(clickhouse) == Some(300));
    clickhouse.kill().unwrap();
    (300..600).for_each(tick);
    clickhouse.restart().unwrap();
    until(SOON, || count(clickhouse) == Some(600));
    clickhouse.freeze().unwrap();
    (600..700).for_each(tick);
    clickhouse.thaw().unwrap();
    until(SOON, || count(clickhouse) == Some(700));
    rabbitmq.kill().unwrap();
    rabbitmq.restart().unwrap();
    // The collector consumes again.
    until(SOON, || queue(rabbitmq, "collector").is_some_and(|queue| queue.consumers == 1));
    tick(700);
    until(SOON, || count(clickhouse) == Some(701));
    collector.terminate();
    assert_eq!(collector.end().signal(), Some(SIGTERM));
    assert_eq!(redis.redis().unwrap().command(&["GET", "price:000000"]).unwrap(), "699.0");
    assert_eq!(queue(rabbitmq, "collector").map(|queue| queue.ready + queue.unacked), Some(0));
}

#[test]
fn the_worker_books_each_order_and_puts_bad_ones_aside() {
    let servers = start(&[Kind::RabbitMq, Kind::Mongo]);
    let [rabbitmq, mongo] = &servers[..] else { unreachable!() };
    let worker = Program::start("worker", &[("AMQP_URL", rabbitmq.url()), ("MONGODB_URI", mongo.url())]);
    worker.hear("working");
    let broker = RabbitMq::scoped(RabbitMqConfig::url(rabbitmq.url())).unwrap();
    let order = |number: u32, volume: u32| {
        let order = format!(r#"{{"id":"{number}","code":"000001","price":9.21,"volume":{volume}}}"#);
        assert!(broker.publish(Message::new("", "orders", order)).unwrap().is_confirmed());
    };
    (0..100).for_each(|number| order(number, 100));
    order(100, 0);
    mongo.kill().unwrap();
    (200..300).for_each(|number| order(number, 100));
    mongo.restart().unwrap();
    let orders = mongodb::sync::Client::with_uri_str(mongo.url()).unwrap();
    let orders = orders.database("quantaxis").collection::<Document>("orders");
    until(SOON, || orders.count_documents(doc! {}).run().is_ok_and(|count| count == 200));
    let messages = |name: &str| queue(rabbitmq, name).map(|queue| queue.ready + queue.unacked);
    until(SOON, || messages("orders.dead") == Some(1));
    worker.terminate();
    worker.hear("200 done, ");
    assert_eq!(worker.end().signal(), Some(SIGTERM));
    assert_eq!(messages("orders"), Some(0));
    let booked = orders.find(doc! {}).run().unwrap().map(|order| order.unwrap().get_str("_id").unwrap().to_owned());
    let expected: BTreeSet<_> = (0..100).chain(200..300).map(|number| number.to_string()).collect();
    assert_eq!(booked.collect::<BTreeSet<_>>(), expected);
}

#[test]
fn named_instances_come_from_the_environment() {
    let servers = start(&[Kind::Redis, Kind::Redis]);
    let variables =
        [("RESOURCE_POOL_REDIS_CACHE_URL", servers[0].url()), ("RESOURCE_POOL_REDIS_LOCKS_URL", servers[1].url())];
    let named = Program::start("named", &variables);
    assert_eq!(named.hear("cached: "), "true, locked: false");
    named.hear("cache ");
    named.hear("locks ");
    assert!(named.end().success());
}

/// A feed of quotes that can be gone, silent, or well.
struct Feed {
    address: SocketAddr,
    is_silent: Arc<AtomicBool>,
    connections: Arc<parking_lot::Mutex<Vec<TcpStream>>>,
}

impl Feed {
    fn start() -> Feed {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, is_silent) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let connections: Arc<parking_lot::Mutex<Vec<TcpStream>>> = Arc::default();
        let (silent, open) = (Arc::clone(&is_silent), Arc::clone(&connections));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                open.lock().push(stream.try_clone().unwrap());
                let silent = Arc::clone(&silent);
                thread::spawn(move || {
                    let mut answers = stream.try_clone().unwrap();
                    for line in BufReader::new(stream).lines().map_while(Result::ok) {
                        if !silent.load(Ordering::SeqCst) && writeln!(answers, "re: {line}").is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Feed { address, is_silent, connections }
    }
}

#[test]
fn a_resource_of_ones_own_is_watched_and_comes_back() {
    let feed = Feed::start();
    let program = Program::start("own_resource", &[("FEED", &feed.address.to_string())]);
    program.hear(r#"Ok("re: QUOTE 000001")"#);
    // The server hangs up on every connection.
    for stream in feed.connections.lock().drain(..) {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
    program.hear("Err(");
    program.hear(r#"Ok("re: QUOTE 000001")"#);
    feed.is_silent.store(true, Ordering::SeqCst);
    // The prober cuts a connection whose server is silent, so that nobody waits for it.
    program.hear("Err(");
    feed.is_silent.store(false, Ordering::SeqCst);
    program.hear(r#"Ok("re: QUOTE 000001")"#);
    program.terminate();
    assert_eq!(program.end().signal(), Some(SIGTERM));
}
