//! A query of a collection, and what it finds.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::kinds::milvus::answer::id_of;

/// A query for the rows whose vectors are nearest to one.
///
/// ```
/// use resource_pool::MilvusQuery;
///
/// let vector = [0.1, 0.9];
/// let query = MilvusQuery::new(&vector, 10).filter(r#"sector == "banks""#).fields(["code"]);
/// assert_eq!(query.count, 10);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MilvusQuery<'a> {
    /// The vector.
    pub vector: &'a [f32],
    /// The most rows that are found, from 1 to 16,384.
    #[serde(rename = "limit")]
    pub count: usize,
    /// The condition that a row's fields must meet, as a boolean expression in the server's own language.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// The fields that the answer has beside the id and the distance.
    #[serde(rename = "outputFields", skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<String>,
}

impl<'a> MilvusQuery<'a> {
    /// A query for so many rows, which answers their ids and distances.
    pub fn new(vector: &'a [f32], count: usize) -> Self {
        MilvusQuery { vector, count, filter: None, fields: Vec::new() }
    }

    /// Sets the condition that the fields must meet, as in `year >= 2012 and sector == "banks"`.
    pub fn filter(mut self, filter: impl Into<String>) -> Self {
        self.filter = Some(filter.into());
        self
    }

    /// Asks for these fields as well. `*` is all.
    pub fn fields(mut self, fields: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.fields = fields.into_iter().map(Into::into).collect();
        self
    }
}

/// A row that a query has found.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct MilvusMatch {
    /// The row's id.
    pub id: i64,
    /// The distance of its vector from the query's, in the collection's [measure](crate::MilvusMetric).
    pub distance: f32,
    /// The fields that the query asked for, as far as the row has them.
    pub fields: Map<String, Value>,
}

impl MilvusMatch {
    /// The row in the form in which it comes. `None` if it has no id or no distance.
    pub(super) fn of(mut fields: Map<String, Value>) -> Option<Self> {
        let id = id_of(&fields.remove("id")?)?;
        // The server computes in single precision.
        let distance = fields.remove("distance")?.as_f64()? as f32;
        Some(MilvusMatch { id, distance, fields })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_match_has_an_id_a_distance_and_the_rest() {
        let of = |row: Value| MilvusMatch::of(row.as_object().unwrap().clone());
        let found = of(json!({"id": "470746479906783251", "distance": 0.5, "code": "a"})).unwrap();
        assert_eq!((found.id, found.distance, &found.fields["code"]), (470_746_479_906_783_251, 0.5, &json!("a")));
        assert_eq!(of(json!({"id": 7, "distance": 0})).unwrap().id, 7);
        assert_eq!(of(json!({"id": "x", "distance": 0})), None);
        assert_eq!(of(json!({"distance": 0})), None);
        assert_eq!(of(json!({"id": 7})), None);
    }

    #[test]
    fn a_query_asks_for_no_more_than_it_says() {
        assert_eq!(json!(MilvusQuery::new(&[1.0], 3)), json!({"vector": [1.0], "limit": 3}));
        let query = MilvusQuery::new(&[1.0], 3).filter("n > 1").fields(["n"]);
        assert_eq!(json!(query), json!({"vector": [1.0], "limit": 3, "filter": "n > 1", "outputFields": ["n"]}));
    }
}
