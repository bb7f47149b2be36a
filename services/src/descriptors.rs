//! A process without free descriptors, for tests of that shortage.

use crate::Error;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use std::io;

/// While this lives, its process can open no further descriptor, neither for a file, a socket nor a child. Open
/// descriptors stay open.
#[derive(Debug)]
#[must_use = "the limit goes back to what it was when this drops"]
pub struct NoDescriptors {
    soft: rlim_t,
    hard: rlim_t,
}

impl NoDescriptors {
    /// Sets this process's limit so low that every new descriptor is beyond it.
    ///
    /// # Errors
    /// If the system refuses that.
    pub fn begin() -> Result<NoDescriptors, Error> {
        // The limit leaves the three standard descriptors. With a limit of zero, `poll` would refuse to look at open
        // ones.
        const STANDARD: rlim_t = 3;
        let begin = || {
            let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
            setrlimit(Resource::RLIMIT_NOFILE, STANDARD, hard)?;
            Ok(NoDescriptors { soft, hard })
        };
        begin().map_err(|error: nix::Error| Error::io("limiting descriptors")(io::Error::from(error)))
    }
}

impl Drop for NoDescriptors {
    fn drop(&mut self) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, self.soft, self.hard);
    }
}
