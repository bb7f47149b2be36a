//! The state machine and closing, on a fake resource that does what a test tells it.
//!
//! The script of the fake has counters, which are all SeqCst, and mutexes that are held for one look only.

#![allow(missing_docs)]

mod common;

use std::collections::VecDeque;
use std::error::Error as _;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use common::{Plain, Stopwatch, Within, eventually, until, until_async};
use parking_lot::Mutex;
use resource_pool::config::{CloseOptions, Options};
use resource_pool::{
    Busy, Error, Failure, Health, Link, Outcome, Phase, Reason, Resource, ResourcePool, Source, State, Usage, Work,
    blocking,
};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(15);
/// How long a verb blocks its thread. That is far longer than a test may take that does not wait for it.
const BLOCKED: Duration = Duration::from_secs(60);
/// A limit that is never reached. A test that waits this long fails.
const LONG: Duration = Duration::from_secs(600);

/// A constant usage.
fn full() -> Usage {
    let mut usage = Usage::default();
    usage.max = Some(7);
    usage.counters.opened = Some(1);
    usage
}

/// The behaviour of a verb.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
enum Does {
    #[default]
    Work,
    Slow,
    Fail,
    FailForGood,
    Refuse,
    Limit,
    Unask,
    LoseAndUnask,
    LackDescriptors,
    Panic,
    Hang,
    BlockThread,
    BlockThreadForLong,
}

#[derive(Default)]
struct Script {
    connect: Mutex<Does>,
    ping: Mutex<Does>,
    close: Mutex<Does>,
    stop_intake: Mutex<Does>,
    connects: AtomicUsize,
    pings: AtomicUsize,
    /// The behaviour of the next pings. If there are none, all pings follow `ping`.
    pings_in_turn: Mutex<VecDeque<Does>>,
    closes: AtomicUsize,
    /// The number of closes that came to their end.
    closed: AtomicUsize,
    cuts: AtomicUsize,
    gate: Mutex<Option<Arc<Notify>>>,
    link: Mutex<Option<Link>>,
    looks: Mutex<Does>,
    log: Mutex<Vec<String>>,
}

/// A scripted resource, for the tests of the state machine only.
#[derive(Clone)]
struct Fake {
    name: &'static str,
    phase: Phase,
    script: Arc<Script>,
}

impl Fake {
    fn new(name: &'static str) -> Self {
        Fake { name, phase: Phase::Models, script: Arc::default() }
    }
}

/// Panics without the panic hook. The hook prints a backtrace and so may take longer than a step's budget.
fn panic_quietly(message: &'static str) -> ! {
    std::panic::resume_unwind(Box::new(message))
}

async fn act(does: Does) -> Result<(), Failure> {
    match does {
        Does::Work => Ok(()),
        Does::Slow => {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(())
        }
        Does::Fail => Err(Failure::transient("as scripted")),
        Does::FailForGood => Err(Failure::permanent("wrong password")),
        Does::Refuse => Err(Failure::refused("still loading")),
        Does::Limit => Err(Failure::limited("no right to ping")),
        Does::Unask | Does::LoseAndUnask => Err(Failure::unasked("no room for the ping")),
        Does::LackDescriptors => Err(io::Error::from_raw_os_error(libc::EMFILE).into()),
        Does::Panic => panic_quietly("as scripted"),
        Does::Hang => std::future::pending().await,
        Does::BlockThread => {
            thread::sleep(BLOCKED);
            Ok(())
        }
        Does::BlockThreadForLong => {
            thread::sleep(4 * SOON);
            Ok(())
        }
    }
}

impl Resource for Fake {
    type Handle = u64;

    async fn connect(&self, link: &Link) -> Result<u64, Failure> {
        self.script.connects.fetch_add(1, Ordering::SeqCst);
        *self.script.link.lock() = Some(link.clone());
        let gate = self.script.gate.lock().clone();
        if let Some(gate) = gate {
            gate.notified().await;
        }
        let does = *self.script.connect.lock();
        act(does).await?;
        Ok(link.generation())
    }

    async fn ping(&self, _: &u64) -> Result<(), Failure> {
        self.script.pings.fetch_add(1, Ordering::SeqCst);
        let next = self.script.pings_in_turn.lock().pop_front();
        let does = next.unwrap_or(*self.script.ping.lock());
        if does == Does::LoseAndUnask {
            let link = self.script.link.lock().clone().unwrap();
            link.lost(link.generation(), "as scripted");
        }
        act(does).await
    }

    async fn close(&self, _: u64) -> Result<(), Failure> {
        self.script.closes.fetch_add(1, Ordering::SeqCst);
        self.script.log.lock().push(self.name.to_owned());
        let does = *self.script.close.lock();
        let ended = act(does).await;
        self.script.closed.fetch_add(1, Ordering::SeqCst);
        ended
    }

    async fn stop_intake(&self, _: &u64) {
        let does = *self.script.stop_intake.lock();
        act(does).await.unwrap();
    }

    fn cut(&self, _: &u64) {
        self.script.cuts.fetch_add(1, Ordering::SeqCst);
        assert_ne!(*self.script.looks.lock(), Does::Panic, "as scripted");
    }

    fn usage(&self, _: &u64) -> Usage {
        let looks = *self.script.looks.lock();
        assert_ne!(looks, Does::Panic, "as scripted");
        if looks == Does::Hang {
            loop {
                thread::park();
            }
        }
        full()
    }

    fn endpoint(&self) -> String {
        format!("fake://{}", self.name)
    }

    fn phase(&self) -> Phase {
        self.phase
    }
}

fn pool() -> ResourcePool {
    pool_with(|_| {})
}

fn pool_with(change: impl FnOnce(&mut Options)) -> ResourcePool {
    let mut options = Options::default();
    change(&mut options);
    ResourcePool::builder().environment([("", ""); 0]).options(options).build().expect("a pool")
}

/// A pool whose connects use the clock of this task's runtime, which may be paused.
fn pool_here(change: impl FnOnce(&mut Options)) -> ResourcePool {
    let mut options = Options::default();
    change(&mut options);
    let runtime = tokio::runtime::Handle::current();
    ResourcePool::builder().environment([("", ""); 0]).options(options).runtime(runtime).build().unwrap()
}

/// Options that check the health anew each time. An answer may take as long as a busy machine needs.
fn patient_health(options: &mut Options) {
    options.health.cache = Duration::ZERO;
    (options.health.each, options.health.all, options.health.slow) = (SOON, SOON, SOON);
}

fn with(fake: &Fake) -> ResourcePool {
    let pool = pool();
    pool.register(fake.name, fake.clone()).unwrap();
    pool
}

fn state(pool: &ResourcePool, name: &str) -> State {
    pool.status().resource(name).unwrap().state
}

#[test]
fn connecting_is_single_flight() {
    let fake = Fake::new("fake");
    let gate = Arc::new(Notify::new());
    *fake.script.gate.lock() = Some(Arc::clone(&gate));
    let pool = pool_with(|options| {
        (options.acquire_timeout, options.connect_timeout, options.retry.budget) = (LONG, LONG, LONG);
    });
    pool.register("fake", fake.clone()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    thread::scope(|scope| {
        for _ in 0..50 {
            let pool = blocking::ResourcePool::from(pool.clone());
            scope.spawn(move || assert_eq!(*pool.get::<Fake>("fake").unwrap(), 1));
        }
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                let pool = pool.clone();
                runtime.spawn(async move { assert_eq!(*pool.get::<Fake>("fake").await.unwrap(), 1) })
            })
            .collect();
        until(SOON, || pool.status().resource("fake").unwrap().connecting == 100);
        gate.notify_one();
        tasks.into_iter().for_each(|task| runtime.block_on(task).unwrap());
    });
    assert_eq!(fake.script.connects.load(Ordering::SeqCst), 1);
    assert_eq!(pool.status().resource("fake").unwrap().connecting, 0);
}

