//! Exclusive checkouts from adapters for r2d2: a fake one that does what a test says, and the one of the `redis` crate.
//!
//! The fake server's state is atomics, which are all SeqCst, and mutexes that are held for one look only.

#![cfg(feature = "r2d2")]
#![allow(missing_docs)]

mod common;

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, LazyLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::{Log, until};
use parking_lot::Mutex;
use resource_pool::blocking::ResourcePool;
use resource_pool::config::Options;
use resource_pool::{Counters, Error, Health, Outcome, R2d2, State, Usage};

/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(10);
/// The acquire timeout where a wait has to succeed or fail by something else. A test that waits this long fails.
const LONG: Duration = Duration::from_secs(60);

static LOG: LazyLock<Log> = LazyLock::new(Log::start);

/// An adapter whose connections are numbers. Its server has a script for each call.
#[derive(Clone, Default)]
struct Fake(Arc<Server>);

#[derive(Default)]
struct Server {
    /// The duration of a connect.
    takes: Duration,
    connect: Mutex<Does>,
    test: Mutex<Does>,
    /// The duration of a test.
    test_takes: Mutex<Duration>,
    /// The duration of a test that then fails. `None` if no such test is scripted.
    slow_test: Mutex<Option<Duration>>,
    /// The number of the connection that fails its tests, whatever the others do.
    spoilt: Mutex<Option<usize>>,
    /// The answer of `has_broken` for connections that come back.
    broken: Mutex<Does>,
    begun: AtomicUsize,
    opened: AtomicUsize,
    ended: AtomicUsize,
    hung: AtomicUsize,
    /// The first connect that hung. It goes on hanging when the others no longer do.
    stuck: AtomicUsize,
    /// Whether tests that hang may end.
    thawed: AtomicBool,
    closed: AtomicUsize,
    /// The most connections that were open at a time.
    most: AtomicUsize,
    /// The duration of a disconnect, and whether it panics at its end.
    goodbye: Mutex<(Duration, bool)>,
    /// The number of openings that exceeded the allowed pace.
    hasty: AtomicUsize,
    /// The most connections that were being opened at a time.
    crowd: AtomicUsize,
    tested: AtomicUsize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum Does {
    #[default]
    Work,
    Fail,
    Panic,
    Hang,
}

#[derive(Debug)]
struct Refused(&'static str);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused to {}", self.0)
    }
}

impl std::error::Error for Refused {}

/// A connection. It closes when it drops.
struct Numbered {
    number: usize,
    server: Arc<Server>,
}

impl Drop for Numbered {
    fn drop(&mut self) {
        let (takes, panics) = *self.server.goodbye.lock();
        let until = Instant::now() + takes;
        while Instant::now() < until && !self.server.thawed.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
        self.server.closed.fetch_add(1, Ordering::SeqCst);
        if panics {
            panic_quietly("goodbye");
        }
    }
}

impl Does {
    fn run(self, what: &'static str) -> Result<(), Refused> {
        match self {
            Does::Work | Does::Hang => Ok(()),
            Does::Fail => Err(Refused(what)),
            Does::Panic => panic_quietly(what),
        }
    }
}

/// Panics without the panic hook. The hook prints a backtrace and so may take longer than a test's limits.
fn panic_quietly(what: &'static str) -> ! {
    std::panic::resume_unwind(Box::new(format!("as the test asked, in {what}")))
}

impl r2d2::ManageConnection for Fake {
    type Connection = Numbered;
    type Error = Refused;

    fn connect(&self) -> Result<Numbered, Refused> {
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let under_way = number - self.ended.load(Ordering::SeqCst);
        self.crowd.fetch_max(under_way, Ordering::SeqCst);
        // At most as many as were opened before, and one more that the prober may open.
        if under_way > self.opened.load(Ordering::SeqCst).max(1) + 1 {
            self.hasty.fetch_add(1, Ordering::SeqCst);
        }
        thread::sleep(self.takes);
        let does = *self.connect.lock();
        if does == Does::Hang {
            self.hung.fetch_add(1, Ordering::SeqCst);
            let _first = self.stuck.compare_exchange(0, number, Ordering::SeqCst, Ordering::SeqCst);
            until(LONG, || *self.connect.lock() != Does::Hang && self.stuck.load(Ordering::SeqCst) != number);
            self.hung.fetch_sub(1, Ordering::SeqCst);
        }
        if matches!(does, Does::Work | Does::Hang) {
            let open = self.opened.fetch_add(1, Ordering::SeqCst) + 1 - self.closed.load(Ordering::SeqCst);
            self.most.fetch_max(open, Ordering::SeqCst);
        }
        self.ended.fetch_add(1, Ordering::SeqCst);
        does.run("connect")?;
        Ok(Numbered { number, server: Arc::clone(&self.0) })
    }

    fn is_valid(&self, own: &mut Numbered) -> Result<(), Refused> {
        let now = || if *self.spoilt.lock() == Some(own.number) { Does::Fail } else { *self.test.lock() };
        let mut does = now();
        let slow = *self.slow_test.lock();
        self.tested.fetch_add(1, Ordering::SeqCst);
        if let Some(takes) = slow {
            thread::sleep(takes);
            return Does::Fail.run("answer in time");
        }
        if does == Does::Hang {
            self.hung.fetch_add(1, Ordering::SeqCst);
            until(LONG, || self.thawed.load(Ordering::SeqCst));
            self.hung.fetch_sub(1, Ordering::SeqCst);
            does = now();
        }
        let takes = *self.test_takes.lock();
        thread::sleep(takes);
        does.run("answer")
    }

    fn has_broken(&self, _: &mut Numbered) -> bool {
        let does = *self.broken.lock();
        does.run("look").is_err()
    }
}

impl Deref for Fake {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.0
    }
}

impl Fake {
    fn taking(takes: Duration) -> Self {
        Fake(Arc::new(Server { takes, ..Server::default() }))
    }

    /// A connected pool of the fake, with the probe on.
    fn pool(&self, with: impl FnOnce(R2d2<Fake>) -> R2d2<Fake>) -> ResourcePool {
        let pool = self.unused(with, |_| {});
        pool.warm_up(["fake"]).unwrap().remove(0).1.unwrap();
        pool
    }

    /// A pool of the fake that is not connected yet.
    fn unused(&self, with: impl FnOnce(R2d2<Fake>) -> R2d2<Fake>, change: impl FnOnce(&mut Options)) -> ResourcePool {
        let mut options = Options::default();
        (options.probe.interval, options.probe.strikes) = (Duration::from_millis(50), 1);
        options.close.drain = Duration::from_secs(1);
        // An answer may take long on a busy machine.
        (options.health.each, options.health.all, options.health.slow) = (SOON, SOON, SOON);
        change(&mut options);
        let pool = ResourcePool::builder().environment([("", ""); 0]).options(options).build().unwrap();
        pool.register("fake", with(R2d2::new(self.clone()).endpoint("fake://here"))).unwrap();
        pool
    }

    /// The number of connections that are open at the server.
    fn open(&self) -> usize {
        self.opened.load(Ordering::SeqCst) - self.closed.load(Ordering::SeqCst)
    }
}

fn usage(pool: &ResourcePool) -> Usage {
    pool.status().resource("fake").unwrap().usage
}

fn check_out(pool: &ResourcePool) -> resource_pool::blocking::Checkout<Fake> {
    pool.check_out("fake").unwrap()
}

#[test]
fn checkout_is_exclusive_counted_and_given_back() {
    let fake = Fake::default();
    let pool = fake.pool(|kind| kind.max_size(2));
    let (first, second) = (check_out(&pool), check_out(&pool));
    assert_ne!(first.number, second.number);
    let Usage { max, open, in_use, idle, waiting, .. } = usage(&pool);
    assert_eq!([max, open, in_use, idle, waiting], [2, 2, 2, 0, 0].map(Some));
    assert_eq!(pool.holders().iter().filter(|holder| holder.exclusive).count(), 2);
    let error = pool.within(Duration::from_millis(100)).check_out::<Fake>("fake").unwrap_err();
    let text = error.to_string();
    assert!(matches!(&error, Error::Timeout(timeout) if timeout.holders.len() == 2), "{text}");
    assert!(text.contains("fake at fake://here") && text.contains("one of 2 connections"), "{text}");
    assert!(text.contains("held by tests/checkout.rs:") && text.contains("itself holds them all"), "{text}");
    let last = second.number;
    drop(first);
    drop(second);
    assert_eq!(check_out(&pool).number, last, "the one used last is warm");
    assert_eq!((usage(&pool).idle, pool.holders().len()), (Some(2), 0));
    pool.check_out::<Fake>("fake").unwrap().lend(|_| {
        check_out(&pool).lend(|_| {
            let error = pool.check_out::<Fake>("fake").unwrap_err();
            assert!(matches!(&error, Error::Deadlock(deadlock) if deadlock.option == "max_size"), "{error}");
        });
    });
    assert!(matches!(pool.check_out::<Fake>("none"), Err(Error::UnknownName { .. })));
    assert!(matches!(pool.check_out::<Other>("fake"), Err(Error::NameTaken { .. })));

    // The drain waits for work. A checkout that is still held afterwards closes its connection when it drops.
    let (works, held) = (check_out(&pool), check_out(&pool));
    let working = thread::spawn({
        let pool = pool.clone();
        move || {
            until(SOON, || pool.is_closing());
            drop(works);
        }
    });
    let report = pool.close_all().unwrap();
    let step = report.step("fake").unwrap();
    assert_eq!((&step.outcome, step.held.len()), (&Outcome::Closed, 1), "{report}");
    working.join().unwrap();
    assert!(pool.check_out::<Fake>("fake").is_err_and(|error| error.is_closed()));
    drop(held);
    until(SOON, || fake.open() == 0);
}

