//! Exchanges, queues and bindings, as they are declared.

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use parking_lot::Mutex;

use crate::base::error::Error;
use crate::kinds::rabbitmq::channel::ChannelGuard;
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

    /// Sets further arguments, such as `x-max-length`.
    pub fn arguments(mut self, arguments: FieldTable) -> Self {
        self.arguments = arguments;
        self
    }
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
            Declaration::Exchange(exchange) => guard.declare_exchange(exchange).await.map(|()| None),
            Declaration::Queue(queue) => guard.declare_queue(queue).await.map(Some),
            Declaration::Binding(binding) => {
                let queue = topology.lock().current_name(&binding.queue);
                guard.bind(binding, &queue).await.map(|()| None)
            }
        }
    }
}
