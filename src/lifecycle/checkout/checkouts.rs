//! [`Checkouts`]: the exclusive connections of one resource, with the pool's runtime, threads and lease table.
//!
//! The kinds of resources hold it and pass the pool's questions on to it. Users check out through its queue.
//! Tasks: one `reap` task for each resource, which ends with the core, and at most one `test_idle` task that it starts;
//! one task that opens the prober's own connection; and one task for each job. If the driver blocks, the job's task only
//! pauses, and then gives the job a thread, and each test of `test_idle` has a thread too.
//! Invariant: at most one [`ping`](Checkouts::ping) asks the server at a time.
//! Order of locks: `asking`, which is async and held for a whole ping, then the lock of the core. Drivers' code runs
//! under `asking`, and never under the lock of the core.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::base::clock::Moment;
use crate::base::error::{Error, Failure, ReconnectAsked};
use crate::base::runtime::{background, inside, park_on, thread, within};
use crate::lifecycle::activity::Activity;
use crate::lifecycle::checkout::core::{Core, Limits};
use crate::lifecycle::checkout::loan::Loan;
use crate::lifecycle::checkout::manage::Manage;
use crate::lifecycle::checkout::opening::Job;
use crate::lifecycle::checkout::queue::CheckoutQueue;
use crate::lifecycle::checkout::waiter::Refusal;
use crate::lifecycle::link::Link;
use crate::lifecycle::status::{Counters, Usage};
use crate::lifecycle::wait::Quota;

/// How long `open` waits for the prober's own connection, so that it is there before the server freezes for the first
/// time.
const SPARE: Duration = Duration::from_millis(250);

/// The connections of one resource, each of which has one user at a time. Tasks take one with
/// [`check_out`](Checkouts::check_out). Connections are opened on demand, tested, replaced as they wear, and closed,
/// all within [`Limits`].
///
/// A resource passes the pool's questions on to its checkouts. Its [`connect`](crate::Resource::connect) and
/// [`recover`](crate::Resource::recover) call [`open`](Checkouts::open), and its `ping`, `cut`, `close` and `usage`
/// call the methods of these names.
pub struct Checkouts<M: Manage> {
    pub(super) core: Arc<Core<M>>,
    pub(crate) quota: Arc<Quota>,
    pub(crate) link: Link,
    runtime: Handle,
    /// Held by a ping, so that no ping finds its connection taken by another ping.
    asking: tokio::sync::Mutex<()>,
    /// Held by the opening of a refresh.
    pub(super) refreshing: Arc<tokio::sync::Mutex<()>>,
}

impl<M: Manage> Checkouts<M> {
    /// Makes checkouts of which no connection is open yet. The connections live on this task's runtime, which is the
    /// pool's where a resource connects. Their holders and waits are listed under `quota`.
    ///
    /// # Panics
    /// Outside of tokio.
    pub fn new(link: &Link, manager: M, limits: Limits, quota: Arc<Quota>) -> Self {
        let (runtime, activity, interval) = (Handle::current(), Arc::clone(&link.activity), limits.interval());
        let start =
            move |core: &_, begun| Job::start_all(core, begun, |job, pause| start(&runtime, &activity, job, pause));
        let (retry, limit) = (link.retry.clone(), link.connect_timeout);
        let core = Core::new(Arc::clone(link.name()), manager, limits, retry, limit, start);
        if let Some(interval) = interval {
            tokio::spawn(reap(Arc::downgrade(&core), interval));
        }
        let (asking, refreshing) = (tokio::sync::Mutex::new(()), Arc::default());
        Checkouts { core, quota, link: link.clone(), runtime: Handle::current(), asking, refreshing }
    }

    /// The driver that opens the connections.
    pub fn manager(&self) -> &M {
        &self.core.manager
    }

    /// Opens and tests the first connection. From then on users are served, for the first time or again.
    ///
    /// # Errors
    /// The driver's failure. A permanent one is also told to the users who wait for the connections to come back.
    ///
    /// # Cancel safety
    /// The connection that is being opened is closed.
    pub async fn open(&self) -> Result<(), Failure> {
        self.first().ask().await.inspect_err(|failure| {
            if failure.is_permanent() {
                self.give_up();
            }
        })?;
        self.accept();
        // The opening goes on in the background if it takes longer.
        let _ = within(SPARE, self.keep_spare()).await;
        Ok(())
    }

