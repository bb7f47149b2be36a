//! What the driver's errors are to connecting, to a ping, and to whoever's call was cut.

use std::io;

use sqlx::Error as Driver;

use crate::base::error::{Error, Failure, Worded, redacted};
use crate::base::secret::Secret;
use crate::kinds::postgres::config::PostgresConfig;
#[cfg(feature = "tls")]
use crate::net::tls;

impl PostgresConfig {
    /// What a failure to connect, or of a ping, proves.
    pub(super) fn failure(&self, error: Driver) -> Failure {
        #[cfg(feature = "tls")]
        if let Driver::Io(io) = &error
            && self.tls.is_some()
            && let Some(trouble) = tls::client::trouble(io)
        {
            return if trouble.permanent { Failure::permanent(trouble) } else { Failure::transient(trouble) };
        }
        let code = match &error {
            Driver::Database(said) => said.code().unwrap_or_default().into_owned(),
            _ => String::new(),
        };
        let is_ours = matches!(&error, Driver::Configuration(_) | Driver::Tls(_));
        let is_foreign = matches!(&error, Driver::Protocol(_));
        let told = matches!(&error, Driver::Database(_));
        let secrets: Vec<_> = self.password.iter().map(Secret::expose).collect();
        let words = match &error {
            Driver::Database(said) if said.message().contains("no encryption") && self.tls.is_none() => {
                Some(format!("{error}; where the server wants TLS, set postgres.tls or sslmode=verify-full"))
            }
            Driver::Protocol(_) => Some(format!("what answers there is no PostgreSQL ({error}): mend host and port")),
            _ => None,
        };
        let names = [&*self.user, &*self.database];
        let source = match words {
            Some(words) => redacted(Worded::new(words, error), told, &secrets, &names),
            None => redacted(error, told, &secrets, &names),
        };
        match &*code {
            // A wrong login, a missing right, a database that is not there.
            "28000" | "28P01" | "3D000" | "42501" => Failure::permanent(source),
            // It is starting, shutting down, recovering, or has no room.
            "57P01" | "57P02" | "57P03" | "53300" => Failure::refused(source),
            "" if is_ours || is_foreign => Failure::permanent(source),
            "" => Failure::transient(source),
            _ => Failure::refused(source),
        }
    }
}

/// Our error, where a signature asks for the driver's. [`Error::behind`] finds it there.
pub(super) fn ours(error: Error) -> Driver {
    let kind = match &error {
        Error::Timeout(_) => io::ErrorKind::TimedOut,
        Error::Lost { .. } | Error::OutcomeUnknown { .. } => io::ErrorKind::ConnectionAborted,
        _ => io::ErrorKind::NotConnected,
    };
    Driver::Io(io::Error::new(kind, error))
}

/// Whether the connection has ended, or nothing is known of where it is.
pub(super) fn is_loss(error: &Driver) -> bool {
    matches!(error, Driver::Io(_) | Driver::Tls(_) | Driver::Protocol(_))
}
