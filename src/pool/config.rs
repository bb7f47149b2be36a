//! Configuration: code, over environment, over TOML, over defaults for localhost.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::base::environment::Environment;
use crate::base::error::Error;
use crate::base::origins::{Origins, in_file};
pub use crate::base::repeat::Repeat;
pub use crate::base::retry::Retry;
pub use crate::base::secret::Secret;
use crate::kinds::for_each_kind;
pub use crate::lifecycle::close::options::CloseOptions;
pub use crate::lifecycle::health::HealthOptions;
use crate::lifecycle::kind::KindConfig;
pub use crate::lifecycle::kind::ResourceConfig;
pub use crate::lifecycle::leak::LeakOptions;
pub use crate::lifecycle::options::ExitStatus;
pub use crate::lifecycle::options::Options;
pub use crate::lifecycle::probe::ProbeOptions;
use crate::lifecycle::settings::Settings;
pub use crate::net::tls::TlsOptions;

/// The environment variable that names the TOML file.
pub const CONFIG_FILE: &str = "RESOURCE_POOL_CONFIG";

macro_rules! kinds {
    ($($feature:literal $what:literal $kind:ident $named:ident $with:ident $type:ident $config:ident $resource:ident $task:ty, $thread:ty, $guard:literal;)*) => {
        $(
            #[cfg(feature = $feature)]
            pub use crate::kinds::$kind::$config;
        )*

        /// The shape of the TOML file: everything that can be configured.
        #[derive(Debug, Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct File {
            pool: Options,
            $(#[cfg(feature = $feature)] $kind: $config,)*
            named: Named,
        }

        /// The further resources of each kind, by name: `[named.KIND.NAME]` in TOML.
        #[derive(Debug, Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct Named {
            $(#[cfg(feature = $feature)] $kind: BTreeMap<String, $config>,)*
        }

        impl File {
            /// The settings that it makes, with the environment over it.
            #[allow(unused_mut, reason = "without a kind there is nothing to apply to")]
            fn settle(mut self, origins: Origins, environment: &Environment) -> Result<Settings, Error> {
                let mut settings = Settings::new(self.pool, origins);
                settings.options.apply(environment)?;
                $(#[cfg(feature = $feature)] {
                    let applied = self.$kind.apply(environment, &mut settings.origins);
                    settings.add($config::KIND, self.$kind.into());
                    // A bad variable is for that resource to tell.
                    settings.applied($config::KIND, &$config::NAMES, applied);
                })*
                $(#[cfg(feature = $feature)]
                for (name, config) in self.named.$kind {
                    settings.add(&name, config.into());
                })*
                Ok(settings)
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
    };
}

for_each_kind!(kinds);

/// Defaults, then the TOML file, then the environment.
pub(crate) fn load(file: Option<&Path>, environment: &Environment) -> Result<Settings, Error> {
    let named = environment.get(CONFIG_FILE)?;
    let (file, origins) = match file.or(named.as_deref().map(Path::new)) {
        Some(path) => read(path)?,
        None => Default::default(),
    };
    file.settle(origins, environment)
}

fn read(path: &Path) -> Result<(File, Origins), Error> {
    let text = fs::read_to_string(path)
        .map_err(|error| Error::config(CONFIG_FILE, format!("{} cannot be read: {error}", path.display())))?;
    let file = parse(&text).map_err(|error| in_file(error, path))?;
    Ok((file, Origins::file(path, &text)))
}

fn parse(text: &str) -> Result<File, Error> {
    let syntax = |error: toml::de::Error| {
        let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].lines().count().max(1));
        Error::config(format!("TOML, line {line}"), without_value(error.message()))
    };
    let document = toml::Deserializer::parse(text).map_err(syntax)?;
    serde_path_to_error::deserialize(document)
        .map_err(|error| Error::config(error.path().to_string(), without_value(error.inner().message())))
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
