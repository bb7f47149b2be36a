//! [`Series`], the series of one resource: the labels that they share, and the timers of its work.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics::{Counter, Histogram, Label};

use super::names;
use super::recorded::{counter, histogram};
use crate::adapter::addresses;
use crate::adapter::attribute::{
    DATABASE_SYSTEM, ERROR_TYPE, MESSAGING_OPERATION, MESSAGING_SYSTEM, POOL_NAME, SERVER_ADDRESS, SERVER_PORT,
};
use crate::{Measure, Measured, Work};

/// The series of one resource, or of all those beyond the limit.
pub(super) struct Series {
    pub(super) endpoint: Arc<str>,
    system: Option<&'static str>,
    labels: Vec<Label>,
    /// The timers of each sort of work, first for work that was done and then for work that was cut off. They are kept
    /// because work is much more frequent than events.
    timers: [[OnceLock<Timer>; 2]; 4],
}

/// The recorder's handles for one sort of work.
struct Timer {
    took: Histogram,
    count: Option<Counter>,
}

impl Series {
    pub(super) fn new(name: &Arc<str>, system: Option<&'static str>, endpoint: &Arc<str>) -> Self {
        let mut labels = vec![Label::new(POOL_NAME, Arc::clone(name))];
        // A broker has this label too, so that a resource has the same labels in all metrics.
        labels.extend(system.map(|system| Label::new(DATABASE_SYSTEM, system)));
        labels.extend(server(endpoint));
        Series::with_labels(Arc::clone(endpoint), system, labels)
    }

    /// The series of all resources beyond the limit.
    pub(super) fn other() -> Self {
        Series::with_labels(Arc::from(""), None, vec![Label::new(POOL_NAME, names::OTHER)])
    }

    fn with_labels(endpoint: Arc<str>, system: Option<&'static str>, labels: Vec<Label>) -> Self {
        let series = Series { endpoint, system, labels, timers: Default::default() };
        // A counter that is first scraped at 1 shows Prometheus no increase, so these are scraped at 0 before.
        for name in [
            names::CONNECTION_TIMEOUTS,
            names::CONNECTS,
            names::RECONNECTS,
            names::PROBE_FAILURES,
            names::REPEATS,
            names::UNKNOWN_OUTCOMES,
            names::DEADLOCKS,
            names::WARNINGS,
            names::LEAKS,
        ] {
            series.count(name, &[], 0);
        }
        series
    }

    /// The labels of the resource, followed by the further ones.
    pub(super) fn labels(&self, further: &[(&'static str, &'static str)]) -> Vec<Label> {
        let further = further.iter().map(|(label, value)| Label::new(*label, *value));
        self.labels.iter().cloned().chain(further).collect()
    }

    /// The labels of the resource with those of one of its servers, or with `other` if there is no endpoint.
    pub(super) fn node_labels(&self, endpoint: Option<&str>) -> Vec<Label> {
        let is_of_resource = |label: &&Label| ![SERVER_ADDRESS, SERVER_PORT].contains(&label.key());
        let own = self.labels.iter().filter(is_of_resource).cloned();
        let of_server = match endpoint {
            Some(endpoint) => server(endpoint),
            None => vec![Label::new(SERVER_ADDRESS, names::OTHER)],
        };
        own.chain(of_server).collect()
    }

    pub(super) fn count(&self, name: &'static str, further: &[(&'static str, &'static str)], count: u64) {
        counter(name, self.labels(further)).increment(count);
    }

    pub(super) fn record(&self, name: &'static str, took: Duration) {
        histogram(name, self.labels(&[])).record(took.as_secs_f64());
    }

    /// The place of a measure in `timers`. `None` if it has no metric.
    pub(super) fn place(measure: Measure) -> Option<usize> {
        match measure {
            Measure::Work(Work::Operation) => Some(0),
            Measure::Work(Work::Confirm) => Some(1),
            Measure::Work(Work::Delivery) => Some(2),
            Measure::Checkout => Some(3),
            _ => None,
        }
    }

    /// Records the time of work that has ended, by the timers at this place.
    pub(super) fn measured(&self, place: usize, measured: &Measured<'_>) {
        let Some(timer) = self.timers.get(place).and_then(|of_sort| of_sort.get(usize::from(!measured.is_done))) else {
            return;
        };
        let Timer { took, count } = timer.get_or_init(|| self.timer(measured));
        took.record_many(measured.took.as_secs_f64(), measured.count);
        if let Some(count) = count {
            count.increment(measured.count as u64);
        }
    }

    fn timer(&self, measured: &Measured<'_>) -> Timer {
        let (took, count, operation) = match measured.measure {
            Measure::Work(Work::Confirm) => (names::MESSAGING_DURATION, Some(names::SENT_MESSAGES), Some("publish")),
            Measure::Work(Work::Delivery) => (names::PROCESS_DURATION, Some(names::CONSUMED_MESSAGES), Some("consume")),
            Measure::Checkout => (names::CONNECTION_USE_TIME, None, None),
            _ => (names::OPERATION_DURATION, None, None),
        };
        let mut further = Vec::new();
        if let Some(operation) = operation {
            further.push((MESSAGING_OPERATION, operation));
            further.extend(self.system.map(|system| (MESSAGING_SYSTEM, system)));
        }
        if !measured.is_done {
            further.push((ERROR_TYPE, "cut_off"));
        }
        let labels = self.labels(&further);
        Timer { took: histogram(took, labels.clone()), count: count.map(|count| counter(count, labels)) }
    }
}

/// The labels with the address and the port of a server. None unless the endpoint has one server.
fn server(endpoint: &str) -> Vec<Label> {
    let [server] = addresses(endpoint)[..] else { return Vec::new() };
    let mut labels = vec![Label::new(SERVER_ADDRESS, server.host.to_owned())];
    labels.extend(server.port.map(|port| Label::new(SERVER_PORT, port.to_string())));
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_of_one_server_is_told_as_address_and_port() {
        let told = |endpoint: &str| {
            let labels = server(endpoint);
            labels.iter().map(|label| format!("{}={}", label.key(), label.value())).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(told("amqp://[::1]:5672/%2f"), "server.address=::1 server.port=5672");
        assert_eq!(told("unix:///run/redis.sock?db=2"), "server.address=/run/redis.sock");
        assert_eq!(told("mongodb://a:27017,b:27018/"), "");
    }
}
