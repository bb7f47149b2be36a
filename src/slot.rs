//! Life of one resource: `Idle → Connecting → Ready → Draining → Closed`, and `Ready → Broken →
//! Connecting` on loss. One state machine for every kind.
//!
//! Connecting is single-flight: a task on the pool's runtime makes the connection and everybody
//! who asks meanwhile waits for that attempt's result. The state lives in [`Life`], which knows
//! no type; [`Slot`] adds the resource and its handle. Invariant, under the lock of `Life`: the
//! ledger is open exactly while the state is `Ready`, or `Draining` and not yet shut.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

use crate::close::Phase;
use crate::error::{BoxError, ConnectError, Error, Failure, Source, TimeoutError, panic_message};
use crate::leak::Leaks;
use crate::lease::{Claim, Holder, Lease, Ledger, Provide};
use crate::probe::{self, Watch};
use crate::registry::Context;
use crate::resource::{Link, Resource, Work};
use crate::runtime::{deadline, within};
use crate::status::{ResourceStatus, State};

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// One named resource of a pool.
pub(crate) struct Slot<R: Resource> {
    me: Weak<Slot<R>>,
    resource: R,
    phase: Phase,
    life: Arc<Life>,
    ledger: Ledger<R::Handle>,
    context: Arc<Context>,
    handle: Mutex<Option<R::Handle>>,
}

/// What of a resource's life needs no type.
pub(crate) struct Life {
    pub(crate) name: Arc<str>,
    pub(crate) endpoint: Arc<str>,
    inner: Mutex<Inner>,
    changed: Notify,
    draining: AtomicBool,
    work: [AtomicUsize; Work::ALL.len()],
}

struct Inner {
    state: State,
    since: Instant,
    generation: u64,
    /// How often connecting was begun; a waiter remembers which one it joined.
    attempt: u64,
    failure: Option<Attempted>,
    /// A task is bringing the connection back, so an acquire need not start one.
    recovering: bool,
    /// Leasing has ended.
    shut: bool,
    /// The connection that is being made has ended already.
    ended_early: Option<Source>,
    waiting: usize,
    connecting: Option<AbortHandle>,
    probing: Option<Watch>,
}

/// How an attempt failed, and until when that answer stands for others.
struct Attempted {
    attempt: u64,
    error: Error,
    retry_at: Instant,
}

/// A [`Slot`] whose type the pool need not know.
pub(crate) trait AnySlot: Any + Send + Sync {
    fn life(&self) -> &Arc<Life>;
    fn phase(&self) -> Phase;
    fn status(&self) -> ResourceStatus;
    fn holders(&self) -> Vec<Holder>;
    fn leaks(&self) -> &Leaks;
    /// Marks checkouts that have been out for this long, and tells the newly marked ones.
    fn suspect(&self, age: Duration) -> Vec<Holder>;
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
    fn wait_ready(self: Arc<Self>) -> BoxFuture<Result<(), Error>>;
    /// A ping over whatever the resource pings with. `None` if it never was connected.
    fn ping(self: Arc<Self>) -> Option<BoxFuture<Result<(), Failure>>>;
    fn lost(self: Arc<Self>, generation: u64, cause: Source);
    fn reconnect(self: Arc<Self>) -> BoxFuture<Result<(), Error>>;
    /// Begins closing. `false` if there is nothing to close.
    fn begin_close(&self) -> bool;
    fn stop_intake(self: Arc<Self>) -> BoxFuture<()>;
    fn flush(self: Arc<Self>) -> BoxFuture<Result<(), Failure>>;
    /// Ends leasing.
    fn shut(&self);
    fn close(self: Arc<Self>) -> BoxFuture<Result<(), Failure>>;
    /// Cuts the streams under whatever still runs.
    fn force(&self);
    fn finish_close(&self);
    /// Back to `Idle`, if closed.
    fn reopen(&self);
}

impl<R: Resource> Slot<R> {
    pub(crate) fn new(name: &str, resource: R, context: Arc<Context>) -> Arc<Self> {
        let life = Life::new(name, resource.endpoint());
        Arc::new_cyclic(|me| Slot {
            me: me.clone(),
            phase: resource.phase(),
            resource,
            life,
            ledger: Ledger::new(&context.options.leaks),
            context,
            handle: Mutex::new(None),
        })
    }

