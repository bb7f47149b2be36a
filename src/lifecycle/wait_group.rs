//! [`WaitGroup`]: pieces of the application's own work that closing waits for, with the line that began each.
//!
//! A hold, a task and a background thread are each a [`Member`], which counts until it drops.
//! Locks: `members` is held for one look at the table, and nothing is locked under it. An abort runs outside of it, since
//! it may drop a future, which is user code.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::task::AbortHandle;

use crate::base::clock::Moment;
use crate::base::holder::Holder;
use crate::base::process::Process;
use crate::base::sync::Mutex;
use crate::lifecycle::activity::Activity;
use crate::lifecycle::busy::Busy;
use crate::lifecycle::work::Work;

/// Work of one kind that closing waits for as a whole.
pub(crate) struct WaitGroup {
    pub(crate) activity: Arc<Activity>,
    work: Work,
    members: Mutex<BTreeMap<u64, Record>>,
    /// Whether there ever was a member.
    is_used: AtomicBool,
    process: &'static Process,
}

/// The record of one piece of work.
struct Record {
    name: Cow<'static, str>,
    site: &'static Location<'static>,
    since: Moment,
    busy: Busy,
    /// Ends a task. `None` for other work, which cannot be ended from outside.
    abort: Option<AbortHandle>,
}

/// One piece of work of a group. It counts until this drops.
pub(crate) struct Member {
    group: Arc<WaitGroup>,
    pub(crate) number: u64,
    /// Whether it counts as done when this drops, unless by a panic.
    is_done: bool,
}

impl WaitGroup {
    pub(crate) fn new(activity: Arc<Activity>, work: Work) -> Arc<Self> {
        let (members, is_used) = (Mutex::default(), AtomicBool::new(false));
        Arc::new(WaitGroup { activity, work, members, is_used, process: Process::current() })
    }

    /// Counts one more piece of work. If it drops before [`done`](Member::done), it counts as given up, unless `is_done`
    /// says otherwise.
    pub(crate) fn join(
        self: &Arc<Self>,
        name: Cow<'static, str>,
        site: &'static Location<'static>,
        is_done: bool,
    ) -> Member {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Relaxed, because only the uniqueness of the number counts.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let busy = Busy::new(&self.activity, self.work);
        self.is_used.store(true, Ordering::Relaxed);
        self.members.lock().insert(number, Record { name, site, since: Moment::now(), busy, abort: None });
        Member { group: Arc::clone(self), number, is_done }
    }

    /// Lets closing abort this member, if it is still there.
    pub(crate) fn abort_by(&self, number: u64, abort: AbortHandle) {
        if let Some(record) = self.members.lock().get_mut(&number) {
            record.abort = Some(abort);
        }
    }

    /// Takes a member out, and counts it as done or as given up. Returns whether it was still there.
    pub(crate) fn leave(&self, number: u64, is_done: bool) -> bool {
        let left = self.members.lock().remove(&number);
        // The lock is free by now, since the end of work may wake users' code.
        left.map(|mut record| record.busy.finish(is_done)).is_some()
    }

    pub(crate) fn is_used(&self) -> bool {
        self.is_used.load(Ordering::Relaxed)
    }

    pub(crate) fn len(&self) -> usize {
        self.members.lock().len()
    }

    /// Waits until no member is left, and each has been counted. It is woken only while the activity drains.
    pub(crate) async fn ended(&self) {
        self.activity.until(|| (self.len() == 0 && self.activity.counters.now().is_empty()).then_some(())).await;
    }

    /// Aborts the tasks that are left.
    pub(crate) fn abort(&self) {
        let aborts: Vec<_> = self.members.lock().values().filter_map(|record| record.abort.clone()).collect();
        for abort in aborts {
            abort.abort();
        }
    }

    /// The members that are left, the oldest first.
    pub(crate) fn holders(&self) -> Vec<Holder> {
        let members = self.members.lock();
        let holder = |Record { name, site, since, .. }: &Record| Holder {
            exclusive: false,
            ..Holder::of(&Arc::from(&**name), site, since.elapsed(), 0)
        };
        members.values().map(holder).collect()
    }
}

impl Member {
    /// Has this count as done when it drops.
    pub(crate) fn done(&mut self) {
        self.is_done = true;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // In a forked child a thread of the parent may hold the lock for ever.
        if self.group.process.is_current() {
            self.group.leave(self.number, self.is_done && !std::thread::panicking());
        }
    }
}
