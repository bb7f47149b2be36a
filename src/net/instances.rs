//! The further resources that the environment names: `RESOURCE_POOL_<KIND>_<NAME>_<SUFFIX>`.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::environment::Environment;
use crate::base::error::Error;
use crate::net::parts::{Field, Names};
use crate::net::variables::{PREFIX, Variables, in_capitals};

/// The variables of the pool as a whole and of its tests, which begin like those of further resources.
const OTHERS: [&str; 4] = [
    "RESOURCE_POOL_CONFIG",
    "RESOURCE_POOL_ACQUIRE_TIMEOUT_MS",
    "RESOURCE_POOL_CLOSE_DEADLINE_MS",
    "RESOURCE_POOL_TEST_",
];

/// A kind, and the further resources of it that TOML or code names.
pub(crate) struct ConfiguredNames {
    pub(crate) kind: &'static str,
    pub(crate) names: Names,
    pub(crate) more: &'static [Field],
    pub(crate) by_toml: BTreeSet<String>,
    pub(crate) by_code: BTreeSet<String>,
}

impl ConfiguredNames {
    /// The names that TOML or code has for the name in a variable, which has `_` for `-`.
    fn matching(&self, name: &str) -> BTreeSet<&String> {
        self.by_toml.union(&self.by_code).filter(|known| in_capitals(known) == in_capitals(name)).collect()
    }
}

/// The further resources of all kinds that the environment names. Each has the variables that are meant for it, or the
/// error that makes it unusable.
#[derive(Debug, Default)]
pub(crate) struct Instances(BTreeMap<&'static str, BTreeMap<String, MeantVariables>>);

/// The variables of one resource, or the error that makes it unusable.
pub(crate) type MeantVariables = Result<BTreeSet<String>, Error>;

impl Instances {
    /// Those of this kind.
    pub(crate) fn of(&self, kind: &str) -> impl Iterator<Item = (&String, &MeantVariables)> {
        self.0.get(kind).into_iter().flatten()
    }

    /// Finds the resources that the environment names. A resource that code sets is left out, because code overrides
    /// the environment.
    pub(crate) fn find(environment: &Environment, kinds: &[ConfiguredNames]) -> Self {
        let mut found = Instances::default();
        let mut strangers = Vec::new();
        for variable in environment.beginning_with(PREFIX) {
            let is_other = |other: &&str| variable == *other || other.ends_with('_') && variable.starts_with(other);
            let is_own =
                |kind: &ConfiguredNames| Variables::of_kind(&kind.names, kind.more).all().any(|own| own == variable);
            if OTHERS.iter().any(is_other) || kinds.iter().any(is_own) {
                continue;
            }
            match meanings(&variable, kinds).into_iter().max_by_key(Meaning::likelihood) {
                Some(Meaning { kind, name, .. }) => found.note(kind, &name, &variable),
                None => strangers.push(variable),
            }
        }
        for variable in strangers {
            found.judge(&variable, kinds);
        }
        found
    }

    fn note(&mut self, kind: &ConfiguredNames, name: &str, variable: &str) {
        let known = kind.matching(name);
        let of_kind = self.0.entry(kind.kind).or_default();
        if known.len() > 1 {
            let names: Vec<_> = known.iter().map(|name| format!("`{name}`")).collect();
            let problem = format!("stands for each of {}, so rename all but one of them", names.join(", "));
            for name in known.into_iter().filter(|name| !kind.by_code.contains(*name)) {
                of_kind.insert(name.clone(), Err(Error::config(variable, &problem)));
            }
            return;
        }
        let name = known.first().map_or(name, |name| name.as_str());
        if kind.by_code.contains(name) {
            return;
        }
        if let Ok(variables) = of_kind.entry(name.to_owned()).or_insert_with(|| Ok(BTreeSet::new())) {
            variables.insert(variable.to_owned());
        }
    }

    /// Judges a variable that ends in no suffix of a kind. The resource that it names cannot be used then.
    fn judge(&mut self, variable: &str, kinds: &[ConfiguredNames]) {
        let of_kind = |kind: &ConfiguredNames| {
            variable.strip_prefix(PREFIX)?.strip_prefix(&in_capitals(kind.kind))?.strip_prefix('_').map(str::to_owned)
        };
        let Some((kind, rest)) =
            kinds.iter().filter_map(|kind| Some((kind, of_kind(kind)?))).max_by_key(|(kind, _)| kind.kind.len())
        else {
            return;
        };
        let made = self.of(kind.kind).map(|(name, _)| name);
        let known = made.chain(&kind.by_toml).chain(&kind.by_code);
        let named =
            known.filter(|name| rest.starts_with(&format!("{}_", in_capitals(name)))).max_by_key(|name| name.len());
        let suffixes = Variables::suffixes(kind.kind, &kind.names, kind.more);
        let suffixes = suffixes.all().collect::<Vec<_>>().join(", ");
        match named.cloned() {
            Some(name) if kind.by_code.contains(&name) => {}
            Some(name) => {
                let problem = format!("ends in nothing that a {} has; there are {suffixes}", kind.kind);
                self.0.entry(kind.kind).or_default().insert(name, Err(Error::config(variable, problem)));
            }
            None => tracing::warn!(
                "{variable} is ignored: it would have to be {PREFIX}{}_NAME_ and one of {suffixes}",
                in_capitals(kind.kind)
            ),
        }
    }
}

/// One way to read a variable's name.
struct Meaning<'a> {
    kind: &'a ConfiguredNames,
    name: String,
    is_known: bool,
    suffix: usize,
}

impl Meaning<'_> {
    /// A resource that is configured is likelier than a new one. Then the longer kind and the longer suffix count.
    fn likelihood(&self) -> (bool, usize, usize) {
        (self.is_known, self.kind.kind.len(), self.suffix)
    }
}

/// All ways to read a variable's name, each with a kind, a name and a suffix of that kind.
fn meanings<'a>(variable: &str, kinds: &'a [ConfiguredNames]) -> Vec<Meaning<'a>> {
    let mut all = Vec::new();
    for kind in kinds {
        let start = format!("{PREFIX}{}_", in_capitals(kind.kind));
        let Some(rest) = variable.strip_prefix(&start) else { continue };
        for suffix in Variables::suffixes(kind.kind, &kind.names, kind.more).all() {
            let name = rest.strip_suffix(suffix).and_then(|rest| rest.strip_suffix('_'));
            let is_name = |name: &&str| {
                !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
            };
            if let Some(name) = name.filter(is_name) {
                let is_known = !kind.matching(name).is_empty();
                all.push(Meaning { kind, name: name.to_lowercase(), is_known, suffix: suffix.len() });
            }
        }
    }
    all
}
