//! Streams that are secured or plain, over sockets that the kill switch cuts.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

#[cfg(feature = "tls")]
use super::client::Client;
use super::{TlsOptions, or_wanted};
use crate::base::error::{Error, Failure};
use crate::net::kill_switch::{KillSwitch, Killable};

impl TlsOptions {
    /// Takes in what a URL's scheme says, be it the plain one or the other.
    pub(crate) fn agree(
        tls: &mut Option<Self>,
        key: &str,
        scheme: &str,
        [plain, secure]: [&str; 2],
    ) -> Result<(), Error> {
        if scheme == secure {
            tls.get_or_insert_default();
        } else if tls.is_some() {
            return Err(Error::config(
                key,
                format!("is a plain {plain}://, but there are options for TLS; use {secure}://"),
            ));
        }
        Ok(())
    }
}

/// How a resource's streams are secured, if at all.
#[derive(Debug, Clone)]
pub(crate) struct Tls(Option<Client>);

/// There is none in a build without TLS.
#[cfg(not(feature = "tls"))]
#[derive(Debug, Clone)]
pub(crate) enum Client {}

#[cfg(not(feature = "tls"))]
impl Client {
    fn new(key: &str, _: &TlsOptions, _: &str) -> Result<Self, Error> {
        Err(super::missing(key))
    }
}

impl Tls {
    /// Reads the files. `name` is the resource's.
    pub(crate) fn new(name: &str, options: Option<&TlsOptions>, host: &str) -> Result<Self, Error> {
        let Some(options) = options else { return Ok(Tls(None)) };
        Client::new(&format!("{name}.tls"), options, host).map(|client| Tls(Some(client)))
    }

    /// The failure to connect there, or that the port wants TLS, if we speak none.
    pub(crate) async fn or_wanted(&self, failure: Failure, host: &str, port: u16, remedy: &str) -> Failure {
        if self.0.is_none() { or_wanted(failure, host, port, remedy).await } else { failure }
    }
}

#[cfg(not(feature = "tls"))]
pub(crate) type Stream = Killable<TcpStream>;

#[cfg(feature = "tls")]
pub(crate) type Stream = tokio_util::either::Either<Killable<TcpStream>, Box<secured::Secured>>;

impl Tls {
    /// Opens a connection under the switch. Takes as long as the DNS and the server do.
    pub(crate) async fn dial(
        &self,
        host: &str,
        port: u16,
        keepalive: Duration,
        switch: &KillSwitch,
    ) -> io::Result<Stream> {
        let stream = TcpStream::connect((host, port)).await?;
        tune(SockRef::from(&stream), keepalive)?;
        self.secure(switch.guard(stream)).await
    }

    async fn secure(&self, stream: Killable<TcpStream>) -> io::Result<Stream> {
        #[cfg(not(feature = "tls"))]
        return Ok(stream);
        #[cfg(feature = "tls")]
        match &self.0 {
            None => Ok(Stream::Left(stream)),
            Some(client) => secured::Secured::shake_hands(client, stream).await.map(Box::new).map(Stream::Right),
        }
    }
}

/// Without Nagle's delay, and noticing a peer that is gone even if nothing is asked of it.
fn tune(socket: SockRef<'_>, keepalive: Duration) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(keepalive))
}

#[cfg(feature = "tls")]
pub(crate) mod secured {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll, ready};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;

    use crate::net::kill_switch::Killable;
    use crate::net::tls::client::Client;

    /// A stream under TLS. Says goodbye when it drops, as far as that takes no waiting.
    pub(crate) struct Secured {
        stream: TlsStream<Killable<TcpStream>>,
        client: Client,
        /// The server has answered, so it has taken us in.
        heard: bool,
    }

    impl Secured {
        pub(super) async fn shake_hands(client: &Client, stream: Killable<TcpStream>) -> io::Result<Self> {
            let shaking = TlsConnector::from(client.config.clone()).connect(client.name.clone(), stream);
            let stream = shaking.await.map_err(|error| client.explained(error, true))?;
            Ok(Secured { stream, client: client.clone(), heard: false })
        }

        fn explained(&self, error: io::Error) -> io::Error {
            if self.heard { error } else { self.client.explained(error, false) }
        }

        fn stream(&mut self) -> Pin<&mut TlsStream<Killable<TcpStream>>> {
            Pin::new(&mut self.stream)
        }
    }

    impl AsyncRead for Secured {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let before = buffer.filled().len();
            let read = ready!(self.stream().poll_read(cx, buffer));
            if buffer.filled().len() > before {
                self.heard = true;
            } else if read.is_ok() && !self.heard {
                let ended = self.explained(io::ErrorKind::UnexpectedEof.into());
                // An end that TLS has no part in is for the driver to tell.
                return Poll::Ready(if ended.get_ref().is_some() { Err(ended) } else { Ok(()) });
            }
            Poll::Ready(read.map_err(|error| self.explained(error)))
        }
    }

    impl AsyncWrite for Secured {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let written = ready!(self.stream().poll_write(cx, bytes));
            Poll::Ready(written.map_err(|error| self.explained(error)))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            slices: &[io::IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let written = ready!(self.stream().poll_write_vectored(cx, slices));
            Poll::Ready(written.map_err(|error| self.explained(error)))
        }

        fn is_write_vectored(&self) -> bool {
            self.stream.is_write_vectored()
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            let flushed = ready!(self.stream().poll_flush(cx));
            Poll::Ready(flushed.map_err(|error| self.explained(error)))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.stream().poll_shutdown(cx)
        }
    }

    impl Drop for Secured {
        // Drivers that merely drop their stream would leave the server with an end that could be a forged one.
        fn drop(&mut self) {
            let (stream, session) = self.stream.get_mut();
            session.send_close_notify();
            let mut goodbye = Vec::new();
            if session.write_tls(&mut goodbye).is_ok() {
                // Fails where nobody listens any more, or the socket is full.
                let _ = stream.get_ref().try_write(&goodbye);
            }
        }
    }
}

