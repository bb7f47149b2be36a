//! The end of the process: the exit hook, the signal handlers, the watchdog, and the effects of a fork.
//!
//! A registry arms this before its first connection. An `atexit` hook or the first signal then closes all pools. The
//! module `platform` has the differences between platforms.
//!
//! The exit hook runs on a thread whose thread-locals may be gone. So it only hands over to the closer's thread and
//! waits on a condition variable with a limit, which is the watchdog. A signal handler makes only async-signal-safe
//! calls. It writes to a pipe, and a thread of its own closes the pools.
//!
//! Invariant: `arm` either adds a pool before `close_pools` reads the list, or refuses it. `Ending::pools` is the only
//! lock. No user code runs under it, and a signal handler never takes it. The atomics are `SeqCst`, since they are
//! rarely used and their cost does not matter.

use std::panic::catch_unwind;
#[cfg(unix)]
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use once_cell::sync::OnceCell;
use parking_lot::Mutex;

use crate::base::error::Error;
use crate::base::process::{Process, Room, Singleton};
use crate::base::runtime::LONGEST;
use crate::base::stderr;
use crate::lifecycle::close::options::WATCHDOG;
use crate::lifecycle::close::pool::Pool;
use crate::lifecycle::close::report::Reason;
use crate::lifecycle::close::run;
use crate::lifecycle::close::state::Role;
use crate::lifecycle::options::ExitStatus;

/// The exit status of a process whose closing did not end in time.
const FORCED: i32 = 70;

static ENDING: Singleton<Ending> = Singleton::new(Room::Ending);

/// The state of the end of this process.
#[derive(Default)]
struct Ending {
    /// The pools that close when the process ends.
    pools: Mutex<Vec<Weak<dyn Pool>>>,
    has_begun: AtomicBool,
    /// Set once this process catches signals.
    catching: OnceCell<()>,
    signals: platform::Signals,
}

impl Ending {
    fn pools(&self) -> Vec<Arc<dyn Pool>> {
        self.pools.lock().iter().filter_map(Weak::upgrade).collect()
    }
}

/// Registers a pool to be closed when the process ends. For the global pool `signals` may be set, which catches signals
/// too.
///
/// # Errors
/// [`Error::Closing`] once the process is ending. A pool that is added later would not be closed any more.
pub(crate) fn arm(pool: &Arc<dyn Pool>, signals: bool) -> Result<(), Error> {
    let ending = ENDING.of(pool.context().process);
    let mut pools = ending.pools.lock();
    // Read under the lock. `close_pools` sets this before it takes the lock, so it finds every pool that is added here.
    if ending.has_begun.load(Ordering::SeqCst) {
        return Err(Error::closing(&Arc::from("the process")));
    }
    pools.retain(|pool| pool.strong_count() > 0);
    pools.push(Arc::downgrade(pool));
    drop(pools);
    platform::hook_exit();
    if signals {
        ending.catching.get_or_init(|| platform::catch_signals(ending, pool.context().options.exit_status));
    }
    Ok(())
}

/// Whether the process is ending. No pool may open again then.
pub(crate) fn is_ending() -> bool {
    Process::existing()
        .and_then(|process| ENDING.existing(process))
        .is_some_and(|ending| ending.has_begun.load(Ordering::SeqCst))
}

/// Tells the supervisor of this process that it stops, and how long that may take.
#[cfg(all(feature = "systemd", target_os = "linux"))]
fn tell_supervisor(ending: &Ending) {
    crate::base::systemd::stopping(longest(ending));
}

#[cfg(all(unix, not(all(feature = "systemd", target_os = "linux"))))]
fn tell_supervisor(_: &Ending) {}

/// Lets the readiness of every pool fail. Returns the longest delay before closing, if there is any.
fn lower_readiness(ending: &Ending) -> Option<Duration> {
    let pools = ending.pools();
    for pool in &pools {
        pool.context().close.lower_readiness();
    }
    let longest = pools.iter().map(|pool| pool.context().options.close.delay).max();
    // Leaked, as in `close_pools`: a drop may run drivers' code.
    std::mem::forget(pools);
    longest.filter(|longest| !longest.is_zero())
}

