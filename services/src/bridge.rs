//! A current ClickHouse, for tests of features that the distribution's old server lacks.

use crate::address::Address;
use crate::clickhouse::{ClickHouse, query};
use crate::process;
use crate::server::{Server, Site};
use crate::{Error, Kind, Service, install};
use std::env;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const USER: &str = "quant@desk:a/b%c";
const PASSWORD: &str = "p@ss:w/rd%2F";
const VARIABLE: &str = "RESOURCE_POOL_TEST_CLICKHOUSE_BRIDGE_URL";

/// The current ClickHouse engine behind an HTTP interface of our own, for features that the distribution's old server
/// lacks. `services/bridge.py` lists what it cannot serve. In all else it is a [`Service`].
#[derive(Debug)]
pub struct ClickHouseBridge(Service);

impl ClickHouseBridge {
    /// The environment variable for a URL that replaces the [`shared`](ClickHouseBridge::shared) server.
    pub const VARIABLE: &str = VARIABLE;

    /// Starts a bridge. Installs the engine first if it is missing (180 MB).
    ///
    /// # Errors
    /// If the engine cannot be installed, or the bridge does not get ready.
    pub fn start() -> Result<ClickHouseBridge, Error> {
        Service::start_as(Kind::ClickHouse, None, || Box::new(Bridge)).map(ClickHouseBridge)
    }

    /// The bridge that all tests of this process share.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn shared() -> &'static Service {
        static BRIDGE: OnceLock<ClickHouseBridge> = OnceLock::new();
        let find_or_start = || match env::var(VARIABLE) {
            Ok(url) if !url.is_empty() => Service::foreign(Kind::ClickHouse, &url, None).map(ClickHouseBridge),
            _ => ClickHouseBridge::start(),
        };
        BRIDGE.get_or_init(|| find_or_start().unwrap_or_else(|error| panic!("{error}")))
    }

    /// Installs the engine if it is missing.
    ///
    /// # Errors
    /// If it cannot be installed; the error says what to do about it.
    pub fn install() -> Result<(), Error> {
        install::ENGINE.dir().map(drop)
    }
}

impl Deref for ClickHouseBridge {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.0
    }
}

#[derive(Debug)]
struct Bridge;

impl Server for Bridge {
    fn address(&self, port: u16) -> Address {
        ClickHouse::at(port, USER, PASSWORD)
    }

    fn prepare(&mut self, _: &Site) -> Result<(), Error> {
        Ok(())
    }

    fn command(&self, site: &Site) -> Result<Command, Error> {
        let mut command = process::command(install::PYTHON.path()?, &site.dir);
        command.env("PYTHONPATH", install::ENGINE.dir()?).env("PYTHONDONTWRITEBYTECODE", "1");
        command.env("BRIDGE_USER", USER).env("BRIDGE_PASSWORD", PASSWORD);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("bridge.py"));
        command.arg(site.address.port.to_string()).arg(site.dir.join("data"));
        Ok(command)
    }

    fn ready(&self, site: &Site) -> Result<(), Error> {
        query(&site.address, &format!("CREATE DATABASE IF NOT EXISTS {}", site.address.path)).map(drop)
    }

    /// The bridge logs to its output.
    fn log(&self, dir: &Path) -> PathBuf {
        dir.join("server.out")
    }
}
