//! ClickHouse: the driver's own client over connections of this crate's own.

pub(crate) mod blocking;
mod cancel;
mod config;
mod errors;
pub(crate) mod exports;
mod handle;
mod http;
mod inserter;
mod resource;
mod response_limit;
mod rows;
mod statement;
mod stream;
mod transport;
mod verbs;

pub use self::config::ClickHouseConfig;
pub use self::handle::ClickHouse;
pub use self::inserter::Inserter;
pub use self::resource::ClickHouseResource;
pub use self::rows::Rows;
pub use self::statement::Statement;
