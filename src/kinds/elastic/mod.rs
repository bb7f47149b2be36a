//! Elasticsearch and what is compatible with it, as OpenSearch: its REST interface over the crate's own requests.

mod answer;
pub(crate) mod blocking;
mod buffer;
mod bulk;
mod config;
mod delivery;
mod errors;
pub(crate) mod exports;
mod handle;
mod health;
mod resource;
mod row;
mod scroll;
mod session;

pub use self::answer::{IndexedDocument, SearchAnswer, SearchHit};
pub use self::bulk::BulkWriter;
pub use self::config::ElasticConfig;
pub use self::errors::ElasticError;
pub use self::handle::{Elastic, ElasticHandle};
pub use self::resource::ElasticResource;
pub use self::row::{BulkOutcome, BulkRow, ReturnedRow, RowProblem};
pub use self::scroll::Scroll;
