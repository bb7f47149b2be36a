//! [`Slot`], which is one named resource of a pool and drives its [`Life`]. This file has its parts and runs the
//! resource's own code. `acquiring` has the leases, `any` the view of the pool, `changing` what users change at run
//! time, and `connecting` the tasks that connect.

mod acquiring;
mod any;
mod changing;
mod connecting;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::base::error::{ConnectError, Error, Failure, OneLine, Remedies, Source, panic_message};
use crate::base::future::BoxFuture;
use crate::lifecycle::activity::Activity;
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::context::Context;
use crate::lifecycle::life::Life;
use crate::lifecycle::link::Link;
use crate::lifecycle::options::Options;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::spans::{System, Traced};
use crate::lifecycle::user_ping::UserPings;
use crate::net::endpoint::without_credentials;

/// One named resource of a pool.
pub(crate) struct Slot<R: Resource> {
    resource: R,
    phase: Phase,
    life: Life<R::Handle>,
    /// The number of disconnects of lost or late handles that are in flight.
    disconnects: AtomicUsize,
    /// Whether a thread asks a handle that is gone for its counts.
    is_counting: AtomicBool,
    /// The advice for a failed connect. `None` if the pool does not know how the resource is configured.
    remedies: Option<Remedies>,
    /// The pings of a user's own code, which may block. `None` for a built-in kind.
    pings: Option<UserPings>,
    context: Arc<Context>,
}

impl<R: Resource> Slot<R> {
    /// A slot for a configured kind. The code of a user's own kind runs here, so the caller holds no lock.
    pub(crate) fn configured(
        name: &str,
        (kind, system): (&'static str, System),
        is_ours: bool,
        resource: R,
        remedies: Remedies,
        context: Arc<Context>,
    ) -> Arc<Self> {
        let pings = (!is_ours).then(UserPings::default);
        Slot::new(name, (Some(kind), Some(system)), resource, Some(remedies), pings, context)
    }

    /// A slot for a system that has no server and no configuration by name, such as a file. Its code is the crate's own.
    pub(crate) fn of_program(name: &str, kind: &'static str, resource: R, context: Arc<Context>) -> Arc<Self> {
        Slot::new(name, (Some(kind), None), resource, None, None, context)
    }

    /// A slot for a user's own resource. The user's code runs here, so the caller holds no lock.
    pub(crate) fn of_user(name: &str, resource: R, context: Arc<Context>) -> Arc<Self> {
        Slot::new(name, (None, None), resource, None, Some(UserPings::default()), context)
    }

    fn new(
        name: &str,
        (kind, system): (Option<&'static str>, Option<System>),
        resource: R,
        remedies: Option<Remedies>,
        pings: Option<UserPings>,
        context: Arc<Context>,
    ) -> Arc<Self> {
        let endpoint = OneLine(resource.endpoint()).to_string();
        // A user's own code may have left a login in it.
        let endpoint = if pings.is_some() { without_credentials(&endpoint) } else { endpoint };
        let traced = Traced::new(Arc::from(name), system, &endpoint, context.options.trace_operations);
        let activity = Activity::of(traced, kind, endpoint, &context.observers);
        let life = Life::new(activity, &context.options.leaks, context.options.retry.cap);
        let (phase, disconnects, is_counting) = (resource.phase(), AtomicUsize::new(0), AtomicBool::new(false));
        Arc::new(Slot { phase, resource, life, disconnects, is_counting, remedies, pings, context })
    }

    pub(crate) fn resource(&self) -> &R {
        &self.resource
    }

    fn connect_error(&self, source: Source, permanent: bool, attempts: usize, started: Instant) -> Error {
        Error::Connect(Arc::new(ConnectError {
            resource: Arc::clone(self.name()),
            endpoint: Arc::clone(&self.activity().endpoint),
            attempts,
            elapsed: started.elapsed(),
            permanent,
            remedy: self.remedies.as_ref().and_then(|remedies| remedies.of(&source, permanent)),
            source,
        }))
    }

    fn closed(&self) -> Error {
        Error::closed(self.name())
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
            #[cfg(feature = "checkouts")]
            retry: retry.clone(),
            #[cfg(feature = "checkouts")]
            connect_timeout: self.context.options.connect_timeout,
            patience,
        }
    }

    /// The ping as the pool awaits it. A user's own code pings on a thread of its own.
    fn asked(
        &self,
        ping: impl Future<Output = Result<(), Failure>> + Send + 'static,
    ) -> BoxFuture<Result<(), Failure>> {
        match &self.pings {
            None => Box::pin(ping),
            Some(pings) => pings.on_own_thread(self.name(), Box::pin(ping)),
        }
    }

    fn as_weak(self: &Arc<Self>) -> Weak<dyn AnySlot> {
        let slot: Arc<dyn AnySlot> = self.clone();
        Arc::downgrade(&slot)
    }

    /// Runs a resource's own code where a panic would harm others. `None` if it panicked.
    fn guarded<T>(&self, verb: &str, run: impl FnOnce() -> T) -> Option<T> {
        catch_unwind(AssertUnwindSafe(run))
            .inspect_err(|payload| {
                tracing::error!(resource = %self.name(), message = panic_message(&**payload), "{verb} panicked");
            })
            .ok()
    }
}
