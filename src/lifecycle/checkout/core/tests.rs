//! The decisions of the core of the checkouts, one at a time, without threads.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::base::error::{BoxError, Failure};
use crate::base::runtime::park_on;
use crate::lifecycle::checkout::entry::YOUNG;
use crate::lifecycle::checkout::opening::Job;
use crate::lifecycle::checkout::waiting::Ended;

use super::*;

/// A driver that counts the connections it opens. Their drop can be made to panic.
#[derive(Default)]
struct Manager {
    disconnects_panic: Arc<AtomicBool>,
    opened: AtomicUsize,
}

struct Connection(Arc<AtomicBool>);

impl Drop for Connection {
    fn drop(&mut self) {
        if self.0.load(Ordering::Relaxed) {
            std::panic::resume_unwind(Box::new("as scripted"));
        }
    }
}

impl Manager {
    fn open(&self) -> Connection {
        Connection(Arc::clone(&self.disconnects_panic))
    }
}

impl Manage for Manager {
    type Connection = Connection;
    const BLOCKS: bool = true;

    async fn connect(&self) -> Result<Connection, Failure> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        Ok(self.open())
    }

    async fn is_valid(&self, _: &mut Connection) -> Result<(), Failure> {
        Ok(())
    }
}

/// The jobs of each start, of which there may be none: openings, disconnects, and the pause before the openings.
type Jobs = Arc<Mutex<Vec<(usize, usize, Duration)>>>;

/// The unit of the limits in these tests.
const SECOND: Duration = Duration::from_secs(1);
const LIMITS: Limits = Limits {
    max: 10,
    min_idle: 0,
    kept: 0,
    idle_timeout: Duration::ZERO,
    max_lifetime: Duration::ZERO,
    test_after: Duration::from_secs(3600),
    test_idle_after: Duration::ZERO,
};

fn core(limits: Limits) -> (Arc<Core<Manager>>, Jobs) {
    let jobs = Jobs::default();
    let told = Arc::clone(&jobs);
    let start = move |_: &Arc<_>, JobsBegun { openings, disconnects, pause, .. }: JobsBegun| {
        told.lock().push((openings, disconnects, pause));
    };
    let core = Core::new(Arc::from("fake"), Manager::default(), limits, Retry::default(), SECOND, start);
    // `accept` would also begin jobs.
    core.state.lock().suspended = false;
    (core, jobs)
}

/// One more connection that is open.
fn opened(core: &Core<Manager>) -> Box<PooledConnection<Manager>> {
    let mut state = core.state.lock();
    state.open += 1;
    core.entry(&mut state, core.manager.open())
}

/// Adds so many idle connections.
fn idle(core: &Arc<Core<Manager>>, count: usize) {
    for _ in 0..count {
        core.put(opened(core));
    }
}

#[test]
fn lifetimes_are_spread_over_a_tenth_and_neighbours_are_far_apart() {
    let (core, _) = core(Limits { max_lifetime: 1000 * SECOND, ..LIMITS });
    let lifetimes: Vec<_> = (0..100).map(|_| opened(&core).lifetime).collect();
    assert!(lifetimes.iter().all(|lifetime| (900 * SECOND..=1000 * SECOND).contains(lifetime)), "{lifetimes:?}");
    assert_eq!(lifetimes.iter().collect::<BTreeSet<_>>().len(), lifetimes.len());
    assert!(lifetimes.windows(2).all(|pair| pair[0].abs_diff(pair[1]) > 30 * SECOND), "{lifetimes:?}");
    let (endless, _) = self::core(LIMITS);
    assert_eq!(opened(&endless).lifetime, Duration::MAX);
}

#[test]
fn what_is_taken_is_replaced_where_too_few_lie_idle_then() {
    for (min_idle, has, begun) in [(0, 1, None), (1, 2, None), (1, 1, Some(1)), (2, 2, Some(1))] {
        let (core, jobs) = core(Limits { min_idle, ..LIMITS });
        idle(&core, has);
        assert!(core.try_get().is_some() && jobs.lock().len() == usize::from(begun.is_some()), "{min_idle} of {has}");
        assert_eq!(jobs.lock().first().map(|(openings, ..)| *openings), begun);
    }
}

