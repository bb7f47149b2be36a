//! The settings of a pool: its options, and the configuration of each resource by name.
//!
//! Locks: [`Settings`] has one, which is held only to look at a name and to add it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::base::error::{Error, Remedies};
use crate::base::origins::{Origin, Origins};
use crate::lifecycle::kind::ResourceConfig;
use crate::lifecycle::options::Options;
use crate::net::parts::{Names, Part};
use crate::net::variables::{PREFIX, Variables};

/// The whole configuration of a pool.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    pub(crate) options: Options,
    resources: BTreeMap<String, ResourceConfig>,
    pub(crate) origins: Origins,
    /// The errors of the environment, by the name of the resource that each makes unusable.
    unusable: BTreeMap<String, Error>,
    /// The names of all variables that concern one resource alone.
    variables: BTreeSet<String>,
    /// The resources that only the environment names, each with a variable that does.
    by_variable: BTreeMap<String, String>,
    /// The resources of which [`tell_default`](Settings::tell_default) has told.
    told: Arc<Mutex<BTreeSet<String>>>,
    /// The error of the first name that two resources have. `None` if there is none.
    twice: Option<Error>,
}

impl Settings {
    pub(crate) fn new(options: Options, origins: Origins) -> Self {
        Settings { options, origins, ..Settings::default() }
    }

    /// The names of all resources.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.resources.keys().map(String::as_str)
    }

    /// All resources by name.
    pub(crate) fn resources(&self) -> &BTreeMap<String, ResourceConfig> {
        &self.resources
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
            Some(other) => {
                let key = match self.by_variable.get(name) {
                    Some(variable) => variable.clone(),
                    None => format!("named.{}.{name}", config.kind()),
                };
                let problem = match self.by_variable.contains_key(name) {
                    true => "another resource has this name already".to_owned(),
                    false => format!("a {} has this name already", other.kind()),
                };
                self.twice.get_or_insert(Error::config(key, problem));
            }
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

    /// Takes the URL of each resource apart, so that a program finds the parts in the fields.
    pub(crate) fn take_apart(&mut self) -> Result<(), Error> {
        for (name, config) in &mut self.resources {
            config.note_url(name, &mut self.origins);
            *config = config.taken_apart(name).map_err(|error| self.origins.blame(error))?;
        }
        Ok(())
    }

    /// Adds a resource that only the environment names, by this variable.
    pub(crate) fn add_by_variable(&mut self, name: &str, config: ResourceConfig, variable: &str) {
        self.by_variable.insert(name.to_owned(), variable.to_owned());
        self.add(name, config);
    }

    /// Notes whether the variables of a resource could be applied.
    pub(crate) fn applied(&mut self, name: &str, variables: &Variables, applied: Result<(), Error>) {
        self.variables.extend(variables.all().map(str::to_owned));
        if let Err(error) = applied {
            let error = self.origins.blame(error);
            // The name of an unknown variable is the key of its error.
            if let Error::Config { key, .. } = &error
                && key.starts_with(PREFIX)
            {
                self.variables.insert(key.clone());
            }
            self.unusable.insert(name.to_owned(), error);
        }
    }

    /// Whether `key` is the name of a variable that concerns one resource alone.
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
        let (names, kind) = (config.names(), config.kind());
        let Names { url: (url, _), parts, .. } = names;
        let Origins { by_key, .. } = &self.origins;
        let is_code = self.origins.is_by_code(name) || self.get(name).is_none();
        let variables = config.variables(name);
        let section = if name == kind { kind.to_owned() } else { format!("named.{kind}.{name}") };
        let [user, password] = [Part::User, Part::Password].map(|part| parts[part as usize]);
        let mut said: Vec<String> = Vec::new();
        for field in [*url, user.0, password.0, &names.password_file()] {
            let by = match by_key.get(&format!("{name}.{field}")) {
                Some(Origin::Variable { name }) => name.clone(),
                Some(Origin::File { path, key, .. }) => format!("{key} in {path}"),
                _ => continue,
            };
            if !said.contains(&by) {
                said.push(by);
            }
        }
        let login = match (said.is_empty(), is_code) {
            (false, _) => format!("user and password are of {}", said.join(" and ")),
            (true, true) => "user and password are of the configuration in code".to_owned(),
            (true, false) => match variables.for_login() {
                Some([user, password, url]) => format!("set {user} and {password}, or {url}, or [{section}] in TOML"),
                None => format!("set it in [{section}] in TOML"),
            },
        };
        let nobody = match (is_code, variables.for_url()) {
            (true, _) => "is it running there?".to_owned(),
            (false, Some(url)) => format!("is it running? Else set {url}, or [{section}] in TOML"),
            (false, None) => format!("is it running? Else set [{section}] in TOML"),
        };
        Remedies { nobody: nobody.into(), login: login.into(), is_by_file: config.has_password_file() }
    }

    /// Tells the log, once, that nothing says where this resource is, although something does for another one. The
    /// program then uses localhost, and perhaps only a variable has the wrong name.
    pub(crate) fn tell_default(&self, name: &str) {
        let Some(config) = self.get(name).filter(|config| !self.is_placed(name, config)) else { return };
        // A kind without a host is not expected on localhost.
        let (host, _) = config.names().parts[Part::Host as usize];
        if host.is_empty() {
            return;
        }
        let is_other_placed = self.resources.iter().any(|(other, config)| self.is_placed(other, config));
        if !is_other_placed || !self.told.lock().insert(name.to_owned()) {
            return;
        }
        let variables = config.variables(name);
        let names: Vec<_> = variables.for_url().into_iter().chain(variables.for_host()).collect();
        let section = if name == config.kind() { name.to_owned() } else { format!("named.{}.{name}", config.kind()) };
        let by_variable = if names.is_empty() { String::new() } else { format!("{}, or ", names.join(" or ")) };
        tracing::info!(
            resource = name,
            "nothing says where {name} is, so it is expected on localhost: set {by_variable}[{section}] in TOML"
        );
    }

    /// Whether code, TOML or the environment says where this resource is.
    fn is_placed(&self, name: &str, config: &ResourceConfig) -> bool {
        let Names { url: (url, _), parts, .. } = config.names();
        let (host, _) = parts[Part::Host as usize];
        self.origins.is_by_code(name) || [url, host].iter().any(|field| self.origins.has(name, field))
    }

    /// The configuration of this resource as it takes effect, without secrets.
    pub(crate) fn effective(&self, name: &str) -> Option<String> {
        self.usable(name).ok()?;
        self.get(name)?.effective(name).ok()
    }

    /// Checks the options, and that no name is used twice. Each resource is checked by itself.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.options.check()?;
        self.twice.clone().map_or(Ok(()), Err)
    }
}
