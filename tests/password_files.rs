//! Passwords in files, which every connect reads again, against real servers.

#![cfg(all(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
#![allow(missing_docs)]

mod common;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use common::{eventually, unhurried, until_async};
use redis::{AsyncCommands, Commands};
use resource_pool::config::{RabbitMqConfig, RedisConfig};
use resource_pool::rabbitmq::{Consume, Message, Queue};
use resource_pool::{Error, ResourcePool, What, blocking};
use services::{Kind, Service};

/// A guard against hanging.
const SOON: Duration = Duration::from_secs(30);

/// A file with this text.
fn file(name: &str, text: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("password-{name}-{}", std::process::id()));
    fs::write(&path, text).unwrap();
    path
}

/// The server's URL without its password.
fn without_password(server: &Service) -> String {
    let (login, rest) = server.url().rsplit_once('@').unwrap();
    let (login, _) = login.rsplit_once(':').unwrap();
    format!("{login}@{rest}")
}

/// A wrong password is corrected in the file, and the next connect succeeds. The refusal is not permanent, because the
/// file may just be replaced.
async fn corrected(kind: Kind, url: &str, variable: &str) {
    let server = Service::start(kind).unwrap();
    let path = file(kind.name(), "wrong\n");
    let mut options = unhurried();
    // ClickHouse is asked until the budget ends.
    (options.circuit, options.retry.budget) = (Duration::ZERO, Duration::from_secs(10));
    let environment = [(url, without_password(&server)), (variable, path.display().to_string())];
    let pool = ResourcePool::builder().environment(environment).options(options).build().unwrap();
    let name = if kind == Kind::Mongo { "mongo" } else { kind.name() };
    let error = pool.warm_up([name]).await.remove(0).1.unwrap_err();
    assert!(matches!(&error, Error::Connect(error) if !error.permanent), "{kind}: {error}");
    assert!(error.is_transient(), "{kind}: {error}");
    if ![Kind::Postgres, Kind::MySql].contains(&kind) {
        assert!(error.to_string().contains(&format!("password are of {url} and {variable}")), "{kind}: {error}");
    }
    assert!(!error.to_string().contains("cannot be read"), "{error}");
    fs::write(&path, format!("{}\r\n", server.password())).unwrap();
    pool.warm_up([name]).await.remove(0).1.unwrap_or_else(|error| panic!("{kind}: {error}"));
    assert!(pool.close_all().await.all_closed());
    fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn password_in_a_file_is_read_at_the_next_connect() {
    tokio::join!(
        corrected(Kind::Mongo, "MONGODB_URI", "MONGODB_PASSWORD_FILE"),
        corrected(Kind::RabbitMq, "AMQP_URL", "QAPUBSUB_PWD_FILE"),
        corrected(Kind::ClickHouse, "CLICKHOUSE_URL", "CLICKHOUSE_PASSWORD_FILE"),
        corrected(Kind::Redis, "REDIS_URL", "REDIS_PASSWORD_FILE"),
    );
    #[cfg(feature = "postgres")]
    corrected(Kind::Postgres, "DATABASE_URL", "POSTGRES_PASSWORD_FILE").await;
    #[cfg(feature = "mysql")]
    corrected(Kind::MySql, "DATABASE_URL", "MYSQL_PASSWORD_FILE").await;
}

/// A Redis changes a user's password and ends that user's connections. The pool comes back with the new password, for
/// tasks and for threads. While the file is gone, connecting fails with the remedy, and may succeed later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn password_of_a_redis_rotates_without_a_restart() {
    let server = Service::start(Kind::Redis).unwrap();
    let is_now = |password: &str| {
        let rule = format!(">{password}");
        server
            .redis()
            .unwrap()
            .command(&["ACL", "SETUSER", "rotating", "on", "resetpass", &rule, "~*", "&*", "+@all"])
            .unwrap();
    };
    is_now("first");
    let path = file("rotating", "first\n");
    let mut config = RedisConfig::url(format!("redis://rotating@127.0.0.1:{}", server.port()));
    config = config.password_file(path.as_path());
    let pool =
        ResourcePool::builder().environment([("", ""); 0]).options(unhurried()).resource(config).build().unwrap();
    let threads = blocking::ResourcePool::from(pool.clone());
    let mut redis = pool.redis().await.unwrap();
    let () = redis.set("key", 1).await.unwrap();
    let generation = pool.status().resource("redis").unwrap().generation;

    fs::write(&path, "second\n").unwrap();
    is_now("second");
    server.redis().unwrap().command(&["CLIENT", "KILL", "USER", "rotating"]).unwrap();
    until_async(SOON, async || pool.status().resource("redis").unwrap().generation > generation).await;
    let value: u32 = eventually(SOON, async || redis.get("key").await.ok()).await;
    assert_eq!(value, 1);
    drop(redis.exclusive().await.expect("a new connection"));
    let of_threads = threads.clone();
    let get = move || of_threads.redis().unwrap().get::<_, u32>("key").unwrap();
    assert_eq!(tokio::task::spawn_blocking(get).await.unwrap(), 1);

    fs::remove_file(&path).unwrap();
    let error = redis.exclusive().await.map(drop).unwrap_err().to_string();
    let path_in_it = path.display().to_string();
    assert!(error.contains(&path_in_it) && error.contains("put it back"), "{error}");
    fs::write(&path, "second").unwrap();
    drop(redis.exclusive().await.expect("the file is back"));
    assert!(pool.close_all().await.all_closed());
    fs::remove_file(path).unwrap();
}

