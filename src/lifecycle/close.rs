//! Closing: intake stops, work drains, then every step in its phase, each within a budget.
//!
//! A close runs on a thread of its own with a timer of its own, and each step on another, so
//! neither busy workers nor a step that blocks can delay it. Callers only wait for the shared
//! result: cancelling one cancels nothing.

mod edges;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt::{self, Write as _};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use once_cell::sync::OnceCell;
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::base::clock::Moment;
use crate::base::error::{BoxError, Error, Failure, Few, OneLine, panic_message};
use crate::base::holder::Holder;
use crate::base::millis;
use crate::base::process::{Process, Room, Singleton};
use crate::base::runtime::{self, within};
use crate::base::sync::{Condvar, Mutex, Notify};
use crate::lifecycle::activity::Activity;
use crate::lifecycle::exit;
use crate::lifecycle::lease::Held;
use crate::lifecycle::registry::{Context, Registry};
use crate::lifecycle::resource::Work;
use crate::lifecycle::slot::AnySlot;
use crate::lifecycle::status::{PoolStatus, State, Usage};

pub(crate) use self::edges::Edges;

/// The limits of closing. [`worst_case`](CloseOptions::worst_case) tells their sum.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct CloseOptions {
    /// The whole close. Defaults to 25 s, below the 30 s that orchestrators grant.
    #[serde(rename = "deadline_ms", with = "millis")]
    pub deadline: Duration,
    /// How long work in progress is waited for. Defaults to 10 s.
    #[serde(rename = "drain_ms", with = "millis")]
    pub drain: Duration,
    /// How long a lease that is merely held is waited for. Only one is that was taken, or used by an operation that
    /// ended, within this time before closing began. Defaults to 1 s.
    #[serde(rename = "held_ms", with = "millis")]
    pub held: Duration,
    /// One step. Defaults to 5 s.
    #[serde(rename = "step_ms", with = "millis")]
    pub step: Duration,
    /// One step of the phases tasks and databases. Defaults to 10 s.
    #[serde(rename = "long_step_ms", with = "millis")]
    pub long_step: Duration,
    /// What each later phase is sure to get, whatever an earlier one takes, the cutting of what
    /// hangs included. Defaults to 500 ms.
    #[serde(rename = "floor_ms", with = "millis")]
    pub floor: Duration,
    /// Whether closing may write to the standard error: one line after 1 s, which tells what is waited for, and at the
    /// end of the process the report, unless all is closed. Defaults to `true`.
    pub stderr: bool,
}

impl Default for CloseOptions {
    fn default() -> Self {
        CloseOptions {
            deadline: Duration::from_secs(25),
            drain: Duration::from_secs(10),
            held: Duration::from_secs(1),
            step: Duration::from_secs(5),
            long_step: Duration::from_secs(10),
            floor: Duration::from_millis(500),
            stderr: true,
        }
    }
}

impl CloseOptions {
    /// The longest that closing can take, to size a grace period by: the deadline, and the second
    /// after which the watchdog ends a process.
    pub fn worst_case(&self) -> Duration {
        self.deadline.saturating_add(WATCHDOG)
    }

    fn budget(&self, phase: Phase) -> Duration {
        match phase {
            Phase::Tasks | Phase::Databases => self.long_step,
            _ => self.step,
        }
    }

    /// What is kept, of the time that is left, for this many later levels.
    fn reserve(&self, left: Duration, levels: usize) -> Duration {
        let levels = u32::try_from(levels).unwrap_or(u32::MAX);
        // Where there is too little for all, each gets the same.
        let fair = left.checked_div(levels.saturating_add(1)).unwrap_or_default();
        self.floor.min(fair).saturating_mul(levels)
    }
}

/// How long after the deadline the watchdog waits.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(1);
/// How long a step that was cut has to end: this, or half of what its level has.
const GRACE: Duration = Duration::from_millis(500);
/// How long the drop of the last handle may take at least, however little time its step has left.
const LAST_DROP: Duration = Duration::from_millis(100);
/// How long a consumer's cancelling may take.
const INTAKE: Duration = Duration::from_secs(1);
/// How long users' code may take to tell how full its resource is.
const TELLING: Duration = Duration::from_millis(500);
/// How long closing is silent about what it waits for.
const SILENCE: Duration = Duration::from_secs(1);

/// When something closes. Phases close in this order; what shares one closes in parallel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Background tasks.
    Tasks,
    /// HTTP clients.
    HttpClients,
    /// RabbitMQ: every channel, then the connection.
    RabbitMq,
    /// Redis.
    Redis,
    /// Vector stores.
    VectorStores,
    /// ClickHouse.
    ClickHouse,
    /// SQL databases and MongoDB.
    Databases,
    /// Models, and resources that name no phase.
    Models,
    /// Open files.
    Files,
    /// Temporary files.
    TempFiles,
    /// Telemetry, last, so that all before can be told.
    Telemetry,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Phase::Tasks => "tasks",
            Phase::HttpClients => "http clients",
            Phase::RabbitMq => "rabbitmq",
            Phase::Redis => "redis",
            Phase::VectorStores => "vector stores",
            Phase::ClickHouse => "clickhouse",
            Phase::Databases => "databases",
            Phase::Models => "models",
            Phase::Files => "files",
            Phase::TempFiles => "temp files",
            Phase::Telemetry => "telemetry",
        })
    }
}

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

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// As it should.
    Closed,
    /// Its streams had to be cut; then it ended.
    Forced,
    /// It answered an error.
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

