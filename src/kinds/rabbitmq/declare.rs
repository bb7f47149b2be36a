//! Exchanges, queues and bindings, as they are declared.

use std::time::Duration;

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use parking_lot::Mutex;

use crate::base::error::Error;
use crate::kinds::rabbitmq::channel::ChannelGuard;
use crate::kinds::rabbitmq::delivery::RETRY_SUFFIX;
use crate::kinds::rabbitmq::errors::with_remedy;
use crate::kinds::rabbitmq::topology::Topology;

/// An exchange to declare. Durable unless made [transient](Exchange::transient).
#[derive(Debug, Clone, PartialEq)]
pub struct Exchange {
    pub(super) name: String,
    pub(super) kind: ExchangeKind,
    pub(super) options: ExchangeDeclareOptions,
    pub(super) arguments: FieldTable,
}

impl Exchange {
    /// An exchange of any kind.
    pub fn new(name: impl Into<String>, kind: ExchangeKind) -> Self {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        Exchange { name: name.into(), kind, options, arguments: FieldTable::default() }
    }

    /// Every bound queue gets every message.
    pub fn fanout(name: impl Into<String>) -> Self {
        Exchange::new(name, ExchangeKind::Fanout)
    }

    /// A queue gets the messages whose key is that of its binding.
    pub fn direct(name: impl Into<String>) -> Self {
        Exchange::new(name, ExchangeKind::Direct)
    }

    /// A queue gets the messages whose key matches the pattern of its binding, as in `stock.*.day` or `stock.#`.
    pub fn topic(name: impl Into<String>) -> Self {
        Exchange::new(name, ExchangeKind::Topic)
    }

    /// The exchange is gone after a restart of the broker.
    pub fn transient(mut self) -> Self {
        self.options.durable = false;
        self
    }

    /// The exchange is gone with its last binding.
    pub fn auto_delete(mut self) -> Self {
        self.options.auto_delete = true;
        self
    }

    /// The declaration only checks that the exchange exists, and is not replayed.
    pub fn passive(mut self) -> Self {
        self.options.passive = true;
        self
    }

    /// Sets further arguments, such as `alternate-exchange`.
    pub fn arguments(mut self, arguments: FieldTable) -> Self {
        self.arguments = arguments;
        self
    }
}

/// A queue to declare. Durable unless made [transient](Queue::transient).
///
/// A queue that exists keeps its properties. Declaring it with others is an error that names the first difference.
///
/// ```
/// use std::time::Duration;
/// use resource_pool::rabbitmq::Queue;
///
/// let dead = Queue::new("orders.dead");
/// let orders = Queue::new("orders").quorum().dead_letter("", Some("orders.dead")).ttl(Duration::from_secs(3600));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Queue {
    pub(super) name: String,
    pub(super) options: QueueDeclareOptions,
    pub(super) arguments: FieldTable,
}

impl Queue {
    /// A queue of this name.
    pub fn new(name: impl Into<String>) -> Self {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        Queue { name: name.into(), options, arguments: FieldTable::default() }
    }

    /// A queue that the broker names. It belongs to this connection alone, and is gone with its last consumer.
    pub fn temporary() -> Self {
        Queue::new("").transient().exclusive().auto_delete()
    }

    /// The queue is gone after a restart of the broker.
    pub fn transient(mut self) -> Self {
        self.options.durable = false;
        self
    }

    /// The queue belongs to this connection alone, and is gone with it.
    pub fn exclusive(mut self) -> Self {
        self.options.exclusive = true;
        self
    }

    /// The queue is gone with its last consumer, and is not declared again after that.
    pub fn auto_delete(mut self) -> Self {
        self.options.auto_delete = true;
        self
    }

    /// The declaration only checks that the queue exists, and is not replayed.
    pub fn passive(mut self) -> Self {
        self.options.passive = true;
        self
    }

    /// Sends the messages that are rejected, expire or are too many to this exchange. The exchange `""` routes to the
    /// queue named by the key. The messages keep their own key if there is none here. By default they are discarded.
    ///
    /// The broker also discards the messages that reach no queue there.
    pub fn dead_letter(self, exchange: impl Into<String>, routing_key: Option<&str>) -> Self {
        let queue = self.argument(DEAD_LETTER_EXCHANGE, text(exchange));
        match routing_key {
            Some(key) => queue.argument(DEAD_LETTER_KEY, text(key)),
            None => queue,
        }
    }

    /// Sets how long a message may wait in the queue, in whole milliseconds. It expires after that. By default it waits
    /// for ever.
    pub fn ttl(self, ttl: Duration) -> Self {
        self.argument("x-message-ttl", number(ttl.as_millis()))
    }

