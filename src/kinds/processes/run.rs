//! [`ChildRun`], one run of a child process with its group, from its start until nothing of the group is left.
//!
//! On Linux the first process of the group is not reaped before all others of the group have ended. Until then the kernel
//! gives its number, which is the group's too, to nobody else, so that a signal cannot reach a stranger. Elsewhere it is
//! reaped as it ends, and the rest of its group is not signalled any more.
//! Locks: the one of `process` is held for single system calls that do not wait. The thread that waits for the end
//! holds none.

use std::io;
use std::process::{ChildStderr, ChildStdin, ChildStdout, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::sleep;

#[cfg(target_os = "linux")]
use crate::base::process_table::runs_in_group;
use crate::base::runtime::within;

/// The pause between two looks whether the rest of a group has ended, at the beginning and at most.
const LOOKS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// A run of a child process.
pub(super) struct ChildRun {
    /// The number of the process, and of its group.
    pub(super) id: u32,
    /// `None` once nothing of the group is left to be signalled.
    process: Mutex<Option<std::process::Child>>,
    ended: watch::Sender<Option<ChildEnd>>,
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
            ended: watch::Sender::new(None),
            is_ending: AtomicBool::new(false),
            stdin: Mutex::new(stdin),
            stdout: Mutex::new(stdout),
            stderr: Mutex::new(stderr),
        }
    }

    /// Waits until the process has ended, on a thread that may block, and tells all who wait for that.
    pub(super) fn watch(&self) -> ChildEnd {
        let ended = self.wait();
        self.ended.send_replace(Some(ended));
        ended
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

    /// Waits until nothing of the group is left. Returns whether that was in time.
    pub(super) async fn gone(&self, limit: Duration) -> bool {
        let gone = async {
            self.ended().await;
            let (mut pause, longest) = LOOKS;
            while !self.is_gone() {
                sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
        };
        within(limit, gone).await.is_ok()
    }
}

#[cfg(target_os = "linux")]
impl ChildRun {
    fn wait(&self) -> ChildEnd {
        use std::os::unix::process::ExitStatusExt;

        use nix::errno::Errno;
        use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

        let ended = loop {
            match waitid(Id::Pid(self.pid()), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
                Err(Errno::EINTR) => {}
                Ok(WaitStatus::Exited(_, code)) => break Some(ExitStatus::from_raw(code << 8)),
                Ok(WaitStatus::Signaled(_, signal, _)) => break Some(ExitStatus::from_raw(signal as i32)),
                // The program ignores SIGCHLD, or has reaped the process itself.
                _ => break None,
            }
        };
        if ended.is_none() {
            // Its number may be another's by now.
            *self.process.lock() = None;
        }
        ChildEnd(ended)
    }

    /// Whether nothing of the group is left. Reaps the process then.
    pub(super) fn is_gone(&self) -> bool {
        let mut process = self.process.lock();
        if process.is_none() {
            return true;
        }
        if self.end().is_none() || runs_in_group(self.id) {
            return false;
        }
        if let Some(mut process) = process.take() {
            // It has ended, so that this does not wait. Its status is known.
            let _ = process.try_wait();
        }
        true
    }

    /// Sends a signal to the group, as long as it is there.
    ///
    /// # Errors
    /// When no process of the group may be signalled.
    pub(super) fn signal(&self, ending: EndSignal) -> io::Result<()> {
        self.is_ending.store(true, Ordering::SeqCst);
        self.signal_group(ending)
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

    /// Whether the process is gone. The rest of its group is not known.
    pub(super) fn is_gone(&self) -> bool {
        self.process.lock().is_none()
    }

    /// Sends a signal to the group, as long as its first process runs.
    ///
    /// # Errors
    /// When no process of the group may be signalled.
    pub(super) fn signal(&self, ending: EndSignal) -> io::Result<()> {
        self.is_ending.store(true, Ordering::SeqCst);
        #[cfg(unix)]
        return self.signal_group(ending);
        #[cfg(not(unix))]
        match (ending, self.process.lock().as_mut()) {
            (EndSignal::Term | EndSignal::Kill, Some(process)) => process.kill(),
            (_, None) => Ok(()),
        }
    }
}

#[cfg(unix)]
impl ChildRun {
    fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.id.cast_signed())
    }

    fn signal_group(&self, ending: EndSignal) -> io::Result<()> {
        use nix::errno::Errno;
        use nix::sys::signal::{Signal, killpg};

        let process = self.process.lock();
        if process.is_none() {
            return Ok(());
        }
        let sent = match ending {
            // A group that is stopped has to go on to hear of it.
            EndSignal::Term => killpg(self.pid(), Signal::SIGTERM).and_then(|()| killpg(self.pid(), Signal::SIGCONT)),
            EndSignal::Kill => killpg(self.pid(), Signal::SIGKILL),
        };
        match sent {
            Err(Errno::ESRCH) => Ok(()),
            sent => Ok(sent?),
        }
    }
}
