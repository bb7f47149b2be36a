//! The locks, atomics and notices under lives, leases, checkouts, activities and closes: the usual ones, or loom's under
//! `--cfg model`, where `lifecycle/model` tries every interleaving.

#[cfg(not(model))]
pub(crate) use self::usual::*;

#[cfg(model)]
pub(crate) use self::modelled::*;

/// Waits until there is an answer, and asks anew after each `notify_waiters`.
pub(crate) async fn until<T>(changed: &Notify, mut answer: impl FnMut() -> Option<T>) -> T {
    loop {
        let notice = changed.notified();
        tokio::pin!(notice);
        // Before it asks, so that a change while it does is not missed.
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

    /// For what is held for some nanoseconds, mostly by the same thread, and for longer only by whoever looks at all:
    /// letting go of it costs no locked instruction.
    pub(crate) type SpinLock<T> = spin::mutex::SpinMutex<T, Backoff>;

    /// How a spin lock is waited for.
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
                // Whoever has it was put off the processor, maybe by us, and maybe for as long as we have a higher priority.
                0 => thread::sleep(Duration::from_micros(50)),
                _ if looks.is_multiple_of(32) => thread::yield_now(),
                _ => hint::spin_loop(),
            }
        }
    }

    /// A number of this thread's own, as long as it lives.
    #[inline]
    pub(crate) fn thread_number() -> usize {
        static NEXT: atomic::AtomicUsize = atomic::AtomicUsize::new(0);
        thread_local! {
            static NUMBER: usize = NEXT.fetch_add(1, atomic::Ordering::Relaxed);
        }
        // Thread-locals are gone while a thread ends; any will do then.
        NUMBER.try_with(|number| *number).unwrap_or(0)
    }
}

/// loom's, with the interface of the usual ones.
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

    /// Empty only within a wait.
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

    /// tokio's, each of whose operations is one step that loom sees.
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

    /// Puts this thread where it leases from another seat than the others.
    pub(crate) fn set_thread_number(number: usize) {
        NUMBER.with(|own| own.set(number));
    }
}