/// One step of a close.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StepReport {
    /// The resource's or hook's name.
    pub name: Arc<str>,
    /// Its phase.
    pub phase: Phase,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
    /// The leases and checkouts still held when it was closed under them.
    pub held: Vec<Holder>,
    /// The work that came to its end in the drain, or was ended in good order by the step itself.
    pub finished: Vec<(Work, usize)>,
    /// The work that ended in the drain without being finished: cut off, cancelled, given back.
    pub given_up: Vec<(Work, usize)>,
    /// The work still going on when its drain ended.
    pub unfinished: Vec<(Work, usize)>,
}

impl StepReport {
    fn new(name: Arc<str>, phase: Phase, outcome: Outcome, took: Duration, held: Vec<Holder>) -> Self {
        let (finished, given_up, unfinished) = (Vec::new(), Vec::new(), Vec::new());
        StepReport { name, phase, outcome, took, held, finished, given_up, unfinished }
    }

    /// With what became of the resource's work.
    fn of(self, slot: &dyn AnySlot) -> Self {
        let tally = &slot.activity().tally;
        let (finished, given_up, unfinished) = (tally.finished(), tally.given_up(), tally.unfinished());
        StepReport { finished, given_up, unfinished, ..self }
    }
}

/// What a close did.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CloseReport {
    /// Why it was closed.
    pub reason: Reason,
    /// The status as closing began.
    pub status: PoolStatus,
    /// How long the drain took.
    pub drained: Duration,
    /// The steps, in the order in which they ended.
    pub steps: Vec<StepReport>,
    /// The whole.
    pub took: Duration,
}

impl CloseReport {
    /// One that has no steps, since the whole ended like this.
    pub(crate) fn of(registry: &Registry, reason: Reason, outcome: Outcome) -> Self {
        let held = registry.holders();
        let step = StepReport::new(Arc::from("closing"), Phase::Tasks, outcome, Duration::ZERO, held);
        CloseReport {
            reason,
            status: registry.status_with(built_in_usage),
            drained: Duration::ZERO,
            steps: vec![step],
            took: Duration::ZERO,
        }
    }

    /// Whether every step ended as it should, which includes that there was none.
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

/// A future that resolves when closing starts, and a flag for loops.
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

/// A step that is not a resource: a closure given to `on_close`.
pub(crate) struct Hook {
    pub(crate) name: Arc<str>,
    pub(crate) phase: Phase,
    pub(crate) run: Box<dyn FnOnce() -> Result<(), BoxError> + Send>,
}

/// The closes of one pool: of the whole at most one runs, and of each resource; all who ask for
/// one get its report.
#[derive(Default)]
pub(crate) struct CloseCell {
    whole: Mutex<Whole>,
    announced: Condvar,
    /// The closes of single resources that are under way. None begins once the whole has begun.
    single: Mutex<BTreeMap<Arc<str>, Arc<Course>>>,
    /// Names are not unique.
    running: Mutex<Vec<Arc<str>>>,
    /// Where the steps that run now tell their outcomes.
    steps: Mutex<BTreeMap<u64, oneshot::Sender<Outcome>>>,
}

/// A part of a close that runs on a thread of the close's own.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Step(u64),
    Listener,
}

thread_local! {
    /// Which close this thread runs a part of. It has no destructor, so it can be read at exit.
    static PART: Cell<Option<(usize, Part)>> = const { Cell::new(None) };
}

/// What the watchdog names where it does not end.
struct Running<'a> {
    cell: &'a CloseCell,
    name: Arc<str>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut running = self.cell.running.lock();
        if let Some(place) = running.iter().position(|name| *name == self.name) {
            running.remove(place);
        }
    }
}

/// The close of the whole pool.
#[derive(Default)]
struct Whole {
    begun: bool,
    /// When it must have ended.
    deadline: Option<Instant>,
    /// The closes of single resources that were under way as it began.
    singles: BTreeMap<Arc<str>, Arc<Course>>,
    /// Tells the users that it has begun.
    closing: CancellationToken,
    course: Arc<Course>,
    /// Whether all listeners have had the report.
    announced: bool,
}

/// One close. Whoever waits for it gets its report, even where the pool is open again by then.
#[derive(Default)]
pub(crate) struct Course {
    report: Mutex<Option<Arc<CloseReport>>>,
    ended: Notify,
}

