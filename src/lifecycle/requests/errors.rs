//! The errors of requests: the proof that each gives about the server, and what a caller of a verb gets.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};

use crate::base::error::{BoxError, Error, Failure, OneLine, Source, TimeoutError, Worded, causes, redacted};
use crate::base::secret::Secret;
use crate::lifecycle::link::Link;
use crate::lifecycle::requests::redirect::{SendError, SendFault};
use crate::lifecycle::requests::settings::RequestSettings;
use crate::net::tls;

/// An answer with a status that is an error. It is the source of the [`Error::Operation`](crate::Error::Operation) that
/// a verb answers.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HttpStatusError {
    /// The status.
    pub status: StatusCode,
    /// How long the server asks to wait before the next request, by `Retry-After`, if it does.
    pub retry_after: Option<Duration>,
    /// The beginning of the answer's body, at most 4 KiB. It is withheld if it has a secret in it.
    pub body: String,
    /// The same as it came. A kind reads the server's verdict from it, and shows none of it.
    pub(crate) raw: Secret,
}

impl HttpStatusError {
    /// The error of this status, with the body as it came.
    pub(crate) fn new(status: StatusCode, mut raw: String, secrets: &[&str]) -> Self {
        let mut body = redacted(&*raw, true, secrets, &[]).to_string();
        body.truncate(body.floor_char_boundary(LONGEST_BODY));
        raw.truncate(raw.floor_char_boundary(2 * LONGEST_BODY));
        HttpStatusError { status, retry_after: None, body, raw: raw.into() }
    }

    /// The same error without the server's words.
    pub(crate) fn wordless(&self) -> Self {
        HttpStatusError { body: String::new(), raw: "".into(), ..self.clone() }
    }
}

/// The most bytes of a body that its error keeps for its text.
const LONGEST_BODY: usize = 4096;

/// The most characters of a body that its error's text has.
const LONGEST_SHOWN: usize = 500;

impl fmt::Display for HttpStatusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server answered {}", self.status)?;
        if self.status.is_redirection() {
            return f.write_str("; see that the URL leads to the server itself");
        }
        let mut shown = self.body.char_indices();
        match shown.nth(LONGEST_SHOWN) {
            _ if self.body.is_empty() => Ok(()),
            Some((end, _)) => write!(f, ": {}…", OneLine(&self.body[..end])),
            None => write!(f, ": {}", OneLine(&self.body)),
        }
    }
}

impl StdError for HttpStatusError {}

/// A call, as its errors tell of it.
#[derive(Clone)]
pub(super) struct HttpCall {
    /// The word for it in errors.
    pub(super) action: Cow<'static, str>,
    /// Whether sending it twice does no harm.
    pub(super) is_idempotent: bool,
    /// When it was sent. `None` before that.
    pub(super) began: Option<Instant>,
}

impl HttpCall {
    pub(super) fn by(method: &Method) -> Self {
        let known =
            ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"].into_iter().find(|known| *known == method.as_str());
        let action = known.map_or_else(|| Cow::Owned(method.to_string()), Cow::Borrowed);
        HttpCall { action, is_idempotent: method.is_idempotent(), began: None }
    }

    /// The error of a call that was not sent, or that the server answered.
    pub(super) fn refused(&self, link: &Link, source: impl Into<BoxError>) -> Error {
        Error::Operation {
            resource: Arc::clone(link.name()),
            action: self.action.to_string(),
            source: Source::from(source.into()),
        }
    }

    /// The error of a call that got no answer for this reason, although it was sent.
    pub(super) fn cut(&self, link: &Link, why: Error) -> Error {
        if self.is_idempotent { why } else { link.outcome_unknown(&*self.action, Arc::new(why)) }
    }

    /// The error of a call that got no answer. After a redirect no error proves that nothing was sent.
    pub(super) fn not_answered(&self, link: &Link, settings: &RequestSettings, error: SendError) -> Error {
        let SendError { cause, was_sent } = error;
        let may_be_done = was_sent && !self.is_idempotent;
        match cause {
            SendFault::Refused { problem, was_done: true } if !self.is_idempotent => {
                link.outcome_unknown(&*self.action, Source::from(BoxError::from(problem)))
            }
            SendFault::Refused { problem, .. } => self.refused(link, problem),
            SendFault::Driver(error) if may_be_done && (error.is_connect() || error.is_builder()) => {
                link.outcome_unknown(&*self.action, Arc::new(error.without_url()))
            }
            SendFault::Driver(error) => self.failed(link, settings, error),
        }
    }

    /// The error of a call that the driver failed at.
    pub(super) fn failed(&self, link: &Link, settings: &RequestSettings, error: reqwest::Error) -> Error {
        if let Some(ours) = Error::behind(&error) {
            return link.told(ours.clone());
        }
        // The URL may have a secret in it.
        let error = error.without_url();
        let (resource, endpoint) = (Arc::clone(link.name()), Arc::clone(link.endpoint()));
        let is_timeout = error.is_timeout();
        if error.is_builder() || error.is_redirect() {
            return self.refused(link, error);
        }
        if error.is_connect() {
            let source = match tls_failure(&error) {
                Some(failure) if failure.is_permanent() => return self.refused(link, failure.into_source()),
                Some(failure) => failure.into_source(),
                None if is_timeout => {
                    let text = format!("no connection within {:?}", settings.connect_timeout);
                    io::Error::new(io::ErrorKind::TimedOut, Worded::new(text, error)).into()
                }
                None => error.into(),
            };
            return Error::Lost { resource, endpoint, source: Source::from(source) };
        }
        if !is_timeout {
            return match self.is_idempotent {
                true => Error::Lost { resource, endpoint, source: Arc::new(error) },
                false => link.outcome_unknown(&*self.action, Arc::new(error)),
            };
        }
        self.late(link)
    }

    /// The error of a call for which the server was silent for too long.
    pub(super) fn late(&self, link: &Link) -> Error {
        let waited = self.began.map_or(Duration::ZERO, |began| began.elapsed());
        let timeout = TimeoutError::new(link.name(), link.endpoint(), "the server's answer to a request", waited);
        self.cut(link, link.told(Error::Timeout(Arc::new(timeout))))
    }
}

/// The failure of TLS in this error, with its remedy.
pub(super) fn tls_failure(error: &reqwest::Error) -> Option<Failure> {
    let found = causes(error).filter_map(|cause| cause.downcast_ref::<io::Error>());
    found.filter(|cause| cause.get_ref().is_some()).find_map(tls::failure)
}