#[test]
fn status_counts_what_happened_to_the_connections() {
    let fake = Fake::default();
    let pool = fake.unused(|kind| kind.max_size(1), |options| options.probe.enabled = false);
    assert_eq!(usage(&pool).counters, Counters::default(), "nothing is known before the first connect");
    pool.warm_up(["fake"]).unwrap().remove(0).1.unwrap();
    let wait = Duration::from_millis(100);
    let held = check_out(&pool);
    pool.within(wait).check_out::<Fake>("fake").unwrap_err();
    let Counters { opened, acquires, waits, wait_time, timeouts, .. } = usage(&pool).counters;
    assert_eq!([opened, acquires, waits, timeouts], [1, 1, 1, 1].map(Some));
    // A part of the time passes before the wait begins.
    assert!(wait_time >= Some(wait / 2), "{wait_time:?}");

    *fake.broken.lock() = Does::Fail;
    drop(held);
    *fake.broken.lock() = Does::Work;
    drop(check_out(&pool));
    pool.reconnect("fake").unwrap();
    let Counters { opened, acquires, waits, timeouts, closed, .. } = usage(&pool).counters;
    assert_eq!([opened, acquires, waits, timeouts], [3, 2, 2, 1].map(Some));
    let closed = closed.unwrap();
    assert_eq!((closed.broken, closed.lost, closed.total()), (1, 1, 2));

    pool.close("fake").unwrap();
    let Usage { open, counters, .. } = usage(&pool);
    assert_eq!((open, counters.opened, counters.closed.map(|closed| closed.total())), (None, Some(3), Some(3)));
    pool.reconnect("fake").unwrap();
    drop(check_out(&pool));
    let Counters { opened, acquires, timeouts, .. } = usage(&pool).counters;
    assert_eq!([opened, acquires, timeouts], [4, 3, 1].map(Some), "the counters go on");
}

#[test]
fn checkout_that_is_discarded_is_closed_and_its_place_is_free() {
    let fake = Fake::default();
    let pool = fake.unused(|kind| kind.max_size(1), |options| options.probe.enabled = false);
    let held = check_out(&pool);
    let number = held.number;
    thread::scope(|scope| {
        let waiting = scope.spawn(|| check_out(&pool).number);
        until(SOON, || usage(&pool).waiting == Some(1));
        held.discard();
        assert_ne!(waiting.join().unwrap(), number);
    });
    until(SOON, || fake.open() == 1);
    let Usage { open, counters, .. } = usage(&pool);
    assert_eq!((open, pool.holders().len()), (Some(1), 0));
    assert_eq!(counters.closed.map(|closed| (closed.discarded, closed.total())), Some((1, 1)));
}

#[test]
fn checkout_that_is_detached_is_its_users_and_its_place_is_free() {
    let fake = Fake::default();
    let pool = fake.unused(|kind| kind.max_size(1), |options| options.probe.enabled = false);
    let held = check_out(&pool);
    let detached = thread::scope(|scope| {
        let waiting = scope.spawn(|| check_out(&pool).number);
        until(SOON, || usage(&pool).waiting == Some(1));
        let detached = held.detach().unwrap();
        assert_ne!(waiting.join().unwrap(), detached.number);
        detached
    });
    let Usage { open, counters, .. } = usage(&pool);
    assert_eq!((open, counters.opened, counters.detached), (Some(1), Some(2), Some(1)));
    assert_eq!((pool.holders().len(), fake.open()), (0, 2));
    // Neither a loss nor closing ends it, and closing does not wait for it.
    pool.reconnect("fake").unwrap();
    assert!(pool.close_all().unwrap().all_closed());
    until(SOON, || fake.open() == 1);
    drop(detached);
    assert_eq!(fake.open(), 0);
}

#[test]
fn checkout_that_is_only_tried_for_takes_an_idle_one_and_opens_none() {
    let fake = Fake::default();
    let pool = fake.unused(|kind| kind.max_size(2), |options| options.probe.enabled = false);
    let try_check_out = || pool.try_check_out::<Fake>("fake").unwrap();
    assert!(try_check_out().is_none() && pool.status().resource("fake").unwrap().state == State::Idle);
    pool.warm_up(["fake"]).unwrap().remove(0).1.unwrap();
    let first = try_check_out().expect("it is idle");
    assert!(try_check_out().is_none());
    assert_eq!((usage(&pool).open, usage(&pool).opening, pool.holders().len()), (Some(1), Some(0), 1));
    // Those who wait go first.
    thread::scope(|scope| {
        *fake.connect.lock() = Does::Fail;
        let waiting = scope.spawn(|| check_out(&pool).number);
        until(SOON, || usage(&pool).waiting == Some(1));
        assert!(try_check_out().is_none());
        let number = first.number;
        drop(first);
        assert_eq!(waiting.join().unwrap(), number);
    });
    pool.close("fake").unwrap();
    assert!(pool.try_check_out::<Fake>("fake").is_err_and(|error| error.is_closed()));

    // An idle connection that was not used lately is tested, and closed if it is unfit.
    let fake = Fake::default();
    let pool = fake.unused(|kind| kind.test_after(Duration::ZERO), |options| options.probe.enabled = false);
    let number = check_out(&pool).number;
    let tested = fake.tested.load(Ordering::SeqCst);
    assert_eq!(pool.try_check_out::<Fake>("fake").unwrap().expect("it is idle").number, number);
    assert_eq!(fake.tested.load(Ordering::SeqCst), tested + 1);
    let current_thread = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let in_a_task = current_thread.block_on(async { pool.try_check_out::<Fake>("fake").unwrap() });
    assert!(in_a_task.is_none(), "a task must not wait for the test");
    *fake.test.lock() = Does::Fail;
    assert!(pool.try_check_out::<Fake>("fake").unwrap().is_none());
    until(SOON, || fake.open() == 0);
}

#[test]
fn checkouts_are_replaced_by_a_refresh_and_nobody_fails() {
    let fake = Fake::default();
    let pool = fake.unused(|kind| kind.max_size(2), |options| options.probe.enabled = false);
    pool.refresh("fake").unwrap();
    assert_eq!(pool.status().resource("fake").unwrap().state, State::Idle, "there was nothing to replace");
    let (held, idle) = (check_out(&pool), check_out(&pool));
    drop(idle);
    pool.refresh("fake").unwrap();
    until(SOON, || fake.closed.load(Ordering::SeqCst) == 1);
    assert_eq!((held.number, check_out(&pool).number), (1, 3));
    thread::scope(|scope| {
        let new = check_out(&pool);
        let waiting = scope.spawn(|| check_out(&pool).number);
        until(SOON, || usage(&pool).waiting == Some(1));
        pool.refresh("fake").unwrap();
        drop(held);
        assert_eq!(
            waiting.join().unwrap(),
            5,
            "the one that came back is closed, and there was no room for the fourth"
        );
        drop(new);
    });
    until(SOON, || fake.open() == 1);
    assert_eq!(usage(&pool).counters.closed.map(|closed| (closed.refreshed, closed.surplus)), Some((3, 1)));
    *fake.connect.lock() = Does::Fail;
    assert!(matches!(pool.refresh("fake"), Err(Error::Operation { .. })));
    assert_eq!(check_out(&pool).number, 5, "users keep the old one");
    let status = pool.status();
    let status = status.resource("fake").unwrap();
    assert_eq!((status.state, status.generation, status.usage.in_use), (State::Ready, 1, Some(0)));
    pool.close("fake").unwrap();
    assert!(pool.refresh("fake").is_err_and(|error| error.is_closed()));
    assert!(matches!(pool.refresh("none"), Err(Error::UnknownName { .. })));
}

