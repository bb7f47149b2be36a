//! Streams that threads read from and write to, plain or under TLS, with one deadline for all calls until the next one
//! is set.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, Instant};

#[cfg(feature = "tls")]
use rustls::{ClientConnection, StreamOwned};
use socket2::SockRef;

use crate::net::kill_switch::{Guarded, KillSwitch};
use crate::net::tls::stream::{Client, Tls, tune};
use crate::net::unix_socket;

/// A stream that threads read from and write to, plain or secured, under a [`KillSwitch`].
pub struct Blocking(Streams);

enum Streams {
    Plain(Timed),
    #[cfg(feature = "tls")]
    Secured(Box<Secured>),
}

/// A socket with a deadline for all that is asked of it.
struct Timed {
    socket: TcpStream,
    end: Option<Instant>,
}

/// A stream under TLS. It explains errors before the first answer, as the async one does.
#[cfg(feature = "tls")]
struct Secured {
    stream: StreamOwned<ClientConnection, Timed>,
    client: Client,
    heard: bool,
}

impl Tls {
    /// Opens a connection as [`dial`](Tls::dial) does, but for threads. `end` is the deadline of that and of the
    /// stream, until the stream gets [another one](Blocking::end_by). Only the DNS may take longer. The stream is under
    /// the switch while the [`Guarded`] lives.
    ///
    /// # Errors
    /// Those of [`dial`](Tls::dial), and one of the kind [`TimedOut`](io::ErrorKind::TimedOut).
    pub fn dial_blocking(
        &self,
        host: &str,
        port: u16,
        keepalive: Duration,
        switch: &KillSwitch,
        end: Instant,
    ) -> io::Result<(Blocking, Guarded)> {
        let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        let mut addresses = (host, port).to_socket_addrs()?;
        let opened = addresses.find_map(|address| {
            let opened = left(end).and_then(|left| TcpStream::connect_timeout(&address, left));
            opened.map_err(|error| failed = error).ok()
        });
        let socket = opened.ok_or(failed)?;
        tune(SockRef::from(&socket), keepalive)?;
        self.guarded(socket, switch, end)
    }

    /// Opens a connection as [`dial_socket`](Tls::dial_socket) does, but for threads. `end` is the deadline of the
    /// stream, until the stream gets [another one](Blocking::end_by). The stream is under the switch while the
    /// [`Guarded`] lives.
    ///
    /// # Errors
    /// Those of [`dial_socket`](Tls::dial_socket), and one of the kind [`TimedOut`](io::ErrorKind::TimedOut).
    pub fn dial_socket_blocking(
        &self,
        path: &Path,
        switch: &KillSwitch,
        end: Instant,
    ) -> io::Result<(Blocking, Guarded)> {
        let socket = unix_socket::connect(path)?;
        socket.set_nonblocking(false)?;
        self.guarded(socket, switch, end)
    }

    /// Puts an open socket under the switch, and secures it.
    fn guarded(&self, socket: TcpStream, switch: &KillSwitch, end: Instant) -> io::Result<(Blocking, Guarded)> {
        let guarded = switch.guard_blocking(&socket)?;
        let timed = Timed { socket, end: Some(end) };
        let stream = match &self.0 {
            None => Blocking(Streams::Plain(timed)),
            Some(client) => client.current()?.secure_blocking(timed)?,
        };
        Ok((stream, guarded))
    }
}

fn left(end: Instant) -> io::Result<Duration> {
    let left = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
    left.ok_or_else(too_late)
}

fn too_late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer within the limit")
}

#[cfg(not(feature = "tls"))]
impl Client {
    fn current(&self) -> io::Result<&Self> {
        Ok(self)
    }

    fn secure_blocking(&self, _: Timed) -> io::Result<Blocking> {
        match *self {}
    }
}

impl Blocking {
    /// Sets the deadline for all reads and writes from now on. Without one they may take for ever.
    ///
    /// # Errors
    /// Those of the socket. Its limits are taken off if there is no deadline.
    pub fn end_by(&mut self, end: Option<Instant>) -> io::Result<()> {
        match &mut self.0 {
            Streams::Plain(timed) => timed.end_by(end),
            #[cfg(feature = "tls")]
            Streams::Secured(secured) => secured.stream.sock.end_by(end),
        }
    }
}

impl Timed {
    fn end_by(&mut self, end: Option<Instant>) -> io::Result<()> {
        self.end = end;
        if end.is_none() {
            self.socket.set_read_timeout(None)?;
            self.socket.set_write_timeout(None)?;
        }
        Ok(())
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(end) = self.end {
            self.socket.set_read_timeout(Some(left(end)?))?;
        }
        self.socket.read(buffer).map_err(late)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(end) = self.end {
            self.socket.set_write_timeout(Some(left(end)?))?;
        }
        self.socket.write(bytes).map_err(late)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

/// Turns a socket's timeout into [`too_late`]. On Unix it reads as if nobody had wanted to wait.
fn late(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { too_late() } else { error }
}

impl fmt::Debug for Blocking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tuple = f.debug_tuple("Blocking");
        match &self.0 {
            Streams::Plain(timed) => tuple.field(&timed.socket),
            #[cfg(feature = "tls")]
            Streams::Secured(secured) => tuple.field(&secured.stream.sock.socket),
        };
        tuple.finish()
    }
}

impl Read for Blocking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Streams::Plain(stream) => stream.read(buffer),
            #[cfg(feature = "tls")]
            Streams::Secured(secured) => secured.read(buffer),
        }
    }
}

impl Write for Blocking {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Streams::Plain(stream) => stream.write(bytes),
            #[cfg(feature = "tls")]
            Streams::Secured(secured) => secured.stream.write(bytes).map_err(|error| secured.explained(error)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Streams::Plain(stream) => stream.flush(),
            #[cfg(feature = "tls")]
            Streams::Secured(secured) => secured.stream.flush().map_err(|error| secured.explained(error)),
        }
    }
}

#[cfg(feature = "tls")]
impl Client {
    fn secure_blocking(&self, mut stream: Timed) -> io::Result<Blocking> {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let mut session = ClientConnection::new(self.config.clone(), self.name.clone()).map_err(invalid)?;
        while session.is_handshaking() {
            session.complete_io(&mut stream).map_err(|error| self.explained(error, true))?;
        }
        let stream = StreamOwned::new(session, stream);
        Ok(Blocking(Streams::Secured(Box::new(Secured { stream, client: self.clone(), heard: false }))))
    }
}

#[cfg(feature = "tls")]
impl Secured {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.heard || buffer.is_empty() {
            return self.stream.read(buffer);
        }
        match self.stream.read(buffer) {
            Ok(0) => {
                let ended = self.client.explained(io::ErrorKind::UnexpectedEof.into(), false);
                if ended.get_ref().is_some() { Err(ended) } else { Ok(0) }
            }
            Ok(count) => {
                self.heard = true;
                Ok(count)
            }
            Err(error) => Err(self.explained(error)),
        }
    }

    /// The error, with the remedy as long as the server has sent nothing.
    fn explained(&self, error: io::Error) -> io::Error {
        if self.heard { error } else { self.client.explained(error, false) }
    }
}

#[cfg(feature = "tls")]
impl Drop for Secured {
    fn drop(&mut self) {
        let StreamOwned { conn, sock } = &mut self.stream;
        conn.send_close_notify();
        if sock.socket.set_nonblocking(true).is_ok() {
            // The write fails if nobody listens any more, or the socket is full.
            let _ = conn.write_tls(&mut sock.socket);
        }
    }
}
