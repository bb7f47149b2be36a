//! Waits for exclusive checkouts: which caller waits for which quota, and whether the wait can ever end.
//!
//! Checkouts and the kinds with quotas of their own register each wait by [`Quota::wait`]. A guard can be sent to
//! another thread, so nobody can tell for sure which thread frees it. Only a checkout that a thread has lent to a
//! closure is freed by that thread alone, so a wait for it there is refused at once. For all other waits, the timeout
//! tells who waits for whom.
//!
//! The lock of `WAITING` is the only one. It is held for single look-ups. No user code runs and nothing is locked under
//! it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroU64;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::base::error::{DeadlockError, Error, Source, TimeoutError, Waiter};
use crate::base::holder::{Holder, QuotaId};
use crate::base::owner::Owner;
use crate::base::process::{Process, Room, Singleton};
use crate::lifecycle::event::What;
use crate::lifecycle::lease::Claim;
use crate::lifecycle::link::Link;
use crate::lifecycle::spans::TaskSpan;

/// A limited number of exclusive checkouts of one sort, such as connections or channels. It knows who waits, so that a
/// timeout names the holders, and a wait that can never end is reported.
pub struct Quota {
    id: QuotaId,
    link: Link,
    /// Relaxed suffices, because the number publishes no other data.
    count: AtomicUsize,
    /// The word for the checkouts in messages, in the plural.
    what: &'static str,
    /// The option that sets `count`, for messages.
    option: &'static str,
}

impl Quota {
    /// A quota of `count` checkouts of the link's resource. Two words are for messages: `what` is the plural of the
    /// checkouts' name, and `option` is the option that sets `count`.
    pub fn new(link: &Link, count: usize, what: &'static str, option: &'static str) -> Arc<Self> {
        Quota::of(QuotaId::new(), link, count, what, option)
    }

    /// A quota like that of [`new`](Quota::new), whose checkouts are known by this id. A resource may have the id
    /// before it connects.
    pub fn of(id: QuotaId, link: &Link, count: usize, what: &'static str, option: &'static str) -> Arc<Self> {
        Arc::new(Quota { id, link: link.clone(), count: AtomicUsize::new(count), what, option })
    }

    /// Sets the number of checkouts from now on.
    pub fn resize(&self, count: usize) {
        self.count.store(count, Ordering::Relaxed);
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// The claim for one checkout. It makes [`Link::lease`] list the checkout among the holders.
    pub fn claim(&self, claim: Claim) -> Claim {
        self.id.claim(claim)
    }

    /// The claim for a checkout that closing does not wait for.
    pub fn idle_claim(&self, claim: Claim) -> Claim {
        self.id.idle().claim(claim)
    }

    /// The id by which its checkouts are known.
    pub fn id(&self) -> QuotaId {
        self.id
    }

    /// The holders of its checkouts, the oldest first.
    fn holders(&self) -> Vec<Holder> {
        self.link.holders().into_iter().filter(|holder| holder.quota == Some(self.id)).collect()
    }

    /// Registers a wait that now begins, until the guard drops. The caller drops the guard before it holds the
    /// checkout.
    ///
    /// # Errors
    /// [`Error::Deadlock`] if this thread would block for a checkout that it alone can free.
    pub fn wait(self: &Arc<Self>, claim: Claim) -> Result<Wait, Error> {
        if claim.blocks && lent_here(self.id) >= self.count() {
            let error = Arc::new(DeadlockError {
                resource: Arc::clone(self.link.name()),
                waiting_for: self.waited_for(),
                site: claim.site,
                holders: self.holders(),
                option: self.option,
            });
            self.link.note(|| What::Deadlocked { error: Arc::clone(&error) });
            return Err(Error::Deadlock(error));
        }
        let waiting = Arc::new(PendingWait {
            owner: Owner::current(),
            quota: Arc::clone(self),
            site: claim.site,
            since: Instant::now(),
        });
        WAITING.of(Process::current()).0.lock().entry(waiting.owner.clone()).or_default().push(Arc::clone(&waiting));
        let span = self.link.activity.traced.wait(self.waited_for());
        let wait = Wait { waiting, span };
        let cycle = wait.waiting.cycle();
        // A task that awaits several checkouts side by side may look like a cycle of its own.
        if cycle.first().is_some_and(|me| !me.holds.is_empty()) && (cycle.len() > 1 || claim.blocks) {
            self.link.tell(What::Cycle { waiters: cycle });
        }
        Ok(wait)
    }

    /// Marks a checkout of this thread as lent to a closure. While the guard lives, only this thread can free the
    /// checkout.
    pub fn lend(&self) -> Lending {
        let id = self.id;
        // Thread-locals are gone while a thread ends. The checkout is then not known to be lent.
        let is_known = LENT.try_with(|lent| lent.borrow_mut().push(id)).is_ok();
        Lending { lent: is_known.then_some(id), here: PhantomData }
    }

    fn waited_for(&self) -> String {
        format!("one of {} {}", self.count(), self.what)
    }
}

impl QuotaId {
    /// An id that differs from all others.
    #[allow(clippy::new_without_default, reason = "no two are equal")]
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Never zero: the counter would take centuries to wrap around.
        QuotaId(NonZeroU64::new(NEXT.fetch_add(1, Ordering::Relaxed)).unwrap_or(NonZeroU64::MIN))
    }

    /// The claim for one of its checkouts.
    pub fn claim(self, claim: Claim) -> Claim {
        Claim { quota: Some(self), ..claim }
    }
}

