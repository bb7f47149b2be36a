//! The reasons why an answer of the driver did not come, and their proof about the broker.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::types::ShortString;

use crate::base::error::{BoxError, Error, Failure, Source};
use crate::kinds::rabbitmq::generation::Generation;
use crate::lifecycle::link::Link;

/// The reason why the driver's answer did not come.
pub(super) enum CallError {
    Driver(lapin::Error),
    Cut,
    Ours(Error),
}

impl CallError {
    pub(super) fn into_error(self, generation: &Generation, action: &str) -> Error {
        match self {
            CallError::Cut => generation.was_cut(),
            CallError::Ours(error) => error,
            CallError::Driver(error) => {
                let gone = !generation.is_alive() || is_loss(&error);
                if gone && (generation.closed.load(Ordering::SeqCst) || Error::behind(&error).is_some()) {
                    return generation.was_cut();
                }
                let source = generation.config.redacted(error);
                if gone { lost(&generation.link, source) } else { operation(&generation.link, action, source) }
            }
        }
    }
}

/// Whether this error is about the connection. The driver reports it before it says that it is not connected.
fn is_loss(error: &lapin::Error) -> bool {
    let told = matches!(error.kind(), ErrorKind::InvalidConnectionState(_) | ErrorKind::MissingHeartbeatError);
    told || error.is_io_error() || error.is_amqp_hard_error()
}

/// The failure of a ping, by its error's proof about the broker.
pub(super) fn answered(error: Error) -> Failure {
    let said = match &error {
        Error::Operation { source, .. } | Error::Lost { source, .. } => source.downcast_ref::<lapin::Error>(),
        _ => None,
    };
    match said.map(lapin::Error::kind) {
        Some(ErrorKind::ChannelsLimitReached) => Failure::unasked(error),
        Some(ErrorKind::ProtocolError(said)) => match said.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) | AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => {
                Failure::limited(error)
            }
            _ => Failure::refused(error),
        },
        _ => Failure::transient(error),
    }
}

pub(super) fn lost(link: &Link, source: impl Into<BoxError>) -> Error {
    Error::Lost {
        resource: Arc::clone(link.name()),
        endpoint: Arc::clone(link.endpoint()),
        source: Source::from(source.into()),
    }
}

pub(super) fn operation(link: &Link, action: &str, source: impl Into<BoxError>) -> Error {
    Error::Operation {
        resource: Arc::clone(link.name()),
        action: action.to_owned(),
        source: Source::from(source.into()),
    }
}

/// A text as a short string of AMQP. The driver itself would panic where it is too long.
pub(super) fn short(link: &Link, action: &str, text: &str) -> Result<ShortString, Error> {
    ShortString::try_new(text).map_err(|error| operation(link, action, error))
}

/// How often an exclusive queue or consumer is tried again. The broker may not have noticed yet that the connection
/// which had it is gone.
pub(super) const LOCKED_TRIES: usize = 15;
/// The pause before each of these tries. All of them together give the broker 1.5 s to notice.
pub(super) const LOCKED_PAUSE: Duration = Duration::from_millis(100);

/// Whether another connection has the queue or the consumer exclusively.
pub(super) fn is_locked(error: &Error) -> bool {
    matches!(soft(error), Some(AMQPSoftError::RESOURCELOCKED | AMQPSoftError::ACCESSREFUSED))
}

/// Whether another connection has the queue for itself.
pub(super) fn is_elsewhere(error: &Error) -> bool {
    matches!(soft(error), Some(AMQPSoftError::RESOURCELOCKED))
}

/// Whether the broker has no queue or exchange of that name.
pub(super) fn is_missing(error: &Error) -> bool {
    matches!(soft(error), Some(AMQPSoftError::NOTFOUND))
}

/// Whether a request fails by its own content before it is sent, and so always will.
pub(super) fn is_unsendable(error: &Error) -> bool {
    matches!(error, Error::Operation { source, .. } if source.downcast_ref::<lapin::Error>().is_none())
}

/// The error of a declaration, with the remedy where the queue or the exchange exists with other properties.
pub(super) fn with_remedy(error: Error) -> Error {
    let is_other = matches!(soft(&error), Some(AMQPSoftError::PRECONDITIONFAILED))
        && error.to_string().contains("inequivalent arg");
    match error {
        Error::Operation { resource, action, source } if is_other => {
            let action = action + " (it exists with other properties: declare it with those, or delete it first)";
            Error::Operation { resource, action, source }
        }
        error => error,
    }
}

/// The broker's error that ended a channel, if this is one.
fn soft(error: &Error) -> Option<&AMQPSoftError> {
    let Error::Operation { source, .. } = error else { return None };
    match source.downcast_ref::<lapin::Error>()?.kind() {
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Soft(soft) => Some(soft),
            AMQPErrorKind::Hard(_) => None,
        },
        _ => None,
    }
}
