//! The environment variables of one resource: those of its kind, or those of a further resource by its name.

use std::collections::BTreeSet;

use crate::base::environment::{Environment, is_shared};
use crate::base::error::Error;
use crate::net::parts::{Field, Names, Part};

/// The beginning of every variable of a pool and of its further resources.
pub(crate) const PREFIX: &str = "RESOURCE_POOL_";

/// The names of the variables of one resource. Where a field has several, the first that is set wins.
#[derive(Debug)]
pub(crate) struct Variables {
    url: Vec<String>,
    parts: [Vec<String>; 5],
    /// The variables of the password's file.
    password_file: Vec<String>,
    /// The further fields of the kind, with their variables.
    more: Vec<(&'static str, Vec<String>)>,
    /// The switch, and the fields of `TlsOptions` in their order. An empty name stands for no variable.
    pub(crate) tls: [String; 5],
}

impl Variables {
    /// The variables of the default resource of a kind.
    pub(crate) fn of_kind(names: &Names, more: &[Field]) -> Self {
        let owned = |(_, variables): Field| variables.iter().map(|name| (*name).to_owned()).collect();
        let parts = names.parts.map(owned);
        let password_file = files(&parts);
        let more = more.iter().map(|field| (field.0, owned(*field))).collect();
        Variables { url: owned(names.url), parts, password_file, more, tls: names.tls.map(str::to_owned) }
    }

    /// The variables of a further resource: `RESOURCE_POOL_<KIND>_<NAME>_<SUFFIX>`.
    pub(crate) fn of_named(kind: &str, names: &Names, more: &[Field], name: &str) -> Self {
        let suffixes = Variables::suffixes(kind, names, more);
        let start = format!("{PREFIX}{}_{}_", in_capitals(kind), in_capitals(name));
        let full = |suffix: String| if suffix.is_empty() { suffix } else { format!("{start}{suffix}") };
        let all = |suffixes: Vec<String>| suffixes.into_iter().map(full).collect();
        Variables {
            url: all(suffixes.url),
            parts: suffixes.parts.map(all),
            password_file: all(suffixes.password_file),
            more: suffixes.more.into_iter().map(|(field, suffixes)| (field, all(suffixes))).collect(),
            tls: suffixes.tls.map(full),
        }
    }

    /// The endings of the variables of further resources. Each ending is that of a variable of the kind, as `PWD` of
    /// `QAPUBSUB_PWD`, or the field's own name. Every URL may also end in `URL`.
    pub(crate) fn suffixes(kind: &str, names: &Names, more: &[Field]) -> Self {
        let prefix = format!("{}_", in_capitals(kind));
        let ending = |variable: &str| {
            let ending = variable.strip_prefix(&prefix).or_else(|| Some(variable.split_once('_')?.1));
            // A variable that several kinds share has the same endings in other words.
            ending.filter(|ending| !ending.is_empty() && !is_shared(variable)).map(str::to_owned)
        };
        let of_field = |(field, variables): Field, also: &[&str]| {
            let mut suffixes: Vec<String> = variables.iter().filter_map(|variable| ending(variable)).collect();
            if !variables.is_empty() {
                suffixes.extend([in_capitals(field)].into_iter().chain(also.iter().map(|also| (*also).to_owned())));
            }
            let mut known = Vec::new();
            suffixes.retain(|suffix| {
                !known.contains(suffix) && {
                    known.push(suffix.clone());
                    true
                }
            });
            suffixes
        };
        const TLS: [&str; 5] = ["TLS", "TLS_CA_FILE", "TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_SERVER_NAME"];
        let mut tls = TLS.map(str::to_owned);
        for (suffix, variable) in tls.iter_mut().zip(names.tls) {
            if variable.is_empty() {
                suffix.clear();
            }
        }
        let parts = names.parts.map(|part| of_field(part, &[]));
        let password_file = files(&parts);
        let more = more.iter().map(|field| (field.0, of_field(*field, &[]))).collect();
        Variables { url: of_field(names.url, &["URL"]), parts, password_file, more, tls }
    }

    /// Those of these variables that are meant for this resource. The others may be meant for a resource of a kind whose
    /// name begins like this one's.
    pub(crate) fn only(mut self, meant: &BTreeSet<String>) -> Self {
        let lists = [&mut self.url, &mut self.password_file].into_iter().chain(&mut self.parts);
        lists
            .chain(self.more.iter_mut().map(|(_, names)| names))
            .for_each(|names| names.retain(|name| meant.contains(name)));
        self.tls.iter_mut().filter(|name| !meant.contains(*name)).for_each(String::clear);
        self
    }

    /// All names.
    pub(crate) fn all(&self) -> impl Iterator<Item = &str> {
        let all = self.url.iter().chain(self.parts.iter().flatten()).chain(&self.password_file);
        let all = all.chain(self.more.iter().flat_map(|(_, names)| names)).chain(&self.tls);
        all.map(String::as_str).filter(|name| !name.is_empty())
    }

    /// The first names of user, password and URL, if each has one.
    pub(crate) fn for_login(&self) -> Option<[&str; 3]> {
        let [user, password] = [Part::User, Part::Password].map(|part| self.parts[part as usize].first());
        Some([user?, password?, self.url.first()?])
    }

    /// The first name of the URL.
    pub(crate) fn for_url(&self) -> Option<&str> {
        self.url.first().map(String::as_str)
    }

    /// The first name of the host.
    pub(crate) fn for_host(&self) -> Option<&str> {
        self.parts[Part::Host as usize].first().map(String::as_str)
    }

    /// The variable with the URL, and its value. A variable that may hold a URL or a host holds a URL if it looks like
    /// one.
    pub(crate) fn url(&self, environment: &Environment) -> Result<Option<(&str, String)>, Error> {
        let hosts = &self.parts[Part::Host as usize];
        environment.first_that(&self.url, |name, value| value.contains("://") || !hosts.iter().any(|host| host == name))
    }

    /// The further fields that have a variable which is set, each with that variable and its value.
    pub(crate) fn more(&self, environment: &Environment) -> Result<Vec<(&'static str, &str, String)>, Error> {
        let found = self
            .more
            .iter()
            .map(|(field, names)| Ok(environment.first(names)?.map(|(variable, text)| (*field, variable, text))));
        found.filter_map(Result::transpose).collect()
    }

    /// The variable with the path of the password's file, and that path.
    pub(crate) fn password_file(&self, environment: &Environment) -> Result<Option<(&str, String)>, Error> {
        environment.first(&self.password_file)
    }

    /// The variable with this part, and its value.
    pub(crate) fn part(&self, environment: &Environment, part: Part) -> Result<Option<(&str, String)>, Error> {
        environment.first_that(&self.parts[part as usize], |name, value| match part {
            Part::Host => !(value.contains("://") && self.url.iter().any(|url| url == name)),
            Part::Port if value.starts_with("tcp://") => {
                tracing::debug!("{name} is ignored: Kubernetes sets it to an address, for a Service of that name");
                false
            }
            _ => true,
        })
    }
}

/// The names of the variables for the file of a password, from those of the password.
fn files(parts: &[Vec<String>; 5]) -> Vec<String> {
    parts[Part::Password as usize].iter().map(|name| format!("{name}_FILE")).collect()
}

/// A name as it stands in the name of a variable: in capitals, with `_` for `-`.
pub(crate) fn in_capitals(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}
