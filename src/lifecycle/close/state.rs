//! The closes of a pool that are under way. Each runs once, for all who ask for it.
//!
//! [`run`](crate::lifecycle::close::run) begins and ends the closes, facades wait for their reports, and the watchdog
//! waits for the whole and names the parts that still run.
//! Invariant: of the whole at most one close runs, and of each resource. No close of a single resource begins once that
//! of the whole has begun, so the whole knows all of them.
//! Order of locks: `whole`, then `single`, then a run's report. The others are taken alone. No code of users runs under
//! any of them. Wakers are users' code too, so that waiters are woken outside of the locks.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::base::error::Error;
use crate::base::runtime;
use crate::base::sync::{Condvar, Mutex, Notify, until};
use crate::lifecycle::close::report::{CloseReport, Closing, Outcome};

/// The closes of one pool. All who ask for one get its report.
#[derive(Default)]
pub(crate) struct CloseState {
    id: Id,
    /// The close of the whole pool.
    whole: Mutex<PoolClose>,
    /// Waited on with `whole`, until all listeners have had the report.
    listeners_done: Condvar,
    /// The closes of single resources that are under way. None begins once that of the whole has begun.
    single: Mutex<BTreeMap<Arc<str>, Arc<CloseRun>>>,
    /// The names of the parts that run now, for the watchdog's message. A hook and a resource may share a name.
    running: Mutex<Vec<Arc<str>>>,
    /// The senders by which the steps that run now tell their outcomes, by the step's number.
    steps: Mutex<BTreeMap<u64, oneshot::Sender<Outcome>>>,
}

/// A number that tells one [`CloseState`] from all others of the process.
struct Id(u64);

impl Default for Id {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Relaxed, because only the uniqueness of the number counts.
        Id(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A part of a close that runs on a thread of the close's own.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Role {
    Step(u64),
    Listener,
    /// A background task or thread of the application, which its step waits for.
    Task(u64),
}

thread_local! {
    /// The [`CloseState`] of which this thread runs a part, and the part. It has no destructor, so it can be read at
    /// exit.
    static ROLE: Cell<Option<(u64, Role)>> = const { Cell::new(None) };
}

/// A step, the drain or a listener, which counts as running until this drops, for the watchdog's message.
pub(crate) struct Running<'a> {
    cell: &'a CloseState,
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
struct PoolClose {
    begun: bool,
    /// When it must have ended. `None` before it has begun.
    deadline: Option<Instant>,
    /// The closes of single resources that were under way as this one began.
    single_closes: BTreeMap<Arc<str>, Arc<CloseRun>>,
    /// Whether readiness fails, although closing may not have begun.
    is_lowered: bool,
    /// Tells users that closing has begun.
    closing: CancellationToken,
    run: Arc<CloseRun>,
    /// Whether all listeners have had the report.
    listeners_done: bool,
}

/// One close. All who wait for it get its report, even if the pool is open again by then.
#[derive(Default)]
pub(crate) struct CloseRun {
    report: Mutex<Option<Arc<CloseReport>>>,
    ended: Notify,
}

impl CloseRun {
    pub(crate) fn end(&self, report: CloseReport) {
        *self.report.lock() = Some(Arc::new(report));
        self.ended.notify_waiters();
    }

    pub(crate) fn report(&self) -> Option<Arc<CloseReport>> {
        self.report.lock().clone()
    }

    pub(crate) async fn wait(&self) -> Arc<CloseReport> {
        until(&self.ended, || self.report()).await
    }
}

impl CloseState {
    /// Whether closing has begun, until `reopen`.
    pub(crate) fn is_closing(&self) -> bool {
        self.whole.lock().begun
    }

    /// Lets readiness fail from now on, until `reopen`.
    pub(crate) fn lower_readiness(&self) {
        self.whole.lock().is_lowered = true;
    }

    pub(crate) fn is_lowered(&self) -> bool {
        self.whole.lock().is_lowered
    }

    /// A flag and a future that tell users of closing.
    pub(crate) fn closing(&self) -> Closing {
        Closing(self.whole.lock().closing.clone())
    }

    /// When the close that has begun must have ended.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.whole.lock().deadline
    }