impl Course {
    pub(crate) fn end(&self, report: CloseReport) {
        *self.report.lock() = Some(Arc::new(report));
        self.ended.notify_waiters();
    }

    fn report(&self) -> Option<Arc<CloseReport>> {
        self.report.lock().clone()
    }

    pub(crate) async fn wait(&self) -> Arc<CloseReport> {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if let Some(report) = self.report() {
                return report;
            }
            ended.await;
        }
    }
}

impl CloseCell {
    /// Whether closing has begun, until `reopen`.
    pub(crate) fn is_closing(&self) -> bool {
        self.whole.lock().begun
    }

    /// A flag and a future for users.
    pub(crate) fn closing(&self) -> Closing {
        Closing(self.whole.lock().closing.clone())
    }

    /// When the close that has begun must have ended.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.whole.lock().deadline
    }

    /// The report, if closed.
    pub(crate) fn report(&self) -> Option<Arc<CloseReport>> {
        self.whole.lock().course.report()
    }

    /// The close of the whole pool, begun now unless it was before, and whether the caller is the
    /// one to run it.
    pub(crate) fn begin(&self, limit: Duration) -> (Arc<Course>, bool) {
        let mut whole = self.whole.lock();
        let first = !std::mem::replace(&mut whole.begun, true);
        if first {
            whole.singles.clone_from(&self.single.lock());
        }
        whole.deadline.get_or_insert_with(|| runtime::deadline(limit));
        let (course, closing) = (Arc::clone(&whole.course), whole.closing.clone());
        drop(whole);
        closing.cancel();
        (course, first)
    }

    /// All listeners have had the report of this close.
    pub(crate) fn announce(&self, course: &Arc<Course>) {
        let mut whole = self.whole.lock();
        // Unless the pool is open again.
        if Arc::ptr_eq(&whole.course, course) {
            whole.announced = true;
        }
        drop(whole);
        self.announced.notify_all();
    }

    /// The close of one resource, which is the whole's where that has begun, else begun now unless it
    /// is under way; and whether the caller is the one to run it.
    pub(crate) fn begin_single(&self, name: &Arc<str>) -> (Arc<Course>, bool) {
        let whole = self.whole.lock();
        if whole.begun {
            return (Arc::clone(&whole.course), false);
        }
        let mut single = self.single.lock();
        if let Some(course) = single.get(name) {
            return (Arc::clone(course), false);
        }
        let course = Arc::<Course>::default();
        single.insert(Arc::clone(name), Arc::clone(&course));
        (course, true)
    }

    /// The closes of single resources that were under way as that of the whole began.
    fn singles(&self) -> BTreeMap<Arc<str>, Arc<Course>> {
        self.whole.lock().singles.clone()
    }

    pub(crate) fn end_single(&self, name: &Arc<str>, report: CloseReport) {
        if let Some(course) = self.single.lock().remove(name) {
            course.end(report);
        }
    }

    /// Waits for the close that was begun on a thread that must not touch tokio, and until every
    /// listener has had the report; `None` once this time has come.
    pub(crate) fn wait_blocking(&self, until: Instant) -> Option<Arc<CloseReport>> {
        let mut whole = self.whole.lock();
        loop {
            if whole.announced {
                return whole.course.report();
            }
            if self.announced.wait_until(&mut whole, until).timed_out() {
                return None;
            }
        }
    }

    /// Open again, if closed.
    ///
    /// # Errors
    /// [`Error::Closing`] while it is being closed, and once the process is ending.
    pub(crate) fn reopen(&self) -> Result<(), Error> {
        let mut whole = self.whole.lock();
        // Looked at under the lock, as the process's end waits for what it finds closing.
        if exit::is_ending() {
            return Err(Error::Closing { resource: Arc::from("the process") });
        }
        match (whole.begun, whole.course.report()) {
            (true, None) => return Err(Error::Closing { resource: Arc::from("the pool") }),
            (true, Some(_)) => *whole = Whole::default(),
            (false, _) => {}
        }
        Ok(())
    }

    /// What of this close this thread runs.
    fn part(&self) -> Option<Part> {
        PART.get().filter(|(cell, _)| *cell == ptr::from_ref(self).addr()).map(|(_, part)| part)
    }

    /// Refuses to wait for this close on a thread that it runs on itself.
    fn check_outside(&self, course: &Course, resource: &str) -> Result<(), Error> {
        if course.report().is_none() && self.part().is_some() {
            return Err(Error::Closing { resource: Arc::from(resource) });
        }
        Ok(())
    }

    /// Runs a part of this close, which may be the user's code, and panic.
    fn run_part<T>(&self, part: Part, run: impl FnOnce() -> T) -> std::thread::Result<T> {
        let outer = PART.replace(Some((ptr::from_ref(self).addr(), part)));
        let ended = catch_unwind(AssertUnwindSafe(run));
        PART.set(outer);
        ended
    }

    /// Whether this thread runs a step, and so code that may use what closes later.
    #[inline]
    pub(crate) fn is_inside(&self) -> bool {
        matches!(self.part(), Some(Part::Step(_)))
    }

    /// The process ends from this thread, so a step or listener that it runs does not come back.
    pub(crate) fn leave_part(&self) {
        match self.part() {
            Some(Part::Step(step)) => self.end_step(step, Outcome::Failed("it ended the process".to_owned())),
            Some(Part::Listener) => {
                self.whole.lock().announced = true;
                self.announced.notify_all();
            }
            None => {}
        }
    }

    /// The number of a new step, and its outcome once that is [told](CloseCell::end_step).
    fn begin_step(&self) -> (u64, oneshot::Receiver<Outcome>) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (step, (sender, ended)) = (NEXT.fetch_add(1, Ordering::Relaxed), oneshot::channel());
        self.steps.lock().insert(step, sender);
        (step, ended)
    }

    fn end_step(&self, step: u64, outcome: Outcome) {
        let sender = self.steps.lock().remove(&step);
        if let Some(sender) = sender {
            // Nobody waits any more once it has timed out.
            let _ = sender.send(outcome);
        }
    }

    /// Counts as running, under this name, until that drops.
    fn running_as(&self, name: &str) -> Running<'_> {
        let name = Arc::from(name);
        self.running.lock().push(Arc::clone(&name));
        Running { cell: self, name }
    }

    /// The names of what is running now: steps, the drain, a listener.
    pub(crate) fn running(&self) -> Vec<Arc<str>> {
        self.running.lock().clone()
    }
}

