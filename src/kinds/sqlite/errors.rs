//! The driver's errors, judged for connecting and for a ping.

use sqlx::Error as Driver;

use crate::base::error::{Failure, Worded};
use crate::kinds::sqlite::config::SqliteConfig;

/// SQLite's own numbers of its errors.
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const CORRUPT: i32 = 11;
const CANNOT_OPEN: i32 = 14;
const NO_DATABASE: i32 = 26;

impl SqliteConfig {
    /// Judges an error of connecting or of a ping: whether it is permanent, transient, or a sign of life.
    pub(super) fn judge(&self, error: Driver) -> Failure {
        let path = self.file.display();
        match code(&error) {
            Some(BUSY | LOCKED) => Failure::refused(error),
            Some(CANNOT_OPEN) => {
                let words = format!(
                    "{path} cannot be opened ({error}): correct sqlite.file, or have the file made by sqlite.create or \
                     mode=rwc; its folder must be there"
                );
                Failure::permanent(Worded::new(words, error))
            }
            Some(NO_DATABASE | CORRUPT) => {
                let words = format!("{path} is no database, or is damaged ({error})");
                Failure::permanent(Worded::new(words, error))
            }
            None if matches!(error, Driver::Configuration(_)) => Failure::permanent(error),
            _ => Failure::transient(error),
        }
    }
}

/// Whether the file is locked by another connection.
pub(super) fn is_lock(error: &Driver) -> bool {
    matches!(code(error), Some(BUSY | LOCKED))
}

/// The number of SQLite's error, without what it has in addition.
pub(super) fn code(error: &Driver) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}
