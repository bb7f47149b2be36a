//! The ledger of a resource: every lease and checkout that is out, from which line, since when.
//!
//! ```text
//! Ledger ── seats, each for some of the threads, and under a latch of its own
//!             open ─── the generation that is leased
//!             cards ── those of that generation that nobody has
//!             all ──── the places, each for one card: who has it
//! Lease ─── one card: its generation, its seat, its place
//! ```
//!
//! A lease takes a card off the seat of its thread and fills in the card's place; its drop puts the card back. That
//! touches no other seat and clones no handle, and allocates only a seat's first card and the origin of what is watched.
//! Only a look at all leases goes from seat to seat. No code of users, which a handle's drop may be, runs under a latch.

use std::any::Any;
use std::backtrace::Backtrace;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use crate::base::clock::Moment;
use crate::base::holder::{Holder, QuotaId};
use crate::base::owner::Owner;
use crate::base::process::{Ours, Process, Room, Singleton};
use crate::base::sync::{Latch, thread_number};
use crate::lifecycle::activity::Activity;
use crate::lifecycle::leak::{self, LeakOptions, Leaks};
use crate::lifecycle::lease::guard::{Claim, ErasedLease, Lease, Provide};

/// Which leases and checkouts count as held.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Held {
    Any,
    Checkouts,
    /// Those that were taken within this time before this moment, or since.
    TakenWithin(Duration, Moment),
}

/// All leases of one resource, spread over seats so that threads do not write the same line.
pub(crate) struct Ledger<H: Send + Sync + 'static> {
    seats: Seats<H>,
    process: &'static Process,
    options: LeakOptions,
    pub(crate) leaks: Leaks,
}

/// Seats are leaked, so that a lease can point at its seat without counting: the next ledger of this type takes over
/// those that a dropped ledger leaves.
type Seats<H> = &'static [Seat<H>; SEATS];

/// What ledgers have left, each the seats of one of them.
static SPARE_SEATS: Singleton<SpareSeats> = Singleton::new(Room::SpareSeats);
type SpareSeats = parking_lot::Mutex<Vec<&'static (dyn Any + Send + Sync)>>;

/// As many seats as threads can usefully lease at once.
const SEATS: usize = if cfg!(model) { 2 } else { 16 };

impl<H: Clone + Send + Sync + 'static> Ledger<H> {
    pub(crate) fn new(options: &LeakOptions) -> Self {
        let process = Process::current();
        Ledger { seats: Ledger::seats(process), process, options: options.clone(), leaks: Leaks::default() }
    }

    /// The seats that a dropped ledger of this type has left, if none of its leases is out any more; or new ones.
    fn seats(process: &Process) -> Seats<H> {
        let mut spare = SPARE_SEATS.of(process).lock();
        let seats = |spare: &&'static (dyn Any + Send + Sync)| spare.downcast_ref::<[Seat<H>; SEATS]>();
        let empty = |seats: Seats<H>| seats.iter().all(|seat| seat.0.lock().out().next().is_none());
        // A model's seats are of its one execution.
        let found = (0..spare.len()).find(|index| !cfg!(model) && seats(&spare[*index]).is_some_and(empty));
        match found.map(|index| spare.swap_remove(index)) {
            Some(found) => seats(&found).unwrap_or_else(|| unreachable!("it was just found to be one")),
            None => Box::leak(Box::new(std::array::from_fn(|_| Seat(Latch::new(Places::default()))))),
        }
    }

    /// Opens for leasing with this handle.
    pub(crate) fn open(&self, handle: &H, generation: u64, activity: &Arc<Activity>) {
        let opened = Opened { handle: Ours::new(handle.clone()), generation, activity: Arc::clone(activity) };
        let opened = Arc::new(opened);
        for seat in self.seats {
            seat.0.lock().open = Some(Arc::clone(&opened));
        }
    }

    /// A lease, if open.
    #[inline]
    pub(crate) fn lease<T: ?Sized + 'static>(&self, claim: Claim) -> Option<Lease<T>>
    where
        H: Provide<T>,
    {
        let seat = &self.seats[thread_number() % SEATS];
        // What is watched is looked at by age, and so needs the exact clock.
        let card = if claim.quota.is_some() || self.options.shared {
            let origin = Box::new(Origin::here(self.options.backtrace));
            let now = Moment::now();
            seat.0.lock().take(seat, claim, now, Some(origin))
        } else {
            let now = Moment::coarse();
            seat.0.lock().take(seat, claim, now, None)
        };
        Some(Lease { held: Some(card?) })
    }

    /// A lease for the pool's own closing code, once leasing has ended for all others.
    #[cold]
    pub(crate) fn lease_inside<T: ?Sized + 'static>(&self, claim: Claim) -> Option<Lease<T>>
    where
        H: Provide<T>,
    {
        let origin = claim.quota.is_some().then(|| Box::new(Origin::here(self.options.backtrace)));
        let seat = &self.seats[thread_number() % SEATS];
        let mut places = seat.0.lock();
        let card = places.inside.clone().map(|opened| places.card_of(opened, seat))?;
        let card = places.note(card, claim, Moment::now(), origin);
        Some(Lease { held: Some(card) })
    }

    /// Whether anything is out that counts.
    pub(crate) fn is_held(&self, counts: Held) -> bool {
        let counts = |place: &Place| match counts {
            _ if place.quota.is_some_and(QuotaId::is_idle) => false,
            Held::Any => true,
            Held::Checkouts => place.quota.is_some(),
            Held::TakenWithin(time, before) => before.since(place.since) <= time,
        };
        self.seats.iter().any(|seat| seat.0.lock().out().any(counts))
    }

    /// Every lease and checkout, the oldest first.
    pub(crate) fn holders(&self, resource: &Arc<str>) -> Vec<Holder> {
        let mut holders = Vec::new();
        for seat in self.seats {
            holders.extend(seat.0.lock().out().map(|place| place.holder(resource)));
        }
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.held));
        holders
    }

    /// Marks what is watched and has been out for this long, and tells what is newly marked.
    pub(crate) fn suspect(&self, resource: &Arc<str>, age: Duration) -> Vec<Holder> {
        let mut suspects = Vec::new();
        if age.is_zero() {
            return suspects;
        }
        for seat in self.seats {
            for place in &mut seat.0.lock().all {
                if place.is_out && place.origin.is_some() && !place.suspected && place.since.elapsed() >= age {
                    place.suspected = true;
                    suspects.push(place.holder(resource));
                }
            }
        }
        suspects
    }
}

