//! The one extension point: what a backend must be able to do.

use std::fmt;
use std::future::{Future, ready};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::base::error::{BoxError, Error, Failure, Source};
use crate::base::holder::Holder;
use crate::base::process::Process;
use crate::base::repeat::Repeat;
#[cfg(feature = "r2d2")]
use crate::base::retry::Retry;
use crate::lifecycle::activity::Activity;
use crate::lifecycle::close::Phase;
#[cfg(any(feature = "rabbitmq", feature = "redis"))]
use crate::lifecycle::lease::{Claim, Lease, Provide};
use crate::lifecycle::life::Condition;
use crate::lifecycle::slot::AnySlot;
#[cfg(any(feature = "rabbitmq", feature = "redis"))]
use crate::lifecycle::slot::Slot;
use crate::lifecycle::status::{State, Usage};

/// A kind of resource: three verbs, and what else a backend may say about itself.
///
/// The built-in backends implement it too, so a registered resource gets the same life: connected
/// once for all who ask, retried, probed, reconnected, drained and closed in its phase.
///
/// All futures are awaited on the pool's runtime, and those of `ping` and `probe` on the prober's, with a limit of their own. They
/// may be dropped when that passes, so they must be cancel-safe, and they must not block the thread.
///
/// ```
/// use resource_pool::{Failure, Link, Resource, ResourcePool};
///
/// struct Model(&'static str);
/// impl Resource for Model {
///     type Handle = std::sync::Arc<Vec<f64>>;
///     async fn connect(&self, _: &Link) -> Result<Self::Handle, Failure> {
///         Ok(std::sync::Arc::new(vec![0.1, 0.9]))
///     }
///     async fn ping(&self, weights: &Self::Handle) -> Result<(), Failure> {
///         if weights.is_empty() { Err(Failure::transient("no weights")) } else { Ok(()) }
///     }
///     async fn close(&self, _: Self::Handle) -> Result<(), Failure> {
///         Ok(())
///     }
/// }
///
/// # fn main() -> Result<(), resource_pool::Error> {
/// let pool = resource_pool::blocking::ResourcePool::builder().build()?;
/// pool.register("momentum", Model("momentum.bin"))?;
/// assert_eq!(pool.get::<Model>("momentum")?.len(), 2);
/// # Ok(()) }
/// ```
pub trait Resource: Send + Sync + Sized + 'static {
    /// What a lease derefs to. A clone refers to the same connection; it is made under a lock, so that it must neither
    /// block nor use the pool.
    type Handle: Clone + Send + Sync + 'static;

    /// Makes the connection and proves that it works.
    fn connect(&self, link: &Link) -> impl Future<Output = Result<Self::Handle, Failure>> + Send;

    /// A cheap round trip that proves the server answers and serves this user. Health is made of it.
    fn ping(&self, handle: &Self::Handle) -> impl Future<Output = Result<(), Failure>> + Send;

    /// How the prober asks whether the server lives, twice a second by default. Defaults to [`ping`](Self::ping); a
    /// backend overrides it where a ping costs what users pay for, such as their quota.
    fn probe(&self, handle: &Self::Handle) -> impl Future<Output = Result<(), Failure>> + Send {
        self.ping(handle)
    }

    /// Says goodbye. Clones that users kept must answer errors afterwards.
    fn close(&self, handle: Self::Handle) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Brings a lost connection back in place, so that leases taken before go on; tried again until
    /// it succeeds. Answers whether it can: unless this is overridden it cannot, and the pool says
    /// goodbye to what is lost (within 500 ms) and connects anew, so that leases taken from then on
    /// have the new handle.
    fn recover(&self, link: &Link, lost: &Self::Handle) -> impl Future<Output = Result<bool, Failure>> + Send {
        let _ = (link, lost);
        ready(Ok(false))
    }

    /// Cuts the streams at once, as `close` would not come back. By default there are none to cut.
    fn cut(&self, handle: &Self::Handle) {
        let _ = handle;
    }

    /// Stops taking work in, as closing begins: consumers are cancelled here.
    fn stop_intake(&self, handle: &Self::Handle) -> impl Future<Output = ()> + Send {
        let _ = handle;
        ready(())
    }

    /// Finishes what is buffered, in the drain: inserters are flushed here.
    fn flush(&self, handle: &Self::Handle) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = handle;
        ready(Ok(()))
    }

    /// Whether a connect that is given up goes on all the same, as calls do that block. An attempt at it then lasts as long
    /// as the acquire that asked for it waits, if that is longer than
    /// [`connect_timeout`](crate::lifecycle::options::Options::connect_timeout). Defaults to `false`.
    fn connects_uncut(&self) -> bool {
        false
    }

    /// Where it is, without credentials, for errors and reports. Defaults to nothing.
    fn endpoint(&self) -> String {
        String::new()
    }

    /// When it closes. Defaults to [`Phase::Models`].
    fn phase(&self) -> Phase {
        Phase::Models
    }

    /// How full it is, as far as the driver lets us measure. By default nothing is known. Asked on the thread that asks for
    /// the pool's status, so it must not block; closing waits half a second for it.
    fn usage(&self, handle: &Self::Handle) -> Usage {
        let _ = handle;
        Usage::default()
    }
}