/// Closes every pool and waits for each within its deadline. Of that, the pool's delay is over already if `delayed` says
/// so. Returns whether one of them did not end in time.
fn close_pools(ending: &Ending, reason: Reason, delayed: Duration) -> bool {
    ending.has_begun.store(true, Ordering::SeqCst);
    let pools = ending.pools();
    // The limits count from the signal.
    let now = Instant::now();
    let started = now.checked_sub(delayed).unwrap_or(now);
    for pool in &pools {
        let options = &pool.context().options.close;
        let deadline = options.deadline.saturating_sub(delayed.min(options.delay));
        // The result is not needed: the loop below waits for the close, no matter which thread started it.
        let _ = run::start(pool, reason, Some(deadline));
    }
    let mut forced = false;
    for pool in pools {
        match pool.context().close.wait_blocking(latest(&*pool, started)) {
            Some(report) if report.all_closed() => {}
            Some(report) => pool_tells(&*pool, &format!("resource-pool: {report}")),
            None => {
                forced = true;
                let running: Vec<_> = pool.context().close.running().iter().map(|name| name.to_string()).collect();
                let running = running.join(", ");
                let text = format!("resource-pool: closing did not end in time; still running: {running}\n");
                pool_tells(&*pool, &text);
            }
        }
        // Leaked: the drop of the last reference runs drivers' code on this thread, whose thread-locals may be gone.
        std::mem::forget(pool);
    }
    forced
}

fn pool_tells(pool: &dyn Pool, text: &str) {
    if pool.context().options.close.stderr {
        stderr::tell(text);
    }
}

/// The time by which this pool must have closed. Its limits count from `now`. A close under way may have a later
/// deadline.
fn latest(pool: &dyn Pool, now: Instant) -> Instant {
    let configured = now + pool.context().options.close.worst_case().min(LONGEST);
    pool.context().close.deadline().map_or(configured, |given| configured.max(given + WATCHDOG))
}

/// The longest time that any pool may still take to close.
#[cfg(unix)]
fn longest(ending: &Ending) -> Duration {
    let now = Instant::now();
    let pools = ending.pools();
    let last = pools.iter().map(|pool| latest(&**pool, now)).max();
    // Leaked, as in `close_pools`: a drop may run drivers' code.
    std::mem::forget(pools);
    last.map_or(WATCHDOG, |last| last - now)
}

