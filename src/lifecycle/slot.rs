//! One named resource of a pool: its [`Life`], driven. Here are the tasks, the resource's own
//! code, and what the pool asks of any resource.

use std::any::Any;
use std::convert::Infallible;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::base::error::{
    ConnectError, Error, Failure, OneLine, Proof, ReconnectAsked, Remedies, Source, TimeoutError, panic_message,
};
use crate::base::future::BoxFuture;
use crate::base::holder::Holder;
use crate::base::runtime::{LONGEST, thread, within};
use crate::lifecycle::activity::Activity;
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::condition::{Condition, Progress};
use crate::lifecycle::context::Context;
use crate::lifecycle::leak::Leaks;
use crate::lifecycle::lease::{Claim, Held, Lease, Provide};
use crate::lifecycle::life::{Caller, Connected, Life, Lost, Overtaken, Recovery};
use crate::lifecycle::link::Link;
use crate::lifecycle::options::Options;
use crate::lifecycle::probe::{self, Watch};
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::{ResourceStatus, State, Usage};
use crate::lifecycle::user_ping::UserPings;

/// How long a recovery says goodbye to what is lost.
const GOODBYE: Duration = Duration::from_millis(500);

/// One named resource of a pool.
pub(crate) struct Slot<R: Resource> {
    resource: R,
    phase: Phase,
    life: Life<R::Handle>,
    /// How many are being said to what is lost or late.
    goodbyes: AtomicUsize,
    kind: Kind,
    context: Arc<Context>,
}

/// Whose code a resource is.
enum Kind {
    /// Its pings never block, and the pool knows how it is configured.
    BuiltIn(Remedies),
    Users(UserPings),
}

impl<R: Resource> Slot<R> {
    /// A slot for one of the built-in kinds.
    pub(crate) fn built_in(name: &str, resource: R, remedies: Remedies, context: Arc<Context>) -> Arc<Self> {
        Slot::new(name, resource, Kind::BuiltIn(remedies), context)
    }

    /// A slot for a user's own kind. The user's code runs here, so no lock may be held.
    pub(crate) fn of_user(name: &str, resource: R, context: Arc<Context>) -> Arc<Self> {
        Slot::new(name, resource, Kind::Users(UserPings::default()), context)
    }

    fn new(name: &str, resource: R, kind: Kind, context: Arc<Context>) -> Arc<Self> {
        let life = Life::new(
            name,
            OneLine(resource.endpoint()).to_string(),
            &context.options.leaks,
            context.options.retry.cap,
        );
        let (phase, goodbyes) = (resource.phase(), AtomicUsize::new(0));
        Arc::new(Slot { phase, resource, life, goodbyes, kind, context })
    }

    #[cfg(feature = "r2d2")]
    pub(crate) fn resource(&self) -> &R {
        &self.resource
    }

    /// A lease at once, if the resource is ready.
    #[inline]
    pub(crate) fn lease<T: ?Sized + 'static>(&self, claim: Claim) -> Result<Option<Lease<T>>, Error>
    where
        R::Handle: Provide<T>,
    {
        self.context.check_process()?;
        Ok(match self.life.ledger.lease(claim) {
            Some(lease) => Some(lease),
            None => self.lease_inside(claim),
        })
    }

    /// A lease for the pool's own closing code, where only that gets one.
    #[cold]
    fn lease_inside<T: ?Sized + 'static>(&self, claim: Claim) -> Option<Lease<T>>
    where
        R::Handle: Provide<T>,
    {
        self.context.close.is_inside().then(|| self.life.ledger.lease_inside(claim)).flatten()
    }

