//! One connection, from its opening to its disconnect: a generation of the resource.
//!
//! `RabbitMqSession` opens a generation, and another one after each loss. Verbs, consumers and the prober make their requests
//! on it. The driver's futures may never resolve, so each of them is raced with the connection's kill switch and a
//! limit.
//!
//! A task watches the driver's events until the connection is gone. It refers to the generation weakly, so a generation
//! that was replaced can drop.
//!
//! There is no lock here besides those of the prober and of the consumers' connection, which their own files explain.
//! `closed` is set once, and decides here only which error a caller gets. Neither it nor `waiting` guards other memory.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_core::Stream;
use lapin::Event;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use crate::base::error::{Error, Failure, OneLine, TimeoutError};
use crate::base::holder::Holder;
use crate::base::runtime;
use crate::kinds::rabbitmq::channels::{Channels, PlaceWanted};
use crate::kinds::rabbitmq::config::RabbitMqConfig;
use crate::kinds::rabbitmq::consuming::Consuming;
use crate::kinds::rabbitmq::dial::CutOnDrop;
use crate::kinds::rabbitmq::errors::{CallError, lost};
use crate::kinds::rabbitmq::prober::Prober;
use crate::kinds::rabbitmq::together::together;
use crate::lifecycle::lease::Claim;
use crate::lifecycle::link::Link;
use crate::lifecycle::wait::Quota;
use crate::net::kill_switch::KillSwitch;

/// One connection, with the channels that are open on it.
pub(super) struct Generation {
    pub(super) number: u64,
    pub(super) config: Arc<RabbitMqConfig>,
    pub(super) link: Link,
    pub(super) runtime: Handle,
    /// Cancelled when consuming ends, because closing has begun.
    pub(super) intake: CancellationToken,
    pub(super) closed: Arc<AtomicBool>,
    pub(super) connection: lapin::Connection,
    pub(super) switch: KillSwitch,
    /// Cancelled when the driver's thread and socket are gone.
    pub(super) gone: CancellationToken,
    /// The permits for checkouts. A permit is free again once its channel has ended at the broker, or is idle.
    pub(super) permits: Arc<Semaphore>,
    pub(super) quota: Arc<Quota>,
    pub(super) waiting: AtomicUsize,
    pub(super) channels: Channels,
    /// The broker's reason for taking no messages. `None` while it takes them.
    pub(super) blocked: watch::Sender<Option<String>>,
    /// The prober's own connection.
    pub(super) prober: Arc<tokio::sync::Mutex<Prober>>,
    /// The consumers' own connection.
    pub(super) consuming: Arc<tokio::sync::Mutex<Consuming>>,
    /// The switch of the consumers' own connection, which is cut with this one.
    pub(super) beside: parking_lot::Mutex<Option<KillSwitch>>,
}

impl Generation {
    pub(super) fn is_alive(&self) -> bool {
        !self.switch.is_cut() && self.connection.status().connected()
    }

