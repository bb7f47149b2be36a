//! The closes of a pool that are under way, each run once for all who ask.

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

/// The closes of one pool: of the whole at most one runs, and of each resource; all who ask for
/// one get its report.
///
/// The order of locks: `whole`, `single`, a course's report. The others are taken alone. No code of users runs under any of
/// them, and their wakers are such code.
#[derive(Default)]
pub(crate) struct CloseCell {
    id: Id,
    whole: Mutex<Whole>,
    announced: Condvar,
    /// The closes of single resources that are under way. None begins once the whole has begun.
    single: Mutex<BTreeMap<Arc<str>, Arc<Course>>>,
    /// The names of what runs now, for the watchdog's message. A hook and a resource may share a name.
    running: Mutex<Vec<Arc<str>>>,
    /// Where the steps that run now tell their outcomes.
    steps: Mutex<BTreeMap<u64, oneshot::Sender<Outcome>>>,
}

/// Tells one cell from all others of the process, by its own number.
struct Id(u64);

impl Default for Id {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Id(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A part of a close that runs on a thread of the close's own.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Part {
    Step(u64),
    Listener,
}

thread_local! {
    /// The cell of which this thread runs a part. It has no destructor, so it can be read at exit.
    static PART: Cell<Option<(u64, Part)>> = const { Cell::new(None) };
}

/// A step, the drain or a listener that runs until this drops, for the watchdog's message.
pub(crate) struct Running<'a> {
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

    pub(crate) fn report(&self) -> Option<Arc<CloseReport>> {
        self.report.lock().clone()
    }

