//! The driver's clients: with which options one is made, and how it proves that a server answers.

use std::sync::Arc;

use mongodb::Client;
use mongodb::bson::doc;
use mongodb::error::Error as DriverError;
use mongodb::event::EventHandler;
use mongodb::options::{ClientOptions, DriverInfo, ServerMonitoringMode};
use tokio::runtime::Handle;

use crate::kinds::mongo::monitor::ServerMonitor;
use crate::kinds::mongo::tracker::ConnectionTracker;

/// A client that has not answered yet. Unless it does it is shut down, not merely dropped: that
/// would keep a socket open until the next heartbeat.
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

/// The options of a client whose events we see.
pub(super) fn watched(
    options: &ClientOptions,
    tracker: &Arc<ConnectionTracker>,
    monitor: &Arc<ServerMonitor>,
    mark: &str,
) -> ClientOptions {
    let mut options = options.clone();
    let tracker = Arc::clone(tracker);
    options.cmap_event_handler = Some(also(options.cmap_event_handler, move |event| tracker.see(event)));
    let monitor = Arc::clone(monitor);
    options.sdam_event_handler = Some(also(options.sdam_event_handler, move |event| monitor.see(event)));
    let mut driver = options.driver_info.unwrap_or_else(library);
    // The server shows it beside each session, which is how ours are known.
    driver.version = Some(driver.version.map_or_else(|| mark.to_owned(), |version| format!("{version} {mark}")));
    options.driver_info = Some(driver);
    options
}

pub(super) fn for_probing(options: &ClientOptions) -> ClientOptions {
    let mut options = options.clone();
    // A prober and a health check may ping at once.
    options.max_pool_size = Some(2);
    options.min_pool_size = Some(0);
    options.server_monitoring_mode = Some(ServerMonitoringMode::Poll);
    // A server without room is to be known at once: the driver would ask again, with pauses.
    options.max_adaptive_retries = Some(0);
    options.app_name = options.app_name.map(|name| format!("{name} probe"));
    options.cmap_event_handler = None;
    options.command_event_handler = None;
    options.sdam_event_handler = None;
    options
}

/// Calls ours, then theirs.
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
                // Fails only where nobody listens any more.
                runtime.spawn(async move { drop(sender.send(event).await) });
            }
            _ => {}
        }
    })
}

fn library() -> DriverInfo {
    DriverInfo::builder().name("resource-pool").version(env!("CARGO_PKG_VERSION").to_owned()).build()
}
