//! The effect of a statement, and the words by which a kind reads it from the text.

/// The effect of a statement, as far as its text shows it. If the text leaves it open, the most costly effect is
/// assumed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SqlEffect {
    /// The statement only reads. A function that it calls may still change something.
    Reads,
    /// The statement changes data.
    Changes,
    /// The statement makes the changes of its transaction permanent.
    Commits,
    /// The statement first commits the transaction around it, which the driver does not notice.
    CommitsUnseen,
    /// The statement changes the session, which the next user of the connection would notice.
    Alters,
    /// The statement begins a transaction, and does nothing else. It escapes unless the driver knows of the transaction.
    Begins,
    /// The statement may begin or end a transaction unknown to the driver, or is several statements. From then on it is
    /// unknown which changes are undone when the connection ends.
    Escapes,
}

/// The words of a statement.
pub(crate) struct Words<'a> {
    text: &'a str,
    /// The word that the statement begins with. It is empty if the statement begins with another sign.
    pub(crate) first: &'a str,
}

impl<'a> Words<'a> {
    /// The words of a text without the [comments](uncommented) in front.
    pub(crate) fn of(text: &'a str) -> Self {
        Words { text, first: text.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default() }
    }

    /// Whether the text is several statements.
    pub(crate) fn are_several(&self) -> bool {
        self.text.trim_end_matches(|c: char| c == ';' || c.is_whitespace()).contains(';')
    }

    /// Whether the statement begins a transaction, and does nothing else.
    pub(crate) fn begin(&self) -> bool {
        let second = self.all().nth(1).unwrap_or_default();
        !self.are_several()
            && match self.first {
                first if is_one(&["BEGIN"], first) => !is_one(&["NOT"], second),
                first => is_one(&["START"], first) && is_one(&["TRANSACTION"], second),
            }
    }

    /// All words, those in comments and strings too.
    pub(crate) fn all(&self) -> impl Iterator<Item = &'a str> + Clone + use<'a> {
        // By bytes, because the text of an insert may have a thousand rows.
        let words = self.text.as_bytes().split(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_');
        words.filter(|word| !word.is_empty()).map(|ascii| std::str::from_utf8(ascii).unwrap_or_default())
    }
}

/// Whether a word is one of these.
pub(crate) fn is_one(known: &[&str], word: &str) -> bool {
    known.iter().any(|known| known.eq_ignore_ascii_case(word))
}

/// The text without the white space, comments and parentheses in front. A comment that begins with one of `lines` ends
/// with its line. `behind` finds the text behind a comment that has begun with `/*`. `None` stands for text that counts
/// as code.
pub(crate) fn uncommented<'a>(
    mut text: &'a str,
    lines: &[&str],
    behind: impl Fn(&'a str) -> Option<&'a str>,
) -> &'a str {
    loop {
        text = text.trim_start_matches(|c: char| c.is_whitespace() || c == '(');
        let line = lines.iter().find_map(|line| text.strip_prefix(line));
        text = match (line, text.strip_prefix("/*").and_then(&behind)) {
            (Some(comment), _) => comment.split_once('\n').map_or("", |(_, rest)| rest),
            (_, Some(rest)) => rest,
            _ => return text,
        };
    }
}
