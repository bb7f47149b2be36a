//! RabbitMQ for threads: the same connection and the same verbs, without await.

use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::FieldTable;
use parking_lot::Mutex;

use crate::base::error::Error;
use crate::base::runtime::block_on;
use crate::kinds::rabbitmq::jobs::{Jobs, panicked};
use crate::kinds::rabbitmq::session::RabbitMqSession;
use crate::kinds::rabbitmq::{
    self as tasks, Batch, Consume, DeclaredQueue, Exchange, Handled, Message, Published, Queue,
};
use crate::lifecycle::lease::Claim;

/// A RabbitMQ for threads: one connection, shared with the async facade. Cheap to clone.
///
/// Everything that is said of [`resource_pool::RabbitMq`](crate::RabbitMq) and its verbs holds here as well. On a
/// current-thread runtime each verb answers [`Error::InAsyncContext`].
///
/// ```no_run
/// # fn main() -> Result<(), resource_pool::Error> {
/// use resource_pool::{blocking::ResourcePool, rabbitmq::{Message, Queue}};
///
/// let rabbit = ResourcePool::global().rabbitmq()?;
/// rabbit.declare_queue(Queue::new("orders"))?;
/// assert!(rabbit.publish(Message::new("", "orders", "buy 100"))?.is_confirmed());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct RabbitMq {
    session: Arc<RabbitMqSession>,
}

impl RabbitMq {
    pub(crate) fn new(session: Arc<RabbitMqSession>) -> Self {
        RabbitMq { session }
    }

    /// A channel of the caller's own, for all that the other verbs do not do. It is closed when it drops, and nothing
    /// done on it is replayed.
    ///
    /// # Errors
    /// [`Error::Timeout`], with the holders, if all channels are out for longer than the acquire
    /// timeout; [`Error::Deadlock`] at once, also from the other verbs, if this thread has
    /// [lent](Channel::lend) them all to closures that it runs; those of the other verbs.
    #[track_caller]
    pub fn channel(&self) -> Result<Channel, Error> {
        Ok(Channel { channel: self.wait(self.tasks().channel())? })
    }

    /// Declares an exchange, now and after every reconnect.
    ///
    /// # Errors
    /// [`Error::Operation`] if it exists with other properties or may not be declared;
    /// [`Error::Lost`], [`Error::Timeout`], [`Error::Closed`].
    #[track_caller]
    pub fn declare_exchange(&self, exchange: Exchange) -> Result<(), Error> {
        self.wait(self.tasks().declare_exchange(exchange))
    }

    /// Declares a queue, now and after every reconnect.
    ///
    /// # Errors
    /// As [`declare_exchange`](RabbitMq::declare_exchange).
    #[track_caller]
    pub fn declare_queue(&self, queue: Queue) -> Result<DeclaredQueue, Error> {
        self.wait(self.tasks().declare_queue(queue))
    }

    /// Binds a queue to an exchange, now and after every reconnect.
    ///
    /// # Errors
    /// [`Error::Operation`] if one of them does not exist; [`Error::Lost`], [`Error::Timeout`],
    /// [`Error::Closed`].
    #[track_caller]
    pub fn bind(&self, queue: &str, exchange: &str, routing_key: &str) -> Result<(), Error> {
        self.wait(self.tasks().bind(queue, exchange, routing_key))
    }

    /// [`bind`](RabbitMq::bind) with arguments, as headers exchanges need them.
    ///
    /// # Errors
    /// As [`bind`](RabbitMq::bind).
    #[track_caller]
    pub fn bind_with(
        &self,
        queue: &str,
        exchange: &str,
        routing_key: &str,
        arguments: FieldTable,
    ) -> Result<(), Error> {
        self.wait(self.tasks().bind_with(queue, exchange, routing_key, arguments))
    }

    /// Deletes a queue, and once that is done forgets it and its bindings.
    ///
    /// # Errors
    /// [`Error::Operation`] if it may not be deleted; [`Error::Lost`], [`Error::Timeout`], [`Error::Closed`].
    #[track_caller]
    pub fn delete_queue(&self, queue: &str) -> Result<(), Error> {
        self.wait(self.tasks().delete_queue(queue))
    }

