//! The program whose end is tested. The variable `CHILD` has four words: a way of running, a load, an ending, and the
//! application's own set-up.
//!
//! The only locks are `KEPT` and the one in [`Begun`]. Each is held for one look at its list.

use std::any::Any;
use std::env;
use std::future::pending;
use std::io::BufRead;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use resource_pool::config::{CloseOptions, ExitStatus, Options};
use resource_pool::{CloseReport, Failure, Health, Link, Phase, Resource, ResourcePool, blocking};

#[path = "load.rs"]
mod load;

/// The words of `CHILD`.
pub(crate) struct Part<'a> {
    pub(crate) way: &'a str,
    pub(crate) load: &'a str,
    pub(crate) ending: &'a str,
    pub(crate) app: &'a str,
}

pub(crate) fn main(part: &str) {
    let words: Vec<_> = part.split(' ').collect();
    let part = Part { way: words[0], load: words[1], ending: words[2], app: words[3] };
    if part.way == "forking" {
        return super::forking::main(part.ending);
    }
    // Shows every warning, those of the drivers included. With `hook-fails` a test leaves stderr unread, so no
    // subscriber writes to it.
    if part.app != "hook-fails" {
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
            .with_writer(std::io::stderr)
            .init();
    }
    if ["connecting", "scoped", "few-threads"].contains(&part.way) {
        return super::beginning::main(part.way, part.ending);
    }
    #[cfg(all(feature = "files", feature = "processes"))]
    if ["owned", "owned-tasks"].contains(&part.way) {
        return super::owned::main(part.way, part.ending);
    }
    #[cfg(feature = "macros")]
    if part.way == "attribute" {
        return attributed();
    }
    let runtime = part.app.starts_with("adopted").then(runtime);
    install(part.app, runtime.as_ref());
    match part.way {
        "blocking" => {
            before_blocking(part.app);
            load::threads(part.load);
            after(part.app);
            end(part.ending);
        }
        "blocking-run" => blocking::run(|| {
            load::threads(part.load);
            end(part.ending);
        })
        .expect("it came to its end"),
        "run" => {
            let part = words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
            let ended = resource_pool::run(async move {
                load::tasks(&part[1]).await;
                end_async(&part[2]).await;
            });
            // Closing ends an operation that would wait for ever.
            assert!(ended.is_ok() || ended.is_err_and(|error| error.is_closed()));
        }
        "tokio-main" => runtime.unwrap_or_else(self::runtime).block_on(async {
            before_async(part.app);
            load::tasks(part.load).await;
            after(part.app);
            end_async(part.ending).await;
            if part.app == "adopted" {
                assert!(ResourcePool::global().close_all().await.all_closed());
            }
        }),
        "tokio-worker" => self::runtime().block_on(async {
            let (load, ending) = (part.load.to_owned(), part.ending.to_owned());
            let task = tokio::spawn(async move {
                load::tasks(&load).await;
                end_async(&ending).await;
            });
            if let Err(error) = task.await {
                std::panic::resume_unwind(error.into_panic());
            }
        }),
        "current-thread" => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                load::tasks(part.load).await;
                end_async(part.ending).await;
            });
        }
        way => panic!("no way {way}"),
    }
}

#[cfg(feature = "macros")]
#[resource_pool::main(builder = ResourcePool::builder().on_report(told), worker_threads = 2)]
async fn attributed() {
    let part = super::child::part().expect("this is a child");
    let words: Vec<_> = part.split(' ').collect();
    load::tasks(words[1]).await;
    end_async(words[2]).await;
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().expect("a runtime")
}

/// Installs or configures the global pool as the application does.
fn install(app: &str, runtime: Option<&tokio::runtime::Runtime>) {
    let mut builder = ResourcePool::builder();
    match app {
        "signals-off" => builder = builder.signals(false),
        "zero" => builder = builder.exit_status(ExitStatus::Zero),
        "adopted" | "adopted-ended" => builder = builder.runtime(runtime.expect("a runtime").handle().clone()),
        // Only the pool itself writes to stderr here.
        "hook-fails" => return,
        "hook-takes-long" => {
            let mut options = Options::default();
            options.acquire_timeout = Duration::from_secs(30);
            options.connect_timeout = Duration::from_secs(10);
            options.close.deadline = Duration::from_secs(1);
            builder = builder.options(options);
        }
        // The environment alone configures the pool, as in most programs.
        _ => return ResourcePool::global().on_report(told),
    }
    builder.on_report(told).install().expect("the only pool");
}

