//! The end of the process, however it comes: exit hook, signals, watchdog, fork guard.
//!
//! The one place with `unsafe`, and the one with differences between platforms. The exit hook
//! runs on a thread whose thread-locals may be gone, so it only hands over to the closer's thread
//! and waits on a condition variable; the waiting itself is the watchdog.

use std::panic::catch_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use once_cell::sync::OnceCell;
use parking_lot::Mutex;
use serde::Deserialize;

use crate::close::{self, Reason, WATCHDOG};
use crate::registry::Registry;
use crate::runtime::LONGEST;

/// How a process that a signal ended exits, after closing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ExitStatus {
    /// By the same signal, as if it had not been caught: a shell sees 130, 143 or 129. As process
    /// 1 of a namespace, which signals cannot end, with 128 plus the signal's number.
    #[default]
    Signal,
    /// With 0.
    Zero,
}

/// The status of a process that had to be ended because closing did not end in time.
const FORCED: i32 = 70;

static POOLS: Mutex<Vec<Weak<Registry>>> = Mutex::new(Vec::new());
static ENDING: AtomicBool = AtomicBool::new(false);

/// Has the pool closed when the process ends; the global one also on signals.
pub(crate) fn arm(registry: &Arc<Registry>, signals: bool) {
    let mut pools = POOLS.lock();
    pools.retain(|pool| pool.strong_count() > 0);
    pools.push(Arc::downgrade(registry));
    drop(pools);
    platform::hook_exit();
    if signals {
        static SIGNALS: OnceCell<()> = OnceCell::new();
        SIGNALS.get_or_init(|| platform::catch_signals(registry.context.options.exit_status));
    }
}

/// Whether the process is ending, so that nothing may open again.
pub(crate) fn is_ending() -> bool {
    ENDING.load(Ordering::SeqCst)
}

/// Closes every pool and waits, within their deadlines. Whether that was in vain for one of them.
fn close_pools(reason: Reason) -> bool {
    ENDING.store(true, Ordering::SeqCst);
    let pools: Vec<_> = POOLS.lock().iter().filter_map(Weak::upgrade).collect();
    let started = Instant::now();
    for pool in &pools {
        close::start(pool, reason, None);
    }
    let mut forced = false;
    for pool in pools {
        let limit = pool.context.options.close.worst_case().min(LONGEST);
        match pool.context.close.wait_blocking(started + limit) {
            Some(report) if report.all_closed() => {}
            Some(report) => platform::write_stderr(&format!("resource-pool: {report}")),
            None => {
                forced = true;
                let running: Vec<_> = pool.context.close.running().iter().map(|name| name.to_string()).collect();
                let names = if running.is_empty() { "the drain, or a listener".to_owned() } else { running.join(", ") };
                platform::write_stderr(&format!(
                    "resource-pool: closing did not end in time; still running: {names}\n"
                ));
            }
        }
        // Its drop would start nothing, but may run drivers' code on this thread.
        std::mem::forget(pool);
    }
    forced
}

/// The longest that any pool may take to close.
fn longest() -> Duration {
    let limits =
        POOLS.lock().iter().filter_map(Weak::upgrade).map(|pool| pool.context.options.close.worst_case()).max();
    limits.unwrap_or(WATCHDOG).min(LONGEST)
}