    /// A lease at once, if the resource is ready.
    pub(crate) fn lease<T: ?Sized + 'static>(&self, claim: Claim) -> Option<Lease<T>>
    where
        R::Handle: Provide<T>,
    {
        self.ledger.lease(claim)
    }

    /// A lease, connecting first if need be.
    pub(crate) async fn acquire<T: ?Sized + 'static>(&self, claim: Claim, limit: Duration) -> Result<Lease<T>, Error>
    where
        R::Handle: Provide<T>,
    {
        let deadline = deadline(limit);
        loop {
            if let Some(lease) = self.ledger.lease(claim) {
                return Ok(lease);
            }
            self.begin_waiting(deadline).await?;
        }
    }

    /// Begins to wait, on the pool's runtime, so that any executor may poll the answer and
    /// dropping it only stops the waiting.
    fn begin_waiting(&self, deadline: Instant) -> impl Future<Output = Result<(), Error>> + Send + use<R> {
        let name = Arc::clone(&self.life.name);
        // Not even a runtime is started for what is closed.
        let open = match self.life.state() {
            State::Closed => Err(Error::Closed { resource: Arc::clone(&name) }),
            _ => self.context.check_process(),
        };
        let waiting = open.and_then(|()| self.context.runtime.handle()).map(|runtime| {
            let me = self.me.clone();
            runtime.spawn(async move {
                match me.upgrade() {
                    Some(me) => me.wait_until(deadline).await,
                    None => Err(Error::Closed { resource: Arc::clone(&name) }),
                }
            })
        });
        let name = Arc::clone(&self.life.name);
        async move { waiting?.await.unwrap_or_else(|_runtime_ended| Err(Error::Closed { resource: name })) }
    }

    async fn wait_until(self: Arc<Self>, deadline: Instant) -> Result<(), Error> {
        let started = Instant::now();
        let _waiting = Waiting::new(&self.life);
        let mut joined = None;
        loop {
            let changed = self.life.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.advance(&mut joined)? {
                return Ok(());
            }
            if tokio::time::timeout_at(deadline.into(), changed).await.is_err() {
                return Err(Error::Timeout(Arc::new(TimeoutError {
                    resource: Arc::clone(&self.life.name),
                    endpoint: Arc::clone(&self.life.endpoint),
                    waiting_for: "connecting".to_owned(),
                    waited: started.elapsed(),
                    holders: Vec::new(),
                    source: self.life.inner.lock().failure.as_ref().map(|f| Arc::new(f.error.clone()) as Source),
                })));
            }
        }
    }

    /// Whether the resource can be leased now. Starts connecting where nobody has, and answers
    /// the failure of the attempt that was joined.
    fn advance(&self, joined: &mut Option<u64>) -> Result<bool, Error> {
        let name = || Arc::clone(&self.life.name);
        let mut inner = self.life.inner.lock();
        match inner.state {
            State::Ready => Ok(true),
            State::Draining if !inner.shut => Ok(true),
            State::Draining => Err(Error::Closing { resource: name() }),
            State::Closed => Err(Error::Closed { resource: name() }),
            State::Connecting => {
                match (&inner.failure, *joined) {
                    (Some(failure), Some(attempt)) if failure.attempt >= attempt => return Err(failure.error.clone()),
                    (_, None) => *joined = Some(inner.attempt),
                    _ => {}
                }
                Ok(false)
            }
            State::Broken | State::Idle => {
                if let Some(failure) = &inner.failure
                    && (joined.is_some_and(|attempt| failure.attempt >= attempt)
                        || inner.recovering
                        || Instant::now() < failure.retry_at)
                {
                    return Err(failure.error.clone());
                }
                if self.context.closing.is_cancelled() {
                    return Err(Error::Closing { resource: name() });
                }
                self.start_connecting(&mut inner)?;
                *joined = Some(inner.attempt);
                Ok(false)
            }
        }
    }

    fn start_connecting(&self, inner: &mut Inner) -> Result<(), Error> {
        let Some(me) = self.me.upgrade() else {
            return Err(Error::Closed { resource: Arc::clone(&self.life.name) });
        };
        let runtime = self.context.runtime.handle()?;
        let attempt = inner.begin_attempt();
        inner.connecting = Some(runtime.spawn(me.connect(attempt)).abort_handle());
        Ok(())
    }

