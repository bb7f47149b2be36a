//! Points in time: exact to the nanosecond, or coarse for the price of a few nanoseconds.

#[cfg(not(target_os = "linux"))]
use std::sync::OnceLock;
use std::time::Duration;
#[cfg(not(target_os = "linux"))]
use std::time::Instant as Time;

#[cfg(target_os = "linux")]
use nix::sys::time::TimeSpec as Time;
#[cfg(target_os = "linux")]
use nix::time::{ClockId, clock_gettime};

/// A point in time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment(Time);

#[cfg(target_os = "linux")]
impl Moment {
    pub(crate) fn now() -> Self {
        Moment::by(ClockId::CLOCK_MONOTONIC)
    }

    /// The time of the kernel timer's last tick, which was 1 to 10 ms ago, at a third of the cost.
    #[inline]
    pub(crate) fn coarse() -> Self {
        Moment::by(ClockId::CLOCK_MONOTONIC_COARSE)
    }

    #[inline]
    fn by(clock: ClockId) -> Self {
        // Every Linux since 2.6.32 has both clocks.
        Moment(clock_gettime(clock).unwrap_or(Time::new(0, 0)))
    }

    /// This moment, so much later.
    #[cfg(all(test, feature = "checkouts"))]
    pub(crate) fn later(self, by: Duration) -> Self {
        Moment(Time::from(Duration::from(self.0) + by))
    }

    pub(crate) fn elapsed(self) -> Duration {
        Moment::now().since(self)
    }

    pub(crate) fn since(self, earlier: Moment) -> Duration {
        Duration::from(self.0).saturating_sub(earlier.0.into())
    }

    /// Milliseconds since some moment before all others, never zero.
    #[inline]
    pub(crate) fn millis(self) -> u64 {
        u64::try_from(Duration::from(self.0).as_millis()).unwrap_or(u64::MAX).max(1)
    }
}

#[cfg(not(target_os = "linux"))]
impl Moment {
    pub(crate) fn now() -> Self {
        Moment(Time::now())
    }

    pub(crate) fn coarse() -> Self {
        Moment::now()
    }

    /// This moment, so much later.
    #[cfg(all(test, feature = "checkouts"))]
    pub(crate) fn later(self, by: Duration) -> Self {
        Moment(self.0 + by)
    }

    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }

    pub(crate) fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }

    /// Milliseconds since some moment before all others, never zero.
    pub(crate) fn millis(self) -> u64 {
        static FIRST: OnceLock<Time> = OnceLock::new();
        let since = self.0.saturating_duration_since(*FIRST.get_or_init(|| self.0));
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }
}
