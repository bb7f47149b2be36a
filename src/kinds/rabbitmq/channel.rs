//! One channel: as a checkout holds it, as a verb makes requests on it, and as a user has it.
//!
//! `RabbitMqSession` checks channels out for the verbs of `RabbitMq` and for users. Consumers, the replay and the prober open
//! channels for themselves.
//!
//! Between two verbs a channel is idle. It becomes idle again only if nothing on it is half done, because a request
//! that was given up may still be in flight. Any other channel is closed when its `ChannelGuard` drops.
//!
//! There is no lock here. A channel is opened in a task of its own, which answers its guard. So a channel always has a
//! guard, even if the caller gives up. In a forked child a guard that drops closes nothing, because the channel is the
//! parent's.

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::panic::Location;
use std::sync::Arc;

use lapin::ExchangeKind;
use lapin::options::{
    BasicGetOptions, ConfirmSelectOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeleteOptions,
};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;

use crate::base::error::Error;
use crate::base::process::ForkGuarded;
use crate::kinds::rabbitmq::channels::Place;
use crate::kinds::rabbitmq::declare::{Binding, Exchange, Queue};
use crate::kinds::rabbitmq::errors::{CallError, short};
use crate::kinds::rabbitmq::generation::Generation;
use crate::kinds::rabbitmq::session::RabbitMqSession;
use crate::lifecycle::lease::Lease;
use crate::lifecycle::wait::Lending;

/// A raw channel of the caller's own; derefs to [`lapin::Channel`]. It is closed in the background when it drops.
pub struct Channel {
    pub(super) pooled: ForkGuarded<Pooled>,
}

impl Channel {
    /// Runs driver calls on the channel, and ends them when the connection is cut or closed. By themselves the driver's
    /// futures may never resolve then.
    ///
    /// # Errors
    /// [`Error::Operation`] with the driver's error; [`Error::Lost`], [`Error::Closed`]. Unlike
    /// the other verbs it has no limit while the broker answers.
    ///
    /// # Cancel safety
    /// That of the driver's calls.
    pub async fn run<T>(&self, calls: impl AsyncFnOnce(&lapin::Channel) -> lapin::Result<T>) -> Result<T, Error> {
        let generation = &self.pooled.guard.generation;
        generation.link.check_process()?;
        let calls = calls(&self.pooled.guard.channel);
        let answer = tokio::select! {
            // An answer that has come counts, even if the connection is cut at the same moment.
            biased;
            answer = calls => answer.map_err(CallError::Driver),
            () = generation.switch.wait() => Err(CallError::Cut),
        };
        answer.map_err(|error| error.into_error(generation, "on a raw channel"))
    }

    pub(crate) fn lend(&self) -> Lending {
        self.pooled.guard.generation.quota.lend()
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.pooled.guard.generation.runtime
    }

    pub(crate) fn resource(&self) -> &Arc<str> {
        self.pooled.guard.generation.link.name()
    }
}

impl Deref for Channel {
    type Target = lapin::Channel;
    fn deref(&self) -> &lapin::Channel {
        &self.pooled.guard.channel
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("id", &self.pooled.guard.channel.id()).finish_non_exhaustive()
    }
}

/// A checked-out channel.
pub(crate) struct Pooled {
    pub(super) guard: ChannelGuard,
    pub(super) _lease: Lease<RabbitMqSession>,
}

/// A channel that nobody else uses. When it drops, the channel becomes idle or is closed.
pub(super) struct ChannelGuard {
    /// Behind an `Arc`, because a clone of the driver's channel changes a dozen reference counts.
    pub(super) channel: Arc<lapin::Channel>,
    key: u64,
    pub(super) generation: Arc<Generation>,
    /// The permit of the checkout that the channel is for. `None` if it is for no checkout.
    permit: Option<OwnedSemaphorePermit>,
    /// Whether nothing on it is half done.
    fit: bool,
    /// Whether it is one of the channels that the verbs share.
    shared: bool,
}

impl ChannelGuard {
    /// Opens a channel, with the permit of the checkout or the line of the consumer that it is for. It does so in a
    /// task of its own, so that a place becomes free only after its channel has ended, even if the caller gives up.
    pub(super) async fn open(
        generation: &Arc<Generation>,
        place: Place,
        permit: Option<OwnedSemaphorePermit>,
        consumer: Option<&'static Location<'static>>,
    ) -> Result<Self, Error> {
        generation.unblocked().await?;
        let opening = Arc::clone(generation);
        let opened = generation.runtime.spawn(async move {
            let generation = opening;
            let created = generation.answer("opening a channel", generation.create_channel()).await;
            let channel = Arc::new(created.map_err(|error| generation.used_up().unwrap_or(error))?);
            let key = generation.channels.opened(&channel, consumer, place);
            Ok(ChannelGuard { channel, key, generation, permit, fit: true, shared: false })
        });
        opened.await.unwrap_or_else(|_ended| Err(generation.was_cut()))
    }

