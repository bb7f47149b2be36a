//! The sort of an error, as one of a few fixed words.

use std::error::Error as StdError;
use std::io;

use tokio::time::error::Elapsed;

use crate::base::error::{Error, NoAnswer, ReconnectAsked, causes, is_own_trouble};

impl Error {
    /// The sort of the error, as one of a few fixed words. It suits OpenTelemetry's attribute `error.type`, a label of a
    /// metric, and a filter.
    ///
    /// A connect, a loss and an operation that failed are told by their cause, if that is one of these: `no_answer` to
    /// the prober, `connection_refused`, `connection_reset`, `connection_closed`, `unreachable`, `timeout`,
    /// `reconnect_asked`, and `own_limits` if this process lacks descriptors, ports or memory. Otherwise the word is
    /// `rejected` for a connect that need not be tried again, such as one with a wrong password, and else the one of the
    /// variant, as in `lost`.
    pub fn error_type(&self) -> &'static str {
        match self {
            Error::Connect(error) => {
                cause_type(&*error.source).unwrap_or(if error.permanent { "rejected" } else { self.code() })
            }
            Error::Lost { source, .. } | Error::Operation { source, .. } => {
                cause_type(&**source).unwrap_or(self.code())
            }
            _ => self.code(),
        }
    }
}

/// The word for the first cause that has one.
fn cause_type(error: &(dyn StdError + 'static)) -> Option<&'static str> {
    if is_own_trouble(error) {
        return Some("own_limits");
    }
    causes(error).find_map(|cause| {
        if cause.is::<ReconnectAsked>() {
            return Some("reconnect_asked");
        }
        if cause.is::<NoAnswer>() {
            return Some("no_answer");
        }
        if cause.is::<Elapsed>() {
            return Some("timeout");
        }
        match cause.downcast_ref::<io::Error>()?.kind() {
            io::ErrorKind::ConnectionRefused => Some("connection_refused"),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Some("connection_reset"),
            io::ErrorKind::ConnectionAborted | io::ErrorKind::UnexpectedEof => Some("connection_closed"),
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Some("unreachable"),
            io::ErrorKind::TimedOut => Some("timeout"),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::base::error::{BoxError, ConnectError, Source, Worded};

    fn lost(source: impl Into<BoxError>) -> &'static str {
        let (resource, endpoint) = (Arc::from("redis"), Arc::from(""));
        Error::Lost { resource, endpoint, source: Source::from(source.into()) }.error_type()
    }

    #[test]
    fn a_loss_is_told_by_its_cause() {
        let reset = || io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(lost(reset()), "connection_reset");
        assert_eq!(lost(Worded::new("the driver's words".to_owned(), reset())), "connection_reset");
        assert_eq!(lost(io::Error::other(NoAnswer(std::time::Duration::ZERO))), "no_answer");
        assert_eq!(lost(io::Error::from_raw_os_error(libc::EMFILE)), "own_limits");
        assert_eq!(lost(ReconnectAsked), "reconnect_asked");
        assert_eq!(lost("anything else"), "lost");
    }

    #[test]
    fn a_connect_that_is_not_tried_again_was_rejected() {
        let error = |permanent, source: BoxError| {
            let (resource, endpoint) = (Arc::from("redis"), Arc::from(""));
            let (elapsed, source) = (std::time::Duration::ZERO, Source::from(source));
            let connect = ConnectError { resource, endpoint, attempts: 1, elapsed, permanent, remedy: None, source };
            Error::Connect(Arc::new(connect)).error_type()
        };
        assert_eq!(error(true, "a wrong password".into()), "rejected");
        assert_eq!(error(false, "busy".into()), "connect");
        assert_eq!(error(false, io::Error::from(io::ErrorKind::ConnectionRefused).into()), "connection_refused");
    }
}