#[test]
fn checkouts_become_more_and_fewer_at_run_time() {
    let fake = Fake::default();
    let pool = fake.unused(|kind| kind.max_size(1), |options| options.probe.enabled = false);
    let text = |error: Error| error.to_string();
    assert!(text(pool.resize("fake", 2).unwrap_err()).contains("not connected yet"));
    let first = check_out(&pool);
    let others = thread::scope(|scope| {
        let waiting: Vec<_> = (0..2).map(|_| scope.spawn(|| check_out(&pool))).collect();
        until(SOON, || usage(&pool).waiting == Some(2));
        pool.resize("fake", 3).unwrap();
        waiting.into_iter().map(|waiting| waiting.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!((usage(&pool).max, usage(&pool).open), (Some(3), Some(3)));
    let error = pool.within(Duration::from_millis(1)).check_out::<Fake>("fake").unwrap_err();
    assert!(text(error).contains("one of 3 connections"));
    // An idle one is closed at once, and one in use as it comes back.
    drop(first);
    pool.resize("fake", 1).unwrap();
    until(SOON, || fake.open() == 2);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| check_out(&pool).number);
        until(SOON, || usage(&pool).waiting == Some(1));
        let mut others = others.into_iter();
        drop(others.next());
        until(SOON, || fake.open() == 1);
        let number = others.as_slice()[0].number;
        drop(others);
        assert_eq!(waiting.join().unwrap(), number);
    });
    let Usage { max, open, idle, counters, .. } = usage(&pool);
    assert_eq!((max, open, idle), (Some(1), Some(1), Some(1)));
    assert_eq!(counters.closed.map(|closed| (closed.surplus, closed.total())), Some((2, 2)));
    // A reconnect keeps the size, and a close forgets it.
    pool.resize("fake", 5).unwrap();
    pool.reconnect("fake").unwrap();
    assert_eq!(usage(&pool).max, Some(5));
    assert!(text(pool.resize("fake", 0).unwrap_err()).contains("at least 1"));
    pool.close("fake").unwrap();
    assert!(pool.resize("fake", 2).is_err_and(|error| error.is_closed()));
    pool.reconnect("fake").unwrap();
    drop(check_out(&pool));
    assert_eq!(usage(&pool).max, Some(1));
}

#[test]
fn idle_connections_are_tested_in_the_background_and_replaced() {
    let fake = Fake::default();
    let often = Duration::from_millis(40);
    let pool = fake.unused(
        |kind| kind.max_size(3).min_idle(2).test_after(LONG).test_idle_after(often),
        |options| options.probe.enabled = false,
    );
    pool.warm_up(["fake"]).unwrap().remove(0).1.unwrap();
    until(SOON, || usage(&pool).idle == Some(2));
    let tested = fake.tested.load(Ordering::SeqCst);
    until(SOON, || fake.tested.load(Ordering::SeqCst) >= tested + 4);
    *fake.spoilt.lock() = Some(1);
    until(SOON, || usage(&pool).counters.closed.is_some_and(|closed| closed.broken == 1));
    until(SOON, || usage(&pool).idle == Some(2) && usage(&pool).open == Some(2));
    let numbers = [check_out(&pool), check_out(&pool)].map(|held| held.number);
    assert!(!numbers.contains(&1), "{numbers:?}");
    let status = pool.status();
    let status = status.resource("fake").unwrap();
    assert_eq!((status.state, status.generation), (State::Ready, 1));

    // A test that hangs keeps one thread, and no user waits for it.
    *fake.test.lock() = Does::Hang;
    until(SOON, || fake.hung.load(Ordering::SeqCst) == 1);
    let began = Instant::now();
    drop(check_out(&pool));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    until(SOON, || began.elapsed() > 10 * often);
    assert_eq!(fake.hung.load(Ordering::SeqCst), 1);
    *fake.test.lock() = Does::Work;
    fake.thawed.store(true, Ordering::SeqCst);
    let tested = fake.tested.load(Ordering::SeqCst);
    until(SOON, || fake.tested.load(Ordering::SeqCst) >= tested + 2);
    assert!(pool.close_all().unwrap().all_closed());

    // A test is no use, so the connection is closed when it is idle for too long.
    let fake = Fake::default();
    let times = |kind: R2d2<Fake>| kind.test_idle_after(often).idle_timeout(10 * often);
    let pool = fake.unused(times, |options| options.probe.enabled = false);
    drop(check_out(&pool));
    until(SOON, || fake.open() == 0);
    assert!(fake.tested.load(Ordering::SeqCst) > 2);
}

struct Other;

impl r2d2::ManageConnection for Other {
    type Connection = ();
    type Error = Refused;

    fn connect(&self) -> Result<(), Refused> {
        Err(Refused("connect"))
    }

    fn is_valid(&self, (): &mut ()) -> Result<(), Refused> {
        Ok(())
    }

    fn has_broken(&self, (): &mut ()) -> bool {
        false
    }
}

#[test]
fn checkouts_are_given_out_in_the_order_of_asking() {
    let pool = Fake::default().pool(|kind| kind.max_size(1));
    let held = check_out(&pool);
    let (served, order) = mpsc::channel();
    thread::scope(|scope| {
        for number in 0..20 {
            let (pool, served) = (&pool, served.clone());
            // One waiter in the middle gives up.
            if number == 4 {
                pool.within(Duration::from_millis(1)).check_out::<Fake>("fake").unwrap_err();
            }
            scope.spawn(move || {
                let got = pool.within(LONG).check_out::<Fake>("fake").unwrap();
                served.send(number).unwrap();
                drop(got);
            });
            until(SOON, || usage(pool).waiting == Some(number + 1));
        }
        drop(held);
    });
    drop(served);
    assert_eq!(order.iter().collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
    assert_eq!(usage(&pool).open, Some(1));
}

#[test]
fn checkouts_in_a_spike_open_little() {
    let fake = Fake::default();
    // The probe might open a connection as well.
    let pool = fake.unused(|kind| kind.max_size(50).min_idle(5), |options| options.probe.enabled = false);
    pool.warm_up(["fake"]).unwrap().remove(0).1.unwrap();
    until(SOON, || usage(&pool).idle == Some(5));
    // The spike is over before an opening is.
    *fake.connect.lock() = Does::Hang;
    let start = Barrier::new(50);
    thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                start.wait();
                let _works = pool.within(LONG).check_out::<Fake>("fake").unwrap();
                thread::sleep(Duration::from_millis(2));
            });
        }
    });
    *fake.connect.lock() = Does::Work;
    fake.stuck.store(0, Ordering::SeqCst);
    until(SOON, || fake.begun.load(Ordering::SeqCst) == fake.ended.load(Ordering::SeqCst));
    let opened = fake.opened.load(Ordering::SeqCst);
    assert!(opened <= 6, "{opened}, and five were there");
}