/// Starts closing the whole pool, unless that was started before. Does not wait.
///
/// # Errors
/// [`Error::Closing`] on a thread that this close itself runs on, which must not wait for it.
pub(crate) fn start(
    registry: &Arc<Registry>,
    reason: Reason,
    deadline: Option<Duration>,
) -> Result<Arc<Course>, Error> {
    let limit = deadline.unwrap_or(registry.context.options.close.deadline);
    let (course, first) = registry.context.close.begin(limit);
    if first {
        let (registry, course) = (Arc::clone(registry), Arc::clone(&course));
        hand_over(Box::new(move || {
            let report = run_close(&registry, reason, &registry.slots(), close_pool(&registry, reason, limit));
            if report.all_closed() {
                tracing::info!(%reason, took = ?report.took, "closed");
            } else {
                tracing::warn!(%reason, %report, "closed with trouble");
            }
            course.end(report.clone());
            let running = registry.context.close.running_as("a listener");
            for listener in registry.context.on_report() {
                if registry.context.close.run_part(Part::Listener, || listener(&report)).is_err() {
                    tracing::error!("a listener for close reports panicked");
                }
            }
            drop(running);
            registry.context.close.announce(&course);
        }));
    }
    registry.context.close.check_outside(&course, "the pool")?;
    Ok(course)
}

/// Starts closing one resource, unless that is under way; the pool stays open. Where the whole
/// pool is closing, that is the close. Does not wait.
///
/// # Errors
/// As [`start`].
pub(crate) fn start_one(
    registry: &Arc<Registry>,
    slot: Arc<dyn AnySlot>,
    reason: Reason,
) -> Result<Arc<Course>, Error> {
    let (course, first) = registry.context.close.begin_single(slot.name());
    if !first {
        registry.context.close.check_outside(&course, slot.name())?;
    } else {
        let registry = Arc::clone(registry);
        hand_over(Box::new(move || {
            let name = Arc::clone(slot.name());
            let limit = registry.context.options.close.deadline;
            let close = close_slots(&registry, vec![Arc::clone(&slot)], Vec::new(), reason, limit);
            let report = run_close(&registry, reason, &[slot], close);
            registry.context.close.end_single(&name, report);
        }));
    }
    Ok(course)
}

fn run_close(
    registry: &Registry,
    reason: Reason,
    slots: &[Arc<dyn AnySlot>],
    close: impl Future<Output = CloseReport>,
) -> CloseReport {
    let close = async {
        tokio::pin!(close);
        match within(SILENCE, &mut close).await {
            Ok(report) => report,
            Err(_elapsed) => {
                if registry.context.options.close.stderr
                    && let Some(line) = waited_for(&registry.context.close, slots)
                {
                    exit::tell(&line);
                }
                close.await
            }
        }
    };
    let run =
        || Ok::<_, io::Error>(tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(close));
    let outcome = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(report)) => return report,
        Ok(Err(error)) => Outcome::Failed(error.to_string()),
        Err(payload) => Outcome::Panicked(panic_message(&*payload)),
    };
    CloseReport::of(registry, reason, outcome)
}

