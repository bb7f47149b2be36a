//! RabbitMQ: one connection, channels pooled on it, confirms awaited, topology that comes back.
//!
//! How it is used (the blocking facade has the same verbs, without `await`, and `consume` is an iterator):
//!
//! ```no_run
//! use resource_pool::ResourcePool;
//! use resource_pool::rabbitmq::{Consume, Exchange, Message, Queue};
//!
//! # async fn bars() -> Result<(), resource_pool::Error> {
//! let rabbit = ResourcePool::global().rabbitmq().await?;
//! rabbit.declare_exchange(Exchange::fanout("realtime_day_AAPL")).await?;
//! let queue = rabbit.declare_queue(Queue::temporary()).await?;
//! rabbit.bind(queue.name(), "realtime_day_AAPL", "").await?;
//!
//! let bars = (0..1000).map(|bar| Message::new("realtime_day_AAPL", "", format!("{{\"bar\":{bar}}}")));
//! let batch = rabbit.publish_batch(bars).await?;
//! assert_eq!(batch.confirmed(), 1000);
//!
//! let mut consumer = rabbit.consume(Consume::from(queue.name()).prefetch(200)).await?;
//! while let Some(delivery) = consumer.next().await {
//!     let delivery = delivery?;
//!     println!("{}", String::from_utf8_lossy(delivery.data()));
//!     delivery.ack().await?;
//! }
//! # Ok(()) }
//! ```
//!
//! The connection's stream is our own and stands under a kill switch; every await of the driver
//! is raced with that switch and a limit, since the driver's futures may never resolve. Recovery
//! is ours too: a new connection, the recorded topology replayed, the consumers subscribed again.

pub mod blocking;
mod channel;
mod channels;
mod config;
mod consumer;
mod declare;
mod delivery;
mod dial;
mod errors;
pub(crate) mod exports;
mod frame;
mod generation;
mod message;
mod prober;
mod replay;
mod stream;
mod together;
mod topology;

use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use futures_core::Stream;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use self::channel::Channel;
pub use self::config::RabbitMqConfig;
pub use self::consumer::{Consume, Consumer};
pub use self::declare::{DeclaredQueue, Exchange, Queue};
pub use self::delivery::Delivery;
pub use self::message::{Batch, Message, Published};

use crate::base::error::{BoxError, Error, Failure};
use crate::base::process::Ours;
use crate::base::repeat::Repeat;
use crate::base::runtime::{deadline, within};
use crate::kinds::rabbitmq::channel::{ChannelGuard, Pooled};
use crate::kinds::rabbitmq::channels::Channels;
use crate::kinds::rabbitmq::config::SCHEMES;
use crate::kinds::rabbitmq::consumer::{Pump, Subscription};
use crate::kinds::rabbitmq::declare::{Binding, Declaration};
use crate::kinds::rabbitmq::delivery::Keeps;
use crate::kinds::rabbitmq::dial::{CutOnDrop, dial_for_all};
use crate::kinds::rabbitmq::errors::{lost, operation, short};
use crate::kinds::rabbitmq::generation::{GOODBYE, Generation, LINGER};
use crate::kinds::rabbitmq::message::{Flight, Parts, Sent};
use crate::kinds::rabbitmq::stream::{Reading, reading_from};
use crate::kinds::rabbitmq::topology::Topology;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::lease::{Claim, Lease, Provide};
use crate::lifecycle::link::Link;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::Usage;
use crate::lifecycle::wait::Quota;
use crate::net::count::{Counted, none};
use crate::net::tls::Tls;
use crate::net::url::host_port;

/// A RabbitMQ in the pool.
#[derive(Debug)]
pub struct RabbitMqResource {
    config: Arc<RabbitMqConfig>,
    tls: Tls,
}

impl Resource for RabbitMqResource {
    type Handle = RabbitMq;

