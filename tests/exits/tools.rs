//! Starts servers and children, and checks how the children ended.
//!
//! Each running child has two threads here: one reads its stderr, and one kills it after [`FAR_TOO_LONG`]. The only
//! shared state is an atomic in [`Servers`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use services::{Kind, Proxy, Service};

use super::common::Stopwatch;
use super::{KINDS, NAMES};

/// The limit for a child to run. It lies beyond all deadlines that the tests set.
const FAR_TOO_LONG: Duration = Duration::from_secs(120);

/// The servers of some children, and the number of RabbitMQ's unclean closes that a test has reported.
pub(crate) struct Servers(pub(crate) BTreeMap<Kind, Service>, AtomicUsize, Folder);

/// The folder of the children's files. It is deleted when this value drops.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = format!("exits-{}-files-{}", std::process::id(), number());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
        std::fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that stays behind does no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A number that no other call gives.
fn number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::SeqCst)
}

impl Servers {
    pub(crate) fn of(kinds: &[Kind]) -> Self {
        let started = Service::start_all(kinds).expect("servers");
        Servers(kinds.iter().copied().zip(started).collect(), AtomicUsize::new(0), Folder::new())
    }

    /// This program as a child that uses these servers and these close limits.
    pub(crate) fn child(&self, part: &str, limits: &Limits) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.env("CHILD", part).env("RUST_BACKTRACE", "0").env("RESOURCE_POOL_CONFIG", &limits.0);
        for (kind, server) in &self.0 {
            command.env(kind.url_variable(), server.url());
        }
        // Each child has a file of its own, which no other process keeps open as it ends.
        let file = self.2.0.join(format!("{}.sqlite", number()));
        command.env("SQLITE_URL", format!("sqlite://{}?mode=rwc", file.display()));
        command
    }

    /// Checks RabbitMQ's log for unclean ends. The first test that looks reports each of them.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        if let Some(rabbitmq) = self.0.get(&Kind::RabbitMq) {
            let unclean = rabbitmq.rabbitmq().expect("a broker").unclean_closes().expect("its log");
            let known = self.1.fetch_max(unclean.len(), Ordering::SeqCst);
            assert!(unclean.len() <= known, "of this child or one beside it: {:?}", &unclean[known..]);
        }
    }
}

pub(crate) fn name(kind: Kind) -> &'static str {
    let place = KINDS.iter().position(|known| *known == kind).expect("a kind of this build");
    NAMES[place]
}

/// A proxy in front of each server.
pub(crate) struct Proxies(pub(crate) BTreeMap<Kind, Proxy>);

impl Proxies {
    pub(crate) fn of(servers: &Servers) -> Self {
        let proxy = |server: &Service| Proxy::start(server.port()).expect("a proxy");
        Proxies(servers.0.iter().map(|(kind, server)| (*kind, proxy(server))).collect())
    }

    /// Points the child's URLs to the proxies.
    pub(crate) fn lead(&self, command: &mut Command, servers: &Servers) {
        for (kind, proxy) in &self.0 {
            // A client that knows the replica set would connect past the proxy.
            let url = proxy.url(&servers.0[kind]).replacen("replicaSet=rs0", "directConnection=true", 1);
            command.env(kind.url_variable(), url);
        }
    }
}

/// A configuration file with limits that suit a test. It is deleted when this value drops.
pub(crate) struct Limits(PathBuf);

impl Limits {
    pub(crate) fn new(name: &str, toml: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("exits-{}-{name}.toml", std::process::id()));
        std::fs::write(&path, toml).expect("a file");
        Limits(path)
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        // A file that stays behind does no harm.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A running child.
pub(crate) struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: Option<JoinHandle<String>>,
    /// When the child was told to end, or began to.
    ending: Option<Stopwatch>,
    /// Dropping this ends the thread that would kill the child.
    _limit: Sender<()>,
}

impl Running {
    pub(crate) fn start(command: Command) -> Self {
        Self::start_with(command, Stdio::piped())
    }