#[test]
fn what_fails_its_first_test_soon_was_opened_in_vain() {
    let (core, _) = core(LIMITS);
    let now = Moment::now();
    let mut entry = opened(&core);
    entry.opened = now;
    assert!(entry.is_fresh(now) && entry.is_fresh(now.later(YOUNG - Duration::from_nanos(1))));
    assert!(!entry.is_fresh(now.later(YOUNG)));
    entry.checked_out = Some(now);
    assert!(!entry.is_fresh(now));

    let failed = || Some(Source::from(BoxError::from("as scripted")));
    for (cause, was_out, setbacks) in [(failed(), false, 1), (failed(), true, 0), (None, false, 0)] {
        let (core, _) = self::core(LIMITS);
        let mut entry = opened(&core);
        entry.checked_out = was_out.then(Moment::now);
        core.close_unfit(Rejected { entry, cause });
        let state = core.state.lock();
        assert_eq!((state.setbacks, state.open, state.leaving.len()), (setbacks, 0, 1));
    }
}

#[test]
fn an_opening_pauses_after_a_setback_and_nothing_else_does() {
    let (core, jobs) = core(Limits { min_idle: 1, ..LIMITS });
    let mut state = core.state.lock();
    core.set_back(&mut state);
    core.settle(state);
    core.settle(core.state.lock());
    let [(1, 0, pause), (0, 0, none)] = jobs.lock()[..] else { panic!("{:?}", jobs.lock()) };
    assert!(!pause.is_zero() && none.is_zero(), "{pause:?} and {none:?}");
}

#[test]
fn none_that_is_retired_is_handed_out_again() {
    let (core, _) = core(LIMITS);
    idle(&core, 2);
    let out = core.try_get().unwrap();
    core.retire();
    assert!(core.try_get().is_none());
    core.put(out);
    assert!(core.try_get().is_none());
    let state = core.state.lock();
    assert_eq!((state.leaving.len(), state.open), (2, 0));
}

/// An opening that was begun when there might be more leads to nothing.
#[test]
fn what_is_opened_too_late_for_the_size_is_closed() {
    let (core, _) = core(Limits { min_idle: 2, ..LIMITS });
    let opening = job(&core, 1, 0);
    core.put(opened(&core));
    core.resize_with(1, || ());
    park_on(opening.run());
    let state = core.state.lock();
    assert_eq!((state.open, state.opening, state.opened), (1, 0, 1));
}

#[test]
fn as_many_are_closed_as_are_too_many_and_the_longest_idle_first() {
    for (idle_ones, out, max, left) in [(3, 0, 2, 2), (1, 2, 1, 0), (0, 3, 1, 0), (2, 1, 5, 2)] {
        let (core, _) = core(LIMITS);
        let all = idle_ones + out;
        idle(&core, all);
        let out: Vec<_> = (0..out).map(|_| core.try_get().unwrap()).collect();
        core.resize_with(max, || ());
        assert_eq!(core.state.lock().idle.len(), left, "{idle_ones} idle, {} out, {max}", out.len());
        out.into_iter().for_each(|entry| core.put(entry));
        let state = core.state.lock();
        assert_eq!((state.open, state.idle.len()), (all.min(max), all.min(max)));
        assert_eq!(state.closed.surplus, all.saturating_sub(max) as u64);
    }
}

#[test]
fn a_new_epoch_begins_with_the_new_connection_where_there_is_room() {
    for (max, out, is_closed, idle_then) in [(2, 1, false, 1), (1, 1, false, 0), (1, 0, false, 1), (2, 0, true, 0)] {
        let (core, _) = core(Limits { max, ..LIMITS });
        let held: Vec<_> = (0..out).map(|_| opened(&core)).collect();
        core.state.lock().is_closed = is_closed;
        core.renew(Some(core.manager.open()), 0);
        let state = core.state.lock();
        assert_eq!((state.idle.len(), state.open), (idle_then, out + idle_then), "{max}, {out} out, {is_closed}");
        assert_eq!((state.leaving.len(), state.closed.surplus), (1 - idle_then, 1 - idle_then as u64));
        drop(state);
        held.into_iter().for_each(|entry| core.put(entry));
        assert_eq!(core.state.lock().open, idle_then + if is_closed { out } else { 0 });
    }
}

/// Its connections are replaced already.
#[test]
fn an_epoch_that_has_ended_is_not_ended_again() {
    let (core, _) = core(LIMITS);
    core.retire();
    idle(&core, 2);
    core.renew(Some(core.manager.open()), 0);
    core.renew(None, 0);
    let state = core.state.lock();
    assert_eq!((state.epoch, state.idle.len(), state.open), (1, 2, 2));
    assert_eq!((state.closed.refreshed, state.closed.surplus), (0, 1));
}

