//! The interface through which closing knows a pool.

use std::sync::Arc;

use crate::base::error::BoxError;
use crate::base::future::BoxFuture;
use crate::base::holder::Holder;
use crate::lifecycle::activity::Activity;
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::application::Application;
use crate::lifecycle::close::edges::Edges;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::context::Context;
use crate::lifecycle::status::{PoolStatus, Usage};

/// A pool that can be closed as a whole.
pub(crate) trait Pool: Send + Sync + 'static {
    fn context(&self) -> &Arc<Context>;
    /// The activity of the futures and closures given to `run`.
    fn main(&self) -> &Arc<Activity>;
    /// The application's own work.
    fn application(&self) -> &Application;
    /// Every resource that exists.
    fn slots(&self) -> Vec<Arc<dyn AnySlot>>;
    /// Takes the hooks, each of which runs once. Those of adopted clients that are gone come apart, to be dropped aside.
    /// `is_last` says that no client can be adopted from now on.
    fn take_hooks(&self, is_last: bool) -> (Vec<Hook>, Vec<Hook>);
    /// The dependencies, which decide who closes before whom.
    fn edges(&self) -> Edges;
    /// The holders of all leases and checkouts.
    fn holders(&self) -> Vec<Holder>;
    /// The status, in which `usage` tells each resource's usage.
    fn status_with(&self, usage: fn(&dyn AnySlot) -> Usage) -> PoolStatus;
}

/// A step that is not a resource: a closure given to `on_close`.
pub(crate) struct Hook {
    pub(crate) name: Arc<str>,
    pub(crate) phase: Phase,
    pub(crate) run: HookRun,
}

/// The code of a hook.
pub(crate) enum HookRun {
    Blocking(Box<dyn FnOnce() -> Result<(), BoxError> + Send>),
    Async(Box<dyn FnOnce() -> BoxFuture<Result<(), BoxError>> + Send>),
}
