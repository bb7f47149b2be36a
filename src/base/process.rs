//! This process, and whether it still is the one that made a value. A forked child has none of its parent's threads,
//! and the sockets that it inherits are the parent's.
//!
//! Each thing that a process has only once is in a room of its [`Process`]. Pools, links and [`ForkGuarded`] values
//! keep a reference to the process that made them, and compare it with the current one.
//! Invariant: `CURRENT` is null, or points to a [`Process`] that is never freed. A forked child sets it to null.
//! Orderings: a new process is stored with release and read with acquire, so that a reader sees all of it. A comparison
//! alone is relaxed.
//! Locks: none guards `CURRENT`, because a lock that another thread held at the fork would never open in the child.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use once_cell::sync::OnceCell;

use crate::base::error::Error;

/// A process as far as pools know it. A forked child has none until it makes a pool of its own.
pub(crate) struct Process {
    id: u32,
    rooms: [OnceCell<Box<dyn Any + Send + Sync>>; Room::COUNT],
}

/// A room for each thing that a process has once. Threads do not come along into a forked child, so that a child's
/// process begins with empty rooms.
#[derive(Clone, Copy)]
pub(crate) enum Room {
    Closer,
    Background,
    RecycledShards,
    Waiting,
    Ending,
    Count,
}

impl Room {
    const COUNT: usize = Room::Count as usize;
}

/// The one owner of a room, which declares the type of its value.
pub(crate) struct Singleton<T> {
    room: Room,
    value: PhantomData<fn() -> T>,
}

impl<T: Default + Send + Sync + 'static> Singleton<T> {
    pub(crate) const fn new(room: Room) -> Self {
        Singleton { room, value: PhantomData }
    }

    /// The value of the room, made on first use.
    pub(crate) fn of<'a>(&self, process: &'a Process) -> &'a T {
        let value = process.rooms[self.room as usize].get_or_init(|| Box::new(T::default()));
        value.downcast_ref().unwrap_or_else(|| unreachable!("a room has one owner"))
    }

    /// The value of the room, if there is one. Async-signal-safe.
    pub(crate) fn existing<'a>(&self, process: &'a Process) -> Option<&'a T> {
        process.rooms[self.room as usize].get()?.downcast_ref()
    }
}

/// The current process, or null. A deliberate leak: a process is never freed, so that a signal handler may read it.
static CURRENT: AtomicPtr<Process> = AtomicPtr::new(ptr::null_mut());

#[allow(unsafe_code, reason = "a pointer that a forked child can reset without a lock")]
impl Process {
    pub(crate) fn current() -> &'static Process {
        if let Some(process) = Process::existing() {
            return process;
        }
        #[cfg(unix)]
        fork::hook();
        let new = Box::into_raw(Box::new(Process { id: std::process::id(), rooms: Default::default() }));
        // Release shows the rooms of `new` to others, and acquire shows the other process here.
        match CURRENT.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: a process that is put into CURRENT is never freed.
            Ok(_) => unsafe { &*new },
            Err(other) => {
                // SAFETY: `new` was made above and shown to nobody; `other` is in CURRENT.
                unsafe {
                    drop(Box::from_raw(new));
                    &*other
                }
            }
        }
    }

    /// The current process, if it has made a pool. Async-signal-safe.
    pub(crate) fn existing() -> Option<&'static Process> {
        // Acquire, so that all of the process is seen.
        // SAFETY: the pointer is null, or made by `current` and never freed.
        unsafe { CURRENT.load(Ordering::Acquire).as_ref() }
    }

    /// The process's number.
    #[cfg(unix)]
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Whether this process is the current one, and not the parent of a forked child.
    #[inline]
    pub(crate) fn is_current(&self) -> bool {
        // Relaxed, because the pointer is only compared.
        ptr::eq(CURRENT.load(Ordering::Relaxed), self)
    }

    /// Refuses in a child that was forked since the process was made.
    #[inline]
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.is_current() { Ok(()) } else { Err(Error::Forked) }
    }
}

#[cfg(unix)]
#[allow(unsafe_code, reason = "pthread_atfork has no safe form")]
pub(crate) mod fork {
    use std::sync::OnceLock;
    use std::sync::atomic::AtomicBool;

    use super::*;

    static BEFORE_FORGETTING: OnceLock<fn()> = OnceLock::new();

    /// Has this call run in a forked child while the parent's process still is the current one. There can be only one
    /// such call, and it may make only async-signal-safe calls itself.
    pub(crate) fn before_forgetting(call: fn()) {
        BEFORE_FORGETTING.get_or_init(|| call);
    }

    /// Registers the hook. A child inherits it, so that once per program is enough.
    pub(super) fn hook() {
        static HOOKED: AtomicBool = AtomicBool::new(false);
        // The swap lets only one thread register. It is no hot path, so the strongest ordering costs nothing.
        // SAFETY: `in_child` is an `extern "C" fn` that lives as long as the program.
        if !HOOKED.swap(true, Ordering::SeqCst) && unsafe { libc::pthread_atfork(None, None, Some(in_child)) } != 0 {
            tracing::error!(
                "the fork hook could not be installed: a forked child may touch this process's connections"
            );
        }
    }

    /// Makes everything inherited the parent's from here on. Makes only async-signal-safe calls.
    extern "C" fn in_child() {
        if let Some(call) = BEFORE_FORGETTING.get() {
            call();
        }
        // The child has only this thread, so that any ordering would do.
        CURRENT.store(ptr::null_mut(), Ordering::SeqCst);
    }
}

/// A value that only drops in the process that made it. In a forked child it is left alone. Its sockets and its event
/// queue are the parent's, and a lock in it may be held by a thread that the child does not have.
///
/// ```
/// use resource_pool::adapter::ForkGuarded;
///
/// let socket = ForkGuarded::new(std::net::UdpSocket::bind("127.0.0.1:0")?);
/// assert!(socket.local_addr()?.ip().is_loopback());
/// # std::io::Result::Ok(())
/// ```
pub struct ForkGuarded<T> {
    /// Dropped by hand, because a forked child has to leak it.
    value: ManuallyDrop<T>,
    process: &'static Process,
}

impl<T> ForkGuarded<T> {
    /// Guards a value that belongs to this process from now on.
    pub fn new(value: T) -> Self {
        ForkGuarded { value: ManuallyDrop::new(value), process: Process::current() }
    }

    /// Whether this still is the process that made it.
    #[inline]
    pub(crate) fn is_current(this: &Self) -> bool {
        this.process.is_current()
    }

    /// Refuses in a child that was forked since.
    ///
    /// # Errors
    /// [`Error::Forked`].
    #[inline]
    pub fn check(this: &Self) -> Result<(), Error> {
        this.process.check()
    }
}

impl<T> Deref for ForkGuarded<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for ForkGuarded<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

#[allow(unsafe_code, reason = "dropping on a condition")]
impl<T> Drop for ForkGuarded<T> {
    fn drop(&mut self) {
        if self.process.is_current() {
            // SAFETY: the value is dropped here only, and not used after it.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        }
    }
}

// The value is not shown, because a lock in it may be held by a thread that a forked child does not have.
impl<T> fmt::Debug for ForkGuarded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForkGuarded").field("process", &self.process.id).finish_non_exhaustive()
    }
}
