//! The strategy of one ticker, fed by its messages.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::bars::Bar;
use crate::strategy::{Performance, Signal, Strategy};

/// The number of messages that are published between two checks of the clock, and the most that stay unacknowledged.
pub(crate) const BATCH: usize = 500;
/// How long a ticker waits for its next message. It only bounds the wait on a stream that is lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Follower {
    strategy: Strategy,
    expected: usize,
    consumed: usize,
    last_stamp: f64,
}

impl Follower {
    /// A follower that expects so many bars.
    pub(crate) fn of(expected: usize) -> Self {
        Follower { strategy: Strategy::default(), expected, consumed: 0, last_stamp: f64::NEG_INFINITY }
    }

    /// Whether more bars will come.
    pub(crate) fn waits(&self) -> bool {
        self.consumed < self.expected
    }

    /// Takes a message. Returns a signal if its bar made one.
    pub(crate) fn take(&mut self, message: &[u8]) -> Result<Option<Signal>> {
        let bar: Bar = serde_json::from_slice(message).context("a message that is no bar")?;
        // After a reconnect the broker may deliver unacknowledged messages again.
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
