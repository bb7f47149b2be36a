//! Numbers read from texts, and durations as whole milliseconds.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
#[cfg(feature = "serde")]
use serde::{Serialize, Serializer};

use crate::base::error::Error;

pub(crate) const MILLIS: &str = "a whole number of milliseconds, from 0 to 18446744073709551615";

/// Parses a number. `expected` names the right form in the error.
///
/// # Errors
/// [`Error::Config`] of this key.
pub fn number<T: FromStr>(key: &str, text: &str, expected: &str) -> Result<T, Error> {
    text.trim().parse().map_err(|_| Error::config(key, format!("is not {expected}")))
}

/// Deserializes a duration, as serde's `with` wants it.
///
/// # Errors
/// The deserializer's own, if the value is no duration.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let expected = |_may_quote_a_secret| de::Error::custom(format_args!("expected {MILLIS}"));
    u64::deserialize(deserializer).map(Duration::from_millis).map_err(expected)
}

/// Serializes a duration as whole milliseconds, as serde's `with` wants it.
///
/// # Errors
/// The serializer's own.
#[cfg(feature = "serde")]
pub(crate) fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).serialize(serializer)
}
