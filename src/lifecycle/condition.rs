//! The condition of a resource at one moment, for health checks, status and errors.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::base::error::Error;
use crate::lifecycle::status::State;

/// How far an attempt has come, in its own words, and when it said so.
#[derive(Clone)]
pub(crate) struct Progress {
    pub(crate) at: Instant,
    pub(crate) told: Arc<str>,
}

/// The condition of a life at one moment.
pub(crate) struct Condition {
    pub(crate) state: State,
    /// How long the life has been in this state.
    pub(crate) since: Duration,
    pub(crate) generation: u64,
    /// How many acquires wait until it can be leased.
    pub(crate) waiting: usize,
    /// The failure that explains the state. `None` if there is none.
    pub(crate) failure: Option<Error>,
    /// How far the present attempt has come. `None` if it has not told, or there is none.
    pub(crate) progress: Option<Progress>,
}
