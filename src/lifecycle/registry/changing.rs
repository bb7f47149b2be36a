//! The resources of a pool that a program means to use, and their changes while the pool goes on.

use std::collections::BTreeSet;

use crate::base::error::Error;
use crate::lifecycle::registry::Registry;

impl Registry {
    /// The names of the resources that code, the file or the environment configures, and of those that exist.
    pub(crate) fn names_in_use(&self) -> Result<Vec<String>, Error> {
        self.context.check_process()?;
        let told = self.settings()?;
        let made = self.entries.read().keys().map(|name| name.to_string()).collect::<Vec<_>>();
        let names: BTreeSet<String> = told.told_names().map(str::to_owned).chain(made).collect();
        Ok(names.into_iter().collect())
    }
}