#[test]
fn checkouts_that_are_kept_are_opened_at_a_growing_pace() {
    const ALL: usize = 32;
    let fake = Fake::taking(Duration::from_millis(100));
    let pool = fake.pool(|kind| kind.max_size(ALL));
    let all: Vec<_> = thread::scope(|scope| {
        let check_out = || pool.within(LONG).check_out::<Fake>("fake").unwrap();
        let threads: Vec<_> = (0..ALL).map(|_| scope.spawn(check_out)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!((all.len(), usage(&pool).open, usage(&pool).waiting), (ALL, Some(ALL), Some(0)));
    assert_eq!(fake.hasty.load(Ordering::SeqCst), 0, "more at a time than were opened before");
    // The openings double up to 16 at a time.
    let crowd = fake.crowd.load(Ordering::SeqCst);
    assert!(crowd >= ALL / 4, "at most {crowd} at a time");
}

#[test]
fn checkout_tells_why_none_can_be_opened_and_goes_on_trying() {
    for (does, says) in [(Does::Fail, "refused to connect"), (Does::Panic, "as the test asked, in connect")] {
        let fake = Fake::default();
        let pool = fake.pool(|kind| kind.max_size(4));
        let _only = check_out(&pool);
        *fake.connect.lock() = does;
        let before = fake.begun.load(Ordering::SeqCst);
        thread::scope(|scope| {
            let patient = scope.spawn(|| pool.within(SOON).check_out::<Fake>("fake").map(drop));
            let hasty: Vec<_> = [1500, 1800, 2100, 2400]
                .into_iter()
                .map(|limit| {
                    let pool = pool.within(Duration::from_millis(limit));
                    scope.spawn(move || pool.check_out::<Fake>("fake").map(drop).unwrap_err())
                })
                .collect();
            for hasty in hasty {
                let error = hasty.join().unwrap();
                let source = std::error::Error::source(&error).unwrap_or_else(|| panic!("no cause: {error}"));
                assert!(source.to_string().contains(says), "{error}");
                assert_eq!(source.is::<Refused>(), does == Does::Fail, "{error}");
            }
            let tried = fake.begun.load(Ordering::SeqCst) - before;
            // The pauses are from 50 to 100 ms at first, and then double.
            assert!((2..=16).contains(&tried), "{tried} times");
            *fake.connect.lock() = Does::Work;
            patient.join().unwrap().unwrap();
        });
        // An earlier failure does not explain this wait.
        let _held: Vec<_> = (0..3).map(|_| check_out(&pool)).collect();
        let error = pool.within(Duration::from_millis(50)).check_out::<Fake>("fake").map(drop).unwrap_err();
        assert!(std::error::Error::source(&error).is_none(), "{error}");
    }
}

#[test]
fn checkouts_are_tested_and_closed_where_the_adapter_says_so() {
    for does in [Does::Fail, Does::Panic] {
        let fake = Fake::default();
        // The probe might have opened another connection meanwhile.
        let unprobed = |options: &mut Options| options.probe.enabled = false;
        let pool = fake.unused(|kind| kind.max_size(2).test_after(Duration::ZERO), unprobed);
        let first = check_out(&pool).number;
        assert_eq!(check_out(&pool).number, first);
        let held = check_out(&pool);
        *fake.broken.lock() = does;
        drop(held);
        until(SOON, || usage(&pool).open == Some(0));
        *fake.broken.lock() = Does::Work;
        let second = check_out(&pool).number;
        assert_ne!(second, first);
    }
    // A waiter that was given a bad connection keeps its position in the queue.
    let fake = Fake::default();
    let pool = fake.pool(|kind| kind.max_size(1).test_after(Duration::ZERO));
    let held = check_out(&pool);
    let number = held.number;
    let (served, order) = mpsc::channel();
    thread::scope(|scope| {
        for asked in 0..3 {
            let (pool, served) = (&pool, served.clone());
            scope.spawn(move || {
                let got = check_out(pool);
                served.send((asked, got.number)).unwrap();
            });
            until(SOON, || usage(pool).waiting == Some(asked + 1));
        }
        *fake.spoilt.lock() = Some(number);
        drop(held);
    });
    drop(served);
    let order: Vec<_> = order.iter().collect();
    assert_eq!(order.iter().map(|(asked, _)| *asked).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(order.iter().all(|(_, got)| *got != number), "{order:?}");
}

#[test]
fn checkouts_are_closed_when_idle_or_worn() {
    let fake = Fake::default();
    let pool = fake.pool(|kind| kind.max_size(4).min_idle(1).idle_timeout(Duration::from_millis(200)));
    let all: Vec<_> = (0..4).map(|_| check_out(&pool)).collect();
    let held = Instant::now();
    until(SOON, || held.elapsed() > Duration::from_millis(400));
    assert_eq!(usage(&pool).open, Some(4), "what is held is not idle");
    let idle = Instant::now();
    drop(all);
    until(SOON, || usage(&pool).open != Some(4));
    assert!(idle.elapsed() >= Duration::from_millis(200), "nor was it before: {:?}", idle.elapsed());
    until(SOON, || usage(&pool).open == Some(1) && fake.closed.load(Ordering::SeqCst) == 3);
    // The prober may have it at the moment.
    until(SOON, || usage(&pool).idle == Some(1));

    let fake = Fake::default();
    let pool = fake.pool(|kind| kind.max_size(2).max_lifetime(Duration::from_millis(300)));
    let first = check_out(&pool).number;
    until(SOON, || check_out(&pool).number != first);
    until(SOON, || usage(&pool).open == Some(0));
}

/// Adapters without limits may leave an opening hanging. It delays nobody once the server is back.
#[test]
fn checkouts_are_opened_again_after_a_loss_whatever_hangs() {
    let fake = Fake::default();
    let pool = fake.pool(|kind| kind.max_size(2));
    let _only = check_out(&pool);
    *fake.connect.lock() = Does::Hang;
    thread::scope(|scope| {
        let waiting = scope.spawn(|| pool.within(LONG).check_out::<Fake>("fake").map(drop));
        until(SOON, || fake.hung.load(Ordering::SeqCst) == 1);
        *fake.test.lock() = Does::Fail;
        assert!(matches!(waiting.join().unwrap(), Err(Error::Lost { .. })));
        // Probes hang now too, but only one at a time.
        let state = || pool.status().resource("fake").unwrap().state;
        let broken = Instant::now();
        until(SOON, || broken.elapsed() > Duration::from_millis(500));
        assert!(state() != State::Ready && fake.hung.load(Ordering::SeqCst) <= 5);
        (*fake.test.lock(), *fake.connect.lock()) = (Does::Work, Does::Work);
        // All openings but the first go on.
        until(SOON, || state() == State::Ready && fake.hung.load(Ordering::SeqCst) == 1);
        drop(check_out(&pool));
        fake.stuck.store(0, Ordering::SeqCst);
    });
    until(SOON, || fake.hung.load(Ordering::SeqCst) == 0);
    assert_eq!(usage(&pool).open, Some(2), "what came too late is nobody's");
}

/// A probe that hangs for ever, on a connection from before the loss, does not delay the recovery either.
#[test]
fn checkouts_come_back_after_a_loss_though_a_probe_hangs() {
    let fake = Fake::default();
    let pool = fake.pool(|kind| kind.max_size(2));
    let state = || pool.status().resource("fake").unwrap().state;
    *fake.test.lock() = Does::Hang;
    until(SOON, || state() != State::Ready && fake.hung.load(Ordering::SeqCst) >= 2);
    *fake.test.lock() = Does::Work;
    until(SOON, || state() == State::Ready);
    drop(check_out(&pool));
    assert!((1..=4).contains(&fake.hung.load(Ordering::SeqCst)), "not one more for each attempt");
    assert_eq!(pool.health_check().unwrap().entry("fake").unwrap().health, Health::Pass);
    assert!(pool.close("fake").unwrap().all_closed());
    fake.thawed.store(true, Ordering::SeqCst);
    until(SOON, || fake.opened.load(Ordering::SeqCst) == fake.closed.load(Ordering::SeqCst));
}

/// Waiters occupy all of a runtime's blocking threads, and an opening still gets a thread.
#[test]
fn checkouts_are_opened_on_threads_that_no_user_occupies() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).max_blocking_threads(2).enable_all().build().unwrap();
    let fake = Fake::default();
    let pool = ResourcePool::builder().environment([("", ""); 0]).runtime(runtime.handle().clone()).build().unwrap();
    pool.register("fake", R2d2::new(fake.clone()).max_size(3)).unwrap();
    let (first, start) = (check_out(&pool), Arc::new(Barrier::new(2)));
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let (pool, start) = (pool.clone(), Arc::clone(&start));
            runtime.spawn_blocking(move || {
                start.wait();
                check_out(&pool)
            })
        })
        .collect();
    for waiting in waiting {
        assert_ne!(runtime.block_on(waiting).unwrap().number, first.number);
    }
    drop(first);
    assert!(pool.close_all().unwrap().all_closed());
}

/// Many idle connections fail their tests one after another, and the acquire timeout still holds.
#[test]
fn checkouts_take_no_longer_than_they_may_for_all_that_are_unfit() {
    let fake = Fake::default();
    // The prober would test them too.
    let unprobed = |options: &mut Options| options.probe.enabled = false;
    let pool = fake.unused(|kind| kind.max_size(8).test_after(Duration::ZERO), unprobed);
    let all: Vec<_> = (0..8).map(|_| check_out(&pool)).collect();
    drop(all);
    *fake.slow_test.lock() = Some(Duration::from_millis(200));
    let before = fake.tested.load(Ordering::SeqCst);
    let error = pool.within(Duration::from_millis(300)).check_out::<Fake>("fake").unwrap_err();
    assert!(matches!(&error, Error::Timeout(_)), "{error}");
    // The last test that begins in time is waited for.
    let tested = fake.tested.load(Ordering::SeqCst) - before;
    assert!(tested <= 2, "{tested} tests of 200 ms");
}

#[test]
fn checkouts_that_wait_learn_of_a_loss_at_once() {
    let fake = Fake::default();
    let pool = fake.pool(|kind| kind.max_size(2));
    let held = check_out(&pool);
    // The prober has the other connection, and gets no answer.
    *fake.test.lock() = Does::Hang;
    until(SOON, || fake.hung.load(Ordering::SeqCst) == 1);
    let started = Instant::now();
    let error = pool.within(LONG).check_out::<Fake>("fake").unwrap_err();
    assert!(matches!(error, Error::Lost { .. }) && error.to_string().contains("no answer to a ping"), "{error}");
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    *fake.test.lock() = Does::Fail;
    assert_eq!(pool.health_check().unwrap().entry("fake").unwrap().health, Health::Fail);
    *fake.test.lock() = Does::Work;
    until(SOON, || pool.status().resource("fake").unwrap().state == State::Ready);
    let lost = held.number;
    drop(held);
    assert_ne!(check_out(&pool).number, lost, "what was out as it was lost is closed");
    fake.thawed.store(true, Ordering::SeqCst);
}

/// r2d2 calls `has_broken` when a connection comes back. The adapter of diesel returns true while its thread panics.
#[test]
fn checkouts_succeed_whatever_has_broken_says() {
    struct Checks<'a>(&'a ResourcePool, &'a mut usize);
    impl Drop for Checks<'_> {
        fn drop(&mut self) {
            assert!(thread::panicking());
            *self.1 = check_out(self.0).number;
        }
    }
    let fake = Fake::default();
    let pool = fake.pool(|kind| kind.max_size(2));
    *fake.broken.lock() = Does::Fail;
    let mut number = 0;
    let unwinding = std::panic::AssertUnwindSafe(|| {
        let _checks = Checks(&pool, &mut number);
        panic!("as written");
    });
    assert!(std::panic::catch_unwind(unwinding).is_err());
    assert_ne!(number, 0);
    let numbers: std::collections::BTreeSet<_> = (0..20).map(|_| check_out(&pool).number).collect();
    assert_eq!(numbers.len(), 20, "each is closed as it comes back");
}

