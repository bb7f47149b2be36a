//! The builder, which configures a pool from code.

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::base::environment::Environment;
use crate::base::error::Error;
use crate::lifecycle::acquire::Acquirer;
use crate::lifecycle::close::report::CloseReport;
use crate::lifecycle::kind::KindConfig;
use crate::lifecycle::options::Options;
use crate::lifecycle::registry::{PoolHandle, Registry};
use crate::pool::config::{self, Config, ExitStatus, ResourceConfig, Section, Toml};
use crate::pool::defaults::Defaults;
use crate::pool::global;

/// Builds a pool. A setting made here takes precedence over the environment, which takes precedence over TOML.
///
/// A resource set here is used as it is: neither the environment nor TOML changes a part of it.
///
/// ```no_run
/// # #[cfg(feature = "redis")]
/// # fn main() -> Result<(), resource_pool::Error> {
/// use std::time::Duration;
/// use resource_pool::{ResourcePool, config::{Options, RedisConfig}};
///
/// let mut options = Options::default();
/// options.acquire_timeout = Duration::from_secs(3);
/// let pool = ResourcePool::builder()
///     .options(options)
///     .resource(RedisConfig::url("redis://cache:6379/0").pool_size(20))
///     .on_report(|report| println!("{report}"))
///     .build()?;
/// # drop(pool);
/// # Ok(()) }
/// # #[cfg(not(feature = "redis"))]
/// # fn main() {}
/// ```
#[must_use = "a builder does nothing until `build` or `install`"]
pub struct Builder<P> {
    options: Option<Options>,
    signals: Option<bool>,
    exit_status: Option<ExitStatus>,
    resources: Vec<(String, ResourceConfig)>,
    toml: Option<Toml>,
    config: Option<Config>,
    environment: Environment,
    runtime: Option<Handle>,
    listeners: Vec<ReportListener>,
    sections: Vec<Section>,
    facade: PhantomData<fn() -> P>,
}

type ReportListener = Box<dyn Fn(&CloseReport) + Send + Sync>;

/// One of the two facades.
pub(crate) trait Facade: Sized + 'static {
    fn over(acquirer: Acquirer) -> Self;
    fn global() -> &'static Self;
}

impl<P> Builder<P> {
    pub(crate) fn new() -> Self {
        Builder {
            options: None,
            signals: None,
            exit_status: None,
            resources: Vec::new(),
            toml: None,
            config: None,
            environment: Environment::process(),
            runtime: None,
            listeners: Vec::new(),
            sections: Vec::new(),
            facade: PhantomData,
        }
    }

    /// Sets the default resource of this kind: `.resource(RedisConfig::url(..))`.
    pub fn resource(self, config: impl Into<ResourceConfig>) -> Self {
        let config = config.into();
        let kind = config.kind();
        self.named(kind, config)
    }

    /// Sets a further resource, for `mongo_named("research")`.
    pub fn named(mut self, name: &str, config: impl Into<ResourceConfig>) -> Self {
        self.resources.push((name.to_owned(), config.into()));
        self
    }

    /// Makes a kind of one's own known: its section in TOML, its variables, and the default resource of its name, for
    /// [`ResourcePool::kind`](crate::ResourcePool::kind). Exempt from semantic versioning, as all of
    /// [`adapter`](crate::adapter). [`build`](Self::build) answers [`Error::Config`] if another section has the same
    /// name.
    pub fn kind<C: KindConfig>(mut self) -> Self {
        let section = Section::of::<C>();
        if !self.sections.iter().any(|other| other.is_same(&section)) {
            self.sections.push(section);
        }
        self
    }

    /// Sets the options of the pool as a whole.
    pub fn options(mut self, options: Options) -> Self {
        self.options = Some(options);
        self
    }

    /// Sets whether SIGINT, SIGTERM and SIGHUP close the pool, if it is installed as the global one. Defaults to
    /// `true`.
    pub fn signals(mut self, signals: bool) -> Self {
        self.signals = Some(signals);
        self
    }

