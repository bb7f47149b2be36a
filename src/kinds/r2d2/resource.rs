//! The resource out of an adapter, which is its configuration too.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use r2d2::ManageConnection;
use tokio::sync::{Mutex, OwnedSemaphorePermit, oneshot};

use crate::base::error::{Error, Failure};
use crate::base::holder::QuotaId;
use crate::base::runtime::{park_on, thread};
use crate::kinds::r2d2::connections::Connections;
use crate::kinds::r2d2::probe::{Call, HANGING, Probe};
use crate::lifecycle::checkout::{Adapted, Checkouts, Limits, Loan};
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::link::Link;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::Usage;
use crate::lifecycle::wait::Quota;

/// A kind of resource out of any adapter for `r2d2`: PostgreSQL, SQLite, MySQL, whatever there is one for. Threads
/// [check its connections out](crate::pool::blocking::ResourcePool::check_out), each to one user at a time and in the order
/// of asking; they are opened on demand, probed, counted, drained and closed like those of the built-in kinds.
///
/// An adapter's calls cannot be cut short: one that hangs holds its thread, and a connection that is out when the
/// resource is lost or closed is closed when it comes back. To come back after a loss, up to four probes that hang are
/// left to themselves; then one of them has to end first, or the resource to be closed and connected anew.
///
/// Probes ask over a connection that lies idle, or open one within `max_size`. While users have all of them, nobody asks
/// whether the server is there, and health is unknown.
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
    pub(crate) quota: QuotaId,
    probe: Mutex<Probe>,
}

type Classifier<E> = dyn Fn(&E) -> bool + Send + Sync;

impl<M: ManageConnection> R2d2<M> {
    /// At most 10 connections, closed after 60 s of idleness and replaced after 30 min; tested before they are checked
    /// out, unless they were within the last 500 ms; closed with the databases.
    pub fn new(manager: M) -> Self {
        let limits = Limits::default();
        let (phase, endpoint) = (Phase::Databases, String::new());
        let (is_permanent, probe) = (Arc::new(|_: &M::Error| false), Mutex::new(Probe::new()));
        R2d2 { manager: Arc::new(manager), limits, phase, endpoint, is_permanent, quota: QuotaId::new(), probe }
    }

    /// Sets the most connections, at least 1. Defaults to 10.
    pub fn max_size(mut self, max_size: usize) -> Self {
        self.limits.max = max_size.max(1);
        self
    }

    /// Sets how many idle connections are kept, from the start and after a loss; at most `max_size`. Defaults to 0.
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

    /// Sets which of the adapter's errors no further attempt can mend, as a wrong password: connecting then gives up at
    /// once, with [`ConnectError::permanent`](crate::ConnectError::permanent). By default none is.
    pub fn permanent(mut self, is_permanent: impl Fn(&M::Error) -> bool + Send + Sync + 'static) -> Self {
        self.is_permanent = Arc::new(is_permanent);
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
        let is_permanent = Arc::clone(&self.is_permanent);
        let manager = Adapted::new(Arc::clone(&self.manager), move |error| match is_permanent(&error) {
            true => Failure::permanent(error),
            false => Failure::transient(error),
        });
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
        let Probe { call, hanging } = &mut *probe;
        let under_way = match &mut *call {
            // Every ping waits for the call that is under way, so that calls that hang do not pile up.
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
        *self.probe.lock().await = Probe::new();
        connections.0.close().await;
        Ok(())
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
    /// Opens the first connection, whatever hangs of earlier attempts. What ends after this was dropped is closed then.
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

    /// Asks on a thread that may hang.
    fn ask(&self, loan: Loan<Adapted<M>>, permit: OwnedSemaphorePermit) -> Result<Call, Failure> {
        let (answer, answered) = oneshot::channel();
        let call = move |loan: Loan<Adapted<M>>| {
            let asked = park_on(loan.ask());
            drop(permit);
            // Nobody may wait for it any more.
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
