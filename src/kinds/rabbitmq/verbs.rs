//! The verbs of RabbitMQ for async code; the verbs for threads wait for these.
//!
//! A verb checks a channel out of its `RabbitMqSession`, makes its request and gives the channel back. `consume` spawns the
//! task of its consumer on the pool's runtime, and hands the user the other end.
//!
//! There is no lock here. That of the session's topology is taken for a moment only, and nothing is awaited under it.
//! `closed` is only read, to choose an error.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lapin::types::FieldTable;
use tokio::sync::mpsc;

use crate::base::error::Error;
use crate::base::process::ForkGuarded;
use crate::base::runtime::deadline;
use crate::kinds::rabbitmq::blocking;
use crate::kinds::rabbitmq::channel::Channel;
use crate::kinds::rabbitmq::consumer::{Consume, Consumer};
use crate::kinds::rabbitmq::consumer_task::ConsumerTask;
use crate::kinds::rabbitmq::declare::{Binding, Declaration, DeclaredQueue, Exchange, Queue};
use crate::kinds::rabbitmq::delivery::{Delivery, KeepAlive};
use crate::kinds::rabbitmq::in_flight::InFlight;
use crate::kinds::rabbitmq::message::{Batch, Message, Published};
use crate::kinds::rabbitmq::parts::Parts;
use crate::kinds::rabbitmq::session::{RabbitMqSession, Use};
use crate::lifecycle::lease::{Claim, LeaseAs};
use crate::net::count::Counted;

/// A RabbitMQ for async code: one connection for consumers, and one for all else, shared. Cheap to clone.
///
/// The verbs take a channel of the pool for as long as they run, so no two verbs share one. Exchanges, queues and
/// bindings declared through them are declared again after a loss, and consumers go on. Anything done on a raw
/// [`channel`](RabbitMq::channel) is not remembered.
///
/// While the broker is short of memory or disk it blocks connections that publish. All verbs then wait, and time out
/// with an error that says so. Consumers and their acknowledgements go on, because their connection publishes nothing.
///
/// ```no_run
/// # async fn example() -> Result<(), resource_pool::Error> {
/// use resource_pool::{ResourcePool, rabbitmq::{Message, Queue}};
///
/// let rabbit = ResourcePool::global().rabbitmq().await?;
/// rabbit.declare_queue(Queue::new("orders")).await?;
/// assert!(rabbit.publish(Message::new("", "orders", "buy 100")).await?.is_confirmed());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct RabbitMq {
    pub(super) session: Arc<RabbitMqSession>,
    threads: blocking::RabbitMq,
    /// Whether the caller's thread is blocked while a verb runs.
    blocks: bool,
}

impl LeaseAs<blocking::RabbitMq> for RabbitMq {
    fn lease_as(&self) -> &blocking::RabbitMq {
        &self.threads
    }
}

impl LeaseAs<RabbitMqSession> for RabbitMq {
    fn lease_as(&self) -> &RabbitMqSession {
        &self.session
    }
}

impl RabbitMq {
    pub(crate) fn over(session: Arc<RabbitMqSession>) -> Self {
        RabbitMq { threads: blocking::RabbitMq::new(Arc::clone(&session)), session, blocks: false }
    }

    /// The client of a caller whose thread is blocked while a verb runs.
    pub(crate) fn blocking(self) -> Self {
        RabbitMq { blocks: true, ..self }
    }

    #[track_caller]
    fn claim(&self) -> Claim {
        if self.blocks { Claim::shared().blocking() } else { Claim::shared() }
    }

    /// A channel of the caller's own, for all that the other verbs do not do; derefs to [`lapin::Channel`]. It is
    /// opened for the caller and closed when it drops, because nobody can tell what was done to it. It dies with its
    /// connection, and nothing done on it is replayed.
    ///
    /// # Errors
    /// [`Error::Timeout`], with the holders, if all [`max_channels`](crate::config::RabbitMqConfig::max_channels)
    /// are out for longer than the acquire timeout; those of the other verbs.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    #[track_caller]
    pub fn channel(&self) -> impl Future<Output = Result<Channel, Error>> + Send {
        let claim = self.claim();
        async move { Ok(Channel { pooled: ForkGuarded::new(self.session.check_out(claim, Use::Raw).await?) }) }
    }

