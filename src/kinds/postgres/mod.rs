//! PostgreSQL: sqlx's connections, each checked out to one user at a time.
//!
//! The driver opens its streams itself, so a kill switch cannot cut them. Instead every call of a guard ends when the
//! switch is thrown, and the connection closes when the guard drops.

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
