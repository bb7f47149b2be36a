//! The task of a consumer, which subscribes again after each reconnect and hands deliveries on.
//!
//! `RabbitMq::consume` makes the first subscription and spawns `ConsumerTask::run` on the pool's runtime. The task ends
//! when its consumer drops, when closing begins, or with an error that it hands to its consumer. Closing waits for all
//! of these tasks by `RabbitMqSession::consumers`.
//!
//! Each delivery holds the `ChannelGuard` of its subscription. So the channel stays open until the last delivery is
//! settled, also after the task has ended.
//!
//! There is no lock here. That of the session's topology is taken for a moment only, and nothing is awaited under it.

use std::future::poll_fn;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use futures_core::Stream;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::base::error::Error;
use crate::base::runtime::deadline;
use crate::kinds::rabbitmq::channel::ChannelGuard;
use crate::kinds::rabbitmq::consumer::{Consume, consuming};
use crate::kinds::rabbitmq::declare::Declaration;
use crate::kinds::rabbitmq::delivery::{Delivery, KeepAlive};
use crate::kinds::rabbitmq::errors::{
    CallError, LOCKED_PAUSE, LOCKED_TRIES, is_elsewhere, is_locked, is_missing, short,
};
use crate::kinds::rabbitmq::generation::Generation;
use crate::kinds::rabbitmq::session::RabbitMqSession;
use crate::kinds::rabbitmq::stream::{Reading, reading_from};
use crate::lifecycle::lease::Claim;
use crate::net::count::Counted;

/// Hands the deliveries of one consumer on, over all generations of the connection.
pub(super) struct ConsumerTask {
    pub(super) session: Arc<RabbitMqSession>,
    pub(super) what: Consume,
    /// The claim with the line that consumes.
    pub(super) claim: Claim,
    pub(super) sender: mpsc::UnboundedSender<Result<Delivery, Error>>,
    pub(super) cancel: CancellationToken,
    pub(super) _counted: Counted,
}

impl ConsumerTask {
    pub(super) async fn run(self, first: ConsumerSubscription) {
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
        // A session that is closed declares nothing again, so its topology need not be kept.
        if !self.session.closed.load(Ordering::SeqCst) {
            self.session.topology.lock().consumer_went(&self.what.queue);
        }
    }

    async fn forward(&self, subscription: ConsumerSubscription) -> End {
        let ConsumerSubscription { mut consumer, channel, reading } = subscription;
        let generation = Arc::clone(&channel.generation);
        loop {
            let next = tokio::select! {
                // Cancelling comes first, so that nothing is handed on after it, however many deliveries have come.
                biased;
                () = self.cancel.cancelled() => {
                    self.unsubscribe(consumer, &channel, &reading).await;
                    return End::Cancelled;
                }
                () = generation.switch.wait() => return End::Lost,
                () = reading.given_up.cancelled() => {
                    let disconnect = channel.channel.close(200, "OK".into());
                    let _ = generation.answer("closing a channel", disconnect).await;
                    return End::Lost;
                }
                next = poll_fn(|cx| Pin::new(&mut consumer).poll_next(cx)) => next,
            };
            match next {
                Some(Ok(message)) => {
                    let keeps = KeepAlive::Consumer(Arc::clone(&channel));
                    let delivery = Delivery::new(message, Arc::clone(&generation), keeps).of(&reading);
                    // Sending fails only when the consumer is gone. The delivery then drops and goes back.
                    drop(self.sender.send(Ok(delivery)));
                }
                _ if !generation.is_alive() => return End::Lost,
                Some(Err(error)) => {
                    return End::Failed(CallError::Driver(error).into_error(&generation, &consuming(&self.what.queue)));
                }
                None => {
                    let source =
                        "the broker cancelled the consumer; its queue was deleted, or has moved to another node";
                    return End::Failed(self.session.operation(&consuming(&self.what.queue), source));
                }
            }
        }
    }