/// One line on what a close waits for, and which lines of source hold it. `None` between two steps.
fn waited_for(close: &CloseCell, slots: &[Arc<dyn AnySlot>]) -> Option<String> {
    let mut waits: Vec<String> = close.running().iter().map(|name| name.to_string()).collect();
    for slot in slots.iter().filter(|slot| slot.state() == State::Draining) {
        let (work, holders) = (slot.activity().tally.now(), slot.holders());
        let work: Vec<_> = work.iter().map(|(work, count)| work.counted(*count)).collect();
        if !work.is_empty() {
            waits.push(format!("{}: {} in progress", slot.name(), work.join(", ")));
        }
        if !holders.is_empty() {
            waits.push(format!("{}: held by {}", slot.name(), Few(&holders, ", ")));
        }
    }
    let told = || format!("resource-pool: closing has taken {SILENCE:?}; it waits for {}\n", waits.join("; "));
    (!waits.is_empty()).then(told)
}

/// Runs a job on a thread of its own, or on the closer's where none can be had.
fn hand_over(job: Job) {
    match Closer::of_process() {
        Ok(closer) => Closer::give(&closer.jobs, job),
        Err(error) => {
            tracing::error!(%error, "closing without a thread of its own");
            job();
        }
    }
}

pub(crate) type Job = Box<dyn FnOnce() + Send>;

static CLOSER: Singleton<OnceCell<Closer>> = Singleton::new(Room::Closer);

/// The threads that closing is sure to have. They are started before the first connection, since no thread can be
/// relied on to start while a process exits.
pub(crate) struct Closer {
    /// The closes; each has a thread of its own if one can be had.
    jobs: Sender<Job>,
    /// The steps that got no thread of their own. They run here one after the other.
    steps: Sender<Job>,
}

impl Closer {
    fn of_process() -> io::Result<&'static Closer> {
        CLOSER.of(Process::current()).get_or_try_init(|| {
            let (jobs, steps) = (Closer::start("resource-pool-closer")?, Closer::start("resource-pool-steps")?);
            Ok(Closer { jobs, steps })
        })
    }

    /// A thread that gives each job a thread of its own, or else runs it itself.
    fn start(name: &str) -> io::Result<Sender<Job>> {
        let (sender, jobs) = std::sync::mpsc::channel::<Job>();
        let serve = move || {
            for job in jobs {
                if let Err(job) = on_thread("resource-pool-close".to_owned(), job) {
                    job();
                }
            }
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(serve)?;
        Ok(sender)
    }

    fn give(to: &Sender<Job>, job: Job) {
        // Its thread lives as long as the process.
        if let Err(unsent) = to.send(job) {
            (unsent.0)();
        }
    }
}

/// Runs a job on a thread of its own. Gives the job back where none can be had.
fn on_thread(name: String, job: Job) -> Result<(), Job> {
    let kept = Arc::new(Mutex::new(Some(job)));
    let own = Arc::clone(&kept);
    let run = move || {
        let job = own.lock().take();
        if let Some(job) = job {
            job();
        }
    };
    let Err(error) = std::thread::Builder::new().name(name).spawn(run) else { return Ok(()) };
    tracing::debug!(%error, "no thread can be had");
    let job = kept.lock().take();
    job.map_or(Ok(()), Err)
}

/// Starts the closer's threads, before there is anything to close.
///
/// # Errors
/// When the process can have no more threads.
pub(crate) fn arm() -> io::Result<()> {
    Closer::of_process().map(drop)
}

async fn close_pool(registry: &Arc<Registry>, reason: Reason, limit: Duration) -> CloseReport {
    let started = Instant::now();
    let deadline = runtime::deadline(limit);
    let singles = registry.context.close.singles();
    let (alone, slots): (Vec<_>, Vec<_>) =
        registry.slots().into_iter().partition(|slot| singles.contains_key(slot.name()));
    let mut report = close_slots(registry, slots, registry.take_hooks(), reason, limit).await;
    // What was being closed by itself has the drivers' runtime until it is done.
    for slot in alone {
        let left = deadline.saturating_duration_since(Instant::now());
        match within(left, singles[slot.name()].wait()).await {
            Ok(single) => {
                // It may have been connected anew after its step, before that close ended and all closed.
                let left = deadline.saturating_duration_since(Instant::now());
                let again = close_slots(registry, vec![slot], Vec::new(), reason, left).await;
                let steps = if again.steps.is_empty() { &single.steps } else { &again.steps };
                report.steps.extend_from_slice(steps);
            }
            Err(_goes_down_with_the_runtime) => {
                let (name, held) = (Arc::clone(slot.name()), slot.holders());
                slot.force();
                let step = StepReport::new(name, slot.phase(), Outcome::TimedOut, started.elapsed(), held);
                report.steps.push(step.of(&*slot));
            }
        }
    }
    // So has what was lost, or came too late, until it is said goodbye to.
    for slot in registry.slots() {
        let said = slot.activity().until(|| slot.goodbyes_said().then_some(()));
        let _goes_down_with_the_runtime = within(deadline.saturating_duration_since(Instant::now()), said).await;
    }
    report.took = started.elapsed();
    // What `run` was given goes on there after closing everything itself.
    if registry.main.tally.now().is_empty() || registry.main.is_draining() {
        registry.context.runtime.end();
    }
    report
}

