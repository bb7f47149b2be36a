//! Children that end while something begins: connections that are being made, guards that come and go, threads that
//! cannot start.

use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use resource_pool::{Error, ResourcePool, State, blocking};

pub(crate) fn main(way: &str, ending: &str) {
    ResourcePool::global().on_report(super::child::told);
    match way {
        "connecting" => connecting(),
        "scoped" => scoped(),
        #[cfg(feature = "redis")]
        "few-threads" => few_threads(),
        way => panic!("no way {way}"),
    }
    super::child::end(ending);
}

/// Returns while every kind is connecting, each time at another moment.
fn connecting() {
    let pool = blocking::ResourcePool::global();
    #[cfg(feature = "mongodb")]
    thread::spawn(|| drop(pool.mongo()));
    #[cfg(feature = "rabbitmq")]
    thread::spawn(|| drop(pool.rabbitmq()));
    #[cfg(feature = "clickhouse")]
    thread::spawn(|| drop(pool.clickhouse()));
    #[cfg(feature = "redis")]
    thread::spawn(|| drop(pool.redis()));
    #[cfg(feature = "postgres")]
    thread::spawn(|| drop(pool.postgres()));
    #[cfg(feature = "mysql")]
    thread::spawn(|| drop(pool.mysql()));
    #[cfg(feature = "sqlite")]
    thread::spawn(|| drop(pool.sqlite()));
    while pool.status().resources.iter().all(|resource| resource.state == State::Idle) {
        thread::yield_now();
    }
    some_moment_later();
}

/// Returns while other threads make and drop scoped guards without end.
fn scoped() {
    let (made, first) = channel();
    #[cfg(feature = "mongodb")]
    again_and_again(&made, || blocking::Mongo::scoped(resource_pool::config::MongoConfig::from_env()?).map(drop));
    #[cfg(feature = "rabbitmq")]
    again_and_again(&made, || blocking::RabbitMq::scoped(resource_pool::config::RabbitMqConfig::from_env()?).map(drop));
    #[cfg(feature = "clickhouse")]
    again_and_again(&made, || {
        blocking::ClickHouse::scoped(resource_pool::config::ClickHouseConfig::from_env()?).map(drop)
    });
    #[cfg(feature = "redis")]
    again_and_again(&made, || blocking::Redis::scoped(resource_pool::config::RedisConfig::from_env()?).map(drop));
    #[cfg(feature = "postgres")]
    again_and_again(&made, || blocking::Postgres::scoped(resource_pool::config::PostgresConfig::from_env()?).map(drop));
    #[cfg(feature = "mysql")]
    again_and_again(&made, || blocking::MySql::scoped(resource_pool::config::MySqlConfig::from_env()?).map(drop));
    #[cfg(feature = "sqlite")]
    again_and_again(&made, || blocking::Sqlite::scoped(resource_pool::config::SqliteConfig::from_env()?).map(drop));
    drop(made);
    first.recv().expect("a guard");
    some_moment_later();
}

/// Makes guards on a thread until one is refused. Only the end of the process may cause that.
fn again_and_again(made: &Sender<()>, make: impl Fn() -> Result<(), Error> + Send + 'static) {
    let made = made.clone();
    thread::spawn(move || {
        loop {
            match make() {
                // The receiver only waits for the first guard.
                Ok(()) => drop(made.send(())),
                Err(error) if error.is_closed() => return,
                Err(error) => eprintln!("TROUBLE {error}"),
            }
        }
    });
}

/// Acquires where threads may run out at any point.
#[cfg(feature = "redis")]
fn few_threads() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let started = Instant::now();
    let acquired = runtime.block_on(ResourcePool::global().redis());
    let took = started.elapsed();
    match acquired {
        Ok(lease) => {
            println!("LEASED");
            super::child::keep(lease);
        }
        Err(error) => println!("REFUSED {} {error}", took.as_millis()),
    }
}

/// Waits until one of 16 moments within 8 ms. The process id chooses it.
fn some_moment_later() {
    let moment = Instant::now() + Duration::from_micros(500) * (std::process::id() % 16);
    while Instant::now() < moment {
        thread::yield_now();
    }
}
