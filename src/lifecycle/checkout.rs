//! Exclusive checkouts: connections each of which has one user at a time, out of any adapter for r2d2.
//!
//! All is decided under one lock, by one rule: nobody waits while a connection lies idle. What is given back goes
//! straight to whoever has waited longest, so that nobody starves, and is had at once where nobody waits.
//!
//! Connections are opened only while somebody waits, on threads that no user occupies: one at first, and one more at
//! a time for each that was opened while others still wait, as TCP starts. So a burst that is soon over opens one or
//! two, and one that keeps what it gets has all it needs in a logarithmic number of steps. After an opening that failed, or
//! whose connection fails its first test, the next one follows after a pause.
//!
//! The prober borrows a connection that lies idle, so that it adds none. Nobody is to see that: whoever comes meanwhile is
//! given it once the ping is over, before another one is opened, and even where a wait is refused. No user pays for a
//! driver's goodbye: connections are dropped on threads of ours.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use r2d2::ManageConnection;
use tokio::runtime::Handle;

use crate::base::clock::Moment;
use crate::base::error::{BoxError, Error, Failure, ReconnectAsked, Source, panic_message};
use crate::base::process::Process;
use crate::base::retry::Retry;
use crate::base::runtime::{LONGEST, block, park_until, prober, thread};
use crate::base::sync::{Mutex, MutexGuard};
use crate::lifecycle::activity::Activity;
use crate::lifecycle::lease::{Claim, Lease};
use crate::lifecycle::link::Link;
use crate::lifecycle::status::Usage;
use crate::lifecycle::wait::Quota;

/// A connection in the hands of its only user; derefs to it. Goes back when it drops, or is closed, on a thread of the
/// pool's, where the adapter says that it is broken.
#[must_use = "the connection goes back when this drops"]
pub struct Checkout<M: ManageConnection> {
    taken: Taken<M>,
    /// How it is known to be held.
    pub(crate) lease: Lease<Checkouts<M>>,
}

impl<M: ManageConnection> Checkout<M> {
    /// One that is free now, and needs no test.
    pub(crate) fn now(lease: Lease<Checkouts<M>>) -> Option<Self> {
        let entry = lease.core.try_get()?;
        Some(Checkout { taken: Taken::new(&lease.core, entry, lease.link.process), lease })
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
        match &self.taken.entry {
            Some(entry) => &entry.connection,
            None => unreachable!("only its drop takes it"),
        }
    }
}

impl<M: ManageConnection> DerefMut for Checkout<M> {
    fn deref_mut(&mut self) -> &mut M::Connection {
        match &mut self.taken.entry {
            Some(entry) => &mut entry.connection,
            None => unreachable!("only its drop takes it"),
        }
    }
}

/// A connection that was taken out, and goes back when this drops.
pub(crate) struct Taken<M: ManageConnection> {
    core: Arc<Core<M>>,
    entry: Option<Box<Entry<M>>>,
    process: &'static Process,
}

impl<M: ManageConnection> Taken<M> {
    fn new(core: &Arc<Core<M>>, entry: Box<Entry<M>>, process: &'static Process) -> Self {
        Taken { core: Arc::clone(core), entry: Some(entry), process }
    }

    /// Has it held by this lease; none, where the resource was lost, or closed and connected anew, since it was taken.
    pub(crate) fn under(self, lease: Lease<Checkouts<M>>) -> Option<Checkout<M>> {
        let ends = self.entry.as_ref().map(|entry| entry.ends);
        let is_present = Arc::ptr_eq(&self.core, &lease.core) && ends == Some(self.core.state.lock().ends);
        is_present.then_some(Checkout { taken: self, lease })
    }
}

impl<M: ManageConnection> Drop for Taken<M> {
    fn drop(&mut self) {
        let Some(entry) = self.entry.take() else { return };
        if self.process.is_current() {
            self.core.put(entry);
        } else {
            // The connection is the parent's.
            std::mem::forget(entry);
        }
    }
}

/// Where to wait for a connection. Whoever waits here holds nothing.
pub(crate) struct Queue<M: ManageConnection> {
    core: Arc<Core<M>>,
    quota: Arc<Quota>,
    link: Link,
}

