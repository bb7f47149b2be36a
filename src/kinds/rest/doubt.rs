//! The doubt about a request that may do harm if it is sent twice.

use crate::base::error::Error;
use crate::lifecycle::link::Link;

/// The error of a request that was sent, and whose answer does not prove that nothing was done.
pub(crate) fn doubted(link: &Link, error: Error) -> Error {
    match error {
        Error::Operation { action, source, .. } => link.outcome_unknown(&action, source),
        error => error,
    }
}
