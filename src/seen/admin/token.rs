//! The token that opens an admin, from code, a file or a variable.
//!
//! Locks: `TokenFile::read` is held while the file is read again, which is a few bytes.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use subtle::ConstantTimeEq;

use crate::Error;
use crate::base::environment::Environment;
use crate::base::secret::{Secret, SecretFile};

/// The variable with the token.
const TOKEN: &str = "RESOURCE_POOL_ADMIN_TOKEN";
/// The variable with the path of a file with the token.
const TOKEN_FILE: &str = "RESOURCE_POOL_ADMIN_TOKEN_FILE";
/// The shortest token, in bytes. A shorter one could be guessed.
const SHORTEST: usize = 16;
/// How long a token that was read from a file is used before the file is read again.
const FRESH: Duration = Duration::from_secs(5);

/// Where the token comes from, as the program says.
#[derive(Debug, Clone)]
pub(super) enum TokenSource {
    Text(Secret),
    File(SecretFile),
}

/// The token of a running admin.
#[derive(Debug)]
pub(super) enum Token {
    Text(Secret),
    File(TokenFile),
}

/// A token in a file, which may change.
#[derive(Debug)]
pub(super) struct TokenFile {
    file: SecretFile,
    read: Mutex<(Instant, Secret)>,
}

impl Token {
    /// The token that the program sets, or else a variable. `None` if neither does.
    ///
    /// # Errors
    /// [`Error::Config`] if the file cannot be read, or the token cannot be used.
    pub(super) fn open(source: Option<TokenSource>, environment: &Environment) -> Result<Option<Token>, Error> {
        let (key, source) = match source {
            Some(source) => ("admin.token", source),
            None => match (environment.get(TOKEN)?, environment.get(TOKEN_FILE)?) {
                (None, None) => return Ok(None),
                (Some(token), None) => (TOKEN, TokenSource::Text(token.into())),
                (None, Some(path)) => (TOKEN_FILE, TokenSource::File(path.into())),
                (Some(_), Some(_)) => {
                    return Err(Error::config(TOKEN, format!("is set, and {TOKEN_FILE} is too; unset one of them")));
                }
            },
        };
        match source {
            TokenSource::Text(token) => {
                check(key, &token)?;
                Ok(Some(Token::Text(token)))
            }
            TokenSource::File(file) => {
                let token = file.read().map_err(|error| Error::config(key, error))?;
                check(key, &token)?;
                Ok(Some(Token::File(TokenFile { file, read: Mutex::new((Instant::now(), token)) })))
            }
        }
    }

    /// Whether this is the token, in a time that does not depend on the first byte that differs.
    pub(super) fn is(&self, offered: &str) -> bool {
        let same = |token: &Secret| bool::from(token.expose().as_bytes().ct_eq(offered.as_bytes()));
        match self {
            Token::Text(token) => same(token),
            Token::File(TokenFile { file, read }) => {
                let mut read = read.lock();
                if read.0.elapsed() >= FRESH {
                    read.0 = Instant::now();
                    match file.read().map_err(|error| Error::config(TOKEN_FILE, error)).and_then(|token| {
                        check(TOKEN_FILE, &token)?;
                        Ok(token)
                    }) {
                        Ok(token) => read.1 = token,
                        // A file that is being replaced is gone for a moment.
                        Err(error) => tracing::warn!(%error, "the admin keeps its last token"),
                    }
                }
                same(&read.1)
            }
        }
    }
}

/// Checks that a token can come in a header, and cannot be guessed.
fn check(key: &str, token: &Secret) -> Result<(), Error> {
    let token = token.expose();
    if token.len() < SHORTEST {
        let problem = format!(
            "has fewer than {SHORTEST} characters, so it could be guessed; make one with `openssl rand -hex 32`"
        );
        return Err(Error::config(key, problem));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let problem = "has characters that a header cannot carry; make one with `openssl rand -hex 32`";
        return Err(Error::config(key, problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(source: Option<TokenSource>, variables: &[(&str, &str)]) -> Result<Option<Token>, String> {
        let variables = variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Token::open(source, &Environment::fixed(variables)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_token_that_could_be_guessed_or_not_be_sent_is_refused_without_being_shown() {
        for (token, said) in [("short", "fewer than 16"), ("a token with spaces in it", "a header cannot carry")] {
            let error = open(Some(TokenSource::Text(token.into())), &[]).unwrap_err();
            assert!(error.contains("admin.token") && error.contains(said) && error.contains("openssl"), "{error}");
            assert!(!error.contains(token), "{error}");
            let error = open(None, &[(TOKEN, token)]).unwrap_err();
            assert!(error.contains(TOKEN) && error.contains(said) && !error.contains(token), "{error}");
        }
        let error = open(None, &[(TOKEN, "0123456789abcdef"), (TOKEN_FILE, "/nowhere")]).unwrap_err();
        assert!(error.contains("unset one"), "{error}");
        let error = open(None, &[(TOKEN_FILE, "/nowhere")]).unwrap_err();
        assert!(error.contains(TOKEN_FILE) && error.contains("/nowhere"), "{error}");
    }

    #[test]
    fn only_the_whole_token_is_the_token() {
        assert!(open(None, &[]).unwrap().is_none());
        let token = open(None, &[(TOKEN, "0123456789abcdef")]).unwrap().unwrap();
        assert!(token.is("0123456789abcdef"));
        for other in ["", "0123456789abcde", "0123456789abcdeF", "0123456789abcdef0"] {
            assert!(!token.is(other), "{other}");
        }
        assert!(!format!("{token:?}").contains("0123"));
    }
}
