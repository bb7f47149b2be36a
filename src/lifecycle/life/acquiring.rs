//! [`AcquireWait`], which counts an acquire that waits until it can have its lease.

use tokio::time::Instant;

use super::Life;
use crate::lifecycle::event::What;

/// Counts an acquire that waits, and tells how long it waited, however the wait ends.
pub(super) struct AcquireWait<'a, H: Clone + Send + Sync + 'static> {
    life: &'a Life<H>,
    since: Instant,
    /// Whether the acquire could not have its lease at once.
    pub(super) waits: bool,
}

impl<'a, H: Clone + Send + Sync + 'static> AcquireWait<'a, H> {
    pub(super) fn new(life: &'a Life<H>) -> Self {
        life.inner.lock().waiting += 1;
        AcquireWait { life, since: Instant::now(), waits: false }
    }
}

impl<H: Clone + Send + Sync + 'static> Drop for AcquireWait<'_, H> {
    fn drop(&mut self) {
        self.life.inner.lock().waiting -= 1;
        if self.waits {
            let waited = || What::Waited { waiting_for: "connecting".to_owned(), waited: self.since.elapsed() };
            self.life.note(waited);
        }
    }
}
