//! Leases of a slot, and the wait until it can be leased.
//!
//! A lease of a ready slot is taken on the caller's thread. A wait is a task on the pool's runtime, so that any
//! executor may poll the answer. Dropping the answer ends the wait. An attempt that the wait has begun is another task,
//! so it goes on for the other callers. Nothing here is locked across an await.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::base::error::{Error, Source, TimeoutError};
use crate::base::runtime::{LONGEST, within};
use crate::lifecycle::activity::Activity;
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::condition::{Condition, Progress};
use crate::lifecycle::event::What;
use crate::lifecycle::lease::{Claim, Lease, LeaseAs};
use crate::lifecycle::link::Link;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::slot::Slot;
use crate::lifecycle::slot::connecting::{Trying, connect};
use crate::lifecycle::spans::TaskSpan;
use crate::lifecycle::status::State;
use crate::lifecycle::transition::Caller;

/// The words for the span of a wait until the resource is connected.
pub(super) const CONNECTING: Option<&str> = Some("connecting");

impl<R: Resource> Slot<R> {
    /// A lease at once. `None` if the resource is not ready.
    #[inline]
    pub(crate) fn lease<T: ?Sized + 'static>(&self, claim: Claim) -> Result<Option<Lease<T>>, Error>
    where
        R::Handle: LeaseAs<T>,
    {
        self.context.check_process()?;
        Ok(match self.life.table.lease(claim) {
            Some(lease) => Some(lease),
            None => self.lease_inside(claim),
        })
    }

    /// A lease for the pool's own closing code, while only that gets one.
    #[cold]
    fn lease_inside<T: ?Sized + 'static>(&self, claim: Claim) -> Option<Lease<T>>
    where
        R::Handle: LeaseAs<T>,
    {
        self.context.close.is_inside().then(|| self.life.table.lease_inside(claim)).flatten()
    }

    /// A lease. Connects first if necessary.
    pub(crate) async fn acquire<T: ?Sized + 'static>(
        self: &Arc<Self>,
        claim: Claim,
        limit: Duration,
    ) -> Result<Lease<T>, Error>
    where
        R::Handle: LeaseAs<T>,
    {
        let started = Instant::now();
        loop {
            if let Some(lease) = self.lease(claim)? {
                return Ok(lease);
            }
            self.begin_waiting(limit.saturating_sub(started.elapsed()), self.caller(false), CONNECTING).await?;
        }
    }

    pub(super) fn caller(&self, patient: bool) -> Caller {
        Caller { patient, inside: self.context.close.is_inside() }
    }

    /// Begins to wait on the pool's runtime, so that any executor may poll the answer. Dropping the future only stops
    /// the waiting. The attempt that it asked for begins all the same. `waiting_for` has the words for the span of the
    /// wait, which has none if nobody waits.
    pub(super) fn begin_waiting(
        self: &Arc<Self>,
        limit: Duration,
        caller: Caller,
        waiting_for: Option<&'static str>,
    ) -> impl Future<Output = Result<(), Error>> + Send + use<R> {
        let state = self.context.check_process().map(|()| self.life.state());
        // The span is made here, where that of the caller is entered. A resource that is ready is not waited for.
        let span = match (&state, waiting_for) {
            (Ok(State::Ready) | Err(_), _) | (_, None) => TaskSpan::none(),
            (Ok(_), Some(waiting_for)) => self.activity().traced.wait(waiting_for),
        };
        // A closed resource does not even start a runtime.
        let runtime = state.and_then(|state| match state {
            State::Closed => Err(self.closed()),
            _ => self.runtime(),
        });
        let (waits, given_up) = oneshot::channel::<Infallible>();
        let waiting = runtime.map(|runtime| {
            self.context.note_runtime(&runtime);
            let (me, span) = (Arc::clone(self), span.clone());
            runtime.spawn(async move {
                tokio::select! {
                    biased; // An answer that is there counts, even if its caller gave up in the same moment.
                    ready = me.wait(limit, caller, span) => Some(ready),
                    _ = given_up => None,
                }
            })
        });
        let closed = self.closed();
        async move {
            let _waits = waits;
            let ready = match waiting {
                Ok(waiting) => waiting.await.ok().flatten().unwrap_or(Err(closed)),
                Err(refused) => Err(refused),
            };
            ready.inspect_err(|error| span.failed(error.code(), error))
        }
    }

    /// The runtime to wait on. None is started once closing has begun.
    pub(super) fn runtime(&self) -> Result<Handle, Error> {
        match self.context.check_open(self.name()) {
            Ok(()) => self.context.runtime.handle(self.name()),
            Err(closed) => self.context.runtime.current().ok_or(closed),
        }
    }

    async fn wait(self: Arc<Self>, limit: Duration, caller: Caller, span: TaskSpan) -> Result<(), Error> {
        let started = Instant::now();
        let closing = || self.context.close.is_closing();
        let asked_until = Some(started + limit.min(LONGEST));
        let connect = |attempt| {
            drop(tokio::spawn(connect(Trying::new(&self, attempt, asked_until, span.clone()), None)));
        };
        let ready = within(limit, self.life.ready(caller, closing, connect)).await.unwrap_or_else(|_elapsed| {
            let Condition { failure, progress, .. } = self.life.condition();
            if let (true, Some(failure), None) = (caller.patient, &failure, &progress) {
                return Err(failure.clone());
            }
            let far = progress.map_or_else(String::new, |Progress { told, .. }| format!(": {told}"));
            let Activity { name, endpoint, .. } = &**self.activity();
            let source = failure.map(|failure| Arc::new(failure) as Source);
            let timeout = TimeoutError::new(name, endpoint, format!("connecting{far}"), started.elapsed());
            Err(Error::Timeout(Arc::new(TimeoutError { source, ..timeout })))
        });
        if let Err(Error::Timeout(error)) = &ready {
            self.life.note(|| What::TimedOut { error: Arc::clone(error) });
        }
        ready
    }
}

impl Link {
    /// A lease of this resource, of type `R`, for a guard that the resource itself hands out, such as a connection by
    /// the claim of its [`Quota`](crate::adapter::Quota). `None` if the resource is not ready.
    pub fn lease<R: Resource, T: ?Sized + 'static>(&self, claim: Claim) -> Option<Lease<T>>
    where
        R::Handle: LeaseAs<T>,
    {
        self.slot::<R>()?.lease(claim).ok()?
    }

    /// The slot of this resource, if it is of type `R`.
    pub(crate) fn slot<R: Resource>(&self) -> Option<Arc<Slot<R>>> {
        self.slot.upgrade()?.as_any().downcast().ok()
    }
}
