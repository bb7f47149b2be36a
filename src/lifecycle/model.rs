//! Every interleaving of a few threads over the life of a resource and the close of a pool:
//! `cargo xtask models`, which runs them by the crate in `models/`. Threads stand for the tasks that the slot and the closer spawn, and do
//! what those do, by the same transitions.

#![allow(missing_docs, reason = "their names say it")]

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use loom::thread::{self, JoinHandle};

use crate::base::error::{BoxError, Error, Source};
use crate::base::retry::Retry;
use crate::base::sync::{Condvar, Mutex, set_thread_number};
use crate::lifecycle::busy::Busy;
use crate::lifecycle::checkout::core::{Core, Limits};
use crate::lifecycle::checkout::opening::Job;
use crate::lifecycle::checkout::waiter::Refusal;
use crate::lifecycle::close::report::CloseReport;
use crate::lifecycle::close::report::Reason;
use crate::lifecycle::close::state::CloseCell;
use crate::lifecycle::leak::LeakOptions;
use crate::lifecycle::lease::{Claim, Lease};
use crate::lifecycle::life::Life;
use crate::lifecycle::status::{PoolStatus, State};
use crate::lifecycle::transition::{Caller, Connected, Lost, Recovery};
use crate::lifecycle::work::Work;

/// Tries all interleavings with at most so many preemptions, unless `LOOM_MAX_PREEMPTIONS` says
/// how many.
fn explore(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    let tried = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&tried);
    let started = Instant::now();
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        run();
    });
    let bound = builder.preemption_bound;
    println!("{} interleavings in {:.1?}, preemptions: {bound:?}", tried.load(Ordering::Relaxed), started.elapsed());
}

