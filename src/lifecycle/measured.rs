//! [`Measured`], a piece of work or a checkout that has ended, with the time that it took.
//!
//! `Busy` guards and checkouts measure themselves, and only while a pool has a [`Meter`]. So a pool without one reads no
//! clock for it. A lease is not measured.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::lifecycle::work::Work;

/// Something that has ended, and the time that it took.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Measured<'a> {
    /// The name of the resource.
    pub resource: &'a Arc<str>,
    /// The name of the resource's kind, as in `redis`. `None` for a registered resource.
    pub kind: Option<&'static str>,
    /// The name that OpenTelemetry has for the server's software, as in `postgresql`. `None` for a registered resource.
    pub system: Option<&'static str>,
    /// Where the resource is, without credentials.
    pub endpoint: &'a Arc<str>,
    /// The thing that was measured.
    pub measure: Measure,
    /// The number of pieces of work that ended together. 1 for a checkout.
    pub count: usize,
    /// The time from the beginning to the end.
    pub took: Duration,
    /// Whether the work was done, as opposed to cut off or cancelled. A server's answer that is an error is an answer,
    /// so the work is done.
    pub is_done: bool,
}

/// A thing that a pool measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Measure {
    /// A piece of work, from its begin to its end.
    Work(Work),
    /// An exclusive checkout, from the moment it was handed out until it came back.
    Checkout,
}

/// The listener that is told of all that is [measured](Measured).
pub(crate) struct Meter(Box<dyn Fn(&Measured<'_>) + Send + Sync>);

impl Meter {
    pub(crate) fn new(listener: impl Fn(&Measured<'_>) + Send + Sync + 'static) -> Self {
        Meter(Box::new(listener))
    }

    /// Tells the listener. Its panic ends here, because guards tell it as they drop.
    pub(crate) fn tell(&self, measured: &Measured<'_>) {
        let _theirs = catch_unwind(AssertUnwindSafe(|| (self.0)(measured)));
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").finish_non_exhaustive()
    }
}