impl<M: ManageConnection> Queue<M> {
    /// Waits for one, where this thread may block. The claim is the one of whoever waits. None where it is for the
    /// resource to tell why there is none, so that it has to be acquired anew.
    ///
    /// # Errors
    /// [`Error::Timeout`] with the holders, and what kept connections from being opened; why there are none at all;
    /// [`Error::Deadlock`]; [`Error::InAsyncContext`].
    pub(crate) fn take(self, claim: Claim, deadline: Instant) -> Result<Option<Taken<M>>, Error> {
        let wait = self.quota.wait(claim)?;
        let got = match block(&self.core.resource, || self.core.get(deadline)) {
            Ok(got) => got,
            Err(may_not_wait) => self.core.regain(deadline).ok_or(may_not_wait)?,
        };
        match got {
            Ok(entry) => Ok(Some(Taken::new(&self.core, entry, self.link.process))),
            Err(Ended::Refused(Refusal::AskAnew)) => Ok(None),
            Err(Ended::Refused(Refusal::Because(error))) => Err(error),
            Err(Ended::Refused(Refusal::MayNotWait)) => {
                Err(Error::InAsyncContext { resource: Arc::clone(&self.core.resource) })
            }
            Err(Ended::TimedOut(cause)) => {
                let trouble = || self.link.trouble().map(|error| Arc::new(error) as Source);
                Err(Error::Timeout(Arc::new(wait.timed_out(cause.or_else(trouble)))))
            }
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
        let (runtime, activity, interval) = (Handle::current(), Arc::clone(&link.activity), limits.interval());
        let start = move |job, pause| start(&runtime, &activity, job, pause);
        let core = Core::new(Arc::clone(link.name()), manager, limits, link.retry.clone(), tell, start);
        if let Some(interval) = interval {
            tokio::spawn(reap(Arc::downgrade(&core), interval));
        }
        Checkouts { core, quota, link: link.clone() }
    }

    /// Where to wait for one.
    pub(crate) fn queue(&self) -> Queue<M> {
        Queue { core: Arc::clone(&self.core), quota: Arc::clone(&self.quota), link: self.link.clone() }
    }

    /// To ask the server over a connection of these.
    ///
    /// # Errors
    /// What the openings that are under way prove, where users have all others.
    pub(crate) fn loan(&self) -> Result<Loan<M>, Failure> {
        self.core.loan(self.link.patience)
    }

    /// None of those that there are is handed out again; whoever waits is given a new one.
    #[cfg(feature = "redis")]
    pub(crate) fn retire(&self) {
        self.core.retire();
    }

    /// To ask over a new connection, which is the first of all once these are [accepted](Self::accept). What asks for an
    /// earlier one is nobody's.
    pub(crate) fn first(&self) -> Loan<M> {
        self.core.first()
    }

    /// The connection is cut: whoever waits is told why, and everybody from now on; unless a reconnect was asked for, which
    /// they wait out.
    pub(crate) fn refuse(&self) {
        match self.link.trouble() {
            Some(Error::Lost { source, .. }) if source.is::<ReconnectAsked>() => self.core.suspend(),
            Some(_) if self.core.is_suspended() => {}
            trouble => {
                let closing = || Error::Closing { resource: Arc::clone(&self.core.resource) };
                self.core.refuse(Refusal::Because(trouble.unwrap_or_else(closing)), false);
            }
        }
    }

    /// The reconnect that was asked for has failed for good: nobody waits it out any longer.
    pub(crate) fn give_up(&self) {
        self.core.give_up();
    }

    /// The connection is there, or back.
    pub(crate) fn accept(&self) {
        self.core.accept();
    }

    /// Refuses for good, as closed, and waits until the goodbyes are said.
    ///
    /// # Cancel safety
    /// They are said all the same.
    pub(crate) async fn close(&self) {
        self.core.refuse(self.core.closed(), true);
        self.link.activity.until(|| self.core.has_said_goodbyes().then_some(())).await;
    }

    pub(crate) fn usage(&self) -> Usage {
        let state = self.core.state.lock();
        // What the prober has is not in use.
        let (open, idle) = (state.open, state.idle.len() + state.lent);
        Usage {
            max: Some(self.core.limits.max),
            open: Some(open),
            idle: Some(idle),
            in_use: Some(open - idle),
            waiting: Some(state.waiters.len() + usize::from(state.heir.is_some())),
            ..Usage::default()
        }
    }
}

impl<M: ManageConnection> Drop for Checkouts<M> {
    fn drop(&mut self) {
        // What is still being opened is nobody's.
        if self.link.process.is_current() {
            self.core.refuse(self.core.closed(), true);
        }
    }
}

/// Carries a job out after a pause, where that may block and users do not.
fn start<M: ManageConnection>(runtime: &Handle, activity: &Arc<Activity>, job: Job<M>, pause: Duration) {
    let (runtime, activity) = (runtime.clone(), Arc::clone(activity));
    let prober = prober().unwrap_or(&runtime).clone();
    let call = move |job: Job<M>| {
        let _context = runtime.enter();
        job.run();
        activity.changed();
    };
    prober.spawn(async move {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        match thread(call) {
            Ok(thread) => drop(thread.send(job)),
            Err(error) => job.find_no_thread(error),
        }
    });
}

/// Closes what is idle for too long, or worn, until the pool of it is gone.
async fn reap<M: ManageConnection>(core: Weak<Core<M>>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(core) = core.upgrade() else { return };
        core.reap(Moment::coarse());
    }
}

