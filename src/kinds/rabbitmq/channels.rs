//! The channels of a connection: how many it may have, and the state of each.
//!
//! A channel has a `Place` from before it is opened until the broker has closed it. In between it is in use by the
//! owner of its `ChannelGuard`, or idle for the verbs, or left over since closing has begun, or being closed. Guards
//! move it from one state to the next, and `Generation::close` takes all channels in the end.
//!
//! The locks of `open`, `idle` and `left` are never held together, and nothing is awaited under them. A waiter counts
//! itself in `wanted` before it looks into `left` and `idle`. A channel gets into one of these before `wanted` is
//! looked at. The two locks order both, so either the waiter sees the channel, or the other side sees the waiter. The
//! remaining counters guard no other memory.
//!
//! Channels that end one by one are closed in tasks, which `closing` counts and the close waits for.

use std::collections::BTreeMap;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lapin::ErrorKind;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::base::error::Error;
use crate::base::holder::Holder;
use crate::base::runtime;
use crate::kinds::rabbitmq::channel::ChannelGuard;
use crate::kinds::rabbitmq::errors::lost;
use crate::kinds::rabbitmq::generation::{Generation, LINGER};
use crate::net::count::{Counted, none};

/// Every open channel of a connection, in whichever state.
pub(super) struct Channels {
    /// The most channels that the connection may have.
    pub(super) max: usize,
    places: Arc<Places>,
    /// How many callers wait for a place. While any does, no channel stays idle.
    wanted: AtomicUsize,
    /// Every open channel, so that closing can close them all. The keys are this crate's own, because the driver uses
    /// the number of a closed channel again.
    open: Mutex<BTreeMap<u64, Open>>,
    next_key: AtomicU64,
    idle: Mutex<Vec<(u64, Arc<lapin::Channel>)>>,
    /// Channels that nobody uses any more since closing has begun. They are closed with all others.
    left: Mutex<Vec<(u64, Arc<lapin::Channel>)>>,
    /// How many channels are being closed one by one.
    closing: watch::Sender<usize>,
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

    /// Registers a channel that the broker has opened, with the line of its consumer, if it is for one. Answers its
    /// key.
    pub(super) fn opened(
        &self,
        channel: &Arc<lapin::Channel>,
        consumer: Option<&'static Location<'static>>,
        place: Place,
    ) -> u64 {
        // Relaxed, because only the uniqueness of a key matters.
        let key = self.next_key.fetch_add(1, Ordering::Relaxed);
        let consumed = consumer.map(|site| (site, Instant::now()));
        self.open.lock().insert(key, Open { channel: Arc::clone(channel), consumed, _place: place });
        key
    }

    /// How many channels are idle.
    pub(super) fn idle(&self) -> usize {
        self.idle.lock().len()
    }

    /// Takes every open channel, for the caller to close. From now on there is no place for another one.
    pub(super) fn take_all(&self) -> Vec<Arc<lapin::Channel>> {
        self.places.free.close();
        self.idle.lock().clear();
        self.left.lock().clear();
        std::mem::take(&mut *self.open.lock()).into_values().map(|open| open.channel).collect()
    }

    /// Waits until no channel is being closed one by one.
    pub(super) async fn none_is_closing(&self) {
        none(&self.closing).await;
    }

    /// Notes that the broker has ended a channel, whose number cannot be used again.
    pub(super) fn wear(&self) {
        self.places.wear(self.max);
    }

    /// Whether the connection has all channels that it may have.
    pub(super) fn are_all_open(&self) -> bool {
        self.places.free.available_permits() == 0
    }

