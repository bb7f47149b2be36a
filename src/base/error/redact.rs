//! Withholds the text of a server's error that has a secret in it.

use crate::base::error::BoxError;
use crate::base::error::text::causes;

/// The error itself; or a note in its place, if it is `from_server` and has one of the secrets in it.
///
/// The driver's own errors are left alone. They have no secret in them, as the fuzzer proves, and a search for one
/// would show which of their words are a secret. A match within one of the `names` does not count, because the
/// names are public: in `user 'guest'`, `guest` may be the password, too. The beginning of a long secret counts as the
/// secret, because servers cut short what they quote.
pub fn redacted(error: impl Into<BoxError>, from_server: bool, secrets: &[&str], names: &[&str]) -> BoxError {
    let error = error.into();
    if !from_server {
        return error;
    }
    let said: Vec<_> = std::iter::once(format!("{error:?}")).chain(causes(&*error).map(ToString::to_string)).collect();
    let has = |secret: &str| match &*plain(secret).chars().take(BEGINNING).collect::<String>() {
        // The secret is nothing but quotes.
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

/// The positions of a part in a text.
fn places(text: &str, part: &str) -> impl Iterator<Item = usize> {
    text.char_indices().map(|(at, _)| at).filter(move |at| text[*at..].starts_with(part))
}

/// How many characters of a secret tell it. Redis quotes 128 bytes of an argument.
const BEGINNING: usize = 30;

/// Stands for a server's text with a password in it. A text with only the password blanked out would tell the password,
/// if it is a word of a well-known message.
const WITHHELD: &str =
    "an error whose text is withheld because it contains the password; the server's log may say more";

/// The text without the characters that quoting, escaping and percent-encoding add, and that servers take away.
fn plain(text: &str) -> String {
    let text = percent_encoding::percent_decode_str(text).decode_utf8_lossy();
    text.replace(['\\', '"', '\''], "").replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::{WITHHELD, redacted};

    fn told(text: &str, secret: &str, names: &[&str]) -> String {
        redacted(text, true, &[secret], names).to_string()
    }

    #[test]
    fn what_a_server_says_of_a_secret_is_withheld() {
        for text in ["no user with s3cret", r#"no user with \"s3\"cret"#, "amqp://u:s3%63ret@host"] {
            assert_eq!(told(text, "s3cret", &[]), WITHHELD, "{text}");
        }
        assert_eq!(told("quoted as '\"'", "\"", &[]), WITHHELD, "a secret that is nothing but a quote");
        assert_eq!(told("no such user", "s3cret", &[]), "no such user");
        assert_eq!(told("no such user", "", &[]), "no such user", "there is no secret");
    }

    #[test]
    fn the_beginning_of_a_long_secret_is_withheld() {
        let secret = "é".repeat(100);
        assert_eq!(told(&format!("unknown subcommand '{}'", "é".repeat(64)), &secret, &[]), WITHHELD);
        assert_eq!(told("unknown subcommand 'été'", &secret, &[]), "unknown subcommand 'été'");
    }

    #[test]
    fn what_the_driver_says_is_left_alone() {
        assert_eq!(redacted("no user with s3cret", false, &["s3cret"], &[]).to_string(), "no user with s3cret");
    }

    #[test]
    fn a_secret_within_a_public_name_is_none() {
        assert_eq!(told("user 'guest' refused", "guest", &["guest"]), "user 'guest' refused");
        assert_eq!(told("vhost 'guests' refused", "guest", &["guests"]), "vhost 'guests' refused");
        assert_eq!(told("user 'guest', password 'guesT'", "guesT", &["guest"]), WITHHELD);
        assert_eq!(told("vhost 'guests', password 'guest'", "guest", &["guests"]), WITHHELD);
    }
}