    /// Sets how a process exits after a signal ended it. Defaults to [`ExitStatus::Signal`].
    pub fn exit_status(mut self, status: ExitStatus) -> Self {
        self.exit_status = Some(status);
        self
    }

    /// Reads this TOML file instead of the one that `RESOURCE_POOL_CONFIG` names.
    pub fn config_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.toml = Some(Toml::File(path.into()));
        self
    }

    /// Reads this TOML instead of a file. It replaces an earlier [`config_file`](Self::config_file), and the other way
    /// round.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), resource_pool::Error> {
    /// use resource_pool::ResourcePool;
    ///
    /// let pool: ResourcePool = ResourcePool::builder().config_str("[pool]\nacquire_timeout_ms = 3000").build()?;
    /// # drop(pool);
    /// # Ok(()) }
    /// ```
    pub fn config_str(mut self, toml: impl Into<String>) -> Self {
        self.toml = Some(Toml::Text(toml.into()));
        self
    }

    /// Takes this whole configuration instead of TOML and the environment, which change nothing in it. Other settings
    /// of the builder take precedence over it. Kinds that [`kind`](Self::kind) makes known still read the environment.
    pub fn config(mut self, config: Config) -> Self {
        self.config = Some(config);
        self
    }

    /// Reads these variables instead of the process's environment.
    pub fn environment<K: Into<String>, V: Into<String>>(
        mut self,
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.environment = Environment::fixed(variables.into_iter().map(|(key, value)| (key.into(), value.into())));
        self
    }

    /// Runs the drivers on this runtime instead of the pool's own, which saves a wake-up per operation. The application
    /// must then call `close_all().await` before that runtime ends.
    pub fn runtime(mut self, handle: Handle) -> Self {
        self.runtime = Some(handle);
        self
    }

    /// Calls this listener with every report of closing the whole pool, on the closer's thread.
    pub fn on_report(mut self, listener: impl Fn(&CloseReport) + Send + Sync + 'static) -> Self {
        self.listeners.push(Box::new(listener));
        self
    }

    fn registry(self) -> Arc<Registry> {
        let loaded = match self.config {
            Some(Config { pool, mut settings }) => {
                settings.options = pool;
                config::add_sections(&mut settings, &self.environment, &self.sections, &self.resources)
                    .map(|()| settings)
            }
            None => config::load(self.toml.as_ref(), &self.environment, &self.sections, &self.resources),
        };
        let settings = loaded.and_then(|mut settings| {
            let options = &mut settings.options;
            *options = self.options.unwrap_or(std::mem::take(options));
            options.signals = self.signals.unwrap_or(options.signals);
            options.exit_status = self.exit_status.unwrap_or(options.exit_status);
            for (name, resource) in self.resources {
                settings.set(&name, resource);
            }
            settings.check()?;
            Ok(settings)
        });
        let registry = Registry::new(settings, Box::new(Defaults::default()), self.runtime);
        for listener in self.listeners {
            registry.on_report(listener);
        }
        registry
    }

    /// Builds a pool whose configuration may be unusable. Acquiring then answers the error.
    pub(crate) fn build_unchecked(self) -> Arc<PoolHandle> {
        Arc::new(PoolHandle(self.registry()))
    }
}

#[allow(private_bounds, reason = "the two facades are all there are")]
impl<P: Facade> Builder<P> {
    /// Builds a pool of one's own, and connects nothing yet. The pool closes when its last handle drops.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration cannot be used. A bad variable of a resource fails only its callers.
    pub fn build(self) -> Result<P, Error> {
        let handle = self.build_unchecked();
        handle.0.check_config()?;
        Ok(P::over(Acquirer::new(handle)))
    }

    /// Builds the pool and makes it the global one.
    ///
    /// # Errors
    /// [`Error::AlreadyInstalled`] if there is a global pool already, [`Error::Config`] as [`build`](Self::build).
    pub fn install(self) -> Result<&'static P, Error> {
        let handle = self.build_unchecked();
        handle.0.check_config()?;
        global::install(handle)?;
        Ok(P::global())
    }
}

impl<P> fmt::Debug for Builder<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("resources", &self.resources).finish_non_exhaustive()
    }
}
