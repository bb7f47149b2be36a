//! The application's own work: holds, background tasks and threads, async hooks, and readiness that it lowers.

#![cfg(feature = "redis")]
#![allow(missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use common::{Log, Within, until_async};
use redis::AsyncCommands;
use resource_pool::config::{Options, RedisConfig};
use resource_pool::{CloseReport, Error, Health, Outcome, Phase, ResourcePool, StepReport, Work};
use services::{Kind, shared};
use tokio::task::JoinHandle;

/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn pool_of(change: impl FnOnce(&mut Options)) -> ResourcePool {
    let mut options = common::unhurried();
    change(&mut options);
    let builder = ResourcePool::builder().environment([("", ""); 0]).options(options);
    builder.resource(RedisConfig::url(shared(Kind::Redis).url())).build().unwrap()
}

fn pool() -> ResourcePool {
    pool_of(|_| {})
}

/// Begins to close the pool. Another task waits for the report.
fn closing(pool: &ResourcePool) -> JoinHandle<CloseReport> {
    let closing = pool.clone();
    tokio::spawn(async move { closing.close_all().await })
}

fn step<'a>(report: &'a CloseReport, name: &str) -> &'a StepReport {
    report.step(name).unwrap_or_else(|| panic!("no step {name:?}: {report}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_drain_waits_for_a_hold() {
    let pool = pool();
    let hold = pool.hold("request");
    assert_eq!(pool.status().holds, 1);
    let mut redis = pool.redis().await.unwrap().clone();
    let closed = closing(&pool);
    pool.closing().wait().within(SOON).await;
    // The request goes on as if nothing were.
    for _ in 0..100 {
        let () = redis.ping().await.unwrap();
    }
    assert!(!closed.is_finished());
    drop(hold);
    let report = closed.within(SOON).await.unwrap();
    assert!(report.all_closed(), "{report}");
    assert_eq!(step(&report, "application").finished, [(Work::Application, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_that_stays_is_named() {
    let pool = pool_of(|options| options.close.drain = Duration::from_millis(100));
    let hold = pool.hold("request");
    let line = line!() - 1;
    let report = closing(&pool).within(SOON).await.unwrap();
    let step = step(&report, "application");
    assert_eq!((&step.outcome, &*step.unfinished), (&Outcome::TimedOut, &[(Work::Application, 1)][..]));
    assert_eq!((&*step.held[0].resource, step.held[0].site.line()), ("request", line));
    drop(hold);
    assert_eq!(pool.status().holds, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_without_holds_has_no_step_for_them() {
    let pool = pool();
    drop(pool.redis().await.unwrap());
    let report = pool.close_all().await;
    assert!(report.all_closed() && report.step("application").is_none(), "{report}");
    pool.reopen().unwrap();
    let hold = pool.hold("request");
    let closed = closing(&pool);
    pool.closing().wait().within(SOON).await;
    drop(hold);
    assert_eq!(step(&closed.within(SOON).await.unwrap(), "application").finished, [(Work::Application, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_told_of_closing_and_uses_resources_until_it_has_ended() {
    let pool = pool_of(|options| options.close.drain = Duration::from_millis(300));
    drop(pool.redis().await.unwrap());
    let (uses, user) = (Arc::new(AtomicUsize::new(0)), pool.clone());
    let used = Arc::clone(&uses);
    let task = pool.spawn("ticker", move |closing| async move {
        closing.wait().await;
        // The drain is over when others may not lease any more. This task still may.
        let refused = async {
            let asks = || {
                let outside = user.clone();
                tokio::spawn(async move { outside.redis().await.is_err() })
            };
            while !asks().await.unwrap() {
                tokio::task::yield_now().await;
            }
        };
        refused.within(SOON).await;
        let () = user.redis().await.unwrap().clone().ping().await.unwrap();
        used.fetch_add(1, Ordering::SeqCst);
        "ended"
    });
    let task = task.unwrap();
    assert_eq!(pool.status().tasks, [(Arc::from("ticker"), 1)]);
    let report = closing(&pool).within(SOON).await.unwrap();
    assert!(report.all_closed(), "{report}");
    let step = step(&report, "ticker");
    assert_eq!((step.phase, &*step.finished), (Phase::Tasks, &[(Work::Task, 1)][..]));
    assert_eq!((uses.load(Ordering::SeqCst), task.await.unwrap()), (1, "ended"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_does_not_end_is_aborted_and_named() {
    let pool = pool_of(|options| options.close.long_step = Duration::from_millis(100));
    let task = pool.spawn("stubborn", |_| std::future::pending::<()>()).unwrap();
    let line = line!() - 1;
    let report = closing(&pool).within(SOON).await.unwrap();
    assert!(task.await.unwrap_err().is_cancelled());
    let step = step(&report, "stubborn");
    assert_eq!((&step.outcome, step.held[0].site.line()), (&Outcome::Forced, line));
    assert_eq!((&*step.given_up, &*step.finished), (&[(Work::Task, 1)][..], &[][..]));
    assert!(report.to_string().contains("tests/application.rs:"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_is_awaited_and_cannot_be_aborted() {
    let pool = pool_of(|options| options.close.long_step = Duration::from_millis(100));
    let (end, ended) = mpsc::channel::<()>();
    let thread = pool.spawn_thread("stubborn", move |_| ended.recv()).unwrap();
    let told = pool.spawn_thread("told", |closing| {
        while !closing.is_set() {
            std::thread::park_timeout(Duration::from_millis(1));
        }
    });
    let report = closing(&pool).within(SOON).await.unwrap();
    assert_eq!(step(&report, "told").outcome, Outcome::Closed);
    assert_eq!(step(&report, "stubborn").outcome, Outcome::TimedOut);
    assert_eq!(step(&report, "stubborn").unfinished, [(Work::Task, 1)]);
    drop(end);
    assert!(thread.join().unwrap().is_err());
    told.unwrap().join().unwrap();
}

#[test]
fn a_panic_is_logged_with_the_line_that_began_the_task() {
    let log = Log::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let pool = pool();
    let panicked = pool.spawn("unlucky", |_| async { panic!("as the test asked") }).unwrap();
    let thread = pool.spawn_thread("unlucky", |_| panic!("as the test asked")).unwrap();
    assert!(runtime.block_on(panicked).unwrap_err().is_panic());
    assert!(thread.join().is_err());
    let text = log.text();
    let told: Vec<_> = text.lines().filter(|line| line.contains("a background task panicked")).collect();
    assert_eq!(told.len(), 2, "{text}");
    for line in told {
        assert!(line.contains("unlucky") && line.contains("tests/application.rs:"), "{line}");
    }
    runtime.block_on(until_async(SOON, async || pool.status().tasks.is_empty()));
    assert!(runtime.block_on(pool.close_all()).all_closed());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_task_begins_once_closing_has() {
    let pool = pool();
    let hold = pool.hold("request");
    let closed = closing(&pool);
    pool.closing().wait().within(SOON).await;
    assert!(matches!(pool.spawn("late", |_| async {}), Err(Error::Closing { .. })));
    drop(hold);
    assert!(closed.within(SOON).await.unwrap().all_closed());
    assert!(matches!(pool.spawn_thread("late", |_| ()), Err(Error::Closed { .. })));
    pool.reopen().unwrap();
    pool.spawn("late", |_| async {}).unwrap().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_closes_the_pool_does_not_wait_for_itself() {
    let pool = pool();
    let user = pool.clone();
    let task = pool.spawn("last", move |_| async move { user.close_all().await }).unwrap();
    let refused = task.within(SOON).await.unwrap();
    assert!(matches!(refused.steps[0].outcome, Outcome::Failed(_)), "{refused}");
    let report = pool.close_all().within(SOON).await;
    assert_eq!(step(&report, "last").outcome, Outcome::Closed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_may_be_async() {
    let pool = pool_of(|options| options.close.step = Duration::from_millis(200));
    let (ran, user) = (Arc::new(AtomicBool::new(false)), pool.clone());
    drop(pool.redis().await.unwrap());
    let runs = Arc::clone(&ran);
    let hook = move || async move {
        // The hook needs a timer of the pool's runtime, and a resource that closes later.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let () = user.redis().await?.clone().ping().await?;
        runs.store(true, Ordering::SeqCst);
        Ok(())
    };
    pool.on_close_async("flush", Phase::HttpClients, hook).unwrap();
    pool.on_close_async("hangs", Phase::Files, std::future::pending).unwrap();
    let report = closing(&pool).within(SOON).await.unwrap();
    assert_eq!(step(&report, "flush").outcome, Outcome::Closed, "{report}");
    assert_eq!(step(&report, "hangs").outcome, Outcome::TimedOut);
    assert!(ran.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_can_be_lowered() {
    let pool = pool();
    drop(pool.redis().await.unwrap());
    assert_eq!(pool.health_check().await.readiness(), Health::Pass);
    pool.lower_readiness();
    let report = pool.health_check().await;
    assert_eq!((report.readiness(), report.liveness(), report.health), (Health::Fail, Health::Pass, Health::Pass));
    assert!(report.lowered && !report.closing && pool.redis().await.is_ok());
    pool.close_all().await;
    pool.reopen().unwrap();
    drop(pool.redis().await.unwrap());
    assert_eq!(pool.health_check().await.readiness(), Health::Pass);
}

#[test]
fn a_pool_that_another_runtime_uses_says_so() {
    let elsewhere = tokio::runtime::Runtime::new().unwrap();
    let (pool, log) = common::Log::during(|| {
        let pool = pool();
        drop(pool.spawn("at home", |_| async {}).unwrap());
        assert!(!pool.status().used_elsewhere);
        // The first poll is on this thread, whose log is kept.
        drop(elsewhere.block_on(pool.redis()).unwrap());
        pool
    });
    let advice = "`#[resource_pool::main]` instead of `#[tokio::main]`, or `builder().runtime(handle)`";
    assert_eq!(log.matches(advice).count(), 1, "{log}");
    assert!(pool.status().used_elsewhere && pool.status().to_string().contains(advice));
    assert!(elsewhere.block_on(pool.close_all()).all_closed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_may_close_a_resource_that_another_one_closes() {
    let pool = pool();
    drop(pool.redis().await.unwrap());
    let close = || {
        let user = pool.clone();
        pool.spawn("closer", move |_| async move { user.close("redis").await }).unwrap()
    };
    let (one, other) = tokio::join!(close(), close());
    assert!(one.unwrap().unwrap().all_closed() && other.unwrap().unwrap().all_closed());
}

/// A service that answers with a body which the test has in hand.
#[cfg(feature = "tower")]
#[tokio::test(flavor = "multi_thread")]
async fn a_request_holds_closing_up_until_its_body_has_ended() {
    use std::convert::Infallible;
    use std::future::{Ready, ready};
    use std::task::{Context, Poll};

    use http::{Request, Response};
    use resource_pool::tower::HoldLayer;
    use tower_layer::Layer;
    use tower_service::Service;

    struct Echo;

    impl Service<Request<String>> for Echo {
        type Response = Response<String>;
        type Error = Infallible;
        type Future = Ready<Result<Response<String>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<String>) -> Self::Future {
            ready(Ok(Response::new(request.into_body())))
        }
    }

    let pool = pool_of(|options| options.close.drain = Duration::from_millis(200));
    let layer = HoldLayer::new(&pool);
    let line = line!() - 1;
    let mut service = layer.layer(Echo);
    let response = service.call(Request::new("price".to_owned())).await.unwrap();
    assert_eq!(pool.status().holds, 1);
    let (_, body) = response.into_parts();
    assert_eq!(pool.status().holds, 1);
    let report = closing(&pool).within(SOON).await.unwrap();
    let step = step(&report, "application");
    assert_eq!((&step.outcome, step.held[0].site.line()), (&Outcome::TimedOut, line));
    drop(body);
    assert_eq!(pool.status().holds, 0);
}
