//! The errors of an Elasticsearch: what each answer proves, and which requests are sent once more.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use serde::Deserialize;

use crate::base::error::{BoxError, Error, OneLine, Source, Worded, causes};
use crate::base::repeat::Repeat;
use crate::kinds::elastic::session::Effect;
use crate::lifecycle::link::Link;
use crate::lifecycle::requests::HttpStatusError;

/// An error that the server answered. It is the source of the [`Error::Operation`](crate::Error::Operation) of a verb.
///
/// It proves that the server lives. A `status` below 500 proves as well that nothing was changed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ElasticError {
    /// The status.
    pub status: StatusCode,
    /// The server's word for the error, such as `index_not_found_exception`. Empty if it tells none.
    pub kind: String,
    /// The server's reason, or the beginning of an answer that is of another form. It is withheld if it has a secret in
    /// it.
    pub reason: String,
    /// How long the server asks to wait before the next request, if it does.
    pub retry_after: Option<Duration>,
    /// Set if it answers `get` or `delete` that there is no such document.
    pub(super) is_missing_document: bool,
}

impl ElasticError {
    /// The server's answer behind this error. `None` if the error is another one.
    pub fn of(error: &Error) -> Option<&ElasticError> {
        let (Error::Operation { source, .. } | Error::OutcomeUnknown { source, .. }) = error else { return None };
        causes(&**source).find_map(|cause| cause.downcast_ref())
    }
}

impl fmt::Display for ElasticError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server answered {}", self.status)?;
        if self.status.is_redirection() {
            return f.write_str("; see that `url` leads to the server itself");
        }
        for told in [&self.kind, &self.reason].into_iter().filter(|told| !told.is_empty()) {
            write!(f, ": {}", OneLine(told))?;
        }
        Ok(())
    }
}

impl StdError for ElasticError {}

/// The form of an error in an answer, as a whole or of one row.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct ToldError {
    #[serde(rename = "type")]
    pub(super) kind: String,
    reason: Option<String>,
    /// The errors of the shards, of which the first says more than `all shards failed`.
    root_cause: Vec<ToldCause>,
    caused_by: Option<ToldCause>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ToldCause {
    reason: Option<String>,
}

impl ToldError {
    /// The reason, and that of its cause unless it says the same.
    pub(super) fn reason(self) -> String {
        let reason = self.reason.unwrap_or_default();
        let mut causes = self.root_cause.into_iter().chain(self.caused_by).filter_map(|cause| cause.reason);
        match causes.find(|cause| !reason.contains(&**cause)) {
            Some(cause) => format!("{reason}: {cause}"),
            None => reason,
        }
    }
}

#[derive(Deserialize)]
struct Envelope {
    error: ToldError,
}

/// The form of the answer about a document that is not there. `get` has `found`, and `delete` has `result`.
#[derive(Deserialize)]
struct MissingDocument {
    #[serde(rename = "_index")]
    index: String,
    #[serde(default)]
    found: Option<bool>,
    #[serde(default)]
    result: Option<String>,
}

impl MissingDocument {
    /// `true` if this answer is one. The status alone may be that of a proxy.
    fn is_told(answer: &HttpStatusError) -> bool {
        let told = serde_json::from_str(answer.raw.expose());
        answer.status == StatusCode::NOT_FOUND
            && told.is_ok_and(|MissingDocument { index, found, result }| {
                !index.is_empty() && (found == Some(false) || result.as_deref() == Some("not_found"))
            })
    }
}

impl From<&HttpStatusError> for ElasticError {
    fn from(status: &HttpStatusError) -> Self {
        let told = |body: &str| serde_json::from_str(body).map(|Envelope { error }| error);
        let mut shown: ToldError = told(&status.body)
            .unwrap_or_else(|_another_form| ToldError { reason: Some(status.body.clone()), ..ToldError::default() });
        // Where the words are withheld, the server's name for the error is none of them.
        let raw = told(status.raw.expose()).ok().map(|raw| raw.kind).filter(|kind| kind.ends_with("_exception"));
        let kind = raw.unwrap_or_else(|| std::mem::take(&mut shown.kind));
        ElasticError {
            status: status.status,
            kind,
            reason: shown.reason(),
            retry_after: status.retry_after,
            is_missing_document: MissingDocument::is_told(status),
        }
    }
}

/// The error of a verb, with the server's own words for a status, and with the remedy for a wrong login. A server may
/// quote parts of a login, so its words are left out then.
pub(super) fn advised(error: Error) -> Error {
    let Error::Operation { resource, action, source } = &error else { return error };
    let Some(status) = source.downcast_ref::<HttpStatusError>() else { return error };
    let told = ElasticError::from(status);
    let source: Source = match told.status {
        StatusCode::UNAUTHORIZED => {
            let text = "the server answered 401 Unauthorized; set `user` and `password`, or `api_key`, to those of this server";
            Arc::new(Worded::new(text.to_owned(), ElasticError { kind: String::new(), reason: String::new(), ..told }))
        }
        _ => Arc::new(told),
    };
    Error::Operation { resource: Arc::clone(resource), action: action.clone(), source }
}

/// The error of a call that was not sent, or whose answer cannot be used.
pub(super) fn refused(link: &Link, action: &str, source: impl Into<BoxError>) -> Error {
    Error::Operation {
        resource: Arc::clone(link.name()),
        action: action.to_owned(),
        source: Source::from(source.into()),
    }
}

/// `true` if a request that failed so is sent once more.
pub(super) fn is_repeated(repeat: Repeat, effect: Effect, error: &Error) -> bool {
    match (repeat, effect) {
        (Repeat::Never, _) => false,
        (Repeat::Idempotent, Effect::Harmless) => matches!(error, Error::Lost { .. }),
        (Repeat::Unsent | Repeat::Idempotent, _) => never_left(error),
    }
}

/// `true` if this error proves that its request was not sent, because no connection could be made for it.
///
/// A loss that the prober finds cuts requests that were sent, whatever the prober's own connection met. Such a loss is
/// `Worded` by `ClusterProbe`, and the error of a request itself is not.
pub(super) fn never_left(error: &Error) -> bool {
    let Error::Lost { source, .. } = error else { return false };
    !source.is::<Worded>() && causes(&**source).filter_map(|cause| cause.downcast_ref()).any(reqwest::Error::is_connect)
}
