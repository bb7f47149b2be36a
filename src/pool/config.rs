//! The configuration of a pool. Code takes precedence over the environment, the environment over TOML, and TOML over
//! the defaults for localhost.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::iter;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use crate::base::environment::Environment;
use crate::base::error::Error;
use crate::base::expand::{Insertions, expand};
pub use crate::base::origins::Origin;
use crate::base::origins::{Origins, in_file};
pub use crate::base::repeat::Repeat;
pub use crate::base::retry::Retry;
pub use crate::base::secret::{Secret, SecretFile};
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
use crate::net::instances::{ConfiguredNames, Instances};
pub use crate::net::tls::TlsOptions;
use crate::net::variables::Variables;
pub use crate::pool::whole_config::Config;

/// The environment variable that names the TOML file.
pub const CONFIG_FILE: &str = "RESOURCE_POOL_CONFIG";

macro_rules! kinds {
    ($($feature:literal $what:literal $kind:ident $named:ident $with:ident $type:ident $config:ident $resource:ident $task:ty, $thread:ty, $task_guard:literal $guard:literal;)*) => {
        $(
            #[cfg(feature = $feature)]
            pub use crate::kinds::$kind::$config;
        )*

        /// The shape of the TOML file, with everything that can be configured.
        #[derive(Debug, Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct File {
            pool: Options,
            $(#[cfg(feature = $feature)] $kind: $config,)*
            named: Named,
        }

        /// The sections of the built-in kinds.
        const BUILT_IN: &[&str] = &[$(stringify!($kind)),*];

        /// The further resources of each kind, by name: `[named.KIND.NAME]` in TOML.
        #[derive(Debug, Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct Named {
            $(#[cfg(feature = $feature)] $kind: BTreeMap<String, $config>,)*
        }

        impl File {
            /// The further resources of each kind that TOML or code names.
            #[allow(unused_variables, reason = "without a kind there is nothing to find")]
            fn configured(&self, by_code: &[(String, ResourceConfig)]) -> Vec<ConfiguredNames> {
                Vec::from([
                    $(#[cfg(feature = $feature)]
                    of_kind::<$config>(self.named.$kind.keys().cloned().collect(), by_code),)*
                ])
            }

            /// Turns the file into settings, and applies the environment to them.
            #[allow(unused_variables, reason = "without a kind there is nothing to apply to")]
            fn settle(self, origins: Origins, environment: &Environment, instances: &Instances) -> Result<Settings, Error> {
                let mut settings = Settings::new(self.pool, origins);
                settings.options.apply(environment, &mut settings.origins)?;
                $(#[cfg(feature = $feature)] settle_default(self.$kind, &mut settings, environment);)*
                $(#[cfg(feature = $feature)] settle_named(self.named.$kind, &mut settings, environment, instances);)*
                Ok(settings)
            }
        }

        $(#[cfg(feature = $feature)] impl $config {
            /// The configuration for `scoped` without code: the defaults, overridden by this process's
            /// environment. This reads no TOML file.
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

/// Where the TOML is, instead of the file that the environment names.
#[derive(Debug)]
pub(crate) enum Toml {
    File(PathBuf),
    Text(String),
}

/// The place of TOML that is no file, for errors.
const TEXT: &str = "the TOML given in code";

/// Loads the settings: the defaults, then the TOML file, then the environment. `sections` are of kinds that are not in
/// the table. The environment does not change the resources that code sets.
pub(crate) fn load(
    toml: Option<&Toml>,
    environment: &Environment,
    sections: &[Section],
    by_code: &[(String, ResourceConfig)],
) -> Result<Settings, Error> {
    check(sections)?;
    let named = environment.get(CONFIG_FILE)?.map(|path| Toml::File(path.into()));
    let (file, origins, taken) = match toml.or(named.as_ref()) {
        Some(Toml::File(path)) => read(path, environment, sections)?,
        Some(Toml::Text(text)) => parse(text, TEXT, environment, sections).map_err(|error| in_file(error, TEXT))?,
        None => Default::default(),
    };
    let mut configured = file.configured(by_code);
    let taken: Vec<_> = taken.into_iter().chain(iter::repeat_with(TakenKeys::default)).take(sections.len()).collect();
    configured.extend(sections.iter().zip(&taken).map(|(section, taken)| (section.configured)(taken, by_code)));
    let instances = Instances::find(environment, &configured);
    instances.warn_of_no_kind();
    let mut settings = file.settle(origins, environment, &instances)?;
    for (section, taken) in sections.iter().zip(taken) {
        (section.settle)(taken, &mut settings, environment, &instances);
    }
    Ok(settings)
}

/// The settings of this TOML alone, with the environment's values only where a text names a variable.
pub(crate) fn parse_alone(text: &str) -> Result<Settings, Error> {
    let parsed = parse(text, TEXT, &Environment::process(), &[]);
    let (file, origins, _) = parsed.map_err(|error| in_file(error, TEXT))?;
    file.settle(origins, &Environment::fixed([]), &Instances::default())
}

/// Adds the kinds that are not in the table to these settings, with the environment applied to them.
pub(crate) fn add_sections(
    settings: &mut Settings,
    environment: &Environment,
    sections: &[Section],
    by_code: &[(String, ResourceConfig)],
) -> Result<(), Error> {
    check(sections)?;
    let configured: Vec<_> = sections.iter().map(|section| (section.configured)(&None, by_code)).collect();
    let instances = Instances::find(environment, &configured);
    for section in sections {
        (section.settle)(None, settings, environment, &instances);
    }
    Ok(())
}

/// A kind, and the further resources of it that TOML or code names.
fn of_kind<C: KindConfig>(by_toml: BTreeSet<String>, by_code: &[(String, ResourceConfig)]) -> ConfiguredNames {
    let by_code = by_code.iter().filter(|(name, config)| config.kind() == C::KIND && name != C::KIND);
    ConfiguredNames {
        kind: C::KIND,
        names: C::NAMES,
        more: C::MORE,
        by_toml,
        by_code: by_code.map(|(name, _)| name.clone()).collect(),
    }
}

/// Adds the default resource of a kind, with the environment applied. A bad variable is an error of that resource alone.
fn settle_default<C: KindConfig>(mut config: C, settings: &mut Settings, environment: &Environment) {
    let variables = Variables::of_kind(&C::NAMES, C::MORE);
    let applied = config.apply(C::KIND, &variables, environment, &mut settings.origins);
    settings.add(C::KIND, config.into());
    settings.applied(C::KIND, &variables, applied);
}

/// Adds the further resources of a kind, with the environment applied: those of TOML, and those that only the
/// environment names.
fn settle_named<C: KindConfig>(
    mut by_toml: BTreeMap<String, C>,
    settings: &mut Settings,
    environment: &Environment,
    instances: &Instances,
) {
    for (name, found) in instances.of(C::KIND) {
        let (mut config, is_new) = match by_toml.remove(name) {
            Some(config) => (config, false),
            None => (C::default(), true),
        };
        let variables = Variables::of_named(C::KIND, &C::NAMES, C::MORE, name);
        let (variables, applied) = match found {
            Ok(meant) => {
                let variables = variables.only(meant);
                let applied = config.apply(name, &variables, environment, &mut settings.origins);
                (variables, applied)
            }
            Err(error) => (variables, Err(error.clone())),
        };
        match found.as_ref().ok().and_then(BTreeSet::first) {
            Some(variable) if is_new => settings.add_by_variable(name, config.into(), variable),
            _ => settings.add(name, config.into()),
        }
        settings.applied(name, &variables, applied);
    }
    for (name, config) in by_toml {
        settings.add(&name, config.into());
    }
}

/// Checks that no two kinds share a section, and that none has the section of something else.
fn check(sections: &[Section]) -> Result<(), Error> {
    for (index, section) in sections.iter().enumerate() {
        let others = sections[..index].iter().map(|other| other.kind);
        if BUILT_IN.iter().copied().chain(["pool", "named"]).chain(others).any(|other| other == section.kind) {
            return Err(Error::config(section.kind, "is the name of another section already"));
        }
    }
    Ok(())
}

fn read(
    path: &Path,
    environment: &Environment,
    sections: &[Section],
) -> Result<(File, Origins, Vec<TakenKeys>), Error> {
    let text = fs::read_to_string(path)
        .map_err(|error| Error::config(CONFIG_FILE, format!("{} cannot be read: {error}", path.display())))?;
    let file = path.display().to_string();
    parse(&text, &file, environment, sections).map_err(|error| in_file(error, &file))
}

/// Parses a document. `file` says where it is, for errors.
fn parse(
    text: &str,
    file: &str,
    environment: &Environment,
    sections: &[Section],
) -> Result<(File, Origins, Vec<TakenKeys>), Error> {
    let mut document: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].lines().count().max(1));
        Error::config(format!("TOML, line {line}"), without_value(error.message()))
    })?;
    let mut insertions = Insertions::default();
    expand("", &mut document, environment, &mut insertions)?;
    let origins = Origins::file(file, text, insertions);
    let taken = sections.iter().map(|section| section.take_out(&mut document));
    let taken = taken.collect::<Result<_, _>>()?;
    Ok((deserialize("", document)?, origins, taken))
}

/// Deserializes the part of the file under this path. The path goes into errors.
fn deserialize<'de, T: DeserializeOwned>(
    above: &str,
    document: impl Deserializer<'de, Error = toml::de::Error>,
) -> Result<T, Error> {
    serde_path_to_error::deserialize(document).map_err(|error| {
        let below = error.path().to_string();
        let path = match (above, &*below) {
            ("", _) => below,
            (_, ".") => above.to_owned(),
            _ => format!("{above}.{below}"),
        };
        Error::config(path, without_value(error.inner().message()))
    })
}

