//! The origins of configuration values, so that an error names the variable or the key that a user can change.

use std::collections::BTreeMap;
use std::fmt;

use toml::de::{DeTable, DeValue};

use crate::base::error::Error;
use crate::base::expand::{Insertions, without_values};

/// Where each value was set, by the key under which its resource knows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origins {
    pub(crate) by_key: BTreeMap<String, Origin>,
    insertions: Insertions,
}

/// The place that set a value of the [configuration](crate::config::Config).
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(tag = "by", rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Origin {
    /// Nothing sets the value, so it is the default.
    Default,
    /// A variable of the environment.
    Variable {
        /// The variable's name.
        name: String,
    },
    /// A key of the TOML.
    File {
        /// The path of the file, or words for TOML that is no file.
        path: String,
        /// The number of the line that has the key, from 1.
        line: usize,
        /// The key with its sections.
        key: String,
    },
    /// Code of the program.
    Code,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Variable { name } => f.write_str(name),
            Origin::File { path, line, .. } => write!(f, "{path}:{line}"),
            Origin::Code => f.write_str("code"),
        }
    }
}

impl Origins {
    pub(crate) fn variable(&mut self, key: String, variable: &str) {
        self.by_key.insert(key, Origin::Variable { name: variable.to_owned() });
    }

    /// The origins of all keys of this TOML, which is in this file. A named resource knows its own only by its name.
    pub(crate) fn file(file: &str, text: &str, insertions: Insertions) -> Self {
        let mut origins = Origins { insertions, ..Origins::default() };
        // TOML that has errors has been refused before.
        if let Ok(table) = DeTable::parse(text) {
            origins.keys("", table.get_ref(), &|start| Origin::File {
                path: file.to_owned(),
                line: 1 + text.bytes().take(start).filter(|byte| *byte == b'\n').count(),
                key: String::new(),
            });
        }
        origins
    }

    /// Notes the keys of this table. `place` makes the origin of a key out of the byte at which it starts.
    fn keys(&mut self, above: &str, table: &DeTable<'_>, place: &dyn Fn(usize) -> Origin) {
        for (name, value) in table {
            let (start, name) = (name.span().start, name.get_ref());
            let key = if above.is_empty() { name.to_string() } else { format!("{above}.{name}") };
            let known_as = match key.strip_prefix("named.").and_then(|key| key.split_once('.')) {
                Some((_kind, known_as)) => known_as,
                None => &key,
            };
            let mut origin = place(start);
            if let Origin::File { key: in_file, .. } = &mut origin {
                in_file.clone_from(&key);
            }
            self.by_key.insert(known_as.to_owned(), origin);
            if let DeValue::Table(table) = value.get_ref() {
                self.keys(&key, table, place);
            }
        }
    }

    /// The origin of the value under this key.
    pub(crate) fn of(&self, key: &str) -> Origin {
        self.by_key.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// Notes that these fields of a resource come from another field of it, such as its URL.
    pub(crate) fn derived<'a>(&mut self, name: &str, from: &str, fields: impl Iterator<Item = &'a str>) {
        let Some(origin) = self.by_key.get(&format!("{name}.{from}")).cloned() else { return };
        for field in fields {
            self.by_key.insert(format!("{name}.{field}"), origin.clone());
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
            Some(Origin::Variable { name }) => Error::config(name, problem),
            Some(Origin::File { path, key, .. }) => {
                let inserted = self.insertions.get(key).map_or(&[][..], Vec::as_slice);
                in_file(Error::config(key, without_values(key, problem, inserted)), path)
            }
            Some(Origin::Code | Origin::Default) | None => error,
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