    async fn connect(&self, link: &Link) -> Result<RabbitMq, Failure> {
        let session = Arc::new(Session {
            config: Arc::clone(&self.config),
            tls: self.tls.clone(),
            link: link.clone(),
            runtime: Handle::current(),
            current: RwLock::new(None),
            topology: Mutex::default(),
            intake: CancellationToken::new(),
            consumers: watch::Sender::new(0),
            probes: watch::Sender::new(0),
            probes_given_up: CancellationToken::new(),
            closed: Arc::default(),
        });
        if let Err(failure) = session.open_generation(link).await {
            let RabbitMqConfig { host, port, .. } = &*self.config;
            // No further attempt mends an answer that is no AMQP, but it may be TLS's.
            let is_no_amqp = dial::is_no_amqp(&failure);
            let failure = Failure { permanent: failure.permanent && !is_no_amqp, ..failure };
            let failure = self.tls.or_wanted(failure, host, *port, "use amqps://").await;
            return Err(Failure { permanent: failure.permanent || is_no_amqp, ..failure });
        }
        Ok(RabbitMq::over(session))
    }

    async fn recover(&self, link: &Link, lost: &RabbitMq) -> Result<bool, Failure> {
        let old = lost.session.current.write().take();
        if let Some(old) = old {
            old.switch.cut_because(lost.session.link.why_cut());
        }
        lost.session.open_generation(link).await?;
        Ok(true)
    }

    async fn ping(&self, rabbit: &RabbitMq) -> Result<(), Failure> {
        let generation = rabbit.session.alive().ok_or_else(|| Failure::transient("the connection is gone"))?;
        rabbit.session.ask(&generation).await
    }

    async fn close(&self, rabbit: RabbitMq) -> Result<(), Failure> {
        let session = &rabbit.session;
        session.closed.store(true, Ordering::SeqCst);
        session.intake.cancel();
        let generation = session.current.read().clone();
        // Its goodbye is said beside the other one, unless a ping has it.
        if let Some(Ok(mut prober)) = generation.as_ref().map(|generation| generation.prober.try_lock()) {
            drop(prober.probe.take());
        }
        let goodbye = match &generation {
            Some(generation) => generation.close().await,
            None => Ok(()),
        };
        let no_probe = async || {
            if let Some(generation) = &generation {
                drop(generation.prober.lock().await.probe.take());
            }
            none(&session.probes).await;
        };
        // Its goodbye takes a moment; where there was none for the other, not much longer.
        let patience = if generation.is_some() && goodbye.is_ok() { GOODBYE * 2 + LINGER } else { LINGER };
        if within(patience, no_probe()).await.is_err() {
            session.probes_given_up.cancel();
            // Cut, they are gone in microseconds.
            let _ = within(LINGER, no_probe()).await;
        }
        session.current.write().take();
        goodbye
    }

    fn cut(&self, rabbit: &RabbitMq) {
        if let Some(generation) = &*rabbit.session.current.read() {
            generation.switch.cut_because(rabbit.session.link.why_cut());
        }
    }

    async fn stop_intake(&self, rabbit: &RabbitMq) {
        rabbit.session.intake.cancel();
        none(&rabbit.session.consumers).await;
    }

    fn endpoint(&self) -> String {
        let vhost = percent_encoding::utf8_percent_encode(&self.config.vhost, percent_encoding::NON_ALPHANUMERIC);
        let scheme = SCHEMES[usize::from(self.config.tls.is_some())];
        format!("{scheme}://{}/{vhost}", host_port(&self.config.host, self.config.port))
    }

    fn phase(&self) -> Phase {
        Phase::RabbitMq
    }

    fn usage(&self, rabbit: &RabbitMq) -> Usage {
        let mut usage = Usage { max: Some(self.config.max_channels), ..Usage::default() };
        if let Some(generation) = &*rabbit.session.current.read() {
            let max = self.config.max_channels.min(generation.channels.max);
            let idle = generation.channels.idle();
            let in_use = max.saturating_sub(generation.permits.available_permits());
            usage.max = Some(max);
            usage.in_use = Some(in_use);
            usage.idle = Some(idle);
            usage.open = Some(in_use + idle);
            usage.waiting = Some(generation.waiting.load(Ordering::Relaxed));
        }
        usage
    }
}

