//! Jobs: deliveries that a handler works on, up to so many at once.
//!
//! `for_each_concurrent` of both facades hands each delivery to the user's handler, and the outcome to `Jobs::settle`.
//! A job is acknowledged, or put into the retry queue and then acknowledged, or rejected. So a message is at the broker
//! until it is done, and comes twice rather than never.
//!
//! There is no lock here. That of the session's topology is taken for a moment only, and nothing is awaited under it.
//! The counters guard no other memory.

use std::any::Any;
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::FieldTable;

use crate::base::error::Error;
use crate::kinds::rabbitmq::consumer::{Consume, Consumer, consuming};
use crate::kinds::rabbitmq::declare::{Declaration, Exchange, Queue};
use crate::kinds::rabbitmq::delivery::{DEATHS, DELIVERY_COUNT, Delivery, FIRST_EXCHANGE, FIRST_KEY, RETRIES};
use crate::kinds::rabbitmq::errors::is_unsendable;
use crate::kinds::rabbitmq::job_slots::JobSlots;
use crate::kinds::rabbitmq::message::{Message, Published};
use crate::kinds::rabbitmq::session::RabbitMqSession;
use crate::lifecycle::lease::Claim;

/// How the jobs of a consumer ended, as [`for_each_concurrent`](Consumer::for_each_concurrent) counts them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Handled {
    /// How many were done. They are acknowledged.
    pub done: u64,
    /// How many failed and were put into the retry queue. One message counts each time.
    pub retried: u64,
    /// How many failed for the last time. They were rejected, and so went to the dead-letter exchange.
    pub dead_lettered: u64,
    /// How many went back to their queue, or were lost with their connection. They are delivered again, also those that
    /// were done.
    pub given_back: u64,
}

/// Each count with its name.
impl fmt::Display for Handled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Handled { done, retried, dead_lettered, given_back } = self;
        write!(f, "{done} done, {retried} retried, {dead_lettered} dead-lettered, {given_back} given back")
    }
}

