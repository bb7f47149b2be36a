//! The parts of a URL, and the names that the environment has for them.

/// Whether a connection is secured, and whether it logs in.
#[derive(Debug, Clone, Copy, Default)]
pub struct Protection {
    /// Whether it is under TLS.
    pub tls: bool,
    /// Whether it has a user or a password.
    pub login: bool,
}

/// A part of a URL. The variants are in the order of [`Names::parts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// The host's name or address.
    Host,
    /// The port.
    Port,
    /// The user.
    User,
    /// The password.
    Password,
    /// The database or the virtual host.
    Place,
}

impl Part {
    pub(crate) const ALL: [Part; 5] = [Part::Host, Part::Port, Part::User, Part::Password, Part::Place];

    /// Whether the URL has this part. Every URL has a host and a port.
    pub(crate) fn is_named_by(self, url: &str) -> bool {
        let (_, rest) = url.split_once("://").unwrap_or_default();
        let (authority, rest) = rest.split_at(rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len()));
        let login = authority.rsplit_once('@').map_or("", |(login, _)| login);
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        // A URL without a host has the path of a socket.
        let is_socket = authority.is_empty();
        let asks = |name| query.split('&').any(|option| option.split('=').next() == Some(name));
        match self {
            Part::Host | Part::Port => true,
            Part::User => login.split(':').next().is_some_and(|user| !user.is_empty()) || asks("user"),
            Part::Password => login.contains(':') || asks("password") || (is_socket && asks("pass")),
            Part::Place if is_socket => asks("db"),
            Part::Place => path.len() > 1 || asks("database"),
        }
    }
}

/// A field, and the names of its variables in the environment. If several of them are set, the first wins.
pub type Field = (&'static str, &'static [&'static str]);

/// The environment's names for one kind of resource.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// The field of the URL, and its variables.
    pub url: Field,
    /// The fields of the [parts](Part), in their order, and their variables. An empty name stands for no field.
    pub parts: [Field; 5],
    /// The schemes of a URL that ask for no TLS, and the parameters that ask for none, with their values: `tls=false`.
    pub plain: &'static [&'static str],
    /// The variables of the switch, and of the fields of [`TlsOptions`](crate::config::TlsOptions) in their order. An
    /// empty name stands for no variable.
    pub tls: [&'static str; 5],
}

impl Names {
    /// The field for the file that has the password: that of the password, and `_file`.
    pub(crate) fn password_file(&self) -> String {
        format!("{}_file", self.parts[Part::Password as usize].0)
    }

    /// Whether the URL asks for no TLS.
    pub(crate) fn is_plain(&self, url: &str) -> bool {
        let (scheme, rest) = url.trim().split_once("://").unwrap_or_default();
        let query = rest.rsplit_once('?').map_or("", |(_, query)| query);
        let scheme = scheme.to_ascii_lowercase();
        query.split('&').chain([&*scheme]).any(|said| self.plain.contains(&said))
    }
}
