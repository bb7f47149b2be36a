//! The configuration of a MongoDB: its fields and defaults, and the options that the driver is given for them.

use std::time::Duration;

use mongodb::options::{AuthMechanism, ClientOptions, ConnectionString, Credential, ServerAddress, Tls};
use serde::Deserialize;

use crate::base::attribute;
use crate::base::error::Error;
use crate::base::millis;
use crate::base::secret::{Secret, SecretFile};
use crate::base::setters::setters;
use crate::kinds::mongo::hosts::{Hosts, parse, shown};
use crate::kinds::mongo::resource::MongoResource;
use crate::kinds::mongo::uri::{Uri, password};
use crate::lifecycle::kind::KindConfig;
use crate::net::checks::Checks;
use crate::net::parts::{Field, Names, Part, Protection};
use crate::net::tls::{self, TlsOptions};
use crate::net::url::{host, port};

/// How to reach a MongoDB; `[mongo]` or `[named.mongo.NAME]` in TOML.
///
/// An option that the URI or [`options`](Self::options) sets wins over the field of the same meaning here. With the
/// default limits a frozen server surfaces within 4 s as an error of the driver, also in operations that are in flight.
/// An operation that is merely slow is never cut.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct MongoConfig {
    /// `mongodb://user:password@host:port,host:port/database?replicaSet=…`, instead of the parts. A part that the URI
    /// does not name keeps the value of its field. `mongodb+srv://` asks the DNS for the hosts whenever it connects,
    /// uses TLS, and needs the feature `tls`. Environment: `MONGODB_URI`, and `MONGODB` if it holds a URI.
    pub uri: Option<Secret>,
    /// Defaults to `localhost`. Environment: `MONGODB_HOST`, `MONGODB`.
    pub host: String,
    /// Defaults to 27017. Environment: `MONGODB_PORT`, `MONGODBPORT`.
    pub port: u16,
    /// Defaults to none. Environment: `MONGODB_USER`.
    pub user: Option<String>,
    /// Defaults to none. Environment: `MONGODB_PASSWORD`.
    pub password: Option<Secret>,
    /// The file that has the password, instead of `password`. It is read again at every connect. Defaults to none.
    /// Environment: `MONGODB_PASSWORD_FILE`.
    pub password_file: Option<SecretFile>,
    /// The database that `Client::default_database` answers. Defaults to `quantaxis`, as in QUANTAXIS. Environment:
    /// `MONGODB_DATABASE`.
    pub database: String,
    /// The database that knows the user. A URI with a login and an `authSource` or a database makes the pool ignore it,
    /// unless it comes from the environment and the URI does not. Defaults to none: the URI's database, or `admin`.
    /// Environment: `MONGODB_AUTH_SOURCE`.
    pub auth_source: Option<String>,
    /// The name of the replica set of the host. A URI or `options` makes the pool ignore it. Defaults to none.
    pub replica_set: Option<String>,
    /// The name that the server's log and `$currentOp` show. Defaults to `resource-pool`.
    pub app_name: String,
    /// The most connections to each server. Defaults to 100, as in QUANTAXIS.
    pub max_pool_size: u32,
    /// How many connections to each server are kept open. Defaults to 10, as in QUANTAXIS, or to the most connections
    /// if that is less.
    pub min_pool_size: u32,
    /// The time after which an idle connection is closed. Defaults to 60 s, as in QUANTAXIS.
    #[serde(rename = "max_idle_time_ms", with = "millis")]
    pub max_idle_time: Duration,
    /// The interval at which each server is checked; at least 500 ms. Defaults to 1 s.
    #[serde(rename = "heartbeat_ms", with = "millis")]
    pub heartbeat: Duration,
    /// The limit for opening a connection, and for a server's answer to a check. Defaults to 1 s.
    #[serde(rename = "connect_timeout_ms", with = "millis")]
    pub connect_timeout: Duration,
    /// The limit for an operation to find a server that can take it. Defaults to 2 s.
    #[serde(rename = "server_selection_timeout_ms", with = "millis")]
    pub server_selection_timeout: Duration,
    /// The options of TLS. Defaults to none: plain, unless the URI says `tls=true` or is a `mongodb+srv://`.
    /// Environment: `MONGODB_TLS`, `MONGODB_TLS_CA_FILE`, `MONGODB_TLS_CERT_FILE`, `MONGODB_TLS_KEY_FILE`,
    /// `MONGODB_TLS_SERVER_NAME`. The driver takes no server name, and the key only from the certificate's file.
    pub tls: Option<TlsOptions>,
    /// Options of the driver, instead of the URI and the parts. An option that they leave out comes from the fields
    /// above. Can be set only in code. Defaults to none.
    ///
    /// Event handlers set here are called too, after the pool's own.
    #[serde(skip)]
    pub options: Option<ClientOptions>,
}

