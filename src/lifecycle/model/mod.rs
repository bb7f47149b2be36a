//! Models that try every interleaving of a few threads, over the life of a resource, the close of a pool and its
//! checkouts.
//!
//! `cargo xtask models` runs them through the crate in `models/`. A thread stands for a task that the slot or the
//! closer spawns, and does the same by the same transitions.

#![allow(missing_docs, reason = "their names say it")]

mod checkouts;
mod life;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake};
use std::time::Instant;

use crate::base::sync::{Condvar, Mutex};

pub use self::checkouts::*;
pub use self::life::*;

/// Tries all interleavings with at most this many preemptions, or with as many as `LOOM_MAX_PREEMPTIONS` says.
fn explore(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    let tried = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&tried);
    let started = Instant::now();
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        run();
    });
    let bound = builder.preemption_bound;
    println!("{} interleavings in {:.1?}, preemptions: {bound:?}", tried.load(Ordering::Relaxed), started.elapsed());
}

fn block_on<F: Future>(future: F) -> F::Output {
    #[derive(Default)]
    struct Parked {
        woken: Mutex<bool>,
        changed: Condvar,
    }
    impl Wake for Parked {
        fn wake(self: Arc<Self>) {
            *self.woken.lock() = true;
            self.changed.notify_all();
        }
    }
    let parked = Arc::new(Parked::default());
    let waker = Arc::clone(&parked).into();
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        let mut woken = parked.woken.lock();
        while !*woken {
            parked.changed.wait(&mut woken);
        }
        *woken = false;
    }
}
