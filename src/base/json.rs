//! Serializers for types that serde has no words for: durations as milliseconds, the rest as text.

use std::fmt::Display;
use std::time::{Duration, Instant, SystemTime};

use serde::{Serialize, Serializer};

use crate::base::error::OneLine;

/// Milliseconds, to the microsecond.
#[derive(serde::Serialize)]
pub(crate) struct Millis(f64);

impl From<Duration> for Millis {
    fn from(time: Duration) -> Self {
        Millis((time.as_secs_f64() * 1e6).round() / 1e3)
    }
}

pub(crate) fn millis<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_newtype_struct("", &Millis::from(*time))
}

pub(crate) fn some_millis<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => millis(time, serializer),
        None => serializer.serialize_none(),
    }
}

/// Milliseconds since the beginning of 1970.
pub(crate) fn time<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    millis(&time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(), serializer)
}

/// Milliseconds since the beginning of 1970, as near as the present time of day tells.
pub(crate) fn instant<S: Serializer>(instant: &Instant, serializer: S) -> Result<S::Ok, S::Error> {
    let now = SystemTime::now();
    time(&now.checked_sub(instant.elapsed()).unwrap_or(now), serializer)
}

pub(crate) fn text<S: Serializer>(value: impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&value)
}

/// A text without line breaks and control characters, as in logs.
pub(crate) fn line<S: Serializer>(value: impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&OneLine(value))
}

pub(crate) fn some_line<T: Display, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    some_text(&value.as_ref().map(OneLine), serializer)
}

pub(crate) fn some_text<T: Display, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

/// Serializes counts as an object.
pub(crate) fn counts<K: Serialize, S: Serializer>(counts: &[(K, usize)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(counts.iter().map(|(what, count)| (what, count)))
}
