//! One step of a close: a resource or a hook, within its budget.
//!
//! [`run`](crate::lifecycle::close::run) sorts the steps into levels with [`order`], and runs those of a level side by
//! side with [`run_step`].
//! Threads: the closing code of a step runs on a thread of its own. Cutting streams and dropping the last handle may be
//! users' code as well, so they run on further threads.
//! Invariant: each wait for such a thread has a limit, and a step that has begun always ends with a report.
//! Locks: none is held here, so code of users may take as long as it likes without blocking another step.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::base::error::{Failure, panic_message};
use crate::base::runtime::within;
use crate::lifecycle::activity::Activity;
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::close::closer::{aside, drop_aside, on_some_thread};
use crate::lifecycle::close::drain::drain_again;
use crate::lifecycle::close::edges::Edges;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::close::pool::{Hook, HookRun, Pool};
use crate::lifecycle::close::report::{Outcome, StepReport};
use crate::lifecycle::close::state::Role;
use crate::lifecycle::context::Context;
use crate::lifecycle::event::What;
use crate::lifecycle::spans::{self, TaskSpan};
use crate::lifecycle::wait_group::WaitGroup;

/// How long work that was begun just before leasing ended has to end, if the drain reached its limit. Part of the
/// step's budget.
const MOMENT: Duration = Duration::from_millis(100);
/// The least time that a step that is given up has to end in, and then the drop of its last handle, however little time
/// is left. They may exceed the close budget by that, each. The usage that a user's own kind tells between the two has
/// only the time that is left.
const LAST: Duration = Duration::from_millis(100);

pub(crate) enum Step {
    Resource(Arc<dyn AnySlot>),
    Hook(Hook),
    /// The background tasks and threads of one name, which the step waits for.
    Tasks(Arc<WaitGroup>),
}

impl Step {
    pub(crate) fn name(&self) -> Arc<str> {
        match self {
            Step::Resource(slot) => Arc::clone(slot.name()),
            Step::Hook(hook) => Arc::clone(&hook.name),
            Step::Tasks(group) => Arc::clone(&group.activity.name),
        }
    }

