//! Ends processes in many ways, and checks that the pool changes nothing about the end except that it closes cleanly.
//!
//! `TABLE` lists how a process ends, how it is run, and its load then. For each cell this program starts itself as
//! a child. It has no harness of libtest, so the child's `main` really is `main`. Tests that do not fit the table are
//! stories below it. `EXIT_ROUNDS` says how often each case runs; with it, filters that match nothing are an error.
//! `cargo xtask exits` runs each case twenty times.
//!
//! `suite` runs the cases on a few threads, which share the servers. Each child is a process, so no pool state is
//! shared.

#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::env;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use services::{End, Kind};

#[path = "exits/beginning.rs"]
mod beginning;
#[path = "exits/child.rs"]
mod child;
mod common;
#[path = "exits/forking.rs"]
mod forking;
#[cfg(all(feature = "files", feature = "processes"))]
#[path = "exits/owned.rs"]
mod owned;
#[path = "exits/tools.rs"]
mod tools;

use tools::{By, Ended, Limits, Proxies, Running, Servers, name, send};

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
    #[cfg(feature = "postgres")]
    Kind::Postgres,
    #[cfg(feature = "mysql")]
    Kind::MySql,
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
    #[cfg(feature = "postgres")]
    "postgres",
    #[cfg(feature = "mysql")]
    "mysql",
    // It has no server, so it comes after those that have one.
    #[cfg(feature = "sqlite")]
    "sqlite",
];

fn main() {
    match child::part() {
        Some(part) => child::main(&part),
        None if env::var_os(HAS_DEFAULT_SIGNALS).is_none() => panic!("{}", with_default_signals()),
        None => suite(),
    }
}

const HAS_DEFAULT_SIGNALS: &str = "EXITS_HAS_DEFAULT_SIGNALS";

/// The suite starts once more, as it and its children inherit signals that are ignored. A script ignores SIGINT in its
/// background jobs, and `nohup` ignores SIGHUP.
fn with_default_signals() -> std::io::Error {
    let mut suite = Command::new("env");
    suite.arg("--default-signal=INT,HUP").arg(env::current_exe().expect("a program")).args(env::args_os().skip(1));
    suite.env(HAS_DEFAULT_SIGNALS, "yes").exec()
}

// The table.

/// One way to end, and the results that the test must see.
struct Row {
    name: &'static str,
    /// The ways to run the program.
    ways: &'static [&'static str],
    /// The loads that the program has when it ends.
    loads: &'static [&'static str],
    /// The action that ends the program, and the signals that it gets if it waits.
    ending: &'static str,
    signals: &'static [&'static str],
    /// The set-up that the application has of its own.
    app: &'static str,
    by: By,
    seen: Seen,
    within: Duration,
}

/// The expected text about the close on stderr.
enum Seen {
    /// A report in which every step is `closed`.
    AllClosed,
    /// No complaint, although not everything had begun, and no unclean end at the servers.
    Clean,
    /// No report, because the process did not wait for the close.
    Nothing,
    /// This text. Resources that it does not name may not have been closed.
    Trouble(&'static str),
}

/// Both facades, on threads and tasks of all kinds.
const EVERY_WAY: &[&str] = &[
    "blocking",
    "blocking-run",
    "tokio-main",
    "tokio-worker",
    "current-thread",
    "run",
    #[cfg(feature = "macros")]
    "attribute",
];
const BOTH: &[&str] = &["blocking", "tokio-main"];
const THREADS: &[&str] = &["blocking"];
const TASKS: &[&str] = &["tokio-main"];

const IDLE: &[&str] = &["idle"];
/// The child works until it is told to stop.
const BUSY: &[&str] = &["busy"];
/// The child holds checkouts, channels, deliveries and transactions, and never gives them back.
const HELD: &[&str] = &["held"];

const fn row(name: &'static str, ending: &'static str, by: By) -> Row {
    Row {
        name,
        ways: EVERY_WAY,
        loads: IDLE,
        ending,
        signals: &[],
        app: "-",
        by,
        seen: Seen::AllClosed,
        within: Duration::from_secs(8),
    }
}

impl Row {
    const fn ways(self, ways: &'static [&'static str]) -> Row {
        Row { ways, ..self }
    }

    const fn loads(self, loads: &'static [&'static str]) -> Row {
        Row { loads, ..self }
    }

    const fn sent(self, signals: &'static [&'static str]) -> Row {
        Row { signals, ..self }
    }

    const fn app(self, app: &'static str) -> Row {
        Row { app, ..self }
    }

    const fn seen(self, seen: Seen) -> Row {
        Row { seen, ..self }
    }

    const fn within(self, millis: u64) -> Row {
        Row { within: Duration::from_millis(millis), ..self }
    }
}

use By::{Exit, Signal};
use Seen::{Clean, Nothing, Trouble};

