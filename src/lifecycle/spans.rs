//! The spans by which a trace shows what a pool does, with the names that OpenTelemetry has for their attributes.
//!
//! Slots, waits, the prober, health checks, closing and the kinds make their spans here. `docs/traces.md` has the table
//! of all spans, which a test of this file compares with the code.
//!
//! A caller may have a subscriber of its own thread, and an id means nothing to another subscriber. So no parent is
//! named. A [`TaskSpan`] has its subscriber along, and is entered and ends under that one alone. No span is
//! entered where code of users may hang, or it would never end. There is no lock here. A subscriber is user code, so
//! callers hold none.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt::Display;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tracing::Span;
use tracing::dispatcher::{self, Dispatch};
use tracing::field::{Empty, display};
use tracing::subscriber::NoSubscriber;

use crate::base::attribute::{
    BATCH_SIZE, DATABASE_OPERATION, DATABASE_SYSTEM, ERROR_TYPE, MESSAGING_DESTINATION, MESSAGING_OPERATION,
    MESSAGING_OPERATION_TYPE, MESSAGING_SYSTEM, POOL_NAME, SERVER_ADDRESS, SERVER_PORT,
};
use crate::base::error::{Error, OneLine};
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::close::report::{CloseReport, Outcome, Reason, StepReport};
use crate::lifecycle::health::{Health, HealthEntry, HealthReport};
use crate::net::endpoint::addresses;

/// The target of all spans, by which subscribers filter. It is that of the log.
const TARGET: &str = "resource_pool";

// The attributes that all spans have beside those of the resource, and those that some spans have.
const KIND: &str = "otel.kind";
const STATUS: &str = "otel.status_code";
const DESCRIPTION: &str = "otel.status_description";
const NAME: &str = "otel.name";
const ATTEMPT: &str = "resource_pool.attempt";
const WAITING_FOR: &str = "resource_pool.waiting_for";
const STRIKES: &str = "resource_pool.strikes";
const TOOK: &str = "resource_pool.took_ms";
const HEALTH: &str = "resource_pool.health";
const REASON: &str = "resource_pool.reason";
const STEP: &str = "resource_pool.step";
const PHASE: &str = "resource_pool.phase";
const OUTCOME: &str = "resource_pool.outcome";

/// The attribute that names the software of a server, and that name: `db.system.name` or `messaging.system`.
pub(crate) type System = (&'static str, &'static str);

/// The attributes by which the spans of a resource name it.
pub(crate) struct Traced {
    pub(crate) name: Arc<str>,
    /// `None` for a registered resource.
    system: Option<System>,
    /// The host, the socket's path, or the hosts with their ports if there are several. `None` if it is not known.
    address: Option<Box<str>>,
    port: Option<u16>,
    /// Whether operations have spans.
    operations: bool,
}

/// Makes a span below the one that is entered. Its attributes are those that all spans have, and its own.
macro_rules! span {
    ($name:literal, $kind:expr, $traced:expr $(, $attribute:ident = $value:expr)* $(,)?) => {{
        let traced: Option<&Traced> = $traced;
        TaskSpan::heard(|| {
            tracing::info_span!(
                target: TARGET,
                $name,
                { POOL_NAME } = traced.map(|traced| &*traced.name),
                { DATABASE_SYSTEM } = traced.and_then(|traced| traced.system(DATABASE_SYSTEM)),
                { MESSAGING_SYSTEM } = traced.and_then(|traced| traced.system(MESSAGING_SYSTEM)),
                { SERVER_ADDRESS } = traced.and_then(|traced| traced.address.as_deref()),
                { SERVER_PORT } = traced.and_then(|traced| traced.port),
                { KIND } = $kind,
                { STATUS } = Empty,
                { DESCRIPTION } = Empty,
                { ERROR_TYPE } = Empty,
                $({ $attribute } = $value,)*
            )
        })
    }};
}

/// A span with the subscriber that it belongs to. It may be entered and end on any thread: both happen under that
/// subscriber, because the registry of `tracing-subscriber` panics under another one.
#[derive(Debug, Clone)]
pub(crate) struct TaskSpan {
    span: Span,
    subscriber: Dispatch,
}

