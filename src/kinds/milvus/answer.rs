//! The form of requests and answers: every answer says by a code of its own whether it is an error, whatever its status.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The code of an answer that is no error.
pub(super) const DONE: i32 = 200;

/// A request's body: the collection, and what else the request says.
#[derive(Serialize)]
pub(super) struct MilvusBody<'a, T> {
    #[serde(rename = "dbName", skip_serializing_if = "str::is_empty")]
    pub(super) database: &'a str,
    #[serde(rename = "collectionName")]
    pub(super) collection: &'a str,
    #[serde(flatten)]
    pub(super) rest: T,
}

/// The rest of a request that names the collection alone.
#[derive(Serialize)]
pub(super) struct NoMore {}

/// An answer.
#[derive(Deserialize)]
pub(super) struct MilvusAnswer<T> {
    pub(super) code: i32,
    #[serde(default)]
    pub(super) message: String,
    /// None if the answer is an error.
    #[serde(default = "none")]
    pub(super) data: Option<T>,
}

/// Spares `T` a default.
fn none<T>() -> Option<T> {
    None
}

/// The ids of rows that the server has taken.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StoredRows {
    #[serde(alias = "upsertIds", default)]
    insert_ids: Vec<Value>,
}

impl StoredRows {
    /// The ids of so many rows. `None` if the answer has another number of them, or one that is no whole number.
    pub(super) fn ids(&self, rows: usize) -> Option<Vec<i64>> {
        let ids: Option<Vec<i64>> = self.insert_ids.iter().map(id_of).collect();
        ids.filter(|ids| ids.len() == rows)
    }
}

/// An id, which comes as a number or, so that no reader rounds it, as a text.
pub(super) fn id_of(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

/// The code at the beginning of an answer, which may be cut short. The server writes the keys in their order, so that the
/// code is the first.
pub(super) fn code_of(beginning: &[u8]) -> Option<i32> {
    let digits = beginning.strip_prefix(b"{\"code\":")?;
    let end = digits.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
    std::str::from_utf8(digits.get(..end)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_code_is_read_from_an_answer_that_is_cut_short() {
        assert_eq!(code_of(br#"{"code":200,"data":["ba"#), Some(200));
        assert_eq!(code_of(br#"{"code":1800"#), Some(1800));
        assert_eq!(code_of(b"<html>"), None);
        assert_eq!(code_of(br#"{"code":"#), None);
    }

    #[test]
    fn each_stored_row_has_an_id() {
        let ids = |answer, rows| serde_json::from_value::<StoredRows>(answer).unwrap().ids(rows);
        assert_eq!(ids(json!({"insertCount": 2, "insertIds": ["7", 8]}), 2), Some(vec![7, 8]));
        assert_eq!(ids(json!({"upsertIds": [7]}), 1), Some(vec![7]));
        assert_eq!(ids(json!({"insertIds": [7]}), 2), None);
        assert_eq!(ids(json!({"insertIds": ["x"]}), 1), None);
        assert_eq!(ids(json!({}), 1), None);
    }

    #[test]
    fn a_body_names_a_database_only_if_there_is_one() {
        let body = |database| json!(MilvusBody { database, collection: "bars", rest: NoMore {} });
        assert_eq!(body(""), json!({"collectionName": "bars"}));
        assert_eq!(body("desk"), json!({"dbName": "desk", "collectionName": "bars"}));
    }
}