impl<H: Send + Sync + 'static> Ledger<H> {
    /// Leases only to the pool's own closing code from now on. What is leased stays so until it drops.
    #[must_use = "to be dropped outside of locks: a handle's drop may be anything"]
    pub(crate) fn shut_to_outside(&self) -> impl Sized + use<H> {
        self.seats.iter().map(|seat| seat.0.lock().shut_to_outside()).collect::<Vec<_>>()
    }

    /// Leases nothing from now on. What is leased stays so until it drops.
    #[must_use = "to be dropped outside of locks: a handle's drop may be anything"]
    pub(crate) fn shut(&self) -> impl Sized + use<H> {
        self.seats.iter().map(|seat| seat.0.lock().shut()).collect::<Vec<_>>()
    }
}

impl<H: Send + Sync + 'static> Drop for Ledger<H> {
    fn drop(&mut self) {
        // In a forked child a thread that is not there may hold a seat for ever.
        if self.process.is_current() {
            drop(self.shut());
            SPARE_SEATS.of(self.process).lock().push(self.seats);
        }
    }
}

#[cfg(model)]
impl<H: Send + Sync + 'static> Ledger<H> {
    /// The generation that it leases, from every seat.
    pub(crate) fn open_for(&self) -> Option<u64> {
        self.same_in_every_seat(|places| places.open.as_ref())
    }

    /// The generation that it leases to closing code, from every seat.
    pub(crate) fn open_inside_for(&self) -> Option<u64> {
        self.same_in_every_seat(|places| places.inside.as_ref())
    }

    fn same_in_every_seat(&self, of: impl Fn(&Places<H>) -> Option<&Arc<Opened<H>>>) -> Option<u64> {
        let seats = self.seats.iter().map(|seat| of(&seat.0.lock()).map(|opened| opened.generation));
        let mut seats: Vec<_> = seats.collect();
        seats.dedup();
        assert_eq!(seats.len(), 1, "seats of two minds: {seats:?}");
        seats[0]
    }
}

#[repr(align(128))]
struct Seat<H: 'static>(Latch<Places<H>>);

/// A lease takes its box along, so that none is allocated for it.
type Cards<H> = Vec<Box<Card<H>>>;

struct Places<H: 'static> {
    /// The generation that new cards are of. None while leasing has ended.
    open: Option<Arc<Opened<H>>>,
    /// The generation that only the pool's own closing code may lease.
    inside: Option<Arc<Opened<H>>>,
    /// The cards of this generation that nobody has; moving one is all that a lease costs.
    cards: Cards<H>,
    all: Vec<Place>,
    /// The indices in `all` that no card has.
    free: Vec<usize>,
}