async fn close_slots(
    registry: &Arc<Registry>,
    slots: Vec<Arc<dyn AnySlot>>,
    hooks: Vec<Hook>,
    reason: Reason,
    limit: Duration,
) -> CloseReport {
    let started = Instant::now();
    let begun = Moment::now();
    let deadline = runtime::deadline(limit);
    let running = registry.context.close.running_as("the drain");
    let mut status = registry.status_with(built_in_usage);
    let options = &registry.context.options.close;

    let (connecting, settled): (Vec<_>, Vec<_>) = slots.into_iter().partition(|slot| slot.begin_settling());
    let mut slots: Vec<_> = settled.into_iter().filter(|slot| slot.begin_close()).collect();
    let mut levels = order(slots.iter().chain(&connecting), hooks, &registry.edges());
    let reserved = options.reserve(limit, levels.len());
    let spare = limit.saturating_sub(reserved);
    let stop_intake = |slots: Vec<Arc<dyn AnySlot>>| {
        in_parallel(&registry.context, INTAKE.min(spare), slots.into_iter().map(AnySlot::stop_intake))
    };
    let ((), (), settled) = tokio::join!(
        ask_usage(registry, &mut status, TELLING.min(spare)),
        stop_intake(slots.clone()),
        settle(&registry.context, connecting, options.step.min(spare))
    );
    let mut unconnected = BTreeMap::new();
    for (slot, ended) in settled {
        match ended {
            None => slots.push(slot),
            Some(ended) => drop(unconnected.insert(Arc::clone(slot.name()), ended)),
        }
    }
    let mut active: Vec<_> = slots.iter().map(|slot| Arc::clone(slot.activity())).collect();
    if matches!(reason, Reason::Signal(_)) {
        registry.main.set_draining(true);
        active.push(Arc::clone(&registry.main));
    }
    let left = deadline.saturating_duration_since(Instant::now());
    let drain_limit = options.drain.min(left.saturating_sub(reserved));
    drain(&registry.context, &slots, &active, begun, drain_limit).await;
    let drained = started.elapsed();
    let busy: BTreeSet<_> =
        slots.iter().filter(|slot| !is_idle(&***slot)).map(|slot| Arc::clone(slot.name())).collect();
    for slot in &slots {
        slot.shut_to_outside();
    }
    drop(running);

    let mut steps = Vec::new();
    while let Some(level) = levels.pop_front() {
        let left = deadline.saturating_duration_since(Instant::now());
        let own = left - options.reserve(left, levels.len());
        let grace = GRACE.min(own / 2);
        let mut running = JoinSet::new();
        let mut begun = HashMap::new();
        for step in level {
            let (name, phase) = (step.name(), step.phase());
            if step.is_resource()
                && let Some((outcome, took)) = unconnected.remove(&name)
            {
                steps.push(StepReport::new(name, phase, outcome, took, Vec::new()));
                continue;
            }
            let budget = options.budget(phase).min(own - grace);
            let drains_again = !busy.contains(&name);
            let task = running.spawn(run_step(Arc::clone(registry), step, budget, grace, drains_again));
            begun.insert(task.id(), (name, phase, Instant::now()));
        }
        while let Some(ended) = running.join_next_with_id().await {
            match ended {
                Ok((_, step)) => steps.push(step),
                // However it ended, it is in the report.
                Err(error) => {
                    if let Some((name, phase, began)) = begun.remove(&error.id()) {
                        let outcome = error
                            .try_into_panic()
                            .map_or(Outcome::Skipped, |payload| Outcome::Panicked(panic_message(&*payload)));
                        steps.push(StepReport::new(name, phase, outcome, began.elapsed(), Vec::new()));
                    }
                }
            }
        }
    }
    CloseReport { reason, status, drained, steps, took: started.elapsed() }
}

/// How full a resource is, unless users' code would have to tell it, which may hang.
fn built_in_usage(slot: &dyn AnySlot) -> Usage {
    if slot.is_users() { Usage::default() } else { slot.usage() }
}

/// Puts into the status how full users' own kinds are. They are asked aside, and nothing is known of one that hangs, nor
/// of those behind it.
async fn ask_usage(registry: &Registry, status: &mut PoolStatus, limit: Duration) {
    let slots: Vec<_> = registry.slots().into_iter().filter(|slot| slot.is_users()).collect();
    if slots.is_empty() {
        return;
    }
    let told = Arc::new(Mutex::new(HashMap::new()));
    let telling = Arc::clone(&told);
    let ask = move || {
        for slot in slots {
            let usage = slot.usage();
            telling.lock().insert(Arc::clone(slot.name()), usage);
        }
    };
    if aside(&registry.context, limit, ask).await.is_none() {
        tracing::warn!(?limit, "the usage of a resource does not come back; it must not block its thread");
    }
    let told = told.lock();
    for resource in &mut status.resources {
        if let Some(usage) = told.get(&resource.name) {
            resource.usage = *usage;
        }
    }
}

