//! Milvus, a vector store: a thin client of its REST interface, version 1.

mod answer;
pub(crate) mod blocking;
mod collection;
mod config;
mod errors;
pub(crate) mod exports;
mod handle;
mod query;
mod resource;
mod row;
mod spec;

pub use self::collection::MilvusCollection;
pub use self::config::MilvusConfig;
pub use self::errors::{MilvusError, MilvusFault};
pub use self::handle::{Milvus, MilvusHandle};
pub use self::query::{MilvusMatch, MilvusQuery};
pub use self::resource::MilvusResource;
pub use self::row::MilvusRow;
pub use self::spec::{MilvusMetric, MilvusSpec};