    /// Deletes an exchange, and once that is done forgets it and its bindings.
    ///
    /// # Errors
    /// [`Error::Operation`] if it may not be deleted; [`Error::Lost`], [`Error::Timeout`], [`Error::Closed`].
    #[track_caller]
    pub fn delete_exchange(&self, exchange: &str) -> Result<(), Error> {
        self.wait(self.tasks().delete_exchange(exchange))
    }

    /// The present name of a queue that the broker named; other names are answered as they are.
    pub fn current_name(&self, queue: &str) -> String {
        self.tasks().current_name(queue)
    }

    /// Publishes a message and waits for the broker's confirm. A message that reaches no queue
    /// comes back as [`Published::Returned`], unless it is [optional](Message::optional).
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] if the connection or the answer is lost after it was sent: it is
    /// never sent again by itself. Those of the [async one](crate::RabbitMq::publish).
    #[track_caller]
    pub fn publish(&self, message: Message) -> Result<Published, Error> {
        self.wait(self.tasks().publish(message))
    }

    /// Publishes messages in their order, many unconfirmed at a time, and tells the outcome of each.
    ///
    /// # Errors
    /// Those of [`publish`](RabbitMq::publish) if nothing could be sent.
    #[track_caller]
    pub fn publish_batch<I>(&self, messages: I) -> Result<Batch, Error>
    where
        I: IntoIterator<Item = Message>,
        I::IntoIter: Send,
    {
        self.wait(self.tasks().publish_batch(messages))
    }

    /// Fetches one message, if there is one. The message keeps a channel until it is settled or dropped.
    ///
    /// # Errors
    /// [`Error::Operation`] if there is no such queue; [`Error::Lost`], [`Error::Timeout`], [`Error::Closed`].
    #[track_caller]
    pub fn get(&self, queue: &str) -> Result<Option<Delivery>, Error> {
        Ok(self.wait(self.tasks().get(queue))?.map(|delivery| Delivery { delivery }))
    }

    /// Consumes a queue. The iterator goes on after a reconnect. It ends when closing begins, after an error, and when
    /// the broker cancels the consumer.
    ///
    /// # Errors
    /// [`Error::Operation`] if there is no such queue, or it is consumed exclusively;
    /// [`Error::Lost`], [`Error::Timeout`], [`Error::Closing`], [`Error::Closed`].
    #[track_caller]
    pub fn consume(&self, what: impl Into<Consume>) -> Result<Consumer, Error> {
        let consumer = self.wait(self.tasks().consume(what))?;
        Ok(Consumer { consumer, rabbit: self.clone(), ended: false })
    }

    fn tasks(&self) -> tasks::RabbitMq {
        tasks::RabbitMq::over(Arc::clone(&self.session)).blocking()
    }

    fn wait<T>(&self, future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        block_on(self.session.link.name(), &self.session.runtime, future)?
    }
}

impl fmt::Debug for RabbitMq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMq").field("resource", self.session.link.name()).finish_non_exhaustive()
    }
}

/// A raw channel of the caller's own. It is closed in the background when it drops.
#[derive(Debug)]
pub struct Channel {
    channel: tasks::Channel,
}

impl Channel {
    /// Lends the channel to a closure, and closes it after that. For example:
    /// `rabbitmq.channel()?.lend(|channel| channel.run(async |channel| channel.tx_select().await))`.
    ///
    /// Only this thread can free a channel that its closure has. So if all channels are lent like this, a wait for one
    /// more on this thread answers [`Error::Deadlock`] at once, instead of a timeout later.
    pub fn lend<T>(self, run: impl FnOnce(&Channel) -> T) -> T {
        let _lending = self.channel.lend();
        run(&self)
    }

