//! One connection and the channels on it.

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use lapin::options::{
    BasicGetOptions, ConfirmSelectOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeleteOptions,
};
use lapin::types::ShortString;
use lapin::{Event, ExchangeKind};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::dial::{CutOnDrop, Probe};
use super::topology::{Binding, Exchange, Queue};
use super::{RabbitMq, RabbitMqConfig};
use crate::error::{BoxError, Error, Failure, OneLine, Source, TimeoutError};
use crate::exit::Ours;
use crate::lease::{Claim, Lease};
use crate::probe::KillSwitch;
use crate::resource::Link;
use crate::runtime;
use crate::wait::{Lending, Quota};

/// One connection, with the channels that are open on it.
pub(super) struct Generation {
    pub(super) number: u64,
    pub(super) config: Arc<RabbitMqConfig>,
    pub(super) link: Link,
    pub(super) runtime: Handle,
    /// Cancelled when consuming ends, since closing has begun.
    pub(super) intake: CancellationToken,
    pub(super) closed: Arc<AtomicBool>,
    pub(super) connection: lapin::Connection,
    pub(super) switch: KillSwitch,
    /// Cancelled when the driver's thread and socket are gone.
    pub(super) gone: CancellationToken,
    pub(super) permits: Arc<Semaphore>,
    pub(super) quota: Arc<Quota>,
    pub(super) waiting: AtomicUsize,
    /// Every open channel, whoever has it: closing closes them all. Keyed by a number of ours, as
    /// the driver uses a closed channel's again.
    pub(super) open: Mutex<BTreeMap<u64, Arc<lapin::Channel>>>,
    pub(super) next_key: AtomicU64,
    pub(super) idle: Mutex<Vec<(u64, Arc<lapin::Channel>)>>,
    /// Why the broker takes no messages, while it does not.
    pub(super) blocked: watch::Sender<Option<String>>,
    /// The prober's own connection, unless a ping has it.
    pub(super) probe: Arc<tokio::sync::Mutex<Option<Probe>>>,
}

impl Generation {
    pub(super) fn is_alive(&self) -> bool {
        !self.switch.is_cut() && self.connection.status().connected()
    }

    /// Whether to go on watching.
    pub(super) fn see(&self, event: Event) -> bool {
        match event {
            Event::ConnectionBlocked(reason) => {
                tracing::warn!(resource = %self.link.name(), reason = %OneLine(&reason), "blocked by the broker");
                self.blocked.send_replace(Some(reason));
            }
            Event::ConnectionUnblocked => {
                self.blocked.send_replace(None);
            }
            // A channel's error comes by here as well.
            Event::Error(error) if !self.connection.status().connected() => {
                self.link.lost(self.number, self.config.redacted(error));
                return false;
            }
            _ => {}
        }
        true
    }

