//! Models of the exclusive checkouts.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use loom::thread::{self, JoinHandle};

use crate::base::error::Failure;
use crate::base::retry::Retry;
use crate::lifecycle::checkout::core::{Core, Limits};
use crate::lifecycle::checkout::manage::Manage;
use crate::lifecycle::checkout::opening::Job;
use crate::lifecycle::checkout::waiter::Refusal;
use crate::lifecycle::model::{block_on, explore};

/// An adapter. Its connection is a flag, which tells whether the connection is still good.
struct Adapter;

impl Manage for Adapter {
    type Connection = bool;
    const BLOCKS: bool = true;

    async fn connect(&self) -> Result<bool, Failure> {
        Ok(true)
    }

    async fn is_valid(&self, _: &mut bool) -> Result<(), Failure> {
        Ok(())
    }

    fn has_broken(&self, good: &mut bool) -> bool {
        !*good
    }
}

type Openings = Arc<std::sync::Mutex<Vec<JoinHandle<()>>>>;

/// A core with at most `max` connections. Each is opened on a thread of its own.
fn checkouts(max: usize) -> (Arc<Core<Adapter>>, Openings) {
    let openings = Openings::default();
    let threads = Arc::clone(&openings);
    let start = move |job: Job<Adapter>, _: Duration| match job {
        Job::Open(_) => threads.lock().unwrap().push(thread::spawn(move || block_on(job.run()))),
        Job::Part(_) => block_on(job.run()),
    };
    (core(max, start), openings)
}

fn core(max: usize, start: impl Fn(Job<Adapter>, Duration) + Send + Sync + 'static) -> Arc<Core<Adapter>> {
    let never = Duration::ZERO;
    let limits =
        Limits { max, idle_timeout: never, max_lifetime: never, test_after: Duration::MAX, ..Limits::default() };
    let start = move |core: &_, begun| Job::start_all(core, begun, &start);
    let core = Core::new(Arc::from("model"), Adapter, limits, Retry::default(), never, start);
    core.accept();
    core
}

/// Waits for a connection and gives it back.
fn check_out(core: &Arc<Core<Adapter>>) {
    core.put(block_on(core.wait(None)).unwrap());
}

/// Gets a connection at once and gives it back, or gives up.
fn give_up(core: &Arc<Core<Adapter>>) {
    let mut waiting = pin!(core.wait(None));
    if let Poll::Ready(answer) = waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        core.put(answer.unwrap());
    }
}

/// Checks the end: nobody waits, nothing is out, and an open connection can be had.
fn check_idle(core: &Arc<Core<Adapter>>, openings: &Openings) {
    loop {
        let next = openings.lock().unwrap().pop();
        let Some(opening) = next else { break };
        opening.join().unwrap();
    }
    core.check_idle();
    check_out(core);
}

pub fn hand_over_against_giving_up() {
    explore(3, || {
        let (core, openings) = checkouts(1);
        let held = block_on(core.wait(None)).unwrap();
        let giving_up = spawn_on(&core, give_up);
        let waiting = spawn_on(&core, check_out);
        core.put(held);
        giving_up.join().unwrap();
        waiting.join().unwrap();
        check_idle(&core, &openings);
    });
}

pub fn return_against_new_waiters() {
    explore(3, || {
        let (core, openings) = checkouts(1);
        let held = block_on(core.wait(None)).unwrap();
        let others = [spawn_on(&core, check_out), spawn_on(&core, check_out)];
        core.put(held);
        others.into_iter().for_each(|other| other.join().unwrap());
        check_idle(&core, &openings);
    });
}

pub fn broken_return_against_a_waiter() {
    explore(3, || {
        let (core, openings) = checkouts(1);
        let mut held = block_on(core.wait(None)).unwrap();
        let waiting = spawn_on(&core, check_out);
        held.spoil(|good| *good = false);
        core.put(held);
        waiting.join().unwrap();
        check_idle(&core, &openings);
    });
}

pub fn openings_against_waiters() {
    explore(2, || {
        let (core, openings) = checkouts(2);
        let other = spawn_on(&core, give_up);
        check_out(&core);
        other.join().unwrap();
        check_idle(&core, &openings);
    });
}

pub fn close_against_waiters() {
    explore(3, || {
        let (core, openings) = checkouts(1);
        let held = block_on(core.wait(None)).unwrap();
        let waiting = spawn_on(&core, |core| match block_on(core.wait(None)) {
            Ok(entry) => core.put(entry),
            Err(refusal) => assert!(is_closed(&refusal), "{refusal:?}"),
        });
        let closing = spawn_on(&core, |core| core.refuse(core.closed(), true));
        core.put(held);
        closing.join().unwrap();
        waiting.join().unwrap();
        assert!(block_on(core.wait(None)).is_err_and(|refusal| is_closed(&refusal)));
        loop {
            let next = openings.lock().unwrap().pop();
            let Some(opening) = next else { break };
            opening.join().unwrap();
        }
        core.check_idle();
    });
}

fn is_closed(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Because(error) if error.is_closed())
}

pub fn loss_against_openings() {
    explore(3, || {
        let (core, openings) = checkouts(1);
        let waiting = spawn_on(&core, |core| {
            // The entry comes before the loss, or after the return.
            if let Ok(entry) = block_on(core.wait(None)) {
                core.put(entry);
            }
        });
        core.refuse(Refusal::AskAnew, false);
        core.accept();
        waiting.join().unwrap();
        check_idle(&core, &openings);
    });
}

pub fn cancelled_opening() {
    explore(3, || {
        let first = AtomicBool::new(true);
        let openings = Openings::default();
        let threads = Arc::clone(&openings);
        // The first job is dropped some time after it was begun, as by a runtime that ends.
        let start = move |job: Job<Adapter>, _: Duration| {
            let drops = first.swap(false, Ordering::Relaxed);
            threads.lock().unwrap().push(thread::spawn(move || {
                if !drops {
                    block_on(job.run());
                }
            }));
        };
        let core = core(1, start);
        let giving_up = spawn_on(&core, give_up);
        give_up(&core);
        giving_up.join().unwrap();
        check_idle(&core, &openings);
    });
}

fn spawn_on(core: &Arc<Core<Adapter>>, run: impl FnOnce(&Arc<Core<Adapter>>) + 'static) -> JoinHandle<()> {
    let core = Arc::clone(core);
    thread::spawn(move || run(&core))
}
