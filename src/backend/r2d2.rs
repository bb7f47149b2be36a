//! Any adapter for r2d2 as a kind of resource: exclusive connections, for threads.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use r2d2::ManageConnection;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::task::{JoinSet, spawn_blocking};

use crate::checkout::{Checkouts, Limits};
use crate::close::Phase;
use crate::error::{BoxError, Failure};
use crate::lease::{Provide, QuotaId};
use crate::resource::{Link, Resource};
use crate::runtime::prober;
use crate::status::Usage;
use crate::wait::Quota;

/// A kind of resource out of any adapter for `r2d2`: PostgreSQL, SQLite, MySQL, whatever there is one for. Threads
/// [check its connections out](crate::blocking::ResourcePool::check_out), each to one user at a time and in the order
/// of asking; they are opened on demand, probed, counted, drained and closed like those of the built-in kinds.
///
/// An adapter's calls cannot be cut short: one that hangs holds its thread, and a connection that is out when the
/// resource is lost or closed is closed when it comes back. To come back after a loss, up to four probes that hang are
/// left to themselves; then one of them has to end first, or the resource to be closed and connected anew.
///
/// ```
/// # #[derive(Debug)] struct Manager;
/// # impl r2d2::ManageConnection for Manager {
/// #     type Connection = String;
/// #     type Error = std::convert::Infallible;
/// #     fn connect(&self) -> Result<String, Self::Error> { Ok("connected".to_owned()) }
/// #     fn is_valid(&self, _: &mut String) -> Result<(), Self::Error> { Ok(()) }
/// #     fn has_broken(&self, _: &mut String) -> bool { false }
/// # }
/// # fn main() -> Result<(), resource_pool::Error> {
/// use resource_pool::{R2d2, blocking::ResourcePool};
///
/// let pool = ResourcePool::builder().build()?;
/// pool.register("orders", R2d2::new(Manager).max_size(4))?;
/// let connection = pool.check_out::<Manager>("orders")?;
/// assert_eq!(*connection, "connected");
/// # Ok(()) }
/// ```
pub struct R2d2<M: ManageConnection> {
    manager: Arc<M>,
    limits: Limits,
    phase: Phase,
    endpoint: String,
    pub(crate) quota: QuotaId,
    probe: Mutex<Probe<M>>,
}

impl<M: ManageConnection> R2d2<M> {
    /// At most 10 connections, closed after 60 s of idleness and replaced after 30 min; tested before they are checked
    /// out, unless they were within the last 500 ms; closed with the databases.
    pub fn new(manager: M) -> Self {
        let limits = Limits {
            max: 10,
            min_idle: 0,
            idle_timeout: Duration::from_secs(60),
            max_lifetime: Duration::from_secs(1800),
            test_after: Duration::from_millis(500),
        };
        let (phase, endpoint) = (Phase::Databases, String::new());
        let probe = Mutex::new(Probe { own: None, calls: JoinSet::new() });
        R2d2 { manager: Arc::new(manager), limits, phase, endpoint, quota: QuotaId::new(), probe }
    }

    /// Sets the most connections, at least 1. Defaults to 10.
    pub fn max_size(mut self, max_size: usize) -> Self {
        self.limits.max = max_size.max(1);
        self
    }

    /// Sets how many idle connections are kept. Defaults to 0.
    pub fn min_idle(mut self, min_idle: usize) -> Self {
        self.limits.min_idle = min_idle;
        self
    }

    /// Sets after how long an idle connection is closed. Defaults to 60 s; zero is never.
    pub fn idle_timeout(mut self, idle_timeout: Duration) -> Self {
        self.limits.idle_timeout = idle_timeout;
        self
    }

    /// Sets the longest that a connection is used, less up to a tenth. Defaults to 30 min; zero is for ever.
    pub fn max_lifetime(mut self, max_lifetime: Duration) -> Self {
        self.limits.max_lifetime = max_lifetime;
        self
    }

    /// Sets within which time a connection that was checked out is checked out again without a test. Defaults to
    /// 500 ms; zero tests it each time.
    pub fn test_after(mut self, test_after: Duration) -> Self {
        self.limits.test_after = test_after;
        self
    }