#[tokio::test]
async fn caller_that_gives_up_cancels_nothing() {
    let fake = Fake::new("fake");
    let gate = Arc::new(Notify::new());
    *fake.script.gate.lock() = Some(Arc::clone(&gate));
    let pool = with(&fake);
    let other = tokio::spawn({
        let pool = pool.clone();
        async move { pool.get::<Fake>("fake").await.map(|lease| *lease) }
    });
    assert!(tokio::time::timeout(Duration::from_millis(20), pool.get::<Fake>("fake")).await.is_err());
    let timed_out = pool.within(Duration::from_millis(20)).get::<Fake>("fake").await.unwrap_err();
    assert!(timed_out.to_string().contains("fake at fake://fake: waited"), "{timed_out}");
    assert!(timed_out.to_string().contains("for connecting"), "{timed_out}");
    // The view for threads has the same acquire timeout.
    let impatient = blocking::ResourcePool::from(pool.within(Duration::from_millis(20)));
    let timed_out = tokio::task::spawn_blocking(move || impatient.get::<Fake>("fake").unwrap_err()).await.unwrap();
    assert!(timed_out.to_string().contains("for connecting"), "{timed_out}");
    gate.notify_one();
    assert_eq!(other.await.unwrap().unwrap(), 1);
    assert_eq!(fake.script.connects.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn transient_failures_are_retried_and_permanent_ones_are_not() {
    let fake = Fake::new("fake");
    *fake.script.connect.lock() = Does::Fail;
    let pool = with(&fake);
    let Error::Connect(error) = pool.get::<Fake>("fake").await.unwrap_err() else { panic!() };
    assert_eq!((error.attempts, error.permanent), (3, false));
    assert_eq!(error.source.to_string(), "as scripted");

    let fake = Fake::new("fake");
    *fake.script.connect.lock() = Does::FailForGood;
    // A pause would outlast the acquire.
    let pool = pool_with(|options| {
        (options.retry.base, options.retry.cap, options.retry.budget) = (LONG, LONG, Duration::MAX);
    });
    pool.register("fake", fake.clone()).unwrap();
    let Error::Connect(error) = pool.get::<Fake>("fake").await.unwrap_err() else { panic!() };
    assert_eq!((error.attempts, error.permanent), (1, true));
}

#[tokio::test]
async fn failure_is_answered_again_for_a_while() {
    let failed_once = async |circuit| {
        let fake = Fake::new("fake");
        *fake.script.connect.lock() = Does::FailForGood;
        let pool = pool_with(|options| options.circuit = circuit);
        pool.register("fake", fake.clone()).unwrap();
        assert!(pool.get::<Fake>("fake").await.is_err());
        *fake.script.connect.lock() = Does::Work;
        (fake, pool)
    };
    let (fake, pool) = failed_once(LONG).await;
    for _ in 0..100 {
        assert!(pool.get::<Fake>("fake").await.is_err());
    }
    assert_eq!(fake.script.connects.load(Ordering::SeqCst), 1, "a stampede");
    let (fake, pool) = failed_once(Options::default().circuit).await;
    until_async(SOON, async || pool.get::<Fake>("fake").await.is_ok()).await;
    assert_eq!(fake.script.connects.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn hanging_connect_ends_within_its_budget() {
    let fake = Fake::new("fake");
    *fake.script.connect.lock() = Does::Hang;
    let pool = pool_here(|_| {});
    pool.register("fake", fake).unwrap();
    let started = tokio::time::Instant::now();
    let error = pool.get::<Fake>("fake").await.unwrap_err();
    assert!(error.to_string().contains("no answer within"), "{error}");
    let (took, budget) = (started.elapsed(), Options::default().retry.budget);
    assert!(took <= budget + Duration::from_millis(10), "{took:?} of {budget:?}");
}

#[tokio::test]
async fn panics_are_errors() {
    let fake = Fake::new("fake");
    *fake.script.connect.lock() = Does::Panic;
    let pool = with(&fake);
    let error = pool.get::<Fake>("fake").await.unwrap_err();
    assert!(error.to_string().contains("panicked: as scripted"), "{error}");
    *fake.script.connect.lock() = Does::Work;
    until_async(SOON, async || pool.get::<Fake>("fake").await.is_ok()).await;
    *fake.script.ping.lock() = Does::Panic;
    assert_eq!(pool.health_check().await.entry("fake").unwrap().health, Health::Fail);
    *fake.script.close.lock() = Does::Panic;
    let report = pool.close_all().await;
    assert_eq!(report.step("fake").unwrap().outcome, Outcome::Panicked("as scripted".to_owned()));
}

#[tokio::test]
async fn lost_resource_comes_back_in_a_new_generation() {
    let fake = Fake::new("fake");
    let pool = with(&fake);
    let lease = pool.get::<Fake>("fake").await.unwrap();
    assert_eq!((*lease, resource_pool::Lease::generation(&lease)), (1, 1));
    let link = fake.script.link.lock().clone().unwrap();
    *fake.script.connect.lock() = Does::Fail;
    link.lost(7, "not the current one");
    assert_eq!(state(&pool, "fake"), State::Ready);
    link.lost(1, "the wire broke");
    until_async(SOON, async || fake.script.cuts.load(Ordering::SeqCst) == 1).await;
    until_async(SOON, async || fake.script.connects.load(Ordering::SeqCst) >= 3).await;
    // Between two attempts, an acquire gets the cause at once.
    let error = pool.get::<Fake>("fake").await.unwrap_err();
    assert!(error.is_transient() && !matches!(error, Error::Timeout(_)), "{error}");
    assert_eq!(pool.health_check().await.entry("fake").unwrap().health, Health::Fail);
    *fake.script.connect.lock() = Does::Work;
    until_async(SOON, async || state(&pool, "fake") == State::Ready).await;
    assert_eq!(*pool.get::<Fake>("fake").await.unwrap(), 2);
    assert_eq!(*lease, 1, "a lease keeps the handle that it was given");
}

#[tokio::test]
async fn prober_notices_what_stops_answering() {
    for does in [Does::Hang, Does::Fail] {
        let fake = Fake::new("fake");
        let pool = with(&fake);
        drop(pool.get::<Fake>("fake").await.unwrap());
        *fake.script.connect.lock() = Does::Fail;
        *fake.script.ping.lock() = does;
        let started = Instant::now();
        until_async(SOON, async || state(&pool, "fake") != State::Ready).await;
        println!("{does:?} noticed after {:?}", started.elapsed());
        until_async(SOON, async || fake.script.cuts.load(Ordering::SeqCst) > 0).await;
    }
}

/// The test above is the control: there, the same prober cuts a server that is silent.
#[tokio::test]
async fn only_silence_is_a_strike() {
    let answers = [
        (Does::Refuse, Health::Fail),
        (Does::Panic, Health::Fail),
        (Does::Limit, Health::Warn),
        (Does::Unask, Health::Unknown),
        (Does::LackDescriptors, Health::Unknown),
    ];
    for (does, health) in answers {
        let fake = Fake::new("fake");
        let pool = pool_with(|options| {
            options.probe.interval = Duration::from_millis(5);
            patient_health(options);
        });
        pool.register("fake", fake.clone()).unwrap();
        let lease = pool.get::<Fake>("fake").await.unwrap();
        *fake.script.ping.lock() = does;
        let pings = fake.script.pings.load(Ordering::SeqCst);
        until_async(SOON, async || fake.script.pings.load(Ordering::SeqCst) >= pings + 10).await;
        assert_eq!((state(&pool, "fake"), fake.script.cuts.load(Ordering::SeqCst)), (State::Ready, 0), "{does:?}");
        let report = pool.health_check().await;
        let entry = report.entry("fake").unwrap();
        assert_eq!(entry.health, health, "{does:?}");
        assert!(entry.error.is_some(), "{does:?}");
        *fake.script.ping.lock() = Does::Work;
        assert_eq!(pool.health_check().await.entry("fake").unwrap().health, Health::Pass);
        assert_eq!(pool.status().resource("fake").unwrap().generation, 1);
        drop(lease);
    }
}

/// The ping proves nothing, but by its end the connection is lost.
#[tokio::test]
async fn a_loss_while_health_is_checked_is_a_failure() {
    let fake = Fake::new("fake");
    let pool = pool_with(|options| {
        options.probe.interval = LONG;
        patient_health(options);
    });
    pool.register("fake", fake.clone()).unwrap();
    drop(pool.get::<Fake>("fake").await.unwrap());
    *fake.script.connect.lock() = Does::Fail;
    *fake.script.ping.lock() = Does::LoseAndUnask;
    let report = pool.health_check().await;
    let entry = report.entry("fake").unwrap();
    assert_eq!((entry.health, report.readiness()), (Health::Fail, Health::Fail), "{report}");
    assert!(entry.error.as_ref().unwrap().contains("as scripted") && entry.state != State::Ready, "{entry:?}");
}

/// Strikes count only in a row. A server that answers in between is not lost.
#[tokio::test]
async fn an_answer_between_strikes_begins_anew() {
    let fake = Fake::new("fake");
    let pool = pool_with(|options| {
        options.probe.interval = Duration::from_millis(5);
        options.probe.strikes = 3;
    });
    pool.register("fake", fake.clone()).unwrap();
    let _lease = pool.get::<Fake>("fake").await.unwrap();
    for answer in [Does::Work, Does::Refuse, Does::Limit] {
        fake.script.pings_in_turn.lock().extend([Does::Fail, Does::Fail, answer].repeat(5));
        until_async(SOON, async || fake.script.pings_in_turn.lock().is_empty()).await;
        assert_eq!((state(&pool, "fake"), fake.script.cuts.load(Ordering::SeqCst)), (State::Ready, 0), "{answer:?}");
    }
    // A probe that could not be sent proves nothing either way.
    fake.script.pings_in_turn.lock().extend([Does::Fail, Does::Fail, Does::Unask, Does::Fail]);
    until_async(SOON, async || pool.status().resource("fake").unwrap().generation == 2).await;
}

/// As many pings as the prober has threads, and one more.
#[tokio::test]
async fn pings_that_block_their_threads_delay_no_other() {
    let pool = pool_with(|options| {
        patient_health(options);
        (options.health.each, options.health.all) = (Duration::from_secs(2), Duration::from_secs(3));
        // No resource is lost before the end of the test.
        options.probe.strikes = 1000;
    });
    let (good, stuck) = (Fake::new("good"), ["a", "b", "c"].map(Fake::new));
    for fake in stuck.iter().chain([&good]) {
        pool.register(fake.name, fake.clone()).unwrap();
        drop(pool.get::<Fake>(fake.name).await.unwrap());
    }
    for fake in &stuck {
        *fake.script.ping.lock() = Does::BlockThread;
        until_async(SOON, async || fake.script.pings.load(Ordering::SeqCst) > 0).await;
    }
    let report = pool.health_check().await;
    assert!(report.took < SOON, "{report}");
    assert_eq!(report.entry("good").unwrap().health, Health::Pass, "{report}");
    for fake in &stuck {
        let entry = report.entry(fake.name).unwrap();
        assert_eq!(entry.health, Health::Fail, "{report}");
        assert!(entry.error.as_ref().unwrap().contains("no answer"), "{report}");
    }
    let report = pool.health_check().await;
    let error = report.entry("a").unwrap().error.clone().unwrap();
    assert!(error.contains("a ping must not block its thread"), "{error}");
    assert_eq!(report.entry("good").unwrap().health, Health::Pass, "{report}");
    let pings = good.script.pings.load(Ordering::SeqCst);
    until_async(SOON, async || good.script.pings.load(Ordering::SeqCst) > pings).await;
    assert_eq!(state(&pool, "good"), State::Ready);
}

/// Two pings may hang on each generation, and eight on all generations together.
#[tokio::test]
async fn pings_that_hang_on_what_is_lost_hold_back_none_of_the_next_generation() {
    let fake = Fake::new("fake");
    let pool = pool_with(|options| {
        options.probe.enabled = false;
        (options.health.each, options.health.cache) = (Duration::from_millis(50), Duration::ZERO);
    });
    pool.register(fake.name, fake.clone()).unwrap();
    drop(pool.get::<Fake>("fake").await.unwrap());
    let health = async || pool.health_check().await.entry("fake").unwrap().clone();
    for generation in 1..=4 {
        assert_eq!(pool.status().resource("fake").unwrap().generation, generation);
        until_async(SOON, async || health().await.health == Health::Pass).await;
        *fake.script.pings_in_turn.lock() = [Does::BlockThreadForLong; 2].into();
        until_async(SOON, async || {
            assert_ne!(health().await.health, Health::Pass);
            fake.script.pings_in_turn.lock().is_empty()
        })
        .await;
        // The control: a third ping is not sent.
        let sent = fake.script.pings.load(Ordering::SeqCst);
        let entry = health().await;
        let error = entry.error.unwrap();
        if generation < 4 {
            assert!(entry.health == Health::Fail && error.contains("2 earlier pings have not come back"), "{error}");
        } else {
            assert!(entry.health == Health::Unknown && error.contains("8 pings of lost connections"), "{error}");
        }
        assert_eq!(fake.script.pings.load(Ordering::SeqCst), sent);
        pool.reconnect("fake").await.unwrap();
    }
    assert_eq!(health().await.health, Health::Unknown, "as many hang as may");
}

/// A lack of threads in this process is no evidence about a server.
#[cfg(target_os = "linux")]
#[test]
fn ping_that_can_have_no_thread_is_unknown_and_no_strike() {
    if let Some(ended) = common::alone("ping_that_can_have_no_thread_is_unknown_and_no_strike") {
        return assert!(ended.success(), "{ended}");
    }
    // A thread of an earlier ping may still be there.
    for probes in [false, true] {
        let fake = Fake::new("fake");
        let pool = pool_with(|options| {
            (options.probe.enabled, options.probe.interval, options.probe.strikes) =
                (probes, Duration::from_millis(50), 1);
            options.health.cache = Duration::ZERO;
        });
        pool.register(fake.name, fake.clone()).unwrap();
        let pool = blocking::ResourcePool::from(pool);
        drop(pool.get::<Fake>("fake").unwrap());
        let health = || pool.health_check().unwrap().entry("fake").unwrap().clone();
        let mut began = Instant::now();
        until(SOON, || {
            let entry = health();
            if entry.health == Health::Pass {
                // A thread that ended has left its room to the ping.
                common::spare_threads(false);
                began = Instant::now();
                return false;
            }
            assert_eq!(entry.health, Health::Unknown, "{:?}", entry.error);
            assert!(entry.error.is_some_and(|error| error.contains("cannot start the threads")));
            began.elapsed() > Duration::from_millis(500)
        });
        common::spare_threads(true);
        until(SOON, || health().health == Health::Pass);
        assert_eq!(pool.status().resource("fake").unwrap().generation, 1);
        assert_eq!(fake.script.cuts.load(Ordering::SeqCst), 0);
        assert!(pool.close_all().unwrap().all_closed());
    }
}

#[tokio::test]
async fn endpoint_and_phase_may_use_the_pool() {
    struct Curious(ResourcePool);
    impl Resource for Curious {
        type Handle = ();
        async fn connect(&self, _: &Link) -> Result<(), Failure> {
            Ok(())
        }
        async fn ping(&self, (): &()) -> Result<(), Failure> {
            Ok(())
        }
        async fn close(&self, (): ()) -> Result<(), Failure> {
            Ok(())
        }
        fn endpoint(&self) -> String {
            format!("beside {} others", self.0.status().resources.len())
        }
        fn phase(&self) -> Phase {
            let _ = self.0.register("another", Fake::new("another"));
            Phase::Models
        }
    }
    let pool = pool();
    let others = pool.status().resources.len();
    let register = tokio::task::spawn_blocking({
        let pool = pool.clone();
        move || pool.register("curious", Curious(pool.clone()))
    });
    register.within(SOON).await.unwrap().unwrap();
    let status = pool.status();
    assert_eq!(*status.resource("curious").unwrap().endpoint, *format!("beside {others} others"));
    assert!(status.resource("another").is_some());
}

/// A handle whose drop panics.
#[derive(Clone)]
struct Brittle;

impl Drop for Brittle {
    fn drop(&mut self) {
        panic_quietly("as it drops");
    }
}

struct MakesBrittle;

impl Resource for MakesBrittle {
    type Handle = Arc<Brittle>;
    async fn connect(&self, _: &Link) -> Result<Arc<Brittle>, Failure> {
        Ok(Arc::new(Brittle))
    }
    async fn ping(&self, _: &Arc<Brittle>) -> Result<(), Failure> {
        Ok(())
    }
    async fn close(&self, handle: Arc<Brittle>) -> Result<(), Failure> {
        // The script keeps a handle, so that the pool drops the last one.
        drop(handle);
        Ok(())
    }
}

#[tokio::test]
async fn step_whose_handle_panics_as_it_drops_is_in_the_report() {
    let pool = pool();
    pool.register("brittle", MakesBrittle).unwrap();
    pool.register("fake", Fake::new("fake")).unwrap();
    drop(pool.get::<MakesBrittle>("brittle").await.unwrap());
    drop(pool.get::<Fake>("fake").await.unwrap());
    let report = pool.close_all().await;
    assert_eq!(report.step("brittle").unwrap().outcome, Outcome::Panicked("as it drops".to_owned()), "{report}");
    assert_eq!(report.step("fake").unwrap().outcome, Outcome::Closed, "{report}");
    assert!(!report.all_closed());
    assert!(matches!(pool.get::<MakesBrittle>("brittle").await, Err(Error::Closed { .. })));
    assert_eq!(state(&pool, "brittle"), State::Closed);
}

/// Begins to acquire, and returns once the attempt is in flight.
async fn in_flight(pool: &ResourcePool, fake: &Fake) -> JoinHandle<Result<(), Error>> {
    pool.register(fake.name, fake.clone()).unwrap();
    let (pool, name) = (pool.clone(), fake.name);
    let acquiring = tokio::spawn(async move { pool.get::<Fake>(name).await.map(drop) });
    until_async(SOON, async || fake.script.connects.load(Ordering::SeqCst) == 1).await;
    acquiring
}

#[tokio::test]
async fn connect_in_flight_comes_to_its_end_before_it_is_closed() {
    for does in [Does::Work, Does::Fail] {
        let fake = Fake::new("fake");
        let gate = Arc::new(Notify::new());
        *fake.script.gate.lock() = Some(Arc::clone(&gate));
        *fake.script.connect.lock() = does;
        // The attempt may fail before closing looks at it. The next attempt is far enough away.
        let pool = pool_with(|options| {
            (options.retry.base, options.retry.cap, options.retry.budget) = (LONG, LONG, Duration::MAX);
            (options.acquire_timeout, options.connect_timeout) = (LONG, LONG);
        });
        let acquiring = in_flight(&pool, &fake).await;
        let closing = tokio::spawn({
            let pool = pool.clone();
            async move { pool.close_all().await }
        });
        pool.closing().wait().within(SOON).await;
        gate.notify_one();
        let report = closing.within(SOON).await.unwrap();
        // An attempt that fails before closing looks at it leaves nothing to close, so it has no step.
        assert!(report.all_closed(), "{report}");
        let acquired = acquiring.await.unwrap();
        assert!(does == Does::Fail || acquired.is_ok() || acquired.is_err_and(|error| error.is_closed()));
        let connected = usize::from(does == Does::Work);
        assert!(report.steps.len() >= connected, "{report}");
        assert_eq!(fake.script.closed.load(Ordering::SeqCst), connected, "what was connected is said goodbye to");
        assert_eq!(fake.script.connects.load(Ordering::SeqCst), 1, "no attempt follows");
    }
}

#[tokio::test]
async fn connect_that_hangs_is_cut_off_as_closing_begins_and_the_report_says_so() {
    let fake = Fake::new("fake");
    *fake.script.connect.lock() = Does::Hang;
    let pool = pool_with(|options| {
        options.connect_timeout = Duration::from_secs(60);
        options.retry.budget = Duration::from_secs(60);
        options.close.step = Duration::from_millis(50);
    });
    let acquiring = in_flight(&pool, &fake).await;
    // The resource closes in a later phase, but its step is over before that phase begins.
    let early = || {
        thread::sleep(Duration::from_millis(100));
        Ok(())
    };
    pool.on_close("early", Phase::Tasks, early).unwrap();
    let report = pool.close_all().within(SOON).await;
    let step = report.step("fake").unwrap();
    assert_eq!(step.outcome, Outcome::Forced, "{report}");
    assert!(step.took >= Duration::from_millis(50) && step.took <= report.drained, "{report}");
    assert!(acquiring.await.unwrap().is_err_and(|error| error.is_closed()));
}

/// A step can lease every resource that closes later, and none that closes with it or before. Closing waits for work
/// that the step begins there.
#[test]
fn closing_code_may_use_what_closes_later() {
    let (queue, cache, database) = (Fake::new("queue"), Fake::new("cache"), Fake::new("database"));
    let pool = blocking::ResourcePool::builder().environment([("", ""); 0]).build().unwrap();
    for (fake, phase) in [(&queue, Phase::RabbitMq), (&cache, Phase::Redis), (&database, Phase::Databases)] {
        pool.register(fake.name, Fake { phase, ..fake.clone() }).unwrap();
    }
    pool.register("unused", Fake::new("unused")).unwrap();
    for name in ["queue", "cache", "database"] {
        drop(pool.get::<Fake>(name).unwrap());
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    let look = |when: &'static str, phase: Phase| {
        let (seen, inside, link) = (Arc::clone(&seen), pool.clone(), database.script.link.lock().clone().unwrap());
        let run = move || {
            for name in ["queue", "cache", "database", "unused"] {
                let leased = inside.get::<Fake>(name).map(drop).map_err(|error| error.is_closed());
                seen.lock().push((when, name, leased));
            }
            let from_async = inside.as_async();
            let leased = futures_util::FutureExt::now_or_never(async move { from_async.get::<Fake>("database").await });
            assert!(leased.is_none_or(|leased| leased.is_ok()));
            // Code outside of the step gets no lease meanwhile.
            let outside = inside.clone();
            let leased = thread::spawn(move || outside.get::<Fake>("database").map(drop)).join().unwrap();
            assert!(leased.is_err_and(|error| error.is_closed()), "{when}");
            let work = link.busy(Work::Row);
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(30));
                work.done();
            });
            Ok(())
        };
        pool.on_close(when, phase, run).unwrap();
    };
    look("tasks", Phase::Tasks);
    look("vectors", Phase::VectorStores);
    let report = pool.close_all().unwrap();
    assert!(report.all_closed(), "{report}");
    let (yes, no) = (Ok(()), Err(true));
    let expected = [
        ("tasks", "queue", yes),
        ("tasks", "cache", yes),
        ("tasks", "database", yes),
        ("tasks", "unused", no),
        ("vectors", "queue", no),
        ("vectors", "cache", no),
        ("vectors", "database", yes),
        ("vectors", "unused", no),
    ];
    assert_eq!(*seen.lock(), expected);
    let database = report.step("database").unwrap();
    assert_eq!((&database.finished[..], &database.unfinished[..]), (&[(Work::Row, 2)][..], &[][..]), "{report}");
}

/// A lease that is merely held, and was neither taken nor used lately, does not delay closing.
#[tokio::test]
async fn closing_waits_only_for_leases_that_were_used_lately() {
    let held = Duration::from_secs(1);
    let close = async |use_it: fn(&Link)| {
        let fake = Fake::new("fake");
        let pool = pool_with(|options| options.close.held = held);
        pool.register("fake", fake.clone()).unwrap();
        let lease = pool.get::<Fake>("fake").await.unwrap();
        let old = Instant::now();
        until_async(SOON, async || old.elapsed() > held * 2).await;
        let link = fake.script.link.lock().clone().unwrap();
        use_it(&link);
        let report = pool.close_all().await;
        assert_eq!(report.step("fake").unwrap().held.len(), 1);
        drop(lease);
        report.drained
    };
    let (unused, used) = tokio::join!(close(|_| {}), close(|link| link.busy(Work::Operation).done()));
    assert!(unused < held, "{unused:?}");
    assert!(used >= held, "{used:?}");
}

#[tokio::test]
async fn reopen_is_refused_while_closing() {
    let fake = Fake::new("fake");
    let pool = with(&fake);
    drop(pool.get::<Fake>("fake").await.unwrap());
    let busy = fake.script.link.lock().clone().unwrap().busy(Work::Operation);
    let closing = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close_all().await }
    });
    pool.closing().wait().within(SOON).await;
    assert!(matches!(pool.reopen(), Err(Error::Closing { .. })));
    busy.done();
    assert!(closing.await.unwrap().all_closed());
    pool.reopen().unwrap();
    drop(pool.get::<Fake>("fake").await.unwrap());
}

