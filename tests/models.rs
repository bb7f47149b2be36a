//! Models and other large objects: loaded once, unloaded with the memory back.

#![allow(missing_docs)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread::{self, ThreadId};
use std::time::Duration;

use common::{pool_of, until};
use resource_pool::config::Options;
use resource_pool::{Error, Failure, Health, ModelLoader, Phase, ResourcePool, State, blocking};

/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn pool() -> blocking::ResourcePool {
    pool_of(|_| {})
}

/// A load of the number 7 that takes until it is let go, at most this long. The count is that of the loads.
fn held_load(
    most: Duration,
) -> (mpsc::Sender<()>, Arc<AtomicUsize>, impl Fn() -> Result<i32, Failure> + Send + Sync + 'static) {
    let ((go, waits), loads) = (mpsc::channel(), Arc::<AtomicUsize>::default());
    let (waits, counted) = (std::sync::Mutex::new(waits), Arc::clone(&loads));
    let load = move || {
        counted.fetch_add(1, Ordering::SeqCst);
        // It ends in the same way if nobody lets it go.
        let _let_go = waits.lock().unwrap().recv_timeout(most);
        Ok(7)
    };
    (go, loads, load)
}

/// An object that tells on which thread it drops.
struct Weights {
    values: Vec<f64>,
    dropped: mpsc::Sender<ThreadId>,
}

impl Drop for Weights {
    fn drop(&mut self) {
        self.dropped.send(thread::current().id()).unwrap();
    }
}

#[test]
fn a_model_is_loaded_once_for_all_who_ask() {
    const CALLERS: usize = 16;
    let (pool, loads) = (pool(), Arc::new(AtomicUsize::new(0)));
    let all_ask = Arc::new(Barrier::new(CALLERS + 1));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (pool, loads, all_ask) = (pool.clone(), Arc::clone(&loads), Arc::clone(&all_ask));
            thread::spawn(move || {
                all_ask.wait();
                let load = move || {
                    loads.fetch_add(1, Ordering::SeqCst);
                    Ok(vec![1.0, 2.0])
                };
                let model = pool.model("momentum", load).unwrap();
                (model.as_ptr() as usize, model)
            })
        })
        .collect();
    all_ask.wait();
    let guards: Vec<_> = callers.into_iter().map(|caller| caller.join().unwrap()).collect();
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    assert!(guards.iter().all(|(address, _)| *address == guards[0].0));
    let status = pool.status();
    let resource = status.resource("momentum").unwrap();
    assert_eq!((resource.kind, resource.usage.open, resource.usage.in_use), (Some("model"), Some(1), Some(CALLERS)));
    assert_eq!(pool.health_check().unwrap().entry("momentum").unwrap().health, Health::Pass);
    let other = pool.model("momentum", || Ok(String::new())).unwrap_err();
    assert!(matches!(other, Error::NameTaken { .. }), "{other}");
    drop(guards);
    let report = pool.close_all().unwrap();
    assert!(report.all_closed(), "{report}");
    assert_eq!(report.step("momentum").unwrap().phase, Phase::Models);
}

#[test]
fn a_model_is_unloaded_on_another_thread() {
    let pool = pool();
    let (dropped, drops) = mpsc::channel();
    let loader = || {
        let dropped = dropped.clone();
        move || Ok(Weights { values: vec![0.5], dropped: dropped.clone() })
    };
    drop(pool.model("free", loader()).unwrap());
    assert!(pool.close("free").unwrap().all_closed());
    assert_ne!(drops.try_recv().unwrap(), thread::current().id(), "it is unloaded once `close` answers");

    // A model that is still held goes on, and the last guard does not drop it itself.
    let held = pool.model("held", loader()).unwrap();
    let line = line!() - 1;
    let report = pool.close("held").unwrap();
    assert!(report.all_closed(), "{report}");
    assert_eq!(report.step("held").unwrap().held[0].site.line(), line);
    assert!(drops.try_recv().is_err() && held.values == [0.5]);
    assert!(matches!(pool.model("held", loader()), Err(Error::Closed { .. })));
    drop(held);
    assert_ne!(drops.recv_timeout(SOON).unwrap(), thread::current().id());
    // It can be loaded again.
    pool.reconnect("held").unwrap();
    assert_eq!(pool.model("held", loader()).unwrap().values, [0.5]);
    assert!(pool.close_all().unwrap().all_closed());
    drops.recv_timeout(SOON).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_gives_up_leaves_the_loading_alone() {
    let change = |options: &mut Options| options.connect_timeout = Duration::from_millis(50);
    let pool: ResourcePool = pool_of(change).as_async();
    // It takes longer than an attempt to connect may.
    let (go, loads, load) = held_load(SOON);
    let impatient = pool.within(Duration::from_millis(200)).model("slow", load).await.unwrap_err();
    assert!(matches!(impatient, Error::Timeout(_)), "{impatient}");
    assert_eq!(pool.status().resource("slow").unwrap().state, State::Connecting);
    let next = tokio::spawn(pool.model("slow", || Ok(8)));
    go.send(()).unwrap();
    assert_eq!(*next.await.unwrap().unwrap(), 7);
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    assert!(pool.close_all().await.all_closed());
}

/// The time of an attempt does not count, however short it is.
#[test]
fn a_short_time_to_connect_loads_once() {
    let pool = pool_of(|options| options.connect_timeout = Duration::from_millis(1));
    // It takes as long as many attempts may.
    let (go, loads, load) = held_load(Duration::from_millis(200));
    assert_eq!(*pool.model("slow", load).unwrap(), 7);
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    drop(go);
    assert!(pool.close_all().unwrap().all_closed());
}

#[test]
fn a_reconnect_is_no_close_for_those_who_ask() {
    let pool = pool();
    let load = || Ok(vec![1.0; 100]);
    drop(pool.model("momentum", load).unwrap());
    let ends = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asks = |asks_async: bool| {
        let (pool, ends) = (pool.clone(), Arc::clone(&ends));
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let mut asked = 0;
            while !ends.load(Ordering::SeqCst) {
                let model = match asks_async {
                    true => runtime.block_on(pool.as_async().model("momentum", load)),
                    false => pool.model("momentum", load),
                };
                match model {
                    Ok(model) => assert_eq!(model.len(), 100),
                    // A wait may meet the loss that the next reconnect tells.
                    Err(error) => assert!(matches!(error, Error::Lost { .. }), "{error}"),
                }
                asked += 1;
            }
            asked
        })
    };
    let callers = [asks(true), asks(false), asks(false)];
    for _ in 0..300 {
        pool.reconnect("momentum").unwrap();
    }
    ends.store(true, Ordering::SeqCst);
    for caller in callers {
        assert!(caller.join().unwrap() > 0);
    }
    assert!(pool.close_all().unwrap().all_closed());
}

