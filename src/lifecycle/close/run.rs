//! Closing: intake stops, work drains, then every step in its phase, each within a budget.
//!
//! A close runs on a thread of its own with a timer of its own, and each step on another, so
//! neither busy workers nor a step that blocks can delay it. Callers only wait for the shared
//! result: cancelling one cancels nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::base::clock::Moment;
use crate::base::error::{Error, Failure, Few, panic_message};
use crate::base::runtime::{self, within};
use crate::base::stderr;
use crate::base::sync::Mutex;
use crate::lifecycle::activity::Activity;
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::close::closer::{Closer, Job, hand_over, on_thread};
use crate::lifecycle::close::edges::Edges;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::close::pool::{Hook, Pool};
use crate::lifecycle::close::report::{CloseReport, Outcome, Reason, StepReport};
use crate::lifecycle::close::state::{CloseCell, Course, Part};
use crate::lifecycle::context::Context;
use crate::lifecycle::event::What;
use crate::lifecycle::lease::Held;
use crate::lifecycle::status::{PoolStatus, State, Usage};

/// How long a step that was cut has to end: this, or half of what its level has. Part of the close budget.
const GRACE: Duration = Duration::from_millis(500);
/// How long the drop of the last handle may take at least, however little time its step has left. It may exceed the
/// close budget by that.
const LAST_DROP: Duration = Duration::from_millis(100);
/// How long a consumer's cancelling may take. Part of the close budget.
const INTAKE: Duration = Duration::from_secs(1);
/// How long users' code may take to tell how full its resource is. Part of the close budget, beside [`INTAKE`].
const TELLING: Duration = Duration::from_millis(500);
/// How long closing is silent about what it waits for. It takes no time: closing goes on meanwhile.
const SILENCE: Duration = Duration::from_secs(1);

impl CloseReport {
    /// One that has no steps, since the whole ended like this.
    pub(crate) fn of(pool: &dyn Pool, reason: Reason, outcome: Outcome) -> Self {
        let held = pool.holders();
        let step = StepReport::new(Arc::from("closing"), Phase::Tasks, outcome, Duration::ZERO, held);
        CloseReport {
            reason,
            status: pool.status_with(built_in_usage),
            drained: Duration::ZERO,
            steps: vec![step],
            took: Duration::ZERO,
        }
    }
}

/// Starts closing the whole pool, unless that was started before. Does not wait.
///
/// # Errors
/// [`Error::Closing`] on a thread that this close itself runs on, which must not wait for it.
pub(crate) fn start(pool: &Arc<dyn Pool>, reason: Reason, deadline: Option<Duration>) -> Result<Arc<Course>, Error> {
    let limit = deadline.unwrap_or(pool.context().options.close.deadline);
    let (course, first) = pool.context().close.begin(limit);
    if first {
        let (pool, course) = (Arc::clone(pool), Arc::clone(&course));
        hand_over(Box::new(move || {
            pool.context().tell(None, What::Closing { reason });
            let report = Arc::new(run_close(&*pool, reason, &pool.slots(), close_pool(&pool, reason, limit)));
            pool.context().tell(None, What::Closed { report: Arc::clone(&report) });
            course.end(CloseReport::clone(&report));
            let running = pool.context().close.running_as("a listener");
            for listener in pool.context().on_report() {
                if pool.context().close.run_part(Part::Listener, || listener(&report)).is_err() {
                    tracing::error!("a listener for close reports panicked");
                }
            }
            drop(running);
            pool.context().close.announce(&course);
        }));
    }
    pool.context().close.check_outside(&course, "the pool")?;
    Ok(course)
}

/// Starts closing one resource, unless that is under way; the pool stays open. Where the whole
/// pool is closing, that is the close. Does not wait.
///
/// # Errors
/// As [`start`].
pub(crate) fn start_one(pool: &Arc<dyn Pool>, slot: Arc<dyn AnySlot>, reason: Reason) -> Result<Arc<Course>, Error> {
    let (course, first) = pool.context().close.begin_single(slot.name());
    if !first {
        pool.context().close.check_outside(&course, slot.name())?;
    } else {
        let pool = Arc::clone(pool);
        hand_over(Box::new(move || {
            let name = Arc::clone(slot.name());
            let limit = pool.context().options.close.deadline;
            let close = close_slots(&pool, vec![Arc::clone(&slot)], Vec::new(), reason, limit);
            let report = run_close(&*pool, reason, &[slot], close);
            pool.context().close.end_single(&name, report);
        }));
    }
    Ok(course)
}

