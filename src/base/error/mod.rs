//! [`Error`], which both facades answer, and the structs that its variants hold.

#[cfg(feature = "serde")]
mod data;
mod failure;
mod redact;
mod remedies;
mod sort;
mod text;
mod warm_up;

use std::error::Error as StdError;
use std::fmt::{self, Write as _};
use std::io;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

pub use self::failure::Failure;
pub(crate) use self::failure::Proof;
pub use self::failure::is_own_trouble;
pub use self::redact::redacted;
pub(crate) use self::remedies::Remedies;
pub use self::text::{Chain, OneLine, Worded, causes};
pub(crate) use self::text::{FirstFew, breaks, panic_message};
pub use self::warm_up::WarmUpError;
use crate::base::holder::Holder;
#[cfg(feature = "serde")]
use crate::base::json;
use crate::base::owner::Owner;

/// Any error, boxed. A [`Resource`](crate::Resource) may fail with any such error.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// A driver's error, shared by all who waited for the same attempt.
pub type Source = Arc<dyn StdError + Send + Sync>;

/// Everything that acquiring, checking or closing a resource can answer.
///
/// Errors name the resource and its endpoint, never a password. Cloning is cheap: single-flight
/// connecting hands one failure to every waiter.
///
/// A message contains the driver's message and those of its causes, each once, so that one line tells all. The driver's
/// error itself is the [`source`](StdError::source), which can be downcast to the driver's type.
///
/// ```
/// use resource_pool::Error;
///
/// fn advice(error: &Error) -> String {
///     match error {
///         Error::Timeout(timeout) => format!("held by {:?}", timeout.holders),
///         Error::OutcomeUnknown { action, .. } => format!("look whether this was done: {action}"),
///         error if error.is_transient() => format!("try again: {error}"),
///         error => error.to_string(),
///     }
/// }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Error {
    /// A value in the configuration cannot be used.
    Config {
        /// The path of the key, as in `redis.pool_size`, or the environment variable's name.
        key: String,
        /// The problem, and the right form of the value.
        problem: String,
    },
    /// No resource has this name.
    UnknownName {
        /// The name that was asked for.
        name: String,
        /// The names that exist, joined by commas.
        known: String,
    },
    /// The name belongs to a resource of another type, or with another configuration.
    NameTaken {
        /// The name that was asked for.
        name: String,
        /// Why the name cannot be had.
        problem: String,
    },
    /// `install()` was called after the global pool had come to life.
    AlreadyInstalled,
    /// No connection could be made.
    Connect(Arc<ConnectError>),
    /// A wait reached its limit.
    Timeout(Arc<TimeoutError>),
    /// A blocking wait that could never end, because only this thread can free the thing that it waits for.
    Deadlock(Arc<DeadlockError>),
    /// Some of the resources that were to be warmed up are not ready.
    WarmUp(Arc<WarmUpError>),
    /// The connection was lost and is not back yet. Either the operation has not been sent, or it may have been sent
    /// and does no harm twice. The latter is true of reads, declarations, deletions, and things that go back with the
    /// connection: fetched messages and acks. For a raw channel, the pool does not know whether it does harm.
    Lost {
        /// The resource's name.
        resource: Arc<str>,
        /// Where it is.
        endpoint: Arc<str>,
        /// The error that showed the loss.
        source: Source,
    },
    /// The server answered with an error, or the driver refused.
    Operation {
        /// The resource's name.
        resource: Arc<str>,
        /// The operation that was tried.
        action: String,
        /// The driver's error.
        source: Source,
    },
    /// The operation was sent and changes something, and no answer tells whether the server took it. Trying again may
    /// do it twice.
    OutcomeUnknown {
        /// The resource's name.
        resource: Arc<str>,
        /// The operation that was tried.
        action: String,
        /// The error that kept the answer from coming.
        source: Source,
    },
    /// The pool or resource is closing; nothing new is leased or connected.
    Closing {
        /// The resource's name.
        resource: Arc<str>,
    },
    /// The pool or resource is closed. `reconnect(name)` or `reopen()` opens it again.
    Closed {
        /// The resource's name.
        resource: Arc<str>,
    },
    /// A blocking call would have had to wait on a thread that runs a current-thread runtime.
    InAsyncContext {
        /// The resource's name.
        resource: Arc<str>,
    },
    /// This process was forked from the one that owns the pool.
    Forked,
    /// The order of closing cannot be met.
    Order(String),
    /// A future or closure of the user's panicked.
    Panicked {
        /// Which code it was.
        what: String,
        /// The panic's message.
        message: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let f = &mut OneLine(f);
        match self {
            Error::Config { key, problem } => write!(f, "configuration: {key}: {problem}"),
            Error::UnknownName { name, known } => write!(
                f,
                "no resource is named {name:?}; the names here are {known}. Configure it with `builder().named(..)`, \
                 `[named.KIND.NAME]` in TOML, or a `*_with` call, \
                 and a kind of your own with `builder().kind::<…>()`"
            ),
            Error::NameTaken { name, problem } => write!(f, "{name:?} is taken: {problem}"),
            Error::AlreadyInstalled => f.write_str(
                "a global pool exists already; call `install()` before the first `global()`, or write \
                     `#[resource_pool::main(builder = …)]`",
            ),
            Error::Connect(error) => write!(f, "{error}"),
            Error::Timeout(error) => write!(f, "{error}"),
            Error::Deadlock(error) => write!(f, "{error}"),
            Error::WarmUp(error) => write!(f, "{error}"),
            Error::Lost { resource, endpoint, source } => {
                write!(f, "{}: connection lost: {}", At(resource, endpoint), Chain(&**source))
            }
            Error::Operation { resource, action, source } => write!(f, "{resource}: {action}: {}", Chain(&**source)),
            Error::OutcomeUnknown { resource, action, source } => {
                write!(f, "{resource}: {action}: the outcome is unknown: {}", Chain(&**source))
            }
            Error::Closing { resource } => write!(f, "{resource} is closing"),
            Error::Closed { resource } => write!(
                f,
                "{resource} is closed; `reconnect({resource:?})` or, after `close_all`, `reopen()` opens it again"
            ),
            Error::InAsyncContext { resource } => write!(
                f,
                "{resource}: a blocking acquire cannot wait on a current-thread runtime; use the async facade or \
                 `spawn_blocking`"
            ),
            Error::Forked => f.write_str(
                "this process was forked from the one that owns the pool, whose threads are not here; fork before \
                 the first use, or exec",
            ),
            Error::Order(problem) => write!(f, "close order: {problem}"),
            Error::Panicked { what, message } => write!(f, "{what} panicked: {message}"),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Error::Connect(error) => error.source(),
            Error::Timeout(error) => error.source(),
            Error::WarmUp(error) => error.source(),
            Error::Lost { source, .. } | Error::Operation { source, .. } | Error::OutcomeUnknown { source, .. } => {
                drivers(source)
            }
            _ => None,
        }
    }
}

