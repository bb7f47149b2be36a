//! Tests of each change of a life's state, and of the answers that follow from it, without tasks.

use std::io;

use super::*;
use crate::lifecycle::status::Counters;

const ANYONE: Caller = Caller { patient: false, inside: false };
const PATIENT: Caller = Caller { patient: true, inside: false };
const INSIDE: Caller = Caller { patient: false, inside: true };
/// Longer than any of these tests takes.
const LONG: Duration = Duration::from_secs(3600);

fn activity(endpoint: &str) -> Arc<Activity> {
    Activity::new("name", None, endpoint.to_owned(), &Arc::default())
}

fn idle(young: Duration) -> Life<u8> {
    Life::new(activity("fake://name"), &LeakOptions::default(), young)
}

fn ready(young: Duration) -> Life<u8> {
    let life = idle(young);
    assert_eq!(next(&life, ANYONE).unwrap(), AcquireStep::Connect(1));
    assert_eq!(made(life.connected(1, 7, |_| None)), (1, false));
    life
}

fn next(life: &Life<u8>, caller: Caller) -> Result<AcquireStep, Error> {
    life.advance(&mut None, caller, || false)
}

/// The generation that a success made, and whether it is lost already.
fn made(connected: ConnectOutcome<u8>) -> (u64, bool) {
    match connected {
        ConnectOutcome::Ready { generation, lost } => (generation, lost.is_some()),
        other => panic!("{other:?}"),
    }
}

fn cause() -> Source {
    Arc::new(io::Error::other("it is gone"))
}

fn failure(life: &Life<u8>) -> Error {
    life.lost_error(cause())
}

/// The attempt that brings the connection back, and how many generations died young.
fn recovery(lost: LossAction) -> (u64, u32) {
    match lost {
        LossAction::Recover(Recovery { attempt, died_young }) => (attempt, died_young),
        other => panic!("{other:?}"),
    }
}

#[test]
fn whoever_asks_first_connects_and_the_others_wait_for_that() {
    let life = idle(LONG);
    assert!(matches!(life.advance(&mut None, ANYONE, || true), Err(Error::Closing { .. })), "nothing begins any more");
    let mut first = None;
    assert_eq!(life.advance(&mut first, ANYONE, || false).unwrap(), AcquireStep::Connect(1));
    assert_eq!((first, life.state(), life.generation_or_next()), (Some(1), State::Connecting, 1));
    assert_eq!(next(&life, ANYONE).unwrap(), AcquireStep::Wait);
    assert_eq!(made(life.connected(1, 7, |_| None)), (1, false));
    assert_eq!(life.advance(&mut first, ANYONE, || false).unwrap(), AcquireStep::Lease);
    assert_eq!((life.state(), life.handle(), life.generation_or_next()), (State::Ready, Some(7), 1));
}

#[test]
fn a_failure_answers_those_who_joined_and_whoever_asks_while_the_circuit_is_open() {
    for (circuit, stands) in [(LONG, true), (Duration::ZERO, false)] {
        let life = idle(LONG);
        let mut joined = None;
        life.advance(&mut joined, ANYONE, || false).unwrap();
        life.gave_up(2, failure(&life), circuit);
        assert_eq!(life.state(), State::Connecting, "that is another attempt");
        life.gave_up(1, failure(&life), circuit);
        assert_eq!(life.state(), State::Broken);
        assert!(matches!(life.advance(&mut joined, PATIENT, || false), Err(Error::Lost { .. })));
        assert_eq!(next(&life, ANYONE).is_err(), stands);
        assert!(life.condition().failure.is_some());
    }
}

#[test]
fn a_failure_before_another_attempt_answers_nobody_who_waits() {
    let life = idle(LONG);
    let mut joined = None;
    life.advance(&mut joined, ANYONE, || false).unwrap();
    life.failed(1, failure(&life), LONG);
    assert_eq!(life.advance(&mut joined, ANYONE, || false).unwrap(), AcquireStep::Wait);
    assert!(!life.begin_settling(), "it pauses");
    assert_eq!(life.again(2), None, "that is another one");
    assert_eq!(life.again(1), Some(2));
    assert!(life.begin_settling());
    assert_eq!(made(life.connected(2, 7, |_| None)), (1, false));
}

