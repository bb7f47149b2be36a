//! Classes of commands. Commands that only read may be sent twice, blocking commands need a connection of their own,
//! and some commands are refused on the shared connection.

use std::borrow::Cow;
use std::io;
use std::sync::LazyLock;

use redis::{Cmd, ErrorKind, RedisError, RedisResult, Value};

use crate::kinds::redis::errors::Reply;
use crate::kinds::redis::packed::each_command;
use crate::lifecycle::link::Link;
use crate::lifecycle::spans::OperationSpan;

/// The effect of a command on the shared connection.
pub(super) enum CommandEffect {
    /// The connection stays as it is.
    None,
    /// The command waits, and would hold up the commands of the others.
    Blocks,
    /// The command changes the connection for the others. Holds the command's name for the error.
    Changes(String),
    /// The command turns replies off, so later commands would wait for ever.
    Silences,
}

impl CommandEffect {
    pub(super) fn of(cmd: &Cmd) -> Self {
        let mut args = cmd.args_iter().filter_map(|arg| match arg {
            redis::Arg::Simple(bytes) => Some(bytes),
            _ => None,
        });
        let Some(name) = args.next() else { return CommandEffect::None };
        let name = Capitals::of(name);
        match name.name() {
            name if is_blocking(name) => CommandEffect::Blocks,
            b"XREAD" | b"XREADGROUP" if args.any(|arg| arg.eq_ignore_ascii_case(b"BLOCK")) => CommandEffect::Blocks,
            b"MULTI" | b"EXEC" | b"DISCARD" | b"WATCH" | b"UNWATCH" | b"SELECT" | b"AUTH" | b"HELLO" | b"RESET"
            | b"QUIT" | b"MONITOR" | b"SUBSCRIBE" | b"PSUBSCRIBE" | b"SSUBSCRIBE" | b"UNSUBSCRIBE"
            | b"PUNSUBSCRIBE" | b"SUNSUBSCRIBE" | b"READONLY" | b"READWRITE" | b"ASKING" | b"WAIT" | b"WAITAOF" => {
                CommandEffect::Changes(String::from_utf8_lossy(name.name()).into_owned())
            }
            b"CLIENT" if silences(cmd) => CommandEffect::Silences,
            b"CLIENT" if !args.next().is_some_and(is_harmless) => {
                CommandEffect::Changes("this CLIENT command".to_owned())
            }
            _ => CommandEffect::None,
        }
    }
}

/// Whether the command of this name, in capitals, always waits for as long as it says itself.
fn is_blocking(name: &[u8]) -> bool {
    matches!(name, b"BLPOP" | b"BRPOP" | b"BRPOPLPUSH" | b"BLMOVE" | b"BLMPOP" | b"BZPOPMIN" | b"BZPOPMAX" | b"BZMPOP")
}

/// Whether one of these commands waits at the server for as long as it says itself.
pub(super) fn waits<'a>(commands: impl IntoIterator<Item = &'a Cmd>) -> bool {
    commands.into_iter().any(|command| match CommandEffect::of(command) {
        CommandEffect::Blocks => true,
        CommandEffect::Changes(name) => name == "WAIT" || name == "WAITAOF",
        CommandEffect::None | CommandEffect::Silences => false,
    })
}

/// Like [`waits`], for packed commands. A command that cannot be read counts as one that may wait.
pub(super) fn waits_packed(packed: &[u8]) -> bool {
    const BLOCK: &[u8] = b"$5\r\nBLOCK\r\n";
    let mut waits = false;
    let is_whole = each_command(packed, |[name, ..]| {
        waits |= match &*name.to_ascii_uppercase() {
            b"WAIT" | b"WAITAOF" => true,
            b"XREAD" | b"XREADGROUP" => packed.windows(BLOCK.len()).any(|part| part.eq_ignore_ascii_case(BLOCK)),
            name => is_blocking(name),
        };
    });
    waits || !is_whole
}