/// The server takes every connection and ends it at once.
#[tokio::test]
async fn generations_that_die_young_are_followed_by_pauses() {
    let fake = Fake::new("fake");
    let pool = pool_with(|options| options.retry.cap = Duration::from_millis(400));
    pool.register("fake", fake.clone()).unwrap();
    drop(pool.get::<Fake>("fake").await.unwrap());
    let hangs_up = Arc::new(AtomicBool::new(true));
    let server = thread::spawn({
        let (fake, pool, hangs_up) = (fake.clone(), pool.clone(), Arc::clone(&hangs_up));
        move || {
            while hangs_up.load(Ordering::SeqCst) {
                if state(&pool, "fake") == State::Ready {
                    let link = fake.script.link.lock().clone().unwrap();
                    link.lost(link.generation(), "it hung up");
                }
                thread::yield_now();
            }
        }
    });
    // With pauses of 100, 200, 400, 400 … ms, six connects take 1.5 s. Without pauses they take no time.
    let started = Instant::now();
    until_async(SOON, async || fake.script.connects.load(Ordering::SeqCst) >= 6).await;
    assert!(started.elapsed() > Duration::from_millis(1300), "{:?}", started.elapsed());
    // These see a pause. Between two pauses the resource is ready for a moment.
    let error = eventually(SOON, async || pool.get::<Fake>("fake").await.err()).await;
    assert!(error.to_string().contains("it hung up"), "{error}");
    let told = eventually(SOON, async || pool.health_check().await.entry("fake").unwrap().error.clone()).await;
    assert!(told.contains("it hung up"), "{told}");
    hangs_up.store(false, Ordering::SeqCst);
    server.join().unwrap();
    // A generation that lived longer than the cap is followed by no pause.
    until_async(SOON, async || state(&pool, "fake") == State::Ready).await;
    let ready = Instant::now();
    until_async(SOON, async || ready.elapsed() > Duration::from_millis(500)).await;
    let link = fake.script.link.lock().clone().unwrap();
    let before = pool.status().resource("fake").unwrap().generation;
    link.lost(before, "once more");
    assert_ne!(state(&pool, "fake"), State::Broken, "no pause");
    until_async(SOON, async || pool.status().resource("fake").unwrap().generation > before).await;
}

