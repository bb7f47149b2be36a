//! Closing a pool, or one resource: intake stops, work drains, then every step runs in its phase, each within a budget.
//!
//! [`start`] and [`start_one`] begin a close for the first who asks: a user, a dropped handle, a signal, or the
//! process's exit. All callers wait for the shared result, and cancelling one cancels nothing.
//! Threads: a close runs on a thread of its own with a timer of its own, and each step on another one. So neither busy
//! workers nor a step that blocks can delay it.
//! Invariant: each step that began is in the report, however it ended.
//! Locks: only the one in [`ask_usage`] is taken here, and no user code runs under it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, IsTerminal};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::base::clock::Moment;
use crate::base::error::{Error, FirstFew, panic_message};
use crate::base::runtime::{self, within};
use crate::base::stderr;
use crate::base::sync::Mutex;
use crate::lifecycle::activity::Activity;
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::close::closer::{aside, drop_aside, hand_over};
use crate::lifecycle::close::drain::{drain, in_parallel, is_idle};
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::close::pool::{Hook, Pool};
use crate::lifecycle::close::report::{CloseReport, Outcome, Reason, StepReport};
use crate::lifecycle::close::state::{CloseRun, Role};
use crate::lifecycle::close::step::{Step, end_group, order, run_step, span_of, tell_end, with_work};
use crate::lifecycle::context::Context;
use crate::lifecycle::event::What;
use crate::lifecycle::spans;
use crate::lifecycle::status::{PoolStatus, State, Usage};
use crate::lifecycle::wait_group::WaitGroup;

/// How long a step that was cut has to end: this, or half of its level's time if that is less. Part of the close
/// budget.
const GRACE: Duration = Duration::from_millis(500);
/// How long the cancelling of a consumer may take. Part of the close budget.
const INTAKE: Duration = Duration::from_secs(1);
/// How long users' code may take to tell how full its resource is. Part of the close budget, beside [`INTAKE`].
const TELLING: Duration = Duration::from_millis(500);
/// How long a close runs before it names the work and holders that it waits for. On a terminal it names them again
/// each time that it has taken twice as long. It takes no time, because closing goes on meanwhile.
const SILENCE: Duration = Duration::from_secs(1);

