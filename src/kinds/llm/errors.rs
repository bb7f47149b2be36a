//! The errors of chats, and which of them are followed by a repeat.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;

use serde_json::Value;

use crate::base::error::{BoxError, Error, Source, Worded};
use crate::kinds::llm::config::LlmConfig;
use crate::lifecycle::link::Link;
use crate::lifecycle::requests::HttpStatusError;

/// The word for a chat in errors.
pub(super) const CHAT: &str = "a chat";

/// How long the first repeat waits if the server does not say.
const PAUSE: Duration = Duration::from_millis(500);

/// The time to wait before the chat is sent again. `None` if it is not sent again, after so many repeats and with so
/// much time left.
pub(super) fn wait_before_repeat(config: &LlmConfig, error: &Error, repeats: u32, left: Duration) -> Option<Duration> {
    let status = status(error)?;
    let may_pass = matches!(status.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let wait = status.retry_after.unwrap_or(PAUSE * 2u32.pow(repeats));
    (may_pass && repeats < config.max_repeats && wait <= left).then_some(wait)
}

/// The status that the server answered.
fn status(error: &Error) -> Option<&HttpStatusError> {
    let Error::Operation { source, .. } = error else { return None };
    source.downcast_ref()
}

/// The error of a chat, with the remedy for a wrong key. A server may quote parts of the key, so its words are left out
/// then.
pub(super) fn advised(error: Error) -> Error {
    match (status(&error).map(|status| status.status), &error) {
        (Some(StatusCode::UNAUTHORIZED), Error::Operation { resource, action, source }) => {
            let text =
                "the server answered 401 Unauthorized; set `api_key`, or OPENAI_API_KEY, to a key of this server's";
            let status = status(&error).map(HttpStatusError::wordless);
            let source: Source = match status {
                Some(status) => Arc::new(Worded::new(text.to_owned(), status)),
                None => Arc::clone(source),
            };
            Error::Operation { resource: Arc::clone(resource), action: action.clone(), source }
        }
        _ => error,
    }
}

/// The error of a chat that the server answered in a way that is none.
pub(super) fn refused(link: &Link, source: impl Into<BoxError>) -> Error {
    Error::Operation { resource: Arc::clone(link.name()), action: CHAT.to_owned(), source: Source::from(source.into()) }
}

/// The server's words in an answer that is an error although its status is none. `None` for another answer.
pub(super) fn told(answer: &Value) -> Option<String> {
    let error = answer.get("error").filter(|error| !error.is_null())?;
    Some(error.get("message").and_then(Value::as_str).map_or_else(|| error.to_string(), str::to_owned))
}

/// The error of a stream that broke off.
pub(super) fn broken_off(link: &Link) -> Error {
    Error::Lost {
        resource: Arc::clone(link.name()),
        endpoint: Arc::clone(link.endpoint()),
        source: Arc::new(BrokenOff),
    }
}

/// The end of a stream without its last part.
#[derive(Debug)]
struct BrokenOff;

impl fmt::Display for BrokenOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the stream ended before each choice had its finish_reason, so the answer is not whole")
    }
}

impl StdError for BrokenOff {}