/// What all of this is about, without runtime and books.
pub(crate) struct Core<M: ManageConnection> {
    resource: Arc<str>,
    manager: Arc<M>,
    limits: Limits,
    tell: Box<dyn Fn(M::Error) -> BoxError + Send + Sync>,
    retry: Retry,
    /// Carries a job out after a pause, without waiting for it.
    start: Box<dyn Fn(Job<M>, Duration) + Send + Sync>,
    state: Mutex<State<M>>,
}

struct State<M: ManageConnection> {
    /// The one used last on top.
    idle: Vec<Box<Entry<M>>>,
    /// The first has waited longest. None while there is something idle.
    waiters: VecDeque<Arc<Waiter<M>>>,
    /// How many are idle, checked out or lent.
    open: usize,
    /// How many of them the prober has.
    lent: usize,
    /// The one that it took from the idle ones, while it asks over that.
    borrowed: Option<Borrowed>,
    /// Whoever waits for that one, and for none that is yet to be opened.
    heir: Option<Arc<Waiter<M>>>,
    opening: usize,
    /// Since when openings that are under way have had no answer.
    unanswered: Option<Instant>,
    /// How often there was an end to all: what was being opened then is nobody's, even if it hangs for ever, and what was
    /// out is closed when it comes back.
    ends: u64,
    /// How many may be opened at a time.
    width: usize,
    /// How many ever were opened.
    opened: usize,
    /// How many openings in a row led to nothing, and until when the next one pauses.
    setbacks: u32,
    pausing: Option<Instant>,
    /// Why the last one could not be opened, or had to be given up, as far as that explains a wait of now.
    failure: Option<Source>,
    /// Why there are none.
    refused: Option<Refusal>,
    /// There are none yet, or none just now, and whoever waits goes on waiting.
    suspended: bool,
    is_closed: bool,
    /// What is to be dropped, for one of the threads that do that.
    leaving: VecDeque<Box<Entry<M>>>,
    /// How many threads do, each with one.
    parting: usize,
}

/// A connection that was free until the prober took it.
#[derive(Clone, Copy)]
struct Borrowed {
    /// Until when those who wait reckon with it.
    until: Instant,
    /// Whether it could have been had without a test.
    is_free: bool,
}

/// For so long a ping of the prober's keeps another connection from being opened.
const PING: Duration = Duration::from_millis(250);
/// How many goodbyes may be said, or hang, at a time. As many connections as there may be wait for that; beyond those none
/// are opened.
const GOODBYES: usize = 8;
/// After this, a goodbye that found no thread looks for one again.
const AGAIN: Duration = Duration::from_secs(1);
/// What fails its first test this soon counts as not opened.
const YOUNG: Duration = Duration::from_secs(1);

pub(crate) struct Entry<M: ManageConnection> {
    connection: M::Connection,
    /// When it was last.
    checked_out: Option<Moment>,
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

