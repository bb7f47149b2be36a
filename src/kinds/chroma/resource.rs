//! The resource of a Chroma: making its client, asking for the tenant's database and for the heartbeat, and closing it.

use std::fmt;
use std::sync::Arc;

use crate::base::error::Failure;
use crate::kinds::chroma::blocking;
use crate::kinds::chroma::config::ChromaConfig;
use crate::kinds::chroma::errors::of_database;
use crate::kinds::chroma::handle::{Chroma, ChromaHandle, ChromaSession};
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::kind::KindConfig;
use crate::lifecycle::link::Link;
use crate::lifecycle::requests::{RequestProbe, RequestSettings, Requests};
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::Usage;

/// A Chroma in the pool.
pub struct ChromaResource {
    config: ChromaConfig,
}

/// The path that tells whether the server is well. It needs no right.
const HEARTBEAT: &str = "api/v2/heartbeat";

impl ChromaResource {
    pub(super) fn new(config: ChromaConfig) -> Self {
        ChromaResource { config }
    }

    /// The settings with the token and the certificates that their files have now.
    async fn settings(&self, link: &Link) -> Result<RequestSettings, Failure> {
        let config = self.config.current().await?.into_owned();
        let name = Arc::clone(link.name());
        // The files of TLS are read, and those of the machine's authorities.
        let made = tokio::task::spawn_blocking(move || config.settings(&name)).await?;
        Ok(made?)
    }

    /// The settings, once the server has told that it has the tenant's database and takes the token.
    async fn proved(&self, link: &Link) -> Result<RequestSettings, Failure> {
        let settings = self.settings(link).await?;
        let database = RequestProbe::new(settings.clone(), &self.config.path())?.by_get();
        let is_by_file = self.config.token_file.is_some();
        database.ask().await.map_err(|failure| of_database(failure, is_by_file))?;
        Ok(settings)
    }
}

impl Resource for ChromaResource {
    type Handle = ChromaHandle;

    async fn connect(&self, link: &Link) -> Result<ChromaHandle, Failure> {
        let settings = self.proved(link).await?;
        let heartbeat = Arc::new(RequestProbe::new(settings.clone(), HEARTBEAT)?.by_get());
        let requests = Requests::new(link, settings)?;
        let tasks = Chroma { session: ChromaSession { requests, database: self.config.path().into() } };
        Ok(ChromaHandle { threads: blocking::Chroma::new(&tasks), tasks, heartbeat })
    }

    async fn recover(&self, link: &Link, lost: &ChromaHandle) -> Result<bool, Failure> {
        let settings = self.proved(link).await?;
        lost.heartbeat.replace(settings.clone())?;
        let requests = &lost.tasks.session.requests;
        requests.replace(settings)?;
        requests.restore();
        Ok(true)
    }

    async fn ping(&self, handle: &ChromaHandle) -> Result<(), Failure> {
        handle.heartbeat.ask().await
    }

    async fn close(&self, handle: ChromaHandle) -> Result<(), Failure> {
        handle.tasks.session.requests.end().await
    }

    async fn refresh(&self, handle: &ChromaHandle) -> Result<bool, Failure> {
        let requests = &handle.tasks.session.requests;
        let settings = self.settings(requests.link()).await?;
        handle.heartbeat.replace(settings.clone())?;
        requests.replace(settings)?;
        Ok(true)
    }

    fn cut(&self, handle: &ChromaHandle) {
        handle.tasks.session.requests.cut();
    }

    fn endpoint(&self) -> String {
        self.config.server()
    }

    fn phase(&self) -> Phase {
        Phase::VectorStores
    }

    fn usage(&self, handle: &ChromaHandle) -> Usage {
        Usage { max_idle: Some(self.config.max_idle), ..handle.tasks.session.requests.usage() }
    }
}

impl fmt::Debug for ChromaResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChromaResource").field("endpoint", &self.endpoint()).finish_non_exhaustive()
    }
}