/// If every new connection fails its first test, the pool opens more of them only after pauses. The wait's error says
/// why.
#[test]
fn checkouts_pause_between_connections_that_fail_their_first_test() {
    let fake = Fake::default();
    let pool = fake.unused(|kind| kind.max_size(4).test_after(Duration::ZERO), |options| options.probe.enabled = false);
    drop(check_out(&pool));
    *fake.test.lock() = Does::Fail;
    let error = thread::scope(|scope| {
        let waiting = [(); 8].map(|()| {
            scope.spawn(|| pool.within(Duration::from_secs(2)).check_out::<Fake>("fake").map(drop).unwrap_err())
        });
        waiting.map(|waiting| waiting.join().unwrap()).into_iter().next().unwrap()
    });
    assert!(error.to_string().contains("refused to answer"), "{error}");
    let begun = fake.begun.load(Ordering::SeqCst);
    assert!((2..=16).contains(&begun), "{begun} connections in 2 s");
    *fake.test.lock() = Does::Work;
    drop(check_out(&pool));
    // Connections whose lifetime is over at once are not opened without a user either.
    let fake = Fake::default();
    let pool = fake.pool(|kind| kind.max_lifetime(Duration::from_nanos(1)));
    drop((check_out(&pool), check_out(&pool)));
}

#[test]
fn connect_that_ends_after_its_attempt_is_nobodys() {
    let change = |options: &mut Options| {
        (options.connect_timeout, options.retry.attempts) = (Duration::from_millis(100), 1);
        options.circuit = Duration::ZERO;
        options.probe.enabled = false;
    };
    let hangs = |fake: &Fake, pool: &ResourcePool| {
        *fake.connect.lock() = Does::Hang;
        let error = pool.within(Duration::from_millis(200)).check_out::<Fake>("fake").unwrap_err();
        assert!(matches!(error, Error::Timeout(_) | Error::Connect(_)), "{error}");
        until(SOON, || fake.hung.load(Ordering::SeqCst) == 1);
    };
    let fake = Fake::default();
    let pool = fake.unused(|kind| kind, change);
    hangs(&fake, &pool);
    // Callers that ask before the attempt is over get its answer.
    until(SOON, || pool.status().resource("fake").unwrap().state == State::Broken);
    // The next attempt does not wait for the earlier connect, and does not get its connection.
    *fake.connect.lock() = Does::Work;
    let second = pool.within(SOON).check_out::<Fake>("fake").unwrap();
    assert_eq!(second.number, 2);
    fake.stuck.store(0, Ordering::SeqCst);
    until(SOON, || fake.closed.load(Ordering::SeqCst) == 1);
    assert_eq!((fake.opened.load(Ordering::SeqCst), usage(&pool).open), (2, Some(1)));
    drop(second);

    for all in [true, false] {
        let fake = Fake::default();
        let pool = fake.unused(|kind| kind.min_idle(2), change);
        hangs(&fake, &pool);
        let closed = if all { pool.close_all() } else { pool.close("fake") };
        assert!(closed.unwrap().all_closed());
        assert_eq!((fake.hung.load(Ordering::SeqCst), fake.opened.load(Ordering::SeqCst)), (1, 0));
        *fake.connect.lock() = Does::Work;
        fake.stuck.store(0, Ordering::SeqCst);
        until(SOON, || fake.closed.load(Ordering::SeqCst) == 1);
        assert_eq!((fake.begun.load(Ordering::SeqCst), fake.open()), (1, 0), "closed at once, and nothing after it");
    }
}

#[test]
fn min_idle_is_kept_from_the_start_and_after_a_loss() {
    let fake = Fake::default();
    let pool = fake.pool(|kind| kind.min_idle(5).max_size(3));
    until(SOON, || usage(&pool).idle == Some(3));
    assert_eq!(fake.most.load(Ordering::SeqCst), 3, "at most `max_size`");
    pool.reconnect("fake").unwrap();
    until(SOON, || usage(&pool).idle == Some(3) && fake.closed.load(Ordering::SeqCst) == 3);
    assert_eq!((fake.open(), fake.opened.load(Ordering::SeqCst)), (3, 6));
}

#[test]
fn goodbyes_of_a_driver_are_paid_for_by_no_user() {
    // The time of a disconnect, so long that a caller that waits for one is far too late.
    const SLOW: Duration = Duration::from_secs(60);
    let quickly = |what: &str, run: &mut dyn FnMut()| {
        let started = Instant::now();
        run();
        assert!(started.elapsed() < SLOW / 4, "{what} took {:?}", started.elapsed());
    };
    let fake = Fake::default();
    let pool = fake.pool(|kind| kind.max_size(2).test_after(Duration::ZERO));
    let first = check_out(&pool);
    let number = first.number;
    *fake.goodbye.lock() = (SLOW, true);
    *fake.spoilt.lock() = Some(number);
    drop(first);
    quickly("an acquire", &mut || assert_ne!(check_out(&pool).number, number));
    *fake.broken.lock() = Does::Fail;
    for _ in 0..5 {
        let mut held = Some(check_out(&pool));
        quickly("a drop", &mut || held = None);
    }
    quickly("a reconnect", &mut || pool.reconnect("fake").unwrap());
    // There is a limit on hanging disconnects, and the error says so.
    let pool = pool.within(Duration::from_millis(500));
    let told = |error: &Error| error.to_string().contains("the driver's goodbyes hang");
    (0..50).find_map(|_| pool.check_out::<Fake>("fake").err().filter(told)).unwrap();
    let open = fake.open();
    assert!(open <= 2 + 8 + 3, "{open} open, for a maximum of 2");
    *fake.broken.lock() = Does::Work;
    fake.thawed.store(true, Ordering::SeqCst);
    drop(pool.within(SOON).check_out::<Fake>("fake").unwrap());
    assert!(pool.close_all().unwrap().all_closed());
    assert_eq!(fake.open(), 0, "closing waits for them");
}

#[test]
fn max_size_of_one_means_one_though_it_is_probed() {
    let fake = Fake::default();
    let pool = fake.pool(|kind| kind.max_size(1).test_after(Duration::ZERO));
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(500) {
        drop(check_out(&pool));
        assert_eq!(pool.health_check().unwrap().entry("fake").unwrap().health, Health::Pass);
    }
    let held = check_out(&pool);
    let health = || pool.health_check().unwrap().entry("fake").unwrap().health;
    until(SOON, || health() == Health::Unknown);
    let state = || pool.status().resource("fake").unwrap().state;
    assert_eq!((state(), fake.most.load(Ordering::SeqCst)), (State::Ready, 1));
    drop(held);
    until(SOON, || health() == Health::Pass);
    assert_eq!((fake.begun.load(Ordering::SeqCst), fake.most.load(Ordering::SeqCst)), (1, 1));
}

/// A full server also refuses the prober's connection. It is not lost for that.
#[test]
fn checkouts_are_not_lost_as_no_more_can_be_opened() {
    let fake = Fake::default();
    let pool = fake.pool(|kind| kind.max_size(3));
    let held = check_out(&pool);
    *fake.connect.lock() = Does::Fail;
    let begun = fake.begun.load(Ordering::SeqCst);
    until(SOON, || fake.begun.load(Ordering::SeqCst) >= begun + 3);
    let now = || pool.status().resource("fake").map(|now| (now.state, now.generation)).unwrap();
    assert_eq!(now(), (State::Ready, 1));
    let number = held.number;
    drop(held);
    assert_eq!(check_out(&pool).number, number);
    // Once the idle connections do not answer either, the server is lost.
    *fake.test.lock() = Does::Fail;
    until(SOON, || now().0 != State::Ready);
}

/// Holds the only connection while another thread waits. That thread gets a connection that was opened later.
fn while_somebody_waits(pool: &ResourcePool, meanwhile: impl FnOnce()) {
    let held = check_out(pool);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| pool.within(LONG).check_out::<Fake>("fake").map(|got| got.number));
        until(SOON, || usage(pool).waiting == Some(1));
        meanwhile();
        let number = held.number;
        drop(held);
        assert!(waiting.join().unwrap().unwrap() > number);
    });
}

#[test]
fn checkouts_that_wait_through_a_reconnect_get_one_of_the_new_generation() {
    let fake = Fake::default();
    let pool = fake.pool(|kind| kind.max_size(1));
    while_somebody_waits(&pool, || {
        pool.reconnect("fake").unwrap();
        assert_eq!(usage(&pool).waiting, Some(1), "it goes on waiting");
        assert_eq!(pool.status().resource("fake").unwrap().generation, 2);
    });
    // If the server does not come back, the wait's error says why.
    let held = check_out(&pool);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| pool.within(Duration::from_secs(3)).check_out::<Fake>("fake").map(drop));
        until(SOON, || usage(&pool).waiting == Some(1));
        *fake.connect.lock() = Does::Fail;
        assert!(pool.within(Duration::from_secs(1)).reconnect("fake").is_err());
        let error = waiting.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Timeout(_)) && error.to_string().contains("refused to connect"), "{error}");
    });
    drop(held);
}