/// A connection of a failed attempt may end later, when another attempt has made the generation of that number.
#[tokio::test]
async fn loss_told_by_an_attempt_that_failed_is_not_the_next_ones() {
    let fake = Fake::new("fake");
    *fake.script.connect.lock() = Does::Fail;
    let pool = with(&fake);
    pool.get::<Fake>("fake").await.map(drop).unwrap_err();
    let failed = fake.script.link.lock().clone().unwrap();
    *fake.script.connect.lock() = Does::Work;
    until_async(SOON, async || pool.get::<Fake>("fake").await.is_ok()).await;
    failed.lost(1, "the socket of the attempt that failed");
    assert_eq!((state(&pool, "fake"), fake.script.cuts.load(Ordering::SeqCst)), (State::Ready, 0));
    // A report of the attempt that made the generation counts.
    let made = fake.script.link.lock().clone().unwrap();
    made.lost(1, "its own socket");
    until_async(SOON, async || pool.status().resource("fake").unwrap().generation == 2).await;
}

#[tokio::test]
async fn closed_stays_closed_until_reconnect_or_reopen() {
    let fake = Fake::new("fake");
    let pool = with(&fake);
    drop(pool.get::<Fake>("fake").await.unwrap());
    assert!(pool.close("fake").await.unwrap().all_closed());
    for _ in 0..3 {
        assert!(matches!(pool.get::<Fake>("fake").await, Err(Error::Closed { .. })));
    }
    pool.reconnect("fake").await.unwrap();
    assert_eq!(*pool.get::<Fake>("fake").await.unwrap(), 2);
    assert!(pool.close_all().await.all_closed());
    assert!(matches!(pool.get::<Fake>("fake").await, Err(Error::Closed { .. })));
    assert!(matches!(pool.reconnect("fake").await, Err(Error::Closed { .. })));
    assert!(matches!(pool.register("other", Fake::new("other")), Err(Error::Closed { .. })));
    pool.reopen().unwrap();
    assert!(!pool.is_closing());
    assert_eq!(*pool.get::<Fake>("fake").await.unwrap(), 3);
    // A resource that works can be reconnected too.
    pool.reconnect("fake").await.unwrap();
    assert_eq!(*pool.get::<Fake>("fake").await.unwrap(), 4);
}

#[tokio::test]
async fn reconnect_overtakes_a_recovery_that_pauses() {
    let fake = Fake::new("fake");
    let mut options = Options::default();
    options.retry.base = Duration::from_secs(60);
    options.retry.cap = Duration::from_secs(60);
    let pool = ResourcePool::builder().environment([("", ""); 0]).options(options).build().unwrap();
    pool.register("fake", fake.clone()).unwrap();
    drop(pool.get::<Fake>("fake").await.unwrap());
    *fake.script.connect.lock() = Does::Fail;
    let link = fake.script.link.lock().clone().unwrap();
    link.lost(1, "the wire broke");
    until_async(SOON, async || state(&pool, "fake") == State::Broken).await;
    *fake.script.connect.lock() = Does::Work;
    // The next attempt is a minute away, and an acquire does not wait for it.
    let error = pool.get::<Fake>("fake").await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. } | Error::Connect(_)), "{error}");
    pool.reconnect("fake").within(SOON).await.unwrap();
    assert_eq!(*pool.get::<Fake>("fake").await.unwrap(), 2);
}

