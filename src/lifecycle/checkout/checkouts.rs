//! The connections of one resource that are checked out one by one, as its kind handles them: with the pool's runtime,
//! threads and books.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::base::clock::Moment;
use crate::base::error::{Error, Failure, ReconnectAsked};
use crate::base::runtime::{background, inside, park_on, thread, within};
use crate::lifecycle::activity::Activity;
use crate::lifecycle::checkout::core::{Core, Limits};
use crate::lifecycle::checkout::loan::Loan;
use crate::lifecycle::checkout::manage::Manage;
use crate::lifecycle::checkout::opening::Job;
use crate::lifecycle::checkout::queue::Queue;
use crate::lifecycle::checkout::waiter::Refusal;
use crate::lifecycle::link::Link;
use crate::lifecycle::status::Usage;
use crate::lifecycle::wait::Quota;

/// How long connecting waits for the prober's own connection, so that it is there before the first server that freezes.
const SPARE: Duration = Duration::from_millis(250);

/// The connections of one resource that are checked out one by one: by tasks with [`check_out`](Checkouts::check_out). They
/// are opened on demand, tested, replaced as they wear, and closed, all within [`Limits`].
///
/// What a resource answers to the pool is answered here: its [`connect`](crate::Resource::connect) and
/// [`recover`](crate::Resource::recover) call [`open`](Checkouts::open), and its `ping`, `cut`, `close` and `usage` the methods
/// of these names.
pub struct Checkouts<M: Manage> {
    pub(super) core: Arc<Core<M>>,
    pub(crate) quota: Arc<Quota>,
    pub(crate) link: Link,
    runtime: Handle,
    /// Pings come one after another, so that none finds the connection for it with another one.
    asking: tokio::sync::Mutex<()>,
}

impl<M: Manage> Checkouts<M> {
    /// None is open yet. They live on this task's runtime, which is the pool's where a resource connects. `quota` is what
    /// their holders and waits are known by.
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
        let asking = tokio::sync::Mutex::new(());
        Checkouts { core, quota, link: link.clone(), runtime: Handle::current(), asking }
    }

    /// What opens them.
    pub fn manager(&self) -> &M {
        &self.core.manager
    }

    /// Opens and tests the first one, from when on there are some, or some again.
    ///
    /// # Errors
    /// What the driver answers. Where it is permanent, whoever waited for the connections to come back is told.
    ///
    /// # Cancel safety
    /// What is being opened is closed.
    pub async fn open(&self) -> Result<(), Failure> {
        self.first().ask().await.inspect_err(|failure| {
            if failure.is_permanent() {
                self.give_up();
            }
        })?;
        self.accept();
        // It goes on where it takes longer.
        let _ = within(SPARE, self.keep_spare()).await;
        Ok(())
    }

    /// Asks the server over the connection that these have for that, one beyond those of users. Where the server had no room for
    /// it, one that lies idle is borrowed. Whoever checks out meanwhile is given that one, before another one is opened.
    ///
    /// # Errors
    /// What the driver answers; [`Failure::unasked`] where there is no connection to ask over.
    ///
    /// # Cancel safety
    /// The connection that is being asked is closed, and has not answered.
    pub async fn ping(&self) -> Result<(), Failure> {
        let _one_at_a_time = self.asking.lock().await;
        let answer = inside(&self.runtime, async { self.loan()?.ask().await }).await;
        drop(self.keep_spare());
        answer
    }

    /// Has the prober's own connection opened, if there is none.
    fn keep_spare(&self) -> JoinHandle<()> {
        self.runtime.spawn(Arc::clone(&self.core).open_spare())
    }

    pub(crate) fn core(&self) -> Arc<Core<M>> {
        Arc::clone(&self.core)
    }

    /// Where to wait for one.
    pub(crate) fn queue(&self) -> Queue<M> {
        let (core, quota) = (Arc::clone(&self.core), Arc::clone(&self.quota));
        Queue { core, quota, link: self.link.clone(), runtime: self.runtime.clone() }
    }

    /// To ask the server over a connection of these.
    ///
    /// # Errors
    /// What the openings that are under way prove, where users have all others.
    pub(crate) fn loan(&self) -> Result<Loan<M>, Failure> {
        self.core.loan(self.link.patience)
    }

    /// None of those that there are is handed out again; whoever waits is given a new one.
    pub(crate) fn retire(&self) {
        self.core.retire();
    }

    /// To ask over a new connection, which is the first of all once these are [accepted](Self::accept). What asks for an
    /// earlier one is nobody's.
    pub(crate) fn first(&self) -> Loan<M> {
        self.core.first()
    }

    /// The connections are cut, as far as this knows them: those that lie idle are closed, and those that are out as they
    /// come back. Whoever waits is told why, and everybody until they are [open](Self::open) again; unless a reconnect was
    /// asked for, which they wait out.
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

    /// The reconnect that was asked for has failed for good: nobody waits it out any longer.
    pub(crate) fn give_up(&self) {
        self.core.give_up();
    }

    /// The connection is there, or back.
    pub(crate) fn accept(&self) {
        self.core.accept();
    }

    /// Refuses for good, as closed, and waits until the goodbyes are said.
    ///
    /// # Cancel safety
    /// They are said all the same.
    pub async fn close(&self) {
        self.core.refuse(self.core.closed(), true);
        self.link.activity.until(|| self.core.has_disconnected().then_some(())).await;
    }

    /// How many there are, and who wants them.
    pub fn usage(&self) -> Usage {
        let state = self.core.state.lock();
        // What the prober has is not in use.
        let (open, idle) = (state.open, state.idle.len() + state.lent);
        Usage {
            max: Some(self.core.limits.max),
            open: Some(open),
            idle: Some(idle),
            in_use: Some(open - idle),
            waiting: Some(state.waiters.len() + usize::from(state.heir.is_some())),
            ..Usage::default()
        }
    }
}

impl<M: Manage> Drop for Checkouts<M> {
    fn drop(&mut self) {
        // What is still being opened is nobody's.
        if self.link.process.is_current() {
            self.core.refuse(self.core.closed(), true);
        }
    }
}

/// Carries a job out after a pause: as a task, or where it may block on a thread that is no user's.
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

/// Closes what is idle for too long, or worn, until the pool of it is gone.
async fn reap<M: Manage>(core: Weak<Core<M>>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(core) = core.upgrade() else { return };
        core.reap(Moment::coarse());
    }
}

impl<M: Manage> fmt::Debug for Checkouts<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkouts").field("resource", self.link.name()).field("usage", &self.usage()).finish()
    }
}
