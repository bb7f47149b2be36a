//! One connection and the channels on it.

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::ops::Deref;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use lapin::options::{
    BasicGetOptions, BasicQosOptions, ConfirmSelectOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeleteOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::types::ShortString;
use lapin::{ErrorKind, Event, ExchangeKind};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use crate::base::error::{BoxError, Error, Failure, OneLine, Source, TimeoutError};
use crate::base::holder::Holder;
use crate::base::process::Ours;
use crate::base::runtime;
use crate::kinds::rabbitmq::dial::CutOnDrop;
use crate::kinds::rabbitmq::prober::Prober;
use crate::kinds::rabbitmq::topology::{Binding, Exchange, Queue};
use crate::kinds::rabbitmq::{RabbitMq, RabbitMqConfig};
use crate::lifecycle::lease::{Claim, Lease};
use crate::lifecycle::link::Link;
use crate::lifecycle::wait::{Lending, Quota};
use crate::net::count::{Counted, none};
use crate::net::kill_switch::KillSwitch;

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
    /// For checkouts. One ends when its channel has ended at the broker, or is idle.
    pub(super) permits: Arc<Semaphore>,
    pub(super) quota: Arc<Quota>,
    pub(super) waiting: AtomicUsize,
    pub(super) channels: Channels,
    /// Why the broker takes no messages, while it does not.
    pub(super) blocked: watch::Sender<Option<String>>,
    /// What the prober has of its own.
    pub(super) prober: Arc<tokio::sync::Mutex<Prober>>,
}

/// Every open channel of a connection, whoever has it.
pub(super) struct Channels {
    /// How many the connection may have.
    pub(super) max: usize,
    places: Arc<Places>,
    /// How many wait for a place, for which no channel may be idle.
    wanted: AtomicUsize,
    /// Closing closes them all. Keyed by a number of ours, as the driver uses a closed channel's again.
    open: Mutex<BTreeMap<u64, Open>>,
    next_key: AtomicU64,
    pub(super) idle: Mutex<Vec<(u64, Arc<lapin::Channel>)>>,
    /// What nobody has any more, once closing has begun.
    left: Mutex<Vec<(u64, Arc<lapin::Channel>)>>,
    /// Of those that are being closed one by one.
    closing: watch::Sender<usize>,
}

/// A channel that the broker has.
struct Open {
    channel: Arc<lapin::Channel>,
    /// The line that consumes on it, and since when.
    consumed: Option<(&'static Location<'static>, Instant)>,
    _place: Place,
}

/// One for each channel that may be open.
struct Places {
    free: Semaphore,
    /// Those that are used up. The driver keeps the error of a channel that the broker has ended, and refuses all that is
    /// ever done under the same number again.
    worn: AtomicUsize,
    /// Those of them that have still to come back.
    owed: AtomicUsize,
}

impl Places {
    async fn take(self: &Arc<Self>) -> Option<Place> {
        self.free.acquire().await.ok()?.forget();
        Some(Place(Arc::clone(self)))
    }

    fn try_take(self: &Arc<Self>) -> Option<Place> {
        self.free.try_acquire().ok()?.forget();
        Some(Place(Arc::clone(self)))
    }