/// A RabbitMQ for async code: one connection, shared. Cheap to clone.
///
/// The verbs take a channel of the pool for as long as they run, so no two share one. Exchanges,
/// queues and bindings declared through them are declared again after a loss, and consumers go
/// on; what is done on a raw [`channel`](RabbitMq::channel) is not remembered.
///
/// While the broker is short of memory or disk it blocks connections that publish. All verbs
/// then wait, and time out with an error that says so; acknowledgements wait too.
#[derive(Clone)]
pub struct RabbitMq {
    session: Arc<Session>,
    threads: blocking::RabbitMq,
    /// The caller's thread is blocked while a verb runs.
    blocks: bool,
}

pub(crate) struct Session {
    config: Arc<RabbitMqConfig>,
    tls: Tls,
    pub(crate) link: Link,
    pub(crate) runtime: Handle,
    current: RwLock<Option<Arc<Generation>>>,
    topology: Mutex<Topology>,
    /// Cancelled when consuming ends.
    intake: CancellationToken,
    consumers: watch::Sender<usize>,
    probes: watch::Sender<usize>,
    /// Closing waits for their goodbyes no longer.
    probes_given_up: CancellationToken,
    closed: Arc<AtomicBool>,
}

impl Provide<blocking::RabbitMq> for RabbitMq {
    fn provide(&self) -> &blocking::RabbitMq {
        &self.threads
    }
}

impl Provide<Session> for RabbitMq {
    fn provide(&self) -> &Session {
        &self.session
    }
}

impl RabbitMq {
    pub(crate) fn over(session: Arc<Session>) -> Self {
        RabbitMq { threads: blocking::RabbitMq::new(Arc::clone(&session)), session, blocks: false }
    }

    /// The same for a caller whose thread is blocked while a verb runs.
    pub(crate) fn blocking(self) -> Self {
        RabbitMq { blocks: true, ..self }
    }

    #[track_caller]
    fn claim(&self) -> Claim {
        if self.blocks { Claim::shared().blocking() } else { Claim::shared() }
    }

    /// A channel of one's own, for whatever the other verbs do not do; derefs to
    /// [`lapin::Channel`]. It is opened for the caller and closed when it drops, since nobody can
    /// tell what was done to it. It dies with its connection, and nothing done on it is replayed.
    ///
    /// # Errors
    /// [`Error::Timeout`], with the holders, if all [`max_channels`](RabbitMqConfig::max_channels)
    /// are out for longer than the acquire timeout; those of the other verbs.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    #[track_caller]
    pub fn channel(&self) -> impl Future<Output = Result<Channel, Error>> + Send {
        let claim = self.claim();
        async move { Ok(Channel { pooled: Ours::new(self.session.check_out(claim, Use::Raw).await?) }) }
    }

    /// Declares an exchange, now and after every reconnect.
    ///
    /// # Errors
    /// [`Error::Operation`] if it exists with other properties or may not be declared;
    /// [`Error::Lost`], [`Error::Timeout`], [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Once begun it may happen all the same, but is not replayed then.
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