#[test]
fn the_patient_wait_while_it_is_brought_back_and_the_others_hear_of_the_loss() {
    let life = ready(Duration::ZERO);
    let (attempt, died_young) = recovery(life.lost(None, 1, cause()));
    assert_eq!((attempt, died_young, life.state(), life.generation_or_next()), (2, 0, State::Connecting, 2));
    for failed in [false, true] {
        if failed {
            life.failed(attempt, failure(&life), LONG);
            assert_eq!(life.state(), State::Broken);
            assert!(matches!(next(&life, ANYONE), Err(Error::Lost { .. })));
        }
        assert_eq!(next(&life, PATIENT).unwrap(), AcquireStep::Wait);
    }
    let attempt = life.again(attempt).unwrap();
    assert_eq!(made(life.recovered(attempt, |_| None)), (2, false));
    assert_eq!((next(&life, ANYONE).unwrap(), life.handle()), (AcquireStep::Lease, Some(7)));
    assert!(life.condition().failure.is_none());
    // Once no task brings the connection back any more, a patient caller gets the error.
    let (attempt, _) = recovery(life.lost(None, 2, cause()));
    life.gave_up(attempt, failure(&life), LONG);
    assert!(matches!(next(&life, PATIENT), Err(Error::Lost { .. })));
}

#[test]
fn a_generation_that_dies_young_is_followed_by_a_pause() {
    let life = ready(LONG);
    for generation in 1..4 {
        let (attempt, died_young) = recovery(life.lost(None, generation, cause()));
        assert_eq!((u64::from(died_young), life.state()), (generation, State::Broken));
        let attempt = life.again(attempt).unwrap();
        assert_eq!(made(life.recovered(attempt, |_| None)), (generation + 1, false));
    }
    // A loss that was asked for is no early death.
    let attempt = life.reconnect(cause()).unwrap();
    assert_eq!((life.state(), made(life.recovered(attempt, |_| None))), (State::Connecting, (5, false)));
    assert_eq!(recovery(life.lost(None, 5, cause())).1, 1);
}

#[test]
fn a_loss_counts_for_the_present_generation_alone() {
    let life = ready(LONG);
    assert_eq!(life.lost(None, 0, cause()), LossAction::Noted);
    assert_eq!(life.lost(None, 2, cause()), LossAction::Noted);
    assert_eq!(life.state(), State::Ready);
    let (attempt, _) = recovery(life.lost(None, 1, cause()));
    let attempt = life.again(attempt).unwrap();
    assert_eq!(life.lost(None, 1, cause()), LossAction::Noted);
    assert_eq!(life.lost(Some(attempt), 2, cause()), LossAction::Noted, "it is noted for when the attempt succeeds");
    assert_eq!(made(life.recovered(attempt, |_| None)), (2, true));
}

#[test]
fn a_loss_that_a_failed_attempt_tells_late_is_nobodys() {
    let life = ready(LONG);
    let (first, _) = recovery(life.lost(None, 1, cause()));
    let second = life.again(first).unwrap();
    life.failed(second, failure(&life), LONG);
    let third = life.again(second).unwrap();
    assert_eq!(life.lost(Some(second), 2, cause()), LossAction::Noted);
    assert_eq!(made(life.recovered(third, |_| None)), (2, false));
    assert_eq!(life.lost(Some(second), 2, cause()), LossAction::Noted);
    assert_eq!(life.lost(Some(third), 2, cause()), LossAction::Recover(Recovery { attempt: third + 1, died_young: 2 }));
}

#[test]
fn closing_leases_to_its_own_code_until_the_phase_begins() {
    let life = ready(LONG);
    assert!(life.begin_close() && !life.begin_close());
    assert_eq!((life.state(), next(&life, ANYONE).unwrap()), (State::Draining, AcquireStep::Lease));
    life.stop_leasing_outside();
    assert!(matches!(next(&life, ANYONE), Err(Error::Closing { .. })));
    assert_eq!(next(&life, INSIDE).unwrap(), AcquireStep::Lease);
    life.stop_leasing();
    assert!(matches!(next(&life, INSIDE), Err(Error::Closing { .. })));
    assert_eq!(life.finish_close(), Ok(()));
    assert!(matches!(next(&life, INSIDE), Err(Error::Closed { .. })));
    assert_eq!((life.state(), life.handle()), (State::Closed, None));
    assert!(!life.begin_close(), "there is nothing to close");
    life.reopen();
    assert_eq!((life.state(), next(&life, ANYONE).unwrap()), (State::Idle, AcquireStep::Connect(2)));
    life.reopen();
    assert_eq!(life.state(), State::Connecting, "it was not closed");
}

