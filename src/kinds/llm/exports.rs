//! The public names of the LLM kind.

/// The names at the crate's root.
pub(crate) mod root {
    pub use crate::kinds::llm::{
        ChatAnswer, ChatChoice, ChatChunk, ChatDelta, ChatMessage, ChatRequest, ChatStream, ChatUsage, ChunkChoice,
        Llm, LlmHandle, LlmResource,
    };
}

/// The names in `resource_pool::blocking`.
pub(crate) mod threads {
    pub use crate::kinds::llm::blocking::{ChatStream, Llm};
}