/// The section of a kind that is not in the table of kinds, and those of its further resources.
#[derive(Clone, Copy)]
pub(crate) struct Section {
    kind: &'static str,
    of: TypeId,
    take: fn(Option<toml::Value>, Option<toml::Value>) -> Result<TakenKeys, Error>,
    configured: fn(&TakenKeys, &[(String, ResourceConfig)]) -> ConfiguredNames,
    settle: fn(TakenKeys, &mut Settings, &Environment, &Instances),
}

/// The part of a file for one kind: its default resource and its further ones, in a [`Said`].
type TakenKeys = Option<Box<dyn Any>>;

/// [`TakenKeys`] with its type.
#[derive(Clone, Default)]
struct Said<C> {
    default: C,
    named: BTreeMap<String, C>,
}

impl Section {
    pub(crate) fn of<C: KindConfig>() -> Self {
        Section {
            kind: C::KIND,
            of: TypeId::of::<C>(),
            take: take::<C>,
            configured: configured::<C>,
            settle: settle::<C>,
        }
    }

    /// Whether both sections belong to the same configuration type.
    pub(crate) fn is_same(&self, other: &Section) -> bool {
        self.of == other.of
    }

    /// Removes the kind's parts from the document, and deserializes them.
    fn take_out(&self, document: &mut toml::Table) -> Result<TakenKeys, Error> {
        let default = document.remove(self.kind);
        let named = document.get_mut("named").and_then(toml::Value::as_table_mut);
        (self.take)(default, named.and_then(|named| named.remove(self.kind)))
    }
}

