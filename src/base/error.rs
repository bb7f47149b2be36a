//! What can go wrong, said once for both facades.

use std::error::Error as StdError;
use std::fmt::{self, Write as _};
use std::io;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use crate::base::holder::Holder;
use crate::base::owner::Owner;

/// Any error, boxed: what a [`Resource`](crate::Resource) may fail with.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// A driver's error, shared by all who waited for the same attempt.
pub type Source = Arc<dyn StdError + Send + Sync>;

/// Everything that acquiring, checking or closing a resource can answer.
///
/// Errors name the resource and its endpoint, never a password. Cloning is cheap: single-flight
/// connecting hands one failure to every waiter.
///
/// A message has the driver's in it, and those of its causes, each once, so that one line tells all. The driver's error
/// itself is the [`source`](StdError::source), to be downcast to the driver's type.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Error {
    /// A value in the configuration cannot be used.
    Config {
        /// The path of the key, as in `redis.pool_size`, or the environment variable's name.
        key: String,
        /// What is wrong and what would be right.
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
        /// What it is taken by.
        problem: String,
    },
    /// `install()` was called after the global pool had come to life.
    AlreadyInstalled,
    /// No connection could be made.
    Connect(Arc<ConnectError>),
    /// A wait reached its limit.
    Timeout(Arc<TimeoutError>),
    /// A blocking wait that could never end: this thread alone can free what it waits for.
    Deadlock(Arc<DeadlockError>),
    /// The connection was lost and is not back yet. What was to be done has not been sent; or it may
    /// have been, and does no harm twice: what only reads, declares, deletes, or is taken back with the
    /// connection, as a fetched message and an ack. Of what was sent through a raw channel nothing is known.
    Lost {
        /// The resource's name.
        resource: Arc<str>,
        /// Where it is.
        endpoint: Arc<str>,
        /// What showed the loss.
        source: Source,
    },
    /// The server answered, with an error, or the driver refused.
    Operation {
        /// The resource's name.
        resource: Arc<str>,
        /// What was tried.
        action: String,
        /// The driver's error.
        source: Source,
    },
    /// It was sent, changes something, and no answer tells whether the server took it. Trying again may
    /// do it twice.
    OutcomeUnknown {
        /// The resource's name.
        resource: Arc<str>,
        /// What was tried.
        action: String,
        /// Why no answer came.
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
    /// A blocking acquire would have had to wait on a thread that drives async tasks.
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
                 `[named.KIND.NAME]` in TOML, or a `*_with` call"
            ),
            Error::NameTaken { name, problem } => write!(f, "{name:?} is taken: {problem}"),
            Error::AlreadyInstalled => {
                f.write_str("a global pool exists already; call `install()` before the first `global()`")
            }
            Error::Connect(error) => write!(f, "{error}"),
            Error::Timeout(error) => write!(f, "{error}"),
            Error::Deadlock(error) => write!(f, "{error}"),
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
            Error::Lost { source, .. } | Error::Operation { source, .. } | Error::OutcomeUnknown { source, .. } => {
                drivers(source)
            }
            _ => None,
        }
    }
}

