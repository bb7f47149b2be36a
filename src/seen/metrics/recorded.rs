//! The way to the recorder: one metric of one series at a time.

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, with_recorder};

/// The target that recorders filter by.
const METADATA: Metadata<'static> = Metadata::new("resource_pool", Level::INFO, Some("resource_pool::metrics"));

pub(super) fn counter(name: &'static str, labels: Vec<Label>) -> Counter {
    with_recorder(|recorder| recorder.register_counter(&Key::from_parts(name, labels), &METADATA))
}

pub(super) fn gauge(name: &'static str, labels: Vec<Label>) -> Gauge {
    with_recorder(|recorder| recorder.register_gauge(&Key::from_parts(name, labels), &METADATA))
}

pub(super) fn histogram(name: &'static str, labels: Vec<Label>) -> Histogram {
    with_recorder(|recorder| recorder.register_histogram(&Key::from_parts(name, labels), &METADATA))
}