impl Default for MongoConfig {
    fn default() -> Self {
        MongoConfig {
            uri: None,
            host: "localhost".to_owned(),
            port: 27017,
            user: None,
            password: None,
            password_file: None,
            database: "quantaxis".to_owned(),
            auth_source: None,
            replica_set: None,
            app_name: "resource-pool".to_owned(),
            max_pool_size: 100,
            min_pool_size: 10,
            max_idle_time: Duration::from_secs(60),
            heartbeat: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
            server_selection_timeout: Duration::from_secs(2),
            tls: None,
            options: None,
        }
    }
}

impl MongoConfig {
    /// The defaults, at this URI.
    pub fn uri(uri: impl Into<Secret>) -> Self {
        MongoConfig { uri: Some(uri.into()), ..MongoConfig::default() }
    }

    /// These options of the driver. The defaults complete them.
    pub fn options(options: ClientOptions) -> Self {
        MongoConfig { options: Some(options), ..MongoConfig::default() }
    }

    /// Sets the most connections to each server.
    pub fn max_pool_size(mut self, max_pool_size: u32) -> Self {
        self.max_pool_size = max_pool_size;
        self
    }

    /// Sets how many connections to each server are kept open.
    pub fn min_pool_size(mut self, min_pool_size: u32) -> Self {
        self.min_pool_size = min_pool_size;
        self
    }

    /// Sets the file that has the password, which is read again at every connect.
    pub fn password_file(mut self, file: impl Into<SecretFile>) -> Self {
        self.password_file = Some(file.into());
        self
    }

    /// Speaks TLS.
    pub fn tls(mut self, tls: TlsOptions) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets the name that the server's log and `$currentOp` show.
    pub fn app_name(mut self, name: impl Into<String>) -> Self {
        self.app_name = name.into();
        self
    }

    /// The options for the driver, or the name in the DNS under which the hosts are found.
    pub(super) fn client_options(&self, name: &str) -> Result<Hosts, Error> {
        let options = match (&self.options, &self.uri) {
            (Some(options), _) => options.clone(),
            (None, Some(uri)) => match parse(&format!("{name}.uri"), &self.with_auth_source(uri))? {
                Hosts::Known(options) => *options,
                srv => return Ok(srv),
            },
            (None, None) => {
                let mut config = self.clone();
                Checks(name).place(&mut config.host, config.port)?;
                config.parts()
            }
        };
        Ok(Hosts::Known(self.completed(name, options)?.into()))
    }

    /// Fills in the fields of this configuration where the options are not set.
    pub(super) fn completed(&self, name: &str, mut options: ClientOptions) -> Result<ClientOptions, Error> {
        let max = *options.max_pool_size.get_or_insert(self.max_pool_size);
        options.min_pool_size.get_or_insert(self.min_pool_size.min(max));
        options.max_idle_time.get_or_insert(self.max_idle_time);
        options.heartbeat_freq.get_or_insert(self.heartbeat);
        options.connect_timeout.get_or_insert(self.connect_timeout);
        options.server_selection_timeout.get_or_insert(self.server_selection_timeout);
        options.app_name.get_or_insert_with(|| self.app_name.clone());
        options.default_database.get_or_insert_with(|| self.database.clone());
        self.log_in(name, &mut options)?;
        self.secure(&format!("{name}.tls"), &mut options)?;
        check(name, &options)?;
        Ok(options)
    }

