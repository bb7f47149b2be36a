//! Helpers for the test files: waiting for conditions with a limit, measuring durations, running out of threads,
//! logging.
//!
//! A [`Stopwatch`] has a thread of its own, which ends once the stopwatch and its clones are gone. [`Log`] has one
//! lock, held only to append to the text or to copy it. `HOGS` holds the threads that [`spare_threads`] blocks.

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
use resource_pool::{Failure, Link, Resource, Usage, blocking};
use tracing_subscriber::filter::LevelFilter;

/// The limit of a health check in [`pool_of`].
const UNHURRIED: Duration = Duration::from_secs(20);

/// Between two looks at a condition: short for a limit of seconds, and cheap.
const PAUSE: Duration = Duration::from_millis(5);

/// Waits until the condition holds.
#[track_caller]
pub(crate) fn until(limit: Duration, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < limit, "not so within {limit:?}");
        std::thread::sleep(PAUSE);
    }
}

/// Waits until the condition holds.
pub(crate) async fn until_async(limit: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < limit, "not so within {limit:?}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until there is a value.
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

/// Limits the time of any future that may hang. It returns the output or panics.
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

/// Measures durations for which the guide promises a limit. It counts the sleeps of a thread that only sleeps, because
/// on a busy machine that thread is late too.
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

/// A pool for threads with nothing configured, whose health checks also wait for a busy machine.
pub(crate) fn pool_of(change: impl FnOnce(&mut Options)) -> blocking::ResourcePool {
    let mut options = unhurried();
    let health = &mut options.health;
    (health.each, health.all, health.slow) = (UNHURRIED, UNHURRIED, UNHURRIED);
    change(&mut options);
    blocking::ResourcePool::builder().environment([("", ""); 0]).options(options).build().unwrap()
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

/// A resource with nothing to connect to, whose usage is the answer of this call.
pub(crate) struct Telling(Box<dyn Fn() -> Usage + Send + Sync>);

impl Telling {
    pub(crate) fn new(usage: impl Fn() -> Usage + Send + Sync + 'static) -> Self {
        Telling(Box::new(usage))
    }
}

impl Resource for Telling {
    type Handle = ();

    async fn connect(&self, link: &Link) -> Result<(), Failure> {
        Plain.connect(link).await
    }

    async fn ping(&self, (): &()) -> Result<(), Failure> {
        Plain.ping(&()).await
    }

    async fn close(&self, (): ()) -> Result<(), Failure> {
        Plain.close(()).await
    }

    fn usage(&self, (): &()) -> Usage {
        (self.0)()
    }
}

/// A resource that cannot be reached, with this endpoint.
pub(crate) struct Unreachable(pub(crate) &'static str);

impl Resource for Unreachable {
    type Handle = ();

    async fn connect(&self, _: &Link) -> Result<(), Failure> {
        Err(Failure::permanent("nobody is there"))
    }

    async fn ping(&self, (): &()) -> Result<(), Failure> {
        Plain.ping(&()).await
    }

    async fn close(&self, (): ()) -> Result<(), Failure> {
        Plain.close(()).await
    }

    fn endpoint(&self) -> String {
        self.0.to_owned()
    }
}

/// Options that give a busy machine all the time it needs to connect. They are for tests of what happens after that.
pub(crate) fn unhurried() -> Options {
    let mut options = Options::default();
    options.acquire_timeout = Duration::from_secs(30);
    options.connect_timeout = Duration::from_secs(10);
    options.retry.budget = Duration::from_secs(30);
    options
}

/// The future's output, and how long it took by a [`Stopwatch`].
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

/// Runs the test of this name alone, in a process of its own, and returns its exit status. Threads can run out there,
/// because each has a stack of [`STACK`]. Returns `None` in that process itself.
pub(crate) fn alone(test: &str) -> Option<ExitStatus> {
    const ALONE: &str = "RESOURCE_POOL_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return None;
    }
    let mut child = Command::new(std::env::current_exe().expect("a path"));
    child.args(["--exact", test, "--nocapture"]).env(ALONE, "yes").env("RUST_MIN_STACK", STACK.to_string());
    Some(child.status().expect("a child"))
}

/// The stack of a thread in a process of [`alone`], in bytes. It is so large that a limit on memory limits threads.
const STACK: u64 = 1 << 30;

/// Takes away this process's room for further threads, or gives it back.
#[cfg(target_os = "linux")]
pub(crate) fn spare_threads(spares: bool) {
    let size = || -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
        let size =
            status.lines().find_map(|line| line.strip_prefix("VmSize:")?.trim().strip_suffix(" kB")?.parse().ok());
        size.map_or_else(|| panic!("no size: {status}"), |size: u64| size * 1024)
    };
    let limit = |script: &str| {
        let me = std::process::id().to_string();
        let limited = Command::new("bash").args(["-euc", script, "limit", &me, &(STACK / 2).to_string()]).output();
        let limited = limited.expect("bash");
        assert!(limited.status.success(), "{}", String::from_utf8_lossy(&limited.stderr));
        String::from_utf8(limited.stdout).expect("a number").trim().parse().unwrap_or(0)
    };
    // Threads that wait. Each keeps a stack that an earlier thread left, so that the next thread is not given that
    // stack.
    static HOGS: Mutex<Vec<mpsc::Sender<()>>> = Mutex::new(Vec::new());
    let hog = || {
        let (sender, waits) = mpsc::channel::<()>();
        let is_there = std::thread::Builder::new().spawn(move || waits.recv()).is_ok();
        HOGS.lock().extend(is_there.then_some(sender));
        is_there
    };
    if spares {
        limit("prlimit --pid $1 --as=unlimited:");
        HOGS.lock().clear();
        assert!(hog());
    } else {
        until(Duration::from_secs(30), || {
            let room: u64 = limit(TIGHT);
            // A thread that ends leaves its room to another one. A thread that has not run yet still has the name of
            // the worker that began it, and the prober has two workers.
            let none_runs = || {
                let threads = threads();
                let named = |name: &str| threads.iter().filter(|thread| thread.starts_with(name)).count();
                named("resource-pool-b") == 0 && named("resource-pool-p") <= 2
            };
            // Before the first `hog`, a thread may run that has ended by now. The second `hog` takes the room that it
            // left.
            !hog() && none_runs() && !hog() && size() + STACK > room
        });
    }
}

/// Limits the memory of a process to what it has and half a stack, and prints the limit. All its threads stand still
/// meanwhile. A thread that begins between the look and the limit would take the room of all others, and the standard
/// library aborts the process if a thread that has begun gets no memory for its signals.
const TIGHT: &str = r#"
trap 'kill -CONT $1' EXIT
kill -STOP $1
for look in {1..1000}; do
    running=$(grep -L '^State:.[TZ]' /proc/$1/task/*/status || true)
    [ -n "$running" ] || break
done
[ -z "$running" ]
size=$(sed -n 's/^VmSize:[^0-9]*\([0-9]*\) kB/\1/p' /proc/$1/status)
room=$((size * 1024 + $2))
prlimit --pid $1 --as=$room:
echo $room
"#;

/// The text that this process logs from now on, at every level.
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

    /// Runs the closure. Returns its output and the text that this thread logs meanwhile.
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
