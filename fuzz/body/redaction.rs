//! Checks that no output has a secret in it. The output of a pool must not depend on the password at all. With any two
//! passwords it is the same, except for times. So the check finds even a password like `a`.
//!
//! The log is behind one lock, `LOG`. The subscriber takes it for each write, from any thread, and the check takes it
//! to clear or read the log. It is held only for that.

use std::collections::BTreeSet;
use std::error::Error;
use std::io::Write;
use std::sync::{LazyLock, Mutex, MutexGuard};
use std::time::Duration;

use arbitrary::Arbitrary;
use resource_pool::ResourcePool;
use tracing_subscriber::fmt::MakeWriter;

use super::RUNTIME;
use super::config::Way;
use super::input::{KINDS, Pick, Text, encoded, scheme};
use super::recorder::{ECHO, Login, RUDE};

#[derive(Arbitrary, Debug)]
pub struct Case {
    kind: Pick,
    way: Way,
    user: Text,
    secret: Secret,
    /// Whether the URL has the password as it is, instead of percent-encoded.
    raw: bool,
    database: Text,
    server: Server,
}

#[derive(Arbitrary, Debug)]
enum Secret {
    Text(Text),
    /// A word that public output has anyway.
    Public(Pick),
    /// A part of such a word.
    Within(Pick, u8, u8),
}

const PUBLIC: [&str; 24] = [
    "Connection refused",
    "refused",
    "os error 111",
    "127.0.0.1",
    "localhost",
    "resource-pool",
    "redis",
    "mongodb",
    "amqp://",
    "clickhouse",
    "default",
    "None",
    "***",
    "invalid",
    "authentication",
    "password",
    "unexpected end of file",
    "connecting",
    "percent-encoded",
    "Code: 516",
    "ACCESS_REFUSED",
    "unknown command",
    "withheld",
    "Some(",
];

#[derive(Arbitrary, Debug, Clone, Copy, PartialEq)]
enum Server {
    /// The pool connects to nothing.
    Untried,
    /// The port refuses connections.
    Nobody,
    /// The server hangs up on the first word.
    Rude,
    /// The server answers with an error that has the password in it.
    Echo,
}

/// The password that all others are compared with.
const REFERENCE: &str = "Zq7xKw3v";
/// Passwords that break a URL unless they are percent-encoded, each in its own way.
const BREAKING: [&str; 16] =
    [REFERENCE, "\u{1}", "\0", "%00", "%ff", "%", "/", "?", "#", "@", ":", "\\", "[", "]", " ", "\u{e9}"];
/// Passwords that not every protocol can send.
const UNSPEAKABLE: [&str; 3] = [REFERENCE, "\u{1}", "\0"];
/// Times and threads make the output differ now and then, so the check repeats.
const ROUNDS: usize = 8;

struct Said {
    texts: Vec<String>,
    log: BTreeSet<String>,
}

pub fn check(case: &Case) {
    let secret = case.secret();
    if secret.is_empty() || secret.len() > 100 || case.says_back_a_name(&secret) {
        return;
    }
    let others: &[&str] = if case.is_raw() { &BREAKING } else { &UNSPEAKABLE };
    let mut known = Vec::new();
    let mut logged = BTreeSet::new();
    let mut unexplained = None;
    let mut last = Vec::new();
    for _ in 0..ROUNDS {
        let said = case.said(&secret);
        for other in others {
            let theirs = case.said(other);
            logged.extend(theirs.log);
            known.push(theirs.texts);
            // The further passwords are only for differences that the first does not explain.
            if known.contains(&said.texts) && said.log.is_subset(&logged) {
                break;
            }
        }
        // A late line of another case does not appear twice.
        let new: BTreeSet<_> = said.log.difference(&logged).cloned().collect();
        let left = match unexplained.take() {
            Some(before) => &before & &new,
            None => new,
        };
        if known.contains(&said.texts) && left.is_empty() {
            return;
        }
        unexplained = Some(left);
        last = said.texts;
    }
    let index = (0..last.len()).find(|n| known.iter().all(|known| known.get(*n) != last.get(*n))).unwrap_or(0);
    panic!(
        "what is said depends on the password {secret:?}, as with {:?}\nsaid: {:#?}\nwith another: {:#?}\nlogged: {:#?}",
        others[0],
        last.get(index),
        known.iter().map(|known| known.get(index)).collect::<BTreeSet<_>>(),
        unexplained.unwrap_or_default(),
    );
}

impl Case {
    fn secret(&self) -> String {
        match &self.secret {
            Secret::Text(text) => text.show(),
            Secret::Public(word) => (*word.of(&PUBLIC)).to_owned(),
            Secret::Within(word, from, length) => {
                let word = word.of(&PUBLIC);
                let from = usize::from(*from) % word.len();
                word.chars().skip(from).take(usize::from(*length) % 4 + 1).collect()
            }
        }
    }

    /// Whether the server answers with a name that equals the password. Then nobody knows which of the two it repeats.
    /// An empty path of RabbitMQ is the virtual host `/`, and ClickHouse has default names.
    fn says_back_a_name(&self, secret: &str) -> bool {
        self.server == Server::Echo && [&*self.user.show(), &*self.database.show(), "/", "default"].contains(&secret)
    }

