//! Tests of the kind against a real server, with all that `adapter` gives it.

#![allow(missing_docs)]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lines::blocking::LinesPool;
use lines::{Lines, LinesConfig};
use resource_pool::config::Options;
use resource_pool::{Error, Health, ResourcePool, What, blocking};
use services::{Kind, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// The limit within which a frozen server must show as an error.
const FROZEN: Duration = Duration::from_secs(5);
/// A limit against hanging. It is longer than any wait that ends well.
const SOON: Duration = Duration::from_secs(20);

fn server() -> Service {
    Service::start(Kind::Redis).unwrap()
}

/// The server's URL, in the form of this kind.
fn url(server: &Service) -> String {
    let url = server.url().replacen("redis://", "lines://", 1);
    url.rsplit_once('/').unwrap().0.to_owned()
}

fn file(name: &str, text: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.toml"));
    fs::write(&path, text).unwrap();
    path
}

fn pool(server: &Service, size: usize) -> ResourcePool {
    let text = format!("[lines]\nurl = {:?}\npool_size = {size}\n", url(server));
    let file = file(&format!("pool-{}", server.port()), &text);
    let builder = ResourcePool::builder().environment([("", ""); 0]).kind::<LinesConfig>();
    builder.config_file(file).build().unwrap()
}

async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, future).await.expect("it hangs")
}

