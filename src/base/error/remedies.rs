//! The remedies for connect errors, where one is known.

use std::sync::Arc;

use crate::base::error::Source;
use crate::base::error::text::Chain;

/// The remedies where nobody listens, and where the server knows no such user and password.
#[derive(Debug, Clone)]
pub(crate) struct Remedies {
    pub(crate) nobody: Arc<str>,
    pub(crate) login: Arc<str>,
    /// Whether a file has the password. A refused login may pass then, and still has its remedy.
    pub(crate) is_by_file: bool,
}

impl Remedies {
    /// The remedy for this error, if there is one. The drivers' errors have no type in common, so their words decide.
    pub(crate) fn of(&self, source: &Source, permanent: bool) -> Option<Arc<str>> {
        const LOGIN: [&str; 13] = [
            "WRONGPASS",
            "NOAUTH",
            "Password authentication failed",
            "password authentication failed for user",
            "ACCESS_REFUSED",
            "SCRAM failure",
            "Authentication failed",
            "Code: 516",
            "Code: 192",
            "Code: 193",
            "Code: 194",
            "1045 (28000)",
            "1698 (28000)",
        ];
        let told = Chain(&**source).to_string();
        if told.contains("Connection refused") {
            Some(Arc::clone(&self.nobody))
        } else if (permanent || self.is_by_file) && LOGIN.iter().any(|words| told.contains(words)) {
            Some(Arc::clone(&self.login))
        } else {
            None
        }
    }
}
