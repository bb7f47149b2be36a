//! Closing: intake stops, work drains, then every step runs in its phase, each within a budget.

pub(crate) mod closer;
mod drain;
pub(crate) mod edges;
pub(crate) mod options;
pub(crate) mod phase;
pub(crate) mod pool;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod state;
mod step;
