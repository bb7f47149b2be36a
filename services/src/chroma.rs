//! Chroma's own server, which is a library of the Python package. It has no login.

use crate::address::Address;
use crate::server::{Server, Site};
use crate::{Error, install, process, web};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Chroma;

/// Calls the command line of the library. The package's own Python is left out, since it needs a hundred others.
const RUN: &str = "import sys, chromadb_rust_bindings; chromadb_rust_bindings.cli(['chroma', *sys.argv[1:]])";

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

impl Server for Chroma {
    fn address(&self, port: u16) -> Address {
        Address::open("http", port)
    }

    fn prepare(&mut self, _: &Site) -> Result<(), Error> {
        Ok(())
    }

    fn command(&self, site: &Site) -> Result<Command, Error> {
        let mut command = process::command(install::PYTHON.path()?, &site.dir);
        command.env("PYTHONPATH", install::CHROMA.dir()?).env("PYTHONDONTWRITEBYTECODE", "1");
        command.args(["-c", RUN, "run", "--host", "127.0.0.1", "--port", &site.address.port.to_string(), "--path"]);
        command.arg(site.dir.join("data"));
        Ok(command)
    }

    fn ready(&self, site: &Site) -> Result<(), Error> {
        web::get("Chroma", (&site.address.host, site.address.port), None, "/api/v2/heartbeat", PATIENCE).map(drop)
    }

    /// Chroma logs to its output.
    fn log(&self, dir: &Path) -> PathBuf {
        dir.join("server.out")
    }
}