    pub(crate) async fn wait(&self) -> Arc<CloseReport> {
        until(&self.ended, || self.report()).await
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
    pub(crate) fn singles(&self) -> BTreeMap<Arc<str>, Arc<Course>> {
        self.whole.lock().singles.clone()
    }

    pub(crate) fn end_single(&self, name: &Arc<str>, report: CloseReport) {
        let course = self.single.lock().remove(name);
        if let Some(course) = course {
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
    pub(crate) fn reopen(&self, is_ending: impl Fn() -> bool) -> Result<(), Error> {
        let mut whole = self.whole.lock();
        // Looked at under the lock, as the process's end waits for what it finds closing.
        if is_ending() {
            return Err(Error::closing(&Arc::from("the process")));
        }
        match (whole.begun, whole.course.report()) {
            (true, None) => return Err(Error::closing(&Arc::from("the pool"))),
            (true, Some(_)) => *whole = Whole::default(),
            (false, _) => {}
        }
        Ok(())
    }

    /// The part of this close that this thread runs.
    pub(crate) fn part(&self) -> Option<Part> {
        PART.get().filter(|(cell, _)| *cell == self.id.0).map(|(_, part)| part)
    }

    /// Refuses to wait for this close on a thread that it runs on itself.
    pub(crate) fn check_outside(&self, course: &Course, resource: &str) -> Result<(), Error> {
        if course.report().is_none() && self.part().is_some() {
            return Err(Error::closing(&Arc::from(resource)));
        }
        Ok(())
    }

    /// Runs a part of this close, which may be the user's code, and panic.
    pub(crate) fn run_part<T>(&self, part: Part, run: impl FnOnce() -> T) -> std::thread::Result<T> {
        let outer = PART.replace(Some((self.id.0, part)));
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
    pub(crate) fn begin_step(&self) -> (u64, oneshot::Receiver<Outcome>) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (step, (sender, ended)) = (NEXT.fetch_add(1, Ordering::Relaxed), oneshot::channel());
        self.steps.lock().insert(step, sender);
        (step, ended)
    }

    pub(crate) fn end_step(&self, step: u64, outcome: Outcome) {
        let sender = self.steps.lock().remove(&step);
        if let Some(sender) = sender {
            // Nobody waits any more once it has timed out.
            let _ = sender.send(outcome);
        }
    }

    /// Counts as running, under this name, until that drops.
    pub(crate) fn running_as(&self, name: &str) -> Running<'_> {
        let name = Arc::from(name);
        self.running.lock().push(Arc::clone(&name));
        Running { cell: self, name }
    }

    /// The names of what is running now: steps, the drain, a listener.
    pub(crate) fn running(&self) -> Vec<Arc<str>> {
        self.running.lock().clone()
    }
}

#[cfg(all(test, not(model)))]
mod tests {
    use super::*;
    use crate::lifecycle::close::report::Reason;
    use crate::lifecycle::status::PoolStatus;

    const LONG: Duration = Duration::from_secs(3600);

    fn report(reason: Reason) -> CloseReport {
        let status = PoolStatus { closing: true, resources: Vec::new() };
        CloseReport { reason, status, drained: Duration::ZERO, steps: Vec::new(), took: Duration::ZERO }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(1)
    }

    #[test]
    fn the_whole_is_closed_once_for_all_who_ask() {
        let cell = CloseCell::default();
        assert!(!cell.is_closing() && !cell.closing().is_set());
        assert_eq!(cell.deadline(), None);
        let (course, first) = cell.begin(LONG);
        let deadline = cell.deadline().unwrap();
        assert!(first && cell.is_closing() && cell.closing().is_set());
        let (same, second) = cell.begin(Duration::ZERO);
        assert!(Arc::ptr_eq(&course, &same) && !second);
        assert_eq!(cell.deadline(), Some(deadline), "the first who asks says how long");
        assert!(cell.report().is_none() && cell.wait_blocking(soon()).is_none());
        course.end(report(Reason::Requested));
        assert!(cell.report().is_some());
        assert!(cell.wait_blocking(soon()).is_none(), "the listeners have not had it");
        cell.announce(&course);
        assert_eq!(cell.wait_blocking(Instant::now() + LONG).unwrap().reason, Reason::Requested);
    }

    #[test]
    fn the_whole_takes_the_closes_of_single_resources_over() {
        let (cell, name, other) = (CloseCell::default(), Arc::from("name"), Arc::from("other"));
        let (single, first) = cell.begin_single(&name);
        let (same, second) = cell.begin_single(&name);
        assert!(first && !second && Arc::ptr_eq(&single, &same));
        assert!(!cell.is_closing() && cell.singles().is_empty());
        let (ended, _) = cell.begin_single(&other);
        cell.end_single(&other, report(Reason::Requested));
        assert!(ended.report().is_some());
        let (whole, _) = cell.begin(LONG);
        assert!(cell.singles().keys().eq([&name]));
        let (of_the_whole, third) = cell.begin_single(&other);
        assert!(!third && Arc::ptr_eq(&whole, &of_the_whole), "none begins any more");
        cell.end_single(&name, report(Reason::Dropped));
        assert_eq!(single.report().unwrap().reason, Reason::Dropped);
    }

    #[test]
    fn what_is_closed_opens_again_unless_the_process_ends() {
        let cell = CloseCell::default();
        assert!(cell.reopen(|| false).is_ok(), "it is open");
        let (course, _) = cell.begin(LONG);
        assert!(matches!(cell.reopen(|| false), Err(Error::Closing { .. })), "it is being closed");
        course.end(report(Reason::Requested));
        assert!(matches!(cell.reopen(|| true), Err(Error::Closing { .. })));
        assert!(cell.is_closing());
        cell.reopen(|| false).unwrap();
        assert!(!cell.is_closing() && cell.report().is_none());
        // The listeners of the close before say nothing of the next one.
        cell.announce(&course);
        let (next, first) = cell.begin(LONG);
        assert!(first && !Arc::ptr_eq(&course, &next));
        assert!(cell.wait_blocking(soon()).is_none());
    }

    #[test]
    fn a_thread_knows_the_part_that_it_runs() {
        let (cell, other) = (CloseCell::default(), CloseCell::default());
        let (course, _) = cell.begin(LONG);
        assert!(!cell.is_inside() && cell.check_outside(&course, "name").is_ok());
        let ran = cell.run_part(Part::Step(3), || {
            assert!(cell.is_inside() && !other.is_inside() && cell.part() == Some(Part::Step(3)));
            assert!(matches!(cell.check_outside(&course, "name"), Err(Error::Closing { .. })));
            assert!(other.check_outside(&course, "name").is_ok());
            let inner = cell.run_part(Part::Listener, || (cell.is_inside(), cell.part() == Some(Part::Listener)));
            assert_eq!(inner.unwrap(), (false, true));
            course.end(report(Reason::Requested));
            assert!(cell.check_outside(&course, "name").is_ok(), "there is nothing to wait for");
            cell.is_inside()
        });
        assert!(ran.unwrap() && cell.part().is_none());
        assert!(cell.run_part(Part::Listener, || panic!("as the test asked")).is_err());
        assert!(cell.part().is_none());
    }

    #[test]
    fn a_part_that_ends_the_process_is_over() {
        let cell = CloseCell::default();
        let (course, _) = cell.begin(LONG);
        cell.leave_part();
        let (step, mut outcome) = cell.begin_step();
        cell.run_part(Part::Step(step), || cell.leave_part()).unwrap();
        assert!(matches!(outcome.try_recv(), Ok(Outcome::Failed(why)) if why.contains("ended the process")));
        course.end(report(Reason::ProcessExit));
        assert!(cell.wait_blocking(soon()).is_none());
        cell.run_part(Part::Listener, || cell.leave_part()).unwrap();
        assert!(cell.wait_blocking(soon()).is_some());
    }

    #[test]
    fn each_step_tells_its_own_outcome_once() {
        let cell = CloseCell::default();
        let ((first, mut one), (second, mut two)) = (cell.begin_step(), cell.begin_step());
        assert_ne!(first, second);
        cell.end_step(second, Outcome::Closed);
        cell.end_step(second, Outcome::Skipped);
        assert!(one.try_recv().is_err());
        assert_eq!(two.try_recv().unwrap(), Outcome::Closed);
    }

    #[test]
    fn what_runs_is_named_until_it_ends() {
        let cell = CloseCell::default();
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