    fn secure(&self, key: &str, options: &mut ClientOptions) -> Result<(), Error> {
        if let Some(ours) = &self.tls {
            if cfg!(not(feature = "tls")) {
                return Err(tls::missing(key));
            }
            let mut theirs = match options.tls.take() {
                Some(Tls::Enabled(theirs)) => theirs,
                Some(Tls::Disabled) => return Err(Error::config(key, "the URI says tls=false")),
                None => mongodb::options::TlsOptions::default(),
            };
            if ours.server_name.is_some() {
                let problem = "is not supported for MongoDB: its driver always checks the host's name, so connect by a name of the certificate";
                return Err(Error::config(format!("{key}.server_name"), problem));
            }
            if ours.key_file.is_some() && ours.key_file != ours.cert_file {
                let problem =
                    "is not supported for MongoDB: its driver wants certificate and key in one file, cert_file";
                return Err(Error::config(format!("{key}.key_file"), problem));
            }
            theirs.ca_file_path = theirs.ca_file_path.or_else(|| ours.ca_file.clone());
            theirs.cert_key_file_path = theirs.cert_key_file_path.or_else(|| ours.cert_file.clone());
            options.tls = Some(Tls::Enabled(theirs));
        }
        if let Some(Tls::Enabled(theirs)) = &options.tls {
            // The driver accepts an authorities' file that holds no authority, so the file is checked here.
            tls::check(key, theirs.ca_file_path.as_deref(), theirs.cert_key_file_path.as_deref())?;
        }
        Ok(())
    }

    /// The URI, with the database that knows the user where the URI names no database.
    fn with_auth_source(&self, uri: &Secret) -> Secret {
        match (&self.auth_source, Uri::new(uri.expose())) {
            (Some(source), Some(mut pieces)) if pieces.takes_auth_source() && !pieces.names_auth_source() => {
                pieces.set_auth_source(source);
                pieces.show().into()
            }
            _ => uri.clone(),
        }
    }

    fn uri_in_pieces(&self) -> Option<Uri> {
        self.uri.as_ref().and_then(|uri| Uri::new(uri.expose()))
    }

    fn parts(&self) -> ClientOptions {
        // The driver appends a colon and the port to any host, so an IPv6 address needs its brackets here.
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let mut options =
            ClientOptions::builder().hosts(vec![ServerAddress::Tcp { host, port: Some(self.port) }]).build();
        options.repl_set_name.clone_from(&self.replica_set);
        options
    }

    /// Completes user and password where the URI leaves them out. Half a login is an error.
    fn log_in(&self, name: &str, options: &mut ClientOptions) -> Result<(), Error> {
        if options.credential.is_none() && (self.user.is_some() || self.password.is_some()) {
            let source = self.auth_source.clone().unwrap_or_else(|| "admin".to_owned());
            options.credential = Some(Credential::builder().username(self.user.clone()).source(source).build());
        }
        let Some(credential) = &mut options.credential else { return Ok(()) };
        if credential.username.is_some() && credential.password.is_none() {
            credential.password = self.password.as_ref().map(|password| password.expose().to_owned());
        }
        let takes_no_password = credential.mechanism.as_ref().is_some_and(|mechanism| {
            !matches!(mechanism, AuthMechanism::ScramSha1 | AuthMechanism::ScramSha256 | AuthMechanism::Plain)
        });
        match credential {
            _ if takes_no_password => Ok(()),
            Credential { username: None, .. } => Err(Error::config(
                format!("{name}.password"),
                "is without a user, so the driver would not send it: set the user, too",
            )),
            Credential { password: None, .. } => Err(Error::config(format!("{name}.user"), "is without a password")),
            _ => Ok(()),
        }
    }

    /// Copies the values of these options into the fields, for the log.
    fn take_over(&mut self, options: ClientOptions) {
        let credential = options.credential.unwrap_or_default();
        (self.user, self.password) = (credential.username, credential.password.map(Secret::from));
        self.auth_source = credential.source.or(self.auth_source.take());
        self.replica_set = options.repl_set_name;
        self.database = options.default_database.unwrap_or_default();
        self.app_name = options.app_name.unwrap_or_default();
        self.max_pool_size = options.max_pool_size.unwrap_or(self.max_pool_size);
        self.min_pool_size = options.min_pool_size.unwrap_or(self.min_pool_size);
        self.max_idle_time = options.max_idle_time.unwrap_or(self.max_idle_time);
        self.heartbeat = options.heartbeat_freq.unwrap_or(self.heartbeat);
        self.connect_timeout = options.connect_timeout.unwrap_or(self.connect_timeout);
        self.server_selection_timeout = options.server_selection_timeout.unwrap_or(self.server_selection_timeout);
        self.tls = match options.tls {
            Some(Tls::Enabled(theirs)) => Some(TlsOptions {
                ca_file: theirs.ca_file_path,
                cert_file: theirs.cert_key_file_path,
                ..TlsOptions::default()
            }),
            _ => None,
        };
    }
}