    /// Whether it was opened in vain, if it is unfit.
    fn is_fresh(&self, now: Moment) -> bool {
        self.checked_out.is_none() && now.since(self.opened) < YOUNG
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

pub(crate) type Answer<M> = Result<Box<Entry<M>>, Refusal>;

/// Why whoever waits is given none.
#[derive(Debug, Clone)]
pub(crate) enum Refusal {
    Because(Error),
    /// The resource knows.
    AskAnew,
    /// It is not free after all, and there is no waiting here until one is.
    MayNotWait,
}

/// How a wait ended without a connection.
enum Ended {
    Refused(Refusal),
    TimedOut(Option<Source>),
}

impl<M: ManageConnection> Core<M> {
    pub(crate) fn new(
        resource: Arc<str>,
        manager: Arc<M>,
        limits: Limits,
        retry: Retry,
        tell: impl Fn(M::Error) -> BoxError + Send + Sync + 'static,
        start: impl Fn(Job<M>, Duration) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let state = State {
            idle: Vec::new(),
            waiters: VecDeque::new(),
            open: 0,
            lent: 0,
            borrowed: None,
            heir: None,
            opening: 0,
            unanswered: None,
            ends: 0,
            width: 1,
            opened: 0,
            setbacks: 0,
            pausing: None,
            failure: None,
            refused: None,
            suspended: true,
            is_closed: false,
            leaving: VecDeque::new(),
            parting: 0,
        };
        let limits = Limits { min_idle: limits.min_idle.min(limits.max), ..limits };
        let (tell, start) = (Box::new(tell), Box::new(start));
        Arc::new(Core { resource, manager, limits, tell, retry, start, state: Mutex::new(state) })
    }

    /// One that lies idle and needs no test.
    fn try_get(self: &Arc<Self>) -> Option<Box<Entry<M>>> {
        let now = Moment::coarse();
        let mut state = self.state.lock();
        let mut entry = state.idle.pop_if(|entry| self.is_free(entry, now))?;
        state.succeed();
        if state.idle.len() < self.limits.min_idle {
            self.settle(state);
        }
        entry.checked_out = Some(now);
        Some(entry)
    }

    /// The same for whoever may not wait, if it was so until the prober borrowed it: that ping is waited for. None where
    /// it was not.
    fn regain(self: &Arc<Self>, deadline: Instant) -> Option<Result<Box<Entry<M>>, Ended>> {
        let waiter = Waiter::new();
        let mut state = self.state.lock();
        let until = if let Some(entry) = state.idle.pop_if(|entry| self.is_free(entry, Moment::coarse())) {
            // It has come back meanwhile.
            waiter.0.lock().answer = Some(Ok(entry));
            deadline
        } else {
            let borrowed = state.borrowed.filter(|borrowed| borrowed.is_free && state.has_no_queue())?;
            state.heir = Some(Arc::clone(&waiter));
            deadline.max(borrowed.until)
        };
        self.settle(state);
        let mut waiting = Waiting { core: self, waiter, is_over: false, ping: None };
        let answer = match park_until(&mut waiting, until) {
            Some(answer) => Ok(answer),
            None => waiting.give_up(),
        };
        match answer {
            Ok(Ok(entry)) => match self.fit(entry) {
                Ok(fit) => Some(Ok(fit)),
                Err(unfit) => {
                    self.close_unfit(unfit);
                    None
                }
            },
            Ok(Err(refusal)) => Some(Err(Ended::Refused(refusal))),
            Err(cause) => Some(Err(Ended::TimedOut(cause))),
        }
    }

    /// Waits until one is free, the time is up, or there is none to wait for. A test that has begun is waited for.
    fn get(self: &Arc<Self>, deadline: Instant) -> Result<Box<Entry<M>>, Ended> {
        let mut unfit = None;
        loop {
            let mut waiting = self.wait(unfit.take());
            let early = match waiting.ping.take() {
                Some(Ping { until, is_ours }) => {
                    let answer = park_until(&mut waiting, if is_ours { until } else { until.min(deadline) });
                    if answer.is_none() {
                        // It takes too long to be reckoned with.
                        self.settle(self.state.lock());
                    }
                    answer
                }
                None => None,
            };
            let answer = match early.or_else(|| park_until(&mut waiting, deadline)) {
                Some(answer) => answer,
                None => waiting.give_up().map_err(Ended::TimedOut)?,
            };
            match self.fit(answer.map_err(Ended::Refused)?) {
                Ok(fit) => return Ok(fit),
                Err(bad) if Instant::now() < deadline => unfit = Some(bad),
                Err(bad) => {
                    let cause = bad.cause.clone();
                    self.close_unfit(bad);
                    return Err(Ended::TimedOut(cause));
                }
            }
        }
    }

    /// Waits for one, untested. Whoever was given one that is unfit goes first.
    pub(crate) fn wait(self: &Arc<Self>, unfit: Option<Unfit<M>>) -> Waiting<'_, M> {
        let waiter = Waiter::new();
        let mut state = self.state.lock();
        let ping = state.borrowed.map(|Borrowed { until, .. }| Ping { until, is_ours: state.has_no_queue() });
        let again = unfit.is_some();
        let replaced = unfit.and_then(|unfit| self.discard(&mut state, unfit));
        if let Some(refusal) = &state.refused {
            waiter.0.lock().answer = Some(Err(refusal.clone()));
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
        self.settle(state);
        drop(replaced);
        Waiting { core: self, waiter, is_over: false, ping }
    }

    /// One that has just been opened.
    fn entry(&self, state: &mut State<M>, connection: M::Connection) -> Box<Entry<M>> {
        state.opened += 1;
        // Not all of them at once; 61 has no divisor in common with 100, so that neighbours are far apart.
        let spread = (state.opened % 100 * 61 % 100) as f64 / 1000.0;
        let lifetime = match self.limits.max_lifetime {
            Duration::ZERO => Duration::MAX,
            longest => longest.min(LONGEST).mul_f64(1.0 - spread),
        };
        let (opened, ends) = (Moment::coarse(), state.ends);
        Box::new(Entry { connection, checked_out: None, opened, lifetime, idle: None, ends })
    }

    /// Takes one back.
    pub(crate) fn put(self: &Arc<Self>, mut entry: Box<Entry<M>>) {
        let is_broken = self.is_broken(&mut entry);
        let mut state = self.state.lock();
        if is_broken || entry.ends != state.ends {
            state.open -= 1;
            state.leaving.push_back(entry);
            return self.settle(state);
        }
        let woken = state.hand_over(entry, true);
        drop(state);
        wake(woken);
    }

    /// Begins what is to be begun now.
    fn settle(self: &Arc<Self>, mut state: MutexGuard<'_, State<M>>) {
        let begun = self.demand(&mut state);
        drop(state);
        self.begin(begun);
    }

    /// What is unfit is closed.
    #[must_use = "it is to be dropped outside of the lock"]
    fn discard(&self, state: &mut State<M>, Unfit { entry, cause }: Unfit<M>) -> Option<Source> {
        if cause.is_some() && entry.is_fresh(Moment::coarse()) {
            self.set_back(state);
        }
        state.open -= 1;
        state.leaving.push_back(entry);
        cause.and_then(|cause| state.failure.replace(cause))
    }

    fn close_unfit(self: &Arc<Self>, unfit: Unfit<M>) {
        let mut state = self.state.lock();
        let replaced = self.discard(&mut state, unfit);
        self.settle(state);
        drop(replaced);
    }

    /// An opening led to nothing.
    fn set_back(&self, state: &mut State<M>) {
        state.setbacks = state.setbacks.saturating_add(1);
        self.pause(state);
    }

    /// The next opening follows after a pause.
    fn pause(&self, state: &mut State<M>) {
        state.width = 1;
        state.pausing = Some(Instant::now() + self.retry.pause(state.setbacks).min(LONGEST));
    }

    /// Whether it can be used.
    fn fit(&self, mut entry: Box<Entry<M>>) -> Result<Box<Entry<M>>, Unfit<M>> {
        let now = Moment::coarse();
        if entry.checked_out.is_some() && entry.is_worn(now) {
            return Err(Unfit { entry, cause: None });
        }
        if self.needs_test(&entry, now)
            && let Err(cause) = self.tried(|manager| manager.is_valid(&mut entry.connection))
        {
            return Err(Unfit { entry, cause: Some(cause) });
        }
        if entry.checked_out.replace(now).is_none() {
            self.state.lock().succeed();
        }
        Ok(entry)
    }

    fn is_free(&self, entry: &Entry<M>, now: Moment) -> bool {
        !entry.is_worn(now) && !self.needs_test(entry, now)
    }

    fn needs_test(&self, entry: &Entry<M>, now: Moment) -> bool {
        now.since(entry.checked_out.unwrap_or(entry.opened)) >= self.limits.test_after
    }

    fn is_broken(&self, entry: &mut Entry<M>) -> bool {
        catch_unwind(AssertUnwindSafe(|| self.manager.has_broken(&mut entry.connection))).unwrap_or(true)
    }

    /// What the adapter answers.
    fn tried<T>(&self, run: impl FnOnce(&M) -> Result<T, M::Error>) -> Result<T, Source> {
        caught(|error| (self.tell)(error).into(), || run(&self.manager))
    }

    /// Who would have use for one more.
    fn wanted(&self, state: &State<M>) -> usize {
        if state.refused.is_some() || state.suspended {
            return 0;
        }
        let coming = state.borrowed.is_some_and(|borrowed| Instant::now() < borrowed.until);
        let waiting = state.waiters.len().saturating_sub(usize::from(coming));
        waiting.max(self.limits.min_idle.saturating_sub(state.idle.len() + state.lent))
    }

    /// How many more may be opened.
    fn room(&self, state: &State<M>) -> usize {
        if state.leaving.len() > self.limits.max {
            return 0;
        }
        self.limits.max.saturating_sub(state.open + state.opening)
    }

    /// What is to be begun now, and counts as begun from here on.
    fn demand(&self, state: &mut State<M>) -> Begun {
        let openings = self.wanted(state).min(state.width).saturating_sub(state.opening).min(self.room(state));
        state.opening += openings;
        let pause = match state.pausing {
            Some(until) if openings > 0 => until.saturating_duration_since(Instant::now()),
            _ => Duration::ZERO,
        };
        let goodbyes = state.leaving.len().min(GOODBYES.saturating_sub(state.parting));
        state.parting += goodbyes;
        Begun { openings, ends: state.ends, pause, goodbyes }
    }

    /// Not under the lock, which what cannot be carried out takes as it drops.
    fn begin(self: &Arc<Self>, begun: Begun) {
        for _ in 0..begun.openings {
            let opening = Opening { core: Arc::clone(self), ends: begun.ends, is_over: false };
            (self.start)(Job::Open(opening), begun.pause);
        }
        for _ in 0..begun.goodbyes {
            (self.start)(Job::Part(Goodbyes { core: Arc::clone(self), is_over: false }), Duration::ZERO);
        }
    }

    /// Answers whoever waits with this, and everybody from now on.
    pub(crate) fn refuse(self: &Arc<Self>, refusal: Refusal, for_good: bool) {
        let mut state = self.state.lock();
        if !state.is_closed {
            state.refused = Some(refusal.clone());
            state.is_closed = for_good;
        }
        self.answer_all(state, &refusal);
    }

    /// Whoever waits for the resource to come back asks it from here on. Nobody may where it has come back meanwhile.
    fn give_up(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if state.suspended {
            state.refused = Some(Refusal::AskAnew);
            self.answer_all(state, &Refusal::AskAnew);
        }
    }

    fn answer_all(self: &Arc<Self>, mut state: MutexGuard<'_, State<M>>, refusal: &Refusal) {
        state.suspended = false;
        let waiters = state.heir.take().into_iter().chain(std::mem::take(&mut state.waiters));
        let woken: Vec<_> = waiters.map(|waiter| waiter.answer(Err(refusal.clone()))).collect();
        // Nobody waits for what is borrowed any more.
        let _none = state.end();
        self.settle(state);
        woken.into_iter().for_each(wake);
    }

    pub(crate) fn closed(&self) -> Refusal {
        Refusal::Because(Error::Closed { resource: Arc::clone(&self.resource) })
    }

    /// Replaces those that there are, on demand.
    #[cfg(feature = "redis")]
    fn retire(self: &Arc<Self>) {
        let mut state = self.state.lock();
        let woken = state.end();
        self.settle(state);
        wake(woken);
    }

    /// There are none until these are accepted again. Whoever waits goes on waiting.
    fn suspend(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.suspended = !state.is_closed;
        let woken = state.end();
        self.settle(state);
        wake(woken);
    }

    fn is_suspended(&self) -> bool {
        self.state.lock().suspended
    }

    /// There are some, or some again.
    pub(crate) fn accept(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if !state.is_closed {
            state.refused = None;
            state.suspended = false;
            state.width = 1;
            state.succeed();
        }
        self.settle(state);
    }

    fn has_said_goodbyes(&self) -> bool {
        let state = self.state.lock();
        state.leaving.len() + state.parting == 0
    }

    /// Closes what is idle for too long, or worn.
    fn reap(self: &Arc<Self>, now: Moment) {
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
        state.leaving.extend(gone);
        self.settle(state);
    }

    /// The connection that was idle for longest, or room for a new one.
    fn loan(self: &Arc<Self>, patience: Duration) -> Result<Loan<M>, Failure> {
        let now = Instant::now();
        let mut state = self.state.lock();
        if !state.idle.is_empty() {
            let entry = state.idle.remove(0);
            state.borrowed = Some(Borrowed { until: now + PING, is_free: self.is_free(&entry, Moment::coarse()) });
            return Ok(self.lend(&mut state, Some(entry), true));
        }
        if self.room(&state) == 0 {
            // Openings ask the server, too.
            return Err(match state.unanswered.map(|since| now.saturating_duration_since(since)) {
                Some(silent) if silent >= patience => {
                    Failure::transient(format!("a connection that is being opened has had no answer for {silent:.1?}"))
                }
                _ => Failure::unasked("all connections are in use"),
            });
        }
        if state.pausing.is_some_and(|until| now < until) {
            return Err(Failure::unasked("none could be opened just now"));
        }
        let users_have_none = state.open == state.lent;
        Ok(self.lend(&mut state, None, users_have_none))
    }

    /// Room for the first of all.
    fn first(self: &Arc<Self>) -> Loan<M> {
        let mut state = self.state.lock();
        // What an earlier attempt brings is too late.
        let woken = state.end();
        let loan = self.lend(&mut state, None, true);
        self.settle(state);
        wake(woken);
        loan
    }

    fn lend(self: &Arc<Self>, state: &mut State<M>, entry: Option<Box<Entry<M>>>, proves: bool) -> Loan<M> {
        state.lent += 1;
        state.open += usize::from(entry.is_none());
        Loan { core: Arc::clone(self), entry, ends: state.ends, proves, is_fit: false }
    }

    /// Drops one. A panic there is nobody's.
    fn say_goodbye(&self, entry: impl Sized) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(entry))) {
            let message = panic_message(&*panic);
            tracing::warn!(resource = %self.resource, message, "the driver panicked as a connection was closed");
        }
    }
}

