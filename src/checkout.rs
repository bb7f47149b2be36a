//! Exclusive checkouts: connections each of which has one user at a time, out of any adapter for r2d2.
//!
//! All is decided under one lock, by one rule: nobody waits while a connection lies idle. What is given back goes
//! straight to whoever has waited longest, so that nobody starves, and is had at once where nobody waits.
//!
//! Connections are opened only while somebody waits, on threads that no user occupies: one at first, and one more at
//! a time for each that was opened while others still wait, as TCP starts. So a burst that is soon over opens one or
//! two, and one that keeps what it gets has all it needs in a logarithmic number of steps.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use r2d2::ManageConnection;
use tokio::runtime::Handle;

use crate::clock::Moment;
use crate::error::{BoxError, Error, Source, panic_message};
use crate::lease::{Claim, Lease};
use crate::resource::Link;
use crate::runtime::{LONGEST, block, park_until, prober};
use crate::status::Usage;
use crate::sync::{Mutex, MutexGuard};
use crate::wait::Quota;

/// A connection in the hands of its only user; derefs to it. Goes back when it drops, or is closed where the adapter says
/// that it is broken.
#[must_use = "the connection goes back when this drops"]
pub struct Checkout<M: ManageConnection> {
    entry: Option<Box<Entry<M>>>,
    /// How it is known to be held.
    pub(crate) lease: Lease<Checkouts<M>>,
}

impl<M: ManageConnection> Checkout<M> {
    /// One that is free now, and needs no test.
    pub(crate) fn now(lease: Lease<Checkouts<M>>) -> Option<Self> {
        Some(Checkout { entry: Some(lease.core.try_get()?), lease })
    }

    /// Waits for one, where this thread may block. The claim is the one of whoever waits.
    ///
    /// # Errors
    /// [`Error::Timeout`] with the holders, and what kept connections from being opened; why there are none at all;
    /// [`Error::Deadlock`]; [`Error::InAsyncContext`].
    pub(crate) fn by(lease: Lease<Checkouts<M>>, claim: Claim, deadline: Instant) -> Result<Self, Error> {
        let wait = lease.quota.wait(claim)?;
        let got = block(&lease.core.resource, || lease.core.get(deadline))?;
        let entry = got.map_err(|ended| match ended {
            Ended::Refused(error) => error,
            Ended::TimedOut(cause) => Error::Timeout(Arc::new(wait.timed_out(cause))),
        })?;
        Ok(Checkout { entry: Some(entry), lease })
    }

    /// Whether it is one of those.
    pub(crate) fn is_of(&self, checkouts: &Checkouts<M>) -> bool {
        Arc::ptr_eq(&self.lease.core, &checkouts.core)
    }

    /// Lends it to a closure, and gives it back after that. What a closure has, only its thread can free, so that a wait
    /// for it on this thread is [`Error::Deadlock`] at once instead of a timeout later.
    pub fn lend<T>(mut self, run: impl FnOnce(&mut M::Connection) -> T) -> T {
        let _lending = self.lease.quota.lend();
        run(&mut self)
    }
}

impl<M: ManageConnection> fmt::Debug for Checkout<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkout").field("lease", &self.lease).finish_non_exhaustive()
    }
}

impl<M: ManageConnection> Deref for Checkout<M> {
    type Target = M::Connection;
    fn deref(&self) -> &M::Connection {
        match &self.entry {
            Some(entry) => &entry.connection,
            None => unreachable!("only its drop takes it"),
        }
    }
}

impl<M: ManageConnection> DerefMut for Checkout<M> {
    fn deref_mut(&mut self) -> &mut M::Connection {
        match &mut self.entry {
            Some(entry) => &mut entry.connection,
            None => unreachable!("only its drop takes it"),
        }
    }
}

impl<M: ManageConnection> Drop for Checkout<M> {
    fn drop(&mut self) {
        let Some(entry) = self.entry.take() else { return };
        if self.lease.link.process.is_current() {
            self.lease.core.put(entry);
        } else {
            // The connection is the parent's.
            std::mem::forget(entry);
        }
    }
}

/// The connections of one resource that are checked out one by one.
pub(crate) struct Checkouts<M: ManageConnection> {
    core: Arc<Core<M>>,
    pub(crate) quota: Arc<Quota>,
    link: Link,
}