    /// A channel that was idle. Only the channels that the verbs share are ever idle.
    pub(super) fn idle(generation: Arc<Generation>, key: u64, channel: Arc<lapin::Channel>) -> Self {
        ChannelGuard { channel, key, generation, permit: None, fit: true, shared: true }
    }

    /// Makes it the channel of a checkout.
    pub(super) fn checked_out(mut self, permit: OwnedSemaphorePermit) -> Self {
        self.permit = Some(permit);
        self
    }

    /// Makes it one of the channels that the verbs share, all of which have confirms on.
    pub(super) async fn confirming(mut self) -> Result<Self, Error> {
        let channel = self.channel.clone();
        self.ask("switching confirms on", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        self.shared = true;
        Ok(self)
    }

    /// Notes that something begins on it. Until that is [`done`](ChannelGuard::done) nobody else may have the channel.
    pub(super) fn begin(&mut self) {
        self.fit = false;
    }

    /// Notes that everything begun on it has ended well.
    pub(super) fn done(&mut self) {
        self.fit = true;
    }

    /// Runs one request. A channel on which a request fails or is given up is not used again.
    pub(super) async fn ask<T>(
        &mut self,
        action: &str,
        request: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, Error> {
        self.begin();
        self.generation.unblocked().await?;
        let answer = self.generation.answer(action, request).await?;
        self.done();
        Ok(answer)
    }

    pub(super) async fn declare_exchange(&mut self, exchange: &Exchange) -> Result<(), Error> {
        let action = format!("declaring the exchange {:?}", exchange.name);
        let name = short(&self.generation.link, &action, &exchange.name)?;
        let kind = match &exchange.kind {
            ExchangeKind::Custom(kind) => kind,
            // This is the longest name of the other kinds.
            _ => "headers",
        };
        short(&self.generation.link, &action, kind)?;
        self.generation.fits_method(&action, &[&exchange.name, kind], &exchange.arguments)?;
        let channel = self.channel.clone();
        self.ask(
            &action,
            channel.exchange_declare(name, exchange.kind.clone(), exchange.options, exchange.arguments.clone()),
        )
        .await
    }

    pub(super) async fn declare_queue(&mut self, queue: &Queue) -> Result<lapin::Queue, Error> {
        let action = format!("declaring the queue {:?}", queue.name);
        let name = short(&self.generation.link, &action, &queue.name)?;
        self.generation.fits_method(&action, &[&queue.name], &queue.arguments)?;
        let channel = self.channel.clone();
        self.ask(&action, channel.queue_declare(name, queue.options, queue.arguments.clone())).await
    }

    pub(super) async fn bind(&mut self, binding: &Binding, queue: &str) -> Result<(), Error> {
        let action = format!("binding {queue:?} to {:?}", binding.exchange);
        self.generation.fits_method(&action, &[queue, &binding.exchange, &binding.routing_key], &binding.arguments)?;
        let link = self.generation.link.clone();
        let (queue, exchange) = (short(&link, &action, queue)?, short(&link, &action, &binding.exchange)?);
        let key = short(&link, &action, &binding.routing_key)?;
        let channel = self.channel.clone();
        self.ask(
            &action,
            channel.queue_bind(queue, exchange, key, QueueBindOptions::default(), binding.arguments.clone()),
        )
        .await
    }

    pub(super) async fn delete_queue(&mut self, queue: &str) -> Result<(), Error> {
        let action = format!("deleting the queue {queue:?}");
        let name = short(&self.generation.link, &action, queue)?;
        let channel = self.channel.clone();
        self.ask(&action, channel.queue_delete(name, QueueDeleteOptions::default())).await.map(drop)
    }

    pub(super) async fn delete_exchange(&mut self, exchange: &str) -> Result<(), Error> {
        let action = format!("deleting the exchange {exchange:?}");
        let name = short(&self.generation.link, &action, exchange)?;
        let channel = self.channel.clone();
        self.ask(&action, channel.exchange_delete(name, ExchangeDeleteOptions::default())).await
    }

    pub(super) async fn get(&mut self, queue: &str) -> Result<Option<lapin::message::BasicGetMessage>, Error> {
        let action = format!("fetching from {queue:?}");
        let name = short(&self.generation.link, &action, queue)?;
        let channel = self.channel.clone();
        self.ask(&action, channel.basic_get(name, BasicGetOptions::default())).await
    }
}

impl Drop for ChannelGuard {
    fn drop(&mut self) {
        if self.generation.link.check_process().is_err() {
            return;
        }
        let (channel, permit) = (self.channel.clone(), self.permit.take());
        if self.shared && self.fit && self.generation.is_alive() && channel.status().connected() {
            self.generation.make_idle(self.key, channel);
        } else {
            self.generation.discard(self.key, channel, permit);
        }
    }
}
