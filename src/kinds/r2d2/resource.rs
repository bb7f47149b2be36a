//! The resource out of an adapter, which is its configuration too.
//!
//! A call to an adapter cannot be cut short, so each runs on a thread of its own that may hang. The lifecycle calls
//! `connect`, `recover` and `ping`, and those start such threads by `R2d2::ask`.
//!
//! Invariant: between two closes at most `HANGING` of these threads exist at a time, since each holds a permit until
//! its call ends. The async mutex `probe` is the only lock here. A ping holds it while it waits for the call in flight,
//! so that pings share one call. The adapter's own code runs on the thread, never on the task that holds the lock.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use r2d2::ManageConnection;
use tokio::sync::{Mutex, OwnedSemaphorePermit, oneshot};

use crate::base::error::{Error, Failure};
use crate::base::holder::QuotaId;
use crate::base::runtime::{park_on, thread};
use crate::kinds::r2d2::connections::Connections;
use crate::kinds::r2d2::probe::{Call, HANGING, PingProbe};
use crate::lifecycle::checkout::{Adapted, AdapterHook, Checkouts, Limits, Loan};
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::link::Link;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::Usage;
use crate::lifecycle::wait::Quota;
use crate::net::endpoint::without_credentials;

/// A kind of resource out of any adapter for `r2d2`: PostgreSQL, SQLite, MySQL, and others. Threads [check its
/// connections out](crate::pool::blocking::ResourcePool::check_out), each to one user at a time and in the order of
/// asking. The connections are opened on demand, probed, counted, drained and closed like those of the built-in kinds.
///
/// A call to an adapter cannot be cut short. One that hangs keeps its thread, and a connection that is checked out when
/// the resource is lost or closed is closed when it comes back. To recover after a loss, up to four probes that hang
/// are abandoned. After that one of them has to end first, or the resource has to be closed and connected anew.
///
/// Probes use an idle connection, or open one within `max_size`. While users have all of them, no probe can ask the
/// server, and health is unknown.
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
    is_permanent: Arc<Classifier<M::Error>>,
    on_connect: Option<Arc<AdapterHook<M>>>,
    /// The quota that counts the checkouts.
    pub(crate) quota: QuotaId,
    /// The pings' calls to the adapter.
    probe: Mutex<PingProbe>,
}

type Classifier<E> = dyn Fn(&E) -> bool + Send + Sync;

impl<M: ManageConnection> R2d2<M> {
    /// Makes a resource out of an adapter. It has at most 10 connections, which are closed after 60 s of idleness and
    /// replaced after 30 min. A connection is tested before it is checked out, unless it was checked out within the
    /// last 500 ms. The resource closes with the databases.
    pub fn new(manager: M) -> Self {
        let limits = Limits::default();
        let (phase, endpoint) = (Phase::Databases, String::new());
        let (is_permanent, probe) = (Arc::new(|_: &M::Error| false), Mutex::new(PingProbe::new()));
        let (manager, quota) = (Arc::new(manager), QuotaId::new());
        R2d2 { manager, limits, phase, endpoint, is_permanent, on_connect: None, quota, probe }
    }

    /// Sets the most connections, at least 1. Defaults to 10.
    pub fn max_size(mut self, max_size: usize) -> Self {
        self.limits.max = max_size.max(1);
        self
    }

    /// Sets the number of idle connections that are kept, from the start and after a loss; at most `max_size`. Defaults
    /// to 0.
    pub fn min_idle(mut self, min_idle: usize) -> Self {
        self.limits.min_idle = min_idle;
        self
    }

    /// Sets the time after which an idle connection is closed. Defaults to 60 s; zero is never.
    pub fn idle_timeout(mut self, idle_timeout: Duration) -> Self {
        self.limits.idle_timeout = idle_timeout;
        self
    }

    /// Sets the longest time that a connection is used, less up to a tenth. Defaults to 30 min; zero is for ever.
    pub fn max_lifetime(mut self, max_lifetime: Duration) -> Self {
        self.limits.max_lifetime = max_lifetime;
        self
    }

    /// Sets the time within which a connection that was checked out is checked out again without a test. Defaults to
    /// 500 ms; zero tests it each time.
    pub fn test_after(mut self, test_after: Duration) -> Self {
        self.limits.test_after = test_after;
        self
    }

    /// Sets the time after which an idle connection that was neither checked out nor tested is tested in the background,
    /// and replaced if it is broken. It keeps firewalls and servers from ending idle connections unnoticed. One
    /// connection is tested at a time. A user who needs that one waits for the test, and after 250 ms another one is
    /// opened. The last idle connection is therefore not tested while there may be no more than there are. Defaults to
    /// zero, which is never.
    pub fn test_idle_after(mut self, test_idle_after: Duration) -> Self {
        self.limits.test_idle_after = test_idle_after;
        self
    }

    /// Sets which errors of the adapter no further attempt can mend, such as a wrong password. Connecting then gives up
    /// at once, with [`ConnectError::permanent`](crate::ConnectError::permanent). By default no error is permanent.
    pub fn permanent(mut self, is_permanent: impl Fn(&M::Error) -> bool + Send + Sync + 'static) -> Self {
        self.is_permanent = Arc::new(is_permanent);
        self
    }

