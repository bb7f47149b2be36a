//! Tools that the adapters of servers share. They know no pool.

pub(crate) mod base_url;
pub(crate) mod checks;
pub(crate) mod count;
pub(crate) mod endpoint;
pub(crate) mod instances;
pub(crate) mod kill_switch;
pub(crate) mod parts;
pub(crate) mod tls;
#[cfg(feature = "streams")]
pub(crate) mod unix_socket;
pub(crate) mod url;
pub(crate) mod variables;
