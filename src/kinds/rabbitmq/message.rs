//! Messages, and their outcomes.

use std::fmt;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, ShortString};

use crate::base::error::Error;
use crate::kinds::rabbitmq::frame::header_bytes;

/// A message to publish.
///
/// ```
/// use std::time::Duration;
/// use resource_pool::rabbitmq::Message;
///
/// let order = Message::new("", "orders", r#"{"buy":100}"#)
///     .content_type("application/json")
///     .header("strategy", "momentum")
///     .expiration(Duration::from_secs(60));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) payload: Vec<u8>,
    pub(super) properties: BasicProperties,
    pub(super) mandatory: bool,
    /// The reason why it cannot be sent. `None` if it can.
    pub(super) unfit: Option<String>,
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
            unfit: None,
        }
    }

    /// Replaces the properties, and so everything that other setters have set. Persistence is one of them too
    /// (`with_delivery_mode(2)`).
    pub fn properties(mut self, properties: BasicProperties) -> Self {
        self.properties = properties;
        self.unfit = None;
        self
    }

    /// Sets a header. A name longer than 255 bytes is an error when the message is published.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<HeaderValue>) -> Self {
        let Some(name) = self.short("the name of a header", name.into()) else { return self };
        let mut headers = self.properties.headers().clone().unwrap_or_default();
        headers.insert(name, value.into().0);
        self.properties = self.properties.with_headers(headers);
        self
    }

    /// Sets the media type of the payload, such as `application/json`. By default there is none. More than 255 bytes
    /// are an error when the message is published.
    pub fn content_type(self, media_type: impl Into<String>) -> Self {
        self.with("the content type", media_type.into(), BasicProperties::with_content_type)
    }

    /// Sets how long the message may wait in a queue, in whole milliseconds. It expires after that. By default the queue
    /// decides.
    pub fn expiration(self, expiration: Duration) -> Self {
        self.with("the expiration", expiration.as_millis().to_string(), BasicProperties::with_expiration)
    }

    /// Sets the identifier by which an answer is known to belong to this message. By default there is none. More than
    /// 255 bytes are an error when the message is published.
    pub fn correlation(self, id: impl Into<String>) -> Self {
        self.with("the correlation", id.into(), BasicProperties::with_correlation_id)
    }

    /// Sets the queue to which an answer goes. By default there is none. More than 255 bytes are an error when the
    /// message is published.
    pub fn reply_to(self, queue: impl Into<String>) -> Self {
        self.with("the queue for an answer", queue.into(), BasicProperties::with_reply_to)
    }

    /// Sets the message's own identifier, by which a consumer knows a duplicate. By default there is none. More than 255
    /// bytes are an error when the message is published.
    pub fn id(self, id: impl Into<String>) -> Self {
        self.with("the identifier", id.into(), BasicProperties::with_message_id)
    }

    /// Sets the priority in a queue with [priorities](crate::rabbitmq::Queue::priority). Defaults to 0, the lowest.
    pub fn priority(mut self, priority: u8) -> Self {
        self.properties = self.properties.with_priority(priority);
        self
    }

    /// The message does not outlive a restart of the broker. It is several times faster on durable queues.
    pub fn transient(mut self) -> Self {
        self.properties = self.properties.with_delivery_mode(TRANSIENT);
        self
    }

    /// The message may reach no queue at all, and is not returned then.
    pub fn optional(mut self) -> Self {
        self.mandatory = false;
        self
    }

    fn with(mut self, what: &str, text: String, set: fn(BasicProperties, ShortString) -> BasicProperties) -> Self {
        if let Some(text) = self.short(what, text) {
            self.properties = set(self.properties, text);
        }
        self
    }

    /// A short string of AMQP. A text that is too long makes the message unfit.
    fn short(&mut self, what: &str, text: String) -> Option<ShortString> {
        let bytes = text.len();
        let short = ShortString::try_new(text).ok();
        if short.is_none() {
            self.unfit = Some(format!("{what} has {bytes} bytes, and may have 255"));
        }
        short
    }

    /// Whether the broker's refusal names a value of this message: its exchange, user, expiration or size.
    pub(super) fn is_meant_by(&self, refusal: &str) -> bool {
        let names = |what: &str, value: &str| !value.is_empty() && refusal.contains(&format!("{what} '{value}'"));
        let property =
            |what, value: &Option<ShortString>| value.as_ref().is_some_and(|value| names(what, value.as_str()));
        names("exchange", &self.exchange)
            || property("user_id property set to", self.properties.user_id())
            || property("invalid expiration", self.properties.expiration())
            || refusal.contains(&format!("message size {} is", self.payload.len()))
    }

    /// How many bytes the message takes in all.
    pub(super) fn bytes(&self) -> usize {
        let headers = self.properties.headers().as_ref().map_or(0, |_| header_bytes(&self.properties));
        headers.saturating_add(self.exchange.len() + self.routing_key.len() + self.payload.len())
    }

    /// Where it goes, by OpenTelemetry's rule: exchange and key, or the one of them that there is.
    pub(super) fn destination(&self) -> String {
        match (&*self.exchange, &*self.routing_key) {
            ("", key) => key.to_owned(),
            (exchange, "") => exchange.to_owned(),
            (exchange, key) => format!("{exchange}:{key}"),
        }
    }

    pub(super) fn action(&self) -> String {
        format!("publishing to {:?} with the key {:?}", self.exchange, self.routing_key)
    }
}