    /// The slot of a resource.
    pub(crate) fn slot(&self) -> Option<Arc<dyn AnySlot>> {
        match self {
            Step::Resource(slot) => Some(Arc::clone(slot)),
            _ => None,
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        match self {
            Step::Resource(slot) => slot.phase(),
            Step::Hook(hook) => hook.phase,
            Step::Tasks(_) => Phase::Tasks,
        }
    }
}

/// The steps that close together, by their place: the phase, and within it how many levels of dependants are before them.
pub(crate) type StepLevels = BTreeMap<(Phase, usize), Vec<Step>>;

/// Sorts steps into levels: by phase, and within a phase dependants before their dependencies. One whose phase is over
/// comes next.
pub(crate) fn order(steps: impl Iterator<Item = Step>, edges: &Edges) -> StepLevels {
    let depths = edges.depths();
    let mut levels = StepLevels::new();
    for step in steps {
        let depth = depths.get(&*step.name()).copied().unwrap_or(0);
        levels.entry((step.phase(), depth)).or_default().push(step);
    }
    levels
}

/// Runs a step within its budget. A step that is cut has the grace to end in. Without a budget it is skipped.
pub(crate) async fn run_step(
    pool: Arc<dyn Pool>,
    step: Step,
    budget: Duration,
    grace: Duration,
    drains_again: bool,
) -> StepReport {
    if let Step::Tasks(tasks) = step {
        return end_group(&*pool, &tasks, budget, grace).await;
    }
    let started = Instant::now();
    let name = step.name();
    let phase = step.phase();
    let named = pool.context().close.running_as(&name);
    let slot = step.slot();
    let span = span_of(slot.as_deref(), &name, phase);
    if let Some(slot) = &slot {
        slot.stop_leasing();
        // A resource that was never idle in the drain has begun nothing since leasing ended. Its work ends now if it
        // can at all.
        let limit = if drains_again { budget / 2 } else { MOMENT.min(budget / 2) };
        drain_again(pool.context(), slot, limit).await;
        slot.activity().counters.end_drain();
    }
    let held = slot.as_ref().map_or_else(Vec::new, |slot| slot.holders());
    let cancel = CancellationToken::new();
    let mut running = match budget.is_zero() {
        false => Some(on_own_thread(&pool, step, cancel.clone())),
        // A closure that is skipped may have captured values whose drop blocks.
        true => {
            drop(drop_aside(vec![step]));
            None
        }
    };
    let left = budget.saturating_sub(started.elapsed());
    let mut outcome = match running {
        None => Outcome::Skipped,
        Some(_) => ended(&mut running, left).await.unwrap_or(Outcome::TimedOut),
    };
    if outcome != Outcome::Closed
        && let Some(slot) = &slot
    {
        // Cutting may be users' code, and block.
        let cut = Arc::clone(slot);
        let _hangs_by_itself = aside(pool.context(), grace, move || cut.cut()).await;
        if matches!(outcome, Outcome::TimedOut) && ended(&mut running, grace).await.is_some() {
            outcome = Outcome::Forced;
        }
    }
    cancel.cancel();
    if let Some(slot) = &slot {
        // The step must be over before the runtime ends, because timers of an ended runtime panic.
        let _hangs_by_itself = ended(&mut running, LAST).await;
        // The time that the step has not used, up to the grace.
        let rest = || grace.min(budget.saturating_add(grace).saturating_sub(started.elapsed()));
        note_counters(pool.context(), slot, rest()).await;
        let last = Arc::clone(slot);
        match aside(pool.context(), rest().max(LAST), move || last.finish_close()).await {
            Some(Ok(())) => {}
            Some(Err(message)) => outcome = Outcome::Panicked(message),
            None => outcome = Outcome::TimedOut,
        }
    }
    drop(named);
    let step = StepReport::new(name, phase, outcome, started.elapsed(), held);
    let step = match &slot {
        Some(slot) => with_work(step, &**slot),
        None => step,
    };
    tell_end(pool.context(), &span, slot.as_deref(), &step);
    step
}

/// Has a resource note its counters, as it is about to let its handle go. A user's code may block, so it is asked on
/// another thread, and only if time is left.
async fn note_counters(context: &Context, slot: &Arc<dyn AnySlot>, limit: Duration) {
    if !slot.is_users() {
        slot.usage();
    } else if !limit.is_zero() {
        let asked = Arc::clone(slot);
        let _hangs_by_itself = aside(context, limit, move || asked.usage()).await;
    }
}

/// Waits for a group of the application's work. Tasks that are left after the budget are aborted.
pub(crate) async fn end_group(pool: &dyn Pool, group: &WaitGroup, budget: Duration, grace: Duration) -> StepReport {
    let started = Instant::now();
    let name = Arc::clone(&group.activity.name);
    let named = pool.context().close.running_as(&name);
    let span = span_of(None, &name, Phase::Tasks);
    let mut outcome = Outcome::Closed;
    if within(budget, group.ended()).await.is_err() && group.len() > 0 {
        outcome = Outcome::TimedOut;
    }
    let held = group.holders();
    if outcome == Outcome::TimedOut {
        group.abort();
        if within(grace, group.ended()).await.is_ok() {
            outcome = Outcome::Forced;
        }
    }
    group.activity.counters.end_drain();
    group.activity.set_draining(false);
    drop(named);
    let step = with_counts(StepReport::new(name, Phase::Tasks, outcome, started.elapsed(), held), &group.activity);
    tell_end(pool.context(), &span, None, &step);
    step
}

/// Takes the outcome of the running step, if it ends within the limit. An outcome can be taken only once.
async fn ended(running: &mut Option<oneshot::Receiver<Outcome>>, limit: Duration) -> Option<Outcome> {
    let ended = within(limit, running.as_mut()?).await.ok()?;
    *running = None;
    ended.ok()
}

/// Adds to a step how its resource's work ended.
pub(crate) fn with_work(step: StepReport, slot: &dyn AnySlot) -> StepReport {
    with_counts(step, slot.activity())
}

fn with_counts(step: StepReport, activity: &Activity) -> StepReport {
    let counters = &activity.counters;
    let (finished, given_up, unfinished) = (counters.finished(), counters.given_up(), counters.unfinished());
    StepReport { finished, given_up, unfinished, ..step }
}

/// The span of a step that begins. It is not entered on the step's thread, which may hang.
pub(crate) fn span_of(slot: Option<&dyn AnySlot>, name: &str, phase: Phase) -> TaskSpan {
    spans::close_step(slot.map(|slot| &slot.activity().traced), name, phase)
}

/// Tells in its span, in the log and to the observers how a step ended.
pub(crate) fn tell_end(context: &Context, span: &TaskSpan, slot: Option<&dyn AnySlot>, step: &StepReport) {
    span.stepped(step);
    let what = What::StepEnded { step: step.clone() };
    match slot {
        Some(slot) => slot.activity().tell(slot.condition().generation, what),
        None => context.tell(Some(&step.name), what),
    }
}

/// Runs a step on a thread of its own, in the context of the pool's runtime. A step that blocks or panics harms only
/// itself.
fn on_own_thread(pool: &Arc<dyn Pool>, step: Step, cancel: CancellationToken) -> oneshot::Receiver<Outcome> {
    let (number, ended) = pool.context().close.begin_step();
    let runtime = pool.context().runtime.current();
    let name = format!("resource-pool-close-{}", step.name());
    let pool = Arc::clone(pool);
    let run = move || {
        let outcome = pool.context().close.run_as(Role::Step(number), || match step {
            Step::Hook(Hook { run: HookRun::Blocking(run), .. }) => run().map_err(Failure::transient),
            Step::Hook(Hook { run: HookRun::Async(run), .. }) => {
                let run = async { run().await.map_err(Failure::transient) };
                on_runtime(runtime, cancel, run)
            }
            Step::Resource(slot) => on_runtime(runtime, cancel, slot.close()),
            Step::Tasks(_) => Ok(()),
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

/// Runs closing code in the context of the pool's runtime, until it is given up.
fn on_runtime(
    runtime: Option<Handle>,
    cancel: CancellationToken,
    run: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let Some(runtime) = runtime else {
        return Err(Failure::transient("the runtime that it lives on has ended"));
    };
    runtime.block_on(async {
        tokio::select! {
            biased; // Cancelling comes first, as timers of a runtime that has ended panic.
            () = cancel.cancelled() => Err(Failure::transient("given up")),
            closed = run => closed,
        }
    })
}