/// How many there may be, and for how long. Zero is without.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) max: usize,
    pub(crate) min_idle: usize,
    pub(crate) idle_timeout: Duration,
    pub(crate) max_lifetime: Duration,
    /// What was checked out within this time is not tested.
    pub(crate) test_after: Duration,
}

impl Limits {
    /// The pause between two looks for what is idle for too long, or worn.
    fn interval(&self) -> Option<Duration> {
        let limits = [self.idle_timeout, self.max_lifetime];
        let shortest = limits.into_iter().filter(|limit| !limit.is_zero()).min()?;
        Some((shortest / 8).clamp(Duration::from_millis(10), Duration::from_secs(10)))
    }
}

impl<M: ManageConnection> Checkouts<M> {
    /// Lives on this task's runtime. `tell` makes of the driver's errors what users may see.
    pub(crate) fn new(
        link: &Link,
        manager: Arc<M>,
        limits: Limits,
        quota: Arc<Quota>,
        tell: impl Fn(M::Error) -> BoxError + Send + Sync + 'static,
    ) -> Self {
        let (runtime, retry, interval) = (Handle::current(), link.retry.clone(), limits.interval());
        let start = move |opening| open(runtime.clone(), retry.effort(true).0, opening);
        let core = Core::new(Arc::clone(link.name()), manager, limits, tell, start);
        if let Some(interval) = interval {
            tokio::spawn(reap(Arc::downgrade(&core), interval));
        }
        Checkouts { core, quota, link: link.clone() }
    }

    /// One that was opened to see whether that can be done.
    pub(crate) fn admit(&self, connection: M::Connection) {
        let woken = self.core.admit(&mut self.core.state.lock(), connection);
        wake(woken);
    }

    /// The connection is cut: whoever waits is told why, and everybody from now on.
    pub(crate) fn refuse(&self) -> Idle<M> {
        let closing = || Error::Closing { resource: Arc::clone(&self.core.resource) };
        self.core.refuse(self.link.trouble().unwrap_or_else(closing), false)
    }

    /// None of those that there are is handed out again; whoever waits is given a new one.
    #[cfg(feature = "redis")]
    pub(crate) fn retire(&self) -> Idle<M> {
        self.core.retire()
    }

    /// The connection is back.
    pub(crate) fn accept(&self) {
        self.core.accept();
    }

    /// Refuses for good, as closed.
    pub(crate) fn close(&self) -> Idle<M> {
        self.core.refuse(Error::Closed { resource: Arc::clone(&self.core.resource) }, true)
    }

    pub(crate) fn usage(&self) -> Usage {
        let state = self.core.state.lock();
        let (open, idle) = (state.open, state.idle.len());
        Usage {
            max: Some(self.core.limits.max),
            open: Some(open),
            idle: Some(idle),
            in_use: Some(open - idle),
            waiting: Some(state.waiters.len()),
            ..Usage::default()
        }
    }
}

/// Opens one where that may block, and users do not; if it fails, again after a pause, for as long as somebody waits.
fn open<M: ManageConnection>(
    runtime: Handle,
    mut pauses: impl Iterator<Item = Duration> + Send + 'static,
    opening: Opening<M>,
) {
    let later = runtime.clone();
    prober().unwrap_or(&runtime.clone()).spawn_blocking(move || {
        let _context = runtime.enter();
        let Some(failed) = opening.run() else { return };
        let pause = pauses.next().unwrap_or_default();
        later.clone().spawn(async move {
            tokio::time::sleep(pause).await;
            open(later, pauses, failed);
        });
    });
}

/// Closes what is idle for too long, or worn, until the pool of it is gone.
async fn reap<M: ManageConnection>(core: Weak<Core<M>>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(core) = core.upgrade() else { return };
        let gone = core.reap(Moment::coarse());
        if !gone.is_empty() {
            // A driver's goodbye may block.
            tokio::task::spawn_blocking(|| drop(gone));
        }
    }
}

/// What all of this is about, without runtime and books.
pub(crate) struct Core<M: ManageConnection> {
    resource: Arc<str>,
    manager: Arc<M>,
    limits: Limits,
    tell: Box<dyn Fn(M::Error) -> BoxError + Send + Sync>,
    /// Carries an opening out, without waiting for it.
    start: Box<dyn Fn(Opening<M>) + Send + Sync>,
    state: Mutex<State<M>>,
}

