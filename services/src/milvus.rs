//! Milvus, as one process. Its package packs the programs once more, and starts them by a launcher that does not end
//! them, so both are left out.
//!
//! Milvus takes ports that cannot be changed, and listens to all networks. So it needs a network namespace of its own,
//! which `cargo xtask vectors` gives it, and there is one at a time.

use crate::address::Address;
use crate::install::{MILVUS, PYTHON, one_at_a_time};
use crate::server::{Server, Site};
use crate::{Error, process, web};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The login that every Milvus begins with.
const LOGIN: [&str; 2] = ["root", "Milvus"];

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Unpacks the programs into the folder of the first argument.
const UNPACK: &str = "import milvus, sys; milvus._initialize_data_files(sys.argv[1])";

/// Writes the configuration into the folder of the first argument, for the port of the second.
const CONFIGURE: &str = "\
import milvus, sys
config = milvus.MilvusServerConfig(data_dir=sys.argv[1], proxy_port=int(sys.argv[2]))
config.set('authorization_enabled', True)
config.resolve()";

#[derive(Debug)]
pub(crate) struct Milvus;

/// The folder of the programs. Installs them first if they are missing.
pub(crate) fn programs() -> Result<PathBuf, Error> {
    let package = MILVUS.dir()?;
    let (folder, half) = (package.join("unpacked"), package.join("unpacked.half"));
    if !folder.exists() {
        one_at_a_time(|| {
            if folder.exists() {
                return Ok(());
            }
            let _ = fs::remove_dir_all(&half);
            python(UNPACK, &package, &[half.as_os_str()])?;
            fs::rename(&half, &folder).map_err(Error::io(folder.to_string_lossy()))
        })?;
    }
    Ok(folder.join("bin"))
}

/// Runs a script that uses the package.
fn python(script: &str, dir: &Path, arguments: &[&std::ffi::OsStr]) -> Result<(), Error> {
    let mut python = process::command(PYTHON.path()?, dir);
    python.env("PYTHONPATH", MILVUS.dir()?).env("PYTHONDONTWRITEBYTECODE", "1").args(["-c", script]).args(arguments);
    let output = python.output().map_err(Error::io("running Python"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Error::exchange("Milvus's package", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

impl Server for Milvus {
    fn address(&self, port: u16) -> Address {
        let [user, password] = LOGIN.map(str::to_owned);
        let open = Address::open("http", port);
        Address { url: format!("http://{user}:{password}@127.0.0.1:{port}"), user, password, ..open }
    }

    fn prepare(&mut self, site: &Site) -> Result<(), Error> {
        python(CONFIGURE, &site.dir, &[site.dir.as_os_str(), site.address.port.to_string().as_ref()])
    }

    fn command(&self, site: &Site) -> Result<Command, Error> {
        let programs = programs()?;
        let mut command = process::command(programs.join("milvus"), &site.dir);
        command.env("LD_LIBRARY_PATH", &programs).env("DEPLOY_MODE", "STANDALONE");
        command.env("MILVUS_RUN_DIR", site.dir.join("run")).args(["run", "standalone"]);
        Ok(command)
    }

    fn ready(&self, site: &Site) -> Result<(), Error> {
        let Address { host, port, user, password, .. } = &site.address;
        let token = format!("{user}:{password}");
        let answer = web::get("Milvus", (host, *port), Some(&token), "/v1/vector/collections", PATIENCE)?;
        if answer.contains("\"code\":200") { Ok(()) } else { Err(Error::exchange("asking Milvus", answer)) }
    }

    /// Milvus logs to its output.
    fn log(&self, dir: &Path) -> PathBuf {
        dir.join("server.out")
    }
}
