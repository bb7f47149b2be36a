//! The addresses of servers: URLs, hosts and ports, each of which can be read in only one way.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use crate::base::error::Error;
use crate::base::millis::number;
use crate::base::secret::Secret;

/// A URL whose user, password and host are usable. It is never shown with its password.
#[derive(Debug)]
pub struct ParsedUrl {
    url: url::Url,
    /// The path as it was written. The parser's own is not used, for it takes `%2e` for a step in a tree of folders.
    path: String,
}

impl ParsedUrl {
    /// Parses a URL that has one of these schemes. `key` is the key or variable that has the URL.
    ///
    /// # Errors
    /// [`Error::Config`] of this key if the text is no URL, names no host, or can be read in two ways.
    pub fn new(key: &str, text: &Secret, schemes: &[&str]) -> Result<Self, Error> {
        let expected = || schemes.iter().map(|scheme| format!("{scheme}://")).collect::<Vec<_>>().join(" or ");
        let text = one_reading(key, text.expose())?;
        let url = url::Url::parse(text)
            .map_err(|error| Error::config(key, format!("is not a URL ({error}); expected {}{LOGIN}", expected())))?;
        if !schemes.contains(&url.scheme()) {
            return Err(Error::config(key, format!("has the scheme {:?}; expected {}", url.scheme(), expected())));
        }
        let (_, rest) = text.split_once("://").unwrap_or_default();
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        // The parser takes a name after further slashes for the host.
        if url.host_str().is_none_or(str::is_empty) || rest.starts_with(['/', '\\']) {
            return Err(Error::config(key, "names no host"));
        }
        let path = rest.split_once(['/', '\\']).map_or("", |(_, path)| path).to_owned();
        Ok(ParsedUrl { url, path })
    }

    /// The parameters behind the `?`, decoded, in their order.
    pub fn parameters(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
        self.url.query_pairs()
    }

    /// The scheme.
    pub fn scheme(&self) -> &str {
        self.url.scheme()
    }

    /// The port, if there is one.
    pub fn port(&self) -> Option<u16> {
        self.url.port()
    }

    /// The host, an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
    }

    /// The user, decoded, if there is one.
    ///
    /// # Errors
    /// [`Error::Config`] where that is not UTF-8.
    pub fn user(&self, key: &str) -> Result<Option<String>, Error> {
        Some(self.url.username()).filter(|user| !user.is_empty()).map(|user| percent_decoded(key, user)).transpose()
    }

    /// The password, decoded, if there is one.
    ///
    /// # Errors
    /// [`Error::Config`] where that is not UTF-8.
    pub fn password(&self, key: &str) -> Result<Option<Secret>, Error> {
        Ok(self.url.password().map(|password| percent_decoded(key, password)).transpose()?.map(Secret::from))
    }

    /// The path without its first slash, decoded.
    ///
    /// # Errors
    /// [`Error::Config`] where that is not UTF-8.
    pub fn path(&self, key: &str) -> Result<String, Error> {
        percent_decoded(key, &self.path)
    }
}

/// The form of a URL after its scheme, for errors.
pub const LOGIN: &str = "user:password@host:port/…, with `@:/?#%` in user or password percent-encoded";

/// The URL without the white space around it, if it can be read in only one way. A password that is not percent-encoded
/// may end the host early. A parser would then take parts of the password for host, port and path, and they would be
/// shown as such.
///
/// # Errors
/// [`Error::Config`] of this key.
pub fn one_reading<'a>(key: &str, text: &'a str) -> Result<&'a str, Error> {
    let text = text.trim();
    let is_scheme = |scheme: &str| scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let Some((_, rest)) = text.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) else {
        return Err(Error::config(key, format!("is not a URL; expected scheme://{LOGIN}")));
    };
    let (_, behind) = rest.split_at(rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len()));
    if behind.contains('@') {
        return Err(Error::config(
            key,
            format!("contains `@` after the host, where it must be `%40`; expected scheme://{LOGIN}"),
        ));
    }
    if text.contains(char::is_control) {
        return Err(Error::config(key, format!("has a control character in it; expected scheme://{LOGIN}")));
    }
    Ok(text)
}

/// Decodes `%40` and the like.
pub(crate) fn percent_decoded(key: &str, text: &str) -> Result<String, Error> {
    percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .map(|text| text.into_owned())
        .map_err(|_| Error::config(key, "is not UTF-8 once percent-decoded"))
}

/// The host without the white space and brackets around it, if it is a name or an address.
///
/// # Errors
/// [`Error::Config`] of this key.
pub fn host<'a>(key: &str, text: &'a str) -> Result<&'a str, Error> {
    let host = text.trim();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let (address, zone) = host.split_once('%').map_or((host, "1"), |(address, zone)| (address, zone));
    let fits = |text: &str, signs: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || signs.contains(c));
    let problem = match host {
        "" => "is empty",
        _ if address.parse::<Ipv6Addr>().is_ok() && fits(zone, "-_.") => return Ok(host),
        _ if fits(host, "-_.") => return Ok(host),
        _ if host.contains("://") => "is a URL; a host is only its name or address",
        _ if fits(host, "-_.:") => "has a colon in it, but is no IPv6 address; the port has a key of its own",
        _ => "is neither a host's name (of ASCII letters, digits, `-`, `_` and `.`) nor an address",
    };
    Err(Error::config(key, problem))
}

/// The parts of `host:port`, of which the port may be missing.
pub fn name_and_port(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        // The last colon of an address in brackets is a part of it.
        Some((name, number)) if !number.ends_with(']') => (name, Some(number)),
        _ => (text, None),
    }
}

/// Parses a port. The port 0 is none.
///
/// # Errors
/// [`Error::Config`] of this key.
pub fn port(key: &str, text: &str) -> Result<u16, Error> {
    const EXPECTED: &str = "a port, from 1 to 65535";
    match number(key, text, EXPECTED)? {
        0 => Err(Error::config(key, format!("is not {EXPECTED}"))),
        port => Ok(port),
    }
}

/// `host:port`, with brackets around an IPv6 address.
pub fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
