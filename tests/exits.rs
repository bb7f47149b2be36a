//! However a process ends, it ends as it would have without us, only cleanly.
//!
//! Each test runs this program again as a child, whose `main` really is `main`, so it has no
//! harness of libtest's.

#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use resource_pool::{ResourcePool, blocking};
use services::Kind;

/// The backends that this build has.
const KINDS: &[Kind] = &[
    #[cfg(feature = "mongodb")]
    Kind::Mongo,
    #[cfg(feature = "rabbitmq")]
    Kind::RabbitMq,
    #[cfg(feature = "clickhouse")]
    Kind::ClickHouse,
    #[cfg(feature = "redis")]
    Kind::Redis,
];

const NAMES: &[&str] = &[
    #[cfg(feature = "mongodb")]
    "mongo",
    #[cfg(feature = "rabbitmq")]
    "rabbitmq",
    #[cfg(feature = "clickhouse")]
    "clickhouse",
    #[cfg(feature = "redis")]
    "redis",
];

fn main() {
    match env::var("ENDING") {
        Ok(ending) => child(&ending),
        Err(_) => suite(),
    }
}

// The child.

fn child(ending: &str) {
    let (facade, ending) = ending.split_once(' ').expect("facade and ending");
    ResourcePool::global().on_report(|report| {
        let steps: Vec<_> = report.steps.iter().map(|step| format!("{}={}", step.name, step.outcome)).collect();
        eprintln!("REPORT {} {} {:?}", report.reason, steps.join(" "), report.took);
    });
    match facade {
        "blocking" => {
            let _held = use_blocking();
            end(ending);
        }
        #[cfg(feature = "redis")]
        "only-redis" => {
            redis::cmd("PING").exec(&mut blocking::ResourcePool::global().redis().expect("redis")).expect("ping");
            end(ending);
        }
        "blocking-run" => blocking::run(|| {
            let _held = use_blocking();
            end(ending);
        })
        .expect("run"),
        "tokio-main" => runtime().block_on(async {
            let _held = use_async().await;
            end(ending);
        }),
        "tokio-worker" => runtime().block_on(async {
            let ending = ending.to_owned();
            let task = tokio::spawn(async move {
                let _held = use_async().await;
                end(&ending);
            });
            if let Err(error) = task.await {
                std::panic::resume_unwind(error.into_panic());
            }
        }),
        "current-thread" => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let _held = use_async().await;
                end(ending);
            });
        }
        "run" => {
            let ending = ending.to_owned();
            resource_pool::run(async move {
                let _held = use_async().await;
                end(&ending);
            })
            .expect("run");
        }
        _ => panic!("no such facade"),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().expect("a runtime")
}

/// What a strategy keeps in a struct for life.
#[derive(Default)]
struct Held {
    _guards: Vec<Box<dyn std::any::Any + Send>>,
}

fn use_blocking() -> Held {
    let mut held = Held::default();
    let pool = blocking::ResourcePool::global();
    #[cfg(feature = "mongodb")]
    held._guards.push(Box::new(pool.mongo().expect("mongo")));
    #[cfg(feature = "rabbitmq")]
    held._guards.push(Box::new(pool.rabbitmq().expect("rabbitmq")));
    #[cfg(feature = "clickhouse")]
    held._guards.push(Box::new(pool.clickhouse().expect("clickhouse")));
    // A checkout is work, which the drain waits for; so it is given back.
    #[cfg(feature = "redis")]
    redis::cmd("PING").exec(&mut pool.redis().expect("redis")).expect("ping");
    let _ = (&mut held, pool);
    held
}

async fn use_async() -> Held {
    let mut held = Held::default();
    let pool = ResourcePool::global();
    #[cfg(feature = "mongodb")]
    held._guards.push(Box::new(pool.mongo().await.expect("mongo")));
    #[cfg(feature = "rabbitmq")]
    held._guards.push(Box::new(pool.rabbitmq().await.expect("rabbitmq")));
    #[cfg(feature = "clickhouse")]
    held._guards.push(Box::new(pool.clickhouse().await.expect("clickhouse")));
    #[cfg(feature = "redis")]
    held._guards.push(Box::new(pool.redis().await.expect("redis")));
    let _ = (&mut held, pool);
    held
}

