//! The two facades, async and blocking, and the configuration that makes them.

pub mod adapter;
#[cfg(feature = "macros")]
pub mod attributes;
pub mod blocking;
pub(crate) mod builder;
pub mod config;
pub(crate) mod defaults;
pub(crate) mod global;
mod own;
pub(crate) mod resource_pool;
pub(crate) mod scoped;
#[cfg(feature = "tower")]
pub mod tower;
pub(crate) mod verbs;
pub(crate) mod whole_config;
