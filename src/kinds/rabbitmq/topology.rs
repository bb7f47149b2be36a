//! Exchanges, queues and bindings, and the memory of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::FieldTable;
use lapin::{ErrorKind, ExchangeKind};
use parking_lot::Mutex;

use crate::base::error::Error;
use crate::kinds::rabbitmq::channel::ChannelGuard;
use crate::kinds::rabbitmq::stream::is_stream;
use crate::lifecycle::link::Link;

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

    /// Queues get the messages whose key is theirs.
    pub fn direct(name: impl Into<String>) -> Self {
        Exchange::new(name, ExchangeKind::Direct)
    }

    /// Queues get the messages whose key matches their pattern, as in `stock.*.day` or `stock.#`.
    pub fn topic(name: impl Into<String>) -> Self {
        Exchange::new(name, ExchangeKind::Topic)
    }

    /// Gone after a restart of the broker.
    pub fn transient(mut self) -> Self {
        self.options.durable = false;
        self
    }

    /// Gone with its last binding.
    pub fn auto_delete(mut self) -> Self {
        self.options.auto_delete = true;
        self
    }

    /// Only checks that it exists; not replayed.
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

    /// A queue that the broker names, for this connection alone, gone with its last consumer.
    pub fn temporary() -> Self {
        Queue::new("").transient().exclusive().auto_delete()
    }

    /// Gone after a restart of the broker.
    pub fn transient(mut self) -> Self {
        self.options.durable = false;
        self
    }

    /// For this connection alone, and gone with it.
    pub fn exclusive(mut self) -> Self {
        self.options.exclusive = true;
        self
    }

    /// Gone with its last consumer. Then it is not declared again either.
    pub fn auto_delete(mut self) -> Self {
        self.options.auto_delete = true;
        self
    }

    /// Only checks that it exists; not replayed.
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

#[derive(Clone)]
pub(super) struct Binding {
    pub(super) queue: String,
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) arguments: FieldTable,
}

impl Binding {
    fn is_same(&self, other: &Binding) -> bool {
        (&self.queue, &self.exchange, &self.routing_key, &self.arguments)
            == (&other.queue, &other.exchange, &other.routing_key, &other.arguments)
    }
}

/// What is declared again after a reconnect.
#[derive(Clone, Default)]
pub(super) struct Topology {
    pub(super) exchanges: BTreeMap<String, Exchange>,
    /// By the name that the caller knows.
    pub(super) queues: BTreeMap<String, KnownQueue>,
    pub(super) bindings: Vec<Binding>,
}

#[derive(Clone)]
pub(super) struct KnownQueue {
    pub(super) spec: Queue,
    /// Its present name.
    pub(super) name: String,
    pub(super) consumers: usize,
}

impl Topology {
    /// The present name of a queue that the broker named; other names are answered as they are.
    pub(super) fn current_name(&self, queue: &str) -> String {
        self.queues.get(queue).map_or_else(|| queue.to_owned(), |queue| queue.name.clone())
    }

    /// Whether a queue is a stream, if it was declared here and that says so.
    pub(super) fn is_stream(&self, queue: &str) -> Option<bool> {
        is_stream(&self.queues.get(queue)?.spec.arguments)
    }

    pub(super) fn len(&self) -> usize {
        self.exchanges.len() + self.queues.len() + self.bindings.len()
    }

    pub(super) fn exchange(&mut self, exchange: Exchange) {
        self.exchanges.insert(exchange.name.clone(), exchange);
    }

    pub(super) fn queue(&mut self, spec: Queue, name: &str) {
        match self.queues.get_mut(name) {
            Some(known) => known.spec = spec,
            None => drop(self.queues.insert(name.to_owned(), KnownQueue { spec, name: name.to_owned(), consumers: 0 })),
        }
    }

    pub(super) fn binding(&mut self, binding: Binding) {
        if !self.bindings.iter().any(|known| known.is_same(&binding)) {
            self.bindings.push(binding);
        }
    }

    pub(super) fn rename(&mut self, known: &str, name: &str) {
        if let Some(queue) = self.queues.get_mut(known) {
            queue.name = name.to_owned();
        }
    }

    pub(super) fn forget_queue(&mut self, queue: &str) {
        self.queues.remove(queue);
        self.forget_bindings(|binding| binding.queue == queue);
    }

    pub(super) fn forget_exchange(&mut self, exchange: &str) {
        self.exchanges.remove(exchange);
        self.forget_bindings(|binding| binding.exchange == exchange);
    }

    /// With its last binding an auto-delete exchange is gone too.
    fn forget_bindings(&mut self, gone: impl Fn(&Binding) -> bool) {
        let (gone, left): (Vec<_>, Vec<_>) = std::mem::take(&mut self.bindings).into_iter().partition(gone);
        self.bindings = left;
        for Binding { exchange, .. } in gone {
            let bound = self.bindings.iter().any(|binding| binding.exchange == exchange);
            if !bound && self.exchanges.get(&exchange).is_some_and(|exchange| exchange.options.auto_delete) {
                self.exchanges.remove(&exchange);
            }
        }
    }

    pub(super) fn consumer_came(&mut self, queue: &str) {
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.consumers += 1;
        }
    }

    /// With its last consumer an auto-delete queue is gone.
    pub(super) fn consumer_went(&mut self, queue: &str) {
        let Some(known) = self.queues.get_mut(queue) else { return };
        known.consumers = known.consumers.saturating_sub(1);
        if known.consumers == 0 && known.spec.options.auto_delete {
            self.forget_queue(queue);
        }
    }
}

/// What does no harm twice, and is declared again after a reconnect.
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

/// On how many channels things are declared again side by side.
pub(super) const DECLARING: usize = 32;

/// How far declaring everything again has come.
pub(super) struct Replay<'a> {
    link: &'a Link,
    all: usize,
    done: AtomicUsize,
    logged: Mutex<Instant>,
}

impl<'a> Replay<'a> {
    pub(super) fn new(link: &'a Link, all: usize) -> Self {
        let replay = Replay { link, all, done: AtomicUsize::new(0), logged: Mutex::new(Instant::now()) };
        replay.tell(0);
        replay
    }

    pub(super) fn one_more(&self) {
        self.tell(self.done.fetch_add(1, Ordering::Relaxed) + 1);
    }

    fn tell(&self, done: usize) {
        if self.all == 0 {
            return;
        }
        let far = format!("{done} of {} declared", self.all);
        let mut logged = self.logged.lock();
        if logged.elapsed() >= LOG_EVERY {
            *logged = Instant::now();
            tracing::info!(resource = %self.link.name(), "{far}");
        }
        self.link.progress(far);
    }
}

/// How often the log says how far it has come.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// How often, and after what pause, an exclusive queue or consumer is tried again: the broker may
/// not have noticed yet that the connection which had it is gone.
pub(super) const LOCKED_TRIES: usize = 15;
pub(super) const LOCKED_PAUSE: Duration = Duration::from_millis(100);

/// Whether somebody else has it for himself.
pub(super) fn is_locked(error: &Error) -> bool {
    let Error::Operation { source, .. } = error else { return false };
    matches!(
        source.downcast_ref::<lapin::Error>().map(lapin::Error::kind),
        Some(ErrorKind::ProtocolError(error))
            if matches!(error.kind(), AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED | AMQPSoftError::ACCESSREFUSED))
    )
}
