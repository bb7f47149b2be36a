//! The load on RabbitMQ: persistent messages, confirmed, to a durable queue, and two consumers that record them.
//!
//! Each consumer runs on a thread. The two locks of [`Consumed`] are never held at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use lapin::options::BasicQosOptions;
use resource_pool::config::{RabbitMqConfig, ResourceConfig};
use resource_pool::rabbitmq::{Message, Published, Queue};
use resource_pool::{Error, Lease, RabbitMq as Tasks, ResourcePool, blocking};
use services::{Kind, Service};

use super::ledger::Id;
use super::{Backend, BoxFuture, Call, Desk, Shared, Told, Trouble, done, lock};

const QUEUE: &str = "load";

#[derive(Default)]
pub(crate) struct RabbitMq {
    kept: OnceLock<Lease<Tasks>>,
    attempts: AtomicU32,
    consumed: Arc<Consumed>,
}

/// The messages that the consumers received. Each publish has a number of its own.
#[derive(Default)]
struct Consumed {
    /// For each publish, the number of the broker's deaths when it arrived.
    seen: Mutex<HashMap<(u64, u32), u32>>,
    complaints: Mutex<Vec<String>>,
}

impl Consumed {
    /// Records a message. The same publish arrives twice if its ack was lost. Then the broker marks it as redelivered,
    /// unless the broker has died since and forgot.
    fn record(&self, payload: &[u8], redelivered: bool, load: &Shared) {
        let text = String::from_utf8_lossy(payload);
        let numbers = text.split_once(' ').and_then(|(id, attempt)| Some((id.parse().ok()?, attempt.parse().ok()?)));
        let Some(publish) = numbers else { return lock(&self.complaints).push(format!("consumed {text:?}")) };
        let deaths = load.deaths.load(Ordering::SeqCst);
        let earlier = lock(&self.seen).insert(publish, deaths);
        if let Some(earlier) = earlier
            && !redelivered
            && earlier == deaths
        {
            lock(&self.complaints).push(format!("{:?} was published once and consumed twice", Id::from_u64(publish.0)));
        }
    }
}

fn confirmed(published: Result<Published, Error>) -> Told {
    match published {
        Ok(published) if published.is_confirmed() => Ok(()),
        Ok(other) => Err(Trouble::Wrong(format!("{other:?}"))),
        Err(error) => Err(Trouble::of(error)),
    }
}

impl RabbitMq {
    fn message(&self, id: Id) -> Message {
        let attempt = self.attempts.fetch_add(1, Ordering::SeqCst);
        Message::new("", QUEUE, format!("{} {attempt}", id.as_u64()))
    }
}

impl Backend for RabbitMq {
    fn kind(&self) -> Kind {
        Kind::RabbitMq
    }

    fn config(&self, url: &str) -> ResourceConfig {
        RabbitMqConfig::url(url).max_channels(16).into()
    }