    /// A lease, connecting first if need be.
    pub(crate) async fn acquire<T: ?Sized + 'static>(
        self: &Arc<Self>,
        claim: Claim,
        limit: Duration,
    ) -> Result<Lease<T>, Error>
    where
        R::Handle: Provide<T>,
    {
        let started = Instant::now();
        loop {
            if let Some(lease) = self.lease(claim)? {
                return Ok(lease);
            }
            self.begin_waiting(limit.saturating_sub(started.elapsed()), self.caller(false)).await?;
        }
    }

    fn caller(&self, patient: bool) -> Caller {
        Caller { patient, inside: self.context.close.is_inside() }
    }

    /// Begins to wait, on the pool's runtime, so that any executor may poll the answer. Dropping it
    /// only stops the waiting, and what was asked for is begun all the same.
    fn begin_waiting(
        self: &Arc<Self>,
        limit: Duration,
        caller: Caller,
    ) -> impl Future<Output = Result<(), Error>> + Send + use<R> {
        // Not even a runtime is started for what is closed.
        let runtime = self.context.check_process().and_then(|()| match self.life.state() {
            State::Closed => Err(self.closed()),
            _ => self.runtime(),
        });
        let (waits, given_up) = oneshot::channel::<Infallible>();
        let waiting = runtime.map(|runtime| {
            let me = Arc::clone(self);
            runtime.spawn(async move {
                tokio::select! {
                    biased;
                    ready = me.wait(limit, caller) => Some(ready),
                    _ = given_up => None,
                }
            })
        });
        let closed = self.closed();
        async move {
            let _waits = waits;
            waiting?.await.ok().flatten().unwrap_or(Err(closed))
        }
    }

    /// Where to wait. None is started once closing has begun.
    fn runtime(&self) -> Result<Handle, Error> {
        match self.context.check_open(self.name()) {
            Ok(()) => self.context.runtime.handle(self.name()),
            Err(closed) => self.context.runtime.current().ok_or(closed),
        }
    }

    async fn wait(self: Arc<Self>, limit: Duration, caller: Caller) -> Result<(), Error> {
        let started = Instant::now();
        let closing = || self.context.close.is_closing();
        let asked_until = Some(started + limit.min(LONGEST));
        let connect = |attempt| {
            drop(tokio::spawn(connect(Trying::new(&self, attempt, asked_until), None)));
        };
        within(limit, self.life.ready(caller, closing, connect)).await.unwrap_or_else(|_elapsed| {
            let Condition { failure, progress, .. } = self.life.condition();
            if let (true, Some(failure), None) = (caller.patient, &failure, &progress) {
                return Err(failure.clone());
            }
            let far = progress.map_or_else(String::new, |Progress { told, .. }| format!(": {told}"));
            Err(Error::Timeout(Arc::new(TimeoutError {
                resource: Arc::clone(self.name()),
                endpoint: Arc::clone(&self.activity().endpoint),
                waiting_for: format!("connecting{far}"),
                waited: started.elapsed(),
                holders: Vec::new(),
                cycle: Vec::new(),
                source: failure.map(|failure| Arc::new(failure) as Source),
            })))
        })
    }

    /// One attempt within its limit, in a task of its own so that a panic is an error.
    async fn attempt(self: &Arc<Self>, attempt: u64, limit: Duration) -> Result<(), Failure> {
        let me = Arc::clone(self);
        // A set, because dropping it aborts what is in it.
        let mut task = JoinSet::new();
        task.spawn(async move {
            let link = me.link(attempt, limit);
            let brought = me.in_time(limit, me.bring(attempt, &link)).await;
            // From here on nothing awaits, so what was brought cannot go missing.
            let watch = |generation| me.watch(generation);
            match brought {
                Ok(Ok(Some(handle))) => me.ready(me.life.connected(attempt, handle, watch)),
                Ok(Ok(None)) => me.ready(me.life.recovered(attempt, watch)),
                Ok(Err(failure)) => return Err(failure),
                Err(late) => return Err(late),
            }
            Ok(())
        });
        match task.join_next().await {
            Some(Ok(tried)) => tried,
            Some(Err(join)) if join.is_panic() => {
                Err(Failure::permanent(format!("connecting panicked: {}", panic_message(&*join.into_panic()))))
            }
            _ => Err(Failure::transient("the pool's runtime has ended")),
        }
    }

    /// Within the limit, which begins anew each time that the attempt tells how far it has come.
    async fn in_time<T>(&self, limit: Duration, brought: impl Future<Output = T>) -> Result<T, Failure> {
        let limit = limit.min(LONGEST);
        let mut brought = pin!(brought);
        let (mut since, mut far) = (Instant::now(), String::new());
        loop {
            if let Ok(brought) = tokio::time::timeout_at(since + limit, &mut brought).await {
                return Ok(brought);
            }
            match self.life.condition().progress {
                Some(Progress { at, told }) if at > since => (since, far) = (at, format!(" after {told}")),
                _ => return Err(Failure::transient(format!("no answer within {limit:.1?}{far}"))),
            }
        }
    }

    /// A new handle, or none where the lost one has come back.
    async fn bring(self: &Arc<Self>, attempt: u64, link: &Link) -> Result<Option<R::Handle>, Failure> {
        if let Some(lost) = self.life.handle()
            && self.resource.recover(link, &lost).await?
        {
            return Ok(None);
        }
        match self.life.forget(attempt) {
            Ok(Some(lost)) => {
                if let Err(error) = self.say_goodbye(lost, GOODBYE).await {
                    tracing::debug!(resource = %self.name(), %error, "saying goodbye");
                }
            }
            Ok(None) => {}
            Err(Overtaken) => return Err(Failure::permanent("overtaken")),
        }
        self.resource.connect(link).await.map(Some)
    }

    /// What is lost or late may fail to say goodbye; that harms nobody. In a task of its own, which
    /// nothing but the limit cuts short: closing the pool waits for it.
    fn say_goodbye(self: &Arc<Self>, handle: R::Handle, limit: Duration) -> JoinHandle<()> {
        let goodbye = Goodbye::new(self);
        tokio::spawn(async move {
            let slot = &goodbye.0;
            match within(limit, slot.resource.close(handle)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(resource = %slot.name(), %error, "saying goodbye"),
                Err(elapsed) => tracing::debug!(resource = %slot.name(), %elapsed, "saying goodbye"),
            }
        })
    }

    fn ready(self: &Arc<Self>, connected: Connected<R::Handle>) {
        match connected {
            Connected::Ready { generation, lost } => {
                let event = if generation == 1 { "connected" } else { "reconnected" };
                tracing::info!(resource = %self.name(), endpoint = %self.activity().endpoint, generation, "{event}");
                if let Kind::Users(pings) = &self.kind {
                    pings.begin_generation();
                }
                if let Some(cause) = lost {
                    AnySlot::lost(Arc::clone(self), None, generation, cause);
                }
            }
            Connected::Late(handle) => drop(self.say_goodbye(handle, self.context.options.close.step)),
            Connected::Overtaken => {}
        }
    }

    fn watch(self: &Arc<Self>, generation: u64) -> Option<Watch> {
        probe::watch(self.as_weak(), generation, self.context.options.probe.clone())
    }

    /// Brings back what is lost.
    fn recover(self: Arc<Self>, attempt: u64, pause: Duration) {
        let Some(runtime) = self.context.runtime.current() else {
            self.force();
            return self.life.gave_up(attempt, self.closed(), Duration::ZERO);
        };
        let connect = connect(Trying::new(&self, attempt, None), Some(pause));
        // Cut before anything new is connected, which the switch would reach too.
        match self.kind {
            Kind::BuiltIn(_) => {
                self.force();
                drop(runtime.spawn(connect));
            }
            Kind::Users(_) => drop(runtime.spawn(async move {
                self.cut_aside().await;
                connect.await;
            })),
        }
    }

    /// Cuts on a thread of its own, since a user's code may block, and waits for that as long as for a goodbye.
    async fn cut_aside(self: Arc<Self>) {
        let (runtime, (end, ended)) = (Handle::current(), oneshot::channel::<Infallible>());
        let cut = move |me: Arc<Self>| {
            let _context = runtime.enter();
            me.force();
            drop(end);
        };
        match thread(cut) {
            Ok(thread) => drop(thread.send(self)),
            // Nobody may wait for what is lost, so it is cut all the same.
            Err(_no_threads) => return self.force(),
        }
        if within(GOODBYE, ended).await.is_err() {
            tracing::warn!("a cut does not come back; it must not block its thread");
        }
    }

    fn connect_error(&self, source: Source, permanent: bool, attempts: usize, started: Instant) -> Error {
        Error::Connect(Arc::new(ConnectError {
            resource: Arc::clone(self.name()),
            endpoint: Arc::clone(&self.activity().endpoint),
            attempts,
            elapsed: started.elapsed(),
            permanent,
            remedy: match &self.kind {
                Kind::BuiltIn(remedies) => remedies.of(&source, permanent),
                Kind::Users(_) => None,
            },
            source,
        }))
    }

    fn closed(&self) -> Error {
        Error::Closed { resource: Arc::clone(self.name()) }
    }

    fn link(self: &Arc<Self>, attempt: u64, limit: Duration) -> Link {
        let activity = Arc::clone(self.activity());
        let Options { acquire_timeout, repeat, ref retry, .. } = self.context.options;
        let patience = acquire_timeout.min(retry.budget);
        let (slot, process) = (self.as_weak(), self.context.process);
        Link {
            activity,
            slot,
            attempt,
            limit,
            acquire_timeout,
            process,
            repeat,
            #[cfg(feature = "r2d2")]
            retry: retry.clone(),
            patience,
        }
    }

    fn asked(
        &self,
        ping: impl Future<Output = Result<(), Failure>> + Send + 'static,
    ) -> BoxFuture<Result<(), Failure>> {
        match &self.kind {
            Kind::BuiltIn(_) => Box::pin(ping),
            Kind::Users(pings) => pings.on_own_thread(self.name(), Box::pin(ping)),
        }
    }

    fn as_weak(self: &Arc<Self>) -> Weak<dyn AnySlot> {
        let slot: Arc<dyn AnySlot> = self.clone();
        Arc::downgrade(&slot)
    }

    /// Runs a resource's own code where a panic would take others along.
    fn guarded<T>(&self, verb: &str, run: impl FnOnce() -> T) -> Option<T> {
        catch_unwind(AssertUnwindSafe(run))
            .inspect_err(|payload| {
                tracing::error!(resource = %self.name(), message = panic_message(&**payload), "{verb} panicked");
            })
            .ok()
    }
}