#[cfg(feature = "redis")]
pub(crate) use self::blocking::Blocking;

#[cfg(feature = "redis")]
mod blocking {
    use std::io::{self, Read, Write};
    use std::net::{TcpStream, ToSocketAddrs};
    use std::time::{Duration, Instant};

    #[cfg(feature = "tls")]
    use rustls::{ClientConnection, StreamOwned};
    use socket2::SockRef;

    #[cfg(feature = "tls")]
    use super::Client;
    use super::{Tls, tune};
    use crate::net::kill_switch::{Guarded, KillSwitch};

    /// What threads read from and write to.
    pub(crate) enum Blocking {
        Plain(Timed),
        #[cfg(feature = "tls")]
        Secured(Box<Secured>),
    }

    /// A socket with one point in time by which whatever is asked of it must have been done.
    pub(crate) struct Timed {
        socket: TcpStream,
        end: Option<Instant>,
    }

    /// As the async one.
    #[cfg(feature = "tls")]
    pub(crate) struct Secured {
        stream: StreamOwned<ClientConnection, Timed>,
        client: Client,
        heard: bool,
    }

    impl Tls {
        /// As [`dial`](Tls::dial), by this time, which is the stream's until it gets another one. Only the DNS may
        /// take longer.
        pub(crate) fn dial_blocking(
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
            let guarded = switch.guard_blocking(&socket)?;
            let timed = Timed { socket, end: Some(end) };
            let stream = match &self.0 {
                None => Blocking::Plain(timed),
                Some(client) => client.secure_blocking(timed)?,
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
    impl super::Client {
        fn secure_blocking(&self, _: Timed) -> io::Result<Blocking> {
            match *self {}
        }
    }

    impl Blocking {
        /// Sets the time by which what is read and written from now on must have been; without one it may take for ever.
        pub(crate) fn end_by(&mut self, end: Option<Instant>) -> io::Result<()> {
            match self {
                Blocking::Plain(timed) => timed.end_by(end),
                #[cfg(feature = "tls")]
                Blocking::Secured(secured) => secured.stream.sock.end_by(end),
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

    /// On Unix a timeout of the socket's reads as if nobody had wanted to wait.
    fn late(error: io::Error) -> io::Error {
        if error.kind() == io::ErrorKind::WouldBlock { too_late() } else { error }
    }

    impl Read for Blocking {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self {
                Blocking::Plain(stream) => stream.read(buffer),
                #[cfg(feature = "tls")]
                Blocking::Secured(secured) => secured.read(buffer),
            }
        }
    }

    impl Write for Blocking {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self {
                Blocking::Plain(stream) => stream.write(bytes),
                #[cfg(feature = "tls")]
                Blocking::Secured(secured) => secured.stream.write(bytes),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            match self {
                Blocking::Plain(stream) => stream.flush(),
                #[cfg(feature = "tls")]
                Blocking::Secured(secured) => secured.stream.flush(),
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
            Ok(Blocking::Secured(Box::new(Secured { stream, client: self.clone(), heard: false })))
        }
    }

    #[cfg(feature = "tls")]
    impl Secured {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.heard {
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
                Err(error) => Err(self.client.explained(error, false)),
            }
        }
    }

    #[cfg(feature = "tls")]
    impl Drop for Secured {
        fn drop(&mut self) {
            let StreamOwned { conn, sock } = &mut self.stream;
            conn.send_close_notify();
            if sock.socket.set_nonblocking(true).is_ok() {
                // Fails where nobody listens any more, or the socket is full.
                let _ = conn.write_tls(&mut sock.socket);
            }
        }
    }
}
