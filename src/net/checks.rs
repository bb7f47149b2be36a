//! The checks that every server's configuration has to pass, whatever its kind.

use std::fmt;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::base::error::Error;
use crate::net::url::host;

/// Checks for values that no resource can work with, whatever its kind. These are a bad host, port 0, a limit
/// of zero, more of something than can be counted, and a keepalive that TCP does not take.
#[derive(Debug)]
pub struct Checks<'a>(
    /// The resource's name, with which the keys in errors begin.
    pub &'a str,
);

impl Checks<'_> {
    /// Answers with the error of a field.
    ///
    /// # Errors
    /// Always.
    pub fn fail<T>(&self, field: &str, problem: impl fmt::Display) -> Result<T, Error> {
        Err(Error::config(format!("{}.{field}", self.0), problem))
    }

    /// Checks host and port, and trims the host.
    ///
    /// # Errors
    /// [`Error::Config`] of `host` or `port`.
    pub fn place(&self, at: &mut String, port: u16) -> Result<(), Error> {
        *at = host(&format!("{}.host", self.0), at)?.to_owned();
        if port == 0 { self.fail("port", "must be from 1 to 65535") } else { Ok(()) }
    }

    /// Checks how many of something there may be at a time.
    ///
    /// # Errors
    /// [`Error::Config`] of the first field that is zero, or more than can be counted.
    pub fn counts(&self, counts: &[(&str, usize)]) -> Result<(), Error> {
        for (field, count) in counts {
            if !(1..=Semaphore::MAX_PERMITS).contains(count) {
                return self.fail(field, format_args!("must be from 1 to {}", Semaphore::MAX_PERMITS));
            }
        }
        Ok(())
    }

    /// Checks limits within which something has to succeed.
    ///
    /// # Errors
    /// [`Error::Config`] of the first field that is zero.
    pub fn limits(&self, limits: &[(&str, Duration)]) -> Result<(), Error> {
        match limits.iter().find(|(_, limit)| limit.is_zero()) {
            Some((field, _)) => self.fail(field, "must be at least 1 ms, or nothing could ever succeed"),
            None => Ok(()),
        }
    }

    /// Checks a keepalive. Linux takes whole seconds, and no more of them than this.
    ///
    /// # Errors
    /// [`Error::Config`] of `keepalive_ms`.
    pub fn keepalive(&self, keepalive: Duration) -> Result<(), Error> {
        match keepalive.as_secs() {
            1..=32_767 => Ok(()),
            _ => self.fail("keepalive_ms", "must be from 1000 to 32767999: TCP takes whole seconds, up to 32767"),
        }
    }
}