#[tokio::test]
async fn attempt_that_tells_how_far_it_has_come_has_its_limit_for_each_step() {
    let fake = Fake::new("fake");
    let mut options = Options::default();
    options.connect_timeout = Duration::from_secs(1);
    options.retry.attempts = 1;
    let pool = ResourcePool::builder().environment([("", ""); 0]).options(options).build().unwrap();
    pool.register("fake", fake.clone()).unwrap();
    drop(pool.get::<Fake>("fake").await.unwrap());
    let gate = fake.script.gate.lock().insert(Arc::default()).clone();
    fake.script.link.lock().take().unwrap().lost(1, "the wire broke");
    let link = eventually(SOON, async || fake.script.link.lock().clone()).await;
    for step in 0..25 {
        link.progress(format!("{step} of 25 done"));
        let health = pool.health_check().await;
        let error = health.entry("fake").unwrap().error.clone().unwrap();
        assert!(error.contains("the wire broke") && error.ends_with(" of 25 done"), "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    gate.notify_one();
    until_async(SOON, async || state(&pool, "fake") == State::Ready).await;
    assert_eq!(fake.script.connects.load(Ordering::SeqCst), 2, "one attempt for each generation");

    // A step without progress gets the limit once more. Its error then names the last progress.
    link.progress("nothing: that attempt is over");
    link.lost(2, "the wire broke");
    until_async(SOON, async || fake.script.connects.load(Ordering::SeqCst) == 3).await;
    fake.script.link.lock().clone().unwrap().progress("1 of 25 done");
    let waiting = pool.get::<Fake>("fake").await.unwrap_err().to_string();
    assert!(waiting.contains("no answer within 1.0s after 1 of 25 done"), "{waiting}");
}

#[tokio::test]
async fn reconnect_in_an_outage_leaves_somebody_to_bring_it_back() {
    let fake = Fake::new("fake");
    let pool = with(&fake);
    drop(pool.get::<Fake>("fake").await.unwrap());
    *fake.script.connect.lock() = Does::Fail;
    fake.script.link.lock().clone().unwrap().lost(1, "the wire broke");
    until_async(SOON, async || state(&pool, "fake") == State::Broken).await;
    assert!(pool.reconnect("fake").within(SOON).await.is_err());
    *fake.script.connect.lock() = Does::Work;
    // Nobody acquires it.
    until_async(SOON, async || state(&pool, "fake") == State::Ready).await;
}

#[tokio::test]
async fn loss_of_an_overtaken_connection_is_not_the_next_ones() {
    let fake = Fake::new("fake");
    *fake.script.gate.lock() = Some(Arc::default());
    // The attempt lasts until the close cuts it.
    let pool = pool_with(|options| {
        (options.acquire_timeout, options.connect_timeout, options.retry.budget) = (LONG, LONG, LONG);
        options.close.step = Duration::from_millis(50);
    });
    pool.register("fake", fake.clone()).unwrap();
    let acquiring = tokio::spawn({
        let pool = pool.clone();
        async move { pool.get::<Fake>("fake").await.map(drop) }
    });
    let overtaken = eventually(SOON, async || fake.script.link.lock().clone()).await;
    let generation = overtaken.generation();
    pool.close("fake").within(SOON).await.unwrap();
    assert!(matches!(acquiring.within(SOON).await.unwrap(), Err(Error::Closed { .. })));
    *fake.script.gate.lock() = None;
    pool.reconnect("fake").within(SOON).await.unwrap();
    assert_eq!(*pool.get::<Fake>("fake").await.unwrap(), generation);
    overtaken.lost(generation, "nobody has it any more");
    assert_eq!((state(&pool, "fake"), fake.script.cuts.load(Ordering::SeqCst)), (State::Ready, 0));
    fake.script.link.lock().clone().unwrap().lost(generation, "the wire broke");
    until_async(SOON, async || fake.script.cuts.load(Ordering::SeqCst) > 0).await;
}

#[tokio::test]
async fn goodbye_to_what_is_lost_is_said_to_its_end() {
    let fake = Fake::new("fake");
    let pool = with(&fake);
    drop(pool.get::<Fake>("fake").await.unwrap());
    *fake.script.close.lock() = Does::Slow;
    fake.script.link.lock().clone().unwrap().lost(1, "the wire broke");
    until_async(SOON, async || fake.script.closes.load(Ordering::SeqCst) == 1).await;
    pool.close_all().within(SOON).await;
    assert_eq!(fake.script.closed.load(Ordering::SeqCst), fake.script.closes.load(Ordering::SeqCst));
}

#[tokio::test]
async fn acquire_that_is_dropped_waits_no_more() {
    let fake = Fake::new("fake");
    let gate = Arc::new(Notify::new());
    *fake.script.gate.lock() = Some(Arc::clone(&gate));
    let pool = pool_with(|options| {
        (options.acquire_timeout, options.connect_timeout, options.retry.budget) = (LONG, LONG, LONG);
    });
    pool.register("fake", fake.clone()).unwrap();
    let waiting = |count| {
        let pool = &pool;
        until_async(SOON, async move || pool.status().resource("fake").unwrap().connecting == count)
    };
    let mut acquiring = Box::pin(pool.get::<Fake>("fake"));
    assert!(futures_util::poll!(acquiring.as_mut()).is_pending());
    waiting(1).await;
    drop(acquiring);
    waiting(0).await;
    gate.notify_one();
    until_async(SOON, async || state(&pool, "fake") == State::Ready).await;

    // A close that has begun goes on, however soon its caller gives up.
    assert!(pool.close("fake").await.unwrap().all_closed());
    let mut reconnecting = Box::pin(pool.reconnect("fake"));
    assert!(futures_util::poll!(reconnecting.as_mut()).is_pending());
    drop(reconnecting);
    gate.notify_one();
    until_async(SOON, async || state(&pool, "fake") == State::Ready).await;
}

#[tokio::test]
async fn hook_that_is_accepted_runs() {
    for _ in 0..200 {
        let pool = pool();
        let ran = Arc::new(AtomicBool::new(false));
        let both = Arc::new(Barrier::new(2));
        let accepting = thread::spawn({
            let (pool, ran, both) = (pool.clone(), Arc::clone(&ran), Arc::clone(&both));
            move || {
                both.wait();
                let run = move || {
                    ran.store(true, Ordering::SeqCst);
                    Ok(())
                };
                pool.on_close("hook", Phase::Files, run)
            }
        });
        both.wait();
        pool.close_all().within(SOON).await;
        let accepted = accepting.join().unwrap();
        match accepted {
            Ok(()) => assert!(ran.load(Ordering::SeqCst), "accepted, and never run"),
            Err(error) => assert!(error.is_closed() && !ran.load(Ordering::SeqCst), "{error}"),
        }
    }
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn nothing_begins_in_a_closed_pool() {
    // The global pool makes nothing before it is asked for.
    let pool = ResourcePool::global();
    pool.close_all().await;
    for (name, warmed) in pool.warm_up(["redis"]).await {
        assert!(matches!(warmed, Err(Error::Closed { .. })), "{name}: {warmed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn pauses_between_attempts_differ_and_are_within_the_cap() {
    let pool = pool_here(|options| {
        (options.retry.attempts, options.retry.base, options.retry.cap) =
            (30, Duration::from_secs(1), Duration::from_secs(1));
        (options.retry.budget, options.acquire_timeout) = (Duration::MAX, Duration::MAX);
    });
    let fake = Fake::new("fake");
    *fake.script.connect.lock() = Does::Fail;
    pool.register("fake", fake).unwrap();
    let Err(Error::Connect(error)) = pool.get::<Fake>("fake").await else { panic!() };
    assert_eq!(error.attempts, 30);
    let pauses = Duration::from_secs(29);
    assert!(error.elapsed > pauses / 2 && error.elapsed < pauses, "{:?} of pauses", error.elapsed);
}

#[tokio::test]
async fn startup_is_over_once_it_was_connected() {
    let fake = Fake::new("fake");
    *fake.script.connect.lock() = Does::FailForGood;
    let pool = pool_with(|options| options.health.cache = Duration::ZERO);
    pool.register("fake", fake.clone()).unwrap();
    assert_eq!(pool.health_check().await.startup(), Health::Pass, "nobody has asked for it yet");
    assert!(pool.get::<Fake>("fake").await.is_err());
    assert_eq!(pool.health_check().await.startup(), Health::Fail);
    *fake.script.connect.lock() = Does::Work;
    until_async(SOON, async || pool.health_check().await.startup() == Health::Pass).await;
    assert_eq!(state(&pool, "fake"), State::Ready);
    *fake.script.connect.lock() = Does::Fail;
    fake.script.link.lock().clone().unwrap().lost(1, "the wire broke");
    let report = pool.health_check().await;
    assert_eq!((report.readiness(), report.startup()), (Health::Fail, Health::Pass), "{report}");
}

#[tokio::test]
async fn run_is_refused_where_it_would_block_a_runtime() {
    let ran = AtomicBool::new(false);
    let refused = blocking::run(|| ran.store(true, Ordering::SeqCst));
    assert!(matches!(refused, Err(Error::InAsyncContext { .. })), "{refused:?}");
    assert!(!ran.load(Ordering::SeqCst));
}

#[test]
fn error_tells_the_drivers_and_has_it_as_its_source() {
    let driver: Source = Arc::new(io::Error::new(io::ErrorKind::BrokenPipe, "no answer"));
    let (resource, endpoint, action) = (Arc::from("fake"), Arc::from("fake://fake"), "asking".to_owned());
    let nowhere = Error::Lost { resource: Arc::clone(&resource), endpoint: Arc::from(""), source: Arc::clone(&driver) };
    for (error, told) in [
        (nowhere, "fake: connection lost: no answer"),
        (
            Error::Lost { resource: Arc::clone(&resource), endpoint, source: Arc::clone(&driver) },
            "fake at fake://fake: connection lost: no answer",
        ),
        (
            Error::Operation { resource: Arc::clone(&resource), action: action.clone(), source: Arc::clone(&driver) },
            "fake: asking: no answer",
        ),
        (Error::OutcomeUnknown { resource, action, source: driver }, "fake: asking: the outcome is unknown: no answer"),
    ] {
        assert_eq!(error.to_string(), told);
        let source = error.source().and_then(|source| source.downcast_ref::<io::Error>()).unwrap();
        assert_eq!(source.kind(), io::ErrorKind::BrokenPipe);
    }
}

/// An error whose text leaves the cause out, as some drivers' errors do.
#[derive(Debug)]
struct DbError(io::Error);

impl DbError {
    const CAUSE: &str = "password authentication failed";

    fn new() -> Self {
        DbError(io::Error::new(io::ErrorKind::PermissionDenied, Self::CAUSE))
    }
}

impl std::fmt::Display for DbError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("db error")
    }
}

impl std::error::Error for DbError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// The duration of an attempt to connect, and its error. Without an error the attempt never ends.
type Try = (Duration, Option<&'static str>);

/// A resource that connects after all its attempts. Its pings fail.
#[derive(Clone)]
struct Tries(Arc<Mutex<Vec<Try>>>);

impl Tries {
    fn new(mut tries: Vec<Try>) -> Self {
        tries.reverse();
        Tries(Arc::new(Mutex::new(tries)))
    }
}

impl Resource for Tries {
    type Handle = ();

    async fn connect(&self, _: &Link) -> Result<(), Failure> {
        let next = self.0.lock().pop();
        match next {
            Some((took, Some(text))) => {
                tokio::time::sleep(took).await;
                Err(if text.is_empty() { DbError::new().into() } else { text.into() })
            }
            Some((_, None)) => std::future::pending().await,
            None => Ok(()),
        }
    }

    async fn ping(&self, (): &()) -> Result<(), Failure> {
        Err(Failure::refused(DbError::new()))
    }

    async fn close(&self, (): ()) -> Result<(), Failure> {
        Ok(())
    }
}

#[tokio::test]
async fn error_tells_the_causes_that_a_driver_leaves_out_and_each_once() {
    let source: Source = Arc::new(DbError::new());
    assert_eq!(source.to_string(), "db error", "the control: its own text leaves the cause out");
    let (resource, action) = (Arc::<str>::from("fake"), "asking".to_owned());
    let lost = Error::Lost { resource: Arc::clone(&resource), endpoint: "fake://".into(), source: Arc::clone(&source) };
    let pool = pool_with(|options| {
        (options.connect_timeout, options.retry.budget, options.retry.attempts) = (LONG, LONG, 1);
        patient_health(options);
    });
    pool.register("refused", Tries::new(vec![(Duration::ZERO, Some(""))])).unwrap();
    let never = (Duration::ZERO, None);
    pool.register("slow", Tries::new(vec![(Duration::ZERO, Some("")), never])).unwrap();
    let connect = pool.get::<Tries>("refused").await.unwrap_err();
    drop(pool.get::<Tries>("slow").await.unwrap_err());
    // After the circuit's pause a new attempt begins that reports nothing more.
    let timeout = eventually(SOON, async || {
        let waited = pool.within(Duration::from_millis(100)).get::<Tries>("slow").await;
        waited.err().filter(|error| matches!(error, Error::Timeout(_)))
    });
    for error in [
        connect,
        timeout.await,
        lost.clone(),
        Error::Operation { resource: Arc::clone(&resource), action: action.clone(), source: Arc::clone(&source) },
        Error::OutcomeUnknown { resource: Arc::clone(&resource), action: action.clone(), source },
        // The pool's own error as the cause of another.
        Error::OutcomeUnknown { resource, action, source: Arc::new(lost) },
    ] {
        let text = error.to_string();
        assert!(text.ends_with("db error: password authentication failed"), "{text}");
        assert_eq!(text.matches(DbError::CAUSE).count(), 1, "{text}");
        assert!(error.source().is_some_and(|source| source.is::<DbError>()), "the driver's own: {error:?}");
        let chain = format!("{:#}", anyhow::Error::from(error));
        assert_eq!(chain.matches("db error").count(), 2, "once by the pool, once by the driver: {chain}");
    }
    drop(eventually(SOON, async || pool.get::<Tries>("refused").await.ok()).await);
    let report = pool.health_check().await;
    let told = report.entry("refused").unwrap().error.clone().unwrap();
    assert_eq!(told, "db error: password authentication failed");
}

/// The budget may leave the last attempt too little time to learn anything.
#[tokio::test(start_paused = true)]
async fn error_of_connecting_is_that_of_an_attempt_that_had_its_time() {
    let (now, hangs) = (Duration::ZERO, None);
    let millis = Duration::from_millis;
    for (tries, attempts, told) in [
        (vec![(now, Some("no such set")), (now, hangs)], 2, "no such set"),
        // The most recent error of an attempt that had its time.
        (vec![(now, Some("no such set")), (now, Some("no such user")), (now, hangs)], 3, "no such user"),
        // A second attempt would need as long.
        (vec![(millis(600), Some("no such set")), (now, hangs)], 1, "no such set"),
        (vec![(now, hangs)], 1, "no answer within"),
    ] {
        let pool = pool_here(|options| {
            (options.connect_timeout, options.retry.budget) = (millis(800), millis(850));
        });
        pool.register("fake", Tries::new(tries)).unwrap();
        let error = pool.get::<Tries>("fake").await.unwrap_err();
        let Error::Connect(inner) = &error else { panic!("{error}") };
        assert!(error.to_string().contains(told), "{error}");
        assert_eq!(inner.attempts, attempts, "{error}");
        assert!(inner.elapsed < SOON, "{error}");
    }
}

#[tokio::test]
async fn closing_follows_phases_and_edges() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let pool = pool();
    for (name, phase) in [
        ("store", Phase::Databases),
        ("cache", Phase::Redis),
        ("index", Phase::Databases),
        ("broker", Phase::RabbitMq),
        ("view", Phase::Databases),
    ] {
        let fake = Fake { phase, ..Fake::new(name) };
        let script = Script { ..Script::default() };
        let fake = Fake { script: Arc::new(script), ..fake };
        pool.register(name, fake.clone()).unwrap();
        drop(pool.get::<Fake>(name).await.unwrap());
        let log = Arc::clone(&log);
        // A step of a later phase logs each close, in real time.
        pool.on_close(&format!("after-{name}"), Phase::Telemetry, move || {
            log.lock().push((name, fake.script.closes.load(Ordering::SeqCst)));
            Ok(())
        })
        .unwrap();
    }
    pool.depends_on("view", "index").unwrap();
    pool.depends_on("index", "store").unwrap();
    assert!(matches!(pool.depends_on("store", "view"), Err(Error::Order(_))), "a cycle");
    assert!(matches!(pool.depends_on("store", "store"), Err(Error::Order(_))), "a cycle of one");
    assert!(matches!(pool.depends_on("store", "cache"), Err(Error::Order(_))), "against the phases");
    assert!(matches!(pool.depends_on("store", "nothing"), Err(Error::UnknownName { .. })));
    let report = pool.close_all().await;
    let order: Vec<_> = report.steps.iter().map(|step| step.name.to_string()).take(5).collect();
    assert_eq!(order, ["broker", "cache", "view", "index", "store"], "{report}");
    assert_eq!(log.lock().len(), 5);
    assert!(log.lock().iter().all(|(_, closes)| *closes == 1), "telemetry is last: {log:?}");
    assert!(report.all_closed(), "{report}");
}

/// The phases already order these. So resources of the same phase still close side by side.
#[test]
fn edges_between_phases_delay_nothing() {
    let pool = blocking::ResourcePool::from(pool());
    let both = Arc::new(Barrier::new(2));
    pool.on_close("feed", Phase::RabbitMq, || Ok(())).unwrap();
    for name in ["store", "archive"] {
        let both = Arc::clone(&both);
        let meet = move || {
            both.wait();
            Ok(())
        };
        pool.on_close(name, Phase::Databases, meet).unwrap();
    }
    pool.depends_on("feed", "store").unwrap();
    let report = pool.close_all().unwrap();
    assert!(report.all_closed(), "{report}");
}

/// Neither many ways between the same two nor a long chain cost more than their number of edges. Either takes a
/// fraction of a second. The limit is for a busy machine, and a hundredth of the time that walking all ways anew would
/// take.
#[test]
fn edges_in_diamonds_and_in_long_chains_are_added_and_closed_at_once() {
    const LAYERS: usize = 20;
    const LINKS: usize = 20_000;
    let pool = blocking::ResourcePool::from(pool());
    let top = |layer: usize| format!("top {layer}");
    for layer in 0..=LAYERS {
        pool.register(&top(layer), Fake::new("top")).unwrap();
        for side in ["left", "right"] {
            pool.register(&format!("{side} {layer}"), Fake::new("side")).unwrap();
        }
    }
    let started = Instant::now();
    for layer in 0..LAYERS {
        for side in ["left", "right"] {
            let side = format!("{side} {layer}");
            pool.depends_on(&top(layer), &side).unwrap();
            pool.depends_on(&side, &top(layer + 1)).unwrap();
        }
    }
    assert!(matches!(pool.depends_on(&top(LAYERS), &top(0)), Err(Error::Order(_))), "a cycle");
    let took = started.elapsed();
    assert!(took < SOON, "diamonds took {took:?}");

    let link = |number: usize| format!("link {number}");
    for number in 0..=LINKS {
        pool.register(&link(number), Fake::new("link")).unwrap();
    }
    let started = Instant::now();
    // One half of the chain grows at its end, and the other half at its beginning.
    for number in (0..LINKS / 2).chain((LINKS / 2..LINKS).rev()) {
        pool.depends_on(&link(number), &link(number + 1)).unwrap();
    }
    assert!(matches!(pool.depends_on(&link(LINKS), &link(0)), Err(Error::Order(_))), "a cycle");
    let took = started.elapsed();
    assert!(took < SOON, "a chain took {took:?}");

    for name in [top(LAYERS), link(LINKS), link(0), top(0)] {
        drop(pool.get::<Fake>(&name).unwrap());
    }
    let report = pool.close_all().unwrap();
    let order: Vec<_> = report.steps.iter().map(|step| step.name.to_string()).collect();
    assert_eq!(order[2..], [top(LAYERS), link(LINKS)], "{report}");
    assert!(report.all_closed(), "{report}");
}

#[test]
fn edges_between_many_closures_are_added_at_once() {
    const LINKS: usize = 20_000;
    // So many steps in a row have too little time to close. stderr need not report them all.
    let pool = blocking::ResourcePool::from(pool_with(|options| options.close.stderr = false));
    let hook = |number: usize| format!("hook {number}");
    for number in 0..=LINKS {
        pool.on_close(&hook(number), Phase::Models, || Ok(())).unwrap();
    }
    let started = Instant::now();
    for number in 0..LINKS {
        pool.depends_on(&hook(number), &hook(number + 1)).unwrap();
    }
    let took = started.elapsed();
    assert!(took < SOON, "{took:?}");
}

#[tokio::test]
async fn step_that_hangs_blocks_or_fails_does_not_stop_the_next() {
    let pool = pool_with(|options| {
        options.close = CloseOptions::default();
        options.close.step = Duration::from_secs(1);
    });
    let fakes = [("a", Does::Hang), ("b", Does::BlockThread), ("c", Does::Fail), ("d", Does::Panic), ("e", Does::Work)];
    for (name, does) in fakes {
        let fake = Fake::new(name);
        *fake.script.close.lock() = does;
        pool.register(name, fake).unwrap();
        drop(pool.get::<Fake>(name).await.unwrap());
    }
    let last = Arc::new(AtomicBool::new(false));
    let ran = Arc::clone(&last);
    pool.on_close("last", Phase::Telemetry, move || {
        ran.store(true, Ordering::SeqCst);
        Err("as scripted".into())
    })
    .unwrap();
    let report = pool.close_all().await;
    assert!(report.took < SOON, "{report}");
    let outcome = |name: &str| report.step(name).unwrap().outcome.clone();
    assert_eq!(outcome("a"), Outcome::TimedOut);
    assert_eq!(outcome("b"), Outcome::TimedOut);
    assert_eq!(outcome("c"), Outcome::Failed("as scripted".to_owned()));
    assert_eq!(outcome("d"), Outcome::Panicked("as scripted".to_owned()));
    assert_eq!(outcome("e"), Outcome::Closed);
    assert_eq!(outcome("last"), Outcome::Failed("as scripted".to_owned()));
    assert!(last.load(Ordering::SeqCst));
    assert!(report.to_string().contains("timed out"), "{report}");
}

#[tokio::test]
async fn deadline_holds_whatever_hangs() {
    let pool = pool();
    for (name, phase) in [("a", Phase::RabbitMq), ("b", Phase::Redis), ("c", Phase::Databases)] {
        let fake = Fake { phase, ..Fake::new(name) };
        *fake.script.close.lock() = Does::Hang;
        pool.register(name, fake).unwrap();
        drop(pool.get::<Fake>(name).await.unwrap());
    }
    let watch = Stopwatch::start();
    let report = pool.close_all_within(Duration::from_secs(2)).await;
    assert!(watch.took() < Duration::from_secs(3), "{report}");
    assert!(report.steps.iter().all(|step| step.outcome != Outcome::Closed), "{report}");
    assert!(pool.worst_case() > CloseOptions::default().deadline);
}

#[tokio::test]
async fn last_phase_gets_its_floor_though_all_before_it_hang() {
    let hang = [
        Phase::Tasks,
        Phase::HttpClients,
        Phase::RabbitMq,
        Phase::Redis,
        Phase::VectorStores,
        Phase::ClickHouse,
        Phase::Databases,
        Phase::Models,
        Phase::Files,
        Phase::TempFiles,
    ];
    let close = async |floor, limit| {
        let pool = pool_with(|options| options.close.floor = Duration::from_millis(floor));
        for phase in hang.into_iter().chain([Phase::Telemetry]) {
            let name = format!("of {phase}");
            let fake = Fake { phase, ..Fake::new("fake") };
            *fake.script.close.lock() = if phase == Phase::Telemetry { Does::Work } else { Does::Hang };
            pool.register(&name, fake).unwrap();
            drop(pool.get::<Fake>(&name).await.unwrap());
        }
        let watch = Stopwatch::start();
        let report = pool.close_all_within(Duration::from_millis(limit)).await;
        assert!(watch.took() < Duration::from_millis(limit + 500), "{report}");
        for phase in hang {
            assert_eq!(report.step(&format!("of {phase}")).unwrap().outcome, Outcome::TimedOut, "{report}");
        }
        assert_eq!(report.step("of telemetry").unwrap().outcome, Outcome::Closed, "{report}");
    };
    // Once with time for every floor, and once with less.
    tokio::join!(close(600, 8000), close(4000, 8000));
}

#[tokio::test]
async fn intake_that_does_not_stop_leaves_time_for_the_goodbye() {
    for limit in [4000, 10_000] {
        let fake = Fake::new("fake");
        *fake.script.stop_intake.lock() = Does::Hang;
        let pool = with(&fake);
        drop(pool.get::<Fake>("fake").await.unwrap());
        let watch = Stopwatch::start();
        let report = pool.close_all_within(Duration::from_millis(limit)).await;
        assert_eq!(report.step("fake").unwrap().outcome, Outcome::Closed, "{report}");
        assert!(watch.took() < Duration::from_millis(limit) / 2 + Duration::from_secs(1), "{report}");
    }
}

#[tokio::test]
async fn drain_waits_for_work_that_goes_on_at_another_resource() {
    let (store, feed) = (Fake::new("a store"), Fake::new("feed"));
    let pool = with(&store);
    pool.register(feed.name, feed.clone()).unwrap();
    for name in ["a store", "feed"] {
        drop(pool.get::<Fake>(name).await.unwrap());
    }
    let link = |fake: &Fake| fake.script.link.lock().clone().unwrap();
    let delivery = link(&feed).busy(Work::Delivery);
    let closed = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close_all().await }
    });
    until_async(SOON, async || ["a store", "feed"].iter().all(|name| state(&pool, name) == State::Draining)).await;
    let insert = link(&store).busy(Work::Operation);
    delivery.done();
    let started = Instant::now();
    until_async(SOON, async || started.elapsed() > Duration::from_millis(200)).await;
    assert!(!closed.is_finished(), "an operation is under way");
    insert.done();
    let report = closed.within(SOON).await.unwrap();
    let step = report.step("a store").unwrap();
    assert_eq!((&step.finished[..], &step.unfinished[..]), (&[(Work::Operation, 1)][..], &[][..]), "{report}");
}

