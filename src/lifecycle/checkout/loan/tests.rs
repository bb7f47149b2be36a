//! The effects of the prober's loans on the checkouts, one decision at a time, without threads.

use crate::base::error::BoxError;
use crate::base::retry::Retry;
use crate::base::runtime::park_on;
use crate::lifecycle::checkout::core::Limits;
use crate::lifecycle::checkout::waiter::{QueuedWaiter, Refusal};

use super::*;

/// A driver with the failures of its next connects. They are taken from the end.
#[derive(Default)]
struct Manager {
    connects: parking_lot::Mutex<Vec<Failure>>,
    /// Those of its next pings.
    pings: parking_lot::Mutex<Vec<Failure>>,
}

impl Manage for Manager {
    type Connection = ();

    async fn connect(&self) -> Result<(), Failure> {
        self.connects.lock().pop().map_or(Ok(()), Err)
    }

    async fn is_valid(&self, (): &mut ()) -> Result<(), Failure> {
        self.pings.lock().pop().map_or(Ok(()), Err)
    }
}

/// The unit of the limits in these tests.
const SECOND: Duration = Duration::from_secs(1);

fn core() -> Arc<Core<Manager>> {
    let (manager, limits) = (Manager::default(), Limits::default());
    let core = Core::new(Arc::from("fake"), manager, limits, Retry::default(), SECOND, |_, _begun| {});
    // `accept` would also begin jobs.
    core.state.lock().suspended = false;
    core
}

/// A loan of the prober's own connection.
fn own(core: &Arc<Core<Manager>>) -> Loan<Manager> {
    let mut state = core.state.lock();
    let entry = core.entry(&mut state, ());
    core.spare(&state, Some(entry))
}

/// A loan of a connection that is counted among the users'.
fn borrowed(core: &Arc<Core<Manager>>) -> Loan<Manager> {
    let mut state = core.state.lock();
    state.open += 1;
    let entry = core.entry(&mut state, ());
    core.lend_idle(&mut state, entry)
}

/// The connection that was unproven for longest goes first, and lies idle for as long as if it had not been lent.
#[test]
fn an_idle_connection_is_tested_after_its_time_and_stays_idle() {
    let (core, now) = (testing(10), Moment::now());
    untested(&core, now);
    untested(&core, now);
    core.state.lock().idle[0].checked_out = Some(now.later(5 * SECOND));
    assert!(core.lend_untested(now.later(9 * SECOND)).is_none());
    let loan = core.lend_untested(now.later(10 * SECOND)).expect("the one that was not checked out");
    assert!(core.lend_untested(now.later(10 * SECOND)).is_none());
    assert!(core.state.lock().borrowed.is_some(), "users reckon with it");
    park_on(loan.ask()).unwrap();
    let state = core.state.lock();
    assert_eq!((state.idle.len(), state.lent, state.open), (2, 0, 2));
    assert!(state.idle.iter().all(|entry| entry.idle.is_some()) && state.borrowed.is_none());
    assert!(state.idle[0].tested.is_some() && state.idle[1].tested.is_none());
}

/// One connection that is idle, is to be tested, and was seen idle at this moment.
fn untested(core: &Arc<Core<Manager>>, now: Moment) {
    let mut state = core.state.lock();
    state.open += 1;
    let mut entry = core.entry(&mut state, ());
    (entry.opened, entry.idle) = (now, Some(now));
    state.idle.push(entry);
}

fn testing(max: usize) -> Arc<Core<Manager>> {
    let limits = Limits { max, test_idle_after: 10 * SECOND, ..Limits::default() };
    let core = Core::new(Arc::from("fake"), Manager::default(), limits, Retry::default(), SECOND, |_, _begun| {});
    core.state.lock().suspended = false;
    core
}

