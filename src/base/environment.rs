//! Environment variables, or fixed values that stand for them.

use std::collections::BTreeMap;
use std::env::{self, VarError};
use std::sync::Arc;
use std::time::Duration;

use crate::base::error::Error;
use crate::base::millis::{MILLIS, number};

/// The URL that is read by the kind that its scheme names.
pub(crate) const SHARED_URL: &str = "DATABASE_URL";
/// The beginning of the variables that are read by the kind that [`SHARED_KIND`] names.
const SHARED: &str = "DB_";
const SHARED_KIND: &str = "DB_KIND";

/// Whether several kinds may have this variable.
pub(crate) fn is_shared(name: &str) -> bool {
    name == SHARED_URL || name.starts_with(SHARED)
}

/// A scheme of the shared URL, the feature that has its kind, and whether that feature is on.
type Scheme = (&'static str, &'static str, bool);

/// Where environment variables are read from. An empty one counts as not set.
#[derive(Clone)]
pub(crate) struct Environment {
    /// The variables instead of those of the process.
    fixed: Option<Arc<BTreeMap<String, String>>>,
    /// The words that name the kind in variables that several kinds share. Without any, no variable is shared.
    shared_by: &'static [&'static str],
    /// The schemes that the shared URL may have. If there are none, it may have any.
    schemes: &'static [Scheme],
}

impl Environment {
    /// The variables of the process.
    pub(crate) fn process() -> Self {
        Environment { fixed: None, shared_by: &[], schemes: &[] }
    }

    /// These variables instead.
    pub(crate) fn fixed(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        Environment { fixed: Some(Arc::new(variables.into_iter().collect())), shared_by: &[], schemes: &[] }
    }

    /// The variables as a kind sees them that these words name: without the shared ones that are meant for another kind.
    pub(crate) fn shared_by(&self, words: &'static [&'static str], schemes: &'static [Scheme]) -> Self {
        Environment { shared_by: words, schemes, ..self.clone() }
    }

    pub(crate) fn get(&self, name: &str) -> Result<Option<String>, Error> {
        let is_mine = |word: &str| self.shared_by.iter().any(|mine| mine.eq_ignore_ascii_case(word.trim()));
        let value = self.value(name)?;
        let word = match &value {
            Some(url) if name == SHARED_URL => url.split(':').next().map(str::to_owned),
            Some(_) if name.starts_with(SHARED) => self.value(SHARED_KIND)?,
            _ => return Ok(value),
        };
        if self.shared_by.is_empty() || word.as_deref().is_some_and(is_mine) {
            return Ok(value);
        }
        tracing::debug!("{name} is left to another kind than {:?}", self.shared_by);
        Ok(None)
    }

    /// Checks that the shared URL, if it is set, has a scheme that a kind reads. The message does not quote any other
    /// text, which may be a secret.
    pub(crate) fn check_shared_url(&self) -> Result<(), Error> {
        let Some(url) = self.value(SHARED_URL)? else { return Ok(()) };
        let said = url.split(':').next().unwrap_or_default().trim();
        match self.schemes.iter().find(|(scheme, ..)| scheme.eq_ignore_ascii_case(said)) {
            Some((_, _, true)) => Ok(()),
            Some((scheme, feature, false)) => {
                let problem = format!("has the scheme `{scheme}`, which needs the feature `{feature}` of this crate");
                Err(Error::config(SHARED_URL, problem))
            }
            None if self.schemes.is_empty() => Ok(()),
            None => {
                let on = self.schemes.iter().filter(|(_, _, is_on)| *is_on);
                let on: Vec<_> = on.map(|(scheme, ..)| format!("`{scheme}:`")).collect();
                Err(Error::config(SHARED_URL, format!("has a scheme that no kind reads; expected {}", on.join(", "))))
            }
        }
    }

    fn value(&self, name: &str) -> Result<Option<String>, Error> {
        let value = match &self.fixed {
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
        let mut names: Vec<String> = match &self.fixed {
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

#[cfg(test)]
mod tests {
    use super::Environment;

    #[test]
    fn a_shared_url_has_a_scheme_that_a_kind_reads() {
        let read = |url: &str| {
            let environment = Environment::fixed([("DATABASE_URL".to_owned(), url.to_owned())]);
            let schemes = &[("mine", "a", true), ("other", "b", true), ("off", "c", false)];
            let environment = environment.shared_by(&["mine"], schemes);
            let read = environment.get("DATABASE_URL").unwrap();
            environment.check_shared_url().map(|()| read).map_err(|error| error.to_string())
        };
        assert_eq!(read("Mine://h").unwrap().as_deref(), Some("Mine://h"));
        assert_eq!(read("other://h"), Ok(None));
        let told = read("off://h").unwrap_err();
        assert!(told.contains("`off`") && told.contains("the feature `c`"), "{told}");
        let told = read("s3cret@h").unwrap_err();
        assert!(told.contains("`mine:`, `other:`") && !told.contains("`off:`") && !told.contains("s3cret"), "{told}");
        // A kind of a program's own may have any scheme.
        let own = Environment::fixed([("DATABASE_URL".to_owned(), "oracle://h".to_owned())]).shared_by(&["mine"], &[]);
        assert_eq!(own.get("DATABASE_URL").unwrap(), None);
        assert!(own.check_shared_url().is_ok());
    }
}
