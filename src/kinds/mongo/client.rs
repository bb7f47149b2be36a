//! The driver's clients: the options that one is made with, and the ping that proves that a server answers.
//!
//! `MongoResource` makes and pings the users' client with this, and `MongoShared::probe` makes the small client for pings.
//!
//! There is no lock here. For each event of the driver, the handler of this crate runs first and releases its locks.
//! Then the user's handler is called, so it runs under no lock of this crate.
//!
//! Two sorts of tasks begin here: the shutdown of a client whose server has never answered, and the calls of the user's
//! asynchronous handlers. Nothing waits for either.

use std::sync::Arc;

use mongodb::Client;
use mongodb::bson::doc;
use mongodb::error::Error as DriverError;
use mongodb::event::EventHandler;
use mongodb::options::{ClientOptions, DriverInfo, ServerMonitoringMode};
use tokio::runtime::Handle;

use crate::kinds::mongo::monitor::ServerMonitor;
use crate::kinds::mongo::tracker::ConnectionTracker;

/// A client whose server has not answered yet. When it drops unproven, the client is shut down. A client that is merely
/// dropped would keep a socket open until its next heartbeat.
pub(super) struct UnverifiedClient {
    pub(super) client: Client,
    proven: bool,
}

impl UnverifiedClient {
    pub(super) fn open(options: ClientOptions) -> Result<Self, DriverError> {
        Ok(UnverifiedClient { client: Client::with_options(options)?, proven: false })
    }

    pub(super) fn proven(mut self) -> Client {
        self.proven = true;
        self.client.clone()
    }
}

impl Drop for UnverifiedClient {
    fn drop(&mut self) {
        if let (false, Ok(runtime)) = (self.proven, Handle::try_current()) {
            let client = self.client.clone();
            runtime.spawn(async move { client.shutdown().immediate(true).await });
        }
    }
}

pub(super) async fn ping(client: &Client) -> Result<(), DriverError> {
    let admin = client.database("admin");
    let mut ping = admin.run_command(doc! { "ping": 1 });
    if let Some(criteria) = client.selection_criteria() {
        ping = ping.selection_criteria(criteria.clone());
    }
    ping.await.map(drop)
}

/// The options of a client whose events the tracker and the monitor see.
pub(super) fn watched(
    options: &ClientOptions,
    tracker: &Arc<ConnectionTracker>,
    monitor: &Arc<ServerMonitor>,
    session_tag: &str,
) -> ClientOptions {
    let mut options = options.clone();
    let tracker = Arc::clone(tracker);
    options.cmap_event_handler = Some(also(options.cmap_event_handler, move |event| tracker.see(event)));
    let monitor = Arc::clone(monitor);
    options.sdam_event_handler = Some(also(options.sdam_event_handler, move |event| monitor.see(event)));
    let mut driver = options.driver_info.unwrap_or_else(library);
    // The server shows the driver's version beside each session, so the mark in it finds the sessions of this client.
    driver.version =
        Some(driver.version.map_or_else(|| session_tag.to_owned(), |version| format!("{version} {session_tag}")));
    options.driver_info = Some(driver);
    options
}

pub(super) fn for_probing(options: &ClientOptions) -> ClientOptions {
    let mut options = options.clone();
    // A prober and a health check may ping at the same time.
    options.max_pool_size = Some(2);
    options.min_pool_size = Some(0);
    options.server_monitoring_mode = Some(ServerMonitoringMode::Poll);
    // By default the driver asks a server without room again, with pauses. The probe has to know of it at once.
    options.max_adaptive_retries = Some(0);
    options.app_name = options.app_name.map(|name| format!("{name} probe"));
    options.cmap_event_handler = None;
    options.command_event_handler = None;
    options.sdam_event_handler = None;
    options
}

/// Calls this crate's handler, then the user's.
fn also<T: Send + Sync + 'static>(
    theirs: Option<EventHandler<T>>,
    ours: impl Fn(&T) + Send + Sync + 'static,
) -> EventHandler<T> {
    let runtime = Handle::current();
    EventHandler::callback(move |event: T| {
        ours(&event);
        match &theirs {
            Some(EventHandler::Callback(call)) => call(event),
            Some(EventHandler::AsyncCallback(call)) => drop(runtime.spawn(call(event))),
            Some(EventHandler::TokioMpsc(sender)) => {
                let sender = sender.clone();
                // Sending fails only when the receiver is gone.
                runtime.spawn(async move { drop(sender.send(event).await) });
            }
            _ => {}
        }
    })
}

fn library() -> DriverInfo {
    DriverInfo::builder().name("resource-pool").version(env!("CARGO_PKG_VERSION").to_owned()).build()
}
