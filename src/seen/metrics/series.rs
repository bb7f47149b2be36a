//! The series of one resource: the labels that they share, and the timers of its work.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics::{Counter, Histogram, Label};
use url::Url;

use super::names;
use super::recorded::{counter, histogram};
use crate::{Measure, Measured, Work};

/// The series of one resource, or of all those beyond the limit.
pub(super) struct Series {
    pub(super) endpoint: Arc<str>,
    system: Option<&'static str>,
    labels: Vec<Label>,
    /// The recorder's handles for each sort of work, first for work that was done and then for other work. They are kept
    /// because work is much more frequent than events.
    timers: [[OnceLock<Timer>; 2]; 4],
}

/// The recorder's handles for one sort of work.
struct Timer {
    took: Histogram,
    count: Option<Counter>,
}

impl Series {
    pub(super) fn new(name: &Arc<str>, kind: Option<&'static str>, endpoint: &Arc<str>) -> Self {
        let system = kind.map(system);
        let mut labels = vec![Label::new(names::POOL_NAME, Arc::clone(name))];
        labels.extend(system.map(|system| Label::new(names::SYSTEM, system)));
        labels.extend(server(endpoint));
        Series::with_labels(Arc::clone(endpoint), system, labels)
    }

    /// The series of all resources beyond the limit.
    pub(super) fn other() -> Self {
        Series::with_labels(Arc::from(""), None, vec![Label::new(names::POOL_NAME, names::OTHER)])
    }

    fn with_labels(endpoint: Arc<str>, system: Option<&'static str>, labels: Vec<Label>) -> Self {
        let series = Series { endpoint, system, labels, timers: Default::default() };
        // A counter that begins at its first step shows no increase there.
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

    /// The labels of the resource, and these.
    pub(super) fn labels(&self, further: &[(&'static str, &'static str)]) -> Vec<Label> {
        let further = further.iter().map(|(label, value)| Label::new(*label, *value));
        self.labels.iter().cloned().chain(further).collect()
    }

    /// The labels of one server of the resource.
    pub(super) fn node_labels(&self, endpoint: Option<&str>) -> Vec<Label> {
        let is_of_resource = |label: &&Label| ![names::ADDRESS, names::PORT].contains(&label.key());
        let own = self.labels.iter().filter(is_of_resource).cloned();
        let of_server = match endpoint {
            Some(endpoint) => server(endpoint),
            None => vec![Label::new(names::ADDRESS, names::OTHER)],
        };
        own.chain(of_server).collect()
    }

    pub(super) fn count(&self, name: &'static str, further: &[(&'static str, &'static str)], count: u64) {
        counter(name, self.labels(further)).increment(count);
    }

    pub(super) fn record(&self, name: &'static str, took: Duration) {
        histogram(name, self.labels(&[])).record(took.as_secs_f64());
    }

    /// The place of this measure's timers. `None` if it has no metric.
    pub(super) fn place(measure: Measure) -> Option<usize> {
        match measure {
            Measure::Work(Work::Operation) => Some(0),
            Measure::Work(Work::Confirm) => Some(1),
            Measure::Work(Work::Delivery) => Some(2),
            Measure::Checkout => Some(3),
            _ => None,
        }
    }

    /// Records the time of work that has ended, in the timers of this place.
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
            further.push((names::MESSAGING_OPERATION, operation));
            further.extend(self.system.map(|system| (names::MESSAGING_SYSTEM, system)));
        }
        if !measured.is_done {
            further.push((names::ERROR_TYPE, "cut_off"));
        }
        let labels = self.labels(&further);
        Timer { took: histogram(took, labels.clone()), count: count.map(|count| counter(count, labels)) }
    }
}

/// OpenTelemetry's name for the system of a kind. A kind of one's own has its own name.
fn system(kind: &'static str) -> &'static str {
    match kind {
        "mongo" => "mongodb",
        "postgres" => "postgresql",
        kind => kind,
    }
}

/// The address and the port of a server. Nothing if the endpoint is no URL of one server.
fn server(endpoint: &str) -> Vec<Label> {
    let Ok(url) = Url::parse(endpoint) else { return Vec::new() };
    let mut labels = Vec::new();
    match url.host_str().filter(|host| !host.is_empty()) {
        Some(host) => {
            let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            labels.push(Label::new(names::ADDRESS, host));
            labels.extend(url.port_or_known_default().map(|port| Label::new(names::PORT, port.to_string())));
        }
        // A Unix socket has a path in the place of a host.
        None if url.scheme().contains("unix") => labels.push(Label::new(names::ADDRESS, url.path().to_owned())),
        None => {}
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_told_as_address_and_port() {
        let told = |endpoint: &str| {
            let labels = server(endpoint);
            labels.iter().map(|label| format!("{}={}", label.key(), label.value())).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(told("redis://127.0.0.1:6379/0"), "server.address=127.0.0.1 server.port=6379");
        assert_eq!(told("amqp://[::1]:5672/%2f"), "server.address=::1 server.port=5672");
        assert_eq!(told("http://clickhouse:8123/"), "server.address=clickhouse server.port=8123");
        assert_eq!(told("unix:///run/redis.sock?db=2"), "server.address=/run/redis.sock");
        assert_eq!(told("mongodb://a:27017,b:27018/"), "");
        assert_eq!(told("redis://user:secret@host:1/"), "server.address=host server.port=1");
        assert_eq!(told("a model"), "");
        assert_eq!(told(""), "");
    }
}