/// Waits until the server answers again.
async fn until_answered(lines: &Lines) {
    let ask = async || lines.connection().await?.ask("PING").await;
    let answered = async {
        while ask().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(SOON, answered).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_section_of_its_own_makes_a_resource_that_tasks_and_threads_use() {
    let server = server();
    let pool = pool(&server, 2);
    let lines = pool.kind::<LinesConfig>().await.unwrap();
    let mut connection = lines.connection().await.unwrap();
    assert_eq!(connection.ask("SET answer 42").await.unwrap(), "+OK");
    let several = connection.ask("PING\r\nPING").await.unwrap_err();
    assert!(matches!(several, Error::Operation { .. }), "{several}");
    drop(connection);
    let threads = blocking::ResourcePool::from(pool.clone());
    let answer = tokio::task::spawn_blocking(move || threads.lines().unwrap().ask("INCR answer").unwrap());
    assert_eq!(answer.await.unwrap(), ":43");
    assert_eq!(pool.health_check().await.entry("lines").unwrap().health, Health::Pass);
    let status = pool.status();
    let status = status.resource("lines").unwrap();
    assert!(status.endpoint.starts_with("lines://127.0.0.1:") && !status.endpoint.contains('@'), "{}", status.endpoint);
    assert_eq!((status.usage.max, status.usage.in_use, status.usage.idle), (Some(2), Some(0), Some(1)));
    drop(lines);
    let report = pool.close_all().await;
    assert!(report.all_closed() && report.step("lines").is_some(), "{report}");
    assert!(matches!(pool.kind::<LinesConfig>().await, Err(Error::Closed { .. })));
    assert_eq!(server.await_established(0, SOON).unwrap(), 0);
}

#[test]
fn keys_variables_and_files_are_named_where_they_cannot_be_used() {
    let builder = |text: &str, variables: &[(&str, &str)]| {
        let file = file(&format!("wrong-{}", text.len()), text);
        let builder = ResourcePool::builder().environment(variables.iter().copied()).kind::<LinesConfig>();
        builder.config_file(file)
    };
    let wrong = |text: &str| match builder(text, &[]).build() {
        Err(Error::Config { key, problem }) => (key, problem),
        other => panic!("{other:?}"),
    };
    let (key, problem) = wrong("[lines]\npool_sise = 2\n");
    assert!(
        key == "lines.pool_sise" && problem.contains("unknown field") && problem.contains(".toml"),
        "{key}: {problem}"
    );
    assert_eq!(wrong("[lines]\npool_size = 0\n").0, "lines.pool_size");
    assert_eq!(wrong("[named.lines.other]\nport = 0\n").0, "named.lines.other.port");
    assert_eq!(wrong("[lines]\npassword = \"secret\"\n").0, "lines.user");
    assert_eq!(wrong("lines = 1\n").0, "lines");
    assert_eq!(wrong("[lines]\nurl = \"lines://user@host\"\n").0, "lines.password");
    assert_eq!(wrong("[lines]\nurl = \"lines://user:a%0d%0aFLUSHALL@host\"\n").0, "lines.user");
    assert_eq!(wrong("[lines]\nurl = \"lines://host/0\"\n").0, "lines.url");
    let (key, problem) = wrong("[lines]\nurl = \"http://secret@host\"\n");
    assert!(key == "lines.url" && !problem.contains("secret"), "{key}: {problem}");

    // A bad variable is an error of this resource alone.
    let pool: blocking::ResourcePool = builder("", &[("LINES_PORT", "none")]).build().unwrap().into();
    let error = pool.lines().unwrap_err();
    assert!(matches!(&error, Error::Config { key, .. } if key == "LINES_PORT"), "{error}");
    // A pool whose builder does not know the kind refuses it.
    let pool: blocking::ResourcePool = ResourcePool::builder().environment([("", ""); 0]).build().unwrap().into();
    assert!(matches!(pool.lines(), Err(Error::UnknownName { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_speaks_tls_is_told_apart() {
    // It answers each client with an alert, as a TLS server does that takes a line for a record.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = tokio::spawn(async move {
        loop {
            let mut client = listener.accept().await.unwrap().0;
            let _gone_already = client.read(&mut [0; 256]).await;
            let _gone_already = client.write_all(&[21, 3, 3, 0, 2, 2, 70]).await;
        }
    });
    let builder = ResourcePool::builder().environment([("LINES_PORT", port.to_string())]).kind::<LinesConfig>();
    let pool = builder.build().unwrap();
    let error = pool.kind::<LinesConfig>().await.unwrap_err();
    let Error::Connect(connect) = &error else { panic!("{error}") };
    assert!(connect.permanent && error.to_string().contains("this port speaks TLS: use liness://"), "{error}");
    assert!(pool.close_all().await.all_closed());
    serve.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variables_come_over_the_file_and_code_over_both() {
    let server = server();
    let text = format!("[lines]\nurl = {:?}\n[named.lines.second]\nurl = {:?}\n", "lines://localhost:1", url(&server));
    let builder = ResourcePool::builder().environment([("LINES_URL", url(&server))]).kind::<LinesConfig>();
    let pool = builder.config_file(file("over", &text)).build().unwrap();
    let ask = async |lines: resource_pool::Lease<Lines>| lines.connection().await.unwrap().ask("PING").await.unwrap();
    assert_eq!(ask(pool.kind::<LinesConfig>().await.unwrap()).await, "+PONG");
    assert_eq!(ask(pool.kind_named::<LinesConfig>("second").await.unwrap()).await, "+PONG");
    let mut config = LinesConfig::default();
    config.url = Some(url(&server).into());
    assert_eq!(ask(pool.kind_with("third", config.clone()).await.unwrap()).await, "+PONG");
    config.pool_size = 1;
    let taken = pool.kind_with("third", config).await.unwrap_err();
    assert!(matches!(taken, Error::NameTaken { .. }), "{taken}");
    assert!(pool.close_all().await.all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_is_told_who_holds() {
    let server = server();
    let mut options = Options::default();
    options.acquire_timeout = Duration::from_millis(50);
    let mut config = LinesConfig::default();
    (config.url, config.pool_size) = (Some(url(&server).into()), 1);
    let builder = ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config);
    let pool = builder.build().unwrap();
    let mut events = pool.events();
    let ready = async {
        loop {
            if let Ok(lines) = pool.kind::<LinesConfig>().await {
                return lines;
            }
        }
    };
    let lines = within(SOON, ready).await;
    let line = line!() + 1;
    let held = lines.connection().await.unwrap();
    let Err(Error::Timeout(error)) = lines.connection().await else { panic!("no timeout") };
    assert_eq!(error.waiting_for, "one of 1 connections");
    let [holder] = &error.holders[..] else { panic!("{error}") };
    assert_eq!((holder.site.line(), holder.exclusive), (line, true), "{error}");
    let told = std::iter::from_fn(|| events.try_next()).any(|event| matches!(event.what, What::TimedOut { .. }));
    assert!(told);
    drop(held);
    drop(lines.connection().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_ends_what_is_in_flight_and_is_come_back_to() {
    let server = server();
    let pool = pool(&server, 2);
    let lines = pool.kind::<LinesConfig>().await.unwrap();
    let mut connection = lines.connection().await.unwrap();
    let threads = blocking::ResourcePool::from(pool.clone());
    let mut on_thread = tokio::task::spawn_blocking(move || threads.lines()).await.unwrap().unwrap();
    server.freeze().unwrap();
    let began = Instant::now();
    let on_thread = tokio::task::spawn_blocking(move || on_thread.ask("PING"));
    let cut = within(2 * FROZEN, connection.ask("PING")).await.unwrap_err();
    assert!(matches!(cut, Error::Lost { .. }), "{cut}");
    assert!(within(2 * FROZEN, on_thread).await.unwrap().is_err());
    println!("in flight until {:?}", began.elapsed());
    drop(connection);
    server.thaw().unwrap();
    until_answered(&lines).await;
    assert!(pool.status().resource("lines").unwrap().generation >= 2);
    server.restart().unwrap();
    until_answered(&lines).await;
    assert!(pool.close_all().await.all_closed());
}

#[tokio::test]
async fn a_wrong_password_is_told_at_once_and_not_shown() {
    let server = server();
    let mut config = LinesConfig::default();
    let mistyped = url(&server).replacen(":p%40ss", ":mistyped", 1);
    assert_ne!(mistyped, url(&server));
    config.url = Some(mistyped.into());
    assert!(!format!("{config:?}").contains("mistyped"), "{config:?}");
    let pool = ResourcePool::builder().environment([("", ""); 0]).resource(config).build().unwrap();
    let Err(Error::Connect(error)) = pool.kind::<LinesConfig>().await else { panic!("it connects") };
    assert!(error.permanent && error.attempts == 1, "{error}");
    assert!(!format!("{error} {error:?}").contains("mistyped"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_nobody_awaited_is_nobodys() {
    let server = server();
    let pool = pool(&server, 1);
    let lines = pool.kind::<LinesConfig>().await.unwrap();
    let mut connection = lines.connection().await.unwrap();
    server.freeze().unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(20), connection.ask("SET of the-first")).await.is_err());
    server.thaw().unwrap();
    assert!(matches!(connection.ask("PING").await, Err(Error::Closed { .. })));
    drop(connection);
    let mut connection = within(SOON, lines.connection()).await.unwrap();
    assert_eq!(connection.ask("PING").await.unwrap(), "+PONG");
    // An answer of two lines is not split between two users.
    assert_eq!(connection.ask("GET nobody").await.unwrap(), "$-1");
    assert_eq!(connection.ask("SET two lines").await.unwrap(), "+OK");
    assert_eq!(connection.ask("GET two").await.unwrap(), "$5");
    drop(connection);
    assert_eq!(within(SOON, lines.connection()).await.unwrap().ask("PING").await.unwrap(), "+PONG");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_tells_who_still_has_a_connection_and_ends_it() {
    let server = server();
    let pool = pool(&server, 1);
    let mut connection = pool.kind::<LinesConfig>().await.unwrap().connection().await.unwrap();
    let report = within(SOON, pool.close_all_within(Duration::from_secs(2))).await;
    assert_eq!(report.step("lines").unwrap().held.len(), 1, "{report}");
    assert!(connection.ask("PING").await.is_err());
    assert_eq!(server.await_established(0, SOON).unwrap(), 0);
}

/// A kind may be made known twice, for example by two libraries of one program.
#[test]
fn a_kind_that_is_told_twice_is_one() {
    let builder = ResourcePool::builder().environment([("", ""); 0]).kind::<LinesConfig>().kind::<LinesConfig>();
    drop(builder.config_file(file("twice", "[named.lines.a]\nport = 1\n")).build().unwrap());
}
