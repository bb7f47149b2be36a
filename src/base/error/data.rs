//! Errors as serialized data: a code for their sort, the message, and the further fields of the variant.

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::base::error::{ConnectError, DeadlockError, Error, OneLine, TimeoutError};
use crate::base::json::Millis;

/// Begins the map of an error with the entries that every error has. These are a code for its sort, its message,
/// whether the same call may succeed later and, if known, the resource and where that is.
fn begin<S: Serializer>(
    serializer: S,
    error: &dyn std::error::Error,
    code: &str,
    is_transient: bool,
    [resource, endpoint]: [Option<&str>; 2],
) -> Result<S::SerializeMap, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("code", code)?;
    map.serialize_entry("message", &error.to_string())?;
    map.serialize_entry("transient", &is_transient)?;
    map.serialize_entry("resource", &resource)?;
    map.serialize_entry("endpoint", &endpoint)?;
    Ok(map)
}

impl Serialize for Error {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (whose, further): ([Option<&str>; 2], &[(&str, &str)]) = match self {
            Error::Connect(error) => return error.serialize(serializer),
            Error::Timeout(error) => return error.serialize(serializer),
            Error::Deadlock(error) => return error.serialize(serializer),
            Error::WarmUp(error) => {
                let mut map = begin(serializer, self, self.code(), self.is_transient(), [None; 2])?;
                map.serialize_entry("failed", &Failed(&error.failed))?;
                map.serialize_entry("of", &error.of)?;
                return map.end();
            }
            Error::Config { key, problem } => ([None; 2], &[("key", key), ("problem", problem)]),
            Error::UnknownName { name, known } => ([None; 2], &[("name", name), ("known", known)]),
            Error::NameTaken { name, problem } => ([None; 2], &[("name", name), ("problem", problem)]),
            Error::Lost { resource, endpoint, .. } => ([Some(resource), Some(endpoint)], &[]),
            Error::Operation { resource, action, .. } | Error::OutcomeUnknown { resource, action, .. } => {
                ([Some(resource), None], &[("action", action)])
            }
            Error::Closing { resource } | Error::Closed { resource } | Error::InAsyncContext { resource } => {
                ([Some(resource), None], &[])
            }
            Error::AlreadyInstalled | Error::Forked => ([None; 2], &[]),
            Error::Order(problem) => ([None; 2], &[("problem", problem)]),
            Error::Panicked { what, .. } => ([None; 2], &[("what", what)]),
        };
        let mut map = begin(serializer, self, self.code(), self.is_transient(), whose)?;
        for (key, text) in further {
            map.serialize_entry(key, &OneLine(text).to_string())?;
        }
        map.end()
    }
}

/// The errors by the names of their resources.
struct Failed<'a>(&'a [(String, Error)]);

impl Serialize for Failed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, error)| (name, error)))
    }
}

impl Serialize for ConnectError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ConnectError { resource, endpoint, attempts, elapsed, permanent, remedy, .. } = self;
        let mut map = begin(serializer, self, "connect", !permanent, [Some(resource), Some(endpoint)])?;
        map.serialize_entry("attempts", attempts)?;
        map.serialize_entry("elapsed_ms", &Millis::from(*elapsed))?;
        map.serialize_entry("remedy", remedy)?;
        map.end()
    }
}

impl Serialize for TimeoutError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let TimeoutError { resource, endpoint, waiting_for, waited, holders, cycle, .. } = self;
        let mut map = begin(serializer, self, "timeout", true, [Some(resource), Some(endpoint)])?;
        map.serialize_entry("waiting_for", &OneLine(waiting_for).to_string())?;
        map.serialize_entry("waited_ms", &Millis::from(*waited))?;
        map.serialize_entry("holders", holders)?;
        map.serialize_entry("cycle", cycle)?;
        map.end()
    }
}

impl Serialize for DeadlockError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let DeadlockError { resource, waiting_for, site, holders, option } = self;
        let mut map = begin(serializer, self, "deadlock", false, [Some(resource), None])?;
        map.serialize_entry("waiting_for", &OneLine(waiting_for).to_string())?;
        map.serialize_entry("site", &site.to_string())?;
        map.serialize_entry("holders", holders)?;
        map.serialize_entry("option", option)?;
        map.end()
    }
}
