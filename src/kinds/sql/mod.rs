//! The part that all kinds over sqlx share: the guard, its transaction and its streams, the driver and the resource.
//!
//! The driver opens its streams itself, so a kill switch cannot cut them. Instead every call of a guard ends when the
//! switch is thrown, and the connection closes when the guard drops. [`SqlKind`] has all that differs between databases.

pub(crate) mod blocking;
mod connection;
mod driver;
mod effect;
mod errors;
mod executor;
mod guard;
mod handle;
mod hook;
mod kind;
mod pooling;
mod resource;
mod schemes;
mod transaction;

pub(crate) use self::connection::SqlConnection;
pub(crate) use self::effect::{SqlEffect, Words, is_one, uncommented};
pub(crate) use self::errors::redacted_for;
pub(crate) use self::executor::{Query, QueryStep, runs_on_the_driver};
pub use self::guard::SqlGuard;
pub use self::handle::SqlHandle;
pub(crate) use self::hook::{Hooked, OnConnect};
pub use self::kind::SqlKind;
pub(crate) use self::kind::{Aborted, Companion, SqlConfig};
pub(crate) use self::pooling::{Pooling, pooling};
pub use self::resource::SqlResource;
pub(crate) use self::schemes::SHARED_SCHEMES;
pub use self::transaction::SqlTransaction;
