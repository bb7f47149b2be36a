//! Texts that are never shown.
//!
//! Locks: [`SecretFile`] has one, which is held only to copy or replace the texts that were read.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

/// A password, or a URL that may have one. Never shown by `Debug` or `Display`.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// The secret itself.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl<T: Into<String>> From<T> for Secret {
    fn from(text: T) -> Self {
        Secret(SecretString::from(text.into()))
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Serializes as `***`, so that a configuration can be shown as data.
#[cfg(feature = "serde")]
impl serde::Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Secret::from)
    }
}

/// A file with a password in it. It is read again at every connect, so the password can change without a restart. Line
/// breaks at its end are no part of the password. Clones share the memory of the texts that were read.
///
/// ```
/// use resource_pool::config::SecretFile;
///
/// let file = SecretFile::from("/run/secrets/redis");
/// assert_eq!(file.path().to_str(), Some("/run/secrets/redis"));
/// ```
#[derive(Clone)]
pub struct SecretFile {
    path: PathBuf,
    /// The last different texts that were read, the newest at the end.
    recent: Arc<Mutex<Vec<Secret>>>,
}

/// How many different texts of a file are remembered.
const REMEMBERED: usize = 4;

/// The most bytes that a password may have. Its file is read no further.
const LONGEST: u64 = 64 * 1024;

impl SecretFile {
    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file, which blocks the thread.
    ///
    /// # Errors
    /// The file cannot be read, is no regular file, is empty, is not UTF-8, or has over 65,536 bytes. The error names
    /// the path, and shows no part of the text.
    pub fn read(&self) -> io::Result<Secret> {
        let secret = self.contents().map_err(|error| {
            let text = format!("{} cannot be read as a password: {error}", self.path.display());
            io::Error::new(error.kind(), text)
        })?;
        self.remember(secret.clone());
        Ok(secret)
    }

    fn remember(&self, secret: Secret) {
        let mut recent = self.recent.lock();
        recent.retain(|known| *known != secret);
        if recent.len() == REMEMBERED {
            recent.remove(0);
        }
        recent.push(secret);
    }

    fn contents(&self) -> io::Result<Secret> {
        let refused = |problem: &str| Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        // Opening a pipe would wait for somebody who writes to it.
        if !fs::metadata(&self.path)?.is_file() {
            return refused("it is no regular file");
        }
        let mut bytes = Vec::new();
        File::open(&self.path)?.take(LONGEST + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LONGEST {
            return refused("it has over 65536 bytes");
        }
        let Ok(text) = String::from_utf8(bytes) else { return refused("it is not UTF-8") };
        match text.trim_end_matches(['\r', '\n']) {
            "" => refused("it is empty"),
            text => Ok(text.into()),
        }
    }

    /// Reads the file for a new connection, which blocks the thread.
    ///
    /// # Errors
    /// Those of [`read`](SecretFile::read), with the remedy.
    pub fn read_again(&self) -> io::Result<Secret> {
        self.read().map_err(|error| {
            let text = format!("{error}; every connect reads it again, so put it back, or set another password_file");
            io::Error::new(error.kind(), text)
        })
    }

    /// The text that was read last.
    pub fn last(&self) -> Option<Secret> {
        self.recent.lock().last().cloned()
    }

    /// The last four different texts that were read, the newest at the end, so that errors can be kept free of them. A
    /// server may still quote a password that the file no longer has.
    ///
    /// ```
    /// use resource_pool::config::SecretFile;
    ///
    /// assert!(SecretFile::from("/run/secrets/redis").recent().is_empty(), "nothing has read it");
    /// ```
    pub fn recent(&self) -> Vec<Secret> {
        self.recent.lock().clone()
    }
}

#[cfg(test)]
impl SecretFile {
    /// A file that had these texts, for tests of errors.
    pub(crate) fn that_had(texts: &[&str]) -> Self {
        let file = SecretFile::from("/nowhere");
        texts.iter().for_each(|text| file.remember((*text).into()));
        file
    }
}

impl<T: Into<PathBuf>> From<T> for SecretFile {
    fn from(path: T) -> Self {
        SecretFile { path: path.into(), recent: Arc::default() }
    }
}

impl PartialEq for SecretFile {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for SecretFile {}

impl fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(f)
    }
}

/// Serializes as its path.
#[cfg(feature = "serde")]
impl serde::Serialize for SecretFile {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.path.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SecretFile {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        PathBuf::deserialize(deserializer).map(SecretFile::from)
    }
}

#[cfg(test)]
mod tests {
    use super::SecretFile;

    #[test]
    fn a_file_remembers_its_last_four_different_texts() {
        for (texts, expected) in [
            (&[][..], ""),
            (&["1", "1"], "1"),
            (&["1", "2", "3"], "123"),
            (&["1", "2", "3", "1"], "231"),
            (&["1", "2", "3", "4", "5"], "2345"),
        ] {
            let file = SecretFile::that_had(texts);
            let recent: String = file.clone().recent().iter().map(|secret| secret.expose().to_owned()).collect();
            assert_eq!(recent, expected);
            assert_eq!(file.last(), texts.last().map(|text| (*text).into()));
        }
    }
}
