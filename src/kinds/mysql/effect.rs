//! The effect of a statement of MySQL or MariaDB, read from its text before it is sent.

use crate::kinds::sql::{SqlEffect, Words, is_one, uncommented};

/// The effect of a statement.
pub(super) fn effect(statement: &str) -> SqlEffect {
    const READS: [&str; 8] = ["SELECT", "SHOW", "TABLE", "VALUES", "DESCRIBE", "DESC", "EXPLAIN", "HELP"];
    const CHANGES: [&str; 9] = ["DELETE", "IMPORT", "INSERT", "KILL", "LOAD", "PURGE", "REPLACE", "UPDATE", "WITH"];
    // Statements that commit the transaction around them before they begin.
    const COMMITS: [&str; 11] =
        ["ALTER", "ANALYZE", "CACHE", "CHECK", "CREATE", "DROP", "GRANT", "OPTIMIZE", "RENAME", "REVOKE", "TRUNCATE"];
    // A procedure may do all of this.
    const ESCAPES: [&str; 12] = [
        "BEGIN",
        "CALL",
        "COMMIT",
        "EXECUTE",
        "LOCK",
        "PREPARE",
        "RELEASE",
        "ROLLBACK",
        "SAVEPOINT",
        "START",
        "UNLOCK",
        "XA",
    ];
    // Words by which a statement may change the session: variables, temporary tables and locks by name.
    const SESSION: [&str; 5] = ["INTO", "TEMPORARY", "GET_LOCK", "RELEASE_LOCK", "RELEASE_ALL_LOCKS"];
    let text = uncommented(statement, &["-- ", "--\t", "--\n", "#"], behind);
    let words = Words::of(text);
    let first = words.first;
    if words.are_several() || is_one(&ESCAPES, first) {
        return SqlEffect::Escapes;
    }
    let is_into = is_one(&["INSERT", "REPLACE", "LOAD"], first);
    let alters = |word: &str| is_one(&SESSION, word) && !(is_into && word.eq_ignore_ascii_case("INTO"));
    let is_run = |word: &str| is_one(&["ANALYZE"], word);
    // `@a := 1` sets a variable, and `/*! … */` has code for some servers.
    if words.all().any(alters) || text.contains(":=") || text.contains("/*!") || text.contains("/*M!") {
        return SqlEffect::Alters;
    }
    match () {
        () if is_one(&["EXPLAIN", "DESC", "DESCRIBE"], first) && words.all().any(is_run) => SqlEffect::Changes,
        () if is_one(&READS, first) => SqlEffect::Reads,
        () if is_one(&CHANGES, first) => SqlEffect::Changes,
        () if is_one(&COMMITS, first) => SqlEffect::CommitsUnseen,
        () => SqlEffect::Alters,
    }
}

/// The text behind a comment. `None` if the comment is code for some servers.
fn behind(comment: &str) -> Option<&str> {
    if comment.starts_with('!') || comment.starts_with("M!") {
        return None;
    }
    Some(comment.split_once("*/").map_or("", |(_, rest)| rest))
}

#[cfg(test)]
mod tests {
    use super::effect;
    use crate::kinds::sql::SqlEffect::{Alters, Changes, CommitsUnseen, Escapes, Reads};

    #[test]
    fn what_a_statement_does_is_told_by_its_text() {
        for (statement, expected) in [
            ("SELECT 1", Reads),
            ("select(1);", Reads),
            (" \n((SELECT 1))", Reads),
            ("-- INSERT\nSELECT 1", Reads),
            ("# INSERT\nSELECT 1", Reads),
            ("/* INSERT */ VALUES ROW(1)", Reads),
            ("SELECT 1 /* INSERT */", Reads),
            ("EXPLAIN SELECT 1", Reads),
            ("EXPLAIN ANALYZE DELETE FROM bars", Changes),
            ("SELECT @@read_only", Reads),
            ("INSERT INTO bars VALUES (1)", Changes),
            ("REPLACE INTO bars VALUES (1)", Changes),
            ("WITH gone AS (SELECT 1) DELETE FROM bars", Changes),
            ("CREATE TABLE bars (close double)", CommitsUnseen),
            ("truncate bars", CommitsUnseen),
            ("/*!40101 SET NAMES utf8 */", Alters),
            ("SELECT /*!40101 1 */", Alters),
            ("SELECT @a := 1", Alters),
            ("SELECT 1 INTO @a", Alters),
            ("SELECT GET_LOCK('a', 1)", Alters),
            ("CREATE TEMPORARY TABLE t (a int)", Alters),
            ("SET time_zone = 'UTC'", Alters),
            ("USE desk", Alters),
            ("HANDLER bars OPEN", Alters),
            ("", Alters),
            ("'SELECT'", Alters),
            ("/* SELECT", Alters),
            ("--1", Alters),
            ("BEGIN", Escapes),
            ("start transaction", Escapes),
            ("LOCK TABLES bars WRITE", Escapes),
            ("CALL settle()", Escapes),
            ("SELECT 1; DELETE FROM bars", Escapes),
        ] {
            assert_eq!(effect(statement), expected, "{statement:?}");
        }
    }
}
