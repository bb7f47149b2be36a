//! Configuration: code, over environment, over TOML, over defaults for localhost.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::base::environment::Environment;
use crate::base::error::Error;
use crate::base::origins::{Origins, in_file};
pub use crate::base::repeat::Repeat;
pub use crate::base::retry::Retry;
pub use crate::base::secret::Secret;
use crate::kinds::for_each_kind;
pub use crate::lifecycle::close::options::CloseOptions;
pub use crate::lifecycle::health::HealthOptions;
pub use crate::lifecycle::kind::ResourceConfig;
use crate::lifecycle::kind::{FromEnvironment, KindConfig};
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
                KindConfig::from_env()
            }
        })*
    };
}

for_each_kind!(kinds);

/// Defaults, then the TOML file, then the environment. These sections are of kinds that are not in the table.
pub(crate) fn load(file: Option<&Path>, environment: &Environment, sections: &[Section]) -> Result<Settings, Error> {
    let named = environment.get(CONFIG_FILE)?;
    let Some(path) = file.or(named.as_deref().map(Path::new)) else {
        return settle(toml::Table::new(), Origins::default(), environment, sections);
    };
    let text = fs::read_to_string(path)
        .map_err(|error| Error::config(CONFIG_FILE, format!("{} cannot be read: {error}", path.display())))?;
    let document = parse(&text).map_err(|error| in_file(error, path))?;
    let settled = settle(document, Origins::file(path, &text), environment, sections);
    settled.map_err(|error| in_file(error, path))
}

fn parse(text: &str) -> Result<toml::Table, Error> {
    text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].lines().count().max(1));
        Error::config(format!("TOML, line {line}"), without_value(error.message()))
    })
}

fn settle(
    mut document: toml::Table,
    origins: Origins,
    environment: &Environment,
    sections: &[Section],
) -> Result<Settings, Error> {
    let taken: Vec<_> = sections.iter().map(|section| section.take_out(&mut document)).collect();
    let file: File = deserialize("", document)?;
    let mut settings = file.settle(origins, environment)?;
    for (section, taken) in sections.iter().zip(taken) {
        (section.settle)(taken, &mut settings, environment)?;
    }
    Ok(settings)
}

/// What stands under this path of the file.
fn deserialize<T: DeserializeOwned>(above: &str, document: toml::Table) -> Result<T, Error> {
    serde_path_to_error::deserialize(document).map_err(|error| {
        let below = error.path().to_string();
        let path = if above.is_empty() { below } else { format!("{above}.{below}") };
        Error::config(path, without_value(error.inner().message()))
    })
}

/// The section of a kind that is not in the table of kinds, and those of its further resources.
#[derive(Clone, Copy)]
pub(crate) struct Section {
    kind: &'static str,
    settle: fn(Taken, &mut Settings, &Environment) -> Result<(), Error>,
}

/// What a file says of one kind: of the default resource, and of the further ones.
type Taken = [Option<toml::Value>; 2];

impl Section {
    pub(crate) fn of<C: KindConfig>() -> Self {
        Section { kind: C::KIND, settle: settle_section::<C> }
    }

    fn take_out(&self, document: &mut toml::Table) -> Taken {
        let default = document.remove(self.kind);
        let named = document.get_mut("named").and_then(toml::Value::as_table_mut);
        [default, named.and_then(|named| named.remove(self.kind))]
    }
}

fn settle_section<C: KindConfig>(
    [default, named]: Taken,
    settings: &mut Settings,
    environment: &Environment,
) -> Result<(), Error> {
    let table = |path: &str, value: Option<toml::Value>| match value {
        None => Ok(toml::Table::new()),
        Some(toml::Value::Table(table)) => Ok(table),
        Some(_) => Err(Error::config(path, "is no table")),
    };
    let mut config: C = deserialize(C::KIND, table(C::KIND, default)?)?;
    let applied = config.apply(environment, &mut settings.origins);
    settings.add(C::KIND, config.into());
    settings.applied(C::KIND, &C::NAMES, applied);
    let path = format!("named.{}", C::KIND);
    for (name, config) in deserialize::<BTreeMap<String, C>>(&path, table(&path, named)?)? {
        settings.add(&name, config.into());
    }
    Ok(())
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
