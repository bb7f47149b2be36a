//! Guards: what holds a resource, from which line, for how long.

use std::backtrace::Backtrace;
use std::fmt;
use std::num::NonZeroU64;
use std::ops::Deref;
use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::activity::Activity;
use crate::exit::Ours;
use crate::leak::{self, LeakOptions, Leaks};
use crate::owner::Owner;
use crate::sync::{Mutex, thread_number};

/// A resource in use. Derefs to the handle; dropping it does no I/O and needs no runtime.
///
/// It may be held for the life of a strategy: one that is merely held delays closing by at most
/// [`held`](crate::config::CloseOptions::held). A lease is tied to the generation that it was
/// taken from; the built-in backends come back under it after a loss.
#[must_use = "the lease ends when this drops"]
pub struct Lease<H: ?Sized> {
    held: Arc<dyn Held<H>>,
    key: usize,
}

impl<H: ?Sized> Lease<H> {
    /// The name of the resource.
    pub fn resource(this: &Self) -> &str {
        &this.held.activity().name
    }

    /// The generation that this lease was taken from.
    pub fn generation(this: &Self) -> u64 {
        this.held.generation()
    }

    #[cfg(feature = "redis")]
    pub(crate) fn activity(this: &Self) -> &Arc<Activity> {
        this.held.activity()
    }

    /// All of what the backend's slot holds, if it is this.
    #[cfg(feature = "clickhouse")]
    pub(crate) fn whole<W: 'static>(this: &Self) -> Option<&W> {
        this.held.whole().downcast_ref()
    }
}

impl<H: ?Sized> Deref for Lease<H> {
    type Target = H;
    fn deref(&self) -> &H {
        self.held.handle()
    }
}

impl<H: ?Sized> Drop for Lease<H> {
    fn drop(&mut self) {
        self.held.release(self.key);
    }
}

impl<H: ?Sized> fmt::Debug for Lease<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("resource", &Lease::resource(self))
            .field("generation", &Lease::generation(self))
            .finish_non_exhaustive()
    }
}

/// Who holds a lease or a checkout.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Holder {
    /// The resource's name.
    pub resource: Arc<str>,
    /// The line that acquired it.
    pub site: &'static Location<'static>,
    /// For how long.
    pub held: Duration,
    /// Whether it is an exclusive checkout, which others may be waiting for.
    pub exclusive: bool,
    /// The generation it was taken from.
    pub generation: u64,
    /// The task or thread that acquired it: known of checkouts, and of leases
    /// that are watched for leaks.
    pub owner: Option<Owner>,
    /// Whether it was held for longer than [`age`](crate::config::LeakOptions::age) when last looked at.
    pub suspected: bool,
    /// From where it was acquired, if [`backtrace`](crate::config::LeakOptions::backtrace) is on.
    pub backtrace: Option<Arc<Backtrace>>,
    #[cfg_attr(not(any(feature = "rabbitmq", feature = "redis")), allow(dead_code, reason = "nothing is exclusive"))]
    pub(crate) quota: Option<QuotaId>,
}

impl Holder {
    pub(crate) fn is_watched(&self) -> bool {
        self.owner.is_some()
    }
}

/// One line; with `{:#}` the backtrace follows, if there is one.
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:.1?}", self.site, self.held)?;
        if self.exclusive {
            f.write_str(", exclusive")?;
        }
        if let Some(owner) = &self.owner {
            write!(f, ", {owner}")?;
        }
        if self.suspected {
            f.write_str(", a leak?")?;
        }
        f.write_str(")")?;
        match &self.backtrace {
            Some(backtrace) if f.alternate() => write!(f, "\n{backtrace}"),
            _ => Ok(()),
        }
    }
}

/// How an acquire wants its guard to be known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim {
    pub(crate) site: &'static Location<'static>,
    /// What an exclusive one is a checkout of.
    pub(crate) quota: Option<QuotaId>,
    /// The thread that claims is blocked until it gets its answer.
    #[cfg_attr(not(any(feature = "rabbitmq", feature = "redis")), allow(dead_code, reason = "nothing is exclusive"))]
    pub(crate) blocks: bool,
}

/// Which exclusive checkouts are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QuotaId(pub(crate) NonZeroU64);

impl Claim {
    #[track_caller]
    pub(crate) fn shared() -> Self {
        Claim { site: Location::caller(), quota: None, blocks: false }
    }

    /// The same for a caller whose thread is blocked meanwhile.
    #[cfg(any(feature = "rabbitmq", feature = "r2d2"))]
    pub(crate) fn blocking(self) -> Self {
        Claim { blocks: true, ..self }
    }
}

/// Turns a backend's handle into what one of the facades leases.
pub(crate) trait Provide<T: ?Sized> {
    fn provide(&self) -> &T;
}

impl<T> Provide<T> for T {
    fn provide(&self) -> &T {
        self
    }
}

/// All leases of one resource, spread over seats so that threads do not write the same line.
pub(crate) struct Ledger<H> {
    seats: Box<[Arc<Seat<H>>]>,
    options: LeakOptions,
    pub(crate) leaks: Leaks,
}

/// As many seats as threads can usefully lease at once.
const SEATS: usize = if cfg!(model) { 2 } else { 16 };

