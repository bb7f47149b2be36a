//! Environment variables, or fixed values that stand for them.

use std::collections::BTreeMap;
use std::env::{self, VarError};
use std::time::Duration;

use crate::base::error::Error;
use crate::base::millis::{MILLIS, number};

/// Where environment variables are read from. An empty one counts as not set.
pub(crate) struct Environment(Option<BTreeMap<String, String>>);

impl Environment {
    /// The variables of the process.
    pub(crate) fn process() -> Self {
        Environment(None)
    }

    /// These variables instead.
    pub(crate) fn fixed(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        Environment(Some(variables.into_iter().collect()))
    }

    pub(crate) fn get(&self, name: &str) -> Result<Option<String>, Error> {
        let value = match &self.0 {
            Some(fixed) => fixed.get(name).cloned(),
            None => match env::var(name) {
                Ok(value) => Some(value),
                Err(VarError::NotPresent) => None,
                Err(VarError::NotUnicode(_)) => return Err(Error::config(name, "is not UTF-8")),
            },
        };
        Ok(value.filter(|value| !value.is_empty()))
    }

    /// The names of all that are set and begin so, in their order.
    pub(crate) fn beginning_with(&self, prefix: &str) -> Vec<String> {
        let mut names: Vec<String> = match &self.0 {
            Some(fixed) => fixed.iter().filter(|(_, value)| !value.is_empty()).map(|(name, _)| name.clone()).collect(),
            None => env::vars_os()
                .filter(|(_, value)| !value.is_empty())
                .filter_map(|(name, _)| name.into_string().ok())
                .collect(),
        };
        names.retain(|name| name.starts_with(prefix));
        names.sort();
        names
    }

    /// The first of these that is set, with its name.
    pub(crate) fn first<'a>(&self, names: &'a [String]) -> Result<Option<(&'a str, String)>, Error> {
        self.first_that(names, |_, _| true)
    }

    /// The first of these that is set and that `is_meant` accepts, with its name.
    pub(crate) fn first_that<'a>(
        &self,
        names: &'a [String],
        is_meant: impl Fn(&str, &str) -> bool,
    ) -> Result<Option<(&'a str, String)>, Error> {
        for name in names {
            if let Some(value) = self.get(name)?.filter(|value| is_meant(name, value)) {
                return Ok(Some((name, value)));
            }
        }
        Ok(None)
    }

    /// Sets an optional text, if the variable is set.
    pub(crate) fn optional<T: From<String>>(&self, name: &str, target: &mut Option<T>) -> Result<(), Error> {
        if let Some(value) = self.get(name)? {
            *target = Some(value.into());
        }
        Ok(())
    }

    /// Whether this switch is on or off. `None` if it is not set.
    pub(crate) fn switch(&self, name: &str) -> Result<Option<bool>, Error> {
        match self.get(name)?.as_deref().map(str::trim) {
            None => Ok(None),
            Some("true" | "1") => Ok(Some(true)),
            Some("false" | "0") => Ok(Some(false)),
            Some(_) => Err(Error::config(name, "is neither `true` nor `false`")),
        }
    }

    pub(crate) fn millis(&self, name: &str, target: &mut Duration) -> Result<(), Error> {
        if let Some(text) = self.get(name)? {
            *target = Duration::from_millis(number(name, &text, MILLIS)?);
        }
        Ok(())
    }
}
