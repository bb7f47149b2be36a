//! Endpoints: the texts by which status, events, errors, spans and metrics say where a resource is.
//!
//! A user's own resource writes its endpoint as it likes, and may leave a login in it. A password that is not
//! percent-encoded may end the host early, so that a parser would take parts of the password for host, port or path. So
//! an endpoint is taken apart only if it can be read in one way.

use std::fmt;

use crate::net::url::{host, host_port, name_and_port, port};

/// The address of one server, as an endpoint has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeAddress<'a> {
    /// The name or the address of the host, an IPv6 address without its brackets. For a Unix socket its path.
    pub host: &'a str,
    /// The port. `None` if the endpoint names none.
    pub port: Option<u16>,
    /// Whether it is a Unix socket, which has a path in the place of a host.
    pub is_socket: bool,
}

impl fmt::Display for NodeAddress<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => f.write_str(&host_port(self.host, port)),
            None => f.write_str(self.host),
        }
    }
}

/// The addresses in an endpoint, such as [`ResourceStatus::endpoint`](crate::ResourceStatus::endpoint). There are
/// several if the resource is told several servers, and none if the endpoint is no URL or can be read in two ways.
///
/// ```
/// use resource_pool::adapter::addresses;
///
/// let [redis] = addresses("redis://127.0.0.1:6379/0")[..] else { panic!("it is one server") };
/// assert_eq!((redis.host, redis.port), ("127.0.0.1", Some(6379)));
/// ```
pub fn addresses(endpoint: &str) -> Vec<NodeAddress<'_>> {
    let Some((scheme, rest)) = scheme_and_rest(endpoint) else { return Vec::new() };
    if is_socket(scheme) {
        let path = socket_path(rest).filter(|path| !path.is_empty());
        return path.map(|host| NodeAddress { host, port: None, is_socket: true }).into_iter().collect();
    }
    let (authority, behind) = authority_and_rest(rest);
    if is_plain(behind) { nodes(authority).unwrap_or_default() } else { Vec::new() }
}

/// The endpoint of a user's own resource as the pool shows it: without a login, and without all that follows `?`, `#`,
/// `;` or `=`, where a password may stand too. An endpoint that can be read in two ways keeps its scheme alone. A text
/// that is no URL is left out if it has `@`, `=` or `://` in it. `%40` counts as `@`.
pub fn without_credentials(endpoint: &str) -> String {
    // A login that is encoded along is found as one that is not.
    let read = endpoint.replace("%40", "@");
    let Some((scheme, rest)) = scheme_and_rest(&read) else {
        let is_safe = !read.contains(['@', '=']) && !read.contains("://");
        return if is_safe { before_values(&read).to_owned() } else { String::new() };
    };
    let (login_and_hosts, behind) = authority_and_rest(rest);
    let hosts = login_and_hosts.rsplit_once('@').map_or(login_and_hosts, |(_, hosts)| hosts);
    let is_safe = match is_socket(scheme) {
        true => login_and_hosts.is_empty() && socket_path(rest).is_some(),
        false => is_plain(behind) && (hosts.is_empty() || nodes(hosts).is_some()),
    };
    if is_safe { format!("{scheme}://{hosts}{}", before_values(behind)) } else { format!("{scheme}://") }
}

/// The scheme of an endpoint and what follows `://`. `None` if the endpoint is no URL.
fn scheme_and_rest(endpoint: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = endpoint.split_once("://")?;
    let is_scheme = !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    is_scheme.then_some((scheme, rest))
}

/// The hosts, with a login if there is one, and what follows them.
fn authority_and_rest(rest: &str) -> (&str, &str) {
    rest.split_at(rest.find(['/', '\\', '?', '#', ';', '=']).unwrap_or(rest.len()))
}

/// Whether neither an `@` nor a value follows the hosts. Otherwise they may have a part of a password in them.
fn is_plain(behind: &str) -> bool {
    !behind.contains('@') && !behind.starts_with('=')
}

/// The path of a Unix socket. `None` if it may have a login in it.
fn socket_path(rest: &str) -> Option<&str> {
    let path = rest.split('?').next().unwrap_or_default();
    let may_be_login = |(before, after): (&str, &str)| before.contains(':') || after.starts_with('/');
    (!path.rsplit_once('@').is_some_and(may_be_login)).then_some(path)
}

fn before_values(text: &str) -> &str {
    text.split(['?', '#', ';', '=']).next().unwrap_or_default()
}

/// Whether the path of such a URL is that of a Unix socket.
fn is_socket(scheme: &str) -> bool {
    scheme.split('+').any(|word| word == "unix")
}

