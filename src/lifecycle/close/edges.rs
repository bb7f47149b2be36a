//! The dependencies between resources, so that dependants close first.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, btree_set};
use std::sync::Arc;

use crate::base::error::Error;

/// The edges from dependants to their dependencies. No walk over them recurses or visits a name twice. A long chain or
/// many diamonds therefore cost no more than they have edges.
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

    /// Forgets the edges of a name, because it is free for another resource.
    pub(crate) fn forget(&mut self, name: &str) {
        for neighbours in [&mut self.dependants, &mut self.dependencies] {
            neighbours.remove(name);
            neighbours.retain(|_, others| {
                others.remove(name);
                !others.is_empty()
            });
        }
    }

    /// Whether `from` depends, over any number of edges, on `to`. Two walks take turns, one from each end. A chain that
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

    /// How many levels of dependants close before each name. A name without an entry has none.
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

/// Visits all names that can be reached from one, each once.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn edges(pairs: &[(&str, &str)]) -> Edges {
        let mut edges = Edges::default();
        for (dependant, dependency) in pairs {
            edges.add(dependant, dependency).unwrap();
        }
        edges
    }

    fn depths(edges: &Edges) -> BTreeMap<&str, usize> {
        edges.depths().into_iter().collect()
    }

    /// The order in which the edges came makes no difference.
    #[test]
    fn a_dependency_is_below_the_deepest_of_its_dependants() {
        let pairs = [("app", "cache"), ("cache", "store"), ("app", "store"), ("store", "disk"), ("log", "disk")];
        let expected = BTreeMap::from([("cache", 1), ("store", 2), ("disk", 3)]);
        for turn in 0..pairs.len() {
            let mut turned = pairs;
            turned.rotate_left(turn);
            assert_eq!(depths(&edges(&turned)), expected);
            turned.reverse();
            assert_eq!(depths(&edges(&turned)), expected);
        }
        assert_eq!(depths(&edges(&[])), BTreeMap::new());
        assert_eq!(depths(&edges(&[("app", "store"), ("app", "store")])), BTreeMap::from([("store", 1)]));
    }

    #[test]
    fn an_edge_that_closes_a_cycle_is_refused_and_changes_nothing() {
        let mut edges = edges(&[("a", "b"), ("b", "c"), ("x", "b"), ("c", "d")]);
        let before = edges.clone();
        for (dependant, dependency) in [("a", "a"), ("b", "a"), ("c", "a"), ("d", "a"), ("d", "x"), ("c", "b")] {
            let error = edges.add(dependant, dependency).unwrap_err();
            assert!(matches!(&error, Error::Order(why) if why.contains("cycle")), "{error}");
        }
        assert_eq!(format!("{edges:?}"), format!("{before:?}"));
        for (dependant, dependency) in [("a", "d"), ("x", "a"), ("d", "e")] {
            edges.add(dependant, dependency).unwrap();
        }
        assert_eq!(depths(&edges), BTreeMap::from([("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 5)]));
    }

    #[test]
    fn a_forgotten_name_has_no_edges_and_the_others_keep_theirs() {
        let mut edges = edges(&[("a", "b"), ("b", "c"), ("a", "d"), ("x", "c")]);
        edges.forget("b");
        assert_eq!(depths(&edges), BTreeMap::from([("c", 1), ("d", 1)]));
        edges.add("c", "b").unwrap();
        edges.add("b", "a").unwrap();
        assert!(edges.add("d", "x").is_err(), "x depends on d by c, b and a");
    }

    /// One of the two walks is over before the other one finds anything.
    #[test]
    fn a_cycle_is_found_from_either_end() {
        let mut many_below = edges(&[("top", "a"), ("top", "b"), ("top", "c"), ("top", "z")]);
        assert!(many_below.add("z", "top").is_err());
        let mut many_above = edges(&[("a", "disk"), ("b", "disk"), ("c", "disk"), ("z", "disk")]);
        assert!(many_above.add("disk", "z").is_err());
    }

    #[test]
    fn a_walk_visits_each_name_once() {
        let edges = edges(&[("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("d", "e")]);
        let below: Vec<_> = Walk::new(&edges.dependencies, "a").collect();
        assert_eq!(below, ["b", "d", "e", "c"]);
        assert_eq!(Walk::new(&edges.dependants, "e").count(), 4);
        assert_eq!(Walk::new(&edges.dependants, "a").count(), 0);
        assert_eq!(Walk::new(&edges.dependants, "nobody").count(), 0);
    }
}
