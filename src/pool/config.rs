//! Configuration: code, over environment, over TOML, over defaults for localhost.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
#[cfg(any(feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
use std::time::Duration;

use serde::Deserialize;
#[cfg(any(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
use tokio::sync::Semaphore;

use crate::base::environment::Environment;
use crate::base::error::{Error, Remedies};
pub use crate::base::repeat::Repeat;
pub use crate::base::retry::Retry;
pub use crate::base::secret::Secret;
#[cfg(feature = "clickhouse")]
pub use crate::kinds::clickhouse::ClickHouseConfig;
#[cfg(feature = "mongodb")]
pub use crate::kinds::mongo::MongoConfig;
#[cfg(feature = "rabbitmq")]
pub use crate::kinds::rabbitmq::RabbitMqConfig;
#[cfg(feature = "redis")]
pub use crate::kinds::redis::RedisConfig;
pub use crate::lifecycle::close::CloseOptions;
pub use crate::lifecycle::exit::ExitStatus;
pub use crate::lifecycle::health::HealthOptions;
pub use crate::lifecycle::leak::LeakOptions;
pub use crate::lifecycle::options::Options;
pub use crate::lifecycle::probe::ProbeOptions;
use crate::lifecycle::resource::Resource;
pub use crate::net::tls::TlsOptions;
#[cfg(any(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
use crate::net::url::host;

/// The environment variable that names the TOML file.
pub const CONFIG_FILE: &str = "RESOURCE_POOL_CONFIG";

/// One resource's configuration, whatever its kind.
#[allow(clippy::large_enum_variant, reason = "there are as many as resources, each made once")]
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ResourceConfig {
    /// A MongoDB.
    #[cfg(feature = "mongodb")]
    Mongo(MongoConfig),
    /// A RabbitMQ.
    #[cfg(feature = "rabbitmq")]
    RabbitMq(RabbitMqConfig),
    /// A ClickHouse.
    #[cfg(feature = "clickhouse")]
    ClickHouse(ClickHouseConfig),
    /// A Redis.
    #[cfg(feature = "redis")]
    Redis(RedisConfig),
    /// There is no kind in a build without backends.
    #[cfg(not(any(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis")))]
    Nothing,
}

/// What a backend's configuration can do.
pub(crate) trait BackendConfig: Default + Clone + PartialEq + fmt::Debug + Into<ResourceConfig> {
    /// The name of the default resource, of its TOML section, and of the kind.
    const KIND: &'static str;
    const NAMES: Names;
    type Resource: Resource;

    fn of(config: &ResourceConfig) -> Option<&Self>;
    fn url_mut(&mut self) -> &mut Option<Secret>;
    fn tls_mut(&mut self) -> &mut Option<TlsOptions>;
    /// What protects it, whether a URL or a part says so; nothing if the URL cannot be used.
    fn guard(&self) -> Guard;
    /// Takes user and password back to their defaults.
    fn forget_login(&mut self);
    /// Sets one part, in the URL if that cannot be taken apart.
    fn set(&mut self, part: Part, key: &str, text: &str) -> Result<(), Error>;
    /// Moves what the URL says into the other fields, as far as they can say it, or only checks it. What the URL does
    /// not name stays as the fields have it.
    fn take_apart(&mut self, key: &str) -> Result<(), Error>;
    /// A URL that is not taken apart is told whether TLS is on.
    fn switch_tls(&mut self, _on: bool) {}
    /// The configuration as it counts, taken apart and checked. Reads TLS's files, and does no other I/O.
    fn settled(&self, name: &str) -> Result<Self, Error>;
    fn resource(&self, name: &str) -> Result<Self::Resource, Error>;

