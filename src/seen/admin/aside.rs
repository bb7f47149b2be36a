//! [`Aside`], which calls the program's code on a thread of its own, so that code which blocks holds up no other request.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::Semaphore;

use crate::base::runtime::{apart, within};
use crate::seen::admin::answer::Denial;

/// A piece of the program's code that runs once at a time. A call that does not come back keeps one thread.
pub(super) struct Aside {
    /// The name of the code in errors.
    doing: &'static str,
    limit: Duration,
    place: Arc<Semaphore>,
}

impl Aside {
    pub(super) fn new(doing: &'static str, limit: Duration) -> Self {
        Aside { doing, limit, place: Arc::new(Semaphore::new(1)) }
    }

    /// Calls the code, after an earlier call has come back.
    ///
    /// # Errors
    /// The code panicked, or it did not come back within the limit.
    ///
    /// # Cancel safety
    /// A call that has begun goes on if the future is dropped.
    pub(super) async fn call<T: Send + 'static>(&self, code: impl FnOnce() -> T + Send + 'static) -> Result<T, Denial> {
        let doing = self.doing;
        let called = async {
            // Nobody closes the semaphore. The code keeps the place until it comes back.
            let place = Arc::clone(&self.place).acquire_owned().await.ok();
            let code = move || {
                let answer = code();
                drop(place);
                answer
            };
            apart(code).await
        };
        let panicked = |_| {
            let error = format!("{doing} panicked");
            Denial::new(StatusCode::INTERNAL_SERVER_ERROR, error, "see the program's log")
        };
        match within(self.limit, called).await {
            Ok(called) => called.map_err(panicked),
            Err(_late) => {
                let error = format!("{doing} takes longer than {:?}", self.limit);
                Err(Denial::new(StatusCode::SERVICE_UNAVAILABLE, error, "let the program's code not block its thread"))
            }
        }
    }
}
