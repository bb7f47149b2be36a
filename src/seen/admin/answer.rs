//! [`Denial`], the answer to a request that is not served, and [`json`], the one to a request that is.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;

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
    text(value).map_or_else(Denial::into_response, json_text)
}

/// A text that is JSON already.
pub(super) fn json_text(text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A value as the text of JSON.
///
/// # Errors
/// It cannot be shown, since the code of a user's error panics.
///
/// Backtraces are left out, because their length has no limit. The log has those of leaks.
pub(super) fn text(value: &impl Serialize) -> Result<String, Denial> {
    let not_shown = || Denial::new(StatusCode::INTERNAL_SERVER_ERROR, "this cannot be shown", "see the program's log");
    let failed = |error| {
        tracing::debug!(%error, "a value of the admin cannot be shown");
        not_shown()
    };
    let shown = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| serde_json::to_string(value)));
    let text = shown.map_err(|_panicked| not_shown())?.map_err(failed)?;
    if !text.contains(r#""backtrace":""#) {
        return Ok(text);
    }
    let mut value = serde_json::from_str(&text).map_err(failed)?;
    leave_backtraces_out(&mut value);
    Ok(value.to_string())
}

/// Leaves out the backtraces of holders, which errors and reports have in their depth.
fn leave_backtraces_out(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(leave_backtraces_out),
        Value::Object(fields) => {
            if let Some(backtrace) = fields.get_mut("backtrace") {
                *backtrace = Value::Null;
            }
            fields.values_mut().for_each(leave_backtraces_out);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::backtrace::Backtrace;
    use std::panic::Location;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::{Event, Holder, What};

    #[test]
    fn no_backtrace_of_a_holder_is_told_however_deep_it_is() {
        let mut holder = Holder::of(&Arc::from("redis"), Location::caller(), Duration::ZERO, 1);
        holder.backtrace = Some(Arc::new(Backtrace::force_capture()));
        let whole = serde_json::to_string(&holder).unwrap();
        assert!(whole.contains("no_backtrace_of_a_holder_is_told"), "{whole}");
        let crowded = What::Crowded { held: 2, allowed: 1, holders: vec![holder.clone(), holder] };
        let told = text(&Event::of_pool(None, crowded)).unwrap();
        assert!(!told.contains("no_backtrace_of_a_holder_is_told"), "{told}");
        assert_eq!(told.matches(r#""backtrace":null"#).count(), 2, "{told}");
        assert_eq!(told.matches("answer.rs:").count(), 2, "the lines that acquired are told: {told}");
    }
}
