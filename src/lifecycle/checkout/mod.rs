//! Exclusive checkouts: connections each of which has one user at a time. A user is a thread or a task.
//!
//! All is decided under one lock, by one rule: nobody waits while a connection lies idle. What is given back goes
//! straight to whoever has waited longest, so that nobody starves, and is had at once where nobody waits.
//!
//! Connections are opened only while somebody waits, by tasks or threads that are no user's: one at first, and one more at
//! a time for each that was opened while others still wait, as TCP starts. So a burst that is soon over opens one or
//! two, and one that keeps what it gets has all it needs in a logarithmic number of steps. After an opening that failed, or
//! whose connection fails its first test, the next one follows after a pause.
//!
//! The prober has a connection of its own where the driver does not block. Else, or where the server has no room for that,
//! it borrows one that lies idle, so that it adds none. Nobody is to see that: whoever comes meanwhile is
//! given it once the ping is over, before another one is opened, and even where a wait is refused. No user pays for a
//! driver's goodbye: it is said by tasks or threads of ours.

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
pub(crate) mod state;
pub(crate) mod waiter;
pub(crate) mod waiting;

#[cfg(feature = "r2d2")]
pub(crate) use crate::lifecycle::checkout::adapted::Adapted;
pub use crate::lifecycle::checkout::checkouts::Checkouts;
pub use crate::lifecycle::checkout::core::Limits;
pub use crate::lifecycle::checkout::guard::Checkout;
pub(crate) use crate::lifecycle::checkout::loan::Loan;
pub use crate::lifecycle::checkout::manage::Manage;
