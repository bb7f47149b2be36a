//! What goes on at a resource: the work that closing waits for, and who is told when it ends.

use std::sync::Arc;

use crate::resource::Work;
use crate::sync::Notify;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

/// What leases, links and pieces of work know of their resource, whatever its type.
pub(crate) struct Activity {
    pub(crate) name: Arc<str>,
    pub(crate) endpoint: Arc<str>,
    work: [AtomicUsize; Work::ALL.len()],
    draining: AtomicBool,
    changed: Notify,
}

impl Activity {
    pub(crate) fn new(name: &str, endpoint: String) -> Arc<Self> {
        Arc::new(Activity {
            name: Arc::from(name),
            endpoint: Arc::from(endpoint),
            work: Default::default(),
            draining: AtomicBool::new(false),
            changed: Notify::new(),
        })
    }

    pub(crate) fn begin(&self, work: Work) {
        self.work[work as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn end(&self, work: Work) {
        self.work[work as usize].fetch_sub(1, Ordering::Release);
        // Either this sees that somebody drains, or that one sees the count that this left.
        fence(Ordering::SeqCst);
        self.released();
    }

    /// What is going on now, by kind, without what is not.
    pub(crate) fn work(&self) -> Vec<(Work, usize)> {
        Work::ALL
            .into_iter()
            .map(|work| (work, self.work[work as usize].load(Ordering::Acquire)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// From now on releases wake whoever waits in [`until`](Activity::until).
    pub(crate) fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// A lease or a piece of work has ended; whoever drains wants to know. What was released is
    /// released by a lock that whoever drains takes too, or before a fence.
    pub(crate) fn released(&self) {
        if self.is_draining() {
            self.changed();
        }
    }

    /// The state has changed.
    pub(crate) fn changed(&self) {
        self.changed.notify_waiters();
    }

    /// Waits until there is an answer, asking anew after each change of state and, while
    /// draining, after each release.
    pub(crate) async fn until<T>(&self, mut answer: impl FnMut() -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(answer) = answer() {
                return answer;
            }
            changed.await;
        }
    }
}
