//! MariaDB, which speaks the protocol of MySQL: its configuration, and the view of its server side.

use crate::address::{Address, encode};
use crate::nobody::{command, own, run, write};
use crate::server::{Server, Site};
use crate::{Error, Kind, Service, folder, install};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const USER: &str = "quant@desk:a/b%c";
const PASSWORD: &str = "p@ss:w/rd%2F'\"";
const DATABASE: &str = "desk/quant%41";
/// The user of the view. It may connect even if the server has no room for other users.
const SUPERUSER: &str = "root";
const SUPERPASSWORD: &str = "superuser";

/// How long the server may take to answer, in seconds.
const PATIENCE: &str = "5";

/// The files of a server's system tables, of the package.
const SYSTEM: [&str; 3] = ["mysql_system_tables.sql", "mysql_performance_tables.sql", "mysql_system_tables_data.sql"];

/// Options under which a server starts fast, and takes little of the disk.
const SMALL: [&str; 3] =
    ["--innodb-log-file-size=4M", "--innodb-data-file-path=ibdata1:1M:autoextend", "--innodb-autoextend-increment=1"];

#[derive(Debug)]
pub(crate) struct MySql;

impl Server for MySql {
    fn address(&self, port: u16) -> Address {
        let [user, password, database] = [USER, PASSWORD, DATABASE].map(encode);
        Address {
            url: format!("mysql://{user}:{password}@127.0.0.1:{port}/{database}"),
            host: "127.0.0.1".into(),
            port,
            user: USER.into(),
            password: PASSWORD.into(),
            path: DATABASE.into(),
        }
    }

    fn prepare(&mut self, site: &Site) -> Result<(), Error> {
        let template = template()?;
        own(&site.dir)?;
        let mut copy = Command::new("cp");
        copy.args(["-a", "--reflink=auto"]).arg(&template).arg(data(&site.dir));
        run("copying a new server's data", &mut copy, "")?;
        if let Some(tls) = &site.tls {
            let pem = fs::read_to_string(tls.certificate()).map_err(Error::io("the server's certificate"))?;
            write(&site.dir.join("server.pem"), &pem, 0o600)?;
            let authority = fs::read_to_string(tls.authority()).map_err(Error::io("the authority"))?;
            write(&site.dir.join("ca.pem"), &authority, 0o600)?;
            let asks = if tls.tls.asks_for_certificate { "X509" } else { "SSL" };
            // The superuser, whom the view uses, needs no TLS.
            let rule = format!("FLUSH PRIVILEGES;\nALTER USER {} REQUIRE {asks};\n", user());
            bootstrap(&site.dir, &data(&site.dir), &rule)?;
        }
        Ok(())
    }

    fn command(&self, site: &Site) -> Result<Command, Error> {
        let mut command = daemon(&site.dir, &data(&site.dir))?;
        command.arg(format!("--port={}", site.address.port)).arg("--bind-address=127.0.0.1");
        // The path of a socket in this folder would be too long, so the socket has no file.
        command.arg(format!("--socket=@resource-pool-{}", site.address.port));
        command.arg(format!("--pid-file={}", site.dir.join("pid").display()));
        // A commit survives a SIGKILL all the same. A flush would help only against power cuts.
        command.args(["--skip-name-resolve", "--innodb-flush-log-at-trx-commit=2"]);
        if site.tls.is_some() {
            for (option, file) in [("ssl-cert", "server.pem"), ("ssl-key", "server.pem"), ("ssl-ca", "ca.pem")] {
                command.arg(format!("--{option}={}", site.dir.join(file).display()));
            }
        }
        Ok(command)
    }

    fn ready(&self, site: &Site) -> Result<(), Error> {
        let login = if site.tls.is_some() { (SUPERUSER, SUPERPASSWORD) } else { (USER, PASSWORD) };
        ask(site, login, "SELECT 1").map(drop)
    }

    fn log(&self, dir: &Path) -> PathBuf {
        dir.join("server.out")
    }
}

fn data(dir: &Path) -> PathBuf {
    dir.join("data")
}

/// A text as a literal of SQL.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// The URL's user, as statements name it.
fn user() -> String {
    format!("{}@'127.0.0.1'", literal(USER))
}

fn daemon(dir: &Path, data: &Path) -> Result<Command, Error> {
    let mut command = command(install::MARIADBD.path()?, dir);
    command.arg("--no-defaults").arg(format!("--datadir={}", data.display())).args(SMALL);
    Ok(command)
}

/// Runs statements on a server's data, while the server does not run. Each statement has lines of its own.
fn bootstrap(dir: &Path, data: &Path, statements: &str) -> Result<(), Error> {
    let mut daemon = daemon(dir, data)?;
    daemon.args(["--bootstrap", "--skip-networking"]);
    run("bootstrapping MariaDB", &mut daemon, statements).map(drop)
}

