//! Free ports, and the kernel's count of the connections to one.

use crate::Error;
use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// Ports below this may belong to well-known services.
const LOWEST: u32 = 10_000;

/// Finds a port that nobody listens on.
///
/// The port lies below the range from which the kernel takes the ports of outgoing connections. Within that range, a
/// client that keeps connecting while the server is down would some day connect to itself and hold the port.
pub(crate) fn free() -> Result<u16, Error> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let highest = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .filter(|low| *low > LOWEST + 1000)
        .unwrap_or(32_768);
    let span = highest - LOWEST;
    // Each process starts its search elsewhere, so that two do not pick the same port before either has bound it.
    let start = std::process::id().wrapping_mul(211) % span;
    for _ in 0..span {
        // Relaxed suffices, since the numbers only have to differ.
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(LOWEST + (start + offset) % span).unwrap_or(u16::MAX);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Error::exchange("looking for a free port", "there is none"))
}

/// The number of established connections to a local port, counted on the server's side.
pub(crate) fn established(port: u16) -> Result<usize, Error> {
    const ESTABLISHED: &str = "01";
    // The kernel may list one connection twice while others come and go.
    let mut found = BTreeSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let Ok(text) = fs::read_to_string(table) else {
            continue;
        };
        for line in text.lines().skip(1) {
            let mut fields = line.split_whitespace().skip(1);
            let (Some(local), Some(remote), Some(state)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            let hex = local.rsplit(':').next().unwrap_or_default();
            if u16::from_str_radix(hex, 16) == Ok(port) && state == ESTABLISHED {
                found.insert((local.to_owned(), remote.to_owned()));
            }
        }
    }
    Ok(found.len())
}