impl MongoConfig {
    setters! {
        plain {
            /// Sets the port.
            port: u16,
            /// Sets the time after which an idle connection is closed.
            max_idle_time: Duration,
            /// Sets the interval at which each server is checked.
            heartbeat: Duration,
            /// Sets the limit for opening a connection, and for a server's answer to a check.
            connect_timeout: Duration,
            /// Sets the limit for an operation to find a server that can take it.
            server_selection_timeout: Duration,
        }
        text {
            /// Sets the host.
            host: String,
            /// Sets the database that `Client::default_database` answers.
            database: String,
        }
        optional {
            /// Sets the user.
            user: String,
            /// Sets the password.
            password: Secret,
            /// Sets the database that knows the user.
            auth_source: String,
            /// Sets the name of the replica set of the host.
            replica_set: String,
        }
    }
}

impl KindConfig for MongoConfig {
    const KIND: &'static str = "mongo";
    const SYSTEM: (&'static str, &'static str) = (attribute::DATABASE_SYSTEM, "mongodb");
    const IS_OURS: bool = true;
    type Resource = MongoResource;

    const NAMES: Names = Names {
        url: ("uri", &["MONGODB_URI", "MONGODB"]),
        parts: [
            ("host", &["MONGODB_HOST", "MONGODB"]),
            ("port", &["MONGODB_PORT", "MONGODBPORT"]),
            ("user", &["MONGODB_USER"]),
            ("password", &["MONGODB_PASSWORD"]),
            ("database", &["MONGODB_DATABASE"]),
        ],
        plain: &["tls=false", "ssl=false"],
        tls: [
            "MONGODB_TLS",
            "MONGODB_TLS_CA_FILE",
            "MONGODB_TLS_CERT_FILE",
            "MONGODB_TLS_KEY_FILE",
            "MONGODB_TLS_SERVER_NAME",
        ],
    };

    const MORE: &[Field] = &[("auth_source", &["MONGODB_AUTH_SOURCE"])];

    fn url_mut(&mut self) -> &mut Option<Secret> {
        &mut self.uri
    }

    fn tls_mut(&mut self) -> &mut Option<TlsOptions> {
        &mut self.tls
    }

    fn protection(&self) -> Protection {
        let (tls, login) = self.uri_in_pieces().map_or((None, false), |uri| (uri.tls(), uri.has_login()));
        Protection { tls: tls.unwrap_or(self.tls.is_some()), login: login || self.has_login() }
    }

    fn has_login(&self) -> bool {
        self.user.is_some() || self.password.is_some() || self.password_file.is_some()
    }

    fn forget_login(&mut self) {
        (self.user, self.password, self.auth_source) = (None, None, None);
    }

    fn forget_password(&mut self) -> bool {
        let mut uri = self.uri_in_pieces();
        let by_uri = uri.as_mut().is_some_and(Uri::forget_password);
        if by_uri {
            self.uri = uri.map(|uri| uri.show().into());
        }
        self.password.take().is_some() || by_uri
    }

    fn password_file(&self) -> Option<&SecretFile> {
        self.password_file.as_ref()
    }

    fn set_password_file(&mut self, file: Option<SecretFile>) {
        self.password_file = file;
    }

