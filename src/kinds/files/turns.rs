//! [`Turns`], which calls to a file system take, since each of them may hang.

use std::sync::Arc;

use tokio::sync::Mutex;

use crate::base::error::Failure;
use crate::base::runtime::apart;

/// Turns for code that blocks, so that calls to a file system that hangs keep one thread, and not one each. A call that
/// is given up ends before the next one begins.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns(Arc<Mutex<()>>);

impl Turns {
    /// Runs code on a thread of its own, once those before it have come back.
    ///
    /// # Errors
    /// The code panicked.
    ///
    /// # Cancel safety
    /// If the future is dropped, code that has begun goes on, and keeps its turn.
    pub(super) async fn apart<T: Send + 'static>(
        &self,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let turn = Arc::clone(&self.0).lock_owned().await;
        apart(move || {
            let _turn = turn;
            run()
        })
        .await
    }

    /// Whether such code runs now.
    pub(super) fn is_taken(&self) -> bool {
        self.0.try_lock().is_err()
    }
}
