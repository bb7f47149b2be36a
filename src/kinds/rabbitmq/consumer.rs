//! Consumers, which go on over all generations of the connection.
//!
//! A `Consumer` receives the deliveries that its `ConsumerTask` sends. Dropping the consumer cancels the task. The
//! deliveries end when the task does, after an error if there was one.
//!
//! There is no lock here, and no task begins here. `closed` of the session is only read, to choose the error of a
//! consumer that has ended.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use lapin::types::FieldTable;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::base::error::Error;
use crate::base::process::ForkGuarded;
use crate::kinds::rabbitmq::delivery::Delivery;
use crate::kinds::rabbitmq::errors::operation;
use crate::kinds::rabbitmq::session::RabbitMqSession;
use crate::lifecycle::lease::Lease;
use crate::lifecycle::link::Link;

/// The queue to consume, and how. A queue's name alone is enough.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use resource_pool::{ResourcePool, rabbitmq::Consume};
///
/// let rabbit = ResourcePool::global().rabbitmq().await?;
/// let mut orders = rabbit.consume(Consume::from("orders").prefetch(16)).await?;
/// while let Some(order) = orders.next().await {
///     order?.ack().await?;
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Consume {
    pub(super) queue: String,
    pub(super) tag: String,
    pub(super) prefetch: Option<u16>,
    pub(super) exclusive: bool,
    pub(super) arguments: FieldTable,
    pub(super) attempts: u32,
    /// The pause before a job is tried again. `None` if it is tried once.
    pub(super) pause: Option<Duration>,
    pub(super) dead_lettered: bool,
}

impl<T: Into<String>> From<T> for Consume {
    fn from(queue: T) -> Self {
        Consume {
            queue: queue.into(),
            tag: String::new(),
            prefetch: None,
            exclusive: false,
            arguments: FieldTable::default(),
            attempts: 1,
            pause: None,
            dead_lettered: false,
        }
    }
}

impl Consume {
    /// Sets how many deliveries may be in hand, at least 1. Defaults to
    /// [`prefetch`](crate::pool::config::RabbitMqConfig::prefetch).
    pub fn prefetch(mut self, prefetch: u16) -> Self {
        self.prefetch = Some(prefetch.max(1));
        self
    }

    /// Sets the consumer's tag. By default the broker makes one up.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tag = tag.into();
        self
    }

    /// Lets nobody else consume the queue.
    pub fn exclusive(mut self) -> Self {
        self.exclusive = true;
        self
    }

    /// Sets how often [`for_each_concurrent`](Consumer::for_each_concurrent) tries a message in all, and the pause before
    /// each further attempt, in whole milliseconds. Defaults to once. Only failures of the
    /// handler count, and not deliveries that a lost connection cut off.
    ///
    /// In between, a copy of the message waits in the queue `<queue>.retry`. The pool declares it: durable, with
    /// `x-message-ttl` set to the pause, and with `x-dead-letter-exchange` and `x-dead-letter-routing-key` set so that
    /// its messages go back to the queue. For a quorum queue it is a quorum queue too, with
    /// `x-dead-letter-strategy: at-least-once` and `x-overflow: reject-publish`. The copy has the headers `x-retries`,
    /// how often it was put there, and `x-retry-exchange` and `x-retry-routing-key`, where it was published first. It
    /// has neither the expiration nor the user of the message, nor the headers `CC` and `x-delivery-count`.
    pub fn attempts(mut self, attempts: u32, pause: Duration) -> Self {
        self.attempts = attempts.max(1);
        self.pause = (attempts > 1).then_some(pause);
        self
    }

    /// Says that the queue has a dead-letter exchange, although the pool has not declared it so. A policy of the broker
    /// may have set it. If there is none after all, the broker discards the messages that
    /// [`for_each_concurrent`](Consumer::for_each_concurrent) rejects. With more than one attempt, a policy must set
    /// `dead-letter-routing-key` too, because the key of a message that comes back is the name of its queue.
    pub fn dead_lettered(mut self) -> Self {
        self.dead_lettered = true;
        self
    }

    /// Sets further arguments, such as `x-priority`.
    pub fn arguments(mut self, arguments: FieldTable) -> Self {
        self.arguments = arguments;
        self
    }
}

/// A consumer: a stream of deliveries. It is cancelled when it drops. Deliveries that it has not handed out by then go
/// back to their queue, and deliveries in hand can still be acknowledged.
pub struct Consumer {
    /// Drops before `deliveries`. Otherwise the task would read the dropped deliveries of a stream again.
    pub(super) _cancel: ForkGuarded<DropGuard>,
    pub(super) deliveries: ForkGuarded<mpsc::UnboundedReceiver<Result<Delivery, Error>>>,
    pub(super) link: Link,
    pub(super) what: Consume,
    pub(super) cancelled: CancellationToken,
    /// Whether it has answered that it is the parent's.
    pub(super) forked: bool,
    /// The error that it ended with. `None` if it goes on, or ended without one.
    pub(super) failed: Option<Error>,
    pub(super) session: Arc<RabbitMqSession>,
    pub(super) _lease: Lease<RabbitMqSession>,
}

impl Consumer {
    /// The next delivery; `None` when consuming has ended.
    ///
    /// # Errors
    /// The reason why it ended: [`Error::Operation`] if the queue is gone or the broker closed the channel,
    /// [`Error::Connect`] if reconnecting was refused.
    ///
    /// # Cancel safety
    /// Cancel-safe: no delivery is lost.
    pub async fn next(&mut self) -> Option<Result<Delivery, Error>> {
        poll_fn(|cx| self.poll_delivery(cx)).await
    }

    pub(crate) fn poll_delivery(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Delivery, Error>>> {
        if let Err(forked) = self.link.check_process() {
            let told = std::mem::replace(&mut self.forked, true);
            return Poll::Ready((!told).then_some(Err(forked)));
        }
        loop {
            let next = ready!(self.deliveries.poll_recv(cx));
            match next {
                // A delivery that was not handed out goes back to its queue when it drops here.
                Some(Ok(_)) if self.cancelled.is_cancelled() => {}
                // It cannot be acknowledged any more, and the broker delivers it again.
                Some(Ok(delivery)) if !delivery.is_current() => {}
                Some(Ok(mut delivery)) => {
                    delivery.hand_out(&self.link);
                    return Poll::Ready(Some(Ok(delivery)));
                }
                end => {
                    if let Some(Err(error)) = &end {
                        self.failed = Some(error.clone());
                    }
                    return Poll::Ready(end);
                }
            }
        }
    }

    /// The error of a consumer that has no more deliveries.
    pub(crate) fn has_ended(&self) -> Error {
        let RabbitMqSession { closed, intake, .. } = &*self.session;
        if closed.load(Ordering::SeqCst) {
            return Error::closed(self.link.name());
        }
        if intake.is_cancelled() {
            return Error::closing(self.link.name());
        }
        let how = match &self.failed {
            Some(Error::Operation { source, .. }) => format!(": {source}"),
            Some(error) => format!(": {error}"),
            None => String::new(),
        };
        operation(
            &self.link,
            &consuming(&self.what.queue),
            format!("the consumer has ended{how}; `consume` again for more"),
        )
    }
}

impl Stream for Consumer {
    type Item = Result<Delivery, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_delivery(cx)
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("resource", self.link.name()).finish_non_exhaustive()
    }
}

pub(super) fn consuming(queue: &str) -> String {
    format!("consuming {queue:?}")
}