#[rustfmt::skip]
const TABLE: &[Row] = &[
    row("return_from_main", "return", Exit(0)),
    row("return_from_main", "return", Exit(0)).loads(BUSY),
    row("return_from_main", "return", Exit(0)).loads(HELD).ways(BOTH),
    row("exit", "exit", Exit(3)),
    row("exit", "exit", Exit(3)).loads(BUSY).ways(&["blocking", "blocking-run", "tokio-main", "tokio-worker", "run"]),
    // The only thread of the runtime is in `exit` and no longer polls anything.
    row("exit", "exit", Exit(3)).loads(BUSY).ways(&["current-thread"]).seen(Trouble("redis=closed")).within(FORCED),
    row("exit", "exit", Exit(3)).loads(HELD).ways(BOTH),
    row("exit_from_a_thread", "exit-thread", Exit(3)),
    row("exit_from_a_thread", "exit-thread", Exit(3)).loads(BUSY).ways(BOTH),
    row("exit_from_a_background_task", "exit-task", Exit(3)).ways(BOTH).within(4000),
    row("panic_in_main", "panic", Exit(101)),
    row("panic_in_main", "panic", Exit(101)).loads(BUSY).ways(BOTH),
    row("sigint", "wait", Signal(2)).sent(&["INT"]),
    row("sigint", "wait", Signal(2)).sent(&["INT"]).loads(BUSY).ways(BOTH),
    row("sigterm", "wait", Signal(15)).sent(&["TERM"]),
    row("sigterm", "wait", Signal(15)).sent(&["TERM"]).loads(BUSY),
    row("sigterm", "wait", Signal(15)).sent(&["TERM"]).loads(HELD).ways(BOTH),
    row("sighup", "wait", Signal(1)).sent(&["HUP"]),
    row("sighup", "wait", Signal(1)).sent(&["HUP"]).loads(BUSY).ways(BOTH),
    row("signal_wins_over_main_that_returns", "closing", Signal(15)).sent(&["TERM"]),

    row("return_while_it_is_being_connected", "return", Exit(0)).ways(&["connecting"]).seen(Clean),
    row("close_while_it_is_being_connected", "close", Exit(0)).ways(&["connecting"]).seen(Clean),
    row("return_while_guards_come_and_go", "return", Exit(0)).ways(&["scoped"]).seen(Clean),

    row("second_signal_ends_at_once", "wait", Signal(15)).sent(&["TERM", "TERM"]).loads(HELD).seen(Nothing).within(3000),
    row("second_signal_of_another_kind", "wait", Signal(15)).sent(&["TERM", "INT"]).loads(HELD).ways(BOTH).seen(Nothing).within(3000),
    row("second_signal_of_another_kind", "wait", Signal(2)).sent(&["INT", "HUP"]).loads(HELD).ways(BOTH).seen(Nothing).within(3000),

    row("app_handles_it_before_us", "wait", Exit(7)).sent(&["TERM"]).app("tokio-before").ways(TASKS),
    row("app_handles_it_before_us", "wait", Exit(7)).sent(&["INT"]).app("tokio-before").ways(TASKS),
    row("app_handles_another_before_us", "wait", Signal(1)).sent(&["HUP"]).app("tokio-before").ways(TASKS),
    row("app_handles_it_after_us", "wait", Exit(7)).sent(&["TERM"]).app("tokio-after").ways(TASKS),
    row("app_handles_it_after_us", "wait", Exit(7)).sent(&["INT"]).app("tokio-after").ways(TASKS),
    row("app_handles_another_after_us", "wait", Signal(1)).sent(&["HUP"]).app("tokio-after").ways(TASKS),
    row("app_has_ctrlc_before_us", "wait", Exit(7)).sent(&["INT"]).app("ctrlc-before").ways(THREADS),
    row("app_has_ctrlc_before_us", "wait", Signal(15)).sent(&["TERM"]).app("ctrlc-before").ways(THREADS),
    row("app_wants_ctrlc_after_us", "wait", Signal(2)).sent(&["INT"]).app("ctrlc-after").ways(THREADS).seen(Trouble("CTRLC refused")),
    row("signals_off", "return", Exit(0)).app("signals-off").ways(BOTH),
    row("signals_off", "wait", Signal(15)).sent(&["TERM"]).app("signals-off").ways(BOTH).seen(Nothing).within(3000),
    row("exit_status_zero", "wait", Exit(0)).sent(&["TERM"]).app("zero").ways(BOTH),

    row("adopted_runtime_closed_in_main", "return", Exit(0)).app("adopted").ways(TASKS),
    row("adopted_runtime_that_has_ended", "return", Exit(0)).app("adopted-ended").ways(TASKS)
        .seen(Trouble("redis=failed: the runtime that it lives on has ended")).within(4000),

    row("step_that_closes_the_pool", "return", Exit(0)).app("hook-closes").ways(THREADS).seen(Trouble("hook=closed")).within(4000),
    row("step_that_closes_the_pool", "return", Exit(0)).app("hook-closes-async").ways(THREADS).seen(Trouble("hook=closed")).within(4000),
    row("step_that_closes_a_resource", "return", Exit(0)).app("hook-closes-one").ways(THREADS).seen(Trouble("hook=closed")).within(4000),
    row("step_that_exits", "close-all", Exit(5)).app("hook-exits").ways(THREADS).seen(Trouble("hook=failed: it ended the process")).within(4000),
    row("step_that_exits", "wait", Signal(15)).sent(&["TERM"]).app("hook-exits").ways(THREADS).seen(Trouble("hook=failed: it ended the process")).within(4000),
    row("closing_tells_what_it_waits_for", "wait", Signal(15)).sent(&["TERM"]).loads(HELD).ways(BOTH)
        .seen(Trouble("resource-pool: closing has taken 1s; it waits for the drain; ")),
    row("listener_that_closes_the_pool", "return", Exit(0)).app("listener-closes").ways(THREADS).seen(Trouble("AGAIN true")).within(4000),
    row("listener_that_reopens_the_pool", "return", Exit(0)).app("listener-reopens").ways(THREADS).seen(Trouble("REOPEN refused")).within(4000),
    row("listener_that_exits", "close-all", Exit(5)).app("listener-exits").ways(THREADS).within(4000),
    row("listener_that_exits", "wait", Signal(15)).sent(&["TERM"]).app("listener-exits").ways(THREADS).within(4000),

    row("listener_that_exits", "return", Exit(70)).app("listener-exits").ways(THREADS).seen(Trouble("still running: a listener\n")).within(FORCED),

    row("step_whose_cut_hangs", "return", Exit(0)).app("cut-hangs").ways(THREADS).seen(Trouble("stubborn=timed out")).within(FORCED),
    row("step_whose_cut_hangs", "wait", Signal(15)).sent(&["TERM"]).app("cut-hangs").ways(THREADS).seen(Trouble("stubborn=timed out")).within(FORCED),
    row("status_that_hangs", "return", Exit(0)).app("usage-hangs").ways(THREADS).seen(Trouble("stubborn=timed out")).within(FORCED),
    row("watchdog_names_a_listener", "return", Exit(70)).app("listener-hangs").ways(THREADS).seen(Trouble("still running: a listener\n")).within(FORCED),
    row("longer_deadline_than_configured", "close-longer", Exit(0)).app("hook-takes-long").ways(THREADS),
    row("hanging_hook_is_left_behind", "wait", Signal(15)).sent(&["TERM"]).app("hook-hangs").ways(THREADS).seen(Trouble("hook=timed out")),
];

