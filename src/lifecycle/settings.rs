//! The settings of a pool: its options, and the configuration of each resource by name.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::error::{Error, Remedies};
use crate::base::origins::{Origin, Origins};
use crate::lifecycle::kind::ResourceConfig;
use crate::lifecycle::options::Options;
use crate::net::parts::{Names, Part};

/// The whole configuration of a pool.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    pub(crate) options: Options,
    resources: BTreeMap<String, ResourceConfig>,
    pub(crate) origins: Origins,
    /// The errors of the environment, by the name of the resource that each makes unusable.
    unusable: BTreeMap<String, Error>,
    /// The names of all variables that a default resource reads.
    variables: BTreeSet<&'static str>,
    /// The first name that two kinds have, and these kinds. `None` if there is none.
    twice: Option<(String, [&'static str; 2])>,
}

impl Settings {
    pub(crate) fn new(options: Options, origins: Origins) -> Self {
        Settings { options, origins, ..Settings::default() }
    }

    /// The names of all resources.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.resources.keys().map(String::as_str)
    }

    /// The configuration of the resource of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&ResourceConfig> {
        self.resources.get(name)
    }

    /// The names of the resources of which code, the file or the environment sets anything.
    pub(crate) fn told_names(&self) -> impl Iterator<Item = &str> {
        self.names().filter(|name| self.origins.tell_of(name))
    }

    /// Adds a resource. Two resources may not have the same name, since a resource is asked for by its name alone.
    pub(crate) fn add(&mut self, name: &str, config: ResourceConfig) {
        match self.resources.get(name) {
            Some(other) => drop(self.twice.get_or_insert((name.to_owned(), [config.kind(), other.kind()]))),
            None => drop(self.resources.insert(name.to_owned(), config)),
        }
    }

    /// Sets a resource from code. It replaces any other configuration of this name for the same kind.
    pub(crate) fn set(&mut self, name: &str, config: ResourceConfig) {
        self.origins.code(name);
        self.unusable.remove(name);
        if self.resources.get(name).is_some_and(|other| other.kind() == config.kind()) {
            self.resources.remove(name);
        }
        self.add(name, config);
    }

    /// Notes whether the variables of a default resource could be applied.
    pub(crate) fn applied(&mut self, name: &str, names: &Names, applied: Result<(), Error>) {
        self.variables.extend(names.all());
        if let Err(error) = applied {
            self.unusable.insert(name.to_owned(), self.origins.blame(error));
        }
    }

    /// Whether `key` is the name of a variable that a default resource reads.
    pub(crate) fn is_variable(&self, key: &str) -> bool {
        self.variables.contains(key)
    }

    /// Refuses a resource whose configuration cannot be used, as far as that is known already.
    pub(crate) fn usable(&self, name: &str) -> Result<(), Error> {
        if let Some(error) = self.unusable.get(name) {
            return Err(error.clone());
        }
        match self.get(name).and_then(|config| config.is_half(&|field| self.origins.has(name, field))) {
            Some((field, problem)) => Err(self.blame(Error::config(format!("{name}.{field}"), problem))),
            None => Ok(()),
        }
    }

    /// The error of a resource, with the key or variable that has the wrong value.
    pub(crate) fn blame(&self, error: Error) -> Error {
        self.origins.blame(error)
    }

    /// The advice for an error: if there is no server at the endpoint, and if it refuses the login.
    pub(crate) fn remedies(&self, name: &str, config: &ResourceConfig) -> Remedies {
        let (Names { url: (url, variables), parts, .. }, kind) = (*config.names(), config.kind());
        let Origins { by_key, file } = &self.origins;
        let is_default = name == kind && !matches!(by_key.get(name), Some(Origin::Code));
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
                let variables = [user.1, password.1, variables].map(|names| names.first().copied());
                match variables {
                    [Some(user), Some(password), Some(url)] => {
                        format!("set {user} and {password}, or {url}, or [{kind}] in TOML")
                    }
                    _ => format!("set it in [{kind}] in TOML"),
                }
            }
            (true, false) => "user and password are of the configuration in code".to_owned(),
        };
        let nobody = match is_default {
            true => match variables.first() {
                Some(url) => format!("is it running? Else set {url}, or [{kind}] in TOML"),
                None => format!("is it running? Else set [{kind}] in TOML"),
            },
            false => "is it running there?".to_owned(),
        };
        Remedies { nobody: nobody.into(), login: login.into() }
    }

    /// The configuration of this resource as it takes effect, without secrets.
    pub(crate) fn effective(&self, name: &str) -> Option<String> {
        self.usable(name).ok()?;
        self.get(name)?.effective(name).ok()
    }

    /// Checks the options, and that no name is used twice. Each resource is checked by itself.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.options.check()?;
        match &self.twice {
            Some((name, [kind, other])) => {
                Err(Error::config(format!("named.{kind}.{name}"), format!("a {other} has this name already")))
            }
            None => Ok(()),
        }
    }
}