    /// The report, if closed.
    pub(crate) fn report(&self) -> Option<Arc<CloseReport>> {
        self.whole.lock().run.report()
    }

    /// Begins the close of the whole pool, unless it has begun before. Returns it, and whether the caller is the one to
    /// run it. `prepare` runs once it has begun, and before users are told.
    pub(crate) fn begin(&self, limit: Duration, prepare: impl FnOnce()) -> (Arc<CloseRun>, bool) {
        let mut whole = self.whole.lock();
        let first = !std::mem::replace(&mut whole.begun, true);
        if first {
            whole.single_closes.clone_from(&self.single.lock());
        }
        whole.deadline.get_or_insert_with(|| runtime::deadline(limit));
        let (run, closing) = (Arc::clone(&whole.run), whole.closing.clone());
        drop(whole);
        if first {
            prepare();
        }
        closing.cancel();
        (run, first)
    }

    /// Notes that all listeners have had the report of this close.
    pub(crate) fn announce(&self, run: &Arc<CloseRun>) {
        let mut whole = self.whole.lock();
        // A pool that is open again has another run.
        if Arc::ptr_eq(&whole.run, run) {
            whole.listeners_done = true;
        }
        drop(whole);
        self.listeners_done.notify_all();
    }

    /// Begins the close of one resource, unless it is under way. Returns it, and whether the caller is the one to run
    /// it. If the close of the whole pool has begun, that one is returned.
    pub(crate) fn begin_single(&self, name: &Arc<str>) -> (Arc<CloseRun>, bool) {
        let whole = self.whole.lock();
        if whole.begun {
            return (Arc::clone(&whole.run), false);
        }
        let mut single = self.single.lock();
        if let Some(run) = single.get(name) {
            return (Arc::clone(run), false);
        }
        let run = Arc::<CloseRun>::default();
        single.insert(Arc::clone(name), Arc::clone(&run));
        (run, true)
    }

    /// The closes of single resources that were under way as that of the whole pool began.
    pub(crate) fn single_closes(&self) -> BTreeMap<Arc<str>, Arc<CloseRun>> {
        self.whole.lock().single_closes.clone()
    }

    pub(crate) fn end_single(&self, name: &Arc<str>, report: CloseReport) {
        let run = self.single.lock().remove(name);
        if let Some(run) = run {
            run.end(report);
        }
    }

    /// Waits for the close that was begun, and until every listener has had the report, on a thread that must not touch
    /// tokio. `None` once `until` has come.
    pub(crate) fn wait_blocking(&self, until: Instant) -> Option<Arc<CloseReport>> {
        let mut whole = self.whole.lock();
        loop {
            if whole.listeners_done {
                return whole.run.report();
            }
            if self.listeners_done.wait_until(&mut whole, until).timed_out() {
                return None;
            }
        }
    }

    /// Opens the pool again, if it is closed.
    ///
    /// # Errors
    /// [`Error::Closing`] while it is being closed, and once the process is ending.
    pub(crate) fn reopen(&self, is_ending: impl Fn() -> bool) -> Result<(), Error> {
        let mut whole = self.whole.lock();
        // Looked at under the lock, because the end of the process waits for the closes that it finds under way.
        if is_ending() {
            return Err(Error::closing(&Arc::from("the process")));
        }
        match (whole.begun, whole.run.report()) {
            (true, None) => return Err(Error::closing(&Arc::from("the pool"))),
            (true, Some(_)) => *whole = PoolClose::default(),
            (false, _) => {}
        }
        Ok(())
    }

    /// The part of this close that this thread runs. `None` if it runs none.
    pub(crate) fn role(&self) -> Option<Role> {
        ROLE.get().filter(|(cell, _)| *cell == self.id.0).map(|(_, role)| role)
    }

    /// Refuses a wait for this close on a thread that the close itself runs on. Only the close of the whole pool waits
    /// for background tasks.
    pub(crate) fn check_outside(&self, run: &CloseRun, resource: &str) -> Result<(), Error> {
        let is_inside = match self.role() {
            Some(Role::Task(_)) => self.is_closing(),
            role => role.is_some(),
        };
        if is_inside && run.report().is_none() {
            return Err(Error::closing(&Arc::from(resource)));
        }
        Ok(())
    }

