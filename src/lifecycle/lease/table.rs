//! The lease table of a resource: every lease and checkout that is out, with its line of code and its age.
//!
//! ```text
//! LeaseTable ── shards, each for some of the threads, under a spin lock of its own
//!                 open ──────── the generation that is leased
//!                 free_cells ── cells of that generation that no lease has
//!                 all ───────── records, one for each cell: the holder of it
//! Lease ─────── one cell: its generation, its shard, the index of its record
//! ```
//!
//! A lease takes a cell off the free list of its thread's shard and fills in the cell's record. Its drop puts the cell
//! back. Neither touches another shard or clones a handle. A lease allocates only if the shard has no free cell, or if
//! it is watched.
//!
//! Order of locks: the lock of a life or of `RECYCLED_SHARDS`, then that of a shard. A look at all leases goes from
//! shard to shard, so no two shards are locked at once. No user code runs under these locks. A handle's drop may be
//! user code, so it comes after them.

use std::any::Any;
use std::backtrace::Backtrace;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use crate::base::clock::Moment;
use crate::base::holder::{Holder, QuotaId};
use crate::base::owner::Owner;
use crate::base::process::{ForkGuarded, Process, Room, Singleton};
use crate::base::sync::{SpinLock, thread_number};
use crate::lifecycle::activity::Activity;
use crate::lifecycle::leak::{self, LeakOptions, Leaks};
use crate::lifecycle::lease::guard::{Claim, ErasedLease, Lease, LeaseAs};

/// The leases and checkouts that count as held.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Held {
    Any,
    Checkouts,
    /// Leases and checkouts that were taken at most this time before this moment, or after it.
    TakenWithin(Duration, Moment),
}

/// All leases of one resource, spread over shards so that threads do not write the same cache line.
pub(crate) struct LeaseTable<H: Send + Sync + 'static> {
    shards: Shards<H>,
    process: &'static Process,
    options: LeakOptions,
    pub(crate) leaks: Leaks,
}

/// The shards are leaked on purpose, so that a lease points at its shard without a reference count. The next table of
/// the same type reuses the shards of a dropped one.
type Shards<H> = &'static [Shard<H>; SHARDS];

/// The shards of dropped tables, for the next table of the same type.
static RECYCLED_SHARDS: Singleton<RecycledShards> = Singleton::new(Room::RecycledShards);
type RecycledShards = parking_lot::Mutex<Vec<&'static (dyn Any + Send + Sync)>>;

/// The number of shards: as many as there are threads that can usefully lease at once. A model has fewer interleavings
/// with 2.
const SHARDS: usize = if cfg!(model) { 2 } else { 16 };