    fn is_raw(&self) -> bool {
        self.raw && matches!(self.way, Way::CodeUrl | Way::EnvironmentUrl | Way::TomlUrl)
    }

    fn said(&self, secret: &str) -> Said {
        let kind = *self.kind.of(&KINDS);
        let (user, database) = (self.user.show(), self.database.show());
        let port = match self.server {
            Server::Untried | Server::Nobody => 1,
            Server::Rude => *RUDE,
            // MongoDB's driver sends no password, so a server cannot repeat it.
            Server::Echo if kind == "mongo" => *RUDE,
            Server::Echo => *ECHO,
        };
        let password = if self.is_raw() { secret.to_owned() } else { encoded(secret) };
        let url = format!("{}{}:{password}@127.0.0.1:{port}/{}", scheme(kind), encoded(&user), encoded(&database));
        let login = Login { user, password: secret.to_owned(), database };
        let (builder, _file) = self.way.builder_at(kind, "127.0.0.1", port, &login, &url);
        let log = Log::begin();
        let mut texts = vec![format!("{builder:?} {builder:#?}")];
        match builder.build() {
            Err(error) => tell(&error, &mut texts),
            Ok(pool) => all_that_it_says(&pool, kind, self.server != Server::Untried, &mut texts),
        }
        let mut log = log.lines();
        if self.server == Server::Echo {
            // The pool cannot change the lines that a driver itself logs about a server's answer. The second word of a
            // line is its target.
            log.retain(|line| {
                line.split_whitespace().nth(1).is_some_and(|target| target.starts_with("resource_pool::"))
            });
        }
        Said { texts: texts.iter().map(|text| masked(text)).collect(), log }
    }
}

fn all_that_it_says(pool: &ResourcePool, kind: &str, connect: bool, texts: &mut Vec<String>) {
    texts.push(format!("{pool:?} {pool:#?}"));
    if connect {
        // Only this resource connects. The other resources may name other people's servers.
        let (_, result) = RUNTIME.block_on(pool.within(Duration::from_secs(20)).warm_up([kind])).remove(0);
        match result {
            Ok(()) => texts.push("connected".to_owned()),
            Err(error) => tell(&error, texts),
        }
    }
    let status = pool.status();
    texts.push(format!("{status} {status:?} {:?}", pool.holders()));
    if let Some(error) = status.resource(kind).and_then(|resource| resource.error.as_ref()) {
        tell(error, texts);
    }
    let health = RUNTIME.block_on(pool.health_check());
    texts.push(format!("{health} {health:?}"));
    let report = RUNTIME.block_on(pool.close_all_within(Duration::from_secs(2)));
    texts.push(format!("{report} {report:?}"));
    let (_, result) = RUNTIME.block_on(pool.warm_up([kind])).remove(0);
    tell(&result.expect_err("it is closed"), texts);
}

fn tell(error: &resource_pool::Error, texts: &mut Vec<String>) {
    texts.push(format!("{error} {error:#} {error:?} {error:#?}"));
    let mut cause = error.source();
    while let Some(error) = cause {
        texts.push(format!("{error} {error:#} {error:?} {error:#?}"));
        cause = error.source();
    }
}

/// The text without the parts that differ each time: durations, points in time, and the width of their columns.
fn masked(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let after = &rest[digits..];
        let unit = ["ns", "\u{b5}s", "ms", "s"].iter().find(|unit| {
            after.strip_prefix(**unit).is_some_and(|after| !after.starts_with(|c: char| c.is_alphanumeric()))
        });
        let is_instant = masked.ends_with("tv_sec: ") || masked.ends_with("tv_nsec: ");
        match unit {
            _ if digits == 0 => {
                if !(c == ' ' && masked.ends_with(' ')) {
                    masked.push(c);
                }
                rest = &rest[c.len_utf8()..];
            }
            Some(unit) => {
                masked.push_str("<time>");
                rest = &after[unit.len()..];
            }
            None => {
                masked.push_str(if is_instant { "<time>" } else { &rest[..digits] });
                rest = after;
            }
        }
    }
    masked
}

/// Everything that any crate logs at TRACE.
struct Log;

static LOG: LazyLock<Mutex<Vec<u8>>> = LazyLock::new(|| {
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .without_time()
        .with_writer(Writer)
        .finish();
    // Another subscriber would hide the lines that this checks.
    tracing::subscriber::set_global_default(subscriber).expect("the only subscriber");
    Mutex::default()
});

impl Log {
    fn begin() -> Self {
        Log::bytes().clear();
        Log
    }

    fn lines(self) -> BTreeSet<String> {
        let bytes = std::mem::take(&mut *Log::bytes());
        String::from_utf8_lossy(&bytes).lines().map(masked).collect()
    }

    fn bytes() -> MutexGuard<'static, Vec<u8>> {
        LOG.lock().expect("no panic")
    }
}

struct Writer;

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Log::bytes().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Writer {
    type Writer = Writer;
    fn make_writer(&self) -> Writer {
        Writer
    }
}