    /// Declares an exchange, now and after every reconnect.
    ///
    /// # Errors
    /// [`Error::Operation`] if it exists with other properties or may not be declared;
    /// [`Error::Lost`], [`Error::Timeout`], [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Once begun it may happen even if it is cancelled, but is not replayed then.
    #[track_caller]
    pub fn declare_exchange(&self, exchange: Exchange) -> impl Future<Output = Result<(), Error>> + Send {
        let claim = self.claim();
        async move {
            self.session.declare(claim, Declaration::Exchange(&exchange)).await?;
            if !exchange.options.passive {
                self.session.topology.lock().exchange(exchange);
            }
            Ok(())
        }
    }

    /// Declares a queue, now and after every reconnect. If the broker names it, it has another name after each
    /// reconnect, but the verbs go on knowing it by the first.
    ///
    /// # Errors
    /// As [`declare_exchange`](RabbitMq::declare_exchange).
    ///
    /// # Cancel safety
    /// Once begun it may happen even if it is cancelled, but is not replayed then.
    #[track_caller]
    pub fn declare_queue(&self, queue: Queue) -> impl Future<Output = Result<DeclaredQueue, Error>> + Send {
        let claim = self.claim();
        async move {
            let declared = self.session.declare(claim, Declaration::Queue(&queue)).await?;
            // The declaration of a queue always answers one.
            let declared = declared.ok_or_else(|| self.session.closed_error())?;
            let name = declared.name().to_string();
            if !queue.options.passive {
                self.session.topology.lock().queue(queue, &name);
            }
            Ok(DeclaredQueue { name, messages: declared.message_count(), consumers: declared.consumer_count() })
        }
    }

    /// Binds a queue to an exchange, now and after every reconnect.
    ///
    /// # Errors
    /// [`Error::Operation`] if one of them does not exist; [`Error::Lost`], [`Error::Timeout`],
    /// [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Once begun it may happen even if it is cancelled, but is not replayed then.
    #[track_caller]
    pub fn bind(
        &self,
        queue: &str,
        exchange: &str,
        routing_key: &str,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        self.bind_with(queue, exchange, routing_key, FieldTable::default())
    }

    /// [`bind`](RabbitMq::bind) with arguments, as headers exchanges need them.
    ///
    /// # Errors
    /// As [`bind`](RabbitMq::bind).
    ///
    /// # Cancel safety
    /// As [`bind`](RabbitMq::bind).
    #[track_caller]
    pub fn bind_with(
        &self,
        queue: &str,
        exchange: &str,
        routing_key: &str,
        arguments: FieldTable,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        let claim = self.claim();
        let binding = Binding {
            queue: queue.to_owned(),
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
            arguments,
        };
        async move {
            self.session.declare(claim, Declaration::Binding(&binding)).await?;
            self.session.topology.lock().binding(binding);
            Ok(())
        }
    }

    /// Deletes a queue, and once that is done forgets it and its bindings.
    ///
    /// # Errors
    /// [`Error::Operation`] if it may not be deleted; [`Error::Lost`], [`Error::Timeout`], [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Once begun it may happen even if it is cancelled, but the queue is declared again after a reconnect then.
    #[track_caller]
    pub fn delete_queue(&self, queue: &str) -> impl Future<Output = Result<(), Error>> + Send {
        let claim = self.claim();
        let queue = queue.to_owned();
        async move {
            let mut pooled = self.session.check_out(claim, Use::Verb).await?;
            let name = self.session.current_name(&queue);
            pooled.guard.delete_queue(&name).await?;
            self.session.topology.lock().forget_queue(&queue);
            Ok(())
        }
    }

