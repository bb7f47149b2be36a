//! A pool as closing knows it.

use std::sync::Arc;

use crate::base::error::BoxError;
use crate::base::holder::Holder;
use crate::lifecycle::activity::Activity;
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::close::edges::Edges;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::context::Context;
use crate::lifecycle::status::{PoolStatus, Usage};

/// What is closed as a whole.
pub(crate) trait Pool: Send + Sync + 'static {
    fn context(&self) -> &Arc<Context>;
    /// The futures and closures given to `run`.
    fn main(&self) -> &Arc<Activity>;
    /// Every resource that exists.
    fn slots(&self) -> Vec<Arc<dyn AnySlot>>;
    /// The hooks, each of which runs once.
    fn take_hooks(&self) -> Vec<Hook>;
    /// Who closes before whom.
    fn edges(&self) -> Edges;
    /// Who holds what.
    fn holders(&self) -> Vec<Holder>;
    /// The status, with what this tells of each resource's usage.
    fn status_with(&self, usage: fn(&dyn AnySlot) -> Usage) -> PoolStatus;
}

/// A step that is not a resource: a closure given to `on_close`.
pub(crate) struct Hook {
    pub(crate) name: Arc<str>,
    pub(crate) phase: Phase,
    pub(crate) run: Box<dyn FnOnce() -> Result<(), BoxError> + Send>,
}
