//! The names of MongoDB that users see.

/// The names at the crate's root.
pub(crate) mod root {
    pub use ::mongodb;

    pub use crate::kinds::mongo::{Mongo, MongoResource};
}

/// The names in `resource_pool::blocking`.
pub(crate) mod threads {
    pub use crate::kinds::mongo::blocking::Mongo;
}
