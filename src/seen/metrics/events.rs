//! The counters and histograms that the pool's events feed.

use super::book::Book;
use super::names;
use super::recorded::{counter, histogram};
use crate::adapter::attribute::ERROR_TYPE;
use crate::{Event, What, blocking};

/// Counts the events of a pool until the pool is gone.
pub(super) fn count_all(mut events: blocking::Events, book: &Book) {
    let mut missed = 0;
    counter(names::EVENTS_MISSED, Vec::new()).increment(0);
    while let Some(Ok(event)) = events.next() {
        let more = events.missed().saturating_sub(missed);
        if more > 0 {
            missed += more;
            counter(names::EVENTS_MISSED, Vec::new()).increment(more);
        }
        count(&event, book);
    }
}

fn count(event: &Event, book: &Book) {
    match &event.what {
        What::StepEnded { step } => {
            // `CLOSE_STEPS` has no labels of a resource, because a hook is a step too.
            counter(names::CLOSE_STEPS, vec![metrics::Label::new("outcome", step.outcome.code())]).increment(1);
        }
        What::Closed { report } => histogram(names::CLOSE_DURATION, Vec::new()).record(report.took.as_secs_f64()),
        _ => count_resource(event, book),
    }
}

fn count_resource(event: &Event, book: &Book) {
    let Some(name) = &event.resource else { return };
    let once = |name_of_metric, further: &[(&'static str, &'static str)]| {
        book.series(name, event.system, &event.endpoint).count(name_of_metric, further, 1);
    };
    let time = |name_of_metric, took| book.series(name, event.system, &event.endpoint).record(name_of_metric, took);
    match &event.what {
        What::Connected { took } => {
            time(names::CONNECTION_CREATE_TIME, *took);
            once(names::CONNECTS, &[]);
            if event.generation > 1 {
                once(names::RECONNECTS, &[]);
            }
        }
        What::AttemptFailed { error, .. } | What::ConnectFailed { error } => {
            once(names::CONNECT_FAILURES, &[(ERROR_TYPE, error.error_type())]);
        }
        What::Lost { error, .. } => once(names::LOSSES, &[(ERROR_TYPE, error.error_type())]),
        What::ProbeFailed { .. } => once(names::PROBE_FAILURES, &[]),
        What::Waited { waited, .. } => time(names::CONNECTION_WAIT_TIME, *waited),
        What::TimedOut { .. } => once(names::CONNECTION_TIMEOUTS, &[]),
        What::Deadlocked { .. } => once(names::DEADLOCKS, &[]),
        What::Repeated { .. } => once(names::REPEATS, &[]),
        What::OutcomeUnknown { .. } => once(names::UNKNOWN_OUTCOMES, &[]),
        What::Warned { .. } => once(names::WARNINGS, &[]),
        What::Checked { entry } => {
            once(names::CHECKS, &[("health", entry.health.code())]);
            if let Some(latency) = entry.latency {
                time(names::CHECK_DURATION, latency);
            }
        }
        _ => {}
    }
}
