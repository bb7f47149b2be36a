//! The replay: after a reconnect everything that was declared is declared again.
//!
//! `RabbitMqSession::open_generation` calls this before the connection is put in place. It works on a copy of the topology, so
//! that the lock of the topology is not held while the broker is asked.
//!
//! The declarations run side by side within one task. `all` hands them out, and `logged` limits the lines in the log.
//! The two locks are never held together, and nothing is awaited under them. The log and the pool are told under
//! `logged`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::base::error::{Error, Failure};
use crate::base::runtime::deadline;
use crate::kinds::rabbitmq::channel::ChannelGuard;
use crate::kinds::rabbitmq::declare::{Declaration, Exchange};
use crate::kinds::rabbitmq::errors::{LOCKED_PAUSE, LOCKED_TRIES, is_locked, is_missing};
use crate::kinds::rabbitmq::generation::Generation;
use crate::kinds::rabbitmq::session::RabbitMqSession;
use crate::kinds::rabbitmq::together::together;
use crate::lifecycle::link::Link;

impl RabbitMqSession {
    /// Declares everything again, side by side, and reports its progress. A declaration that the broker refuses is left
    /// out and logged, because it must not keep the rest from working.
    pub(super) async fn replay(&self, generation: &Arc<Generation>, link: &Link) -> Result<(), Failure> {
        let topology = self.topology.lock().clone();
        let replay = Replay::new(link, topology.len());
        let exchanges = topology.exchanges.values().map(|exchange| (None, Declaration::Exchange(exchange)));
        let queues = topology.queues.iter().map(|(known, queue)| (Some(known), Declaration::Queue(&queue.spec)));
        let bindings = topology.bindings.iter().map(|binding| (None, Declaration::Binding(binding)));
        self.declare_all(generation, &replay, exchanges.collect()).await?;
        self.declare_all(generation, &replay, queues.collect()).await?;
        self.declare_all(generation, &replay, bindings.collect()).await
    }

    /// Declares these on up to [`DECLARING`] channels. A queue comes with the name by which the caller knows it.
    async fn declare_all(
        &self,
        generation: &Arc<Generation>,
        replay: &Replay<'_>,
        all: Vec<(Option<&String>, Declaration<'_>)>,
    ) -> Result<(), Failure> {
        let channels = DECLARING.min(all.len()).min(generation.connection.configuration().channel_max().into());
        let all = Mutex::new(all.iter());
        let next = || all.lock().next();
        let declare = async || {
            let mut guard = None;
            while let Some((known, what)) = next() {
                let declared = self.again(generation, &mut guard, what).await?;
                if let (Some(known), Some(declared)) = (known, declared) {
                    self.topology.lock().rename(known, declared.name().as_str());
                }
                replay.one_more();
            }
            // Closing the channel here frees its number before anybody else wants one.
            if let Some(guard) = guard {
                let _ = generation.answer("closing a channel", guard.channel.close(200, "OK".into())).await;
            }
            Ok(())
        };
        together((0..channels).map(|_| declare())).await
    }

    /// Declares this on the channel, or on a new one if the broker has closed that channel.
    async fn again(
        &self,
        generation: &Arc<Generation>,
        channel: &mut Option<ChannelGuard>,
        what: &Declaration<'_>,
    ) -> Result<Option<lapin::Queue>, Failure> {
        let mut tries = 0;
        loop {
            let mut guard = match channel.take() {
                Some(guard) => guard,
                None => open(generation).await?,
            };
            let error = match what.make(&mut guard, &self.topology).await {
                Ok(declared) => {
                    *channel = Some(guard);
                    return Ok(declared);
                }
                Err(error) => error,
            };
            drop(guard);
            tries += 1;
            // An exchange that deletes itself may have gone with the queues of the lost connection, after it was declared
            // again.
            if is_missing(&error)
                && tries < LOCKED_TRIES
                && let Some(exchange) = self.exchange_of(what)
            {
                let mut guard = open(generation).await?;
                if guard.declare_exchange(&exchange).await.is_ok() {
                    *channel = Some(guard);
                    continue;
                }
            }
            match error {
                error if !generation.is_alive() => return Err(Failure::transient(error)),
                error if is_locked(&error) && tries < LOCKED_TRIES => tokio::time::sleep(LOCKED_PAUSE).await,
                Error::Operation { .. } => {
                    self.link.warn("not declared again", Some(&error));
                    return Ok(None);
                }
                error => return Err(Failure::transient(error)),
            }
        }
    }

    /// The exchange of a binding, if it was declared here.
    fn exchange_of(&self, what: &Declaration<'_>) -> Option<Exchange> {
        let Declaration::Binding(binding) = what else { return None };
        self.topology.lock().exchanges.get(&binding.exchange).cloned()
    }
}

/// A channel for declarations.
async fn open(generation: &Arc<Generation>) -> Result<ChannelGuard, Error> {
    let place = generation.place(deadline(generation.link.acquire_timeout())).await?;
    ChannelGuard::open(generation, place, None, None).await
}

/// The progress of a replay.
struct Replay<'a> {
    link: &'a Link,
    all: usize,
    done: AtomicUsize,
    logged: Mutex<Instant>,
}

impl<'a> Replay<'a> {
    fn new(link: &'a Link, all: usize) -> Self {
        let replay = Replay { link, all, done: AtomicUsize::new(0), logged: Mutex::new(Instant::now()) };
        replay.tell(0);
        replay
    }

    fn one_more(&self) {
        self.tell(self.done.fetch_add(1, Ordering::Relaxed) + 1);
    }

    fn tell(&self, done: usize) {
        if self.all == 0 {
            return;
        }
        let far = format!("{done} of {} declared", self.all);
        let mut logged = self.logged.lock();
        // Relaxed, because the count is only told.
        if logged.elapsed() >= LOG_EVERY {
            *logged = Instant::now();
            tracing::info!(resource = %self.link.name(), "{far}");
        }
        self.link.progress(far);
    }
}

/// The number of channels on which declarations run side by side.
const DECLARING: usize = 32;
/// The least time between two lines in the log, so that a long replay does not fill it.
const LOG_EVERY: Duration = Duration::from_secs(1);