impl Link {
    /// A lease for what a backend hands out itself.
    #[cfg(any(feature = "rabbitmq", feature = "redis"))]
    pub(crate) fn lease<R: Resource, T: ?Sized + 'static>(&self, claim: Claim) -> Option<Lease<T>>
    where
        R::Handle: Provide<T>,
    {
        self.slot.upgrade()?.as_any().downcast::<Slot<R>>().ok()?.lease(claim).ok()?
    }
}

impl<R: Resource> AnySlot for Slot<R> {
    fn activity(&self) -> &Arc<Activity> {
        &self.life.activity
    }

    fn phase(&self) -> Phase {
        self.phase
    }

    fn state(&self) -> State {
        self.life.state()
    }

    fn condition(&self) -> Condition {
        self.life.condition()
    }

    fn generation_or_next(&self) -> u64 {
        self.life.generation_or_next()
    }

    fn is_users(&self) -> bool {
        matches!(self.kind, Kind::Users(_))
    }

    fn usage(&self) -> Usage {
        let usage = self.life.handle().and_then(|handle| self.guarded("usage", || self.resource.usage(&handle)));
        usage.unwrap_or_default()
    }

    fn status(&self, usage: Usage) -> ResourceStatus {
        let holders = self.holders();
        let Condition { state, since, generation, waiting, failure, .. } = self.life.condition();
        ResourceStatus {
            name: Arc::clone(self.name()),
            endpoint: Arc::clone(&self.activity().endpoint),
            state,
            since,
            generation,
            leases: holders.iter().filter(|holder| !holder.exclusive).count(),
            checkouts: holders.iter().filter(|holder| holder.exclusive).count(),
            leaks: holders.iter().filter(|holder| holder.suspected).count() + self.life.ledger.leaks.exceeded(),
            leaks_total: self.life.ledger.leaks.total(),
            work: self.activity().tally.now(),
            connecting: waiting,
            usage,
            error: failure,
        }
    }