    /// Runs driver calls on the channel and waits for them:
    /// `channel.run(async |channel| channel.tx_select().await)`.
    ///
    /// # Errors
    /// Those of the [async one](crate::rabbitmq::Channel::run), and [`Error::InAsyncContext`].
    pub fn run<T>(&self, calls: impl AsyncFnOnce(&lapin::Channel) -> lapin::Result<T>) -> Result<T, Error> {
        block_on(self.channel.resource(), self.channel.runtime(), self.channel.run(calls))?
    }

    /// The channel for async code.
    pub fn as_async(&self) -> &tasks::Channel {
        &self.channel
    }
}

/// A consumer: an iterator over deliveries that blocks for the next one. It is cancelled when it drops. Deliveries in
/// hand can still be acknowledged.
#[derive(Debug)]
pub struct Consumer {
    consumer: tasks::Consumer,
    rabbit: RabbitMq,
    ended: bool,
}

impl Consumer {
    /// Runs the handler for each delivery, on up to `most` threads at once, until consuming ends. One of them is the
    /// calling thread. It returns the counts once all handlers have ended, too.
    ///
    /// The pool settles the deliveries, as [it does for tasks](crate::rabbitmq::Consumer::for_each_concurrent). When
    /// closing begins, the deliveries that wait go back once one of the handlers has ended. If the process can have no
    /// more threads, fewer run.
    ///
    /// ```no_run
    /// # fn example() -> Result<(), resource_pool::Error> {
    /// use std::time::Duration;
    /// use resource_pool::{blocking::ResourcePool, rabbitmq::{Consume, Queue}};
    ///
    /// let rabbit = ResourcePool::global().rabbitmq()?;
    /// rabbit.declare_queue(Queue::new("orders.dead"))?;
    /// rabbit.declare_queue(Queue::new("orders").dead_letter("", Some("orders.dead")))?;
    /// let orders = rabbit.consume(Consume::from("orders").attempts(5, Duration::from_secs(30)))?;
    /// let handled = orders.for_each_concurrent(4, |order| {
    ///     let order = std::str::from_utf8(order.data())?;
    ///     println!("{order}");
    ///     Ok::<_, std::str::Utf8Error>(())
    /// })?;
    /// println!("{handled}");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of the [async one](crate::rabbitmq::Consumer::for_each_concurrent), and [`Error::InAsyncContext`].
    #[track_caller]
    pub fn for_each_concurrent<E: fmt::Display>(
        self,
        most: usize,
        handler: impl Fn(&Delivery) -> Result<(), E> + Sync,
    ) -> Result<Handled, Error> {
        let rabbit = self.rabbit.clone();
        let jobs = rabbit.wait(Jobs::begin(&self.consumer, most, Claim::shared().blocking()))?;
        // One thread at a time waits for the next delivery, and the others wait for their turn.
        let consumer = Mutex::new(self);
        let next = || consumer.lock().next();
        let work = || {
            while let Some(delivery) = next() {
                let delivery = delivery?;
                let handling = AssertUnwindSafe(|| handler(&delivery).map_err(|error| error.to_string()));
                let outcome = catch_unwind(handling).unwrap_or_else(|panic| Err(panicked(&*panic)));
                rabbit.wait(async {
                    jobs.settle(delivery.delivery, outcome).await;
                    Ok(())
                })?;
            }
            Ok(())
        };
        let end = thread::scope(|scope| {
            let begin = |_| thread::Builder::new().name("resource-pool-job".to_owned()).spawn_scoped(scope, work).ok();
            let threads: Vec<_> = (1..most).map_while(begin).collect();
            let ends = threads.into_iter().map(|thread| thread.join().unwrap_or(Ok(())));
            // The calling thread works too, before it waits for the others.
            std::iter::once(work()).chain(ends).fold(Ok(()), Result::and)
        });
        jobs.end(end)
    }

