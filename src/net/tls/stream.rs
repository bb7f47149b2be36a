//! Streams that are secured or plain, over sockets that the kill switch cuts.

use std::io;
use std::path::Path;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::base::error::{Error, Failure};
use crate::net::kill_switch::{KillSwitch, Killable};
#[cfg(feature = "tls")]
pub(super) use crate::net::tls::client::Client;
use crate::net::tls::hello::or_wanted;
use crate::net::tls::options::TlsOptions;
#[cfg(feature = "tls")]
use crate::net::tls::secured::Secured;
use crate::net::unix_socket;

/// How a resource's streams are secured, if at all.
#[derive(Debug, Clone)]
pub struct Tls(pub(super) Option<Client>);

/// A build without TLS has no client.
#[cfg(not(feature = "tls"))]
#[derive(Debug, Clone)]
pub(super) enum Client {}

#[cfg(not(feature = "tls"))]
impl Client {
    fn new(key: &str, _: &TlsOptions, _: &str) -> Result<Self, Error> {
        Err(crate::net::tls::missing(key))
    }
}

impl Tls {
    /// Reads the files of these options. Without options nothing is secured. `name` is the resource's, for messages.
    /// `host` is the name that the server's certificate is to have, unless the options name one.
    ///
    /// # Errors
    /// [`Error::Config`] for a file that cannot be used, and in a build without the feature `tls`.
    pub fn new(name: &str, options: Option<&TlsOptions>, host: &str) -> Result<Self, Error> {
        let Some(options) = options else { return Ok(Tls(None)) };
        Client::new(&format!("{name}.tls"), options, host).map(|client| Tls(Some(client)))
    }

    /// The failure to connect there. If these streams speak no TLS and the port wants it, the failure says so, with
    /// this remedy.
    ///
    /// # Cancel safety
    /// Cancelling closes the connection.
    pub async fn or_wanted(&self, failure: Failure, host: &str, port: u16, remedy: &str) -> Failure {
        if self.0.is_none() { or_wanted(failure, host, port, remedy).await } else { failure }
    }
}

/// A connection, secured or plain, under a [`KillSwitch`]. Rely on no more than that it can be read and written,
/// because with the feature `tls` it is of another type.
#[cfg(not(feature = "tls"))]
pub type Stream = Killable<TcpStream>;

/// A connection, secured or plain, under a [`KillSwitch`]. Rely on no more than that it can be read and written,
/// because without the feature `tls` it is of another type.
#[cfg(feature = "tls")]
pub type Stream = tokio_util::either::Either<Killable<TcpStream>, Box<Secured>>;

impl Tls {
    /// Opens a connection, which is under the switch from then on, and lives on the runtime of this task. The files of
    /// TLS are read again. It needs a limit, because it takes as long as the DNS and the server do.
    ///
    /// # Errors
    /// The reason why there is none, with the remedy if TLS failed.
    ///
    /// # Cancel safety
    /// Cancelling closes the connection.
    pub async fn dial(&self, host: &str, port: u16, keepalive: Duration, switch: &KillSwitch) -> io::Result<Stream> {
        #[cfg(feature = "tls")]
        let client = self.current().await?;
        let stream = TcpStream::connect((host, port)).await?;
        tune(SockRef::from(&stream), keepalive)?;
        let stream = switch.guard(stream);
        #[cfg(not(feature = "tls"))]
        return Ok(stream);
        #[cfg(feature = "tls")]
        match &client {
            None => Ok(Stream::Left(stream)),
            Some(client) => Secured::shake_hands(client, stream).await.map(Box::new).map(Stream::Right),
        }
    }

    /// Opens a connection to the Unix socket of this path, which is under the switch from then on, and lives on the
    /// runtime of this task. It is plain, as nothing goes over a network.
    ///
    /// # Errors
    /// The reason why there is none, with the remedy.
    ///
    /// # Cancel safety
    /// Cancelling closes the connection.
    pub async fn dial_socket(&self, path: &Path, switch: &KillSwitch) -> io::Result<Stream> {
        let stream = switch.guard(TcpStream::from_std(unix_socket::connect(path)?)?);
        #[cfg(not(feature = "tls"))]
        return Ok(stream);
        #[cfg(feature = "tls")]
        Ok(Stream::Left(stream))
    }
}

#[cfg(feature = "tls")]
impl Tls {
    /// The client of the files as they are now, which a thread that may block reads.
    async fn current(&self) -> io::Result<Option<Client>> {
        let Some(client) = self.0.clone().filter(Client::has_files) else { return Ok(self.0.clone()) };
        let read = tokio::task::spawn_blocking(move || client.current());
        read.await.map_err(io::Error::other)?.map(Some)
    }
}

/// Switches Nagle's delay off, and the keepalive on, which notices a peer that is gone even if nothing is asked of it.
pub(super) fn tune(socket: SockRef<'_>, keepalive: Duration) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(keepalive))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_stream_has_no_delay_and_a_keepalive() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let (host, port) = ("127.0.0.1", server.local_addr().unwrap().port());
        let stream = Tls(None).dial(host, port, Duration::from_secs(7), &KillSwitch::new()).await.unwrap();
        #[cfg(feature = "tls")]
        let tokio_util::either::Either::Left(stream) = stream else { panic!("it is plain") };
        let socket = SockRef::from(stream.get_ref());
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(7));
    }
}