#[test]
fn a_loss_while_closing_is_the_steps_trouble_until_the_drain_is_over() {
    for (drained, told) in [(false, true), (true, false)] {
        let life = ready(LONG);
        assert!(life.begin_close());
        if drained {
            life.stop_leasing();
        }
        assert_eq!(life.lost(None, 2, cause()), LossAction::Noted);
        assert_eq!(life.lost(None, 1, cause()), LossAction::Cut);
        assert_eq!((life.take_close_error().is_some(), life.take_close_error().is_some()), (told, false));
    }
}

#[test]
fn what_is_broken_closes_without_leasing() {
    let life = ready(LONG);
    recovery(life.lost(None, 1, cause()));
    assert!(life.begin_close());
    assert!(matches!(next(&life, INSIDE), Err(Error::Closing { .. })));
    assert_eq!(life.lost(None, 1, cause()), LossAction::Cut);
    assert!(life.take_close_error().is_none());
}

#[test]
fn an_attempt_that_closing_overtook_changes_nothing() {
    let life = idle(LONG);
    assert_eq!(next(&life, ANYONE).unwrap(), AcquireStep::Connect(1));
    assert!(!life.begin_close(), "nothing is connected");
    assert_eq!(life.state(), State::Closed);
    assert!(matches!(life.connected(1, 7, |_| None), ConnectOutcome::Late(7)));
    assert!(matches!(life.recovered(1, |_| None), ConnectOutcome::Superseded));
    life.failed(1, failure(&life), LONG);
    life.gave_up(1, failure(&life), LONG);
    assert!(life.forget(1).is_err());
    assert_eq!((life.again(1), life.state()), (None, State::Closed));
    life.reopen();
    assert_eq!(next(&life, ANYONE).unwrap(), AcquireStep::Connect(2));
    assert_eq!(life.lost(Some(1), 1, cause()), LossAction::Noted);
    assert_eq!(made(life.connected(2, 8, |_| None)), (1, false));
}

#[test]
fn an_attempt_that_closing_overtook_tells_no_loss_of_what_is_closed_then() {
    let life = ready(Duration::ZERO);
    let (attempt, _) = recovery(life.lost(None, 1, cause()));
    assert!(life.begin_close());
    assert_eq!(life.lost(Some(attempt), 1, cause()), LossAction::Noted);
    assert_eq!(life.lost(Some(attempt - 1), 1, cause()), LossAction::Cut, "the one before it made what is closed");
}

#[test]
fn a_loss_of_another_generation_is_none_of_the_one_that_is_being_made() {
    let life = ready(Duration::ZERO);
    let (attempt, _) = recovery(life.lost(None, 1, cause()));
    assert_eq!(life.lost(None, 1, cause()), LossAction::Noted);
    assert_eq!(life.lost(None, 3, cause()), LossAction::Noted);
    assert_eq!(made(life.recovered(attempt, |_| None)), (2, false));
}

#[test]
fn the_first_trouble_of_a_close_counts() {
    let life = ready(LONG);
    assert!(life.begin_close());
    life.close_error(Arc::new(io::Error::other("the first")));
    life.close_error(Arc::new(io::Error::other("the second")));
    assert_eq!(life.take_close_error().unwrap().to_string(), "the first");
}

#[test]
fn closing_that_settles_has_no_attempt_begun() {
    let life = idle(LONG);
    assert!(!life.begin_settling());
    let mut joined = None;
    life.advance(&mut joined, ANYONE, || false).unwrap();
    assert!(life.begin_settling());
    assert_eq!(life.again(1), None);
    life.gave_up(1, failure(&life), Duration::ZERO);
    assert!(matches!(next(&life, ANYONE), Err(Error::Closing { .. })));
    assert!(!life.begin_close());
    assert_eq!(life.state(), State::Closed);
}