/// Whether `CLIENT` with this subcommand leaves the connection as it is.
pub(super) fn is_harmless(subcommand: &[u8]) -> bool {
    const HARMLESS: [&[u8]; 6] = [b"LIST", b"ID", b"INFO", b"SETNAME", b"GETNAME", b"KILL"];
    HARMLESS.iter().any(|known| subcommand.eq_ignore_ascii_case(known))
}

/// Whether commands get no reply after this one.
pub(super) fn silences(cmd: &Cmd) -> bool {
    let mut words = cmd.args_iter();
    let mut next = || match words.next() {
        Some(redis::Arg::Simple(word)) => word,
        _ => b"",
    };
    let name = next();
    // This runs for every command, so the arguments are read only for CLIENT.
    name.eq_ignore_ascii_case(b"CLIENT") && is_silence(next(), next())
}

/// Whether `CLIENT` with these two arguments turns replies off.
pub(super) fn is_silence(subcommand: &[u8], mode: &[u8]) -> bool {
    subcommand.eq_ignore_ascii_case(b"REPLY") && !mode.eq_ignore_ascii_case(b"ON")
}

/// The error for a command that turns replies off.
pub(super) fn silenced() -> RedisError {
    let problem = "CLIENT REPLY takes away the answers that every command waits for";
    let remedy = "send a pipeline whose answers you `ignore()`".to_owned();
    (ErrorKind::Client, problem, remedy).into()
}

/// A command's name in capitals. It is made for every command, so it allocates nothing.
struct Capitals {
    letters: [u8; Capitals::LONGEST],
    length: usize,
}

impl Capitals {
    /// No command that matters here has a longer name.
    const LONGEST: usize = 24;

    /// A name that is too long is none that matters here, and counts as empty.
    fn of(name: &[u8]) -> Self {
        let mut capitals = Capitals { letters: [0; Self::LONGEST], length: 0 };
        if let Some(letters) = capitals.letters.get_mut(..name.len()) {
            letters.copy_from_slice(name);
            letters.make_ascii_uppercase();
            capitals.length = name.len();
        }
        capitals
    }

    fn name(&self) -> &[u8] {
        self.letters.get(..self.length).unwrap_or_default()
    }
}

/// The commands that only read. Sending one of them twice does no harm.
const READS: &str = "\
    BITCOUNT BITFIELD_RO BITPOS DBSIZE DUMP ECHO EVALSHA_RO EVAL_RO EXISTS EXPIRETIME FCALL_RO GEODIST GEOHASH \
    GEOPOS GEORADIUSBYMEMBER_RO GEORADIUS_RO GEOSEARCH GET GETBIT GETRANGE HEXISTS HGET HGETALL HKEYS HLEN \
    HMGET HRANDFIELD HSCAN HSTRLEN HVALS INFO KEYS LCS LINDEX LLEN LPOS LRANGE MGET PEXPIRETIME PING PTTL \
    RANDOMKEY SCAN SCARD SDIFF SINTER SINTERCARD SISMEMBER SMEMBERS SMISMEMBER SORT_RO SRANDMEMBER SSCAN \
    STRLEN SUBSTR SUNION TIME TTL TYPE XLEN XPENDING XRANGE XREAD XREVRANGE ZCARD ZCOUNT ZDIFF ZINTER \
    ZINTERCARD ZLEXCOUNT ZMSCORE ZRANDMEMBER ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANK ZREVRANGE ZREVRANGEBYLEX \
    ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE ZUNION";

fn is_read(name: &[u8]) -> bool {
    static SORTED: LazyLock<Vec<&[u8]>> = LazyLock::new(|| {
        let mut sorted: Vec<_> = READS.split_ascii_whitespace().map(str::as_bytes).collect();
        sorted.sort_unstable();
        sorted
    });
    SORTED.binary_search(&Capitals::of(name).name()).is_ok()
}

