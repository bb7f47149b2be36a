//! The URL of a server of HTTP that the paths of requests are below.

use crate::base::error::Error;
use crate::base::secret::Secret;
use crate::net::tls::TlsOptions;
use crate::net::url::ParsedUrl;

/// The schemes of a URL of HTTP: plain, and over TLS.
pub const HTTP_SCHEMES: [&str; 2] = ["http", "https"];

/// A URL below which paths can be, and the login that it had.
#[derive(Debug)]
pub struct BaseUrl {
    /// The URL without its login.
    pub url: Secret,
    /// The user, decoded.
    pub user: Option<String>,
    /// The password, decoded.
    pub password: Option<Secret>,
}

impl BaseUrl {
    /// Takes the login out of a URL, and TLS over from its scheme. `key` is the key or variable that has the URL.
    ///
    /// # Errors
    /// [`Error::Config`] of this key, if it is no URL of HTTP below which paths can be, or is plain although there are
    /// options for TLS.
    pub fn new(key: &str, text: &Secret, tls: &mut Option<TlsOptions>) -> Result<Self, Error> {
        let parsed = ParsedUrl::new(key, text, &HTTP_SCHEMES)?;
        let text = text.expose().trim();
        if text.contains(['?', '#']) {
            return Err(Error::config(key, "has a `?` or `#`, below which there can be no path"));
        }
        TlsOptions::agree(tls, key, parsed.scheme(), HTTP_SCHEMES)?;
        let (scheme, rest) = text.split_once("://").unwrap_or_default();
        // A URL that can be read in one way has no further `@`.
        let place = rest.rsplit_once('@').map_or(rest, |(_login, place)| place);
        Ok(BaseUrl {
            url: format!("{scheme}://{place}").into(),
            user: parsed.user(key)?,
            password: parsed.password(key)?,
        })
    }

    /// The same URL with the scheme for TLS, or with the plain one.
    pub fn with_tls(url: &Secret, on: bool) -> Secret {
        let rest = url.expose().split_once("://").map_or(url.expose(), |(_, rest)| rest);
        format!("{}://{rest}", HTTP_SCHEMES[usize::from(on)]).into()
    }
}
