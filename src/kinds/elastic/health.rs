//! The question for the health of the cluster, and the verdict on its answer.

use std::sync::Arc;

use parking_lot::RwLock;
use serde::Deserialize;

use crate::base::error::{Failure, Worded, causes};
use crate::lifecycle::requests::{RequestProbe, RequestSettings};

/// The server answers this within its own limit, which is below the 500 ms of a health check. It answers 503 or 408 if
/// the cluster has no master.
const HEALTH: &str = "_cluster/health?timeout=400ms&master_timeout=400ms";

/// Asks a cluster for its health. The lock is held for a look only.
pub(super) struct ClusterProbe(RwLock<Arc<RequestProbe>>);

/// The part of the answer that the verdict needs.
#[derive(Deserialize)]
struct ClusterHealth {
    status: String,
    #[serde(default)]
    unassigned_shards: u64,
}

impl ClusterProbe {
    pub(super) fn new(settings: RequestSettings) -> Result<Self, Failure> {
        Ok(ClusterProbe(RwLock::new(Arc::new(probe(settings)?))))
    }

    /// Asks with these settings from now on.
    pub(super) fn replace(&self, settings: RequestSettings) -> Result<(), Failure> {
        let probe = Arc::new(probe(settings)?);
        *self.0.write() = probe;
        Ok(())
    }

    /// Asks, and fails as the cluster's health is: with a warning if it is yellow, and as one that cannot serve if it is
    /// red.
    pub(super) async fn ask(&self) -> Result<(), Failure> {
        let ClusterHealth { status, unassigned_shards } = self.health().await?;
        let told = || format!("the cluster is {status}, with {unassigned_shards} shards unassigned");
        match &*status {
            "green" => Ok(()),
            "yellow" => Err(Failure::limited(told())),
            _ => Err(Failure::refused(told())),
        }
    }

    /// Asks whether the server answers at all, whatever the cluster's health. A red one serves the indices that it has
    /// whole.
    ///
    /// # Errors
    /// It does not, or the answer is of another sort of server, which no further attempt mends.
    pub(super) async fn answers(&self) -> Result<(), Failure> {
        self.health().await.map(drop)
    }

    async fn health(&self) -> Result<ClusterHealth, Failure> {
        let probe = Arc::clone(&*self.0.read());
        let body = probe.read().await.map_err(worded)?;
        serde_json::from_slice(&body).map_err(|_may_be_long| {
            let text = "the answer has no health of a cluster; see that `url` leads to an Elasticsearch or OpenSearch";
            Failure::refused(text).with_permanent(true)
        })
    }
}

/// The same failure. That of the driver gets its own words, by which `never_left` tells a loss that the prober found from
/// that of a request.
fn worded(failure: Failure) -> Failure {
    if !causes(failure.source()).any(|cause| cause.is::<reqwest::Error>()) {
        return failure;
    }
    let text = failure.to_string();
    Failure { source: Worded::new(text, failure.source).into(), ..failure }
}

fn probe(settings: RequestSettings) -> Result<RequestProbe, Failure> {
    Ok(RequestProbe::new(settings, HEALTH)?.by_get().strictly())
}
