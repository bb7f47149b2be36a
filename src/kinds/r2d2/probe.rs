//! The probe of an adapter. Its calls cannot be cut short, so it bounds how many may hang.

use std::sync::Arc;

use tokio::sync::{Semaphore, oneshot};

use crate::base::error::Failure;

/// How many calls may hang.
pub(super) const HANGING: usize = 4;

pub(super) type Call = oneshot::Receiver<Result<(), Failure>>;

/// The calls to the adapter that ask whether the server is there. Each is on a thread that may hang.
pub(super) struct Probe {
    /// The call that is under way, on whose answer all pings wait.
    pub(super) call: Option<Call>,
    /// Permits for as many more calls as may hang.
    pub(super) hanging: Arc<Semaphore>,
}

impl Probe {
    pub(super) fn new() -> Self {
        Probe { call: None, hanging: Arc::new(Semaphore::new(HANGING)) }
    }
}
