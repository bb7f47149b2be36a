//! The life of one resource: `Idle → Connecting → Ready → Draining → Closed`, and `Ready → Broken → Connecting` on a
//! loss. One state machine serves every kind.
//!
//! Each transition is a method. It changes the state under one lock, and returns what the
//! [`Slot`](crate::lifecycle::slot::Slot) does next. Connecting is single-flight: the caller that begins an attempt
//! carries it out, and all others wait for its result. An attempt that closing or another attempt superseded changes
//! nothing any more.
//!
//! Invariant, under the lock: the table leases exactly while the state is `Ready`, or `Draining` before leasing ends,
//! and then with the present handle and generation. Once leasing has ended outside, only closing code leases.
//!
//! Order of locks: `inner`, then the close state, a shard, the observers' ring or the work's books. The clone of a
//! handle is the only user code under `inner`. Wakers, loggers and drops of handles and errors run once it is free.

mod acquiring;
mod counted;
mod reopening;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use self::acquiring::AcquireWait;
use self::counted::HandleCounts;
use crate::base::error::{Error, Source, panic_message};
use crate::base::runtime::LONGEST;
use crate::base::sync::{Mutex, MutexGuard};
use crate::lifecycle::activity::Activity;
use crate::lifecycle::condition::{Condition, Progress};
use crate::lifecycle::event::What;
use crate::lifecycle::leak::LeakOptions;
use crate::lifecycle::lease::LeaseTable;
use crate::lifecycle::probe::Watch;
use crate::lifecycle::status::State;
use crate::lifecycle::transition::{AcquireStep, Caller, ConnectOutcome, LossAction, Recovery, Superseded};

/// The life of one resource, with its handle while it is connected.
pub(crate) struct Life<H: Send + Sync + 'static> {
    /// A generation that is lost before this age counts as a failed attempt, after which there is a pause.
    young: Duration,
    pub(crate) activity: Arc<Activity>,
    /// Only transitions open it and end its leasing, under `inner`.
    pub(crate) table: LeaseTable<H>,
    inner: Mutex<LifeState<H>>,
}

struct LifeState<H> {
    activity: Arc<Activity>,
    state: State,
    since: Instant,
    generation: u64,
    /// Set from the first success to the disconnect, so in a recovery too.
    handle: Option<H>,
    counted: HandleCounts,
    /// The number of the last attempt. A waiter remembers which one it joined.
    attempt: u64,
    /// The attempts that made the present generation and the one before it. Those between the two have failed.
    made: u64,
    made_before: u64,
    /// The last attempt that closing superseded. Late reports of its link are ignored.
    superseded: Option<u64>,
    failure: Option<FailedAttempt>,
    /// Whether an attempt is at work, and not pausing before the next one.
    in_flight: bool,
    /// Whether closing waits for the attempt in flight. No attempt follows it.
    settling: bool,
    /// Whether a task brings the connection back, so that an acquire need not begin an attempt.
    recovering: bool,
    /// How many generations in a row were lost before they were as old as [`Life::young`].
    died_young: u32,
    /// Whether leasing has ended for all but the pool's own closing code.
    leasing_ended_outside: bool,
    /// Whether leasing has ended for all.
    leasing_ended: bool,
    /// Whether it stays closed, because its name is free for another resource.
    is_retired: bool,
    /// The first error while closing, with which its step fails: a loss, or a flush that failed.
    close_error: Option<Source>,
    /// The loss of a connection that is still being made. `None` if there is none.
    ended_early: Option<Source>,
    /// How far the present attempt has come.
    progress: Option<Progress>,
    waiting: usize,
    probing: Option<Watch>,
    /// Values to drop once the lock is free.
    replaced: Vec<Box<dyn Send>>,
}

/// The failure of an attempt. Other callers get it too until `retry_at`.
struct FailedAttempt {
    attempt: u64,
    error: Error,
    retry_at: Instant,
}