/// The data of a new server with its users, which each server copies. The first caller makes it.
fn template() -> Result<PathBuf, Error> {
    let program = install::MARIADBD.path()?;
    let version = run("asking MariaDB for its version", Command::new(&program).arg("--version"), "")?;
    let version = version.split_whitespace().nth(2).unwrap_or_default().to_owned();
    let template = folder::root().join(format!("mariadb-{version}"));
    if !template.exists() {
        install::one_at_a_time(|| if template.exists() { Ok(()) } else { make_template(&template) })?;
    }
    Ok(template)
}

fn make_template(template: &Path) -> Result<(), Error> {
    let half = template.with_extension("half");
    let _ = fs::remove_dir_all(&half);
    fs::create_dir_all(data(&half)).map_err(Error::io(half.to_string_lossy()))?;
    own(&half)?;
    own(&data(&half))?;
    let mut statements = "create database mysql;\nuse mysql;\n".to_owned();
    for file in SYSTEM {
        let path = Path::new("/usr/share/mysql").join(file);
        statements += &fs::read_to_string(&path).map_err(Error::io(path.to_string_lossy()))?;
    }
    let (user, password, superpassword) = (user(), literal(PASSWORD), literal(SUPERPASSWORD));
    statements += &format!(
        "FLUSH PRIVILEGES;\nCREATE USER {user} IDENTIFIED BY {password};\nCREATE DATABASE `{DATABASE}`;\n\
         GRANT ALL ON `{DATABASE}`.* TO {user};\nALTER USER '{SUPERUSER}'@'127.0.0.1' IDENTIFIED BY {superpassword};\n"
    );
    bootstrap(&half, &data(&half), &statements)?;
    fs::rename(data(&half), template).map_err(Error::io(template.to_string_lossy()))?;
    fs::remove_dir_all(&half).map_err(Error::io(half.to_string_lossy()))
}

/// Runs a statement as this user in the URL's database, and returns the answer. Tabs separate the columns.
fn ask(site: &Site, (user, password): (&str, &str), sql: &str) -> Result<String, Error> {
    let mut client = Command::new("timeout");
    client.arg(PATIENCE).arg(install::MARIADB.path()?);
    client.args(["--no-defaults", "--protocol=tcp", "--skip-ssl", "--batch", "--skip-column-names"]);
    client.args(["--host", &site.address.host, "--port", &site.address.port.to_string()]);
    client.args(["--user", user, "--connect-timeout", PATIENCE, "--execute", sql, &site.address.path]);
    client.env("MYSQL_PWD", password);
    run(&format!("asking MariaDB {sql:?}"), &mut client, "").map(|answer| answer.trim_end().to_owned())
}

impl Service {
    /// A view of a MariaDB's server side.
    ///
    /// # Errors
    /// If this is not a MariaDB.
    pub fn mysql(&self) -> Result<View<'_>, Error> {
        Ok(View { site: self.site(Kind::MySql)? })
    }
}

/// The server side of a MariaDB, seen by its superuser, who may connect even if the server has no room for others.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    site: &'a Site,
}

impl View<'_> {
    /// Runs a statement in the database that the URL names, and returns the answer. Tabs separate columns, and line
    /// feeds separate rows.
    ///
    /// # Errors
    /// If the server does not answer within five seconds or answers an error.
    pub fn query(&self, sql: &str) -> Result<String, Error> {
        ask(self.site, (SUPERUSER, SUPERPASSWORD), sql)
    }

    /// Limits the connections of the URL's user to so many; `None` takes the limit off. Open connections stay.
    ///
    /// # Errors
    /// As [`query`](View::query).
    pub fn room_for(&self, connections: Option<u32>) -> Result<(), Error> {
        // Zero stands for no limit here, and a negative number for no room at all.
        let limit = match connections {
            None => 0,
            Some(0) => -1,
            Some(connections) => i64::from(connections),
        };
        self.query(&format!("ALTER USER {} WITH MAX_USER_CONNECTIONS {limit}", user())).map(drop)
    }

    /// Lets the URL's user connect, or forbids it. Open connections stay.
    ///
    /// # Errors
    /// As [`query`](View::query).
    pub fn may_log_in(&self, may: bool) -> Result<(), Error> {
        self.query(&format!("ALTER USER {} ACCOUNT {}", user(), if may { "UNLOCK" } else { "LOCK" })).map(drop)
    }

    /// The number of each connection of the URL's user, and what it does: `Sleep`, `Query`.
    ///
    /// # Errors
    /// As [`query`](View::query).
    pub fn connections(&self) -> Result<Vec<(u64, String)>, Error> {
        let sql = "SELECT id, command FROM information_schema.processlist WHERE user = ";
        let rows = self.query(&format!("{sql}{} ORDER BY id", literal(USER)))?;
        let row = |line: &str| line.split_once('\t').and_then(|(id, does)| Some((id.parse().ok()?, does.to_owned())));
        rows.lines().map(|line| row(line).ok_or_else(|| Error::exchange("the list of processes", line))).collect()
    }

    /// Ends a connection by its number, as an administrator does.
    ///
    /// # Errors
    /// As [`query`](View::query).
    pub fn end(&self, connection: u64) -> Result<(), Error> {
        self.query(&format!("KILL {connection}")).map(drop)
    }
}
