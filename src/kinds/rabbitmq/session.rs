//! The session of a RabbitMQ in the pool: the present connection, and the declarations.
//!
//! The session outlives its connections. Verbs, consumers and `RabbitMqResource` use it. A verb that finds no
//! connection waits, within its deadline, for the next.
//!
//! `current` holds the present generation, which is put there after its replay. The locks of `current` and `topology`
//! are never held together, nor while anything is awaited. `closed` is set once, as the resource closes, and guards no
//! other memory.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::base::error::{BoxError, Error, Failure};
use crate::base::repeat::Repeat;
use crate::base::runtime::deadline;
use crate::kinds::rabbitmq::channel::{ChannelGuard, Pooled};
use crate::kinds::rabbitmq::channels::Channels;
use crate::kinds::rabbitmq::config::RabbitMqConfig;
use crate::kinds::rabbitmq::declare::Declaration;
use crate::kinds::rabbitmq::dial::{CutOnDrop, Dialled, dial_for_all};
use crate::kinds::rabbitmq::errors::{lost, operation};
use crate::kinds::rabbitmq::generation::Generation;
use crate::kinds::rabbitmq::in_flight::{InFlight, Sent};
use crate::kinds::rabbitmq::message::{Message, Published};
use crate::kinds::rabbitmq::resource::RabbitMqResource;
use crate::kinds::rabbitmq::topology::Topology;
use crate::lifecycle::lease::{Claim, Lease};
use crate::lifecycle::link::Link;
use crate::lifecycle::wait::Quota;
use crate::net::tls::Tls;

/// The state that all clones of a [`RabbitMq`](crate::RabbitMq) share.
pub(crate) struct RabbitMqSession {
    pub(super) config: Arc<RabbitMqConfig>,
    pub(super) tls: Tls,
    pub(super) link: Link,
    pub(super) runtime: Handle,
    pub(super) current: RwLock<Option<Arc<Generation>>>,
    pub(super) topology: Mutex<Topology>,
    /// Cancelled when consuming ends.
    pub(super) intake: CancellationToken,
    pub(super) consumers: watch::Sender<usize>,
    pub(super) probes: watch::Sender<usize>,
    /// Cancelled when closing waits no longer for the probes to disconnect.
    pub(super) probes_given_up: CancellationToken,
    pub(super) closed: Arc<AtomicBool>,
}

impl RabbitMqSession {
    pub(super) fn new(config: &Arc<RabbitMqConfig>, tls: &Tls, link: &Link) -> Self {
        RabbitMqSession {
            config: Arc::clone(config),
            tls: tls.clone(),
            link: link.clone(),
            runtime: Handle::current(),
            current: RwLock::new(None),
            topology: Mutex::default(),
            intake: CancellationToken::new(),
            consumers: watch::Sender::new(0),
            probes: watch::Sender::new(0),
            probes_given_up: CancellationToken::new(),
            closed: Arc::default(),
        }
    }

    /// Connects, declares again everything that was declared before, and makes the new connection the current one.
    pub(super) async fn open_generation(self: &Arc<Self>, link: &Link) -> Result<(), Failure> {
        let dialled = dial_for_all(&self.config, &self.tls, &self.config.connection_name).await?;
        let events = dialled.connection.events_listener();
        let generation = self.generation(dialled, self.link.generation());
        let cut = CutOnDrop::new(&generation.switch);
        generation.watch(events);
        self.replay(&generation, link).await?;
        cut.disarm();
        *self.current.write() = Some(generation);
        Ok(())
    }

    /// A connection with no channels yet, of the generation with this number.
    pub(super) fn generation(&self, dialled: Dialled, number: u64) -> Arc<Generation> {
        let config = &self.config;
        // The broker and the driver have agreed on this number.
        let channels = Channels::new(usize::from(dialled.connection.configuration().channel_max()));
        let checkouts = config.max_channels.min(channels.max);
        Arc::new(Generation {
            number,
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
            consuming: Arc::default(),
            beside: Mutex::default(),
            switch: dialled.switch.clone(),
            gone: dialled.gone.clone(),
            connection: dialled.connect(),
        })
    }

    pub(super) fn current_name(&self, queue: &str) -> String {
        self.topology.lock().current_name(queue)
    }

    /// Whether a queue is a stream. `None` if it was not declared here, or its declaration does not say.
    pub(super) fn is_stream(&self, queue: &str) -> Option<bool> {
        self.topology.lock().is_stream(queue)
    }

