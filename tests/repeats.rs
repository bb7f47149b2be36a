//! Operations that are sent again after a loss, and those that never are, counted on the wire.
//!
//! A [`Tap`] has a thread that accepts, and threads that forward. Its clients' bytes are in `asked` and its sockets in
//! `open`. Lock order: `open`, then `asked`.

#![cfg(all(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
#![allow(missing_docs)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::{Within, until, until_async};
use mongodb::bson::{Document, doc};
use redis::{AsyncCommands, Commands};
use resource_pool::config::{ClickHouseConfig, MongoConfig, Options, RabbitMqConfig, RedisConfig, Repeat};
use resource_pool::rabbitmq::{Exchange, Message, Queue};
use resource_pool::{Error, Lease, ResourcePool, ResourceStatus, State, blocking};
use services::{Kind, Service, shared};

/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// How long a forwarding thread sleeps while answers are held up.
const PAUSE: Duration = Duration::from_millis(2);

/// Forwards to a server, records the clients' bytes, and can hold up the answers alone.
struct Tap {
    port: u16,
    wire: Arc<Wire>,
}

#[derive(Default)]
struct Wire {
    /// The bytes of each client, by connection.
    asked: Mutex<Vec<Vec<u8>>>,
    is_mute: AtomicBool,
    is_deaf: AtomicBool,
    refuses: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Tap {
    fn before(server: &Service) -> Tap {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, target, wire) = (listener.local_addr().unwrap().port(), server.port(), Arc::<Wire>::default());
        let accepting = Arc::clone(&wire);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // The lock is held until the new connection is in the list, so that a cut includes it.
                let mut open = accepting.open.lock().unwrap();
                if accepting.refuses.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                let asker = {
                    let mut asked = accepting.asked.lock().unwrap();
                    asked.push(Vec::new());
                    asked.len() - 1
                };
                for (from, to, asker) in [(&client, &server, Some(asker)), (&server, &client, None)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let wire = Arc::clone(&accepting);
                    thread::spawn(move || wire.forward(from, to, asker));
                }
                open.extend([client, server]);
            }
        });
        Tap { port, wire }
    }

    fn url(&self, server: &Service) -> String {
        let (from, to) = (format!("@{}:{}", server.host(), server.port()), format!("@127.0.0.1:{}", self.port));
        server.url().replacen(&from, &to, 1)
    }

    /// How often clients have sent this text.
    fn asked(&self, what: &str) -> usize {
        let asked = self.wire.asked.lock().unwrap();
        asked.iter().flat_map(|asked| asked.windows(what.len())).filter(|said| *said == what.as_bytes()).count()
    }

    /// Holds up the answers from now on, or lets them through again.
    fn mute(&self, is_mute: bool) {
        self.wire.is_mute.store(is_mute, Ordering::SeqCst);
    }

    /// From now on the clients' bytes are recorded and not forwarded.
    fn deafen(&self) {
        self.wire.is_deaf.store(true, Ordering::SeqCst);
    }

    /// Ends every connection.
    fn cut(&self) {
        for stream in self.wire.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Ends every connection, and refuses new ones until `open_up`.
    fn close_down(&self) {
        self.wire.refuses.store(true, Ordering::SeqCst);
        self.cut();
    }

    fn open_up(&self) {
        self.wire.refuses.store(false, Ordering::SeqCst);
    }

    /// Ends the connections while the answer to a request is held up.
    fn cut_answers(&self) {
        self.cut();
        self.mute(false);
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.cut();
    }
}