    /// Connects, with retries, and tells everybody who waits.
    async fn connect(self: Arc<Self>, number: u64) {
        let unfinished = Unfinished { slot: &self, attempt: number };
        let started = Instant::now();
        let retry = &self.context.options.retry;
        tracing::info!(resource = %self.life.name, endpoint = %self.life.endpoint, "connecting");
        let mut attempts = 0;
        let mut pauses = retry.pauses();
        let outcome = loop {
            attempts += 1;
            let limit = self.context.options.connect_timeout.min(retry.budget.saturating_sub(started.elapsed()));
            let failure = match self.attempt(limit).await {
                Ok(handle) => break Ok(handle),
                Err(failure) => failure,
            };
            let pause = pauses.next().filter(|pause| started.elapsed() + *pause < retry.budget);
            match pause {
                Some(pause) if !failure.permanent => {
                    tracing::debug!(resource = %self.life.name, attempts, error = %failure, ?pause, "connecting again");
                    tokio::time::sleep(pause).await;
                }
                _ => break Err(self.connect_error(failure, attempts, started)),
            }
        };
        std::mem::forget(unfinished);
        match outcome {
            Ok(handle) => self.ready(handle, number),
            Err(error) => {
                tracing::warn!(resource = %self.life.name, %error, "connecting failed");
                let circuit = self.context.options.circuit;
                self.fail(number, error, circuit, false);
            }
        }
    }

    /// One attempt within its limit, in a task of its own so that a panic is an error.
    async fn attempt(self: &Arc<Self>, limit: Duration) -> Result<R::Handle, Failure> {
        let me = Arc::clone(self);
        // A set, because dropping it aborts what is in it.
        let mut attempt = JoinSet::new();
        attempt.spawn(async move {
            let lost = me.handle.lock().clone();
            let link = me.link();
            match lost {
                Some(lost) => within(limit, me.resource.recover(&link, lost)).await,
                None => within(limit, me.resource.connect(&link)).await,
            }
        });
        match attempt.join_next().await {
            Some(Ok(Ok(outcome))) => outcome,
            Some(Ok(Err(_elapsed))) => Err(Failure::transient(format!("no answer within {limit:.1?}"))),
            Some(Err(join)) if join.is_panic() => {
                Err(Failure::permanent(format!("connecting panicked: {}", panic_message(&*join.into_panic()))))
            }
            _ => Err(Failure::transient("the pool's runtime has ended")),
        }
    }

    fn connect_error(&self, failure: Failure, attempts: usize, started: Instant) -> Error {
        Error::Connect(Arc::new(ConnectError {
            resource: Arc::clone(&self.life.name),
            endpoint: Arc::clone(&self.life.endpoint),
            attempts,
            elapsed: started.elapsed(),
            permanent: failure.permanent,
            source: Source::from(failure.source),
        }))
    }

    fn ready(self: &Arc<Self>, handle: R::Handle, attempt: u64) {
        let mut inner = self.life.inner.lock();
        if inner.state != State::Connecting || inner.attempt != attempt {
            drop(inner);
            // Closed or begun anew meanwhile. What recovery brought back is the old handle, which
            // whoever closes has; a new one is nobody's, so say goodbye.
            if self.handle.lock().is_none() {
                let me = Arc::clone(self);
                tokio::spawn(async move { me.resource.close(handle).await });
            }
            return;
        }
        inner.generation += 1;
        inner.failure = None;
        inner.recovering = false;
        inner.set(State::Ready);
        let generation = inner.generation;
        let previous = self.handle.lock().replace(handle.clone());
        self.ledger.open(&handle, generation, &self.life);
        let slot: Arc<dyn AnySlot> = self.clone();
        let probing = probe::watch(Arc::downgrade(&slot), generation, self.context.options.probe.clone());
        let earlier = std::mem::replace(&mut inner.probing, probing);
        let ended_early = inner.ended_early.take();
        drop(inner);
        drop((previous, earlier));
        self.life.changed.notify_waiters();
        let event = if generation == 1 { "connected" } else { "reconnected" };
        tracing::info!(resource = %self.life.name, endpoint = %self.life.endpoint, generation, "{event}");
        if let Some(cause) = ended_early {
            AnySlot::lost(Arc::clone(self), generation, cause);
        }
    }