/// How an attempt that has connected nothing ended, and how long that took.
type Unconnected = (Outcome, Duration);

/// Waits until the attempts in flight at these have come to their ends, and begins to close what they have connected.
async fn settle(
    context: &Arc<Context>,
    connecting: Vec<Arc<dyn AnySlot>>,
    limit: Duration,
) -> Vec<(Arc<dyn AnySlot>, Option<Unconnected>)> {
    let started = Instant::now();
    let mut settling = JoinSet::new();
    for slot in connecting {
        let context = Arc::clone(context);
        settling.spawn(async move {
            let in_time = within(limit, Arc::clone(&slot).settled()).await.is_ok();
            if slot.begin_close() {
                let left = limit.saturating_sub(started.elapsed());
                in_parallel(&context, INTAKE.min(left), std::iter::once(Arc::clone(&slot).stop_intake())).await;
                return (slot, None);
            }
            let outcome = if in_time { Outcome::Closed } else { Outcome::Forced };
            (slot, Some((outcome, started.elapsed())))
        });
    }
    settling.join_all().await
}

fn is_idle(slot: &dyn AnySlot) -> bool {
    slot.activity().tally.now().is_empty() && !slot.is_held(Held::Checkouts)
}

/// Waits for work, not for idle handles: those only for a moment, and only if they were used lately.
async fn drain(
    context: &Arc<Context>,
    slots: &[Arc<dyn AnySlot>],
    active: &[Arc<Activity>],
    begun: Moment,
    limit: Duration,
) {
    let held = context.options.close.held;
    let flushed = in_parallel(context, limit, slots.iter().cloned().map(AnySlot::flush));
    let idle = |activity: &Arc<Activity>| {
        let slot = slots.iter().find(|slot| Arc::ptr_eq(slot.activity(), activity));
        slot.map_or_else(|| activity.tally.now().is_empty(), |slot| is_idle(&**slot))
    };
    let worked = async {
        // Until none is at work, since what ends at one may go on at another that was idle before.
        while let Some(activity) = active.iter().find(|activity| !idle(activity)) {
            activity.until(|| idle(activity).then_some(())).await;
        }
    };
    let released = async {
        for slot in slots {
            let worked_lately = slot.activity().tally.ended_within(held, begun);
            let lately = if worked_lately { Held::Any } else { Held::TakenWithin(held, begun) };
            slot.activity().until(|| (!slot.is_held(lately)).then_some(())).await;
        }
    };
    let all = async { tokio::join!(flushed, worked, within(held, released)) };
    let _what_is_left_is_reported_per_step = within(limit, all).await;
}

/// Waits for what the closing code of earlier phases has begun at this resource.
async fn drain_again(context: &Arc<Context>, slot: &Arc<dyn AnySlot>, limit: Duration) {
    if is_idle(&**slot) {
        return;
    }
    let flushed = in_parallel(context, limit, std::iter::once(Arc::clone(slot).flush()));
    let idle = slot.activity().until(|| is_idle(&**slot).then_some(()));
    let _what_is_left_is_reported = within(limit, async { tokio::join!(flushed, idle) }).await;
}

/// Runs these on the pool's runtime, all at once, for at most this long.
async fn in_parallel<F>(context: &Context, limit: Duration, futures: impl Iterator<Item = F>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let Some(runtime) = context.runtime.current() else { return };
    let mut running = JoinSet::new();
    for future in futures {
        running.spawn_on(future, &runtime);
    }
    let all = async {
        while let Some(ended) = running.join_next().await {
            if let Err(error) = ended {
                tracing::warn!(%error, "while closing");
            }
        }
    };
    if within(limit, all).await.is_err() {
        tracing::debug!(?limit, "not all stopped in time");
    }
}

enum Step {
    Resource(Arc<dyn AnySlot>),
    Hook(Hook),
}

impl Step {
    fn name(&self) -> Arc<str> {
        match self {
            Step::Resource(slot) => Arc::clone(slot.name()),
            Step::Hook(hook) => Arc::clone(&hook.name),
        }
    }

    fn is_resource(&self) -> bool {
        matches!(self, Step::Resource(_))
    }

    fn phase(&self) -> Phase {
        match self {
            Step::Resource(slot) => slot.phase(),
            Step::Hook(hook) => hook.phase,
        }
    }
}

/// What closes together, in order: by phase, and within a phase dependants before what they use.
fn order<'a>(
    slots: impl Iterator<Item = &'a Arc<dyn AnySlot>>,
    hooks: Vec<Hook>,
    edges: &Edges,
) -> VecDeque<Vec<Step>> {
    let depths = edges.depths();
    let mut levels: BTreeMap<(Phase, usize), Vec<Step>> = BTreeMap::new();
    for step in slots.cloned().map(Step::Resource).chain(hooks.into_iter().map(Step::Hook)) {
        let depth = depths.get(&*step.name()).copied().unwrap_or(0);
        levels.entry((step.phase(), depth)).or_default().push(step);
    }
    levels.into_values().collect()
}