struct State<M: ManageConnection> {
    /// The one used last on top.
    idle: Idle<M>,
    /// The first has waited longest. None while there is something idle.
    waiters: VecDeque<Arc<Waiter<M>>>,
    /// How many are idle or checked out.
    open: usize,
    opening: usize,
    /// How often there was an end to all: what was being opened then is nobody's, even if it hangs for ever, and what was
    /// out is closed when it comes back.
    ends: u64,
    /// How many may be opened at a time.
    width: usize,
    /// How many ever were opened.
    opened: usize,
    /// Why the last one could not be opened, or had to be given up, as far as that explains a wait of now.
    failure: Option<Source>,
    /// Why there are none.
    refused: Option<Error>,
    is_closed: bool,
}

pub(crate) struct Entry<M: ManageConnection> {
    connection: M::Connection,
    checked_out: Moment,
    opened: Moment,
    /// How long it may be used.
    lifetime: Duration,
    /// When it was first seen lying idle.
    idle: Option<Moment>,
    /// How many ends there were as it was opened.
    ends: u64,
}

impl<M: ManageConnection> Entry<M> {
    fn is_worn(&self, now: Moment) -> bool {
        now.since(self.opened) >= self.lifetime
    }
}

/// One that is not to be used, and what its test said.
pub(crate) struct Unfit<M: ManageConnection> {
    entry: Box<Entry<M>>,
    cause: Option<Source>,
}

/// Where somebody waits for a connection.
struct Waiter<M: ManageConnection>(Mutex<Cell<M>>);

struct Cell<M: ManageConnection> {
    answer: Option<Answer<M>>,
    waker: Option<Waker>,
}

pub(crate) type Answer<M> = Result<Box<Entry<M>>, Error>;

/// What lay idle: to be dropped where a driver's goodbye may block.
pub(crate) type Idle<M> = Vec<Box<Entry<M>>>;

/// How a wait ended without a connection.
enum Ended {
    Refused(Error),
    TimedOut(Option<Source>),
}

impl<M: ManageConnection> Core<M> {
    pub(crate) fn new(
        resource: Arc<str>,
        manager: Arc<M>,
        limits: Limits,
        tell: impl Fn(M::Error) -> BoxError + Send + Sync + 'static,
        start: impl Fn(Opening<M>) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let state = State {
            idle: Vec::new(),
            waiters: VecDeque::new(),
            open: 0,
            opening: 0,
            ends: 0,
            width: 1,
            opened: 0,
            failure: None,
            refused: None,
            is_closed: false,
        };
        let (tell, start) = (Box::new(tell), Box::new(start));
        Arc::new(Core { resource, manager, limits, tell, start, state: Mutex::new(state) })
    }

    /// One that lies idle and needs no test.
    fn try_get(self: &Arc<Self>) -> Option<Box<Entry<M>>> {
        let now = Moment::coarse();
        let mut state = self.state.lock();
        let mut entry = state.idle.pop_if(|entry| !entry.is_worn(now) && !self.needs_test(entry, now))?;
        let begun = (state.idle.len() < self.limits.min_idle).then(|| self.demand(&mut state));
        drop(state);
        if let Some(begun) = begun {
            self.begin(begun);
        }
        if self.is_broken(&mut entry) {
            self.forget(self.state.lock(), Unfit { entry, cause: None });
            return None;
        }
        entry.checked_out = now;
        Some(entry)
    }

    /// Waits until one is free, the time is up, or there is none to wait for. A test that has begun is waited for.
    fn get(self: &Arc<Self>, deadline: Instant) -> Result<Box<Entry<M>>, Ended> {
        let mut unfit = None;
        loop {
            let mut waiting = self.wait(unfit.take());
            let answer = match park_until(&mut waiting, deadline) {
                Some(answer) => answer,
                None => waiting.give_up().map_err(Ended::TimedOut)?,
            };
            match self.fit(answer.map_err(Ended::Refused)?) {
                Ok(fit) => return Ok(fit),
                Err(bad) if Instant::now() < deadline => unfit = Some(bad),
                Err(bad) => {
                    let cause = bad.cause.clone();
                    self.forget(self.state.lock(), bad);
                    return Err(Ended::TimedOut(cause));
                }
            }
        }
    }

