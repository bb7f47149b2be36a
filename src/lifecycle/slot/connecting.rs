//! The tasks that connect a resource, and bring it back once it is lost.
//!
//! A wait spawns [`connect`] for an acquire, and [`Slot::recover`] spawns it for a loss. Its task makes one attempt
//! after another until the resource is ready, the budget is used up, or the attempt is superseded. Each attempt has a
//! task of its own below that one, so that its panic is an error. If the task is dropped, [`Trying`] gives the attempt
//! up, so no caller waits for it in vain.
//!
//! Each disconnect of a lost or late handle is a task too. `Slot::disconnects` counts them, and closing waits until it
//! is zero. Nothing here is locked across an await, and the verbs of a resource run under no lock.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::base::error::{Failure, Proof, Source, panic_message};
use crate::base::runtime::{LONGEST, thread, within};
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::condition::Progress;
use crate::lifecycle::event::What;
use crate::lifecycle::link::{Link, TOLD};
use crate::lifecycle::probe::{self, Watch};
use crate::lifecycle::resource::Resource;
use crate::lifecycle::slot::Slot;
use crate::lifecycle::spans::TaskSpan;
use crate::lifecycle::transition::{ConnectOutcome, Superseded};

/// How long a recovery may take to disconnect a lost handle, whose server seldom answers. Closing waits for it, so it
/// is part of the close budget.
const DISCONNECT_LIMIT: Duration = Duration::from_millis(500);

/// Tries until the resource is connected, the retry's budget is used up, or closing or another attempt supersedes it.
/// `recovery` is the pause before the first attempt of a recovery. It is `None` if an acquire asked.
pub(super) async fn connect<R: Resource>(mut trying: Trying<R>, recovery: Option<Duration>) {
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
    life.tell(What::Connecting);
    for attempts in 1.. {
        let (attempt, began) = (trying.attempt, Instant::now());
        let limit = full.min(budget.saturating_sub(started.elapsed()));
        let limit = match trying.asked_until.filter(|_| slot.resource.connects_uncut()) {
            Some(until) => limit.max(until.saturating_duration_since(began)),
            None => limit,
        };
        let span = trying.asked.in_scope(|| slot.activity().traced.connect(attempts));
        if recovery.is_some() {
            // A recovery may go on for an hour, and would keep the span of the caller open.
            trying.asked = TaskSpan::none();
        }
        let failure = tokio::select! {
            tried = slot.attempt(attempt, limit, &span) => match tried {
                Ok(()) => return,
                Err(failure) => failure,
            },
            () = life.superseded(attempt) => {
                if !life.has_made(attempt) {
                    span.failed("superseded", "closing or another attempt has made it pointless");
                }
                return;
            }
        };
        span.failed("connect", &failure);
        drop(span);
        let took = began.elapsed();
        // An attempt that cannot have enough time is not begun, since its failure would explain nothing.
        let least = took.max(full / 4);
        let fits = |pause: &Duration| started.elapsed().saturating_add(*pause).saturating_add(least) < budget;
        // A server that answers that it cannot serve yet is asked until the budget ends, however many attempts that
        // takes.
        let patient = (failure.proof() == Proof::Refused).then_some(context.options.retry.cap);
        let pause = pauses.next().or(patient).filter(|pause| !failure.permanent && fits(pause));
        // An attempt that the budget cut short explains less than the one before it.
        let source = match told {
            Some(before) if limit < full && took >= limit => before,
            _ => Source::from(failure.source),
        };
        told = Some(Arc::clone(&source));
        let error = slot.connect_error(source, failure.permanent, attempts, started);
        let Some(pause) = pause else {
            life.tell(What::ConnectFailed { error: error.clone() });
            return life.gave_up(attempt, error, context.options.circuit);
        };
        life.tell(What::AttemptFailed { error: error.clone(), pause });
        life.failed(attempt, error, pause);
        if !trying.again_after(pause).await {
            return;
        }
    }
}

