//! Exclusive checkouts by tasks, from a fake driver that does what a test says.
//!
//! The fake server's counters are atomics, which are all SeqCst.

#![cfg(feature = "checkouts")]
#![allow(missing_docs)]

mod common;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use common::{Stopwatch, until};
use resource_pool::adapter::{Checkout, Checkouts, Claim, LeaseAs, Limits, Manage, Quota};
use resource_pool::config::Options;
use resource_pool::{Counters, Error, Failure, Health, Link, Outcome, Phase, Resource, ResourcePool, Usage, What};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A guard against hanging.
const SOON: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Does {
    Work,
    Fail,
    Panic,
    Hang,
}

/// The script of one of the driver's calls, and how often it was begun, given up and ended.
struct Call {
    does: watch::Sender<Does>,
    begun: AtomicUsize,
    over: AtomicUsize,
}

impl Default for Call {
    fn default() -> Self {
        Call { does: watch::Sender::new(Does::Work), begun: AtomicUsize::new(0), over: AtomicUsize::new(0) }
    }
}

impl Call {
    async fn run(&self) -> Result<(), Failure> {
        struct Over<'a>(&'a AtomicUsize);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        self.begun.fetch_add(1, Ordering::SeqCst);
        let _over = Over(&self.over);
        let mut does = self.does.subscribe();
        let told = *does.wait_for(|does| *does != Does::Hang).await.unwrap();
        match told {
            Does::Fail => Err(Failure::transient("refused, as the test asked")),
            Does::Panic => std::panic::resume_unwind(Box::new("as the test asked")),
            _ => Ok(()),
        }
    }

    fn set(&self, does: Does) {
        self.does.send_replace(does);
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    fn under_way(&self) -> usize {
        self.begun() - self.over.load(Ordering::SeqCst)
    }
}

#[derive(Default)]
struct Server {
    connect: Call,
    test: Call,
    goodbye: Call,
    opened: AtomicUsize,
    ended: AtomicUsize,
    /// How many connections may be open at a time. 0 means no limit. `waits_for_room` says whether a further connect waits
    /// for room instead of being refused.
    room: AtomicUsize,
    waits_for_room: AtomicBool,
}

impl Server {
    fn open(&self) -> usize {
        self.opened.load(Ordering::SeqCst) - self.ended.load(Ordering::SeqCst)
    }
}

/// A connection, which is a number.
struct Numbered {
    number: usize,
    is_broken: bool,
    server: Arc<Server>,
}

impl Drop for Numbered {
    fn drop(&mut self) {
        self.server.ended.fetch_add(1, Ordering::SeqCst);
    }
}

#[derive(Clone, Default)]
struct Driver(Arc<Server>);

impl Manage for Driver {
    type Connection = Numbered;

    async fn connect(&self) -> Result<Numbered, Failure> {
        self.0.connect.run().await?;
        let room = self.0.room.load(Ordering::SeqCst);
        if room > 0 && self.0.open() >= room {
            if self.0.waits_for_room.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            return Err(Failure::refused("there is no room"));
        }
        let number = self.0.opened.fetch_add(1, Ordering::SeqCst) + 1;
        Ok(Numbered { number, is_broken: false, server: Arc::clone(&self.0) })
    }

    async fn is_valid(&self, _: &mut Numbered) -> Result<(), Failure> {
        self.0.test.run().await
    }

    fn has_broken(&self, connection: &mut Numbered) -> bool {
        connection.is_broken
    }

    async fn close(&self, connection: Numbered) {
        // A disconnect fails if the test asks for it. The connection ends nevertheless.
        let _ = self.0.goodbye.run().await;
        drop(connection);
    }
}

struct Kind {
    driver: Driver,
    limits: Limits,
}

#[derive(Clone)]
struct Handle(Arc<Checkouts<Driver>>);

impl LeaseAs<Checkouts<Driver>> for Handle {
    fn lease_as(&self) -> &Checkouts<Driver> {
        &self.0
    }
}

