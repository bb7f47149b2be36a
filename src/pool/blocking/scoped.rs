//! A private instance of a resource for threads, which closes when its guard drops.

use std::ops::{Deref, DerefMut};

use crate::base::error::Error;
use crate::kinds::for_each_kind;
use crate::lifecycle::close::report::CloseReport;
use crate::pool::blocking::ResourcePool;

/// A resource of one's own, which derefs to its guard. Dropping it closes the instance in the background, without
/// blocking. The process's exit waits for that.
#[must_use = "the instance closes when this drops"]
#[derive(Debug)]
pub struct Scoped<G> {
    // This field comes first, so it drops before the pool, and the drain has nothing to wait for.
    guard: G,
    pool: ResourcePool,
}

impl<G> Scoped<G> {
    pub(crate) fn new(guard: G, pool: ResourcePool) -> Self {
        Scoped { guard, pool }
    }

    /// Closes now, and returns the report.
    ///
    /// # Errors
    /// [`Error::InAsyncContext`] on a current-thread runtime. Closing goes on all the same.
    pub fn close(self) -> Result<CloseReport, Error> {
        let Scoped { guard, pool } = self;
        drop(guard);
        pool.close_all()
    }
}

impl<G> Deref for Scoped<G> {
    type Target = G;
    fn deref(&self) -> &G {
        &self.guard
    }
}

impl<G> DerefMut for Scoped<G> {
    fn deref_mut(&mut self) -> &mut G {
        &mut self.guard
    }
}

macro_rules! scoped {
    ($($feature:literal $what:literal $kind:ident $named:ident $with:ident $type:ident $config:ident $resource:ident $task:ty, $thread:ty, $task_guard:literal $guard:literal;)*) => {
        $(
            #[cfg(feature = $feature)]
            impl crate::kinds::$kind::blocking::$type {
                #[doc = concat!("A ", $what, " of one's own, which closes when the guard drops.")]
                ///
                /// # Errors
                #[doc = concat!("Those of [`ResourcePool::", stringify!($kind), "`].")]
                #[track_caller]
                pub fn scoped(config: crate::kinds::$kind::$config) -> Result<Scoped<$thread>, Error> {
                    let pool = ResourcePool::from(crate::pool::scoped::pool(config.into())?);
                    Ok(Scoped::new(pool.$kind()?, pool))
                }
            }
        )*
    };
}
for_each_kind!(scoped);
