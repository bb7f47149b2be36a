//! Waits on checkouts: a wait that can never end is refused at once, and the others report the holders that they wait
//! for.

#![cfg(all(feature = "rabbitmq", feature = "redis"))]
#![allow(missing_docs)]

mod common;

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock, mpsc};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use common::{Log, Within, until};
use redis::Commands;
use resource_pool::blocking::{self, ResourcePool as Threads};
use resource_pool::config::{Options, RabbitMqConfig, RedisConfig};
use resource_pool::rabbitmq::Message;
use resource_pool::{DeadlockError, Error, ResourcePool, TimeoutError};
use services::{Kind, shared};
use tokio::sync::oneshot;

/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(10);
/// The acquire timeout where an error has to come at once. A test that waits this long fails.
const LONG: Duration = Duration::from_secs(60);

static LOG: LazyLock<Log> = LazyLock::new(Log::start);

/// A connected pool with this many exclusive connections and channels, however long connecting takes.
fn pool(places: u32, acquire_timeout: Duration) -> ResourcePool {
    LazyLock::force(&LOG);
    let mut options = Options::default();
    options.acquire_timeout = acquire_timeout;
    let mut redis = RedisConfig::url(shared(Kind::Redis).url()).pool_size(places);
    (redis.exclusive_size, redis.min_idle) = (places as usize, places);
    let mut rabbit = RabbitMqConfig::url(shared(Kind::RabbitMq).url());
    rabbit.max_channels = places as usize;
    let pool = ResourcePool::builder()
        .environment([("", ""); 0])
        .options(options)
        .resource(redis)
        .resource(rabbit)
        .build()
        .unwrap();
    let patient = Threads::from(pool.clone()).within(LONG);
    drop((patient.redis().unwrap(), patient.rabbitmq().unwrap()));
    until(SOON, || pool.status().resource("redis").unwrap().usage.idle == Some(places as usize));
    pool
}

fn threads(places: u32, acquire_timeout: Duration) -> Threads {
    pool(places, acquire_timeout).into()
}

fn waiting(pool: &ResourcePool, name: &str) -> usize {
    pool.status().resource(name).unwrap().usage.waiting.unwrap_or(0)
}

fn deadlock<T>(answer: Result<T, Error>) -> Arc<DeadlockError> {
    match answer {
        Err(Error::Deadlock(error)) => error,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("there should be none free"),
    }
}

fn timeout<T>(answer: Result<T, Error>) -> Arc<TimeoutError> {
    match answer {
        Err(Error::Timeout(error)) => error,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("there should be none free"),
    }
}

#[test]
fn wait_for_what_this_thread_has_lent_is_refused_at_once() {
    let pool = threads(2, LONG);
    let started = Instant::now();
    let mut lines = Vec::new();
    pool.redis().unwrap().lend(|outer| {
        let _: () = outer.set("waits", 1).unwrap();
        lines.push(line!() - 2);
        pool.redis().unwrap().lend(|inner| {
            lines.push(line!() - 1);
            assert_eq!(inner.get::<_, i32>("waits").unwrap(), 1);
            let error = deadlock(pool.redis());
            let line = line!() - 1;
            let mut holders: Vec<_> = error.holders.iter().map(|holder| holder.site.line()).collect();
            holders.sort_unstable();
            assert_eq!((error.site.line(), holders), (line, lines.clone()));
            let text = error.to_string();
            assert!(text.contains(&format!("tests/waits.rs:{line}:")) && text.contains("raise `pool_size`"), "{text}");
            println!("{text}");
        });
        pool.redis().expect("one is free again");
    });
    let panicked = catch_unwind(AssertUnwindSafe(|| pool.redis().unwrap().lend(|_| panic!("as written"))));
    assert!(panicked.is_err());
    let mut subscribed = false;
    pool.redis().unwrap().lend(|redis| subscribed = redis.subscribe("waits").is_ok());
    assert!(subscribed);
    let both = (pool.redis().unwrap(), pool.redis().unwrap());
    drop(both);

    let rabbit = pool.rabbitmq().unwrap();
    rabbit.channel().unwrap().lend(|_| {
        rabbit.channel().unwrap().lend(|channel| {
            assert!(channel.run(async |channel| channel.tx_select().await).is_ok());
            let error = deadlock(rabbit.channel());
            assert_eq!((error.site.line(), error.holders.len()), (line!() - 1, 2));
            let error = deadlock(rabbit.publish(Message::new("", "nowhere", "").optional()));
            assert_eq!((error.site.line(), error.option), (line!() - 1, "max_channels"));
        });
    });
    rabbit.channel().unwrap();
    assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
}