    /// Lets the environment override what TOML or the defaults said.
    ///
    /// A URL replaces place, login and TLS, and the parts beside it only complete it. Without a URL each part replaces
    /// that part alone, so that the login and TLS of a URL in TOML stay.
    fn apply(&mut self, environment: &Environment, origins: &mut Origins) -> Result<(), Error> {
        let Names { url: (url_field, _), parts, tls: [switch, files @ ..] } = Self::NAMES;
        let key = |field: &str| format!("{}.{field}", Self::KIND);
        let below = self.clone();
        let url = Self::NAMES.url(environment)?;
        let is_named = |part: Part| url.as_ref().is_some_and(|(_, url)| part.is_named_by(url));
        let mut said = Vec::new();
        for part in Part::ALL.into_iter().filter(|part| !is_named(*part)) {
            said.extend(Self::NAMES.part(environment, part)?.map(|(variable, text)| (part, variable, text)));
        }
        let on = environment.switch(switch)?;
        let by_file = environment.first(&files)?.is_some();
        match &url {
            Some((variable, url)) => {
                self.forget_login();
                *self.url_mut() = None;
                if Self::NAMES.is_plain(url) {
                    *self.tls_mut() = None;
                }
                for field in parts.iter().map(|(field, _)| *field).chain([url_field]) {
                    origins.variable(key(field), variable);
                }
            }
            None if said.is_empty() && on.is_none() && !by_file => return Ok(()),
            None => self.take_apart(&key(url_field))?,
        }
        for (part, variable, text) in said {
            self.set(part, variable, &text)?;
            origins.variable(key(parts[part as usize].0), variable);
        }
        TlsOptions::apply(self.tls_mut(), environment, Self::NAMES.tls)?;
        for (field, variable) in
            ["tls", "tls.ca_file", "tls.cert_file", "tls.key_file", "tls.server_name"].iter().zip(Self::NAMES.tls)
        {
            if environment.get(variable)?.is_some() {
                origins.variable(key(field), variable);
            }
        }
        if let Some((variable, url)) = &url {
            *self.url_mut() = Some(url.as_str().into());
            self.take_apart(variable)?;
            if on == Some(false) && self.guard().tls {
                return Err(Error::config(switch, format!("is `false`, but {variable} asks for TLS")));
            }
        } else if let Some(on) = on {
            self.switch_tls(on);
        }
        let (before, after) = (below.guard(), self.guard());
        let from = |field| if below.clone().url_mut().is_some() { key(url_field) } else { key(field) };
        let by = |variable| url.as_ref().map_or(variable, |(variable, _)| *variable);
        if before.tls && !after.tls {
            tracing::warn!("{} takes away the TLS that {} asks for", by(switch), from("tls"));
        }
        if before.login && !after.login {
            tracing::warn!("{} takes away the login that {} has", by("a URL"), from("password"));
        }
        Ok(())
    }
}

/// Whether a connection is secured, and whether it logs in.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Guard {
    pub(crate) tls: bool,
    pub(crate) login: bool,
}

/// What a URL can be taken apart into, in the order of [`Names::parts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Host,
    Port,
    User,
    Password,
    /// The database or the virtual host.
    Place,
}

impl Part {
    const ALL: [Part; 5] = [Part::Host, Part::Port, Part::User, Part::Password, Part::Place];

    /// Whether the URL says it. Host and port are said by every URL.
    fn is_named_by(self, url: &str) -> bool {
        let (_, rest) = url.split_once("://").unwrap_or_default();
        let (authority, rest) = rest.split_at(rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len()));
        let login = authority.rsplit_once('@').map_or("", |(login, _)| login);
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let asks = |name| query.split('&').any(|option| option.split('=').next() == Some(name));
        match self {
            Part::Host | Part::Port => true,
            Part::User => login.split(':').next().is_some_and(|user| !user.is_empty()) || asks("user"),
            Part::Password => login.contains(':') || asks("password"),
            Part::Place => path.len() > 1 || asks("database"),
        }
    }
}