/// What a resource may tell its pool, and ask it. Cheap to clone.
#[derive(Clone)]
pub struct Link {
    pub(crate) activity: Arc<Activity>,
    pub(crate) slot: Weak<dyn AnySlot>,
    /// The attempt to connect that it was made for.
    pub(crate) attempt: u64,
    /// How long that attempt may take.
    pub(crate) limit: Duration,
    pub(crate) acquire_timeout: Duration,
    pub(crate) process: &'static Process,
    pub(crate) repeat: Repeat,
    /// How what it opens of its own is retried.
    #[cfg(feature = "r2d2")]
    pub(crate) retry: Retry,
    /// How long an operation waits for a connection that is lost: as long as one connect may take,
    /// which is less than the acquire timeout, so that the wait ends with the failure's own error.
    pub(crate) patience: Duration,
}

impl Link {
    /// The resource's name in the pool.
    pub fn name(&self) -> &Arc<str> {
        &self.activity.name
    }

    /// Where it is, without credentials.
    pub fn endpoint(&self) -> &Arc<str> {
        &self.activity.endpoint
    }

    /// How long the attempt to connect may take that it was made for.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// How long an acquire may wait.
    pub fn acquire_timeout(&self) -> Duration {
        self.acquire_timeout
    }

    /// Who holds a lease or a checkout of it.
    pub fn holders(&self) -> Vec<Holder> {
        self.slot.upgrade().map_or_else(Vec::new, |slot| slot.holders())
    }

    /// The connection is lost: readiness falls, and the pool brings it back by
    /// [`recover`](Resource::recover). Says nothing about a generation that is not current, nor
    /// about a connection that closing overtook while it was made.
    pub fn lost(&self, generation: u64, cause: impl Into<BoxError>) {
        if let Some(slot) = self.slot.upgrade() {
            slot.lost(Some(self.attempt), generation, Source::from(cause.into()));
        }
    }

    /// Tells how far [`connect`](Resource::connect) or [`recover`](Resource::recover) has come, in words such as "512 of
    /// 1000 declared". The attempt's limit, `connect_timeout`, begins anew with each call, so that work of many steps has
    /// it for each of them. Health checks and timeouts say it until the attempt ends. Says nothing outside of the
    /// attempt that the link was made for.
    pub fn progress(&self, told: impl Into<Arc<str>>) {
        if let Some(slot) = self.slot.upgrade() {
            slot.progress(self.attempt, told.into());
        }
    }

    /// Why the connection is cut now, for [`KillSwitch::cut_because`](crate::KillSwitch::cut_because): the loss, or
    /// that the resource is closed.
    pub fn why_cut(&self) -> Error {
        let failure = self.slot.upgrade().and_then(|slot| slot.condition().failure);
        failure.unwrap_or_else(|| Error::Closed { resource: Arc::clone(self.name()) })
    }

    /// The generation now in use; the one being connected, while that goes on.
    pub fn generation(&self) -> u64 {
        self.slot.upgrade().map_or(0, |slot| slot.generation_or_next())
    }

    /// Counts a piece of work that closing must wait for, until the guard says that it is
    /// [done](Busy::done), or drops.
    pub fn busy(&self, work: Work) -> Busy {
        Busy::new(&self.activity, work)
    }

    /// Counts what closing ended in good order though nobody waited for it: transactions that it
    /// aborted, cursors that it closed.
    pub fn ended(&self, work: Work, count: usize) {
        self.activity.tally.add_finished(work, count);
    }

    /// A lease for what a backend hands out itself.
    #[cfg(any(feature = "rabbitmq", feature = "redis"))]
    pub(crate) fn lease<R: Resource, T: ?Sized + 'static>(&self, claim: Claim) -> Option<Lease<T>>
    where
        R::Handle: Provide<T>,
    {
        self.slot.upgrade()?.as_any().downcast::<Slot<R>>().ok()?.lease(claim).ok()?
    }

    /// Why the connection is gone, while it is.
    #[cfg(feature = "r2d2")]
    pub(crate) fn trouble(&self) -> Option<Error> {
        let condition = self.slot.upgrade()?.condition();
        condition.failure.filter(|_| matches!(condition.state, State::Broken | State::Connecting))
    }

