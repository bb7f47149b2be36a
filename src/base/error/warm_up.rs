//! The error of a warm-up, which has the errors of all resources that are not ready.

use std::error::Error as StdError;
use std::fmt::{self, Write as _};

use crate::base::error::{Error, OneLine};

/// The details of a warm-up that did not connect all resources.
#[derive(Debug)]
#[non_exhaustive]
pub struct WarmUpError {
    /// Each resource that is not ready, by name, with its error. At least one.
    pub failed: Vec<(String, Error)>,
    /// How many resources were to be connected.
    pub of: usize,
}

impl WarmUpError {
    pub(crate) fn new(failed: Vec<(String, Error)>, of: usize) -> Self {
        WarmUpError { failed, of }
    }
}

impl fmt::Display for WarmUpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let f = &mut OneLine(f);
        let names: Vec<_> = self.failed.iter().map(|(name, _)| name.as_str()).collect();
        write!(f, "{} of {} resources are not ready, {}", names.len(), self.of, names.join(", "))?;
        self.failed.iter().try_for_each(|(_, error)| write!(f, "; {error}"))
    }
}

impl StdError for WarmUpError {
    /// The driver's error of the first resource that failed. The message has those of the others too.
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.failed.first().and_then(|(_, error)| error.source())
    }
}
