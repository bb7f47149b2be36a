//! The connections of one resource that are checked out one by one, as its kind handles them: with the pool's runtime,
//! threads and books.

use std::sync::{Arc, Weak};
use std::time::Duration;

use r2d2::ManageConnection;
use tokio::runtime::Handle;

use crate::base::clock::Moment;
use crate::base::error::{BoxError, Error, Failure, ReconnectAsked};
use crate::base::runtime::{prober, thread};
use crate::lifecycle::activity::Activity;
use crate::lifecycle::checkout::core::{Core, Limits};
use crate::lifecycle::checkout::loan::Loan;
use crate::lifecycle::checkout::opening::Job;
use crate::lifecycle::checkout::queue::Queue;
use crate::lifecycle::checkout::waiter::Refusal;
use crate::lifecycle::link::Link;
use crate::lifecycle::status::Usage;
use crate::lifecycle::wait::Quota;

/// The connections of one resource that are checked out one by one.
pub(crate) struct Checkouts<M: ManageConnection> {
    pub(super) core: Arc<Core<M>>,
    pub(crate) quota: Arc<Quota>,
    pub(super) link: Link,
}

impl<M: ManageConnection> Checkouts<M> {
    /// Lives on this task's runtime. `tell` makes of the driver's errors what users may see.
    pub(crate) fn new(
        link: &Link,
        manager: Arc<M>,
        limits: Limits,
        quota: Arc<Quota>,
        tell: impl Fn(M::Error) -> BoxError + Send + Sync + 'static,
    ) -> Self {
        let (runtime, activity, interval) = (Handle::current(), Arc::clone(&link.activity), limits.interval());
        let start =
            move |core: &_, begun| Job::start_all(core, begun, |job, pause| start(&runtime, &activity, job, pause));
        let core = Core::new(Arc::clone(link.name()), manager, limits, link.retry.clone(), tell, start);
        if let Some(interval) = interval {
            tokio::spawn(reap(Arc::downgrade(&core), interval));
        }
        Checkouts { core, quota, link: link.clone() }
    }

    /// Where to wait for one.
    pub(crate) fn queue(&self) -> Queue<M> {
        Queue { core: Arc::clone(&self.core), quota: Arc::clone(&self.quota), link: self.link.clone() }
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

    /// The connection is cut: whoever waits is told why, and everybody from now on; unless a reconnect was asked for, which
    /// they wait out.
    pub(crate) fn refuse(&self) {
        match self.link.trouble() {
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
    pub(crate) async fn close(&self) {
        self.core.refuse(self.core.closed(), true);
        self.link.activity.until(|| self.core.has_said_goodbyes().then_some(())).await;
    }

    pub(crate) fn usage(&self) -> Usage {
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

impl<M: ManageConnection> Drop for Checkouts<M> {
    fn drop(&mut self) {
        // What is still being opened is nobody's.
        if self.link.process.is_current() {
            self.core.refuse(self.core.closed(), true);
        }
    }
}

/// Carries a job out after a pause, where that may block and users do not.
fn start<M: ManageConnection>(runtime: &Handle, activity: &Arc<Activity>, job: Job<M>, pause: Duration) {
    let (runtime, activity) = (runtime.clone(), Arc::clone(activity));
    let prober = prober().unwrap_or(&runtime).clone();
    prober.spawn(async move {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let call = {
            let (runtime, activity) = (runtime.clone(), Arc::clone(&activity));
            move |job: Job<M>| {
                let _context = runtime.enter();
                job.run();
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
async fn reap<M: ManageConnection>(core: Weak<Core<M>>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(core) = core.upgrade() else { return };
        core.reap(Moment::coarse());
    }
}