    fn wear(&self, max: usize) {
        if self.worn.fetch_add(1, Ordering::SeqCst) + 1 >= max {
            // Nobody is to wait for what does not come.
            self.free.close();
        }
        if self.free.forget_permits(1) == 0 {
            self.owed.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Room for one channel, until this drops.
pub(super) struct Place(Arc<Places>);

impl Drop for Place {
    fn drop(&mut self) {
        let one_less = |owed: usize| owed.checked_sub(1);
        if self.0.owed.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_err() {
            self.0.free.add_permits(1);
        }
    }
}

impl Channels {
    pub(super) fn new(max: usize) -> Self {
        let places = Places { free: Semaphore::new(max), worn: AtomicUsize::new(0), owed: AtomicUsize::new(0) };
        Channels {
            max,
            places: Arc::new(places),
            wanted: AtomicUsize::new(0),
            open: Mutex::default(),
            next_key: AtomicU64::new(0),
            idle: Mutex::default(),
            left: Mutex::default(),
            closing: watch::Sender::new(0),
        }
    }

    fn worn(&self) -> usize {
        self.places.worn.load(Ordering::SeqCst)
    }

    fn is_worn_out(&self) -> bool {
        self.worn() >= self.max
    }

    fn why_worn(&self) -> String {
        format!("the broker has ended {} of the connection's {} channels with errors", self.worn(), self.max)
    }
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
            Event::Error(error) if !self.connection.status().connected() => {
                self.link.lost(self.number, self.config.redacted(error));
                return false;
            }
            // The broker has ended a channel.
            Event::Error(_) => self.channels.places.wear(self.channels.max),
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
        let _waiting = Waiting::new(&self.waiting);
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
    pub(super) fn idle_channel(self: &Arc<Self>) -> Option<ChannelGuard> {
        loop {
            let (key, channel) = self.channels.idle.lock().pop()?;
            if channel.status().connected() {
                let generation = Arc::clone(self);
                return Some(ChannelGuard { channel, key, generation, permit: None, fit: true, shared: true });
            }
            self.discard(key, channel, None);
        }
    }

    /// Why there will never be room for a channel again on this connection, which is then made anew.
    fn used_up(&self) -> Option<Error> {
        self.channels.is_worn_out().then(|| {
            self.link.lost(self.number, self.channels.why_worn());
            lost(&self.link, self.channels.why_worn())
        })
    }

    /// A place for one more channel, waiting until there is one.
    pub(super) async fn place(self: &Arc<Self>) -> Result<Place, Error> {
        let Channels { places, max, wanted, .. } = &self.channels;
        if let Some(place) = places.try_take() {
            return Ok(place);
        }
        if let Some(used_up) = self.used_up() {
            return Err(used_up);
        }
        let _wanted = Waiting::new(wanted);
        self.spare();
        let started = Instant::now();
        let limit = self.link.acquire_timeout();
        let timer = self.timer(limit);
        tokio::select! {
            biased;
            () = self.switch.wait() => Err(self.was_cut()),
            place = places.take() => place.ok_or_else(|| self.used_up().unwrap_or_else(|| self.was_cut())),
            () = timer => {
                if self.channels.worn() * 2 >= *max {
                    self.link.lost(self.number, self.channels.why_worn());
                }
                let waiting_for = format!("one of the {max} channels of the connection");
                Err(self.timed_out(waiting_for, started.elapsed(), self.channel_holders()))
            }
        }
    }

    /// Closes a channel that nobody uses, if somebody waits for its place.
    fn spare(self: &Arc<Self>) {
        let Channels { wanted, left, idle, .. } = &self.channels;
        if wanted.load(Ordering::SeqCst) > 0 {
            let left = left.lock().pop();
            if let Some((key, channel)) = left.or_else(|| idle.lock().pop()) {
                self.end(key, channel, None);
            }
        }
    }

    /// Who has a channel: by a checkout, or as a consumer.
    fn channel_holders(&self) -> Vec<Holder> {
        let consumed: Vec<_> = self.channels.open.lock().values().filter_map(|open| open.consumed).collect();
        let consumers = consumed.into_iter().map(|(site, since)| Holder {
            resource: Arc::clone(self.link.name()),
            site,
            held: since.elapsed(),
            exclusive: true,
            generation: self.number,
            owner: None,
            suspected: false,
            backtrace: None,
            quota: None,
        });
        let mut holders: Vec<_> = self.checkouts().chain(consumers).collect();
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.held));
        holders
    }

    fn checkouts(&self) -> impl Iterator<Item = Holder> + use<> {
        self.link.holders().into_iter().filter(|holder| holder.exclusive)
    }

    /// Asks the broker over this connection, on a channel of the verbs if one is idle: a broker that has no room for
    /// another one may end the connection.
    pub(super) async fn round_trip(self: &Arc<Self>) -> Result<(), Failure> {
        let mut blocked = self.blocked.subscribe();
        let is_blocked = || Failure::unasked(format!("it could not be asked{}", self.why_blocked()));
        if blocked.borrow_and_update().is_some() {
            return Err(is_blocked());
        }
        let ask = async {
            let mut guard = match self.idle_channel() {
                Some(guard) => guard,
                None => {
                    let Some(place) = self.channels.places.try_take() else {
                        return Err(Failure::unasked("the connection has no room for one more channel"));
                    };
                    let guard = ChannelGuard::open(self, place, None, None).await;
                    guard.map_err(answered)?.confirming().await.map_err(answered)?
                }
            };
            let channel = Arc::clone(&guard.channel);
            // The verbs that share it consume nothing, so that it says nothing to them.
            let asked = guard.ask("a ping", channel.basic_qos(1, BasicQosOptions::default())).await;
            asked.map_err(answered)
        };
        tokio::select! {
            biased;
            answer = ask => answer,
            // Silence is what a block is.
            _ = blocked.wait_for(Option::is_some) => Err(is_blocked()),
        }
    }

    /// A channel.
    async fn create_channel(&self) -> lapin::Result<lapin::Channel> {
        const TRIES: usize = 1_000;
        let mut tries = 0;
        loop {
            match self.connection.create_channel().await {
                // The driver forgets one that has ended a moment later than it says so.
                Err(error)
                    if matches!(error.kind(), ErrorKind::ChannelsLimitReached)
                        && tries < TRIES
                        && !self.channels.is_worn_out() =>
                {
                    tries += 1;
                    tokio::time::sleep(FORGETS).await;
                }
                // The error of an earlier one of this number, which is not tried twice.
                Err(error) if error.is_amqp_soft_error() && self.is_alive() => {}
                created => return created,
            }
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
        self.timed_out(waiting_for.into(), waited, self.checkouts().collect())
    }

    fn timed_out(&self, waiting_for: String, waited: Duration, holders: Vec<Holder>) -> Error {
        Error::Timeout(Arc::new(TimeoutError {
            resource: Arc::clone(self.link.name()),
            endpoint: Arc::clone(self.link.endpoint()),
            waiting_for: waiting_for + &self.why_blocked(),
            waited,
            holders,
            cycle: Vec::new(),
            source: None,
        }))
    }

    /// What to add to what was waited for, if the broker blocks the connection.
    fn why_blocked(&self) -> String {
        let reason = self.blocked.borrow();
        reason.as_ref().map_or_else(String::new, |why| format!("; the connection is blocked by the broker ({why})"))
    }

    /// Why there is no answer: the connection is gone.
    pub(super) fn was_cut(&self) -> Error {
        if self.closed.load(Ordering::SeqCst) {
            return Error::Closed { resource: Arc::clone(self.link.name()) };
        }
        match self.switch.cause() {
            Some(lost @ Error::Lost { .. }) => lost.clone(),
            Some(cause) => lost(&self.link, cause.clone()),
            None => lost(&self.link, "the connection is gone"),
        }
    }

    /// Closes a channel. Once closing has begun it is closed with all others, unless somebody wants its place.
    fn discard(self: &Arc<Self>, key: u64, channel: Arc<lapin::Channel>, permit: Option<OwnedSemaphorePermit>) {
        if !self.is_alive() {
            self.channels.open.lock().remove(&key);
        } else if self.intake.is_cancelled() && channel.status().connected() {
            self.channels.left.lock().push((key, channel));
            self.spare();
        } else {
            self.end(key, channel, permit);
        }
    }

    /// Closes a channel in the background. Its place and its permit end when it has.
    fn end(self: &Arc<Self>, key: u64, channel: Arc<lapin::Channel>, permit: Option<OwnedSemaphorePermit>) {
        let (me, closing) = (Arc::clone(self), Counted::new(&self.channels.closing));
        self.runtime.spawn(async move {
            let _closing = closing;
            // One that is closed already needs no goodbye.
            let _ = me.answer("closing a channel", channel.close(200, "OK".into())).await;
            // The broker's own goodbye to one that it has closed is still to be answered, by the driver.
            let ended = async {
                while channel.status().closing() {
                    tokio::time::sleep(FORGETS).await;
                }
            };
            let _ = runtime::within(LINGER, ended).await;
            me.channels.open.lock().remove(&key);
            drop(permit);
        });
    }

    /// Every channel, then the connection; then nothing of it is left.
    pub(super) async fn close(&self) -> Result<(), Failure> {
        // Where this is given up.
        let _cut = CutOnDrop::new(&self.switch);
        let said = self.say_goodbye().await;
        self.switch.cut_because(self.was_cut());
        said
    }

    async fn say_goodbye(&self) -> Result<(), Failure> {
        if !self.is_alive() {
            return Err(Failure::transient("the connection was lost before it could be closed"));
        }
        let Channels { places, idle, left, open, closing: one_by_one, .. } = &self.channels;
        places.free.close();
        idle.lock().clear();
        left.lock().clear();
        let channels: Vec<_> = std::mem::take(&mut *open.lock()).into_values().map(|open| open.channel).collect();
        let mut closing: Vec<_> = channels.iter().map(|channel| Box::pin(channel.close(200, "OK".into()))).collect();
        let every_channel = poll_fn(|cx| {
            // One that is closed already needs no goodbye.
            closing.retain_mut(|closing| closing.as_mut().poll(cx).is_pending());
            if closing.is_empty() { Poll::Ready(Ok(())) } else { Poll::Pending }
        });
        let goodbye = async {
            self.answer("closing every channel", every_channel).await?;
            none(one_by_one).await;
            self.answer("closing the connection", self.connection.close(200, "OK".into())).await
        };
        tokio::select! {
            said = goodbye => said?,
            () = self.timer(GOODBYE) => {
                return Err(Failure::transient(format!("the broker did not answer the goodbye within {GOODBYE:?}")));
            }
        };
        // The driver ends by itself then, and would call a cut an error, in the log too.
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

/// How soon the driver is asked again whether it has forgotten a channel, which takes it microseconds.
const FORGETS: Duration = Duration::from_millis(1);

/// How long is waited for what the driver does by itself, as ending its thread and its socket, which takes microseconds.
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
                let gone = !generation.is_alive() || is_loss(&error);
                if gone && (generation.closed.load(Ordering::SeqCst) || Error::behind(&error).is_some()) {
                    return generation.was_cut();
                }
                let source = generation.config.redacted(error);
                if gone { lost(&generation.link, source) } else { operation(&generation.link, action, source) }
            }
        }
    }
}

