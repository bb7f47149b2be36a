//! The events that observers get, their order, and observers that are slow.

#![allow(missing_docs)]

mod common;
#[path = "common/scripted.rs"]
mod scripted;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use common::{Plain, Within, unhurried, until, until_async};
use resource_pool::config::Options;
use resource_pool::{Error, Event, Events, Health, Phase, Reason, ResourcePool, State, What, blocking};
use scripted::{Does, Scripted, Verb};

/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn pool_of(options: Options) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).options(options).build().unwrap()
}

fn pool(scripted: &Scripted) -> ResourcePool {
    let pool = pool_of(unhurried());
    pool.register("model", scripted.clone()).unwrap();
    pool
}

/// Collects all events up to the first one for which `is_it` holds, that one included.
async fn until_one(events: &mut Events, is_it: impl Fn(&What) -> bool) -> Vec<Event> {
    let mut seen = Vec::new();
    let mut look = async || {
        loop {
            let event = events.next().await.expect("the pool lives");
            let found = is_it(&event.what);
            seen.push(event);
            if found {
                return;
            }
        }
    };
    look().within(SOON).await;
    seen
}

/// The changes of the model's state in these events.
fn changes(events: &[Event]) -> impl Iterator<Item = (State, State)> {
    events.iter().filter(|event| event.resource.as_deref() == Some("model")).filter_map(|event| match event.what {
        What::StateChanged { from, to, .. } => Some((from, to)),
        _ => None,
    })
}

fn states(events: &[Event]) -> Vec<String> {
    changes(events).map(|(from, to)| format!("{from} to {to}")).collect()
}

fn has(events: &[Event], is_it: impl Fn(&What) -> bool) -> bool {
    events.iter().any(|event| is_it(&event.what))
}

#[tokio::test]
async fn a_life_is_told_from_the_first_connect_to_the_last_step() {
    let scripted = Scripted::default();
    let pool = pool(&scripted);
    let mut events = pool.events();
    drop(pool.get::<Scripted>("model").await.unwrap());
    let connected = until_one(&mut events, |what| matches!(what, What::Connected { .. })).await;
    assert_eq!(states(&connected), ["idle to connecting", "connecting to ready"]);
    let last = connected.last().unwrap();
    assert_eq!((last.resource.as_deref(), last.kind, last.generation), (Some("model"), None, 1));

    let health = pool.health_check().await;
    let of_model = |what: &What| matches!(what, What::Checked { entry } if &*entry.name == "model");
    let checked = until_one(&mut events, of_model).await;
    let What::Checked { entry } = &checked.last().unwrap().what else { unreachable!("it was looked for") };
    assert_eq!((entry.health, entry.latency), (Health::Pass, health.entry("model").unwrap().latency));

    pool.reconnect("model").await.unwrap();
    let again = until_one(&mut events, |what| matches!(what, What::Connected { .. })).await;
    assert_eq!(states(&again), ["ready to broken", "broken to connecting", "connecting to ready"]);
    let lost = again.iter().find(|event| matches!(event.what, What::Lost { .. })).unwrap();
    assert_eq!((lost.generation, again.last().unwrap().generation), (1, 2));

    pool.on_close("archive", Phase::Files, || Ok(())).unwrap();
    let report = pool.close_all().await;
    let closed = until_one(&mut events, |what| matches!(what, What::Closed { .. })).await;
    assert_eq!(states(&closed), ["ready to draining", "draining to closed"]);
    let of = |is_it: fn(&What) -> bool| {
        closed.iter().filter(|event| is_it(&event.what)).map(|event| event.resource.as_deref()).collect::<Vec<_>>()
    };
    assert_eq!(of(|what| matches!(what, What::Closing { reason: Reason::Requested })), [None, Some("model")]);
    assert_eq!(of(|what| matches!(what, What::StepEnded { .. })), [Some("model"), Some("archive")]);
    let What::Closed { report: told } = &closed.last().unwrap().what else { unreachable!("it was looked for") };
    assert_eq!(told.to_string(), report.to_string());

    // The script has a link, which would keep the pool's observers.
    drop((pool, scripted));
    while events.next().within(SOON).await.is_some() {}
    assert_eq!(events.missed(), 0);
}