    /// Asks the server over the prober's own connection, which is one beyond those of users. If the server has no room
    /// for it, an idle one is borrowed. A user who checks out meanwhile is given that one, before another one is
    /// opened.
    ///
    /// # Errors
    /// The driver's failure. [`Failure::unasked`] if there is no connection to ask over.
    ///
    /// # Cancel safety
    /// The connection that is being asked is closed, and counts as one that has not answered.
    pub async fn ping(&self) -> Result<(), Failure> {
        let _one_at_a_time = self.asking.lock().await;
        let answer = inside(&self.runtime, async { self.loan()?.ask().await }).await;
        drop(self.keep_spare());
        answer
    }

    /// Opens the prober's own connection in the background, if there is none.
    fn keep_spare(&self) -> JoinHandle<()> {
        self.runtime.spawn(Arc::clone(&self.core).open_spare())
    }

    pub(crate) fn core(&self) -> Arc<Core<M>> {
        Arc::clone(&self.core)
    }

    /// The queue in which to wait for a connection.
    pub(crate) fn queue(&self) -> CheckoutQueue<M> {
        let (core, quota) = (Arc::clone(&self.core), Arc::clone(&self.quota));
        CheckoutQueue { core, quota, link: self.link.clone(), runtime: self.runtime.clone() }
    }

    /// Lends a connection over which to ask the server.
    ///
    /// # Errors
    /// The failure that the openings in flight prove, if users have all connections.
    pub(crate) fn loan(&self) -> Result<Loan<M>, Failure> {
        self.core.loan(self.link.patience)
    }

    /// Ends all present connections. None is handed out again, and waiters are given new ones.
    pub fn retire(&self) {
        self.core.retire();
    }

    /// Sets the most connections from now on, at least 1. If there are more, idle ones are closed now, and others as
    /// they come back. If there may be more, waiters have them opened.
    pub fn resize(&self, max: usize) {
        let max = max.max(1);
        // Under the lock of the core, so that both have the number of the same call.
        self.core.resize_with(max, || self.quota.resize(max));
    }

    /// Lends the room for a new connection, which is the first once these are [accepted](Self::accept). A loan of
    /// before comes too late from here on.
    pub(crate) fn first(&self) -> Loan<M> {
        self.core.first()
    }

    /// Cuts the connections, as far as the checkouts know them. Idle ones are closed now, and those that are out as
    /// they come back. Waiters are told why, and so is everybody until the checkouts are [open](Self::open) again. If a
    /// reconnect was asked for, users wait for it instead.
    pub fn cut(&self) {
        match self.link.failure() {
            Some(Error::Lost { source, .. }) if source.is::<ReconnectAsked>() => self.core.suspend(),
            Some(_) if self.core.is_suspended() => {}
            trouble => {
                let closing = || Error::closing(&self.core.resource);
                self.core.refuse(Refusal::Because(trouble.unwrap_or_else(closing)), false);
            }
        }
    }

    /// Ends the waits for a reconnect that was asked for, and has failed for good.
    pub fn give_up(&self) {
        self.core.give_up();
    }

    /// Serves users from here on, because the connection is there, or back.
    pub(crate) fn accept(&self) {
        self.core.accept();
    }

    /// Refuses users for good, as closed, and waits until all connections are disconnected.
    ///
    /// # Cancel safety
    /// The connections are disconnected all the same.
    pub async fn close(&self) {
        self.core.refuse(self.core.closed(), true);
        self.link.activity.until(|| self.core.has_disconnected().then_some(())).await;
    }