impl Wire {
    fn forward(&self, mut from: TcpStream, mut to: TcpStream, asker: Option<usize>) {
        let mut buffer = [0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            // The lock is held until the bytes are forwarded. So a test that sees their effect finds them recorded. A
            // test that finds them recorded may cut the connection that forwarded them.
            let asked = asker.map(|asker| {
                let mut asked = self.asked.lock().unwrap();
                asked[asker].extend(&buffer[..count]);
                asked
            });
            if asked.is_some() && self.is_deaf.load(Ordering::SeqCst) {
                continue;
            }
            while asked.is_none() && self.is_mute.load(Ordering::SeqCst) {
                thread::sleep(PAUSE);
            }
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }
}

fn pool(server: &Service, tap: &Tap, repeat: Repeat) -> ResourcePool {
    let mut options = Options::default();
    options.repeat = repeat;
    let builder = ResourcePool::builder().environment([("", ""); 0]).options(options);
    let url = tap.url(server);
    match server.kind() {
        // With `directConnection`, the driver's own retries go through the tap too.
        Kind::Mongo => {
            let url = url.split("replicaSet").next().unwrap().to_owned();
            let direct = format!("{url}{}directConnection=true", if url.contains('?') { "" } else { "?" });
            builder.resource(MongoConfig::uri(direct).min_pool_size(0))
        }
        Kind::RabbitMq => {
            let mut config = RabbitMqConfig::url(url);
            config.confirm_window = 1;
            builder.resource(config)
        }
        Kind::ClickHouse => {
            let mut config = ClickHouseConfig::url(url);
            config.compression = false;
            builder.resource(config)
        }
        Kind::Redis => builder.resource(RedisConfig::url(url)),
        other => panic!("{other} repeats nothing"),
    }
    .build()
    .unwrap()
}

fn unique(what: &str) -> String {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    format!("repeats_{what}_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

async fn on_thread<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(call).await.unwrap()
}

/// The one resource that is in use.
fn used(pool: &ResourcePool) -> ResourceStatus {
    pool.status().resources.into_iter().find(|one| one.generation > 0).unwrap()
}

/// Runs an operation while there is no connection. The tap opens again once the operation waits, if it does.
async fn while_down<T: Send + 'static>(
    tap: &Tap,
    pool: &ResourcePool,
    operation: impl Future<Output = T> + Send + 'static,
) -> T {
    tap.close_down();
    until_async(SOON, async || used(pool).state != State::Ready).await;
    let running = tokio::spawn(operation);
    until_async(SOON, async || running.is_finished() || used(pool).connecting > 0).await;
    tap.open_up();
    let outcome = running.within(SOON).await.unwrap();
    until_async(SOON, async || used(pool).state == State::Ready).await;
    outcome
}

/// Runs an operation whose answer is lost after it was sent.
async fn unanswered<T: Send + 'static>(
    tap: &Tap,
    pool: &ResourcePool,
    said: &str,
    operation: impl Future<Output = T> + Send + 'static,
) -> T {
    let (before, generation) = (tap.asked(said), used(pool).generation);
    tap.mute(true);
    let running = tokio::spawn(operation);
    until_async(SOON, async || tap.asked(said) > before).await;
    tap.cut_answers();
    let outcome = running.within(SOON).await.unwrap();
    // MongoDB and ClickHouse have many connections, so the end of one is no loss of the generation.
    let has_one = ["rabbitmq", "redis"].contains(&&*used(pool).name);
    until_async(SOON, async || {
        let now = used(pool);
        now.state == State::Ready && (!has_one || now.generation > generation)
    })
    .await;
    outcome
}

