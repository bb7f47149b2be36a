//! The locks and atomics under `life.rs`, `lease.rs`, `activity.rs` and the close's cell: the
//! usual ones, or loom's under `--cfg model`, where `model.rs` tries every interleaving.

#[cfg(not(model))]
pub(crate) use {
    parking_lot::{Condvar, Mutex, MutexGuard},
    std::sync::atomic,
};

#[cfg(model)]
pub(crate) use self::model::*;

/// loom's, with the interface of parking_lot's. tokio's `Notify` stays the real one: to loom each
/// of its operations is one step, which no other thread sees half done.
#[cfg(model)]
mod model {
    use std::ops::{Deref, DerefMut};
    use std::time::Instant;

    pub(crate) use loom::sync::atomic;

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    pub(crate) struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Mutex(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(Some(self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)))
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            self.0.as_ref().expect("only a wait takes it out, and gives it back")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().expect("only a wait takes it out, and gives it back")
        }
    }

    #[derive(Debug)]
    pub(crate) struct Condvar(loom::sync::Condvar);

    /// No time passes in a model.
    pub(crate) struct Never;

    impl Never {
        pub(crate) fn timed_out(&self) -> bool {
            false
        }
    }

    impl Default for Condvar {
        fn default() -> Self {
            Condvar(loom::sync::Condvar::new())
        }
    }

    impl Condvar {
        pub(crate) fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _: Instant) -> Never {
            let held = guard.0.take().expect("only a wait takes it out, and gives it back");
            guard.0 = Some(self.0.wait(held).unwrap_or_else(std::sync::PoisonError::into_inner));
            Never
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }
}
