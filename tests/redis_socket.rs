//! A Redis that is reached by a Unix socket: both facades, a server that is frozen or killed, and the errors.

#![cfg(all(feature = "redis", unix))]
#![allow(missing_docs)]

mod common;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use common::{Stopwatch, Within, alone, until, until_async};
use fork::Fork;
use futures_util::StreamExt;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use redis::{AsyncCommands, Commands, RedisResult};
use resource_pool::adapter::KindConfig;
use resource_pool::config::{RedisConfig, TlsOptions};
use resource_pool::{Builder, Error, Health, ResourcePool, State, blocking};
use services::{Kind, Service};

/// The limit for a frozen server to show as an error.
const FROZEN: Duration = Duration::from_secs(5);

/// A guard against hanging.
const SOON: Duration = Duration::from_secs(20);

fn start() -> Service {
    Service::start(Kind::Redis).expect("a Redis")
}

fn socket(server: &Service) -> String {
    server.redis().unwrap().socket().into_os_string().into_string().unwrap()
}

/// The URL of the server's socket.
fn url(server: &Service, scheme: &str, db: u8) -> String {
    let [path, user, pass] = [&*socket(server), server.user(), server.password()]
        .map(|part| utf8_percent_encode(part, NON_ALPHANUMERIC).to_string().replace("%2F", "/"));
    format!("{scheme}://{path}?db={db}&user={user}&pass={}", pass.replace('/', "%2F"))
}

fn builder() -> Builder<ResourcePool> {
    ResourcePool::builder().environment([("", ""); 0])
}

fn pool_of(config: RedisConfig) -> ResourcePool {
    builder().options(common::unhurried()).resource(config).build().expect("a pool")
}

fn pool(server: &Service) -> ResourcePool {
    pool_of(RedisConfig::url(url(server, "unix", 0)).pool_size(4))
}

/// The connections of the pool, by the addresses that the server sees.
fn addresses(server: &Service) -> Vec<String> {
    let clients = server.redis().unwrap().clients().unwrap();
    clients.into_iter().filter(|client| client.name == "resource-pool").map(|client| client.addr).collect()
}

