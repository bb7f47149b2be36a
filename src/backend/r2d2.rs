//! Any adapter for r2d2 as a kind of resource: exclusive connections, for threads.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use r2d2::ManageConnection;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::checkout::{Checkouts, Limits};
use crate::close::Phase;
use crate::error::{BoxError, Failure};
use crate::lease::{Provide, QuotaId};
use crate::resource::{Link, Resource};
use crate::status::Usage;
use crate::wait::Quota;

/// A kind of resource out of any adapter for `r2d2`: PostgreSQL, SQLite, MySQL, whatever there is one for. Threads
/// [check its connections out](crate::blocking::ResourcePool::check_out), each to one user at a time and in the order
/// of asking; they are opened on demand, probed, counted, drained and closed like those of the built-in kinds.
///
/// An adapter's calls cannot be cut short: one that hangs holds its thread, and a connection that is out when the
/// resource is lost or closed is closed when it comes back. Every zero among the limits is without.
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
        let probe = Mutex::new(Probe { own: None, call: None });
        R2d2 { manager: Arc::new(manager), limits, phase, endpoint, quota: QuotaId::new(), probe }
    }

    /// Sets the most connections, at least 1.
    pub fn max_size(mut self, max_size: usize) -> Self {
        self.limits.max = max_size.max(1);
        self
    }

    /// Sets how many idle connections are kept.
    pub fn min_idle(mut self, min_idle: usize) -> Self {
        self.limits.min_idle = min_idle;
        self
    }

    /// Sets after how long an idle connection is closed.
    pub fn idle_timeout(mut self, idle_timeout: Duration) -> Self {
        self.limits.idle_timeout = idle_timeout;
        self
    }

    /// Sets the longest that a connection is used, less up to a tenth.
    pub fn max_lifetime(mut self, max_lifetime: Duration) -> Self {
        self.limits.max_lifetime = max_lifetime;
        self
    }

    /// Sets within which time a connection that was checked out is checked out again without a test.
    pub fn test_after(mut self, test_after: Duration) -> Self {
        self.limits.test_after = test_after;
        self
    }

    /// Sets when it closes.
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
        self.ping(&connections).await?;
        // The first one is for users; probes open their own.
        if let Some(first) = self.probe.lock().await.own.take() {
            connections.0.admit(first);
        }
        Ok(connections)
    }

    async fn recover(&self, _: &Link, lost: &Connections<M>) -> Result<bool, Failure> {
        self.ping(lost).await?;
        lost.0.accept();
        Ok(true)
    }

    async fn ping(&self, _: &Connections<M>) -> Result<(), Failure> {
        let mut probe = self.probe.lock().await;
        let Probe { own, call } = &mut *probe;
        // One that hangs is awaited again, so that such calls do not pile up.
        let answer = call.get_or_insert_with(|| {
            let (manager, own) = (Arc::clone(&self.manager), own.take());
            spawn_blocking(move || {
                let mut own = own.map_or_else(|| manager.connect(), Ok)?;
                manager.is_valid(&mut own)?;
                Ok(own)
            })
        });
        let answer = answer.await;
        probe.call = None;
        probe.own = Some(answer??);
        Ok(())
    }

    async fn close(&self, connections: Connections<M>) -> Result<(), Failure> {
        let idle = connections.0.close();
        let probe = self.probe.lock().await.own.take();
        // A driver's goodbye may block.
        Ok(spawn_blocking(|| drop((idle, probe))).await?)
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

impl<M: ManageConnection> fmt::Debug for R2d2<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("R2d2").field("limits", &self.limits).field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// What an [`R2d2`] that is connected has open; [`check_out`](crate::blocking::ResourcePool::check_out) hands it out.
pub struct Connections<M: ManageConnection>(Arc<Checkouts<M>>);

/// How it is probed: over a connection of its own, by one call at a time.
struct Probe<M: ManageConnection> {
    own: Option<M::Connection>,
    /// The call that has it meanwhile.
    call: Option<JoinHandle<Result<M::Connection, M::Error>>>,
}

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