impl<H: Clone + Send + Sync + 'static> Life<H> {
    pub(crate) fn new(activity: Arc<Activity>, leaks: &LeakOptions, young: Duration) -> Self {
        Life {
            young,
            table: LeaseTable::new(leaks),
            inner: Mutex::new(LifeState {
                activity: Arc::clone(&activity),
                state: State::Idle,
                since: Instant::now(),
                generation: 0,
                handle: None,
                counted: HandleCounts::default(),
                attempt: 0,
                made: 0,
                made_before: 0,
                superseded: None,
                failure: None,
                in_flight: false,
                settling: false,
                recovering: false,
                died_young: 0,
                leasing_ended_outside: false,
                leasing_ended: false,
                is_retired: false,
                close_error: None,
                ended_early: None,
                progress: None,
                waiting: 0,
                probing: None,
                replaced: Vec::new(),
            }),
            activity,
        }
    }

    /// Waits until the resource can be leased. `connect` starts an attempt, and does not wait for it.
    pub(crate) async fn ready(
        &self,
        caller: Caller,
        closing: impl Fn() -> bool,
        connect: impl Fn(u64),
    ) -> Result<(), Error> {
        let mut acquiring = AcquireWait::new(self);
        let mut joined = None;
        let ready = self.activity.until(|| {
            let next = self.advance(&mut joined, caller, &closing);
            acquiring.waits |= matches!(next, Ok(AcquireStep::Wait | AcquireStep::Connect(_)));
            match next {
                Ok(AcquireStep::Lease) => Some(Ok(())),
                Ok(AcquireStep::Wait) => None,
                Ok(AcquireStep::Connect(attempt)) => {
                    connect(attempt);
                    None
                }
                Err(error) => Some(Err(error)),
            }
        });
        ready.await
    }

    /// Decides the next step of an acquire. Begins an attempt if there is none, and fails as the attempt that was
    /// joined did.
    fn advance(
        &self,
        joined: &mut Option<u64>,
        caller: Caller,
        closing: impl FnOnce() -> bool,
    ) -> Result<AcquireStep, Error> {
        let name = &self.activity.name;
        let mut inner = self.inner.lock();
        let failed = |inner: &LifeState<H>, stands: bool| match (&inner.failure, *joined) {
            (Some(failure), joined) if stands || joined.is_some_and(|attempt| failure.attempt >= attempt) => {
                Err(failure.error.clone())
            }
            _ => Ok(()),
        };
        match inner.state {
            State::Connecting | State::Broken if caller.patient && inner.recovering => Ok(AcquireStep::Wait),
            State::Ready => Ok(AcquireStep::Lease),
            State::Draining if inner.leases_to(caller) => Ok(AcquireStep::Lease),
            State::Draining => Err(Error::closing(name)),
            State::Closed => Err(Error::closed(name)),
            State::Connecting => {
                failed(&inner, false)?;
                joined.get_or_insert(inner.attempt);
                Ok(AcquireStep::Wait)
            }
            State::Broken | State::Idle => {
                let circuit = inner.failure.as_ref().is_some_and(|failure| Instant::now() < failure.retry_at);
                failed(&inner, inner.recovering || circuit)?;
                if inner.settling || closing() {
                    return Err(Error::closing(name));
                }
                let attempt = inner.begin_attempt();
                *joined = Some(attempt);
                Ok(AcquireStep::Connect(attempt))
            }
        }
    }

    /// Begins the attempt that follows this one in the same task, unless this one was superseded or closing has begun.
    pub(crate) fn again(&self, attempt: u64) -> Option<u64> {
        let mut inner = self.inner.lock();
        let next = (inner.is_trying(attempt) && !inner.settling).then(|| inner.begin_attempt());
        drop(inner);
        self.activity.kept();
        next
    }

    /// Resolves when this attempt is superseded.
    pub(crate) async fn superseded(&self, attempt: u64) {
        self.activity.until(|| (!self.inner.lock().is_trying(attempt)).then_some(())).await;
    }

    /// Whether this attempt made one of the last two generations. It is then no longer tried, and yet not superseded.
    pub(crate) fn has_made(&self, attempt: u64) -> bool {
        let inner = self.inner.lock();
        inner.made == attempt || inner.made_before == attempt
    }

    /// Notes how far an attempt has come.
    pub(crate) fn progress(&self, attempt: u64, told: Arc<str>) {
        let mut inner = self.inner.lock();
        if inner.is_connecting(attempt) {
            inner.progress = Some(Progress { at: Instant::now(), told });
        }
    }

    /// An attempt has made a new connection. `watch` begins to probe it.
    pub(crate) fn connected(
        &self,
        attempt: u64,
        handle: H,
        watch: impl FnOnce(u64) -> Option<Watch>,
    ) -> ConnectOutcome<H> {
        self.open(attempt, Some(handle), watch)
    }

    /// An attempt has brought the lost handle back.
    pub(crate) fn recovered(&self, attempt: u64, watch: impl FnOnce(u64) -> Option<Watch>) -> ConnectOutcome<H> {
        self.open(attempt, None, watch)
    }

    fn open(&self, attempt: u64, new: Option<H>, watch: impl FnOnce(u64) -> Option<Watch>) -> ConnectOutcome<H> {
        let mut inner = self.inner.lock();
        let handle = match (inner.is_connecting(attempt), new, &inner.handle) {
            (false, Some(new), _) => return ConnectOutcome::Late(new),
            (true, Some(new), _) => new,
            (true, None, Some(lost)) => lost.clone(),
            (_, None, _) => return ConnectOutcome::Superseded,
        };
        let generation = inner.generation + 1;
        self.table.open(&handle, generation, &self.activity);
        let earlier = (inner.handle.replace(handle), std::mem::replace(&mut inner.probing, watch(generation)));
        inner.generation = generation;
        inner.made_before = std::mem::replace(&mut inner.made, attempt);
        inner.forget_failure();
        inner.in_flight = false;
        inner.recovering = false;
        inner.set(State::Ready);
        let lost = inner.ended_early.take();
        let _told = self.changed(inner, earlier);
        ConnectOutcome::Ready { generation, lost }
    }

    /// Takes out the lost handle, if there is one. It cannot be brought back, so this attempt disconnects it and
    /// connects anew. Fails if the attempt was superseded.
    pub(crate) fn forget(&self, attempt: u64) -> Result<Option<H>, Superseded> {
        let mut inner = self.inner.lock();
        if inner.is_connecting(attempt) { Ok(inner.take_handle()) } else { Err(Superseded) }
    }

    /// An attempt has failed, and another one follows after this pause. During a recovery, callers get the failure
    /// meanwhile. Otherwise they go on waiting.
    pub(crate) fn failed(&self, attempt: u64, error: Error, pause: Duration) {
        let mut inner = self.inner.lock();
        if !inner.is_connecting(attempt) {
            return;
        }
        inner.in_flight = false;
        if inner.recovering {
            inner.fail(attempt, error, pause);
        }
        let _told = self.changed(inner, ());
    }

    /// An attempt has failed for good. Callers get this error for as long as the circuit is open.
    pub(crate) fn gave_up(&self, attempt: u64, error: Error, circuit: Duration) {
        let mut inner = self.inner.lock();
        if inner.is_trying(attempt) {
            inner.fail(attempt, error, circuit);
            inner.recovering = false;
            let _told = self.changed(inner, ());
        }
    }

    /// The connection is lost. A loss of another generation than the present one is ignored. So is one that the link of
    /// an attempt that closing superseded reports, since the next attempt makes a generation of the same number.
    pub(crate) fn lost(&self, link: Option<u64>, generation: u64, cause: Source) -> LossAction {
        let mut inner = self.inner.lock();
        match inner.state {
            _ if link.is_some() && link == inner.superseded => LossAction::Noted,
            // The failed attempt names the generation that a later attempt made, or is about to make.
            _ if link.is_some_and(|link| inner.has_failed(link)) => LossAction::Noted,
            State::Ready if inner.generation == generation => {
                let is_young = inner.since.elapsed() < self.young;
                inner.died_young = if is_young { inner.died_young.saturating_add(1) } else { 0 };
                LossAction::Recover(self.begin_recovery(inner, cause))
            }
            State::Connecting if inner.generation + 1 == generation => {
                let earlier = inner.ended_early.replace(cause);
                inner.replaced(earlier);
                LossAction::Noted
            }
            State::Draining if inner.generation == generation => {
                // Once the drain is over, it is the closing itself that ends connections.
                if !inner.leasing_ended && inner.close_error.is_none() {
                    let error = self.lost_error(cause);
                    inner.close_error = Some(Arc::new(error.clone()));
                    drop(inner);
                    self.activity.tell(generation, What::Lost { error, died_young: 0 });
                }
                LossAction::Cut
            }
            _ => LossAction::Noted,
        }
    }

    /// Makes a broken or closed resource `Idle`, so that the next acquire connects it even while the circuit is open. A
    /// ready resource counts as lost. If it was ready, or pauses in a recovery, the caller carries out the returned
    /// attempt, which goes on until the connection is back.
    pub(crate) fn reconnect(&self, cause: Source) -> Option<u64> {
        let mut inner = self.inner.lock();
        match inner.state {
            State::Ready => {
                inner.died_young = 0;
                return Some(self.begin_recovery(inner, cause).attempt);
            }
            // The task that brings it back pauses. The caller goes on at once in its place.
            State::Broken if inner.recovering => {
                let attempt = inner.begin_attempt();
                let _told = self.changed(inner, ());
                return Some(attempt);
            }
            State::Broken | State::Closed => self.reset(inner),
            State::Idle | State::Connecting | State::Draining => {}
        }
        None
    }

    fn begin_recovery(&self, mut inner: MutexGuard<'_, LifeState<H>>, cause: Source) -> Recovery {
        let (generation, attempt) = (inner.generation, inner.attempt);
        let error = self.lost_error(cause);
        inner.fail(attempt, error.clone(), Duration::ZERO);
        inner.recovering = true;
        let gone = (self.table.stop_leasing(), inner.probing.take());
        let died_young = inner.died_young;
        let attempt = if died_young == 0 { inner.begin_attempt() } else { inner.next_attempt() };
        let _told = self.changed(inner, gone);
        self.activity.tell(generation, What::Lost { error, died_young });
        Recovery { attempt, died_young }
    }

    /// Unlocks, wakes the waiters, then drops `last` and all replaced values. Returns the message of a panic.
    fn changed(&self, mut inner: MutexGuard<'_, LifeState<H>>, last: impl Sized) -> Result<(), String> {
        let replaced = std::mem::take(&mut inner.replaced);
        drop(inner);
        self.activity.changed();
        self.let_go((last, replaced))
    }

    /// Drops a value that may have the last handle or a user's error in it, whose drop is user code. Returns the
    /// message of a panic.
    fn let_go(&self, last: impl Sized) -> Result<(), String> {
        catch_unwind(AssertUnwindSafe(|| drop(last))).map_err(|payload| {
            let message = panic_message(&*payload);
            tracing::error!(resource = %self.activity.name, message, "a handle, or an error, panicked as it dropped");
            message
        })
    }

    fn lost_error(&self, source: Source) -> Error {
        let Activity { name, endpoint, .. } = &*self.activity;
        Error::Lost { resource: Arc::clone(name), endpoint: Arc::clone(endpoint), source }
    }

    /// Stops further attempts if one is in flight, and returns whether one is. It should end before
    /// [`begin_close`](Life::begin_close), since a handshake that is cut off is no clean end.
    pub(crate) fn begin_settling(&self) -> bool {
        let mut inner = self.inner.lock();
        inner.settling = inner.is_in_flight();
        inner.settling
    }

    /// Resolves when no attempt is in flight.
    pub(crate) async fn settled(&self) {
        self.activity.until(|| (!self.inner.lock().is_in_flight()).then_some(())).await;
    }

    /// Begins closing. Returns `false` if there is nothing to close. An attempt in flight is superseded.
    pub(crate) fn begin_close(&self) -> bool {
        let mut inner = self.inner.lock();
        inner.recovering = false;
        inner.settling = false;
        if inner.state == State::Connecting {
            inner.superseded = Some(inner.attempt);
        }
        let begun = match inner.state {
            State::Closed | State::Draining => false,
            _ if inner.handle.is_none() => {
                inner.set(State::Closed);
                false
            }
            state => {
                // A broken resource is not leased any more.
                inner.leasing_ended = state != State::Ready;
                inner.leasing_ended_outside = inner.leasing_ended;
                let earlier = inner.close_error.take();
                inner.replaced(earlier);
                self.activity.set_draining(true);
                inner.set(State::Draining);
                true
            }
        };
        let _told = self.changed(inner, ());
        begun
    }

    /// Notes an error for the step of closing to fail with. The first one counts.
    pub(crate) fn close_error(&self, what: Source) {
        let mut inner = self.inner.lock();
        let spare = if inner.close_error.is_none() { inner.close_error.replace(what) } else { Some(what) };
        drop(inner);
        drop(spare);
    }

    pub(crate) fn take_close_error(&self) -> Option<Source> {
        self.inner.lock().close_error.take()
    }

    /// Ends leasing for all but the pool's own closing code, which may use resources that close later than itself.
    pub(crate) fn stop_leasing_outside(&self) {
        let mut inner = self.inner.lock();
        inner.leasing_ended_outside = true;
        let gone = self.table.stop_leasing_outside();
        let _told = self.changed(inner, gone);
    }

    /// Ends leasing, as the resource's own phase begins.
    pub(crate) fn stop_leasing(&self) {
        let mut inner = self.inner.lock();
        inner.leasing_ended_outside = true;
        inner.leasing_ended = true;
        let gone = self.table.stop_leasing();
        let _told = self.changed(inner, gone);
    }

    /// Takes out the prober. It has to run until the drain is over, since it ends work that is stuck on a silent
    /// server.
    pub(crate) fn take_watch(&self) -> Option<Watch> {
        self.inner.lock().probing.take()
    }

    /// Ends as `Closed`, whether or not the server answered. Fails with the message of a panic in the handle's drop.
    pub(crate) fn finish_close(&self) -> Result<(), String> {
        let mut inner = self.inner.lock();
        inner.set(State::Closed);
        self.activity.set_draining(false);
        let last = (inner.take_handle(), inner.probing.take());
        self.changed(inner, last)
    }

    /// Calls [`Activity::tell`] for the present generation.
    pub(crate) fn tell(&self, what: What) {
        self.activity.tell(self.condition().generation, what);
    }

    /// Calls [`Activity::note`] for the present generation.
    pub(crate) fn note(&self, what: impl FnOnce() -> What) {
        self.activity.note(|| self.condition().generation, what);
    }

    pub(crate) fn handle(&self) -> Option<H> {
        self.inner.lock().handle.clone()
    }

    pub(crate) fn state(&self) -> State {
        self.inner.lock().state
    }

    pub(crate) fn condition(&self) -> Condition {
        let inner = self.inner.lock();
        Condition {
            state: inner.state,
            since: inner.since.elapsed(),
            generation: inner.generation,
            waiting: inner.waiting,
            failure: inner.failure.as_ref().map(|failure| failure.error.clone()),
            progress: inner.progress.clone(),
        }
    }

    /// The present generation, or the next one while that is being connected.
    pub(crate) fn generation_or_next(&self) -> u64 {
        let inner = self.inner.lock();
        if inner.state == State::Connecting { inner.generation + 1 } else { inner.generation }
    }
}

