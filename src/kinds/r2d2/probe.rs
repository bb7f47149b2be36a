//! The state of the pings of an adapter. A call to an adapter cannot be cut short, so the number that may hang is
//! bounded.

use std::sync::Arc;

use tokio::sync::{Semaphore, oneshot};

use crate::base::error::Failure;

/// The number of calls that may hang.
pub(super) const HANGING: usize = 4;

/// The answer of a call, once it comes.
pub(super) type Call = oneshot::Receiver<Result<(), Failure>>;

/// The calls that ask the adapter whether the server answers. Each runs on a thread that may hang.
pub(super) struct PingProbe {
    /// The call in flight. All pings wait for its answer. `None` if no call was begun, or it has answered.
    pub(super) call: Option<Call>,
    /// The permits for further calls. A call returns its permit when it ends.
    pub(super) hanging: Arc<Semaphore>,
}

impl PingProbe {
    pub(super) fn new() -> Self {
        PingProbe { call: None, hanging: Arc::new(Semaphore::new(HANGING)) }
    }
}
