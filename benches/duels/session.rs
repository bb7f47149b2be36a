//! The servers, the clocks and the amount of work, which all duels of one run share.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use services::{Kind, Service};

/// One run of the bench.
pub(crate) struct Session {
    smoke: bool,
    filter: Vec<String>,
    /// The folder for the rows, if they are to be kept.
    folder: Option<PathBuf>,
    rows: RefCell<Vec<String>>,
    servers: RefCell<BTreeMap<Kind, Rc<Service>>>,
}

impl Session {
    /// `cargo bench` passes `--bench`. Without it each duel has one short round, which shows that it runs.
    pub(crate) fn from_args(arguments: impl Iterator<Item = String>) -> Self {
        let arguments: Vec<_> = arguments.collect();
        let smoke = !arguments.iter().any(|argument| argument == "--bench");
        let filter = arguments.into_iter().filter(|argument| !argument.starts_with('-')).collect();
        let folder = env::var_os("RESOURCE_POOL_BENCH_FOLDER").map(PathBuf::from);
        Session { smoke, filter, folder, rows: RefCell::default(), servers: RefCell::default() }
    }

    pub(crate) fn is_smoke(&self) -> bool {
        self.smoke
    }

    /// This many times in a bench, or a few to show that the duel runs.
    pub(crate) fn times(&self, count: usize) -> usize {
        if self.smoke { (count / 1000).clamp(1, 20) } else { count }
    }

    /// Keeps the row of one duel until its part is done.
    pub(crate) fn keep(&self, row: String) {
        self.rows.borrow_mut().push(row);
    }

    /// Runs one part, if the user asks for it. Writes its rows at the end, so the folder has all rows of a part or
    /// none.
    pub(crate) fn part(&self, place: usize, name: &str, title: &str, run: impl FnOnce(&Session)) {
        if !self.filter.is_empty() && !self.filter.iter().any(|part| name.contains(part.as_str())) {
            return;
        }
        println!("== {title}");
        let began = Instant::now();
        run(self);
        println!("== {title}: {:.0?}\n", began.elapsed());
        let rows = self.rows.take();
        if let Some(folder) = &self.folder {
            let servers = self.servers.borrow();
            let version = |service: &Rc<Service>| service.version().expect("a server that answers");
            let servers: BTreeMap<_, _> = servers.iter().map(|(kind, it)| (kind.to_string(), version(it))).collect();
            let head = serde_json::json!({ "name": name, "title": title, "place": place, "servers": servers });
            let head = head.to_string();
            fs::create_dir_all(folder).expect("a folder for the rows");
            let lines = std::iter::once(head).chain(rows).map(|line| line + "\n").collect::<String>();
            fs::write(folder.join(format!("{name}.jsonl")), lines).expect("a file for the rows");
        }
    }

    /// The server of this kind, which all duels share. It starts when a duel first asks for it.
    pub(crate) fn server(&self, kind: Kind) -> Rc<Service> {
        let mut servers = self.servers.borrow_mut();
        Rc::clone(servers.entry(kind).or_insert_with(|| Rc::new(Service::start(kind).expect("a server"))))
    }
}

fn reading(clock: ClockId) -> Duration {
    clock_gettime(clock).expect("a clock that Linux has").into()
}

/// The processor time of this thread per run, in nanoseconds, over so many runs.
pub(crate) fn cpu(count: usize, mut run: impl FnMut()) -> f64 {
    let before = reading(ClockId::CLOCK_THREAD_CPUTIME_ID);
    for _ in 0..count {
        run();
    }
    nanoseconds(reading(ClockId::CLOCK_THREAD_CPUTIME_ID) - before, count)
}

/// The time on the clock per run, in nanoseconds, over so many runs.
pub(crate) fn clock(count: usize, mut run: impl FnMut()) -> f64 {
    let before = Instant::now();
    for _ in 0..count {
        run();
    }
    nanoseconds(before.elapsed(), count)
}

/// The time on the clock of one run, in milliseconds.
pub(crate) fn milliseconds(run: impl FnOnce()) -> f64 {
    let before = Instant::now();
    run();
    before.elapsed().as_secs_f64() * 1e3
}

/// The processor time per run in nanoseconds, where so many threads at once run it so many times each.
pub(crate) fn cpu_of_threads(threads: usize, count: usize, run: impl Fn() + Sync) -> f64 {
    let start = std::sync::Barrier::new(threads);
    let all: f64 = std::thread::scope(|scope| {
        let one = || {
            // The first run of a thread also sets things up, so it does not count.
            run();
            start.wait();
            cpu(count, &run)
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        running.into_iter().map(|thread| thread.join().expect("a thread that ends")).sum()
    });
    all / threads as f64
}

/// Like [`cpu_of_threads`] for tasks. Each runs on a runtime and a thread of its own, so the thread's time covers all
/// of its task's work.
pub(crate) fn cpu_of_tasks<F: Future>(threads: usize, count: usize, run: impl Fn() -> F + Sync) -> f64 {
    let start = std::sync::Barrier::new(threads);
    let one = async || {
        run().await;
        start.wait();
        let before = reading(ClockId::CLOCK_THREAD_CPUTIME_ID);
        for _ in 0..count {
            run().await;
        }
        let took = nanoseconds(reading(ClockId::CLOCK_THREAD_CPUTIME_ID) - before, count);
        // Some pools take a connection back in a task of their own. That task must run before its runtime ends.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        took
    };
    let all: f64 = std::thread::scope(|scope| {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(move || runtime().block_on(one()))).collect();
        running.into_iter().map(|thread| thread.join().expect("a thread that ends")).sum()
    });
    all / threads as f64
}

/// The time on the clock until all threads are done, divided by the number of their runs. Each thread begins with
/// something of its own.
pub(crate) fn clock_of_each<R: FnMut()>(threads: usize, count: usize, begin: impl Fn() -> R + Sync) -> f64 {
    let start = std::sync::Barrier::new(threads + 1);
    std::thread::scope(|scope| {
        let one = || {
            let mut run = begin();
            run();
            start.wait();
            (0..count).for_each(|_| run());
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        start.wait();
        let before = Instant::now();
        for thread in running {
            thread.join().expect("a thread that ends");
        }
        nanoseconds(before.elapsed(), threads * count)
    })
}

fn nanoseconds(took: Duration, count: usize) -> f64 {
    took.as_nanos() as f64 / count as f64
}