    fn set(&mut self, part: Part, key: &str, text: &str) -> Result<(), Error> {
        let mut uri = self.uri_in_pieces();
        match (part, &mut uri) {
            (Part::Host, Some(uri)) => uri.move_to(host(key, text)?),
            (Part::Host, None) => host(key, text)?.clone_into(&mut self.host),
            (Part::Port, Some(uri)) if uri.is_srv() => {
                return Err(Error::config(
                    key,
                    "cannot be set with mongodb+srv://: the DNS knows the hosts and their ports",
                ));
            }
            (Part::Port, Some(uri)) => uri.set_port(port(key, text)?),
            (Part::Port, None) => self.port = port(key, text)?,
            (Part::User, Some(uri)) if uri.has_login() => uri.set_user(text),
            (Part::User, _) => self.user = Some(text.to_owned()),
            (Part::Password, Some(uri)) if uri.has_login() => uri.set_password(text),
            (Part::Password, _) => self.password = Some(text.into()),
            (Part::Place, Some(uri)) if uri.has_database() => uri.set_database(text),
            (Part::Place, _) => text.clone_into(&mut self.database),
        }
        self.uri = uri.map(|uri| uri.show().into());
        Ok(())
    }

    fn set_more(&mut self, _auth_source: &str, _: &str, text: &str) -> Result<(), Error> {
        self.auth_source = Some(text.to_owned());
        if let Some(mut uri) = self.uri_in_pieces().filter(Uri::takes_auth_source) {
            uri.set_auth_source(text);
            self.uri = Some(uri.show().into());
        }
        Ok(())
    }

    fn take_apart(&mut self, key: &str) -> Result<(), Error> {
        self.uri.as_ref().map_or(Ok(()), |uri| parse(key, uri).map(drop))
    }

    fn switch_tls(&mut self, on: bool) {
        if let Some(mut uri) = self.uri_in_pieces() {
            uri.switch_tls(on);
            self.uri = Some(uri.show().into());
        }
    }

    fn settled(&self, name: &str) -> Result<Self, Error> {
        let mut config = self.clone();
        config.read_password(name)?;
        let hosts = config.client_options(name)?;
        config.options = None;
        match hosts {
            Hosts::Known(options) => {
                (config.uri, config.host) = (None, shown(&options.hosts));
                if let [ServerAddress::Tcp { host, port }] = &options.hosts[..] {
                    (config.host, config.port) = (host.clone(), port.unwrap_or(27017));
                }
                config.take_over(*options);
            }
            Hosts::Srv { host, database, .. } => {
                config.host = host;
                config.database = database.unwrap_or(config.database);
            }
        }
        Ok(config)
    }

    fn resource(&self, name: &str) -> Result<MongoResource, Error> {
        let mut now = self.clone();
        now.read_password(name)?;
        let hosts = now.client_options(name)?;
        let mut secrets: Vec<Secret> = now.uri.iter().map(|uri| password(uri).into()).collect();
        match &hosts {
            Hosts::Known(options) => secrets.extend(passwords(options)),
            Hosts::Srv { host, uri, .. } => {
                // These checks need no answer of the DNS.
                let mut stand_in = now.parts();
                stand_in.hosts = vec![ServerAddress::Tcp { host: host.clone(), port: None }];
                stand_in.credential = ConnectionString::parse(uri.expose()).ok().and_then(|said| said.credential);
                secrets.extend(passwords(&now.completed(name, stand_in)?));
            }
        }
        Ok(MongoResource { name: name.to_owned(), config: self.clone(), hosts, secrets })
    }
}

/// Checks that the driver makes only when a client is made, or not at all.
fn check(name: &str, options: &ClientOptions) -> Result<(), Error> {
    let max = options.max_pool_size.unwrap_or_default();
    let checks = Checks(name);
    // The driver reads a limit of zero as no limit.
    checks.counts(&[("max_pool_size", max as usize)])?;
    if options.app_name.as_ref().is_some_and(|app_name| app_name.len() > 128) {
        return checks.fail("app_name", "is longer than 128 bytes");
    }
    if options.min_pool_size.is_some_and(|min| min > max) {
        return Err(Error::config(format!("{name}.min_pool_size"), "is more than max_pool_size"));
    }
    if options.heartbeat_freq.is_some_and(|heartbeat| heartbeat < Duration::from_millis(500)) {
        return Err(Error::config(format!("{name}.heartbeat_ms"), "must be at least 500"));
    }
    if options.hosts.is_empty() {
        return Err(Error::config(format!("{name}.options"), "name no host"));
    }
    Ok(())
}

fn passwords(options: &ClientOptions) -> impl Iterator<Item = Secret> {
    options.credential.iter().filter_map(|credential| credential.password.clone()).map(Secret::from)
}
