//! [`Levels`], which reads the levels and the totals from the pool's status at each scrape.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use metrics::Label;

use super::book::Book;
use super::names;
use super::recorded::gauge;
use super::series::Series;
use crate::adapter::attribute::CONNECTION_STATE;
use crate::{ClosedCounts, Counters, PoolStatus, ResourceStatus, State, Usage};

/// The most servers of one resource that have series of their own, as [`Metrics::MAX_NODES`](super::Metrics::MAX_NODES)
/// tells users.
pub(super) const MAX_NODES: usize = 16;

/// The levels and totals of the last scrape.
#[derive(Default)]
pub(super) struct Levels {
    /// How many statuses were observed.
    observed: u64,
    /// Each level, by its name and labels. A level that the next scrape does not read falls to zero.
    last: HashMap<(&'static str, Vec<Label>), f64>,
    /// Each total of each resource, by the total's name and the value of its further label. A counter of the recorder
    /// grows by the difference to the last scrape. So it goes on if another resource takes the name, which counts from
    /// zero.
    totals: HashMap<Arc<str>, HashMap<(&'static str, &'static str), u64>>,
}

/// The levels of one scrape. `Read::add` adds up those of resources that share series.
#[derive(Default)]
struct Read(HashMap<(&'static str, Vec<Label>), f64>);

impl Levels {
    /// How many statuses were observed so far, for [`observe`](Levels::observe).
    pub(super) fn observed(&self) -> u64 {
        self.observed
    }

    /// `observed` is the number of statuses that were observed before this one was read. If there are more by now, this
    /// one may be older than the last of them, and a resource that is gone would count again. So it is left out.
    pub(super) fn observe(&mut self, observed: u64, status: &PoolStatus, book: &Book) {
        if observed != self.observed {
            return;
        }
        self.observed += 1;
        let mut read = Read::default();
        // The status has the default resource of each kind, even if the program never uses it.
        let was_used = |resource: &&ResourceStatus| resource.state != State::Idle || resource.generation > 0;
        for resource in status.resources.iter().filter(was_used) {
            let series = book.series(&resource.name, resource.system, &resource.endpoint);
            read.resource(resource, &series);
            self.count(resource, &series);
        }
        read.add(names::CLOSING, Vec::new(), usize::from(status.closing));
        read.add(names::HOLDS, Vec::new(), status.holds);
        read.add(names::TASKS, Vec::new(), status.tasks.iter().map(|(_, count)| count).sum());
        if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
            // One of the descriptors is that of the folder itself.
            read.add(names::DESCRIPTORS, Vec::new(), descriptors.count().saturating_sub(1));
        }
        for key in self.last.keys() {
            read.0.entry(key.clone()).or_default();
        }
        for ((name, labels), level) in &read.0 {
            gauge(name, labels.clone()).set(*level);
        }
        self.last = read.0;
        let names: HashSet<_> = status.resources.iter().map(|resource| &resource.name).collect();
        self.totals.retain(|name, _| names.contains(name));
    }

    /// Has the counters grow by as much as the totals of this resource have.
    fn count(&mut self, resource: &ResourceStatus, series: &Series) {
        // A resource keeps the text of its name for as long as it is there. So another text is another resource's.
        let is_known =
            self.totals.get_key_value(&resource.name).is_none_or(|(name, _)| Arc::ptr_eq(name, &resource.name));
        if !is_known {
            self.totals.remove(&resource.name);
        }
        let last = self.totals.entry(Arc::clone(&resource.name)).or_default();
        for (name, label, value, total) in totals(resource) {
            let last = last.entry((name, value)).or_default();
            let further = [(label, value)];
            series.count(name, if label.is_empty() { &[] } else { &further }, total.saturating_sub(*last));
            *last = total.max(*last);
        }
    }
}

impl Read {
    fn add(&mut self, name: &'static str, labels: Vec<Label>, level: usize) {
        *self.0.entry((name, labels)).or_default() += level as f64;
    }

    fn resource(&mut self, resource: &ResourceStatus, series: &Series) {
        use State::{Broken, Closed, Connecting, Draining, Idle, Ready};
        for state in [Idle, Connecting, Ready, Broken, Draining, Closed] {
            self.add(names::STATE, series.labels(&[("state", state.code())]), usize::from(resource.state == state));
        }
        for (place, node) in resource.nodes.iter().enumerate() {
            let endpoint = (place < MAX_NODES).then_some(&*node.endpoint);
            self.add(names::NODE_UP, series.node_labels(endpoint), usize::from(node.state == State::Ready));
        }
        let Usage { max, in_use, idle, waiting, min_idle, max_idle, .. } = resource.usage;
        let mut known = |name, further: &[_], level: Option<usize>| {
            if let Some(level) = level {
                self.add(name, series.labels(further), level);
            }
        };
        known(names::CONNECTION_COUNT, &[(CONNECTION_STATE, "idle")], idle);
        known(names::CONNECTION_COUNT, &[(CONNECTION_STATE, "used")], in_use);
        known(names::CONNECTION_MAX, &[], max);
        known(names::CONNECTION_IDLE_MIN, &[], min_idle);
        known(names::CONNECTION_IDLE_MAX, &[], max_idle);
        known(names::CONNECTION_PENDING, &[], Some(waiting.unwrap_or_default() + resource.connecting));
        known(names::LEASES, &[], Some(resource.leases));
        known(names::CHECKOUTS, &[], Some(resource.checkouts));
        known(names::LEAKS_SUSPECTED, &[], Some(resource.leaks));
        for (work, count) in &resource.work {
            known(names::WORK, &[("work", work.code())], Some(*count));
        }
    }
}

/// The totals of a resource: each with the name of its metric, its further label and that label's value. The two are
/// empty if it has no further label.
fn totals(resource: &ResourceStatus) -> Vec<(&'static str, &'static str, &'static str, u64)> {
    let Counters { opened, closed, detached, acquires, .. } = resource.usage.counters;
    let mut totals = vec![(names::LEAKS, "", "", resource.leaks_total as u64)];
    let plain = [(names::OPENED, opened), (names::DETACHED, detached), (names::ACQUIRES, acquires)];
    totals.extend(plain.into_iter().filter_map(|(name, total)| Some((name, "", "", total?))));
    if let Some(ClosedCounts { idle, lifetime, broken, discarded, lost, refreshed, surplus, closing }) = closed {
        let reasons = [
            ("idle", idle),
            ("lifetime", lifetime),
            ("broken", broken),
            ("discarded", discarded),
            ("lost", lost),
            ("refreshed", refreshed),
            ("surplus", surplus),
            ("closing", closing),
        ];
        totals.extend(reasons.map(|(reason, total)| (names::CLOSED, "reason", reason, total)));
    }
    totals
}