    /// Sets how many messages may wait in the queue. The oldest ones make room for the new ones. By default there is no
    /// limit.
    pub fn max_length(self, messages: u64) -> Self {
        self.argument("x-max-length", number(messages))
    }

    /// Replicates the queue on several nodes. It then counts how often it has delivered each message. A quorum queue is
    /// neither transient nor exclusive, and has no priorities.
    pub fn quorum(self) -> Self {
        self.argument(QUEUE_TYPE, text("quorum"))
    }

    /// Sets the highest [priority](crate::rabbitmq::Message::priority) of messages, at least 1. Messages with a higher
    /// priority are delivered first. Each level costs the broker memory, so a few are enough. By default there are no
    /// priorities.
    pub fn priority(self, highest: u8) -> Self {
        self.argument("x-max-priority", number(highest))
    }

    /// Sets further arguments, such as `x-single-active-consumer`, and leaves the others as they are.
    pub fn arguments(self, arguments: FieldTable) -> Self {
        let further = arguments.inner().iter();
        further.fold(self, |queue, (name, value)| queue.argument(name.as_str(), value.clone()))
    }

    /// The queue in which the failed jobs of this queue wait for so long before they go back to it. A quorum queue hands
    /// them back with confirms, and so loses none.
    pub(super) fn retry(queue: &str, pause: Duration, is_quorum: bool) -> Self {
        let retry = Queue::new(queue.to_owned() + RETRY_SUFFIX).ttl(pause).dead_letter("", Some(queue));
        if !is_quorum {
            return retry;
        }
        retry
            .quorum()
            .argument("x-overflow", text("reject-publish"))
            .argument(DEAD_LETTER_STRATEGY, text("at-least-once"))
    }

    pub(super) fn is_quorum(&self) -> bool {
        self.arguments.inner().get(QUEUE_TYPE) == Some(&text("quorum"))
    }

    fn argument(mut self, name: &str, value: AMQPValue) -> Self {
        self.arguments.insert(name.into(), value);
        self
    }

    /// The exchange and the key to which its rejected messages go. `None` if its arguments name none.
    pub(super) fn dead_letters(&self) -> Option<(String, Option<String>)> {
        let text = |name| match self.arguments.inner().get(name)? {
            AMQPValue::LongString(text) => Some(text.to_string()),
            _ => None,
        };
        Some((text(DEAD_LETTER_EXCHANGE)?, text(DEAD_LETTER_KEY)))
    }
}

const DEAD_LETTER_EXCHANGE: &str = "x-dead-letter-exchange";
const DEAD_LETTER_KEY: &str = "x-dead-letter-routing-key";
const DEAD_LETTER_STRATEGY: &str = "x-dead-letter-strategy";
const QUEUE_TYPE: &str = "x-queue-type";

fn text(text: impl Into<String>) -> AMQPValue {
    AMQPValue::LongString(text.into().into())
}

/// A number as an argument. The broker refuses one that is too large.
fn number(number: impl TryInto<i64>) -> AMQPValue {
    AMQPValue::LongLongInt(number.try_into().unwrap_or(i64::MAX))
}

/// A queue as the broker declared it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredQueue {
    pub(super) name: String,
    pub(super) messages: u32,
    pub(super) consumers: u32,
}

impl DeclaredQueue {
    /// The name by which the verbs know it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many messages were ready in it.
    pub fn messages(&self) -> u32 {
        self.messages
    }

    /// How many consumers it had.
    pub fn consumers(&self) -> u32 {
        self.consumers
    }
}

#[derive(Clone, PartialEq)]
pub(super) struct Binding {
    pub(super) queue: String,
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) arguments: FieldTable,
}

/// A declaration. It does no harm twice, and is made again after a reconnect.
pub(super) enum Declaration<'a> {
    Exchange(&'a Exchange),
    Queue(&'a Queue),
    Binding(&'a Binding),
}

impl Declaration<'_> {
    /// Declares it on this channel. A queue is bound by its present name.
    pub(super) async fn make(
        &self,
        guard: &mut ChannelGuard,
        topology: &Mutex<Topology>,
    ) -> Result<Option<lapin::Queue>, Error> {
        match self {
            Declaration::Exchange(exchange) => {
                guard.declare_exchange(exchange).await.map(|()| None).map_err(with_remedy)
            }
            Declaration::Queue(queue) => guard.declare_queue(queue).await.map(Some).map_err(with_remedy),
            Declaration::Binding(binding) => {
                let queue = topology.lock().current_name(&binding.queue);
                guard.bind(binding, &queue).await.map(|()| None)
            }
        }
    }
}