// RabbitMQ

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeats_rabbitmq() {
    let server = shared(Kind::RabbitMq);
    let tap = Tap::before(server);
    for repeat in [Repeat::Never, Repeat::Unsent, Repeat::Idempotent] {
        let pool = pool(server, &tap, repeat);
        let rabbit = resource_pool::RabbitMq::clone(&*pool.rabbitmq().await.unwrap());
        let queue = unique("queue");
        rabbit.declare_queue(Queue::new(&queue)).await.unwrap();

        // The publish was never sent.
        let unsent = unique("unsent");
        let publish = {
            let (rabbit, message) = (rabbit.clone(), Message::new("", &queue, unsent.as_str()));
            async move { rabbit.publish(message).await }
        };
        let published = while_down(&tap, &pool, publish).await;
        match repeat {
            Repeat::Never => {
                let error = published.unwrap_err();
                assert!(matches!(error, Error::Lost { .. } | Error::Connect(_)), "{error}");
                assert_eq!(tap.asked(&unsent), 0);
            }
            _ => {
                assert!(published.unwrap().is_confirmed());
                assert_eq!(tap.asked(&unsent), 1);
            }
        }

        // The publish is sent, and the confirm is lost.
        has_a_channel(&rabbit).await;
        let sent = unique("sent");
        let publish = {
            let (rabbit, message) = (rabbit.clone(), Message::new("", &queue, sent.as_str()));
            async move { rabbit.publish(message).await }
        };
        let error = unanswered(&tap, &pool, &sent, publish).await.unwrap_err();
        assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
        assert_eq!(tap.asked(&sent), 1, "never again by itself");

        // A declaration does no harm if it runs twice.
        has_a_channel(&rabbit).await;
        let declared = unique("declared");
        let declare = {
            let (threads, name) = (blocking::ResourcePool::from(pool.clone()), declared.clone());
            let threads = on_thread(move || blocking::RabbitMq::clone(&*threads.rabbitmq().unwrap())).await;
            on_thread(move || threads.declare_queue(Queue::new(&name)))
        };
        let answer = unanswered(&tap, &pool, &declared, declare).await;
        match repeat {
            Repeat::Idempotent => {
                assert_eq!(answer.unwrap().name(), declared);
                assert_eq!(tap.asked(&declared), 2);
            }
            _ => {
                let error = answer.unwrap_err();
                assert!(matches!(error, Error::Lost { .. }), "{error}");
                assert_eq!(tap.asked(&declared), 1);
            }
        }
        until_async(SOON, async || rabbit.delete_queue(&declared).await.is_ok()).await;
        let bodies = bodies_in(&rabbit, &queue).await;
        assert!(bodies.iter().filter(|body| **body == sent).count() <= 1, "{bodies:?}");
        rabbit.delete_queue(&queue).await.unwrap();
        assert!(pool.close_all().await.all_closed());
    }
}

/// Leaves an idle channel. Opening one needs an answer before anything is sent on it.
async fn has_a_channel(rabbit: &resource_pool::RabbitMq) {
    until_async(SOON, async || rabbit.publish(Message::new("", "nobody", "x").optional()).await.is_ok()).await;
}

async fn bodies_in(rabbit: &resource_pool::RabbitMq, queue: &str) -> Vec<String> {
    let mut bodies = Vec::new();
    while let Some(delivery) = rabbit.get(queue).await.unwrap() {
        bodies.push(String::from_utf8_lossy(delivery.data()).into_owned());
        delivery.ack().await.unwrap();
    }
    bodies
}

/// The results of a batch tell for each message whether it was confirmed, is unknown, or was never sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeats_of_a_batch_are_told_by_message() {
    let server = shared(Kind::RabbitMq);
    let tap = Arc::new(Tap::before(server));
    let pool = pool(server, &tap, Repeat::Idempotent);
    let rabbit = pool.rabbitmq().await.unwrap();
    let (queue, body) = (unique("queue"), unique("batch"));
    rabbit.declare_queue(Queue::new(&queue)).await.unwrap();
    // With a window of one, exactly the answer to the sixth message is held up.
    let (watched, said) = (Arc::clone(&tap), body.clone());
    let cutting = thread::spawn(move || {
        until(SOON, || watched.asked(&said) == 6);
        watched.cut_answers();
    });
    let muted = Arc::clone(&tap);
    let messages = (0..15).map(|n| {
        if n == 5 {
            muted.mute(true);
        }
        Message::new("", &queue, body.as_str())
    });
    let batch = rabbit.publish_batch(messages).within(SOON).await.unwrap();
    on_thread(move || cutting.join().unwrap()).await;
    for (n, result) in batch.results().iter().enumerate() {
        match n {
            0..5 => assert!(result.as_ref().is_ok_and(|published| published.is_confirmed()), "{n}: {result:?}"),
            5 => assert!(matches!(result, Err(Error::OutcomeUnknown { .. })), "{n}: {result:?}"),
            _ => assert!(result.as_ref().is_err_and(|error| error.to_string().contains("not sent")), "{n}: {result:?}"),
        }
    }
    assert_eq!((batch.results().len(), batch.confirmed(), batch.unknown(), tap.asked(&body)), (15, 5, 1, 6));
    rabbit.delete_queue(&queue).await.unwrap();
    assert_eq!(tap.asked(&body), 6);
    assert!(pool.close_all().await.all_closed());
}

