//! What goes on at a resource.

/// Work that closing waits for or ends, as opposed to a handle that is merely held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Work {
    /// A command or query that has been sent and not answered. Finished once it is answered, be it
    /// with an error of the server's.
    Operation,
    /// A message delivered and not yet settled. Finished once it is acknowledged or rejected.
    Delivery,
    /// A message published and not yet confirmed. Finished once the broker has answered to it.
    Confirm,
    /// A row that an inserter has and that is not yet inserted. Finished once the server has it.
    Row,
    /// A transaction that is open on the server. Not waited for: closing aborts it.
    Transaction,
    /// A cursor that is open on the server. Not waited for: closing closes it.
    Cursor,
    /// A future or closure given to `run`.
    Main,
}

impl Work {
    pub(crate) const ALL: [Work; 7] =
        [Work::Operation, Work::Delivery, Work::Confirm, Work::Row, Work::Transaction, Work::Cursor, Work::Main];

    /// So many of it, for reports.
    pub(crate) fn counted(self, count: usize) -> String {
        let (one, many) = match self {
            Work::Operation => ("operation", "operations"),
            Work::Delivery => ("delivery", "deliveries"),
            Work::Confirm => ("confirm", "confirms"),
            Work::Row => ("row", "rows"),
            Work::Transaction => ("transaction", "transactions"),
            Work::Cursor => ("cursor", "cursors"),
            Work::Main => ("main", "mains"),
        };
        format!("{count} {}", if count == 1 { one } else { many })
    }

    /// What has become of it once it is finished.
    pub(crate) fn finished(self) -> &'static str {
        match self {
            Work::Operation => "answered",
            Work::Delivery => "settled",
            Work::Confirm => "received",
            Work::Row => "inserted",
            Work::Transaction => "aborted",
            Work::Cursor => "closed",
            Work::Main => "ended",
        }
    }

    /// What has become of it if it ended otherwise.
    pub(crate) fn given_up(self) -> &'static str {
        match self {
            Work::Operation => "cut off",
            Work::Delivery => "given back",
            Work::Confirm => "not received",
            Work::Row => "not known to be inserted",
            Work::Transaction | Work::Cursor | Work::Main => "given up",
        }
    }
}
