//! A TCP proxy on the loopback that can be cut, frozen, closed and slowed down. It also records the AMQP methods that
//! pass through it.
//!
//! Tests put a [`Proxy`] between the pool and a server. One thread accepts. Each connection gets a thread that connects
//! to the server, and then two pumps, one for each direction. All share the [`State`], and every wait of theirs ends
//! when the proxy drops or its connection is cut.
//!
//! Invariant: a connection to the server is in `links` until both pumps have ended, so a cut reaches all of them. Only
//! `links` and a link's `said` are ever held together, in this order. The predicates of tests run under `links` and
//! `said` or under `frames`, so they must not call the proxy. All atomics are SeqCst, since a test tool needs no speed.

use crate::amqp::{AmqpFrame, Parser};
use crate::black_hole::fill;
use crate::{Error, Service, port};
use nix::sys::socket::{self, Backlog, listen, setsockopt, sockopt};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The goodbye of a PostgreSQL client, to which the server answers by closing.
const TERMINATE: [u8; 5] = *b"X\0\0\0\x04";
/// The goodbye of a MySQL client, to which the server answers by closing. It is alone in what the client sends.
const QUIT: [u8; 5] = *b"\x01\0\0\0\x01";

/// The limit of one write. It bounds how long a blocked write keeps a pump from seeing that its connection was cut.
const GLANCE: Duration = Duration::from_millis(20);
const BUFFER: usize = 64 * 1024;
/// The number of a client's last bytes that are kept.
const LAST_WORDS: usize = 512;
/// The last frame of an AMQP disconnect, `Connection.CloseOk`.
const CLOSE_OK: [u8; 12] = [1, 0, 0, 0, 0, 0, 4, 0, 10, 0, 51, 0xCE];

/// A proxy in front of one port. Dropping it cuts all its connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    /// The port that new connections are led to.
    target: AtomicU16,
    listener: TcpListener,
    /// Whether the proxy has dropped.
    over: AtomicBool,
    door: Mutex<Door>,
    /// Whether the acceptor has seen that the door is closed, and waits.
    acceptor_waits: AtomicBool,
    /// Notified when `door` or `acceptor_waits` has changed.
    door_moved: Condvar,
    frozen: Mutex<bool>,
    thawed: Condvar,
    /// The limit for each connection and direction; 0 is none.
    bytes_per_second: AtomicU64,
    delay_ms: AtomicU64,
    accepted: AtomicUsize,
    /// The connections that a client ended while the server lived and owed it an answer.
    broken_off: Mutex<Vec<usize>>,
    links: Mutex<Vec<Arc<Link>>>,
    records: AtomicBool,
    frames: Mutex<Vec<AmqpFrame>>,
    clients: Mutex<Vec<Client>>,
}

/// The actions of a client on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The proxy's number for the connection.
    pub connection: usize,
    /// The number of bytes that it has sent.
    pub bytes: usize,
    /// How the client ended the connection. `None` if it did not end it before the proxy.
    pub end: Option<End>,
}

/// How a client ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// In order. All bytes that were sent arrive.
    Fin,
    /// By a reset.
    Reset,
}

/// The treatment of new connections.
#[derive(Debug)]
enum Door {
    /// They are accepted, except these fillers of the queue.
    Open { fillers: Vec<SocketAddr> },
    /// They are refused, as if nobody listened.
    Shut,
    /// They get no answer, because the queue is full of these.
    Silent { fillers: Vec<TcpStream> },
}

/// One connection, with both its sides.
#[derive(Debug)]
struct Link {
    number: usize,
    client: TcpStream,
    server: TcpStream,
    is_amqp: AtomicBool,
    is_cut: AtomicBool,
    /// Whether the server has ended its direction, or the client has disconnected in order.
    is_ended: AtomicBool,
    /// Whether the client has sent bytes since the server last did.
    is_owed: AtomicBool,
    /// The last bytes of the client.
    said: Mutex<Vec<u8>>,
    /// The number of pumps that run.
    pumps: AtomicUsize,
}

impl Proxy {
    /// Listens on a free port and forwards to `target_port` on this machine.
    ///
    /// # Errors
    /// If no port is free, or no thread can be started.
    pub fn start(target_port: u16) -> Result<Proxy, Error> {
        let start = || {
            // A port that was bound by its number stays bound while nobody listens.
            let port = port::free().map_err(io::Error::other)?;
            let state = Arc::new(State {
                target: AtomicU16::new(target_port),
                listener: TcpListener::bind(("127.0.0.1", port))?,
                over: AtomicBool::new(false),
                door: Mutex::new(Door::Open { fillers: Vec::new() }),
                acceptor_waits: AtomicBool::new(false),
                door_moved: Condvar::new(),
                frozen: Mutex::new(false),
                thawed: Condvar::new(),
                bytes_per_second: AtomicU64::new(0),
                delay_ms: AtomicU64::new(0),
                accepted: AtomicUsize::new(0),
                broken_off: Mutex::default(),
                links: Mutex::new(Vec::new()),
                records: AtomicBool::new(true),
                frames: Mutex::new(Vec::new()),
                clients: Mutex::new(Vec::new()),
            });
            let acceptor = Arc::clone(&state);
            thread::Builder::new().name("proxy-accept".into()).spawn(move || acceptor.accept())?;
            Ok(Proxy { port, state })
        };
        start().map_err(Error::io("starting a proxy"))
    }

