//! The trait that each kind of server implements, for [`Service`](crate::Service).

use crate::Error;
use crate::address::Address;
use crate::tls::TlsPort;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder and the addresses of one server.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) dir: PathBuf,
    pub(crate) address: Address,
    pub(crate) tls: Option<TlsPort>,
}

/// How one kind of server is configured, started and asked whether it is ready.
pub(crate) trait Server: Send + fmt::Debug {
    /// The address with credentials, for this port.
    fn address(&self, port: u16) -> Address;

    /// Writes the configuration into the folder, and starts the processes that must run beside the server.
    fn prepare(&mut self, site: &Site) -> Result<(), Error>;

    /// The command that runs the server in the foreground.
    fn command(&self, site: &Site) -> Result<Command, Error>;

    /// Tries one exchange as the server's user. It is called until it succeeds.
    fn ready(&self, site: &Site) -> Result<(), Error>;

    /// The server's log.
    fn log(&self, dir: &Path) -> PathBuf {
        dir.join("server.log")
    }
}
