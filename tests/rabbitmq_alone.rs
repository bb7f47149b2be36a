//! Tests of RabbitMQ that need the process for themselves, because they count its threads and sockets.

#![cfg(feature = "rabbitmq")]
#![allow(missing_docs)]

mod common;

use std::time::{Duration, Instant};

use common::{Log, Stopwatch, threads, until_async};
use lapin::{Connection, ConnectionProperties};
use resource_pool::config::{Options, RabbitMqConfig};
use resource_pool::rabbitmq::Message;
use resource_pool::{ResourcePool, blocking};
use services::{Kind, Service};

/// The limit for a frozen broker to show as an error.
const FROZEN: Duration = Duration::from_secs(5);

/// A guard against hanging.
const SOON: Duration = Duration::from_secs(20);

/// The limit for a thread to remain after closing. It only needs the time to end.
const LEFT: Duration = Duration::from_millis(500);

fn pool(server: &Service) -> ResourcePool {
    let mut options = Options::default();
    // A slow answer of a busy broker must not count as bad health, and closing need not wait long for a lease.
    (options.health.each, options.health.all, options.health.slow) = (SOON, SOON, SOON);
    options.close.held = Duration::from_millis(20);
    let builder = ResourcePool::builder().environment([("", ""); 0]).options(options);
    builder.resource(RabbitMqConfig::url(server.url())).build().unwrap()
}

fn loops() -> usize {
    threads().iter().filter(|name| name.starts_with("lapin-io-loop")).count()
}

/// The TCP sockets of this process. A runtime also has a pair of other sockets for signals.
fn sockets() -> usize {
    let tcp = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let inodes: Vec<_> = tcp.lines().filter_map(|line| line.split_whitespace().nth(9)).collect();
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let targets = open.filter_map(|fd| std::fs::read_link(fd.path()).ok()).map(|to| to.to_string_lossy().into_owned());
    let socket = |to: &String| Some(to.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned());
    targets.filter_map(|to| socket(&to)).filter(|inode| inodes.contains(&inode.as_str())).count()
}

/// The counts without any connection.
async fn settled() -> (usize, usize) {
    until_async(SOON, async || loops() == 0).await;
    (loops(), sockets())
}

/// Waits until the counts are those of before, within the limit.
async fn is_left(before: (usize, usize), limit: Duration) {
    let closed = Stopwatch::start();
    until_async(SOON, async || (loops(), sockets()) == before).await;
    assert!(closed.took() < limit, "{:?}", closed.took());
}

/// The bare driver has no limit on connecting. An attempt that is dropped leaves a thread and a socket behind.
async fn frozen_at_connect(server: &Service) {
    let before = settled().await;
    server.freeze().unwrap();
    let pool = pool(server);
    let started = Stopwatch::start();
    let error = pool.rabbitmq().await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(started.took() < FROZEN + Duration::from_millis(500), "{:?}", started.took());
    let guard = blocking::ResourcePool::from(pool.clone());
    let error = tokio::task::spawn_blocking(move || guard.rabbitmq().unwrap_err()).await.unwrap();
    assert!(error.is_transient(), "{error}");
    pool.close_all().await;
    is_left(before, Duration::from_secs(2)).await;

    let url = format!("{}?connection_timeout=200", server.url());
    for _ in 0..3 {
        let connect = Connection::connect(&url, ConnectionProperties::default());
        assert!(tokio::time::timeout(Duration::from_secs(1), connect).await.is_err(), "the bare driver kept its limit");
    }
    assert_eq!((loops(), sockets()), (before.0 + 3, before.1 + 3), "the bare driver left nothing behind");
    server.thaw().unwrap();
    until_async(SOON, async || loops() == before.0).await;
}

/// A cut connection leaves nothing behind either.
async fn frozen_and_closed(server: &Service) {
    let before = settled().await;
    let pool = pool(server);
    let rabbit = pool.rabbitmq().await.unwrap();
    // Two loops: one of the connection, one of the prober's.
    until_async(SOON, async || loops() == before.0 + 2).await;
    assert!(pool.is_healthy("rabbitmq").await);
    server.freeze().unwrap();
    let report = pool.close_all().await;
    println!("{report}");
    assert!(report.took < Duration::from_secs(7), "{report}");
    assert!(rabbit.publish(Message::new("", "x", "x")).await.is_err());
    is_left(before, LEFT).await;
    server.thaw().unwrap();
}

