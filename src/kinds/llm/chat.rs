//! The requests and the answers of chats. The types have what every OpenAI-compatible server knows. All else is kept as
//! JSON, so that nothing of a server's is lost.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A chat to be answered: its messages, and options that [`set`](ChatRequest::set) takes by their names in the API.
///
/// ```
/// use resource_pool::ChatRequest;
///
/// let chat = ChatRequest::user("Is 000001 a bank?").system("Answer in one word.").set("temperature", 0);
/// assert_eq!(chat.messages.len(), 2);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ChatRequest {
    /// The model. Defaults to the one of the configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The messages so far, the oldest first.
    pub messages: Vec<ChatMessage>,
    /// All other options of the API.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl ChatRequest {
    /// A chat of these messages.
    pub fn new(messages: impl IntoIterator<Item = ChatMessage>) -> Self {
        ChatRequest { messages: messages.into_iter().collect(), ..ChatRequest::default() }
    }

    /// A chat of one message of the user's.
    pub fn user(text: impl Into<String>) -> Self {
        ChatRequest::new([ChatMessage::user(text)])
    }

    /// Puts the system's message before all others.
    pub fn system(mut self, text: impl Into<String>) -> Self {
        self.messages.insert(0, ChatMessage::new("system", text.into()));
        self
    }

    /// Adds a message.
    pub fn message(mut self, message: ChatMessage) -> Self {
        self.messages.push(message);
        self
    }

    /// Sets the model.
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.model = Some(model.into());
        self
    }

    /// Sets an option by its name in the API, such as `temperature`, `max_tokens` or `tools`.
    pub fn set(mut self, option: impl Into<String>, value: impl Into<Value>) -> Self {
        self.more.insert(option.into(), value.into());
        self
    }
}

/// A message of a chat.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ChatMessage {
    /// Who says it: `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text, or parts of other sorts, or null.
    pub content: Value,
    /// All else, such as `tool_calls`.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl ChatMessage {
    /// A message of this role.
    pub fn new(role: impl Into<String>, content: impl Into<Value>) -> Self {
        ChatMessage { role: role.into(), content: content.into(), more: Map::new() }
    }

    /// A message of the user's.
    pub fn user(text: impl Into<String>) -> Self {
        ChatMessage::new("user", text.into())
    }

    /// A message of the model's.
    pub fn assistant(text: impl Into<String>) -> Self {
        ChatMessage::new("assistant", text.into())
    }

    /// The text. Empty if the message has none.
    pub fn text(&self) -> &str {
        self.content.as_str().unwrap_or_default()
    }
}

/// The answer to a chat as a whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ChatAnswer {
    /// The model that answered.
    pub model: String,
    /// The answers, which are one unless the chat asked for more.
    pub choices: Vec<ChatChoice>,
    /// The tokens that were used, if the server tells.
    pub usage: Option<ChatUsage>,
    /// All else, such as `id`.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl ChatAnswer {
    /// The text of the first choice. Empty if there is none.
    pub fn text(&self) -> &str {
        self.choices.first().map_or("", |choice| choice.message.text())
    }
}

/// One of the answers to a chat.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ChatChoice {
    /// The message.
    pub message: ChatMessage,
    /// Why it ends: `stop`, `length`, `tool_calls`, or another reason of the server's.
    pub finish_reason: Option<String>,
    /// All else, such as `index`.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// The tokens that a chat used.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ChatUsage {
    /// Those of the messages.
    pub prompt_tokens: u64,
    /// Those of the answer.
    pub completion_tokens: u64,
    /// Both together.
    pub total_tokens: u64,
    /// All else.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// A part of an answer that comes as a stream.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ChatChunk {
    /// The parts of the choices. Empty in a part that has only the usage.
    pub choices: Vec<ChunkChoice>,
    /// The tokens that were used, in the last part, if the chat asked for that.
    pub usage: Option<ChatUsage>,
    /// All else, such as `id` and `model`.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl ChatChunk {
    /// The text that this part adds to the first choice.
    pub fn text(&self) -> &str {
        self.choices.first().and_then(|choice| choice.delta.content.as_deref()).unwrap_or_default()
    }
}

/// A part of one of the answers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ChunkChoice {
    /// Which choice it is of.
    pub index: u64,
    /// The addition to its message.
    pub delta: ChatDelta,
    /// Why the choice ends, in its last part.
    pub finish_reason: Option<String>,
    /// All else.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// An addition to a message.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ChatDelta {
    /// The role, in the first part.
    pub role: Option<String>,
    /// The further text.
    pub content: Option<String>,
    /// All else, such as `tool_calls`.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}
