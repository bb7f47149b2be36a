//! The report of a close: why it closed, and how each step ended.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "serde")]
use serde::ser::SerializeMap;
use tokio_util::sync::CancellationToken;

use crate::base::error::OneLine;
use crate::base::holder::Holder;
#[cfg(feature = "serde")]
use crate::base::json;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::status::PoolStatus;
use crate::lifecycle::work::Work;

/// Why something was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// `close`, `close_all` or a scoped guard's `close` was called.
    Requested,
    /// The last handle of a pool, or a scoped guard, was dropped.
    Dropped,
    /// `run` came to its end.
    RunEnded,
    /// The process is exiting: `main` returned or panicked, or `exit` was called.
    ProcessExit,
    /// This signal arrived.
    Signal(i32),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Requested => f.write_str("requested"),
            Reason::Dropped => f.write_str("dropped"),
            Reason::RunEnded => f.write_str("run ended"),
            Reason::ProcessExit => f.write_str("process exit"),
            Reason::Signal(number) => write!(f, "signal {number}"),
        }
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (reason, signal) = match self {
            Reason::Requested => ("requested", None),
            Reason::Dropped => ("dropped", None),
            Reason::RunEnded => ("run_ended", None),
            Reason::ProcessExit => ("process_exit", None),
            Reason::Signal(number) => ("signal", Some(number)),
        };
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("reason", reason)?;
        map.serialize_entry("signal", &signal)?;
        map.end()
    }
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It closed as it should.
    Closed,
    /// It ended after its streams had to be cut.
    Forced,
    /// Its code returned an error.
    Failed(String),
    /// It did not end, not even after its streams were cut.
    TimedOut,
    /// Its code panicked.
    Panicked(String),
    /// No time was left for it; its streams were cut.
    Skipped,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let f = &mut OneLine(f);
        match self {
            Outcome::Closed => f.write_str("closed"),
            Outcome::Forced => f.write_str("forced"),
            Outcome::Failed(error) => write!(f, "failed: {error}"),
            Outcome::TimedOut => f.write_str("timed out"),
            Outcome::Panicked(message) => write!(f, "panicked: {message}"),
            Outcome::Skipped => f.write_str("skipped"),
        }
    }
}

impl Outcome {
    /// The word for it, as in `timed_out`.
    pub fn code(&self) -> &'static str {
        match self {
            Outcome::Closed => "closed",
            Outcome::Forced => "forced",
            Outcome::Failed(_) => "failed",
            Outcome::TimedOut => "timed_out",
            Outcome::Panicked(_) => "panicked",
            Outcome::Skipped => "skipped",
        }
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Outcome {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let message = match self {
            Outcome::Failed(message) | Outcome::Panicked(message) => Some(message),
            Outcome::Closed | Outcome::Forced | Outcome::TimedOut | Outcome::Skipped => None,
        };
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("outcome", self.code())?;
        map.serialize_entry("message", &message)?;
        map.end()
    }
}

/// One step of a close.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct StepReport {
    /// The resource's or hook's name.
    pub name: Arc<str>,
    /// Its phase.
    pub phase: Phase,
    /// How it ended.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub outcome: Outcome,
    /// How long it took.
    #[cfg_attr(feature = "serde", serde(rename = "took_ms", serialize_with = "json::millis"))]
    pub took: Duration,
    /// The leases and checkouts still held when the resource was closed under them.
    pub held: Vec<Holder>,
    /// The work that came to its end in the drain, or that the step itself ended in good order.
    #[cfg_attr(feature = "serde", serde(serialize_with = "json::counts"))]
    pub finished: Vec<(Work, usize)>,
    /// The work that ended in the drain without being finished: cut off, cancelled, given back.
    #[cfg_attr(feature = "serde", serde(serialize_with = "json::counts"))]
    pub given_up: Vec<(Work, usize)>,
    /// The work still in progress when its drain ended.
    #[cfg_attr(feature = "serde", serde(serialize_with = "json::counts"))]
    pub unfinished: Vec<(Work, usize)>,
}

impl StepReport {
    pub(crate) fn new(name: Arc<str>, phase: Phase, outcome: Outcome, took: Duration, held: Vec<Holder>) -> Self {
        let (finished, given_up, unfinished) = (Vec::new(), Vec::new(), Vec::new());
        StepReport { name, phase, outcome, took, held, finished, given_up, unfinished }
    }
}

/// The report of a close.
///
/// ```
/// # fn main() -> Result<(), resource_pool::Error> {
/// use resource_pool::{Outcome, Phase, blocking::ResourcePool};
///
/// let pool = ResourcePool::builder().build()?;
/// pool.on_close("flush", Phase::Files, || Ok(()))?;
/// let report = pool.close_all()?;
/// assert!(report.all_closed());
/// for step in &report.steps {
///     println!("{}: {} after {:?}", step.name, step.outcome, step.took);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct CloseReport {
    /// Why it was closed.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub reason: Reason,
    /// The status as closing began.
    pub status: PoolStatus,
    /// How long the drain took.
    #[cfg_attr(feature = "serde", serde(rename = "drained_ms", serialize_with = "json::millis"))]
    pub drained: Duration,
    /// The steps, in the order in which they ended.
    pub steps: Vec<StepReport>,
    /// How long the whole close took.
    #[cfg_attr(feature = "serde", serde(rename = "took_ms", serialize_with = "json::millis"))]
    pub took: Duration,
}