impl Consumer {
    /// Runs the handler for each delivery, for up to `most` at once and at least one, until consuming ends. It returns
    /// the counts once all handlers have ended, too.
    ///
    /// The pool settles the deliveries. One whose handler answers `Ok` is acknowledged. One whose handler fails or
    /// panics is put into the retry queue, and comes back after a pause, as often as
    /// [`Consume::attempts`] says. After that it is rejected, and so goes to the queue's dead-letter exchange. By
    /// default that happens at the first failure.
    ///
    /// The queue must have a [dead-letter exchange](crate::rabbitmq::Queue::dead_letter), so that no message is lost.
    /// The pool knows it from the declaration of the queue. Otherwise [`Consume::dead_lettered`] says so.
    ///
    /// A message may be handled twice. That happens if the connection is lost, or the process ends, after its handler
    /// has ended and before the broker has the acknowledgement. It also happens if the confirm of a copy is late, or if
    /// this future is dropped between the copy and the acknowledgement. Handlers know such a message by an
    /// [identifier](crate::rabbitmq::Message::id).
    ///
    /// When closing begins, no further handler begins, and the deliveries that wait go back to their queue. Closing
    /// waits for the handlers in progress. After a lost connection it goes on as consumers do.
    ///
    /// All handlers run within this future. One that computes for long, or blocks, keeps the others waiting. Spawn such
    /// work, or use threads with [`blocking::rabbitmq`](crate::blocking::rabbitmq::Consumer::for_each_concurrent).
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), resource_pool::Error> {
    /// use std::time::Duration;
    /// use resource_pool::{ResourcePool, rabbitmq::{Consume, Delivery, Queue}};
    ///
    /// let rabbit = ResourcePool::global().rabbitmq().await?;
    /// rabbit.declare_queue(Queue::new("orders.dead")).await?;
    /// rabbit.declare_queue(Queue::new("orders").dead_letter("", Some("orders.dead"))).await?;
    /// let orders = rabbit.consume(Consume::from("orders").attempts(5, Duration::from_secs(30))).await?;
    /// let handled = orders
    ///     .for_each_concurrent(16, async |order: &Delivery| {
    ///         let order = std::str::from_utf8(order.data())?;
    ///         println!("{order}");
    ///         Ok::<_, std::str::Utf8Error>(())
    ///     })
    ///     .await?;
    /// println!("{handled}");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Operation`] at once if the queue has no dead-letter exchange that the pool knows, if that is the default
    /// exchange without a key, if `most` is more
    /// than the consumer's [prefetch](Consume::prefetch), if the retry queue exists with another pause, or if the queue
    /// is a stream. [`Error::Lost`], [`Error::Timeout`], [`Error::Closed`]. Also the reason why consuming ended, once all
    /// handlers have ended, as for [`next`](Consumer::next).
    ///
    /// # Cancel safety
    /// Dropping it drops the handlers in progress, and their deliveries go back to the queue.
    #[track_caller]
    pub fn for_each_concurrent<E: fmt::Display>(
        mut self,
        most: usize,
        handler: impl AsyncFn(&Delivery) -> Result<(), E>,
    ) -> impl Future<Output = Result<Handled, Error>> {
        let claim = Claim::shared();
        async move {
            let jobs = Jobs::begin(&self, most, claim).await?;
            let (handler, settling) = (&handler, &jobs);
            let job = |delivery: Delivery| async move {
                // The handler is called within, because it may panic before it has a future.
                let outcome = caught(async { handler(&delivery).await }).await;
                settling.settle(delivery, outcome).await;
            };
            let mut running = JobSlots::new(most.max(1));
            let cancelled = self.cancelled.clone();
            let mut cancelled = pin!(cancelled.cancelled());
            let mut end = None;
            let end = poll_fn(|cx| {
                running.poll(cx);
                // Closing gives back the deliveries that wait at once, also while there is no room for another job. A
                // consumer that is cancelled hands out none.
                let is_over = self.cancelled.is_cancelled() || cancelled.as_mut().poll(cx).is_ready();
                while end.is_none() && (is_over || running.has_room()) {
                    match self.poll_delivery(cx) {
                        Poll::Ready(Some(Ok(delivery))) => running.begin(job(delivery)),
                        Poll::Ready(Some(Err(error))) => end = Some(Err(error)),
                        Poll::Ready(None) => end = Some(Ok(())),
                        Poll::Pending => break,
                    }
                }
                if running.is_empty() { end.take().map_or(Poll::Pending, Poll::Ready) } else { Poll::Pending }
            });
            let end = end.await;
            jobs.end(end)
        }
    }
}

/// The jobs of one consumer.
pub(crate) struct Jobs {
    session: Arc<RabbitMqSession>,
    what: Consume,
    /// The claim with the line that handles the jobs.
    claim: Claim,
    /// The retry queue. `None` if a job is tried only once.
    retry: Option<Queue>,
    /// The dead-letter exchange, if it gets dead messages by their own key. `None` if the pool knows of no such one.
    keyless: Option<String>,
    done: AtomicU64,
    retried: AtomicU64,
    dead_lettered: AtomicU64,
    given_back: AtomicU64,
}

impl Jobs {
    /// Checks that no job can be lost, and declares the retry queue.
    pub(crate) async fn begin(consumer: &Consumer, most: usize, claim: Claim) -> Result<Self, Error> {
        let Consumer { session, what, .. } = consumer;
        let refused = |problem: String| session.operation(&consuming(&what.queue), problem);
        let prefetch = usize::from(what.prefetch.unwrap_or(session.config.prefetch));
        if most > prefetch {
            let problem = format!("{most} jobs at once need a prefetch of {most}, and it is {prefetch}");
            return Err(refused(problem + ": set it with `Consume::prefetch`"));
        }
        if session.is_stream(&what.queue) == Some(true) {
            return Err(refused("a stream has no jobs, because its messages stay in it; use `next`".to_owned()));
        }
        let queue = session.topology.lock().spec(&what.queue);
        let mut keyless = None;
        match queue.as_ref().and_then(Queue::dead_letters) {
            Some((exchange, None)) if exchange.is_empty() => {
                let problem = "a job that fails would come back for ever, because the default exchange routes it to its \
                               own queue again; name a key with `Queue::dead_letter`";
                return Err(refused(problem.to_owned()));
            }
            Some((exchange, key)) => {
                session.check_dead_letters(claim, &exchange, key.as_deref()).await?;
                keyless = key.is_none().then_some(exchange);
            }
            None if what.dead_lettered => {}
            None => {
                let problem = "a job that fails would be lost, because the pool knows of no dead-letter exchange; \
                               declare the queue with `Queue::dead_letter`, or say `Consume::dead_lettered` if it has one";
                return Err(refused(problem.to_owned()));
            }
        }
        let mut retry = None;
        if let Some(pause) = what.pause {
            if queue.as_ref().is_some_and(|queue| queue.name.is_empty()) {
                let problem = "a queue that the broker names has no retry queue, because its name changes; name it";
                return Err(refused(problem.to_owned()));
            }
            let is_quorum = queue.as_ref().is_some_and(Queue::is_quorum);
            let queue = Queue::retry(&what.queue, pause, is_quorum);
            session.declare(claim, Declaration::Queue(&queue)).await?;
            let known = retry.insert(queue.clone());
            session.topology.lock().queue(queue, &known.name);
        }
        let [done, retried, dead_lettered, given_back] = Default::default();
        let (session, what) = (Arc::clone(session), what.clone());
        Ok(Jobs { session, what, claim, retry, keyless, done, retried, dead_lettered, given_back })
    }