static WAITING: Singleton<WaitGraph> = Singleton::new(Room::Waiting);

/// The waits in all pools of a process, by owner. It spans the pools, since a thread that waits in one pool may hold a
/// checkout of another.
#[derive(Default)]
struct WaitGraph(Mutex<HashMap<Owner, Vec<Arc<PendingWait>>>>);

thread_local! {
    /// The quotas of the checkouts that are lent to closures on this thread.
    static LENT: RefCell<Vec<QuotaId>> = const { RefCell::new(Vec::new()) };
}

fn lent_here(quota: QuotaId) -> usize {
    LENT.try_with(|lent| lent.borrow().iter().filter(|one| **one == quota).count()).unwrap_or(0)
}

/// A checkout lent to a closure, until this drops. It never leaves its thread.
#[must_use = "the place is lent until this drops"]
#[derive(Debug)]
pub struct Lending {
    lent: Option<QuotaId>,
    /// Keeps this on its thread, which alone knows that the checkout is lent.
    here: PhantomData<*const ()>,
}

impl Drop for Lending {
    fn drop(&mut self) {
        if let Some(id) = self.lent {
            let _given_back = LENT.try_with(|lent| {
                let mut lent = lent.borrow_mut();
                if let Some(place) = lent.iter().rposition(|one| *one == id) {
                    lent.remove(place);
                }
            });
        }
    }
}

/// A wait for one checkout of a quota.
struct PendingWait {
    owner: Owner,
    quota: Arc<Quota>,
    site: &'static Location<'static>,
    since: Instant,
}

impl PendingWait {
    /// Whether this wait still goes on.
    fn is_still(&self) -> bool {
        WAITING
            .of(Process::current())
            .0
            .lock()
            .get(&self.owner)
            .is_some_and(|theirs| theirs.iter().any(|one| std::ptr::eq(&**one, self)))
    }

    /// All callers that wait for one another, beginning with this one. Empty if any holder among them does not wait,
    /// since it may go on and free its checkout.
    fn cycle(self: &Arc<Self>) -> Vec<Waiter> {
        let mut waiting = vec![Arc::clone(self)];
        let mut seen: Vec<QuotaId> = Vec::new();
        let mut held: Vec<Holder> = Vec::new();
        let mut next = 0;
        while let Some(quota) = waiting.get(next).map(|one| Arc::clone(&one.quota)) {
            next += 1;
            if seen.contains(&quota.id) {
                continue;
            }
            seen.push(quota.id);
            let holders = quota.holders();
            // A checkout may be about to be held, or could not be connected.
            if holders.len() < quota.count() {
                return Vec::new();
            }
            for holder in holders {
                let Some(owner) = &holder.owner else { return Vec::new() };
                if !held.iter().any(|other| other.owner.as_ref() == Some(owner)) {
                    let theirs = WAITING.of(Process::current()).0.lock().get(owner).cloned().unwrap_or_default();
                    if theirs.is_empty() {
                        return Vec::new();
                    }
                    waiting.extend(theirs.into_iter().filter(|one| !Arc::ptr_eq(one, self)));
                }
                held.push(holder);
            }
        }
        // A caller that still waits has waited all the time, so it still holds the checkouts that were found with it.
        if !waiting.iter().all(|one| one.is_still()) {
            return Vec::new();
        }
        let waiter = |one: &Arc<PendingWait>| Waiter {
            owner: one.owner.clone(),
            holds: held.iter().filter(|holder| holder.owner.as_ref() == Some(&one.owner)).cloned().collect(),
            resource: Arc::clone(one.quota.link.name()),
            waiting_for: one.quota.waited_for(),
            site: one.site,
            waited: one.since.elapsed(),
        };
        waiting.iter().map(waiter).collect()
    }
}

impl fmt::Debug for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quota").field("resource", self.link.name()).field("of", &self.waited_for()).finish()
    }
}

/// A registered wait, until this drops.
#[must_use = "the wait is known until this drops"]
pub struct Wait {
    waiting: Arc<PendingWait>,
    span: TaskSpan,
}

impl Wait {
    /// The error of a wait that reached its limit. The message adds `further` to the object of the wait. `holders` are
    /// those of the quota unless others are named. `source` is the last error seen meanwhile.
    pub fn timed_out(self, further: &str, holders: Option<Vec<Holder>>, source: Option<Source>) -> Error {
        let PendingWait { quota, since, .. } = &*self.waiting;
        let waited_for = quota.waited_for() + further;
        let timeout = TimeoutError::new(quota.link.name(), quota.link.endpoint(), waited_for, since.elapsed());
        let (holders, cycle) = (holders.unwrap_or_else(|| quota.holders()), self.waiting.cycle());
        let error = Error::Timeout(Arc::new(TimeoutError { holders, cycle, source, ..timeout }));
        self.span.failed(error.code(), &error);
        quota.link.told(error)
    }
}

impl fmt::Debug for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Wait").field(&self.waiting.quota).finish()
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut waiting = WAITING.of(Process::current()).0.lock();
        if let Some(theirs) = waiting.get_mut(&self.waiting.owner) {
            theirs.retain(|one| !Arc::ptr_eq(one, &self.waiting));
            if theirs.is_empty() {
                waiting.remove(&self.waiting.owner);
            }
        }
        drop(waiting);
        let PendingWait { quota, since, .. } = &*self.waiting;
        quota.link.note(|| What::Waited { waiting_for: quota.waited_for(), waited: since.elapsed() });
    }
}
