//! Errors. The driver's errors are made safe to show, and the crate's own errors are wrapped for signatures of the
//! driver.

use std::io;

use redis::{ErrorKind, RedisError, RedisResult, ServerError, ServerErrorKind, Value};

use crate::base::error::{BoxError, Error, Worded, redacted};
use crate::base::secret::{Secret, SecretFile};
use crate::kinds::redis::config::RedisConfig;
use crate::net::kill_switch::KillSwitch;

impl RedisConfig {
    /// Makes a driver's error safe to show. An error that the server sent keeps the server's words. The words for a
    /// refused login and for a stream error are the driver's own.
    pub(super) fn told(&self, error: RedisError) -> BoxError {
        self.told_without(error, &[])
    }

    /// Makes a driver's error safe to show, as [`told`](RedisConfig::told) does. It must not tell these words either.
    pub(super) fn told_without(&self, error: RedisError, words: &[Secret]) -> BoxError {
        let by_file = self.password_file.as_ref().map(SecretFile::recent).unwrap_or_default();
        let secrets: Vec<_> = self.password.iter().chain(&by_file).chain(words).map(Secret::expose).collect();
        let told = !matches!(error.kind(), ErrorKind::AuthenticationFailed | ErrorKind::Io);
        let user = [self.user.as_deref().unwrap_or_default()];
        let words = error.code().map(|code| format!("{code} {}", error.detail().unwrap_or_default()));
        match words {
            Some(words) => redacted(Worded::new(words, error), told, &secrets, &user),
            None => redacted(error, told, &secrets, &user),
        }
    }
}

/// Wraps a crate error as a driver error, for signatures that require one.
pub(super) fn refused(error: Error) -> RedisError {
    let kind = match &error {
        Error::Timeout(_) => io::ErrorKind::TimedOut,
        Error::Lost { .. } | Error::OutcomeUnknown { .. } => io::ErrorKind::ConnectionAborted,
        _ => io::ErrorKind::NotConnected,
    };
    io::Error::new(kind, error).into()
}

/// The reason why an idle connection has ended.
pub(super) fn ended(switch: &KillSwitch) -> BoxError {
    switch.cause().map_or_else(|| "the connection has ended".into(), |cause| cause.clone().into())
}

/// One reply or several. Each may be an error of the server.
pub(crate) trait Reply {
    /// The replies as a slice.
    fn values(&self) -> &[Value];
}

impl Reply for Value {
    fn values(&self) -> &[Value] {
        std::slice::from_ref(self)
    }
}

impl Reply for Vec<Value> {
    fn values(&self) -> &[Value] {
        self
    }
}

/// Whether a replica refused to change something.
pub(super) fn is_readonly<T: Reply>(answer: &RedisResult<T>) -> bool {
    let is_so = |error: &ServerError| error.kind() == Some(ServerErrorKind::ReadOnly);
    match answer {
        Ok(answer) => answer.values().iter().any(|value| matches!(value, Value::ServerError(error) if is_so(error))),
        Err(error) => {
            let in_transaction = error.clone().into_server_errors();
            error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly)
                || in_transaction.is_some_and(|errors| errors.iter().any(|(_, error)| is_so(error)))
        }
    }
}
