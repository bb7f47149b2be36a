//! The public names of the Elasticsearch kind.

/// The names at the crate's root.
pub(crate) mod root {
    pub use crate::kinds::elastic::{
        BulkOutcome, BulkRow, BulkWriter, Elastic, ElasticError, ElasticHandle, ElasticResource, IndexedDocument,
        ReturnedRow, RowProblem, Scroll, SearchAnswer, SearchHit,
    };
}

/// The names in `resource_pool::blocking`.
pub(crate) mod threads {
    pub use crate::kinds::elastic::blocking::{BulkWriter, Elastic, Scroll};
}