    /// Waits for one, untested. Whoever was given one that is unfit goes first.
    pub(crate) fn wait(self: &Arc<Self>, unfit: Option<Unfit<M>>) -> Waiting<'_, M> {
        let waiter = Arc::new(Waiter(Mutex::new(Cell { answer: None, waker: None })));
        let mut state = self.state.lock();
        let again = unfit.is_some();
        let gone = unfit.map(|unfit| state.forget(unfit));
        if let Some(error) = &state.refused {
            waiter.0.lock().answer = Some(Err(error.clone()));
        } else if let Some(entry) = state.idle.pop() {
            waiter.0.lock().answer = Some(Ok(entry));
        } else if again {
            state.waiters.push_front(Arc::clone(&waiter));
        } else {
            if state.opening == 0 {
                // What failed before anybody waited explains nothing.
                state.failure = None;
            }
            state.waiters.push_back(Arc::clone(&waiter));
        }
        let begun = self.demand(&mut state);
        drop(state);
        self.begin(begun);
        drop(gone);
        Waiting { core: self, waiter, is_over: false }
    }

    /// One that has just been opened.
    #[must_use = "they are to be woken outside of the lock"]
    fn admit(&self, state: &mut State<M>, connection: M::Connection) -> Option<Waker> {
        state.open += 1;
        state.opened += 1;
        let (now, ends) = (Moment::coarse(), state.ends);
        // Not all of them at once; 61 has no divisor in common with 100, so that neighbours are far apart.
        let spread = (state.opened % 100 * 61 % 100) as f64 / 1000.0;
        let lifetime = match self.limits.max_lifetime {
            Duration::ZERO => Duration::MAX,
            longest => longest.min(LONGEST).mul_f64(1.0 - spread),
        };
        state.hand_over(Box::new(Entry { connection, checked_out: now, opened: now, lifetime, idle: None, ends }))
    }

    /// Takes one back.
    pub(crate) fn put(self: &Arc<Self>, mut entry: Box<Entry<M>>) {
        let is_broken = self.is_broken(&mut entry);
        let mut state = self.state.lock();
        if is_broken || entry.ends != state.ends {
            return self.forget(state, Unfit { entry, cause: None });
        }
        let woken = state.hand_over(entry);
        drop(state);
        wake(woken);
    }

    /// One that is not handed out again.
    fn forget(self: &Arc<Self>, mut state: MutexGuard<'_, State<M>>, unfit: Unfit<M>) {
        let gone = state.forget(unfit);
        let begun = self.demand(&mut state);
        drop(state);
        self.begin(begun);
        drop(gone);
    }

    /// Whether it can be used.
    fn fit(&self, mut entry: Box<Entry<M>>) -> Result<Box<Entry<M>>, Unfit<M>> {
        let now = Moment::coarse();
        if self.is_broken(&mut entry) || entry.is_worn(now) {
            return Err(Unfit { entry, cause: None });
        }
        if self.needs_test(&entry, now)
            && let Err(cause) = self.tried(|manager| manager.is_valid(&mut entry.connection))
        {
            return Err(Unfit { entry, cause: Some(cause) });
        }
        entry.checked_out = now;
        Ok(entry)
    }

    fn needs_test(&self, entry: &Entry<M>, now: Moment) -> bool {
        now.since(entry.checked_out) >= self.limits.test_after
    }

    fn is_broken(&self, entry: &mut Entry<M>) -> bool {
        catch_unwind(AssertUnwindSafe(|| self.manager.has_broken(&mut entry.connection))).unwrap_or(true)
    }

    /// What the adapter answers; a panic is an error too.
    fn tried<T>(&self, run: impl FnOnce(&M) -> Result<T, M::Error>) -> Result<T, Source> {
        match catch_unwind(AssertUnwindSafe(|| run(&self.manager))) {
            Ok(answer) => answer.map_err(|error| (self.tell)(error).into()),
            Err(panic) => Err(BoxError::from(format!("it panicked: {}", panic_message(&*panic))).into()),
        }
    }

    /// Who would have use for one more.
    fn wanted(&self, state: &State<M>) -> usize {
        if state.refused.is_some() {
            return 0;
        }
        state.waiters.len().max(self.limits.min_idle.saturating_sub(state.idle.len()))
    }

    /// So many are to be opened in addition, and count as being opened from here on.
    fn demand(&self, state: &mut State<M>) -> Begun {
        let room = self.limits.max.saturating_sub(state.open + state.opening);
        let count = self.wanted(state).min(state.width).saturating_sub(state.opening).min(room);
        state.opening += count;
        Begun { count, ends: state.ends }
    }

    /// Not under the lock, which what cannot be carried out takes as it drops.
    fn begin(self: &Arc<Self>, begun: Begun) {
        for _ in 0..begun.count {
            (self.start)(Opening { core: Arc::clone(self), ends: begun.ends, is_over: false });
        }
    }

    /// Answers whoever waits with this, and everybody from now on.
    #[must_use = "it is to be dropped where a driver's goodbye may block"]
    pub(crate) fn refuse(&self, error: Error, for_good: bool) -> Idle<M> {
        let mut state = self.state.lock();
        if !state.is_closed {
            state.refused = Some(error.clone());
            state.is_closed = for_good;
        }
        state.opening = 0;
        state.ends += 1;
        let idle = std::mem::take(&mut state.idle);
        state.open -= idle.len();
        let answered = std::mem::take(&mut state.waiters).into_iter().map(|waiter| waiter.answer(Err(error.clone())));
        let woken: Vec<_> = answered.collect();
        drop(state);
        woken.into_iter().for_each(wake);
        idle
    }

    /// Replaces those that there are, on demand.
    #[cfg(feature = "redis")]
    #[must_use = "it is to be dropped where a driver's goodbye may block"]
    fn retire(self: &Arc<Self>) -> Idle<M> {
        let mut state = self.state.lock();
        state.opening = 0;
        state.ends += 1;
        let idle = std::mem::take(&mut state.idle);
        state.open -= idle.len();
        let begun = self.demand(&mut state);
        drop(state);
        self.begin(begun);
        idle
    }

    /// There are some again.
    pub(crate) fn accept(&self) {
        let mut state = self.state.lock();
        if !state.is_closed {
            state.refused = None;
            state.width = 1;
        }
    }

    /// Takes out what is idle for too long, or worn.
    fn reap(self: &Arc<Self>, now: Moment) -> Idle<M> {
        let Limits { idle_timeout, min_idle, .. } = self.limits;
        let mut state = self.state.lock();
        let mut spare = if idle_timeout.is_zero() { 0 } else { state.idle.len().saturating_sub(min_idle) };
        let gone: Vec<_> = state
            .idle
            .extract_if(.., |entry| {
                let is_late = now.since(*entry.idle.get_or_insert(now)) >= idle_timeout && spare > 0;
                if is_late {
                    spare -= 1;
                }
                is_late || entry.is_worn(now)
            })
            .collect();
        state.open -= gone.len();
        let begun = self.demand(&mut state);
        drop(state);
        self.begin(begun);
        gone
    }
}