    /// Cancels the consumer, and gives back the deliveries that have come but were not handed out.
    async fn unsubscribe(&self, mut consumer: lapin::Consumer, channel: &Arc<ChannelGuard>, reading: &Arc<Reading>) {
        let generation = &channel.generation;
        let cancelling = channel.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        if let Err(error) = generation.answer("cancelling a consumer", cancelling).await {
            tracing::debug!(resource = %self.session.link.name(), %error, "a consumer was not cancelled");
            return;
        }
        let mut nobody = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(Ok(message))) = Pin::new(&mut consumer).poll_next(&mut nobody) {
            let keeps = KeepAlive::Consumer(Arc::clone(channel));
            drop(Delivery::new(message, Arc::clone(generation), keeps).of(reading));
        }
    }

    /// A subscription on the next connection. `None` if there will be none.
    async fn subscribe_again(&self, from: Option<i64>) -> Option<ConsumerSubscription> {
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
                    error if is_missing(error) && tries < LOCKED_TRIES && self.declare_again().await => tries += 1,
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
            // Cancelling comes first, so that a cancelled consumer is not subscribed again.
            biased;
            () = self.cancel.cancelled() => None,
            subscription = again => subscription,
        }
    }

    async fn try_again(&self, from: Option<i64>) -> Result<ConsumerSubscription, Error> {
        let (_lease, generation) = self.session.lease(deadline(self.session.link.patience()), self.claim).await?;
        self.session.subscribe(&generation, &self.what, self.claim.site(), from).await
    }

    /// Declares the queue again if it deletes itself. It may have gone with the consumers of the lost connection, after
    /// the replay had found it. Answers whether the pool has declared the queue.
    async fn declare_again(&self) -> bool {
        let (session, queue) = (&self.session, &self.what.queue);
        let known = {
            let topology = session.topology.lock();
            let of_queue = topology.bindings.iter().filter(|binding| binding.queue == *queue);
            topology.spec(queue).map(|spec| (spec, of_queue.cloned().collect::<Vec<_>>()))
        };
        let Some((spec, bindings)) = known else { return false };
        if !spec.options.auto_delete {
            return true;
        }
        let declared = async {
            if let Some(declared) = session.declare(self.claim, Declaration::Queue(&spec)).await? {
                session.topology.lock().rename(queue, declared.name().as_str());
            }
            for binding in &bindings {
                session.declare(self.claim, Declaration::Binding(binding)).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = declared.await {
            session.link.warn("not declared again", Some(&error));
        }
        true
    }

    fn fail(&self, error: Error) {
        self.session.link.warn("a consumer has ended", Some(&error));
        // Sending fails only when the consumer is gone.
        drop(self.sender.send(Err(error)));
    }
}

impl RabbitMqSession {
    /// Subscribes a consumer, on a channel of its own.
    pub(super) async fn subscribe(
        self: &Arc<Self>,
        main: &Arc<Generation>,
        what: &Consume,
        site: &'static Location<'static>,
        from: Option<i64>,
    ) -> Result<ConsumerSubscription, Error> {
        let generation = self.consuming(main, &what.queue).await;
        // The driver itself would not tell why a connection that was cut meanwhile is gone.
        if !generation.is_alive() {
            return Err(generation.was_cut());
        }
        match self.subscribe_on(&generation, what, site, from).await {
            // The main connection may have the queue exclusively, by a declaration on a raw channel.
            Err(error) if is_elsewhere(&error) && !Arc::ptr_eq(&generation, main) => {
                self.subscribe_on(main, what, site, from).await
            }
            subscribed => subscribed,
        }
    }

    async fn subscribe_on(
        &self,
        generation: &Arc<Generation>,
        what: &Consume,
        site: &'static Location<'static>,
        from: Option<i64>,
    ) -> Result<ConsumerSubscription, Error> {
        let arguments = reading_from(from, &what.arguments);
        let queue = self.current_name(&what.queue);
        let action = format!("consuming {queue:?}");
        let name = short(&self.link, &action, &queue)?;
        let tag = short(&self.link, &action, &what.tag)?;
        generation.fits_method(&action, &[&queue, &what.tag], &arguments)?;
        let mut guard = ChannelGuard::open(
            generation,
            generation.place(deadline(generation.link.acquire_timeout())).await?,
            None,
            Some(site),
        )
        .await?;
        let channel = guard.channel.clone();
        let prefetch = what.prefetch.unwrap_or(self.config.prefetch);
        guard.ask(&action, channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let options = BasicConsumeOptions { exclusive: what.exclusive, ..BasicConsumeOptions::default() };
        let consumer = guard.ask(&action, channel.basic_consume(name, tag, options, arguments)).await?;
        Ok(ConsumerSubscription {
            consumer,
            channel: Arc::new(guard),
            reading: Reading::new(self.is_stream(&what.queue)),
        })
    }
}

pub(super) struct ConsumerSubscription {
    pub(super) consumer: lapin::Consumer,
    /// The channel of the subscription, open until the last delivery is settled.
    pub(super) channel: Arc<ChannelGuard>,
    pub(super) reading: Arc<Reading>,
}

/// How a subscription ended.
enum End {
    Cancelled,
    Lost,
    Failed(Error),
}
