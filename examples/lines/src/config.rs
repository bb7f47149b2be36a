//! The configuration, which `[lines]` in TOML, the environment variables and code set.

use std::time::Duration;

use resource_pool::Error;
use resource_pool::adapter::{Checks, KindConfig, Names, ParsedUrl, Part, Tls, host, port};
use resource_pool::config::{Secret, TlsOptions};
use serde::Deserialize;

use crate::LinesResource;

/// The address of a server of lines, and the number of connections to it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LinesConfig {
    /// `lines://user:password@host:port`, or `liness://` for TLS, instead of the parts.
    pub url: Option<Secret>,
    /// The host. Defaults to `localhost`.
    pub host: String,
    /// The port. Defaults to 6379.
    pub port: u16,
    /// The user to log in as. Defaults to none.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// The most connections at a time. Defaults to 8.
    pub pool_size: usize,
    /// The TLS options. Defaults to none, which is plain.
    pub tls: Option<TlsOptions>,
}

impl Default for LinesConfig {
    fn default() -> Self {
        LinesConfig {
            url: None,
            host: "localhost".to_owned(),
            port: 6379,
            user: None,
            password: None,
            pool_size: 8,
            tls: None,
        }
    }
}

impl LinesConfig {
    /// The time before TCP keepalive begins, which finds a peer that is gone while nothing is asked of it.
    pub(crate) const KEEPALIVE: Duration = Duration::from_secs(30);
}

impl KindConfig for LinesConfig {
    const KIND: &'static str = "lines";
    const NAMES: Names = Names {
        url: ("url", &["LINES_URL"]),
        parts: [
            ("host", &["LINES_HOST"]),
            ("port", &["LINES_PORT"]),
            ("user", &["LINES_USER"]),
            ("password", &["LINES_PASSWORD"]),
            ("place", &[]),
        ],
        plain: &["lines"],
        tls: ["LINES_TLS", "LINES_TLS_CA_FILE", "LINES_TLS_CERT_FILE", "LINES_TLS_KEY_FILE", "LINES_TLS_SERVER_NAME"],
    };
    type Resource = LinesResource;

    fn url_mut(&mut self) -> &mut Option<Secret> {
        &mut self.url
    }

    fn tls_mut(&mut self) -> &mut Option<TlsOptions> {
        &mut self.tls
    }

    fn has_login(&self) -> bool {
        self.user.is_some() || self.password.is_some()
    }

    fn forget_login(&mut self) {
        (self.user, self.password) = (None, None);
    }

    fn set(&mut self, part: Part, key: &str, text: &str) -> Result<(), Error> {
        match part {
            Part::Host => self.host = host(key, text)?.to_owned(),
            Part::Port => self.port = port(key, text)?,
            Part::User => self.user = Some(text.to_owned()),
            Part::Password => self.password = Some(text.into()),
            _ => {}
        }
        Ok(())
    }

    fn take_apart(&mut self, key: &str) -> Result<(), Error> {
        let Some(text) = self.url.take() else { return Ok(()) };
        let url = ParsedUrl::new(key, &text, &["lines", "liness"])?;
        if !url.path(key)?.is_empty() {
            return Err(Error::config(key, "has a path, which lines have not"));
        }
        TlsOptions::agree(&mut self.tls, key, url.scheme(), ["lines", "liness"])?;
        self.host = url.host().to_owned();
        self.port = url.port().unwrap_or(self.port);
        if let Some(user) = url.user(key)? {
            self.user = Some(user);
        }
        if let Some(password) = url.password(key)? {
            self.password = Some(password);
        }
        Ok(())
    }

    fn check(&mut self, name: &str) -> Result<(), Error> {
        let checks = Checks(name);
        checks.place(&mut self.host, self.port)?;
        checks.counts(&[("pool_size", self.pool_size)])?;
        // User and password are sent in one line, separated by blanks.
        let password = self.password.as_ref().map(Secret::expose);
        let is_word = |text: &str| !text.contains(|c: char| c.is_whitespace() || c.is_control() || "\"'".contains(c));
        match (self.user.as_deref(), password) {
            (None, None) => Ok(()),
            (Some(user), Some(password)) if is_word(user) && is_word(password) => Ok(()),
            (Some(_), Some(_)) => checks.fail("user", "has a blank or a quote in it, or its password has"),
            (Some(_), None) => checks.fail("password", "is missing beside the user"),
            (None, Some(_)) => checks.fail("user", "is missing beside the password"),
        }
    }

    fn resource(&self, name: &str) -> Result<LinesResource, Error> {
        let config = self.settled(name)?;
        let tls = Tls::new(name, config.tls.as_ref(), &config.host)?;
        Ok(LinesResource::new(config, tls))
    }
}