/// The details of a connect that failed: the endpoint, the attempts, their time, and the driver's error.
#[derive(Debug)]
#[non_exhaustive]
pub struct ConnectError {
    /// The resource's name.
    pub resource: Arc<str>,
    /// The place where it was looked for, without credentials.
    pub endpoint: Arc<str>,
    /// How many attempts were made. Zero if the process lacks the threads to make one.
    pub attempts: usize,
    /// The time from the first attempt to giving up.
    pub elapsed: Duration,
    /// Whether trying again cannot help, as with a wrong password or address.
    pub permanent: bool,
    /// The remedy, if one is known: the key of the configuration, or the variable, that may help.
    pub remedy: Option<Arc<str>>,
    /// The error of the last attempt that the budget did not cut short.
    pub source: Source,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let f = &mut OneLine(f);
        let Self { resource, endpoint, attempts, elapsed, source, remedy, .. } = self;
        let times = if *attempts == 1 { "attempt" } else { "attempts" };
        let source = Chain(&**source);
        if *attempts == 0 {
            return write!(f, "{resource}: not connected: {source}");
        }
        write!(f, "{resource}: no connection")?;
        if !endpoint.is_empty() {
            write!(f, " to {endpoint}")?;
        }
        write!(f, " after {attempts} {times} in {elapsed:.1?}: {source}")?;
        remedy.as_ref().map_or(Ok(()), |remedy| write!(f, "; {remedy}"))
    }
}

impl StdError for ConnectError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        drivers(&self.source)
    }
}

