//! Configuration: code, over environment, over TOML, over defaults for localhost.

use std::collections::BTreeMap;
use std::env::{self, VarError};
use std::fmt;
use std::fs;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

#[cfg(feature = "clickhouse")]
pub use crate::backend::clickhouse::ClickHouseConfig;
#[cfg(feature = "mongodb")]
pub use crate::backend::mongo::MongoConfig;
#[cfg(feature = "rabbitmq")]
pub use crate::backend::rabbitmq::RabbitMqConfig;
#[cfg(feature = "redis")]
pub use crate::backend::redis::RedisConfig;
pub use crate::close::CloseOptions;
use crate::error::Error;
pub use crate::exit::ExitStatus;
pub use crate::health::HealthOptions;
pub use crate::leak::LeakOptions;
pub use crate::probe::ProbeOptions;
pub use crate::repeat::Repeat;
use crate::resource::Resource;
pub use crate::retry::Retry;
pub use crate::tls::TlsOptions;

/// The environment variable that names the TOML file.
pub const CONFIG_FILE: &str = "RESOURCE_POOL_CONFIG";

/// What holds for the pool as a whole; `[pool]` in TOML.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Options {
    /// How long an acquire waits, connecting included. Defaults to 5 s.
    /// Environment: `RESOURCE_POOL_ACQUIRE_TIMEOUT_MS`.
    #[serde(rename = "acquire_timeout_ms", with = "millis")]
    pub acquire_timeout: Duration,
    /// How long one attempt to connect may take; each step of it, where it tells how far it has come
    /// ([`Link::progress`](crate::Link::progress)). Defaults to 2 s.
    #[serde(rename = "connect_timeout_ms", with = "millis")]
    pub connect_timeout: Duration,
    /// How long a failed connect is answered again before another is tried. Defaults to 500 ms.
    #[serde(rename = "circuit_ms", with = "millis")]
    pub circuit: Duration,
    /// How connecting is retried.
    pub retry: Retry,
    /// What the pool itself repeats of its operations when a connection is lost. Defaults to
    /// [`Repeat::Unsent`].
    pub repeat: Repeat,
    /// How ready resources are watched.
    pub probe: ProbeOptions,
    /// How health is checked.
    pub health: HealthOptions,
    /// What is suspected to leak.
    pub leaks: LeakOptions,
    /// The limits of closing. Environment: `RESOURCE_POOL_CLOSE_DEADLINE_MS`.
    pub close: CloseOptions,
    /// Whether SIGINT, SIGTERM and SIGHUP close the global pool before they end the process.
    /// Defaults to `true`.
    pub signals: bool,
    /// How a process ended by a signal exits. Defaults to [`ExitStatus::Signal`].
    pub exit_status: ExitStatus,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            acquire_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
            circuit: Duration::from_millis(500),
            retry: Retry::default(),
            repeat: Repeat::default(),
            probe: ProbeOptions::default(),
            health: HealthOptions::default(),
            leaks: LeakOptions::default(),
            close: CloseOptions::default(),
            signals: true,
            exit_status: ExitStatus::default(),
        }
    }
}

impl Options {
    /// What is done again and again does not follow at once, and has the time to succeed.
    fn check(&self) -> Result<(), Error> {
        let Options { retry, probe, .. } = self;
        let probes = probe.enabled;
        for (key, is_zero) in [
            ("pool.retry.base_ms", retry.base.is_zero()),
            ("pool.retry.cap_ms", retry.cap.is_zero()),
            ("pool.probe.interval_ms", probes && probe.interval.is_zero()),
            ("pool.probe.limit_ms", probes && probe.limit.is_zero()),
            ("pool.probe.strikes", probes && probe.strikes == 0),
        ] {
            if is_zero {
                return Err(Error::config(key, "must be at least 1"));
            }
        }
        Ok(())
    }
}

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
pub(crate) trait BackendConfig: Default + Clone + PartialEq + Into<ResourceConfig> {
    /// The name of the default resource, of its TOML section, and of the kind.
    const KIND: &'static str;
    type Resource: Resource;