#[test]
fn wait_is_not_refused_where_another_thread_may_free_it() {
    let pool = threads(2, LONG);
    let core = pool.as_async();
    let once_waited_for = |name: &'static str, free: Box<dyn FnOnce() + Send>| {
        let core = core.clone();
        thread::spawn(move || {
            until(SOON, || waiting(&core, name) == 1);
            free();
        })
    };

    // One guard moves to another thread, beside one that is lent.
    let travels = pool.redis().unwrap();
    pool.redis().unwrap().lend(|_| {
        let other = once_waited_for("redis", Box::new(move || drop(travels)));
        pool.redis().expect("freed by the other thread");
        other.join().unwrap();
    });
    let rabbit = pool.rabbitmq().unwrap();
    let travels = rabbit.channel().unwrap();
    rabbit.channel().unwrap().lend(|_| {
        let other = once_waited_for("rabbitmq", Box::new(move || drop(travels)));
        rabbit.channel().expect("freed by the other thread");
        other.join().unwrap();
    });

    // Both are lent, but on another thread.
    let (go, going) = mpsc::channel();
    let (lent, lending) = mpsc::channel();
    let other = thread::spawn({
        let pool = pool.clone();
        move || {
            pool.redis()
                .unwrap()
                .lend(|_| pool.redis().unwrap().lend(|_| (lent.send(()).unwrap(), going.recv().unwrap())))
        }
    });
    lending.recv().unwrap();
    let freer = once_waited_for("redis", Box::new(move || go.send(()).unwrap()));
    pool.redis().expect("freed by the other thread");
    other.join().unwrap();
    freer.join().unwrap();

    // Both are lent on this thread, but nothing blocks it. The future goes on after the closures.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let shared = runtime.block_on(core.rabbitmq()).unwrap();
    let mut future = Box::pin(async { shared.channel().await });
    rabbit.channel().unwrap().lend(|_| {
        rabbit.channel().unwrap().lend(|_| {
            let once = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending()));
            assert!(runtime.block_on(once), "there is none yet");
        });
    });
    runtime.block_on(future).expect("it was not refused");
}