pub(crate) fn told(report: &CloseReport) {
    let steps: Vec<_> = report.steps.iter().map(|step| format!("{}={}", step.name, step.outcome)).collect();
    for step in &report.steps {
        for holder in &step.held {
            eprintln!("HELD {} {holder}", step.name);
        }
    }
    eprintln!("REPORT {}; {}; in {:?}", report.reason, steps.join("; "), report.took);
}

/// The application's actions before the pool's first use.
fn before_blocking(app: &str) {
    match app {
        "ctrlc-before" => ctrlc::set_handler(|| std::process::exit(7)).expect("the application is first"),
        "hook-closes" => on_close(|pool| assert!(matches!(pool.close_all(), Err(error) if error.is_closed()))),
        "hook-closes-one" => on_close(|pool| assert!(matches!(pool.close("redis"), Err(error) if error.is_closed()))),
        "hook-closes-async" => on_close(|pool| {
            let report = runtime().block_on(pool.as_async().close_all());
            assert!(!report.all_closed(), "{report}");
        }),
        "hook-hangs" => on_close(|_| wait_for_ever()),
        "hook-exits" => on_close(|_| std::process::exit(5)),
        "hook-takes-long" => on_close(|_| std::thread::sleep(Duration::from_secs(3))),
        "hook-fails" => blocking::ResourcePool::global()
            .on_close("hook", Phase::Tasks, || Err("as the test asked".into()))
            .expect("it is open"),
        #[cfg(feature = "systemd")]
        "tells-ready" => blocking::ResourcePool::global().notify_ready().expect("a socket"),
        "tells-readiness" => drop(std::thread::spawn(|| {
            // A second pool, which has no delay, and less time than the delay of the first.
            let options = Options::default().close(CloseOptions::default().deadline(Duration::from_secs(1)));
            let second = blocking::ResourcePool::builder().environment([("", ""); 0]).options(options);
            let second =
                second.on_report(|report| eprintln!("SECOND {}", report.all_closed())).build().expect("a pool");
            second.on_close("hook", Phase::Files, || Ok(())).expect("it is open");
            keep(second);
            let pool = blocking::ResourcePool::global();
            while pool.health_check().expect("a report").readiness() != Health::Fail {
                std::thread::yield_now();
            }
            println!("LOWERED {}", pool.is_closing());
        })),
        "listener-closes" => ResourcePool::global().on_report(|_| {
            let again = blocking::ResourcePool::global().close_all().expect("the report that is there");
            eprintln!("AGAIN {}", again.all_closed());
        }),
        "listener-reopens" => ResourcePool::global().on_report(|_| {
            ResourcePool::global().reopen().expect_err("the process is ending");
            eprintln!("REOPEN refused");
        }),
        "listener-exits" => ResourcePool::global().on_report(|_| std::process::exit(5)),
        "listener-hangs" => ResourcePool::global().on_report(|_| wait_for_ever()),
        "cut-hangs" | "usage-hangs" => {
            let pool = blocking::ResourcePool::global();
            pool.register("stubborn", Stubborn(app == "cut-hangs")).expect("the name is free");
            drop(pool.get::<Stubborn>("stubborn").expect("it connects"));
            // A step of the same name and phase that ends soon.
            pool.on_close("stubborn", Phase::Models, || Ok(())).expect("it is open");
        }
        _ => {}
    }
}

fn on_close(hook: impl FnOnce(&'static blocking::ResourcePool) + Send + 'static) {
    let pool = blocking::ResourcePool::global();
    let hook = move || {
        hook(pool);
        Ok(())
    };
    pool.on_close("hook", Phase::Tasks, hook).expect("it is open");
}

pub(crate) fn wait_for_ever() {
    loop {
        std::thread::park();
    }
}

fn before_async(app: &str) {
    if app == "tokio-before" {
        own_handlers();
    }
}

fn after(app: &str) {
    match app {
        "tokio-after" => own_handlers(),
        "ctrlc-after" => {
            ctrlc::set_handler(|| std::process::exit(7)).expect_err("there is one already");
            eprintln!("CTRLC refused");
        }
        _ => {}
    }
}

/// The application itself handles SIGINT and SIGTERM.
fn own_handlers() {
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("a handler");
    // The first poll installs the handler. It must come before the test sends a signal.
    let mut int = Box::pin(tokio::signal::ctrl_c());
    let waker = std::task::Waker::noop();
    assert!(int.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_pending());
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int => {}
        }
        std::process::exit(7);
    });
}

