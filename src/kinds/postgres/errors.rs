//! The driver's errors, judged for connecting, for a ping, and for a call that was cut.

use sqlx::Error as Driver;

use crate::base::error::Failure;
use crate::kinds::postgres::config::PostgresConfig;
use crate::kinds::sql::redacted_for;
use crate::net::tls;

impl PostgresConfig {
    /// The failure to connect that this error is, with the remedy where TLS fails.
    pub(super) fn judge_connect(&self, error: Driver) -> Failure {
        if let Driver::Io(io) = &error
            && self.tls.is_some()
            && let Some(failure) = tls::failure(io)
        {
            return failure;
        }
        let is_full = error.as_database_error().is_some_and(|said| said.code().is_some_and(|code| code == "53300"));
        Failure { is_full, ..self.judge(error) }
    }

    /// Judges an error of connecting or of a ping: whether it is permanent, transient, or a refusal by the server.
    pub(super) fn judge(&self, error: Driver) -> Failure {
        let code = match &error {
            Driver::Database(said) => said.code().unwrap_or_default().into_owned(),
            _ => String::new(),
        };
        let is_ours = matches!(&error, Driver::Configuration(_) | Driver::Tls(_));
        // A server that cannot take one more client may close the connection instead of answering whether it speaks
        // TLS.
        let is_foreign = matches!(&error, Driver::Protocol(why) if !why.contains("SSLRequest"));
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
        let (password, file) = (self.password.as_ref(), self.password_file.as_ref());
        let source = redacted_for(error, words, password, file, &names);
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
