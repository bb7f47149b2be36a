//! [`ChildRun`], one run of a child process with its group, from its start until nothing of the group is left.
//!
//! On Linux the first process of the group is not reaped before all others of the group have ended. Until then the kernel
//! gives its number, which is the group's too, to nobody else, so that a signal cannot reach a stranger. Elsewhere it is
//! reaped as it ends, and the rest of its group is not signalled any more.
//! Threads: each run has one, which calls [`ChildRun::watch`]. It alone looks at the table of processes, and reaps.
//! Locks: the one of `process` is held for single system calls that do not wait. While the thread waits it holds none.

use std::io;
use std::process::{ChildStderr, ChildStdin, ChildStdout, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use crate::base::runtime::within;

/// The pause between two looks whether the rest of a group has ended, at the beginning, at most once it was signalled,
/// and at most before that. Nobody waits for a group that was not signalled.
#[cfg(target_os = "linux")]
const LOOKS: [Duration; 3] = [Duration::from_millis(1), Duration::from_millis(50), Duration::from_secs(1)];

/// A run of a child process.
pub(super) struct ChildRun {
    /// The number of the process, and of its group.
    pub(super) id: u32,
    /// `None` once nothing of the group is left to be signalled.
    process: Mutex<Option<std::process::Child>>,
    /// Notified with each signal. Waited on with `process`.
    signalled: Condvar,
    ended: watch::Sender<Option<ChildEnd>>,
    /// Whether nothing of the group is left.
    gone: watch::Sender<bool>,
    /// Whether the pool ends it, so that its end is no loss.
    is_ending: AtomicBool,
    pub(super) stdin: Mutex<Option<ChildStdin>>,
    pub(super) stdout: Mutex<Option<ChildStdout>>,
    pub(super) stderr: Mutex<Option<ChildStderr>>,
}

/// The end of a child process. Its status is unknown if somebody else has asked the kernel for it.
#[derive(Clone, Copy)]
pub(super) struct ChildEnd(pub(super) Option<ExitStatus>);

/// The signals that end a group.
#[derive(Clone, Copy)]
pub(super) enum EndSignal {
    /// It is asked to end.
    Term,
    /// It is ended.
    Kill,
}

impl ChildRun {
    pub(super) fn new(mut process: std::process::Child) -> Self {
        let (stdin, stdout, stderr) = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        ChildRun {
            id: process.id(),
            process: Mutex::new(Some(process)),
            signalled: Condvar::new(),
            ended: watch::Sender::new(None),
            gone: watch::Sender::new(false),
            is_ending: AtomicBool::new(false),
            stdin: Mutex::new(stdin),
            stdout: Mutex::new(stdout),
            stderr: Mutex::new(stderr),
        }
    }

    /// Waits until the process has ended, then until nothing of its group is left, and tells all who wait for that. It
    /// blocks. `told` is called between the two.
    pub(super) fn watch(&self, told: impl FnOnce(ChildEnd)) {
        let ended = self.wait();
        self.ended.send_replace(Some(ended));
        told(ended);
        self.wait_for_rest();
        self.gone.send_replace(true);
    }

    /// Whether the pool has sent it a signal.
    pub(super) fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::SeqCst)
    }

    /// How the process has ended. `None` while it runs.
    pub(super) fn end(&self) -> Option<ChildEnd> {
        *self.ended.borrow()
    }

    /// Waits until the process has ended.
    pub(super) async fn ended(&self) -> ChildEnd {
        let mut ended = self.ended.subscribe();
        let found = ended.wait_for(Option::is_some).await.ok().and_then(|ended| *ended);
        // The sender lives as long as this.
        found.unwrap_or(ChildEnd(None))
    }

    /// Whether nothing of the group is left.
    pub(super) fn is_gone(&self) -> bool {
        *self.gone.borrow()
    }

    /// Waits until nothing of the group is left. Returns whether that was in time.
    pub(super) async fn gone(&self, limit: Duration) -> bool {
        let mut gone = self.gone.subscribe();
        within(limit, gone.wait_for(|gone| *gone)).await.is_ok()
    }
}

