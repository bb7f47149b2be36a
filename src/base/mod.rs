//! Types and tools of the whole crate. They know no pool and no resource.

pub mod attribute;
pub(crate) mod clock;
pub(crate) mod environment;
pub(crate) mod error;
pub(crate) mod expand;
pub(crate) mod future;
pub(crate) mod holder;
#[cfg(feature = "serde")]
pub(crate) mod json;
pub mod millis;
pub(crate) mod origins;
pub(crate) mod owner;
pub(crate) mod process;
#[cfg(any(feature = "files", feature = "processes"))]
pub(crate) mod process_table;
pub(crate) mod repeat;
pub(crate) mod retry;
#[cfg(any(feature = "files", feature = "processes"))]
pub(crate) mod run_folder;
pub(crate) mod runtime;
pub(crate) mod secret;
pub(crate) mod setters;
pub(crate) mod stderr;
pub(crate) mod sync;
#[cfg(all(feature = "systemd", target_os = "linux"))]
pub(crate) mod systemd;