/// The new one is closed when the broken one would have been idle for too long.
#[test]
fn the_one_in_place_of_an_idle_one_goes_on_with_its_idle_time() {
    let (core, now) = (testing(2), Moment::now());
    untested(&core, now);
    core.manager.pings.lock().push(silence());
    park_on(core.lend_untested(now.later(10 * SECOND)).unwrap().ask()).unwrap();
    let state = core.state.lock();
    assert_eq!((state.idle.len(), state.opened, state.closed.broken), (1, 2, 1));
    assert_eq!(state.idle[0].idle.map(|idle| idle.millis()), Some(now.millis()));
}

#[test]
fn the_last_idle_one_is_not_tested_where_no_other_one_may_be_opened() {
    let (core, now) = (testing(1), Moment::now());
    untested(&core, now);
    assert!(core.lend_untested(now.later(10 * SECOND)).is_none());
    core.resize_with(2, || ());
    assert!(core.lend_untested(now.later(10 * SECOND)).is_some());
}

/// Only a ping tells whether the server is silent.
#[test]
fn a_test_of_an_idle_one_that_fails_or_is_given_up_makes_no_silence() {
    for is_given_up in [true, false] {
        let (core, now) = (testing(2), Moment::now());
        untested(&core, now);
        let loan = core.lend_untested(now.later(10 * SECOND)).unwrap();
        if is_given_up {
            drop(loan);
        } else {
            core.manager.pings.lock().push(silence());
            core.manager.connects.lock().push(silence());
            park_on(loan.ask()).unwrap_err();
        }
        assert!(!core.state.lock().is_silent, "{is_given_up}");
    }
}

#[test]
fn the_wait_of_a_user_who_only_tries_does_not_count() {
    let core = core();
    let loan = borrowed(&core);
    let counts = || {
        let waits = &core.state.lock().waits;
        (waits.count, waits.timeouts)
    };
    assert!(park_on(core.try_regain()).is_some_and(|got| got.is_err()), "the ping takes too long");
    assert_eq!(counts(), (0, 0));
    assert!(park_on(core.regain(Instant::now())).is_some_and(|got| got.is_err()));
    assert_eq!(counts(), (1, 1));
    drop(loan);
}

/// The end of one loan is not the end of the other, which a user waits for.
#[test]
fn a_second_loan_disappoints_nobody_who_waits_for_the_first() {
    let core = core();
    let (first, second) = (borrowed(&core), borrowed(&core));
    let waiter = heir(&core);
    core.manager.pings.lock().push(silence());
    core.manager.connects.lock().push(silence());
    park_on(second.ask()).unwrap_err();
    assert!(waiter.0.lock().answer.is_none() && core.state.lock().borrowed.is_some());
    park_on(first.ask()).unwrap();
    assert!(matches!(waiter.0.lock().answer.take(), Some(Ok(_))));
}

/// A waiter for the borrowed connection.
fn heir(core: &Core<Manager>) -> Arc<QueuedWaiter<Manager>> {
    let waiter = QueuedWaiter::new();
    core.state.lock().heir = Some(Arc::clone(&waiter));
    waiter
}

fn silence() -> Failure {
    Failure::transient("no answer")
}

/// Users who have nothing wait for openings, which ask the server in the prober's place.
#[test]
fn the_silence_of_an_opening_counts_once_while_the_next_one_pauses() {
    for (has_failed, told) in [(true, [Proof::Silent, Proof::Unasked]), (false, [Proof::Unasked; 2])] {
        let core = core();
        let mut state = core.state.lock();
        state.pausing = Some(Instant::now() + SECOND);
        state.unheard = has_failed.then(|| Arc::from(BoxError::from("refused")));
        drop(state);
        let proofs = [(); 2].map(|()| core.loan(SECOND).map(drop).unwrap_err().proof());
        assert_eq!(proofs, told, "has failed: {has_failed}");
    }
}

