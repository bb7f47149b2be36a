//! Fuzzes the configuration from code, environment, TOML and URLs. Whatever it says, nothing panics or hangs, an error
//! names its key, and a login that is accepted arrives unchanged.

use std::error::Error as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use resource_pool::config::{ClickHouseConfig, MongoConfig, Options, RabbitMqConfig, RedisConfig, ResourceConfig};
use resource_pool::{Builder, Error, ResourcePool};

use super::RUNTIME;
use super::input::{
    Document, FURTHER_KINDS, KINDS, Name, Pick, Text, Url, VARIABLES, Variable, encoded, quoted, scheme,
};
use super::recorder::{Login, RECORDER};

#[derive(Arbitrary, Debug)]
pub enum Case {
    /// Any configuration at all, on all layers.
    Layers(Layers),
    /// A login that is written correctly. It has to reach the server unchanged.
    Login(Meant),
}

#[derive(Arbitrary, Debug)]
pub struct Layers {
    document: Option<Document>,
    environment: Vec<Variable>,
    code: Vec<(Option<Name>, Code)>,
    acquire: bool,
}

#[derive(Arbitrary, Debug)]
pub struct Code {
    kind: Pick,
    url: Option<Url>,
    host: Option<Text>,
    port: Option<u16>,
    user: Option<Text>,
    password: Option<Text>,
    database: Option<Text>,
    limit: Option<u64>,
    size: Option<u32>,
}

