//! A TCP proxy on the loopback that can be cut, frozen, closed and slowed down, and that writes down what AMQP says through it.

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

/// How long a blocked write may keep a pump from seeing that its connection was cut.
const GLANCE: Duration = Duration::from_millis(20);
const BUFFER: usize = 64 * 1024;
/// How many of a client's last bytes are kept.
const LAST_WORDS: usize = 512;
/// The frame with which AMQP's goodbye ends.
const CLOSE_OK: [u8; 12] = [1, 0, 0, 0, 0, 0, 4, 0, 10, 0, 51, 0xCE];

/// A proxy in front of one port. Dropping it cuts all its connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    target: AtomicU16,
    listener: TcpListener,
    over: AtomicBool,
    door: Mutex<Door>,
    /// Whether the acceptor has seen that the door is closed, and waits.
    acceptor_waits: AtomicBool,
    /// Told whenever one of these two has changed.
    door_moved: Condvar,
    frozen: Mutex<bool>,
    thawed: Condvar,
    bytes_per_second: AtomicU64,
    delay_ms: AtomicU64,
    accepted: AtomicUsize,
    /// Connections that a client ended while it was owed an answer and the server lived.
    broken_off: Mutex<Vec<usize>>,
    links: Mutex<Vec<Arc<Link>>>,
    records: AtomicBool,
    frames: Mutex<Vec<AmqpFrame>>,
    clients: Mutex<Vec<Client>>,
}

/// What a client has done on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The proxy's number for the connection.
    pub connection: usize,
    /// How many bytes it has sent.
    pub bytes: usize,
    /// How it ended the connection, if it did before the proxy.
    pub end: Option<End>,
}

/// How a client ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// In order: all that was sent arrives.
    Fin,
    /// By a reset.
    Reset,
}

/// What becomes of a new connection.
#[derive(Debug)]
enum Door {
    /// It is accepted, except these, which have filled the queue.
    Open { fillers: Vec<SocketAddr> },
    /// It is refused, as where nobody listens.
    Shut,
    /// Nothing answers it, as the queue is full of these.
    Silent { fillers: Vec<TcpStream> },
}

/// One connection, both sides of it.
#[derive(Debug)]
struct Link {
    number: usize,
    client: TcpStream,
    server: TcpStream,
    is_amqp: AtomicBool,
    is_cut: AtomicBool,
    /// Whether the server has ended its direction, or the client has said its goodbye.
    is_ended: AtomicBool,
    /// Whether the client has spoken since the server last did.
    is_owed: AtomicBool,
    /// The last words of the client.
    said: Mutex<Vec<u8>>,
    pumps: AtomicUsize,
}

