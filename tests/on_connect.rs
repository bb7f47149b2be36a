//! The hooks on new connections, of Redis, PostgreSQL and adapters for r2d2, against real servers.

#![cfg(any(feature = "redis", feature = "postgres"))]
#![allow(missing_docs)]

mod common;

use std::time::Duration;

#[cfg(feature = "postgres")]
use common::Within;
use common::{Stopwatch, unhurried, until_async};
use resource_pool::config::{Options, ResourceConfig};
use resource_pool::{ConnectError, Error, ResourcePool, blocking};
use services::{Kind, Service, shared};

/// A guard against hanging.
const SOON: Duration = Duration::from_secs(30);

/// The limit of an attempt to connect with a hook that hangs.
const LIMIT: Duration = Duration::from_secs(1);

fn pool_with(config: impl Into<ResourceConfig>, options: Options) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().expect("a pool")
}

/// Options with so many attempts to connect.
fn attempts(attempts: usize) -> Options {
    let mut options = unhurried();
    options.retry.attempts = attempts;
    options
}

/// Options of one attempt to connect, which may take [`LIMIT`].
fn hurried() -> Options {
    let mut options = attempts(1);
    options.connect_timeout = LIMIT;
    options
}

/// The details of an error of connecting.
#[track_caller]
fn connect_error(error: &Error) -> &ConnectError {
    match error {
        Error::Connect(error) => error,
        other => panic!("{other}"),
    }
}

#[cfg(feature = "redis")]
mod on_redis {
    use std::fs;
    use std::path::Path;

    use redis::{AsyncCommands, Commands, RedisResult};
    use resource_pool::R2d2;
    use resource_pool::config::RedisConfig;

    use super::*;

    /// The clients with this name that the server may not evict.
    fn prepared(server: &Service, name: &str) -> usize {
        let clients = server.redis().unwrap().clients().unwrap();
        let flags = |line: &str| line.split("flags=").nth(1).and_then(|rest| rest.split(' ').next()).map(str::to_owned);
        let is_prepared = |line: &str| flags(line).is_some_and(|flags| flags.contains('e'));
        clients.iter().filter(|client| client.name == name && is_prepared(&client.line)).count()
    }