#[test]
fn checkouts_that_wait_through_a_reconnect_wait_through_another_one() {
    let fake = Fake::default();
    let pool = fake.pool(|kind| kind.max_size(1));
    while_somebody_waits(&pool, || {
        *fake.connect.lock() = Does::Fail;
        // Once an attempt has failed, its error is not the answer that the waiter asked for.
        assert!(pool.reconnect("fake").is_err());
        assert!(pool.reconnect("fake").is_err());
        *fake.connect.lock() = Does::Work;
    });
}

#[test]
fn connect_that_an_adapter_calls_permanent_is_tried_once() {
    let fake = Fake::default();
    let pool = fake.unused(|kind| kind.permanent(|refused| refused.0 == "connect"), |_| {});
    *fake.connect.lock() = Does::Fail;
    let error = pool.check_out::<Fake>("fake").unwrap_err();
    assert!(matches!(&error, Error::Connect(error) if error.permanent && error.attempts == 1), "{error}");
    assert!(!error.is_transient());
    let fake = Fake::default();
    let pool = fake.unused(|kind| kind.permanent(|refused| refused.0 == "answer"), |_| {});
    *fake.connect.lock() = Does::Fail;
    let error = pool.check_out::<Fake>("fake").unwrap_err();
    assert!(matches!(&error, Error::Connect(error) if !error.permanent && error.attempts > 1), "{error}");
}

#[test]
fn connect_goes_on_for_as_long_as_the_acquire_waits() {
    let fake = Fake::taking(Duration::from_millis(1500));
    let change = |options: &mut Options| {
        (options.connect_timeout, options.retry.budget) = (Duration::from_millis(100), Duration::from_millis(300));
    };
    let pool = fake.unused(|kind| kind.max_size(1), change);
    assert_eq!(pool.within(LONG).check_out::<Fake>("fake").unwrap().number, 1);
}

#[test]
fn messages_without_an_endpoint_read_well() {
    let fake = Fake::default();
    let pool = fake.unused(|kind| kind.endpoint("").max_size(1), |_| {});
    *fake.connect.lock() = Does::Fail;
    let text = pool.check_out::<Fake>("fake").unwrap_err().to_string();
    assert!(text.starts_with("fake: no connection after 3 attempts in "), "{text}");
    *fake.connect.lock() = Does::Work;
    until(SOON, || pool.check_out::<Fake>("fake").is_ok());
    let _held = check_out(&pool);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| pool.within(Duration::from_secs(1)).check_out::<Fake>("fake").map(drop));
        until(SOON, || usage(&pool).waiting == Some(1));
        // A waiting thread holds nothing.
        assert_eq!((pool.holders().len(), pool.status().resource("fake").unwrap().leases), (1, 0));
        let text = waiting.join().unwrap().unwrap_err().to_string();
        assert!(text.starts_with("fake: waited "), "{text}");
    });
}

/// `tests/waits.rs` has the same with servers, and with tasks.
#[test]
fn cycle_of_threads_that_check_out_is_told() {
    LazyLock::force(&LOG);
    let warned = || {
        let is_it = |line: &&str| line.contains("a deadlock, unless") && line.contains("\"cycle_of_threads_that_check");
        LOG.text().lines().filter(is_it).count()
    };
    let (one, two) = (Fake::default().pool(|kind| kind.max_size(1)), Fake::default().pool(|kind| kind.max_size(1)));
    let soon = two.within(Duration::from_millis(300));
    let timed_out = |pool: &ResourcePool| match pool.check_out::<Fake>("fake").map(drop) {
        Err(Error::Timeout(error)) => error,
        other => panic!("{other:?}"),
    };
    let mine = check_out(&one);
    thread::scope(|scope| {
        // The channel lives in this scope, so that the other thread ends if this one fails.
        let (take, taking) = mpsc::channel();
        let (one, two) = (&one, &two);
        let other = scope.spawn(move || {
            let _theirs = check_out(two);
            taking.recv().unwrap();
            one.within(LONG).check_out::<Fake>("fake").map(drop)
        });
        until(SOON, || usage(two).in_use == Some(1));
        // The other thread has its checkout and does not wait, so there is no deadlock to report.
        let error = timed_out(&soon);
        assert_eq!((error.holders.len(), error.cycle.len(), warned()), (1, 0, 0), "{error}");
        take.send(()).unwrap();
        until(SOON, || usage(one).waiting == Some(1));
        // A third thread that holds nothing is in no deadlock.
        let error = scope.spawn(|| timed_out(&soon)).join().unwrap();
        assert_eq!(warned(), 0, "{error}");
        let error = timed_out(&soon);
        let text = error.to_string();
        let [me, them] = &error.cycle[..] else { panic!("{text}") };
        assert_eq!((me.holds.len(), them.holds.len(), warned()), (1, 1, 1), "{text}");
        let told = LOG.text();
        let mut warnings = told.lines().filter(|line| line.contains("a deadlock, unless"));
        assert!(warnings.all(|line| line.contains(" holds ")), "one of those who hold nothing");
        assert!(me.owner != them.owner && text.contains("deadlock: thread \"cycle_of_threads_that_check"), "{text}");
        drop(mine);
        other.join().unwrap().unwrap();
    });
    // If another thread holds one of two, there is no deadlock, though this thread holds the other.
    let pool = Fake::default().pool(|kind| kind.max_size(2));
    let mine = check_out(&pool);
    let elsewhere = thread::scope(|scope| scope.spawn(|| check_out(&pool)).join().unwrap());
    let error = timed_out(&pool.within(Duration::from_millis(300)));
    assert_eq!((error.holders.len(), error.cycle.len()), (2, 0), "{error}");
    drop((mine, elsewhere));
    // The error names checkouts that this thread holds. Only a wait for lent ones is refused.
    let mine = [check_out(&pool), check_out(&pool)];
    let error = timed_out(&pool.within(Duration::from_millis(300)));
    assert_eq!((error.cycle.len(), error.cycle[0].holds.len(), warned()), (1, 2, 2), "{error}");
    drop(mine);
    pool.check_out::<Fake>("fake").unwrap().lend(|_| {
        drop(check_out(&pool));
        let mine = check_out(&pool);
        assert!(timed_out(&pool.within(Duration::from_millis(300))).waiting_for.contains("one of 2 connections"));
        drop(mine);
    });
    assert_eq!(usage(&pool).waiting, Some(0));
    // The lent connection has come back, so others may free it.
    pool.check_out::<Fake>("fake").unwrap().lend(|_| check_out(&pool).lend(|_| ()));
    let elsewhere = thread::scope(|scope| scope.spawn(|| [check_out(&pool), check_out(&pool)]).join().unwrap());
    let error = timed_out(&pool.within(Duration::from_millis(50)));
    assert_eq!((error.holders.len(), error.cycle.len()), (2, 0), "{error}");
    drop(elsewhere);
    // A connection that is being opened may still arrive, so the holder of the other one is in no deadlock.
    let fake = Fake::default();
    let pool = fake.pool(|kind| kind.max_size(2));
    let mine = check_out(&pool);
    *fake.connect.lock() = Does::Hang;
    let error = timed_out(&pool.within(Duration::from_millis(300)));
    assert_eq!((error.holders.len(), error.cycle.len()), (1, 0), "{error}");
    *fake.connect.lock() = Does::Work;
    fake.stuck.store(0, Ordering::SeqCst);
    drop(mine);
}

/// A pool whose prober has the only connection, and has had no answer yet.
fn probed_at_the_moment(fake: &Fake, with: impl FnOnce(R2d2<Fake>) -> R2d2<Fake>) -> ResourcePool {
    let patient = |options: &mut Options| options.probe.limit = LONG;
    let pool = fake.unused(|kind| with(kind.test_after(LONG)), patient);
    drop(check_out(&pool));
    *fake.test.lock() = Does::Hang;
    until(SOON, || fake.hung.load(Ordering::SeqCst) == 1);
    pool
}

/// Checks out in a task, where a thread may not wait. Returns the connection's number.
fn check_out_in_a_task(pool: &ResourcePool) -> Result<usize, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { pool.check_out::<Fake>("fake").map(|checkout| checkout.number) })
}

#[test]
fn checkout_in_a_task_does_not_see_that_the_prober_has_the_connection() {
    let fake = Fake::default();
    let pool = probed_at_the_moment(&fake, |kind| kind);
    thread::scope(|scope| {
        let first = scope.spawn(|| check_out_in_a_task(&pool.within(LONG)));
        until(SOON, || usage(&pool).waiting == Some(1));
        // A second task would find nothing left.
        assert!(matches!(check_out_in_a_task(&pool), Err(Error::InAsyncContext { .. })));
        *fake.test.lock() = Does::Work;
        fake.thawed.store(true, Ordering::SeqCst);
        assert_eq!(first.join().unwrap().unwrap(), 1);
    });
    assert_eq!(fake.begun.load(Ordering::SeqCst), 1, "no other one was opened");
    assert_eq!((usage(&pool).waiting, usage(&pool).in_use), (Some(0), Some(0)));
}

