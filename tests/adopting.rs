//! Clients that users build themselves: closed if they are alive, forgotten if they are dropped, also if they are made
//! while the pool closes.

#![allow(missing_docs)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::Within;
use parking_lot::Mutex;
use resource_pool::{BoxError, Error, Outcome, Phase, ResourcePool};

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
    assert!(clients.lock().len() > 1, "{report}");
    let closed = |outcome: &Outcome| matches!(outcome, Outcome::Closed | Outcome::Skipped | Outcome::Failed(_));
    assert!(report.steps.iter().all(|step| closed(&step.outcome)), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_async_closure_closes_a_client() {
    let (pool, closed) = (pool(), Closed::default());
    let (alive, gone) = (client("alive"), client("gone"));
    for client in [&alive, &gone] {
        let closed = Arc::clone(&closed);
        let close = move |client: Arc<Client>| async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
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