#[cfg(target_os = "linux")]
impl ChildRun {
    fn wait(&self) -> ChildEnd {
        use std::os::unix::process::ExitStatusExt;

        use rustix::io::Errno;
        use rustix::process::{WaitId, WaitIdOptions, waitid};

        let Some(pid) = self.pid() else { return ChildEnd(None) };
        loop {
            match waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                Err(Errno::INTR) | Ok(None) => {}
                Ok(Some(status)) => {
                    let core = if status.dumped() { 0x80 } else { 0 };
                    let code = status.exit_status().map(|code| code << 8);
                    let raw = code.or(status.terminating_signal().map(|signal| signal | core));
                    return ChildEnd(raw.map(ExitStatus::from_raw));
                }
                // The program ignores SIGCHLD, or has reaped the process itself. Its number may be another's by now.
                Err(Errno::CHILD) => {
                    *self.process.lock() = None;
                    return ChildEnd(None);
                }
                Err(_unknown) => return ChildEnd(None),
            }
        }
    }

    /// Waits until all others of the group have ended, and reaps the process.
    fn wait_for_rest(&self) {
        use crate::base::process_table::runs_in_group;

        let [first, longest, unasked] = LOOKS;
        let mut pause = first;
        // A look that fails, since this program has no descriptor left, proves no end.
        while self.process.lock().is_some() && runs_in_group(self.id).unwrap_or(true) {
            let mut process = self.process.lock();
            // Asked under the lock, since a signal that is sent after that notifies.
            let most = if self.is_ending() { longest } else { unasked };
            let signalled = !self.signalled.wait_for(&mut process, pause.min(most)).timed_out();
            pause = if signalled { first } else { pause.min(most) * 2 };
        }
        if let Some(mut process) = self.process.lock().take() {
            // It has ended, so that this does not wait. Its status is known.
            let _ = process.try_wait();
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl ChildRun {
    fn wait(&self) -> ChildEnd {
        /// Between two looks at the process.
        const PAUSE: Duration = Duration::from_millis(50);
        loop {
            let mut process = self.process.lock();
            match process.as_mut().map(std::process::Child::try_wait) {
                Some(Ok(None)) => {}
                Some(Ok(ended)) => {
                    *process = None;
                    return ChildEnd(ended);
                }
                _ => {
                    *process = None;
                    return ChildEnd(None);
                }
            }
            drop(process);
            std::thread::sleep(PAUSE);
        }
    }

    /// The rest of its group is not known.
    fn wait_for_rest(&self) {}
}

impl ChildRun {
    /// Sends a signal to the group, as long as it is there. Elsewhere than on Linux it is there as long as its first
    /// process runs.
    ///
    /// # Errors
    /// When no process of the group may be signalled.
    pub(super) fn signal(&self, ending: EndSignal) -> io::Result<()> {
        self.is_ending.store(true, Ordering::SeqCst);
        let sent = match &mut *self.process.lock() {
            Some(process) => sent(process, ending),
            None => Ok(()),
        };
        self.signalled.notify_all();
        sent
    }

    #[cfg(target_os = "linux")]
    fn pid(&self) -> Option<rustix::process::Pid> {
        self.process.lock().as_ref().map(rustix::process::Pid::from_child)
    }
}

/// Sends a signal to the group of this process.
#[cfg(unix)]
fn sent(process: &std::process::Child, ending: EndSignal) -> io::Result<()> {
    use rustix::io::Errno;
    use rustix::process::{Pid, Signal, kill_process_group};

    let group = Pid::from_child(process);
    let sent = match ending {
        // A group that is stopped has to go on to hear of it.
        EndSignal::Term => {
            kill_process_group(group, Signal::TERM).and_then(|()| kill_process_group(group, Signal::CONT))
        }
        EndSignal::Kill => kill_process_group(group, Signal::KILL),
    };
    match sent {
        Err(Errno::SRCH) => Ok(()),
        sent => Ok(sent?),
    }
}

/// Ends this process.
#[cfg(not(unix))]
fn sent(process: &mut std::process::Child, ending: EndSignal) -> io::Result<()> {
    match ending {
        EndSignal::Term | EndSignal::Kill => process.kill(),
    }
}
