//! [`Hooks`]: the closures that run once as the pool closes, by name.
//!
//! Locks: the registry holds its own around every call. No closure of a user runs or drops here. Those of gone clients are
//! given back, so that they drop on another thread.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::close::pool::Hook;

/// The hooks of a pool.
#[derive(Default)]
pub(crate) struct Hooks {
    by_name: BTreeMap<Arc<str>, Vec<Adopted>>,
    count: usize,
    /// How many were left when those of gone clients were last removed.
    kept: usize,
    /// Whether closing has taken the last ones, so that nobody would run another.
    over: bool,
}

/// Whether an adopted client still lives.
pub(crate) type Alive = Box<dyn Fn() -> bool + Send>;

/// A hook, and whether its client lives.
type Adopted = (Hook, Alive);

impl Hooks {
    /// Adds a hook. Returns those of gone clients, which must not pile up. They are looked for each time that the number
    /// of hooks has doubled.
    pub(crate) fn add(&mut self, hook: Hook, alive: Alive) -> Vec<Hook> {
        let mut gone = Vec::new();
        if self.count >= 2 * self.kept {
            for same in self.by_name.values_mut() {
                gone.extend(same.extract_if(.., |(_, alive)| !alive()).map(|(hook, _)| hook));
            }
            self.by_name.retain(|_, same| !same.is_empty());
            self.count -= gone.len();
            self.kept = self.count;
        }
        self.count += 1;
        self.by_name.entry(Arc::clone(&hook.name)).or_default().push((hook, alive));
        gone
    }

    /// The phase of the hook with this name, unless its client is gone.
    pub(crate) fn phase(&self, name: &str) -> Option<Phase> {
        let alive = self.by_name.get(name)?.iter().find(|(_, alive)| alive());
        alive.map(|(hook, _)| hook.phase)
    }

    /// Takes all hooks. Those of gone clients come apart. `is_last` says that no more can be added.
    pub(crate) fn take(&mut self, is_last: bool) -> (Vec<Hook>, Vec<Hook>) {
        let Hooks { by_name, .. } = std::mem::take(self);
        let (alive, gone): (Vec<_>, Vec<_>) = by_name.into_values().flatten().partition(|(_, alive)| alive());
        self.over = is_last;
        let hooks = |adopted: Vec<Adopted>| adopted.into_iter().map(|(hook, _)| hook).collect();
        (hooks(alive), hooks(gone))
    }

    /// Whether closing has taken the last hooks.
    pub(crate) fn are_over(&self) -> bool {
        self.over
    }

    /// Takes hooks again, for a pool that is open again.
    pub(crate) fn begin_again(&mut self) {
        self.over = false;
    }
}