/// A server may still quote a password that the file had two connects ago.
#[tokio::test]
async fn passwords_that_a_file_had_before_are_in_no_error() {
    let server = Service::start(Kind::Redis).unwrap();
    server.redis().unwrap().command(&["ACL", "SETUSER", "turning", "on", "nopass", "~*", "&*", "+@all"]).unwrap();
    let path = file("turning", "p4ss-0");
    let mut options = unhurried();
    options.circuit = Duration::ZERO;
    options.retry.attempts = 1;
    // The server refuses this subcommand by its name.
    let config = RedisConfig::url(format!("redis://turning@127.0.0.1:{}", server.port()))
        .password_file(path.as_path())
        .on_connect(["CLIENT", "p4ss-1"]);
    let pool = ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().unwrap();
    let error = async || {
        let error = pool.redis().await.unwrap_err();
        format!("{error} {error:?}")
    };
    let before = error().await;
    assert!(before.contains("p4ss-1"), "nobody knows that it will be a password: {before}");
    for turn in 1..=4 {
        fs::write(&path, format!("p4ss-{turn}")).unwrap();
        let told = error().await;
        assert!(told.contains("withheld") && !told.contains("p4ss"), "{turn}: {told}");
    }
    fs::remove_file(path).unwrap();
}

/// The same on PostgreSQL. The connections of the old password are ended.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn password_of_a_postgres_rotates_without_a_restart() {
    use resource_pool::config::PostgresConfig;

    let server = Service::start(Kind::Postgres).unwrap();
    server.postgres().unwrap().query("CREATE ROLE rotating LOGIN PASSWORD 'first'").unwrap();
    let path = file("postgres-rotating", "first\n");
    let mut config = PostgresConfig::url(format!("postgres://rotating@127.0.0.1:{}/postgres", server.port()));
    config = config.password_file(path.as_path());
    let pool =
        ResourcePool::builder().environment([("", ""); 0]).options(unhurried()).resource(config).build().unwrap();
    let mut postgres = pool.postgres().await.unwrap();
    let one: i32 = sqlx::query_scalar("SELECT 1").fetch_one(&mut postgres).await.unwrap();
    assert_eq!(one, 1);
    let raw = postgres.raw_pool();
    let one: i32 = sqlx::query_scalar("SELECT 1").fetch_one(&raw).await.unwrap();
    assert_eq!(one, 1);
    drop(postgres);

    fs::write(&path, "second\n").unwrap();
    server.postgres().unwrap().query("ALTER ROLE rotating PASSWORD 'second'").unwrap();
    server
        .postgres()
        .unwrap()
        .query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotating'")
        .unwrap();
    let two: i32 = eventually(SOON, async || {
        let mut postgres = pool.postgres().await.ok()?;
        sqlx::query_scalar("SELECT 2").fetch_one(&mut postgres).await.ok()
    })
    .await;
    assert_eq!(two, 2);
    // The driver's own pool logs in with the new password, too.
    let three: i32 = sqlx::query_scalar("SELECT 3").fetch_one(&raw).await.unwrap();
    assert_eq!(three, 3);
    assert!(pool.close_all().await.all_closed());
    fs::remove_file(path).unwrap();
}

