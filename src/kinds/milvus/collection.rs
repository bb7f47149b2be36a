//! A collection, and its verbs for tasks.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::base::error::Error;
use crate::kinds::milvus::answer::StoredRows;
use crate::kinds::milvus::errors::refused;
use crate::kinds::milvus::handle::MilvusSession;
use crate::kinds::milvus::query::{MilvusMatch, MilvusQuery};
use crate::kinds::milvus::row::MilvusRow;
use crate::kinds::rest::doubted;

/// A collection of a [`Milvus`](crate::Milvus), whose id is the field `id` and whose vector is the field `vector`. Cheap to
/// clone. It goes on over losses of the server, and answers [`Error::Closed`] once the resource has closed.
#[derive(Clone)]
pub struct MilvusCollection {
    pub(super) session: MilvusSession,
    pub(super) name: Arc<str>,
}

/// The word for a query in errors.
const QUERY: &str = "a query";

impl MilvusCollection {
    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Stores rows, and answers the ids that the server gave them. A query may find them only some hundred milliseconds
    /// later. Without rows nothing is sent.
    ///
    /// # Errors
    /// Those of [`query`](Self::query), but [`Error::OutcomeUnknown`] where the rows may have been stored: if the server is
    /// silent for too long, the connection breaks, closing cuts the request, or the answer does not prove what became of
    /// them.
    ///
    /// # Cancel safety
    /// Cancelling closes the connection. The server may store the rows all the same.
    pub async fn insert(&self, rows: &[MilvusRow<'_>]) -> Result<Vec<i64>, Error> {
        self.store("insert", rows, "inserting rows", false).await
    }

    /// Stores rows with ids of the caller's. A row takes the place of one of the same id. It is otherwise as
    /// [`insert`](Self::insert), and only for collections whose ids the server does not give. Those that the pool creates
    /// are none.
    ///
    /// # Errors
    /// Those of [`query`](Self::query).
    ///
    /// # Cancel safety
    /// Cancelling closes the connection. The server may store the rows all the same.
    pub async fn upsert(&self, rows: &[MilvusRow<'_>]) -> Result<Vec<i64>, Error> {
        self.store("upsert", rows, "storing rows", true).await
    }

    /// The rows whose vectors are nearest to the query's, the nearest first. The server looks for them in an index, which
    /// may miss some.
    ///
    /// # Errors
    /// [`Error::Operation`] for an answer that is an error, with a [`MilvusError`](crate::MilvusError) as its source;
    /// [`Error::Timeout`] if no place is free within the acquire timeout, or the server is silent for too long;
    /// [`Error::Lost`] if it cannot be reached or breaks off; [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Cancelling closes the connection.
    pub async fn query(&self, query: MilvusQuery<'_>) -> Result<Vec<MilvusMatch>, Error> {
        let rows: Option<Vec<Map<String, Value>>> = self.ask("search", query, QUERY, true).await?;
        let rows = rows.ok_or_else(|| self.refused(QUERY, "the answer has no rows, not even none"))?;
        let found: Option<_> = rows.into_iter().map(MilvusMatch::of).collect();
        found.ok_or_else(|| self.refused(QUERY, "the answer has no id or no distance for a row"))
    }

    /// Deletes the rows of these ids. Ids that no row has are passed over. A query may find the rows some hundred
    /// milliseconds longer. Without ids nothing is sent.
    ///
    /// # Errors
    /// Those of [`query`](Self::query).
    ///
    /// # Cancel safety
    /// Cancelling closes the connection. The server may delete the rows all the same.
    pub async fn delete(&self, ids: &[i64]) -> Result<(), Error> {
        #[derive(Serialize)]
        struct Ids<'a> {
            id: &'a [i64],
        }
        if ids.is_empty() {
            return Ok(());
        }
        let _: Option<IgnoredAny> = self.ask("delete", Ids { id: ids }, "deleting rows", true).await?;
        Ok(())
    }

    async fn store(
        &self,
        path: &str,
        rows: &[MilvusRow<'_>],
        action: &str,
        is_idempotent: bool,
    ) -> Result<Vec<i64>, Error> {
        #[derive(Serialize)]
        struct Rows<'a> {
            data: &'a [MilvusRow<'a>],
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let stored: Option<StoredRows> = self.ask(path, Rows { data: rows }, action, is_idempotent).await?;
        let ids = stored.and_then(|stored| stored.ids(rows.len()));
        ids.ok_or_else(|| {
            let error = self.refused(action, "the answer has not an id for each row");
            if is_idempotent { error } else { doubted(self.session.requests.link(), error) }
        })
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        rest: impl Serialize,
        action: &str,
        is_idempotent: bool,
    ) -> Result<Option<T>, Error> {
        self.session.ask(path, &self.name, rest, action, is_idempotent).await
    }

    fn refused(&self, action: &str, problem: &str) -> Error {
        refused(self.session.requests.link(), action, problem)
    }
}

impl fmt::Debug for MilvusCollection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let resource = self.session.requests.link().name();
        f.debug_struct("MilvusCollection").field("resource", resource).field("name", &self.name).finish_non_exhaustive()
    }
}
