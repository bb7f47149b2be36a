//! Messages in hand: how they are settled, and how they go back to their queue.
//!
//! Consumers and `RabbitMq::get` hand deliveries out. Each delivery keeps the channel open that it came on, because it
//! can be settled on that channel only.
//!
//! A delivery that drops unsettled goes back to its queue. A drop cannot wait, so a task on the pool's runtime does
//! that. A delivery of a stream makes its consumer read again instead. In a forked child nothing is sent, and the
//! channel is leaked.
//!
//! `InHand` knows which deliveries of a subscription are not settled. Its lock is the only one, and is taken for a
//! moment. `closed` is only read, to choose an error.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lapin::BasicProperties;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use lapin::types::AMQPValue;
use tokio::runtime::Handle;

use crate::base::error::Error;
use crate::kinds::rabbitmq::channel::{ChannelGuard, Pooled};
use crate::kinds::rabbitmq::errors::{lost, operation};
use crate::kinds::rabbitmq::generation::Generation;
use crate::kinds::rabbitmq::in_hand::{HeldDelivery, InHand, Writing};
use crate::kinds::rabbitmq::stream::{Offset, Reading};
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
    keeps: Option<KeepAlive>,
    /// The offset in its stream. `None` if it is not of a stream.
    offset: Option<Offset>,
    /// The deliveries of its subscription that are handed out.
    in_hand: Arc<InHand>,
    is_handed_out: bool,
}

impl Delivery {
    pub(super) fn new(message: lapin::message::Delivery, generation: Arc<Generation>, keeps: KeepAlive) -> Self {
        let in_hand = Arc::default();
        Delivery { message, generation, keeps: Some(keeps), offset: None, in_hand, is_handed_out: false }
    }

    /// Makes it one of the deliveries of a consumer, and notes its offset, if it is of a stream.
    pub(super) fn of(mut self, reading: &Arc<Reading>) -> Self {
        self.offset = reading.delivered(&self.message.properties);
        self.in_hand = Arc::clone(&reading.in_hand);
        self
    }

    /// Whether it can still be settled, and will not be delivered again.
    pub(super) fn is_current(&self) -> bool {
        let is_read_again = self.offset.as_ref().is_some_and(Offset::is_read_again);
        self.generation.is_alive() && self.message.acker.usable() && !is_read_again
    }

    /// Makes closing wait for it from now on.
    pub(super) fn hand_out(&mut self, link: &Link) {
        let acker = self.message.acker.clone();
        self.in_hand.hand_out(self.tag(), acker, self.offset.clone(), link.busy(Work::Delivery));
        self.is_handed_out = true;
    }

    fn tag(&self) -> u64 {
        self.message.delivery_tag
    }

    /// The payload.
    pub fn data(&self) -> &[u8] {
        &self.message.data
    }

    /// The exchange it was published to, first of all if it comes back from a
    /// [retry queue](crate::rabbitmq::Consume::attempts).
    pub fn exchange(&self) -> &str {
        self.first(FIRST_EXCHANGE).unwrap_or(self.message.exchange.as_str())
    }

    /// The key it was published with, first of all if it comes back from a
    /// [retry queue](crate::rabbitmq::Consume::attempts).
    pub fn routing_key(&self) -> &str {
        self.first(FIRST_KEY).unwrap_or(self.message.routing_key.as_str())
    }

    /// The header with where it was published first. `None` if it does not come from the retry queue.
    fn first(&self, name: &str) -> Option<&str> {
        let Some(AMQPValue::LongString(first)) = self.header(name) else { return None };
        std::str::from_utf8(first.as_bytes()).ok().filter(|_| self.is_back())
    }

    /// Whether it comes back from the retry queue of its queue. A message that was forwarded, or dead-lettered from
    /// elsewhere, has the headers of a retry too.
    fn is_back(&self) -> bool {
        // The broker notes the last death first.
        let Some(AMQPValue::FieldTable(death)) = self.deaths().first() else { return false };
        let Some(AMQPValue::LongString(died_in)) = death.inner().get("queue") else { return false };
        let queue = died_in.as_bytes().strip_suffix(RETRY_SUFFIX.as_bytes());
        self.message.exchange.as_str().is_empty() && queue == Some(self.message.routing_key.as_str().as_bytes())
    }

    fn deaths(&self) -> &[AMQPValue] {
        match self.header(DEATHS) {
            Some(AMQPValue::FieldArray(deaths)) => deaths.as_slice(),
            _ => &[],
        }
    }

