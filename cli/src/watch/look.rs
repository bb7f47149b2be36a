//! The look of states: colours, or only bold and reversed text where `NO_COLOR` is set.

use ratatui::style::{Color, Modifier, Style};

use crate::paint::Meaning;

/// The styles.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    has_colours: bool,
}

impl Look {
    pub(crate) fn of_environment() -> Self {
        Look { has_colours: crate::paint::is_wanted() }
    }

    /// The style of a state or verdict.
    pub(crate) fn state(self, state: &str) -> Style {
        let (colour, is_bold) = match Meaning::of(state) {
            Meaning::Good => (Color::Green, false),
            Meaning::Warn => (Color::Yellow, false),
            Meaning::Bad => (Color::Red, true),
            Meaning::Other => return Style::new(),
        };
        let style = if is_bold { Style::new().add_modifier(Modifier::BOLD) } else { Style::new() };
        if self.has_colours { style.fg(colour) } else { style }
    }

    /// The header and the footer.
    pub(crate) fn bar(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// The chosen row.
    pub(crate) fn chosen(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// Titles.
    pub(crate) fn title(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// Text of less weight.
    pub(crate) fn dim(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }
}
