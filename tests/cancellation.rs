//! Combines each await of the core with each scripted behaviour, each caller, and cancellation at several points. In
//! every case nobody hangs, nothing is leaked, and the pool works afterwards.

#![allow(missing_docs)]

mod common;
#[path = "common/scripted.rs"]
mod scripted;

use std::fmt::Debug;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::time::{Duration, Instant};

use common::{Within, until_async};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use resource_pool::config::Options;
use resource_pool::{Error, ResourcePool, State};
use scripted::{Does, Scripted, Verb};

/// The limit for any call. It lies far beyond the limits that the tests set.
const SOON: Duration = Duration::from_secs(60);
/// The unit of the limits of these pools. It is short, because many combinations wait until a limit ends them.
const LIMIT: Duration = Duration::from_millis(40);
const NAME: &str = "scripted";

/// The call that awaits.
#[derive(Debug, Clone, Copy)]
enum Caller {
    Acquire,
    WarmUp,
    HealthCheck,
    Reconnect,
    Close,
    CloseAll,
}

const CALLERS: [Caller; 6] =
    [Caller::Acquire, Caller::WarmUp, Caller::HealthCheck, Caller::Reconnect, Caller::Close, Caller::CloseAll];

/// The moment at which the caller gives up.
#[derive(Debug, Clone, Copy)]
enum Cancelled {
    Not,
    /// Before the first poll.
    Unpolled,
    /// After so many polls.
    Polled(usize),
    /// After this time.
    After(Duration),
}

const CANCELLED: [Cancelled; 6] = [
    Cancelled::Not,
    Cancelled::Unpolled,
    Cancelled::Polled(1),
    Cancelled::Polled(3),
    Cancelled::After(Duration::from_millis(3)),
    Cancelled::After(Duration::from_millis(25)),
];

#[derive(Debug, Clone, Copy)]
struct Combination {
    verb: Verb,
    does: Does,
    caller: Caller,
    cancelled: Cancelled,
}

fn combinations() -> impl Iterator<Item = Combination> {
    Verb::ALL.into_iter().flat_map(|verb| {
        Does::ALL.into_iter().flat_map(move |does| {
            CALLERS.into_iter().flat_map(move |caller| {
                CANCELLED.into_iter().map(move |cancelled| Combination { verb, does, caller, cancelled })
            })
        })
    })
}

fn pool() -> ResourcePool {
    let mut options = Options::default();
    options.acquire_timeout = Duration::from_secs(2);
    options.connect_timeout = LIMIT * 4;
    options.circuit = Duration::from_millis(5);
    options.retry.attempts = 2;
    options.retry.base = Duration::from_millis(2);
    options.retry.cap = Duration::from_millis(5);
    options.retry.budget = LIMIT * 8;
    options.probe.interval = Duration::from_millis(5);
    options.probe.limit = LIMIT;
    options.health.each = LIMIT;
    options.health.all = LIMIT * 2;
    options.health.cache = Duration::ZERO;
    options.close.deadline = Duration::from_secs(10);
    options.close.drain = LIMIT;
    options.close.held = Duration::from_millis(5);
    options.close.step = Duration::from_secs(1);
    options.close.floor = LIMIT;
    let runtime = tokio::runtime::Handle::current();
    ResourcePool::builder().environment([("", ""); 0]).options(options).runtime(runtime).build().unwrap()
}

async fn call(pool: ResourcePool, caller: Caller) {
    match caller {
        Caller::Acquire => drop(pool.get::<Scripted>(NAME).await),
        Caller::WarmUp => drop(pool.warm_up([NAME]).await),
        Caller::HealthCheck => drop(pool.health_check().await),
        Caller::Reconnect => drop(pool.reconnect(NAME).await),
        Caller::Close => drop(pool.close(NAME).await),
        Caller::CloseAll => drop(pool.close_all().await),
    }
}

