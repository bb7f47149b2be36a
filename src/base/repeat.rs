//! What is repeated by the pool itself when a connection is lost, and what never is.

use serde::Deserialize;

/// What the pool itself repeats of its own operations when their connection is lost: RabbitMQ's
/// verbs, ClickHouse's, async Redis commands. The guide has a table of them. What
/// may do harm twice and may have been sent is never repeated: its error is
/// [`Error::OutcomeUnknown`](crate::Error::OutcomeUnknown). After
/// [`Error::Lost`](crate::Error::Lost) trying again does no harm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Repeat {
    /// Nothing: an operation that finds the connection lost fails at once.
    Never,
    /// One that was never sent: it waits until the connection is back, as long as one connect may
    /// take ([`Retry::budget`](crate::pool::config::Retry::budget)), and is sent once.
    #[default]
    Unsent,
    /// Besides, one that was sent and does no harm twice: it is sent once more as soon as the
    /// connection is back.
    Idempotent,
}