#[cfg(model)]
impl<M: ManageConnection> Core<M> {
    /// What holds once nobody waits and nothing is out.
    pub(crate) fn check_idle(&self) {
        let state = self.state.lock();
        assert_eq!((state.waiters.len(), state.opening), (0, 0), "waiting, being opened");
        assert_eq!(state.open, state.idle.len(), "open and lost");
        assert_eq!((state.leaving.len(), state.parting), (0, 0), "not said goodbye to");
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
    /// Connections can be opened, and used.
    fn succeed(&mut self) {
        (self.setbacks, self.pausing) = (0, None);
    }

    fn has_no_queue(&self) -> bool {
        self.waiters.is_empty() && self.heir.is_none()
    }

    /// What was borrowed is not given to whoever waits for it.
    #[must_use = "they are to be woken outside of the lock"]
    fn let_down(&mut self) -> Option<Waker> {
        self.borrowed = None;
        self.heir.take()?.answer(Err(Refusal::MayNotWait))
    }

    /// What is being opened is nobody's from here on, and what is idle is closed.
    #[must_use = "they are to be woken outside of the lock"]
    fn end(&mut self) -> Option<Waker> {
        self.ends += 1;
        self.opening = 0;
        self.unanswered = None;
        self.open -= self.idle.len() + std::mem::take(&mut self.lent);
        self.leaving.extend(self.idle.drain(..));
        self.let_down()
    }

    /// To whoever has waited longest; else to lie idle, on top if it is warm.
    #[must_use = "they are to be woken outside of the lock"]
    fn hand_over(&mut self, mut entry: Box<Entry<M>>, is_warm: bool) -> Option<Waker> {
        match self.heir.take().or_else(|| self.waiters.pop_front()) {
            Some(waiter) => waiter.answer(Ok(entry)),
            None => {
                entry.idle = None;
                self.idle.insert(if is_warm { self.idle.len() } else { 0 }, entry);
                None
            }
        }
    }
}

impl<M: ManageConnection> Waiter<M> {
    fn new() -> Arc<Self> {
        Arc::new(Waiter(Mutex::new(Cell { answer: None, waker: None })))
    }

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

/// So many jobs, to be carried out outside of the lock.
#[must_use = "they are waited for"]
struct Begun {
    openings: usize,
    ends: u64,
    /// Before the openings.
    pause: Duration,
    goodbyes: usize,
}

/// What a thread that is no user's has to do.
pub(crate) enum Job<M: ManageConnection> {
    /// May connect, and so block.
    Open(Opening<M>),
    /// May block as long.
    Part(Goodbyes<M>),
}

impl<M: ManageConnection> Job<M> {
    pub(crate) fn run(self) {
        match self {
            Job::Open(opening) => opening.run(),
            Job::Part(goodbyes) => goodbyes.run(),
        }
    }

