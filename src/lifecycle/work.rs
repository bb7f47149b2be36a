//! The kinds of work that can be in flight at a resource.

use std::ops::{Index, IndexMut};

/// Defines the kinds of work. Each has its word as data, and its words in reports: for one, for several, for finished
/// ones, and for those that ended otherwise.
macro_rules! kinds_of_work {
    ($($(#[$about:meta])* $work:ident: $code:literal: $one:literal, $many:literal, $finished:literal, $given_up:literal;)*) => {
        /// Work that closing waits for or ends, as opposed to a handle that is merely held.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
        #[non_exhaustive]
        pub enum Work {
            $($(#[$about])* $work,)*
        }

        impl Work {
            const ALL: [Work; [$($one),*].len()] = [$(Work::$work),*];

            /// The word for it, as in `operation`.
            pub fn code(self) -> &'static str {
                match self {
                    $(Work::$work => $code,)*
                }
            }

            fn words(self) -> [&'static str; 4] {
                match self {
                    $(Work::$work => [$one, $many, $finished, $given_up],)*
                }
            }
        }
    };
}

kinds_of_work! {
    /// A command or query that has been sent and not answered. Finished once it is answered, even with an error of the
    /// server.
    Operation: "operation": "operation", "operations", "answered", "cut off";
    /// A message delivered and not yet settled. Finished once it is acknowledged or rejected.
    Delivery: "delivery": "delivery", "deliveries", "settled", "given back";
    /// A message published and not yet confirmed. Finished once the broker has answered to it.
    Confirm: "confirm": "confirm", "confirms", "received", "not received";
    /// A row that an inserter has and that is not yet inserted. Finished once the server has the row.
    Row: "row": "row", "rows", "inserted", "not known to be inserted";
    /// A transaction that is open on the server. Closing does not wait for it, but aborts it.
    Transaction: "transaction": "transaction", "transactions", "aborted", "given up";
    /// A cursor that is open on the server. Closing does not wait for it, but closes it.
    Cursor: "cursor": "cursor", "cursors", "closed", "given up";
    /// A future or closure given to `run`.
    Main: "main": "main", "mains", "ended", "given up";
    /// Work of the application's own, which a [`Hold`](crate::Hold) stands for.
    Application: "application": "hold", "holds", "released", "broken off by a panic";
    /// A task or thread that the pool's `spawn` or `spawn_thread` began.
    Task: "task": "task", "tasks", "ended", "aborted or panicked";
}

impl Work {
    /// A number of it, for reports.
    pub(crate) fn counted(self, count: usize) -> String {
        let [one, many, ..] = self.words();
        format!("{count} {}", if count == 1 { one } else { many })
    }

    /// The word in reports for finished work.
    pub(crate) fn finished(self) -> &'static str {
        let [.., finished, _] = self.words();
        finished
    }

    /// The word in reports for work that ended otherwise.
    pub(crate) fn given_up(self) -> &'static str {
        let [.., given_up] = self.words();
        given_up
    }
}

/// One `T` for each kind of work.
#[derive(Default)]
pub(crate) struct ByWork<T>([T; Work::ALL.len()]);

impl<T> ByWork<T> {
    /// The counts above zero.
    pub(crate) fn counts(&self, count: impl Fn(&T) -> usize) -> Vec<(Work, usize)> {
        Work::ALL.into_iter().map(|work| (work, count(&self[work]))).filter(|(_, count)| *count > 0).collect()
    }

    /// Adds each count to its place in `sums`.
    pub(crate) fn add_to(&self, sums: &mut ByWork<usize>, count: impl Fn(&T) -> usize) {
        for (sum, mine) in sums.0.iter_mut().zip(&self.0) {
            *sum += count(mine);
        }
    }
}

impl<T> Index<Work> for ByWork<T> {
    type Output = T;
    #[inline]
    fn index(&self, work: Work) -> &T {
        &self.0[work as usize]
    }
}

impl<T> IndexMut<Work> for ByWork<T> {
    #[inline]
    fn index_mut(&mut self, work: Work) -> &mut T {
        &mut self.0[work as usize]
    }
}
