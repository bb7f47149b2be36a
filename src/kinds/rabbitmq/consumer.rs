//! Consumers, which go on over all generations of the connection.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker, ready};

use futures_core::Stream;
use lapin::options::BasicCancelOptions;
use lapin::types::FieldTable;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::base::error::Error;
use crate::base::process::Ours;
use crate::base::runtime::deadline;
use crate::kinds::rabbitmq::Session;
use crate::kinds::rabbitmq::channel::ChannelGuard;
use crate::kinds::rabbitmq::delivery::{Delivery, Keeps};
use crate::kinds::rabbitmq::errors::{LOCKED_PAUSE, LOCKED_TRIES, Trouble, is_locked, operation};
use crate::kinds::rabbitmq::stream::Reading;
use crate::lifecycle::lease::{Claim, Lease};
use crate::lifecycle::link::Link;
use crate::net::count::Counted;

/// What to consume, and how. A queue's name alone will do.
#[derive(Debug, Clone, PartialEq)]
pub struct Consume {
    pub(super) queue: String,
    pub(super) tag: String,
    pub(super) prefetch: Option<u16>,
    pub(super) exclusive: bool,
    pub(super) arguments: FieldTable,
}

impl<T: Into<String>> From<T> for Consume {
    fn from(queue: T) -> Self {
        Consume {
            queue: queue.into(),
            tag: String::new(),
            prefetch: None,
            exclusive: false,
            arguments: FieldTable::default(),
        }
    }
}

impl Consume {
    /// Sets how many deliveries may be in hand, at least 1. Defaults to [`prefetch`](crate::pool::config::RabbitMqConfig::prefetch).
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

    /// Sets further arguments, such as `x-priority`.
    pub fn arguments(mut self, arguments: FieldTable) -> Self {
        self.arguments = arguments;
        self
    }
}

/// A consumer: a stream of deliveries. Cancelled when it drops; what it has not handed out by
/// then goes back to its queue, and deliveries in hand can still be acknowledged.
pub struct Consumer {
    /// Drops before the deliveries, so that a stream's are not read again first.
    pub(super) _cancel: Ours<DropGuard>,
    pub(super) deliveries: Ours<mpsc::UnboundedReceiver<Result<Delivery, Error>>>,
    pub(super) link: Link,
    pub(super) queue: String,
    pub(super) cancelled: CancellationToken,
    /// It has said that it is the parent's.
    pub(super) forked: bool,
    /// What it ended with.
    pub(super) failed: Option<Error>,
    pub(super) lease: Lease<Session>,
}

impl Consumer {
    /// The next delivery; `None` when consuming has ended.
    ///
    /// # Errors
    /// Why it ended: [`Error::Operation`] if the queue is gone or the broker closed the channel,
    /// [`Error::Connect`] if reconnecting was refused.
    ///
    /// # Cancel safety
    /// Cancel-safe: no delivery is lost.
    pub async fn next(&mut self) -> Option<Result<Delivery, Error>> {
        poll_fn(|cx| self.poll_delivery(cx)).await
    }

