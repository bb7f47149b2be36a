//! Tables of text, aligned by the width that a terminal gives each character.

use ratatui::text::Span;

use crate::paint::Paint;

/// A cell: its text, and the state by which it is painted, if any.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    state: Option<String>,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Cell { text: clean(&text.into()), state: None }
    }
}

impl Cell {
    /// A state or verdict, painted by its meaning.
    pub(crate) fn state(text: &str) -> Self {
        Cell { text: clean(text), state: Some(text.to_owned()) }
    }

    /// A text that is painted by this state.
    pub(crate) fn painted(text: impl Into<String>, state: &str) -> Self {
        Cell { text: clean(&text.into()), state: Some(state.to_owned()) }
    }
}

/// A table with one head line.
#[derive(Debug)]
pub(crate) struct Table {
    head: Vec<&'static str>,
    /// Columns that are aligned to the right, such as numbers.
    right: Vec<usize>,
    rows: Vec<(Vec<Cell>, Vec<String>)>,
}

impl Table {
    pub(crate) fn new(head: &[&'static str], right: &[usize]) -> Self {
        Table { head: head.to_vec(), right: right.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push((cells, Vec::new()));
    }

    /// Adds a line of text below the last row.
    pub(crate) fn note(&mut self, text: &str) {
        if let Some((_, notes)) = self.rows.last_mut() {
            notes.push(clean(text));
        }
    }

    /// The table as text, with a line end after each line.
    pub(crate) fn show(&self, paint: Paint) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|(cells, _)| cells.get(column)).map(|cell| columns(&cell.text));
            cells.chain(self.head.get(column).map(|head| columns(head))).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let line = |texts: &mut dyn Iterator<Item = (String, usize)>| {
            let mut line = String::new();
            for ((column, (text, taken)), width) in texts.enumerate().zip(&widths) {
                let blank = " ".repeat(width.saturating_sub(taken));
                let gap = if column == 0 { "" } else { "  " };
                match self.right.contains(&column) {
                    true => line.push_str(&format!("{gap}{blank}{text}")),
                    false => line.push_str(&format!("{gap}{text}{blank}")),
                }
            }
            line.trim_end().to_owned() + "\n"
        };
        let mut text = line(&mut self.head.iter().map(|head| (paint.bold(head), columns(head))));
        for (cells, notes) in &self.rows {
            text += &line(&mut cells.iter().map(|cell| {
                let painted = cell.state.as_ref().map(|state| paint.state(state, &cell.text));
                (painted.unwrap_or_else(|| cell.text.clone()), columns(&cell.text))
            }));
            for note in notes {
                text += &format!("  {note}\n");
            }
        }
        text
    }
}

/// How many columns of a terminal the text takes.
pub(crate) fn columns(text: &str) -> usize {
    Span::raw(text).width()
}

/// The text without control characters, which a terminal would obey.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A time in the unit that fits.
pub(crate) fn millis(time: f64) -> String {
    match time {
        time if !time.is_finite() || time < 0.0 => "-".to_owned(),
        time if time < 10.0 => format!("{time:.1}ms"),
        time if time < 1_000.0 => format!("{time:.0}ms"),
        time if time < 60_000.0 => format!("{:.1}s", time / 1e3),
        time if time < 3_600_000.0 => format!("{:.0}m {:.0}s", (time / 6e4).floor(), (time % 6e4 / 1e3).floor()),
        time => format!("{:.0}h {:.0}m", (time / 3.6e6).floor(), (time % 3.6e6 / 6e4).floor()),
    }
}

/// The time of day in UTC, of milliseconds since the beginning of 1970.
pub(crate) fn time_of_day(at: f64) -> String {
    let seconds = if at.is_finite() && at > 0.0 { (at / 1e3) as u64 } else { 0 };
    let (hours, minutes) = (seconds / 3_600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}Z", seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::{Cell, Table, clean, millis, time_of_day};
    use crate::paint::Paint;

    #[test]
    fn columns_are_aligned_whatever_the_text() {
        let mut table = Table::new(&["name", "took"], &[1]);
        table.row(vec![Cell::from("a"), Cell::from("1ms")]);
        table.row(vec![Cell::from("数据库"), Cell::from("12.0ms")]);
        table.note("a\nb");
        let text = table.show(Paint::for_terminal(false));
        assert_eq!(text, "name      took\na          1ms\n数据库  12.0ms\n  a b\n");
    }

    #[test]
    fn texts_of_others_cannot_command_the_terminal() {
        assert_eq!(clean("a\x1b[31mb\nc\u{9b}d"), "a [31mb c d");
    }

    #[test]
    fn times_have_the_unit_that_fits() {
        let shown = [0.42, 12.4, 999.0, 1_500.0, 61_000.0, 7_260_000.0, f64::NAN].map(millis);
        assert_eq!(shown, ["0.4ms", "12ms", "999ms", "1.5s", "1m 1s", "2h 1m", "-"]);
        assert_eq!(time_of_day(86_400_000.0 + 3_661_000.0), "01:01:01Z");
    }
}