const TRANSIENT: u8 = 1;
const PERSISTENT: u8 = 2;

/// The value of a header: a text, a number, or whether something is so.
#[derive(Debug, Clone, PartialEq)]
pub struct HeaderValue(AMQPValue);

impl From<&str> for HeaderValue {
    fn from(text: &str) -> Self {
        HeaderValue(AMQPValue::LongString(text.into()))
    }
}

impl From<String> for HeaderValue {
    fn from(text: String) -> Self {
        HeaderValue(AMQPValue::LongString(text.into()))
    }
}

impl From<bool> for HeaderValue {
    fn from(is_so: bool) -> Self {
        HeaderValue(AMQPValue::Boolean(is_so))
    }
}

impl From<i32> for HeaderValue {
    fn from(number: i32) -> Self {
        HeaderValue(AMQPValue::LongInt(number))
    }
}

impl From<i64> for HeaderValue {
    fn from(number: i64) -> Self {
        HeaderValue(AMQPValue::LongLongInt(number))
    }
}

impl From<u32> for HeaderValue {
    fn from(number: u32) -> Self {
        HeaderValue(AMQPValue::LongLongInt(number.into()))
    }
}

impl From<f64> for HeaderValue {
    fn from(number: f64) -> Self {
        HeaderValue(AMQPValue::Double(number))
    }
}

/// Any other value of AMQP.
impl From<AMQPValue> for HeaderValue {
    fn from(value: AMQPValue) -> Self {
        HeaderValue(value)
    }
}

/// The outcome of a published message.
#[must_use = "a message that was returned or refused has reached nobody"]
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Published {
    /// The broker has it: in every queue it was routed to, and on disk if queue and message are durable.
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

/// The outcome of each message of a batch, in their order.
#[must_use = "messages that were returned or refused have reached nobody"]
#[derive(Debug, Clone)]
pub struct Batch {
    pub(super) results: Vec<Result<Published, Error>>,
}

impl Batch {
    /// How many messages the broker has.
    pub fn confirmed(&self) -> usize {
        self.results.iter().flatten().filter(|published| published.is_confirmed()).count()
    }

    /// Whether the broker has all of them.
    pub fn all_confirmed(&self) -> bool {
        self.confirmed() == self.results.len()
    }

    /// How many messages have an unknown outcome.
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

/// The number of confirmed messages, and the first error if there is one.
impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} confirmed", self.confirmed(), self.results.len())?;
        match self.results.iter().find_map(|result| result.as_ref().err()) {
            Some(error) => write!(f, "; {error}"),
            None => Ok(()),
        }
    }
}