    pub(super) async fn permit(&self, claim: Claim) -> Result<OwnedSemaphorePermit, Error> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Ok(permit);
        }
        let wait = self.quota.wait(claim)?;
        let limit = self.link.acquire_timeout();
        let timer = self.timer(limit);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        tokio::select! {
            biased;
            () = self.switch.wait() => Err(self.was_cut()),
            permit = Arc::clone(&self.permits).acquire_owned() => permit.map_err(|_| self.was_cut()),
            () = timer => {
                let mut error = wait.timed_out(None);
                error.waiting_for.push_str(&self.why_blocked());
                Err(Error::Timeout(Arc::new(error)))
            }
        }
    }

    /// One that the verbs share, if any is idle.
    pub(super) fn idle_channel(&self) -> Option<(u64, Arc<lapin::Channel>)> {
        loop {
            let (key, channel) = self.idle.lock().pop()?;
            if channel.status().connected() {
                return Some((key, channel));
            }
            self.open.lock().remove(&key);
        }
    }

    /// The driver's answer, or why there is none: its futures may never resolve.
    pub(super) async fn answer<T>(
        &self,
        action: &str,
        future: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, Error> {
        self.within(self.config.operation_timeout, action, future)
            .await
            .map_err(|trouble| trouble.into_error(self, action))
    }

    pub(super) async fn within<T>(
        &self,
        limit: Duration,
        action: &str,
        future: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, Trouble> {
        self.link.process.check().map_err(Trouble::Ours)?;
        let timer = self.timer(limit);
        tokio::select! {
            biased;
            answer = future => answer.map_err(Trouble::Driver),
            () = self.switch.wait() => Err(Trouble::Cut),
            () = timer => Err(Trouble::Ours(self.timeout(format!("the broker's answer to {action}"), limit))),
        }
    }

    /// Waits while the broker blocks us; what would be sent then is written who knows when.
    pub(super) async fn unblocked(&self) -> Result<(), Error> {
        if self.blocked.borrow().is_none() {
            return Ok(());
        }
        let limit = self.config.operation_timeout;
        let timer = self.timer(limit);
        let mut blocked = self.blocked.subscribe();
        tokio::select! {
            biased;
            () = self.switch.wait() => Err(self.was_cut()),
            _ = blocked.wait_for(Option::is_none) => Ok(()),
            () = timer => Err(self.timeout("the broker to take requests again", limit)),
        }
    }

    /// A timer that any executor may poll, of the one runtime that never ends: polling one of a
    /// runtime that has ended panics.
    fn timer(&self, limit: Duration) -> Sleep {
        let _context = runtime::prober().unwrap_or(&self.runtime).enter();
        tokio::time::sleep(limit)
    }

    fn timeout(&self, waiting_for: impl Into<String>, waited: Duration) -> Error {
        Error::Timeout(Arc::new(TimeoutError {
            resource: Arc::clone(self.link.name()),
            endpoint: Arc::clone(self.link.endpoint()),
            waiting_for: waiting_for.into() + &self.why_blocked(),
            waited,
            holders: self.link.holders().into_iter().filter(|holder| holder.exclusive).collect(),
            cycle: Vec::new(),
            source: None,
        }))
    }

    /// What to add to what was waited for, if the broker blocks the connection.
    fn why_blocked(&self) -> String {
        let reason = self.blocked.borrow();
        reason.as_ref().map_or_else(String::new, |why| format!("; the connection is blocked by the broker ({why})"))
    }

    pub(super) fn was_cut(&self) -> Error {
        match self.closed.load(Ordering::SeqCst) {
            true => Error::Closed { resource: Arc::clone(self.link.name()) },
            false => lost(&self.link, "the connection was cut: the broker stopped answering"),
        }
    }

    /// Closes a channel in the background. Once closing has begun it is closed with all others.
    fn discard(self: &Arc<Self>, key: u64, channel: Arc<lapin::Channel>) {
        if !self.is_alive() || !channel.status().connected() {
            self.open.lock().remove(&key);
            return;
        }
        if self.intake.is_cancelled() {
            return;
        }
        let me = Arc::clone(self);
        self.runtime.spawn(async move {
            // One that is closed already needs no goodbye.
            let _ = me.answer("closing a channel", channel.close(200, "OK".into())).await;
            me.open.lock().remove(&key);
        });
    }

    /// Every channel, then the connection; then nothing of it is left.
    pub(super) async fn close(&self) -> Result<(), Failure> {
        let _cut = CutOnDrop::new(&self.switch);
        if !self.is_alive() {
            return Err(Failure::transient("the connection was lost before it could be closed"));
        }
        self.idle.lock().clear();
        let channels: Vec<_> = std::mem::take(&mut *self.open.lock()).into_values().collect();
        let mut closing: Vec<_> = channels.iter().map(|channel| Box::pin(channel.close(200, "OK".into()))).collect();
        let every_channel = poll_fn(|cx| {
            // One that is closed already needs no goodbye.
            closing.retain_mut(|closing| closing.as_mut().poll(cx).is_pending());
            if closing.is_empty() { Poll::Ready(Ok(())) } else { Poll::Pending }
        });
        let goodbye = async {
            self.answer("closing every channel", every_channel).await?;
            self.answer("closing the connection", self.connection.close(200, "OK".into())).await
        };
        tokio::select! {
            said = goodbye => said?,
            () = self.timer(GOODBYE) => {
                return Err(Failure::transient(format!("the broker did not answer the goodbye within {GOODBYE:?}")));
            }
        };
        self.switch.cut();
        let timer = self.timer(LINGER);
        tokio::select! {
            () = self.gone.cancelled() => {}
            () = timer => {}
        }
        Ok(())
    }
}

/// How long the goodbye may take: milliseconds on a broker that answers.
pub(super) const GOODBYE: Duration = Duration::from_secs(2);

/// How long closing waits for the driver's thread and socket to go, which takes microseconds.
pub(super) const LINGER: Duration = Duration::from_millis(500);

/// Why the driver's answer did not come.
pub(super) enum Trouble {
    Driver(lapin::Error),
    Cut,
    Ours(Error),
}

impl Trouble {
    pub(super) fn into_error(self, generation: &Generation, action: &str) -> Error {
        match self {
            Trouble::Cut => generation.was_cut(),
            Trouble::Ours(error) => error,
            Trouble::Driver(error) => {
                let gone = !generation.is_alive();
                let source = generation.config.redacted(error);
                match gone {
                    true if generation.closed.load(Ordering::SeqCst) => generation.was_cut(),
                    true => lost(&generation.link, source),
                    false => operation(&generation.link, action, source),
                }
            }
        }
    }
}

pub(super) fn lost(link: &Link, source: impl Into<BoxError>) -> Error {
    Error::Lost {
        resource: Arc::clone(link.name()),
        endpoint: Arc::clone(link.endpoint()),
        source: Source::from(source.into()),
    }
}

pub(super) fn operation(link: &Link, action: &str, source: impl Into<BoxError>) -> Error {
    Error::Operation {
        resource: Arc::clone(link.name()),
        action: action.to_owned(),
        source: Source::from(source.into()),
    }
}

/// A name as AMQP has it; the driver panics where it is too long.
pub(super) fn short(link: &Link, action: &str, text: &str) -> Result<ShortString, Error> {
    ShortString::try_new(text).map_err(|error| operation(link, action, error))
}

/// Counts a caller that waits for a channel.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A checked-out channel.
pub(crate) struct Pooled {
    pub(super) guard: ChannelGuard,
    pub(super) _permit: OwnedSemaphorePermit,
    pub(super) _lease: Lease<RabbitMq>,
}

/// A channel that nobody else uses. Goes back to the idle ones or closes when it drops.
pub(super) struct ChannelGuard {
    /// A clone of the driver's own is a dozen counts.
    pub(super) channel: Arc<lapin::Channel>,
    pub(super) key: u64,
    pub(super) generation: Arc<Generation>,
    /// Nothing on it is half done.
    pub(super) fit: bool,
    /// It is one of those that the verbs share.
    pub(super) shared: bool,
}

impl ChannelGuard {
    pub(super) async fn open(generation: &Arc<Generation>) -> Result<Self, Error> {
        generation.unblocked().await?;
        let channel = generation.answer("opening a channel", generation.connection.create_channel()).await?;
        let channel = Arc::new(channel);
        let key = generation.next_key.fetch_add(1, Ordering::Relaxed);
        generation.open.lock().insert(key, channel.clone());
        Ok(ChannelGuard { channel, key, generation: Arc::clone(generation), fit: true, shared: false })
    }

    /// The same as one that the verbs share: all of them have confirms on.
    pub(super) async fn confirming(mut self) -> Result<Self, Error> {
        let channel = self.channel.clone();
        self.ask("switching confirms on", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        self.shared = true;
        Ok(self)
    }

    /// Runs one request; a channel on which it fails or is given up is not used again.
    pub(super) async fn ask<T>(
        &mut self,
        action: &str,
        request: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, Error> {
        self.fit = false;
        self.generation.unblocked().await?;
        let answer = self.generation.answer(action, request).await?;
        self.fit = true;
        Ok(answer)
    }

    pub(super) async fn declare_exchange(&mut self, exchange: &Exchange) -> Result<(), Error> {
        let action = format!("declaring the exchange {:?}", exchange.name);
        let name = short(&self.generation.link, &action, &exchange.name)?;
        let kind = match &exchange.kind {
            ExchangeKind::Custom(kind) => kind,
            // The longest of the others.
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
        if !self.generation.link.process.is_current() {
            return;
        }
        let channel = self.channel.clone();
        if self.shared && self.fit && self.generation.is_alive() && channel.status().connected() {
            self.generation.idle.lock().push((self.key, channel));
        } else {
            self.generation.discard(self.key, channel);
        }
    }
}

/// A raw channel of one's own; derefs to [`lapin::Channel`]. Closed in the background when it drops.
pub struct Channel {
    pub(super) pooled: Ours<Pooled>,
}

impl Channel {
    /// Runs driver calls on the channel, ending them when the connection is cut or closed: by
    /// itself the driver's future may never resolve then.
    ///
    /// # Errors
    /// [`Error::Operation`] with the driver's error; [`Error::Lost`], [`Error::Closed`]. Unlike
    /// the other verbs it has no limit while the broker answers.
    ///
    /// # Cancel safety
    /// That of the driver's calls.
    pub async fn run<T>(&self, calls: impl AsyncFnOnce(&lapin::Channel) -> lapin::Result<T>) -> Result<T, Error> {
        let generation = &self.pooled.guard.generation;
        generation.link.process.check()?;
        let calls = calls(&self.pooled.guard.channel);
        let answer = tokio::select! {
            biased;
            answer = calls => answer.map_err(Trouble::Driver),
            () = generation.switch.wait() => Err(Trouble::Cut),
        };
        answer.map_err(|trouble| trouble.into_error(generation, "on a raw channel"))
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
