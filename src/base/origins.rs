//! The origins of configuration values, so that an error names the variable or the key that a user can change.

use std::collections::BTreeMap;

use crate::base::error::Error;
use crate::base::expand::{Insertions, without_values};

/// Where each value was set, by the key under which its resource knows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origins {
    pub(crate) by_key: BTreeMap<String, Origin>,
    /// Where the TOML is, for messages.
    pub(crate) file: String,
    insertions: Insertions,
}

#[derive(Debug, Clone)]
pub(crate) enum Origin {
    Variable(String),
    /// Under this key of the file.
    File(String),
    Code,
}

impl Origins {
    pub(crate) fn variable(&mut self, key: String, variable: &str) {
        self.by_key.insert(key, Origin::Variable(variable.to_owned()));
    }

    /// The origins of all keys of the file. A named resource knows its own only by its name.
    pub(crate) fn file(file: &str, table: &toml::Table, insertions: Insertions) -> Self {
        let mut origins = Origins { file: file.to_owned(), insertions, ..Origins::default() };
        origins.keys("", table);
        origins
    }

    fn keys(&mut self, above: &str, table: &toml::Table) {
        for (name, value) in table {
            let key = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
            let known_as = match key.strip_prefix("named.").and_then(|key| key.split_once('.')) {
                Some((_kind, known_as)) => known_as,
                None => &key,
            };
            self.by_key.insert(known_as.to_owned(), Origin::File(key.clone()));
            if let toml::Value::Table(table) = value {
                self.keys(&key, table);
            }
        }
    }

    /// Notes that code sets a resource. Its values have no other origin from here on.
    pub(crate) fn code(&mut self, name: &str) {
        self.by_key.retain(|key, _| !key.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')));
        self.by_key.insert(name.to_owned(), Origin::Code);
    }

    pub(crate) fn is_by_code(&self, name: &str) -> bool {
        matches!(self.by_key.get(name), Some(Origin::Code))
    }

    pub(crate) fn has(&self, name: &str, field: &str) -> bool {
        self.by_key.contains_key(&format!("{name}.{field}"))
    }

    /// Whether the resource, or any of its values, has an origin.
    pub(crate) fn tell_of(&self, name: &str) -> bool {
        self.by_key
            .keys()
            .any(|key| key.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
    }

    /// The error, with the key or variable by which the value was set.
    pub(crate) fn blame(&self, error: Error) -> Error {
        let Error::Config { key, problem } = &error else { return error };
        match self.by_key.get(key) {
            Some(Origin::Variable(variable)) => Error::config(variable, problem),
            Some(Origin::File(key)) => {
                let inserted = self.insertions.get(key).map_or(&[][..], Vec::as_slice);
                in_file(Error::config(key, without_values(key, problem, inserted)), &self.file)
            }
            Some(Origin::Code) | None => error,
        }
    }
}

/// The error, with the file that it is in.
pub(crate) fn in_file(error: Error, file: &str) -> Error {
    match error {
        Error::Config { key, problem } => Error::config(key, format!("{problem} (in {file})")),
        other => other,
    }
}
