//! The whole configuration of a pool as a value.

use std::fmt;
use std::path::PathBuf;

use crate::base::environment::Environment;
use crate::base::error::Error;
use crate::base::origins::Origin;
use crate::lifecycle::kind::{KindConfig, ResourceConfig};
use crate::lifecycle::options::Options;
use crate::lifecycle::settings::Settings;
use crate::pool::config::{Toml, load};

/// The whole configuration of a pool: its options, and its resources by name. A program can read it, change it, and
/// [build](crate::Builder::config) a pool from it.
///
/// It knows the built-in kinds. Sections of other kinds in TOML are errors here. Its `Debug` shows no secret.
///
/// ```
/// # #[cfg(feature = "redis")]
/// # fn main() -> Result<(), resource_pool::Error> {
/// use std::time::Duration;
/// use resource_pool::ResourcePool;
/// use resource_pool::config::{Config, RedisConfig};
///
/// let mut config = Config::parse("[redis]\nhost = 'cache'")?;
/// config.pool.acquire_timeout = Duration::from_secs(3);
/// let redis = config.get::<RedisConfig>("redis").cloned().unwrap_or_default();
/// assert_eq!(redis.host, "cache");
/// config.set("redis", redis.pool_size(20));
/// let pool: ResourcePool = ResourcePool::builder().config(config).build()?;
/// # drop(pool);
/// # Ok(()) }
/// # #[cfg(not(feature = "redis"))]
/// # fn main() {}
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct Config {
    /// The options of the pool as a whole. Defaults to [`Options::default`].
    pub pool: Options,
    pub(crate) settings: Settings,
}

impl Config {
    /// The configuration that a pool has without any code: the defaults, overridden by the file that
    /// `RESOURCE_POOL_CONFIG` names, overridden by this process's environment.
    ///
    /// # Errors
    /// [`Error::Config`] for TOML or a variable that cannot be used. A variable of a single resource is an error here,
    /// too.
    pub fn load() -> Result<Self, Error> {
        Config::of(load(None, &Environment::process(), &[], &[])?)
    }

    /// The same with this TOML file, instead of the one that `RESOURCE_POOL_CONFIG` names.
    ///
    /// # Errors
    /// [`Error::Config`] also if the file cannot be read, and else as [`load`](Self::load).
    pub fn load_file(path: impl Into<PathBuf>) -> Result<Self, Error> {
        Config::of(load(Some(&Toml::File(path.into())), &Environment::process(), &[], &[])?)
    }

    /// The defaults, overridden by this TOML. The environment overrides nothing. A `${NAME}` in a text of the TOML is
    /// the value of that variable of this process.
    ///
    /// # Errors
    /// [`Error::Config`] for TOML that cannot be used.
    pub fn parse(toml: &str) -> Result<Self, Error> {
        Config::of(crate::pool::config::parse_alone(toml)?)
    }

    fn of(mut settings: Settings) -> Result<Self, Error> {
        settings.check()?;
        for name in settings.names() {
            settings.usable(name)?;
            if let Some(config) = settings.get(name) {
                config.effective(name).map_err(|error| settings.blame(error))?;
            }
        }
        settings.take_apart()?;
        Ok(Config { pool: settings.options.clone(), settings })
    }

    /// The names of all resources. The default resource of a kind has the kind's name, such as `redis`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.settings.names()
    }

    /// The names of the resources of which code, TOML or the environment sets anything, as
    /// [`warm_up_all`](crate::ResourcePool::warm_up_all) has them.
    pub fn configured(&self) -> impl Iterator<Item = &str> {
        self.settings.told_names()
    }

    /// The origin of a value. The key is that of TOML, with the resource's name before it: `redis.pool_size`,
    /// `research.tls.ca_file`, `pool.retry.attempts`. The parts of a URL have the origin of the URL. A key that nothing
    /// sets is [`Origin::Default`], and so is an unknown one.
    ///
    /// ```
    /// # #[cfg(feature = "redis")]
    /// # fn main() -> Result<(), resource_pool::Error> {
    /// use resource_pool::config::{Config, Origin};
    ///
    /// let config = Config::parse("[redis]\nhost = 'cache'")?;
    /// assert!(matches!(config.origin("redis.host"), Origin::File { line: 2, .. }));
    /// assert_eq!(config.origin("redis.port"), Origin::Default);
    /// # Ok(()) }
    /// # #[cfg(not(feature = "redis"))]
    /// # fn main() {}
    /// ```
    pub fn origin(&self, key: &str) -> Origin {
        let is_by_code = key.split_once('.').is_some_and(|(name, _)| self.settings.origins.is_by_code(name));
        if is_by_code { Origin::Code } else { self.settings.origins.of(key) }
    }

    /// The configuration of the resource of this name, if it is of this kind. Its URL is taken apart: the parts are in
    /// the fields. MongoDB's URI is not.
    pub fn get<C: KindConfig>(&self, name: &str) -> Option<&C> {
        self.settings.get(name)?.of()
    }

    /// Sets a resource. It replaces another one of this name and kind.
    pub fn set(&mut self, name: &str, config: impl Into<ResourceConfig>) {
        self.settings.set(name, config.into());
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("pool", &self.pool).field("resources", self.settings.resources()).finish()
    }
}
