//! A collection, and its verbs for tasks.

use std::fmt;
use std::sync::Arc;

use reqwest::Method;
use serde_json::json;

use crate::base::error::Error;
use crate::kinds::chroma::errors::refused;
use crate::kinds::chroma::handle::ChromaSession;
use crate::kinds::chroma::query::{ChromaMatch, ChromaQuery, QueryAnswer};
use crate::kinds::chroma::record::{ChromaRecord, RecordColumns};
use crate::lifecycle::requests::HttpRequest;

/// A collection of a [`Chroma`](crate::Chroma). Cheap to clone. It goes on over losses of the server, and answers
/// [`Error::Closed`] once the resource has closed.
#[derive(Clone)]
pub struct ChromaCollection {
    pub(super) session: ChromaSession,
    /// The id, as a segment of a path.
    pub(super) id: Arc<str>,
    pub(super) name: Arc<str>,
}

/// The word for a query in errors.
const QUERY: &str = "a query";

impl ChromaCollection {
    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The id that the server gave it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Stores records, all of them or none. A record takes the place of one of the same id. Without records nothing is
    /// sent. The server takes 40 MiB at a time, as JSON. It refuses more than that by 413, or by closing the connection,
    /// which is an [`Error::Lost`].
    ///
    /// # Errors
    /// Those of [`query`](Self::query).
    ///
    /// # Cancel safety
    /// Cancelling closes the connection. The server may store the records all the same.
    pub async fn upsert(&self, records: &[ChromaRecord<'_>]) -> Result<(), Error> {
        if records.is_empty() {
            return Ok(());
        }
        let request = self.request("upsert", "storing records").json(&RecordColumns::new(records));
        self.session.done(request).await
    }

    /// The records whose vectors are nearest to the query's, the nearest first. The server looks for them in an index,
    /// which may miss some. [`ef_search`](method@crate::ChromaSpec::ef_search) says how hard it looks.
    ///
    /// # Errors
    /// [`Error::Operation`] for an answer that is an error, with a [`ChromaError`](crate::ChromaError) as its source;
    /// [`Error::Timeout`] if no place is free within the acquire timeout, or the server is silent for too long;
    /// [`Error::Lost`] if it cannot be reached or breaks off; [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Cancelling closes the connection.
    pub async fn query(&self, query: ChromaQuery<'_>) -> Result<Vec<ChromaMatch>, Error> {
        let request = self.request("query", QUERY).json(&query.body());
        let answer: QueryAnswer = self.session.send(request).await?.json().await?;
        let link = self.session.requests.link();
        answer.matches().ok_or_else(|| refused(link, QUERY, "the answer has no distance for a record"))
    }

    /// Deletes the records of these ids. Ids that no record has are passed over. Without ids nothing is sent.
    ///
    /// # Errors
    /// Those of [`query`](Self::query).
    ///
    /// # Cancel safety
    /// Cancelling closes the connection. The server may delete the records all the same.
    pub async fn delete(&self, ids: &[&str]) -> Result<(), Error> {
        if ids.is_empty() {
            return Ok(());
        }
        let request = self.request("delete", "deleting records").json(&json!({"ids": ids}));
        self.session.done(request).await
    }

    /// The number of records.
    ///
    /// # Errors
    /// Those of [`query`](Self::query).
    ///
    /// # Cancel safety
    /// Cancelling closes the connection.
    pub async fn count(&self) -> Result<u64, Error> {
        let request = self.session.request(Method::GET, &self.path("count")).action("counting records");
        self.session.send(request).await?.json().await
    }

    /// A POST to a path below this collection. All that have a verb here do no harm if they are sent twice.
    fn request(&self, path: &str, action: &str) -> HttpRequest {
        self.session.request(Method::POST, &self.path(path)).action(action).idempotent(true)
    }

    fn path(&self, path: &str) -> String {
        format!("collections/{}/{path}", self.id)
    }
}

impl fmt::Debug for ChromaCollection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let resource = self.session.requests.link().name();
        f.debug_struct("ChromaCollection").field("resource", resource).field("name", &self.name).finish_non_exhaustive()
    }
}