fn end(ending: &str) {
    match ending {
        "return" => {}
        "exit" => std::process::exit(3),
        "exit-thread" => {
            let _never = std::thread::spawn(|| std::process::exit(3)).join();
        }
        "panic" => panic!("as the test asked"),
        "wait" => {
            println!("READY");
            loop {
                std::thread::park();
            }
        }
        _ => panic!("no such ending"),
    }
}

// The tests.

type Test = (String, Box<dyn Fn(&Servers) + Sync>);

fn suite() {
    let filters: Vec<String> = env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let tests: Vec<Test> = tests()
        .into_iter()
        .filter(|(name, _)| filters.is_empty() || filters.iter().any(|f| name.contains(f)))
        .collect();
    println!("\nrunning {} tests", tests.len());
    let servers = Servers::of(KINDS);
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some((name, test)) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let passed = catch_unwind(AssertUnwindSafe(|| test(&servers))).is_ok();
                    println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
                    if !passed {
                        failed.lock().unwrap().push(name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {} passed; {} failed; 0 ignored; 0 measured; 0 filtered out\n",
        tests.len() - failed.len(),
        failed.len()
    );
    drop(servers);
    std::process::exit(i32::from(!failed.is_empty()));
}

fn tests() -> Vec<Test> {
    let mut tests: Vec<Test> = Vec::new();
    for facade in ["blocking", "blocking-run", "tokio-main", "tokio-worker", "current-thread", "run"] {
        for (ending, status) in [("return", 0), ("exit", 3), ("exit-thread", 3), ("panic", 101)] {
            tests.push((
                format!("exit_{facade}_{ending}"),
                Box::new(move |servers| {
                    let ended = Ended::of(servers.child(facade, ending));
                    assert_eq!(ended.status.code(), Some(status), "{ended:?}");
                    ended.assert_all_closed();
                    servers.assert_clean();
                }),
            ));
        }
        for (signal, number) in [("INT", 2), ("TERM", 15), ("HUP", 1)] {
            tests.push((
                format!("exit_{facade}_sig{}", signal.to_lowercase()),
                Box::new(move |servers| {
                    let mut child = servers.child(facade, "wait");
                    ready(&mut child);
                    let started = Instant::now();
                    send(signal, child.id());
                    let ended = Ended::of(child);
                    assert_eq!(ended.status.signal(), Some(number), "{ended:?}");
                    ended.assert_all_closed();
                    // `run` waits for its future to end, which here it does not, for the drain.
                    let limit = if facade.contains("run") { 8 } else { 5 };
                    assert!(started.elapsed() < Duration::from_secs(limit), "{:?} {ended:?}", started.elapsed());
                    servers.assert_clean();
                }),
            ));
        }
    }
    tests.push(("exit_second_signal_ends_at_once".to_owned(), Box::new(second_signal)));
    tests.push(("exit_sigterm_under_nohup".to_owned(), Box::new(under_nohup)));
    tests.push(("exit_sigterm_in_the_background_of_a_script".to_owned(), Box::new(in_the_background)));
    #[cfg(feature = "redis")]
    tests.push(("exit_while_redis_is_frozen".to_owned(), Box::new(frozen)));
    tests
}

fn second_signal(_: &Servers) {
    // On servers of its own, since it leaves their connections as they are.
    let own = Servers::of(KINDS);
    let mut child = own.child("run", "wait");
    ready(&mut child);
    send("TERM", child.id());
    // The first one is being handled: the drain waits for a future that does not end.
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    let started = Instant::now();
    send("TERM", child.id());
    let status = child.wait().unwrap();
    stderr.read_to_string(&mut line).unwrap();
    assert_eq!(status.signal(), Some(15));
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert!(!line.contains("REPORT"), "it was not waited for: {line}");
}

fn under_nohup(servers: &Servers) {
    let child = servers.command("blocking", "wait");
    let program = child.get_program().to_owned();
    let mut nohup = Command::new("nohup");
    nohup.arg(program).envs(child.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let mut child = nohup.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    ready(&mut child);
    send("HUP", child.id());
    send("TERM", child.id());
    let ended = Ended::of(child);
    // nohup's SIGHUP stays ignored, so it was the other one that ended it.
    assert_eq!(ended.status.signal(), Some(15), "{ended:?}");
    ended.assert_all_closed();
}

fn in_the_background(servers: &Servers) {
    let command = servers.command("blocking", "wait");
    let script = format!("{:?} & echo PID $!; wait $!", command.get_program());
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(script).envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let mut shell = shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(shell.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut pid = None;
    for line in lines.by_ref() {
        match line.strip_prefix("PID ") {
            Some(number) => pid = number.parse().ok(),
            None if line == "READY" => break,
            None => {}
        }
    }
    let pid = pid.expect("the child's id");
    // A script's background jobs ignore SIGINT, and go on doing so.
    send("INT", pid);
    send("TERM", pid);
    let ended = Ended::of(shell);
    assert_eq!(ended.status.code(), Some(143), "{ended:?}");
    ended.assert_all_closed();
}

#[cfg(feature = "redis")]
fn frozen(_: &Servers) {
    let own = Servers::of(&[Kind::Redis]);
    let server = &own.0[&Kind::Redis];
    let mut child = own.child("only-redis", "wait");
    ready(&mut child);
    server.freeze().unwrap();
    let started = Instant::now();
    send("TERM", child.id());
    let ended = Ended::of(child);
    assert_eq!(ended.status.signal(), Some(15), "{ended:?}");
    assert!(ended.stderr.contains("redis="), "{ended:?}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

// Their tools.

struct Servers(BTreeMap<Kind, services::Service>);

impl Servers {
    fn of(kinds: &[Kind]) -> Self {
        let started = services::Service::start_all(kinds).expect("servers");
        Servers(kinds.iter().copied().zip(started).collect())
    }

    fn command(&self, facade: &str, ending: &str) -> Command {
        let mut command = Command::new(env::current_exe().unwrap());
        command.env("ENDING", format!("{facade} {ending}")).env("RUST_BACKTRACE", "0");
        // The drain of a `run` that does not end is then 3.5 s.
        command.env("RESOURCE_POOL_CLOSE_DEADLINE_MS", "9000");
        for (kind, server) in &self.0 {
            let name = match kind {
                Kind::Mongo => "MONGODB_URI",
                Kind::RabbitMq => "AMQP_URL",
                Kind::ClickHouse => "CLICKHOUSE_URL",
                Kind::Redis => "REDIS_URL",
            };
            command.env(name, server.url());
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn child(&self, facade: &str, ending: &str) -> Child {
        self.command(facade, ending).spawn().unwrap()
    }

    /// RabbitMQ's log tells an unclean end apart.
    fn assert_clean(&self) {
        if let Some(rabbitmq) = self.0.get(&Kind::RabbitMq) {
            let unclean = rabbitmq.rabbitmq().unwrap().unclean_closes().unwrap();
            assert!(unclean.is_empty(), "{unclean:?}");
        }
    }
}

#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    stderr: String,
}

impl Ended {
    fn of(mut child: Child) -> Self {
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        Ended { status: child.wait().unwrap(), stderr }
    }

    fn assert_all_closed(&self) {
        let report = self.stderr.lines().find(|line| line.starts_with("REPORT")).unwrap_or_else(|| panic!("{self:?}"));
        for name in NAMES {
            assert!(report.contains(&format!("{name}=closed")), "{name} in {report}");
        }
    }
}

fn ready(child: &mut Child) {
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.as_mut().unwrap());
    while line.trim() != "READY" {
        line.clear();
        assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "the child ended early");
    }
}

fn send(signal: &str, process: u32) {
    assert!(Command::new("kill").arg(format!("-{signal}")).arg(process.to_string()).status().unwrap().success());
}