    /// Lets the environment override what TOML or the defaults said.
    fn apply(&mut self, environment: &Environment) -> Result<(), Error>;
    fn of(config: &ResourceConfig) -> Option<&Self>;
    /// Checks the whole, without any I/O.
    fn resource(&self, name: &str) -> Result<Self::Resource, Error>;
}

macro_rules! backends {
    ($($feature:literal $section:ident $variant:ident $config:ident),*) => {
        /// Everything that can be configured; the shape of the TOML file.
        #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub(crate) struct Config {
            pub(crate) pool: Options,
            $(#[cfg(feature = $feature)] pub(crate) $section: $config,)*
            pub(crate) named: Named,
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
                $(#[cfg(feature = $feature)] self.$section.apply(environment)?;)*
                Ok(())
            }
        }

        impl ResourceConfig {
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
                let mut config = $config::default();
                config.apply(&Environment::process())?;
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
        Config::parse(&text)
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

/// Where environment variables are read from. An empty one counts as not set.
pub(crate) struct Environment(Option<BTreeMap<String, String>>);

impl Environment {
    /// The process's own.
    pub(crate) fn process() -> Self {
        Environment(None)
    }

    /// These instead.
    pub(crate) fn fixed(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        Environment(Some(variables.into_iter().collect()))
    }

    pub(crate) fn get(&self, name: &str) -> Result<Option<String>, Error> {
        let value = match &self.0 {
            Some(fixed) => fixed.get(name).cloned(),
            None => match env::var(name) {
                Ok(value) => Some(value),
                Err(VarError::NotPresent) => None,
                Err(VarError::NotUnicode(_)) => return Err(Error::config(name, "is not UTF-8")),
            },
        };
        Ok(value.filter(|value| !value.is_empty()))
    }

    /// The first of these that is set, with its name.
    pub(crate) fn first<'a>(&self, names: &[&'a str]) -> Result<Option<(&'a str, String)>, Error> {
        for name in names {
            if let Some(value) = self.get(name)? {
                return Ok(Some((*name, value)));
            }
        }
        Ok(None)
    }

    /// Sets a text from the first of these that is set.
    pub(crate) fn text(&self, names: &[&str], target: &mut impl From<String>) -> Result<(), Error> {
        if let Some((_, value)) = self.first(names)? {
            *target = value.into();
        }
        Ok(())
    }

    /// Sets an optional text from the first of these that is set.
    pub(crate) fn optional<T: From<String>>(&self, names: &[&str], target: &mut Option<T>) -> Result<(), Error> {
        if let Some((_, value)) = self.first(names)? {
            *target = Some(value.into());
        }
        Ok(())
    }

    /// Sets a number from the first of these that is set.
    pub(crate) fn number<T: FromStr>(&self, names: &[&str], target: &mut T) -> Result<(), Error> {
        if let Some((name, value)) = self.first(names)? {
            *target = value.parse().map_err(|_| Error::config(name, "is not a number in range"))?;
        }
        Ok(())
    }

    /// Sets a switch.
    pub(crate) fn flag(&self, name: &str, target: &mut bool) -> Result<(), Error> {
        match self.get(name)?.as_deref() {
            None => {}
            Some("true" | "1") => *target = true,
            Some("false" | "0") => *target = false,
            Some(_) => return Err(Error::config(name, "is neither `true` nor `false`")),
        }
        Ok(())
    }

    fn millis(&self, name: &str, target: &mut Duration) -> Result<(), Error> {
        let mut millis = u64::try_from(target.as_millis()).unwrap_or(u64::MAX);
        self.number(&[name], &mut millis)?;
        *target = Duration::from_millis(millis);
        Ok(())
    }
}

/// A password, or a URL that may have one. Never shown by `Debug` or `Display`.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// The secret itself.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl<T: Into<String>> From<T> for Secret {
    fn from(text: T) -> Self {
        Secret(SecretString::from(text.into()))
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Secret::from)
    }
}