    /// Watches the events of the connection, until it is gone.
    pub(super) fn watch(self: &Arc<Self>, events: impl Stream<Item = Event> + Send + 'static) {
        let (watched, switch) = (Arc::downgrade(self), self.switch.clone());
        tokio::spawn(async move {
            let mut events = pin!(events);
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
    }

    /// Handles one event, and answers whether to go on watching.
    fn see(&self, event: Event) -> bool {
        match event {
            Event::ConnectionBlocked(reason) => {
                let reason = OneLine(reason).to_string();
                self.link.warn("blocked by the broker", Some(&reason));
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
            Event::Error(_) => self.channels.wear(),
            _ => {}
        }
        true
    }

    /// A permit for a checkout. Waits for it until `deadline`.
    pub(super) async fn permit(&self, claim: Claim, deadline: Instant) -> Result<OwnedSemaphorePermit, Error> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Ok(permit);
        }
        let wait = self.quota.wait(claim)?;
        let timer = self.timer(deadline.saturating_duration_since(Instant::now()));
        let _waiting = PlaceWanted::new(&self.waiting);
        tokio::select! {
            // The cut comes first, because a permit on a lost connection is of no use. A free permit counts even if the
            // limit has passed.
            biased;
            () = self.switch.wait() => Err(self.was_cut()),
            permit = Arc::clone(&self.permits).acquire_owned() => permit.map_err(|_| self.was_cut()),
            () = timer => {
                // With all channels open, callers with a permit wait too. All wait for the holders of channels.
                let holders = self.channels.are_all_open().then(|| self.channel_holders());
                Err(wait.timed_out(&self.why_blocked(), holders, None))
            }
        }
    }

    pub(super) fn checkouts(&self) -> impl Iterator<Item = Holder> + use<> {
        self.link.holders().into_iter().filter(|holder| holder.exclusive)
    }

    /// Waits for the driver's answer, within the operation timeout. Answers an error if the connection is cut
    /// meanwhile, because the driver's futures may never resolve.
    pub(super) async fn answer<T>(
        &self,
        action: &str,
        future: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, Error> {
        self.within(self.config.operation_timeout, action, future)
            .await
            .map_err(|error| self.link.told(error.into_error(self, action)))
    }

    pub(super) async fn within<T>(
        &self,
        limit: Duration,
        action: &str,
        future: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, CallError> {
        self.link.check_process().map_err(CallError::Ours)?;
        let timer = self.timer(limit);
        tokio::select! {
            // An answer that has come counts, even if the connection is cut or the limit passes at the same moment.
            biased;
            answer = future => answer.map_err(CallError::Driver),
            () = self.switch.wait() => Err(CallError::Cut),
            () = timer => Err(CallError::Ours(self.timeout(format!("the broker's answer to {action}"), limit))),
        }
    }

    /// Waits while the broker blocks this connection. A request that is sent meanwhile may be written much later.
    pub(super) async fn unblocked(&self) -> Result<(), Error> {
        if self.blocked.borrow().is_none() {
            return Ok(());
        }
        let limit = self.config.operation_timeout;
        let timer = self.timer(limit);
        let mut blocked = self.blocked.subscribe();
        tokio::select! {
            // The cut comes first, because a lost connection takes no requests again.
            biased;
            () = self.switch.wait() => Err(self.was_cut()),
            _ = blocked.wait_for(Option::is_none) => Ok(()),
            () = timer => Err(self.link.told(self.timeout("the broker to take requests again", limit))),
        }
    }

    /// A [timer](runtime::timer) that can be made wherever this is called.
    pub(super) fn timer(&self, limit: Duration) -> Sleep {
        let _context = self.runtime.enter();
        runtime::timer(limit)
    }

    fn timeout(&self, waiting_for: impl Into<String>, waited: Duration) -> Error {
        self.timed_out(waiting_for.into(), waited, self.checkouts().collect())
    }

    pub(super) fn timed_out(&self, waiting_for: String, waited: Duration, holders: Vec<Holder>) -> Error {
        let waiting_for = waiting_for + &self.why_blocked();
        let timeout = TimeoutError::new(self.link.name(), self.link.endpoint(), waiting_for, waited);
        Error::Timeout(Arc::new(TimeoutError { holders, ..timeout }))
    }

    /// The end of a sentence on a wait, which says that the broker blocks the connection. Empty if it does not.
    pub(super) fn why_blocked(&self) -> String {
        let reason = self.blocked.borrow();
        reason.as_ref().map_or_else(String::new, |why| format!("; the connection is blocked by the broker ({why})"))
    }

    /// The error of a request that has no answer because the connection is gone.
    pub(super) fn was_cut(&self) -> Error {
        if self.closed.load(Ordering::SeqCst) {
            return Error::closed(self.link.name());
        }
        match self.switch.cause() {
            Some(lost @ Error::Lost { .. }) => lost.clone(),
            Some(cause) => lost(&self.link, cause.clone()),
            None => lost(&self.link, "the connection is gone"),
        }
    }

    /// Closes every channel, then the connection. The consumers' own connection is closed beside it. Nothing of them is
    /// left after that.
    pub(super) async fn close(&self) -> Result<(), Failure> {
        // Cuts the connection if this is given up.
        let _cut = CutOnDrop::new(&self.switch);
        // A connection whose opening takes longer is closed by its opening.
        let limit = self.config.disconnect_timeout;
        let own = runtime::within(limit, self.consuming.lock()).await.ok().and_then(|mut it| it.own.take());
        let _cut_beside = own.as_ref().map(|own| CutOnDrop::new(&own.switch));
        let of_consumers = async {
            match &own {
                Some(own) => own.disconnect().await,
                None => Ok(()),
            }
        };
        let (of_consumers, said) = tokio::join!(of_consumers, self.disconnect());
        self.cut_because(self.was_cut());
        said.and(of_consumers)
    }

    /// The reason why the disconnect was cut short. It is not that the resource is closed, which explains nothing here.
    fn unsaid(&self, error: CallError) -> Failure {
        Failure::transient(match (error, self.switch.cause()) {
            (CallError::Cut, Some(cause)) => cause.clone().into(),
            (CallError::Cut, None) => "the connection was lost meanwhile".into(),
            (CallError::Ours(error), _) => self.link.told(error).into(),
            (CallError::Driver(error), _) => self.config.redacted(error),
        })
    }

    async fn disconnect(&self) -> Result<(), Failure> {
        if !self.is_alive() {
            return Err(Failure::transient("the connection was lost before it could be closed"));
        }
        let channels = self.channels.take_all();
        let every_channel = together(channels.into_iter().map(|channel| async move {
            // A channel that is closed already answers an error, and needs nothing more.
            let _ = channel.close(200, "OK".into()).await;
            Ok(())
        }));
        let limit = self.config.operation_timeout;
        let disconnect = async {
            self.within(limit, "closing every channel", every_channel).await?;
            self.channels.none_is_closing().await;
            self.within(limit, "closing the connection", self.connection.close(200, "OK".into())).await
        };
        tokio::select! {
            said = disconnect => said.map_err(|error| self.unsaid(error))?,
            () = self.timer(self.config.disconnect_timeout) => {
                let limit = self.config.disconnect_timeout;
                return Err(Failure::transient(format!("the broker did not answer the goodbye within {limit:?}")));
            }
        };
        // The driver ends by itself now. It would call a cut an error, in the log too.
        let timer = self.timer(LINGER);
        tokio::select! {
            () = self.gone.cancelled() => {}
            () = timer => {}
        }
        Ok(())
    }
}

/// How long to wait for the driver to end its thread and its socket by itself, which takes microseconds.
pub(super) const LINGER: Duration = Duration::from_millis(500);
