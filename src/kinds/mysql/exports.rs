//! The public names of the MySQL kind.

/// The names at the crate's root.
pub(crate) mod root {
    pub use crate::kinds::mysql::{MySql, MySqlHandle, MySqlResource, MySqlTransaction};
}

/// The names in `resource_pool::blocking`.
pub(crate) mod threads {
    pub use crate::kinds::mysql::blocking::MySql;
}