#[cfg(unix)]
#[allow(unsafe_code, reason = "atexit, sigaction, raise and _exit have no safe form")]
mod platform {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicI32, AtomicUsize};

    use super::*;

    /// The process that installed all this; a forked child is none of ours.
    static PROCESS: AtomicI32 = AtomicI32::new(0);
    /// The first signal that arrived.
    static ARRIVED: AtomicI32 = AtomicI32::new(0);
    /// The write end of the pipe to the thread that ends the process.
    static DOORBELL: AtomicI32 = AtomicI32::new(-1);
    /// The handler that `ctrlc` installed for SIGINT.
    static CTRLC: AtomicUsize = AtomicUsize::new(0);

    const SIGNALS: [i32; 2] = [libc::SIGTERM, libc::SIGHUP];

    pub(super) fn hook_exit() {
        static HOOKED: OnceCell<()> = OnceCell::new();
        HOOKED.get_or_init(|| {
            // SAFETY: getpid has no preconditions.
            PROCESS.store(unsafe { libc::getpid() }, Ordering::SeqCst);
            // SAFETY: `on_exit` is an `extern "C" fn` that lives as long as the program.
            if unsafe { libc::atexit(on_exit) } != 0 {
                tracing::error!("the exit hook could not be registered: call close_all before main ends");
            }
        });
    }

    extern "C" fn on_exit() {
        // A panic that leaves an exit handler would abort.
        let _status = catch_unwind(|| {
            if !is_ours() {
                return;
            }
            let number = ARRIVED.load(Ordering::SeqCst);
            if number != 0 {
                // A signal's thread is closing and will end the process its way.
                std::thread::sleep(longest() + WATCHDOG);
                exit_now(128 + number);
            }
            if close_pools(Reason::ProcessExit) {
                exit_now(FORCED);
            }
        });
    }

    pub(super) fn catch_signals(status: ExitStatus) {
        let Ok((mut receiver, sender)) = UnixStream::pair().inspect_err(|error| {
            tracing::error!(%error, "signals will not close the pool");
        }) else {
            return;
        };
        let wait = move || {
            let mut byte = [0];
            if receiver.read_exact(&mut byte).is_ok() {
                end_by_signal(status);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("resource-pool-signal".to_owned()).spawn(wait) {
            tracing::error!(%error, "signals will not close the pool");
            return;
        }
        // A full pipe must not block the handler; one byte is all that is ever needed.
        let _ = sender.set_nonblocking(true);
        DOORBELL.store(sender.as_raw_fd(), Ordering::SeqCst);
        std::mem::forget(sender);

        // Each is decided by itself: one that is ignored or handled already is left alone.
        let ctrl_c = ctrlc::try_set_handler(|| {
            if handler_of(libc::SIGINT) == CTRLC.load(Ordering::SeqCst) {
                arrived(libc::SIGINT);
            }
        });
        match ctrl_c {
            Ok(()) => CTRLC.store(handler_of(libc::SIGINT), Ordering::SeqCst),
            Err(error) => tracing::debug!(%error, "SIGINT is left to its present handler"),
        }
        for number in SIGNALS {
            if handler_of(number) == libc::SIG_DFL {
                install(number);
            } else {
                tracing::debug!(number, "signal is left to its present handler");
            }
        }
    }

    fn install(number: i32) {
        // SAFETY: zeroed is a valid sigaction, and `on_signal` only does what is
        // async-signal-safe.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(number, &action, std::ptr::null_mut());
        }
    }

    fn handler_of(number: i32) -> usize {
        // SAFETY: zeroed is a valid sigaction, which the call fills in.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(number, std::ptr::null(), &mut action);
            action.sa_sigaction
        }
    }

    extern "C" fn on_signal(number: i32) {
        if !is_ours() {
            restore_and_raise(number);
        } else if handler_of(number) == on_signal as *const () as usize {
            // Otherwise the app has put its own handler over ours, and owns the ending.
            arrived(number);
        }
    }

    /// The first signal rings the doorbell; a second one ends the process at once. Only
    /// async-signal-safe calls.
    fn arrived(number: i32) {
        if ARRIVED.compare_exchange(0, number, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            restore_and_raise(number);
            return;
        }
        // SAFETY: writes one byte to a descriptor that is never closed.
        unsafe { libc::write(DOORBELL.load(Ordering::SeqCst), [1u8].as_ptr().cast(), 1) };
    }

    fn end_by_signal(status: ExitStatus) {
        let number = ARRIVED.load(Ordering::SeqCst);
        let forced = close_pools(Reason::Signal(number));
        match status {
            ExitStatus::Zero if !forced => exit_now(0),
            _ => restore_and_raise(number),
        }
    }

    /// Ends as if the signal had never been caught. Only async-signal-safe calls.
    fn restore_and_raise(number: i32) {
        // SAFETY: plain system calls on a valid signal number and an initialised set.
        unsafe {
            libc::signal(number, libc::SIG_DFL);
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, number);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
            libc::raise(number);
        }
        // Process 1 of a namespace is not ended by a signal's default action.
        exit_now(128 + number);
    }

    fn is_ours() -> bool {
        // SAFETY: getpid has no preconditions.
        PROCESS.load(Ordering::SeqCst) == unsafe { libc::getpid() }
    }

    fn exit_now(status: i32) -> ! {
        // SAFETY: ends the process without running anything else.
        unsafe { libc::_exit(status) }
    }

    /// Without the standard library's handle, whose thread-locals may be gone.
    pub(super) fn write_stderr(text: &str) {
        let mut left = text.as_bytes();
        while !left.is_empty() {
            // SAFETY: the pointer and length are of a live slice.
            let written = unsafe { libc::write(2, left.as_ptr().cast(), left.len()) };
            match usize::try_from(written) {
                Ok(written) if written > 0 => left = &left[written..],
                _ => return,
            }
        }
    }
}

#[cfg(not(unix))]
mod platform {
    use std::io::Write;

    use super::*;

    // Threads cannot be relied on in a library's exit handler here: `run` and `close_all` close.
    pub(super) fn hook_exit() {}

    pub(super) fn catch_signals(status: ExitStatus) {
        static ARRIVED: AtomicBool = AtomicBool::new(false);
        let ctrl_c = ctrlc::try_set_handler(move || {
            if ARRIVED.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            let end = move || {
                let forced = close_pools(Reason::Signal(2));
                let _longest = longest();
                std::process::exit(match status {
                    ExitStatus::Zero if !forced => 0,
                    _ if forced => FORCED,
                    _ => 130,
                });
            };
            if catch_unwind(|| std::thread::spawn(end)).is_err() {
                std::process::exit(FORCED);
            }
        });
        if let Err(error) = ctrl_c {
            tracing::debug!(%error, "Ctrl-C is left to its present handler");
        }
    }

    pub(super) fn write_stderr(text: &str) {
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}
