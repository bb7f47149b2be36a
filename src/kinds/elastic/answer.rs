//! The answers of the verbs. The types have the fields that every compatible server tells. All else is kept as JSON.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The answer to a search. `T` is the type of the documents.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SearchAnswer<T> {
    /// The hits of this answer, as the search sorts them.
    pub hits: Vec<SearchHit<T>>,
    /// How many documents match. `None` if the search asks not to count them. A server counts up to 10,000 unless the
    /// search has `track_total_hits`.
    pub total: Option<u64>,
    /// Whether the search ended at its own `timeout`, so that documents may be missing.
    pub timed_out: bool,
    /// How many shards failed, whose documents are missing.
    pub failed_shards: u64,
    /// All else, such as `aggregations`.
    pub more: Map<String, Value>,
}

impl<T> SearchAnswer<T> {
    /// `true` if every shard has answered in time, and every remote cluster that the search asks.
    pub fn is_whole(&self) -> bool {
        let clusters = self.more.get("_clusters");
        let are = |state: &str| clusters.and_then(|told| told.get(state)?.as_u64()).is_some_and(|count| count > 0);
        !self.timed_out && self.failed_shards == 0 && !["skipped", "partial", "failed"].into_iter().any(are)
    }
}

/// One document that matches a search.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
#[non_exhaustive]
pub struct SearchHit<T> {
    /// The document's id.
    #[serde(rename = "_id")]
    pub id: String,
    /// The index that it is in.
    #[serde(rename = "_index")]
    pub index: String,
    /// How well it matches. `None` if the search sorts by something else.
    #[serde(rename = "_score", default)]
    pub score: Option<f64>,
    /// The document. `None` if the search leaves it out.
    #[serde(rename = "_source", default = "Option::default")]
    pub source: Option<T>,
    /// All else, such as `sort` and `highlight`.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// The server's answer to a document that was put.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct IndexedDocument {
    /// The id, which the server made if there was none.
    #[serde(rename = "_id")]
    pub id: String,
    /// How often this document has been written, from 1 on.
    #[serde(rename = "_version", default)]
    pub version: u64,
    /// `created` or `updated`.
    pub result: String,
}

/// The form of a page of hits.
#[derive(Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
pub(super) struct Page<T> {
    hits: PageHits<T>,
    #[serde(default)]
    timed_out: bool,
    #[serde(rename = "_shards", default)]
    shards: ShardCounts,
    #[serde(rename = "_scroll_id")]
    pub(super) scroll_id: Option<String>,
    #[serde(flatten)]
    more: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
struct PageHits<T> {
    hits: Vec<SearchHit<T>>,
    /// A number, or an object whose `value` is one.
    #[serde(default)]
    total: Value,
}

#[derive(Deserialize, Default)]
pub(super) struct ShardCounts {
    #[serde(default)]
    pub(super) failed: u64,
}

/// The answer to a document that is asked for.
#[derive(Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
pub(super) struct FoundDocument<T> {
    #[serde(rename = "_source")]
    pub(super) source: T,
}

/// The answer to a document that is to be deleted.
#[derive(Deserialize)]
pub(super) struct DeletedDocument {
    pub(super) result: String,
}

/// The answer to a change of the cluster's state.
#[derive(Deserialize)]
pub(super) struct Acknowledgement {
    /// `false` if the nodes have not confirmed it within the server's own limit.
    pub(super) acknowledged: bool,
}

/// The answer to a refresh.
#[derive(Deserialize)]
pub(super) struct RefreshAnswer {
    #[serde(rename = "_shards")]
    pub(super) shards: ShardCounts,
}

impl<T> From<Page<T>> for SearchAnswer<T> {
    fn from(page: Page<T>) -> Self {
        let Page { hits: PageHits { hits, total }, timed_out, shards, more, .. } = page;
        let total = total.as_u64().or_else(|| total.get("value")?.as_u64());
        SearchAnswer { hits, total, timed_out, failed_shards: shards.failed, more }
    }
}