#[cfg(model)]
impl<M: ManageConnection> Core<M> {
    /// What holds once nobody waits and nothing is out.
    pub(crate) fn check_idle(&self) {
        let state = self.state.lock();
        assert_eq!((state.waiters.len(), state.opening), (0, 0), "waiting, being opened");
        assert_eq!(state.open, state.idle.len(), "open and lost");
        assert!(state.open <= self.limits.max);
    }
}

#[cfg(model)]
impl<M: ManageConnection> Entry<M> {
    pub(crate) fn spoil(&mut self, spoil: impl FnOnce(&mut M::Connection)) {
        spoil(&mut self.connection);
    }
}

impl<M: ManageConnection> State<M> {
    /// What is not handed out again. To be dropped outside of the lock, where a driver's goodbye may block.
    fn forget(&mut self, Unfit { entry, cause }: Unfit<M>) -> impl Sized + use<M> {
        self.open -= 1;
        (entry, cause.and_then(|cause| self.failure.replace(cause)))
    }

    /// To whoever has waited longest.
    #[must_use = "they are to be woken outside of the lock"]
    fn hand_over(&mut self, mut entry: Box<Entry<M>>) -> Option<Waker> {
        match self.waiters.pop_front() {
            Some(waiter) => waiter.answer(Ok(entry)),
            None => {
                entry.idle = None;
                self.idle.push(entry);
                None
            }
        }
    }
}

