//! One ticker as its messages come in.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::bars::Bar;
use crate::strategy::{Performance, Signal, Strategy};

/// How many messages go out between two looks at the clock, and stay unacknowledged at most.
pub(crate) const BATCH: usize = 500;
/// How long a ticker waits for its next message.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Follower {
    strategy: Strategy,
    expected: usize,
    consumed: usize,
    last_stamp: f64,
}

impl Follower {
    /// Of so many bars.
    pub(crate) fn of(expected: usize) -> Self {
        Follower { strategy: Strategy::default(), expected, consumed: 0, last_stamp: f64::NEG_INFINITY }
    }

    /// Whether more bars will come.
    pub(crate) fn waits(&self) -> bool {
        self.consumed < self.expected
    }

    /// Takes a message, and tells if its bar made a signal.
    pub(crate) fn take(&mut self, message: &[u8]) -> Result<Option<Signal>> {
        let bar: Bar = serde_json::from_slice(message).context("a message that is no bar")?;
        // After a reconnect the broker may deliver again what it has no acknowledgement for.
        if bar.date_stamp <= self.last_stamp {
            return Ok(None);
        }
        self.last_stamp = bar.date_stamp;
        self.consumed += 1;
        Ok(self.strategy.on_bar(&bar))
    }

    pub(crate) fn consumed(&self) -> u64 {
        self.consumed as u64
    }

    pub(crate) fn performance(&self) -> Performance {
        self.strategy.result()
    }
}
