//! Waiting for conditions, with a limit; what takes how long; what is logged.

#![allow(dead_code, missing_docs, reason = "each test file uses some of it")]

use std::future::Future;
use std::io;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use resource_pool::config::Options;
use resource_pool::{Failure, Link, Resource};
use tracing_subscriber::filter::LevelFilter;

const PAUSE: Duration = Duration::from_millis(5);

/// Waits until this holds.
#[track_caller]
pub(crate) fn until(limit: Duration, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < limit, "not so within {limit:?}");
        std::thread::sleep(PAUSE);
    }
}

/// Waits until this holds.
pub(crate) async fn until_async(limit: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < limit, "not so within {limit:?}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until there is one.
pub(crate) async fn eventually<T>(limit: Duration, mut get: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = get().await {
            return value;
        }
        assert!(started.elapsed() < limit, "none within {limit:?}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// A limit on whatever may hang, with the output or a panic.
pub(crate) trait Within: Future + Sized {
    fn within(self, limit: Duration) -> impl Future<Output = Self::Output> {
        async move {
            match tokio::time::timeout(limit, self).await {
                Ok(output) => output,
                Err(_) => panic!("not done within {limit:?}"),
            }
        }
    }
}

impl<F: Future> Within for F {}

/// Measures what the guide promises a limit for, as a thread counts time that only sleeps: on a busy machine that one is late
/// too.
#[derive(Clone)]
pub(crate) struct Stopwatch {
    pauses: Arc<AtomicU32>,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        let pauses = Arc::new(AtomicU32::new(0));
        let counted = Arc::downgrade(&pauses);
        thread::spawn(move || {
            while let Some(pauses) = counted.upgrade() {
                thread::sleep(PAUSE);
                pauses.fetch_add(1, Ordering::Relaxed);
            }
        });
        Stopwatch { pauses }
    }

    pub(crate) fn took(&self) -> Duration {
        PAUSE * self.pauses.load(Ordering::Relaxed)
    }
}

/// A resource with nothing to connect to.
pub(crate) struct Plain;

impl Resource for Plain {
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
}

/// By which a busy machine has all the time it needs to connect, for tests of what comes after that.
pub(crate) fn unhurried() -> Options {
    let mut options = Options::default();
    options.acquire_timeout = Duration::from_secs(30);
    options.connect_timeout = Duration::from_secs(10);
    options.retry.budget = Duration::from_secs(30);
    options
}

/// Its output, and how long it took by a [`Stopwatch`].
pub(crate) async fn stopped<T>(run: impl Future<Output = T>) -> (T, Duration) {
    let stopwatch = Stopwatch::start();
    let output = run.await;
    (output, stopwatch.took())
}

/// The names of this process's threads.
pub(crate) fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc");
    tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok()).collect()
}

/// A process of its own, which runs the test of this name alone, and where threads can run out: each is to have a stack of
/// [`STACK`]. None in that process itself.
pub(crate) fn alone(test: &str) -> Option<ExitStatus> {
    const ALONE: &str = "RESOURCE_POOL_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return None;
    }
    let mut child = Command::new(std::env::current_exe().expect("a path"));
    child.args(["--exact", test, "--nocapture"]).env(ALONE, "yes").env("RUST_MIN_STACK", STACK.to_string());
    Some(child.status().expect("a child"))
}

const STACK: u64 = 1 << 30;

/// From now on, this process can have no more threads, or can again.
#[cfg(target_os = "linux")]
pub(crate) fn spare_threads(spares: bool) {
    let size = || -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
        let size =
            status.lines().find_map(|line| line.strip_prefix("VmSize:")?.trim().strip_suffix(" kB")?.parse().ok());
        size.map_or_else(|| panic!("no size: {status}"), |size: u64| size * 1024)
    };
    let limit = |room: &str| {
        let me = std::process::id().to_string();
        let limited = Command::new("prlimit").args(["--pid", &me, &format!("--as={room}:")]).status();
        assert!(limited.expect("prlimit").success());
    };
    // Threads that wait. Each has a stack that a thread before it has left and the next one would be given.
    static HOGS: Mutex<Vec<mpsc::Sender<()>>> = Mutex::new(Vec::new());
    let hog = || {
        let (sender, waits) = mpsc::channel::<()>();
        let is_there = std::thread::Builder::new().spawn(move || waits.recv()).is_ok();
        HOGS.lock().extend(is_there.then_some(sender));
        is_there
    };
    if spares {
        limit("unlimited");
        HOGS.lock().clear();
        assert!(hog());
    } else {
        until(Duration::from_secs(30), || {
            let room = size() + STACK / 2;
            limit(&room.to_string());
            // A thread that ends leaves its room to another one. One that has not run yet has the name of the worker that
            // began it, of which the prober has two.
            let none_runs = || {
                let threads = threads();
                let named = |name: &str| threads.iter().filter(|thread| thread.starts_with(name)).count();
                named("resource-pool-b") == 0 && named("resource-pool-p") <= 2
            };
            // Before that, one may run that has ended by then; behind it, the room that it left is taken.
            !hog() && none_runs() && !hog() && size() + STACK > room
        });
    }
}

/// What this process logs from now on, at every level.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn start() -> Self {
        let log = Log::default();
        let writer = log.clone();
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(LevelFilter::TRACE)
            .with_writer(move || writer.clone())
            .init();
        log
    }

    /// What this thread logs meanwhile.
    pub(crate) fn during<T>(run: impl FnOnce() -> T) -> (T, String) {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(LevelFilter::TRACE)
            .with_writer(move || writer.clone())
            .finish();
        let done = tracing::subscriber::with_default(subscriber, run);
        (done, log.text())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
