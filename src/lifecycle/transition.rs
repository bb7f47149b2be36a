//! The answers of a [`Life`](crate::lifecycle::life::Life) to what happens: each says what is to be done now.

use crate::base::error::Source;

/// Who waits for a resource, and how.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Caller {
    /// It goes on waiting while the connection is brought back, however often that fails.
    pub(crate) patient: bool,
    /// It is the pool's own closing code, which may lease whatever closes later.
    pub(crate) inside: bool,
}

/// What an acquire does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AcquireStep {
    /// Lease.
    Lease,
    /// Wait for a change.
    Wait,
    /// Carry out this attempt, then wait.
    Connect(u64),
}

/// What an attempt's success has led to.
#[derive(Debug)]
pub(crate) enum Connected<H> {
    /// A new generation is ready; it may have been lost already.
    Ready { generation: u64, lost: Option<Source> },
    /// The attempt was superseded. This handle is nobody's: say goodbye.
    Late(H),
    /// The attempt was superseded. Whoever did that has the handle.
    Superseded,
}

/// Closing, or another attempt, came first.
#[derive(Debug)]
pub(crate) struct Superseded;

/// What a loss has led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LossAction {
    /// Nothing now.
    Noted,
    /// It is being closed and not brought back, but nobody may wait for its answers: cut.
    Cut,
    /// Cut, then bring it back.
    Recover(Recovery),
}

/// How a lost connection is to be brought back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Recovery {
    /// The attempt to carry out. After a pause it is to be begun [again](crate::lifecycle::life::Life::again).
    pub(crate) attempt: u64,
    /// How many generations in a row died young. Where there were any, a pause comes first.
    pub(crate) died_young: u32,
}