impl TaskSpan {
    /// No span. Spans that are made inside it have no parent.
    pub(crate) fn none() -> Self {
        TaskSpan { span: Span::none(), subscriber: Dispatch::none() }
    }

    /// The span that is entered on this thread.
    pub(crate) fn current() -> Self {
        TaskSpan::heard(Span::current)
    }

    /// The span, if this thread has a subscriber. Without one, `tracing` would write each span to the log of its feature
    /// `log`.
    fn heard(make: impl FnOnce() -> Span) -> Self {
        let subscriber = dispatcher::get_default(Dispatch::clone);
        match subscriber.is::<NoSubscriber>() {
            true => TaskSpan::none(),
            false => TaskSpan { span: make(), subscriber },
        }
    }

    /// Runs this inside the span. A disabled span changes nothing.
    pub(crate) fn in_scope<T>(&self, run: impl FnOnce() -> T) -> T {
        match self.span.is_disabled() {
            true => run(),
            false => dispatcher::with_default(&self.subscriber, || self.span.in_scope(run)),
        }
    }

    /// Awaits this inside the span.
    pub(crate) async fn around<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        poll_fn(|context| self.in_scope(|| future.as_mut().poll(context))).await
    }

    /// Records that the span's work failed. `code` is the sort of the error.
    pub(crate) fn failed(&self, code: &str, error: impl Display) {
        self.span.record(STATUS, "ERROR");
        self.span.record(DESCRIPTION, display(OneLine(error)));
        self.span.record(ERROR_TYPE, code);
    }

    /// Records the verdict on a resource.
    pub(crate) fn checked(&self, entry: &HealthEntry) {
        self.span.record(HEALTH, display(entry.health));
        if entry.health == Health::Fail {
            self.failed("fail", entry.error.as_deref().unwrap_or_default());
        }
    }

    /// Records the verdict of a whole check.
    pub(crate) fn reported(&self, report: &HealthReport) {
        self.span.record(HEALTH, display(report.health));
        if report.health == Health::Fail {
            let failed = report.entries.iter().filter(|entry| entry.health == Health::Fail);
            self.failed("fail", failed.map(|entry| &*entry.name).collect::<Vec<_>>().join(", "));
        }
    }

    /// Records how a step ended.
    pub(crate) fn stepped(&self, step: &StepReport) {
        let code = step.outcome.code();
        self.span.record(OUTCOME, code);
        if step.outcome != Outcome::Closed {
            self.failed(code, &step.outcome);
        }
    }

    /// Records how a close ended.
    fn closed(&self, report: &CloseReport) {
        let mut others = report.steps.iter().filter(|step| step.outcome != Outcome::Closed).peekable();
        if let Some(first) = others.peek() {
            let code = first.outcome.code();
            let told: Vec<_> = others.map(|step| format!("{}: {}", step.name, step.outcome)).collect();
            self.failed(code, told.join("; "));
        }
    }
}

impl Drop for TaskSpan {
    fn drop(&mut self) {
        let span = std::mem::replace(&mut self.span, Span::none());
        if !span.is_disabled() {
            dispatcher::with_default(&self.subscriber, || drop(span));
        }
    }
}

impl Traced {
    /// `endpoint` is where the resource is, without credentials.
    pub(crate) fn new(name: Arc<str>, system: Option<System>, endpoint: &str, operations: bool) -> Self {
        let (address, port) = match &*addresses(endpoint) {
            [] => (None, None),
            [one] => (Some(Box::from(one.host)), one.port),
            several => {
                let all: Vec<_> = several.iter().map(ToString::to_string).collect();
                (Some(Box::from(all.join(","))), None)
            }
        };
        Traced { name, system, address, port, operations }
    }

