//! Messages, and what becomes of them.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::iter::Peekable;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Confirmation};
use parking_lot::Mutex;

use crate::base::error::{Error, Source};
use crate::kinds::rabbitmq::channel::ChannelGuard;
use crate::kinds::rabbitmq::config::RabbitMqConfig;
use crate::kinds::rabbitmq::errors::{Trouble, operation};
use crate::kinds::rabbitmq::frame::header_bytes;
use crate::kinds::rabbitmq::generation::Generation;
use crate::kinds::rabbitmq::topology::Topology;
use crate::lifecycle::busy::Busy;
use crate::lifecycle::work::Work;

/// A message to publish.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub(super) exchange: String,
    pub(super) routing_key: String,
    payload: Vec<u8>,
    properties: BasicProperties,
    mandatory: bool,
}

impl Message {
    /// A persistent, mandatory message. The exchange `""` routes to the queue named by the key.
    pub fn new(exchange: impl Into<String>, routing_key: impl Into<String>, payload: impl Into<Vec<u8>>) -> Self {
        Message {
            exchange: exchange.into(),
            routing_key: routing_key.into(),
            payload: payload.into(),
            properties: BasicProperties::default().with_delivery_mode(PERSISTENT),
            mandatory: true,
        }
    }

    /// Replaces the properties: persistence, too, is one of them (`with_delivery_mode(2)`).
    pub fn properties(mut self, properties: BasicProperties) -> Self {
        self.properties = properties;
        self
    }

    /// Does not outlive a restart of the broker; several times faster on durable queues.
    pub fn transient(mut self) -> Self {
        self.properties = self.properties.with_delivery_mode(TRANSIENT);
        self
    }

    /// May reach no queue at all without that being told.
    pub fn optional(mut self) -> Self {
        self.mandatory = false;
        self
    }

    /// Whether the broker's refusal names what this message has: its exchange, user, expiration or size.
    fn is_meant_by(&self, refusal: &str) -> bool {
        let names = |what: &str, value: &str| !value.is_empty() && refusal.contains(&format!("{what} '{value}'"));
        let property =
            |what, value: &Option<ShortString>| value.as_ref().is_some_and(|value| names(what, value.as_str()));
        names("exchange", &self.exchange)
            || property("user_id property set to", self.properties.user_id())
            || property("invalid expiration", self.properties.expiration())
            || refusal.contains(&format!("message size {} is", self.payload.len()))
    }

    /// How many bytes it takes in all.
    fn bytes(&self) -> usize {
        let headers = self.properties.headers().as_ref().map_or(0, |_| header_bytes(&self.properties));
        headers.saturating_add(self.exchange.len() + self.routing_key.len() + self.payload.len())
    }

    fn action(&self) -> String {
        format!("publishing to {:?} with the key {:?}", self.exchange, self.routing_key)
    }
}

const TRANSIENT: u8 = 1;
const PERSISTENT: u8 = 2;

/// What became of a published message.
#[must_use = "a message that was returned or refused has reached nobody"]
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Published {
    /// The broker has it: in every queue it was routed to, and on disk where both are durable.
    Confirmed,
    /// It reached no queue: nothing is bound for it.
    Returned {
        /// The broker's code; 312 is "no route".
        code: u16,
        /// The broker's reason.
        reason: String,
    },
    /// The broker could not take it: an internal error, or a queue that is full and rejects.
    Nacked,
}

impl Published {
    /// Whether the broker has it.
    pub fn is_confirmed(&self) -> bool {
        *self == Published::Confirmed
    }
}

/// What became of each message of a batch, in their order.
#[must_use = "messages that were returned or refused have reached nobody"]
#[derive(Debug, Clone)]
pub struct Batch {
    pub(super) results: Vec<Result<Published, Error>>,
}

impl Batch {
    /// How many the broker has.
    pub fn confirmed(&self) -> usize {
        self.results.iter().flatten().filter(|published| published.is_confirmed()).count()
    }

    /// Whether the broker has all of them.
    pub fn all_confirmed(&self) -> bool {
        self.confirmed() == self.results.len()
    }

    /// How many have an unknown outcome.
    pub fn unknown(&self) -> usize {
        self.results.iter().filter(|result| matches!(result, Err(Error::OutcomeUnknown { .. }))).count()
    }

    /// A result for each message.
    pub fn results(&self) -> &[Result<Published, Error>] {
        &self.results
    }