/// A pool of one resource. A handle is the attempt that made it, and the generation it was made for.
struct World {
    life: Life<(u64, u64)>,
    close: CloseCell,
    // Not loom's, as they only look on.
    made: std::sync::Mutex<Vec<(u64, u64)>>,
    goodbyes: std::sync::Mutex<Vec<(u64, u64)>>,
    attempts: std::sync::Mutex<Vec<JoinHandle<()>>>,
    closes: AtomicUsize,
    acts_inside: AtomicBool,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(World {
            life: Life::new("model", String::new(), &LeakOptions::default(), Duration::ZERO),
            close: CloseCell::default(),
            made: std::sync::Mutex::default(),
            goodbyes: std::sync::Mutex::default(),
            attempts: std::sync::Mutex::default(),
            closes: AtomicUsize::new(0),
            acts_inside: AtomicBool::new(false),
        })
    }

    /// One that is connected.
    fn ready() -> Arc<Self> {
        let world = World::new();
        drop(world.acquire_with(|attempt| world.connect(attempt)).unwrap());
        world
    }

    /// A lease, connecting first if need be, as `Slot::acquire`.
    fn acquire(self: &Arc<Self>) -> Result<Lease<(u64, u64)>, Error> {
        self.acquire_with(|attempt| self.spawn(attempt, World::connect))
    }

    fn acquire_with(&self, connect: impl Fn(u64)) -> Result<Lease<(u64, u64)>, Error> {
        loop {
            if let Some(lease) = self.life.ledger.lease(Claim::shared()) {
                let (_, generation) = *lease;
                assert_eq!(generation, Lease::generation(&lease), "a handle of another generation");
                return Ok(lease);
            }
            block_on(self.life.ready(Caller::default(), || self.close.is_closing(), &connect))?;
        }
    }

    /// Carries an attempt out on a thread of its own, as the slot in a task.
    fn spawn(self: &Arc<Self>, attempt: u64, run: impl FnOnce(&World, u64) + 'static) {
        let world = Arc::clone(self);
        self.attempts.lock().unwrap().push(thread::spawn(move || run(&world, attempt)));
    }

    /// One attempt that connects anew, as `Slot::bring` of what cannot be recovered.
    fn connect(&self, attempt: u64) {
        let Ok(lost) = self.life.forget(attempt) else { return };
        self.goodbyes.lock().unwrap().extend(lost);
        let handle = (attempt, self.life.generation_or_next());
        self.made.lock().unwrap().push(handle);
        if let Connected::Late(late) = self.life.connected(attempt, handle, |_| None) {
            self.goodbyes.lock().unwrap().push(late);
            assert_eq!(self.life.lost(Some(attempt), late.1, cause()), Lost::Noted, "nobody had it");
        }
        self.life.check();
    }

    /// One attempt that is dropped half-way, as `Trying` is.
    fn give_up(&self, attempt: u64) {
        self.life.gave_up(attempt, Error::Closed { resource: Arc::clone(&self.life.activity.name) }, Duration::ZERO);
    }

    fn lose(&self, generation: u64) -> Lost {
        self.life.lost(None, generation, cause())
    }

    /// Loses the first generation, and fails at first to bring it back. Then, after a pause, this
    /// attempt is to be carried out.
    fn lose_and_fail(&self) -> Option<u64> {
        let Lost::Recover(Recovery { attempt, .. }) = self.lose(1) else { return None };
        let failure = Error::Closed { resource: Arc::clone(&self.life.activity.name) };
        self.life.failed(attempt, failure, Duration::ZERO);
        self.life.again(attempt)
    }

    /// Closes everything, as `close::start`.
    fn close_all(&self) -> Arc<CloseReport> {
        let (course, first) = self.close.begin(Duration::MAX);
        if first {
            course.end(self.run_close());
            self.close.announce(&course);
        }
        block_on(course.wait())
    }

    /// What runs once per close. The drain has no limit here, so that a wake-up which is lost
    /// shows as a deadlock.
    fn run_close(&self) -> CloseReport {
        self.closes.fetch_add(1, Ordering::Relaxed);
        if self.life.begin_settling() {
            block_on(self.life.settled());
        }
        if self.life.begin_close() {
            let holders = || self.life.ledger.holders(&self.life.activity.name);
            let idle = || (self.life.activity.tally.now().is_empty() && holders().is_empty()).then_some(());
            block_on(self.life.activity.until(idle));
            self.life.shut_to_outside();
            self.life.check();
            self.act_inside();
            self.life.shut();
            block_on(self.life.activity.until(idle));
            self.life.activity.tally.end_drain();
            self.life.check();
            assert!(self.life.ledger.lease_inside::<(u64, u64)>(Claim::shared()).is_none(), "leased in its own phase");
            self.goodbyes.lock().unwrap().extend(self.life.handle());
            self.life.finish_close().unwrap();
        }
        let status = PoolStatus { closing: true, resources: Vec::new() };
        let (drained, took) = (Duration::ZERO, Duration::ZERO);
        CloseReport { reason: Reason::Requested, status, drained, steps: Vec::new(), took }
    }

    /// An earlier phase's closing code leases, and gives the lease back on another thread.
    fn act_inside(&self) {
        if !self.acts_inside.load(Ordering::Relaxed) {
            return;
        }
        let lease = self.life.ledger.lease_inside::<(u64, u64)>(Claim::shared());
        // There is none where the resource was broken as closing began.
        let Some(lease) = lease else { return };
        assert_eq!(lease.1, Lease::generation(&lease));
        let busy = Busy::new(&self.life.activity, Work::Operation);
        self.attempts.lock().unwrap().push(thread::spawn(move || drop((busy, lease))));
    }

    /// As `Registry::reopen`.
    fn reopen(&self) {
        if self.close.report().is_some() {
            self.life.reopen();
            self.close.reopen(|| false).unwrap();
        }
    }

    /// What must hold in the end, whatever happened: nobody waits, nothing is leased, and of the
    /// handles each but the one in use was said goodbye to, once.
    fn check(&self) {
        loop {
            let next = self.attempts.lock().unwrap().pop();
            let Some(attempt) = next else { break };
            attempt.join().unwrap();
        }
        self.life.check();
        assert_eq!(self.life.condition().waiting, 0);
        assert!(self.life.ledger.holders(&self.life.activity.name).is_empty());
        let mut ended = self.goodbyes.lock().unwrap().clone();
        ended.extend(self.life.handle());
        ended.sort_unstable();
        let mut made = self.made.lock().unwrap().clone();
        made.sort_unstable();
        assert_eq!(ended, made, "each handle in use or said goodbye to, once");
    }
}

fn cause() -> Source {
    BoxError::from("lost").into()
}

fn block_on<F: Future>(future: F) -> F::Output {
    #[derive(Default)]
    struct Parked {
        woken: Mutex<bool>,
        changed: Condvar,
    }
    impl Wake for Parked {
        fn wake(self: Arc<Self>) {
            *self.woken.lock() = true;
            self.changed.notify_all();
        }
    }
    let parked = Arc::new(Parked::default());
    let waker = Arc::clone(&parked).into();
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        let mut woken = parked.woken.lock();
        while !*woken {
            parked.changed.wait(&mut woken);
        }
        *woken = false;
    }
}

/// The same in a thread of its own, which leases from another seat.
fn spawn<T: 'static>(world: &Arc<World>, run: impl FnOnce(&Arc<World>) -> T + 'static) -> JoinHandle<T> {
    let world = Arc::clone(world);
    thread::spawn(move || {
        set_thread_number(1);
        run(&world)
    })
}

