//! The configuration of a language model: its fields, their defaults, their environment variables, and the checks.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::base::error::Error;
use crate::base::millis;
use crate::base::secret::{Secret, SecretFile};
use crate::base::setters::setters;
use crate::kinds::llm::resource::LlmResource;
use crate::kinds::rest::{self, limit_setters, one_secret};
use crate::lifecycle::kind::KindConfig;
use crate::net::base_url::BaseUrl;
use crate::net::checks::Checks;
use crate::net::parts::{Field, Names};
use crate::net::tls::TlsOptions;

/// Where chats are answered unless the configuration says otherwise.
pub(super) const OPENAI: &str = "https://api.openai.com/v1";

/// How often a chat is repeated at most.
const MOST_REPEATS: u32 = 2;

/// A language model behind an OpenAI-compatible server; `[llm]` or `[named.llm.NAME]` in TOML.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LlmConfig {
    /// The URL that `/chat/completions` is below. Defaults to none, which is `https://api.openai.com/v1`. Environment:
    /// `OPENAI_BASE_URL`.
    pub base_url: Option<Secret>,
    /// The key. Defaults to none, for servers that ask for none. Environment: `OPENAI_API_KEY`.
    pub api_key: Option<Secret>,
    /// The file that has the key, instead of `api_key`. It is read again at every connect and
    /// [`refresh`](crate::ResourcePool::refresh). Defaults to none. Environment: `OPENAI_API_KEY_FILE`.
    pub api_key_file: Option<SecretFile>,
    /// The model of chats that name none. Defaults to none, so that every chat names one. Environment: `OPENAI_MODEL`.
    pub model: String,
    /// The headers that go along with every request, such as `OpenAI-Organization`. Their values count as secrets. A URL
    /// of the environment takes the place of them too, since they belong to the other server. Defaults to none.
    pub headers: BTreeMap<String, Secret>,
    /// The limit for opening a connection, with DNS and TLS. Defaults to 5 s.
    #[serde(rename = "connect_timeout_ms", with = "millis")]
    pub connect_timeout: Duration,
    /// How long the server may be silent, at least 1 ms: until its answer begins, and between two parts of a stream. An
    /// answer that is no stream begins when it is complete. Defaults to 120 s.
    #[serde(rename = "read_timeout_ms", with = "millis")]
    pub read_timeout: Duration,
    /// The limit of a whole request, from sending it until its answer has ended, with the time that the caller takes to
    /// read that. Zero is none. Defaults to 0.
    #[serde(rename = "operation_timeout_ms", with = "millis")]
    pub operation_timeout: Duration,
    /// The most chats at a time. One beyond that waits, at most the acquire timeout. Defaults to 16.
    pub max_requests: usize,
    /// The most idle connections that are kept. Defaults to 16.
    pub max_idle: usize,
    /// The time after which an idle connection is closed. Defaults to 60 s.
    #[serde(rename = "idle_timeout_ms", with = "millis")]
    pub idle_timeout: Duration,
    /// The time without traffic after which TCP keepalive begins, in whole seconds from 1 to 32,767. Defaults to 60 s.
    #[serde(rename = "keepalive_ms", with = "millis")]
    pub keepalive: Duration,
    /// The most bytes of an answer as a whole, or of one part of a stream. Defaults to 16 MiB.
    pub max_body: usize,
    /// How often a chat is sent again that was answered by 429 or 503, from 0 to 2. Nothing else is sent again. Defaults
    /// to 2.
    pub max_repeats: u32,
    /// The longest that a chat waits for its repeats in all. The server says by `Retry-After` how long to wait, and if it
    /// does not, the wait is 500 ms and then 1 s. If the rest of this time is shorter than that, the error is answered
    /// at once. Defaults to 20 s.
    #[serde(rename = "max_repeat_wait_ms", with = "millis")]
    pub max_repeat_wait: Duration,
    /// The proxy, as in `http://user:password@host:port`. Defaults to none.
    pub proxy: Option<Secret>,
    /// Whether the proxies of the environment are used: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`. Defaults
    /// to `false`.
    pub environment_proxies: bool,
    /// Whether connecting and health checks ask for `/models`. The prober asks nothing. Defaults to `false`: health is
    /// unknown.
    pub health_check: bool,
    /// How long a health check that passed is not asked anew. Defaults to 60 s.
    #[serde(rename = "health_cache_ms", with = "millis")]
    pub health_cache: Duration,
    /// The options of TLS. Defaults to none: an `https://` trusts the authorities that the machine trusts.
    pub tls: Option<TlsOptions>,
}

