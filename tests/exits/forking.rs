//! A program that forks in the middle of its work, and the calls that its child may make.
//!
//! Two more threads call the pool until the atomic `DONE` is set, so that the fork may happen while they hold locks.

#[cfg(any(feature = "redis", feature = "postgres", feature = "mysql"))]
use std::error::Error as StdError;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fork::Fork;
#[cfg(feature = "rabbitmq")]
use resource_pool::rabbitmq::{Consume, Message, Queue};
use resource_pool::{Error, ResourcePool, blocking};

use super::child::tell;

pub(crate) fn main(ending: &str) {
    let pool = blocking::ResourcePool::global();
    pool.on_report(super::child::told);
    let mut guards = Guards::new(pool);
    static DONE: AtomicBool = AtomicBool::new(false);
    // These threads make the fork likely to come while locks are held. The child needs none of those locks unless it
    // makes a pool of its own.
    let others: Vec<_> = (0..if ending == "own" { 0 } else { 2 })
        .map(|_| {
            std::thread::spawn(move || {
                while !DONE.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                    let _ = (pool.status(), pool.holders(), pool.is_closing());
                    #[cfg(feature = "mongodb")]
                    drop(pool.mongo());
                }
            })
        })
        .collect();
    tell("BEFORE");
    match fork::fork().expect("a child") {
        Fork::Child => {
            let forked_at = std::time::Instant::now();
            guards.are_refused();
            is_refused(pool);
            drop(guards);
            // A call that is not refused would wait as long as an acquire may.
            assert!(forked_at.elapsed() < Duration::from_secs(10), "{:?}", forked_at.elapsed());
            println!("REFUSED");
            match ending {
                "return" => {}
                "exit" => std::process::exit(3),
                "panic" => panic!("as the test asked"),
                "wait" => loop {
                    println!("PARKED {}", std::process::id());
                    std::thread::park();
                },
                "own" => own(),
                _ => panic!("no such ending"),
            }
        }
        Fork::Parent(child) => {
            let status = ExitStatus::from_raw(fork::waitpid(child).expect("the child's status"));
            // A panic would end the child before the point that the test waits for.
            assert!(status.code() != Some(101) || ending == "panic", "the child ended by {status}");
            println!("CHILD {:?} {:?}", status.code(), status.signal());
            tell("AFTER");
            DONE.store(true, Ordering::SeqCst);
            for other in others {
                other.join().expect("a lease");
            }
            guards.work();
        }
    }
}