#[tokio::test]
async fn drain_waits_for_work_and_hardly_for_held_leases() {
    let fake = Fake::new("fake");
    let pool = with(&fake);
    let held = pool.get::<Fake>("fake").await.unwrap();
    let line = line!() - 1;
    let link = fake.script.link.lock().clone().unwrap();
    let busy: Busy = link.busy(Work::Confirm);
    let closing = pool.closing();
    let closed = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close_all().await }
    });
    closing.wait().within(SOON).await;
    assert!(pool.is_closing() && closing.is_set());
    assert_eq!(pool.health_check().await.readiness(), Health::Fail);
    // Work that has begun may need a ready resource. Nothing new connects.
    assert!(pool.get::<Fake>("fake").await.is_ok());
    until_async(SOON, async || state(&pool, "fake") == State::Draining).await;
    let started = Instant::now();
    until_async(SOON, async || started.elapsed() > Duration::from_millis(1300)).await;
    assert!(!closed.is_finished(), "a confirm is outstanding");
    drop(busy);
    let report = closed.within(SOON).await.unwrap();
    let step = report.step("fake").unwrap();
    assert_eq!(step.held.len(), 1);
    assert_eq!((step.held[0].site.line(), step.held[0].site.file()), (line, file!()));
    assert!(step.unfinished.is_empty());
    assert_eq!(report.reason, Reason::Requested);
    drop(held);

    // A lease that is only held costs about a second.
    pool.reopen().unwrap();
    let held = pool.get::<Fake>("fake").await.unwrap();
    let watch = Stopwatch::start();
    let report = pool.close_all().await;
    assert!(report.drained >= Duration::from_millis(900), "{report}");
    assert!(watch.took() < Duration::from_secs(2), "{report}");
    drop(held);

    // Without leases there is no wait.
    pool.reopen().unwrap();
    drop(pool.get::<Fake>("fake").await.unwrap());
    let watch = Stopwatch::start();
    let report = pool.close_all().await;
    assert!(watch.took() < Duration::from_millis(500), "{report}");
}

/// The drain ends long before the limit for leases that are merely held.
#[tokio::test]
async fn lease_that_comes_back_ends_the_drain() {
    let fake = Fake::new("fake");
    let pool = pool_with(|options| {
        let long = Duration::from_secs(60);
        (options.close.deadline, options.close.drain, options.close.held) = (2 * long, long, long);
    });
    pool.register("fake", fake).unwrap();
    let held = pool.get::<Fake>("fake").await.unwrap();
    let closed = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close_all().await }
    });
    until_async(SOON, async || state(&pool, "fake") == State::Draining).await;
    // By now the drain waits, and nothing else happens.
    let started = Instant::now();
    until_async(SOON, async || started.elapsed() > Duration::from_millis(200)).await;
    assert!(!closed.is_finished(), "a lease is held");
    drop(held);
    let report = closed.within(Duration::from_secs(20)).await.unwrap();
    assert!(report.all_closed() && report.step("fake").unwrap().held.is_empty(), "{report}");
}

/// The cut ends calls that would wait for an answer of the closed resource.
#[tokio::test]
async fn step_that_does_not_close_is_cut() {
    for (does, cuts) in [(Does::Work, 0), (Does::Fail, 1), (Does::Panic, 1), (Does::Hang, 1), (Does::BlockThread, 1)] {
        let fake = Fake::new("fake");
        let pool = pool_with(|options| {
            if matches!(does, Does::Hang | Does::BlockThread) {
                options.close.step = Duration::from_millis(200);
            }
        });
        pool.register("fake", fake.clone()).unwrap();
        drop(pool.get::<Fake>("fake").await.unwrap());
        *fake.script.close.lock() = does;
        let report = pool.close_all().await;
        assert_eq!(report.all_closed(), does == Does::Work, "{report}");
        assert_eq!(fake.script.cuts.load(Ordering::SeqCst), cuts, "{does:?}: {report}");
    }
}

#[tokio::test]
async fn all_who_close_share_one_report() {
    let fake = Fake::new("fake");
    let pool = with(&fake);
    drop(pool.get::<Fake>("fake").await.unwrap());
    let reports = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&reports);
    pool.on_report(move |report| {
        assert_eq!(report.steps.len(), 1);
        counter.fetch_add(1, Ordering::SeqCst);
    });
    // A caller that gives up at once cancels nothing.
    drop(tokio::time::timeout(Duration::ZERO, pool.close_all()).await);
    let closers: Vec<_> = (0..20)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.close_all().await.steps.len() })
        })
        .collect();
    for closer in closers {
        assert_eq!(closer.within(SOON).await.unwrap(), 1);
    }
    assert_eq!(fake.script.closes.load(Ordering::SeqCst), 1);
    until_async(SOON, async || reports.load(Ordering::SeqCst) == 1).await;
}