    /// The name of the server's software. `None` for a registered resource.
    pub(crate) fn software(&self) -> Option<&'static str> {
        self.system.map(|(_, name)| name)
    }

    fn system(&self, attribute: &str) -> Option<&'static str> {
        self.system.filter(|(its, _)| *its == attribute).map(|(_, name)| name)
    }

    /// An attempt to connect, from its beginning.
    pub(crate) fn connect(&self, attempt: usize) -> TaskSpan {
        span!("connect", "client", Some(self), ATTEMPT = attempt)
    }

    /// The wait of a caller, from its beginning.
    pub(crate) fn wait(&self, waiting_for: impl Display) -> TaskSpan {
        span!("wait", "internal", Some(self), WAITING_FOR = display(&waiting_for))
    }

    /// A probe that failed after so long. The span has no length, because probes that succeed have none.
    pub(crate) fn probe_failed(&self, strikes: u32, took: Duration) -> TaskSpan {
        span!("probe_failed", "client", Some(self), STRIKES = strikes, TOOK = took.as_secs_f64() * 1e3)
    }

    /// The part of a health check that is about this resource.
    pub(crate) fn round_trip(&self) -> TaskSpan {
        span!("round_trip", "client", Some(self), HEALTH = Empty)
    }

    /// An operation that begins now. `None` unless the pool traces operations.
    #[inline]
    pub(crate) fn operation(&self, name: impl FnOnce() -> Cow<'static, str>) -> Option<OperationSpan> {
        self.operations.then(|| self.begin(&name()))
    }

    #[cold]
    fn begin(&self, name: &str) -> OperationSpan {
        let is_messaging = self.system(MESSAGING_SYSTEM).is_some();
        let kind = if is_messaging { "producer" } else { "client" };
        let span = span!(
            "operation",
            kind,
            Some(self),
            NAME = name,
            DATABASE_OPERATION = (!is_messaging).then_some(name),
            BATCH_SIZE = Empty,
            MESSAGING_OPERATION = is_messaging.then_some(name),
            MESSAGING_OPERATION_TYPE = is_messaging.then_some("send"),
            MESSAGING_DESTINATION = Empty,
        );
        OperationSpan(span)
    }
}

/// A health check, from its beginning.
pub(crate) fn health_check() -> TaskSpan {
    span!("health_check", "internal", None, HEALTH = Empty)
}

/// The close of a resource, or of the whole pool. If the subscriber panics, the close goes on without a span.
pub(crate) fn close(resource: Option<&Traced>, reason: Reason) -> TaskSpan {
    let span = || span!("close", "internal", resource, REASON = display(reason));
    let span = catch_unwind(AssertUnwindSafe(span)).unwrap_or_else(|_| TaskSpan::none());
    // All of the close runs inside the span, so a panic on the way in shows itself before that.
    match catch_unwind(AssertUnwindSafe(|| span.in_scope(|| ()))) {
        Ok(()) => span,
        Err(_) => {
            // Its end would be another call of that subscriber.
            std::mem::forget(span);
            TaskSpan::none()
        }
    }
}

/// Records how a close ended, and ends its span. If the subscriber panics, the close ends all the same.
pub(crate) fn closed(span: TaskSpan, report: &CloseReport) {
    let recorded = catch_unwind(AssertUnwindSafe(|| span.closed(report)));
    // Two panics at once would abort the process.
    let ended = catch_unwind(AssertUnwindSafe(|| drop(span)));
    if recorded.and(ended).is_err() {
        tracing::error!("a subscriber panicked at the span of a close");
    }
}

/// The drain of a close.
pub(crate) fn drain() -> TaskSpan {
    span!("drain", "internal", None)
}

/// A step of a close. A hook and a group of tasks are no resources.
pub(crate) fn close_step(resource: Option<&Traced>, name: &str, phase: Phase) -> TaskSpan {
    span!("close_step", "internal", resource, STEP = name, PHASE = display(phase), OUTCOME = Empty)
}

/// The span of one operation, below the caller's. It ends as this drops.
///
/// It has no statement, no key of a database and no message of the server, since these may be secret.
#[must_use = "the span ends as this drops"]
#[derive(Debug)]
pub struct OperationSpan(TaskSpan);

