//! Leases: the guards that hold a resource, and the table that has the line and the age of each.

pub(crate) mod guard;
pub(crate) mod table;

pub use crate::lifecycle::lease::guard::{Claim, Lease, LeaseAs};
pub(crate) use crate::lifecycle::lease::table::{Held, LeaseTable};