    fn fail(&self, attempt: u64, error: Error, circuit: Duration, recovering: bool) {
        let mut inner = self.life.inner.lock();
        if inner.state != State::Connecting || inner.attempt != attempt {
            return;
        }
        inner.failure = Some(Attempted { attempt, error, retry_at: Instant::now() + circuit });
        inner.recovering = recovering;
        inner.set(State::Broken);
        drop(inner);
        self.life.changed.notify_waiters();
    }

    /// Marks the connection as lost and starts bringing it back.
    fn start_recovery(&self, mut inner: MutexGuard<'_, Inner>, cause: Source) {
        let error = Error::Lost {
            resource: Arc::clone(&self.life.name),
            endpoint: Arc::clone(&self.life.endpoint),
            source: cause,
        };
        tracing::warn!(resource = %self.life.name, generation = inner.generation, %error, "lost");
        inner.failure = Some(Attempted { attempt: inner.attempt, error, retry_at: Instant::now() });
        inner.recovering = true;
        inner.set(State::Broken);
        inner.probing = None;
        self.ledger.shut();
        let attempt = inner.begin_attempt();
        drop(inner);
        self.life.changed.notify_waiters();
        // Cut before anything new is connected, which the switch would reach too.
        self.force();
        match (self.me.upgrade(), self.context.runtime.handle()) {
            (Some(me), Ok(runtime)) => {
                let task = runtime.spawn(me.recover(attempt)).abort_handle();
                let mut inner = self.life.inner.lock();
                if inner.attempt == attempt && inner.state == State::Connecting {
                    inner.connecting = Some(task);
                } else if matches!(inner.state, State::Draining | State::Closed) {
                    task.abort();
                }
            }
            _ => self.fail(attempt, Error::Closed { resource: Arc::clone(&self.life.name) }, Duration::ZERO, false),
        }
    }

    /// Tries until it is back, the budget is used up, or closing begins. Between the attempts an
    /// acquire gets the last failure at once.
    async fn recover(self: Arc<Self>, mut number: u64) {
        let mut unfinished = Unfinished { slot: &self, attempt: number };
        let started = Instant::now();
        let retry = &self.context.options.retry;
        for (attempts, pause) in (1..).zip(retry.recovery_pauses()) {
            let failure = match self.attempt(self.context.options.connect_timeout).await {
                Ok(handle) => {
                    std::mem::forget(unfinished);
                    return self.ready(handle, number);
                }
                Err(failure) => failure,
            };
            let again = !failure.permanent && started.elapsed() + pause < retry.recovery;
            tracing::debug!(resource = %self.life.name, attempts, error = %failure, again, "reconnecting failed");
            let error = self.connect_error(failure, attempts, started);
            self.fail(number, error, if again { pause } else { self.context.options.circuit }, again);
            if !again {
                break;
            }
            tokio::time::sleep(pause).await;
            let mut inner = self.life.inner.lock();
            if inner.state != State::Broken || !inner.recovering {
                break;
            }
            number = inner.begin_attempt();
            unfinished.attempt = number;
        }
        std::mem::forget(unfinished);
    }

    fn link(&self) -> Link {
        let slot: Weak<dyn AnySlot> = self.me.clone();
        Link { life: Arc::clone(&self.life), slot, acquire_timeout: self.context.options.acquire_timeout }
    }

    /// Runs a resource's own code where a panic would take others along.
    fn guarded<T>(&self, verb: &str, run: impl FnOnce() -> T) -> Option<T> {
        catch_unwind(AssertUnwindSafe(run))
            .inspect_err(|payload| {
                tracing::error!(resource = %self.life.name, message = panic_message(&**payload), "{verb} panicked");
            })
            .ok()
    }

    fn current(&self) -> Option<R::Handle> {
        self.handle.lock().clone()
    }
}

impl<R: Resource> AnySlot for Slot<R> {
    fn life(&self) -> &Arc<Life> {
        &self.life
    }

