//! The public names of the HTTP kind.

/// The names at the crate's root.
pub(crate) mod root {
    pub use crate::kinds::http::{Http, HttpHandle, HttpResource};
}

/// The names in `resource_pool::blocking`.
pub(crate) mod threads {
    pub use crate::kinds::http::blocking::{Http, HttpResponse};
}
