//! PostgreSQL: its configuration, and the view of its server side.

use crate::address::{Address, encode};
use crate::nobody::{command, own, run, write};
use crate::server::{Server, Site};
use crate::{Error, Kind, Service, install};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const USER: &str = "quant@desk:a/b%c";
const PASSWORD: &str = "p@ss:w/rd%2F'\"";
const DATABASE: &str = "desk/quant%41";
/// The superuser may connect even if the server has no room for other users.
const SUPERUSER: &str = "postgres";

/// How long the server may take to answer, in seconds.
const PATIENCE: &str = "5";

#[derive(Debug, Default)]
pub(crate) struct Postgres {
    /// The folder of the server's programs. `None` for those of the distribution.
    programs: Option<PathBuf>,
    /// The primary that this server is a standby of.
    primary: Option<Address>,
}

impl Postgres {
    /// The server whose programs are in this folder.
    pub(crate) fn of(programs: &Path) -> Self {
        Postgres { programs: Some(programs.to_owned()), primary: None }
    }

    /// The path of one of the server's programs.
    fn program(&self, of_the_distribution: &install::Program, name: &str) -> Result<PathBuf, Error> {
        match &self.programs {
            Some(programs) => Ok(programs.join(name)),
            None => of_the_distribution.path(),
        }
    }
}

impl Server for Postgres {
    fn address(&self, port: u16) -> Address {
        let [user, password, database] = [USER, PASSWORD, DATABASE].map(encode);
        Address {
            url: format!("postgres://{user}:{password}@127.0.0.1:{port}/{database}"),
            host: "127.0.0.1".into(),
            port,
            user: USER.into(),
            password: PASSWORD.into(),
            path: DATABASE.into(),
        }
    }

    fn prepare(&mut self, site: &Site) -> Result<(), Error> {
        let dir = &site.dir;
        let password = dir.join("password");
        write(&password, PASSWORD, 0o600)?;
        own(dir)?;
        if let Some(primary) = &self.primary {
            let mut copy = command(self.program(&install::PG_BASEBACKUP, "pg_basebackup")?, dir);
            copy.args(["-h", &primary.host, "-p", &primary.port.to_string(), "-U", SUPERUSER, "-w", "-D"])
                .arg(data(dir));
            copy.args(["-R", "-X", "stream", "-c", "fast", "--no-sync"]).env("PGPASSWORD", PASSWORD);
            return run("pg_basebackup", &mut copy, "").map(drop);
        }
        let mut init = command(self.program(&install::INITDB, "initdb")?, dir);
        init.args(["-U", SUPERUSER, "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync", "-D"]);
        init.arg(data(dir)).arg("--pwfile").arg(&password);
        run("initdb", &mut init, "")?;
        let (user, secret) = (USER.replace('"', "\"\""), PASSWORD.replace('\'', "''"));
        let mut single = command(self.program(&install::POSTGRES, "postgres")?, dir);
        single.args(["--single", "-D"]).arg(data(dir)).arg("postgres");
        let words = format!(
            "CREATE ROLE \"{user}\" LOGIN PASSWORD '{secret}'\nCREATE DATABASE \"{DATABASE}\" OWNER \"{user}\"\n"
        );
        run("creating the user", &mut single, &words)?;
        if let Some(tls) = &site.tls {
            let pem = fs::read_to_string(tls.certificate()).map_err(Error::io("the server's certificate"))?;
            write(&dir.join("server.pem"), &pem, 0o600)?;
            let authority = fs::read_to_string(tls.authority()).map_err(Error::io("the authority"))?;
            write(&dir.join("ca.pem"), &authority, 0o600)?;
            let asks = if tls.tls.asks_for_certificate { " clientcert=verify-ca" } else { "" };
            // The superuser, whom the view uses, needs no certificate.
            let rule = format!(
                "hostnossl all {SUPERUSER} 127.0.0.1/32 scram-sha-256\nhostssl all all 127.0.0.1/32 scram-sha-256{asks}\n"
            );
            write(&data(dir).join("pg_hba.conf"), &rule, 0o600)?;
        }
        Ok(())
    }

    fn command(&self, site: &Site) -> Result<Command, Error> {
        let mut command = command(self.program(&install::POSTGRES, "postgres")?, &site.dir);
        command.arg("-D").arg(data(&site.dir)).args(["-p", &site.address.port.to_string(), "-h", "127.0.0.1"]);
        let set = |command: &mut Command, option: String| {
            command.arg("-c").arg(option);
        };
        // The path of a socket in this folder would be too long, so there is none.
        set(&mut command, "unix_socket_directories=".into());
        // A commit survives a SIGKILL all the same. fsync would help only against power cuts.
        set(&mut command, "fsync=off".into());
        if site.tls.is_some() {
            for (option, file) in
                [("ssl_cert_file", "server.pem"), ("ssl_key_file", "server.pem"), ("ssl_ca_file", "ca.pem")]
            {
                set(&mut command, format!("{option}={}", site.dir.join(file).display()));
            }
            set(&mut command, "ssl=on".into());
        }
        Ok(command)
    }

