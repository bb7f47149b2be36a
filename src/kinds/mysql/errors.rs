//! The driver's errors, judged for connecting and for a ping.

use sqlx::Error as Driver;
use sqlx::mysql::MySqlDatabaseError;

use crate::base::error::Failure;
use crate::kinds::mysql::config::MySqlConfig;
use crate::kinds::sql::redacted_for;
use crate::net::tls;

/// The server, the user or the host has no room for a further connection.
const FULL: [u16; 3] = [1040, 1203, 1226];
/// The login is wrong, the account is locked, a right is missing, or there is no such database.
const LOGIN: [u16; 6] = [1044, 1045, 1049, 1698, 3118, 4151];

impl MySqlConfig {
    /// The failure to connect that this error is, with the remedy where TLS fails.
    pub(super) fn judge_connect(&self, error: Driver) -> Failure {
        if let Driver::Io(io) = &error
            && self.tls.is_some()
            && let Some(failure) = tls::failure(io)
        {
            return failure;
        }
        let is_full = number(&error).is_some_and(|number| FULL.contains(&number));
        Failure { is_full, ..self.judge(error) }
    }

    /// Judges an error of connecting or of a ping: whether it is permanent, transient, or a refusal by the server.
    pub(super) fn judge(&self, error: Driver) -> Failure {
        let number = number(&error);
        let is_ours = matches!(&error, Driver::Configuration(_) | Driver::Tls(_));
        let is_foreign = matches!(&error, Driver::Protocol(_));
        let words = match &error {
            // Without TLS the driver would have to encrypt the password by itself, with a crate that is left out.
            Driver::Configuration(why) if why.to_string().contains("RSA") => {
                Some("the user's password must not be sent without TLS: set mysql.tls or ssl-mode=REQUIRED".to_owned())
            }
            Driver::Database(said) if said.message().contains("insecure transport") && self.tls.is_none() => {
                Some(format!("{error}; where the server wants TLS, set mysql.tls or ssl-mode=REQUIRED"))
            }
            Driver::Protocol(_) => Some(format!(
                "a server answers there that is no MySQL that the driver knows ({error}): correct host and port"
            )),
            _ => None,
        };
        let names = [&*self.user, &*self.database];
        let (password, file) = (self.password.as_ref(), self.password_file.as_ref());
        let source = redacted_for(error, words, password, file, &names);
        match number {
            // A wrong password may pass if it is of a file, because the file may just be replaced.
            Some(1045) if self.password_file.is_some() => Failure::transient(source),
            Some(number) if LOGIN.contains(&number) => Failure::permanent(source),
            None if is_ours || is_foreign => Failure::permanent(source),
            None => Failure::transient(source),
            // The server is shutting down, has no room, or refuses for another reason. It lives.
            Some(_) => Failure::refused(source),
        }
    }
}

/// The number of a server's error.
pub(super) fn number(error: &Driver) -> Option<u16> {
    let said = error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>()?;
    Some(said.number())
}
