//! The resource of a Milvus: making its client, asking for its collections, and closing it.

use std::fmt;
use std::sync::Arc;

use crate::base::error::Failure;
use crate::kinds::milvus::blocking;
use crate::kinds::milvus::config::MilvusConfig;
use crate::kinds::milvus::errors::{judge, of_ping};
use crate::kinds::milvus::handle::{Milvus, MilvusHandle, MilvusSession};
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::kind::KindConfig;
use crate::lifecycle::link::Link;
use crate::lifecycle::requests::{RequestProbe, RequestSettings, Requests};
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::Usage;

/// A Milvus in the pool.
pub struct MilvusResource {
    config: MilvusConfig,
}

impl MilvusResource {
    pub(super) fn new(config: MilvusConfig) -> Self {
        MilvusResource { config }
    }

    /// The settings with the token and the certificates that their files have now.
    async fn settings(&self, link: &Link) -> Result<RequestSettings, Failure> {
        let config = self.config.current().await?.into_owned();
        let name = Arc::clone(link.name());
        // The files of TLS are read, and those of the machine's authorities.
        let made = tokio::task::spawn_blocking(move || config.settings(&name)).await?;
        Ok(made?)
    }

    async fn asked(&self, probe: &RequestProbe) -> Result<(), Failure> {
        let is_by_file = self.config.token_file.is_some();
        let body = probe.read().await.map_err(|failure| of_ping(failure, is_by_file))?;
        judge(&body).map_err(|failure| of_ping(failure, is_by_file))
    }
}

impl Resource for MilvusResource {
    type Handle = MilvusHandle;

    async fn connect(&self, link: &Link) -> Result<MilvusHandle, Failure> {
        let settings = self.settings(link).await?;
        // The question reaches the server's storage. The server's own page of health says that all is well even if this
        // interface hangs.
        let probe = RequestProbe::new(settings.clone(), &self.config.collections())?;
        self.asked(&probe).await?;
        let requests = Requests::new(link, settings)?;
        let tasks = Milvus { session: MilvusSession { requests, database: self.config.database.as_str().into() } };
        Ok(MilvusHandle { threads: blocking::Milvus::new(&tasks), tasks, probe: Arc::new(probe) })
    }

    async fn recover(&self, link: &Link, lost: &MilvusHandle) -> Result<bool, Failure> {
        let settings = self.settings(link).await?;
        lost.probe.replace(settings.clone())?;
        self.ping(lost).await?;
        let requests = &lost.tasks.session.requests;
        requests.replace(settings)?;
        requests.restore();
        Ok(true)
    }

    async fn ping(&self, handle: &MilvusHandle) -> Result<(), Failure> {
        self.asked(&handle.probe).await
    }

    async fn close(&self, handle: MilvusHandle) -> Result<(), Failure> {
        handle.tasks.session.requests.end().await
    }

    async fn refresh(&self, handle: &MilvusHandle) -> Result<bool, Failure> {
        let requests = &handle.tasks.session.requests;
        let settings = self.settings(requests.link()).await?;
        handle.probe.replace(settings.clone())?;
        requests.replace(settings)?;
        Ok(true)
    }

    fn cut(&self, handle: &MilvusHandle) {
        handle.tasks.session.requests.cut();
    }

    fn endpoint(&self) -> String {
        self.config.server()
    }

    fn phase(&self) -> Phase {
        Phase::VectorStores
    }

    fn usage(&self, handle: &MilvusHandle) -> Usage {
        Usage { max_idle: Some(self.config.max_idle), ..handle.tasks.session.requests.usage() }
    }
}

impl fmt::Debug for MilvusResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MilvusResource").field("endpoint", &self.endpoint()).finish_non_exhaustive()
    }
}
