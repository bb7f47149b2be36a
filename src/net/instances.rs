//! The further resources that the environment names: `RESOURCE_POOL_<KIND>_<NAME>_<SUFFIX>`.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::environment::Environment;
use crate::base::error::Error;
use crate::net::parts::{Field, Names};
use crate::net::variables::{PREFIX, Variables, in_capitals};

/// The variables of the pool as a whole and of its tests, which begin like those of further resources.
const OTHERS: [&str; 6] = [
    "RESOURCE_POOL_CONFIG",
    "RESOURCE_POOL_ACQUIRE_TIMEOUT_MS",
    "RESOURCE_POOL_CLOSE_DELAY_MS",
    "RESOURCE_POOL_CLOSE_DEADLINE_MS",
    "RESOURCE_POOL_WORKER_THREADS",
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

    /// Whether TOML has a name with which this one begins, so that the rest may be a suffix with a mistake in it.
    fn is_longer_than_known(&self, name: &str) -> bool {
        self.by_toml.iter().any(|known| in_capitals(name).starts_with(&format!("{}_", in_capitals(known))))
    }
}

/// The further resources of all kinds that the environment names. Each has the variables that are meant for it, or the
/// error that makes it unusable.
#[derive(Debug, Default)]
pub(crate) struct Instances {
    by_kind: BTreeMap<&'static str, BTreeMap<String, MeantVariables>>,
    /// The variables that begin with no kind.
    of_no_kind: Vec<String>,
}

/// The variables of one resource, or the error that makes it unusable.
pub(crate) type MeantVariables = Result<BTreeSet<String>, Error>;

impl Instances {
    /// Those of this kind.
    pub(crate) fn of(&self, kind: &str) -> impl Iterator<Item = (&String, &MeantVariables)> {
        self.by_kind.get(kind).into_iter().flatten()
    }

    /// Finds the resources that the environment names. A resource that code sets is left out, because code overrides
    /// the environment.
    pub(crate) fn find(environment: &Environment, kinds: &[ConfiguredNames]) -> Self {
        let mut found = Instances::default();
        let mut strangers = Vec::new();
        let all = environment.beginning_with(PREFIX);
        for variable in all.iter().filter(|variable| !is_service_link(variable, &all, environment)).cloned() {
            let is_other = |other: &&str| variable == *other || other.ends_with('_') && variable.starts_with(other);
            let is_own =
                |kind: &ConfiguredNames| Variables::of_kind(&kind.names, kind.more).all().any(|own| own == variable);
            if OTHERS.iter().any(is_other) || kinds.iter().any(is_own) {
                continue;
            }
            match meanings(&variable, kinds).into_iter().max_by_key(Meaning::likelihood) {
                Some(Meaning { kind, name, is_known: false, .. }) if kind.is_longer_than_known(&name) => {
                    strangers.push(variable);
                }
                Some(Meaning { kind, name, .. }) => found.note(kind, &name, &variable),
                None => strangers.push(variable),
            }
        }
        for variable in strangers {
            found.judge(&variable, kinds);
        }
        found
    }

    /// Warns of the variables that begin with no kind. A pool ignores them, and each may have a kind with a mistake in it.
    pub(crate) fn warn_of_no_kind(&self) {
        for variable in &self.of_no_kind {
            tracing::warn!(
                "{variable} is ignored: there is no such variable of the pool, and no such kind of resource"
            );
        }
    }

    fn note(&mut self, kind: &ConfiguredNames, name: &str, variable: &str) {
        let known = kind.matching(name);
        let of_kind = self.by_kind.entry(kind.kind).or_default();
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
            self.of_no_kind.push(variable.to_owned());
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
                let ending = &rest[name.len() + 1..];
                let problem = format!("ends in {ending}, and a {} has no such suffix; there are {suffixes}", kind.kind);
                self.by_kind.entry(kind.kind).or_default().insert(name, Err(Error::config(variable, problem)));
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

/// Whether Kubernetes has set this variable for a Service: `X_SERVICE_HOST`, `X_SERVICE_PORT`, `X_PORT` and
/// `X_PORT_6379_TCP` are such variables. A resource whose own name ends in `_service` has no port of the latter two
/// forms.
fn is_service_link(variable: &str, all: &[String], environment: &Environment) -> bool {
    let is_address = |rest: &str| {
        let Some(rest) = rest.strip_prefix('_') else { return false };
        let protocol = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        protocol.len() < rest.len() && ["_TCP", "_UDP", "_SCTP"].iter().any(|known| protocol.starts_with(known))
    };
    let is_set_to_address = |name: &str| matches!(environment.get(name), Ok(Some(value)) if value.contains("://"));
    let is_service = |service: &str| {
        let port = format!("{service}_PORT");
        let has_address = |name: &String| name.strip_prefix(&port).is_some_and(is_address);
        all.contains(&format!("{service}_SERVICE_HOST")) && (is_set_to_address(&port) || all.iter().any(has_address))
    };
    let is_link = |end: &str, fits: &dyn Fn(&str) -> bool| {
        variable.rmatch_indices(end).any(|(at, _)| fits(&variable[at + end.len()..]) && is_service(&variable[..at]))
    };
    is_link("_SERVICE_HOST", &str::is_empty)
        || is_link("_SERVICE_PORT", &|rest| rest.is_empty() || rest.starts_with('_'))
        || is_link("_PORT", &|rest| is_address(rest) || rest.is_empty() && is_set_to_address(variable))
}
