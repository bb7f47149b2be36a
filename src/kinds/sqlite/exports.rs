//! The public names of the SQLite kind.

/// The names at the crate's root.
pub(crate) mod root {
    pub use crate::kinds::sqlite::{Sqlite, SqliteHandle, SqliteResource, SqliteTransaction};
}

/// The names in `resource_pool::blocking`.
pub(crate) mod threads {
    pub use crate::kinds::sqlite::blocking::Sqlite;
}