    fn holders(&self) -> Vec<Holder> {
        self.life.ledger.holders(self.name())
    }

    fn is_held(&self, counts: Held) -> bool {
        self.life.ledger.is_held(counts)
    }

    fn leaks(&self) -> &Leaks {
        &self.life.ledger.leaks
    }

    fn suspect(&self, age: Duration) -> Vec<Holder> {
        self.life.ledger.suspect(self.name(), age)
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }

    fn wait_ready(self: Arc<Self>) -> BoxFuture<Result<(), Error>> {
        Box::pin(self.begin_waiting(self.context.options.acquire_timeout, self.caller(false)))
    }

    fn wait_back(self: Arc<Self>, limit: Duration) -> BoxFuture<Result<(), Error>> {
        Box::pin(self.begin_waiting(limit, self.caller(true)))
    }

    fn ping(self: Arc<Self>) -> Option<BoxFuture<Result<(), Failure>>> {
        let handle = self.life.handle()?;
        let me = Arc::clone(&self);
        Some(self.asked(async move { me.resource.ping(&handle).await }))
    }

    fn probe(self: Arc<Self>) -> Option<BoxFuture<Result<(), Failure>>> {
        let handle = self.life.handle()?;
        let me = Arc::clone(&self);
        Some(self.asked(async move { me.resource.probe(&handle).await }))
    }

