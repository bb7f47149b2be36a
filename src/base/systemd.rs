//! Notices to systemd, for services of `Type=notify`, by a datagram to the socket that `NOTIFY_SOCKET` names.
//!
//! The crates for this wait while the receiver's queue is full. Nothing here waits, since closing must not. It also runs
//! while a process exits, so it neither logs nor uses thread-locals.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::base::stderr;

/// Tells systemd that the service serves.
pub(crate) fn ready() -> io::Result<()> {
    notify("READY=1\n")
}

/// Tells systemd that the service stops, and that this may take so long.
pub(crate) fn stopping(limit: Duration) {
    if let Err(error) = notify(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}\n", limit.as_micros())) {
        stderr::tell(&format!("resource-pool: systemd was not told that this process stops: NOTIFY_SOCKET: {error}\n"));
    }
}

/// Sends a notice. Without the variable there is nobody to tell.
fn notify(text: &str) -> io::Result<()> {
    let Some(path) = env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else { return Ok(()) };
    let address = match path.as_encoded_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(text.as_bytes(), &address).map(drop)
}
