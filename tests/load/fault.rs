//! Faults of a server or of the way to it, and the load's behaviour under each. `tests/faults.rs` and `tests/soak.rs`
//! call [`strike`].
//!
//! `is_succeeded` is the only atomic. A fault that needs another thread for its work joins it before it returns.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use resource_pool::State;
use services::{Kind, NoDescriptors, Proxy, Service};

use super::{Load, NOTICE};

/// The limit for the load to succeed again, once the server is back.
pub(crate) const RESUME: Duration = Duration::from_secs(5);
/// The limit for a server to answer again after a freeze or a black hole. Also the limit for every worker to succeed
/// before the fault.
const READY: Duration = Duration::from_secs(30);
/// Between two looks at the load. It bounds the error of the measured times.
const GLANCE: Duration = Duration::from_millis(5);

/// An action on a server, or on the connections to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL, and a restart after so long.
    Kill(Duration),
    /// SIGSTOP for so long.
    Freeze(Duration),
    /// Every connection is reset so many times, a moment apart.
    Reset(u32),
    /// Every connection is reset, and the server is stopped by SIGSTOP for so long while they come back.
    Collapse(Duration),
    /// Nothing comes through in either direction, and connects get no answer.
    BlackHole(Duration),
    /// Each connection passes one byte per second in each direction.
    Slow(Duration),
    /// RabbitMQ is short of memory and takes no messages.
    Alarm(Duration),
    /// The server takes no further connection, and the prober's connection is cut.
    Full(Duration),
    /// The user loses a right that the prober or the load needs. At RabbitMQ, PostgreSQL and MySQL the user may not even
    /// connect, and the prober's connection is cut.
    RightGone(Duration),
    /// Redis loads its data, and answers every command so.
    Loading(Duration),
    /// The server takes no writes.
    DiskFull(Duration),
    /// This process can open no descriptor, and the prober's connection is cut.
    Descriptors(Duration),
    /// Redis hands over to its replica and the address follows. After so long both go back.
    Failover(Duration),
    /// The replica of Redis loses its connection for a moment. Then Redis is killed, the replica is promoted, and the
    /// address follows. Writes that the replica had not received are lost.
    Promotion,
}

impl Fault {
    pub(crate) fn fits(self, kind: Kind) -> bool {
        match self {
            Fault::Alarm(_) => kind == Kind::RabbitMq,
            // MongoDB and ClickHouse read their limit on connections only at the start.
            Fault::Full(_) => matches!(kind, Kind::RabbitMq | Kind::Redis | Kind::Postgres | Kind::MySql),
            // A MongoDB user who lost a right may still ping.
            Fault::RightGone(_) => kind != Kind::Mongo,
            // The other servers would need a file system of their own.
            Fault::DiskFull(_) => matches!(kind, Kind::RabbitMq | Kind::Redis),
            // MongoDB's driver follows a failover from address to address, so no address has to follow here.
            Fault::Loading(_) | Fault::Failover(_) | Fault::Promotion => kind == Kind::Redis,
            _ => true,
        }
    }

    /// Whether the server answers throughout, so that the pool must cut no connection.
    fn is_answered(self) -> bool {
        match self {
            Fault::Kill(_) | Fault::Freeze(_) | Fault::Reset(_) | Fault::Collapse(_) => false,
            Fault::BlackHole(_) | Fault::Slow(_) => false,
            Fault::Alarm(_) | Fault::Full(_) | Fault::RightGone(_) | Fault::Loading(_) | Fault::DiskFull(_) => true,
            // The killed Redis leaves no connection to cut.
            Fault::Descriptors(_) | Fault::Failover(_) | Fault::Promotion => true,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Kill(Duration::ZERO) => write!(f, "killed, restarted at once"),
            Fault::Kill(down) => write!(f, "killed, restarted after {down:?}"),
            Fault::Freeze(down) => write!(f, "frozen for {down:?}"),
            Fault::Reset(1) => write!(f, "connections reset"),
            Fault::Reset(times) => write!(f, "connections reset {times} times"),
            Fault::Collapse(down) => write!(f, "connections reset, then frozen for {down:?}"),
            Fault::BlackHole(down) => write!(f, "black hole for {down:?}"),
            Fault::Slow(down) => write!(f, "1 byte/s for {down:?}"),
            Fault::Alarm(down) => write!(f, "memory alarm for {down:?}"),
            Fault::Full(down) => write!(f, "server full for {down:?}"),
            Fault::RightGone(down) => write!(f, "right taken away for {down:?}"),
            Fault::Loading(down) => write!(f, "loading for {down:?}"),
            Fault::DiskFull(down) => write!(f, "disk full for {down:?}"),
            Fault::Descriptors(down) => write!(f, "descriptors gone for {down:?}"),
            Fault::Failover(down) => write!(f, "failover, and back after {down:?}"),
            Fault::Promotion => write!(f, "failover, forced"),
        }
    }
}