    fn phase(&self) -> Phase {
        self.phase
    }

    fn status(&self) -> ResourceStatus {
        let holders = self.holders();
        let usage = self.current().and_then(|handle| self.guarded("usage", || self.resource.usage(&handle)));
        let inner = self.life.inner.lock();
        ResourceStatus {
            name: Arc::clone(&self.life.name),
            endpoint: Arc::clone(&self.life.endpoint),
            state: inner.state,
            since: inner.since.elapsed(),
            generation: inner.generation,
            leases: holders.iter().filter(|holder| !holder.exclusive).count(),
            checkouts: holders.iter().filter(|holder| holder.exclusive).count(),
            leaks: holders.iter().filter(|holder| holder.suspected).count() + self.ledger.leaks.exceeded(),
            leaks_total: self.ledger.leaks.total(),
            work: self.life.work(),
            connecting: inner.waiting,
            usage: usage.unwrap_or_default(),
            error: inner.failure.as_ref().map(|failure| failure.error.clone()),
        }
    }

    fn holders(&self) -> Vec<Holder> {
        self.ledger.holders(&self.life.name)
    }

    fn leaks(&self) -> &Leaks {
        &self.ledger.leaks
    }

    fn suspect(&self, age: Duration) -> Vec<Holder> {
        self.ledger.suspect(&self.life.name, age)
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }

    fn wait_ready(self: Arc<Self>) -> BoxFuture<Result<(), Error>> {
        let deadline = deadline(self.context.options.acquire_timeout);
        let ready = self.begin_waiting(deadline);
        Box::pin(ready)
    }

    fn ping(self: Arc<Self>) -> Option<BoxFuture<Result<(), Failure>>> {
        let handle = self.current()?;
        Some(Box::pin(async move { self.resource.ping(&handle).await }))
    }

    fn lost(self: Arc<Self>, generation: u64, cause: Source) {
        let mut inner = self.life.inner.lock();
        if inner.state == State::Ready && inner.generation == generation {
            self.start_recovery(inner, cause);
        } else if inner.state == State::Connecting && inner.generation + 1 == generation {
            inner.ended_early = Some(cause);
        } else if inner.state == State::Draining && inner.generation == generation {
            drop(inner);
            // What is being closed is not brought back, but nobody may wait for its answers.
            self.force();
        }
    }

    fn reconnect(self: Arc<Self>) -> BoxFuture<Result<(), Error>> {
        let mut inner = self.life.inner.lock();
        match inner.state {
            State::Ready => self.start_recovery(inner, BoxError::from("a reconnect was asked for").into()),
            State::Broken | State::Closed => {
                // A recovery that pauses is overtaken.
                inner.recovering = false;
                if let Some(recovery) = inner.connecting.take() {
                    recovery.abort();
                }
                inner.failure = None;
                inner.shut = false;
                self.life.set_draining(false);
                inner.set(State::Idle);
                drop(inner);
            }
            _ => drop(inner),
        }
        self.wait_ready()
    }

    fn begin_close(&self) -> bool {
        let mut inner = self.life.inner.lock();
        inner.recovering = false;
        if let Some(connecting) = inner.connecting.take() {
            connecting.abort();
        }
        let begun = match inner.state {
            State::Closed | State::Draining => false,
            _ if self.handle.lock().is_none() => {
                inner.set(State::Closed);
                false
            }
            state => {
                // A broken one is not leased any more.
                inner.shut = state != State::Ready;
                self.life.set_draining(true);
                inner.set(State::Draining);
                tracing::info!(resource = %self.life.name, "closing");
                true
            }
        };
        drop(inner);
        self.life.changed.notify_waiters();
        begun
    }

    fn stop_intake(self: Arc<Self>) -> BoxFuture<()> {
        Box::pin(async move {
            if let Some(handle) = self.current() {
                self.resource.stop_intake(&handle).await;
            }
        })
    }

    fn flush(self: Arc<Self>) -> BoxFuture<Result<(), Failure>> {
        Box::pin(async move {
            match self.current() {
                Some(handle) => self.resource.flush(&handle).await,
                None => Ok(()),
            }
        })
    }

    fn shut(&self) {
        let mut inner = self.life.inner.lock();
        inner.shut = true;
        self.ledger.shut();
        drop(inner);
        self.life.changed.notify_waiters();
    }

