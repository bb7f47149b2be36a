//! Redis: its configuration, and the view of its server side.

use crate::address::{Address, encode};
use crate::process;
use crate::server::{Server, Site};
use crate::{Error, Kind, Service, install};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

const USER: &str = "quant@desk:a/b%c";
const PASSWORD: &str = "p@ss:w/rd%2F";

/// How long the server may take to answer if the caller sets no limit. It is the documented limit of `View::command`.
const PATIENCE: Duration = Duration::from_secs(5);

/// The Unix socket in the server's folder, which is the server's working folder.
const SOCKET: &str = "redis.sock";

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
        // The append-only file is written before a command is answered, so a SIGKILL loses nothing. fsync would help
        // only against power cuts.
        let mut config = format!(
            "port {port}\nbind 127.0.0.1\ndir {dir:?}\nunixsocket {SOCKET}\nlogfile server.log\nsave \"\"\n\
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
        Connection::open(&site.address, PATIENCE)?.command(&["PING"]).map(drop)
    }
}

fn config_path(site: &Site) -> PathBuf {
    site.dir.join("redis.conf")
}

impl Service {
    /// The view of a Redis's server side.
    ///
    /// # Errors
    /// If this is not a Redis.
    pub fn redis(&self) -> Result<View<'_>, Error> {
        let site = self.site(Kind::Redis)?;
        Ok(View { address: &site.address, dir: &site.dir })
    }
}

