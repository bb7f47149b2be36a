//! A statement: what can be sent, and what its text tells before it is.
//!
//! The text is read by hand, for no more than its first word and its last two: what a statement does decides what the loss
//! of its answer means.

use ::clickhouse::Client;
use ::clickhouse::query::Query;

/// What can be sent: SQL text, or a [`Query`] with its values bound.
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

/// Whether a statement may change something, which tells what a lost connection means for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Effect {
    Reads,
    Changes,
}

impl Effect {
    /// A statement that only reads does no harm twice. Any other may change something.
    pub(super) fn of(statement: &str) -> Self {
        const READS: [&str; 5] = ["SELECT", "SHOW", "DESCRIBE", "DESC", "EXPLAIN"];
        let first = uncommented(statement).split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
        if READS.iter().any(|read| read.eq_ignore_ascii_case(first)) { Effect::Reads } else { Effect::Changes }
    }
}

/// Without the white space, comments and parentheses in front.
fn uncommented(text: &str) -> &str {
    let text = text.trim_start_matches(|c: char| c.is_whitespace() || c == '(');
    let rest = if text.starts_with("--") || text.starts_with('#') {
        text.split_once('\n')
    } else {
        // Servers differ in what ends one within another: such a text is left as it is, and begins with no word.
        text.strip_prefix("/*").and_then(|rest| rest.split_once("*/")).filter(|(comment, _)| !comment.contains("/*"))
    };
    rest.map_or(text, |(_, rest)| uncommented(rest))
}

/// Whether a statement seems to end with the format of its answer.
pub(super) fn names_format(text: &str) -> bool {
    let words: Vec<_> = text.trim_end_matches([';', ' ', '\n', '\t']).rsplit(char::is_whitespace).take(2).collect();
    matches!(words[..], [_, keyword] if keyword.eq_ignore_ascii_case("FORMAT"))
}
