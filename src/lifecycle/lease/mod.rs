//! Leases: what holds a resource, from which line, for how long.

pub(crate) mod guard;
pub(crate) mod table;

pub use crate::lifecycle::lease::guard::{Claim, Lease, LeaseAs};
pub(crate) use crate::lifecycle::lease::table::{Held, LeaseTable};
