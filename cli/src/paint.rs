//! Colours, on a terminal only.

use std::io::IsTerminal;

/// The meaning of a word for a state, a verdict or an outcome.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Meaning {
    Good,
    Warn,
    Bad,
    Other,
}

impl Meaning {
    pub(crate) fn of(word: &str) -> Self {
        match word {
            "pass" | "ready" | "ok" | "closed" => Meaning::Good,
            "warn" | "connecting" | "draining" | "forced" | "lowered" => Meaning::Warn,
            "fail" | "failed" | "broken" | "timed_out" | "panicked" | "skipped" => Meaning::Bad,
            _ => Meaning::Other,
        }
    }
}

/// Paints text, or leaves it as it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint {
    is_on: bool,
}

impl Paint {
    /// For the standard output.
    pub(crate) fn for_output() -> Self {
        Paint::for_terminal(std::io::stdout().is_terminal())
    }

    /// For an output that may be a terminal.
    pub(crate) fn for_terminal(is_terminal: bool) -> Self {
        Paint { is_on: is_terminal && is_wanted() }
    }

    /// Paints a verdict or a state by its meaning.
    pub(crate) fn state(self, state: &str, text: &str) -> String {
        match Meaning::of(state) {
            Meaning::Good => self.good(text),
            Meaning::Warn => self.warn(text),
            Meaning::Bad => self.bad(text),
            Meaning::Other => self.dim(text),
        }
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    pub(crate) fn warn(self, text: &str) -> String {
        self.with("33", text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.with("31", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.is_on && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Whether the environment lets a terminal have colours. See <https://no-color.org>.
pub(crate) fn is_wanted() -> bool {
    let is_set = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !is_set && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}
