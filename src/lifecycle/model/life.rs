//! Models of the life of a resource and of the close of its pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use loom::thread::{self, JoinHandle};

use crate::base::error::{BoxError, Error, Source};
use crate::base::sync::set_thread_number;
use crate::lifecycle::activity::Activity;
use crate::lifecycle::busy::Busy;
use crate::lifecycle::close::report::{CloseReport, Reason};
use crate::lifecycle::close::state::CloseState;
use crate::lifecycle::leak::LeakOptions;
use crate::lifecycle::lease::{Claim, Lease};
use crate::lifecycle::life::Life;
use crate::lifecycle::model::{block_on, explore};
use crate::lifecycle::status::{PoolStatus, State};
use crate::lifecycle::transition::{Caller, ConnectOutcome, LossAction, Recovery};
use crate::lifecycle::work::Work;

/// A pool of one resource. A handle is a pair: the attempt that made it, and the generation that it was made for.
struct World {
    life: Life<(u64, u64)>,
    close: CloseState,
    // These types are not loom's, since they only observe.
    made: std::sync::Mutex<Vec<(u64, u64)>>,
    disconnects: std::sync::Mutex<Vec<(u64, u64)>>,
    attempts: std::sync::Mutex<Vec<JoinHandle<()>>>,
    closes: AtomicUsize,
    acts_inside: AtomicBool,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(World {
            life: Life::new(
                Activity::new("model", None, String::new(), &Arc::default()),
                &LeakOptions::default(),
                Duration::ZERO,
            ),
            close: CloseState::default(),
            made: std::sync::Mutex::default(),
            disconnects: std::sync::Mutex::default(),
            attempts: std::sync::Mutex::default(),
            closes: AtomicUsize::new(0),
            acts_inside: AtomicBool::new(false),
        })
    }

    /// A pool whose resource is connected.
    fn ready() -> Arc<Self> {
        let world = World::new();
        drop(world.acquire_with(|attempt| world.connect(attempt)).unwrap());
        world
    }

    /// A lease, as by `Slot::acquire`. Connects first if necessary.
    fn acquire(self: &Arc<Self>) -> Result<Lease<(u64, u64)>, Error> {
        self.acquire_with(|attempt| self.spawn(attempt, World::connect))
    }

    fn acquire_with(&self, connect: impl Fn(u64)) -> Result<Lease<(u64, u64)>, Error> {
        loop {
            if let Some(lease) = self.life.table.lease(Claim::shared()) {
                let (_, generation) = *lease;
                assert_eq!(generation, Lease::generation(&lease), "a handle of another generation");
                return Ok(lease);
            }
            block_on(self.life.ready(Caller::default(), || self.close.is_closing(), &connect))?;
        }
    }

    /// Carries out an attempt on a thread of its own, as the slot does in a task.
    fn spawn(self: &Arc<Self>, attempt: u64, run: impl FnOnce(&World, u64) + 'static) {
        let world = Arc::clone(self);
        self.attempts.lock().unwrap().push(thread::spawn(move || run(&world, attempt)));
    }

    /// Carries out an attempt that connects anew, as `Slot::bring` does if the lost handle cannot be recovered.
    fn connect(&self, attempt: u64) {
        let Ok(lost) = self.life.forget(attempt) else { return };
        self.disconnects.lock().unwrap().extend(lost);
        let handle = (attempt, self.life.generation_or_next());
        self.made.lock().unwrap().push(handle);
        if let ConnectOutcome::Late(late) = self.life.connected(attempt, handle, |_| None) {
            self.disconnects.lock().unwrap().push(late);
            assert_eq!(self.life.lost(Some(attempt), late.1, cause()), LossAction::Noted, "nobody had it");
        }
        self.life.check();
    }

    /// Gives up an attempt, as the drop of a `Trying` does.
    fn give_up(&self, attempt: u64) {
        self.life.gave_up(attempt, Error::closed(&self.life.activity.name), Duration::ZERO);
    }

    fn lose(&self, generation: u64) -> LossAction {
        self.life.lost(None, generation, cause())
    }

    /// Loses the first generation, and fails at first to bring it back. Returns the attempt to carry out after a pause.
    fn lose_and_fail(&self) -> Option<u64> {
        let LossAction::Recover(Recovery { attempt, .. }) = self.lose(1) else { return None };
        let failure = Error::closed(&self.life.activity.name);
        self.life.failed(attempt, failure, Duration::ZERO);
        self.life.again(attempt)
    }

    /// Closes everything, as `close::run::start` does.
    fn close_all(&self) -> Arc<CloseReport> {
        let (course, first) = self.close.begin(Duration::MAX, || ());
        if first {
            course.end(self.run_close());
            self.close.announce(&course);
        }
        block_on(course.wait())
    }

    /// Runs a close, once for all callers. The drain has no limit here, so that a lost wake-up shows as a deadlock.
    fn run_close(&self) -> CloseReport {
        self.closes.fetch_add(1, Ordering::Relaxed);
        if self.life.begin_settling() {
            block_on(self.life.settled());
        }
        if self.life.begin_close() {
            let holders = || self.life.table.holders(&self.life.activity.name);
            let idle = || (self.life.activity.counters.now().is_empty() && holders().is_empty()).then_some(());
            block_on(self.life.activity.until(idle));
            self.life.stop_leasing_outside();
            self.life.check();
            self.act_inside();
            self.life.stop_leasing();
            block_on(self.life.activity.until(idle));
            self.life.activity.counters.end_drain();
            self.life.check();
            assert!(self.life.table.lease_inside::<(u64, u64)>(Claim::shared()).is_none(), "leased in its own phase");
            self.disconnects.lock().unwrap().extend(self.life.handle());
            self.life.finish_close().unwrap();
        }
        let status = PoolStatus { closing: true, ..PoolStatus::default() };
        let (drained, took) = (Duration::ZERO, Duration::ZERO);
        CloseReport { reason: Reason::Requested, status, drained, steps: Vec::new(), took }
    }

    /// Leases as the closing code of an earlier phase does, and gives the lease back on another thread.
    fn act_inside(&self) {
        if !self.acts_inside.load(Ordering::Relaxed) {
            return;
        }
        let lease = self.life.table.lease_inside::<(u64, u64)>(Claim::shared());
        // There is none if the resource was broken when closing began.
        let Some(lease) = lease else { return };
        assert_eq!(lease.1, Lease::generation(&lease));
        let busy = Busy::new(&self.life.activity, Work::Operation);
        self.attempts.lock().unwrap().push(thread::spawn(move || drop((busy, lease))));
    }

    /// Opens the pool again, as `Registry::reopen` does.
    fn reopen(&self) {
        if self.close.report().is_some() {
            self.life.reopen();
            self.close.reopen(|| false).unwrap();
        }
    }

    /// Checks the end: nobody waits, nothing is leased, and each handle except the one in use was disconnected once.
    fn check(&self) {
        loop {
            let next = self.attempts.lock().unwrap().pop();
            let Some(attempt) = next else { break };
            attempt.join().unwrap();
        }
        self.life.check();
        assert_eq!(self.life.condition().waiting, 0);
        assert!(self.life.table.holders(&self.life.activity.name).is_empty());
        let mut ended = self.disconnects.lock().unwrap().clone();
        ended.extend(self.life.handle());
        ended.sort_unstable();
        let mut made = self.made.lock().unwrap().clone();
        made.sort_unstable();
        assert_eq!(ended, made, "each handle in use or disconnected, once");
    }
}

fn cause() -> Source {
    BoxError::from("lost").into()
}

/// Runs this on a thread of its own, which leases from another shard.
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
        assert!(world.life.table.lease::<(u64, u64)>(Claim::shared()).is_none(), "leased what is closed");
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
            let (course, first) = world.close.begin(Duration::MAX, || ());
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
        // Only a caller that comes after the end begins another close.
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
            let LossAction::Recover(Recovery { attempt, .. }) = world.lose(1) else { return 0 };
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
            if let LossAction::Recover(Recovery { attempt, .. }) = world.lose(1) {
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
        // Only the resource is closed, and the pool stays open. Then the resource is opened again.
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