/// Whether a client of MySQL has said last that it asks whether the server is alive: a packet of one byte.
fn is_ping(said: &[u8]) -> bool {
    said.ends_with(&[1, 0, 0, 0, 14])
}

/// A server, and the proxy in front of it.
pub(crate) struct Target {
    pub(crate) server: Service,
    pub(crate) proxy: Proxy,
    /// The server's replica, from the first failover on.
    standby: OnceLock<Service>,
    /// Whether the standby has taken the server's place.
    is_succeeded: AtomicBool,
}

impl Target {
    pub(crate) fn start(kind: Kind) -> Target {
        let server = Service::start(kind).expect("a server");
        let proxy = Proxy::start(server.port()).expect("a proxy").unrecorded();
        Target { server, proxy, standby: OnceLock::new(), is_succeeded: AtomicBool::new(false) }
    }

    /// The server that the address leads to.
    pub(crate) fn now(&self) -> &Service {
        let standby = self.standby.get().filter(|_| self.is_succeeded.load(Ordering::SeqCst));
        standby.unwrap_or(&self.server)
    }

    pub(crate) fn url(&self) -> String {
        self.proxy.url(&self.server)
    }

    /// Starts the replica, if the fault needs one. That takes time, so it happens before the fault.
    fn prepare(&self, fault: Fault) -> Result<(), services::Error> {
        if matches!(fault, Fault::Failover(_) | Fault::Promotion) {
            let standby = match self.standby.get() {
                Some(standby) => standby,
                None => {
                    let started = Service::start(Kind::Redis)?;
                    self.standby.get_or_init(|| started)
                }
            };
            standby.redis()?.follow(&self.server)?;
        }
        Ok(())
    }

    /// The replica that `prepare` started.
    fn standby(&self) -> &Service {
        self.standby.get().expect("a replica")
    }

    /// The ports of the prober's connections, as the server sees them.
    ///
    /// # Panics If the prober has no connection within `READY`.
    fn prober(&self) -> Result<Vec<u16>, services::Error> {
        let port = |address: &str| address.rsplit(':').next()?.parse::<u16>().ok();
        let began = Instant::now();
        loop {
            let found = match self.server.kind() {
                Kind::Mongo => {
                    let clients = self.server.mongo()?.clients()?.into_iter();
                    clients.filter(|one| one.app_name.ends_with(" probe")).filter_map(|one| port(&one.addr)).collect()
                }
                Kind::RabbitMq => {
                    let all = self.server.rabbitmq()?.connections()?;
                    let probes = all.iter().filter(|one| one.client_name.ends_with(" probe"));
                    probes.filter_map(|one| port(one.name.split(" -> ").next()?)).collect()
                }
                Kind::ClickHouse => self.proxy.ports(|said| said.windows(10).any(|words| words == b"GET /ping ")),
                Kind::Redis => self.proxy.ports(|said| said.ends_with(b"PING\r\n")),
                Kind::Elastic => panic!("it has tests of its own"),
                // The prober sends no SQL. A user's idle connection ends sooner than this.
                Kind::Postgres => {
                    let rows = self.server.postgres()?.query(
                        "SELECT client_port FROM pg_stat_activity WHERE application_name = 'resource-pool' AND query = '' \
                         AND backend_start < clock_timestamp() - interval '1 s'",
                    )?;
                    rows.lines().filter_map(|port| port.parse().ok()).collect()
                }
                Kind::MySql => self.proxy.ports(is_ping),
                other @ (Kind::Chroma | Kind::Milvus) => panic!("{other} has no load"),
            };
            if !found.is_empty() {
                return Ok(found);
            }
            assert!(began.elapsed() < READY, "{}: the prober has no connection", self.server.kind());
            thread::sleep(GLANCE);
        }
    }

    /// Has the server refuse new connections, resets the prober's, and lets them be made again after that.
    fn without_prober(
        &self,
        refuse: impl Fn(bool) -> Result<(), services::Error>,
        meanwhile: impl FnOnce(),
    ) -> Result<(), services::Error> {
        let prober = self.prober()?;
        refuse(true)?;
        self.proxy.cut_from(&prober);
        meanwhile();
        refuse(false)
    }