/// The details of a wait that reached its limit: the thing waited for, and its holders.
#[derive(Debug)]
#[non_exhaustive]
pub struct TimeoutError {
    /// The resource's name.
    pub resource: Arc<str>,
    /// Where it is.
    pub endpoint: Arc<str>,
    /// The thing that was waited for: "connecting", "a free connection", "a confirm".
    pub waiting_for: String,
    /// How long the wait took.
    pub waited: Duration,
    /// The holders of it at that moment.
    pub holders: Vec<Holder>,
    /// All who waited for one another at that moment, beginning with the one who got this error. Each of them holds a
    /// thing that another one waits for. Empty if one of the holders does not wait, because that one can go on.
    pub cycle: Vec<Waiter>,
    /// The last error seen during the wait.
    pub source: Option<Source>,
}

impl TimeoutError {
    /// A timeout without known holders, cycle or cause.
    pub fn new(resource: &Arc<str>, endpoint: &Arc<str>, waiting_for: impl Into<String>, waited: Duration) -> Self {
        TimeoutError {
            resource: Arc::clone(resource),
            endpoint: Arc::clone(endpoint),
            waiting_for: waiting_for.into(),
            waited,
            holders: Vec::new(),
            cycle: Vec::new(),
            source: None,
        }
    }
}

impl fmt::Display for TimeoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let f = &mut OneLine(f);
        let Self { resource, endpoint, waiting_for, waited, holders, cycle, source } = self;
        write!(f, "{}: waited {waited:.1?} for {waiting_for}", At(resource, endpoint))?;
        if !holders.is_empty() {
            write!(f, "; held by {}", FirstFew(holders, ", "))?;
        }
        match &cycle[..] {
            [] => {}
            [me, others @ ..] if others.iter().all(|other| other.owner == me.owner) => {
                write!(f, "; {} itself holds them all", me.owner)?;
            }
            cycle => write!(f, "; deadlock: {}", FirstFew(cycle, "; "))?,
        }
        match source {
            Some(source) => write!(f, "; last error: {}", Chain(&**source)),
            None => Ok(()),
        }
    }
}

impl StdError for TimeoutError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        drivers(self.source.as_ref()?)
    }
}

/// A resource and where it is, if that is known.
struct At<'a>(&'a str, &'a str);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let At(resource, endpoint) = self;
        if endpoint.is_empty() { f.write_str(resource) } else { write!(f, "{resource} at {endpoint}") }
    }
}

/// A task or thread that waits, and the things it holds that others wait for.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Waiter {
    /// The task or thread that waits.
    #[cfg_attr(feature = "serde", serde(serialize_with = "json::text"))]
    pub owner: Owner,
    /// The things that it holds and somebody waits for.
    pub holds: Vec<Holder>,
    /// The resource that it waits for.
    pub resource: Arc<str>,
    /// The thing of that resource that it waits for.
    #[cfg_attr(feature = "serde", serde(serialize_with = "json::line"))]
    pub waiting_for: String,
    /// The line of source that waits.
    #[cfg_attr(feature = "serde", serde(serialize_with = "json::text"))]
    pub site: &'static Location<'static>,
    /// How long it has waited.
    #[cfg_attr(feature = "serde", serde(rename = "waited_ms", serialize_with = "json::millis"))]
    pub waited: Duration,
}

impl fmt::Display for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let f = &mut OneLine(f);
        let Self { owner, holds, resource, waiting_for, site, .. } = self;
        write!(f, "{owner} ")?;
        if let [first, more @ ..] = &holds[..] {
            write!(f, "holds {} ({})", first.resource, first.site)?;
            if !more.is_empty() {
                write!(f, ", {} more,", more.len())?;
            }
            f.write_str(" and ")?;
        }
        write!(f, "waits for {waiting_for} of {resource} ({site})")
    }
}

/// The details of a blocking wait that could never end: the thing waited for, and the lines by which this thread has
/// lent all of it to closures. Those closures cannot end before the wait does.
#[derive(Debug)]
#[non_exhaustive]
pub struct DeadlockError {
    /// The resource's name.
    pub resource: Arc<str>,
    /// The thing that was waited for.
    pub waiting_for: String,
    /// The line of source that would have waited.
    pub site: &'static Location<'static>,
    /// The checkouts that were lent.
    pub holders: Vec<Holder>,
    /// The option that allows more of them.
    pub option: &'static str,
}

