//! A connected ClickHouse: the clients of both facades, those of the prober, and the connections under them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use ::clickhouse::Client;
use hyper::Uri;

use crate::kinds::clickhouse::blocking;
use crate::kinds::clickhouse::transport::{HttpClient, Transport};
use crate::kinds::clickhouse::verbs::ClickHouseSession;
use crate::lifecycle::lease::LeaseAs;

/// A ClickHouse of the caller's own: [`ClickHouse::scoped`]. The guards of a pool deref to
/// [`clickhouse::Client`](Client), and have verbs that answer the pool's own errors, such as
/// [`query_rows`](crate::Lease::query_rows).
///
/// A query or insert in flight counts as work, through whichever clone of the client, from its first byte until the
/// answer is complete or given up. Closing waits for it, within the drain. So code that fills an `Insert`, or an
/// inserter of the driver's own, has to end it when [`closing`](crate::ResourcePool::closing) fires. An insert that is
/// not ended is aborted, by the driver as well as by closing. Its rows are not stored then, except for the blocks that
/// the server has written by that time. Closing flushes an [`Inserter`](crate::Inserter).
#[derive(Debug)]
pub enum ClickHouse {}

/// A ClickHouse as its slot holds it. It is leased as a client of either facade.
#[derive(Clone)]
pub struct Connected(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) client: Client,
    pub(super) threads: blocking::ClickHouse,
    pub(super) session: Arc<ClickHouseSession>,
    /// The settings that go along with every query.
    pub(super) settings: BTreeMap<String, String>,
    pub(super) pings: Client,
    /// For pings that need no query.
    pub(super) raw_pings: HttpClient<String>,
    pub(super) ping_uri: Uri,
    /// For pings over the users' connections. Any answer counts there, also an error.
    pub(super) shared_pings: Client,
    pub(super) traffic: Arc<Transport>,
    pub(super) probe: Arc<Transport>,
}

impl Connected {
    /// The driver's client.
    pub fn client(&self) -> &Client {
        &self.0.client
    }
}

impl LeaseAs<Client> for Connected {
    fn lease_as(&self) -> &Client {
        &self.0.client
    }
}

impl LeaseAs<blocking::ClickHouse> for Connected {
    fn lease_as(&self) -> &blocking::ClickHouse {
        &self.0.threads
    }
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connected").field(&self.0.client).finish()
    }
}