#[cfg(unix)]
#[allow(unsafe_code, reason = "atexit, sigaction, raise and _exit have no safe form")]
mod platform {
    use std::io::{ErrorKind, Read};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicI32, AtomicI64, AtomicUsize};

    use super::*;
    use crate::base::process::fork;

    /// The state of signal handling. It has only atomics, since the handler reads and writes it.
    #[derive(Default)]
    pub(super) struct Signals {
        /// The number of the first signal that arrived. Zero until then.
        arrived: AtomicI32,
        /// When it arrived, by [`millis`]. Zero until that is written.
        since: AtomicI64,
        /// The write end of the pipe to the thread that ends the process.
        doorbell: AtomicI32,
        /// Whether closing has yet to begin, because the delay is not over.
        is_delayed: AtomicBool,
        /// The address of the handler that `ctrlc` installed. Zero if there is none.
        ctrlc: AtomicUsize,
    }

    impl Signals {
        /// Ends the delay before closing. Returns whether there was one. Makes only async-signal-safe calls.
        pub(super) fn skip_delay(&self) -> bool {
            let skipped = self.is_delayed.swap(false, Ordering::SeqCst);
            if skipped {
                self.ring();
            }
            skipped
        }

        /// Wakes the thread that ends the process. Makes only async-signal-safe calls.
        fn ring(&self) {
            // SAFETY: writes one byte to a descriptor that is never closed.
            let _ = unsafe { libc::write(self.doorbell.load(Ordering::SeqCst), [1u8].as_ptr().cast(), 1) };
        }
    }

    const SIGNALS: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
    /// Signals within this many milliseconds of the first are part of one request to end. `timeout` ends the process
    /// and then its group, a terminal hangs up on both, and systemd sends SIGHUP after SIGTERM.
    const AT_ONCE: i64 = 250;

    pub(super) fn hook_exit() {
        static HOOKED: AtomicBool = AtomicBool::new(false);
        // SAFETY: `on_exit` is an `extern "C" fn` that lives as long as the program.
        if !HOOKED.swap(true, Ordering::SeqCst) && unsafe { libc::atexit(on_exit) } != 0 {
            tracing::error!("the exit hook could not be registered: call close_all before main ends");
        }
    }

    /// Restores the default actions in a forked child, so that the signals that its parent catches end it. Makes only
    /// async-signal-safe calls.
    fn release_signals() {
        for number in SIGNALS {
            if is_caught(number) {
                // SAFETY: a plain system call on a valid signal number.
                unsafe { libc::signal(number, libc::SIG_DFL) };
            }
        }
    }

    extern "C" fn on_exit() {
        // A panic that leaves an exit handler would abort the process.
        let _status = catch_unwind(|| {
            let Some(ending) = here() else { return };
            ending.signals.skip_delay();
            for pool in ending.pools() {
                if let Some(Role::Task(number)) = pool.context().close.role() {
                    pool.application().leave(number);
                }
                pool.context().close.leave_role();
                // Leaked, as in `close_pools`: a drop may run drivers' code.
                std::mem::forget(pool);
            }
            let number = ending.signals.arrived.load(Ordering::SeqCst);
            if number != 0 {
                // The signal's thread is closing the pools, and ends the process itself.
                std::thread::sleep(longest(ending) + WATCHDOG);
                exit_now(128 + number);
            }
            tell_supervisor(ending);
            if close_pools(ending, Reason::ProcessExit, Duration::ZERO) {
                exit_now(FORCED);
            }
        });
    }

    pub(super) fn catch_signals(ending: &'static Ending, status: ExitStatus) {
        fork::before_forgetting(release_signals);
        let Ok((mut receiver, sender)) = UnixStream::pair().inspect_err(|error| {
            tracing::error!(%error, "signals will not close the pool");
        }) else {
            return;
        };
        let wait = move || {
            let mut byte = [0];
            if receiver.read_exact(&mut byte).is_ok() {
                let since = Instant::now();
                let limit = lower_readiness(ending);
                tell_supervisor(ending);
                delay(ending, &mut receiver, limit);
                end_by_signal(ending, status, since.elapsed());
            }
        };
        if let Err(error) = std::thread::Builder::new().name("resource-pool-signal".to_owned()).spawn(wait) {
            tracing::error!(%error, "signals will not close the pool");
            return;
        }
        // A full pipe must not block the handler. One byte is enough.
        let _ = sender.set_nonblocking(true);
        ending.signals.doorbell.store(sender.as_raw_fd(), Ordering::SeqCst);
        // Leaked: the handler writes to the descriptor for as long as the process lives.
        std::mem::forget(sender);

        // Each signal is decided by itself. One that is ignored or handled already is left alone.
        let free: Vec<_> = SIGNALS.into_iter().filter(|number| handler_of(*number) == libc::SIG_DFL).collect();
        if free.contains(&libc::SIGINT) {
            let caught = ctrlc::try_set_handler(move || {
                let ctrlc = ending.signals.ctrlc.load(Ordering::SeqCst);
                // Zero until it is stored below. Until then, a SIGINT can only have come through ctrlc's handler.
                if ctrlc == 0 || handler_of(libc::SIGINT) == ctrlc {
                    arrived(ending, libc::SIGINT);
                }
            });
            match caught {
                Ok(()) => ending.signals.ctrlc.store(handler_of(libc::SIGINT), Ordering::SeqCst),
                Err(error) => tracing::debug!(%error, "SIGINT is caught without ctrlc"),
            }
        }
        let ctrlc = ending.signals.ctrlc.load(Ordering::SeqCst);
        for number in SIGNALS {
            // With its feature `termination`, ctrlc takes all three signals or none, and does not tell which one came.
            if !free.contains(&number) {
                tracing::info!(
                    signal = number,
                    "this signal is left to its present handler, and does not close the pool"
                );
            } else if number != libc::SIGINT || ctrlc == 0 {
                install(number);
            }
        }
    }

    fn install(number: i32) {
        // SAFETY: zeroed is a valid sigaction, and `on_signal` makes only async-signal-safe calls.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(number, &action, ptr::null_mut());
        }
    }

    fn handler_of(number: i32) -> usize {
        // SAFETY: zeroed is a valid sigaction, which the call fills in.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(number, ptr::null(), &mut action);
            action.sa_sigaction
        }
    }

    /// Whether the present handler is `on_signal`, or the one of `ctrlc` that calls `arrived`.
    fn is_caught(number: i32) -> bool {
        let handler = handler_of(number);
        let by_ctrlc = |ending: &Ending| handler == ending.signals.ctrlc.load(Ordering::SeqCst);
        handler == on_signal as *const () as usize
            || (handler != libc::SIG_DFL
                && Process::existing().and_then(|process| ENDING.existing(process)).is_some_and(by_ctrlc))
    }

    extern "C" fn on_signal(number: i32) {
        // If the app has installed its own handler over this one, it decides how the process ends.
        if handler_of(number) == on_signal as *const () as usize {
            match here() {
                Some(ending) => arrived(ending, number),
                None => restore_and_raise(number),
            }
        }
    }

    /// The first signal rings the doorbell. A second one, of any number, ends the delay before closing. After that delay
    /// it ends the process at once by the first, unless both are part of one request ([`AT_ONCE`]). Makes only async-signal-safe calls.
    fn arrived(ending: &Ending, number: i32) {
        let signals = &ending.signals;
        match signals.arrived.compare_exchange(0, number, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => {
                signals.since.store(millis(), Ordering::SeqCst);
                signals.ring();
            }
            Err(first) => {
                let since = signals.since.load(Ordering::SeqCst);
                let now = millis();
                // Of several signals that are part of one more request, the first is the one that counts.
                let is_first =
                    || signals.since.compare_exchange(since, now, Ordering::SeqCst, Ordering::SeqCst).is_ok();
                if since != 0 && now - since >= AT_ONCE && is_first() && !signals.skip_delay() {
                    restore_and_raise(first);
                }
            }
        }
    }

    /// The milliseconds since some moment in the past. Async-signal-safe.
    #[allow(clippy::useless_conversion, reason = "platforms differ in their types")]
    fn millis() -> i64 {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: fills in the value that it is given.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
        i64::from(now.tv_sec) * 1000 + i64::from(now.tv_nsec) / 1_000_000
    }

    /// Waits until the delay is over or skipped.
    fn delay(ending: &Ending, receiver: &mut UnixStream, delay: Option<Duration>) {
        let Some(delay) = delay else { return };
        ending.signals.is_delayed.store(true, Ordering::SeqCst);
        let until = Instant::now() + delay;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // A stream whose limit cannot be set would wait for ever.
            if left.is_zero() || receiver.set_read_timeout(Some(left)).is_err() {
                break;
            }
            match receiver.read(&mut [0]) {
                // Another signal, which the program handles, may interrupt the wait.
                Err(error) if [ErrorKind::Interrupted, ErrorKind::WouldBlock].contains(&error.kind()) => {}
                _over_or_skipped => break,
            }
        }
        ending.signals.is_delayed.store(false, Ordering::SeqCst);
    }

    fn end_by_signal(ending: &Ending, status: ExitStatus, delayed: Duration) {
        let number = ending.signals.arrived.load(Ordering::SeqCst);
        let forced = close_pools(ending, Reason::Signal(number), delayed);
        match status {
            ExitStatus::Zero if !forced => exit_now(0),
            _ => restore_and_raise(number),
        }
    }

    /// Ends the process as if the signal had never been caught. Makes only async-signal-safe calls.
    fn restore_and_raise(number: i32) {
        // SAFETY: plain system calls on a valid signal number and an initialised set.
        unsafe {
            libc::signal(number, libc::SIG_DFL);
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, number);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut());
            libc::raise(number);
        }
        // Process 1 of a namespace is not ended by a signal's default action.
        exit_now(128 + number);
    }

    /// The ending of the current process. `None` in a child that was forked in a way that runs no hooks.
    /// Async-signal-safe.
    fn here() -> Option<&'static Ending> {
        // SAFETY: getpid has no preconditions.
        let id = unsafe { libc::getpid() };
        let process = Process::existing().filter(|process| i64::from(process.id()) == i64::from(id))?;
        ENDING.existing(process)
    }

    fn exit_now(status: i32) -> ! {
        // SAFETY: ends the process without running anything else.
        unsafe { libc::_exit(status) }
    }
}

#[cfg(not(unix))]
mod platform {
    use super::*;

    #[derive(Default)]
    pub(super) struct Signals {
        arrived: AtomicBool,
    }

    // A library's exit handler cannot rely on threads here, so only `run` and `close_all` close the pools.
    pub(super) fn hook_exit() {}

    pub(super) fn catch_signals(ending: &'static Ending, status: ExitStatus) {
        let ctrl_c = ctrlc::try_set_handler(move || {
            if ending.signals.arrived.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            let end = move || {
                let delay = lower_readiness(ending).unwrap_or_default();
                std::thread::sleep(delay);
                let forced = close_pools(ending, Reason::Signal(2), delay);
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
}