#[tokio::test]
async fn failures_to_connect_are_told_with_their_pauses() {
    let scripted = Scripted::default();
    scripted.script.set(Verb::Connect, Does::Fail);
    let mut options = unhurried();
    options.retry.attempts = 3;
    let pool = pool_of(options);
    pool.register("model", scripted).unwrap();
    let mut events = pool.events();
    let refused = pool.get::<Scripted>("model").await.unwrap_err();
    let seen = until_one(&mut events, |what| matches!(what, What::ConnectFailed { .. })).await;
    let failed = |event: &&Event| matches!(event.what, What::AttemptFailed { .. });
    assert_eq!(seen.iter().filter(failed).count(), 2, "{seen:#?}");
    let What::ConnectFailed { error } = &seen.last().unwrap().what else { unreachable!("it was looked for") };
    assert_eq!(error.to_string(), refused.to_string());
}

#[tokio::test]
async fn a_wait_is_told_as_it_ends_in_time_or_not() {
    let scripted = Scripted::default();
    scripted.script.set(Verb::Connect, Does::Never);
    let pool = pool(&scripted);
    let mut events = pool.events();
    let limit = Duration::from_millis(20);
    let Err(Error::Timeout(timeout)) = pool.within(limit).get::<Scripted>("model").await else { panic!("no timeout") };
    let seen = until_one(&mut events, |what| matches!(what, What::TimedOut { .. })).await;
    let What::TimedOut { error } = &seen.last().unwrap().what else { unreachable!("it was looked for") };
    assert!(Arc::ptr_eq(error, &timeout));

    pool.register("plain", Plain).unwrap();
    drop(pool.get::<Plain>("plain").await.unwrap());
    let (mut waited, mut connected) = (false, false);
    while !(waited && connected) {
        let event = events.next().within(SOON).await.unwrap();
        let is_plain = event.resource.as_deref() == Some("plain");
        waited |= is_plain && matches!(event.what, What::Waited { .. });
        connected |= is_plain && matches!(event.what, What::Connected { .. });
    }
    // From now on the resource is warm.
    while events.try_next().is_some() {}
    drop(pool.get::<Plain>("plain").await.unwrap());
    assert!(events.try_next().is_none());
}

/// A slow reader misses the oldest events, and nothing waits for it.
#[tokio::test]
async fn a_slow_observer_misses_events_and_delays_nothing() {
    let mut options = unhurried();
    options.events = 4;
    let pool = pool_of(options);
    pool.register("plain", Plain).unwrap();
    let (mut events, mut reader) = (pool.events(), pool.events());
    for _ in 0..20 {
        pool.reconnect("plain").within(SOON).await.unwrap();
    }
    // An event may be told a moment after the caller has its answer.
    let is_last = |event: &Event| event.generation == 20 && matches!(event.what, What::Connected { .. });
    while !is_last(&reader.next().within(SOON).await.unwrap()) {}
    let newest = events.next().await.unwrap();
    assert!(events.missed() > 20, "{}", events.missed());
    assert!(newest.generation >= 18, "{newest:?}");
    assert!(pool.close_all().within(SOON).await.all_closed());
}

/// Each observer sees states that follow from one another, even if several tasks change them at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn changes_of_state_come_in_order() {
    let scripted = Scripted { in_place: true, ..Scripted::default() };
    let mut options = unhurried();
    (options.events, options.retry.base) = (1 << 16, Duration::from_millis(1));
    let pool = pool_of(options);
    pool.register("model", scripted.clone()).unwrap();
    let mut events = pool.events();
    let _lease = pool.get::<Scripted>("model").await.unwrap();
    let link = scripted.script.link().unwrap();
    let losers = (0..4).map(|_| {
        let (link, pool) = (link.clone(), pool.clone());
        tokio::spawn(async move {
            for _ in 0..50 {
                link.lost(link.generation(), "lost on purpose");
                // The answer may be the loss that another of these tasks reported.
                drop(pool.reconnect("model").await);
            }
        })
    });
    for loser in losers.collect::<Vec<_>>() {
        loser.within(SOON).await.unwrap();
    }
    assert!(pool.close_all().await.all_closed());
    let seen = until_one(&mut events, |what| matches!(what, What::Closed { .. })).await;
    assert_eq!(events.missed(), 0);
    let (mut state, mut count) = (State::Idle, 0);
    for (from, to) in changes(&seen) {
        assert_eq!(from, state, "change {count}");
        (state, count) = (to, count + 1);
    }
    assert!(state == State::Closed && count > 100, "{count} changes, the last to {state}");
}

/// A waker that panics, as one of a faulty executor may.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        std::panic::resume_unwind(Box::new("as scripted"));
    }
}