#[test]
fn own_pool_closes_with_its_last_handle() {
    let fake = Fake::new("fake");
    let pool = blocking::ResourcePool::from(with(&fake));
    let other = pool.clone().as_async();
    drop(pool.get::<Fake>("fake").unwrap());
    drop(pool);
    assert_eq!(fake.script.closes.load(Ordering::SeqCst), 0);
    // In async code a drop may neither block nor need a runtime of its own.
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async move { drop(other) });
    until(SOON, || fake.script.closes.load(Ordering::SeqCst) == 1);
}

#[tokio::test]
async fn adopted_clients_are_held_weakly() {
    let pool = pool();
    let (alive, gone) = (Arc::new("alive"), Arc::new("gone"));
    let closed = Arc::new(Mutex::new(Vec::new()));
    for client in [&alive, &gone] {
        let closed = Arc::clone(&closed);
        let close = move |client: Arc<&'static str>| {
            closed.lock().push(*client);
            Ok(())
        };
        pool.adopt(client, client, Phase::Databases, close).unwrap();
    }
    drop(gone);
    let report = pool.close_all().await;
    assert_eq!(*closed.lock(), ["alive"]);
    assert_eq!(report.steps.len(), 1, "{report}");
}

/// The panic reaches no other user.
#[test]
fn closure_of_a_client_that_is_gone_may_panic_as_it_drops() {
    struct Brittle;
    impl Drop for Brittle {
        fn drop(&mut self) {
            panic!("as it drops");
        }
    }
    let pool = blocking::ResourcePool::from(pool());
    let adopt = |client: &Arc<()>| {
        let held = Brittle;
        let close = move |_| {
            // The value is forgotten so that only the closures that never run panic as they drop.
            std::mem::forget(held);
            Ok(())
        };
        pool.adopt("client", client, Phase::Databases, close).unwrap();
    };
    let alive = Arc::new(());
    // The next `adopt` drops some closures of clients that are gone. Closing drops the others.
    for _ in 0..4 {
        adopt(&Arc::new(()));
    }
    adopt(&alive);
    let report = pool.close_all().unwrap();
    assert!(report.all_closed(), "{report}");
    assert_eq!(report.steps.len(), 1, "{report}");
}

/// Each `adopt` takes as long as the first.
#[test]
fn adopted_clients_are_no_dearer_the_more_there_are() {
    let pool = blocking::ResourcePool::from(pool());
    let started = Instant::now();
    let clients: Vec<_> = (0..20_000)
        .map(|number| {
            let client = Arc::new(number);
            pool.adopt("client", &client, Phase::Databases, |_| Ok(())).unwrap();
            client
        })
        .collect();
    let took = started.elapsed();
    assert!(took < SOON, "{took:?} for {}", clients.len());
    // Closures of clients that are gone do not pile up. They are dropped on another thread.
    let closure = Arc::new(());
    for _ in 0..100_000 {
        let held = Arc::clone(&closure);
        let close = move |_| {
            drop(held);
            Ok(())
        };
        pool.adopt("gone", &Arc::new(()), Phase::Databases, close).unwrap();
    }
    until(SOON, || Arc::strong_count(&closure) <= 1 + clients.len());
    drop(clients);
    assert!(pool.close_all().unwrap().steps.is_empty());
}

#[tokio::test]
async fn holders_and_leaks_name_the_line() {
    let fake = Fake::new("fake");
    let pool = with(&fake);
    let mut leases = Vec::new();
    for _ in 0..6 {
        leases.push(pool.get::<Fake>("fake").await.unwrap());
    }
    let line = line!() - 2;
    assert!(pool.check_leak(6).is_empty());
    let leaks = pool.check_leak(5);
    assert_eq!(leaks.len(), 6);
    assert!(leaks.iter().all(|holder| holder.site.line() == line && !holder.exclusive), "{leaks:?}");
    assert!(leaks.windows(2).all(|two| two[0].held >= two[1].held), "the oldest first");
    leases.clear();
    assert!(pool.holders().is_empty());
}

#[tokio::test]
async fn names_are_taken_or_unknown() {
    let pool = with(&Fake::new("fake"));
    assert!(matches!(pool.register("fake", Plain), Err(Error::NameTaken { .. })));
    assert!(matches!(pool.get::<Plain>("fake").await, Err(Error::NameTaken { .. })));
    let error = pool.get::<Fake>("fakke").await.unwrap_err();
    assert!(matches!(error, Error::UnknownName { .. }) && error.to_string().contains("fake"), "{error}");
    assert!(matches!(pool.close("nothing").await, Err(Error::UnknownName { .. })));
    assert!(!pool.is_healthy("nothing").await);
    assert!(!pool.is_healthy("fake").await, "never used");
    assert_eq!(pool.health_check().await.entry("fake").unwrap().health, Health::Unknown);
    assert!(pool.health_check().await.is_healthy(), "never used does not make the whole unhealthy");
}

#[tokio::test]
async fn warm_up_connects_side_by_side() {
    let pool = pool();
    let fakes = [Fake::new("a"), Fake::new("b")];
    for fake in &fakes {
        *fake.script.gate.lock() = Some(Arc::default());
        pool.register(fake.name, fake.clone()).unwrap();
    }
    let warming = tokio::spawn({
        let pool = pool.clone();
        async move { pool.warm_up(["a", "b", "nothing"]).await }
    });
    until_async(SOON, async || fakes.iter().all(|fake| fake.script.connects.load(Ordering::SeqCst) == 1)).await;
    fakes.iter().for_each(|fake| fake.script.gate.lock().as_ref().unwrap().notify_one());
    let results = warming.within(SOON).await.unwrap();
    assert_eq!(results.iter().map(|(_, result)| result.is_ok()).collect::<Vec<_>>(), [true, true, false]);
}

#[tokio::test]
async fn closes_of_one_and_of_all_wait_for_each_other() {
    let fake = Fake::new("fake");
    let pool = with(&fake);
    pool.on_close("hook", Phase::Telemetry, || Ok(())).unwrap();
    drop(pool.get::<Fake>("fake").await.unwrap());
    let busy = fake.script.link.lock().clone().unwrap().busy(Work::Operation);
    let close = |pool: &ResourcePool| {
        let pool = pool.clone();
        tokio::spawn(async move { pool.close("fake").await.unwrap() })
    };
    let (first, second) = (close(&pool), close(&pool));
    until_async(SOON, async || state(&pool, "fake") == State::Draining).await;
    let all = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close_all().await }
    });
    pool.closing().wait().within(SOON).await;
    let third = close(&pool);
    drop(busy);
    let (first, second) = (first.within(SOON).await.unwrap(), second.within(SOON).await.unwrap());
    assert_eq!((first.steps.len(), second.steps.len()), (1, 1), "they share one report");
    assert!(first.step("hook").is_none(), "hooks are for closing all");
    let all = all.within(SOON).await.unwrap();
    assert_eq!(all.steps.iter().map(|step| &*step.name).collect::<Vec<_>>(), ["hook", "fake"], "{all}");
    assert_eq!(all.step("fake").unwrap().finished, [], "{all}");
    assert!(third.within(SOON).await.unwrap().step("hook").is_some(), "the pool's own report");
    assert_eq!(state(&pool, "fake"), State::Closed);
    assert_eq!(fake.script.closes.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn whoever_closes_one_while_all_closes_is_told_of_it() {
    let fake = Fake::new("fake");
    let pool = with(&fake);
    for times in 1..=100 {
        drop(pool.get::<Fake>("fake").await.unwrap());
        let one = tokio::spawn({
            let pool = pool.clone();
            async move { pool.close("fake").await.unwrap() }
        });
        tokio::task::yield_now().await;
        let all = pool.close_all().within(SOON).await;
        let one = one.within(SOON).await.unwrap();
        assert_eq!(one.step("fake").map(|step| step.outcome.clone()), Some(Outcome::Closed), "{one}{all}");
        assert!(all.all_closed() && all.steps.len() <= 1, "{all}");
        assert_eq!(fake.script.closes.load(Ordering::SeqCst), times);
        pool.reopen().unwrap();
    }
}

#[tokio::test]
async fn close_of_one_that_outlasts_the_close_of_all_is_told_as_such() {
    let fake = Fake::new("fake");
    *fake.script.close.lock() = Does::Hang;
    let pool = with(&fake);
    drop(pool.get::<Fake>("fake").await.unwrap());
    let one = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close("fake").await.unwrap() }
    });
    until_async(SOON, async || fake.script.closes.load(Ordering::SeqCst) == 1).await;
    let all = pool.close_all_within(Duration::from_millis(500)).within(SOON).await;
    assert_eq!(all.step("fake").unwrap().outcome, Outcome::TimedOut, "{all}");
    // The limit covers a step's budget and the grace after it.
    assert!(!one.within(SOON * 2).await.unwrap().all_closed());
}

/// A resource whose handles drop only once they may, when the resource is known to be closed.
#[derive(Clone, Default)]
struct Lingering {
    may_drop: Arc<AtomicBool>,
    closes: Arc<AtomicUsize>,
}

struct LingeringHandle(Arc<AtomicBool>);

impl Drop for LingeringHandle {
    fn drop(&mut self) {
        until(SOON, || self.0.load(Ordering::SeqCst));
    }
}

impl Resource for Lingering {
    type Handle = Arc<LingeringHandle>;
    async fn connect(&self, _: &Link) -> Result<Arc<LingeringHandle>, Failure> {
        Ok(Arc::new(LingeringHandle(Arc::clone(&self.may_drop))))
    }
    async fn ping(&self, _: &Arc<LingeringHandle>) -> Result<(), Failure> {
        Ok(())
    }
    async fn close(&self, _: Arc<LingeringHandle>) -> Result<(), Failure> {
        self.closes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

#[tokio::test]
async fn what_is_connected_anew_before_its_close_has_ended_closes_with_all() {
    let lingering = Lingering::default();
    let pool = pool();
    pool.register("lingering", lingering.clone()).unwrap();
    drop(pool.get::<Lingering>("lingering").await.unwrap());
    let one = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close("lingering").await.unwrap() }
    });
    until_async(SOON, async || state(&pool, "lingering") == State::Closed).await;
    pool.reconnect("lingering").within(SOON).await.unwrap();
    let all = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close_all().await }
    });
    pool.closing().wait().within(SOON).await;
    lingering.may_drop.store(true, Ordering::SeqCst);
    one.within(SOON).await.unwrap();
    let all = all.within(SOON).await.unwrap();
    assert_eq!(state(&pool, "lingering"), State::Closed, "{all}");
    assert_eq!((lingering.closes.load(Ordering::SeqCst), all.steps.len()), (2, 1), "{all}");
}

#[tokio::test]
async fn a_report_has_how_full_a_resource_was_and_what_it_left_undone() {
    let fake = Fake::new("fake");
    let pool = with(&fake);
    drop(pool.get::<Fake>("fake").await.unwrap());
    let link = fake.script.link.lock().clone().unwrap();
    let _undone = link.busy(Work::Operation);
    let report = pool.close_all_within(Duration::from_millis(200)).within(SOON).await;
    assert_eq!(report.status.resource("fake").unwrap().usage, full());
    assert_eq!(report.step("fake").unwrap().unfinished, [(Work::Operation, 1)], "{report}");
}

/// The grace after a cut comes out of the time that is left.
#[tokio::test]
async fn a_step_with_hardly_any_time_is_cut_and_in_the_report() {
    let fake = Fake::new("fake");
    let pool = with(&fake);
    drop(pool.get::<Fake>("fake").await.unwrap());
    *fake.script.close.lock() = Does::Hang;
    let report = pool.close_all_within(Duration::from_millis(30)).within(SOON).await;
    let step = report.step("fake").unwrap();
    assert!(matches!(step.outcome, Outcome::TimedOut | Outcome::Forced), "{report}");
    assert!(step.took > Duration::ZERO && fake.script.cuts.load(Ordering::SeqCst) > 0, "{report}");
}