fn name(cmd: &Cmd) -> &[u8] {
    match cmd.args_iter().next() {
        Some(redis::Arg::Simple(name)) => name,
        _ => b"",
    }
}

/// The name of the first command, for messages.
pub(super) fn first_name<'a>(commands: impl IntoIterator<Item = &'a Cmd>) -> String {
    commands.into_iter().next().map_or_else(String::new, |command| String::from_utf8_lossy(name(command)).into_owned())
}

/// Like [`first_name`], for packed commands.
pub(super) fn first_name_packed(packed: &[u8]) -> String {
    let mut first = None;
    each_command(packed, |[name, ..]| first = first.or(Some(name)));
    String::from_utf8_lossy(first.unwrap_or_default()).into_owned()
}

/// The span of these commands, if the pool traces operations. Several commands are a pipeline.
pub(super) fn operation<'a, C: Iterator<Item = &'a Cmd>>(
    link: &Link,
    commands: impl Fn() -> C,
) -> Option<OperationSpan> {
    let count = || commands().count();
    let operation = link.operation(|| operation_name(count(), first_name(commands())))?;
    Some(batch(operation, count()))
}

/// Like [`operation`], for packed commands.
pub(super) fn operation_packed(link: &Link, packed: &[u8]) -> Option<OperationSpan> {
    let count = || {
        let mut count = 0;
        each_command(packed, |_| count += 1);
        count
    };
    let operation = link.operation(|| operation_name(count(), first_name_packed(packed)))?;
    Some(batch(operation, count()))
}

/// Awaits the answer inside the span of its operation.
pub(super) async fn in_span<T: Reply>(
    operation: OperationSpan,
    sent: impl Future<Output = RedisResult<T>>,
) -> RedisResult<T> {
    let answer = operation.run(sent).await;
    note_refusal(&operation, &answer);
    answer
}

/// Records an error of the server among the replies in the span of their operation.
pub(super) fn note_refusal<T: Reply>(operation: &OperationSpan, answer: &RedisResult<T>) {
    let refusal = answer.iter().flat_map(Reply::values).find_map(|reply| match reply {
        Value::ServerError(error) => Some(error),
        _ => None,
    });
    if let Some(error) = refusal {
        operation.fail_by(Some(error.code()));
    }
}

fn operation_name(count: usize, first: String) -> Cow<'static, str> {
    if count > 1 { "PIPELINE".into() } else { first.to_ascii_uppercase().into() }
}

fn batch(operation: OperationSpan, count: usize) -> OperationSpan {
    if count > 1 { operation.batch(count) } else { operation }
}

pub(super) fn reads(cmd: &Cmd) -> bool {
    is_read(name(cmd))
}

/// The name of the first command that may change something. `None` if all of them only read.
pub(super) fn unsafe_twice<'a>(commands: impl IntoIterator<Item = &'a Cmd>) -> Option<String> {
    let mut names = commands.into_iter().map(name);
    names.find(|name| !is_read(name)).map(|name| String::from_utf8_lossy(name).into_owned())
}

/// Like [`unsafe_twice`], for packed commands. A command that cannot be read counts as one that may change something.
pub(super) fn unsafe_twice_packed(packed: &[u8]) -> Option<String> {
    let mut found = None;
    let is_whole = each_command(packed, |[name, ..]| {
        if !is_read(name) {
            found.get_or_insert_with(|| String::from_utf8_lossy(name).into_owned());
        }
    });
    found.or_else(|| (!is_whole).then(|| "a command".to_owned()))
}

/// The error for a command that is refused on the shared connection.
pub(super) fn not_shared(name: &str) -> RedisError {
    let problem = format!(
        "{name} would change the connection that others share; use `exclusive()`, or `pubsub()` for subscriptions"
    );
    io::Error::new(io::ErrorKind::InvalidInput, problem).into()
}

#[cfg(test)]
mod tests {
    use super::{CommandEffect, first_name, first_name_packed, unsafe_twice, unsafe_twice_packed, waits, waits_packed};

