//! A statement, and the properties that its text shows before it is sent.
//!
//! The text is read by hand, for no more than its first word and its last two, and so is the request that carries it.
//! The effect of a statement decides which error the loss of its answer is.

use ::clickhouse::Client;
use ::clickhouse::query::Query;

/// A statement to send: SQL text, or a [`Query`] with its values bound.
pub trait Statement: sealed::Sealed {
    #[doc(hidden)]
    fn query(self, client: &Client) -> Query;
}

impl Statement for &str {
    fn query(self, client: &Client) -> Query {
        client.query(self)
    }
}

impl Statement for &String {
    fn query(self, client: &Client) -> Query {
        client.query(self)
    }
}

impl Statement for Query {
    fn query(self, _: &Client) -> Query {
        self
    }
}

mod sealed {
    use ::clickhouse::query::Query;

    pub trait Sealed {}
    impl Sealed for &str {}
    impl Sealed for &String {}
    impl Sealed for Query {}
}

/// Whether a statement may change something. That decides which error a lost connection is for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum StatementEffect {
    Reads,
    Changes,
}

impl StatementEffect {
    /// The effect of a statement. A statement that only reads does no harm twice. Any other may change something.
    pub(super) fn of(statement: &str) -> Self {
        const READS: [&str; 5] = ["SELECT", "SHOW", "DESCRIBE", "DESC", "EXPLAIN"];
        let first = uncommented(statement).split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
        if READS.iter().any(|read| read.eq_ignore_ascii_case(first)) {
            StatementEffect::Reads
        } else {
            StatementEffect::Changes
        }
    }
}

/// The effect of a request's statement, and whether the query has a name already. The driver puts an `INSERT` into the
/// URL. It puts any other statement into the body, or into the first field of a form where there are parameters.
pub(super) fn looked_at(request: &[u8]) -> (StatementEffect, bool) {
    let text = String::from_utf8_lossy(request);
    let line = text.lines().next().unwrap_or_default();
    let has = |parameter: &str| line.split(['?', '&']).any(|pair| pair.starts_with(parameter));
    let is_named = has("query_id=");
    let Some((_, body)) = text.split_once("\r\n\r\n").filter(|_| !has("query=")) else {
        return (StatementEffect::Changes, is_named);
    };
    let field = body.starts_with("--").then(|| body.split_once("name=\"query\"\r\n\r\n")).flatten();
    let effect = if line.starts_with("GET ") {
        StatementEffect::Reads
    } else {
        StatementEffect::of(field.map_or(body, |(_, field)| field))
    };
    (effect, is_named)
}

/// The text without the white space, comments and parentheses in front.
fn uncommented(mut text: &str) -> &str {
    loop {
        text = text.trim_start_matches(|c: char| c.is_whitespace() || c == '(');
        let comment = if text.starts_with("--") || text.starts_with('#') {
            text.split_once('\n')
        } else {
            // Servers differ in where a comment within a comment ends. Such a text is left as it is, and begins with no
            // word.
            text.strip_prefix("/*")
                .and_then(|rest| rest.split_once("*/"))
                .filter(|(comment, _)| !comment.contains("/*"))
        };
        match comment {
            Some((_, rest)) => text = rest,
            None => return text,
        }
    }
}

/// Whether a statement seems to end with the format of its answer.
pub(super) fn names_format(text: &str) -> bool {
    let words: Vec<_> = text.trim_end_matches([';', ' ', '\n', '\t']).rsplit(char::is_whitespace).take(2).collect();
    matches!(words[..], [_, keyword] if keyword.eq_ignore_ascii_case("FORMAT"))
}

#[cfg(test)]
mod tests {
    use super::{StatementEffect, looked_at, names_format};

