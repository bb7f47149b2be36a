//! The handle of a MongoDB: one client under both facades, the state that its clones share, and a small client for
//! pings.
//!
//! The slot of the resource holds a `MongoHandle`. `MongoResource` uses its `MongoShared` to ping, to recover and to close.
//!
//! `probing` holds the small client: it is made on first use, and never again once it is closed. `nothing_open` holds
//! the last moment at which the server had nothing open for the client.
//!
//! The two locks are never held together, nor while something is awaited, and no user code runs under them. The driver
//! makes the small client under `probing`, without any handler of the user's.

use std::cell::Cell;
use std::fmt;
use std::future::{IntoFuture, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use mongodb::bson::doc;
use mongodb::event::EventHandler;
use mongodb::options::{ClientOptions, DriverInfo, ReadPreference, SelectionCriteria};
use mongodb::{Client, sync};
use parking_lot::Mutex;

use crate::base::error::Failure;
use crate::base::runtime;
use crate::kinds::mongo::client::for_probing;
use crate::kinds::mongo::monitor::ServerMonitor;
use crate::kinds::mongo::tracker::{CHECKED_OUT, ConnectionTracker, Nudger};
use crate::lifecycle::lease::LeaseAs;

/// MongoDB for async code: a [`mongodb::Client`] under a lease, with all that the driver has, sessions and transactions
/// too.
///
/// The client pools its connections and heals itself after a loss, and so do clones of it. When it closes, change
/// streams end first, operations in flight are waited for, and open transactions are aborted. A clone then answers the
/// driver's own error.
///
/// # Limits
/// - The driver waits for a free connection without limit, so put a timeout around the operation. An operation that is
///   dropped while it waits stays in the driver's queue and delays the operations behind it. The pool notices this when
///   connections are idle while operations wait. It then clears the queue by pings, within about 100 ms, and health
///   warns meanwhile. [`Usage::waiting`](crate::Usage::waiting) counts the dropped operations only as long as no
///   connection is idle.
/// - An operation may wait for a new connection to a server that freezes while this connection authenticates. The wait
///   ends only when the server goes on or closes the connection. If the pool ends before that, the driver panics in the
///   waiting thread or task.
/// - A server that freezes at the moment at which the client closes can delay an operation that began at the same
///   moment, beyond the close.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use resource_pool::{ResourcePool, mongodb::bson::{Document, doc}};
///
/// let mongo = ResourcePool::global().mongo().await?;
/// let bars = mongo.database("quantaxis").collection::<Document>("stock_day");
/// let bar = bars.find_one(doc! { "code": "000001" }).await?;
/// # let _ = bar;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Mongo;

/// The handle that the slot holds: the client as both facades lease it.
#[derive(Clone)]
pub struct MongoHandle {
    pub(super) client: Client,
    pub(super) sync: sync::Client,
    pub(super) shared: Arc<MongoShared>,
}

impl LeaseAs<Client> for MongoHandle {
    fn lease_as(&self) -> &Client {
        &self.client
    }
}

impl LeaseAs<sync::Client> for MongoHandle {
    fn lease_as(&self) -> &sync::Client {
        &self.sync
    }
}

impl fmt::Debug for MongoHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MongoHandle").field("usage", &self.shared.tracker.usage()).finish_non_exhaustive()
    }
}

/// The state that all clones of a handle share.
pub(super) struct MongoShared {
    pub(super) options: ClientOptions,
    pub(super) tracker: Arc<ConnectionTracker>,
    pub(super) monitor: Arc<ServerMonitor>,
    pub(super) nudger: Nudger,
    /// The text that the server shows beside each session of this client.
    pub(super) session_tag: String,
    probing: Mutex<Probing>,
    /// The last moment at which the server had nothing open for the client, and the number of operations until then.
    /// `None` if an operation was in flight, or the server was not asked.
    nothing_open: Mutex<Option<(Instant, u64)>>,
}