impl<H: 'static> Default for Places<H> {
    fn default() -> Self {
        Places { open: None, inside: None, cards: Vec::new(), all: Vec::new(), free: Vec::new() }
    }
}

impl<H: 'static> Places<H> {
    fn out(&self) -> impl Iterator<Item = &Place> {
        self.all.iter().filter(|place| place.is_out)
    }

    fn shut(&mut self) -> impl Sized + use<H> {
        ([self.open.take(), self.inside.take()], self.take_cards())
    }

    fn shut_to_outside(&mut self) -> Cards<H> {
        self.inside = self.open.take();
        self.take_cards()
    }

    fn take_cards(&mut self) -> Cards<H> {
        self.free.extend(self.cards.iter().map(|card| card.place));
        std::mem::take(&mut self.cards)
    }
}

impl<H: 'static> Places<H> {
    // A lease is little more than this, and it has several callers, each of which would else call it.
    #[inline(always)]
    fn take(
        &mut self,
        seat: &'static Seat<H>,
        claim: Claim,
        since: Moment,
        origin: Option<Box<Origin>>,
    ) -> Option<Box<Card<H>>> {
        let card = match self.cards.pop() {
            Some(card) => card,
            None => self.card(seat)?,
        };
        Some(self.note(card, claim, since, origin))
    }

    /// Writes down who has the card.
    #[inline]
    fn note(&mut self, card: Box<Card<H>>, claim: Claim, since: Moment, origin: Option<Box<Origin>>) -> Box<Card<H>> {
        // Field by field: as a whole it would be put together elsewhere and copied, which waits for what was just written.
        let place = &mut self.all[card.place];
        place.site = claim.site;
        place.quota = claim.quota;
        place.since = since;
        place.generation = card.opened.generation;
        place.is_out = true;
        if origin.is_some() {
            place.origin = origin;
        }
        card
    }

    /// One more of this generation.
    #[cold]
    fn card(&mut self, seat: &'static Seat<H>) -> Option<Box<Card<H>>> {
        let opened = Arc::clone(self.open.as_ref()?);
        Some(self.card_of(opened, seat))
    }

    fn card_of(&mut self, opened: Arc<Opened<H>>, seat: &'static Seat<H>) -> Box<Card<H>> {
        let place = self.free.pop().unwrap_or_else(|| {
            self.all.push(Place::default());
            self.all.len() - 1
        });
        Box::new(Card { opened, seat, place })
    }

    /// Takes a card back, unless its generation is over.
    fn put(&mut self, card: Box<Card<H>>) -> Option<Box<Card<H>>> {
        if self.open.as_ref().is_some_and(|opened| Arc::ptr_eq(opened, &card.opened)) {
            self.cards.push(card);
            None
        } else {
            self.free.push(card.place);
            Some(card)
        }
    }
}

/// What is known of a lease or checkout, while it is out.
struct Place {
    is_out: bool,
    site: &'static Location<'static>,
    quota: Option<QuotaId>,
    since: Moment,
    generation: u64,
    /// Only of what is watched.
    origin: Option<Box<Origin>>,
    suspected: bool,
}

impl Default for Place {
    fn default() -> Self {
        let (site, since) = (Location::caller(), Moment::coarse());
        Place { is_out: false, site, quota: None, since, generation: 0, origin: None, suspected: false }
    }
}

impl Place {
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

/// Who took it, and from where in full.
struct Origin {
    owner: Owner,
    backtrace: Option<Arc<Backtrace>>,
}

impl Origin {
    fn here(backtrace: bool) -> Self {
        Origin { owner: Owner::current(), backtrace: backtrace.then(|| Arc::new(Backtrace::force_capture())) }
    }
}

/// One generation.
struct Opened<H> {
    handle: Ours<H>,
    generation: u64,
    activity: Arc<Activity>,
}

/// The part of a lease that is on the heap: the generation that it keeps, and the index of its place.
struct Card<H: 'static> {
    opened: Arc<Opened<H>>,
    seat: &'static Seat<H>,
    place: usize,
}

