//! The user's commands on each new connection. The greeting sends them.

use redis::{Cmd, ErrorKind, RedisError, ServerError, make_extension_error};

use crate::base::secret::Secret;
use crate::kinds::redis::commands::CommandEffect;
use crate::kinds::redis::config::RedisConfig;

/// The commands whose second word is a part of the name, as in CLIENT NO-EVICT. The second word of any other command may
/// be a secret.
const CONTAINERS: [&str; 7] = ["ACL", "CLIENT", "CONFIG", "DEBUG", "FUNCTION", "MODULE", "SCRIPT"];

/// The driver's command of these words.
pub(super) fn cmd(words: &[Secret]) -> Cmd {
    let mut cmd = Cmd::new();
    for word in words {
        cmd.arg(word.expose());
    }
    cmd
}

/// The reason why these words cannot be a command on each new connection. `None` if they can.
pub(super) fn problem(words: &[Secret]) -> Option<String> {
    if words.first().is_none_or(|name| name.expose().is_empty()) {
        return Some("must name a command".to_owned());
    }
    let name = match CommandEffect::of(&cmd(words)) {
        CommandEffect::None => return None,
        CommandEffect::Blocks => return Some("must not wait: each connection would wait as it is opened".to_owned()),
        CommandEffect::Silences => {
            return Some("must not take away the answers that every command waits for".to_owned());
        }
        CommandEffect::Changes(name) => name,
    };
    let remedy = match &*name {
        "this CLIENT command" | "READONLY" | "READWRITE" => return None,
        "SELECT" => "set `db` instead",
        "AUTH" | "HELLO" => "set `user` and `password` instead",
        "SUBSCRIBE" | "PSUBSCRIBE" | "SSUBSCRIBE" => "subscribe by `pubsub()` instead",
        _ => "a connection after it is not one that every command can use",
    };
    Some(format!("must not be {name}: {remedy}"))
}

impl RedisConfig {
    /// The error of a connection whose command of this index the server refused. No further attempt mends a command that
    /// the server does not know, or that this user may not send.
    pub(super) fn refused_on_connect(&self, index: usize, error: ServerError) -> RedisError {
        let kind = match error.code() {
            "ERR" | "NOPERM" => ErrorKind::InvalidClientConfig,
            _ => ErrorKind::Client,
        };
        let words = self.on_connect.get(index).map_or(&[][..], Vec::as_slice);
        let name = words.first().map_or("", Secret::expose);
        let is_container = CONTAINERS.iter().any(|container| name.eq_ignore_ascii_case(container));
        let name_ends = if is_container { 2 } else { 1 };
        // The server's error may quote any word behind the name.
        let told = self.told_without(without_arguments(&error), words.get(name_ends..).unwrap_or_default());
        (kind, "the server refuses a command of on_connect", format!("on_connect[{index}], {name}: {told}")).into()
    }
}

/// The server's error without the list of arguments that it quotes of a command that it does not know. The server cuts
/// the list short, so only a part of a secret may be at its end.
fn without_arguments(error: &ServerError) -> RedisError {
    let details = error.details().and_then(|details| details.split(", with args beginning with").next());
    make_extension_error(error.code().to_owned(), details.map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::problem;
    use crate::base::secret::Secret;

    #[test]
    fn a_command_that_spoils_a_connection_is_refused_with_the_remedy() {
        for (words, expected) in [
            ("CLIENT NO-EVICT ON", None),
            ("client setname desk", None),
            ("FUNCTION STATS", None),
            ("READONLY", None),
            ("SELECT 2", Some("set `db`")),
            ("auth s3cret", Some("`password`")),
            ("HELLO 3", Some("`password`")),
            ("MULTI", Some("MULTI")),
            ("SUBSCRIBE ticks", Some("`pubsub()`")),
            ("BLPOP list 0", Some("must not wait")),
            ("WAIT 1 0", Some("WAIT")),
            ("CLIENT REPLY OFF", Some("answers")),
            ("", Some("must name a command")),
        ] {
            let command: Vec<Secret> = words.split(' ').map(Secret::from).collect();
            let said = problem(&command);
            match expected {
                None => assert_eq!(said, None, "{words}"),
                Some(expected) => {
                    let said = said.unwrap();
                    assert!(said.contains(expected) && !said.contains("s3cret"), "{words}: {said}");
                }
            }
        }
        assert!(problem(&[]).is_some());
    }
}