/// The server side of a Redis, seen over a connection of its own.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    address: &'a Address,
    dir: &'a Path,
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
    /// Runs one command as the server's user. Line feeds separate the elements of an array reply.
    ///
    /// # Errors
    /// If the server does not answer within five seconds or answers an error.
    pub fn command(&self, words: &[&str]) -> Result<String, Error> {
        Connection::open(self.address, PATIENCE)?.command(words)
    }

    /// The path of the Unix socket on which the server listens too.
    pub fn socket(&self) -> PathBuf {
        self.dir.join(SOCKET)
    }

    /// Opens a connection that stays, for a server that will accept no further one. Each command may take so long.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub fn connect(&self, patience: Duration) -> Result<Connection, Error> {
        Connection::open(self.address, patience)
    }

    /// The clients that are connected, except this view.
    ///
    /// # Errors
    /// As [`command`](View::command).
    pub fn clients(&self) -> Result<Vec<Client>, Error> {
        let mut connection = Connection::open(self.address, PATIENCE)?;
        let me = connection.command(&["CLIENT", "ID"])?;
        let list = connection.command(&["CLIENT", "LIST"])?;
        let clients = list.lines().filter(|line| !line.is_empty()).map(Client::parse);
        Ok(clients.filter(|client| client.id.to_string() != me).collect())
    }

    /// Takes the right to PING from the server's user, or gives it back.
    ///
    /// # Errors
    /// As [`command`](View::command).
    pub fn may_ping(&self, may: bool) -> Result<(), Error> {
        self.command(&["ACL", "SETUSER", USER, if may { "+ping" } else { "-ping" }]).map(drop)
    }

    /// Makes the server load its data anew for about so long. It answers `LOADING` meanwhile. Returns when it has.
    ///
    /// # Errors
    /// If the server takes much longer, or answers an error.
    pub fn reload(&self, lasts: Duration) -> Result<(), Error> {
        const KEYS: u32 = 100;
        // A slow machine may take this much longer than planned.
        const SLOW: Duration = Duration::from_secs(60);
        let mut connection = self.connect(lasts + SLOW)?;
        let filler: Vec<String> = (0..KEYS).map(|key| format!("filler:{key}")).collect();
        for key in &filler {
            connection.command(&["SET", key, &"x".repeat(2000)])?;
        }
        // The server answers other clients between two keys, if the keys are large enough.
        let delay = (lasts / KEYS).as_micros().to_string();
        connection.command(&[
            "CONFIG",
            "SET",
            "rdbcompression",
            "no",
            "loading-process-events-interval-bytes",
            "1024",
            "key-load-delay",
            &delay,
        ])?;
        connection.command(&["DEBUG", "RELOAD"])?;
        connection.command(&["CONFIG", "SET", "key-load-delay", "0"])?;
        for key in &filler {
            connection.command(&["DEL", key])?;
        }
        Ok(())
    }

    /// Makes the server fail to save a snapshot, as on a full disk, or takes that back. After a failure it answers
    /// `MISCONF` to writes and to PING. Returns when the server is in that state.
    ///
    /// # Errors
    /// If the server's folder cannot be written, or the server does not reach that state.
    pub fn disk_full(&self, is_full: bool) -> Result<(), Error> {
        // A folder takes the path of the snapshot, so the server cannot write it.
        let snapshot = self.dir.join("dump.rdb");
        let io = || Error::io(snapshot.to_string_lossy());
        if !is_full {
            self.command(&["CONFIG", "SET", "save", ""])?;
            return fs::remove_dir(&snapshot).map_err(io());
        }
        let _an_old_one = fs::remove_file(&snapshot);
        fs::create_dir(&snapshot).map_err(io())?;
        self.command(&["CONFIG", "SET", "save", "3600 1000000"])?;
        self.command(&["BGSAVE"])?;
        self.await_info("persistence", &["rdb_last_bgsave_status:err"])
    }

    /// Makes this server a replica of the other. Returns when it has all data of its master.
    ///
    /// # Errors
    /// If the server does not reach that state.
    pub fn follow(&self, master: &Service) -> Result<(), Error> {
        let master = master.redis()?;
        for server in [self, &master] {
            let login = ["masteruser", USER, "masterauth", PASSWORD, "repl-diskless-sync-delay", "0"];
            server.command(&[&["CONFIG", "SET"], &login[..]].concat())?;
        }
        self.command(&["REPLICAOF", "127.0.0.1", &master.address.port.to_string()])?;
        self.await_info("replication", &["role:slave", "master_link_status:up"])
    }

    /// Hands over to a replica of this server once the replica has all data, and becomes its replica (`FAILOVER`).
    /// Returns when both have changed roles.
    ///
    /// # Errors
    /// If the server does not reach that state.
    pub fn fail_over_to(&self, replica: &Service) -> Result<(), Error> {
        let replica = replica.redis()?;
        let port = replica.address.port.to_string();
        // The replica knows a moment before its master that it has all data.
        self.await_info("replication", &[&format!(",port={port},state=online,")])?;
        self.command(&["FAILOVER", "TO", "127.0.0.1", &port])?;
        replica.await_info("replication", &["role:master"])?;
        self.await_info("replication", &["role:slave", "master_link_status:up"])
    }

    /// Makes a replica an independent server.
    ///
    /// # Errors
    /// As [`command`](View::command).
    pub fn promote(&self) -> Result<(), Error> {
        self.command(&["REPLICAOF", "NO", "ONE"]).map(drop)
    }

    /// Waits until this section of INFO contains each of these parts.
    fn await_info(&self, section: &str, parts: &[&str]) -> Result<(), Error> {
        // A replica copies all data first, so this only bounds one that never gets there.
        const LONG: Duration = Duration::from_secs(30);
        let end = Instant::now() + LONG;
        loop {
            let info = self.command(&["INFO", section])?;
            if parts.iter().all(|part| info.contains(part)) {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(Error::exchange(format!("INFO {section}"), format!("no {}:\n{info}", parts.join(", "))));
            }
            thread::sleep(Duration::from_millis(10));
        }
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

/// Just enough of the Redis protocol, logged in as the server's user.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    fn open(address: &Address, patience: Duration) -> Result<Connection, Error> {
        let open = || {
            let stream = TcpStream::connect((address.host.as_str(), address.port))?;
            stream.set_read_timeout(Some(patience))?;
            stream.set_write_timeout(Some(patience))?;
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

    /// Runs one command. Line feeds separate the elements of an array reply.
    ///
    /// # Errors
    /// If the server does not answer in time or answers an error.
    pub fn command(&mut self, words: &[&str]) -> Result<String, Error> {
        // Only the first word goes into errors, because AUTH carries the password.
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
