//! The public names of the PostgreSQL kind.

/// The names at the crate's root.
pub(crate) mod root {
    pub use crate::kinds::postgres::{Postgres, PostgresHandle, PostgresResource, PostgresTarget, PostgresTransaction};
}

/// The names in `resource_pool::blocking`.
pub(crate) mod threads {
    pub use crate::kinds::postgres::blocking::Postgres;
}
