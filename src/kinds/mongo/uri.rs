//! MongoDB's URIs, taken apart by hand and put together again, so that the environment can set a part of one.
//!
//! The driver's `ConnectionString` reads a URI without asking the DNS, but it does not write back all that it has read.
//! It leaves out some options (`serverMonitoringMode` is one), the brackets around IPv6 addresses, and the encoding of
//! values. In a build without `tls` it reads no `mongodb+srv://`. This module cuts a URI where the driver cuts it, and
//! keeps its pieces as they were written. The driver still reads all of it, and reports its mistakes.

use mongodb::options::ServerAddress;

use crate::base::secret::Secret;
use crate::net::url::host_port;

/// A URI in its pieces.
pub(super) struct Uri {
    scheme: String,
    /// User and password, encoded.
    login: Option<(String, Option<String>)>,
    hosts: String,
    path: String,
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

    pub(super) fn has_login(&self) -> bool {
        self.login.is_some()
    }

    pub(super) fn has_database(&self) -> bool {
        !self.path.is_empty()
    }

    pub(super) fn is_srv(&self) -> bool {
        self.scheme == "mongodb+srv"
    }

    /// The value of an option, still encoded. An option that is repeated has its last value, although the driver
    /// refuses it.
    pub(super) fn option(&self, name: &str) -> Option<&str> {
        let options = self.query.iter().filter_map(|option| option.split_once('='));
        options.filter(|(option, _)| option.eq_ignore_ascii_case(name)).map(|(_, value)| value).next_back()
    }

    /// Whether the URI switches TLS on. `None` if it says nothing about TLS.
    pub(super) fn tls(&self) -> Option<bool> {
        match self.option("tls").or(self.option("ssl")) {
            Some(said) => Some(said == "true"),
            None => self.is_srv().then_some(true),
        }
    }

    pub(super) fn switch_tls(&mut self, on: bool) {
        self.query.retain(|option| {
            let name = option.split('=').next().unwrap_or_default().to_ascii_lowercase();
            // The driver refuses options of TLS while TLS is off.
            name != "ssl" && if on { name != "tls" } else { !name.starts_with("tls") }
        });
        self.query.push(format!("tls={on}"));
    }