/// Uses a pool of the child's own. It is closed when the child returns from `main`.
fn own() {
    let pool = blocking::ResourcePool::builder().on_report(super::child::told).build().expect("a pool");
    #[cfg(feature = "redis")]
    redis::cmd("INCR").arg("forked").exec(&mut pool.redis().expect("redis")).expect("an answer");
    #[cfg(feature = "rabbitmq")]
    {
        let rabbit = pool.rabbitmq().expect("rabbitmq");
        assert!(rabbit.publish(Message::new("amq.fanout", "", "forked").optional()).expect("an answer").is_confirmed());
    }
    #[cfg(feature = "clickhouse")]
    assert_eq!(pool.clickhouse().expect("clickhouse").query_rows::<u8>("SELECT 1").expect("an answer"), [1]);
    #[cfg(feature = "postgres")]
    pool.postgres()
        .expect("postgres")
        .wait(async |postgres| selects(postgres).await)
        .expect("a thread")
        .expect("an answer");
    #[cfg(feature = "mysql")]
    pool.mysql().expect("mysql").wait(async |mysql| mysql_selects(mysql).await).expect("a thread").expect("an answer");
    #[cfg(feature = "mongodb")]
    runtime().block_on(async {
        let mongo = pool.as_async().mongo().await.expect("mongo");
        mongo.list_database_names().await.expect("an answer");
    });
    // The exit hook closes the pool, because no handle of it drops.
    super::child::keep(pool);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn refused<T>(what: &str, answer: Result<T, Error>) {
    match answer {
        Err(Error::Forked) => {}
        Err(error) => panic!("{what}: {error}"),
        Ok(_) => panic!("{what} was not refused"),
    }
}

/// Like `refused`, where a signature asks for the driver's error.
#[cfg(any(feature = "redis", feature = "postgres", feature = "mysql"))]
fn refused_inside<T>(what: &str, answer: Result<T, impl StdError + 'static>) {
    let error = answer.err().unwrap_or_else(|| panic!("{what} was not refused"));
    assert!(matches!(Error::behind(&error), Some(Error::Forked)), "{what}: {error} {:?}", error.source());
}

#[cfg(feature = "postgres")]
async fn selects(postgres: &mut resource_pool::Postgres) -> resource_pool::sqlx::Result<i32> {
    resource_pool::sqlx::query_scalar("SELECT 1").fetch_one(postgres).await
}

#[cfg(feature = "mysql")]
async fn mysql_selects(mysql: &mut resource_pool::MySql) -> resource_pool::sqlx::Result<i64> {
    resource_pool::sqlx::query_scalar("SELECT 1").fetch_one(mysql).await
}

/// Every verb of an inherited pool answers at once.
fn is_refused(pool: &blocking::ResourcePool) {
    #[cfg(feature = "mongodb")]
    {
        refused("mongo", pool.mongo());
        refused("mongo_named", pool.mongo_named("mongo"));
        refused("mongo_with", pool.mongo_with("other", resource_pool::config::MongoConfig::default()));
    }
    #[cfg(feature = "rabbitmq")]
    refused("rabbitmq", pool.rabbitmq());
    #[cfg(feature = "clickhouse")]
    refused("clickhouse", pool.clickhouse());
    #[cfg(feature = "redis")]
    refused("redis", pool.redis());
    #[cfg(feature = "postgres")]
    refused("postgres", pool.postgres());
    #[cfg(feature = "mysql")]
    refused("mysql", pool.mysql());
    refused("close", pool.close("redis"));
    refused("close_all", pool.close_all());
    refused("reconnect", pool.reconnect("redis"));
    refused("reopen", pool.reopen());
    refused("on_close", pool.on_close("late", resource_pool::Phase::Tasks, || Ok(())));
    refused("depends_on", pool.depends_on("redis", "mongo"));
    refused("run", blocking::run(|| ()));
    refused("run", resource_pool::run(async {}));
    assert!(pool.warm_up(["redis"]).expect("threads may wait").iter().all(|(_, ready)| ready.is_err()));
    assert!(!pool.health_check().expect("threads may wait").is_healthy());
    assert!(!pool.is_healthy("redis").expect("threads may wait"));
    assert!(pool.status().resources.is_empty() && pool.holders().is_empty() && pool.check_leak(0).is_empty());
    assert!(pool.is_closing() && pool.closing().is_set());
    let pool = ResourcePool::global();
    runtime().block_on(async {
        #[cfg(feature = "mongodb")]
        refused("mongo", pool.mongo().await);
        #[cfg(feature = "redis")]
        refused("redis", pool.redis().await);
        #[cfg(feature = "postgres")]
        refused("postgres", pool.postgres().await);
        #[cfg(feature = "mysql")]
        refused("mysql", pool.mysql().await);
        refused("close", pool.close("redis").await);
        assert!(!pool.close_all().await.all_closed());
        assert!(!pool.health_check().await.is_healthy());
    });
}

/// One of each thing that a program can hold.
struct Guards {
    #[cfg(feature = "mongodb")]
    mongo: resource_pool::Lease<mongodb::sync::Client>,
    #[cfg(feature = "rabbitmq")]
    rabbit: resource_pool::Lease<blocking::RabbitMq>,
    #[cfg(feature = "rabbitmq")]
    channel: resource_pool::rabbitmq::Channel,
    #[cfg(feature = "rabbitmq")]
    in_hand: Option<resource_pool::rabbitmq::Delivery>,
    #[cfg(feature = "rabbitmq")]
    consumer: resource_pool::rabbitmq::Consumer,
    #[cfg(feature = "clickhouse")]
    clickhouse: resource_pool::Lease<blocking::ClickHouse>,
    #[cfg(feature = "clickhouse")]
    inserter: blocking::Inserter<Tick>,
    #[cfg(feature = "clickhouse")]
    rows: blocking::Rows<u64>,
    #[cfg(feature = "redis")]
    redis: blocking::Redis,
    #[cfg(feature = "redis")]
    shared: resource_pool::Lease<resource_pool::Redis>,
    #[cfg(feature = "redis")]
    exclusive: resource_pool::Exclusive,
    #[cfg(feature = "redis")]
    pubsub: resource_pool::PubSub,
    #[cfg(feature = "postgres")]
    postgres: blocking::Postgres,
    #[cfg(feature = "postgres")]
    task: resource_pool::Postgres,
    #[cfg(feature = "mysql")]
    mysql: blocking::MySql,
    #[cfg(feature = "mysql")]
    mysql_task: resource_pool::MySql,
}

#[cfg(feature = "clickhouse")]
#[derive(clickhouse::Row, serde::Serialize)]
struct Tick {
    number: u64,
}

impl Guards {
    fn new(pool: &'static blocking::ResourcePool) -> Self {
        let runtime = runtime();
        #[cfg(feature = "rabbitmq")]
        let (channel, consumer, in_hand) = runtime.block_on(async {
            let rabbit = pool.as_async().rabbitmq().await.expect("rabbitmq");
            let queue = rabbit.declare_queue(Queue::temporary()).await.expect("a queue").name().to_owned();
            let _ = rabbit.publish(Message::new("", &queue, "in hand")).await.expect("confirmed");
            let mut consumer = rabbit.consume(Consume::from(&queue)).await.expect("a consumer");
            let in_hand = consumer.next().await.expect("one").expect("a delivery");
            (rabbit.channel().await.expect("a channel"), consumer, Some(in_hand))
        });
        #[cfg(feature = "redis")]
        let (shared, exclusive, pubsub) = runtime.block_on(async {
            let shared = pool.as_async().redis().await.expect("redis");
            let exclusive = shared.exclusive().await.expect("a connection");
            let pubsub = shared.pubsub().await.expect("a connection");
            (shared, exclusive, pubsub)
        });
        drop(runtime);
        #[cfg(feature = "clickhouse")]
        let clickhouse = pool.clickhouse().expect("clickhouse");
        #[cfg(feature = "clickhouse")]
        clickhouse
            .execute("CREATE TABLE IF NOT EXISTS forked (number UInt64) ENGINE = MergeTree ORDER BY number")
            .expect("a table");
        #[cfg(feature = "clickhouse")]
        let mut rows = clickhouse.query_iter("SELECT number FROM numbers(3)").expect("rows");
        #[cfg(feature = "clickhouse")]
        assert_eq!(rows.next().expect("a row").expect("a row"), 0);
        let mut guards = Guards {
            #[cfg(feature = "mongodb")]
            mongo: pool.mongo().expect("mongo"),
            #[cfg(feature = "rabbitmq")]
            rabbit: pool.rabbitmq().expect("rabbitmq"),
            #[cfg(feature = "rabbitmq")]
            channel,
            #[cfg(feature = "rabbitmq")]
            in_hand,
            #[cfg(feature = "rabbitmq")]
            consumer,
            #[cfg(feature = "clickhouse")]
            inserter: clickhouse.inserter("forked"),
            #[cfg(feature = "clickhouse")]
            rows,
            #[cfg(feature = "clickhouse")]
            clickhouse,
            #[cfg(feature = "redis")]
            redis: pool.redis().expect("redis"),
            #[cfg(feature = "redis")]
            shared,
            #[cfg(feature = "redis")]
            exclusive,
            #[cfg(feature = "redis")]
            pubsub,
            #[cfg(feature = "postgres")]
            postgres: pool.postgres().expect("postgres"),
            #[cfg(feature = "postgres")]
            task: self::runtime().block_on(pool.as_async().postgres()).expect("postgres"),
            #[cfg(feature = "mysql")]
            mysql: pool.mysql().expect("mysql"),
            #[cfg(feature = "mysql")]
            mysql_task: self::runtime().block_on(pool.as_async().mysql()).expect("mysql"),
        };
        guards.use_all();
        guards
    }

    fn use_all(&mut self) {
        #[cfg(feature = "mongodb")]
        self.mongo.list_database_names().run().expect("mongo");
        #[cfg(feature = "rabbitmq")]
        let _ = self.rabbit.publish(Message::new("amq.fanout", "", "tick").optional()).expect("rabbitmq");
        #[cfg(feature = "clickhouse")]
        {
            self.clickhouse.query_rows::<u8>("SELECT 1").expect("clickhouse");
            self.inserter.write(&Tick { number: 1 }).expect("a row");
        }
        #[cfg(feature = "redis")]
        {
            redis::cmd("PING").exec(&mut self.redis).expect("redis");
            runtime().block_on(async {
                redis::cmd("PING").exec_async(&mut self.shared).await.expect("redis");
                redis::cmd("PING").exec_async(&mut self.exclusive).await.expect("redis");
                self.pubsub.subscribe("forked").await.expect("redis");
            });
        }
        #[cfg(feature = "postgres")]
        {
            self.postgres.wait(async |postgres| selects(postgres).await).expect("a thread").expect("postgres");
            runtime().block_on(selects(&mut self.task)).expect("postgres");
        }
        #[cfg(feature = "mysql")]
        {
            self.mysql.wait(async |mysql| mysql_selects(mysql).await).expect("a thread").expect("mysql");
            runtime().block_on(mysql_selects(&mut self.mysql_task)).expect("mysql");
        }
    }

    /// Checks each in the child.
    fn are_refused(&mut self) {
        #[cfg(feature = "rabbitmq")]
        {
            refused("publish", self.rabbit.publish(Message::new("amq.fanout", "", "tick")));
            refused("get", self.rabbit.get("queue"));
            runtime().block_on(async {
                refused("ack", self.in_hand.take().expect("a delivery").ack().await);
                refused("channel", self.channel.run(async |channel| channel.close(200, "OK".into()).await).await);
                refused("next", self.consumer.next().await.expect("an answer"));
                assert!(self.consumer.next().await.is_none());
            });
        }
        #[cfg(feature = "clickhouse")]
        {
            refused("query_rows", self.clickhouse.query_rows::<u8>("SELECT 1"));
            refused("write", self.inserter.write(&Tick { number: 2 }));
            refused("commit", self.inserter.force_commit());
            refused("next", self.rows.next().expect("an answer"));
            assert!(self.rows.next().is_none());
        }
        #[cfg(feature = "redis")]
        {
            refused_inside("PING", redis::cmd("PING").exec(&mut self.redis));
            runtime().block_on(async {
                refused_inside("PING", redis::cmd("PING").exec_async(&mut self.shared).await);
                refused_inside("PING", redis::cmd("PING").exec_async(&mut self.exclusive).await);
                refused_inside("exclusive", self.shared.exclusive().await);
            });
        }
        #[cfg(feature = "postgres")]
        {
            let waited = self.postgres.wait(async |postgres| selects(postgres).await).expect("a thread");
            refused_inside("SELECT", waited);
            refused_inside("SELECT", runtime().block_on(selects(&mut self.task)));
        }
        #[cfg(feature = "mysql")]
        {
            let waited = self.mysql.wait(async |mysql| mysql_selects(mysql).await).expect("a thread");
            refused_inside("SELECT", waited);
            refused_inside("SELECT", runtime().block_on(mysql_selects(&mut self.mysql_task)));
        }
    }

    /// Uses each in the parent, after the child's end.
    fn work(mut self) {
        self.use_all();
        #[cfg(feature = "clickhouse")]
        {
            assert_eq!(self.inserter.end().expect("inserted").rows, 2);
            assert_eq!(self.rows.collect::<Result<Vec<_>, _>>().expect("the others"), [1, 2]);
        }
        #[cfg(feature = "rabbitmq")]
        runtime().block_on(async {
            self.in_hand.take().expect("a delivery").ack().await.expect("it is still in hand");
            self.channel.run(async |channel| channel.basic_qos(1, Default::default()).await).await.expect("an answer");
        });
    }
}
