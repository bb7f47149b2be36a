//! Messages in hand: how they are settled, and how they go back to their queue.
//!
//! Consumers and `RabbitMq::get` hand deliveries out. Each delivery keeps the channel open that it came on, because it
//! can be settled on that channel only.
//!
//! A delivery that drops unsettled goes back to its queue. A drop cannot wait, so a task on the pool's runtime does
//! that. A delivery of a stream makes its consumer read again instead. In a forked child nothing is sent, and the
//! channel is leaked.
//!
//! There is no lock here. `closed` is only read, to choose an error.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lapin::BasicProperties;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use tokio::runtime::Handle;

use crate::base::error::Error;
use crate::kinds::rabbitmq::channel::{ChannelGuard, Pooled};
use crate::kinds::rabbitmq::errors::{lost, operation};
use crate::kinds::rabbitmq::generation::Generation;
use crate::kinds::rabbitmq::stream::{Offset, Reading};
use crate::lifecycle::busy::Busy;
use crate::lifecycle::link::Link;
use crate::lifecycle::work::Work;

/// The channel that a delivery keeps open until it is settled.
pub(super) enum KeepAlive {
    Consumer(#[allow(dead_code, reason = "held for its drop")] Arc<ChannelGuard>),
    Checkout(Pooled),
}

impl KeepAlive {
    /// Makes the channel of a checkout fit to be used again.
    fn settled(&mut self) {
        if let KeepAlive::Checkout(pooled) = self {
            pooled.guard.done();
        }
    }
}

/// A message in hand. Dropping it gives it back to its queue, as [`requeue`](Delivery::requeue)
/// does. Closing waits for it.
///
/// A stream accepts acknowledgements alone. Dropping a delivery of a stream makes the consumer read again from the
/// first delivery that is not acknowledged. So do a reconnect, and [`requeue`](Delivery::requeue) and
/// [`nack`](Delivery::nack), which answer [`Error::Operation`]. A queue counts as a stream if it was declared so
/// through the pool, or else by the header `x-stream-offset` of the delivery.
#[must_use = "a delivery that drops goes back to its queue"]
pub struct Delivery {
    message: lapin::message::Delivery,
    pub(super) generation: Arc<Generation>,
    keeps: Option<(KeepAlive, Option<Busy>)>,
    /// The offset in its stream. `None` if it is not of a stream.
    offset: Option<Offset>,
}

impl Delivery {
    pub(super) fn new(message: lapin::message::Delivery, generation: Arc<Generation>, keeps: KeepAlive) -> Self {
        Delivery { message, generation, keeps: Some((keeps, None)), offset: None }
    }

    /// Notes its offset, if it is of a stream.
    pub(super) fn noted(mut self, reading: &Arc<Reading>) -> Self {
        self.offset = reading.delivered(&self.message.properties);
        self
    }

    /// Whether it can still be settled, and will not be delivered again.
    pub(super) fn is_current(&self) -> bool {
        let is_read_again = self.offset.as_ref().is_some_and(Offset::is_read_again);
        self.generation.is_alive() && self.message.acker.usable() && !is_read_again
    }

    /// Makes closing wait for it from now on.
    pub(super) fn hand_out(&mut self, link: &Link) {
        if let Some((_, busy)) = &mut self.keeps {
            *busy = Some(link.busy(Work::Delivery));
        }
    }

    /// The payload.
    pub fn data(&self) -> &[u8] {
        &self.message.data
    }

    /// The exchange it was published to.
    pub fn exchange(&self) -> &str {
        self.message.exchange.as_str()
    }

    /// The key it was published with.
    pub fn routing_key(&self) -> &str {
        self.message.routing_key.as_str()
    }

    /// Whether it was delivered before, to anybody.
    pub fn redelivered(&self) -> bool {
        self.message.redelivered
    }

    /// Its properties and headers.
    pub fn properties(&self) -> &BasicProperties {
        &self.message.properties
    }

    /// Acknowledges it. AMQP has no answer to this. The call ends once the acknowledgement is written.
    ///
    /// # Errors
    /// [`Error::Lost`] if its connection is gone. It cannot be acknowledged any more then, and is delivered again.
    /// [`Error::Timeout`], [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Once begun it is acknowledged all the same.
    pub async fn ack(self) -> Result<(), Error> {
        let acker = self.message.acker.clone();
        self.settle("acknowledging a delivery", acker.ack(BasicAckOptions::default()), true).await
    }

    /// Gives it back to its queue, to be delivered again to anybody.
    ///
    /// # Errors
    /// As [`ack`](Delivery::ack). [`Error::Operation`] for one of a stream.
    ///
    /// # Cancel safety
    /// Once begun it is given back all the same.
    pub async fn requeue(self) -> Result<(), Error> {
        self.nack_with("giving a delivery back", true).await
    }

    /// Rejects it. It goes to the queue's dead-letter exchange, or is discarded if there is none.
    ///
    /// # Errors
    /// As [`ack`](Delivery::ack). [`Error::Operation`] for one of a stream.
    ///
    /// # Cancel safety
    /// Once begun it is rejected all the same.
    pub async fn nack(self) -> Result<(), Error> {
        self.nack_with("rejecting a delivery", false).await
    }

    async fn nack_with(self, action: &str, requeue: bool) -> Result<(), Error> {
        if self.offset.is_some() {
            let problem =
                "a stream takes acknowledgements alone; acknowledge it, or drop it to have it delivered again";
            return Err(operation(&self.generation.link, action, problem));
        }
        let acker = self.message.acker.clone();
        self.settle(action, acker.nack(BasicNackOptions { requeue, multiple: false }), !requeue).await
    }

    async fn settle(
        mut self,
        action: &str,
        answer: impl Future<Output = lapin::Result<bool>>,
        is_done: bool,
    ) -> Result<(), Error> {
        match self.generation.answer(action, answer).await? {
            true => {
                if let Some(offset) = &self.offset {
                    offset.acked();
                }
                if let Some((keeps, busy)) = &mut self.keeps {
                    keeps.settled();
                    if let Some(busy) = busy {
                        busy.finish(is_done);
                    }
                }
                Ok(())
            }
            false if self.generation.closed.load(Ordering::SeqCst) => Err(self.generation.was_cut()),
            false => Err(lost(&self.generation.link, "its connection or channel is gone, so it is delivered again")),
        }
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.generation.runtime
    }

    pub(crate) fn resource(&self) -> &Arc<str> {
        self.generation.link.name()
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if self.generation.link.check_process().is_err() {
            // Leaked on purpose: channel and counters are the parent's, and this process has none of its threads.
            return std::mem::forget(self.keeps.take());
        }
        let acker = &self.message.acker;
        if !acker.usable() || !self.generation.is_alive() {
            return;
        }
        if let Some(offset) = &self.offset {
            return offset.given_up();
        }
        let (acker, mut keeps, generation) = (acker.clone(), self.keeps.take(), Arc::clone(&self.generation));
        self.generation.runtime.spawn(async move {
            let back = acker.nack(BasicNackOptions { requeue: true, multiple: false });
            let back = generation.answer("giving a delivery back", back).await;
            // If that fails, the channel is closed, which gives the delivery back.
            if let (Ok(true), Some((keeps, _))) = (back, &mut keeps) {
                keeps.settled();
            }
        });
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("exchange", &self.exchange())
            .field("routing_key", &self.routing_key())
            .field("redelivered", &self.redelivered())
            .field("bytes", &self.data().len())
            .finish_non_exhaustive()
    }
}
