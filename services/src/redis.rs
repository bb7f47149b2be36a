//! Redis: its configuration and what its server side shows.

use crate::address::{Address, encode};
use crate::process;
use crate::server::{Server, Site};
use crate::{Error, Kind, Service, install};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const USER: &str = "quant@desk:a/b%c";
const PASSWORD: &str = "p@ss:w/rd%2F";

#[derive(Debug)]
pub(crate) struct Redis;

impl Server for Redis {
    fn address(&self, port: u16) -> Address {
        Address {
            url: format!("redis://{}:{}@127.0.0.1:{port}/0", encode(USER), encode(PASSWORD)),
            host: "127.0.0.1".into(),
            port,
            user: USER.into(),
            password: PASSWORD.into(),
            path: "0".into(),
        }
    }

    fn prepare(&mut self, site: &Site) -> Result<(), Error> {
        // The append-only file is written before a command is answered, so a SIGKILL loses nothing; fsync is for power cuts.
        let mut config = format!(
            "port {port}\nbind 127.0.0.1\ndir {dir:?}\nlogfile server.log\nsave \"\"\n\
             appendonly yes\nappendfsync no\nenable-debug-command yes\n\
             requirepass \"{PASSWORD}\"\nuser \"{USER}\" on \">{PASSWORD}\" ~* &* +@all\n",
            port = site.address.port,
            dir = site.dir,
        );
        if let Some(tls) = &site.tls {
            let (authority, certificate) = (tls.authority(), tls.certificate());
            let asks = if tls.tls.asks_for_certificate { "yes" } else { "no" };
            config.push_str(&format!(
                "tls-port {port}\ntls-ca-cert-file {authority:?}\ntls-cert-file {certificate:?}\n\
                 tls-key-file {certificate:?}\ntls-auth-clients {asks}\n",
                port = tls.port,
            ));
        }
        let path = config_path(site);
        fs::write(&path, config).map_err(Error::io(path.to_string_lossy()))
    }

    fn command(&self, site: &Site) -> Result<Command, Error> {
        let mut command = process::command(install::REDIS.path()?, &site.dir);
        command.arg(config_path(site));
        Ok(command)
    }

    fn ready(&self, site: &Site) -> Result<(), Error> {
        Connection::open(&site.address)?.command(&["PING"]).map(drop)
    }
}

fn config_path(site: &Site) -> PathBuf {
    site.dir.join("redis.conf")
}

impl Service {
    /// What a Redis shows on its server side.
    ///
    /// # Errors
    /// If this is not a Redis.
    pub fn redis(&self) -> Result<View<'_>, Error> {
        Ok(View { address: &self.site(Kind::Redis)?.address })
    }
}

/// The server side of a Redis, seen over a connection of its own.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    address: &'a Address,
}

/// One line of `CLIENT LIST`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The server's number for the connection.
    pub id: u64,
    /// The client's host and port.
    pub addr: String,
    /// The name that the client gave itself, or nothing.
    pub name: String,
    /// The last command, such as `get` or `client|list`.
    pub command: String,
    /// The whole line.
    pub line: String,
}

impl View<'_> {
    /// Runs one command as the server's user; the elements of an array reply are separated by line feeds.
    ///
    /// # Errors
    /// If the server does not answer within five seconds or answers an error.
    pub fn command(&self, words: &[&str]) -> Result<String, Error> {
        Connection::open(self.address)?.command(words)
    }

    /// Everybody who is connected, except this view.
    ///
    /// # Errors
    /// As [`command`](View::command).
    pub fn clients(&self) -> Result<Vec<Client>, Error> {
        let mut connection = Connection::open(self.address)?;
        let me = connection.command(&["CLIENT", "ID"])?;
        let list = connection.command(&["CLIENT", "LIST"])?;
        let clients = list.lines().filter(|line| !line.is_empty()).map(Client::parse);
        Ok(clients.filter(|client| client.id.to_string() != me).collect())
    }
}

impl Client {
    fn parse(line: &str) -> Client {
        let field = |key: &str| {
            let value = line.split(' ').find_map(|field| field.strip_prefix(key)?.strip_prefix('='));
            value.unwrap_or_default().to_string()
        };
        Client {
            id: field("id").parse().unwrap_or_default(),
            addr: field("addr"),
            name: field("name"),
            command: field("cmd"),
            line: line.to_string(),
        }
    }
}

/// Just enough of the Redis protocol.
struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    fn open(address: &Address) -> Result<Connection, Error> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let open = || {
            let stream = TcpStream::connect((address.host.as_str(), address.port))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        };
        let stream = open().map_err(Error::io("connecting to Redis"))?;
        let mut connection = Connection { reader: BufReader::new(stream) };
        match (address.user.as_str(), address.password.as_str()) {
            ("", "") => {}
            ("", password) => drop(connection.command(&["AUTH", password])?),
            (user, password) => drop(connection.command(&["AUTH", user, password])?),
        }
        Ok(connection)
    }

    fn command(&mut self, words: &[&str]) -> Result<String, Error> {
        // AUTH carries the password, so only the first word is told.
        let what = format!("Redis {}", words.first().unwrap_or(&""));
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        let answer = self.reader.get_mut().write_all(request.as_bytes()).and_then(|()| self.reply());
        answer.map_err(Error::io(what.clone()))?.map_err(|refusal| Error::exchange(what, refusal))
    }

    /// A reply, or the error that the server answered.
    fn reply(&mut self) -> io::Result<Result<String, String>> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        let (kind, rest) = line.split_at(line.len().min(1));
        let size = rest.parse::<i64>().unwrap_or(0);
        match kind {
            "-" => Ok(Err(rest.to_string())),
            "$" if size >= 0 => {
                let mut bytes = vec![0; usize::try_from(size).unwrap_or(0) + 2];
                self.reader.read_exact(&mut bytes)?;
                bytes.truncate(bytes.len() - 2);
                Ok(Ok(String::from_utf8_lossy(&bytes).into_owned()))
            }
            "*" => (0..size)
                .map(|_| self.reply())
                .collect::<io::Result<Result<Vec<_>, _>>>()
                .map(|all| all.map(|all| all.join("\n"))),
            "$" => Ok(Ok(String::new())),
            _ => Ok(Ok(rest.to_string())),
        }
    }
}
