//! The texts of errors: on one line, each cause once.

use std::error::Error as StdError;
use std::fmt::{self, Write as _};
use std::io;

use crate::base::error::{BoxError, Source};

/// The error and its causes, also those that shared errors and `io::Error` do not name as such.
pub fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| cause(*error))
}

fn cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    if let Some(shared) = error.downcast_ref::<Source>() {
        return Some(&**shared);
    }
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

/// A driver's error in words of the kind's. These stand for the texts of the error and of all its causes.
///
/// ```
/// use resource_pool::{Failure, adapter::Worded};
///
/// let driver = std::io::Error::other("code 516");
/// let failure = Failure::permanent(Worded::new("wrong user or password".to_owned(), driver));
/// assert_eq!(failure.to_string(), "wrong user or password");
/// ```
#[derive(Debug)]
pub struct Worded {
    text: String,
    source: BoxError,
}

impl Worded {
    /// Gives this error these words. The error stays the source.
    pub fn new(text: String, source: impl Into<BoxError>) -> Self {
        Worded { text, source: source.into() }
    }
}

impl fmt::Display for Worded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Worded {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.source)
    }
}

/// An error's text with those of its causes, each once. A driver's text may contain that of the cause, or leave it out.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a (dyn StdError + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut told = String::new();
        for cause in causes(self.0) {
            let text = cause.to_string();
            if !told.contains(&text) {
                let between = if told.is_empty() { "" } else { ": " };
                told.extend([between, &text]);
            }
            if cause.is::<Worded>() {
                break;
            }
        }
        OneLine(told).fmt(f)
    }
}

/// The message that a panic carried.
pub(crate) fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .map_or_else(|| "(no message)".to_owned(), |message| OneLine(message).to_string())
}

/// The first few on one line, with this text between them.
pub(crate) struct FirstFew<'a, T>(pub(crate) &'a [T], pub(crate) &'static str);

impl<T: fmt::Display> fmt::Display for FirstFew<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const FEW: usize = 5;
        let FirstFew(all, between) = self;
        for (n, one) in all.iter().take(FEW).enumerate() {
            write!(f, "{}{one}", if n == 0 { "" } else { between })?;
        }
        match all.len().checked_sub(FEW) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, "{between}and {more} more"),
        }
    }
}

/// A text, or a writer of texts, without line breaks and other control characters. A space is in the place of each.
/// All that the pool says of servers, names and panics goes through this.
#[derive(Debug)]
pub struct OneLine<T>(pub T);

impl<T: fmt::Display> fmt::Display for OneLine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(OneLine(f), "{}", self.0)
    }
}

impl<W: fmt::Write> fmt::Write for OneLine<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (n, piece) in text.split(breaks).enumerate() {
            if n > 0 {
                self.0.write_char(' ')?;
            }
            self.0.write_str(piece)?;
        }
        Ok(())
    }
}

/// Whether a terminal or a log would do something else with this character than show it.
pub(crate) fn breaks(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}
