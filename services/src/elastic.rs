//! A compatible engine in the place of Elasticsearch and OpenSearch, neither of which a package brings along: osmem, which
//! speaks their REST interface and keeps all in memory. It knows no users, and a kill loses its indices.

use crate::address::Address;
use crate::process;
use crate::server::{Server, Site};
use crate::{Error, Kind, Service, install};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long the engine may take to answer. It is the documented limit of `View::get`.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Elastic;

impl Server for Elastic {
    fn address(&self, port: u16) -> Address {
        Address {
            url: format!("http://127.0.0.1:{port}"),
            host: "127.0.0.1".into(),
            port,
            user: String::new(),
            password: String::new(),
            path: String::new(),
        }
    }

    fn prepare(&mut self, _: &Site) -> Result<(), Error> {
        Ok(())
    }

    fn command(&self, site: &Site) -> Result<Command, Error> {
        let mut command = process::command(install::OSMEM.path()?, &site.dir);
        // The Japanese dictionary takes memory and time to load.
        command.args(["-no-stdin-watch", "-no-ja", "-addr", &format!("127.0.0.1:{}", site.address.port)]);
        Ok(command)
    }

    fn ready(&self, site: &Site) -> Result<(), Error> {
        View { port: site.address.port }.get("/_cluster/health").map(drop)
    }

    fn log(&self, dir: &Path) -> PathBuf {
        dir.join("server.out")
    }
}

impl Service {
    /// The view of a compatible engine's server side.
    ///
    /// # Errors
    /// If this is none.
    pub fn elastic(&self) -> Result<View, Error> {
        Ok(View { port: self.site(Kind::Elastic)?.address.port })
    }
}

/// The server side of a compatible engine, seen over connections of its own.
#[derive(Clone, Copy, Debug)]
pub struct View {
    port: u16,
}

impl View {
    /// The answer to a GET of this path.
    ///
    /// # Errors
    /// If the engine does not answer within five seconds, or answers another status than 200.
    pub fn get(&self, path: &str) -> Result<String, Error> {
        let ask = || -> io::Result<String> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            // HTTP 1.0 ends the answer with the connection, so its length needs no parsing.
            stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = ask().map_err(Error::io("asking the compatible engine"))?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        match head.split(' ').nth(1) {
            Some("200") => Ok(body.to_owned()),
            _ => Err(Error::exchange(format!("GET {path}"), answer)),
        }
    }

    /// The version that the engine claims to be of.
    ///
    /// # Errors
    /// As [`get`](View::get).
    pub fn version(&self) -> Result<String, Error> {
        let told = self.get("/")?;
        let version = told.split("\"number\":\"").nth(1).and_then(|rest| rest.split('"').next());
        version.map(str::to_owned).ok_or_else(|| Error::exchange("GET /", told))
    }
}
