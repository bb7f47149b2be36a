//! MongoDB's URIs, taken apart by hand and put together again, so that the environment can set a part of one.
//!
//! The driver's `ConnectionString` reads a URI without asking the DNS, but what it writes back is not what it read: it
//! leaves options out (`serverMonitoringMode` is one), the brackets around IPv6 addresses, and the encoding of values.
//! In a build without `tls` it reads no `mongodb+srv://`. A URI is cut here where the driver cuts it, and its pieces
//! stay as they were written: the driver still reads all of it, and says what is wrong with it.

use mongodb::options::ServerAddress;

use crate::base::secret::Secret;
use crate::net::url::host_port;

/// A URI in its pieces, as the driver cuts it.
pub(super) struct Uri {
    scheme: String,
    /// User and password, encoded.
    pub(super) login: Option<(String, Option<String>)>,
    hosts: String,
    pub(super) path: String,
    query: Vec<String>,
}

impl Uri {
    pub(super) fn new(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once("://")?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (login, rest) = rest.rsplit_once('@').map_or((None, rest), |(login, rest)| (Some(login), rest));
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let login = login.map(|login| match login.split_once(':') {
            Some((user, password)) => (user.to_owned(), Some(password.to_owned())),
            None => (login.to_owned(), None),
        });
        let query = query.split('&').filter(|option| !option.is_empty()).map(str::to_owned).collect();
        Some(Uri { scheme: scheme.to_owned(), login, hosts: hosts.to_owned(), path: path.to_owned(), query })
    }

    pub(super) fn show(&self) -> String {
        let Uri { scheme, login, hosts, path, query } = self;
        let login = match login {
            Some((user, Some(password))) => format!("{user}:{password}@"),
            Some((user, None)) => format!("{user}@"),
            None => String::new(),
        };
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        format!("{scheme}://{login}{hosts}/{path}{query}")
    }

    pub(super) fn is_srv(&self) -> bool {
        self.scheme == "mongodb+srv"
    }

    pub(super) fn option(&self, name: &str) -> Option<&str> {
        let options = self.query.iter().filter_map(|option| option.split_once('='));
        options.filter(|(option, _)| option.eq_ignore_ascii_case(name)).map(|(_, value)| value).next_back()
    }

    /// Whether TLS is to be spoken, if the URI says anything of it.
    pub(super) fn tls(&self) -> Option<bool> {
        match self.option("tls").or(self.option("ssl")) {
            Some(said) => Some(said == "true"),
            None => self.is_srv().then_some(true),
        }
    }

    pub(super) fn switch_tls(&mut self, on: bool) {
        self.query.retain(|option| {
            let name = option.split('=').next().unwrap_or_default().to_ascii_lowercase();
            // Options of a TLS that is off are an error of the driver's.
            name != "ssl" && if on { name != "tls" } else { !name.starts_with("tls") }
        });
        self.query.push(format!("tls={on}"));
    }

    /// Names the hosts that the DNS knew, or that take their place.
    pub(super) fn name(&mut self, hosts: String) {
        if self.is_srv() {
            let tls = self.tls();
            self.query.retain(|option| !option.to_ascii_lowercase().starts_with("srv"));
            tls.into_iter().for_each(|on| {
                self.query.extend(self.option("tls").or(self.option("ssl")).is_none().then(|| format!("tls={on}")))
            });
            "mongodb".clone_into(&mut self.scheme);
        }
        self.hosts = hosts;
    }

    /// To another host, at the port of the first one.
    pub(super) fn move_to(&mut self, host: &str) {
        let first = self.hosts.split(',').next().and_then(|first| ServerAddress::parse(first).ok());
        let port = match first {
            Some(ServerAddress::Tcp { port: Some(port), .. }) => port,
            _ => 27017,
        };
        self.name(host_port(host, port));
    }

    pub(super) fn set_port(&mut self, port: u16) {
        let hosts = self.hosts.split(',').map(|host| match ServerAddress::parse(host) {
            Ok(ServerAddress::Tcp { host, .. }) => format!("{host}:{port}"),
            _ => host.to_owned(),
        });
        self.hosts = hosts.collect::<Vec<_>>().join(",");
    }

    pub(super) fn set_user(&mut self, user: &str) {
        let password = self.login.take().and_then(|(_, password)| password);
        self.login = Some((encoded(user), password));
    }

    pub(super) fn set_password(&mut self, password: &str) {
        let user = self.login.take().map_or_else(String::new, |(user, _)| user);
        self.login = Some((user, Some(encoded(password))));
    }

    /// The database that knows the user stays.
    pub(super) fn set_database(&mut self, database: &str) {
        let old = std::mem::replace(&mut self.path, encoded(database));
        if self.login.is_some() && self.option("authSource").is_none() {
            self.query.push(format!("authSource={old}"));
        }
    }
}

fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// The same URI with a password that is no secret, or without any login and host where it is not clear
/// which is which.
pub(super) fn without_password(uri: &str) -> String {
    let (scheme, rest) = uri.split_once("://").unwrap_or(("mongodb", ""));
    let (authority, options) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let hosts = authority.rsplit_once('@').map_or("localhost", |(_, hosts)| hosts);
    format!("{scheme}://user:password@{hosts}{options}")
}

/// Whether the driver can decode it: it panics where a character of several bytes follows a `%`.
pub(super) fn is_encoded(login: &str) -> bool {
    login
        .split('%')
        .skip(1)
        .all(|escape| escape.len() >= 2 && escape.bytes().take(2).all(|digit| digit.is_ascii_hexdigit()))
}

/// The password as the URI has it, or whatever stands in its place.
pub(super) fn password(uri: &Secret) -> &str {
    let login = uri.expose().rsplit_once('@').map_or("", |(login, _)| login);
    let login = login.split_once("://").map_or(login, |(_, login)| login);
    login.split_once(':').map_or("", |(_, password)| password)
}