/// A checkout in a task waits for that ping only.
#[test]
fn checkout_in_a_task_waits_for_no_more_than_the_ping() {
    let fake = Fake::default();
    let pool = probed_at_the_moment(&fake, |kind| kind.max_size(1));
    *fake.connect.lock() = Does::Hang;
    thread::scope(|scope| {
        let asked = scope.spawn(|| check_out_in_a_task(&pool.within(LONG)));
        until(SOON, || usage(&pool).waiting == Some(1));
        *fake.test.lock() = Does::Fail;
        fake.thawed.store(true, Ordering::SeqCst);
        assert!(matches!(asked.join().unwrap(), Err(Error::InAsyncContext { .. })));
        *fake.test.lock() = Does::Work;
        *fake.connect.lock() = Does::Work;
        fake.stuck.store(0, Ordering::SeqCst);
    });
    // It does not wait for a reconnect either, and its limit holds.
    for reconnects in [true, false] {
        let fake = Fake::default();
        let pool = probed_at_the_moment(&fake, |kind| kind.max_size(1));
        thread::scope(|scope| {
            let hasty = pool.within(if reconnects { LONG } else { Duration::from_millis(300) });
            let asked = scope.spawn(move || check_out_in_a_task(&hasty));
            if reconnects {
                until(SOON, || usage(&pool).waiting == Some(1));
                *fake.test.lock() = Does::Work;
                pool.reconnect("fake").unwrap();
            }
            let refused = asked.join().unwrap().unwrap_err();
            let is_right = matches!(refused, Error::InAsyncContext { .. } if reconnects)
                || matches!(refused, Error::Timeout(_) if !reconnects);
            assert!(is_right, "{refused}");
        });
        fake.thawed.store(true, Ordering::SeqCst);
    }
}

#[test]
fn checkouts_one_after_another_open_no_second_connection_while_the_first_is_probed() {
    let fake = Fake::default();
    *fake.test_takes.lock() = Duration::from_millis(5);
    // The pause between two pings, short so that many happen in the test.
    const PAUSE: Duration = Duration::from_millis(20);
    let pool = fake.unused(|kind| kind.test_after(LONG), |options| options.probe.interval = PAUSE);
    // `longest` is the time from one return until the next checkout ends. `out` is the time that a connection was out,
    // in which the prober opens another one if it comes then.
    let (mut longest, mut out) = (Duration::ZERO, Duration::ZERO);
    for limit in [LONG, Duration::ZERO] {
        drop(pool.within(LONG).check_out::<Fake>("fake").unwrap());
        let mut given_back = Instant::now();
        for _ in 0..20 {
            let tested = fake.tested.load(Ordering::SeqCst);
            until(SOON, || fake.tested.load(Ordering::SeqCst) > tested);
            let got = pool.within(limit).check_out::<Fake>("fake");
            longest = longest.max(given_back.elapsed());
            if let Err(error) = &got {
                assert!(longest >= Duration::from_millis(250), "{error}, within {limit:?}");
            }
            let had = Instant::now();
            drop(got);
            given_back = Instant::now();
            out = out.max(given_back - had);
        }
    }
    // A ping that takes long is not waited for.
    let begun = fake.begun.load(Ordering::SeqCst);
    assert!(begun == 1 || longest >= Duration::from_millis(250) || out >= PAUSE, "{begun} opened within {longest:?}");
}

/// A ping hangs because the adapter has no limit. Threads then wait for a moment only.
#[test]
fn checkouts_have_others_opened_where_a_ping_hangs() {
    let fake = Fake::default();
    let pool = probed_at_the_moment(&fake, |kind| kind.max_size(3));
    let begun = Instant::now();
    thread::scope(|scope| {
        let threads = [(); 2].map(|()| scope.spawn(|| check_out(&pool.within(LONG))));
        let both = threads.map(|thread| thread.join().unwrap());
        assert!(both.iter().all(|one| one.number > 1) && begun.elapsed() < SOON, "{:?}", begun.elapsed());
    });
    fake.thawed.store(true, Ordering::SeqCst);
}

#[test]
fn checkouts_that_wait_through_a_reconnect_learn_at_once_that_it_failed_for_good() {
    let fake = Fake::default();
    let pool = fake.pool(|kind| kind.max_size(1).permanent(|refused| refused.0 == "connect"));
    let held = check_out(&pool);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| pool.within(LONG).check_out::<Fake>("fake").map(drop));
        until(SOON, || usage(&pool).waiting == Some(1));
        *fake.connect.lock() = Does::Fail;
        let failed = Instant::now();
        let told = pool.reconnect("fake").unwrap_err();
        let error = waiting.join().unwrap().unwrap_err();
        assert!(failed.elapsed() < SOON, "{:?}: {error}", failed.elapsed());
        for error in [told, error] {
            let is_right = matches!(&error, Error::Connect(error) if error.permanent);
            assert!(is_right && error.to_string().contains("refused to connect"), "{error}");
        }
    });
    *fake.connect.lock() = Does::Work;
    drop(held);
    until(SOON, || pool.check_out::<Fake>("fake").is_ok());
}

#[test]
fn connect_that_ends_after_its_attempt_is_closed_untested() {
    let fake = Fake::default();
    let pool = fake.unused(|kind| kind, |options| options.connect_timeout = Duration::from_millis(100));
    *fake.connect.lock() = Does::Hang;
    pool.within(Duration::from_millis(200)).check_out::<Fake>("fake").unwrap_err();
    assert!(pool.close_all().unwrap().all_closed());
    (*fake.connect.lock(), *fake.test.lock()) = (Does::Work, Does::Hang);
    fake.stuck.store(0, Ordering::SeqCst);
    until(SOON, || fake.closed.load(Ordering::SeqCst) == fake.begun.load(Ordering::SeqCst));
    assert_eq!(fake.hung.load(Ordering::SeqCst), 0);
}

#[test]
fn ping_that_fails_after_a_reconnect_opens_nothing() {
    let fake = Fake::default();
    let pool = probed_at_the_moment(&fake, |kind| kind);
    (*fake.spoilt.lock(), *fake.test.lock()) = (Some(1), Does::Work);
    pool.reconnect("fake").unwrap();
    assert_eq!(fake.begun.load(Ordering::SeqCst), 2);
    // A connection that the prober opened would stay.
    *fake.connect.lock() = Does::Hang;
    fake.thawed.store(true, Ordering::SeqCst);
    until(SOON, || fake.closed.load(Ordering::SeqCst) == 1);
    assert_eq!((fake.begun.load(Ordering::SeqCst), fake.hung.load(Ordering::SeqCst)), (2, 0));
}

/// Some adapters connect only at the first use. A full server then refuses in the test.
#[test]
fn checkouts_are_not_lost_as_no_more_pass_their_tests() {
    let fake = Fake::default();
    let pool = fake.pool(|kind| kind.max_size(3));
    let held = check_out(&pool);
    *fake.test.lock() = Does::Fail;
    let begun = fake.begun.load(Ordering::SeqCst);
    until(SOON, || fake.begun.load(Ordering::SeqCst) >= begun + 3);
    let now = || pool.status().resource("fake").map(|now| (now.state, now.generation)).unwrap();
    assert_eq!(now(), (State::Ready, 1));
    // Once users have no connection, the server is lost.
    drop(held);
    until(SOON, || now().0 != State::Ready);
}

/// The health report tells that the process lacks threads. That is no evidence about the server, and ends with the
/// lack.
#[cfg(target_os = "linux")]
#[test]
fn checkouts_are_opened_and_closed_once_there_are_threads_again() {
    if let Some(ended) = common::alone("checkouts_are_opened_and_closed_once_there_are_threads_again") {
        return assert!(ended.success(), "{ended}");
    }
    let fake = Fake::default();
    let pool = fake.unused(|kind| kind.max_size(2), |options| options.health.cache = Duration::ZERO);
    let (first, second) = (check_out(&pool), check_out(&pool));
    drop(second);
    let health = || pool.health_check().unwrap().entry("fake").unwrap().clone();
    until(SOON, || health().health == Health::Pass);
    // The prober pings as well, for as long as a loss would take.
    let (begin, begun) = mpsc::channel();
    thread::scope(|scope| {
        // The channel moves into this scope, so that the thread ends if this one fails.
        let begin = begin;
        let pool = &pool;
        let again = scope.spawn(move || {
            begun.recv().unwrap();
            let began = Instant::now();
            until(SOON, || began.elapsed() > Duration::from_millis(500) && usage(pool).waiting == Some(1));
            common::spare_threads(true);
        });
        until(SOON, || {
            common::spare_threads(false);
            health().health == Health::Unknown
        });
        let entry = health();
        assert_eq!(entry.health, Health::Unknown, "{:?}", entry.error);
        assert!(entry.error.as_ref().is_some_and(|error| error.contains("cannot start the threads")), "{entry:?}");
        let third = check_out(pool);
        *fake.broken.lock() = Does::Fail;
        drop(third);
        until(SOON, || usage(pool).open == Some(1));
        let error = pool.within(Duration::from_millis(500)).check_out::<Fake>("fake").unwrap_err();
        assert!(matches!(&error, Error::Timeout(_)), "{error}");
        assert!(error.to_string().contains("cannot start the threads"), "{error}");
        assert_eq!(fake.closed.load(Ordering::SeqCst), 0, "there was to be no thread for the goodbye");
        begin.send(()).unwrap();
        let fourth = pool.within(LONG).check_out::<Fake>("fake").unwrap();
        assert_eq!(fourth.number, 3);
        again.join().unwrap();
    });
    until(SOON, || fake.closed.load(Ordering::SeqCst) == 2);
    until(SOON, || health().health != Health::Unknown);
    assert_eq!((pool.status().resource("fake").unwrap().generation, first.number), (1, 1));
    drop(first);
    assert!(pool.close_all().unwrap().all_closed());
}

