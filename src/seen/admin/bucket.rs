//! [`Bucket`], which requests empty and time fills.

use std::time::Instant;

/// [`Bucket`] holds the pieces that somebody may still have.
pub(super) struct Bucket {
    most: f64,
    per_second: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub(super) fn new(most: f64, per_second: f64) -> Self {
        Bucket { most, per_second, left: most, at: Instant::now() }
    }

    /// A full bucket for so many requests per second. Twice as many may come at once.
    pub(super) fn of_requests(per_second: u32) -> Self {
        let per_second = f64::from(per_second.max(1));
        Bucket::new(2.0 * per_second, per_second)
    }

    /// Takes one piece. `false` if there is none.
    pub(super) fn take(&mut self) -> bool {
        let is_left = self.has_some();
        if is_left {
            self.left -= 1.0;
        }
        is_left
    }

    pub(super) fn has_some(&mut self) -> bool {
        self.fill() >= 1.0
    }

    pub(super) fn is_full(&mut self) -> bool {
        self.fill() >= self.most
    }

    fn fill(&mut self) -> f64 {
        let now = Instant::now();
        self.left = self.most.min(self.left + now.duration_since(self.at).as_secs_f64() * self.per_second);
        self.at = now;
        self.left
    }
}
