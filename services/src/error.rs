//! The error of this crate.

use crate::Kind;
use std::path::Path;
use std::time::Duration;
use std::{fmt, fs, io};

/// The reason why a server could not be started or controlled.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A program is missing and could not be installed.
    Missing {
        /// The program.
        program: String,
        /// Why it could not be installed.
        why: String,
        /// A remedy for the reader.
        remedy: String,
    },
    /// A server ended or did not answer after it was started.
    Start {
        /// The server.
        kind: Kind,
        /// The reason.
        why: String,
        /// The end of the server's log.
        log: String,
    },
    /// The server was given by an URL in the environment. This process did not start it, and may not kill, freeze,
    /// restart or look into it.
    Foreign {
        /// The server.
        kind: Kind,
        /// The refused action.
        action: &'static str,
    },
    /// The view belongs to another kind of server.
    WrongKind {
        /// The kind of this server.
        kind: Kind,
        /// The kind that the view belongs to.
        wanted: Kind,
    },
    /// An exchange with a running server failed.
    Exchange {
        /// The request.
        what: String,
        /// The answer, or the error instead of one.
        why: String,
    },
    /// The server's process is not running.
    NotRunning(Kind),
    /// An operation on a file, a process or a socket failed.
    Io {
        /// The operation.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }

    pub(crate) fn exchange(what: impl Into<String>, why: impl fmt::Display) -> Error {
        Error::Exchange { what: what.into(), why: why.to_string() }
    }

    pub(crate) fn exited(kind: Kind, log: &Path) -> Error {
        let why = "its process ended".into();
        Error::Start { kind, why, log: tail(log) }
    }

    pub(crate) fn not_ready(kind: Kind, waited: Duration, last: &Error, log: &Path) -> Error {
        let why = format!("not ready after {waited:.0?}: {last}");
        Error::Start { kind, why, log: tail(log) }
    }
}

/// The last lines of the log, and of the process's output.
fn tail(log: &Path) -> String {
    const LINES: usize = 12;
    let last_lines = |path: &Path| {
        let text = fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    };
    let output = log.with_extension("out");
    match output == log {
        true => last_lines(log),
        false => [log, &output].map(last_lines).join("\n"),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Missing { program, why, remedy } => write!(f, "{program} is missing: {why}\nremedy: {remedy}"),
            Error::Start { kind, why, log } => {
                write!(f, "{kind} did not start: {why}\nthe end of its log:\n{log}")
            }
            Error::Foreign { kind, action } => {
                write!(f, "cannot {action} {kind}: it was given by an URL in the environment and is not ours")
            }
            Error::WrongKind { kind, wanted } => write!(f, "this is {kind}, not {wanted}"),
            Error::Exchange { what, why } => write!(f, "{what}: {why}"),
            Error::NotRunning(kind) => write!(f, "{kind} is not running"),
            Error::Io { what, source } => write!(f, "{what}: {source}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
