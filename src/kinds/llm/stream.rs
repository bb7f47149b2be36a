//! An answer that comes as a stream of parts.

use std::collections::BTreeSet;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use serde_json::Value;

use crate::base::error::{BoxError, Error};
use crate::kinds::llm::chat::ChatChunk;
use crate::kinds::llm::errors::{broken_off, refused, told};
use crate::kinds::llm::events::{EventParser, TooLong};
use crate::kinds::llm::handle::LlmSession;
use crate::lifecycle::requests::HttpResponse;

/// The last event of a stream.
const DONE: &str = "[DONE]";

/// The answer to a chat, part by part. It ends with `None` only if the answer is whole, which means that each choice has its
/// `finish_reason`. Everything else that ends it is an error as its last item: [`Error::Closed`] where closing has not the
/// time to wait for it, [`Error::Timeout`] where the server is silent for longer than `read_timeout` or the whole takes
/// longer than `operation_timeout`, [`Error::Lost`] where it breaks off or ends too early, [`Error::Operation`] where the
/// server says so or sends something else, and [`Error::Forked`] in a forked child.
#[must_use = "the chat is in flight until the stream has ended or this drops"]
pub struct ChatStream {
    /// `None` once it has ended.
    answer: Option<HttpResponse>,
    parser: EventParser,
    choices: ChoicesInStream,
    pub(super) session: LlmSession,
}

impl ChatStream {
    pub(super) fn new(answer: HttpResponse, asked_for: u64, session: LlmSession) -> Self {
        let parser = EventParser::new(session.config.max_body);
        let choices = ChoicesInStream { asked_for, ..ChoicesInStream::default() };
        ChatStream { answer: Some(answer), parser, choices, session }
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

    /// Leaves the stream alone from here on. Answers whether it was still open.
    pub(super) fn leave(&mut self) -> bool {
        self.answer.take().is_some()
    }

    /// The chunk of an event, or the error that the server tells by it.
    fn chunk(&self, event: &str) -> Result<ChatChunk, Error> {
        let LlmSession { requests, .. } = &self.session;
        let refused = |source: BoxError| refused(requests.link(), requests.withheld(source));
        let value: Value = serde_json::from_str(event).map_err(|error| refused(error.into()))?;
        if let Some(told) = told(&value) {
            return Err(refused(format!("the server broke the stream off: {told}").into()));
        }
        if !is_chunk(&value) {
            return Err(refused("an event of the stream has neither choices nor a usage".into()));
        }
        serde_json::from_value(value).map_err(|error| refused(error.into()))
    }

    /// The end of the stream, whole or not.
    fn end(&mut self) -> Option<Error> {
        // The last event of a stream may lack the empty line behind it.
        let has_ended = self.parser.rest().is_none_or(|rest| rest.trim() == DONE);
        match has_ended && self.choices.are_whole() {
            true => None,
            false => Some(broken_off(self.session.requests.link())),
        }
    }
}

impl Stream for ChatStream {
    type Item = Result<ChatChunk, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            let Some(answer) = &mut this.answer else { return Poll::Ready(None) };
            if let Err(forked) = this.session.requests.link().check_process() {
                this.answer = None;
                return Poll::Ready(Some(Err(forked)));
            }
            let ended = match this.parser.next() {
                Some(event) if event.trim() == DONE => {
                    if this.choices.are_whole() {
                        this.answer.take().into_iter().for_each(HttpResponse::finish);
                        return Poll::Ready(None);
                    }
                    Some(broken_off(this.session.requests.link()))
                }
                Some(event) => match this.chunk(&event) {
                    Ok(chunk) => {
                        this.choices.take_in(&chunk);
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
                    Poll::Ready(None) => this.end(),
                },
            };
            this.answer = None;
            return Poll::Ready(ended.map(Err));
        }
    }
}

/// The choices of a stream, by their index.
#[derive(Default)]
struct ChoicesInStream {
    /// How many the chat asked for.
    asked_for: u64,
    /// The choices that have begun and not ended.
    open: BTreeSet<u64>,
    ended: BTreeSet<u64>,
}

impl ChoicesInStream {
    fn take_in(&mut self, chunk: &ChatChunk) {
        for choice in &chunk.choices {
            // Some servers send an empty one with each part.
            if choice.finish_reason.as_deref().is_some_and(|reason| !reason.is_empty()) {
                self.open.remove(&choice.index);
                self.ended.insert(choice.index);
            } else if !self.ended.contains(&choice.index) {
                self.open.insert(choice.index);
            }
        }
    }

    /// Whether each choice has come to its end.
    fn are_whole(&self) -> bool {
        self.open.is_empty() && self.ended.len() as u64 >= self.asked_for.max(1)
    }
}

/// Whether this event has choices, of which there may be none, or the usage alone. Servers send such ones for the usage,
/// which `stream_options.include_usage` asks for, for a verdict on the prompt, and to keep the connection alive.
fn is_chunk(event: &Value) -> bool {
    event.get("choices").is_some_and(Value::is_array) || event.get("usage").is_some_and(Value::is_object)
}

impl fmt::Debug for ChatStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatStream").field("has_ended", &self.answer.is_none()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn are_whole(asked_for: u64, chunks: &[Value]) -> bool {
        let mut choices = ChoicesInStream { asked_for, ..ChoicesInStream::default() };
        chunks.iter().for_each(|chunk| choices.take_in(&serde_json::from_value(chunk.clone()).unwrap()));
        choices.are_whole()
    }

    #[test]
    fn each_choice_needs_its_reason() {
        let part = |index: u64, reason: Value| json!({"choices": [{"index": index, "finish_reason": reason}]});
        let (begin, end) = (|index| part(index, Value::Null), |index| part(index, json!("stop")));
        assert!(are_whole(1, &[begin(0), end(0)]));
        assert!(!are_whole(1, &[]) && !are_whole(1, &[begin(0)]));
        assert!(!are_whole(1, &[begin(0), begin(1), end(0)]));
        assert!(!are_whole(2, &[begin(0), end(0)]), "the chat asked for two");
        assert!(are_whole(2, &[begin(0), begin(1), end(1), end(0), begin(0)]));
        assert!(!are_whole(1, &[part(0, json!(""))]) && are_whole(1, &[part(0, json!("")), end(0)]));
    }

    #[test]
    fn an_event_without_choices_is_one_of_usage() {
        let usage = json!({"total_tokens": 7});
        for event in [
            json!({"choices": [{"index": 0}]}),
            json!({"choices": []}),
            json!({"choices": [], "usage": usage}),
            json!({"choices": [], "prompt_filter_results": []}),
            json!({"usage": usage}),
        ] {
            assert!(is_chunk(&event), "{event}");
        }
        for event in [json!({}), json!({"choices": null}), json!({"usage": null}), json!(7)] {
            assert!(!is_chunk(&event), "{event}");
        }
    }
}
