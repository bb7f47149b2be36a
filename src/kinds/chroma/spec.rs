//! A collection that is to be created.

use serde::Serialize;
use serde_json::{Map, Value, json};

/// A collection that is to be created: its name, its measure of distance, and the parameters of its index. What is left
/// out is as the server has it by default.
///
/// ```
/// use resource_pool::{ChromaSpace, ChromaSpec};
///
/// let spec = ChromaSpec::new("bars").space(ChromaSpace::Cosine).ef_search(200).metadata("desk", "quant");
/// assert_eq!(spec.name, "bars");
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ChromaSpec {
    /// The name: 3 to 512 characters, which are letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// The measure of distance. The server's default is [`ChromaSpace::L2`].
    pub space: Option<ChromaSpace>,
    /// How many candidates the index looks at as it takes a vector in. The server's default is 100.
    pub ef_construction: Option<u32>,
    /// How many candidates the index looks at for a query. More of them find more of the true neighbours, and take
    /// longer. The server's default is 100.
    pub ef_search: Option<u32>,
    /// The most neighbours of a vector in the index. The server's default is 16.
    pub max_neighbors: Option<u32>,
    /// Texts, numbers and booleans that are kept with the collection.
    pub metadata: Map<String, Value>,
}

/// The measure of distance of a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ChromaSpace {
    /// The square of the Euclidean distance.
    L2,
    /// One less the cosine of the angle between the vectors.
    Cosine,
    /// One less the inner product of the vectors.
    #[serde(rename = "ip")]
    InnerProduct,
}

impl ChromaSpec {
    /// A collection of this name, as the server has it by default.
    pub fn new(name: impl Into<String>) -> Self {
        ChromaSpec {
            name: name.into(),
            space: None,
            ef_construction: None,
            ef_search: None,
            max_neighbors: None,
            metadata: Map::new(),
        }
    }

    /// Sets the measure of distance.
    pub fn space(mut self, space: ChromaSpace) -> Self {
        self.space = Some(space);
        self
    }

    /// Sets how many candidates the index looks at as it takes a vector in.
    pub fn ef_construction(mut self, candidates: u32) -> Self {
        self.ef_construction = Some(candidates);
        self
    }

    /// Sets how many candidates the index looks at for a query.
    pub fn ef_search(mut self, candidates: u32) -> Self {
        self.ef_search = Some(candidates);
        self
    }

    /// Sets the most neighbours of a vector in the index.
    pub fn max_neighbors(mut self, neighbors: u32) -> Self {
        self.max_neighbors = Some(neighbors);
        self
    }

    /// Adds a piece of metadata.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// The body of the request that creates it.
    pub(super) fn body(&self, get_or_create: bool) -> Value {
        let said = [
            ("space", self.space.map(|space| json!(space))),
            ("ef_construction", self.ef_construction.map(Value::from)),
            ("ef_search", self.ef_search.map(Value::from)),
            ("max_neighbors", self.max_neighbors.map(Value::from)),
        ];
        let hnsw: Map<_, _> =
            said.into_iter().filter_map(|(option, value)| Some((option.to_owned(), value?))).collect();
        // The server refuses metadata without anything in it.
        let metadata = Some(&self.metadata).filter(|metadata| !metadata.is_empty());
        json!({
            "name": self.name,
            "get_or_create": get_or_create,
            "metadata": metadata,
            "configuration": {"hnsw": hnsw},
        })
    }
}

impl From<&str> for ChromaSpec {
    fn from(name: &str) -> Self {
        ChromaSpec::new(name)
    }
}

impl From<String> for ChromaSpec {
    fn from(name: String) -> Self {
        ChromaSpec::new(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_is_sent() {
        let plain = ChromaSpec::new("bars").body(false);
        assert_eq!(
            plain,
            json!({"name": "bars", "get_or_create": false, "metadata": null, "configuration": {"hnsw": {}}})
        );
        let spec = ChromaSpec::from("bars").space(ChromaSpace::InnerProduct).ef_search(7).metadata("n", 1);
        assert_eq!(
            spec.body(true),
            json!({
                "name": "bars", "get_or_create": true, "metadata": {"n": 1},
                "configuration": {"hnsw": {"space": "ip", "ef_search": 7}}
            })
        );
    }
}