/// Real connections, with the adapter of the `redis` crate.
#[cfg(feature = "redis")]
mod real {
    use redis::Commands;
    use services::{Kind, Service};

    use super::*;

    /// Redis's connections for threads come from the same checkouts.
    #[test]
    fn redis_checkout_that_waits_through_a_reconnect_gets_one_of_the_new_generation() {
        let server = Service::start(Kind::Redis).unwrap();
        let mut config = resource_pool::config::RedisConfig::url(server.url()).pool_size(1);
        config.min_idle = 1;
        let pool = ResourcePool::builder().environment([("", ""); 0]).resource(config).build().unwrap();
        pool.warm_up(["redis"]).unwrap().remove(0).1.unwrap();
        let usage = || pool.status().resource("redis").unwrap().usage;
        until(SOON, || usage().idle == Some(1));
        let held = pool.redis().unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                pool.within(LONG)
                    .redis()
                    .and_then(|mut redis| redis.incr::<_, _, i64>("waited", 1).map_err(|error| panic!("{error}")))
            });
            until(SOON, || usage().waiting == Some(1));
            assert_eq!(pool.holders().len(), 1, "who waits holds nothing");
            pool.reconnect("redis").unwrap();
            drop(held);
            assert_eq!(waiting.join().unwrap().unwrap(), 1);
        });
        assert_eq!(pool.status().resource("redis").unwrap().generation, 2);
        assert!(pool.close_all().unwrap().all_closed());
    }

    /// A command in flight is still answered on the old connection.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn redis_is_refreshed_and_no_command_fails() {
        use redis::{AsyncCommands, cmd};
        let server = Service::start(Kind::Redis).unwrap();
        let config = resource_pool::config::RedisConfig::url(server.url());
        let pool = resource_pool::ResourcePool::builder().environment([("", ""); 0]).resource(config).build().unwrap();
        let mut shared = pool.redis().await.unwrap().clone();
        let mut exclusive = shared.exclusive().await.unwrap();
        let id = cmd("CLIENT").arg("ID").clone();
        let (old, own): (i64, i64) =
            (id.query_async(&mut shared).await.unwrap(), id.query_async(&mut exclusive).await.unwrap());
        let threads = ResourcePool::from(pool.clone());
        let mut held = tokio::task::spawn_blocking(move || threads.redis().unwrap()).await.unwrap();
        let of_thread: i64 = id.query(&mut held).unwrap();

        // The server answers no write for now.
        let () = cmd("CLIENT").arg("PAUSE").arg(60_000).arg("WRITE").query_async(&mut exclusive).await.unwrap();
        let mut writes = shared.clone();
        let writing = tokio::spawn(async move { writes.incr::<_, _, i64>("n", 1).await });
        let blocked = async |exclusive: &mut resource_pool::Exclusive| -> bool {
            let info: String = cmd("INFO").arg("clients").query_async(exclusive).await.unwrap();
            info.contains("blocked_clients:1")
        };
        while !blocked(&mut exclusive).await {}
        pool.refresh("redis").await.unwrap();
        let new: i64 = id.query_async(&mut shared).await.unwrap();
        assert_ne!(new, old);
        assert!(!writing.is_finished());
        let () = cmd("CLIENT").arg("UNPAUSE").query_async(&mut exclusive).await.unwrap();
        assert_eq!(writing.await.unwrap().unwrap(), 1);
        assert_eq!(id.query_async::<i64>(&mut exclusive).await.unwrap(), own, "an exclusive connection stays");
        assert_eq!(id.query::<i64>(&mut held).unwrap(), of_thread);
        drop(held);
        let is_there = async |clients: &mut resource_pool::Exclusive, one: i64| {
            let clients: String = cmd("CLIENT").arg("LIST").query_async(clients).await.unwrap();
            clients.contains(&format!("id={one} "))
        };
        while is_there(&mut exclusive, old).await || is_there(&mut exclusive, of_thread).await {}
        assert_eq!(pool.status().resource("redis").unwrap().generation, 1);
        drop(exclusive);
        assert!(pool.close_all().await.all_closed());
    }

    #[test]
    fn redis_connection_that_the_server_ends_is_replaced_while_it_is_idle() {
        let server = Service::start(Kind::Redis).unwrap();
        let mut config = resource_pool::config::RedisConfig::url(server.url());
        (config.test_after, config.test_idle_after) = (LONG, Duration::from_millis(100));
        let pool = ResourcePool::builder().environment([("", ""); 0]).resource(config).build().unwrap();
        let usage = || pool.status().resource("redis").unwrap().usage;
        let (mut held, mut idle) = (pool.redis().unwrap(), pool.redis().unwrap());
        let ended: i64 = redis::cmd("CLIENT").arg("ID").query(&mut idle).unwrap();
        drop(idle);
        let () = redis::cmd("CLIENT").arg("KILL").arg("ID").arg(ended).query(&mut held).unwrap();
        until(SOON, || usage().counters.closed.is_some_and(|closed| closed.broken == 1));
        until(SOON, || usage().idle == Some(1));
        let mut new = pool.redis().unwrap();
        assert_ne!(redis::cmd("CLIENT").arg("ID").query::<i64>(&mut new).unwrap(), ended);
        drop((held, new));
        assert!(pool.close_all().unwrap().all_closed());
    }

    #[test]
    fn redis_checkout_that_is_discarded_is_closed() {
        let server = Service::start(Kind::Redis).unwrap();
        let config = resource_pool::config::RedisConfig::url(server.url()).pool_size(1);
        let pool = ResourcePool::builder().environment([("", ""); 0]).resource(config).build().unwrap();
        let id = |redis: &mut resource_pool::blocking::Redis| -> i64 {
            redis::cmd("CLIENT").arg("ID").query(redis).unwrap()
        };
        let mut redis = pool.redis().unwrap();
        let first = id(&mut redis);
        redis.discard();
        let mut redis = pool.redis().unwrap();
        assert_ne!(id(&mut redis), first);
        let has_first = |redis: &mut resource_pool::blocking::Redis| {
            let clients: String = redis::cmd("CLIENT").arg("LIST").query(redis).unwrap();
            clients.contains(&format!("id={first} "))
        };
        until(SOON, || !has_first(&mut redis));
        drop(redis);
        assert!(pool.close_all().unwrap().all_closed());
    }

    #[test]
    fn checkout_out_of_a_stock_adapter_works_and_comes_back_after_a_loss() {
        let server = Service::start(Kind::Redis).unwrap();
        let before = server.established().unwrap();
        let pool = ResourcePool::builder().environment([("", ""); 0]).build().unwrap();
        let client = redis::Client::open(server.url()).unwrap();
        pool.register("stock", R2d2::new(client).max_size(2).endpoint("redis://stock")).unwrap();
        let check_out = || pool.check_out::<redis::Client>("stock");
        assert_eq!(check_out().unwrap().incr::<_, _, i64>("n", 1).unwrap(), 1);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..50).for_each(|_| check_out().unwrap().incr("n", 1).unwrap()));
            }
        });
        assert_eq!(check_out().unwrap().get::<_, i64>("n").unwrap(), 401);
        // The server itself counts. The kernel's table can list a connection twice while others come and go.
        let clients: String = redis::cmd("CLIENT").arg("LIST").query(&mut *check_out().unwrap()).unwrap();
        assert!(clients.lines().count() <= 2, "{clients}");
        server.kill().unwrap();
        until(SOON, || pool.status().resource("stock").unwrap().state != State::Ready);
        assert!(check_out().is_err());
        server.restart().unwrap();
        until(SOON, || check_out().is_ok_and(|mut redis| redis.incr::<_, _, i64>("n", 1).is_ok()));
        let report = pool.close_all().unwrap();
        assert!(report.all_closed(), "{report}");
        // The start of the server may have had one more.
        until(SOON, || server.established().unwrap() <= before);
    }
}
