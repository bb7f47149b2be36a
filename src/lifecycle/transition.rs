//! The answers of a [`Life`](crate::lifecycle::life::Life) to events. Each tells the caller what to do next.

use crate::base::error::Source;

/// The caller that waits for a resource, and how it waits.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Caller {
    /// Whether it goes on waiting while the connection is brought back, however often that fails.
    pub(crate) patient: bool,
    /// Whether it is the pool's own closing code, which may lease resources that close later.
    pub(crate) inside: bool,
}

/// The next step of an acquire.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AcquireStep {
    /// Lease.
    Lease,
    /// Wait for a change.
    Wait,
    /// Carry out this attempt, then wait.
    Connect(u64),
}

/// The result of an attempt that succeeded.
#[derive(Debug)]
pub(crate) enum ConnectOutcome<H> {
    /// A new generation is ready. `lost` is its loss, if it was lost already.
    Ready { generation: u64, lost: Option<Source> },
    /// The attempt was superseded. Nobody else has this handle, so the caller disconnects it.
    Late(H),
    /// The attempt was superseded. The closing or the attempt that did so has the handle.
    Superseded,
}

/// The error of an attempt that closing or another attempt superseded.
#[derive(Debug)]
pub(crate) struct Superseded;

/// The result of a loss.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LossAction {
    /// Do nothing now.
    Noted,
    /// Cut the connection, so that no caller waits for its answers. It is being closed and not brought back.
    Cut,
    /// Cut the connection, then bring it back.
    Recover(Recovery),
}

/// How a lost connection is to be brought back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Recovery {
    /// The attempt to carry out. If a pause comes first, it begins with [`again`](crate::lifecycle::life::Life::again).
    pub(crate) attempt: u64,
    /// How many generations in a row died young. If there were any, a pause comes first.
    pub(crate) died_young: u32,
}