#[test]
fn the_prober_opens_one_of_its_own_where_there_is_none_and_one_may_be_opened() {
    let core = core();
    let epoch = core.begin_spare().expect("there is none");
    // The next attempt follows only after the limit of an opening and the longest pause.
    let pause = SECOND + core.retry.cap;
    let NextSpare::From(from) = core.state.lock().next_spare else { panic!("one is being opened") };
    let left = from.saturating_duration_since(Instant::now());
    assert!(left <= pause && left > pause - SECOND, "{left:?}");
    assert_eq!(core.begin_spare(), None);
    core.state.lock().next_spare = NextSpare::From(Instant::now());
    assert_eq!(core.begin_spare(), Some(epoch));

    type Change = fn(&mut QueueState<Manager>);
    let hindrances: [(&str, Change); 5] = [
        ("closed", |state| state.is_closed = true),
        ("suspended", |state| state.suspended = true),
        ("refused", |state| state.refused = Some(Refusal::AskAnew)),
        ("silent", |state| state.is_silent = true),
        ("never", |state| state.next_spare = NextSpare::Never),
    ];
    for (what, hinder) in hindrances {
        let core = self::core();
        hinder(&mut core.state.lock());
        assert_eq!(core.begin_spare(), None, "{what}");
    }
    for (lifetime, begins) in [(Duration::MAX, false), (Duration::ZERO, true)] {
        let core = self::core();
        let mut state = core.state.lock();
        let mut entry = core.entry(&mut state, ());
        entry.lifetime = lifetime;
        state.spare = Some(entry);
        drop(state);
        assert_eq!(core.begin_spare().is_some(), begins, "one that may be used for {lifetime:?}");
    }
}

#[test]
fn the_prober_keeps_what_it_has_opened_unless_it_is_too_late() {
    let core = core();
    let epoch = core.state.lock().epoch;
    for kept in 0..2 {
        assert_eq!(core.take_spare((), epoch), Ok(()));
        let state = core.state.lock();
        assert_eq!((state.spare.is_some(), state.leaving.len()), (true, kept), "the one before leaves");
    }
    type Change = fn(&mut QueueState<Manager>);
    let hindrances: [(&str, Change); 3] = [
        ("ended", |state| state.epoch += 1),
        ("closed", |state| state.is_closed = true),
        ("never", |state| state.next_spare = NextSpare::Never),
    ];
    for (what, hinder) in hindrances {
        let core = self::core();
        hinder(&mut core.state.lock());
        assert_eq!(core.take_spare((), 0), Err(()), "{what}");
    }
}

#[test]
fn a_new_connection_proves_silence_where_users_have_none_or_an_open_one_was_silent() {
    for (users, is_silent) in [(0, false), (0, true), (1, true)] {
        let core = core();
        core.manager.connects.lock().push(silence());
        let mut state = core.state.lock();
        (state.open, state.is_silent) = (users, is_silent);
        drop(state);
        let failure = park_on(core.loan(SECOND).expect("it may be asked").ask()).unwrap_err();
        assert_eq!(failure.proof(), Proof::Silent, "{users} users, silent: {is_silent}");
    }
    let core = core();
    core.state.lock().open = 1;
    assert!(core.loan(SECOND).is_err_and(|failure| failure.is_unasked()), "users are served");
}

#[test]
fn what_could_not_be_asked_over_goes_back_to_the_users() {
    for is_silent in [false, true] {
        let core = core();
        let loan = borrowed(&core);
        core.state.lock().is_silent = is_silent;
        loan.give_back();
        let state = core.state.lock();
        assert_eq!((state.idle.len(), state.leaving.len(), state.lent), (1, 0, 0));
        assert_eq!(state.is_silent, is_silent, "nobody was asked");
    }
}

