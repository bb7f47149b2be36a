//! The locks, atomics and notifications of lives, leases, checkouts, activities and closes. They are the usual ones, or
//! loom's under `--cfg model`, where `lifecycle/model` tries every interleaving.
//!
//! The code under a model takes its types from here, so that it is the same in both builds. The modules `usual` and
//! `modelled` therefore offer the same names.
//! Invariant: [`until`] misses no change. A change is made before `notify_waiters`, and a wait is enabled before it
//! looks.
//! Order of locks: none is taken here. The code that uses these types documents its own.

#[cfg(not(model))]
pub(crate) use self::usual::*;

#[cfg(model)]
pub(crate) use self::modelled::*;

/// Waits until `answer` gives one, and asks anew after each `notify_waiters`.
pub(crate) async fn until<T>(changed: &Notify, mut answer: impl FnMut() -> Option<T>) -> T {
    loop {
        let notice = changed.notified();
        tokio::pin!(notice);
        // Enabled before the question, so that a change during it is not missed.
        notice.as_mut().enable();
        if let Some(answer) = answer() {
            return answer;
        }
        notice.await;
    }
}

#[cfg(not(model))]
mod usual {
    use std::cell::Cell;
    use std::hint;
    use std::thread;
    use std::time::Duration;

    pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};
    pub(crate) use std::sync::atomic;
    pub(crate) use tokio::sync::Notify;

    /// A lock that is held for some nanoseconds, mostly by the same thread. Only a scan of all of them holds one for
    /// longer. Letting go of it costs no locked instruction.
    pub(crate) type SpinLock<T> = spin::mutex::SpinMutex<T, Backoff>;

    /// The way in which a thread waits for a spin lock.
    #[derive(Debug)]
    pub(crate) struct Backoff;

    impl spin::RelaxStrategy for Backoff {
        fn relax() {
            thread_local! {
                static LOOKS: Cell<u8> = const { Cell::new(0) };
            }
            let looks = LOOKS.get().wrapping_add(1);
            LOOKS.set(looks);
            match looks {
                // The holder was put off the processor, maybe by this thread, and maybe for as long as this one has a
                // higher priority.
                0 => thread::sleep(Duration::from_micros(50)),
                _ if looks.is_multiple_of(32) => thread::yield_now(),
                _ => hint::spin_loop(),
            }
        }
    }

    /// The number of this thread, which is its own as long as it lives.
    #[inline]
    pub(crate) fn thread_number() -> usize {
        static NEXT: atomic::AtomicUsize = atomic::AtomicUsize::new(0);
        thread_local! {
            // Relaxed, because only the uniqueness of the number counts.
            static NUMBER: usize = NEXT.fetch_add(1, atomic::Ordering::Relaxed);
        }
        // Thread-locals are gone while a thread ends. Any number will do then.
        NUMBER.try_with(|number| *number).unwrap_or(0)
    }
}

/// The types of loom, with the interface of the usual ones.
#[cfg(model)]
mod modelled {
    use std::cell::Cell;
    use std::future::Future;
    use std::ops::{Deref, DerefMut};
    use std::pin::Pin;
    use std::sync::PoisonError;
    use std::task::{Context, Poll};
    use std::time::Instant;

    pub(crate) use loom::sync::atomic;

    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    pub(crate) type SpinLock<T> = Mutex<T>;

    /// `None` only within a wait for a condition variable.
    pub(crate) struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Mutex(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)))
        }
    }

    impl<T: Default> Default for Mutex<T> {
        fn default() -> Self {
            Mutex::new(T::default())
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            self.0.as_ref().unwrap()
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().unwrap()
        }
    }

    #[derive(Debug)]
    pub(crate) struct Condvar(loom::sync::Condvar);

    impl Default for Condvar {
        fn default() -> Self {
            Condvar(loom::sync::Condvar::new())
        }
    }

    impl Condvar {
        pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let held = guard.0.take().unwrap();
            guard.0 = Some(self.0.wait(held).unwrap_or_else(PoisonError::into_inner));
        }

        /// No time passes in a model.
        pub(crate) fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _: Instant) -> Never {
            self.wait(guard);
            Never
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    pub(crate) struct Never;

    impl Never {
        pub(crate) fn timed_out(&self) -> bool {
            false
        }
    }

    /// The type of tokio. Each of its operations is also one step on an atomic, so that loom sees it.
    pub(crate) struct Notify {
        notify: tokio::sync::Notify,
        steps: atomic::AtomicUsize,
    }

    pub(crate) struct Notified<'a> {
        notified: Pin<Box<tokio::sync::futures::Notified<'a>>>,
        notify: &'a Notify,
    }

    impl Default for Notify {
        fn default() -> Self {
            Notify::new()
        }
    }

    impl Notify {
        pub(crate) fn new() -> Self {
            Notify { notify: tokio::sync::Notify::new(), steps: atomic::AtomicUsize::new(0) }
        }

        pub(crate) fn notified(&self) -> Notified<'_> {
            self.step();
            Notified { notified: Box::pin(self.notify.notified()), notify: self }
        }

        pub(crate) fn notify_waiters(&self) {
            self.step();
            self.notify.notify_waiters();
        }

        fn step(&self) {
            // The order within tokio's own type, which loom does not see.
            self.steps.fetch_add(1, atomic::Ordering::AcqRel);
        }
    }

    impl Notified<'_> {
        pub(crate) fn enable(mut self: Pin<&mut Self>) -> bool {
            self.notify.step();
            self.notified.as_mut().enable()
        }
    }

    impl Future for Notified<'_> {
        type Output = ();
        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
            self.notify.step();
            self.notified.as_mut().poll(context)
        }
    }

    loom::thread_local! {
        static NUMBER: Cell<usize> = Cell::new(0);
    }

    pub(crate) fn thread_number() -> usize {
        NUMBER.with(Cell::get)
    }

    /// Gives this thread a number, so that it leases from another shard than the others.
    pub(crate) fn set_thread_number(number: usize) {
        NUMBER.with(|own| own.set(number));
    }
}