    /// How often it was put into the retry queue of its queue.
    pub(super) fn retries(&self) -> u32 {
        if self.is_back() { self.copies() } else { 0 }
    }

    /// How often it was put into any retry queue.
    fn copies(&self) -> u32 {
        self.header(RETRIES).and_then(count).unwrap_or(0)
    }

    /// Whether it was delivered before, to anybody.
    pub fn redelivered(&self) -> bool {
        self.message.redelivered
    }

    /// Its properties and headers.
    pub fn properties(&self) -> &BasicProperties {
        &self.message.properties
    }

    /// How often it was delivered to anybody, this time included. `None` if the broker does not tell.
    ///
    /// The broker tells that it was not delivered before. It counts the deliveries of a quorum queue
    /// (`x-delivery-count`), and the rejections that dead-lettered the message (`x-death`). The
    /// [retry queue](crate::rabbitmq::Consume::attempts) counts too. Of a message that went back to another queue, it tells only [that](Delivery::redelivered) it was delivered before, and not how often.
    pub fn attempts(&self) -> Option<u32> {
        let counted = match self.header(DELIVERY_COUNT) {
            // The header stays on a message that is published anew.
            _ if !self.redelivered() => 0,
            count => self::count(count?)?,
        };
        let rejections = self.deaths().iter().map(|death| {
            let AMQPValue::FieldTable(death) = death else { return 0 };
            let is_rejection = death.inner().get("reason") == Some(&AMQPValue::LongString("rejected".into()));
            death.inner().get("count").filter(|_| is_rejection).and_then(count).unwrap_or(0)
        });
        let counted = counted.saturating_add(self.copies());
        Some(rejections.fold(counted, u32::saturating_add).saturating_add(1))
    }

    fn header(&self, name: &str) -> Option<&AMQPValue> {
        self.message.properties.headers().as_ref()?.inner().get(name)
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
        self.settle("acknowledging a delivery", Verdict::Ack).await
    }

    /// Acknowledges it, and all deliveries that its consumer handed out before it. Those that are settled or given back
    /// by then stay so. The others count as acknowledged, and acknowledging one of them later does nothing.
    ///
    /// It covers only the deliveries that came over the same connection. It is one message to the broker, unless
    /// another one of these deliveries is being settled at the moment.
    ///
    /// # Errors
    /// As [`ack`](Delivery::ack), about all of them.
    ///
    /// # Cancel safety
    /// Once begun they are acknowledged all the same.
    pub async fn ack_all_before(mut self) -> Result<(), Error> {
        self.generation.link.check_process()?;
        let mut all = self.in_hand.take_all_before(self.tag());
        if all.held.is_empty() {
            return self.was_settled();
        }
        let in_hand = Arc::clone(&self.in_hand);
        let writing = async move {
            let last = all.held.last_key_value().filter(|_| all.at_once).map(|(_, last)| last.acker.clone());
            if let Some(last) = last
                && !last.ack(BasicAckOptions { multiple: true }).await?
            {
                return Ok(false);
            }
            while let Some((tag, held)) = all.held.pop_first() {
                if !all.at_once && !held.acker.ack(BasicAckOptions::default()).await? {
                    return Ok(false);
                }
                in_hand.answered(tag, held, true);
            }
            Ok(true)
        };
        self.write("acknowledging deliveries", writing).await
    }

    /// Gives it back to its queue, to be delivered again to anybody.
    ///
    /// # Errors
    /// As [`ack`](Delivery::ack). [`Error::Operation`] for one of a stream, or one that was acknowledged
    /// [with a later one](Delivery::ack_all_before).
    ///
    /// # Cancel safety
    /// Once begun it is given back all the same.
    pub async fn requeue(self) -> Result<(), Error> {
        self.settle("giving a delivery back", Verdict::Requeue).await
    }

    /// Rejects it. It goes to the queue's dead-letter exchange, or is discarded if there is none.
    ///
    /// # Errors
    /// As [`requeue`](Delivery::requeue).
    ///
    /// # Cancel safety
    /// Once begun it is rejected all the same.
    pub async fn nack(self) -> Result<(), Error> {
        self.settle("rejecting a delivery", Verdict::Reject).await
    }

    async fn settle(mut self, action: &str, verdict: Verdict) -> Result<(), Error> {
        // A forked child takes no lock of its parent's.
        self.generation.link.check_process()?;
        let refused = |problem: &str| Err(operation(&self.generation.link, action, problem));
        if self.offset.is_some() && verdict != Verdict::Ack {
            return refused(
                "a stream takes acknowledgements alone; acknowledge it, or drop it to have it delivered again",
            );
        }
        let Some(held) = self.in_hand.take(self.tag()) else {
            return match verdict {
                Verdict::Ack => self.was_settled(),
                _ => refused("it was acknowledged with a later delivery"),
            };
        };
        let (in_hand, tag) = (Arc::clone(&self.in_hand), self.tag());
        self.write(action, answer(in_hand, tag, held, verdict)).await
    }