    /// Settles a job by its handler's outcome.
    pub(crate) async fn settle(&self, job: Delivery, outcome: Result<(), String>) {
        let settled = match outcome {
            Ok(()) => job.ack().await.map(|()| &self.done),
            Err(why) => self.failed(job, why).await,
        };
        let count = settled.unwrap_or_else(|error| {
            tracing::debug!(resource = %self.session.link.name(), %error, "a job is delivered again");
            &self.given_back
        });
        // Relaxed, because the count is only told.
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Settles a job that failed, and answers where it counts.
    async fn failed(&self, job: Delivery, why: String) -> Result<&AtomicU64, Error> {
        let (failures, attempts) = (job.retries().saturating_add(1), self.what.attempts);
        let (queue, link) = (&self.what.queue, &self.session.link);
        let message = format!("a job of {queue:?} failed (attempt {failures} of {attempts})");
        let Some(retry) = self.retry.as_ref().filter(|_| failures < attempts) else {
            link.warn(message + " and goes to the dead-letter exchange", Some(&why));
            return self.bury(job, failures).await;
        };
        link.warn(message + " and is tried again", Some(&why));
        if !job.is_current() {
            // The broker delivers it again. A copy in the retry queue would be a second one.
            return Ok(&self.given_back);
        }
        let copy = again(&job, "", &retry.name, failures);
        // The copy is confirmed before the job is acknowledged, so that the broker has one at any time.
        let mut published = self.session.publish(self.claim, copy.clone()).await;
        if let Ok(Published::Returned { .. }) = published {
            published = match self.session.declare(self.claim, Declaration::Queue(retry)).await {
                Ok(_) => self.session.publish(self.claim, copy).await,
                Err(error) => Err(error),
            };
        }
        match published {
            Ok(Published::Confirmed) => {
                job.ack().await?;
                Ok(&self.retried)
            }
            Err(error) if is_unsendable(&error) => {
                link.warn(format!("a job of {queue:?} cannot be tried again and is dead-lettered"), Some(&error));
                self.bury(job, failures).await
            }
            refused => self.give_back(job, &retry.name, refused).await,
        }
    }

    /// Has a job dead-lettered.
    async fn bury(&self, job: Delivery, failures: u32) -> Result<&AtomicU64, Error> {
        // The own key of a job that came back is the name of its queue, and the broker would route it by that.
        let Some(exchange) = self.keyless.as_ref().filter(|_| job.retries() > 0) else {
            job.nack().await?;
            return Ok(&self.dead_lettered);
        };
        if !job.is_current() {
            return Ok(&self.given_back);
        }
        let copy = again(&job, exchange, job.routing_key(), failures);
        match self.session.publish(self.claim, copy).await {
            Ok(Published::Confirmed) => {
                job.ack().await?;
                Ok(&self.dead_lettered)
            }
            refused => self.give_back(job, exchange, refused).await,
        }
    }

    /// Gives a job back whose copy was not taken, after a pause.
    async fn give_back(&self, job: Delivery, to: &str, refused: Result<Published, Error>) -> Result<&AtomicU64, Error> {
        let problem = refused.map_or_else(|error| error.to_string(), |published| format!("{published:?}"));
        let message = format!("{to:?} did not take a job, which goes back to {:?}", self.what.queue);
        self.session.link.warn(message, Some(&problem));
        let pause = job.generation.timer(REFUSED_PAUSE);
        tokio::select! {
            () = pause => {}
            () = self.session.intake.cancelled() => {}
        }
        job.requeue().await?;
        Ok(&self.given_back)
    }

    /// The counts, or the reason why consuming ended.
    pub(crate) fn end(&self, end: Result<(), Error>) -> Result<Handled, Error> {
        let told = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let handled = Handled {
            done: told(&self.done),
            retried: told(&self.retried),
            dead_lettered: told(&self.dead_lettered),
            given_back: told(&self.given_back),
        };
        tracing::info!(resource = %self.session.link.name(), queue = self.what.queue, %handled, "no more jobs");
        end.map(|()| handled)
    }
}

impl RabbitMqSession {
    /// Checks that rejected messages have somewhere to go.
    async fn check_dead_letters(&self, claim: Claim, exchange: &str, key: Option<&str>) -> Result<(), Error> {
        match (exchange, key) {
            ("", Some(queue)) => self.declare(claim, Declaration::Queue(&Queue::new(queue).passive())).await.map(drop),
            _ => self.declare(claim, Declaration::Exchange(&Exchange::direct(exchange).passive())).await.map(drop),
        }
    }
}

/// How long a job is kept whose copy was not taken, so that it does not come back at once.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// The copy of a job for the retry queue or the dead-letter exchange. It is the same message, except for its address and
/// for the properties that belong to one publish.
fn again(job: &Delivery, exchange: &str, key: &str, failures: u32) -> Message {
    let mut headers = FieldTable::default();
    for (name, value) in job.properties().headers().iter().flat_map(|headers| headers.inner()) {
        // The broker counts deliveries anew, and would send a copy to the queues in `CC` again. By the deaths, a dead job
        // that is moved back would seem to come from the retry queue.
        let is_left_out = match name.as_str() {
            DELIVERY_COUNT | "CC" => true,
            DEATHS => !exchange.is_empty(),
            _ => false,
        };
        if !is_left_out {
            headers.insert(name.clone(), value.clone());
        }
    }
    let properties = addressless(job.properties()).with_headers(headers);
    Message::new(exchange, key, job.data())
        .properties(properties)
        .header(RETRIES, failures)
        .header(FIRST_EXCHANGE, job.exchange())
        .header(FIRST_KEY, job.routing_key())
}

/// The properties without headers, expiration and user. The retry queue has its own expiration, and the broker accepts
/// no other user than that of the connection.
fn addressless(properties: &BasicProperties) -> BasicProperties {
    macro_rules! kept {
        ($($property:ident: $with:ident),*) => {{
            let mut kept = BasicProperties::default();
            $(if let Some(value) = properties.$property() {
                kept = kept.$with(value.clone());
            })*
            kept
        }};
    }
    kept!(
        content_type: with_content_type,
        content_encoding: with_content_encoding,
        delivery_mode: with_delivery_mode,
        priority: with_priority,
        correlation_id: with_correlation_id,
        reply_to: with_reply_to,
        message_id: with_message_id,
        timestamp: with_timestamp,
        kind: with_type,
        app_id: with_app_id,
        cluster_id: with_cluster_id
    )
}

/// Runs a handler. A panic counts as a failure, and so does a panic while its error is written.
async fn caught<E: fmt::Display>(handling: impl Future<Output = Result<(), E>>) -> Result<(), String> {
    let mut handling = pin!(handling);
    poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| {
            handling.as_mut().poll(cx).map(|outcome| outcome.map_err(|error| error.to_string()))
        }));
        polled.unwrap_or_else(|panic| Poll::Ready(Err(panicked(&*panic))))
    })
    .await
}

/// The failure of a handler that panicked.
pub(crate) fn panicked(panic: &(dyn Any + Send)) -> String {
    let message = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref().map(String::as_str));
    format!("its handler panicked: {}", message.unwrap_or("(no message)"))
}