#[derive(Arbitrary, Debug)]
pub struct Meant {
    kind: Pick,
    way: Way,
    user: Text,
    password: Text,
    database: Text,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
pub enum Way {
    CodeUrl,
    CodeParts,
    EnvironmentUrl,
    EnvironmentParts,
    TomlUrl,
    TomlParts,
}

/// The limit for one connect. It takes a few milliseconds unless the machine is busy.
const LIMIT: Duration = Duration::from_secs(10);

pub fn check(case: &Case) {
    let started = Instant::now();
    match case {
        Case::Layers(layers) => layers.check(),
        Case::Login(meant) => meant.check(),
    }
    assert!(started.elapsed() < LIMIT * 3, "it took {:?}", started.elapsed());
}

impl Layers {
    fn check(&self) {
        let mut names: Vec<String> = self.code.iter().filter_map(|(name, _)| Some(name.as_ref()?.show())).collect();
        names.extend(self.document.iter().flat_map(Document::names));
        let file = self.document.as_ref().map(|document| TomlFile::new(&document.show()));
        let mut builder = ResourcePool::builder()
            .environment(self.environment.iter().map(Variable::show))
            .runtime(RUNTIME.handle().clone());
        if let Some(file) = &file {
            builder = builder.config_file(&file.0);
        }
        for (name, code) in &self.code {
            builder = match name {
                Some(name) => builder.named(&name.show(), code.config()),
                None => builder.resource(code.config()),
            };
        }
        let _ = format!("{builder:?} {builder:#?}");
        let pool = match builder.build() {
            Ok(pool) => pool,
            Err(error) => return names_its_key(&error, &names),
        };
        let status = pool.status();
        for kind in KINDS {
            match status.resource(kind) {
                Some(resource) => assert!(!resource.endpoint.is_empty()),
                // A resource with a bad variable fails when it is asked for.
                None => {
                    let (_, asked) = RUNTIME.block_on(pool.warm_up([kind])).remove(0);
                    let error = asked.expect_err("what cannot be made cannot be had");
                    return names_its_key(&error, &names);
                }
            }
        }
        let _ = format!("{pool:?} {status} {status:?} {:?} {:?}", pool.worst_case(), pool.holders());
        // Nothing is connected yet. So nothing can be unhealthy, and the check cannot take long.
        let health = RUNTIME.block_on(pool.health_check());
        assert!(health.is_healthy(), "{health}");
        if self.acquire {
            let quickly = pool.within(Duration::from_millis(20));
            for resource in status.resources.iter().filter(|resource| is_nobody(&resource.endpoint)) {
                let (_, result) = RUNTIME.block_on(quickly.warm_up([&*resource.name])).remove(0);
                assert!(result.is_err(), "nobody is there");
            }
        }
    }
}

/// Whether the character would break a line. Errors show such a character as a space.
fn breaks(c: char) -> bool {
    c.is_control() || ['\u{2028}', '\u{2029}'].contains(&c)
}

/// Whether no server can be at this endpoint. The fuzzer must not connect to other people's servers.
fn is_nobody(endpoint: &str) -> bool {
    ["127.0.0.1:1/", "localhost:1/", "[::1]:1/"].iter().any(|nobody| endpoint.contains(nobody))
        && !endpoint.contains(',')
}

/// An error of the configuration fits on one line and names a key that its author can find.
pub fn names_its_key(error: &Error, names: &[String]) {
    let Error::Config { key, problem } = error else { panic!("not an error of the configuration: {error:?}") };
    let known = |key: &str| {
        let first = key.split(['.', '[']).next().unwrap_or_default();
        key.starts_with("TOML, line ")
            || VARIABLES.iter().any(|name| name == key)
            || ["pool", "named"].contains(&first)
            || KINDS.contains(&first)
            || FURTHER_KINDS.contains(&first)
            || names.iter().any(|name| key.starts_with(&name.replace(breaks, " ")))
    };
    assert!(known(key) || problem.starts_with("unknown field"), "{key:?}: {problem:?}");
    assert!(!problem.is_empty() && !error.to_string().contains(char::is_control), "{error:?}");
    assert!(error.source().is_none());
}

impl Code {
    fn config(&self) -> ResourceConfig {
        let (host, user) = (self.host.as_ref().map(Text::show), self.user.as_ref().map(Text::show));
        let (password, database) = (self.password.as_ref().map(Text::show), self.database.as_ref().map(Text::show));
        let kind = *self.kind.of(&KINDS);
        let url = self.url.as_ref().map(|url| url.show(kind).into());
        let limit = self.limit.map(Duration::from_millis);
        macro_rules! parts {
            ($config:ident) => {
                $config.host = host.unwrap_or($config.host);
                $config.port = self.port.unwrap_or($config.port);
            };
        }
        match kind {
            "mongo" => {
                let mut config = MongoConfig::default();
                parts!(config);
                (config.uri, config.user, config.password) = (url, user, password.map(Into::into));
                config.database = database.unwrap_or(config.database);
                config.heartbeat = limit.unwrap_or(config.heartbeat);
                config.max_pool_size = self.size.unwrap_or(config.max_pool_size);
                config.into()
            }
            "rabbitmq" => {
                let mut config = RabbitMqConfig::default();
                parts!(config);
                config.url = url;
                config.user = user.unwrap_or(config.user);
                config.password = password.map_or(config.password, Into::into);
                config.vhost = database.unwrap_or(config.vhost);
                config.heartbeat = limit.unwrap_or(config.heartbeat);
                config.frame_max = self.size.unwrap_or(config.frame_max);
                config.into()
            }
            "clickhouse" => {
                let mut config = ClickHouseConfig::default();
                parts!(config);
                config.url = url;
                config.user = user.unwrap_or(config.user);
                config.password = password.map(Into::into);
                config.database = database.unwrap_or(config.database);
                config.idle_timeout = limit.unwrap_or(config.idle_timeout);
                config.max_threads = self.size.unwrap_or(config.max_threads);
                config.into()
            }
            _ => {
                let mut config = RedisConfig::default();
                parts!(config);
                (config.url, config.user, config.password) = (url, user, password.map(Into::into));
                config.max_lifetime = limit.unwrap_or(config.max_lifetime);
                config.pool_size = self.size.unwrap_or(config.pool_size);
                config.into()
            }
        }
    }
}

impl Meant {
    fn check(&self) {
        // MongoDB's driver never sends the password. It only proves that it knows it.
        let kind = *self.kind.of(&KINDS[1..]);
        let database = match kind {
            "redis" => (self.database.show().len() % 16).to_string(),
            _ => self.database.show(),
        };
        let meant = Login { user: self.user.show(), password: self.password.show(), database };
        // A URL or a variable cannot say an empty value. A default takes its place.
        if meant.user.is_empty() || meant.password.is_empty() || meant.database.is_empty() {
            return;
        }
        // A busy machine may be too slow for the limits of the drivers.
        for _ in 0..3 {
            let (builder, _file) = self.way.builder(kind, "127.0.0.1", RECORDER.port, &meant);
            let pool = match builder.build() {
                Ok(pool) => pool,
                Err(error) => return names_its_key(&error, &[]),
            };
            let (_, result) = RUNTIME.block_on(pool.within(LIMIT).warm_up([kind])).remove(0);
            let error = result.expect_err("the recorder hangs up");
            if let Error::Config { .. } = error {
                return names_its_key(&error, &[]);
            }
            let logins = RECORDER.take();
            for came in &logins {
                assert_eq!(*came, meant, "{error}");
            }
            // The pool has to refuse a login that the protocol cannot say, or not in its place.
            if !logins.is_empty() || matches!(&error, Error::Connect(error) if error.permanent) {
                return;
            }
        }
        panic!("nothing arrived");
    }
}

impl Way {
    /// A builder for a pool whose resource of this kind has this login and tries nothing twice.
    pub fn builder(
        self,
        kind: &str,
        host: &str,
        port: u16,
        login: &Login,
    ) -> (Builder<ResourcePool>, Option<TomlFile>) {
        let Login { user, password, database } = login;
        let url =
            format!("{}{}:{}@{host}:{port}/{}", scheme(kind), encoded(user), encoded(password), encoded(database));
        self.builder_at(kind, host, port, login, &url)
    }

