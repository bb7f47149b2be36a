//! Fifty requests arrive at once on five idle connections, where connecting takes much longer than the work. HikariCP
//! has this test; it ends with five or six connections.

use std::thread;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use resource_pool::R2d2;
use resource_pool::blocking::ResourcePool;
use tokio::runtime::Runtime;

use crate::duel::{Duel, Rounds, Unit};
use crate::peers::{self, Nothing};
use crate::session::Session;

const REQUESTS: usize = 50;
const MAX: u32 = 50;
const IDLE: u32 = 5;
/// Opening a connection takes much longer than `WORK`, so a pool should wait for a return rather than open many.
const CONNECT: Duration = Duration::from_millis(150);
/// The time for which each request uses its connection.
const WORK: Duration = Duration::from_millis(2);

/// The result of one spike.
#[derive(Debug)]
struct Spike {
    /// The number of connections, the five idle ones included.
    opened: usize,
    /// The time until the last request was served, in milliseconds.
    took: f64,
}

impl Spike {
    fn new(more: usize, took: Duration) -> Self {
        Spike { opened: IDLE as usize + more, took: took.as_secs_f64() * 1000.0 }
    }
}

pub(crate) fn run(session: &Session) {
    let runtime = Runtime::new().expect("a runtime");
    let runs: [(&'static str, &dyn Fn() -> Spike); 5] = [
        ("resource_pool", &|| {
            let manager = Nothing::slow(CONNECT);
            let pool = ResourcePool::builder().environment([("", ""); 0]).build().expect("a pool");
            let kind = R2d2::new(manager.clone()).max_size(MAX as usize);
            pool.register("work", kind).expect("a new name");
            threads(&manager, || pool.check_out::<Nothing>("work").expect("in turn"))
        }),
        ("r2d2", &|| {
            let manager = Nothing::slow(CONNECT);
            let pool = peers::r2d2(MAX, 0, manager.clone());
            threads(&manager, || pool.get().expect("in turn"))
        }),
        ("deadpool", &|| {
            let manager = Nothing::slow(CONNECT);
            let pool = peers::deadpool(MAX, manager.clone());
            tasks(&runtime, &manager, move || {
                let pool = pool.clone();
                async move { pool.get().await.expect("in turn") }
            })
        }),
        ("bb8", &|| {
            let manager = Nothing::slow(CONNECT);
            let pool = peers::bb8(&runtime, MAX, manager.clone());
            tasks(&runtime, &manager, move || {
                let pool = pool.clone();
                async move { pool.get_owned().await.expect("in turn") }
            })
        }),
        ("mobc", &|| {
            let manager = Nothing::slow(CONNECT);
            let pool = peers::mobc(MAX, manager.clone());
            tasks(&runtime, &manager, move || {
                let pool = pool.clone();
                async move { pool.get().await.expect("in turn") }
            })
        }),
    ];
    let (work, connect) = (WORK.as_millis(), CONNECT.as_millis());
    let what = format!(
        "{REQUESTS} requests at once of {work} ms each, on {IDLE} idle connections, where opening one takes {connect} ms: \
         connections in the end"
    );
    let rounds: Vec<_> = runs.iter().map(|_| Rounds::new()).collect();
    let mut opened = Duel::new("spike_opened", what, Unit::Count);
    let mut took = Duel::new("spike_took", "the same: until the last is served", Unit::Milliseconds);
    for ((name, run), rounds) in runs.iter().zip(&rounds) {
        opened = opened.contestant(*name, move || rounds.keep(run(), |spike| spike.opened as f64));
        took = took.contestant(*name, rounds.again(|spike| spike.took));
    }
    opened
        .at_most("resource_pool", 10.0, 6.0)
        .note("Ours is over the adapter for r2d2 that r2d2 itself has; what it probes over is not counted.")
        .run(session);
    took.run(session);
}

fn threads<G: Send>(manager: &Nothing, get: impl Fn() -> G + Sync) -> Spike {
    let held: Vec<_> = (0..IDLE).map(|_| get()).collect();
    drop(held);
    let before = idle(manager);
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..REQUESTS {
            scope.spawn(|| {
                let held = get();
                thread::sleep(WORK);
                drop(held);
            });
        }
    });
    let took = began.elapsed();
    Spike::new(settled(manager) - before, took)
}

fn tasks<G: Send, F>(runtime: &Runtime, manager: &Nothing, get: impl Fn() -> F + Clone + Send + 'static) -> Spike
where
    F: Future<Output = G> + Send,
{
    runtime.block_on(async {
        drop(join_all((0..IDLE).map(|_| get())).await);
        // Some pools take a connection back in a task of their own.
        tokio::time::sleep(WORK).await;
    });
    let before = idle(manager);
    let began = Instant::now();
    let running: Vec<_> = (0..REQUESTS)
        .map(|_| {
            let get = get.clone();
            runtime.spawn(async move {
                let held = get().await;
                tokio::time::sleep(WORK).await;
                drop(held);
            })
        })
        .collect();
    for task in running {
        runtime.block_on(task).expect("a task that ends");
    }
    let took = began.elapsed();
    Spike::new(settled(manager) - before, took)
}

/// The number of connections before the spike. It is the five, and maybe one for the probe.
fn idle(manager: &Nothing) -> usize {
    let opened = settled(manager);
    assert!((IDLE as usize..=IDLE as usize + 1).contains(&opened), "{opened} idle");
    opened
}

/// The number of connections once no further one opens. It includes those that are still opening when the last request
/// is served.
fn settled(manager: &Nothing) -> usize {
    loop {
        let opened = manager.opened();
        thread::sleep(CONNECT + CONNECT / 2);
        if manager.opened() == opened {
            return opened;
        }
    }
}
