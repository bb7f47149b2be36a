//! The record of all declarations, which a reconnect makes again.

use std::collections::BTreeMap;

use crate::kinds::rabbitmq::declare::{Binding, Exchange, Queue};
use crate::kinds::rabbitmq::stream::is_stream;

/// Everything that is declared again after a reconnect.
#[derive(Clone, Default)]
pub(super) struct Topology {
    pub(super) exchanges: BTreeMap<String, Exchange>,
    /// The queues, by the name that the caller knows.
    pub(super) queues: BTreeMap<String, KnownQueue>,
    pub(super) bindings: Vec<Binding>,
}

#[derive(Clone)]
pub(super) struct KnownQueue {
    pub(super) spec: Queue,
    /// The present name, which differs from the caller's if the broker has named the queue again.
    pub(super) name: String,
    consumers: usize,
}

impl Topology {
    /// The present name of a queue that the broker named; other names are answered as they are.
    pub(super) fn current_name(&self, queue: &str) -> String {
        self.queues.get(queue).map_or_else(|| queue.to_owned(), |queue| queue.name.clone())
    }

    /// The queue as it was declared here. `None` if it was not.
    pub(super) fn spec(&self, queue: &str) -> Option<Queue> {
        Some(self.queues.get(queue)?.spec.clone())
    }

    /// Whether a queue is a stream. `None` if it was not declared here, or its declaration does not say.
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
        if !self.bindings.contains(&binding) {
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

    /// Forgets these bindings. An auto-delete exchange is forgotten with its last binding.
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

    /// Counts a consumer that has ended. An auto-delete queue is forgotten with its last consumer.
    pub(super) fn consumer_went(&mut self, queue: &str) {
        let Some(known) = self.queues.get_mut(queue) else { return };
        known.consumers = known.consumers.saturating_sub(1);
        if known.consumers == 0 && known.spec.options.auto_delete {
            self.forget_queue(queue);
        }
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldTable;

    use super::Topology;
    use crate::kinds::rabbitmq::declare::{Binding, Exchange, Queue};

    fn binding(queue: &str, exchange: &str) -> Binding {
        let (queue, exchange) = (queue.to_owned(), exchange.to_owned());
        Binding { queue, exchange, routing_key: String::new(), arguments: FieldTable::default() }
    }

    fn topology() -> Topology {
        let mut topology = Topology::default();
        topology.exchange(Exchange::fanout("kept"));
        topology.exchange(Exchange::fanout("auto").auto_delete());
        topology.queue(Queue::new("a"), "a");
        topology.queue(Queue::temporary(), "amq.gen-1");
        for (queue, exchange) in [("a", "kept"), ("a", "auto"), ("amq.gen-1", "auto"), ("a", "auto")] {
            topology.binding(binding(queue, exchange));
        }
        topology
    }

    #[test]
    fn the_same_is_remembered_once() {
        let mut topology = topology();
        assert_eq!(topology.len(), 7);
        topology.queue(Queue::new("a").transient(), "a");
        assert_eq!((topology.len(), &topology.queues["a"].spec), (7, &Queue::new("a").transient()));
    }

    #[test]
    fn a_queue_that_the_broker_named_is_known_by_its_first_name() {
        let mut topology = topology();
        topology.rename("amq.gen-1", "amq.gen-2");
        assert_eq!(topology.current_name("amq.gen-1"), "amq.gen-2");
        assert_eq!(topology.current_name("other"), "other");
    }

    #[test]
    fn an_exchange_that_deletes_itself_is_forgotten_with_its_last_binding() {
        let mut topology = topology();
        topology.forget_queue("a");
        assert!(topology.exchanges.contains_key("auto"));
        topology.forget_queue("amq.gen-1");
        assert_eq!(topology.exchanges.keys().collect::<Vec<_>>(), ["kept"]);
        assert_eq!(topology.len(), 1);
    }

    #[test]
    fn a_queue_that_deletes_itself_is_forgotten_with_its_last_consumer() {
        let mut topology = topology();
        for queue in ["amq.gen-1", "amq.gen-1", "a"] {
            topology.consumer_came(queue);
        }
        topology.consumer_went("a");
        topology.consumer_went("amq.gen-1");
        assert_eq!(topology.queues.len(), 2);
        topology.consumer_went("amq.gen-1");
        assert_eq!(topology.queues.keys().collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn an_exchange_is_forgotten_with_its_bindings() {
        let mut topology = topology();
        topology.forget_exchange("auto");
        assert!(topology.bindings == [binding("a", "kept")]);
    }
}