    /// The results themselves.
    pub fn into_results(self) -> Vec<Result<Published, Error>> {
        self.results
    }
}

/// How many were confirmed, and the first error if not all were.
impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} confirmed", self.confirmed(), self.results.len())?;
        match self.results.iter().find_map(|result| result.as_ref().err()) {
            Some(error) => write!(f, "; {error}"),
            None => Ok(()),
        }
    }
}

/// A batch in parts, so that the broker is at work on the others while one is settled. None is taken out of the iterator
/// before there is room for it in the window, but for one that is looked at.
pub(super) struct Parts<I: Iterator<Item = Message>> {
    messages: Peekable<I>,
    window: Load,
    /// The parts that are not settled, the oldest first.
    unsettled: VecDeque<Load>,
}

/// So many messages, and so many bytes of them.
#[derive(Clone, Copy)]
struct Load {
    messages: usize,
    bytes: usize,
}

/// Into how many parts the window of a batch is divided.
const PARTS: usize = 8;

impl<I: Iterator<Item = Message>> Parts<I> {
    pub(super) fn new(messages: I, config: &RabbitMqConfig) -> Self {
        let window = Load { messages: config.confirm_window, bytes: config.confirm_window_bytes };
        Parts { messages: messages.peekable(), window, unsettled: VecDeque::new() }
    }

    /// The next one; empty if there is none, or no room for it.
    pub(super) fn next(&mut self) -> Arc<Vec<Message>> {
        let Parts { messages, window, unsettled } = self;
        let room = unsettled.iter().fold(*window, |room, part| Load {
            messages: room.messages.saturating_sub(part.messages),
            bytes: room.bytes.saturating_sub(part.bytes),
        });
        let (count, share) = (room.messages.min(window.messages.div_ceil(PARTS)), window.bytes.div_ceil(PARTS));
        let (mut part, mut bytes) = (Vec::new(), 0_usize);
        while part.len() < count
            && let Some(message) = messages.peek()
        {
            let all = bytes.saturating_add(message.bytes());
            // What is larger than the whole window is on its way alone.
            let fits = all <= room.bytes && (part.is_empty() || all <= share);
            let is_alone = part.is_empty() && unsettled.is_empty();
            if !(fits || is_alone) {
                break;
            }
            bytes = all;
            part.extend(messages.next());
        }
        if !part.is_empty() {
            unsettled.push_back(Load { messages: part.len(), bytes });
        }
        Arc::new(part)
    }

    /// The oldest one is.
    pub(super) fn settled(&mut self) {
        self.unsettled.pop_front();
    }

    /// Counts what was not taken, and drops it.
    pub(super) fn left(self) -> usize {
        self.messages.count()
    }
}

impl ChannelGuard {
    /// Sends these, all at once, but for those that cannot be. An error means that none was.
    pub(super) async fn send(
        &mut self,
        topology: &Mutex<Topology>,
        messages: &Arc<Vec<Message>>,
    ) -> Result<Sent, Error> {
        let generation = &self.generation;
        let address = |message: &Message| {
            let action = || message.action();
            if message.properties.headers().is_some() {
                generation.fits_header(&action(), &message.properties)?;
            }
            let key = match message.exchange.as_str() {
                "" => Cow::Owned(topology.lock().current_name(&message.routing_key)),
                _ => Cow::Borrowed(message.routing_key.as_str()),
            };
            let short = |name: &str| ShortString::try_new(name);
            let address = short(&message.exchange).and_then(|exchange| Ok((exchange, short(&key)?)));
            address.map_err(|error| operation(&generation.link, &action(), error))
        };
        let addressed: Vec<_> = messages.iter().map(address).collect();
        generation.unblocked().await?;
        if !generation.is_alive() {
            return Err(generation.was_cut());
        }
        self.begin();
        let generation = Arc::clone(&self.generation);
        let part = Arc::new(Part { channel: Arc::clone(&self.channel), messages: Arc::clone(messages), addressed });
        let mut sent = Sent { confirms: Vec::with_capacity(messages.len()), returned: Vec::new(), part, generation };
        for index in 0..messages.len() {
            sent.confirms.push(match &sent.part.addressed[index] {
                Ok(address) => {
                    let busy = sent.generation.link.busy(Work::Confirm);
                    let answer = Box::pin(Arc::clone(&sent.part).publish(index, address.clone()));
                    Confirm::Pending { answer, busy }
                }
                Err(error) => Confirm::Untaken(error.clone()),
            });
        }
        // Being polled for the first time queues a message's frames, so they leave in this order without waiting.
        sent.look();
        Ok(sent)
    }

