//! The one child process that a verb runs, and the signals that are meant for it.
//!
//! A verb that runs a child calls `Child::catching_signals` first, which spawns the thread `signals`. That thread lives
//! until the process ends and passes SIGINT, SIGTERM and SIGHUP to the child's process group. The group is one atomic
//! number, `NOBODY` while no child runs. After a signal no further child starts. There is no lock.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child as Process, Command, ExitCode, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;

const NOBODY: i32 = 0;
const SIGNALLED: u8 = 128;

/// Passes signals on to the child. So the child closes in its own way, and this process still stops the servers
/// afterwards.
#[derive(Debug)]
pub(crate) struct Child {
    /// The child's process group. It differs from the group of this process, so a Ctrl-C reaches the child once,
    /// through the thread `signals`.
    group: Arc<AtomicI32>,
    signalled: Arc<AtomicBool>,
}

impl Child {
    /// From this call on, a signal no longer ends this process while a child runs.
    pub(crate) fn catching_signals() -> io::Result<Child> {
        let group = Arc::new(AtomicI32::new(NOBODY));
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        let signalled = Arc::new(AtomicBool::new(false));
        let (target, noted) = (Arc::clone(&group), Arc::clone(&signalled));
        let pass_on = move || {
            for signal in signals.forever() {
                noted.store(true, Ordering::SeqCst);
                match (target.load(Ordering::SeqCst), Signal::try_from(signal)) {
                    // The servers end with this process.
                    (NOBODY, _) | (_, Err(_)) => std::process::exit(i32::from(SIGNALLED) + signal),
                    (group, Ok(signal)) => drop(killpg(Pid::from_raw(group), signal)),
                }
            }
        };
        thread::Builder::new().name("signals".into()).spawn(pass_on)?;
        Ok(Child { group, signalled })
    }

    /// Whether a signal has come. The verb then ends, and starts nothing more.
    pub(crate) fn was_signalled(&self) -> bool {
        self.signalled.load(Ordering::SeqCst)
    }

    /// Runs the child to its end. Its exit status becomes the exit code of this process.
    pub(crate) fn run(&self, command: &mut Command) -> io::Result<ExitCode> {
        let mut child = self.start(command)?;
        let status = child.wait();
        self.group.store(NOBODY, Ordering::SeqCst);
        status.map(code)
    }

    fn start(&self, command: &mut Command) -> io::Result<Process> {
        if self.was_signalled() {
            return Err(io::Error::other("ended by a signal"));
        }
        let child = command.process_group(0).spawn()?;
        self.group.store(child.id().cast_signed(), Ordering::SeqCst);
        Ok(child)
    }

    /// Like `run`. It also prints the child's output and shows each line to `watch`.
    pub(crate) fn run_watched(&self, mut command: Command, mut watch: impl FnMut(&str)) -> io::Result<ExitCode> {
        // Both streams share one pipe, so that the lines of cargo and of the tests keep their order.
        let (reader, writer) = io::pipe()?;
        let mut child = self.start(command.stdout(writer.try_clone()?).stderr(writer))?;
        // The command still holds the writing end. The reader would never come to its end otherwise.
        drop(command);
        let mut lines = BufReader::new(reader);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            io::stdout().write_all(&line)?;
            io::stdout().flush()?;
            watch(String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
        let status = child.wait();
        self.group.store(NOBODY, Ordering::SeqCst);
        status.map(code)
    }
}

fn code(status: ExitStatus) -> ExitCode {
    let by_signal = || status.signal().and_then(|signal| u8::try_from(signal).ok()).map(|signal| SIGNALLED + signal);
    let code = status.code().and_then(|code| u8::try_from(code).ok()).or_else(by_signal);
    ExitCode::from(code.unwrap_or(1))
}
