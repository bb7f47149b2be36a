//! A language model behind an OpenAI-compatible server: chats, answered as a whole or as a stream.

pub(crate) mod blocking;
mod chat;
mod config;
mod errors;
mod events;
pub(crate) mod exports;
mod handle;
mod resource;
mod stream;

pub use self::chat::{ChatAnswer, ChatChoice, ChatChunk, ChatDelta, ChatMessage, ChatRequest, ChatUsage, ChunkChoice};
pub use self::config::LlmConfig;
pub use self::handle::{Llm, LlmHandle};
pub use self::resource::LlmResource;
pub use self::stream::ChatStream;
