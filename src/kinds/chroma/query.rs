//! A query of a collection, and its answer.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A query for the records whose vectors are nearest to one.
///
/// ```
/// use resource_pool::ChromaQuery;
/// use serde_json::json;
///
/// let vector = [0.1, 0.9];
/// let query = ChromaQuery::new(&vector, 10).filter(json!({"sector": "banks"})).with_documents();
/// assert_eq!(query.count, 10);
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ChromaQuery<'a> {
    /// The vector.
    pub vector: &'a [f32],
    /// The most records that are found.
    pub count: usize,
    /// The condition that a record's metadata must meet, in the server's own words for it (`where`).
    pub filter: Option<Value>,
    /// Whether the answer has the documents.
    pub has_documents: bool,
    /// Whether the answer has the metadata.
    pub has_metadata: bool,
}

impl<'a> ChromaQuery<'a> {
    /// A query for so many records, which answers their ids and distances.
    pub fn new(vector: &'a [f32], count: usize) -> Self {
        ChromaQuery { vector, count, filter: None, has_documents: false, has_metadata: false }
    }

    /// Sets the condition that the metadata must meet, as in `{"sector": "banks"}` or `{"year": {"$gte": 2012}}`.
    pub fn filter(mut self, filter: impl Into<Value>) -> Self {
        self.filter = Some(filter.into());
        self
    }

    /// Asks for the documents as well.
    pub fn with_documents(mut self) -> Self {
        self.has_documents = true;
        self
    }

    /// Asks for the metadata as well.
    pub fn with_metadata(mut self) -> Self {
        self.has_metadata = true;
        self
    }

    /// The body of the request.
    pub(super) fn body(&self) -> QueryBody<'_> {
        let parts = [("distances", true), ("documents", self.has_documents), ("metadatas", self.has_metadata)];
        let include = parts.into_iter().filter_map(|(part, is_asked)| is_asked.then_some(part)).collect();
        QueryBody { query_embeddings: [self.vector], n_results: self.count, include, filter: self.filter.as_ref() }
    }
}

/// A query in the form in which it is sent.
#[derive(Serialize)]
pub(super) struct QueryBody<'a> {
    query_embeddings: [&'a [f32]; 1],
    n_results: usize,
    include: Vec<&'static str>,
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    filter: Option<&'a Value>,
}

/// A record that a query has found.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ChromaMatch {
    /// The record's id.
    pub id: String,
    /// The distance of its vector from the query's, in the collection's [measure](crate::ChromaSpace).
    pub distance: f32,
    /// Its document, if it has one and the query asked for it.
    pub document: Option<String>,
    /// Its metadata. Empty if it has none or the query did not ask for it.
    pub metadata: Map<String, Value>,
}

/// An answer in the form in which it comes: a list of each query's own lists.
#[derive(Deserialize)]
pub(super) struct QueryAnswer {
    ids: Vec<Vec<String>>,
    distances: Lists<f32>,
    documents: Lists<String>,
    metadatas: Lists<Map<String, Value>>,
}

/// The lists of one part, which is there only if it was asked for. A record may lack the part.
type Lists<T> = Option<Vec<Vec<Option<T>>>>;

impl QueryAnswer {
    /// The records that the only query has found. `None` if the answer has no distance for one of them.
    pub(super) fn matches(self) -> Option<Vec<ChromaMatch>> {
        fn first<T>(lists: Option<Vec<Vec<T>>>) -> impl Iterator<Item = T> {
            lists.into_iter().flatten().take(1).flatten()
        }
        let mut distances = first(self.distances);
        let (mut documents, mut metadatas) = (first(self.documents), first(self.metadatas));
        first(Some(self.ids))
            .map(|id| {
                Some(ChromaMatch {
                    id,
                    distance: distances.next()??,
                    document: documents.next().flatten(),
                    metadata: metadatas.next().flatten().unwrap_or_default(),
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn matches(answer: Value) -> Option<Vec<ChromaMatch>> {
        serde_json::from_value::<QueryAnswer>(answer).unwrap().matches()
    }

    #[test]
    fn the_lists_of_an_answer_belong_together() {
        let found = matches(json!({
            "ids": [["a", "b"]], "distances": [[0.5, 1.5]], "documents": [["x", null]], "metadatas": [[null, {"n": 1}]]
        }));
        let [a, b] = &found.unwrap()[..] else { panic!("two") };
        assert_eq!((&*a.id, a.distance, a.document.as_deref(), a.metadata.len()), ("a", 0.5, Some("x"), 0));
        assert_eq!((&*b.id, b.distance, b.document.as_deref(), &b.metadata["n"]), ("b", 1.5, None, &json!(1)));
        assert_eq!(matches(json!({"ids": [[]], "distances": [[]]})), Some(Vec::new()));
        assert_eq!(matches(json!({"ids": [["a"]], "distances": [[]]})), None);
        assert_eq!(matches(json!({"ids": [["a"]], "distances": [[null]]})), None);
        assert_eq!(matches(json!({"ids": [["a"]]})), None);
    }

    #[test]
    fn a_query_asks_for_no_more_than_it_says() {
        let body = json!(ChromaQuery::new(&[1.0, 0.5], 3).body());
        assert_eq!(body, json!({"query_embeddings": [[1.0, 0.5]], "n_results": 3, "include": ["distances"]}));
        let query = ChromaQuery::new(&[1.0], 3).filter(json!({"n": 1})).with_documents().with_metadata();
        let body = json!(query.body());
        assert_eq!(body["include"], json!(["distances", "documents", "metadatas"]));
        assert_eq!(body["where"], json!({"n": 1}));
    }
}
