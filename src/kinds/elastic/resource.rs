//! An Elasticsearch in the pool: connecting, asking for its health, bringing it back, and closing.
//!
//! Connecting proves that the server answers this user. The cluster's health is not asked to be good for that, because a
//! red cluster serves the indices that it has whole.

use std::fmt;
use std::sync::Arc;

use crate::base::error::Failure;
use crate::kinds::elastic::blocking;
use crate::kinds::elastic::bulk::BulkWriters;
use crate::kinds::elastic::config::ElasticConfig;
use crate::kinds::elastic::handle::{Elastic, ElasticHandle};
use crate::kinds::elastic::health::ClusterProbe;
use crate::kinds::elastic::scroll::OpenScrolls;
use crate::kinds::elastic::session::ElasticSession;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::kind::KindConfig;
use crate::lifecycle::link::Link;
use crate::lifecycle::requests::{RequestSettings, Requests};
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::Usage;

/// An Elasticsearch in the pool.
pub struct ElasticResource {
    config: Arc<ElasticConfig>,
}

impl ElasticResource {
    pub(super) fn new(config: ElasticConfig) -> Self {
        ElasticResource { config: Arc::new(config) }
    }

    /// The settings with the secrets and the certificates that their files have now.
    async fn settings(&self, link: &Link) -> Result<RequestSettings, Failure> {
        let config = self.config.current().await?.into_owned();
        let name = Arc::clone(link.name());
        // The files of TLS are read, and those of the machine's authorities.
        let made = tokio::task::spawn_blocking(move || config.settings(&name)).await?;
        Ok(made?)
    }
}

impl Resource for ElasticResource {
    type Handle = ElasticHandle;

    async fn connect(&self, link: &Link) -> Result<ElasticHandle, Failure> {
        let settings = self.settings(link).await?;
        let probe = ClusterProbe::new(settings.clone())?;
        probe.answers().await?;
        let tasks = Elastic {
            session: Arc::new(ElasticSession {
                requests: Requests::new(link, settings)?,
                config: Arc::clone(&self.config),
                probe,
                writers: BulkWriters::default(),
                scrolls: OpenScrolls::default(),
            }),
        };
        Ok(ElasticHandle { threads: blocking::Elastic::new(&tasks), tasks })
    }

    async fn recover(&self, link: &Link, lost: &ElasticHandle) -> Result<bool, Failure> {
        let ElasticSession { requests, probe, .. } = &*lost.tasks.session;
        let settings = self.settings(link).await?;
        probe.replace(settings.clone())?;
        // While a server restarts, something else may answer in its place.
        probe.answers().await.map_err(|failure| failure.with_permanent(false))?;
        requests.replace(settings)?;
        requests.restore();
        Ok(true)
    }

    async fn ping(&self, handle: &ElasticHandle) -> Result<(), Failure> {
        handle.tasks.session.probe.ask().await
    }

    async fn probe(&self, handle: &ElasticHandle) -> Result<(), Failure> {
        handle.tasks.session.probe.answers().await
    }

    async fn flush(&self, handle: &ElasticHandle) -> Result<(), Failure> {
        let ElasticSession { requests, config, writers, .. } = &*handle.tasks.session;
        writers.flush(requests.link(), config.flush_timeout).await
    }

    async fn close(&self, handle: ElasticHandle) -> Result<(), Failure> {
        let session = &handle.tasks.session;
        session.scrolls.end(session).await;
        session.requests.end().await
    }

    async fn refresh(&self, handle: &ElasticHandle) -> Result<bool, Failure> {
        let ElasticSession { requests, probe, .. } = &*handle.tasks.session;
        let settings = self.settings(requests.link()).await?;
        probe.replace(settings.clone())?;
        requests.replace(settings)?;
        Ok(true)
    }

    fn cut(&self, handle: &ElasticHandle) {
        handle.tasks.session.requests.cut();
    }

    fn endpoint(&self) -> String {
        self.config.server()
    }

    fn phase(&self) -> Phase {
        Phase::VectorStores
    }

    fn usage(&self, handle: &ElasticHandle) -> Usage {
        Usage { max_idle: Some(self.config.max_idle), ..handle.tasks.session.requests.usage() }
    }
}

impl fmt::Debug for ElasticResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ElasticResource").field("endpoint", &self.endpoint()).finish_non_exhaustive()
    }
}
