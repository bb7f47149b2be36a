//! The parts of a pool that all its resources share.

use std::sync::Arc;

use once_cell::sync::OnceCell;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::base::error::Error;
use crate::base::process::Process;
use crate::base::runtime::DriverRuntime;
use crate::lifecycle::close::report::CloseReport;
use crate::lifecycle::close::state::CloseState;
use crate::lifecycle::event::{Event, What};
use crate::lifecycle::observers::Observers;
use crate::lifecycle::options::Options;
use crate::lifecycle::status::USED_ELSEWHERE;

/// The options, the runtime and the state of a pool. Each of its resources has a reference.
pub(crate) struct Context {
    pub(crate) options: Options,
    pub(crate) runtime: DriverRuntime,
    pub(crate) close: CloseState,
    pub(crate) listeners: Mutex<Vec<Listener>>,
    pub(crate) observers: Arc<Observers>,
    pub(crate) process: &'static Process,
    /// Set once a task of another runtime than the pool's has waited for a resource.
    pub(crate) used_elsewhere: OnceCell<()>,
}

pub(crate) type Listener = Arc<dyn Fn(&CloseReport) + Send + Sync>;

impl Context {
    /// Refuses in a process that was forked from the one that owns the pool.
    #[inline]
    pub(crate) fn check_process(&self) -> Result<(), Error> {
        self.process.check()
    }

    /// Refuses once the close of the whole pool has begun. The error names `what`.
    pub(crate) fn check_open(&self, what: &Arc<str>) -> Result<(), Error> {
        self.check_process()?;
        match (self.close.report(), self.close.is_closing()) {
            (Some(_), _) => Err(Error::closed(what)),
            (None, true) => Err(Error::closing(what)),
            (None, false) => Ok(()),
        }
    }

    /// Notes whether this task belongs to another runtime than the pool's, which costs each of its operations a wake-up.
    pub(crate) fn note_runtime(&self, own: &Handle) {
        if Handle::try_current().is_ok_and(|here| here.id() != own.id()) {
            self.used_elsewhere.get_or_init(|| tracing::debug!("{USED_ELSEWHERE}"));
        }
    }

    /// Tells the log and the observers of an event of the pool as a whole, or of the resource or hook with this name.
    pub(crate) fn tell(&self, name: Option<&Arc<str>>, what: What) {
        self.observers.tell(Event::of_pool(name.cloned(), what));
    }

    /// Tells the observers alone of an event, which is made only if there are any.
    pub(crate) fn note(&self, name: &Arc<str>, what: impl FnOnce() -> What) {
        if self.observers.are_there() {
            self.tell(Some(name), what());
        }
    }

    /// The listeners. They are cloned, so that none of them runs under the lock.
    pub(crate) fn on_report(&self) -> Vec<Listener> {
        self.listeners.lock().clone()
    }
}