    /// Sets when it closes. Defaults to [`Phase::Databases`].
    pub fn phase(mut self, phase: Phase) -> Self {
        self.phase = phase;
        self
    }

    /// Sets what errors and reports say of where it is; without credentials.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = endpoint.into();
        self
    }
}

impl<M: ManageConnection<Error: Send + Sync>> Resource for R2d2<M> {
    type Handle = Connections<M>;

    async fn connect(&self, link: &Link) -> Result<Connections<M>, Failure> {
        let quota = Quota::of(self.quota, link, self.limits.max, "connections", "max_size");
        let checkouts = Checkouts::new(link, Arc::clone(&self.manager), self.limits.clone(), quota, BoxError::from);
        let connections = Connections(Arc::new(checkouts));
        self.probe(true).await?;
        // The first one is for users; probes open their own.
        if let Some(first) = self.probe.lock().await.own.take() {
            connections.0.admit(first);
        }
        Ok(connections)
    }

    async fn recover(&self, _: &Link, lost: &Connections<M>) -> Result<bool, Failure> {
        self.probe(true).await?;
        lost.0.accept();
        Ok(true)
    }

    async fn ping(&self, _: &Connections<M>) -> Result<(), Failure> {
        self.probe(false).await
    }

    async fn close(&self, connections: Connections<M>) -> Result<(), Failure> {
        let idle = connections.0.close();
        let mut probe = self.probe.lock().await;
        probe.calls.detach_all();
        let own = probe.own.take();
        drop(probe);
        // A driver's goodbye may block.
        Ok(spawn_blocking(|| drop((idle, own))).await?)
    }

    fn cut(&self, connections: &Connections<M>) {
        let idle = connections.0.refuse();
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(|| drop(idle))),
            Err(_) => drop(idle),
        }
    }

    fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    fn phase(&self) -> Phase {
        self.phase
    }

    fn usage(&self, connections: &Connections<M>) -> Usage {
        connections.0.usage()
    }
}

impl<M: ManageConnection<Error: Send + Sync>> R2d2<M> {
    /// Whether it answers: by the call that is under way, so that those that hang do not pile up; `anew` by one more, as
    /// that may be about what is lost.
    async fn probe(&self, anew: bool) -> Result<(), Failure> {
        let mut probe = self.probe.lock().await;
        let Probe { own, calls } = &mut *probe;
        if calls.is_empty() || anew && calls.len() < HUNG {
            let (manager, own) = (Arc::clone(&self.manager), own.take());
            let call = move || {
                let mut own = own.map_or_else(|| manager.connect(), Ok)?;
                manager.is_valid(&mut own)?;
                Ok(own)
            };
            calls.spawn_blocking_on(call, prober().map_err(Failure::transient)?);
        }
        if let Some(answer) = calls.join_next().await {
            *own = Some(answer??);
            // What they have is closed when they end.
            calls.detach_all();
        }
        Ok(())
    }
}

impl<M: ManageConnection> fmt::Debug for R2d2<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("R2d2").field("limits", &self.limits).field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// What an [`R2d2`] that is connected has open; [`check_out`](crate::blocking::ResourcePool::check_out) hands it out.
pub struct Connections<M: ManageConnection>(Arc<Checkouts<M>>);

/// How it is probed: over a connection of its own.
struct Probe<M: ManageConnection> {
    own: Option<M::Connection>,
    /// Those under way, each of which has one.
    calls: JoinSet<Result<M::Connection, M::Error>>,
}

/// How many calls may hang.
const HUNG: usize = 4;

impl<M: ManageConnection> Provide<Checkouts<M>> for Connections<M> {
    fn provide(&self) -> &Checkouts<M> {
        &self.0
    }
}

impl<M: ManageConnection> Clone for Connections<M> {
    fn clone(&self) -> Self {
        Connections(Arc::clone(&self.0))
    }
}

impl<M: ManageConnection> fmt::Debug for Connections<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connections").field(&self.0.usage()).finish()
    }
}
