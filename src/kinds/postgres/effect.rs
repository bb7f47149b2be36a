//! The effect of a statement of PostgreSQL, read from its text before it is sent.

use crate::kinds::sql::{SqlEffect, Words, is_one, uncommented};

/// The effect of a statement.
pub(super) fn effect(statement: &str) -> SqlEffect {
    const READS: [&str; 4] = ["SELECT", "SHOW", "TABLE", "VALUES"];
    const CHANGES: [&str; 21] = [
        "ALTER", "ANALYZE", "CALL", "COMMENT", "COPY", "CREATE", "DELETE", "DROP", "EXPLAIN", "GRANT", "INSERT",
        "LOCK", "MERGE", "NOTIFY", "REFRESH", "REINDEX", "REVOKE", "TRUNCATE", "UPDATE", "VACUUM", "WITH",
    ];
    const ESCAPES: [&str; 9] =
        ["ABORT", "BEGIN", "COMMIT", "END", "PREPARE", "RELEASE", "ROLLBACK", "SAVEPOINT", "START"];
    // Words by which a statement may change the session: temporary tables, the schema of those, and settings.
    const SESSION: [&str; 5] = ["INTO", "TEMP", "TEMPORARY", "pg_temp", "set_config"];
    let words = Words::of(uncommented(statement, &["--"], |comment| Some(behind(comment))));
    let first = words.first;
    if words.begin() {
        return SqlEffect::Begins;
    }
    let is_local = |word: &str| is_one(&["LOCAL", "TRANSACTION"], word);
    if words.are_several() || is_one(&ESCAPES, first) {
        return SqlEffect::Escapes;
    }
    let is_bare = |word: &str| !is_one(&["ANALYZE", "ANALYSE"], word);
    let is_insert = is_one(&["INSERT", "MERGE"], first);
    let alters = |word: &str| {
        let is_lock = word.to_ascii_lowercase().contains("advisory_lock");
        is_lock || is_one(&SESSION, word) && !(is_insert && word.eq_ignore_ascii_case("INTO"))
    };
    match () {
        () if is_one(&["SET"], first) && words.all().nth(1).is_some_and(is_local) => SqlEffect::Changes,
        () if words.all().any(alters) => SqlEffect::Alters,
        () if is_one(&READS, first) || is_one(&["EXPLAIN"], first) && words.all().all(is_bare) => SqlEffect::Reads,
        () if is_one(&CHANGES, first) => SqlEffect::Changes,
        () => SqlEffect::Alters,
    }
}

/// The text behind a comment, which may contain nested comments.
fn behind(mut text: &str) -> &str {
    let mut depth = 1;
    while depth > 0 {
        let (opens, closes) = (text.find("/*"), text.find("*/"));
        let Some(end) = closes else { return "" };
        let (change, at) = match opens {
            Some(begin) if begin < end => (1, begin),
            _ => (-1, end),
        };
        depth += change;
        text = &text[at + 2..];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::effect;
    use crate::kinds::sql::SqlEffect::{Alters, Begins, Changes, Escapes, Reads};

    #[test]
    fn what_a_statement_does_is_told_by_its_text() {
        for (statement, expected) in [
            ("SELECT 1", Reads),
            ("select(1);", Reads),
            (" \n((SELECT 1))", Reads),
            ("-- INSERT\nSELECT 1", Reads),
            ("/* INSERT /* nested */ */ VALUES (1)", Reads),
            ("EXPLAIN SELECT 1", Reads),
            ("EXPLAIN (ANALYZE) DELETE FROM bars", Changes),
            ("INSERT INTO bars VALUES (1)", Changes),
            ("WITH gone AS (DELETE FROM bars RETURNING *) SELECT * FROM gone", Changes),
            ("CREATE TABLE bars (close float8)", Changes),
            ("SET LOCAL lock_timeout TO 1", Changes),
            ("LOCK TABLE bars", Changes),
            ("SELECT pg_advisory_xact_lock(1)", Reads),
            ("SELECT pg_try_advisory_lock(1)", Alters),
            ("SELECT 1 INTO bars", Alters),
            ("SELECT set_config('a.b', 'c', false)", Alters),
            ("INSERT INTO pg_temp.t VALUES (1)", Alters),
            ("create  temp table t (a int)", Alters),
            ("CREATE /* x */ LOCAL TEMPORARY TABLE t (a int)", Alters),
            ("SET search_path TO desk", Alters),
            ("LISTEN ticks", Alters),
            ("DO $$ begin end $$", Alters),
            ("", Alters),
            ("'SELECT'", Alters),
            ("/* SELECT", Alters),
            ("BEGIN", Begins),
            ("START TRANSACTION READ ONLY", Begins),
            ("BEGIN; DELETE FROM bars", Escapes),
            ("commit;", Escapes),
            ("PREPARE TRANSACTION 'a'", Escapes),
            ("SELECT 1; DELETE FROM bars", Escapes),
        ] {
            assert_eq!(effect(statement), expected, "{statement:?}");
        }
    }
}
