//! The replacement of a Redis's connections while commands go on.
//!
//! The new connections are of the same generation and under the same kill switch. The locks of `shared` and `switch`
//! are not held across an await.

use crate::base::error::Failure;
use crate::kinds::redis::connection::open;
use crate::kinds::redis::session::RedisSession;

impl RedisSession {
    /// Opens a new shared connection for the commands from now on, and has the connections of threads and of the prober
    /// replaced. The driver of the old shared connection ends by itself after its last answer.
    pub(super) async fn refresh(&self) -> Result<(), Failure> {
        let switch = self.switch.read().clone();
        let opened = self.in_time(open(self, &switch)).await;
        let opened = opened.map_err(|error| Failure::transient(self.config.told(error)))?;
        if self.replace_shared(opened, &switch).is_none() {
            return Err(Failure::transient("the connection was lost meanwhile"));
        }
        self.threads.retire();
        // The next ping opens a new one.
        drop(self.probe.lock().await.take());
        Ok(())
    }
}