/// The limits of the table's children. Closing has less time than by default, which is still far more than it needs.
/// Connecting has all the time that a loaded machine may need.
const LIMITS: &str = "
[pool]
acquire_timeout_ms = 30000
connect_timeout_ms = 10000
[pool.retry]
budget_ms = 30000
[pool.probe]
limit_ms = 10000
[pool.close]
deadline_ms = 6000
drain_ms = 1500
held_ms = 200
";
#[cfg(feature = "mongodb")]
const MONGO_LIMITS: &str = "
[mongo]
connect_timeout_ms = 10000
server_selection_timeout_ms = 10000
";
#[cfg(not(feature = "mongodb"))]
const MONGO_LIMITS: &str = "";
/// The limits of children whose every goodbye must be answered, however loaded the machine is.
#[cfg(feature = "rabbitmq")]
const GOODBYE_LIMITS: &str = "
step_ms = 20000
[rabbitmq]
disconnect_timeout_ms = 9000
";
#[cfg(not(feature = "rabbitmq"))]
const GOODBYE_LIMITS: &str = "";
/// Two signals within less time than this count as one, so the test waits this long before the second.
const APART: Duration = Duration::from_millis(300);
/// The limit for a forced end, in milliseconds: the children's deadline, the watchdog's second, and the time that a
/// loaded machine takes to notice.
const FORCED: u64 = 6000 + 1000 + 3000;

impl Row {
    /// Whether all connections must have been closed in order.
    fn is_clean(&self) -> bool {
        matches!(self.seen, Seen::AllClosed | Clean)
    }

    fn check(&self, case: &str, servers: &Servers, limits: &Limits) {
        let mut words = case.split(' ');
        let (way, load) = (words.next().expect("a way"), words.next().expect("a load"));
        let mut child = Running::start(servers.child(&format!("{way} {load} {} {}", self.ending, self.app), limits));
        child = child.ready();
        for (number, signal) in self.signals.iter().enumerate() {
            if number > 0 {
                child.hear("CLOSING");
                std::thread::sleep(APART);
            }
            child.send(signal);
        }
        let ended = child.end();
        ended.assert_by(self.by);
        ended.assert_within(self.within);
        ended.assert_calm();
        match self.seen {
            Seen::AllClosed => {
                ended.assert_all_closed(NAMES);
                servers.assert_clean();
                if load == "held" {
                    assert_call_sites(&ended);
                }
            }
            Clean => {
                ended.assert_clean();
                servers.assert_clean();
            }
            Nothing => assert!(!ended.stderr.contains("REPORT"), "{ended}"),
            Trouble(words) => assert!(ended.stderr.contains(words), "{words:?}: {ended}"),
        }
    }
}

/// Checks that the report lists the checkouts that were closed under their holders, with their lines.
fn assert_call_sites(ended: &Ended) {
    for name in NAMES.iter().filter(|name| ["rabbitmq", "redis", "postgres", "mysql", "sqlite"].contains(name)) {
        let told = ended
            .stderr
            .lines()
            .any(|line| line.starts_with(&format!("HELD {name} tests/exits/load.rs:")) && line.contains("exclusive"));
        assert!(told, "{name}: {ended}");
    }
}