/// The hosts with their ports. `None` if any of them is neither a name nor an address, or its port is none.
fn nodes(hosts: &str) -> Option<Vec<NodeAddress<'_>>> {
    let node = |text| {
        let (name, number) = name_and_port(text);
        let port = number.map(|number| port("", number)).transpose().ok()?;
        Some(NodeAddress { host: host("", name).ok()?, port, is_socket: false })
    };
    hosts.split(',').map(node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The part of each shape that is secret.
    const SECRETS: [&str; 3] = ["s3cret", "12345", "pa55"];

    #[test]
    fn an_endpoint_has_addresses() {
        let told = |endpoint| addresses(endpoint).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        for (endpoint, addresses) in [
            ("redis://127.0.0.1:6379/0", "127.0.0.1:6379"),
            ("rediss://cache/0", "cache"),
            ("redis://[::1]:6379/0", "[::1]:6379"),
            ("http://[::1]/default", "::1"),
            ("amqp://[fe80::1%eth0]:5672/%2f", "[fe80::1%eth0]:5672"),
            ("http://clickhouse:8123/", "clickhouse:8123"),
            ("mongodb://a:27017,b:27018/quantaxis", "a:27017 b:27018"),
            ("mongodb+srv://cluster.example/quantaxis", "cluster.example"),
            ("unix:///run/redis.sock?db=1", "/run/redis.sock"),
            ("redis+unix:///run/redis@main.sock", "/run/redis@main.sock"),
            ("unix:///run/a=b;c#d.sock?db=1", "/run/a=b;c#d.sock"),
            ("unix://run/redis.sock", "run/redis.sock"),
            ("http://host?database=x", "host"),
            ("momentum.bin", ""),
            ("lines://", ""),
            ("unix://", ""),
            ("", ""),
        ] {
            assert_eq!(told(endpoint), addresses, "{endpoint}");
        }
    }

    /// Each endpoint that may have a login in it, and the rest of it that is shown.
    #[test]
    fn no_endpoint_shows_a_secret() {
        for (endpoint, shown) in [
            // A login as it should be written.
            ("lines://user:s3cret@host:7/x", "lines://host:7/x"),
            ("lines://s3cret@host:7/x", "lines://host:7/x"),
            ("lines://:s3cret@host", "lines://host"),
            ("lines://user:s3cret@[::1]:7/x", "lines://[::1]:7/x"),
            ("lines://user:s3cret@a:1,b:2/x", "lines://a:1,b:2/x"),
            ("lines://user:s3%40cret@host:7/pa", "lines://host:7/pa"),
            ("lines:///user:s3cret%40host:1/", "lines://"),
            ("lines://user:12345/s3cret%40host:1/x", "lines://"),
            ("lines://host/user:s3cret%40db", "lines://"),
            ("unix://user:s3cret@/run/x.sock", "unix://"),
            ("unix:///user:s3cret@/run/x.sock", "unix://"),
            ("redis+unix:///user:s3cret@/run/x.sock", "redis+unix://"),
            ("unix:///s3cret@/run/x.sock", "unix://"),
            ("unix:///user:s3cret%40/run/x.sock", "unix://"),
            // A password with an `@`, or one whose rest looks like a port.
            ("lines://user:pa55@s3cret@host:7/x", "lines://host:7/x"),
            ("lines://user:12345@", "lines://"),
            ("lines://user:12345@/x", "lines:///x"),
            ("lines://user:s3cret@host:pa55/x", "lines://"),
            // A password that ends the host early.
            ("lines://user:pa#s3cret@host:1/", "lines://"),
            ("lines://user:pa/s3cret@host:1/", "lines://"),
            ("lines://user:12345/s3cret@host:1/", "lines://"),
            ("lines://user:12345?s3cret@host:1/", "lines://"),
            ("lines://user:12345#s3cret@host:1/", "lines://"),
            ("lines://user:12345;s3cret@host:1/", "lines://"),
            ("lines://user:12345\\s3cret@host:1/", "lines://"),
            ("lines://user:12345=s3cret@host:1/", "lines://"),
            ("lines:///user:s3cret@host:1/", "lines://"),
            // A login of which the host is missing, or encoded along.
            ("lines://user:s3cret", "lines://"),
            ("lines://user:s3cret/x", "lines://"),
            ("lines://user:s3cret%40host:1/x", "lines://host:1/x"),
            ("lines://s3cret%40host/x", "lines://host/x"),
            ("lines://a:1,user:s3cret,b:2/x", "lines://"),
            // Several logins.
            ("lines://user:s3cret@a:1,user:pa55@b:2/x", "lines://b:2/x"),
            ("lines://user:s3cret@a/x,lines://user:pa55@b/x", "lines://"),
            // A password beside the login.
            ("lines://host:7/x?user=u&password=s3cret", "lines://host:7/x"),
            ("lines://host:7?password=pa@s3cret", "lines://"),
            ("lines://host:7/x?password=pa@s3cret", "lines://"),
            ("lines://host:7/x#s3cret", "lines://host:7/x"),
            ("lines://host:7;password=s3cret", "lines://host:7"),
            ("lines://host:7,password=s3cret", "lines://"),
            ("unix:///run/x.sock?pass=s3cret", "unix:///run/x.sock"),
            ("unix:///run/x.sock?pass=pa@s3cret", "unix:///run/x.sock"),
            // Texts that are no URLs.
            ("user:s3cret@host:1", ""),
            ("host=db user=u password=s3cret", ""),
            ("host:7,password=s3cret", ""),
            ("jdbc:oracle:thin:user/s3cret@host:1521", ""),
            ("jdbc:lines://host/x?password=s3cret", ""),
            ("the first, lines://user:s3cret@host", ""),
            ("://user:s3cret@host", ""),
            ("lines:user:s3cret@host", ""),
            ("lines:user:s3cret%40host", ""),
            ("user:s3cret%40host:1", ""),
            ("jdbc:lines://host/x?s3cret", ""),
            (" lines://host/x#s3cret", ""),
            ("host:7;s3cret", "host:7"),
        ] {
            assert_eq!(without_credentials(endpoint), shown, "{endpoint}");
            assert_eq!(without_credentials(shown), shown, "it has no login any more");
            let addresses = format!("{:?}", addresses(shown));
            for secret in SECRETS {
                assert!(!shown.contains(secret) && !addresses.contains(secret), "{endpoint}: {addresses}");
            }
        }
    }

    #[test]
    fn an_endpoint_without_a_login_stays() {
        for endpoint in [
            "fake://here",
            "lines://host:7/x",
            "lines://[::1]:7/x",
            "lines://a:1,b:2/x",
            "unix:///run/redis@main/redis.sock",
            "s3://models/2026/momentum.bin",
            "momentum.bin",
            "C:\\models\\momentum.bin",
            "beside 3 others",
            "lines://",
            "",
        ] {
            assert_eq!(without_credentials(endpoint), endpoint);
        }
    }
}
