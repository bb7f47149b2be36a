//! The shapes of an admin's answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::HealthReport;
use crate::Holder;
use crate::seen::admin::recent::Point;
use crate::{PoolStatus, ResourceStatus};

/// The answer of `/status`.
#[derive(Serialize)]
pub(super) struct StatusView<'a> {
    pub(super) closing: bool,
    pub(super) readiness: String,
    pub(super) status: &'a PoolStatus,
    pub(super) health: Option<&'a HealthReport>,
}

impl<'a> StatusView<'a> {
    pub(super) fn new(closing: bool, status: &'a PoolStatus, health: Option<&'a HealthReport>) -> Self {
        let readiness = match health {
            _ if closing => "fail".to_owned(),
            Some(health) => health.readiness().to_string(),
            None => "unknown".to_owned(),
        };
        StatusView { closing, readiness, status, health }
    }
}

/// The message `status` of a stream.
#[derive(Serialize)]
pub(super) struct TickView<'a> {
    #[serde(flatten)]
    pub(super) status: StatusView<'a>,
    pub(super) holders: &'a [Holder],
    pub(super) latency: &'a BTreeMap<Arc<str>, Vec<Point>>,
    /// The time of this message on the clock of the points of latency.
    pub(super) clock_ms: f64,
    /// How many events were left out so far, since there were too many.
    pub(super) left_out: u64,
}

/// One resource in the answer of `/pool-status`, whose names are those of SQLAlchemy's users.
#[derive(Serialize)]
pub(super) struct PoolView {
    /// The most connections that it may have.
    pool_size: Option<usize>,
    checkedout: usize,
    overflow: Option<usize>,
    idle: Option<usize>,
    /// How many leaks are suspected.
    connection_leak: usize,
    /// How often a caller was given a connection.
    requests: Option<u64>,
}

impl From<&ResourceStatus> for PoolView {
    fn from(status: &ResourceStatus) -> Self {
        let usage = &status.usage;
        PoolView {
            pool_size: usage.max,
            checkedout: usage.in_use.unwrap_or(status.checkouts),
            overflow: usage.overflow,
            idle: usage.idle,
            connection_leak: status.leaks,
            requests: usage.counters.acquires,
        }
    }
}

/// The answer of `/pool-status`, by the resource's name.
pub(super) fn pools(status: &PoolStatus) -> BTreeMap<&str, PoolView> {
    status.resources.iter().map(|resource| (&*resource.name, PoolView::from(resource))).collect()
}
