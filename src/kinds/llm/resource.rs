//! The resource of a language model: making its client, asking for its models where that is wanted, and closing it.
//!
//! A client needs no server to be made. So connecting does no I/O unless `health_check` is on. Nothing is probed, because
//! requests may cost money, and the client is never lost.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::base::error::Failure;
use crate::kinds::llm::blocking;
use crate::kinds::llm::config::LlmConfig;
use crate::kinds::llm::handle::{Llm, LlmHandle, LlmSession};
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::kind::KindConfig;
use crate::lifecycle::link::Link;
use crate::lifecycle::requests::{RequestProbe, RequestSettings, Requests};
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::Usage;
use crate::net::tls::missing;

/// A language model in the pool.
pub struct LlmResource {
    config: Arc<LlmConfig>,
}

impl LlmResource {
    pub(super) fn new(config: LlmConfig) -> Self {
        LlmResource { config: Arc::new(config) }
    }

    /// The configuration and the settings with the key and the certificates that their files have now.
    async fn settings(&self, link: &Link) -> Result<(Arc<LlmConfig>, RequestSettings), Failure> {
        let config = Arc::new(self.config.current().await?.into_owned());
        let (read, name) = (Arc::clone(&config), Arc::clone(link.name()));
        // The files of TLS are read, and those of the machine's authorities.
        let settings = tokio::task::spawn_blocking(move || read.settings(&name)).await??;
        Ok((config, settings))
    }
}

impl Resource for LlmResource {
    type Handle = LlmHandle;

    async fn connect(&self, link: &Link) -> Result<LlmHandle, Failure> {
        // A pool without a language model is built all the same, so the default URL is refused only here.
        if cfg!(not(feature = "tls")) && self.config.base_url.is_none() {
            return Err(Failure::permanent(missing(&format!("{}.base_url", link.name()))));
        }
        let (config, settings) = self.settings(link).await?;
        let probe = match config.health_check {
            true => Some(Arc::new(ModelsProbe::new(settings.clone(), config.health_cache)?)),
            false => None,
        };
        if let Some(probe) = &probe {
            probe.ask().await?;
        }
        let tasks = Llm { session: LlmSession { requests: Requests::new(link, settings)?, config } };
        Ok(LlmHandle { threads: blocking::Llm::new(&tasks), tasks, probe })
    }

    async fn recover(&self, link: &Link, lost: &LlmHandle) -> Result<bool, Failure> {
        let (_, settings) = self.settings(link).await?;
        if let Some(probe) = &lost.probe {
            probe.probe.replace(settings.clone())?;
        }
        let requests = &lost.tasks.session.requests;
        requests.replace(settings)?;
        requests.restore();
        Ok(true)
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

    async fn close(&self, handle: LlmHandle) -> Result<(), Failure> {
        handle.tasks.session.requests.end().await
    }

    async fn refresh(&self, handle: &LlmHandle) -> Result<bool, Failure> {
        let requests = &handle.tasks.session.requests;
        let (_, settings) = self.settings(requests.link()).await?;
        if let Some(probe) = &handle.probe {
            probe.probe.replace(settings.clone())?;
        }
        requests.replace(settings)?;
        Ok(true)
    }

    fn cut(&self, handle: &LlmHandle) {
        handle.tasks.session.requests.cut();
    }

    fn endpoint(&self) -> String {
        self.config.server()
    }

    fn phase(&self) -> Phase {
        Phase::HttpClients
    }

    fn usage(&self, handle: &LlmHandle) -> Usage {
        Usage { max_idle: Some(self.config.max_idle), ..handle.tasks.session.requests.usage() }
    }
}

impl fmt::Debug for LlmResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LlmResource").field("endpoint", &self.endpoint()).finish_non_exhaustive()
    }
}

/// Asks for the models, and remembers for a while that they were told.
pub(super) struct ModelsProbe {
    probe: RequestProbe,
    cache: Duration,
    /// When they were told last. The lock is held for a look only.
    told: Mutex<Option<Instant>>,
}

impl ModelsProbe {
    fn new(settings: RequestSettings, cache: Duration) -> Result<Self, Failure> {
        let probe = RequestProbe::new(settings, "models")?.by_get();
        Ok(ModelsProbe { probe, cache, told: Mutex::new(None) })
    }

    async fn ask(&self) -> Result<(), Failure> {
        if self.told.lock().is_some_and(|told| told.elapsed() < self.cache) {
            return Ok(());
        }
        self.probe.ask().await?;
        *self.told.lock() = Some(Instant::now());
        Ok(())
    }
}
