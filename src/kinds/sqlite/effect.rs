//! The effect of a statement of SQLite, read from its text before it is sent.

use crate::kinds::sql::{SqlEffect, Words, is_one, uncommented};

/// The effect of a statement.
pub(super) fn effect(statement: &str) -> SqlEffect {
    const READS: [&str; 3] = ["SELECT", "VALUES", "EXPLAIN"];
    const CHANGES: [&str; 10] =
        ["ALTER", "ANALYZE", "CREATE", "DELETE", "DROP", "INSERT", "REINDEX", "REPLACE", "UPDATE", "VACUUM"];
    // Words of which one is in every `WITH` that changes something.
    const WRITES: [&str; 4] = ["DELETE", "INSERT", "REPLACE", "UPDATE"];
    const ESCAPES: [&str; 6] = ["BEGIN", "COMMIT", "END", "RELEASE", "ROLLBACK", "SAVEPOINT"];
    // Words of temporary tables, which the session has for itself.
    const SESSION: [&str; 4] = ["TEMP", "TEMPORARY", "sqlite_temp_schema", "sqlite_temp_master"];
    // Values of the file that a pragma only reads.
    const LOOKS: [&str; 6] =
        ["table_info", "table_list", "index_list", "index_info", "foreign_key_list", "database_list"];
    let words = Words::of(uncommented(statement, &["--"], behind));
    let first = words.first;
    match () {
        () if words.begin() => SqlEffect::Begins,
        () if words.are_several() || is_one(&ESCAPES, first) => SqlEffect::Escapes,
        () if words.all().any(|word| is_one(&SESSION, word)) => SqlEffect::Alters,
        () if is_one(&READS, first) => SqlEffect::Reads,
        () if is_one(&["PRAGMA"], first) && words.all().nth(1).is_some_and(|word| is_one(&LOOKS, word)) => {
            SqlEffect::Reads
        }
        () if is_one(&["WITH"], first) && !words.all().any(|word| is_one(&WRITES, word)) => SqlEffect::Reads,
        () if is_one(&CHANGES, first) || is_one(&["WITH"], first) => SqlEffect::Changes,
        () => SqlEffect::Alters,
    }
}

/// The text behind a comment.
fn behind(comment: &str) -> Option<&str> {
    Some(comment.split_once("*/").map_or("", |(_, rest)| rest))
}

#[cfg(test)]
mod tests {
    use super::effect;
    use crate::kinds::sql::SqlEffect::{Alters, Begins, Changes, Escapes, Reads};

    #[test]
    fn what_a_statement_does_is_told_by_its_text() {
        for (statement, expected) in [
            ("SELECT 1", Reads),
            ("-- INSERT\n/* x */ select(1);", Reads),
            ("EXPLAIN QUERY PLAN DELETE FROM bars", Reads),
            ("PRAGMA table_info(bars)", Reads),
            ("PRAGMA foreign_keys = OFF", Alters),
            ("INSERT INTO bars VALUES (1)", Changes),
            ("WITH a AS (SELECT 1) DELETE FROM bars", Changes),
            ("WITH a AS (SELECT 1) SELECT * FROM a", Reads),
            ("CREATE TABLE bars (close real)", Changes),
            ("VACUUM", Changes),
            ("CREATE TEMP TABLE t (a int)", Alters),
            ("INSERT INTO temp.t VALUES (1)", Alters),
            ("ATTACH 'other.sqlite' AS other", Alters),
            ("", Alters),
            ("/* SELECT", Alters),
            ("BEGIN IMMEDIATE", Begins),
            ("BEGIN; DELETE FROM bars", Escapes),
            ("savepoint a", Escapes),
            ("SELECT 1; DELETE FROM bars", Escapes),
        ] {
            assert_eq!(effect(statement), expected, "{statement:?}");
        }
    }
}
