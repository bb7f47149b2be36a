//! Who depends on whom, for closing dependants first.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, btree_set};
use std::sync::Arc;

use crate::base::error::Error;

/// The edges from dependants to their dependencies. No walk over them recurses or visits a name twice, so that neither
/// a long chain nor many diamonds cost more than they have edges.
#[derive(Debug, Clone, Default)]
pub(crate) struct Edges {
    dependants: Neighbours,
    dependencies: Neighbours,
}

type Neighbours = BTreeMap<Arc<str>, BTreeSet<Arc<str>>>;

impl Edges {
    /// Adds an edge.
    ///
    /// # Errors
    /// [`Error::Order`] for a cycle.
    pub(crate) fn add(&mut self, dependant: &str, dependency: &str) -> Result<(), Error> {
        if dependant == dependency || self.reaches(dependency, dependant) {
            return Err(Error::Order(format!("{dependant:?} on {dependency:?} would close a cycle")));
        }
        let (dependant, dependency) = (Arc::<str>::from(dependant), Arc::<str>::from(dependency));
        self.dependants.entry(Arc::clone(&dependency)).or_default().insert(Arc::clone(&dependant));
        self.dependencies.entry(dependant).or_default().insert(dependency);
        Ok(())
    }

    /// Whether `from` depends, over any number of edges, on `to`. Two walks, one from each end, take turns: a chain that
    /// grows at its end has nothing on one side, so that its next edge costs nothing.
    fn reaches(&self, from: &str, to: &str) -> bool {
        let (mut up, mut down) = (Walk::new(&self.dependants, to), Walk::new(&self.dependencies, from));
        loop {
            match (up.next(), down.next()) {
                (Some(dependant), Some(dependency)) if dependant != from && dependency != to => {}
                (dependant, dependency) => return dependant == Some(from) || dependency == Some(to),
            }
        }
    }

    /// How many levels of dependants close before each. A name that is not here has none.
    pub(crate) fn depths(&self) -> HashMap<&str, usize> {
        let mut depths: HashMap<&str, usize> = HashMap::new();
        let mut pending: HashMap<&str, usize> =
            self.dependants.iter().map(|(name, dependants)| (&**name, dependants.len())).collect();
        let mut done: Vec<&str> = self.dependencies.keys().map(|name| &**name).collect();
        done.retain(|name| !pending.contains_key(name));
        while let Some(dependant) = done.pop() {
            let below = depths.get(dependant).copied().unwrap_or(0) + 1;
            for dependency in self.dependencies.get(dependant).into_iter().flatten() {
                let depth = depths.entry(dependency).or_default();
                *depth = below.max(*depth);
                if let Some(left) = pending.get_mut(&**dependency) {
                    *left -= 1;
                    if *left == 0 {
                        done.push(dependency);
                    }
                }
            }
        }
        depths
    }
}

/// Visits all that can be reached from one name, each once.
struct Walk<'a> {
    neighbours: &'a Neighbours,
    path: Vec<btree_set::Iter<'a, Arc<str>>>,
    seen: HashSet<&'a str>,
}

impl<'a> Walk<'a> {
    fn new(neighbours: &'a Neighbours, start: &str) -> Self {
        Walk { neighbours, path: neighbours.get(start).map(BTreeSet::iter).into_iter().collect(), seen: HashSet::new() }
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            let Some(name) = self.path.last_mut()?.next() else {
                self.path.pop();
                continue;
            };
            if self.seen.insert(name) {
                self.path.extend(self.neighbours.get(name).map(BTreeSet::iter));
                return Some(name);
            }
        }
    }
}