    /// Waits for what becomes of the messages sent, without those sent after them. Once one has no answer the channel
    /// is unfit, and none of either is waited for any longer.
    pub(super) async fn settle(&mut self, flight: &mut Flight) -> Vec<Result<Published, Error>> {
        let Some(mut oldest) = flight.sent.pop_front() else { return Vec::new() };
        if flight.why.is_none()
            && let Err(trouble) = oldest.answered().await
        {
            flight.why = Some(flight.why_unanswered(&mut oldest, trouble));
        }
        oldest.look();
        flight.returned.append(&mut oldest.returned);
        // A return may have come with the confirm of a later one.
        for later in &mut flight.sent {
            later.look();
            flight.returned.append(&mut later.returned);
        }
        if flight.why.is_none() && flight.sent.is_empty() {
            self.done();
        }
        oldest.results(&mut flight.returned, flight.why.as_ref())
    }
}

/// What was sent on one channel and is not settled, the oldest first.
pub(super) struct Flight {
    sent: VecDeque<Sent>,
    /// The driver attaches returns to confirms in the order in which both happen to come, so that those of any may
    /// come with those of others. None comes after its own.
    returned: Vec<BasicReturnMessage>,
    /// Why the rest has no answer.
    why: Option<Source>,
}

impl From<Sent> for Flight {
    fn from(sent: Sent) -> Self {
        Flight { sent: [sent].into(), returned: Vec::new(), why: None }
    }
}

impl Flight {
    pub(super) fn push(&mut self, sent: Sent) {
        self.sent.push_back(sent);
    }

    /// Tells why there is no answer, and where the broker refused a message, which one that was.
    fn why_unanswered(&mut self, oldest: &mut Sent, trouble: Trouble) -> Source {
        let generation = Arc::clone(&oldest.generation);
        let refusal = match trouble {
            Trouble::Driver(error) if error.is_amqp_soft_error() => error,
            trouble => return Arc::new(trouble.into_error(&generation, "awaiting the confirm")),
        };
        let said = refusal.to_string();
        let source = Source::from(generation.config.redacted(refusal));
        let mut unanswered = Vec::new();
        for sent in std::iter::once(oldest).chain(&mut self.sent) {
            sent.look();
            let pairs = sent.confirms.iter_mut().zip(sent.part.messages.iter());
            unanswered.extend(pairs.filter(|(confirm, _)| confirm.is_unanswered()));
        }
        // More than one may be meant, and then it is not known which of them the broker took before it refused one.
        let mut meant = (0..unanswered.len()).filter(|index| unanswered[*index].1.is_meant_by(&said));
        let refused = match (meant.next(), meant.next(), unanswered.len()) {
            (Some(index), None, _) => index,
            (_, _, 1) => 0,
            _ => return source,
        };
        // The broker takes a channel's messages in their order, and none after one that it refuses.
        for (index, (confirm, message)) in unanswered.into_iter().enumerate().skip(refused) {
            let not_taken = if index == refused { "" } else { " (it was not taken)" };
            let (resource, action) = (Arc::clone(generation.link.name()), message.action() + not_taken);
            *confirm = Confirm::Untaken(Error::Operation { resource, action, source: Arc::clone(&source) });
        }
        source
    }

    /// Whether there were messages without an answer.
    pub(super) fn is_lost(&self) -> bool {
        self.why.is_some()
    }
}

/// Messages that were sent together, and what of their answers is there.
pub(super) struct Sent {
    generation: Arc<Generation>,
    part: Arc<Part>,
    confirms: Vec<Confirm>,
    /// What came with the confirms, whosever it is.
    returned: Vec<BasicReturnMessage>,
}

struct Part {
    channel: Arc<lapin::Channel>,
    messages: Arc<Vec<Message>>,
    /// To which exchange with which key, or why it cannot be sent.
    addressed: Vec<Result<(ShortString, ShortString), Error>>,
}

impl Part {
    async fn publish(
        self: Arc<Self>,
        index: usize,
        (exchange, key): (ShortString, ShortString),
    ) -> lapin::Result<Confirmation> {
        let message = &self.messages[index];
        let options = BasicPublishOptions { mandatory: message.mandatory, ..BasicPublishOptions::default() };
        let properties = message.properties.clone();
        self.channel.basic_publish(exchange, key, options, &message.payload, properties).await?.await
    }
}