    /// Records no AMQP methods, for a proxy that lives long.
    pub fn unrecorded(self) -> Proxy {
        self.state.records.store(false, Ordering::SeqCst);
        self
    }

    /// The port that the proxy listens on, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The service's URL, led through this proxy. (A MongoDB client that uses the replica set would bypass it; use
    /// `directConnection=true` instead of `replicaSet`.)
    pub fn url(&self, service: &Service) -> String {
        let (from, to) = (format!("@{}:{}", service.host(), service.port()), format!("@127.0.0.1:{}", self.port));
        service.url().replacen(&from, &to, 1)
    }

    /// The number of connections that were ever accepted. An [`AmqpFrame::connection`] is one of these, from 0.
    pub fn accepted(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// The number of open connections.
    pub fn open(&self) -> usize {
        lock(&self.state.links).len()
    }

    /// The numbers of the connections that their client ended while the server lived and owed it an answer.
    pub fn broken_off(&self) -> Vec<usize> {
        lock(&self.state.broken_off).clone()
    }

    /// The ports from which the server sees some connections come: those whose client's last bytes satisfy `is_it`.
    pub fn ports(&self, is_it: impl Fn(&[u8]) -> bool) -> Vec<u16> {
        let links = lock(&self.state.links);
        links.iter().filter(|link| is_it(&lock(&link.said))).filter_map(|link| link.port()).collect()
    }

    /// Resets every open connection, towards both sides.
    pub fn cut(&self) {
        self.cut_those(|_| true);
    }

    /// Resets the open connections that the server sees coming from these ports.
    pub fn cut_from(&self, ports: &[u16]) {
        self.cut_those(|link| link.port().is_some_and(|port| ports.contains(&port)));
    }

    fn cut_those(&self, those: impl Fn(&Link) -> bool) {
        for link in lock(&self.state.links).iter().filter(|link| those(link)) {
            link.cut();
        }
        // The lock is taken, so that a pump that is about to wait cannot miss this notification.
        let _frozen = lock(&self.state.frozen);
        self.state.thawed.notify_all();
    }

    /// Leads new connections to another port, like an address that moves in a failover. Open connections stay where
    /// they are.
    pub fn lead_to(&self, target_port: u16) {
        self.state.target.store(target_port, Ordering::SeqCst);
    }

    /// Stops forwarding. Connections stay open and connects succeed, but no byte passes.
    pub fn freeze(&self) {
        *lock(&self.state.frozen) = true;
    }

    /// Becomes a black hole, as behind a dead router. No byte passes either way, and connects get no answer.
    /// [`open_up`](Proxy::open_up) ends it, and the held bytes then arrive, as by retransmission.
    ///
    /// # Errors
    /// If the queue of new connections does not fill.
    pub fn black_hole(&self) -> Result<(), Error> {
        self.freeze();
        let fillers = || {
            self.state.close_door()?;
            listen(&self.state.listener, Backlog::new(1)?)?;
            fill(&self.state.listener)
        };
        let fillers = fillers().map_err(Error::io("making a proxy a black hole"))?;
        *lock(&self.state.door) = Door::Silent { fillers };
        Ok(())
    }

    /// Refuses new connections, as if no process listened.
    ///
    /// # Errors
    /// If the system refuses that.
    pub fn refuse(&self) -> Result<(), Error> {
        self.state.close_door().map_err(Error::io("closing a proxy"))
    }

    /// Accepts new connections again, and forwards.
    ///
    /// # Errors
    /// If the system refuses that.
    pub fn open_up(&self) -> Result<(), Error> {
        const QUEUE: i32 = 128;
        let mut door = lock(&self.state.door);
        let open = || listen(&self.state.listener, Backlog::new(QUEUE)?);
        open().map_err(io::Error::from).map_err(Error::io("opening a proxy"))?;
        let fillers = match &*door {
            Door::Silent { fillers } => fillers.iter().flat_map(TcpStream::local_addr).collect(),
            _ => Vec::new(),
        };
        *door = Door::Open { fillers };
        drop(door);
        self.state.door_moved.notify_all();
        self.thaw();
        Ok(())
    }

    /// Goes on forwarding, including the held bytes.
    pub fn thaw(&self) {
        *lock(&self.state.frozen) = false;
        self.state.thawed.notify_all();
    }

    /// Forwards at most so many bytes per second, per connection and direction; 0 takes the limit off.
    pub fn throttle(&self, bytes_per_second: u64) {
        self.state.bytes_per_second.store(bytes_per_second, Ordering::SeqCst);
    }

    /// Forwards so many milliseconds later, in each direction. A round trip takes at least twice as long.
    pub fn delay(&self, milliseconds: u64) {
        self.state.delay_ms.store(milliseconds, Ordering::SeqCst);
    }

    /// The actions of each client so far, in the order in which they came.
    pub fn clients(&self) -> Vec<Client> {
        lock(&self.state.clients).clone()
    }

    /// The AMQP methods that passed, in their order.
    pub fn frames(&self) -> Vec<AmqpFrame> {
        lock(&self.state.frames).clone()
    }

    /// Waits until a frame satisfies `is_it`. Returns `None` if none does within `patience`.
    pub fn await_frame(&self, patience: Duration, is_it: impl Fn(&AmqpFrame) -> bool) -> Option<AmqpFrame> {
        let end = Instant::now() + patience;
        loop {
            let found = lock(&self.state.frames).iter().find(|frame| is_it(frame)).cloned();
            if found.is_some() || Instant::now() >= end {
                return found;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        self.thaw();
        self.cut();
        // This wakes the acceptor, which then sees that the proxy has dropped.
        let _ = self.state.close_door();
        self.state.door_moved.notify_all();
    }
}

impl State {
    fn accept(self: &Arc<State>) {
        while !self.is_over() {
            let Ok((client, address)) = self.listener.accept() else {
                let closed = |door: &mut Door| !matches!(door, Door::Open { .. }) && !self.is_over();
                let door = lock(&self.door);
                self.acceptor_waits.store(true, Ordering::SeqCst);
                self.door_moved.notify_all();
                let door = self.door_moved.wait_while(door, closed);
                self.acceptor_waits.store(false, Ordering::SeqCst);
                drop(door);
                continue;
            };
            if let Door::Open { fillers } = &mut *lock(&self.door)
                && let Some(filler) = fillers.iter().position(|filler| *filler == address)
            {
                fillers.swap_remove(filler);
                continue;
            }
            let number = self.accepted.fetch_add(1, Ordering::SeqCst);
            let state = Arc::clone(self);
            let _ = thread::Builder::new().name("proxy-connect".into()).spawn(move || state.connect(number, client));
        }
    }

    /// Stops listening, and waits until the acceptor has seen it.
    fn close_door(&self) -> io::Result<()> {
        let mut door = lock(&self.door);
        if matches!(*door, Door::Open { .. }) {
            *door = Door::Shut;
            socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Read)?;
            // If somebody listened again before the acceptor had looked, the acceptor would not notice the pause.
            let accepts = |_: &mut Door| !self.acceptor_waits.load(Ordering::SeqCst) && !self.is_over();
            drop(self.door_moved.wait_while(door, accepts));
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn connect(self: &Arc<State>, number: usize, client: TcpStream) {
        let is_cut = AtomicBool::new(false);
        lock(&self.clients).push(Client { connection: number, bytes: 0, end: None });
        self.wait_while_frozen(&is_cut);
        let Ok(server) = TcpStream::connect(("127.0.0.1", self.target.load(Ordering::SeqCst))) else {
            reset_on_close(&client);
            return;
        };
        for stream in [&client, &server] {
            let _ = stream.set_nodelay(true);
            let _ = stream.set_write_timeout(Some(GLANCE));
        }
        let link = Arc::new(Link {
            number,
            client,
            server,
            is_amqp: AtomicBool::new(false),
            is_cut,
            is_ended: AtomicBool::new(false),
            is_owed: AtomicBool::new(false),
            said: Mutex::default(),
            pumps: AtomicUsize::new(2),
        });
        lock(&self.links).push(Arc::clone(&link));
        if self.is_over() {
            link.cut();
        }
        for from_client in [true, false] {
            let (state, link) = (Arc::clone(self), Arc::clone(&link));
            let pump = move || state.pump(&link, from_client);
            if thread::Builder::new().name("proxy-pump".into()).spawn(pump).is_err() {
                return self.forget(number);
            }
        }
    }

    /// Forwards one direction until it ends, and forgets the link if the other direction has ended too.
    fn pump(&self, link: &Link, from_client: bool) {
        let (from, to) = if from_client { (&link.client, &link.server) } else { (&link.server, &link.client) };
        match self.forward(link, from_client, from, to) {
            Ok(()) if !link.is_cut.load(Ordering::SeqCst) => drop(to.shutdown(Shutdown::Write)),
            _ => link.cut(),
        }
        if link.pumps.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.forget(link.number);
        }
    }

    fn forward(&self, link: &Link, from_client: bool, mut from: &TcpStream, to: &TcpStream) -> io::Result<()> {
        let mut parser = Parser::new(link.number, from_client);
        let mut buffer = vec![0; BUFFER];
        loop {
            let rate = self.bytes_per_second.load(Ordering::SeqCst);
            let size = if rate == 0 { BUFFER } else { usize::try_from(rate / 50).unwrap_or(BUFFER).clamp(1, BUFFER) };
            let read = from.read(&mut buffer[..size]);
            if from_client && !link.is_cut.load(Ordering::SeqCst) {
                self.note(link.number, |client| match read {
                    Ok(0) => client.end = Some(End::Fin),
                    Ok(count) => client.bytes += count,
                    Err(_) => client.end = Some(End::Reset),
                });
                if matches!(read, Ok(0) | Err(_)) && link.is_broken_off() {
                    lock(&self.broken_off).push(link.number);
                }
            }
            let count = read?;
            link.heard(from_client, &buffer[..count]);
            thread::sleep(Duration::from_millis(self.delay_ms.load(Ordering::SeqCst)));
            self.wait_while_frozen(&link.is_cut);
            // After a cut, bytes that the freeze held back must not reach the server, which would answer them.
            if link.is_cut.load(Ordering::SeqCst) {
                return Ok(());
            }
            let bytes = &buffer[..count];
            if from_client && bytes.starts_with(b"AMQP") && self.records.load(Ordering::SeqCst) {
                link.is_amqp.store(true, Ordering::SeqCst);
            }
            if link.is_amqp.load(Ordering::SeqCst) {
                // The frames are recorded before they are forwarded, so a test that sees their effect finds them.
                lock(&self.frames).extend(parser.feed(bytes));
            }
            if count == 0 {
                return Ok(());
            }
            link.write_all(to, bytes)?;
            if rate > 0 {
                // The wait ends as soon as the limit is off, so that later bytes, or the client's end, are seen at
                // once.
                let end = Instant::now() + Duration::from_secs_f64(count as f64 / rate as f64);
                while Instant::now() < end && self.bytes_per_second.load(Ordering::SeqCst) == rate {
                    thread::sleep(GLANCE.min(end.saturating_duration_since(Instant::now())));
                }
            }
        }
    }

    fn wait_while_frozen(&self, is_cut: &AtomicBool) {
        let goes_on = || self.is_over() || is_cut.load(Ordering::SeqCst);
        let frozen = lock(&self.frozen);
        drop(self.thawed.wait_while(frozen, |frozen| *frozen && !goes_on()));
    }

    fn note(&self, number: usize, what: impl FnOnce(&mut Client)) {
        if let Some(client) = lock(&self.clients).iter_mut().find(|client| client.connection == number) {
            what(client);
        }
    }

    fn forget(&self, number: usize) {
        lock(&self.links).retain(|link| link.number != number);
    }
}

impl Link {
    /// The port from which the server sees the connection come.
    fn port(&self) -> Option<u16> {
        self.server.local_addr().ok().map(|address| address.port())
    }

    /// Records bytes from one side. No bytes means that the side has ended its direction.
    fn heard(&self, from_client: bool, bytes: &[u8]) {
        if from_client {
            let mut said = lock(&self.said);
            said.extend(&bytes[bytes.len().saturating_sub(LAST_WORDS)..]);
            let old = said.len().saturating_sub(LAST_WORDS);
            said.drain(..old);
        }
        self.is_owed.store(from_client, Ordering::SeqCst);
        let is_goodbye = bytes.ends_with(&TERMINATE) || bytes == QUIT;
        if bytes.is_empty() || bytes.ends_with(&CLOSE_OK) || from_client && is_goodbye {
            self.is_ended.store(true, Ordering::SeqCst);
        }
    }

    /// Whether a client that ends the connection now gives up a server that lives.
    fn is_broken_off(&self) -> bool {
        self.is_owed.load(Ordering::SeqCst) && !self.is_ended.load(Ordering::SeqCst)
    }

    fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        for stream in [&self.client, &self.server] {
            reset_on_close(stream);
            // This wakes the pump that reads here, and sends nothing to the peer. The last pump closes the socket.
            let _ = stream.shutdown(Shutdown::Read);
        }
    }

    fn write_all(&self, mut to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match to.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !self.is_cut.load(Ordering::SeqCst) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Makes the close of this socket send a reset and drop unsent bytes.
fn reset_on_close(stream: &TcpStream) {
    let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = setsockopt(stream, sockopt::Linger, &at_once);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