/// A consumer of RabbitMQ outlives the time in which the broker knows the new password and the file still has the old
/// one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn password_of_a_rabbitmq_rotates_under_a_consumer() {
    let server = Service::start(Kind::RabbitMq).unwrap();
    let ctl = |arguments: &[&str]| server.rabbitmq().unwrap().ctl(arguments).unwrap();
    ctl(&["add_user", "rotating", "first"]);
    ctl(&["set_permissions", "-p", "/", "rotating", ".*", ".*", ".*"]);
    let path = file("rabbitmq-rotating", "first\n");
    let config = RabbitMqConfig::url(format!("amqp://rotating@127.0.0.1:{}/%2f", server.port()));
    let config = config.password_file(path.as_path());
    let pool =
        ResourcePool::builder().environment([("", ""); 0]).options(unhurried()).resource(config).build().unwrap();
    let rabbit = pool.rabbitmq().await.unwrap();
    rabbit.declare_queue(Queue::new("queue")).await.unwrap();
    let mut consumer = rabbit.consume(Consume::from("queue")).await.unwrap();

    let mut events = pool.events();
    ctl(&["change_password", "rotating", "second"]);
    let close = ["close_all_user_connections", "rotating", "the password has changed"];
    if let Err(error) = server.rabbitmq().unwrap().ctl(&close) {
        // The loss of the first has the pool close the second, which may be gone when the broker comes to it.
        assert!(error.to_string().contains("noproc"), "{error}");
    }
    let refused = async {
        loop {
            match events.next().await.expect("an event").what {
                What::AttemptFailed { error, .. } if error.to_string().contains("ACCESS_REFUSED") => return,
                What::ConnectFailed { error } => panic!("the pool has given up: {error}"),
                _ => {}
            }
        }
    };
    tokio::time::timeout(SOON, refused).await.expect("a refusal");
    fs::write(&path, "second\n").unwrap();
    drop(eventually(SOON, async || rabbit.publish(Message::new("", "queue", "text")).await.ok()).await);
    let delivery = tokio::time::timeout(SOON, consumer.next()).await.expect("a delivery in time").unwrap().unwrap();
    assert_eq!(delivery.data(), b"text");
    delivery.ack().await.unwrap();
    drop((consumer, rabbit));
    assert!(pool.close_all().await.all_closed());
    fs::remove_file(path).unwrap();
}

/// The same on PostgreSQL, where a statement of the hook quotes the password.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn passwords_that_a_file_had_before_are_in_no_error_of_postgres() {
    use resource_pool::config::PostgresConfig;

    let server = Service::start(Kind::Postgres).unwrap();
    server.postgres().unwrap().query("CREATE ROLE turning LOGIN PASSWORD 'p4ss-0'").unwrap();
    let path = file("postgres-turning", "p4ss-0");
    let mut options = unhurried();
    options.circuit = Duration::ZERO;
    // The pool gives up soon, because no further attempt mends the statement.
    options.retry.budget = Duration::from_millis(100);
    let config = PostgresConfig::url(format!("postgres://turning@127.0.0.1:{}/postgres", server.port()))
        .password_file(path.as_path())
        .on_connect(|connection| {
            Box::pin(async move { sqlx::query("SELECT \"p4ss-1\"").execute(connection).await.map(drop) })
        });
    let pool = ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().unwrap();
    for turn in 1..=4 {
        fs::write(&path, format!("p4ss-{turn}")).unwrap();
        server.postgres().unwrap().query(&format!("ALTER ROLE turning PASSWORD 'p4ss-{turn}'")).unwrap();
        let error = pool.postgres().await.map(drop).unwrap_err();
        let told = format!("{error} {error:?}");
        assert!(told.contains("withheld") && !told.contains("p4ss"), "{turn}: {told}");
    }
    fs::remove_file(path).unwrap();
}
