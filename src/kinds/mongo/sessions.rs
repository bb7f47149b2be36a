//! The sessions of a client on the server. The server is told to end them before the client closes.

use mongodb::Client;
use mongodb::bson::{RawBsonRef, RawDocument, doc};
use mongodb::error::Error as DriverError;

use crate::lifecycle::link::Link;
use crate::lifecycle::work::Work;

/// The sessions to end.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum SessionFilter {
    All,
    /// Only the sessions with a cursor that waits for more data, which may never come.
    Waiting,
}

/// Whether the server has anything open for a client.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum OpenSessions {
    Nothing,
    Something,
}

/// Ends on the server the sessions of the marked client that are at work there, or have a transaction or a cursor open.
pub(super) async fn end_sessions(
    probe: &Client,
    link: &Link,
    session_tag: &str,
    which: SessionFilter,
) -> Result<OpenSessions, DriverError> {
    let admin = probe.database("admin");
    let open = [
        doc! { "$currentOp": { "allUsers": false, "idleSessions": true, "idleCursors": true } },
        doc! { "$match": { "clientMetadata.driver.version": { "$regex": session_tag } } },
        doc! { "$group": {
            "_id": "$lsid.id",
            "waiting": { "$max": { "$cond": [{ "$eq": ["$cursor.awaitData", true] }, 1, 0] } },
            "transactions": { "$max": { "$cond": [{ "$ifNull": ["$transaction.parameters", false] }, 1, 0] } },
            "cursors": { "$addToSet": "$cursor.cursorId" },
        } },
        doc! { "$set": { "cursors": { "$size": "$cursors" } } },
    ];
    let mut open = admin.aggregate(open).await?;
    let mut found = OpenSessions::Nothing;
    let mut sessions = Vec::new();
    let (mut transactions, mut cursors) = (0, 0);
    while open.advance().await? {
        let session = open.current();
        let Ok(Some(RawBsonRef::Binary(id))) = session.get("_id") else { continue };
        found = OpenSessions::Something;
        if which == SessionFilter::All || count(session, "waiting") > 0 {
            sessions.push(doc! { "id": id.to_binary() });
            transactions += count(session, "transactions");
            cursors += count(session, "cursors");
        }
    }
    if !sessions.is_empty() {
        admin.run_command(doc! { "killSessions": sessions }).await?;
        link.ended(Work::Transaction, transactions);
        link.ended(Work::Cursor, cursors);
    }
    Ok(found)
}

fn count(document: &RawDocument, key: &str) -> usize {
    document.get_i32(key).ok().and_then(|count| usize::try_from(count).ok()).unwrap_or_default()
}