    /// Runs a part of this close. The part may be users' code, so its panic is caught.
    pub(crate) fn run_as<T>(&self, role: Role, run: impl FnOnce() -> T) -> std::thread::Result<T> {
        let outer = ROLE.replace(Some((self.id.0, role)));
        let ended = catch_unwind(AssertUnwindSafe(run));
        ROLE.set(outer);
        ended
    }

    /// Whether this thread runs a step or a background task, whose code may use resources that close later.
    #[inline]
    pub(crate) fn is_inside(&self) -> bool {
        matches!(self.role(), Some(Role::Step(_) | Role::Task(_)))
    }

    /// Ends the step or listener that this thread runs. It does not come back, because the process ends from this
    /// thread.
    pub(crate) fn leave_role(&self) {
        match self.role() {
            Some(Role::Step(step)) => self.end_step(step, Outcome::Failed("it ended the process".to_owned())),
            Some(Role::Listener) => {
                self.whole.lock().listeners_done = true;
                self.listeners_done.notify_all();
            }
            Some(Role::Task(_)) | None => {}
        }
    }

    /// Numbers a new step. Returns the number, and the receiver of the outcome that is [told](CloseState::end_step) for
    /// it.
    pub(crate) fn begin_step(&self) -> (u64, oneshot::Receiver<Outcome>) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Relaxed, because only the uniqueness of the number counts.
        let (step, (sender, ended)) = (NEXT.fetch_add(1, Ordering::Relaxed), oneshot::channel());
        self.steps.lock().insert(step, sender);
        (step, ended)
    }

    pub(crate) fn end_step(&self, step: u64, outcome: Outcome) {
        let sender = self.steps.lock().remove(&step);
        if let Some(sender) = sender {
            // Nobody waits any more once the step has timed out.
            let _ = sender.send(outcome);
        }
    }

    /// Counts a part as running, under this name, until the answer drops.
    pub(crate) fn running_as(&self, name: &str) -> Running<'_> {
        let name = Arc::from(name);
        self.running.lock().push(Arc::clone(&name));
        Running { cell: self, name }
    }

    /// The names of the steps, drains and listeners that run now.
    pub(crate) fn running(&self) -> Vec<Arc<str>> {
        self.running.lock().clone()
    }
}

#[cfg(all(test, not(model)))]
mod tests {
    use super::*;
    use crate::lifecycle::close::report::Reason;
    use crate::lifecycle::status::PoolStatus;

    /// A limit that no test reaches.
    const LONG: Duration = Duration::from_secs(3600);

    fn report(reason: Reason) -> CloseReport {
        let status = PoolStatus { closing: true, ..PoolStatus::default() };
        CloseReport { reason, status, drained: Duration::ZERO, steps: Vec::new(), took: Duration::ZERO }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(1)
    }

    #[test]
    fn the_whole_is_closed_once_for_all_who_ask() {
        let cell = CloseState::default();
        assert!(!cell.is_closing() && !cell.closing().is_set());
        assert_eq!(cell.deadline(), None);
        let (run, first) = cell.begin(LONG, || ());
        let deadline = cell.deadline().unwrap();
        assert!(first && cell.is_closing() && cell.closing().is_set());
        let (same, second) = cell.begin(Duration::ZERO, || ());
        assert!(Arc::ptr_eq(&run, &same) && !second);
        assert_eq!(cell.deadline(), Some(deadline), "the first who asks says how long");
        assert!(cell.report().is_none() && cell.wait_blocking(soon()).is_none());
        run.end(report(Reason::Requested));
        assert!(cell.report().is_some());
        assert!(cell.wait_blocking(soon()).is_none(), "the listeners have not had it");
        cell.announce(&run);
        assert_eq!(cell.wait_blocking(Instant::now() + LONG).unwrap().reason, Reason::Requested);
    }

