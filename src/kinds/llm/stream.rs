//! An answer that comes as a stream of parts.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use serde_json::Value;

use crate::base::error::{BoxError, Error};
use crate::kinds::llm::chat::ChatChunk;
use crate::kinds::llm::errors::{broken_off, refused};
use crate::kinds::llm::events::{EventParser, TooLong};
use crate::kinds::llm::handle::LlmSession;
use crate::lifecycle::requests::HttpResponse;

/// The last event of a stream.
const DONE: &str = "[DONE]";

/// The answer to a chat, part by part. It ends with `None` only if the answer is whole. Everything else that ends it is an
/// error as its last item: [`Error::Closed`] where closing has not the time to wait for it, [`Error::Timeout`] where the
/// server is silent for longer than `read_timeout`, [`Error::Lost`] where it breaks off, and [`Error::Operation`] where
/// the server says so or sends something else.
#[must_use = "the chat is in flight until the stream has ended or this drops"]
pub struct ChatStream {
    /// `None` once it has ended.
    answer: Option<HttpResponse>,
    parser: EventParser,
    /// Whether a choice has come to its end.
    is_finished: bool,
    pub(super) session: LlmSession,
}

impl ChatStream {
    pub(super) fn new(answer: HttpResponse, session: LlmSession) -> Self {
        let parser = EventParser::new(session.config.max_body);
        ChatStream { answer: Some(answer), parser, is_finished: false, session }
    }

    /// The next part. `None` once the answer is whole.
    ///
    /// # Errors
    /// Those of [the type](ChatStream). No part comes after an error.
    ///
    /// # Cancel safety
    /// Cancel-safe: no part is lost.
    pub async fn next(&mut self) -> Option<Result<ChatChunk, Error>> {
        poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// The chunk of an event, or the error that the server tells by it.
    fn chunk(&self, event: &str) -> Result<ChatChunk, Error> {
        let LlmSession { requests, .. } = &self.session;
        let refused = |source: BoxError| refused(requests.link(), requests.withheld(source));
        let value: Value = serde_json::from_str(event).map_err(|error| refused(error.into()))?;
        if let Some(error) = value.get("error").filter(|error| !error.is_null()) {
            let message = error.get("message").and_then(Value::as_str).map_or_else(|| error.to_string(), str::to_owned);
            return Err(refused(format!("the server broke the stream off: {message}").into()));
        }
        serde_json::from_value(value).map_err(|error| refused(error.into()))
    }
}

impl Stream for ChatStream {
    type Item = Result<ChatChunk, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            let Some(answer) = &mut this.answer else { return Poll::Ready(None) };
            let ended = match this.parser.next() {
                Some(event) if event.trim() == DONE => {
                    this.answer.take().into_iter().for_each(HttpResponse::finish);
                    return Poll::Ready(None);
                }
                Some(event) => match this.chunk(&event) {
                    Ok(chunk) => {
                        this.is_finished |= chunk.choices.iter().any(|choice| choice.finish_reason.is_some());
                        return Poll::Ready(Some(Ok(chunk)));
                    }
                    Err(error) => Some(error),
                },
                None => match Pin::new(answer).poll_next(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Some(Ok(bytes))) => match this.parser.feed(&bytes) {
                        Ok(()) => continue,
                        Err(TooLong) => {
                            let text = format!("a part of the stream has over {} bytes", this.session.config.max_body);
                            Some(refused(this.session.requests.link(), text))
                        }
                    },
                    Poll::Ready(Some(Err(error))) => Some(error),
                    Poll::Ready(None) if this.is_finished => None,
                    Poll::Ready(None) => Some(broken_off(this.session.requests.link())),
                },
            };
            this.answer = None;
            return Poll::Ready(ended.map(Err));
        }
    }
}

impl fmt::Debug for ChatStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatStream").field("has_ended", &self.answer.is_none()).finish_non_exhaustive()
    }
}