#[test]
fn timeout_tells_that_this_thread_itself_holds_them_all() {
    let pool = threads(2, Duration::from_secs(1));
    let held = [pool.redis().unwrap(), pool.redis().unwrap()];
    let line = line!() - 1;
    let error = timeout(pool.redis());
    assert!(error.holders.iter().all(|holder| holder.site.line() == line), "{error}");
    assert_eq!((error.holders.len(), error.cycle.len(), error.cycle[0].holds.len()), (2, 1, 2));
    assert_eq!(error.cycle[0].site.line(), line!() - 3);
    let me = "; thread \"timeout_tells_that_this_thread_itself_holds_them_all\" itself holds them all";
    assert!(error.to_string().contains(me), "{error}");
    drop(held);
    pool.redis().unwrap();

    let rabbit = pool.rabbitmq().unwrap();
    let _held = [rabbit.channel().unwrap(), rabbit.channel().unwrap()];
    let error = timeout(rabbit.channel());
    assert!(error.to_string().contains(me), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timeout_tells_that_this_task_itself_holds_them_all() {
    let pool = pool(1, Duration::from_secs(1));
    let task = tokio::spawn(async move {
        let redis = pool.redis().await.unwrap();
        let _held = redis.exclusive().await.unwrap();
        let error = redis.pubsub().await.unwrap_err().to_string();
        let id = tokio::task::id();
        assert!(error.contains("for one of 1 exclusive connections; held by tests/waits.rs:"), "{error}");
        assert!(error.contains(&format!("; task {id} itself holds them all")), "{error}");
    });
    task.within(SOON).await.unwrap();
}

/// A cycle over two pools and two backends is reported as soon as it exists.
#[test]
fn cycle_of_threads_is_told() {
    let (redis, rabbit) = (threads(1, LONG), threads(1, LONG));
    let (held, holding) = mpsc::channel();
    let a = thread::Builder::new().name("a".to_owned()).spawn({
        let (redis, lease) = (redis.clone(), rabbit.rabbitmq().unwrap());
        move || {
            let holds = (redis.redis().unwrap(), line!());
            holding.recv().unwrap();
            let waits = (lease.channel().map(drop), line!());
            drop(holds.0);
            (waits.0, holds.1, waits.1)
        }
    });
    let lease = rabbit.rabbitmq().unwrap();
    let channel = (lease.channel().unwrap(), line!());
    until(SOON, || !redis.holders().is_empty());
    held.send(()).unwrap();
    until(SOON, || waiting(&rabbit.as_async(), "rabbitmq") == 1);
    let warned = || {
        let told = LOG.text();
        let is_it = |line: &&str| line.contains("WARN") && line.contains("a deadlock, unless somebody else frees");
        told.lines().filter(is_it).filter(|line| line.contains("\"cycle_of_threads_is_told\"")).count()
    };
    let soon = redis.within(Duration::from_secs(2));
    // The new wait waits for a, and a waits for a channel that this thread holds. This thread itself does not wait.
    let error = thread::scope(|scope| scope.spawn(|| timeout(soon.redis())).join().unwrap());
    assert!(error.cycle.is_empty() && error.to_string().contains("thread \"a\""), "{error}");
    assert_eq!(warned(), 0);

    let (error, line) = (timeout(soon.redis()), line!());
    let text = error.to_string();
    println!("{text}");
    assert_eq!(warned(), 1, "once, as it began");
    drop(channel.0);
    let (got, a_holds, a_waits) = a.unwrap().join().unwrap();
    got.expect("the cycle is broken");
    let [me, other] = &error.cycle[..] else { panic!("{text}") };
    assert_eq!((&*me.resource, me.site.line(), me.holds[0].site.line()), ("redis", line, channel.1));
    assert_eq!((&*other.resource, other.site.line(), other.holds[0].site.line()), ("rabbitmq", a_waits, a_holds));
    assert!(text.contains("; deadlock: thread \"cycle_of_threads_is_told\" holds rabbitmq (tests/waits.rs:"), "{text}");
    assert!(text.contains("; thread \"a\" holds redis (tests/waits.rs:"), "{text}");
    assert!(text.contains(" and waits for one of 1 channels of rabbitmq (tests/waits.rs:"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cycle_of_tasks_is_told() {
    // The second waits longer, so that it still waits when the first gives up.
    let (short, long) = (pool(1, Duration::from_secs(2)), pool(1, SOON));
    let (redis, rabbit) = (long.redis().await.unwrap(), short.rabbitmq().await.unwrap());
    let (shared, core) = (rabbit.clone(), short.clone());
    let (held, holding) = oneshot::channel();
    let first = tokio::spawn(async move {
        let _own = redis.exclusive().await.unwrap();
        holding.await.unwrap();
        timeout(shared.channel().await)
    });
    let redis = long.redis().await.unwrap();
    let second = tokio::spawn(async move {
        let _channel = rabbit.channel().await.unwrap();
        held.send(()).unwrap();
        tokio::task::block_in_place(|| until(SOON, || waiting(&core, "rabbitmq") == 1));
        redis.exclusive().await.map(drop)
    });
    let error = first.within(SOON).await.unwrap();
    let text = error.to_string();
    assert_eq!(error.cycle.len(), 2, "{text}");
    assert!(error.cycle.iter().all(|waiter| waiter.owner.task.is_some() && waiter.holds.len() == 1), "{text}");
    assert!(text.contains("; deadlock: task ") && text.contains("waits for one of 1 exclusive connections of redis"));
    second.within(SOON).await.unwrap().expect("the cycle is broken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_given_up_is_part_of_no_cycle() {
    let pool = pool(1, Duration::from_secs(1));
    let (redis, rabbit) = (pool.redis().await.unwrap(), pool.rabbitmq().await.unwrap());
    let _channel = rabbit.channel().await.unwrap();
    let (shared, own) = (rabbit.clone(), redis.exclusive());
    let other = tokio::spawn(async move {
        let own = own.await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(10), shared.channel()).await.is_err());
        own
    });
    let _own = other.within(SOON).await.unwrap();
    let error = redis.exclusive().await.unwrap_err().to_string();
    assert!(error.contains("held by tests/waits.rs:") && !error.contains("deadlock"), "{error}");
}

#[test]
fn cycle_is_none_while_one_place_is_elsewhere() {
    let pool = threads(2, Duration::from_secs(1));
    let rabbit = pool.rabbitmq().unwrap();
    // This thread holds both channels and one of the connections. A working thread holds the other connection.
    let _channels = [rabbit.channel().unwrap(), rabbit.channel().unwrap()];
    let _mine: blocking::Redis = pool.redis().unwrap();
    let works = pool.clone();
    let _works = thread::spawn(move || works.redis().unwrap()).join().unwrap();
    let error = timeout(pool.redis());
    assert_eq!((error.holders.len(), error.cycle.len()), (2, 0), "{error}");
    assert!(!error.to_string().contains("deadlock"), "{error}");
}