/// Whether this is about the connection. The driver tells it before it says that it is not connected.
fn is_loss(error: &lapin::Error) -> bool {
    let told = matches!(error.kind(), ErrorKind::InvalidConnectionState(_) | ErrorKind::MissingHeartbeatError);
    told || error.is_io_error() || error.is_amqp_hard_error()
}

/// What an error says of the broker that was asked.
fn answered(error: Error) -> Failure {
    let said = match &error {
        Error::Operation { source, .. } | Error::Lost { source, .. } => source.downcast_ref::<lapin::Error>(),
        _ => None,
    };
    match said.map(lapin::Error::kind) {
        Some(ErrorKind::ChannelsLimitReached) => Failure::unasked(error),
        Some(ErrorKind::ProtocolError(said)) => match said.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) | AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => {
                Failure::limited(error)
            }
            _ => Failure::refused(error),
        },
        _ => Failure::transient(error),
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

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A checked-out channel.
pub(crate) struct Pooled {
    pub(super) guard: ChannelGuard,
    pub(super) _lease: Lease<RabbitMq>,
}

/// A channel that nobody else uses. Goes back to the idle ones or closes when it drops.
pub(super) struct ChannelGuard {
    /// A clone of the driver's own is a dozen counts.
    pub(super) channel: Arc<lapin::Channel>,
    pub(super) key: u64,
    pub(super) generation: Arc<Generation>,
    /// Of the checkout that it is for.
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// Nothing on it is half done.
    pub(super) fit: bool,
    /// It is one of those that the verbs share.
    shared: bool,
}

impl ChannelGuard {
    /// Opens one, with the permit of the checkout or the line of the consumer that it is for. In a task of its own, so
    /// that a place is not free before its channel is, whoever gives up meanwhile.
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
            let key = generation.channels.next_key.fetch_add(1, Ordering::Relaxed);
            let consumed = consumer.map(|site| (site, Instant::now()));
            let open = Open { channel: Arc::clone(&channel), consumed, _place: place };
            generation.channels.open.lock().insert(key, open);
            Ok(ChannelGuard { channel, key, generation, permit, fit: true, shared: false })
        });
        opened.await.unwrap_or_else(|_ended| Err(generation.was_cut()))
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
        let (channel, permit) = (self.channel.clone(), self.permit.take());
        if self.shared && self.fit && self.generation.is_alive() && channel.status().connected() {
            self.generation.channels.idle.lock().push((self.key, channel));
            self.generation.spare();
        } else {
            self.generation.discard(self.key, channel, permit);
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