/// A step within its budget; once cut it has the grace to end in. Without a budget it is skipped.
async fn run_step(
    registry: Arc<Registry>,
    step: Step,
    budget: Duration,
    grace: Duration,
    drains_again: bool,
) -> StepReport {
    let started = Instant::now();
    let name = step.name();
    let phase = step.phase();
    let running = registry.context.close.running_as(&name);
    let slot = match &step {
        Step::Resource(slot) => Some(Arc::clone(slot)),
        Step::Hook(_) => None,
    };
    if let Some(slot) = &slot {
        slot.shut();
        if drains_again {
            drain_again(&registry.context, slot, budget / 2).await;
        }
        slot.activity().tally.end_drain();
    }
    let held = slot.as_ref().map_or_else(Vec::new, |slot| slot.holders());
    let cancel = CancellationToken::new();
    let mut ended = (!budget.is_zero()).then(|| on_own_thread(&registry, step, cancel.clone()));
    let mut outcome = match &mut ended {
        None => Outcome::Skipped,
        Some(ended) => {
            let left = budget.saturating_sub(started.elapsed());
            within(left, ended).await.map_or(Outcome::TimedOut, |outcome| outcome.unwrap_or(Outcome::TimedOut))
        }
    };
    if outcome != Outcome::Closed
        && let Some(slot) = &slot
    {
        // It may be the user's code, and block.
        let cut = Arc::clone(slot);
        let _hangs_by_itself = aside(&registry.context, grace, move || cut.force()).await;
        if matches!(outcome, Outcome::TimedOut)
            && let Some(ended) = ended
            && within(grace, ended).await.is_ok_and(|ended| ended.is_ok())
        {
            outcome = Outcome::Forced;
        }
    }
    cancel.cancel();
    if let Some(slot) = &slot {
        let last = Arc::clone(slot);
        match aside(&registry.context, grace.max(LAST_DROP), move || last.finish_close()).await {
            Some(Ok(())) => {}
            Some(Err(message)) => outcome = Outcome::Panicked(message),
            None => outcome = Outcome::TimedOut,
        }
        tracing::info!(resource = %name, %outcome, "closed");
    }
    drop(running);
    let report = StepReport::new(name, phase, outcome, started.elapsed(), held);
    match slot {
        Some(slot) => report.of(&*slot),
        None => report,
    }
}

/// Runs a step on its own thread, in the context of the pool's runtime, so that one which blocks
/// or panics is only itself.
fn on_own_thread(registry: &Arc<Registry>, step: Step, cancel: CancellationToken) -> oneshot::Receiver<Outcome> {
    let (number, ended) = registry.context.close.begin_step();
    let runtime = registry.context.runtime.current();
    let name = format!("resource-pool-close-{}", step.name());
    let registry = Arc::clone(registry);
    let run = move || {
        let outcome = registry.context.close.run_part(Part::Step(number), || match step {
            Step::Hook(hook) => (hook.run)().map_err(Failure::transient),
            Step::Resource(slot) => match runtime {
                Some(runtime) => runtime.block_on(async {
                    tokio::select! {
                        // First, as timers of a runtime that has ended panic.
                        biased;
                        () = cancel.cancelled() => Err(Failure::transient("given up")),
                        closed = slot.close() => closed,
                    }
                }),
                None => Err(Failure::transient("the runtime that it lives on has ended")),
            },
        });
        let outcome = match outcome {
            Ok(Ok(())) => Outcome::Closed,
            Ok(Err(failure)) => Outcome::Failed(failure.to_string()),
            Err(payload) => Outcome::Panicked(panic_message(&*payload)),
        };
        registry.context.close.end_step(number, outcome);
    };
    on_some_thread(name, Box::new(run));
    ended
}

/// Runs code that may block or drop what it likes aside, in the context of the pool's runtime, and waits for it at most
/// this long.
async fn aside<T: Send + 'static>(
    context: &Context,
    limit: Duration,
    run: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, ended) = oneshot::channel();
    let runtime = context.runtime.current();
    let run = move || {
        let _context = runtime.as_ref().map(tokio::runtime::Handle::enter);
        // Nobody waits any more once it is late.
        let _ = sender.send(run());
    };
    on_some_thread("resource-pool-close".to_owned(), Box::new(run));
    within(limit, ended).await.ok()?.ok()
}

/// Runs a job on a thread of its own or, where none can be had, on the one that was kept for that.
fn on_some_thread(name: String, job: Job) {
    if let Err(job) = on_thread(name, job) {
        match Closer::of_process() {
            Ok(closer) => Closer::give(&closer.steps, job),
            Err(error) => {
                tracing::error!(%error, "a closing step's thread could not be started");
                job();
            }
        }
    }
}