    pub(crate) fn poll_delivery(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Delivery, Error>>> {
        if let Err(forked) = self.link.process.check() {
            let told = std::mem::replace(&mut self.forked, true);
            return Poll::Ready((!told).then_some(Err(forked)));
        }
        loop {
            let next = ready!(self.deliveries.poll_recv(cx));
            match next {
                // What was not handed out goes back.
                Some(Ok(_)) if self.cancelled.is_cancelled() => {}
                // It cannot be acknowledged any more, and comes again.
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

    /// What it is that has ended, for whoever asks for more.
    pub(crate) fn has_ended(&self) -> Error {
        let Session { closed, intake, .. } = &*self.lease;
        let resource = || Arc::clone(self.link.name());
        if closed.load(Ordering::SeqCst) {
            return Error::Closed { resource: resource() };
        }
        if intake.is_cancelled() {
            return Error::Closing { resource: resource() };
        }
        let how = match &self.failed {
            Some(Error::Operation { source, .. }) => format!(": {source}"),
            Some(error) => format!(": {error}"),
            None => String::new(),
        };
        operation(&self.link, &consuming(&self.queue), format!("the consumer has ended{how}; `consume` again for more"))
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

pub(super) struct Subscription {
    pub(super) consumer: lapin::Consumer,
    /// Open until the last delivery is settled.
    pub(super) channel: Arc<ChannelGuard>,
    pub(super) reading: Arc<Reading>,
}

/// How a subscription ended.
enum End {
    Cancelled,
    Lost,
    Failed(Error),
}

/// Hands a consumer's deliveries on, over all generations.
pub(super) struct Pump {
    pub(super) session: Arc<Session>,
    pub(super) what: Consume,
    /// The line that consumes.
    pub(super) claim: Claim,
    pub(super) sender: mpsc::UnboundedSender<Result<Delivery, Error>>,
    pub(super) cancel: CancellationToken,
    pub(super) _counted: Counted,
}

impl Pump {
    pub(super) async fn run(self, first: Subscription) {
        self.session.topology.lock().consumer_came(&self.what.queue);
        let (mut subscription, mut from) = (Some(first), None);
        while let Some(current) = subscription.take() {
            let reading = Arc::clone(&current.reading);
            match self.forward(current).await {
                End::Cancelled => {}
                End::Lost => {
                    from = reading.next().or(from);
                    subscription = self.subscribe_again(from).await;
                }
                End::Failed(error) => self.fail(error),
            }
        }
        // A connection that is lost while closing takes its queues along anyway.
        if !self.session.closed.load(Ordering::SeqCst) {
            self.session.topology.lock().consumer_went(&self.what.queue);
        }
    }

    async fn forward(&self, subscription: Subscription) -> End {
        let Subscription { mut consumer, channel, reading } = subscription;
        let generation = Arc::clone(&channel.generation);
        loop {
            let next = tokio::select! {
                biased;
                () = self.cancel.cancelled() => {
                    self.unsubscribe(consumer, &channel, &reading).await;
                    return End::Cancelled;
                }
                () = generation.switch.wait() => return End::Lost,
                () = reading.given_up.cancelled() => {
                    let goodbye = channel.channel.close(200, "OK".into());
                    let _ = generation.answer("closing a channel", goodbye).await;
                    return End::Lost;
                }
                next = poll_fn(|cx| Pin::new(&mut consumer).poll_next(cx)) => next,
            };
            match next {
                Some(Ok(message)) => {
                    let keeps = Keeps::Consumer(Arc::clone(&channel));
                    let delivery = Delivery::new(message, Arc::clone(&generation), keeps).noted(&reading);
                    // Refused only when the consumer is gone, and then it goes back.
                    drop(self.sender.send(Ok(delivery)));
                }
                _ if !generation.is_alive() => return End::Lost,
                Some(Err(error)) => {
                    return End::Failed(Trouble::Driver(error).into_error(&generation, &consuming(&self.what.queue)));
                }
                None => {
                    let source =
                        "the broker cancelled the consumer; its queue was deleted, or has moved to another node";
                    return End::Failed(self.session.operation(&consuming(&self.what.queue), source));
                }
            }
        }
    }

    /// Cancels, and gives back what has come but was not handed out.
    async fn unsubscribe(&self, mut consumer: lapin::Consumer, channel: &Arc<ChannelGuard>, reading: &Arc<Reading>) {
        let generation = &channel.generation;
        let cancelling = channel.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        if let Err(error) = generation.answer("cancelling a consumer", cancelling).await {
            tracing::debug!(resource = %self.session.link.name(), %error, "a consumer was not cancelled");
            return;
        }
        let mut nobody = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(Ok(message))) = Pin::new(&mut consumer).poll_next(&mut nobody) {
            let keeps = Keeps::Consumer(Arc::clone(channel));
            drop(Delivery::new(message, Arc::clone(generation), keeps).noted(reading));
        }
    }

    /// A subscription on the next connection; `None` if there is none to come.
    async fn subscribe_again(&self, from: Option<i64>) -> Option<Subscription> {
        let again = async {
            let mut tries = 0;
            loop {
                let error = match self.try_again(from).await {
                    Ok(subscription) => return Some(subscription),
                    Err(error) => error,
                };
                match &error {
                    error if error.is_closed() => return None,
                    error if is_locked(error) && tries < LOCKED_TRIES => tries += 1,
                    Error::Operation { .. } => {
                        self.fail(error);
                        return None;
                    }
                    Error::Connect(connect) if connect.permanent => {
                        self.fail(error);
                        return None;
                    }
                    _ => {}
                }
                tokio::time::sleep(LOCKED_PAUSE).await;
            }
        };
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => None,
            subscription = again => subscription,
        }
    }

    async fn try_again(&self, from: Option<i64>) -> Result<Subscription, Error> {
        let (_lease, generation) = self.session.lease(deadline(self.session.link.patience), self.claim).await?;
        self.session.subscribe(&generation, &self.what, self.claim.site, from).await
    }

    fn fail(&self, error: Error) {
        tracing::warn!(resource = %self.session.link.name(), %error, "a consumer has ended");
        // Refused only when the consumer is gone.
        drop(self.sender.send(Err(error)));
    }
}
