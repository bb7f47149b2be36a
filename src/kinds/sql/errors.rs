//! The errors that all drivers of sqlx have in common.

use std::io;

use sqlx::Error as Driver;

use crate::base::error::{BoxError, Error, Worded, redacted};
use crate::base::secret::{Secret, SecretFile};

/// Wraps a crate error as a driver error, for signatures that require one. [`Error::behind`] finds it there.
pub(super) fn ours(error: Error) -> Driver {
    let kind = match &error {
        Error::Timeout(_) => io::ErrorKind::TimedOut,
        Error::Lost { .. } | Error::OutcomeUnknown { .. } => io::ErrorKind::ConnectionAborted,
        _ => io::ErrorKind::NotConnected,
    };
    Driver::Io(io::Error::new(kind, error))
}

/// Whether the connection has ended.
pub(super) fn is_loss(error: &Driver) -> bool {
    matches!(error, Driver::Io(_) | Driver::Tls(_) | Driver::WorkerCrashed)
}

/// The error with these words for it. Where the database quotes one of the passwords, a note stands in its place.
pub(crate) fn redacted_for(
    error: Driver,
    words: Option<String>,
    password: Option<&Secret>,
    file: Option<&SecretFile>,
    names: &[&str],
) -> BoxError {
    let told = matches!(&error, Driver::Database(_));
    let by_file = file.map(SecretFile::recent).unwrap_or_default();
    let secrets: Vec<_> = password.into_iter().chain(&by_file).map(Secret::expose).collect();
    match words {
        Some(words) => redacted(Worded::new(words, error), told, &secrets, names),
        None => redacted(error, told, &secrets, names),
    }
}