    fn lost(self: Arc<Self>, link: Option<u64>, generation: u64, cause: Source) {
        match self.life.lost(link, generation, cause) {
            Lost::Recover(Recovery { attempt, died_young }) => {
                let pause = self.context.options.retry.pause_after(died_young);
                self.recover(attempt, pause);
            }
            Lost::Cut => match self.kind {
                Kind::BuiltIn(_) => self.force(),
                Kind::Users(_) => {
                    if let Some(runtime) = self.context.runtime.current() {
                        drop(runtime.spawn(self.cut_aside()));
                    }
                }
            },
            Lost::Noted => {}
        }
    }

    fn progress(&self, attempt: u64, told: Arc<str>) {
        self.life.progress(attempt, told);
    }

    fn reconnect(self: Arc<Self>) -> BoxFuture<Result<(), Error>> {
        if let Some(attempt) = self.life.reconnect(Arc::new(ReconnectAsked)) {
            Arc::clone(&self).recover(attempt, Duration::ZERO);
        }
        self.wait_ready()
    }

    fn begin_settling(&self) -> bool {
        self.life.begin_settling()
    }

    fn settled(self: Arc<Self>) -> BoxFuture<()> {
        Box::pin(async move { self.life.settled().await })
    }

    fn begin_close(&self) -> bool {
        let begun = self.life.begin_close();
        if begun {
            tracing::info!(resource = %self.name(), "closing");
        }
        begun
    }

    fn stop_intake(self: Arc<Self>) -> BoxFuture<()> {
        Box::pin(async move {
            if let Some(handle) = self.life.handle() {
                self.resource.stop_intake(&handle).await;
            }
        })
    }

    fn flush(self: Arc<Self>) -> BoxFuture<()> {
        Box::pin(async move {
            let Some(handle) = self.life.handle() else { return };
            if let Err(failure) = self.resource.flush(&handle).await {
                tracing::warn!(resource = %self.name(), error = %failure, "flushing failed");
                self.life.trouble(failure.source.into());
            }
        })
    }

    fn shut_to_outside(&self) {
        self.life.shut_to_outside();
    }

    fn shut(&self) {
        self.life.shut();
    }

    fn close(self: Arc<Self>) -> BoxFuture<Result<(), Failure>> {
        Box::pin(async move {
            // Until here the prober ended what was stuck in the drain.
            if let Some(probing) = self.life.take_watch() {
                probing.end().await;
            }
            let closed = match self.life.handle() {
                Some(handle) => self.resource.close(handle).await,
                None => Ok(()),
            };
            // `closed` says that the server heard a goodbye and that nothing was cut short. A lost
            // connection can say neither, even where the driver has no goodbye to fail at.
            match self.life.take_trouble() {
                Some(trouble) => Err(Failure::transient(trouble)),
                None => closed,
            }
        })
    }

    fn force(&self) {
        if let Some(handle) = self.life.handle() {
            self.guarded("cut", || self.resource.cut(&handle));
        }
    }

    fn finish_close(&self) -> Result<(), String> {
        self.life.finish_close()
    }

    fn goodbyes_said(&self) -> bool {
        self.goodbyes.load(Ordering::Acquire) == 0
    }

    fn reopen(&self) {
        self.life.reopen();
    }
}

