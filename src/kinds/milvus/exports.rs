//! The public names of the Milvus kind.

/// The names at the crate's root.
pub(crate) mod root {
    pub use crate::kinds::milvus::{
        Milvus, MilvusCollection, MilvusError, MilvusFault, MilvusHandle, MilvusMatch, MilvusMetric, MilvusQuery,
        MilvusResource, MilvusRow, MilvusSpec,
    };
}

/// The names in `resource_pool::blocking`.
pub(crate) mod threads {
    pub use crate::kinds::milvus::blocking::{Milvus, MilvusCollection};
}
