//! Faults, and what a load makes of them.

use std::fmt;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use resource_pool::State;
use services::{Kind, Proxy, Service};

use super::{Load, NOTICE};

/// Work goes on within this, once the server is back.
pub(crate) const RESUME: Duration = Duration::from_secs(5);
/// A server that was frozen, or whose wire was, answers within this, and so does every worker before the fault.
const READY: Duration = Duration::from_secs(30);
const GLANCE: Duration = Duration::from_millis(5);

/// What is done to a server or to the way there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL, and a restart after so long.
    Kill(Duration),
    /// SIGSTOP for so long.
    Freeze(Duration),
    /// Every connection is reset so many times, a moment apart.
    Reset(u32),
    /// Every connection is reset, and while they come back SIGSTOP for so long.
    Collapse(Duration),
    /// Nothing comes through either way, and connects get no answer.
    BlackHole(Duration),
    /// One byte per second, either way, on each connection.
    Slow(Duration),
    /// RabbitMQ is short of memory, and takes no messages.
    Alarm(Duration),
}

impl Fault {
    pub(crate) fn fits(self, kind: Kind) -> bool {
        !matches!(self, Fault::Alarm(_)) || kind == Kind::RabbitMq
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
        }
    }
}

/// A server, and the proxy through which it is reached.
pub(crate) struct Target {
    pub(crate) server: Service,
    pub(crate) proxy: Proxy,
}

impl Target {
    pub(crate) fn start(kind: Kind) -> Target {
        let server = Service::start(kind).expect("a server");
        let proxy = Proxy::start(server.port()).expect("a proxy").unrecorded();
        Target { server, proxy }
    }

    pub(crate) fn url(&self) -> String {
        self.proxy.url(&self.server)
    }

    /// Does it, looking after the load for as long as it lasts. Returns when the server answers again.
    fn suffer(&self, fault: Fault, load: &Load, mut meanwhile: impl FnMut(Duration)) -> Result<(), services::Error> {
        let Target { server, proxy } = self;
        match fault {
            Fault::Kill(down) => {
                // Connects are refused, as they would be without the proxy.
                proxy.refuse()?;
                server.kill()?;
                load.shared.deaths.fetch_add(1, Ordering::SeqCst);
                meanwhile(down);
                thread::scope(|scope| {
                    let restarting = scope.spawn(|| server.restart());
                    while !restarting.is_finished() {
                        meanwhile(GLANCE);
                    }
                    restarting.join().expect("a restart")
                })?;
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
        }
        server.await_ready(READY)
    }
}

/// One fault, and what the load made of it.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) kind: Kind,
    pub(crate) fault: Fault,
    pub(crate) calls: usize,
    pub(crate) errors: usize,
    pub(crate) unknown: usize,
    pub(crate) longest: Duration,
    /// Until the first call failed or the resource was known to be lost; none if nobody noticed.
    pub(crate) noticed: Option<Duration>,
    /// From the moment in which the server answered again until every worker had succeeded.
    pub(crate) resumed: Duration,
}

impl Row {
    pub(crate) const HEAD: &str = "| backend | fault | calls | errors | unknown | longest call | noticed after | resumed after |\n\
         |---|---|---:|---:|---:|---:|---:|---:|";
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { kind, fault, calls, errors, unknown, longest, noticed, resumed } = self;
        let noticed = noticed.map_or_else(|| "–".to_owned(), seconds);
        let (longest, resumed) = (seconds(*longest), seconds(*resumed));
        write!(f, "| {kind} | {fault} | {calls} | {errors} | {unknown} | {longest} | {noticed} | {resumed} |")
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

/// Does this to the server under load, and waits until every worker has succeeded again.
///
/// # Panics
/// If that takes too long, or anything else is wrong.
pub(crate) fn strike(load: &Load, target: &Target, fault: Fault) -> Row {
    let shared = &load.shared;
    let began = Instant::now();
    // Every worker is at work.
    while !shared.idle_since(began).is_empty() {
        load.check();
        assert!(began.elapsed() < READY, "{}: not at work: {}", shared.kind, shared.idle_since(began).join("\n"));
        thread::sleep(GLANCE);
    }
    shared.take_sum();
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
    // A broker short of memory is not lost: calls wait for it, as long as each may take.
    let limit = if matches!(fault, Fault::Alarm(_)) { shared.deadline } else { NOTICE };
    assert!(noticed.is_none_or(|noticed| noticed < limit), "{}: {fault}: noticed only after {noticed:?}", shared.kind);
    let super::Sum { calls, errors, unknown, longest, .. } = sum;
    Row { kind: shared.kind, fault, calls, errors, unknown, longest, noticed, resumed }
}