    /// The next delivery, if one comes within this time; `Ok(None)` if none does.
    ///
    /// # Errors
    /// The reason why consuming has ended, as the iterator tells it. After that, [`Error::Closing`] or
    /// [`Error::Closed`] if the resource closes or is closed, and otherwise an [`Error::Operation`] that says how
    /// consuming ended.
    pub fn next_within(&mut self, limit: Duration) -> Result<Option<Delivery>, Error> {
        if self.ended {
            return Err(self.consumer.has_ended());
        }
        let next = async { crate::base::runtime::within(limit, self.consumer.next()).await };
        match block_on(self.rabbit.session.link.name(), &self.rabbit.session.runtime, next)? {
            Err(_elapsed) => Ok(None),
            Ok(Some(Ok(delivery))) => Ok(Some(Delivery { delivery })),
            Ok(Some(Err(error))) => {
                self.ended = true;
                Err(error)
            }
            Ok(None) => {
                self.ended = true;
                Err(self.consumer.has_ended())
            }
        }
    }
}

impl Iterator for Consumer {
    type Item = Result<Delivery, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = poll_fn(|cx| self.consumer.poll_delivery(cx));
        let next = block_on(self.rabbit.session.link.name(), &self.rabbit.session.runtime, next);
        let next = next.unwrap_or_else(|refused| Some(Err(refused)));
        self.ended = !matches!(next, Some(Ok(_)));
        Some(next?.map(|delivery| Delivery { delivery }))
    }
}

/// A message in hand. Dropping it gives it back to its queue. Closing waits for it.
#[must_use = "a delivery that drops goes back to its queue"]
#[derive(Debug)]
pub struct Delivery {
    delivery: tasks::Delivery,
}

impl Delivery {
    /// The payload.
    pub fn data(&self) -> &[u8] {
        self.delivery.data()
    }

    /// The exchange it was published to.
    pub fn exchange(&self) -> &str {
        self.delivery.exchange()
    }

    /// The key it was published with.
    pub fn routing_key(&self) -> &str {
        self.delivery.routing_key()
    }

    /// Whether it was delivered before, to anybody.
    pub fn redelivered(&self) -> bool {
        self.delivery.redelivered()
    }

    /// Its properties and headers.
    pub fn properties(&self) -> &BasicProperties {
        self.delivery.properties()
    }

    /// How often it was delivered to anybody, this time included. `None` if the broker
    /// [does not tell](crate::rabbitmq::Delivery::attempts).
    pub fn attempts(&self) -> Option<u32> {
        self.delivery.attempts()
    }

    /// Acknowledges it.
    ///
    /// # Errors
    /// [`Error::Lost`] if its connection is gone: it is delivered again. [`Error::Timeout`],
    /// [`Error::Closed`], [`Error::InAsyncContext`].
    pub fn ack(self) -> Result<(), Error> {
        self.settle(tasks::Delivery::ack)
    }

    /// Acknowledges it, and [all deliveries](crate::rabbitmq::Delivery::ack_all_before) that its consumer handed out
    /// before it.
    ///
    /// # Errors
    /// As [`ack`](Delivery::ack), about all of them.
    pub fn ack_all_before(self) -> Result<(), Error> {
        self.settle(tasks::Delivery::ack_all_before)
    }

    /// Gives it back to its queue, to be delivered again to anybody.
    ///
    /// # Errors
    /// As [`ack`](Delivery::ack). [`Error::Operation`] for one of a stream, or one that was acknowledged
    /// [with a later one](Delivery::ack_all_before).
    pub fn requeue(self) -> Result<(), Error> {
        self.settle(tasks::Delivery::requeue)
    }

    /// Rejects it. It goes to the queue's dead-letter exchange, or is discarded if there is none.
    ///
    /// # Errors
    /// As [`requeue`](Delivery::requeue).
    pub fn nack(self) -> Result<(), Error> {
        self.settle(tasks::Delivery::nack)
    }

    fn settle<F: Future<Output = Result<(), Error>>>(
        self,
        settle: impl FnOnce(tasks::Delivery) -> F,
    ) -> Result<(), Error> {
        let (resource, runtime) = (Arc::clone(self.delivery.resource()), self.delivery.runtime().clone());
        block_on(&resource, &runtime, settle(self.delivery))?
    }
}
