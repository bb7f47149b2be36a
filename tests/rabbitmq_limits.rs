//! RabbitMQ at its limits: no room for the prober's connection, for one more channel, or for one more login.

#![cfg(feature = "rabbitmq")]
#![allow(missing_docs)]

mod common;

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use common::{Stopwatch, Within, until_async};
use futures_util::future::join_all;
use lapin::options::{BasicConsumeOptions, BasicGetOptions, BasicQosOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use lapin::{ConnectionProperties, ErrorKind};
use resource_pool::config::{Options, RabbitMqConfig};
use resource_pool::rabbitmq::{Consume, Exchange, Message, Queue};
use resource_pool::{Error, Health, RabbitMq, ResourcePool, State, blocking};
use services::{Kind, Proxy, Service, shared};

/// The limit for a frozen broker to show as an error.
const FROZEN: Duration = Duration::from_secs(5);
/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn pool_with(config: RabbitMqConfig, mut options: Options) -> ResourcePool {
    // A slow answer of a busy broker must not count as bad health here.
    (options.health.each, options.health.all, options.health.slow) = (SOON, SOON, SOON);
    ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().expect("a pool")
}

fn pool_of(config: RabbitMqConfig) -> ResourcePool {
    pool_with(config, Options::default())
}

/// The URL of a new user with this name, who has rights to a virtual host of the same name.
fn user(server: &Service, name: &str) -> String {
    let view = server.rabbitmq().unwrap();
    for words in [
        &["add_user", name, "secret"][..],
        &["add_vhost", name],
        &["set_permissions", "-p", name, name, ".*", ".*", ".*"],
    ] {
        view.ctl(words).unwrap();
    }
    format!("amqp://{name}:secret@{}:{}/{name}", server.host(), server.port())
}

/// Uses the pool's connection for so long. Nothing of it may be cut meanwhile.
async fn lives(pool: &ResourcePool, how_long: Duration, health: Health) {
    let rabbit = pool.rabbitmq().await.unwrap();
    let queue = rabbit.declare_queue(Queue::temporary()).await.unwrap();
    let mut consumer = rabbit.consume(queue.name()).await.unwrap();
    let started = Instant::now();
    while started.elapsed() < how_long {
        assert!(rabbit.publish(Message::new("", queue.name(), "x")).await.unwrap().is_confirmed());
        consumer.next().within(SOON).await.unwrap().unwrap().ack().await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let status = pool.status();
    let status = status.resource("rabbitmq").unwrap();
    assert_eq!((status.generation, status.state), (1, State::Ready), "{status:?}");
    let report = pool.health_check().await;
    assert_eq!(report.entry("rabbitmq").unwrap().health, health, "{report}");
}

/// The duration after which the pool would have cut a connection that does not answer.
const LONG: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_prober_without_room_asks_on_the_users_connection() {
    let server = Service::start(Kind::RabbitMq).unwrap();
    let view = server.rabbitmq().unwrap();
    let (one, full) = (user(&server, "one"), user(&server, "full"));
    view.ctl(&["set_user_limits", "one", r#"{"max-connections": 1}"#]).unwrap();
    view.ctl(&["set_vhost_limits", "-p", "full", r#"{"max-connections": 1}"#]).unwrap();
    let refusing = Proxy::start(server.port()).unwrap();
    let limit = Duration::from_secs(1);
    let one = pool_of(RabbitMqConfig::url(one).confirm_timeout(limit).operation_timeout(limit));
    let full = pool_of(RabbitMqConfig::url(full));
    let refused = pool_of(RabbitMqConfig::url(refusing.url(&server)));
    // The broker accepts one more connection and never serves it.
    let silent = pool_of(RabbitMqConfig::url(server.url()));
    for pool in [&one, &full, &refused, &silent] {
        drop(pool.rabbitmq().await.unwrap());
    }
    refusing.refuse().unwrap();
    let said = view.eval("[ranch:set_max_connections(Ref, 1) || Ref <- maps:keys(ranch:info())]").unwrap();
    println!("ranch: {said}");
    let mut bare = Vec::new();
    let connect = || lapin::Connection::connect(server.url(), ConnectionProperties::default());
    while let Ok(connected) = tokio::time::timeout(Duration::from_secs(1), connect()).await {
        bare.push(connected.unwrap());
        assert!(bare.len() < 200, "there is room");
    }
    tokio::join!(
        lives(&one, LONG, Health::Pass),
        lives(&full, LONG, Health::Pass),
        lives(&refused, LONG, Health::Pass),
        lives(&silent, LONG, Health::Pass),
    );
    println!("{:?}", view.connections().unwrap());

    // While the broker blocks the connection, the prober cannot use it either.
    view.memory_alarm(true).unwrap();
    let rabbit = one.rabbitmq().await.unwrap();
    assert!(rabbit.publish(Message::new("", "nobody", "x").optional()).await.is_err());
    let blocked = Instant::now();
    while blocked.elapsed() < LONG {
        let report = one.health_check().await;
        let entry = report.entry("rabbitmq").unwrap();
        assert_eq!((entry.health, entry.generation), (Health::Unknown, 1), "{report}");
        assert!(entry.error.as_ref().unwrap().contains("blocked by the broker"), "{report}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    view.memory_alarm(false).unwrap();
    until_async(SOON, async || rabbit.publish(Message::new("", "nobody", "x").optional()).await.is_ok()).await;
    assert_eq!(one.status().resource("rabbitmq").unwrap().generation, 1);

    // A broker that does not answer is lost nevertheless, on the prober's connection or the user's.
    let queue = rabbit.declare_queue(Queue::temporary()).await.unwrap();
    let channels = [rabbit.channel().await.unwrap(), silent.rabbitmq().await.unwrap().channel().await.unwrap()];
    server.freeze().unwrap();
    let frozen = Stopwatch::start();
    let asking = channels.iter().map(|channel| {
        channel.run(async |channel| channel.basic_qos(1, BasicQosOptions::default()).await).within(SOON)
    });
    let answers = join_all(asking).await;
    assert!(frozen.took() < FROZEN, "{:?}", frozen.took());
    assert!(answers.iter().all(|answer| matches!(answer, Err(Error::Lost { .. }))), "{answers:?} {queue:?}");
    server.thaw().unwrap();
    assert_eq!(view.unclean_closes().unwrap(), [""; 0], "before the broker had been frozen");
}

fn with(server: &Service, parameters: &str) -> RabbitMqConfig {
    RabbitMqConfig::url(format!("{}?{parameters}", server.url()))
}

/// The driver counts a channel until it has forgotten it, and the broker counts it until it has confirmed its close.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_channels_taken_and_dropped_in_turn_never_exceed_the_maximum() {
    let server = Service::start(Kind::RabbitMq).unwrap();
    // The lower of the client's and the broker's limit counts.
    let brokers = || server.rabbitmq().unwrap().eval("application:set_env(rabbit, channel_max, 8)").map(drop);
    for parameters in ["channel_max=8", "heartbeat=10"] {
        if parameters == "heartbeat=10" {
            brokers().unwrap();
        }
        let url = format!("{}?{parameters}", server.url());
        let bare = lapin::Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
        let mut failed = 0;
        for _ in 0..100 {
            let opened = join_all((0..8).map(|_| bare.create_channel())).await;
            failed += opened.iter().filter(|opened| opened.is_err()).count();
        }
        println!("control: the bare driver fails {failed} of 800");
        drop(bare);

        let pool = pool_of(with(&server, parameters));
        let rabbit = pool.rabbitmq().await.unwrap();
        let queue = rabbit.declare_queue(Queue::temporary()).await.unwrap();
        let one = async |task: usize| {
            for n in 0..100 {
                match (task + n) % 3 {
                    0 => drop(rabbit.channel().await.unwrap()),
                    1 => drop(rabbit.consume(queue.name()).await.unwrap()),
                    _ => {
                        let channel = rabbit.channel();
                        let micros = u64::try_from(n * 13 % 700).unwrap();
                        // The acquire is dropped at any moment.
                        drop(tokio::time::timeout(Duration::from_micros(micros), channel).await);
                    }
                }
                assert!(rabbit.publish(Message::new("", "nobody", "x").optional()).await.unwrap().is_confirmed());
            }
        };
        let keeping = rabbit.declare_queue(Queue::temporary()).await.unwrap();
        let _keeps_the_queue = rabbit.consume(queue.name()).await.unwrap();
        join_all((0..16).map(one)).within(Duration::from_secs(60)).await;
        assert_eq!(pool.status().resource("rabbitmq").unwrap().generation, 1, "{keeping:?}");
        assert_eq!(pool.status().resource("rabbitmq").unwrap().usage.max, Some(8));
        // All channels are free again.
        drop(_keeps_the_queue);
        let all = join_all((0..8).map(|_| rabbit.channel())).within(SOON).await;
        assert!(all.iter().all(Result::is_ok), "{all:?}");
        drop(all);
        let report = pool.close_all().await;
        assert!(report.all_closed(), "{report}");
    }
    assert_eq!(server.rabbitmq().unwrap().unclean_closes().unwrap(), [""; 0]);
}

/// The driver never again opens a channel under a number whose channel the broker ended with an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_a_connection_whose_channels_the_broker_has_ended_is_made_anew() {
    let server = shared(Kind::RabbitMq);
    let url = format!("{}?channel_max=8", server.url());
    let bare = lapin::Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
    for _ in 0..8 {
        let channel = bare.create_channel().await.unwrap();
        let missing = channel.basic_get("no such queue".into(), BasicGetOptions::default()).await.unwrap_err();
        assert!(missing.is_amqp_soft_error(), "{missing}");
    }
    for _ in 0..8 {
        let refused = bare.create_channel().await;
        println!("control: {:?}", refused.as_ref().map(lapin::Channel::id));
        assert!(refused.is_err(), "the bare driver forgives");
    }
    assert!(bare.status().connected());
    drop(bare);

    let mut options = Options::default();
    // The prober takes a channel of this connection too, if its own connection is slow to open.
    options.probe.enabled = false;
    let pool = pool_with(with(server, "channel_max=8"), options);
    let rabbit = pool.rabbitmq().await.unwrap();
    for n in 0..50 {
        let missing = rabbit.get("no such queue").within(SOON).await.unwrap_err();
        assert!(
            matches!(missing, Error::Operation { .. }) && missing.to_string().contains("NOT_FOUND"),
            "{n}: {missing}"
        );
        let published = rabbit.publish(Message::new("", "nobody", "x").optional()).within(SOON).await;
        assert!(published.unwrap().is_confirmed());
        if n == 6 {
            assert_eq!(pool.status().resource("rabbitmq").unwrap().generation, 1, "there is room for one more");
        }
    }
    let generations = pool.status().resource("rabbitmq").unwrap().generation;
    assert!((5..=9).contains(&generations), "{generations}");
    assert!(pool.close_all().await.all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_one_channel_too_many_waits_and_names_all_who_have_one() {
    let mut options = Options::default();
    options.acquire_timeout = Duration::from_secs(2);
    let pool = pool_with(with(shared(Kind::RabbitMq), "channel_max=8"), options);
    let rabbit = pool.within(SOON).rabbitmq().await.unwrap();
    let queue = rabbit.declare_queue(Queue::temporary()).await.unwrap();
    // Idle channels are closed to make room.
    join_all((0..8).map(|_| rabbit.publish(Message::new("", queue.name(), "x")))).await;
    let mut lines = Vec::new();
    let (mut channels, mut consumers, mut deliveries) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        consumers.push(rabbit.consume(Consume::from(queue.name()).prefetch(1)).await.unwrap());
        lines.push(line!() - 1);
    }
    for consumer in &mut consumers {
        consumer.next().within(SOON).await.unwrap().unwrap().ack().await.unwrap();
    }
    let other = rabbit.declare_queue(Queue::temporary()).await.unwrap();
    assert!(rabbit.publish(Message::new("", other.name(), "x")).await.unwrap().is_confirmed());
    deliveries.push(rabbit.get(other.name()).await.unwrap().unwrap());
    lines.push(line!() - 1);
    for _ in 0..4 {
        channels.push(rabbit.channel().await.unwrap());
        lines.push(line!() - 1);
    }
    let here = |error: Error| {
        let Error::Timeout(timeout) = &error else { panic!("{error}") };
        assert!(timeout.waiting_for.contains("8 channels"), "{error}");
        let ours = timeout.holders.iter().filter(|holder| holder.site.file() == "tests/rabbitmq_limits.rs");
        let mut named: Vec<_> = ours.map(|holder| holder.site.line()).collect();
        named.sort_unstable();
        let mut wanted = lines.clone();
        wanted.sort_unstable();
        assert_eq!(named, wanted, "{error}");
    };
    let threads = blocking::ResourcePool::from(pool.clone()).rabbitmq().unwrap();
    let in_thread = thread::spawn(move || threads.channel().map(drop).unwrap_err());
    let (channel, published, consumer, declared) = tokio::join!(
        rabbit.channel().within(SOON),
        rabbit.publish(Message::new("", "nobody", "x")).within(SOON),
        rabbit.consume(queue.name()).within(SOON),
        rabbit.declare_exchange(Exchange::fanout("never")).within(SOON),
    );
    here(channel.map(drop).unwrap_err());
    here(published.map(drop).unwrap_err());
    here(consumer.map(drop).unwrap_err());
    here(declared.unwrap_err());
    here(in_thread.join().unwrap());
    // More callers wait than there are channels. None waits longer than the others, or learns less.
    let all = join_all((0..12).map(|_| async {
        let waited = Stopwatch::start();
        (rabbit.channel().within(SOON).await.map(drop).unwrap_err(), waited.took())
    }));
    let (errors, waited): (Vec<_>, Vec<_>) = all.await.into_iter().unzip();
    errors.into_iter().for_each(here);
    let (shortest, longest) = (waited.iter().min().unwrap(), waited.iter().max().unwrap());
    assert!(*longest < shortest.mul_f64(1.5), "{waited:?}");

    // A waiter gets the first channel that ends, whoever had it.
    let waiting = RabbitMq::clone(&rabbit);
    let waiting = tokio::spawn(async move { waiting.channel().await.map(drop) });
    drop(consumers.pop());
    waiting.within(SOON).await.unwrap().unwrap();
    assert!(rabbit.publish(Message::new("", "nobody", "x").optional()).await.unwrap().is_confirmed());
    assert_eq!(pool.status().resource("rabbitmq").unwrap().generation, 1);
    assert_eq!(pool.health_check().await.entry("rabbitmq").unwrap().health, Health::Pass);
    drop((channels, deliveries, consumers));
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_asking_on_after_a_consumers_end_says_how_it_ended() {
    let pool = pool_of(RabbitMqConfig::url(shared(Kind::RabbitMq).url()));
    let rabbit = pool.rabbitmq().await.unwrap();
    let threads = blocking::ResourcePool::from(pool.clone()).rabbitmq().unwrap();
    let queue = rabbit.declare_queue(Queue::temporary()).await.unwrap().name().to_owned();
    let other = rabbit.declare_queue(Queue::temporary()).await.unwrap().name().to_owned();
    let mut tasks = rabbit.consume(queue.as_str()).await.unwrap();
    let (of_thread, left) = (queue.clone(), other.clone());
    let thread = threads.clone();
    let (mut ended, mut going) =
        thread::spawn(move || (thread.consume(of_thread).unwrap(), thread.consume(left).unwrap())).join().unwrap();
    rabbit.delete_queue(&queue).await.unwrap();
    assert!(matches!(tasks.next().within(SOON).await, Some(Err(Error::Operation { .. }))));
    assert!(tasks.next().within(SOON).await.is_none(), "a stream ends");
    let (mut ended, how) = thread::spawn(move || {
        let how = ended.next_within(SOON).map(drop).unwrap_err();
        (ended, how)
    })
    .join()
    .unwrap();
    assert!(how.to_string().contains("its queue was deleted"), "{how}");
    let on = ended.next_within(SOON).map(drop).unwrap_err();
    let Error::Operation { resource, action, source } = &on else { panic!("{on}") };
    assert_eq!((&**resource, action), ("rabbitmq", &format!("consuming {queue:?}")));
    assert!(source.to_string().starts_with("the consumer has ended: the broker cancelled"), "{on}");
    assert!(ended.next().is_none(), "an iterator ends");
    // The error was about the consumer alone. The resource works.
    assert!(rabbit.publish(Message::new("", &other, "x")).await.unwrap().is_confirmed());
    assert_eq!(pool.status().resource("rabbitmq").unwrap().generation, 1);

    let (seen, is_seen) = std::sync::mpsc::channel();
    let waiting = thread::spawn(move || {
        drop(going.next_within(SOON).unwrap().unwrap().ack());
        seen.send(()).unwrap();
        let closing = going.next_within(Duration::from_secs(60)).map(drop).unwrap_err();
        (going, closing)
    });
    is_seen.recv().unwrap();
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    let (going, closing) = waiting.join().unwrap();
    assert!(closing.is_closed(), "{closing}");
    let closed = thread::spawn(move || { going }.next_within(SOON).map(drop).unwrap_err()).join().unwrap();
    assert!(matches!(closed, Error::Closed { .. }), "{closed}");
    let closed = thread::spawn(move || ended.next_within(SOON).map(drop).unwrap_err()).join().unwrap();
    assert!(matches!(closed, Error::Closed { .. }), "now the resource is: {closed}");
}

/// Closing at any moment of a connect leaves nothing at the broker. The report has a step if there was a connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_closing_while_it_connects_leaves_nothing() {
    const ROUNDS: u32 = 20;
    let server = Service::start(Kind::RabbitMq).unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    let mut closed = 0;
    for round in 0..ROUNDS {
        let before = proxy.accepted();
        let pool = pool_of(RabbitMqConfig::url(proxy.url(&server)));
        let acquiring = pool.clone();
        let acquiring = tokio::spawn(async move { acquiring.rabbitmq().await.map(drop) });
        until_async(SOON, async || pool.status().resource("rabbitmq").unwrap().state != State::Idle).await;
        // The rounds close from before the first byte until after the last. A handshake takes about 10 ms.
        let moment = Instant::now() + Duration::from_micros(700) * round;
        while Instant::now() < moment {
            tokio::task::yield_now().await;
        }
        let report = pool.close_all().within(SOON).await;
        assert!(report.all_closed(), "{round}: {report}");
        let acquired = acquiring.within(SOON).await.unwrap();
        assert!(acquired.as_ref().err().is_none_or(Error::is_closed), "{round}: {acquired:?}");
        // A connection that reached the broker has a step in the report.
        let was_there =
            proxy.frames().iter().any(|frame| frame.connection >= before && frame.name == "Connection.OpenOk");
        let step = report.step("rabbitmq").is_some();
        assert!(step || !was_there, "{round}: {report}");
        closed += usize::from(step);
        until_async(SOON, async || proxy.open() == 0).await;
        assert!(pool.rabbitmq().await.unwrap_err().is_closed());
    }
    println!("{closed} of {ROUNDS} had a connection to close");
    until_async(SOON, async || server.rabbitmq().unwrap().connections().unwrap().is_empty()).await;
    assert_eq!(server.rabbitmq().unwrap().unclean_closes().unwrap(), [""; 0]);
}

/// A port that sends these bytes to each client, and reads its answer.
fn says(what: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().take(50).flatten() {
            let mut stream = stream;
            let _ = stream.write_all(what);
            let _ = stream.read(&mut [0; 64]);
        }
    });
    port
}

/// An error that no further attempt can mend is permanent, and the first attempt reports it. Other errors are not
/// permanent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_refusals_of_the_handshake_are_permanent_and_no_room_is_not() {
    let server = Service::start(Kind::RabbitMq).unwrap();
    let view = server.rabbitmq().unwrap();
    let (mine, full, limits) = (user(&server, "mine"), user(&server, "full"), user(&server, "is reached"));
    drop(limits);
    view.ctl(&["set_user_limits", "full", r#"{"max-connections": 0}"#]).unwrap();
    view.ctl(&["add_vhost", "crowded"]).unwrap();
    view.ctl(&["set_permissions", "-p", "crowded", "mine", ".*", ".*", ".*"]).unwrap();
    view.ctl(&["set_vhost_limits", "-p", "crowded", r#"{"max-connections": 0}"#]).unwrap();
    view.ctl(&["add_vhost", "down"]).unwrap();
    view.ctl(&["set_permissions", "-p", "down", "mine", ".*", ".*", ".*"]).unwrap();
    view.eval(r#"rabbit_vhost_sup_sup:stop_and_delete_vhost(<<"down">>)"#).unwrap();
    let at = |vhost: &str| mine.strip_suffix("mine").unwrap().to_owned() + vhost;
    let port = |port: u16| format!("amqp://guest:guest@127.0.0.1:{port}/");
    let cases = [
        ("a wrong password", true, mine.replace("secret", "wrong")),
        ("an unknown user", true, mine.replace("mine:", "nobody:")),
        ("a missing right", true, at("full")),
        ("a missing right, beside a limit's words", true, at("is%20reached")),
        ("an unknown virtual host", true, at("nowhere")),
        ("an unknown virtual host, of a limit's words", true, at("no%20limit%20is%20reached")),
        ("another version of the protocol", true, port(says(b"AMQP\x01\x01\x00\x09"))),
        ("another protocol", true, port(says(b"SSH-2.0-OpenSSH_9.2\r\n"))),
        ("another protocol", true, port(says(b"HTTP/1.1 400 Bad Request\r\n\r\n"))),
        ("a full user", false, full),
        ("a full virtual host", false, at("crowded")),
        ("a virtual host that is down", false, at("down")),
        ("nobody there", false, port(1)),
    ];
    let connect = async |(what, permanent, url): (&str, bool, String)| {
        let pool = pool_of(RabbitMqConfig::url(url));
        let error = pool.within(Duration::from_secs(20)).rabbitmq().await.expect_err(what);
        println!("{what}: {error}");
        let Error::Connect(connect) = &error else { panic!("{what}: {error}") };
        assert_eq!((connect.permanent, connect.attempts == 1), (permanent, permanent), "{what}: {error}");
    };
    join_all(cases.map(connect)).await;
    // A broker that stops or starts is not a permanent error.
    let pool = pool_of(RabbitMqConfig::url(&mine));
    let mut seen = HashSet::new();
    let stopping = server.rabbitmq().unwrap().eval("spawn(fun() -> rabbit:stop() end)").map(drop);
    stopping.unwrap();
    let stopped = Instant::now();
    while stopped.elapsed() < Duration::from_secs(5) {
        match pool.within(Duration::from_millis(500)).rabbitmq().await {
            Ok(rabbit) => drop(rabbit.declare_queue(Queue::temporary()).await),
            Err(error) => {
                assert!(!matches!(&error, Error::Connect(connect) if connect.permanent), "{error}");
                seen.insert(error.to_string().split_once(": ").map(|(_, why)| why.to_owned()));
            }
        }
    }
    println!("while it stops: {seen:#?}");
}

/// An error of a cut call names the resource and the cause. For a service that is the difference between a 500 and a
/// 503.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_calls_that_are_cut_name_the_resource_and_the_cause() {
    let server = shared(Kind::RabbitMq);
    let proxy = Proxy::start(server.port()).unwrap();
    let pool = pool_of(RabbitMqConfig::url(proxy.url(server)));
    let rabbit = pool.rabbitmq().await.unwrap();
    let threads = blocking::ResourcePool::from(pool.clone()).rabbitmq().unwrap();
    let queue = rabbit.declare_queue(Queue::temporary()).await.unwrap().name().to_owned();
    // That leaves as many idle channels.
    join_all((0..20).map(|_| rabbit.publish(Message::new("", &queue, "x")))).await;
    // One channel is used by the driver's own methods, one by `run`.
    let raw = rabbit.channel().await.unwrap();
    let (ran, ours) = (rabbit.channel().await.unwrap(), threads.channel().unwrap());
    raw.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let mut native = raw
        .basic_consume(queue.as_str().into(), "".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await
        .unwrap();
    let mut consumer = rabbit.consume(queue.as_str()).await.unwrap();
    proxy.freeze();
    let frozen = Stopwatch::start();
    let unknown = |error: &Error| matches!(error, Error::OutcomeUnknown { .. });
    let lost = |error: &Error| matches!(error, Error::Lost { .. });
    let in_thread = {
        let (threads, queue) = (threads.clone(), queue.clone());
        thread::spawn(move || {
            let publish = {
                let threads = threads.clone();
                thread::spawn(move || threads.publish(Message::new("", "nobody", "x")).map(drop))
            };
            let run =
                thread::spawn(move || ours.run(async |channel| channel.basic_qos(1, BasicQosOptions::default()).await));
            let get = threads.get(&queue).map(drop);
            (publish.join().unwrap(), get, run.join().unwrap())
        })
    };
    let calls = tokio::join!(
        rabbit.declare_exchange(Exchange::fanout("never")),
        rabbit.declare_queue(Queue::new("never")),
        rabbit.bind(&queue, "amq.fanout", ""),
        rabbit.delete_queue("never"),
        rabbit.delete_exchange("never"),
        rabbit.get(&queue),
        rabbit.publish(Message::new("", "nobody", "x")),
        rabbit.publish_batch((0..3).map(|_| Message::new("", "nobody", "x"))),
        ran.run(async |channel| channel.basic_qos(1, BasicQosOptions::default()).await),
        rabbit.consume(Consume::from("never")),
        raw.basic_qos(1, BasicQosOptions::default()).within(SOON),
    );
    assert!(frozen.took() < FROZEN, "{:?}", frozen.took());
    let (publish, get, run) = in_thread.join().unwrap();
    let batch = calls.7.unwrap().into_results().into_iter().map(|result| result.map(drop).unwrap_err());
    let told: Vec<(&str, Error, bool)> = [
        ("declare_exchange", calls.0.unwrap_err(), false),
        ("declare_queue", calls.1.map(drop).unwrap_err(), false),
        ("bind", calls.2.unwrap_err(), false),
        ("delete_queue", calls.3.unwrap_err(), false),
        ("delete_exchange", calls.4.unwrap_err(), false),
        ("get", calls.5.map(drop).unwrap_err(), false),
        ("publish", calls.6.map(drop).unwrap_err(), true),
        ("run", calls.8.unwrap_err(), false),
        ("consume", calls.9.map(drop).unwrap_err(), false),
        ("a thread's publish", publish.unwrap_err(), true),
        ("a thread's get", get.unwrap_err(), false),
        ("a thread's run", run.unwrap_err(), false),
    ]
    .into_iter()
    .chain(batch.map(|error| ("publish_batch", error, true)))
    .collect();
    for (what, error, changes) in &told {
        println!("{what}: {error}");
        assert!(if *changes { unknown(error) } else { lost(error) }, "{what}: {error}");
        assert!(error.to_string().contains("rabbitmq") && error.to_string().contains("no answer"), "{what}: {error}");
        assert!(!error.to_string().contains("closed"), "{what}: {error}");
    }
    // The driver's own error has ours behind it where a call was in flight.
    let native_error = calls.10.unwrap_err();
    println!("native: {native_error}");
    assert!(matches!(Error::behind(&native_error), Some(Error::Lost { .. })), "{native_error:?}");
    let native_end = common::eventually(SOON, async || {
        futures_util::StreamExt::next(&mut native).within(SOON).await.and_then(Result::err)
    });
    let native_end = native_end.await;
    assert!(matches!(Error::behind(&native_end), Some(Error::Lost { .. })), "{native_end:?}");
    assert!(!matches!(native_end.kind(), ErrorKind::ProtocolError(_)));
    proxy.thaw();
    proxy.cut();
    // Its consumers go on nevertheless.
    until_async(SOON, async || rabbit.publish(Message::new("", &queue, "x")).await.is_ok()).await;
    drop(consumer.next().within(SOON).await.unwrap().unwrap().ack().await);
}
