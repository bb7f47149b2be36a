//! Exclusive checkouts: each connection has one user at a time. A user is a thread or a task.
//!
//! One lock guards all decisions, and one rule governs them: nobody waits while a connection lies idle. A connection
//! that comes back goes straight to the user who has waited longest, so that nobody starves. If nobody waits, a user
//! gets an idle connection at once.
//!
//! Connections are opened only on demand, and by the pool's own tasks or threads. They open one at first, and one more
//! at a time for each that was opened while more are still wanted, as in TCP's slow start. A burst that is soon over
//! therefore opens one or two. A lasting load has all it needs after a logarithmic number of steps. After an opening
//! that failed, or a connection that failed its first test, the next opening follows after a pause.
//!
//! The prober has a connection of its own if the driver does not block. Otherwise, or if the server has no room for
//! that, the prober borrows an idle one, so that it adds none. Users do not notice the loan. A user who comes meanwhile
//! is given that connection after the ping, before another one is opened, and even if this user may not wait. No user
//! pays for a driver's disconnect, because the pool's own tasks or threads do it.

#[cfg(feature = "r2d2")]
pub(crate) mod adapted;
pub(crate) mod checkouts;
pub(crate) mod core;
pub(crate) mod entry;
pub(crate) mod guard;
pub(crate) mod loan;
pub(crate) mod manage;
pub(crate) mod opening;
pub(crate) mod queue;
pub(crate) mod refreshing;
pub(crate) mod state;
pub(crate) mod waiter;
pub(crate) mod waiting;

#[cfg(feature = "r2d2")]
pub(crate) use crate::lifecycle::checkout::adapted::{Adapted, AdapterHook};
pub use crate::lifecycle::checkout::checkouts::Checkouts;
pub use crate::lifecycle::checkout::core::Limits;
pub use crate::lifecycle::checkout::guard::Checkout;
pub(crate) use crate::lifecycle::checkout::loan::Loan;
pub use crate::lifecycle::checkout::manage::Manage;