impl OperationSpan {
    /// The operation is a batch of so many commands of a database.
    pub fn batch(self, size: usize) -> Self {
        self.0.span.record(BATCH_SIZE, size);
        self
    }

    /// The message goes to this exchange and key, or to this queue.
    pub fn to(self, destination: &str) -> Self {
        self.0.span.record(MESSAGING_DESTINATION, destination);
        self
    }

    /// Awaits the operation inside the span, and records its error.
    ///
    /// # Errors
    /// Those of the operation.
    ///
    /// # Cancel safety
    /// That of the operation.
    pub async fn run<T, E: StdError + 'static>(&self, operation: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        self.0.around(operation).await.inspect_err(|error| self.fail(error))
    }

    /// Runs a call that blocks inside the span, and records its error.
    ///
    /// # Errors
    /// Those of the call.
    pub fn run_blocking<T, E: StdError + 'static>(&self, call: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.0.in_scope(call).inspect_err(|error| self.fail(error))
    }

    /// Records the error of the operation.
    pub fn fail(&self, error: &(dyn StdError + 'static)) {
        self.fail_by(Error::behind(error).map(Error::code));
    }

    /// Records that the server answered an error with this code, if that has one.
    pub fn fail_by(&self, code: Option<&str>) {
        // A server may let a user's script make codes. Such a code may have anything in it.
        let is_code =
            |code: &&str| code.len() <= 16 && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        self.0.span.record(STATUS, "ERROR");
        // OpenTelemetry's word for an error that has no name.
        self.0.span.record(ERROR_TYPE, code.filter(is_code).unwrap_or("_OTHER"));
    }
}

#[cfg(all(test, not(model)))]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::io;

    use super::*;

    const PAGE: &str = include_str!("../../docs/traces.md");

    #[test]
    fn without_a_subscriber_there_is_no_span() {
        let nobody = dispatcher::Dispatch::none();
        dispatcher::with_default(&nobody, || {
            assert!(health_check().span.metadata().is_none() && TaskSpan::current().span.is_disabled())
        });
    }

    /// The page lists each span with its own attributes, and those that all have.
    #[test]
    fn the_page_has_every_span_with_its_attributes() {
        let traced =
            Traced::new(Arc::from("orders"), Some((DATABASE_SYSTEM, "redis")), "redis://127.0.0.1:6379/0", true);
        let make = || {
            [
                traced.connect(1),
                traced.wait("connecting"),
                traced.probe_failed(1, Duration::ZERO),
                health_check(),
                traced.round_trip(),
                close(None, Reason::Requested),
                drain(),
                close_step(None, "archive", Phase::Files),
                traced.operation(|| "GET".into()).expect("it traces operations").0,
            ]
        };
        let subscriber = tracing_subscriber::fmt().with_writer(io::sink).finish();
        let made = tracing::subscriber::with_default(subscriber, make);
        let made: BTreeMap<&str, BTreeSet<&str>> = made
            .iter()
            .filter_map(|span| span.span.metadata())
            .map(|span| (span.name(), span.fields().iter().map(|field| field.name()).collect()))
            .collect();
        let (_, own) = PAGE.split_once("\n| span |").expect("the table of spans");
        let (_, common) = PAGE.split_once("\n| attribute of all |").expect("the table of attributes");
        let common: BTreeSet<&str> = cells(common).filter_map(|cells| quoted(cells[0]).next()).collect();
        let told: BTreeMap<&str, BTreeSet<&str>> = cells(own)
            .map(|cells| (cells[0].trim_matches('`'), quoted(cells[cells.len() - 1]).chain(common.clone()).collect()))
            .collect();
        assert_eq!(told, made);
        assert_eq!(made.len(), 9);
    }

    /// The cells of the rows of the table whose heading this text begins in.
    fn cells(text: &str) -> impl Iterator<Item = Vec<&str>> {
        let rows = text.lines().skip(2).take_while(|line| line.starts_with('|'));
        rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect())
    }

    /// The texts between backquotes.
    fn quoted(text: &str) -> impl Iterator<Item = &str> {
        text.split('`').skip(1).step_by(2)
    }
}