#[test]
fn an_answer_on_the_probers_own_connection_is_told_and_keeps_it() {
    for failure in [Failure::refused("loading"), Failure::limited("a quota")] {
        let core = core();
        let proof = failure.proof();
        core.manager.pings.lock().push(failure);
        let told = park_on(own(&core).ask()).unwrap_err();
        assert_eq!(told.proof(), proof);
        let state = core.state.lock();
        assert!(state.spare.is_some() && state.leaving.is_empty() && !state.is_silent);
    }
    let core = core();
    core.manager.pings.lock().push(silence());
    let told = park_on(own(&core).ask()).unwrap_err();
    assert!(told.is_unasked() && core.state.lock().spare.is_none(), "{told}");
}

#[test]
fn only_an_open_connections_own_silence_counts() {
    for (failure, before, is_silent) in [
        (silence(), false, true),
        (Failure::refused("loading"), true, false),
        (Failure::limited("a quota"), true, false),
        (Failure::unasked("no descriptors"), true, true),
        (Failure::unasked("no descriptors"), false, false),
    ] {
        let core = core();
        let mut loan = borrowed(&core);
        core.state.lock().is_silent = before;
        loan.part(&failure).expect("it is not late");
        assert_eq!(core.state.lock().is_silent, is_silent, "{failure}, {before}");
    }
    let core = self::core();
    let mut loan = borrowed(&core);
    core.retire();
    assert!(loan.part(&silence()).is_err_and(|late| late.is_unasked()));
    assert!(!core.state.lock().is_silent, "the connections of now have not been asked");
}

#[test]
fn who_waits_for_a_borrowed_connection_is_told_that_it_went_and_nobody_else_is() {
    // The ping failed, or was given up.
    let ends: [fn(Loan<Manager>); 2] = [|mut loan| drop(loan.part(&silence())), drop];
    for end in ends {
        let core = core();
        let loan = borrowed(&core);
        let waiter = heir(&core);
        end(loan);
        assert!(matches!(waiter.0.lock().answer, Some(Err(Refusal::MayNotWait))));

        let core = self::core();
        let loan = own(&core);
        let waiter = heir(&core);
        end(loan);
        assert!(waiter.0.lock().answer.is_none() && core.state.lock().heir.is_some(), "not for the prober's own");

        let core = self::core();
        let loan = borrowed(&core);
        core.retire();
        let waiter = heir(&core);
        end(loan);
        assert!(waiter.0.lock().answer.is_none() && core.state.lock().heir.is_some(), "not for one of long ago");
    }
}

#[test]
fn a_new_connection_that_cannot_be_had_pauses_the_users_openings_and_no_others() {
    for (is_own, is_late, setbacks) in [(false, false, 1), (true, false, 0), (false, true, 0), (true, true, 0)] {
        let core = core();
        let mut loan = if is_own { own(&core) } else { borrowed(&core) };
        if is_late {
            core.retire();
        }
        assert!(loan.take(Err(silence())).is_err());
        assert_eq!(core.state.lock().setbacks, setbacks, "its own: {is_own}, late: {is_late}");
    }
}

#[test]
fn a_refusal_shows_that_the_server_lives() {
    // The effects of a new connection's failure, after an open one was silent.
    for (is_own, is_late, refused, is_silent, proves) in [
        (false, false, true, false, true),
        (true, false, true, false, false),
        (false, true, true, true, true),
        (true, true, true, true, true),
        (false, false, false, true, true),
        (true, false, false, true, true),
    ] {
        let core = core();
        let mut loan = if is_own { own(&core) } else { borrowed(&core) };
        if is_late {
            core.retire();
        }
        core.state.lock().is_silent = true;
        let failure = if refused { Failure::refused("full") } else { silence() };
        let Err(told) = loan.take(Err(failure)) else { panic!("it was refused") };
        let case = format!("its own: {is_own}, late: {is_late}, refused: {refused}");
        assert_eq!(
            (core.state.lock().is_silent, loan.proves, told.is_unasked()),
            (is_silent, proves, !proves),
            "{case}"
        );
        // Otherwise the drop would record that the ping was given up.
        loan.is_open = false;
    }
}