#[cfg(model)]
impl<H: Clone + Send + Sync + 'static> Life<H> {
    /// Checks the invariants that hold whenever the lock is free.
    pub(crate) fn check(&self) {
        let inner = self.inner.lock();
        let leases = inner.state == State::Ready || inner.state == State::Draining && !inner.leasing_ended;
        let outside = leases && !inner.leasing_ended_outside;
        assert_eq!(self.table.open_for(), outside.then_some(inner.generation), "in {:?}", inner.state);
        let inside = leases && inner.leasing_ended_outside;
        assert_eq!(self.table.open_inside_for(), inside.then_some(inner.generation), "in {:?}", inner.state);
        assert!(!leases || inner.handle.is_some());
        assert!(!inner.in_flight || inner.state != State::Ready);
        assert!(inner.handle.is_none() || !matches!(inner.state, State::Closed));
        assert_eq!(self.activity.is_draining(), matches!(inner.state, State::Draining), "in {:?}", inner.state);
        assert!(!inner.recovering || matches!(inner.state, State::Connecting | State::Broken));
    }
}

impl<H> LifeState<H> {
    fn set(&mut self, state: State) {
        self.progress = None;
        if self.state != state {
            let (from, now) = (std::mem::replace(&mut self.state, state), Instant::now());
            let after = now - std::mem::replace(&mut self.since, now);
            self.activity.keep(self.generation, || What::StateChanged { from, to: state, after });
        }
    }