/// The other declarations, whose first answer is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeats_rabbitmq_exchanges_and_bindings() {
    let server = shared(Kind::RabbitMq);
    let tap = Tap::before(server);
    for repeat in [Repeat::Unsent, Repeat::Idempotent] {
        let pool = pool(server, &tap, repeat);
        let rabbit = resource_pool::RabbitMq::clone(&*pool.rabbitmq().await.unwrap());
        let (queue, exchange, key) = (unique("bound"), unique("exchange"), unique("key"));
        rabbit.declare_queue(Queue::new(&queue)).await.unwrap();
        has_a_channel(&rabbit).await;
        let declare = {
            let (rabbit, exchange) = (rabbit.clone(), exchange.clone());
            async move { rabbit.declare_exchange(Exchange::fanout(&exchange)).await }
        };
        let declared = unanswered(&tap, &pool, &exchange, declare).await;
        // This records the exchange, so that it is declared again with the connection.
        rabbit.declare_exchange(Exchange::fanout(&exchange)).await.unwrap();
        has_a_channel(&rabbit).await;
        let bind = {
            let (rabbit, queue, exchange, key) = (rabbit.clone(), queue.clone(), exchange.clone(), key.clone());
            async move { rabbit.bind(&queue, &exchange, &key).await }
        };
        let bound = unanswered(&tap, &pool, &key, bind).await;
        for (answer, name) in [(declared, &exchange), (bound, &key)] {
            match repeat {
                Repeat::Idempotent => answer.unwrap(),
                _ => assert!(matches!(answer, Err(Error::Lost { .. })), "{name}: {answer:?}"),
            }
        }
        assert_eq!(tap.asked(&key), if repeat == Repeat::Idempotent { 2 } else { 1 });
        rabbit.delete_queue(&queue).await.unwrap();
        rabbit.delete_exchange(&exchange).await.unwrap();
        assert!(pool.close_all().await.all_closed());
    }
}

// ClickHouse

/// One of a pool's two facades.
#[derive(Clone)]
enum ClickHouse {
    Tasks(Arc<Lease<clickhouse::Client>>),
    Threads(blocking::ClickHouse),
}

impl ClickHouse {
    async fn both(pool: &ResourcePool) -> [ClickHouse; 2] {
        let tasks = ClickHouse::Tasks(Arc::new(pool.clickhouse().await.unwrap()));
        let threads = blocking::ResourcePool::from(pool.clone());
        let threads = on_thread(move || blocking::ClickHouse::clone(&*threads.clickhouse().unwrap())).await;
        [tasks, ClickHouse::Threads(threads)]
    }

    async fn execute(self, sql: String) -> Result<(), Error> {
        match self {
            ClickHouse::Tasks(clickhouse) => clickhouse.execute(&sql).await,
            ClickHouse::Threads(clickhouse) => on_thread(move || clickhouse.execute(&sql)).await,
        }
    }

    async fn insert(self, table: String) -> Result<u64, Error> {
        let days = [Day { day: 1 }, Day { day: 2 }];
        match self {
            ClickHouse::Tasks(clickhouse) => clickhouse.insert_rows(&table, days).await,
            ClickHouse::Threads(clickhouse) => on_thread(move || clickhouse.insert_rows(&table, days)).await,
        }
    }