/// A resource whose close never ends. With `true` its `cut` hangs too, and with `false` its `usage` hangs while
/// closing.
struct Stubborn(bool);

impl Resource for Stubborn {
    type Handle = ();

    async fn connect(&self, _: &Link) -> Result<(), Failure> {
        Ok(())
    }

    async fn ping(&self, _: &()) -> Result<(), Failure> {
        Ok(())
    }

    async fn close(&self, _: ()) -> Result<(), Failure> {
        pending().await
    }

    fn cut(&self, _: &()) {
        if self.0 {
            wait_for_ever();
        }
    }

    fn usage(&self, _: &()) -> resource_pool::Usage {
        if !self.0 && ResourcePool::global().is_closing() {
            wait_for_ever();
        }
        resource_pool::Usage::default()
    }
}

pub(crate) fn end(ending: &str) {
    println!("READY");
    match ending {
        "return" => {}
        "exit" => std::process::exit(3),
        "exit-thread" => {
            let _never = std::thread::spawn(|| std::process::exit(3)).join();
        }
        "panic" => panic!("as the test asked"),
        "told" => {
            heard();
            std::process::exit(3);
        }
        "close" => {
            let report = blocking::ResourcePool::global().close_all().expect("a report");
            assert!(report.all_closed(), "{report}");
        }
        "close-all" => {
            let _ = blocking::ResourcePool::global().close_all();
            wait_for_ever();
        }
        "close-longer" => {
            std::thread::spawn(|| blocking::ResourcePool::global().close_all_within(Duration::from_secs(20)));
            load::until_closing();
        }
        "wait" => {
            load::until_closing();
            println!("CLOSING");
            wait_for_ever();
        }
        "exit-task" => {
            let exits = |_| async { std::process::exit(3) };
            let _never = blocking::ResourcePool::global().spawn("last", exits).expect("it is open");
            wait_for_ever();
        }
        // This `main` returns when closing begins.
        "closing" => load::until_closing(),
        _ => panic!("no such ending"),
    }
}

pub(crate) async fn end_async(ending: &str) {
    match ending {
        "wait" => {
            println!("READY");
            ResourcePool::global().closing().wait().await;
            println!("CLOSING");
            pending().await
        }
        "closing" => {
            println!("READY");
            ResourcePool::global().closing().wait().await;
        }
        "told" => {
            println!("READY");
            tokio::task::spawn_blocking(heard).await.expect("a word");
            std::process::exit(3);
        }
        _ => end(ending),
    }
}

/// Keeps the value for the life of the process, as a strategy does in a struct.
pub(crate) fn keep(value: impl Any + Send) {
    static KEPT: Mutex<Vec<Box<dyn Any + Send>>> = Mutex::new(Vec::new());
    KEPT.lock().expect("nobody panics with it").push(Box::new(value));
}

/// Prints the line and waits until the test has answered.
pub(crate) fn tell(line: &str) {
    println!("{line}");
    heard();
}

fn heard() {
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).expect("an answer");
}

/// One sign for each worker. A worker sets its sign once it has begun.
#[derive(Default)]
pub(crate) struct Begun(Mutex<Vec<Arc<AtomicBool>>>);

impl Begun {
    /// Adds a sign for a worker to set.
    pub(crate) fn sign(&self) -> Arc<AtomicBool> {
        let sign = Arc::new(AtomicBool::new(false));
        self.0.lock().expect("nobody panics with it").push(Arc::clone(&sign));
        sign
    }

    pub(crate) fn are_all(&self) -> bool {
        self.0.lock().expect("nobody panics with it").iter().all(|sign| sign.load(Ordering::SeqCst))
    }
}

/// The words for this process, if it is a child of the suite.
pub(crate) fn part() -> Option<String> {
    env::var("CHILD").ok()
}
