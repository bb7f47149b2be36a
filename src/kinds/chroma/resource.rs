//! A Chroma in the pool: asking for the tenant's database as it connects, and for the heartbeat from then on.

use std::sync::Arc;

use http::HeaderName;
use reqwest::Url;
use serde::de::IgnoredAny;

use crate::base::error::{Error, Failure};
use crate::kinds::chroma::blocking;
use crate::kinds::chroma::config::{ChromaConfig, LOCAL};
use crate::kinds::chroma::errors::{SET_URL, of_database};
use crate::kinds::chroma::handle::{Chroma, ChromaHandle, ChromaSession};
use crate::kinds::rest::{RestKind, RestLimits, RestResource, limits};
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::link::Link;
use crate::lifecycle::requests::{RequestProbe, RequestSettings, Requests};

/// A Chroma in the pool.
pub type ChromaResource = RestResource<ChromaConfig>;

/// The header that Chroma Cloud asks for.
const CLOUD: HeaderName = HeaderName::from_static("x-chroma-token");

/// The path that tells whether the server is well. It needs no right.
const HEARTBEAT: &str = "api/v2/heartbeat";

impl RestKind for ChromaConfig {
    type Handle = ChromaHandle;
    const PHASE: Phase = Phase::VectorStores;

    fn base(&self) -> Option<Url> {
        Url::parse(self.url.as_ref().map_or(LOCAL, |url| url.expose().trim())).ok()
    }

    fn limits(&self) -> RestLimits {
        limits!(self)
    }

    fn log_in(&self, name: &str, settings: &mut RequestSettings) -> Result<(), Error> {
        let key = format!("{name}.token");
        settings.login(&key, "", self.token.as_ref())?;
        match &self.token {
            Some(token) => settings.header(&key, CLOUD, token),
            None => Ok(()),
        }
    }

    fn open(config: &Arc<Self>, link: &Link, settings: RequestSettings) -> Result<ChromaHandle, Failure> {
        let heartbeat = Arc::new(RequestProbe::new(settings.clone(), HEARTBEAT)?.strictly());
        let requests = Requests::new(link, settings)?;
        let tasks = Chroma { session: ChromaSession { requests, database: config.path().into() } };
        Ok(ChromaHandle { threads: blocking::Chroma::new(&tasks), tasks, heartbeat })
    }

    fn requests(handle: &ChromaHandle) -> &Requests {
        &handle.tasks.session.requests
    }

    fn renew(handle: &ChromaHandle, settings: &RequestSettings) -> Result<(), Failure> {
        handle.heartbeat.replace(settings.clone())
    }

    async fn prove(&self, handle: &ChromaHandle, settings: &RequestSettings) -> Result<(), Failure> {
        let database = RequestProbe::new(settings.clone(), &handle.tasks.session.database)?.strictly();
        is_json(&database.read().await.map_err(of_database)?)
    }

    async fn ping(&self, handle: &ChromaHandle) -> Result<(), Failure> {
        is_json(&handle.heartbeat.read().await?)
    }
}

/// Checks that the answer is no page of something before the server.
fn is_json(answer: &[u8]) -> Result<(), Failure> {
    serde_json::from_slice::<IgnoredAny>(answer).map(drop).map_err(|_a_page| Failure::refused(SET_URL))
}
