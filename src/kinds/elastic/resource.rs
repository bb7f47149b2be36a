//! An Elasticsearch in the pool.
//!
//! Connecting proves that the server answers this user. The cluster's health is not asked to be good for that, because a
//! red cluster serves the indices that it has whole.

use std::sync::Arc;

use http::header::AUTHORIZATION;
use reqwest::Url;

use crate::base::error::{Error, Failure};
use crate::base::secret::{Secret, SecretFile};
use crate::kinds::elastic::blocking;
use crate::kinds::elastic::bulk::BulkWriters;
use crate::kinds::elastic::config::{ElasticConfig, LOCAL};
use crate::kinds::elastic::handle::{Elastic, ElasticHandle};
use crate::kinds::elastic::health::ClusterProbe;
use crate::kinds::elastic::scroll::OpenScrolls;
use crate::kinds::elastic::session::ElasticSession;
use crate::kinds::rest::{RestKind, RestLimits, RestResource, limits};
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::link::Link;
use crate::lifecycle::requests::{HttpStatusError, RequestSettings, Requests};
use crate::net::checks::Checks;
use crate::net::tls;

/// An Elasticsearch in the pool.
pub type ElasticResource = RestResource<ElasticConfig>;

impl RestKind for ElasticConfig {
    type Handle = ElasticHandle;
    const PHASE: Phase = Phase::VectorStores;

    fn base(&self) -> Option<Url> {
        let local = LOCAL[usize::from(self.tls.is_some())];
        Url::parse(self.url.as_ref().map_or(local, |url| url.expose().trim())).ok()
    }

    fn limits(&self) -> RestLimits {
        limits!(self)
    }

    fn proxies(&self) -> (Option<&Secret>, bool) {
        (self.proxy.as_ref(), self.environment_proxies)
    }

    fn log_in(&self, name: &str, settings: &mut RequestSettings) -> Result<(), Error> {
        settings.secrets.extend(self.api_key_file.as_ref().map(SecretFile::recent).unwrap_or_default());
        let checks = Checks(name);
        match &self.api_key {
            Some(_) if !self.user.is_empty() || self.password.is_some() => {
                checks.fail("api_key", "is set beside a user or a password: leave out one of them")
            }
            Some(key) => {
                settings.secrets.push(key.clone());
                let header = format!("ApiKey {}", key.expose()).into();
                settings.header(&format!("{name}.api_key"), AUTHORIZATION, &header)
            }
            None if self.user.is_empty() && self.password.is_some() => {
                checks.fail("password", "is set without a user: set `user` too, or `api_key` instead")
            }
            None => settings.login(&format!("{name}.password"), &self.user, self.password.as_ref()),
        }
    }

    fn is_by_file(&self) -> bool {
        self.password_file.is_some() || self.api_key_file.is_some()
    }

    fn open(config: &Arc<Self>, link: &Link, settings: RequestSettings) -> Result<ElasticHandle, Failure> {
        let tasks = Elastic {
            session: Arc::new(ElasticSession {
                probe: ClusterProbe::new(settings.clone())?,
                requests: Requests::new(link, settings)?,
                config: Arc::clone(config),
                writers: BulkWriters::default(),
                scrolls: OpenScrolls::default(),
            }),
        };
        Ok(ElasticHandle { threads: blocking::Elastic::new(&tasks), tasks })
    }

    fn requests(handle: &ElasticHandle) -> &Requests {
        &handle.tasks.session.requests
    }

    fn renew(handle: &ElasticHandle, settings: &RequestSettings) -> Result<(), Failure> {
        handle.tasks.session.probe.replace(settings.clone())
    }

    async fn prove(&self, handle: &ElasticHandle, _: &RequestSettings) -> Result<(), Failure> {
        self.probe(handle).await
    }

    fn is_foreign(failure: &Failure) -> bool {
        !failure.source().is::<HttpStatusError>() && !tls::is_permanent(failure.source())
    }

    async fn ping(&self, handle: &ElasticHandle) -> Result<(), Failure> {
        handle.tasks.session.probe.ask().await
    }

    async fn probe(&self, handle: &ElasticHandle) -> Result<(), Failure> {
        handle.tasks.session.probe.answers().await
    }

    async fn flush(handle: &ElasticHandle) -> Result<(), Failure> {
        let ElasticSession { requests, config, writers, .. } = &*handle.tasks.session;
        writers.flush(requests.link(), config.flush_timeout).await
    }

    async fn end(handle: &ElasticHandle) {
        let session = &handle.tasks.session;
        session.scrolls.end(session).await;
    }
}
