//! Clients that users build themselves: closed if they are alive, forgotten if they are dropped, also if they are made
//! while the pool closes.

#![allow(missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use common::Within;
use parking_lot::Mutex;
use resource_pool::{BoxError, Error, Failure, Link, Outcome, Phase, Resource, ResourcePool};

/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn pool() -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).options(common::unhurried()).build().unwrap()
}

type Closed = Arc<Mutex<Vec<&'static str>>>;

/// A client of a program, with its name.
struct Client(&'static str);

fn client(name: &'static str) -> Arc<Client> {
    Arc::new(Client(name))
}

/// Adopts a client, and notes its name once it is closed.
fn adopt(pool: &ResourcePool, client: &Arc<Client>, phase: Phase, closed: &Closed) -> Result<(), Error> {
    let closed = Arc::clone(closed);
    let close = move |client: Arc<Client>| -> Result<(), BoxError> {
        closed.lock().push(client.0);
        Ok(())
    };
    pool.adopt(client.0, client, phase, close)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_made_while_the_pool_closes_is_closed() {
    let (pool, closed) = (pool(), Closed::default());
    let clients = [client("before its phase"), client("in its phase"), client("after its phase")];
    let gone = client("gone");
    let (user, noted) = (pool.clone(), Arc::clone(&closed));
    let kept = clients.clone();
    // This runs in the phase of Redis, after the tasks and before the databases.
    let hook = move || {
        noted.lock().push("hook");
        for (client, phase) in kept.iter().zip([Phase::Databases, Phase::Redis, Phase::Tasks]) {
            adopt(&user, client, phase, &noted)?;
        }
        adopt(&user, &gone, Phase::Files, &noted)?;
        drop(gone);
        Ok(())
    };
    pool.on_close("hook", Phase::Redis, hook).unwrap();
    let (last, noted) = (pool.clone(), Arc::clone(&closed));
    // Nothing is left after this one but the client that it adopts.
    let very_last = client("made by the last step");
    let made = Arc::clone(&very_last);
    pool.on_close("last", Phase::Telemetry, move || Ok(adopt(&last, &made, Phase::Databases, &noted)?)).unwrap();
    let report = pool.close_all().within(SOON).await;
    assert!(report.all_closed(), "{report}");
    let mut closed_in_order = closed.lock().clone();
    // Both come next after the hook, side by side or one by one.
    closed_in_order[1..3].sort_unstable();
    assert_eq!(
        closed_in_order,
        ["hook", "after its phase", "in its phase", "before its phase", "made by the last step"]
    );
    assert_eq!(report.steps.len(), 6, "{report}");
    assert!(report.step("gone").is_none(), "{report}");
    drop(clients);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_last_step_a_client_is_its_makers_until_the_pool_opens() {
    let (pool, closed) = (pool(), Closed::default());
    let own = client("client");
    adopt(&pool, &own, Phase::Databases, &closed).unwrap();
    assert!(pool.close_all().await.all_closed());
    let refused = adopt(&pool, &own, Phase::Databases, &closed).unwrap_err();
    assert!(matches!(refused, Error::Closed { .. }), "{refused}");
    pool.reopen().unwrap();
    adopt(&pool, &own, Phase::Databases, &closed).unwrap();
    assert!(pool.close_all().await.all_closed());
    assert_eq!(*closed.lock(), ["client", "client"]);
}

/// Clients that are adopted without end do not hold closing up.
#[tokio::test(flavor = "multi_thread")]
async fn closing_ends_although_clients_are_made_without_end() {
    fn again(pool: &ResourcePool, clients: Arc<Mutex<Vec<Arc<()>>>>) -> Result<(), BoxError> {
        let client = Arc::new(());
        clients.lock().push(Arc::clone(&client));
        let next = pool.clone();
        let close = move |_| again(&next, clients);
        Ok(pool.adopt("again", &client, Phase::Databases, close)?)
    }
    let pool = pool();
    let clients = Arc::<Mutex<Vec<_>>>::default();
    again(&pool, Arc::clone(&clients)).unwrap();
    let report = pool.close_all_within(Duration::from_millis(500)).within(SOON).await;
    // The deadline meets one of them, and skips the one that this one has made.
    let closed = report.steps.iter().take_while(|step| step.outcome == Outcome::Closed).count();
    assert!(closed > 0 && report.steps.len() <= closed + 2, "{report}");
    assert!(clients.lock().len() >= closed, "{report}");
}

/// A value that a closure has captured. Its drop blocks until it is released.
struct Blocks(Mutex<mpsc::Receiver<()>>, mpsc::Sender<()>);

impl Drop for Blocks {
    fn drop(&mut self) {
        self.1.send(()).unwrap();
        self.0.lock().recv().unwrap_err();
    }
}

/// Drops of closures that never run may block, and hold nobody up.
#[tokio::test(flavor = "multi_thread")]
async fn a_closure_that_is_not_run_drops_aside() {
    let (tell, told) = mpsc::channel();
    let blocks = || {
        let (release, held) = mpsc::channel::<()>();
        (Blocks(Mutex::new(held), tell.clone()), release)
    };
    let drops = || told.recv_timeout(SOON).unwrap();
    let pool = pool();
    let (gone, alive) = (client("gone"), client("alive"));
    let ((first, one), (second, two), (third, three)) = (blocks(), blocks(), blocks());
    let closing = |captured: Blocks| {
        move |_: Arc<Client>| -> Result<(), BoxError> {
            let _captured = &captured;
            Ok(())
        }
    };
    pool.adopt("gone", &gone, Phase::Files, closing(first)).unwrap();
    drop(gone);
    // The hooks of gone clients are looked for as their number has doubled.
    for _ in 0..4 {
        pool.adopt("alive", &alive, Phase::Files, |_| Ok(())).unwrap();
    }
    drops();
    let gone = client("gone before closing");
    pool.adopt("gone", &gone, Phase::Files, closing(second)).unwrap();
    drop(gone);
    let report = pool.close_all().within(SOON).await;
    drops();
    assert!(report.all_closed() && report.steps.len() == 4, "{report}");
    pool.reopen().unwrap();
    pool.adopt("skipped", &alive, Phase::Files, closing(third)).unwrap();
    let report = pool.close_all_within(Duration::ZERO).within(SOON).await;
    drops();
    assert_eq!(report.step("skipped").unwrap().outcome, Outcome::Skipped, "{report}");
    drop((one, two, three));
}

/// The order of late clients is that of the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_client_closes_before_those_that_it_depends_on() {
    struct Notes(&'static str, Closed);
    impl Resource for Notes {
        type Handle = ();
        async fn connect(&self, _: &Link) -> Result<(), Failure> {
            Ok(())
        }
        async fn ping(&self, (): &()) -> Result<(), Failure> {
            Ok(())
        }
        async fn close(&self, (): ()) -> Result<(), Failure> {
            self.1.lock().push(self.0);
            Ok(())
        }
    }
    let (pool, closed) = (pool(), Closed::default());
    pool.register("disk", Notes("disk", Arc::clone(&closed))).unwrap();
    drop(pool.get::<Notes>("disk").await.unwrap());
    let clients = [client("above"), client("below")];
    let (user, noted, kept) = (pool.clone(), Arc::clone(&closed), clients.clone());
    let (begin, begun) = mpsc::channel();
    let hook = move || {
        let [above, below] = &kept;
        let first = Arc::clone(&noted);
        let close_above = move |_| {
            // Nothing has begun that it depends on.
            let early = begun.recv_timeout(Duration::from_millis(200)).is_ok();
            first.lock().push(if early { "too late" } else { "above" });
            Ok(())
        };
        user.adopt("above", above, Phase::Models, close_above)?;
        let close_below = move |_| {
            noted.lock().push("below");
            // Nobody waits for it by then.
            let _ = begin.send(());
            Ok(())
        };
        user.adopt("below", below, Phase::Models, close_below)?;
        for (dependant, dependency) in [("above", "below"), ("below", "disk")] {
            user.depends_on(dependant, dependency)?;
        }
        Ok(())
    };
    pool.on_close("hook", Phase::Tasks, hook).unwrap();
    let report = pool.close_all().within(SOON).await;
    assert!(report.all_closed(), "{report}");
    assert_eq!(*closed.lock(), ["above", "below", "disk"]);
}

/// Closures of all sorts of ends, each of which is in the report and harms no other.
#[tokio::test(flavor = "multi_thread")]
async fn a_closure_may_fail_panic_or_hang() {
    let options = {
        let mut options = common::unhurried();
        // A panic takes longer than that, since its backtrace is printed.
        (options.close.long_step, options.close.step) = (Duration::from_millis(200), SOON);
        options
    };
    let pool = ResourcePool::builder().environment([("", ""); 0]).options(options).build().unwrap();
    let (alive, (release, held)) = (client("alive"), mpsc::channel::<()>());
    let phase = Phase::Databases;
    pool.adopt("fails", &alive, phase, |_| Err("as the test asked".into())).unwrap();
    pool.adopt("panics", &alive, Phase::Files, |_| panic!("as the test asked")).unwrap();
    pool.adopt("hangs", &alive, phase, move |_| Ok(held.recv()?)).unwrap();
    pool.adopt_async("fails async", &alive, phase, |_| async { Err("as the test asked".into()) }).unwrap();
    pool.adopt_async("panics async", &alive, Phase::Files, |_| async { panic!("as the test asked") }).unwrap();
    pool.adopt_async("hangs async", &alive, phase, |_| std::future::pending()).unwrap();
    pool.adopt("closes", &alive, Phase::Telemetry, |_| Ok(())).unwrap();
    let report = pool.close_all().within(SOON).await;
    drop(release);
    let outcome = |name| report.step(name).unwrap().outcome.clone();
    for name in ["fails", "fails async"] {
        assert!(matches!(outcome(name), Outcome::Failed(why) if why == "as the test asked"), "{report}");
    }
    for name in ["panics", "panics async"] {
        assert!(matches!(outcome(name), Outcome::Panicked(why) if why == "as the test asked"), "{report}");
    }
    for name in ["hangs", "hangs async"] {
        assert_eq!(outcome(name), Outcome::TimedOut, "{report}");
    }
    assert_eq!(outcome("closes"), Outcome::Closed, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_async_closure_closes_a_client() {
    let (pool, closed) = (pool(), Closed::default());
    let (alive, gone) = (client("alive"), client("gone"));
    for client in [&alive, &gone] {
        let closed = Arc::clone(&closed);
        let close = move |client: Arc<Client>| async move {
            tokio::task::yield_now().await;
            closed.lock().push(client.0);
            Ok(())
        };
        pool.adopt_async(client.0, client, Phase::Databases, close).unwrap();
    }
    drop(gone);
    let report = pool.close_all().within(SOON).await;
    assert!(report.all_closed() && report.steps.len() == 1, "{report}");
    assert_eq!(*closed.lock(), ["alive"]);
    let refused = pool.adopt_async("late", &alive, Phase::Databases, |_| async { Ok(()) }).unwrap_err();
    assert!(matches!(refused, Error::Closed { .. }), "{refused}");
}