/// Work that the closing code of an earlier phase leaves at a resource gets half of the step's time. The disconnect
/// gets the other half.
#[tokio::test]
async fn what_is_left_undone_by_closing_code_leaves_time_for_the_goodbye() {
    let fake = Fake::new("fake");
    let mut options = Options::default();
    options.close.step = Duration::from_millis(400);
    let pool = ResourcePool::builder().environment([("", ""); 0]).options(options).build().unwrap();
    pool.register(fake.name, fake.clone()).unwrap();
    drop(pool.get::<Fake>("fake").await.unwrap());
    let link = fake.script.link.lock().clone().unwrap();
    let undone = Arc::new(Mutex::new(None));
    let leaves = Arc::clone(&undone);
    let leave = move || {
        *leaves.lock() = Some(link.busy(Work::Row));
        Ok(())
    };
    pool.on_close("early", Phase::Tasks, leave).unwrap();
    let report = pool.close_all().within(SOON).await;
    let step = report.step("fake").unwrap();
    assert_eq!((&step.outcome, &step.unfinished[..]), (&Outcome::Closed, &[(Work::Row, 1)][..]), "{report}");
    drop(undone);
}

/// A resource whose disconnect never ends, and which blocks its thread for a while at each poll.
#[derive(Clone, Default)]
struct Busybody(Arc<()>);

impl Resource for Busybody {
    type Handle = ();

    async fn connect(&self, _: &Link) -> Result<(), Failure> {
        Ok(())
    }

    async fn ping(&self, (): &()) -> Result<(), Failure> {
        Ok(())
    }

    async fn close(&self, (): ()) -> Result<(), Failure> {
        let _goodbye = Arc::clone(&self.0);
        loop {
            // That is the driver's own work and its own timer. It waits for no condition.
            thread::sleep(Duration::from_millis(30));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn cut(&self, (): &()) {}
}

/// A timer panics if its runtime has ended.
#[test]
fn a_goodbye_that_is_given_up_never_finds_its_runtime_gone() {
    if let Some(ended) = common::alone("a_goodbye_that_is_given_up_never_finds_its_runtime_gone") {
        assert!(ended.success(), "{ended}");
        return;
    }
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    std::panic::set_hook(Box::new(|_| {
        PANICS.fetch_add(1, Ordering::SeqCst);
    }));
    for _ in 0..5 {
        let pool = blocking::ResourcePool::from(pool());
        let busybody = Busybody::default();
        pool.register("busybody", busybody.clone()).unwrap();
        drop(pool.get::<Busybody>("busybody").unwrap());
        let report = pool.close_all_within(Duration::from_millis(100)).unwrap();
        assert_eq!(report.step("busybody").unwrap().outcome, Outcome::TimedOut, "{report}");
        drop(pool);
        until(SOON, || Arc::strong_count(&busybody.0) == 1);
    }
    assert_eq!(PANICS.load(Ordering::SeqCst), 0);
}

#[test]
fn nothing_of_a_pools_runtime_is_left_once_all_is_closed() {
    if let Some(ended) = common::alone("nothing_of_a_pools_runtime_is_left_once_all_is_closed") {
        assert!(ended.success(), "{ended}");
        return;
    }
    let pool = blocking::ResourcePool::from(with(&Fake::new("fake")));
    drop(pool.get::<Fake>("fake").unwrap());
    let workers = || common::threads().iter().filter(|name| name.starts_with("resource-pool-i")).count();
    assert!(workers() >= 2, "{:?}", common::threads());
    assert!(pool.close_all().unwrap().all_closed());
    until(SOON, || workers() == 0);
}

#[tokio::test]
async fn usage_that_hangs_holds_no_close() {
    for whole in [true, false] {
        let fake = Fake::new("fake");
        let pool = with(&fake);
        drop(pool.get::<Fake>("fake").await.unwrap());
        assert_eq!(pool.status().resource("fake").unwrap().usage, full());
        *fake.script.looks.lock() = Does::Hang;
        let mut known = Usage::default();
        known.counters = full().counters;
        let close = async { if whole { pool.close_all().await } else { pool.close("fake").await.unwrap() } };
        let report = tokio::time::timeout(SOON, close).await.expect("closing does not wait for it");
        assert!(report.all_closed(), "{report}");
        assert!(report.took < CloseOptions::default().step, "{report}");
        let status = report.status.resource("fake").unwrap();
        assert_eq!((status.state, status.generation, status.usage), (State::Ready, 1, known));
        assert_eq!(pool.status().resource("fake").unwrap().usage, known, "after the close");
    }
}

/// Nothing waits for the counts of a lost handle, and one thread at most hangs with them.
#[test]
fn usage_that_hangs_holds_no_recovery() {
    if let Some(ended) = common::alone("usage_that_hangs_holds_no_recovery") {
        return assert!(ended.success(), "{ended}");
    }
    let fake = Fake::new("fake");
    let pool = pool_with(|options| {
        options.probe.enabled = false;
        options.connect_timeout = Duration::from_millis(100);
    });
    pool.register("fake", fake.clone()).unwrap();
    let pool = blocking::ResourcePool::from(pool);
    drop(pool.get::<Fake>("fake").unwrap());
    *fake.script.looks.lock() = Does::Hang;
    for generation in 2..=6 {
        pool.reconnect("fake").unwrap();
        assert_eq!(*pool.get::<Fake>("fake").unwrap(), generation);
    }
    let hanging = || common::threads().iter().filter(|name| name.starts_with("resource-pool-b")).count();
    until(SOON, || hanging() == 1);
}

/// The lost handle is asked for its counts, though nobody has asked for a status before.
#[tokio::test]
async fn counts_of_a_lost_handle_are_added() {
    let fake = Fake::new("fake");
    let pool = with(&fake);
    let opened = || pool.status().resource("fake").unwrap().usage.counters.opened;
    drop(pool.get::<Fake>("fake").await.unwrap());
    pool.reconnect("fake").await.unwrap();
    until_async(SOON, async || opened() == Some(2)).await;
    *fake.script.looks.lock() = Does::Panic;
    assert_eq!(opened(), Some(2), "a panic takes nothing away");
}

#[tokio::test]
async fn panics_in_looks_and_cuts_harm_nobody() {
    let fake = Fake::new("fake");
    let pool = with(&fake);
    drop(pool.get::<Fake>("fake").await.unwrap());
    *fake.script.looks.lock() = Does::Panic;
    assert_eq!(state(&pool, "fake"), State::Ready);
    fake.script.link.lock().clone().unwrap().lost(1, "the wire broke");
    until_async(SOON, async || state(&pool, "fake") == State::Ready).await;
    assert_eq!(*pool.get::<Fake>("fake").await.unwrap(), 2);
    assert!(pool.close_all_within(Duration::MAX).within(SOON).await.all_closed());
    assert!(matches!(pool.within(Duration::MAX).get::<Fake>("fake").await, Err(Error::Closed { .. })));
}

#[tokio::test]
async fn loss_while_connecting_is_not_forgotten() {
    let fake = Fake::new("fake");
    let gate = Arc::new(Notify::new());
    *fake.script.gate.lock() = Some(Arc::clone(&gate));
    let pool = with(&fake);
    let acquiring = tokio::spawn({
        let pool = pool.clone();
        async move { pool.get::<Fake>("fake").await.map(|lease| *lease) }
    });
    until_async(SOON, async || fake.script.link.lock().is_some()).await;
    let link = fake.script.link.lock().clone().unwrap();
    link.lost(link.generation(), "closed in the handshake's wake");
    *fake.script.gate.lock() = None;
    gate.notify_one();
    until_async(SOON, async || pool.status().resource("fake").unwrap().generation == 2).await;
    let acquired = acquiring.within(SOON).await.unwrap();
    assert!(acquired.is_ok() || matches!(acquired, Err(Error::Lost { .. })), "{acquired:?}");
    assert_eq!(*pool.get::<Fake>("fake").await.unwrap(), 2);
}

#[tokio::test]
async fn health_has_a_failed_resource_tried_again() {
    let fake = Fake::new("fake");
    *fake.script.connect.lock() = Does::FailForGood;
    let pool = with(&fake);
    assert!(pool.get::<Fake>("fake").await.is_err());
    assert_eq!(pool.health_check().await.readiness(), Health::Fail);
    *fake.script.connect.lock() = Does::Work;
    // Nobody acquires it any more, and it comes back nevertheless.
    until_async(SOON, async || pool.health_check().await.readiness() == Health::Pass).await;
}

#[tokio::test]
async fn health_checks_of_one_task_do_not_wait_for_each_other() {
    let fake = Fake::new("fake");
    let pool = with(&fake);
    drop(pool.get::<Fake>("fake").await.unwrap());
    *fake.script.ping.lock() = Does::Hang;
    let mut first = std::pin::pin!(pool.health_check());
    assert!(futures_util::poll!(first.as_mut()).is_pending());
    // The first check is not polled while the second is awaited.
    assert!(!pool.is_healthy("fake").within(SOON).await);
    assert!(!first.await.is_healthy());
}

#[test]
fn loss_on_a_runtime_that_has_ended_leaves_nobody_waiting() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let pool = ResourcePool::builder().environment([("", ""); 0]).runtime(runtime.handle().clone()).build().unwrap();
    let fake = Fake::new("fake");
    pool.register("fake", fake.clone()).unwrap();
    drop(runtime.block_on(pool.get::<Fake>("fake")).unwrap());
    drop(runtime);
    let link = fake.script.link.lock().clone().unwrap();
    link.lost(1, "the wire broke");
    assert_eq!(state(&pool, "fake"), State::Broken, "nobody can connect there");
    assert!(blocking::ResourcePool::from(pool).get::<Fake>("fake").is_err());
}

/// A resource that logs the ends of its pings and disconnects, in order.
#[derive(Clone, Default)]
struct Told {
    log: Arc<Mutex<Vec<&'static str>>>,
    pinging: Arc<AtomicBool>,
    goes_on: Arc<Notify>,
}

impl Resource for Told {
    type Handle = ();

    async fn connect(&self, _: &Link) -> Result<(), Failure> {
        Ok(())
    }

    async fn ping(&self, (): &()) -> Result<(), Failure> {
        self.pinging.store(true, Ordering::SeqCst);
        self.goes_on.notified().await;
        self.log.lock().push("the ping has ended");
        Ok(())
    }

    async fn close(&self, (): ()) -> Result<(), Failure> {
        self.log.lock().push("goodbye");
        Ok(())
    }
}

#[test]
fn goodbye_waits_for_the_ping_that_is_under_way() {
    let told = Told::default();
    let pool: blocking::ResourcePool = pool_with(|options| {
        (options.probe.interval, options.probe.limit) = (Duration::from_millis(1), LONG);
    })
    .into();
    // Both close side by side, and the neighbour's disconnect takes longer.
    let neighbour = Fake::new("neighbour");
    *neighbour.script.close.lock() = Does::Slow;
    pool.register("told", told.clone()).unwrap();
    pool.register("neighbour", neighbour.clone()).unwrap();
    drop((pool.get::<Told>("told").unwrap(), pool.get::<Fake>("neighbour").unwrap()));
    until(SOON, || told.pinging.load(Ordering::SeqCst));
    thread::scope(|scope| {
        let closing = scope.spawn(|| pool.close_all().unwrap());
        until(SOON, || neighbour.script.closed.load(Ordering::SeqCst) == 1);
        told.goes_on.notify_one();
        assert!(closing.join().unwrap().all_closed());
    });
    assert_eq!(told.log.lock()[..], ["the ping has ended", "goodbye"]);
}
