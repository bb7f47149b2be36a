//! [`Denial`], the answer to a request that is not served, and [`json`], the one to a request that is.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::Error;

/// Why a request is not served, and the remedy.
#[derive(Debug, Serialize)]
pub(super) struct Denial {
    #[serde(skip)]
    pub(super) status: StatusCode,
    error: String,
    remedy: &'static str,
}

impl Denial {
    pub(super) fn new(status: StatusCode, error: impl Into<String>, remedy: &'static str) -> Self {
        Denial { status, error: error.into(), remedy }
    }
}

impl From<Error> for Denial {
    fn from(error: Error) -> Self {
        let (status, remedy) = match &error {
            Error::UnknownName { .. } => (StatusCode::NOT_FOUND, "GET /status has the names"),
            Error::Closing { .. } | Error::Closed { .. } => (
                StatusCode::CONFLICT,
                "wait until closing has ended; the program decides whether it opens the pool again",
            ),
            _ => (StatusCode::BAD_GATEWAY, "see whether the server runs, and look at GET /status for its last failure"),
        };
        Denial::new(status, error.to_string(), remedy)
    }
}

impl IntoResponse for Denial {
    fn into_response(self) -> Response {
        let mut response = json(&self);
        *response.status_mut() = self.status;
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response
    }
}

/// A value as JSON.
pub(super) fn json(value: &impl Serialize) -> Response {
    match text(value) {
        Some(text) => json_text(text),
        None => {
            let mut response =
                json_text(r#"{"error":"this cannot be shown","remedy":"see the program's log"}"#.to_owned());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    }
}

/// A text that is JSON already.
pub(super) fn json_text(text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A value as the text of JSON. `None` if it cannot be shown, since the code of a user's error panics.
pub(super) fn text(value: &impl Serialize) -> Option<String> {
    let shown = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| serde_json::to_string(value)));
    shown.ok()?.inspect_err(|error| tracing::debug!(%error, "a value of the admin cannot be shown")).ok()
}
