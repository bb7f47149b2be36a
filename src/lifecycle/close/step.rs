//! One step of a close: a resource or a hook, within its budget.
//!
//! [`run`](crate::lifecycle::close::run) sorts the steps into levels with [`order`], and runs those of a level side by
//! side with [`run_step`].
//! Threads: the closing code of a step runs on a thread of its own. Cutting streams and dropping the last handle may be
//! users' code as well, so they run on further threads.
//! Invariant: each wait for such a thread has a limit, and a step that has begun always ends with a report.
//! Locks: none is held here, so code of users may take as long as it likes without blocking another step.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::base::error::{Failure, panic_message};
use crate::base::runtime::within;
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::close::closer::{aside, on_some_thread};
use crate::lifecycle::close::drain::drain_again;
use crate::lifecycle::close::edges::Edges;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::close::pool::{Hook, Pool};
use crate::lifecycle::close::report::{Outcome, StepReport};
use crate::lifecycle::close::state::Role;
use crate::lifecycle::context::Context;
use crate::lifecycle::event::What;

/// How long work that was begun just before leasing ended has to end, if the drain reached its limit. Part of the
/// step's budget.
const MOMENT: Duration = Duration::from_millis(100);
/// The least time that a step that is given up has to end in, and then the drop of its last handle, however little time
/// is left. They may exceed the close budget by that.
const LAST: Duration = Duration::from_millis(100);

pub(crate) enum Step {
    Resource(Arc<dyn AnySlot>),
    Hook(Hook),
}

impl Step {
    pub(crate) fn name(&self) -> Arc<str> {
        match self {
            Step::Resource(slot) => Arc::clone(slot.name()),
            Step::Hook(hook) => Arc::clone(&hook.name),
        }
    }

    /// The resource's slot. `None` for a hook.
    pub(crate) fn slot(&self) -> Option<Arc<dyn AnySlot>> {
        match self {
            Step::Resource(slot) => Some(Arc::clone(slot)),
            Step::Hook(_) => None,
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        match self {
            Step::Resource(slot) => slot.phase(),
            Step::Hook(hook) => hook.phase,
        }
    }
}

/// Sorts steps into the levels that close together: by phase, and within a phase dependants before their dependencies.
pub(crate) fn order<'a>(
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

/// Runs a step within its budget. A step that is cut has the grace to end in. Without a budget it is skipped.
pub(crate) async fn run_step(
    pool: Arc<dyn Pool>,
    step: Step,
    budget: Duration,
    grace: Duration,
    drains_again: bool,
) -> StepReport {
    let started = Instant::now();
    let name = step.name();
    let phase = step.phase();
    let named = pool.context().close.running_as(&name);
    let slot = step.slot();
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
    let mut running = (!budget.is_zero()).then(|| on_own_thread(&pool, step, cancel.clone()));
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
        let last = Arc::clone(slot);
        match aside(pool.context(), grace.max(LAST), move || last.finish_close()).await {
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
    tell_end(pool.context(), slot.as_deref(), &step);
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
    let counters = &slot.activity().counters;
    let (finished, given_up, unfinished) = (counters.finished(), counters.given_up(), counters.unfinished());
    StepReport { finished, given_up, unfinished, ..step }
}

pub(crate) fn tell_end(context: &Context, slot: Option<&dyn AnySlot>, step: &StepReport) {
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