    /// Declares a queue, now and after every reconnect. If the broker names it, it has another
    /// name after each, but the verbs go on knowing it by the first.
    ///
    /// # Errors
    /// As [`declare_exchange`](RabbitMq::declare_exchange).
    ///
    /// # Cancel safety
    /// Once begun it may happen all the same, but is not replayed then.
    #[track_caller]
    pub fn declare_queue(&self, queue: Queue) -> impl Future<Output = Result<DeclaredQueue, Error>> + Send {
        let claim = self.claim();
        async move {
            let declared = self.session.declare(claim, Declaration::Queue(&queue)).await?;
            // A queue's declaration answers it.
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
    /// Once begun it may happen all the same, but is not replayed then.
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
    /// Once begun it may happen all the same, but it is declared again after a reconnect then.
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
    /// Once begun it may happen all the same, but it is declared again after a reconnect then.
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
    /// frame ([`frame_max`](RabbitMqConfig::frame_max)). [`Error::Timeout`] if the broker
    /// blocks publishers, or no channel is free; then it was not sent. [`Error::Lost`],
    /// [`Error::Closed`]: not sent either.
    ///
    /// # Cancel safety
    /// Once begun it may be published all the same.
    #[track_caller]
    pub fn publish(&self, message: Message) -> impl Future<Output = Result<Published, Error>> + Send {
        let claim = self.claim();
        async move {
            let (mut pooled, sent) = self.session.send(claim, &Arc::new(vec![message])).await?;
            let mut results = pooled.guard.settle(&mut Flight::from(sent)).await;
            // One message, one result.
            results.pop().unwrap_or_else(|| Err(self.session.closed_error()))
        }
    }

    /// Publishes messages in their order, many unconfirmed at a time
    /// ([`confirm_window`](RabbitMqConfig::confirm_window),
    /// [`confirm_window_bytes`](RabbitMqConfig::confirm_window_bytes)), and tells the outcome of each.
    ///
    /// It stops at the first loss, timeout or refusal of the broker's; what was not sent by then has an error that says so,
    /// for which the rest of the messages is taken out of the iterator and dropped. A message that the broker refused has
    /// [`Error::Operation`] with its reason, and those after it, which it did not take, have one that says so. Those before
    /// it without an answer have [`Error::OutcomeUnknown`], and so do all where it cannot be told which was refused.
    ///
    /// # Errors
    /// Those of [`publish`](RabbitMq::publish) if nothing could be sent.
    ///
    /// # Cancel safety
    /// Those begun may be published all the same.
    #[track_caller]
    pub fn publish_batch<I>(&self, messages: I) -> impl Future<Output = Result<Batch, Error>> + Send
    where
        I: IntoIterator<Item = Message>,
        I::IntoIter: Send,
    {
        let claim = self.claim();
        let mut parts = Parts::new(messages.into_iter(), &self.session.config);
        async move {
            let (mut pooled, sent) = self.session.send(claim, &parts.next()).await?;
            let mut flight = Flight::from(sent);
            let (mut results, mut trouble, mut unsent) = (Vec::new(), None, 0);
            loop {
                while trouble.is_none() && !flight.is_lost() {
                    let part = parts.next();
                    if part.is_empty() {
                        break;
                    }
                    match pooled.guard.send(&self.session.topology, &part).await {
                        Ok(sent) => flight.push(sent),
                        // None of it was sent, nor will be.
                        Err(error) => (trouble, unsent) = (Some(error), part.len()),
                    }
                }
                let settled = pooled.guard.settle(&mut flight).await;
                if settled.is_empty() {
                    break;
                }
                parts.settled();
                results.extend(settled);
                if trouble.is_none() && flight.is_lost() {
                    let unanswered = results.iter().rev().find_map(|result: &Result<_, Error>| result.as_ref().err());
                    // The last answer may just have come all the same.
                    trouble = Some(unanswered.cloned().unwrap_or_else(|| pooled.guard.generation.was_cut()));
                }
            }
            if let Some(why) = trouble {
                let unsent = unsent + parts.left();
                let error = || self.session.operation("publishing (it was not sent)", why.clone());
                results.extend((0..unsent).map(|_| Err(error())));
            }
            Ok(Batch { results })
        }
    }

    /// Fetches one message, if there is one. It keeps a channel until it is acknowledged.
    ///
    /// # Errors
    /// [`Error::Operation`] if there is no such queue, or it was declared here as a stream; [`Error::Lost`],
    /// [`Error::Timeout`], [`Error::Closed`].
    ///
    /// # Cancel safety
    /// A message that was under way goes back to its queue.
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
            // Until the message is settled.
            pooled.guard.begin();
            let generation = Arc::clone(&pooled.guard.generation);
            let mut delivery = Delivery::new(message.delivery, generation, Keeps::Checkout(pooled));
            delivery.hand_out(&self.session.link);
            Ok(Some(delivery))
        }
    }

