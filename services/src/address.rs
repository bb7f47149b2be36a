//! Percent-encoding, and the parts of a server's URL.

use crate::{Error, Kind};

/// The parts of a server's URL, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) url: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) password: String,
    /// Database or virtual host.
    pub(crate) path: String,
}

impl Address {
    /// The address of a server on this machine that has no login.
    pub(crate) fn open(scheme: &str, port: u16) -> Address {
        Address {
            url: format!("{scheme}://127.0.0.1:{port}"),
            host: "127.0.0.1".into(),
            port,
            user: String::new(),
            password: String::new(),
            path: String::new(),
        }
    }

    pub(crate) fn parse(kind: Kind, url: &str) -> Result<Address, Error> {
        let bad = |why| Error::exchange(format!("the URL of {kind} in the environment"), why);
        let (_, rest) = url.split_once("://").ok_or_else(|| bad("it has no scheme"))?;
        let rest = rest.split_once('?').map_or(rest, |(rest, _)| rest);
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let first = hosts.split(',').next().unwrap_or(hosts);
        let (host, port) = match first.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| bad("its port is not a number"))?)
            }
            _ => (first, kind.standard_port()),
        };
        Ok(Address {
            url: url.to_string(),
            host: host.trim_matches(['[', ']']).to_string(),
            port,
            user: decode(user),
            password: decode(password),
            path: decode(path),
        })
    }
}

/// Percent-encodes everything but unreserved characters.
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// Decodes percent-encoding. A `%` that is not followed by two hex digits stays as it is.
pub(crate) fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let byte = after
            .get(..2)
            .filter(|_| *first == b'%')
            .and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_survive_the_url() {
        let url = format!("redis://{}:{}@127.0.0.1:7/0?x=1", encode("a@b:c/d%e"), encode("%@:/%41"));
        let address = Address::parse(Kind::Redis, &url).unwrap();
        assert_eq!((address.user.as_str(), address.password.as_str()), ("a@b:c/d%e", "%@:/%41"));
        assert_eq!((address.host.as_str(), address.port, address.path.as_str()), ("127.0.0.1", 7, "0"));
    }
}
