//! The driver's errors, judged for connecting, for a ping, and for a call that was cut.

use std::io;

use sqlx::Error as Driver;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::base::error::{Error, Failure, Worded, redacted};
use crate::base::secret::{Secret, SecretFile};
use crate::kinds::postgres::config::PostgresConfig;
use crate::net::tls;

impl PostgresConfig {
    /// The failure to connect that this error is, with the remedy where TLS fails.
    pub(super) fn connect_failure(&self, error: Driver) -> Failure {
        if let Driver::Io(io) = &error
            && self.tls.is_some()
            && let Some(failure) = tls::failure(io)
        {
            return failure;
        }
        let is_full = error.as_database_error().is_some_and(|said| said.code().is_some_and(|code| code == "53300"));
        Failure { is_full, ..self.failure(error) }
    }

    /// Judges an error of connecting or of a ping: whether it is permanent, transient, or a refusal by the server.
    pub(super) fn failure(&self, error: Driver) -> Failure {
        let code = match &error {
            Driver::Database(said) => said.code().unwrap_or_default().into_owned(),
            _ => String::new(),
        };
        let is_ours = matches!(&error, Driver::Configuration(_) | Driver::Tls(_));
        // A server that cannot take one more client may close the connection instead of answering whether it speaks
        // TLS.
        let is_foreign = matches!(&error, Driver::Protocol(why) if !why.contains("SSLRequest"));
        let told = matches!(&error, Driver::Database(_));
        let by_file = self.password_file.as_ref().map(SecretFile::recent).unwrap_or_default();
        let secrets: Vec<_> = self.password.iter().chain(&by_file).map(Secret::expose).collect();
        let words = match &error {
            Driver::Database(said) if said.message().contains("no encryption") && self.tls.is_none() => {
                Some(format!("{error}; where the server wants TLS, set postgres.tls or sslmode=verify-full"))
            }
            Driver::Protocol(_) if is_foreign => Some(format!(
                "a server answers there that is no PostgreSQL that the driver knows ({error}): correct host and port"
            )),
            _ => None,
        };
        let names = [&*self.user, &*self.database];
        let source = match words {
            Some(words) => redacted(Worded::new(words, error), told, &secrets, &names),
            None => redacted(error, told, &secrets, &names),
        };
        match &*code {
            // A wrong password may pass if it is of a file, because the file may just be replaced.
            "28P01" if self.password_file.is_some() => Failure::transient(source),
            // The login is wrong, a right is missing, or there is no such database.
            "28000" | "28P01" | "3D000" | "42501" => Failure::permanent(source),
            // The server is starting, shutting down or recovering, or has no room.
            "57P01" | "57P02" | "57P03" | "53300" => Failure::refused(source),
            "" if is_ours || is_foreign => Failure::permanent(source),
            "" => Failure::transient(source),
            _ => Failure::refused(source),
        }
    }
}

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
    matches!(error, Driver::Io(_) | Driver::Tls(_))
}

/// Whether the server ends the connection with these words (class 57: it is shut down, has crashed, or an administrator ends
/// the session). They may come after a commit, so they tell nothing about the statement.
pub(super) fn is_farewell(error: &Driver) -> bool {
    is_last(error) && error.as_database_error().and_then(|said| said.code()).is_some_and(|code| code.starts_with("57"))
}

/// Whether the connection ends with this answer, or is in an unknown state after it.
pub(super) fn is_last(error: &Driver) -> bool {
    let said = error.as_database_error().and_then(|said| said.try_downcast_ref::<PgDatabaseError>());
    let is_fatal = said.is_some_and(|said| matches!(said.severity(), PgSeverity::Fatal | PgSeverity::Panic));
    is_fatal || matches!(error, Driver::Protocol(_))
}
