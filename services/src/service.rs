//! One running server, and the verbs that tests use on it.
//!
//! Tests share a [`Service`] between threads. One mutex guards the server's process and its recipe, and each verb that
//! acts on the process holds it meanwhile. A `kill` or `freeze` therefore waits for a start on another thread.
//! `start_all` starts each server on a thread of its own, and those threads share nothing. No callback of a test runs
//! under the lock.

use crate::address::Address;
use crate::process::Process;
use crate::server::{Server, Site};
use crate::tls::{Tls, TlsPort};
use crate::{Error, Kind, folder, port};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a server may take to start. A slow machine may need long, so this only bounds a start that hangs.
const READY_WITHIN: Duration = Duration::from_secs(90);
/// How long `stop` waits for a server to end by itself, before it kills it.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// How many starts are tried, since another process may take a free port first.
const PORTS_TRIED: usize = 3;

/// One server. This process started it, unless its URL came from the environment. Dropping it kills a server of its own
/// and removes its folder.
#[derive(Debug)]
pub struct Service {
    kind: Kind,
    site: Site,
    /// The process and its recipe. `None` for a server that this process did not start.
    own: Option<Mutex<Own>>,
}

/// The parts of a server that this process started.
#[derive(Debug)]
struct Own {
    server: Box<dyn Server>,
    /// `None` after a kill or a stop.
    process: Option<Process>,
}

impl Service {
    /// Starts a server. Installs its program first if this machine lacks it. Returns when the server answers its user.
    ///
    /// # Errors
    /// If the program cannot be installed, or the server does not get ready. The error quotes the end of its log.
    pub fn start(kind: Kind) -> Result<Service, Error> {
        Service::start_as(kind, None, || kind.server())
    }

    /// Starts a server that speaks TLS. MongoDB, PostgreSQL and MySQL speak only TLS to their user, and the others do so at a second
    /// [port](Service::tls_port).
    ///
    /// # Errors
    /// As [`start`](Service::start).
    pub fn start_with_tls(kind: Kind, tls: &Tls) -> Result<Service, Error> {
        Service::start_as(kind, Some(tls), || kind.server())
    }

    /// Starts several servers in parallel, and returns them in the order given.
    ///
    /// # Errors
    /// The first failure. The other servers are stopped.
    pub fn start_all(kinds: &[Kind]) -> Result<Vec<Service>, Error> {
        thread::scope(|scope| {
            let starting: Vec<_> = kinds.iter().map(|kind| scope.spawn(|| Service::start(*kind))).collect();
            let started: Vec<_> = starting.into_iter().map(|thread| thread.join()).collect();
            started.into_iter().map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        })
    }

    /// A server that this process did not start. Only its URL is known, and its folder if `cargo xtask` owns it.
    pub(crate) fn foreign(kind: Kind, url: &str, dir: Option<PathBuf>) -> Result<Service, Error> {
        let site = Site { dir: dir.unwrap_or_default(), address: Address::parse(kind, url)?, tls: None };
        Ok(Service { kind, site, own: None })
    }

