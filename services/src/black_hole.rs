//! A port whose connects get no answer, as behind a dead router.

use crate::Error;
use nix::sys::socket::{Backlog, listen};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// A port that neither accepts nor refuses. Its queue is full, so the kernel drops every further connect.
#[derive(Debug)]
pub struct BlackHole {
    port: u16,
    _listener: TcpListener,
    /// The connections that fill the queue.
    _waiting: Vec<TcpStream>,
}

impl BlackHole {
    /// Opens a black hole on a free port.
    ///
    /// # Errors
    /// If no port is free, or the queue does not fill.
    pub fn start() -> Result<BlackHole, Error> {
        let start = || {
            let listener = TcpListener::bind(("127.0.0.1", 0))?;
            listen(&listener, Backlog::new(1)?)?;
            let waiting = fill(&listener)?;
            Ok(BlackHole { port: listener.local_addr()?.port(), _listener: listener, _waiting: waiting })
        };
        start().map_err(Error::io("opening a black hole"))
    }

    /// Its port, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Fills the queue of a listener that never accepts, until a connect gets no answer. Returns the connections.
pub(crate) fn fill(listener: &TcpListener) -> io::Result<Vec<TcpStream>> {
    const ENOUGH: usize = 16;
    let address = listener.local_addr()?;
    let mut waiting = Vec::new();
    while waiting.len() < ENOUGH {
        match TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
            Ok(stream) => waiting.push(stream),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(waiting),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("its queue does not fill"))
}