impl<R: Resource> Slot<R> {
    /// Makes one attempt within its limit, in a task of its own so that a panic is an error.
    async fn attempt(self: &Arc<Self>, attempt: u64, limit: Duration, span: &TaskSpan) -> Result<(), Failure> {
        let (me, began, span) = (Arc::clone(self), Instant::now(), span.clone());
        // A set, because dropping it aborts its task.
        let mut task = JoinSet::new();
        task.spawn(async move {
            let link = me.link(attempt, limit);
            let brought = me.in_time(limit, span.around(me.bring(attempt, &link))).await;
            // From here on nothing awaits, so the new handle cannot get lost.
            let watch = |generation| me.watch(generation);
            match brought {
                Ok(Ok(Some(handle))) => me.ready(began, me.life.connected(attempt, handle, watch)),
                Ok(Ok(None)) => me.ready(began, me.life.recovered(attempt, watch)),
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

    /// Awaits within the limit, which begins anew each time that the attempt tells how far it has come.
    async fn in_time<T>(&self, limit: Duration, brought: impl Future<Output = T>) -> Result<T, Failure> {
        let mut limit = limit.min(LONGEST);
        let mut brought = pin!(brought);
        let (mut since, mut far) = (Instant::now(), String::new());
        loop {
            if let Ok(brought) = tokio::time::timeout_at(since + limit, &mut brought).await {
                return Ok(brought);
            }
            match self.life.condition().progress {
                Some(Progress { at, told }) if at > since => {
                    (since, far, limit) = (at, format!(" after {told}"), limit.max(TOLD));
                }
                _ => return Err(Failure::transient(format!("no answer within {limit:.1?}{far}"))),
            }
        }
    }

    /// Brings the lost handle back, or makes a new one. `None` if the lost one is back.
    async fn bring(self: &Arc<Self>, attempt: u64, link: &Link) -> Result<Option<R::Handle>, Failure> {
        let (lost, turn) = self.life.handle_in_turn();
        if let Some(lost) = lost
            && self.resource.recover(link, &lost).await?
        {
            return Ok(None);
        }
        if self.pings.is_none() {
            // The life notes the last counts. A built-in kind tells them without blocking.
            self.usage();
        }
        match self.life.forget(attempt) {
            Ok(Some(lost)) => {
                if self.pings.is_some() {
                    self.count_aside(turn, lost.clone());
                }
                if let Err(error) = self.disconnect(lost, DISCONNECT_LIMIT).await {
                    tracing::debug!(resource = %self.name(), %error, "saying goodbye");
                }
            }
            Ok(None) => {}
            Err(Superseded) => return Err(Failure::permanent("superseded")),
        }
        self.resource.connect(link).await.map(Some)
    }

    /// Disconnects a lost or late handle. A failure is only logged. This is a task of its own, which only the limit
    /// cuts short, since closing the pool waits for it.
    fn disconnect(self: &Arc<Self>, handle: R::Handle, limit: Duration) -> JoinHandle<()> {
        let disconnect = Disconnect::new(self);
        tokio::spawn(async move {
            let slot = &disconnect.0;
            match within(limit, slot.resource.close(handle)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(resource = %slot.name(), %error, "saying goodbye"),
                Err(elapsed) => tracing::debug!(resource = %slot.name(), %elapsed, "saying goodbye"),
            }
        })
    }

    /// Follows up on an attempt that succeeded.
    fn ready(self: &Arc<Self>, began: Instant, connected: ConnectOutcome<R::Handle>) {
        match connected {
            ConnectOutcome::Ready { generation, lost } => {
                self.activity().tell(generation, What::Connected { took: began.elapsed() });
                if let Some(pings) = &self.pings {
                    pings.begin_generation();
                }
                if let Some(cause) = lost {
                    AnySlot::lost(Arc::clone(self), None, generation, cause);
                }
            }
            ConnectOutcome::Late(handle) => drop(self.disconnect(handle, self.context.options.close.step)),
            ConnectOutcome::Superseded => {}
        }
    }

    fn watch(self: &Arc<Self>, generation: u64) -> Option<Watch> {
        probe::watch(self.as_weak(), generation, self.context.options.probe.clone())
    }

    /// Cuts the lost connection, and starts the task that brings it back. `asked` is the span of a caller that asked
    /// for it.
    pub(super) fn recover(self: Arc<Self>, attempt: u64, pause: Duration, asked: TaskSpan) {
        let Some(runtime) = self.context.runtime.current() else {
            self.cut();
            return self.life.gave_up(attempt, self.closed(), Duration::ZERO);
        };
        let connect = connect(Trying::new(&self, attempt, None, asked), Some(pause));
        // Cut before a new connection is made, since the kill switch would reach that too.
        match self.pings {
            None => {
                self.cut();
                drop(runtime.spawn(connect));
            }
            Some(_) => drop(runtime.spawn(async move {
                self.cut_aside().await;
                connect.await;
            })),
        }
    }

    /// Cuts on a thread of its own, since a user's code may block. Waits for it as long as for a disconnect.
    pub(super) async fn cut_aside(self: Arc<Self>) {
        let (runtime, (end, ended)) = (Handle::current(), oneshot::channel::<Infallible>());
        let cut = move |me: Arc<Self>| {
            let _context = runtime.enter();
            me.cut();
            drop(end);
        };
        match thread(cut) {
            Ok(thread) => drop(thread.send(self)),
            // No caller may wait on a lost connection, so it is cut on this thread.
            Err(_no_threads) => return self.cut(),
        }
        if within(DISCONNECT_LIMIT, ended).await.is_err() {
            tracing::warn!("a cut does not come back; it must not block its thread");
        }
    }

    /// Asks the handle of this turn, which is gone, for its counts. A user's code may block, so it runs on a thread of
    /// its own, for which nobody waits. The counts are left out if no thread can be had, or while an earlier one hangs.
    fn count_aside(self: &Arc<Self>, turn: u64, handle: R::Handle) {
        let Some(counting) = Counting::begin(self) else {
            tracing::warn!(resource = %self.name(), "an earlier usage has not come back; it must not block its thread");
            return;
        };
        let runtime = Handle::current();
        let count = move |()| {
            let _context = runtime.enter();
            let slot = &counting.0;
            // The handle may be the last one, so its drop is guarded too.
            let told = slot.guarded("usage", move || slot.resource.usage(&handle).counters);
            slot.life.count(turn, told.unwrap_or_default());
        };
        if let Ok(thread) = thread(count) {
            // The thread waits for this message.
            let _ = thread.send(());
        }
    }
}

/// Marks the one thread that asks a handle that is gone for its counts, until it drops.
struct Counting<R: Resource>(Arc<Slot<R>>);

impl<R: Resource> Counting<R> {
    /// `None` while another thread asks.
    fn begin(slot: &Arc<Slot<R>>) -> Option<Self> {
        // The flag guards no memory.
        (!slot.is_counting.swap(true, Ordering::Relaxed)).then(|| Counting(Arc::clone(slot)))
    }
}

impl<R: Resource> Drop for Counting<R> {
    fn drop(&mut self) {
        self.0.is_counting.store(false, Ordering::Relaxed);
    }
}

/// Counts a disconnect as in flight until it drops.
pub(super) struct Disconnect<R: Resource>(Arc<Slot<R>>);

impl<R: Resource> Disconnect<R> {
    pub(super) fn new(slot: &Arc<Slot<R>>) -> Self {
        slot.disconnects.fetch_add(1, Ordering::Relaxed);
        Disconnect(Arc::clone(slot))
    }
}

impl<R: Resource> Drop for Disconnect<R> {
    fn drop(&mut self) {
        // Pairs with the `Acquire` in `has_disconnected`.
        self.0.disconnects.fetch_sub(1, Ordering::Release);
        self.0.activity().changed();
    }
}

/// An attempt that is given up if its task is dropped, even before it ran, so that no caller waits for it in vain.
pub(super) struct Trying<R: Resource> {
    slot: Arc<Slot<R>>,
    attempt: u64,
    /// The time until which the acquire that asked for it waits. `None` for a recovery.
    asked_until: Option<Instant>,
    /// The span of the wait that asked for it, or of the caller. Disabled for a loss.
    asked: TaskSpan,
}

impl<R: Resource> Trying<R> {
    pub(super) fn new(slot: &Arc<Slot<R>>, attempt: u64, asked_until: Option<Instant>, asked: TaskSpan) -> Self {
        Trying { slot: Arc::clone(slot), attempt, asked_until, asked }
    }

    /// Begins the next attempt after this pause. Returns `false` if this one was superseded, or closing has begun.
    async fn again_after(&mut self, pause: Duration) -> bool {
        let life = &self.slot.life;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = life.superseded(self.attempt) => return false,
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