/// A field, and what the environment calls it. Where several of its variables are set the first wins.
type Field = (&'static str, &'static [&'static str]);

/// The environment's names for one kind of resource.
#[derive(Clone, Copy)]
pub(crate) struct Names {
    pub(crate) url: Field,
    pub(crate) parts: [Field; 5],
    /// The switch, and the fields of [`TlsOptions`].
    pub(crate) tls: [&'static str; 5],
}

impl Names {
    fn all(&self) -> impl Iterator<Item = &'static str> {
        let parts = self.parts.into_iter().flat_map(|(_, names)| names);
        self.url.1.iter().chain(parts).copied().chain(self.tls)
    }

    /// A variable that may hold either holds a URL if it looks like one.
    fn url(&self, environment: &Environment) -> Result<Option<(&'static str, String)>, Error> {
        let hosts = self.parts[Part::Host as usize].1;
        environment.first_that(self.url.1, |name, value| value.contains("://") || !hosts.contains(&name))
    }

    fn part(&self, environment: &Environment, part: Part) -> Result<Option<(&'static str, String)>, Error> {
        environment.first_that(self.parts[part as usize].1, |name, value| match part {
            Part::Host => !(value.contains("://") && self.url.1.contains(&name)),
            Part::Port if value.starts_with("tcp://") => {
                tracing::debug!("{name} is ignored: Kubernetes sets it to an address, for a Service of that name");
                false
            }
            _ => true,
        })
    }

    /// Whether the URL says that there is to be no TLS.
    fn is_plain(&self, url: &str) -> bool {
        let (scheme, rest) = url.trim().split_once("://").unwrap_or_default();
        match scheme {
            "mongodb" | "mongodb+srv" => {
                let query = rest.rsplit_once('?').map_or("", |(_, query)| query);
                query.split('&').any(|option| ["tls=false", "ssl=false"].contains(&option))
            }
            _ => !scheme.ends_with('s') || scheme == "redis",
        }
    }
}

/// Where what was configured was said, by the key that a resource knows it by.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origins {
    by_key: BTreeMap<String, Origin>,
    file: PathBuf,
}

#[derive(Debug, Clone)]
enum Origin {
    Variable(&'static str),
    /// Under this key of the file.
    File(String),
    Code,
}

impl Origins {
    fn variable(&mut self, key: String, variable: &'static str) {
        self.by_key.insert(key, Origin::Variable(variable));
    }

    /// All keys of the file. A named resource knows its own only by its name.
    fn file(path: &Path, text: &str) -> Self {
        let mut origins = Origins { file: path.to_owned(), ..Origins::default() };
        if let Ok(table) = text.parse() {
            origins.keys("", &table);
        }
        origins
    }

    fn keys(&mut self, above: &str, table: &toml::Table) {
        for (name, value) in table {
            let key = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
            let known_as = match key.strip_prefix("named.").and_then(|key| key.split_once('.')) {
                Some((_kind, known_as)) => known_as,
                None => &key,
            };
            self.by_key.insert(known_as.to_owned(), Origin::File(key.clone()));
            if let toml::Value::Table(table) = value {
                self.keys(&key, table);
            }
        }
    }

    /// What code sets was said nowhere else.
    fn code(&mut self, name: &str) {
        self.by_key.retain(|key, _| !key.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')));
        self.by_key.insert(name.to_owned(), Origin::Code);
    }

    #[cfg(feature = "rabbitmq")]
    fn has(&self, name: &str, field: &str) -> bool {
        self.by_key.contains_key(&format!("{name}.{field}"))
    }

    /// The error with the key under which the value was said.
    fn blame(&self, error: Error) -> Error {
        let Error::Config { key, problem } = &error else { return error };
        match self.by_key.get(key) {
            Some(Origin::Variable(variable)) => Error::config(*variable, problem),
            Some(Origin::File(key)) => in_file(Error::config(key, problem), &self.file),
            Some(Origin::Code) | None => error,
        }
    }
}

fn in_file(error: Error, path: &Path) -> Error {
    match error {
        Error::Config { key, problem } => Error::config(key, format!("{problem} (in {})", path.display())),
        other => other,
    }
}

macro_rules! backends {
    ($($feature:literal $section:ident $variant:ident $config:ident),*) => {
        /// Everything that can be configured; the shape of the TOML file.
        #[derive(Debug, Clone, Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub(crate) struct Config {
            pub(crate) pool: Options,
            $(#[cfg(feature = $feature)] pub(crate) $section: $config,)*
            pub(crate) named: Named,
            #[serde(skip)]
            origins: Origins,
            /// Why a default resource cannot be had, by its name: what the environment says of it.
            #[serde(skip)]
            unusable: BTreeMap<&'static str, Error>,
        }

        /// The further resources of each kind, by name: `[named.KIND.NAME]` in TOML.
        #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub(crate) struct Named {
            $(#[cfg(feature = $feature)] pub(crate) $section: BTreeMap<String, $config>,)*
        }

        impl Config {
            /// Every resource's kind and name, the defaults first.
            pub(crate) fn names(&self) -> Vec<(&'static str, &str)> {
                let mut all: Vec<(&'static str, &str)> = Vec::from([
                    $(#[cfg(feature = $feature)] (stringify!($section), stringify!($section)),)*
                ]);
                $(#[cfg(feature = $feature)] all.extend(
                    self.named.$section.keys().map(|name| (stringify!($section), name.as_str())),
                );)*
                all
            }

            /// The configuration of the resource of this name.
            pub(crate) fn get(&self, name: &str) -> Option<ResourceConfig> {
                $(#[cfg(feature = $feature)]
                if name == stringify!($section) {
                    return Some(self.$section.clone().into());
                }
                #[cfg(feature = $feature)]
                if let Some(config) = self.named.$section.get(name) {
                    return Some(config.clone().into());
                })*
                // There is no kind to look at in a build without backends.
                let _ = name;
                None
            }

            /// Sets a resource from code, over all else.
            pub(crate) fn set(&mut self, name: &str, config: ResourceConfig) {
                self.origins.code(name);
                self.unusable.remove(name);
                match config {
                    $(#[cfg(feature = $feature)] ResourceConfig::$variant(config) => {
                        if name == stringify!($section) {
                            self.$section = config;
                        } else {
                            self.named.$section.insert(name.to_owned(), config);
                        }
                    })*
                    #[cfg(not(any(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis")))]
                    ResourceConfig::Nothing => drop(name.len()),
                }
            }

            fn apply(&mut self, environment: &Environment) -> Result<(), Error> {
                environment.millis("RESOURCE_POOL_ACQUIRE_TIMEOUT_MS", &mut self.pool.acquire_timeout)?;
                environment.millis("RESOURCE_POOL_CLOSE_DEADLINE_MS", &mut self.pool.close.deadline)?;
                // A bad variable is for that resource to tell.
                $(#[cfg(feature = $feature)]
                if let Err(error) = self.$section.apply(environment, &mut self.origins) {
                    self.unusable.insert(stringify!($section), self.origins.blame(error));
                })*
                Ok(())
            }

            /// Whether this is the name of a variable that a resource would use.
            pub(crate) fn is_variable(key: &str) -> bool {
                let mut names: Vec<&str> = Vec::new();
                $(#[cfg(feature = $feature)] names.extend($config::NAMES.all());)*
                names.contains(&key)
            }
        }

        impl ResourceConfig {
            /// As it counts, for the log.
            fn effective(&self, name: &str) -> Result<String, Error> {
                match self {
                    $(#[cfg(feature = $feature)]
                    ResourceConfig::$variant(config) => config.settled(name).map(|config| format!("{config:?}")),)*
                    #[cfg(not(any(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis")))]
                    ResourceConfig::Nothing => Ok(name.to_owned()),
                }
            }

            /// The kind's name.
            pub(crate) fn kind(&self) -> &'static str {
                match self {
                    $(#[cfg(feature = $feature)] ResourceConfig::$variant(_) => stringify!($section),)*
                    #[cfg(not(any(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis")))]
                    ResourceConfig::Nothing => "nothing",
                }
            }
        }

        $(#[cfg(feature = $feature)] impl $config {
            /// What a pool would take without any code: the defaults, and over them what this
            /// process's environment says. For `scoped`.
            ///
            /// # Errors
            /// [`Error::Config`] for a variable that cannot be used.
            pub fn from_env() -> Result<Self, Error> {
                let (mut config, mut origins) = ($config::default(), Origins::default());
                config.apply(&Environment::process(), &mut origins)?;
                config.settled($config::KIND).map_err(|error| origins.blame(error))?;
                Ok(config)
            }
        })*

        $(#[cfg(feature = $feature)] impl From<$config> for ResourceConfig {
            fn from(config: $config) -> Self { ResourceConfig::$variant(config) }
        })*
    };
}

