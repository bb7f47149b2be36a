//! Unix sockets, which a server on the same machine listens on by a path.
//!
//! `Tls::dial_socket` and its twin for threads call [`connect`]. The standard library's `TcpStream` is a socket of the
//! system, whatever its family, and its reads, writes, limits and shutdown work on a Unix socket as well. So the streams
//! and the kill switch need no second type, and connections over TCP pay nothing.

use std::io;
use std::net::TcpStream;
use std::path::Path;

use socket2::{Domain, SockAddr, Socket, Type};

/// Connects to the socket of this path, and returns it in non-blocking mode. It does not wait: the system connects at
/// once, or not at all.
pub(crate) fn connect(path: &Path) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?).map_err(explained)?;
    Ok(socket.into())
}

/// The error of a connect, with the remedy.
fn explained(error: io::Error) -> io::Error {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => {
            "there is no such file: start the server, or set the path on which it listens (for Redis `unixsocket`)"
        }
        io::ErrorKind::PermissionDenied => {
            "this process has no permission to open the socket: let its user write to the file (for Redis \
             `unixsocketperm`) and enter its folder"
        }
        io::ErrorKind::ConnectionRefused => "no server listens on this socket any more: start the server",
        io::ErrorKind::WouldBlock => "the server has accepted none of the many connections that wait on this socket",
        _ => return error,
    };
    io::Error::new(error.kind(), remedy)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::explained;

    /// A test that runs as root is refused no file, so the words are tested on the error alone.
    #[test]
    fn an_error_keeps_its_kind_and_says_what_to_do() {
        for (kind, remedy) in [
            (io::ErrorKind::NotFound, "start the server"),
            (io::ErrorKind::PermissionDenied, "unixsocketperm"),
            (io::ErrorKind::ConnectionRefused, "start the server"),
            (io::ErrorKind::WouldBlock, "has accepted none"),
        ] {
            let error = explained(kind.into());
            assert!(error.kind() == kind && error.to_string().contains(remedy), "{error}");
        }
        let lacks_descriptors = explained(io::Error::from_raw_os_error(24));
        assert_eq!(lacks_descriptors.raw_os_error(), Some(24), "it stays known as this process's own trouble");
    }
}