    /// Deletes an exchange, and once that is done forgets it and its bindings.
    ///
    /// # Errors
    /// [`Error::Operation`] if it may not be deleted; [`Error::Lost`], [`Error::Timeout`], [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Once begun it may happen even if it is cancelled, but the exchange is declared again after a reconnect then.
    #[track_caller]
    pub fn delete_exchange(&self, exchange: &str) -> impl Future<Output = Result<(), Error>> + Send {
        let claim = self.claim();
        let exchange = exchange.to_owned();
        async move {
            let mut pooled = self.session.check_out(claim, Use::Verb).await?;
            pooled.guard.delete_exchange(&exchange).await?;
            self.session.topology.lock().forget_exchange(&exchange);
            Ok(())
        }
    }

    /// The present name of a queue that the broker named; other names are answered as they are.
    pub fn current_name(&self, queue: &str) -> String {
        self.session.current_name(queue)
    }

    /// Publishes a message and waits for the broker's confirm. A message that reaches no queue
    /// comes back as [`Published::Returned`], unless it is [optional](Message::optional).
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] if the connection or the answer is lost after it was sent: it is
    /// never sent again by itself, so there is no silent duplicate. [`Error::Operation`] if the
    /// broker refuses it, as for an exchange that does not exist, or if its headers do not fit into one
    /// frame ([`frame_max`](crate::config::RabbitMqConfig::frame_max)). [`Error::Timeout`] if the broker
    /// blocks publishers, or no channel is free; then it was not sent. [`Error::Lost`],
    /// [`Error::Closed`]: not sent either.
    ///
    /// # Cancel safety
    /// Once begun it may be published even if it is cancelled.
    #[track_caller]
    pub fn publish(&self, message: Message) -> impl Future<Output = Result<Published, Error>> + Send {
        let claim = self.claim();
        async move {
            match self.session.link.operation(|| "publish".into()) {
                None => self.session.publish(claim, message).await,
                Some(operation) => operation.to(&message.destination()).run(self.session.publish(claim, message)).await,
            }
        }
    }

    /// Publishes messages in their order, many unconfirmed at a time
    /// ([`confirm_window`](crate::config::RabbitMqConfig::confirm_window),
    /// [`confirm_window_bytes`](crate::config::RabbitMqConfig::confirm_window_bytes)), and tells the outcome of each.
    ///
    /// It stops at the first loss, timeout or refusal of the broker's. Each message that was not sent by then has an
    /// error that says so; for that, the rest of the messages is taken out of the iterator and dropped. A message that
    /// the broker refused has [`Error::Operation`] with its reason. The messages after it, which the broker did not
    /// take, have one that says so. The messages before it without an answer have [`Error::OutcomeUnknown`], and so do
    /// all where it cannot be told which one was refused.
    ///
    /// # Errors
    /// Those of [`publish`](RabbitMq::publish) if nothing could be sent.
    ///
    /// # Cancel safety
    /// Messages begun by then may be published even if it is cancelled.
    #[track_caller]
    pub fn publish_batch<I>(&self, messages: I) -> impl Future<Output = Result<Batch, Error>> + Send
    where
        I: IntoIterator<Item = Message>,
        I::IntoIter: Send,
    {
        let claim = self.claim();
        let mut parts = Parts::new(messages.into_iter(), &self.session.config);
        let publishing = async move {
            let (mut pooled, sent) = self.session.send(claim, &parts.next()).await?;
            let mut flight = InFlight::from(sent);
            let (mut results, mut failure, mut unsent) = (Vec::new(), None, 0);
            loop {
                while failure.is_none() && !flight.is_lost() {
                    let part = parts.next();
                    if part.is_empty() {
                        break;
                    }
                    match pooled.guard.send(&self.session.topology, &part).await {
                        Ok(sent) => flight.push(sent),
                        // Nothing of this part was sent, nor will be.
                        Err(error) => (failure, unsent) = (Some(error), part.len()),
                    }
                }
                let settled = pooled.guard.settle(&mut flight).await;
                if settled.is_empty() {
                    break;
                }
                parts.settled();
                results.extend(settled);
                if failure.is_none() && flight.is_lost() {
                    let unanswered = results.iter().rev().find_map(|result: &Result<_, Error>| result.as_ref().err());
                    // No error is left if the last answer came just now.
                    failure = Some(unanswered.cloned().unwrap_or_else(|| pooled.guard.generation.was_cut()));
                }
            }
            if let Some(why) = failure {
                let unsent = unsent + parts.left();
                let error = || self.session.operation("publishing (it was not sent)", why.clone());
                results.extend((0..unsent).map(|_| Err(error())));
            }
            Ok(Batch { results })
        };
        async move {
            match self.session.link.operation(|| "publish".into()) {
                None => publishing.await,
                Some(operation) => operation.run(publishing).await,
            }
        }
    }

    /// Fetches one message, if there is one. The message keeps a channel until it is settled or dropped.
    ///
    /// # Errors
    /// [`Error::Operation`] if there is no such queue, or it was declared here as a stream; [`Error::Lost`],
    /// [`Error::Timeout`], [`Error::Closed`].
    ///
    /// # Cancel safety
    /// A message in flight goes back to its queue.
    #[track_caller]
    pub fn get(&self, queue: &str) -> impl Future<Output = Result<Option<Delivery>, Error>> + Send {
        let claim = self.claim();
        let queue = queue.to_owned();
        async move {
            if self.session.is_stream(&queue) == Some(true) {
                let problem = "a stream is not fetched from, and the broker would end the connection; consume it";
                return Err(self.session.operation(&format!("fetching from {queue:?}"), problem));
            }
            let mut pooled = self.session.check_out(claim, Use::Verb).await?;
            let queue = self.session.current_name(&queue);
            let Some(message) = pooled.guard.get(&queue).await? else { return Ok(None) };
            // The channel is not free until the message is settled.
            pooled.guard.begin();
            let generation = Arc::clone(&pooled.guard.generation);
            let mut delivery = Delivery::new(message.delivery, generation, KeepAlive::Checkout(pooled));
            delivery.hand_out(&self.session.link);
            Ok(Some(delivery))
        }
    }

    /// Consumes a queue. The stream goes on after a reconnect, without a sign. Messages that were in hand then are
    /// delivered again. It ends when closing begins, after an error, and when the broker cancels the consumer.
    ///
    /// # Errors
    /// [`Error::Operation`] if there is no such queue, or it is consumed exclusively;
    /// [`Error::Lost`], [`Error::Timeout`], [`Error::Closing`], [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Cancel-safe.
    #[track_caller]
    pub fn consume(&self, what: impl Into<Consume>) -> impl Future<Output = Result<Consumer, Error>> + Send {
        let claim = Claim::shared();
        let mut what = what.into();
        async move {
            let session = &self.session;
            session.link.check_process()?;
            if session.intake.is_cancelled() && !session.closed.load(Ordering::SeqCst) {
                return Err(Error::closing(session.link.name()));
            }
            what.prefetch.get_or_insert(session.config.prefetch);
            let (lease, generation) = session.lease(deadline(session.link.patience()), claim).await?;
            let first = session.subscribe(&generation, &what, claim.site(), None).await?;
            let cancel = session.intake.child_token();
            let (sender, deliveries) = mpsc::unbounded_channel();
            let pump = ConsumerTask {
                session: Arc::clone(session),
                what: what.clone(),
                claim,
                sender,
                cancel: cancel.clone(),
                _counted: Counted::new(&session.consumers),
            };
            session.runtime.spawn(pump.run(first));
            Ok(Consumer {
                deliveries: ForkGuarded::new(deliveries),
                link: session.link.clone(),
                what,
                cancelled: cancel.clone(),
                forked: false,
                failed: None,
                _cancel: ForkGuarded::new(cancel.drop_guard()),
                session: Arc::clone(session),
                _lease: lease,
            })
        }
    }
}

impl fmt::Debug for RabbitMq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMq").field("resource", self.session.link.name()).finish_non_exhaustive()
    }
}