/// No connection could be made: what was tried, how often, how long, and what the driver said.
#[derive(Debug)]
#[non_exhaustive]
pub struct ConnectError {
    /// The resource's name.
    pub resource: Arc<str>,
    /// Where it was looked for, without credentials.
    pub endpoint: Arc<str>,
    /// How many attempts were made. None is where the process lacks the threads to make one.
    pub attempts: usize,
    /// From the first attempt to giving up.
    pub elapsed: Duration,
    /// Whether trying again cannot help: a wrong password or address.
    pub permanent: bool,
    /// What may help, where that is known: by which key of the configuration, or which variable.
    pub remedy: Option<Arc<str>>,
    /// The error of the last attempt that had its time.
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

/// What may help where nobody listens, and where the server knows no such user and password.
#[derive(Debug, Clone)]
pub(crate) struct Remedies {
    pub(crate) nobody: Arc<str>,
    pub(crate) login: Arc<str>,
}

impl Remedies {
    /// The one for this error, if there is one. The drivers have no type in common, but their words.
    pub(crate) fn of(&self, source: &Source, permanent: bool) -> Option<Arc<str>> {
        const LOGIN: [&str; 10] = [
            "WRONGPASS",
            "NOAUTH",
            "Password authentication failed",
            "ACCESS_REFUSED",
            "SCRAM failure",
            "Authentication failed",
            "Code: 516",
            "Code: 192",
            "Code: 193",
            "Code: 194",
        ];
        let told = Chain(&**source).to_string();
        if told.contains("Connection refused") {
            Some(Arc::clone(&self.nobody))
        } else if permanent && LOGIN.iter().any(|words| told.contains(words)) {
            Some(Arc::clone(&self.login))
        } else {
            None
        }
    }
}

/// A wait reached its limit: what it was waiting for, and who had it.
#[derive(Debug)]
#[non_exhaustive]
pub struct TimeoutError {
    /// The resource's name.
    pub resource: Arc<str>,
    /// Where it is.
    pub endpoint: Arc<str>,
    /// What was waited for: "connecting", "a free connection", "a confirm".
    pub waiting_for: String,
    /// How long.
    pub waited: Duration,
    /// Who held it at that moment.
    pub holders: Vec<Holder>,
    /// All who waited for one another at that moment, whoever got this error first: each of them
    /// holds what another one waits for. Empty if anybody could go on.
    pub cycle: Vec<Waiter>,
    /// The last error seen meanwhile.
    pub source: Option<Source>,
}

impl fmt::Display for TimeoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let f = &mut OneLine(f);
        let Self { resource, endpoint, waiting_for, waited, holders, cycle, source } = self;
        write!(f, "{}: waited {waited:.1?} for {waiting_for}", At(resource, endpoint))?;
        if !holders.is_empty() {
            write!(f, "; held by {}", Few(holders, ", "))?;
        }
        match &cycle[..] {
            [] => {}
            [me, others @ ..] if others.iter().all(|other| other.owner == me.owner) => {
                write!(f, "; {} itself holds them all", me.owner)?;
            }
            cycle => write!(f, "; deadlock: {}", Few(cycle, "; "))?,
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

/// Somebody who waits, and what of that which others wait for they hold.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Waiter {
    /// The task or thread.
    pub owner: Owner,
    /// What it holds and somebody waits for.
    pub holds: Vec<Holder>,
    /// The resource that it waits for.
    pub resource: Arc<str>,
    /// What of it.
    pub waiting_for: String,
    /// The line that waits.
    pub site: &'static Location<'static>,
    /// For how long.
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

/// The first few on one line, with this between them.
pub(crate) struct Few<'a, T>(pub(crate) &'a [T], pub(crate) &'static str);

impl<T: fmt::Display> fmt::Display for Few<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const FEW: usize = 5;
        let Few(all, between) = self;
        for (n, one) in all.iter().take(FEW).enumerate() {
            write!(f, "{}{one}", if n == 0 { "" } else { between })?;
        }
        match all.len().checked_sub(FEW) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, "{between}and {more} more"),
        }
    }
}

/// A blocking wait that could never end: what was waited for, and by which lines this thread has
/// lent it to closures that cannot end before the wait does.
#[derive(Debug)]
#[non_exhaustive]
pub struct DeadlockError {
    /// The resource's name.
    pub resource: Arc<str>,
    /// What was waited for.
    pub waiting_for: String,
    /// The line that would have waited.
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
            Few(holders, ", ")
        )
    }
}

impl StdError for DeadlockError {}

impl Error {
    /// Whether the same call may succeed later: losses, timeouts and failed connects, unless the
    /// failure was permanent (a wrong password, a bad address).
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Connect(error) => !error.permanent,
            Error::Timeout(_) | Error::Lost { .. } => true,
            _ => false,
        }
    }

    /// The pool's own error behind a driver's, where the driver's was the only one that could be
    /// answered: through the client that a ClickHouse lease derefs to, and through Redis commands.
    pub fn behind<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Error> {
        causes(error).find_map(|cause| cause.downcast_ref())
    }

    /// Whether the pool or the resource is closing or closed.
    pub fn is_closed(&self) -> bool {
        matches!(self, Error::Closing { .. } | Error::Closed { .. })
    }

    /// The process can have no more threads, and the pool needs some before it connects anything.
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

    pub(crate) fn config(key: impl Into<String>, problem: impl fmt::Display) -> Self {
        Error::Config { key: OneLine(key.into()).to_string(), problem: OneLine(problem).to_string() }
    }
}

/// What a [`Resource`](crate::Resource) answers when it cannot connect, ping or close: the error,
/// whether trying again can help, and what a failed ping proves about the server.
#[derive(Debug)]
pub struct Failure {
    pub(crate) source: BoxError,
    pub(crate) permanent: bool,
    pub(crate) proof: Proof,
}

/// What a ping that failed proves about its server.
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

impl Failure {
    /// A failure that no further attempt can mend, as a wrong password: connecting gives up at once.
    pub fn permanent(source: impl Into<BoxError>) -> Self {
        Failure { permanent: true, ..Failure::transient(source) }
    }

    /// A failure that may pass: connecting tries again within its budget. For a ping it means that the server did not
    /// answer, and several in a row cut the connection.
    pub fn transient(source: impl Into<BoxError>) -> Self {
        Failure { source: source.into(), permanent: false, proof: Proof::Silent }
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

    /// What this failed ping proves. Trouble of this process proves nothing about a server, whatever the resource says.
    pub(crate) fn proof(&self) -> Proof {
        if is_own_trouble(&*self.source) { Proof::Unasked } else { self.proof }
    }
}

/// The cause of a loss that is a user's wish.
#[derive(Debug)]
pub(crate) struct ReconnectAsked;

impl fmt::Display for ReconnectAsked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a reconnect was asked for")
    }
}