    /// Applies the fault, and calls `meanwhile` to look after the load as long as it lasts. Returns when the server
    /// answers again.
    fn suffer(&self, fault: Fault, load: &Load, mut meanwhile: impl FnMut(Duration)) -> Result<(), services::Error> {
        let Target { server, proxy, .. } = self;
        match fault {
            Fault::Kill(down) => {
                // The proxy refuses connects, as the server's own port would.
                proxy.refuse()?;
                server.kill()?;
                load.shared.deaths.fetch_add(1, Ordering::SeqCst);
                meanwhile(down);
                beside(|| server.restart(), meanwhile)?;
                return proxy.open_up();
            }
            Fault::Freeze(down) => {
                server.freeze()?;
                meanwhile(down);
                server.thaw()?;
            }
            Fault::Reset(times) => {
                for _ in 0..times {
                    proxy.cut();
                    meanwhile(Duration::from_millis(300));
                }
            }
            Fault::Collapse(down) => {
                proxy.cut();
                meanwhile(Duration::from_millis(20));
                server.freeze()?;
                meanwhile(down);
                server.thaw()?;
            }
            Fault::BlackHole(down) => {
                proxy.black_hole()?;
                meanwhile(down);
                proxy.open_up()?;
            }
            Fault::Slow(down) => {
                proxy.throttle(1);
                meanwhile(down);
                proxy.throttle(0);
            }
            Fault::Alarm(down) => {
                server.rabbitmq()?.memory_alarm(true)?;
                meanwhile(down);
                server.rabbitmq()?.memory_alarm(false)?;
            }
            Fault::Full(down) if server.kind() == Kind::RabbitMq => {
                self.without_prober(|is_full| server.rabbitmq()?.full(is_full), || meanwhile(down))?;
            }
            Fault::Full(down) if server.kind() == Kind::Postgres => {
                let full = |is_full: bool| server.postgres()?.room_for(is_full.then_some(0));
                self.without_prober(full, || meanwhile(down))?;
            }
            Fault::Full(down) if server.kind() == Kind::MySql => {
                let full = |is_full: bool| server.mysql()?.room_for(is_full.then_some(0));
                self.without_prober(full, || meanwhile(down))?;
            }
            Fault::Full(down) => {
                let prober = self.prober()?;
                // This connection is the only one that still has room.
                let mut admin = server.redis()?.connect(READY)?;
                let before = admin.command(&["CONFIG", "GET", "maxclients"])?;
                admin.command(&["CONFIG", "SET", "maxclients", "1"])?;
                proxy.cut_from(&prober);
                meanwhile(down);
                admin.command(&["CONFIG", "SET", "maxclients", before.lines().last().unwrap_or_default()])?;
            }
            Fault::RightGone(down) => match server.kind() {
                Kind::RabbitMq => {
                    self.without_prober(|is_gone| server.rabbitmq()?.rights(!is_gone), || meanwhile(down))?
                }
                Kind::Postgres => {
                    self.without_prober(|is_gone| server.postgres()?.may_log_in(!is_gone), || meanwhile(down))?;
                }
                Kind::MySql => {
                    self.without_prober(|is_gone| server.mysql()?.may_log_in(!is_gone), || meanwhile(down))?;
                }
                Kind::ClickHouse => {
                    server.clickhouse()?.quota(true)?;
                    while server.clickhouse()?.query("SELECT 1").is_ok() {
                        meanwhile(GLANCE);
                    }
                    meanwhile(down);
                    server.clickhouse()?.quota(false)?;
                }
                _ => {
                    server.redis()?.may_ping(false)?;
                    meanwhile(down);
                    server.redis()?.may_ping(true)?;
                }
            },
            Fault::Loading(down) => beside(|| server.redis()?.reload(down), meanwhile)?,
            Fault::DiskFull(down) => {
                let full = |is_full| match server.kind() {
                    Kind::RabbitMq => server.rabbitmq()?.disk_alarm(is_full),
                    _ => server.redis()?.disk_full(is_full),
                };
                full(true)?;
                meanwhile(down);
                full(false)?;
            }
            Fault::Descriptors(down) => {
                let prober = self.prober()?;
                let limited = NoDescriptors::begin()?;
                proxy.cut_from(&prober);
                meanwhile(down);
                drop(limited);
            }
            Fault::Failover(down) => {
                for (from, to) in [(server, self.standby()), (self.standby(), server)] {
                    from.redis()?.fail_over_to(to)?;
                    proxy.lead_to(to.port());
                    if to.port() != server.port() {
                        meanwhile(down);
                    }
                }
                // It stays a replica. As a master it would take writes on connections that still lead to it.
            }
            Fault::Promotion => {
                load.shared.losses_begin();
                self.standby().redis()?.promote()?;
                meanwhile(Duration::from_millis(300));
                server.kill()?;
                proxy.lead_to(self.standby().port());
                self.is_succeeded.store(true, Ordering::SeqCst);
            }
        }
        self.now().await_ready(READY)
    }
}