    fn begin_attempt(&mut self) -> u64 {
        self.in_flight = true;
        self.set(State::Connecting);
        self.next_attempt()
    }

    /// The number of a new attempt, of its own, so that a late end of an earlier attempt does not count for it.
    fn next_attempt(&mut self) -> u64 {
        let earlier = self.ended_early.take();
        self.replaced(earlier);
        self.attempt += 1;
        self.attempt
    }

    fn fail(&mut self, attempt: u64, error: Error, stands: Duration) {
        self.in_flight = false;
        let now = FailedAttempt { attempt, error, retry_at: Instant::now() + stands.min(LONGEST) };
        let earlier = self.failure.replace(now);
        self.replaced(earlier);
        self.set(State::Broken);
    }

    fn forget_failure(&mut self) {
        let earlier = self.failure.take();
        self.replaced(earlier);
    }

    /// Keeps a replaced value until the lock is free, since its drop may be that of a user's error.
    fn replaced(&mut self, earlier: Option<impl Send + 'static>) {
        self.replaced.extend(earlier.map(|earlier| Box::new(earlier) as Box<dyn Send>));
    }

    fn leases_to(&self, caller: Caller) -> bool {
        !self.leasing_ended && (!self.leasing_ended_outside || caller.inside)
    }

    /// Whether this attempt failed since the generation before the present one was made.
    fn has_failed(&self, attempt: u64) -> bool {
        let between = |before, after| before < attempt && attempt < after;
        between(self.made_before, self.made) || between(self.made, self.attempt)
    }

    fn is_in_flight(&self) -> bool {
        self.state == State::Connecting && self.in_flight
    }

    fn is_connecting(&self, attempt: u64) -> bool {
        self.state == State::Connecting && self.attempt == attempt
    }

    /// Whether this attempt is connecting, or pausing in a recovery.
    fn is_trying(&self, attempt: u64) -> bool {
        self.is_connecting(attempt) || self.state == State::Broken && self.recovering && self.attempt == attempt
    }
}

#[cfg(all(test, not(model)))]
mod tests;