    /// Consumes a queue. The stream goes on after a reconnect, without a sign; messages that were
    /// in hand then are delivered again. It ends when closing begins, after an error, and when
    /// the broker cancels it.
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
            session.link.process.check()?;
            if session.intake.is_cancelled() && !session.closed.load(Ordering::SeqCst) {
                return Err(Error::Closing { resource: Arc::clone(session.link.name()) });
            }
            what.prefetch.get_or_insert(session.config.prefetch);
            let (lease, generation) = session.lease(deadline(session.link.patience), claim).await?;
            let first = session.subscribe(&generation, &what, claim.site, None).await?;
            let cancel = session.intake.child_token();
            let (sender, deliveries) = mpsc::unbounded_channel();
            let queue = what.queue.clone();
            let pump = Pump {
                session: Arc::clone(session),
                what,
                claim,
                sender,
                cancel: cancel.clone(),
                _counted: Counted::new(&session.consumers),
            };
            session.runtime.spawn(pump.run(first));
            Ok(Consumer {
                deliveries: Ours::new(deliveries),
                link: session.link.clone(),
                queue,
                cancelled: cancel.clone(),
                forked: false,
                failed: None,
                _cancel: Ours::new(cancel.drop_guard()),
                lease,
            })
        }
    }
}

impl fmt::Debug for RabbitMq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMq").field("resource", self.session.link.name()).finish_non_exhaustive()
    }
}

/// What a channel is checked out for.
#[derive(Clone, Copy, PartialEq)]
enum Use {
    /// By the caller, who may do anything to it.
    Raw,
    /// By one of our verbs; it has confirms on.
    Verb,
}

