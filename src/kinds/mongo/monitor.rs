//! The state of the driver's servers: which of them answered their last check, and whether they can be used.
//!
//! The driver calls `ServerMonitor::see` for each of its monitoring events. `MongoResource` waits here until a server
//! answers, or until none does. The users' client has a monitor with a `Link`, which reports a loss to the pool. The
//! monitor of the probe has no `Link`.
//!
//! The lock of `seen` is the only one. It is released before waiters are notified and before the pool is told of a
//! loss, and nothing is awaited under it. Only `unfit` may run user code under it, namely the predicate of the user's
//! selection criteria. `generation` is a number of its own: its order guards no other memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use mongodb::error::Error as DriverError;
use mongodb::event::sdam::{SdamEvent, TopologyDescription};
use mongodb::options::SelectionCriteria;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::base::error::Worded;
use crate::base::sync::until;
use crate::kinds::mongo::errors::{is_alien, is_own, words};
use crate::lifecycle::link::Link;

pub(super) struct ServerMonitor {
    /// The pool that is told of a loss. `None` if nobody is told.
    link: Option<Link>,
    /// The generation that a loss is reported for.
    generation: AtomicU64,
    /// The replica set that the servers must belong to. `None` if the configuration names none.
    set: Option<String>,
    seen: Mutex<ServersSeen>,
    changed: Notify,
}

#[derive(Default)]
struct ServersSeen {
    servers: BTreeMap<String, Heartbeat>,
    /// The servers that the driver dropped because they belong to another replica set or to none, each with its set.
    strangers: BTreeMap<String, Option<String>>,
    topology: Option<TopologyDescription>,
}

enum Heartbeat {
    Unknown,
    Up,
    Down(DriverError),
}

/// The reason why no server can be used.
pub(super) enum Gone {
    /// No server answers. This is the error of one of them.
    Down(DriverError),
    /// The servers that answer do not belong to the replica set, as the text says. `true` if no server is down and each
    /// one names another set, so that no retry mends it.
    Strangers(String, bool),
}

impl ServerMonitor {
    pub(super) fn new(link: Option<Link>, set: Option<String>) -> Self {
        ServerMonitor { link, generation: AtomicU64::new(0), set, seen: Mutex::default(), changed: Notify::new() }
    }

    pub(super) fn see(&self, event: &SdamEvent) {
        let mut seen = self.seen.lock();
        match event {
            SdamEvent::ServerOpening(event) => {
                seen.servers.entry(event.address.to_string()).or_insert(Heartbeat::Unknown);
            }
            SdamEvent::ServerClosed(event) => {
                seen.servers.remove(&event.address.to_string());
            }
            SdamEvent::ServerHeartbeatSucceeded(event) => {
                let (address, set) = (event.server_address.to_string(), event.reply.get_str("setName").ok());
                // A server that has no set yet may be about to get one.
                let waits_for_its_set = event.reply.get_bool("isreplicaset").unwrap_or(false);
                if self.set.is_none() || self.set.as_deref() == set || waits_for_its_set {
                    seen.strangers.remove(&address);
                    seen.servers.insert(address, Heartbeat::Up);
                } else {
                    seen.servers.remove(&address);
                    seen.strangers.insert(address, set.map(str::to_owned));
                }
            }
            SdamEvent::ServerHeartbeatFailed(event) => {
                seen.servers.insert(event.server_address.to_string(), Heartbeat::Down(event.failure.clone()));
            }
            SdamEvent::TopologyDescriptionChanged(event) => seen.topology = Some(event.new_description.clone()),
            _ => return,
        }
        let lost = down(&seen).filter(|error| !is_own(error));
        drop(seen);
        self.changed.notify_waiters();
        if let (Some(link), Some(error)) = (&self.link, lost) {
            link.lost(self.generation.load(Ordering::SeqCst), Worded::new(words(&error), error));
        }
    }

    /// Reports each loss from now on as one of this generation.
    pub(super) fn follow(&self, generation: u64) {
        self.generation.store(generation, Ordering::SeqCst);
    }

    /// Waits until no server answers. Returns the error of one of them.
    pub(super) async fn all_down(&self) -> DriverError {
        self.until(down).await
    }

    /// Waits until every server was asked and none can be used. Returns the reason.
    pub(super) async fn gone(&self) -> Gone {
        self.until(|seen| self.why(seen)).await
    }

    /// The reason why no server can be used, if every server was asked.
    pub(super) fn why_gone(&self) -> Option<Gone> {
        self.why(&self.seen.lock())
    }

    fn why(&self, seen: &ServersSeen) -> Option<Gone> {
        match down(seen) {
            Some(error) if seen.strangers.is_empty() => Some(Gone::Down(error)),
            down if seen.servers.is_empty() || down.is_some() => self.strangers(seen, down),
            _ => None,
        }
    }

    fn strangers(&self, seen: &ServersSeen, down: Option<DriverError>) -> Option<Gone> {
        let wanted = self.set.as_deref()?;
        let for_good = down.is_none() && seen.strangers.values().all(Option::is_some);
        let strangers = seen.strangers.iter().map(|(address, set)| match set {
            Some(set) => format!("{address} belongs to the replica set {set:?}"),
            None => format!("{address} belongs to no replica set"),
        });
        let told: Vec<_> = strangers.chain(down.as_ref().map(words)).collect();
        let text = format!("{}, and none to {wanted:?}: correct replicaSet, or the hosts", told.join("; "));
        (!seen.strangers.is_empty()).then_some(Gone::Strangers(text, for_good))
    }

    /// Waits until a server answers.
    pub(super) async fn any_up(&self) {
        self.until(|seen| is_up(seen).then_some(())).await;
    }

    /// Whether a server answers.
    pub(super) fn is_up(&self) -> bool {
        is_up(&self.seen.lock())
    }

    /// The reason why the driver goes on looking for a server that fits the criteria. `None` if one fits.
    pub(super) fn unfit(&self, criteria: Option<&SelectionCriteria>) -> Option<String> {
        let seen = self.seen.lock();
        let topology = seen.topology.as_ref()?;
        if topology.has_readable_server(criteria.cloned()) {
            return None;
        }
        let servers: Vec<_> = topology.servers().values().map(ToString::to_string).collect();
        let set = topology.set_name().map_or_else(String::new, |set| format!(", Set Name: {set}"));
        let kind = topology.topology_type();
        Some(format!("no server is fit to be used: Type: {kind:?}{set}, Servers: [ {} ]", servers.join(", ")))
    }

    /// Whether the server and the driver have no version of the protocol in common.
    pub(super) fn is_incompatible(&self) -> bool {
        self.seen.lock().topology.as_ref().is_some_and(|topology| topology.compatibility_error().is_some())
    }

    async fn until<T>(&self, holds: impl Fn(&ServersSeen) -> Option<T>) -> T {
        until(&self.changed, || holds(&self.seen.lock())).await
    }
}

fn is_up(seen: &ServersSeen) -> bool {
    seen.servers.values().any(|beat| matches!(beat, Heartbeat::Up))
}

/// The error of one of the servers, if none answers. The answer of something else than a MongoDB is the last choice,
/// because other errors may pass.
fn down(seen: &ServersSeen) -> Option<DriverError> {
    let mut found: Option<&DriverError> = None;
    for beat in seen.servers.values() {
        match beat {
            Heartbeat::Down(error) if found.is_none_or(is_alien) => found = Some(error),
            Heartbeat::Down(_) => {}
            Heartbeat::Unknown | Heartbeat::Up => return None,
        }
    }
    found.cloned()
}
