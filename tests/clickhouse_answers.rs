//! ClickHouse's answers, or their absence, and the pool's reaction: quotas, rights, full servers, calls that are cut,
//! and queries that are dropped.

#![cfg(feature = "clickhouse")]
#![allow(missing_docs)]

mod common;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clickhouse::{Client, Row};
use common::{Within, eventually, until_async};
use resource_pool::config::ClickHouseConfig;
use resource_pool::{ConnectError, Error, Health, ResourcePool, State, blocking};
use serde::{Deserialize, Serialize};
use services::{Kind, Proxy, Service};

/// The limit for any expected change. A busy machine needs less.
const SOON: Duration = Duration::from_secs(20);
const TABLE: &str = "CREATE TABLE bars (code String, day UInt32) ENGINE = MergeTree ORDER BY (code, day)";

#[derive(Debug, Clone, PartialEq, Row, Serialize, Deserialize)]
struct Bar {
    code: String,
    day: u32,
}

fn bar(day: u32) -> Bar {
    Bar { code: "AAPL".to_owned(), day }
}

fn server() -> Service {
    Service::start(Kind::ClickHouse).expect("a ClickHouse")
}

/// A server that also has these users, profiles and quotas. It leaves closing idle connections to the pool.
fn server_with(users: &str, profiles: &str, quotas: &str) -> Service {
    let server = server();
    let path = server.dir().join("users.xml");
    let text = fs::read_to_string(&path).unwrap();
    let more = [("</users>", users), ("</profiles>", profiles), ("</quotas>", quotas)];
    let text = more.iter().fold(text, |text, (end, more)| text.replace(end, &format!("{more}{end}")));
    fs::write(&path, text).unwrap();
    let path = server.dir().join("config.xml");
    let text = fs::read_to_string(&path).unwrap();
    let longer = "<keep_alive_timeout>600</keep_alive_timeout></yandex>";
    fs::write(&path, text.replace("</yandex>", longer)).unwrap();
    server.restart().unwrap();
    server
}

fn user(name: &str, profile: &str, quota: &str) -> String {
    format!(
        "<{name}><password>secret</password><networks><ip>127.0.0.1</ip></networks><profile>{profile}</profile>\
         <quota>{quota}</quota></{name}>"
    )
}

fn at(port: u16, user: &str) -> ClickHouseConfig {
    ClickHouseConfig::url(format!("http://{user}:secret@127.0.0.1:{port}/desk"))
}

fn pool_of(config: ClickHouseConfig) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).resource(config).build().expect("a pool")
}

fn bare(port: u16, user: &str) -> Client {
    let url = format!("http://127.0.0.1:{port}");
    Client::default().with_url(url).with_user(user).with_password("secret").with_database("desk").with_validation(false)
}

fn generation(pool: &ResourcePool) -> (State, u64) {
    let status = pool.status();
    let clickhouse = status.resource("clickhouse").unwrap();
    (clickhouse.state, clickhouse.generation)
}

/// Runs a blocking call on a thread outside of the test's runtime.
async fn on_thread<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    thread::spawn(move || drop(sender.send(call())));
    receiver.within(SOON).await.expect("the thread panicked")
}

/// Opens more connections than the test needs. An HTTP client may open one while another is on its way back, and it
/// closes a connection whose answer nobody awaits any more.
async fn open_some(clickhouse: &Client) {
    let slow: Vec<_> = (0..8).map(|_| tokio::spawn(clickhouse.query("SELECT sleep(0.5)").execute())).collect();
    for query in slow {
        query.await.unwrap().unwrap();
    }
}