    /// Names these hosts in place of the present ones, or of a name in the DNS.
    pub(super) fn set_hosts(&mut self, hosts: String) {
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

    /// Moves the URI to another host, at the port of the first one.
    pub(super) fn move_to(&mut self, host: &str) {
        let first = self.hosts.split(',').next().and_then(|first| ServerAddress::parse(first).ok());
        let port = match first {
            Some(ServerAddress::Tcp { port: Some(port), .. }) => port,
            _ => 27017,
        };
        self.set_hosts(host_port(host, port));
    }

    pub(super) fn set_port(&mut self, port: u16) {
        let hosts = self.hosts.split(',').map(|host| match ServerAddress::parse(host) {
            Ok(ServerAddress::Tcp { host, .. }) => host_port(&host, port),
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

    /// Takes the password away, and answers whether there was one.
    pub(super) fn forget_password(&mut self) -> bool {
        self.login.as_mut().is_some_and(|(_, password)| password.take().is_some())
    }

    /// Whether the URI has a login of a mechanism for which a database knows the user.
    pub(super) fn takes_auth_source(&self) -> bool {
        let by_database = |mechanism: &str| mechanism == "PLAIN" || mechanism.starts_with("SCRAM-");
        self.has_login() && self.option("authMechanism").is_none_or(by_database)
    }

    /// Whether the URI says which database knows the user. Without the option that is the URI's own database.
    pub(super) fn names_auth_source(&self) -> bool {
        self.has_database() || self.option("authSource").is_some()
    }

    /// Sets the database that knows the user.
    pub(super) fn set_auth_source(&mut self, source: &str) {
        self.query.retain(|option| !option.to_ascii_lowercase().starts_with("authsource="));
        self.query.push(format!("authSource={}", encoded(source)));
    }

    /// Sets the database. The database that knows the user stays the same.
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

/// The URI with a placeholder for its password, so that an error of the driver may quote it. Where login and host
/// cannot be told apart, neither is left in it.
pub(super) fn without_password(uri: &str) -> String {
    let (scheme, rest) = uri.split_once("://").unwrap_or(("mongodb", ""));
    let (authority, options) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let hosts = authority.rsplit_once('@').map_or("localhost", |(_, hosts)| hosts);
    format!("{scheme}://user:password@{hosts}{options}")
}

/// Whether the driver can decode the login. It panics where a character of several bytes follows a `%`.
pub(super) fn is_encoded(login: &str) -> bool {
    login
        .split('%')
        .skip(1)
        .all(|escape| escape.len() >= 2 && escape.bytes().take(2).all(|digit| digit.is_ascii_hexdigit()))
}

/// The password as the URI has it, or the text that stands in its place.
pub(super) fn password(uri: &Secret) -> &str {
    let login = uri.expose().rsplit_once('@').map_or("", |(login, _)| login);
    let login = login.split_once("://").map_or(login, |(_, login)| login);
    login.split_once(':').map_or("", |(_, password)| password)
}

#[cfg(test)]
mod tests {
    use std::future::IntoFuture;

    use mongodb::options::{ClientOptions, ConnectionString, HostInfo, ServerAddress};

    use super::{Uri, is_encoded, password, without_password};
    use crate::base::runtime::park_on;

    fn uri(text: &str) -> Uri {
        Uri::new(text).expect("has a scheme")
    }

    fn changed(text: &str, change: impl FnOnce(&mut Uri)) -> String {
        let mut uri = uri(text);
        change(&mut uri);
        uri.show()
    }

    /// The URI as the driver reads it.
    fn read(text: &str) -> ConnectionString {
        ConnectionString::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn hosts(text: &str) -> Vec<String> {
        match read(text).host_info {
            HostInfo::HostIdentifiers(hosts) => hosts.iter().map(ToString::to_string).collect(),
            other => panic!("{text}: {other:?}"),
        }
    }

    fn login(text: &str) -> (Option<String>, Option<String>) {
        let credential = read(text).credential.unwrap_or_default();
        (credential.username, credential.password)
    }

    fn source(text: &str) -> Option<String> {
        read(text).credential.and_then(|credential| credential.source)
    }

    #[test]
    fn its_pieces_are_those_that_were_written() {
        let Uri { scheme, login, hosts, path, query } = uri("mongodb://me:p%40ss@a:1,[::1]:2/d%2db?w=1&tls=true");
        assert_eq!(scheme, "mongodb");
        assert_eq!(login, Some(("me".to_owned(), Some("p%40ss".to_owned()))));
        assert_eq!((hosts.as_str(), path.as_str()), ("a:1,[::1]:2", "d%2db"));
        assert_eq!(query, ["w=1", "tls=true"]);
        assert!(Uri::new("localhost:27017").is_none());
    }

    #[test]
    fn it_is_put_together_as_the_driver_reads_it() {
        let mut texts = vec![
            "mongodb://a/",
            "mongodb://a",
            "mongodb://a:1,b,[::1]:2,[fe80::1]/db",
            "mongodb://a?w=1",
            "mongodb://a/?",
            "mongodb://a/db?w=1&readPreferenceTags=x:1&readPreferenceTags=x:2&readPreference=nearest",
            "mongodb://me@a/?authMechanism=MONGODB-X509&tls=true",
            "mongodb://me:p%40%3a%2F%25@a/db?authSource=other",
            "mongodb://%2Ftmp%2Fmongodb-27017.sock,b:1/",
            "mongodb://a/?serverMonitoringMode=poll&tlsCAFile=%2Fa%20b",
            "  mongodb://a/db  ",
        ];
        if cfg!(feature = "tls") {
            texts.extend(["mongodb+srv://me:word@a.b.c/db?srvMaxHosts=2", "mongodb+srv://a.b.c"]);
        }
        for text in texts {
            let shown = uri(text).show();
            assert_eq!(read(&shown), read(text.trim()), "{text}");
            assert_eq!(uri(&shown).show(), shown);
        }
    }

    /// This is why the URI is written by hand. Once this test fails, the driver's own text will do.
    #[test]
    fn the_driver_writes_less_than_it_reads() {
        let mode = "mongodb://a/?serverMonitoringMode=poll";
        assert_ne!(read(&read(mode).to_string()), read(mode));
        let address = read("mongodb://[::1]:2/").to_string();
        assert!(ConnectionString::parse(&address).is_err(), "{address}");
    }

    #[test]
    fn empty_pieces_are_left_out() {
        assert_eq!(uri("mongodb://a").show(), "mongodb://a/");
        assert_eq!(uri("mongodb://a/?").show(), "mongodb://a/");
        assert_eq!(uri("mongodb://a/?&w=1&&j=true&").show(), "mongodb://a/?w=1&j=true");
        assert_eq!(uri("mongodb://").show(), "mongodb:///");
        assert_eq!(uri("mongodb://@a").show(), "mongodb://@a/");
        assert_eq!(uri("mongodb://:@a").show(), "mongodb://:@a/");
    }

    #[test]
    fn the_last_at_sign_ends_the_login() {
        for (text, pieces) in [
            ("mongodb://me:p@ss@a/db", ("me", Some("p@ss"))),
            ("mongodb://me:pa/ss@a/db", ("me", Some("pa/ss"))),
            ("mongodb://me:pa:ss@a/db", ("me", Some("pa:ss"))),
            ("mongodb://m@e@a/db", ("m@e", None)),
        ] {
            let Uri { login, hosts, path, .. } = uri(text);
            let login = login.as_ref().map(|(user, password)| (user.as_str(), password.as_deref()));
            assert_eq!((login, hosts.as_str(), path.as_str()), (Some(pieces), "a", "db"), "{text}");
            assert_eq!(uri(text).show(), text);
        }
        assert!(!uri("mongodb://a/db?appName=me@b").has_login());
    }

    #[test]
    fn user_and_password_are_encoded() {
        let odd = "a:b@c/d?e#f%g ü";
        for text in ["mongodb://me:word@a/", "mongodb://me@a/", "mongodb://:@a/"] {
            let other = changed(text, |uri| {
                uri.set_user(odd);
                uri.set_password(odd);
            });
            assert_eq!(login(&other), (Some(odd.to_owned()), Some(odd.to_owned())), "{other}");
        }
        let user = changed("mongodb://me:w%6Frd@a/", |uri| uri.set_user("you"));
        assert_eq!(user, "mongodb://you:w%6Frd@a/");
        let password = changed("mongodb://m%65@a/", |uri| uri.set_password("word"));
        assert_eq!(password, "mongodb://m%65:word@a/");
    }

    #[test]
    fn another_port_is_that_of_every_host() {
        let other = changed("mongodb://A:1,b,127.0.0.1:3/db?w=1", |uri| uri.set_port(9));
        assert_eq!(other, "mongodb://a:9,b:9,127.0.0.1:9/db?w=1");
        assert_eq!(changed("mongodb://[::1]:2,[fe80::1]", |uri| uri.set_port(9)), "mongodb://[::1]:9,[fe80::1]:9/");
        let socket = changed("mongodb://%2Ftmp%2Fm.sock,b:1/", |uri| uri.set_port(9));
        assert_eq!(socket, "mongodb://%2Ftmp%2Fm.sock,b:9/");
        assert_eq!(hosts(&socket), ["/tmp/m.sock", "b:9"]);
    }

    #[test]
    fn another_host_has_the_port_of_the_first_one() {
        for (text, place) in [
            ("mongodb://a:1,b:2/db", "c:1"),
            ("mongodb://a,b:2/", "c:27017"),
            ("mongodb://[::1]:3/", "c:3"),
            ("mongodb://%2Ftmp%2Fm.sock,b:2/", "c:27017"),
        ] {
            assert_eq!(hosts(&changed(text, |uri| uri.move_to("c"))), [place], "{text}");
        }
        let address = changed("mongodb://a:1/", |uri| uri.move_to("::1"));
        assert_eq!(address, "mongodb://[::1]:1/");
    }

    #[test]
    fn another_database_leaves_the_one_that_knows_the_user() {
        let other = changed("mongodb://me:word@a/d%2db?w=1", |uri| uri.set_database("other"));
        assert_eq!((read(&other).default_database.as_deref(), source(&other).as_deref()), (Some("other"), Some("d-b")));
        let said = changed("mongodb://me:word@a/db?AUTHSOURCE=users", |uri| uri.set_database("other"));
        assert_eq!(said, "mongodb://me:word@a/other?AUTHSOURCE=users");
        assert_eq!(changed("mongodb://a/db", |uri| uri.set_database("other")), "mongodb://a/other");
        let odd = changed("mongodb://a/db", |uri| uri.set_database("a?b-c"));
        assert_eq!(read(&odd).default_database.as_deref(), Some("a?b-c"));
        assert!(uri("mongodb://a/db").has_database() && !uri("mongodb://a/").has_database());
    }

    #[test]
    fn an_option_is_found_in_any_case_and_the_last_one_counts() {
        let uri = uri("mongodb://a/?W=1&w=2&ssl&AppName=x=y");
        assert_eq!((uri.option("w"), uri.option("appname")), (Some("2"), Some("x=y")));
        assert_eq!((uri.option("ssl"), uri.option("j")), (None, None));
        assert!(ConnectionString::parse(uri.show()).is_err());
    }

    #[test]
    fn tls_is_on_where_the_driver_has_it_on() {
        for (text, tls) in [
            ("mongodb://a/", None),
            ("mongodb://a/?tls=true", Some(true)),
            ("mongodb://a/?ssl=true", Some(true)),
            ("mongodb://a/?TLS=false", Some(false)),
            ("mongodb+srv://a.b.c/", Some(true)),
            ("mongodb+srv://a.b.c/?ssl=false", Some(false)),
        ] {
            assert_eq!(uri(text).tls(), tls, "{text}");
        }
    }

    #[test]
    fn tls_is_switched_with_what_belongs_to_it() {
        let on = changed("mongodb://a/?ssl=false&w=1", |uri| uri.switch_tls(true));
        assert_eq!(on, "mongodb://a/?w=1&tls=true");
        let on = changed("mongodb://a/?tls=true&tlsCAFile=x", |uri| uri.switch_tls(true));
        assert_eq!(on, "mongodb://a/?tlsCAFile=x&tls=true");
        let off = changed("mongodb://a/?tlsCAFile=x&TLSInsecure=true&ssl=true&w=1", |uri| uri.switch_tls(false));
        assert_eq!(off, "mongodb://a/?w=1&tls=false");
    }

    #[test]
    fn hosts_take_the_place_of_the_name_in_the_dns() {
        let named = |text| changed(text, |uri| uri.set_hosts("a:1,b:2".to_owned()));
        let text = "mongodb+srv://me:word@a.b.c/db?srvMaxHosts=2&w=1&SRVServiceName=x";
        assert_eq!(named(text), "mongodb://me:word@a:1,b:2/db?w=1&tls=true");
        assert_eq!(named("mongodb+srv://a.b.c/?tls=false"), "mongodb://a:1,b:2/?tls=false");
        assert_eq!(named("mongodb+srv://a.b.c/?ssl=true"), "mongodb://a:1,b:2/?ssl=true");
        assert_eq!(named("mongodb://c/db"), "mongodb://a:1,b:2/db");
        assert_eq!(hosts(&named(text)), ["a:1", "b:2"]);
    }

    #[test]
    fn a_password_is_found_wherever_it_may_stand() {
        for (text, found) in [
            ("mongodb://me:p%40ss@a/", "p%40ss"),
            ("mongodb://me:p@ss@a/", "p@ss"),
            ("mongodb://me:p:/?ss@a/", "p:/?ss"),
            ("me:word@a", "word"),
            ("mongodb://me@a/", ""),
            ("mongodb://a:1/", ""),
        ] {
            assert_eq!(password(&text.into()), found, "{text}");
        }
    }

    #[test]
    fn what_the_driver_is_shown_after_an_error_has_no_password() {
        for (text, shown) in [
            ("mongodb://me:word@a:1,b/db?w=1", "mongodb://user:password@a:1,b/db?w=1"),
            ("mongodb+srv://me:w@ord@a.b.c", "mongodb+srv://user:password@a.b.c"),
            ("mongodb://word?w=1", "mongodb://user:password@localhost?w=1"),
            ("mongodb://me:wo/rd@a/", "mongodb://user:password@localhost/rd@a/"),
            ("word", "mongodb://user:password@localhost"),
        ] {
            assert_eq!(without_password(text), shown);
        }
    }

    #[test]
    fn a_percent_sign_needs_two_digits() {
        for login in ["me:word", "m%65:%2f%2F", "", "me:"] {
            assert!(is_encoded(login), "{login}");
        }
        for login in ["me:100%", "me:%4", "me:%4:0", "me:%gg", "me:%é", "%%41"] {
            assert!(!is_encoded(login), "{login}");
        }
    }

    #[test]
    fn what_is_written_makes_options_without_the_dns() {
        let text = changed("mongodb://me:word@a:1/db", |uri| uri.move_to("b"));
        let options = park_on(ClientOptions::parse(text).into_future()).unwrap();
        assert_eq!(options.hosts, [ServerAddress::Tcp { host: "b".to_owned(), port: Some(1) }]);
    }
}