impl<H: Clone + Send + Sync + 'static> LeaseTable<H> {
    pub(crate) fn new(options: &LeakOptions) -> Self {
        let process = Process::current();
        LeaseTable { shards: LeaseTable::shards(process), process, options: options.clone(), leaks: Leaks::default() }
    }

    /// The shards of a dropped table of this type if none of its leases is out any more, or else new ones.
    fn shards(process: &Process) -> Shards<H> {
        let mut spare = RECYCLED_SHARDS.of(process).lock();
        let shards = |spare: &&'static (dyn Any + Send + Sync)| spare.downcast_ref::<[Shard<H>; SHARDS]>();
        let empty = |shards: Shards<H>| shards.iter().all(|shard| shard.0.lock().out().next().is_none());
        // loom's objects belong to one execution, so models never reuse shards.
        let found = (0..spare.len()).find(|index| !cfg!(model) && shards(&spare[*index]).is_some_and(empty));
        match found.map(|index| spare.swap_remove(index)) {
            Some(found) => shards(&found).unwrap_or_else(|| unreachable!("it was just found to be one")),
            // Leaked on purpose, see `Shards`.
            None => Box::leak(Box::new(std::array::from_fn(|_| Shard(SpinLock::new(ShardState::default()))))),
        }
    }

    /// Opens the table for leases of this handle.
    pub(crate) fn open(&self, handle: &H, generation: u64, activity: &Arc<Activity>) {
        let (handle, activity) = (ForkGuarded::new(handle.clone()), Arc::clone(activity));
        let generation = Arc::new(LeasedGeneration { handle, number: generation, activity });
        for shard in self.shards {
            shard.0.lock().open = Some(Arc::clone(&generation));
        }
    }

    /// A lease. `None` if the table is not open.
    #[inline]
    pub(crate) fn lease<T: ?Sized + 'static>(&self, claim: Claim) -> Option<Lease<T>>
    where
        H: LeaseAs<T>,
    {
        let shard = &self.shards[thread_number() % SHARDS];
        // A watched lease is judged by its age, so it needs the exact clock.
        let cell = if claim.quota.is_some() || self.options.shared {
            let origin = Box::new(AcquiredBy::here(self.options.backtrace));
            let now = Moment::now();
            shard.0.lock().take(shard, claim, now, Some(origin))
        } else {
            let now = Moment::coarse();
            shard.0.lock().take(shard, claim, now, None)
        };
        Some(Lease { held: Some(cell?) })
    }

    /// A lease for the pool's own closing code, once leasing has ended for all others.
    #[cold]
    pub(crate) fn lease_inside<T: ?Sized + 'static>(&self, claim: Claim) -> Option<Lease<T>>
    where
        H: LeaseAs<T>,
    {
        let origin = claim.quota.is_some().then(|| Box::new(AcquiredBy::here(self.options.backtrace)));
        let shard = &self.shards[thread_number() % SHARDS];
        let mut state = shard.0.lock();
        let cell = state.inside.clone().map(|generation| state.cell_of(generation, shard))?;
        let cell = state.note(cell, claim, Moment::now(), origin);
        Some(Lease { held: Some(cell) })
    }

    /// Whether any lease or checkout that counts is out. One with an idle claim never counts.
    pub(crate) fn is_held(&self, counts: Held) -> bool {
        let counts = |record: &LeaseRecord| match counts {
            _ if record.quota.is_some_and(QuotaId::is_idle) => false,
            Held::Any => true,
            Held::Checkouts => record.quota.is_some(),
            Held::TakenWithin(time, before) => before.since(record.since) <= time,
        };
        self.shards.iter().any(|shard| shard.0.lock().out().any(counts))
    }

    /// Every lease and checkout, the oldest first.
    pub(crate) fn holders(&self, resource: &Arc<str>) -> Vec<Holder> {
        let mut holders = Vec::new();
        for shard in self.shards {
            holders.extend(shard.0.lock().out().map(|record| record.holder(resource)));
        }
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.held));
        holders
    }

    /// Marks watched leases and checkouts that have been out for `age`, and returns the newly marked ones. Zero marks
    /// none.
    pub(crate) fn suspect(&self, resource: &Arc<str>, age: Duration) -> Vec<Holder> {
        let mut suspects = Vec::new();
        if age.is_zero() {
            return suspects;
        }
        for shard in self.shards {
            for record in &mut shard.0.lock().all {
                if record.is_out && record.origin.is_some() && !record.suspected && record.since.elapsed() >= age {
                    record.suspected = true;
                    suspects.push(record.holder(resource));
                }
            }
        }
        suspects
    }
}

impl<H: Send + Sync + 'static> LeaseTable<H> {
    /// Leases only to the pool's own closing code from now on. Leases that are out stay valid until they drop.
    #[must_use = "to be dropped outside of locks: a handle's drop may be anything"]
    pub(crate) fn stop_leasing_outside(&self) -> impl Sized + use<H> {
        self.shards.iter().map(|shard| shard.0.lock().stop_leasing_outside()).collect::<Vec<_>>()
    }

    /// Leases nothing from now on. Leases that are out stay valid until they drop.
    #[must_use = "to be dropped outside of locks: a handle's drop may be anything"]
    pub(crate) fn stop_leasing(&self) -> impl Sized + use<H> {
        self.shards.iter().map(|shard| shard.0.lock().stop_leasing()).collect::<Vec<_>>()
    }
}

impl<H: Send + Sync + 'static> Drop for LeaseTable<H> {
    fn drop(&mut self) {
        // In a forked child, a thread of the parent may hold the lock of a shard for ever.
        if self.process.is_current() {
            drop(self.stop_leasing());
            RECYCLED_SHARDS.of(self.process).lock().push(self.shards);
        }
    }
}