    pub(crate) fn start_as(
        kind: Kind,
        tls: Option<&Tls>,
        recipe: impl Fn() -> Box<dyn Server>,
    ) -> Result<Service, Error> {
        let mut tried = 1;
        loop {
            let mut server = recipe();
            let address = server.address(port::free()?);
            let tls = match (tls, kind) {
                (None, _) => None,
                (Some(tls), Kind::Mongo | Kind::Postgres | Kind::MySql) => {
                    Some(TlsPort { tls: tls.clone(), port: address.port })
                }
                (Some(tls), _) => Some(TlsPort { tls: tls.clone(), port: port::free()? }),
            };
            let site = Site { dir: folder::create(kind)?, address, tls };
            server.prepare(&site)?;
            let own = Mutex::new(Own { server, process: None });
            let service = Service { kind, site, own: Some(own) };
            match service.launch() {
                // Another process may have taken one of the ports meanwhile.
                Err(Error::Start { .. }) if tried < PORTS_TRIED && !service.is_running() => tried += 1,
                result => return result.map(|()| service),
            }
        }
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The URL with user and password, percent-encoded.
    pub fn url(&self) -> &str {
        &self.site.address.url
    }

    /// The host.
    pub fn host(&self) -> &str {
        &self.site.address.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.site.address.port
    }

    /// The port that speaks TLS. `None` if the server does not speak TLS.
    pub fn tls_port(&self) -> Option<u16> {
        self.site.tls.as_ref().map(|tls| tls.port)
    }

    /// The user, not encoded.
    pub fn user(&self) -> &str {
        &self.site.address.user
    }

    /// The password, not encoded.
    pub fn password(&self) -> &str {
        &self.site.address.password
    }

    /// The database or, for RabbitMQ, the virtual host that the URL names, not encoded.
    pub fn database(&self) -> &str {
        &self.site.address.path
    }

    /// The folder that holds configuration, data and log. Empty if this process did not start the server.
    pub fn dir(&self) -> &Path {
        &self.site.dir
    }

    /// The server's log.
    pub fn log_path(&self) -> PathBuf {
        match self.own("find the log of") {
            Ok(own) => own.server.log(&self.site.dir),
            Err(_) => self.kind.server().log(&self.site.dir),
        }
    }

    /// The current text of the log.
    ///
    /// # Errors
    /// If the folder of a foreign server is not known.
    pub fn log(&self) -> Result<String, Error> {
        self.need_dir("read the log of")?;
        let path = self.log_path();
        let text = fs::read(&path).map_err(Error::io(path.to_string_lossy()))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The version that the server reports.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn version(&self) -> Result<String, Error> {
        let told = match self.kind {
            Kind::Mongo => self.mongo()?.version()?,
            Kind::RabbitMq => self.rabbitmq()?.ctl(&["version"])?,
            Kind::ClickHouse => self.clickhouse()?.query("SELECT version()")?,
            Kind::Redis => {
                let info = self.redis()?.command(&["INFO", "server"])?;
                let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
                version.ok_or_else(|| Error::exchange("INFO server", "no version in it"))?.to_owned()
            }
            Kind::Elastic => self.elastic()?.version()?,
            Kind::Postgres => self.postgres()?.query("SHOW server_version")?,
            Kind::MySql => self.mysql()?.query("SELECT version()")?,
            Kind::Chroma | Kind::Milvus => return Err(Error::exchange("the version", "this server tells none")),
        };
        Ok(told.trim().to_owned())
    }

    /// Whether this process started the server, and can kill and freeze it.
    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// Whether its process is alive. A frozen process is.
    pub fn is_running(&self) -> bool {
        self.own("look at").is_ok_and(|mut own| own.process.as_mut().is_some_and(Process::is_running))
    }

    /// The number of the server's process. `None` if it is not running, or another process started it.
    pub fn pid(&self) -> Option<u32> {
        let mut own = self.own("look at").ok()?;
        let process = own.process.as_mut()?;
        process.is_running().then(|| process.pid())
    }

    /// The number of established connections to the server's port, counted on its side.
    ///
    /// # Errors
    /// If the server runs on another machine.
    pub fn established(&self) -> Result<usize, Error> {
        if !["127.0.0.1", "localhost", "::1"].contains(&self.host()) {
            return Err(Error::Foreign { kind: self.kind, action: "count the connections of" });
        }
        port::established(self.port())
    }

    /// Polls [`established`](Service::established) until it is `count`. Returns the last number seen, also if
    /// `patience` ends first.
    ///
    /// # Errors
    /// As `established`.
    pub fn await_established(&self, count: usize, patience: Duration) -> Result<usize, Error> {
        let end = Instant::now() + patience;
        loop {
            let now = self.established()?;
            if now == count || Instant::now() >= end {
                return Ok(now);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends SIGKILL, as the kernel does when memory is short. Returns when the process is gone.
    ///
    /// # Errors
    /// If this process did not start the server.
    pub fn kill(&self) -> Result<(), Error> {
        if let Some(mut process) = self.own("kill")?.process.take() {
            process.kill();
        }
        Ok(())
    }

    /// Sends SIGSTOP. The kernel still accepts connections and data, but nobody answers. Returns when the process has
    /// stopped.
    ///
    /// # Errors
    /// If this process did not start the server, or it is not running.
    pub fn freeze(&self) -> Result<(), Error> {
        let mut own = self.own("freeze")?;
        let process = own.process.as_mut().ok_or(Error::NotRunning(self.kind))?;
        process.freeze().map_err(Error::io(format!("freezing {}", self.kind)))
    }

    /// Sends SIGCONT.
    ///
    /// # Errors
    /// If this process did not start the server, or it is not running.
    pub fn thaw(&self) -> Result<(), Error> {
        let mut own = self.own("thaw")?;
        let process = own.process.as_mut().ok_or(Error::NotRunning(self.kind))?;
        process.thaw().map_err(Error::io(format!("thawing {}", self.kind)))
    }

    /// Kills the server if it runs, and starts it on the same port with the same data. Returns when it answers its
    /// user.
    ///
    /// # Errors
    /// If this process did not start the server, or it does not get ready.
    pub fn restart(&self) -> Result<(), Error> {
        self.kill()?;
        self.launch()
    }

    /// Waits until the server answers its user, for example after [`thaw`](Service::thaw).
    ///
    /// # Errors
    /// If this process did not start the server, or it does not answer within `patience`.
    pub fn await_ready(&self, patience: Duration) -> Result<(), Error> {
        let own = self.own("wait for")?;
        let end = Instant::now() + patience;
        loop {
            match own.server.ready(&self.site) {
                Err(error) if Instant::now() >= end => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(10)),
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Asks the server to end, as its administrator would, and kills it if it takes longer than ten seconds. Its data
    /// stays.
    ///
    /// # Errors
    /// If this process did not start the server.
    pub fn stop(&self) -> Result<(), Error> {
        if let Some(mut process) = self.own("stop")?.process.take() {
            process.stop(STOP_WITHIN);
        }
        Ok(())
    }

    /// Starts the process, and waits until the server answers its user.
    fn launch(&self) -> Result<(), Error> {
        let mut own = self.own("start")?;
        let log = own.server.log(&self.site.dir);
        let began = Instant::now();
        let mut process = Process::spawn(own.server.command(&self.site)?, &log.with_extension("out"))?;
        loop {
            let answer = own.server.ready(&self.site);
            if !process.is_running() {
                return Err(Error::exited(self.kind, &log));
            }
            match answer {
                Ok(()) => break,
                Err(last) if began.elapsed() > READY_WITHIN => {
                    own.process = Some(process);
                    return Err(Error::not_ready(self.kind, READY_WITHIN, &last, &log));
                }
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
        own.process = Some(process);
        Ok(())
    }

    fn own(&self, action: &'static str) -> Result<MutexGuard<'_, Own>, Error> {
        let own = self.own.as_ref().ok_or(Error::Foreign { kind: self.kind, action })?;
        Ok(own.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn need_dir(&self, action: &'static str) -> Result<(), Error> {
        match self.dir().as_os_str().is_empty() {
            true => Err(Error::Foreign { kind: self.kind, action }),
            false => Ok(()),
        }
    }

    pub(crate) fn site(&self, wanted: Kind) -> Result<&Site, Error> {
        match self.kind == wanted {
            true => Ok(&self.site),
            false => Err(Error::WrongKind { kind: self.kind, wanted }),
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(own) = self.own.take() {
            // The server and its helper processes must be gone before their folder can be removed.
            drop(own);
            let _ = fs::remove_dir_all(&self.site.dir);
        }
    }
}