// The stories.

/// A test that does not fit the table.
type Story = fn(&Suite);

const STORIES: &[(&str, Story)] = &[
    ("default_limits", default_limits),
    ("delay_before_closing", delayed),
    #[cfg(feature = "systemd")]
    ("systemd_is_told", systemd),
    ("signals_that_come_together", signals_together),
    ("stderr_that_nobody_reads", unread_stderr),
    ("stderr_switched_off", silent),
    ("stderr_on_a_terminal", on_a_terminal),
    #[cfg(feature = "redis")]
    ("threads_that_run_out", few_threads),
    ("ignored_under_nohup", under_nohup),
    ("ignored_in_the_background_of_a_script", in_the_background),
    ("process_1_sigterm", as_process_1),
    ("on_the_wire", on_the_wire),
    ("fork_child_returns", |suite| fork_once(suite, "return", "Some(0) None")),
    ("fork_child_exits", |suite| fork_once(suite, "exit", "Some(3) None")),
    ("fork_child_panics", |suite| fork_once(suite, "panic", "Some(101) None")),
    ("fork_child_has_default_signals", |suite| fork_once(suite, "wait", "None Some(15)")),
    ("fork_child_has_a_pool_of_its_own", |suite| fork_once(suite, "own", "Some(0) None")),
    #[cfg(all(feature = "files", feature = "processes"))]
    ("owned_things_end", owned::ended),
    #[cfg(all(feature = "files", feature = "processes"))]
    ("owned_things_left_behind", owned::left_behind),
    #[cfg(all(feature = "files", feature = "processes"))]
    ("owned_things_fork", owned::forked),
    #[cfg(feature = "mongodb")]
    ("frozen_or_gone_mongo", |_| frozen_or_gone(Kind::Mongo)),
    #[cfg(feature = "rabbitmq")]
    ("frozen_or_gone_rabbitmq", |_| frozen_or_gone(Kind::RabbitMq)),
    #[cfg(feature = "clickhouse")]
    ("frozen_or_gone_clickhouse", |_| frozen_or_gone(Kind::ClickHouse)),
    #[cfg(feature = "redis")]
    ("frozen_or_gone_redis", |_| frozen_or_gone(Kind::Redis)),
    #[cfg(feature = "postgres")]
    ("frozen_or_gone_postgres", |_| frozen_or_gone(Kind::Postgres)),
    #[cfg(feature = "mysql")]
    ("frozen_or_gone_mysql", |_| frozen_or_gone(Kind::MySql)),
];

/// Only the servers' addresses are configured.
fn default_limits(Suite { servers, limits, .. }: &Suite) {
    for way in BOTH {
        let mut command = servers.child(&format!("{way} idle wait -"), limits);
        command.env_remove("RESOURCE_POOL_CONFIG");
        let mut child = Running::start(command).ready();
        child.send("TERM");
        let ended = child.end();
        ended.assert_by(Signal(15));
        ended.assert_all_closed(NAMES);
        ended.assert_calm();
        // Ctrl-C on an idle strategy ends it in about a second.
        ended.assert_within(Duration::from_secs(4));
    }
}

/// Two signals that come together count as one wish to end.
fn signals_together(Suite { servers, limits, .. }: &Suite) {
    for way in BOTH {
        let child = servers.child(&format!("{way} idle wait -"), limits);
        // `timeout` signals its child, and then its process group, which has the child in it too.
        let mut timeout = Running::start(by("timeout", &["100"], &child)).ready();
        timeout.send("TERM");
        let by_timeout = timeout.end();
        // systemd's `SendSIGHUP` sends both. The kernel chooses which of the two is handled first.
        let child = Running::start(child).ready();
        let both = format!("kill -HUP {0} && kill -TERM {0}", child.id());
        assert!(Command::new("sh").args(["-c", &both]).status().expect("a shell").success());
        by_timeout.assert_by(Signal(15));
        let by_both = child.end();
        by_both.assert_by(Signal(if by_both.report().starts_with("REPORT signal 15;") { 15 } else { 1 }));
        for ended in [by_timeout, by_both] {
            ended.assert_all_closed(NAMES);
            ended.assert_calm();
            servers.assert_clean();
        }
    }
}

/// The close has a complaint to write, and nobody reads stderr.
fn unread_stderr(Suite { servers, limits, .. }: &Suite) {
    for (ending, signal, ended_by) in [("wait", Some("TERM"), Signal(15)), ("return", None, Exit(0))] {
        let (_unread, mut stderr) = UnixStream::pair().expect("a pair");
        stderr.set_nonblocking(true).expect("it may");
        while stderr.write(b"full").is_ok() {}
        stderr.set_nonblocking(false).expect("it may");
        let child = servers.child(&format!("blocking idle {ending} hook-fails"), limits);
        let mut child = Running::start_with(child, OwnedFd::from(stderr).into()).ready();
        if let Some(signal) = signal {
            child.send(signal);
        }
        let ended = child.end();
        ended.assert_by(ended_by);
        ended.assert_within(Duration::from_secs(8));
        servers.assert_clean();
    }
}