    /// Counts the connections, the users who wait for one, and all that happened so far.
    pub fn usage(&self) -> Usage {
        let state = self.core.state.lock();
        // The connections that the prober has are not in use.
        let (open, idle) = (state.open, state.idle.len() + state.lent);
        Usage {
            max: Some(state.max),
            open: Some(open),
            idle: Some(idle),
            in_use: Some(open - idle),
            waiting: Some(state.waiters.len() + usize::from(state.heir.is_some())),
            opening: Some(state.opening),
            min_idle: Some(self.core.limits.min_idle.min(state.max)),
            max_idle: Some(state.max),
            counters: Counters {
                opened: Some(state.opened as u64),
                closed: Some(state.closed),
                detached: Some(state.detached),
                acquires: Some(state.acquires),
                waits: Some(state.waits.count),
                wait_time: Some(state.waits.time),
                timeouts: Some(state.waits.timeouts),
            },
            ..Usage::default()
        }
    }
}

impl<M: Manage> Drop for Checkouts<M> {
    fn drop(&mut self) {
        // Openings in flight come too late from here on. A forked child leaves the core of its parent alone.
        if self.link.process.is_current() {
            self.core.refuse(self.core.closed(), true);
        }
    }
}

/// Runs a job after a pause: as a task or, if it may block, on a thread that is no user's.
fn start<M: Manage>(runtime: &Handle, activity: &Arc<Activity>, job: Job<M>, pause: Duration) {
    let (runtime, activity) = (runtime.clone(), Arc::clone(activity));
    let waits = if M::BLOCKS { background().unwrap_or(&runtime) } else { &runtime };
    waits.clone().spawn(async move {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        if !M::BLOCKS {
            job.run().await;
            return activity.changed();
        }
        let call = {
            let (runtime, activity) = (runtime.clone(), Arc::clone(&activity));
            move |job: Job<M>| {
                let _context = runtime.enter();
                park_on(job.run());
                activity.changed();
            }
        };
        match thread(call) {
            Ok(thread) => drop(thread.send(job)),
            Err(error) => {
                if let Some((job, pause)) = job.find_no_thread(error) {
                    start(&runtime, &activity, job, pause);
                }
            }
        }
    });
}

/// Closes connections that are idle for too long, or worn, and has idle ones tested, until the core is gone.
async fn reap<M: Manage>(core: Weak<Core<M>>, interval: Duration) {
    let mut testing: Option<JoinHandle<()>> = None;
    loop {
        tokio::time::sleep(interval).await;
        let Some(core) = core.upgrade() else { return };
        core.reap(Moment::coarse());
        // A test may hang on a driver that blocks. No further one is begun then.
        if testing.as_ref().is_none_or(JoinHandle::is_finished)
            && let Some(first) = core.lend_untested(Moment::coarse())
        {
            testing = Some(tokio::spawn(test_idle(core, first)));
        }
    }
}

/// Tests the idle connections that are to be tested by now, one after another. A broken one is replaced.
async fn test_idle<M: Manage>(core: Arc<Core<M>>, first: Loan<M>) {
    let begun = Moment::coarse();
    let mut next = Some(first);
    while let Some(loan) = next {
        let tested = match M::BLOCKS {
            true => ask_on_thread(loan).await,
            // A connection whose test is given up is closed.
            false => within(core.limit, loan.ask()).await.unwrap_or_else(|elapsed| Err(elapsed.into())),
        };
        if let Err(failure) = tested {
            tracing::debug!(resource = %core.resource, error = %failure, "an idle connection could not be tested");
            if failure.is_unasked() {
                return;
            }
        }
        // No connection is tested twice in a round.
        next = core.lend_untested(begun);
    }
}

/// Asks over a loan on a thread that may hang.
async fn ask_on_thread<M: Manage>(loan: Loan<M>) -> Result<(), Failure> {
    let (runtime, (answer, answered)) = (Handle::current(), oneshot::channel());
    let call = move |loan: Loan<M>| {
        let _context = runtime.enter();
        // The receiver may be gone.
        let _ = answer.send(park_on(loan.ask()));
    };
    match thread(call) {
        Ok(thread) => drop(thread.send(loan)),
        Err(error) => {
            let error = Error::no_threads(loan.resource(), error);
            loan.give_back();
            return Err(Failure::unasked(error));
        }
    }
    answered.await?
}

impl<M: Manage> fmt::Debug for Checkouts<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkouts").field("resource", self.link.name()).field("usage", &self.usage()).finish()
    }
}
