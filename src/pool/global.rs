//! The process-wide pool, and `run`, which runs a program's `main` on it.
//!
//! Two cells hold the pool's two views. Each is filled at most once, by the first call or by `install`. `BLOCKING` is
//! filled from `GLOBAL`, never the other way, so the two initializers cannot wait for each other. No callback of the
//! user runs in them.
//!
//! `run` spawns `main` as a task of the pool's runtime, and counts it as work, which the drain waits for.
//! `run_blocking` counts it in the same way, but keeps it on its thread. Both close the pool afterwards, also after a
//! panic.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use once_cell::sync::OnceCell;

use crate::base::error::Error;
use crate::base::runtime::{block, block_on, park_on};
use crate::kinds::for_each_kind;
use crate::lifecycle::acquire::Acquirer;
use crate::lifecycle::busy::Busy;
use crate::lifecycle::close::report::Reason;
use crate::lifecycle::registry::PoolHandle;
use crate::lifecycle::work::Work;
use crate::pool::blocking;
use crate::pool::builder::{Builder, Facade};
use crate::pool::resource_pool::ResourcePool;

static GLOBAL: OnceCell<ResourcePool> = OnceCell::new();
static BLOCKING: OnceCell<blocking::ResourcePool> = OnceCell::new();

pub(crate) fn pool() -> &'static ResourcePool {
    GLOBAL.get_or_init(|| global(Builder::<ResourcePool>::new().build_unchecked()))
}

pub(crate) fn blocking_pool() -> &'static blocking::ResourcePool {
    BLOCKING.get_or_init(|| pool().clone().into())
}

pub(crate) fn install(handle: Arc<PoolHandle>) -> Result<(), Error> {
    GLOBAL.set(global(handle)).map_err(|_| Error::AlreadyInstalled)
}

/// Makes the handle's pool the global one, which closes when the process ends.
fn global(handle: Arc<PoolHandle>) -> ResourcePool {
    handle.0.set_global();
    ResourcePool::over(Acquirer::new(handle))
}

/// Runs `main` on the global pool's runtime, handles signals, and closes the pool at the end.
///
/// The future is spawned on that runtime, so operations that it awaits cost no extra wake-up. When a signal arrives,
/// [`closing`](ResourcePool::closing) fires, and the future is polled on until it ends or the drain does. A panic in
/// the future is resumed after closing.
///
/// Call it from a plain thread, such as that of `fn main`.
///
/// # Errors
/// [`Error::Closed`] if closing ended before the future did, [`Error::InAsyncContext`] on a
/// current-thread runtime, [`Error::Forked`].
///
/// ```no_run
/// fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
///     resource_pool::run(async {
///         let health = resource_pool::ResourcePool::global().health_check().await;
///         println!("{health}");
///         Ok(())
///     })?
/// }
/// ```
pub fn run<F>(main: F) -> Result<F::Output, Error>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let registry = pool().registry();
    registry.context.check_process()?;
    let name = Arc::clone(&registry.main.name);
    // This refuses a current-thread runtime before any of `main` has run.
    block(&name, || ())?;
    registry.arm(&name)?;
    let runtime = registry.context.runtime.handle(&name)?;
    let busy = Busy::new(&registry.main, Work::Main);
    let task = runtime.spawn(async move {
        let _busy = busy;
        main.await
    });
    let ended = block_on(&name, &runtime, task)?;
    block(&name, || park_on(registry.close_all(Reason::RunEnded, None)))?;
    registry.context.runtime.end();
    match ended {
        Ok(output) => Ok(output),
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        Err(_the_runtime_ended) => Err(Error::Closed { resource: name }),
    }
}

/// [`run`] for a closure, which stays on this thread.
///
/// # Errors
/// [`Error::InAsyncContext`] on a current-thread runtime, which the call would block; [`Error::Forked`].
pub fn run_blocking<T>(main: impl FnOnce() -> T) -> Result<T, Error> {
    let registry = pool().registry();
    registry.context.check_process()?;
    registry.arm(&registry.main.name)?;
    let ended = block(&registry.main.name, || {
        let busy = Busy::new(&registry.main, Work::Main);
        let ended = catch_unwind(AssertUnwindSafe(main));
        drop(busy);
        park_on(registry.close_all(Reason::RunEnded, None));
        ended
    });
    match ended? {
        Ok(output) => Ok(output),
        Err(payload) => resume_unwind(payload),
    }
}

macro_rules! shortcuts {
    ($($feature:literal $what:literal $kind:ident $named:ident $with:ident $type:ident $config:ident $resource:ident $task:ty, $thread:ty, $task_guard:literal $guard:literal;)*) => {
        $(
            #[doc = concat!("Short for `ResourcePool::global().", stringify!($kind), "()`.")]
            ///
            /// # Errors
            /// Those of the method of [`ResourcePool`] with this name.
            ///
            /// # Cancel safety
            /// Dropping the future stops only the waiting.
            #[cfg(feature = $feature)]
            #[track_caller]
            pub fn $kind() -> impl Future<Output = Result<$task, Error>> + Send {
                pool().$kind()
            }
        )*
    };
}
for_each_kind!(shortcuts);
