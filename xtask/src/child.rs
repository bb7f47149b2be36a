//! The one child that a verb runs, and the signals that are meant for it.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

const NOBODY: i32 = 0;
const SIGNALLED: u8 = 128;

/// Passes signals on, so that the child closes in its own way and we are still there to stop the servers after it.
#[derive(Debug)]
pub(crate) struct Child {
    /// The child's process group; it is not ours, so a Ctrl-C reaches it once, through us.
    group: Arc<AtomicI32>,
}

impl Child {
    /// From here on a signal no longer ends us while a child runs.
    pub(crate) fn catching_signals() -> io::Result<Child> {
        let group = Arc::new(AtomicI32::new(NOBODY));
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        let target = Arc::clone(&group);
        let pass_on = move || {
            for signal in signals.forever() {
                match (target.load(Ordering::SeqCst), Signal::try_from(signal)) {
                    // The servers die with us.
                    (NOBODY, _) | (_, Err(_)) => std::process::exit(i32::from(SIGNALLED) + signal),
                    (group, Ok(signal)) => drop(killpg(Pid::from_raw(group), signal)),
                }
            }
        };
        thread::Builder::new().name("signals".into()).spawn(pass_on)?;
        Ok(Child { group })
    }

    /// Runs it to its end and returns its exit status as ours.
    pub(crate) fn run(&self, command: &mut Command) -> io::Result<ExitCode> {
        let mut child = command.process_group(0).spawn()?;
        self.group.store(child.id().cast_signed(), Ordering::SeqCst);
        let status = child.wait();
        self.group.store(NOBODY, Ordering::SeqCst);
        status.map(code)
    }

    /// As `run`; what it prints is printed, and shown to `watch` line by line.
    pub(crate) fn run_watched(&self, mut command: Command, mut watch: impl FnMut(&str)) -> io::Result<ExitCode> {
        // One pipe for both, to keep cargo's words and the tests' in their order.
        let (reader, writer) = io::pipe()?;
        command.stdout(writer.try_clone()?).stderr(writer).process_group(0);
        let mut child = command.spawn()?;
        self.group.store(child.id().cast_signed(), Ordering::SeqCst);
        // The command still holds the writing end, and the reader would never come to its end.
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