    fn ready(&self, site: &Site) -> Result<(), Error> {
        let user = if site.tls.is_some() { SUPERUSER } else { USER };
        ask(site, (user, DATABASE), "SELECT 1").map(drop)
    }

    fn log(&self, dir: &Path) -> PathBuf {
        dir.join("server.out")
    }
}

fn data(dir: &Path) -> PathBuf {
    dir.join("data")
}

/// Runs a statement as this user in this database, and returns the answer. `|` separates the columns.
fn ask(site: &Site, (user, database): (&str, &str), sql: &str) -> Result<String, Error> {
    let mut psql = Command::new("timeout");
    psql.arg(PATIENCE).arg(install::PSQL.path()?).args([
        "-X",
        "-A",
        "-t",
        "-q",
        "-w",
        "-v",
        "ON_ERROR_STOP=1",
        "-c",
        sql,
    ]);
    psql.args(["-h", &site.address.host, "-p", &site.address.port.to_string(), "-U", user, "-d", database]);
    psql.env("PGPASSWORD", &site.address.password).env("PGCONNECT_TIMEOUT", PATIENCE).env("PGSSLMODE", "disable");
    run(&format!("asking PostgreSQL {sql:?}"), &mut psql, "").map(|answer| answer.trim_end().to_owned())
}

impl Service {
    /// A view of a PostgreSQL's server side.
    ///
    /// # Errors
    /// If this is not a PostgreSQL.
    pub fn postgres(&self) -> Result<View<'_>, Error> {
        Ok(View { site: self.site(Kind::Postgres)? })
    }

    /// Starts a standby of this PostgreSQL, which must have no TLS. From then on the primary answers a commit only once
    /// the standby has it, so that a promotion loses nothing that was acknowledged.
    ///
    /// # Errors
    /// If this is no PostgreSQL, or the standby does not get ready.
    pub fn start_standby(&self) -> Result<Service, Error> {
        let view = self.postgres()?;
        let primary = self.site(Kind::Postgres)?.address.clone();
        let recipe = || Box::new(Postgres { programs: None, primary: Some(primary.clone()) }) as Box<dyn Server>;
        let standby = Service::start_as(Kind::Postgres, None, recipe)?;
        view.query("ALTER SYSTEM SET synchronous_standby_names = '*'")?;
        view.query("SELECT pg_reload_conf()")?;
        Ok(standby)
    }
}

/// The server side of a PostgreSQL, seen by its superuser, who may connect even if the server has no room for others.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    site: &'a Site,
}

impl View<'_> {
    /// Runs a statement in the database that the URL names, and returns the answer. `|` separates columns, and line
    /// feeds separate rows.
    ///
    /// # Errors
    /// If the server does not answer within five seconds or answers an error.
    pub fn query(&self, sql: &str) -> Result<String, Error> {
        ask(self.site, (SUPERUSER, &self.site.address.path), sql)
    }

    /// Limits the connections of the URL's user to so many; `None` takes the limit off.
    ///
    /// # Errors
    /// As [`query`](View::query).
    pub fn room_for(&self, connections: Option<u32>) -> Result<(), Error> {
        let limit = connections.map_or_else(|| "-1".to_owned(), |connections| connections.to_string());
        self.alter(&format!("CONNECTION LIMIT {limit}"))
    }

    /// Lets the URL's user connect, or forbids it. Open connections stay.
    ///
    /// # Errors
    /// As [`query`](View::query).
    pub fn may_log_in(&self, may: bool) -> Result<(), Error> {
        self.alter(if may { "LOGIN" } else { "NOLOGIN" })
    }

    /// Makes a standby the primary, which answers alone from then on. Returns once it takes writes.
    ///
    /// # Errors
    /// As [`query`](View::query).
    pub fn promote(&self) -> Result<(), Error> {
        self.query("SELECT pg_promote()").map(drop)
    }

    fn alter(&self, how: &str) -> Result<(), Error> {
        self.query(&format!("ALTER ROLE \"{}\" {how}", USER.replace('"', "\"\""))).map(drop)
    }

    /// The process of each connection of the URL's user, and its state: `idle`, `active`, `idle in transaction`.
    ///
    /// # Errors
    /// As [`query`](View::query).
    pub fn connections(&self) -> Result<Vec<(u32, String)>, Error> {
        let user = USER.replace('\'', "''");
        let rows =
            self.query(&format!("SELECT pid, state FROM pg_stat_activity WHERE usename = '{user}' ORDER BY pid"))?;
        let row =
            |line: &str| line.split_once('|').and_then(|(pid, state)| Some((pid.parse().ok()?, state.to_owned())));
        rows.lines().map(|line| row(line).ok_or_else(|| Error::exchange("pg_stat_activity", line))).collect()
    }
}