impl Resource for Kind {
    type Handle = Handle;

    async fn connect(&self, link: &Link) -> Result<Handle, Failure> {
        let quota = Quota::new(link, self.limits.max, "connections", "pool_size");
        let checkouts = Checkouts::new(link, self.driver.clone(), self.limits.clone(), quota);
        checkouts.open().await?;
        Ok(Handle(Arc::new(checkouts)))
    }

    async fn recover(&self, _: &Link, lost: &Handle) -> Result<bool, Failure> {
        lost.0.open().await?;
        Ok(true)
    }

    async fn ping(&self, handle: &Handle) -> Result<(), Failure> {
        handle.0.ping().await
    }

    async fn close(&self, handle: Handle) -> Result<(), Failure> {
        handle.0.close().await;
        Ok(())
    }

    async fn refresh(&self, handle: &Handle) -> Result<bool, Failure> {
        handle.0.refresh().await?;
        Ok(true)
    }

    fn resize(&self, handle: &Handle, max: usize) -> bool {
        handle.0.resize(max);
        true
    }

    fn cut(&self, handle: &Handle) {
        handle.0.cut();
    }

    fn endpoint(&self) -> String {
        "fake://here".to_owned()
    }

    fn phase(&self) -> Phase {
        Phase::Databases
    }

    fn usage(&self, handle: &Handle) -> Usage {
        handle.0.usage()
    }
}

/// Limits without an idle timeout or a lifetime, and with tests only after `SOON`.
fn limits(max: usize) -> Limits {
    let never = Duration::ZERO;
    Limits { max, idle_timeout: never, max_lifetime: never, test_after: SOON, ..Limits::default() }
}

/// A pool of the fake driver, with the probe off.
fn pool_with(limits: Limits, change: impl FnOnce(&mut Options)) -> (ResourcePool, Arc<Server>) {
    let mut options = Options::default();
    options.probe.enabled = false;
    options.acquire_timeout = SOON;
    // An answer may take long on a busy machine.
    (options.health.each, options.health.all, options.health.slow) = (SOON, SOON, SOON);
    change(&mut options);
    let driver = Driver::default();
    let pool = ResourcePool::builder().environment([("", ""); 0]).options(options).build().unwrap();
    pool.register("fake", Kind { driver: driver.clone(), limits }).unwrap();
    (pool, driver.0)
}

fn pool(limits: Limits) -> (ResourcePool, Arc<Server>) {
    pool_with(limits, |_| {})
}

#[track_caller]
fn check_out(pool: &ResourcePool) -> impl Future<Output = Result<Checkout<Driver>, Error>> + Send + use<> {
    let (pool, claim) = (pool.clone(), Claim::shared());
    async move {
        let checkouts = pool.get::<Kind>("fake").await?.0.clone();
        checkouts.check_out::<Kind>(claim).await
    }
}

fn usage(pool: &ResourcePool) -> Usage {
    pool.status().resource("fake").unwrap().usage
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("it hangs")
}