    fn all(server: &Service) -> usize {
        server.redis().unwrap().clients().unwrap().len()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn redis_commands_prepare_every_new_connection() {
        let server = Service::start(Kind::Redis).unwrap();
        let config = RedisConfig::url(server.url())
            .on_connect(["CLIENT", "SETNAME", "desk"])
            .on_connect(["CLIENT", "NO-EVICT", "ON"]);
        let pool = pool_with(config, unhurried());
        let mut redis = pool.redis().await.unwrap();
        let threads = blocking::ResourcePool::from(pool.clone());
        for generation in 1..=2 {
            let mut own = redis.exclusive().await.unwrap();
            let () = own.set("key", generation).await.unwrap();
            let mut pubsub = redis.pubsub().await.unwrap();
            pubsub.subscribe("ticks").await.unwrap();
            let mut connection = threads.redis().unwrap();
            assert_eq!(connection.get::<_, i64>("key").unwrap(), generation);
            assert!(pool.is_healthy("redis").await);
            // The shared one, the prober's, and three of users.
            until_async(SOON, async || prepared(&server, "desk") >= 5).await;
            until_async(SOON, async || prepared(&server, "desk") == all(&server)).await;
            if generation == 1 {
                server.kill().unwrap();
                server.restart().unwrap();
                until_async(SOON, async || redis.get::<_, i64>("key").await.is_ok()).await;
                assert_eq!(pool.status().resource("redis").unwrap().generation, 2);
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn redis_command_that_is_refused_fails_the_connect_by_name() {
        let server = shared(Kind::Redis);
        let config = RedisConfig::url(server.url()).on_connect(["PING"]).on_connect(["CLIENT", "NO-EVICT", "MAYBE"]);
        let error = pool_with(config, attempts(3)).redis().await.unwrap_err();
        let details = connect_error(&error);
        assert!(details.permanent && details.attempts == 1, "{error}");
        assert!(error.to_string().contains("on_connect[1], CLIENT: ERR"), "{error}");

        // The server's words quote the argument, which may be a secret.
        let config = RedisConfig::url(server.url()).on_connect(["ACL", "SETUSER", "me", "#s3cretword"]);
        let shown = format!("{config:?}");
        let error = pool_with(config, attempts(1)).redis().await.unwrap_err();
        let told = format!("{error} {error:?} {shown}");
        assert!(told.contains("on_connect[0], ACL") && !told.contains("s3cretword"), "{told}");

        // The second word of a command without subcommands may be one, and the server quotes only the beginning of a long one.
        let long = format!("s3cretword{}", "x".repeat(300));
        for (words, expected) in [
            (["MYMOD.AUTH", "s3cretword"], "ERR unknown command 'MYMOD.AUTH'"),
            (["MYMOD.AUTH", &long], "ERR unknown command 'MYMOD.AUTH'"),
            (["OBJECT", "s3cretword"], "withheld"),
            (["OBJECT", &long], "withheld"),
            (["CLIENT", "NO-EVICTION"], "ERR unknown subcommand 'NO-EVICTION'"),
        ] {
            let config = RedisConfig::url(server.url()).on_connect(words);
            let error = pool_with(config, attempts(1)).redis().await.unwrap_err();
            let told = format!("{error} {error:?}");
            assert!(told.contains(expected) && !told.contains("s3cretword"), "{told}");
        }

        let builder = ResourcePool::builder().environment([("", ""); 0]);
        let refused = builder.resource(RedisConfig::default().on_connect(["SELECT", "2"])).build();
        let Err(Error::Config { key, problem }) = refused else { panic!("{refused:?}") };
        assert!(key == "redis.on_connect[0]" && problem.contains("set `db`"), "{key}: {problem}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn redis_command_that_hangs_ends_with_the_connect_timeout() {
        let server = Service::start(Kind::Redis).unwrap();
        let mut config = RedisConfig::url(server.url()).on_connect(["DEBUG", "SLEEP", "4"]);
        config.connect_timeout = LIMIT;
        let started = Stopwatch::start();
        let error = pool_with(config, hurried()).redis().await.unwrap_err();
        assert!(started.took() < LIMIT * 3, "{:?}", started.took());
        assert!(!connect_error(&error).permanent && error.to_string().contains("no answer within"), "{error}");
    }

    #[test]
    fn redis_commands_are_read_from_toml() {
        let server = shared(Kind::Redis);
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("on-connect-{}.toml", std::process::id()));
        let url = server.url();
        fs::write(&file, format!("[redis]\nurl = '{url}'\non_connect = [['CLIENT', 'SETNAME', 'of-toml']]\n")).unwrap();
        let builder = blocking::ResourcePool::builder().environment([("", ""); 0]).options(unhurried());
        let pool = builder.config_file(&file).build().unwrap();
        let name: String = redis::cmd("CLIENT").arg("GETNAME").query(&mut pool.redis().unwrap()).unwrap();
        assert_eq!(name, "of-toml");
    }

    fn adapter(server: &Service) -> R2d2<redis::Client> {
        R2d2::new(redis::Client::open(server.url()).unwrap()).max_size(3)
    }

    fn pool_of(kind: R2d2<redis::Client>, options: Options) -> blocking::ResourcePool {
        let pool = blocking::ResourcePool::builder().environment([("", ""); 0]).options(options).build().unwrap();
        pool.register("cache", kind).unwrap();
        pool
    }

    #[test]
    fn r2d2_hook_prepares_every_new_connection() {
        let server = Service::start(Kind::Redis).unwrap();
        let prepare = |connection: &mut redis::Connection| -> RedisResult<()> {
            redis::cmd("CLIENT").arg("SETNAME").arg("desk").exec(connection)?;
            redis::cmd("CLIENT").arg("NO-EVICT").arg("ON").query(connection)
        };
        let pool = pool_of(adapter(&server).on_connect(prepare), unhurried());
        for _ in 0..2 {
            let held = [(); 3].map(|()| pool.check_out::<redis::Client>("cache").unwrap());
            assert_eq!((prepared(&server, "desk"), all(&server)), (3, 3));
            drop(held);
            server.kill().unwrap();
            server.restart().unwrap();
            common::until(SOON, || {
                pool.check_out::<redis::Client>("cache").is_ok_and(|mut redis| redis.set::<_, _, ()>("key", 1).is_ok())
            });
        }
        assert!(pool.close_all().unwrap().all_closed());
    }

    #[test]
    fn r2d2_hook_that_fails_or_panics_fails_the_connect_by_name() {
        let server = shared(Kind::Redis);
        let failing = |connection: &mut redis::Connection| redis::cmd("NOSUCHCOMMAND").query(connection);
        let kind = adapter(server).on_connect(failing).permanent(|error| error.code() == Some("ERR"));
        let error = pool_of(kind, attempts(3)).check_out::<redis::Client>("cache").unwrap_err();
        let details = connect_error(&error);
        assert!(details.permanent && details.attempts == 1, "{error}");
        assert!(
            error.to_string().contains("the hook `on_connect` failed") && error.to_string().contains("NOSUCHCOMMAND"),
            "{error}"
        );
        let kind = adapter(server).on_connect(|_| panic!("as the test asked"));
        let error = pool_of(kind, attempts(1)).check_out::<redis::Client>("cache").unwrap_err();
        assert!(error.to_string().contains("the hook `on_connect` panicked: as the test asked"), "{error}");
    }
}

#[cfg(feature = "postgres")]
mod on_postgres {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use resource_pool::config::PostgresConfig;

    use super::*;

    async fn path(postgres: &mut resource_pool::Postgres) -> Option<String> {
        sqlx::query_scalar("SELECT current_setting('search_path')").fetch_one(postgres).await.ok()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn postgres_hook_prepares_every_new_connection() {
        let server = Service::start(Kind::Postgres).unwrap();
        let config = PostgresConfig::url(server.url()).on_connect(|connection| {
            Box::pin(async move { sqlx::query("SET search_path TO desk").execute(connection).await.map(drop) })
        });
        let pool = pool_with(config, unhurried());
        for _ in 0..2 {
            let (mut one, mut two) = (pool.postgres().await.unwrap(), pool.postgres().await.unwrap());
            assert_eq!((path(&mut one).await.unwrap(), path(&mut two).await.unwrap()), ("desk".into(), "desk".into()));
            let raw = one.raw_pool();
            drop((one, two));
            let of_raw: String =
                sqlx::query_scalar("SELECT current_setting('search_path')").fetch_one(&raw).await.unwrap();
            assert_eq!(of_raw, "desk");
            server.kill().unwrap();
            server.restart().unwrap();
            until_async(SOON, async || match pool.postgres().await {
                Ok(mut postgres) => path(&mut postgres).await.is_some(),
                Err(_) => false,
            })
            .await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn postgres_hook_that_fails_panics_or_hangs_fails_the_connect() {
        let server = shared(Kind::Postgres);
        let config = || PostgresConfig::url(server.url());
        let error = async |config, options| pool_with(config, options).postgres().within(SOON).await.unwrap_err();
        let failing = config().on_connect(|connection| {
            Box::pin(async move { sqlx::query("SELECT nonsense").execute(connection).await.map(drop) })
        });
        assert_eq!(failing, failing.clone(), "a configuration is equal to its clone");
        let mut options = attempts(1);
        options.retry.budget = LIMIT;
        let failed = error(failing, options).await;
        connect_error(&failed);
        assert!(
            failed.to_string().contains("the hook `on_connect` failed") && failed.to_string().contains("nonsense"),
            "{failed}"
        );
        let at_once = config().on_connect(|_| panic!("as the test asked"));
        let later = config().on_connect(|_| Box::pin(async { panic!("as the test asked") }));
        for panicking in [at_once, later] {
            let panicked = error(panicking, attempts(1)).await;
            assert!(panicked.to_string().contains("the hook `on_connect` panicked: as the test asked"), "{panicked}");
        }
        // The driver's own pool tries again until its own limit.
        let spoilt = Arc::new(AtomicBool::new(false));
        let spoils = Arc::clone(&spoilt);
        let mut sometimes = config().on_connect(move |_| {
            assert!(!spoils.load(Ordering::SeqCst), "as the test asked");
            Box::pin(async { Ok(()) })
        });
        sometimes.pool_timeout = LIMIT;
        let pool = pool_with(sometimes, unhurried());
        let raw = pool.postgres().await.unwrap().raw_pool();
        spoilt.store(true, Ordering::SeqCst);
        let refused = raw.acquire().within(SOON).await;
        assert!(matches!(refused, Err(sqlx::Error::PoolTimedOut)), "{refused:?}");

        let hanging = config().on_connect(|_| Box::pin(std::future::pending()));
        let started = Stopwatch::start();
        let hung = error(hanging, hurried()).await;
        assert!(started.took() < LIMIT * 4, "{:?}", started.took());
        assert!(!connect_error(&hung).permanent, "{hung}");
    }
}