    fn begin<'a>(&'a self, load: &'a Shared) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let rabbit = load.pool.rabbitmq().await?;
            rabbit.declare_queue(Queue::new(QUEUE)).await?;
            let _first_time = self.kept.set(rabbit);
            Ok(())
        })
    }

    fn companions(&self, load: &Arc<Shared>) -> Vec<thread::JoinHandle<()>> {
        let consumer = |name: &'static str, from_task: bool| {
            let (load, consumed, desk) = (Arc::clone(load), Arc::clone(&self.consumed), load.desk(name));
            let consume = move || {
                if from_task { consume_async(&load, &consumed, &desk) } else { consume(&load, &consumed, &desk) }
            };
            thread::Builder::new().name("load-consumer".into()).spawn(consume).expect("a thread")
        };
        vec![consumer("consumer, on a thread", false), consumer("consumer, on a task", true)]
    }

    fn on_thread(&self, pool: &blocking::ResourcePool, call: Call) -> Told {
        let rabbit = pool.rabbitmq().map_err(Trouble::of)?;
        match call {
            Call::Write(id) => confirmed(rabbit.publish(self.message(id))),
            Call::Read(_) => done(rabbit.declare_queue(Queue::new(QUEUE).passive())),
            Call::Slow(_) => {
                let channel = rabbit.channel().map_err(Trouble::of)?;
                done(channel.run(async |channel| channel.basic_qos(1, BasicQosOptions::default()).await))
            }
        }
    }

    fn on_task<'a>(&'a self, pool: &'a ResourcePool, call: Call) -> BoxFuture<'a, Told> {
        Box::pin(async move {
            let own;
            let rabbit = match self.kept.get() {
                Some(kept) if call.id().keeps_its_lease() => kept,
                _ => {
                    own = pool.rabbitmq().await.map_err(Trouble::of)?;
                    &own
                }
            };
            match call {
                Call::Write(id) => confirmed(rabbit.publish(self.message(id)).await),
                Call::Read(_) => done(rabbit.declare_queue(Queue::new(QUEUE).passive()).await),
                Call::Slow(_) => {
                    let channel = rabbit.channel().await.map_err(Trouble::of)?;
                    done(channel.run(async |channel| channel.basic_qos(1, BasicQosOptions::default()).await).await)
                }
            }
        })
    }

    /// The resource's own limits, `confirm_timeout` and `operation_timeout`, both at their defaults.
    fn operation(&self) -> Duration {
        Duration::from_secs(10)
    }

    /// Counts publishes, so an id that was published twice counts twice.
    fn found(&self, _: &Service, load: &Shared) -> BTreeMap<Id, u32> {
        // A consumer that lost its connection needs time to come back before it can receive the rest.
        const PATIENCE: Duration = Duration::from_secs(30);
        let end = Instant::now() + PATIENCE;
        loop {
            let mut found = BTreeMap::new();
            for (id, _) in lock(&self.consumed.seen).keys() {
                *found.entry(Id::from_u64(*id)).or_default() += 1;
            }
            if load.ledger.audit(&found).lost.is_empty() || Instant::now() > end {
                return found;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn complaints(&self) -> Vec<String> {
        lock(&self.consumed.complaints).clone()
    }

    fn version(&self, server: &Service) -> String {
        let version = r#"io:format("~s", [rabbit_misc:version()])"#;
        server.rabbitmq().expect("a RabbitMQ").eval(version).expect("its version").trim().to_owned()
    }
}

/// How often a consumer looks whether the load is settled.
const GLANCE: Duration = Duration::from_millis(200);

fn consume(load: &Shared, consumed: &Consumed, desk: &Desk) {
    let pool = blocking::ResourcePool::from(load.pool.clone());
    let rabbit = pool.rabbitmq().expect("a RabbitMQ");
    let mut consumer = rabbit.consume(QUEUE).expect("a consumer");
    while !load.is_settled() {
        match consumer.next_within(GLANCE) {
            Ok(None) => {}
            Ok(Some(delivery)) => {
                consumed.record(delivery.data(), delivery.redelivered(), load);
                desk.begin("ack");
                let acked = delivery.ack();
                load.judge(desk, "ack", &done(acked));
            }
            Err(error) => return load.fail(format!("{}: consuming has ended: {error}", desk.name)),
        }
    }
}

fn consume_async(load: &Shared, consumed: &Consumed, desk: &Desk) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let rabbit = load.pool.rabbitmq().await.expect("a RabbitMQ");
        let mut consumer = rabbit.consume(QUEUE).await.expect("a consumer");
        while !load.is_settled() {
            let Ok(next) = tokio::time::timeout(GLANCE, consumer.next()).await else { continue };
            match next {
                Some(Ok(delivery)) => {
                    consumed.record(delivery.data(), delivery.redelivered(), load);
                    desk.begin("ack");
                    let acked = delivery.ack().await;
                    load.judge(desk, "ack", &done(acked));
                }
                Some(Err(error)) => return load.fail(format!("{}: consuming has ended: {error}", desk.name)),
                None => return load.fail(format!("{}: consuming has ended without a word", desk.name)),
            }
        }
    });
}
