//! The names of PostgreSQL that users see.

/// Those at the crate's root.
pub(crate) mod root {
    pub use ::sqlx;

    pub use crate::kinds::postgres::{Postgres, PostgresHandle, PostgresResource, PostgresTransaction};
}

/// Those in `resource_pool::blocking`.
pub(crate) mod threads {
    pub use crate::kinds::postgres::blocking::Postgres;
}