    /// The process can have no more threads. Some may end.
    fn find_no_thread(self, error: io::Error) {
        match self {
            Job::Open(opening) => {
                let cause = Error::no_threads(&opening.core.resource, error);
                opening.finish(Err(Arc::new(cause)));
            }
            Job::Part(goodbyes) => {
                let core = Arc::clone(&goodbyes.core);
                (core.start)(Job::Part(goodbyes), core.retry.cap.min(AGAIN));
            }
        }
    }
}

/// Somebody waits, by thread or by task. Whoever is given one and is gone has given it back.
pub(crate) struct Waiting<'a, M: ManageConnection> {
    core: &'a Arc<Core<M>>,
    waiter: Arc<Waiter<M>>,
    is_over: bool,
    /// The prober's, if there was one as this began.
    ping: Option<Ping>,
}

/// A ping over the connection that whoever has waited longest is given after it.
struct Ping {
    until: Instant,
    /// Whether whoever waits would have had that connection at once. A test that has begun is waited for.
    is_ours: bool,
}

impl<M: ManageConnection> Waiting<'_, M> {
    /// Stops waiting: what was given meanwhile, or else why there was none.
    fn give_up(&mut self) -> Result<Answer<M>, Option<Source>> {
        self.is_over = true;
        let mut state = self.core.state.lock();
        let is_me = |one: &Arc<Waiter<M>>| Arc::ptr_eq(one, &self.waiter);
        let place = state.waiters.iter().position(is_me);
        let left = place.and_then(|place| state.waiters.remove(place)).or_else(|| state.heir.take_if(|one| is_me(one)));
        if left.is_some() {
            let (leaving, max) = (state.leaving.len(), self.core.limits.max);
            let hang =
                || BoxError::from(format!("{leaving} connections wait to be closed, for the driver's goodbyes hang"));
            return Err(state.failure.clone().or_else(|| (leaving > max).then(|| hang().into())));
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
    /// Opens it, if it is still wanted.
    fn run(mut self) {
        let core = Arc::clone(&self.core);
        let mut state = core.state.lock();
        if self.ends != state.ends || core.wanted(&state) == 0 {
            state.width = 1;
            return self.end(&mut state);
        }
        state.unanswered.get_or_insert_with(Instant::now);
        drop(state);
        let opened = core.tried(M::connect);
        if let Err(error) = &opened {
            tracing::debug!(resource = %core.resource, %error, "a connection could not be opened");
        }
        self.finish(opened);
    }

    /// Hands it over; if it could not be opened, another one follows for as long as somebody waits.
    fn finish(mut self, opened: Result<M::Connection, Source>) {
        let core = Arc::clone(&self.core);
        let mut state = core.state.lock();
        if self.ends != state.ends {
            self.is_over = true;
            drop(state);
            return core.say_goodbye(opened);
        }
        self.end(&mut state);
        state.unanswered = state.unanswered.map(|_| Instant::now());
        let (replaced, woken) = match opened {
            Ok(connection) => {
                state.open += 1;
                let entry = core.entry(&mut state, connection);
                let woken = state.hand_over(entry, true);
                match core.wanted(&state) {
                    // It may fail its first test, as the one before did.
                    _ if state.setbacks > 0 => core.pause(&mut state),
                    0 => state.width = 1,
                    wanted if wanted > state.opening => state.width = (state.width + 1).min(core.limits.max),
                    _ => {}
                }
                (state.failure.take(), woken)
            }
            Err(cause) => {
                core.set_back(&mut state);
                (state.failure.replace(cause), None)
            }
        };
        core.settle(state);
        wake(woken);
        drop(replaced);
    }

    /// No longer counted.
    fn end(&mut self, state: &mut State<M>) {
        self.is_over = true;
        if self.ends == state.ends {
            state.opening -= 1;
            state.unanswered = state.unanswered.filter(|_| state.opening > 0);
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

/// A thread that says goodbyes until there are none left to say.
pub(crate) struct Goodbyes<M: ManageConnection> {
    core: Arc<Core<M>>,
    is_over: bool,
}

impl<M: ManageConnection> Goodbyes<M> {
    fn run(mut self) {
        let core = Arc::clone(&self.core);
        loop {
            let mut state = core.state.lock();
            let Some(entry) = state.leaving.pop_front() else {
                self.is_over = true;
                state.parting -= 1;
                return;
            };
            // There may be room again.
            core.settle(state);
            core.say_goodbye(entry);
        }
    }
}

impl<M: ManageConnection> Drop for Goodbyes<M> {
    fn drop(&mut self) {
        if !self.is_over {
            self.core.state.lock().parting -= 1;
        }
    }
}

/// A connection that the prober has, or room for one.
pub(crate) struct Loan<M: ManageConnection> {
    core: Arc<Core<M>>,
    entry: Option<Box<Entry<M>>>,
    /// How many there were as it was lent.
    ends: u64,
    /// Whether a failure of a new one proves the server's silence: what is borrowed has failed as well, or users have none.
    proves: bool,
    is_fit: bool,
}

impl<M: ManageConnection> Loan<M> {
    pub(crate) fn resource(&self) -> &Arc<str> {
        &self.core.resource
    }

    /// Nobody could ask over it.
    pub(crate) fn give_back(mut self) {
        self.is_fit = self.entry.is_some();
    }

    /// Whether the server answers. A connection that is borrowed may have ended for a reason of its own, so where it does not
    /// answer a new one is asked, which takes its place.
    pub(crate) fn ask(mut self, tell: impl Fn(M::Error) -> Failure) -> Result<(), Failure> {
        let core = Arc::clone(&self.core);
        if let Some(entry) = &mut self.entry {
            if caught(&tell, || core.manager.is_valid(&mut entry.connection)).is_ok() {
                self.is_fit = true;
                return Ok(());
            }
            let mut state = core.state.lock();
            let is_late = self.ends != state.ends;
            let woken = if is_late { None } else { state.let_down() };
            state.leaving.extend(self.entry.take());
            core.settle(state);
            wake(woken);
            if is_late {
                return Err(too_late());
            }
        }
        let opened = caught(&tell, || core.manager.connect());
        let mut state = core.state.lock();
        let connection = match opened {
            Ok(connection) => connection,
            Err(failure) => {
                if self.ends == state.ends {
                    core.set_back(&mut state);
                }
                return Err(self.told(failure));
            }
        };
        if self.ends != state.ends {
            drop(state);
            core.say_goodbye(connection);
            return Err(too_late());
        }
        let entry = self.entry.insert(core.entry(&mut state, connection));
        drop(state);
        let answer = caught(&tell, || core.manager.is_valid(&mut entry.connection));
        self.is_fit = answer.is_ok();
        answer.map_err(|failure| self.told(failure))
    }

    /// What it proves that a new connection cannot be had.
    fn told(&self, failure: Failure) -> Failure {
        if self.proves { failure } else { Failure::unasked(failure.source) }
    }
}

fn too_late() -> Failure {
    Failure::unasked("there is another connection by now, or none any more")
}

/// What the adapter answers; a panic is an error too.
fn caught<T, E, F: From<BoxError>>(tell: impl Fn(E) -> F, run: impl FnOnce() -> Result<T, E>) -> Result<T, F> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(answer) => answer.map_err(tell),
        Err(panic) => Err(BoxError::from(format!("it panicked: {}", panic_message(&*panic))).into()),
    }
}

impl<M: ManageConnection> Drop for Loan<M> {
    fn drop(&mut self) {
        let core = Arc::clone(&self.core);
        let mut state = core.state.lock();
        let is_present = self.ends == state.ends;
        let is_useful = is_present && self.is_fit && !state.is_closed;
        if is_present {
            state.lent -= 1;
        }
        let woken = match self.entry.take() {
            // After a loss users may have all that there may be still.
            Some(entry) if is_useful && state.open <= core.limits.max => state.hand_over(entry, false),
            entry => {
                state.open -= usize::from(is_present);
                state.leaving.extend(entry);
                None
            }
        };
        let let_down = if is_present { state.let_down() } else { None };
        core.settle(state);
        wake(woken);
        wake(let_down);
    }
}
