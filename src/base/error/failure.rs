//! The failures of a resource's own code, and the proof that they give about its server.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::io;

use crate::base::error::text::{Chain, Worded, causes, panic_message};
use crate::base::error::{BoxError, Error};

/// A failure is the answer of a [`Resource`](crate::Resource) that cannot connect, ping or close: the error,
/// whether trying again can help, and what a failed ping proves about the server.
#[derive(Debug)]
pub struct Failure {
    pub(crate) source: BoxError,
    pub(crate) permanent: bool,
    pub(crate) proof: Proof,
    /// Whether the server answered that it has no room for one more connection.
    #[cfg(feature = "checkouts")]
    pub(crate) is_full: bool,
}

/// The user's hook on a new connection, in messages.
const ON_CONNECT: &str = "the hook `on_connect`";

/// The proof that a failed ping is about its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    /// It did not answer.
    Silent,
    /// It lives, and answered that it cannot serve.
    Refused,
    /// It lives, and answered that this user may not ask.
    Limited,
    /// Nothing: the ping never reached it.
    Unasked,
}

impl Proof {
    /// The word for it in traces.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Proof::Silent => "silent",
            Proof::Refused => "refused",
            Proof::Limited => "limited",
            Proof::Unasked => "unasked",
        }
    }
}

impl Failure {
    /// A failure that no further attempt can mend, as a wrong password: connecting gives up at once.
    pub fn permanent(source: impl Into<BoxError>) -> Self {
        Failure { permanent: true, ..Failure::transient(source) }
    }

    /// A failure that may pass: connecting tries again within its budget. For a ping it means that the server did not
    /// answer, and several in a row cut the connection.
    pub fn transient(source: impl Into<BoxError>) -> Self {
        Failure {
            source: source.into(),
            permanent: false,
            proof: Proof::Silent,
            #[cfg(feature = "checkouts")]
            is_full: false,
        }
    }

    /// A failure where the server answered that it cannot serve now, as while it loads its data. Connecting tries again
    /// until its budget ends, however many attempts that takes. After a ping health fails; the connection is not cut.
    pub fn refused(source: impl Into<BoxError>) -> Self {
        Failure { proof: Proof::Refused, ..Failure::transient(source) }
    }

    /// A ping's failure where the server answered that this user may not ask: a missing right, a quota. Health warns;
    /// the connection is not cut.
    pub fn limited(source: impl Into<BoxError>) -> Self {
        Failure { proof: Proof::Limited, ..Failure::transient(source) }
    }

    /// A ping's failure where the server could not be asked: there was no room for the ping's connection, on either
    /// side. Health is unknown; the connection is not cut.
    pub fn unasked(source: impl Into<BoxError>) -> Self {
        Failure { proof: Proof::Unasked, ..Failure::transient(source) }
    }

    /// The error itself.
    pub fn source(&self) -> &(dyn StdError + Send + Sync + 'static) {
        &*self.source
    }

    /// The error itself.
    pub fn into_source(self) -> BoxError {
        self.source
    }

    /// Whether no further attempt can mend this failure.
    pub fn is_permanent(&self) -> bool {
        self.permanent
    }

    /// The same failure, marked as one that no further attempt can mend, or as one that may pass.
    pub fn with_permanent(self, permanent: bool) -> Self {
        Failure { permanent, ..self }
    }

    /// The same failure, named as one of the user's hook on a new connection.
    pub(crate) fn of_hook(self) -> Self {
        let text = format!("{ON_CONNECT} failed: {self}");
        Failure { source: Worded::new(text, self.source).into(), ..self }
    }

    /// Whether this failed ping proves nothing about its server, because it never reached the server.
    pub fn is_unasked(&self) -> bool {
        self.proof() == Proof::Unasked
    }

    /// Whether the server has given no answer, so that it may be dead. Everything else shows that it lives, or nothing.
    pub fn is_silence(&self) -> bool {
        self.proof() == Proof::Silent
    }

    /// The proof that this failed ping is. A failure of this process itself proves nothing about a server, whatever the
    /// resource says.
    pub(crate) fn proof(&self) -> Proof {
        if is_own_trouble(&*self.source) { Proof::Unasked } else { self.proof }
    }
}

impl Error {
    /// The error of the user's hook on a new connection that panicked with this payload.
    pub(crate) fn of_hook_that_panicked(payload: &(dyn Any + Send)) -> Self {
        Error::Panicked { what: ON_CONNECT.to_owned(), message: panic_message(payload) }
    }
}

/// Whether this process lacked descriptors, memory, ports or room in its network stack. Such a lack proves nothing
/// about a server.
pub fn is_own_trouble(error: &(dyn StdError + 'static)) -> bool {
    const LACKS: [i32; 5] = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS, libc::EADDRNOTAVAIL];
    causes(error).any(|cause| {
        let code = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        code.is_some_and(|code| LACKS.contains(&code))
    })
}

impl<E: Into<BoxError>> From<E> for Failure {
    fn from(source: E) -> Self {
        Failure::transient(source)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Chain(&*self.source).fmt(f)
    }
}
