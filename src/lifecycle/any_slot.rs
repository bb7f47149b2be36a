//! What a pool asks of a resource whose kind it does not know.

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
use crate::lifecycle::status::{ResourceStatus, State, Usage};

/// A [`Slot`](crate::lifecycle::slot::Slot) whose type the pool need not know.
pub(crate) trait AnySlot: Any + Send + Sync {
    fn activity(&self) -> &Arc<Activity>;
    fn name(&self) -> &Arc<str> {
        &self.activity().name
    }
    fn phase(&self) -> Phase;
    fn state(&self) -> State;
    fn condition(&self) -> Condition;
    fn generation_or_next(&self) -> u64;
    /// Whether its code is a user's own, which may block.
    fn is_users(&self) -> bool;
    /// How full it is; nothing is known of what never was connected.
    fn usage(&self) -> Usage;
    fn status(&self, usage: Usage) -> ResourceStatus;
    fn holders(&self) -> Vec<Holder>;
    /// Whether anything is leased or checked out that counts.
    fn is_held(&self, counts: Held) -> bool;
    fn leaks(&self) -> &Leaks;
    /// Marks checkouts that have been out for this long, and tells the newly marked ones.
    fn suspect(&self, age: Duration) -> Vec<Holder>;
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
    /// Waits for the attempt to connect that is under way.
    fn wait_ready(self: Arc<Self>) -> BoxFuture<Result<(), Error>>;
    /// Waits until the connection is back, over any number of attempts.
    fn wait_back(self: Arc<Self>, limit: Duration) -> BoxFuture<Result<(), Error>>;
    /// A ping over whatever the resource pings with. `None` if it never was connected.
    fn ping(self: Arc<Self>) -> Option<BoxFuture<Result<(), Failure>>>;
    /// The prober's question, over the same. `None` if it never was connected.
    fn probe(self: Arc<Self>) -> Option<BoxFuture<Result<(), Failure>>>;
    /// The connection is lost, says the link of an attempt, or the pool itself.
    fn lost(self: Arc<Self>, link: Option<u64>, generation: u64, cause: Source);
    /// An attempt tells how far it has come.
    fn progress(&self, attempt: u64, told: Arc<str>);
    fn reconnect(self: Arc<Self>) -> BoxFuture<Result<(), Error>>;
    /// Has no attempt begun any more. Answers whether one is in flight.
    fn begin_settling(&self) -> bool;
    /// Waits until no attempt is in flight.
    fn settled(self: Arc<Self>) -> BoxFuture<()>;
    /// Begins closing. `false` if there is nothing to close.
    fn begin_close(&self) -> bool;
    fn stop_intake(self: Arc<Self>) -> BoxFuture<()>;
    fn flush(self: Arc<Self>) -> BoxFuture<()>;
    /// Ends leasing for all but the pool's own closing code.
    fn stop_leasing_outside(&self);
    /// Ends leasing.
    fn stop_leasing(&self);
    fn close(self: Arc<Self>) -> BoxFuture<Result<(), Failure>>;
    /// Cuts the streams under whatever still runs.
    fn cut(&self);
    /// Closed, whether or not the goodbye was heard. Fails with the message of a panic in the handle's drop.
    fn finish_close(&self) -> Result<(), String>;
    /// Whether no goodbye is being said to what was lost or came too late.
    fn has_disconnected(&self) -> bool;
    /// Back to `Idle`, if closed.
    fn reopen(&self);
}
