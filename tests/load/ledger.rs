//! Records the results that callers were told for each write, and compares them with the server's data.
//!
//! Each worker has its entries behind a lock of its own. No two of these locks are held at once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;

use super::lock;

/// One row or message: its worker, and its number among that worker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id {
    pub(crate) worker: usize,
    pub(crate) number: u32,
}

impl Id {
    /// Half of the workers keep one lease for life, as a strategy does. The others acquire a lease for each call.
    pub(crate) fn keeps_its_lease(self) -> bool {
        self.worker.is_multiple_of(2)
    }

    pub(crate) fn as_u64(self) -> u64 {
        (self.worker as u64) << 32 | u64::from(self.number)
    }

    pub(crate) fn from_u64(id: u64) -> Self {
        Id { worker: (id >> 32) as usize, number: id as u32 }
    }
}

/// Two bytes for each id keep exact counts in little memory.
#[derive(Clone, Copy, Default)]
struct Entry {
    /// How often the caller was told that the write is done.
    acknowledged: u8,
    /// How often the caller was told that the outcome is unknown.
    unknown: u8,
}

/// Every id that was ever begun, by worker and number.
pub(crate) struct Ledger(Vec<Mutex<Vec<Entry>>>);

impl Ledger {
    pub(crate) fn new(workers: usize) -> Self {
        Ledger((0..workers).map(|_| Mutex::default()).collect())
    }

    pub(crate) fn acknowledged(&self, id: Id) {
        self.change(id, |entry| entry.acknowledged += 1);
    }

    pub(crate) fn unknown(&self, id: Id) {
        self.change(id, |entry| entry.unknown = entry.unknown.saturating_add(1));
    }

    fn change(&self, id: Id, change: impl FnOnce(&mut Entry)) {
        let mut entries = lock(&self.0[id.worker]);
        let index = id.number as usize;
        if entries.len() <= index {
            entries.resize(index + 1, Entry::default());
        }
        change(&mut entries[index]);
    }

    /// Checks the data that was found. Every acknowledged id has to be there at least once, and none more often than
    /// its caller has to expect.
    pub(crate) fn audit(&self, found: &BTreeMap<Id, u32>) -> Audit {
        let mut audit = Audit::default();
        for (worker, entries) in self.0.iter().enumerate() {
            for (number, entry) in lock(entries).iter().enumerate() {
                let id = Id { worker, number: number as u32 };
                let times = found.get(&id).copied().unwrap_or(0);
                audit.acknowledged += usize::from(entry.acknowledged > 0);
                audit.unknown += usize::from(entry.unknown);
                if entry.acknowledged > 0 && times == 0 {
                    audit.lost.push(id);
                }
                if times > u32::from(entry.acknowledged) + u32::from(entry.unknown) {
                    audit.untold.push(id);
                }
            }
        }
        // These ids are there although no caller was told anything about them.
        audit.untold.extend(found.keys().filter(|id| !self.knows(**id)));
        audit
    }

    fn knows(&self, id: Id) -> bool {
        self.0.get(id.worker).is_some_and(|entries| (id.number as usize) < lock(entries).len())
    }
}

/// The result of the comparison.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    pub(crate) acknowledged: usize,
    pub(crate) unknown: usize,
    /// The ids that were acknowledged and are missing.
    pub(crate) lost: Vec<Id>,
    /// The ids that are there more often than the caller was told.
    pub(crate) untold: Vec<Id>,
}

impl Audit {
    pub(crate) fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.untold.is_empty()
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Audit { acknowledged, unknown, lost, untold } = self;
        write!(
            f,
            "{acknowledged} acknowledged, {unknown} of unknown outcome, {} lost, {} there untold",
            lost.len(),
            untold.len()
        )?;
        for (what, ids) in [("lost", lost), ("untold", untold)] {
            if !ids.is_empty() {
                write!(f, "; {what}: {:?}", &ids[..ids.len().min(10)])?;
            }
        }
        Ok(())
    }
}
