//! The errors of Chroma: what a caller of a verb gets, and what each proves.
//!
//! Every answer with a status proves that the server lives, so it cuts nothing. While the pool connects, a login that the
//! server does not take, and a tenant or database that it does not have, cannot be mended by trying again.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use serde::Deserialize;

use crate::base::error::{BoxError, Error, Failure, OneLine, Source, Worded};
use crate::lifecycle::link::Link;
use crate::lifecycle::requests::HttpStatusError;

/// An error that a Chroma server answered. It is the source of the [`Error::Operation`](crate::Error::Operation) that a
/// verb answers.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ChromaError {
    /// The fault.
    pub fault: ChromaFault,
    /// The status of the answer.
    pub status: StatusCode,
    /// The server's words. Empty for a login that it does not take, because it may quote parts of the token.
    pub message: String,
    /// How long the server asks to wait before the next request, if it does.
    pub retry_after: Option<Duration>,
}

/// The fault of a request, by the status of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChromaFault {
    /// There is no such collection, tenant or database. A [`ChromaCollection`](crate::ChromaCollection) answers this too
    /// once its collection was deleted, even if there is another one of the same name by then.
    NotFound,
    /// There is already a collection of this name.
    Exists,
    /// The request asks for what cannot be: a vector of other dimensions, a name that none can have, a filter that the
    /// server does not know.
    Invalid,
    /// The server, or a proxy before it, does not take the token, or the token's owner may not do this.
    Denied,
    /// The server takes no more at the moment. The request may be sent again later.
    Busy,
    /// The server failed. Whether it has done some of what was asked is not known.
    Broken,
}

impl ChromaFault {
    fn of(status: StatusCode) -> Self {
        match status {
            StatusCode::NOT_FOUND => ChromaFault::NotFound,
            StatusCode::CONFLICT => ChromaFault::Exists,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ChromaFault::Denied,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => ChromaFault::Busy,
            _ if status.is_client_error() => ChromaFault::Invalid,
            _ => ChromaFault::Broken,
        }
    }
}

/// An error in the form in which it comes.
#[derive(Deserialize)]
struct ErrorAnswer {
    message: String,
}

impl From<&HttpStatusError> for ChromaError {
    fn from(error: &HttpStatusError) -> Self {
        let message = match serde_json::from_str(&error.body) {
            _ if error.status == StatusCode::UNAUTHORIZED => String::new(),
            Ok(ErrorAnswer { message }) => message,
            // A proxy before the server answers in words of its own.
            Err(_) => error.body.clone(),
        };
        ChromaError {
            fault: ChromaFault::of(error.status),
            status: error.status,
            message,
            retry_after: error.retry_after,
        }
    }
}

impl fmt::Display for ChromaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server answered {}", self.status)?;
        if !self.message.is_empty() {
            write!(f, ": {}", OneLine(&self.message))?;
        }
        match self.status {
            StatusCode::UNAUTHORIZED => write!(f, "; {SET_TOKEN}"),
            _ => Ok(()),
        }
    }
}

impl StdError for ChromaError {}

const SET_TOKEN: &str = "set `token`, or CHROMA_TOKEN, to a token that it takes";
const SET_DATABASE: &str = "it has no such tenant or database: set `tenant` and `database`, or create them; see also that \
     `url` is Chroma's";

/// The error of a verb, with the server's answer as its source if there was one.
pub(super) fn answered(error: Error) -> Error {
    let Error::Operation { resource, action, source } = &error else { return error };
    let Some(status) = source.downcast_ref::<HttpStatusError>() else { return error };
    let source = Arc::new(ChromaError::from(status));
    Error::Operation { resource: Arc::clone(resource), action: action.clone(), source }
}

/// The error of a verb that was not sent, or was answered by something else than the server's interface has.
pub(super) fn refused(link: &Link, action: &str, problem: impl Into<BoxError>) -> Error {
    Error::Operation {
        resource: Arc::clone(link.name()),
        action: action.to_owned(),
        source: Source::from(problem.into()),
    }
}

/// The failure of the question for the tenant's database, by which the pool connects. A token of a file may just be
/// replaced, so then a login that is refused may pass.
pub(super) fn of_database(failure: Failure, is_by_file: bool) -> Failure {
    let status = failure.source().downcast_ref::<HttpStatusError>().map(|error| error.status);
    let (remedy, is_permanent) = match status {
        Some(StatusCode::UNAUTHORIZED) => (SET_TOKEN, !is_by_file),
        Some(StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST) => (SET_DATABASE, true),
        _ => return failure,
    };
    let text = format!("{failure}; {remedy}");
    Failure::refused(Worded::new(text, failure.into_source())).with_permanent(is_permanent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_words_are_told_but_for_a_login() {
        let error = |status, body: &str| {
            ChromaError::from(&HttpStatusError { status, retry_after: None, body: body.to_owned() })
        };
        let gone = error(StatusCode::NOT_FOUND, r#"{"error":"NotFoundError","message":"no such\nthing"}"#);
        assert_eq!(gone.fault, ChromaFault::NotFound);
        assert_eq!(gone.to_string(), "the server answered 404 Not Found: no such thing");
        let proxy = error(StatusCode::BAD_GATEWAY, "<html>");
        assert_eq!((proxy.fault, &*proxy.message), (ChromaFault::Broken, "<html>"));
        let denied = error(StatusCode::UNAUTHORIZED, r#"{"message":"bad token s3cr…"}"#).to_string();
        assert!(!denied.contains("s3cr") && denied.contains("CHROMA_TOKEN"), "{denied}");
    }
}
