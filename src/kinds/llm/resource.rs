//! A language model in the pool, which is asked for its models where that is wanted.
//!
//! A client needs no server to be made. So connecting does no I/O unless `health_check` is on. Nothing is probed, because
//! requests may cost money, and the client is never lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use reqwest::Url;

use crate::base::error::{Error, Failure};
use crate::base::secret::Secret;
use crate::kinds::llm::blocking;
use crate::kinds::llm::config::{LlmConfig, OPENAI};
use crate::kinds::llm::handle::{Llm, LlmHandle, LlmSession};
use crate::kinds::rest::{RestKind, RestLimits, RestResource, limits};
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::link::Link;
use crate::lifecycle::requests::{RequestProbe, RequestSettings, Requests};
use crate::net::tls::missing;

/// A language model in the pool.
pub type LlmResource = RestResource<LlmConfig>;

impl RestKind for LlmConfig {
    type Handle = LlmHandle;
    const PHASE: Phase = Phase::HttpClients;

    fn base(&self) -> Option<Url> {
        Url::parse(self.base_url.as_ref().map_or(OPENAI, |url| url.expose().trim())).ok()
    }

    fn limits(&self) -> RestLimits {
        limits!(self)
    }

    fn proxies(&self) -> (Option<&Secret>, bool) {
        (self.proxy.as_ref(), self.environment_proxies)
    }

    fn log_in(&self, name: &str, settings: &mut RequestSettings) -> Result<(), Error> {
        settings.login(&format!("{name}.api_key"), "", self.api_key.as_ref())?;
        settings.headers(name, &self.headers)
    }

    fn open(config: &Arc<Self>, link: &Link, settings: RequestSettings) -> Result<LlmHandle, Failure> {
        // A pool without a language model is built all the same, so the default URL is refused only here.
        if cfg!(not(feature = "tls")) && config.base_url.is_none() {
            return Err(Failure::permanent(missing(&format!("{}.base_url", link.name()))));
        }
        let probe = match config.health_check {
            true => Some(Arc::new(ModelsProbe::new(settings.clone(), config.health_cache)?)),
            false => None,
        };
        let tasks =
            Llm { session: LlmSession { requests: Requests::new(link, settings)?, config: Arc::clone(config) } };
        Ok(LlmHandle { threads: blocking::Llm::new(&tasks), tasks, probe })
    }

    fn requests(handle: &LlmHandle) -> &Requests {
        &handle.tasks.session.requests
    }

    fn renew(handle: &LlmHandle, settings: &RequestSettings) -> Result<(), Failure> {
        handle.probe.as_ref().map_or(Ok(()), |probe| probe.replace(settings.clone()))
    }

    async fn prove(&self, handle: &LlmHandle, _: &RequestSettings) -> Result<(), Failure> {
        if handle.probe.is_some() { self.ping(handle).await } else { Ok(()) }
    }

    async fn ping(&self, handle: &LlmHandle) -> Result<(), Failure> {
        match &handle.probe {
            Some(probe) => probe.ask().await,
            None => Err(Failure::unasked("nothing is asked unless `health_check` is on")),
        }
    }

    async fn probe(&self, _: &LlmHandle) -> Result<(), Failure> {
        Ok(())
    }
}

/// Asks for the models, and remembers for a while that they were told.
pub(super) struct ModelsProbe {
    probe: RequestProbe,
    cache: Duration,
    /// The lock is held for a look only.
    told: Mutex<ModelsAnswer>,
}

/// The last answer that passed.
#[derive(Clone, Copy)]
struct ModelsAnswer {
    /// How often the settings were replaced before it.
    settings: u64,
    at: Option<Instant>,
}

impl ModelsProbe {
    fn new(settings: RequestSettings, cache: Duration) -> Result<Self, Failure> {
        let probe = RequestProbe::new(settings, "models")?.by_get().strictly();
        Ok(ModelsProbe { probe, cache, told: Mutex::new(ModelsAnswer { settings: 0, at: None }) })
    }

    /// Asks with these settings from now on. An answer to the old key says nothing about the new one.
    fn replace(&self, settings: RequestSettings) -> Result<(), Failure> {
        self.probe.replace(settings)?;
        let mut told = self.told.lock();
        *told = ModelsAnswer { settings: told.settings + 1, at: None };
        Ok(())
    }

    async fn ask(&self) -> Result<(), Failure> {
        let ModelsAnswer { settings, at } = *self.told.lock();
        if at.is_some_and(|at| at.elapsed() < self.cache) {
            return Ok(());
        }
        self.probe.ask().await?;
        let mut told = self.told.lock();
        if told.settings == settings {
            told.at = Some(Instant::now());
        }
        Ok(())
    }
}