/// A URL whose user, password and host are usable; never shown with its password.
#[cfg(any(feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
pub(crate) struct ParsedUrl {
    url: url::Url,
    /// As it was written, for the parser takes `%2e` for a step in a tree of folders.
    path: String,
}

#[cfg(any(feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
impl ParsedUrl {
    /// Parses, accepting only these schemes.
    pub(crate) fn new(key: &str, text: &Secret, schemes: &[&str]) -> Result<Self, Error> {
        let expected = || schemes.iter().map(|scheme| format!("{scheme}://")).collect::<Vec<_>>().join(" or ");
        let text = one_reading(key, text.expose())?;
        let url = url::Url::parse(text)
            .map_err(|error| Error::config(key, format!("is not a URL ({error}); expected {}{LOGIN}", expected())))?;
        if !schemes.contains(&url.scheme()) {
            return Err(Error::config(key, format!("has the scheme {:?}; expected {}", url.scheme(), expected())));
        }
        let (_, rest) = text.split_once("://").unwrap_or_default();
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        // The parser takes what follows further slashes for the host.
        if url.host_str().is_none_or(str::is_empty) || rest.starts_with(['/', '\\']) {
            return Err(Error::config(key, "names no host"));
        }
        let path = rest.split_once(['/', '\\']).map_or("", |(_, path)| path).to_owned();
        Ok(ParsedUrl { url, path })
    }

    pub(crate) fn url(&self) -> &url::Url {
        &self.url
    }

    /// The host, an IPv6 address without its brackets.
    pub(crate) fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
    }

    pub(crate) fn user(&self, key: &str) -> Result<Option<String>, Error> {
        Some(self.url.username()).filter(|user| !user.is_empty()).map(|user| percent_decoded(key, user)).transpose()
    }

    pub(crate) fn password(&self, key: &str) -> Result<Option<Secret>, Error> {
        Ok(self.url.password().map(|password| percent_decoded(key, password)).transpose()?.map(Secret::from))
    }

    /// The path without its first slash, decoded.
    pub(crate) fn path(&self, key: &str) -> Result<String, Error> {
        percent_decoded(key, &self.path)
    }
}

/// What follows a scheme, for errors.
#[cfg(any(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
pub(crate) const LOGIN: &str = "user:password@host:port/…, with `@:/?#%` in user or password percent-encoded";

/// The URL without the white space around it, if it can be read in only one way: where a password that is
/// not percent-encoded ends the host early, a parser would take its parts for host, port and path, and
/// they would be shown as such.
#[cfg(any(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
pub(crate) fn one_reading<'a>(key: &str, text: &'a str) -> Result<&'a str, Error> {
    let text = text.trim();
    let is_scheme = |scheme: &str| scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let Some((_, rest)) = text.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) else {
        return Err(Error::config(key, format!("is not a URL; expected scheme://{LOGIN}")));
    };
    let (_, behind) = rest.split_at(rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len()));
    if behind.contains('@') {
        return Err(Error::config(
            key,
            format!("has an `@` behind its host, where it is `%40`; expected scheme://{LOGIN}"),
        ));
    }
    if text.contains(char::is_control) {
        return Err(Error::config(key, format!("has a control character in it; expected scheme://{LOGIN}")));
    }
    Ok(text)
}

/// Decodes `%40` and the like.
#[cfg(any(feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
pub(crate) fn percent_decoded(key: &str, text: &str) -> Result<String, Error> {
    percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .map(|text| text.into_owned())
        .map_err(|_| Error::config(key, "is not UTF-8 once percent-decoded"))
}

/// `host:port`, with brackets around an IPv6 address.
pub(crate) fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Durations as whole milliseconds.
pub(crate) mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer};

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}