    /// A lease with the connection behind it. Waits while the connection is being brought back.
    pub(super) async fn lease(
        &self,
        deadline: Instant,
        claim: Claim,
    ) -> Result<(Lease<RabbitMqSession>, Arc<Generation>), Error> {
        let mut reported = false;
        loop {
            if self.closed.load(Ordering::SeqCst) {
                return Err(self.closed_error());
            }
            let Some(lease) = self.link.lease::<RabbitMqResource, RabbitMqSession>(claim) else {
                self.link.ready_within(deadline.saturating_duration_since(Instant::now())).await?;
                continue;
            };
            match self.alive() {
                Some(generation) => return Ok((lease, generation)),
                // The loss was reported before. A resource that is being closed is not brought back.
                None if reported => return Err(self.lost("the connection is gone")),
                None => {
                    reported = true;
                    let gone = io::Error::new(io::ErrorKind::UnexpectedEof, "the connection is gone");
                    self.link.lost(Lease::generation(&lease), gone);
                }
            }
        }
    }

    pub(super) fn alive(&self) -> Option<Arc<Generation>> {
        self.current.read().clone().filter(|generation| generation.is_alive())
    }

    /// Declares this, and once more if the answer is lost and the policy says so.
    pub(super) async fn declare(&self, claim: Claim, what: Declaration<'_>) -> Result<Option<lapin::Queue>, Error> {
        let answer = what.make(&mut self.check_out(claim, Use::Verb).await?.guard, &self.topology).await;
        match answer {
            Err(Error::Lost { .. }) if self.link.repeat() == Repeat::Idempotent && !self.intake.is_cancelled() => {
                self.link.repeated("declaring");
                what.make(&mut self.check_out(claim, Use::Verb).await?.guard, &self.topology).await
            }
            answer => answer,
        }
    }

    /// Publishes a message, and waits for its confirm.
    pub(super) async fn publish(&self, claim: Claim, message: Message) -> Result<Published, Error> {
        let (mut pooled, sent) = self.send(claim, &Arc::new(vec![message])).await?;
        let mut results = pooled.guard.settle(&mut InFlight::from(sent)).await;
        // There is one result, as there is one message.
        results.pop().unwrap_or_else(|| Err(self.closed_error()))
    }

    /// Sends these messages, and answers the channel too. An error means that none was sent.
    pub(super) async fn send(&self, claim: Claim, messages: &Arc<Vec<Message>>) -> Result<(Pooled, Sent), Error> {
        let deadline = deadline(self.link.patience());
        loop {
            let mut pooled = self.check_out_by(deadline, claim, Use::Verb).await?;
            match pooled.guard.send(&self.topology, messages).await {
                Ok(sent) => return Ok((pooled, sent)),
                Err(error) if self.may_wait(&error, deadline) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether a request that failed with this error, and was not sent, waits for the connection.
    fn may_wait(&self, error: &Error, deadline: Instant) -> bool {
        let waits = self.link.repeat() != Repeat::Never && !self.intake.is_cancelled();
        waits && matches!(error, Error::Lost { .. }) && Instant::now() < deadline
    }

    pub(super) async fn check_out(&self, claim: Claim, what: Use) -> Result<Pooled, Error> {
        self.check_out_by(deadline(self.link.patience()), claim, what).await
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
        let acquired_by = self::deadline(self.link.acquire_timeout());
        let permit = generation.permit(claim, acquired_by).await?;
        let idle = if what == Use::Verb { generation.idle_channel() } else { None };
        let found = match idle {
            Some(idle) => Ok(idle),
            None => Err(generation.place(acquired_by).await?),
        };
        drop(lease);
        // The channel is held only from here on, so only now does the claim make a holder of the caller.
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

    pub(super) fn closed_error(&self) -> Error {
        Error::closed(self.link.name())
    }

    fn lost(&self, source: impl Into<BoxError>) -> Error {
        lost(&self.link, source)
    }

    pub(super) fn operation(&self, action: &str, source: impl Into<BoxError>) -> Error {
        operation(&self.link, action, source)
    }
}

/// The purpose of a checkout.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Use {
    /// The caller may do anything to the channel.
    Raw,
    /// One of this crate's verbs uses the channel, which has confirms on.
    Verb,
}
