//! A chart of latencies, one character each.

use ratatui::text::Span;

use crate::watch::look::Look;

const BARS: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];

/// The chart of the newest latencies that fit, in milliseconds. A question without an answer is a cross.
pub(crate) fn chart(
    latencies: impl DoubleEndedIterator<Item = Option<f64>>,
    width: usize,
    look: Look,
) -> Vec<Span<'static>> {
    let mut newest: Vec<Option<f64>> = latencies.rev().take(width).collect();
    newest.reverse();
    let highest = newest.iter().flatten().fold(1.0_f64, |highest, latency| highest.max(*latency));
    let bar = |latency: Option<f64>| match latency {
        None => Span::styled("×", look.state("fail")),
        Some(latency) => {
            let height = (latency.max(0.0) / highest * 7.0).round() as usize;
            Span::raw(BARS.get(height).copied().unwrap_or("█"))
        }
    };
    newest.into_iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::chart;
    use crate::watch::look::Look;

    #[test]
    fn a_chart_shows_the_newest_and_the_unanswered() {
        let latencies = [Some(0.0), Some(5.0), None, Some(10.0)];
        let text = |width| -> String {
            chart(latencies.into_iter(), width, Look::of_environment())
                .iter()
                .map(|span| span.content.clone())
                .collect()
        };
        assert_eq!((text(9).as_str(), text(2).as_str(), text(0).as_str()), ("▁▅×█", "×█", ""));
    }
}
