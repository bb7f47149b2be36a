//! Which operations the pool itself repeats when a connection is lost, and which it never does.

use serde::Deserialize;

/// Which of its own operations the pool itself repeats when their connection is lost: RabbitMQ's verbs, ClickHouse's,
/// async Redis commands. The page `docs/reference/repeats.md` has a table of them. An operation that may do harm twice,
/// and may have been sent, is never repeated. Its error is [`Error::OutcomeUnknown`](crate::Error::OutcomeUnknown).
/// After [`Error::Lost`](crate::Error::Lost) trying again does no harm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Repeat {
    /// No operation. One that finds the connection lost fails at once.
    Never,
    /// An operation that was never sent. It waits until the connection is back, as long as one connect may take
    /// ([`Retry::budget`](crate::pool::config::Retry::budget)), and is sent once.
    #[default]
    Unsent,
    /// Also an operation that was sent and does no harm twice. It is sent once more as soon as the connection is back.
    Idempotent,
}