/// Frames are as large as the broker allows, or as large as the user asked for. Messages may be larger than a frame.
async fn frames_of_every_size(server: &Service) {
    let view = server.rabbitmq().unwrap();
    let frame_max = |wanted: &str| {
        let said = view.eval(
            r#"[io:format("~w ", [proplists:get_value(frame_max, I)]) || I <- rabbit_networking:connection_info_all([frame_max])]"#,
        );
        said.unwrap().split_whitespace().any(|frame_max| frame_max == wanted)
    };
    let bare = Connection::connect(server.url(), ConnectionProperties::default()).await.unwrap();
    bare.close(200, "OK".into()).await.unwrap();
    for asked in [0, 8192] {
        let mut config = RabbitMqConfig::url(server.url());
        config.frame_max = asked;
        let pool = ResourcePool::builder().environment([("", ""); 0]).resource(config).build().unwrap();
        let rabbit = pool.rabbitmq().await.unwrap();
        // The broker still lists the previous connection for a moment after its end.
        until_async(SOON, async || (frame_max("8192"), frame_max("131072")) == (asked != 0, asked == 0)).await;
        let large = vec![7; 1 << 20];
        let queue = rabbit.declare_queue(resource_pool::rabbitmq::Queue::temporary()).await.unwrap();
        assert!(rabbit.publish(Message::new("", queue.name(), large.clone())).await.unwrap().is_confirmed());
        assert_eq!(rabbit.get(queue.name()).await.unwrap().unwrap().data(), large);
        assert!(pool.close_all().await.all_closed());
    }
}

/// The log of a service that ends every night must have no error in it.
async fn closes_quietly(server: &Service, log: &Log) {
    const CLOSES: usize = 60;
    let before = log.text().len();
    let mut longest = Duration::ZERO;
    for n in 0..CLOSES {
        let pool = pool(server);
        let rabbit = pool.rabbitmq().await.unwrap();
        let queue = rabbit.declare_queue(resource_pool::rabbitmq::Queue::temporary()).await.unwrap();
        let mut consumer = rabbit.consume(queue.name()).await.unwrap();
        let channel = rabbit.channel().await.unwrap();
        assert!(rabbit.publish(Message::new("", queue.name(), "x")).await.unwrap().is_confirmed());
        let delivery = consumer.next().await.unwrap().unwrap();
        if n % 2 == 0 {
            // Half of the rounds have the prober's connection, and half do not.
            assert_eq!(pool.health_check().await.health, resource_pool::Health::Pass);
        }
        delivery.ack().await.unwrap();
        drop(channel);
        if n % 3 == 0 {
            drop(consumer);
        }
        let report = match n % 4 {
            0 => {
                let threads = blocking::ResourcePool::from(pool.clone());
                tokio::task::spawn_blocking(move || threads.close_all().unwrap()).await.unwrap()
            }
            1 => pool.close("rabbitmq").await.unwrap(),
            _ => pool.close_all().await,
        };
        assert!(report.all_closed(), "{report}");
        longest = longest.max(report.took);
    }
    settled().await;
    println!("{CLOSES} closes, the longest in {longest:?}");
    assert!(longest < Duration::from_secs(5), "one waited for what does not come: {longest:?}");
    let said = log.text();
    let loud: Vec<_> =
        said[before..].lines().filter(|line| line.contains("ERROR") || line.contains(" WARN ")).collect();
    assert!(loud.is_empty(), "{} lines in {CLOSES} closes: {:#?}", loud.len(), loud.first());
    assert!(!said[before..].contains("stopped answering"), "nothing did");
}

fn limit_descriptors(soft: &str) {
    let limit = std::process::Command::new("prlimit")
        .args(["--pid", &std::process::id().to_string(), &format!("--nofile={soft}:")])
        .status();
    assert!(limit.expect("prlimit").success());
}

/// A lack of descriptors in this process says nothing about the broker.
async fn without_descriptors(server: &Service) {
    let before = settled().await;
    limit_descriptors("200");
    let pool = pool(server);
    let rabbit = pool.rabbitmq().await.unwrap();
    // The prober has no connection of its own yet.
    let mut taken: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(6) {
        assert!(rabbit.publish(Message::new("", "nobody", "x").optional()).await.unwrap().is_confirmed());
        taken.extend(std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let healthy = pool.is_healthy("rabbitmq").await;
    let generation = pool.status().resource("rabbitmq").unwrap().generation;
    taken.clear();
    limit_descriptors("1024");
    assert_eq!((generation, healthy), (1, true));
    assert_eq!(loops(), before.0 + 1, "the prober has a connection");
    // The prober connects as soon as there is room again.
    until_async(SOON, async || loops() == before.0 + 2).await;
    assert!(pool.close_all().await.all_closed());
    settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_gives_back_threads_sockets_memory_and_no_password() {
    let log = Log::start();
    let server = Service::start(Kind::RabbitMq).unwrap();
    frames_of_every_size(&server).await;
    let said = log.text();
    assert!(said.contains("connected"), "nothing was logged");
    // The bare driver writes the password to its TRACE log, as a list of bytes.
    let bytes = format!("{:?}", server.password().as_bytes());
    let secrets = [server.password(), bytes.trim_matches(['[', ']'])];
    let bare_said = said.lines().filter(|line| secrets.iter().any(|secret| line.contains(secret))).count();
    assert_eq!(bare_said, 1, "once, by the one bare connection");
    closes_quietly(&server, &log).await;
    without_descriptors(&server).await;
    frozen_at_connect(&server).await;
    frozen_and_closed(&server).await;
}
