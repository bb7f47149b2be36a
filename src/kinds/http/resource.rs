//! The resource of a client: making it, asking for the server's health where that is wanted, and closing it.
//!
//! A client needs no server to be made. So without `health_url` connecting does no I/O, nothing is probed, and the client
//! is never lost.

use std::fmt;
use std::sync::Arc;

use crate::base::error::Failure;
use crate::kinds::http::blocking;
use crate::kinds::http::config::HttpConfig;
use crate::kinds::http::handle::{Http, HttpHandle};
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::kind::KindConfig;
use crate::lifecycle::link::Link;
use crate::lifecycle::requests::{RequestProbe, RequestSettings, Requests};
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::Usage;

/// A client of HTTP in the pool.
pub struct HttpResource {
    config: HttpConfig,
}

impl HttpResource {
    pub(super) fn new(config: HttpConfig) -> Self {
        HttpResource { config }
    }

    /// The settings with the password and the certificates that their files have now.
    async fn settings(&self, link: &Link) -> Result<RequestSettings, Failure> {
        let config = self.config.current().await?.into_owned();
        let name = Arc::clone(link.name());
        // The files of TLS are read, and those of the machine's authorities.
        let made = tokio::task::spawn_blocking(move || config.settings(&name)).await?;
        Ok(made?)
    }
}

impl Resource for HttpResource {
    type Handle = HttpHandle;

    async fn connect(&self, link: &Link) -> Result<HttpHandle, Failure> {
        let settings = self.settings(link).await?;
        let probe = self.config.health_url.as_ref().map(|url| RequestProbe::new(settings.clone(), url.expose()));
        let probe = probe.transpose()?.map(Arc::new);
        if let Some(probe) = &probe {
            probe.ask().await?;
        }
        let requests = Requests::new(link, settings)?;
        let (tasks, threads) = (Http::new(&requests), blocking::Http::new(&requests));
        Ok(HttpHandle { tasks, threads, requests, probe })
    }

    async fn recover(&self, link: &Link, lost: &HttpHandle) -> Result<bool, Failure> {
        let settings = self.settings(link).await?;
        if let Some(probe) = &lost.probe {
            probe.replace(settings.clone())?;
            probe.ask().await?;
        }
        lost.requests.replace(settings)?;
        lost.requests.restore();
        Ok(true)
    }

    async fn ping(&self, handle: &HttpHandle) -> Result<(), Failure> {
        match &handle.probe {
            Some(probe) => probe.ask().await,
            None => Err(Failure::unasked("nothing is asked without a `health_url`")),
        }
    }

    async fn probe(&self, handle: &HttpHandle) -> Result<(), Failure> {
        if handle.probe.is_some() { self.ping(handle).await } else { Ok(()) }
    }

    async fn close(&self, handle: HttpHandle) -> Result<(), Failure> {
        handle.requests.end().await
    }

    async fn refresh(&self, handle: &HttpHandle) -> Result<bool, Failure> {
        let settings = self.settings(handle.requests.link()).await?;
        if let Some(probe) = &handle.probe {
            probe.replace(settings.clone())?;
        }
        handle.requests.replace(settings)?;
        Ok(true)
    }

    fn cut(&self, handle: &HttpHandle) {
        handle.requests.cut();
    }

    fn endpoint(&self) -> String {
        self.config.server()
    }

    fn phase(&self) -> Phase {
        Phase::HttpClients
    }

    fn usage(&self, handle: &HttpHandle) -> Usage {
        Usage { max_idle: Some(self.config.max_idle), ..handle.requests.usage() }
    }
}

impl fmt::Debug for HttpResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpResource").field("endpoint", &self.endpoint()).finish_non_exhaustive()
    }
}