/// Does the work on another thread, and looks after the load meanwhile.
fn beside(
    work: impl FnOnce() -> Result<(), services::Error> + Send,
    mut meanwhile: impl FnMut(Duration),
) -> Result<(), services::Error> {
    thread::scope(|scope| {
        let working = thread::Builder::new().name("services-work".into()).spawn_scoped(scope, work).expect("a thread");
        while !working.is_finished() {
            meanwhile(GLANCE);
        }
        working.join().expect("the work")
    })
}

/// One fault, and the load's behaviour under it.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) kind: Kind,
    pub(crate) fault: Fault,
    pub(crate) calls: usize,
    pub(crate) errors: usize,
    /// The errors by which the server itself refused.
    pub(crate) refused: usize,
    /// The errors after which the outcome is unknown.
    pub(crate) unknown: usize,
    pub(crate) longest: Duration,
    /// Connections from before the fault that the pool ended, although the server lived and owed it an answer.
    pub(crate) cut: usize,
    /// The time until the first call failed or the resource was known to be lost. `None` if nobody noticed.
    pub(crate) noticed: Option<Duration>,
    /// The time from the server's first answer until every worker had succeeded.
    pub(crate) resumed: Duration,
}

impl Row {
    pub(crate) const HEAD: &str = "| backend | fault | calls | errors | refused | unknown | longest call | cut by us | noticed after | resumed after |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|---:|";
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { kind, fault, calls, errors, refused, unknown, longest, cut, noticed, resumed } = self;
        let noticed = noticed.map_or_else(|| "–".to_owned(), seconds);
        let (longest, resumed) = (seconds(*longest), seconds(*resumed));
        write!(
            f,
            "| {kind} | {fault} | {calls} | {errors} | {refused} | {unknown} | {longest} | {cut} | {noticed} | {resumed} |"
        )
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

/// Applies the fault to the server under load, and waits until every worker has succeeded again.
///
/// # Panics If that takes too long, or anything else is wrong.
pub(crate) fn strike(load: &Load, target: &Target, fault: Fault) -> Row {
    let shared = &load.shared;
    let began = Instant::now();
    // First every worker has to succeed once.
    while !shared.idle_since(began).is_empty() {
        load.check();
        assert!(began.elapsed() < READY, "{}: not at work: {}", shared.kind, shared.idle_since(began).join("\n"));
        thread::sleep(GLANCE);
    }
    if let Err(error) = target.prepare(fault) {
        panic!("{}: {fault}: {error}", shared.kind);
    }
    shared.take_sum();
    let (generation, before) = (shared.generation(), target.proxy.accepted());
    let cut_before = target.proxy.broken_off().len();
    shared.expect_errors();
    let struck = Instant::now();
    let mut broken = None;
    let meanwhile = |lasts: Duration| {
        let end = Instant::now() + lasts;
        loop {
            load.check();
            if broken.is_none() && shared.state() != State::Ready {
                broken = Some(Instant::now());
            }
            if Instant::now() >= end {
                return;
            }
            thread::sleep(GLANCE.min(end.saturating_duration_since(Instant::now())));
        }
    };
    if let Err(error) = target.suffer(fault, load, meanwhile) {
        panic!("{}: {fault}: {error}", shared.kind);
    }
    let back = Instant::now();
    shared.expect_quiet(back + RESUME);
    loop {
        load.check();
        let idle = shared.idle_since(back);
        if idle.is_empty() {
            break;
        }
        if back.elapsed() > RESUME {
            let state = shared.pool.status();
            panic!("{}: {fault}: not resumed after {RESUME:?}:\n{}\n{state}", shared.kind, idle.join("\n"));
        }
        thread::sleep(GLANCE);
    }
    let resumed = back.elapsed();
    let sum = shared.take_sum();
    let noticed = [broken, sum.first_failure].into_iter().flatten().min();
    let noticed = noticed.map(|at| at.saturating_duration_since(struck));
    let cut = target.proxy.broken_off().iter().skip(cut_before).filter(|number| **number < before).count();
    if fault.is_answered() {
        assert!(cut == 0, "{}: {fault}: {cut} living connections were cut", shared.kind);
        let lost = shared.generation() - generation;
        assert!(lost == 0 || fault == Fault::Promotion, "{}: {fault}: lost {lost} times", shared.kind);
    } else {
        let in_time = noticed.is_none_or(|noticed| noticed < NOTICE);
        assert!(in_time, "{}: {fault}: noticed only after {noticed:?}", shared.kind);
    }
    let super::Sum { calls, errors, refused, unknown, longest, .. } = sum;
    Row { kind: shared.kind, fault, calls, errors, refused, unknown, longest, cut, noticed, resumed }
}
