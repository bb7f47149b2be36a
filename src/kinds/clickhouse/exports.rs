//! The names of ClickHouse that users see.

/// The names at the crate's root.
pub(crate) mod root {
    pub use ::clickhouse;

    pub use crate::kinds::clickhouse::{ClickHouse, ClickHouseResource, Inserter, Rows, Statement};
}

/// The names in `resource_pool::blocking`.
pub(crate) mod threads {
    pub use crate::kinds::clickhouse::blocking::{ClickHouse, Inserter, Rows, Statement};
}
