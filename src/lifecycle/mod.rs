//! The life of a resource: it connects, is leased, probed, recovered and closed. No code here names a kind of resource.

pub(crate) mod acquire;
pub(crate) mod activity;
pub(crate) mod any_slot;
pub(crate) mod application;
pub(crate) mod busy;
#[cfg(feature = "checkouts")]
pub(crate) mod checkout;
pub(crate) mod close;
pub(crate) mod condition;
pub(crate) mod context;
pub(crate) mod event;
pub(crate) mod exit;
pub(crate) mod health;
pub(crate) mod health_check;
#[cfg(feature = "serde")]
pub(crate) mod health_json;
pub(crate) mod hooks;
pub(crate) mod kind;
pub(crate) mod leak;
pub(crate) mod leak_scan;
pub(crate) mod lease;
pub(crate) mod life;
pub(crate) mod link;
#[cfg(feature = "metrics")]
pub(crate) mod measured;
#[cfg(model)]
#[doc(hidden)]
pub mod model;
pub(crate) mod observers;
pub(crate) mod options;
pub(crate) mod probe;
pub(crate) mod registry;
#[cfg(feature = "requests")]
pub(crate) mod requests;
pub(crate) mod resource;
pub(crate) mod settings;
pub(crate) mod slot;
pub(crate) mod spans;
pub(crate) mod status;
pub(crate) mod transition;
pub(crate) mod user_ping;
pub(crate) mod wait;
pub(crate) mod wait_group;
pub(crate) mod work;