/// A program that owns the screen can switch the pool's output off. The control is the same program with it on.
fn silent(Suite { servers, limits, .. }: &Suite) {
    let off = Limits::new("silent", &format!("{LIMITS}stderr = false\n"));
    for (limits, speaks) in [(limits, true), (&off, false)] {
        let child = servers.child("blocking held wait hook-fails", limits);
        let mut child = Running::start(child).ready();
        child.send("TERM");
        let ended = child.end();
        ended.assert_by(Signal(15));
        for words in ["resource-pool: closing has taken 1s", "resource-pool: closed in"] {
            assert_eq!(ended.stderr.contains(words), speaks, "{ended}");
        }
        assert!(speaks || ended.stderr.is_empty(), "{ended}");
    }
}

/// A person who looks at a terminal sees that closing goes on. The control writes to a pipe.
fn on_a_terminal(Suite { servers, .. }: &Suite) {
    let limits = Limits::new("terminal", &LIMITS.replace("drain_ms = 1500\n", "drain_ms = 3500\n"));
    let child = || servers.child("blocking held wait -", &limits);
    let lines = |text: &str| text.matches("resource-pool: closing has taken").count();
    let mut piped = Running::start(child()).ready();
    piped.send("TERM");
    let piped = piped.end();
    assert_eq!(lines(&piped.stderr), 1, "{piped}");

    let terminal = nix::pty::openpty(None, None).expect("a terminal");
    let mut shown = Running::start_with(child(), terminal.slave.into()).ready();
    shown.send("TERM");
    shown.end().assert_by(Signal(15));
    let mut text = Vec::new();
    // Reading from a terminal that the last process has left ends with an error.
    let _ = std::fs::File::from(terminal.master).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("closing has taken 1s") && text.contains("closing has taken 2s"), "{text}");
}

/// Readiness falls with the signal, and closing begins after the delay. A second signal ends the delay.
fn delayed(Suite { servers, .. }: &Suite) {
    for (delay, second) in [(1000, false), (5000, true)] {
        let limits = Limits::new(&format!("delayed-{delay}"), &format!("{LIMITS}delay_ms = {delay}\n"));
        let mut child = Running::start(servers.child("blocking idle wait tells-readiness", &limits)).ready();
        child.send("TERM");
        let since = Instant::now();
        assert_eq!(child.hear("LOWERED"), "false", "the pool is open for the delay");
        if second {
            std::thread::sleep(APART);
            child.send("TERM");
        }
        child.hear("CLOSING");
        let took = since.elapsed();
        assert_eq!(took < Duration::from_millis(delay), second, "closing began after {took:?} of {delay} ms");
        let ended = child.end();
        assert!(ended.stderr.contains("SECOND true"), "{ended}");
        ended.assert_by(Signal(15));
        ended.assert_all_closed(NAMES);
    }
}