    /// Waits until answers are written, which goes on if this is given up.
    async fn write(
        &mut self,
        action: &str,
        writing: impl Future<Output = lapin::Result<bool>> + Send + 'static,
    ) -> Result<(), Error> {
        let written = Writing::new(&self.generation, writing).wait(action).await?;
        self.is_settled(written)?;
        self.settled();
        Ok(())
    }

    /// Whether it was acknowledged with a later one. The acknowledgement may have been lost with the connection.
    fn was_settled(&self) -> Result<(), Error> {
        let is_lost = self.in_hand.is_leaving(self.tag()) && !self.generation.is_alive();
        self.is_settled(!is_lost)
    }

    /// The driver's answer, `false` of which means that the channel is gone.
    fn is_settled(&self, answer: bool) -> Result<(), Error> {
        match answer {
            true => Ok(()),
            false if self.generation.closed.load(Ordering::SeqCst) => Err(self.generation.was_cut()),
            false => Err(lost(&self.generation.link, "its connection or channel is gone, so it is delivered again")),
        }
    }

    fn settled(&mut self) {
        if let Some(keeps) = &mut self.keeps {
            keeps.settled();
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
            return std::mem::forget((self.keeps.take(), Arc::clone(&self.in_hand)));
        }
        let tag = self.tag();
        let held = if self.is_handed_out { self.in_hand.take(tag) } else { None };
        let is_settled = self.is_handed_out && held.is_none();
        let acker = &self.message.acker;
        if is_settled || !acker.usable() || !self.generation.is_alive() {
            return;
        }
        if let Some(offset) = &self.offset {
            return offset.given_up();
        }
        let (acker, mut keeps, generation) = (acker.clone(), self.keeps.take(), Arc::clone(&self.generation));
        let in_hand = Arc::clone(&self.in_hand);
        self.generation.runtime.spawn(async move {
            let back = async move {
                let is_back = acker.nack(BasicNackOptions { requeue: true, multiple: false }).await?;
                if let Some(held) = held.filter(|_| is_back) {
                    in_hand.answered(tag, held, false);
                }
                Ok(is_back)
            };
            let back = Writing::new(&generation, back).wait("giving a delivery back").await;
            // If that fails, the channel is closed, which gives the delivery back.
            if let (Ok(true), Some(keeps)) = (back, &mut keeps) {
                keeps.settled();
            }
        });
    }
}

/// Writes the answer to a delivery, and notes that.
async fn answer(in_hand: Arc<InHand>, tag: u64, held: HeldDelivery, verdict: Verdict) -> lapin::Result<bool> {
    let requeue = verdict == Verdict::Requeue;
    let written = match verdict {
        Verdict::Ack => held.acker.ack(BasicAckOptions::default()).await?,
        _ => held.acker.nack(BasicNackOptions { requeue, multiple: false }).await?,
    };
    if written {
        in_hand.answered(tag, held, !requeue);
    }
    Ok(written)
}

/// The ways to settle a delivery.
#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    Ack,
    Requeue,
    Reject,
}

/// The header in which a quorum queue counts the deliveries of a message before this one.
pub(super) const DELIVERY_COUNT: &str = "x-delivery-count";

/// The header in which the broker notes the queues that dead-lettered a message, the last one first.
pub(super) const DEATHS: &str = "x-death";

/// The header in which the copies of a message in a retry queue are counted.
pub(super) const RETRIES: &str = "x-retries";
/// The headers with the exchange and the key to which a message in a retry queue was published first.
pub(super) const FIRST_EXCHANGE: &str = "x-retry-exchange";
pub(super) const FIRST_KEY: &str = "x-retry-routing-key";
/// The end of a retry queue's name. The queue's own name comes before it.
pub(super) const RETRY_SUFFIX: &str = ".retry";

/// A header that counts. `None` if it is no number.
fn count(value: &AMQPValue) -> Option<u32> {
    match value {
        AMQPValue::LongLongInt(count) => u32::try_from(*count).ok(),
        AMQPValue::LongInt(count) => u32::try_from(*count).ok(),
        AMQPValue::LongUInt(count) => Some(*count),
        _ => None,
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
