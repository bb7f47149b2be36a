//! A record of a collection.

use serde::Serialize;
use serde_json::{Map, Value};

/// A record of a collection: a vector with its id, and what may be kept with it.
///
/// ```
/// use resource_pool::ChromaRecord;
///
/// let vector = [0.1, 0.9];
/// let record = ChromaRecord::new("000001", &vector).document("Ping An Bank").metadata("sector", "banks");
/// assert_eq!(record.id, "000001");
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ChromaRecord<'a> {
    /// The id, which no other record of the collection has.
    pub id: &'a str,
    /// The vector. All vectors of a collection have as many dimensions as the first.
    pub vector: &'a [f32],
    /// The document.
    pub document: Option<&'a str>,
    /// The metadata: texts, numbers and booleans. Queries can ask for them.
    pub metadata: Map<String, Value>,
}

impl<'a> ChromaRecord<'a> {
    /// A record of this id, without document and metadata.
    pub fn new(id: &'a str, vector: &'a [f32]) -> Self {
        ChromaRecord { id, vector, document: None, metadata: Map::new() }
    }

    /// Sets the document.
    pub fn document(mut self, document: &'a str) -> Self {
        self.document = Some(document);
        self
    }

    /// Adds a piece of metadata.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }
}

/// Records in the form in which they are sent.
#[derive(Serialize)]
pub(super) struct RecordColumns<'a> {
    ids: Vec<&'a str>,
    embeddings: Vec<&'a [f32]>,
    documents: Vec<Option<&'a str>>,
    metadatas: Vec<Option<&'a Map<String, Value>>>,
}

impl<'a> RecordColumns<'a> {
    pub(super) fn new(records: &'a [ChromaRecord<'a>]) -> Self {
        RecordColumns {
            ids: records.iter().map(|record| record.id).collect(),
            embeddings: records.iter().map(|record| record.vector).collect(),
            documents: records.iter().map(|record| record.document).collect(),
            // The server refuses metadata without anything in it.
            metadatas: records.iter().map(|record| Some(&record.metadata).filter(|told| !told.is_empty())).collect(),
        }
    }
}