/// The test listens in the place of systemd.
#[cfg(feature = "systemd")]
fn systemd(Suite { servers, limits, .. }: &Suite) {
    let path = format!("{}/{}.sock", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let _ = std::fs::remove_file(&path);
    let socket = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
    let told = || {
        let mut text = [0; 256];
        let length = socket.recv(&mut text).expect("a notice");
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    for (ending, by) in [("wait", Signal(15)), ("return", Exit(0))] {
        let mut child = servers.child(&format!("blocking idle {ending} tells-ready"), limits);
        child.env("NOTIFY_SOCKET", &path);
        let child = Running::start(child);
        assert_eq!(told(), "READY=1\n");
        let mut child = child.ready();
        if ending == "wait" {
            child.send("TERM");
        }
        // The deadline of 6 s, and the second of the watchdog.
        let stopping = told();
        let micros: u64 = stopping
            .trim()
            .strip_prefix("STOPPING=1\nEXTEND_TIMEOUT_USEC=")
            .expect(&stopping)
            .parse()
            .expect(&stopping);
        assert!((6_900_000..=7_000_000).contains(&micros), "{stopping}");
        let ended = child.end();
        ended.assert_by(by);
        ended.assert_all_closed(NAMES);
    }
}

/// Threads run out at any point on the way to a connection. Each thread has a stack of 1 GiB, and the process has room
/// for `threads` of them.
#[cfg(feature = "redis")]
fn few_threads(Suite { servers, limits, .. }: &Suite) {
    if std::env::var_os("ASAN_OPTIONS").is_some() {
        println!("skipped: AddressSanitizer reserves more address space than any limit that threads would notice");
        return;
    }
    let (mut leased, mut refused) = (0, 0);
    for threads in 0..16_u64 {
        let mut child = servers.child("few-threads idle return -", limits);
        child.env("ONLY", "redis").env("RUST_MIN_STACK", (1_u64 << 30).to_string());
        let room = (threads << 30) + (1 << 29);
        let mut child = Running::start(by("prlimit", &[&format!("--as={room}")], &child));
        let acquired = child.hear("");
        let ended = child.end();
        ended.assert_by(Exit(0));
        ended.assert_calm();
        ended.assert_clean();
        match acquired.strip_prefix("REFUSED ").and_then(|rest| rest.split_once(' ')) {
            None => {
                assert_eq!(acquired, "LEASED", "{ended}");
                ended.assert_all_closed(&["redis"]);
                leased += 1;
            }
            Some((millis, error)) => {
                assert!(error.contains("cannot start the threads that the pool needs"), "{error}");
                let millis: u64 = millis.parse().expect("a number");
                // The limit is one second, and the time that a loaded machine takes to notice.
                assert!(millis < 2000, "refused after {millis} ms");
                refused += 1;
            }
        }
    }
    assert!(leased > 0 && refused > 3, "{leased} leased, {refused} refused: not between the two");
}

/// The command of a child that another program starts.
fn by(starter: &str, arguments: &[&str], child: &Command) -> Command {
    let mut command = Command::new(starter);
    command.args(arguments).arg(child.get_program());
    command.envs(child.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

fn under_nohup(Suite { servers, limits, .. }: &Suite) {
    let child = servers.child("blocking idle wait -", limits);
    let mut child = Running::start(by("nohup", &[], &child)).ready();
    child.send("HUP");
    child.send("TERM");
    let ended = child.end();
    // SIGHUP stays ignored, as nohup set it. So SIGTERM ended the child.
    ended.assert_by(Signal(15));
    ended.assert_all_closed(NAMES);
}

fn in_the_background(Suite { servers, limits, .. }: &Suite) {
    let child = servers.child("blocking idle wait -", limits);
    let mut shell = Running::start(by("sh", &["-c", r#""$0" & echo PID $!; wait $!"#], &child));
    let job = shell.hear("PID").parse().expect("a number");
    shell = shell.ready();
    // The background jobs of a script ignore SIGINT, and the pool must leave that so.
    send("INT", job);
    send("TERM", job);
    let ended = shell.end();
    // The status that a shell gives a process which a signal ended.
    ended.assert_by(Exit(143));
    ended.assert_all_closed(NAMES);
}

/// In a container a program is often process 1. A signal that process 1 does not handle does not end it.
fn as_process_1(Suite { servers, rough, limits }: &Suite) {
    let may = Command::new("unshare").args(["--pid", "--fork", "true"]).output().expect("unshare");
    if !may.status.success() {
        let why = String::from_utf8_lossy(&may.stderr);
        assert_ne!(env::var("RESOURCE_POOL_TEST_NAMESPACES").as_deref(), Ok("required"), "{why}");
        println!("NOT TESTED as process 1: this machine grants no PID namespace: {}", why.trim());
        return;
    }
    for (signals, status) in [(&["TERM"][..], 143), (&["INT"], 130), (&["HUP"], 129), (&["TERM", "INT"], 143)] {
        let (load, servers) = if signals.len() > 1 { ("held", rough) } else { ("idle", servers) };
        let child = servers.child(&format!("blocking {load} wait -"), limits);
        let mut unshare = Running::start(by("unshare", &["--pid", "--fork", "--kill-child"], &child)).ready();
        let process_1 = only_child(unshare.id());
        for (number, signal) in signals.iter().enumerate() {
            if number > 0 {
                unshare.hear("CLOSING");
                std::thread::sleep(APART);
            }
            send(signal, process_1);
        }
        let ended = unshare.end();
        ended.assert_by(Exit(status));
        if signals.len() == 1 {
            ended.assert_all_closed(NAMES);
        }
    }
}

fn only_child(process: u32) -> u32 {
    let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children")).expect("/proc");
    children.trim().parse().expect("one child")
}

/// Every channel is closed before its connection, and every stream ends by a FIN.
fn on_the_wire(Suite { servers, .. }: &Suite) {
    let toml = LIMITS.replace("deadline_ms = 6000\n", "deadline_ms = 30000\n") + GOODBYE_LIMITS + MONGO_LIMITS;
    let limits = &Limits::new("on_the_wire", &toml);
    for (ending, signal) in [("return", None), ("exit", None), ("panic", None), ("wait", Some("TERM"))] {
        for way in BOTH {
            for load in ["idle", "busy"] {
                let proxies = Proxies::of(servers);
                let mut command = servers.child(&format!("{way} {load} {ending} -"), limits);
                proxies.lead(&mut command, servers);
                let mut child = Running::start(command).ready();
                if let Some(signal) = signal {
                    child.send(signal);
                }
                let ended = child.end();
                ended.assert_all_closed(NAMES);
                for (kind, proxy) in &proxies.0 {
                    let what = format!("{kind}, {way} {load} {ending}");
                    until(|| proxy.open() == 0, || what.clone());
                    let clients = proxy.clients();
                    assert!(!clients.is_empty(), "{what}");
                    // A connection in the middle of an answer can only end by a reset, and MongoDB sends its monitor
                    // messages at any time.
                    if *kind == Kind::RabbitMq || (load == "idle" && *kind != Kind::Mongo) {
                        assert!(clients.iter().all(|client| client.end == Some(End::Fin)), "{what}: {clients:?}");
                    }
                    if *kind == Kind::RabbitMq {
                        let what = format!("{what} {ended}");
                        assert_goodbyes(proxy, &what);
                    }
                }
                servers.assert_clean();
            }
        }
    }
}

fn assert_goodbyes(proxy: &services::Proxy, what: &str) {
    let frames = proxy.frames();
    for client in proxy.clients() {
        let said: Vec<_> =
            frames.iter().filter(|frame| frame.connection == client.connection && frame.from_client).collect();
        let count = |name: &str| said.iter().filter(|frame| frame.name == name).count();
        let last = said.iter().rfind(|frame| frame.name != "Connection.CloseOk").map(|frame| frame.name.as_str());
        assert_eq!(last, Some("Connection.Close"), "{what}: {:?}", names(&said));
        let closed = count("Channel.Close") + count("Channel.CloseOk");
        assert_eq!(count("Channel.Open"), closed, "{what}: {:?}", names(&said));
    }
}

fn names<'a>(frames: &[&'a services::AmqpFrame]) -> Vec<&'a str> {
    frames.iter().map(|frame| frame.name.as_str()).collect()
}

/// A forked child refuses its inherited pool. Neither its life nor its end sends a byte on the parent's connections.
fn fork_once(Suite { servers, .. }: &Suite, ending: &str, status: &str) {
    // The parent sends nothing by itself meanwhile.
    let mut toml = LIMITS.replace("[pool.probe]\n", "[pool.probe]\nenabled = false\n") + MONGO_LIMITS;
    if cfg!(feature = "mongodb") {
        toml += "heartbeat_ms = 60000\nmin_pool_size = 1\n";
    }
    if cfg!(feature = "rabbitmq") {
        toml += "[rabbitmq]\nheartbeat_ms = 60000\n";
    }
    let limits = Limits::new(&format!("fork-{ending}-{:?}", std::thread::current().id()), &toml);
    let proxies = Proxies::of(servers);
    let mut command = servers.child(&format!("forking - {ending} -"), &limits);
    proxies.lead(&mut command, servers);
    let mut parent = Running::start(command);
    parent.hear("BEFORE");
    let before = quiet(&proxies);
    parent.answer();
    parent.hear("REFUSED");
    if ending == "wait" {
        let child = parent.hear("PARKED").parse().expect("a number");
        send("TERM", child);
    }
    let told = parent.hear("CHILD");
    parent.hear("AFTER");
    if told != status {
        parent.answer();
        panic!("the child ended with {told}, not with {status}: {}", parent.end());
    }
    for (kind, before) in &before {
        // Later connections belong to the child's own pool, which was closed.
        let proxy = &proxies.0[kind];
        let is_closed = |client: &services::Client| match kind {
            // MongoDB's monitors may leave unread data at the child's end. The kernel then sends a reset.
            Kind::Mongo => client.end.is_some(),
            _ => client.end == Some(End::Fin),
        };
        let are_closed = || proxy.clients()[before.len()..].iter().all(is_closed);
        until(are_closed, || format!("{kind}: the child's connections are closed: {:?}", proxy.clients()));
        let after = proxy.clients();
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(before.bytes, after.bytes, "{kind}: {after:?}");
            // Idle HTTP connections end by themselves.
            assert!(before.end == after.end || *kind == Kind::ClickHouse, "{kind}: {after:?}");
        }
        assert!(after.len() == before.len() || ending == "own", "{kind}: {after:?}");
    }
    parent.answer();
    let ended = parent.end();
    ended.assert_by(Exit(0));
    ended.assert_calm();
    let reports: Vec<_> = ended.stderr.lines().filter(|line| line.starts_with("REPORT process exit")).collect();
    assert_eq!(reports.len(), if ending == "own" { 2 } else { 1 }, "{ended}");
    // SQLite forbids a process to open a file that its parent had open as it forked.
    let names = NAMES.iter().filter(|name| **name != "sqlite");
    for (name, report) in names.flat_map(|name| reports.iter().map(move |report| (name, report))) {
        assert!(report.contains(&format!("{name}=closed")), "{name}: {ended}");
    }
    servers.assert_clean();
}

type Clients = BTreeMap<Kind, Vec<services::Client>>;

/// The clients of each proxy, once no more bytes arrive.
fn quiet(proxies: &Proxies) -> Clients {
    let now = || proxies.0.iter().map(|(kind, proxy)| (*kind, proxy.clients())).collect::<Clients>();
    let mut last = (now(), Instant::now());
    while last.1.elapsed() < Duration::from_millis(700) {
        std::thread::sleep(Duration::from_millis(20));
        let next = now();
        if next != last.0 {
            last = (next, Instant::now());
        }
    }
    last.0
}

/// The server does not answer or is gone. The process ends nevertheless, and reports that.
fn frozen_or_gone(kind: Kind) {
    let servers = Servers::of(&[kind]);
    let server = &servers.0[&kind];
    let toml = "[pool]\nacquire_timeout_ms = 30000\n[pool.retry]\nattempts = 20\nbudget_ms = 30000\n\
                [pool.close]\ndeadline_ms = 4000\ndrain_ms = 1000\nheld_ms = 200\n";
    let limits = Limits::new(&format!("frozen-{}-{:?}", name(kind), std::thread::current().id()), toml);
    // The deadline, the watchdog's second, and the time that a loaded machine takes to notice.
    let most = Duration::from_millis(4000 + 1000 + 1000);
    for (what, signal, by) in
        [("frozen", Some("TERM"), Signal(15)), ("frozen", None, Exit(3)), ("gone", Some("TERM"), Signal(15))]
    {
        let mut children = Vec::new();
        for way in BOTH {
            for load in ["idle", "busy", "held"] {
                let ending = if signal.is_some() { "wait" } else { "told" };
                let mut command = servers.child(&format!("{way} {load} {ending} -"), &limits);
                command.env("ONLY", name(kind));
                children.push((format!("{what} {way} {load}"), Running::start(command)));
            }
        }
        let mut children: Vec<_> = children.into_iter().map(|(case, child)| (case, child.ready())).collect();
        match what {
            "frozen" => server.freeze().expect("it stops"),
            _ => server.kill().expect("it goes"),
        }
        for (_, child) in &mut children {
            match signal {
                Some(signal) => child.send(signal),
                None => child.tell(),
            }
        }
        for (case, child) in children {
            let ended = child.end();
            assert!(ended.report().contains(&format!("{}=", name(kind))), "{case}: {ended}");
            ended.assert_by(by);
            assert!(ended.took < most, "{case}: {ended}");
            ended.assert_calm();
        }
        match what {
            "frozen" => server.thaw().expect("it goes on"),
            _ => server.restart().expect("it comes back"),
        }
    }
}

fn until(holds: impl Fn() -> bool, what: impl Fn() -> String) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(10), "{}", what());
        std::thread::sleep(Duration::from_millis(2));
    }
}