/// Tries until it is connected, the retry's budget is used up, or closing or another attempt
/// overtakes it. A recovery tells the pause that comes first.
async fn connect<R: Resource>(mut trying: Trying<R>, recovery: Option<Duration>) {
    let slot = Arc::clone(&trying.slot);
    let Slot { life, context, .. } = &*slot;
    let (mut pauses, budget) = context.options.retry.effort(recovery.is_some());
    if let Some(pause) = recovery.filter(|pause| !pause.is_zero())
        && !trying.again_after(pause).await
    {
        return;
    }
    let started = Instant::now();
    let full = context.options.connect_timeout.min(budget);
    let mut told = None;
    tracing::info!(resource = %life.activity.name, endpoint = %life.activity.endpoint, "connecting");
    for attempts in 1.. {
        let (attempt, began) = (trying.attempt, Instant::now());
        let limit = full.min(budget.saturating_sub(started.elapsed()));
        let limit = match trying.asked_until.filter(|_| slot.resource.connects_uncut()) {
            Some(until) => limit.max(until.saturating_duration_since(began)),
            None => limit,
        };
        let failure = tokio::select! {
            tried = slot.attempt(attempt, limit) => match tried {
                Ok(()) => return,
                Err(failure) => failure,
            },
            () = life.overtaken(attempt) => return,
        };
        let took = began.elapsed();
        // An attempt that cannot have its time is not begun: it would tell nothing.
        let least = took.max(full / 4);
        let fits = |pause: &Duration| started.elapsed().saturating_add(*pause).saturating_add(least) < budget;
        // A server that answers that it cannot serve yet is asked until the budget ends, whatever attempts that takes.
        let patient = (failure.proof() == Proof::Refused).then_some(context.options.retry.cap);
        let pause = pauses.next().or(patient).filter(|pause| !failure.permanent && fits(pause));
        // One that the budget cut short tells less than the one before it.
        let source = match told {
            Some(before) if limit < full && took >= limit => before,
            _ => Source::from(failure.source),
        };
        told = Some(Arc::clone(&source));
        let error = slot.connect_error(source, failure.permanent, attempts, started);
        let Some(pause) = pause else {
            tracing::warn!(resource = %life.activity.name, %error, "connecting failed");
            return life.gave_up(attempt, error, context.options.circuit);
        };
        tracing::debug!(resource = %life.activity.name, %error, ?pause, "connecting again");
        life.failed(attempt, error, pause);
        if !trying.again_after(pause).await {
            return;
        }
    }
}

/// Counts as being said until it drops.
struct Goodbye<R: Resource>(Arc<Slot<R>>);

impl<R: Resource> Goodbye<R> {
    fn new(slot: &Arc<Slot<R>>) -> Self {
        slot.goodbyes.fetch_add(1, Ordering::Relaxed);
        Goodbye(Arc::clone(slot))
    }
}

impl<R: Resource> Drop for Goodbye<R> {
    fn drop(&mut self) {
        self.0.goodbyes.fetch_sub(1, Ordering::Release);
        self.0.activity().changed();
    }
}

/// An attempt that is given up if its task is dropped, even before it ran, so that nobody waits
/// for it.
struct Trying<R: Resource> {
    slot: Arc<Slot<R>>,
    attempt: u64,
    /// How long the acquire waits that asked for it; nobody asks for a recovery.
    asked_until: Option<Instant>,
}

impl<R: Resource> Trying<R> {
    fn new(slot: &Arc<Slot<R>>, attempt: u64, asked_until: Option<Instant>) -> Self {
        Trying { slot: Arc::clone(slot), attempt, asked_until }
    }

    /// Begins the next attempt after this pause. `false` if something overtook it, or closing has begun.
    async fn again_after(&mut self, pause: Duration) -> bool {
        let life = &self.slot.life;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = life.overtaken(self.attempt) => return false,
        }
        match life.again(self.attempt) {
            Some(next) => {
                self.attempt = next;
                true
            }
            None => false,
        }
    }
}

impl<R: Resource> Drop for Trying<R> {
    fn drop(&mut self) {
        self.slot.life.gave_up(self.attempt, self.slot.closed(), Duration::ZERO);
    }
}
