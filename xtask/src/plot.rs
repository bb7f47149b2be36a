//! Draws one duel as an SVG that reads well on light and dark.
//!
//! The SVG is written by hand, because it is text with style rules. The plotting crates draw with fixed colours that
//! follow no dark mode, and they bring along fonts to measure text with.

use crate::results::{Row, figure, in_unit, scale};
use std::fmt::Write;

const WIDTH: f64 = 800.0;
const MARGIN: f64 = 16.0;
const LINE: f64 = 28.0;
/// The approximate width of a letter at the text's size.
const LETTER: f64 = 7.6;
/// The span, as most over least, from which a logarithmic axis tells more.
const WIDE: f64 = 15.0;
const TITLE_LETTERS: usize = 88;

const STYLE: &str = "\
text{font:13px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#1f2328}\
.title{font-weight:600;font-size:14px}.small{font-size:11px;fill:#59636e}.paper{fill:#fff;stroke:#d1d9e0}\
.grid{stroke:#d1d9e0}.ours{fill:#0969da;stroke:#0969da}.peer{fill:#818b98;stroke:#818b98}.must{stroke:#bc4c00}\
.bar{stroke:none;opacity:.28}.b{font-weight:600}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.small{fill:#9198a1}.paper{fill:#0d1117;stroke:#3d444d}\
.grid{stroke:#3d444d}.ours{fill:#4493f8;stroke:#4493f8}.peer{fill:#9198a1;stroke:#9198a1}.must{stroke:#f0883e}}";

/// Draws medians as dots, the range of the samples as whiskers, and the limits of the claims as marks.
pub(crate) fn svg(row: &Row) -> String {
    let (factor, unit) = scale(&row.unit, row.contestants.iter().map(|one| one.median));
    let limits: Vec<_> = row.claims.iter().filter_map(|judged| judged.limit.as_ref()).collect();
    let spans = row.contestants.iter().map(|one| one.span());
    let ends = spans.flat_map(|(least, most)| [least, most]).chain(limits.iter().map(|(_, limit)| *limit));
    let axis = Axis::over(ends.map(|value| value / factor));

    let labels: Vec<_> = row.contestants.iter().map(|one| in_unit(one.median / factor, &unit)).collect();
    let widest = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0) as f64 * LETTER + MARGIN;
    let left = MARGIN + widest(&mut row.contestants.iter().map(|one| one.name.chars().count()));
    let right = WIDTH - MARGIN - widest(&mut labels.iter().map(|label| label.chars().count()));
    let x = |value: f64| left + axis.share(value) * (right - left);

    let title = wrapped(&row.title(), TITLE_LETTERS);
    let top = MARGIN + 20.0 * title.len() as f64 + 8.0;
    let bottom = top + LINE * row.contestants.len() as f64;
    let height = bottom + 44.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\">\n\
         <style>{STYLE}</style>\n\
         <rect class=\"paper\" x=\".5\" y=\".5\" width=\"{}\" height=\"{}\" rx=\"6\"/>\n",
        WIDTH - 1.0,
        height - 1.0
    );
    for (index, line) in title.iter().enumerate() {
        let y = MARGIN + 14.0 + 20.0 * index as f64;
        let _ = writeln!(svg, "<text class=\"title\" x=\"{MARGIN}\" y=\"{y}\">{}</text>", escaped(line));
    }
    for tick in axis.ticks() {
        let (at, label) = (x(tick), figure(tick));
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>\
             <text class=\"small\" x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
            bottom + 14.0
        );
    }
    for (index, (one, label)) in row.contestants.iter().zip(&labels).enumerate() {
        let middle = top + LINE * (index as f64 + 0.5);
        let (class, weight) = if one.is_ours() { ("ours", "b") } else { ("peer", "") };
        let (least, most) = one.span();
        let [least, median, most] = [least, one.median, most].map(|value| x(value / factor));
        let _ = writeln!(
            svg,
            "<text class=\"{weight}\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <text class=\"{weight}\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            left - 10.0,
            middle + 4.5,
            escaped(&one.name),
            WIDTH - MARGIN,
            middle + 4.5,
            escaped(label)
        );
        if !axis.logarithmic {
            let (y, width) = (middle - 8.0, median - left);
            let _ = write!(
                svg,
                "<rect class=\"{class} bar\" x=\"{left:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"16\" rx=\"2\"/>"
            );
        }
        let (above, below) = (middle - 5.0, middle + 5.0);
        let _ = writeln!(
            svg,
            "<path class=\"{class}\" fill=\"none\" stroke-width=\"1.5\" \
             d=\"M{least:.1} {middle}H{most:.1}M{least:.1} {above}V{below}M{most:.1} {above}V{below}\"/>\
             <circle class=\"{class}\" cx=\"{median:.1}\" cy=\"{middle}\" r=\"4.5\"/>"
        );
        for (_, limit) in limits.iter().filter(|(name, _)| *name == one.name) {
            let (at, above, below) = (x(limit / factor), middle - 12.0, middle + 12.0);
            let _ = writeln!(
                svg,
                "<line class=\"must\" stroke-width=\"2\" stroke-dasharray=\"4 3\" \
                 x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{above}\" y2=\"{below}\"/>"
            );
        }
    }
    let mut told = format!("{}less is better; median and least to most of {} rounds", and_then(&unit), row.rounds);
    if axis.logarithmic {
        told += "; logarithmic";
    }
    if !limits.is_empty() {
        told += "; dashed: the most that is claimed";
    }
    let y = height - 10.0;
    let _ = writeln!(svg, "<text class=\"small\" x=\"{MARGIN}\" y=\"{y}\">{}</text>\n</svg>", escaped(&told));
    svg
}

