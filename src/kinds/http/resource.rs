//! A client of HTTP in the pool.
//!
//! A client needs no server to be made. So without `health_url` connecting does no I/O, nothing is probed, and the client
//! is never lost.

use std::sync::Arc;

use reqwest::Url;

use crate::base::error::{Error, Failure};
use crate::base::secret::Secret;
use crate::kinds::http::blocking;
use crate::kinds::http::config::HttpConfig;
use crate::kinds::http::handle::{Http, HttpHandle};
use crate::kinds::rest::{RestKind, RestLimits, RestResource, limits};
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::link::Link;
use crate::lifecycle::requests::{RequestProbe, RequestSettings, Requests};

/// A client of HTTP in the pool.
pub type HttpResource = RestResource<HttpConfig>;

impl RestKind for HttpConfig {
    type Handle = HttpHandle;
    const PHASE: Phase = Phase::HttpClients;

    fn base(&self) -> Option<Url> {
        self.url.as_ref().and_then(|url| Url::parse(url.expose().trim()).ok())
    }

    fn limits(&self) -> RestLimits {
        limits!(self)
    }

    fn proxies(&self) -> (Option<&Secret>, bool) {
        (self.proxy.as_ref(), self.environment_proxies)
    }

    fn log_in(&self, name: &str, settings: &mut RequestSettings) -> Result<(), Error> {
        settings.user_agent.clone_from(&self.user_agent);
        settings.max_redirects = self.max_redirects;
        settings.login(&format!("{name}.password"), &self.user, self.password.as_ref())?;
        settings.headers(name, &self.headers)
    }

    fn open(config: &Arc<Self>, link: &Link, settings: RequestSettings) -> Result<HttpHandle, Failure> {
        let probe = config.health_url.as_ref().map(|url| RequestProbe::new(settings.clone(), url.expose().trim()));
        let probe = probe.transpose()?.map(Arc::new);
        let requests = Requests::new(link, settings)?;
        let (tasks, threads) = (Http::new(&requests), blocking::Http::new(&requests));
        Ok(HttpHandle { tasks, threads, requests, probe })
    }

    fn requests(handle: &HttpHandle) -> &Requests {
        &handle.requests
    }

    fn renew(handle: &HttpHandle, settings: &RequestSettings) -> Result<(), Failure> {
        handle.probe.as_ref().map_or(Ok(()), |probe| probe.replace(settings.clone()))
    }

    async fn prove(&self, handle: &HttpHandle, _: &RequestSettings) -> Result<(), Failure> {
        self.probe(handle).await
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
}
