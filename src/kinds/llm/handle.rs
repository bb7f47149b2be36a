//! The handle of a language model, and its verbs for tasks.

use std::fmt;
use std::sync::Arc;

use http::header::{CONTENT_TYPE, HeaderValue};
use reqwest::Method;
use serde_json::Value;

use crate::base::error::{BoxError, Error};
use crate::kinds::llm::blocking;
use crate::kinds::llm::chat::{ChatAnswer, ChatRequest};
use crate::kinds::llm::config::LlmConfig;
use crate::kinds::llm::errors::{CHAT, advised, refused, told, wait_before_repeat};
use crate::kinds::llm::resource::ModelsProbe;
use crate::kinds::llm::stream::ChatStream;
use crate::kinds::rest::leased;
use crate::lifecycle::requests::{HttpRequest, HttpResponse, Requests};
use crate::lifecycle::status::State;
use crate::lifecycle::work::Work;

/// A language model behind an OpenAI-compatible server. Cheap to clone.
///
/// A chat counts as work until its answer, or its stream, has ended. Closing waits for it within the drain, and then ends
/// it with an error.
///
/// ```no_run
/// # async fn example() -> Result<(), resource_pool::Error> {
/// use resource_pool::{ChatRequest, ResourcePool};
///
/// let llm = ResourcePool::global().llm().await?;
/// let mut stream = llm.chat_stream(ChatRequest::user("Is 000001 a bank?").model("gpt-4o-mini")).await?;
/// while let Some(part) = stream.next().await {
///     print!("{}", part?.text());
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Llm {
    pub(super) session: LlmSession,
}

/// The state that the verbs need.
#[derive(Clone)]
pub(super) struct LlmSession {
    pub(super) requests: Requests,
    pub(super) config: Arc<LlmConfig>,
}

impl Llm {
    /// The whole answer to a chat.
    ///
    /// A chat that is answered by 429 or 503 is sent again, as `max_repeats` and `max_repeat_wait` allow. Nothing else
    /// is.
    ///
    /// # Errors
    /// [`Error::Operation`] for a status that is an error, with an [`HttpStatusError`](crate::HttpStatusError) as its
    /// source, and for an answer that tells an error or has no choice; [`Error::Timeout`] if no place is free within
    /// the acquire timeout, or the server is silent for too long; [`Error::Lost`] if it cannot be reached or breaks
    /// off; [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Cancelling closes the connection. The server may go on.
    pub async fn chat(&self, chat: impl Into<ChatRequest>) -> Result<ChatAnswer, Error> {
        let answer: Value = self.session.ask(chat.into(), false).await?.json().await?;
        self.session.answer(answer)
    }

    /// The answer to a chat as a stream, whose parts come as the model makes them. It is asked for as
    /// [`chat`](Self::chat) is. Nothing is sent again once it has begun.
    ///
    /// # Errors
    /// Those of [`chat`](Self::chat), before the stream begins. Later ones are its items.
    ///
    /// # Cancel safety
    /// Cancelling closes the connection. The server may go on.
    pub async fn chat_stream(&self, chat: impl Into<ChatRequest>) -> Result<ChatStream, Error> {
        let chat = chat.into();
        let asked_for = chat.more.get("n").and_then(Value::as_u64).unwrap_or(1);
        let answer = self.session.ask(chat, true).await?;
        let sort = answer.headers().get(CONTENT_TYPE).and_then(|sort| sort.to_str().ok());
        if sort.is_some_and(|sort| sort.trim_start().starts_with("application/json")) {
            // A server that has an error to tell may do so at once, by the status 200.
            self.session.answer(answer.json().await?)?;
            return Err(refused(self.session.requests.link(), "the server answered as a whole, and not by a stream"));
        }
        Ok(ChatStream::new(answer, asked_for, self.session.clone()))
    }

    /// A request to another path of the API, such as `/embeddings`, with the key and the limits. It is never sent again.
    pub fn request(&self, method: Method, path: &str) -> HttpRequest {
        self.session.requests.request(method, path)
    }

    /// Sends a request of the driver's, for libraries that make such ones, as [`async-openai`] does. Its answer counts as
    /// in flight until its body has ended. [`Error::behind`] finds the pool's error in that of a body.
    ///
    /// [`async-openai`]: https://docs.rs/async-openai
    ///
    /// # Errors
    /// Those of [`send`](HttpRequest::send).
    ///
    /// # Cancel safety
    /// Cancelling closes the connection. The server may go on.
    pub async fn execute(&self, request: reqwest::Request) -> Result<reqwest::Response, Error> {
        self.session.requests.execute(request).await
    }

    /// The driver's own client, for libraries that require one. It has the proxy, TLS and the limits of time. It has
    /// neither the key nor the headers, because nothing keeps it at one server. Its requests are not counted, so
    /// nothing limits their number, closing does not wait for them, and no cut ends them.
    ///
    /// # Errors
    /// [`Error::Closed`], and [`Error::Forked`].
    pub fn raw_client(&self) -> Result<reqwest::Client, Error> {
        self.session.requests.raw_client()
    }
}

impl LlmSession {
    /// The answer to a chat, unless it is an error or has no choice.
    fn answer(&self, answer: Value) -> Result<ChatAnswer, Error> {
        let refused = |problem: BoxError| refused(self.requests.link(), self.requests.withheld(problem));
        if let Some(told) = told(&answer) {
            return Err(refused(format!("the server answered an error: {told}").into()));
        }
        match serde_json::from_value::<ChatAnswer>(answer) {
            Ok(answer) if answer.choices.is_empty() => Err(refused("the answer has no choice".into())),
            answer => answer.map_err(|error| refused(error.into())),
        }
    }

    /// The answer to a chat, whose status is no error.
    async fn ask(&self, mut chat: ChatRequest, is_stream: bool) -> Result<HttpResponse, Error> {
        let link = self.requests.link();
        if chat.model.is_none() && !self.config.model.is_empty() {
            chat.model = Some(self.config.model.clone());
        }
        if is_stream {
            chat = chat.set("stream", true);
        }
        let body = serde_json::to_vec(&chat).map_err(|error| refused(link, error))?;
        let (mut repeats, mut left, mut paused) = (0, self.config.max_repeat_wait, None);
        loop {
            let request = self.requests.request(Method::POST, "chat/completions");
            let request = request.action(CHAT).idempotent(true).body(body.clone());
            let mut request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            if let Some(paused) = paused.take() {
                request = request.continuing(paused);
            }
            let error = match request.send().await?.succeeded().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let wait = wait_before_repeat(&self.config, &error, repeats, left);
            let Some(wait) = wait.filter(|_| link.state() == Some(State::Ready)) else { return Err(advised(error)) };
            // The chat is work in the pause as well, so that closing waits for it.
            let busy = link.busy(Work::Operation);
            self.requests.pause(wait).await?;
            paused = Some(busy);
            link.repeated(CHAT);
            repeats += 1;
            left = left.saturating_sub(wait);
        }
    }
}

impl fmt::Debug for Llm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Llm").field("resource", self.session.requests.link().name()).finish_non_exhaustive()
    }
}

/// A language model as its slot holds it. It is leased as the model of either facade.
#[derive(Clone)]
pub struct LlmHandle {
    pub(super) tasks: Llm,
    pub(super) threads: blocking::Llm,
    /// `None` if the server's health is not asked for.
    pub(super) probe: Option<Arc<ModelsProbe>>,
}

leased!(LlmHandle, Llm, blocking::Llm);