/// Waits for a condition without blocking the other tasks.
async fn until_async(holds: impl FnMut() -> bool + Send + 'static) {
    tokio::task::spawn_blocking(|| until(SOON, holds)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkout_is_exclusive_counted_and_given_back() {
    let (pool, server) = pool(limits(2));
    let (first, second) = (check_out(&pool).await.unwrap(), check_out(&pool).await.unwrap());
    assert_ne!(first.number, second.number);
    let Usage { max, open, in_use, idle, waiting, .. } = usage(&pool);
    assert_eq!([max, open, in_use, idle, waiting], [2, 2, 2, 0, 0].map(Some));
    let exclusive = pool.holders().into_iter().filter(|holder| holder.exclusive);
    assert!(exclusive.map(|holder| holder.site.file()).eq([file!(); 2]));
    let last = second.number;
    drop((first, second));
    assert_eq!(check_out(&pool).await.unwrap().number, last, "the one used last is warm");
    let mut broken = check_out(&pool).await.unwrap();
    broken.is_broken = true;
    let number = broken.number;
    drop(broken);
    assert_ne!(check_out(&pool).await.unwrap().number, number);
    // The other connection is the prober's own.
    until_async({
        let server = Arc::clone(&server);
        move || server.open() == 2
    })
    .await;

    // The drain waits for work. A checkout that is still held afterwards closes its connection when it drops.
    let held = check_out(&pool).await.unwrap();
    let report = within(pool.close_all_within(Duration::from_secs(1))).await;
    let step = report.step("fake").unwrap();
    assert_eq!((&step.outcome, step.held.len()), (&Outcome::Closed, 1), "{report}");
    assert!(check_out(&pool).await.is_err_and(|error| error.is_closed()));
    drop(held);
    until_async(move || server.open() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkouts_are_given_out_in_the_order_of_asking() {
    let (pool, _) = pool(limits(1));
    let held = check_out(&pool).await.unwrap();
    let (served, mut order) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..20 {
        if number == 4 {
            // One waiter in the middle gives up.
            let gave_up = tokio::time::timeout(Duration::from_millis(1), check_out(&pool)).await;
            assert!(gave_up.is_err() && usage(&pool).waiting == Some(number));
        }
        let (checking, served) = (check_out(&pool), served.clone());
        tokio::spawn(async move {
            let got = checking.await.unwrap();
            served.send(number).unwrap();
            drop(got);
        });
        let pool = pool.clone();
        until_async(move || usage(&pool).waiting == Some(number + 1)).await;
    }
    drop((held, served));
    let mut served = Vec::new();
    while let Some(number) = within(order.recv()).await {
        served.push(number);
    }
    assert_eq!(served, (0..20).collect::<Vec<_>>());
    let Usage { open, counters, .. } = usage(&pool);
    assert_eq!(open, Some(1));
    // The wait that was given up counts too.
    let Counters { acquires, waits, timeouts, .. } = counters;
    assert_eq!([acquires, waits, timeouts], [21, 21, 0].map(Some));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkout_that_is_only_tried_for_takes_an_idle_one_and_opens_none() {
    let (pool, server) = pool(Limits { test_after: Duration::ZERO, ..limits(2) });
    let checkouts = pool.get::<Kind>("fake").await.unwrap().0.clone();
    let try_check_out = || within(checkouts.try_check_out::<Kind>(Claim::shared()));
    let first = try_check_out().await.unwrap().expect("it is idle");
    assert!(try_check_out().await.unwrap().is_none());
    assert_eq!((usage(&pool).open, usage(&pool).opening), (Some(1), Some(0)));
    let number = first.number;
    drop(first);
    assert_eq!(try_check_out().await.unwrap().expect("it passes its test").number, number);
    server.test.set(Does::Fail);
    assert!(try_check_out().await.unwrap().is_none());
    server.test.set(Does::Work);
    let counters = usage(&pool).counters;
    assert_eq!(
        (counters.acquires, counters.waits, counters.closed.map(|closed| closed.broken)),
        (Some(2), Some(0), Some(1))
    );
    pool.close("fake").await.unwrap();
    assert!(try_check_out().await.is_err_and(|error| error.is_closed()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_replaced_and_their_number_is_changed_while_users_have_them() {
    let (pool, server) = pool(limits(1));
    let held = check_out(&pool).await.unwrap();
    let number = held.number;
    let waiting = tokio::spawn(check_out(&pool));
    let asked = pool.clone();
    until_async(move || usage(&asked).waiting == Some(1)).await;
    pool.resize("fake", 2).unwrap();
    let second = within(waiting).await.unwrap().unwrap();
    within(pool.refresh("fake")).await.unwrap();
    // The prober's own is replaced as well.
    drop((held, second));
    let all_new = [check_out(&pool).await.unwrap(), check_out(&pool).await.unwrap()];
    assert!(all_new.iter().all(|new| new.number > number + 2), "{number}");
    assert_eq!((usage(&pool).max, usage(&pool).open), (Some(2), Some(2)));
    drop(all_new);
    let detached = check_out(&pool).await.unwrap().detach().unwrap();
    check_out(&pool).await.unwrap().discard();
    let counters = usage(&pool).counters;
    assert_eq!((counters.detached, counters.closed.map(|closed| closed.discarded)), (Some(1), Some(1)));
    assert!(within(pool.close_all()).await.all_closed());
    let open = Arc::clone(&server);
    until_async(move || open.open() == 1).await;
    drop(detached);
    assert_eq!(server.open(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_stay_where_no_new_one_can_be_opened() {
    let (pool, server) = pool_with(limits(2), |options| options.connect_timeout = Duration::from_secs(1));
    let number = check_out(&pool).await.unwrap().number;
    server.connect.set(Does::Fail);
    let error = within(pool.refresh("fake")).await.unwrap_err();
    assert!(matches!(error, Error::Operation { .. }) && error.to_string().contains("as the test asked"), "{error}");
    server.connect.set(Does::Hang);
    let error = within(pool.refresh("fake")).await.unwrap_err();
    assert!(error.to_string().contains("within 1.0s") || matches!(error, Error::Timeout(_)), "{error}");
    server.connect.set(Does::Work);
    server.test.set(Does::Fail);
    within(pool.refresh("fake")).await.unwrap_err();
    server.test.set(Does::Work);
    assert_eq!(check_out(&pool).await.unwrap().number, number, "users keep the old one");
    // An answer of the server does not tell whether it could serve those that users have.
    server.room.store(server.open(), Ordering::SeqCst);
    let error = within(pool.refresh("fake")).await.unwrap_err();
    assert!(error.to_string().contains("there is no room"), "{error}");
    server.room.store(0, Ordering::SeqCst);
    assert_eq!(check_out(&pool).await.unwrap().number, number);
    within(pool.refresh("fake")).await.unwrap();
    assert_ne!(check_out(&pool).await.unwrap().number, number);
    assert!(within(pool.close_all()).await.all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_ones_are_tested_in_the_background_and_replaced_also_as_a_test_hangs() {
    let often = Duration::from_millis(40);
    let (pool, server) = pool_with(Limits { test_idle_after: often, ..limits(2) }, |options| {
        options.connect_timeout = Duration::from_millis(400);
    });
    let number = check_out(&pool).await.unwrap().number;
    let tested = server.test.begun();
    let testing = Arc::clone(&server);
    until_async(move || testing.test.begun() >= tested + 3).await;
    // The test is given up after `connect_timeout`.
    server.test.set(Does::Hang);
    let closing = pool.clone();
    until_async(move || usage(&closing).counters.closed.is_some_and(|closed| closed.broken >= 1)).await;
    server.test.set(Does::Work);
    assert_ne!(within(check_out(&pool)).await.unwrap().number, number);
    assert!(within(pool.close_all()).await.all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkouts_are_opened_at_a_growing_pace_and_never_more_than_there_may_be() {
    const MAX: usize = 8;
    let (pool, server) = pool(limits(MAX));
    drop(check_out(&pool).await.unwrap());
    server.connect.set(Does::Hang);
    let mut all = JoinSet::new();
    for _ in 0..2 * MAX {
        all.spawn(check_out(&pool));
    }
    let waiting = pool.clone();
    until_async(move || usage(&waiting).waiting == Some(2 * MAX - 1)).await;
    // Only one connection opens at first, however many tasks wait.
    let opening = Arc::clone(&server);
    until_async(move || opening.connect.under_way() == 1).await;
    server.connect.set(Does::Work);
    let mut held = Vec::new();
    while held.len() < MAX {
        held.push(within(all.join_next()).await.unwrap().unwrap().unwrap());
    }
    // The prober's own is one more.
    assert_eq!((server.opened.load(Ordering::SeqCst), server.connect.under_way()), (MAX + 1, 0));
    drop(held);
    while let Some(checkout) = within(all.join_next()).await {
        drop(checkout.unwrap().unwrap());
    }
    assert_eq!((usage(&pool).open, server.open()), (Some(MAX), MAX + 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_ends_tells_who_holds_and_what_hinders() {
    let (pool, server) = pool_with(limits(2), |options| options.acquire_timeout = Duration::from_millis(50));
    let mut events = pool.events();
    // The limit of 50 ms may pass on a busy machine, so this tries again.
    let mut first = check_out(&pool).await;
    while first.is_err() {
        first = check_out(&pool).await;
    }
    server.connect.set(Does::Fail);
    let Err(Error::Timeout(timeout)) = check_out(&pool).await else { panic!("it came") };
    assert_eq!((timeout.waiting_for.as_str(), timeout.holders.len()), ("one of 2 connections", 1), "{timeout}");
    let text = timeout.to_string();
    assert!(text.contains("fake at fake://here") && text.contains("refused, as the test asked"), "{text}");
    server.connect.set(Does::Panic);
    let told =
        async { while !check_out(&pool).await.unwrap_err().to_string().contains("it panicked: as the test asked") {} };
    within(told).await;
    let is_timeout = |what: &What| matches!(what, What::TimedOut { .. });
    assert!(std::iter::from_fn(|| events.try_next()).any(|event| is_timeout(&event.what)));
    drop(first);
    drop(check_out(&pool).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_opening_and_a_goodbye_that_hang_are_bounded() {
    let limit = Duration::from_millis(100);
    let (pool, server) = pool_with(limits(2), |options| options.connect_timeout = limit);
    let mut first = within(check_out(&pool)).await.unwrap();
    server.connect.set(Does::Hang);
    let waiting = tokio::spawn(check_out(&pool));
    let begun = Arc::clone(&server);
    // The opening is given up at its limit, and begun again.
    until_async(move || begun.connect.begun() >= 4).await;
    server.connect.set(Does::Work);
    drop(within(waiting).await.unwrap().unwrap());
    server.goodbye.set(Does::Hang);
    first.is_broken = true;
    let stopwatch = Stopwatch::start();
    drop(first);
    drop(within(check_out(&pool)).await.unwrap());
    assert!(stopwatch.took() < limit, "a user waits for a goodbye: {:?}", stopwatch.took());
    let report = within(pool.close_all()).await;
    assert!(report.all_closed(), "{report}");
    assert_eq!((server.open(), server.goodbye.under_way()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfit_connections_are_replaced_and_so_is_one_whose_test_is_given_up() {
    let (pool, server) = pool(Limits { test_after: Duration::ZERO, ..limits(1) });
    let first = check_out(&pool).await.unwrap().number;
    assert_eq!(check_out(&pool).await.unwrap().number, first, "it is tested, and passes");
    server.test.set(Does::Hang);
    let tested = server.test.begun();
    let testing = tokio::spawn(check_out(&pool));
    let begun = Arc::clone(&server);
    until_async(move || begun.test.begun() > tested).await;
    testing.abort();
    assert!(within(testing).await.is_err_and(|error| error.is_cancelled()));
    let ended = Arc::clone(&server);
    until_async(move || ended.open() == 1).await;
    server.test.set(Does::Work);
    let second = within(check_out(&pool)).await.unwrap().number;
    assert_ne!(second, first);
    for does in [Does::Fail, Does::Panic] {
        server.test.set(does);
        let waiting = tokio::spawn(check_out(&pool));
        let (began, tests) = (Arc::clone(&server), server.test.begun());
        until_async(move || began.test.begun() > tests).await;
        server.test.set(Does::Work);
        drop(within(waiting).await.unwrap().unwrap());
    }
    assert!(server.opened.load(Ordering::SeqCst) >= second + 2);
    assert_eq!(usage(&pool).open, Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_ones_are_kept_closed_and_replaced_as_the_limits_say() {
    let times = Duration::from_millis(100);
    let (pool, server) = pool(Limits { min_idle: 2, idle_timeout: times, ..limits(4) });
    let all = [(); 4].map(|()| tokio::spawn(check_out(&pool)));
    let mut held = Vec::new();
    for one in all {
        held.push(within(one).await.unwrap().unwrap());
    }
    drop(held);
    let kept = pool.clone();
    until_async(move || usage(&kept).idle == Some(2)).await;
    let ended = Arc::clone(&server);
    until_async(move || ended.open() == 3).await;

    let (pool, server) = self::pool(Limits { max_lifetime: times, ..limits(1) });
    let first = check_out(&pool).await.unwrap().number;
    // The prober's own is replaced with its next ping.
    until_async(move || server.open() == 1).await;
    assert_ne!(check_out(&pool).await.unwrap().number, first);
}

fn probed(options: &mut Options) {
    options.probe.enabled = true;
    (options.probe.interval, options.probe.limit) = (Duration::from_millis(20), Duration::from_millis(200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_prober_asks_though_users_have_all_and_a_silent_server_is_lost() {
    let (pool, server) = pool_with(limits(1), probed);
    let held = within(check_out(&pool)).await.unwrap();
    let (answered, tested) = (Arc::clone(&server), server.test.begun());
    until_async(move || answered.test.begun() > tested + 3).await;
    assert_eq!((server.open(), usage(&pool).open), (2, Some(1)), "the prober has one of its own");
    assert_eq!(within(pool.health_check()).await.entry("fake").unwrap().health, Health::Pass);
    assert_eq!(pool.status().resource("fake").unwrap().generation, 1);

    let waiting = tokio::spawn(check_out(&pool));
    let asked = pool.clone();
    until_async(move || usage(&asked).waiting == Some(1)).await;
    server.test.set(Does::Hang);
    server.connect.set(Does::Hang);
    // A waiting task learns of the loss.
    let lost = within(waiting).await.unwrap();
    assert!(matches!(lost, Err(Error::Lost { .. })), "{:?}", lost.err());
    server.test.set(Does::Work);
    server.connect.set(Does::Work);
    let again = pool.clone();
    until_async(move || again.status().resource("fake").unwrap().generation == 2).await;
    drop(held);
    let fresh = within(check_out(&pool)).await.unwrap();
    assert!(within(pool.close_all_within(Duration::from_secs(1))).await.step("fake").is_some());
    drop(fresh);
    until_async(move || server.open() == 0).await;
}

/// A lack of room does not count as silence, whether the server refuses one more connection or lets it wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_not_lost_as_there_is_no_room_for_the_prober() {
    for waits in [false, true] {
        let (pool, server) = pool_with(limits(2), |options| {
            probed(options);
            options.connect_timeout = Duration::from_secs(1);
            (options.retry.base, options.retry.cap) = (Duration::from_millis(1), Duration::from_millis(1));
        });
        server.room.store(1, Ordering::SeqCst);
        server.waits_for_room.store(waits, Ordering::SeqCst);
        let held = within(check_out(&pool)).await.unwrap();
        let (refused, begun) = (Arc::clone(&server), server.connect.begun());
        until_async(move || refused.connect.begun() > begun + 2).await;
        let is_unknown = async || pool.health_check().await.entry("fake").unwrap().health == Health::Unknown;
        let told = async { while !is_unknown().await {} };
        within(told).await;
        assert_eq!((pool.status().resource("fake").unwrap().generation, server.open()), (1, 1), "{waits}");
        drop(held);
        // The probe borrows an idle connection.
        let is_fine = async || pool.health_check().await.entry("fake").unwrap().health == Health::Pass;
        let told = async { while !is_fine().await {} };
        within(told).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_prober_leaves_its_place_to_a_user() {
    let (pool, server) = pool_with(limits(2), probed);
    server.room.store(2, Ordering::SeqCst);
    let first = within(check_out(&pool)).await.unwrap();
    let full = Arc::clone(&server);
    until_async(move || full.open() == 2).await;
    let second = within(check_out(&pool)).await.unwrap();
    assert_eq!(usage(&pool).in_use, Some(2));
    drop((first, second));
    assert_eq!(pool.status().resource("fake").unwrap().generation, 1);
}

/// A connection that comes back after its runtime has ended is dropped where its guard drops.
#[test]
fn what_comes_back_after_the_end_of_its_runtime_is_closed() {
    let (pool, server) = pool(limits(2));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let held = runtime.block_on(check_out(&pool)).unwrap();
    let report = runtime.block_on(pool.close_all_within(Duration::from_secs(1)));
    assert_eq!(report.step("fake").unwrap().held.len(), 1, "{report}");
    drop(held);
    until(SOON, || server.open() == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_through_a_reconnect_gets_one_of_the_new_generation() {
    let (pool, _server) = pool(limits(1));
    let held = check_out(&pool).await.unwrap();
    let old = held.number;
    let waiting = tokio::spawn(check_out(&pool));
    let asked = pool.clone();
    until_async(move || usage(&asked).waiting == Some(1)).await;
    within(pool.reconnect("fake")).await.unwrap();
    // The old connection counts until it comes back, because it is open until then.
    drop(held);
    let new = within(waiting).await.unwrap().unwrap();
    assert_ne!(new.number, old);
    drop(new);
    assert_eq!(usage(&pool).open, Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cycle_of_tasks_that_check_out_is_told() {
    let (pool, _) = pool_with(limits(1), |options| options.acquire_timeout = Duration::from_millis(300));
    let other = Driver::default();
    pool.register("other", Kind { driver: other, limits: limits(1) }).unwrap();
    let mut events = pool.events();
    let check_out_of = |name: &'static str| {
        let (pool, claim) = (pool.clone(), Claim::shared());
        async move { pool.get::<Kind>(name).await?.0.clone().check_out::<Kind>(claim).await }
    };
    let both = Arc::new(tokio::sync::Barrier::new(2));
    let meet = |first, second| {
        let (first, second, both) = (check_out_of(first), check_out_of(second), Arc::clone(&both));
        tokio::spawn(async move {
            let held = first.await.unwrap();
            both.wait().await;
            let ended = second.await;
            drop(held);
            ended.err()
        })
    };
    let (one, two) = (meet("fake", "other"), meet("other", "fake"));
    let ended = [within(one).await.unwrap(), within(two).await.unwrap()];
    let told =
        ended.into_iter().flatten().any(|error| matches!(&error, Error::Timeout(timeout) if !timeout.cycle.is_empty()));
    assert!(told, "no timeout names the cycle");
    assert!(std::iter::from_fn(|| events.try_next()).any(|event| matches!(event.what, What::Cycle { .. })));
}

/// A checkout works on an executor without tokio.
#[test]
fn any_executor_may_poll_a_checkout() {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    fn block_on<F: Future>(future: F) -> F::Output {
        let mut future = pin!(future);
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        loop {
            match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(output) => return output,
                Poll::Pending => thread::park_timeout(SOON),
            }
        }
    }
    let (pool, _) = pool_with(Limits { test_after: Duration::ZERO, ..limits(1) }, |options| {
        options.acquire_timeout = Duration::from_millis(200);
    });
    let held = loop {
        if let Ok(held) = block_on(check_out(&pool)) {
            break held;
        }
    };
    assert!(matches!(block_on(check_out(&pool)), Err(Error::Timeout(_))));
    drop(held);
    drop(block_on(check_out(&pool)).unwrap());
    assert!(block_on(pool.close_all()).all_closed());
}