impl Proxy {
    /// Listens on a free port and forwards to `target_port` on this machine.
    ///
    /// # Errors
    /// If no port or thread can be had.
    pub fn start(target_port: u16) -> Result<Proxy, Error> {
        let start = || {
            // A port of our own choice stays bound while nobody listens.
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

    /// Writes nothing down, for a long life.
    pub fn unrecorded(self) -> Proxy {
        self.state.records.store(false, Ordering::SeqCst);
        self
    }

    /// The port it listens on, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The service's URL, leading through this proxy. (A MongoDB client that takes part in the replica set finds its way round it;
    /// that needs `directConnection=true` instead of `replicaSet`.)
    pub fn url(&self, service: &Service) -> String {
        let (from, to) = (format!("@{}:{}", service.host(), service.port()), format!("@127.0.0.1:{}", self.port));
        service.url().replacen(&from, &to, 1)
    }

    /// How many connections were ever accepted. Each [`AmqpFrame::connection`] is one of these, from 0.
    pub fn accepted(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        lock(&self.state.links).len()
    }

    /// The numbers of those connections that their client ended while the server lived and owed it an answer.
    pub fn broken_off(&self) -> Vec<usize> {
        lock(&self.state.broken_off).clone()
    }

    /// The ports from which the server sees those connections come on which the last bytes that the client sent are like this.
    pub fn ports(&self, is_it: impl Fn(&[u8]) -> bool) -> Vec<u16> {
        let links = lock(&self.state.links);
        links.iter().filter(|link| is_it(&lock(&link.said))).filter_map(|link| link.port()).collect()
    }

    /// Resets every open connection, towards both sides.
    pub fn cut(&self) {
        self.cut_those(|_| true);
    }

    /// Resets those open connections that the server sees coming from these ports.
    pub fn cut_from(&self, ports: &[u16]) {
        self.cut_those(|link| link.port().is_some_and(|port| ports.contains(&port)));
    }

    fn cut_those(&self, those: impl Fn(&Link) -> bool) {
        for link in lock(&self.state.links).iter().filter(|link| those(link)) {
            link.cut();
        }
        // Under the lock, lest a pump that has just found itself frozen misses it.
        let _frozen = lock(&self.state.frozen);
        self.state.thawed.notify_all();
    }

    /// Leads new connections to another port, as an address that moves in a failover. Open ones stay where they are.
    pub fn lead_to(&self, target_port: u16) {
        self.state.target.store(target_port, Ordering::SeqCst);
    }

    /// Stops forwarding: connections stay open, connects succeed, nothing comes through.
    pub fn freeze(&self) {
        *lock(&self.state.frozen) = true;
    }

    /// A black hole, as behind a dead router: nothing comes through either way, connects get no answer. [`open_up`](Proxy::open_up)
    /// ends it, and then what was held up arrives, as by retransmission.
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

    /// Refuses new connections, as where no process listens.
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

    /// Goes on forwarding, what was held up included.
    pub fn thaw(&self) {
        *lock(&self.state.frozen) = false;
        self.state.thawed.notify_all();
    }

    /// Forwards at most so many bytes per second, per connection and direction; 0 takes the limit off.
    pub fn throttle(&self, bytes_per_second: u64) {
        self.state.bytes_per_second.store(bytes_per_second, Ordering::SeqCst);
    }

    /// Forwards so many milliseconds later, in each direction: a round trip takes at least twice as long.
    pub fn delay(&self, milliseconds: u64) {
        self.state.delay_ms.store(milliseconds, Ordering::SeqCst);
    }

    /// What each client has done so far, in the order in which they came.
    pub fn clients(&self) -> Vec<Client> {
        lock(&self.state.clients).clone()
    }

    /// The AMQP methods that came by, in the order in which they did.
    pub fn frames(&self) -> Vec<AmqpFrame> {
        lock(&self.state.frames).clone()
    }

    /// Waits until a frame like this has come by; none if it does not within `patience`.
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
        // Wakes the acceptor, which then sees that it is over.
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

    /// Nobody listens any more, and whoever accepts finds that out.
    fn close_door(&self) -> io::Result<()> {
        let mut door = lock(&self.door);
        if matches!(*door, Door::Open { .. }) {
            *door = Door::Shut;
            socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Read)?;
            // It would not notice if somebody listened again before it has looked.
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

    /// Forwards one direction until it ends, and closes the link when the other one has ended too.
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
            // The server would answer bytes that the freeze held back before the other direction ends.
            if link.is_cut.load(Ordering::SeqCst) {
                return Ok(());
            }
            let bytes = &buffer[..count];
            if from_client && bytes.starts_with(b"AMQP") && self.records.load(Ordering::SeqCst) {
                link.is_amqp.store(true, Ordering::SeqCst);
            }
            if link.is_amqp.load(Ordering::SeqCst) {
                // Before they go on, so that whoever sees their effect finds them written down.
                lock(&self.frames).extend(parser.feed(bytes));
            }
            if count == 0 {
                return Ok(());
            }
            link.write_all(to, bytes)?;
            if rate > 0 {
                // Once the limit is off, what came meanwhile is seen at once, be it the client's end.
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
    /// The port from which the server sees it come.
    fn port(&self) -> Option<u16> {
        self.server.local_addr().ok().map(|address| address.port())
    }

    /// One side has said this; nothing, if it has ended its direction.
    fn heard(&self, from_client: bool, bytes: &[u8]) {
        if from_client {
            let mut said = lock(&self.said);
            said.extend(&bytes[bytes.len().saturating_sub(LAST_WORDS)..]);
            let old = said.len().saturating_sub(LAST_WORDS);
            said.drain(..old);
        }
        self.is_owed.store(from_client, Ordering::SeqCst);
        if bytes.is_empty() || bytes.ends_with(&CLOSE_OK) {
            self.is_ended.store(true, Ordering::SeqCst);
        }
    }

    /// Whether an end that comes now is that of a client which gives up a server that lives.
    fn is_broken_off(&self) -> bool {
        self.is_owed.load(Ordering::SeqCst) && !self.is_ended.load(Ordering::SeqCst)
    }

    fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        for stream in [&self.client, &self.server] {
            reset_on_close(stream);
            // Wakes the pump that reads here, without a word to the peer; the last pump to go closes.
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

/// Closing this socket sends a reset and drops what was not sent yet.
fn reset_on_close(stream: &TcpStream) {
    let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = setsockopt(stream, sockopt::Linger, &at_once);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
