//! Progress bars on a terminal, or a line for each stage elsewhere.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

#[derive(Debug, Default, Clone)]
pub(crate) struct Progress(MultiProgress);

impl Progress {
    /// Begins a stage of so many bars.
    pub(crate) fn stage(&self, what: &str, length: usize) -> ProgressBar {
        if self.0.is_hidden() {
            eprintln!("{what}: {length} bars");
        }
        let style = ProgressStyle::with_template("{msg:24} {bar:40} {pos:>6}/{len} {elapsed:>4}").ok();
        let bar = ProgressBar::new(length as u64).with_message(what.to_owned());
        self.0.add(bar.with_style(style.unwrap_or_else(ProgressStyle::default_bar)))
    }

    /// Takes the bars off the screen.
    pub(crate) fn clear(&self) {
        // An error is ignored, because the bars are only decoration.
        let _ = self.0.clear();
    }
}
