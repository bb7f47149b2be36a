//! What a statement's text tells before it is sent.

/// What a statement does, as far as its first word tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Effect {
    /// It only reads. A function that it calls may change something all the same.
    Reads,
    Changes,
    /// It makes lasting what its transaction has done.
    Commits,
    /// It changes the session, and so what the next user of the connection would find.
    Alters,
}

impl Effect {
    pub(super) fn of(statement: &str) -> Self {
        const READS: [&str; 5] = ["SELECT", "SHOW", "EXPLAIN", "TABLE", "VALUES"];
        const CHANGES: [&str; 8] = ["INSERT", "UPDATE", "DELETE", "MERGE", "COPY", "CALL", "TRUNCATE", "REFRESH"];
        let first = uncommented(statement).split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
        let is_one = |words: &[&str]| words.iter().any(|word| word.eq_ignore_ascii_case(first));
        match () {
            () if is_one(&READS) => Effect::Reads,
            () if is_one(&["COMMIT", "END"]) => Effect::Commits,
            () if is_one(&CHANGES) || is_one(&["ALTER", "COMMENT", "DROP", "GRANT", "REVOKE", "WITH"]) => {
                Effect::Changes
            }
            () if is_one(&["CREATE"]) && !is_for_the_session(statement) => Effect::Changes,
            () => Effect::Alters,
        }
    }
}

/// Whether it creates something that ends with the session.
fn is_for_the_session(statement: &str) -> bool {
    let mut words = uncommented(statement).split_whitespace().skip(1).take(3);
    words.any(|word| word.eq_ignore_ascii_case("TEMP") || word.eq_ignore_ascii_case("TEMPORARY"))
}

/// Without the white space, comments and parentheses in front.
fn uncommented(mut text: &str) -> &str {
    loop {
        text = text.trim_start_matches(|c: char| c.is_whitespace() || c == '(');
        text = match (text.strip_prefix("--"), text.strip_prefix("/*")) {
            (Some(comment), _) => comment.split_once('\n').map_or("", |(_, rest)| rest),
            (_, Some(comment)) => behind(comment),
            _ => return text,
        };
    }
}

/// What comes behind a comment, which may have others in it.
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
    use super::Effect::{self, Alters, Changes, Commits, Reads};

    #[test]
    fn the_first_word_tells_what_a_statement_does() {
        for (statement, effect) in [
            ("SELECT 1", Reads),
            ("select(1)", Reads),
            (" \n((SELECT 1))", Reads),
            ("-- INSERT\nSELECT 1", Reads),
            ("/* INSERT /* nested */ */ VALUES (1)", Reads),
            ("/* SELECT", Alters),
            ("INSERT INTO bars VALUES (1)", Changes),
            ("WITH gone AS (DELETE FROM bars RETURNING *) SELECT * FROM gone", Changes),
            ("CREATE TABLE bars (close float8)", Changes),
            ("create  temp table t (a int)", Alters),
            ("CREATE LOCAL TEMPORARY TABLE t (a int)", Alters),
            ("SET search_path TO desk", Alters),
            ("BEGIN", Alters),
            ("commit;", Commits),
            ("LISTEN ticks", Alters),
            ("", Alters),
            ("'SELECT'", Alters),
        ] {
            assert_eq!(Effect::of(statement), effect, "{statement:?}");
        }
    }
}
