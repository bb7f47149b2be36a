//! The public names of the Chroma kind.

/// The names at the crate's root.
pub(crate) mod root {
    pub use crate::kinds::chroma::{
        Chroma, ChromaCollection, ChromaError, ChromaFault, ChromaHandle, ChromaMatch, ChromaQuery, ChromaRecord,
        ChromaResource, ChromaSpace, ChromaSpec,
    };
}

/// The names in `resource_pool::blocking`.
pub(crate) mod threads {
    pub use crate::kinds::chroma::blocking::{Chroma, ChromaCollection};
}