/// The reason counts that ended the epoch, also for a connection that comes back later.
#[test]
fn connections_count_as_closed_for_the_reason_that_ended_them() {
    let closed = |end: &dyn Fn(&Arc<Core<Manager>>)| {
        let (core, _) = core(LIMITS);
        idle(&core, 2);
        let out = core.try_get().unwrap();
        end(&core);
        core.put(out);
        let state = core.state.lock();
        assert_eq!((state.open, state.closed.total(), state.leaving.len()), (0, 2, 2));
        state.closed
    };
    let error = |error| Refusal::Because(error);
    let name = Arc::from("fake");
    let gone = || Source::from(BoxError::from("as scripted"));
    let lost = || error(Error::Lost { resource: Arc::clone(&name), endpoint: Arc::clone(&name), source: gone() });
    assert_eq!(closed(&|core| core.retire()).refreshed, 2);
    assert_eq!(closed(&|core| core.refuse(core.closed(), true)).closing, 2);
    assert_eq!(closed(&|core| core.refuse(error(Error::closing(&name)), false)).closing, 2);
    assert_eq!(closed(&|core| core.refuse(lost(), false)).lost, 2);
    assert_eq!(closed(&|core| core.suspend()).lost, 2);
    let (core, _) = core(LIMITS);
    for cause in [Some(gone()), None] {
        core.close_unfit(Rejected { entry: opened(&core), cause });
    }
    assert_eq!(core.state.lock().closed.broken, 2);
}

#[test]
fn waits_count_whether_they_are_served_or_not() {
    let (core, _) = core(Limits { max: 1, ..LIMITS });
    core.put(opened(&core));
    assert!(park_on(core.get(Instant::now() + SECOND)).is_ok());
    assert!(park_on(core.get(Instant::now())).is_err());
    let waits = &core.state.lock().waits;
    assert_eq!((waits.count, waits.timeouts), (2, 1));
}

#[test]
fn goodbyes_are_said_once_none_is_waiting_and_none_is_under_way() {
    for (leaving, parting) in [(0, 0), (1, 0), (0, 1)] {
        let (core, _) = core(LIMITS);
        let gone: Vec<_> = (0..leaving).map(|_| opened(&core)).collect();
        let mut state = core.state.lock();
        state.leaving.extend(gone);
        state.parting = parting;
        drop(state);
        assert_eq!(core.has_disconnected(), leaving + parting == 0, "{leaving} and {parting}");
    }
}

#[test]
fn idle_ones_are_closed_after_their_time_down_to_min_idle() {
    for (idle_timeout, min_idle, left) in
        [(10 * SECOND, 1, 1), (10 * SECOND, 0, 0), (10 * SECOND, 5, 3), (Duration::ZERO, 0, 3)]
    {
        let (core, _) = core(Limits { idle_timeout, min_idle, ..LIMITS });
        idle(&core, 3);
        let now = Moment::now();
        core.reap(now);
        core.reap(now.later(idle_timeout.saturating_sub(Duration::from_nanos(1))));
        assert_eq!(core.state.lock().idle.len(), 3);
        core.reap(now.later(idle_timeout));
        let state = core.state.lock();
        assert_eq!((state.idle.len(), state.open), (left, left), "{idle_timeout:?} and {min_idle}");
        assert_eq!((state.closed.idle, state.closed.total()), (3 - left as u64, 3 - left as u64));
    }
}

#[test]
fn worn_ones_are_closed_however_few_there_are() {
    let (core, _) = core(Limits { max_lifetime: 1000 * SECOND, min_idle: 2, ..LIMITS });
    idle(&core, 2);
    let now = Moment::now();
    core.reap(now);
    assert_eq!(core.state.lock().idle.len(), 2);
    core.reap(now.later(1000 * SECOND));
    let state = core.state.lock();
    assert_eq!((state.idle.len(), state.closed.lifetime, state.closed.total()), (0, 2, 2));
}

#[test]
fn looks_for_what_is_idle_are_an_eighth_of_the_shortest_limit_apart() {
    let interval = |idle_timeout, max_lifetime| Limits { idle_timeout, max_lifetime, ..LIMITS }.interval();
    assert_eq!(interval(Duration::ZERO, Duration::ZERO), None);
    assert_eq!(interval(8 * SECOND, Duration::ZERO), Some(SECOND));
    assert_eq!(interval(80 * SECOND, 16 * SECOND), Some(2 * SECOND));
    assert_eq!(interval(1000 * SECOND, Duration::ZERO), Some(10 * SECOND));
    assert_eq!(interval(Duration::from_millis(1), Duration::ZERO), Some(Duration::from_millis(10)));
}

#[test]
fn a_driver_that_panics_at_its_goodbye_harms_nobody() {
    let (core, _) = core(LIMITS);
    let entry = opened(&core);
    core.manager.disconnects_panic.store(true, Ordering::Relaxed);
    park_on(core.disconnect(entry.connection));
}