#[cfg(model)]
impl<H: Send + Sync + 'static> LeaseTable<H> {
    /// The generation that it leases, from every shard.
    pub(crate) fn open_for(&self) -> Option<u64> {
        self.same_in_every_shard(|state| state.open.as_ref())
    }

    /// The generation that it leases to closing code, from every shard.
    pub(crate) fn open_inside_for(&self) -> Option<u64> {
        self.same_in_every_shard(|state| state.inside.as_ref())
    }

    fn same_in_every_shard(&self, of: impl Fn(&ShardState<H>) -> Option<&Arc<LeasedGeneration<H>>>) -> Option<u64> {
        let shards = self.shards.iter().map(|shard| of(&shard.0.lock()).map(|generation| generation.number));
        let mut shards: Vec<_> = shards.collect();
        shards.dedup();
        assert_eq!(shards.len(), 1, "shards of two minds: {shards:?}");
        shards[0]
    }
}

/// A part of the table, on cache lines of its own.
#[repr(align(128))]
struct Shard<H: 'static>(SpinLock<ShardState<H>>);

/// A free list of boxed cells. A lease takes the box along, so it allocates none.
type FreeCells<H> = Vec<Box<LeaseCell<H>>>;

struct ShardState<H: 'static> {
    /// The generation that new leases refer to. `None` while leasing is stopped.
    open: Option<Arc<LeasedGeneration<H>>>,
    /// The generation that only the pool's own closing code may lease. `None` if there is none.
    inside: Option<Arc<LeasedGeneration<H>>>,
    /// The cells of the open generation that no lease has. To move one is all that a lease costs.
    free_cells: FreeCells<H>,
    /// The records, by the index that their cells have.
    all: Vec<LeaseRecord>,
    /// The indices in `all` that belong to no cell.
    free_records: Vec<usize>,
}

impl<H: 'static> Default for ShardState<H> {
    fn default() -> Self {
        ShardState { open: None, inside: None, free_cells: Vec::new(), all: Vec::new(), free_records: Vec::new() }
    }
}

impl<H: 'static> ShardState<H> {
    fn out(&self) -> impl Iterator<Item = &LeaseRecord> {
        self.all.iter().filter(|record| record.is_out)
    }

    fn stop_leasing(&mut self) -> impl Sized + use<H> {
        ([self.open.take(), self.inside.take()], self.take_free_cells())
    }

    fn stop_leasing_outside(&mut self) -> FreeCells<H> {
        self.inside = self.open.take();
        self.take_free_cells()
    }

    fn take_free_cells(&mut self) -> FreeCells<H> {
        self.free_records.extend(self.free_cells.iter().map(|cell| cell.record));
        std::mem::take(&mut self.free_cells)
    }
}

impl<H: 'static> ShardState<H> {
    // A lease is little more than this function. It has several callers, so the compiler would not inline it by itself.
    #[inline(always)]
    fn take(
        &mut self,
        shard: &'static Shard<H>,
        claim: Claim,
        since: Moment,
        origin: Option<Box<AcquiredBy>>,
    ) -> Option<Box<LeaseCell<H>>> {
        let cell = match self.free_cells.pop() {
            Some(cell) => cell,
            None => self.cell(shard)?,
        };
        Some(self.note(cell, claim, since, origin))
    }

    /// Fills in the record of a cell that is leased now.
    #[inline]
    fn note(
        &mut self,
        cell: Box<LeaseCell<H>>,
        claim: Claim,
        since: Moment,
        origin: Option<Box<AcquiredBy>>,
    ) -> Box<LeaseCell<H>> {
        // Field by field: a whole record would be built elsewhere and copied, and the copy waits for the writes just
        // before it.
        let record = &mut self.all[cell.record];
        record.site = claim.site;
        record.quota = claim.quota;
        record.since = since;
        record.generation = cell.generation.number;
        record.is_out = true;
        if origin.is_some() {
            record.origin = origin;
        }
        cell
    }

    /// A new cell of the open generation. `None` while leasing is stopped.
    #[cold]
    fn cell(&mut self, shard: &'static Shard<H>) -> Option<Box<LeaseCell<H>>> {
        let generation = Arc::clone(self.open.as_ref()?);
        Some(self.cell_of(generation, shard))
    }

    fn cell_of(&mut self, generation: Arc<LeasedGeneration<H>>, shard: &'static Shard<H>) -> Box<LeaseCell<H>> {
        let record = self.free_records.pop().unwrap_or_else(|| {
            self.all.push(LeaseRecord::default());
            self.all.len() - 1
        });
        Box::new(LeaseCell { generation, shard, record })
    }

    /// Puts a cell back on the free list. If its generation is over, returns it for a drop outside of the lock.
    fn put(&mut self, cell: Box<LeaseCell<H>>) -> Option<Box<LeaseCell<H>>> {
        if self.open.as_ref().is_some_and(|generation| Arc::ptr_eq(generation, &cell.generation)) {
            self.free_cells.push(cell);
            None
        } else {
            self.free_records.push(cell.record);
            Some(cell)
        }
    }
}