impl<T: ?Sized, H: Provide<T> + Send + Sync + 'static> ErasedLease<T> for Card<H> {
    fn handle(&self) -> &T {
        (*self.opened.handle).provide()
    }

    fn whole(&self) -> &dyn std::any::Any {
        &*self.opened.handle
    }

    fn generation(&self) -> u64 {
        self.opened.generation
    }

    fn activity(&self) -> &Arc<Activity> {
        &self.opened.activity
    }

    fn release(self: Box<Self>) {
        if Ours::check(&self.opened.handle).is_err() {
            return;
        }
        let activity = &self.opened.activity;
        let mut places = self.seat.0.lock();
        let place = &mut places.all[self.place];
        place.is_out = false;
        let is_suspected = std::mem::take(&mut place.suspected);
        // Under the lock, which whoever drains takes after saying so.
        let told = (is_suspected | activity.is_draining())
            .then(|| (Arc::clone(activity), is_suspected.then(|| place.holder(&activity.name))));
        let origin = place.origin.take();
        let over = places.put(self);
        drop(places);
        // Looked at here, as most leases have neither, and the compiler makes a call of an empty one's drop.
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

    /// A type of the test's own, as ledgers of one type share what they leave.
    fn ledger<H: Clone + Send + Sync + 'static>(handle: H, shared: bool) -> Ledger<H> {
        let ledger = Ledger::new(&LeakOptions { shared, ..LeakOptions::default() });
        ledger.open(&handle, 3, &Activity::new("name", None, String::new(), &Arc::default()));
        ledger
    }

    fn lease<H: Clone + Send + Sync + 'static>(ledger: &Ledger<H>) -> Lease<H> {
        ledger.lease(Claim::shared()).expect("open")
    }

    #[test]
    fn a_lease_tells_what_it_is_of() {
        let ledger = ledger(7_u8, false);
        let lease = lease(&ledger);
        assert_eq!((*lease, Lease::resource(&lease), Lease::generation(&lease)), (7, "name", 3));
        assert_eq!(format!("{lease:?}"), "Lease { resource: \"name\", generation: 3, .. }");
        let held = ledger.holders(&Arc::from("name"));
        assert_eq!((held.len(), held[0].generation, held[0].exclusive), (1, 3, false));
        assert!(ledger.is_held(Held::Any) && !ledger.is_held(Held::Checkouts));
        drop(lease);
        assert!(!ledger.is_held(Held::Any));
    }

    #[test]
    fn only_watched_leases_that_are_out_are_suspected_and_each_once() {
        let name: Arc<str> = Arc::from("name");
        let age = Duration::from_nanos(1);
        for (shared, expected) in [(false, 0), (true, 1)] {
            let ledger = ledger(7_u16, shared);
            drop(lease(&ledger));
            assert_eq!(ledger.suspect(&name, age).len(), 0, "it came back");
            let lease = lease(&ledger);
            assert_eq!(ledger.suspect(&name, Duration::ZERO).len(), 0, "that is off");
            assert_eq!(ledger.suspect(&name, Duration::MAX).len(), 0, "not old enough");
            while since(&ledger, &name) < age {}
            assert_eq!(ledger.suspect(&name, age).len(), expected);
            assert_eq!(ledger.suspect(&name, age).len(), 0, "said already");
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
        let ledger = Ledger::new(&LeakOptions { shared: true, ..LeakOptions::default() });
        ledger.open(&7_i8, 3, &activity);
        activity.set_draining(true);
        let lease = lease(&ledger);
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        let waker = Arc::clone(&woken).into();
        let mut drained = pin!(activity.until(|| (!ledger.is_held(Held::Any)).then_some(())));
        assert!(drained.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        while ledger.suspect(&activity.name, Duration::from_nanos(1)).is_empty() {}
        drop(lease);
        assert!(woken.0.load(Ordering::Relaxed) && drained.poll(&mut Context::from_waker(&waker)).is_ready());
    }

    fn since<H: Clone + Send + Sync + 'static>(ledger: &Ledger<H>, name: &Arc<str>) -> Duration {
        ledger.holders(name).iter().map(|holder| holder.held).max().unwrap_or_default()
    }

    #[test]
    fn seats_are_taken_over_once_nobody_sits_on_them() {
        let first = ledger(7_u32, false);
        let seats = std::ptr::from_ref(first.seats);
        let out = lease(&first);
        drop(first);
        let second = ledger(7_u32, false);
        assert!(!std::ptr::eq(seats, second.seats), "a lease is out still");
        drop(out);
        assert!(std::ptr::eq(seats, ledger(7_u32, false).seats));
    }

    #[test]
    fn a_ledger_that_is_shut_leases_nothing() {
        let ledger = ledger(7_u64, false);
        drop(ledger.shut_to_outside());
        assert!(ledger.lease::<u64>(Claim::shared()).is_none());
        assert_eq!(*ledger.lease_inside(Claim::shared()).expect("closing code may"), 7_u64);
        drop(ledger.shut());
        assert!(ledger.lease_inside::<u64>(Claim::shared()).is_none());
    }
}
