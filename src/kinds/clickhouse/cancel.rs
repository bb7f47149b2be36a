//! Cancels at the server the queries that were given up here. A server reads on until it has something to write, so it
//! does not notice by itself.
//!
//! A `TrafficStream` of a `Transport` names each query that only reads. It hands the name over if the query is given up before
//! the answer begins. A task sends the names on, many in one `KILL QUERY`.
//!
//! The task runs on the prober's runtime. It ends when the `Cancel` and all of its `NamedQuery` have dropped. There is no
//! lock here.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::clickhouse::Client;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::base::runtime::within;

/// The most queries that wait to be cancelled. A query given up beyond that runs to its end.
const WAITING: usize = 1024;

/// The most queries that one `KILL QUERY` cancels.
const AT_ONCE: usize = 100;

/// The limit of one `KILL QUERY`, so that a server that does not answer delays the next one by no more.
const LIMIT: Duration = Duration::from_secs(2);

/// Names queries, and cancels those that were given up by their names.
pub(super) struct Cancel {
    /// The beginning of every name. No other client has the same one, in whichever process.
    prefix: String,
    count: AtomicU64,
    given_up: mpsc::Sender<String>,
}

impl Cancel {
    /// Cancels through this client, on this runtime, until it drops.
    pub(super) fn start(client: Client, runtime: &Handle) -> Self {
        let (given_up, queries) = mpsc::channel(WAITING);
        runtime.spawn(cancel(client, queries));
        let random = RandomState::new().build_hasher().finish();
        Cancel {
            prefix: format!("resource-pool-{}-{random:016x}", process::id()),
            count: AtomicU64::default(),
            given_up,
        }
    }

    /// A name for a new query.
    pub(super) fn name(&self) -> NamedQuery {
        // Relaxed, because only the uniqueness of a name matters.
        let id = format!("{}-{}", self.prefix, self.count.fetch_add(1, Ordering::Relaxed));
        NamedQuery { id, given_up: self.given_up.clone() }
    }
}

/// A query that can be cancelled.
pub(super) struct NamedQuery {
    pub(super) id: String,
    given_up: mpsc::Sender<String>,
}

impl NamedQuery {
    pub(super) fn cancel(self) {
        // Sending fails only when too many queries wait, or the task is gone. The query then runs to its end.
        let _ = self.given_up.try_send(self.id);
    }
}

async fn cancel(client: Client, mut queries: mpsc::Receiver<String>) {
    let mut ids = Vec::with_capacity(AT_ONCE);
    while queries.recv_many(&mut ids, AT_ONCE).await > 0 {
        let list: Vec<_> = ids.drain(..).map(|id| format!("'{id}'")).collect();
        let kill = format!("KILL QUERY WHERE query_id IN ({}) ASYNC", list.join(", "));
        match within(LIMIT, client.query(&kill).execute()).await {
            Ok(Ok(())) => tracing::debug!(queries = list.len(), "cancelled queries that were given up"),
            Ok(Err(error)) => tracing::debug!(%error, "queries that were given up run on at the server"),
            Err(_elapsed) => tracing::debug!("queries that were given up may run on: the server did not answer"),
        }
    }
}
