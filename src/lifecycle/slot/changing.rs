//! The changes that users make to a resource while it goes on.
//!
//! A refresh is a task on the pool's runtime, so that a caller who stops waiting does not stop it half-way. Nothing is
//! locked here.

use std::sync::Arc;

use crate::base::error::{BoxError, Error, Source, TimeoutError, panic_message};
use crate::base::runtime::within;
use crate::lifecycle::any_slot::AnySlot;
use crate::lifecycle::event::What;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::slot::Slot;
use crate::lifecycle::status::State;

impl<R: Resource> Slot<R> {
    /// Has the resource replace its connections, within `connect_timeout`.
    pub(super) async fn begin_refreshing(self: Arc<Self>) -> Result<(), Error> {
        let handle = match self.life.state() {
            State::Draining => return Err(Error::closing(self.name())),
            State::Closed => return Err(self.closed()),
            State::Ready => self.life.handle(),
            // All connections that are made from here on are new ones.
            State::Idle | State::Connecting | State::Broken => None,
        };
        let Some(handle) = handle else { return Ok(()) };
        let limit = self.context.options.connect_timeout;
        let me = Arc::clone(&self);
        let refreshing = self.runtime()?.spawn(async move { within(limit, me.resource.refresh(&handle)).await });
        match refreshing.await {
            Ok(Ok(Ok(true))) => {
                tracing::info!(resource = %self.name(), "the connections are replaced");
                Ok(())
            }
            Ok(Ok(Ok(false))) => Err(self.unchanged(
                "refresh",
                "this kind cannot replace its connections while they are in use; `reconnect` replaces them, and ends \
                 the calls in flight",
            )),
            Ok(Ok(Err(failure))) => Err(self.unchanged("refresh", failure.source)),
            Ok(Err(_elapsed)) => {
                let (name, endpoint) = (self.name(), &self.activity().endpoint);
                let error = Arc::new(TimeoutError::new(name, endpoint, "new connections", limit));
                self.life.note(|| What::TimedOut { error: Arc::clone(&error) });
                Err(Error::Timeout(error))
            }
            Err(join) if join.is_panic() => {
                let what = format!("the refresh of {}", self.name());
                Err(Error::Panicked { what, message: panic_message(&*join.into_panic()) })
            }
            Err(_the_runtime_has_ended) => Err(self.closed()),
        }
    }

    /// Sets the most connections of the present handle.
    pub(super) fn set_size(&self, max: usize) -> Result<(), Error> {
        match self.life.state() {
            State::Draining => return Err(Error::closing(self.name())),
            State::Closed => return Err(self.closed()),
            State::Idle | State::Connecting | State::Ready | State::Broken => {}
        }
        let action = format!("resize to {max}");
        if max == 0 {
            return Err(self.unchanged(&action, "a resource has at least 1 connection; `close` ends them all"));
        }
        let Some(handle) = self.life.handle() else {
            let why = "it is not connected yet; connect it first, or set the size in its configuration";
            return Err(self.unchanged(&action, why));
        };
        match self.guarded("resize", || self.resource.resize(&handle, max)) {
            Some(true) => {
                tracing::info!(resource = %self.name(), max, "the size is changed");
                Ok(())
            }
            Some(false) => Err(self.unchanged(&action, "this kind cannot change its size while it is connected")),
            None => Err(self.unchanged(&action, "it panicked")),
        }
    }

    /// The error of a change that was not made.
    fn unchanged(&self, action: &str, why: impl Into<BoxError>) -> Error {
        Error::Operation {
            resource: Arc::clone(self.name()),
            action: action.to_owned(),
            source: Source::from(why.into()),
        }
    }
}
