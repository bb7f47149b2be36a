//! The connection of the consumers, beside the one of everything else. A broker that is short of memory blocks the
//! connections that publish, and deliveries and acknowledgements go on.
//!
//! `RabbitMqSession::subscribe` asks here for a connection. The first consumer has it opened. Where the broker refuses
//! it, consumers share the other one, and `RabbitMqResource::ping` warns. Both are of one generation: the loss of either
//! is a loss of the resource, and cutting the main one cuts this one too.
//!
//! The async lock of a `Consuming` is held while the connection is being opened, so `Generation::close` waits for that.
//! The lock of `beside` is taken for a moment under it, and no other lock is held with either. The opening is a task, so
//! it goes on if the consumer is given up. `closed` is set before closing takes the async lock, and is looked at under
//! it. So no connection is opened after closing has taken the last one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::base::error::{Error, Failure};
use crate::base::runtime::within;
use crate::kinds::rabbitmq::dial::dial_for_all;
use crate::kinds::rabbitmq::generation::Generation;
use crate::kinds::rabbitmq::session::RabbitMqSession;
use crate::net::count::Counted;

/// The consumers' own connection, beside that of a generation.
#[derive(Default)]
pub(super) struct Consuming {
    pub(super) own: Option<Arc<Generation>>,
    /// The broker's reason for refusing the last one, and the moment from which the next consumer may try again.
    refused: Option<(String, Instant)>,
}

/// How long consumers go without a connection of their own after opening one failed. Each attempt is a line in the
/// broker's log.
const PAUSE: Duration = Duration::from_secs(10);

impl RabbitMqSession {
    /// The connection on which a queue is consumed. A queue that is exclusive belongs to the main connection alone.
    pub(super) async fn consuming(self: &Arc<Self>, main: &Arc<Generation>, queue: &str) -> Arc<Generation> {
        let is_exclusive = self.topology.lock().spec(queue).is_some_and(|queue| queue.options.exclusive);
        if is_exclusive {
            return Arc::clone(main);
        }
        let mut consuming = Arc::clone(&main.consuming).lock_owned().await;
        if let Some(own) = &consuming.own {
            if !own.is_alive() {
                let gone = "the connection of the consumers is gone";
                self.link.lost(main.number, io::Error::new(io::ErrorKind::UnexpectedEof, gone));
            }
            return Arc::clone(own);
        }
        let waits = consuming.refused.as_ref().is_some_and(|(_, again)| Instant::now() < *again);
        if waits || self.closed.load(Ordering::SeqCst) {
            return Arc::clone(main);
        }
        let (session, beside) = (Arc::clone(self), Arc::clone(main));
        let counted = Counted::new(&self.probes);
        let opened = self.runtime.spawn(async move {
            let _counted = counted;
            match session.open_consuming(&beside).await {
                // Closing may have waited no longer for this.
                Ok(own) if session.closed.load(Ordering::SeqCst) => {
                    let _ = own.close().await;
                    beside
                }
                Ok(own) => {
                    consuming.refused = None;
                    Arc::clone(consuming.own.insert(own))
                }
                // The loss of the main connection is told already.
                Err(_) if !beside.is_alive() => beside,
                Err(failure) => {
                    session.link.warn("consumers share the connection of publishers", Some(&failure));
                    consuming.refused = Some((failure.to_string(), Instant::now() + PAUSE));
                    beside
                }
            }
        });
        opened.await.unwrap_or_else(|_ended| Arc::clone(main))
    }

    async fn open_consuming(&self, main: &Arc<Generation>) -> Result<Arc<Generation>, Failure> {
        let name = format!("{} consumers", self.config.connection_name);
        let opening = dial_for_all(&self.config, &self.tls, &name);
        let dialled = tokio::select! {
            dialled = within(self.config.operation_timeout, opening) => dialled??,
            () = main.switch.wait() => return Err(Failure::transient(main.was_cut())),
            () = self.probes_given_up.cancelled() => return Err(Failure::transient("the resource is closed")),
        };
        let events = dialled.connection.events_listener();
        let own = self.generation(dialled, main.number);
        own.watch(events);
        *main.beside.lock() = Some(own.switch.clone());
        // A cut from before this moment did not find the switch.
        if main.switch.is_cut() {
            own.switch.cut_because(main.was_cut());
        }
        Ok(own)
    }
}

impl Generation {
    /// Cuts this connection, and the consumers' own with it.
    pub(super) fn cut_because(&self, cause: Error) {
        self.switch.cut_because(cause.clone());
        let beside = self.beside.lock().clone();
        if let Some(beside) = beside {
            beside.cut_because(cause);
        }
    }

    /// Why the consumers have no connection of their own, although there are consumers.
    pub(super) fn why_shared(&self) -> Option<String> {
        let consuming = self.consuming.try_lock().ok()?;
        let (refused, _) = consuming.refused.as_ref()?;
        Some(format!("consumers share the connection of publishers, because their own was refused: {refused}"))
    }
}