fn take<C: KindConfig>(default: Option<toml::Value>, named: Option<toml::Value>) -> Result<TakenKeys, Error> {
    let default = default.map_or_else(|| Ok(C::default()), |section| deserialize(C::KIND, section))?;
    let named = named.map_or_else(|| Ok(BTreeMap::new()), |all| deserialize(&format!("named.{}", C::KIND), all))?;
    Ok(Some(Box::new(Said { default, named })))
}

fn said<C: KindConfig>(taken: &TakenKeys) -> Option<&Said<C>> {
    taken.as_ref().and_then(|taken| taken.downcast_ref())
}

fn configured<C: KindConfig>(taken: &TakenKeys, by_code: &[(String, ResourceConfig)]) -> ConfiguredNames {
    of_kind::<C>(said::<C>(taken).into_iter().flat_map(|said| said.named.keys().cloned()).collect(), by_code)
}

fn settle<C: KindConfig>(taken: TakenKeys, settings: &mut Settings, environment: &Environment, instances: &Instances) {
    let Said { default, named } = said::<C>(&taken).cloned().unwrap_or_default();
    settle_default(default, settings, environment);
    settle_named(named, settings, environment, instances);
}

/// A message of serde without the value that did not fit, which may be a password.
fn without_value(message: &str) -> String {
    match (message.split_once(": "), message.rfind(", expected")) {
        (_, Some(expected)) if message.starts_with("unknown variant ") => {
            format!("unknown variant{}", &message[expected..])
        }
        (Some((what @ ("invalid type" | "invalid value"), _)), Some(expected)) => {
            format!("{what}{}", &message[expected..])
        }
        _ => message.to_owned(),
    }
}