    async fn query<T>(self, sql: String) -> Result<Vec<T>, Error>
    where
        T: clickhouse::RowOwned + clickhouse::RowRead + Send,
    {
        match self {
            ClickHouse::Tasks(clickhouse) => clickhouse.query_rows(&sql).await,
            ClickHouse::Threads(clickhouse) => on_thread(move || clickhouse.query_rows(&sql)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeats_clickhouse() {
    let server = shared(Kind::ClickHouse);
    let tap = Tap::before(server);
    for repeat in [Repeat::Never, Repeat::Unsent, Repeat::Idempotent] {
        let pool = pool(server, &tap, repeat);
        for clickhouse in ClickHouse::both(&pool).await {
            repeats_clickhouse_of(clickhouse, &tap, &pool, repeat).await;
        }
        assert!(pool.close_all().await.all_closed());
    }
}

async fn repeats_clickhouse_of(clickhouse: ClickHouse, tap: &Tap, pool: &ResourcePool, repeat: Repeat) {
    let server = shared(Kind::ClickHouse).clickhouse().unwrap();
    let rows = |table: &str| -> usize {
        server.query(&format!("SELECT count() FROM {table}")).unwrap().trim().parse().unwrap()
    };
    let table = unique("days");
    server.query(&format!("CREATE TABLE {table} (day UInt32) ENGINE = MergeTree ORDER BY day")).unwrap();

    // The insert was never sent.
    let insert = format!("INSERT INTO {table} SELECT 1");
    let executed = while_down(tap, pool, clickhouse.clone().execute(insert.clone())).await;
    let expected = if repeat == Repeat::Never {
        let error = executed.unwrap_err();
        assert!(matches!(error, Error::Lost { .. } | Error::Connect(_)), "{error}");
        0
    } else {
        executed.unwrap();
        1
    };
    assert_eq!((tap.asked(&insert), rows(&table)), (expected, expected));

    // A statement that changes something is sent, and the answer is lost.
    let insert = format!("INSERT INTO {table} SELECT 2");
    let execute = clickhouse.clone().execute(insert.clone());
    let error = unanswered(tap, pool, &insert, execute).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    assert_eq!(tap.asked(&insert), 1);
    // Comments before the statement do not hide that.
    let insert = format!("/* SELECT */ -- SELECT\n# SELECT\nINSERT INTO {table} SELECT 3");
    let query = clickhouse.clone().query::<u32>(insert.clone());
    let error = unanswered(tap, pool, &insert, query).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    assert_eq!(tap.asked(&insert), 1);
    let into = unique("rows");
    server.query(&format!("CREATE TABLE {into} (day UInt32) ENGINE = MergeTree ORDER BY day")).unwrap();
    let insert = clickhouse.clone().insert(into.clone());
    let error = unanswered(tap, pool, &into, insert).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    assert_eq!(tap.asked(&into), 1);

    // A statement that only reads.
    let select = format!("-- no INSERT\n/* nor DROP */ (SELECT day FROM {table} WHERE day < 100)");
    let query = clickhouse.clone().query::<u32>(select.clone());
    let answer = unanswered(tap, pool, &select, query).await;
    match repeat {
        Repeat::Idempotent => {
            assert_eq!(answer.unwrap().len(), rows(&table));
            assert_eq!(tap.asked(&select), 2);
        }
        _ => {
            let error = answer.unwrap_err();
            assert!(matches!(error, Error::Lost { .. }), "{error}");
            assert_eq!(tap.asked(&select), 1);
        }
    }
    for table in [table, into] {
        server.query(&format!("DROP TABLE {table}")).unwrap();
    }
}

/// The server need not understand the statements. The test counts how often each is sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeats_clickhouse_statements_and_inserters() {
    let server = shared(Kind::ClickHouse);
    let tap = Tap::before(server);
    let table = unique("looked_at");
    let create = format!("CREATE TABLE {table} (day UInt32) ENGINE = MergeTree ORDER BY day");
    server.clickhouse().unwrap().query(&create).unwrap();
    for repeat in [Repeat::Unsent, Repeat::Idempotent] {
        let pool = pool(server, &tap, repeat);
        let clickhouses = ClickHouse::both(&pool).await;
        let statements = ["SHOW CREATE TABLE", "DESCRIBE TABLE", "EXPLAIN SELECT * FROM"];
        for (statement, clickhouse) in statements.iter().flat_map(|one| clickhouses.iter().map(move |by| (one, by))) {
            let statement = format!("{statement} {table}");
            let before = tap.asked(&statement);
            let query = clickhouse.clone().query::<String>(statement.clone());
            let is_lost = matches!(unanswered(&tap, &pool, &statement, query).await, Err(Error::Lost { .. }));
            assert_eq!(
                (is_lost, tap.asked(&statement) - before),
                match repeat {
                    Repeat::Idempotent => (false, 2),
                    _ => (true, 1),
                }
            );
        }
        let before = tap.asked(&table);
        let mut inserter = pool.clickhouse().await.unwrap().inserter::<Day>(&table).unwrap();
        let insert = async move {
            inserter.write(&Day { day: 1 }).await?;
            inserter.end().await
        };
        let error = unanswered(&tap, &pool, &table, insert).await.unwrap_err();
        assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
        assert_eq!(tap.asked(&table) - before, 1);
        drop(clickhouses);
        pool.close_all().await;
    }
    server.clickhouse().unwrap().query(&format!("DROP TABLE {table}")).unwrap();
}

#[derive(clickhouse::Row, serde::Serialize, serde::Deserialize)]
struct Day {
    day: u32,
}

// Redis

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeats_redis() {
    let server = shared(Kind::Redis);
    let tap = Tap::before(server);
    let view = server.redis().unwrap();
    for repeat in [Repeat::Never, Repeat::Unsent, Repeat::Idempotent] {
        let pool = pool(server, &tap, repeat);
        let redis = resource_pool::Redis::clone(&*pool.redis().await.unwrap());

        // The command was never sent.
        let unsent = unique("unsent");
        let incr = {
            let (mut redis, key) = (redis.clone(), unsent.clone());
            async move { redis.incr::<_, _, i64>(key, 1).await }
        };
        let answer = while_down(&tap, &pool, incr).await;
        match repeat {
            Repeat::Never => {
                let error = answer.unwrap_err();
                let ours = Error::behind(&error);
                assert!(matches!(ours, Some(Error::Lost { .. } | Error::Connect(_))), "{error}");
                assert_eq!(tap.asked(&unsent), 0);
            }
            _ => {
                assert_eq!(answer.unwrap(), 1);
                assert_eq!(tap.asked(&unsent), 1);
            }
        }

        // Commands that change something are sent and the answer is lost: a single one, a pipeline, and one of a
        // thread.
        let sent = unique("sent");
        let incr = {
            let (mut redis, key) = (redis.clone(), sent.clone());
            async move { redis.incr::<_, _, i64>(key, 1).await }
        };
        let error = unanswered(&tap, &pool, &sent, incr).await.unwrap_err();
        assert!(matches!(Error::behind(&error), Some(Error::OutcomeUnknown { .. })), "{error}");
        let piped = unique("piped");
        let pipeline = {
            let (mut redis, key) = (redis.clone(), piped.clone());
            async move { redis::pipe().ping().incr(key, 1).query_async::<(String, i64)>(&mut redis).await }
        };
        let error = unanswered(&tap, &pool, &piped, pipeline).await.unwrap_err();
        assert!(matches!(Error::behind(&error), Some(Error::OutcomeUnknown { .. })), "{error}");
        let threaded = unique("threaded");
        let incr = {
            let (threads, key) = (blocking::ResourcePool::from(pool.clone()), threaded.clone());
            let mut checkout = on_thread(move || threads.redis().unwrap()).await;
            on_thread(move || checkout.incr::<_, _, i64>(key, 1))
        };
        let error = unanswered(&tap, &pool, &threaded, incr).await.unwrap_err();
        assert!(matches!(Error::behind(&error), Some(Error::OutcomeUnknown { .. })), "{error}");
        for key in [&sent, &piped, &threaded] {
            assert_eq!(tap.asked(key), 1);
            until(SOON, || view.command(&["GET", key]).unwrap() == "1");
        }

        // A command that only reads.
        let read = unique("read");
        view.command(&["SET", &read, "7"]).unwrap();
        let get = {
            let (mut redis, key) = (redis.clone(), read.clone());
            async move { redis.get::<_, i64>(key).await }
        };
        let answer = unanswered(&tap, &pool, &read, get).await;
        let both = unique("both");
        let pipeline = {
            let (mut redis, key) = (redis.clone(), both.clone());
            async move { redis::pipe().exists(&key).ttl("none").query_async::<(i64, i64)>(&mut redis).await }
        };
        let both_read = unanswered(&tap, &pool, &both, pipeline).await;
        match repeat {
            Repeat::Idempotent => {
                assert_eq!((answer.unwrap(), both_read.unwrap()), (7, (0, -2)));
                assert_eq!((tap.asked(&read), tap.asked(&both)), (2, 2));
            }
            _ => {
                assert!(answer.is_err_and(|error| error.is_io_error()) && both_read.is_err());
                assert_eq!((tap.asked(&read), tap.asked(&both)), (1, 1));
            }
        }
        for key in [&unsent, &sent, &piped, &threaded, &read] {
            view.command(&["DEL", key]).unwrap();
        }
        assert!(pool.close_all().await.all_closed());
    }
}

/// Checks the commands that the pool takes for reads. Each command that the server knows is sent and its answer is
/// lost. The server's own list says which of them write.
#[test]
fn commands_that_only_read_do_not_write() {
    let server = shared(Kind::Redis);
    let list = |words: &[&str]| -> Vec<String> {
        server.redis().unwrap().command(words).unwrap().lines().map(str::to_owned).collect()
    };
    let known = list(&["COMMAND", "LIST"]);
    let writing = list(&["COMMAND", "LIST", "FILTERBY", "ACLCAT", "write"]);
    let tap = Tap::before(server);
    let mut options = Options::default();
    options.probe.enabled = false;
    let config = RedisConfig::url(tap.url(server)).pool_size(known.len().try_into().unwrap());
    let builder = blocking::ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config);
    let pool = builder.build().unwrap();
    let checkouts: Vec<_> = known.iter().map(|_| pool.within(SOON).redis().unwrap()).collect();
    tap.deafen();
    let ask = |(name, mut redis): (String, blocking::Redis)| {
        thread::spawn(move || {
            let error = redis::cmd(&name).query::<redis::Value>(&mut redis).unwrap_err();
            (name, !matches!(Error::behind(&error), Some(Error::OutcomeUnknown { .. })))
        })
    };
    let asking: Vec<_> = known.iter().cloned().zip(checkouts).map(ask).collect();
    // A command that has not left its thread yet would be reported as unsent, whatever it does.
    until(SOON, || known.iter().all(|name| tap.asked(&format!("*1\r\n${}\r\n{name}\r\n", name.len())) > 0));
    tap.cut();
    let reads = asking.into_iter().map(|asking| asking.join().unwrap()).filter(|(_, reads)| *reads);
    let reads: Vec<String> = reads.map(|(name, _)| name).collect();
    let wrong: Vec<_> = reads.iter().filter(|name| writing.contains(name)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(writing.len() > 60 && reads.len() > 60, "{reads:?} and {writing:?} of {known:?}");
}

// MongoDB

/// The driver repeats by itself. The server tells such a retry from a second write by its number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeats_mongodb_are_the_drivers_and_write_once() {
    let server = shared(Kind::Mongo);
    let tap = Tap::before(server);
    let pool = pool(server, &tap, Repeat::Unsent);
    let mongo = pool.mongo().await.unwrap();
    let marks = mongo.database("quantaxis").collection::<Document>("repeats");
    marks.insert_one(doc! { "mark": "first" }).await.unwrap();
    let mark = unique("mark");
    let insert = {
        let (marks, mark) = (marks.clone(), mark.clone());
        async move { marks.insert_one(doc! { "mark": mark }).await }
    };
    unanswered(&tap, &pool, &mark, insert).await.unwrap();
    assert_eq!(tap.asked(&mark), 2, "sent again");
    assert_eq!(marks.count_documents(doc! { "mark": &mark }).await.unwrap(), 1, "written once");
    marks.drop().await.unwrap();
    pool.close_all().await;
}