pub fn acquire_against_close() {
    explore(3, || {
        let world = World::new();
        let acquiring = spawn(&world, |world| world.acquire().map(drop));
        world.close_all();
        assert_eq!(world.life.state(), State::Closed);
        assert!(world.life.ledger.lease::<(u64, u64)>(Claim::shared()).is_none(), "leased what is closed");
        if let Err(error) = acquiring.join().unwrap() {
            assert!(error.is_closed(), "{error}");
        }
        assert!(world.acquire().is_err_and(|error| error.is_closed()));
        world.check();
    });
}

pub fn drop_against_drain() {
    explore(3, || {
        let world = World::ready();
        let lease = world.acquire().unwrap();
        let busy = Busy::new(&world.life.activity, Work::Operation);
        let dropping = thread::spawn(move || drop(lease));
        let ending = thread::spawn(move || drop(busy));
        world.close_all();
        dropping.join().unwrap();
        ending.join().unwrap();
        world.check();
    });
}

pub fn inside_leases_until_its_own_phase() {
    explore(3, || {
        let world = World::ready();
        world.acts_inside.store(true, Ordering::Relaxed);
        let outside = spawn(&world, |world| world.acquire().map(drop));
        world.close_all();
        if let Err(error) = outside.join().unwrap() {
            assert!(error.is_closed(), "{error}");
        }
        assert_eq!(world.life.state(), State::Closed);
        world.check();
    });
}

pub fn two_closers_share_one_report() {
    explore(3, || {
        let world = World::ready();
        let other = spawn(&world, |world| world.close_all());
        let exiting = spawn(&world, |world| {
            let (course, first) = world.close.begin(Duration::MAX);
            if first {
                course.end(world.run_close());
                world.close.announce(&course);
            }
            world.close.wait_blocking(Instant::now()).expect("no time passes")
        });
        let report = world.close_all();
        assert!(Arc::ptr_eq(&report, &other.join().unwrap()));
        assert!(Arc::ptr_eq(&report, &exiting.join().unwrap()));
        assert_eq!(world.closes.load(Ordering::Relaxed), 1);
        world.check();
    });
}

pub fn two_closers_of_one_resource_share_one_report() {
    explore(3, || {
        let world = World::ready();
        let close = |world: &Arc<World>| {
            let name = &world.life.activity.name;
            let (course, first) = world.close.begin_single(name);
            if first {
                world.close.end_single(name, world.run_close());
            }
            (first, block_on(course.wait()))
        };
        let other = spawn(&world, close);
        let (first, report) = close(&world);
        let (other_first, other_report) = other.join().unwrap();
        // Only one who comes after the end begins another one.
        assert_eq!(Arc::ptr_eq(&report, &other_report), first != other_first);
        assert_eq!(world.life.state(), State::Closed);
        world.check();
    });
}

pub fn cancelled_connect() {
    explore(3, || {
        let world = World::new();
        let give_up = |world: &Arc<World>| {
            let acquired = world.acquire_with(|attempt| world.spawn(attempt, World::give_up));
            assert!(acquired.is_err_and(|error| error.is_closed()), "an answer");
        };
        let other = spawn(&world, give_up);
        give_up(&world);
        other.join().unwrap();
        assert_eq!(world.life.state(), State::Broken);
        drop(world.acquire_with(|attempt| world.connect(attempt)).expect("connects anew"));
        world.check();
    });
}

pub fn generation_changes_under_leases() {
    explore(3, || {
        let world = World::ready();
        let lose = |world: &Arc<World>| {
            let Lost::Recover(Recovery { attempt, .. }) = world.lose(1) else { return 0 };
            world.connect(attempt);
            1
        };
        let losing = spawn(&world, lose);
        let leasing = spawn(&world, |world| {
            world.life.check();
            let lease = world.acquire().map(|lease| Lease::generation(&lease));
            assert!(lease.is_ok() || matches!(lease, Err(Error::Lost { .. })), "{lease:?}");
        });
        let losses = lose(&world) + losing.join().unwrap();
        leasing.join().unwrap();
        assert_eq!(losses, 1, "a stale loss does nothing");
        assert_eq!((world.life.state(), world.life.condition().generation), (State::Ready, 2));
        world.check();
    });
}

pub fn loss_against_close() {
    explore(3, || {
        let world = World::ready();
        let losing = spawn(&world, |world| {
            if let Lost::Recover(Recovery { attempt, .. }) = world.lose(1) {
                world.connect(attempt);
            }
        });
        world.close_all();
        losing.join().unwrap();
        assert_eq!(world.life.state(), State::Closed);
        world.check();
    });
}

