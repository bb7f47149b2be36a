//! The errors of Chroma: what a caller of a verb gets, and what each proves.
//!
//! Every answer with a status proves that the server lives, so it cuts nothing. While the pool connects, a login that the
//! server does not take, and a tenant or database that it does not have, cannot be mended by trying again. A proxy before
//! the server knows nothing of collections, so the server's own form of an error is needed for a verdict about them.

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

/// The fault of a request, by the status of its answer and by whose answer it is.
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
    /// The answer is none of Chroma's. A proxy before the server, or another server, says by a status such as 404 that it
    /// knows no such path, or redirects elsewhere, which tells nothing about collections.
    Foreign,
}

impl ChromaFault {
    fn of(status: StatusCode, is_chromas: bool) -> Self {
        match status {
            StatusCode::NOT_FOUND | StatusCode::CONFLICT if !is_chromas => ChromaFault::Foreign,
            _ if status.is_redirection() => ChromaFault::Foreign,
            StatusCode::NOT_FOUND => ChromaFault::NotFound,
            StatusCode::CONFLICT => ChromaFault::Exists,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ChromaFault::Denied,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => ChromaFault::Busy,
            _ if status.is_client_error() => ChromaFault::Invalid,
            _ => ChromaFault::Broken,
        }
    }
}

/// An error in the form in which the server writes it.
#[derive(Deserialize)]
struct ErrorAnswer {
    /// The name of its sort, such as `NotFoundError`.
    #[serde(rename = "error")]
    _name: String,
    message: String,
}

impl ErrorAnswer {
    /// `None` for an answer that is none of the server's.
    fn of(body: &str) -> Option<Self> {
        serde_json::from_str(body).ok()
    }
}

impl From<&HttpStatusError> for ChromaError {
    fn from(error: &HttpStatusError) -> Self {
        let is_chromas = ErrorAnswer::of(error.raw.expose()).is_some();
        let fault = ChromaFault::of(error.status, is_chromas);
        let message = match ErrorAnswer::of(&error.body) {
            _ if error.status == StatusCode::UNAUTHORIZED => String::new(),
            Some(ErrorAnswer { message, .. }) => message,
            // These are the words of a proxy before the server, or a note in the place of words with a secret in them.
            None => error.body.clone(),
        };
        ChromaError { fault, status: error.status, message, retry_after: error.retry_after }
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
            _ if self.fault == ChromaFault::Foreign => write!(f, "; {SET_URL}"),
            _ => Ok(()),
        }
    }
}

impl StdError for ChromaError {}

const SET_TOKEN: &str = "set `token`, or CHROMA_TOKEN, to a token that it takes";
const SET_DATABASE: &str = "it has no such tenant or database: set `tenant` and `database`, or create them";
pub(super) const SET_URL: &str =
    "the answer is none of Chroma's: see that `url` is its own, and that what stands before it passes it on";

/// The error of a verb, with the server's answer as its source if there was one.
pub(super) fn answered(error: Error) -> Error {
    let Error::Operation { resource, action, source } = &error else { return error };
    let Some(status) = source.downcast_ref::<HttpStatusError>() else { return error };
    let source = Arc::new(ChromaError::from(status));
    Error::Operation { resource: Arc::clone(resource), action: action.clone(), source }
}

/// Whether this answer proves that nothing was done. A proxy may answer another one after the server has got the request.
pub(super) fn is_refused(error: &Error) -> bool {
    let Error::Operation { source, .. } = error else { return false };
    source.downcast_ref::<ChromaError>().is_some_and(|told| told.status.is_client_error())
}

/// The error of a verb that was not sent, or was answered by something else than the server's interface has.
pub(super) fn refused(link: &Link, action: &str, problem: impl Into<BoxError>) -> Error {
    Error::Operation {
        resource: Arc::clone(link.name()),
        action: action.to_owned(),
        source: Source::from(problem.into()),
    }
}

/// The failure of the question for the tenant's database, by which the pool connects and comes back. While a server
/// restarts, a proxy before it may answer in its place, which may pass.
pub(super) fn of_database(failure: Failure) -> Failure {
    let Some(error) = failure.source().downcast_ref::<HttpStatusError>() else { return failure };
    let (remedy, is_permanent) = match error.status {
        StatusCode::UNAUTHORIZED => (SET_TOKEN, true),
        StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => match ErrorAnswer::of(error.raw.expose()) {
            Some(_) => (SET_DATABASE, true),
            None => (SET_URL, false),
        },
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
        let error = |status, body: &str| ChromaError::from(&HttpStatusError::new(status, body.to_owned(), &["s3cret"]));
        let gone = error(StatusCode::NOT_FOUND, r#"{"error":"NotFoundError","message":"no such\nthing"}"#);
        assert_eq!(gone.fault, ChromaFault::NotFound);
        assert_eq!(gone.to_string(), "the server answered 404 Not Found: no such thing");
        for body in ["<html>", r#"{"message":"no route"}"#, ""] {
            let proxy = error(StatusCode::NOT_FOUND, body);
            assert!(proxy.fault == ChromaFault::Foreign && proxy.to_string().contains("none of Chroma's"), "{proxy}");
        }
        // The verdict stands although the words are withheld.
        let quoted = error(StatusCode::NOT_FOUND, r#"{"error":"NotFoundError","message":"none is s3cret"}"#);
        assert!(quoted.fault == ChromaFault::NotFound && !quoted.to_string().contains("s3cret"), "{quoted}");
        let elsewhere = error(StatusCode::FOUND, "");
        assert!(elsewhere.fault == ChromaFault::Foreign && elsewhere.to_string().contains("`url`"), "{elsewhere}");
        let proxy = error(StatusCode::BAD_GATEWAY, "<html>");
        assert_eq!((proxy.fault, &*proxy.message), (ChromaFault::Broken, "<html>"));
        let denied = error(StatusCode::UNAUTHORIZED, r#"{"message":"bad token s3cr…"}"#).to_string();
        assert!(!denied.contains("s3cr") && denied.contains("CHROMA_TOKEN"), "{denied}");
    }

    #[test]
    fn only_chromas_own_word_for_a_missing_database_is_final() {
        let of = |status, body: &str| of_database(Failure::refused(HttpStatusError::new(status, body.to_owned(), &[])));
        let own = of(StatusCode::NOT_FOUND, r#"{"error":"NotFoundError","message":"no tenant"}"#);
        assert!(own.is_permanent() && own.to_string().contains("set `tenant`"), "{own}");
        let proxy = of(StatusCode::NOT_FOUND, "<html>");
        assert!(!proxy.is_permanent() && proxy.to_string().contains("none of Chroma's"), "{proxy}");
        assert!(of(StatusCode::UNAUTHORIZED, "").is_permanent());
    }
}
