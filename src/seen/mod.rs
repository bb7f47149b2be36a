//! The views from outside: metrics, and the admin with its status page. They use the public interface alone.

#[cfg(feature = "admin")]
pub mod admin;
#[cfg(feature = "metrics")]
pub mod metrics;