async fn refused(config: ClickHouseConfig) -> Arc<ConnectError> {
    match pool_of(config).clickhouse().within(SOON).await {
        Err(Error::Connect(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// A proxy in front of a server. It counts requests, and answers some itself if a test tells it to.
struct Front {
    port: u16,
    pings: Arc<AtomicUsize>,
    queries: Arc<AtomicUsize>,
    /// Whether `/ping` is an unknown path here.
    knows_no_ping: Arc<AtomicBool>,
    /// Whether it hangs up on every new client.
    is_full: Arc<AtomicBool>,
}

impl Front {
    fn of(server: &Service) -> Front {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let front = Front {
            port: listener.local_addr().unwrap().port(),
            pings: Arc::default(),
            queries: Arc::default(),
            knows_no_ping: Arc::default(),
            is_full: Arc::default(),
        };
        let (pings, queries) = (Arc::clone(&front.pings), Arc::clone(&front.queries));
        let (knows_no_ping, is_full) = (Arc::clone(&front.knows_no_ping), Arc::clone(&front.is_full));
        let target = server.port();
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                if is_full.load(Ordering::SeqCst) {
                    continue;
                }
                let server = TcpStream::connect(("127.0.0.1", target)).unwrap();
                let answers = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let (pings, queries) = (Arc::clone(&pings), Arc::clone(&queries));
                let knows_no_ping = Arc::clone(&knows_no_ping);
                thread::spawn(move || forward(answers.0, answers.1, |_| None));
                thread::spawn(move || {
                    forward(client, server, |request| {
                        let is_ping = request.starts_with(b"GET /ping");
                        let counted = if is_ping { &pings } else { &queries };
                        counted.fetch_add(1, Ordering::SeqCst);
                        let not_found = b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone";
                        (is_ping && knows_no_ping.load(Ordering::SeqCst)).then(|| not_found.to_vec())
                    })
                });
            }
        });
        front
    }
}

/// Forwards the requests that `answer` does not answer.
fn forward(mut from: TcpStream, mut to: TcpStream, answer: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    let mut buffer = [0; 65_536];
    while let Ok(size @ 1..) = from.read(&mut buffer) {
        let passed = match answer(&buffer[..size]) {
            Some(answer) => from.write_all(&answer),
            None => to.write_all(&buffer[..size]),
        };
        if passed.is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_is_the_users_own_and_its_refusal_warns() {
    const QUOTA: usize = 12;
    let interval = format!("<small><interval><duration>36000</duration><queries>{QUOTA}</queries></interval></small>");
    let server = server_with(&user("small", "default", "small"), "", &interval);
    let front = Front::of(&server);
    let pool = pool_of(at(front.port, "small"));
    let clickhouse = pool.clickhouse().await.unwrap();
    let asked = front.queries.load(Ordering::SeqCst);
    // As many pings as would use up the quota.
    until_async(SOON, async || front.pings.load(Ordering::SeqCst) > QUOTA).await;
    assert_eq!(front.queries.load(Ordering::SeqCst), asked);
    let mut answered = 0;
    let refusal = loop {
        match clickhouse.query("SELECT 1").execute().await {
            Ok(()) => answered += 1,
            Err(error) => break error,
        }
    };
    assert!(refusal.to_string().contains("Code: 201"), "{refusal}");
    assert!(answered + asked >= QUOTA && answered >= QUOTA - 2, "{answered} of {QUOTA}, {asked} to connect");
    let health = pool.health_check().await;
    let entry = health.entry("clickhouse").unwrap();
    assert_eq!(entry.health, Health::Warn, "{health}");
    assert!(entry.error.as_ref().unwrap().contains("Code: 201"), "{health}");
    let pings = front.pings.load(Ordering::SeqCst);
    until_async(SOON, async || front.pings.load(Ordering::SeqCst) > pings + 4).await;
    assert_eq!(generation(&pool), (State::Ready, 1));
    // Connecting is refused as well, but not permanently.
    let error = refused(at(server.port(), "small")).await;
    assert!(!error.permanent && error.to_string().contains("Code: 201"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_answer_to_a_ping_proves_life() {
    let server = server_with(&user("small", "default", "default"), "", "");
    let front = Front::of(&server);
    front.knows_no_ping.store(true, Ordering::SeqCst);
    let pool = pool_of(at(front.port, "small"));
    let clickhouse = pool.clickhouse().await.unwrap();
    until_async(SOON, async || front.pings.load(Ordering::SeqCst) > 6).await;
    clickhouse.query("SELECT 1").execute().await.unwrap();
    assert_eq!(generation(&pool), (State::Ready, 1));
    assert_eq!(pool.health_check().await.entry("clickhouse").unwrap().health, Health::Pass);
}

/// The prober finds no room. The pool cuts neither calls in flight nor idle connections for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_is_not_lost() {
    let server = server_with(&user("small", "default", "default"), "", "");
    let front = Front::of(&server);
    let mut config = at(front.port, "small");
    config.idle_timeout = 4 * SOON;
    let pool = pool_of(config);
    let clickhouse = pool.clickhouse().await.unwrap();
    open_some(&clickhouse).await;
    let slow = tokio::spawn({
        let query = clickhouse.query("SELECT sleep(1) FROM numbers(5) SETTINGS max_block_size = 1");
        async move { query.fetch_all::<u8>().await }
    });
    until_async(SOON, async || pool.status().resource("clickhouse").unwrap().usage.in_use == Some(1)).await;
    front.is_full.store(true, Ordering::SeqCst);
    let control = bare(front.port, "small").query("SELECT 1").execute().await;
    assert!(control.is_err());
    assert_eq!(slow.within(SOON).await.unwrap().unwrap().len(), 5);
    assert_eq!(generation(&pool), (State::Ready, 1));
    // Now all connections are idle, and the probe uses one of them.
    let begun = Instant::now();
    until_async(SOON, async || begun.elapsed() > Duration::from_secs(3)).await;
    // The check may miss while the probe uses that connection.
    until_async(SOON, async || pool.health_check().await.entry("clickhouse").unwrap().health == Health::Pass).await;
    assert_eq!(generation(&pool), (State::Ready, 1));
}

/// The server accepts no new connection, but answers its users.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_probe_is_no_strike_while_users_are_answered() {
    let server = server_with(&user("small", "default", "default"), "", "");
    let proxy = Proxy::start(server.port()).unwrap();
    let mut config = at(proxy.port(), "small");
    config.idle_timeout = 4 * SOON;
    let pool = pool_of(config);
    let clickhouse = pool.clickhouse().await.unwrap();
    open_some(&clickhouse).await;
    proxy.refuse().unwrap();
    let control = bare(proxy.port(), "small").query("SELECT 1").execute().await;
    assert!(control.is_err());
    for _ in 0..40 {
        clickhouse.query("SELECT sleep(0.1)").execute().await.unwrap();
    }
    assert_eq!(generation(&pool), (State::Ready, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_may_not_change_settings_is_served() {
    let profiles = "<viewing><readonly>1</readonly></viewing>";
    let server = server_with(&user("viewer", "viewing", "default"), profiles, "");
    let control = bare(server.port(), "viewer").with_setting("max_threads", "4").query("SELECT 1").execute().await;
    assert!(control.unwrap_err().to_string().contains("Code: 164"));
    let pool = pool_of(at(server.port(), "viewer"));
    assert_eq!(pool.clickhouse().await.unwrap().query("SELECT 1").fetch_one::<u8>().await.unwrap(), 1);
    let threads = blocking::ResourcePool::from(pool.clone());
    assert_eq!(on_thread(move || threads.clickhouse()?.query_rows::<u8>("SELECT 2")).await.unwrap(), [2]);
    pool.reconnect("clickhouse").await.unwrap();
    assert_eq!(pool.clickhouse().await.unwrap().query("SELECT 3").fetch_one::<u8>().await.unwrap(), 3);

    // The user may not set this setting.
    let mut config = at(server.port(), "viewer").setting("max_execution_time", "7");
    config.max_threads = 3;
    let error = refused(config).await;
    assert!(error.permanent && error.attempts == 1, "{error}");
    let text = error.to_string();
    assert!(text.contains("set `settings` without max_execution_time, `max_threads` to 0"), "{text}");
    assert!(!text.contains("block_size"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_attempt_mends_is_told_at_the_first_with_the_remedy() {
    let server = server_with(&user("small", "default", "default"), "", "");
    let port = server.port();
    let wrong = |url: &str| ClickHouseConfig::url(url.replace("PORT", &port.to_string()));
    // A server of another protocol.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let other_port = other.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in other.incoming() {
            let mut client = client.unwrap();
            let _ = client.read(&mut [0; 4096]);
            let _ = client.write_all(b"-ERR unknown command 'POST'\r\n");
        }
    });
    for (config, remedy) in [
        (wrong("http://small:wrong@127.0.0.1:PORT/desk"), "set `user` and `password`"),
        (wrong("http://nobody:secret@127.0.0.1:PORT/desk"), "set `user` and `password`"),
        (wrong("http://small:secret@127.0.0.1:PORT/nowhere"), "create the database \"nowhere\" first"),
        (at(other_port, "small"), "use ClickHouse's HTTP port"),
    ] {
        let error = refused(config).await;
        assert!(error.permanent && error.attempts == 1, "{error}");
        assert!(error.to_string().contains(remedy), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    let proxy = Proxy::start(port).unwrap();
    proxy.refuse().unwrap();
    let error = refused(at(proxy.port(), "small")).await;
    assert!(!error.permanent && error.attempts == 3, "{error}");
    assert!(
        error.to_string().contains("Connection refused") && error.to_string().contains("`host` and `port`"),
        "{error}"
    );
}

/// The calls use the driver's own client, and the thread's verbs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_that_is_cut_leads_to_the_pools_error() {
    let server = server_with(&user("small", "default", "default"), "", "");
    server.clickhouse().unwrap().query(TABLE).unwrap();
    for cut in ["frozen", "killed", "reset"] {
        let of_60 = "FROM numbers(60) SETTINGS max_block_size = 1";
        let read = &format!("/* a comment */ SELECT sleep(1) AS {cut} {of_60}");
        let change = &format!("INSERT INTO bars SELECT toString(sleep(1)) AS {cut}, 1 {of_60}");
        let proxy = Proxy::start(server.port()).unwrap();
        let pool = pool_of(at(proxy.port(), "small"));
        let clickhouse = Client::clone(&*pool.clickhouse().await.unwrap());
        let threads = blocking::ResourcePool::from(pool.clone());
        let threads = on_thread(move || blocking::ClickHouse::clone(&threads.clickhouse().unwrap())).await;
        let mut rows = clickhouse.insert::<Bar>("bars").await.unwrap();
        rows.write(&bar(1)).await.unwrap();
        let native = |sql: &str| tokio::spawn(clickhouse.query(sql).execute());
        let (reading, changing) = (native(read), native(change));
        let blocking = |sql: &str| {
            let (threads, sql) = (threads.clone(), sql.to_owned());
            tokio::spawn(on_thread(move || threads.query_rows::<String>(&sql)))
        };
        let (reading_thread, changing_thread) = (blocking(read), blocking(change));
        until_async(SOON, async || pool.status().resource("clickhouse").unwrap().usage.in_use == Some(5)).await;
        // A request that is in use may not have left this process yet.
        let begun = || server.clickhouse().unwrap().running().unwrap();
        until_async(SOON, async || begun().iter().filter(|sql| sql.contains(cut)).count() == 4).await;
        match cut {
            "frozen" => server.freeze().unwrap(),
            "killed" => server.kill().unwrap(),
            _ => proxy.cut(),
        }
        let ending = tokio::spawn(rows.end());
        let behind = |error: clickhouse::error::Error| match Error::behind(&error) {
            Some(ours) => ours.clone(),
            None => panic!("{cut}: {error:?}"),
        };
        let error = behind(reading.within(SOON).await.unwrap().unwrap_err());
        assert!(matches!(&error, Error::Lost { resource, .. } if &**resource == "clickhouse"), "{cut}: {error}");
        let error = behind(changing.within(SOON).await.unwrap().unwrap_err());
        assert!(matches!(&error, Error::OutcomeUnknown { .. }), "{cut}: {error}");
        // An insert that still writes when it is cut gets no cause from its driver.
        match ending.within(SOON).await.unwrap().unwrap_err() {
            error if cut != "frozen" && error.to_string().contains("channel closed") => {}
            error => assert!(matches!(behind(error), Error::OutcomeUnknown { .. }), "{cut}"),
        }
        let error = reading_thread.within(SOON).await.unwrap().unwrap_err();
        assert!(matches!(&error, Error::Lost { .. }), "{cut}: {error}");
        let error = changing_thread.within(SOON).await.unwrap().unwrap_err();
        assert!(matches!(&error, Error::OutcomeUnknown { .. }), "{cut}: {error}");
        // The next call fails with the pool's error too.
        if cut != "reset" {
            let error = native("INSERT INTO bars VALUES ('x', 1)").within(SOON).await.unwrap().unwrap_err();
            match Error::behind(&error) {
                Some(ours) => assert!(ours.is_transient() || cut == "killed", "{cut}: {ours}"),
                // Before it sends, the HTTP client may find that the server has closed the connection.
                None => assert!(cut == "killed" && format!("{error:?}").contains("Canceled"), "{cut}: {error:?}"),
            }
        }
        match cut {
            "frozen" => server.thaw().unwrap(),
            "killed" => server.restart().unwrap(),
            _ => {}
        }
        eventually(SOON, async || clickhouse.query("SELECT 1").execute().await.ok()).await;
    }
}

/// A query with parameters is sent as a form.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_with_parameters_only_reads_as_well() {
    let bridge = services::ClickHouseBridge::start().expect("today's ClickHouse");
    let pool = pool_of(ClickHouseConfig::url(bridge.url()));
    let clickhouse = pool.clickhouse().await.unwrap();
    let query = clickhouse.query("SELECT sleep({n: UInt8}) FROM numbers(60) SETTINGS max_block_size = 1");
    let reading = tokio::spawn(query.param("n", 1).execute());
    until_async(SOON, async || pool.status().resource("clickhouse").unwrap().usage.in_use == Some(1)).await;
    bridge.freeze().unwrap();
    let error = reading.within(SOON).await.unwrap().unwrap_err();
    assert!(matches!(Error::behind(&error), Some(Error::Lost { .. })), "{error:?}");
}

/// A server that answers the first query, and any other with an error that never ends. The first query connects.
struct Endless {
    port: u16,
    written: Arc<AtomicUsize>,
}

impl Endless {
    fn start(answers_first: bool) -> Endless {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endless = Endless { port: listener.local_addr().unwrap().port(), written: Arc::default() };
        let written = Arc::clone(&endless.written);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, written) = (client.unwrap(), Arc::clone(&written));
                thread::spawn(move || serve(client, &written, answers_first));
            }
        });
        endless
    }
}

fn serve(mut client: TcpStream, written: &AtomicUsize, answers_first: bool) -> io::Result<()> {
    let mut buffer = [0; 65_536];
    while let size @ 1.. = client.read(&mut buffer)? {
        let request = String::from_utf8_lossy(&buffer[..size]);
        if request.starts_with("GET /ping") || answers_first && request.contains("version()") {
            client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n\x0718.16.1")?;
            continue;
        }
        client.write_all(b"HTTP/1.1 500 Internal Server Error\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        loop {
            client.write_all(b"10000\r\n")?;
            client.write_all(&[b'x'; 0x10000])?;
            client.write_all(b"\r\n")?;
            written.fetch_add(0x10000, Ordering::SeqCst);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_without_an_end_is_not_read_to_its_end() {
    /// The bytes in the sockets' buffers, and the bytes that the client reads.
    const MOST: usize = 64 << 20;
    let server = Endless::start(true);
    let control = tokio::spawn(bare(server.port, "small").query("SELECT 1").execute());
    until_async(SOON, async || server.written.load(Ordering::SeqCst) > 2 * MOST).await;
    control.abort();

    let server = Endless::start(true);
    let pool = pool_of(at(server.port, "small"));
    let clickhouse = pool.clickhouse().await.unwrap();
    let error = clickhouse.query("SELECT 1").execute().within(SOON).await.unwrap_err();
    assert!(error.to_string().contains("500 Internal Server Error"), "{error}");
    let threads = blocking::ResourcePool::from(pool);
    let error = on_thread(move || threads.clickhouse()?.query_rows::<u8>("SELECT 1")).await.unwrap_err();
    assert!(matches!(error, Error::Operation { .. }), "{error}");
    assert!(server.written.load(Ordering::SeqCst) < MOST, "{:?}", server.written);

    let server = Endless::start(false);
    let error = refused(at(server.port, "small")).await;
    assert!(error.to_string().contains("500 Internal Server Error"), "{error}");
    assert!(server.written.load(Ordering::SeqCst) < MOST, "{:?}", server.written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_is_dropped_ends_at_the_server() {
    let profiles = "<viewing><readonly>1</readonly></viewing>";
    let users = user("small", "default", "default") + &user("viewer", "viewing", "default");
    let server = server_with(&users, profiles, "");
    let running = |mark: &str| server.clickhouse().unwrap().running().unwrap().iter().any(|sql| sql.contains(mark));
    let marked = |mark: &str| format!("SELECT sleep(1), '{mark}' FROM numbers(60) SETTINGS max_block_size = 1");
    // A read-only user may set nothing in the statement.
    let plain = |mark: &str| format!("SELECT count(), '{mark}' FROM system.numbers");
    let drops = async |client: &Client, mark: &str, sql: String| {
        let query = tokio::spawn(client.query(&sql).execute());
        until_async(SOON, async || running(mark)).await;
        query.abort();
    };
    // With the bare driver, or with the option off, the query goes on.
    drops(&bare(server.port(), "small"), "bare", marked("bare")).await;
    let mut config = at(server.port(), "small");
    config.cancel_dropped = false;
    let off = pool_of(config).clickhouse().await.unwrap();
    drops(&off, "off", marked("off")).await;

    let pool = pool_of(at(server.port(), "small"));
    let clickhouse = pool.clickhouse().await.unwrap();
    drops(&clickhouse, "native", marked("native")).await;
    until_async(SOON, async || !running("native")).await;
    let threads = blocking::ResourcePool::from(pool.clone());
    let sql = marked("blocking");
    let rows = on_thread(move || threads.clickhouse().unwrap().query_iter::<(u8, String)>(&sql).unwrap()).await;
    until_async(SOON, async || running("blocking")).await;
    drop(rows);
    until_async(SOON, async || !running("blocking")).await;
    let viewer = pool_of(at(server.port(), "viewer")).clickhouse().await.unwrap();
    drops(&viewer, "viewer", plain("viewer")).await;
    until_async(SOON, async || !running("viewer")).await;
    // A query that changes something goes on, and so does one with an id of its own.
    server.clickhouse().unwrap().query(TABLE).unwrap();
    let insert = "INSERT INTO bars SELECT toString(sleep(1)), 77 FROM numbers(60) SETTINGS max_block_size = 1";
    drops(&clickhouse, "77", insert.to_owned()).await;
    drops(&Client::clone(&clickhouse).with_setting("query_id", "mine"), "own", marked("own")).await;
    for mark in ["bare", "off", "77", "own"] {
        assert!(running(mark), "{mark}");
    }
    assert_eq!(clickhouse.query("SELECT 1").fetch_one::<u8>().await.unwrap(), 1);
    server.kill().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_driver_cannot_send_or_read_is_told_with_the_remedy() {
    let bridge = services::ClickHouseBridge::start().expect("today's ClickHouse");
    let pool = blocking::ResourcePool::from(pool_of(ClickHouseConfig::url(bridge.url())));
    let errors = on_thread(move || {
        let clickhouse = pool.clickhouse().unwrap();
        assert_eq!(clickhouse.query_rows::<String>("SELECT 'why??'").unwrap(), ["why?"]);
        ["SELECT 'why?'", "SELECT number FROM numbers(3) FORMAT JSON;"].map(|sql| {
            (
                clickhouse.query_rows::<String>(sql).unwrap_err(),
                clickhouse.query_iter::<String>(sql).and_then(|rows| rows.collect::<Result<Vec<_>, _>>()).unwrap_err(),
            )
        })
    })
    .await;
    for ((first, second), remedy) in errors.iter().zip(["`??` stands for the character", "leave out FORMAT"]) {
        assert!(first.to_string().contains(remedy), "{first}");
        assert!(second.to_string().contains(remedy), "{second}");
    }
}
