//! MongoDB: one driver client for both facades, which pools, monitors and heals itself.
//!
//! The driver accepts no streams of its caller's own, so there is no kill switch here. Short limits let the driver's
//! monitor notice a frozen server, and the monitor then ends the operations in flight. The driver keeps to itself which
//! connections are in use, which operations wait and which servers answer. So this module reads all that from its
//! events.

pub(crate) mod blocking;
mod client;
mod config;
mod errors;
pub(crate) mod exports;
mod handle;
mod hosts;
mod monitor;
mod resource;
mod sessions;
mod tracker;
mod uri;

pub use self::config::MongoConfig;
pub use self::handle::Mongo;
pub use self::resource::MongoResource;