/// One job that has begun: an opening or a disconnect.
fn job(core: &Arc<Core<Manager>>, openings: usize, disconnects: usize) -> Job<Manager> {
    let begun = {
        let mut state = core.state.lock();
        state.opening += openings;
        state.parting += disconnects;
        JobsBegun { openings, disconnects, epoch: state.epoch, pause: Duration::ZERO }
    };
    let jobs = Mutex::new(Vec::new());
    Job::start_all(core, begun, |job, _| jobs.lock().push(job));
    jobs.into_inner().pop().expect("one")
}

#[test]
fn what_nobody_wants_any_more_is_not_opened() {
    for (min_idle, is_late, opens) in [(1, false, 1), (0, false, 0), (1, true, 0)] {
        let (core, _) = core(Limits { min_idle, ..LIMITS });
        let opening = job(&core, 1, 0);
        if is_late {
            let _nobody_waits = core.state.lock().end(CloseCause::Lost);
        }
        core.state.lock().open_concurrency = 3;
        park_on(opening.run());
        assert_eq!(core.manager.opened.load(Ordering::Relaxed), opens, "{min_idle} wanted, late: {is_late}");
        assert_eq!(core.state.lock().opening, 0);
        let one_at_a_time = !is_late;
        assert_eq!(core.state.lock().open_concurrency == 1, one_at_a_time, "a late one changes nothing");
    }
}

#[test]
fn more_are_opened_at_a_time_where_more_are_wanted_than_are_being_opened() {
    // Only the connection that is opened lies idle, so that one less is wanted then.
    for (min_idle, others, width) in [(5, 0, 4), (5, 3, 4), (5, 4, 3), (5, 5, 3), (1, 0, 1)] {
        let (core, _) = core(Limits { min_idle, ..LIMITS });
        let opening = job(&core, 1, 0);
        core.state.lock().opening += others;
        core.state.lock().open_concurrency = 3;
        park_on(opening.run());
        assert_eq!(core.state.lock().open_concurrency, width, "{min_idle} wanted, {others} others being opened");
    }
}

#[test]
fn an_opening_after_setbacks_pauses_the_next_one() {
    for setbacks in [0, 2] {
        let (core, _) = core(Limits { min_idle: 5, ..LIMITS });
        let opening = job(&core, 1, 0);
        core.state.lock().setbacks = setbacks;
        park_on(opening.run());
        let state = core.state.lock();
        assert_eq!((state.pausing.is_some(), state.open_concurrency > 1), (setbacks > 0, setbacks == 0));
    }
}

#[test]
fn openings_are_unanswered_while_there_are_some_and_each_is_accounted_for() {
    let (core, _) = core(Limits { min_idle: 5, ..LIMITS });
    let openings = [job(&core, 1, 0), job(&core, 1, 0)];
    core.state.lock().unanswered = Some(Instant::now());
    for (opening, left) in openings.into_iter().zip([1, 0]) {
        drop(opening);
        let state = core.state.lock();
        assert_eq!((state.opening, state.unanswered.is_some()), (left, left > 0));
        assert!(state.failure.as_ref().is_some_and(|why| why.to_string().contains("runtime has ended")));
    }
}

#[test]
fn goodbyes_that_nobody_says_are_dropped_whatever_the_driver_does() {
    let (core, _) = core(LIMITS);
    let disconnects = job(&core, 0, 1);
    let gone = [opened(&core), opened(&core)];
    core.state.lock().leaving.extend(gone);
    core.manager.disconnects_panic.store(true, Ordering::Relaxed);
    drop(disconnects);
    let state = core.state.lock();
    assert_eq!((state.leaving.len(), state.parting), (0, 0));
}

#[test]
fn what_failed_before_anybody_waited_explains_nothing() {
    for (opening, is_kept) in [(0, false), (1, true)] {
        let (core, _) = core(LIMITS);
        let mut state = core.state.lock();
        state.opening = opening;
        state.failure = Some(Source::from(BoxError::from("as scripted")));
        drop(state);
        let waiting = core.wait(None);
        assert_eq!(core.state.lock().failure.is_some(), is_kept, "{opening} being opened");
        drop(waiting);
    }
}

#[test]
fn goodbyes_that_hang_explain_a_wait_once_they_keep_others_from_being_opened() {
    for (leaving, is_told) in [(1, false), (2, true)] {
        let (core, _) = core(Limits { max: 1, ..LIMITS });
        let gone: Vec<_> = (0..leaving).map(|_| opened(&core)).collect();
        let mut state = core.state.lock();
        state.leaving.extend(gone);
        (state.open, state.parting) = (1, MAX_DISCONNECTS);
        drop(state);
        let Err(Ended::TimedOut(cause)) = park_on(core.get(Instant::now())) else { panic!("there is none") };
        assert_eq!(cause.is_some_and(|why| why.to_string().contains("goodbyes hang")), is_told, "{leaving} leaving");
    }
}