/// The key and the problem of a configuration that the builder refuses.
fn wrong(config: RedisConfig) -> (String, String) {
    match builder().resource(config).build() {
        Err(Error::Config { key, problem }) => (key, problem),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unix_socket_serves_both_facades() {
    let server = start();
    let by_url = RedisConfig::url(url(&server, "redis+unix", 2));
    let mut by_field = RedisConfig::default().socket(socket(&server));
    (by_field.user, by_field.password) = (Some(server.user().to_owned()), Some(server.password().into()));
    for (config, db) in [(by_url, 2), (by_field, 0)] {
        let pool = pool_of(config);
        let mut redis = pool.redis().await.unwrap();
        let () = redis.set("key", 41).await.unwrap();
        let threads = blocking::ResourcePool::from(pool.clone());
        let mut connection = threads.redis().unwrap();
        assert_eq!(connection.incr::<_, _, i64>("key", 1).unwrap(), 42);
        let mut own = redis.exclusive().await.unwrap();
        assert_eq!(own.get::<_, i64>("key").await.unwrap(), 42);
        let mut pubsub = redis.pubsub().await.unwrap();
        pubsub.subscribe("ticks").await.unwrap();
        assert_eq!(connection.publish::<_, _, i64>("ticks", "one").unwrap(), 1);
        let message = pubsub.on_message().next().within(SOON).await.unwrap();
        assert_eq!(message.get_payload::<String>().unwrap(), "one");
        assert_eq!(redis.blpop::<_, Option<(String, String)>>("never", 0.01).await.unwrap(), None);

        let report = pool.health_check().await;
        assert!(matches!(report.entry("redis").unwrap().health, Health::Pass | Health::Warn), "{report}");
        let endpoint = pool.status().resource("redis").unwrap().endpoint.to_string();
        let place = if db == 0 { String::new() } else { format!("?db={db}") };
        assert_eq!(endpoint, format!("unix://{}{place}", socket(&server)));
        let addresses = addresses(&server);
        assert!(addresses.len() >= 4, "shared, thread, exclusive and subscribed: {addresses:?}");
        // The server knows its socket by the path in its own configuration.
        assert!(addresses.iter().all(|address| address == "redis.sock:0"), "{addresses:?}");
        let in_db = server.redis().unwrap().command(&["INFO", "keyspace"]).unwrap();
        assert!(in_db.contains(&format!("db{db}:")), "{in_db}");

        drop((own, pubsub, connection));
        let report = pool.close_all().await;
        assert!(report.all_closed(), "{report}");
        assert!(redis.get::<_, i64>("key").await.is_err());
        until(SOON, || self::addresses(&server).is_empty());
    }
}

/// Probes strike, and the cut ends calls of every sort. A connection to a frozen server's socket opens, as over TCP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_behind_a_socket_is_an_error_in_time() {
    let server = start();
    let pool = pool(&server);
    let mut redis = pool.redis().await.unwrap();
    let () = redis.set("key", 1).await.unwrap();
    let mut own = redis.exclusive().await.unwrap();
    let mut pubsub = redis.pubsub().await.unwrap();
    pubsub.subscribe("ticks").await.unwrap();
    let threads = blocking::ResourcePool::from(pool.clone());
    let (mut getting, mut listening) = (threads.redis().unwrap(), threads.redis().unwrap());
    server.freeze().unwrap();
    let frozen = Stopwatch::start();
    let clock = frozen.clone();
    let get = thread::spawn(move || (getting.get::<_, i64>("key").unwrap_err(), clock.took()));
    let clock = frozen.clone();
    let listen = thread::spawn(move || {
        let end = listening.subscribe("ticks").unwrap().next().unwrap();
        (end.unwrap_err(), clock.took())
    });
    let (shared, exclusive, end) =
        tokio::join!(redis.get::<_, i64>("key"), own.blpop::<_, Option<(String, String)>>("never", 0.0), async {
            pubsub.on_message().next().await
        });
    assert!(frozen.took() < FROZEN, "{:?}", frozen.took());
    assert!(end.is_none());
    let lost = |error: &redis::RedisError| matches!(Error::behind(error), Some(Error::Lost { .. }));
    let shared = shared.unwrap_err();
    assert!(lost(&shared), "{shared}");
    let exclusive = exclusive.unwrap_err();
    assert!(matches!(Error::behind(&exclusive), Some(Error::OutcomeUnknown { .. })), "{exclusive}");
    for thread in [get, listen] {
        let (error, after) = thread.join().unwrap();
        assert!(lost(&error) && after < FROZEN, "{error} after {after:?}");
    }
    server.thaw().unwrap();
    until_async(SOON, async || redis.get::<_, i64>("key").await.is_ok()).await;
    assert!(pool.status().resource("redis").unwrap().generation >= 2);
    assert_eq!(threads.redis().unwrap().get::<_, i64>("key").unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_behind_a_socket_is_killed_and_comes_back() {
    let server = start();
    let pool = pool(&server);
    let mut redis = pool.redis().await.unwrap();
    let () = redis.set("key", 1).await.unwrap();
    server.kill().unwrap();
    assert!(redis.get::<_, i64>("key").await.is_err());
    assert_eq!(pool.health_check().await.entry("redis").unwrap().health, Health::Fail);
    server.restart().unwrap();
    until_async(SOON, async || redis.set::<_, _, ()>("key", 2).await.is_ok()).await;
    let status = pool.status();
    let status = status.resource("redis").unwrap();
    assert_eq!((status.state, status.generation), (State::Ready, 2), "{status:?}");
    let threads = blocking::ResourcePool::from(pool.clone());
    assert_eq!(threads.redis().unwrap().get::<_, i64>("key").unwrap(), 2);
    assert!(pool.close_all().await.all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_of_a_socket_says_what_to_do() {
    let server = start();
    let config = RedisConfig::url(url(&server, "unix", 0));
    let error = async |config: &RedisConfig| {
        let mut options = common::unhurried();
        options.retry.attempts = 1;
        let pool = builder().options(options).resource(config.clone()).build().unwrap();
        pool.redis().await.unwrap_err()
    };
    server.kill().unwrap();
    let nobody = error(&config).await;
    assert!(nobody.to_string().contains("no server listens on this socket") && nobody.is_transient(), "{nobody}");
    fs::remove_file(socket(&server)).unwrap();
    let missing = error(&config).await;
    assert!(missing.to_string().contains("there is no such file: start the server"), "{missing}");
    assert!(missing.to_string().contains(&socket(&server)) && missing.is_transient(), "{missing}");

    // A server of another sort listens there.
    let other = std::os::unix::net::UnixListener::bind(socket(&server)).unwrap();
    let answering = thread::spawn(move || {
        use std::io::Write;
        let _ = other.accept().unwrap().0.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let foreign = error(&config).await;
    assert!(foreign.to_string().contains("correct the path of the socket") && !foreign.is_transient(), "{foreign}");
    answering.join().unwrap();
}

#[test]
fn a_configuration_that_no_socket_fits_is_refused() {
    let path = "/run/redis.sock";
    let (key, problem) = wrong(RedisConfig::default().socket(path).tls(TlsOptions::default()));
    assert!(key == "redis.socket" && problem.contains("has no TLS"), "{key}: {problem}");
    let (key, problem) = wrong(RedisConfig::url(format!("unix://{path}")).tls(TlsOptions::default()));
    assert!(key == "redis.url" && problem.contains("has no TLS"), "{key}: {problem}");
    for path in ["".to_owned(), "/a\0b".to_owned(), format!("/{}", "a".repeat(200))] {
        let (key, problem) = wrong(RedisConfig::default().socket(&path));
        assert!(key == "redis.socket" && problem.contains("must be a path"), "{path:?}: {key}: {problem}");
    }
    let (key, problem) = wrong(RedisConfig::url("unix://host/run/redis.sock"));
    assert!(key == "redis.url" && problem.contains("names a host"), "{key}: {problem}");
}

/// A password that a typing error has put outside of its parameter would be taken for a part of the path or of the user,
/// which all reports show.
#[test]
fn a_mistyped_url_of_a_socket_does_not_show_its_password() {
    for (url, expected) in [
        ("unix:///run/redis.sock&pass=s3cret", "`&` in its path"),
        ("unix:///run/redis.sock;pass=s3cret", "`%3B`"),
        ("unix:///run/redis.sock/pass=s3cret", "`=` in its path"),
        ("unix:///run/redis.sock?user=me;pass=s3cret", "`%3B`"),
        ("unix:///run/redis.sock?pass=abc&s3cretrest", "unknown parameter"),
        ("unix:///run/redis.sock?pass=abc&password=s3cret", "unknown parameter `password`"),
    ] {
        let (key, problem) = wrong(RedisConfig::url(url));
        assert!(key == "redis.url" && problem.contains(expected) && !problem.contains("s3cret"), "{key}: {problem}");
    }
    let (key, problem) = wrong(RedisConfig::default().socket("unix:///run/redis.sock?pass=s3cret"));
    assert!(key == "redis.socket" && problem.contains("set `url`") && !problem.contains("s3cret"), "{key}: {problem}");
    let config = RedisConfig::url("unix:///run/a%26b%3Dc%3Bd.sock").settled("redis").unwrap();
    assert_eq!(config.socket.as_deref(), Some(Path::new("/run/a&b=c;d.sock")));
}

/// The environment's URL may be one of a socket, its parts complete it, and a host takes a socket of TOML away.
#[test]
fn a_socket_in_toml_or_the_environment() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("socket-{}.toml", std::process::id()));
    fs::write(&file, "[redis]\nsocket = '/run/toml.sock'\ndb = 3\n").unwrap();
    let endpoint = |variables: &[(&'static str, &'static str)]| {
        let builder = ResourcePool::builder().environment(variables.iter().copied()).config_file(&file);
        let pool = builder.build().unwrap();
        pool.status().resource("redis").unwrap().endpoint.to_string()
    };
    assert_eq!(endpoint(&[]), "unix:///run/toml.sock?db=3");
    assert_eq!(endpoint(&[("REDIS_DB", "4")]), "unix:///run/toml.sock?db=4");
    assert_eq!(endpoint(&[("REDIS_HOST", "cache")]), "redis://cache:6379/3");
    assert_eq!(endpoint(&[("REDIS_URL", "redis://cache:7/5")]), "redis://cache:7/5");
    assert_eq!(endpoint(&[("REDIS_URL", "unix:///run/env.sock?db=6"), ("REDIS_DB", "4")]), "unix:///run/env.sock?db=6");
    assert_eq!(endpoint(&[("REDIS_URL", "unix:///run/env.sock"), ("REDIS_DB", "4")]), "unix:///run/env.sock?db=4");
    let config = RedisConfig::url("unix:///run/redis.sock?user=me&pass=s3cret").settled("redis").unwrap();
    assert_eq!(
        (config.user.as_deref(), config.password.as_ref().map(|pass| pass.expose())),
        (Some("me"), Some("s3cret"))
    );
    assert!(!format!("{config:?}").contains("s3cret"), "{config:?}");
}

/// A forked child is refused on every connection, and ends none of them.
#[test]
fn a_forked_child_leaves_the_socket_alone() {
    if let Some(status) = alone("a_forked_child_leaves_the_socket_alone") {
        assert!(status.success(), "{status}");
        return;
    }
    let server = start();
    let tasks = pool(&server);
    let threads = blocking::ResourcePool::from(tasks.clone());
    let mut redis = threads.redis().unwrap();
    let () = redis.set("key", 1).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut shared = runtime.block_on(tasks.redis()).unwrap();
    let is_forked = |answer: RedisResult<i64>| matches!(Error::behind(&answer.unwrap_err()), Some(Error::Forked));
    match fork::fork().expect("a child") {
        Fork::Child => {
            let refused = is_forked(redis.get("key"))
                && is_forked(futures_util::FutureExt::now_or_never(shared.get("key")).unwrap());
            drop(redis);
            std::process::exit(if refused { 0 } else { 1 });
        }
        Fork::Parent(child) => {
            let status = fork::waitpid(child).expect("its status");
            assert_eq!(status, 0, "the child was refused");
            assert_eq!(redis.get::<_, i64>("key").unwrap(), 1);
            assert_eq!(runtime.block_on(shared.get::<_, i64>("key")).unwrap(), 1);
            assert_eq!(threads.status().resource("redis").unwrap().generation, 1);
        }
    }
}