fn and_then(unit: &str) -> String {
    if unit.is_empty() { String::new() } else { format!("{unit}, ") }
}

/// The axis from left to right.
#[derive(Debug, PartialEq)]
struct Axis {
    logarithmic: bool,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64> + Clone) -> Axis {
        let least = values.clone().fold(f64::INFINITY, f64::min);
        let most = values.fold(0.0, f64::max);
        if least > 0.0 && most / least >= WIDE {
            return Axis { logarithmic: true, from: least / 1.25, to: most * 1.25 };
        }
        Axis { logarithmic: false, from: 0.0, to: if most > 0.0 { most * 1.05 } else { 1.0 } }
    }

    /// The position of a value from the left, as a share of 1.
    fn share(&self, value: f64) -> f64 {
        match self.logarithmic {
            true => (value / self.from).ln() / (self.to / self.from).ln(),
            false => value / self.to,
        }
    }

    fn ticks(&self) -> Vec<f64> {
        if !self.logarithmic {
            // Four to nine ticks.
            let power = 10f64.powf((self.to / 4.0).log10().floor());
            let step = [5.0, 2.0, 1.0].map(|digit| digit * power).into_iter().find(|step| step * 4.0 <= self.to);
            let step = step.unwrap_or(power);
            return (0..=9).map(|number| f64::from(number) * step).filter(|tick| *tick <= self.to).collect();
        }
        let digits: &[f64] = match (self.to / self.from).log10() {
            ..2.0 => &[1.0, 2.0, 5.0],
            ..3.5 => &[1.0, 3.0],
            _ => &[1.0],
        };
        let powers = self.from.log10().floor() as i32..=self.to.log10().ceil() as i32;
        let all = powers.flat_map(|power| digits.iter().map(move |digit| digit * 10f64.powi(power)));
        all.filter(|tick| (self.from..=self.to).contains(tick)).collect()
    }
}

/// Breaks the text between words into lines of so many letters.
fn wrapped(text: &str, letters: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().filter(|line| line.chars().count() + word.chars().count() < letters);
        match line {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_on_the_axis() {
        let linear = Axis::over([3.0, 40.0].into_iter());
        assert_eq!(linear.ticks(), [0.0, 10.0, 20.0, 30.0, 40.0]);
        assert_eq!((linear.share(0.0), linear.share(42.0)), (0.0, 1.0));
        let wide = Axis::over([8.0, 2000.0].into_iter());
        assert_eq!(wide.ticks(), [10.0, 30.0, 100.0, 300.0, 1000.0]);
        assert_eq!(Axis::over([0.0, 0.0].into_iter()).ticks().len(), 6);
    }

    #[test]
    fn a_title_breaks_between_words() {
        assert_eq!(wrapped("one two three", 8), ["one two", "three"]);
        assert_eq!(escaped("a < b & c"), "a &lt; b &amp; c");
    }
}
