//! A line on the standard error that tells what takes so long, on a terminal only.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How long nothing is shown. Whoever waits for a shorter time needs no news.
const QUIET: Duration = Duration::from_millis(700);
/// How often the line is written anew.
const EVERY: Duration = Duration::from_millis(200);

/// Awaits the future. Meanwhile `line` tells what goes on, and is given the time that has passed.
///
/// # Cancel safety
/// As the future's own. The line may stay on the terminal.
pub(crate) async fn during<T>(work: impl Future<Output = T>, line: impl Fn(Duration) -> String) -> T {
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    let started = Instant::now();
    let mut work = std::pin::pin!(work);
    let mut is_shown = false;
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            () = tokio::time::sleep(EVERY) => {}
        }
        if started.elapsed() >= QUIET {
            is_shown = true;
            show(&line(started.elapsed()));
        }
    };
    if is_shown {
        show("");
    }
    done
}

/// Puts the text in the place of the line that was there. The text is cut so that it takes one line.
fn show(text: &str) {
    let width = crossterm::terminal::size().map_or(80, |(width, _)| usize::from(width)).saturating_sub(1);
    let text: String = crate::table::clean(text).chars().take(width).collect();
    let mut err = std::io::stderr().lock();
    let _ = write!(err, "\r\x1b[K{text}").and_then(|()| err.flush());
}