    pub(super) fn try_place(&self) -> Option<Place> {
        self.places.try_take()
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
    /// A channel that the verbs share, if one is idle.
    pub(super) fn idle_channel(self: &Arc<Self>) -> Option<ChannelGuard> {
        loop {
            let (key, channel) = self.channels.idle.lock().pop()?;
            if channel.status().connected() {
                return Some(ChannelGuard::idle(Arc::clone(self), key, channel));
            }
            self.discard(key, channel, None);
        }
    }

    /// Makes a channel idle, or closes one if a caller waits for its place.
    pub(super) fn make_idle(self: &Arc<Self>, key: u64, channel: Arc<lapin::Channel>) {
        self.channels.idle.lock().push((key, channel));
        self.spare();
    }

    /// The error of a connection on which no channel can be opened any more. It reports that connection as lost, so
    /// that the pool connects anew.
    pub(super) fn used_up(&self) -> Option<Error> {
        self.channels.is_worn_out().then(|| {
            self.link.lost(self.number, self.channels.why_worn());
            lost(&self.link, self.channels.why_worn())
        })
    }

    /// A place for one more channel. Waits for it until `deadline`.
    pub(super) async fn place(self: &Arc<Self>, deadline: Instant) -> Result<Place, Error> {
        let Channels { places, max, wanted, .. } = &self.channels;
        if let Some(place) = places.try_take() {
            return Ok(place);
        }
        if let Some(used_up) = self.used_up() {
            return Err(used_up);
        }
        let _wanted = PlaceWanted::new(wanted);
        self.spare();
        let started = Instant::now();
        let timer = self.timer(deadline.saturating_duration_since(started));
        let waiting_for = || format!("one of the {max} channels of the connection");
        let place = tokio::select! {
            // The cut comes first, because a place on a lost connection is of no use. A free place counts even if the
            // limit has passed.
            biased;
            () = self.switch.wait() => Err(self.was_cut()),
            place = places.take() => place.ok_or_else(|| self.used_up().unwrap_or_else(|| self.was_cut())),
            () = timer => {
                // The caller may have waited for a permit before.
                let late = Instant::now().saturating_duration_since(deadline);
                let waited = self.link.acquire_timeout() + late;
                if self.channels.worn() * 2 >= *max {
                    self.link.lost(self.number, self.channels.why_worn());
                }
                Err(self.link.told(self.timed_out(waiting_for(), waited, self.channel_holders())))
            }
        };
        self.link.waited(waiting_for, started);
        place
    }

    /// Closes a channel that nobody uses, if a caller waits for its place.
    fn spare(self: &Arc<Self>) {
        let Channels { wanted, left, idle, .. } = &self.channels;
        if wanted.load(Ordering::SeqCst) > 0 {
            let left = left.lock().pop();
            if let Some((key, channel)) = left.or_else(|| idle.lock().pop()) {
                self.end(key, channel, None);
            }
        }
    }

    /// The holders of the channels, checkouts and consumers, the oldest first.
    pub(super) fn channel_holders(&self) -> Vec<Holder> {
        let consumed: Vec<_> = self.channels.open.lock().values().filter_map(|open| open.consumed).collect();
        let consumers =
            consumed.into_iter().map(|(site, since)| Holder::of(self.link.name(), site, since.elapsed(), self.number));
        let mut holders: Vec<_> = self.checkouts().chain(consumers).collect();
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.held));
        holders
    }

    /// Opens a channel, as soon as the driver has forgotten the channels that have ended.
    pub(super) async fn create_channel(&self) -> lapin::Result<lapin::Channel> {
        const TRIES: usize = 1_000;
        let mut tries = 0;
        loop {
            match self.connection.create_channel().await {
                // The driver forgets a channel a moment after it has said that the channel has ended.
                Err(error)
                    if matches!(error.kind(), ErrorKind::ChannelsLimitReached)
                        && tries < TRIES
                        && !self.channels.is_worn_out() =>
                {
                    tries += 1;
                    tokio::time::sleep(FORGETS).await;
                }
                // This is the error of an earlier channel with this number. The driver does not try the number twice.
                Err(error) if error.is_amqp_soft_error() && self.is_alive() => {}
                created => return created,
            }
        }
    }

    /// Closes a channel. Once closing has begun it is closed with all others, unless a caller waits for its place.
    pub(super) fn discard(
        self: &Arc<Self>,
        key: u64,
        channel: Arc<lapin::Channel>,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        if !self.is_alive() {
            self.channels.open.lock().remove(&key);
        } else if self.intake.is_cancelled() && channel.status().connected() {
            self.channels.left.lock().push((key, channel));
            self.spare();
        } else {
            self.end(key, channel, permit);
        }
    }

    /// Closes a channel in the background. Its place and its permit are free once it has ended.
    fn end(self: &Arc<Self>, key: u64, channel: Arc<lapin::Channel>, permit: Option<OwnedSemaphorePermit>) {
        let (me, closing) = (Arc::clone(self), Counted::new(&self.channels.closing));
        self.runtime.spawn(async move {
            let _closing = closing;
            // A channel that is closed already answers an error, which does not matter.
            let _ = me.answer("closing a channel", channel.close(200, "OK".into())).await;
            // If the broker itself has closed the channel, the driver still has to answer the broker.
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
}

/// A channel that is open at the broker.
struct Open {
    channel: Arc<lapin::Channel>,
    /// The line that consumes on it, and the moment since when. `None` if no consumer has it.
    consumed: Option<(&'static Location<'static>, Instant)>,
    _place: Place,
}

/// The places of channels, one for each that may be open.
struct Places {
    free: Semaphore,
    /// How many places are used up. The driver keeps the error of a channel that the broker has ended, and refuses
    /// everything that is ever done under the same number again.
    worn: AtomicUsize,
    /// How many of the used-up places are still taken. They do not become free when they are given back.
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
            // No caller may wait for a place that never comes.
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

/// The pause before the driver is asked again whether it has forgotten a channel, which takes it microseconds.
const FORGETS: Duration = Duration::from_millis(1);

/// Counts a caller that waits for a channel.
pub(super) struct PlaceWanted<'a>(&'a AtomicUsize);

impl<'a> PlaceWanted<'a> {
    pub(super) fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        PlaceWanted(count)
    }
}

impl Drop for PlaceWanted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
