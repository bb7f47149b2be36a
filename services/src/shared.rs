//! One server of each kind for all tests of a process.

use crate::{Error, Kind, Service};
use std::env;
use std::path::PathBuf;
use std::sync::OnceLock;

/// The server of this kind that all tests of this process share, started on first use.
///
/// If the environment has an URL for it ([`Kind::variable`]), the server there is used. It refuses to be killed, frozen
/// or restarted.
///
/// # Panics
/// If the server cannot be started. A missing server fails the run, and never skips a test.
pub fn shared(kind: Kind) -> &'static Service {
    static SERVERS: [OnceLock<Service>; Kind::Milvus as usize + 1] =
        [const { OnceLock::new() }; Kind::Milvus as usize + 1];
    SERVERS[kind as usize].get_or_init(|| find_or_start(kind).unwrap_or_else(|error| panic!("{error}")))
}

fn find_or_start(kind: Kind) -> Result<Service, Error> {
    match env::var(kind.variable()) {
        Ok(url) if !url.is_empty() => {
            Service::foreign(kind, &url, env::var_os(kind.folder_variable()).map(PathBuf::from))
        }
        _ => Service::start(kind),
    }
}
