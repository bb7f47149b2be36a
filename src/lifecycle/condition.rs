//! How a resource is at one moment.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::base::error::Error;
use crate::lifecycle::status::State;

/// How far an attempt has come, in its own words, and since when.
#[derive(Clone)]
pub(crate) struct Progress {
    pub(crate) at: Instant,
    pub(crate) told: Arc<str>,
}

/// A life at one moment.
pub(crate) struct Condition {
    pub(crate) state: State,
    /// For how long.
    pub(crate) since: Duration,
    pub(crate) generation: u64,
    /// How many wait until it can be leased.
    pub(crate) waiting: usize,
    /// What explains the state.
    pub(crate) failure: Option<Error>,
    pub(crate) progress: Option<Progress>,
}