backends! {
    "mongodb" mongo Mongo MongoConfig,
    "rabbitmq" rabbitmq RabbitMq RabbitMqConfig,
    "clickhouse" clickhouse ClickHouse ClickHouseConfig,
    "redis" redis Redis RedisConfig
}

impl Config {
    /// Defaults, then the TOML file, then the environment.
    pub(crate) fn load(file: Option<&Path>, environment: &Environment) -> Result<Self, Error> {
        let named = environment.get(CONFIG_FILE)?;
        let mut config = match file.or(named.as_deref().map(Path::new)) {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        config.apply(environment)?;
        Ok(config)
    }

    /// An error if what is said of this resource cannot be used, as far as that is known already.
    pub(crate) fn usable(&self, name: &str) -> Result<(), Error> {
        if let Some(error) = self.unusable.get(name) {
            return Err(error.clone());
        }
        #[cfg(feature = "rabbitmq")]
        if let Some(ResourceConfig::RabbitMq(config)) = self.get(name)
            && config.user != RabbitMqConfig::default().user
            && self.origins.has(name, "user")
            && !self.origins.has(name, "password")
            && config.url.is_none()
        {
            return Err(self.blame(Error::config(format!("{name}.user"), "is without a password")));
        }
        Ok(())
    }

    /// A resource's error, by the key under which the value was said.
    pub(crate) fn blame(&self, error: Error) -> Error {
        self.origins.blame(error)
    }

    /// What helps where this resource is not there, or refuses the login.
    pub(crate) fn remedies<C: BackendConfig>(&self, name: &str) -> Remedies {
        let Names { url: (url, variables), parts, .. } = C::NAMES;
        let Origins { by_key, file } = &self.origins;
        let is_default = name == C::KIND && !matches!(by_key.get(name), Some(Origin::Code));
        let [user, password] = [Part::User, Part::Password].map(|part| parts[part as usize]);
        let mut said: Vec<String> = Vec::new();
        for field in [url, user.0, password.0] {
            let by = match by_key.get(&format!("{name}.{field}")) {
                Some(Origin::Variable(variable)) => (*variable).to_owned(),
                Some(Origin::File(key)) => format!("{key} in {}", file.display()),
                _ => continue,
            };
            if !said.contains(&by) {
                said.push(by);
            }
        }
        let login = match (said.is_empty(), is_default) {
            (false, _) => format!("user and password are of {}", said.join(" and ")),
            (true, true) => {
                format!("set {} and {}, or {}, or [{}] in TOML", user.1[0], password.1[0], variables[0], C::KIND)
            }
            (true, false) => "user and password are of the configuration in code".to_owned(),
        };
        let nobody = match is_default {
            true => format!("is it running? Else set {}, or [{}] in TOML", variables[0], C::KIND),
            false => "is it running there?".to_owned(),
        };
        Remedies { nobody: nobody.into(), login: login.into() }
    }

    /// The configuration of this resource as it counts, without secrets.
    pub(crate) fn effective(&self, name: &str) -> Option<String> {
        self.usable(name).ok()?;
        self.get(name)?.effective(name).ok()
    }

    /// Checks what the whole may not be, each resource apart.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.pool.check()?;
        // No two resources may have one name, for it is all that they are asked for by.
        let mut kinds = BTreeMap::new();
        for (kind, name) in self.names() {
            if let Some(other) = kinds.insert(name, kind) {
                return Err(Error::config(format!("named.{kind}.{name}"), format!("a {other} has this name already")));
            }
        }
        Ok(())
    }

    fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path)
            .map_err(|error| Error::config(CONFIG_FILE, format!("{} cannot be read: {error}", path.display())))?;
        let config = Config::parse(&text).map_err(|error| in_file(error, path))?;
        Ok(Config { origins: Origins::file(path, &text), ..config })
    }

    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let syntax = |error: toml::de::Error| {
            let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].lines().count().max(1));
            Error::config(format!("TOML, line {line}"), without_value(error.message()))
        };
        let document = toml::Deserializer::parse(text).map_err(syntax)?;
        serde_path_to_error::deserialize(document)
            .map_err(|error| Error::config(error.path().to_string(), without_value(error.inner().message())))
    }
}

/// serde quotes the value that did not fit, which may be a password.
fn without_value(message: &str) -> String {
    match (message.split_once(": "), message.rfind(", expected")) {
        (Some((what @ ("invalid type" | "invalid value"), _)), Some(expected)) => {
            format!("{what}{}", &message[expected..])
        }
        _ => message.to_owned(),
    }
}

/// What no resource can work with, whatever its kind: a host that is none, port 0, a limit of zero, more of something
/// than can be counted, and a keepalive that TCP does not take.
#[derive(Debug)]
pub(crate) struct Checks<'a>(pub(crate) &'a str);

#[cfg(any(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
impl Checks<'_> {
    pub(crate) fn fail<T>(&self, field: &str, problem: impl fmt::Display) -> Result<T, Error> {
        Err(Error::config(format!("{}.{field}", self.0), problem))
    }

    /// Trims the host.
    pub(crate) fn place(&self, at: &mut String, port: u16) -> Result<(), Error> {
        *at = host(&format!("{}.host", self.0), at)?.to_owned();
        if port == 0 { self.fail("port", "must be from 1 to 65535") } else { Ok(()) }
    }

    /// How many there may be at a time.
    pub(crate) fn counts(&self, counts: &[(&str, usize)]) -> Result<(), Error> {
        for (field, count) in counts {
            if !(1..=Semaphore::MAX_PERMITS).contains(count) {
                return self.fail(field, format_args!("must be from 1 to {}", Semaphore::MAX_PERMITS));
            }
        }
        Ok(())
    }

    /// Limits within which something has to succeed.
    #[cfg(any(feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
    pub(crate) fn limits(&self, limits: &[(&str, Duration)]) -> Result<(), Error> {
        match limits.iter().find(|(_, limit)| limit.is_zero()) {
            Some((field, _)) => self.fail(field, "must be at least 1 ms, or nothing could ever succeed"),
            None => Ok(()),
        }
    }

    /// Linux takes whole seconds, and no more of them than this.
    #[cfg(any(feature = "clickhouse", feature = "redis"))]
    pub(crate) fn keepalive(&self, keepalive: Duration) -> Result<(), Error> {
        match keepalive.as_secs() {
            1..=32_767 => Ok(()),
            _ => self.fail("keepalive_ms", "must be from 1000 to 32767999: TCP takes whole seconds, up to 32767"),
        }
    }
}
