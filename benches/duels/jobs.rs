//! Jobs: a handler for each message, many at once, with retries, beside the same written on the driver.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::message::Delivery as Message;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicPublishOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection};
use resource_pool::config::RabbitMqConfig;
use resource_pool::rabbitmq::{self, Consume, Delivery, Queue};
use resource_pool::{RabbitMq, ResourcePool, lapin};
use services::Kind;
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use crate::drivers;
use crate::duel::{Duel, Unit};
use crate::session::Session;

const DEAD: &str = "jobs.dead";
/// The pause before a failed job is tried again.
const PAUSE: Duration = Duration::from_millis(50);
/// How many jobs run at once.
const MOST: usize = 64;
const PREFETCH: u16 = 256;
const ATTEMPTS: u32 = 3;
/// Each job of so many fails at its first attempt.
const FAILS: usize = 100;
const SIZE: usize = 200;

/// The jobs of a round, and how often each was done.
struct Work {
    /// A queue for this round alone, because the last acknowledgements of a round may come late.
    queue: String,
    retry: String,
    done: Vec<AtomicU8>,
    left: AtomicUsize,
    all_done: Notify,
}

impl Work {
    fn new(count: usize) -> Self {
        static ROUND: AtomicUsize = AtomicUsize::new(0);
        let queue = format!("jobs-{}", ROUND.fetch_add(1, Ordering::Relaxed));
        let retry = format!("{queue}.retry");
        let done = (0..count).map(|_| AtomicU8::new(0)).collect();
        Work { queue, retry, done, left: AtomicUsize::new(count), all_done: Notify::new() }
    }

    /// Does a job. One that is new may fail.
    fn run(&self, data: &[u8], is_new: bool) -> Result<(), &'static str> {
        let number = usize::from_le_bytes(data[..8].try_into().expect("a number"));
        if is_new && number.is_multiple_of(FAILS) {
            return Err("as planned");
        }
        if self.done[number].fetch_add(1, Ordering::Relaxed) == 0 && self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.all_done.notify_one();
        }
        Ok(())
    }

    /// Checks that none was lost, and that none was done twice, because no connection was lost.
    fn check(&self) {
        let done_times = |times: u8| self.done.iter().filter(|done| done.load(Ordering::Relaxed) == times).count();
        assert_eq!((done_times(0), done_times(1)), (0, self.done.len()), "lost, and done once");
    }
}

pub(crate) fn run(session: &Session) {
    let server = session.server(Kind::RabbitMq);
    let runtime = Runtime::new().expect("a runtime");
    let pool = ResourcePool::builder()
        .environment([("", ""); 0])
        .resource(RabbitMqConfig::url(server.url()))
        .build()
        .expect("a pool");
    let rabbit = runtime.block_on(pool.rabbitmq()).expect("rabbitmq");
    runtime.block_on(rabbit.declare_queue(Queue::new(DEAD))).expect("declared");
    let connection = runtime.block_on(drivers::rabbitmq(server.url()));
    let channel = runtime.block_on(drivers::channel(&connection));
    let count = session.times(200_000);
    let filled = |run: &dyn Fn(&Work)| {
        let work = Work::new(count);
        let messages = (0..count).map(|number| {
            let mut data = vec![7; SIZE];
            data[..8].copy_from_slice(&number.to_le_bytes());
            rabbitmq::Message::new("", &work.queue, data).transient()
        });
        let fill = async {
            rabbit.declare_queue(Queue::new(&work.queue).dead_letter("", Some(DEAD))).await?;
            rabbit.declare_queue(Queue::new(&work.retry).ttl(PAUSE).dead_letter("", Some(&work.queue))).await?;
            rabbit.publish_batch(messages).await
        };
        let filled = runtime.block_on(fill).expect("sent");
        assert!(filled.all_confirmed(), "{filled}");
        let before = Instant::now();
        run(&work);
        let took = before.elapsed();
        work.check();
        for queue in [&work.queue, &work.retry] {
            runtime.block_on(rabbit.delete_queue(queue)).expect("deleted");
        }
        took.as_nanos() as f64 / count as f64
    };
    Duel::new(
        "jobs",
        "200,000 transient AMQP messages of 200 B, 64 handlers at once, one in 100 is retried",
        Unit::Nanoseconds,
    )
    .contestant("resource_pool, for_each_concurrent", || filled(&|work| runtime.block_on(ours(&rabbit, work))))
    .contestant("lapin, by hand", || filled(&|work| runtime.block_on(by_hand(&connection, &channel, work))))
    .times_faster_than("resource_pool, for_each_concurrent", "lapin, by hand", 0.95, 1.0)
    .because("a delivery goes through the consumer's task before it reaches a handler")
    .note("Each job is done exactly once in every round, or the bench fails.")
    .run(session);
    runtime.block_on(drivers::close(channel, connection));
    drop(rabbit);
    assert!(runtime.block_on(pool.close_all()).all_closed());
}

async fn ours(rabbit: &RabbitMq, work: &Work) {
    let what = Consume::from(&work.queue).prefetch(PREFETCH).attempts(ATTEMPTS, PAUSE);
    let consumer = rabbit.consume(what).await.expect("a consumer");
    let jobs = consumer
        .for_each_concurrent(MOST, async |job: &Delivery| work.run(job.data(), job.attempts().is_none_or(|n| n == 1)));
    tokio::select! {
        ended = jobs => panic!("{ended:?}"),
        () = work.all_done.notified() => {}
    }
}

/// The same on the driver: a failed job goes to the retry queue, and is acknowledged once that is confirmed.
async fn by_hand(connection: &Connection, publisher: &Channel, work: &Work) {
    let channel = connection.create_channel().await.expect("a channel");
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.expect("a prefetch");
    let options = BasicConsumeOptions::default();
    let consuming = channel.basic_consume(work.queue.as_str().into(), "".into(), options, FieldTable::default());
    let consumer = consuming.await.expect("a consumer");
    let jobs = consumer.for_each_concurrent(MOST, async |delivery| {
        let job = delivery.expect("a delivery");
        let retries = retries(&job);
        match work.run(&job.data, retries == 0) {
            Ok(()) => {}
            Err(_) if retries + 1 < ATTEMPTS => retry(publisher, &work.retry, &job, retries + 1).await,
            Err(_) => return job.nack(BasicNackOptions::default()).await.map(drop).expect("rejected"),
        }
        assert!(job.ack(BasicAckOptions::default()).await.expect("acknowledged"));
    });
    tokio::select! {
        () = jobs => panic!("the consumer has ended"),
        () = work.all_done.notified() => {}
    }
    channel.close(200, "OK".into()).await.expect("closed");
}

fn retries(job: &Message) -> u32 {
    let retries = job.properties.headers().as_ref().and_then(|headers| headers.inner().get("retries"));
    retries.and_then(AMQPValue::as_long_int).map_or(0, |retries| retries.unsigned_abs())
}

async fn retry(publisher: &Channel, queue: &str, job: &Message, retries: u32) {
    let mut headers = job.properties.headers().clone().unwrap_or_default();
    headers.insert("retries".into(), AMQPValue::LongInt(retries as i32));
    let properties = job.properties.clone().with_headers(headers);
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let sent = publisher.basic_publish("".into(), queue.into(), options, &job.data, properties).await;
    assert!(sent.expect("sent").await.expect("an answer").is_ack());
}
