//! Chroma, a vector store: a thin client of its REST interface, version 2.

pub(crate) mod blocking;
mod collection;
mod config;
mod errors;
pub(crate) mod exports;
mod handle;
mod query;
mod record;
mod resource;
mod spec;

pub use self::collection::ChromaCollection;
pub use self::config::ChromaConfig;
pub use self::errors::{ChromaError, ChromaFault};
pub use self::handle::{Chroma, ChromaHandle};
pub use self::query::{ChromaMatch, ChromaQuery};
pub use self::record::ChromaRecord;
pub use self::resource::ChromaResource;
pub use self::spec::{ChromaSpace, ChromaSpec};
