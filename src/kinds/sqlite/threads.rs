//! [`DiskThreads`], which bounds the threads that wait for a disk that hangs.
//!
//! Nothing ends a thread whose call into a file does not return. Such a thread is abandoned once nobody waits for it any
//! more. The two counts are of the threads and of those that somebody waits for.
//! Orderings: all are relaxed, since each count stands for itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::base::error::Failure;

/// How many threads may be abandoned where there may be fewer connections.
const FEW: usize = 16;

/// Counts the threads that have calls into one file. Two values are equal, since none is an option of its configuration.
#[derive(Debug, Clone, Default)]
pub(super) struct DiskThreads {
    running: Arc<AtomicUsize>,
    awaited: Arc<AtomicUsize>,
}

impl DiskThreads {
    /// Counts one more thread. The thread keeps the first guard until it ends, and its waiter keeps the second one.
    ///
    /// # Errors
    /// As many threads are abandoned as there may be connections.
    pub(super) fn begin(&self, connections: usize) -> Result<(CountedThread, CountedThread), Failure> {
        let abandoned = self.abandoned();
        if abandoned >= connections.max(FEW) {
            let why = "its disk hangs or a lock is not given up, so no further one is begun until some of them end";
            // It tells nothing about the connections that are open.
            return Err(Failure::refused(format!("{abandoned} threads still have calls into the file: {why}")));
        }
        // The wait counts first, so that the thread never counts as abandoned meanwhile.
        let awaited = CountedThread::of(&self.awaited);
        Ok((CountedThread::of(&self.running), awaited))
    }

    pub(super) fn abandoned(&self) -> usize {
        self.running.load(Relaxed).saturating_sub(self.awaited.load(Relaxed))
    }
}

impl PartialEq for DiskThreads {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// One of the threads of [`DiskThreads`], until it drops.
#[derive(Debug)]
pub(super) struct CountedThread(Arc<AtomicUsize>);

impl CountedThread {
    fn of(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        CountedThread(Arc::clone(count))
    }
}

impl Drop for CountedThread {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::{DiskThreads, FEW};

    #[test]
    fn threads_that_nobody_waits_for_are_bounded() {
        let threads = DiskThreads::default();
        let mut waits = Vec::new();
        let mut hanging = Vec::new();
        for _ in 0..2 * FEW {
            let (running, awaited) = threads.begin(1).unwrap();
            hanging.push(running);
            waits.push(awaited);
        }
        // Threads that somebody waits for are no reason to refuse.
        waits.truncate(FEW + 1);
        assert!(threads.begin(1).is_ok());
        waits.truncate(FEW);
        let refused = threads.begin(FEW).unwrap_err();
        assert!(refused.to_string().contains("disk hangs"), "{refused}");
        assert_eq!(refused.proof().code(), "refused", "no connection is cut for it");
        assert!(threads.begin(FEW + 1).is_ok(), "more connections may leave more threads behind");
        hanging.pop();
        assert!(threads.begin(FEW).is_ok());
    }
}
