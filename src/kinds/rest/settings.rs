//! The settings of a client, made of a configuration, and the checks of its fields.

use crate::base::error::Error;
use crate::base::secret::SecretFile;
use crate::kinds::rest::fields::RestLimits;
use crate::kinds::rest::kind::RestKind;
use crate::lifecycle::requests::RequestSettings;
use crate::net::base_url::HTTP_SCHEMES;
use crate::net::checks::Checks;
use crate::net::tls::{RequestTls, TlsOptions};
use crate::net::url::ParsedUrl;

/// The settings for the resource of this name. This reads the files of TLS.
pub(super) fn settings<C: RestKind>(config: &C, name: &str) -> Result<RequestSettings, Error> {
    settings_with(config, name, RequestTls::new(name, tls(config).as_ref())?)
}

/// Scheme, host and port of the server. The path may have a secret in it.
pub(super) fn server<C: RestKind>(config: &C) -> String {
    config.base().map_or_else(String::new, |base| base.origin().ascii_serialization())
}

/// Checks the fields that all these kinds have, and whether settings can be made of them.
///
/// # Errors
/// [`Error::Config`] of the first field that cannot be used.
pub(crate) fn check<C: RestKind>(config: &C, name: &str) -> Result<(), Error> {
    let checks = Checks(name);
    let RestLimits { connect_timeout, read_timeout, max_requests, max_body, keepalive, .. } = config.limits();
    checks.counts(&[("max_requests", max_requests), ("max_body", max_body)])?;
    checks.limits(&[("connect_timeout_ms", connect_timeout), ("read_timeout_ms", read_timeout)])?;
    checks.keepalive(keepalive)?;
    if let (Some(proxy), _) = config.proxies() {
        ParsedUrl::new(&format!("{name}.proxy"), proxy, &HTTP_SCHEMES)?;
    }
    // This check reads the files of TLS, and says more about a bad one than a connect does.
    let tls = match tls(config) {
        Some(tls) => RequestTls::new(name, Some(&tls))?,
        None => RequestTls::trusting_nobody(name)?,
    };
    settings_with(config, name, tls).map(drop)
}

/// Checks a user of a login by `Basic`.
///
/// # Errors
/// [`Error::Config`] of `user`.
pub(crate) fn basic_user(name: &str, user: &str) -> Result<(), Error> {
    if user.contains(':') || user.contains(char::is_control) {
        return Checks(name).fail("user", "has a colon or a control character, which a login by `Basic` cannot have");
    }
    Ok(())
}

fn settings_with<C: RestKind>(config: &C, name: &str, tls: RequestTls) -> Result<RequestSettings, Error> {
    let limits = config.limits();
    let (proxy, environment_proxies) = config.proxies();
    let mut settings = RequestSettings::new(tls);
    settings.base = config.base();
    settings.connect_timeout = limits.connect_timeout;
    settings.read_timeout = limits.read_timeout;
    settings.operation_timeout = limits.operation_timeout;
    settings.max_requests = limits.max_requests;
    settings.max_idle = limits.max_idle;
    settings.idle_timeout = limits.idle_timeout;
    settings.keepalive = limits.keepalive;
    settings.max_body = limits.max_body;
    settings.proxy = proxy.cloned();
    settings.environment_proxies = environment_proxies;
    // The server itself redirects nobody. A kind that talks to any server sets its own number.
    settings.max_redirects = 0;
    settings.secrets.extend(config.password_file().map(SecretFile::recent).unwrap_or_default());
    config.log_in(name, &mut settings)?;
    Ok(settings)
}

fn tls<C: RestKind>(config: &C) -> Option<TlsOptions> {
    config.clone().tls_mut().take()
}