    /// The first word behind all comments reads.
    #[test]
    fn what_only_reads_is_found_behind_comments() {
        let reads = [
            "SELECT 1",
            "select(1)",
            "  \n\t((SELECT 1))",
            "SHOW TABLES",
            "DESC TABLE days",
            "Describe TABLE days",
            "EXPLAIN SELECT 1",
            "-- one\nSELECT 1",
            "--\r\nSELECT 1",
            "# one\n#two\nSELECT 1",
            "/**/SELECT 1",
            "/* over\ntwo lines */ -- and\n(/* INSERT */ SELECT 1)",
            "-- /*\nSELECT 1",
            "/* -- */ SELECT 1",
            "/* # */ SELECT 1",
            "SELECT '/*', '--', '#'",
            "SELECT 1 -- INSERT",
            "SELECT 1 /* unterminated",
        ];
        for statement in reads {
            assert_eq!(StatementEffect::of(statement), StatementEffect::Reads, "{statement:?}");
        }
    }

    #[test]
    fn what_is_not_known_to_read_may_change_something() {
        let changes = [
            "",
            " ",
            "INSERT INTO days SELECT 1",
            "DROP TABLE days",
            "WITH 1 AS one SELECT one",
            "SELECTED",
            "'SELECT'",
            "'-- '\nSELECT 1",
            "\"/*\" SELECT */ 1",
            "-- SELECT 1",
            "# SELECT 1",
            "--",
            "#",
            "- - one\nSELECT 1",
            "/ * one */ SELECT 1",
            "/* SELECT 1",
            "/*/ SELECT 1",
            "/* SELECT */ INSERT INTO days SELECT 1",
            "-- SELECT\nDROP TABLE days",
            // Where comments nest, the first one is still open before the last word. Elsewhere it has ended.
            "/* /* */ SELECT 1",
            "/* /* */ */ SELECT 1",
        ];
        for statement in changes {
            assert_eq!(StatementEffect::of(statement), StatementEffect::Changes, "{statement:?}");
        }
    }

    #[test]
    fn a_request_is_looked_at() {
        let at = |line: &str, body: &str| looked_at(format!("{line} HTTP/1.1\r\nhost: x\r\n\r\n{body}").as_bytes());
        assert_eq!(at("POST /?database=a", "SELECT 1"), (StatementEffect::Reads, false));
        assert_eq!(at("POST /?database=a&query_id=b", "SELECT 1"), (StatementEffect::Reads, true));
        assert_eq!(at("POST /?query_id=b", "DROP TABLE days"), (StatementEffect::Changes, true));
        assert_eq!(at("POST /?my_query_id=b", "-- one\nSELECT 1"), (StatementEffect::Reads, false));
        assert_eq!(at("GET /ping", ""), (StatementEffect::Reads, false));
        assert_eq!(at("POST /?query=INSERT+INTO+days&database=a", "SELECT 1"), (StatementEffect::Changes, false));
        let form = |sql: &str| {
            let field = "content-disposition: form-data; name=\"query\"";
            at("POST /?param_a=1", &format!("--b\r\n{field}\r\n\r\n{sql}\r\n--b--\r\n"))
        };
        assert_eq!(form("SELECT {a:UInt8}"), (StatementEffect::Reads, false));
        assert_eq!(form("INSERT INTO days SELECT {a:UInt8}"), (StatementEffect::Changes, false));
        for cut in ["", "POST /?database=a HTTP/1.1\r\n", "POST /? HTTP/1.1\r\n\r\n", "\u{fffd}\r\n\r\n"] {
            assert_eq!(looked_at(cut.as_bytes()), (StatementEffect::Changes, false), "{cut:?}");
        }
    }

    #[test]
    fn any_number_of_comments_is_read() {
        let comments = "--\n/**/#\n".repeat(200_000);
        assert_eq!(StatementEffect::of(&format!("{comments}SELECT 1")), StatementEffect::Reads);
        assert_eq!(StatementEffect::of(&comments), StatementEffect::Changes);
    }

    #[test]
    fn a_format_is_found_at_the_end_alone() {
        for statement in ["SELECT 1 FORMAT JSON", "SELECT 1\nformat\tTSV ;\n", "FORMAT JSON"] {
            assert!(names_format(statement), "{statement:?}");
        }
        for statement in
            ["", ";", "FORMAT", "SELECT 1", "SELECT format FROM formats", "INSERT INTO days FORMAT CSV 1,2"]
        {
            assert!(!names_format(statement), "{statement:?}");
        }
    }
}