// The suite.

/// The number of children that run at once. Most of them wait.
const AT_ONCE: usize = 4;

struct Case {
    /// Cases of one row are one line of the summary.
    row: &'static str,
    name: String,
    run: Box<dyn Fn(&Suite) + Sync + Send>,
}

struct Suite {
    servers: Servers,
    /// Servers for endings that leave connections open, so that they do not disturb `servers`.
    rough: Servers,
    limits: Limits,
}

/// The summary of a row's children.
#[derive(Default)]
struct Sum {
    children: usize,
    failed: usize,
    slowest: Duration,
}

fn suite() {
    let filters: Vec<String> = env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let rounds = env::var("EXIT_ROUNDS").map_or(2, |rounds| rounds.parse().expect("EXIT_ROUNDS is a number"));
    let is_wanted = |case: &Case| filters.is_empty() || filters.iter().any(|filter| case.name.contains(filter));
    let cases: Vec<_> = cases().into_iter().filter(is_wanted).collect();
    // Someone who sets EXIT_ROUNDS wants cases to run. `cargo test` passes filters that are meant for other tests.
    if cases.is_empty() && env::var_os("EXIT_ROUNDS").is_some() {
        eprintln!("error: no way to end matches {}", filters.join(" or "));
        std::process::exit(1);
    }
    println!("\nrunning {} tests, {rounds} rounds of each", cases.len());
    let kinds = if cases.is_empty() { &[] } else { KINDS };
    let suite = Suite {
        servers: Servers::of(kinds),
        rough: Servers::of(kinds),
        limits: Limits::new("table", &format!("{LIMITS}{MONGO_LIMITS}")),
    };
    let next = AtomicUsize::new(0);
    let sums: Mutex<BTreeMap<&str, Sum>> = Mutex::default();
    let failed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let run = || (0..rounds).for_each(|_| (case.run)(&suite));
                    let passed = catch_unwind(AssertUnwindSafe(run)).is_ok();
                    let took = tools::take_times();
                    let slowest = took.iter().max().copied().unwrap_or_default();
                    println!("test {} ... {}", case.name, if passed { "ok" } else { "FAILED" });
                    let mut sums = sums.lock().expect("nobody panics with it");
                    let sum = sums.entry(case.row).or_default();
                    sum.children += took.len();
                    sum.slowest = sum.slowest.max(slowest);
                    if !passed {
                        sum.failed += 1;
                        failed.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    println!("\n{:<40} {:>8} {:>8} {:>12}", "ending", "children", "failed", "slowest");
    for (row, sum) in sums.into_inner().expect("nobody panics with it") {
        println!("{row:<40} {:>8} {:>8} {:>12}", sum.children, sum.failed, format!("{:.0?}", sum.slowest));
    }
    let failed = failed.into_inner();
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out\n",
        cases.len() - failed
    );
    drop(suite);
    std::process::exit(i32::from(failed > 0));
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // The slow cases begin first.
    for (row, story) in STORIES.iter().rev() {
        cases.push(Case { row, name: format!("exit_{row}"), run: Box::new(story) });
    }
    for row in TABLE {
        for way in row.ways {
            for load in row.loads {
                let signals = row.signals.concat().to_lowercase();
                let name =
                    format!("exit_{}_{way}_{load}{}{signals}", row.name, if signals.is_empty() { "" } else { "_" });
                let run = move |suite: &Suite| {
                    let servers = if row.is_clean() { &suite.servers } else { &suite.rough };
                    row.check(&format!("{way} {load}"), servers, &suite.limits);
                };
                cases.push(Case { row: row.name, name, run: Box::new(run) });
            }
        }
    }
    cases
}
