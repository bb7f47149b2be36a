//! The functions that the attributes `#[resource_pool::main]` and `#[resource_pool::test]` call.
//!
//! Both poll a future on the thread that calls them, in the context of the pool's runtime. So the future need not be
//! `Send`, and its `tokio::spawn` lands beside the drivers' tasks.
//! Invariant: the future is dropped before its pool closes, also when it panics. A signal is the exception, since then the
//! pool may close before the future has ended.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::Termination;
use std::sync::Arc;

use crate::base::error::Error;
use crate::base::runtime::{block, block_on, park_on};
use crate::base::stderr;
use crate::lifecycle::busy::Busy;
use crate::lifecycle::close::report::{CloseReport, Reason};
use crate::lifecycle::registry::Registry;
use crate::lifecycle::work::Work;
use crate::pool::builder::Builder;
use crate::pool::resource_pool::ResourcePool;

/// Builds the global pool, and runs `main` on it. A pool that cannot be had ends the process with status 1.
pub fn main<F: Future>(builder: Builder<ResourcePool>, main: F) -> F::Output {
    let ended = builder.install().and_then(|pool| {
        let (ended, _report) = run_here(pool.registry(), main)?;
        pool.registry().context.runtime.end();
        Ok(ended)
    });
    ended.unwrap_or_else(|error| {
        // A pool that was closed under `main` has told so itself.
        if !error.is_closed() {
            stderr::tell(&format!("error: {error}\n"));
        }
        std::process::exit(1)
    })
}

/// Runs a test with a pool of its own.
///
/// # Panics
/// If the pool cannot be built, and if not all of it closed.
pub fn test<F: Future<Output: Termination>>(
    builder: Builder<ResourcePool>,
    test: impl FnOnce(ResourcePool) -> F,
) -> F::Output {
    let ended = builder.build().and_then(|pool| run_here(pool.registry(), async { test(pool.clone()).await }));
    match ended {
        Ok((output, report)) if report.all_closed() => output,
        Ok((output, report)) => {
            // An error of the test itself must not be lost.
            let _status = output.report();
            panic!("the pool of this test did not close: {report}")
        }
        Err(error) => panic!("{error}"),
    }
}

/// Polls `main` on this thread, and then closes the pool. A panic of `main` is resumed afterwards.
fn run_here<F: Future>(registry: &Arc<Registry>, main: F) -> Result<(F::Output, CloseReport), Error> {
    registry.context.check_process()?;
    let name = Arc::clone(&registry.main.name);
    registry.arm(&name)?;
    let runtime = registry.context.runtime.handle(&name)?;
    let mut sentinel = runtime.spawn(std::future::pending::<()>());
    let main = async {
        tokio::select! {
            // The sentinel comes first. It ends when the runtime does, and from then on a timer in `main` would panic.
            biased;
            _ended = &mut sentinel => Err(Error::closed(&name)),
            output = main => Ok(output),
        }
    };
    let busy = Busy::new(&registry.main, Work::Main);
    let ended = catch_unwind(AssertUnwindSafe(|| block_on(&name, &runtime, main)));
    drop(busy);
    let report = block(&name, || park_on(registry.close_all(Reason::RunEnded, None)))?;
    sentinel.abort();
    match ended {
        Ok(ended) => Ok((ended??, report)),
        Err(payload) => resume_unwind(payload),
    }
}