/// The facts on a lease or checkout while it is out.
struct LeaseRecord {
    is_out: bool,
    site: &'static Location<'static>,
    quota: Option<QuotaId>,
    since: Moment,
    generation: u64,
    /// Set only for a watched lease or checkout.
    origin: Option<Box<AcquiredBy>>,
    suspected: bool,
}

impl Default for LeaseRecord {
    fn default() -> Self {
        let (site, since) = (Location::caller(), Moment::coarse());
        LeaseRecord { is_out: false, site, quota: None, since, generation: 0, origin: None, suspected: false }
    }
}

impl LeaseRecord {
    fn holder(&self, resource: &Arc<str>) -> Holder {
        let origin = self.origin.as_deref();
        Holder {
            resource: Arc::clone(resource),
            site: self.site,
            held: self.since.elapsed(),
            exclusive: self.quota.is_some(),
            quota: self.quota.map(QuotaId::plain),
            generation: self.generation,
            owner: origin.map(|origin| origin.owner.clone()),
            suspected: self.suspected,
            backtrace: origin.and_then(|origin| origin.backtrace.clone()),
        }
    }
}

/// The task or thread that took a watched lease, and its backtrace if that is on.
struct AcquiredBy {
    owner: Owner,
    backtrace: Option<Arc<Backtrace>>,
}

impl AcquiredBy {
    fn here(backtrace: bool) -> Self {
        AcquiredBy { owner: Owner::current(), backtrace: backtrace.then(|| Arc::new(Backtrace::force_capture())) }
    }
}

/// A generation, with its handle. Each of its cells has a reference to it.
struct LeasedGeneration<H> {
    handle: ForkGuarded<H>,
    number: u64,
    activity: Arc<Activity>,
}

/// The part of a lease that is on the heap: the generation that it keeps, and the index of its record.
struct LeaseCell<H: 'static> {
    generation: Arc<LeasedGeneration<H>>,
    shard: &'static Shard<H>,
    record: usize,
}

impl<T: ?Sized, H: LeaseAs<T> + Send + Sync + 'static> ErasedLease<T> for LeaseCell<H> {
    fn handle(&self) -> &T {
        (*self.generation.handle).lease_as()
    }

    fn whole(&self) -> &dyn std::any::Any {
        &*self.generation.handle
    }

    fn generation(&self) -> u64 {
        self.generation.number
    }

    fn activity(&self) -> &Arc<Activity> {
        &self.generation.activity
    }

    fn release(self: Box<Self>) {
        if !ForkGuarded::is_current(&self.generation.handle) {
            return;
        }
        let activity = &self.generation.activity;
        let mut state = self.shard.0.lock();
        let record = &mut state.all[self.record];
        record.is_out = false;
        let is_suspected = std::mem::take(&mut record.suspected);
        // Read under the lock. The drain sets it before it takes the lock, so the drain sees the release, or is woken
        // by it.
        let told = (is_suspected | activity.is_draining())
            .then(|| (Arc::clone(activity), is_suspected.then(|| record.holder(&activity.name))));
        let origin = record.origin.take();
        let over = state.put(self);
        drop(state);
        // Most leases have neither. The checks save the call that the compiler makes to drop an empty one.
        if let Some(over) = over {
            drop(over);
        }
        if let Some(origin) = origin {
            drop(origin);
        }
        if let Some((activity, came_back)) = told {
            activity.released();
            if let Some(holder) = came_back {
                leak::came_back(activity, holder);
            }
        }
    }
}

