//! The facade for plain threads: the same pool, the same names, no await.
//!
//! A lease of a ready resource never waits, so it never fails for want of a place to block. A lease that has to wait
//! blocks on plain threads, in `spawn_blocking`, and on a multi-thread runtime's workers (by `block_in_place`). On a
//! current-thread runtime it answers [`Error::InAsyncContext`](crate::Error::InAsyncContext). PostgreSQL, MySQL and
//! SQLite always wait.

mod events;
mod own;
mod resource_pool;
mod scoped;

pub use crate::pool::global::run_blocking as run;
pub use events::Events;
pub use resource_pool::ResourcePool;
pub use scoped::Scoped;

use crate::base::error::Error;
use crate::kinds::for_each_kind;
#[cfg(feature = "_sql")]
pub use crate::kinds::sql::blocking::SqlGuard;
#[cfg(feature = "r2d2")]
use crate::lifecycle::checkout::{self, Adapted};

/// A connection out of an adapter for r2d2. It has one user at a time.
#[cfg(feature = "r2d2")]
pub type Checkout<M> = checkout::Checkout<Adapted<M>>;

macro_rules! shortcuts {
    ($($feature:literal $what:literal $kind:ident $named:ident $with:ident $type:ident $config:ident $resource:ident $task:ty, $thread:ty, $task_guard:literal $guard:literal;)*) => {
        $(
            #[cfg(feature = $feature)]
            pub use crate::kinds::$kind::exports::threads::*;

            #[doc = concat!("Short for `ResourcePool::global().", stringify!($kind), "()`.")]
            ///
            /// # Errors
            /// Those of the method of [`ResourcePool`] with this name.
            #[cfg(feature = $feature)]
            #[track_caller]
            pub fn $kind() -> Result<$thread, Error> {
                ResourcePool::global().$kind()
            }
        )*
    };
}
for_each_kind!(shortcuts);
