//! A private instance for threads, which closes when its guard drops.

use std::ops::{Deref, DerefMut};

use crate::base::error::Error;
use crate::lifecycle::close::CloseReport;
use crate::pool::blocking::ResourcePool;

/// A resource of one's own, which derefs to its guard. Dropping it closes the instance in the
/// background, without blocking; the process's exit waits for that.
#[must_use = "the instance closes when this drops"]
#[derive(Debug)]
pub struct Scoped<G> {
    // Dropped before the pool, so that the drain has nothing to wait for.
    guard: G,
    pool: ResourcePool,
}

impl<G> Scoped<G> {
    pub(crate) fn new(guard: G, pool: ResourcePool) -> Self {
        Scoped { guard, pool }
    }

    /// Closes now and tells how that went.
    ///
    /// # Errors
    /// [`Error::InAsyncContext`] on a current-thread runtime; closing goes on all the same.
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
