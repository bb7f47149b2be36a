//! A row of a collection.

use serde::Serialize;
use serde_json::{Map, Value};

/// A row of a collection: a vector, and the fields that are kept with it.
///
/// ```
/// use resource_pool::MilvusRow;
///
/// let vector = [0.1, 0.9];
/// let row = MilvusRow::new(&vector).field("code", "000001");
/// assert_eq!(row.fields["code"], "000001");
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MilvusRow<'a> {
    /// The id. None for a collection whose ids the server gives, as it does in those that the pool creates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<i64>,
    /// The vector.
    pub vector: &'a [f32],
    /// The fields. Queries can ask for them.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

impl<'a> MilvusRow<'a> {
    /// A row of this vector, without an id and other fields.
    pub fn new(vector: &'a [f32]) -> Self {
        MilvusRow { id: None, vector, fields: Map::new() }
    }

    /// Sets the id.
    pub fn id(mut self, id: i64) -> Self {
        self.id = Some(id);
        self
    }

    /// Adds a field.
    pub fn field(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.fields.insert(name.into(), value.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_is_sent_with_its_fields_beside_the_vector() {
        assert_eq!(json!(MilvusRow::new(&[0.5, 1.0])), json!({"vector": [0.5, 1.0]}));
        let row = MilvusRow::new(&[0.5]).id(i64::MAX).field("code", "a");
        assert_eq!(json!(row), json!({"id": i64::MAX, "vector": [0.5], "code": "a"}));
    }
}