    /// Sets a hook that runs on each new connection, those after a loss included, such as one that sets a time zone. It
    /// is for what `on_acquire` of an r2d2 `CustomizeConnection` does. An error, or a panic, counts as one of
    /// connecting, and names the hook. A hook that hangs keeps its thread, as any call to an adapter does, and the
    /// attempt to connect ends at `connect_timeout`.
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
    /// let orders = R2d2::new(Manager).on_connect(|connection| {
    ///     connection.push_str(" and prepared");
    ///     Ok(())
    /// });
    /// pool.register("orders", orders)?;
    /// assert_eq!(*pool.check_out::<Manager>("orders")?, "connected and prepared");
    /// # Ok(()) }
    /// ```
    pub fn on_connect(
        mut self,
        run: impl Fn(&mut M::Connection) -> Result<(), M::Error> + Send + Sync + 'static,
    ) -> Self {
        self.on_connect = Some(Arc::new(run));
        self
    }

    /// Sets the phase in which the resource closes. Defaults to [`Phase::Databases`].
    pub fn phase(mut self, phase: Phase) -> Self {
        self.phase = phase;
        self
    }

    /// Sets the address that errors and reports show, without credentials. A login in it is left out, as of
    /// [`Resource::endpoint`].
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = without_credentials(&endpoint.into());
        self
    }
}

impl<M: ManageConnection<Error: Send + Sync>> Resource for R2d2<M> {
    type Handle = Connections<M>;

    async fn connect(&self, link: &Link) -> Result<Connections<M>, Failure> {
        let quota = Quota::of(self.quota, link, self.limits.max, "connections", "max_size");
        let is_permanent = Arc::clone(&self.is_permanent);
        let manager = Adapted::new(Arc::clone(&self.manager), move |error| match is_permanent(&error) {
            true => Failure::permanent(error),
            false => Failure::transient(error),
        })
        .with_hook(self.on_connect.clone());
        let checkouts = Checkouts::new(link, manager, self.limits.clone(), quota);
        let connections = Connections(Arc::new(checkouts));
        self.connect_first(&connections).await?;
        Ok(connections)
    }

    async fn recover(&self, _: &Link, lost: &Connections<M>) -> Result<bool, Failure> {
        self.connect_first(lost).await.inspect_err(|failure| {
            if failure.is_permanent() {
                lost.0.give_up();
            }
        })?;
        Ok(true)
    }

    async fn ping(&self, connections: &Connections<M>) -> Result<(), Failure> {
        let mut probe = self.probe.lock().await;
        let PingProbe { call, hanging } = &mut *probe;
        let under_way = match &mut *call {
            // Every ping waits for the call in flight, so that hanging calls do not pile up.
            Some(under_way) => under_way,
            none => {
                let permit = Arc::clone(hanging).try_acquire_owned();
                let permit =
                    permit.map_err(|_none| Failure::transient(format!("{HANGING} calls to the adapter hang")))?;
                none.insert(self.ask(connections.0.loan()?, permit)?)
            }
        };
        let answer = under_way.await;
        *call = None;
        answer?
    }

    async fn close(&self, connections: Connections<M>) -> Result<(), Failure> {
        *self.probe.lock().await = PingProbe::new();
        connections.0.close().await;
        Ok(())
    }

    async fn refresh(&self, connections: &Connections<M>) -> Result<bool, Failure> {
        connections.0.refresh().await?;
        Ok(true)
    }

    fn resize(&self, connections: &Connections<M>, max: usize) -> bool {
        connections.0.resize(max);
        true
    }

    fn cut(&self, connections: &Connections<M>) {
        connections.0.cut();
    }

    fn connects_uncut(&self) -> bool {
        true
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
    /// Opens the first connection, even if calls of earlier attempts hang. If this future is dropped, a connection that
    /// opens later is closed.
    async fn connect_first(&self, connections: &Connections<M>) -> Result<(), Failure> {
        let mut probe = self.probe.lock().await;
        probe.call = None;
        let hanging = Arc::clone(&probe.hanging);
        drop(probe);
        let permit = hanging.acquire_owned().await?;
        self.ask(connections.0.first(), permit)?.await??;
        connections.0.accept();
        Ok(())
    }

    /// Asks the server over a connection, on a thread that may hang. The thread returns the permit when the call ends.
    fn ask(&self, loan: Loan<Adapted<M>>, permit: OwnedSemaphorePermit) -> Result<Call, Failure> {
        let (answer, answered) = oneshot::channel();
        let call = move |loan: Loan<Adapted<M>>| {
            let asked = park_on(loan.ask());
            drop(permit);
            // The receiver may be gone.
            let _ = answer.send(asked);
        };
        match thread(call) {
            Ok(thread) => drop(thread.send(loan)),
            Err(error) => {
                let error = Error::no_threads(loan.resource(), error);
                loan.give_back();
                return Err(Failure::unasked(error));
            }
        }
        Ok(answered)
    }
}

impl<M: ManageConnection> fmt::Debug for R2d2<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("R2d2").field("limits", &self.limits).field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