impl Default for LlmConfig {
    fn default() -> Self {
        LlmConfig {
            base_url: None,
            api_key: None,
            api_key_file: None,
            model: String::new(),
            headers: BTreeMap::new(),
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(120),
            operation_timeout: Duration::ZERO,
            max_requests: 16,
            max_idle: 16,
            idle_timeout: Duration::from_secs(60),
            keepalive: Duration::from_secs(60),
            max_body: 16 * 1024 * 1024,
            max_repeats: MOST_REPEATS,
            max_repeat_wait: Duration::from_secs(20),
            proxy: None,
            environment_proxies: false,
            health_check: false,
            health_cache: Duration::from_secs(60),
            tls: None,
        }
    }
}

impl LlmConfig {
    /// The defaults, below this URL.
    pub fn url(url: impl Into<Secret>) -> Self {
        LlmConfig { base_url: Some(url.into()), ..LlmConfig::default() }
    }

    /// Adds a header that goes along with every request. Its value counts as a secret.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Secret>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// Sets the file that has the key.
    pub fn api_key_file(mut self, file: impl Into<SecretFile>) -> Self {
        self.api_key_file = Some(file.into());
        self
    }

    /// Sets the options of TLS.
    pub fn tls(mut self, tls: TlsOptions) -> Self {
        self.tls = Some(tls);
        self
    }
}

impl LlmConfig {
    limit_setters! {}

    setters! {
        plain {
            /// Sets how often a chat is sent again that was answered by 429 or 503.
            max_repeats: u32,
            /// Sets the longest that a chat waits for its repeats in all.
            max_repeat_wait: Duration,
            /// Sets whether the proxies of the environment are used.
            environment_proxies: bool,
            /// Sets whether connecting and health checks ask for `/models`.
            health_check: bool,
            /// Sets how long a health check that passed is not asked anew.
            health_cache: Duration,
        }
        text {
            /// Sets the model of chats that name none.
            model: String,
        }
        optional {
            /// Sets the key.
            api_key: Secret,
            /// Sets the proxy.
            proxy: Secret,
        }
    }
}

impl KindConfig for LlmConfig {
    const KIND: &'static str = "llm";
    const SYSTEM: (&'static str, &'static str) = ("gen_ai.provider.name", "openai");
    const IS_OURS: bool = true;
    type Resource = LlmResource;

    const NAMES: Names = Names {
        url: ("base_url", &["OPENAI_BASE_URL"]),
        parts: [("", &[]), ("", &[]), ("", &[]), ("api_key", &["OPENAI_API_KEY"]), ("", &[])],
        plain: &["http"],
        tls: ["", "", "", "", ""],
    };

    const MORE: &[Field] = &[("model", &["OPENAI_MODEL"])];

    one_secret!(base_url, api_key, api_key_file, headers);

    fn set_more(&mut self, _model: &str, _: &str, text: &str) -> Result<(), Error> {
        text.clone_into(&mut self.model);
        Ok(())
    }

    /// Moves the key out of the URL.
    fn take_apart(&mut self, key: &str) -> Result<(), Error> {
        let Some(text) = &self.base_url else { return Ok(()) };
        let BaseUrl { url, user, password } = BaseUrl::new(key, text, &mut self.tls)?;
        if user.is_some() {
            return Err(Error::config(key, "has a user, but a key has none; it may be the password alone"));
        }
        self.base_url = Some(url);
        self.api_key = password.or(self.api_key.take());
        Ok(())
    }

    fn check(&mut self, name: &str) -> Result<(), Error> {
        if self.max_repeats > MOST_REPEATS {
            return Checks(name).fail("max_repeats", format_args!("must be from 0 to {MOST_REPEATS}"));
        }
        rest::check(self, name)
    }

    fn resource(&self, name: &str) -> Result<LlmResource, Error> {
        Ok(LlmResource::new(self.settled(name)?))
    }
}