#[test]
fn an_observer_whose_waker_panics_breaks_nothing() {
    let pool: blocking::ResourcePool = pool_of(unhurried()).into();
    pool.register("plain", Plain).unwrap();
    let (mut events, mut sound) = (pool.as_async().events(), pool.events());
    let mut next = Box::pin(events.next());
    let waker = Waker::from(Arc::new(Panics));
    let mut poll = || next.as_mut().poll(&mut Context::from_waker(&waker)).is_pending();
    assert!(poll());
    drop(pool.get::<Plain>("plain").unwrap());
    assert!(!poll());
    pool.reconnect("plain").unwrap();
    assert!(pool.close_all().unwrap().all_closed());
    assert!(sound.by_ref().flatten().any(|event| matches!(event.what, What::Closed { .. })));
}

/// A user's error does not drop under a lock of the pool.
#[test]
fn an_event_that_is_missed_drops_where_the_pool_can_be_used() {
    #[derive(Debug)]
    struct Looks(Weak<blocking::ResourcePool>);
    impl std::fmt::Display for Looks {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("as scripted")
        }
    }
    impl std::error::Error for Looks {}
    impl Drop for Looks {
        fn drop(&mut self) {
            if let Some(pool) = self.0.upgrade() {
                assert!(pool.status().resource("model").is_some());
            }
        }
    }
    let scripted = Scripted { in_place: true, ..Scripted::default() };
    let mut options = unhurried();
    options.events = 1;
    let pool: Arc<blocking::ResourcePool> = Arc::new(pool_of(options).into());
    pool.register("model", scripted.clone()).unwrap();
    let mut events = pool.events();
    let (done, is_done) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for _ in 0..10 {
            until(SOON, || pool.get::<Scripted>("model").is_ok());
            let link = scripted.script.link().unwrap();
            link.lost(link.generation(), Looks(Arc::downgrade(&pool)));
        }
        done.send(()).unwrap();
    });
    is_done.recv_timeout(SOON).unwrap();
    assert!(events.try_next().is_some() && events.missed() > 10, "{events:?}");
}

#[test]
fn threads_wait_for_events_with_a_limit_and_until_the_pool_is_gone() {
    let pool: blocking::ResourcePool = pool_of(unhurried()).into();
    pool.register("plain", Plain).unwrap();
    let mut events = pool.events();
    assert!(events.try_next().is_none());
    assert!(events.next_within(Duration::from_millis(5)).unwrap().is_none());
    drop(pool.get::<Plain>("plain").unwrap());
    assert!(events.next_within(SOON).unwrap().is_some());
    let is_over = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&is_over);
    let reader = thread::spawn(move || {
        let last = events.by_ref().last().unwrap().unwrap();
        assert!(ended.load(Ordering::SeqCst));
        assert!(matches!(events.next_within(SOON), Err(Error::Closed { .. })));
        (last, events.missed())
    });
    is_over.store(true, Ordering::SeqCst);
    drop(pool);
    let (last, missed) = reader.join().unwrap();
    assert!(matches!(last.what, What::Closed { .. }), "{last:?}");
    assert_eq!(missed, 0);
}

#[tokio::test]
async fn a_thread_that_polls_tasks_is_not_blocked() {
    let pool: blocking::ResourcePool = pool_of(unhurried()).into();
    let mut events = pool.events();
    assert!(matches!(events.next(), Some(Err(Error::InAsyncContext { .. }))));
    assert!(events.next().is_none(), "or a loop over it would never end");
    assert!(matches!(events.next_within(SOON), Err(Error::InAsyncContext { .. })));
}

#[test]
fn a_subscription_holds_back_a_number_that_can_be_had() {
    for events in [0, (1 << 20) + 1] {
        let mut options = Options::default();
        options.events = events;
        let refused = ResourcePool::builder().environment([("", ""); 0]).options(options).build();
        assert!(matches!(&refused, Err(Error::Config { key, .. }) if key == "pool.events"), "{refused:?}");
    }
}

