//! The token that opens an admin, from code, a file or a variable.
//!
//! Locks: `Token::current` is held to compare, to copy or to replace, and never while the file is read.

use std::time::Duration;

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
/// The pause between two reads of a file with a token. A changed token is promised to count within 5 s, and the sessions
/// and streams of the old one to be over by then.
pub(super) const REREAD: Duration = Duration::from_secs(4);

/// Where the token comes from, as the program says.
#[derive(Debug, Clone)]
pub(super) enum TokenSource {
    Text(Secret),
    File(SecretFile),
}

/// The token of a running admin.
#[derive(Debug)]
pub(super) struct Token {
    /// The file that may change. `None` if the token stays as it is.
    file: Option<SecretFile>,
    current: Mutex<CurrentToken>,
}

#[derive(Debug)]
struct CurrentToken {
    token: Secret,
    version: TokenVersion,
    /// Whether the file could not be used when it was last read.
    is_stale: bool,
}

/// The number of a token among those that an admin has had one after the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TokenVersion(u64);

impl TokenVersion {
    pub(super) fn next(self) -> Self {
        TokenVersion(self.0 + 1)
    }
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
        let (file, token) = match source {
            TokenSource::Text(token) => (None, token),
            TokenSource::File(file) => {
                let token = file.read().map_err(|error| Error::config(key, error))?;
                (Some(file), token)
            }
        };
        check(key, &token)?;
        let current = CurrentToken { token, version: TokenVersion::default(), is_stale: false };
        Ok(Some(Token { file, current: Mutex::new(current) }))
    }

    /// The version of the token if this is the token, in a time that does not depend on the first byte that differs.
    pub(super) fn is(&self, offered: &str) -> Option<TokenVersion> {
        let current = self.current.lock();
        let is_same = bool::from(current.token.expose().as_bytes().ct_eq(offered.as_bytes()));
        is_same.then_some(current.version)
    }

    pub(super) fn version(&self) -> TokenVersion {
        self.current.lock().version
    }

    pub(super) fn may_change(&self) -> bool {
        self.file.is_some()
    }

    /// Reads the file again, if there is one. Returns whether the token is another one now.
    pub(super) fn read_again(&self) -> bool {
        let Some(file) = &self.file else { return false };
        let read = file.read().map_err(|error| Error::config(TOKEN_FILE, error));
        let read = read.and_then(|token| check(TOKEN_FILE, &token).map(|()| token));
        let mut current = self.current.lock();
        let was_stale = std::mem::replace(&mut current.is_stale, read.is_err());
        match read {
            Ok(token) if token == current.token => false,
            Ok(token) => {
                (current.token, current.version) = (token, current.version.next());
                true
            }
            Err(error) => {
                drop(current);
                // A file that is being replaced is gone for a moment. One that stays away is told once.
                if !was_stale {
                    tracing::warn!(%error, "the admin keeps its last token");
                }
                false
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
        assert_eq!(token.is("0123456789abcdef"), Some(token.version()));
        for other in ["", "0123456789abcde", "0123456789abcdeF", "0123456789abcdef0"] {
            assert_eq!(token.is(other), None, "{other}");
        }
        assert!(!format!("{token:?}").contains("0123"));
    }

    #[test]
    fn a_token_in_a_file_has_a_new_version_once_it_differs() {
        let path = std::env::temp_dir().join(format!("resource-pool-token-{}", std::process::id()));
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("0123456789abcdef\n");
        let token = open(Some(TokenSource::File(path.clone().into())), &[]).unwrap().unwrap();
        let first = token.version();
        assert!(token.may_change() && !token.read_again(), "the file is as it was");
        // A token that cannot be used, and a file that is gone, leave the last one.
        write("short");
        assert!(!token.read_again());
        std::fs::remove_file(&path).unwrap();
        assert!(!token.read_again() && token.is("0123456789abcdef") == Some(first));
        write("fedcba9876543210");
        assert!(token.read_again() && !token.read_again());
        assert!(token.is("0123456789abcdef").is_none() && token.is("fedcba9876543210") == Some(first.next()));
        std::fs::remove_file(&path).unwrap();
    }
}
