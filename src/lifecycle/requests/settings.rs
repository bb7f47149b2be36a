//! The settings of a client of HTTP requests, and the client that is made of them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use reqwest::redirect::Policy;
use reqwest::{ClientBuilder, NoProxy, Proxy, Url};

use crate::base::error::{Error, Failure};
use crate::base::secret::Secret;
use crate::net::tls::RequestTls;

/// The settings of a client of HTTP requests. A kind fills them from its configuration.
#[derive(Clone)]
#[non_exhaustive]
pub struct RequestSettings {
    /// The URL that the paths of requests are below, without a login. Defaults to none.
    pub base: Option<Url>,
    /// The headers that go along with every request to the server of `base`, without which there can be none. They count
    /// as secrets. Defaults to none.
    pub headers: HeaderMap,
    /// The header `User-Agent`. Defaults to `resource-pool`.
    pub user_agent: String,
    /// The limit for opening a connection, with DNS and TLS. Defaults to 5 s.
    pub connect_timeout: Duration,
    /// How long the server may be silent: until its answer begins, and between two parts of it. Defaults to 30 s.
    pub read_timeout: Duration,
    /// The limit of a whole request, from sending it until its answer has ended, with the time that the caller takes to
    /// read that. Zero is none. Defaults to 0.
    pub operation_timeout: Duration,
    /// The most requests in flight, bodies of answers included, at least 1. Defaults to 100.
    pub max_requests: usize,
    /// The most idle connections that are kept for each server. Defaults to 16.
    pub max_idle: usize,
    /// The time after which an idle connection is closed. Defaults to 60 s.
    pub idle_timeout: Duration,
    /// The time without traffic after which TCP keepalive begins. Defaults to 60 s.
    pub keepalive: Duration,
    /// The most redirects that are followed. Defaults to 10.
    pub max_redirects: usize,
    /// The most bytes of an answer that is read as a whole. Defaults to 64 MiB.
    pub max_body: usize,
    /// The proxy, a URL. Defaults to none.
    pub proxy: Option<Secret>,
    /// Whether the proxies of the environment (`HTTP_PROXY` and its like) are used. Defaults to `false`.
    pub environment_proxies: bool,
    /// The texts that no error may show. Defaults to none.
    pub secrets: Vec<Secret>,
    /// How connections are secured.
    pub tls: RequestTls,
}

impl RequestSettings {
    /// The defaults, with these connections.
    pub fn new(tls: RequestTls) -> Self {
        RequestSettings {
            base: None,
            headers: HeaderMap::new(),
            user_agent: "resource-pool".to_owned(),
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(30),
            operation_timeout: Duration::ZERO,
            max_requests: 100,
            max_idle: 16,
            idle_timeout: Duration::from_secs(60),
            keepalive: Duration::from_secs(60),
            max_redirects: 10,
            max_body: 64 * 1024 * 1024,
            proxy: None,
            environment_proxies: false,
            secrets: Vec::new(),
            tls,
        }
    }

    /// Adds the header of a login: a token alone, or a user with a password. `key` is that of the password, for messages.
    ///
    /// # Errors
    /// [`Error::Config`] of this key if the token cannot stand in a header.
    pub fn login(&mut self, key: &str, user: &str, password: Option<&Secret>) -> Result<(), Error> {
        let header = match (user, password) {
            ("", None) => return Ok(()),
            ("", Some(token)) => format!("Bearer {}", token.expose()),
            (user, password) => {
                let basic = basic(user, password.map_or("", Secret::expose));
                let header = format!("Basic {basic}");
                self.secrets.push(bare(&basic));
                header
            }
        };
        self.secrets.extend(password.cloned());
        self.header(key, AUTHORIZATION, &header.into())
    }

    /// Adds headers that go along with every request, and withholds their values from errors. `name` is the resource's,
    /// for messages.
    ///
    /// # Errors
    /// [`Error::Config`] of a key such as `http.headers.X-Key`, if the header cannot be sent, or is that of the login.
    pub fn headers(&mut self, name: &str, headers: &BTreeMap<String, Secret>) -> Result<(), Error> {
        for (text, value) in headers {
            let key = format!("{name}.headers.{text}");
            let header = HeaderName::try_from(text).map_err(|_| Error::config(&key, "is no name of an HTTP header"))?;
            if header == AUTHORIZATION && self.headers.contains_key(AUTHORIZATION) {
                let problem = "is set beside a login, which sends the same header: leave out one of them";
                return Err(Error::config(key, problem));
            }
            self.header(&key, header, value)?;
        }
        Ok(())
    }

    /// Adds a header that goes along with every request, and withholds its value from errors. `key` is that of the value,
    /// for messages.
    ///
    /// # Errors
    /// [`Error::Config`] of this key if the value cannot stand in a header.
    pub fn header(&mut self, key: &str, name: HeaderName, value: &Secret) -> Result<(), Error> {
        let sent = HeaderValue::from_str(value.expose());
        let mut sent = sent.map_err(|_may_quote_it| {
            Error::config(key, "cannot stand in an HTTP header: it must be printable ASCII")
        })?;
        sent.set_sensitive(true);
        self.headers.insert(name, sent);
        self.secrets.push(value.clone());
        Ok(())
    }