impl Session {
    /// Connects, declares again what was declared before, and puts the new connection in place.
    async fn open_generation(self: &Arc<Self>, link: &Link) -> Result<(), Failure> {
        let config = &self.config;
        let dialled = dial_for_all(config, &self.tls).await?;
        let mut events = Box::pin(dialled.connection.events_listener());
        // As the broker and we have agreed.
        let channels = Channels::new(usize::from(dialled.connection.configuration().channel_max()));
        let checkouts = config.max_channels.min(channels.max);
        let generation = Arc::new(Generation {
            number: self.link.generation(),
            config: Arc::clone(config),
            link: self.link.clone(),
            runtime: self.runtime.clone(),
            intake: self.intake.clone(),
            closed: Arc::clone(&self.closed),
            permits: Arc::new(Semaphore::new(checkouts)),
            quota: Quota::new(&self.link, checkouts, "channels", "max_channels"),
            channels,
            blocked: watch::Sender::new(None),
            waiting: AtomicUsize::new(0),
            prober: Arc::default(),
            switch: dialled.switch.clone(),
            gone: dialled.gone.clone(),
            connection: dialled.connect(),
        });
        let cut = CutOnDrop::new(&generation.switch);
        let watched = Arc::downgrade(&generation);
        let switch = generation.switch.clone();
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    event = poll_fn(|cx| events.as_mut().poll_next(cx)) => event,
                    () = switch.wait() => return,
                };
                let (Some(event), Some(generation)) = (event, watched.upgrade()) else { return };
                if !generation.see(event) {
                    return;
                }
            }
        });
        self.replay(&generation, link).await?;
        cut.disarm();
        *self.current.write() = Some(generation);
        Ok(())
    }

    fn current_name(&self, queue: &str) -> String {
        self.topology.lock().current_name(queue)
    }

    /// Whether a queue is a stream, if it was declared here and that says so.
    fn is_stream(&self, queue: &str) -> Option<bool> {
        self.topology.lock().is_stream(queue)
    }

    /// A lease with the connection behind it, waiting while that is being brought back.
    async fn lease(&self, deadline: Instant, claim: Claim) -> Result<(Lease<Session>, Arc<Generation>), Error> {
        let mut reported = false;
        loop {
            if self.closed.load(Ordering::SeqCst) {
                return Err(self.closed_error());
            }
            let Some(lease) = self.link.lease::<RabbitMqResource, Session>(claim) else {
                self.link.ready_within(deadline.saturating_duration_since(Instant::now())).await?;
                continue;
            };
            match self.alive() {
                Some(generation) => return Ok((lease, generation)),
                // What is being closed is not brought back.
                None if reported => return Err(self.lost("the connection is gone")),
                None => {
                    reported = true;
                    self.link.lost(Lease::generation(&lease), "the connection is gone");
                }
            }
        }
    }

    fn alive(&self) -> Option<Arc<Generation>> {
        self.current.read().clone().filter(|generation| generation.is_alive())
    }

    /// Declares, and once more if the answer is lost and the policy says so.
    async fn declare(&self, claim: Claim, what: Declaration<'_>) -> Result<Option<lapin::Queue>, Error> {
        let answer = what.make(&mut self.check_out(claim, Use::Verb).await?.guard, &self.topology).await;
        match answer {
            Err(Error::Lost { .. }) if self.link.repeat == Repeat::Idempotent && !self.intake.is_cancelled() => {
                what.make(&mut self.check_out(claim, Use::Verb).await?.guard, &self.topology).await
            }
            answer => answer,
        }
    }

    /// Sends these on a channel that is answered too. An error means that none was.
    async fn send(&self, claim: Claim, messages: &Arc<Vec<Message>>) -> Result<(Pooled, Sent), Error> {
        let deadline = deadline(self.link.patience);
        loop {
            let mut pooled = self.check_out_by(deadline, claim, Use::Verb).await?;
            match pooled.guard.send(&self.topology, messages).await {
                Ok(sent) => return Ok((pooled, sent)),
                Err(error) if self.may_wait(&error, deadline) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether what failed like this, and was not sent, waits for the connection.
    fn may_wait(&self, error: &Error, deadline: Instant) -> bool {
        let waits = self.link.repeat != Repeat::Never && !self.intake.is_cancelled();
        waits && matches!(error, Error::Lost { .. }) && Instant::now() < deadline
    }

    async fn check_out(&self, claim: Claim, what: Use) -> Result<Pooled, Error> {
        self.check_out_by(deadline(self.link.patience), claim, what).await
    }

    async fn check_out_by(&self, deadline: Instant, claim: Claim, what: Use) -> Result<Pooled, Error> {
        loop {
            match self.try_check_out(deadline, claim, what).await {
                Err(error) if self.may_wait(&error, deadline) => {}
                outcome => return outcome,
            }
        }
    }

    async fn try_check_out(&self, deadline: Instant, claim: Claim, what: Use) -> Result<Pooled, Error> {
        let (lease, generation) = self.lease(deadline, claim).await?;
        let permit = generation.permit(claim).await?;
        let idle = if what == Use::Verb { generation.idle_channel() } else { None };
        let found = match idle {
            Some(idle) => Ok(idle),
            None => Err(generation.place().await?),
        };
        drop(lease);
        // Only now is it held, and by whom.
        let (lease, _) = self.lease(deadline, generation.quota.claim(claim)).await?;
        let guard = match found {
            Ok(idle) => idle.checked_out(permit),
            Err(place) => {
                let opened = ChannelGuard::open(&generation, place, Some(permit), None).await?;
                if what == Use::Verb { opened.confirming().await? } else { opened }
            }
        };
        Ok(Pooled { guard, _lease: lease })
    }

    /// A channel of its own for a consumer, subscribed.
    async fn subscribe(
        &self,
        generation: &Arc<Generation>,
        what: &Consume,
        site: &'static Location<'static>,
        from: Option<i64>,
    ) -> Result<Subscription, Error> {
        let arguments = reading_from(from, &what.arguments);
        let queue = self.current_name(&what.queue);
        let action = format!("consuming {queue:?}");
        let name = short(&self.link, &action, &queue)?;
        let tag = short(&self.link, &action, &what.tag)?;
        generation.fits_method(&action, &[&queue, &what.tag], &arguments)?;
        let mut guard = ChannelGuard::open(generation, generation.place().await?, None, Some(site)).await?;
        let channel = guard.channel.clone();
        let prefetch = what.prefetch.unwrap_or(self.config.prefetch);
        guard.ask(&action, channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let options = BasicConsumeOptions { exclusive: what.exclusive, ..BasicConsumeOptions::default() };
        let consumer = guard.ask(&action, channel.basic_consume(name, tag, options, arguments)).await?;
        Ok(Subscription { consumer, channel: Arc::new(guard), reading: Reading::new(self.is_stream(&what.queue)) })
    }

    fn closed_error(&self) -> Error {
        Error::Closed { resource: Arc::clone(self.link.name()) }
    }

    fn lost(&self, source: impl Into<BoxError>) -> Error {
        lost(&self.link, source)
    }

    fn operation(&self, action: &str, source: impl Into<BoxError>) -> Error {
        operation(&self.link, action, source)
    }
}
