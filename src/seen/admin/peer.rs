//! The address that a request counts for: the peer's, or the one that a reverse proxy tells.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, Request};
use axum::http::{HeaderMap, HeaderName};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of the one who asks. `None` if the service tells no `ConnectInfo`.
///
/// Anybody can send `X-Forwarded-For`, so that it counts only from a peer that is one of these proxies. A proxy adds the
/// address of its own peer at the end, which therefore is read first.
pub(super) fn address(request: &Request, proxies: &[IpAddr]) -> Option<IpAddr> {
    let ConnectInfo(peer) = request.extensions().get::<ConnectInfo<SocketAddr>>()?;
    let mut address = peer.ip().to_canonical();
    for told in forwarded(request.headers()) {
        match told {
            Some(told) if proxies.contains(&address) => address = told,
            _ => break,
        }
    }
    Some(address)
}

/// The addresses of the header, the last one first. `None` for a piece that is no address. The pieces of a client stand
/// before those of the proxies, and may be any bytes.
fn forwarded(headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
    let lines = headers.get_all(X_FORWARDED_FOR).iter().collect::<Vec<_>>().into_iter().rev();
    lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',').map(parsed))
}

/// An address, in brackets or not, with a port or without.
fn parsed(piece: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(piece).ok()?.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    bare.parse::<IpAddr>().ok().or_else(with_port).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use axum::body::Body;
    use axum::http::HeaderValue;

    use super::*;

    const PROXIES: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

    fn address_of(peer: Option<&str>, lines: &[impl AsRef<[u8]>]) -> Option<String> {
        let mut request = Request::new(Body::empty());
        for line in lines {
            request.headers_mut().append(X_FORWARDED_FOR, HeaderValue::from_bytes(line.as_ref()).unwrap());
        }
        if let Some(peer) = peer {
            request.extensions_mut().insert(ConnectInfo(peer.parse::<SocketAddr>().unwrap()));
        }
        address(&request, &PROXIES).map(|address| address.to_string())
    }

    #[test]
    fn a_proxy_tells_the_address_of_its_peer_and_nobody_else_does() {
        let through = |peer: &str, lines: &[&str]| address_of(Some(peer), lines).unwrap();
        assert_eq!(through("10.0.0.1:5", &["10.9.9.9"]), "10.0.0.1", "this peer is no proxy");
        assert_eq!(through("127.0.0.1:5", &[]), "127.0.0.1");
        assert_eq!(through("127.0.0.1:5", &["10.0.0.2"]), "10.0.0.2");
        // The proxy adds to a header that its peer made up.
        assert_eq!(through("127.0.0.1:5", &["10.9.9.9, 10.0.0.2"]), "10.0.0.2");
        assert_eq!(through("127.0.0.1:5", &["10.9.9.9", "10.0.0.2:443"]), "10.0.0.2");
        assert_eq!(through("[::ffff:127.0.0.1]:5", &["10.9.9.9, 10.0.0.2, ::1"]), "10.0.0.2", "two proxies");
        assert_eq!(through("[::1]:5", &["10.0.0.2, nonsense"]), "::1");
        assert_eq!(address_of(None, &["10.0.0.2"]), None);
    }

    #[test]
    fn bytes_of_a_client_hide_no_address_that_a_proxy_adds() {
        let through = |lines: &[&[u8]]| address_of(Some("127.0.0.1:5"), lines).unwrap();
        assert_eq!(through(&[b"\xff, 10.0.0.2"]), "10.0.0.2");
        assert_eq!(through(&[b"\xff", b"10.0.0.2"]), "10.0.0.2");
        assert_eq!(through(&[b"10.0.0.2, \xff"]), "127.0.0.1");
    }

    #[test]
    fn an_address_may_have_brackets_and_a_port() {
        for text in ["2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:443"] {
            assert_eq!(address_of(Some("127.0.0.1:5"), &[text]).unwrap(), "2001:db8::1", "{text}");
        }
        for text in ["[2001:db8::1", "2001:db8::1]", "[]", "[10.0.0.2]x", ""] {
            assert_eq!(address_of(Some("127.0.0.1:5"), &[text]).unwrap(), "127.0.0.1", "{text}");
        }
    }
}