fn run_close(
    pool: &dyn Pool,
    reason: Reason,
    slots: &[Arc<dyn AnySlot>],
    close: impl Future<Output = CloseReport>,
) -> CloseReport {
    let close = async {
        tokio::pin!(close);
        match within(SILENCE, &mut close).await {
            Ok(report) => report,
            Err(_elapsed) => {
                if pool.context().options.close.stderr
                    && let Some(line) = waited_for(&pool.context().close, slots)
                {
                    stderr::tell(&line);
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
    CloseReport::of(pool, reason, outcome)
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

async fn close_pool(pool: &Arc<dyn Pool>, reason: Reason, limit: Duration) -> CloseReport {
    let started = Instant::now();
    let deadline = runtime::deadline(limit);
    let singles = pool.context().close.singles();
    let (alone, slots): (Vec<_>, Vec<_>) = pool.slots().into_iter().partition(|slot| singles.contains_key(slot.name()));
    let mut report = close_slots(pool, slots, pool.take_hooks(), reason, limit).await;
    // What was being closed by itself has the drivers' runtime until it is done.
    for slot in alone {
        let left = deadline.saturating_duration_since(Instant::now());
        match within(left, singles[slot.name()].wait()).await {
            Ok(single) => {
                // It may have been connected anew after its step, before that close ended and all closed.
                let left = deadline.saturating_duration_since(Instant::now());
                let again = close_slots(pool, vec![slot], Vec::new(), reason, left).await;
                let steps = if again.steps.is_empty() { &single.steps } else { &again.steps };
                report.steps.extend_from_slice(steps);
            }
            Err(_goes_down_with_the_runtime) => {
                let (name, held) = (Arc::clone(slot.name()), slot.holders());
                slot.force();
                let step = StepReport::new(name, slot.phase(), Outcome::TimedOut, started.elapsed(), held);
                let step = with_work(step, &*slot);
                tell_end(pool.context(), Some(&*slot), &step);
                report.steps.push(step);
            }
        }
    }
    // Goodbyes to lost and late handles need the runtime as well.
    for slot in pool.slots() {
        let said = slot.activity().until(|| slot.goodbyes_said().then_some(()));
        let _goes_down_with_the_runtime = within(deadline.saturating_duration_since(Instant::now()), said).await;
    }
    report.took = started.elapsed();
    // What `run` was given goes on there after closing everything itself.
    if pool.main().tally.now().is_empty() || pool.main().is_draining() {
        pool.context().runtime.end();
    }
    report
}

async fn close_slots(
    pool: &Arc<dyn Pool>,
    slots: Vec<Arc<dyn AnySlot>>,
    hooks: Vec<Hook>,
    reason: Reason,
    limit: Duration,
) -> CloseReport {
    let started = Instant::now();
    let begun = Moment::now();
    let deadline = runtime::deadline(limit);
    let running = pool.context().close.running_as("the drain");
    let mut status = pool.status_with(built_in_usage);
    let options = &pool.context().options.close;

    let (connecting, settled): (Vec<_>, Vec<_>) = slots.into_iter().partition(|slot| slot.begin_settling());
    let tell_start = |slot: &Arc<dyn AnySlot>| {
        slot.activity().tell(slot.condition().generation, What::Closing { reason });
    };
    let mut slots: Vec<_> = settled.into_iter().filter(|slot| slot.begin_close()).inspect(tell_start).collect();
    let mut levels = order(slots.iter().chain(&connecting), hooks, &pool.edges());
    let reserved = options.reserve(limit, levels.len());
    let spare = limit.saturating_sub(reserved);
    let stop_intake = |slots: Vec<Arc<dyn AnySlot>>| {
        in_parallel(pool.context(), INTAKE.min(spare), slots.into_iter().map(AnySlot::stop_intake))
    };
    let ((), (), settled) = tokio::join!(
        ask_usage(&**pool, &mut status, TELLING.min(spare)),
        stop_intake(slots.clone()),
        settle(pool.context(), connecting, options.step.min(spare))
    );
    let mut unconnected = BTreeMap::new();
    for (slot, ended) in settled {
        match ended {
            None => {
                tell_start(&slot);
                slots.push(slot);
            }
            Some(ended) => drop(unconnected.insert(Arc::clone(slot.name()), ended)),
        }
    }
    let mut active: Vec<_> = slots.iter().map(|slot| Arc::clone(slot.activity())).collect();
    if matches!(reason, Reason::Signal(_)) {
        pool.main().set_draining(true);
        active.push(Arc::clone(pool.main()));
    }
    let left = deadline.saturating_duration_since(Instant::now());
    let drain_limit = options.drain.min(left.saturating_sub(reserved));
    drain(pool.context(), &slots, &active, begun, drain_limit).await;
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
                let step = StepReport::new(name, phase, outcome, took, Vec::new());
                tell_end(pool.context(), None, &step);
                steps.push(step);
                continue;
            }
            let budget = options.budget(phase).min(own - grace);
            let drains_again = !busy.contains(&name);
            let task = running.spawn(run_step(Arc::clone(pool), step, budget, grace, drains_again));
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
                        let step = StepReport::new(name, phase, outcome, began.elapsed(), Vec::new());
                        tell_end(pool.context(), None, &step);
                        steps.push(step);
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
async fn ask_usage(pool: &dyn Pool, status: &mut PoolStatus, limit: Duration) {
    let slots: Vec<_> = pool.slots().into_iter().filter(|slot| slot.is_users()).collect();
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
    if aside(pool.context(), limit, ask).await.is_none() {
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
    pool: Arc<dyn Pool>,
    step: Step,
    budget: Duration,
    grace: Duration,
    drains_again: bool,
) -> StepReport {
    let started = Instant::now();
    let name = step.name();
    let phase = step.phase();
    let running = pool.context().close.running_as(&name);
    let slot = match &step {
        Step::Resource(slot) => Some(Arc::clone(slot)),
        Step::Hook(_) => None,
    };
    if let Some(slot) = &slot {
        slot.shut();
        if drains_again {
            drain_again(pool.context(), slot, budget / 2).await;
        }
        slot.activity().tally.end_drain();
    }
    let held = slot.as_ref().map_or_else(Vec::new, |slot| slot.holders());
    let cancel = CancellationToken::new();
    let mut ended = (!budget.is_zero()).then(|| on_own_thread(&pool, step, cancel.clone()));
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
        let _hangs_by_itself = aside(pool.context(), grace, move || cut.force()).await;
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
        match aside(pool.context(), grace.max(LAST_DROP), move || last.finish_close()).await {
            Some(Ok(())) => {}
            Some(Err(message)) => outcome = Outcome::Panicked(message),
            None => outcome = Outcome::TimedOut,
        }
    }
    drop(running);
    let step = StepReport::new(name, phase, outcome, started.elapsed(), held);
    let step = match &slot {
        Some(slot) => with_work(step, &**slot),
        None => step,
    };
    tell_end(pool.context(), slot.as_deref(), &step);
    step
}

/// A step with what became of its resource's work.
fn with_work(step: StepReport, slot: &dyn AnySlot) -> StepReport {
    let tally = &slot.activity().tally;
    let (finished, given_up, unfinished) = (tally.finished(), tally.given_up(), tally.unfinished());
    StepReport { finished, given_up, unfinished, ..step }
}

fn tell_end(context: &Context, slot: Option<&dyn AnySlot>, step: &StepReport) {
    let what = What::StepEnded { step: step.clone() };
    match slot {
        Some(slot) => slot.activity().tell(slot.condition().generation, what),
        None => context.tell(Some(&step.name), what),
    }
}

/// Runs a step on its own thread, in the context of the pool's runtime, so that one which blocks
/// or panics is only itself.
fn on_own_thread(pool: &Arc<dyn Pool>, step: Step, cancel: CancellationToken) -> oneshot::Receiver<Outcome> {
    let (number, ended) = pool.context().close.begin_step();
    let runtime = pool.context().runtime.current();
    let name = format!("resource-pool-close-{}", step.name());
    let pool = Arc::clone(pool);
    let run = move || {
        let outcome = pool.context().close.run_part(Part::Step(number), || match step {
            Step::Hook(hook) => (hook.run)().map_err(Failure::transient),
            Step::Resource(slot) => match runtime {
                Some(runtime) => runtime.block_on(async {
                    tokio::select! {
                        biased; // Cancelling comes first, as timers of a runtime that has ended panic.
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
        pool.context().close.end_step(number, outcome);
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