impl CloseReport {
    /// A report without the steps of resources, because the close as a whole ended like this.
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
/// [`Error::Closing`] on a thread that this close itself runs on, because such a thread must not wait for it.
pub(crate) fn start(pool: &Arc<dyn Pool>, reason: Reason, deadline: Option<Duration>) -> Result<Arc<CloseRun>, Error> {
    let limit = deadline.unwrap_or(pool.context().options.close.deadline);
    // Work that users end as they are told of closing counts in the report.
    let prepare = || {
        pool.application().begin_drain();
        // Without a signal it is the end of this work that closes the pool, or this work itself.
        if matches!(reason, Reason::Signal(_)) {
            pool.main().set_draining(true);
        }
    };
    let (run, first) = pool.context().close.begin(limit, prepare);
    if first {
        let (pool, run) = (Arc::clone(pool), Arc::clone(&run));
        // Only a caller who asks has a span to be under. A thread that ends the process must not call a subscriber.
        let asked = (reason == Reason::Requested).then(|| spans::close(None, reason));
        hand_over(Box::new(move || {
            let span = asked.unwrap_or_else(|| spans::close(None, reason));
            let close = async {
                pool.context().tell(None, What::Closing { reason });
                close_pool(&pool, reason, limit).await
            };
            let report = Arc::new(span.in_scope(|| run_close(&*pool, reason, &pool.slots(), close)));
            spans::closed(span, &report);
            pool.context().tell(None, What::Closed { report: Arc::clone(&report) });
            run.end(CloseReport::clone(&report));
            let running = pool.context().close.running_as("a listener");
            for listener in pool.context().on_report() {
                if pool.context().close.run_as(Role::Listener, || listener(&report)).is_err() {
                    tracing::error!("a listener for close reports panicked");
                }
            }
            drop(running);
            pool.context().close.announce(&run);
        }));
    }
    pool.context().close.check_outside(&run, "the pool")?;
    Ok(run)
}

/// Starts closing one resource, unless that is under way. The pool stays open. If the whole pool is closing, its close
/// is the answer. Does not wait.
///
/// # Errors
/// As [`start`].
pub(crate) fn start_one(pool: &Arc<dyn Pool>, slot: Arc<dyn AnySlot>, reason: Reason) -> Result<Arc<CloseRun>, Error> {
    let (run, first) = pool.context().close.begin_single(slot.name());
    if !first {
        pool.context().close.check_outside(&run, slot.name())?;
    } else {
        let pool = Arc::clone(pool);
        let span = spans::close(Some(&slot.activity().traced), reason);
        hand_over(Box::new(move || {
            let name = Arc::clone(slot.name());
            let limit = pool.context().options.close.deadline;
            let close = close_slots(&pool, vec![Arc::clone(&slot)], Others::default(), reason, limit);
            let report = span.in_scope(|| run_close(&*pool, reason, &[slot], close));
            spans::closed(span, &report);
            pool.context().close.end_single(&name, report);
        }));
    }
    Ok(run)
}

fn run_close(
    pool: &dyn Pool,
    reason: Reason,
    slots: &[Arc<dyn AnySlot>],
    close: impl Future<Output = CloseReport>,
) -> CloseReport {
    let close = async {
        tokio::pin!(close);
        let mut taken = Duration::ZERO;
        // Somebody who looks at a terminal wants to know more than once.
        while pool.context().options.close.stderr && (taken.is_zero() || io::stderr().is_terminal()) {
            let pause = taken.max(SILENCE);
            if let Ok(report) = within(pause, &mut close).await {
                return report;
            }
            taken += pause;
            if let Some(waits) = waited_for(pool, slots) {
                stderr::tell(&format!("resource-pool: closing has taken {taken:?}; it waits for {waits}\n"));
            }
        }
        close.await
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

/// The work and the holders that a close waits for. `None` between two steps.
fn waited_for(pool: &dyn Pool, slots: &[Arc<dyn AnySlot>]) -> Option<String> {
    let mut waits: Vec<String> = pool.context().close.running().iter().map(|name| name.to_string()).collect();
    let application = pool.application();
    for group in application.groups().iter().chain([&application.holds]) {
        let members = group.holders();
        if group.activity.is_draining() && !members.is_empty() {
            waits.push(format!("{}: begun at {}", group.activity.name, FirstFew(&members, ", ")));
        }
    }
    for slot in slots.iter().filter(|slot| slot.state() == State::Draining) {
        let (work, holders) = (slot.activity().counters.now(), slot.holders());
        let work: Vec<_> = work.iter().map(|(work, count)| work.counted(*count)).collect();
        if !work.is_empty() {
            waits.push(format!("{}: {} in progress", slot.name(), work.join(", ")));
        }
        if !holders.is_empty() {
            waits.push(format!("{}: held by {}", slot.name(), FirstFew(&holders, ", ")));
        }
    }
    (!waits.is_empty()).then(|| waits.join("; "))
}

async fn close_pool(pool: &Arc<dyn Pool>, reason: Reason, limit: Duration) -> CloseReport {
    let started = Instant::now();
    let deadline = runtime::deadline(limit);
    let single_closes = pool.context().close.single_closes();
    let (alone, slots): (Vec<_>, Vec<_>) =
        pool.slots().into_iter().partition(|slot| single_closes.contains_key(slot.name()));
    let mut report = close_slots(pool, slots, Others::of(&**pool, reason), reason, limit).await;
    // A resource that was being closed by itself has the drivers' runtime until that close is done.
    for slot in alone {
        let left = deadline.saturating_duration_since(Instant::now());
        match within(left, single_closes[slot.name()].wait()).await {
            Ok(single) => {
                // The resource may have been connected anew after its step, and before that close had ended.
                let left = deadline.saturating_duration_since(Instant::now());
                let again = close_slots(pool, vec![slot], Others::default(), reason, left).await;
                let steps = if again.steps.is_empty() { &single.steps } else { &again.steps };
                report.steps.extend_from_slice(steps);
            }
            Err(_goes_down_with_the_runtime) => {
                let (name, held) = (Arc::clone(slot.name()), slot.holders());
                slot.cut();
                let span = span_of(Some(&*slot), &name, slot.phase());
                let step = StepReport::new(name, slot.phase(), Outcome::TimedOut, started.elapsed(), held);
                let step = with_work(step, &*slot);
                tell_end(pool.context(), &span, Some(&*slot), &step);
                report.steps.push(step);
            }
        }
    }
    // The disconnects of lost and late handles need the runtime as well.
    for slot in pool.slots() {
        let said = slot.activity().until(|| slot.has_disconnected().then_some(()));
        let _goes_down_with_the_runtime = within(deadline.saturating_duration_since(Instant::now()), said).await;
    }
    report.took = started.elapsed();
    // A future given to `run` still needs the runtime if it has closed everything itself.
    if pool.main().counters.now().is_empty() || pool.main().is_draining() {
        pool.context().runtime.end();
    }
    report
}

/// The parts of a close that are not resources. The close of a single resource has none.
#[derive(Default)]
struct Others {
    steps: Vec<Step>,
    /// The holds of the application, which the drain waits for.
    holds: Option<Arc<WaitGroup>>,
    /// The further work that the drain waits for.
    active: Vec<Arc<Activity>>,
    /// The closures of adopted clients that are gone.
    gone: Vec<Hook>,
    /// Whether clients that are adopted meanwhile are closed too.
    adopts: bool,
}

impl Others {
    fn of(pool: &dyn Pool, reason: Reason) -> Self {
        let holds = Some(Arc::clone(&pool.application().holds));
        let tasks = pool.application().draining();
        let mut active = Vec::new();
        if matches!(reason, Reason::Signal(_)) {
            active.push(Arc::clone(pool.main()));
        }
        let (hooks, gone) = pool.take_hooks(false);
        let steps = hooks.into_iter().map(Step::Hook).chain(tasks.into_iter().map(Step::Tasks)).collect();
        Others { steps, holds, active, gone, adopts: true }
    }
}

async fn close_slots(
    pool: &Arc<dyn Pool>,
    slots: Vec<Arc<dyn AnySlot>>,
    others: Others,
    reason: Reason,
    limit: Duration,
) -> CloseReport {
    let started = Instant::now();
    let begun = Moment::now();
    let deadline = runtime::deadline(limit);
    let running = pool.context().close.running_as("the drain");
    let span = spans::drain();
    let mut status = pool.status_with(built_in_usage);
    let options = &pool.context().options.close;

    let (connecting, settled): (Vec<_>, Vec<_>) = slots.into_iter().partition(|slot| slot.begin_settling());
    let mut slots: Vec<_> = settled.into_iter().filter(|slot| begin(&**slot, reason)).collect();
    let resources = slots.iter().chain(&connecting).cloned().map(Step::Resource);
    let mut levels = order(resources.chain(others.steps), &pool.edges());
    let reserved = options.reserve(limit, levels.len());
    let spare = limit.saturating_sub(reserved);
    let stop_intake = |slots: Vec<Arc<dyn AnySlot>>| {
        in_parallel(pool.context(), INTAKE.min(spare), slots.into_iter().map(AnySlot::stop_intake))
    };
    let ((), (), settled) = tokio::join!(
        ask_usage(&**pool, &mut status, TELLING.min(spare)),
        stop_intake(slots.clone()),
        settle(pool.context(), connecting, reason, options.step.min(spare))
    );
    let mut unconnected = BTreeMap::new();
    for (slot, ended) in settled {
        match ended {
            None => slots.push(slot),
            Some(ended) => drop(unconnected.insert(Arc::clone(slot.name()), ended)),
        }
    }
    let mut active = others.active;
    active.extend(others.holds.iter().map(|holds| Arc::clone(&holds.activity)));
    active.extend(slots.iter().map(|slot| Arc::clone(slot.activity())));
    let left = deadline.saturating_duration_since(Instant::now());
    let drain_limit = options.drain.min(left.saturating_sub(reserved));
    drain(pool.context(), &slots, &active, begun, drain_limit).await;
    let drained = started.elapsed();
    let busy: BTreeSet<_> =
        slots.iter().filter(|slot| !is_idle(&***slot)).map(|slot| Arc::clone(slot.name())).collect();
    for slot in &slots {
        slot.stop_leasing_outside();
    }
    if !busy.is_empty() {
        span.failed("unfinished", busy.iter().map(|name| &**name).collect::<Vec<_>>().join(", "));
    }
    drop((span, running));

    let mut steps = Vec::new();
    if let Some(holds) = others.holds {
        // A hold may have begun during the drain. A pool that never had one tells nothing of them.
        match holds.is_used() {
            true => steps.push(end_group(&**pool, &holds, Duration::ZERO, Duration::ZERO).await),
            false => holds.activity.set_draining(false),
        }
    }
    let mut adopts = others.adopts;
    let mut dropped = vec![drop_aside(others.gone)];
    let mut take_hooks = |is_last| {
        let (hooks, gone) = pool.take_hooks(is_last);
        dropped.push(drop_aside(gone));
        hooks
    };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if adopts {
            let mut late = take_hooks(false);
            // The deadline counts too, so that clients which are adopted without end cannot hold closing up.
            if late.is_empty() && levels.is_empty() || left.is_zero() {
                late.extend(take_hooks(true));
                adopts = false;
            }
            if !late.is_empty() {
                // The steps that are left come along, since the late ones may depend on them.
                let steps = std::mem::take(&mut levels).into_values().flatten();
                levels = order(steps.chain(late.into_iter().map(Step::Hook)), &pool.edges());
            }
        }
        let Some((_, level)) = levels.pop_first() else { break };
        let own = left - options.reserve(left, levels.len());
        let grace = GRACE.min(own / 2);
        let mut running = JoinSet::new();
        let mut begun = HashMap::new();
        for step in level {
            let (name, phase, slot) = (step.name(), step.phase(), step.slot());
            if slot.is_some()
                && let Some((outcome, took)) = unconnected.remove(&name)
            {
                let span = span_of(slot.as_deref(), &name, phase);
                let step = StepReport::new(name, phase, outcome, took, Vec::new());
                tell_end(pool.context(), &span, slot.as_deref(), &step);
                steps.push(step);
                continue;
            }
            let budget = options.budget(phase).min(own - grace);
            let drains_again = !busy.contains(&name);
            let task = running.spawn(run_step(Arc::clone(pool), step, budget, grace, drains_again));
            begun.insert(task.id(), (name, phase, slot, Instant::now()));
        }
        while let Some(ended) = running.join_next_with_id().await {
            match ended {
                Ok((_, step)) => steps.push(step),
                // Each step is in the report, however it ended.
                Err(error) => {
                    if let Some((name, phase, slot, began)) = begun.remove(&error.id()) {
                        let outcome = error
                            .try_into_panic()
                            .map_or(Outcome::Skipped, |payload| Outcome::Panicked(panic_message(&*payload)));
                        // The span of the step went down with it.
                        let span = span_of(slot.as_deref(), &name, phase);
                        let step = StepReport::new(name, phase, outcome, began.elapsed(), Vec::new());
                        tell_end(pool.context(), &span, slot.as_deref(), &step);
                        steps.push(step);
                    }
                }
            }
        }
    }
    // A closure that is dropped may hand something over by that, or hang.
    let left = GRACE.min(deadline.saturating_duration_since(Instant::now()));
    let _hangs_by_itself = within(left, async {
        for dropped in dropped {
            let _disconnected = dropped.await;
        }
    })
    .await;
    CloseReport { reason, status, drained, steps, took: started.elapsed() }
}

/// Begins to close a resource. `false` if there is nothing to close.
fn begin(slot: &dyn AnySlot, reason: Reason) -> bool {
    let begun = slot.begin_close();
    if begun {
        slot.activity().tell(slot.condition().generation, What::Closing { reason });
    }
    begun
}

/// How full a resource is. If users' code would have to tell, only the counters that it has told before are known,
/// because that code may hang.
fn built_in_usage(slot: &dyn AnySlot) -> Usage {
    if slot.is_users() { Usage { counters: slot.counted(), ..Usage::default() } } else { slot.usage() }
}

/// Puts into the status how full the resources of users' own kinds are. They are asked on another thread. If one of
/// them hangs, only the counters that they have told before are known of it and of those behind it.
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

/// The outcome of an attempt that has connected nothing, and how long that took.
type Unconnected = (Outcome, Duration);

/// Waits until the attempts in flight at these resources have ended, and begins to close those that have connected.
async fn settle(
    context: &Arc<Context>,
    connecting: Vec<Arc<dyn AnySlot>>,
    reason: Reason,
    limit: Duration,
) -> Vec<(Arc<dyn AnySlot>, Option<Unconnected>)> {
    let started = Instant::now();
    let mut settling = JoinSet::new();
    for slot in connecting {
        let context = Arc::clone(context);
        settling.spawn(async move {
            let in_time = within(limit, Arc::clone(&slot).settled()).await.is_ok();
            if begin(&*slot, reason) {
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