impl MongoShared {
    pub(super) fn new(
        options: ClientOptions,
        tracker: Arc<ConnectionTracker>,
        monitor: Arc<ServerMonitor>,
        nudger: Nudger,
        session_tag: String,
    ) -> Self {
        let (probing, nothing_open) = (Mutex::new(Probing::NotYet), Mutex::new(None));
        MongoShared { options, tracker, monitor, nudger, session_tag, probing, nothing_open }
    }

    pub(super) fn probe(&self) -> Result<ProbeClient, Failure> {
        let mut probing = self.probing.lock();
        match &*probing {
            Probing::Open(probe) => Ok(probe.clone()),
            Probing::Closed => Err(Failure::unasked("the client is closed")),
            Probing::NotYet => {
                // The tasks of a client stay on the runtime that it is made in, which is the prober's here.
                let _prober = runtime::background().map_err(Failure::unasked)?.enter();
                let mut options = for_probing(&self.options);
                let monitor = Arc::new(ServerMonitor::new(None, options.repl_set_name.clone()));
                let seeing = Arc::clone(&monitor);
                options.sdam_event_handler = Some(EventHandler::callback(move |event| seeing.see(&event)));
                let probe = ProbeClient { client: Client::with_options(options).map_err(Failure::unasked)?, monitor };
                *probing = Probing::Open(probe.clone());
                Ok(probe)
            }
        }
    }

    /// Notes that the server has nothing open for the client after this number of operations. `None` forgets the note,
    /// because an operation was in flight.
    pub(super) fn note_nothing_open(&self, operations: Option<u64>) {
        *self.nothing_open.lock() = operations.map(|operations| (Instant::now(), operations));
    }

    /// Whether the server had nothing open less than `a_moment` ago, and no operation has begun since.
    pub(super) fn has_nothing_open(&self, a_moment: Duration) -> bool {
        let said = *self.nothing_open.lock();
        said.is_some_and(|(when, operations)| {
            when.elapsed() < a_moment && self.tracker.operations_if_quiet() == Some(operations)
        })
    }

    /// Lets no further operation begin, and waits for the end of those in flight.
    ///
    /// The driver has no call for this, but it takes a server that refuses a handshake for gone. So from now on the
    /// client introduces itself with more text than any server accepts, and gives up connections until a new one has to
    /// be opened.
    pub(super) async fn refuse_operations(&self, client: &Client) {
        let refused = DriverInfo::builder().name("closing ".repeat(256)).build();
        if let Err(error) = client.append_metadata(refused) {
            tracing::debug!(%error, "operations go on");
        }
        tokio::select! {
            // `quiet` comes first, so that no connection is given up once nothing is in flight.
            biased;
            () = self.tracker.quiet() => return,
            _ = self.monitor.all_down() => {}
            () = async {
                loop {
                    give_up_a_connection(client).await;
                    // A ping that is answered at its first poll would keep this select from polling its other branches
                    // for ever.
                    tokio::task::yield_now().await;
                }
            } => {}
        }
        self.tracker.quiet().await;
    }

    pub(super) fn close_probe(&self) -> Option<Client> {
        match std::mem::replace(&mut *self.probing.lock(), Probing::Closed) {
            Probing::Open(probe) => Some(probe.client),
            Probing::NotYet | Probing::Closed => None,
        }
    }
}

/// Begins an operation and drops it in flight. The driver then closes its connection.
async fn give_up_a_connection(client: &Client) {
    let criteria = SelectionCriteria::ReadPreference(ReadPreference::Nearest { options: None });
    let admin = client.database("admin");
    let mut ping = admin.run_command(doc! { "ping": 1 }).selection_criteria(criteria).into_future();
    let begun = poll_fn(|context| match Pin::new(&mut ping).poll(context) {
        Poll::Pending if !CHECKED_OUT.with(Cell::get) => Poll::Pending,
        _ => Poll::Ready(()),
    });
    CHECKED_OUT.scope(Cell::new(false), begun).await;
}

/// A small client, mainly for pings. Its pings wait neither for users' operations nor for the workers of the pool's
/// runtime.
#[derive(Clone)]
pub(super) struct ProbeClient {
    pub(super) client: Client,
    pub(super) monitor: Arc<ServerMonitor>,
}

enum Probing {
    NotYet,
    Open(ProbeClient),
    Closed,
}