impl StdError for ReconnectAsked {}

/// Whether this process lacked descriptors, memory, ports or room in its network stack.
pub(crate) fn is_own_trouble(error: &(dyn StdError + 'static)) -> bool {
    const LACKS: [i32; 5] = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS, libc::EADDRNOTAVAIL];
    causes(error).any(|cause| {
        let code = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        code.is_some_and(|code| LACKS.contains(&code))
    })
}

/// The error and its causes, also those that shared errors and `io::Error` do not name as such.
pub(crate) fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| cause(*error))
}

fn cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    if let Some(shared) = error.downcast_ref::<Source>() {
        return Some(&**shared);
    }
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

/// The driver's error in an error of ours. What ours say themselves is passed over: the message that is asked for its
/// source has it already.
fn drivers(source: &Source) -> Option<&(dyn StdError + 'static)> {
    causes(&**source).find(|cause| !cause.is::<Error>() && !cause.is::<Worded>())
}

/// A driver's error in words of ours, which stand for all that it and its causes say.
#[derive(Debug)]
pub(crate) struct Worded {
    text: String,
    source: BoxError,
}

impl Worded {
    pub(crate) fn new(text: String, source: impl Into<BoxError>) -> Self {
        Worded { text, source: source.into() }
    }
}

impl fmt::Display for Worded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Worded {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.source)
    }
}

/// An error's text with those of its causes, each once: a driver may leave the cause out of its text, or put it in.
pub(crate) struct Chain<'a>(pub(crate) &'a (dyn StdError + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut told = String::new();
        for cause in causes(self.0) {
            let text = cause.to_string();
            if !told.contains(&text) {
                let between = if told.is_empty() { "" } else { ": " };
                told.extend([between, &text]);
            }
            if cause.is::<Worded>() {
                break;
            }
        }
        OneLine(told).fmt(f)
    }
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

/// The message that a panic carried.
pub(crate) fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .map_or_else(|| "(no message)".to_owned(), |message| OneLine(message).to_string())
}

/// A text, or what a text is written to, without line breaks and other control characters, whoever made the text: a
/// space is in their place. All that the pool says of servers, names and panics goes through this.
pub(crate) struct OneLine<T>(pub(crate) T);

impl<T: fmt::Display> fmt::Display for OneLine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(OneLine(f), "{}", self.0)
    }
}

impl<W: fmt::Write> fmt::Write for OneLine<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (n, piece) in text.split(breaks).enumerate() {
            if n > 0 {
                self.0.write_char(' ')?;
            }
            self.0.write_str(piece)?;
        }
        Ok(())
    }
}

/// Whether a terminal or a log would do something else than show it.
pub(crate) fn breaks(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

/// The error itself; or a note in its place, if `told` it was by the server and the server told a secret.
///
/// What the driver says by itself is left alone: it has no secret in it, and to look for one would show which
/// words of it are one. That it has none is what the fuzzer proves. Nor does a server tell a secret where it says one of
/// these names, which are public, though the secret may be a part of it: `user 'guest'`.
pub(crate) fn redacted(error: impl Into<BoxError>, told: bool, secrets: &[&str], names: &[&str]) -> BoxError {
    let error = error.into();
    if !told {
        return error;
    }
    let said: Vec<_> = std::iter::once(format!("{error:?}")).chain(causes(&*error).map(ToString::to_string)).collect();
    let has = |secret: &str| match &*plain(secret) {
        // Nothing but quotes.
        "" => said.iter().skip(1).any(|text| text.contains(secret)),
        bare => {
            let names: Vec<_> = names.iter().filter(|name| name.contains(secret)).map(|name| plain(name)).collect();
            said.iter().any(|text| is_told(&plain(text), bare, &names))
        }
    };
    if secrets.iter().filter(|secret| !secret.is_empty()).any(|secret| has(secret)) { WITHHELD.into() } else { error }
}

/// Whether a text has the secret anywhere but within these names.
fn is_told(text: &str, secret: &str, names: &[String]) -> bool {
    let is_named = |at: usize| {
        names.iter().any(|name| {
            let mut begins = places(name, secret).filter_map(|within| text.get(at.checked_sub(within)?..));
            begins.any(|text| text.starts_with(&**name))
        })
    };
    places(text, secret).any(|at| !is_named(at))
}

/// Where a part is in a text.
fn places(text: &str, part: &str) -> impl Iterator<Item = usize> {
    text.char_indices().map(|(at, _)| at).filter(move |at| text[*at..].starts_with(part))
}

/// Instead of what a server said with a password in it. To blank out only the password would tell it, where it is a
/// word of a well-known message.
const WITHHELD: &str = "an error whose text is withheld, for it has the password in it; the server's log may tell more";

/// Without what quoting, escaping and percent-encoding add to a text, and servers take from it.
fn plain(text: &str) -> String {
    let text = percent_encoding::percent_decode_str(text).decode_utf8_lossy();
    text.replace(['\\', '"', '\''], "").replace(char::is_control, " ")
}