#[tokio::test]
async fn leaks_are_told_and_what_comes_back_of_them() {
    let mut options = unhurried();
    options.leaks.age = Duration::from_millis(20);
    options.leaks.shared = true;
    let pool = pool_of(options);
    pool.register("plain", Plain).unwrap();
    let mut events = pool.events();
    let line = line!() + 1;
    let lease = pool.get::<Plain>("plain").await.unwrap();
    let seen = until_one(&mut events, |what| matches!(what, What::Leak { .. })).await;
    let What::Leak { holder } = &seen.last().unwrap().what else { unreachable!("it was looked for") };
    assert_eq!(holder.site.line(), line);
    drop(lease);
    until_one(&mut events, |what| matches!(what, What::LeakReturned { .. })).await;

    let held: Vec<_> = vec![pool.get::<Plain>("plain").await.unwrap(), pool.get::<Plain>("plain").await.unwrap()];
    assert_eq!(pool.check_leak(1).len(), 2);
    let seen = until_one(&mut events, |what| matches!(what, What::Crowded { .. })).await;
    assert!(has(&seen, |what| matches!(what, What::Crowded { held: 2, allowed: 1, .. })));
    drop(held);
    until_async(SOON, async || {
        let _looked_at = pool.check_leak(1);
        events.try_next().is_some_and(|event| matches!(event.what, What::Uncrowded { held: 0, allowed: 1 }))
    })
    .await;
}

#[cfg(feature = "redis")]
mod of_a_server {
    use redis::AsyncCommands;
    use resource_pool::Work;
    use resource_pool::config::{RedisConfig, Repeat};
    use services::{Kind, Service};

    use super::*;

    /// A killed server and a busy connection, as events.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn losses_repeats_unknown_outcomes_and_waits_are_told() {
        let server = Service::start(Kind::Redis).unwrap();
        let mut options = unhurried();
        options.repeat = Repeat::Idempotent;
        let config = RedisConfig::url(server.url()).pool_size(1);
        let pool =
            ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().unwrap();
        let mut redis = pool.redis().await.unwrap();
        let () = redis.set("key", 1).await.unwrap();

        let mut events = pool.events();
        server.freeze().unwrap();
        let (mut writer, mut reader) = (redis.clone(), redis.clone());
        let writing = tokio::spawn(async move { writer.incr::<_, _, i64>("key", 1).await });
        let reading = tokio::spawn(async move { reader.get::<_, i64>("key").await });
        until(SOON, || pool.status().resource("redis").unwrap().work == [(Work::Operation, 2)]);
        let seen = until_one(&mut events, |what| matches!(what, What::Lost { .. })).await;
        let lost = seen.last().unwrap();
        assert_eq!((lost.kind, lost.generation), (Some("redis"), 1));
        assert!(lost.endpoint.starts_with("redis://"), "{}", lost.endpoint);
        assert!(has(&seen, |what| matches!(what, What::ProbeFailed { strikes: 3, .. })), "{seen:#?}");
        // The cut follows the event, and until then a server that goes on could still answer.
        writing.within(SOON).await.unwrap().unwrap_err();
        server.thaw().unwrap();
        reading.within(SOON).await.unwrap().unwrap();
        let (mut unknown, mut repeated) = (false, false);
        while !(unknown && repeated) {
            let event = events.next().within(SOON).await.unwrap();
            match event.what {
                What::OutcomeUnknown { error } => {
                    unknown = matches!(&error, Error::OutcomeUnknown { action, .. } if action.contains("INCR"));
                    assert!(unknown, "{error}");
                }
                What::Repeated { .. } => repeated = true,
                _ => {}
            }
        }

        let threads: blocking::ResourcePool = pool.within(Duration::from_millis(50)).into();
        let waiting = tokio::task::spawn_blocking(move || {
            let held = threads.redis().unwrap();
            let timeout = threads.redis().map(drop);
            drop(held);
            (timeout, threads.redis().unwrap().lend(|_| threads.redis().map(drop)))
        });
        let (timeout, deadlock) = waiting.within(SOON).await.unwrap();
        let (Err(Error::Timeout(timeout)), Err(Error::Deadlock(deadlock))) = (timeout, deadlock) else {
            panic!("no timeout, or no deadlock")
        };
        let seen = until_one(&mut events, |what| matches!(what, What::Deadlocked { .. })).await;
        let is_told = |what: &What| matches!(what, What::TimedOut { error } if Arc::ptr_eq(error, &timeout));
        assert_eq!(seen.iter().filter(|event| is_told(&event.what)).count(), 1, "{seen:#?}");
        let waited =
            |what: &What| matches!(what, What::Waited { waiting_for, .. } if waiting_for.contains("connections"));
        assert!(has(&seen, waited), "{seen:#?}");
        assert!(has(&seen, |what| matches!(what, What::Cycle { waiters } if waiters.len() == 1)), "{seen:#?}");
        let What::Deadlocked { error } = &seen.last().unwrap().what else { unreachable!("it was looked for") };
        assert!(Arc::ptr_eq(error, &deadlock));
        assert!(pool.close_all().await.all_closed());
    }
}