impl CloseReport {
    /// Whether every step ended as it should. Also `true` if there was no step.
    pub fn all_closed(&self) -> bool {
        self.steps.iter().all(|step| step.outcome == Outcome::Closed)
    }

    /// The step of this name.
    pub fn step(&self, name: &str) -> Option<&StepReport> {
        self.steps.iter().find(|step| &*step.name == name)
    }
}

impl fmt::Display for CloseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "closed in {:.1?}, {:.1?} of it draining ({})", self.took, self.drained, self.reason)?;
        if !self.steps.is_empty() {
            writeln!(f, "  {:<16} {:<14} {:>10}  outcome", "step", "phase", "took")?;
        }
        for step in &self.steps {
            writeln!(
                f,
                "  {:<16} {:<14} {:>10}  {}",
                step.name,
                step.phase,
                format!("{:.1?}", step.took),
                step.outcome
            )?;
            for (work, count) in &step.finished {
                writeln!(f, "    finished: {} {}", work.counted(*count), work.finished())?;
            }
            for (work, count) in &step.given_up {
                writeln!(f, "    given up: {} {}", work.counted(*count), work.given_up())?;
            }
            for (work, count) in &step.unfinished {
                writeln!(f, "    unfinished: {}", work.counted(*count))?;
            }
            for holder in &step.held {
                writeln!(f, "    held by {holder:#}")?;
            }
        }
        Ok(())
    }
}

/// Tells when closing starts: by a flag for loops, and by a future for tasks.
///
/// ```no_run
/// # async fn next_tick() {}
/// # async fn doc() {
/// let closing = resource_pool::ResourcePool::global().closing();
/// while !closing.is_set() {
///     tokio::select! { _ = next_tick() => {}, _ = closing.wait() => break }
/// }
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Closing(pub(crate) CancellationToken);

impl Closing {
    /// Whether closing has started.
    pub fn is_set(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Resolves when closing starts. Needs no runtime.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn wait(&self) {
        self.0.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_tells_each_step_and_what_became_of_its_work() {
        let step = |name: &str, outcome| {
            let took = Duration::from_millis(2);
            StepReport::new(Arc::from(name), Phase::Databases, outcome, took, Vec::new())
        };
        let outcomes = [
            (Outcome::Closed, "closed"),
            (Outcome::Forced, "forced"),
            (Outcome::Failed("a\nb".to_owned()), "failed: a b"),
            (Outcome::TimedOut, "timed out"),
            (Outcome::Panicked("oh".to_owned()), "panicked: oh"),
            (Outcome::Skipped, "skipped"),
        ];
        for (outcome, said) in outcomes {
            let all_closed = outcome == Outcome::Closed;
            let mut report = CloseReport {
                reason: Reason::Signal(15),
                status: PoolStatus { closing: true, ..PoolStatus::default() },
                drained: Duration::from_millis(1),
                steps: vec![step("mongo", Outcome::Closed), step("store", outcome)],
                took: Duration::from_millis(5),
            };
            report.steps[1].finished = vec![(Work::Operation, 1)];
            report.steps[1].given_up = vec![(Work::Operation, 2)];
            report.steps[1].unfinished = vec![(Work::Operation, 3)];
            let text = report.to_string();
            let lines: Vec<_> = text.lines().map(str::trim).collect();
            assert_eq!(lines[0], "closed in 5.0ms, 1.0ms of it draining (signal 15)");
            assert!(lines[1].starts_with("step"), "{text}");
            assert!(lines[2].starts_with("mongo") && lines[2].ends_with("2.0ms  closed"), "{text}");
            assert!(lines[3].starts_with("store") && lines[3].ends_with(&format!("2.0ms  {said}")), "{text}");
            assert!(lines[4].starts_with("finished: 1 operation "), "{text}");
            assert!(lines[5].starts_with("given up: 2 operations "), "{text}");
            assert_eq!((lines[6], lines.len()), ("unfinished: 3 operations", 7));
            assert_eq!(report.all_closed(), all_closed);
            assert_eq!(report.step("store").map(|step| step.unfinished.len()), Some(1));
            assert!(report.step("nobody").is_none());
        }
    }

    #[test]
    fn each_reason_has_words() {
        let all = [Reason::Requested, Reason::Dropped, Reason::RunEnded, Reason::ProcessExit, Reason::Signal(2)];
        assert_eq!(
            all.map(|reason| reason.to_string()),
            ["requested", "dropped", "run ended", "process exit", "signal 2"]
        );
    }
}