    /// Waits while the connection is being brought back, unless operations are
    /// [never](Repeat::Never) to wait for that.
    ///
    /// # Errors
    /// Why the connection is lost, or could not be made again, once as much time has passed as one
    /// connect may take, or the acquire timeout if that is less; [`Error::Closing`],
    /// [`Error::Closed`], [`Error::Forked`].
    ///
    /// # Cancel safety
    /// Cancelling it cancels nothing else.
    pub async fn ready(&self) -> Result<(), Error> {
        self.ready_within(self.patience).await
    }

    pub(crate) async fn ready_within(&self, limit: Duration) -> Result<(), Error> {
        self.process.check()?;
        let Some(slot) = self.slot.upgrade() else {
            return Err(Error::Closed { resource: Arc::clone(&self.activity.name) });
        };
        match slot.condition() {
            Condition { state: State::Ready, .. } => Ok(()),
            Condition { state: State::Connecting | State::Broken, failure: Some(error), .. }
                if self.repeat == Repeat::Never =>
            {
                Err(error)
            }
            _ => slot.wait_back(limit).await,
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Link").field(&self.activity.name).finish()
    }
}

/// Work that closing waits for or ends, as opposed to a handle that is merely held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Work {
    /// A command or query that has been sent and not answered. Finished once it is answered, be it
    /// with an error of the server's.
    Operation,
    /// A message delivered and not yet settled. Finished once it is acknowledged or rejected.
    Delivery,
    /// A message published and not yet confirmed. Finished once the broker has answered to it.
    Confirm,
    /// A row that an inserter has and that is not yet inserted. Finished once the server has it.
    Row,
    /// A transaction that is open on the server. Not waited for: closing aborts it.
    Transaction,
    /// A cursor that is open on the server. Not waited for: closing closes it.
    Cursor,
    /// A future or closure given to `run`.
    Main,
}

impl Work {
    pub(crate) const ALL: [Work; 7] =
        [Work::Operation, Work::Delivery, Work::Confirm, Work::Row, Work::Transaction, Work::Cursor, Work::Main];

    /// So many of it, for reports.
    pub(crate) fn counted(self, count: usize) -> String {
        let (one, many) = match self {
            Work::Operation => ("operation", "operations"),
            Work::Delivery => ("delivery", "deliveries"),
            Work::Confirm => ("confirm", "confirms"),
            Work::Row => ("row", "rows"),
            Work::Transaction => ("transaction", "transactions"),
            Work::Cursor => ("cursor", "cursors"),
            Work::Main => ("main", "mains"),
        };
        format!("{count} {}", if count == 1 { one } else { many })
    }

    /// What has become of it once it is finished.
    pub(crate) fn finished(self) -> &'static str {
        match self {
            Work::Operation => "answered",
            Work::Delivery => "settled",
            Work::Confirm => "received",
            Work::Row => "inserted",
            Work::Transaction => "aborted",
            Work::Cursor => "closed",
            Work::Main => "ended",
        }
    }

    /// What has become of it if it ended otherwise.
    pub(crate) fn given_up(self) -> &'static str {
        match self {
            Work::Operation => "cut off",
            Work::Delivery => "given back",
            Work::Confirm => "not received",
            Work::Row => "not known to be inserted",
            Work::Transaction | Work::Cursor | Work::Main => "given up",
        }
    }
}

/// Counts pieces of [`Work`] while they go on.
#[must_use = "the work counts as given up when this drops"]
pub struct Busy {
    activity: Arc<Activity>,
    work: Work,
    count: usize,
}

impl Busy {
    pub(crate) fn new(activity: &Arc<Activity>, work: Work) -> Self {
        let mut busy = Busy { activity: Arc::clone(activity), work, count: 0 };
        busy.add(1);
        busy
    }

    /// One that counts nothing yet.
    #[cfg(feature = "clickhouse")]
    pub(crate) fn none(activity: &Arc<Activity>, work: Work) -> Self {
        Busy { activity: Arc::clone(activity), work, count: 0 }
    }

    /// So many more of it.
    pub(crate) fn add(&mut self, count: usize) {
        self.activity.tally.begin(self.work, count);
        self.count += count;
    }

    /// It came to its end, which the report of a close counts apart from what is given up: cut
    /// off, cancelled, or dropped without this.
    pub fn done(mut self) {
        self.end(true);
    }

    /// Whether it was counted for a report.
    pub(crate) fn end(&mut self, is_done: bool) -> bool {
        self.activity.end(self.work, std::mem::take(&mut self.count), is_done)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.count > 0 {
            self.end(false);
        }
    }
}

impl fmt::Debug for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Busy").field("work", &self.work).field("count", &self.count).finish()
    }
}