impl<M: ManageConnection> Waiter<M> {
    #[must_use = "it is to be woken outside of locks"]
    fn answer(&self, answer: Answer<M>) -> Option<Waker> {
        let mut cell = self.0.lock();
        cell.answer = Some(answer);
        cell.waker.take()
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// So many openings, to be carried out outside of the lock.
#[must_use = "they are waited for"]
struct Begun {
    count: usize,
    ends: u64,
}

/// Somebody waits, by thread or by task. Whoever is given one and is gone has given it back.
pub(crate) struct Waiting<'a, M: ManageConnection> {
    core: &'a Arc<Core<M>>,
    waiter: Arc<Waiter<M>>,
    is_over: bool,
}

impl<M: ManageConnection> Waiting<'_, M> {
    /// Stops waiting: what was given meanwhile, or else why there was none.
    fn give_up(&mut self) -> Result<Answer<M>, Option<Source>> {
        self.is_over = true;
        let mut state = self.core.state.lock();
        if let Some(place) = state.waiters.iter().position(|one| Arc::ptr_eq(one, &self.waiter)) {
            state.waiters.remove(place);
            return Err(state.failure.clone());
        }
        drop(state);
        // Answers are given under the lock, as one leaves the queue.
        self.waiter.0.lock().answer.take().ok_or(None)
    }
}

impl<M: ManageConnection> Future for Waiting<'_, M> {
    type Output = Answer<M>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer<M>> {
        let mut cell = self.waiter.0.lock();
        let Some(answer) = cell.answer.take() else {
            cell.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        drop(cell);
        self.is_over = true;
        Poll::Ready(answer)
    }
}

impl<M: ManageConnection> Drop for Waiting<'_, M> {
    fn drop(&mut self) {
        if !self.is_over
            && let Ok(Ok(entry)) = self.give_up()
        {
            self.core.put(entry);
        }
    }
}

/// A connection that is being opened, until this is carried out; one that never is, for its runtime has ended, is
/// accounted for as well.
pub(crate) struct Opening<M: ManageConnection> {
    core: Arc<Core<M>>,
    /// How many there were as it was begun.
    ends: u64,
    is_over: bool,
}

impl<M: ManageConnection> Opening<M> {
    /// Opens it, if it is still wanted. Comes back where that failed and is to be tried again.
    pub(crate) fn run(mut self) -> Option<Self> {
        let core = Arc::clone(&self.core);
        let mut state = core.state.lock();
        if self.ends != state.ends || core.wanted(&state) == 0 {
            state.width = 1;
            self.end(&mut state);
        }
        drop(state);
        if self.is_over {
            return None;
        }
        let opened = core.tried(M::connect);
        if let Err(error) = &opened {
            tracing::debug!(resource = %core.resource, %error, "a connection could not be opened");
        }
        let mut state = core.state.lock();
        if self.ends != state.ends {
            self.is_over = true;
            drop(state);
            drop(opened);
            return None;
        }
        match opened {
            Ok(connection) => {
                self.end(&mut state);
                let failure = state.failure.take();
                let woken = core.admit(&mut state, connection);
                match core.wanted(&state) {
                    0 => state.width = 1,
                    wanted if wanted > state.opening => state.width = (state.width + 1).min(core.limits.max),
                    _ => {}
                }
                let begun = core.demand(&mut state);
                drop(state);
                wake(woken);
                core.begin(begun);
                drop(failure);
                None
            }
            Err(cause) => {
                state.failure = Some(cause);
                state.width = 1;
                if state.opening == 1 && core.wanted(&state) > 0 {
                    return Some(self);
                }
                self.end(&mut state);
                None
            }
        }
    }

    /// No longer counted.
    fn end(&mut self, state: &mut State<M>) {
        self.is_over = true;
        if self.ends == state.ends {
            state.opening -= 1;
        }
    }
}

impl<M: ManageConnection> Drop for Opening<M> {
    fn drop(&mut self) {
        if !self.is_over {
            let core = Arc::clone(&self.core);
            let mut state = core.state.lock();
            self.end(&mut state);
            state.failure.get_or_insert_with(|| BoxError::from("the pool's runtime has ended").into());
        }
    }
}