    fn close(self: Arc<Self>) -> BoxFuture<Result<(), Failure>> {
        Box::pin(async move {
            // Until here the prober ended what was stuck in the drain.
            let probing = self.life.inner.lock().probing.take();
            if let Some(probing) = probing {
                probing.end().await;
            }
            match self.current() {
                Some(handle) => self.resource.close(handle).await,
                None => Ok(()),
            }
        })
    }

    fn force(&self) {
        if let Some(handle) = self.current() {
            self.guarded("cut", || self.resource.cut(&handle));
        }
    }

    fn finish_close(&self) {
        let last = self.handle.lock().take();
        let mut inner = self.life.inner.lock();
        inner.set(State::Closed);
        let probing = inner.probing.take();
        drop(inner);
        drop((last, probing));
        self.life.changed.notify_waiters();
    }

    fn reopen(&self) {
        let mut inner = self.life.inner.lock();
        if inner.state == State::Closed {
            inner.shut = false;
            inner.failure = None;
            self.life.set_draining(false);
            inner.set(State::Idle);
        }
    }
}

impl Life {
    pub(crate) fn new(name: &str, endpoint: String) -> Arc<Self> {
        Arc::new(Life {
            name: Arc::from(name),
            endpoint: Arc::from(endpoint),
            inner: Mutex::new(Inner {
                state: State::Idle,
                since: Instant::now(),
                generation: 0,
                attempt: 0,
                failure: None,
                recovering: false,
                shut: false,
                ended_early: None,
                waiting: 0,
                connecting: None,
                probing: None,
            }),
            changed: Notify::new(),
            draining: AtomicBool::new(false),
            work: Default::default(),
        })
    }

    /// From now on releases wake whoever waits for [`changed`](Life::changed).
    pub(crate) fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::SeqCst);
    }

    pub(crate) fn begin(&self, work: Work) {
        self.work[work as usize].fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn end(&self, work: Work) {
        self.work[work as usize].fetch_sub(1, Ordering::SeqCst);
        self.released();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// A lease or a piece of work has ended; whoever drains wants to know.
    pub(crate) fn released(&self) {
        if self.is_draining() {
            self.changed.notify_waiters();
        }
    }

    /// What is going on now, by kind, without what is not.
    pub(crate) fn work(&self) -> Vec<(Work, usize)> {
        Work::ALL
            .into_iter()
            .map(|work| (work, self.work[work as usize].load(Ordering::SeqCst)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    pub(crate) fn state(&self) -> State {
        self.inner.lock().state
    }

    /// The current state, since when, and the failure that explains it.
    pub(crate) fn condition(&self) -> (State, Duration, Option<Error>) {
        let inner = self.inner.lock();
        (inner.state, inner.since.elapsed(), inner.failure.as_ref().map(|failure| failure.error.clone()))
    }

    pub(crate) fn generation_or_next(&self) -> u64 {
        let inner = self.inner.lock();
        if inner.state == State::Connecting { inner.generation + 1 } else { inner.generation }
    }

    /// Resolves at the next change of state or, while draining, at the next release.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }
}

impl Inner {
    fn set(&mut self, state: State) {
        self.state = state;
        self.since = Instant::now();
    }

    fn begin_attempt(&mut self) -> u64 {
        self.attempt += 1;
        self.ended_early = None;
        self.set(State::Connecting);
        self.attempt
    }
}

/// Counts an acquire that waits.
struct Waiting<'a>(&'a Life);

impl<'a> Waiting<'a> {
    fn new(life: &'a Life) -> Self {
        life.inner.lock().waiting += 1;
        Waiting(life)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.inner.lock().waiting -= 1;
    }
}

/// Fails the attempt if its task is dropped half-way, so that nobody waits for it.
struct Unfinished<'a, R: Resource> {
    slot: &'a Arc<Slot<R>>,
    attempt: u64,
}

impl<R: Resource> Drop for Unfinished<'_, R> {
    fn drop(&mut self) {
        let error = Error::Closed { resource: Arc::clone(&self.slot.life.name) };
        self.slot.fail(self.attempt, error, Duration::ZERO, false);
    }
}
