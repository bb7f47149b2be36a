//! [`AnySlot`], by which a pool asks and directs a resource without knowing its type.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use crate::base::error::{Error, Failure, Source};
use crate::base::future::BoxFuture;
use crate::base::holder::Holder;
use crate::lifecycle::activity::Activity;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::condition::Condition;
use crate::lifecycle::leak::Leaks;
use crate::lifecycle::lease::Held;
use crate::lifecycle::status::{Counters, ResourceStatus, State, Usage};

/// A [`Slot`](crate::lifecycle::slot::Slot) without its type.
pub(crate) trait AnySlot: Any + Send + Sync {
    fn activity(&self) -> &Arc<Activity>;
    fn name(&self) -> &Arc<str> {
        &self.activity().name
    }
    fn phase(&self) -> Phase;
    fn state(&self) -> State;
    fn condition(&self) -> Condition;
    fn generation_or_next(&self) -> u64;
    /// Whether its code is a user's own, which may block the thread.
    fn is_users(&self) -> bool;
    /// How full the resource is. While it has no handle, and if its code panics, only the counters are known.
    fn usage(&self) -> Usage;
    /// The counters that it has told by now. This runs no code of the resource.
    fn counted(&self) -> Counters;
    fn status(&self, usage: Usage) -> ResourceStatus;
    fn holders(&self) -> Vec<Holder>;
    /// Whether any lease or checkout that counts is out.
    fn is_held(&self, counts: Held) -> bool;
    fn leaks(&self) -> &Leaks;
    /// Marks watched leases and checkouts that have been out for `age`, and returns the newly marked ones.
    fn suspect(&self, age: Duration) -> Vec<Holder>;
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
    /// Waits until the resource is ready or an attempt to connect fails. Begins an attempt if none is under way.
    fn wait_ready(self: Arc<Self>) -> BoxFuture<Result<(), Error>>;
    /// Begins what [`wait_ready`](AnySlot::wait_ready) waits for.
    fn try_again(self: Arc<Self>);
    /// Waits until a lost connection is back, over any number of attempts.
    fn wait_back(self: Arc<Self>, limit: Duration) -> BoxFuture<Result<(), Error>>;
    /// The ping of a health check. `None` while the resource has no handle.
    fn ping(self: Arc<Self>) -> Option<BoxFuture<Result<(), Failure>>>;
    /// The ping of the prober. `None` while the resource has no handle.
    fn probe(self: Arc<Self>) -> Option<BoxFuture<Result<(), Failure>>>;
    /// The connection is lost. `link` is the attempt whose link reports this. It is `None` if the pool itself does.
    fn lost(self: Arc<Self>, link: Option<u64>, generation: u64, cause: Source);
    /// Notes how far an attempt has come.
    fn progress(&self, attempt: u64, told: Arc<str>);
    /// Connects anew, unless the resource is closing, and waits until it is ready.
    fn reconnect(self: Arc<Self>) -> BoxFuture<Result<(), Error>>;
    /// Replaces the connections while the resource goes on. One that is not connected has none to replace.
    fn refresh(self: Arc<Self>) -> BoxFuture<Result<(), Error>>;
    /// Sets the most connections, until the resource is closed.
    fn resize(&self, max: usize) -> Result<(), Error>;
    /// Stops further attempts if one is in flight, and returns whether one is.
    fn begin_settling(&self) -> bool;
    /// Waits until no attempt is in flight.
    fn settled(self: Arc<Self>) -> BoxFuture<()>;
    /// Begins closing. Returns `false` if there is nothing to close.
    fn begin_close(&self) -> bool;
    fn stop_intake(self: Arc<Self>) -> BoxFuture<()>;
    fn flush(self: Arc<Self>) -> BoxFuture<()>;
    /// Stops leasing to all but the pool's own closing code.
    fn stop_leasing_outside(&self);
    /// Stops leasing.
    fn stop_leasing(&self);
    fn close(self: Arc<Self>) -> BoxFuture<Result<(), Failure>>;
    /// Cuts the streams of the connection at once.
    fn cut(&self);
    /// Ends as `Closed`, whether or not the server answered the disconnect. Fails with the message of a panic in the
    /// handle's drop.
    fn finish_close(&self) -> Result<(), String>;
    /// Whether no disconnect of a lost or late handle is in flight.
    fn has_disconnected(&self) -> bool;
    /// Counts as such a disconnect until the answer drops.
    fn delay_closing(self: Arc<Self>) -> Box<dyn Send>;
    /// Whether it or its pool is being closed, or the pool's readiness is lowered.
    fn is_closing(&self) -> bool;
    /// Stays closed from now on. Returns `false` if it is connected, or about to be.
    fn retire(&self) -> bool;
    /// Returns to `Idle`, if closed.
    fn reopen(&self);
}