impl<H: Clone + Send + Sync + 'static> Ledger<H> {
    pub(crate) fn new(options: &LeakOptions) -> Self {
        Ledger {
            seats: (0..SEATS).map(|_| Arc::new(Seat(Mutex::new(Places::default())))).collect(),
            options: options.clone(),
            leaks: Leaks::default(),
        }
    }

    /// Opens for leasing with this handle.
    pub(crate) fn open(&self, handle: &H, generation: u64, activity: &Arc<Activity>) {
        for seat in &self.seats {
            let tenancy = Tenancy {
                handle: Ours::new(handle.clone()),
                generation,
                activity: Arc::clone(activity),
                seat: Arc::clone(seat),
            };
            seat.0.lock().open = Some(Arc::new(tenancy));
        }
    }

    /// Leases nothing from now on. What is leased stays so until it drops.
    #[must_use = "to be dropped outside of locks: a handle's drop may be anything"]
    pub(crate) fn shut(&self) -> impl Sized + use<H> {
        self.seats.iter().map(|seat| seat.0.lock().open.take()).collect::<Vec<_>>()
    }

    /// A lease, if open.
    pub(crate) fn lease<T: ?Sized + 'static>(&self, claim: Claim) -> Option<Lease<T>>
    where
        H: Provide<T>,
    {
        let watched = claim.quota.is_some() || self.options.shared;
        let origin = watched.then(|| Box::new(Origin::here(self.options.backtrace)));
        let mut places = self.seats[thread_number() % SEATS].0.lock();
        let held = Arc::clone(places.open.as_ref()?);
        let since = Instant::now();
        let key = places.take(Place { claim, since, generation: held.generation, origin, suspected: false });
        Some(Lease { held, key })
    }

    /// Every lease and checkout, the oldest first.
    pub(crate) fn holders(&self, resource: &Arc<str>) -> Vec<Holder> {
        let mut holders = Vec::new();
        for seat in &self.seats {
            holders.extend(seat.0.lock().taken.iter().flatten().map(|place| place.holder(resource)));
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
        for seat in &self.seats {
            for place in seat.0.lock().taken.iter_mut().flatten() {
                if place.origin.is_some() && !place.suspected && place.since.elapsed() >= age {
                    place.suspected = true;
                    suspects.push(place.holder(resource));
                }
            }
        }
        suspects
    }
}

#[cfg(model)]
impl<H> Ledger<H> {
    /// The generation that it leases, from every seat.
    pub(crate) fn open_for(&self) -> Option<u64> {
        let seats = self.seats.iter().map(|seat| seat.0.lock().open.as_ref().map(|tenancy| tenancy.generation));
        let mut seats: Vec<_> = seats.collect();
        seats.dedup();
        assert_eq!(seats.len(), 1, "seats of two minds: {seats:?}");
        seats[0]
    }
}

#[repr(align(128))]
struct Seat<H>(Mutex<Places<H>>);

struct Places<H> {
    open: Option<Arc<Tenancy<H>>>,
    taken: Vec<Option<Place>>,
    free: Vec<usize>,
}

impl<H> Default for Places<H> {
    fn default() -> Self {
        Places { open: None, taken: Vec::new(), free: Vec::new() }
    }
}

impl<H> Places<H> {
    fn take(&mut self, place: Place) -> usize {
        match self.free.pop() {
            Some(key) => {
                self.taken[key] = Some(place);
                key
            }
            None => {
                self.taken.push(Some(place));
                self.taken.len() - 1
            }
        }
    }
}

struct Place {
    claim: Claim,
    since: Instant,
    generation: u64,
    /// Only of what is watched.
    origin: Option<Box<Origin>>,
    suspected: bool,
}

impl Place {
    fn holder(&self, resource: &Arc<str>) -> Holder {
        let origin = self.origin.as_deref();
        Holder {
            resource: Arc::clone(resource),
            site: self.claim.site,
            held: self.since.elapsed(),
            exclusive: self.claim.quota.is_some(),
            quota: self.claim.quota,
            generation: self.generation,
            owner: origin.map(|origin| origin.owner.clone()),
            suspected: self.suspected,
            backtrace: origin.and_then(|origin| origin.backtrace.clone()),
        }
    }
}

/// Who took a place, and from where in full.
struct Origin {
    owner: Owner,
    backtrace: Option<Arc<Backtrace>>,
}

impl Origin {
    fn here(backtrace: bool) -> Self {
        Origin { owner: Owner::current(), backtrace: backtrace.then(|| Arc::new(Backtrace::force_capture())) }
    }
}

/// One generation's handle at one seat.
struct Tenancy<H> {
    handle: Ours<H>,
    generation: u64,
    activity: Arc<Activity>,
    seat: Arc<Seat<H>>,
}

/// A tenancy as a lease of `T` sees it.
trait Held<T: ?Sized>: Send + Sync {
    fn handle(&self) -> &T;
    /// All of what the backend's slot holds.
    #[cfg(feature = "clickhouse")]
    fn whole(&self) -> &dyn std::any::Any;
    fn generation(&self) -> u64;
    fn activity(&self) -> &Arc<Activity>;
    fn release(&self, key: usize);
}

impl<T: ?Sized, H: Provide<T> + Send + Sync + 'static> Held<T> for Tenancy<H> {
    fn handle(&self) -> &T {
        (*self.handle).provide()
    }

    #[cfg(feature = "clickhouse")]
    fn whole(&self) -> &dyn std::any::Any {
        &*self.handle
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    fn release(&self, key: usize) {
        if !Ours::process(&self.handle).is_current() {
            return;
        }
        let mut places = self.seat.0.lock();
        let place = places.taken[key].take();
        places.free.push(key);
        drop(places);
        if let Some(place) = place.filter(|place| place.suspected) {
            leak::came_back(place.holder(&self.activity.name));
        }
        self.activity.released();
    }
}
