//! Child processes that cannot outlive this process.
//!
//! `Service` and `RabbitMq` run their servers as a [`Process`]. One thread of this process starts all of them, because
//! the kernel sends a child's death signal when the thread that started it ends, and the threads of tests end early. A
//! channel carries the commands to that thread, so there is no lock.
//!
//! Invariant: a [`Process`] that drops is dead before its drop returns, with its group and its children.

use crate::Error;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// One server process and its process group. Dropping it kills both.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

/// A command that dies with this process. It runs in a process group of its own, so Ctrl-C in the terminal does not
/// reach it. Its home and temporary folder is `dir`, and it sees no other part of our environment than `PATH`.
pub(crate) fn command(program: impl AsRef<Path>, dir: &Path) -> Command {
    // The kernel sends the death signal only if the parent was alive when the signal was requested. The shell therefore
    // checks $PPID afterwards.
    let guard = r#"[ "$PPID" = "$0" ] && exec "$@""#;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "sh", "-c", guard]).arg(std::process::id().to_string()).arg(program.as_ref());
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    command.env_clear().env("PATH", path).env("LANG", "C.UTF-8").env("HOME", dir).env("TMPDIR", dir);
    command.current_dir(dir).process_group(0).stdin(Stdio::null());
    command
}

impl Process {
    /// Starts `command`, and appends its output to the file `output`.
    pub(crate) fn spawn(mut command: Command, output: &Path) -> Result<Process, Error> {
        let file =
            File::options().create(true).append(true).open(output).map_err(Error::io(output.to_string_lossy()))?;
        let copy = file.try_clone().map_err(Error::io(output.to_string_lossy()))?;
        command.stdout(file).stderr(copy);
        let what = format!("{:?}", command.get_args().nth(5).unwrap_or_default());
        let child = spawn_for_life(command).map_err(Error::io(format!("starting {what}")))?;
        Ok(Process { child })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends SIGKILL to the whole group and to all descendants. Returns when they are gone, so that port and memory are
    /// free again.
    pub(crate) fn kill(&mut self) {
        // A stopped process starts no further children, so the list is complete.
        let children = if self.freeze().is_ok() { children(self.pid()) } else { Vec::new() };
        self.signal(Signal::SIGKILL);
        send(&children, Signal::SIGKILL);
        let _ = self.child.wait();
        let end = Instant::now() + SOON;
        while children.iter().any(|pid| state(*pid).is_some_and(|state| state != 'Z')) && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends SIGSTOP to the whole group and to all descendants. Returns when all have stopped.
    pub(crate) fn freeze(&mut self) -> io::Result<()> {
        self.signal(Signal::SIGSTOP);
        self.until("stop", |pid| state(pid) == Some('T'))?;
        let children = children(self.pid());
        send(&children, Signal::SIGSTOP);
        self.until("stop", |_| children.iter().all(|pid| matches!(state(*pid), None | Some('T' | 'Z'))))
    }

    /// Sends SIGCONT to the group and to all descendants.
    pub(crate) fn thaw(&mut self) -> io::Result<()> {
        send(&children(self.pid()), Signal::SIGCONT);
        self.signal(Signal::SIGCONT);
        self.until("go on", |pid| state(pid) != Some('T'))
    }

    /// Sends SIGTERM, and SIGKILL if the process has not ended after `patience`.
    pub(crate) fn stop(&mut self, patience: Duration) {
        self.signal(Signal::SIGCONT);
        self.signal(Signal::SIGTERM);
        let end = Instant::now() + patience;
        while self.is_running() && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
        self.kill();
    }

    fn signal(&mut self, signal: Signal) {
        // A child that was waited for has released its process number, which may belong to another process by now.
        if self.is_running() {
            let _ = killpg(Pid::from_raw(self.pid().cast_signed()), signal);
        }
    }

    /// Polls until the process has reached a state.
    fn until(&mut self, what: &str, reached: impl Fn(u32) -> bool) -> io::Result<()> {
        let end = Instant::now() + SOON;
        while Instant::now() < end {
            if !self.is_running() {
                return Err(io::Error::other("the process has ended"));
            }
            if reached(self.pid()) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Err(io::Error::other(format!("the process does not {what}")))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How long the system may take to stop a process or to end one. It takes milliseconds, so this only bounds a process
/// that hangs in the kernel.
const SOON: Duration = Duration::from_secs(5);

/// All descendants of a process, including those in process groups of their own, such as PostgreSQL's.
fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children: Vec<u32> = text.split_whitespace().filter_map(|child| child.parse().ok()).collect();
    let theirs: Vec<u32> = children.iter().flat_map(|child| self::children(*child)).collect();
    children.into_iter().chain(theirs).collect()
}

/// Sends a signal to each of these processes that still exists.
fn send(children: &[u32], signal: Signal) {
    for pid in children {
        let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
    }
}

/// The letter that the system gives for a process's state.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

/// A command to start, and the channel for its child.
type Order = (Command, mpsc::Sender<io::Result<Child>>);

/// Starts a command on the thread that lives as long as the process.
fn spawn_for_life(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        let work = move || {
            for (mut command, answer) in inbox {
                let _ = answer.send(command.spawn());
            }
        };
        // Without the thread its inbox is gone, and every order answers an error.
        let _ = thread::Builder::new().name("services-spawner".into()).spawn(work);
        orders
    });
    let (answer, child) = mpsc::channel();
    let gone = || io::Error::other("the spawning thread could not be started");
    spawner.send((command, answer)).map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}
