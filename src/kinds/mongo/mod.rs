//! MongoDB: one driver client for both facades, which pools, monitors and heals itself.
//!
//! The driver lets nobody bring streams of their own, so there is no kill switch here: its monitor
//! notices a frozen server by short limits and ends what is in flight. What the driver keeps to
//! itself (what is in use, who waits, which server answers) is read from its events.

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
