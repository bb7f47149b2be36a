//! Messages, and their outcomes.

use std::fmt;

use lapin::BasicProperties;
use lapin::types::ShortString;

use crate::base::error::Error;
use crate::kinds::rabbitmq::frame::header_bytes;

/// A message to publish.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) payload: Vec<u8>,
    pub(super) properties: BasicProperties,
    pub(super) mandatory: bool,
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

    /// Replaces the properties. Persistence is one of them too (`with_delivery_mode(2)`).
    pub fn properties(mut self, properties: BasicProperties) -> Self {
        self.properties = properties;
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

    pub(super) fn action(&self) -> String {
        format!("publishing to {:?} with the key {:?}", self.exchange, self.routing_key)
    }
}

const TRANSIENT: u8 = 1;
const PERSISTENT: u8 = 2;

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
