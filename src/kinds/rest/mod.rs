//! The part that all kinds share whose server speaks HTTP: the settings of their clients, and the resource.
//!
//! [`RestKind`] has all that differs between servers. The requests themselves are those of `lifecycle::requests`.

#[cfg(any(feature = "chroma", feature = "elastic", feature = "milvus"))]
mod doubt;
mod fields;
mod kind;
mod resource;
mod settings;

#[cfg(any(feature = "chroma", feature = "elastic", feature = "milvus"))]
pub(crate) use self::doubt::doubted;
#[cfg(any(feature = "chroma", feature = "llm", feature = "milvus"))]
pub(crate) use self::fields::one_secret;
pub(crate) use self::fields::{RestLimits, leased, limit_setters, limits, user_and_password};
pub use self::kind::RestKind;
pub use self::resource::RestResource;
pub(crate) use self::settings::{basic_user, check};
