//! Messages, and what becomes of them.

use std::borrow::Cow;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Confirmation};

use super::Inner;
use super::connection::{ChannelGuard, Trouble, short};
use crate::error::{Error, Source};
use crate::resource::{Busy, Work};

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

impl ChannelGuard {
    /// Publishes these, all unconfirmed at once, and waits for what becomes of each.
    ///
    /// An error means that none was sent.
    pub(super) async fn publish(
        &mut self,
        inner: &Inner,
        messages: &[Message],
    ) -> Result<Vec<Result<Published, Error>>, Error> {
        let generation = Arc::clone(&self.generation);
        let link = &generation.link;
        let mut addressed = Vec::with_capacity(messages.len());
        for message in messages {
            let action = message.action();
            let key = match message.exchange.as_str() {
                "" => Cow::Owned(inner.current_name(&message.routing_key)),
                _ => Cow::Borrowed(message.routing_key.as_str()),
            };
            addressed.push((short(link, &action, &message.exchange)?, short(link, &action, &key)?));
        }
        generation.unblocked().await?;
        if !generation.is_alive() {
            return Err(generation.was_cut());
        }
        self.fit = false;
        let mut sent = Vec::with_capacity(messages.len());
        for (message, (exchange, key)) in messages.iter().zip(addressed.clone()) {
            let channel = &self.channel;
            let confirm = async move {
                let options = BasicPublishOptions { mandatory: message.mandatory, ..BasicPublishOptions::default() };
                channel.basic_publish(exchange, key, options, &message.payload, message.properties.clone()).await?.await
            };
            let mut confirm = Confirm::Pending { answer: Box::pin(confirm), busy: link.busy(Work::Confirm) };
            // The first poll queues its frames, so they leave in this order without waiting.
            poll_fn(|cx| {
                confirm.advance(cx);
                Poll::Ready(())
            })
            .await;
            sent.push(confirm);
        }
        let mut trouble = None;
        for confirm in &mut sent {
            let awaited = poll_fn(|cx| confirm.poll(cx));
            let result = generation.within(generation.config.confirm_timeout, "a publish", awaited).await;
            if let Err(late) = result {
                trouble = Some(late);
                break;
            }
        }
        let why = trouble.map(|trouble| self.why_unknown(trouble));
        for confirm in &mut sent {
            // What was answered meanwhile is known.
            confirm.advance(&mut Context::from_waker(Waker::noop()));
        }
        self.fit = why.is_none();
        let single = messages.len() == 1;
        let answers = sent.into_iter().map(Confirm::into_answer).collect();
        Ok(attribute(messages, &addressed, answers, |message| match &why {
            Some(Unknown::Refused(source)) if single => Error::Operation {
                resource: Arc::clone(link.name()),
                action: message.action(),
                source: Arc::clone(source),
            },
            Some(Unknown::Refused(source) | Unknown::NoAnswer(source)) => Error::OutcomeUnknown {
                resource: Arc::clone(link.name()),
                action: message.action(),
                source: Arc::clone(source),
            },
            None => generation.was_cut(),
        }))
    }

    fn why_unknown(&self, trouble: Trouble) -> Unknown {
        let refused = matches!(&trouble, Trouble::Driver(error) if error.is_amqp_error()) && self.generation.is_alive();
        let source: Source = match trouble {
            Trouble::Driver(error) if refused => Source::from(self.generation.config.redacted(error)),
            trouble => Arc::new(trouble.into_error(&self.generation, "awaiting the confirm")),
        };
        if refused { Unknown::Refused(source) } else { Unknown::NoAnswer(source) }
    }
}

/// Why there is no confirm.
enum Unknown {
    /// The broker closed the channel over a message.
    Refused(Source),
    NoAnswer(Source),
}

/// A publish whose answer is awaited, or there.
enum Confirm<'a> {
    Pending { answer: Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send + 'a>>, busy: Busy },
    Done(Box<lapin::Result<Confirmation>>),
}

impl Confirm<'_> {
    fn advance(&mut self, cx: &mut Context<'_>) {
        if let Confirm::Pending { answer, busy } = self
            && let Poll::Ready(answer) = answer.as_mut().poll(cx)
        {
            busy.end(answer.is_ok());
            *self = Confirm::Done(Box::new(answer));
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<lapin::Result<()>> {
        self.advance(cx);
        match self {
            Confirm::Pending { .. } => Poll::Pending,
            Confirm::Done(answer) => Poll::Ready(answer.as_ref().as_ref().map(drop).map_err(Clone::clone)),
        }
    }

    fn into_answer(self) -> Option<Confirmation> {
        match self {
            Confirm::Done(answer) => answer.ok(),
            Confirm::Pending { .. } => None,
        }
    }
}

/// Tells whose each returned message is. The driver attaches returns to confirms in the order in
/// which both happen to come, which is right only where one message is unconfirmed at a time.
fn attribute(
    messages: &[Message],
    addressed: &[(ShortString, ShortString)],
    answers: Vec<Option<Confirmation>>,
    unknown: impl Fn(&Message) -> Error,
) -> Vec<Result<Published, Error>> {
    let mut returned = Vec::new();
    let mut results = Vec::with_capacity(messages.len());
    for (message, answer) in messages.iter().zip(answers) {
        results.push(match answer {
            Some(Confirmation::Nack(back)) => {
                returned.extend(back);
                Ok(Published::Nacked)
            }
            Some(Confirmation::Ack(back)) => {
                returned.extend(back);
                Ok(Published::Confirmed)
            }
            // Confirms are always on.
            Some(Confirmation::NotRequested) | None => Err(unknown(message)),
        });
    }
    for back in returned {
        let fits = |index: &usize| {
            let message = &messages[*index];
            message.mandatory
                && matches!(results[*index], Ok(Published::Confirmed))
                && (&back.exchange, &back.routing_key) == (&addressed[*index].0, &addressed[*index].1)
                && back.data == message.payload
        };
        let exact = |index: &usize| messages[*index].properties == back.properties;
        let all = || (0..messages.len()).filter(fits);
        if let Some(index) = all().find(exact).or_else(|| all().next()) {
            results[index] = Ok(Published::Returned { code: back.reply_code, reason: back.reply_text.to_string() });
        }
    }
    results
}
