//! A client of HTTP: `reqwest`'s, with limits, counted, and cut as it closes.

pub(crate) mod blocking;
mod config;
pub(crate) mod exports;
mod handle;
mod resource;

pub use self::config::HttpConfig;
pub use self::handle::{Http, HttpHandle};
pub use self::resource::HttpResource;
