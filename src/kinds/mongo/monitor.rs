//! SessionFilter servers answered the driver's last check, and as what, by its monitors' events.

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
    /// Who is told of a loss, if anybody.
    link: Option<Link>,
    /// The generation that a loss is of.
    generation: AtomicU64,
    /// The replica set that the servers are to belong to, if it was named.
    set: Option<String>,
    seen: Mutex<Seen>,
    changed: Notify,
}

#[derive(Default)]
struct Seen {
    servers: BTreeMap<String, Beat>,
    /// The replica sets of those that the driver dropped for belonging to another one, or to none.
    strangers: BTreeMap<String, Option<String>>,
    topology: Option<TopologyDescription>,
}

enum Beat {
    Unknown,
    Up,
    Down(DriverError),
}

/// Why no server can be used.
pub(super) enum Gone {
    /// None answers, and this is the error of one.
    Down(DriverError),
    /// Those that answer are of another replica set, as the text says; all of them, and for good, or not.
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
                seen.servers.entry(event.address.to_string()).or_insert(Beat::Unknown);
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
                    seen.servers.insert(address, Beat::Up);
                } else {
                    seen.servers.remove(&address);
                    seen.strangers.insert(address, set.map(str::to_owned));
                }
            }
            SdamEvent::ServerHeartbeatFailed(event) => {
                seen.servers.insert(event.server_address.to_string(), Beat::Down(event.failure.clone()));
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

    /// From now on a loss is one of this generation.
    pub(super) fn follow(&self, generation: u64) {
        self.generation.store(generation, Ordering::SeqCst);
    }

    /// Waits until no server answers, with the error of one of them.
    pub(super) async fn all_down(&self) -> DriverError {
        self.until(down).await
    }

    /// Waits until every server has been asked, and none can be used.
    pub(super) async fn gone(&self) -> Gone {
        self.until(|seen| self.why(seen)).await
    }

    /// Why none can be used, if every server has been asked.
    pub(super) fn why_gone(&self) -> Option<Gone> {
        self.why(&self.seen.lock())
    }

    fn why(&self, seen: &Seen) -> Option<Gone> {
        match down(seen) {
            Some(error) if seen.strangers.is_empty() => Some(Gone::Down(error)),
            down if seen.servers.is_empty() || down.is_some() => self.strangers(seen, down),
            _ => None,
        }
    }

    fn strangers(&self, seen: &Seen, down: Option<DriverError>) -> Option<Gone> {
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

    /// Why the driver goes on looking for a server that fits; `None` if there is one.
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

    async fn until<T>(&self, holds: impl Fn(&Seen) -> Option<T>) -> T {
        until(&self.changed, || holds(&self.seen.lock())).await
    }
}

fn is_up(seen: &Seen) -> bool {
    seen.servers.values().any(|beat| matches!(beat, Beat::Up))
}

/// The error of one of the servers, if none answers; rather one that may pass.
fn down(seen: &Seen) -> Option<DriverError> {
    let mut found: Option<&DriverError> = None;
    for beat in seen.servers.values() {
        match beat {
            Beat::Down(error) if found.is_none_or(is_alien) => found = Some(error),
            Beat::Down(_) => {}
            Beat::Unknown | Beat::Up => return None,
        }
    }
    found.cloned()
}