    #[test]
    fn the_whole_takes_the_closes_of_single_resources_over() {
        let (cell, name, other) = (CloseState::default(), Arc::from("name"), Arc::from("other"));
        let (single, first) = cell.begin_single(&name);
        let (same, second) = cell.begin_single(&name);
        assert!(first && !second && Arc::ptr_eq(&single, &same));
        assert!(!cell.is_closing() && cell.single_closes().is_empty());
        let (ended, _) = cell.begin_single(&other);
        cell.end_single(&other, report(Reason::Requested));
        assert!(ended.report().is_some());
        let (whole, _) = cell.begin(LONG, || ());
        assert!(cell.single_closes().keys().eq([&name]));
        let (of_the_whole, third) = cell.begin_single(&other);
        assert!(!third && Arc::ptr_eq(&whole, &of_the_whole), "none begins any more");
        cell.end_single(&name, report(Reason::Dropped));
        assert_eq!(single.report().unwrap().reason, Reason::Dropped);
    }

    #[test]
    fn what_is_closed_opens_again_unless_the_process_ends() {
        let cell = CloseState::default();
        assert!(cell.reopen(|| false).is_ok(), "it is open");
        let (run, _) = cell.begin(LONG, || ());
        assert!(matches!(cell.reopen(|| false), Err(Error::Closing { .. })), "it is being closed");
        run.end(report(Reason::Requested));
        assert!(matches!(cell.reopen(|| true), Err(Error::Closing { .. })));
        assert!(cell.is_closing());
        cell.reopen(|| false).unwrap();
        assert!(!cell.is_closing() && cell.report().is_none());
        // The listeners of the earlier close say nothing about the next one.
        cell.announce(&run);
        let (next, first) = cell.begin(LONG, || ());
        assert!(first && !Arc::ptr_eq(&run, &next));
        assert!(cell.wait_blocking(soon()).is_none());
    }

    #[test]
    fn a_thread_knows_the_part_that_it_runs() {
        let (cell, other) = (CloseState::default(), CloseState::default());
        let (run, _) = cell.begin(LONG, || ());
        assert!(!cell.is_inside() && cell.check_outside(&run, "name").is_ok());
        let ran = cell.run_as(Role::Step(3), || {
            assert!(cell.is_inside() && !other.is_inside() && cell.role() == Some(Role::Step(3)));
            assert!(matches!(cell.check_outside(&run, "name"), Err(Error::Closing { .. })));
            assert!(other.check_outside(&run, "name").is_ok());
            let inner = cell.run_as(Role::Listener, || (cell.is_inside(), cell.role() == Some(Role::Listener)));
            assert_eq!(inner.unwrap(), (false, true));
            run.end(report(Reason::Requested));
            assert!(cell.check_outside(&run, "name").is_ok(), "there is nothing to wait for");
            cell.is_inside()
        });
        assert!(ran.unwrap() && cell.role().is_none());
        assert!(cell.run_as(Role::Listener, || panic!("as the test asked")).is_err());
        assert!(cell.role().is_none());
    }

    #[test]
    fn a_part_that_ends_the_process_is_over() {
        let cell = CloseState::default();
        let (run, _) = cell.begin(LONG, || ());
        cell.leave_role();
        let (step, mut outcome) = cell.begin_step();
        cell.run_as(Role::Step(step), || cell.leave_role()).unwrap();
        assert!(matches!(outcome.try_recv(), Ok(Outcome::Failed(why)) if why.contains("ended the process")));
        run.end(report(Reason::ProcessExit));
        assert!(cell.wait_blocking(soon()).is_none());
        cell.run_as(Role::Listener, || cell.leave_role()).unwrap();
        assert!(cell.wait_blocking(soon()).is_some());
    }

    #[test]
    fn each_step_tells_its_own_outcome_once() {
        let cell = CloseState::default();
        let ((first, mut one), (second, mut two)) = (cell.begin_step(), cell.begin_step());
        assert_ne!(first, second);
        cell.end_step(second, Outcome::Closed);
        cell.end_step(second, Outcome::Skipped);
        assert!(one.try_recv().is_err());
        assert_eq!(two.try_recv().unwrap(), Outcome::Closed);
    }

    #[test]
    fn what_runs_is_named_until_it_ends() {
        let cell = CloseState::default();
        let (drain, one) = (cell.running_as("the drain"), cell.running_as("store"));
        let two = cell.running_as("store");
        let names = || cell.running().iter().map(|name| name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(), ["the drain", "store", "store"]);
        drop(one);
        assert_eq!(names(), ["the drain", "store"]);
        drop((drain, two));
        assert!(names().is_empty());
    }
}
