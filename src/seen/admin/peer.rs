//! The address that a request counts for: the peer's, or the one that a reverse proxy tells.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::extract::{ConnectInfo, Request};
use axum::http::{HeaderMap, HeaderName};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of the one who asks. A server that does not tell it has one for all.
///
/// Anybody can send `X-Forwarded-For`, so that it counts only from a peer that is one of these proxies. A proxy adds the
/// address of its own peer at the end, which therefore is read first.
pub(super) fn address(request: &Request, proxies: &[IpAddr]) -> IpAddr {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let Some(ConnectInfo(peer)) = peer else { return IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let mut address = peer.ip().to_canonical();
    for told in forwarded(request.headers()) {
        match told {
            Some(told) if proxies.contains(&address) => address = told,
            _ => break,
        }
    }
    address
}

/// The addresses of the header, the last one first. `None` for a text that is no address.
fn forwarded(headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
    let lines = headers.get_all(X_FORWARDED_FOR).iter().collect::<Vec<_>>().into_iter().rev();
    lines.flat_map(|line| line.to_str().unwrap_or_default().rsplit(',').map(|text| parsed(text.trim())))
}

/// An address, with a port or without.
fn parsed(text: &str) -> Option<IpAddr> {
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    text.parse::<IpAddr>().ok().or_else(with_port).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    const PROXIES: [IpAddr; 2] = [IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

    fn address_of(peer: Option<&str>, lines: &[&str]) -> String {
        let mut request = Request::new(Body::empty());
        for line in lines {
            request.headers_mut().append(X_FORWARDED_FOR, line.parse().unwrap());
        }
        if let Some(peer) = peer {
            request.extensions_mut().insert(ConnectInfo(peer.parse::<SocketAddr>().unwrap()));
        }
        address(&request, &PROXIES).to_string()
    }

    #[test]
    fn a_proxy_tells_the_address_of_its_peer_and_nobody_else_does() {
        assert_eq!(address_of(Some("10.0.0.1:5"), &["10.9.9.9"]), "10.0.0.1", "this peer is no proxy");
        assert_eq!(address_of(Some("127.0.0.1:5"), &[]), "127.0.0.1");
        assert_eq!(address_of(Some("127.0.0.1:5"), &["10.0.0.2"]), "10.0.0.2");
        // The proxy adds to a header that its peer made up.
        assert_eq!(address_of(Some("127.0.0.1:5"), &["10.9.9.9, 10.0.0.2"]), "10.0.0.2");
        assert_eq!(address_of(Some("127.0.0.1:5"), &["10.9.9.9", "10.0.0.2:443"]), "10.0.0.2");
        assert_eq!(address_of(Some("[::ffff:127.0.0.1]:5"), &["10.9.9.9, 10.0.0.2, ::1"]), "10.0.0.2", "two proxies");
        assert_eq!(address_of(Some("[::1]:5"), &["10.0.0.2, nonsense"]), "::1");
        assert_eq!(address_of(None, &["10.0.0.2"]), "::");
    }
}