/// A closure that is forgotten with its resource may have captured a value whose drop blocks.
#[test]
fn a_loader_that_blocks_as_it_drops_holds_nobody_up() {
    struct Blocks(std::sync::Mutex<mpsc::Receiver<()>>, mpsc::Sender<Option<String>>);
    impl Drop for Blocks {
        fn drop(&mut self) {
            self.1.send(thread::current().name().map(str::to_owned)).unwrap();
            self.0.lock().unwrap().recv().unwrap_err();
        }
    }
    let pool = pool();
    let ((release, held), (tell, told)) = (mpsc::channel(), mpsc::channel());
    let blocks = Blocks(std::sync::Mutex::new(held), tell);
    let load = move || {
        let _captured = &blocks;
        Ok(1)
    };
    drop(pool.model("one", load).unwrap());
    assert!(pool.unregister("one").unwrap().all_closed());
    let thread = told.recv_timeout(SOON).unwrap();
    assert_eq!(thread.as_deref(), Some("resource-pool-drops"));
    assert_eq!(*pool.model("one", || Ok(2)).unwrap(), 2, "its name is free");
    drop(release);
    assert!(pool.close_all().unwrap().all_closed());
}

#[test]
fn a_model_that_cannot_be_loaded_says_why() {
    let pool = pool();
    let told = |error: Error| match &error {
        Error::Connect(connect) => (connect.permanent, connect.attempts, error.to_string()),
        _ => panic!("{error}"),
    };
    let (permanent, attempts, text) =
        told(pool.model("panics", || -> Result<u8, Failure> { panic!("as the test asked") }).unwrap_err());
    assert!(permanent && attempts == 1 && text.contains("it panicked: as the test asked"), "{text}");
    let (permanent, attempts, _) =
        told(pool.model("wrong", || -> Result<u8, _> { Err(Failure::permanent("no weights")) }).unwrap_err());
    assert!(permanent && attempts == 1);
    let tries = AtomicUsize::new(0);
    let second = move || match tries.fetch_add(1, Ordering::SeqCst) {
        0 => Err(Failure::transient("not yet")),
        _ => Ok(1),
    };
    assert_eq!(*pool.model("later", second).unwrap(), 1);
    let (go, _, held) = held_load(SOON);
    let slow = ModelLoader::new(held);
    let (_, _, text) = told(pool.model("slow", slow.limit(Duration::from_millis(20))).unwrap_err());
    assert!(text.contains("it was not loaded within 20ms"), "{text}");
    drop(go);
}

/// The resident memory of this process, in MiB.
#[cfg(target_os = "linux")]
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<usize>().unwrap() / 1024
}

#[cfg(target_os = "linux")]
#[test]
fn the_memory_of_a_large_object_is_back() {
    if let Some(status) = common::alone("the_memory_of_a_large_object_is_back") {
        return assert!(status.success());
    }
    const SIZE: usize = 512;
    let pool = pool();
    let before = resident();
    // Every page is written, so that it takes memory.
    let load = || Ok(vec![1_u8; SIZE << 20]);
    let model = pool.model("large", load).unwrap();
    let loaded = resident();
    assert!(loaded >= before + SIZE, "{before} MiB, then {loaded}");
    drop(model);
    assert!(resident() >= before + SIZE, "the pool keeps it until it is closed");
    assert!(pool.close("large").unwrap().all_closed());
    let after = resident();
    println!("{before} MiB before, {loaded} MiB with the object, {after} MiB after its close");
    assert!(after < before + 16, "{before} MiB, {loaded} with it, then {after}");
    // The same in its phase, with a guard that is held until then.
    pool.reconnect("large").unwrap();
    let held = pool.model("large", load).unwrap();
    assert!(pool.close_all().unwrap().all_closed());
    assert!(resident() >= before + SIZE);
    drop(held);
    until(SOON, || resident() < before + 16);
}