#[cfg(all(test, not(model)))]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Wake};

    use super::*;

    /// A table of a type that only its test uses, since tables of one type share their shards.
    fn table<H: Clone + Send + Sync + 'static>(handle: H, shared: bool) -> LeaseTable<H> {
        let table = LeaseTable::new(&LeakOptions { shared, ..LeakOptions::default() });
        table.open(&handle, 3, &Activity::new("name", None, String::new(), &Arc::default()));
        table
    }

    fn lease<H: Clone + Send + Sync + 'static>(table: &LeaseTable<H>) -> Lease<H> {
        table.lease(Claim::shared()).expect("open")
    }

    #[test]
    fn a_lease_tells_what_it_is_of() {
        let table = table(7_u8, false);
        let lease = lease(&table);
        assert_eq!((*lease, Lease::resource(&lease), Lease::generation(&lease)), (7, "name", 3));
        assert_eq!(format!("{lease:?}"), "Lease { resource: \"name\", generation: 3, .. }");
        let held = table.holders(&Arc::from("name"));
        assert_eq!((held.len(), held[0].generation, held[0].exclusive), (1, 3, false));
        assert!(table.is_held(Held::Any) && !table.is_held(Held::Checkouts));
        drop(lease);
        assert!(!table.is_held(Held::Any));
    }

    #[test]
    fn only_watched_leases_that_are_out_are_suspected_and_each_once() {
        let name: Arc<str> = Arc::from("name");
        let age = Duration::from_nanos(1);
        for (shared, expected) in [(false, 0), (true, 1)] {
            let table = table(7_u16, shared);
            drop(lease(&table));
            assert_eq!(table.suspect(&name, age).len(), 0, "it came back");
            let lease = lease(&table);
            assert_eq!(table.suspect(&name, Duration::ZERO).len(), 0, "that is off");
            assert_eq!(table.suspect(&name, Duration::MAX).len(), 0, "not old enough");
            while since(&table, &name) < age {}
            assert_eq!(table.suspect(&name, age).len(), expected);
            assert_eq!(table.suspect(&name, age).len(), 0, "said already");
            drop(lease);
        }
    }

    #[test]
    fn a_suspected_lease_that_comes_back_wakes_the_drain() {
        struct Woken(AtomicBool);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let activity = Activity::new("name", None, String::new(), &Arc::default());
        let table = LeaseTable::new(&LeakOptions { shared: true, ..LeakOptions::default() });
        table.open(&7_i8, 3, &activity);
        activity.set_draining(true);
        let lease = lease(&table);
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        let waker = Arc::clone(&woken).into();
        let mut drained = pin!(activity.until(|| (!table.is_held(Held::Any)).then_some(())));
        assert!(drained.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        while table.suspect(&activity.name, Duration::from_nanos(1)).is_empty() {}
        drop(lease);
        assert!(woken.0.load(Ordering::Relaxed) && drained.poll(&mut Context::from_waker(&waker)).is_ready());
    }

    fn since<H: Clone + Send + Sync + 'static>(table: &LeaseTable<H>, name: &Arc<str>) -> Duration {
        table.holders(name).iter().map(|holder| holder.held).max().unwrap_or_default()
    }

    #[test]
    fn seats_are_taken_over_once_nobody_sits_on_them() {
        let first = table(7_u32, false);
        let shards = std::ptr::from_ref(first.shards);
        let out = lease(&first);
        drop(first);
        let second = table(7_u32, false);
        assert!(!std::ptr::eq(shards, second.shards), "a lease is out still");
        drop(out);
        assert!(std::ptr::eq(shards, table(7_u32, false).shards));
    }

    #[test]
    fn a_ledger_that_is_shut_leases_nothing() {
        let table = table(7_u64, false);
        drop(table.stop_leasing_outside());
        assert!(table.lease::<u64>(Claim::shared()).is_none());
        assert_eq!(*table.lease_inside(Claim::shared()).expect("closing code may"), 7_u64);
        drop(table.stop_leasing());
        assert!(table.lease_inside::<u64>(Claim::shared()).is_none());
    }
}