/// Polls the future until the caller gives up. A future that is not given up has to end by itself.
async fn give_up<F: Future<Output: Debug>>(future: F, cancelled: Cancelled) {
    let mut future: Pin<Box<F>> = Box::pin(future);
    match cancelled {
        Cancelled::Not => drop(future.within(SOON).await),
        Cancelled::Unpolled => {}
        Cancelled::Polled(times) => {
            for _ in 0..times {
                if futures_util::poll!(future.as_mut()).is_ready() {
                    return;
                }
                tokio::task::yield_now().await;
            }
        }
        Cancelled::After(time) => drop(tokio::time::timeout(time, future).await),
    }
}

/// Runs one combination, and checks that all is well at the end. Returns whether the scripted verb was awaited.
async fn run(combination: Combination) -> bool {
    let Combination { verb, does, caller, cancelled } = combination;
    let pool = pool();
    let resource = Scripted { in_place: verb == Verb::Recover, ..Scripted::default() };
    let script = &resource.script;
    pool.register(NAME, resource.clone()).unwrap();
    if verb != Verb::Connect {
        until_async(SOON, async || pool.get::<Scripted>(NAME).within(SOON).await.is_ok()).await;
    }
    let before = script.began(verb);
    script.set(verb, does);
    if let (Verb::Recover, Some(link)) = (verb, script.link()) {
        link.lost(1, "lost");
    }
    give_up(call(pool.clone(), caller), cancelled).await;

    // The outcome does not matter, and the work may go on. But another caller must not wait for long.
    drop(pool.get::<Scripted>(NAME).within(SOON).await);
    let reached = script.began(verb) > before;
    script.clear();
    let usable = async || {
        if pool.get::<Scripted>(NAME).within(SOON).await.is_ok() {
            return true;
        }
        // A pool whose close has ended is opened again.
        let reopened = pool.reopen();
        assert!(matches!(reopened, Ok(()) | Err(Error::Closing { .. })), "{combination:?}: {reopened:?}");
        drop(pool.reconnect(NAME).within(SOON).await);
        false
    };
    until_async(SOON, usable).await;
    until_async(SOON, async || pool.status().resource(NAME).unwrap().connecting == 0).await;
    assert!(pool.holders().is_empty(), "{combination:?}: {:?}", pool.holders());
    let report = pool.close_all().within(SOON).await;
    assert!(report.steps.len() <= 1, "{combination:?}: {report}");
    assert_eq!(pool.status().resource(NAME).unwrap().state, State::Closed, "{combination:?}: {report}");
    // A connection that came too late is closed in the background.
    let all = |said: fn(&usize) -> bool| script.goodbyes().iter().all(said);
    if report.all_closed() {
        until_async(SOON, async || all(|times| *times > 0)).await;
    }
    assert!(all(|times| *times <= 1), "{combination:?}: {:?}", script.goodbyes());
    reached
}

#[test]
fn whatever_is_awaited_may_fail_hang_panic_and_be_cancelled() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let started = Instant::now();
    let (mut count, mut reached) = (0, Vec::new());
    runtime.block_on(async {
        let mut running = FuturesUnordered::new();
        for combination in combinations() {
            let run = AssertUnwindSafe(run(combination)).catch_unwind();
            running.push(run.map(move |ended| (combination, ended.unwrap_or_else(|_| panic!("{combination:?}")))));
            count += 1;
            if running.len() >= 32 {
                reached.extend(running.next().await);
            }
        }
        reached.extend(running.collect::<Vec<_>>().await);
        let metrics = tokio::runtime::Handle::current().metrics();
        until_async(SOON, async || metrics.num_alive_tasks() == 0).await;
    });
    reached.retain(|(_, reached)| *reached);
    println!("{count} combinations in {:.1?}, {} of which came to what was scripted", started.elapsed(), reached.len());
    for (verb, does) in Verb::ALL.into_iter().flat_map(|verb| Does::ALL.map(|does| (verb, does))) {
        assert!(reached.iter().any(|(one, _)| one.verb == verb && one.does == does), "{verb:?} never did {does:?}");
    }
}