    pub fn builder_at(
        self,
        kind: &str,
        host: &str,
        port: u16,
        login: &Login,
        url: &str,
    ) -> (Builder<ResourcePool>, Option<TomlFile>) {
        let Login { user, password, database } = login.clone();
        let mut options = Options::default();
        options.retry.attempts = 1;
        (options.retry.budget, options.connect_timeout) = (LIMIT, LIMIT);
        let builder = ResourcePool::builder().options(options).runtime(RUNTIME.handle().clone());
        let (variable, prefix, place) = match kind {
            "mongo" => ("MONGODB_URI", "MONGODB", "DATABASE"),
            "rabbitmq" => ("AMQP_URL", "RABBITMQ", "VHOST"),
            "clickhouse" => ("CLICKHOUSE_URL", "CLICKHOUSE", "DATABASE"),
            _ => ("REDIS_URL", "REDIS", "DB"),
        };
        let key = if kind == "mongo" { "uri" } else { "url" };
        let text = match self {
            Way::CodeUrl => {
                let config: ResourceConfig = match kind {
                    "mongo" => MongoConfig::uri(url).into(),
                    "rabbitmq" => RabbitMqConfig::url(url).into(),
                    "clickhouse" => ClickHouseConfig::url(url).into(),
                    _ => RedisConfig::url(url).into(),
                };
                return (builder.environment([("", ""); 0]).resource(config), None);
            }
            Way::CodeParts => {
                let config: ResourceConfig = match kind {
                    "mongo" => {
                        let mut config = MongoConfig::default();
                        (config.host, config.port, config.database) = (host.to_owned(), port, database);
                        (config.user, config.password) = (Some(user), Some(password.into()));
                        config.into()
                    }
                    "rabbitmq" => {
                        let mut config = RabbitMqConfig::default();
                        (config.host, config.port, config.vhost) = (host.to_owned(), port, database);
                        (config.user, config.password) = (user, password.into());
                        config.into()
                    }
                    "clickhouse" => {
                        let mut config = ClickHouseConfig::default();
                        (config.host, config.port, config.database) = (host.to_owned(), port, database);
                        (config.user, config.password) = (user, Some(password.into()));
                        config.into()
                    }
                    _ => {
                        let mut config = RedisConfig::default();
                        (config.host, config.port) = (host.to_owned(), port);
                        config.db = database.parse().unwrap_or_default();
                        (config.user, config.password) = (Some(user), Some(password.into()));
                        config.into()
                    }
                };
                return (builder.environment([("", ""); 0]).resource(config), None);
            }
            Way::EnvironmentUrl => return (builder.environment([(variable, url)]), None),
            Way::EnvironmentParts => {
                let variables = [
                    ("HOST", host.to_owned()),
                    ("PORT", port.to_string()),
                    ("USER", user),
                    ("PASSWORD", password),
                    (place, database),
                ];
                let variables = variables.map(|(name, value)| (format!("{prefix}_{name}"), value));
                return (builder.environment(variables), None);
            }
            Way::TomlUrl => format!("[{kind}]\n{key} = {}\n", quoted(url)),
            Way::TomlParts => {
                let place = place.to_ascii_lowercase();
                let database = if kind == "redis" { database } else { quoted(&database) };
                let (user, password) = (quoted(&user), quoted(&password));
                format!(
                    "[{kind}]\nhost = '{host}'\nport = {port}\nuser = {user}\npassword = {password}\n{place} = {database}\n"
                )
            }
        };
        // One dollar in a text of TOML is written as two.
        let file = TomlFile::new(&text.replace('$', "$$"));
        (builder.environment([("", ""); 0]).config_file(&file.0), Some(file))
    }
}

/// A file that is deleted when this value is dropped.
pub struct TomlFile(pub PathBuf);

impl TomlFile {
    pub fn new(text: &str) -> Self {
        let thread = format!("{:?}", std::thread::current().id());
        let name = format!("resource-pool-{}-{}.toml", std::process::id(), thread.replace(['(', ')'], ""));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).expect("a file");
        TomlFile(path)
    }
}

impl Drop for TomlFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