#[test]
fn reconnect_resets_what_is_closed_and_takes_over_what_pauses() {
    let life = ready(LONG);
    let (first, _) = recovery(life.lost(None, 1, cause()));
    let second = life.reconnect(cause()).unwrap();
    assert_eq!((second, life.state(), life.again(first)), (first + 1, State::Connecting, None));
    assert_eq!(life.forget(second).ok().flatten(), Some(7));
    assert_eq!(life.reconnect(cause()), None, "it is connecting already");
    assert_eq!(made(life.connected(second, 8, |_| None)), (2, false));
    assert!(life.begin_close());
    assert_eq!((life.reconnect(cause()), life.state()), (None, State::Draining));
    life.stop_leasing();
    life.finish_close().unwrap();
    assert_eq!((life.reconnect(cause()), life.state()), (None, State::Idle));
    assert_eq!(next(&life, ANYONE).unwrap(), AcquireStep::Connect(second + 1));
    life.gave_up(second + 1, failure(&life), LONG);
    assert_eq!((life.reconnect(cause()), life.state()), (None, State::Idle), "the circuit is closed again");
}

#[test]
fn a_retired_resource_stays_closed_and_one_that_is_connected_does_not_retire() {
    let life = ready(LONG);
    assert!(!life.retire());
    assert!(life.begin_close());
    assert!(!life.retire(), "it is closing");
    life.finish_close().unwrap();
    assert!(life.reconnect(cause()).is_none() && life.state() == State::Idle, "it was not retired");
    assert!(life.retire(), "there is nothing to close");
    assert!(life.reconnect(cause()).is_none());
    life.reopen();
    assert_eq!(life.state(), State::Closed);
    assert!(matches!(next(&life, ANYONE), Err(Error::Closed { .. })));
}

#[test]
fn progress_is_the_present_attempts_until_the_state_changes() {
    let life = idle(LONG);
    life.progress(1, Arc::from("too early"));
    assert!(life.condition().progress.is_none());
    next(&life, ANYONE).unwrap();
    life.progress(2, Arc::from("another's"));
    assert!(life.condition().progress.is_none());
    life.progress(1, Arc::from("512 of 1,000 declared"));
    assert_eq!(&*life.condition().progress.unwrap().told, "512 of 1,000 declared");
    assert_eq!(made(life.connected(1, 7, |_| None)), (1, false));
    assert!(life.condition().progress.is_none());
}

#[test]
fn a_handle_that_panics_as_it_drops_fails_the_close_alone() {
    #[derive(Clone)]
    struct Panics;
    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("as the test asked");
        }
    }
    let life = Life::new(activity(""), &LeakOptions::default(), LONG);
    life.advance(&mut None, ANYONE, || false).unwrap();
    assert!(matches!(life.connected(1, Panics, |_| None), ConnectOutcome::Ready { .. }));
    assert!(life.begin_close());
    life.stop_leasing();
    assert_eq!(life.finish_close().unwrap_err(), "as the test asked");
    assert_eq!(life.state(), State::Closed);
}

#[tokio::test]
async fn whoever_waits_is_counted() {
    let life = ready(Duration::ZERO);
    let (attempt, _) = recovery(life.lost(None, 1, cause()));
    let waiting = life.ready(PATIENT, || false, |attempt| panic!("attempt {attempt} is not for it"));
    tokio::pin!(waiting);
    assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(waiting.as_mut().poll(cx).is_pending())).await);
    assert_eq!(life.condition().waiting, 1);
    assert_eq!(made(life.recovered(attempt, |_| None)), (2, false));
    waiting.await.unwrap();
    assert_eq!(life.condition().waiting, 0);
}

#[test]
fn counts_go_on_from_handle_to_handle_and_never_fall() {
    let opened = |opened| Counters { opened: Some(opened), ..Counters::default() };
    let life = ready(LONG);
    let (_, first) = life.handle_in_turn();
    assert_eq!(life.count(first, opened(5)), opened(5));
    assert_eq!(life.count(first, opened(0)), opened(5));
    assert_eq!(life.count(first, Counters::default()), opened(5), "it panicked");

    let attempt = life.reconnect(cause()).unwrap();
    assert_eq!(life.forget(attempt).ok().flatten(), Some(7));
    assert_eq!(life.counted(), opened(5));
    assert_eq!(made(life.connected(attempt, 8, |_| None)), (2, false));
    let (_, second) = life.handle_in_turn();
    assert_eq!(life.count(second, opened(3)), opened(8));
    assert_eq!(life.count(first, opened(6)), opened(9), "the lost one answers late");
    assert_eq!(life.count(first, opened(4)), opened(9));

    assert!(life.begin_close());
    life.finish_close().unwrap();
    assert_eq!(life.counted(), opened(9));
    assert_eq!(life.count(second, opened(4)), opened(10), "so does the closed one");
    assert_eq!(life.count(first, opened(100)), opened(10), "it is too late");
}
