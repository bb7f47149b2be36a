//! The part that all kinds share whose server speaks HTTP: the settings of their clients, and the resource.
//!
//! [`RestKind`] has all that differs between servers. The requests themselves are those of `lifecycle::requests`.

mod fields;
mod kind;
mod resource;
mod settings;

pub(crate) use self::fields::{RestLimits, leased, limit_setters, limits, one_secret, user_and_password};
pub use self::kind::RestKind;
pub use self::resource::RestResource;
pub(crate) use self::settings::{basic_user, check};
