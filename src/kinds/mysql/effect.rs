//! The effect of a statement of MySQL or MariaDB, read from its text before it is sent.

use crate::kinds::sql::{SqlEffect, Words, is_one, uncommented};

/// The effect of a statement.
pub(super) fn effect(statement: &str) -> SqlEffect {
    const READS: [&str; 8] = ["SELECT", "SHOW", "TABLE", "VALUES", "DESCRIBE", "DESC", "EXPLAIN", "HELP"];
    const CHANGES: [&str; 6] = ["DELETE", "INSERT", "LOAD", "REPLACE", "UPDATE", "WITH"];
    // `CREATE` and `DROP` are of these only with `TEMPORARY`.
    const ALTERS: [&str; 6] = ["CREATE", "DO", "DROP", "HANDLER", "SET", "USE"];
    // Statements that commit the transaction around them before they begin, or that no rollback undoes.
    const COMMITS: [&str; 14] = [
        "ALTER", "ANALYZE", "CACHE", "CHECK", "CREATE", "DROP", "GRANT", "IMPORT", "KILL", "OPTIMIZE", "PURGE",
        "RENAME", "REVOKE", "TRUNCATE",
    ];
    // Words by which a statement may change the session: variables, temporary tables and locks by name.
    const SESSION: [&str; 5] = ["INTO", "TEMPORARY", "GET_LOCK", "RELEASE_LOCK", "RELEASE_ALL_LOCKS"];
    // Words by which `SELECT … INTO` writes a file of the server's.
    const FILES: [&str; 2] = ["OUTFILE", "DUMPFILE"];
    // Words by which `SET` commits, changes more than the session, or runs any statement.
    const SETS: [&str; 8] =
        ["AUTOCOMMIT", "DEFAULT", "GLOBAL", "PASSWORD", "PERSIST", "PERSIST_ONLY", "ROLE", "STATEMENT"];
    let text = uncommented(statement, &["-- ", "--\t", "--\n", "#"], behind);
    let words = Words::of(text);
    let first = words.first;
    let has = |known: &[&str]| words.all().any(|word| is_one(known, word));
    let is_into = is_one(&["INSERT", "REPLACE"], first) || is_one(&["LOAD"], first) && !text.contains('@');
    let alters = |word: &str| is_one(&SESSION, word) && !(is_into && word.eq_ignore_ascii_case("INTO"));
    // `@a := 1` sets a variable.
    let alters = words.all().any(alters) || text.contains(":=");
    let is_second = |known: &[&str]| words.all().nth(1).is_some_and(|word| is_one(known, word));
    let commits = match first {
        first if is_one(&["CREATE", "DROP"], first) => !is_second(&["TEMPORARY"]),
        first if is_one(&["LOAD"], first) => is_second(&["INDEX"]),
        first => is_one(&COMMITS, first),
    };
    match () {
        () if words.begin() => SqlEffect::Begins,
        // `/*! … */` has code for some servers.
        () if words.are_several() || text.contains("/*!") || text.contains("/*M!") => SqlEffect::Escapes,
        () if commits && !alters => SqlEffect::CommitsUnseen,
        () if commits || alters && has(&FILES) || is_one(&["SET"], first) && has(&SETS) => SqlEffect::Escapes,
        () if is_one(&ALTERS, first) => SqlEffect::Alters,
        () if is_one(&READS, first) || is_one(&CHANGES, first) => match first {
            _ if alters => SqlEffect::Alters,
            first if is_one(&["EXPLAIN", "DESC", "DESCRIBE"], first) && has(&["ANALYZE"]) => SqlEffect::Changes,
            first if is_one(&READS, first) => SqlEffect::Reads,
            _ => SqlEffect::Changes,
        },
        // Any other statement may commit, as `FLUSH` and `CALL` do.
        () => SqlEffect::Escapes,
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
    use crate::kinds::sql::SqlEffect::{Alters, Begins, Changes, CommitsUnseen, Escapes, Reads};

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
            ("SELECT password, role FROM users", Reads),
            ("INSERT INTO bars VALUES (1)", Changes),
            ("REPLACE INTO bars VALUES (1)", Changes),
            ("WITH gone AS (SELECT 1) DELETE FROM bars", Changes),
            ("LOAD DATA INFILE 'bars.csv' INTO TABLE bars", Changes),
            ("LOAD DATA INFILE 'bars.csv' INTO TABLE bars (@a) SET close = @a", Alters),
            ("LOAD INDEX INTO CACHE bars", CommitsUnseen),
            ("CREATE TABLE bars (close double)", CommitsUnseen),
            ("CREATE TABLE bars (into_ int) AS SELECT 1", CommitsUnseen),
            ("truncate bars", CommitsUnseen),
            ("KILL 7", CommitsUnseen),
            ("CREATE TABLE bars AS SELECT GET_LOCK('a', 1)", Escapes),
            ("ALTER TABLE bars ADD temporary int", Escapes),
            ("/*!40101 SET NAMES utf8 */", Escapes),
            ("SELECT /*!40101 1 */", Escapes),
            ("SELECT @a := 1", Alters),
            ("SELECT 1 INTO @a", Alters),
            ("SELECT 1 INTO OUTFILE 'bars.csv'", Escapes),
            ("SELECT GET_LOCK('a', 1)", Alters),
            ("CREATE TEMPORARY TABLE t (a int)", Alters),
            ("DROP TEMPORARY TABLE t", Alters),
            ("SET time_zone = 'UTC'", Alters),
            ("SET @a = 1", Alters),
            ("SET autocommit = 1", Escapes),
            ("SET PASSWORD = 'a'", Escapes),
            ("SET @@global.read_only = 1", Escapes),
            ("USE desk", Alters),
            ("HANDLER bars OPEN", Alters),
            ("FLUSH TABLES", Escapes),
            ("", Escapes),
            ("'SELECT'", Escapes),
            ("/* SELECT", Escapes),
            ("--1", Escapes),
            ("BEGIN", Begins),
            ("start transaction", Begins),
            ("START TRANSACTION READ ONLY", Begins),
            ("START SLAVE", Escapes),
            ("BEGIN NOT ATOMIC SELECT 1", Escapes),
            ("LOCK TABLES bars WRITE", Escapes),
            ("CALL settle()", Escapes),
            ("SELECT 1; DELETE FROM bars", Escapes),
        ] {
            assert_eq!(effect(statement), expected, "{statement:?}");
        }
    }
}
