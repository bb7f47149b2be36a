//! A language model for threads, which block on the futures of the one for tasks.

use crate::base::error::Error;
use crate::kinds::llm::chat::{ChatAnswer, ChatChunk, ChatRequest};
use crate::kinds::llm::handle::Llm as AsyncLlm;
use crate::kinds::llm::stream::ChatStream as AsyncStream;

/// A language model for threads. Cheap to clone.
///
/// ```no_run
/// # fn main() -> Result<(), resource_pool::Error> {
/// use resource_pool::{ChatRequest, blocking::ResourcePool};
///
/// let llm = ResourcePool::global().llm()?;
/// let answer = llm.chat(ChatRequest::user("Is 000001 a bank?").model("gpt-4o-mini"))?;
/// println!("{}", answer.text());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Llm {
    tasks: AsyncLlm,
}

impl Llm {
    pub(super) fn new(tasks: &AsyncLlm) -> Self {
        Llm { tasks: tasks.clone() }
    }

    /// The whole answer to a chat.
    ///
    /// # Errors
    /// Those of [the async method](crate::Llm::chat), and [`Error::InAsyncContext`] on a current-thread runtime.
    pub fn chat(&self, chat: impl Into<ChatRequest>) -> Result<ChatAnswer, Error> {
        self.tasks.session.requests.wait(self.tasks.chat(chat))?
    }

    /// The answer to a chat as a stream, whose parts come as the model makes them.
    ///
    /// # Errors
    /// Those of [the async method](crate::Llm::chat_stream), and [`Error::InAsyncContext`] on a current-thread runtime.
    pub fn chat_stream(&self, chat: impl Into<ChatRequest>) -> Result<ChatStream, Error> {
        let stream = self.tasks.session.requests.wait(self.tasks.chat_stream(chat))??;
        Ok(ChatStream { stream })
    }
}

/// The answer to a chat, part by part, as an iterator that blocks for the next one. Everything that is said of the
/// [async one](crate::ChatStream) holds here as well.
#[derive(Debug)]
#[must_use = "the chat is in flight until the stream has ended or this drops"]
pub struct ChatStream {
    stream: AsyncStream,
}

impl Iterator for ChatStream {
    type Item = Result<ChatChunk, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let requests = self.stream.session.requests.clone();
        match requests.wait(self.stream.next()) {
            Ok(part) => part,
            // The stream ends here, whether a parent has it or this thread must not block. No iterator goes on for ever.
            Err(error) => self.stream.leave().then_some(Err(error)),
        }
    }
}