    pub(crate) fn start_with(mut command: Command, stderr: Stdio) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().expect("a child");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let read = |mut stderr: ChildStderr| {
            let mut text = Vec::new();
            stderr.read_to_end(&mut text).expect("its words");
            String::from_utf8_lossy(&text).into_owned()
        };
        let stderr = child.stderr.take().map(|stderr| std::thread::spawn(move || read(stderr)));
        let (limit, ended) = channel();
        let id = child.id();
        std::thread::spawn(move || {
            if ended.recv_timeout(FAR_TOO_LONG) == Err(RecvTimeoutError::Timeout) {
                eprintln!("process {id} is ended, having run for {FAR_TOO_LONG:?}");
                send("KILL", id);
            }
        });
        Running { child, stdout, stderr, ending: None, _limit: limit }
    }

    /// Reads up to the line that begins with `start`, and returns its rest.
    pub(crate) fn hear(&mut self, start: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            if self.stdout.read_line(&mut line).expect("a line") == 0 {
                let stderr = self.stderr.take().map(|stderr| stderr.join().expect("its words"));
                panic!("the child ended before it said {start:?}: {stderr:?}");
            }
            if let Some(rest) = line.trim_end().strip_prefix(start) {
                return rest.trim().to_owned();
            }
        }
    }

    pub(crate) fn ready(mut self) -> Self {
        self.hear("READY");
        self.ending = Some(Stopwatch::start());
        self
    }

    /// Lets a child go on that called `tell`.
    pub(crate) fn answer(&mut self) {
        self.child.stdin.as_mut().expect("piped").write_all(b"\n").expect("it listens");
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn send(&mut self, signal: &str) {
        self.ending = Some(Stopwatch::start());
        send(signal, self.id());
    }

    /// Ends a child that waits to be told.
    pub(crate) fn tell(&mut self) {
        self.ending = Some(Stopwatch::start());
        self.answer();
    }

    pub(crate) fn end(mut self) -> Ended {
        let ending = self.ending.unwrap_or_else(Stopwatch::start);
        let status = self.child.wait().expect("a child");
        let took = ending.took();
        TIMES.with_borrow_mut(|times| times.push(took));
        let stderr = self.stderr.take().map(|stderr| stderr.join().expect("its words")).unwrap_or_default();
        Ended { status, stderr, took }
    }
}

thread_local! {
    static TIMES: RefCell<Vec<Duration>> = const { RefCell::new(Vec::new()) };
}

/// The time that each child of this thread took to end, since the last call.
pub(crate) fn take_times() -> Vec<Duration> {
    TIMES.take()
}

pub(crate) fn send(signal: &str, process: u32) {
    let sent = Command::new("kill").arg(format!("-{signal}")).arg(process.to_string()).status();
    assert!(sent.expect("kill").success(), "SIG{signal} to {process}");
}

/// How a child ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

/// How a process ended, as its parent sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum By {
    Exit(i32),
    Signal(i32),
}

impl Ended {
    #[track_caller]
    pub(crate) fn assert_by(&self, by: By) {
        let ended = match by {
            By::Exit(_) => self.status.code().map(By::Exit),
            By::Signal(_) => self.status.signal().map(By::Signal),
        };
        assert_eq!(ended, Some(by), "{self}");
    }

    #[track_caller]
    pub(crate) fn report(&self) -> &str {
        let report = self.stderr.lines().find(|line| line.starts_with("REPORT"));
        report.unwrap_or_else(|| panic!("no report: {self}"))
    }

    /// Checks that everything with these names was closed, and that nothing else went wrong.
    #[track_caller]
    pub(crate) fn assert_all_closed(&self, names: &[&str]) {
        for name in names {
            assert!(self.report().contains(&format!("{name}=closed")), "{name}: {self}");
        }
        assert!(!self.stderr.contains("TROUBLE"), "{self}");
        let is_loud = |line: &&str| line.contains(" WARN ") || line.contains("ERROR ");
        assert_eq!(self.stderr.lines().find(is_loud), None, "{self}");
    }

    /// Checks that everything which had begun was closed, and that nothing else went wrong.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        for trouble in
            ["TROUBLE", "resource-pool: closed in", "=forced", "=failed", "=timed out", "=panicked", "=skipped"]
        {
            assert!(!self.stderr.contains(trouble), "{trouble}: {self}");
        }
    }

    /// Checks that nothing panicked except on the test's request.
    #[track_caller]
    pub(crate) fn assert_calm(&self) {
        let panics = self.stderr.matches("panicked at").count();
        let asked_for = self.stderr.matches("as the test asked").count();
        assert_eq!(panics, asked_for, "{self}");
        assert!(!self.stderr.contains("Sanitizer"), "{self}");
    }

    #[track_caller]
    pub(crate) fn assert_within(&self, limit: Duration) {
        assert!(self.took < limit, "{:?}: {self}", self.took);
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} after {:?}, saying\n{}", self.status, self.took, self.stderr)
    }
}
