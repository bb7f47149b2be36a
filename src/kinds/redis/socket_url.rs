//! The URL of a Redis that listens on a Unix socket, as the driver writes it: `unix:///run/redis.sock?db=2&user=…&pass=…`.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use url::form_urlencoded;

use crate::base::error::Error;
use crate::base::millis::number;
use crate::base::secret::Secret;
use crate::net::url::one_reading;

/// The URL schemes for Unix sockets.
const SOCKET_SCHEMES: [&str; 2] = ["unix", "redis+unix"];

/// Parameters that other clients know. An error shows the names of these alone, because any other may be the rest of a
/// password with `&` in it.
const UNSUPPORTED: [&str; 10] =
    ["client_name", "clientName", "database", "name", "password", "protocol", "ssl", "timeout", "tls", "username"];

const EXPECTED: &str = "expected unix:///path/to/redis.sock?db=0&user=…&pass=…, with each part percent-encoded";

/// The parts of such a URL.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct SocketUrl {
    pub(super) path: PathBuf,
    pub(super) db: Option<i64>,
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret>,
}

impl SocketUrl {
    /// Parses the URL of a socket. `None` if the scheme is another one.
    pub(super) fn parse(key: &str, url: &Secret) -> Result<Option<Self>, Error> {
        let (scheme, rest) = url.expose().trim().split_once("://").unwrap_or_default();
        if !SOCKET_SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
            return Ok(None);
        }
        one_reading(key, url.expose())?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let problem = match path {
            _ if rest.contains('#') => "contains `#`, where it must be `%23`",
            _ if rest.contains(';') => "contains `;`, where it must be `%3B`, or `&` between two parameters",
            "" | "/" => "names no socket",
            _ if !path.starts_with('/') => "names a host, but a socket has only a path, which begins with `/`",
            // These belong to parameters, of which the password is one. The path is shown.
            _ if path.contains('&') => "contains `&` in its path, where it must be `%26`, or `?` before the parameters",
            _ if path.contains('=') => "contains `=` in its path, where it must be `%3D`, or `?` before the parameters",
            _ => "",
        };
        if !problem.is_empty() {
            return Err(Error::config(key, format!("{problem}; {EXPECTED}")));
        }
        let path = percent_decode_str(path).decode_utf8();
        let path = path.map_err(|_| Error::config(key, "is not UTF-8 once percent-decoded"))?;
        let mut parts = SocketUrl { path: path.into_owned().into(), ..SocketUrl::default() };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "db" => parts.db = Some(number(key, &value, "right: `db` must be the number of a database")?),
                "user" => parts.user = Some(value.into_owned()),
                "pass" => parts.password = Some(value.into_owned().into()),
                name => {
                    let known = "known are `db`, `user` and `pass`";
                    let problem = if UNSUPPORTED.contains(&name) {
                        format!("has the unknown parameter `{name}`; {known}")
                    } else {
                        format!("has an unknown parameter; {known}, and `&` in a password must be `%26`")
                    };
                    return Err(Error::config(key, problem));
                }
            }
        }
        Ok(Some(parts))
    }
}

#[cfg(test)]
mod tests {
    use super::SocketUrl;
    use crate::base::error::Error;

    fn parsed(url: &str) -> Result<Option<SocketUrl>, String> {
        SocketUrl::parse("redis.url", &url.into()).map_err(|error| match error {
            Error::Config { problem, .. } => problem,
            other => panic!("{other}"),
        })
    }

    #[test]
    fn a_url_of_a_socket_has_a_path_and_three_parameters() {
        let plain = SocketUrl { path: "/run/redis.sock".into(), ..SocketUrl::default() };
        assert_eq!(parsed("unix:///run/redis.sock"), Ok(Some(plain)));
        let full = SocketUrl {
            path: "/run/my desk/redis.sock".into(),
            db: Some(2),
            user: Some("a@b".to_owned()),
            password: Some("p&ss=%".into()),
        };
        for scheme in ["unix", "redis+unix", "UNIX"] {
            let url = format!("{scheme}:///run/my%20desk/redis.sock?db=2&user=a%40b&pass=p%26ss%3D%25");
            assert_eq!(parsed(&url), Ok(Some(full.clone())), "{url}");
        }
        for other in ["redis://host/2", "rediss://host", "no URL"] {
            assert_eq!(parsed(other), Ok(None), "{other}");
        }
    }

    #[test]
    fn a_bad_url_of_a_socket_is_refused_without_its_password() {
        for (url, problem) in [
            ("unix://", "names no socket"),
            ("unix:///?pass=s3cret", "names no socket"),
            ("unix://u:s3cret@host/run/redis.sock", "names a host"),
            ("unix://run/redis.sock", "names a host"),
            ("unix:///run/redis.sock?db=two&pass=s3cret", "number of a database"),
            ("unix:///run/redis.sock?pass=s3cret&protocol=3", "`protocol`"),
            ("unix:///run/redis.sock?pass=s3cret#x", "`%23`"),
            ("unix:///run/redis.sock?pass=s3cret@x", "`%40`"),
        ] {
            let said = parsed(url).unwrap_err();
            assert!(said.contains(problem) && !said.contains("s3cret"), "{url}: {said}");
        }
    }
}