impl Sent {
    /// Takes what answers there are.
    fn look(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        for confirm in &mut self.confirms {
            // Nobody is woken by it: a task that waits for one of them is not to run for each of the others.
            let _ = confirm.poll(&mut context, &mut self.returned);
        }
    }

    /// Waits until all are answered. The last one first: by then most others are.
    async fn answered(&mut self) -> Result<(), Trouble> {
        let mut unsent = None;
        for index in (0..self.confirms.len()).rev() {
            while let Confirm::Pending { .. } = self.confirms[index] {
                let pending = self.pending();
                let (confirm, returned) = (&mut self.confirms[index], &mut self.returned);
                let awaited = poll_fn(|cx| confirm.poll(cx, returned).map(Ok));
                let limit = self.generation.config.confirm_timeout;
                let late = self.generation.within(limit, "a publish", awaited).await;
                self.look();
                // One is late if it is as long after the one before it.
                if let Err(late) = late
                    && self.pending() == pending
                {
                    return Err(late);
                }
            }
            match &self.confirms[index] {
                Confirm::Failed(error) if error.is_amqp_soft_error() => return Err(Trouble::Driver(error.clone())),
                // The broker may have refused one before it, as they were being sent.
                Confirm::Failed(error) => unsent = Some(error.clone()),
                _ => {}
            }
        }
        unsent.map_or(Ok(()), |error| Err(Trouble::Driver(error)))
    }

    fn pending(&self) -> usize {
        self.confirms.iter().filter(|confirm| matches!(confirm, Confirm::Pending { .. })).count()
    }

    /// What became of each message. Takes the returns of them out of those that have come.
    fn results(self, returned: &mut Vec<BasicReturnMessage>, why: Option<&Source>) -> Vec<Result<Published, Error>> {
        let Part { messages, addressed, .. } = &*self.part;
        let answers = messages.iter().zip(self.confirms);
        let results = answers.map(|(message, confirm)| match (confirm, why) {
            (Confirm::Acked, _) => Ok(Published::Confirmed),
            (Confirm::Nacked, _) => Ok(Published::Nacked),
            (Confirm::Untaken(error), _) => Err(error),
            (_, None) => Err(self.generation.was_cut()),
            (_, Some(why)) => {
                let (resource, action) = (Arc::clone(self.generation.link.name()), message.action());
                Err(Error::OutcomeUnknown { resource, action, source: Arc::clone(why) })
            }
        });
        let mut results: Vec<_> = results.collect();
        returned.retain(|back| {
            let fits = |index: &usize| {
                let message = &messages[*index];
                message.mandatory
                    && matches!(results[*index], Ok(Published::Confirmed))
                    && matches!(&addressed[*index], Ok((to, key)) if (to, key) == (&back.exchange, &back.routing_key))
                    && back.data == message.payload
            };
            let exact = |index: &usize| messages[*index].properties == back.properties;
            let all = || (0..messages.len()).filter(fits);
            let whose = all().find(exact).or_else(|| all().next());
            if let Some(index) = whose {
                results[index] = Ok(Published::Returned { code: back.reply_code, reason: back.reply_text.to_string() });
            }
            whose.is_none()
        });
        results
    }
}

/// A publish whose answer is awaited, or there.
enum Confirm {
    Pending {
        answer: Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send>>,
        busy: Busy,
    },
    Acked,
    Nacked,
    /// It cannot be sent, or the broker did not take it.
    Untaken(Error),
    Failed(lapin::Error),
}

impl Confirm {
    fn is_unanswered(&self) -> bool {
        matches!(self, Confirm::Pending { .. } | Confirm::Failed(_))
    }

    fn poll(&mut self, cx: &mut Context<'_>, returned: &mut Vec<BasicReturnMessage>) -> Poll<()> {
        if let Confirm::Pending { answer, busy } = self {
            let answer = ready!(answer.as_mut().poll(cx));
            busy.end(answer.is_ok());
            *self = match answer {
                Ok(Confirmation::Nack(back)) => {
                    returned.extend(back);
                    Confirm::Nacked
                }
                Ok(Confirmation::Ack(back)) => {
                    returned.extend(back);
                    Confirm::Acked
                }
                // Confirms are always on.
                Ok(Confirmation::NotRequested) => Confirm::Failed(io::Error::from(io::ErrorKind::Unsupported).into()),
                Err(error) => Confirm::Failed(error),
            };
        }
        Poll::Ready(())
    }
}
