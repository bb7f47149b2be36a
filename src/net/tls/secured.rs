//! An async stream under TLS.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::net::kill_switch::Killable;
use crate::net::tls::client::Client;

/// A stream under TLS. It sends TLS's closing alert when it drops, as far as that takes no waiting.
pub struct Secured {
    stream: TlsStream<Killable<TcpStream>>,
    client: Client,
    /// Whether the server has answered, and so has accepted the client.
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

impl fmt::Debug for Secured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secured").field("client", &self.client).finish_non_exhaustive()
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
            // TLS has no part in this end, so the driver is the one to report it.
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
    // A driver that merely drops its stream would leave the server with an end that could be a forged one.
    fn drop(&mut self) {
        let (stream, session) = self.stream.get_mut();
        session.send_close_notify();
        let mut goodbye = Vec::new();
        if session.write_tls(&mut goodbye).is_ok() {
            // The write fails if nobody listens any more, or the socket is full.
            let _ = stream.get_ref().try_write(&goodbye);
        }
    }
}
