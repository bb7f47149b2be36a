//! PostgreSQL: sqlx's connections, each checked out to one user at a time.
//!
//! The driver lets nobody bring streams of their own, so that what a guard awaits ends as the kill switch is thrown, and its
//! connection closes as that drops.

pub(crate) mod blocking;
mod config;
mod connection;
mod driver;
mod effect;
mod errors;
mod executor;
pub(crate) mod exports;
mod guard;
mod handle;
mod resource;
mod transaction;

pub use self::config::PostgresConfig;
pub use self::guard::Postgres;
pub use self::handle::PostgresHandle;
pub use self::resource::PostgresResource;
pub use self::transaction::PostgresTransaction;