pub fn recovery_in_place_against_close() {
    explore(3, || {
        let world = World::ready();
        let losing = spawn(&world, |world| {
            if let Some(attempt) = world.lose_and_fail() {
                world.life.recovered(attempt, |_| None);
                world.life.check();
            }
        });
        world.close_all();
        losing.join().unwrap();
        assert_eq!(world.life.state(), State::Closed);
        world.check();
    });
}

pub fn reconnect_against_a_recovery() {
    explore(3, || {
        let world = World::ready();
        let losing = spawn(&world, |world| {
            if let Some(attempt) = world.lose_and_fail() {
                world.connect(attempt);
            }
        });
        if let Some(attempt) = world.life.reconnect(cause()) {
            world.connect(attempt);
        }
        losing.join().unwrap();
        assert_eq!(world.life.state(), State::Ready, "somebody brings it back");
        world.check();
    });
}

pub fn reconnect_against_a_late_connect() {
    explore(3, || {
        let world = World::new();
        let acquiring = spawn(&world, |world| world.acquire().map(drop));
        // Closed alone, the pool stays open; and then opened again.
        world.run_close();
        assert_eq!(world.life.reconnect(cause()), None);
        drop(world.acquire_with(|attempt| world.connect(attempt)).expect("open"));
        if let Err(error) = acquiring.join().unwrap() {
            assert!(error.is_closed(), "{error}");
        }
        world.check();
    });
}

pub fn reopen_against_acquire_and_close() {
    explore(2, || {
        let world = World::ready();
        world.close_all();
        let acquiring = spawn(&world, |world| {
            let acquired = world.acquire_with(|attempt| world.connect(attempt)).map(drop);
            assert!(acquired.is_ok() || acquired.is_err_and(|error| error.is_closed()));
        });
        let closing = spawn(&world, |world| world.close_all());
        world.reopen();
        acquiring.join().unwrap();
        closing.join().unwrap();
        world.reopen();
        drop(world.acquire_with(|attempt| world.connect(attempt)).expect("open"));
        assert!(world.closes.load(Ordering::Relaxed) <= 2);
        world.check();
    });
}

pub fn reopen_before_the_listeners_are_done() {
    explore(3, || {
        let world = World::new();
        let ending = spawn(&world, |world| world.close_all());
        world.reopen();
        if !world.close.is_closing() {
            let waiting = spawn(&world, |world| world.close.wait_blocking(Instant::now()).is_some());
            world.close_all();
            assert!(waiting.join().unwrap(), "an end that was another close's");
        }
        ending.join().unwrap();
        world.check();
    });
}

/// An adapter whose connections are whether they are still good.
struct Adapter;

impl r2d2::ManageConnection for Adapter {
    type Connection = bool;
    type Error = Infallible;

    fn connect(&self) -> Result<bool, Infallible> {
        Ok(true)
    }

    fn is_valid(&self, _: &mut bool) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, good: &mut bool) -> bool {
        !*good
    }
}

type Openings = Arc<std::sync::Mutex<Vec<JoinHandle<()>>>>;

/// At most so many connections, opened on threads of their own.
fn checkouts(max: usize) -> (Arc<Core<Adapter>>, Openings) {
    let openings = Openings::default();
    let threads = Arc::clone(&openings);
    let start = move |job: Job<Adapter>, _: Duration| match job {
        Job::Open(_) => threads.lock().unwrap().push(thread::spawn(move || job.run())),
        Job::Part(_) => job.run(),
    };
    (core(max, start), openings)
}

fn core(max: usize, start: impl Fn(Job<Adapter>, Duration) + Send + Sync + 'static) -> Arc<Core<Adapter>> {
    let never = Duration::ZERO;
    let limits = Limits { max, min_idle: 0, idle_timeout: never, max_lifetime: never, test_after: Duration::MAX };
    let start = move |core: &_, begun| Job::start_all(core, begun, &start);
    let core =
        Core::new(Arc::from("model"), Arc::new(Adapter), limits, Retry::default(), |never| match never {}, start);
    core.accept();
    core
}

/// Waits for one and gives it back.
fn check_out(core: &Arc<Core<Adapter>>) {
    core.put(block_on(core.wait(None)).unwrap());
}

/// Is given one, or gives up before.
fn give_up(core: &Arc<Core<Adapter>>) {
    let mut waiting = pin!(core.wait(None));
    if let Poll::Ready(answer) = waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        core.put(answer.unwrap());
    }
}

/// What must hold in the end: nobody waits, nothing is out, and what is open can be had.
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
            // Before it is lost, or after it has come back.
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
        // The first is dropped, as by a runtime that ends, some time after it was begun.
        let start = move |job: Job<Adapter>, _: Duration| {
            let drops = first.swap(false, Ordering::Relaxed);
            threads.lock().unwrap().push(thread::spawn(move || {
                if !drops {
                    job.run();
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