    /// Withholds the logins of the proxies from errors: their passwords, and the bare base64 of their headers.
    pub(super) fn withhold_proxies(&mut self) {
        const VARIABLES: [&str; 6] =
            ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
        let variables = VARIABLES.iter().filter(|_| self.environment_proxies);
        let by_environment = variables.filter_map(|variable| std::env::var(variable).ok()).map(Secret::from);
        let proxies: Vec<Secret> = by_environment.chain(self.proxy.clone()).collect();
        for proxy in proxies {
            // The driver takes one without a scheme as well.
            let text = proxy.expose().trim();
            let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
            let Ok(url) = Url::parse(&whole) else { continue };
            let [user, password] = [url.username(), url.password().unwrap_or_default()];
            // A user alone is a token.
            let secret = if password.is_empty() { user } else { password };
            if !secret.is_empty() {
                let decoded = |text| percent_decode_str(text).decode_utf8_lossy();
                let texts =
                    [secret.into(), (&*decoded(secret)).into(), bare(&basic(&decoded(user), &decoded(password)))];
                self.secrets.extend(texts);
            }
        }
    }

    /// The builder of the client that sends requests. It follows no redirect, because the client does that itself. It has
    /// no `read_timeout`, because the driver's would count the time that a slow reader takes.
    pub(super) fn builder(&self) -> Result<ClientBuilder, Failure> {
        let mut builder = ClientBuilder::new()
            .user_agent(&self.user_agent)
            .connect_timeout(self.connect_timeout)
            .pool_max_idle_per_host(self.max_idle)
            .pool_idle_timeout(self.idle_timeout)
            .tcp_keepalive(self.keepalive)
            .redirect(Policy::none())
            // A URL may have a secret in it, which the next server must not get.
            .referer(false)
            .retry(reqwest::retry::never())
            .http1_only();
        if !self.environment_proxies {
            builder = builder.no_proxy();
        }
        if let Some(proxy) = &self.proxy {
            let proxy = Proxy::all(proxy.expose()).map_err(|error| Failure::permanent(error.without_url()))?;
            builder = builder.proxy(proxy.no_proxy(NoProxy::from_env().filter(|_| self.environment_proxies)));
        }
        Ok(self.tls.apply(builder))
    }

    /// The builder of the client for libraries. The driver measures a server's silence itself there, and follows
    /// redirects. Nothing would keep that client at one server, so it has neither the login nor the headers.
    pub(super) fn raw_builder(&self) -> Result<ClientBuilder, Failure> {
        let policy = match self.max_redirects {
            0 => Policy::none(),
            max => Policy::limited(max),
        };
        let builder = self.builder()?.read_timeout(self.read_timeout).redirect(policy);
        Ok(if self.operation_timeout.is_zero() { builder } else { builder.timeout(self.operation_timeout) })
    }
}

/// The base64 of a login by `Basic`.
fn basic(user: &str, password: &str) -> String {
    BASE64_STANDARD.encode(format!("{user}:{password}"))
}

/// Base64 without its padding, which servers may leave out where they quote it.
fn bare(base64: &str) -> Secret {
    base64.trim_end_matches('=').into()
}

impl fmt::Debug for RequestSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestSettings").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> RequestSettings {
        RequestSettings::new(RequestTls::trusting_nobody("http").unwrap())
    }

    fn has(settings: &RequestSettings, secret: &str) -> bool {
        settings.secrets.iter().any(|known| known.expose() == secret)
    }

    #[test]
    fn the_bare_base64_of_a_login_is_a_secret() {
        let mut by_user = settings();
        by_user.login("http.password", "me", Some(&"p@ss".into())).unwrap();
        assert!(has(&by_user, "p@ss") && has(&by_user, "bWU6cEBzcw"));
        let mut by_token = settings();
        by_token.login("http.password", "", Some(&"t0ken".into())).unwrap();
        assert!(has(&by_token, "t0ken") && has(&by_token, "Bearer t0ken"));
    }

    #[test]
    fn the_login_of_a_proxy_is_a_secret() {
        let of = |proxy: &str| {
            let mut settings = settings();
            settings.proxy = Some(proxy.into());
            settings.withhold_proxies();
            settings
        };
        for proxy in ["http://me:p%40ss@127.0.0.1:1", "me:p%40ss@127.0.0.1:1", "socks5://me:p%40ss@127.0.0.1:1"] {
            let settings = of(proxy);
            assert!(has(&settings, "p%40ss") && has(&settings, "p@ss") && has(&settings, "bWU6cEBzcw"), "{proxy}");
        }
        let by_token = of("http://t0k%40n@127.0.0.1:1");
        assert!(has(&by_token, "t0k%40n") && has(&by_token, "t0k@n") && has(&by_token, "dDBrQG46"));
        assert!(of("127.0.0.1:1").secrets.is_empty() && of("http://127.0.0.1:1").secrets.is_empty());
    }
}
