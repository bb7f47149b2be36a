//! A Milvus in the pool, which is asked for its collections.

use std::sync::Arc;

use reqwest::Url;

use crate::base::error::{Error, Failure};
use crate::base::secret::Secret;
use crate::kinds::milvus::blocking;
use crate::kinds::milvus::config::{LOCAL, MilvusConfig};
use crate::kinds::milvus::errors::{judge, of_ping};
use crate::kinds::milvus::handle::{Milvus, MilvusHandle, MilvusSession};
use crate::kinds::rest::{RestKind, RestLimits, RestResource, limits};
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::link::Link;
use crate::lifecycle::requests::{RequestProbe, RequestSettings, Requests};

/// A Milvus in the pool.
pub type MilvusResource = RestResource<MilvusConfig>;

impl RestKind for MilvusConfig {
    type Handle = MilvusHandle;
    const PHASE: Phase = Phase::VectorStores;

    fn base(&self) -> Option<Url> {
        Url::parse(self.url.as_ref().map_or(LOCAL, |url| url.expose().trim())).ok()
    }

    fn limits(&self) -> RestLimits {
        limits!(self)
    }

    fn log_in(&self, name: &str, settings: &mut RequestSettings) -> Result<(), Error> {
        settings.login(&format!("{name}.token"), "", self.token.as_ref())?;
        // The server may tell the password alone.
        let passwords = settings.secrets.iter().filter_map(|token| token.expose().split_once(':'));
        let passwords: Vec<Secret> = passwords.map(|(_user, password)| password.into()).collect();
        settings.secrets.extend(passwords);
        Ok(())
    }

    fn open(config: &Arc<Self>, link: &Link, settings: RequestSettings) -> Result<MilvusHandle, Failure> {
        // The question reaches the server's storage. The server's own page of health says that all is well even if this
        // interface hangs.
        let probe = Arc::new(RequestProbe::new(settings.clone(), &config.collections())?.strictly());
        let requests = Requests::new(link, settings)?;
        let tasks = Milvus { session: MilvusSession { requests, database: config.database.as_str().into() } };
        Ok(MilvusHandle { threads: blocking::Milvus::new(&tasks), tasks, probe })
    }

    fn requests(handle: &MilvusHandle) -> &Requests {
        &handle.tasks.session.requests
    }

    fn renew(handle: &MilvusHandle, settings: &RequestSettings) -> Result<(), Failure> {
        handle.probe.replace(settings.clone())
    }

    async fn prove(&self, handle: &MilvusHandle, _: &RequestSettings) -> Result<(), Failure> {
        self.ping(handle).await
    }

    async fn ping(&self, handle: &MilvusHandle) -> Result<(), Failure> {
        let is_by_file = self.is_by_file();
        let body = handle.probe.read().await.map_err(|failure| of_ping(failure, is_by_file))?;
        judge(&body).map_err(|failure| of_ping(failure, is_by_file))
    }
}