impl fmt::Display for DeadlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let f = &mut OneLine(f);
        let Self { resource, waiting_for, site, holders, option } = self;
        write!(
            f,
            "{resource}: {site} would wait for ever for {waiting_for}, which this thread itself has all lent to closures: \
             {}; use what was lent, or raise `{option}`",
            FirstFew(holders, ", ")
        )
    }
}

impl StdError for DeadlockError {}

impl Error {
    /// Whether the same call may succeed later. It may after losses, timeouts and failed connects, unless the failure
    /// was permanent (a wrong password, a bad address).
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Connect(error) => !error.permanent,
            Error::WarmUp(error) => error.failed.iter().all(|(_, error)| error.is_transient()),
            Error::Timeout(_) | Error::Lost { .. } => true,
            _ => false,
        }
    }

    /// The pool's own error behind a driver's. Some calls can only answer a driver's error: those through the client
    /// that a ClickHouse lease derefs to, Redis commands, statements of kinds over sqlx, and calls on a raw RabbitMQ channel.
    pub fn behind<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Error> {
        causes(error).find_map(|cause| cause.downcast_ref())
    }

    /// The word for its sort as data.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Error::Config { .. } => "config",
            Error::UnknownName { .. } => "unknown_name",
            Error::NameTaken { .. } => "name_taken",
            Error::AlreadyInstalled => "already_installed",
            Error::Connect(_) => "connect",
            Error::Timeout(_) => "timeout",
            Error::Deadlock(_) => "deadlock",
            Error::WarmUp(_) => "warm_up",
            Error::Lost { .. } => "lost",
            Error::Operation { .. } => "operation",
            Error::OutcomeUnknown { .. } => "outcome_unknown",
            Error::Closing { .. } => "closing",
            Error::Closed { .. } => "closed",
            Error::InAsyncContext { .. } => "in_async_context",
            Error::Forked => "forked",
            Error::Order(_) => "order",
            Error::Panicked { .. } => "panicked",
        }
    }

    /// Whether the pool or the resource is closing or closed.
    pub fn is_closed(&self) -> bool {
        matches!(self, Error::Closing { .. } | Error::Closed { .. })
    }

    /// [`Error::Closing`] of this resource.
    pub fn closing(resource: &Arc<str>) -> Self {
        Error::Closing { resource: Arc::clone(resource) }
    }

    /// [`Error::Closed`] of this resource.
    pub fn closed(resource: &Arc<str>) -> Self {
        Error::Closed { resource: Arc::clone(resource) }
    }

    /// The error of a process that can have no more threads. The pool needs some before it connects anything.
    pub(crate) fn no_threads(resource: &Arc<str>, error: io::Error) -> Self {
        let problem = format!(
            "this process cannot start the threads that the pool needs ({error}); raise its limit, which is `ulimit -u`, \
             `TasksMax` of a systemd unit, or `pids.max` of a container"
        );
        Error::Connect(Arc::new(ConnectError {
            resource: Arc::clone(resource),
            endpoint: Arc::from(""),
            attempts: 0,
            elapsed: Duration::ZERO,
            permanent: false,
            remedy: None,
            source: BoxError::from(problem).into(),
        }))
    }

    /// [`Error::Config`] of this key. The problem is what the key "has", "is" or "says".
    ///
    /// ```
    /// use resource_pool::Error;
    ///
    /// let error = Error::config("lines.port", "is not a port, from 1 to 65535");
    /// assert_eq!(error.to_string(), "configuration: lines.port: is not a port, from 1 to 65535");
    /// ```
    pub fn config(key: impl Into<String>, problem: impl fmt::Display) -> Self {
        Error::Config { key: OneLine(key.into()).to_string(), problem: OneLine(problem).to_string() }
    }
}

/// The cause of a loss that a user asked for.
#[derive(Debug)]
pub(crate) struct ReconnectAsked;

impl fmt::Display for ReconnectAsked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a reconnect was asked for")
    }
}

impl StdError for ReconnectAsked {}

/// The failure of a ping that got no answer within this time.
#[derive(Debug)]
pub(crate) struct NoAnswer(pub(crate) Duration);

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no answer to a ping within {:.1?}", self.0)
    }
}

impl StdError for NoAnswer {}

/// The driver's error within an error of the pool's. The pool's own errors are passed over, because the message of the
/// error that is asked for its source contains theirs already.
fn drivers(source: &Source) -> Option<&(dyn StdError + 'static)> {
    causes(&**source).find(|cause| !cause.is::<Error>() && !cause.is::<Worded>())
}