    fn of(words: &str) -> &'static str {
        let mut command = redis::Cmd::new();
        command.arg(words.split(' ').collect::<Vec<_>>());
        match CommandEffect::of(&command) {
            CommandEffect::None => "none",
            CommandEffect::Blocks => "blocks",
            CommandEffect::Changes(_) => "changes",
            CommandEffect::Silences => "silences",
        }
    }

    #[test]
    fn what_commands_do_to_a_shared_connection() {
        for (words, effect) in [
            ("GET k", "none"),
            ("blpop k 0", "blocks"),
            ("XREAD STREAMS s 0", "none"),
            ("xread count 1 block 0 STREAMS s 0", "blocks"),
            ("SELECT 1", "changes"),
            ("watch k", "changes"),
            ("WAIT 1 0", "changes"),
            ("CLIENT LIST", "none"),
            ("client setname x", "none"),
            ("CLIENT NO-EVICT on", "changes"),
            ("CLIENT", "changes"),
            ("CLIENT REPLY ON", "changes"),
            ("client reply off", "silences"),
            ("CLIENT REPLY SKIP", "silences"),
        ] {
            assert_eq!(of(words), effect, "{words}");
        }
        assert!(matches!(CommandEffect::of(&redis::Cmd::new()), CommandEffect::None));
    }

    /// Packed pipelines are judged like unpacked ones.
    #[test]
    fn a_command_that_changes_something_is_named() {
        let pipelines: [(&[&str], Option<&str>); 7] = [
            (&[], None),
            (&["get", "MGET"], None),
            (&["GET", "SET", "DEL"], Some("SET")),
            (&["XREADGROUP"], Some("XREADGROUP")),
            (&["GETDEL", "GET"], Some("GETDEL")),
            (&["bitcount", "ZUNION", "georadiusbymember_ro"], None),
            (&["A.COMMAND.WITH.A.LONG.NAME"], Some("A.COMMAND.WITH.A.LONG.NAME")),
        ];
        for (names, expected) in pipelines {
            let commands: Vec<_> = names.iter().map(|name| redis::cmd(name)).collect();
            let packed: Vec<u8> = commands.iter().flat_map(redis::Cmd::get_packed_command).collect();
            assert_eq!(unsafe_twice(&commands).as_deref(), expected, "{names:?}");
            assert_eq!(unsafe_twice_packed(&packed).as_deref(), expected, "{names:?}");
        }
    }

    /// Packed commands are judged like unpacked ones.
    #[test]
    fn a_command_that_waits_by_itself_is_known() {
        for (words, expected) in [
            ("GET k", false),
            ("brpop k 0", true),
            ("XREAD STREAMS s 0", false),
            ("xreadgroup group g c count 1 block 0 STREAMS s >", true),
            ("wait 1 0", true),
            ("WAITAOF 1 1 0", true),
            ("SET BLOCK 1", false),
            ("SUBSCRIBE ticks", false),
        ] {
            let (get, mut command) = (redis::cmd("GET"), redis::Cmd::new());
            command.arg(words.split(' ').collect::<Vec<_>>());
            let packed = [get.get_packed_command(), command.get_packed_command()].concat();
            assert_eq!((waits([&get, &command]), waits_packed(&packed)), (expected, expected), "{words}");
            assert_eq!((&*first_name([&get, &command]), &*first_name_packed(&packed)), ("GET", "GET"));
        }
        assert!(waits_packed(b"BLPOP k 0\r\n"), "a command that cannot be read may wait");
    }

    #[test]
    fn a_command_that_cannot_be_read_may_change_something() {
        assert_eq!(unsafe_twice_packed(b"INCR k\r\n").as_deref(), Some("a command"));
        assert_eq!(unsafe_twice_packed(b"*1\r\n$4\r\nPING\r\nINCR k\r\n").as_deref(), Some("a command"));
    }
}
